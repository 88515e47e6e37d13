//! Virtual cards: activation, vouchers, and codes that were used at two buildings.

use feiqian_protocol::code::{
    PhoneAlgorithm, PhoneSecret, ShortCode, ShortSecret, SignedVoucher, VoucherKey,
};
use feiqian_protocol::entry::{Access, CodeUse};
use feiqian_protocol::frame::{CodeAnswer, CodeAsk};
use feiqian_protocol::tap::DeclineReason;

use super::*;
use crate::io::{CaseDecision, SettingCommand};

fn phone(seed: u8) -> PhoneSecret {
    PhoneSecret::new(PhoneAlgorithm::P256, &[seed; 32]).unwrap()
}

fn activate(bench: &mut Bench, of: &str, secret: &PhoneSecret) -> Reply {
    bench.command(Command::ActivateVirtualCard {
        card: card(of),
        algorithm: "p256".to_owned(),
        key: feiqian_protocol::chain::hex(secret.key().as_bytes()),
        operator: key("app"),
    })
}

fn voucher(bench: &mut Bench, of: &CardNumber) -> Reply {
    bench.command(Command::Voucher {
        card: of.clone(),
        life_minutes: None,
        ceiling_fen: Fen::ZERO,
        after: None,
    })
}

fn code_of(reply: Reply) -> &'static str {
    reply.unwrap_err().code
}

/// Publishes voucher keys of these numbers, each for so many days from now on.
fn publish_keys(bench: &mut Bench, keys: &[(u8, i64, i64)]) -> Reply {
    let identity = Identity { institution: INSTITUTION, log_key: bench.centre_key.clone() };
    let mut config = campus(Mode::Strict);
    config.voucher_keys = keys
        .iter()
        .map(|(number, from, to)| VoucherKey {
            number: *number,
            key: identity.voucher_key(*number).verifying_key(),
            from_ms: bench.now.wall.plus_ms(from * 86_400_000),
            to_ms: bench.now.wall.plus_ms(to * 86_400_000),
        })
        .collect();
    bench.command(Command::PublishCampus { config: serde_json::to_value(config).unwrap() })
}

#[test]
fn a_phone_gets_a_virtual_card_and_vouchers_until_it_is_revoked() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000, 5_000]);
    let secret = phone(1);
    let number = CardNumber::of_phone(&secret.key());
    let reply = activate(&mut bench, "c1", &secret).unwrap();
    assert_eq!(reply["card"], number.as_str());
    let entries = bench.number("SELECT COUNT(*) FROM entries");
    assert_eq!(activate(&mut bench, "c1", &secret).unwrap(), reply, "said again it changes nothing");
    assert_eq!(bench.number("SELECT COUNT(*) FROM entries"), entries);
    assert_eq!(code_of(activate(&mut bench, "c2", &secret)), "card_in_use");
    assert_eq!(code_of(activate(&mut bench, "c9", &secret)), "unknown_card");
    for (algorithm, key_text) in [("p256", "00"), ("rsa", "00"), ("ed25519", "zz")] {
        let command = Command::ActivateVirtualCard {
            card: card("c1"),
            algorithm: algorithm.to_owned(),
            key: key_text.to_owned(),
            operator: key("app"),
        };
        assert_eq!(code_of(bench.command(command)), "phone_key");
    }

    assert_eq!(code_of(voucher(&mut bench, &number)), "voucher_key", "none is published");
    publish_keys(&mut bench, &[(1, 0, 30), (2, 10, 40)]).unwrap();
    let first = voucher(&mut bench, &number).unwrap();
    let signed = SignedVoucher::from_text(first["voucher"].as_str().unwrap()).unwrap();
    let terms = signed.voucher();
    assert_eq!((terms.account, terms.centre_key, terms.ceiling), (AccountId(1), 1, Fen::ZERO));
    assert_eq!((terms.card(), terms.phone.clone()), (number.clone(), secret.key()));
    assert_eq!(first["until_ms"].as_i64().unwrap() - first["issued_ms"].as_i64().unwrap(), 3 * 86_400_000);
    let second = voucher(&mut bench, &number).unwrap();
    assert!(second["number"].as_u64() > first["number"].as_u64());
    // The next key is used from its day on.
    bench.advance(11 * 86_400_000);
    let later = voucher(&mut bench, &number).unwrap();
    let later = SignedVoucher::from_text(later["voucher"].as_str().unwrap()).unwrap();
    assert_eq!(later.voucher().centre_key, 2);

    assert_eq!(code_of(voucher(&mut bench, &card("c1"))), "not_virtual");
    let life = Command::Voucher {
        card: number.clone(),
        life_minutes: Some(20_161),
        ceiling_fen: Fen::ZERO,
        after: None,
    };
    assert_eq!(code_of(bench.command(life)), "life");
    bench.command(Command::ReportLoss { card: card("c1"), operator: key("op") }).unwrap();
    assert!(voucher(&mut bench, &number).is_ok(), "without the card it lives on");
    bench.command(Command::ReportLoss { card: number.clone(), operator: key("op") }).unwrap();
    assert_eq!(code_of(voucher(&mut bench, &number)), "card_lost");
    let void = |card: &CardNumber| Command::ChangeSetting {
        card: card.clone(),
        change: SettingCommand::VoidCard,
        operator: key("op"),
    };
    bench.command(void(&number)).unwrap();
    assert_eq!(code_of(voucher(&mut bench, &number)), "card_void");
    assert_eq!(code_of(activate(&mut bench, "c1", &secret)), "phone_used", "void is final");
    bench.check();
}

#[test]
fn virtual_cards_are_few_and_their_numbers_are_no_other_cards() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    for seed in 1..=4 {
        activate(&mut bench, "c1", &phone(seed)).unwrap();
    }
    assert_eq!(code_of(activate(&mut bench, "c1", &phone(5))), "too_many_phones");
    let number = CardNumber::of_phone(&phone(6).key());
    assert_eq!(code_of(bench.import(&[(number.as_str(), 0)])), "account");
    let replaced = Command::ChangeSetting {
        card: card("c1"),
        change: SettingCommand::ReplaceCard { new_card: number },
        operator: key("op"),
    };
    assert_eq!(code_of(bench.command(replaced)), "not_virtual");
    assert_eq!(bench.number("SELECT COUNT(*) FROM cards"), 5);
    bench.check();
}

#[test]
fn only_keys_of_this_centre_are_published() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    let version = bench.number("SELECT value FROM meta WHERE key = 'campus_version'");
    let mut config = campus(Mode::Strict);
    let key = SigningKey::from_bytes(&[7; 32]).verifying_key();
    config.voucher_keys =
        vec![VoucherKey { number: 1, key, from_ms: Timestamp(0), to_ms: bench.now.wall.plus_ms(1) }];
    let config = serde_json::to_value(config).unwrap();
    assert_eq!(code_of(bench.command(Command::PublishCampus { config })), "voucher_key");
    assert_eq!(code_of(publish_keys(&mut bench, &[(1, 2, 2)])), "campus", "a key of no time");
    assert_eq!(code_of(publish_keys(&mut bench, &[(1, 0, 2), (1, 0, 3)])), "campus", "one number twice");
    assert_eq!(bench.number("SELECT value FROM meta WHERE key = 'campus_version'"), version);
}

/// A purchase by a code, or a passage where nothing is paid.
fn use_code(bench: &mut Bench, index: usize, fen: i64, counter: u16, proof: Proof) -> u64 {
    let code = CodeUse { voucher: 7, counter, until: (START.0 / 1_000) as u32 + 86_400 };
    let number = CardNumber::of_phone(&phone(1).key());
    let wall = bench.now.wall;
    let node = &mut bench.nodes[index];
    let tap = TapRef { epoch: 1, sequence: key(&format!("s{}", node.records.len())) };
    if fen == 0 {
        let access = Access { tap, account: AccountId(1), card: number, code: Some(code) };
        return node.write(wall, proof, access);
    }
    let debit = Debit {
        tap,
        account: AccountId(1),
        wallet: Wallet::Cash,
        epoch: Epoch::FIRST,
        from_right: Fen::new(fen),
        stand_in: Fen::ZERO,
        allowance: Fen::ZERO,
        day: BusinessDay(1),
        merchant: 1,
        card: number,
        measured: None,
        code: Some(code),
        from_voucher: None,
        meal: None,
    };
    node.write(wall, proof, debit)
}

fn faults(bench: &Bench) -> Vec<String> {
    let sql = "SELECT (log >> 32) || ' ' || position || ' ' || what FROM faults ORDER BY log, position";
    let mut statement = bench.core.connection().prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn uses_of_codes_are_held_against_the_entries() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    activate(&mut bench, "c1", &phone(1)).unwrap();
    use_code(&mut bench, 0, 400, 1, Proof::Code);
    use_code(&mut bench, 0, 0, 2, Proof::Code);
    bench.upload(0);
    bench.check();
    let not_kept = |position| format!("node-1: entry {position} used a code, and that is not kept");
    let other = |position, counter| {
        format!(
            "node-1: entry {position} is not the use of code {counter} of voucher 7 of account 1 that is kept"
        )
    };
    bench.core.connection().execute_batch("CREATE TEMP TABLE kept AS SELECT * FROM code_uses").unwrap();
    for (tampered, problems) in [
        ("DELETE FROM code_uses WHERE counter = 2", vec![not_kept(2)]),
        ("UPDATE code_uses SET tap = 'pos-1 1 s9' WHERE counter = 1", vec![other(1, 1)]),
        ("UPDATE code_uses SET counter = 9 WHERE counter = 1", vec![other(1, 9), not_kept(1)]),
        ("UPDATE code_uses SET position = 77 WHERE counter = 2", vec![other(77, 2)]),
    ] {
        let db = bench.core.connection();
        db.execute(tampered, []).unwrap();
        let mut report = verify(db, INSTITUTION, &bench.centre_key.verifying_key()).unwrap();
        report.problems.sort();
        assert_eq!(report.problems, problems, "{tampered}");
        db.execute_batch("DELETE FROM code_uses; INSERT INTO code_uses SELECT * FROM kept").unwrap();
    }
    bench.check();
}

#[test]
fn a_code_that_was_used_at_two_buildings_is_found_and_given_back() {
    let mut bench = campus_of(Mode::Strict, 2, &[5_000]);
    activate(&mut bench, "c1", &phone(1)).unwrap();
    for index in 0..2 {
        bench.cut(index);
    }
    use_code(&mut bench, 0, 400, 1, Proof::Code);
    use_code(&mut bench, 0, 100, 2, Proof::Code);
    use_code(&mut bench, 1, 700, 1, Proof::Code);
    use_code(&mut bench, 1, 0, 2, Proof::Code);
    use_code(&mut bench, 1, 300, 3, Proof::Code);
    for index in 0..2 {
        bench.connect(index);
        bench.upload(index);
    }
    assert_eq!(
        faults(&bench),
        [
            "2 1 code 1 of voucher 7 was used before, in node-1 1",
            "2 2 code 2 of voucher 7 was used before, in node-1 2"
        ]
    );
    let cases = bench.exported(Table::Cases, Format::Csv);
    let card = CardNumber::of_phone(&phone(1).key());
    assert_eq!(
        cases,
        format!(
            "case,card,reason,bearer,opened_fen,recovered_fen,refunded_fen\n\
             n2:1,{card},code_replayed,suspense,700,0,0\n"
        )
    );
    let balance = 5_000 - 400 - 700 - 100 - 300;
    assert_eq!(bench.number("SELECT funds FROM wallets"), balance);
    bench.check();
    // What comes again is what is known.
    let again = bench.nodes[1].entries_after(0);
    bench.frame(1, again);
    assert_eq!((faults(&bench).len(), bench.number("SELECT funds FROM wallets")), (2, balance));
    // With the PIN it was the holder.
    use_code(&mut bench, 0, 50, 3, Proof::CodeAndPin);
    bench.upload(0);
    assert_eq!(faults(&bench).len(), 3);
    assert_eq!(bench.number("SELECT COUNT(*) FROM cases"), 1);
    bench.check();

    // A person gives it back, once.
    let balance = bench.number("SELECT funds FROM wallets");
    let decide =
        |case: &str, decision| Command::DecideCase { case: case.to_owned(), decision, operator: key("op") };
    assert_eq!(code_of(bench.command(decide("n2:2", CaseDecision::Refund))), "case");
    let decided = bench.command(decide("n2:1", CaseDecision::Refund)).unwrap();
    assert_eq!((&decided["bearer"], &decided["refunded_fen"]), (&json!("risk_fund"), &json!(700)));
    assert_eq!(bench.number("SELECT funds FROM wallets"), balance + 700);
    for decision in [CaseDecision::Refund, CaseDecision::Deny] {
        assert_eq!(code_of(bench.command(decide("n2:1", decision))), "case_decided");
    }
    assert_eq!(bench.number("SELECT SUM(amount) FROM postings"), 0);
    bench.check();
}

#[test]
fn what_a_person_leaves_to_the_holder_stays_so() {
    let mut bench = campus_of(Mode::Strict, 2, &[5_000]);
    for node in 0..2 {
        bench.cut(node);
    }
    use_code(&mut bench, 0, 400, 1, Proof::Code);
    use_code(&mut bench, 1, 700, 1, Proof::Code);
    for node in 0..2 {
        bench.connect(node);
        bench.upload(node);
    }
    let decide = |decision| Command::DecideCase { case: "n2:1".to_owned(), decision, operator: key("op") };
    assert_eq!(code_of(bench.command(decide(CaseDecision::ChargeBack))), "not_charged_back");
    assert_eq!(bench.command(decide(CaseDecision::Deny)).unwrap()["bearer"], "holder");
    // The building reverses a part of it later.
    let Ok(Entry { body: Body::Debit(debit), .. }) = Entry::from_record(&bench.nodes[1].records[0]) else {
        panic!("no debit")
    };
    let (wall, part) = (bench.now.wall, Fen::new(200));
    let reversal = Reversal {
        tap: TapRef { epoch: 1, sequence: key("back") },
        debit: 1,
        account: debit.account,
        wallet: debit.wallet,
        epoch: debit.epoch,
        right_back: Fen::ZERO,
        right_home: part,
        stand_in_home: Fen::ZERO,
        allowance_back: Fen::ZERO,
        day: debit.day,
    };
    bench.nodes[1].write(wall, Proof::None, reversal);
    bench.upload(1);
    assert_eq!(bench.text("SELECT bearer || ' ' || opened || ' ' || refunded FROM cases"), "1 500 0");
    assert_eq!(code_of(bench.command(decide(CaseDecision::Refund))), "case_decided");
    bench.check();
}

#[test]
fn one_tap_of_two_wallets_uses_its_code_once() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    bench.topup("c1", 10, "k1").unwrap();
    bench.cut(0);
    use_code(&mut bench, 0, 400, 1, Proof::Code);
    // The second wallet of the same tap, which the sequence says.
    let Ok(Entry { body: Body::Debit(mut debit), .. }) = Entry::from_record(&bench.nodes[0].records[0])
    else {
        panic!("no debit")
    };
    debit.from_right = Fen::new(30);
    let wall = bench.now.wall;
    bench.nodes[0].write(wall, Proof::Code, debit.clone());
    // Another tap of the same building by the same code is a fault of the building.
    debit.tap.sequence = key("other");
    bench.nodes[0].write(wall, Proof::Code, debit);
    bench.connect(0);
    bench.upload(0);
    assert_eq!(faults(&bench), ["1 3 code 1 of voucher 7 was used before, in node-1 1"]);
    assert_eq!(bench.number("SELECT opened FROM cases"), 30);
    bench.check();
}

/// A terminal of the first building shows a short code for a tap; what the centre says.
fn whose(bench: &mut Bench, code: ShortCode, tap: u8) -> Result<(AccountId, CardNumber), DeclineReason> {
    bench.frame(0, Frame::CodeAsk(CodeAsk { request: 7, code, tap: [tap; 16] }));
    let Some(Frame::CodeAnswer(CodeAnswer { request: 7, named })) = bench.nodes[0].heard.last().cloned()
    else {
        panic!("no answer: {:?}", bench.nodes[0].heard.last())
    };
    named
}

#[test]
fn a_short_code_is_whose_phone_made_it_for_one_tap_of_its_minute() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000, 5_000]);
    let wanted = |bench: &mut Bench, of: &CardNumber| bench.command(Command::ShortCode { card: of.clone() });
    assert_eq!(code_of(wanted(&mut bench, &card("c1"))), "not_virtual");
    let number = CardNumber::of_phone(&phone(1).key());
    assert_eq!(code_of(wanted(&mut bench, &number)), "unknown_card");
    activate(&mut bench, "c1", &phone(1)).unwrap();
    let told = wanted(&mut bench, &number).unwrap();
    assert_eq!(wanted(&mut bench, &number).unwrap(), told, "said again it is the same");
    let alias: u64 = told["alias"].as_str().unwrap().parse().unwrap();
    let secret = feiqian_protocol::chain::unhex(told["secret"].as_str().unwrap()).unwrap();
    let secret = ShortSecret::new(secret.try_into().unwrap());
    let named = Ok((AccountId(1), number.clone()));

    let now = bench.now.wall;
    let code = |ms: i64| secret.code(alias, now.plus_ms(ms));
    assert_eq!(whose(&mut bench, code(-30_000), 1), named);
    assert_eq!(whose(&mut bench, code(-30_000), 1), named, "the same tap again");
    assert_eq!(whose(&mut bench, code(-30_000), 2), Err(DeclineReason::CodeUsed));
    assert_eq!(whose(&mut bench, code(30_000), 3), named);
    assert_eq!(whose(&mut bench, code(0), 4), Err(DeclineReason::CodeUsed), "older than one that was used");
    assert_eq!(whose(&mut bench, code(-90_000), 5), Err(DeclineReason::CodeExpired));
    assert_eq!(whose(&mut bench, code(90_000), 5), Err(DeclineReason::CodeForged), "from the future");
    assert_eq!(
        whose(&mut bench, ShortCode { alias: alias ^ 1, ..code(0) }, 5),
        Err(DeclineReason::CodeForged)
    );

    // Guessing pauses the alias, and a right one ends the count.
    bench.advance(120_000);
    let wrong = ShortCode { alias, digits: secret.digits(0) ^ 1 };
    for _ in 0..3 {
        assert_eq!(whose(&mut bench, wrong, 6), Err(DeclineReason::CodeForged));
    }
    let now = bench.now.wall;
    assert_eq!(whose(&mut bench, secret.code(alias, now), 7), named);
    for _ in 0..5 {
        assert_eq!(whose(&mut bench, wrong, 6), Err(DeclineReason::CodeForged));
    }
    bench.advance(60_000);
    let now = bench.now.wall;
    assert_eq!(whose(&mut bench, secret.code(alias, now), 8), Err(DeclineReason::CodePaused));
    bench.advance(5 * 60_000);
    let now = bench.now.wall;
    assert_eq!(whose(&mut bench, secret.code(alias, now), 8), named);

    // Another phone has others, and one that is withdrawn has none.
    let other = CardNumber::of_phone(&phone(2).key());
    activate(&mut bench, "c1", &phone(2)).unwrap();
    let told_other = wanted(&mut bench, &other).unwrap();
    assert!(told_other["alias"] != told["alias"] && told_other["secret"] != told["secret"]);
    let change = SettingCommand::VoidCard;
    bench.command(Command::ChangeSetting { card: number.clone(), change, operator: key("op") }).unwrap();
    bench.advance(60_000);
    let now = bench.now.wall;
    assert_eq!(whose(&mut bench, secret.code(alias, now), 9), Err(DeclineReason::Void));
    assert_eq!(code_of(wanted(&mut bench, &number)), "card_void");
    bench.check();
}
