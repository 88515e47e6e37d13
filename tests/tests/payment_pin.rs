//! The payment PIN on real processes: set at the centre, good for a purchase over the limits at a building that is cut off
//! since, locked there after three wrong ones, and never written down.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use feiqian_tests::binaries::binary;
use feiqian_tests::stand::{Plan, Stand, Till, Told, wait_for};
use serde_json::{Value, json};

const CARD: &str = "card-1001";
const OTHER: &str = "card-1002";
/// Over the limit of a purchase, which is 10,000 yuan in a stand.
const MUCH: i64 = 1_200_000;

/// `feiqian-reconcile pin …`, with what is typed on standard input.
fn pin(stand: &Stand, action: &[&str], card: &str, typed: &str) -> Result<Output> {
    let mut command = Command::new(binary("feiqian-reconcile"));
    command.arg("pin").args(action).args(["--card", card]).env("FEIQIAN_DATA", &stand.centre.data);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("piped")?;
    // One that needs no PIN may have ended.
    let _ = input.write_all(typed.as_bytes());
    drop(input);
    Ok(child.wait_with_output()?)
}

fn pin_ok(stand: &Stand, action: &[&str], card: &str, typed: &str) -> Result<String> {
    let output = pin(stand, action, card, typed)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{action:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

fn pin_refused(stand: &Stand, action: &[&str], card: &str, typed: &str, words: &str) -> Result<()> {
    let output = pin(stand, action, card, typed)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains(words), "{action:?}: {said}");
    let digits = typed.trim();
    ensure!(digits.is_empty() || !said.contains(digits), "{action:?} repeats what was typed: {said}");
    Ok(())
}

fn with_pin(till: &Till, sequence: &str, card: &str, fen: i64, pin: &str) -> Result<Told> {
    let told = till.purchase(sequence, card, &json!({"amount_fen": fen, "pin": pin}))?;
    ensure!(told.status == 200 && told.authentic, "{told:?}");
    Ok(told)
}

fn ensure_declined(told: &Told, reason: &str, code: &str) -> Result<()> {
    ensure!(told.reason() == reason && told.body["code"] == code, "{reason} is expected, not {told:?}");
    Ok(())
}

/// Starts a building anew, with the centre where it is, or where nobody is.
fn restart(stand: &mut Stand, node: usize, in_reach: bool) -> Result<()> {
    let (config, address) = (stand.nodes[node].config.clone(), stand.centre_address());
    stand.nodes[node].stop()?;
    let text = std::fs::read_to_string(&config)?;
    let nobody = "127.0.0.1:9";
    let (from, to) = if in_reach { (nobody, address.as_str()) } else { (address.as_str(), nobody) };
    ensure!(text.contains(from), "{text}");
    std::fs::write(&config, text.replace(from, to))?;
    stand.nodes[node].start()?;
    if in_reach {
        let service = &stand.nodes[node];
        wait_for("a session", || Ok(service.status()?["link"] == "up"))?;
        stand.settle()?;
    }
    Ok(())
}

/// No file of the buildings and of the centre, and no log, holds any of these texts.
fn ensure_written_nowhere(stand: &Stand, texts: &[&str]) -> Result<()> {
    let mut directories = vec![stand.directory.path().to_owned()];
    let mut files = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.is_file() {
                let bytes = std::fs::read(&path)?;
                files += 1;
                for text in texts {
                    let found = bytes.windows(text.len()).any(|window| window == text.as_bytes());
                    ensure!(!found, "{text} stands in {}", path.display());
                }
            }
        }
    }
    ensure!(files > 10, "{files} files were looked at");
    Ok(())
}

#[test]
fn a_pin_pays_at_a_building_that_is_cut_off_and_is_locked_there_after_three_wrong_ones() -> Result<()> {
    let plan = Plan {
        buildings: vec!["canteen", "library"],
        accounts: vec![(CARD, 9_000_000), (OTHER, 9_000_000)],
        ..Plan::default()
    };
    let mut stand = Stand::start(plan)?;
    for (wrong, words) in
        [("12345\n", "6 digits"), ("12345a\n", "6 digits"), ("777777\n", "too easy"), ("", "nothing")]
    {
        pin_refused(&stand, &["set"], CARD, wrong, words)?;
    }
    pin_refused(&stand, &["set"], "nobody", "271829\n", "no account has this card")?;
    let canteen = stand.till(0)?;
    ensure_declined(&with_pin(&canteen, "0", CARD, MUCH, "271829")?, "pin_not_set", "86")?;
    pin_ok(&stand, &["set"], CARD, "271829\n")?;
    pin_ok(&stand, &["set"], OTHER, "141422\n")?;
    canteen.hold("right", CARD, 900_000)?;
    stand.settle()?;

    // Cut off, the right one pays over the limit; a retry gets the first answer.
    restart(&mut stand, 0, false)?;
    let canteen = stand.till(0)?;
    ensure_declined(&canteen.tap("1", CARD, MUCH)?, "pin_required", "70")?;
    let told = with_pin(&canteen, "2", CARD, MUCH, "271829")?;
    ensure!(told.approved_fen() == MUCH, "{told:?}");
    let again = with_pin(&canteen, "2", CARD, MUCH, "271829")?;
    ensure!(again.approved_fen() == MUCH && again.body["repeat"] == true, "{again:?}");
    // Three wrong ones, each sent twice, lock it: also for the right one, and through a restart.
    for sequence in ["3", "4", "5"] {
        for _ in 0..2 {
            ensure_declined(&with_pin(&canteen, sequence, CARD, MUCH, "271820")?, "wrong_pin", "55")?;
        }
    }
    ensure_declined(&with_pin(&canteen, "6", CARD, MUCH, "271829")?, "pin_locked", "75")?;
    stand.nodes[0].kill()?;
    stand.nodes[0].start()?;
    let canteen = stand.till(0)?;
    ensure_declined(&with_pin(&canteen, "7", CARD, MUCH, "271829")?, "pin_locked", "75")?;
    ensure!(canteen.tap("8", CARD, 500)?.approved_fen() == 500, "without a PIN as before");
    let library = stand.till(1)?;
    let told = with_pin(&library, "9", CARD, MUCH, "271829")?;
    ensure!(told.approved_fen() == MUCH, "it is locked where it was tried: {told:?}");

    // The other card is reported lost meanwhile: what its holder has proven by PIN stays with them.
    stand.centre.run_ok(["loss", "report", OTHER]);
    ensure!(with_pin(&canteen, "10", OTHER, MUCH, "141422")?.approved_fen() == MUCH, "not heard here");
    ensure!(canteen.tap("11", OTHER, 700)?.approved_fen() == 700, "not heard here");

    // The count comes to the centre, which unlocks it.
    restart(&mut stand, 0, true)?;
    let canteen = stand.till(0)?;
    let shown: Value = serde_json::from_str(&pin_ok(&stand, &["show", "--json"], CARD, "")?)?;
    ensure!(shown["state"] == "chosen" && shown["tries"]["canteen"] == 3, "{shown}");
    pin_ok(&stand, &["unlock"], CARD, "")?;
    stand.settle()?;
    let told = with_pin(&canteen, "12", CARD, MUCH, "271829")?;
    ensure!(told.approved_fen() == MUCH, "{told:?}");
    let loss = stand.cases()?;
    let refunded: Vec<_> = loss
        .iter()
        .filter(|case| case["reason"] == "loss")
        .map(|case| case["refunded_fen"].as_str())
        .collect();
    ensure!(refunded == ["700"], "{loss:?}");

    // Reset, the initial one pays nothing and opens its own change; then the new one pays, and no other.
    pin_ok(&stand, &["reset"], CARD, "12345X\n")?;
    stand.settle()?;
    ensure_declined(&with_pin(&canteen, "13", CARD, MUCH, "123450")?, "pin_not_set", "86")?;
    pin_refused(&stand, &["change"], CARD, "271829\n161804\n", "the PIN is wrong")?;
    pin_ok(&stand, &["change"], CARD, "123450\n161804\n")?;
    stand.settle()?;
    ensure_declined(&with_pin(&canteen, "14", CARD, MUCH, "123450")?, "wrong_pin", "55")?;
    let told = with_pin(&canteen, "15", CARD, MUCH, "161804")?;
    ensure!(told.approved_fen() == MUCH, "{told:?}");
    ensure!(stand.balances()?[OTHER] == 9_000_000 - MUCH, "{:?}", stand.balances()?);

    stand.settle()?;
    ensure_written_nowhere(&stand, &["271829", "271820", "141422", "161804"])?;
    stand.finish()
}

#[test]
fn more_pins_than_can_be_hashed_are_told_to_come_again_and_other_taps_go_on() -> Result<()> {
    let stand =
        Stand::start(Plan { accounts: vec![(CARD, 9_000_000), (OTHER, 9_000_000)], ..Plan::default() })?;
    let mut stand = stand;
    pin_ok(&stand, &["set"], CARD, "271829\n")?;
    stand.settle()?;
    let till = stand.till(0)?;
    let askers: Vec<_> = (0..80)
        .map(|number| {
            let till = till.clone();
            std::thread::spawn(move || {
                let body = json!({"amount_fen": 100, "pin": "271829"});
                till.purchase(&format!("p{number}"), CARD, &body)
            })
        })
        .collect();
    for number in 0..20 {
        ensure!(till.tap(&format!("n{number}"), OTHER, 100)?.approved_fen() == 100, "a tap without a PIN");
    }
    let (mut approved, mut busy) = (0, 0);
    for asker in askers {
        let told = asker.join().map_err(|_| anyhow::anyhow!("a terminal panicked"))??;
        match told.status {
            200 if told.approved_fen() == 100 => approved += 1,
            503 if told.code() == "busy" => busy += 1,
            _ => anyhow::bail!("{told:?}"),
        }
    }
    ensure!(approved >= 32 && busy > 0, "{approved} approved, {busy} told to come again");
    // Whoever was told so comes again, with the same key, and is served.
    for number in 0..80 {
        let told = with_pin(&till, &format!("p{number}"), CARD, 100, "271829")?;
        ensure!(told.approved_fen() == 100, "{told:?}");
    }
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 9_000_000 - 8_000, "each once: {:?}", stand.balances()?);
    stand.finish()
}

/// The answer of a kiosk to a holder who shows one PIN and chooses another.
fn change_at(kiosk: &Till, card: &str, shown: &str, chosen: &str) -> Result<Told> {
    let body = json!({"card": card, "pin": shown, "new_pin": chosen}).to_string();
    let told = kiosk.ask("/v1/pin", body.as_bytes())?;
    ensure!(told.authentic, "{told:?}");
    Ok(told)
}

#[test]
fn a_pin_is_changed_at_a_kiosk_that_is_cut_off_and_pays_once_the_centre_has_heard_of_it() -> Result<()> {
    const NEW: &str = "card-1003";
    /// Over the limit that is set here, and less than the right that the kiosk has.
    const SOME: i64 = 200_000;
    let plan = Plan {
        buildings: vec!["canteen", "kiosk"],
        accounts: vec![(CARD, 9_000_000), (OTHER, 9_000_000), (NEW, 9_000_000)],
        ..Plan::default()
    };
    let mut stand = Stand::centre_alone(plan)?;
    for (name, role) in [("canteen", "pos"), ("kiosk", "kiosk")] {
        let data = stand.path(name);
        stand.add_node(name, role, &data)?;
    }
    pin_ok(&stand, &["set"], CARD, "271829\n")?;
    pin_ok(&stand, &["reset"], OTHER, "12345X\n")?;
    stand.settle()?;
    stand.till(1)?.hold("right", CARD, 900_000)?;
    stand.centre.run_ok(["account", "limits", CARD, "--single", "10000"]);
    stand.settle()?;
    restart(&mut stand, 1, false)?;
    let (canteen, kiosk) = (stand.till(0)?, stand.till(1)?);

    // A wrong one counts, the right one is taken; of an initial one and of none the centre will judge.
    let told = change_at(&kiosk, CARD, "271820", "314152")?;
    ensure!(told.status == 422 && told.code() == "wrong_pin", "{told:?}");
    for (card, shown, chosen) in
        [(CARD, "271829", "314152"), (OTHER, "999990", "141422"), (NEW, "666666", "161804")]
    {
        let told = change_at(&kiosk, card, shown, chosen)?;
        ensure!(told.status == 200 && told.outcome() == "done", "{card}: {told:?}");
    }
    let told = change_at(&kiosk, CARD, "271829", "314153")?;
    ensure!(told.code() == "pin_waits", "{told:?}");
    // Until the centre has heard of it the one before pays, at the kiosk as elsewhere; and nothing is lost with the power.
    stand.nodes[1].kill()?;
    stand.nodes[1].start()?;
    let kiosk = stand.till(1)?;
    ensure_declined(&with_pin(&kiosk, "1", CARD, SOME, "314152")?, "wrong_pin", "55")?;
    let told = with_pin(&kiosk, "2", CARD, SOME, "271829")?;
    ensure!(told.approved_fen() == SOME, "the PIN before: {told:?}");
    ensure_declined(&with_pin(&canteen, "3", CARD, SOME, "314152")?, "wrong_pin", "55")?;

    restart(&mut stand, 1, true)?;
    let kiosk = stand.till(1)?;
    for (index, till) in [&canteen, &kiosk].into_iter().enumerate() {
        ensure_declined(&with_pin(till, &format!("4-{index}"), CARD, SOME, "271829")?, "wrong_pin", "55")?;
    }
    ensure!(with_pin(&canteen, "5", CARD, SOME, "314152")?.approved_fen() == SOME, "the new PIN");
    ensure!(with_pin(&canteen, "6", NEW, MUCH, "161804")?.approved_fen() == MUCH, "the first PIN");
    ensure_declined(&with_pin(&canteen, "7", OTHER, MUCH, "141422")?, "pin_not_set", "86")?;
    let status = stand.nodes[1].status()?;
    ensure!(status["settings_waiting"] == 0 && status["settings_refused"] == 1, "{status}");
    let shown: Value = serde_json::from_str(&pin_ok(&stand, &["show", "--json"], OTHER, "")?)?;
    ensure!(shown["state"] == "initial" && shown["tries"]["centre"] == 1, "{shown}");

    // An initial PIN opens its own change, and at a kiosk in session that is a matter of a moment.
    let told = change_at(&kiosk, OTHER, "123450", "141422")?;
    ensure!(told.status == 200, "{told:?}");
    stand.settle()?;
    ensure!(with_pin(&canteen, "8", OTHER, MUCH, "141422")?.approved_fen() == MUCH, "chosen at the kiosk");
    stand.settle()?;
    ensure_written_nowhere(&stand, &["271829", "314152", "141422", "161804"])?;
    stand.finish()
}
