//! The replay as steps: everything that happens at one virtual moment.

use std::collections::BTreeMap;
use std::ops::Range;

use feiqian_protocol::time::Timestamp;

use super::plan::{Plan, Victim};
use super::workload::Workload;

/// Everything of one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Step {
    /// True where a link or the centre changes.
    pub edge: bool,
    /// Top-ups, as a range of the workload's.
    pub topups: Range<usize>,
    /// Losses, as a range of the plan's.
    pub losses: Range<usize>,
    /// Taps, as a range of the workload's.
    pub taps: Range<usize>,
    /// Processes that are killed among the taps.
    pub kills: Vec<Victim>,
}

/// All steps by time. A kill goes to the first step from its time on with taps of that building; a kill without any later tap
/// goes to a step of its own.
pub fn steps(workload: &Workload, plan: &Plan) -> BTreeMap<Timestamp, Step> {
    let mut steps: BTreeMap<Timestamp, Step> = BTreeMap::new();
    for at in plan.edges() {
        steps.entry(at).or_default().edge = true;
    }
    for (index, topup) in workload.topups.iter().enumerate() {
        extend(&mut steps.entry(topup.at).or_default().topups, index);
    }
    for (index, (at, _)) in plan.losses.iter().enumerate() {
        extend(&mut steps.entry(*at).or_default().losses, index);
    }
    for (index, tap) in workload.taps.iter().enumerate() {
        extend(&mut steps.entry(tap.at).or_default().taps, index);
    }
    for (at, victim) in &plan.kills {
        let hit = steps
            .range(*at..)
            .find(|(at, step)| match victim {
                // A centre that is down cannot be killed.
                Victim::Centre => !step.taps.is_empty() && plan.centre.since(**at).is_none(),
                Victim::Node(node) => {
                    workload.taps[step.taps.clone()].iter().any(|tap| tap.building == *node)
                }
            })
            .map_or(*at, |(at, _)| *at);
        let kills = &mut steps.entry(hit).or_default().kills;
        if !kills.contains(victim) {
            kills.push(*victim);
        }
    }
    steps
}

fn extend(range: &mut Range<usize>, index: usize) {
    if range.start == range.end {
        *range = index..index + 1;
    } else {
        range.end = index + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campus::generate::{default_outage, generate};
    use crate::campus::plan::Kill;

    #[test]
    fn every_event_stands_in_one_step_and_kills_meet_taps() {
        let workload = generate(5, 200, 1).unwrap();
        let kill: Kill = "canteen-north@2025-11-10T11:50:01".parse().unwrap();
        let late: Kill = "shop@2025-11-12T11:50:01".parse().unwrap();
        let plan = Plan::new(&workload, &[default_outage()], &[kill, late], &[]).unwrap();
        let steps = steps(&workload, &plan);
        assert_eq!(steps.values().map(|step| step.taps.len()).sum::<usize>(), workload.taps.len());
        assert_eq!(steps.values().map(|step| step.topups.len()).sum::<usize>(), workload.topups.len());
        assert_eq!(steps.values().filter(|step| step.edge).count(), 2);
        for (at, step) in &steps {
            assert!(workload.taps[step.taps.clone()].iter().all(|tap| tap.at == *at));
        }
        let hits: Vec<_> = steps.values().filter(|step| !step.kills.is_empty()).collect();
        assert_eq!(hits.len(), 2);
        assert!(workload.taps[hits[0].taps.clone()].iter().any(|tap| tap.building == 0));
        assert!(hits[1].taps.is_empty());
    }
}
