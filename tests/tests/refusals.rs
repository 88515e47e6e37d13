//! What is wrong is refused with a clear error and a stable code, and nothing of it is written: no entry in any log, no line on
//! the ledger. One table for the centre's commands, one for what a terminal may ask of a building.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use ed25519_dalek::SigningKey;
use feiqian_protocol::chain::unhex;
use feiqian_protocol::code::{PhoneAlgorithm, PhoneKey, Voucher};
use feiqian_protocol::ids::{AccountId, InstitutionId};
use feiqian_protocol::money::Fen;
use feiqian_sim::phone::Phone;
use feiqian_tests::stand::{Plan, Stand};
use serde_json::{Value, json};

const CARD: &str = "card-1001";
const CLOSED: &str = "card-1002";
const FULL: &str = "card-1003";

const POS: usize = 0;
const KIOSK: usize = 1;
const DESK: usize = 2;

fn campus() -> Result<Stand> {
    let plan = Plan {
        buildings: vec!["pos", "kiosk", "desk"],
        accounts: vec![(CARD, 10_000), (CLOSED, 10_000), (FULL, 10_000)],
        ..Plan::default()
    };
    let mut stand = Stand::centre_alone(plan)?;
    for name in ["pos", "kiosk", "desk"] {
        let data = stand.path(name);
        stand.add_node(name, name, &data)?;
    }
    stand.centre.run_ok(["account", "close", CLOSED]);
    stand.settle()?;
    Ok(stand)
}

/// Groups until no more fit into the document. Their names are short: what is tried later takes more room than any of them, whatever
/// a document's compression makes of it.
fn fill(stand: &Stand) -> Result<()> {
    let mut groups = 0;
    while ask(stand, &change(FULL, &join(groups, 5)).to_string())?["ok"] == true {
        groups += 1;
    }
    ensure!(groups > 100, "{groups} groups");
    Ok(())
}

fn join(number: u32, parts: u32) -> Value {
    // Names that differ in every letter, so that nothing of them can be left out.
    let name: String = (0..parts)
        .map(|part| format!("{:08x}", (number * 8 + part).wrapping_mul(2_654_435_761).rotate_left(part * 3)))
        .collect();
    json!({"join_group": {"group": name}})
}

fn change(card: &str, change: &Value) -> Value {
    json!({"command": "change_setting", "card": card, "change": change, "operator": "op"})
}

/// Says a line on the centre's local socket, whatever comes of it.
fn ask(stand: &Stand, line: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(stand.centre.data.join("control.sock"))?;
    // One that has heard enough hangs up.
    let _ = stream.write_all(format!("{line}\n").as_bytes());
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// Everything that was ever written: the entries of all logs, the lines of the ledger, where the nodes' logs end.
fn written(stand: &mut Stand) -> Result<(String, String, Vec<Value>)> {
    stand.settle()?;
    let ends =
        stand.nodes.iter().map(|node| Ok(node.status()?["position"].clone())).collect::<Result<_>>()?;
    Ok((stand.centre.run_ok(["export", "entries"]), stand.centre.run_ok(["export", "postings"]), ends))
}

#[test]
fn the_centre_refuses_what_is_wrong_and_writes_nothing() -> Result<()> {
    let mut stand = campus()?;
    fill(&stand)?;
    let pin = json!({"generation": "00".repeat(16), "hash": "11".repeat(32)});
    let short = json!({"generation": "00", "hash": "12345"});
    let by = |command: &str, card: &str| json!({"command": command, "card": card, "operator": "op"});
    let with = |mut command: Value, fields: Value| {
        if let (Value::Object(command), Value::Object(fields)) = (&mut command, fields) {
            command.extend(fields);
        }
        command
    };
    let topup = |card: &str, fen: i64| json!({"command": "topup", "card": card, "amount_fen": fen, "channel": "counter", "key": format!("k{fen}")});
    let limits = |single: i64| json!({"limits": {"single_limit_fen": single}});
    let key = "02".to_owned() + &"11".repeat(32);
    let table = [
        // Unknown cards.
        (by("report_loss", "nobody"), "unknown_card"),
        (by("lift_loss", "nobody"), "unknown_card"),
        (json!({"command": "account", "card": "nobody"}), "unknown_card"),
        (json!({"command": "card_loss", "card": "nobody"}), "unknown_card"),
        (json!({"command": "pin_status", "card": "nobody"}), "unknown_card"),
        (json!({"command": "login_salt", "card": "nobody"}), "unknown_card"),
        (topup("nobody", 100), "unknown_card"),
        (change("nobody", &json!("freeze")), "unknown_card"),
        (
            with(by("close_account", "nobody"), json!({"channel": "bank", "subsidy_channel": "subsidy"})),
            "unknown_card",
        ),
        // Malformed changes.
        (change(CARD, &json!("dance")), "command"),
        (change(CARD, &json!({"limits": {"single_limit_fen": "much"}})), "command"),
        (change(CARD, &json!({"replace_card": {}})), "command"),
        (change(CARD, &json!({"join_group": {"group": "two words"}})), "command"),
        (change(CARD, &json!({"describe": {"field": "name", "value": "a\nb"}})), "holder_field"),
        (change(CARD, &json!({"describe": {"field": "phone", "value": "call me"}})), "holder_field"),
        (json!({"command": "close_account", "card": CARD}), "command"),
        (json!({"command": "enrol", "lookup": "00", "log_key": "00"}), "command"),
        // A PIN that is none, as hashes go, and one of which the account does not know the present one.
        (with(by("set_pin", CARD), json!({"pin": short})), "command"),
        (json!({"command": "change_pin", "card": CARD, "current": [pin], "pin": pin}), "pin_changed"),
        (with(by("confirm_pin", CARD), json!({"typed": [pin]})), "pin_confirmed"),
        // Limits and amounts out of range.
        (change(CARD, &limits(10_000_001)), "limit_out_of_range"),
        (change(CARD, &limits(-1)), "limit_out_of_range"),
        (topup(CARD, 0), "amount"),
        (topup(CARD, 10_000_001), "amount"),
        // What does not fit the account as it is.
        (by("lift_loss", CARD), "not_lost"),
        (json!({"command": "card_loss", "card": CARD}), "not_lost"),
        (change(CARD, &json!("unfreeze")), "not_frozen"),
        (change(CARD, &json!("activate_card")), "not_inactive"),
        (change(CARD, &json!({"replace_card": {"new_card": FULL}})), "card_in_use"),
        (change(CARD, &json!({"exchange_card": {}})), "no_blank_card"),
        (change(FULL, &join(1_000_000, 8)), "no_room"),
        // A closed account.
        (change(CLOSED, &json!({"replace_card": {"new_card": "new"}})), "closed"),
        (change(CLOSED, &limits(100)), "closed"),
        (change(CLOSED, &json!("freeze")), "closed"),
        (
            with(by("close_account", CLOSED), json!({"channel": "bank", "subsidy_channel": "subsidy"})),
            "closed",
        ),
        (with(by("set_pin", CLOSED), json!({"pin": pin})), "closed"),
        (with(by("activate_virtual_card", CLOSED), json!({"algorithm": "p256", "key": key})), "phone_key"),
        (topup(CLOSED, 100), "closed"),
    ];
    let before = written(&mut stand)?;
    for (command, code) in &table {
        let answer = ask(&stand, &command.to_string())?;
        ensure!(answer["ok"] == false && answer["code"] == *code, "{command}: {answer}");
        ensure!(
            answer["error"].as_str().is_some_and(|error| error.len() > 8),
            "says what is wrong: {answer}"
        );
    }
    for (line, code) in [("dance", "json"), (&*"x".repeat(5 << 20), "line")] {
        let answer = ask(&stand, line)?;
        ensure!(answer["code"] == code, "{code}: {answer}");
    }
    // A PIN that is typed goes no further than the command line.
    for typed in ["12345\n", "12345a\n", "1234567\n", "一二三四五六\n"] {
        let mut child = std::process::Command::new(feiqian_tests::binaries::binary("feiqian-reconcile"))
            .args(["pin", "set", "--card", CARD])
            .env("FEIQIAN_DATA", &stand.centre.data)
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        child.stdin.take().context("piped")?.write_all(typed.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains("6 digits"), "{typed}: {said}");
        ensure!(!said.contains(typed.trim()), "{said}");
    }
    ensure!(written(&mut stand)? == before, "something was written");
    stand.finish()
}

#[test]
fn a_building_refuses_what_is_wrong_and_writes_nothing() -> Result<()> {
    let mut stand = campus()?;
    let setting = |card: &str, change: &str| json!({"card": card, "change": change});
    let limits = |single: i64| json!({"card": CARD, "change": "lower_limits", "single_limit_fen": single});
    let tap = |fields: Value| {
        let mut body =
            json!({"epoch": 1, "sequence": "s", "card": CARD, "kind": "purchase", "amount_fen": 100});
        if let (Value::Object(body), Value::Object(fields)) = (&mut body, fields) {
            body.extend(fields);
        }
        body
    };
    let table = [
        (KIOSK, "/v1/settings", setting("nobody", "report_loss"), 404, "unknown_card"),
        (KIOSK, "/v1/settings", setting(CARD, "lift_loss"), 400, "malformed"),
        (KIOSK, "/v1/settings", setting(CARD, "dance"), 400, "malformed"),
        (KIOSK, "/v1/settings", json!({"change": "report_loss"}), 400, "malformed"),
        (POS, "/v1/settings", setting(CARD, "report_loss"), 403, "role"),
        (POS, "/v1/settings", setting(CARD, "freeze"), 403, "role"),
        (KIOSK, "/v1/settings", setting(CARD, "freeze"), 403, "role"),
        (KIOSK, "/v1/settings", setting(CARD, "void_card"), 403, "role"),
        (KIOSK, "/v1/settings", limits(1_000_001), 422, "limit_raised"),
        (KIOSK, "/v1/settings", limits(10_000_001), 422, "limit_out_of_range"),
        (DESK, "/v1/settings", limits(-1), 422, "limit_out_of_range"),
        (
            DESK,
            "/v1/settings",
            json!({"card": CLOSED, "change": "freeze", "operator": "li.lei"}),
            409,
            "closed",
        ),
        (KIOSK, "/v1/pin", json!({"card": CARD, "pin": "98765", "new_pin": "271828"}), 422, "pin"),
        (KIOSK, "/v1/pin", json!({"card": CARD, "pin": "666666", "new_pin": "27182x"}), 422, "pin"),
        (KIOSK, "/v1/pin", json!({"card": CARD, "pin": "666666", "new_pin": "777777"}), 422, "pin"),
        (KIOSK, "/v1/pin", json!({"card": CARD, "pin": "271828", "new_pin": "271829"}), 422, "wrong_pin"),
        (
            KIOSK,
            "/v1/pin",
            json!({"card": "nobody", "pin": "666666", "new_pin": "271828"}),
            404,
            "unknown_card",
        ),
        (KIOSK, "/v1/pin", json!({"card": CARD, "pin": "666666"}), 400, "malformed"),
        (POS, "/v1/pin", json!({"card": CARD, "pin": "666666", "new_pin": "271828"}), 403, "role"),
        (DESK, "/v1/pin", json!({"card": CLOSED, "pin": "666666", "new_pin": "271828"}), 409, "closed"),
        (POS, "/v1/taps", tap(json!({"pin": "98765"})), 422, "pin"),
        (POS, "/v1/taps", tap(json!({"pin": "98765a"})), 422, "pin"),
        (POS, "/v1/taps", tap(json!({"amount_fen": 0})), 422, "amount"),
        (POS, "/v1/taps", tap(json!({"amount_fen": 10_000_001})), 422, "amount"),
        (POS, "/v1/taps", tap(json!({"kind": "gift"})), 400, "malformed"),
    ];
    let before = written(&mut stand)?;
    for (node, path, body, status, code) in &table {
        let told = stand.till(*node)?.ask(path, body.to_string().as_bytes())?;
        ensure!((told.status, told.code()) == (*status, *code), "{path} {body}: {told:?}");
        let message = told.body["error"]["message"].as_str().unwrap_or_default();
        ensure!(message.len() > 8 && !message.contains("98765"), "says what is wrong: {told:?}");
    }
    let long = tap(json!({"sequence": "x".repeat(20_000)}));
    let told = stand.till(POS)?.ask("/v1/taps", long.to_string().as_bytes())?;
    ensure!(told.status == 413, "{told:?}");

    // A code of another institution, by a voucher that its centre has signed.
    let mut phone = Phone::new(PhoneAlgorithm::P256)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let public = unhex(&phone.key()?).context("hexadecimal")?;
    let voucher = Voucher {
        institution: InstitutionId(2),
        centre_key: 1,
        account: AccountId(1),
        number: 1,
        issued: u32::try_from(now.as_secs())?,
        life_minutes: 60,
        ceiling: Fen::ZERO,
        phone: PhoneKey::new(PhoneAlgorithm::P256, &public)?,
    };
    let signed = voucher.sign(&SigningKey::from_bytes(&[3; 32]))?;
    let now_ms = i64::try_from(now.as_millis())?;
    let until_ms = now_ms + 3_600_000;
    phone.keep(&json!({"voucher": signed.to_base64url(), "until_ms": until_ms, "now_ms": now_ms}), now_ms)?;
    let code = phone.code(now_ms)?.to_digits();
    let body = json!({"epoch": 1, "sequence": "f", "code": code, "kind": "purchase", "amount_fen": 100});
    let told = stand.till(POS)?.ask("/v1/taps", body.to_string().as_bytes())?;
    ensure!(told.status == 200 && told.reason() == "code_foreign" && told.body["code"] == "31", "{told:?}");
    ensure!(written(&mut stand)? == before, "something was written");
    stand.finish()
}
