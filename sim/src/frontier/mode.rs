//! What is compared: the product's modes and settings, and references that stay as they are.

use feiqian_protocol::campus::{Mode, Policy};
use feiqian_protocol::entry::Hint;
use feiqian_protocol::ids::{AccountId, NodeId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Timestamp};
use feiqian_reconcile::habit::{AccountHabits, CampusMeans, HabitDay, meal_period};
use std::collections::BTreeMap;

use super::college::What;
use super::play::Gate;
use super::rig::Rig;
use super::stage::Workload;
use crate::campus::local::CALENDAR;

/// A mode or setting.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Contender {
    /// The whole balance split by habit, rights only. The denominator of false declines: never to be changed.
    StrictReference,
    /// The same split, and beyond it whatever the last known balance allows. The denominator of overspend: never to be changed.
    Optimistic,
    /// The same split, and beyond it what is there with one standard deviation to spare; no caps. Never to be changed.
    Sketch,
    /// The product, rights only.
    Strict,
    /// The product as it is delivered.
    Hybrid,
    /// The product with another price of a false decline, in fen.
    Price(i64),
    /// The product with another pool, in percent of the usual turnover.
    Pool(u32),
}

impl Contender {
    /// All, references first.
    pub const ALL: [Self; 11] = [
        Self::StrictReference,
        Self::Optimistic,
        Self::Sketch,
        Self::Strict,
        Self::Hybrid,
        Self::Price(50),
        Self::Price(100),
        Self::Price(400),
        Self::Price(800),
        Self::Pool(8),
        Self::Pool(30),
    ];

    /// Those without which there is no F, and the default.
    pub const FEW: [Self; 5] =
        [Self::StrictReference, Self::Optimistic, Self::Sketch, Self::Strict, Self::Hybrid];

    /// The mode, as the product names it.
    pub const fn mode(self) -> &'static str {
        match self {
            Self::StrictReference => "strict-reference",
            Self::Optimistic => "optimistic",
            Self::Sketch => "sketch",
            Self::Strict => "strict",
            Self::Hybrid | Self::Price(_) | Self::Pool(_) => "hybrid",
        }
    }

    /// What differs from the default, for people.
    pub fn setting(self) -> String {
        match self {
            Self::Price(fen) => format!("price ¥{}", Fen::new(fen)),
            Self::Pool(percent) => format!("pool {percent} %"),
            _ => String::new(),
        }
    }

    /// True where rights are split as the references have it.
    pub const fn is_reference(self) -> bool {
        matches!(self, Self::StrictReference | Self::Optimistic | Self::Sketch)
    }

    /// The policy by which nodes decide.
    pub fn policy(self) -> Policy {
        let product = Policy::default();
        // References are not to move when the product's defaults do.
        let reference = Policy { lump_percent: 0, history_days: 28, ..Policy::default() };
        match self {
            Self::StrictReference => Policy { mode: Mode::Strict, ..reference },
            Self::Optimistic | Self::Sketch => Policy { mode: Mode::Optimistic, ..reference },
            Self::Strict => Policy { mode: Mode::Strict, ..product },
            Self::Hybrid => product,
            Self::Price(fen) => Policy { decline_price_fen: Fen::new(fen), ..product },
            Self::Pool(percent) => Policy { pool_percent: percent, ..product },
        }
    }
}

/// The sketch: approve where `last known balance - own spending since the cut - D·t - sqrt(D·t·max(m, ¥1)) >= amount`, D being
/// what the account spends elsewhere on a working day and m its mean purchase. It stands before nodes that would approve
/// whatever the balance allows.
pub struct Sketch {
    cut: Timestamp,
    /// By person.
    balances: Vec<i64>,
    /// By person and building: right that is left, spent since, and what is known of habits.
    rights: Vec<Vec<i64>>,
    spent: Vec<Vec<i64>>,
    hints: Vec<Vec<Hint>>,
}

impl Sketch {
    /// As things are at the cut.
    ///
    /// # Errors
    /// Where the centre's tables cannot be read.
    pub fn new(rig: &Rig, workload: &Workload, cut: Timestamp, balances: &[i64]) -> rusqlite::Result<Self> {
        let (people, buildings) = (balances.len(), workload.buildings.len());
        let mut rights = vec![vec![0; buildings]; people];
        let of_node: BTreeMap<u16, usize> = (0..buildings).map(|index| (rig.node(index).0, index)).collect();
        let mut statement =
            rig.tables().prepare("SELECT account, node, SUM(out) FROM rights GROUP BY 1, 2")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (account, node, out): (i64, u16, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            // Accounts are numbered from 1 in the order of their import.
            let person = usize::try_from(account - 1).unwrap_or(usize::MAX);
            if let (Some(rights), Some(building)) = (rights.get_mut(person), of_node.get(&node)) {
                rights[*building] = out;
            }
        }
        let hints = hints(rig, workload, cut);
        Ok(Self { cut, balances: balances.to_vec(), rights, spent: vec![vec![0; buildings]; people], hints })
    }
}

/// What the centre would tell the nodes about everybody.
fn hints(rig: &Rig, workload: &Workload, cut: Timestamp) -> Vec<Vec<Hint>> {
    let nodes: Vec<_> = (0..workload.buildings.len()).map(|building| rig.node(building)).collect();
    let (habits, means) = habits(&nodes, workload, cut);
    let of = |habits: &AccountHabits| {
        nodes.iter().map(|node| habits.hint(AccountId(0), *node, &means, true)).collect()
    };
    habits.iter().map(of).collect()
}

/// Everybody's habits in the 28 days before a time, and what the campus does; with the buildings' nodes in order.
pub(super) fn habits(
    nodes: &[NodeId],
    workload: &Workload,
    until: Timestamp,
) -> (Vec<AccountHabits>, CampusMeans) {
    let today = CALENDAR.day(until);
    let from = BusinessDay(today.0 - 28);
    let mut habits = vec![BTreeMap::<_, HabitDay>::new(); workload.opening.len()];
    let mut turnover = BTreeMap::<_, (i64, i64)>::new();
    for event in workload.between(CALENDAR.start(from), until) {
        let What::Buy { building, fen } = event.what else { continue };
        let day = CALENDAR.day(event.at);
        let key = (nodes[usize::from(building)], day);
        let habit = habits[event.person as usize].entry(key).or_default();
        let minute = event.at.ms_since(CALENDAR.start(day)) / 60_000;
        habit.purchases += 1;
        habit.fen += fen;
        habit.meals |= 1 << meal_period(minute);
        let sum = turnover.entry(key).or_default();
        *sum = (sum.0 + 1, sum.1 + fen);
    }
    let days: Vec<_> = turnover
        .into_iter()
        .filter(|((_, day), _)| *day < today)
        .map(|((node, day), (purchases, fen))| (node, day, purchases, fen))
        .collect();
    let means = CampusMeans::new(&days, nodes);
    let of = |days: BTreeMap<_, HabitDay>| {
        let days: Vec<_> = days.into_iter().map(|((node, day), what)| (node, day, what)).collect();
        AccountHabits::new(&days, &means, today)
    };
    (habits.into_iter().map(of).collect(), means)
}

/// The rule of the sketch, `ms` after the cut: whether `left` of the last known balance, a purchase taken off, is enough.
pub(super) fn is_within_sketch(hint: &Hint, ms: i64, left: i64) -> bool {
    let elsewhere = i128::from(hint.elsewhere_per_day.get()) * i128::from(ms) / 86_400_000;
    let variance = elsewhere * i128::from(hint.purchase_mean.get().max(100));
    i128::from(left) >= elsewhere + variance.isqrt()
}

impl Gate for Sketch {
    fn lets_through(&mut self, at: Timestamp, person: u32, building: usize, fen: i64) -> bool {
        let person = person as usize;
        if self.rights[person][building] >= fen {
            return true;
        }
        let left = self.balances[person] - self.spent[person][building] - fen;
        is_within_sketch(&self.hints[person][building], at.ms_since(self.cut), left)
    }

    fn approved(&mut self, person: u32, building: usize, fen: i64) {
        let person = person as usize;
        let right = &mut self.rights[person][building];
        *right -= fen.min(*right);
        self.spent[person][building] += fen;
    }
}
