//! Purses among the holders: cards in software that are loaded at a terminal when they run low and pay wherever they are held, are
//! torn away at random between any two commands, copied, and forged by somebody who has stolen a SAM.
//!
//! A tap of a card whose number is a serial is a touch of its purse. What is true of a card is what is in it; the books are held
//! against that.

mod cards;
mod carried;
mod cases;
mod checks;
mod withdrawn;

use std::collections::{BTreeMap, BTreeSet};

use feiqian_node::io::{Input, Ticket};
use feiqian_node::purse::{PurchaseReport, PurseDone, PurseError, PurseRequest};
use feiqian_protocol::entry::PurseLoaded;
use feiqian_protocol::ids::{CardNumber, Key, TerminalId};
use feiqian_protocol::purse::identify::{Event as CardEvent, Identified};
use feiqian_protocol::purse::issuer::Issuer;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::key::Algorithm;
use feiqian_protocol::purse::load::{Load, LoadEnd, LoadOrder, LoadStep};
use feiqian_protocol::purse::profile::{ApplicationName, CardProfiles};
use feiqian_protocol::purse::purchase::PurchaseEnd;
use feiqian_protocol::purse::question::LoadFate;
use feiqian_protocol::purse::recovery::{Evidence, LoadProbe};
use feiqian_protocol::purse::torn::{Outcome, ProofSeen, Seen};
use feiqian_protocol::purse::touch::{self, Link};
use feiqian_protocol::purse::values::{CardSerial, CardTime, PurseFen, TerminalNumber};
use feiqian_protocol::tap::BalanceView;
use feiqian_reconcile::purse::Purses as CentrePurses;

use cards::{BALANCE_FEN_MAX, Chip, Field, Pos, fen, number_of};

use super::hosts::NodeMessage;
use super::{Event, MS, World};
use crate::card::applet::Applet;
use crate::card::state::Masters;
use crate::plan::{Ask, Tap};
use crate::promises::Coverage;
use crate::promises::ledger::replacement;
use crate::seed::Seed;

/// Below this a card is loaded with everything, in fen.
const COLLECT_BELOW_FEN: u32 = 2_000;

/// How long a terminal waits for its node.
const WAIT_MS: u64 = 3_000;

/// Touches that copy the card, and that are of a forged one, one in so many.
const COPIED_EVERY: u64 = 60;
const FORGED_EVERY: u64 = 25;

/// All purses of a run.
pub(super) struct Purses {
    cards: BTreeMap<CardNumber, Chip>,
    terminals: BTreeMap<(usize, usize), Pos>,
    waiting: BTreeMap<u64, Waiting>,
    reports: Vec<Report>,
    /// What cards debited themselves while nobody has their proof of it: by card and counter, in fen. The books cannot know.
    unproven: BTreeMap<(CardSerial, u16), i64>,
    /// Purchases that a terminal has handed something out for: card, counter, terminal, sequence.
    approved: BTreeSet<(CardSerial, u16, TerminalNumber, u32)>,
    seed: Seed,
}

/// What a terminal waits for.
enum Waiting {
    Check(Touch, Asked),
    Balance(Touch),
    Load(Touch, Box<Load>),
    Evidence(Touch),
    Report(usize),
}

/// Who was asked, and when, in nanoseconds.
#[derive(Clone, Copy)]
struct Asked {
    site: usize,
    at_ns: u64,
}

/// A card on a reader.
#[derive(Clone)]
struct Touch {
    building: usize,
    terminal: usize,
    card: CardNumber,
    amount: PurseFen,
    /// The copy is held there.
    copied: bool,
    /// Nobody buys anything: the card is brought back so that it is known what became of it.
    last: bool,
}

/// What a terminal hands in until it is told that it is kept.
struct Report {
    site: usize,
    terminal: TerminalId,
    request: PurseRequest,
    told: bool,
}

impl Purses {
    pub(super) fn new(cards: impl Iterator<Item = CardNumber>, mut seed: Seed) -> Self {
        let chip = |card: CardNumber, index: usize| {
            let serial = CardSerial::of_card(&card)?;
            let algorithm = if index.is_multiple_of(2) { Algorithm::Des } else { Algorithm::AesCmac };
            Some((card, Chip::new(serial, algorithm)))
        };
        // And the one that its holder may be given for it.
        let both = |(index, card): (usize, CardNumber)| {
            [chip(replacement(&card), index + 1), chip(card, index)].into_iter().flatten()
        };
        let cards = cards.enumerate().flat_map(both).collect();
        Self {
            cards,
            terminals: BTreeMap::new(),
            waiting: BTreeMap::new(),
            reports: Vec::new(),
            unproven: BTreeMap::new(),
            approved: BTreeSet::new(),
            seed: seed.fork(),
        }
    }

    pub(super) fn has(&self, card: &CardNumber) -> bool {
        self.cards.contains_key(card)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cards.is_empty()
    }

    /// What the centre has for them.
    pub(super) fn of_centre(&self) -> CentrePurses {
        let Masters { load, tac, .. } = Masters::example();
        let profiles = self.cards.values().map(Chip::profile).collect();
        CentrePurses::new(Issuer::new(load, tac), profiles, false).expect("a card is a range of its own")
    }

    fn profiles(&self) -> CardProfiles {
        let profiles = self.cards.values().map(Chip::profile).collect();
        CardProfiles::new(ApplicationName::feiqian(), profiles).expect("a card is a range of its own")
    }
}

impl World<'_> {
    /// True where a tap is a touch of a purse.
    pub(super) fn is_touch(&self, tap: &Tap) -> bool {
        self.purses.cards.contains_key(&tap.card) && matches!(tap.ask, Ask::Amount(_))
    }

    /// A card is held to a terminal.
    pub(super) fn touch(&mut self, tap: &Tap) {
        let Ask::Amount(amount) = tap.ask else { return };
        let Some(amount) = PurseFen::from_fen(amount) else { return };
        let card = self.ledger.card_shown(&tap.card, tap.number);
        let Purses { cards, seed, .. } = &mut self.purses;
        let Some(chip) = cards.get_mut(&card) else { return };
        if seed.chance(1, COPIED_EVERY) && chip.copy.is_none() && chip.applet.state.balance != PurseFen::ZERO
        {
            chip.copy = Some(Applet::new(chip.applet.state.clone()));
        }
        let copied = chip.copy.is_some() && seed.chance(1, 2);
        let forged = seed.chance(1, FORGED_EVERY);
        let touch =
            Touch { building: tap.building, terminal: tap.terminal, card, amount, copied, last: false };
        self.outcome.taps.begun += 1;
        if forged {
            self.pay_forged(&touch);
        } else {
            self.begin_touch(touch, tap.number);
        }
    }

    fn begin_touch(&mut self, touch: Touch, tap: u32) {
        let Some(chip) = self.purses.cards.get_mut(&touch.card) else { return };
        if chip.busy {
            self.outcome.taps.declined += 1;
            return;
        }
        chip.busy = true;
        let check = PurseRequest::Check(chip.serial);
        self.look_at(&touch, tap);
        let asked = Asked { site: self.route(touch.building, touch.terminal), at_ns: self.now };
        if !self.ask_node(touch.clone(), check, Waiting::Check(touch.clone(), asked)) {
            self.go_on(touch);
        }
    }

    /// Asks the terminal's node; false where it is down, which a terminal notices at once.
    fn ask_node(&mut self, touch: Touch, request: PurseRequest, waiting: Waiting) -> bool {
        let site = self.route(touch.building, touch.terminal);
        if self.sites[site].core.is_none() {
            return false;
        }
        let terminal = self.terminal(touch.building, touch.terminal);
        self.wait_for(site, waiting, |ticket| Input::Purse(ticket, terminal, request));
        true
    }

    fn wait_for(&mut self, site: usize, waiting: Waiting, input: impl FnOnce(Ticket) -> Input) {
        self.tickets += 1;
        let ticket = self.tickets;
        self.purses.waiting.insert(ticket, waiting);
        self.tell_node(site, NodeMessage::Ask(input(Ticket(ticket))));
        self.after_ms(WAIT_MS, Event::Purse(ticket));
    }

    /// A terminal has waited long enough.
    pub(super) fn purse_late(&mut self, ticket: u64) {
        if let Some(waiting) = self.purses.waiting.remove(&ticket) {
            self.purse_went_on(waiting, Err(PurseError::OutOfService));
        }
    }

    pub(super) fn purse_told(&mut self, ticket: Ticket, done: Result<PurseDone, PurseError>) {
        if let Some(waiting) = self.purses.waiting.remove(&ticket.0) {
            self.audit.event(self.now, 12, ticket.0);
            self.purse_went_on(waiting, done);
        }
    }

    pub(super) fn purse_balance(&mut self, ticket: Ticket, view: Option<BalanceView>) {
        let Some(Waiting::Balance(touch)) = self.purses.waiting.remove(&ticket.0) else { return };
        let cash = view.and_then(|view| u32::try_from(view.cash.get()).ok()).unwrap_or(0);
        self.begin_load(touch, cash);
    }

    fn purse_went_on(&mut self, waiting: Waiting, done: Result<PurseDone, PurseError>) {
        match (waiting, done) {
            (Waiting::Check(touch, _), Ok(PurseDone::Declined(_))) => {
                self.reached(Coverage::PurseRefused);
                self.outcome.taps.declined += 1;
                self.leave(&touch);
            }
            (Waiting::Check(touch, asked), done) => {
                if let Some(serial) = CardSerial::of_card(&touch.card).filter(|_| done.is_ok()) {
                    self.check_usable(serial, asked);
                }
                self.go_on(touch);
            }
            (Waiting::Balance(touch), _) => self.pay(touch),
            (Waiting::Load(touch, load), done) => self.load_answered(touch, *load, done),
            (Waiting::Evidence(touch), done) => {
                let coverage = match done {
                    Ok(PurseDone::Settled(LoadFate::Done)) => Some(Coverage::PurseLoadFoundDone),
                    Ok(PurseDone::Settled(LoadFate::Reversed)) => Some(Coverage::PurseLoadReversed),
                    _ => None,
                };
                if let Some(coverage) = coverage {
                    self.reached(coverage);
                    if let Some(chip) = self.purses.cards.get_mut(&touch.card) {
                        chip.in_doubt = false;
                    }
                }
                self.pay(touch);
            }
            (Waiting::Report(index), Ok(PurseDone::Recorded { .. })) => {
                self.purses.reports[index].told = true
            }
            (Waiting::Report(index), _) => self.hand_in(index),
        }
    }

    /// What is open at this terminal first, then a load where the card runs low, then the purchase.
    fn go_on(&mut self, touch: Touch) {
        if !touch.copied && !self.recover_open(&touch) {
            return self.leave(&touch);
        }
        let Some(chip) = self.purses.cards.get(&touch.card) else { return };
        let low = chip.applet.state.balance.get() < COLLECT_BELOW_FEN || (touch.last && chip.in_doubt);
        let site = self.route(touch.building, touch.terminal);
        if !low || touch.copied || self.sites[site].core.is_none() {
            return self.pay(touch);
        }
        let card = touch.card.clone();
        self.wait_for(site, Waiting::Balance(touch), |ticket| Input::Balance(ticket, card.into()));
    }

    /// Finds out what became of the purchase that is open here; false where the card was torn away again.
    fn recover_open(&mut self, touch: &Touch) -> bool {
        let profiles = self.purses.profiles();
        self.pos(touch.building, touch.terminal);
        let Purses { cards, terminals, seed, .. } = &mut self.purses;
        let (Some(chip), Some(pos)) =
            (cards.get_mut(&touch.card), terminals.get_mut(&(touch.building, touch.terminal)))
        else {
            return false;
        };
        let Some(entry) = pos.open.get(&chip.serial).cloned() else { return true };
        let mut field = Field::new(&mut chip.applet, seed, !touch.last);
        let found = touch::identify(&mut field, &profiles).ok().and_then(|identified| {
            touch::recover_purchase(&mut field, &mut pos.sam, identified, &entry).ok()
        });
        let Some(outcome) = found else { return false };
        pos.open.remove(&chip.serial);
        chip.applet.reset();
        self.reached(Coverage::PurseRecovered);
        if matches!(outcome, Outcome::Completed { .. } | Outcome::CompletedWithoutProof { tac: Some(_) }) {
            self.purses.unproven.remove(&(entry.serial, entry.terms.counter.0));
        }
        match outcome {
            Outcome::Completed { tac } => self.report_purchase(touch, &entry, Some(tac), true),
            Outcome::CompletedWithoutProof { tac } => self.report_purchase(touch, &entry, tac, false),
            Outcome::NeverHappened | Outcome::InTransit { .. } => {}
        }
        true
    }

    fn begin_load(&mut self, touch: Touch, cash: u32) {
        let time = self.card_time();
        let profiles = self.purses.profiles();
        let Purses { cards, seed, .. } = &mut self.purses;
        let Some(chip) = cards.get_mut(&touch.card) else { return };
        let room = BALANCE_FEN_MAX - chip.applet.state.balance.get();
        // A card in doubt is asked about with a load that may be as small as it likes.
        let amount = if chip.in_doubt { cash.clamp(1, room) } else { cash.min(room) };
        if amount == 0 {
            return self.pay(touch);
        }
        let terminal = number_of(touch.building, touch.terminal);
        let order = LoadOrder { amount: fen(amount), terminal, time, pin: None };
        let mut field = Field::new(&mut chip.applet, seed, !touch.last);
        let begun = touch::identify(&mut field, &profiles).ok().and_then(|identified| {
            let (mut load, command) = Load::start(identified, order).ok()?;
            let answer = field.transmit(&command.encode());
            match load.handle(answer.as_deref().map_or(CardEvent::Lost, CardEvent::Answer)) {
                LoadStep::Ask(request) => Some((load, request)),
                _ => None,
            }
        });
        let Some((load, request)) = begun else { return self.leave(&touch) };
        let waiting = Waiting::Load(touch.clone(), Box::new(load));
        if !self.ask_node(touch.clone(), PurseRequest::Load(request), waiting) {
            self.pay(touch);
        }
    }

    fn load_answered(&mut self, touch: Touch, mut load: Load, done: Result<PurseDone, PurseError>) {
        match done {
            Ok(PurseDone::Authorized(time, mac2)) => {
                let Purses { cards, seed, .. } = &mut self.purses;
                let Some(chip) = cards.get_mut(&touch.card) else { return };
                let counter = chip.applet.state.online;
                let mut field = Field::of_one_command(&mut chip.applet, seed, !touch.last);
                let mut end = None;
                if let LoadStep::Transmit(command) = load.authorized(time, mac2) {
                    let answer = field.transmit(&command.encode());
                    end = Some(load.handle(answer.as_deref().map_or(CardEvent::Lost, CardEvent::Answer)));
                }
                let serial = chip.serial;
                match end {
                    Some(LoadStep::Done(LoadEnd::Credited { tac })) => {
                        chip.in_doubt = false;
                        self.reached(Coverage::PurseLoaded);
                        self.hand_in_new(&touch, PurseRequest::Loaded(PurseLoaded { serial, counter, tac }));
                        self.pay(touch);
                    }
                    _ => {
                        chip.in_doubt = true;
                        self.reached(Coverage::PurseLoadTorn);
                        self.leave(&touch);
                    }
                }
            }
            Ok(PurseDone::Unresolved(entry, challenge)) => self.probe_load(touch, &entry, challenge),
            Ok(PurseDone::Refused(_)) => self.pay(touch),
            // The terminal gives up; what the centre has done meanwhile is found when the card is seen again.
            _ => {
                if let Some(chip) = self.purses.cards.get_mut(&touch.card) {
                    chip.in_doubt = true;
                }
                self.pay(touch);
            }
        }
    }

    fn probe_load(&mut self, touch: Touch, entry: &JournalEntry, challenge: TerminalNumber) {
        let profiles = self.purses.profiles();
        self.pos(touch.building, touch.terminal);
        let Purses { cards, terminals, seed, .. } = &mut self.purses;
        let (Some(chip), Some(pos)) =
            (cards.get_mut(&touch.card), terminals.get_mut(&(touch.building, touch.terminal)))
        else {
            return;
        };
        // The centre knows of it, whoever forgot.
        chip.in_doubt = true;
        chip.applet.reset();
        let serial = chip.serial;
        let lies = seed.chance(1, 4);
        let mut field = Field::new(&mut chip.applet, seed, !touch.last);
        let probe = LoadProbe { challenge, pin: None };
        let evidence = touch::identify(&mut field, &profiles).ok().and_then(|identified: Identified| {
            touch::probe_load(&mut field, &mut pos.sam, identified, entry, probe).ok()
        });
        chip.applet.reset();
        if lies && !touch.last {
            // A terminal that is not to be believed says that the card is as it was.
            let seen = Seen {
                counter: entry.terms.counter,
                balance: entry.terms.balance_before,
                proof: ProofSeen::None,
                log: Vec::new(),
            };
            let lie = Evidence { seen, begun: None };
            let request = PurseRequest::Evidence(serial, Box::new(lie));
            let site = self.route(touch.building, touch.terminal);
            let terminal = self.terminal(touch.building, touch.terminal);
            if self.sites[site].core.is_some() {
                self.tickets += 1;
                let ticket = Ticket(self.tickets);
                self.tell_node(site, NodeMessage::Ask(Input::Purse(ticket, terminal, request)));
            }
            return self.leave(&touch);
        }
        let Some(evidence) = evidence else { return self.leave(&touch) };
        let request = PurseRequest::Evidence(serial, Box::new(evidence));
        if !self.ask_node(touch.clone(), request, Waiting::Evidence(touch.clone())) {
            self.pay(touch);
        }
    }

    fn pay(&mut self, touch: Touch) {
        if touch.last {
            return self.leave(&touch);
        }
        let time = self.card_time();
        let profiles = self.purses.profiles();
        self.pos(touch.building, touch.terminal);
        let Purses { cards, terminals, seed, unproven, .. } = &mut self.purses;
        let (Some(chip), Some(pos)) =
            (cards.get_mut(&touch.card), terminals.get_mut(&(touch.building, touch.terminal)))
        else {
            return;
        };
        let applet = match &mut chip.copy {
            Some(copy) if touch.copied => copy,
            _ => &mut chip.applet,
        };
        let before = applet.state.balance.to_fen().get();
        let mut field = Field::new(applet, seed, true);
        let bought = field.buy(&mut pos.sam, &profiles, touch.amount, time);
        let debited = before - applet.state.balance.to_fen().get();
        match bought {
            Some((PurchaseEnd::Approved(receipt), _)) => {
                self.report_purchase(&touch, &receipt.entry, Some(receipt.tac), true);
            }
            Some((PurchaseEnd::Unknown(_), written)) => {
                // The copy is not brought back: who made it has gone.
                if let Some(entry) = written.filter(|_| !touch.copied) {
                    if debited > 0 {
                        unproven.insert((chip.serial, entry.terms.counter.0), debited);
                    }
                    pos.open.insert(chip.serial, entry);
                }
                self.outcome.taps.unanswered += 1;
                self.reached(Coverage::PurseTorn);
            }
            Some((PurchaseEnd::Declined(_), _)) | None => self.outcome.taps.declined += 1,
        }
        self.leave(&touch);
    }

    /// Who has stolen a SAM has made a card with this serial. It pays; its TACs are nobody's.
    fn pay_forged(&mut self, touch: &Touch) {
        let time = self.card_time();
        let profiles = self.purses.profiles();
        self.pos(touch.building, touch.terminal);
        let Purses { cards, terminals, seed, .. } = &mut self.purses;
        let (Some(chip), Some(pos)) =
            (cards.get(&touch.card), terminals.get_mut(&(touch.building, touch.terminal)))
        else {
            return;
        };
        let mut forged = chip.forged(seed);
        let bought = Field::steady(&mut forged, seed).buy(&mut pos.sam, &profiles, touch.amount, time);
        if let Some((PurchaseEnd::Approved(receipt), _)) = bought {
            self.reached(Coverage::PurseForged);
            self.report_purchase(touch, &receipt.entry, Some(receipt.tac), true);
        }
    }

    fn leave(&mut self, touch: &Touch) {
        if let Some(chip) = self.purses.cards.get_mut(&touch.card) {
            chip.leave();
        }
    }

    fn report_purchase(
        &mut self,
        touch: &Touch,
        entry: &JournalEntry,
        tac: Option<feiqian_protocol::purse::values::Mac>,
        proven: bool,
    ) {
        let terms = &entry.terms;
        let Some(pos) = self.purses.terminals.get_mut(&(touch.building, touch.terminal)) else { return };
        pos.reported += 1;
        let sequence = Key::new(pos.reported.to_string()).expect("a number is a key");
        let report = PurchaseReport {
            epoch: 1,
            sequence,
            serial: entry.serial,
            kind: terms.kind,
            amount: terms.amount,
            balance_before: terms.balance_before,
            counter: terms.counter,
            terminal_number: terms.terminal,
            terminal_sequence: terms.sequence,
            time: terms.time,
            tac,
            proven,
        };
        if proven {
            self.outcome.taps.approved += 1;
            self.outcome.taps.approved_fen += i64::from(terms.amount.get());
            self.purses.approved.insert((entry.serial, terms.counter.0, terms.terminal, terms.sequence.0));
        }
        self.hand_in_new(touch, PurseRequest::Purchase(Box::new(report)));
    }

    fn hand_in_new(&mut self, touch: &Touch, request: PurseRequest) {
        let site = self.route(touch.building, touch.terminal);
        let terminal = self.terminal(touch.building, touch.terminal);
        self.purses.reports.push(Report { site, terminal, request, told: false });
        self.hand_in(self.purses.reports.len() - 1);
    }

    /// Hands a report in, again and again until it is kept.
    fn hand_in(&mut self, index: usize) {
        let Report { site, terminal, request, told } = &self.purses.reports[index];
        if *told {
            return;
        }
        let (site, terminal, request) = (*site, terminal.clone(), request.clone());
        self.wait_for(site, Waiting::Report(index), |ticket| Input::Purse(ticket, terminal, request));
    }

    fn pos(&mut self, building: usize, terminal: usize) {
        let number = number_of(building, terminal);
        self.purses.terminals.entry((building, terminal)).or_insert_with(|| Pos::new(number));
    }

    fn card_time(&self) -> CardTime {
        let now = self.epoch().plus_ms((self.now / MS) as i64);
        CardTime::at(now, 480).expect("a scenario plays in our years")
    }
}
