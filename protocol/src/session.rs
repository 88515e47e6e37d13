//! A replication session, as far as both ends do the same: what of which log is still to be sent, and how a Hello is
//! judged. Frames come from [`crate::frame`], bytes and links are the shells'.
//!
//! One Hello each way with a cursor per log, then each side sends what the other lacks, in whole commits, without
//! waiting for an answer to each; acknowledgements are cumulative and mean *durable at the receiver*. After a break both
//! sides start again from the other's cursors, and the receiver skips what it has.

use std::collections::{BTreeMap, VecDeque};

use crate::canary::{Canary, planted};
use crate::chain::{Cursor, SignedHead};
use crate::frame::{Entries, NodeHello, PROTOCOL_VERSION, RefusalReason};
use crate::ids::{InstitutionId, LogId, NodeId};
use crate::limits::{ENTRIES_PER_FRAME_TARGET, FRAME_RECORDS_BYTES_TARGET, FRAMES_IN_FLIGHT_MAX};

/// Why a peer's word does not fit the session. The link is closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SessionError {
    /// An acknowledgement of something that was not sent.
    #[error("log {log}: acknowledged up to {got}, but only {sent} were sent")]
    AckBeyondSent {
        /// The log.
        log: LogId,
        /// What was sent.
        sent: u64,
        /// What the peer acknowledged.
        got: u64,
    },
    /// A log that this side does not send to this peer.
    #[error("log {0} is no log of this session")]
    UnknownLog(LogId),
    /// A frame that cannot come at this point, or from this side.
    #[error("a frame out of place")]
    OutOfPlace,
}

#[derive(Clone, Debug)]
struct Outgoing {
    acked: u64,
    sent: u64,
    end: u64,
    /// Where the frames under way end, oldest first, and whether each is fresh.
    frames: VecDeque<(u64, bool)>,
}

impl Outgoing {
    fn is_due(&self) -> bool {
        self.sent < self.end
    }

    /// True where nothing of it is under way in the other lane, which could arrive later though it was sent before.
    fn may_go(&self, fresh: bool) -> bool {
        self.frames.iter().all(|frame| frame.1 == fresh)
    }
}

/// What one side sends in one session.
///
/// Entries travel in the bulk lane, or, where somebody waits for them, as fresh ones in the urgent lane; a log's entries
/// must arrive in order, so fresh ones are for logs of which nothing is under way in bulk.
#[derive(Clone, Debug, Default)]
pub struct Sender {
    logs: BTreeMap<LogId, Outgoing>,
}

impl Sender {
    /// Starts a log where the peer has `peer_has` entries and we have `end`.
    pub fn open(&mut self, log: LogId, peer_has: u64, end: u64) {
        self.logs.insert(log, Outgoing { acked: peer_has, sent: peer_has, end, frames: VecDeque::new() });
    }

    /// Our log has grown. Ignored for a log that was not opened.
    pub fn extend(&mut self, log: LogId, end: u64) {
        if let Some(outgoing) = self.logs.get_mut(&log) {
            outgoing.end = outgoing.end.max(end);
        }
    }

    /// The next log with something to send, and the position after which to read: at most [`FRAMES_IN_FLIGHT_MAX`] frames
    /// are under way per log.
    pub fn next_due(&self) -> Option<(LogId, u64)> {
        self.due_in_bulk(FRAMES_IN_FLIGHT_MAX, None)
    }

    /// As [`Sender::next_due`], with at most `frames` under way. Logs after `last` come first, so that they take turns; each has
    /// its own bound, so that one that stands still at the peer holds up no other.
    pub fn due_in_bulk(&self, frames: usize, last: Option<LogId>) -> Option<(LogId, u64)> {
        let due = |(log, outgoing): (&LogId, &Outgoing)| {
            let may_go = outgoing.is_due() && outgoing.may_go(false) && outgoing.frames.len() < frames;
            may_go.then_some((*log, outgoing.sent))
        };
        let after = last.and_then(|last| {
            self.logs.range((std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded)).find_map(due)
        });
        after.or_else(|| self.logs.iter().find_map(due))
    }

    /// The position after which to read a log that has few entries to send, of which one at `position` is waited for: the
    /// frame may then be a fresh one.
    pub fn due_fresh(&self, log: LogId, position: u64) -> Option<u64> {
        let outgoing = self.logs.get(&log)?;
        let few = outgoing.end - outgoing.sent <= ENTRIES_PER_FRAME_TARGET as u64;
        let is_due = outgoing.sent < position && position <= outgoing.end;
        let may_go = outgoing.may_go(true) && outgoing.frames.len() < FRAMES_IN_FLIGHT_MAX;
        (is_due && few && may_go).then_some(outgoing.sent)
    }

    /// Everything of `log` up to `position` was handed to the link, in a frame of its own.
    pub fn sent(&mut self, log: LogId, position: u64, fresh: bool) {
        if let Some(outgoing) = self.logs.get_mut(&log)
            && position > outgoing.sent
        {
            outgoing.sent = position;
            outgoing.frames.push_back((position, fresh));
        }
    }

    /// How far a log was handed to the link, and how much of that the peer has acknowledged; `None` for one that is not open.
    pub fn progress(&self, log: LogId) -> Option<(u64, u64)> {
        self.logs.get(&log).map(|outgoing| (outgoing.sent, outgoing.acked))
    }

    /// The peer acknowledges `log` up to `position`; true where that is news.
    ///
    /// # Errors
    /// [`SessionError`] where it was never sent.
    pub fn acked(&mut self, log: LogId, position: u64) -> Result<bool, SessionError> {
        let outgoing = self.logs.get_mut(&log).ok_or(SessionError::UnknownLog(log))?;
        if position > outgoing.sent {
            return Err(SessionError::AckBeyondSent { log, sent: outgoing.sent, got: position });
        }
        let news = position > outgoing.acked;
        outgoing.acked = outgoing.acked.max(position);
        while outgoing.frames.pop_front_if(|(end, _)| *end <= position).is_some() {}
        Ok(news)
    }

    /// The logs that are sent, where one of them has something to send.
    pub fn due_logs(&self) -> Vec<LogId> {
        let is_due = self.logs.values().any(Outgoing::is_due);
        if is_due { self.logs.keys().copied().collect() } else { Vec::new() }
    }

    /// True where the peer has acknowledged everything.
    pub fn drained(&self) -> bool {
        self.logs.values().all(|outgoing| outgoing.acked >= outgoing.end)
    }

    /// Entries that the peer has not acknowledged.
    pub fn backlog(&self) -> u64 {
        self.logs.values().map(|outgoing| outgoing.end.saturating_sub(outgoing.acked)).sum()
    }
}

/// Builds a frame of whole commits out of records and heads read from a store. Both start after `after`, in order;
/// what does not fit is left for the next frame. `None` where no whole commit is there. Of heads that differ in nothing but
/// their place only the last is sent: to the receiver their commits are one.
pub fn pack(
    log: LogId,
    after: u64,
    records: impl IntoIterator<Item = Vec<u8>>,
    heads: impl IntoIterator<Item = SignedHead>,
) -> Option<Entries> {
    pack_commits(log, after, records, heads, true)
}

/// As [`pack`], with every head: for a log whose records may not all be what was signed, so that each commit is proven, or
/// lost, by itself.
pub fn pack_with_every_head(
    log: LogId,
    after: u64,
    records: impl IntoIterator<Item = Vec<u8>>,
    heads: impl IntoIterator<Item = SignedHead>,
) -> Option<Entries> {
    pack_commits(log, after, records, heads, false)
}

fn pack_commits(
    log: LogId,
    after: u64,
    records: impl IntoIterator<Item = Vec<u8>>,
    heads: impl IntoIterator<Item = SignedHead>,
    merge_heads: bool,
) -> Option<Entries> {
    let mut records = records.into_iter();
    let mut packed = Entries { log, first: after + 1, records: Vec::new(), heads: Vec::new() };
    let mut bytes = 0;
    let mut position = after;
    for head in heads {
        let mut commit = Vec::new();
        while position + (commit.len() as u64) < head.head.cursor.position {
            match records.next() {
                Some(record) => commit.push(record),
                None => return (!packed.heads.is_empty()).then_some(packed),
            }
        }
        let commit_bytes: usize = commit.iter().map(Vec::len).sum();
        let full = packed.records.len() + commit.len() > ENTRIES_PER_FRAME_TARGET
            || bytes + commit_bytes > FRAME_RECORDS_BYTES_TARGET;
        if full && !packed.heads.is_empty() {
            break;
        }
        position += commit.len() as u64;
        bytes += commit_bytes;
        packed.records.extend(commit.into_iter().map(Into::into));
        // A later head that says the same proves the commits before it as well: a backlog of single taps would otherwise be
        // more signatures than entries.
        packed.heads.pop_if(|before| {
            merge_heads && (before.head.applied, before.head.anchor) == (head.head.applied, head.head.anchor)
        });
        packed.heads.push(head);
    }
    (!packed.heads.is_empty()).then_some(packed)
}

/// What the centre knows of a node when it says Hello.
#[derive(Clone, Copy, Debug)]
pub struct KnownNode {
    /// The institution.
    pub institution: InstitutionId,
    /// The node, as its certificate says.
    pub node: NodeId,
    /// Its newest enrolment.
    pub incarnation: u32,
    /// Its log as far as ingested.
    pub ingested: Cursor,
    /// The end of the centre's stream for it.
    pub to_node: Cursor,
    /// How far it acknowledged that stream.
    pub to_node_acked: u64,
    /// The centre's hash of that stream at the position that the Hello names, where there is such a position.
    pub to_node_hash_at_hello: Option<crate::chain::Hash>,
    /// The centre's hash of the node's log at the position that the Hello names, where it is ingested.
    pub log_hash_at_hello: Option<crate::chain::Hash>,
}

/// Judges a node's Hello. A node whose log goes beyond what is ingested passes here, and its next entries must link to
/// the ingested hash before anything is granted; where they do not, it is [`RefusalReason::ForkedLog`].
///
/// # Errors
/// The reason for a refusal.
pub fn judge_hello(hello: &NodeHello, known: &KnownNode) -> Result<(), RefusalReason> {
    if hello.version != PROTOCOL_VERSION {
        return Err(RefusalReason::Version);
    }
    if hello.institution != known.institution || hello.node != known.node {
        return Err(RefusalReason::Identity);
    }
    if hello.incarnation != known.incarnation {
        return Err(RefusalReason::Incarnation);
    }
    if hello.to_node.position > known.to_node.position {
        return Err(RefusalReason::CentreBehind);
    }
    if known.to_node_hash_at_hello != Some(hello.to_node.hash) {
        return Err(RefusalReason::ForeignGrants);
    }
    let log_differs = match hello.log.position.cmp(&known.ingested.position) {
        std::cmp::Ordering::Less => known.log_hash_at_hello != Some(hello.log.hash),
        std::cmp::Ordering::Equal => known.ingested.hash != hello.log.hash,
        std::cmp::Ordering::Greater => false,
    };
    if log_differs && !planted(Canary::ForkAccepted) {
        return Err(RefusalReason::ForkedLog);
    }
    if hello.log.position < known.ingested.position {
        return Err(RefusalReason::ShortLog);
    }
    if hello.to_node.position < known.to_node_acked && !planted(Canary::StaleGrantsAccepted) {
        return Err(RefusalReason::StaleGrants);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{HASH_ZERO, Head};
    use crate::time::Timestamp;

    const LOG: LogId = LogId::node(InstitutionId(1), NodeId(1));

    fn cursor(position: u64, mark: u8) -> Cursor {
        Cursor { position, hash: if position == 0 { HASH_ZERO } else { [mark; 32] } }
    }

    fn hello(log: Cursor, to_node: Cursor) -> NodeHello {
        NodeHello {
            version: PROTOCOL_VERSION,
            institution: InstitutionId(1),
            node: NodeId(1),
            incarnation: 1,
            log,
            to_node,
            shards: Vec::new(),
            countersigned: None,
            refused: None,
            kept_after: Vec::new(),
            heads: Vec::new(),
            branch: None,
        }
    }

    fn known() -> KnownNode {
        KnownNode {
            institution: InstitutionId(1),
            node: NodeId(1),
            incarnation: 1,
            ingested: cursor(5, 1),
            to_node: cursor(9, 2),
            to_node_acked: 7,
            to_node_hash_at_hello: Some([2; 32]),
            log_hash_at_hello: Some([1; 32]),
        }
    }

    #[test]
    fn copies_and_forks_are_refused_at_hello() {
        let known = known();
        assert_eq!(judge_hello(&hello(cursor(5, 1), cursor(9, 2)), &known), Ok(()));
        assert_eq!(judge_hello(&hello(cursor(8, 3), cursor(7, 2)), &known), Ok(()));
        let cases = [
            (cursor(5, 1), cursor(6, 2), RefusalReason::StaleGrants),
            (cursor(4, 1), cursor(9, 2), RefusalReason::ShortLog),
            (cursor(4, 9), cursor(9, 2), RefusalReason::ForkedLog),
            (cursor(5, 9), cursor(9, 2), RefusalReason::ForkedLog),
            (cursor(5, 1), cursor(10, 2), RefusalReason::CentreBehind),
            (cursor(5, 1), cursor(9, 9), RefusalReason::ForeignGrants),
        ];
        for (log, to_node, reason) in cases {
            assert_eq!(judge_hello(&hello(log, to_node), &known), Err(reason), "{reason:?}");
        }
        let mut other = hello(cursor(5, 1), cursor(9, 2));
        other.incarnation = 2;
        assert_eq!(judge_hello(&other, &known), Err(RefusalReason::Incarnation));
    }

    #[test]
    fn a_sender_resumes_from_the_peers_cursor_and_bounds_what_is_under_way() {
        let mut sender = Sender::default();
        sender.open(LOG, 3, 3);
        assert_eq!(sender.next_due(), None);
        sender.extend(LOG, 1_000);
        for frame in 0..FRAMES_IN_FLIGHT_MAX as u64 {
            assert_eq!(sender.next_due(), Some((LOG, 3 + frame)));
            sender.sent(LOG, 4 + frame, false);
        }
        assert_eq!(sender.next_due(), None);
        assert_eq!(sender.acked(LOG, 4), Ok(true));
        assert_eq!(sender.acked(LOG, 4), Ok(false));
        assert_eq!(sender.next_due(), Some((LOG, 3 + FRAMES_IN_FLIGHT_MAX as u64)));
        assert!(matches!(sender.acked(LOG, u64::MAX), Err(SessionError::AckBeyondSent { .. })));
        assert!(!sender.drained());
    }

    #[test]
    fn logs_take_turns_and_what_is_waited_for_overtakes_other_logs_but_never_its_own() {
        let other = LogId::node(InstitutionId(1), NodeId(2));
        let mut sender = Sender::default();
        sender.open(LOG, 0, 5);
        sender.open(other, 0, 5);
        assert_eq!(sender.due_in_bulk(2, Some(LOG)), Some((other, 0)));
        assert_eq!(sender.due_in_bulk(2, Some(other)), Some((LOG, 0)));
        sender.sent(LOG, 2, false);
        sender.sent(LOG, 4, false);
        assert_eq!(sender.due_in_bulk(2, None), Some((other, 0)), "one log holds up no other");
        assert_eq!(sender.due_fresh(other, 3), Some(0));
        assert_eq!(sender.due_fresh(other, 6), None, "it is not there yet");
        assert_eq!(sender.due_fresh(LOG, 5), None, "it would arrive before what is in bulk");
        sender.sent(other, 3, true);
        assert_eq!(sender.due_in_bulk(9, None), Some((LOG, 4)), "what is fresh may still be under way");
        assert_eq!(sender.due_fresh(other, 3), None, "it was sent");
        assert_eq!(sender.due_fresh(other, 5), Some(3));
        sender.acked(LOG, 4).unwrap();
        assert_eq!(sender.due_fresh(LOG, 5), Some(4));
        sender.extend(LOG, 1_000);
        assert_eq!(sender.due_fresh(LOG, 5), None, "that is bulk");
        assert_eq!(sender.due_in_bulk(1, None), Some((LOG, 4)));
    }

    #[test]
    fn a_frame_holds_whole_commits_only() {
        let head_of = |position, applied| SignedHead {
            head: Head { log: LOG, cursor: cursor(position, 1), applied, anchor: Timestamp(0) },
            signature: [0; 64],
        };
        let head = |position| head_of(position, position);
        let records = |n: usize| (0..n).map(|_| vec![0_u8; 10]);
        let alike = [head_of(6, 1), head_of(7, 1), head_of(9, 2)];
        let frame = pack(LOG, 4, records(5), alike).unwrap();
        assert_eq!((frame.records.len(), frame.heads), (5, alike[1..].to_vec()));
        let frame = pack_with_every_head(LOG, 4, records(5), alike).unwrap();
        assert_eq!((frame.records.len(), frame.heads), (5, alike.to_vec()));
        let frame = pack(LOG, 4, records(5), [head(6), head(9)]).unwrap();
        assert_eq!((frame.first, frame.records.len(), frame.heads.len()), (5, 5, 2));
        let frame = pack(LOG, 4, records(4), [head(6), head(9)]).unwrap();
        assert_eq!((frame.records.len(), frame.heads.len()), (2, 1));
        assert!(pack(LOG, 4, records(1), [head(6)]).is_none());
        let large = (0..4).map(|_| vec![0_u8; FRAME_RECORDS_BYTES_TARGET / 2]);
        let frame = pack(LOG, 0, large, [head(1), head(2), head(3), head(4)]).unwrap();
        assert_eq!(frame.records.len(), 2);
    }
}
