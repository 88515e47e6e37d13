//! What goes into [`crate::core::NodeCore`] and what comes out: plain data, so that production and simulation drive the
//! same core.

use ed25519_dalek::SigningKey;
use feiqian_protocol::account::AccountError;
use feiqian_protocol::code::{CheckedCode, SignedReceipt};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::{AccountId, CampusId, CardNumber, InstitutionId, NodeId, NodeName, TerminalId};
use feiqian_protocol::pin::PinGeneration;
use feiqian_protocol::public_key::CentreKey;
use feiqian_protocol::tap::{BalanceView, Decision, DeclineReason, ReversalRequest, TapKey, TapRequest};
use feiqian_protocol::time::Timestamp;
use serde::Serialize;

use crate::pin::change::PinToShow;
use crate::purse::{PurseDone, PurseError, PurseRequest};
use crate::settings::SettingRequest;

/// The clocks, as they are when a step begins.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Milliseconds of real time since the core was opened; never falls. Deadlines and timers go by it.
    pub mono_ms: u64,
    /// The wall clock, which may be wrong and may jump. Clocks of entries and business days go by it.
    pub wall: Timestamp,
    /// Milliseconds since the core was opened, by a clock that does not jump. In production the same as `mono_ms`; where
    /// a driver owns the wall clock, its time. Bounds how far business days may open ahead of the last anchor.
    pub elapsed_ms: u64,
}

/// Who this node is; from its enrolment.
#[derive(Clone)]
pub struct Identity {
    /// The institution.
    pub institution: InstitutionId,
    /// The campus.
    pub campus: CampusId,
    /// The node's number.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// What it may write.
    pub role: Role,
    /// Counts its enrolments.
    pub incarnation: u32,
    /// Signs its log.
    pub log_key: SigningKey,
    /// What the centre's streams are signed with.
    pub centre_key: CentreKey,
}

/// What can be set for one core.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long an ask may take, in milliseconds of real time, before the offline policy decides.
    pub ask_deadline_ms: u64,
}

/// Whom an answer is for; the shell's choice.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub u64);

/// One connection to the centre; the shell counts them up.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct LinkId(pub u64);

/// What a holder presents.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Presented {
    /// The card; that of the code's voucher, where there is one.
    pub card: CardNumber,
    /// The code of a virtual card, whose signatures were checked.
    pub code: Option<Box<CheckedCode>>,
}

impl From<CardNumber> for Presented {
    fn from(card: CardNumber) -> Self {
        Self { card, code: None }
    }
}

impl From<CheckedCode> for Presented {
    fn from(code: CheckedCode) -> Self {
        Self { card: code.voucher().card(), code: Some(Box::new(code)) }
    }
}

/// What happens to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// A terminal's tap. Answered by [`Output::Decided`] or [`Output::Refused`], now or later.
    Tap(Ticket, TapRequest),
    /// A terminal's reversal. Answered like a tap.
    Reversal(Ticket, ReversalRequest),
    /// A balance enquiry. Answered by [`Output::Balance`].
    Balance(Ticket, Presented),
    /// A change of settings. Answered by [`Output::Setting`].
    Setting(Ticket, SettingRequest),
    /// A PIN was entered for a tap that is to come. Answered by [`Output::PinGeneration`].
    Pin(Ticket, TapRequest),
    /// Somebody wants to change the PIN of this card's account. Answered by [`Output::PinToShow`].
    PinToShow(Ticket, CardNumber),
    /// A terminal wants something of a purse. Answered by [`Output::Purse`], now or later.
    Purse(Ticket, TerminalId, PurseRequest),
    /// Asks for [`Output::Status`].
    Status(Ticket),
    /// A connection to the centre stands, authenticated both ways. Replaces an older one.
    LinkUp(LinkId),
    /// It is gone.
    LinkDown(LinkId),
    /// A frame came.
    Frame(LinkId, Frame),
    /// The time that [`crate::core::NodeCore::next_timer`] named has come.
    Timer,
}

/// What a node wants done. Released by the shell only after the step's transaction has committed.
#[derive(Clone, Debug)]
pub enum Output {
    /// The decision of a tap or reversal; `repeat` where it is the first answer given again.
    Decided {
        /// For whom.
        ticket: Ticket,
        /// What was decided.
        decision: Decision,
        /// True for a first answer given again.
        repeat: bool,
        /// Of what a voucher paid.
        receipt: Option<Box<SignedReceipt>>,
    },
    /// Not a tap at all.
    Refused(Ticket, TapError),
    /// The answer to an enquiry.
    Balance(Ticket, Result<BalanceView, DeclineReason>),
    /// A change of settings was written, or why not.
    Setting(Ticket, Result<SettingDone, SettingError>),
    /// What the PIN is to be hashed for; absent where there is nothing to compare it with, or the tap was decided before.
    PinGeneration(Ticket, Option<PinGeneration>),
    /// What a PIN that is to be changed is to be hashed for, when it is shown.
    PinToShow(Ticket, Result<PinToShow, SettingError>),
    /// What became of a request about a purse.
    Purse(Ticket, Result<PurseDone, PurseError>),
    /// The answer to a status enquiry.
    Status(Ticket, Box<Status>),
    /// A frame for the centre; its lane is [`Frame::lane`].
    Send(LinkId, Frame),
    /// The link is to be closed, for this reason (for both logs).
    CloseLink(LinkId, String),
}

/// Why a request is no tap. Nothing was written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TapError {
    /// The key was used for something else.
    #[error("{terminal}/{epoch}/{sequence} was used before for another request", terminal = .0.terminal, epoch = .0.epoch, sequence = .0.sequence)]
    OtherContent(TapKey),
    /// The terminal is not in this building's configuration.
    #[error("terminal {0} is not configured at this node")]
    UnknownTerminal(String),
    /// The terminal has no merchant, so it cannot take payments.
    #[error("terminal {0} takes no payments")]
    NoMerchant(String),
    /// The amount is out of range.
    #[error("the amount must be from 0.01 to 100000.00 yuan")]
    Amount,
    /// The quantity is out of range.
    #[error("the quantity must be from 1 to 1000000")]
    Quantity,
    /// A reversal of more than is left of its tap.
    #[error("more than is left of the tap cannot be reversed")]
    ReversalTooLarge,
    /// A reversal of a tap that was declined or only opened a door.
    #[error("there is nothing to reverse: the tap took no money")]
    NothingToReverse,
    /// The original of a reversal is of another terminal.
    #[error("a reversal must come from the terminal of its tap")]
    OtherTerminal,
    /// Too many taps wait for an answer.
    #[error("too many taps are waiting")]
    Busy,
}

/// A change of settings that acts in this building.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SettingDone {
    /// The account.
    pub account: AccountId,
    /// The position of the entry; nothing where it is so for ever.
    pub position: Option<u64>,
}

/// Why a change of settings was not written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SettingError {
    /// No account has this card.
    #[error("no account has this card")]
    UnknownCard,
    /// The terminal is not in this building's configuration.
    #[error("terminal {0} is not configured at this node")]
    UnknownTerminal(String),
    /// It does not fit the account, or is not for a building of this role.
    #[error("{message}")]
    Refused {
        /// A stable code: [`AccountError::code`].
        code: &'static str,
        /// For a person.
        message: String,
    },
    /// What was shown for a card is for another one.
    #[error("what was shown is not for this card")]
    OtherCard,
    /// What was shown for a card is not from the centre.
    #[error("what was shown for this card is not from the centre")]
    NotIssued,
    /// Too many of the account wait for the centre.
    #[error("too many changes of this account wait for the centre")]
    TooMany,
    /// The node writes nothing at the moment.
    #[error("the node writes nothing at the moment")]
    OutOfService,
}

impl SettingError {
    /// A stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownCard => "unknown_card",
            Self::UnknownTerminal(_) => "unknown_terminal",
            Self::Refused { code, .. } => code,
            Self::OtherCard => "other_card",
            Self::NotIssued => "not_issued",
            Self::TooMany => "too_many",
            Self::OutOfService => "unavailable",
        }
    }
}

impl From<AccountError> for SettingError {
    fn from(error: AccountError) -> Self {
        Self::Refused { code: error.code(), message: error.to_string() }
    }
}

/// The state of the link to the centre.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// No connection.
    Down,
    /// Connected, no Hello back yet.
    Opening,
    /// In session.
    Up,
    /// Refused by the centre.
    Refused,
    /// The centre has come back from an old copy and is taking back what it lacks.
    Returning,
}

/// How a node stands; what `status` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub node: String,
    /// The link to the centre.
    pub link: LinkState,
    /// Why the centre refused it, where it did.
    pub refused: Option<String>,
    /// What is wrong with its database, where it was found damaged: it is then only uploaded.
    pub damage: Option<String>,
    /// The number of the session.
    pub session: u64,
    /// The node's rights epoch.
    pub epoch: u32,
    /// The end of its log.
    pub position: u64,
    /// How much of it the centre has acknowledged as durable.
    pub acked: u64,
    /// How much of the centre's stream for it is applied.
    pub applied: u64,
    /// Positions applied of the account streams, by shard.
    pub shards: Vec<u64>,
    /// Taps that wait for an answer.
    pub pending: usize,
    /// Settings written here that the centre has not answered.
    pub settings_waiting: u64,
    /// Settings written here lately that the centre has refused.
    pub settings_refused: u64,
    /// Declines of unknown cards that were not written, because they were too many, since the start.
    pub unknown_cards_not_kept: u64,
    /// Accounts known.
    pub accounts: u64,
    /// Version of the campus configuration.
    pub campus_version: u32,
    /// Unspent right over all rows, in fen.
    pub unspent_fen: i64,
    /// Stand-in that may still be used over all rows, in fen (what a pool allows may be less).
    pub stand_in_left_fen: i64,
    /// Debits that the centre does not hold yet, in fen: lost if this disk is destroyed now.
    pub exposed_fen: i64,
    /// When the centre was last heard, by this node's wall clock; absent where never.
    pub heard: Option<Timestamp>,
    /// The wall clock of this status.
    pub wall: Timestamp,
}
