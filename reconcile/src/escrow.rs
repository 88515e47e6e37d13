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
//! Asks of one account and unit are served one after another. One that finds too little free starts a round: every
//! connected node with a row is called upon at once. A *no* is final where all of them answered and nothing is out with
//! anybody else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use feiqian_protocol::campus::Mode;
use feiqian_protocol::entry::{
    Actor, Body, CloseRequest, Closed, Entry, Grant, Pool, ShareGrant, StandInGrant,
};
use feiqian_protocol::frame::{Ask, Frame, No, Recall, Recalled};
use feiqian_protocol::ids::{AccountId, Epoch, NodeId, Unit, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::BusinessDay;
use rusqlite::Connection;

use crate::core::{Round, State, StoreError};
use crate::habit::{AccountHabits, CampusMeans};
use crate::io::{LinkId, Output};
use crate::store::money::{self, ShareState};
use crate::store::nodes::{self, NodeState};
use crate::store::{accounts, logs};

/// Entries that handing out may write in one step: asks that come meanwhile wait no longer than this takes.
const WRITES_PER_STEP: usize = 1_500;

/// Accounts that a sweep looks at in one step.
const SWEEP_PER_STEP: usize = 400;

/// Rounds of recalls for one ask: a view may show a right again where a reversal came in between.
const ROUNDS_MAX: u32 = 4;

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
        let mut position = state.log(state.own_log(id)).applied;
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

/// An ask that waits.
#[derive(Clone, Copy, Debug)]
struct WaitingAsk {
    node: NodeId,
    link: LinkId,
    ask: Ask,
    deadline_ms: u64,
    rounds: u32,
}

/// A recall round: who was called upon, and at which log position they said they had obeyed.
#[derive(Clone, Debug)]
struct RecallRound {
    asker: NodeId,
    answers: BTreeMap<NodeId, Option<u64>>,
}

/// The asks of one account and unit, oldest first.
#[derive(Debug, Default)]
pub(crate) struct AskQueue {
    asks: VecDeque<WaitingAsk>,
    round: Option<RecallRound>,
}

/// A recall without a deadline.
#[derive(Clone, Copy, Debug)]
struct DebtRecall {
    out: Fen,
    answered: Option<u64>,
    done: bool,
}

/// Recalls because less than nothing is free.
#[derive(Debug, Default)]
pub(crate) struct Debts {
    recalls: BTreeMap<(AccountId, Unit, NodeId), DebtRecall>,
    check: BTreeSet<(AccountId, Unit)>,
}

impl Debts {
    /// A new look is needed at whether an account's shares are within its limit.
    pub fn check_allowance(&mut self, account: AccountId) {
        self.check.insert((account, Unit::Allowance));
    }
}

/// A pass over all accounts, bounded per step.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    next: Option<u64>,
    refresh: bool,
}

impl Sweep {
    /// Starts over; with `refresh`, hints are brought up to date as well.
    pub fn start(&mut self, refresh: bool) {
        self.next = Some(1);
        self.refresh |= refresh;
    }
}

impl Round<'_> {
    /// Grants written to a node that no head of it names as applied: right and stand-in.
    pub(crate) fn pending(&self, node: NodeId, account: AccountId, wallet: Wallet) -> (Fen, Fen) {
        let pending = self.state.pending.get(&node);
        pending.and_then(|pending| pending.sums.get(&(account, wallet))).copied().unwrap_or_default()
    }

    // Closing.

    /// C7, and the common part of C8: all rows of the node's open epoch come home, and the next epoch is open.
    pub(crate) fn close_epoch(&mut self, id: NodeId, head: u64) -> Result<(), StoreError> {
        self.flush()?;
        let epoch = self.epoch(id);
        let (mut out, mut si_out) = (Fen::ZERO, Fen::ZERO);
        for (account, wallet) in money::wallets_of_epoch(self.db, id, epoch)? {
            let holding = self.holding(account, wallet)?;
            if let Some(row) = holding.rows.get_mut(&(id, epoch)) {
                out += row.out;
                si_out += row.si_out;
                holding.wallet.free += row.out;
                row.out = Fen::ZERO;
                row.si_out = Fen::ZERO;
            }
            self.state.dirty.insert(account);
        }
        for account in money::close_shares(self.db, id, epoch, self.state.day)? {
            self.state.dirty.insert(account);
        }
        nodes::insert_closing(self.db, id, epoch, head, out, si_out)?;
        if let Some(pending) = self.state.pending.get_mut(&id) {
            pending.clear();
        }
        if let Some(node) = self.state.nodes.get_mut(&id) {
            node.epoch = epoch.next();
            if node.state == NodeState::Closing {
                node.state = NodeState::Closed;
            }
            self.touched_nodes.insert(id);
        }
        // The node begins its next epoch with nothing.
        self.state.sweep.start(false);
        Ok(())
    }

    /// C7: asks a node to end its epoch; nothing is granted to it until it has.
    pub(crate) fn request_close(&mut self, id: NodeId) -> Result<(), StoreError> {
        let epoch = self.epoch(id);
        if let Some(node) = self.state.nodes.get_mut(&id)
            && node.state == NodeState::Open
        {
            node.state = NodeState::Closing;
            node.reason = Some("retired".to_owned());
            self.touched_nodes.insert(id);
            let log = self.state.to_node(id);
            self.append(log, Actor::centre(), CloseRequest { epoch })?;
        }
        Ok(())
    }

    /// C8: closes the node's epoch at what is ingested of its log.
    pub(crate) fn force_close(&mut self, id: NodeId) -> Result<(), StoreError> {
        let epoch = self.epoch(id);
        let declared_head = self.state.log(self.state.own_log(id)).cursor.position;
        self.close_epoch(id, declared_head)?;
        let log = self.state.to_node(id);
        self.append(log, Actor::centre(), Closed { epoch, declared_head })?;
        Ok(())
    }

    /// C9: the end of an epoch that was closed before: nothing more of it can come.
    pub(crate) fn free_residue(&mut self, id: NodeId, epoch: Epoch) -> Result<(), StoreError> {
        self.flush()?;
        for (account, wallet) in money::wallets_of_epoch(self.db, id, epoch)? {
            let holding = self.holding(account, wallet)?;
            if let Some(row) = holding.rows.get_mut(&(id, epoch)) {
                holding.wallet.free += row.residue;
                row.residue = Fen::ZERO;
            }
            self.state.dirty.insert(account);
        }
        Ok(())
    }

    // Granting.

    /// C2.
    fn grant(
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

    fn share_grant(&mut self, id: NodeId, account: AccountId, amount: Fen) -> Result<(), StoreError> {
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
    fn receivers(&self) -> Vec<NodeId> {
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
        let mut turnover = money::turnover(self.db, from)?;
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

    fn history_days(&self) -> i32 {
        i32::try_from(self.state.policy().history_days).unwrap_or(i32::MAX / 2)
    }

    /// Hands out what the accounts that were touched have free, then goes on with the pass over all.
    pub(crate) fn hand_out(&mut self) -> Result<(), StoreError> {
        let receivers = self.receivers();
        if receivers.is_empty() {
            // The next session that is anchored looks at every account.
            self.state.dirty.clear();
            self.state.sweep.next = None;
            return Ok(());
        }
        while self.written < WRITES_PER_STEP
            && let Some(account) = self.state.dirty.pop_first()
        {
            self.distribute(account, &receivers, false)?;
        }
        if let Some(mut next) = self.state.sweep.next {
            self.renew_pools(&receivers)?;
            let end = accounts::count(self.db)?;
            let stop = next.saturating_add(SWEEP_PER_STEP as u64);
            let refresh = self.state.sweep.refresh;
            while next <= end && next < stop && self.written < WRITES_PER_STEP {
                self.distribute(AccountId(next), &receivers, refresh)?;
                next += 1;
            }
            self.state.sweep.next = (next <= end).then_some(next);
            if next > end {
                self.state.sweep.refresh = false;
            }
        }
        Ok(())
    }

    fn asked(&self, account: AccountId, unit: Unit) -> bool {
        self.state.asks.get(&(account, unit)).is_some_and(|queue| !queue.asks.is_empty())
    }

    fn distribute(
        &mut self,
        account: AccountId,
        receivers: &[NodeId],
        refresh: bool,
    ) -> Result<(), StoreError> {
        let Some((seasoned, limit)) = accounts::grant_terms(self.db, account)? else { return Ok(()) };
        let from = BusinessDay(self.state.day.0.saturating_sub(self.history_days()));
        let habits = AccountHabits::new(&money::habits(self.db, account, from)?, self.state.day);
        let means = self.means()?;
        let mut claims = Fen::ZERO;
        for wallet in Wallet::SPENDING_ORDER {
            let epochs: Vec<(NodeId, Epoch)> = receivers.iter().map(|id| (*id, self.epoch(*id))).collect();
            let holding = self.holding(account, wallet)?;
            claims += holding.wallet.claims;
            let free = holding.wallet.free;
            if free.is_negative() {
                self.state.debts.check.insert((account, Unit::Wallet(wallet)));
            }
            if !free.is_positive() || self.asked(account, Unit::Wallet(wallet)) {
                continue;
            }
            let holding = self.holding(account, wallet)?;
            let held: Vec<(NodeId, Fen)> = epochs
                .iter()
                .map(|key| (key.0, holding.rows.get(key).map(|row| row.out).unwrap_or_default()))
                .collect();
            let parts = habits.allocate(free, &held, &means);
            for (id, part) in receivers.iter().zip(parts) {
                if part.is_positive() {
                    self.grant(*id, account, wallet, part)?;
                }
            }
        }
        self.distribute_shares(account, receivers, limit, &habits, &means)?;
        if self.state.mode() == Mode::Hybrid {
            let seasoned = seasoned && claims == Fen::ZERO;
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
            exposure += out + (-holding.wallet.free).or_zero() + holding.wallet.claims;
        }
        let funds = self.holding(account, Wallet::Cash)?.wallet.funds;
        for id in receivers {
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

    /// Allowance that is with nobody: the limit less what was granted and not released, and what was out in an epoch that
    /// was closed today.
    fn allowance_free(&self, shares: &BTreeMap<(NodeId, Epoch), ShareState>, limit: Fen) -> Fen {
        let today = self.state.day;
        let counts = |share: &&ShareState| share.closed_day.is_none_or(|day| day >= today);
        limit - shares.values().filter(counts).map(|share| share.out).sum()
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
        let mut free = self.allowance_free(&shares, limit);
        if !free.is_positive() {
            if free.is_negative() {
                self.state.debts.check_allowance(account);
            }
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
        let parts = habits.split(limit, &open, means);
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
        let sent = money::hints(self.db, account)?;
        for id in receivers {
            let hint = habits.hint(account, *id, means, seasoned);
            let due = match sent.get(id) {
                None => true,
                Some(before) => before.seasoned != seasoned || (refresh && *before != hint),
            };
            if due {
                self.append(self.state.to_node(*id), Actor::centre(), hint)?;
                money::put_hint(self.db, *id, &hint)?;
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

    // Asks and recalls.

    /// A node asks. Its newest ask of a row replaces the one before.
    pub(crate) fn ask(&mut self, link: LinkId, node: NodeId, ask: Ask) {
        let deadline_ms = self.now.mono_ms.saturating_add(ask.ms_left);
        let waiting = WaitingAsk { node, link, ask, deadline_ms, rounds: 0 };
        let queue = self.state.asks.entry((ask.account, ask.unit)).or_default();
        match queue.asks.iter_mut().find(|other| other.node == node) {
            Some(older) if older.ask.want == ask.want => {
                *older = WaitingAsk { rounds: older.rounds, ..waiting };
            }
            Some(older) => {
                *older = waiting;
                if queue.round.as_ref().is_some_and(|round| round.asker == node) {
                    queue.round = None;
                }
            }
            None => queue.asks.push_back(waiting),
        }
    }

    /// A node has obeyed a recall; it counts once its log is ingested up to there.
    pub(crate) fn recalled(&mut self, node: NodeId, recalled: Recalled) {
        let key = (recalled.account, recalled.unit);
        if let Some(round) = self.state.asks.get_mut(&key).and_then(|queue| queue.round.as_mut())
            && let Some(answer) = round.answers.get_mut(&node)
        {
            *answer = Some(recalled.at);
        }
        if let Some(recall) = self.state.debts.recalls.get_mut(&(key.0, key.1, node)) {
            recall.answered = Some(recalled.at);
        }
    }

    /// A node's session is over: what it was asked for is no longer under way.
    pub(crate) fn forget_recalls(&mut self, node: NodeId) {
        self.state.debts.recalls.retain(|(_, _, called), _| *called != node);
    }

    /// C4 and C5.
    pub(crate) fn serve_asks(&mut self) -> Result<(), StoreError> {
        let keys: Vec<(AccountId, Unit)> = self.state.asks.keys().copied().collect();
        for key in keys {
            self.drop_asks(key);
            while self.serve_one(key)? {}
            if !self.asked(key.0, key.1) {
                self.state.asks.remove(&key);
                self.state.dirty.insert(key.0);
            }
        }
        Ok(())
    }

    /// Drops asks of another epoch, without a session, of a node that is closing, or too late.
    fn drop_asks(&mut self, key: (AccountId, Unit)) {
        let State { asks, links, nodes, .. } = &mut *self.state;
        let now_ms = self.now.mono_ms;
        let Some(queue) = asks.get_mut(&key) else { return };
        queue.asks.retain(|waiting| {
            waiting.deadline_ms > now_ms
                && links.get(&waiting.link).is_some_and(crate::session::Link::is_accepted)
                && nodes
                    .get(&waiting.node)
                    .is_some_and(|node| node.is_open() && node.epoch == waiting.ask.epoch)
        });
        if let Some(round) = &queue.round
            && !queue.asks.iter().any(|waiting| waiting.node == round.asker)
        {
            queue.round = None;
        }
    }

    /// What of a unit is free, and what is out with each node in its open epoch.
    fn view(
        &mut self,
        account: AccountId,
        unit: Unit,
    ) -> Result<(Fen, BTreeMap<NodeId, (Fen, Fen)>), StoreError> {
        let open: BTreeMap<NodeId, Epoch> =
            self.state.nodes.iter().map(|(id, node)| (*id, node.epoch)).collect();
        let is_open = |key: &(NodeId, Epoch)| open.get(&key.0) == Some(&key.1);
        Ok(match unit {
            Unit::Wallet(wallet) => {
                let holding = self.holding(account, wallet)?;
                let rows = holding.rows.iter().filter(|(key, _)| is_open(key));
                (holding.wallet.free, rows.map(|(key, row)| (key.0, (row.granted, row.out))).collect())
            }
            Unit::Allowance => {
                let shares = money::shares(self.db, account)?;
                let limit = accounts::grant_terms(self.db, account)?.map(|terms| terms.1).unwrap_or_default();
                let free = self.allowance_free(&shares, limit);
                let rows = shares.iter().filter(|(key, _)| is_open(key));
                (free, rows.map(|(key, share)| (key.0, (share.granted, share.out))).collect())
            }
        })
    }

    fn grant_unit(
        &mut self,
        id: NodeId,
        account: AccountId,
        unit: Unit,
        amount: Fen,
    ) -> Result<(), StoreError> {
        match unit {
            Unit::Wallet(wallet) => self.grant(id, account, wallet, amount),
            Unit::Allowance => self.share_grant(id, account, amount),
        }
    }

    fn ingested_position(&self, node: NodeId) -> u64 {
        self.state.log(self.state.own_log(node)).cursor.position
    }

    fn anchored_link(&self, node: NodeId) -> Option<LinkId> {
        let mut links = self.state.links.iter();
        links.find(|(_, link)| link.node == node && link.is_anchored()).map(|(id, _)| *id)
    }

    /// Serves the first ask that can be; true where something came of it and the next look may find more.
    fn serve_one(&mut self, key: (AccountId, Unit)) -> Result<bool, StoreError> {
        let (account, unit) = key;
        let Some(queue) = self.state.asks.get(&key) else { return Ok(false) };
        let anchored = |waiting: &WaitingAsk| {
            self.state.links.get(&waiting.link).is_some_and(crate::session::Link::is_anchored)
        };
        let Some(index) = queue.asks.iter().position(anchored) else { return Ok(false) };
        let waiting = queue.asks[index];
        let round = queue.round.clone().filter(|round| round.asker == waiting.node);
        if !accounts::exists(self.db, account)? {
            self.finish_ask(key, index);
            return Ok(true);
        }
        let (free, rows) = self.view(account, unit)?;
        let granted = rows.get(&waiting.node).map(|row| row.0).unwrap_or_default();
        let need = waiting.ask.want - granted;
        if !need.is_positive() {
            // Answered already: a grant is on its way.
            self.finish_ask(key, index);
            return Ok(true);
        }
        if free >= need {
            self.grant_unit(waiting.node, account, unit, need)?;
            self.finish_ask(key, index);
            return Ok(true);
        }
        let Some(round) = round else {
            return self.start_round(key, index, need - free, &rows);
        };
        let mut unanswered = false;
        let mut answered = BTreeSet::new();
        for (node, at) in &round.answers {
            if self.anchored_link(*node).is_none() {
                continue;
            }
            if at.is_some_and(|at| at <= self.ingested_position(*node)) {
                answered.insert(*node);
            } else {
                unanswered = true;
            }
        }
        if unanswered {
            return Ok(false);
        }
        let others = || rows.iter().filter(|(node, _)| **node != waiting.node);
        let again = matches!(unit, Unit::Wallet(_))
            && others().any(|(node, row)| row.1.is_positive() && self.anchored_link(*node).is_some());
        if again && waiting.rounds < ROUNDS_MAX {
            return self.start_round(key, index, need - free, &rows);
        }
        if waiting.ask.at > self.ingested_position(waiting.node) {
            // What the asker itself gave back may still be under way.
            return Ok(false);
        }
        // Allowance that a node was granted may be used up: there its answer says all.
        let settled = |node: &NodeId| matches!(unit, Unit::Allowance) && answered.contains(node);
        let r#final = others().all(|(node, row)| !row.1.is_positive() || settled(node));
        let no = No { account, unit, want: waiting.ask.want, r#final, free: free.or_zero() };
        self.outputs.push(Output::Send(waiting.link, Frame::No(no)));
        self.finish_ask(key, index);
        Ok(true)
    }

    fn finish_ask(&mut self, key: (AccountId, Unit), index: usize) {
        if let Some(queue) = self.state.asks.get_mut(&key)
            && let Some(done) = queue.asks.remove(index)
            && queue.round.as_ref().is_some_and(|round| round.asker == done.node)
        {
            queue.round = None;
        }
    }

    /// Calls upon every connected node with a row, in parallel, also where nothing is out as far as is known: a reversal
    /// may not be up yet.
    fn start_round(
        &mut self,
        key: (AccountId, Unit),
        index: usize,
        amount: Fen,
        rows: &BTreeMap<NodeId, (Fen, Fen)>,
    ) -> Result<bool, StoreError> {
        let Some(asker) =
            self.state.asks.get(&key).and_then(|queue| queue.asks.get(index)).map(|ask| ask.node)
        else {
            return Ok(false);
        };
        let mut answers = BTreeMap::new();
        for node in rows.keys().filter(|node| **node != asker) {
            if let Some(link) = self.anchored_link(*node) {
                self.send_recall(link, *node, key, amount);
                answers.insert(*node, None);
            }
        }
        if let Some(queue) = self.state.asks.get_mut(&key) {
            queue.round = Some(RecallRound { asker, answers });
            if let Some(waiting) = queue.asks.get_mut(index) {
                waiting.rounds += 1;
            }
        }
        Ok(true)
    }

    fn send_recall(&mut self, link: LinkId, node: NodeId, (account, unit): (AccountId, Unit), amount: Fen) {
        let after = self.state.log(self.state.to_node(node)).cursor.position;
        let recall =
            Recall { account, unit, epoch: self.epoch(node), amount, after, from_day: self.state.day };
        self.outputs.push(Output::Send(link, Frame::Recall(recall)));
    }

    /// C6, and the same for a limit that was lowered: what is out is called back, without a deadline.
    pub(crate) fn recall_debts(&mut self) -> Result<(), StoreError> {
        let mut answered = Vec::new();
        let own: BTreeMap<NodeId, u64> =
            self.state.nodes.keys().map(|node| (*node, self.ingested_position(*node))).collect();
        for (key, recall) in &mut self.state.debts.recalls {
            if !recall.done && recall.answered.is_some_and(|at| own.get(&key.2).is_some_and(|end| at <= *end))
            {
                recall.done = true;
                answered.push((key.0, key.1));
            }
        }
        let mut check = std::mem::take(&mut self.state.debts.check);
        check.extend(answered);
        check.extend(self.owing());
        for (account, unit) in check {
            let (free, rows) = self.view(account, unit)?;
            if !free.is_negative() {
                self.state.debts.recalls.retain(|key, _| (key.0, key.1) != (account, unit));
                continue;
            }
            for (node, (_, out)) in rows {
                let key = (account, unit, node);
                let known = self.state.debts.recalls.get(&key);
                // One that answered without giving anything has nothing: asking again changes nothing.
                if !out.is_positive() || known.is_some_and(|recall| !recall.done || recall.out == out) {
                    continue;
                }
                if let Some(link) = self.anchored_link(node) {
                    self.send_recall(link, node, (account, unit), -free);
                    self.state.debts.recalls.insert(key, DebtRecall { out, answered: None, done: false });
                }
            }
        }
        Ok(())
    }

    /// When the next ask is too late, or at once where handing out goes on.
    pub(crate) fn plan_timer(&mut self) {
        let asks = self.state.asks.values().flat_map(|queue| &queue.asks).map(|waiting| waiting.deadline_ms);
        let going_on = !self.state.dirty.is_empty() || self.state.sweep.next.is_some();
        self.state.next_timer = asks.chain(going_on.then_some(self.now.mono_ms)).min();
    }
}
