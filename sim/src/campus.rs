//! A whole campus on this machine, of separate processes that run exactly what the two binaries run.
//!
//! In reading order: [`workload`] (what is played), [`replay`] and [`generate`] (where it comes from), [`plan`] (what goes
//! wrong), [`steps`], [`setup`] (an operator's commands), [`process`], [`control`], [`relay`], [`terminal`] (the means), [`drive`] (the
//! driver that owns the time), [`receipt`], [`check`], [`funds`], [`report`] (what came of it), [`layout`] (what is kept).

pub mod check;
pub mod control;
pub mod drive;
pub mod funds;
pub mod generate;
pub mod layout;
pub mod local;
pub mod plan;
pub mod process;
pub mod random;
pub mod receipt;
pub mod relay;
pub mod replay;
pub mod report;
pub mod setup;
pub mod steps;
pub mod terminal;
pub mod workload;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use feiqian_protocol::campus::Mode;
use feiqian_protocol::time::Timestamp;
use indicatif::{ProgressBar, ProgressStyle};

use self::drive::Driver;
use self::layout::{Layout, Run, RunNode};
use self::plan::{Kill, Loss, Outage, Plan};
use self::receipt::Totals;
use self::report::Report;
use self::workload::Workload;

/// The campus is up and drained this long before the first event.
const LEAD_MS: i64 = 10 * 60_000;
/// Between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Resident sizes are looked at once in so many steps.
const SAMPLE_EVERY: usize = 200;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    /// A folder to replay; a generated workload where absent.
    pub replay: Option<PathBuf>,
    /// Days: the first so many of a replay, or so many generated ones.
    pub days: Option<u32>,
    /// People of a generated workload.
    pub people: u32,
    /// The policy.
    pub mode: Mode,
    /// Of the generated workload, and of the moments of kills.
    pub seed: u64,
    /// Outages; `None` for the default one of a generated workload.
    pub outages: Option<Vec<Outage>>,
    /// Kills.
    pub kills: Vec<Kill>,
    /// Losses.
    pub losses: Vec<Loss>,
    /// Where the report goes as JSON.
    pub json: Option<PathBuf>,
    /// Where everything is left.
    pub keep: Option<PathBuf>,
    /// No progress.
    pub quiet: bool,
}

/// What is wrong with the options; for a person.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Runs a campus.
///
/// # Errors
/// [`Usage`] for options that do not fit the workload; anything that fails without a plan asking for it.
pub async fn run(options: &Options) -> Result<Report> {
    let workload = workload(options)?;
    let default = if options.replay.is_none() { vec![generate::default_outage()] } else { Vec::new() };
    let outages = options.outages.as_ref().unwrap_or(&default);
    let plan = Plan::new(&workload, outages, &options.kills, &options.losses).map_err(Usage)?;
    let names: Vec<&str> = workload.buildings.iter().map(|site| site.name.as_str()).collect();
    let (layout, _temporary) = match &options.keep {
        Some(keep) => (Layout::create(keep, &names).map_err(|error| Usage(format!("{error:#}")))?, None),
        None => {
            let temporary = tempfile::Builder::new().prefix("feiqian-").tempdir()?;
            (Layout::create(temporary.path(), &names)?, Some(temporary))
        }
    };
    play(options, &layout, &workload, &plan).await
}

fn workload(options: &Options) -> Result<Workload> {
    let workload = match &options.replay {
        Some(dir) => replay::read(dir, options.days).map_err(|error| Usage(format!("{error:#}")))?,
        None => generate::generate(options.seed, options.people, options.days.unwrap_or(1))?,
    };
    if workload.taps.is_empty() {
        return Err(Usage("there is nothing to play: no taps".to_owned()).into());
    }
    Ok(workload)
}

async fn play(options: &Options, layout: &Layout, workload: &Workload, plan: &Plan) -> Result<Report> {
    let steps = steps::steps(workload, plan);
    let first = steps.keys().next().copied().context("no steps")?;
    let last = steps.keys().next_back().copied().context("no steps")?;
    let mut progress = Progress::new(options.quiet, steps.len());
    progress.message("setting up the campus");
    let mut campus = setup::set_up(layout, workload, options.mode, first.plus_ms(-LEAD_MS)).await?;
    let mut driver = Driver::new(workload, plan, &mut campus, options.seed);
    driver.step(first.plus_ms(-LEAD_MS / 2), &steps::Step { edge: true, ..steps::Step::default() }).await?;
    let begun = Instant::now();
    for (number, (at, step)) in steps.iter().enumerate() {
        driver.step(*at, step).await.with_context(|| format!("at {}", local::format(*at)))?;
        progress.step(number + 1, *at, step.taps.end);
        if number.is_multiple_of(SAMPLE_EVERY) {
            driver.sample();
        }
    }
    let wall = begun.elapsed();
    progress.message("checking");
    let (receipts, mut played) = driver.finish(last).await?;
    played.wall = wall;
    campus.stop().await?;
    receipt::write(&layout.file("receipts.csv"), &receipts)?;
    let nodes = campus.nodes.iter().zip(&plan.unreachable).map(|(node, unreachable)| RunNode {
        node: node.name.clone(),
        offline_s: unreachable.seconds(),
        rss_kb_max: node.process.rss_kb_max,
    });
    let run = Run {
        mode: options.mode.name().to_owned(),
        seed: options.seed,
        workload: options.replay.as_ref().map_or("generated".to_owned(), |dir| dir.display().to_string()),
        nodes: nodes.collect(),
    };
    layout.write_run(&run)?;
    let findings = check::check(layout, layout.root()).await?;
    progress.finish();
    let wrong = funds::wrong_declines(&workload.accounts, &workload.topups, &receipts, |building, at| {
        plan.unreachable_since(workload.building(building)?, at)
    });
    let report = Report::new(&run, Totals::of(&receipts), wrong, played, findings);
    let json = serde_json::to_string_pretty(&report)? + "\n";
    std::fs::write(layout.file("report.json"), &json)?;
    if let Some(path) = &options.json {
        std::fs::write(path, &json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(report)
}

/// A bar on a terminal; elsewhere a line now and then.
struct Progress {
    bar: ProgressBar,
    lines: bool,
    total: usize,
    last_line: Instant,
}

impl Progress {
    fn new(quiet: bool, total: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if quiet || !terminal {
            ProgressBar::hidden()
        } else {
            let style = ProgressStyle::with_template("{bar:30} {percent:>3} % {elapsed} {msg}");
            ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        };
        Self { bar, lines: !quiet && !terminal, total, last_line: Instant::now() }
    }

    fn message(&mut self, text: &str) {
        self.bar.set_message(text.to_owned());
        if self.lines {
            eprintln!("{text}");
            self.last_line = Instant::now();
        }
    }

    fn step(&mut self, number: usize, at: Timestamp, taps: usize) {
        self.bar.set_position(number as u64);
        self.bar.set_message(local::format(at));
        if self.lines && self.last_line.elapsed() >= LINE_EVERY {
            eprintln!("{}: step {number} of {}, {taps} taps", local::format(at), self.total);
            self.last_line = Instant::now();
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
