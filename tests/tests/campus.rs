//! A campus of real processes: what the operator, the finance office and a student who lost a card would check.

#![allow(clippy::panic)] // What is missing from a report fails the test.

use std::collections::BTreeMap;
use std::path::Path;

use feiqian_tests::binaries::{replay_directory, run, run_ok};
use feiqian_tests::kept::{Kept, Row, find_below, number, rows};
use serde_json::Value;

/// The first two days of the generated campus.
const DAYS: [&str; 2] = ["2025-11-10", "2025-11-11"];

/// Runs a campus that must succeed; returns its report. What it keeps is in `directory/kept`.
fn campus(directory: &Path, arguments: &[&str]) -> Value {
    let report = directory.join("report.json");
    let kept = directory.join("kept");
    let mut all = vec!["campus", "--quiet", "--json", report.to_str().expect("UTF-8 path")];
    all.extend(["--keep", kept.to_str().expect("UTF-8 path")]);
    all.extend(arguments);
    run_ok("feiqian-sim", all);
    serde_json::from_slice(&std::fs::read(&report).expect("the report is there")).expect("the report is JSON")
}

fn count(report: &Value, pointer: &str) -> i64 {
    report.pointer(pointer).and_then(Value::as_i64).unwrap_or_else(|| panic!("{pointer} in {report}"))
}

/// What must hold of every campus, whatever happened to it.
fn assert_sound(report: &Value, kept: &Path) {
    assert_eq!(report["converged"], true, "{report}");
    assert_eq!(report["conservation"]["ok"], true, "{report}");
    assert_eq!(count(report, "/conservation/difference_fen"), 0);
    assert_eq!((count(report, "/lost"), count(report, "/duplicated")), (0, 0), "{report}");
    assert_eq!(count(report, "/pending"), 0);
    let declined: i64 =
        report["declined"].as_object().expect("a map").values().filter_map(Value::as_i64).sum();
    assert_eq!(count(report, "/taps"), count(report, "/approved") + declined);
    let nodes = report["nodes"].as_array().expect("a list");
    assert!(nodes.iter().all(|node| node["digest"] == report["digest"]), "{report}");

    // The same from the files alone, with nothing of the simulator's arithmetic.
    assert_eq!(Kept::new(kept).difference(&funds_in(kept)), 0);
    let cases = Kept::new(kept).cases();
    let opened: i64 =
        cases.iter().filter(|case| case["reason"] != "loss").map(|case| number(case, "opened_fen")).sum();
    assert_eq!(opened, count(report, "/overspend/fen"));
    let missing: i64 = Kept::new(kept).balances().values().map(|balance| -balance.min(&0)).sum();
    let open: i64 = cases
        .iter()
        .map(|case| number(case, "opened_fen") - number(case, "recovered_fen") - number(case, "refunded_fen"))
        .sum();
    assert_eq!(open, missing, "every fen that a balance lacks stands in one case");
}

/// Money in per card, from the input files that the run kept.
fn funds_in(kept: &Path) -> BTreeMap<String, i64> {
    let mut funds = BTreeMap::new();
    for account in rows(&kept.join("accounts.csv")) {
        let subsidy = if account.contains_key("subsidy_fen") { number(&account, "subsidy_fen") } else { 0 };
        *funds.entry(account["card"].clone()).or_default() += number(&account, "opening_fen") + subsidy;
    }
    for topup in rows(&kept.join("topups.csv")) {
        *funds.entry(topup["card"].clone()).or_default() += number(&topup, "amount_fen");
    }
    funds
}

fn clock(row: &Row) -> &str {
    &row["time"][11..16]
}

fn is_paid(row: &Row) -> bool {
    row["kind"] == "purchase" && row["outcome"] == "approved"
}

#[test]
fn a_day_with_an_outage_balances_and_a_flipped_fen_is_seen() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept = directory.path().join("kept");
    let report = campus(directory.path(), &["--people", "300", "--seed", "7"]);
    assert_sound(&report, &kept);
    assert!(count(&report, "/approved") > 300, "{report}");
    assert!(count(&report, "/access/granted") > 0, "{report}");
    let mut nodes = report["nodes"].as_array().expect("a list").iter();
    assert!(nodes.any(|node| count(node, "/offline_s") > 0), "{report}");

    let verify = || run("feiqian-sim", ["verify", kept.to_str().expect("UTF-8 path"), "--json"]);
    let verdict =
        |output: &std::process::Output| -> Value { serde_json::from_slice(&output.stdout).expect("JSON") };
    let before = verify();
    assert_eq!((before.status.code(), &verdict(&before)["converged"]), (Some(0), &Value::Bool(true)));

    // One fen, in one balance of one node, behind the software's back.
    let database = find_below(&kept, "node.db").expect("a node's database");
    let connection = rusqlite::Connection::open(database).expect("opens");
    let flip = "UPDATE wallets SET posted = posted + 1 WHERE account = (SELECT min(account) FROM wallets)";
    assert!(connection.execute(flip, []).expect("updates") >= 1);
    drop(connection);
    let after = verify();
    assert_eq!((after.status.code(), &verdict(&after)["converged"]), (Some(1), &Value::Bool(false)));
}

#[test]
fn optimistic_stand_in_overspends_and_credits_recover_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let report = campus(directory.path(), &["--mode", "optimistic"]);
    assert_sound(&report, &directory.path().join("kept"));
    assert!(count(&report, "/stand_in") > 0, "{report}");
    assert!(count(&report, "/overspend/cases") >= 1, "{report}");
    assert!(count(&report, "/overspend/recovered_fen") > 0, "{report}");
}

#[test]
fn strict_nodes_never_stand_in() {
    let directory = tempfile::tempdir().expect("a directory");
    let report = campus(directory.path(), &["--people", "300", "--mode", "strict"]);
    assert_sound(&report, &directory.path().join("kept"));
    assert_eq!((count(&report, "/stand_in"), count(&report, "/stand_in_fen")), (0, 0));
    assert_eq!(count(&report, "/overspend/fen"), 0);
}

#[test]
fn three_days_with_two_outages_each() {
    let directory = tempfile::tempdir().expect("a directory");
    let outages: Vec<String> = ["2025-11-10", "2025-11-11", "2025-11-12"]
        .iter()
        .flat_map(|day| {
            [format!("canteen-east@{day}T11:15-{day}T12:45"), format!("all@{day}T17:00-{day}T18:00")]
        })
        .collect();
    let mut arguments = vec!["--people", "400", "--days", "3", "--seed", "5"];
    for outage in &outages {
        arguments.extend(["--outage", outage]);
    }
    let report = campus(directory.path(), &arguments);
    assert_sound(&report, &directory.path().join("kept"));
}

#[test]
fn fifty_kills_in_ten_thousand_taps_lose_and_double_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let victims = ["canteen-north", "canteen-east", "canteen-south", "centre"];
    // Fifty moments spread over two lunches, in an order that the seed does not choose.
    let kills: Vec<String> = (0..50)
        .map(|kill| {
            let (hour, minute) = (11 + (kill * 37) % 110 / 60, (kill * 37) % 110 % 60);
            format!("{}@{}T{hour:02}:{minute:02}:{kill:02}", victims[kill % 4], DAYS[kill / 4 % 2])
        })
        .collect();
    let mut arguments = vec!["--people", "2600", "--days", "2", "--seed", "11"];
    for kill in &kills {
        arguments.extend(["--kill", kill]);
    }
    let report = campus(directory.path(), &arguments);
    assert_sound(&report, &directory.path().join("kept"));
    assert!(count(&report, "/taps") >= 10_000, "{report}");
}

#[test]
fn a_card_reported_lost_during_an_outage_stops_elsewhere_at_once_and_is_refunded() {
    let outage = format!("canteen-north@{day}T11:00-{day}T13:00", day = DAYS[0]);
    let common = ["--people", "300", "--seed", "3", "--outage", &outage];

    // Without a loss, to find somebody who pays at the cut canteen and again after the heal.
    let directory = tempfile::tempdir().expect("a directory");
    campus(directory.path(), &common);
    let receipts = Kept::new(directory.path().join("kept")).receipts();
    let paid_later =
        |card: &str| receipts.iter().any(|row| is_paid(row) && row["card"] == card && clock(row) > "13:05");
    let victim = receipts
        .iter()
        .filter(|row| {
            is_paid(row) && row["building"] == "canteen-north" && ("11:30".."13:00").contains(&clock(row))
        })
        .map(|row| row["card"].clone())
        .find(|card| paid_later(card))
        .expect("such a person");

    let directory = tempfile::tempdir().expect("a directory");
    let kept = directory.path().join("kept");
    let loss = format!("{victim}@{}T11:10", DAYS[0]);
    let report = campus(directory.path(), &[common.as_slice(), &["--loss", &loss]].concat());
    assert_sound(&report, &kept);
    let mut paid_while_cut = 0;
    for row in Kept::new(&kept).receipts().iter().filter(|row| row["card"] == victim && clock(row) >= "11:10")
    {
        if row["building"] == "canteen-north" && clock(row) < "13:00" {
            paid_while_cut += if is_paid(row) { number(row, "amount_fen") } else { 0 };
        } else {
            assert_eq!((row["outcome"].as_str(), row["reason"].as_str()), ("declined", "lost"), "{row:?}");
        }
    }
    assert!(paid_while_cut > 0, "the cut canteen could not know");
    let losses: Vec<Row> =
        Kept::new(&kept).cases().into_iter().filter(|case| case["reason"] == "loss").collect();
    assert!(losses.iter().all(|case| case["card"] == victim && case["bearer"] == "risk_fund"), "{losses:?}");
    assert_eq!(losses.iter().map(|case| number(case, "refunded_fen")).sum::<i64>(), paid_while_cut);
}

#[test]
fn without_an_outage_real_taps_are_decided_as_a_sequential_reading_decides_them() {
    let Some(replay) = replay_directory() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let report = campus(directory.path(), &["--replay", replay.to_str().expect("UTF-8 path")]);
    assert_sound(&report, &directory.path().join("kept"));
    let counts =
        ["/taps", "/approved", "/declined/insufficient", "/declined/pin_required", "/false_declines"];
    assert_eq!(counts.map(|pointer| count(&report, pointer)), [14_097, 13_548, 528, 21, 0], "{report}");
    assert_eq!(count(&report, "/amount_approved_fen"), 18_254_014, "{report}");
}

#[test]
fn real_taps_through_an_outage_a_kill_and_a_dead_centre() {
    let Some(replay) = replay_directory() else { return };
    for mode in ["hybrid", "strict"] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut arguments = vec!["--replay", replay.to_str().expect("UTF-8 path"), "--mode", mode];
        arguments.extend(["--outage", "canteen-red@2022-11-08T11:30-2022-11-08T13:00"]);
        arguments.extend(["--kill", "canteen-yellow@2022-11-09T12:00"]);
        arguments.extend(["--outage", "centre@2022-11-10T11:45-2022-11-10T12:30"]);
        let report = campus(directory.path(), &arguments);
        assert_sound(&report, &directory.path().join("kept"));
        assert_eq!(count(&report, "/taps"), 14_097);
        let stood_in = count(&report, "/stand_in");
        if mode == "strict" {
            assert_eq!((stood_in, count(&report, "/overspend/fen")), (0, 0), "{report}");
        } else {
            assert!(stood_in > 0, "{report}");
        }
    }
}

#[test]
fn what_cannot_be_run_is_refused_with_its_reason() {
    let cases: [(&[&str], &str); 4] = [
        (&["campus", "--outage", "canteen-9@2025-11-10T11:00-2025-11-10T12:00"], "canteen-9"),
        (&["campus", "--outage", "canteen-north@2025-11-10T12:00-2025-11-10T11:00"], "2025-11-10T12:00"),
        (&["campus", "--kill", "canteen-north@noon"], "noon"),
        (&["campus", "--replay", "/nonexistent"], "/nonexistent"),
    ];
    for (arguments, named) in cases {
        let output = run("feiqian-sim", arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(named), "{stderr}");
    }
}
