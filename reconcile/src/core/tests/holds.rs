//! Money that is held for vouchers: what is held, who takes it, when it is free again, and what receipts and replays do.

use feiqian_protocol::code::{PhoneAlgorithm, PhoneSecret, Receipt, SignedVoucher, VoucherKey};
use feiqian_protocol::entry::{CodeUse, HoldMoved};
use serde_json::Value;

use super::copies::{alter, frames};
use super::*;
use crate::io::SettingCommand;

const HOUR_MS: i64 = 3_600_000;

fn phone() -> PhoneSecret {
    PhoneSecret::new(PhoneAlgorithm::P256, &[1; 32]).unwrap()
}

fn number() -> CardNumber {
    CardNumber::of_phone(&phone().key())
}

/// Nodes that are not connected, so that all money is at the centre, and a phone of account 1.
fn with_phone(nodes: usize, opening: i64) -> Bench {
    let mut bench = Bench::new(Mode::Hybrid);
    for index in 0..nodes {
        bench.enrol(&format!("n{}", index + 1), Role::Pos);
    }
    bench.import(&[("c1", opening)]).unwrap();
    add_phone(&mut bench);
    bench
}

fn add_phone(bench: &mut Bench) {
    let identity = Identity { institution: INSTITUTION, log_key: bench.centre_key.clone() };
    let mut config = campus(Mode::Hybrid);
    config.voucher_keys = vec![VoucherKey {
        number: 1,
        key: identity.voucher_key(1).verifying_key(),
        from_ms: bench.now.wall,
        to_ms: bench.now.wall.plus_ms(60 * 24 * HOUR_MS),
    }];
    bench.command(Command::PublishCampus { config: serde_json::to_value(config).unwrap() }).unwrap();
    let activate = Command::ActivateVirtualCard {
        card: card("c1"),
        algorithm: "p256".to_owned(),
        key: feiqian_protocol::chain::hex(phone().key().as_bytes()),
        operator: key("app"),
    };
    bench.command(activate).unwrap();
}

fn ask(fen: i64, after: Option<u32>) -> Command {
    Command::Voucher { card: number(), life_minutes: None, ceiling_fen: Fen::new(fen), after }
}

/// A voucher of so much, or as much as there is.
fn fetch(bench: &mut Bench, fen: i64, after: Option<u32>) -> SignedVoucher {
    let reply = bench.command(ask(fen, after)).unwrap();
    let signed = SignedVoucher::from_text(reply["voucher"].as_str().unwrap()).unwrap();
    assert_eq!(reply["ceiling_fen"], signed.voucher().ceiling.get());
    signed
}

/// A building takes a code of a voucher.
fn pay(bench: &mut Bench, index: usize, signed: &SignedVoucher, counter: u16, fen: i64) -> u64 {
    let voucher = signed.voucher();
    let code = CodeUse { voucher: voucher.number, counter, until: voucher.until() };
    let wall = bench.now.wall;
    let node = &mut bench.nodes[index];
    let debit = Debit {
        tap: TapRef { epoch: 1, sequence: key(&format!("v{}", node.records.len())) },
        account: voucher.account,
        wallet: Wallet::Cash,
        epoch: Epoch::FIRST,
        from_right: Fen::ZERO,
        stand_in: Fen::ZERO,
        allowance: Fen::ZERO,
        day: BusinessCalendar::CHINA.day(wall),
        merchant: 1,
        card: number(),
        measured: None,
        code: Some(code),
        from_voucher: Some(Fen::new(fen)),
        meal: None,
    };
    node.write(wall, Proof::Code, debit)
}

fn receipt(bench: &Bench, index: usize, signed: &SignedVoucher, position: u64, fen: i64) -> Receipt {
    Receipt {
        institution: INSTITUTION,
        node: bench.nodes[index].id,
        position,
        account: signed.voucher().account,
        voucher: signed.voucher().number,
        counter: 1,
        amount: Fen::new(fen),
        time: (bench.now.wall.0 / 1_000) as u32,
    }
}

fn bring(bench: &mut Bench, receipt: &Receipt, signer: usize) -> Reply {
    let signed = receipt.sign(&bench.nodes[signer].key).unwrap();
    bench.command(Command::Receipt { receipt: signed.to_digits() })
}

fn bring_in(bench: &mut Bench, index: usize) {
    if bench.nodes[index].link.is_none() {
        bench.connect(index);
    }
    bench.upload(index);
}

/// Funds, what is free of them, and what vouchers hold.
fn money(bench: &Bench) -> (i64, i64, i64) {
    let of = |sql: &str| bench.number(sql);
    (
        of("SELECT funds FROM wallets WHERE account = 1 AND wallet = 1"),
        of("SELECT free FROM wallets WHERE account = 1 AND wallet = 1"),
        of("SELECT COALESCE(SUM(out), 0) FROM rights WHERE node = 0"),
    )
}

fn faults(bench: &Bench) -> Vec<String> {
    let mut statement = bench.core.connection().prepare("SELECT what FROM faults ORDER BY what").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// What the account stream says of holds, in order.
fn moved(bench: &Bench) -> Vec<HoldMoved> {
    let mut statement = bench
        .core
        .connection()
        .prepare("SELECT record FROM entries WHERE kind = 71 ORDER BY position")
        .unwrap();
    let records = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    let read = |record: Vec<u8>| match Entry::from_record(&record).unwrap().body {
        Body::HoldMoved(moved) => moved,
        other => panic!("{other:?}"),
    };
    records.map(Result::unwrap).map(read).collect()
}

fn code_of(reply: Reply) -> &'static str {
    reply.unwrap_err().code
}

#[test]
fn a_voucher_holds_what_is_asked_for_and_what_there_is_within_the_day() {
    let mut bench = with_phone(0, 10_000);
    for (refused, command) in [
        ("ceiling", ask(20_001, None)),
        ("ceiling", ask(-1, None)),
        (
            "life",
            Command::Voucher {
                card: number(),
                life_minutes: Some(3 * 24 * 60 + 1),
                ceiling_fen: Fen::new(1),
                after: None,
            },
        ),
    ] {
        assert_eq!(code_of(bench.command(command)), refused);
    }
    assert_eq!(money(&bench), (10_000, 10_000, 0));
    let first = fetch(&mut bench, 3_000, None);
    let terms = first.voucher().clone();
    assert_eq!((terms.ceiling, terms.life_minutes), (Fen::new(2_000), 24 * 60), "the limit of a purchase");
    assert_eq!(money(&bench), (10_000, 8_000, 2_000));
    // Said again it is the same; what the phone has used up is followed by another one.
    assert_eq!(fetch(&mut bench, 3_000, None), first);
    assert_eq!(fetch(&mut bench, 1_000, Some(terms.number - 1)), first);
    let second = fetch(&mut bench, 2_000, Some(terms.number));
    assert!(second.voucher().number > terms.number);
    let third = fetch(&mut bench, 2_000, Some(second.voucher().number));
    assert_eq!(third.voucher().ceiling, Fen::new(1_000), "of the day's allowance");
    let fourth = fetch(&mut bench, 2_000, Some(third.voucher().number));
    assert_eq!(fourth.voucher().ceiling, Fen::ZERO, "identity alone");
    assert_eq!(money(&bench), (10_000, 5_000, 5_000));
    let shown = bench.command(Command::Account { card: card("c1") }).unwrap();
    let held: Vec<_> = shown["vouchers"].as_array().unwrap().iter().map(|one| &one["held_fen"]).collect();
    assert_eq!(held, [2_000, 2_000, 1_000]);
    assert_eq!(shown["rights"], Value::Array(Vec::new()));
    bench.check();
    let freeze =
        Command::ChangeSetting { card: card("c1"), change: SettingCommand::Freeze, operator: key("op") };
    bench.command(freeze).unwrap();
    assert_eq!(code_of(bench.command(ask(100, None))), "frozen");
}

#[test]
fn money_that_lies_with_buildings_is_called_back_for_a_phone_and_stays_at_the_centre() {
    let mut bench = campus_of(Mode::Hybrid, 1, &[3_000]);
    add_phone(&mut bench);
    bench.nodes[0].obeys = false;
    let none = fetch(&mut bench, 2_000, None);
    assert_eq!(none.voucher().ceiling, Fen::ZERO);
    let recalled: Vec<(Unit, i64)> = bench.nodes[0]
        .heard
        .iter()
        .filter_map(|frame| match frame {
            Frame::Recall(recall) => Some((recall.unit, recall.amount.get())),
            _ => None,
        })
        .collect();
    assert_eq!(recalled, [(Unit::Wallet(Wallet::Cash), 3_000), (Unit::Allowance, 5_000)]);
    // The building gives it back.
    let wall = bench.now.wall;
    let day = BusinessCalendar::CHINA.day(wall);
    let (account, epoch) = (AccountId(1), Epoch::FIRST);
    let release = feiqian_protocol::entry::Release {
        account,
        wallet: Wallet::Cash,
        epoch,
        amount: Fen::new(3_000),
        released_total: Fen::new(3_000),
    };
    let share =
        feiqian_protocol::entry::ShareRelease { account, epoch, from_day: day, amount: Fen::new(5_000) };
    bench.nodes[0].write(wall, Proof::None, release);
    let at = bench.nodes[0].write(wall, Proof::None, share);
    bench.upload(0);
    for unit in [Unit::Wallet(Wallet::Cash), Unit::Allowance] {
        bench.frame(0, Frame::Recalled(Recalled { account, unit, at }));
    }
    assert_eq!(money(&bench), (3_000, 3_000, 0), "it is not handed out again");
    assert_eq!(fetch(&mut bench, 2_000, None).voucher().ceiling, Fen::new(2_000));
    bench.topup("c1", 700, "k").unwrap();
    assert_eq!(money(&bench), (3_700, 1_700, 2_000));
    bench.check();
}

#[test]
fn a_debit_takes_what_is_held_and_the_rest_is_free() {
    let mut bench = with_phone(1, 5_000);
    let voucher = fetch(&mut bench, 2_000, None);
    let position = pay(&mut bench, 0, &voucher, 1, 1_250);
    bring_in(&mut bench, 0);
    assert_eq!(money(&bench), (3_750, 3_750, 0));
    let said = &moved(&bench)[0];
    assert_eq!((said.kept.get(), said.debit.unwrap().position), (1_250, position));
    // So much of the day is used: 50 less 12.50, and less what is held again.
    let next = fetch(&mut bench, 2_000, Some(voucher.voucher().number));
    assert_eq!(next.voucher().ceiling, Fen::new(2_000));
    let last = fetch(&mut bench, 2_000, Some(next.voucher().number));
    assert_eq!(last.voucher().ceiling, Fen::new(1_750));
    assert_eq!(bench.number("SELECT COUNT(*) FROM cases"), 0);
    assert_eq!(faults(&bench), Vec::<String>::new());
    bench.check();
    // What is given back is free, and of the day.
    let wall = bench.now.wall;
    let reversal = Reversal {
        tap: TapRef { epoch: 1, sequence: key("r") },
        debit: position,
        account: AccountId(1),
        wallet: Wallet::Cash,
        epoch: Epoch::FIRST,
        right_back: Fen::ZERO,
        right_home: Fen::new(1_250),
        stand_in_home: Fen::ZERO,
        allowance_back: Fen::ZERO,
        day: BusinessCalendar::CHINA.day(wall),
    };
    bench.nodes[0].write(wall, Proof::None, reversal);
    bench.upload(0);
    assert_eq!(money(&bench), (5_000, 1_250, 3_750));
    assert_eq!(fetch(&mut bench, 2_000, Some(last.voucher().number)).voucher().ceiling, Fen::new(1_250));
    bench.check();
}

#[test]
fn a_receipt_frees_the_rest_at_once_and_the_log_says_the_same() {
    let mut bench = with_phone(2, 5_000);
    let voucher = fetch(&mut bench, 2_000, None);
    let position = pay(&mut bench, 0, &voucher, 1, 600);
    let said = receipt(&bench, 0, &voucher, position, 600);
    // Another node's signature, another building's name over it, text that is none.
    assert_eq!(code_of(bring(&mut bench, &said, 1)), "receipt_forged");
    let of_another = Receipt { node: bench.nodes[1].id, ..said };
    assert_eq!(code_of(bring(&mut bench, &of_another, 0)), "receipt_forged");
    assert_eq!(code_of(bring(&mut bench, &Receipt { node: NodeId(9), ..said }, 0)), "receipt_forged");
    let foreign = Receipt { institution: InstitutionId(8), ..said };
    assert_eq!(code_of(bring(&mut bench, &foreign, 0)), "receipt_foreign");
    assert_eq!(
        code_of(bench.command(Command::Receipt { receipt: "92123".to_owned() })),
        "receipt_unreadable"
    );
    let unknown = Receipt { voucher: said.voucher + 7, ..said };
    assert_eq!(code_of(bring(&mut bench, &unknown, 0)), "nothing_held");
    assert_eq!(code_of(bring(&mut bench, &Receipt { amount: Fen::new(2_001), ..said }, 0)), "nothing_held");
    assert_eq!(money(&bench), (5_000, 3_000, 2_000), "nothing of it moved anything");

    let reply = bring(&mut bench, &said, 0).unwrap();
    assert_eq!(
        (&reply["amount_fen"], &reply["freed_fen"], &reply["known"]),
        (&json!(600), &json!(1_400), &json!(false))
    );
    assert_eq!(money(&bench), (5_000, 4_400, 600));
    let again = bring(&mut bench, &said, 0).unwrap();
    assert_eq!((&again["freed_fen"], &again["known"]), (&json!(0), &json!(true)));
    assert_eq!(moved(&bench).len(), 1);
    // The voucher is spent: the next one is another, without the phone's saying so.
    assert_ne!(fetch(&mut bench, 2_000, None), voucher);
    bench.check();
    bring_in(&mut bench, 0);
    assert_eq!(money(&bench), (4_400, 2_400, 2_000));
    assert_eq!(bring(&mut bench, &said, 0).unwrap()["known"], true);
    assert_eq!((faults(&bench), bench.number("SELECT COUNT(*) FROM cases")), (Vec::new(), 0));
    assert_eq!(moved(&bench).len(), 1, "it was said by the receipt");
    bench.check();
}

#[test]
fn a_receipt_speaks_of_its_debit_also_where_the_log_goes_on_in_a_branch() {
    let mut bench = with_phone(1, 5_000);
    let voucher = fetch(&mut bench, 2_000, None);
    let position = pay(&mut bench, 0, &voucher, 1, 600);
    let said = receipt(&bench, 0, &voucher, position, 600);
    assert_eq!(bring(&mut bench, &said, 0).unwrap()["freed_fen"], 1_400);
    // What comes up is altered on its way, and the building is told a branch.
    bench.connect(0);
    let own = bench.nodes[0].log();
    let mut altered = frames(&bench, 0, own, 0);
    alter(&mut altered[0]);
    bench.step(altered[..1].to_vec());
    let branch = bench.nodes[0].branch.expect("it is told to go on in a branch");
    let whole = frames(&bench, 0, branch.log, branch.after);
    bench.step(whole);
    assert_eq!(money(&bench), (4_400, 4_400, 0));
    assert_eq!((faults(&bench), bench.number("SELECT COUNT(*) FROM cases")), (Vec::new(), 0));
    bench.advance(3_000);
    bench.check();
}

#[test]
fn a_receipt_of_less_than_the_log_says_is_a_fault_and_the_holder_owes_what_was_freed_for_it() {
    let mut bench = with_phone(1, 2_000);
    let voucher = fetch(&mut bench, 2_000, None);
    let position = pay(&mut bench, 0, &voucher, 1, 1_900);
    let low = receipt(&bench, 0, &voucher, position, 100);
    bring(&mut bench, &low, 0).unwrap();
    assert_eq!(money(&bench), (2_000, 1_900, 100));
    // What was freed is spent meanwhile, by the next voucher.
    let next = fetch(&mut bench, 2_000, None);
    assert_eq!(next.voucher().ceiling, Fen::new(1_900));
    pay(&mut bench, 0, &next, 1, 1_900);
    bring_in(&mut bench, 0);
    assert_eq!(
        faults(&bench),
        [format!(
            "a receipt says that it took 1.00 of voucher {}, and it took 19.00",
            voucher.voucher().number
        )]
    );
    assert_eq!(money(&bench), (-1_800, -1_800, 0));
    assert_eq!(bench.text("SELECT reason || ' ' || opened FROM cases"), "5 1800");
    bench.check();
    // Two words of the building about one debit.
    let other = receipt(&bench, 0, &voucher, position, 200);
    assert!(
        bring(&mut bench, &other, 0).unwrap()["known"].as_bool().unwrap(),
        "the log has said what counts"
    );
    bench.check();
}

#[test]
fn a_receipt_that_the_log_or_another_receipt_contradicts_moves_nothing() {
    let mut bench = with_phone(2, 9_000);
    let first = fetch(&mut bench, 2_000, None);
    let position = pay(&mut bench, 0, &first, 1, 300);
    bring_in(&mut bench, 0);
    let second = fetch(&mut bench, 2_000, None);
    let wrong = receipt(&bench, 0, &second, position, 100);
    assert_eq!(code_of(bring(&mut bench, &wrong, 0)), "receipt_contradicted");
    let early = receipt(&bench, 1, &second, 5, 100);
    bring(&mut bench, &early, 1).unwrap();
    let other = receipt(&bench, 1, &second, 5, 200);
    assert_eq!(code_of(bring(&mut bench, &other, 1)), "receipt_contradicted");
    let twice = receipt(&bench, 1, &second, 6, 100);
    assert_eq!(code_of(bring(&mut bench, &twice, 1)), "voucher_spent");
    assert_eq!(faults(&bench).len(), 3);
    bench.check();
}

#[test]
fn of_two_debits_the_earlier_is_backed_whichever_comes_first() {
    for late_first in [false, true] {
        let mut bench = with_phone(2, 2_500);
        let voucher = fetch(&mut bench, 2_000, None);
        bench.advance(60_000);
        pay(&mut bench, 0, &voucher, 1, 1_500);
        bench.advance(60_000);
        pay(&mut bench, 1, &voucher, 2, 1_400);
        for index in if late_first { [1, 0] } else { [0, 1] } {
            bring_in(&mut bench, index);
        }
        assert_eq!(money(&bench), (-400, -400, 0));
        assert_eq!(faults(&bench).len(), 1, "{:?}", faults(&bench));
        let case = bench.text("SELECT (log >> 32) || ' ' || reason || ' ' || opened FROM cases");
        assert_eq!(case, "2 5 400", "late first: {late_first}");
        bench.check();
        // All have passed it: the holder owes it, and a credit recovers it.
        bench.advance(60_000);
        let wall = bench.now.wall;
        for index in 0..2 {
            let position = bench.nodes[index].writer.cursor().position;
            let mark = Mark { position, clock: Hlc::at(wall) };
            bench.frame(index, Frame::Mark(mark));
        }
        assert_eq!(bench.number("SELECT bearer FROM cases"), 1);
        bench.topup("c1", 1_000, "k").unwrap();
        assert_eq!(bench.number("SELECT opened - recovered FROM cases"), 0);
        bench.check();
    }
}

#[test]
fn what_is_held_returns_once_no_debit_can_come() {
    let mut bench = with_phone(2, 5_000);
    let voucher = fetch(&mut bench, 2_000, None);
    bench.connect(0);
    bench.connect(1);
    let until = i64::from(voucher.voucher().until()) * 1_000;
    let pass = |bench: &mut Bench, index: usize, to: i64| {
        let ms = to - bench.now.wall.0;
        bench.advance(ms.max(0));
        let mark =
            Mark { position: bench.nodes[index].writer.cursor().position, clock: Hlc::at(Timestamp(to)) };
        bench.frame(index, Frame::Mark(mark));
    };
    pass(&mut bench, 0, until + 181_000);
    assert_eq!(money(&bench), (5_000, 3_000, 2_000), "one building was not heard");
    bench.command(Command::ReportLoss { card: number(), operator: key("op") }).unwrap();
    assert_eq!(money(&bench).2, 2_000, "a loss changes nothing of that");
    pass(&mut bench, 1, until + 170_000);
    assert_eq!(money(&bench).2, 2_000, "it may still take it");
    pass(&mut bench, 1, until + 182_000);
    bench.step(Vec::new());
    assert_eq!(money(&bench), (5_000, 5_000, 0));
    let said = moved(&bench);
    assert_eq!((said.len(), said[0].kept, said[0].debit), (1, Fen::ZERO, None));
    // One that comes all the same is paid, and backed by nothing.
    pay(&mut bench, 0, &voucher, 1, 700);
    bench.upload(0);
    assert_eq!(bench.number("SELECT unbacked FROM movements WHERE amount = -700"), 700);
    bench.check();
}

#[test]
fn a_receipt_without_a_debit_is_found_when_its_time_is_over() {
    let mut bench = with_phone(1, 5_000);
    let voucher = fetch(&mut bench, 2_000, None);
    let made_up = receipt(&bench, 0, &voucher, 1, 100);
    bring(&mut bench, &made_up, 0).unwrap();
    bench.connect(0);
    bench.debit(0, 1, 0, 50);
    let until = i64::from(voucher.voucher().until()) * 1_000;
    bench.advance(until + 200_000 - bench.now.wall.0);
    bench.upload(0);
    let mark = Mark { position: 1, clock: Hlc::at(bench.now.wall) };
    bench.frame(0, Frame::Mark(mark));
    bench.step(Vec::new());
    let expected = format!("a receipt says that it was a debit of voucher {}", voucher.voucher().number);
    assert!(faults(&bench).contains(&expected), "{:?}", faults(&bench));
    assert_eq!(money(&bench).2, 0);
    bench.check();
}

#[test]
fn who_has_little_keeps_the_voucher_that_has_it_until_its_end() {
    let mut bench = with_phone(0, 1_500);
    let first = fetch(&mut bench, 2_000, None);
    assert_eq!(first.voucher().ceiling, Fen::new(1_500));
    // Half its life is over, and another would hold nothing.
    bench.advance(13 * 3_600_000);
    assert_eq!(fetch(&mut bench, 2_000, None), first);
    // One that holds more takes its place.
    bench.topup("c1", 3_000, "k").unwrap();
    let second = fetch(&mut bench, 2_000, None);
    assert_eq!(
        (second.voucher().number > first.voucher().number, second.voucher().ceiling),
        (true, Fen::new(2_000))
    );
    bench.check();
}

#[test]
fn an_older_voucher_is_given_again_once_the_newer_one_is_spent() {
    let mut bench = with_phone(1, 1_500);
    let first = fetch(&mut bench, 2_000, None);
    bench.topup("c1", 2_000, "k").unwrap();
    let second = fetch(&mut bench, 2_000, None);
    assert_eq!([&first, &second].map(|signed| signed.voucher().ceiling.get()), [1_500, 2_000]);
    // The newer one pays in a building that has not said so.
    assert_eq!(fetch(&mut bench, 2_000, Some(second.voucher().number)), first);
    // With the older one used, too, neither comes back, whichever is said last.
    let third = fetch(&mut bench, 2_000, Some(first.voucher().number));
    assert!(third.voucher().number > second.voucher().number);
    assert_eq!(third.voucher().ceiling, Fen::ZERO);
    let fourth = fetch(&mut bench, 2_000, Some(second.voucher().number));
    assert!(fourth.voucher().number > third.voucher().number);
    bench.check();
}

#[test]
fn a_restored_centre_gives_no_voucher_again() {
    let mut bench = with_phone(0, 4_000);
    let first = fetch(&mut bench, 1_500, None);
    assert_eq!(fetch(&mut bench, 1_500, None), first);
    bench.core.restored().unwrap();
    bench.step(Vec::new());
    let next = fetch(&mut bench, 1_500, None);
    assert!(next.voucher().number > first.voucher().number);
    bench.check();
}

#[test]
fn at_its_end_a_voucher_is_given_no_more() {
    let mut bench = with_phone(0, 1_500);
    let first = fetch(&mut bench, 2_000, None);
    bench.advance(24 * 3_600_000);
    let next = fetch(&mut bench, 2_000, None);
    assert!(next.voucher().number > first.voucher().number);
    bench.check();
}

#[test]
fn a_debit_of_a_voucher_that_never_held_anything_is_backed_by_nothing() {
    let mut bench = with_phone(1, 5_000);
    let voucher = fetch(&mut bench, 2_000, None);
    let mut other = voucher.voucher().clone();
    other.number += 5;
    let identity = Identity { institution: INSTITUTION, log_key: bench.centre_key.clone() };
    let other = other.sign(&identity.voucher_key(1)).unwrap();
    pay(&mut bench, 0, &other, 1, 400);
    bring_in(&mut bench, 0);
    assert_eq!(faults(&bench), ["nothing was held for the voucher of this debit"]);
    assert_eq!(money(&bench), (4_600, 2_600, 2_000));
    // More than its ceiling.
    pay(&mut bench, 0, &voucher, 1, 2_300);
    bench.upload(0);
    assert_eq!(money(&bench), (2_300, 2_300, 0));
    assert_eq!(bench.number("SELECT unbacked FROM movements WHERE amount = -2300"), 300);
    bench.check();
}

#[test]
fn a_closed_account_is_paid_out_once_its_voucher_holds_nothing_and_no_sooner() {
    let mut bench = with_phone(1, 5_000);
    fetch(&mut bench, 2_000, None);
    bench.close("c1").unwrap();
    let paid = "SELECT coalesce(sum(balance), 0) FROM ledger WHERE ledger = 'channel:counter'";
    assert_eq!((bench.number(paid), money(&bench)), (0, (5_000, 3_000, 2_000)));
    // The term of the closing is over, that of the voucher, which began with its end a day later, is not.
    bench.advance(7 * 24 * HOUR_MS + HOUR_MS);
    bench.step(vec![Input::Timer]);
    assert_eq!((bench.number(paid), money(&bench)), (0, (5_000, 3_000, 2_000)));
    bench.check();
    bench.advance(24 * HOUR_MS);
    bench.step(vec![Input::Timer]);
    bench.step(vec![Input::Timer]);
    assert_eq!((bench.number(paid), money(&bench)), (5_000, (0, 0, 0)));
    bench.check();
}

#[test]
fn what_can_still_be_spent_with_a_lost_phone_includes_its_vouchers_at_each_building_that_has_not_heard() {
    let mut bench = with_phone(3, 9_000);
    let signed = fetch(&mut bench, 2_000, None);
    let position = pay(&mut bench, 0, &signed, 1, 600);
    let told = receipt(&bench, 0, &signed, position, 600);
    bring(&mut bench, &told, 0).unwrap();
    bench.command(Command::ReportLoss { card: number(), operator: key("op") }).unwrap();
    let show = |bench: &mut Bench| bench.command(Command::CardLoss { card: number() }).unwrap();
    let shown = show(&mut bench);
    assert_eq!(shown["at_most_fen"], json!(4_000), "n1 has taken it: {shown}");
    bench.connect(1);
    assert_eq!(show(&mut bench)["at_most_fen"], json!(2_000), "n2 has heard");
    // Another card of the account takes nothing of the phone's.
    bench.command(Command::ReportLoss { card: card("c1"), operator: key("op") }).unwrap();
    let of_card = bench.command(Command::CardLoss { card: card("c1") }).unwrap();
    let out = bench.number("SELECT COALESCE(SUM(out + si_out), 0) FROM rights WHERE node = 3");
    assert_eq!(of_card["at_most_fen"], json!(out), "{of_card}");
    bench.advance(26 * HOUR_MS);
    assert_eq!(show(&mut bench)["at_most_fen"], json!(0), "it is over");
    bench.check();
}
