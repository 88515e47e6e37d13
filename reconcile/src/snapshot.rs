//! Snapshots of account streams at the centre: taken where a node lacks so many entries that their outcome is less to send,
//! and where old entries are to be dropped.
//!
//! A snapshot is taken at the end of a step, when every stream ends under a signed head and the tables hold what the streams
//! say; at most one a step. It serves every node that needs one until too much has been written after it.
//!
//! **Dropping entries.** Once a business day each stream is looked at. Where its entries that are older than
//! [`STREAM_KEPT_MS`] are more than the accounts that a snapshot would have to name, one is taken, and those entries are
//! dropped as far as every open node has acknowledged them. A node that has not been in session for as long as the term does
//! not hold that up: it gets a snapshot when it is back. The head at the cut stays, so what follows still links to it. Nodes
//! that are up to date are told of the snapshot, compare themselves with it, and drop theirs. Only account streams shrink:
//! what nodes wrote is what merchants are paid by, and the streams to the nodes are what their rows are folded from.

use std::collections::BTreeMap;

use feiqian_protocol::balance::ProjectionDigest;
use feiqian_protocol::entry::{Body, Entry, PostedHead};
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::{LogId, NodeId};
use feiqian_protocol::limits::{
    ENTRIES_PER_FRAME_MAX, SHARDS, SNAPSHOT_PIECES_IN_FLIGHT_MAX, STREAM_KEPT_MS,
};
use feiqian_protocol::session::SessionError;
use feiqian_protocol::snapshot::{
    CampusState, PieceDigest, PieceWriter, SignedSnapshot, Snapshot, SnapshotAck, SnapshotPiece,
};
use feiqian_protocol::time::BusinessDay;

use crate::core::{Round, StoreError};
use crate::io::{LinkId, Output};
use crate::store::{accounts, logs, meta_number, meta_text, snapshots};

/// Entries that a node must lack for a snapshot to be worth its round trips: a frame of them.
const BEHIND_MIN: u64 = ENTRIES_PER_FRAME_MAX as u64;

/// How many entries weigh as much as an account in a snapshot, for a node that has the accounts already: a posted delta is a
/// tenth of an account's bytes. For one that has none they weigh alike, since its entries open accounts.
const ENTRIES_PER_ACCOUNT: u64 = 8;

/// Entries that one step drops of a stream.
const PRUNED_PER_STEP: u64 = 4_096;

/// Days after which a node that was not in session holds nothing up any more.
const ACK_DAYS: i32 = (STREAM_KEPT_MS / (24 * 3_600_000)) as i32;

/// A snapshot on its way to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    log: LogId,
    position: u64,
    pieces: u32,
    sent: u32,
    /// Pieces that are durable there; `None` until it has said how many it has.
    acked: Option<u32>,
}

impl Transfer {
    /// Pieces that are not acknowledged.
    pub const fn left(&self) -> u64 {
        match self.acked {
            Some(acked) => self.pieces.saturating_sub(acked) as u64,
            None => self.pieces as u64 + 1,
        }
    }
}

impl Round<'_> {
    /// True where the outcome of a stream's entries after a position is less to send than the entries.
    pub(crate) fn is_far_behind(&self, log: LogId, from: u64) -> Result<bool, StoreError> {
        if self.state.kept_after.get(&log).is_some_and(|kept_after| from < *kept_after) {
            return Ok(true);
        }
        let missing = self.state.log(log).cursor.position.saturating_sub(from);
        if missing <= BEHIND_MIN {
            return Ok(false);
        }
        let accounts = self.accounts_per_shard()?;
        Ok(missing > if from == 0 { accounts } else { accounts * ENTRIES_PER_ACCOUNT })
    }

    fn accounts_per_shard(&self) -> Result<u64, StoreError> {
        Ok(accounts::count(self.db)? / u64::from(SHARDS) + 1)
    }

    /// Offers and sends the snapshots that nodes in session need, and goes on with the day's upkeep.
    pub(crate) fn send_snapshots(&mut self) -> Result<(), StoreError> {
        let mut may_take = true;
        for id in self.sessions() {
            self.offer(id, &mut may_take)?;
            self.send_pieces(id)?;
        }
        if may_take && let Some(log) = self.state.upkeep.pop_first() {
            self.keep_up(log)?;
        }
        Ok(())
    }

    /// True where a next step has snapshots to go on with.
    pub(crate) fn snapshots_wait(&self) -> bool {
        let waits = |link: &crate::session::Link| {
            link.is_accepted() && link.transfer.is_none() && !link.snapshots.is_empty()
        };
        !self.state.upkeep.is_empty() || self.state.links.values().any(waits)
    }

    fn offer(&mut self, id: LinkId, may_take: &mut bool) -> Result<(), StoreError> {
        let Some(link) = self.state.links.get(&id) else { return Ok(()) };
        if link.transfer.is_some() {
            return Ok(());
        }
        let Some((log, from)) = link.snapshots.first_key_value().map(|(log, from)| (*log, *from)) else {
            return Ok(());
        };
        let stored = self.state.snapshots.get(&log).map(|signed| signed.snapshot.cursor().position);
        let serves = match stored {
            Some(position) => position > from && !self.is_far_behind(log, position)?,
            None => false,
        };
        if !serves {
            if !std::mem::take(may_take) {
                return Ok(());
            }
            self.take_snapshot(log)?;
        }
        let Some(signed) = self.state.snapshots.get(&log).cloned() else { return Ok(()) };
        let snapshot = &signed.snapshot;
        let (position, pieces) = (snapshot.cursor().position, snapshot.pieces);
        if let Some(link) = self.state.links.get_mut(&id) {
            link.transfer = Some(Transfer { log, position, pieces, sent: 0, acked: None });
        }
        self.outputs.push(Output::Send(id, Frame::Snapshot(Box::new(signed))));
        Ok(())
    }

    fn send_pieces(&mut self, id: LinkId) -> Result<(), StoreError> {
        let Some(link) = self.state.links.get_mut(&id) else { return Ok(()) };
        let Some(Transfer { log, position, pieces, acked: Some(acked), .. }) = link.transfer else {
            return Ok(());
        };
        let stored = self.state.snapshots.get(&log).map(|signed| signed.snapshot.cursor().position);
        if stored != Some(position) {
            // A newer one has taken its place, and is offered next.
            link.transfer = None;
            return Ok(());
        }
        let Some(transfer) = &mut link.transfer else { return Ok(()) };
        while transfer.sent < pieces.min(acked + SNAPSHOT_PIECES_IN_FLIGHT_MAX) {
            let index = transfer.sent;
            let accounts = snapshots::piece(self.db, log, index)?.into();
            transfer.sent += 1;
            let piece = SnapshotPiece { log, position, index, accounts };
            self.outputs.push(Output::Send(id, Frame::SnapshotPiece(piece)));
        }
        Ok(())
    }

    /// A node says how many pieces it has.
    pub(crate) fn snapshot_acked(&mut self, id: LinkId, node: NodeId, ack: SnapshotAck) {
        if ack.differs {
            tracing::error!(node = node.0, log = %ack.log, position = ack.position, "a node's accounts are not what they are here");
            return;
        }
        let end = self.state.log(ack.log).cursor.position;
        let Some(link) = self.state.links.get_mut(&id) else { return };
        // Of one that was replaced, or that a node up to date has only compared itself with.
        let Some(transfer) = link
            .transfer
            .as_mut()
            .filter(|under_way| (under_way.log, under_way.position) == (ack.log, ack.position))
        else {
            return;
        };
        let known = if transfer.acked.is_some() { transfer.sent } else { transfer.pieces };
        if ack.pieces > known {
            let (log, got) = (ack.log, u64::from(ack.pieces));
            let error = SessionError::AckBeyondSent { log, sent: u64::from(known), got };
            self.close_link(id, error.to_string());
            return;
        }
        if transfer.acked.is_none() {
            // What it has of an earlier session is not sent again.
            transfer.sent = ack.pieces;
        }
        transfer.acked = Some(ack.pieces);
        if ack.pieces == transfer.pieces {
            link.transfer = None;
            link.snapshots.remove(&ack.log);
            link.sender.open(ack.log, ack.position, end);
            tracing::info!(node = node.0, log = %ack.log, position = ack.position, "snapshot installed at the node");
        }
    }

    /// Takes a snapshot of a stream as this step leaves it.
    fn take_snapshot(&mut self, log: LogId) -> Result<(), StoreError> {
        let Some(shard) = log.as_shard() else { return Ok(()) };
        if !self.state.gathered.is_empty() {
            return Err(StoreError::Invariant(format!(
                "a snapshot of {log} while effects wait to be posted"
            )));
        }
        let cursor = self.state.log(log).cursor;
        let heads = logs::heads_after(self.db, log, cursor.position.saturating_sub(1), 1)?;
        let Some(end) = heads.first().filter(|signed| signed.head.cursor == cursor).copied() else {
            return Err(StoreError::Invariant(format!("{log} ends under no signed head")));
        };
        let (mut writer, mut pieces, mut count) = (PieceWriter::default(), Vec::new(), 0);
        let mut projection = ProjectionDigest::default();
        let last = accounts::count(self.db)?;
        snapshots::each_account(self.db, shard, last, |account| {
            account.digest_into(&mut projection);
            pieces.extend(writer.add(account));
            count += 1;
        })?;
        pieces.extend(writer.finish());
        let digest = pieces.iter().fold(PieceDigest::default(), |digest, piece| digest.with(piece));
        let posted = self.state.logs.iter().filter(|(log, at)| log.writer != NodeId::CENTRE && at.posted > 0);
        let posted = posted.map(|(log, _)| self.posted_head(*log)).collect::<Result<Vec<PostedHead>, _>>()?;
        let snapshot = Snapshot {
            end,
            time: self.state.time,
            accounts: count,
            pieces: pieces.len() as u32,
            digest: digest.0,
            projection: projection.finish(),
            posted,
            campus: if shard == 0 { self.campus_state()? } else { None },
        };
        let signed: SignedSnapshot = snapshot.sign(&self.state.identity.log_key);
        snapshots::put(self.db, &signed, &pieces)?;
        self.state.snapshots.insert(log, signed);
        tracing::info!(%log, position = cursor.position, accounts = count, "snapshot taken");
        Ok(())
    }

    fn campus_state(&self) -> Result<Option<CampusState>, StoreError> {
        let Some(config) = meta_text(self.db, "campus")? else { return Ok(None) };
        let unlimited = meta_number(self.db, "unlimited")?.is_some();
        Ok(Some(CampusState {
            version: self.state.campus_version,
            config: config.into_bytes().into(),
            unlimited,
        }))
    }

    /// Looks at one stream: whether so much of it is old that a snapshot should stand for it.
    fn keep_up(&mut self, log: LogId) -> Result<(), StoreError> {
        self.note_acks()?;
        let cursor = self.state.log(log).cursor;
        let kept_after = self.state.kept_after.get(&log).copied().unwrap_or_default();
        let before = self.state.time.plus_ms(-STREAM_KEPT_MS);
        // The last entry stays in any case: the stream's end is always there to be read.
        let Some(old) = snapshots::head_before(self.db, log, cursor.position.saturating_sub(1), before)?
        else {
            return Ok(());
        };
        let stored = self.state.snapshots.get(&log).map_or(0, |signed| signed.snapshot.cursor().position);
        if old > stored && old.saturating_sub(kept_after) > self.accounts_per_shard()?.max(BEHIND_MIN) {
            self.take_snapshot(log)?;
            self.announce(log);
        }
        self.prune(log, old)
    }

    /// Tells the nodes that are up to date of a snapshot at the stream's end.
    fn announce(&mut self, log: LogId) {
        let Some(signed) = self.state.snapshots.get(&log) else { return };
        let end = signed.snapshot.cursor().position;
        for (id, link) in &self.state.links {
            let up_to_date = link.sender.progress(log).is_some_and(|(sent, _)| sent == end);
            if link.is_accepted() && up_to_date {
                self.outputs.push(Output::Send(*id, Frame::Snapshot(Box::new(signed.clone()))));
            }
        }
    }

    /// Drops entries of a stream up to `old` at most, as far as a snapshot stands for them and open nodes have them.
    fn prune(&mut self, log: LogId, old: u64) -> Result<(), StoreError> {
        let stored = self.state.snapshots.get(&log).map_or(0, |signed| signed.snapshot.cursor().position);
        let kept_after = self.state.kept_after.get(&log).copied().unwrap_or_default();
        let since = BusinessDay(self.state.day.0 - ACK_DAYS);
        let acks = snapshots::acks(self.db, log, since)?;
        let holders =
            acks.iter().filter(|(node, _)| self.state.nodes.get(node).is_some_and(|node| node.holds()));
        let acked = holders.map(|(_, position)| *position).min().unwrap_or(u64::MAX);
        let most = old.min(stored).min(acked);
        let step = most.min(kept_after + PRUNED_PER_STEP);
        let time = feiqian_protocol::time::Timestamp(i64::MAX);
        let Some(head) = snapshots::head_before(self.db, log, step, time)?.filter(|head| *head > kept_after)
        else {
            return Ok(());
        };
        let records = logs::records_after(self.db, log, kept_after, (head - kept_after) as usize)?;
        let mut sums = BTreeMap::new();
        for record in records {
            if let Body::Posted(posted) = Entry::from_record(&record)?.body {
                for delta in posted.deltas {
                    *sums.entry((delta.account, delta.wallet)).or_default() += delta.amount;
                }
            }
        }
        for ((account, wallet), posted) in sums {
            snapshots::add_pruned(self.db, account, wallet, posted)?;
        }
        snapshots::prune(self.db, log, head)?;
        self.state.kept_after.insert(log, head);
        tracing::info!(%log, up_to = head, "old entries dropped");
        if head < most {
            self.state.upkeep.insert(log);
        }
        Ok(())
    }

    /// Notes how far the nodes in session have acknowledged the account streams.
    fn note_acks(&mut self) -> Result<(), StoreError> {
        for id in self.sessions() {
            self.note_acks_of(id)?;
        }
        Ok(())
    }

    /// The same of one link.
    pub(crate) fn note_acks_of(&self, id: LinkId) -> Result<(), StoreError> {
        let Some(link) = self.state.links.get(&id).filter(|link| link.is_accepted()) else { return Ok(()) };
        let institution = self.state.identity.institution;
        for log in (0..SHARDS).map(|shard| LogId::shard(institution, shard)) {
            if let Some((_, acked)) = link.sender.progress(log) {
                snapshots::put_ack(self.db, link.node, log, acked, self.state.day)?;
            }
        }
        Ok(())
    }
}
