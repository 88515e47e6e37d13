//! Plays purchases and top-ups on a rig, and judges every decision by what an all-seeing authorizer would have said.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use feiqian_protocol::code::SignedReceipt;
use feiqian_protocol::ids::{AccountId, Key};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, DeclineReason, Pin, TapKey, TapKind, TapRequest};
use feiqian_protocol::time::{BusinessDay, Timestamp};
use feiqian_reconcile::io::Command;

use super::college::{Event, What};
use super::instruments::{Carried, Instrument};
use super::rig::{Rig, Told};
use super::stage::{card, till, top_up};
use crate::campus::local::CALENDAR;

/// Everything of such an interval happens at its beginning, top-ups first: one step of a core carries several taps.
const STEP_MS: i64 = 30_000;

/// What people really have, whoever knows it.
#[derive(Clone, Debug)]
pub struct Purses {
    fen: Vec<i64>,
    /// Of it topped up since the outage began.
    topped_up: Vec<i64>,
    /// What was spent on the day of the last purchase.
    today: Vec<(BusinessDay, i64)>,
}

impl Purses {
    /// Of these balances.
    pub fn new(fen: Vec<i64>) -> Self {
        let people = fen.len();
        Self { fen, topped_up: vec![0; people], today: vec![(BusinessDay(0), 0); people] }
    }

    /// What everybody has.
    pub fn fen(&self) -> &[i64] {
        &self.fen
    }

    /// From here on top-ups are out of reach of who is cut off.
    pub fn cut(&mut self) {
        self.topped_up.fill(0);
    }
}

/// Who is not asked at all: a reference that some other system would be.
pub trait Gate {
    /// Whether the node may be asked for this purchase.
    fn lets_through(&mut self, at: Timestamp, person: u32, building: usize, fen: i64) -> bool;
    /// The node approved it.
    fn approved(&mut self, person: u32, building: usize, fen: i64);
}

/// Nobody is held back.
pub struct Open;

impl Gate for Open {
    fn lets_through(&mut self, _: Timestamp, _: u32, _: usize, _: i64) -> bool {
        true
    }

    fn approved(&mut self, _: u32, _: usize, _: i64) {}
}

/// What came of taps.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Purchases tried.
    pub taps: u64,
    /// Declined though the money was there, known to somebody before the outage.
    pub false_declines: u64,
    /// Declined though the money was there, topped up since.
    pub unreachable: u64,
    /// A PIN was asked for though the day's allowance was not used up, and was given.
    pub pins_asked: u64,
    /// Fen approved.
    pub approved_fen: i64,
    /// Of `taps` those by purses.
    pub card_taps: u64,
    /// Of `false_declines` those of purses.
    pub card_false_declines: u64,
    /// Of `unreachable` those of purses.
    pub card_unreachable: u64,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.taps += other.taps;
        self.false_declines += other.false_declines;
        self.unreachable += other.unreachable;
        self.pins_asked += other.pins_asked;
        self.approved_fen += other.approved_fen;
        self.card_taps += other.card_taps;
        self.card_false_declines += other.card_false_declines;
        self.card_unreachable += other.card_unreachable;
    }
}

/// A run of taps on a rig.
pub struct Play<'a> {
    /// The cores.
    pub rig: Rig,
    /// The truth.
    pub purses: Purses,
    /// No-PIN limits by person: of a purchase, and of a day.
    pub limits: Vec<(Fen, Fen)>,
    /// By building.
    pub tallies: Vec<Tally>,
    /// Who is held back.
    pub gate: &'a mut dyn Gate,
    /// Of these people nothing is counted.
    pub uncounted: &'a [bool],
    /// What people pay by.
    pub carried: Carried,
    /// False while phones cannot reach the centre.
    pub centre_answers: bool,
    keys: u64,
}

/// One purchase on its way.
struct Purchase {
    person: u32,
    building: usize,
    fen: i64,
    decision: Option<Decision>,
    receipt: Option<Box<SignedReceipt>>,
}

impl Purchase {
    const fn of(person: u32, building: usize, fen: i64) -> Self {
        Self { person, building, fen, decision: None, receipt: None }
    }
}

impl<'a> Play<'a> {
    /// Begins.
    pub fn new(
        rig: Rig,
        purses: Purses,
        buildings: usize,
        limits: Vec<(Fen, Fen)>,
        gate: &'a mut dyn Gate,
        uncounted: &'a [bool],
        carried: Carried,
    ) -> Self {
        // Keys never come again, whatever was played on the snapshot before: later runs start later.
        let keys = rig.now().0.unsigned_abs() * 1_000;
        let tallies = vec![Tally::default(); buildings];
        Self { rig, purses, limits, tallies, gate, uncounted, carried, centre_answers: true, keys }
    }

    /// Plays events in order.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn events(&mut self, events: &[Event]) -> Result<()> {
        let step = |event: &Event| event.at.0.div_euclid(STEP_MS);
        for events in events.chunk_by(|a, b| step(a) == step(b)) {
            if let Some(first) = events.first() {
                self.rig.advance(Timestamp(step(first) * STEP_MS))?;
                self.step(events)?;
            }
        }
        Ok(())
    }

    fn step(&mut self, events: &[Event]) -> Result<()> {
        let mut topups = Vec::new();
        for event in events {
            if let What::TopUp { fen } = event.what {
                topups.push(self.top_up(event.person, fen)?);
            }
        }
        if !topups.is_empty() {
            self.rig.commands(topups)?;
            self.rig.settle()?;
        }
        let mut purchases = Vec::new();
        for event in events {
            if let What::Buy { building, fen } = event.what {
                let building = usize::from(building);
                purchases.push(Purchase::of(event.person, building, fen));
            }
        }
        self.buy(purchases)
    }

    fn top_up(&mut self, person: u32, fen: i64) -> Result<Command> {
        self.keys += 1;
        self.purses.fen[person as usize] += fen;
        self.purses.topped_up[person as usize] += fen;
        top_up(person, fen, format!("t-{}", self.keys))
    }

    /// Tries purchases of this moment; how many were approved.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn try_all(&mut self, purchases: &[(u32, usize, i64)]) -> Result<Vec<bool>> {
        let mut tried: Vec<Purchase> =
            purchases.iter().map(|(person, building, fen)| Purchase::of(*person, *building, *fen)).collect();
        self.ask(&mut tried, Pin::Absent)?;
        self.ask(&mut tried, Pin::Right)?;
        let approved: Vec<bool> = tried
            .iter()
            .map(|purchase| matches!(purchase.decision, Some(Decision::Approved { .. })))
            .collect();
        for (purchase, approved) in tried.iter().zip(&approved) {
            self.judge(purchase, *approved, false);
        }
        Ok(approved)
    }

    fn buy(&mut self, mut purchases: Vec<Purchase>) -> Result<()> {
        let mut later = Vec::new();
        let mut phones = BTreeSet::new();
        // A phone shows its next code once it has the receipt of the one before.
        for purchase in std::mem::take(&mut purchases) {
            let again =
                self.carried.of(purchase.person) == Instrument::Phone && !phones.insert(purchase.person);
            if again { &mut later } else { &mut purchases }.push(purchase);
        }
        self.collect(&purchases)?;
        self.fetch(&purchases)?;
        self.pay_from_purses(&mut purchases);
        self.ask(&mut purchases, Pin::Absent)?;
        let asked: Vec<bool> = purchases.iter().map(Purchase::wants_pin).collect();
        // Who is asked for the PIN gives it.
        self.ask(&mut purchases, Pin::Right)?;
        for (purchase, pin_asked) in purchases.iter().zip(asked) {
            let approved = matches!(purchase.decision, Some(Decision::Approved { .. }));
            self.judge(purchase, approved, pin_asked);
        }
        self.bring_receipts(&purchases)?;
        if later.is_empty() { Ok(()) } else { self.buy(later) }
    }

    /// Purses that are low collect what is in the account, where the terminal is connected. A load costs what the centre
    /// has at hand of the account, which is what a purchase with the PIN gets; the cards are a number each.
    fn collect(&mut self, purchases: &[Purchase]) -> Result<()> {
        let mut collecting: Vec<(u32, usize, i64)> = Vec::new();
        for purchase in purchases {
            let Purchase { person, building, .. } = *purchase;
            let account = self.purses.fen[person as usize] - self.carried.purse[person as usize];
            let twice = collecting.iter().any(|(other, ..)| *other == person);
            if self.carried.collects(person, purchase.fen)
                && self.rig.is_connected(building)
                && account > 0
                && !twice
            {
                collecting.push((person, building, account));
            }
        }
        let mut requests = Vec::new();
        for (person, building, fen) in &collecting {
            let request = self.request(*person, *building, *fen, Pin::Right)?;
            requests.push((*building, request));
        }
        let told = self.rig.taps(requests)?;
        for ((person, _, fen), told) in collecting.into_iter().zip(told) {
            // Where some of it lies with a building that is cut off, it stays in the account.
            if matches!(told.decision, Decision::Approved { .. }) {
                self.carried.purse[person as usize] += fen;
            }
        }
        Ok(())
    }

    /// Whose purse holds enough pays from it, and nobody is asked; whose does not, pays from what is left in the account.
    fn pay_from_purses(&mut self, purchases: &mut [Purchase]) {
        for purchase in purchases {
            let purse = &mut self.carried.purse[purchase.person as usize];
            if self.carried.instruments.of(purchase.person as usize) == Instrument::Purse
                && *purse >= purchase.fen
            {
                *purse -= purchase.fen;
                let amount = Fen::new(purchase.fen);
                purchase.decision =
                    Some(Decision::Approved { account: AccountId(0), amount, stand_in: Fen::ZERO });
            }
        }
    }

    /// Everybody with a phone has used it before: their money is at the centre, and they have a voucher.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn equip(&mut self) -> Result<()> {
        let people = 0..u32::try_from(self.purses.fen.len()).context("too many people")?;
        let purchases: Vec<Purchase> = people.map(|person| Purchase::of(person, 0, 0)).collect();
        for _ in 0..2 {
            self.fetch(&purchases)?;
        }
        Ok(())
    }

    /// Phones fetch a voucher before they pay.
    fn fetch(&mut self, purchases: &[Purchase]) -> Result<()> {
        let mut people: Vec<u32> = purchases.iter().map(|purchase| purchase.person).collect();
        people.retain(|person| self.centre_answers && self.carried.of(*person) == Instrument::Phone);
        let commands = people.iter().map(|person| self.carried.fetch(*person)).collect::<Result<Vec<_>>>()?;
        if commands.is_empty() {
            return Ok(());
        }
        let answers = self.rig.commands(commands)?;
        for (person, answer) in people.into_iter().zip(answers) {
            self.carried.keep(person, &answer)?;
        }
        self.rig.settle()
    }

    /// And bring the receipts.
    fn bring_receipts(&mut self, purchases: &[Purchase]) -> Result<()> {
        let mut commands = Vec::new();
        for purchase in purchases {
            if let Some(receipt) = &purchase.receipt {
                self.carried.spent(purchase.person, receipt.receipt().voucher);
                commands.push(Command::Receipt { receipt: receipt.to_digits() });
            }
        }
        if !self.centre_answers || commands.is_empty() {
            return Ok(());
        }
        self.rig.commands(commands)?;
        self.rig.settle()
    }

    fn request(&mut self, person: u32, building: usize, fen: i64, pin: Pin) -> Result<TapRequest> {
        self.keys += 1;
        let sequence = Key::new(self.keys.to_string()).context("a sequence")?;
        let key = TapKey { terminal: till(building)?, epoch: 1, sequence };
        let at = self.rig.now();
        let code = match self.carried.of(person) {
            Instrument::Phone => self.carried.code(person, at)?,
            _ => None,
        };
        let code = code.map(|code| Box::new(self.rig.check(building, code)));
        let card = match &code {
            Some(code) => code.voucher().card(),
            None => card(person)?,
        };
        Ok(TapRequest { key, card, code, kind: TapKind::Amount(Fen::new(fen)), pin })
    }

    fn ask(&mut self, purchases: &mut [Purchase], pin: Pin) -> Result<()> {
        let at = self.rig.now();
        let mut asked = Vec::new();
        let mut requests = Vec::new();
        for (index, purchase) in purchases.iter_mut().enumerate() {
            let Purchase { person, building, fen, .. } = *purchase;
            let due = if pin == Pin::Absent {
                purchase.decision.is_none() && self.gate.lets_through(at, person, building, fen)
            } else {
                purchase.wants_pin()
            };
            if !due {
                continue;
            }
            let request = self.request(person, building, fen, pin)?;
            requests.push((building, request));
            asked.push(index);
        }
        let told = self.rig.taps(requests)?;
        for (index, Told { decision, receipt }) in asked.into_iter().zip(told) {
            (purchases[index].decision, purchases[index].receipt) = (Some(decision), receipt);
        }
        Ok(())
    }

    fn judge(&mut self, purchase: &Purchase, approved: bool, pin_asked: bool) {
        let Purchase { person, building, fen, .. } = *purchase;
        let index = person as usize;
        let day = CALENDAR.day(self.rig.now());
        let spent = &mut self.purses.today[index];
        if spent.0 != day {
            *spent = (day, 0);
        }
        let within_limit = self
            .limits
            .get(index)
            .is_none_or(|(single, daily)| fen <= single.get() && spent.1 + fen <= daily.get());
        let has = self.purses.fen[index];
        if approved {
            spent.1 += fen;
            self.purses.fen[index] -= fen;
            self.gate.approved(person, building, fen);
        }
        let tally = &mut self.tallies[building];
        tally.approved_fen += if approved { fen } else { 0 };
        if self.uncounted.get(index).copied().unwrap_or(false) {
            return;
        }
        let of_card = self.carried.of(person) == Instrument::Purse;
        tally.taps += 1;
        tally.card_taps += u64::from(of_card);
        tally.pins_asked += u64::from(pin_asked && within_limit);
        if !approved && has >= fen {
            if has - self.purses.topped_up[index] >= fen {
                tally.false_declines += 1;
                tally.card_false_declines += u64::from(of_card);
            } else {
                tally.unreachable += 1;
                tally.card_unreachable += u64::from(of_card);
            }
        }
    }
}

impl Purchase {
    fn wants_pin(&self) -> bool {
        self.decision == Some(Decision::Declined(DeclineReason::PinRequired))
    }
}
