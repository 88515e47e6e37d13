//! Settings that nodes wrote: taken into the account's stream, or refused, and answered either way.
//!
//! A new PIN widens, and so it acts nowhere before the centre has seen that the holder knew the one before
//! ([`crate::pin`]).
//!
//! A node's change is merged where it fits the document, so that concurrent ones meet by the document's own rules. Where it does
//! not (the document was begun anew since, or the change builds on one that was refused), the centre carries out by itself what the
//! intent says. A refused intent therefore never blocks a later one of the same node, and none is lost.

use feiqian_protocol::account::{AccountError, AccountSettings, Document, Intent, actor_id};
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::chain::Cursor;
use feiqian_protocol::entry::{Actor, CaseReason, Entry, EntryRef, Setting, SettingAnswered};
use feiqian_protocol::ids::{AccountId, CardNumber, Key, NodeId, Wallet};
use feiqian_protocol::limits::LOSSES_PER_ACCOUNT_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;

use crate::core::{Round, StoreError};
use crate::store::accounts::{self, StoredAccount};
use crate::store::{StoreError as Store, cases, logs, money, recovery as notes};

impl Round<'_> {
    /// A node narrowed a setting. `reported` is the place of the entry in time.
    pub(crate) fn node_setting(
        &mut self,
        at: EntryRef,
        node: NodeId,
        reported: Timestamp,
        entry: &Entry,
        setting: &Setting,
    ) -> Result<(), StoreError> {
        let refused = self.take_setting(at, node, reported, entry, setting)?;
        self.answer_setting(at, node, setting.account, refused)
    }

    /// Takes it, where it can be taken; returns the stable code of why it is refused otherwise.
    fn take_setting(
        &mut self,
        at: EntryRef,
        node: NodeId,
        reported: Timestamp,
        entry: &Entry,
        setting: &Setting,
    ) -> Result<Option<&'static str>, StoreError> {
        let Some(role) = self.state.nodes.get(&node).map(|node| node.role) else { return Ok(None) };
        let Some(stored) = accounts::load(self.db, setting.account)? else {
            self.fault(at.log, at.position, "a setting of an unknown account")?;
            return Ok(Some(AccountError::NoSuchAccount.code()));
        };
        let Some(mut document) = self.document(setting.account)? else {
            return Ok(Some(AccountError::NoSuchAccount.code()));
        };
        let settings = document.settings()?;
        if planted(Canary::RoleNotChecked) && !setting.intent.is_open_to(role) {
            if let Ok(change) = document.carry_out(&setting.intent, self.state.time) {
                let (intent, actor) = (setting.intent.clone(), entry.actor.clone());
                self.write_setting(setting.account, document, intent, change, actor, Some(at))?;
            }
            return Ok(None);
        }
        if !setting.intent.is_open_to(role) {
            self.fault(at.log, at.position, "a setting that a node may not change")?;
            return Ok(Some(AccountError::Role(role.name()).code()));
        }
        if document.is_so(&setting.intent)? || self.was_taken(at, setting, &document)? {
            // Another building was first, or a centre that came back from an old copy has taken its own word of it back.
            self.regain_pin(node, setting, &settings)?;
            return Ok(None);
        }
        if settings.closed && !matches!(setting.intent, Intent::ReportLoss { .. } | Intent::SetPin { .. }) {
            // It asks for no more than the closing has taken away; the node goes by its own word until it has that.
            return Ok(None);
        }
        let intent = fitting(&setting.intent, &settings);
        if let Err(error) = settings.check_of_node(&intent, role) {
            return Ok(Some(error.code()));
        }
        let pin = match self.typed_pin(node, setting, &settings)? {
            Ok(pin) => pin,
            Err(refused) => return Ok(Some(refused)),
        };
        let before = settings;
        let mut meant = before.clone();
        meant.narrow(&intent);
        if meant.losses.len() > LOSSES_PER_ACCOUNT_MAX {
            self.fault(at.log, at.position, "more reports of loss than an account takes")?;
            return Ok(Some(AccountError::NoRoom(document.save().len()).code()));
        }
        let (document, change) = match self.merged(node, &stored, setting, &meant)? {
            Merged::AsMeant(merged) => (*merged, setting.change.to_vec()),
            unlike => {
                if matches!(unlike, Merged::Otherwise) {
                    self.fault(at.log, at.position, "a setting whose change is not what it says")?;
                }
                match document.carry_out(&intent, self.state.time) {
                    Ok(change) if document.has_room() => (document, change),
                    Ok(_) => return Ok(Some(AccountError::NoRoom(document.save().len()).code())),
                    Err(error) => return Ok(Some(error.code())),
                }
            }
        };
        let actor = entry.actor.clone();
        self.write_setting(setting.account, document, intent.clone(), change, actor, Some(at))?;
        if let (Intent::SetPin { generation, .. }, Some(hash)) = (&intent, &pin) {
            self.keep_chosen_pin(setting.account, &before, *generation, hash)?;
        }
        if let Intent::ReportLoss { card, .. } = &intent
            && !planted(Canary::RefundSinceReportForgotten)
        {
            self.refund_since_report(setting.account, card, reported)?;
        }
        Ok(None)
    }

    /// True where it was taken before, even if something later has undone it.
    fn was_taken(&self, at: EntryRef, setting: &Setting, document: &Document) -> Result<bool, StoreError> {
        for name in notes::settings_taken_at(self.db, at)? {
            if self.is_told_of(name, at)? {
                return Ok(true);
            }
        }
        Ok(document.has_change(&setting.change)
            || match &setting.intent {
                Intent::ReportLoss { card, loss } => accounts::has_loss(self.db, card, loss)?,
                _ => false,
            })
    }

    /// The document with the node's change.
    fn merged(
        &self,
        node: NodeId,
        stored: &StoredAccount,
        setting: &Setting,
        meant: &AccountSettings,
    ) -> Result<Merged, StoreError> {
        if setting.document_epoch != stored.document_epoch {
            return Ok(Merged::Not);
        }
        let institution = self.state.identity.institution;
        let reader = actor_id(institution, node, u32::MAX, stored.document_epoch, setting.account);
        let mut merged = Document::load(&stored.document, reader)?;
        if merged.merge_change(&setting.change).is_err() || !merged.has_room() {
            return Ok(Merged::Not);
        }
        let Ok(settings) = merged.settings() else { return Ok(Merged::Otherwise) };
        let mut meant = meant.clone();
        if let Intent::SetPin { generation, replaces } = &setting.intent
            && let Some(pin) = settings.pins.get(generation).filter(|pin| !pin.initial)
        {
            meant.pins.retain(|old, _| !replaces.contains(old));
            meant.pins.insert(*generation, *pin);
        }
        Ok(if settings == meant { Merged::AsMeant(Box::new(merged)) } else { Merged::Otherwise })
    }

    /// Tells the node, which until then goes by what it wrote.
    pub(crate) fn answer_setting(
        &mut self,
        at: EntryRef,
        node: NodeId,
        account: AccountId,
        refused: Option<&'static str>,
    ) -> Result<(), StoreError> {
        if at.log.stream != 0 || !self.state.nodes.get(&node).is_some_and(|node| node.holds()) {
            return Ok(());
        }
        let refused = match refused {
            Some(reason) => {
                tracing::info!(log = %at.log, position = at.position, reason, "a setting of a node is refused");
                Some(Key::new(reason).map_err(|error| Store::Invariant(error.to_string()))?)
            }
            None => None,
        };
        let Cursor { position: stream_position, .. } = self.state.log(self.state.shard(account)).cursor;
        let answered = SettingAnswered { position: at.position, stream_position, refused };
        self.append(self.state.to_node(node), Actor::centre(), answered)?;
        Ok(())
    }

    /// What was paid with a card between its loss report in a building and the arrival of that report: the holder does not
    /// pay, though it was ingested before.
    fn refund_since_report(
        &mut self,
        account: AccountId,
        card: &CardNumber,
        reported: Timestamp,
    ) -> Result<(), StoreError> {
        for wallet in [Wallet::Cash, Wallet::Subsidy] {
            let last = self.holding(account, wallet)?.wallet.last;
            for (at, movement) in money::movements(self.db, account, wallet, last)? {
                let left = -movement.amount - movement.reversed;
                if movement.card.as_ref() != Some(card)
                    || movement.order_key <= reported
                    || !left.is_positive()
                    || movement.refunded != Fen::ZERO
                    || cases::loss_case(self.db, account, wallet, at)?.is_some()
                    || self.is_proven_by_pin(at)?
                {
                    continue;
                }
                self.refund_tap(at, account, wallet, movement, CaseReason::Loss)?;
            }
        }
        Ok(())
    }

    fn is_proven_by_pin(&self, at: EntryRef) -> Result<bool, StoreError> {
        let Some((_, record)) = logs::entry(self.db, at.log, at.position)? else { return Ok(false) };
        Ok(Entry::from_record(&record)?.actor.proof.has_pin())
    }
}

enum Merged {
    /// It does what it says.
    AsMeant(Box<Document>),
    /// It does something else.
    Otherwise,
    /// It cannot be merged.
    Not,
}

/// The intent, as it fits what others have changed meanwhile: limits that were lowered further stay as low as they are, and of
/// the PINs that are to be replaced some are gone.
fn fitting(intent: &Intent, settings: &AccountSettings) -> Intent {
    match intent {
        Intent::SetPin { generation, replaces } => {
            let replaces = replaces.iter().copied().filter(|pin| settings.pins.contains_key(pin)).collect();
            Intent::SetPin { generation: *generation, replaces }
        }
        Intent::SetLimits { single, daily } => Intent::SetLimits {
            single: (*single).min(settings.single_limit),
            daily: (*daily).min(settings.daily_limit),
        },
        other => other.clone(),
    }
}
