//! The centre's word for a card: what its holder brings into a building that has been cut off since it was given out
//! ([`feiqian_protocol::issuance`]), and what the centre answers a building that went by it.

use feiqian_protocol::account::{AccountError, CardStatus, Intent};
use feiqian_protocol::entry::{Actor, CardShown, EntryRef};
use feiqian_protocol::ids::{AccountId, CardNumber, NodeId};
use feiqian_protocol::issuance::Issuance;
use serde_json::json;

use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::io::Reply;
use crate::store::accounts;

impl Round<'_> {
    /// Signs that a card was given out, and that the one which it replaces is void, where it replaces one.
    pub(crate) fn sign_issuance(
        &self,
        account: AccountId,
        card: CardNumber,
        replaces: Option<CardNumber>,
    ) -> String {
        let identity = &self.state.identity;
        let time = self.state.time;
        let issuance = Issuance { institution: identity.institution, account, card, replaces, time };
        issuance.sign(&identity.log_key).to_text()
    }

    /// The same for somebody who asks for it, of a card that is good.
    pub(crate) fn issuance(&mut self, card: &CardNumber) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let Some(settings) = self.settings(account)? else {
            return Ok(refused("account", "the account has no document"));
        };
        if settings.closed {
            let error = AccountError::Closed;
            return Ok(refused(error.code(), error.to_string()));
        }
        if card.is_virtual() {
            return Ok(refused("not_active", "a phone brings its voucher"));
        }
        match settings.cards.get(card) {
            Some(CardStatus::Active) => {}
            Some(CardStatus::Lost) => return Ok(refused("card_lost", "the card is reported lost")),
            Some(CardStatus::Void) => {
                return Ok(refused("card_void", "the card was replaced or withdrawn before"));
            }
            _ => return Ok(refused("not_active", "the card is not active")),
        }
        let issuance = self.sign_issuance(account, card.clone(), None);
        Ok(Ok(json!({ "account": account, "card": card, "issuance": issuance })))
    }

    /// A building has gone by our word for a card. It forgets that once the account's stream has told it of the card.
    pub(crate) fn card_shown(
        &mut self,
        at: EntryRef,
        node: NodeId,
        shown: &CardShown,
    ) -> Result<(), StoreError> {
        let Issuance { institution, account, card, replaces, .. } = &shown.issuance.issuance;
        let identity = &self.state.identity;
        let ours = *institution == identity.institution
            && shown.issuance.is_signed_by(&identity.log_key.verifying_key());
        if !ours {
            self.fault(at.log, at.position, "a card with a word that is not the centre's")?;
            return self.answer_setting(at, node, *account, Some("not_issued"));
        }
        let refused = self.stand_by(*account, card, replaces.as_ref())?;
        self.answer_setting(at, node, *account, refused)
    }

    /// What we have signed, and know no more since we came back from an old copy, is so again; the stable code of why it cannot be
    /// otherwise.
    fn stand_by(
        &mut self,
        account: AccountId,
        card: &CardNumber,
        replaces: Option<&CardNumber>,
    ) -> Result<Option<&'static str>, StoreError> {
        let Some(settings) = self.settings(account)? else {
            return Ok(Some(AccountError::NoSuchAccount.code()));
        };
        if settings.cards.contains_key(card) {
            return Ok(None);
        }
        if settings.closed {
            return Ok(Some(AccountError::Closed.code()));
        }
        if replaces.is_some_and(|replaced| settings.cards.get(replaced) == Some(&CardStatus::Void))
            && settings.card_in_use().is_some()
        {
            // Another one was given out for it since.
            return Ok(Some("card_void"));
        }
        if accounts::account_of_card(self.db, card)?.is_some() {
            return Ok(Some("card_in_use"));
        }
        tracing::warn!(%account, %card, "a card that was given out before the copy was made is good again");
        let issued = Intent::IssueCard { card: card.clone() };
        let void = replaces.map(|card| Intent::VoidCard { card: card.clone() });
        for intent in [Some(issued), void].into_iter().flatten() {
            if let Err(error) = self.settle_as(account, intent, Actor::centre())? {
                return Ok(Some(error.code));
            }
        }
        Ok(None)
    }
}
