//! What is left on a card that no building takes any more: one that was withdrawn, or of an account that was closed.

use feiqian_protocol::account::CardStatus;
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Actor, ActorKind, EntryRef, Proof, PurseReturned};
use feiqian_protocol::ids::{CardNumber, Key, Wallet};
use feiqian_protocol::purse::values::CardSerial;
use feiqian_protocol::time::Timestamp;
use serde_json::json;

use super::{purse_ledger, transit_ledger};
use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::io::Reply;
use crate::ledger::wallet_ledger;
use crate::store::purses;

impl Round<'_> {
    /// Notes when a card with a purse was withdrawn.
    pub(crate) fn note_void(&self, card: &CardNumber, time: Timestamp) -> Result<(), StoreError> {
        match CardSerial::of_card(card) {
            Some(serial) => purses::put_void(self.db, serial, time),
            None => Ok(()),
        }
    }

    /// Gives what the books have on a card that is out of use back to its account. That of a closed account is paid out from there.
    pub(crate) fn return_purse(&mut self, serial: CardSerial, operator: Key) -> Result<Reply, StoreError> {
        let card = serial.card_number();
        let account = match self.named(&card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let Some(settings) = self.settings(account)? else {
            return Ok(refused("account", "the account has no document"));
        };
        let since = match settings.cards.get(&card) {
            Some(CardStatus::Void) => Some(purses::void_at(self.db, serial)?.unwrap_or(self.state.time)),
            _ => self.state.closures.ordered(account),
        };
        let Some(since) = since else {
            return Ok(refused("in_use", "the card is not withdrawn: replace or withdraw it first"));
        };
        let on_its_way = self.ledger_now(&transit_ledger(serial))?;
        if !(self.ledger_now(&purse_ledger(serial))? + on_its_way).is_positive() {
            return Ok(refused("empty", "the books have nothing on the card"));
        }
        if self.horizon() <= since && !planted(Canary::PurseReturnedUnheard) {
            let message = "a building that was not heard since then may still report purchases of it; \
                           say this again when it was, or after the term";
            return Ok(refused("not_yet", message));
        }
        // A card that pays nowhere may have taken its last load or not: that is what comes back either way.
        if let Some(open) = purses::open_load(self.db, self.state.identity.institution, serial)? {
            self.settle_load(&open, false)?;
        }
        let amount = self.ledger_now(&purse_ledger(serial))?;
        let wallet = Wallet::Cash;
        let back = PurseReturned { account, wallet, amount, serial };
        let log = self.state.shard(account);
        let actor = Actor { kind: ActorKind::Operator, id: operator, proof: Proof::Login };
        let position = self.append(log, actor, back.clone())?;
        self.apply_return(EntryRef { log, position }, self.state.time, &back)?;
        Ok(Ok(json!({ "account": account, "serial": serial, "amount_fen": amount })))
    }

    /// What such an entry does.
    pub(crate) fn apply_return(
        &mut self,
        at: EntryRef,
        time: Timestamp,
        back: &PurseReturned,
    ) -> Result<(), StoreError> {
        let PurseReturned { account, wallet, amount, serial } = *back;
        let own_day = self.state.calendar().day(time);
        self.post(at, own_day, amount, purse_ledger(serial), wallet_ledger(account, wallet))?;
        purses::insert_return(self.db, at, serial, amount)?;
        self.move_wallet(at, time, (account, wallet), amount)
    }
}
