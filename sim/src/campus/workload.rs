//! What is played: accounts, top-ups, taps, and the buildings that they happen in.

use std::collections::BTreeMap;

use feiqian_protocol::campus::{Building, CampusConfig, Merchant, Mode, Policy, Terminal};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CampusId, CardNumber, InstitutionId, Key, NodeName, TerminalId};
use feiqian_protocol::money::{Fen, UnitPrice};
use feiqian_protocol::time::Timestamp;

use super::local::CALENDAR;

/// An account as it is imported.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Account {
    /// Its card.
    pub card: CardNumber,
    /// Patron class.
    pub patron_class: String,
    /// Opening cash.
    pub opening: Fen,
    /// No-PIN limit of a purchase, where it has one of its own.
    pub single_limit: Option<Fen>,
    /// No-PIN allowance of a day, where it has one of its own.
    pub daily_limit: Option<Fen>,
}

/// Money paid in at the centre.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Topup {
    /// When.
    pub at: Timestamp,
    /// For whom.
    pub card: CardNumber,
    /// How much.
    pub amount: Fen,
    /// Through which channel.
    pub channel: Key,
    /// The channel's own id of it.
    pub key: Key,
}

/// What a terminal asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ask {
    /// Passing a door.
    Access,
    /// A purchase of a fixed amount.
    Amount(Fen),
    /// A purchase of a measured quantity.
    Quantity(u32),
    /// Giving an earlier tap of the same terminal back, whole; its index in [`Workload::taps`].
    Reversal(usize),
}

/// One tap of a card.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tap {
    /// When.
    pub at: Timestamp,
    /// Where: an index into [`Workload::buildings`].
    pub building: usize,
    /// At which terminal.
    pub terminal: TerminalId,
    /// The terminal's sequence.
    pub sequence: Key,
    /// The card.
    pub card: CardNumber,
    /// What for.
    pub ask: Ask,
}

/// A building, with the terminals that are used in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Site {
    /// Its node.
    pub name: NodeName,
    /// What the node may write.
    pub role: Role,
    /// Its terminals.
    pub terminals: Vec<TerminalId>,
}

/// Everything that is played, in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workload {
    /// The buildings.
    pub buildings: Vec<Site>,
    /// Prices per unit by patron class.
    pub tariff: BTreeMap<String, UnitPrice>,
    /// The accounts.
    pub accounts: Vec<Account>,
    /// Top-ups, by time.
    pub topups: Vec<Topup>,
    /// Taps, by time.
    pub taps: Vec<Tap>,
}

impl Workload {
    /// The index of a building.
    pub fn building(&self, name: &str) -> Option<usize> {
        self.buildings.iter().position(|site| site.name.as_str() == name)
    }

    /// The times of the first and the last event; `None` where there is none.
    pub fn span(&self) -> Option<(Timestamp, Timestamp)> {
        let times = || self.taps.iter().map(|tap| tap.at).chain(self.topups.iter().map(|topup| topup.at));
        Some((times().min()?, times().max()?))
    }

    /// What a tap asks for, in fen; `None` where the holder is unknown or has no tariff.
    pub fn asked(&self, tap: &Tap, class: Option<&str>) -> Option<Fen> {
        match tap.ask {
            Ask::Access | Ask::Reversal(_) => Some(Fen::ZERO),
            Ask::Amount(amount) => Some(amount),
            Ask::Quantity(quantity) => self.tariff.get(class?)?.amount(quantity).ok(),
        }
    }

    /// The campus configuration that goes with it. Each building that takes payments is a merchant.
    pub fn campus(&self, mode: Mode) -> CampusConfig {
        let mut merchants = Vec::new();
        let mut buildings = Vec::new();
        for (site, id) in self.buildings.iter().zip(1_u16..) {
            let merchant = (site.role != Role::Door).then_some(id);
            if merchant.is_some() {
                merchants.push(Merchant { id, name: site.name.to_string(), tariff: self.tariff.clone() });
            }
            let terminal = |id: &TerminalId| Terminal { id: id.clone(), merchant, groups: Vec::new() };
            buildings.push(Building {
                node: site.name.clone(),
                terminals: site.terminals.iter().map(terminal).collect(),
            });
        }
        CampusConfig {
            institution: InstitutionId(1),
            campus: CampusId(1),
            calendar: CALENDAR,
            single_limit_fen: Fen::new(2_000),
            daily_limit_fen: Fen::new(5_000),
            policy: Policy { mode, ..Policy::default() },
            voucher_keys: Vec::new(),
            hours: Vec::new(),
            holidays: Vec::new(),
            meals: Vec::new(),
            merchants,
            buildings,
        }
    }
}
