//! Plans of workloads that bring their own campus: the generated college, and replayed files.

use std::collections::BTreeMap;
use std::path::Path;

use feiqian_protocol::tap::Pin;
use feiqian_protocol::time::Timestamp;

use super::{Account, Action, Ask, BuildingPlan, Fault, LinkQuality, Manner, Tap, What};
use crate::campus::workload::{self, Workload};
use crate::campus::{generate, replay};
use crate::scenario::ScenarioError;

/// What a workload brings.
pub(super) struct Imported {
    pub buildings: Vec<BuildingPlan>,
    pub tariff: BTreeMap<String, feiqian_protocol::money::UnitPrice>,
    pub accounts: Vec<Account>,
    pub actions: Vec<Action>,
    pub faults: Vec<Fault>,
    pub start: Timestamp,
    pub length_ms: u64,
    pub in_order: bool,
}

pub(super) fn college(name: &str, seed: u64, people: u32, days: u32) -> Result<Imported, ScenarioError> {
    let workload = generate::generate(seed, people, days)
        .map_err(|error| ScenarioError::new(name, format!("{error:#}")))?;
    imported(name, workload)
}

pub(super) fn replay(name: &str, dir: &Path, days: Option<u32>) -> Result<Imported, ScenarioError> {
    let workload = replay::read(dir, days).map_err(|error| ScenarioError::new(name, format!("{error:#}")))?;
    imported(name, workload)
}

fn imported(name: &str, workload: Workload) -> Result<Imported, ScenarioError> {
    let (first, last) =
        workload.span().ok_or_else(|| ScenarioError::new(name, "nothing happens in the workload"))?;
    let start = first.plus_ms(-60_000);
    let at = |time: Timestamp| u64::try_from(time.ms_since(start)).unwrap_or(0);
    let cards: BTreeMap<_, _> = workload.accounts.iter().map(|account| &account.card).zip(0..).collect();
    let mut actions = Vec::with_capacity(workload.taps.len() + workload.topups.len());
    for (tap, number) in workload.taps.iter().zip(0_u32..) {
        let what = match tap.ask {
            workload::Ask::Reversal(of) => What::Reversal { of: of as u32, amount: None, number },
            workload::Ask::Access => tap_of(&workload, tap, number, Ask::Access),
            workload::Ask::Amount(amount) => tap_of(&workload, tap, number, Ask::Amount(amount)),
            workload::Ask::Quantity(quantity) => tap_of(&workload, tap, number, Ask::Quantity(quantity)),
        };
        actions.push(Action { at_ms: at(tap.at), what });
    }
    for topup in &workload.topups {
        if let Some(account) = cards.get(&topup.card) {
            let (account, amount) = (*account, topup.amount);
            let what =
                What::TopUp { account, amount, channel: topup.channel.clone(), key: topup.key.clone() };
            actions.push(Action { at_ms: at(topup.at), what });
        }
    }
    actions.sort_by_key(|action| action.at_ms);
    let buildings = workload.buildings.iter().map(|site| BuildingPlan {
        name: site.name.clone(),
        role: site.role,
        terminals: site.terminals.clone(),
        groups: Vec::new(),
        terminal_groups: Vec::new(),
        open: Vec::new(),
        link: LinkQuality::LAN,
    });
    let accounts = workload.accounts.iter().map(|account| Account {
        card: account.card.clone(),
        phone: false,
        patron_class: account.patron_class.clone(),
        opening: account.opening,
        subsidy: Default::default(),
        single_limit: account.single_limit,
        daily_limit: account.daily_limit,
        groups: Vec::new(),
        valid_until: None,
    });
    Ok(Imported {
        buildings: buildings.collect(),
        accounts: accounts.collect(),
        actions,
        faults: Vec::new(),
        start,
        length_ms: at(last) + 60_000,
        in_order: false,
        tariff: workload.tariff,
    })
}

fn tap_of(workload: &Workload, tap: &workload::Tap, number: u32, ask: Ask) -> What {
    let site = &workload.buildings[tap.building];
    let terminal = site.terminals.iter().position(|terminal| *terminal == tap.terminal).unwrap_or(0);
    What::Tap(Tap {
        number,
        building: tap.building,
        terminal,
        card: tap.card.clone(),
        ask,
        pin: Pin::Absent,
        manner: Manner::Patient,
    })
}
