//! What the cores hold when an outage begins: accounts, a history, balances, rights by habit, and some real hours of taps.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use feiqian_protocol::campus::{Building, CampusConfig, Merchant, Policy, Terminal};
use feiqian_protocol::code::VoucherKey;
use feiqian_protocol::ids::{CampusId, CardNumber, Key, NodeName, TerminalId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::io::{Command, ImportedAccount, PastPurchase};

use super::college::{Event, What};
use super::instruments::{Carried, Instrument, Instruments, activate};
use super::play::Purses;
use super::rig::{INSTITUTION, Rig, Snapshot, VOUCHER_KEY};
use crate::campus::local::CALENDAR;

/// Accounts of one import command, and purchases.
const IMPORT_PART: usize = 500;

/// What happens at one campus.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The buildings; events name them by index.
    pub buildings: Vec<NodeName>,
    /// No-PIN limits by person: of a purchase, and of a day.
    pub limits: Vec<(Fen, Fen)>,
    /// Fen that people have before the first event.
    pub opening: Vec<i64>,
    /// Purchases and top-ups, by time.
    pub events: Vec<Event>,
}

impl Workload {
    /// The events of an interval.
    pub fn between(&self, from: Timestamp, until: Timestamp) -> &[Event] {
        let at = |time| self.events.partition_point(|event| event.at < time);
        &self.events[at(from)..at(until)]
    }

    /// What people have at a time: all that they could pay was paid.
    pub(super) fn balances(&self, at: Timestamp) -> Vec<i64> {
        let mut balances = self.opening.clone();
        for event in self.between(Timestamp(i64::MIN), at) {
            let balance = &mut balances[event.person as usize];
            match event.what {
                What::TopUp { fen } => *balance += fen,
                What::Buy { fen, .. } if *balance >= fen => *balance -= fen,
                What::Buy { .. } => {}
            }
        }
        balances
    }

    /// The campus configuration that goes with it.
    ///
    /// # Errors
    /// Names that are none.
    pub fn campus(&self, policy: &Policy) -> Result<CampusConfig> {
        let mut buildings = Vec::new();
        let mut merchants = Vec::new();
        for ((index, node), id) in self.buildings.iter().enumerate().zip(1_u16..) {
            merchants.push(Merchant { id, name: node.to_string(), tariff: BTreeMap::new() });
            let till = Terminal { id: till(index)?, merchant: Some(id), groups: Vec::new() };
            buildings.push(Building { node: node.clone(), terminals: vec![till] });
        }
        Ok(CampusConfig {
            institution: INSTITUTION,
            campus: CampusId(1),
            calendar: CALENDAR,
            single_limit_fen: Fen::new(2_000),
            daily_limit_fen: Fen::new(5_000),
            policy: policy.clone(),
            voucher_keys: Vec::new(),
            hours: Vec::new(),
            holidays: Vec::new(),
            meals: Vec::new(),
            merchants,
            buildings,
        })
    }
}

/// A building's till.
pub fn till(building: usize) -> Result<TerminalId> {
    TerminalId::new(format!("till-{building}")).context("a till's name")
}

/// A person's card.
pub fn card(person: u32) -> Result<CardNumber> {
    CardNumber::new(format!("c{person:05}")).context("a card's number")
}

/// Accounts without money, known at every node: what all runs of a campus have in common.
///
/// # Errors
/// What a core could not do.
pub fn base(workload: &Workload, at: Timestamp, instruments: Instruments) -> Result<Snapshot> {
    let mut rig = Rig::new(at)?;
    publish(&mut rig, workload, &Policy::default(), instruments)?;
    let account = |(person, (single, daily)): (u32, &(Fen, Fen))| {
        Ok(ImportedAccount {
            card: card(person)?,
            patron_class: "student".to_owned(),
            opening_fen: Fen::ZERO,
            subsidy_fen: Fen::ZERO,
            single_limit_fen: Some(*single),
            daily_limit_fen: Some(*daily),
            groups: Vec::new(),
            initial_pin: None,
            opened: None,
            valid_until: None,
        })
    };
    let accounts = (0_u32..).zip(&workload.limits).map(account).collect::<Result<Vec<_>>>()?;
    for part in accounts.chunks(IMPORT_PART) {
        rig.command(Command::ImportAccounts { accounts: part.to_vec() })?;
    }
    let phones = (0_u32..).zip(&workload.limits).map(|(person, _)| person);
    let phones = phones.filter(|person| instruments.of(*person as usize) == Instrument::Phone);
    let activations = phones.map(activate).collect::<Result<Vec<_>>>()?;
    rig.commands(activations)?;
    for node in &workload.buildings {
        rig.enrol(node)?;
    }
    rig.spread_accounts()?;
    Ok(rig.snapshot())
}

/// Publishes the configuration of a campus that pays by these.
///
/// # Errors
/// What a core could not do.
pub fn publish(rig: &mut Rig, workload: &Workload, policy: &Policy, instruments: Instruments) -> Result<()> {
    let mut campus = workload.campus(policy)?;
    if instruments == Instruments::Mix {
        let key = VoucherKey {
            number: VOUCHER_KEY,
            key: rig.voucher_key(),
            from_ms: Timestamp(0),
            to_ms: Timestamp(i64::from(u32::MAX) * 1_000),
        };
        campus.voucher_keys = vec![key];
    }
    rig.publish(&campus)
}

/// Takes the history of a workload over, connects all, and credits what everybody has at `from` (or what `stakes` says):
/// rights are handed out.
///
/// # Errors
/// What a core could not do.
pub fn stage(
    base: &Snapshot,
    workload: &Workload,
    policy: &Policy,
    from: Timestamp,
    stakes: impl Fn(usize) -> Option<i64>,
    carried: &Carried,
) -> Result<(Rig, Purses)> {
    let mut rig = Rig::resume(base)?;
    rig.advance(from)?;
    publish(&mut rig, workload, policy, carried.instruments)?;
    import_history(&mut rig, workload, policy, from)?;
    let mut balances = workload.balances(from);
    for (person, balance) in balances.iter_mut().enumerate() {
        *balance = stakes(person).unwrap_or(*balance);
    }
    // Every building is there before there is money: what is free is split among all of them at once, not given to whoever
    // is first.
    for building in 0..workload.buildings.len() {
        rig.connect(building)?;
    }
    rig.settle()?;
    let mut credits = Vec::new();
    for ((person, balance), purse) in (0_u32..).zip(&balances).zip(&carried.purse) {
        if balance - purse > 0 {
            credits.push(top_up(person, balance - purse, format!("opening-{person}"))?);
        }
    }
    rig.commands(credits)?;
    rig.settle()?;
    Ok((rig, Purses::new(balances)))
}

/// The command that credits a person.
pub fn top_up(person: u32, fen: i64, key: String) -> Result<Command> {
    Ok(Command::Topup {
        card: card(person)?,
        amount_fen: Fen::new(fen),
        wallet: Wallet::Cash,
        channel: Key::new("counter").context("a channel")?,
        key: Key::new(key).context("a key")?,
    })
}

fn import_history(rig: &mut Rig, workload: &Workload, policy: &Policy, until: Timestamp) -> Result<()> {
    let since = until.plus_ms(-i64::from(policy.history_days + 1) * 86_400_000);
    let offset_ms = i64::from(CALENDAR.utc_offset_minutes) * 60_000;
    let mut purchases = Vec::new();
    for event in workload.between(since, until) {
        if let What::Buy { building, fen } = event.what {
            purchases.push(PastPurchase {
                local_ms: event.at.0 + offset_ms,
                card: card(event.person)?,
                node: workload.buildings[usize::from(building)].clone(),
                amount_fen: Fen::new(fen),
            });
        }
    }
    let file = Key::new("history").context("a key")?;
    let parts = purchases.chunks(IMPORT_PART);
    let count = parts.len();
    for (part, purchases) in (0_u32..).zip(parts) {
        let last = part as usize + 1 == count;
        rig.command(Command::ImportHistory {
            file: file.clone(),
            part,
            last,
            purchases: purchases.to_vec(),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::frontier::college::{self, BUILDINGS, FIRST_DAY, HISTORY_DAYS, Outage};
    use crate::frontier::mode::{Contender, habits};

    #[test]
    fn a_reference_is_split_by_habit_to_the_fen_whoever_connects_first() {
        let at = CALENDAR.start(FIRST_DAY).plus_ms(i64::from(HISTORY_DAYS) * 86_400_000);
        let outage = Outage { from: at, until: at, cut: vec![true; BUILDINGS.len()], topups: true };
        let college = college::generate(5, 300, HISTORY_DAYS, &outage);
        let workload = Workload {
            buildings: BUILDINGS.iter().map(|name| NodeName::new(*name).unwrap()).collect(),
            limits: vec![(Fen::new(2_000), Fen::new(5_000)); 300],
            opening: college.opening,
            events: college.events,
        };
        let base = base(&workload, CALENDAR.start(FIRST_DAY), Instruments::Account).unwrap();
        let policy = Contender::StrictReference.policy();
        let carried = Carried::at(Instruments::Account, &workload, at);
        let (rig, purses) = stage(&base, &workload, &policy, at, |_| None, &carried).unwrap();
        let nodes: Vec<_> = (0..BUILDINGS.len()).map(|building| rig.node(building)).collect();
        let (habits, means) = habits(&nodes, &workload, at);
        let mut rights = BTreeMap::<i64, Vec<i64>>::new();
        let mut statement = rig
            .tables()
            .prepare("SELECT account, SUM(out) FROM rights GROUP BY account, node ORDER BY 1, node")
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let out = rights.entry(row.get(0).unwrap()).or_default();
            out.push(row.get(1).unwrap());
        }
        for ((account, fen), habits) in (1..).zip(purses.fen()).zip(&habits) {
            let split = habits.split(Fen::new(*fen), &nodes, &means);
            let mut have = rights.remove(&account).unwrap_or_default();
            have.retain(|out| *out > 0);
            let want: Vec<i64> = split.iter().map(|part| part.get()).filter(|fen| *fen > 0).collect();
            assert_eq!(have, want, "account {account} with {fen} fen");
        }
    }
}
