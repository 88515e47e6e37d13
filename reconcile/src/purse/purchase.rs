//! Purchases that terminals report: who pays the merchant.
//!
//! | the TAC | the card's counter | the books have it | and | pays | case |
//! |---|---|---|---|---|---|
//! | wrong or none | | | handed out | suspense | `purse_wrong_tac` |
//! | none | | | nothing handed out | nobody | `purse_unproven` |
//! | right | used for the same purchase | | | nobody again | |
//! | right | another than in an earlier report of the same purchase | | | nobody again; a fault of the node | |
//! | right | used for another purchase | | | suspense; the card is withdrawn | `purse_clone` |
//! | right | new | no | | suspense | `purse_overdrawn` |
//! | right | new | yes | handed out | the purse | |
//! | right | new | yes | nothing handed out | the purse, to suspense | `purse_unproven` |
//!
//! The books have what is on the card and what is on its way there: a load of which the card's word is still to come may be spent
//! already. Where the order of two reports of one counter matters, the first that is ingested counts.

use feiqian_protocol::entry::{EntryRef, PursePurchase};
use feiqian_protocol::money::Fen;
use feiqian_protocol::purse::values::Counter;
use feiqian_protocol::time::Timestamp;

use super::{purse_ledger, transit_ledger};
use crate::core::{Round, StoreError};
use crate::ingest::in_range;
use crate::ledger::{SUSPENSE, merchant_ledger};
use crate::store::purses::{self, Became, PurseState};

impl Round<'_> {
    /// A purchase that a terminal has reported.
    pub(crate) fn purse_purchase(
        &mut self,
        at: EntryRef,
        order_key: Timestamp,
        purchase: &PursePurchase,
    ) -> Result<(), StoreError> {
        let amount = purchase.amount;
        let terms = purchase.terms().filter(|_| in_range(amount) && amount.is_positive());
        let Some(terms) = terms else {
            return self.fault(at.log, at.position, "a purchase of a purse of an impossible amount");
        };
        let serial = purchase.serial;
        let purses = self.state.purses.clone();
        let is_right = |tac| purses.is_some_and(|purses| purses.tac_is_right(serial, terms, tac));
        let became = if purchase.tac.is_some_and(is_right) {
            self.judge_proven(at, purchase)?
        } else if purchase.proven {
            Became::WrongTac
        } else {
            Became::Hearsay
        };
        let day = self.state.calendar().day(order_key);
        if became.is_posted() {
            let from = if became.is_of_purse() { purse_ledger(serial) } else { SUSPENSE.to_owned() };
            let to = match became {
                Became::Unproven => SUSPENSE.to_owned(),
                _ => merchant_ledger(purchase.merchant),
            };
            self.post(at, day, amount, from, to)?;
        }
        purses::insert_purchase(self.db, at, purchase, became)?;
        if became == Became::Clone {
            self.withdraw_cloned(serial, at)?;
        }
        if matches!(became, Became::Posted | Became::Overdrawn | Became::Unproven) {
            self.note_card_word(purchase, order_key)?;
        }
        Ok(())
    }

    /// Of a purchase whose TAC is right.
    fn judge_proven(&mut self, at: EntryRef, purchase: &PursePurchase) -> Result<Became, StoreError> {
        let institution = self.state.identity.institution;
        let serial = purchase.serial;
        if let Some(known) = purses::with_terms(self.db, institution, purchase)?
            && known.counter != purchase.counter
        {
            self.fault(at.log, at.position, "a purchase of a purse that was reported with another counter")?;
            return Ok(Became::Repeat);
        }
        if let Some(known) = purses::counted(self.db, institution, serial, purchase.counter)? {
            return Ok(if known.is_same(purchase) { Became::Repeat } else { Became::Clone });
        }
        let on_card = self.ledger_now(&purse_ledger(serial))?;
        let on_its_way = self.ledger_now(&transit_ledger(serial))?;
        Ok(if on_card + on_its_way < purchase.amount {
            Became::Overdrawn
        } else if purchase.proven {
            Became::Posted
        } else {
            Became::Unproven
        })
    }

    fn note_card_word(&self, purchase: &PursePurchase, time: Timestamp) -> Result<(), StoreError> {
        let counter = purchase.counter;
        let after = counter.next().unwrap_or(counter);
        let balance = (purchase.balance_before - purchase.amount).or_zero();
        let known = purses::purse(self.db, purchase.serial)?;
        // A card that pays before it was ever loaded here says nothing of its loads.
        let Some(known) = known else { return Ok(()) };
        if known.offline >= after {
            return Ok(());
        }
        let state = PurseState { offline: after, balance, at: time.max(known.at), ..known };
        purses::put_purse(self.db, purchase.serial, &state)
    }

    /// What a node had no business to report is paid all the same.
    pub(crate) fn suspend_purse_purchase(
        &mut self,
        at: EntryRef,
        order_key: Timestamp,
        purchase: &PursePurchase,
    ) -> Result<(), StoreError> {
        if !in_range(purchase.amount) || !purchase.proven || purchase.amount == Fen::ZERO {
            return Ok(());
        }
        let day = self.state.calendar().day(order_key);
        self.post(at, day, purchase.amount, SUSPENSE.to_owned(), merchant_ledger(purchase.merchant))
    }
}

/// Offline counters below the newest one that no report was heard of, as ranges.
pub(crate) fn missing(heard: &[Counter]) -> Vec<(u16, u16)> {
    let mut ranges = Vec::new();
    let mut heard: Vec<u16> = heard.iter().map(|counter| counter.0).collect();
    heard.sort_unstable();
    heard.dedup();
    for pair in heard.windows(2) {
        if let [before, after] = pair
            && after - before > 1
        {
            ranges.push((before + 1, after - 1));
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_are_missing_are_named_as_ranges() {
        let of =
            |counters: &[u16]| missing(&counters.iter().map(|counter| Counter(*counter)).collect::<Vec<_>>());
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[5]), []);
        assert_eq!(of(&[9, 3, 4, 6, 6, u16::MAX]), [(5, 5), (7, 8), (10, u16::MAX - 1)]);
    }
}
