//! The centre's streams: proven, kept, applied in order, position by position, in the transaction of the step.
//!
//! The stream for this node moves rights; the account streams move settings and posted balances. Taps that wait are
//! decided right after what came is applied, before any recall is looked at.

use std::collections::BTreeSet;
use std::sync::Arc;

use feiqian_protocol::account::{AccountSettings, Intent};
use feiqian_protocol::balance::balance_deltas;
use feiqian_protocol::campus::CampusConfig;
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::chain::{Cursor, VerifiedCommit, verify};
use feiqian_protocol::entry::{
    AccountOpened, Actor, Body, CampusPublished, DocumentRenewed, Entry, EpochEnd, Grant, PostedHead,
    Setting, ShareGrant, StandInGrant,
};
use feiqian_protocol::frame::Entries;
use feiqian_protocol::ids::{AccountId, Epoch, LogId};
use feiqian_protocol::limits::SUM_FEN_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{Hlc, Timestamp};

use crate::code::COUNTER_KEPT_S;
use crate::core::{Campus, NodeCore};
use crate::io::{Now, Output};
use crate::store::StoreError;

/// Why a frame is not taken: the link is closed for a peer's fault, the core dropped for the store's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What came is not what the protocol allows.
    #[error("{0}")]
    Peer(String),
}

impl Fault {
    pub(crate) fn peer(what: impl std::fmt::Display) -> Self {
        Self::Peer(what.to_string())
    }
}

/// What applying has touched, for what follows in the same step.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Accounts whose rights or settings changed.
    accounts: BTreeSet<AccountId>,
    /// True where every waiting tap is to be judged again.
    all: bool,
}

impl NodeCore {
    /// Entries of one of the centre's streams.
    pub(crate) fn on_centre_entries(
        &mut self,
        now: &Now,
        entries: Entries,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let log = entries.log;
        if self.blocked.contains(&log) {
            return Ok(());
        }
        let from =
            self.centre_cursor(log).ok_or_else(|| Fault::peer(format!("{log} is not for this node")))?;
        let Some((first, records)) = unknown_part(&from, &entries) else {
            self.acks.insert(log);
            for record in entries.records.iter().filter(|_| planted(Canary::GrantAddedOnEveryDelivery)) {
                if let Ok(Entry { body: Body::Grant(grant), .. }) = Entry::from_record(record) {
                    self.apply_grant(&grant, false, &mut Touched::default())?;
                }
            }
            return Ok(());
        };
        let heads: Vec<_> = entries
            .heads
            .iter()
            .filter(|signed| signed.head.cursor.position > from.position)
            .copied()
            .collect();
        let commits =
            verify(log, &from, first, records, &heads, &self.identity.centre_key).map_err(Fault::peer)?;
        let mut touched = Touched::default();
        for commit in commits {
            if let Some(what) = self.not_applicable(&commit) {
                tracing::error!(%log, position = commit.head.head.cursor.position, what, "stream stands still until this software is updated");
                self.blocked.insert(log);
                break;
            }
            self.apply_commit(now, log, commit, &mut touched)?;
        }
        self.settle_settings()?;
        self.acks.insert(log);
        if let Some(cursor) = self.centre_cursor(log)
            && log.as_shard().is_some()
            && self.store.forget_losses(log, cursor.position)?
        {
            self.losses = self.store.losses()?;
        }
        let accounts =
            if touched.all { self.queues.accounts() } else { touched.accounts.into_iter().collect() };
        self.decide_waiting(now, accounts, outputs)?;
        Ok(())
    }

    /// Where a stream of the centre ends here; `None` for a log that is not for this node.
    pub(crate) fn centre_cursor(&self, log: LogId) -> Option<Cursor> {
        if log == self.to_node_log() {
            return Some(self.state.to_node);
        }
        let shard = log.as_shard()?;
        if log != LogId::shard(self.identity.institution, shard) {
            return None;
        }
        self.state.shards.get(usize::from(shard)).copied()
    }

    /// Why this build cannot apply a commit, where it cannot: a newer build will.
    fn not_applicable(&self, commit: &VerifiedCommit) -> Option<&'static str> {
        commit.entries.iter().find_map(|verified| match &verified.entry.body {
            Body::Unknown { critical: true, .. } => Some("a critical entry of an unknown kind"),
            Body::CampusPublished(published) if CampusConfig::from_bytes(&published.config).is_err() => {
                Some("a campus configuration that cannot be read")
            }
            _ => None,
        })
    }

    fn apply_commit(
        &mut self,
        now: &Now,
        log: LogId,
        commit: VerifiedCommit,
        touched: &mut Touched,
    ) -> Result<(), Fault> {
        for verified in commit.entries {
            self.store.put_entry(log, verified.position, &verified.record)?;
            let cursor = Cursor { position: verified.position, hash: verified.hash };
            match log.as_shard() {
                Some(shard) => {
                    if let Some(end) = self.state.shards.get_mut(usize::from(shard)) {
                        *end = cursor;
                    }
                    self.apply_shard(shard, verified.entry.body, touched)?;
                }
                None => {
                    self.state.to_node = cursor;
                    self.apply_to_node(now, verified.entry.body, verified.entry.clock, touched)?;
                }
            }
        }
        self.store.put_head(&commit.head)?;
        self.state.dirty = true;
        let saved = &mut self.state.saved;
        saved.centre_time = saved.centre_time.max(commit.head.head.anchor);
        self.state.centre_clock.signed(commit.head.head.anchor, now.elapsed_ms);
        Ok(())
    }

    fn apply_to_node(
        &mut self,
        now: &Now,
        body: Body,
        clock: Hlc,
        touched: &mut Touched,
    ) -> Result<(), Fault> {
        check_sense(&body)?;
        // What is written here later is ordered after what it was written under.
        self.state.writer.observe(clock, now.wall);
        match body {
            Body::Anchor(anchor) => self.observe_anchor(now, anchor.time),
            Body::Grant(grant) => {
                self.observe_anchor(now, grant.time);
                self.apply_grant(&grant, false, touched)?;
            }
            Body::StandInGrant(StandInGrant(grant)) => {
                self.observe_anchor(now, grant.time);
                self.apply_grant(&grant, true, touched)?;
            }
            Body::ShareGrant(grant) => {
                self.observe_anchor(now, grant.time);
                self.apply_share_grant(&grant, touched)?;
            }
            Body::CloseRequest(close) => self.close(now, close.epoch, touched)?,
            Body::Closed(closed) => self.close(now, closed.epoch, touched)?,
            Body::SettingAnswered(answered) => self.setting_answered(&answered)?,
            Body::Hint(hint) => self.store.put_hint(&hint)?,
            Body::Pool(pool) => self.store.put_pool(&pool)?,
            Body::PinVerifiers(pins) => {
                for verifier in &pins.verifiers {
                    self.store.put_verifier(verifier)?;
                    touched.accounts.insert(verifier.account);
                }
            }
            Body::NodeEnrolled(_) | Body::Unknown { .. } => {}
            other => return Err(Fault::peer(format!("a {} in the stream for a node", other.name()))),
        }
        Ok(())
    }

    /// The newest centre-signed time; elapsed time is counted from where it was heard.
    fn observe_anchor(&mut self, now: &Now, time: Timestamp) {
        let saved = &mut self.state.saved;
        self.state.centre_clock.signed(time, now.elapsed_ms);
        if time > saved.anchor {
            saved.anchor = time;
            saved.elapsed_ms = 0;
            self.state.elapsed_at = now.elapsed_ms;
        }
    }

    /// True where a grant is for the open epoch; false where it is for one that ended by a refusal, of which the centre
    /// did not know yet. Any other epoch is impossible in an ordered stream.
    fn is_open(&self, epoch: Epoch) -> Result<bool, Fault> {
        let saved = &self.state.saved;
        if epoch == saved.epoch && saved.refused.is_none() {
            Ok(true)
        } else if epoch <= saved.refused_epoch || saved.refused.is_some() {
            Ok(false)
        } else {
            Err(Fault::peer(format!("a grant for epoch {epoch}, while epoch {} is open", saved.epoch)))
        }
    }

    fn apply_grant(&mut self, grant: &Grant, stand_in: bool, touched: &mut Touched) -> Result<(), Fault> {
        if !self.is_open(grant.epoch)? {
            return Ok(());
        }
        let mut purse = self.store.purse(grant.account)?;
        let wallet = purse.wallet_mut(grant.wallet);
        let before = wallet.row;
        let applied = if stand_in { wallet.row.stand_in_grant(grant) } else { wallet.row.grant(grant) };
        applied.map_err(Fault::peer)?;
        self.store.put_wallet(grant.account, grant.wallet, wallet)?;
        self.state.totals.unspent += wallet.row.unspent - before.unspent;
        self.state.totals.stand_in_left += wallet.row.stand_in_left - before.stand_in_left;
        touched.accounts.insert(grant.account);
        Ok(())
    }

    fn apply_share_grant(&mut self, grant: &ShareGrant, touched: &mut Touched) -> Result<(), Fault> {
        if !self.is_open(grant.epoch)? {
            return Ok(());
        }
        let mut share = self.store.share(grant.account)?;
        share.grant(grant).map_err(Fault::peer)?;
        self.store.put_share(grant.account, &share, self.share_horizon())?;
        touched.accounts.insert(grant.account);
        Ok(())
    }

    /// A request to end an epoch, or word that it was closed. Answered once: an epoch that has ended is not ended again.
    fn close(&mut self, now: &Now, epoch: Epoch, touched: &mut Touched) -> Result<(), Fault> {
        // The lost tail of the log says by itself which epochs have ended, and its return ends the last one.
        if self.state.saved.tail_until.is_some() {
            return Ok(());
        }
        let open = self.state.saved.epoch;
        if epoch > open {
            return Err(Fault::peer(format!("epoch {epoch} is closed before it was opened; {open} is open")));
        }
        if epoch == open {
            self.end_epoch(now)?;
            touched.all = true;
        }
        Ok(())
    }

    /// Ends the open epoch: its rows are nothing for ever, the next one starts empty.
    pub(crate) fn end_epoch(&mut self, now: &Now) -> Result<(), StoreError> {
        let epoch = self.state.saved.epoch;
        self.append(now, Actor::node(), EpochEnd { epoch }.into())?;
        self.drop_rows()?;
        self.state.saved.epoch = epoch.next();
        tracing::info!(%epoch, "epoch ended");
        Ok(())
    }

    /// Every right of the open epoch is nothing.
    pub(crate) fn drop_rows(&mut self) -> Result<(), StoreError> {
        self.store.end_rows()?;
        self.state.totals.unspent = Default::default();
        self.state.totals.stand_in_left = Default::default();
        self.state.dirty = true;
        Ok(())
    }

    fn apply_shard(&mut self, shard: u8, body: Body, touched: &mut Touched) -> Result<(), Fault> {
        let forgotten = planted(Canary::RefundForgotten) && matches!(body, Body::Refund(_));
        for (account, wallet, amount) in balance_deltas(&body).into_iter().filter(|_| !forgotten) {
            check_fen(amount)?;
            self.store.add_posted(account, wallet, amount)?;
        }
        match body {
            Body::AccountOpened(opened) => self.open_account(&opened)?,
            Body::Setting(setting) => {
                self.apply_setting(&setting)?;
                if planted(Canary::LiftUnseen) && matches!(setting.intent, Intent::LiftLoss { .. }) {
                    self.store.run("DELETE FROM hotlist").map_err(StoreError::from)?;
                    self.losses.clear();
                }
                touched.accounts.insert(setting.account);
            }
            Body::DocumentRenewed(renewed) => {
                self.renew_document(&renewed)?;
                touched.accounts.insert(renewed.account);
            }
            Body::Posted(posted) => self.settle(shard, &posted.heads)?,
            Body::CampusPublished(published) => self.publish(&published, touched)?,
            Body::HoldMoved(moved) => {
                self.store.put_spent_voucher(moved.account, moved.voucher, moved.until)?;
                let now = self.state.saved.centre_time.0.div_euclid(1_000);
                self.store.forget_counters(now.saturating_sub(i64::from(COUNTER_KEPT_S)))?;
            }
            Body::Credit(_)
            | Body::Refund(_)
            | Body::CaseMoved(_)
            | Body::HoldPlaced(_)
            | Body::PurseLoad(_)
            | Body::PurseLoadSettled(_)
            | Body::PurseReturned(_)
            | Body::PurseCaseDecided(_)
            | Body::CloseOrdered(_)
            | Body::Payout(_)
            | Body::Unknown { .. } => {}
            other => return Err(Fault::peer(format!("a {} in an account stream", other.name()))),
        }
        Ok(())
    }

    fn open_account(&mut self, opened: &AccountOpened) -> Result<(), Fault> {
        let is_new = self.store.document(opened.account)?.is_none();
        self.keep_document(opened.account, &opened.document, None)?;
        self.state.totals.accounts += u64::from(is_new);
        Ok(())
    }

    fn renew_document(&mut self, renewed: &DocumentRenewed) -> Result<(), Fault> {
        self.opened_document(renewed.account, "a document begun anew")?;
        self.keep_document(renewed.account, &renewed.document, None)?;
        Ok(())
    }

    fn apply_setting(&mut self, setting: &Setting) -> Result<(), Fault> {
        let saved = self.opened_document(setting.account, "a setting")?;
        self.keep_document(setting.account, &saved, Some(&setting.change))?;
        Ok(())
    }

    fn opened_document(&self, account: AccountId, what: &str) -> Result<Vec<u8>, Fault> {
        let saved = self.store.document(account)?;
        saved.ok_or_else(|| Fault::peer(format!("{what} of account {account}, which was not opened")))
    }

    /// Merges a change into a document, where there is one, and keeps the document with what taps read of it.
    fn keep_document(
        &mut self,
        account: AccountId,
        saved: &[u8],
        change: Option<&[u8]>,
    ) -> Result<AccountSettings, Fault> {
        let mut document = self.read_document(account, saved).map_err(Fault::peer)?;
        let merged = match change {
            Some(change) => {
                document = document.with_proven_change(change).map_err(Fault::peer)?;
                Some(document.save())
            }
            None => None,
        };
        let settings = document.settings().map_err(Fault::peer)?;
        self.store.put_account(account, merged.as_deref().unwrap_or(saved), &document.heads(), &settings)?;
        Ok(settings)
    }

    /// A posted batch names the heads that it includes: own effects up to ours are in the balances. Ours is the one whose hash
    /// is ours, by whatever name; where no head of ours ends there (the end of the log was lost, and comes back), the name says it.
    pub(crate) fn settle(&mut self, shard: u8, posted: &[PostedHead]) -> Result<(), StoreError> {
        let ours = self.state.saved.branch.unwrap_or_else(|| self.own_log());
        for head in posted.iter().filter(|head| head.log.writer == self.identity.node) {
            if self.hash_at(head.position)?.map_or(head.log == ours, |hash| hash == head.hash) {
                self.store.settle(shard, head.position)?;
            }
        }
        Ok(())
    }

    pub(crate) fn publish(
        &mut self,
        published: &CampusPublished,
        touched: &mut Touched,
    ) -> Result<(), Fault> {
        let held = self.campus.as_ref().map_or(0, |campus| campus.version);
        if published.version <= held {
            return Ok(());
        }
        let config = CampusConfig::from_bytes(&published.config).map_err(Fault::peer)?;
        self.store.put_campus(published.version, &published.config)?;
        self.campus = Some(Arc::new(Campus::new(published.version, config, &self.identity)));
        touched.all = true;
        tracing::info!(version = published.version, "campus configuration applied");
        Ok(())
    }
}

/// No time that a centre writes comes near this (year 6429).
const TIME_MAX: Timestamp = Timestamp(1 << 47);

pub(crate) fn check_fen(amount: Fen) -> Result<(), Fault> {
    if amount > SUM_FEN_MAX || amount < -SUM_FEN_MAX {
        return Err(Fault::peer(format!("an amount of {} fen", amount.get())));
    }
    Ok(())
}

/// Refuses amounts and times that would overflow what is counted with them: even a signed word must not stop a node.
fn check_sense(body: &Body) -> Result<(), Fault> {
    let (amounts, time) = match body {
        Body::Anchor(anchor) => ([Fen::ZERO; 2], anchor.time),
        Body::Grant(grant) | Body::StandInGrant(StandInGrant(grant)) => {
            ([grant.amount, grant.total], grant.time)
        }
        Body::ShareGrant(grant) => ([grant.amount, grant.total], grant.time),
        Body::Pool(pool) => ([pool.per_day, pool.habit_only], Timestamp(0)),
        _ => return Ok(()),
    };
    amounts.into_iter().try_for_each(check_fen)?;
    if !(Timestamp(0)..TIME_MAX).contains(&time) {
        return Err(Fault::peer(format!("a time of {} ms", time.0)));
    }
    Ok(())
}

/// The records that are news, and the position of the first; `None` where all of them are known.
fn unknown_part(from: &Cursor, entries: &Entries) -> Option<(u64, Vec<Vec<u8>>)> {
    let known = usize::try_from((from.position + 1).saturating_sub(entries.first)).unwrap_or(usize::MAX);
    if known > 0 && known >= entries.records.len() {
        return None;
    }
    let records = entries.records.iter().skip(known).map(|record| record.to_vec()).collect();
    Some((entries.first + known as u64, records))
}

#[cfg(test)]
mod tests {
    use super::*;
    use feiqian_protocol::chain::HASH_ZERO;
    use feiqian_protocol::ids::InstitutionId;

    #[test]
    fn what_is_known_is_skipped() {
        let entries = Entries {
            log: LogId::shard(InstitutionId(1), 0),
            first: 4,
            records: vec![vec![4].into(), vec![5].into()],
            heads: Vec::new(),
        };
        let at = |position| Cursor { position, hash: HASH_ZERO };
        assert_eq!(unknown_part(&at(3), &entries), Some((4, vec![vec![4], vec![5]])));
        assert_eq!(unknown_part(&at(4), &entries), Some((5, vec![vec![5]])));
        assert_eq!(unknown_part(&at(5), &entries), None);
        assert_eq!(unknown_part(&at(9), &entries), None);
        assert_eq!(
            unknown_part(&at(1), &entries),
            Some((4, vec![vec![4], vec![5]])),
            "a gap shows at verification"
        );
    }
}
