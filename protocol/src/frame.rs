//! What travels between a node and the centre: length-prefixed frames, CBOR like the records.
//!
//! On a stream a frame is its length (4 bytes, big-endian, at most [`FRAME_BYTES_MAX`]) and the frame. Messages move no
//! money: any of them may be lost with its link and is then simply said again.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::chain::{Countersignature, Cursor, SignedHead};
use crate::code::ShortCode;
use crate::entry::RecordError;
use crate::ids::{AccountId, CardNumber, Epoch, InstitutionId, LogId, NodeId, Unit};
use crate::limits::{ENTRIES_PER_FRAME_MAX, FRAME_BYTES_MAX, FRAME_LIST_MAX, HELLO_LIST_MAX};
use crate::money::Fen;
use crate::purse::question::{PurseAnswer, PurseAsk};
use crate::snapshot::{SignedSnapshot, SnapshotAck, SnapshotPiece};
use crate::tap::DeclineReason;
use crate::time::{BusinessDay, Hlc, Timestamp};

/// The version of this protocol. A peer with another major number is refused with a clear word.
pub const PROTOCOL_VERSION: u16 = 1;

/// ALPN of replication sessions.
pub const ALPN_REPLICATION: &[u8] = b"feiqian-replication/1";

/// ALPN of enrolment.
pub const ALPN_ENROL: &[u8] = b"feiqian-enrol/1";

/// ALPN of the renewal of a node's certificate, under that certificate.
pub const ALPN_RENEW: &[u8] = b"feiqian-renew/1";

/// What a file with a node's log begins with; frames follow as on a stream.
pub const LOG_FILE_MAGIC: &[u8; 14] = b"feiqian-log-1\n";

/// Streams of one connection, by urgency. A stream of one lane never waits for another lane.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Lane {
    /// Hello, asks, recalls, acks.
    Control,
    /// What overtakes bulk: losses, and entries that somebody waits for.
    Urgent,
    /// Entries, snapshots.
    Bulk,
}

impl Lane {
    /// The first byte of the lane's one-way stream.
    pub const fn tag(self) -> u8 {
        match self {
            Self::Control => 0,
            Self::Urgent => 1,
            Self::Bulk => 2,
        }
    }

    /// The lane of a tag.
    pub const fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            0 => Some(Self::Control),
            1 => Some(Self::Urgent),
            2 => Some(Self::Bulk),
            _ => None,
        }
    }
}

/// One log and where a side stands in it.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct LogCursor {
    /// The log.
    #[n(0)]
    pub log: LogId,
    /// Where.
    #[n(1)]
    pub cursor: Cursor,
}

/// Decodes a list of at most [`FRAME_LIST_MAX`] elements.
fn bounded<'b, C, T: Decode<'b, C>>(
    d: &mut minicbor::Decoder<'b>,
    context: &mut C,
) -> Result<Vec<T>, minicbor::decode::Error> {
    at_most(FRAME_LIST_MAX, d, context)
}

/// Decodes a list of at most [`HELLO_LIST_MAX`] elements.
fn few<'b, C, T: Decode<'b, C>>(
    d: &mut minicbor::Decoder<'b>,
    context: &mut C,
) -> Result<Vec<T>, minicbor::decode::Error> {
    at_most(HELLO_LIST_MAX, d, context)
}

fn at_most<'b, C, T: Decode<'b, C>>(
    most: usize,
    d: &mut minicbor::Decoder<'b>,
    context: &mut C,
) -> Result<Vec<T>, minicbor::decode::Error> {
    let mut list = Vec::new();
    for element in d.array_iter_with(context)? {
        if list.len() == most {
            return Err(minicbor::decode::Error::message("a list of too many elements"));
        }
        list.push(element?);
    }
    Ok(list)
}

/// A node's first word in a session.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct NodeHello {
    /// [`PROTOCOL_VERSION`] of the sender.
    #[n(0)]
    pub version: u16,
    /// The institution.
    #[n(1)]
    pub institution: InstitutionId,
    /// The node.
    #[n(2)]
    pub node: NodeId,
    /// The enrolment that the node lives by.
    #[n(3)]
    pub incarnation: u32,
    /// The node's own log.
    #[n(4)]
    pub log: Cursor,
    /// Its position in the centre's stream for it.
    #[n(5)]
    pub to_node: Cursor,
    /// Its positions in the account streams.
    #[cbor(n(6), decode_with = "few")]
    pub shards: Vec<LogCursor>,
    /// The newest countersignature that it holds of its log.
    #[n(7)]
    pub countersigned: Option<Countersignature>,
    /// Why it was shut out, where it was: a centre that has come back from an old copy may not know.
    #[n(8)]
    pub refused: Option<RefusalReason>,
    /// For each account stream, by shard: the position up to which its entries are no longer kept.
    #[cbor(n(9), decode_with = "few")]
    pub kept_after: Vec<u64>,
    /// The centre's own heads of the streams above, where the node holds anything of them: what shows that a centre which
    /// lacks it has come back from an old copy.
    #[cbor(n(10), decode_with = "few")]
    pub heads: Vec<SignedHead>,
    /// The branch that its log goes to, where the centre has named one: several boxes may bear one name.
    #[n(11)]
    pub branch: Option<LogId>,
}

/// Why the centre refuses a session. The names are in both logs.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
#[cbor(index_only)]
pub enum RefusalReason {
    /// Another protocol version.
    #[n(0)]
    Version,
    /// Another institution or node than the certificate says.
    #[n(1)]
    Identity,
    /// The node's copy of the centre's stream is behind what it acknowledged: a restored copy.
    #[n(2)]
    StaleGrants,
    /// The node's log ends before what the centre ingested: a restored copy.
    #[n(3)]
    ShortLog,
    /// The node's log differs from what the centre ingested: a clone or a fork.
    #[n(4)]
    ForkedLog,
    /// The node's copy of a centre stream is not what the centre wrote.
    #[n(5)]
    ForeignGrants,
    /// An older enrolment; only enrolling anew helps.
    #[n(6)]
    Incarnation,
    /// The node knows more of a centre stream than the centre: the *centre* is an old copy.
    #[n(7)]
    CentreBehind,
    /// The node's certificate was revoked: nothing of it is taken any more.
    #[n(8)]
    Revoked,
    /// The node's certificate has expired: it may upload and renew it.
    #[n(9)]
    Expired,
}

impl RefusalReason {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Identity => "identity",
            Self::StaleGrants => "stale_grants",
            Self::ShortLog => "short_log",
            Self::ForkedLog => "forked_log",
            Self::ForeignGrants => "foreign_grants",
            Self::Incarnation => "incarnation",
            Self::CentreBehind => "centre_behind",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

/// The centre's first word in a session.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct CentreHello {
    /// [`PROTOCOL_VERSION`] of the sender.
    #[n(0)]
    pub version: u16,
    /// The session's number; the anchor entry carries it too.
    #[n(1)]
    pub session: u64,
    /// The centre's time.
    #[n(2)]
    pub time: Timestamp,
    /// How far the centre has ingested the node's log.
    #[n(3)]
    pub log: Cursor,
    /// Set where the session is refused: the node may still upload, and gets its tail back, but holds no rights.
    #[n(4)]
    pub refused: Option<RefusalReason>,
    /// Where a refused node's own continuation is to be uploaded to: a branch log, and the position after which it
    /// differs.
    #[n(5)]
    pub branch: Option<Branch>,
    /// Set where the centre has come back from an old copy and takes back what the nodes hold: its own streams that it wants
    /// entries of, and after which cursor. The node uploads its log too; nothing is granted until all that is done.
    #[n(6)]
    pub returning: Option<Vec<LogCursor>>,
}

/// Where a refused continuation goes.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Branch {
    /// The branch log.
    #[n(0)]
    pub log: LogId,
    /// The last position that both have alike.
    #[n(1)]
    pub after: u64,
}

/// Entries of one log: whole commits, in order.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Entries {
    /// The log.
    #[n(0)]
    pub log: LogId,
    /// Position of the first record.
    #[n(1)]
    pub first: u64,
    /// The records.
    #[cbor(n(2), decode_with = "bounded")]
    pub records: Vec<ByteVec>,
    /// The signed heads; the last one covers the last record.
    #[cbor(n(3), decode_with = "bounded")]
    pub heads: Vec<SignedHead>,
}

/// Everything of a log up to here is durable at the receiver.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Ack {
    /// The log.
    #[n(0)]
    pub log: LogId,
    /// Up to here.
    #[n(1)]
    pub position: u64,
    /// From the centre, for a node's log.
    #[n(2)]
    pub countersignature: Option<Countersignature>,
}

/// A node is short and asks for more. The newest ask of a row replaces the one before.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Ask {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// What of it.
    #[n(1)]
    pub unit: Unit,
    /// The node's epoch.
    #[n(2)]
    pub epoch: Epoch,
    /// The total of `granted` that would suffice: a level, so that a repeat grants nothing twice.
    #[n(3)]
    pub want: Fen,
    /// The node's log position when it asked.
    #[n(4)]
    pub at: u64,
    /// Milliseconds until the node decides by itself.
    #[n(5)]
    pub ms_left: u64,
}

/// The centre cannot give what was asked.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct No {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// What of it.
    #[n(1)]
    pub unit: Unit,
    /// The level that was asked for; applies to pending taps that want at least this.
    #[n(2)]
    pub want: Fen,
    /// True where nothing is out elsewhere: the account does not have it, and the node must not stand in. False where
    /// it may be with somebody out of reach.
    #[n(3)]
    pub r#final: bool,
    /// What the centre could give at this moment: an ask for no more than this would succeed.
    #[n(4)]
    pub free: Fen,
    /// For how long it cannot be known what the account spent elsewhere, in milliseconds: how long nodes out of reach were
    /// not heard, each by its part of what the account usually spends elsewhere.
    #[n(5)]
    pub unheard_ms: u64,
}

/// The centre wants right (or allowance) back.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Recall {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// What of it.
    #[n(1)]
    pub unit: Unit,
    /// The epoch of the row.
    #[n(2)]
    pub epoch: Epoch,
    /// At most this much.
    #[n(3)]
    pub amount: Fen,
    /// Position in the centre's stream for the node that must have been applied before this is obeyed.
    #[n(4)]
    pub after: u64,
    /// For allowance: the first day that the release counts from (the centre's day).
    #[n(5)]
    pub from_day: BusinessDay,
}

/// A recall was obeyed, by a release or because nothing was there.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Recalled {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// What of it.
    #[n(1)]
    pub unit: Unit,
    /// The node's log position afterwards; the recall is answered once this is ingested.
    #[n(2)]
    pub at: u64,
}

/// A quiet node's word that its log ends here, and that its clock has passed this.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Mark {
    /// The end of its log.
    #[n(0)]
    pub position: u64,
    /// Its clock: later entries are later than this.
    #[n(1)]
    pub clock: Hlc,
}

/// A card was just reported lost. Overtakes bulk; the setting entry that says so follows in its stream.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct LossNotice {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The card.
    #[n(1)]
    pub card: CardNumber,
    /// The account stream that holds the entry, and its position: once applied, the notice has done its work.
    #[n(2)]
    pub log: LogId,
    /// See `log`.
    #[n(3)]
    pub position: u64,
}

/// A node asks whose a short code is.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct CodeAsk {
    /// Counted up by the node within its process.
    #[n(0)]
    pub request: u64,
    /// The code.
    #[n(1)]
    pub code: ShortCode,
    /// A hash that stands for the tap: the same tap is answered the same again, another one is not.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub tap: [u8; 16],
}

/// Whose it is.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct CodeAnswer {
    /// Of the question.
    #[n(0)]
    pub request: u64,
    /// Account and virtual card, or why the code is nobody's. It is used up by this tap.
    #[n(1)]
    pub named: Result<(AccountId, CardNumber), DeclineReason>,
}

/// One frame.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub enum Frame {
    /// Node to centre, first.
    #[n(0)]
    NodeHello(#[n(0)] Box<NodeHello>),
    /// Centre to node, first.
    #[n(1)]
    CentreHello(#[n(0)] CentreHello),
    /// Either way.
    #[n(2)]
    Entries(#[n(0)] Entries),
    /// Either way.
    #[n(3)]
    Ack(#[n(0)] Ack),
    /// Node to centre.
    #[n(4)]
    Ask(#[n(0)] Ask),
    /// Centre to node.
    #[n(5)]
    No(#[n(0)] No),
    /// Centre to node.
    #[n(6)]
    Recall(#[n(0)] Recall),
    /// Node to centre.
    #[n(7)]
    Recalled(#[n(0)] Recalled),
    /// Node to centre.
    #[n(8)]
    Mark(#[n(0)] Mark),
    /// Centre to node.
    #[n(9)]
    LossNotice(#[n(0)] LossNotice),
    /// Centre to node: what a stream says up to a position, in place of its entries, where the node lacks many of them; its
    /// pieces follow once the node has said which it has. To a node that has the entries it says what they must have given.
    #[n(10)]
    Snapshot(#[n(0)] Box<SignedSnapshot>),
    /// Centre to node.
    #[n(11)]
    SnapshotPiece(#[n(0)] SnapshotPiece),
    /// Node to centre.
    #[n(12)]
    SnapshotAck(#[n(0)] SnapshotAck),
    /// Centre to node: entries that somebody waits for, of a log of which nothing is under way in bulk.
    #[n(13)]
    Fresh(#[n(0)] Entries),
    /// Node to centre.
    #[n(20)]
    PurseAsk(#[n(0)] Box<PurseAsk>),
    /// Centre to node.
    #[n(21)]
    PurseAnswer(#[n(0)] Box<PurseAnswer>),
    /// Node to centre.
    #[n(22)]
    CodeAsk(#[n(0)] CodeAsk),
    /// Centre to node.
    #[n(23)]
    CodeAnswer(#[n(0)] CodeAnswer),
}

/// Why bytes are no frame. The link that carried them is closed.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes, more than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// Not the CBOR of a frame.
    #[error("the frame is malformed")]
    Malformed(#[from] minicbor::decode::Error),
    /// Something follows the frame.
    #[error("the frame has bytes after its end")]
    TrailingBytes,
    /// More entries than [`ENTRIES_PER_FRAME_MAX`], or none.
    #[error("the frame has {0} entries; from 1 to {ENTRIES_PER_FRAME_MAX} are allowed")]
    Entries(usize),
    /// A record in it is malformed.
    #[error("a record in the frame")]
    Record(#[from] RecordError),
}

impl Frame {
    /// The lane that the frame travels in.
    pub const fn lane(&self) -> Lane {
        match self {
            Self::Entries(_) | Self::Snapshot(_) | Self::SnapshotPiece(_) => Lane::Bulk,
            Self::LossNotice(_) | Self::Fresh(_) => Lane::Urgent,
            _ => Lane::Control,
        }
    }

    /// True where a person waits for what it says, at a till or at a counter: it goes before what is only to be known some time.
    pub const fn is_waited_for(&self) -> bool {
        matches!(self.lane(), Lane::Urgent)
            || matches!(
                self,
                Self::Ask(_)
                    | Self::No(_)
                    | Self::Recall(_)
                    | Self::Recalled(_)
                    | Self::PurseAsk(_)
                    | Self::PurseAnswer(_)
                    | Self::CodeAsk(_)
                    | Self::CodeAnswer(_)
            )
    }

    /// The frame's bytes, without the length prefix.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = minicbor::to_vec(self).expect("writing to a Vec cannot fail");
        assert!(bytes.len() <= FRAME_BYTES_MAX, "a frame that we build fits");
        bytes
    }

    /// The frame of these bytes.
    ///
    /// # Errors
    /// [`FrameError`] says what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(bytes.len()));
        }
        let mut decoder = minicbor::Decoder::new(bytes);
        let frame: Self = decoder.decode()?;
        if decoder.position() != bytes.len() {
            return Err(FrameError::TrailingBytes);
        }
        if let Self::Entries(entries) | Self::Fresh(entries) = &frame
            && !(1..=ENTRIES_PER_FRAME_MAX).contains(&entries.records.len())
        {
            return Err(FrameError::Entries(entries.records.len()));
        }
        Ok(frame)
    }
}
