//! A building is closed, in order or by force, and comes back: its right comes home, what it spent counts, what nothing
//! covers becomes a case.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use feiqian_tests::kept::number;
use feiqian_tests::stand::{CENTRE, Plan, Stand, wait_for};
use rustix::process::{Signal, kill_process};

const CARD: &str = "card-1001";

fn two_buildings() -> Result<Stand> {
    Stand::start(Plan { buildings: vec!["canteen", "shop"], ..Plan::default() })
}

fn state(stand: &Stand, name: &str) -> Result<String> {
    Ok(stand.at_centre(name)?["state"].as_str().unwrap_or_default().to_owned())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn right(stand: &Stand, name: &str) -> Result<i64> {
    Ok(stand.at_centre(name)?["out_fen"].as_i64().unwrap_or_default())
}

#[test]
fn retire_is_documented_and_names_what_it_does_not_know() -> Result<()> {
    let help = feiqian_tests::binaries::run_ok(CENTRE, ["retire", "--help"]);
    ensure!(help.contains("--force") && help.contains("enrolled anew"), "{help}");
    let stand = Stand::centre_alone(Plan::default())?;
    let output = stand.centre.run(["retire", "nowhere"]);
    ensure!(output.status.code() == Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("no such node"), "{said}");
    Ok(())
}

/// The node is asked, ends its epoch, and all of its right comes home; the rest of the campus can spend it.
#[test]
fn an_orderly_closing_brings_all_right_home() -> Result<()> {
    let mut stand = two_buildings()?;
    let (canteen, shop) = (stand.till(0)?, stand.till(1)?);
    ensure!(canteen.tap("1", CARD, 1_000)?.approved_fen() == 1_000);
    canteen.hold("hold", CARD, 4_000)?;
    stand.settle()?;
    ensure!(right(&stand, "canteen")? > 0, "it holds right");
    stand.centre.run_ok(["retire", "canteen"]);
    wait_for("the closing", || Ok(state(&stand, "canteen")?.starts_with("closed")))?;
    ensure!(right(&stand, "canteen")? == 0);
    stand.settle()?;
    ensure!(stand.nodes[0].status()?["unspent_fen"] == 0);
    let told = canteen.tap("2", CARD, 100)?;
    ensure!(told.outcome() == "declined", "{told:?}");
    ensure!(!state(&stand, "canteen")?.contains("exposed"), "{}", state(&stand, "canteen")?);

    // It stays closed over starts of both.
    stand.settle()?;
    stand.centre.stop()?;
    stand.centre.start()?;
    stand.nodes[0].stop()?;
    stand.nodes[0].start()?;
    wait_for("both", || {
        Ok(stand.nodes[0].status()?["link"] == "up" && stand.nodes[1].status()?["link"] == "up")
    })?;
    let told = stand.till(0)?.tap("3", CARD, 100)?;
    ensure!(told.outcome() == "declined", "{told:?}");
    ensure!(state(&stand, "canteen")?.starts_with("closed"));
    shop.sell("all", CARD, 99_000)?;
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 0);
    ensure!(stand.cases()?.is_empty());
    stand.finish()
}

/// The building is out of reach and closed all the same. What it spent beyond what was known is on display, counts when it
/// comes, and is a case where nothing covers it any more.
#[test]
fn a_forced_closing_shows_its_exposure_and_takes_what_comes_later() -> Result<()> {
    let mut stand = two_buildings()?;
    let (canteen, shop) = (stand.till(0)?, stand.till(1)?);
    canteen.hold("hold", CARD, 4_000)?;
    canteen.hold("hold-other", "card-1002", 4_000)?;
    stand.settle()?;
    stand.centre.stop()?;
    for sequence in 0..3 {
        ensure!(canteen.tap(&sequence.to_string(), CARD, 1_000)?.approved_fen() == 1_000);
    }
    ensure!(canteen.tap("other", "card-1002", 700)?.approved_fen() == 700);
    let pid = stand.nodes[0].pid()?;
    kill_process(pid, Signal::STOP)?;
    stand.centre.start()?;
    wait_for("the shop", || Ok(stand.at_centre("shop")?["connected"] == true))?;
    let held = right(&stand, "canteen")?;
    ensure!(held > 3_700, "{held}");
    stand.centre.run_ok(["retire", "canteen", "--force"]);
    let shown = state(&stand, "canteen")?;
    let exposed = format!("{}.{:02} yuan exposed", held / 100, held % 100);
    ensure!(shown.starts_with("closed: retired") && shown.contains(&exposed), "{shown}, {held} held");
    ensure!(right(&stand, "canteen")? == 0);
    // Its right is free again, and spent elsewhere; of the other card, only a part.
    shop.sell("all", CARD, 100_000)?;
    shop.sell("part", "card-1002", 10_000)?;
    kill_process(pid, Signal::CONT)?;
    wait_for("what was spent there", || Ok(stand.balances()?[CARD] == -3_000))?;
    stand.settle()?;
    ensure!(!state(&stand, "canteen")?.contains("exposed"), "{}", state(&stand, "canteen")?);
    ensure!(stand.balances()?["card-1002"] == 100_000 - 10_000 - 700, "{:?}", stand.balances()?);
    let cases = stand.cases()?;
    ensure!(cases.iter().all(|case| case["card"] == CARD && case["reason"] == "after_close"), "{cases:?}");
    ensure!(cases.iter().map(|case| number(case, "opened_fen")).sum::<i64>() == 3_000, "{cases:?}");
    let told = canteen.tap("late", CARD, 1)?;
    ensure!(told.outcome() == "declined", "{told:?}");
    // Credit pays the case first.
    stand.centre.run_ok(["topup", "--card", CARD, "--fen", "5000", "--channel", "bank", "--key", "k1"]);
    stand.settle()?;
    let recovered: i64 = stand.cases()?.iter().map(|case| number(case, "recovered_fen")).sum();
    ensure!(recovered == 3_000 && stand.balances()?[CARD] == 2_000, "{recovered}");
    stand.finish()
}

/// A closed building comes back on a fresh data directory; the old one uploads what it had, and holds nothing.
#[test]
fn a_retired_building_comes_back_by_enrolling_anew() -> Result<()> {
    let mut stand = two_buildings()?;
    let till = stand.till(0)?;
    till.hold("hold", CARD, 1_000)?;
    stand.settle()?;
    // Spent and not told before it is closed.
    stand.centre.stop()?;
    ensure!(till.tap("untold", CARD, 500)?.approved_fen() == 500);
    stand.nodes[0].stop()?;
    stand.centre.start()?;
    stand.centre.run_ok(["retire", "canteen", "--force"]);

    let code = stand.code("canteen", "pos")?;
    let again = stand.join(&stand.nodes[0].data, &code);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(again.status.code() == Some(1) && said.contains("choose another directory"), "{said}");
    let fresh = stand.path("canteen-again");
    let joined = stand.join(&fresh, &code);
    ensure!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    let mut node = stand.service(&fresh)?;
    node.start()?;
    wait_for("a session", || Ok(node.status()?["link"] == "up"))?;
    stand.nodes.push(node);
    ensure!(state(&stand, "canteen")?.starts_with("open"), "{}", state(&stand, "canteen")?);
    // Terminals get new keys: the old ones are the old directory's.
    stand.till(2)?.sell("again", CARD, 250)?;

    // The old disk is found again: it may say what it has.
    stand.nodes[0].start()?;
    stand.nodes[0].wait_for_log("refuses this node")?;
    wait_for("what it had not told", || Ok(stand.balances()?[CARD] == 100_000 - 500 - 250))?;
    ensure!(stand.nodes[0].status()?["refused"] == "incarnation", "{}", stand.nodes[0].status()?);
    ensure!(stand.centre.log().contains("incarnation"), "{}", stand.centre.log());
    let told = stand.till(0)?.tap("2", CARD, 100)?;
    ensure!(told.outcome() == "declined" && told.reason() == "out_of_service", "{told:?}");
    stand.till(2)?.sell("undisturbed", CARD, 100)?;
    stand.nodes[0].stop()?;
    stand.finish()
}

/// A stolen controller: its session ends at once, nothing of it is taken from the network any more, and what its disk holds
/// comes in from a file.
#[test]
fn a_revoked_building_is_cut_off_and_its_log_comes_in_from_a_file() -> Result<()> {
    let mut stand = two_buildings()?;
    stand.till(0)?.hold("hold", CARD, 2_000)?;
    stand.settle()?;
    // What it sold and has not told; and a copy of its disk, which sold something else.
    stand.centre.stop()?;
    stand.nodes[0].stop()?;
    let data = stand.path("copy");
    ensure!(Command::new("cp").arg("-a").arg(&stand.nodes[0].data).arg(&data).status()?.success());
    stand.nodes[0].start()?;
    ensure!(stand.till(0)?.tap("untold", CARD, 500)?.approved_fen() == 500);
    let mut copy = stand.service(&data)?;
    copy.start()?;
    stand.nodes.push(copy);
    ensure!(stand.till(2)?.tap("copied", CARD, 300)?.approved_fen() == 300);
    stand.nodes[2].stop()?;
    stand.nodes[0].stop()?;
    stand.centre.start()?;

    let output = stand.centre.run(["revoke", "nowhere"]);
    ensure!(output.status.code() == Some(1) && said(&output).contains("no such node"), "{}", said(&output));
    let (log, copied) = (stand.path("canteen.export"), stand.path("copy.export"));
    stand.nodes[0].run_ok(["export".as_ref(), "log".as_ref(), "--output".as_ref(), log.as_os_str()]);
    stand.nodes[2].run_ok(["export".as_ref(), "log".as_ref(), "--output".as_ref(), copied.as_os_str()]);
    let import =
        |stand: &Stand, file: &Path| stand.centre.run(["import".as_ref(), "log".as_ref(), file.as_os_str()]);
    // As long as it is trusted it says by itself what it has.
    let output = import(&stand, &log);
    ensure!(output.status.code() == Some(1) && said(&output).contains("is not closed"), "{}", said(&output));

    let told = stand.centre.run_ok(["revoke", "canteen"]);
    ensure!(told.contains("revoked: canteen, enrolment 1"), "{told}");
    ensure!(state(&stand, "canteen")?.starts_with("closed: revoked"), "{}", state(&stand, "canteen")?);
    ensure!(right(&stand, "canteen")? == 0);
    stand.nodes[0].start()?;
    stand.nodes[0].wait_for_log("reason=\"revoked\"")?;
    stand.nodes[0].wait_for_log("the certificate of this node was revoked")?;
    wait_for("no right", || {
        let status = stand.nodes[0].status()?;
        Ok(status["unspent_fen"] == 0 && status["refused"] == "revoked")
    })?;
    let told = stand.till(0)?.tap("late", CARD, 1)?;
    ensure!(told.outcome() == "declined" && told.reason() == "out_of_service", "{told:?}");
    ensure!(stand.centre.log().contains("reason=\"revoked\""), "{}", stand.centre.log());
    ensure!(stand.balances()?[CARD] == 100_000, "nothing of it is taken from the network");

    // What is no log, or broken, or altered, is named; what is good comes in once.
    std::fs::write(stand.path("none.export"), "card,patron_class\n")?;
    let output = import(&stand, &stand.path("none.export"));
    ensure!(
        output.status.code() == Some(1) && said(&output).contains("is no log of a node"),
        "{}",
        said(&output)
    );
    let bytes = std::fs::read(&log)?;
    std::fs::write(stand.path("cut.export"), &bytes[..bytes.len() - 5])?;
    let output = import(&stand, &stand.path("cut.export"));
    ensure!(output.status.code() == Some(1) && said(&output).contains("breaks off"), "{}", said(&output));
    let mut forged = bytes.clone();
    let signature = forged.len() - 3;
    forged[signature] ^= 1;
    std::fs::write(stand.path("forged.export"), &forged)?;
    let output = import(&stand, &stand.path("forged.export"));
    ensure!(
        output.status.code() == Some(1) && said(&output).contains("not signed by its writer"),
        "{}",
        said(&output)
    );
    ensure!(stand.balances()?[CARD] >= 100_000 - 500, "{:?}", stand.balances()?);
    for new in [true, false] {
        let output = import(&stand, &log);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && told.contains("imported into node-1"), "{told} {}", said(&output));
        ensure!(new || told.starts_with("0 new"), "{told}");
        wait_for("what it sold", || Ok(stand.balances()?[CARD] == 100_000 - 500))?;
    }
    // The copy's history is another one: it is kept beside, and counts as well.
    for new in [true, false] {
        let output = import(&stand, &copied);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() && told.contains("a copy, a fork, or altered"),
            "{told} {}",
            said(&output)
        );
        ensure!(new || told.starts_with("0 new"), "{told}");
        wait_for("what the copy sold", || Ok(stand.balances()?[CARD] == 100_000 - 500 - 300))?;
    }
    ensure!(stand.cases()?.is_empty(), "there is money for it: {:?}", stand.cases()?);

    // It stays so over starts, and beside the building's new enrolment.
    stand.centre.stop()?;
    stand.centre.start()?;
    let fresh = stand.path("canteen-again");
    let again = stand.add_node("canteen", "pos", &fresh)?;
    stand.till(again)?.sell("again", CARD, 100)?;
    let shown = stand.centre.run_ok(["status"]);
    ensure!(shown.contains("revoked: canteen, enrolment 1 (node 1)"), "{shown}");
    stand.nodes[0].stop()?;
    let refusals = || stand.centre.log().matches("reason=\"revoked\"").count();
    let before = refusals();
    let mut old = stand.service(&stand.nodes[0].data)?;
    old.start()?;
    wait_for("a refusal", || Ok(refusals() > before))?;
    old.stop()?;

    // In the middle of a session it ends at once.
    stand.till(1)?.sell("undisturbed", CARD, 100)?;
    stand.settle()?;
    stand.centre.run_ok(["revoke", "shop"]);
    wait_for("the end of its session", || Ok(stand.nodes[1].status()?["refused"] == "revoked"))
        .with_context(|| stand.nodes[1].log())?;
    let told = stand.till(1)?.tap("late", CARD, 1)?;
    ensure!(told.outcome() == "declined" && told.reason() == "out_of_service", "{told:?}");
    ensure!(stand.at_centre("shop")?["connected"] == false);
    ensure!(stand.nodes[again].status()?["link"] == "up");
    stand.nodes[1].stop()?;
    stand.settle()?;
    stand.centre.stop()?;
    let report = stand.centre.verify()?;
    ensure!(report["ok"] == true, "{report}");
    stand.no_panic()
}
