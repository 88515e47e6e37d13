//! The core's loop, in production on an OS thread of its own: takes what waits, runs one step over it, and releases what
//! the step said once it is on disk.
//!
//! Links and replies live here and not in the core, so that a core that failed can be dropped and opened again: whoever
//! was connected is cut off and comes back, whoever waited is told so, and nothing that was answered is lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use feiqian_protocol::frame::{Frame, Lane};
use feiqian_protocol::ids::NodeId;
use feiqian_protocol::limits::{INPUT_QUEUE_MAX, INPUTS_PER_STEP_MAX, LINK_QUEUE_MAX};
use feiqian_protocol::time::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::io::{Command, CommandError, Input, LinkId, Now, Output, Reply, Ticket};

/// Longest wait between two attempts of a core that keeps failing.
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Frames of entries that may wait for the core, over all links. Few: what waits longer waits at its sender.
const BULK_QUEUE_MAX: usize = 64;

/// Entries that one step takes at most, give or take a frame.
const ENTRIES_PER_STEP_MAX: usize = 4_096;

/// How long a step over entries should take with its commit. The more of them share a commit, the less it costs; the first
/// ask, credit or loss that comes while a backlog comes in waits for the step that is under way. It takes as many entries as
/// that allows by how long the last ones took, and a frame of them at least.
const STEP_TIME: Duration = Duration::from_millis(32);

/// The same where there was something of the kind not long ago: then there is more to come.
const BUSY_STEP_TIME: Duration = Duration::from_millis(3);

/// After such a step over entries none are taken for as long as it took: what comes in that time waits for nothing, and a machine
/// that has little more to do than to take a backlog in is not kept busy by it alone.
const REST_PER_STEP: u32 = 1;

/// How long that counts as not long ago.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// What an entry takes as far as nothing is known.
const ENTRY_TIME: Duration = Duration::from_micros(50);

/// Entries of a step from which on it says something about what one takes.
const ENTRIES_TO_LEARN_FROM: usize = 32;

/// A core as the driver sees it.
pub trait Core {
    /// Why a step failed.
    type Error: std::error::Error;

    /// One transaction over all inputs. After an error the core is dropped and its outputs are discarded.
    ///
    /// # Errors
    /// Whatever keeps the transaction from being durable.
    fn step(&mut self, now: Now, inputs: Vec<Input>, outputs: &mut Vec<Output>) -> Result<(), Self::Error>;

    /// When the core wants [`Input::Timer`], in milliseconds since it was opened.
    fn next_timer(&self) -> Option<u64>;
}

/// What reaches the core's thread.
enum Event {
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
    const fn is_urgent(&self) -> bool {
        match self {
            Self::Command(command, _) => !matches!(command, Command::Status {}),
            Self::Frame(_, frame) => matches!(frame, Frame::Ask(_) | Frame::Recalled(_)),
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
    events: mpsc::Receiver<Event>,
    bulk: mpsc::Receiver<(LinkId, Frame)>,
    /// The first of `bulk`, where waiting for it took it out.
    first_bulk: Option<(LinkId, Frame)>,
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
    fn send(&self, frame: Frame) -> bool {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return false };
        let lane = usize::from(frame.lane().tag());
        // A writer that is gone takes its link down by itself.
        let _ = self.lanes[lane].send(Queued { frame, _place: place });
        true
    }

    fn close(self, reason: String) {
        self.close.send_replace(Some(reason));
    }
}

/// Where the business clock comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WallClock {
    /// The operating system.
    Real,
    /// The local socket; nothing is served before it is set.
    Driven,
}

/// Where the real wall clock is read.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The real wall clock.
pub fn real_now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Runs [`run_cores`] on the calling thread, which it occupies, by the operating system's clock.
///
/// # Errors
/// As [`run_cores`].
pub fn drive<C: Core, E>(
    runtime: &tokio::runtime::Handle,
    events: Events,
    clock: WallClock,
    open: impl FnMut() -> Result<C, E>,
    ready: oneshot::Sender<()>,
) -> Result<(), E> {
    runtime.block_on(run_cores(events, clock, real_now, open, ready))
}

/// Runs cores until it is told to stop: opens one, steps it, and opens the next where a step failed. `ready` is told when
/// the first one stands. Timers go by the time of the runtime and the real wall clock is `real`, so that a simulation
/// brings its own. Dropped, it is a process that was killed.
///
/// # Errors
/// The error of `open`: a store that does not even open is nothing that trying again helps.
pub async fn run_cores<C: Core, E>(
    mut events: Events,
    clock: WallClock,
    real: impl Fn() -> Timestamp,
    mut open: impl FnMut() -> Result<C, E>,
    ready: oneshot::Sender<()>,
) -> Result<(), E> {
    let mut driven = None;
    if clock == WallClock::Driven {
        driven = first_clock(&mut events).await;
        if driven.is_none() {
            return Ok(());
        }
    }
    let mut ready = Some(ready);
    let mut pause = Duration::from_millis(50);
    let mut tickets = 0;
    loop {
        let core = open()?;
        if let Some(ready) = ready.take() {
            // Nobody waits for it where the process is ending already.
            let _ = ready.send(());
        }
        let opened = Instant::now();
        let mut run = Run {
            core,
            real: &real,
            opened,
            driven,
            tickets,
            waiting: BTreeMap::new(),
            links: BTreeMap::new(),
            urgent: None,
            pace: Pace::default(),
            rest_until: Instant::now(),
            statuses: VecDeque::new(),
            frames_taken: 0,
        };
        match run.run(&mut events).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::error!(error = %chain(&error), "step failed; the core is opened again from disk");
            }
        }
        driven = run.driven;
        tickets = run.tickets;
        for (_, outgoing) in std::mem::take(&mut run.links) {
            if let Some(outgoing) = outgoing {
                outgoing.close("the centre starts again from disk".to_owned());
            }
        }
        if opened.elapsed() > REOPEN_PAUSE_MAX * 2 {
            pause = Duration::from_millis(50);
        }
        drop(run);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REOPEN_PAUSE_MAX);
    }
}

/// Waits for the first clock; `None` where the process ends before.
async fn first_clock(events: &mut Events) -> Option<Timestamp> {
    loop {
        match events.events.recv().await? {
            Event::Clock(now, done) => {
                let _ = done.send(());
                return Some(now);
            }
            Event::Command(_, reply) => {
                let message = "the business clock is not set yet";
                let _ = reply.send(Err(CommandError { code: "clock_not_set", message: message.to_owned() }));
            }
            Event::Stop => return None,
            Event::Frame(..) | Event::LinkDown(_) | Event::LinkUp(..) => {}
        }
    }
}

/// One life of a core.
struct Run<C, R> {
    core: C,
    /// The real wall clock.
    real: R,
    opened: Instant,
    driven: Option<Timestamp>,
    tickets: u64,
    waiting: BTreeMap<Ticket, oneshot::Sender<Reply>>,
    /// The links that this core knows of; `None` for one that is closing, of which nothing is taken any more.
    links: BTreeMap<LinkId, Option<Outgoing>>,
    /// When there was something that must not wait for a long step.
    urgent: Option<Instant>,
    pace: Pace,
    /// Until when no entries are taken.
    rest_until: Instant,
    /// Statuses that wait until so many frames of entries are taken.
    statuses: VecDeque<(u64, Ticket)>,
    frames_taken: u64,
}

/// How many entries a step takes.
#[derive(Debug)]
pub struct Pace {
    /// What an entry took of late, its part of the commit included.
    entry: Duration,
    /// True where the last step left entries waiting for what is urgent.
    stood_back: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { entry: ENTRY_TIME, stood_back: false }
    }
}

impl Pace {
    /// Entries for the next step, where `urgent` says that it has something that must not wait: that goes alone, but not
    /// twice in a row, so that a backlog comes in all the same.
    pub fn entries(&mut self, urgent: bool, busy: bool) -> usize {
        self.stood_back = urgent && !self.stood_back;
        if self.stood_back {
            return 0;
        }
        let time = if busy { BUSY_STEP_TIME } else { STEP_TIME };
        let entries = time.as_nanos() / self.entry.as_nanos().max(1);
        usize::try_from(entries).unwrap_or(usize::MAX).clamp(1, ENTRIES_PER_STEP_MAX)
    }

    /// A step over so many entries took so long.
    pub fn learn(&mut self, entries: usize, took: Duration) {
        if entries >= ENTRIES_TO_LEARN_FROM {
            let each = took / u32::try_from(entries).unwrap_or(u32::MAX);
            self.entry = (self.entry * 3 + each) / 4;
        }
    }
}

impl<C: Core, R: Fn() -> Timestamp> Run<C, R> {
    async fn run(&mut self, events: &mut Events) -> Result<(), C::Error> {
        loop {
            let mut inputs = Vec::new();
            let mut urgent = false;
            let mut next = self.wait(events).await;
            while let Some(event) = next {
                match event {
                    Event::Clock(now, done) => {
                        // What was queued before the clock belongs to the time before.
                        self.admit_bulk(events, &mut inputs, BULK_QUEUE_MAX + 1, usize::MAX);
                        self.admit_statuses(&mut inputs, u64::MAX);
                        if !inputs.is_empty() {
                            self.step(std::mem::take(&mut inputs))?;
                        }
                        self.driven = self.driven.max(Some(now));
                        inputs.push(Input::Timer);
                        // Whoever drives may be gone; the clock stands all the same.
                        let _ = done.send(());
                    }
                    Event::Stop => {
                        self.admit_statuses(&mut inputs, u64::MAX);
                        return if inputs.is_empty() { Ok(()) } else { self.step(inputs) };
                    }
                    Event::Command(Command::Status {}, reply) => {
                        // A status speaks of everything that was queued before it, entries included.
                        let waiting = events.bulk.len() + usize::from(events.first_bulk.is_some());
                        let ticket = self.ticket(reply);
                        self.statuses.push_back((self.frames_taken + waiting as u64, ticket));
                    }
                    event => {
                        urgent |= event.is_urgent();
                        inputs.extend(self.admit(event));
                    }
                }
                if inputs.len() >= INPUTS_PER_STEP_MAX {
                    break;
                }
                next = events.events.try_recv().ok();
            }
            let room = INPUTS_PER_STEP_MAX.saturating_sub(inputs.len()).max(1);
            if urgent {
                self.urgent = Some(Instant::now());
            }
            let busy = self.urgent.is_some_and(|since| since.elapsed() < BUSY_FOR);
            let entries = if self.rests() { 0 } else { self.pace.entries(urgent, busy) };
            let taken = self.admit_bulk(events, &mut inputs, if entries > 0 { room } else { 0 }, entries);
            self.admit_statuses(&mut inputs, self.frames_taken);
            if self.core.next_timer().is_some_and(|due| due <= self.mono_ms()) {
                inputs.push(Input::Timer);
            }
            if !inputs.is_empty() {
                let begun = Instant::now();
                self.step(inputs)?;
                let took = begun.elapsed();
                self.pace.learn(taken, took);
                if busy && taken > 0 {
                    self.rest_until = Instant::now() + took * REST_PER_STEP;
                }
            }
        }
    }

    /// Takes of the entries that wait: at most so many frames, and about so many entries. Returns how many.
    fn admit_bulk(
        &mut self,
        events: &mut Events,
        inputs: &mut Vec<Input>,
        frames_max: usize,
        entries_max: usize,
    ) -> usize {
        let mut entries = 0;
        for _ in 0..frames_max {
            let first = events.first_bulk.take();
            let Some((link, frame)) = first.or_else(|| events.bulk.try_recv().ok()) else { break };
            self.frames_taken += 1;
            if let Frame::Entries(batch) = &frame {
                entries += batch.records.len();
            }
            if self.takes_from(link) {
                inputs.push(Input::Frame(link, frame));
            }
            if entries >= entries_max {
                break;
            }
        }
        entries
    }

    /// Takes the statuses that have waited for no more than so many frames.
    fn admit_statuses(&mut self, inputs: &mut Vec<Input>, frames_taken: u64) {
        while let Some((_, ticket)) = self.statuses.pop_front_if(|(after, _)| *after <= frames_taken) {
            inputs.push(Input::Command(ticket, Command::Status {}));
        }
    }

    /// Waits until there is something to do; returns the event where that is what it is.
    async fn wait(&self, events: &mut Events) -> Option<Event> {
        if let Ok(event) = events.events.try_recv() {
            return Some(event);
        }
        let rests = self.rests();
        if events.first_bulk.is_some() && !rests {
            return None;
        }
        let timer = async {
            match self.core.next_timer() {
                // At least a millisecond, so that a timer which does not move cannot spin.
                Some(due) => {
                    let left = due.saturating_sub(self.mono_ms()).max(1);
                    tokio::time::sleep(Duration::from_millis(left)).await;
                }
                None => std::future::pending().await,
            }
        };
        let Events { events, bulk, first_bulk } = events;
        tokio::select! {
            biased;
            // All senders gone is a stop, too.
            event = events.recv() => Some(event.unwrap_or(Event::Stop)),
            Some(frame) = bulk.recv(), if !rests => {
                *first_bulk = Some(frame);
                None
            }
            () = tokio::time::sleep_until(self.rest_until), if rests => None,
            () = timer => None,
        }
    }

    fn rests(&self) -> bool {
        Instant::now() < self.rest_until
    }

    fn mono_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Keeps who waits for an answer.
    fn ticket(&mut self, reply: oneshot::Sender<Reply>) -> Ticket {
        self.tickets += 1;
        self.waiting.insert(Ticket(self.tickets), reply);
        Ticket(self.tickets)
    }

    /// Keeps the shell's part of an event; the input is the core's.
    fn admit(&mut self, event: Event) -> Option<Input> {
        match event {
            Event::Command(command, reply) => Some(Input::Command(self.ticket(reply), command)),
            Event::LinkUp(link, Peer { node, incarnation, expired }, outgoing) => {
                self.links.insert(link, Some(outgoing));
                Some(Input::LinkUp { link, node, incarnation, expired })
            }
            Event::Frame(link, frame) => self.takes_from(link).then_some(Input::Frame(link, frame)),
            Event::LinkDown(link) => self.links.remove(&link).map(|_| Input::LinkDown(link)),
            Event::Clock(..) | Event::Stop => None,
        }
    }

    /// A link of an earlier core, or one that is closing, is nothing to this core.
    fn takes_from(&self, link: LinkId) -> bool {
        matches!(self.links.get(&link), Some(Some(_)))
    }

    fn step(&mut self, inputs: Vec<Input>) -> Result<(), C::Error> {
        let real = (self.real)();
        let now = Now { mono_ms: self.mono_ms(), wall: self.driven.unwrap_or(real), real };
        let mut outputs = Vec::new();
        self.core.step(now, inputs, &mut outputs)?;
        for output in outputs {
            match output {
                Output::Reply(ticket, reply) => {
                    if let Some(waiting) = self.waiting.remove(&ticket) {
                        // A client that is gone does not want it any more.
                        let _ = waiting.send(reply);
                    }
                }
                Output::Send(link, frame) => {
                    if let Some(Some(outgoing)) = self.links.get(&link)
                        && !outgoing.send(frame)
                    {
                        tracing::warn!(link = link.0, "the link's queue is full");
                        self.close(link, "the node does not keep up; it resumes from its cursors".to_owned());
                    }
                }
                Output::CloseLink(link, reason) => self.close(link, reason),
            }
        }
        Ok(())
    }

    fn close(&mut self, link: LinkId, reason: String) {
        if let Some(outgoing) = self.links.get_mut(&link).and_then(Option::take) {
            outgoing.close(reason);
        }
    }
}

/// An error with all its causes, for the one place that logs it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use feiqian_protocol::frame::Mark;
    use feiqian_protocol::time::Hlc;
    use std::sync::Mutex;

    const PEER: Peer = Peer { node: NodeId(1), incarnation: 1, expired: false };

    #[derive(Debug, thiserror::Error)]
    #[error("disk")]
    struct DiskError;

    /// Answers status with its wall clock, fails on demand, and floods a link that says anything.
    struct FakeCore(Arc<Mutex<Vec<String>>>);

    impl Core for FakeCore {
        type Error = DiskError;

        fn step(&mut self, now: Now, inputs: Vec<Input>, outputs: &mut Vec<Output>) -> Result<(), DiskError> {
            for input in inputs {
                match input {
                    Input::Command(ticket, Command::Status {}) => {
                        outputs.push(Output::Reply(ticket, Ok(now.wall.0.into())));
                    }
                    Input::Command(..) => return Err(DiskError),
                    Input::Frame(link, frame) => {
                        outputs.extend((0..=LINK_QUEUE_MAX).map(|_| Output::Send(link, frame.clone())));
                    }
                    other => self.0.lock().unwrap().push(format!("{other:?} at {}", now.wall.0)),
                }
            }
            Ok(())
        }

        fn next_timer(&self) -> Option<u64> {
            None
        }
    }

    fn mark() -> Frame {
        Frame::Mark(Mark { position: 1, clock: Hlc::default() })
    }

    fn start(clock: WallClock) -> (CoreHandle, Arc<Mutex<Vec<String>>>, std::thread::JoinHandle<()>) {
        let (handle, events) = queue();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let runtime = tokio::runtime::Handle::current();
        let inner = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            let open = || Ok::<_, DiskError>(FakeCore(Arc::clone(&inner)));
            drive(&runtime, events, clock, open, oneshot::channel().0).unwrap();
        });
        (handle, seen, thread)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_driven_clock_is_waited_for_never_falls_and_runs_the_timer() {
        let (handle, seen, thread) = start(WallClock::Driven);
        assert_eq!(handle.command(Command::Status {}).await.unwrap_err().code, "clock_not_set");
        handle.set_clock(Timestamp(50)).await.unwrap();
        assert_eq!(handle.command(Command::Status {}).await.unwrap(), 50);
        handle.set_clock(Timestamp(70)).await.unwrap();
        handle.set_clock(Timestamp(60)).await.unwrap();
        assert_eq!(handle.command(Command::Status {}).await.unwrap(), 70);
        handle.stop().await;
        thread.join().unwrap();
        assert_eq!(*seen.lock().unwrap(), ["Timer at 70", "Timer at 70"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_failed_step_cuts_links_off_and_answers_nothing_but_goes_on() {
        let (handle, seen, thread) = start(WallClock::Real);
        let (outgoing, mut queues) = Outgoing::new();
        handle.link_up(LinkId(1), PEER, outgoing).await.unwrap();
        let failing = Command::LookUpEnrolment { lookup: String::new() };
        assert_eq!(handle.command(failing).await.unwrap_err().code, "interrupted");
        queues.close.wait_for(Option::is_some).await.unwrap();
        // What is left of the old link does not reach the new core.
        handle.frame(LinkId(1), mark()).await.unwrap();
        handle.link_down(LinkId(1)).await.unwrap();
        assert!(handle.command(Command::Status {}).await.is_ok());
        handle.stop().await;
        thread.join().unwrap();
        assert_eq!(seen.lock().unwrap().len(), 1, "only the first LinkUp");
        assert_eq!(handle.command(Command::Status {}).await.unwrap_err().code, "stopping");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_link_that_does_not_keep_up_is_closed_and_goes_down_once() {
        let (handle, seen, thread) = start(WallClock::Real);
        let (outgoing, mut queues) = Outgoing::new();
        handle.link_up(LinkId(4), PEER, outgoing).await.unwrap();
        handle.frame(LinkId(4), mark()).await.unwrap();
        queues.close.wait_for(Option::is_some).await.unwrap();
        handle.link_down(LinkId(4)).await.unwrap();
        handle.link_down(LinkId(4)).await.unwrap();
        handle.stop().await;
        thread.join().unwrap();
        assert_eq!(seen.lock().unwrap().iter().filter(|line| line.starts_with("LinkDown")).count(), 1);
    }

    #[tokio::test]
    async fn a_status_speaks_of_the_entries_queued_before_it_and_asks_overtake_them() {
        let (handle, mut events) = queue();
        let seen = Arc::default();
        let (outgoing, _queues) = Outgoing::new();
        let mut run = Run {
            core: FakeCore(seen),
            real: real_now,
            opened: Instant::now(),
            driven: None,
            tickets: 0,
            waiting: BTreeMap::new(),
            links: BTreeMap::from([(LinkId(1), Some(outgoing))]),
            urgent: None,
            pace: Pace::default(),
            rest_until: Instant::now(),
            statuses: VecDeque::new(),
            frames_taken: 0,
        };
        let log = feiqian_protocol::ids::LogId::node(feiqian_protocol::ids::InstitutionId(1), NodeId(1));
        let entries = |records| {
            let records = vec![Vec::new().into(); records];
            Frame::Entries(feiqian_protocol::frame::Entries { log, first: 1, records, heads: Vec::new() })
        };
        for _ in 0..10 {
            handle.frame(LinkId(1), entries(ENTRIES_PER_STEP_MAX / 2)).await.unwrap();
        }
        handle.frame(LinkId(2), entries(1)).await.unwrap();
        let mut inputs = Vec::new();
        run.admit_bulk(&mut events, &mut inputs, usize::MAX, ENTRIES_PER_STEP_MAX);
        assert_eq!(inputs.len(), 2, "a step stays short");
        run.admit_bulk(&mut events, &mut inputs, usize::MAX, usize::MAX);
        assert_eq!(inputs.len(), 10, "and what no link of this core sent is left out");
        handle.frame(LinkId(1), mark()).await.unwrap();
        handle.frame(LinkId(1), entries(1)).await.unwrap();
        assert!(matches!(events.events.try_recv(), Ok(Event::Frame(..))));
        assert!(run.admit(Event::LinkDown(LinkId(1))).is_some());
        assert!(run.admit(Event::LinkDown(LinkId(1))).is_none());
    }
    #[tokio::test]
    async fn while_it_rests_from_a_backlog_it_takes_what_somebody_waits_for() {
        let (handle, mut events) = queue();
        let mut run = Run {
            core: FakeCore(Arc::default()),
            real: real_now,
            opened: Instant::now(),
            driven: None,
            tickets: 0,
            waiting: BTreeMap::new(),
            links: BTreeMap::new(),
            urgent: None,
            pace: Pace::default(),
            rest_until: Instant::now() + Duration::from_secs(3_600),
            statuses: VecDeque::new(),
            frames_taken: 0,
        };
        let log = feiqian_protocol::ids::LogId::node(feiqian_protocol::ids::InstitutionId(1), NodeId(1));
        let entries =
            feiqian_protocol::frame::Entries { log, first: 1, records: Vec::new(), heads: Vec::new() };
        handle.frame(LinkId(1), Frame::Entries(entries)).await.unwrap();
        handle.frame(LinkId(1), mark()).await.unwrap();
        assert!(matches!(run.wait(&mut events).await, Some(Event::Frame(..))));
        let later = tokio::time::timeout(Duration::from_millis(20), run.wait(&mut events)).await;
        assert!(later.is_err() && events.first_bulk.is_none(), "the backlog waits");
        run.rest_until = Instant::now();
        assert!(run.wait(&mut events).await.is_none() && events.first_bulk.is_some(), "until it has rested");
    }
}
