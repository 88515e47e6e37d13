//! The way to the core and away from it: what waits for it, and what it has said to a link.

use std::sync::Arc;

use feiqian_protocol::frame::{Frame, Lane};
use feiqian_protocol::ids::NodeId;
use feiqian_protocol::limits::{INPUT_QUEUE_MAX, LINK_QUEUE_MAX};
use feiqian_protocol::time::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::io::{Command, CommandError, LinkId, Reply};

/// Frames of entries that may wait for the core, over all links. Few: what waits longer waits at its sender.
pub(super) const BULK_QUEUE_MAX: usize = 64;

/// What reaches the core's thread.
pub(super) enum Event {
    /// The business clock was set; told once it is in force.
    Clock(Timestamp, oneshot::Sender<()>),
    Command(Command, oneshot::Sender<Reply>),
    Frame(LinkId, Frame),
    LinkDown(LinkId),
    LinkUp(LinkId, Peer, Outgoing),
    Stop,
}

impl Event {
    /// True for what somebody waits for at a till or a counter.
    pub(super) const fn is_urgent(&self) -> bool {
        match self {
            Self::Command(command, _) => !matches!(command, Command::Status {}),
            Self::Frame(_, frame) => frame.is_waited_for(),
            Self::Clock(..) | Self::LinkDown(_) | Self::LinkUp(..) | Self::Stop => false,
        }
    }
}

/// The way to the core's thread, for every task of the shell.
#[derive(Clone)]
pub struct CoreHandle {
    events: mpsc::Sender<Event>,
    bulk: mpsc::Sender<(LinkId, Frame)>,
}

/// Who is connected, by the certificate that was shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peer {
    /// The node.
    pub node: NodeId,
    /// Its enrolment.
    pub incarnation: u32,
    /// True where the certificate has expired.
    pub expired: bool,
}

/// The core's thread is gone: the process is ending.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the service is stopping")]
pub struct Stopped;

/// The other end of [`CoreHandle`].
pub struct Events {
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) bulk: mpsc::Receiver<(LinkId, Frame)>,
    /// The first of `bulk`, where waiting for it took it out.
    pub(super) first_bulk: Option<(LinkId, Frame)>,
}

/// The bounded queues to the core. Where one is full, senders wait, and with them the peers. Entries queue by
/// themselves, so that the asks of a till do not wait behind the backlog of a building that was cut off for days.
pub fn queue() -> (CoreHandle, Events) {
    let (events, events_out) = mpsc::channel(INPUT_QUEUE_MAX);
    let (bulk, bulk_out) = mpsc::channel(BULK_QUEUE_MAX);
    (CoreHandle { events, bulk }, Events { events: events_out, bulk: bulk_out, first_bulk: None })
}

impl CoreHandle {
    async fn send(&self, event: Event) -> Result<(), Stopped> {
        self.events.send(event).await.map_err(|_| Stopped)
    }

    /// Asks the core something.
    pub async fn command(&self, command: Command) -> Reply {
        let (sender, receiver) = oneshot::channel();
        let stopping = || CommandError { code: "stopping", message: Stopped.to_string() };
        self.send(Event::Command(command, sender)).await.map_err(|_| stopping())?;
        receiver.await.unwrap_or_else(|_| {
            let message = "the command was interrupted; look at the status, then say it again";
            Err(CommandError { code: "interrupted", message: message.to_owned() })
        })
    }

    /// Sets the business clock; returns once every later input is stepped under it.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn set_clock(&self, now: Timestamp) -> Result<(), Stopped> {
        let (sender, receiver) = oneshot::channel();
        self.send(Event::Clock(now, sender)).await?;
        receiver.await.map_err(|_| Stopped)
    }

    /// A node is connected.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn link_up(&self, link: LinkId, peer: Peer, outgoing: Outgoing) -> Result<(), Stopped> {
        self.send(Event::LinkUp(link, peer, outgoing)).await
    }

    /// A frame came.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn frame(&self, link: LinkId, frame: Frame) -> Result<(), Stopped> {
        if frame.lane() == Lane::Bulk {
            return self.bulk.send((link, frame)).await.map_err(|_| Stopped);
        }
        self.send(Event::Frame(link, frame)).await
    }

    /// A link is gone; said once for each [`CoreHandle::link_up`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn link_down(&self, link: LinkId) -> Result<(), Stopped> {
        self.send(Event::LinkDown(link)).await
    }

    /// Ends the core's thread once everything queued before is stepped.
    pub async fn stop(&self) {
        // Where it is stopped already, that is what was wanted.
        let _ = self.send(Event::Stop).await;
    }
}

/// A frame on its way to a link's writer. The permit keeps its place in the queue.
pub struct Queued {
    /// The frame.
    pub frame: Frame,
    _place: OwnedSemaphorePermit,
}

/// The core's side of a link.
pub struct Outgoing {
    lanes: [mpsc::UnboundedSender<Queued>; 3],
    places: Arc<Semaphore>,
    close: watch::Sender<Option<String>>,
}

/// The writers' side of a link.
pub struct LinkQueues {
    /// What is to be written, by lane.
    pub lanes: [(Lane, mpsc::UnboundedReceiver<Queued>); 3],
    /// Why the link is to be closed, once it is.
    pub close: watch::Receiver<Option<String>>,
}

impl Outgoing {
    /// The queues of a new link: at most [`LINK_QUEUE_MAX`] frames in all lanes together.
    pub fn new() -> (Self, LinkQueues) {
        let (control, control_out) = mpsc::unbounded_channel();
        let (urgent, urgent_out) = mpsc::unbounded_channel();
        let (bulk, bulk_out) = mpsc::unbounded_channel();
        let (close, closed) = watch::channel(None);
        let outgoing =
            Self { lanes: [control, urgent, bulk], places: Arc::new(Semaphore::new(LINK_QUEUE_MAX)), close };
        let lanes = [(Lane::Control, control_out), (Lane::Urgent, urgent_out), (Lane::Bulk, bulk_out)];
        (outgoing, LinkQueues { lanes, close: closed })
    }

    /// Queues a frame; `false` where the queue is full.
    pub(super) fn send(&self, frame: Frame) -> bool {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return false };
        let lane = usize::from(frame.lane().tag());
        // A writer that is gone takes its link down by itself.
        let _ = self.lanes[lane].send(Queued { frame, _place: place });
        true
    }

    pub(super) fn close(self, reason: String) {
        self.close.send_replace(Some(reason));
    }
}
