//! Planted bugs, each caught by a promise, or the checks are broken.
//!
//! A bug is planted in a worker process, which plays seeds of the scenario that should show it, until a promise is broken. It is
//! caught where the same seed without it breaks none. [`feiqian_protocol::canary`] has the bugs; which of them are compiled
//! in is decided when the simulator is built, so without the feature `canaries` there is nothing to run.

use std::io::Write;
use std::ops::Range;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use feiqian_protocol::canary::{Canary, plant};
use serde::Serialize;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::outcome::{Outcome, SimMode};
use crate::promises::Promise;
use crate::scenario::Scenario;
use crate::sweep;
use crate::world::Options;

/// The hidden subcommand of a worker: `__canary NAME MODE SCENARIO FROM TO`; plays until a promise is broken, and writes that
/// outcome.
pub const WORKER: &str = "__canary";

/// Where a bug is looked for.
struct Place {
    canary: Canary,
    scenario: &'static str,
    mode: SimMode,
}

const fn message(canary: Canary, scenario: &'static str) -> Place {
    Place { canary, scenario, mode: SimMode::Message }
}

/// Every bug, and the scenario that shows it soonest.
const PLACES: &[Place] = &[
    message(Canary::AckBeforeCommit, "power-cut-storm"),
    message(Canary::AllowanceNotCounted, "clock-chaos"),
    message(Canary::AlteredIsLost, "altered-return"),
    message(Canary::AnswerBeforeCommit, "power-cut-storm"),
    message(Canary::CaseOpenedAgain, "everyone-everywhere"),
    message(Canary::ClosedStillPays, "closings"),
    message(Canary::ExpiredStillPays, "term-start"),
    message(Canary::ClosedWithoutUnderWay, "islands"),
    message(Canary::CodeCounterForgotten, "phones"),
    message(Canary::CodeWindowUnchecked, "phones"),
    message(Canary::DedupeSkipped, "rolling-restart"),
    Place { canary: Canary::FailedStepAnswers, scenario: "power-cut-storm", mode: SimMode::FullStack },
    message(Canary::ForkAccepted, "clone-and-restore"),
    message(Canary::GivenUpCountsAgain, "closings"),
    message(Canary::GrantAddedOnEveryDelivery, "flapping-link"),
    message(Canary::GrantResentAfterRestart, "rolling-restart"),
    message(Canary::HoldReturnedEarly, "phones"),
    message(Canary::HoursIgnored, "lunch-uplink-cut"),
    message(Canary::InitialPinPays, "lunch-uplink-cut"),
    message(Canary::IssuanceNotChecked, "loss-during-outage"),
    message(Canary::LateEntryAsUsual, "islands"),
    message(Canary::LateEntryUnsettlesCase, "everyone-everywhere"),
    message(Canary::LiftUnseen, "loss-behind-backlog"),
    message(Canary::LossBehindBulk, "loss-behind-backlog"),
    message(Canary::LossOnlyWhereHeard, "loss-during-outage"),
    message(Canary::MealLimitIgnored, "lunch-uplink-cut"),
    message(Canary::NamedByNameAlone, "altered-return"),
    message(Canary::OwnSettingForgotten, "loss-during-outage"),
    message(Canary::PinTriesForgotten, "phones"),
    message(Canary::PinTriesNotCounted, "lunch-uplink-cut"),
    message(Canary::PurseLoadReversedUnproven, "purses"),
    message(Canary::PurseReturnedUnheard, "purses-replaced"),
    message(Canary::PurseTacNotVerified, "purses"),
    message(Canary::RecallBeyondUnspent, "lunch-uplink-cut"),
    message(Canary::RefundForgotten, "loss-during-outage"),
    message(Canary::RefundSinceReportForgotten, "loss-during-outage"),
    message(Canary::ReleaseCountedTwice, "flapping-link"),
    message(Canary::ReversalNamesDebitsEpoch, "everyone-everywhere"),
    message(Canary::ReversalRestoresStandIn, "everyone-everywhere"),
    message(Canary::RightNotDebitedOnRetry, "flapping-link"),
    message(Canary::RoleNotChecked, "wrong-hands"),
    message(Canary::RoundedTwice, "lunch-uplink-cut"),
    message(Canary::ShortCodeUsedAgain, "phones"),
    message(Canary::SnapshotWithoutBalances, "long-away"),
    message(Canary::StaleGrantsAccepted, "clone-and-restore"),
    message(Canary::StaleIncarnationAccepted, "clone-and-restore"),
    message(Canary::StandInAboveCap, "everyone-everywhere"),
    message(Canary::StandInRefreshedByFlap, "everyone-everywhere"),
    message(Canary::SynchronousNormal, "power-cut-storm"),
    message(Canary::TombstoneIgnored, "lunch-uplink-cut"),
    message(Canary::VoidStillPays, "loss-during-outage"),
    message(Canary::VoucherPaidOutTwice, "phones"),
    message(Canary::WaitsThoughCut, "flapping-link"),
];

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The seeds that a bug must show in.
    pub seeds: Range<u64>,
    /// Only these bugs; all where empty.
    pub only: Vec<String>,
    /// In this scenario instead of the bug's own.
    pub scenario: Option<String>,
    /// Processes at the same time.
    pub jobs: usize,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The seeds, half-open.
    pub seeds: Range<u64>,
    /// By name.
    pub canaries: Vec<Caught>,
    /// Those that no promise caught.
    pub missed: Vec<String>,
}

/// How a bug showed.
#[derive(Debug, Serialize)]
pub struct Caught {
    /// The bug's name.
    pub name: String,
    /// What it is.
    pub what: String,
    /// The scenario.
    pub scenario: String,
    /// `message` or `full_stack`.
    pub mode: String,
    /// The promises that caught it, the first to be broken first; none where it was not caught.
    pub promises: Vec<Promise>,
    /// How many seeds were played until then, that one included.
    pub seeds: u64,
    /// The seed.
    pub seed: Option<u64>,
    /// What was found.
    pub text: String,
    /// Seeds that break a promise without it as well, and so say nothing of it.
    pub broken_without: Vec<u64>,
}

impl Report {
    /// True where every bug was caught.
    pub const fn good(&self) -> bool {
        self.missed.is_empty()
    }

    /// For people.
    pub fn table(&self) -> String {
        let Range { start, end } = self.seeds;
        let mut text = format!(
            "{:30} {:40} {:20} seeds 种子 of {start}..{end}\n",
            "canary 植入的错误", "caught by 被承诺发现", "scenario 场景"
        );
        for caught in &self.canaries {
            let promises: Vec<_> = caught.promises.iter().map(|promise| promise.name()).collect();
            let by =
                if promises.is_empty() { "NOT CAUGHT 未发现".to_owned() } else { promises.join(", ") };
            let full = if caught.mode == SimMode::FullStack.name() { " (full stack)" } else { "" };
            text += &format!("{:30} {by:40} {:20} {}{full}\n", caught.name, caught.scenario, caught.seeds);
            text += &format!("    {}\n", caught.what);
            if !caught.text.is_empty() {
                text += &format!("    found 发现: {}\n", caught.text);
            }
            if !caught.broken_without.is_empty() {
                text +=
                    &format!("    broken without it as well 无此错误也违反: {:?}\n", caught.broken_without);
            }
        }
        text += &format!(
            "caught 已发现: {} of {}\n",
            self.canaries.len() - self.missed.len(),
            self.canaries.len()
        );
        text
    }
}

/// The names of all bugs.
pub fn names() -> Vec<&'static str> {
    PLACES.iter().map(|place| place.canary.name()).collect()
}

fn find(name: &str) -> Result<Canary> {
    let known = PLACES.iter().map(|place| place.canary);
    known.into_iter().find(|canary| canary.name() == name).with_context(|| format!("no canary {name:?}"))
}

/// Looks for every bug that is wanted.
///
/// # Errors
/// A name or a scenario that there is not, or a worker that fails.
pub async fn run(wanted: &Wanted) -> Result<Report> {
    for name in &wanted.only {
        find(name)?;
    }
    let is_wanted =
        |place: &&Place| wanted.only.is_empty() || wanted.only.iter().any(|name| name == place.canary.name());
    let mut waiting = PLACES.iter().filter(is_wanted);
    let mut canaries = Vec::new();
    let mut workers = JoinSet::new();
    loop {
        while workers.len() < wanted.jobs.max(1)
            && let Some(place) = waiting.next()
        {
            let scenario = wanted.scenario.clone().unwrap_or_else(|| place.scenario.to_owned());
            workers.spawn(look_for(place.canary, place.mode, scenario, wanted.seeds.clone()));
        }
        let Some(caught) = workers.join_next().await else { break };
        let caught = caught??;
        let how = if caught.promises.is_empty() { "not caught" } else { "caught" };
        eprintln!("{}: {how} after {} seeds", caught.name, caught.seeds);
        canaries.push(caught);
    }
    canaries.sort_by(|left, right| left.name.cmp(&right.name));
    let missed =
        canaries.iter().filter(|caught| caught.promises.is_empty()).map(|caught| caught.name.clone());
    Ok(Report { seeds: wanted.seeds.clone(), missed: missed.collect(), canaries })
}

/// Plays seeds with a bug until a promise is broken that holds without it.
async fn look_for(canary: Canary, mode: SimMode, scenario: String, seeds: Range<u64>) -> Result<Caught> {
    let name = canary.name();
    let mut from = seeds.start;
    let mut caught = Caught {
        name: name.to_owned(),
        what: canary.what().to_owned(),
        scenario: scenario.clone(),
        mode: mode.name().to_owned(),
        promises: Vec::new(),
        seeds: seeds.end - seeds.start,
        seed: None,
        text: String::new(),
        broken_without: Vec::new(),
    };
    while let Some(outcome) = play_until_broken(name, mode, &scenario, from..seeds.end).await? {
        let sound = sweep::worker(mode, scenario.clone(), outcome.seed, outcome.seed + 1).await?;
        if sound.iter().all(Outcome::good) {
            caught.promises = outcome.violations.iter().map(|violation| violation.promise).collect();
            caught.text =
                outcome.violations.first().map(|violation| violation.text.clone()).unwrap_or_default();
            caught.seeds = outcome.seed - seeds.start + 1;
            caught.seed = Some(outcome.seed);
            break;
        }
        caught.broken_without.push(outcome.seed);
        from = outcome.seed + 1;
    }
    Ok(caught)
}

/// The first of these seeds in which the bug breaks a promise, played in a process of its own.
async fn play_until_broken(
    name: &str,
    mode: SimMode,
    scenario: &str,
    seeds: Range<u64>,
) -> Result<Option<Outcome>> {
    if seeds.is_empty() {
        return Ok(None);
    }
    let output = Command::new(std::env::current_exe()?)
        .args([WORKER, name, mode.name(), scenario, &seeds.start.to_string(), &seeds.end.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .context("starting a worker")?;
    ensure!(output.status.success(), "the worker of {name} ended with {}", output.status);
    if output.stdout.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&output.stdout).context("a worker's outcome")?))
}

/// A worker process: plants its bug and plays seeds until a promise is broken.
///
/// # Errors
/// Arguments that make no sense, a scenario that cannot be read, or nobody listens.
pub fn work(arguments: &[String]) -> Result<()> {
    let [name, mode, scenario, from, to] = arguments else { bail!("expected NAME MODE SCENARIO FROM TO") };
    plant(find(name)?);
    let mode: SimMode = mode.parse().map_err(anyhow::Error::msg)?;
    let scenario = Scenario::load(scenario)?;
    for seed in from.parse::<u64>()?..to.parse()? {
        let outcome = sweep::play(mode, &scenario, seed, Options::default())?;
        if !outcome.good() {
            let mut out = std::io::stdout().lock();
            serde_json::to_writer(&mut out, &outcome)?;
            out.flush()?;
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_canary_has_a_place_and_every_place_a_scenario() {
        let mut names = names();
        for canary in Canary::ALL {
            assert!(names.contains(&canary.name()), "{}", canary.name());
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PLACES.len());
        for place in PLACES {
            assert!(Scenario::load(place.scenario).is_ok(), "{}", place.scenario);
        }
    }
}
