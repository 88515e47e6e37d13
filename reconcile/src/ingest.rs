//! What nodes send becomes entries that count: verified against what is ingested already, given an order key once and
//! for good, and acted on exactly once by (log, position).
//!
//! **Order key**: `clamp(the entry's clock, the anchor of its head, receipt)`, never falling within a log. The anchor
//! covers every grant that the entry was made under, and no key is later than its receipt.
//!
//! **What does not fit**: an unknown critical kind stops the posting of its log (its entries are kept and acknowledged)
//! until a build that knows it goes on. A record that its node's role may not write, or that makes no sense, is kept and
//! noted as a fault; if it is a debit, its merchant was told *approved*, and is paid out of suspense. A debit beyond the
//! row that the centre counts is posted in full, and the excess is unbacked.

mod effects;

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::chain::{
    ChainError, Cursor, Piece, SignedHead, VerifiedCommit, VerifiedEntry, salvage, verify_prefix,
};
use feiqian_protocol::entry::{Body, Entry, Lost};
use feiqian_protocol::frame::{Entries, Mark};
use feiqian_protocol::ids::{LogId, NodeId};
use feiqian_protocol::time::Timestamp;

use self::effects::NO_DEBIT;
pub(crate) use self::effects::in_range;
use crate::core::{Round, StoreError};
use crate::store::logs;

/// What became of a frame of entries.
pub(crate) enum Ingest {
    /// All of it is durable with this step; true where something was new.
    Taken(bool),
    /// The writer has two histories.
    Forked,
    /// It cannot be taken, for this reason.
    Refused(String),
}

impl Round<'_> {
    /// Takes entries of a node's log, or of a branch of it. What is proven counts, whatever comes after it in the frame; of
    /// a branch, whose disk may have been altered, also what comes after records that are not what was signed.
    pub(crate) fn ingest(&mut self, node: NodeId, frame: Entries) -> Result<Ingest, StoreError> {
        let own = self.state.own_log(node);
        let log = frame.log;
        let (end, after) = if log == own {
            (self.state.log(own).cursor, 0)
        } else {
            match self.state.branches.get(&log) {
                Some(branch) if branch.node == node => (branch.cursor, branch.after),
                _ => return Ok(Ingest::Refused(format!("{log} is no log of this node"))),
            }
        };
        if frame.first == 0 || frame.first <= after || frame.first > end.position + 1 {
            return Ok(Ingest::Refused(format!("entries of {log} from {} do not continue it", frame.first)));
        }
        // What we have already is verified from our own hash before it, so that a second history shows.
        let before = frame.first - 1;
        let from = if before == end.position {
            end
        } else {
            match self.known_hash(log, own, before)? {
                Some(hash) => Cursor { position: before, hash },
                None => return Ok(Ingest::Refused(format!("{log} has no entry {before} here"))),
            }
        };
        let Some(key) = self.state.nodes.get(&node).map(|node| node.log_key) else {
            return Ok(Ingest::Refused("unknown node".to_owned()));
        };
        let records = frame.records.into_iter().map(Vec::from).collect();
        if log != own {
            return match salvage(own, &from, frame.first, records, &frame.heads, &key) {
                Ok(pieces) => self.take_pieces(log, node, pieces),
                Err(error) => Ok(Ingest::Refused(error.to_string())),
            };
        }
        let proven = verify_prefix(own, &from, frame.first, records, &frame.heads, &key);
        let taken = self.take_pieces(log, node, proven.commits.into_iter().map(Piece::Commit))?;
        match (taken, proven.fault) {
            (taken, Some(ChainError::Fork { .. })) if planted(Canary::ForkAccepted) => Ok(taken),
            (Ingest::Taken(_), Some(ChainError::Fork { .. })) => Ok(Ingest::Forked),
            (Ingest::Taken(_), Some(error)) => Ok(Ingest::Refused(error.to_string())),
            (taken, _) => Ok(taken),
        }
    }

    /// Takes what is news of verified parts of a log or a branch.
    fn take_pieces(
        &mut self,
        log: LogId,
        node: NodeId,
        pieces: impl IntoIterator<Item = Piece>,
    ) -> Result<Ingest, StoreError> {
        let own = self.state.own_log(node);
        let end = if log == own {
            self.state.log(own).cursor
        } else {
            self.state.branches.get(&log).map_or(Cursor::START, |branch| branch.cursor)
        };
        let mut new = false;
        for piece in pieces {
            let commit = match piece {
                Piece::Commit(commit) => commit,
                Piece::Lost { first, head } if first > end.position => {
                    self.lose(log, first, &head)?;
                    new = true;
                    continue;
                }
                // A repeat of what was lost, or another history that lost something.
                Piece::Lost { head, .. } => match self.known_hash(log, own, head.head.cursor.position)? {
                    Some(hash) if hash == head.head.cursor.hash => continue,
                    _ => return Ok(Ingest::Forked),
                },
            };
            let Some(first) = commit.entries.iter().position(|entry| entry.position > end.position) else {
                // A repeat. It must be what we have: the last entry of it speaks for all before.
                if let Some(last) = commit.entries.last()
                    && self.known_hash(log, own, last.position)? != Some(last.hash)
                {
                    return Ok(Ingest::Forked);
                }
                self.regain(log, node, &commit)?;
                for known in commit.entries.iter().filter(|_| planted(Canary::ReleaseCountedTwice)) {
                    if matches!(known.entry.body, Body::Release(_)) {
                        self.act_on(log, known.position, self.state.time, &known.entry)?;
                    }
                }
                continue;
            };
            if first > 0 && commit.entries[first - 1].hash != end.hash {
                return Ok(Ingest::Forked);
            }
            self.take_commit(log, node, commit, first)?;
            new = true;
        }
        Ok(Ingest::Taken(new))
    }

    /// The node signed something else than what it sent for these entries of a branch: the rest of it goes on from what was
    /// signed.
    fn lose(&mut self, log: LogId, first: u64, signed: &SignedHead) -> Result<(), StoreError> {
        let cursor = signed.head.cursor;
        // What the branch has in common with the log is in the log, whatever became of it on the node's disk.
        if logs::hash_at(self.db, LogId::node(log.institution, log.writer), cursor.position)?
            != Some(cursor.hash)
        {
            let last = cursor.position;
            self.fault(
                log,
                last,
                &format!("lost: entries {first} to {last} are not what their head was signed over"),
            )?;
            logs::insert_head(self.db, log, signed)?;
            logs::put_lost(self.db, &Lost { log, first, last })?;
            self.state.lost.insert((log, first), last);
            let mut state = self.state.log(log);
            state.cursor = cursor;
            if state.quarantined.is_none() && !self.is_recovering() {
                state.posted = last;
            }
            self.state.logs.insert(log, state);
            self.touched_logs.insert(log);
            self.note_taken(log, !self.is_recovering());
            self.find_named(log, last)?;
        }
        self.advance_branch(log, cursor)
    }

    /// What was lost of a branch comes whole after all: it was altered on its way, and is not any more.
    fn regain(&mut self, log: LogId, node: NodeId, commit: &VerifiedCommit) -> Result<(), StoreError> {
        let Some((first, last)) = commit.entries.first().zip(commit.entries.last()) else { return Ok(()) };
        let lost = Lost { log, first: first.position, last: last.position };
        if self.state.lost.get(&(log, lost.first)) != Some(&lost.last) || planted(Canary::AlteredIsLost) {
            return Ok(());
        }
        let state = self.state.log(log);
        let acts = !self.is_recovering();
        // An old copy of the centre that had lost it replays none of it, and takes it once it has come back. A log that waits for another
        // build waits as it is.
        let unknown =
            |entry: &VerifiedEntry| matches!(entry.entry.body, Body::Unknown { critical: true, .. });
        if state.quarantined.is_some()
            || !acts && state.posted >= lost.first
            || commit.entries.iter().any(unknown)
        {
            return Ok(());
        }
        let (own, anchor) = (self.state.own_log(node), commit.head.head.anchor);
        // Within a log keys do not fall.
        let (mut least, most) = logs::order_keys_around(self.db, log, lost.first, lost.last)?;
        for verified in &commit.entries {
            // It has come into the log meanwhile.
            if logs::hash_at(self.db, own, verified.position)? == Some(verified.hash) {
                continue;
            }
            let entry = &verified.entry;
            let order_key = entry.clock.time().max(anchor).min(self.state.time).max(least).min(most);
            least = order_key;
            let cursor = Cursor { position: verified.position, hash: verified.hash };
            let acted = self.acted_in_a_branch(log, node, verified)?;
            logs::insert_entry(self.db, log, &cursor, entry.body.kind(), order_key, &verified.record)?;
            self.note_taken(log, acts);
            if acts {
                self.act_once(log, cursor.position, order_key, entry, acted)?;
            }
        }
        if acts {
            self.reverse_regained(&lost)?;
            // What that brings back into an epoch which has ended since stays with it no longer.
            for (position, order_key, record) in logs::epoch_ends(self.db, log, lost.last)? {
                self.act_on(log, position, order_key, &Entry::from_record(&record)?)?;
            }
        }
        let mut state = self.state.log(log);
        state.order_key = state.order_key.max(least);
        self.state.logs.insert(log, state);
        self.touched_logs.insert(log);
        logs::delete_lost(self.db, &lost)?;
        self.state.lost.remove(&(log, lost.first));
        if acts {
            // What is posted of the log was beyond it: a core that opens would not gather it again.
            self.state.gathered.due_now();
        }
        tracing::info!(%log, first = lost.first, last = lost.last, "what had come altered has come whole");
        Ok(())
    }

    /// Reversals that came before their debits did.
    fn reverse_regained(&mut self, regained: &Lost) -> Result<(), StoreError> {
        let Lost { log, first, last } = *regained;
        for (position, order_key, record) in logs::with_fault(self.db, log, last, NO_DEBIT)? {
            let entry = Entry::from_record(&record)?;
            let Body::Reversal(reversal) = &entry.body else { continue };
            if (first..=last).contains(&reversal.debit) {
                logs::delete_fault(self.db, log, position, NO_DEBIT)?;
                self.act_on(log, position, order_key, &entry)?;
            }
        }
        Ok(())
    }

    /// Our hash of a position of a log; of a branch, what it has in common with the log is there, and what was lost of it
    /// has a head.
    pub(crate) fn known_hash(
        &self,
        log: LogId,
        own: LogId,
        position: u64,
    ) -> Result<Option<feiqian_protocol::chain::Hash>, StoreError> {
        if position > 0 {
            if let Some(hash) = logs::hash_at(self.db, log, position)? {
                return Ok(Some(hash));
            }
            if log != own
                && let Some(head) = logs::head_at(self.db, log, position)?
            {
                return Ok(Some(head.head.cursor.hash));
            }
        }
        logs::hash_at(self.db, own, position)
    }

    fn take_commit(
        &mut self,
        log: LogId,
        node: NodeId,
        commit: VerifiedCommit,
        first: usize,
    ) -> Result<(), StoreError> {
        let head = commit.head.head;
        let own = self.state.own_log(node);
        let is_branch = log != own;
        let applied = head.applied.min(self.state.log(self.state.to_node(node)).cursor.position);
        let mut state = self.state.log(log);
        state.applied = state.applied.max(applied);
        state.anchor = state.anchor.max(head.anchor);
        if !is_branch
            && !self.is_recovering()
            && let Some(pending) = self.state.pending.get_mut(&node)
        {
            pending.applied(applied);
        }
        self.state.logs.insert(log, state);
        let mut kept = false;
        for verified in commit.entries.into_iter().skip(first) {
            // What a branch has in common with the log is in the log.
            if is_branch && !kept && logs::hash_at(self.db, own, verified.position)? == Some(verified.hash) {
                self.advance_branch(log, Cursor { position: verified.position, hash: verified.hash })?;
                continue;
            }
            kept = true;
            let acted = self.acted_in_a_branch(log, node, &verified)?;
            self.take_entry(log, head.anchor, &verified, acted)?;
            if is_branch {
                self.advance_branch(log, Cursor { position: verified.position, hash: verified.hash })?;
            }
        }
        if kept {
            logs::insert_head(self.db, log, &commit.head)?;
        }
        let now = self.state.time;
        let state = self.state.log(log);
        self.judge_clock(node, state.clock.time(), false);
        if !is_branch && let Some(node_state) = self.state.nodes.get_mut(&node) {
            let heard = state.clock.time().max(state.anchor).min(now);
            if heard > node_state.heard {
                node_state.heard = heard;
                self.touched_nodes.insert(node);
            }
        }
        Ok(())
    }

    /// True where an entry has come by another name already: a copy that is refused again goes on in a new branch from what it
    /// had uploaded before, and what was refused may still come as what it is. It is posted once.
    fn acted_in_a_branch(&self, log: LogId, node: NodeId, entry: &VerifiedEntry) -> Result<bool, StoreError> {
        let others =
            self.state.branches.iter().filter(|(other, branch)| branch.node == node && **other != log);
        for (other, _) in others {
            if logs::hash_at(self.db, *other, entry.position)? == Some(entry.hash) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn advance_branch(&mut self, log: LogId, cursor: Cursor) -> Result<(), StoreError> {
        if let Some(branch) = self.state.branches.get_mut(&log) {
            branch.cursor = cursor;
            logs::put_branch(self.db, log, branch)?;
        }
        Ok(())
    }

    fn take_entry(
        &mut self,
        log: LogId,
        anchor: Timestamp,
        verified: &VerifiedEntry,
        acted: bool,
    ) -> Result<(), StoreError> {
        let mut state = self.state.log(log);
        let entry = &verified.entry;
        let order_key = entry.clock.time().max(anchor).min(self.state.time).max(state.order_key);
        let cursor = Cursor { position: verified.position, hash: verified.hash };
        logs::insert_entry(self.db, log, &cursor, entry.body.kind(), order_key, &verified.record)?;
        state.cursor = cursor;
        state.clock = entry.clock.max(state.clock);
        state.order_key = order_key;
        // An old copy of the centre takes back first, and acts when all is there.
        let acts = !self.is_recovering();
        if acts && state.quarantined.is_none() && matches!(entry.body, Body::Unknown { critical: true, .. }) {
            tracing::warn!(%log, position = cursor.position, "an unknown critical entry: the log is quarantined");
            state.quarantined = Some(cursor.position);
        }
        let acts = acts && state.quarantined.is_none();
        if acts {
            state.posted = cursor.position;
        }
        self.state.logs.insert(log, state);
        self.touched_logs.insert(log);
        self.note_taken(log, acts);
        if acts { self.act_once(log, cursor.position, order_key, entry, acted) } else { Ok(()) }
    }

    /// An entry acts, unless it has by another name. What batches had said of it before it was here is found by it.
    pub(crate) fn act_once(
        &mut self,
        log: LogId,
        position: u64,
        order_key: Timestamp,
        entry: &Entry,
        acted: bool,
    ) -> Result<(), StoreError> {
        if !acted {
            self.act_on(log, position, order_key, entry)?;
        }
        self.find_named(log, position)
    }

    /// Goes on with a quarantined log, as far as this build knows its entries.
    pub(crate) fn resume_posting(&mut self, log: LogId) -> Result<(), StoreError> {
        let mut state = self.state.log(log);
        while state.posted < state.cursor.position {
            let position = state.posted + 1;
            let Some((order_key, record)) = logs::entry(self.db, log, position)? else { break };
            let entry = Entry::from_record(&record)?;
            if matches!(entry.body, Body::Unknown { critical: true, .. }) {
                state.quarantined = Some(position);
                self.state.logs.insert(log, state);
                return Ok(());
            }
            state.posted = position;
            state.quarantined = None;
            self.state.logs.insert(log, state);
            self.touched_logs.insert(log);
            self.note_taken(log, true);
            self.act_once(log, position, order_key, &entry, false)?;
            state = self.state.log(log);
        }
        Ok(())
    }

    /// A quiet node's log ends at what is ingested, and its clock has passed a time.
    pub(crate) fn mark(&mut self, node: NodeId, mark: Mark) {
        let now = self.state.time;
        self.judge_clock(node, mark.clock.time(), true);
        let own = self.state.log(self.state.own_log(node));
        if mark.position != own.cursor.position {
            return;
        }
        if let Some(state) = self.state.nodes.get_mut(&node) {
            let heard = mark.clock.time().max(own.anchor).min(now);
            if heard > state.heard {
                state.heard = heard;
                self.touched_nodes.insert(node);
            }
        }
    }
}
