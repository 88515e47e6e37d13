//! What comes from outside wrongly, and machines that fail: named, declined, survived; a good tap works afterwards.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use feiqian_tests::binaries::run;
use feiqian_tests::mount::Mount;
use feiqian_tests::stand::{CENTRE, NODE, Plan, Service, Stand, Till, wait_for};
use serde_json::{Value, json};

const CARD: &str = "card-1001";

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It failed with this exit code, in one clear line that has all of this in it, and without a panic.
fn failed_with(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let said = said(output);
    ensure!(output.status.code() == Some(code), "{:?}: {said}", output.status);
    let last = said.lines().last().unwrap_or_default();
    for word in words {
        ensure!(last.contains(word), "{word:?} is not in {said:?}");
    }
    ensure!(!said.contains("panick"), "{said}");
    Ok(())
}

#[test]
fn a_wrong_request_is_named_and_nothing_of_it_stays() -> Result<()> {
    let stand = Stand::start(Plan::default())?;
    let till = stand.till(0)?;
    ensure!(till.tap("1", CARD, 1_250)?.approved_fen() == 1_250);

    let purchase = |fields: &str| {
        format!(r#"{{"epoch":1,"sequence":"bad","card":"{CARD}","kind":"purchase",{fields}}}"#)
    };
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    let bodies: Vec<(String, u16, &str, &str)> = vec![
        (String::new(), 400, "malformed", "JSON"),
        ("{".to_owned(), 400, "malformed", "JSON"),
        ("[]".to_owned(), 400, "malformed", "JSON object"),
        ("null".to_owned(), 400, "malformed", "JSON object"),
        (purchase(&format!("\"amount_fen\":{deep}")), 400, "malformed", "recursion"),
        (purchase(r#""amount_fen":1,"sum":1"#), 400, "malformed", "\"sum\" is not known"),
        (purchase(r#""amount_fen":1,"time":4102444800000"#), 400, "malformed", "\"time\" is not known"),
        (purchase(r#""amount_fen":1,"amount_fen":2"#), 400, "malformed", "stands twice"),
        (purchase(r#""amount_fen":0"#), 422, "amount", "0.01"),
        (purchase(r#""amount_fen":-1"#), 422, "amount", "0.01"),
        (purchase(r#""amount_fen":-9223372036854775808"#), 422, "amount", "0.01"),
        (purchase(r#""amount_fen":9223372036854775807"#), 422, "amount", "100000.00"),
        (purchase(r#""amount_fen":9223372036854775808"#), 400, "malformed", "amount_fen"),
        (purchase(r#""amount_fen":1e400"#), 400, "malformed", "number"),
        (purchase(r#""amount_fen":12.5"#), 400, "malformed", "whole number"),
        (purchase(r#""amount_fen":NaN"#), 400, "malformed", "JSON"),
        (purchase(r#""amount":"12.505""#), 400, "malformed", "more than two decimals"),
        (purchase(r#""amount":"-1.00""#), 422, "amount", "0.01"),
        (purchase(r#""amount":"99999999999999999999.00""#), 400, "malformed", "amount"),
        (purchase(r#""quantity":0"#), 422, "quantity", "quantity"),
        (purchase(r#""quantity":4294967296"#), 422, "quantity", "quantity"),
        (purchase(r#""amount_fen":1,"pin":"12345""#), 422, "pin", "6 digits"),
        (purchase(r#""amount_fen":1,"pin":"1234567""#), 422, "pin", "6 digits"),
        (purchase(r#""amount_fen":1,"pin":"12345a""#), 422, "pin", "6 digits"),
        (purchase(r#""amount_fen":1,"pin":123456"#), 422, "pin", "6 digits"),
        (
            purchase(r#""amount_fen":1"#).replace("\"epoch\":1", "\"epoch\":4294967296"),
            400,
            "malformed",
            "epoch",
        ),
        (purchase(r#""amount_fen":1"#).replace("\"bad\"", "\"\""), 400, "malformed", "sequence"),
        (purchase(r#""amount_fen":1"#).replace(CARD, &"9".repeat(65)), 400, "malformed", "card"),
        (purchase(r#""amount_fen":1"#).replace(CARD, "\\u0000"), 400, "malformed", "card"),
    ];
    let before = stand.nodes[0].status()?["position"].clone();
    for (body, status, code, words) in &bodies {
        let told = till.ask("/v1/taps", body.as_bytes())?;
        let message = told.body["error"]["message"].as_str().unwrap_or_default();
        let short: String = body.chars().take(200).collect();
        ensure!(told.status == *status && told.code() == *code, "{short}: {} {}", told.status, told.body);
        ensure!(told.authentic, "{short}: the answer to a known terminal is authenticated");
        ensure!(message.contains(words), "{short}: {words:?} is not in {message:?}");
        ensure!(!message.contains(CARD), "a card number in {message:?}");
    }
    ensure!(stand.nodes[0].status()?["position"] == before, "nothing was written");
    let told = till.ask("/v1/taps", &[0xff, 0xfe, 0])?;
    ensure!(told.status == 400 && told.code() == "malformed", "{told:?}");

    // Under the key of an earlier tap: the same again is a repeat, anything else is refused.
    let again = till.tap("1", CARD, 1_250)?;
    ensure!(again.approved_fen() == 1_250 && again.body["repeat"] == true, "{again:?}");
    let other = till.purchase("1", CARD, &json!({"amount_fen": 1_251}))?;
    ensure!(other.status == 409 && other.code() == "key_reused" && other.authentic, "{other:?}");

    let unknown = till.tap("2", "card-9999", 100)?;
    ensure!(unknown.outcome() == "declined" && unknown.reason() == "unknown_card", "{unknown:?}");
    ensure!(till.tap("3", CARD, 750)?.approved_fen() == 750);

    let log = stand.nodes[0].log() + &stand.centre.log();
    ensure!(!log.contains(CARD) && !log.contains("card-9999"), "a card number in a log: {log}");
    let balances = {
        let mut stand = stand;
        stand.settle()?;
        let balances = stand.balances()?;
        stand.finish()?;
        balances
    };
    ensure!(balances[CARD] == 100_000 - 1_250 - 750, "{balances:?}");
    Ok(())
}

#[test]
fn who_is_not_known_gets_nothing() -> Result<()> {
    let stand = Stand::start(Plan::default())?;
    let till = stand.till(0)?;
    let good = format!(r#"{{"epoch":1,"sequence":"1","card":"{CARD}","kind":"purchase","amount_fen":100}}"#);
    let other = good.replace("\"amount_fen\":100", "\"amount_fen\":900");

    // A MAC of nothing, of the wrong length, of another path, of another body.
    let refused = |mac: &str, body: &str| -> Result<()> {
        let told = till.send("/v1/taps", mac, body.as_bytes())?;
        ensure!(told.status == 401 && told.code() == "unauthenticated" && !told.authentic, "{mac}: {told:?}");
        Ok(())
    };
    refused("", &good)?;
    refused(&"0".repeat(64), &good)?;
    refused(&"0".repeat(63), &good)?;
    refused(&till.mac("/v1/reversals", good.as_bytes()), &good)?;
    refused(&till.mac("/v1/taps", good.as_bytes()), &other)?;
    // The key of one terminal is no other's.
    let second = Till::new(&stand.nodes[0], "canteen-2")?;
    refused(&second.mac("/v1/taps", good.as_bytes()), &good)?;
    stand.nodes[0].wait_for_log("a request with a wrong MAC")?;

    // A key that is right, of a terminal that the campus does not have.
    let stranger = Till::new(&stand.nodes[0], "elsewhere-1")?;
    let told = stranger.ask("/v1/taps", good.as_bytes())?;
    ensure!(told.status == 403 && told.code() == "unknown_terminal", "{told:?}");
    // A terminal cannot reverse another's tap.
    ensure!(till.ask("/v1/taps", good.as_bytes())?.approved_fen() == 100);
    let reversal = r#"{"epoch":1,"sequence":"9","original":{"epoch":1,"sequence":"1"}}"#;
    let told = second.ask("/v1/reversals", reversal.as_bytes())?;
    ensure!(told.approved_fen() == 0, "{told:?}");

    let told = till.ask("/v1/nothing", b"{}")?;
    ensure!(told.status == 404, "{told:?}");
    // The same request once more, byte for byte, as an eavesdropper could: the first answer again, and no second debit.
    let told = till.ask("/v1/taps", good.as_bytes())?;
    ensure!(told.approved_fen() == 100 && told.body["repeat"] == true, "{told:?}");
    let mut stand = stand;
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 100_000 - 100);
    stand.finish()
}

/// What an operator or a channel says wrongly to the centre: named, with the line where it is a file, and nothing of it stays.
#[test]
fn a_wrong_word_to_the_centre_is_named_and_changes_nothing() -> Result<()> {
    let stand = Stand::centre_alone(Plan::default())?;
    let before = stand.export("entries")?.len();
    let topup = |amount: &str, card: &str, key: &str| {
        stand.centre.run(["topup", "--card", card, amount, "--channel", "bank", "--key", key])
    };
    let cases = [
        ("--fen=0", CARD, 1, "from 0.01 to 100000.00"),
        ("--fen=-1", CARD, 1, "from 0.01 to 100000.00"),
        ("--fen=10000001", CARD, 1, "from 0.01 to 100000.00"),
        ("--fen=9223372036854775807", CARD, 1, "from 0.01 to 100000.00"),
        ("--fen=9223372036854775808", CARD, 2, "--fen"),
        ("--fen=-9223372036854775808", CARD, 1, "from 0.01 to 100000.00"),
        ("--fen=12.5", CARD, 2, "--fen"),
        ("--yuan=12.505", CARD, 2, "more than two decimals"),
        ("--yuan=99999999999999999999", CARD, 2, "--yuan"),
        ("--yuan=-0.01", CARD, 1, "from 0.01 to 100000.00"),
        ("--yuan=NaN", CARD, 2, "--yuan"),
        ("--fen=100", "card-9999", 1, "no account has this card"),
    ];
    for (amount, card, code, words) in cases {
        failed_with_anywhere(&topup(amount, card, "k1"), code, &[words])
            .with_context(|| amount.to_owned())?;
    }
    ensure!(topup("--fen=100", CARD, "k2").status.success());
    ensure!(topup("--fen=100", CARD, "k2").status.success(), "the same again is a repeat");
    failed_with_anywhere(&topup("--fen=101", CARD, "k2"), 1, &["credited something else before"])?;

    let file = stand.path("bad.csv");
    let header = "card,patron_class,opening_fen";
    let import = || stand.centre.run(["import".as_ref(), "accounts".as_ref(), file.as_os_str()]);
    let rows = [
        ("c1,student,-1", 2, "opening_fen"),
        ("c1,student,12.5", 2, "opening_fen"),
        ("c1,student,9223372036854775808", 2, "opening_fen"),
        ("c1,student,10000001", 2, "opening_fen"),
        ("c1,student,1\nc1,student,1", 3, "the same one as in line 2"),
        ("c1,student,1\n,student,1", 3, "card"),
        ("c1,student", 2, ""),
    ];
    for (rows, line, words) in rows {
        std::fs::write(&file, format!("{header}\n{rows}\n"))?;
        let place = format!("bad.csv:{line}");
        failed_with_anywhere(&import(), 1, &[&place, words, "nothing was imported"])
            .with_context(|| rows.to_owned())?;
    }
    std::fs::write(&file, "card,opening_fen\nc1,1\n")?;
    failed_with_anywhere(&import(), 1, &["patron_class"])?;
    std::fs::write(&file, format!("{header}\nfresh,student,1\n{CARD},student,1\n"))?;
    failed_with_anywhere(&import(), 1, &["refused"])?;
    failed_with_anywhere(&topup("--fen=100", "fresh", "k3"), 1, &["no account has this card"])?;

    // On the local socket.
    for (line, code) in [
        ("", "json"),
        ("{", "json"),
        ("[1]", "command"),
        (r#"{"command":"dance"}"#, "command"),
        (r#"{"command":"topup","card":"card-1001","amount_fen":1e30,"channel":"b","key":"k"}"#, "command"),
        (r#"{"command":"topup","card":"card-1001","amount_fen":"5","channel":"b","key":"k"}"#, "command"),
        (r#"{"command":"retire","node":"canteen","more":1}"#, "command"),
        (r#"{"command":"clock","now_ms":4102444800000}"#, "clock_not_driven"),
        (r#"{"command":"enrol","lookup":"00","log_key":"00"}"#, "command"),
        (r#"{"command":"renew","node":1,"incarnation":1}"#, "command"),
        (r#"{"command":"import_log","frame":"zz"}"#, "log"),
        (r#"{"command":"import_log","frame":"ff"}"#, "log"),
    ] {
        let told = say(&stand.centre, line.as_bytes())?;
        ensure!(told["ok"] == false && told["code"] == code, "{line}: {told}");
        ensure!(told["error"].as_str().is_some_and(|error| !error.is_empty()), "{line}: {told}");
    }
    let told = say(&stand.centre, &vec![b' '; 5 * 1024 * 1024])?;
    ensure!(told["code"] == "line", "{told}");

    ensure!(stand.export("entries")?.len() == before + 1, "one credit, and nothing else");
    ensure!(stand.balances()?[CARD] == 100_100);
    stand.finish()
}

/// Says a line to the local socket of a service; returns what it says.
fn say(service: &Service, line: &[u8]) -> Result<Value> {
    use std::io::{BufRead, BufReader, Write};
    let stream = std::os::unix::net::UnixStream::connect(service.data.join("control.sock"))?;
    stream.set_read_timeout(Some(feiqian_tests::stand::PATIENCE))?;
    // One that has seen enough of a line answers and hangs up.
    let _ = (&stream).write_all(line).and_then(|()| (&stream).write_all(b"\n"));
    let mut told = String::new();
    BufReader::new(&stream).read_line(&mut told)?;
    Ok(serde_json::from_str(&told)?)
}

#[test]
fn a_body_that_is_too_long_is_not_read() -> Result<()> {
    let stand = Stand::start(Plan::default())?;
    let till = stand.till(0)?;
    let rss = || -> Result<u64> {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", stand.nodes[0].pid()?.as_raw_nonzero()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
        Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
    };
    let before = rss()?;
    let body = vec![b' '; 10 * 1024 * 1024];
    for _ in 0..3 {
        // Refused before the whole of it was sent: the answer, or at least the end of the connection, comes first.
        match till.ask("/v1/taps", &body) {
            Ok(told) => ensure!(told.status == 413, "{told:?}"),
            Err(error) => eprintln!("hung up on: {error:#}"),
        }
    }
    let grown = rss()? - before;
    ensure!(grown < 8 * 1024, "the node has grown by {grown} kB");
    let limit = format!("{{\"x\":\"{}\"}}", "y".repeat(16 * 1024));
    let told = till.ask("/v1/taps", limit.as_bytes())?;
    ensure!(told.status == 413 && told.code() == "body", "{told:?}");
    ensure!(till.tap("1", CARD, 100)?.approved_fen() == 100);
    stand.finish()
}

#[test]
fn bad_configuration_names_file_line_and_key() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("bad.toml");
    let place = |line: usize| format!("{}:{line}", file.display());
    let node = "data_dir = \"/nowhere\"\ncentre = \"centre:7443\"\n";
    let cases = [
        (NODE, format!("{node}speed = 1\n"), place(3), "speed"),
        (NODE, format!("{node}terminal_listen = \"8443\"\n"), place(3), "terminal_listen"),
        (NODE, format!("{node}ask_deadline_ms = \"fast\"\n"), place(3), "ask_deadline_ms"),
        (NODE, "data_dir = \"/nowhere\"\ncentre = \"centre\"\n".to_owned(), place(2), "centre"),
        (NODE, "centre = \"centre:7443\"\n".to_owned(), file.display().to_string(), "data_dir"),
        (CENTRE, "data_dir = \"/nowhere\"\nlisten = \"7443\"\n".to_owned(), place(2), "listen"),
        (CENTRE, "data_dir = \"/nowhere\"\n\nspeed = 1\n".to_owned(), place(3), "speed"),
        (CENTRE, "data_dir = \"/nowhere\"\nidle_timeout_ms = 5\n".to_owned(), place(2), "idle_timeout_ms"),
        (CENTRE, "listen = \"127.0.0.1:7443\"\n".to_owned(), file.display().to_string(), "data_dir"),
        (CENTRE, "data_dir = \n".to_owned(), place(1), "data_dir"),
    ];
    for (program, text, place, key) in cases {
        std::fs::write(&file, &text)?;
        let output = run(program, ["run".as_ref(), "--config".as_ref(), file.as_os_str()]);
        failed_with_anywhere(&output, 64, &[&place, key]).with_context(|| text.clone())?;
    }
    let missing = directory.path().join("missing.toml");
    for program in [NODE, CENTRE] {
        let output = run(program, ["run".as_ref(), "--config".as_ref(), missing.as_os_str()]);
        failed_with_anywhere(&output, 64, &["missing.toml"])?;
    }
    // The campus file, too.
    let data = directory.path().join("centre");
    let campus =
        "institution = 1\ncampus = 1\n[[merchants]]\nid = 1\nname = \"A\"\n[[buildings]]\nnode = \"a\"\n";
    for (text, line, key) in [
        (format!("{campus}terminals = [{{ id = \"a-1\", merchant = 2 }}]\n"), 8, "a-1"),
        (format!("single_limit_fen = -5\n{campus}terminals = []\n"), 1, "single_limit_fen"),
        (format!("{campus}terminals = []\ncolour = 1\n"), 9, "colour"),
    ] {
        std::fs::write(&file, &text)?;
        let arguments =
            ["init".as_ref(), "--data".as_ref(), data.as_os_str(), "--campus".as_ref(), file.as_os_str()];
        failed_with_anywhere(&run(CENTRE, arguments), 64, &[&place(line), key])
            .with_context(|| text.clone())?;
        ensure!(!data.exists(), "nothing is made of a bad campus file");
    }
    Ok(())
}

/// As [`failed_with`], for messages of more than one line.
fn failed_with_anywhere(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let said = said(output);
    ensure!(output.status.code() == Some(code), "{:?}: {said}", output.status);
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in {said:?}");
    }
    ensure!(!said.contains("panick"), "{said}");
    Ok(())
}

#[test]
fn a_place_that_is_taken_or_missing_is_named() -> Result<()> {
    let mut stand = Stand::start(Plan::default())?;
    let till = stand.till(0)?;

    // A second process on the same data directory.
    let second = Service::new(NODE, &stand.nodes[0].data);
    failed_with(&second.fails_to_start()?, 1, &["in use by another feiqian-node", "canteen"])?;
    let second = Service::new(CENTRE, &stand.centre.data);
    failed_with(&second.fails_to_start()?, 1, &["another feiqian-reconcile runs on", "centre"])?;
    ensure!(till.tap("1", CARD, 100)?.approved_fen() == 100, "the first one does not mind");

    // A data directory that is not there, or is nobody's.
    for data in [stand.path("nowhere"), stand.path("empty")] {
        if data.ends_with("empty") {
            std::fs::create_dir(&data)?;
        }
        let node = stand.service(&data)?;
        failed_with(&node.fails_to_start()?, 1, &["has not joined", data.to_str().unwrap_or_default()])?;
        let mut centre = Service::new(CENTRE, &data);
        centre.config = stand.path("other.toml");
        std::fs::write(&centre.config, format!("data_dir = {}\nlisten = \"127.0.0.1:0\"\n", json!(data)))?;
        failed_with(&centre.fails_to_start()?, 1, &["not initialised", data.to_str().unwrap_or_default()])?;
    }

    // A port that somebody else has.
    stand.nodes[0].stop()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let config = std::fs::read_to_string(&stand.nodes[0].config)?;
    std::fs::write(&stand.nodes[0].config, config.replace("127.0.0.1:0", &address))?;
    failed_with(&stand.nodes[0].fails_to_start()?, 1, &[&address])?;
    std::fs::write(&stand.nodes[0].config, config)?;
    stand.centre.stop()?;
    let taken = std::net::UdpSocket::bind(("127.0.0.1", stand.centre_port))?;
    failed_with(&stand.centre.fails_to_start()?, 1, &[&stand.centre_address(), "listen"])?;
    drop(taken);

    // A key file that is damaged.
    let key = stand.nodes[0].data.join("log.key");
    let good = std::fs::read(&key)?;
    std::fs::write(&key, "damaged")?;
    failed_with(&stand.nodes[0].fails_to_start()?, 1, &["log.key"])?;
    std::fs::write(&key, good)?;

    stand.centre.start()?;
    stand.nodes[0].start()?;
    ensure!(stand.till(0)?.tap("2", CARD, 100)?.approved_fen() == 100);
    stand.finish()
}

#[test]
fn a_read_only_data_directory_is_named() -> Result<()> {
    let mut stand = Stand::start(Plan::default())?;
    stand.nodes[0].stop()?;
    stand.centre.stop()?;
    for service in [&stand.nodes[0], &stand.centre] {
        let Some(_mount) = Mount::read_only(&service.data)? else { return Ok(()) };
        failed_with(&service.fails_to_start()?, 1, &[service.data.to_str().unwrap_or_default(), "ead-only"])?;
    }
    stand.centre.start()?;
    stand.nodes[0].start()?;
    ensure!(stand.till(0)?.tap("1", CARD, 100)?.approved_fen() == 100);
    stand.finish()
}

/// Taps until one is not approved; returns what was approved, and the answer that was not.
fn tap_until_declined(till: &Till, name: &str) -> Result<(i64, feiqian_tests::stand::Told, String)> {
    for approved in 0..20_000 {
        let sequence = format!("{name}-{approved}");
        let told = till.purchase(&sequence, CARD, &json!({"amount_fen": 1}))?;
        ensure!(told.authentic, "{told:?}");
        if told.outcome() != "approved" {
            return Ok((approved, told, sequence));
        }
    }
    anyhow::bail!("a full disk takes every tap")
}

#[test]
fn a_full_disk_declines_and_room_brings_the_building_back() -> Result<()> {
    let mut stand = Stand::centre_alone(Plan::default())?;
    let disk = stand.path("disk");
    let Some(mount) = Mount::small(&disk, 12 * 1024)? else { return Ok(()) };
    stand.add_node("canteen", "pos", &disk.join("canteen"))?;
    stand.settle()?;
    let mut till = stand.till(0)?;
    let mut approved = 0;
    for round in 0..3 {
        ensure!(till.tap(&format!("good-{round}"), CARD, 100)?.approved_fen() == 100);
        approved += 100;
        let filler = mount.fill()?;
        let (fen, told, sequence) = tap_until_declined(&till, &format!("full-{round}"))?;
        approved += fen;
        // Either: where the disk fills up at COMMIT the whole step fails, and the answer names no reason.
        let declined =
            told.status == 200 && told.outcome() == "declined" && told.reason() == "out_of_service";
        let unavailable = told.status == 503 && told.code() == "unavailable";
        ensure!(declined || unavailable, "{told:?}");
        // It stays so, and stays up.
        let told = till.purchase(&format!("still-{round}"), CARD, &json!({"amount_fen": 1}))?;
        ensure!(told.outcome() != "approved", "{told:?}");
        ensure!(stand.nodes[0].is_running()?, "{}", stand.nodes[0].log());
        if round == 1 {
            // It may be killed meanwhile.
            stand.nodes[0].kill()?;
            std::fs::remove_file(&filler)?;
            stand.nodes[0].start()?;
            till = stand.till(0)?;
        } else {
            std::fs::remove_file(&filler)?;
        }
        // Nobody does anything but make room: the same tap is taken now.
        wait_for("service", || {
            let told = till.purchase(&sequence, CARD, &json!({"amount_fen": 1}))?;
            Ok(told.approved_fen() == 1)
        })
        .with_context(|| stand.nodes[0].log())?;
        approved += 1;
    }
    let log = stand.nodes[0].log();
    ensure!(log.contains("full"), "the log says why: {log}");
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 100_000 - approved, "{approved} approved, {:?}", stand.balances()?);
    stand.finish()
}

#[test]
fn a_full_disk_at_the_centre_keeps_no_building_from_deciding() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = directory.path().join("disk");
    let Some(mount) = Mount::small(&disk, 12 * 1024)? else { return Ok(()) };
    let mut stand = Stand::centre_in(directory, &disk.join("centre"), Plan::default())?;
    let data = stand.path("canteen");
    stand.add_node("canteen", "pos", &data)?;
    stand.settle()?;
    let till = stand.till(0)?;
    let filler = mount.fill()?;
    let mut approved = 0;
    for round in 0..400 {
        let told = till.tap(&format!("{round}"), CARD, 10)?;
        ensure!(told.approved_fen() == 10, "the right is at the building: {told:?}");
        approved += 10;
    }
    // What the centre cannot write, it does not claim to have.
    let topup = ["topup", "--card", "card-1002", "--fen", "500", "--channel", "bank", "--key"];
    let mut refused = None;
    for key in 0..500 {
        let output = stand.centre.run(topup.iter().copied().chain([format!("k{key}").as_str()]));
        if !output.status.success() {
            refused = Some((key, said(&output)));
            break;
        }
    }
    let (credited, why) = refused.context("a full disk takes every credit")?;
    ensure!(!why.is_empty() && stand.centre.is_running()?, "{why}");
    std::fs::remove_file(&filler)?;
    wait_for("the centre", || {
        let key = format!("k{credited}");
        Ok(stand.centre.run(topup.iter().copied().chain([key.as_str()])).status.success())
    })
    .with_context(|| stand.centre.log())?;
    wait_for("the session", || Ok(stand.nodes[0].status()?["link"] == "up"))?;
    stand.settle()?;
    let balances = stand.balances()?;
    ensure!(balances[CARD] == 100_000 - approved, "{balances:?}");
    ensure!(balances["card-1002"] == 100_000 + 500 * (credited + 1), "{balances:?}, {credited} before");
    ensure!(stand.centre.log().contains("full"), "{}", stand.centre.log());
    stand.finish()
}

/// A file that may not grow, which is what a quota looks like from inside: SQLite sees an I/O error, not a full disk.
#[test]
fn a_quota_declines_and_its_end_brings_the_building_back() -> Result<()> {
    let mut stand = Stand::start(Plan::default())?;
    stand.nodes[0].stop()?;
    let plain = stand.nodes[0].command();
    let mut command = std::process::Command::new("sh");
    // Ignored signals stay ignored across exec; with it not ignored the process would end.
    command
        .arg("-c")
        .arg("trap '' XFSZ; exec \"$@\"")
        .arg("sh")
        .arg(plain.get_program())
        .args(plain.get_args());
    stand.nodes[0].start_as(command)?;
    let till = stand.till(0)?;
    ensure!(till.tap("first", CARD, 100)?.approved_fen() == 100);
    let limit = |bytes: Option<u64>| -> Result<()> {
        let maximum = None;
        rustix::process::prlimit(
            Some(stand.nodes[0].pid()?),
            rustix::process::Resource::Fsize,
            rustix::process::Rlimit { current: bytes, maximum },
        )?;
        Ok(())
    };
    limit(Some(4_096))?;
    let (fen, told, sequence) = tap_until_declined(&till, "quota")?;
    ensure!(matches!((told.status, told.code()), (503, "unavailable")) || told.reason() == "out_of_service");
    limit(None)?;
    wait_for(
        "service",
        || Ok(till.purchase(&sequence, CARD, &json!({"amount_fen": 1}))?.approved_fen() == 1),
    )
    .with_context(|| stand.nodes[0].log())?;
    stand.settle()?;
    let balances: Value = json!(stand.balances()?);
    ensure!(balances[CARD] == 100_000 - 100 - fen - 1, "{balances}");
    stand.finish()
}
