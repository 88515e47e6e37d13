//! A plan drawn from a scenario and a seed.
//!
//! Each part has a generator of its own, so that more draws in one change nothing in the others. Faults are drawn in the swarm
//! way (Groce et al. 2012): each seed switches a random part of the kinds on, each with a weight of its own, so that some seeds
//! see nothing but power cuts, and some a bit of everything.

use std::collections::BTreeMap;

use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CardNumber, Key, NodeName, TerminalId};
use feiqian_protocol::money::{Fen, UnitPrice};
use feiqian_protocol::tap::Pin;
use feiqian_protocol::time::{BusinessCalendar, BusinessDay};

use super::doors;
use super::imported::{self, Imported};
use super::{
    Account, Action, Ask, BuildingPlan, Fault, FaultKind, Host, LinkQuality, Manner, Plan, Tap, What,
    WrongClock,
};
use crate::promises::pins::{self, PinKind};
use crate::scenario::{Drawn, DrawnWorkload, Scenario, ScenarioError, Workload};
use crate::seed::Seed;

/// Taps of a college day by half hour from 06:30 on, per mille (`../campus/generate.rs` has the source).
const PROFILE: [u64; 32] = [
    8, 57, 105, 20, 15, 12, 23, 6, 10, 49, 210, 108, 29, 7, 2, 2, 2, 5, 3, 19, 24, 43, 72, 77, 36, 21, 9, 6,
    4, 9, 7, 6,
];

/// Kinds of faults that a seed has at least, so that they meet; not each of them strikes.
const KINDS_MIN: usize = 4;

/// How often a thief tries a PIN in each building, and for how much: over the limit of a purchase, in fen.
const TRIES_OF_A_THIEF: u32 = 4;
const STOLEN_FEN: i64 = 2_100;

/// Of every eight cards, the one whose PIN is only guessed at.
const GUESSED: usize = 3;

pub(super) fn draw(scenario: &Scenario, seed: u64) -> Result<Plan, ScenarioError> {
    let mut root = Seed::new(seed ^ 0x5ce0_a710);
    let [mut people, mut workload, mut faults, mut settings] = std::array::from_fn(|_| root.fork());
    let mut plan = Plan {
        scenario: scenario.name.clone(),
        seed,
        timing: scenario.timing,
        policy: scenario.policy.clone(),
        meals: scenario.meals.clone(),
        buildings: buildings(scenario)?,
        tariff: tariff(),
        accounts: Vec::new(),
        actions: Vec::new(),
        faults: scenario.faults.clone(),
        in_order: false,
    };
    if let Some(mode) = settings.pick(&scenario.modes) {
        plan.policy.mode = *mode;
    }
    let favourites;
    (plan.accounts, favourites) = accounts(scenario, &mut people);
    match &scenario.workload {
        Workload::Fixed(actions) => plan.actions.clone_from(actions),
        Workload::Drawn(drawn) => {
            plan.actions = Drawing { plan: &plan, scenario, drawn, favourites }.draw(&mut workload);
        }
        Workload::College { people, days } => {
            take(&mut plan, imported::college(&scenario.name, seed, *people, *days)?)
        }
        Workload::Doors { dir } => {
            // Odd seeds have the recorded rounds, even ones others.
            let others = seed.is_multiple_of(2).then_some(&mut workload);
            take(&mut plan, doors::doors(&scenario.name, dir, others)?);
        }
        Workload::Replay { dir, days } => take(&mut plan, imported::replay(&scenario.name, dir, *days)?),
    }
    if let Some(drawn) = &scenario.drawn {
        plan.faults.extend(draw_faults(&plan, drawn, &mut faults));
    }
    plan.actions.sort_by_key(|action| action.at_ms);
    plan.faults.sort_by_key(|fault| fault.at_ms);
    plan.campus().check().map_err(|error| ScenarioError::new(&scenario.name, error.to_string()))?;
    Ok(plan)
}

fn take(plan: &mut Plan, imported: Imported) {
    plan.buildings = imported.buildings;
    plan.accounts = imported.accounts;
    plan.actions = imported.actions;
    plan.faults.extend(imported.faults);
    plan.in_order = imported.in_order;
    plan.tariff = imported.tariff;
    plan.timing.start = imported.start;
    plan.timing.length_ms = imported.length_ms;
}

/// Yuan per gram by patron class: a canteen that weighs. The prices have digits to be rounded.
fn tariff() -> BTreeMap<String, UnitPrice> {
    [("student", "0.02385"), ("staff", "0.0300")]
        .into_iter()
        .filter_map(|(class, price)| Some((class.to_owned(), price.parse().ok()?)))
        .collect()
}

fn buildings(scenario: &Scenario) -> Result<Vec<BuildingPlan>, ScenarioError> {
    let wrong = |error: &dyn std::fmt::Display| ScenarioError::new(&scenario.name, error.to_string());
    let mut buildings = Vec::new();
    for spec in &scenario.buildings {
        for number in 1..=spec.count {
            let name =
                if spec.count == 1 { spec.name.to_string() } else { format!("{}-{number}", spec.name) };
            let name = NodeName::new(name).map_err(|error| wrong(&error))?;
            let index = buildings.len() + 1;
            let terminals =
                (1..=spec.terminals).map(|terminal| TerminalId::new(format!("t{index}-{terminal}")));
            buildings.push(BuildingPlan {
                name,
                role: spec.role,
                terminals: terminals.collect::<Result<_, _>>().map_err(|error| wrong(&error))?,
                groups: spec.groups.clone(),
                terminal_groups: spec.terminal_groups.clone(),
                open: spec.open.clone(),
                link: spec.link,
            });
        }
    }
    Ok(buildings)
}

fn between(seed: &mut Seed, (least, most): (Fen, Fen)) -> Fen {
    least + Fen::new(seed.below(most.get().abs_diff(least.get()) + 1) as i64)
}

/// Accounts, and for each its favourite building and how often it goes there, in percent.
fn accounts(scenario: &Scenario, seed: &mut Seed) -> (Vec<Account>, Vec<(usize, u32)>) {
    let buildings: usize = scenario.buildings.iter().map(|spec| spec.count as usize).sum();
    let first_day = BusinessCalendar::CHINA.day(scenario.timing.start);
    let mut accounts = Vec::new();
    let mut favourites = Vec::new();
    for spec in &scenario.accounts {
        for _ in 0..spec.count {
            let number = accounts.len() + 1;
            let name = if spec.purse { format!("31{number:018}") } else { format!("c{number}") };
            let card = spec.card.clone().unwrap_or_else(|| card(&name));
            accounts.push(Account {
                card,
                phone: spec.phone,
                patron_class: spec.patron_class.clone(),
                opening: between(seed, spec.opening),
                subsidy: between(seed, spec.subsidy),
                single_limit: spec.single_limit,
                daily_limit: spec.daily_limit,
                groups: spec.groups.clone(),
                valid_until: spec.valid_days.map(|days| BusinessDay(first_day.0 + days)),
            });
            favourites.push((seed.index(buildings), spec.favourite));
        }
    }
    (accounts, favourites)
}

fn card(text: &str) -> CardNumber {
    CardNumber::new(text).expect("letters and digits make a card number")
}

fn key(text: &str) -> Key {
    Key::new(text).expect("letters and digits make a key")
}

struct Drawing<'a> {
    plan: &'a Plan,
    scenario: &'a Scenario,
    drawn: &'a DrawnWorkload,
    favourites: Vec<(usize, u32)>,
}

impl Drawing<'_> {
    fn draw(&self, seed: &mut Seed) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut number = 0;
        let mut next = || {
            number += 1;
            number
        };
        let mut left = self.drawn.taps;
        while left > 0 {
            let burst = (1 + seed.below(u64::from(self.drawn.burst)) as u32).min(left);
            left -= burst;
            let at_ms = self.moment(seed);
            let queue = seed.index(self.plan.buildings.len());
            for place in 0..burst {
                let at_ms = (at_ms + u64::from(place) * seed.below(120)).min(self.plan.timing.length_ms - 1);
                let tap = self.tap(seed, (burst > 1).then_some(queue), next());
                let reversed =
                    matches!(tap.ask, Ask::Amount(_)) && seed.chance(u64::from(self.drawn.reversals), 100);
                if reversed {
                    actions.push(self.reversal(seed, at_ms, &tap, next()));
                }
                actions.push(Action { at_ms, what: What::Tap(tap) });
            }
        }
        for index in 0..self.drawn.top_ups {
            let account = seed.index(self.plan.accounts.len());
            let what = What::TopUp {
                account,
                amount: between(seed, self.drawn.top_up),
                channel: key(if seed.chance(1, 2) { "wechat" } else { "counter" }),
                key: key(&format!("k{index}")),
            };
            actions.push(Action { at_ms: seed.below(self.plan.timing.length_ms), what });
        }
        for _ in 0..self.drawn.losses {
            let account = seed.index(self.plan.accounts.len());
            let at_ms = seed.below(self.plan.timing.length_ms);
            let building = self.reporting_building(seed);
            actions.push(Action { at_ms, what: What::Loss { account, building } });
            if seed.chance(u64::from(self.drawn.lifts), 100) {
                let at_ms = at_ms + seed.below(self.plan.timing.length_ms - at_ms);
                actions.push(Action { at_ms, what: What::Lift { account } });
            }
        }
        for _ in 0..self.drawn.closings {
            let account = seed.index(self.plan.accounts.len());
            let at_ms = seed.below(self.plan.timing.length_ms);
            actions.push(Action { at_ms, what: What::Close { account } });
        }
        for _ in 0..self.drawn.thefts {
            self.theft(seed, &mut actions, &mut next);
        }
        for _ in 0..self.drawn.reissues {
            let account = seed.index(self.plan.accounts.len());
            let at_ms = seed.below(self.plan.timing.length_ms);
            actions.push(Action { at_ms, what: What::Reissue { account } });
        }
        actions
    }

    /// A thief has a card, and tries PINs in one building after the other; then the holder has it again, types the right one where
    /// it was tried, has the centre forget the tries, and types it once more.
    fn theft(&self, seed: &mut Seed, actions: &mut Vec<Action>, next: &mut impl FnMut() -> u32) {
        let has_pin = |index: &usize| pins::kind_of(*index) == PinKind::Chosen;
        let stolen: Vec<usize> = (0..self.plan.accounts.len()).filter(has_pin).collect();
        let Some(account) = seed.pick(&stolen).copied() else { return };
        let sells = |index: &usize| self.plan.buildings[*index].role != Role::Door;
        let mut buildings: Vec<usize> = (0..self.plan.buildings.len()).filter(sells).collect();
        seed.shuffle(&mut buildings);
        let length = self.plan.timing.length_ms;
        let mut at_ms = seed.below(length / 2);
        let mut tap = |seed: &mut Seed, at_ms: u64, building: usize, pin: Pin| {
            let tap = Tap {
                number: next(),
                building,
                terminal: seed.index(self.plan.buildings[building].terminals.len()),
                card: self.plan.accounts[account].card.clone(),
                ask: Ask::Amount(Fen::new(STOLEN_FEN)),
                pin,
                manner: Manner::Patient,
            };
            actions.push(Action { at_ms: at_ms.min(length - 1), what: What::Tap(tap) });
        };
        for building in &buildings {
            for _ in 0..TRIES_OF_A_THIEF {
                tap(seed, at_ms, *building, Pin::Wrong);
                at_ms += 500 + seed.below(3_000);
            }
        }
        at_ms += seed.below(10_000);
        for building in &buildings {
            tap(seed, at_ms, *building, Pin::Right);
        }
        let unlocked_ms = at_ms + seed.below(length / 4);
        for building in &buildings {
            let later_ms = unlocked_ms + 1_000 + seed.below(length / 4);
            tap(seed, later_ms, *building, Pin::Right);
        }
        if seed.chance(1, 2) {
            actions.push(Action { at_ms: unlocked_ms.min(length - 1), what: What::Unlock { account } });
        }
    }

    fn moment(&self, seed: &mut Seed) -> u64 {
        let length = self.plan.timing.length_ms;
        if !self.drawn.day_profile {
            return seed.below(length);
        }
        let mut rest = seed.below(PROFILE.iter().sum());
        let mut slot = 0;
        while let Some(share) = PROFILE.get(slot).filter(|share| rest >= **share) {
            rest -= share;
            slot += 1;
        }
        let slots = PROFILE.len() as u64;
        (slot as u64 * length + seed.below(length)) / slots
    }

    /// Where a loss is reported: in a building that may take it, or at the centre.
    fn reporting_building(&self, seed: &mut Seed) -> Option<usize> {
        let takes = |index: &usize| matches!(self.plan.buildings[*index].role, Role::Kiosk | Role::Desk);
        let taking: Vec<usize> = (0..self.plan.buildings.len()).filter(takes).collect();
        let here = !taking.is_empty() && seed.chance(u64::from(self.drawn.losses_in_buildings), 100);
        here.then(|| taking[seed.index(taking.len())])
    }

    /// A building by weight.
    fn anywhere(&self, seed: &mut Seed) -> usize {
        let weights = self
            .scenario
            .buildings
            .iter()
            .flat_map(|spec| std::iter::repeat_n(u64::from(spec.weight), spec.count as usize));
        let weights: Vec<u64> = weights.collect();
        let mut rest = seed.below(weights.iter().sum());
        weights
            .iter()
            .position(|weight| {
                let here = rest < *weight;
                rest = rest.saturating_sub(*weight);
                here
            })
            .unwrap_or(0)
    }

    fn tap(&self, seed: &mut Seed, queue: Option<usize>, number: u32) -> Tap {
        let drawn = self.drawn;
        let percent = |seed: &mut Seed, share: u32| seed.chance(u64::from(share), 100);
        let account = seed.index(self.plan.accounts.len());
        let (favourite, often) = self.favourites[account];
        let elsewhere = self.anywhere(seed);
        let building = queue.unwrap_or(if percent(seed, often) { favourite } else { elsewhere });
        let place = &self.plan.buildings[building];
        let card = if percent(seed, drawn.strangers) {
            card(&format!("x{}", seed.below(1_000)))
        } else {
            self.plan.accounts[account].card.clone()
        };
        let ask = if place.role == Role::Door || percent(seed, drawn.access) {
            Ask::Access
        } else if percent(seed, drawn.measured) {
            Ask::Quantity(1 + seed.below(900) as u32)
        } else {
            // Prices end in a whole jiao, as canteen prices do; the least fen is kept.
            let fen = between(seed, drawn.amount);
            Ask::Amount(Fen::new(fen.get() / 10 * 10).max(drawn.amount.0).max(Fen::new(1)))
        };
        let pin = match percent(seed, drawn.pins) {
            true => {
                let typed = *seed.pick(&[Pin::Right, Pin::Right, Pin::Wrong]).unwrap_or(&Pin::Right);
                // Some cards are in the hands of somebody who tries.
                if account % 8 == GUESSED { Pin::Wrong } else { typed }
            }
            false => Pin::Absent,
        };
        let manner = match percent(seed, drawn.misbehaving) {
            true => *seed.pick(&Manner::ALL).unwrap_or(&Manner::Patient),
            false => Manner::Patient,
        };
        Tap { number, building, terminal: seed.index(place.terminals.len()), card, ask, pin, manner }
    }

    fn reversal(&self, seed: &mut Seed, at_ms: u64, tap: &Tap, number: u32) -> Action {
        let part = seed.chance(u64::from(self.drawn.partial), 100);
        let amount = match tap.ask {
            Ask::Amount(fen) if part && fen > Fen::new(1) => {
                Some(Fen::new(1 + seed.below(fen.get() as u64 - 1) as i64))
            }
            _ => None,
        };
        // Most people notice at once; some after the outage.
        let later =
            if seed.chance(2, 3) { 500 + seed.below(5_000) } else { seed.below(self.plan.timing.length_ms) };
        let at_ms = (at_ms + later).min(self.plan.timing.length_ms - 1);
        Action { at_ms, what: What::Reversal { of: tap.number, amount, number } }
    }
}

/// True for faults that some promise does not hold against in full.
fn is_hostile(kind: &str) -> bool {
    matches!(kind, "lying_disk" | "bit_rot" | "stale_backup" | "clone" | "destroyed" | "compromised")
}

fn draw_faults(plan: &Plan, drawn: &Drawn, seed: &mut Seed) -> Vec<Fault> {
    let hostile = seed.chance(1, u64::from(drawn.hostile_every));
    let possible: Vec<&str> =
        drawn.kinds.iter().map(String::as_str).filter(|kind| hostile || !is_hostile(kind)).collect();
    let mut on: Vec<(&str, u64)> = Vec::new();
    for kind in &possible {
        if seed.chance(1, 2) {
            on.push((kind, 1 + seed.below(8)));
        }
    }
    // A few kinds at least, so that they meet.
    let mut rest = possible;
    seed.shuffle(&mut rest);
    for kind in rest {
        if on.len() < KINDS_MIN && !on.iter().any(|(known, _)| *known == kind) {
            on.push((kind, 1 + seed.below(8)));
        }
    }
    let (least, most) = drawn.count;
    let count = u64::from(least) + seed.below(u64::from(most - least) + 1);
    let total: u64 = on.iter().map(|(_, weight)| weight).sum();
    let mut faults = Vec::new();
    for _ in 0..count {
        let mut rest = seed.below(total);
        let found = on.iter().find(|(_, weight)| {
            let here = rest < *weight;
            rest = rest.saturating_sub(*weight);
            here
        });
        let Some((name, _)) = found else { break };
        let after = drawn.after_ms.min(plan.timing.length_ms - 1);
        let at_ms = after + seed.below(plan.timing.length_ms - after);
        let (shortest, longest) = drawn.length_ms;
        // Short ones are as likely as long ones: the length is drawn by its order of magnitude.
        let longest = shortest + ((longest - shortest) >> seed.below(4));
        let for_ms = shortest + seed.below(longest - shortest + 1);
        faults.extend(fault(plan, name, hostile, seed).map(|kind| Fault { at_ms, for_ms, kind }));
    }
    faults
}

fn fault(plan: &Plan, name: &str, hostile: bool, seed: &mut Seed) -> Option<FaultKind> {
    let building = seed.index(plan.buildings.len());
    let host = if seed.chance(1, 4) { Host::Centre } else { Host::Node(building) };
    // At once, in the middle of the next commit, or some commits later.
    let after = *seed.pick(&[0, 1, 2, 3, 5, 8, 13, 40]).unwrap_or(&0);
    let force = seed.chance(1, 2);
    Some(match name {
        "partition" => FaultKind::Partition { buildings: some_buildings(plan, building, seed) },
        "link" => FaultKind::Link { buildings: some_buildings(plan, building, seed), quality: quality(seed) },
        "power_cut" => FaultKind::PowerCut { host, after },
        "crash" => FaultKind::Crash { host, after },
        "restart" => FaultKind::Restart { host },
        "disk_full" => FaultKind::DiskFull { host, room: seed.below(2) * seed.below(40_000) },
        "lying_disk" => FaultKind::LyingDisk { building },
        "bit_rot" => FaultKind::BitRot { building, bit: seed.draw() >> 8 },
        "clock" => FaultKind::Clock { host, wrong: wrong_clock(host, seed) },
        "stale_backup" => FaultKind::StaleBackup { host },
        "clone" => FaultKind::Clone { building },
        "retire" => FaultKind::Retire { building, force },
        "destroyed" => FaultKind::Destroyed { building },
        "replayed" => FaultKind::Replayed { building },
        "forged" => FaultKind::Forged { building, up: hostile && seed.chance(1, 2) },
        "revoked" => FaultKind::Revoked { building },
        "compromised" => FaultKind::Compromised { building: one_that_writes_settings(plan, building) },
        _ => return None,
    })
}

/// The next building whose role may write settings; the one that was drawn where there is none.
fn one_that_writes_settings(plan: &Plan, drawn: usize) -> usize {
    let all = plan.buildings.len();
    let writes = |index: &usize| matches!(plan.buildings[*index].role, Role::Kiosk | Role::Desk);
    (0..all).map(|step| (drawn + step) % all).find(writes).unwrap_or(drawn)
}

/// One building, an island of several, or all of them.
fn some_buildings(plan: &Plan, one: usize, seed: &mut Seed) -> Vec<usize> {
    let all = 0..plan.buildings.len();
    match seed.below(10) {
        0..5 => vec![one],
        5..8 => all.filter(|index| *index == one || seed.chance(1, 2)).collect(),
        _ => all.collect(),
    }
}

fn quality(seed: &mut Seed) -> LinkQuality {
    let latency_us = *seed.pick(&[400, 20_000, 80_000, 200_000, 600_000]).unwrap_or(&400);
    LinkQuality {
        latency_us,
        jitter_us: seed.below(2 * latency_us),
        loss_permille: *seed.pick(&[0, 0, 10, 50, 200, 500]).unwrap_or(&0),
        bits_per_s: *seed.pick(&[0, 0, 64_000, 256_000, 2_000_000]).unwrap_or(&0),
    }
}

fn wrong_clock(host: Host, seed: &mut Seed) -> WrongClock {
    let minutes = 60_000;
    let drawn = seed.below(8);
    // The centre's time never falls: a centre that is far ahead once stays there until the true time has come. It has a time
    // server, so it is never far ahead here.
    if host == Host::Centre && matches!(drawn, 1 | 4 | 6) {
        return WrongClock::Off(seed.below(15_000) as i64);
    }
    match drawn {
        0 => WrongClock::In1970,
        1 => WrongClock::In2038,
        2 => WrongClock::Drifts(200_000),
        3 => WrongClock::Drifts(-200_000),
        4 => WrongClock::Off(1 + seed.below(10 * minutes) as i64),
        5 => WrongClock::Off(-1 - seed.below(10 * minutes) as i64),
        6 => WrongClock::Off(seed.below(3 * 24 * 60 * minutes) as i64),
        _ => WrongClock::Off(-(seed.below(3 * 24 * 60 * minutes) as i64)),
    }
}
