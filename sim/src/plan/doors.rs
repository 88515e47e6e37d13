//! Recorded door events as a campus of their own: `doors.csv` (`time,building,terminal,collected_seq,card,kind,granted`), in the
//! order in which a centre once collected them, building by building, hours or days late.
//!
//! Who may pass where is not recorded, only who did: a permission is the majority of what was granted to a card at a terminal.
//! Times are to the minute, so the events of a building and minute are spread over its first half, in the recorded order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, bail};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CardNumber, Key, NodeName, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::Pin;
use feiqian_protocol::time::Timestamp;

use super::imported::Imported;
use super::{Account, Action, Ask, BuildingPlan, Fault, FaultKind, LinkQuality, Manner, Tap, What};
use crate::campus::replay::Table;
use crate::scenario::ScenarioError;
use crate::seed::Seed;

/// Over how much of its minute a building's events are spread.
const SPREAD_MS: u64 = 30_000;

/// From when on in the last minute of a round its building is collected, for how long, and how far apart buildings are whose
/// rounds end in the same minute.
const COLLECTED_AFTER_MS: u64 = 32_000;
const COLLECTED_FOR_MS: u64 = 20_000;
const COLLECTED_APART_MS: u64 = 25_000;

/// What is left after the last event.
const AFTER_MS: u64 = 10 * 60_000;

/// Columns of the file beside what is a tap's.
struct Row {
    at: Timestamp,
    building: usize,
    terminal: TerminalId,
    card: CardNumber,
    granted: bool,
}

/// The campus, its taps, and the rounds in which they are collected: as recorded, or `others` that are drawn.
pub(super) fn doors(name: &str, dir: &Path, others: Option<&mut Seed>) -> Result<Imported, ScenarioError> {
    if dir.as_os_str().is_empty() {
        let message = "door events are not part of the simulator: name the folder of doors.csv with --replay";
        return Err(ScenarioError::new(name, message));
    }
    read(dir)
        .and_then(|(names, rows)| imported(&names, &rows, others))
        .map_err(|error| ScenarioError::new(name, format!("{error:#}")))
}

fn read(dir: &Path) -> Result<(Vec<NodeName>, Vec<Row>)> {
    let mut table = Table::open(dir, "doors")?;
    let mut names: Vec<NodeName> = Vec::new();
    let mut owners: BTreeMap<TerminalId, usize> = BTreeMap::new();
    let (mut rows, mut last) = (Vec::new(), None);
    while table.advance()? {
        let name: NodeName = table.parse("building")?;
        let building = names.iter().position(|known| *known == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        let granted = match table.text("granted")? {
            "0" => false,
            "1" => true,
            _ => return Err(table.fault("granted", "must be 0 or 1")),
        };
        let collected: u64 = table.parse("collected_seq")?;
        if last.is_some_and(|last| last >= collected) {
            return Err(table.fault("collected_seq", "must rise from row to row"));
        }
        last = Some(collected);
        let row = Row {
            at: table.time("time")?,
            building,
            terminal: table.parse("terminal")?,
            card: table.parse("card")?,
            granted,
        };
        if *owners.entry(row.terminal.clone()).or_insert(building) != building {
            return Err(table.fault("terminal", "stands in two buildings"));
        }
        rows.push(row);
    }
    if rows.is_empty() {
        bail!("doors: there is no event in it");
    }
    Ok((names, rows))
}

fn imported(names: &[NodeName], rows: &[Row], others: Option<&mut Seed>) -> Result<Imported> {
    let first = rows.iter().map(|row| row.at).min().unwrap_or(Timestamp(0));
    let start = first.plus_ms(-60_000);
    let at_ms = |at: Timestamp| u64::try_from(at.ms_since(start)).unwrap_or(0);
    let terminals: Vec<BTreeSet<&TerminalId>> = (0..names.len())
        .map(|building| rows.iter().filter(|row| row.building == building).map(|row| &row.terminal).collect())
        .collect();
    let buildings = names.iter().zip(&terminals).map(|(name, terminals)| {
        let group = |terminal: &&TerminalId| Ok(vec![Key::new(terminal.as_str())?]);
        Ok(BuildingPlan {
            name: name.clone(),
            role: Role::Door,
            terminals: terminals.iter().copied().cloned().collect(),
            groups: Vec::new(),
            terminal_groups: terminals.iter().map(group).collect::<Result<_>>()?,
            open: Vec::new(),
            link: LinkQuality::LAN,
        })
    });
    let buildings: Vec<BuildingPlan> = buildings.collect::<Result<_>>()?;
    let mut actions = Vec::new();
    let mut in_minute: BTreeMap<(usize, Timestamp), (u64, u64)> = BTreeMap::new();
    for row in rows {
        in_minute.entry((row.building, row.at)).or_default().1 += 1;
    }
    for (row, number) in rows.iter().zip(1_u32..) {
        let (place, of) = in_minute.entry((row.building, row.at)).or_default();
        let at_ms = at_ms(row.at) + *place * SPREAD_MS / *of;
        *place += 1;
        let terminal = terminals[row.building].iter().position(|terminal| **terminal == row.terminal);
        let what = What::Tap(Tap {
            number,
            building: row.building,
            terminal: terminal.unwrap_or(0),
            card: row.card.clone(),
            ask: Ask::Access,
            pin: Pin::Absent,
            manner: Manner::Patient,
        });
        actions.push(Action { at_ms, what });
    }
    let last = rows.iter().map(|row| at_ms(row.at)).max().unwrap_or(0);
    let length_ms = last + AFTER_MS;
    let rounds = match others {
        None => recorded_rounds(rows, at_ms),
        Some(seed) => drawn_rounds(recorded_rounds(rows, at_ms).len(), names.len(), length_ms, seed),
    };
    Ok(Imported {
        buildings,
        tariff: BTreeMap::new(),
        accounts: accounts(rows)?,
        actions,
        faults: cut_but_for(&rounds, names.len(), length_ms),
        start,
        length_ms,
        in_order: true,
    })
}

/// An account for every card, in the groups of the terminals that let it pass more often than not.
fn accounts(rows: &[Row]) -> Result<Vec<Account>> {
    let mut votes: BTreeMap<&CardNumber, BTreeMap<&TerminalId, i64>> = BTreeMap::new();
    for row in rows {
        *votes.entry(&row.card).or_default().entry(&row.terminal).or_default() +=
            if row.granted { 1 } else { -1 };
    }
    let account = |(card, votes): (&CardNumber, BTreeMap<&TerminalId, i64>)| {
        let may = votes.into_iter().filter(|(_, votes)| *votes >= 0);
        Ok(Account {
            card: card.clone(),
            phone: false,
            patron_class: "student".to_owned(),
            opening: Fen::ZERO,
            subsidy: Fen::ZERO,
            single_limit: None,
            daily_limit: None,
            groups: may.map(|(terminal, _)| Ok(Key::new(terminal.as_str())?)).collect::<Result<_>>()?,
            valid_until: None,
        })
    };
    votes.into_iter().map(account).collect()
}

/// A building is collected: when, and which.
type Round = (u64, usize);

/// Rows of one building that follow each other are one round. It came no earlier than the last event of all that was collected
/// until then.
fn recorded_rounds(rows: &[Row], at_ms: impl Fn(Timestamp) -> u64) -> Vec<Round> {
    let mut rounds: Vec<Round> = Vec::new();
    let mut newest = 0;
    for (index, row) in rows.iter().enumerate() {
        newest = newest.max(at_ms(row.at));
        let ends = rows.get(index + 1).is_none_or(|next| next.building != row.building || next.at < row.at);
        if ends {
            let after = rounds.last().map_or(0, |(at, _)| at + COLLECTED_APART_MS);
            rounds.push((after.max(newest + COLLECTED_AFTER_MS), row.building));
        }
    }
    rounds
}

/// As many rounds, of any building at any time.
fn drawn_rounds(count: usize, buildings: usize, length_ms: u64, seed: &mut Seed) -> Vec<Round> {
    let mut rounds: Vec<Round> =
        (0..count).map(|_| (seed.below(length_ms - COLLECTED_FOR_MS), seed.index(buildings))).collect();
    rounds.sort_unstable();
    rounds
}

/// Every building is cut off but for its rounds, until the end.
fn cut_but_for(rounds: &[Round], buildings: usize, length_ms: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    for building in 0..buildings {
        let mut from = 60_000 / 2;
        for (at, _) in rounds.iter().filter(|(_, of)| *of == building) {
            if *at > from {
                faults.push(cut(building, from, *at));
            }
            from = from.max(at + COLLECTED_FOR_MS);
        }
        if from < length_ms {
            faults.push(cut(building, from, length_ms));
        }
    }
    faults
}

fn cut(building: usize, from_ms: u64, to_ms: u64) -> Fault {
    let kind = FaultKind::Partition { buildings: vec![building] };
    Fault { at_ms: from_ms, for_ms: to_ms - from_ms, kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(rows: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let header = "time,building,terminal,collected_seq,card,kind,granted\n";
        std::fs::write(dir.path().join("doors.csv"), format!("{header}{rows}")).unwrap();
        dir
    }

    #[test]
    fn rounds_are_read_from_the_order_and_permissions_from_the_majority() {
        let dir = folder(
            "2019-04-08T09:29:00,b,b-in,1,c1,access_in,1\n2019-04-08T09:29:00,b,b-in,2,c1,access_in,0\n\
             2019-04-08T09:40:00,b,b-in,3,c1,access_in,1\n2019-04-08T09:41:00,b,b-out,4,c1,access_out,0\n\
             2019-04-08T09:30:00,a,a-in,5,c2,access_in,1\n2019-04-08T09:50:00,b,b-in,6,c2,access_in,0\n",
        );
        let found = doors("doors", dir.path(), None).unwrap();
        let groups: Vec<Vec<&str>> = found
            .accounts
            .iter()
            .map(|account| account.groups.iter().map(|group| group.as_str()).collect())
            .collect();
        assert_eq!(groups, [vec!["b-in"], vec!["a-in"]]);
        let times: Vec<u64> = found.actions.iter().map(|action| action.at_ms).collect();
        assert_eq!(times, [60_000, 75_000, 720_000, 780_000, 120_000, 1_320_000]);
        // b at 9:41, a right after it (it had waited since 9:30), b again at 9:50.
        let cuts: Vec<(u64, u64)> = found.faults.iter().map(|fault| (fault.at_ms, fault.for_ms)).collect();
        let b = [(30_000, 782_000), (832_000, 520_000), (1_372_000, 548_000)];
        assert_eq!(cuts, [&b[..], &[(30_000, 807_000), (857_000, 1_063_000)]].concat());
    }

    #[test]
    fn a_bad_row_is_named_and_a_missing_folder_is_asked_for() {
        for (row, names) in [
            ("2019-04-08T09:29:00,b,b-in,1,c1,access_in,2", "doors.csv:2: granted"),
            ("noon,b,b-in,1,c1,access_in,1", "doors.csv:2: time"),
        ] {
            let error = doors("doors", folder(&format!("{row}\n")).path(), None).err().unwrap().to_string();
            assert!(error.contains(names), "{error}");
        }
        let error = doors("doors", Path::new(""), None).err().unwrap().to_string();
        assert!(error.contains("--replay"), "{error}");
    }
}
