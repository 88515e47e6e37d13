//! Payment PINs: what changes them, what is refused, and what nodes are told.

use feiqian_protocol::account::{Document, Intent, actor_id};
use feiqian_protocol::entry::{Decline, PinVerifier, SettingAnswered, WrongPin};
use feiqian_protocol::limits::{PIN_TRIES_MAX, PIN_VERIFIERS_PER_ENTRY_MAX};
use feiqian_protocol::pin::{PinGeneration, PinHash, TypedPins};
use feiqian_protocol::tap::DeclineReason;

use super::super::Round;
use super::*;
use crate::pin::{HashedPin, PinStatus};

/// A PIN under a name. Argon2 is the shell's; any function of the PIN does here.
fn hashed(generation: u8, pin: u8) -> HashedPin {
    HashedPin { generation: PinGeneration([generation; 16]), hash: PinHash::new([pin; 32]) }
}

fn set(card_text: &str, pin: HashedPin) -> Command {
    Command::SetPin { card: card(card_text), pin, operator: key("op") }
}

fn status(bench: &mut Bench, card_text: &str) -> PinStatus {
    let reply = bench.command(Command::PinStatus { card: card(card_text) }).unwrap();
    serde_json::from_value(reply).unwrap()
}

/// The verifiers that a node has been told, in order, with repeats.
fn told(bench: &Bench, index: usize) -> Vec<PinVerifier> {
    let mut told = Vec::new();
    for frame in &bench.nodes[index].heard {
        let (Frame::Entries(entries) | Frame::Fresh(entries)) = frame else { continue };
        for record in &entries.records {
            if let Body::PinVerifiers(pins) = Entry::from_record(record).unwrap().body {
                assert!(pins.verifiers.len() <= PIN_VERIFIERS_PER_ENTRY_MAX);
                told.extend(pins.verifiers);
            }
        }
    }
    told
}

/// The verifier that this node is to have.
fn verifier(index: usize, account: u64, pin: &HashedPin) -> PinVerifier {
    let key = PinKey::new([index as u8 + 1; 32]);
    let digest = key.digest(pin.generation, &pin.hash);
    PinVerifier { account: AccountId(account), generation: pin.generation, digest }
}

/// A writer who had not seen the PINs of account 1 sets one.
fn set_beside(bench: &mut Bench, pin: &HashedPin) {
    let transaction = bench.core.connection.transaction().unwrap();
    let mut round = Round::begin(&transaction, &mut bench.core.state, bench.now).unwrap();
    let intent = Intent::SetPin { generation: pin.generation, replaces: Vec::new() };
    round.settle_as(AccountId(1), intent, Actor::centre()).unwrap().unwrap();
    round.keep_pin(AccountId(1), pin.generation, &pin.hash).unwrap();
    round.finish().unwrap();
    transaction.commit().unwrap();
}

fn code(reply: Reply) -> &'static str {
    reply.unwrap_err().code
}

#[test]
fn a_pin_is_told_to_every_node_under_its_own_key_however_late_it_comes() {
    let mut bench = campus_of(Mode::Strict, 2, &[5_000, 5_000]);
    bench.cut(1);
    let (first, second) = (hashed(1, 7), hashed(2, 8));
    bench.command(set("c1", first.clone())).unwrap();
    bench.command(set("c1", second.clone())).unwrap();
    bench.command(set("c2", hashed(3, 9))).unwrap();
    let both = |index| vec![verifier(index, 1, &second), verifier(index, 2, &hashed(3, 9))];
    assert_eq!(told(&bench, 0), [vec![verifier(0, 1, &first)], both(0)].concat());
    bench.connect(1);
    assert_eq!(told(&bench, 1), both(1), "of a PIN that is none any more nothing is told");
    let third = bench.enrol("n3", Role::Kiosk);
    bench.connect(third);
    assert_eq!(told(&bench, third), both(third));
    bench.cut(third);
    bench.connect(third);
    assert_eq!(told(&bench, third), both(third), "and nothing twice");
    bench.check();
}

#[test]
fn more_pins_than_fit_one_entry_are_told_in_parts() {
    let count = 2 * PIN_VERIFIERS_PER_ENTRY_MAX + 10;
    let mut bench = campus_of(Mode::Strict, 0, &vec![100; count]);
    for number in 1..=count {
        let generation = PinGeneration(std::array::from_fn(|index| (number >> (8 * (index % 2))) as u8));
        let pin = HashedPin { generation, hash: PinHash::new([1; 32]) };
        bench.command(set(&format!("c{number}"), pin)).unwrap();
    }
    let node = bench.enrol("n1", Role::Pos);
    bench.connect(node);
    let accounts: Vec<u64> = told(&bench, node).iter().map(|pin| pin.account.0).collect();
    assert_eq!(accounts, (1..=count as u64).collect::<Vec<_>>());
}

#[test]
fn an_initial_pin_is_told_to_nobody_and_opens_its_own_change() {
    let mut bench = campus_of(Mode::Strict, 1, &[]);
    let account = json!({
        "card": "c1", "patron_class": "student", "opening_fen": 5_000, "initial_pin": hashed(1, 7),
    });
    let import = json!({ "command": "import_accounts", "accounts": [account] });
    bench.command(serde_json::from_value(import).unwrap()).unwrap();
    assert_eq!(status(&mut bench, "c1").state, "initial");
    let change = |current: Vec<HashedPin>, pin| Command::ChangePin { card: card("c1"), current, pin };
    assert_eq!(code(bench.command(change(vec![hashed(1, 8)], hashed(2, 9)))), "wrong_pin");
    assert_eq!(code(bench.command(change(vec![], hashed(2, 9)))), "pin_changed");
    bench.command(change(vec![hashed(1, 7)], hashed(2, 9))).unwrap();
    let now = status(&mut bench, "c1");
    assert_eq!((now.state.as_str(), now.pins.len(), now.tries.len()), ("chosen", 1, 0));
    bench.command(Command::ResetPin { card: card("c1"), pin: hashed(3, 7), operator: key("op") }).unwrap();
    assert_eq!(status(&mut bench, "c1").state, "initial");
    assert_eq!(told(&bench, 0), [verifier(0, 1, &hashed(2, 9))]);
    bench.check();
}

#[test]
fn three_wrong_ones_lock_the_change_until_it_is_unlocked_or_reset() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    bench.command(set("c1", hashed(1, 7))).unwrap();
    let change = |pin, new| Command::ChangePin {
        card: card("c1"),
        current: vec![hashed(1, pin)],
        pin: hashed(new, 9),
    };
    for _ in 0..PIN_TRIES_MAX {
        assert_eq!(code(bench.command(change(8, 2))), "wrong_pin");
    }
    assert_eq!(code(bench.command(change(7, 2))), "pin_locked");
    assert_eq!(status(&mut bench, "c1").tries["centre"], PIN_TRIES_MAX);
    bench.command(Command::UnlockPin { card: card("c1") }).unwrap();
    assert_eq!(told(&bench, 0), [verifier(0, 1, &hashed(1, 7)); 2], "so that nodes count anew");
    bench.command(change(7, 2)).unwrap();
    assert_eq!(code(bench.command(set("c9", hashed(4, 1)))), "unknown_card");
    assert_eq!(code(bench.command(set("c1", hashed(2, 1)))), "key_used", "a name is used once");
}

#[test]
fn what_nodes_counted_is_known_until_they_are_told_anew() {
    let mut bench = campus_of(Mode::Strict, 2, &[5_000]);
    bench.command(set("c1", hashed(1, 7))).unwrap();
    let decline = |tries, sequence: &str| Decline {
        tap: TapRef { epoch: 1, sequence: key(sequence) },
        account: Some(AccountId(1)),
        card: card("c1"),
        amount: Fen::new(3_000),
        reason: DeclineReason::WrongPin,
        access: false,
        pin_tries: Some(tries),
    };
    let wall = bench.now.wall;
    for (index, tries) in [(0, 1), (0, 2), (1, 1)] {
        let sequence = format!("w{index}{tries}");
        bench.nodes[index].write(wall, Proof::Card, decline(tries, &sequence));
        bench.upload(index);
    }
    assert_eq!(status(&mut bench, "c1").tries, [("n1".to_owned(), 2), ("n2".to_owned(), 1)].into());
    bench.command(set("c1", hashed(2, 7))).unwrap();
    assert_eq!(status(&mut bench, "c1").tries, BTreeMap::new());
    bench.check();
}

#[test]
fn of_two_pins_set_at_once_neither_is_told_until_one_is_confirmed() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    bench.command(set("c1", hashed(1, 7))).unwrap();
    // What another writer, who had not seen the first, has set.
    bench.cut(0);
    set_beside(&mut bench, &hashed(2, 8));
    bench.connect(0);
    assert_eq!(status(&mut bench, "c1").state, "unconfirmed");
    bench.command(Command::UnlockPin { card: card("c1") }).unwrap();
    assert_eq!(told(&bench, 0).len(), 1, "none of two is told");
    let confirm = |pin| Command::ConfirmPin {
        card: card("c1"),
        typed: vec![hashed(1, pin), hashed(2, pin)],
        operator: key("op"),
    };
    assert_eq!(code(bench.command(confirm(9))), "wrong_pin");
    bench.command(confirm(8)).unwrap();
    assert_eq!(status(&mut bench, "c1").state, "chosen");
    assert_eq!(told(&bench, 0).last(), Some(&verifier(0, 1, &hashed(2, 8))));
    assert_eq!(code(bench.command(confirm(8))), "pin_confirmed");
}

#[test]
fn a_core_that_is_opened_again_tells_the_rest() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    bench.cut(0);
    bench.command(set("c1", hashed(1, 7))).unwrap();
    let identity = Identity { institution: INSTITUTION, log_key: bench.centre_key.clone() };
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("centre.db");
    bench.core.connection().execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
    bench.core = ReconcileCore::open(Connection::open(&path).unwrap(), identity).unwrap();
    bench.now.mono_ms = 0;
    bench.connect(0);
    assert_eq!(told(&bench, 0), [verifier(0, 1, &hashed(1, 7))]);
}

/// At a kiosk, which holds the document as it was then, the holder shows one PIN and chooses another.
fn change_at(
    bench: &mut Bench,
    index: usize,
    shown: Option<&HashedPin>,
    chosen: &HashedPin,
    document: &[u8],
) {
    let writer = actor_id(INSTITUTION, bench.nodes[index].id, 1, 1, AccountId(1));
    let wall = bench.now.wall;
    let replaces = shown.map(|pin| pin.generation).into_iter().collect();
    let intent = Intent::SetPin { generation: chosen.generation, replaces };
    let change = Document::load(document, writer).unwrap().carry_out(&intent, wall).unwrap();
    let current = shown.map_or(PinHash::new([6; 32]), |pin| pin.hash);
    let typed = TypedPins { current, chosen: chosen.hash };
    let typed = PinKey::new([index as u8 + 1; 32]).seal(AccountId(1), chosen.generation, &typed);
    let account = AccountId(1);
    let setting =
        Setting { account, document_epoch: 1, intent, change: change.into(), typed: Some(typed), of: None };
    bench.nodes[index].write(wall, Proof::CardAndPin, setting);
}

fn document(bench: &Bench) -> Vec<u8> {
    bench.core.connection().query_row("SELECT document FROM accounts", [], |row| row.get(0)).unwrap()
}

/// What the centre has answered a node, in order.
fn answers(bench: &Bench, index: usize) -> Vec<String> {
    let mut answers = Vec::new();
    for frame in &bench.nodes[index].heard {
        let (Frame::Entries(entries) | Frame::Fresh(entries)) = frame else { continue };
        for record in &entries.records {
            if let Body::SettingAnswered(SettingAnswered { refused, .. }) =
                Entry::from_record(record).unwrap().body
            {
                answers.push(refused.map_or("taken".to_owned(), |code| code.to_string()));
            }
        }
    }
    answers
}

/// Account 1 has PIN 7; the bench, with two kiosks in session.
fn two_kiosks() -> (Bench, [usize; 2], Vec<u8>) {
    let mut bench = campus_of(Mode::Strict, 0, &[5_000]);
    let kiosks = ["k1", "k2"].map(|name| bench.enrol(name, Role::Kiosk));
    kiosks.into_iter().for_each(|kiosk| bench.connect(kiosk));
    bench.command(set("c1", hashed(1, 7))).unwrap();
    let document = document(&bench);
    (bench, kiosks, document)
}

#[test]
fn a_pin_changed_at_a_cut_off_kiosk_after_the_account_was_closed_is_refused() {
    let (mut bench, [one, _], before) = two_kiosks();
    bench.cut(one);
    change_at(&mut bench, one, Some(&hashed(1, 7)), &hashed(2, 8), &before);
    bench.close("c1").unwrap();
    bench.connect(one);
    bench.upload(one);
    assert_eq!(answers(&bench, one), ["closed"]);
    bench.check();
}

#[test]
fn a_pin_changed_at_a_kiosk_is_taken_where_the_one_before_was_shown() {
    let (mut bench, [one, two], before) = two_kiosks();
    let (first, second) = (hashed(1, 7), hashed(2, 8));
    change_at(
        &mut bench,
        one,
        Some(&HashedPin { hash: PinHash::new([9; 32]), ..first.clone() }),
        &hashed(3, 8),
        &before,
    );
    bench.upload(one);
    assert_eq!(answers(&bench, one), ["wrong_pin"]);
    assert_eq!(status(&mut bench, "c1").tries.get("centre"), Some(&1));
    assert_eq!(told(&bench, two), [verifier(two, 1, &first)], "and nothing has changed");

    change_at(&mut bench, two, Some(&first), &second, &before);
    bench.upload(two);
    assert_eq!(answers(&bench, two), ["taken"]);
    assert_eq!(told(&bench, one).last(), Some(&verifier(one, 1, &second)));
    assert!(status(&mut bench, "c1").tries.is_empty());
    let change = |current| Command::ChangePin { card: card("c1"), current: vec![current], pin: hashed(4, 4) };
    assert_eq!(code(bench.command(change(first))), "pin_changed");
    bench.command(change(second)).unwrap();

    // Sealed by another hand, or for another PIN, it cannot be read.
    let mut foreign = document(&bench);
    let intent =
        Intent::SetPin { generation: PinGeneration([5; 16]), replaces: vec![PinGeneration([4; 16])] };
    let writer = actor_id(INSTITUTION, bench.nodes[one].id, 1, 1, AccountId(1));
    let wall = bench.now.wall;
    let change = Document::load(&foreign, writer).unwrap().carry_out(&intent, wall).unwrap();
    foreign.clear();
    let typed = TypedPins { current: PinHash::new([4; 32]), chosen: PinHash::new([5; 32]) };
    for typed in [None, Some(PinKey::new([99; 32]).seal(AccountId(1), PinGeneration([5; 16]), &typed))] {
        let setting = Setting {
            account: AccountId(1),
            document_epoch: 1,
            intent: intent.clone(),
            change: change.clone().into(),
            typed,
            of: None,
        };
        bench.nodes[one].write(wall, Proof::CardAndPin, setting);
    }
    bench.nodes[one].write(wall, Proof::CardAndPin, WrongPin { account: AccountId(1), tries: 2 });
    bench.upload(one);
    assert_eq!(answers(&bench, one), ["wrong_pin", "pin_unreadable", "pin_unreadable"]);
    assert_eq!(status(&mut bench, "c1").tries.get("k1"), Some(&2));
    assert_eq!(status(&mut bench, "c1").pins.len(), 1);
    bench.check();
}

#[test]
fn of_pins_changed_at_two_kiosks_that_did_not_hear_of_each_other_none_pays_until_one_is_confirmed() {
    let (mut bench, [one, two], before) = two_kiosks();
    let first = hashed(1, 7);
    change_at(&mut bench, one, Some(&first), &hashed(2, 8), &before);
    change_at(&mut bench, two, Some(&first), &hashed(3, 9), &before);
    bench.upload(one);
    bench.upload(two);
    assert_eq!((answers(&bench, one), answers(&bench, two)), (vec!["taken".into()], vec!["taken".into()]));
    assert_eq!(status(&mut bench, "c1").state, "unconfirmed");
    let told_before = told(&bench, two).len();
    let confirm = Command::ConfirmPin {
        card: card("c1"),
        typed: vec![hashed(2, 8), HashedPin { hash: PinHash::new([8; 32]), ..hashed(3, 9) }],
        operator: key("op"),
    };
    bench.command(confirm).unwrap();
    assert_eq!(told(&bench, two)[told_before..], [verifier(two, 1, &hashed(2, 8))]);
    bench.check();
}

#[test]
fn who_has_no_pin_chooses_the_first_one_at_a_kiosk_and_not_beside_another() {
    let mut bench = campus_of(Mode::Strict, 0, &[5_000]);
    let kiosk = bench.enrol("k1", Role::Kiosk);
    bench.connect(kiosk);
    let before = document(&bench);
    change_at(&mut bench, kiosk, None, &hashed(1, 7), &before);
    bench.upload(kiosk);
    assert_eq!(told(&bench, kiosk), [verifier(kiosk, 1, &hashed(1, 7))]);
    change_at(&mut bench, kiosk, None, &hashed(2, 8), &before);
    bench.upload(kiosk);
    assert_eq!(answers(&bench, kiosk), ["taken", "pin_changed"]);
    assert_eq!(status(&mut bench, "c1").state, "chosen");
    bench.check();
}

#[test]
fn a_hash_that_was_lost_with_the_centre_is_taken_out_of_the_kiosks_log_again() {
    let (mut bench, [one, two], before) = two_kiosks();
    let (first, second) = (hashed(1, 7), hashed(2, 8));
    change_at(&mut bench, one, Some(&first), &second, &before);
    bench.upload(one);
    // As after a backup: the stream was taken back from the buildings, and the kiosk's log comes again.
    bench.core.connection().execute("DELETE FROM pins", []).unwrap();
    assert!(!status(&mut bench, "c1").pins[0].held);
    change_at(&mut bench, one, Some(&first), &second, &before);
    bench.upload(one);
    assert!(status(&mut bench, "c1").pins[0].held);
    assert_eq!(told(&bench, two).last(), Some(&verifier(two, 1, &second)));
    assert_eq!(answers(&bench, one), ["taken", "taken"]);
    bench.check();
}

#[test]
fn a_pin_from_before_a_reset_or_from_longer_ago_shows_nothing_at_a_kiosk_and_is_no_try() {
    let (mut bench, [one, two], before) = two_kiosks();
    let first = hashed(1, 7);
    bench.command(set("c1", hashed(2, 8))).unwrap();
    bench.command(set("c1", hashed(3, 9))).unwrap();
    change_at(&mut bench, one, Some(&first), &hashed(4, 4), &before);
    bench.upload(one);
    assert_eq!(answers(&bench, one), ["pin_changed"]);

    let before = document(&bench);
    let reset = Command::ResetPin { card: card("c1"), pin: hashed(5, 6), operator: key("op") };
    bench.command(reset).unwrap();
    change_at(&mut bench, two, Some(&hashed(3, 9)), &hashed(6, 5), &before);
    bench.upload(two);
    assert_eq!(answers(&bench, two), ["pin_changed"]);
    let status = status(&mut bench, "c1");
    assert!(status.state == "initial" && status.tries.is_empty(), "{status:?}");
    bench.check();
}
