//! Holders: accounts that are opened for them, their cards on the way to them, who logs in, and who binds.

use feiqian_protocol::pin::{PinGeneration, PinHash};

use super::*;
use crate::holders::{NewHolder, ToPickUp};
use crate::io::SettingCommand;
use crate::pin::HashedPin;

/// A secret under a name. Argon2 is the shell's; any function of it does here.
fn hashed(generation: u8, secret: u8) -> HashedPin {
    HashedPin { generation: PinGeneration([generation; 16]), hash: PinHash::new([secret; 32]) }
}

/// Everything that a command could have written: no refusal may move it.
fn written(bench: &Bench) -> (i64, i64, String) {
    let tables = ["accounts", "cards", "blank_cards", "holders", "pins", "closures", "postings", "movements"];
    let counts: Vec<String> = tables.iter().map(|table| format!("(SELECT COUNT(*) FROM {table})")).collect();
    (
        bench.number("SELECT COUNT(*) FROM entries"),
        bench.number("SELECT COALESCE(SUM(amount * position), 0) FROM postings"),
        bench.text(&format!("SELECT {}", counts.join(" || ' ' || "))),
    )
}

fn new(number: &str, name: &str, card_text: Option<&str>, pin: u8) -> NewHolder {
    NewHolder {
        name: name.to_owned(),
        number: key(number),
        patron_class: "student".to_owned(),
        department: Some("数学系".to_owned()),
        batch: Some("2025".to_owned()),
        groups: vec![key("dorm-1")],
        card: card_text.map(card),
        single_limit_fen: None,
        daily_limit_fen: None,
        valid_until: None,
        initial_pin: hashed(pin, pin),
    }
}

fn open(bench: &mut Bench, accounts: Vec<NewHolder>) -> Reply {
    bench.command(Command::OpenAccounts { accounts, operator: key("op") })
}

fn stock(bench: &mut Bench, cards: &[&str]) -> Reply {
    bench.command(Command::StockCards { cards: cards.iter().map(|text| card(text)).collect() })
}

fn change(bench: &mut Bench, card_text: &str, change: SettingCommand) -> Reply {
    bench.command(Command::ChangeSetting { card: card(card_text), change, operator: key("op") })
}

fn code(reply: Reply) -> &'static str {
    reply.unwrap_err().code
}

/// The department's cards that are not active, and whether they were picked up.
fn waiting(bench: &mut Bench) -> Vec<(String, bool)> {
    let list = Command::PickUpList { department: "数学系".to_owned(), after: AccountId(0) };
    let cards = bench.command(list).unwrap()["cards"].clone();
    let cards: Vec<ToPickUp> = serde_json::from_value(cards).unwrap();
    cards.into_iter().map(|waiting| (waiting.card.to_string(), waiting.handed_over)).collect()
}

fn is(text: &str, handed_over: bool) -> (String, bool) {
    (text.to_owned(), handed_over)
}

/// Two holders with cards b1 and b2, and b3, b4 in stock.
fn freshmen() -> Bench {
    let mut bench = campus_of(Mode::Strict, 1, &[]);
    stock(&mut bench, &["b1", "b2", "b3", "b4"]).unwrap();
    let opened =
        open(&mut bench, vec![new("25001", "李雷", None, 1), new("25002", "韩梅梅", None, 2)]).unwrap();
    assert_eq!(
        (&opened["accounts"][0]["card"], &opened["accounts"][1]["card"]),
        (&json!("b1"), &json!("b2"))
    );
    assert_eq!(opened["blank_cards"], json!(2));
    bench
}

#[test]
fn accounts_are_opened_all_or_none_with_cards_of_the_stock_or_named_ones() {
    let mut bench = freshmen();
    let before = written(&bench);
    for (accounts, expected) in [
        (vec![new("25003", "a", None, 3), new("25001", "b", None, 4)], "number_in_use"),
        (vec![new("25003", "a", None, 3), new("25003", "b", None, 4)], "number_in_use"),
        (vec![new("25003", "a", Some("b1"), 3)], "card_in_use"),
        (vec![new("25003", "\n", None, 3)], "holder_field"),
        ((3..6).map(|number| new(&format!("2500{number}"), "a", None, number)).collect(), "no_blank_card"),
    ] {
        assert_eq!(code(open(&mut bench, accounts)), expected);
        assert_eq!(written(&bench), before, "{expected}: nothing is written");
    }
    // One that is named is not given to somebody else in the same breath.
    let opened =
        open(&mut bench, vec![new("25003", "a", None, 3), new("25004", "b", Some("b3"), 4)]).unwrap();
    assert_eq!(
        (&opened["accounts"][0]["card"], &opened["accounts"][1]["card"]),
        (&json!("b4"), &json!("b3"))
    );
    assert_eq!(opened["blank_cards"], json!(0));
    let again = stock(&mut bench, &["b1", "b5", "b5"]).unwrap();
    assert_eq!((&again["added"], &again["given_out"]), (&json!(1), &json!(1)));
    let shown = bench.command(Command::FindHolder { number: Some(key("25001")), user: None }).unwrap();
    assert_eq!(shown["holder"]["name"], json!("李雷"));
    assert_eq!(shown["cards"], json!({"b1": "inactive"}));
    assert_eq!(
        code(bench.command(Command::FindHolder { number: Some(key("9")), user: None })),
        "unknown_holder"
    );
    assert_eq!(code(bench.command(Command::FindHolder { number: None, user: None })), "holder");
    bench.check();
}

#[test]
fn cards_are_picked_up_activated_and_replaced_where_they_are_missing() {
    let mut bench = freshmen();
    assert_eq!(waiting(&mut bench), [is("b1", false), is("b2", false)]);
    change(&mut bench, "b1", SettingCommand::HandOverCard).unwrap();
    let before = written(&bench);
    change(&mut bench, "b1", SettingCommand::HandOverCard).unwrap();
    assert_eq!(written(&bench), before, "it is so already");
    assert_eq!(waiting(&mut bench), [is("b1", true), is("b2", false)]);
    let missing = || SettingCommand::ReissueMissing { new_card: None };
    assert_eq!(code(change(&mut bench, "b1", missing())), "handed_over");
    let shown = change(&mut bench, "b2", missing()).unwrap();
    assert_eq!(shown["cards"], json!({"b2": "void", "b3": "inactive"}));
    assert_eq!(waiting(&mut bench), [is("b1", true), is("b3", false)]);
    change(&mut bench, "b1", SettingCommand::ActivateCard).unwrap();
    assert_eq!(waiting(&mut bench), [is("b3", false)]);

    let before = written(&bench);
    let exchange = |new: Option<&str>| SettingCommand::ExchangeCard { new_card: new.map(card) };
    let legacy =
        |text: &str| SettingCommand::IssueLegacyCard { new_card: card(text), group: key("classrooms") };
    let twice = SettingCommand::Describe {
        field: feiqian_protocol::account::HolderField::Number,
        value: Some("25002".to_owned()),
    };
    for (text, command, expected) in [
        ("b1", SettingCommand::ActivateCard, "not_inactive"),
        ("b1", SettingCommand::HandOverCard, "not_inactive"),
        ("b2", SettingCommand::ActivateCard, "not_inactive"),
        ("b2", missing(), "card_void"),
        ("b1", missing(), "not_inactive"),
        ("b3", exchange(None), "not_active"),
        ("b2", exchange(None), "card_void"),
        ("b1", exchange(Some("b3")), "card_in_use"),
        ("b1", legacy("b3"), "card_in_use"),
        ("b1", twice, "number_in_use"),
        ("nobody", exchange(None), "unknown_card"),
    ] {
        assert_eq!(code(change(&mut bench, text, command.clone())), expected, "{text}: {command:?}");
        assert_eq!(written(&bench), before, "{expected}: nothing is written");
    }
    let shown = change(&mut bench, "b1", exchange(None)).unwrap();
    assert_eq!(shown["cards"], json!({"b1": "void", "b4": "active"}));
    assert_eq!(code(change(&mut bench, "b4", exchange(None))), "no_blank_card");
    bench.command(Command::ReportLoss { card: card("b4"), operator: key("op") }).unwrap();
    assert_eq!(code(change(&mut bench, "b4", exchange(Some("x")))), "card_lost");
    let shown = change(&mut bench, "b4", legacy("old")).unwrap();
    assert_eq!((&shown["cards"]["old"], &shown["legacy"]["old"]), (&json!("legacy"), &json!("classrooms")));
    bench.check();
}

#[test]
fn a_holder_activates_by_the_chosen_pin_and_binds_by_what_only_they_know() {
    let mut bench = freshmen();
    let activate = |pin| Command::ActivateCard { card: card("b1"), typed: vec![pin] };
    assert_eq!(code(bench.command(activate(hashed(1, 1)))), "pin_initial", "it opens its own change only");
    let salts = |bench: &mut Bench, number: &str| {
        bench.command(Command::BindSalts { number: key(number) }).unwrap()["salts"].clone()
    };
    let bind = |bench: &mut Bench, number: &str, name: &str, pin: HashedPin, user: &str| {
        let typed = vec![pin];
        bench.command(Command::Bind { number: key(number), name: name.to_owned(), typed, user: key(user) })
    };
    assert_eq!(code(bind(&mut bench, "25001", "李雷", hashed(1, 1), "u1")), "pin_initial");
    let change = Command::ChangePin { card: card("b1"), current: vec![hashed(1, 1)], pin: hashed(7, 9) };
    bench.command(change).unwrap();
    assert_eq!(code(bench.command(activate(hashed(7, 8)))), "wrong_pin");
    let shown = bench.command(activate(hashed(7, 9))).unwrap();
    assert_eq!(shown["cards"], json!({"b1": "active"}));

    // One that nobody has is not told from one that somebody has: a salt, always the same, and the same answers.
    assert_eq!(salts(&mut bench, "25001"), json!([PinGeneration([7; 16])]));
    let made_up = salts(&mut bench, "99999");
    assert_eq!(made_up, salts(&mut bench, "99999"));
    assert_ne!(made_up, salts(&mut bench, "99998"));
    let entries = |bench: &Bench| bench.number("SELECT COUNT(*) FROM entries");
    let before = entries(&bench);
    let made_up = HashedPin {
        generation: serde_json::from_value(made_up[0].clone()).unwrap(),
        hash: hashed(7, 9).hash,
    };
    let first = bind(&mut bench, "25001", "李雷", hashed(7, 8), "u1").unwrap_err();
    for (number, name, pin) in [
        ("25001", "李蕾", hashed(7, 9)),
        ("25001", "", hashed(7, 9)),
        ("25002", "李雷", hashed(7, 9)),
        ("99999", "李雷", made_up.clone()),
    ] {
        assert_eq!(bind(&mut bench, number, name, pin, "u1").unwrap_err(), first);
    }
    assert_eq!(first.code, "bind_mismatch");
    assert_eq!(entries(&bench), before, "what does not match leaves no entry");
    bind(&mut bench, "25001", "李雷", hashed(7, 9), "u1").unwrap();
    bind(&mut bench, "25001", "李雷", hashed(7, 9), "u1").unwrap();
    assert_eq!(code(bind(&mut bench, "25001", "李雷", hashed(7, 9), "u2")), "account_bound");
    let found = bench.command(Command::FindHolder { number: None, user: Some(key("u1")) }).unwrap();
    assert_eq!(found["holder"]["number"], json!("25001"));
    // Five tries a day, for a number that somebody has and for one that nobody has.
    for number in ["25001", "99999"] {
        let codes: Vec<_> =
            (0..5).map(|_| code(bind(&mut bench, number, "x", made_up.clone(), "u1"))).collect();
        assert_eq!(codes.last(), Some(&"bind_locked"), "{codes:?}");
    }
    assert_eq!(code(bind(&mut bench, "25001", "李雷", hashed(7, 9), "u1")), "bind_locked");
    bench.advance(24 * 3_600_000);
    bind(&mut bench, "25001", "李雷", hashed(7, 9), "u1").unwrap();
    bench.check();
}

#[test]
fn a_login_password_is_apart_from_the_pin_and_its_tries_are_bounded() {
    let mut bench = freshmen();
    let check =
        |bench: &mut Bench, typed: HashedPin| bench.command(Command::CheckLogin { card: card("b1"), typed });
    assert_eq!(code(check(&mut bench, hashed(1, 1))), "no_login");
    let set = Command::SetLogin { card: card("b1"), login: hashed(3, 30), operator: key("op") };
    let entries = bench.number("SELECT COUNT(*) FROM entries");
    bench.command(set).unwrap();
    assert_eq!(bench.number("SELECT COUNT(*) FROM entries"), entries, "no building is told");
    assert_eq!(
        bench.command(Command::LoginSalt { card: card("b1") }).unwrap()["salt"],
        json!(PinGeneration([3; 16]))
    );
    check(&mut bench, hashed(3, 30)).unwrap();
    assert_eq!(code(check(&mut bench, hashed(4, 30))), "login_changed");
    let change = |current, login| Command::ChangeLogin { card: card("b1"), current, login };
    assert_eq!(code(bench.command(change(hashed(3, 31), hashed(4, 40)))), "wrong_login");
    bench.command(change(hashed(3, 30), hashed(4, 40))).unwrap();
    for _ in 0..5 {
        assert_eq!(code(check(&mut bench, hashed(4, 41))), "wrong_login");
    }
    assert_eq!(code(check(&mut bench, hashed(4, 40))), "login_locked", "the right one, too");
    bench.advance(15 * 60_000);
    check(&mut bench, hashed(4, 40)).unwrap();
    let status = bench.command(Command::PinStatus { card: card("b1") }).unwrap();
    assert_eq!((&status["state"], &status["tries"]), (&json!("initial"), &json!({})));
    bench.check();
}

#[test]
fn a_closed_account_takes_nothing_more() {
    let mut bench = freshmen();
    change(&mut bench, "b1", SettingCommand::ActivateCard).unwrap();
    bench.close("b1").unwrap();
    let before = written(&bench);
    let replace = SettingCommand::ReplaceCard { new_card: card("b4") };
    for (command, expected) in [
        (closing("b1"), "closed"),
        (Command::ChangeSetting { card: card("b1"), change: replace, operator: key("op") }, "closed"),
        (Command::SetPin { card: card("b1"), pin: hashed(9, 9), operator: key("op") }, "closed"),
        (Command::SetLogin { card: card("b1"), login: hashed(9, 9), operator: key("op") }, "closed"),
        (
            Command::ActivateVirtualCard {
                card: card("b1"),
                algorithm: "ed25519".to_owned(),
                key: feiqian_protocol::chain::hex(
                    SigningKey::from_bytes(&[5; 32]).verifying_key().as_bytes(),
                ),
                operator: key("op"),
            },
            "closed",
        ),
    ] {
        let name = format!("{command:?}");
        assert_eq!(code(bench.command(command)), expected, "{name}");
        assert_eq!(written(&bench), before, "{name}");
    }
    bench.check();
}
