//! Closing an account: what is out comes home, what it has is paid out, and nothing is handed out of it any more.

use feiqian_protocol::account::Intent;
use feiqian_protocol::entry::Release;

use super::*;

fn shown(bench: &mut Bench, card_text: &str) -> Value {
    bench.command(Command::Account { card: card(card_text) }).unwrap()["closing"].clone()
}

fn state(bench: &mut Bench, card_text: &str) -> String {
    shown(bench, card_text)["state"].as_str().unwrap().to_owned()
}

/// What a node was granted of the cash of an account.
fn granted(bench: &Bench, index: usize, account: u64) -> i64 {
    bench.nodes[index].granted.get(&AccountId(account)).map_or(0, |fen| fen.get())
}

/// Recalls of an account that a node has heard.
fn recalls(bench: &Bench, index: usize, account: u64) -> Vec<Fen> {
    let recalls = bench.nodes[index].heard.iter().filter_map(|frame| match frame {
        Frame::Recall(recall) if recall.account == AccountId(account) && recall.amount.is_positive() => {
            Some(recall.amount)
        }
        _ => None,
    });
    recalls.collect()
}

/// A node gives so much back and says so.
fn release(bench: &mut Bench, index: usize, account: u64, fen: i64) {
    let (account, wall, wallet) = (AccountId(account), bench.now.wall, Wallet::Cash);
    let amount = Fen::new(fen);
    let release = Release { account, wallet, epoch: Epoch::FIRST, amount, released_total: amount };
    let at = bench.nodes[index].write(wall, Proof::None, release);
    bench.upload(index);
    bench.frame(index, Frame::Recalled(Recalled { account, unit: Unit::Wallet(wallet), at }));
}

fn holding_back(bench: &mut Bench) {
    for node in &mut bench.nodes {
        node.obeys = false;
    }
}

#[test]
fn an_account_is_paid_out_once_everything_is_home() {
    let mut bench = campus_of(Mode::Strict, 2, &[5_000, 700]);
    holding_back(&mut bench);
    let (first, second) = (granted(&bench, 0, 1), granted(&bench, 1, 1));
    assert_eq!(first + second, 5_000);
    bench.debit(0, 1, 300, 0);
    for own in ["write_off", "migration"] {
        for (channel, subsidy_channel) in [(own, "subsidy"), ("counter", own)] {
            let (channel, subsidy_channel) = (key(channel), key(subsidy_channel));
            let close =
                Command::CloseAccount { card: card("c1"), channel, subsidy_channel, operator: key("op") };
            assert_eq!(bench.command(close).unwrap_err().code, "channel");
        }
    }
    let reply = bench.close("c1").unwrap();
    assert_eq!(reply["closed"], json!(true));
    assert_eq!(state(&mut bench, "c1"), "closing");
    assert_eq!(recalls(&bench, 0, 1), [Fen::new(first)]);
    bench.upload(0);
    release(&mut bench, 0, 1, first - 300);
    let waits = shown(&mut bench, "c1");
    assert_eq!(waits["waits_for"].as_array().unwrap().len(), 1, "{waits}");
    assert_eq!((&waits["waits_for"][0]["node"], &waits["held_fen"]), (&json!("n2"), &json!(4_700)));
    assert_eq!(bench.number("SELECT funds FROM wallets WHERE account = 1"), 4_700);
    release(&mut bench, 1, 1, second);
    let done = shown(&mut bench, "c1");
    assert_eq!((&done["state"], &done["paid_fen"]), (&json!("paid_out"), &json!(4_700)), "{done}");
    assert_eq!(bench.number("SELECT balance FROM ledger WHERE ledger = 'channel:counter'"), 4_700);
    assert_eq!(bench.number("SELECT funds FROM wallets WHERE account = 1"), 0);
    assert_eq!(bench.number("SELECT funds FROM wallets WHERE account = 2"), 700, "somebody else's");
    bench.check();

    // For ever, and nothing comes in.
    assert_eq!(bench.close("c1").unwrap_err().code, "closed");
    assert_eq!(bench.topup("c1", 100, "late").unwrap_err().code, "closed");
    let replace = crate::io::SettingCommand::ReplaceCard { new_card: card("c9") };
    let replace = Command::ChangeSetting { card: card("c1"), change: replace, operator: key("op") };
    assert_eq!(bench.command(replace).unwrap_err().code, "closed");
    bench.cut(0);
    bench.connect(0);
    assert_eq!(granted(&bench, 0, 1), first, "nothing is granted of it any more");
    bench.check();
}

#[test]
fn what_comes_back_after_the_payout_is_paid_out_too() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    holding_back(&mut bench);
    let debit = bench.debit(0, 1, 1_000, 0);
    bench.upload(0);
    bench.close("c1").unwrap();
    release(&mut bench, 0, 1, 4_000);
    assert_eq!(shown(&mut bench, "c1")["paid_fen"], json!(4_000));
    bench.reverse(0, 1, debit, 400);
    bench.upload(0);
    assert_eq!(state(&mut bench, "c1"), "closing", "it is a right of the building again");
    release(&mut bench, 0, 1, 400);
    let done = shown(&mut bench, "c1");
    assert_eq!((&done["state"], &done["paid_fen"]), (&json!("paid_out"), &json!(4_400)), "{done}");
    bench.check();
}

#[test]
fn what_comes_back_in_a_row_that_was_given_up_is_paid_out_once_its_building_has_released_it() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    holding_back(&mut bench);
    let debit = bench.debit(0, 1, 1_000, 0);
    bench.upload(0);
    bench.cut(0);
    bench.close("c1").unwrap();
    bench.advance(8 * 24 * 3_600_000);
    bench.step(vec![Input::Timer]);
    assert_eq!(shown(&mut bench, "c1")["given_up_fen"], json!(4_000));
    bench.reverse(0, 1, debit, 400);
    bench.connect(0);
    bench.upload(0);
    assert_eq!(shown(&mut bench, "c1")["paid_fen"], json!(4_000), "it may have been spent there");
    assert_eq!(recalls(&bench, 0, 1), [Fen::new(400)]);
    // What was given up is paid out already.
    release(&mut bench, 0, 1, 4_400);
    let done = shown(&mut bench, "c1");
    assert_eq!((&done["state"], &done["paid_fen"]), (&json!("paid_out"), &json!(4_400)), "{done}");
    assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 0);
    bench.check();
}

#[test]
fn a_building_out_of_reach_is_waited_for_until_the_term_and_its_late_word_is_a_case() {
    let mut bench = campus_of(Mode::Strict, 2, &[5_000]);
    holding_back(&mut bench);
    let (first, second) = (granted(&bench, 0, 1), granted(&bench, 1, 1));
    bench.cut(1);
    bench.close("c1").unwrap();
    release(&mut bench, 0, 1, first);
    bench.advance(6 * 24 * 3_600_000);
    bench.step(vec![Input::Timer]);
    assert_eq!(state(&mut bench, "c1"), "closing");
    bench.advance(2 * 24 * 3_600_000);
    bench.step(vec![Input::Timer]);
    let done = shown(&mut bench, "c1");
    assert_eq!((&done["state"], &done["paid_fen"]), (&json!("paid_out"), &json!(5_000)), "{done}");
    assert_eq!(done["given_up_fen"], json!(second));
    bench.check();

    // It had sold before it heard, and gives the rest back when it has.
    bench.debit(1, 1, 200, 0);
    bench.connect(1);
    bench.upload(1);
    let wall = bench.now.wall;
    let amount = Fen::new(second - 200);
    let back = Release {
        account: AccountId(1),
        wallet: Wallet::Cash,
        epoch: Epoch::FIRST,
        amount,
        released_total: amount,
    };
    bench.nodes[1].write(wall, Proof::None, back);
    bench.upload(1);
    assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 0, "it has done nothing wrong");
    assert_eq!(state(&mut bench, "c1"), "owes");
    let cases = bench.exported(Table::Cases, Format::Csv);
    assert!(cases.contains("c1,after_close,") && cases.contains(",200,0,0"), "{cases}");
    assert_eq!(bench.topup("c1", 201, "more").unwrap_err().code, "closed");
    bench.topup("c1", 200, "debt").unwrap();
    assert_eq!(state(&mut bench, "c1"), "paid_out");
    bench.check();
}

#[test]
fn stand_in_is_waited_for_until_the_building_has_answered() {
    let mut bench = campus_of(Mode::Hybrid, 2, &[5_000]);
    holding_back(&mut bench);
    let granted = [granted(&bench, 0, 1), granted(&bench, 1, 1)];
    bench.cut(1);
    bench.close("c1").unwrap();
    release(&mut bench, 0, 1, granted[0]);
    bench.connect(1);
    if granted[1] > 0 {
        release(&mut bench, 1, 1, granted[1]);
    } else {
        assert_eq!(state(&mut bench, "c1"), "closing", "it may still stand in");
        let at = bench.nodes[1].writer.cursor().position;
        let unit = Unit::Wallet(Wallet::Cash);
        bench.frame(1, Frame::Recalled(Recalled { account: AccountId(1), unit, at }));
    }
    assert_eq!(shown(&mut bench, "c1")["paid_fen"], json!(5_000));
    bench.check();
}

#[test]
fn an_account_that_owes_is_not_closed_and_an_empty_one_at_once() {
    let mut bench = campus_of(Mode::Strict, 1, &[0, 500]);
    bench.debit(0, 2, 900, 0);
    bench.upload(0);
    assert_eq!(bench.close("c2").unwrap_err().code, "owes");
    assert_eq!(bench.close("nobody").unwrap_err().code, "unknown_card");
    assert_eq!(bench.number("SELECT COUNT(*) FROM closures"), 0);
    bench.close("c1").unwrap();
    assert_eq!(state(&mut bench, "c1"), "paid_out");
    bench.check();
}

#[test]
fn a_core_that_is_opened_again_goes_on_with_a_closing() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    holding_back(&mut bench);
    bench.close("c1").unwrap();
    bench.cut(0);
    let identity = Identity { institution: INSTITUTION, log_key: bench.centre_key.clone() };
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("centre.db");
    bench.core.connection().execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
    bench.core = ReconcileCore::open(Connection::open(&path).unwrap(), identity).unwrap();
    bench.now.mono_ms = 0;
    bench.nodes[0].heard.clear();
    bench.connect(0);
    assert_eq!(recalls(&bench, 0, 1), [Fen::new(5_000)]);
    release(&mut bench, 0, 1, 5_000);
    assert_eq!(state(&mut bench, "c1"), "paid_out");
    bench.check();
}

#[test]
fn a_loss_of_before_is_still_taken_and_what_was_paid_after_it_is_paid_out() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    let kiosk = bench.enrol("kiosk", Role::Kiosk);
    bench.connect(kiosk);
    holding_back(&mut bench);
    let saved: Vec<u8> =
        bench.core.connection().query_row("SELECT document FROM accounts", [], |row| row.get(0)).unwrap();
    let (id, wall) = (bench.nodes[kiosk].id, bench.now.wall);
    let actor = feiqian_protocol::account::actor_id(INSTITUTION, id, 1, 1, AccountId(1));
    let mut document = feiqian_protocol::account::Document::load(&saved, actor).unwrap();
    bench.cut(kiosk);
    let mut write = |bench: &mut Bench, intent: Intent| {
        let change = document.carry_out(&intent, wall).unwrap();
        let setting = Setting {
            account: AccountId(1),
            document_epoch: 1,
            intent,
            change: change.into(),
            typed: None,
            of: None,
        };
        bench.nodes[kiosk].write(wall, Proof::Login, setting);
    };
    write(&mut bench, Intent::ReportLoss { card: card("c1"), loss: key("n2-1") });
    let limits = Intent::SetLimits { single: Fen::new(1), daily: Fen::new(1) };
    write(&mut bench, limits);
    bench.advance(1_000);
    bench.debit(0, 1, 700, 0);
    bench.close("c1").unwrap();
    bench.upload(0);
    release(&mut bench, 0, 1, 4_300);
    assert_eq!(shown(&mut bench, "c1")["paid_fen"], json!(4_300));
    bench.connect(kiosk);
    bench.upload(kiosk);
    let done = shown(&mut bench, "c1");
    assert_eq!((&done["state"], &done["paid_fen"]), (&json!("paid_out"), &json!(5_000)), "{done}");
    let answers = bench.nodes[kiosk].heard.iter().filter_map(|frame| match frame {
        Frame::Entries(entries) | Frame::Fresh(entries) => Some(&entries.records),
        _ => None,
    });
    let refused = answers.flatten().filter_map(|record| match Entry::from_record(record).unwrap().body {
        Body::SettingAnswered(answered) => Some(answered.refused),
        _ => None,
    });
    assert_eq!(refused.collect::<Vec<_>>(), [None, None], "a lower limit asks for no more than the closing");
    bench.check();
}
