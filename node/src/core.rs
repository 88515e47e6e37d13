//! The state machine of a building: one step takes all inputs that wait, in one transaction.
//!
//! What must survive is in the database; [`State`] mirrors the small part of it that every input needs, so that taking an
//! input back means restoring a copy. Everything else here is volatile: the session, waiting taps, waiting recalls.

mod attempt;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use feiqian_protocol::account::{Document, actor_id};
use feiqian_protocol::campus::{CampusConfig, Terminal};
use feiqian_protocol::chain::{Cursor, LogWriter};
use feiqian_protocol::entry::{Actor, Body};
use feiqian_protocol::frame::{Frame, Recall};
use feiqian_protocol::ids::{AccountId, CardNumber, LogId, NodeId, TerminalId, Unit};
use feiqian_protocol::limits::SHARDS;
use feiqian_protocol::rights::business_day_to_open;
use feiqian_protocol::session::Sender;
use feiqian_protocol::tap::{BalanceView, DeclineReason};
use feiqian_protocol::time::{BusinessCalendar, BusinessDay, Hlc};
use rusqlite::Connection;

use crate::code::CentreClock;
use crate::core::attempt::Guard;
use crate::edge::naming::Naming;
use crate::edge::{Queues, UnknownCards};
use crate::io::{Identity, Input, Now, Output, Presented, Settings, Status};
use crate::purse::PurseWaits;
use crate::replication::{Link, Marked};
use crate::store::accounts::Totals;
use crate::store::{Saved, Store, StoreError};

/// A building's decisions, log, rights and session over one database.
pub struct NodeCore {
    pub(crate) store: Store,
    pub(crate) identity: Identity,
    pub(crate) settings: Settings,
    pub(crate) state: State,
    pub(crate) campus: Option<Arc<Campus>>,
    /// Cards told lost ahead of their entries.
    pub(crate) losses: BTreeMap<CardNumber, Vec<AccountId>>,
    /// Short numbers of terminals, as far as they were needed.
    pub(crate) terminals: BTreeMap<TerminalId, i64>,
    pub(crate) link: Link,
    pub(crate) sender: Sender,
    /// Taps that wait for the centre.
    pub(crate) queues: Queues,
    /// Loads of cards that wait for it.
    pub(crate) purses: PurseWaits,
    pub(crate) naming: Naming,
    /// Recalls that wait for the stream before them.
    pub(crate) recalls: BTreeMap<(AccountId, Unit), Recall>,
    /// Entries and snapshots that came before the Hello: they travel in another lane.
    pub(crate) early: Vec<Frame>,
    /// True where the link has room for more of the log than the last step has read.
    pub(crate) more_to_send: bool,
    /// What is to be acknowledged at the end of the step.
    pub(crate) acks: BTreeSet<LogId>,
    /// Logs with an entry that this build cannot apply: they stand still until it is updated.
    pub(crate) blocked: BTreeSet<LogId>,
    /// What keeps this database from being written, as found when it was opened. It is only uploaded then.
    pub(crate) damage: Option<String>,
    /// Declines of unknown cards, which are written only so often.
    pub(crate) unknown_cards: UnknownCards,
    /// The last mark.
    pub(crate) marked: Marked,
    /// What is taken back where one input fails by itself.
    guard: Guard,
}

/// What a step changes and a rollback restores.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) saved: Saved,
    pub(crate) writer: LogWriter,
    /// The end of the centre's stream for this node: what is applied.
    pub(crate) to_node: Cursor,
    /// The ends of the account streams.
    pub(crate) shards: [Cursor; SHARDS as usize],
    pub(crate) totals: Totals,
    /// The running clock at which `saved.elapsed_ms` was right.
    pub(crate) elapsed_at: u64,
    /// What is known of the centre's time since the core was opened.
    pub(crate) centre_clock: CentreClock,
    /// True where `saved` must be written with this commit.
    pub(crate) dirty: bool,
}

/// The campus configuration, by what taps look up.
pub(crate) struct Campus {
    pub(crate) version: u32,
    pub(crate) config: CampusConfig,
    pub(crate) terminals: BTreeMap<TerminalId, Terminal>,
}

impl Campus {
    pub(crate) fn new(version: u32, config: CampusConfig, identity: &Identity) -> Self {
        let terminals = config
            .building(&identity.name)
            .map(|building| &building.terminals[..])
            .unwrap_or_default()
            .iter()
            .map(|terminal| (terminal.id.clone(), terminal.clone()))
            .collect();
        Self { version, config, terminals }
    }
}

impl NodeCore {
    /// Opens the database, creating or migrating what is missing.
    ///
    /// # Errors
    /// [`StoreError`] where the database cannot be used.
    pub fn open(connection: Connection, identity: Identity, settings: Settings) -> Result<Self, StoreError> {
        let store = Store::open(connection, &identity)?;
        let state = State::load(&store, &identity)?;
        let mut core = Self {
            store,
            settings,
            campus: None,
            losses: BTreeMap::new(),
            terminals: BTreeMap::new(),
            link: Link::Down,
            sender: Sender::default(),
            queues: Queues::default(),
            purses: PurseWaits::default(),
            naming: Naming::default(),
            recalls: BTreeMap::new(),
            early: Vec::new(),
            more_to_send: false,
            acks: BTreeSet::new(),
            blocked: BTreeSet::new(),
            damage: None,
            unknown_cards: UnknownCards::default(),
            marked: Marked { looked_ms: 0, said_ms: 0, clock: state.writer.clock() },
            guard: Guard::Step,
            state,
            identity,
        };
        core.damage = core.find_damage()?;
        if let Some(damage) = &core.damage {
            tracing::error!(
                %damage,
                "the database is damaged: taps are declined, and what it holds is still uploaded; feiqian-node verify \
                 names all of it; once it is uploaded, enrol this building anew on an empty data directory"
            );
        }
        core.reload()?;
        Ok(core)
    }

    /// What shows at a glance that somebody else wrote into the logs: each ends with a signed head, so records beyond the
    /// last head, or a last head without its record, are nothing that this program left. To write on would collide with
    /// them, or fork the log.
    fn find_damage(&self) -> Result<Option<String>, StoreError> {
        let shards = (0..SHARDS).zip(self.state.shards);
        let shards =
            shards.map(|(shard, cursor)| (LogId::shard(self.identity.institution, shard), cursor.position));
        let ends = [
            (self.own_log(), self.state.writer.cursor().position),
            (self.to_node_log(), self.state.to_node.position),
        ];
        for (log, signed) in ends.into_iter().chain(shards) {
            let last = self.store.last_record(log)?;
            if last > signed {
                return Ok(Some(format!("{log}: entries {} to {last} are under no signed head", signed + 1)));
            }
            // Where a snapshot ends and nothing has followed it, there is a head alone.
            if last < signed && !self.store.is_installed(log, signed)? {
                return Ok(Some(format!(
                    "{log}: a head is signed at {signed}, and the entries end at {last}"
                )));
            }
        }
        Ok(None)
    }

    /// Reads again what is kept in memory of tables that only the centre's streams change.
    fn reload(&mut self) -> Result<(), StoreError> {
        self.losses = self.store.losses()?;
        self.terminals.clear();
        self.campus = match self.store.campus()? {
            Some((version, bytes)) => {
                let config = CampusConfig::from_bytes(&bytes)
                    .map_err(|error| StoreError::damaged(format!("the campus configuration: {error}")))?;
                Some(Arc::new(Campus::new(version, config, &self.identity)))
            }
            None => None,
        };
        Ok(())
    }

    /// Takes all inputs that wait, in one transaction. The outputs may be released once this has returned `Ok`; on `Err`
    /// they must be thrown away and the core dropped and opened again.
    ///
    /// # Errors
    /// [`StoreError`] where the transaction did not commit.
    pub fn step(
        &mut self,
        now: Now,
        inputs: Vec<Input>,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        self.store.begin()?;
        let stepped = self.attempt(&now, inputs, outputs).and_then(|()| self.store.commit());
        if stepped.is_err() {
            self.store.rollback();
        }
        stepped
    }

    /// When [`Input::Timer`] is wanted next, as [`Now::mono_ms`].
    pub fn next_timer(&self) -> Option<u64> {
        let asked = [self.purses.next_deadline(), self.naming.next_deadline()].into_iter().flatten().min();
        [self.queues.next_deadline(), asked, self.next_mark(), self.next_send()].into_iter().flatten().min()
    }

    fn run(&mut self, now: &Now, inputs: Vec<Input>, outputs: &mut Vec<Output>) -> Result<(), StoreError> {
        if self.store.must_fold() && self.guarded(|core| core.store.fold())?.is_err() {
            self.store.fold_later();
        }
        for input in inputs {
            match input {
                Input::Tap(ticket, request) => self.on_tap(now, ticket, request, outputs)?,
                Input::Reversal(ticket, request) => self.on_reversal(now, ticket, request, outputs)?,
                Input::Balance(ticket, presented) => {
                    let balance = self.balance(now, &presented)?;
                    outputs.push(Output::Balance(ticket, balance));
                }
                Input::Setting(ticket, request) => self.on_setting(now, ticket, &request, outputs)?,
                Input::Purse(ticket, terminal, request) => {
                    self.on_purse(now, ticket, &terminal, request, outputs)?;
                }
                Input::Pin(ticket, tap) => {
                    let generation = self.pin_to_hash(&tap)?;
                    outputs.push(Output::PinGeneration(ticket, generation));
                }
                Input::PinToShow(ticket, card) => {
                    let pin = self.pin_to_show(&card)?;
                    outputs.push(Output::PinToShow(ticket, pin));
                }
                Input::Status(ticket) => {
                    let status = self.status(now)?;
                    outputs.push(Output::Status(ticket, Box::new(status)));
                }
                Input::LinkUp(link) => self.on_link_up(now, link, outputs)?,
                Input::LinkDown(link) => self.on_link_down(now, link, outputs)?,
                Input::Frame(link, frame) => self.on_frame(now, link, frame, outputs)?,
                Input::Timer => {}
            }
        }
        self.decide_overdue(now, outputs)?;
        self.give_up_naming(now, outputs)?;
        self.release_purses(now, outputs);
        self.sign_head()?;
        self.replicate(now, outputs)?;
        if self.state.dirty {
            self.state.saved.elapsed_ms = self.elapsed_ms(now);
            self.state.elapsed_at = now.elapsed_ms;
            self.state.saved.clock = self.state.writer.clock();
            self.store.save(&self.state.saved)?;
            self.state.dirty = false;
        }
        Ok(())
    }

    /// This node's log.
    pub(crate) const fn own_log(&self) -> LogId {
        LogId::node(self.identity.institution, self.identity.node)
    }

    /// The centre's stream for this node.
    pub(crate) const fn to_node_log(&self) -> LogId {
        LogId::to_node(self.identity.institution, self.identity.node)
    }

    /// Appends to the log; returns position and clock.
    pub(crate) fn append(&mut self, now: &Now, actor: Actor, body: Body) -> Result<(u64, Hlc), StoreError> {
        if self.state.writer.head_due() {
            self.sign_head()?;
        }
        let appended = self.state.writer.append(now.wall, self.identity.campus, actor, body);
        self.state.dirty = true;
        self.store.put_entry(self.own_log(), appended.cursor.position, &appended.record)?;
        Ok((appended.cursor.position, appended.clock))
    }

    /// Signs what was appended since the last head.
    pub(crate) fn sign_head(&mut self) -> Result<(), StoreError> {
        let (applied, anchor) = (self.state.to_node.position, self.state.saved.anchor);
        match self.state.writer.sign_head(applied, anchor, &self.identity.log_key) {
            Some(signed) => self.store.put_head(&signed),
            None => Ok(()),
        }
    }

    /// Milliseconds since the anchor was heard, as far as this node was running.
    pub(crate) fn elapsed_ms(&self, now: &Now) -> u64 {
        self.state.saved.elapsed_ms + now.elapsed_ms.saturating_sub(self.state.elapsed_at)
    }

    /// The business day that a debit would be labelled with.
    pub(crate) fn business_day(&self, now: &Now) -> BusinessDay {
        let calendar = self.campus.as_ref().map_or(BusinessCalendar::CHINA, |campus| campus.config.calendar);
        let saved = &self.state.saved;
        let elapsed = i64::try_from(self.elapsed_ms(now)).unwrap_or(i64::MAX);
        business_day_to_open(
            calendar.day(now.wall),
            saved.last_day,
            calendar.day(saved.anchor),
            calendar.day(saved.anchor.plus_ms(elapsed)),
        )
    }

    /// A document as a reader sees it.
    pub(crate) fn read_document(
        &self,
        account: AccountId,
        saved: &[u8],
    ) -> Result<Document, feiqian_protocol::account::AccountError> {
        // A reader writes nothing; automerge wants an actor id all the same.
        Document::load(saved, actor_id(self.identity.institution, NodeId(u16::MAX), 0, 0, account))
    }

    fn balance(
        &self,
        now: &Now,
        presented: &Presented,
    ) -> Result<Result<BalanceView, DeclineReason>, StoreError> {
        let card = &presented.card;
        let facts = match self.facts_presented(now, presented)? {
            Ok(facts) => facts,
            Err(reason) => return Ok(Err(reason)),
        };
        let kind = feiqian_protocol::tap::TapKind::Access;
        let holder = facts.as_ref().map(|facts| &facts.holder);
        let lost = holder.is_some_and(|holder| self.is_told_lost(card, holder.account));
        let account =
            match crate::authorizer::standing(kind, holder, lost, None, true, self.business_day(now)) {
                Ok(holder) => holder.account,
                Err(reason) => return Ok(Err(reason)),
            };
        let purse = facts.map(|facts| facts.purse).unwrap_or_default();
        Ok(Ok(BalanceView {
            account,
            cash: purse.cash.balance(),
            subsidy: purse.subsidy.balance(),
            as_of: self.state.saved.centre_time.max(self.state.saved.anchor),
        }))
    }

    fn status(&self, now: &Now) -> Result<Status, StoreError> {
        let (settings_waiting, settings_refused) = self.store.own_settings_count()?;
        let State { saved, writer, to_node, shards, totals, .. } = &self.state;
        Ok(Status {
            node: self.identity.name.to_string(),
            link: self.link.state(),
            refused: saved.refused.map(|reason| reason.name().to_owned()).or_else(|| self.link.refusal()),
            damage: self.damage.clone(),
            session: self.link.session(),
            epoch: saved.epoch.0,
            position: writer.cursor().position,
            acked: saved.acked,
            applied: to_node.position,
            shards: shards.iter().map(|cursor| cursor.position).collect(),
            pending: self.waiting_taps(),
            settings_waiting,
            settings_refused,
            unknown_cards_not_kept: self.unknown_cards.not_kept,
            accounts: totals.accounts,
            campus_version: self.campus.as_ref().map_or(0, |campus| campus.version),
            unspent_fen: totals.unspent.get(),
            stand_in_left_fen: totals.stand_in_left.get(),
            exposed_fen: totals.exposed.get(),
            heard: self.heard_until(now),
            wall: now.wall,
        })
    }
}

impl State {
    fn load(store: &Store, identity: &Identity) -> Result<Self, StoreError> {
        let saved = store.saved(identity)?;
        let end = |log| -> Result<Cursor, StoreError> {
            Ok(store.last_head(log)?.map_or(Cursor::START, |signed| signed.head.cursor))
        };
        let own = LogId::node(identity.institution, identity.node);
        let mut shards = [Cursor::START; SHARDS as usize];
        for (cursor, shard) in shards.iter_mut().zip(0..) {
            *cursor = end(LogId::shard(identity.institution, shard))?;
        }
        Ok(Self {
            writer: LogWriter::new(own, end(own)?, saved.clock),
            to_node: end(LogId::to_node(identity.institution, identity.node))?,
            shards,
            totals: store.totals(saved.acked)?,
            elapsed_at: 0,
            centre_clock: CentreClock::default(),
            dirty: false,
            saved,
        })
    }
}
