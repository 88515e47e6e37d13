//! Snapshots of account streams at a node.
//!
//! A snapshot beyond what is applied is taken piece by piece, each durable before it is acknowledged, and installed whole in
//! the step of its last piece; one that is half here is resumed by the next session if the centre still has the same, and
//! else dropped. One at exactly the applied position has nothing new: it says what the entries must have given, so the node
//! compares itself with it, keeps its own accounts as what the stream starts from, and drops entries that are old enough.

use feiqian_protocol::balance::ProjectionDigest;
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::chain::Cursor;
use feiqian_protocol::entry::CampusPublished;
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::{AccountId, LogId};
use feiqian_protocol::limits::STREAM_KEPT_MS;
use feiqian_protocol::snapshot::{
    PieceDigest, PieceWriter, SignedSnapshot, SnapshotAck, SnapshotError, SnapshotPiece, read_piece,
};

use crate::apply::{Fault, Touched};
use crate::core::NodeCore;
use crate::io::{LinkId, Now, Output};
use crate::store::StoreError;
use crate::store::snapshots::Staged;

/// Entries that one snapshot lets go of: a bound on the step, since the next one goes on.
const PRUNED_PER_SNAPSHOT_MAX: u64 = 8_192;

impl NodeCore {
    /// A snapshot is offered.
    pub(crate) fn on_snapshot(
        &mut self,
        now: &Now,
        link: LinkId,
        signed: SignedSnapshot,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let shard =
            signed.check(self.identity.institution, &self.identity.centre_key).map_err(Fault::peer)?;
        let (log, offered) = (signed.snapshot.log(), signed.snapshot.cursor());
        if self.damage.is_some() {
            return Ok(());
        }
        // What stands still for an entry that this build cannot apply must not be overtaken by what the entry does.
        if self.blocked.contains(&log) {
            return Ok(());
        }
        let applied = self.shard_cursor(shard);
        if offered.position < applied.position {
            return Err(Fault::peer(format!(
                "a snapshot of {log} at {}, older than what is applied here, {}",
                offered.position, applied.position
            )));
        }
        if offered.position == applied.position {
            if offered != applied {
                return Err(Fault::peer(format!(
                    "a snapshot of {log} at {} of another stream",
                    offered.position
                )));
            }
            return self.compare(shard, signed, link, outputs);
        }
        let staged = match self.store.staged(log)? {
            Some(staged) if staged.signed == signed => staged,
            _ => {
                self.store.stage(&signed)?;
                Staged { signed, pieces: 0, digest: PieceDigest::default(), last: AccountId(0) }
            }
        };
        self.go_on(now, link, shard, &staged, outputs)
    }

    /// The next piece of one.
    pub(crate) fn on_piece(
        &mut self,
        now: &Now,
        link: LinkId,
        piece: &SnapshotPiece,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let out_of_place = || Fault::peer(format!("a piece of a snapshot of {} out of place", piece.log));
        let shard = piece.log.as_shard().ok_or_else(out_of_place)?;
        let mut staged = self.store.staged(piece.log)?.ok_or_else(out_of_place)?;
        let snapshot = &staged.signed.snapshot;
        if snapshot.cursor().position != piece.position
            || piece.index != staged.pieces
            || staged.pieces >= snapshot.pieces
        {
            return Err(out_of_place());
        }
        // Read now, so that what is malformed is never kept.
        let accounts = read_piece(&piece.accounts, shard, staged.last).map_err(Fault::peer)?;
        for account in &accounts {
            account.read_settings().map_err(Fault::peer)?;
            account.balances.iter().try_for_each(|(_, posted)| crate::apply::check_fen(*posted))?;
        }
        staged.last = accounts.last().map_or(staged.last, |account| account.account);
        staged.digest = staged.digest.with(&piece.accounts);
        staged.pieces += 1;
        self.store.put_piece(&staged, &piece.accounts)?;
        self.go_on(now, link, shard, &staged, outputs)
    }

    /// Installs what is complete, and says how many pieces are here.
    fn go_on(
        &mut self,
        now: &Now,
        link: LinkId,
        shard: u8,
        staged: &Staged,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let snapshot = &staged.signed.snapshot;
        let (log, position, pieces) = (snapshot.log(), snapshot.cursor().position, staged.pieces);
        if pieces == snapshot.pieces {
            self.install(now, shard, staged, outputs)?;
        }
        let ack = SnapshotAck { log, position, pieces, differs: false };
        outputs.push(Output::Send(link, Frame::SnapshotAck(ack)));
        Ok(())
    }

    fn install(
        &mut self,
        now: &Now,
        shard: u8,
        staged: &Staged,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let snapshot = &staged.signed.snapshot;
        let (log, cursor) = (snapshot.log(), snapshot.cursor());
        if staged.digest.0 != snapshot.digest {
            return Err(Fault::peer(SnapshotError::Digest(log)));
        }
        let mut count = 0;
        let mut last = AccountId(0);
        for index in 0..staged.pieces {
            let piece = self.store.piece(log, cursor.position, index)?;
            let accounts = read_piece(&piece, shard, last)
                .map_err(|error| StoreError::damaged(format!("a snapshot that was taken: {error}")))?;
            for state in accounts {
                let settings = state
                    .read_settings()
                    .map_err(|error| StoreError::damaged(format!("a snapshot that was taken: {error}")))?;
                self.store.put_account(state.account, &state.document, &state.hex_heads(), &settings)?;
                for (wallet, posted) in
                    state.balances.iter().filter(|_| !planted(Canary::SnapshotWithoutBalances))
                {
                    self.store.set_posted(state.account, *wallet, *posted)?;
                }
                last = state.account;
                count += 1;
            }
        }
        if count != snapshot.accounts {
            return Err(Fault::peer(SnapshotError::Sense { log, what: "it has another number of accounts" }));
        }
        self.settle(shard, &snapshot.posted)?;
        // Nothing links what was applied before to what follows.
        let before = self.shard_cursor(shard);
        self.store.prune(log, before.position + 1)?;
        self.store.put_head(&snapshot.end)?;
        self.store.install(log, cursor.position)?;
        if let Some(end) = self.state.shards.get_mut(usize::from(shard)) {
            *end = cursor;
        }
        let mut touched = Touched::default();
        if let Some(campus) = &snapshot.campus {
            let published = CampusPublished { version: campus.version, config: campus.config.clone() };
            self.publish(&published, &mut touched)?;
        }
        self.settle_settings()?;
        if self.store.forget_losses(log, cursor.position)? {
            self.losses = self.store.losses()?;
        }
        self.state.totals.accounts = self.store.count_accounts()?;
        self.state.saved.centre_time = self.state.saved.centre_time.max(snapshot.time);
        self.state.dirty = true;
        tracing::info!(%log, from = before.position, to = cursor.position, accounts = count, "snapshot installed");
        let accounts = self.queues.accounts();
        Ok(self.decide_waiting(now, accounts, outputs)?)
    }

    /// The stream is applied up to this very place: compares what it gave here with what it gave at the centre.
    fn compare(
        &mut self,
        shard: u8,
        signed: SignedSnapshot,
        link: LinkId,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let snapshot = &signed.snapshot;
        let (log, position) = (snapshot.log(), snapshot.cursor().position);
        let mut digest = ProjectionDigest::default();
        self.store.each_account(shard, |state| {
            state.digest_into(&mut digest);
            Ok(())
        })?;
        let differs = digest.finish() != snapshot.projection;
        if differs {
            tracing::error!(%log, position, "accounts here are not what they are at the centre; look with feiqian-node verify");
        } else {
            self.keep_as_base(shard, &signed)?;
            self.prune_stream(log, &signed)?;
        }
        let pieces = if differs { 0 } else { snapshot.pieces };
        let ack = SnapshotAck { log, position, pieces, differs };
        outputs.push(Output::Send(link, Frame::SnapshotAck(ack)));
        Ok(())
    }

    /// Keeps the accounts of a shard as they are: what the stream starts from once older entries are gone. The bytes of a
    /// document may be others than at the centre, so it is the digest of the projection that holds for these pieces.
    fn keep_as_base(&mut self, shard: u8, signed: &SignedSnapshot) -> Result<(), StoreError> {
        let (log, position) = (signed.snapshot.log(), signed.snapshot.cursor().position);
        if self.store.is_installed(log, position)? {
            return Ok(());
        }
        self.store.stage(signed)?;
        let mut writer = PieceWriter::default();
        let mut staged =
            Staged { signed: signed.clone(), pieces: 0, digest: PieceDigest::default(), last: AccountId(0) };
        let store = &self.store;
        let keep = |staged: &mut Staged, piece: &[u8]| {
            staged.pieces += 1;
            staged.digest = staged.digest.with(piece);
            store.put_piece(staged, piece)
        };
        store.each_account(shard, |state| {
            staged.last = state.account;
            match writer.add(state) {
                Some(piece) => keep(&mut staged, &piece),
                None => Ok(()),
            }
        })?;
        if let Some(piece) = writer.finish() {
            keep(&mut staged, &piece)?;
        }
        store.install(log, position)
    }

    /// Lets go of the entries that are older than the term, which what the stream starts from stands for.
    fn prune_stream(&mut self, log: LogId, signed: &SignedSnapshot) -> Result<(), StoreError> {
        let end = signed.snapshot.cursor();
        let kept_after = self.store.kept_after(log, end)?;
        let before = signed.snapshot.time.plus_ms(-STREAM_KEPT_MS);
        let most = (kept_after + PRUNED_PER_SNAPSHOT_MAX).min(end.position.saturating_sub(1));
        if let Some(head) = self.store.head_before(log, most, before)?
            && head > kept_after
        {
            let dropped = self.store.prune(log, head)?;
            tracing::info!(%log, up_to = head, dropped, "old entries dropped");
        }
        Ok(())
    }

    fn shard_cursor(&self, shard: u8) -> Cursor {
        self.state.shards.get(usize::from(shard)).copied().unwrap_or(Cursor::START)
    }
}
