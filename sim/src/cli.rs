//! The command line of `feiqian-sim`.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use feiqian_protocol::campus::Mode;

use crate::bench;
use crate::campus::layout::Layout;
use crate::campus::plan::{Kill, Loss, Outage};
use crate::campus::{self, Options, Usage, check, process};
#[cfg(feature = "canaries")]
use crate::canaries;
use crate::outcome::SimMode;
use crate::plan::Plan;
use crate::scenario::{BUILT_IN, Scenario, ScenarioError, Workload};
use crate::{card, frontier, phone, report, shrink, sweep, twice, world};

/// Shows that Feiqian keeps its promises: a whole campus on this machine.
#[derive(Debug, Parser)]
#[command(name = "feiqian-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a campus of real processes through a day of taps, outages and kills, and checks every fen.
    Campus(CampusArguments),
    /// Checks a kept campus again: every copy, every receipt, every fen.
    Verify(VerifyArguments),
    /// Plays one seed of a scenario: both cores on crash disks, under virtual time.
    Run(RunArguments),
    /// Plays many seeds of a scenario, or of `all`, and fails where a promise is broken.
    Sweep(SweepArguments),
    /// Plays seeds twice, in separate processes, and fails where anything differs.
    Twice(TwiceArguments),
    /// Makes a failing seed small, and writes what is left as a scenario of fixed events.
    Shrink(ShrinkArguments),
    /// Plants bugs in the code that ships, one at a time, and fails where no promise catches one. Only in a simulator that was
    /// built with `--features canaries`.
    Canaries(CanariesArguments),
    /// Lists the scenarios that come with the simulator.
    Scenarios(ScenariosArguments),
    /// Draws false declines against overspend: the same taps under the same outages with every mode and with settings of the
    /// hybrid policy, decided by the shipping cores. Ends with 1 where more was overspent than the bound allows.
    Frontier(frontier::Arguments),
    /// A phone with a virtual card, for trying it out: its key, its vouchers, fresh codes.
    #[command(subcommand)]
    Phone(phone::Action),
    /// Puts a purse card in software into a virtual reader of pcscd, and tears it out again where it is told to.
    PurseCard(card::cli::Arguments),
    /// Measures taps, catch-up, the way down and a node's start, each beside its baseline on the same disk.
    Bench(BenchArguments),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Times are local, without zone: 2022-11-08T11:30 or 2022-11-08T11:30:05. Intervals are half-open. \
    Generated days start on 2025-11-10, with canteen-north, canteen-east, canteen-south, canteen-west, canteen-garden, shop, \
    dormitory-1 and dormitory-2."
)]
struct CampusArguments {
    /// Replays taps.csv, accounts.csv and topups.csv (or .csv.gz) of this folder instead of a generated day.
    #[arg(long, value_name = "DIR")]
    replay: Option<PathBuf>,
    /// The first N days of a replay, or N generated days.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=400))]
    days: Option<u32>,
    /// People on a generated campus.
    #[arg(long, value_name = "N", default_value_t = 1_500, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    people: u32,
    /// How nodes decide beyond their spending rights: strict, hybrid or optimistic.
    #[arg(long, default_value = "hybrid")]
    mode: Mode,
    /// Seed of the generated days and of the moments of kills.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cuts a building's link (or `all`), or takes the `centre` down: BUILDING@FROM-TO. Repeatable.
    #[arg(long = "outage", value_name = "BUILDING@FROM-TO")]
    outages: Vec<Outage>,
    /// A generated day without its usual outage.
    #[arg(long, conflicts_with = "outages")]
    no_outage: bool,
    /// Kills a building's process (or the `centre`, or `all` buildings) among its taps and restarts it: BUILDING@TIME. Repeatable.
    #[arg(long = "kill", value_name = "BUILDING@TIME")]
    kills: Vec<Kill>,
    /// Reports a card lost at the centre: CARD@TIME. Repeatable.
    #[arg(long = "loss", value_name = "CARD@TIME")]
    losses: Vec<Loss>,
    /// Writes the report here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leaves receipts, exports and data directories in this directory, which must be empty or absent.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// No progress, only the table.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct RunArguments {
    /// The name of a built-in scenario, or a TOML file.
    scenario: String,
    /// Everything that chance decides; the scenario's own where it has one, otherwise 1.
    #[arg(long)]
    seed: Option<u64>,
    /// Plays the shells too, with their QUIC and TLS, packet by packet: slower, and nearer to the world.
    #[arg(long)]
    full_stack: bool,
    /// Plays taps.csv, accounts.csv and topups.csv (or .csv.gz) of this folder instead of the scenario's workload and campus; with
    /// the scenario `doors`, its doors.csv.
    #[arg(long, value_name = "DIR")]
    replay: Option<PathBuf>,
    /// The first N days of a replay.
    #[arg(long, value_name = "N", requires = "replay", value_parser = clap::value_parser!(u32).range(1..=400))]
    days: Option<u32>,
    /// Writes the outcome here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the outcome here as a page for people, which needs no network.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Writes every event here, in words.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Writes the plan here, as a scenario of fixed events.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct SweepArguments {
    /// The name of a built-in scenario, a TOML file, or `all` (without the large ones).
    scenario: String,
    /// Plays the shells too, with their QUIC and TLS, packet by packet: slower, and nearer to the world.
    #[arg(long)]
    full_stack: bool,
    /// The seeds, half-open.
    #[arg(long, value_name = "A..B", default_value = "0..100", value_parser = seeds)]
    seeds: std::ops::Range<u64>,
    /// Processes at the same time; one per core where absent.
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
    /// Writes what was found here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// No progress, only the table.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct TwiceArguments {
    /// The name of a built-in scenario, a TOML file, or `all` (without the large ones).
    scenario: String,
    /// Plays the shells too, with their QUIC and TLS, packet by packet: slower, and nearer to the world.
    #[arg(long)]
    full_stack: bool,
    /// One seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Several seeds, half-open.
    #[arg(long, value_name = "A..B", value_parser = seeds)]
    seeds: Option<std::ops::Range<u64>>,
}

#[derive(Debug, Args)]
struct ShrinkArguments {
    /// The name of a built-in scenario, or a TOML file.
    scenario: String,
    /// The seed that fails.
    #[arg(long)]
    seed: u64,
    /// Plays the shells too, with their QUIC and TLS, packet by packet: slower, and nearer to the world.
    #[arg(long)]
    full_stack: bool,
    /// Stops after so many seconds, with what is left then.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    at_most: u64,
    /// Where the scenario goes; printed where absent.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CanariesArguments {
    /// The seeds in which each must show, half-open.
    #[arg(long, value_name = "A..B", default_value = "0..200", value_parser = seeds)]
    seeds: std::ops::Range<u64>,
    /// Only these.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// In this scenario, instead of the one that shows each soonest.
    #[arg(long, value_name = "SCENARIO")]
    scenario: Option<String>,
    /// Processes at the same time; one per core where absent.
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
    /// Writes what was found here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ScenariosArguments {
    /// Prints the file of this one.
    name: Option<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

fn seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed
        .filter(|range: &std::ops::Range<u64>| !range.is_empty())
        .ok_or_else(|| format!("{text:?} is no range of seeds (expected e.g. 0..100)"))
}

#[derive(Debug, Args)]
struct VerifyArguments {
    /// What `campus --keep` left.
    directory: PathBuf,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct BenchArguments {
    /// Writes the figures here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measures only these figures, by their names in the JSON.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(bench::NAMES))]
    only: Vec<String>,
    /// On a small scale, to see that everything works: the figures mean little.
    #[arg(long)]
    quick: bool,
}

/// Runs the command line: 0 where every promise was kept, 1 where not, 2 for wrong usage, 130 when interrupted.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    let mut arguments = arguments.peekable();
    match arguments.peek().and_then(|first| first.to_str()) {
        Some(process::NODE) => {
            end_with_driver();
            feiqian_node::cli::main(child_arguments("feiqian-node", arguments))
        }
        Some(process::RECONCILE) => {
            end_with_driver();
            feiqian_reconcile::cli::main(child_arguments("feiqian-reconcile", arguments))
        }
        Some(frontier::WORKER) => {
            end_with_driver();
            frontier::work(arguments)
        }
        Some(sweep::WORKER) => work(arguments, sweep::work),
        #[cfg(feature = "canaries")]
        Some(canaries::WORKER) => work(arguments, canaries::work),
        _ => run(Arguments::parse_from(program.into_iter().chain(arguments))),
    }
}

/// A worker process of a command that has many.
fn work(arguments: impl Iterator<Item = OsString>, work: fn(&[String]) -> Result<()>) -> ExitCode {
    let arguments: Vec<String> =
        arguments.skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    match work(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("feiqian-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the binary itself would see: its name, then what follows the hidden subcommand.
fn child_arguments(
    name: &'static str,
    arguments: impl Iterator<Item = OsString>,
) -> impl Iterator<Item = OsString> {
    std::iter::once(OsString::from(name)).chain(arguments.skip(1))
}

/// Ends this process when the driver is gone, however that went: the driver holds the other end of standard input.
fn end_with_driver() {
    if std::env::var_os(process::END_WITH_STDIN).is_some() {
        std::thread::spawn(|| {
            let mut byte = [0];
            while matches!(std::io::stdin().read(&mut byte), Ok(1)) {}
            std::process::exit(1);
        });
    }
}

fn run(arguments: Arguments) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("feiqian-sim: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = execute(arguments.command) => Some(ended),
            () = interrupted() => None,
        }
    });
    // Dropping the runtime kills what still runs, and waits for it, before the process ends.
    drop(runtime);
    match ended {
        Some(Ok(true)) => ExitCode::SUCCESS,
        Some(Ok(false)) => ExitCode::FAILURE,
        Some(Err(error)) => {
            eprintln!("feiqian-sim: {error:#}");
            if error.is::<Usage>() || error.is::<ScenarioError>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
        None => {
            eprintln!("feiqian-sim: interrupted");
            ExitCode::from(130)
        }
    }
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => if interrupt.is_err() { std::future::pending().await },
        _ = terminate.recv() => {}
    }
}

async fn execute(command: Command) -> Result<bool> {
    match command {
        Command::Campus(arguments) => {
            let options = options(arguments);
            let report = campus::run(&options).await?;
            print!("{}", report.table());
            Ok(report.good())
        }
        Command::Run(arguments) => run_scenario(arguments).await,
        Command::Sweep(SweepArguments { scenario, full_stack, seeds, jobs, json, quiet }) => {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
            let sweep =
                sweep::sweep(SimMode::of(full_stack), &scenario, seeds, jobs.unwrap_or(cores), quiet).await?;
            print!("{}", sweep.table());
            write_json(json.as_deref(), &sweep)?;
            Ok(sweep.good())
        }
        Command::Twice(TwiceArguments { scenario, full_stack, seed, seeds }) => {
            let seeds = seeds.unwrap_or_else(|| seed.unwrap_or(1)..seed.unwrap_or(1) + 1);
            let pairs = twice::twice(SimMode::of(full_stack), &scenario, seeds).await?;
            for pair in &pairs {
                let verdict = if pair.differ { "DIFFER 不同" } else { "equal 相同" };
                let (scenario, seed, [first, second]) = (&pair.scenario, pair.seed, &pair.audits);
                println!("{scenario} seed {seed}: {verdict} {first} {second}");
            }
            Ok(pairs.iter().all(|pair| !pair.differ))
        }
        Command::Shrink(ShrinkArguments { scenario, seed, full_stack, at_most, output }) => {
            let scenario = Scenario::load(&scenario)?;
            let at_most = std::time::Duration::from_secs(at_most);
            let shrunk = tokio::task::spawn_blocking(move || {
                shrink::shrink(SimMode::of(full_stack), &scenario, seed, at_most)
            })
            .await??;
            let (faults, actions) = (shrunk.plan.faults.len(), shrunk.plan.actions.len());
            eprintln!(
                "{}: {faults} faults, {actions} actions, after {} tries",
                shrunk.promise.name(),
                shrunk.tries
            );
            let text = shrunk.plan.to_scenario().to_toml();
            match output {
                Some(file) => std::fs::write(&file, text).with_context(|| file.display().to_string())?,
                None => print!("{text}"),
            }
            Ok(true)
        }
        Command::Canaries(arguments) => find_canaries(arguments).await,
        Command::Scenarios(ScenariosArguments { name, json }) => list_scenarios(name.as_deref(), json),
        Command::Frontier(arguments) => {
            let frontier = frontier::run(&arguments).await?;
            print!("{}", frontier.table());
            Ok(frontier.holds())
        }
        Command::Phone(action) => phone::run(action).map(|()| true),
        Command::PurseCard(arguments) => card::cli::run(arguments).await.map(|()| true),
        Command::Bench(BenchArguments { json, only, quick }) => {
            let figures = bench::run(&bench::Options { json, only, quick }).await?;
            print!("{}", figures.table());
            Ok(true)
        }
        Command::Verify(arguments) => {
            let layout = Layout::open(&arguments.directory).map_err(|error| Usage(format!("{error:#}")))?;
            // The kept directory stays as it is.
            let exports = tempfile::tempdir()?;
            let findings = check::check(&layout, exports.path()).await?;
            if arguments.json {
                println!("{}", serde_json::to_string_pretty(&findings)?);
            } else {
                println!("converged 各方一致: {}", findings.converged);
                println!("lost, duplicated 丢失/重复: {}, {}", findings.lost, findings.duplicated);
                println!("difference 收支差额: {} fen", findings.difference_fen);
                findings.problems.iter().for_each(|problem| println!("PROBLEM 问题: {problem}"));
            }
            Ok(findings.good())
        }
    }
}

async fn run_scenario(arguments: RunArguments) -> Result<bool> {
    let RunArguments { scenario, seed, full_stack, replay, days, json, html, trace, plan: plan_file } =
        arguments;
    let mut scenario = Scenario::load(&scenario)?;
    if let Some(dir) = replay {
        scenario.workload = match scenario.workload {
            Workload::Doors { .. } => Workload::Doors { dir },
            _ => {
                scenario.faults.clear();
                Workload::Replay { dir, days }
            }
        };
    }
    let plan = Plan::draw(&scenario, seed.or(scenario.seed).unwrap_or(1))?;
    if let Some(file) = plan_file {
        std::fs::write(&file, plan.to_scenario().to_toml()).with_context(|| file.display().to_string())?;
    }
    let trace: Option<Box<dyn std::io::Write + Send>> = match trace {
        Some(file) => {
            let opened = std::fs::File::create(&file).with_context(|| file.display().to_string())?;
            Some(Box::new(std::io::BufWriter::new(opened)))
        }
        None => None,
    };
    let outcome = tokio::task::spawn_blocking(move || {
        let trace = trace.map(|trace| trace as Box<dyn std::io::Write>);
        sweep::play_plan(
            SimMode::of(full_stack),
            &plan,
            world::Options { trace, samples: true, ..world::Options::default() },
        )
    })
    .await?;
    print!("{}", sweep::describe(&outcome));
    let taps = &outcome.taps;
    println!("{} seed {}: {}", outcome.scenario, outcome.seed, scenario.title);
    println!("{}", scenario.title_zh);
    println!(
        "taps 刷卡: {} (approved 批准 {}, declined 拒绝 {}, unanswered 无应答 {})",
        taps.begun, taps.approved, taps.declined, taps.unanswered
    );
    println!("approved 批准金额: {} fen, stand-in 代授权 {} fen", taps.approved_fen, taps.stand_in_fen);
    let faults: Vec<_> = outcome.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!("faults 故障: {}", faults.join(", "));
    println!("entries 记录: {}", outcome.entries);
    println!(
        "simulated 模拟时间: {} ms in {} ms, {} ms of it for opening the campus 其中开园",
        outcome.sim_ms, outcome.wall_ms, outcome.setup_ms
    );
    println!("audit 审计摘要: {}, ledger 账目摘要: {}", outcome.audit, outcome.ledger);
    write_json(json.as_deref(), &outcome)?;
    if let Some(file) = html {
        let page = report::of_run(&outcome, &scenario.title, &scenario.title_zh)?;
        std::fs::write(&file, page).with_context(|| file.display().to_string())?;
    }
    Ok(outcome.good())
}

#[cfg(feature = "canaries")]
async fn find_canaries(arguments: CanariesArguments) -> Result<bool> {
    let CanariesArguments { seeds, only, scenario, jobs, json } = arguments;
    let known = canaries::names();
    if let Some(unknown) = only.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Usage(format!("there is no canary {unknown:?} ({})", known.join(", "))).into());
    }
    let jobs =
        jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get));
    let report = canaries::run(&canaries::Wanted { seeds, only, scenario, jobs }).await?;
    print!("{}", report.table());
    write_json(json.as_deref(), &report)?;
    Ok(report.good())
}

#[cfg(not(feature = "canaries"))]
async fn find_canaries(_: CanariesArguments) -> Result<bool> {
    let message = "this simulator has no planted bugs: cargo run --release -p feiqian-sim --features canaries -- canaries";
    Err(Usage(message.to_owned()).into())
}

fn list_scenarios(name: Option<&str>, json: bool) -> Result<bool> {
    if let Some(name) = name {
        let text = BUILT_IN.iter().find(|(built_in, _)| *built_in == name).map(|(_, text)| *text);
        let text = text.ok_or_else(|| Usage(format!("there is no scenario {name:?}")))?;
        print!("{text}");
        return Ok(true);
    }
    let mut all = Vec::new();
    for (name, _) in BUILT_IN {
        all.push(Scenario::load(name)?);
    }
    if json {
        let list: Vec<_> = all
            .iter()
            .map(|scenario| {
                serde_json::json!({ "name": scenario.name, "title": scenario.title, "title_zh": scenario.title_zh,
                    "large": scenario.large })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&list)?);
    } else {
        for scenario in &all {
            println!("{:20} {}\n{:20} {}", scenario.name, scenario.title, "", scenario.title_zh);
        }
    }
    Ok(true)
}

fn write_json(file: Option<&std::path::Path>, value: &impl serde::Serialize) -> Result<()> {
    match file {
        Some(file) => std::fs::write(file, serde_json::to_vec_pretty(value)?)
            .with_context(|| file.display().to_string()),
        None => Ok(()),
    }
}

fn options(arguments: CampusArguments) -> Options {
    let given = !arguments.outages.is_empty() || arguments.no_outage;
    Options {
        replay: arguments.replay,
        days: arguments.days,
        people: arguments.people,
        mode: arguments.mode,
        seed: arguments.seed,
        outages: given.then_some(arguments.outages),
        kills: arguments.kills,
        losses: arguments.losses,
        json: arguments.json,
        keep: arguments.keep,
        quiet: arguments.quiet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        let program = ["feiqian-sim", "campus"];
        match Arguments::try_parse_from(program.iter().chain(arguments))?.command {
            Command::Campus(arguments) => Ok(options(arguments)),
            other => unreachable!("campus was asked for, not {other:?}"),
        }
    }

    #[test]
    fn options_are_read_and_bad_ones_refused() {
        let given = parse(&["--mode", "strict", "--kill", "centre@2022-11-08T11:30", "--seed", "7"]).unwrap();
        assert_eq!((given.mode, given.kills.len(), given.seed), (Mode::Strict, 1, 7));
        assert!(given.outages.is_none());
        assert_eq!(parse(&["--no-outage"]).unwrap().outages, Some(Vec::new()));
        for bad in [
            ["--outage", "red@2022-11-08T13:00-2022-11-08T12:00"],
            ["--outage", "red@lunch"],
            ["--loss", "c1"],
            ["--mode", "generous"],
            ["--days", "0"],
        ] {
            assert_eq!(parse(&bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
        let help = <Arguments as clap::CommandFactory>::command().render_long_help().to_string();
        assert!(!help.contains("__node"), "{help}");
        assert_eq!(crate::campus::generate::first_day(), "2025-11-10");
    }
}
