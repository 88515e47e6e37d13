//! The centre's word for new cards, and what it answers buildings that went by it.

use feiqian_protocol::entry::{CardShown, SettingAnswered};
use feiqian_protocol::issuance::{Issuance, SignedIssuance};

use super::*;
use crate::io::SettingCommand;

fn change(bench: &mut Bench, card_text: &str, change: SettingCommand) -> Reply {
    bench.command(Command::ChangeSetting { card: card(card_text), change, operator: key("op") })
}

/// What was signed, as it is read from a reply.
fn issued(reply: &Reply) -> SignedIssuance {
    SignedIssuance::from_text(reply.as_ref().unwrap()["issuance"].as_str().unwrap()).unwrap()
}

fn code(reply: Reply) -> &'static str {
    reply.unwrap_err().code
}

fn answers(bench: &Bench) -> Vec<Option<String>> {
    let records = bench.nodes[0].heard.iter().filter_map(|frame| match frame {
        Frame::Entries(entries) | Frame::Fresh(entries) => Some(&entries.records),
        _ => None,
    });
    let bodies = records.flatten().map(|record| Entry::from_record(record).unwrap().body);
    let answers = bodies.filter_map(|body| match body {
        Body::SettingAnswered(SettingAnswered { refused, .. }) => Some(refused.map(|code| code.to_string())),
        _ => None,
    });
    answers.collect()
}

#[test]
fn a_new_card_comes_with_the_centres_word_for_it() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    let centre = bench.centre_key.verifying_key();
    let replaced = issued(&change(&mut bench, "c1", SettingCommand::ReplaceCard { new_card: card("c2") }));
    assert!(replaced.is_signed_by(&centre));
    let expected = Issuance {
        institution: INSTITUTION,
        account: AccountId(1),
        card: card("c2"),
        replaces: Some(card("c1")),
        time: replaced.issuance.time,
    };
    assert_eq!(replaced.issuance, expected);
    let again = issued(&change(&mut bench, "c1", SettingCommand::ReplaceCard { new_card: card("c2") }));
    assert_eq!(again.issuance, expected, "said again");
    let exchange = SettingCommand::ExchangeCard { new_card: Some(card("c3")) };
    assert_eq!(issued(&change(&mut bench, "c2", exchange)).issuance.replaces, Some(card("c2")));
    let asked = issued(&bench.command(Command::Issuance { card: card("c3") }));
    assert!(asked.is_signed_by(&centre));
    assert_eq!((asked.issuance.card, asked.issuance.replaces), (card("c3"), None));
    let frozen = change(&mut bench, "c3", SettingCommand::Freeze);
    assert!(frozen.unwrap().get("issuance").is_none());

    let ask = |bench: &mut Bench, text| code(bench.command(Command::Issuance { card: card(text) }));
    assert_eq!(ask(&mut bench, "c1"), "card_void");
    assert_eq!(ask(&mut bench, "c9"), "unknown_card");
    bench.command(Command::ReportLoss { card: card("c3"), operator: key("op") }).unwrap();
    assert_eq!(ask(&mut bench, "c3"), "card_lost");
}

#[test]
fn a_card_that_was_given_out_for_a_withdrawn_one_is_good_again_where_no_other_is() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    let good = issued(&change(&mut bench, "c1", SettingCommand::ReplaceCard { new_card: card("c5") }));
    change(&mut bench, "c5", SettingCommand::VoidCard).unwrap();
    // A copy of the centre from before has done so.
    let forgotten = Issuance { card: card("c6"), replaces: Some(card("c5")), ..good.issuance };
    let (wall, issuance) = (bench.now.wall, forgotten.sign(&bench.centre_key));
    bench.nodes[0].write(wall, Proof::None, CardShown { issuance });
    bench.upload(0);
    assert_eq!(answers(&bench), [None]);
    let cards = bench.command(Command::Account { card: card("c1") }).unwrap()["cards"].clone();
    assert_eq!(cards, json!({ "c1": "void", "c5": "void", "c6": "active" }));
    bench.check();
}

#[test]
fn a_building_that_went_by_a_word_is_answered() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000, 1_000]);
    let good = issued(&change(&mut bench, "c1", SettingCommand::ReplaceCard { new_card: card("c5") }));
    let say = |text: &str, replaces| Issuance { card: card(text), replaces, ..good.issuance.clone() };
    // A copy of the centre from before has given out the second one, and then the third for it.
    let forgotten = say("c7", Some(card("c5"))).sign(&bench.centre_key);
    let too_late = say("c8", Some(card("c1"))).sign(&bench.centre_key);
    let taken = say("c1", None);
    let taken = Issuance { account: AccountId(2), ..taken }.sign(&bench.centre_key);
    let nobodys = Issuance { account: AccountId(9), ..say("c9", None) }.sign(&bench.centre_key);
    let forged = say("c9", None).sign(&SigningKey::from_bytes(&[1; 32]));
    for issuance in [good, forgotten, too_late, taken, nobodys, forged] {
        let wall = bench.now.wall;
        bench.nodes[0].write(wall, Proof::None, CardShown { issuance });
    }
    bench.upload(0);
    let refused = |code: &str| Some(code.to_owned());
    let expected = [
        None,
        None,
        refused("card_void"),
        refused("card_in_use"),
        refused("no_such_account"),
        refused("not_issued"),
    ];
    assert_eq!(answers(&bench), expected);
    let cards = bench.command(Command::Account { card: card("c7") }).unwrap()["cards"].clone();
    assert_eq!(cards, json!({ "c1": "void", "c5": "void", "c7": "active" }));
    assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 1, "a word that is not the centre's");
    bench.check();
}
