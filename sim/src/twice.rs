//! The same seed twice, in two processes: everything must be equal.

use anyhow::{Context, Result};

use crate::outcome::{Outcome, SimMode};
use crate::sweep::worker;

/// Two runs of one seed.
#[derive(Debug)]
pub struct Pair {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// The digest of everything that happened, of both.
    pub audits: [String; 2],
    /// True where they differ in anything but the time that they took.
    pub differ: bool,
}

/// Plays each seed of a scenario, or of all, twice, in separate processes.
///
/// # Errors
/// A scenario that cannot be read, or a worker that fails.
pub async fn twice(mode: SimMode, scenario: &str, seeds: std::ops::Range<u64>) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for scenario in crate::sweep::scenarios(scenario)? {
        for seed in seeds.clone() {
            let once = || worker(mode, scenario.clone(), seed, seed + 1);
            let (first, second) = tokio::try_join!(once(), once())?;
            let [first, second] = [first, second].map(|mut outcomes| outcomes.pop());
            let (first, second) = (first.context("an outcome")?, second.context("an outcome")?);
            let audits = [first.audit.clone(), second.audit.clone()];
            let differ = timeless(first) != timeless(second);
            pairs.push(Pair { scenario: scenario.clone(), seed, audits, differ });
        }
    }
    Ok(pairs)
}

fn timeless(outcome: Outcome) -> Outcome {
    Outcome { wall_ms: 0, setup_ms: 0, ..outcome }
}
