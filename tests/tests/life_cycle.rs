//! A holder's account and cards from the first day to the last, over a centre and three buildings of which one or two are cut off
//! whenever something changes: what each of them says at each step, and that all of them agree in the end.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use feiqian_protocol::code::PhoneAlgorithm;
use feiqian_sim::phone::Phone;
use feiqian_tests::binaries::binary;
use feiqian_tests::kept::number;
use feiqian_tests::stand::{Plan, Stand, Told, wait_for};
use serde_json::{Value, json};

const CANTEEN: usize = 0;
const KIOSK: usize = 1;
const DESK: usize = 2;
const ALL: [usize; 3] = [CANTEEN, KIOSK, DESK];

/// Nobody listens there.
const NOBODY: &str = "127.0.0.1:9";

/// The campus, and what the holder has paid.
struct Walk {
    stand: Stand,
    taps: u32,
    paid: i64,
}

impl Walk {
    fn begin() -> Result<Self> {
        let plan = Plan {
            buildings: vec!["canteen", "kiosk", "desk"],
            accounts: vec![("card-1001", 100_000)],
            ..Plan::default()
        };
        let mut stand = Stand::centre_alone(plan)?;
        for (name, role) in [("canteen", "pos"), ("kiosk", "kiosk"), ("desk", "desk")] {
            let data = stand.path(name);
            stand.add_node(name, role, &data)?;
        }
        stand.settle()?;
        Ok(Self { stand, taps: 0, paid: 0 })
    }

    /// The centre's command line, with what is typed on standard input.
    fn centre(&self, arguments: &[&str], typed: &str) -> Result<String> {
        let mut command = Command::new(binary("feiqian-reconcile"));
        command.args(arguments).env("FEIQIAN_DATA", &self.stand.centre.data);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().context("piped")?;
        // One that reads nothing may have ended.
        let _ = input.write_all(typed.as_bytes());
        drop(input);
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same where it must be refused, with these words.
    fn refused(&self, arguments: &[&str], words: &str) -> Result<()> {
        let output = self.stand.centre.run(arguments.iter().copied());
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(words), "{arguments:?}: {said}");
        Ok(())
    }

    fn account(&self, card: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.centre(&["account", "show", card, "--json"], "")?)?)
    }

    /// Starts a building anew where it cannot reach the centre.
    fn cut(&mut self, node: usize) -> Result<()> {
        let address = self.stand.centre_address();
        self.restart(node, &address, NOBODY)
    }

    /// The building has its network again; it is waited for until it has said and heard everything.
    fn mend(&mut self, node: usize) -> Result<()> {
        let address = self.stand.centre_address();
        self.restart(node, NOBODY, &address)?;
        self.spread(&[node])
    }

    fn restart(&mut self, node: usize, from: &str, to: &str) -> Result<()> {
        let service = &mut self.stand.nodes[node];
        service.stop()?;
        let text = std::fs::read_to_string(&service.config)?;
        ensure!(text.contains(from), "{text}");
        std::fs::write(&service.config, text.replace(from, to))?;
        service.start()
    }

    /// Waits until these buildings have said what they did and heard what the centre has.
    fn spread(&self, nodes: &[usize]) -> Result<()> {
        let mut quiet = 0;
        wait_for("word of it", || {
            let centre = self.stand.centre.status()?;
            let mut all = true;
            for node in nodes {
                let status = self.stand.nodes[*node].status()?;
                all &= status["link"] == "up"
                    && status["position"] == status["acked"]
                    && status["shards"] == centre["shards"];
            }
            quiet = if all { quiet + 1 } else { 0 };
            Ok(quiet >= 3)
        })
    }

    /// What a building says to a purchase: `approved`, or the reason why not.
    fn buy(&mut self, node: usize, card: &str, fen: i64, pin: Option<&str>) -> Result<String> {
        self.taps += 1;
        let mut amount = json!({"amount_fen": fen});
        if let Some(pin) = pin {
            amount["pin"] = json!(pin);
        }
        let told = self.stand.till(node)?.purchase(&format!("t{}", self.taps), card, &amount)?;
        ensure!(told.status == 200 && told.authentic, "{told:?}");
        if told.approved_fen() == fen {
            self.paid += fen;
            return Ok("approved".to_owned());
        }
        Ok(told.reason().to_owned())
    }

    /// Every building is asked for a purchase, and each must say what is expected of it.
    fn each(&mut self, step: &str, card: &str, fen: i64, expected: [&str; 3]) -> Result<()> {
        for (node, expected) in ALL.into_iter().zip(expected) {
            let said = self.buy(node, card, fen, None)?;
            ensure!(said == expected, "{step}: building {node} says {said}, not {expected}");
        }
        Ok(())
    }

    fn set(&self, node: usize, body: &Value) -> Result<()> {
        let told = self.stand.till(node)?.ask("/v1/settings", body.to_string().as_bytes())?;
        ensure!(told.status == 200 && told.authentic && told.outcome() == "done", "{told:?}");
        Ok(())
    }

    /// A terminal shows what was signed for a card.
    fn show(&self, node: usize, card: &str, issuance: &str) -> Result<Told> {
        let body = json!({"card": card, "change": "show_card", "issuance": issuance});
        self.stand.till(node)?.ask("/v1/settings", body.to_string().as_bytes())
    }

    /// Brings right and allowance to these buildings, to be spent there whoever is cut off.
    fn hold(&mut self, card: &str, nodes: &[usize], fen: i64) -> Result<()> {
        for node in nodes {
            self.taps += 1;
            self.stand.till(*node)?.hold(&format!("h{}", self.taps), card, fen)?;
        }
        self.spread(nodes)
    }
}

/// What the centre has signed for a new card, as it prints it.
fn shown_with(account: &str) -> Result<String> {
    let line = account.lines().find(|line| line.contains("for the new card")).context("an issuance")?;
    Ok(line.rsplit(' ').next().context("a word")?.to_owned())
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_millis()).expect("before the year 292277026")
}

#[test]
fn a_holder_goes_from_the_first_day_to_the_last_while_buildings_are_cut_off() -> Result<()> {
    let mut walk = Walk::begin()?;
    opened_activated_and_topped_up(&mut walk)?;
    lost_lifted_and_reissued(&mut walk)?;
    exchanged_frozen_and_limited(&mut walk)?;
    with_a_phone(&mut walk)?;
    closed(&mut walk)?;
    // Everybody holds the same, and each holds together.
    walk.stand.settle()?;
    let digest = walk.stand.centre.verify()?["digest_tables"].clone();
    for node in &walk.stand.nodes {
        let report = node.verify()?;
        ensure!(report["digest_tables"] == digest && report["digest_folded"] == digest, "{digest}: {report}");
    }
    walk.stand.finish()
}

/// The kiosk is away while the account is opened and the card activated; it hears of both at once.
fn opened_activated_and_topped_up(walk: &mut Walk) -> Result<()> {
    let file = walk.stand.path("blank.txt");
    std::fs::write(&file, "b-1\nb-2\nb-3\n")?;
    walk.centre(&["card", "stock", file.to_str().context("UTF-8 path")?], "")?;
    walk.cut(KIOSK)?;
    let open = [
        "account",
        "open",
        "--number",
        "25001",
        "--name",
        "李雷",
        "--class",
        "student",
        "--department",
        "maths",
    ];
    let opened = walk.centre(&open, "12345X\n")?;
    ensure!(opened.contains("card b-1"), "{opened}");
    walk.spread(&[CANTEEN, DESK])?;
    walk.each("opened", "b-1", 100, ["card_inactive", "unknown_card", "card_inactive"])?;

    let list = walk.centre(&["card", "pick-up", "list", "--department", "maths"], "")?;
    ensure!(list.contains("1 to be picked up"), "{list}");
    walk.centre(&["card", "pick-up", "hand-over", "--department", "maths"], "")?;
    walk.centre(&["topup", "--card", "b-1", "--yuan", "500", "--channel", "counter", "--key", "first"], "")?;
    walk.spread(&[CANTEEN, DESK])?;
    walk.each("picked up", "b-1", 100, ["card_inactive", "unknown_card", "card_inactive"])?;

    // The initial PIN opens its own change, and nothing else.
    walk.centre(&["pin", "change", "--card", "b-1"], "123450\n271829\n")?;
    walk.refused(&["card", "pick-up", "missing", "b-1"], "picked up")?;
    walk.centre(&["card", "activate", "b-1", "--pin"], "271829\n")?;
    walk.spread(&[CANTEEN, DESK])?;
    walk.each("activated", "b-1", 100, ["approved", "unknown_card", "approved"])?;
    walk.mend(KIOSK)?;
    walk.each("known everywhere", "b-1", 200, ["approved"; 3])?;
    let bind = ["account", "bind", "--number", "25001", "--name", "李雷", "--user", "wx-1"];
    walk.centre(&bind, "271829\n")?;
    walk.centre(&["login", "set", "--card", "b-1"], "correct horse\n")?;
    walk.centre(&["login", "check", "--card", "b-1"], "correct horse\n")?;
    walk.spread(&ALL)
}

/// The loss is reported at a kiosk that is cut off, while the canteen is cut off as well; the power of the kiosk fails right
/// after it has said that it acts.
fn lost_lifted_and_reissued(walk: &mut Walk) -> Result<()> {
    walk.hold("b-1", &ALL, 3_000)?;
    walk.cut(CANTEEN)?;
    walk.cut(KIOSK)?;
    walk.set(KIOSK, &json!({"card": "b-1", "change": "report_loss"}))?;
    walk.stand.nodes[KIOSK].kill()?;
    walk.stand.nodes[KIOSK].start()?;
    std::thread::sleep(Duration::from_millis(20));
    let before = walk.paid;
    walk.each("lost at the kiosk", "b-1", 300, ["approved", "lost", "approved"])?;
    walk.spread(&[DESK])?;
    walk.mend(KIOSK)?;
    walk.spread(&[KIOSK, DESK])?;
    walk.each("told by the kiosk", "b-1", 300, ["approved", "lost", "lost"])?;
    let loss: Value = serde_json::from_str(&walk.centre(&["loss", "show", "b-1", "--json"], "")?)?;
    ensure!(
        loss["known"] == 2 && loss["buildings"] == 3 && loss["unaware"][0]["node"] == "canteen",
        "{loss}"
    );
    walk.mend(CANTEEN)?;
    walk.each("known everywhere", "b-1", 300, ["lost"; 3])?;
    let loss: Value = serde_json::from_str(&walk.centre(&["loss", "show", "b-1", "--json"], "")?)?;
    ensure!(loss["known"] == 3 && loss["at_most_fen"] == 0, "{loss}");
    let refunded: i64 = walk.stand.cases()?.iter().map(|case| number(case, "refunded_fen")).sum();
    ensure!(
        refunded == walk.paid - before && refunded == 900,
        "refunded {refunded}: {:?}",
        walk.stand.cases()?
    );
    walk.paid = before;

    // Found again: who has not heard of the lift stays on the safe side.
    walk.cut(CANTEEN)?;
    walk.centre(&["loss", "lift", "b-1"], "")?;
    walk.spread(&[KIOSK, DESK])?;
    walk.each("lifted", "b-1", 100, ["lost", "approved", "approved"])?;
    walk.mend(CANTEEN)?;
    walk.each("lifted everywhere", "b-1", 100, ["approved"; 3])?;

    // Lost for good: the new card is good at once where it is known, the old one where it is not known to be void.
    walk.hold("b-1", &ALL, 2_000)?;
    walk.cut(KIOSK)?;
    walk.centre(&["loss", "report", "b-1"], "")?;
    std::thread::sleep(Duration::from_millis(20));
    let replaced = walk.centre(&["card", "replace", "b-1", "--new", "b-2"], "")?;
    walk.spread(&[CANTEEN, DESK])?;
    walk.each("reissued", "b-2", 150, ["approved", "unknown_card", "approved"])?;
    let before = walk.paid;
    walk.each("the old one", "b-1", 150, ["void", "approved", "void"])?;
    walk.paid = before;

    // The holder brings the centre's word for it.
    let issuance = shown_with(&replaced)?;
    let (terms, signature) = issuance.split_at(issuance.len() - 20);
    let forged = format!("{terms}{}{}", if signature.starts_with('A') { 'B' } else { 'A' }, &signature[1..]);
    let told = walk.show(KIOSK, "b-2", &forged)?;
    ensure!(told.code() == "not_issued", "{told:?}");
    let told = walk.show(KIOSK, "b-1", &issuance)?;
    ensure!(told.code() == "other_card", "{told:?}");
    let told = walk.show(KIOSK, "b-2", &issuance)?;
    ensure!(told.status == 200 && told.outcome() == "done", "{told:?}");
    walk.each("shown", "b-2", 150, ["approved"; 3])?;
    walk.each("the old one, where the new one was shown", "b-1", 150, ["void"; 3])?;
    walk.mend(KIOSK)?;
    walk.each("reissued everywhere", "b-2", 150, ["approved"; 3])?;
    walk.each("the old one everywhere", "b-1", 150, ["void"; 3])?;
    walk.refused(&["loss", "lift", "b-2"], "not reported lost")
}

/// Two buildings are away by turns while the card is exchanged, the account frozen, and the limit lowered.
fn exchanged_frozen_and_limited(walk: &mut Walk) -> Result<()> {
    walk.hold("b-2", &ALL, 2_000)?;
    walk.cut(CANTEEN)?;
    walk.cut(DESK)?;
    let exchanged = walk.centre(&["card", "exchange", "b-2"], "")?;
    ensure!(exchanged.contains("b-3: active") && exchanged.contains("b-2: void"), "{exchanged}");
    walk.spread(&[KIOSK])?;
    walk.each("exchanged", "b-3", 120, ["unknown_card", "approved", "unknown_card"])?;
    walk.each("the worn one", "b-2", 120, ["approved", "void", "approved"])?;
    walk.mend(CANTEEN)?;
    walk.each("the canteen knows it", "b-3", 120, ["approved", "approved", "unknown_card"])?;

    // The desk, still away, is shown the centre's word for it, and freezes by the new card.
    let issuance = shown_with(&exchanged)?;
    let data = walk.stand.nodes[DESK].data.clone();
    let shown = Command::new(binary("feiqian-node"))
        .args(["set", "shown", &issuance, "--data"])
        .arg(data)
        .output()?;
    let said = String::from_utf8_lossy(&shown.stdout);
    ensure!(shown.status.success() && said.contains("can be used here now"), "{shown:?}");
    walk.each("shown at the desk", "b-3", 120, ["approved"; 3])?;
    walk.each("the worn one there", "b-2", 120, ["void"; 3])?;
    walk.set(DESK, &json!({"card": "b-3", "change": "freeze", "operator": "li.lei"}))?;
    walk.each("frozen at the desk", "b-3", 120, ["approved", "approved", "frozen"])?;
    walk.mend(DESK)?;
    walk.spread(&ALL)?;
    walk.each("frozen everywhere", "b-3", 120, ["frozen"; 3])?;
    walk.cut(CANTEEN)?;
    walk.centre(&["account", "unfreeze", "b-3"], "")?;
    walk.spread(&[KIOSK, DESK])?;
    walk.each("thawed", "b-3", 120, ["frozen", "approved", "approved"])?;
    walk.mend(CANTEEN)?;
    walk.each("thawed everywhere", "b-3", 120, ["approved"; 3])?;

    walk.hold("b-3", &ALL, 2_000)?;
    walk.cut(KIOSK)?;
    walk.set(KIOSK, &json!({"card": "b-3", "change": "lower_limits", "single_limit_fen": 500}))?;
    walk.each("lowered at the kiosk", "b-3", 501, ["approved", "pin_required", "approved"])?;
    let said = walk.buy(KIOSK, "b-3", 501, Some("271829"))?;
    ensure!(said == "approved", "by PIN, cut off: {said}");
    walk.mend(KIOSK)?;
    walk.spread(&ALL)?;
    walk.each("lowered everywhere", "b-3", 501, ["pin_required"; 3])?;
    walk.refused(&["account", "limits", "b-3", "--single", "99999999999"], "from 0 to")?;
    walk.centre(&["account", "limits", "b-3", "--single", "1000000"], "")?;
    walk.spread(&ALL)
}

/// A phone becomes a card while the kiosk is away, and lives on when the physical card is lost.
fn with_a_phone(walk: &mut Walk) -> Result<()> {
    let key = walk.centre(&["virtual-card", "key", "--days", "30"], "")?;
    let file = walk.stand.path("campus.toml");
    let campus = std::fs::read_to_string(&file)?;
    std::fs::write(&file, format!("{campus}{key}"))?;
    walk.centre(&["publish", "--campus", file.to_str().context("UTF-8 path")?], "")?;
    walk.spread(&ALL)?;
    walk.hold("b-3", &ALL, 2_000)?;
    walk.cut(KIOSK)?;
    let mut phone = Phone::new(PhoneAlgorithm::P256)?;
    walk.centre(&["virtual-card", "activate", "--card", "b-3", "--key", &phone.key()?], "")?;
    let voucher = walk.stand.centre.ask(&json!({"command": "voucher", "card": phone.card()?}))?;
    phone.keep(&voucher, now_ms())?;
    walk.spread(&[CANTEEN, DESK])?;
    let mut show = |walk: &mut Walk, node: usize| -> Result<String> {
        walk.taps += 1;
        let code = phone.code(now_ms())?.to_digits();
        let body = json!({
            "epoch": 1, "sequence": format!("q{}", walk.taps), "code": code, "kind": "purchase", "amount_fen": 130,
        });
        let told = walk.stand.till(node)?.ask("/v1/taps", body.to_string().as_bytes())?;
        walk.paid += told.approved_fen();
        Ok(if told.approved_fen() == 130 { "approved".to_owned() } else { told.reason().to_owned() })
    };
    for node in [CANTEEN, DESK] {
        let said = show(walk, node)?;
        ensure!(said == "approved", "a code at {node}: {said}");
    }
    // The kiosk has not heard the centre since it was started, so it takes the PIN for the time of a code.
    let said = show(walk, KIOSK)?;
    ensure!(said == "pin_required", "a code at the kiosk: {said}");
    walk.mend(KIOSK)?;
    walk.centre(&["loss", "report", "b-3"], "")?;
    walk.spread(&ALL)?;
    walk.each("the card is lost", "b-3", 130, ["lost"; 3])?;
    for node in ALL {
        let said = show(walk, node)?;
        ensure!(said == "approved", "the phone lives on at {node}: {said}");
    }
    walk.centre(&["loss", "lift", "b-3"], "")?;
    walk.spread(&ALL)
}

/// The account is closed while the canteen is away with some of its money.
fn closed(walk: &mut Walk) -> Result<()> {
    walk.hold("b-3", &ALL, 3_000)?;
    walk.cut(CANTEEN)?;
    let said = walk.centre(&["account", "close", "b-3", "--channel", "bank"], "")?;
    ensure!(said.contains("closed") && said.contains("waits for canteen"), "{said}");
    walk.spread(&[KIOSK, DESK])?;
    walk.each("closed", "b-3", 140, ["approved", "closed", "closed"])?;
    let account = walk.account("b-3")?;
    let closing = &account["closing"];
    ensure!(closing["state"] == "closing" && closing["paid_fen"] == 0, "{closing}");
    ensure!(
        closing["waits_for"][0]["node"] == "canteen" && closing["waits_for"][0]["knows"] == false,
        "{closing}"
    );
    walk.refused(&["account", "close", "b-3"], "closed already")?;
    // Through a restart of the centre.
    walk.stand.centre.kill()?;
    walk.stand.centre.start()?;
    walk.mend(CANTEEN)?;
    wait_for("the payout", || Ok(walk.account("b-3")?["closing"]["state"] == "paid_out"))?;
    walk.spread(&ALL)?;
    walk.each("closed everywhere", "b-3", 140, ["closed"; 3])?;
    let closing = walk.account("b-3")?["closing"].clone();
    ensure!(closing["paid_fen"] == 50_000 - walk.paid, "{closing}, {} was paid", walk.paid);
    let channel: i64 = walk
        .stand
        .export("postings")?
        .iter()
        .filter(|line| line["ledger"] == "channel:bank")
        .map(|line| number(line, "amount_fen"))
        .sum();
    ensure!(channel == 50_000 - walk.paid, "{channel} on the ledger");
    walk.refused(&["card", "replace", "b-3", "--new", "b-4"], "closed")?;
    walk.refused(&["topup", "--card", "b-3", "--fen", "1", "--channel", "counter", "--key", "late"], "closed")
}
