//! Asks and recalls: right that is wanted at one node and lies with another.
//!
//! Asks of one account and unit are served one after another. One that finds too little free starts a round: every
//! connected node with a row is called upon at once. A recall is answered once the log position that its answer names is
//! ingested. A *no* is final where all of them answered and nothing is out with anybody else.
//!
//! Where less than nothing is free (stand-in was used while the right lay elsewhere, or a limit was lowered), right is
//! called back without a deadline.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use feiqian_protocol::frame::{Ask, Frame, No, Recall, Recalled};
use feiqian_protocol::ids::{AccountId, Epoch, NodeId, Unit, Wallet};
use feiqian_protocol::limits::{ASK_DEADLINE_MS_MAX, ASKS_PER_NODE_MAX, SUM_FEN_MAX};
use feiqian_protocol::money::Fen;

use crate::core::{Round, State, StoreError};
use crate::io::{LinkId, Output};
use crate::purse::load::WaitingLoad;
use crate::store::{accounts, money};

/// Rounds of recalls for one ask: a view may show a right again where a reversal came in between.
const ROUNDS_MAX: u32 = 4;

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
    /// Nothing is owed: right is only to lie elsewhere.
    surplus: bool,
    out: Fen,
    answered: Option<u64>,
    done: bool,
}

/// Recalls because less than nothing is free, or because right lies where it is not needed.
#[derive(Debug, Default)]
pub(crate) struct Debts {
    recalls: BTreeMap<(AccountId, Unit, NodeId), DebtRecall>,
    check: BTreeSet<(AccountId, Unit)>,
}

impl Debts {
    /// Recalls that a node has not answered.
    pub fn under_way(&self, node: NodeId) -> u64 {
        let open = self.recalls.iter().filter(|(key, recall)| key.2 == node && !recall.done);
        open.count() as u64
    }

    /// True where a node has answered a recall, and its log is ingested up to there.
    pub fn is_answered(&self, account: AccountId, wallet: Wallet, node: NodeId) -> bool {
        self.recalls.get(&(account, Unit::Wallet(wallet), node)).is_some_and(|recall| recall.done)
    }

    /// Nothing of an account is waited for any more, but in these rows.
    pub fn forget(&mut self, account: AccountId, rows: &BTreeSet<(Wallet, NodeId)>) {
        self.recalls.retain(|(of, unit, node), _| match unit {
            _ if *of != account => true,
            Unit::Wallet(wallet) => rows.contains(&(*wallet, *node)),
            Unit::Allowance => false,
        });
    }

    /// Recalls of surplus that are not answered.
    pub fn surplus_recalls(&self) -> usize {
        self.recalls.values().filter(|recall| recall.surplus && !recall.done).count()
    }

    /// A new look is needed at whether less than nothing is free in a wallet.
    pub fn check_wallet(&mut self, account: AccountId, wallet: Wallet) {
        self.check.insert((account, Unit::Wallet(wallet)));
    }

    /// A new look is needed at whether an account's shares are within its limit.
    pub fn check_allowance(&mut self, account: AccountId) {
        self.check.insert((account, Unit::Allowance));
    }
}

/// What of a unit is free, and what each node's row has of it.
struct View {
    free: Fen,
    rows: BTreeMap<NodeId, RowView>,
}

/// A row in its open epoch, of money or of allowance.
#[derive(Clone, Copy, Debug, Default)]
struct RowView {
    granted: Fen,
    out: Fen,
    stand_in: Fen,
    /// Of a closed account's row that was given up: what has come back in it since.
    residue: Fen,
}

impl Round<'_> {
    /// True while somebody waits for a unit of an account: nothing of it is handed out by habit meanwhile.
    pub(crate) fn asked(&self, account: AccountId, unit: Unit) -> bool {
        self.state.asks.get(&(account, unit)).is_some_and(|queue| !queue.asks.is_empty())
            || self.load_waits(account, unit)
    }

    /// A node asks. Its newest ask of a row replaces the one before. One that no node can mean, or that comes while too many
    /// of the node wait, is not answered.
    pub(crate) fn ask(&mut self, link: LinkId, node: NodeId, ask: Ask) {
        let waits = self.state.asks_of.entry(node).or_default();
        if !ask.want.is_positive() || ask.want > SUM_FEN_MAX || *waits >= ASKS_PER_NODE_MAX {
            tracing::debug!(node = node.0, waits, "an ask is left out");
            return;
        }
        *waits += 1;
        let deadline_ms = self.now.mono_ms.saturating_add(ask.ms_left.min(ASK_DEADLINE_MS_MAX));
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

    /// A node's session or epoch is over: nothing that it was called upon for will be answered. A round that waits for it
    /// starts again with who is there.
    pub(crate) fn forget_recalls(&mut self, node: NodeId) {
        self.state.debts.recalls.retain(|(_, _, called), _| *called != node);
        for queue in self.state.asks.values_mut() {
            if queue.round.as_ref().is_some_and(|round| round.answers.get(&node) == Some(&None)) {
                queue.round = None;
            }
        }
    }

    /// C4 and C5.
    pub(crate) fn serve_asks(&mut self) -> Result<(), StoreError> {
        let keys: Vec<(AccountId, Unit)> = self.state.asks.keys().copied().collect();
        for key in keys {
            self.drop_asks(key);
            while self.serve_one(key)? {}
            if !self.asked(key.0, key.1) {
                self.state.asks.remove(&key);
                self.state.hand_out.soon(key.0);
            }
        }
        self.state.asks_of.clear();
        for waiting in self.state.asks.values().flat_map(|queue| &queue.asks) {
            *self.state.asks_of.entry(waiting.node).or_default() += 1;
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

    fn view(&mut self, account: AccountId, unit: Unit) -> Result<View, StoreError> {
        let open: BTreeMap<NodeId, Epoch> =
            self.state.nodes.iter().map(|(id, node)| (*id, node.epoch)).collect();
        let is_open = |key: &(NodeId, Epoch)| open.get(&key.0) == Some(&key.1);
        Ok(match unit {
            Unit::Wallet(wallet) => {
                let holding = self.holding(account, wallet)?;
                let rows = holding.rows.iter().filter(|(key, _)| is_open(key));
                let view = |row: &money::RowState| RowView {
                    granted: row.granted,
                    out: row.out,
                    stand_in: row.si_out,
                    residue: row.residue,
                };
                let rows = rows.map(|(key, row)| (key.0, view(row))).collect();
                View { free: holding.wallet.free, rows }
            }
            Unit::Allowance => {
                let shares = money::shares(self.db, account)?;
                let limit = accounts::grant_terms(self.db, account)?.map(|terms| terms.1).unwrap_or_default();
                let free = self.allowance_free(account, &shares, limit)?;
                let rows = shares.iter().filter(|(key, _)| is_open(key));
                let row = |share: &money::ShareState| RowView {
                    granted: share.granted,
                    out: share.out,
                    stand_in: Fen::ZERO,
                    residue: Fen::ZERO,
                };
                View { free, rows: rows.map(|(key, share)| (key.0, row(share))).collect() }
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

    pub(crate) fn anchored_link(&self, node: NodeId) -> Option<LinkId> {
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
        if self.state.closures.has(account) {
            // A node that has not heard of the closing yet.
            let want = waiting.ask.want;
            let no = No { account, unit, want, r#final: true, free: Fen::ZERO, unheard_ms: 0 };
            self.outputs.push(Output::Send(waiting.link, Frame::No(no)));
            self.finish_ask(key, index);
            return Ok(true);
        }
        let View { free, rows } = self.view(account, unit)?;
        let granted = rows.get(&waiting.node).map(|row| row.granted).unwrap_or_default();
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
            && others().any(|(node, row)| row.out.is_positive() && self.anchored_link(*node).is_some());
        if again && waiting.rounds < ROUNDS_MAX {
            return self.start_round(key, index, need - free, &rows);
        }
        if waiting.ask.at > self.ingested_position(waiting.node) {
            // What the asker itself gave back may still be under way.
            return Ok(false);
        }
        // Allowance that a node was granted may be used up: there its answer says all.
        let settled = |node: &NodeId| matches!(unit, Unit::Allowance) && answered.contains(node);
        let r#final = others().all(|(node, row)| !row.out.is_positive() || settled(node));
        let unheard_ms = if r#final { 0 } else { self.unheard_ms(account, waiting.node)? };
        let (want, free) = (waiting.ask.want, free.or_zero());
        let no = No { account, unit, want, r#final, free, unheard_ms };
        self.outputs.push(Output::Send(waiting.link, Frame::No(no)));
        self.finish_ask(key, index);
        Ok(true)
    }

    /// How long nodes out of reach were not heard, each by its part of what the account usually spends elsewhere: what it
    /// may have spent there meanwhile is the asker's to reckon with.
    fn unheard_ms(&mut self, account: AccountId, asker: NodeId) -> Result<u64, StoreError> {
        let (habits, means) = self.habits(account)?;
        let nodes: Vec<NodeId> = self.state.nodes.keys().copied().collect();
        let (mut elsewhere, mut unheard) = (0_u128, 0_u128);
        for id in nodes.into_iter().filter(|id| *id != asker) {
            let Some(node) = self.state.nodes.get(&id).filter(|node| node.is_open() && node.spends()) else {
                continue;
            };
            let per_day = u128::from(habits.per_day(id, &means).get().unsigned_abs());
            elsewhere += per_day;
            if self.anchored_link(id).is_none() {
                let ms = u64::try_from(self.state.time.ms_since(node.heard)).unwrap_or(0);
                unheard += per_day * u128::from(ms);
            }
        }
        Ok(u64::try_from(unheard.checked_div(elsewhere).unwrap_or(0)).unwrap_or(u64::MAX))
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
        rows: &BTreeMap<NodeId, RowView>,
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

    /// Calls back all that connected nodes have of a unit of an account.
    pub(crate) fn recall_all(&mut self, account: AccountId, unit: Unit) -> Result<(), StoreError> {
        let rows = self.view(account, unit)?.rows;
        for (node, row) in rows.into_iter().filter(|(_, row)| row.out.is_positive()) {
            self.recall_surplus(account, unit, node, row.out)?;
        }
        Ok(())
    }

    /// Calls back what a node has too much of. What comes is free, and handed out where it is wanted.
    pub(crate) fn recall_surplus(
        &mut self,
        account: AccountId,
        unit: Unit,
        node: NodeId,
        amount: Fen,
    ) -> Result<(), StoreError> {
        let key = (account, unit, node);
        if self.state.debts.recalls.contains_key(&key) {
            return Ok(());
        }
        let Some(link) = self.anchored_link(node) else { return Ok(()) };
        let out = self.view(account, unit)?.rows.get(&node).map(|row| row.out).unwrap_or_default();
        self.send_recall(link, node, (account, unit), amount);
        let recall = DebtRecall { surplus: true, out, answered: None, done: false };
        self.state.debts.recalls.insert(key, recall);
        Ok(())
    }

    /// C6, and the same for a limit that was lowered and for a closed account: what is out is called back, without a deadline. Of a
    /// closed account once the node has heard of the closing: what it says then is its last word.
    pub(crate) fn recall_debts(&mut self) -> Result<(), StoreError> {
        let mut answered = Vec::new();
        let own: BTreeMap<NodeId, u64> =
            self.state.nodes.keys().map(|node| (*node, self.ingested_position(*node))).collect();
        for (key, recall) in &mut self.state.debts.recalls {
            if !recall.done && recall.answered.is_some_and(|at| own.get(&key.2).is_some_and(|end| at <= *end))
            {
                recall.done = true;
                answered.push((key.0, key.1));
                self.state.closures.look_at(key.0);
            }
        }
        let mut check = std::mem::take(&mut self.state.debts.check);
        check.extend(answered);
        check.extend(self.owing());
        for (account, unit) in check {
            let View { free, rows } = self.view(account, unit)?;
            let closed = self.state.closures.has(account) && matches!(unit, Unit::Wallet(_));
            if !free.is_negative() && !closed {
                let settled = |recall: &DebtRecall| !recall.surplus || recall.done;
                self.state
                    .debts
                    .recalls
                    .retain(|key, recall| (key.0, key.1) != (account, unit) || !settled(recall));
                continue;
            }
            for (node, RowView { out, stand_in, residue, .. }) in rows {
                let out = if closed { out + residue } else { out };
                let key = (account, unit, node);
                let known = self.state.debts.recalls.get(&key);
                // One that answered without giving anything has nothing: asking again changes nothing.
                let answered = known.is_some_and(|recall| recall.done);
                let there = out.is_positive() || (closed && stand_in.is_positive() && !answered);
                if !there || known.is_some_and(|recall| !recall.done || recall.out == out) {
                    continue;
                }
                if closed && !self.knows_closing(account, node) {
                    continue;
                }
                if let Some(link) = self.anchored_link(node) {
                    self.send_recall(link, node, (account, unit), if closed { out } else { -free });
                    self.state
                        .debts
                        .recalls
                        .insert(key, DebtRecall { surplus: false, out, answered: None, done: false });
                }
            }
        }
        Ok(())
    }

    /// When the next ask is too late or what was gathered must be posted; at once where handing out or sending goes on.
    pub(crate) fn plan_timer(&mut self) {
        let asks = self.state.asks.values().flat_map(|queue| &queue.asks).map(|waiting| waiting.deadline_ms);
        let going_on = self.state.hand_out.waiting() > 0
            || self.state.sweep.goes_on()
            || self.more_to_send
            || self.snapshots_wait()
            || (self.state.closures.wait() && !self.is_recovering())
            || self.replays();
        let at_once = going_on.then_some(self.now.mono_ms);
        let loads = self.state.purse_loads.iter().map(WaitingLoad::deadline_ms);
        self.state.next_timer = asks.chain(loads).chain(at_once).chain(self.state.gathered.due_ms()).min();
    }
}
