//! False declines against overspend: the same taps under the same outages with every mode and with settings of the hybrid
//! policy, by the decisions of the shipping cores, the grants of the shipping centre, and the cases that it opens after the
//! heal.
//!
//! In reading order: [`college`] (what happens), [`instruments`] (by what people pay), [`rig`] (the cores), [`stage`] (how they stand when the outage begins),
//! [`play`] (the outage, and what an all-seeing authorizer would have said), [`mode`] (what is compared), [`run`] (one seed),
//! [`cell`] (sums, and what is printed); [`rules`] (the same without cores, to look for settings).

pub mod cell;
pub mod college;
pub mod ground;
pub mod instruments;
pub mod mode;
pub mod play;
pub mod rig;
pub mod rules;
pub mod run;
pub mod stage;

use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::{Args, FromArgMatches};
use feiqian_protocol::money::Fen;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::campus::Usage;
use cell::{Found, Frontier, Kind};
use ground::Ground;
use instruments::Instruments;
use mode::Contender;

/// The hidden subcommand of a worker process.
pub const WORKER: &str = "__frontier";

/// What is asked for.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Outages: isolation, largest_canteen, islands, centre_down, adversary, adversary_rich; lengths of 2.5, 24 and 72 \
    hours where none is given (isolation@24 for one of them). What the columns mean is in docs/policy.md."
)]
pub struct Arguments {
    /// Taps, accounts and top-ups of this folder instead of generated colleges.
    #[arg(long, value_name = "DIR")]
    replay: Option<PathBuf>,
    /// Seeds of generated colleges, half-open.
    #[arg(long, value_name = "A..B", default_value = "0..16", value_parser = seeds)]
    seeds: Range<u64>,
    /// Only outages of this kind, or of this kind and length. Repeatable.
    #[arg(long = "outage", value_name = "KIND[@HOURS]")]
    outages: Vec<Wanted>,
    /// Only the references and the default, without other settings.
    #[arg(long)]
    few: bool,
    /// One small college, few outages, the references and the default: to see that everything works.
    #[arg(long)]
    quick: bool,
    /// By what people pay: account; card (purses); mix (70 % purses, 25 % phones with vouchers, 5 % accounts). Beside the same taps
    /// by accounts alone, which F goes by.
    #[arg(long, value_name = "WHAT", default_value = "account")]
    instruments: Instruments,
    /// The rules by themselves, without cores: a second where the cores take a minute. Isolation only; to look for settings.
    #[arg(long, conflicts_with = "quick")]
    rules: bool,
    /// Worker processes; one per core where absent.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Writes the cells here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes them here as a page for people, which needs no network.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// No progress, only the tables.
    #[arg(long)]
    quiet: bool,
    /// A worker's seeds.
    #[arg(long = "seed", hide = true)]
    mine: Vec<u64>,
}

/// Outages of one kind: of one length, or of the usual ones.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wanted {
    kind: Kind,
    half_hours: Option<u32>,
}

impl FromStr for Wanted {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, hours) = match text.split_once('@') {
            Some((kind, hours)) => (kind, Some(hours)),
            None => (text, None),
        };
        let half_hours = hours.map(half_hours).transpose()?;
        Ok(Self { kind: kind.parse()?, half_hours })
    }
}

/// Half hours of `2.5`, `24`, …
fn half_hours(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is no length (hours from 0.5 to 72 in steps of 0.5)");
    let (whole, half) = match text.split_once('.') {
        Some((whole, "5")) => (whole, 1),
        Some((whole, "0")) => (whole, 0),
        Some(_) => return Err(wrong()),
        None => (text, 0),
    };
    let length = whole.parse::<u32>().map_err(|_| wrong())?.saturating_mul(2).saturating_add(half);
    if (1..=144).contains(&length) { Ok(length) } else { Err(wrong()) }
}

/// Parses `0..16`.
///
/// # Errors
/// What is wrong, for a person.
fn seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is no range of seeds (expected e.g. 0..16)");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let range = from.parse().map_err(|_| wrong())?..to.parse().map_err(|_| wrong())?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

/// What a worker runs.
pub struct Scope {
    replay: Option<PathBuf>,
    people: usize,
    outages: Vec<(Kind, u32)>,
    contenders: Vec<Contender>,
    says_bounds: bool,
    rules: bool,
    instruments: Instruments,
}

/// The usual lengths: lunch, a day, three days.
const USUAL: [u32; 3] = [5, 48, 144];

/// People of a quick run.
const QUICK_PEOPLE: usize = 1_000;

impl Arguments {
    fn scope(&self) -> Scope {
        let kinds: &[Kind] = match (self.quick, self.rules) {
            (true, _) => &[Kind::Isolation, Kind::LargestCanteen],
            (false, true) => &[Kind::Isolation],
            (false, false) => &Kind::ALL,
        };
        let all = kinds.iter().map(|kind| Wanted { kind: *kind, half_hours: None });
        let wanted: Vec<Wanted> = if self.outages.is_empty() { all.collect() } else { self.outages.clone() };
        let mut outages: Vec<(Kind, u32)> = Vec::new();
        for Wanted { kind, half_hours } in wanted {
            let usual: &[u32] = match kind {
                _ if self.quick => &USUAL[..2],
                Kind::Adversary | Kind::AdversaryRich => &USUAL[1..2],
                _ => &USUAL,
            };
            match half_hours {
                Some(length) => outages.push((kind, length)),
                None => outages.extend(usual.iter().map(|length| (kind, *length))),
            }
        }
        outages.sort_unstable();
        outages.dedup();
        let contenders: &[Contender] = if self.quick || self.few { &Contender::FEW } else { &Contender::ALL };
        Scope {
            replay: self.replay.clone(),
            people: if self.quick { QUICK_PEOPLE } else { college::PEOPLE },
            outages,
            contenders: contenders.to_vec(),
            says_bounds: !self.quiet && !self.rules,
            rules: self.rules,
            instruments: self.instruments,
        }
    }

    fn all_seeds(&self) -> Vec<u64> {
        match (&self.replay, self.quick) {
            // One recording is one run.
            (Some(_), _) => vec![0],
            (None, true) => vec![self.seeds.start],
            (None, false) => self.seeds.clone().collect(),
        }
    }

    /// The arguments with which a worker does these seeds.
    fn arguments(&self, seeds: &[u64]) -> Vec<String> {
        let mut arguments = vec![WORKER.to_owned()];
        for seed in seeds {
            arguments.extend(["--seed".to_owned(), seed.to_string()]);
        }
        arguments.extend(self.what());
        if self.quiet {
            arguments.push("--quiet".to_owned());
        }
        arguments
    }

    /// What to run to see it again.
    fn command(&self) -> String {
        let mut words = vec!["feiqian-sim frontier".to_owned()];
        if self.replay.is_none() {
            words.push(format!("--seeds {}..{}", self.seeds.start, self.seeds.end));
        }
        words.extend(self.what());
        words.join(" ")
    }

    /// The arguments that decide what is found, but for the seeds.
    fn what(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(dir) = &self.replay {
            arguments.extend(["--replay".to_owned(), dir.display().to_string()]);
        }
        for Wanted { kind, half_hours } in &self.outages {
            let length =
                half_hours.map(|length| format!("@{}{}", length / 2, [".0", ".5"][length as usize % 2]));
            arguments
                .extend(["--outage".to_owned(), format!("{}{}", kind.name(), length.unwrap_or_default())]);
        }
        if self.instruments != Instruments::Account {
            arguments.extend(["--instruments".to_owned(), self.instruments.name().to_owned()]);
        }
        for (flag, is_set) in [("--few", self.few), ("--quick", self.quick), ("--rules", self.rules)] {
            if is_set {
                arguments.push(flag.to_owned());
            }
        }
        arguments
    }
}

/// Runs all seeds in worker processes, and sums up.
///
/// # Errors
/// Where a worker fails.
pub async fn run(options: &Arguments) -> Result<Frontier> {
    let seeds = options.all_seeds();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = options.jobs.unwrap_or(cores).clamp(1, seeds.len().max(1));
    if let Some(dir) = &options.replay {
        // Before any process starts.
        crate::campus::replay::read(dir, None).map_err(|error| Usage(format!("{error:#}")))?;
    }
    for path in [&options.json, &options.html].into_iter().flatten() {
        // What took hours to compute is not to be lost for a wrong path.
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
        opened.map_err(|error| Usage(format!("{}: {error}", path.display())))?;
    }
    if options.rules && options.instruments != Instruments::Account {
        bail!(Usage("--rules knows accounts only: the other instruments need the cores".to_owned()));
    }
    if options.rules && options.outages.iter().any(|wanted| wanted.kind != Kind::Isolation) {
        bail!(Usage("--rules knows isolation only: the other outages need the cores".to_owned()));
    }
    let mut workers = JoinSet::new();
    for job in 0..jobs {
        let mine: Vec<u64> = seeds.iter().copied().skip(job).step_by(jobs).collect();
        workers.spawn(worker(options.arguments(&mine), options.quiet));
    }
    let mut found = Vec::new();
    while let Some(done) = workers.join_next().await {
        found.extend(done.context("a worker")??);
    }
    let frontier = Frontier::new(&found);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&frontier)?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &options.html {
        let page = crate::report::of_frontier(&frontier, &options.command())?;
        std::fs::write(path, page).with_context(|| path.display().to_string())?;
    }
    Ok(frontier)
}

async fn worker(arguments: Vec<String>, quiet: bool) -> Result<Vec<Found>> {
    let program = std::env::current_exe().context("this program's own path")?;
    let mut child = Command::new(program)
        .args(&arguments)
        // It ends when this process does.
        .stdin(Stdio::piped())
        .env(crate::campus::process::END_WITH_STDIN, "1")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting a worker")?;
    let output = child.stdout.take().context("a worker's output")?;
    let mut lines = BufReader::new(output).lines();
    let mut found = Vec::new();
    while let Some(line) = lines.next_line().await? {
        let one: Found = serde_json::from_str(&line).with_context(|| format!("a worker says {line:?}"))?;
        if !quiet {
            eprintln!("{}: {} yuan overspent", one.name(), Fen::new(one.overspend_fen));
        }
        found.push(one);
    }
    let status = child.wait().await?;
    if !status.success() {
        bail!("a worker ended with {status}");
    }
    Ok(found)
}

/// A worker process: its seeds one after another, what it finds as lines of JSON. SQLite's randomness is the process's, so
/// seeds that ran in one process would not repeat.
pub fn work(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let command = Arguments::augment_args(clap::Command::new(WORKER));
    let parsed = Arguments::from_arg_matches(&command.get_matches_from(arguments));
    let worked = parsed.map_err(anyhow::Error::from).and_then(|arguments| {
        let scope = arguments.scope();
        let ground = Ground::new(&scope)?;
        for seed in &arguments.mine {
            ground.run(*seed, &scope, &mut |found| {
                println!("{}", serde_json::to_string(&found)?);
                Ok(())
            })?;
        }
        Ok(())
    });
    match worked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("feiqian-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_seeds_are_read_and_bad_ones_refused() {
        assert_eq!("isolation@2.5".parse(), Ok(Wanted { kind: Kind::Isolation, half_hours: Some(5) }));
        assert_eq!("islands".parse(), Ok(Wanted { kind: Kind::Islands, half_hours: None }));
        for bad in ["isolation@", "isolation@0", "isolation@2.4", "isolation@80", "flood", "flood@2"] {
            assert!(bad.parse::<Wanted>().is_err(), "{bad:?}");
        }
        assert_eq!(seeds("3..5"), Ok(3..5));
        assert!(["5", "5..5", "a..b"].iter().all(|bad| seeds(bad).is_err()));
    }
}
