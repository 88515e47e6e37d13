//! Faults of a file: those that it names, and those that are drawn.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{At, LinkTable, Names, Source};
use crate::plan::{Fault, FaultKind, Timing, WrongClock};
use crate::scenario::units::length;
use crate::scenario::{Drawn, ScenarioError};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FaultTable {
    at: At<String>,
    r#for: Option<At<String>>,
    kind: At<String>,
    building: Option<At<String>>,
    buildings: Option<Vec<At<String>>>,
    host: Option<At<String>>,
    after: Option<At<i64>>,
    room: Option<At<i64>>,
    bit: Option<At<i64>>,
    force: Option<bool>,
    up: Option<bool>,
    clock: Option<At<String>>,
    ppm: Option<At<i64>>,
    link: Option<LinkTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrawnTable {
    kinds: Option<Vec<At<String>>>,
    count: Option<At<[i64; 2]>>,
    length: Option<At<[String; 2]>>,
    after: Option<At<String>>,
    hostile_every: Option<At<i64>>,
}

impl Source<'_> {
    pub(super) fn fault(
        &self,
        table: &FaultTable,
        names: &Names,
        own: bool,
        timing: &Timing,
    ) -> Result<Fault, ScenarioError> {
        let kind = &table.kind;
        if !own {
            let message = "a workload of its own campus takes drawn faults only".to_owned();
            return Err(self.error(Some(kind.span()), Some("fault"), message));
        }
        let building = || {
            let name = self.required(table.building.as_ref(), "building", kind)?;
            self.check(name, "building", |name| names.find(name))
        };
        let buildings = || match (&table.buildings, &table.building) {
            (Some(list), _) => {
                let find = |name: &At<String>| self.check(name, "buildings", |name| names.find(name));
                let found: BTreeSet<usize> = list.iter().map(find).collect::<Result<_, _>>()?;
                Ok(found.into_iter().collect())
            }
            (None, Some(name)) if name.get_ref() == "all" => Ok((0..names.0.len()).collect()),
            (None, _) => Ok(vec![building()?]),
        };
        let host = || {
            let name = self.required(table.host.as_ref(), "host", kind)?;
            self.check(name, "host", |name| names.host(name))
        };
        let count = |value: Option<&At<i64>>, key: &str| -> Result<u64, ScenarioError> {
            value.map_or(Ok(0), |value| {
                self.check(value, key, |number| {
                    u64::try_from(*number).map_err(|_| "cannot be negative".to_owned())
                })
            })
        };
        let kind = match kind.get_ref().as_str() {
            "partition" => FaultKind::Partition { buildings: buildings()? },
            "link" => FaultKind::Link { buildings: buildings()?, quality: self.link(table.link.as_ref())? },
            "power_cut" => {
                FaultKind::PowerCut { host: host()?, after: count(table.after.as_ref(), "after")? }
            }
            "crash" => FaultKind::Crash { host: host()?, after: count(table.after.as_ref(), "after")? },
            "restart" => FaultKind::Restart { host: host()? },
            "disk_full" => FaultKind::DiskFull { host: host()?, room: count(table.room.as_ref(), "room")? },
            "lying_disk" => FaultKind::LyingDisk { building: building()? },
            "bit_rot" => FaultKind::BitRot { building: building()?, bit: count(table.bit.as_ref(), "bit")? },
            "clock" => FaultKind::Clock { host: host()?, wrong: self.clock(table)? },
            "stale_backup" => FaultKind::StaleBackup { host: host()? },
            "clone" => FaultKind::Clone { building: building()? },
            "retire" => FaultKind::Retire { building: building()?, force: table.force.unwrap_or(false) },
            "destroyed" => FaultKind::Destroyed { building: building()? },
            "replayed" => FaultKind::Replayed { building: building()? },
            "forged" => FaultKind::Forged { building: building()?, up: table.up.unwrap_or(false) },
            "revoked" => FaultKind::Revoked { building: building()? },
            "compromised" => FaultKind::Compromised { building: building()? },
            other => {
                let message = format!("{other:?} is no fault (there are: {})", FaultKind::NAMES.join(", "));
                return Err(self.error(Some(kind.span()), Some("kind"), message));
            }
        };
        Ok(Fault {
            at_ms: self.at(&table.at, timing)?,
            for_ms: self.length(table.r#for.as_ref(), "for", 0)?,
            kind,
        })
    }

    fn clock(&self, table: &FaultTable) -> Result<WrongClock, ScenarioError> {
        if let Some(ppm) = &table.ppm {
            return self.check(ppm, "ppm", |ppm| match ppm {
                -500_000..=500_000 => Ok(WrongClock::Drifts(*ppm)),
                _ => Err("must be from -500000 to 500000".to_owned()),
            });
        }
        let clock = self.required(table.clock.as_ref(), "clock", &table.kind)?;
        self.check(clock, "clock", |text| match text.as_str() {
            "1970" => Ok(WrongClock::In1970),
            "2038" => Ok(WrongClock::In2038),
            _ => match text.split_at_checked(1) {
                Some(("+", ahead)) => Ok(WrongClock::Off(length(ahead)? as i64)),
                Some(("-", behind)) => Ok(WrongClock::Off(-(length(behind)? as i64))),
                _ => Err(format!("{text:?} is no wrong clock (expected 1970, 2038, +5min or -1h; or ppm)")),
            },
        })
    }

    pub(super) fn drawn(&self, table: &DrawnTable, timing: &Timing) -> Result<Drawn, ScenarioError> {
        let kinds = match &table.kinds {
            // A box in wrong hands spends what it holds as it likes: only where a scenario names it.
            None => FaultKind::NAMES
                .iter()
                .filter(|name| **name != "compromised")
                .map(|name| (*name).to_owned())
                .collect(),
            Some(kinds) => {
                let known = |kind: &At<String>| {
                    self.check(kind, "kinds", |name| {
                        let known = FaultKind::NAMES.contains(&name.as_str());
                        known.then(|| name.clone()).ok_or_else(|| {
                            format!("{name:?} is no fault (there are: {})", FaultKind::NAMES.join(", "))
                        })
                    })
                };
                kinds.iter().map(known).collect::<Result<_, _>>()?
            }
        };
        let count = match &table.count {
            None => (4, 10),
            Some(value) => self.check(value, "count", |[least, most]| {
                match (u32::try_from(*least), u32::try_from(*most)) {
                    (Ok(least), Ok(most)) if least <= most && most <= 10_000 => Ok((least, most)),
                    _ => Err("must be two numbers from 0 to 10000, the smaller one first".to_owned()),
                }
            })?,
        };
        let length_ms = match &table.length {
            None => (500, (timing.length_ms / 3).max(500)),
            Some(value) => self.check(value, "length", |[least, most]| {
                let (least, most) = (length(least)?, length(most)?);
                if least <= most { Ok((least, most)) } else { Err("the shorter one comes first".to_owned()) }
            })?,
        };
        Ok(Drawn {
            kinds,
            count,
            length_ms,
            after_ms: self.length(table.after.as_ref(), "after", 0)?,
            hostile_every: self.number(table.hostile_every.as_ref(), "hostile_every", 4, 1..=1_000_000)?,
        })
    }
}
