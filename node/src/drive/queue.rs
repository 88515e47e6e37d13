//! The way to the core: what can be asked of it, what it answers, and what else reaches it.

use std::time::Duration;

use feiqian_protocol::code::SignedReceipt;
use feiqian_protocol::frame::{Frame, Lane};
use feiqian_protocol::ids::{CardNumber, TerminalId};
use feiqian_protocol::limits::ENTRIES_PER_FRAME_TARGET;
use feiqian_protocol::pin::PinGeneration;
use feiqian_protocol::tap::{BalanceView, Decision, DeclineReason, ReversalRequest, TapRequest};
use feiqian_protocol::time::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::io::{LinkId, Presented, SettingDone, SettingError, Status, TapError};
use crate::link::LinkHandle;
use crate::pin::change::PinToShow;
use crate::purse::{PurseDone, PurseError, PurseRequest};
use crate::settings::SettingRequest;

/// What can be asked of the core.
#[derive(Debug)]
pub enum Request {
    /// A tap.
    Tap(TapRequest),
    /// A reversal.
    Reversal(ReversalRequest),
    /// A balance enquiry.
    Balance(Presented),
    /// A change of settings.
    Setting(SettingRequest),
    /// What the PIN of a tap that is to come is to be hashed for.
    Pin(TapRequest),
    /// What is to be shown before the PIN of this card's account is changed.
    PinToShow(CardNumber),
    /// What a terminal wants of a purse.
    Purse(TerminalId, PurseRequest),
    /// How the node stands.
    Status,
}

/// What the core answers.
#[derive(Debug)]
pub enum Answer {
    /// A tap or reversal was decided.
    Decided {
        /// How.
        decision: Decision,
        /// True for a first answer given again.
        repeat: bool,
        /// Of what a voucher paid.
        receipt: Option<Box<SignedReceipt>>,
    },
    /// It was no tap at all.
    Refused(TapError),
    /// A balance, or why none is shown.
    Balance(Result<BalanceView, DeclineReason>),
    /// A change of settings acts here, or why not.
    Setting(Result<SettingDone, SettingError>),
    /// What a PIN is to be hashed for, where there is anything to compare it with.
    PinGeneration(Option<PinGeneration>),
    /// What a PIN that is to be changed is to be hashed for.
    PinToShow(Result<PinToShow, SettingError>),
    /// What became of a request about a purse.
    Purse(Result<PurseDone, PurseError>),
    /// How the node stands.
    Status(Box<Status>),
}

/// Why a request got no answer. It may or may not have been decided; asking again with the same key tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoAnswer {
    /// Too much waits already.
    #[error("too many requests are waiting")]
    Busy,
    /// The core is being opened again, or the node stops.
    #[error("the node is not available at the moment")]
    Unavailable,
    /// The time is over.
    #[error("there is no answer yet")]
    Late,
}

/// Entries that a frame counts as at least: it has a signature to prove, and a single entry may tell of the balances of dozens.
const FRAME_COUNTS_MIN: usize = 8;

pub(super) enum Message {
    Ask(Request, oneshot::Sender<Answer>),
    Clock(Timestamp, oneshot::Sender<Timestamp>),
    Frame(LinkId, Frame, OwnedSemaphorePermit),
    LinkDown(LinkId),
    LinkUp(LinkId, LinkHandle),
    Stop,
}

impl Message {
    /// True for what a person waits for at a terminal.
    pub(super) const fn is_waited_for(&self) -> bool {
        match self {
            Self::Ask(..) => true,
            Self::Frame(_, frame, _) => frame.is_waited_for(),
            Self::Clock(..) | Self::LinkDown(_) | Self::LinkUp(..) | Self::Stop => false,
        }
    }

    /// What comes in bulk counts as so many entries; 0 for everything else.
    pub(super) fn bulk(&self) -> usize {
        match self {
            Self::Frame(_, Frame::Entries(entries), _) => entries.records.len().max(FRAME_COUNTS_MIN),
            Self::Frame(_, frame, _) if matches!(frame.lane(), Lane::Bulk) => ENTRIES_PER_FRAME_TARGET,
            _ => 0,
        }
    }
}

/// The way to the core, for any number of tasks.
#[derive(Clone)]
pub struct CoreQueue(pub(super) mpsc::Sender<Message>);

impl CoreQueue {
    /// Asks, and waits for the answer for at most this long.
    ///
    /// # Errors
    /// [`NoAnswer`] says why there is none.
    pub async fn ask(&self, request: Request, wait: Duration) -> Result<Answer, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(Message::Ask(request, reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NoAnswer::Busy,
            mpsc::error::TrySendError::Closed(_) => NoAnswer::Unavailable,
        })?;
        match tokio::time::timeout(wait, answer).await {
            Ok(answer) => answer.map_err(|_| NoAnswer::Unavailable),
            Err(_) => Err(NoAnswer::Late),
        }
    }

    /// Sets the driven clock; returns the time in force once every later input goes by it. It never goes back.
    ///
    /// # Errors
    /// [`NoAnswer::Unavailable`] where the node stops.
    pub async fn clock(&self, now: Timestamp) -> Result<Timestamp, NoAnswer> {
        let (reply, in_force) = oneshot::channel();
        self.0.send(Message::Clock(now, reply)).await.map_err(|_| NoAnswer::Unavailable)?;
        in_force.await.map_err(|_| NoAnswer::Unavailable)
    }

    /// A connection stands. False where the core is gone.
    pub async fn link_up(&self, link: LinkId, handle: LinkHandle) -> bool {
        self.0.send(Message::LinkUp(link, handle)).await.is_ok()
    }

    /// A frame came; the permit is given back once the core takes it. False where the core is gone.
    pub async fn frame(&self, link: LinkId, frame: Frame, permit: OwnedSemaphorePermit) -> bool {
        self.0.send(Message::Frame(link, frame, permit)).await.is_ok()
    }

    /// The connection is gone.
    pub async fn link_down(&self, link: LinkId) {
        // Where the core is gone too there is nobody to tell.
        let _ = self.0.send(Message::LinkDown(link)).await;
    }

    /// Ends the core once everything queued before is stepped.
    pub async fn stop(&self) {
        // Where the core is gone it has stopped.
        let _ = self.0.send(Message::Stop).await;
    }
}
