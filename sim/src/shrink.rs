//! A failing seed made small: faults and actions are left out as long as the same promise is still broken.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::outcome::SimMode;
use crate::plan::{Plan, What};
use crate::promises::Promise;
use crate::scenario::Scenario;
use crate::sweep::play_plan;
use crate::world::Options;

/// What is left of a plan.
#[derive(Debug)]
pub struct Shrunk {
    /// The smaller plan.
    pub plan: Plan,
    /// What it still breaks.
    pub promise: Promise,
    /// Plans that were tried.
    pub tries: u32,
}

/// Shrinks a seed for at most this long.
///
/// # Errors
/// Where the seed breaks no promise.
pub fn shrink(mode: SimMode, scenario: &Scenario, seed: u64, at_most: Duration) -> Result<Shrunk> {
    let mut plan = Plan::draw(scenario, seed)?;
    let outcome = play_plan(mode, &plan, quiet());
    let Some(promise) = outcome.violations.first().map(|violation| violation.promise) else {
        bail!("seed {seed} of {} breaks no promise", scenario.name);
    };
    let until = Instant::now() + at_most;
    let mut tries = 0;
    let mut fails = |plan: &Plan| {
        tries += 1;
        play_plan(mode, plan, quiet()).violations.iter().any(|violation| violation.promise == promise)
    };
    loop {
        let before = (plan.faults.len(), plan.actions.len());
        plan.faults = smaller(plan.faults.clone(), until, |faults| {
            fails(&Plan { faults: faults.to_vec(), ..plan.clone() })
        });
        plan.actions = smaller(plan.actions.clone(), until, |actions| {
            fails(&Plan { actions: actions.to_vec(), ..plan.clone() })
        });
        if (plan.faults.len(), plan.actions.len()) == before || Instant::now() >= until {
            break;
        }
    }
    // Nothing happens after the last event but the repair.
    let last = plan.actions.iter().map(|action| action.at_ms);
    let last = last.chain(plan.faults.iter().map(|fault| fault.at_ms + fault.for_ms)).max().unwrap_or(0);
    let shorter = Plan {
        timing: crate::plan::Timing { length_ms: (last + 1_000).min(plan.timing.length_ms), ..plan.timing },
        ..plan.clone()
    };
    if fails(&shorter) {
        plan = shorter;
    }
    let fewer = without_unused_accounts(&plan);
    if fails(&fewer) {
        plan = fewer;
    }
    Ok(Shrunk { plan, promise, tries })
}

/// The plan without the accounts that nobody uses; one stays in any case.
fn without_unused_accounts(plan: &Plan) -> Plan {
    let is_used = |index: &usize| {
        plan.actions.iter().any(|action| match &action.what {
            What::Tap(tap) => tap.card == plan.accounts[*index].card,
            What::TopUp { account, .. }
            | What::Loss { account, .. }
            | What::Lift { account }
            | What::Close { account }
            | What::Reissue { account }
            | What::Unlock { account } => account == index,
            What::Reversal { .. } => false,
        })
    };
    let mut used: Vec<usize> = (0..plan.accounts.len()).filter(is_used).collect();
    if used.is_empty() {
        used.push(0);
    }
    let mut fewer = plan.clone();
    fewer.accounts = used.iter().map(|index| plan.accounts[*index].clone()).collect();
    for action in &mut fewer.actions {
        match &mut action.what {
            What::TopUp { account, .. }
            | What::Loss { account, .. }
            | What::Lift { account }
            | What::Close { account }
            | What::Reissue { account }
            | What::Unlock { account } => {
                *account = used.iter().position(|index| index == account).unwrap_or(0);
            }
            What::Tap(_) | What::Reversal { .. } => {}
        }
    }
    fewer
}

fn quiet() -> Options {
    // Words are for whoever looks at the result.
    Options { words: true, ..Options::default() }
}

/// Leaves out as much as possible (ddmin, Zeller and Hildebrandt 2002): first halves, then ever smaller pieces.
fn smaller<T: Clone>(mut all: Vec<T>, until: Instant, mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut pieces = 2;
    while !all.is_empty() && Instant::now() < until {
        let size = all.len().div_ceil(pieces);
        let mut from = 0;
        let mut found = false;
        while from < all.len() && Instant::now() < until {
            let to = (from + size).min(all.len());
            let without: Vec<T> = [&all[..from], &all[to..]].concat();
            if fails(&without) {
                all = without;
                found = true;
            } else {
                from = to;
            }
        }
        if size == 1 && !found {
            break;
        }
        pieces = if found { 2.max(pieces / 2) } else { (pieces * 2).min(all.len().max(1)) };
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_still_fails_and_nothing_of_it_can_go() {
        let until = Instant::now() + Duration::from_secs(60);
        let needed = |left: &[u32]| left.contains(&3) && left.contains(&77) && left.contains(&78);
        let left = smaller((0..100).collect(), until, needed);
        assert_eq!(left, [3, 77, 78]);
        assert_eq!(smaller((0..100).collect(), until, |_| true), Vec::<u32>::new());
    }
}
