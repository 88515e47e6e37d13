//! A virtual card on real processes: from a phone's key to a purchase, a door, and what becomes of a code that is shown twice.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use feiqian_protocol::code::PhoneAlgorithm;
use feiqian_protocol::money::Fen;
use feiqian_sim::phone::Phone;
use feiqian_tests::binaries::run_ok;
use feiqian_tests::stand::{Plan, Stand, Till, Told, wait_for};
use serde_json::json;

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_millis()).expect("before the year 292277026")
}

/// Shows a code at a till: a purchase, or a passage where nothing is paid.
fn show(till: &Till, sequence: &str, code: &str, fen: i64) -> Result<Told> {
    let body = match fen {
        0 => json!({"epoch": 1, "sequence": sequence, "code": code, "kind": "access"}),
        _ => json!({"epoch": 1, "sequence": sequence, "code": code, "kind": "purchase", "amount_fen": fen}),
    };
    till.ask("/v1/taps", body.to_string().as_bytes())
}

fn declined(told: &Told, reason: &str) -> Result<()> {
    ensure!(told.outcome() == "declined" && told.reason() == reason, "{reason}: {told:?}");
    ensure!(!told.body["text_zh"].as_str().unwrap_or_default().is_empty(), "{told:?}");
    Ok(())
}

/// Publishes a voucher key, as an operator does: what is printed goes into the campus file.
fn publish_key(stand: &Stand) -> Result<()> {
    let key = stand.centre.run_ok(["virtual-card", "key", "--days", "30"]);
    let file = stand.path("campus.toml");
    let campus = std::fs::read_to_string(&file)?;
    std::fs::write(&file, format!("{campus}{key}"))?;
    stand.centre.run_ok(["publish".as_ref(), "--campus".as_ref(), file.as_os_str()]);
    wait_for("the configuration everywhere", || {
        let versions = stand.nodes.iter().map(|node| Ok(node.status()?["campus_version"].as_u64()));
        Ok(versions.collect::<Result<Vec<_>>>()?.iter().all(|version| *version == Some(2)))
    })
}

#[test]
fn a_phone_pays_and_opens_doors_by_codes_that_work_once() -> Result<()> {
    let mut stand = Stand::start(Plan { buildings: vec!["canteen", "library"], ..Plan::default() })?;
    publish_key(&stand)?;
    let mut phone = Phone::new(PhoneAlgorithm::P256)?;
    let key = phone.key()?;
    let printed = stand.centre.run_ok(["virtual-card", "activate", "--card", "card-1001", "--key", &key]);
    let card = phone.card()?;
    ensure!(printed.trim() == card.as_str(), "{printed}");
    let answer = stand.centre.ask(&json!({"command": "voucher", "card": card}))?;
    phone.keep(&answer, now_ms())?;
    stand.settle()?;

    let (till, other) = (stand.till(0)?, stand.till(1)?);
    let code = phone.code(now_ms())?.to_digits();
    let told = show(&till, "1", &code, 1_250)?;
    ensure!(told.approved_fen() == 1_250, "{told:?}");
    let again = show(&till, "1", &code, 1_250)?;
    ensure!(again.approved_fen() == 1_250 && again.body["repeat"] == true, "{again:?}");
    declined(&show(&till, "2", &code, 1_250)?, "code_used")?;
    let told = show(&till, "3", &phone.code(now_ms())?.to_base64url(), 0)?;
    ensure!(told.outcome() == "approved", "a door: {told:?}");

    // A screenshot of a minute ago, a misreading, another's number without a code.
    declined(&show(&till, "4", &phone.code(now_ms() - 60_000)?.to_digits(), 100)?, "code_expired")?;
    declined(&show(&till, "5", &code[..475], 100)?, "code_unreadable")?;
    let bare = till.tap("6", card.as_str(), 100)?;
    declined(&bare, "unknown_card")?;
    let both = json!({"epoch": 1, "sequence": "7", "card": "c", "code": code, "kind": "access"});
    let told = till.ask("/v1/taps", both.to_string().as_bytes())?;
    ensure!(told.status == 400 && told.code() == "malformed", "{told:?}");

    // A building that is killed has the counter on its disk.
    let late = phone.code(now_ms())?.to_digits();
    ensure!(show(&till, "8", &late, 300)?.approved_fen() == 300);
    stand.nodes[0].kill()?;
    stand.nodes[0].start()?;
    let till = stand.till(0)?;
    declined(&show(&till, "9", &late, 300)?, "code_used")?;
    stand.settle()?;

    // The physical card is lost: the phone lives on, here and where the centre is gone.
    stand.centre.run_ok(["loss", "report", "card-1001"]);
    stand.settle()?;
    stand.centre.kill()?;
    let shown = phone.code(now_ms())?.to_digits();
    ensure!(show(&till, "10", &shown, 400)?.approved_fen() == 400, "cut off");
    // The same code in the other building, which cannot know.
    ensure!(show(&other, "1", &shown, 700)?.approved_fen() == 700, "cut off, too");
    declined(&show(&other, "2", &shown, 700)?, "code_used")?;
    stand.centre.start()?;
    stand.settle()?;
    let cases = stand.cases()?;
    let case = cases.first().context("no case")?;
    ensure!(cases.len() == 1 && case["reason"] == "code_replayed", "{cases:?}");
    ensure!(case["bearer"] == "suspense" && case["refunded_fen"] == "0", "a person looks: {cases:?}");
    ensure!(["400", "700"].contains(&case["opened_fen"].as_str()), "whichever came later: {cases:?}");
    let paid = 1_250 + 300 + 400 + 700;
    ensure!(stand.balances()?["card-1001"] == 100_000 - paid, "{:?}", stand.balances()?);

    stand.centre.run_ok(["virtual-card", "revoke", card.as_str()]);
    stand.settle()?;
    declined(&show(&other, "3", &phone.code(now_ms())?.to_digits(), 100)?, "void")?;
    let voucher = stand.centre.run(["virtual-card", "voucher", card.as_str()]);
    ensure!(!voucher.status.success(), "a voucher for a revoked phone");
    stand.finish()
}

#[test]
fn a_voucher_pays_while_the_centre_is_gone_and_its_receipt_frees_the_rest() -> Result<()> {
    let mut stand = Stand::start(Plan { buildings: vec!["canteen", "library"], ..Plan::default() })?;
    publish_key(&stand)?;
    let mut phone = Phone::new(PhoneAlgorithm::P256)?;
    let key = phone.key()?;
    stand.centre.run_ok(["virtual-card", "activate", "--card", "card-1001", "--key", &key]);
    stand.settle()?;
    // What lies with the buildings is called back first.
    let mut answer = serde_json::Value::Null;
    wait_for("a voucher that holds money", || {
        let wants = serde_json::to_value(phone.wants(None, Fen::new(2_000))?)?;
        answer = stand.centre.ask(&wants)?;
        Ok(answer["ceiling_fen"] == 2_000)
    })?;
    phone.keep(&answer, now_ms())?;
    stand.settle()?;
    stand.centre.kill()?;

    let (till, other) = (stand.till(0)?, stand.till(1)?);
    let code = phone.code(now_ms())?.to_digits();
    let told = show(&till, "1", &code, 1_250)?;
    ensure!(told.approved_fen() == 1_250 && told.body["stand_in_fen"] == 0, "{told:?}");
    let receipt = told.body["receipt"].as_str().context("no receipt")?.to_owned();
    let again = show(&till, "1", &code, 1_250)?;
    ensure!(again.body["repeat"] == true && again.body["receipt"] == told.body["receipt"], "{again:?}");
    stand.nodes[0].kill()?;
    stand.nodes[0].start()?;
    let till = stand.till(0)?;
    let more = show(&till, "2", &phone.code(now_ms())?.to_digits(), 100)?;
    ensure!(more.body.get("receipt").is_none(), "it pays once, restarts or not: {more:?}");
    // The other building cannot know.
    let twice = show(&other, "1", &phone.code(now_ms())?.to_digits(), 2_000)?;
    ensure!(twice.approved_fen() == 2_000, "{twice:?}");
    let second = twice.body["receipt"].as_str().context("no receipt")?.to_owned();

    // The phone is there before the buildings' logs are.
    for node in &mut stand.nodes {
        node.kill()?;
    }
    stand.centre.start()?;
    let brought = stand.centre.ask(&serde_json::to_value(phone.take_receipt(&receipt)?)?)?;
    ensure!(brought["amount_fen"] == 1_250 && brought["freed_fen"] == 750, "{brought}");
    let printed = stand.centre.run_ok(["virtual-card", "receipt", &receipt]);
    ensure!(printed.trim() == "12.50 yuan paid, 0.00 yuan free again", "{printed}");
    let forged = format!("{}{}", &receipt[..239], (receipt.as_bytes()[239] - b'0' + 1) % 10);
    for bad in [&forged, &second] {
        ensure!(!stand.centre.run(["virtual-card", "receipt", bad]).status.success(), "{bad}");
    }
    let wants = serde_json::to_value(phone.wants(None, Fen::new(2_000))?)?;
    let next = stand.centre.ask(&wants)?;
    ensure!(next["number"].as_u64() > answer["number"].as_u64() && next["ceiling_fen"] == 2_000, "{next}");
    for node in &mut stand.nodes {
        node.start()?;
    }
    stand.settle()?;
    let rest = if more.outcome() == "approved" { 100 } else { 0 };
    ensure!(stand.balances()?["card-1001"] == 100_000 - 1_250 - 2_000 - rest, "{:?}", stand.balances()?);
    ensure!(stand.cases()?.is_empty(), "there was money for both: {:?}", stand.cases()?);
    let shown = stand.centre.ask(&json!({"command": "account", "card": "card-1001"}))?;
    ensure!(shown["vouchers"][0]["held_fen"] == 2_000, "the next one: {shown}");
    stand.finish()
}

#[test]
fn a_key_that_is_taken_out_of_the_configuration_ends_its_vouchers() -> Result<()> {
    let stand = Stand::start(Plan::default())?;
    let before = std::fs::read_to_string(stand.path("campus.toml"))?;
    publish_key(&stand)?;
    // The program of a phone, as somebody tries it out.
    let file = stand.path("phone.json");
    let phone = |arguments: &[&str]| {
        let (verb, rest) = arguments.split_first().expect("a verb");
        let file = file.to_str().expect("UTF-8 path");
        run_ok("feiqian-sim", ["phone", verb, file].iter().chain(rest))
    };
    let key = phone(&["new", "--algorithm", "ed25519"]);
    let activate = ["virtual-card", "activate", "--card", "card-1002", "--algorithm", "ed25519", "--key"];
    let card = stand.centre.run_ok(activate.iter().copied().chain([key.trim()]));
    ensure!(phone(&["card"]) == card);
    let data = stand.centre.data.to_str().context("UTF-8 path")?;
    ensure!(phone(&["fetch", "--data", data]).starts_with("a voucher until "));
    let till = stand.till(0)?;
    let told = show(&till, "1", phone(&["code"]).trim(), 500)?;
    ensure!(told.approved_fen() == 500, "{told:?}");
    let drawn = phone(&["code", "--qr", "--form", "base64url"]);
    let text = drawn.lines().last().context("nothing printed")?;
    ensure!(drawn.lines().count() > 30, "a picture: {drawn}");
    ensure!(show(&till, "2", text, 500)?.approved_fen() == 500);

    let campus = stand.path("campus.toml");
    std::fs::write(&campus, before)?;
    stand.centre.run_ok(["publish".as_ref(), "--campus".as_ref(), campus.as_os_str()]);
    wait_for("the configuration", || Ok(stand.nodes[0].status()?["campus_version"] == 3))?;
    declined(&show(&till, "3", phone(&["code"]).trim(), 500)?, "code_key_unknown")?;
    stand.finish()
}

#[test]
fn a_short_code_pays_where_the_centre_can_be_asked_and_needs_no_voucher() -> Result<()> {
    let mut stand = Stand::start(Plan { buildings: vec!["canteen", "library"], ..Plan::default() })?;
    let mut phone = Phone::new(PhoneAlgorithm::P256)?;
    let key = phone.key()?;
    stand.centre.run_ok(["virtual-card", "activate", "--card", "card-1001", "--key", &key]);
    let card = phone.card()?;
    phone.keep_short(&stand.centre.ask(&json!({"command": "short_code", "card": card}))?, now_ms())?;
    stand.settle()?;
    let (till, other) = (stand.till(0)?, stand.till(1)?);

    let code = phone.short_code(now_ms())?.to_string();
    ensure!(code.len() == 20 && code.starts_with("91"), "{code}");
    let told = show(&till, "1", &code, 1_250)?;
    ensure!(told.approved_fen() == 1_250, "{told:?}");
    let again = show(&till, "1", &code, 1_250)?;
    ensure!(again.approved_fen() == 1_250 && again.body["repeat"] == true, "{again:?}");
    declined(&show(&till, "2", &code, 1_250)?, "code_used")?;
    declined(&show(&other, "1", &code, 1_250)?, "code_used")?;
    declined(&show(&other, "2", "91000000000000000000", 100)?, "code_forged")?;
    declined(&show(&other, "3", "9100000000000000000", 100)?, "code_unreadable")?;
    let body = json!({"epoch": 1, "sequence": "4", "code": code, "kind": "purchase", "amount_fen": 1, "pin": "271828"});
    let told = other.ask("/v1/taps", body.to_string().as_bytes())?;
    ensure!(told.status == 400 && told.code() == "malformed", "{told:?}");

    stand.centre.kill()?;
    wait_for("the building to know that it is alone", || Ok(stand.nodes[0].status()?["link"] != "up"))?;
    declined(&show(&till, "3", &phone.short_code(now_ms())?.to_string(), 100)?, "code_needs_centre")?;
    let first = show(&till, "1", &code, 1_250)?;
    ensure!(first.approved_fen() == 1_250 && first.body["repeat"] == true, "from its log: {first:?}");
    stand.centre.start()?;
    stand.settle()?;
    ensure!(stand.balances()?["card-1001"] == 100_000 - 1_250, "{:?}", stand.balances()?);
    stand.finish()
}
