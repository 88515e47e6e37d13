//! A card in a field, in software, and the terminal that it is held to.

use std::collections::BTreeMap;
use std::convert::Infallible;

use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::key::Algorithm;
use feiqian_protocol::purse::profile::{CardProfile, CardProfiles};
use feiqian_protocol::purse::purchase::{PurchaseEnd, PurchaseOrder};
use feiqian_protocol::purse::sam::SoftSam;
use feiqian_protocol::purse::touch::{self, Journal, Link};
use feiqian_protocol::purse::values::{CardSerial, CardTime, Counter, PurseFen, TerminalNumber};

use crate::card::applet::{Applet, ISSUANCE_SFI};
use crate::card::state::{CardState, Masters};
use crate::seed::Seed;

/// Most fen on a card.
pub(super) const BALANCE_FEN_MAX: u32 = 100_000;

/// Touches that are torn, one in so many.
const TORN_EVERY: u64 = 6;

/// A card, and a copy of it where somebody has made one.
pub(super) struct Chip {
    pub(super) serial: CardSerial,
    pub(super) applet: Applet,
    pub(super) copy: Option<Applet>,
    /// It lies on a reader.
    pub(super) busy: bool,
    /// A load of which its terminal does not know what became.
    pub(super) in_doubt: bool,
}

impl Chip {
    pub(super) fn new(serial: CardSerial, algorithm: Algorithm) -> Self {
        let applet = Applet::new(CardState::issue(&Masters::example(), serial, algorithm));
        Self { serial, applet, copy: None, busy: false, in_doubt: false }
    }

    pub(super) fn profile(&self) -> CardProfile {
        CardProfile {
            first: self.serial,
            last: self.serial,
            algorithm: self.applet.state.algorithm,
            algorithm_id: None,
            purchase_key: 1,
            purchase_key_version: 1,
            load_key: 1,
            load_key_version: 1,
            log_counter: Default::default(),
            balance_fen_max: fen(BALANCE_FEN_MAX),
            record: None,
            issuance: Some(ISSUANCE_SFI),
        }
    }

    /// A full card with this serial, made by somebody who has stolen a SAM and has none of the issuer's other keys.
    pub(super) fn forged(&self, seed: &mut Seed) -> Applet {
        let thief = Masters {
            load: "00112233445566778899aabbccddeeff".parse().expect("32 hex digits are a key"),
            tac: "ffeeddccbbaa99887766554433221100".parse().expect("32 hex digits are a key"),
            ..Masters::example()
        };
        let mut forged = CardState::issue(&thief, self.serial, self.applet.state.algorithm);
        forged.balance = fen(BALANCE_FEN_MAX);
        // Counters that the card will hardly reach.
        forged.offline = Counter(30_000 + seed.below(30_000) as u16);
        Applet::new(forged)
    }

    /// Whoever held it to a reader takes it away.
    pub(super) fn leave(&mut self) {
        self.busy = false;
        self.applet.reset();
        if let Some(copy) = &mut self.copy {
            copy.reset();
        }
    }
}

/// A terminal.
pub(super) struct Pos {
    pub(super) sam: SoftSam,
    /// Purchases of which it does not know what became.
    pub(super) open: BTreeMap<CardSerial, JournalEntry>,
    pub(super) reported: u32,
}

impl Pos {
    pub(super) fn new(number: TerminalNumber) -> Self {
        let sam = SoftSam::new(number, Masters::example().purchase, 1, None);
        Self { sam, open: BTreeMap::new(), reported: 0 }
    }
}

pub(super) fn fen(amount: u32) -> PurseFen {
    PurseFen::new(amount).expect("it fits into a purse")
}

pub(super) fn number_of(building: usize, terminal: usize) -> TerminalNumber {
    TerminalNumber([0, 0, 0, 1, building as u8, terminal as u8])
}

/// A card in a field that ends after so many commands, before or after it has executed the last one.
pub(super) struct Field<'a> {
    applet: &'a mut Applet,
    seed: &'a mut Seed,
    left: Option<u64>,
    executes_last: bool,
}

impl<'a> Field<'a> {
    /// A field that may end at any command.
    pub(super) fn new(applet: &'a mut Applet, seed: &'a mut Seed, tears: bool) -> Self {
        let left = (tears && seed.chance(1, TORN_EVERY)).then(|| seed.below(5));
        let executes_last = seed.chance(1, 2);
        Self { applet, seed, left, executes_last }
    }

    /// A field that may end at the next command.
    pub(super) fn of_one_command(applet: &'a mut Applet, seed: &'a mut Seed, tears: bool) -> Self {
        let left = (tears && seed.chance(1, TORN_EVERY)).then_some(0);
        let executes_last = seed.chance(1, 2);
        Self { applet, seed, left, executes_last }
    }

    /// A field that does not end.
    pub(super) fn steady(applet: &'a mut Applet, seed: &'a mut Seed) -> Self {
        Self { applet, seed, left: None, executes_last: false }
    }

    /// What became of a purchase, and what its terminal had then written down; `None` where the card did not say who it is.
    pub(super) fn buy(
        &mut self,
        sam: &mut SoftSam,
        profiles: &CardProfiles,
        amount: PurseFen,
        time: CardTime,
    ) -> Option<(PurchaseEnd, Option<JournalEntry>)> {
        let order = PurchaseOrder { amount, time, record: None };
        let mut written = Written(None);
        let identified = touch::identify(self, profiles).ok()?;
        let Ok(end) = touch::purchase(self, sam, &mut written, identified, order);
        Some((end, written.0))
    }
}

impl Link for Field<'_> {
    fn transmit(&mut self, command: &[u8]) -> Option<Vec<u8>> {
        let random = self.seed.draw().to_be_bytes();
        match &mut self.left {
            None => Some(self.applet.process(command, random)),
            Some(0) => {
                if std::mem::take(&mut self.executes_last) {
                    self.applet.process(command, random);
                }
                self.applet.reset();
                None
            }
            Some(left) => {
                *left -= 1;
                Some(self.applet.process(command, random))
            }
        }
    }
}

/// A terminal's journal: written before DEBIT.
struct Written(Option<JournalEntry>);

impl Journal for Written {
    type Error = Infallible;

    fn persist(&mut self, entry: &JournalEntry) -> Result<(), Infallible> {
        self.0 = Some(entry.clone());
        Ok(())
    }
}
