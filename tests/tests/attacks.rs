//! Altered files, copied disks and restored backups: detected, named in both logs, bounded, and no approved tap lost that
//! is still somewhere.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use feiqian_tests::kept::number;
use feiqian_tests::stand::{Plan, Service, Stand, wait_for};
use rusqlite::{Connection, params};

const CARD: &str = "card-1001";

fn state(stand: &Stand, name: &str) -> Result<String> {
    Ok(stand.at_centre(name)?["state"].as_str().unwrap_or_default().to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "{} cannot be copied", from.display());
    Ok(())
}

/// The number of a node's own log in its database, and where it ends.
fn own_log(node: &Service) -> Result<(Connection, i64, i64)> {
    let connection = Connection::open(node.data.join("node.db"))?;
    let number: i64 = connection.query_row("SELECT node FROM state", [], |row| row.get(0))?;
    let log = number << 32;
    let end = connection
        .query_row("SELECT max(position) FROM entries WHERE log = ?1", [log], |row| row.get(0))
        .context("an own log")?;
    Ok((connection, log, end))
}

/// What was approved of a node that was cut off is altered before it is uploaded.
#[test]
fn an_altered_log_is_named_and_refused() -> Result<()> {
    let buildings = ["changed", "dropped", "swapped", "doubled", "honest"];
    let mut stand = Stand::start(Plan { buildings: buildings.to_vec(), ..Plan::default() })?;
    let first = stand.till(0)?;
    ensure!(first.tap("before", CARD, 200)?.approved_fen() == 200);
    for node in 0..buildings.len() {
        stand.till(node)?.hold("hold", CARD, 1_000)?;
    }
    stand.settle()?;
    stand.centre.stop()?;
    for node in 0..buildings.len() {
        let till = stand.till(node)?;
        for sequence in 0..4 {
            let told = till.tap(&sequence.to_string(), CARD, 100)?;
            ensure!(told.approved_fen() == 100, "{told:?}");
        }
    }
    for (node, how) in buildings.iter().enumerate().take(4) {
        stand.nodes[node].stop()?;
        ensure!(stand.nodes[node].verify()?["ok"] == true);
        let (db, log, end) = own_log(&stand.nodes[node])?;
        let at = end - 1;
        match *how {
            "changed" => {
                // One bit of an amount, in the middle of what is not uploaded.
                let sql = "SELECT record FROM entries WHERE log = ?1 AND position = ?2";
                let mut record: Vec<u8> = db.query_row(sql, [log, at], |row| row.get(0))?;
                let last = record.last_mut().context("a record has bytes")?;
                *last ^= 1;
                db.execute(
                    "UPDATE entries SET record = ?3 WHERE log = ?1 AND position = ?2",
                    params![log, at, record],
                )?;
            }
            "dropped" => {
                db.execute("DELETE FROM entries WHERE log = ?1 AND position = ?2", [log, at])?;
            }
            "swapped" => {
                for (from, to) in [(at, -1), (end, at), (-1, end)] {
                    let sql = "UPDATE entries SET position = ?3 WHERE log = ?1 AND position = ?2";
                    db.execute(sql, [log, from, to])?;
                }
            }
            _ => {
                let sql = "UPDATE entries SET record = (SELECT record FROM entries WHERE log = ?1 AND position = ?2) \
                           WHERE log = ?1 AND position = ?3";
                db.execute(sql, [log, at, end])?;
            }
        }
        drop(db);
        let report = stand.nodes[node].verify()?;
        let problems = report["problems"].to_string();
        ensure!(report["ok"] == false, "{how}: {report}");
        ensure!(problems.contains(&format!("node-{}", node + 1)), "{how}: {problems}");
        ensure!(
            problems.contains(&at.to_string()) || problems.contains(&end.to_string()),
            "{how}: {problems}"
        );
    }
    stand.centre.start()?;
    for (node, how) in buildings.iter().enumerate().take(4) {
        stand.nodes[node].start().with_context(|| format!("{how}: {}", stand.nodes[node].log()))?;
        stand.nodes[node].wait_for_log("the centre refuses this node")?;
        wait_for("a refusal", || Ok(state(&stand, how)?.starts_with("refused")))?;
        ensure!(state(&stand, how)?.contains("forked_log"), "{how}: {}", state(&stand, how)?);
        ensure!(
            stand.nodes[node].log().contains("reason=\"forked_log\""),
            "{how}: {}",
            stand.nodes[node].log()
        );
        wait_for("no right", || Ok(stand.nodes[node].status()?["unspent_fen"] == 0))
            .with_context(|| format!("{how}: {}", stand.nodes[node].log()))?;
        let told = stand.till(node)?.tap("after", CARD, 1)?;
        ensure!(told.outcome() == "declined" && told.reason() == "out_of_service", "{how}: {told:?}");
    }
    let centre = stand.centre.log();
    ensure!(centre.matches("session refused").count() >= 4 && centre.contains("forked_log"), "{centre}");
    // Nobody else is disturbed.
    let honest = stand.till(4)?;
    wait_for("the honest one", || Ok(stand.nodes[4].status()?["link"] == "up"))?;
    honest.sell("after", CARD, 1_000)?;
    wait_for("its log", || {
        let status = stand.nodes[4].status()?;
        Ok(status["acked"] == status["position"])
    })?;
    ensure!(stand.nodes[4].verify()?["ok"] == true);
    // Of four taps each: an altered record costs itself, two that changed places cost both, and all else that was signed
    // counts, before and behind it.
    let expected = 200 + (3 + 3 + 2 + 3) * 100 + (400 + 1_000);
    wait_for("all that was signed", || Ok(stand.balances()?[CARD] == 100_000 - expected))
        .with_context(|| format!("{:?} of {expected} spent", stand.balances()))?;
    let lost = stand.centre.log().matches("are not what their head was signed over").count();
    ensure!(lost == 5, "{lost} losses are named: {}", stand.centre.log());
    // What the centre took is acknowledged, so they need not say it again.
    for node in 0..4 {
        wait_for("its acknowledgement", || {
            let status = stand.nodes[node].status()?;
            Ok(status["acked"] == status["position"])
        })?;
    }
    for node in &mut stand.nodes {
        node.stop()?;
    }
    stand.centre.stop()?;
    let report = stand.centre.verify()?;
    ensure!(report["ok"] == true, "{report}");
    stand.no_panic()
}

/// What is uploaded already cannot be changed behind the centre's back: `verify` names it at the building.
#[test]
fn an_alteration_of_what_is_uploaded_is_named() -> Result<()> {
    let mut stand = Stand::start(Plan::default())?;
    let till = stand.till(0)?;
    for sequence in 0..4 {
        ensure!(till.tap(&sequence.to_string(), CARD, 100)?.approved_fen() == 100);
    }
    stand.settle()?;
    stand.nodes[0].stop()?;
    let (db, log, end) = own_log(&stand.nodes[0])?;
    db.execute("DELETE FROM entries WHERE log = ?1 AND position = ?2", [log, end - 2])?;
    // And a balance is made up.
    for table in ["wallets", "recent"] {
        db.execute(&format!("UPDATE {table} SET unspent = unspent + 100000"), [])?;
    }
    drop(db);
    let report = stand.nodes[0].verify()?;
    let problems = report["problems"].to_string();
    ensure!(
        report["ok"] == false && problems.contains(&format!("entry {} is missing", end - 2)),
        "{problems}"
    );
    // Spending a right that was made up is found at ingest: it is the node's fault and a case, not the holder's right.
    stand.nodes[0].start()?;
    wait_for("a session", || Ok(stand.nodes[0].status()?["link"] == "up"))?;
    let told = stand.till(0)?.tap("more", CARD, 150_000)?;
    ensure!(told.approved_fen() == 150_000, "{told:?}");
    wait_for("the case", || Ok(!stand.cases()?.is_empty()))?;
    let cases = stand.cases()?;
    ensure!(cases.iter().all(|case| case["reason"] == "node_fault" && case["card"] == CARD), "{cases:?}");
    ensure!(
        cases.iter().map(|case| number(case, "opened_fen")).sum::<i64>() == 150_400 - 100_000,
        "{cases:?}"
    );
    ensure!(stand.balances()?[CARD] == 100_000 - 150_400);
    ensure!(stand.centre.log().contains("beyond its right"), "{}", stand.centre.log());
    stand.no_panic()
}

/// A data directory is copied and both run: whoever comes second is found; what both approved counts; rights come only by
/// enrolling anew; the rest of the campus goes on.
#[test]
fn a_cloned_data_directory_is_refused_and_what_it_sold_counts() -> Result<()> {
    let mut stand = Stand::start(Plan { buildings: vec!["canteen", "shop"], ..Plan::default() })?;
    ensure!(stand.till(0)?.tap("0", CARD, 100)?.approved_fen() == 100);
    stand.settle()?;
    stand.till(0)?.hold("hold", CARD, 1_000)?;
    stand.settle()?;
    let held = stand.at_centre("canteen")?["out_fen"].as_i64().context("a figure")?;
    stand.centre.stop()?;
    stand.nodes[0].stop()?;
    let data = stand.path("clone");
    copy(&stand.nodes[0].data, &data)?;
    let mut clone = stand.service(&data)?;
    stand.nodes[0].start()?;
    clone.start()?;
    stand.nodes.push(clone);
    ensure!(stand.till(0)?.tap("original", CARD, 300)?.approved_fen() == 300);
    ensure!(stand.till(2)?.tap("clone", CARD, 500)?.approved_fen() == 500);
    ensure!(held >= 800, "both had right: {held}");
    stand.centre.start()?;
    // One of the two was first; in the end the building is shut out, whichever it was.
    wait_for("a refusal", || Ok(state(&stand, "canteen")?.starts_with("refused")))?;
    wait_for("both sales", || Ok(stand.balances()?[CARD] == 100_000 - 100 - 300 - 500))
        .with_context(|| format!("{:?}", stand.balances()))?;
    for node in [0, 2] {
        stand.nodes[node].wait_for_log("the centre refuses this node")?;
        wait_for("no right", || Ok(stand.nodes[node].status()?["unspent_fen"] == 0))?;
        let told = stand.till(node)?.tap("after", CARD, 1)?;
        ensure!(told.outcome() == "declined" && told.reason() == "out_of_service", "{told:?}");
    }
    ensure!(stand.centre.log().contains("session refused"), "{}", stand.centre.log());
    let shop = stand.till(1)?;
    shop.sell("all", CARD, 99_100)?;
    wait_for("its sale", || Ok(stand.balances()?[CARD] == 0))?;
    ensure!(stand.cases()?.is_empty(), "the money was there: {:?}", stand.cases()?);

    // The building is enrolled anew, on an empty disk.
    let fresh = stand.path("canteen-again");
    let again = stand.add_node("canteen", "pos", &fresh)?;
    stand.till(again)?.sell("again", "card-1002", 100)?;
    for node in [2, 0] {
        stand.nodes[node].stop()?;
    }
    stand.settle()?;
    let report = stand.centre.verify()?;
    ensure!(report["ok"] == true, "{report}");
    stand.no_panic()
}

/// A copy that has written nothing is found as well: a session moves what is acknowledged.
#[test]
fn a_clone_with_an_equal_head_is_refused() -> Result<()> {
    let mut stand = Stand::start(Plan { buildings: vec!["canteen", "shop"], ..Plan::default() })?;
    ensure!(stand.till(0)?.tap("0", CARD, 100)?.approved_fen() == 100);
    stand.settle()?;
    stand.nodes[0].stop()?;
    let data = stand.path("clone");
    copy(&stand.nodes[0].data, &data)?;
    stand.nodes[0].start()?;
    wait_for("the original", || Ok(stand.nodes[0].status()?["link"] == "up"))?;
    stand.settle()?;
    let mut clone = stand.service(&data)?;
    clone.start()?;
    wait_for("a refusal", || Ok(clone.status()?["link"] == "refused"))?;
    ensure!(clone.status()?["unspent_fen"] == 0);
    ensure!(clone.log().contains("the centre refuses this node"), "{}", clone.log());
    wait_for("a refusal", || Ok(state(&stand, "canteen")?.starts_with("refused")))?;
    stand.till(1)?.sell("undisturbed", CARD, 100)?;
    clone.stop()?;
    wait_for("the word of it", || Ok(stand.nodes[0].status()?["link"] == "refused"))?;
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 100_000 - 200);
    stand.finish()
}

/// A backup of yesterday: its tail comes back to it, so that no answer is forgotten, and its rights do not.
#[test]
fn a_restored_backup_gets_its_tail_back_and_no_rights() -> Result<()> {
    let mut stand = Stand::start(Plan { buildings: vec!["canteen", "shop"], ..Plan::default() })?;
    ensure!(stand.till(0)?.tap("old", CARD, 100)?.approved_fen() == 100);
    stand.settle()?;
    stand.nodes[0].stop()?;
    let backup = stand.path("backup");
    copy(&stand.nodes[0].data, &backup)?;
    stand.nodes[0].start()?;
    for sequence in 0..5 {
        ensure!(stand.till(0)?.tap(&format!("new-{sequence}"), CARD, 100)?.approved_fen() == 100);
    }
    stand.settle()?;
    let end = stand.nodes[0].status()?["position"].as_u64().context("a position")?;
    stand.nodes[0].stop()?;
    std::fs::remove_dir_all(&stand.nodes[0].data)?;
    copy(&backup, &stand.nodes[0].data.clone())?;
    stand.nodes[0].start()?;
    wait_for("a refusal", || Ok(stand.nodes[0].status()?["link"] == "refused"))?;
    wait_for("its tail", || Ok(stand.nodes[0].status()?["position"].as_u64() > Some(end - 1)))
        .with_context(|| stand.nodes[0].log())?;
    ensure!(stand.nodes[0].status()?["unspent_fen"] == 0);
    ensure!(state(&stand, "canteen")?.contains("short_log"), "{}", state(&stand, "canteen")?);
    ensure!(stand.nodes[0].log().contains("short_log") && stand.centre.log().contains("short_log"));
    // A terminal that asks again gets its first answer, and is not charged again; nothing new is sold.
    let till = stand.till(0)?;
    let told = till.tap("new-3", CARD, 100)?;
    ensure!(told.approved_fen() == 100 && told.body["repeat"] == true, "{told:?}");
    let told = till.tap("newer", CARD, 100)?;
    ensure!(told.outcome() == "declined" && told.reason() == "out_of_service", "{told:?}");
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 100_000 - 600, "{:?}", stand.balances()?);
    // It stays so after another start, until it is enrolled anew.
    stand.nodes[0].stop()?;
    stand.nodes[0].start()?;
    wait_for("a refusal", || Ok(stand.nodes[0].status()?["link"] == "refused"))?;
    let fresh = stand.path("canteen-again");
    let again = stand.add_node("canteen", "pos", &fresh)?;
    stand.till(again)?.sell("again", CARD, 100)?;
    stand.nodes[0].stop()?;
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 100_000 - 700);
    let report = stand.centre.verify()?;
    ensure!(report["ok"] == true, "{report}");
    for node in [0, again] {
        let report = stand.nodes[node].verify()?;
        ensure!(report["ok"] == true, "{report}");
    }
    stand.no_panic()
}

/// Records beyond the last signed head, or less than it, are nothing that the program left: the building names the damage,
/// declines, and still uploads what it holds.
#[test]
fn a_log_that_does_not_end_at_its_head_is_only_uploaded() -> Result<()> {
    let buildings = ["longer", "shorter", "stream", "honest"];
    let mut stand = Stand::start(Plan { buildings: buildings.to_vec(), ..Plan::default() })?;
    for node in 0..4 {
        stand.till(node)?.hold("hold", CARD, 1_000)?;
    }
    stand.settle()?;
    stand.centre.stop()?;
    for (node, how) in buildings.iter().enumerate().take(3) {
        ensure!(stand.till(node)?.tap("untold", CARD, 100)?.approved_fen() == 100, "{how}");
        stand.nodes[node].stop()?;
        let (db, log, end) = own_log(&stand.nodes[node])?;
        let copy_last = |log: i64, end: i64| -> Result<()> {
            let sql = "INSERT INTO entries SELECT log, position + 1, record FROM entries WHERE log = ?1 AND position = ?2";
            ensure!(db.execute(sql, [log, end])? == 1);
            Ok(())
        };
        match *how {
            "longer" => copy_last(log, end)?,
            "shorter" => {
                db.execute("DELETE FROM entries WHERE log = ?1 AND position = ?2", [log, end])?;
            }
            _ => {
                let sql = "SELECT log, max(position) FROM heads WHERE log <> ?1 GROUP BY log ORDER BY 2 DESC LIMIT 1";
                let (stream, end) = db.query_row(sql, [log], |row| Ok((row.get(0)?, row.get(1)?)))?;
                copy_last(stream, end)?;
            }
        }
    }
    stand.centre.start()?;
    for (node, how) in buildings.iter().enumerate().take(3) {
        stand.nodes[node].start()?;
        let damage = stand.nodes[node].status()?["damage"].as_str().unwrap_or_default().to_owned();
        let named = if *how == "shorter" { "the entries end at" } else { "are under no signed head" };
        ensure!(damage.contains(named), "{how}: {damage}");
        let log = stand.nodes[node].log();
        ensure!(log.contains(&damage) && log.contains("enrol this building anew"), "{how}: {log}");
        let told = stand.till(node)?.tap("more", CARD, 100)?;
        ensure!(told.outcome() == "declined" && told.reason() == "out_of_service", "{how}: {told:?}");
        let told = stand.till(node)?.tap("untold", CARD, 100)?;
        ensure!(told.approved_fen() == 100 && told.body["repeat"] == true, "{how}: {told:?}");
    }
    // Of the log that was cut off the tap is lost here, and with it the session.
    let expected = 100_000 - 200;
    wait_for("what they had sold", || Ok(stand.balances()?[CARD] == expected))
        .with_context(|| format!("{:?}", stand.balances()))?;
    for node in [0, 2] {
        wait_for("its acknowledgement", || {
            let status = stand.nodes[node].status()?;
            Ok(status["acked"] == status["position"])
        })?;
    }
    for (node, how) in buildings.iter().enumerate().take(3) {
        let log = stand.nodes[node].log();
        ensure!(!log.contains("a step failed"), "{how}: it goes round in circles: {log}");
        stand.nodes[node].stop()?;
        ensure!(stand.nodes[node].verify()?["ok"] == false, "{how}");
    }
    stand.till(3)?.sell("undisturbed", CARD, 1_000)?;
    // One is enrolled anew, and sells again.
    let fresh = stand.path("longer-again");
    let again = stand.add_node("longer", "pos", &fresh)?;
    stand.till(again)?.sell("again", CARD, 100)?;
    wait_for("its sale", || Ok(stand.balances()?[CARD] == expected - 1_100))?;
    stand.centre.stop()?;
    let report = stand.centre.verify()?;
    ensure!(report["ok"] == true, "{report}");
    stand.no_panic()
}
