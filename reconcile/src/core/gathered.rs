//! What ingested entries have moved and no posted batch has yet: gathered for a while, so that a building commits once for all that
//! happened elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::entry::{Actor, Delta, EntryRef, Lost, Posted, PostedHead};
use feiqian_protocol::ids::{AccountId, LogId, NodeId, Wallet};
use feiqian_protocol::limits::DELTAS_PER_POSTED_MAX;
use feiqian_protocol::money::Fen;
use rusqlite::Connection;

use super::{Round, State};
use crate::store::StoreError;
use crate::store::logs::LogState;
use crate::store::money;

/// Entries of nodes in one step from which on it is a backlog that comes in: half a frame.
const BACKLOG_ENTRIES: usize = 16;

/// How long the effects of a backlog are gathered before they are posted: one batch for many of them is less to write, sign,
/// send and prove. A backlog that comes in as fast as it can fills a batch before.
const BACKLOG_GATHER_MS: u64 = 250;

/// How long the effects of taps are gathered otherwise. Right moves by grants; what is posted is for balances shown in other
/// buildings, and nobody walks there faster. Every batch is a commit on the disk of every building, so a campus at
/// lunch costs a flash card there one each two seconds instead of one for each tap anywhere.
const GATHER_MS: u64 = 2_000;

/// Effects that are gathered at most; a posted batch of their part of one shard is less than a millisecond of work at a node.
const GATHERED_MAX: usize = 512;

/// Lost parts that a batch names at most. What it does not name counts as posted for a centre that has come back from an old copy, and
/// suspense stands in for it there.
const LOST_NAMED_MAX: usize = 64;

/// Effects of ingested entries on balances that are in no posted batch yet. Kept by nothing but the ledger and `named` of
/// the logs: a core that opens gathers them again.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub deltas: BTreeMap<(AccountId, Wallet), Fen>,
    /// The logs that they are of.
    logs: BTreeSet<LogId>,
    /// When they must be posted.
    due_ms: Option<u64>,
}

impl Gathered {
    pub(super) fn load(db: &Connection, state: &State) -> Result<Self, StoreError> {
        let mut gathered = Self::default();
        if state.recovery.is_some() {
            // Some of it may have been posted after this copy was made.
            return Ok(gathered);
        }
        for (log, at) in
            state.logs.iter().filter(|(log, at)| log.writer != NodeId::CENTRE && at.named < at.posted)
        {
            gathered.logs.insert(*log);
            for (_, account, wallet, amount) in money::wallet_effects(db, *log, at.named, at.posted)? {
                *gathered.deltas.entry((account, wallet)).or_default() += amount;
            }
        }
        Ok(gathered)
    }

    /// True where every balance is what the streams say.
    pub fn is_empty(&self) -> bool {
        self.deltas.is_empty()
    }

    /// True where the streams do not say yet all that has moved of an account.
    pub fn touches(&self, account: AccountId) -> bool {
        Wallet::SPENDING_ORDER.iter().any(|wallet| self.deltas.contains_key(&(account, *wallet)))
    }

    /// They are to be posted in this step: a node is in session, for whom the streams go on.
    pub fn due_now(&mut self) {
        self.due_ms = (!self.logs.is_empty()).then_some(0);
    }

    /// When they must be posted, in `mono_ms`. Of those of an earlier core `None`: a centre that has just opened, and may be an
    /// old copy, writes nothing into a stream before it has heard a node.
    pub fn due_ms(&self) -> Option<u64> {
        self.due_ms
    }
}

impl Round<'_> {
    /// A node's entry has moved a balance.
    pub fn gather(&mut self, account: AccountId, wallet: Wallet, delta: Fen) {
        *self.state.gathered.deltas.entry((account, wallet)).or_default() += delta;
        self.note_moved(account, wallet);
    }

    /// The balance of a wallet is another one.
    pub fn note_moved(&mut self, account: AccountId, wallet: Wallet) {
        self.moved.insert((account, wallet));
    }

    /// A node's entry is ingested; where it acts, what it has moved is to be posted. What is only collected for an old copy of
    /// the centre is not: its log may have effects from before that are in no batch yet, and are sorted out when it is replayed.
    pub fn note_taken(&mut self, log: LogId, acts: bool) {
        if acts {
            self.state.gathered.logs.insert(log);
        }
        self.taken += 1;
    }

    /// Posts what was gathered where its time has come.
    pub(super) fn post_gathered(&mut self) -> Result<(), StoreError> {
        let now = self.now.mono_ms;
        let plain = !self.is_recovering() && !self.state.has_unheard;
        let wait = match self.taken {
            _ if !plain => 0,
            BACKLOG_ENTRIES.. => BACKLOG_GATHER_MS,
            _ => GATHER_MS,
        };
        let snapshots = self.snapshots_wait();
        let gathered = &mut self.state.gathered;
        if gathered.logs.is_empty() {
            return Ok(());
        }
        if self.taken > 0 {
            gathered.due_ms = Some(gathered.due_ms.unwrap_or(u64::MAX).min(now + wait));
        }
        let Some(due) = gathered.due_ms else { return Ok(()) };
        // What somebody waits for is done first.
        let due = if self.urgent && self.taken == 0 { due + BACKLOG_GATHER_MS } else { due };
        // A status speaks of everything, and a snapshot is of what the streams say: nothing is left for later than them.
        let is_due =
            due <= now || gathered.deltas.len() >= GATHERED_MAX || !self.statuses.is_empty() || snapshots;
        if is_due { self.write_posted() } else { Ok(()) }
    }

    /// What of a branch is not here, since it came altered.
    fn lost_of(&self, log: LogId) -> impl Iterator<Item = Lost> {
        let lost = self.state.lost.range((log, 0)..=(log, u64::MAX));
        lost.map(|((log, first), last)| Lost { log: *log, first: *first, last: *last })
    }

    /// How far a log of a node is posted.
    pub fn posted_head(&self, log: LogId) -> Result<PostedHead, StoreError> {
        let LogState { posted, cursor, .. } = self.state.log(log);
        let hash = if posted == cursor.position {
            Some(cursor.hash)
        } else {
            self.known_hash(log, self.state.own_log(log.writer), posted)?
        };
        let hash = hash.ok_or_else(|| StoreError::Corrupt(format!("{log} has no entry {posted}")))?;
        Ok(PostedHead { log, position: posted, hash })
    }

    /// Names what was ingested in every shard that a delta of it touches. After this the funds of every wallet are what the
    /// account streams say.
    pub fn write_posted(&mut self) -> Result<(), StoreError> {
        let Gathered { deltas, logs, .. } = std::mem::take(&mut self.state.gathered);
        for log in &logs {
            if let Some(state) = self.state.logs.get_mut(log) {
                state.named = state.posted;
                self.touched_logs.insert(*log);
            }
        }
        let heads = logs.iter().map(|log| self.posted_head(*log)).collect::<Result<Vec<_>, _>>()?;
        let lost = logs.iter().flat_map(|log| self.lost_of(*log)).take(LOST_NAMED_MAX).collect::<Vec<_>>();
        let lost = (!lost.is_empty()).then_some(lost);
        let institution = self.state.identity.institution;
        let mut by_shard: BTreeMap<u8, Vec<Delta>> = BTreeMap::new();
        for ((account, wallet), amount) in deltas {
            by_shard.entry(account.shard()).or_default().push(Delta { account, wallet, amount });
        }
        for (shard, deltas) in by_shard {
            let mut rest = deltas.as_slice();
            while !rest.is_empty() {
                // The heads stand in the last part only: a part without them promises nothing of its logs yet.
                let room = DELTAS_PER_POSTED_MAX - heads.len().min(DELTAS_PER_POSTED_MAX / 2);
                let (part, later) = rest.split_at(rest.len().min(room));
                let (named, lost) =
                    if later.is_empty() { (heads.clone(), lost.clone()) } else { (Vec::new(), None) };
                let posted = Posted { heads: named, deltas: part.to_vec(), lost };
                self.append(LogId::shard(institution, shard), Actor::centre(), posted)?;
                rest = later;
            }
        }
        Ok(())
    }

    pub(super) fn write_refunds(&mut self) -> Result<(), StoreError> {
        if !self.refunds.is_empty() {
            self.write_posted()?;
        }
        for refund in std::mem::take(&mut self.refunds) {
            let log = self.state.shard(refund.account);
            let (account, wallet, amount) = (refund.account, refund.wallet, refund.amount);
            let position = self.append(log, Actor::centre(), refund)?;
            let at = EntryRef { log, position };
            self.post_refund(at, account, wallet, amount)?;
        }
        Ok(())
    }
}
