//! Cards that are out of use: what is left on them, and the card that comes in their place.

use super::*;
use crate::io::Reply;

fn withdraw(bench: &mut Bench) {
    let change = SettingCommand::VoidCard;
    bench.command(Command::ChangeSetting { card: card(SERIAL), change, operator: key("desk") }).unwrap();
}

fn give_back(bench: &mut Bench) -> Reply {
    bench.command(Command::ReturnPurse { serial: serial(), operator: key("desk") })
}

#[test]
fn what_is_left_on_the_card_of_a_closed_account_is_paid_out() {
    let mut bench = bench_with(10_000);
    let mut chip = Chip::new();
    load(&mut bench, &mut chip, 2_000);
    let late = chip.purchase(500, 1);
    bench.close(SERIAL).unwrap();
    release_all(&mut bench);
    assert_eq!(give_back(&mut bench).unwrap_err().code, "not_yet");
    bench.advance(1_000);
    report(&mut bench, late);
    assert_eq!((ledger(&bench, "channel:counter"), on_card(&bench)), (8_000, 1_500));
    assert_eq!(give_back(&mut bench).unwrap()["amount_fen"], 1_500);
    bench.step(vec![Input::Timer]);
    assert_eq!((ledger(&bench, "channel:counter"), on_card(&bench)), (9_500, 0));
    assert_eq!(bench.number("SELECT funds FROM wallets"), 0);
    bench.check();
}

#[test]
fn what_is_left_on_a_withdrawn_card_goes_back_once_no_building_can_report_it_any_more() {
    let mut bench = bench_with(10_000);
    let mut chip = Chip::new();
    load(&mut bench, &mut chip, 2_000);
    assert_eq!(give_back(&mut bench).unwrap_err().code, "in_use");
    let late = chip.purchase(500, 1);
    withdraw(&mut bench);
    assert_eq!(give_back(&mut bench).unwrap_err().code, "not_yet");
    bench.advance(1_000);
    report(&mut bench, late);
    assert_eq!(give_back(&mut bench).unwrap()["amount_fen"], 1_500);
    assert_eq!((on_card(&bench), bench.number("SELECT funds FROM wallets")), (0, 9_500));
    assert_eq!(give_back(&mut bench).unwrap_err().code, "empty");
    bench.check();
    // The finder's purchase comes after all.
    let found = chip.purchase(300, 2);
    report(&mut bench, found);
    assert_eq!((on_card(&bench), ledger(&bench, "suspense")), (0, -300));
    assert_eq!(bench.number("SELECT funds FROM wallets"), 9_500);
    bench.check();
}

const FAULTS: &str = "SELECT COUNT(*) FROM faults";

#[test]
fn a_torn_load_of_a_withdrawn_card_goes_back_with_the_rest_of_it() {
    for credited in [false, true] {
        let mut bench = bench_with(10_000);
        let mut chip = Chip::new();
        load(&mut bench, &mut chip, 2_000);
        let request = chip.begin(3_000, terminal(1));
        let (time, mac2) = authorized(&ask_load(&mut bench, request));
        let loaded = credited.then(|| chip.credit(&request, time, mac2));
        let late = chip.purchase(500, 1);
        withdraw(&mut bench);
        assert_eq!(give_back(&mut bench).unwrap_err().code, "not_yet");
        bench.advance(1_000);
        report(&mut bench, late);
        assert_eq!(in_transit(&bench), 3_000);
        assert_eq!(give_back(&mut bench).unwrap()["amount_fen"], 4_500);
        let all_is_back = |bench: &Bench| {
            let funds = bench.number("SELECT funds FROM wallets");
            assert_eq!((in_transit(bench), on_card(bench), funds), (0, 0, 9_500));
        };
        all_is_back(&bench);
        // Neither the card's terminal nor what it says itself moves anything any more.
        let faults = bench.number(FAULTS);
        if let Some(loaded) = loaded {
            report(&mut bench, loaded);
        }
        let evidence = chip.probed(terminal(9), None);
        let settled = ask(&mut bench, PurseQuestion::Evidence(serial(), evidence));
        assert_eq!(settled, Some(PurseReply::Settled(LoadFate::Nothing)));
        assert_eq!(give_back(&mut bench).unwrap_err().code, "empty");
        assert_eq!(bench.number(FAULTS), faults);
        all_is_back(&bench);
        bench.check();
    }
}

#[test]
fn the_holder_of_a_copied_card_gets_another_one() {
    let mut bench = bench_with(10_000);
    let mut chip = Chip::new();
    load(&mut bench, &mut chip, 2_000);
    let mut clone = chip.clone();
    let (first, second) = (chip.purchase(500, 1), clone.purchase(700, 8));
    let replace = |bench: &mut Bench, new: &str| {
        let change = SettingCommand::ReplaceCard { new_card: card(new) };
        bench.command(Command::ChangeSetting { card: card(SERIAL), change, operator: key("desk") })
    };
    report(&mut bench, first);
    report(&mut bench, second);
    let shown = bench.command(Command::Account { card: card(SERIAL) }).unwrap();
    assert_eq!(shown["cards"], json!({ SERIAL: "void" }));
    let new = "31000000202600012399";
    let replaced = replace(&mut bench, new).unwrap();
    assert_eq!(replaced["cards"], json!({ SERIAL: "void", new: "active" }));
    assert!(replaced["issuance"].is_string());
    assert_eq!(replace(&mut bench, new).unwrap()["cards"], replaced["cards"], "said again");
    let refused = replace(&mut bench, "31000000202600012400").unwrap_err();
    assert_eq!(refused.code, "card_void");
    assert!(refused.message.contains(new), "{refused}");
    bench.check();
}
