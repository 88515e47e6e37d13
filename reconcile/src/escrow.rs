//! Spending rights at the centre: what is handed out, what is asked for, what is called back.
//!
//! Per (account, wallet) there is `funds` and `free`; per row (account, wallet, node, epoch) there is `out`, the right that
//! the centre must assume is there, `si_out` likewise for stand-in, and for closed epochs `residue`. At every commit
//! `funds = free + sum(out) + sum(residue)`. What node entries do to them is in [`crate::ingest`]; here is the rest: a grant
//! counts when it is written, is at most what is free, and is written only in a session whose anchor the node has
//! acknowledged; closing an epoch brings its rows home.
//!
//! The allowance of an account's day is handed out by the same rules, in shares that hold from a day on. A closed share
//! counts until the day of its closing is over, since it may have been used.
//!
//! What is asked for and called back is in [`crate::asks`]; what is held for vouchers in `holds`. Of accounts that pay by
//! phone nothing is handed out by habit.

mod epochs;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use feiqian_protocol::campus::Mode;
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Actor, Body, Entry, Grant, Pool, ShareGrant, StandInGrant};
use feiqian_protocol::ids::{AccountId, Epoch, NodeId, Unit, Wallet};
use feiqian_protocol::limits::BUSY_FOR_MS;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::BusinessDay;
use rusqlite::Connection;

use crate::core::{Round, State, StoreError};
use crate::habit::{AccountHabits, CampusMeans};
use crate::store::money::{self, ShareState};
use crate::store::nodes::NodeState;
use crate::store::{accounts, habits, logs, recovery};

/// Rows (an account at a node) that handing out looks at in one step, give or take an account, those first that somebody
/// waits for: what comes meanwhile waits no longer than this takes, some milliseconds.
const ROWS_PER_STEP: usize = 128;

/// The same in a step that takes entries of nodes, and in one that has something that somebody waits for: of the rest, so few.
const ROWS_PER_INGEST_STEP: usize = 16;
const ROWS_PER_URGENT_STEP: usize = 4;

/// Recalls of surplus that may be under way, over all nodes: their frames fit the queue of a link beside everything else.
const SURPLUS_RECALLS_MAX: usize = 512;

/// Grants to a node that its heads do not name as applied yet: what is out but cannot have been spent.
#[derive(Debug, Default)]
pub(crate) struct PendingGrants {
    queue: VecDeque<(u64, AccountId, Wallet, Fen, Fen)>,
    sums: BTreeMap<(AccountId, Wallet), (Fen, Fen)>,
}

impl PendingGrants {
    /// Reads them from the stream for a node.
    pub fn load(db: &Connection, state: &State, id: NodeId) -> Result<Self, StoreError> {
        let mut pending = Self::default();
        let Some(node) = state.nodes.get(&id) else { return Ok(pending) };
        let stream = state.to_node(id);
        let own = state.log(state.own_log(id));
        // While the centre takes back what an old copy lacks, a log is longer than what of it acts.
        let mut position = match &state.recovery {
            Some(_) => recovery::applied_at(db, state.own_log(id), own.posted)?,
            None => own.applied,
        };
        let end = state.log(stream).cursor.position;
        while position < end {
            let records = logs::records_after(db, stream, position, 1_000)?;
            if records.is_empty() {
                break;
            }
            for record in records {
                position += 1;
                match Entry::from_record(&record)?.body {
                    Body::Grant(grant) if grant.epoch == node.epoch => {
                        pending.push(position, grant.account, grant.wallet, grant.amount, Fen::ZERO);
                    }
                    Body::StandInGrant(StandInGrant(grant)) if grant.epoch == node.epoch => {
                        pending.push(position, grant.account, grant.wallet, Fen::ZERO, grant.amount);
                    }
                    _ => {}
                }
            }
        }
        Ok(pending)
    }

    fn push(&mut self, position: u64, account: AccountId, wallet: Wallet, right: Fen, stand_in: Fen) {
        self.queue.push_back((position, account, wallet, right, stand_in));
        let sum = self.sums.entry((account, wallet)).or_default();
        *sum = (sum.0 + right, sum.1 + stand_in);
    }

    /// The node has applied the stream up to here.
    pub fn applied(&mut self, position: u64) {
        while let Some((at, account, wallet, right, stand_in)) = self.queue.front().copied()
            && at <= position
        {
            self.queue.pop_front();
            if let Some(sum) = self.sums.get_mut(&(account, wallet)) {
                *sum = (sum.0 - right, sum.1 - stand_in);
                if *sum == (Fen::ZERO, Fen::ZERO) {
                    self.sums.remove(&(account, wallet));
                }
            }
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Accounts with something to hand out.
#[derive(Debug, Default)]
pub(crate) struct HandOut {
    /// Somebody may be waiting for it: a credit, a setting, an ask that was served.
    soon: BTreeSet<AccountId>,
    /// Nobody is: what is left after debits, closings, imports.
    later: BTreeSet<AccountId>,
}

impl HandOut {
    /// An account that somebody waits for.
    pub fn soon(&mut self, account: AccountId) {
        self.later.remove(&account);
        self.soon.insert(account);
    }

    /// An account that nobody waits for.
    pub fn later(&mut self, account: AccountId) {
        if !self.soon.contains(&account) {
            self.later.insert(account);
        }
    }

    /// How many accounts are left.
    pub fn waiting(&self) -> u64 {
        (self.soon.len() + self.later.len()) as u64
    }
}

/// A pass over all accounts, bounded per step. One that is started anew goes on where it is, all the way round, so that
/// a node which comes and goes keeps nobody from being reached.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    /// The account that was looked at last.
    last: u64,
    /// How many are to be looked at, at most.
    left: u64,
    refresh: bool,
    /// True where it goes on once recalls are answered.
    waits: bool,
}

impl Sweep {
    /// True while accounts are left to look at.
    pub const fn is_under_way(&self) -> bool {
        self.left > 0
    }

    /// True where the next step may go on.
    pub const fn goes_on(&self) -> bool {
        self.left > 0 && !self.waits
    }

    /// How many of `accounts` are left to look at.
    pub fn left(&self, accounts: u64) -> u64 {
        self.left.min(accounts)
    }

    /// All accounts are to be looked at, from here on; with `refresh`, hints are brought up to date as well, and right is
    /// moved to where it will be wanted.
    pub fn start(&mut self, refresh: bool) {
        self.left = u64::MAX;
        self.refresh |= refresh;
    }

    /// The next of `accounts`; `None` where all were looked at.
    fn next(&mut self, accounts: u64) -> Option<AccountId> {
        self.left = self.left.min(accounts).checked_sub(1)?;
        self.last = if self.last < accounts { self.last + 1 } else { 1 };
        Some(AccountId(self.last))
    }

    /// Nobody is there to hand out to: whoever comes starts anew.
    const fn stop(&mut self) {
        self.left = 0;
    }
}

impl Round<'_> {
    /// Grants written to a node that no head of it names as applied: right and stand-in.
    pub(crate) fn pending(&self, node: NodeId, account: AccountId, wallet: Wallet) -> (Fen, Fen) {
        let pending = self.state.pending.get(&node);
        pending.and_then(|pending| pending.sums.get(&(account, wallet))).copied().unwrap_or_default()
    }

    /// C2.
    pub(crate) fn grant(
        &mut self,
        id: NodeId,
        account: AccountId,
        wallet: Wallet,
        amount: Fen,
    ) -> Result<(), StoreError> {
        let (epoch, time) = (self.epoch(id), self.state.time);
        let holding = self.holding(account, wallet)?;
        if !amount.is_positive() || amount > holding.wallet.free {
            return Err(StoreError::Invariant(format!("account {account}: a grant of more than is free")));
        }
        holding.wallet.free -= amount;
        let row = holding.rows.entry((id, epoch)).or_default();
        row.granted += amount;
        row.out += amount;
        let grant = Grant { account, wallet, epoch, amount, total: row.granted, time };
        let position = self.append(self.state.to_node(id), Actor::centre(), grant)?;
        self.state.pending.entry(id).or_default().push(position, account, wallet, amount, Fen::ZERO);
        Ok(())
    }

    /// A planted bug: what is under way to a node is part of its next grants once more.
    #[cfg(feature = "canaries")]
    pub(crate) fn count_under_way_again(&mut self, id: NodeId) -> Result<(), StoreError> {
        let key = (id, self.epoch(id));
        let sums = self.state.pending.get(&id).map(|pending| pending.sums.clone()).unwrap_or_default();
        for ((account, wallet), (right, _)) in sums {
            if let Some(row) = self.holding(account, wallet)?.rows.get_mut(&key) {
                row.granted += right;
            }
        }
        Ok(())
    }

    /// C3; the caller has looked at the cap.
    fn stand_in_grant(&mut self, id: NodeId, account: AccountId, amount: Fen) -> Result<(), StoreError> {
        let (epoch, time, wallet) = (self.epoch(id), self.state.time, Wallet::Cash);
        let row = self.holding(account, wallet)?.rows.entry((id, epoch)).or_default();
        row.si_granted += amount;
        row.si_out += amount;
        let grant = Grant { account, wallet, epoch, amount, total: row.si_granted, time };
        let position = self.append(self.state.to_node(id), Actor::centre(), StandInGrant(grant))?;
        self.state.pending.entry(id).or_default().push(position, account, wallet, Fen::ZERO, amount);
        Ok(())
    }

    pub(crate) fn share_grant(
        &mut self,
        id: NodeId,
        account: AccountId,
        amount: Fen,
    ) -> Result<(), StoreError> {
        let (epoch, time, from_day) = (self.epoch(id), self.state.time, self.state.day);
        let shares = money::shares(self.db, account)?;
        let mut share = shares.get(&(id, epoch)).copied().unwrap_or_default();
        share.granted += amount;
        share.out += amount;
        money::put_share(self.db, account, (id, epoch), &share)?;
        let grant = ShareGrant { account, epoch, from_day, amount, total: share.granted, time };
        self.append(self.state.to_node(id), Actor::centre(), grant)?;
        Ok(())
    }

    /// Nodes that may be granted something now: open, in a session whose anchor is acknowledged, and taking purchases.
    pub(crate) fn receivers(&self) -> Vec<NodeId> {
        let anchored: BTreeSet<NodeId> =
            self.state.links.values().filter(|link| link.is_anchored()).map(|link| link.node).collect();
        anchored
            .into_iter()
            .filter(|id| self.state.nodes.get(id).is_some_and(|node| node.is_open() && node.spends()))
            .collect()
    }

    fn means(&mut self) -> Result<CampusMeans, StoreError> {
        if let Some(means) = &self.state.means {
            return Ok(means.clone());
        }
        let from = BusinessDay(self.state.day.0.saturating_sub(self.history_days()));
        let today = self.state.day;
        let mut turnover = habits::turnover(self.db, from)?;
        turnover.retain(|(_, day, ..)| *day < today);
        let nodes: Vec<NodeId> = self
            .state
            .nodes
            .iter()
            .filter(|(_, node)| {
                node.role == feiqian_protocol::enrol::Role::Pos && node.state != NodeState::Retired
            })
            .map(|(id, _)| *id)
            .collect();
        let means = CampusMeans::new(&turnover, &nodes);
        self.state.means = Some(means.clone());
        Ok(means)
    }

    /// What an account does where, and what the campus does.
    pub(crate) fn habits(&mut self, account: AccountId) -> Result<(AccountHabits, CampusMeans), StoreError> {
        let from = BusinessDay(self.state.day.0.saturating_sub(self.history_days()));
        let means = self.means()?;
        let history = habits::habits(self.db, account, from)?;
        Ok((AccountHabits::new(&history, &means, self.state.day), means))
    }

    fn history_days(&self) -> i32 {
        i32::try_from(self.state.policy().history_days).unwrap_or(i32::MAX / 2)
    }

    /// Hands out what the accounts that were touched have free, then goes on with the pass over all.
    pub(crate) fn hand_out(&mut self) -> Result<(), StoreError> {
        let receivers = self.receivers();
        if receivers.is_empty() {
            // The next session that is anchored looks at every account.
            self.state.hand_out = HandOut::default();
            self.state.sweep.stop();
            return Ok(());
        }
        let accounts = |rows: usize| rows.div_ceil(receivers.len());
        let mut room = accounts(ROWS_PER_STEP);
        self.fresh = true;
        while room > 0
            && let Some(account) = self.state.hand_out.soon.pop_first()
        {
            self.distribute(account, &receivers, false)?;
            room -= 1;
        }
        self.fresh = false;
        let now = self.now.mono_ms;
        if self.urgent {
            self.state.urgent_ms = Some(now);
        }
        let busy = self.state.urgent_ms.is_some_and(|last| now < last + BUSY_FOR_MS);
        if busy && !self.timer && (self.queued || self.taken == 0 && !self.urgent) {
            // What has waited already waits on, and what this step has touched after it: the driver says when there is time, by its
            // timer.
            room = 0;
        } else if self.urgent {
            room = room.min(accounts(ROWS_PER_URGENT_STEP));
        } else if self.taken > 0 || busy {
            room = room.min(accounts(ROWS_PER_INGEST_STEP));
        }
        while room > 0
            && let Some(account) = self.state.hand_out.later.pop_first()
        {
            self.distribute(account, &receivers, false)?;
            room -= 1;
        }
        if self.state.sweep.is_under_way() {
            self.renew_pools(&receivers)?;
            let end = accounts::count(self.db)?;
            let refresh = self.state.sweep.refresh;
            self.state.sweep.waits = false;
            while room > 0 {
                if self.state.debts.surplus_recalls() >= SURPLUS_RECALLS_MAX {
                    self.state.sweep.waits = true;
                    break;
                }
                let Some(account) = self.state.sweep.next(end) else { break };
                self.distribute(account, &receivers, refresh)?;
                room -= 1;
            }
            if self.state.sweep.left(end) == 0 {
                self.state.sweep.stop();
                self.state.sweep.refresh = false;
            }
        }
        Ok(())
    }

    fn distribute(
        &mut self,
        account: AccountId,
        receivers: &[NodeId],
        refresh: bool,
    ) -> Result<(), StoreError> {
        if self.state.closures.has(account) {
            self.state.closures.look_at(account);
            return Ok(());
        }
        let Some((seasoned_on, limit)) = accounts::grant_terms(self.db, account)? else { return Ok(()) };
        let (habits, means) = self.habits(account)?;
        let lump_percent = self.state.policy().lump_percent;
        let mut claims = Fen::ZERO;
        let stays = self.pays_by_phone(account)?;
        for wallet in Wallet::SPENDING_ORDER {
            let epochs: Vec<(NodeId, Epoch)> = receivers.iter().map(|id| (*id, self.epoch(*id))).collect();
            let holding = self.holding(account, wallet)?;
            claims += holding.wallet.claims;
            let free = holding.wallet.free;
            if free.is_negative() {
                self.state.debts.check_wallet(account, wallet);
            }
            if free.is_negative() || self.asked(account, Unit::Wallet(wallet)) {
                continue;
            }
            if stays {
                if refresh {
                    self.recall_all(account, Unit::Wallet(wallet))?;
                }
                continue;
            }
            if !free.is_positive() && !refresh {
                continue;
            }
            let holding = self.holding(account, wallet)?;
            let mut held: Vec<(NodeId, Fen)> = epochs
                .iter()
                .map(|key| (key.0, holding.rows.get(key).map(|row| row.out).unwrap_or_default()))
                .collect();
            let parts = habits.allocate(free, &held, lump_percent, &means);
            for ((id, held), part) in held.iter_mut().zip(parts) {
                if part.is_positive() {
                    self.grant(*id, account, wallet, part)?;
                    *held += part;
                }
            }
            // Purchases wear the allocation down where people buy, and what comes back from recalls lies where it was left.
            if refresh && lump_percent > 0 {
                for (id, over) in habits.surplus(&held, lump_percent, &means) {
                    self.recall_surplus(account, Unit::Wallet(wallet), id, over)?;
                }
            }
        }
        self.distribute_shares(account, receivers, limit, &habits, &means)?;
        if self.state.mode() == Mode::Hybrid {
            let seasoned = seasoned_on <= self.state.day && claims == Fen::ZERO;
            if seasoned {
                self.distribute_stand_in(account, receivers, &habits)?;
            }
            self.send_hints(account, receivers, (&habits, &means), seasoned, refresh)?;
        }
        Ok(())
    }

    /// Stand-in up to the policy's figure per node, never more than the balance beyond the node's right, and all of the
    /// account's exposure together under its cap (I4).
    fn distribute_stand_in(
        &mut self,
        account: AccountId,
        receivers: &[NodeId],
        habits: &AccountHabits,
    ) -> Result<(), StoreError> {
        let policy = self.state.policy();
        let mut exposure = Fen::ZERO;
        for wallet in Wallet::SPENDING_ORDER {
            let holding = self.holding(account, wallet)?;
            let out: Fen = holding.rows.values().map(|row| row.si_out).sum();
            exposure += out;
            if !planted(Canary::StandInAboveCap) {
                exposure += (-holding.wallet.free).or_zero() + holding.wallet.claims;
            }
        }
        let funds = self.holding(account, Wallet::Cash)?.wallet.funds - self.held(account)?;
        // Where the cap does not suffice for all, those come first where the account buys.
        let mut receivers = receivers.to_vec();
        receivers.sort_by_key(|id| !habits.has(*id));
        for id in &receivers {
            let key = (*id, self.epoch(*id));
            let row = self.holding(account, Wallet::Cash)?.rows.get(&key).copied().unwrap_or_default();
            let figure = if habits.has(*id) { policy.stand_in_habit_fen } else { policy.stand_in_other_fen };
            let target = figure.min((funds - row.out).or_zero());
            let amount = (target - row.si_out).min(policy.stand_in_account_cap_fen - exposure);
            if amount.is_positive() {
                self.stand_in_grant(*id, account, amount)?;
                exposure += amount;
            }
        }
        Ok(())
    }

    /// Allowance that is with nobody: the limit less what was granted and not released, what was out in an epoch that
    /// was closed today, and what vouchers count. None of them counts for a later day and not for today.
    pub(crate) fn allowance_free(
        &self,
        account: AccountId,
        shares: &BTreeMap<(NodeId, Epoch), ShareState>,
        limit: Fen,
    ) -> Result<Fen, StoreError> {
        let today = self.state.day;
        let counts = |share: &&ShareState| share.closed_day.is_none_or(|day| day >= today);
        let out: Fen = shares.values().filter(counts).map(|share| share.out).sum();
        Ok(limit - out - self.counted_by_vouchers(account, today)?)
    }

    fn distribute_shares(
        &mut self,
        account: AccountId,
        receivers: &[NodeId],
        limit: Fen,
        habits: &AccountHabits,
        means: &CampusMeans,
    ) -> Result<(), StoreError> {
        if self.asked(account, Unit::Allowance) {
            return Ok(());
        }
        let shares = money::shares(self.db, account)?;
        let mut free = self.allowance_free(account, &shares, limit)?;
        if free.is_negative() {
            self.state.debts.check_allowance(account);
        }
        if !free.is_positive() || self.pays_by_phone(account)? {
            return Ok(());
        }
        // Nodes that are out of reach find their part when they come back.
        let open: Vec<NodeId> = self
            .state
            .nodes
            .iter()
            .filter(|(_, node)| node.is_open() && node.spends())
            .map(|(id, _)| *id)
            .collect();
        let parts = habits.share_out(limit, &open, means);
        for (id, part) in open.iter().zip(parts) {
            let held = shares.get(&(*id, self.epoch(*id))).map(|share| share.out).unwrap_or_default();
            let more = (part - held).min(free);
            if more.is_positive() && receivers.contains(id) {
                self.share_grant(*id, account, more)?;
                free -= more;
            }
        }
        Ok(())
    }

    fn send_hints(
        &mut self,
        account: AccountId,
        receivers: &[NodeId],
        (habits, means): (&AccountHabits, &CampusMeans),
        seasoned: bool,
        refresh: bool,
    ) -> Result<(), StoreError> {
        let sent = habits::hints(self.db, account)?;
        for id in receivers {
            let hint = habits.hint(account, *id, means, seasoned);
            let due = match sent.get(id) {
                None => true,
                Some(before) => before.seasoned != seasoned || (refresh && *before != hint),
            };
            if due {
                self.append(self.state.to_node(*id), Actor::centre(), hint)?;
                habits::put_hint(self.db, *id, &hint)?;
            }
        }
        Ok(())
    }

    /// The stand-in of a node's day over all accounts: a part of its usual turnover.
    fn renew_pools(&mut self, receivers: &[NodeId]) -> Result<(), StoreError> {
        if self.state.mode() != Mode::Hybrid {
            return Ok(());
        }
        let policy = self.state.policy();
        let means = self.means()?;
        for id in receivers {
            let usual = means.per_day.get(id).copied().unwrap_or(policy.pool_turnover_fen);
            let part = |of: Fen, percent: u32| Fen::new(of.get() / 100 * i64::from(percent));
            let per_day = part(usual, policy.pool_percent);
            let pool = (per_day, part(per_day, policy.pool_habit_percent));
            let Some(node) = self.state.nodes.get_mut(id) else { continue };
            if node.pool == Some(pool) {
                continue;
            }
            node.pool = Some(pool);
            self.touched_nodes.insert(*id);
            let entry = Pool { from_day: self.state.day, per_day: pool.0, habit_only: pool.1 };
            self.append(self.state.to_node(*id), Actor::centre(), entry)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_that_is_started_again_and_again_still_reaches_everybody() {
        let mut sweep = Sweep::default();
        assert_eq!(sweep.next(5), None);
        let mut seen = BTreeSet::new();
        for _ in 0..5 {
            sweep.start(false);
            seen.extend(sweep.next(5));
        }
        assert_eq!(seen.len(), 5);
        let rest: Vec<u64> = std::iter::from_fn(|| sweep.next(5)).map(|account| account.0).collect();
        assert_eq!(rest, [1, 2, 3, 4], "the whole way round since the last start");
        assert!(!sweep.is_under_way());
        sweep.start(true);
        assert_eq!((sweep.left(5), sweep.left(0)), (5, 0));
    }
}
