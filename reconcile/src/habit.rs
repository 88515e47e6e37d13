//! Who gets how much: habits of accounts, means of the campus, and how free money is split by them. Pure, in integers.
//!
//! Free money goes out in lumps of a little more than the account's mean purchase at a node. The next lump goes where it
//! is most likely to be used within two working days (Poisson) for what it costs, while that likelihood is worth it; the
//! rest goes out in proportion to where the account spends. Nothing is kept at the centre: a connected node is recalled
//! when another one needs it, and a cut one could not use what is here.
//!
//! The day's allowance goes out likewise, in larger lumps first, since nobody stands in for it. One working day of campus
//! means is blended into every history, so that an account without one is split as the campus spends.

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::entry::Hint;
use feiqian_protocol::ids::{AccountId, NodeId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::BusinessDay;

/// What an account did at a node on one day.
#[derive(Clone, Copy, Debug, Default)]
pub struct HabitDay {
    /// Purchases.
    pub purchases: i64,
    /// Fen of them.
    pub fen: i64,
    /// Meal periods with any, as bits.
    pub meals: i64,
}

/// A likelihood or share of 1, in millionths.
const ONE: i64 = 1_000_000;

/// Purchases a day of an account that nothing is known of, in thousandths.
const PURCHASES_PER_DAY_MILLI: i64 = 2_000;

/// A purchase where the campus has none yet.
const PURCHASE_FEN: i64 = 1_000;

/// Lumps of money stop where the next one is less likely than this to be used.
const LIKELIHOOD_MIN: i128 = FIXED_ONE / 50;

/// Working days that lumps of money are for.
const LUMP_DAYS: i64 = 2;

const LUMP_FEN_MIN: i64 = 100;

/// Lumps of allowance, in percent of the mean purchase: the first covers one that is dearer than usual, the next ones
/// what is bought besides.
const ALLOWANCE_FIRST_PERCENT: i64 = 150;
const ALLOWANCE_NEXT_PERCENT: i64 = 110;

/// Lumps of one account and one split, against absurd amounts; the rest goes in proportion.
const LUMPS_MAX: usize = 1_000;

/// A day is quiet where the campus turns over less than this part of its mean day, in percent.
const QUIET_PERCENT: i64 = 70;

/// Turnover that every node is given in advance, so that shares do not jump at the first purchases.
const TURNOVER_PRIOR_FEN: i64 = 100_000;

/// The meal period of a minute of the day: breakfast, lunch, afternoon, dinner, night.
pub fn meal_period(minute: i64) -> u32 {
    match minute {
        ..600 => 0,
        600..870 => 1,
        870..990 => 2,
        990..1260 => 3,
        _ => 4,
    }
}

/// What the campus spends where.
#[derive(Clone, Debug, Default)]
pub struct CampusMeans {
    /// Share of each node that takes purchases, in millionths.
    pub shares: BTreeMap<NodeId, i64>,
    /// Mean purchase.
    pub purchase_fen: i64,
    /// Mean purchase at each node that had any.
    pub purchase_at: BTreeMap<NodeId, i64>,
    /// Mean turnover of each node per day with any.
    pub per_day: BTreeMap<NodeId, Fen>,
    /// Days on which the campus turned over much less than usual: weekends, holidays.
    pub quiet: BTreeSet<BusinessDay>,
}

impl CampusMeans {
    /// Of the turnover of days that are over: (node, day, purchases, fen), and the nodes that take purchases.
    pub fn new(turnover: &[(NodeId, BusinessDay, i64, i64)], nodes: &[NodeId]) -> Self {
        let mut fen: BTreeMap<NodeId, i64> = nodes.iter().map(|node| (*node, TURNOVER_PRIOR_FEN)).collect();
        let mut days: BTreeMap<NodeId, (i64, i64, i64)> = BTreeMap::new();
        let mut by_day: BTreeMap<BusinessDay, i64> = BTreeMap::new();
        let (mut purchases, mut spent) = (0, 0);
        for (node, day, day_purchases, day_fen) in turnover {
            if let Some(sum) = fen.get_mut(node) {
                *sum += day_fen;
            }
            let sum = days.entry(*node).or_default();
            *sum = (sum.0 + 1, sum.1 + day_purchases, sum.2 + day_fen);
            *by_day.entry(*day).or_default() += day_fen;
            purchases += day_purchases;
            spent += day_fen;
        }
        let total: i64 = fen.values().sum();
        let usual = spent / (by_day.len() as i64).max(1);
        let quiet = by_day.iter().filter(|(_, fen)| **fen * 100 < usual * QUIET_PERCENT);
        Self {
            shares: fen.into_iter().map(|(node, fen)| (node, scale(fen, ONE, total))).collect(),
            purchase_fen: if purchases > 0 { spent / purchases } else { PURCHASE_FEN },
            purchase_at: days
                .iter()
                .filter(|(_, sum)| sum.1 > 0)
                .map(|(node, sum)| (*node, sum.2 / sum.1))
                .collect(),
            per_day: days.iter().map(|(node, (days, _, fen))| (*node, Fen::new(fen / days))).collect(),
            quiet: quiet.map(|(day, _)| *day).collect(),
        }
    }

    fn share(&self, node: NodeId) -> i64 {
        self.shares.get(&node).copied().unwrap_or(0)
    }
}

/// `value * by / of`, without overflow; 0 where `of` is 0.
fn scale(value: i64, by: i64, of: i64) -> i64 {
    if of == 0 {
        return 0;
    }
    i64::try_from(i128::from(value) * i128::from(by) / i128::from(of)).unwrap_or(i64::MAX)
}

#[derive(Clone, Copy, Debug, Default)]
struct NodeHabit {
    purchases: i64,
    fen: i64,
    meals: i64,
    /// Of working days.
    working: i64,
    working_fen: i64,
}

/// What an account does where.
#[derive(Clone, Debug, Default)]
pub struct AccountHabits {
    nodes: BTreeMap<NodeId, NodeHabit>,
    /// Working days of the history, today included.
    days: i64,
}

impl AccountHabits {
    /// Of the days of a history that ends today.
    pub fn new(history: &[(NodeId, BusinessDay, HabitDay)], means: &CampusMeans, today: BusinessDay) -> Self {
        let mut habits = Self::default();
        let mut first = today;
        for (node, day, what) in history {
            let habit = habits.nodes.entry(*node).or_default();
            habit.purchases += what.purchases;
            habit.fen += what.fen;
            habit.meals += i64::from(what.meals.count_ones());
            if !means.quiet.contains(day) {
                habit.working += what.purchases;
                habit.working_fen += what.fen;
            }
            first = first.min(*day);
        }
        if !history.is_empty() {
            let quiet = means.quiet.range(first..=today).count() as i64;
            habits.days = i64::from(today.0) - i64::from(first.0) + 1 - quiet;
        }
        habits
    }

    /// True where the account bought at the node.
    pub fn has(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|habit| habit.purchases > 0)
    }

    fn purchase_mean(&self, means: &CampusMeans) -> i64 {
        let fen: i64 = self.nodes.values().map(|habit| habit.fen).sum();
        let purchases: i64 = self.nodes.values().map(|habit| habit.purchases).sum();
        (fen + means.purchase_fen) / (purchases + 1)
    }

    /// The mean purchase at a node: the account's own, with one as the campus would have it for this account.
    fn purchase_at(&self, node: NodeId, means: &CampusMeans) -> i64 {
        let own = self.nodes.get(&node).copied().unwrap_or_default();
        let there = means.purchase_at.get(&node).copied().unwrap_or(means.purchase_fen);
        let prior = scale(self.purchase_mean(means), there, means.purchase_fen);
        (own.fen + prior) / (own.purchases + 1)
    }

    /// Purchases at a node that so many working days bring, in thousandths.
    fn expected_milli(&self, node: NodeId, days: i64, means: &CampusMeans) -> i64 {
        let own = self.nodes.get(&node).map_or(0, |habit| habit.working) * 1_000;
        let prior = PURCHASES_PER_DAY_MILLI * means.share(node) / ONE;
        days * (own + prior) / (self.days + 1)
    }

    /// How much of what is split in proportion goes to a node: its part of the account's spending, and a fiftieth of
    /// that by the campus's shares.
    fn weight(&self, node: NodeId, means: &CampusMeans) -> i64 {
        let spent: i64 = self.nodes.values().map(|habit| habit.fen).sum();
        let own = self.nodes.get(&node).map_or(0, |habit| habit.fen);
        if spent == 0 { means.share(node) } else { own * 50 + scale(spent, means.share(node), ONE) }
    }

    /// Splits `amount` in proportion to where the account spends; the parts sum to it.
    pub fn split(&self, amount: Fen, nodes: &[NodeId], means: &CampusMeans) -> Vec<Fen> {
        let weights: Vec<i64> = nodes.iter().map(|node| self.weight(*node, means)).collect();
        proportional(amount, &weights)
    }

    /// How free money is given to nodes that hold `held` already, in lumps of so many percent of a purchase (none where that
    /// is 0); the parts sum to it.
    pub fn allocate(
        &self,
        free: Fen,
        nodes: &[(NodeId, Fen)],
        lump_percent: u32,
        means: &CampusMeans,
    ) -> Vec<Fen> {
        let mut lumps = Vec::new();
        for (node, held) in nodes.iter().filter(|_| lump_percent > 0) {
            let lump = self.purchase_at(*node, means) * i64::from(lump_percent) / 100;
            let lump = Fen::new(lump.max(LUMP_FEN_MIN));
            let mut lumps_there = Lumps::new(lump, lump, self.expected_milli(*node, LUMP_DAYS, means));
            lumps_there.skip(held.get().max(0) / lump.get());
            lumps.push(lumps_there);
        }
        self.hand_out(free, nodes.iter().map(|(node, _)| *node), lumps, LIKELIHOOD_MIN, means)
    }

    /// How a day's allowance is shared out; the parts sum to it.
    pub fn share_out(&self, limit: Fen, nodes: &[NodeId], means: &CampusMeans) -> Vec<Fen> {
        let lumps = nodes.iter().map(|node| {
            let mean = self.purchase_at(*node, means);
            let lump = |percent: i64| Fen::new((mean * percent / 100).max(LUMP_FEN_MIN));
            let expected = self.expected_milli(*node, 1, means);
            Lumps::new(lump(ALLOWANCE_FIRST_PERCENT), lump(ALLOWANCE_NEXT_PERCENT), expected)
        });
        self.hand_out(limit, nodes.iter().copied(), lumps.collect(), 1, means)
    }

    /// Lump by lump to the node where the next one is worth most for its size, then in proportion.
    fn hand_out(
        &self,
        amount: Fen,
        nodes: impl Iterator<Item = NodeId>,
        mut lumps: Vec<Lumps>,
        likelihood_min: i128,
        means: &CampusMeans,
    ) -> Vec<Fen> {
        let nodes: Vec<NodeId> = nodes.collect();
        let mut parts = vec![Fen::ZERO; nodes.len()];
        let mut rest = amount;
        for _ in 0..LUMPS_MAX {
            // Of equals the first, so that the order of nodes decides and nothing else.
            let likely = (0..lumps.len()).rev().filter(|index| lumps[*index].tail.tail >= likelihood_min);
            let best =
                likely.max_by_key(|index| lumps[*index].tail.tail / i128::from(lumps[*index].next.get()));
            let Some(best) = best.filter(|_| rest.is_positive()) else { break };
            let part = rest.min(lumps[best].next);
            parts[best] += part;
            rest -= part;
            lumps[best].skip(1);
        }
        for (part, more) in parts.iter_mut().zip(self.split(rest, &nodes, means)) {
            *part += more;
        }
        parts
    }

    /// What right lies where the account would want less of it than others want more: by node, so that one pass of recalls
    /// and grants puts it right. Empty where it is not worth a purchase.
    pub fn surplus(
        &self,
        nodes: &[(NodeId, Fen)],
        lump_percent: u32,
        means: &CampusMeans,
    ) -> Vec<(NodeId, Fen)> {
        let total: Fen = nodes.iter().map(|(_, held)| held.or_zero()).sum();
        let empty: Vec<(NodeId, Fen)> = nodes.iter().map(|(node, _)| (*node, Fen::ZERO)).collect();
        let ideal = self.allocate(total, &empty, lump_percent, means);
        let over = |((node, held), ideal): (&(NodeId, Fen), Fen)| (*node, (held.or_zero() - ideal).or_zero());
        let surplus: Vec<(NodeId, Fen)> = nodes.iter().zip(ideal).map(over).collect();
        let moved: Fen = surplus.iter().map(|(_, over)| *over).sum();
        if moved.get() < self.purchase_mean(means) {
            return Vec::new();
        }
        surplus.into_iter().filter(|(_, over)| over.is_positive()).collect()
    }

    /// What the account spends at a node on a working day.
    pub fn per_day(&self, node: NodeId, means: &CampusMeans) -> Fen {
        let own = self.nodes.get(&node).map_or(0, |habit| habit.working_fen);
        let prior = scale(PURCHASES_PER_DAY_MILLI * means.purchase_fen / 1_000, means.share(node), ONE);
        Fen::new((own + prior) / (self.days + 1))
    }

    /// What a node needs to know to price a stand-in of this account.
    pub fn hint(&self, account: AccountId, node: NodeId, means: &CampusMeans, seasoned: bool) -> Hint {
        let elsewhere = self.nodes.iter().filter(|(other, _)| **other != node).map(|(_, habit)| habit);
        let (fen, working, meals) = elsewhere.fold((0, 0, 0), |sum, habit| {
            (sum.0 + habit.fen, sum.1 + habit.working_fen, sum.2 + habit.meals)
        });
        let mean = self.purchase_mean(means);
        let prior = scale(PURCHASES_PER_DAY_MILLI * means.purchase_fen / 1_000, ONE - means.share(node), ONE);
        Hint {
            account,
            elsewhere_per_day: Fen::new((working + prior) / (self.days + 1)),
            purchase_mean: Fen::new(mean),
            elsewhere_per_meal: Fen::new(if meals > 0 { fen / meals } else { mean }),
            habit: self.has(node),
            seasoned,
        }
    }
}

/// The lumps that a node may get one after another.
#[derive(Clone, Debug)]
struct Lumps {
    next: Fen,
    later: Fen,
    /// How likely the next one is to be used.
    tail: PoissonTail,
}

impl Lumps {
    fn new(first: Fen, later: Fen, expected_milli: i64) -> Self {
        Self { next: first, later, tail: PoissonTail::new(expected_milli) }
    }

    fn skip(&mut self, more: i64) {
        if more > 0 {
            self.next = self.later;
            self.tail.skip(more);
        }
    }
}

/// Splits an amount by weights, equally where all are zero; what rounding leaves goes to the heaviest.
fn proportional(amount: Fen, weights: &[i64]) -> Vec<Fen> {
    if weights.is_empty() || !amount.is_positive() {
        return vec![Fen::ZERO; weights.len()];
    }
    let equal = vec![1; weights.len()];
    let weights = if weights.iter().any(|weight| *weight > 0) { weights } else { equal.as_slice() };
    let total: i64 = weights.iter().sum();
    let mut parts: Vec<Fen> =
        weights.iter().map(|weight| Fen::new(scale(amount.get(), *weight, total))).collect();
    let given: Fen = parts.iter().copied().sum();
    let heaviest = (0..weights.len()).rev().max_by_key(|index| weights[*index]).unwrap_or(0);
    parts[heaviest] += amount - given;
    parts
}

/// The likelihood that a Poisson variable exceeds a number that grows, in fixed point.
#[derive(Clone, Debug)]
struct PoissonTail {
    mean_milli: i64,
    count: i64,
    term: i128,
    /// The likelihood of more than `count`.
    tail: i128,
}

/// One, in the fixed point of [`PoissonTail`].
const FIXED_ONE: i128 = 1_000_000_000_000_000;

/// e^-1 in that fixed point.
const FIXED_INVERSE_E: i128 = 367_879_441_171_442;

/// Beyond this many purchases in two days the difference no longer matters.
const MEAN_MILLI_MAX: i64 = 20_000;

impl PoissonTail {
    fn new(mean_milli: i64) -> Self {
        let mean_milli = mean_milli.clamp(0, MEAN_MILLI_MAX);
        let term = exp_negative(mean_milli);
        Self { mean_milli, count: 0, term, tail: FIXED_ONE - term }
    }

    fn skip(&mut self, more: i64) {
        for _ in 0..more {
            if self.tail <= 0 {
                return;
            }
            self.count += 1;
            self.term = self.term * i128::from(self.mean_milli) / 1_000 / i128::from(self.count);
            self.tail -= self.term;
        }
    }
}

/// e to the minus x thousandths: whole parts by multiplication, the rest by its series.
fn exp_negative(milli: i64) -> i128 {
    let mut value = FIXED_ONE;
    for _ in 0..milli / 1_000 {
        value = value * FIXED_INVERSE_E / FIXED_ONE;
    }
    let fraction = i128::from(milli % 1_000);
    let (mut sum, mut term) = (FIXED_ONE, FIXED_ONE);
    for index in 1..16 {
        term = -term * fraction / 1_000 / index;
        sum += term;
    }
    value * sum / FIXED_ONE
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn bought(node: NodeId, day: i32, purchases: i64, fen: i64) -> (NodeId, BusinessDay, HabitDay) {
        (node, BusinessDay(day), HabitDay { purchases, fen, meals: 0b10 })
    }

    fn millionths(tail: &PoissonTail) -> i128 {
        tail.tail * 1_000_000 / FIXED_ONE
    }

    fn habits_of(history: &[(NodeId, BusinessDay, HabitDay)], today: i32) -> AccountHabits {
        AccountHabits::new(history, &CampusMeans::default(), BusinessDay(today))
    }

    #[test]
    fn a_poisson_tail_is_right_to_the_millionth() {
        let mut tail = PoissonTail::new(1_000);
        assert_eq!(millionths(&tail), 632_120);
        tail.skip(1);
        assert_eq!(millionths(&tail), 264_241);
        tail.skip(2);
        assert_eq!(millionths(&tail), 18_988);
        assert_eq!(millionths(&PoissonTail::new(2_500)), 917_915);
        assert_eq!(millionths(&PoissonTail::new(0)), 0);
    }

    #[test]
    fn without_history_nodes_share_as_the_campus_does() {
        let means = CampusMeans::new(&[], &[A, B]);
        let habits = AccountHabits::default();
        assert_eq!(habits.split(Fen::new(5_000), &[A, B], &means), [Fen::new(2_500), Fen::new(2_500)]);
        let parts = habits.allocate(Fen::new(10_001), &[(A, Fen::ZERO), (B, Fen::ZERO)], 120, &means);
        assert_eq!(parts.iter().copied().sum::<Fen>(), Fen::new(10_001));
        assert!((parts[0] - parts[1]).get().abs() <= 1_201, "{parts:?}");
    }

    #[test]
    fn money_goes_where_the_account_spends() {
        let means = CampusMeans::new(&[], &[A, B]);
        let habits = habits_of(&[bought(A, 1, 3, 3_000), bought(A, 2, 3, 3_000)], 2);
        let parts = habits.allocate(Fen::new(20_000), &[(A, Fen::ZERO), (B, Fen::ZERO)], 120, &means);
        assert!(parts[0] > parts[1] + parts[1] + parts[1], "{parts:?}");
        let hint = habits.hint(AccountId(1), B, &means, true);
        assert!(!hint.habit && hint.elsewhere_per_day > Fen::new(1_500));
        assert!(habits.hint(AccountId(1), A, &means, true).habit);
    }

    #[test]
    fn a_lump_is_of_the_size_that_is_bought_there() {
        // Meals at A for ten yuan, water at B for one.
        let days = (1..=20).flat_map(|day| [bought(A, day, 1, 1_000), bought(B, day, 1, 100)]);
        let habits = habits_of(&days.collect::<Vec<_>>(), 20);
        let means = CampusMeans::new(&[], &[A, B]);
        let empty = [(A, Fen::ZERO), (B, Fen::ZERO)];
        let parts = habits.allocate(Fen::new(1_500), &empty, 120, &means);
        assert!(parts[1] > Fen::new(400) && parts[0] > Fen::new(900), "some water, then a meal: {parts:?}");
        let split = habits.allocate(Fen::new(1_500), &empty, 0, &means);
        assert!(split[1] < Fen::new(160), "in proportion, water gets a tenth: {split:?}");
        let shares = habits.share_out(Fen::new(1_500), &[A, B], &means);
        assert!(shares[0] > Fen::new(1_000) && shares[1] > Fen::new(150), "{shares:?}");
    }

    #[test]
    fn right_that_lies_where_it_is_not_needed_is_surplus() {
        let history: Vec<_> = (1..=20).map(|day| bought(A, day, 2, 1_000)).collect();
        let habits = habits_of(&history, 20);
        let means = CampusMeans::new(&[], &[A, B]);
        assert_eq!(habits.surplus(&[(A, Fen::new(4_000)), (B, Fen::new(100))], 120, &means), []);
        let wrong = habits.surplus(&[(A, Fen::ZERO), (B, Fen::new(4_000))], 120, &means);
        assert!(matches!(wrong[..], [(B, over)] if over > Fen::new(3_000)), "{wrong:?}");
    }

    #[test]
    fn quiet_days_do_not_thin_out_what_a_working_day_brings() {
        let turnover: Vec<_> =
            (1..=14).map(|day| (A, BusinessDay(day), 10, if day % 7 < 5 { 10_000 } else { 2_000 })).collect();
        let means = CampusMeans::new(&turnover, &[A, B]);
        assert_eq!(means.quiet.len(), 4);
        let history: Vec<_> =
            (1..=14).filter(|day| day % 7 < 5).map(|day| bought(A, day, 2, 1_000)).collect();
        let habits = AccountHabits::new(&history, &means, BusinessDay(14));
        let per_day = habits.hint(AccountId(1), B, &means, true).elsewhere_per_day;
        assert!((Fen::new(900)..Fen::new(1_150)).contains(&per_day), "{per_day:?}");
    }

    proptest! {
        #[test]
        fn all_that_is_free_is_given_and_no_part_is_negative(
            free in 0..1_000_000_i64,
            held in prop::collection::vec(0..20_000_i64, 1..8),
            purchases in 0..100_i64,
            lump_percent in 0..300_u32,
        ) {
            let nodes: Vec<NodeId> = (1..=held.len() as u16).map(NodeId).collect();
            let means = CampusMeans::new(&[], &nodes);
            let habits = habits_of(&[bought(A, 1, purchases, purchases * 700)], 9);
            let with: Vec<_> = nodes.iter().copied().zip(held.into_iter().map(Fen::new)).collect();
            for parts in [
                habits.allocate(Fen::new(free), &with, lump_percent, &means),
                habits.share_out(Fen::new(free), &nodes, &means),
            ] {
                prop_assert!(parts.iter().all(|part| !part.is_negative()));
                prop_assert_eq!(parts.into_iter().sum::<Fen>(), Fen::new(free));
            }
            for (node, over) in habits.surplus(&with, lump_percent, &means) {
                prop_assert!(with.iter().any(|(other, held)| *other == node && over <= *held));
            }
        }
    }
}
