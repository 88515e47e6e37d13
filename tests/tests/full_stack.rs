//! The simulator's full-stack mode: a seed is the same twice, and a scenario ends in the same ledger in both modes.

use std::path::Path;

use feiqian_tests::binaries::run_ok;
use serde_json::Value;

/// A partition, a restart and a crash, none of them near a tap by milliseconds: what is decided does not depend on packets.
const SCENARIO: &str = r#"
title = "One of each, at leisure"
title_zh = "各来一次，从容不迫"
start = "2025-11-10T11:20"
length = "3min"
heal = "40s"
idle_timeout = "5s"

[[building]]
name = "canteen"
count = 2
terminals = 2

[[building]]
name = "shop"
role = "kiosk"
terminals = 1

[[account]]
count = 6
opening = ["20.00", "80.00"]
favourite = 60

[workload]
taps = 60
amount = ["1.00", "9.00"]
burst = 1
reversals = 6
strangers = 3
pins = 6
top_ups = 3
losses = 1

[[fault]]
kind = "partition"
buildings = ["canteen-1"]
at = "40s"
for = "1min"

[[fault]]
kind = "restart"
host = "centre"
at = "130s"
for = "5s"

[[fault]]
kind = "crash"
host = "shop"
at = "150s"
for = "3s"
"#;

/// Seeds that are tried in both modes.
const SEEDS: std::ops::Range<u64> = 0..3;

fn outcome(dir: &Path, scenario: &str, seed: u64, full_stack: bool) -> Value {
    let (file, seed) = (dir.join("outcome.json"), seed.to_string());
    let mut arguments =
        vec!["run", scenario, "--seed", &seed, "--json", file.to_str().expect("a path of letters")];
    arguments.extend(full_stack.then_some("--full-stack"));
    run_ok("feiqian-sim", arguments);
    let outcome = std::fs::read(file).expect("the run wrote its outcome");
    serde_json::from_slice(&outcome).expect("an outcome is JSON")
}

#[test]
fn both_modes_end_in_the_same_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("leisure.toml");
    std::fs::write(&scenario, SCENARIO).unwrap();
    for seed in SEEDS {
        let [message, full] =
            [false, true].map(|full| outcome(dir.path(), scenario.to_str().unwrap(), seed, full));
        assert_eq!(message["faults"], full["faults"]);
        assert!(full["taps"]["approved"].as_u64() > Some(20), "{}", full["taps"]);
        assert_eq!(message["taps"]["approved"], full["taps"]["approved"], "seed {seed}");
        assert_eq!(message["ledger"], full["ledger"], "seed {seed}");
        assert_ne!(message["audit"], full["audit"]);
    }
}

#[test]
fn a_seed_is_the_same_twice_down_to_packets_and_disk_writes() {
    for scenario in ["power-cut-storm", "flapping-link"] {
        run_ok("feiqian-sim", ["twice", scenario, "--seeds", "0..2", "--full-stack"]);
    }
}
