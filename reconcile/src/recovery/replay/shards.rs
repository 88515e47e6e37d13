//! What stands in the account streams acts again: accounts, settings, money in and out, cases, the campus.

use feiqian_protocol::account::{Document, FIRST_EPOCH, Intent, actor_id};
use feiqian_protocol::campus::{CampusConfig, Mode};
use feiqian_protocol::entry::{
    AccountOpened, ActorKind, Body, CampusPublished, CaseMoved, Credit, Entry, EntryRef, Refund, Setting,
};
use feiqian_protocol::ids::{LogId, NodeId};
use feiqian_protocol::time::{BusinessDay, Timestamp};
use serde_json::json;

use crate::accounts::YOUNG_DAYS;
use crate::core::{Round, StoreError};
use crate::ledger::{channel_ledger, wallet_ledger};
use crate::store::accounts::{self, StoredAccount};
use crate::store::cases::{self, CaseState};
use crate::store::money;
use crate::store::recovery::Named;
use crate::store::{holders, logs, put_meta, recovery as notes};

impl Round<'_> {
    pub(super) fn replay_shard(&mut self, log: LogId) -> Result<(), StoreError> {
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
                    let here = self.named_here(head)?;
                    let missing = here.is_none().then_some(&head.hash);
                    let here = here.unwrap_or(head.log);
                    let named = Named {
                        stream: log,
                        at: position,
                        log: here,
                        name: head.log,
                        position: head.position,
                    };
                    notes::put_named(self.db, &named, missing)?;
                    for lost in posted.lost.iter().flatten().filter(|lost| lost.log == head.log) {
                        notes::put_lost(self.db, &named, lost.first, lost.last)?;
                    }
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
            Body::PurseCaseDecided(decided) => self.apply_purse_case(at, time, &decided),
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
        self.move_funds(at, time, (account, wallet), amount)?;
        if by_channel {
            // What the balance was then is not known any more.
            let posted = self.holding(account, wallet)?.wallet.funds;
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
}
