//! What is run on: generated colleges or a recording, and when an outage of it begins.

use anyhow::{Context, Result};
use feiqian_protocol::ids::NodeName;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Timestamp};

use super::Scope;
use super::cell::Kind;
use super::college::{self, FIRST_DAY, HISTORY_DAYS, What};
use super::instruments::Instruments;
use super::rig::Snapshot;
use super::stage::{Workload, base};
use crate::campus::local::CALENDAR;
use crate::campus::replay;
use crate::campus::workload::Ask;

pub(super) const HOUR_MS: i64 = 3_600_000;

/// Outages up to this long begin at eleven, before lunch; longer ones at any hour.
pub(super) const SHORT_HALF_HOURS: u32 = 12;
const LUNCH_HOUR: i64 = 11;

/// Hours at which longer outages begin, one after another by seed, on a Monday and on a Tuesday.
const HOURS: [i64; 6] = [2, 6, 10, 14, 18, 22];

/// Days after the history that a workload goes on: an outage of three days from Tuesday night, and what it touches.
const DAYS_AFTER: i32 = 9;

/// A campus to run on.
pub struct Ground {
    source: Source,
    /// Absent where no cores run.
    pub(super) base: Option<Snapshot>,
    /// The same with what people pay by; absent where that is accounts alone.
    pub(super) equipped: Option<Snapshot>,
    pub(super) instruments: Instruments,
}

enum Source {
    College { people: usize },
    Replay(Workload),
}

/// When an outage begins, and where rights were handed out before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) cut: Timestamp,
    /// The midnight before: from here on every tap is real.
    pub(super) midnight: Timestamp,
}

impl Ground {
    /// The generated college, or a recorded campus.
    ///
    /// # Errors
    /// Where the recording cannot be read, or a core does not do what it should.
    pub fn new(scope: &Scope) -> Result<Self> {
        let source = match &scope.replay {
            Some(dir) => Source::Replay(recorded(&replay::read(dir, None)?)?),
            None => Source::College { people: scope.people },
        };
        let (workload, at) = match &source {
            Source::Replay(workload) => {
                let first = workload.events.first().context("the recording is empty")?;
                (workload.clone(), CALENDAR.start(CALENDAR.day(first.at)))
            }
            Source::College { people } => {
                let opening = vec![0; *people];
                (college_workload(opening, Vec::new())?, CALENDAR.start(FIRST_DAY))
            }
        };
        let instruments = scope.instruments;
        let plain = if scope.rules { None } else { Some(base(&workload, at, Instruments::Account)?) };
        let equipped = match instruments {
            Instruments::Account => None,
            _ => Some(base(&workload, at, instruments)?),
        };
        Ok(Self { source, base: plain, equipped, instruments })
    }

    /// When an outage of such a length begins.
    pub(super) fn moment(&self, seed: u64, half_hours: u32) -> Result<Moment> {
        let short = half_hours <= SHORT_HALF_HOURS;
        let (day, hour) = match &self.source {
            Source::College { .. } => {
                let day = BusinessDay(FIRST_DAY.0 + HISTORY_DAYS + i32::from(seed % 2 == 1));
                let hour = HOURS[(seed / 2 % HOURS.len() as u64) as usize];
                (day, if short { LUNCH_HOUR } else { hour })
            }
            // The second day at the earliest, so that there is a day of history.
            Source::Replay(workload) => {
                let first = workload.events.first().context("the recording is empty")?;
                (BusinessDay(CALENDAR.day(first.at).0 + if short { 2 } else { 1 }), LUNCH_HOUR)
            }
        };
        let midnight = CALENDAR.start(day);
        Ok(Moment { cut: midnight.plus_ms(hour * HOUR_MS), midnight })
    }

    pub(super) fn buildings(&self) -> usize {
        match &self.source {
            Source::College { .. } => college::BUILDINGS.len(),
            Source::Replay(workload) => workload.buildings.len(),
        }
    }

    pub(super) fn workload(&self, seed: u64, outage: &college::Outage) -> Result<Workload> {
        match &self.source {
            Source::College { people } => {
                let college = college::generate(seed, *people, HISTORY_DAYS + DAYS_AFTER, outage);
                college_workload(college.opening, college.events)
            }
            Source::Replay(workload) => {
                let mut workload = workload.clone();
                if !outage.topups {
                    // Who cannot top up now does it afterwards.
                    for event in &mut workload.events {
                        if matches!(event.what, What::TopUp { .. }) && outage.is_on(event.at) {
                            event.at = outage.until;
                        }
                    }
                    workload.events.sort_by_key(|event| event.at);
                }
                Ok(workload)
            }
        }
    }

    /// Buildings that an outage cuts off.
    pub(super) fn cut(&self, kind: Kind, workload: &Workload) -> Vec<bool> {
        let buildings = self.buildings();
        match kind {
            Kind::LargestCanteen => {
                let mut taps = vec![0_u64; buildings];
                for event in &workload.events {
                    if let What::Buy { building, .. } = event.what {
                        taps[usize::from(building)] += 1;
                    }
                }
                let largest = (0..buildings).rev().max_by_key(|building| taps[*building]);
                (0..buildings).map(|building| Some(building) == largest).collect()
            }
            Kind::Islands => (0..buildings).map(|building| building % 2 == 1).collect(),
            _ => vec![true; buildings],
        }
    }
}

fn college_workload(opening: Vec<i64>, events: Vec<college::Event>) -> Result<Workload> {
    let buildings = college::BUILDINGS.iter().map(|name| NodeName::new(*name)).collect::<Result<_, _>>();
    let limits = vec![(Fen::new(2_000), Fen::new(5_000)); opening.len()];
    Ok(Workload { buildings: buildings.context("the buildings' names")?, limits, opening, events })
}

/// A recording as a workload: everybody with an account.
fn recorded(recording: &crate::campus::workload::Workload) -> Result<Workload> {
    let people: std::collections::BTreeMap<_, u32> =
        recording.accounts.iter().map(|account| &account.card).zip(0..).collect();
    let mut events = Vec::new();
    for tap in &recording.taps {
        let Some(person) = people.get(&tap.card).copied() else { continue };
        let class = &recording.accounts[person as usize].patron_class;
        let fen = recording.asked(tap, Some(class)).unwrap_or_default().get();
        if matches!(tap.ask, Ask::Amount(_) | Ask::Quantity(_)) && fen > 0 {
            let building = u8::try_from(tap.building).context("too many buildings")?;
            events.push(college::Event { at: tap.at, person, what: What::Buy { building, fen } });
        }
    }
    for topup in &recording.topups {
        if let Some(person) = people.get(&topup.card).copied() {
            let fen = topup.amount.get();
            events.push(college::Event { at: topup.at, person, what: What::TopUp { fen } });
        }
    }
    events.sort_by_key(|event| event.at);
    let defaults = (Fen::new(2_000), Fen::new(5_000));
    Ok(Workload {
        buildings: recording.buildings.iter().map(|site| site.name.clone()).collect(),
        limits: recording
            .accounts
            .iter()
            .map(|account| {
                (account.single_limit.unwrap_or(defaults.0), account.daily_limit.unwrap_or(defaults.1))
            })
            .collect(),
        opening: recording.accounts.iter().map(|account| account.opening.get()).collect(),
        events,
    })
}
