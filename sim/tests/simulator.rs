//! The simulator's commands, as a user runs them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use feiqian_sim::outcome::SimMode;
use feiqian_sim::scenario::Scenario;
use feiqian_sim::sweep;
use feiqian_sim::world::Options;

fn simulator(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(env!("CARGO_BIN_EXE_feiqian-sim")).args(arguments).output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(file: &Path) -> Result<serde_json::Value> {
    Ok(serde_json::from_slice(&std::fs::read(file)?)?)
}

/// A few seeds of every scenario: no promise is broken, and the figures are what the documentation says.
#[test]
fn a_sweep_keeps_every_promise_and_counts() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let file = temp.path().join("sweep.json");
    let name = file.to_str().context("a path")?;
    let swept = simulator(&["sweep", "all", "--seeds", "0..2", "--quiet", "--json", name])?;
    let found = json(&file)?;
    ensure!(found["violations"].as_array().is_some_and(Vec::is_empty), "{}", text(&swept.stdout));
    let scenarios = text(&simulator(&["scenarios", "--json"])?.stdout);
    let scenarios: serde_json::Value = serde_json::from_str(&scenarios)?;
    let small = scenarios.as_array().context("a list")?.iter().filter(|one| one["large"] == false).count();
    ensure!(small >= 12, "{small} scenarios");
    ensure!(found["seeds"] == 2 * small, "{found}");
    let struck: u64 =
        found["faults"].as_object().context("faults")?.values().filter_map(|n| n.as_u64()).sum();
    ensure!(struck >= 5 * 2 * small as u64, "{struck} faults");
    for figure in ["sim_seconds", "entries"] {
        ensure!(found[figure].as_u64() > Some(1_000), "{figure}: {found}");
    }
    ensure!(found["coverage"]["stand_in_used"].as_u64() > Some(0), "{found}");
    // So few seeds do not reach every rare path, and a sweep of all says so.
    let missed = found["missed"].as_array().context("missed")?.len();
    ensure!(swept.status.code() == Some(i32::from(missed > 0)), "{}", text(&swept.stdout));
    Ok(())
}

/// Seeds in which a promise was broken once, by what the simulator plays or by itself; the history says what it was.
const BROKEN_ONCE: [(&str, &[u64]); 8] = [
    ("altered-return", &[18, 88]),
    ("branch-restored", &[289, 1324]),
    ("clone-and-restore", &[627, 971, 1176]),
    ("closings", &[400, 534, 874, 1387, 1795]),
    ("islands", &[393, 407, 706]),
    ("phones", &[652, 722, 729]),
    ("phones-centre-restored", &[656, 1641, 1756]),
    ("purses-centre-restored", &[657]),
];

#[test]
fn what_broke_a_promise_once_keeps_it() -> Result<()> {
    for (scenario, seeds) in BROKEN_ONCE {
        for seed in seeds {
            let run = simulator(&["run", scenario, "--seed", &seed.to_string()])?;
            ensure!(run.status.success(), "{scenario} {seed}: {}", text(&run.stdout));
        }
    }
    Ok(())
}

/// The same seed gives the same events, frames, disk writes and results in another process.
#[test]
fn a_seed_played_twice_is_the_same() -> Result<()> {
    for scenario in ["power-cut-storm", "clone-and-restore"] {
        let twice = simulator(&["twice", scenario, "--seeds", "0..3"])?;
        ensure!(twice.status.success(), "{}", text(&twice.stdout));
        let audits = text(&twice.stdout);
        let audits: std::collections::BTreeSet<_> =
            audits.lines().filter_map(|line| line.split_whitespace().last()).collect();
        ensure!(audits.len() == 3, "other seeds are other runs: {audits:?}");
    }
    Ok(())
}

/// A run says how it went, and its plan, written as a scenario, runs the same.
#[test]
fn a_plan_written_down_plays_the_same() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let (plan, first, again) =
        (temp.path().join("plan.toml"), temp.path().join("first.json"), temp.path().join("again.json"));
    let [plan, first_name, again_name] =
        [&plan, &first, &again].map(|path| path.to_string_lossy().into_owned());
    let run = simulator(&["run", "islands", "--seed", "3", "--plan", &plan, "--json", &first_name])?;
    ensure!(run.status.success(), "{}", text(&run.stdout));
    let run = simulator(&["run", &plan, "--seed", "3", "--json", &again_name])?;
    ensure!(run.status.success(), "{}{}", text(&run.stdout), text(&run.stderr));
    let (first, again) = (json(&first)?, json(&again)?);
    ensure!(first["audit"] == again["audit"] && first["ledger"] == again["ledger"], "{first}\n{again}");
    ensure!(first["timeline"]["nodes"].as_array().is_some_and(|nodes| nodes.len() == 4), "{first}");
    Ok(())
}

#[test]
fn a_mistake_in_a_scenario_is_named_by_line_and_key() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let file = temp.path().join("mistake.toml");
    let sound = text(&simulator(&["scenarios", "islands"])?.stdout);
    std::fs::write(&file, sound.replacen("\"north-1\", \"north-2\"", "\"north-1\", \"north-3\"", 1))?;
    let run = simulator(&["run", file.to_str().context("a path")?])?;
    ensure!(run.status.code() == Some(2), "{:?}", run.status);
    let said = text(&run.stderr);
    ensure!(said.contains("buildings: there is no building \"north-3\""), "{said}");
    let line = sound.lines().position(|line| line.starts_with("buildings")).context("the line")? + 1;
    ensure!(said.contains(&format!("mistake.toml:{line}:")), "{said}");
    let run = simulator(&["sweep", "islands", "--seeds", "5..5"])?;
    ensure!(run.status.code() == Some(2), "{:?}", run.status);
    Ok(())
}

/// Shrinking says so where there is nothing to shrink.
#[test]
fn a_seed_that_keeps_its_promises_is_not_shrunk() -> Result<()> {
    let shrunk = simulator(&["shrink", "islands", "--seed", "3"])?;
    ensure!(!shrunk.status.success() && text(&shrunk.stderr).contains("breaks no promise"), "{shrunk:?}");
    Ok(())
}

/// Recorded door events, collected in the recorded rounds and in others: every decision is the permission, and the log at the
/// centre is the file.
#[test]
fn recorded_doors_are_decided_and_collected_as_recorded() -> Result<()> {
    let asked = simulator(&["run", "doors"])?;
    ensure!(asked.status.code() == Some(2) && text(&asked.stderr).contains("--replay"), "{asked:?}");
    let Some(dir) = std::env::var_os("FEIQIAN_REPLAY_DIR") else {
        eprintln!("skipped: FEIQIAN_REPLAY_DIR names no folder with recorded door events");
        return Ok(());
    };
    let temp = tempfile::tempdir()?;
    let file = temp.path().join("doors.json");
    let (dir, name) = (dir.to_str().context("a path")?, file.to_str().context("a path")?);
    let rows = feiqian_sim::campus::replay::Table::open(Path::new(dir), "doors").and_then(|mut table| {
        let (mut granted, mut rows) = (0_u64, 0_u64);
        while table.advance()? {
            rows += 1;
            granted += table.parse::<u64>("granted")?;
        }
        Ok((rows, granted))
    });
    let (rows, granted) = rows?;
    for seed in ["1", "2"] {
        let run = simulator(&["run", "doors", "--replay", dir, "--seed", seed, "--json", name])?;
        ensure!(run.status.success(), "{}", text(&run.stdout));
        let found = json(&file)?;
        ensure!(found["taps"]["begun"] == rows && found["taps"]["unanswered"] == 0, "{}", found["taps"]);
        // A handful of rows contradict any fixed permission.
        let approved = found["taps"]["approved"].as_u64().context("approved")?;
        ensure!(approved.abs_diff(granted) < rows / 500, "{approved} of {rows} pass, {granted} did");
        let behind = found["timeline"]["nodes"][0]["backlog"].as_array().context("a backlog")?;
        ensure!(behind.iter().any(|entries| entries.as_u64() > Some(50)), "nothing was collected late");
    }
    Ok(())
}

/// Every event, in words. (What is on the disks differs: a database that is looked at draws other salts for its log.)
#[test]
fn whoever_takes_samples_sees_what_happens_without() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for name in ["closings", "power-cut-storm"] {
        let scenario = Scenario::load(name)?;
        for seed in 1..4 {
            let events = |samples| -> Result<String> {
                let file = directory.path().join("events");
                let trace: Box<dyn Write> = Box::new(BufWriter::new(File::create(&file)?));
                let options = Options { samples, trace: Some(trace), ..Options::default() };
                sweep::play(SimMode::Message, &scenario, seed, options)?;
                Ok(std::fs::read_to_string(file)?)
            };
            let without = events(false)?;
            assert!(without.lines().count() > 500, "{name} {seed}");
            assert!(events(true)? == without, "{name} {seed}");
        }
    }
    Ok(())
}
