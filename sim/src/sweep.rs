//! Many seeds, on several processes: SQLite's random numbers are one generator per process, so a seed has a process to itself
//! while it runs.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::campus::process;
use crate::full;
use crate::outcome::{Outcome, SimMode, Violation};
use crate::plan::Plan;
use crate::promises::{Coverage, Promise};
use crate::scenario::{BUILT_IN, Scenario};
use crate::world::{self, Options};

/// The hidden subcommand of a worker: `__seeds MODE SCENARIO FROM TO`; writes one outcome a line.
pub const WORKER: &str = "__seeds";

/// Seeds of one worker process: few enough to spread, many enough to pay for its start.
const SEEDS_PER_WORKER: u64 = 25;

/// Violations that a report lists in full.
const SHOWN_MAX: usize = 20;

/// What a sweep found.
#[derive(Debug, Default, Serialize)]
pub struct Sweep {
    /// Runs, over all scenarios.
    pub seeds: u64,
    /// Broken promises.
    pub violations: Vec<Broken>,
    /// Faults that really struck, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Simulated seconds.
    pub sim_seconds: u64,
    /// Real seconds.
    pub wall_seconds: u64,
    /// Entries in all logs.
    pub entries: u64,
    /// Rare paths that were reached, and how often.
    pub coverage: BTreeMap<String, u64>,
    /// Rare paths that were never reached; these fail a sweep of all scenarios.
    pub missed: Vec<String>,
    /// Kinds of faults that struck, over all runs: to be divided by `seeds`.
    pub fault_kinds: u64,
    #[serde(skip)]
    sim_ms: u64,
    #[serde(skip)]
    shown: Vec<Outcome>,
}

/// A broken promise.
#[derive(Debug, Serialize)]
pub struct Broken {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// What was promised.
    pub promise: Promise,
    /// What was found.
    pub text: String,
    /// What to run to see it again.
    pub replay: String,
}

impl Sweep {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.sim_ms += outcome.sim_ms;
        self.entries += outcome.entries;
        self.fault_kinds += outcome.faults.len() as u64;
        for (kind, count) in &outcome.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
        for (name, count) in &outcome.coverage {
            *self.coverage.entry(name.clone()).or_default() += count;
        }
        let replay = outcome.replay();
        self.violations.extend(outcome.violations.iter().map(|violation| Broken {
            scenario: outcome.scenario.clone(),
            seed: outcome.seed,
            promise: violation.promise,
            text: violation.text.clone(),
            replay: replay.clone(),
        }));
        if !outcome.good() && self.shown.len() < SHOWN_MAX {
            self.shown.push(outcome);
        }
    }

    /// True where every promise was kept and nothing that had to be reached was missed.
    pub const fn good(&self) -> bool {
        self.violations.is_empty() && self.missed.is_empty()
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for outcome in &self.shown {
            text += &describe(outcome);
        }
        let struck: u64 = self.faults.values().sum();
        let per_seed = |count: u64| {
            let tenths = count * 10 / self.seeds.max(1);
            format!("{}.{}", tenths / 10, tenths % 10)
        };
        text += &format!("seeds 种子: {}\n", self.seeds);
        text += &format!("violations 违反承诺: {}\n", self.violations.len());
        text += &format!(
            "faults a seed 每个种子的故障: {} of {} kinds 种\n",
            per_seed(struck),
            per_seed(self.fault_kinds)
        );
        let faults: Vec<_> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        text += &format!("  {}\n", faults.join(", "));
        text += &format!("entries 记录: {}\n", self.entries);
        text += &format!("simulated 模拟时间: {} s in {} s\n", self.sim_seconds, self.wall_seconds);
        let reached = Coverage::ALL.len() - self.missed.len();
        text += &format!("rare paths 罕见路径: {reached} of {}\n", Coverage::ALL.len());
        if !self.missed.is_empty() {
            text += &format!("  never reached 未到达: {}\n", self.missed.join(", "));
        }
        text
    }
}

/// A failed run for people: promise, what was found, how to see it again, the last events.
pub fn describe(outcome: &Outcome) -> String {
    let mut text = String::new();
    for violation in &outcome.violations {
        text += &format!(
            "VIOLATION 违反承诺 {} in {} seed {} at {} ms ({} entries)\n  {}\n",
            violation.promise.name(),
            outcome.scenario,
            outcome.seed,
            violation.at_ms,
            outcome.entries,
            violation.text
        );
    }
    if let Some(first) = outcome.violations.first() {
        text += &format!("  replay 重放: {}\n  last events 最后的事件:\n", outcome.replay());
        first.last_events.iter().for_each(|event| text += &format!("    {event}\n"));
    }
    text
}

/// Plays one seed; a panic is a broken promise, not the end of the sweep.
pub fn play(mode: SimMode, scenario: &Scenario, seed: u64, options: Options) -> Result<Outcome> {
    let plan = Plan::draw(scenario, seed)?;
    Ok(play_plan(mode, &plan, options))
}

/// Plays a plan; as [`play`].
pub fn play_plan(mode: SimMode, plan: &Plan, options: Options) -> Outcome {
    let play = || match mode {
        SimMode::Message => world::run(plan, options),
        SimMode::FullStack => full::run(plan, options),
    };
    std::panic::catch_unwind(AssertUnwindSafe(play)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let text = format!("panicked: {}", said.unwrap_or_default());
        Outcome {
            scenario: plan.scenario.clone(),
            seed: plan.seed,
            mode: mode.name().to_owned(),
            violations: vec![Violation { promise: Promise::Sound, text, at_ms: 0, last_events: Vec::new() }],
            ..Outcome::default()
        }
    })
}

/// A worker process: plays its seeds, one outcome a line.
///
/// # Errors
/// A scenario that cannot be read, or nobody listens.
pub fn work(arguments: &[String]) -> Result<()> {
    let [mode, scenario, from, to] = arguments else { bail!("expected MODE SCENARIO FROM TO") };
    let mode: SimMode = mode.parse().map_err(anyhow::Error::msg)?;
    let scenario = Scenario::load(scenario)?;
    let mut out = std::io::stdout().lock();
    for seed in from.parse::<u64>()?..to.parse()? {
        let outcome = play(mode, &scenario, seed, Options::default())?;
        serde_json::to_writer(&mut out, &outcome)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}

/// The scenarios that a name stands for.
///
/// # Errors
/// A scenario that cannot be read.
pub fn scenarios(name: &str) -> Result<Vec<String>> {
    if name != "all" {
        Scenario::load(name)?;
        return Ok(vec![name.to_owned()]);
    }
    let mut names = Vec::new();
    for (name, _) in BUILT_IN {
        if !Scenario::load(name)?.large {
            names.push((*name).to_owned());
        }
    }
    Ok(names)
}

/// Plays seeds of a scenario, or of all, on so many processes.
///
/// # Errors
/// A scenario that cannot be read, or a worker that fails.
pub async fn sweep(
    mode: SimMode,
    name: &str,
    seeds: std::ops::Range<u64>,
    jobs: usize,
    quiet: bool,
) -> Result<Sweep> {
    let began = Instant::now();
    let names = scenarios(name)?;
    let mut left = VecDeque::new();
    let mut from = seeds.start;
    while from < seeds.end {
        let to = (from + SEEDS_PER_WORKER).min(seeds.end);
        left.extend(names.iter().map(|name| (name.clone(), from, to)));
        from = to;
    }
    let total = (seeds.end - seeds.start) * names.len() as u64;
    let bar = progress(total, quiet);
    let mut sweep = Sweep::default();
    let mut workers = JoinSet::new();
    loop {
        while workers.len() < jobs.max(1)
            && let Some((name, from, to)) = left.pop_front()
        {
            workers.spawn(worker(mode, name, from, to));
        }
        let Some(outcomes) = workers.join_next().await else { break };
        for outcome in outcomes?? {
            bar.inc(1);
            sweep.add(outcome);
        }
        if !sweep.violations.is_empty() {
            bar.set_message(format!("{} violations", sweep.violations.len()));
        }
    }
    bar.finish_and_clear();
    sweep.sim_seconds = sweep.sim_ms / 1_000;
    sweep.wall_seconds = began.elapsed().as_secs();
    sweep.violations.sort_by(|left, right| (&left.scenario, left.seed).cmp(&(&right.scenario, right.seed)));
    // Some paths show only between the cores, where the other mode does not look.
    if name == "all" && mode == SimMode::Message {
        let missed = Coverage::ALL.iter().map(|coverage| coverage.name());
        sweep.missed = missed.filter(|name| !sweep.coverage.contains_key(*name)).map(str::to_owned).collect();
    }
    Ok(sweep)
}

fn progress(total: u64, quiet: bool) -> indicatif::ProgressBar {
    if quiet {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}");
    let bar = indicatif::ProgressBar::new(total);
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

/// Plays seeds in a process of their own.
///
/// # Errors
/// Where it fails.
pub async fn worker(mode: SimMode, name: String, from: u64, to: u64) -> Result<Vec<Outcome>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg(WORKER)
        .args([mode.name(), &name, &from.to_string(), &to.to_string()])
        .env(process::END_WITH_STDIN, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting a worker")?;
    // A worker ends when the other end of its standard input does.
    let alive = child.stdin.take();
    let out = child.stdout.take().context("a worker's output")?;
    let mut lines = BufReader::new(out).lines();
    let mut outcomes = Vec::new();
    while let Some(line) = lines.next_line().await? {
        outcomes.push(serde_json::from_str(&line).context("a worker's outcome")?);
    }
    let status = child.wait().await?;
    drop(alive);
    let played = outcomes.len() as u64;
    anyhow::ensure!(
        status.success() && played == to - from,
        "the worker of {name} {from}..{to} ended with {status} at seed {}",
        from + played
    );
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play_all(name: &str, seeds: std::ops::Range<u64>, options: impl Fn() -> Options) -> Vec<Outcome> {
        let scenario = Scenario::load(name).unwrap();
        seeds.map(|seed| play(SimMode::Message, &scenario, seed, options()).unwrap()).collect()
    }

    #[test]
    fn promises_are_kept_where_nothing_is_wrong_with_the_code() {
        for name in ["lunch-uplink-cut", "power-cut-storm", "loss-during-outage"] {
            for outcome in play_all(name, 0..3, Options::default) {
                assert!(outcome.good(), "{}", describe(&outcome));
                assert!(outcome.taps.approved > 10, "{outcome:?}");
            }
        }
    }

    #[test]
    fn commits_that_are_not_synced_break_the_first_promise() {
        let lowered = || Options { lowered_sync: true, ..Options::default() };
        let broken = play_all("power-cut-storm", 0..40, lowered);
        let survives = |violation: &Violation| violation.promise == Promise::Survives;
        let first = broken.iter().find(|outcome| outcome.violations.iter().any(survives));
        let first = first.expect("a lost tap is found");
        let said = describe(first);
        assert!(said.contains("was told") && said.contains("run power-cut-storm --seed"), "{said}");
        assert!(first.violations[0].last_events.len() > 10, "{said}");
    }
}
