//! A purse and the books: what was loaded, what it paid, what the card said last, and what explains the difference.

use std::collections::BTreeMap;
use std::io::Write;

use feiqian_protocol::entry::{EntryRef, PurseSide};
use feiqian_protocol::ids::InstitutionId;
use feiqian_protocol::money::Fen;
use feiqian_protocol::purse::values::{CardSerial, Counter};
use feiqian_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::purchase::missing;
use super::{purse_ledger, transit_ledger};
use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::io::Reply;
use crate::store::purses::{self, Became, DecisionRow, LoadState};
use crate::store::{StoreError as Store, accounts};

/// Loads and purchases that are shown, the newest.
const LINES_MAX: usize = 50;

/// How a purse stands.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PurseView {
    /// The card.
    pub serial: CardSerial,
    /// Its account.
    pub account: Option<u64>,
    /// Fen that were loaded, or taken over.
    pub loaded_fen: Fen,
    /// Fen that the purse paid.
    pub paid_fen: Fen,
    /// Fen on the card by the books.
    pub books_fen: Fen,
    /// Fen on their way onto it.
    pub in_transit_fen: Fen,
    /// Fen that were handed out for it and suspense paid.
    pub suspense_fen: Fen,
    /// What the card said last.
    pub card: Option<CardWord>,
    /// Books less card: what it has paid and nobody has reported yet; below zero where the card has more than it may.
    pub difference_fen: Option<Fen>,
    /// Offline counters that nobody has reported, from and to.
    pub missing_counters: Vec<(u16, u16)>,
    /// The newest loads.
    pub loads: Vec<LoadLine>,
    /// The newest purchases.
    pub purchases: Vec<PurchaseLine>,
}

/// What a card said last.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct CardWord {
    /// Fen on it.
    pub balance_fen: Fen,
    /// The counter that its next purchase has.
    pub offline_counter: Counter,
    /// The counter that its next load has.
    pub online_counter: Counter,
    /// When that came here.
    pub at: Timestamp,
}

/// A load.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LoadLine {
    /// Its online counter.
    pub counter: Counter,
    /// Fen.
    pub amount_fen: Fen,
    /// `in_transit`, `done` or `reversed`.
    pub state: String,
    /// When, in local time.
    pub time: String,
    /// Where.
    pub terminal: String,
}

/// A purchase.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PurchaseLine {
    /// Its offline counter.
    pub counter: Counter,
    /// Fen.
    pub amount_fen: Fen,
    /// When, by the terminal.
    pub time: String,
    /// Where.
    pub terminal: String,
    /// Who was paid.
    pub merchant: u16,
    /// The entry: log and position.
    pub entry: String,
    /// Why there is a case about it, where there is one.
    pub case: Option<String>,
}

impl Round<'_> {
    /// How a purse stands, as an operator sees it.
    pub(crate) fn purse_view(&self, serial: CardSerial) -> Result<Reply, StoreError> {
        let institution = self.state.identity.institution;
        let view = self.view_of(serial, institution)?;
        if view.loads.is_empty() && view.purchases.is_empty() && view.account.is_none() {
            return Ok(refused("unknown_card", "nothing was heard of this card"));
        }
        Ok(Ok(serde_json::to_value(view).map_err(|error| Store::Invariant(error.to_string()))?))
    }

    fn view_of(&self, serial: CardSerial, institution: InstitutionId) -> Result<PurseView, StoreError> {
        let account = accounts::account_of_card(self.db, &serial.card_number())?;
        let loads = purses::loads(self.db, institution, serial)?;
        let purchases = purses::purchases(self.db, institution, serial)?;
        let card = purses::purse(self.db, serial)?;
        let books = self.ledger_now(&purse_ledger(serial))?;
        let done = loads.iter().filter(|row| row.state == LoadState::Done).map(|row| row.load.amount);
        let taken_over = loads.iter().map(|row| row.load.taken_over);
        let decisions = purses::decisions_about(self.db, institution, serial)?.into_iter();
        let decided: BTreeMap<EntryRef, PurseSide> =
            decisions.map(|DecisionRow { decided, .. }| (decided.purchase, decided.from)).collect();
        let paid = purchases
            .iter()
            .filter(|row| row.became.is_of_purse() || decided.get(&row.at) == Some(&PurseSide::Purse));
        let suspense = purchases.iter().filter(|row| {
            matches!(row.became, Became::WrongTac | Became::Clone | Became::Overdrawn)
                && !decided.contains_key(&row.at)
        });
        let heard: Vec<Counter> = purchases
            .iter()
            .filter(|row| !matches!(row.became, Became::WrongTac | Became::Hearsay))
            .map(|row| row.counter)
            .chain(card.iter().map(|card| card.offline))
            .collect();
        Ok(PurseView {
            serial,
            account: account.map(|account| account.0),
            loaded_fen: done.chain(taken_over).sum(),
            paid_fen: paid.map(|row| row.amount).sum(),
            books_fen: books,
            in_transit_fen: self.ledger_now(&transit_ledger(serial))?,
            suspense_fen: suspense.map(|row| row.amount).sum(),
            card: card.map(|card| CardWord {
                balance_fen: card.balance,
                offline_counter: card.offline,
                online_counter: card.online,
                at: card.at,
            }),
            difference_fen: card.map(|card| books - card.balance),
            missing_counters: missing(&heard),
            loads: loads
                .iter()
                .rev()
                .take(LINES_MAX)
                .map(|row| LoadLine {
                    counter: row.load.counter,
                    amount_fen: row.load.amount,
                    state: row.state.name().to_owned(),
                    time: row.load.time.to_string(),
                    terminal: row.load.terminal.to_string(),
                })
                .collect(),
            purchases: purchases
                .iter()
                .rev()
                .take(LINES_MAX)
                .map(|row| PurchaseLine {
                    counter: row.counter,
                    amount_fen: row.amount,
                    time: row.terms.2.clone(),
                    terminal: row.terms.0.clone(),
                    merchant: row.merchant,
                    entry: format!("{} {}", row.at.log, row.at.position),
                    case: row.became.case().map(str::to_owned),
                })
                .collect(),
        })
    }
}

/// Writes it for a person.
pub(crate) fn print(view: &PurseView, out: &mut dyn Write) -> std::io::Result<()> {
    match view.account {
        Some(account) => writeln!(out, "card {} of account {account}", view.serial)?,
        None => writeln!(out, "card {} of no account", view.serial)?,
    }
    writeln!(
        out,
        "by the books {} yuan are on it: {} loaded, {} paid; {} in transit; suspense paid {} for it",
        view.books_fen, view.loaded_fen, view.paid_fen, view.in_transit_fen, view.suspense_fen
    )?;
    if let (Some(card), Some(difference)) = (&view.card, view.difference_fen) {
        writeln!(
            out,
            "the card said {} last; its next purchase has counter {}, its next load {}",
            card.balance_fen, card.offline_counter.0, card.online_counter.0
        )?;
        if difference.is_positive() {
            writeln!(
                out,
                "{difference} yuan of purchases have not been reported yet, or were lost with a terminal"
            )?;
        } else if difference.is_negative() {
            writeln!(out, "the card has {} yuan more than it may have", -difference)?;
        }
    }
    for (from, to) in &view.missing_counters {
        if from == to {
            writeln!(out, "nobody has reported the purchase with counter {from}")?;
        } else {
            writeln!(out, "nobody has reported the purchases with counters {from} to {to}")?;
        }
    }
    for load in &view.loads {
        writeln!(out, "load {} of {} at {}: {}", load.counter.0, load.amount_fen, load.time, load.state)?;
    }
    for purchase in &view.purchases {
        let case = purchase.case.as_deref().unwrap_or("paid");
        writeln!(
            out,
            "purchase {} of {} at {}, merchant {}: {case}",
            purchase.counter.0, purchase.amount_fen, purchase.time, purchase.merchant
        )?;
    }
    Ok(())
}
