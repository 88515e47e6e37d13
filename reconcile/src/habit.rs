//! Who gets how much: habits of accounts, means of the campus, and how free money is split by them. Pure, in integers.
//!
//! Free money goes out in lumps of a little more than the account's mean purchase: the next lump to the node where it is
//! most likely to be used within two days (Poisson), while that likelihood is worth it; the rest in proportion to where
//! the account spends. Nothing is kept at the centre: a connected node is recalled when another one needs it, and a cut
//! one could not use what is here. One day of campus means is blended into every history, so that an account without
//! one is split as the campus spends.

use std::collections::BTreeMap;

use feiqian_protocol::entry::Hint;
use feiqian_protocol::ids::{AccountId, NodeId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::BusinessDay;

use crate::store::money::HabitDay;

/// A likelihood or share of 1, in millionths.
const ONE: i64 = 1_000_000;

/// Purchases a day of an account that nothing is known of, in thousandths.
const PURCHASES_PER_DAY_MILLI: i64 = 2_000;

/// A purchase where the campus has none yet.
const PURCHASE_FEN: i64 = 1_000;

/// Lumps stop where the next one is less likely than this to be used.
const LIKELIHOOD_MIN: i64 = 50_000;

/// A lump is this many tenths of the mean purchase, and at least [`LUMP_FEN_MIN`].
const LUMP_TENTHS: i64 = 13;

const LUMP_FEN_MIN: i64 = 100;

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
    /// Mean turnover of each node per day with any.
    pub per_day: BTreeMap<NodeId, Fen>,
}

impl CampusMeans {
    /// Of the turnover of days that are over: (node, day, purchases, fen), and the nodes that take purchases.
    pub fn new(turnover: &[(NodeId, BusinessDay, i64, i64)], nodes: &[NodeId]) -> Self {
        let mut fen: BTreeMap<NodeId, i64> = nodes.iter().map(|node| (*node, TURNOVER_PRIOR_FEN)).collect();
        let mut days: BTreeMap<NodeId, (i64, i64)> = BTreeMap::new();
        let (mut purchases, mut spent) = (0, 0);
        for (node, _, day_purchases, day_fen) in turnover {
            if let Some(sum) = fen.get_mut(node) {
                *sum += day_fen;
            }
            let sum = days.entry(*node).or_default();
            *sum = (sum.0 + 1, sum.1 + day_fen);
            purchases += day_purchases;
            spent += day_fen;
        }
        let total: i64 = fen.values().sum();
        Self {
            shares: fen.into_iter().map(|(node, fen)| (node, scale(fen, ONE, total))).collect(),
            purchase_fen: if purchases > 0 { spent / purchases } else { PURCHASE_FEN },
            per_day: days.into_iter().map(|(node, (days, fen))| (node, Fen::new(fen / days))).collect(),
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
}

/// What an account does where.
#[derive(Clone, Debug, Default)]
pub struct AccountHabits {
    nodes: BTreeMap<NodeId, NodeHabit>,
    days: i64,
}

impl AccountHabits {
    /// Of the days of a history that ends today.
    pub(crate) fn new(history: &[(NodeId, BusinessDay, HabitDay)], today: BusinessDay) -> Self {
        let mut habits = Self::default();
        for (node, day, what) in history {
            let habit = habits.nodes.entry(*node).or_default();
            habit.purchases += what.purchases;
            habit.fen += what.fen;
            habit.meals += i64::from(what.meals.count_ones());
            habits.days = habits.days.max(i64::from(today.0) - i64::from(day.0) + 1);
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

    /// Purchases at a node that two days bring, in thousandths.
    fn expected_milli(&self, node: NodeId, means: &CampusMeans) -> i64 {
        let own = self.nodes.get(&node).map_or(0, |habit| habit.purchases) * 1_000;
        let prior = PURCHASES_PER_DAY_MILLI * means.share(node) / ONE;
        2 * (own + prior) / (self.days + 1)
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

    /// How free money is given to nodes that hold `held` already; the parts sum to it.
    pub fn allocate(&self, free: Fen, nodes: &[(NodeId, Fen)], means: &CampusMeans) -> Vec<Fen> {
        let lump = Fen::new((self.purchase_mean(means) * LUMP_TENTHS / 10).max(LUMP_FEN_MIN));
        let mut tails: Vec<PoissonTail> = nodes
            .iter()
            .map(|(node, held)| {
                let mut tail = PoissonTail::new(self.expected_milli(*node, means));
                tail.skip(held.get().max(0) / lump.get());
                tail
            })
            .collect();
        let mut parts = vec![Fen::ZERO; nodes.len()];
        let mut rest = free;
        while rest.is_positive() {
            // Of equals the first, so that the order of nodes decides and nothing else.
            let best = (0..tails.len()).rev().max_by_key(|index| tails[*index].tail());
            let Some(best) = best.filter(|best| tails[*best].tail() >= LIKELIHOOD_MIN) else { break };
            let part = rest.min(lump);
            parts[best] += part;
            rest -= part;
            tails[best].skip(1);
        }
        let ids: Vec<NodeId> = nodes.iter().map(|(node, _)| *node).collect();
        for (part, more) in parts.iter_mut().zip(self.split(rest, &ids, means)) {
            *part += more;
        }
        parts
    }

    /// What a node needs to know to price a stand-in of this account.
    pub fn hint(&self, account: AccountId, node: NodeId, means: &CampusMeans, seasoned: bool) -> Hint {
        let elsewhere = self.nodes.iter().filter(|(other, _)| **other != node).map(|(_, habit)| habit);
        let (fen, meals) = elsewhere.fold((0, 0), |sum, habit| (sum.0 + habit.fen, sum.1 + habit.meals));
        let mean = self.purchase_mean(means);
        let prior = scale(PURCHASES_PER_DAY_MILLI * means.purchase_fen / 1_000, ONE - means.share(node), ONE);
        Hint {
            account,
            elsewhere_per_day: Fen::new((fen + prior) / (self.days + 1)),
            purchase_mean: Fen::new(mean),
            elsewhere_per_meal: Fen::new(if meals > 0 { fen / meals } else { mean }),
            habit: self.has(node),
            seasoned,
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

    /// The likelihood of more than `count`, in millionths.
    fn tail(&self) -> i64 {
        (self.tail.max(0) * i128::from(ONE) / FIXED_ONE) as i64
    }

    fn skip(&mut self, more: i64) {
        for _ in 0..more {
            if self.tail() == 0 {
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

    #[test]
    fn a_poisson_tail_is_right_to_the_millionth() {
        let mut tail = PoissonTail::new(1_000);
        assert_eq!(tail.tail(), 632_120);
        tail.skip(1);
        assert_eq!(tail.tail(), 264_241);
        tail.skip(2);
        assert_eq!(tail.tail(), 18_988);
        assert_eq!(PoissonTail::new(2_500).tail(), 917_915);
        assert_eq!(PoissonTail::new(0).tail(), 0);
    }

    #[test]
    fn without_history_nodes_share_as_the_campus_does() {
        let means = CampusMeans::new(&[], &[A, B]);
        let habits = AccountHabits::default();
        assert_eq!(habits.split(Fen::new(5_000), &[A, B], &means), [Fen::new(2_500), Fen::new(2_500)]);
        let parts = habits.allocate(Fen::new(10_001), &[(A, Fen::ZERO), (B, Fen::ZERO)], &means);
        assert_eq!(parts.iter().copied().sum::<Fen>(), Fen::new(10_001));
        assert!((parts[0] - parts[1]).get().abs() <= 1_301, "{parts:?}");
    }

    #[test]
    fn money_goes_where_the_account_spends() {
        let means = CampusMeans::new(&[], &[A, B]);
        let habits = AccountHabits::new(&[bought(A, 1, 3, 3_000), bought(A, 2, 3, 3_000)], BusinessDay(2));
        let parts = habits.allocate(Fen::new(20_000), &[(A, Fen::ZERO), (B, Fen::ZERO)], &means);
        assert!(parts[0] > parts[1] + parts[1] + parts[1], "{parts:?}");
        let hint = habits.hint(AccountId(1), B, &means, true);
        assert!(!hint.habit && hint.elsewhere_per_day > Fen::new(1_500));
        assert!(habits.hint(AccountId(1), A, &means, true).habit);
    }

    proptest! {
        #[test]
        fn all_that_is_free_is_given_and_no_part_is_negative(
            free in 0..1_000_000_i64,
            held in prop::collection::vec(0..20_000_i64, 1..8),
            purchases in 0..100_i64,
        ) {
            let nodes: Vec<NodeId> = (1..=held.len() as u16).map(NodeId).collect();
            let means = CampusMeans::new(&[], &nodes);
            let habits = AccountHabits::new(&[bought(A, 1, purchases, purchases * 700)], BusinessDay(9));
            let with: Vec<_> = nodes.iter().copied().zip(held.into_iter().map(Fen::new)).collect();
            let parts = habits.allocate(Fen::new(free), &with, &means);
            prop_assert!(parts.iter().all(|part| !part.is_negative()));
            prop_assert_eq!(parts.into_iter().sum::<Fen>(), Fen::new(free));
        }
    }
}
