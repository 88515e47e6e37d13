//! What people change about accounts and cards, in buildings that are cut off and at the centre: it acts where it is made,
//! reaches everybody, and merges to the safe side.

use anyhow::{Result, ensure};
use feiqian_tests::kept::number;
use feiqian_tests::stand::{Plan, Stand, Told, wait_for};
use serde_json::{Value, json};

const CARD: &str = "card-1001";
const OTHER: &str = "card-1002";

const CANTEEN: usize = 0;
const KIOSK: usize = 1;
const DESK: usize = 2;

fn campus() -> Result<Stand> {
    let plan = Plan { buildings: vec!["canteen", "kiosk", "desk"], ..Plan::default() };
    let mut stand = Stand::centre_alone(plan)?;
    for (name, role) in [("canteen", "pos"), ("kiosk", "kiosk"), ("desk", "desk")] {
        let data = stand.path(name);
        stand.add_node(name, role, &data)?;
    }
    stand.settle()?;
    Ok(stand)
}

fn set(stand: &Stand, node: usize, body: Value) -> Result<Told> {
    let told = stand.till(node)?.ask("/v1/settings", body.to_string().as_bytes())?;
    ensure!(told.authentic, "{told:?}");
    Ok(told)
}

fn reason(stand: &Stand, node: usize, sequence: &str, card: &str, fen: i64) -> Result<String> {
    Ok(stand.till(node)?.tap(sequence, card, fen)?.reason().to_owned())
}

fn in_session(stand: &Stand) -> Result<()> {
    wait_for("everybody in session", || {
        let up =
            |node: &feiqian_tests::stand::Service| Ok::<_, anyhow::Error>(node.status()?["link"] == "up");
        Ok(up(&stand.nodes[0])? && up(&stand.nodes[1])? && up(&stand.nodes[2])?)
    })
}

fn shown(stand: &Stand, what: &[&str]) -> Result<Value> {
    let mut arguments = what.to_vec();
    arguments.push("--json");
    Ok(serde_json::from_str(&stand.centre.run_ok(arguments))?)
}

/// The worst moments: the kiosk is cut off when the loss is reported, and loses its power right after it has said that it
/// acts; another building that has not heard sells; and the centre learns of it last.
#[test]
fn a_loss_at_a_cut_off_kiosk_acts_there_and_costs_the_holder_nothing_elsewhere() -> Result<()> {
    let mut stand = campus()?;
    stand.till(CANTEEN)?.sell("before", CARD, 1_000)?;
    stand.till(CANTEEN)?.hold("hold", CARD, 4_000)?;
    stand.till(CANTEEN)?.hold("hold-other", OTHER, 4_000)?;
    stand.settle()?;
    stand.centre.stop()?;

    let told = set(&stand, KIOSK, json!({"card": CARD, "change": "report_loss"}))?;
    ensure!(told.status == 200 && told.outcome() == "done" && told.body["was_so"] == false, "{told:?}");
    stand.nodes[KIOSK].kill()?;
    stand.nodes[KIOSK].start()?;
    ensure!(reason(&stand, KIOSK, "1", CARD, 100)? == "lost");
    let again = set(&stand, KIOSK, json!({"card": CARD, "change": "report_loss"}))?;
    ensure!(again.status == 200, "{again:?}");
    ensure!(stand.nodes[KIOSK].status()?["settings_waiting"] == 2, "the first one may be lifted by now");
    stand.nodes[DESK].run_ok(["set", "void", OTHER, "--operator", "li.lei"]);
    ensure!(reason(&stand, DESK, "1", OTHER, 100)? == "void");
    std::thread::sleep(std::time::Duration::from_millis(20));
    stand.till(CANTEEN)?.sell("thief", CARD, 700)?;
    stand.till(CANTEEN)?.sell("other", OTHER, 300)?;
    let refused = set(&stand, CANTEEN, json!({"card": CARD, "change": "report_loss"}))?;
    ensure!((refused.status, refused.code()) == (403, "role"), "{refused:?}");

    stand.centre.start()?;
    in_session(&stand)?;
    stand.settle()?;
    for node in [CANTEEN, KIOSK, DESK] {
        ensure!(reason(&stand, node, "after", CARD, 100)? == "lost", "node {node}");
        ensure!(reason(&stand, node, "after-2", OTHER, 100)? == "void", "node {node}");
        ensure!(stand.nodes[node].status()?["settings_waiting"] == 0);
    }
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 99_000, "what was paid after the report was given back");
    ensure!(stand.balances()?[OTHER] == 99_700, "a withdrawn card was not lost");
    let cases = stand.cases()?;
    let [case] = cases.as_slice() else { anyhow::bail!("{cases:?}") };
    ensure!(case["reason"] == "loss" && case["bearer"] == "risk_fund" && number(case, "refunded_fen") == 700);
    let loss = shown(&stand, &["loss", "show", CARD])?;
    ensure!(loss["known"] == 3 && loss["buildings"] == 3 && loss["at_most_fen"] == 0, "{loss}");

    // The desk at the centre gives out another card, which is good everywhere at once.
    let account = stand.centre.run_ok(["card", "replace", CARD, "--new", "card-2001"]);
    ensure!(account.contains("card-2001: active") && account.contains("card-1001: void"), "{account}");
    wait_for("the new card", || {
        Ok(stand.till(KIOSK)?.tap("new", "card-2001", 500)?.reason() != "unknown_card")
    })?;
    stand.till(KIOSK)?.sell("new-card", "card-2001", 500)?;
    ensure!(reason(&stand, KIOSK, "old-card", CARD, 500)? == "void");
    stand.settle()?;
    stand.finish()
}

/// Limits are lowered at a kiosk and raised at the centre only; a desk freezes, the centre thaws; groups come and go.
#[test]
fn buildings_narrow_and_the_centre_widens() -> Result<()> {
    let mut stand = campus()?;
    let wrong = |told: Told| (told.status, told.code().to_owned());
    let lower = |single: i64| json!({"card": CARD, "change": "lower_limits", "single_limit_fen": single});
    ensure!(wrong(set(&stand, KIOSK, lower(1_000_001))?) == (422, "limit_raised".to_owned()));
    ensure!(wrong(set(&stand, KIOSK, lower(-1))?) == (422, "limit_out_of_range".to_owned()));
    ensure!(
        wrong(set(&stand, KIOSK, json!({"card": CARD, "change": "freeze"}))?) == (403, "role".to_owned())
    );
    let unknown = json!({"card": "nobody", "change": "report_loss"});
    ensure!(wrong(set(&stand, KIOSK, unknown)?) == (404, "unknown_card".to_owned()));
    let malformed = json!({"card": CARD, "change": "lift_loss"});
    ensure!(wrong(set(&stand, KIOSK, malformed)?) == (400, "malformed".to_owned()));

    stand.centre.stop()?;
    ensure!(set(&stand, KIOSK, lower(500))?.status == 200);
    ensure!(reason(&stand, KIOSK, "1", CARD, 501)? == "pin_required");
    let frozen = set(&stand, DESK, json!({"card": OTHER, "change": "freeze", "operator": "li.lei"}))?;
    ensure!(frozen.status == 200, "{frozen:?}");
    ensure!(reason(&stand, DESK, "2", OTHER, 100)? == "frozen");
    stand.centre.start()?;
    in_session(&stand)?;
    stand.settle()?;
    ensure!(reason(&stand, CANTEEN, "1", CARD, 501)? == "pin_required");
    ensure!(reason(&stand, CANTEEN, "2", OTHER, 100)? == "frozen");

    stand.centre.run_ok(["account", "unfreeze", OTHER]);
    stand.centre.run_ok(["account", "limits", CARD, "--single", "2000"]);
    stand.centre.run_ok(["account", "join", "lab", CARD]);
    let account = shown(&stand, &["account", "show", CARD])?;
    ensure!(account["single_limit_fen"] == 2_000 && account["groups"] == json!(["lab"]), "{account}");
    stand.settle()?;
    stand.till(CANTEEN)?.sell("thawed", OTHER, 100)?;
    stand.till(CANTEEN)?.sell("raised", CARD, 1_500)?;
    let output = stand.centre.run(["loss", "show", CARD]);
    ensure!(output.status.code() == Some(1));
    ensure!(String::from_utf8_lossy(&output.stderr).contains("not reported lost"));
    stand.settle()?;
    stand.finish()
}
