//! A made-up college: people with habits, several buildings, money that runs low and is topped up.
//!
//! The figures are those of a real college of 8,425 cards, scaled down: two purchases of about ¥4.2 per person and day, half
//! of a day's lunches from 11:30 to 12:30, canteens of very different size, balances of ¥28, ¥60 and ¥141 at the 5th, 50th and 95th
//! percentile. Some of it is a guess, since no record of one card over several buildings is known: how faithful people are to a
//! canteen, and when they top up.
#![allow(
    clippy::float_arithmetic,
    reason = "a generated workload; its amounts are rounded to fen here and are exact from then on"
)]

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CardNumber, Key, NodeName, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Timestamp};

use super::local::{self, CALENDAR};
use super::plan::{Outage, Place};
use super::random::Random;
use super::workload::{Account, Ask, Site, Tap, Topup, Workload};

/// The first generated day: Monday, 10 November 2025.
pub const FIRST_DAY: BusinessDay = BusinessDay(20_402);

/// Times are whole multiples of this, so that one step of the driver carries several taps.
const STEP_S: i64 = 30;

/// Canteens: name, share of canteen purchases in percent, tills.
const CANTEENS: [(&str, f64, usize); 5] = [
    ("canteen-north", 34.0, 8),
    ("canteen-east", 26.0, 6),
    ("canteen-south", 15.0, 4),
    ("canteen-west", 14.0, 4),
    ("canteen-garden", 12.0, 3),
];
const SHOP: usize = 5;
const DORMITORIES: [&str; 2] = ["dormitory-1", "dormitory-2"];
const DOORS_FIRST: usize = 6;

/// Canteen purchases by half hour of a working day, per mille: (minute of the day, share).
const PROFILE: [(i64, f64); 29] = [
    (390, 8.0),
    (420, 57.0),
    (450, 105.0),
    (480, 20.0),
    (510, 15.0),
    (540, 12.0),
    (570, 23.0),
    (600, 6.0),
    (630, 10.0),
    (660, 49.0),
    (690, 210.0),
    (720, 108.0),
    (750, 29.0),
    (780, 7.0),
    (900, 5.0),
    (930, 3.0),
    (960, 19.0),
    (990, 24.0),
    (1020, 43.0),
    (1050, 72.0),
    (1080, 77.0),
    (1110, 36.0),
    (1140, 21.0),
    (1170, 9.0),
    (1200, 6.0),
    (1230, 4.0),
    (1260, 9.0),
    (1290, 7.0),
    (1320, 6.0),
];

/// Purchases per person and day.
const PURCHASES_PER_DAY: f64 = 1.98;
/// Share of purchases that are followed by another one elsewhere within the half hour.
const SECOND_BUILDING: f64 = 0.06;
/// Share of people who come near to empty every few days.
const NEARLY_EMPTY: f64 = 0.08;
/// One person in so many is at the end of their money and eats twice at noon, in two buildings.
const HUNGRY_EVERY: usize = 60;

struct Person {
    card: CardNumber,
    class: &'static str,
    favourite: usize,
    second: usize,
    dormitory: usize,
    purchases_per_day: f64,
    mean_fen: f64,
    opening: i64,
    hungry: bool,
    careless: bool,
}

/// The outage of the generated day where none was asked for: the largest canteen over noon.
pub fn default_outage() -> Outage {
    let at = |minute: i64| CALENDAR.start(FIRST_DAY).plus_ms(minute * 60_000);
    Outage { place: Place::Building(CANTEENS[0].0.to_owned()), from: at(11 * 60 + 20), to: at(13 * 60) }
}

/// Generates `days` days of `people` people.
///
/// # Errors
/// None that could happen; names are checked by their types.
pub fn generate(seed: u64, people: u32, days: u32) -> Result<Workload> {
    let root = Random::new(seed);
    let buildings = sites()?;
    let people = (1..=people as usize)
        .map(|number| person(number, &mut root.fork(number as u64)))
        .collect::<Result<Vec<_>>>()?;
    let mut wishes = Vec::new();
    for day in 0..days {
        for (index, person) in people.iter().enumerate() {
            let purpose = 1_000_000_007 + u64::from(day) * 1_000_003 + index as u64;
            wishes.extend(day_of(index, person, i64::from(day), &mut root.fork(purpose)));
        }
    }
    wishes.sort_by_key(|wish| (wish.at, wish.person));
    let topups = money(&people, &mut wishes, &mut root.fork(u64::MAX))?;
    let taps = place(&people, &buildings, wishes, &mut root.fork(u64::MAX - 1))?;
    let accounts = people
        .into_iter()
        .map(|person| Account {
            card: person.card,
            patron_class: person.class.to_owned(),
            opening: Fen::new(person.opening),
            single_limit: Some(Fen::new(5_000)),
            daily_limit: Some(Fen::new(10_000)),
        })
        .collect();
    Ok(Workload { buildings, tariff: BTreeMap::new(), accounts, topups, taps })
}

fn sites() -> Result<Vec<Site>> {
    let canteens = CANTEENS.iter().map(|(name, _, tills)| (*name, Role::Pos, *tills, "p"));
    let shop = std::iter::once(("shop", Role::Pos, 3, "s"));
    let doors = DORMITORIES.iter().map(|name| (*name, Role::Door, 2, "d"));
    canteens
        .chain(shop)
        .chain(doors)
        .enumerate()
        .map(|(index, (name, role, terminals, letter))| {
            Ok(Site {
                name: NodeName::new(name)?,
                role,
                terminals: (1..=terminals)
                    .map(|number| TerminalId::new(format!("{letter}{}{number:02}", index + 1)))
                    .collect::<Result<_, _>>()?,
            })
        })
        .collect()
}

fn person(number: usize, random: &mut Random) -> Result<Person> {
    let shares = CANTEENS.map(|(_, share, _)| share);
    let hungry = number.is_multiple_of(HUNGRY_EVERY);
    let careless = !hungry && random.chance(NEARLY_EMPTY);
    // ln(141/28) / 3.29 = 0.49: the 5th and 95th percentile of a lognormal around ¥60.
    let balance = 6_000.0 * (0.49 * random.normal()).exp();
    let opening = match (hungry, careless) {
        (true, _) => 750 + random.below(250) as i64,
        (_, true) => random.below(1_200) as i64,
        _ => balance as i64,
    };
    Ok(Person {
        card: CardNumber::new(format!("g{number:05}"))?,
        class: ["student", "staff", "guest"][random.weighted(&[0.90, 0.07, 0.03])],
        favourite: random.weighted(&shares),
        second: random.weighted(&shares),
        dormitory: random.below(DORMITORIES.len() as u64) as usize,
        // Purchases per card differ by 2.4 between the median and the 95th percentile; exp(0.54^2 / 2) is the mean.
        purchases_per_day: PURCHASES_PER_DAY * (0.54 * random.normal() - 0.146).exp(),
        mean_fen: 410.0 * (0.25 * random.normal() - 0.031).exp(),
        opening,
        hungry,
        careless,
    })
}

#[derive(Clone, Debug)]
struct Wish {
    at: Timestamp,
    person: usize,
    building: usize,
    what: What,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum What {
    Door { stranger: bool },
    Pay { fen: i64, regretted: bool },
}

fn day_of(index: usize, person: &Person, day: i64, random: &mut Random) -> Vec<Wish> {
    let start = CALENDAR.start(FIRST_DAY).plus_ms(day * 86_400_000);
    let at = |second: i64| start.plus_ms(second.div_euclid(STEP_S) * STEP_S * 1_000);
    let mut wishes = Vec::new();
    let mut wish = |second: i64, building: usize, what: What| {
        wishes.push(Wish { at: at(second), person: index, building, what });
    };
    let shares = PROFILE.map(|(_, share)| share);
    for _ in 0..random.poisson(person.purchases_per_day / (1.0 + SECOND_BUILDING)) {
        let (minute, _) = PROFILE[random.weighted(&shares)];
        let second = minute * 60 + random.below(1_800) as i64;
        let building = visited(person, random);
        let regretted = random.chance(0.004);
        wish(second, building, What::Pay { fen: price(person, random), regretted });
        if random.chance(SECOND_BUILDING) {
            let other = elsewhere(person, building, random);
            let later = second + 60 + random.below(1_500) as i64;
            wish(later, other, What::Pay { fen: price(person, random), regretted: false });
        }
    }
    if person.hungry {
        // Spends nearly all at the largest canteen, and as much again elsewhere before anybody could know.
        let first = (11 * 60 + 25) * 60 + random.below(2_000) as i64;
        let other = 1 + random.below(CANTEENS.len() as u64 - 1) as usize;
        let gap = 300 + random.below(1_200) as i64;
        let (here, there) = if random.chance(0.5) { (0, other) } else { (other, 0) };
        wish(first, here, What::Pay { fen: 500 + random.below(200) as i64, regretted: false });
        wish(first + gap, there, What::Pay { fen: 500 + random.below(200) as i64, regretted: false });
    }
    let doors = DOORS_FIRST + person.dormitory;
    for second in [7 * 3_600, 12 * 3_600 + 1_800, 21 * 3_600] {
        if random.chance(0.7) {
            let second = second + random.below(5_400) as i64 - 1_800;
            wish(second, doors, What::Door { stranger: random.chance(0.033) });
            if random.chance(0.034) {
                wish(second + STEP_S, doors, What::Door { stranger: false });
            }
        }
    }
    wishes
}

fn visited(person: &Person, random: &mut Random) -> usize {
    match random.unit() {
        draw if draw < 0.12 => SHOP,
        draw if draw < 0.60 => person.favourite,
        draw if draw < 0.78 => person.second,
        _ => random.weighted(&CANTEENS.map(|(_, share, _)| share)),
    }
}

fn elsewhere(person: &Person, building: usize, random: &mut Random) -> usize {
    let other = if random.chance(0.5) { SHOP } else { visited(person, random) };
    if other == building { (building + 1) % (SHOP + 1) } else { other }
}

/// Prices vary by a fifth within a card, and end in a whole jiao as canteen prices do.
fn price(person: &Person, random: &mut Random) -> i64 {
    let fen = person.mean_fen * (0.21 * random.normal() - 0.022).exp();
    ((fen / 10.0).round() as i64).max(5) * 10
}

/// Plays the purchases on balances to find out who tops up when. What cannot be paid is still tried.
fn money(people: &[Person], wishes: &mut [Wish], random: &mut Random) -> Result<Vec<Topup>> {
    let mut balances: Vec<i64> = people.iter().map(|person| person.opening).collect();
    let mut coming: Vec<Vec<(Timestamp, i64)>> = vec![Vec::new(); people.len()];
    let mut topups = Vec::new();
    for wish in wishes {
        let What::Pay { fen, regretted } = wish.what else { continue };
        let person = &people[wish.person];
        let (due, later) = std::mem::take(&mut coming[wish.person])
            .into_iter()
            .partition::<Vec<_>, _>(|(at, _)| *at <= wish.at);
        coming[wish.person] = later;
        let balance = &mut balances[wish.person];
        *balance += due.iter().map(|(_, amount)| amount).sum::<i64>();
        let short = *balance < fen;
        if !short && !regretted {
            *balance -= fen;
        }
        let low = *balance < if person.careless { 500 } else { 1_500 };
        if !coming[wish.person].is_empty() || !(short || low) {
            continue;
        }
        if short || random.chance(0.5) {
            let mean_s = if short { 2_400.0 } else { 7_200.0 };
            let mut delay = 120 + (-mean_s * (1.0 - random.unit()).ln()) as i64;
            if person.hungry {
                delay = delay.max(3 * 3_600) + random.below(7_200) as i64;
            }
            let at = wish.at.plus_ms((delay.min(10 * 3_600) / STEP_S) * STEP_S * 1_000);
            let amount = [2_000, 5_000, 10_000, 20_000][random.weighted(&[0.1, 0.4, 0.4, 0.1])];
            let channel = ["alipay", "wechat", "counter"][random.weighted(&[0.35, 0.35, 0.3])];
            coming[wish.person].push((at, amount));
            topups.push(Topup {
                at,
                card: person.card.clone(),
                amount: Fen::new(amount),
                channel: Key::new(channel)?,
                key: Key::new(format!("g-{}", topups.len() + 1))?,
            });
        }
    }
    topups.sort_by_key(|topup| topup.at);
    Ok(topups)
}

/// Puts each wish to a terminal of its building and numbers the taps there.
fn place(people: &[Person], sites: &[Site], wishes: Vec<Wish>, random: &mut Random) -> Result<Vec<Tap>> {
    let mut taps = Vec::with_capacity(wishes.len());
    let mut regrets = Vec::new();
    let mut numbers: BTreeMap<TerminalId, u32> = BTreeMap::new();
    let mut next = |terminal: &TerminalId| {
        let number = numbers.entry(terminal.clone()).or_insert(0);
        *number += 1;
        Key::new(format!("{number:06}")).context("a number is a name")
    };
    for wish in wishes {
        let site = &sites[wish.building];
        let terminal = site.terminals[random.below(site.terminals.len() as u64) as usize].clone();
        let card = &people[wish.person].card;
        let (card, ask) = match wish.what {
            What::Door { stranger: true } => (CardNumber::new(format!("x{card}"))?, Ask::Access),
            What::Door { stranger: false } => (card.clone(), Ask::Access),
            What::Pay { fen, .. } => (card.clone(), Ask::Amount(Fen::new(fen))),
        };
        if matches!(wish.what, What::Pay { regretted: true, .. }) {
            regrets.push((taps.len(), wish.at.plus_ms((2 + random.below(6) as i64) * STEP_S * 1_000)));
        }
        let sequence = next(&terminal)?;
        taps.push(Tap { at: wish.at, building: wish.building, terminal, sequence, card, ask });
    }
    // A reversal stands after its tap, so the indices of the taps stay as they are when it is sorted in by time.
    for (original, at) in regrets {
        let tap: &Tap = &taps[original];
        let sequence = Key::new(format!("r{}", tap.sequence))?;
        taps.push(Tap { at, sequence, ask: Ask::Reversal(original), ..tap.clone() });
    }
    let mut order: Vec<usize> = (0..taps.len()).collect();
    order.sort_by_key(|index| taps[*index].at);
    let mut moved = vec![0; taps.len()];
    for (new, old) in order.iter().enumerate() {
        moved[*old] = new;
    }
    Ok(order
        .into_iter()
        .map(|old| {
            let mut tap = taps[old].clone();
            if let Ask::Reversal(original) = &mut tap.ask {
                *original = moved[*original];
            }
            tap
        })
        .collect())
}

/// The first generated day as text, for the help.
pub fn first_day() -> String {
    local::format(CALENDAR.start(FIRST_DAY)).chars().take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_day() {
        assert_eq!(generate(1, 200, 1).unwrap(), generate(1, 200, 1).unwrap());
        assert_ne!(generate(1, 200, 1).unwrap(), generate(2, 200, 1).unwrap());
        let (one, two) = (generate(1, 200, 1).unwrap(), generate(1, 200, 2).unwrap());
        assert!(two.taps.len() > one.taps.len() * 3 / 2);
        assert_eq!(first_day(), "2025-11-10");
    }

    #[test]
    fn the_day_looks_like_the_college() {
        let day = generate(1, 1_500, 1).unwrap();
        let fen: Vec<i64> = day
            .taps
            .iter()
            .filter_map(|tap| if let Ask::Amount(fen) = tap.ask { Some(fen.get()) } else { None })
            .collect();
        let mean = fen.iter().sum::<i64>() / fen.len() as i64;
        assert!((2_700..3_400).contains(&fen.len()), "{} purchases", fen.len());
        assert!((390..450).contains(&mean), "{mean} fen a purchase");
        let mut openings: Vec<i64> = day.accounts.iter().map(|account| account.opening.get()).collect();
        openings.sort_unstable();
        let percentile = |p: usize| openings[openings.len() * p / 100];
        assert!((5_000..6_500).contains(&percentile(50)), "{}", percentile(50));
        assert!((12_000..15_500).contains(&percentile(95)), "{}", percentile(95));
        assert!(percentile(3) < 1_500, "{}", percentile(3));
        let canteens: Vec<usize> =
            (0..5).map(|building| day.taps.iter().filter(|tap| tap.building == building).count()).collect();
        assert!(canteens.windows(2).all(|pair| pair[0] + 60 > pair[1]), "{canteens:?}");
        let at = |minute: i64| CALENDAR.start(FIRST_DAY).plus_ms(minute * 60_000);
        let noon = day
            .taps
            .iter()
            .filter(|tap| matches!(tap.ask, Ask::Amount(_)) && (at(690)..at(720)).contains(&tap.at))
            .count();
        assert!((15..30).contains(&(noon * 100 / fen.len())), "{noon} of {} at noon", fen.len());
        assert!(day.topups.len() > 40, "{} top-ups", day.topups.len());
        assert!(day.taps.iter().any(|tap| matches!(tap.ask, Ask::Reversal(_))));
        day.campus(feiqian_protocol::campus::Mode::Hybrid).check().unwrap();
    }

    #[test]
    fn order_and_keys_are_sound() {
        let days = generate(3, 300, 2).unwrap();
        assert!(days.taps.windows(2).all(|pair| pair[0].at <= pair[1].at));
        assert!(days.topups.windows(2).all(|pair| pair[0].at <= pair[1].at));
        let mut keys: Vec<_> = days.taps.iter().map(|tap| (&tap.terminal, &tap.sequence)).collect();
        keys.sort();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]));
        for (index, tap) in days.taps.iter().enumerate() {
            assert!(days.buildings[tap.building].terminals.contains(&tap.terminal));
            if let Ask::Reversal(original) = tap.ask {
                assert!(original < index);
                assert_eq!(days.taps[original].card, tap.card);
                assert_eq!(days.taps[original].terminal, tap.terminal);
            }
        }
    }
}
