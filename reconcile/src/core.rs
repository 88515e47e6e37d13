//! The centre as a state machine: what waits is taken together, one transaction commits it, then the outputs are released.
//!
//! A step handles its inputs in order, then closes the books over all of them: posted batches, overspend and recovery,
//! asks, recalls and grants, signed heads, COMMIT. Every input is checked whole before anything of it is written, so one
//! that is refused leaves no trace and never undoes another. An error of the store ends the step and the core.
//!
//! What matters is in SQLite ([`crate::store`]). Links, asks, recalls under way and the list of accounts to look at are
//! volatile: nodes ask again in a new session, and a new session looks at every account again.

mod gathered;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::chain::LogWriter;
use feiqian_protocol::entry::{Actor, Body, Refund};
use feiqian_protocol::ids::{AccountId, Epoch, LogId, NodeId, Unit, Wallet};
use feiqian_protocol::limits::SHARDS;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::BusinessDay;
use rusqlite::{Connection, DropBehavior, TransactionBehavior};

pub(crate) use self::gathered::Gathered;
pub(crate) use self::state::State;
use crate::io::{Command, CommandError, Identity, Input, LinkId, Now, Output, Reply, Ticket};
use crate::purse::Purses;
pub use crate::store::StoreError;
use crate::store::logs::{self, LogState};
use crate::store::money::{self, Rows, WalletState};
use crate::store::nodes;
use crate::store::{habits, meta_text, prepare, put_meta};

/// The centre.
pub struct ReconcileCore {
    connection: Connection,
    state: State,
}

/// Whom an input wants answered.
const fn ticket_of(input: &Input) -> Option<Ticket> {
    match input {
        Input::Command(ticket, _) => Some(*ticket),
        _ => None,
    }
}

/// What a command is told while nothing may be written.
fn recovering() -> Reply {
    let message = "the centre has come back from an old copy and is taking back what the buildings hold; see its status, and \
                   say this again once that is done";
    Err(CommandError { code: "recovering", message: message.to_owned() })
}

impl ReconcileCore {
    /// Opens the centre's database, creating its schema where it is empty.
    ///
    /// # Errors
    /// [`StoreError`] where the database is not the centre's or not readable.
    pub fn open(connection: Connection, identity: Identity) -> Result<Self, StoreError> {
        prepare(&connection, identity.institution)?;
        let state = State::load(&connection, identity)?;
        Ok(Self { connection, state })
    }

    /// Begins an account's document anew after so many changes, instead of [`DOCUMENT_CHANGES_MAX`]: for whoever looks at what
    /// that does to the others. Holds until this is opened again.
    pub const fn renew_documents_after(&mut self, changes: u64) {
        self.state.document_changes_max = changes;
    }

    /// Handles inputs in one transaction. What is pushed to `outputs` must be released only where this returns `Ok`; on
    /// an error the core is to be dropped and opened again.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the step happened then.
    pub fn step(
        &mut self,
        now: Now,
        inputs: Vec<Input>,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let tickets: Vec<Ticket> = inputs.iter().filter_map(ticket_of).collect();
        match self.run(now, inputs) {
            Ok(released) => {
                outputs.extend(released);
                Ok(())
            }
            Err(StoreError::OldCopy(why)) => {
                tracing::error!(%why, "this is an old copy of the centre: it takes back what the nodes hold");
                let links: Vec<LinkId> = self.state.links.keys().copied().collect();
                self.restored()?;
                let reason = "the centre has come back from an old copy, and takes back what it lacks";
                outputs.extend(links.into_iter().map(|link| Output::CloseLink(link, reason.to_owned())));
                outputs.extend(tickets.into_iter().map(|ticket| Output::Reply(ticket, recovering())));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn run(&mut self, now: Now, inputs: Vec<Input>) -> Result<Vec<Output>, StoreError> {
        if planted(Canary::AckBeforeCommit) && !self.connection.is_autocommit() {
            self.connection.execute_batch("COMMIT")?;
        }
        let mut transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut round = Round::begin(&transaction, &mut self.state, now)?;
        for input in inputs {
            round.handle(input)?;
        }
        let released = round.finish()?;
        if planted(Canary::AckBeforeCommit) {
            transaction.set_drop_behavior(DropBehavior::Ignore);
            return Ok(released);
        }
        transaction.commit()?;
        Ok(released)
    }

    /// Says that the database is an old copy: before anything is written into any stream, what the nodes hold of them is
    /// taken back. Only right after opening; once said it holds until all is back, through restarts too.
    ///
    /// # Errors
    /// [`StoreError`] where that cannot be noted.
    pub fn restored(&mut self) -> Result<(), StoreError> {
        crate::recovery::begin(&self.connection)?;
        let purses = self.state.purses.take();
        self.state = State::load(&self.connection, self.state.identity.clone())?;
        self.state.purses = purses;
        Ok(())
    }

    /// Makes this centre one that loads cards and believes what they paid. Right after opening.
    pub fn serve_purses(&mut self, purses: Arc<Purses>) {
        self.state.purses = Some(purses);
    }

    /// Which file this database was when the centre last ran on it; `None` before it first ran.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn home(&self) -> Result<Option<String>, StoreError> {
        meta_text(&self.connection, "home")
    }

    /// Notes which file it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_home(&mut self, home: &str) -> Result<(), StoreError> {
        put_meta(&self.connection, "home", home)
    }

    /// When an [`Input::Timer`] is due, in `mono_ms`.
    pub fn next_timer(&self) -> Option<u64> {
        self.state.next_timer
    }

    /// The database, for reading: tests look at the tables through it.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// A wallet and its rows as this step sees them, and as they are on disk.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    pub wallet: WalletState,
    pub rows: Rows,
    stored_wallet: Option<WalletState>,
    stored_rows: Rows,
}

impl Holding {
    /// True where the wallet is in the database: its account was opened.
    pub const fn is_stored(&self) -> bool {
        self.stored_wallet.is_some()
    }

    /// I1: what the account has is with the centre, with nodes, or left in closed rows.
    fn is_partitioned(&self) -> bool {
        let held: Fen = self.rows.values().map(|row| row.out + row.residue).sum();
        self.wallet.funds == self.wallet.free + held
    }
}

/// One step under way.
pub(crate) struct Round<'a> {
    pub db: &'a Connection,
    pub state: &'a mut State,
    pub now: Now,
    pub outputs: Vec<Output>,
    holdings: BTreeMap<(AccountId, Wallet), Holding>,
    pub ledger: BTreeMap<String, Fen>,
    /// Purchases and fen of this step's debits, by node and day.
    pub turnover: BTreeMap<(NodeId, BusinessDay), (i64, i64)>,
    /// Wallets whose balance node entries of this step have moved.
    moved: BTreeSet<(AccountId, Wallet)>,
    /// Entries of nodes that this step took.
    pub taken: usize,
    /// True where the step has something that somebody waits for.
    pub urgent: bool,
    /// True where the time has come that was asked for.
    pub timer: bool,
    /// True where accounts were waiting for what they have free to be handed out when the step began.
    pub queued: bool,
    /// True while what is appended is what somebody waits for: it overtakes what is sent in bulk.
    pub fresh: bool,
    /// Refunds to be written once their debits are posted.
    pub refunds: Vec<Refund>,
    /// Wallets whose cases are to be resolved.
    pub resolve: BTreeSet<(AccountId, Wallet)>,
    /// Acknowledgements to send: up to where entries came on the link.
    pub acks: BTreeMap<(LinkId, LogId), u64>,
    pub touched_nodes: BTreeSet<NodeId>,
    pub touched_logs: BTreeSet<LogId>,
    unsigned: BTreeSet<LogId>,
    statuses: Vec<Ticket>,
    /// True where links have room for more than this step has read for them.
    pub more_to_send: bool,
}

impl<'a> Round<'a> {
    fn begin(db: &'a Connection, state: &'a mut State, now: Now) -> Result<Self, StoreError> {
        state.time = state.time.max(now.wall);
        state.next_timer = None;
        let queued = state.hand_out.waiting() > 0;
        let mut round = Self {
            db,
            state,
            now,
            outputs: Vec::new(),
            holdings: BTreeMap::new(),
            ledger: BTreeMap::new(),
            turnover: BTreeMap::new(),
            moved: BTreeSet::new(),
            taken: 0,
            urgent: false,
            timer: false,
            queued,
            fresh: false,
            refunds: Vec::new(),
            resolve: BTreeSet::new(),
            acks: BTreeMap::new(),
            touched_nodes: BTreeSet::new(),
            touched_logs: BTreeSet::new(),
            unsigned: BTreeSet::new(),
            statuses: Vec::new(),
            more_to_send: false,
        };
        round.open_day()?;
        if !round.is_recovering() {
            for log in std::mem::take(&mut round.state.resume) {
                round.resume_posting(log)?;
            }
        }
        Ok(round)
    }

    fn open_day(&mut self) -> Result<(), StoreError> {
        let today = self.state.calendar().day(self.state.time);
        if today > self.state.day {
            self.state.day = today;
            self.state.means = None;
            self.state.sweep.start(true);
            self.state.closures.look_at_all();
            let institution = self.state.identity.institution;
            self.state.upkeep.extend((0..SHARDS).map(|shard| LogId::shard(institution, shard)));
            put_meta(self.db, "day", today.0)?;
        }
        Ok(())
    }

    fn handle(&mut self, input: Input) -> Result<(), StoreError> {
        match input {
            Input::LinkUp { link, node, incarnation, expired } => {
                self.link_up(link, node, incarnation, expired);
            }
            Input::LinkDown(link) => {
                self.note_acks_of(link)?;
                self.link_down(link);
            }
            Input::Frame(link, frame) => {
                self.urgent |= frame.is_waited_for();
                self.handle_frame(link, frame)?;
            }
            // A status speaks of everything that this step does, so it is taken last.
            Input::Command(ticket, Command::Status {}) => self.statuses.push(ticket),
            Input::Command(ticket, command) => {
                self.urgent = true;
                self.fresh = !matches!(command, Command::ImportAccounts { .. });
                let reply = match command {
                    Command::Retire { node, force } if self.is_recovering() => self.give_up(&node, force)?,
                    // Whatever it would write might be another continuation of what some node holds.
                    _ if self.is_recovering() => recovering(),
                    command => self.handle_command(command)?,
                };
                self.fresh = false;
                self.outputs.push(Output::Reply(ticket, reply));
            }
            Input::Timer => self.timer = true,
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Output>, StoreError> {
        self.recover()?;
        for ((node, day), (purchases, fen)) in std::mem::take(&mut self.turnover) {
            habits::add_turnover(self.db, node, day, purchases, fen)?;
        }
        self.post_gathered()?;
        self.write_refunds()?;
        if !self.is_recovering() {
            self.resolve_cases()?;
            self.open_claims()?;
            self.return_holds()?;
            self.fresh = true;
            self.serve_asks()?;
            self.serve_loads()?;
            self.fresh = false;
            let closed = self.recall_closed()?;
            self.recall_debts()?;
            self.pay_closed_out(closed)?;
            self.hand_out()?;
            self.send_pins()?;
        }
        self.flush()?;
        for log in std::mem::take(&mut self.unsigned) {
            self.sign(log)?;
        }
        let mut grown = Vec::new();
        for log in std::mem::take(&mut self.touched_logs) {
            if let Some(state) = self.state.logs.get(&log) {
                logs::put(self.db, log, state)?;
                grown.push((log, state.cursor.position));
            }
        }
        for id in std::mem::take(&mut self.touched_nodes) {
            if let Some(node) = self.state.nodes.get(&id) {
                nodes::put(self.db, id, node)?;
            }
        }
        self.send_acks()?;
        self.send_entries(&grown)?;
        if !self.is_recovering() {
            self.send_snapshots()?;
        }
        self.plan_timer();
        for ticket in std::mem::take(&mut self.statuses) {
            let reply = self.status()?;
            self.outputs.push(Output::Reply(ticket, reply));
        }
        Ok(self.outputs)
    }

    /// Appends an entry to one of the centre's streams; returns its position.
    pub fn append(&mut self, log: LogId, actor: Actor, body: impl Into<Body>) -> Result<u64, StoreError> {
        let (time, campus) = (self.state.time, self.state.campus_id());
        let state = self.state.logs.entry(log).or_insert(LogState::EMPTY);
        let writer =
            self.state.writers.entry(log).or_insert_with(|| LogWriter::new(log, state.cursor, state.clock));
        let body = body.into();
        let appended = writer.append(time, campus, actor, body);
        let head_due = writer.head_due();
        logs::insert_entry(
            self.db,
            log,
            &appended.cursor,
            appended.entry.body.kind(),
            time,
            &appended.record,
        )?;
        state.cursor = appended.cursor;
        state.clock = appended.clock;
        state.order_key = time;
        state.posted = appended.cursor.position;
        self.touched_logs.insert(log);
        self.unsigned.insert(log);
        if self.fresh {
            self.state.waited_for.insert(log, appended.cursor.position);
        }
        if head_due {
            self.sign(log)?;
        }
        Ok(appended.cursor.position)
    }

    fn sign(&mut self, log: LogId) -> Result<(), StoreError> {
        let time = self.state.time;
        let Some(writer) = self.state.writers.get_mut(&log) else { return Ok(()) };
        if let Some(signed) = writer.sign_head(0, time, &self.state.identity.log_key) {
            logs::insert_head(self.db, log, &signed)?;
            if let Some(state) = self.state.logs.get_mut(&log) {
                state.anchor = time;
            }
        }
        Ok(())
    }

    /// A wallet and its rows. Written back at the end of the step.
    pub fn holding(&mut self, account: AccountId, wallet: Wallet) -> Result<&mut Holding, StoreError> {
        match self.holdings.entry((account, wallet)) {
            std::collections::btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let institution = self.state.identity.institution;
                let stored_wallet = money::wallet(self.db, institution, account, wallet)?;
                let stored_rows = money::rows(self.db, account, wallet)?;
                Ok(entry.insert(Holding {
                    wallet: stored_wallet.unwrap_or_default(),
                    rows: stored_rows.clone(),
                    stored_wallet,
                    stored_rows,
                }))
            }
        }
    }

    /// Makes a wallet that only batches tell of: whoever ever had a delta has one.
    pub fn ensure_wallet(&mut self, account: AccountId, wallet: Wallet) -> Result<(), StoreError> {
        let holding = self.holding(account, wallet)?;
        if holding.stored_wallet.is_none() {
            holding.stored_wallet = Some(WalletState::default());
            money::put_wallet(self.db, account, wallet, &WalletState::default())?;
        }
        Ok(())
    }

    /// Wallets that this step has looked at.
    pub fn held_wallets(&self) -> Vec<(AccountId, Wallet)> {
        self.holdings.keys().copied().collect()
    }

    /// Wallets of this step with less than nothing free.
    pub fn owing(&self) -> Vec<(AccountId, Unit)> {
        let owing = self.holdings.iter().filter(|(_, holding)| holding.wallet.free.is_negative());
        owing.map(|((account, wallet), _)| (*account, Unit::Wallet(*wallet))).collect()
    }

    /// Writes the wallets and rows of this step back, and keeps the sums of the nodes.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        for ((account, wallet), holding) in &mut self.holdings {
            let changed = holding.stored_wallet != Some(holding.wallet);
            if (!changed || (holding.stored_wallet.is_none() && holding.wallet == WalletState::default()))
                && holding.rows == holding.stored_rows
                && !self.moved.contains(&(*account, *wallet))
            {
                continue;
            }
            if !holding.is_partitioned() {
                return Err(StoreError::Invariant(format!(
                    "account {account}, {wallet}: funds are not what is free, out and residue"
                )));
            }
            money::put_wallet(self.db, *account, *wallet, &holding.wallet)?;
            holding.stored_wallet = Some(holding.wallet);
            for (key, row) in &holding.rows {
                let before = holding.stored_rows.get(key).copied();
                if before == Some(*row) {
                    continue;
                }
                if key.0 == NodeId::CENTRE && row.out == Fen::ZERO {
                    // There is one for each voucher, and what came of it stands elsewhere.
                    money::drop_held(self.db, *account, *wallet, *key)?;
                } else {
                    money::put_row(self.db, *account, *wallet, *key, row)?;
                }
                let before = before.unwrap_or_default();
                if let Some(node) = self.state.nodes.get_mut(&key.0) {
                    node.out += row.out - before.out;
                    node.si_out += row.si_out - before.si_out;
                    self.touched_nodes.insert(key.0);
                }
                holding.stored_rows.insert(*key, *row);
            }
        }
        for (ledger, amount) in std::mem::take(&mut self.ledger) {
            money::add_ledger(self.db, &ledger, amount)?;
        }
        Ok(())
    }

    /// Notes that an entry breaks a rule. What a terminal was told stands all the same.
    pub fn fault(&mut self, log: LogId, position: u64, what: &str) -> Result<(), StoreError> {
        tracing::warn!(%log, position, what, "an entry breaks a rule");
        logs::insert_fault(self.db, log, position, what)
    }

    /// The node's open epoch.
    pub fn epoch(&self, node: NodeId) -> Epoch {
        self.state.nodes.get(&node).map_or(Epoch::FIRST, |node| node.epoch)
    }

    /// Positions of the account streams.
    pub fn shard_positions(&self) -> Vec<u64> {
        let institution = self.state.identity.institution;
        (0..SHARDS).map(|shard| self.state.log(LogId::shard(institution, shard)).cursor.position).collect()
    }
}

#[cfg(test)]
mod tests;
