//! Closing an account (注销): no tap from now on, what is out comes home, and what the account has is paid out.
//!
//! The document is closed at once and for ever, so every building that hears of it declines; nothing of the account is
//! handed out any more, and all right is recalled. Once nothing is out that could still be spent, what is free is paid out. A
//! building that cannot be reached is waited for until the campus's term (`policy.claim_term_minutes`) is over; then its rows
//! of this account are given up: they come home here, and what the building tells of them later is judged like entries of a
//! closed epoch. What comes back later still, such as a reversal, is paid out likewise; in a row that was given up, once the building
//! has released it: until it has heard of the closing it may spend that again.
//!
//! **Stand-in** is not released. It counts as gone once the building has the closing on its disk and has answered a recall
//! that was sent after that: its log up to there is ingested, and it approves nothing any more.

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::account::{AccountError, Intent};
use feiqian_protocol::campus::Mode;
use feiqian_protocol::entry::{Actor, ActorKind, CloseOrdered, EntryRef, Payout, Proof};
use feiqian_protocol::ids::{AccountId, CardNumber, Epoch, InstitutionId, Key, LogId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::io::Reply;
use crate::ledger::{channel_ledger, is_own_channel, wallet_ledger};
use crate::store::closures::{self, Closure, GivenUp};

/// Closed accounts that one step looks at: each reads both wallets with their rows.
const CLOSURES_PER_STEP: usize = 64;

/// What of closed accounts is kept in memory: a hundred bytes for each that was ever closed.
#[derive(Debug, Default)]
pub(crate) struct Closures {
    orders: BTreeMap<AccountId, Closure>,
    /// Those that are to be looked at.
    due: BTreeSet<AccountId>,
    given_up: BTreeSet<(AccountId, Wallet, NodeId, Epoch)>,
}

impl Closures {
    pub(crate) fn load(db: &Connection, institution: InstitutionId) -> Result<Self, StoreError> {
        let orders = closures::all(db, institution)?;
        let due = orders.keys().copied().collect();
        let rows = closures::given_up(db)?.into_iter();
        let given_up = rows.map(|row| (row.account, row.wallet, row.node, row.epoch));
        Ok(Self { orders, due, given_up: given_up.collect() })
    }

    /// True for an account that is closed: nothing of it is handed out.
    pub(crate) fn has(&self, account: AccountId) -> bool {
        self.orders.contains_key(&account)
    }

    /// When an account was closed; `None` for one that is not.
    pub(crate) fn ordered(&self, account: AccountId) -> Option<Timestamp> {
        self.orders.get(&account).map(|closure| closure.ordered)
    }

    /// True where the row of an account at a node was given up.
    pub(crate) fn is_given_up(&self, account: AccountId, wallet: Wallet, node: NodeId, epoch: Epoch) -> bool {
        self.given_up.contains(&(account, wallet, node, epoch))
    }

    /// A new look is needed at an account, where it is a closed one.
    pub(crate) fn look_at(&mut self, account: AccountId) {
        if self.has(account) {
            self.due.insert(account);
        }
    }

    /// The same of all that are not paid out yet: a day has begun, and a term may be over.
    pub(crate) fn look_at_all(&mut self) {
        let open = self.orders.iter().filter(|(_, closure)| !closure.settled);
        self.due.extend(open.map(|(account, _)| *account));
    }

    /// True where a next step has some to look at.
    pub(crate) fn wait(&self) -> bool {
        !self.due.is_empty()
    }
}

impl Round<'_> {
    /// Closes an account, and has it paid out as its money comes home.
    pub(crate) fn close_account(
        &mut self,
        card: &CardNumber,
        channel: Key,
        subsidy_channel: Key,
        operator: Key,
    ) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let Some(settings) = self.settings(account)? else {
            return Ok(refused("account", "the account has no document"));
        };
        if let Some(own) =
            [&channel, &subsidy_channel].into_iter().find(|channel| is_own_channel(channel.as_str()))
        {
            return Ok(refused("channel", format!("{own} is no channel that pays out")));
        }
        if self.state.closures.has(account) {
            return Ok(refused(AccountError::Closed.code(), "the account is closed already"));
        }
        let owed = self.owed(account)?;
        if owed.is_positive() {
            let message = format!("the account owes {owed} yuan; top it up by that first");
            return Ok(refused("owes", message));
        }
        if !settings.closed
            && let Err(error) = self.settle(account, Intent::Close, operator.clone())?
        {
            return Ok(Err(error));
        }
        let actor = Actor { kind: ActorKind::Operator, id: operator, proof: Proof::Login };
        let ordered = CloseOrdered { account, channel, subsidy_channel };
        let log = self.state.shard(account);
        let position = self.append(log, actor, ordered.clone())?;
        self.keep_closure(EntryRef { log, position }, self.state.time, &ordered)?;
        self.account(card)
    }

    /// What an account owes, over its wallets.
    fn owed(&mut self, account: AccountId) -> Result<Fen, StoreError> {
        let mut owed = Fen::ZERO;
        for wallet in Wallet::SPENDING_ORDER {
            let state = self.holding(account, wallet)?.wallet;
            owed += state.claims.max(-state.funds).or_zero();
        }
        Ok(owed)
    }

    /// Keeps what an order says.
    pub(crate) fn keep_closure(
        &mut self,
        at: EntryRef,
        time: Timestamp,
        ordered: &CloseOrdered,
    ) -> Result<(), StoreError> {
        let closure = Closure {
            at,
            ordered: time,
            channel: ordered.channel.clone(),
            subsidy_channel: ordered.subsidy_channel.clone(),
            settled: false,
        };
        closures::put(self.db, ordered.account, &closure)?;
        // What was answered before says nothing about what was approved since.
        self.state.debts.forget(ordered.account, &BTreeSet::new());
        self.state.closures.orders.insert(ordered.account, closure);
        self.state.closures.due.insert(ordered.account);
        Ok(())
    }

    /// A node has an account stream up to here on its disk: what of closings it has heard by that.
    pub(crate) fn note_closings_known(&mut self, log: LogId, before: u64, position: u64) {
        let heard = self.state.closures.orders.iter().filter(|(_, closure)| {
            closure.at.log == log && before < closure.at.position && closure.at.position <= position
        });
        let heard: Vec<AccountId> = heard.map(|(account, _)| *account).collect();
        self.state.closures.due.extend(heard);
    }

    /// Closed accounts that this step looks at. What is out of them is called back.
    pub(crate) fn recall_closed(&mut self) -> Result<Vec<AccountId>, StoreError> {
        if self.state.closures.orders.is_empty() {
            return Ok(Vec::new());
        }
        for (account, _) in self.held_wallets() {
            self.state.closures.look_at(account);
        }
        let mut looked_at = Vec::new();
        while looked_at.len() < CLOSURES_PER_STEP
            && let Some(account) = self.state.closures.due.pop_first()
        {
            if self.is_term_over(account) {
                self.give_up_rows(account)?;
            }
            for wallet in Wallet::SPENDING_ORDER {
                self.state.debts.check_wallet(account, wallet);
            }
            looked_at.push(account);
        }
        Ok(looked_at)
    }

    /// Pays them out, as far as nothing of them is out any more.
    pub(crate) fn pay_closed_out(&mut self, accounts: Vec<AccountId>) -> Result<(), StoreError> {
        for account in accounts {
            let Some(closure) = self.state.closures.orders.get(&account).cloned() else { continue };
            if !self.is_home(account)? {
                continue;
            }
            let (mut rest, mut comes_back) = (Fen::ZERO, BTreeSet::new());
            for wallet in Wallet::SPENDING_ORDER {
                let amount = self.holding(account, wallet)?.wallet.free;
                if amount.is_positive() {
                    let channel = match wallet {
                        Wallet::Cash => closure.channel.clone(),
                        Wallet::Subsidy => closure.subsidy_channel.clone(),
                    };
                    self.pay_out(Payout { account, wallet, amount, channel })?;
                }
                let holding = self.holding(account, wallet)?;
                rest += holding.wallet.funds.max(-holding.wallet.funds);
                let rows = holding.rows.iter().filter(|(_, row)| row.residue.is_positive());
                comes_back.extend(rows.map(|(key, _)| (wallet, key.0)));
            }
            if let Some(closure) = self.state.closures.orders.get_mut(&account) {
                closure.settled = rest == Fen::ZERO;
            }
            self.state.debts.forget(account, &comes_back);
        }
        Ok(())
    }

    fn pay_out(&mut self, payout: Payout) -> Result<(), StoreError> {
        let log = self.state.shard(payout.account);
        let position = self.append(log, Actor::centre(), payout.clone())?;
        self.book_payout(EntryRef { log, position }, self.state.time, &payout)
    }

    /// What a payout does to the books.
    pub(crate) fn book_payout(
        &mut self,
        at: EntryRef,
        time: Timestamp,
        payout: &Payout,
    ) -> Result<(), StoreError> {
        let (account, wallet, amount) = (payout.account, payout.wallet, payout.amount);
        let own_day = self.state.calendar().day(time);
        let to = channel_ledger(payout.channel.as_str());
        self.post(at, own_day, amount, wallet_ledger(account, wallet), to)?;
        self.move_funds(at, time, (account, wallet), -amount)?;
        closures::add_paid(self.db, account, wallet, amount)
    }

    fn is_term_over(&self, account: AccountId) -> bool {
        self.state
            .closures
            .orders
            .get(&account)
            .is_some_and(|closure| self.state.time >= self.term_end(closure))
    }

    fn term_end(&self, closure: &Closure) -> Timestamp {
        closure.ordered.plus_ms(i64::from(self.state.policy().claim_term_minutes) * 60_000)
    }

    /// Whether a node has the closing on its disk, by its own word since the centre was started.
    pub(crate) fn knows_closing(&self, account: AccountId, node: NodeId) -> bool {
        let closure = self.state.closures.orders.get(&account);
        closure.is_some_and(|closure| self.state.known_position(node, closure.at.log) >= closure.at.position)
    }

    /// True where nothing of an account is out that could still be spent.
    fn is_home(&mut self, account: AccountId) -> Result<bool, StoreError> {
        let term_over = self.is_term_over(account);
        if self.state.mode() == Mode::Optimistic && !term_over {
            // There anybody may stand in who has not heard.
            let sellers = self.state.nodes.iter().filter(|(_, node)| node.holds() && node.spends());
            let sellers: Vec<NodeId> = sellers.map(|(id, _)| *id).collect();
            if !sellers.into_iter().all(|node| self.knows_closing(account, node)) {
                return Ok(false);
            }
        }
        for wallet in Wallet::SPENDING_ORDER {
            let rows: Vec<_> =
                self.holding(account, wallet)?.rows.iter().map(|(key, row)| (*key, *row)).collect();
            for ((node, _), row) in rows {
                let may_stand_in = row.si_out.is_positive()
                    && !(self.knows_closing(account, node)
                        && self.state.debts.is_answered(account, wallet, node));
                if row.out.is_positive() || may_stand_in {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The term is over: what is out at nodes that are still not in session comes home without their word.
    fn give_up_rows(&mut self, account: AccountId) -> Result<(), StoreError> {
        for wallet in Wallet::SPENDING_ORDER {
            let rows: Vec<_> =
                self.holding(account, wallet)?.rows.iter().map(|(key, row)| (*key, *row)).collect();
            for ((node, epoch), row) in rows {
                let holds = row.out.is_positive() || row.si_out.is_positive();
                // What a voucher holds returns by its own rule: it may still be spent where nobody has heard of the closing.
                if !holds || node == NodeId::CENTRE || self.anchored_link(node).is_some() {
                    continue;
                }
                let given_up = GivenUp { account, wallet, node, epoch, out: row.out, si_out: row.si_out };
                closures::put_given_up(self.db, &given_up)?;
                self.state.closures.given_up.insert((account, wallet, node, epoch));
                let holding = self.holding(account, wallet)?;
                holding.wallet.free += row.out;
                if let Some(row) = holding.rows.get_mut(&(node, epoch)) {
                    row.out = Fen::ZERO;
                    row.si_out = Fen::ZERO;
                }
                tracing::warn!(%account, node = node.0, "a closed account is paid out without word of a building");
            }
        }
        Ok(())
    }

    /// How a closing stands; null where the account is not closed.
    pub(crate) fn closing_view(&mut self, account: AccountId) -> Result<Value, StoreError> {
        let Some(closure) = self.state.closures.orders.get(&account).cloned() else { return Ok(Value::Null) };
        let (mut out, mut owed) = (BTreeMap::<NodeId, (Fen, Fen)>::new(), Fen::ZERO);
        let mut held = Fen::ZERO;
        for wallet in Wallet::SPENDING_ORDER {
            let holding = self.holding(account, wallet)?;
            held += holding.wallet.funds.or_zero();
            owed += (-holding.wallet.funds).or_zero();
            for ((node, _), row) in &holding.rows {
                if row.out.is_positive() || row.si_out.is_positive() {
                    let sum = out.entry(*node).or_default();
                    *sum = (sum.0 + row.out, sum.1 + row.si_out);
                }
            }
        }
        let settled =
            held == Fen::ZERO && owed == Fen::ZERO && !out.values().any(|(right, _)| right.is_positive());
        let waits_for: Vec<Value> = out
            .into_iter()
            .filter(|_| !settled)
            .filter_map(|(id, (right, stand_in))| {
                let node = self.state.nodes.get(&id)?;
                Some(json!({
                    "node": node.display_name(),
                    "right_fen": right,
                    "stand_in_fen": stand_in,
                    "knows": self.knows_closing(account, id),
                    "heard": node.heard,
                }))
            })
            .collect();
        let (cash, subsidy) = closures::paid(self.db, account)?;
        let given_up: Fen = closures::given_up_of(self.db, account)?.iter().map(|row| row.out).sum();
        Ok(json!({
            "state": if settled { "paid_out" } else if owed.is_positive() { "owes" } else { "closing" },
            "ordered": closure.ordered,
            "waits_until": self.term_end(&closure),
            "waits_for": waits_for,
            "held_fen": held,
            "owed_fen": owed,
            "channel": closure.channel,
            "paid_fen": cash,
            "subsidy_channel": closure.subsidy_channel,
            "subsidy_paid_fen": subsidy,
            "given_up_fen": given_up,
        }))
    }
}
