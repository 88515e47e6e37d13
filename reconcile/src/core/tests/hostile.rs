//! Nodes with a real certificate that say what no node may mean: they are not believed, nobody else notices, and the
//! centre neither stops nor keeps what they say without bound.

use feiqian_protocol::account::{Document, Intent, actor_id};
use feiqian_protocol::entry::{EpochEnd, Release};
use feiqian_protocol::limits::{ASKS_PER_NODE_MAX, LOSSES_PER_ACCOUNT_MAX};

use super::*;

fn ask(account: u64, want: i64) -> Ask {
    Ask {
        account: AccountId(account),
        unit: Unit::Wallet(Wallet::Cash),
        epoch: Epoch::FIRST,
        want: Fen::new(want),
        at: u64::MAX,
        ms_left: u64::MAX,
    }
}

#[test]
fn an_ask_for_an_impossible_amount_is_not_answered() {
    let mut bench = campus_of(Mode::Strict, 2, &[1_000]);
    for want in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
        bench.frame(0, Frame::Ask(ask(1, want)));
    }
    assert!(bench.nodes[0].link.is_some());
    let status = bench.command(Command::Status {}).unwrap();
    assert_eq!(status["asks"], 0, "{status}");
    bench.check();
}

#[test]
fn asks_that_nobody_can_answer_are_bounded_in_number_and_time() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    bench.cut(0);
    // A session whose anchor it does not acknowledge: nothing is granted, and nothing is answered.
    let link = LinkId(99);
    let (node, hello) = (bench.nodes[0].id, bench.nodes[0].hello());
    let up = vec![Input::LinkUp { link, node, incarnation: 1, expired: false }, Input::Frame(link, hello)];
    let step = |bench: &mut Bench, inputs| bench.core.step(bench.now, inputs, &mut Vec::new()).unwrap();
    step(&mut bench, up);
    let waiting = |bench: &mut Bench| {
        let mut outputs = Vec::new();
        bench
            .core
            .step(bench.now, vec![Input::Command(Ticket(1), Command::Status {})], &mut outputs)
            .unwrap();
        let status = outputs.into_iter().find_map(|output| match output {
            Output::Reply(_, reply) => Some(reply.unwrap()),
            _ => None,
        });
        status.unwrap()["asks"].as_u64().unwrap()
    };
    for batch in 0..4 {
        let asks = (0..1_000).map(|number| Input::Frame(link, Frame::Ask(ask(batch * 1_000 + number, 5))));
        step(&mut bench, asks.collect());
    }
    assert_eq!(waiting(&mut bench), ASKS_PER_NODE_MAX as u64);
    bench.advance(10_001);
    assert_eq!(waiting(&mut bench), 0);
}

#[test]
fn a_release_of_nothing_makes_no_wallet() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    let wall = bench.now.wall;
    let release = Release {
        account: AccountId(77),
        wallet: Wallet::Cash,
        epoch: Epoch::FIRST,
        amount: Fen::new(5),
        released_total: Fen::new(5),
    };
    bench.nodes[0].write(wall, Proof::None, release);
    bench.upload(0);
    bench.debit(0, 77, 300, 0);
    bench.upload(0);
    assert_eq!(bench.number("SELECT COUNT(*) FROM wallets WHERE account = 77"), 0);
    assert_eq!(bench.number("SELECT balance FROM ledger WHERE ledger = 'suspense'"), -300);
    bench.import(&[("c2", 0)]).unwrap();
    bench.check();
}

#[test]
fn amounts_at_the_end_of_64_bits_are_kept_and_count_for_nothing() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    let before = bench.number("SELECT SUM(funds) FROM wallets");
    for (from_right, stand_in) in [(i64::MAX, i64::MAX), (i64::MIN, i64::MIN), (i64::MIN, 0), (0, i64::MAX)] {
        bench.debit(0, 1, from_right, stand_in);
    }
    let wall = bench.now.wall;
    let most = Fen::new(i64::MAX);
    let reversal = Reversal {
        tap: TapRef { epoch: 1, sequence: key("r") },
        debit: u64::MAX,
        account: AccountId(1),
        wallet: Wallet::Cash,
        epoch: Epoch(u32::MAX),
        right_back: most,
        right_home: most,
        stand_in_home: Fen::new(i64::MIN),
        allowance_back: most,
        day: BusinessDay(i32::MIN),
    };
    bench.nodes[0].write(wall, Proof::None, reversal);
    bench.upload(0);
    assert_eq!(bench.nodes[0].acked(), 5);
    assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 5);
    assert_eq!(bench.number("SELECT SUM(funds) FROM wallets"), before);
    bench.check();
}

#[test]
fn a_node_that_ends_its_epoch_unasked_gets_nothing_any_more() {
    let mut bench = campus_of(Mode::Strict, 2, &[1_000, 1_000]);
    let wall = bench.now.wall;
    let end = |bench: &mut Bench, epoch| {
        bench.nodes[0].write(wall, Proof::None, EpochEnd { epoch: Epoch(epoch) });
    };
    end(&mut bench, 1);
    bench.upload(0);
    let state = bench.text("SELECT state || ', ' || reason FROM nodes WHERE node = 1");
    assert_eq!(state, "closed, ended its epoch");
    assert_eq!(bench.number("SELECT out FROM nodes WHERE node = 1"), 0);
    assert_eq!(bench.number("SELECT out FROM nodes WHERE node = 2"), 2_000, "the other has all of it");
    let told = bench.number("SELECT COUNT(*) FROM entries WHERE log = 1");
    for epoch in 2..200 {
        end(&mut bench, epoch);
    }
    bench.upload(0);
    assert_eq!(bench.number("SELECT epoch FROM nodes WHERE node = 1"), 200);
    assert_eq!(
        bench.number("SELECT COUNT(*) FROM entries WHERE log = 1"),
        told,
        "and nothing is written for it"
    );
    assert_eq!(bench.number("SELECT COUNT(*) FROM closings"), 1);
    bench.check();
}

#[test]
fn the_end_of_an_old_epoch_is_found_by_an_index() {
    let bench = campus_of(Mode::Strict, 1, &[1_000]);
    let sql = "EXPLAIN QUERY PLAN SELECT account, wallet FROM rights WHERE node = ?1 AND epoch = ?2 AND residue <> 0";
    let plan: String = bench.core.connection().query_row(sql, [1, 1], |row| row.get("detail")).unwrap();
    assert!(plan.contains("rights_with_residue"), "{plan}");
}

#[test]
fn a_kiosk_that_reports_without_end_keeps_nobody_from_lifting_and_reporting() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    let kiosk = bench.enrol("kiosk", Role::Kiosk);
    bench.connect(kiosk);
    let saved: Vec<u8> =
        bench.core.connection().query_row("SELECT document FROM accounts", [], |row| row.get(0)).unwrap();
    let author = actor_id(INSTITUTION, bench.nodes[kiosk].id, 1, 1, AccountId(1));
    let mut document = Document::load(&saved, author).unwrap();
    let wall = bench.now.wall;
    let mut mark = Cursor::START;
    while bench.number("SELECT COUNT(*) FROM faults") == 0 {
        for _ in 0..32 {
            // Keys that differ all over, so that a document cannot leave much of them out.
            mark = mark.after(bench.nodes[kiosk].log(), b"");
            let loss = key(&feiqian_protocol::chain::hex(&mark.hash));
            let intent = Intent::ReportLoss { card: card("c1"), loss };
            let change = document.carry_out(&intent, wall).unwrap().into();
            let setting =
                Setting { account: AccountId(1), document_epoch: 1, intent, change, typed: None, of: None };
            bench.nodes[kiosk].write(wall, Proof::Login, setting);
        }
        bench.upload(kiosk);
        assert!(mark.position < 2_000, "reports are bounded");
    }
    let taken = bench.number("SELECT COUNT(*) FROM losses");
    assert_eq!(taken, LOSSES_PER_ACCOUNT_MAX as i64);
    let operator = key("li");
    let card = card("c1");
    let lifted = bench.command(Command::LiftLoss { card: card.clone(), operator: operator.clone() }).unwrap();
    assert_eq!(lifted["lifted"], taken);
    bench.command(Command::ReportLoss { card: card.clone(), operator: operator.clone() }).unwrap();
    let again = bench.command(Command::LiftLoss { card, operator }).unwrap();
    assert_eq!(again["lifted"], 1);
    bench.check();
}

#[test]
fn an_import_of_what_fits_no_entry_is_refused_by_row() {
    let mut bench = campus_of(Mode::Strict, 1, &[]);
    let account = |class: String, groups: usize| {
        let groups: Vec<Value> = (0..groups).map(|number| json!(format!("group-{number:058}"))).collect();
        json!({ "card": "c1", "patron_class": class, "opening_fen": 0, "groups": groups })
    };
    for (account, expected) in [
        (account("x".repeat(100_000), 0), "patron class"),
        (account(String::new(), 0), "patron class"),
        (account("student".to_owned(), 20_000), "no room"),
    ] {
        let command = json!({ "command": "import_accounts", "accounts": [account] });
        let error = bench.command(serde_json::from_value(command).unwrap()).unwrap_err();
        assert_eq!(error.code, "account");
        assert!(
            error.message.starts_with("row 1: ") && error.message.contains(expected),
            "{}",
            error.message
        );
    }
    assert_eq!(bench.number("SELECT COUNT(*) FROM accounts"), 0);
}
