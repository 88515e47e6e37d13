//! Replaying: what was collected acts, into the tables and not into the streams, which have it already.

use feiqian_protocol::account::{Document, FIRST_EPOCH, Intent, actor_id};
use feiqian_protocol::campus::{CampusConfig, Mode};
use feiqian_protocol::entry::{
    AccountOpened, ActorKind, Body, CampusPublished, CaseMoved, CaseReason, Credit, Entry, EntryRef, Refund,
    Setting, StandInGrant,
};
use feiqian_protocol::ids::{AccountId, CardNumber, LogId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Timestamp};
use serde_json::json;

use super::Stage;
use crate::accounts::YOUNG_DAYS;
use crate::core::{Round, State, StoreError};
use crate::escrow::PendingGrants;
use crate::io::LinkId;
use crate::ledger::{SUSPENSE, channel_ledger, wallet_ledger};
use crate::store::accounts::{self, StoredAccount};
use crate::store::cases::{self, CaseState};
use crate::store::holders;
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
            match notes::named_at(self.db, self.state.shard(account), log, position)? {
                None => self.gather(account, wallet, effect),
                Some(_) => notes::add_unheard(self.db, account, wallet, -effect)?,
            }
        }
        self.note_taken(log, true);
        self.replayed(log, state.posted);
        Ok(())
    }

    fn replay_shard(&mut self, log: LogId) -> Result<(), StoreError> {
        let (position, time, entry) = self.next(log)?;
        self.replayed(log, position);
        let at = EntryRef { log, position };
        match entry.body {
            Body::AccountOpened(opened) => self.replay_opened(&opened),
            Body::Setting(setting) => self.replay_setting(at, time, &setting),
            Body::DocumentRenewed(renewed) => self.keep_renewed(&renewed),
            Body::Credit(credit) => {
                let by_channel = entry.actor.kind == ActorKind::Channel;
                self.replay_credit(at, time, &credit, by_channel)
            }
            Body::Posted(posted) => {
                for head in &posted.heads {
                    notes::put_named(self.db, log, head.log, head.position, position)?;
                }
                let named = !posted.heads.is_empty() || self.is_named_later(log, position)?;
                for delta in &posted.deltas {
                    self.ensure_wallet(delta.account, delta.wallet)?;
                    if named {
                        notes::add_unheard(self.db, delta.account, delta.wallet, delta.amount)?;
                    } else {
                        notes::add_unnamed(self.db, delta.account, delta.wallet, delta.amount)?;
                    }
                }
                Ok(())
            }
            Body::CaseMoved(moved) => self.replay_case(at, time, &moved),
            Body::Refund(refund) => self.replay_refund(at, &refund),
            Body::CloseOrdered(ordered) => self.keep_closure(at, time, &ordered),
            Body::Payout(payout) => self.book_payout(at, time, &payout),
            Body::CampusPublished(published) => self.replay_campus(&published),
            Body::PurseLoad(load) => self.apply_load(at, time, &load),
            Body::PurseReturned(back) => self.apply_return(at, time, &back),
            Body::PurseLoadSettled(settled) => self.apply_load_settled(at, time, &settled),
            Body::HoldPlaced(placed) => self.replay_hold(&placed),
            Body::HoldMoved(moved) => self.replay_hold_moved(time, &moved),
            other => Err(StoreError::Corrupt(format!(
                "{log} {position}: a {} is nothing that this build writes there; come back with the build that wrote it",
                other.name()
            ))),
        }
    }

    /// True where the batch whose first part stands at a position is here to its end, which names its logs. Where it is not,
    /// its entries are posted again by name, and this part is taken out.
    fn is_named_later(&self, log: LogId, position: u64) -> Result<bool, StoreError> {
        let mut at = position;
        while let Some((next, _, record)) = notes::next_entry(self.db, log, at)? {
            if let Body::Posted(posted) = Entry::from_record(&record)?.body
                && !posted.heads.is_empty()
            {
                return Ok(true);
            }
            at = next;
        }
        Ok(false)
    }

    fn replay_opened(&mut self, opened: &AccountOpened) -> Result<(), StoreError> {
        let account = opened.account;
        let reader = actor_id(self.state.identity.institution, NodeId::CENTRE, 1, FIRST_EPOCH, account);
        let mut document = Document::load(&opened.document, reader)?;
        let (settings, heads) = (document.settings()?, document.heads());
        // The entry does not say since when it was young: the longest that it can be.
        let seasoned_on = if opened.seasoned {
            BusinessDay(0)
        } else {
            BusinessDay(self.state.day.0.saturating_add(YOUNG_DAYS))
        };
        let stored =
            StoredAccount { document_epoch: FIRST_EPOCH, document: opened.document.to_vec(), seasoned_on };
        let first = settings.cards.keys().next().cloned();
        let first = first.ok_or_else(|| StoreError::Corrupt(format!("account {account} has no card")))?;
        accounts::insert(self.db, account, &first, &stored, &settings, &heads)?;
        for card in settings.cards.keys() {
            accounts::insert_card(self.db, card, account)?;
            holders::take_blank(self.db, card)?;
        }
        if !settings.holder.is_empty() {
            holders::put(self.db, account, &settings)?;
        }
        Ok(())
    }

    fn replay_setting(&mut self, at: EntryRef, time: Timestamp, setting: &Setting) -> Result<(), StoreError> {
        let account = setting.account;
        let stored = accounts::load(self.db, account)?;
        let stored = stored.ok_or_else(|| {
            StoreError::Corrupt(format!("a setting of account {account}, which is not there"))
        })?;
        let reader =
            actor_id(self.state.identity.institution, NodeId::CENTRE, 1, stored.document_epoch, account);
        let mut document = Document::load(&stored.document, reader)?;
        document.merge_change(&setting.change)?;
        let saved = document.save();
        let settings = accounts::update(self.db, account, &saved, &mut document)?;
        if let Some(of) = setting.of {
            notes::put_setting_taken(self.db, of)?;
        }
        match &setting.intent {
            Intent::ReportLoss { card, loss } => {
                accounts::insert_loss(self.db, card, loss, account, time, at.position)?;
                self.state.cards_lost.insert(card.clone());
                notes::put_report(self.db, card, loss, at.position)?;
            }
            Intent::LiftLoss { card, losses } => accounts::lift_losses(self.db, card, losses, time)?,
            Intent::IssueCard { card }
            | Intent::ActivateVirtualCard { card, .. }
            | Intent::IssueInactiveCard { card }
            | Intent::IssueLegacyCard { card, .. } => {
                accounts::insert_card(self.db, card, account)?;
                holders::take_blank(self.db, card)?;
            }
            Intent::Describe { .. } => holders::put(self.db, account, &settings)?,
            Intent::SetLimits { .. } => self.state.debts.check_allowance(account),
            Intent::VoidCard { card } => self.note_void(card, time)?,
            _ => {}
        }
        Ok(())
    }

    fn replay_credit(
        &mut self,
        at: EntryRef,
        time: Timestamp,
        credit: &Credit,
        by_channel: bool,
    ) -> Result<(), StoreError> {
        let Credit { account, wallet, amount, channel, key } = credit;
        let (account, wallet, amount) = (*account, *wallet, *amount);
        let own_day = self.state.calendar().day(time);
        self.post(at, own_day, amount, channel_ledger(channel.as_str()), wallet_ledger(account, wallet))?;
        let previous = self.link_movement(account, wallet, at)?;
        let movement = MovementState { previous, ..MovementState::plain(time, amount) };
        money::put_movement(self.db, account, wallet, at, &movement)?;
        let holding = self.holding(account, wallet)?;
        holding.wallet.funds += amount;
        holding.wallet.free += amount;
        let posted = holding.wallet.funds;
        if by_channel {
            // What the balance was then is not known any more.
            let answer = json!({
                "account": account, "wallet": wallet, "amount_fen": amount, "posted_fen": posted,
            });
            let content = (account, wallet, amount, &*answer.to_string());
            money::insert_credit(self.db, channel.as_str(), key.as_str(), content)?;
        }
        Ok(())
    }

    fn replay_case(&mut self, at: EntryRef, time: Timestamp, moved: &CaseMoved) -> Result<(), StoreError> {
        let CaseMoved { debit, account, wallet, reason, bearer, opened, recovered } = moved.clone();
        let before = if reason.is_refunded() {
            cases::loss_case(self.db, account, wallet, debit)?
        } else {
            let cases = cases::overspend_cases(self.db, debit.log.institution, account, wallet)?;
            cases.into_iter().find(|case| case.debit == debit)
        };
        let (order_key, card) = match &before {
            Some(case) => (case.order_key, case.card.clone()),
            None => self.debit_of(debit)?.unwrap_or((time, String::new())),
        };
        let refunded = before.as_ref().map(|case| case.refunded).unwrap_or_default();
        let after = CaseState {
            account,
            wallet,
            debit,
            order_key,
            reason,
            bearer,
            opened,
            recovered,
            refunded,
            card,
        };
        let owes = after.outstanding() - before.as_ref().map(CaseState::outstanding).unwrap_or_default();
        self.post_case(at, time, before.as_ref(), &after)?;
        self.holding(account, wallet)?.wallet.claims += owes;
        Ok(())
    }

    /// Order key and card of a debit that may not have been replayed yet.
    fn debit_of(&self, debit: EntryRef) -> Result<Option<(Timestamp, String)>, StoreError> {
        let Some((order_key, record)) = logs::entry(self.db, debit.log, debit.position)? else {
            return Ok(None);
        };
        Ok(match Entry::from_record(&record)?.body {
            Body::Debit(debit) => Some((order_key, debit.card.to_string())),
            _ => None,
        })
    }

    fn replay_refund(&mut self, at: EntryRef, refund: &Refund) -> Result<(), StoreError> {
        let Refund { debit, account, wallet, amount, .. } = refund.clone();
        self.post_refund(at, account, wallet, amount)?;
        let holding = self.holding(account, wallet)?;
        holding.wallet.funds += amount;
        holding.wallet.free += amount;
        if let Some(mut case) = cases::loss_case(self.db, account, wallet, debit)? {
            case.refunded += amount;
            cases::put_case(self.db, &case)?;
        }
        if let Some(mut movement) = money::movement(self.db, account, wallet, debit)? {
            movement.refunded += amount;
            money::put_movement(self.db, account, wallet, debit, &movement)?;
        }
        Ok(())
    }

    fn replay_campus(&mut self, published: &CampusPublished) -> Result<(), StoreError> {
        if published.version <= self.state.campus_version {
            return Ok(());
        }
        let config = CampusConfig::from_bytes(&published.config)
            .map_err(|error| StoreError::Corrupt(format!("the campus configuration: {error}")))?;
        if config.policy.mode == Mode::Optimistic {
            put_meta(self.db, "unlimited", 1)?;
        }
        put_meta(self.db, "campus", String::from_utf8_lossy(&published.config).into_owned())?;
        put_meta(self.db, "campus_version", published.version)?;
        self.state.campus = Some(config);
        self.state.campus_version = published.version;
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
        if self.acted_elsewhere(log, position)? {
            return Ok(());
        }
        self.act_on(log, position, order_key, &entry)
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
        match notes::named_at(self.db, self.state.shard(account), of.log, of.position)? {
            None => self.gather(account, wallet, effect),
            Some(at) => {
                self.note_moved(account, wallet);
                notes::add_unheard(self.db, account, wallet, -effect)?;
                if !self.is_recovering() {
                    // Suspense had stood in for it since the centre came back.
                    self.book_unheard(account, wallet, -effect, at)?;
                }
            }
        }
        Ok(())
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
        let posted = notes::named_at(self.db, self.state.shard(account), at.log, at.position)?;
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
