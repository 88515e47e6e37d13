//! What goes into [`crate::core::ReconcileCore`] and what comes out: plain data, so that production and simulation drive
//! the same core.

mod command;

use ed25519_dalek::SigningKey;
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::{InstitutionId, NodeId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::command::{
    CaseDecision, Command, CommandError, ImportedAccount, PastPurchase, Reply, SettingCommand,
};

/// The clocks, as they are when a step begins.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Milliseconds of real time since the core was opened; never falls. Deadlines and timers go by it.
    pub mono_ms: u64,
    /// The wall clock of business: clocks of entries, anchors, business days.
    pub wall: Timestamp,
    /// The real wall clock: enrolment codes go by it.
    pub real: Timestamp,
}

/// Who the centre is.
#[derive(Clone)]
pub struct Identity {
    /// The institution.
    pub institution: InstitutionId,
    /// Signs the centre's streams and countersigns the nodes'.
    pub log_key: SigningKey,
}

/// Whom an answer is for; the shell's choice.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub u64);

/// One connection of a node; the shell counts them up.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct LinkId(pub u64);

/// What happens to the centre.
#[derive(Clone, Debug)]
pub enum Input {
    /// A node is connected; node and enrolment are what its certificate says.
    LinkUp {
        /// The link.
        link: LinkId,
        /// The node.
        node: NodeId,
        /// Its enrolment.
        incarnation: u32,
        /// True where its certificate has expired: it may upload, and no more.
        expired: bool,
    },
    /// The link is gone.
    LinkDown(LinkId),
    /// A frame came.
    Frame(LinkId, Frame),
    /// An operator, a channel or the enrolment desk wants something. Answered by [`Output::Reply`].
    Command(Ticket, Command),
    /// The time that [`crate::core::ReconcileCore::next_timer`] named has come.
    Timer,
}

/// How far a card's loss is known.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CardLoss {
    /// When it was reported.
    pub reported: Timestamp,
    /// Buildings that hold rights, or may still.
    pub buildings: u64,
    /// Of them, those that have the report on their disks.
    pub known: u64,
    /// The others. After a start of the centre those are among them that it has not heard since.
    pub unaware: Vec<Building>,
    /// What can still be spent there with the card, in fen; absent where the policy sets no bound.
    pub at_most_fen: Option<Fen>,
}

/// A building that a loss may not have reached.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Building {
    /// Its name.
    pub node: String,
    /// When it was last heard.
    pub heard: Timestamp,
    /// What can be spent there, in fen.
    pub at_most_fen: Fen,
}

/// What the centre wants done. Released by the shell only after the step's transaction has committed.
#[derive(Clone, Debug)]
pub enum Output {
    /// The answer to a command.
    Reply(Ticket, Reply),
    /// A frame for a node; its lane is [`Frame::lane`].
    Send(LinkId, Frame),
    /// The link is to be closed, for this reason (for both logs).
    CloseLink(LinkId, String),
}

/// How the centre stands with one node; part of what `status` shows.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// True while in session.
    pub connected: bool,
    /// `open`, `closing`, `closed` or `refused`, and the reason.
    pub state: String,
    /// Its log as ingested.
    pub ingested: u64,
    /// The centre's stream for it: end and acknowledged.
    pub to_node: u64,
    /// See `to_node`.
    pub to_node_acked: u64,
    /// What is still to come of this session: entries that it has not acknowledged, recalls that it has not answered,
    /// accounts that something may yet be handed out of. 0 where not connected.
    pub backlog: u64,
    /// Right that the centre must assume is there, in fen.
    pub out_fen: i64,
    /// Stand-in likewise: the exposure.
    pub stand_in_out_fen: i64,
}

/// An enrolment whose certificates were revoked.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Revoked {
    /// The node's name.
    pub node: String,
    /// Which of its enrolments.
    pub enrolment: u32,
    /// Its number.
    pub number: NodeId,
    /// When.
    pub at: Timestamp,
}

/// How the centre stands; what `status` shows.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Status {
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// Whose certificates were revoked.
    pub revoked: Vec<Revoked>,
    /// Positions of the account streams, by shard.
    pub shards: Vec<u64>,
    /// Accounts.
    pub accounts: u64,
    /// Version of the campus configuration; 0 where none is published.
    pub campus_version: u32,
    /// Asks that wait.
    pub asks: usize,
    /// Open cases.
    pub open_cases: u64,
    /// Fen of them.
    pub open_cases_fen: i64,
    /// Fen in suspense.
    pub suspense_fen: i64,
    /// What is being taken back, where this is an old copy of the centre that has come back.
    #[serde(default)]
    pub recovery: Option<RecoveryStatus>,
    /// Where it once was: until when, by its own time, it has again what had been done here. What was done later, and told
    /// to no building, is lost.
    #[serde(default)]
    pub recovered_until: Option<Timestamp>,
    /// The wall clock of this status.
    pub wall: Timestamp,
}

/// An old copy of the centre takes back what the nodes hold; until it has, nothing is granted.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RecoveryStatus {
    /// True once everybody was heard, and what came is being worked off.
    pub replaying: bool,
    /// Nodes that have given back all that they hold.
    pub heard: Vec<String>,
    /// Nodes that are waited for. `retire --force` gives one up.
    pub not_heard: Vec<NotHeard>,
    /// Entries of the centre's own that were taken back since the start.
    pub entries: u64,
}

/// A node that is waited for.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NotHeard {
    /// Its name.
    pub node: String,
    /// What keeps it from being heard, where that is known.
    pub trouble: Option<String>,
}
