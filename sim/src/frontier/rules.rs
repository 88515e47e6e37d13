//! The rules by themselves: what the node's price rule and the centre's split make of an outage in which every building is
//! alone, without cores, logs or disks. It takes a second where the cores take a minute, and serves to look for settings; the
//! cores have the last word, and a test holds the two against each other.
//!
//! Left out are the hours between midnight and the cut (what is there at the cut is handed out at once) and the no-PIN
//! allowance.

use std::collections::BTreeMap;

use feiqian_node::policy::{StandIn, stand_in};
use feiqian_protocol::campus::{Mode, Policy};
use feiqian_protocol::entry::Hint;
use feiqian_protocol::ids::{AccountId, NodeId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Timestamp};
use feiqian_reconcile::habit::{AccountHabits, CampusMeans};

use super::cell::{Found, Kind};
use super::college::What;
use super::mode::{Contender, habits, is_within_sketch};
use super::stage::Workload;
use crate::campus::local::CALENDAR;

const HALF_HOUR_MS: i64 = 1_800_000;

/// Everything as it is at the cut.
pub struct Campus<'a> {
    workload: &'a Workload,
    cut: Timestamp,
    nodes: Vec<NodeId>,
    habits: Vec<AccountHabits>,
    means: CampusMeans,
    balances: Vec<i64>,
}

/// One account at one building.
#[derive(Clone, Copy, Debug)]
struct Row {
    right: i64,
    stand_in: i64,
    spent: i64,
    hint: Hint,
}

/// What is spent of a building's pool on one day: by all, and by accounts without a habit there.
type Used = BTreeMap<(usize, BusinessDay), (i64, i64)>;

impl<'a> Campus<'a> {
    /// A workload whose buildings are all cut off at a time.
    pub fn new(workload: &'a Workload, cut: Timestamp) -> Self {
        let nodes: Vec<NodeId> = (1_u16..).take(workload.buildings.len()).map(NodeId).collect();
        let (habits, means) = habits(&nodes, workload, cut);
        Self { workload, cut, nodes, habits, means, balances: workload.balances(cut) }
    }

    /// What becomes of the purchases under one contender: one finding for each length (in half hours, ascending).
    pub fn play(&self, seed: u64, kind: Kind, contender: Contender, lengths: &[u32]) -> Vec<Found> {
        let policy = contender.policy();
        let mut rows: Vec<Vec<Row>> =
            (0..self.balances.len()).map(|person| self.rows(person, &policy)).collect();
        let pools = self.pools(&policy);
        let mut balances = self.balances.clone();
        let mut topped_up = vec![0; balances.len()];
        let mut overspent = vec![0_i64; balances.len()];
        let mut used = Used::new();
        let place = Contender::ALL.iter().position(|other| *other == contender).unwrap_or(0);
        let mut found = Found::none(seed, place, kind);
        let mut all = Vec::new();
        let mut from = self.cut;
        for half_hours in lengths {
            let until = self.cut.plus_ms(i64::from(*half_hours) * HALF_HOUR_MS);
            found.half_hours = *half_hours;
            found.bound_fen = self.bound(contender, &pools, until);
            for event in self.workload.between(from, until) {
                let person = event.person as usize;
                let (building, fen) = match event.what {
                    What::TopUp { fen } => {
                        balances[person] += fen;
                        topped_up[person] += fen;
                        continue;
                    }
                    What::Buy { building, fen } => (usize::from(building), fen),
                };
                found.taps += 1;
                let row = &mut rows[person][building];
                let need = (fen - row.right).max(0);
                let known = self.balances[person] - row.spent;
                let day = used.entry((building, CALENDAR.day(event.at))).or_default();
                let ms = event.at.ms_since(self.cut);
                let approved = need == 0
                    || match contender {
                        Contender::Sketch => is_within_sketch(&row.hint, ms, known - fen),
                        _ => {
                            let left = pools[building].left(*day, row.hint.habit);
                            stand_in(policy.mode, &asked(row, &policy, (fen, need, known), left, ms)).is_ok()
                        }
                    };
                if approved {
                    if policy.mode == Mode::Hybrid {
                        row.stand_in -= need;
                        day.0 += need;
                        day.1 += if row.hint.habit { 0 } else { need };
                    }
                    row.right -= fen - need;
                    row.spent += fen;
                    balances[person] -= fen;
                    overspent[person] = overspent[person].max(-balances[person]);
                    found.approved_fen += fen;
                    found.stand_in_fen += need;
                } else if balances[person] >= fen {
                    let was_there = balances[person] - topped_up[person] >= fen;
                    found.false_declines += u64::from(was_there);
                    found.unreachable += u64::from(!was_there);
                }
            }
            from = until;
            found.overspend_fen = overspent.iter().sum();
            (found.cut_taps, found.cut_false_declines) =
                (found.taps, found.false_declines + found.unreachable);
            all.push(found.clone());
        }
        all
    }

    fn rows(&self, person: usize, policy: &Policy) -> Vec<Row> {
        let (habits, balance) = (&self.habits[person], Fen::new(self.balances[person]));
        let empty: Vec<_> = self.nodes.iter().map(|node| (*node, Fen::ZERO)).collect();
        let rights = habits.allocate(balance, &empty, policy.lump_percent, &self.means);
        let row = |(node, right): (&NodeId, Fen)| {
            let hint = habits.hint(AccountId(0), *node, &self.means, true);
            let figure = if hint.habit { policy.stand_in_habit_fen } else { policy.stand_in_other_fen };
            let stand_in = figure.min((balance - right).or_zero());
            Row { right: right.get(), stand_in: stand_in.get(), spent: 0, hint }
        };
        self.nodes.iter().zip(rights).map(row).collect()
    }

    fn pools(&self, policy: &Policy) -> Vec<DayPool> {
        let pool = |node: &NodeId| {
            let usual = self.means.per_day.get(node).copied().unwrap_or(policy.pool_turnover_fen);
            let part = |of: i64, percent: u32| of / 100 * i64::from(percent);
            let per_day = part(usual.get(), policy.pool_percent);
            DayPool { per_day, habit_only: part(per_day, policy.pool_habit_percent) }
        };
        self.nodes.iter().map(pool).collect()
    }

    /// The most that can be overspent, as it stands at the cut.
    fn bound(&self, contender: Contender, pools: &[DayPool], until: Timestamp) -> i64 {
        let others = self.nodes.len() as i64 - 1;
        match contender {
            Contender::StrictReference | Contender::Strict => 0,
            Contender::Optimistic | Contender::Sketch => {
                self.balances.iter().map(|fen| fen.max(&0) * others).sum()
            }
            Contender::Hybrid | Contender::Price(_) | Contender::Pool(_) => {
                let days = i64::from(CALENDAR.day(until.plus_ms(-1)).0 - CALENDAR.day(self.cut).0 + 1);
                pools.iter().map(|pool| pool.per_day * days).sum()
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct DayPool {
    per_day: i64,
    habit_only: i64,
}

impl DayPool {
    fn left(self, used: (i64, i64), habit: bool) -> i64 {
        let left = self.per_day - used.0;
        if habit { left } else { left.min(self.per_day - self.habit_only - used.1) }
    }
}

/// What the node's rule looks at, for a purchase of so much of which so much is beyond the right, with the known balance.
fn asked(
    row: &Row,
    policy: &Policy,
    (fen, need, known): (i64, i64, i64),
    pool_left: i64,
    ms: i64,
) -> StandIn {
    StandIn {
        amount: Fen::new(fen),
        need: Fen::new(need),
        balance: Fen::new(known),
        granted_left: Fen::new(row.stand_in),
        pool_left: Fen::new(pool_left),
        hint: Some(row.hint),
        unheard_ms: ms.unsigned_abs(),
        unheard_ms_max: u64::from(policy.view_age_minutes_max) * 60_000,
        decline_price: policy.decline_price_fen,
    }
}
