//! Replaying: what was collected acts, into the tables and not into the streams, which have it already.

mod shards;

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Body, CaseReason, Entry, EntryRef, PostedHead, StandInGrant};
use feiqian_protocol::ids::{AccountId, CardNumber, LogId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;

use super::Stage;
use crate::core::{Round, State, StoreError};
use crate::escrow::PendingGrants;
use crate::io::LinkId;
use crate::ledger::{SUSPENSE, wallet_ledger};
use crate::store::accounts;
use crate::store::cases::{self, CaseState};
use crate::store::money::{self, MovementState};
use crate::store::nodes::{self, GIVEN_UP, NodeState};
use crate::store::{habits, logs, put_meta, recovery as notes};

/// Entries that one step replays.
const REPLAYED_PER_STEP: usize = 500;

/// Node numbers that are left out after a recovery: a building that was enrolled after the copy was made and was not heard
/// keeps its number to itself.
const NUMBERS_LEFT_OUT: u16 = 256;

impl Round<'_> {
    /// True while nothing may be handed out, asked or resolved.
    pub(crate) const fn is_recovering(&self) -> bool {
        self.state.recovery.is_some()
    }

    /// Goes on with taking back: from collecting to replaying once everybody was heard, and then by so many entries.
    pub(crate) fn recover(&mut self) -> Result<(), StoreError> {
        let Some(recovery) = &self.state.recovery else { return Ok(()) };
        if recovery.stage == Stage::Collecting {
            let stuck = |link: &crate::session::Link| recovery.troubles.contains_key(&link.node);
            let giving = self.state.links.values().any(|link| link.is_giving() && !stuck(link));
            if giving || !self.state.awaited().is_empty() {
                return Ok(());
            }
            put_meta(self.db, "recovery", 2)?;
            if let Some(recovery) = &mut self.state.recovery {
                recovery.stage = Stage::Replaying;
            }
            for id in self.state.nodes.keys().copied().collect::<Vec<_>>() {
                let pending = PendingGrants::load(self.db, self.state, id)?;
                self.state.pending.insert(id, pending);
            }
        }
        for _ in 0..REPLAYED_PER_STEP {
            if !self.replay_next()? {
                return self.come_back();
            }
        }
        Ok(())
    }

    /// True where a next step has something to replay.
    pub(crate) fn replays(&self) -> bool {
        self.state.recovery.as_ref().is_some_and(|recovery| recovery.stage == Stage::Replaying)
    }

    /// Replays one entry; false where none is left.
    fn replay_next(&mut self) -> Result<bool, StoreError> {
        let behind = |state: &State, log: LogId| {
            let log = state.log(log);
            log.posted < log.cursor.position && log.quarantined.is_none()
        };
        let shards: Vec<LogId> = self.state.shards().collect();
        if let Some(log) = shards.into_iter().find(|log| behind(self.state, *log)) {
            self.replay_shard(log)?;
            return Ok(true);
        }
        let gathered = self
            .state
            .logs
            .iter()
            .find(|(log, state)| log.writer != NodeId::CENTRE && state.named < state.posted);
        if let Some((log, _)) = gathered {
            self.replay_gathered(*log)?;
            return Ok(true);
        }
        for id in self.state.nodes.keys().copied().collect::<Vec<_>>() {
            let (own, to_node) = (self.state.own_log(id), self.state.to_node(id));
            if behind(self.state, to_node) {
                self.replay_to_node(id, to_node, behind(self.state, own))?;
                return Ok(true);
            }
            if behind(self.state, own) {
                self.replay_own(own)?;
                return Ok(true);
            }
        }
        let branches: Vec<LogId> = self.state.branches.keys().copied().collect();
        if let Some(log) = branches.into_iter().find(|log| behind(self.state, *log)) {
            self.replay_own(log)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn next(&self, log: LogId) -> Result<(u64, Timestamp, Entry), StoreError> {
        let posted = self.state.log(log).posted;
        let next = notes::next_entry(self.db, log, posted)?;
        let (position, order_key, record) =
            next.ok_or_else(|| StoreError::Corrupt(format!("{log} has no entry after {posted}")))?;
        Ok((position, order_key, Entry::from_record(&record)?))
    }

    fn replayed(&mut self, log: LogId, position: u64) {
        let mut state = self.state.log(log);
        state.posted = position;
        // What no batch names yet is in one at the end of this very step.
        state.named = position;
        self.state.logs.insert(log, state);
        self.touched_logs.insert(log);
    }

    /// Of a node's log: what had been gathered for the next posted batches when the copy was made. The batches that were
    /// taken back may have it; what they have not is posted now.
    fn replay_gathered(&mut self, log: LogId) -> Result<(), StoreError> {
        let state = self.state.log(log);
        for (position, account, wallet, effect) in
            money::wallet_effects(self.db, log, state.named, state.posted)?
        {
            match self.posted_at(account, EntryRef { log, position })? {
                None => self.gather(account, wallet, effect),
                Some(_) => notes::add_unheard(self.db, account, wallet, -effect)?,
            }
        }
        self.note_taken(log, true);
        self.replayed(log, state.posted);
        Ok(())
    }

    /// One entry of the stream for a node; a closing waits for the log up to its declared head.
    fn replay_to_node(&mut self, id: NodeId, log: LogId, own_is_behind: bool) -> Result<(), StoreError> {
        let (position, _, entry) = self.next(log)?;
        let own = self.state.own_log(id);
        let epoch = self.epoch(id);
        if let Body::Closed(closed) = &entry.body
            && closed.epoch == epoch
        {
            if own_is_behind && self.state.log(own).posted < closed.declared_head {
                return self.replay_own(own);
            }
            self.close_epoch(id, closed.declared_head)?;
            if let Some(node) = self.state.nodes.get_mut(&id)
                && node.holds()
            {
                node.state = NodeState::Closed;
                node.reason.get_or_insert_with(|| "retired".to_owned());
            }
        }
        self.replayed(log, position);
        self.touched_nodes.insert(id);
        match entry.body {
            Body::Grant(grant) => {
                let holding = self.holding(grant.account, grant.wallet)?;
                holding.wallet.free -= grant.amount;
                let row = holding.rows.entry((id, grant.epoch)).or_default();
                row.granted = grant.total;
                row.out += grant.amount;
            }
            Body::StandInGrant(StandInGrant(grant)) => {
                let row =
                    self.holding(grant.account, grant.wallet)?.rows.entry((id, grant.epoch)).or_default();
                row.si_granted = grant.total;
                row.si_out += grant.amount;
            }
            Body::ShareGrant(grant) => {
                let key = (id, grant.epoch);
                let shares = money::shares(self.db, grant.account)?;
                let mut share = shares.get(&key).copied().unwrap_or_default();
                share.granted = grant.total;
                share.out += grant.amount;
                money::put_share(self.db, grant.account, key, &share)?;
            }
            Body::Hint(hint) => habits::put_hint(self.db, id, &hint)?,
            body => {
                if let Some(node) = self.state.nodes.get_mut(&id) {
                    match body {
                        Body::Anchor(anchor) => node.session = node.session.max(anchor.session),
                        Body::Pool(pool) => node.pool = Some((pool.per_day, pool.habit_only)),
                        Body::CloseRequest(close) if close.epoch == epoch && node.is_open() => {
                            node.state = NodeState::Closing;
                            node.reason = Some("retired".to_owned());
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// One entry of a node's log, or of a branch of it, acts.
    fn replay_own(&mut self, log: LogId) -> Result<(), StoreError> {
        let end = self.state.log(log).cursor.position;
        let Some((position, order_key, record)) =
            notes::next_entry(self.db, log, self.state.log(log).posted)?
        else {
            // What is left of a branch was lost.
            self.replayed(log, end);
            return Ok(());
        };
        let entry = Entry::from_record(&record)?;
        if matches!(entry.body, Body::Unknown { critical: true, .. }) {
            let mut state = self.state.log(log);
            state.quarantined = Some(position);
            self.state.logs.insert(log, state);
            self.touched_logs.insert(log);
            return Ok(());
        }
        self.replayed(log, position);
        self.note_taken(log, true);
        if log.stream == 0 {
            let applied = notes::applied_at(self.db, log, position)?;
            let applied = applied.min(self.state.log(self.state.to_node(log.writer)).cursor.position);
            let mut state = self.state.log(log);
            state.applied = state.applied.max(applied);
            self.state.logs.insert(log, state);
            if let Some(pending) = self.state.pending.get_mut(&log.writer) {
                pending.applied(applied);
            }
        }
        let acted = self.acted_elsewhere(log, position)?;
        self.act_once(log, position, order_key, &entry, acted)
    }

    /// True where an entry has acted by another name already: in the log, or in a branch of it.
    fn acted_elsewhere(&self, log: LogId, position: u64) -> Result<bool, StoreError> {
        let hash = logs::hash_at(self.db, log, position)?;
        let own = self.state.own_log(log.writer);
        let branches = self.branches_of(log.writer).into_iter().map(|(branch, _)| branch);
        for other in branches.chain([own]).filter(|other| *other != log) {
            if self.state.log(other).posted >= position && logs::hash_at(self.db, other, position)? == hash {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The log that has what a batch names, by its hash: here it may go by another name. Where none has, it may yet come.
    fn named_here(&self, head: &PostedHead) -> Result<Option<LogId>, StoreError> {
        let own = self.state.own_log(head.log.writer);
        let branches = self.branches_of(head.log.writer).into_iter().map(|(branch, _)| branch);
        for log in [own].into_iter().chain(branches).filter(|_| !planted(Canary::NamedByNameAlone)) {
            if self.known_hash(log, own, head.position)? == Some(head.hash) {
                return Ok(Some(log));
            }
        }
        Ok(None)
    }

    /// An entry is here that batches may have named before it was: if by another name than it came by, what it and those before it
    /// have moved was taken for news, and is taken back.
    pub(crate) fn find_named(&mut self, log: LogId, position: u64) -> Result<(), StoreError> {
        if !self.is_recovering() && !self.state.has_unheard || planted(Canary::NamedByNameAlone) {
            return Ok(());
        }
        let own = self.state.own_log(log.writer);
        let Some(hash) = self.known_hash(log, own, position)? else { return Ok(()) };
        for named in notes::missing(self.db, log.institution, &hash)? {
            let mut news = Vec::new();
            if log != named.log {
                let before = notes::named_before(self.db, named.stream, log, position)?;
                news = money::wallet_effects(self.db, log, before, position)?;
                news.retain(|(_, account, ..)| self.state.shard(*account) == named.stream);
            }
            let at = |position| notes::named_at(self.db, named.stream, log, position);
            let known = news.iter().map(|(position, ..)| at(*position)).collect::<Result<Vec<_>, _>>()?;
            notes::put_found(self.db, &named, log)?;
            for ((position, account, wallet, effect), known) in news.into_iter().zip(known) {
                if known.is_none() && notes::named_at(self.db, named.stream, log, position)?.is_some() {
                    self.gather(account, wallet, -effect);
                    self.posted_before(account, wallet, effect, named.at)?;
                }
            }
        }
        Ok(())
    }

    /// The first posted batch that included what an entry has moved of an account, where one did.
    fn posted_at(&self, account: AccountId, of: EntryRef) -> Result<Option<u64>, StoreError> {
        let EntryRef { log, position } = of;
        let stream = self.state.shard(account);
        let mut first = notes::named_at(self.db, stream, log, position)?;
        if log != self.state.own_log(log.writer) {
            return Ok(first);
        }
        // What a branch has in common with the log is in the log, and posted where the branch is.
        for (branch, _) in self.branches_of(log.writer) {
            if self.known_hash(branch, log, position)? == logs::hash_at(self.db, log, position)? {
                let at = notes::named_at(self.db, stream, branch, position)?;
                first = first.into_iter().chain(at).min();
            }
        }
        Ok(first)
    }

    /// True where a name that a stream or a receipt has for a debit means this one: it is the same, or the same place of the same
    /// writer, of which there is nothing here under that name.
    pub(crate) fn is_told_of(&self, name: EntryRef, debit: EntryRef) -> Result<bool, StoreError> {
        let is_alike = name.log.writer == debit.log.writer && name.position == debit.position;
        Ok(name == debit || is_alike && logs::hash_at(self.db, name.log, name.position)?.is_none())
    }

    /// The case of a debit that its holder may have back, where a stream that was taken back has told of it already.
    pub(crate) fn told_case(
        &self,
        account: AccountId,
        wallet: Wallet,
        debit: EntryRef,
    ) -> Result<Option<CaseState>, StoreError> {
        if !self.is_recovering() && !self.state.has_unheard {
            return Ok(None);
        }
        for case in cases::loss_cases_at(self.db, account, wallet, debit)? {
            if self.is_told_of(case.debit, debit)? {
                return Ok(Some(case));
            }
        }
        Ok(None)
    }

    /// What an entry of a node has moved is to be posted, unless a batch has told of it already.
    pub(crate) fn gather_effect(
        &mut self,
        of: EntryRef,
        account: AccountId,
        wallet: Wallet,
        effect: Fen,
    ) -> Result<(), StoreError> {
        if !self.is_recovering() && !self.state.has_unheard {
            self.gather(account, wallet, effect);
            return Ok(());
        }
        match self.posted_at(account, of)? {
            None => {
                self.gather(account, wallet, effect);
                Ok(())
            }
            Some(at) => {
                self.note_moved(account, wallet);
                self.posted_before(account, wallet, effect, at)
            }
        }
    }

    /// The batch at a position of the account's stream has told of this already.
    fn posted_before(
        &mut self,
        account: AccountId,
        wallet: Wallet,
        effect: Fen,
        at: u64,
    ) -> Result<(), StoreError> {
        notes::add_unheard(self.db, account, wallet, -effect)?;
        if self.is_recovering() {
            return Ok(());
        }
        // Suspense had stood in for it since the centre came back.
        self.book_unheard(account, wallet, -effect, at)
    }

    /// True where a tap of this card, ingested only now, came after a loss report. What had been posted before the report
    /// was ingested before it, however often that happens again.
    pub(crate) fn is_after_report(
        &self,
        card: &CardNumber,
        order_key: Timestamp,
        account: AccountId,
        at: EntryRef,
    ) -> Result<bool, StoreError> {
        if !self.is_recovering() {
            return Ok(self.state.cards_lost.contains(card) && accounts::lost_at(self.db, card, order_key)?);
        }
        let reports = notes::reports(self.db, card, order_key)?;
        let posted = self.posted_at(account, at)?;
        Ok(reports.iter().any(|report| posted.is_none_or(|posted| posted > *report)))
    }

    /// Wallets follow what batches posted of entries that never came; suspense takes the other side.
    fn book_unheard(
        &mut self,
        account: AccountId,
        wallet: Wallet,
        amount: Fen,
        at: u64,
    ) -> Result<(), StoreError> {
        let log = self.state.shard(account);
        let at = EntryRef { log, position: notes::booked_at(self.db, account, wallet, at)? };
        let day = self.state.day;
        let holding = self.holding(account, wallet)?;
        holding.wallet.funds += amount;
        holding.wallet.free += amount;
        holding.wallet.unbacked += (-amount).or_zero();
        let line = notes::next_line(self.db, log, at.position)?;
        let lines = [(wallet_ledger(account, wallet), amount), (SUSPENSE.to_owned(), -amount)];
        for (index, (ledger, amount)) in lines.into_iter().enumerate() {
            money::insert_posting(self.db, at, line + index, &ledger, amount, (day, day))?;
            if ledger == SUSPENSE {
                *self.ledger.entry(ledger).or_default() += amount;
            }
        }
        let time = self.state.time;
        let mut movement = match money::movement(self.db, account, wallet, at)? {
            Some(movement) => movement,
            None => MovementState {
                reason: CaseReason::AfterClose,
                previous: self.link_movement(account, wallet, at)?,
                ..MovementState::plain(time, Fen::ZERO)
            },
        };
        movement.amount += amount;
        movement.unbacked = (-movement.amount).or_zero();
        money::put_movement(self.db, account, wallet, at, &movement)?;
        self.resolve.insert((account, wallet));
        self.state.hand_out.later(account);
        Ok(())
    }

    /// Everything is replayed: from here on all goes on as after any start.
    fn come_back(&mut self) -> Result<(), StoreError> {
        let mut booked = Fen::ZERO;
        for (account, wallet, amount) in notes::unheard(self.db)? {
            let stream = self.state.shard(account);
            let at = notes::last_named(self.db, stream)?.unwrap_or(self.state.log(stream).cursor.position);
            self.book_unheard(account, wallet, amount, at)?;
            booked += amount;
        }
        for (account, wallet, amount) in notes::unnamed(self.db)? {
            self.gather(account, wallet, -amount);
        }
        let closed: Vec<(NodeId, bool)> = self
            .state
            .nodes
            .iter()
            .filter(|(_, node)| !node.holds())
            .map(|(id, node)| (*id, node.reason.as_deref() == Some(GIVEN_UP)))
            .collect();
        for (id, given_up) in closed {
            self.close_what_is_open(id, given_up)?;
        }
        self.state.has_unheard = notes::forget(self.db)?;
        for id in self.state.nodes.keys().copied().collect::<Vec<_>>() {
            let pending = PendingGrants::load(self.db, self.state, id)?;
            self.state.pending.insert(id, pending);
        }
        self.resolve.extend(notes::wallets_to_resolve(self.db)?);
        let highest = self.state.nodes.keys().next_back().map_or(0, |id| id.0);
        put_meta(self.db, "node_numbers_from", highest.saturating_add(NUMBERS_LEFT_OUT))?;
        let until = notes::known_until(self.db, self.state.identity.institution)?;
        put_meta(self.db, "recovered_until", until.0)?;
        self.db.execute("DELETE FROM meta WHERE key = 'recovery'", [])?;
        let taken = self.state.recovery.take().map_or(0, |recovery| recovery.taken);
        tracing::warn!(
            entries = taken,
            known_until_ms = until.0,
            suspense = %booked,
            "the centre has come back; what was done here after that time and told to no building is lost: submit credits \
             again under their keys"
        );
        let links: Vec<LinkId> = self.state.links.keys().copied().collect();
        for link in links {
            self.close_link(link, "the centre has taken back what it lacked");
        }
        self.state.sweep.start(true);
        Ok(())
    }

    /// A node that was shut out while nothing could be written; any other that is shut out was closed in its time.
    fn close_what_is_open(&mut self, id: NodeId, given_up: bool) -> Result<(), StoreError> {
        if nodes::was_closed(self.db, id)? {
            return Ok(());
        }
        if given_up {
            // How the stream for it went on is not known here, so nothing is written into it.
            let head = self.state.log(self.state.own_log(id)).cursor.position;
            self.close_epoch(id, head)
        } else {
            self.force_close(id)
        }
    }
}
