//! What is there can be spent, and no more: purchases that are made once everything is repaired and everybody is connected.

use feiqian_protocol::ids::CardNumber;
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, Pin, TapKey};

use super::Promise;
use super::books::{Checked, Finding};
use super::ledger::Told;
use crate::plan::{Ask, Manner, Tap};

/// Accounts that are spent to the last fen at the end.
pub const PROBED_ACCOUNTS: usize = 2;

/// Taps numbered from here on are such purchases. They are about money, and come with a PIN that is judged already.
const FIRST: u32 = 2_000_000_000;

/// True where a tap is such a purchase.
pub fn is_probe(key: &TapKey) -> bool {
    key.sequence.as_str().parse::<u32>().is_ok_and(|number| number >= FIRST)
}

/// One such purchase.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The number of its tap.
    pub number: u32,
    card: CardNumber,
    money: Fen,
    /// True for the fen more.
    beyond: bool,
}

/// The purchases of cards that have so much: all of it, and one fen more.
pub fn of(cards: Vec<(CardNumber, Fen)>) -> impl Iterator<Item = Probe> {
    let purchases = cards.into_iter().flat_map(|card| [(card.clone(), false), (card, true)]);
    (FIRST..).zip(purchases).map(|(number, ((card, money), beyond))| Probe { number, card, money, beyond })
}

impl Probe {
    fn ask(&self) -> Fen {
        if self.beyond { Fen::new(1) } else { self.money }
    }

    /// Made in a building.
    pub fn tap(&self, building: usize) -> Tap {
        Tap {
            number: self.number,
            building,
            terminal: 0,
            card: self.card.clone(),
            ask: Ask::Amount(self.ask()),
            pin: Pin::Right,
            manner: Manner::Patient,
        }
    }

    /// Whether it was answered as it must be.
    ///
    /// # Errors
    /// How it was, at this place.
    pub fn judge(&self, told: Option<&Told>, place: &str) -> Checked {
        let right = match told {
            Some(Told::Decided(Decision::Approved { amount, stand_in, .. })) => {
                !self.beyond && *amount == self.money && *stand_in == Fen::ZERO
            }
            Some(Told::Decided(Decision::Declined(_))) => self.beyond,
            _ => false,
        };
        if right {
            return Ok(());
        }
        let (ask, card, money) = (self.ask(), &self.card, self.money);
        let text = format!("{ask} of {card}, which has {money}, at {place}, all connected: {told:?}");
        let promise = if self.beyond { Promise::NoOverspend } else { Promise::Liveness };
        Err(Finding::new(promise, text))
    }
}
