//! A generated college of 8,425 cards: who buys what where and when, and who tops up when.
//!
//! **Measured**, of one college in April 2019 (payment totals per card and month, published for the second "Teddy Cup" data
//! analysis contest, 2019, problem B; only summed figures stand here): purchases per card, mean purchase given purchases, mean
//! balance of the 3,203 first-year cards given spending, shares of the five canteens, half-hour profiles of working and other
//! days. Amounts within a card vary by 21 % (payments of a Munich student canteen, November 2022: Beyer et al. 2024, Journal of
//! Accounting Research 62(1), doi 10.1111/1475-679X.12505).
//!
//! **Assumed**, since no record of one card over several buildings is known: the canteen of a meal is drawn from the card's own
//! preference, Dirichlet with an agreement of [`KAPPA`] between two days beyond chance, half of a card's meals having one of
//! their own; 80 % of purchases in canteens, 12 % in the shop, 8 % water; a holder under their usual level tops up with
//! probability one half after a purchase, two hours later on average; who is short at the till tops up at once.
#![allow(
    clippy::float_arithmetic,
    reason = "a generated workload; its amounts are rounded to fen here and are exact from then on"
)]

use feiqian_protocol::time::{BusinessDay, Timestamp};

use crate::campus::local::CALENDAR;
use crate::campus::random::Random;

/// People of the full college.
pub const PEOPLE: usize = 8_425;

/// The buildings: five canteens, a shop, and two that sell water.
pub const BUILDINGS: [&str; 8] = [
    "canteen-north",
    "canteen-east",
    "canteen-south",
    "canteen-west",
    "canteen-garden",
    "shop",
    "water-1",
    "water-2",
];

/// Shares of the canteens.
const CANTEENS: [f64; 5] = [0.34, 0.26, 0.15, 0.14, 0.12];
const SHOP: usize = 5;
const WATER_FIRST: usize = 6;

/// How far a card's visits on two days agree on the canteen, beyond chance (Cohen's kappa).
pub const KAPPA: f64 = 0.5;

/// The first generated day: Monday, 8 September 2025.
pub const FIRST_DAY: BusinessDay = BusinessDay(20_339);

/// Days that are over before anything is cut.
pub const HISTORY_DAYS: i32 = 42;

/// Probabilities at which [`PURCHASES`] are given, in percent.
const PURCHASES_AT: [f64; 14] =
    [0.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 100.0];
/// Purchases of a card in the month. Cards that spend more than ¥25 a purchase (1 %) are left out, since they buy with a PIN.
const PURCHASES: [f64; 14] =
    [1.0, 3.0, 9.0, 20.0, 33.0, 45.0, 56.0, 67.0, 79.0, 94.0, 116.0, 134.0, 175.0, 344.0];

/// Probabilities at which [`MEAN_FEN`] and [`BALANCE_FEN`] are given, in percent.
const AT: [f64; 7] = [1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 99.0];
/// Fen of a card's mean purchase, by fifths of purchases.
const MEAN_FEN: [[f64; 7]; 5] = [
    [50.0, 200.0, 322.0, 517.0, 719.0, 910.0, 1780.0],
    [178.0, 274.0, 356.0, 462.0, 583.0, 716.0, 1385.0],
    [199.0, 272.0, 347.0, 447.0, 547.0, 651.0, 1088.0],
    [176.0, 255.0, 320.0, 402.0, 497.0, 585.0, 828.0],
    [171.0, 226.0, 267.0, 327.0, 398.0, 484.0, 724.0],
];
/// Yuan a month that end the fifths of spending, but for the last.
const SPENDING_FIFTHS: [f64; 4] = [162.6, 243.6, 314.3, 402.4];
/// Fen of a card's mean balance, by fifths of spending. Very small ones, of cards hardly used, are left out.
const BALANCE_FEN: [[f64; 7]; 5] = [
    [2400.0, 2400.0, 3071.0, 4554.0, 5902.0, 8401.0, 17062.0],
    [2588.0, 3895.0, 4711.0, 5723.0, 8203.0, 10990.0, 17086.0],
    [3052.0, 4462.0, 5043.0, 6114.0, 8366.0, 11565.0, 21762.0],
    [3855.0, 4778.0, 5363.0, 6776.0, 9550.0, 12164.0, 22690.0],
    [3835.0, 5012.0, 5799.0, 8063.0, 10532.0, 13630.0, 24151.0],
];

/// Purchases of a working day and of another day, as parts of an average day.
const WORKING_DAY: f64 = 1.19;
const OTHER_DAY: f64 = 0.48;

/// Canteen purchases by half hour (its first minute) in a month, in hundreds: of working days.
const WORKING_PROFILE: [(i64, f64); 29] = [
    (390, 25.0),
    (420, 191.0),
    (450, 354.0),
    (480, 68.0),
    (510, 50.0),
    (540, 42.0),
    (570, 77.0),
    (600, 21.0),
    (630, 32.0),
    (660, 163.0),
    (690, 706.0),
    (720, 364.0),
    (750, 99.0),
    (780, 22.0),
    (900, 16.0),
    (930, 10.0),
    (960, 65.0),
    (990, 80.0),
    (1020, 143.0),
    (1050, 242.0),
    (1080, 259.0),
    (1110, 120.0),
    (1140, 72.0),
    (1170, 29.0),
    (1200, 19.0),
    (1230, 13.0),
    (1260, 29.0),
    (1290, 25.0),
    (1320, 21.0),
];
/// Likewise of other days.
const OTHER_PROFILE: [(i64, f64); 28] = [
    (390, 4.0),
    (420, 13.0),
    (450, 15.0),
    (480, 14.0),
    (510, 15.0),
    (540, 14.0),
    (570, 10.0),
    (600, 9.0),
    (630, 11.0),
    (660, 34.0),
    (690, 67.0),
    (720, 50.0),
    (750, 26.0),
    (780, 10.0),
    (810, 3.0),
    (960, 2.0),
    (990, 6.0),
    (1020, 24.0),
    (1050, 44.0),
    (1080, 41.0),
    (1110, 28.0),
    (1140, 18.0),
    (1170, 10.0),
    (1200, 6.0),
    (1230, 3.0),
    (1260, 2.0),
    (1290, 3.0),
    (1320, 3.0),
];
/// Where no profile is known: the shop by day and evening, water after lunch and in the evening, per half hour.
const SHOP_HOURS: (i64, i64) = (480, 1_320);
const WATER_HOURS: [(i64, i64); 2] = [(750, 840), (1_020, 1_380)];

/// A purchase of water, in parts of the card's mean, and one in the shop; a canteen's follows from the mean.
const WATER_PRICE: f64 = 0.3;
const SHOP_PRICE: f64 = 1.2;
/// Purchases in shop and of water.
const SHOP_SHARE: f64 = 0.12;
const WATER_SHARE: f64 = 0.08;
/// Variation of amounts within a card.
const VARIATION: f64 = 0.21;
/// The no-PIN limit of a purchase. Dearer ones need a PIN, which no outage policy is about.
const AMOUNT_FEN_MAX: i64 = 2_000;

/// Amounts that people top up, in fen.
const TOPUPS: [i64; 5] = [2_000, 3_000, 5_000, 10_000, 20_000];
/// What is topped up, in parts of the mean balance, and its scatter (standard deviation of the logarithm).
const TOPUP_OF_BALANCE: f64 = 1.4;
const TOPUP_SCATTER: f64 = 0.3;
/// Nobody's usual level is less than this many purchases.
const LEVEL_PURCHASES: f64 = 4.0;
/// After how long on average, in seconds.
const TOPUP_DELAY_S: f64 = 7_200.0;
const TOPUP_CHANCE: f64 = 0.5;

/// A purchase or a top-up of somebody.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// Who: an index of people.
    pub person: u32,
    /// What.
    pub what: What,
}

/// What somebody does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    /// Buys for so many fen at a building.
    Buy {
        /// An index of [`BUILDINGS`].
        building: u8,
        /// Fen.
        fen: i64,
    },
    /// Tops up so many fen at the centre.
    TopUp {
        /// Fen.
        fen: i64,
    },
}

/// When somebody who is short is not told, and who can top up meanwhile.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outage {
    /// From when.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// Buildings whose tills do not know what the holder has.
    pub cut: Vec<bool>,
    /// False where nobody can top up: the centre is down.
    pub topups: bool,
}

impl Outage {
    /// True while it lasts.
    pub fn is_on(&self, at: Timestamp) -> bool {
        (self.from..self.until).contains(&at)
    }
}

/// A college as its seed made it.
#[derive(Clone, Debug)]
pub struct College {
    /// Fen that everybody has when it begins.
    pub opening: Vec<i64>,
    /// All that happens, in order of time.
    pub events: Vec<Event>,
}

struct Person {
    purchases_per_day: f64,
    canteen_fen: f64,
    mean_fen: f64,
    /// Below this they think of topping up.
    level: i64,
    topup: i64,
    opening: i64,
    /// By meal.
    preferences: [[f64; 5]; 3],
    water: usize,
}

/// Generates so many people and days with an outage.
pub fn generate(seed: u64, people: usize, days: i32, outage: &Outage) -> College {
    let root = Random::new(seed);
    let mut college = College { opening: Vec::with_capacity(people), events: Vec::new() };
    for number in 0..people {
        let mut random = root.fork(number as u64 + 1);
        let person = person(&mut random);
        college.opening.push(person.opening);
        life(number as u32, &person, days, outage, &mut random, &mut college.events);
    }
    college.events.sort_unstable_by_key(|event| (event.at, event.person));
    college
}

/// A value by its distribution function, given at some probabilities (in percent); linear in between.
fn quantile(at: &[f64], values: &[f64], percent: f64) -> f64 {
    let next = at.iter().position(|known| *known > percent).unwrap_or(at.len());
    if next == 0 {
        return values[0];
    }
    if next == at.len() {
        return values[next - 1];
    }
    let part = (percent - at[next - 1]) / (at[next] - at[next - 1]);
    values[next - 1] + part * (values[next] - values[next - 1])
}

fn person(random: &mut Random) -> Person {
    let percent = random.unit() * 100.0;
    let purchases = quantile(&PURCHASES_AT, &PURCHASES, percent);
    let fifth = ((percent / 20.0) as usize).min(4);
    let mean_fen = quantile(&AT, &MEAN_FEN[fifth], random.unit() * 100.0);
    let spending = purchases * mean_fen / 100.0;
    let fifth = SPENDING_FIFTHS.iter().filter(|end| spending > **end).count();
    let balance = quantile(&AT, &BALANCE_FEN[fifth], random.unit() * 100.0);
    // What is topped up is somewhat more than the mean balance, which then lies in the middle of the way down.
    let wanted = (balance * TOPUP_OF_BALANCE).ln() + TOPUP_SCATTER * random.normal();
    let nearest = |amount: &&i64| ((**amount as f64).ln() - wanted).abs();
    let topup = TOPUPS.iter().min_by(|a, b| nearest(a).total_cmp(&nearest(b))).copied().unwrap_or(TOPUPS[0]);
    // Two purchases pass on average until it is thought of.
    let level = (balance * 0.93 - topup as f64 / 2.0 + 2.0 * mean_fen).max(mean_fen * LEVEL_PURCHASES);
    let base = preference(random);
    let preferences = std::array::from_fn(|_| if random.chance(0.5) { preference(random) } else { base });
    Person {
        purchases_per_day: purchases / 30.0,
        canteen_fen: mean_fen * (1.0 - SHOP_SHARE * SHOP_PRICE - WATER_SHARE * WATER_PRICE)
            / (1.0 - SHOP_SHARE - WATER_SHARE),
        mean_fen,
        level: level as i64,
        topup,
        opening: (level + random.unit() * topup as f64) as i64,
        preferences,
        water: WATER_FIRST + usize::from(random.chance(0.5)),
    }
}

/// Dirichlet around the canteens' shares: agreement beyond chance is 1 / (1 + sum of its parameters).
fn preference(random: &mut Random) -> [f64; 5] {
    let all: f64 = CANTEENS.iter().sum();
    let sum = 1.0 / KAPPA - 1.0;
    let drawn = CANTEENS.map(|share| gamma(sum * share / all, random));
    let total: f64 = drawn.iter().sum();
    if total > 0.0 { drawn.map(|part| part / total) } else { CANTEENS }
}

/// Gamma of scale 1 (Marsaglia and Tsang 2000; below shape 1 by their power of a uniform).
fn gamma(shape: f64, random: &mut Random) -> f64 {
    if shape < 1.0 {
        let power = (1.0 - random.unit()).powf(1.0 / shape);
        return gamma(shape + 1.0, random) * power;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = random.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - random.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

fn is_working_day(day: BusinessDay) -> bool {
    (day.0 - FIRST_DAY.0).rem_euclid(7) < 5
}

/// All that a person does: purchases by chance, and top-ups as they make them necessary.
fn life(
    number: u32,
    person: &Person,
    days: i32,
    outage: &Outage,
    random: &mut Random,
    events: &mut Vec<Event>,
) {
    let first = events.len();
    for day in (0..days).map(|index| BusinessDay(FIRST_DAY.0 + index)) {
        let working = is_working_day(day);
        let factor = if working { WORKING_DAY } else { OTHER_DAY };
        for _ in 0..random.poisson(person.purchases_per_day * factor) {
            let (minute, building, fen) = purchase(person, working, random);
            let ms = minute * 60_000 + random.below(30 * 60_000) as i64;
            let at = CALENDAR.start(day).plus_ms(ms);
            events.push(Event { at, person: number, what: What::Buy { building, fen } });
        }
    }
    events[first..].sort_by_key(|event| event.at);
    let mut balance = person.opening;
    let mut coming: Option<Timestamp> = None;
    let mut topups = Vec::new();
    let top_up = |at| Event { at, person: number, what: What::TopUp { fen: person.topup } };
    for event in &events[first..] {
        let What::Buy { building, fen } = event.what else { continue };
        if let Some(at) = coming.filter(|at| *at <= event.at) {
            topups.push(top_up(at));
            balance += person.topup;
            coming = None;
        }
        // The chance is drawn in any case, so that an outage changes nothing that it does not touch.
        let (thinks_of_it, delay_s) =
            (random.chance(TOPUP_CHANCE), -TOPUP_DELAY_S * (1.0 - random.unit()).ln());
        let told = !(outage.is_on(event.at) && outage.cut.get(usize::from(building)) == Some(&true));
        while told && balance < fen {
            // Short at the till: at once, instead of what was planned.
            topups.push(top_up(event.at.plus_ms(-1)));
            balance += person.topup;
            coming = None;
        }
        if balance >= fen {
            balance -= fen;
        }
        if balance < person.level && coming.is_none() && thinks_of_it {
            let at = event.at.plus_ms(60_000 + (delay_s * 1_000.0) as i64);
            let at = if outage.is_on(at) && !outage.topups { outage.until } else { at };
            coming = Some(at);
        }
    }
    topups.extend(coming.map(top_up));
    events.extend(topups);
}

/// When (the half hour's first minute), where and for how much.
fn purchase(person: &Person, working: bool, random: &mut Random) -> (i64, u8, i64) {
    let kind = random.weighted(&[1.0 - SHOP_SHARE - WATER_SHARE, SHOP_SHARE, WATER_SHARE]);
    let (minute, building, mean_fen) = match kind {
        0 => {
            let minute = if working {
                WORKING_PROFILE[random.weighted(&WORKING_PROFILE.map(|(_, share)| share))].0
            } else {
                OTHER_PROFILE[random.weighted(&OTHER_PROFILE.map(|(_, share)| share))].0
            };
            let meal = match minute {
                ..600 => 0,
                600..900 => 1,
                _ => 2,
            };
            (minute, random.weighted(&person.preferences[meal]), person.canteen_fen)
        }
        1 => (half_hour(SHOP_HOURS, random), SHOP, person.mean_fen * SHOP_PRICE),
        _ => {
            let hours = WATER_HOURS[random.weighted(&[0.25, 0.75])];
            (half_hour(hours, random), person.water, person.mean_fen * WATER_PRICE)
        }
    };
    let fen = mean_fen * (VARIATION * random.normal() - VARIATION * VARIATION / 2.0).exp();
    let fen = ((fen / 10.0).round() as i64 * 10).clamp(20, AMOUNT_FEN_MAX);
    (minute, building as u8, fen)
}

fn half_hour((from, to): (i64, i64), random: &mut Random) -> i64 {
    from + random.below(((to - from) / 30) as u64) as i64 * 30
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> Outage {
        Outage { from: Timestamp(0), until: Timestamp(0), cut: Vec::new(), topups: true }
    }

    #[test]
    fn the_college_looks_like_the_one_that_was_measured() {
        let days = HISTORY_DAYS;
        let college = generate(1, 2_000, days, &quiet());
        let mut balances = college.opening.clone();
        let mut means = vec![(0, 0); balances.len()];
        let (mut purchases, mut fen, mut topups) = (0, 0, 0);
        let mut by_building = [0_i64; BUILDINGS.len()];
        for event in &college.events {
            let person = event.person as usize;
            match event.what {
                What::TopUp { fen } => {
                    balances[person] += fen;
                    topups += 1;
                }
                What::Buy { building, fen: price } => {
                    balances[person] -= price;
                    assert!(balances[person] >= 0, "who is short tops up at once");
                    means[person] = (means[person].0 + balances[person], means[person].1 + 1);
                    by_building[usize::from(building)] += 1;
                    (purchases, fen) = (purchases + 1, fen + price);
                }
            }
        }
        let per_day = purchases / i64::from(days);
        assert!((3_700..4_300).contains(&per_day), "{per_day} purchases a day");
        assert!((395..430).contains(&(fen / purchases)), "{} fen a purchase", fen / purchases);
        let mut means: Vec<i64> =
            means.iter().filter(|mean| mean.1 > 0).map(|mean| mean.0 / mean.1).collect();
        means.sort_unstable();
        let percentile = |percent: usize| means[means.len() * percent / 100];
        assert!((2_200..3_200).contains(&percentile(5)), "{}", percentile(5));
        assert!((5_400..6_600).contains(&percentile(50)), "{}", percentile(50));
        assert!((12_500..16_500).contains(&percentile(95)), "{}", percentile(95));
        let a_month = topups * 30 / i64::from(days);
        assert!((4_500..6_500).contains(&a_month), "{a_month} top-ups a month");
        let share = |building: usize| by_building[building] * 100 / purchases;
        assert!((24..31).contains(&share(0)) && (10..14).contains(&share(SHOP)), "{by_building:?}");
        assert!((3..6).contains(&share(WATER_FIRST)), "{by_building:?}");
    }

    #[test]
    fn an_outage_changes_nothing_before_it() {
        let from = CALENDAR.start(BusinessDay(FIRST_DAY.0 + 20)).plus_ms(11 * 3_600_000);
        let outage = Outage {
            from,
            until: from.plus_ms(24 * 3_600_000),
            cut: vec![true; BUILDINGS.len()],
            topups: false,
        };
        let (whole, cut) = (generate(3, 300, 24, &quiet()), generate(3, 300, 24, &outage));
        let before = |college: &College| {
            let end = college.events.partition_point(|event| event.at < from);
            college.events[..end].to_vec()
        };
        assert_eq!(before(&whole), before(&cut));
        assert_ne!(whole.events, cut.events);
        let topped_up = |event: &&Event| outage.is_on(event.at) && matches!(event.what, What::TopUp { .. });
        assert_eq!(cut.events.iter().filter(topped_up).count(), 0, "nobody can top up");
        let buys = |college: &College| {
            college.events.iter().filter(|event| matches!(event.what, What::Buy { .. })).count()
        };
        assert_eq!(buys(&whole), buys(&cut), "people try all the same");
    }

    #[test]
    fn visits_agree_as_far_as_kappa_says() {
        // Two visits of the same meal at the same canteen, beyond chance.
        let root = Random::new(5);
        let (mut same, mut chance) = (0.0, 0.0);
        let all: f64 = CANTEENS.iter().sum();
        for number in 0..4_000 {
            let preference = preference(&mut root.fork(number));
            same += preference.iter().map(|share| share * share).sum::<f64>() / 4_000.0;
            chance = CANTEENS.iter().map(|share| (share / all) * (share / all)).sum();
        }
        let kappa = (same - chance) / (1.0 - chance);
        assert!((kappa - KAPPA).abs() < 0.03, "{kappa}");
    }
}
