//! What a refusal means for a node: its rights end where they must, its log goes up, and the tail that a restored copy lacks comes back.
//! And the other way round: what a centre lacks that has come back from an old copy.

use feiqian_protocol::chain::{Cursor, LogWriter, verify};
use feiqian_protocol::frame::{CentreHello, Entries, LogCursor, RefusalReason};
use feiqian_protocol::session::Sender;

use super::{Link, ends_rights};
use crate::apply::Fault;
use crate::core::NodeCore;
use crate::io::{LinkId, Now, Output};
use crate::store::StoreError;

impl NodeCore {
    pub(super) fn on_refusal(
        &mut self,
        now: &Now,
        link: LinkId,
        hello: &CentreHello,
        reason: RefusalReason,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        tracing::warn!(reason = reason.name(), "the centre refuses this node");
        self.link = Link::Refused(link, hello.session, reason);
        self.sender = Sender::default();
        let end = self.state.writer.cursor().position;
        if ends_rights(reason) && self.state.saved.refused.is_none() {
            self.state.saved.refused = Some(reason);
            self.state.saved.refused_epoch = self.state.saved.epoch;
            self.drop_rows()?;
            if reason == RefusalReason::ShortLog && hello.log.position > end {
                self.state.saved.tail_until = Some(hello.log.position);
            } else if self.damage.is_none() {
                self.end_epoch(now)?;
            }
        }
        if let Some(branch) = hello.branch {
            if branch.log.writer != self.identity.node || branch.log == self.own_log() {
                return Err(Fault::peer(format!("{} is no branch of this log", branch.log)));
            }
            self.state.saved.branch = Some(branch.log);
            self.state.dirty = true;
            let end = self.state.writer.cursor().position;
            self.sender.open(branch.log, branch.after.min(end), end);
        } else if self.hash_at(hello.log.position)? == Some(hello.log.hash) {
            self.sender.open(self.own_log(), hello.log.position, self.state.writer.cursor().position);
            self.note_acked(hello.log.position)?;
        } else if hello.log.position <= end {
            // A continuation of which the centre does not know yet that it is another one: it finds out by what comes
            // after the last that both have, and names the branch.
            self.sender.open(self.own_log(), self.state.saved.acked, self.state.writer.cursor().position);
        }
        self.decide_waiting(now, self.queues.accounts(), outputs)?;
        Ok(())
    }

    /// Sends the centre its own streams after where its old copy ends.
    pub(super) fn give_back(&mut self, wanted: &[LogCursor]) -> Result<(), Fault> {
        tracing::warn!(
            streams = wanted.len(),
            "the centre has come back from an old copy, and takes back what it lacks"
        );
        for LogCursor { log, cursor } in wanted {
            let end =
                self.centre_cursor(*log).ok_or_else(|| Fault::peer(format!("{log} is not for this node")))?;
            // Whether it links to what the centre has is the centre's to say, from what comes.
            if cursor.position < self.store.kept_after(*log, end)? || cursor.position > end.position {
                return Err(Fault::peer(format!("{log} is not kept here from {} on", cursor.position)));
            }
            self.sender.open(*log, cursor.position, end.position);
        }
        Ok(())
    }

    /// The hash of the own log at a position where a head was signed.
    pub(crate) fn hash_at(&self, position: u64) -> Result<Option<[u8; 32]>, StoreError> {
        if position == 0 {
            return Ok(Some(Cursor::START.hash));
        }
        Ok(self.store.head_at(self.own_log(), position)?.map(|signed| signed.head.cursor.hash))
    }

    /// The centre has told what we lost of our own log: it was this node that signed it.
    pub(super) fn on_own_tail(&mut self, entries: Entries) -> Result<(), Fault> {
        if self.state.saved.tail_until.is_none() {
            return Err(Fault::peer("entries of this node's own log"));
        }
        let own = self.own_log();
        let from = self.state.writer.cursor();
        let records: Vec<Vec<u8>> = entries.records.into_iter().map(Into::into).collect();
        let key = self.identity.log_key.verifying_key();
        let commits =
            verify(own, &from, entries.first, records, &entries.heads, &key).map_err(Fault::peer)?;
        let mut clock = self.state.writer.clock();
        let mut cursor = from;
        for commit in commits {
            for verified in commit.entries {
                self.store.put_entry(own, verified.position, &verified.record)?;
                self.replay(verified.position, &verified.entry)?;
                clock = clock.max(verified.entry.clock);
            }
            self.store.put_head(&commit.head)?;
            let head = commit.head.head;
            cursor = head.cursor;
            self.state.saved.anchor = self.state.saved.anchor.max(head.anchor);
        }
        self.state.writer = LogWriter::new(own, cursor, clock);
        self.state.dirty = true;
        Ok(())
    }

    /// Ends the epoch once the lost tail is back, and with it what had been applied of the centre's stream when it was
    /// written: the end of the epoch is a commit like any other, whose applied position does not fall.
    pub(super) fn finish_tail(&mut self, now: &Now) -> Result<(), StoreError> {
        let own = self.own_log();
        let end = self.state.writer.cursor();
        if self.state.saved.tail_until.is_none_or(|until| end.position < until) {
            return Ok(());
        }
        let applied = self.store.last_head(own)?.map_or(0, |signed| signed.head.applied);
        if self.state.to_node.position < applied {
            return Ok(());
        }
        self.state.saved.tail_until = None;
        self.state.saved.refused_epoch = self.state.saved.epoch;
        self.end_epoch(now)?;
        self.note_acked(end.position)?;
        self.sender.open(own, end.position, self.state.writer.cursor().position);
        tracing::info!(position = end.position, "the lost end of the log is back");
        Ok(())
    }
}
