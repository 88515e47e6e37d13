//! The file of a scenario: read, and checked against itself, with line and key for whatever is wrong.

mod events;
mod faults;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;

use feiqian_protocol::campus::{Meal, Mode, Policy, Span, check_meals};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CardNumber, Key, NodeName};
use feiqian_protocol::limits::ASK_DEADLINE_MS;
use feiqian_protocol::money::Fen;
use serde::Deserialize;
use toml::Spanned;

use self::events::EventTable;
use self::faults::{DrawnTable, FaultTable};
use super::units::{length, rate, yuan};
use super::{AccountSpec, BuildingSpec, DrawnWorkload, Scenario, ScenarioError, Workload};
use crate::campus::local;
use crate::plan::{Host, LinkQuality, Timing};

/// The most of a campus that one process takes.
const BUILDINGS_MAX: u32 = 400;
const TERMINALS_MAX: u32 = 64;
const ACCOUNTS_MAX: u32 = 60_000;
const VALID_DAYS: std::ops::RangeInclusive<i32> = -3_650..=3_650;

/// A value and where it stands.
type At<T> = Spanned<T>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    #[serde(default)]
    title_zh: String,
    #[serde(default)]
    large: bool,
    seed: Option<u64>,
    start: Option<At<String>>,
    length: Option<At<String>>,
    heal: Option<At<String>>,
    attend: Option<At<String>>,
    warm_up: Option<At<String>>,
    idle_timeout: Option<At<String>>,
    ask_deadline: Option<At<String>>,
    #[serde(default)]
    modes: Vec<Mode>,
    #[serde(default)]
    policy: Policy,
    #[serde(default)]
    meals: Vec<At<Meal>>,
    #[serde(default)]
    building: Vec<BuildingTable>,
    #[serde(default)]
    account: Vec<AccountTable>,
    workload: Option<At<WorkloadTable>>,
    #[serde(default)]
    event: Vec<EventTable>,
    #[serde(default)]
    fault: Vec<FaultTable>,
    faults: Option<At<DrawnTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BuildingTable {
    name: At<String>,
    count: Option<At<i64>>,
    role: Option<At<String>>,
    terminals: Option<At<i64>>,
    weight: Option<At<i64>>,
    #[serde(default)]
    groups: Vec<At<String>>,
    terminal_groups: Option<At<Vec<Vec<At<String>>>>>,
    #[serde(default)]
    open: Vec<At<String>>,
    link: Option<LinkTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkTable {
    latency: Option<At<String>>,
    jitter: Option<At<String>>,
    /// Microseconds, as a plan is written back.
    latency_us: Option<u64>,
    jitter_us: Option<u64>,
    loss_permille: Option<At<i64>>,
    rate: Option<At<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountTable {
    card: Option<At<String>>,
    #[serde(default)]
    purse: bool,
    #[serde(default)]
    phone: bool,
    count: Option<At<i64>>,
    class: Option<String>,
    opening: At<OneOrTwo>,
    subsidy: Option<At<OneOrTwo>>,
    single_limit: Option<At<String>>,
    daily_limit: Option<At<String>>,
    favourite: Option<At<i64>>,
    #[serde(default)]
    groups: Vec<At<String>>,
    valid_days: Option<At<i64>>,
}

/// A value, or a range of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrTwo {
    One(String),
    Two([String; 2]),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadTable {
    replay: Option<PathBuf>,
    doors: Option<PathBuf>,
    college: Option<At<i64>>,
    days: Option<At<i64>>,
    taps: Option<At<i64>>,
    amount: Option<At<OneOrTwo>>,
    burst: Option<At<i64>>,
    #[serde(default)]
    day_profile: bool,
    access: Option<At<i64>>,
    measured: Option<At<i64>>,
    reversals: Option<At<i64>>,
    partial: Option<At<i64>>,
    strangers: Option<At<i64>>,
    pins: Option<At<i64>>,
    misbehaving: Option<At<i64>>,
    top_ups: Option<At<i64>>,
    top_up: Option<At<OneOrTwo>>,
    losses: Option<At<i64>>,
    losses_in_buildings: Option<At<i64>>,
    lifts: Option<At<i64>>,
    closings: Option<At<i64>>,
    reissues: Option<At<i64>>,
    thefts: Option<At<i64>>,
}

/// Reads and checks a file.
pub(super) fn parse(file: &str, text: &str) -> Result<Scenario, ScenarioError> {
    let source = Source { file, text };
    let parsed: File = toml::from_str(text)
        .map_err(|error| source.error(error.span(), None, error.message().trim_end().to_owned()))?;
    let timing = source.timing(&parsed)?;
    let buildings =
        parsed.building.iter().map(|table| source.building(table)).collect::<Result<Vec<_>, _>>()?;
    let names = Names::of(&source, &parsed.building, &buildings)?;
    let accounts = parsed.account.iter().map(|table| source.account(table)).collect::<Result<Vec<_>, _>>()?;
    let workload = source.workload(&parsed, &names, &accounts, &timing)?;
    let own = matches!(workload, Workload::Fixed(_) | Workload::Drawn(_));
    if own && buildings.is_empty() {
        return Err(source.error(None, Some("building"), "a campus needs at least one building".to_owned()));
    }
    if own && accounts.is_empty() {
        return Err(source.error(None, Some("account"), "a campus needs at least one account".to_owned()));
    }
    if !own && let Some(table) = parsed.building.first() {
        let message = "the workload brings its own buildings".to_owned();
        return Err(source.error(Some(table.name.span()), Some("building"), message));
    }
    let faults = parsed
        .fault
        .iter()
        .map(|table| source.fault(table, &names, own, &timing))
        .collect::<Result<_, _>>()?;
    let drawn = parsed.faults.as_ref().map(|table| source.drawn(table.get_ref(), &timing)).transpose()?;
    let name = std::path::Path::new(file).file_stem().map_or(file.into(), |stem| stem.to_string_lossy());
    Ok(Scenario {
        name: name.into_owned(),
        title: parsed.title,
        title_zh: parsed.title_zh,
        large: parsed.large,
        seed: parsed.seed,
        timing,
        policy: parsed.policy,
        meals: source.meals(&parsed.meals)?,
        modes: parsed.modes,
        buildings,
        accounts,
        workload,
        faults,
        drawn,
    })
}

/// Names of buildings, in the order of the plan.
struct Names(Vec<(String, usize)>);

impl Names {
    fn of(
        source: &Source<'_>,
        tables: &[BuildingTable],
        specs: &[BuildingSpec],
    ) -> Result<Self, ScenarioError> {
        let mut names = Vec::new();
        let mut seen = BTreeSet::new();
        for (table, spec) in tables.iter().zip(specs) {
            for number in 1..=spec.count {
                let name =
                    if spec.count == 1 { spec.name.to_string() } else { format!("{}-{number}", spec.name) };
                if name == "centre" || name == "all" || !seen.insert(name.clone()) {
                    let message = format!("{name:?} stands twice, or means something else");
                    return Err(source.error(Some(table.name.span()), Some("name"), message));
                }
                names.push((name, spec.terminals));
            }
        }
        Ok(Self(names))
    }

    fn find(&self, name: &str) -> Result<usize, String> {
        self.0.iter().position(|(known, _)| known == name).ok_or_else(|| {
            let known: Vec<_> = self.0.iter().map(|(name, _)| name.as_str()).collect();
            format!("there is no building {name:?} (there are: {})", known.join(", "))
        })
    }

    fn host(&self, name: &str) -> Result<Host, String> {
        if name == "centre" { Ok(Host::Centre) } else { self.find(name).map(Host::Node) }
    }
}

struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn meals(&self, tables: &[At<Meal>]) -> Result<Vec<Meal>, ScenarioError> {
        let mut meals = Vec::new();
        for table in tables {
            meals.push(table.get_ref().clone());
            self.check(table, "meals", |_| check_meals(&meals).map_err(|error| error.to_string()))?;
        }
        Ok(meals)
    }

    fn check<T, U>(
        &self,
        value: &At<T>,
        key: &str,
        check: impl FnOnce(&T) -> Result<U, String>,
    ) -> Result<U, ScenarioError> {
        check(value.get_ref()).map_err(|message| self.error(Some(value.span()), Some(key), message))
    }

    fn error(&self, span: Option<Range<usize>>, key: Option<&str>, message: String) -> ScenarioError {
        // A missing key is reported for the whole table; its first line says which one.
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        let key = key.or(missing);
        let start = span.map(|span| span.start).filter(|start| *start > 0 || missing.is_none());
        let before = start.and_then(|start| self.text.get(..start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        let key = key.map(str::to_owned).or_else(|| {
            let (name, _) = self.text.lines().nth(line? - 1)?.split_once('=')?;
            Some(name.trim().to_owned())
        });
        ScenarioError { file: self.file.to_owned(), line, key, message }
    }

    fn length(&self, value: Option<&At<String>>, key: &str, default: u64) -> Result<u64, ScenarioError> {
        value.map_or(Ok(default), |value| self.check(value, key, |text| length(text)))
    }

    fn number(
        &self,
        value: Option<&At<i64>>,
        key: &str,
        default: u32,
        allowed: std::ops::RangeInclusive<u32>,
    ) -> Result<u32, ScenarioError> {
        value.map_or(Ok(default), |value| {
            self.check(value, key, |number| {
                let number = u32::try_from(*number).ok().filter(|number| allowed.contains(number));
                number.ok_or_else(|| format!("must be from {} to {}", allowed.start(), allowed.end()))
            })
        })
    }

    fn percent(&self, value: Option<&At<i64>>, key: &str, default: u32) -> Result<u32, ScenarioError> {
        self.number(value, key, default, 0..=100)
    }

    fn range(
        &self,
        value: Option<&At<OneOrTwo>>,
        key: &str,
        default: (i64, i64),
    ) -> Result<(Fen, Fen), ScenarioError> {
        let Some(value) = value else { return Ok((Fen::new(default.0), Fen::new(default.1))) };
        self.check(value, key, |value| {
            let (least, most) = match value {
                OneOrTwo::One(text) => (yuan(text)?, yuan(text)?),
                OneOrTwo::Two([least, most]) => (yuan(least)?, yuan(most)?),
            };
            if least <= most { Ok((least, most)) } else { Err(format!("{least} is more than {most}")) }
        })
    }

    fn timing(&self, file: &File) -> Result<Timing, ScenarioError> {
        let start = match &file.start {
            None => {
                local::parse("2025-11-10T11:00").map_err(|error| self.error(None, Some("start"), error))?
            }
            Some(start) => self.check(start, "start", |text| local::parse(text))?,
        };
        Ok(Timing {
            start,
            length_ms: match &file.length {
                None => 0,
                Some(value) => self.check(value, "length", |text| match length(text)? {
                    0 => Err("nothing can happen in no time".to_owned()),
                    ms => Ok(ms),
                })?,
            },
            heal_ms: self.length(file.heal.as_ref(), "heal", 30_000)?,
            warm_up_ms: self.length(file.warm_up.as_ref(), "warm_up", 0)?,
            attend_ms: self.length(file.attend.as_ref(), "attend", 1_500)?,
            idle_timeout_ms: self.length(file.idle_timeout.as_ref(), "idle_timeout", 10_000)?,
            ask_deadline_ms: self.length(file.ask_deadline.as_ref(), "ask_deadline", ASK_DEADLINE_MS)?,
        })
    }

    fn link(&self, table: Option<&LinkTable>) -> Result<LinkQuality, ScenarioError> {
        let lan = LinkQuality::LAN;
        let Some(table) = table else { return Ok(lan) };
        let us = |given: Option<&At<String>>, exact: Option<u64>, key: &str, default: u64| match given {
            Some(_) => Ok(self.length(given, key, 0)? * 1_000),
            None => Ok(exact.unwrap_or(default)),
        };
        Ok(LinkQuality {
            latency_us: us(table.latency.as_ref(), table.latency_us, "latency", lan.latency_us)?,
            jitter_us: us(table.jitter.as_ref(), table.jitter_us, "jitter", lan.jitter_us)?,
            loss_permille: self.number(table.loss_permille.as_ref(), "loss_permille", 0, 0..=900)?,
            bits_per_s: match &table.rate {
                None => 0,
                Some(value) => self.check(value, "rate", |text| rate(text))?,
            },
        })
    }

    fn building(&self, table: &BuildingTable) -> Result<BuildingSpec, ScenarioError> {
        let terminals = self.number(table.terminals.as_ref(), "terminals", 2, 1..=TERMINALS_MAX)? as usize;
        let terminal_groups = match &table.terminal_groups {
            None => Vec::new(),
            Some(groups) if groups.get_ref().len() != terminals => {
                let message = format!("there are {terminals} terminals");
                return Err(self.error(Some(groups.span()), Some("terminal_groups"), message));
            }
            Some(groups) => {
                groups.get_ref().iter().map(|names| self.groups(names)).collect::<Result<_, _>>()?
            }
        };
        Ok(BuildingSpec {
            count: self.number(table.count.as_ref(), "count", 1, 1..=BUILDINGS_MAX)?,
            name: self.check(&table.name, "name", |name| {
                NodeName::new(name.as_str()).map_err(|error| error.to_string())
            })?,
            role: match &table.role {
                None => Role::Pos,
                Some(role) => {
                    self.check(role, "role", |text| text.parse::<Role>().map_err(|error| error.to_string()))?
                }
            },
            terminals,
            weight: self.number(table.weight.as_ref(), "weight", 1, 0..=1_000_000)?,
            groups: self.groups(&table.groups)?,
            terminal_groups,
            open: table
                .open
                .iter()
                .map(|span| self.check(span, "open", |text| text.parse::<Span>()))
                .collect::<Result<_, _>>()?,
            link: self.link(table.link.as_ref())?,
        })
    }

    fn groups(&self, names: &[At<String>]) -> Result<Vec<Key>, ScenarioError> {
        let name = |value: &At<String>| {
            self.check(value, "groups", |text| Key::new(text.as_str()).map_err(|error| error.to_string()))
        };
        names.iter().map(name).collect()
    }

    fn account(&self, table: &AccountTable) -> Result<AccountSpec, ScenarioError> {
        let fen = |value: &Option<At<String>>, key: &str| {
            value.as_ref().map(|value| self.check(value, key, |text| yuan(text))).transpose()
        };
        let card = table.card.as_ref();
        let card = card.map(|card| {
            self.check(card, "card", |text| CardNumber::new(text.as_str()).map_err(|error| error.to_string()))
        });
        if let (Some(card), Some(_)) = (&table.card, &table.count) {
            let message = "an account with a card of its own is one account".to_owned();
            return Err(self.error(Some(card.span()), Some("card"), message));
        }
        Ok(AccountSpec {
            purse: table.purse,
            phone: table.phone,
            card: card.transpose()?,
            count: self.number(table.count.as_ref(), "count", 1, 1..=ACCOUNTS_MAX)?,
            patron_class: table.class.clone().unwrap_or_else(|| "student".to_owned()),
            opening: self.range(Some(&table.opening), "opening", (0, 0))?,
            subsidy: self.range(table.subsidy.as_ref(), "subsidy", (0, 0))?,
            single_limit: fen(&table.single_limit, "single_limit")?,
            daily_limit: fen(&table.daily_limit, "daily_limit")?,
            favourite: self.percent(table.favourite.as_ref(), "favourite", 60)?,
            groups: self.groups(&table.groups)?,
            valid_days: table.valid_days.as_ref().map(|days| self.days(days)).transpose()?,
        })
    }

    fn days(&self, value: &At<i64>) -> Result<i32, ScenarioError> {
        self.check(value, "valid_days", |days| {
            let days = i32::try_from(*days).ok().filter(|days| VALID_DAYS.contains(days));
            days.ok_or_else(|| format!("must be from {} to {}", VALID_DAYS.start(), VALID_DAYS.end()))
        })
    }

    fn workload(
        &self,
        file: &File,
        names: &Names,
        accounts: &[AccountSpec],
        timing: &Timing,
    ) -> Result<Workload, ScenarioError> {
        let Some(table) = &file.workload else {
            self.needs_length(file, timing)?;
            let events = file.event.iter().map(|event| self.event(event, names, accounts, timing));
            return Ok(Workload::Fixed(events.collect::<Result<_, _>>()?));
        };
        if let Some(event) = file.event.first() {
            let message = "a scenario has either a workload or events".to_owned();
            return Err(self.error(Some(event.at.span()), Some("event"), message));
        }
        let table = table.get_ref();
        let days = table.days.as_ref();
        if let Some(dir) = &table.replay {
            let days = days.map(|_| self.number(days, "days", 1, 1..=400)).transpose()?;
            return Ok(Workload::Replay { dir: dir.clone(), days });
        }
        if let Some(dir) = &table.doors {
            return Ok(Workload::Doors { dir: dir.clone() });
        }
        if table.college.is_some() {
            return Ok(Workload::College {
                people: self.number(table.college.as_ref(), "college", 0, 1..=50_000)?,
                days: self.number(days, "days", 1, 1..=400)?,
            });
        }
        self.needs_length(file, timing)?;
        Ok(Workload::Drawn(DrawnWorkload {
            taps: self.number(table.taps.as_ref(), "taps", 0, 0..=10_000_000)?,
            amount: self.range(table.amount.as_ref(), "amount", (200, 1_500))?,
            burst: self.number(table.burst.as_ref(), "burst", 1, 1..=1_000)?,
            day_profile: table.day_profile,
            access: self.percent(table.access.as_ref(), "access", 0)?,
            measured: self.percent(table.measured.as_ref(), "measured", 0)?,
            reversals: self.percent(table.reversals.as_ref(), "reversals", 0)?,
            partial: self.percent(table.partial.as_ref(), "partial", 30)?,
            strangers: self.percent(table.strangers.as_ref(), "strangers", 0)?,
            pins: self.percent(table.pins.as_ref(), "pins", 0)?,
            misbehaving: self.percent(table.misbehaving.as_ref(), "misbehaving", 0)?,
            top_ups: self.number(table.top_ups.as_ref(), "top_ups", 0, 0..=1_000_000)?,
            top_up: self.range(table.top_up.as_ref(), "top_up", (2_000, 10_000))?,
            losses: self.number(table.losses.as_ref(), "losses", 0, 0..=100_000)?,
            losses_in_buildings: self.percent(
                table.losses_in_buildings.as_ref(),
                "losses_in_buildings",
                50,
            )?,
            lifts: self.percent(table.lifts.as_ref(), "lifts", 30)?,
            closings: self.number(table.closings.as_ref(), "closings", 0, 0..=1_000)?,
            reissues: self.number(table.reissues.as_ref(), "reissues", 0, 0..=1_000)?,
            thefts: self.number(table.thefts.as_ref(), "thefts", 0, 0..=1_000)?,
        }))
    }

    fn needs_length(&self, file: &File, timing: &Timing) -> Result<(), ScenarioError> {
        match file.length {
            Some(_) => Ok(()),
            None if timing.length_ms > 0 => Ok(()),
            None => Err(self.error(None, Some("length"), "how long does it take?".to_owned())),
        }
    }

    fn at(&self, at: &At<String>, timing: &Timing) -> Result<u64, ScenarioError> {
        self.check(at, "at", |text| match length(text)? {
            ms if timing.length_ms == 0 || ms < timing.length_ms => Ok(ms),
            _ => Err(format!("{text:?} is after the end of the scenario")),
        })
    }

    fn required<'t, T>(
        &self,
        value: Option<&'t At<T>>,
        key: &str,
        of: &At<String>,
    ) -> Result<&'t At<T>, ScenarioError> {
        value.ok_or_else(|| self.error(Some(of.span()), Some(key), format!("{:?} needs {key}", of.get_ref())))
    }
}
