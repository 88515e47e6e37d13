//! Payment PINs: which one pays, how wrong ones are counted, and what a retry is told.

use feiqian_protocol::account::Intent;
use feiqian_protocol::campus::Mode;
use feiqian_protocol::chain::hex;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{
    ActorKind, Body, Decline, Entry, PinVerifier, PinVerifiers, Proof, SettingAnswered, WrongPin,
};
use feiqian_protocol::ids::{AccountId, CardNumber, Key, LogId};
use feiqian_protocol::pin::{PinDigest, PinGeneration, PinHash, PinKey, TypedPins};
use feiqian_protocol::tap::{DeclineReason, Pin, TapKind, TapRequest};

use super::super::testing::*;
use crate::io::{Input, Output, SettingDone, SettingError, Ticket};
use crate::pin::change::NewPin;
use crate::settings::{SettingKind, SettingRequest};

const FIRST: PinGeneration = PinGeneration([1; 16]);
const SECOND: PinGeneration = PinGeneration([2; 16]);
const KEY: PinKey = PinKey::new([9; 32]);

/// What the shell makes of a PIN. Argon2 is the shell's; any function of the PIN does here.
fn digest(generation: PinGeneration, pin: u8) -> PinDigest {
    KEY.digest(generation, &PinHash::new([pin; 32]))
}

/// Over the limits, with a PIN.
fn with_pin(sequence: &str, amount: i64, pin: Pin) -> TapRequest {
    TapRequest { pin, ..tap(sequence, "alice", TapKind::Amount(fen(amount))) }
}

fn entered(generation: PinGeneration, pin: u8) -> Pin {
    Pin::Entered { generation, digest: digest(generation, pin) }
}

fn verifier(account: AccountId, generation: PinGeneration, pin: u8) -> Body {
    let digest = digest(generation, pin);
    PinVerifiers { verifiers: vec![PinVerifier { account, generation, digest }] }.into()
}

fn set(generation: PinGeneration, replaces: Vec<PinGeneration>) -> Intent {
    Intent::SetPin { generation, replaces }
}

/// Alice has 100 yuan here and PIN 7; the building is cut off.
fn cut_off_with_pin() -> World {
    let mut world = World::connected(Mode::Strict);
    with_pin_seven(&mut world);
    world.disconnect();
    world
}

fn with_pin_seven(world: &mut World) {
    world.share_grant(ALICE, 5_000);
    world.grant(ALICE, 10_000);
    let frame = world.setting(ALICE, set(FIRST, vec![]));
    world.frame(frame);
    world.tell(vec![verifier(ALICE, FIRST, 7)]);
}

/// What of the PIN the shell is to hash.
fn to_hash(world: &mut World, sequence: &str) -> Option<PinGeneration> {
    let outputs = world.step(vec![Input::Pin(Ticket(0), tap(sequence, "alice", TapKind::Amount(fen(1))))]);
    let [Output::PinGeneration(_, generation)] = outputs[..] else { panic!("{outputs:?}") };
    generation
}

fn declines(world: &mut World) -> Vec<Decline> {
    world.connect();
    let mut declines = Vec::new();
    for body in world.uploaded() {
        if let Body::Decline(decline) = body {
            declines.push(decline);
        }
    }
    declines
}

#[test]
fn the_right_pin_pays_over_the_limits_and_uses_none_of_the_allowance() {
    let mut world = cut_off_with_pin();
    assert_eq!(decided(&world.buy("1", "alice", 3_000)), declined(DeclineReason::PinRequired));
    assert_eq!(to_hash(&mut world, "2"), Some(FIRST));
    let right = with_pin("2", 3_000, entered(FIRST, 7));
    assert_eq!(decided(&world.tap(right.clone())), approved(ALICE, 3_000, 0));
    assert_eq!(decided(&world.tap(right)), approved(ALICE, 3_000, 0), "a retry gets the first answer");
    assert_eq!(to_hash(&mut world, "2"), None, "and there is nothing to hash for it");
    let all = |sequence| tap(sequence, "alice", TapKind::Amount(fen(2_000)));
    assert_eq!(decided(&world.tap(all("3"))), approved(ALICE, 2_000, 0));
    assert_eq!(decided(&world.tap(all("4"))), approved(ALICE, 2_000, 0), "the day's allowance is all there");
    world.connect();
    let proofs: Vec<Proof> = world
        .centre
        .records
        .iter()
        .map(|record| Entry::from_record(record).unwrap())
        .filter(|entry| matches!(entry.body, Body::Debit(_)))
        .map(|entry| entry.actor.proof)
        .collect();
    assert_eq!(proofs, [Proof::CardAndPin, Proof::Card, Proof::Card]);
    world.check();
}

#[test]
fn three_wrong_pins_in_a_row_lock_it_here_until_word_comes_from_the_centre() {
    let mut world = cut_off_with_pin();
    let wrong = |sequence| with_pin(sequence, 3_000, entered(FIRST, 8));
    let right = |sequence| with_pin(sequence, 3_000, entered(FIRST, 7));
    for sequence in ["1", "2"] {
        assert_eq!(decided(&world.tap(wrong(sequence))), declined(DeclineReason::WrongPin));
        // A retry counts no second try.
        assert_eq!(decided(&world.tap(wrong(sequence))), declined(DeclineReason::WrongPin));
    }
    assert_eq!(decided(&world.tap(right("3"))), approved(ALICE, 3_000, 0), "the right one ends the count");
    for sequence in ["4", "5", "6"] {
        assert_eq!(decided(&world.tap(wrong(sequence))), declined(DeclineReason::WrongPin));
    }
    assert_eq!(to_hash(&mut world, "7"), None);
    assert_eq!(decided(&world.tap(right("7"))), declined(DeclineReason::PinLocked));
    let unhashed = with_pin("8", 3_000, Pin::NotHashed);
    assert_eq!(decided(&world.tap(unhashed)), declined(DeclineReason::PinLocked));
    assert_eq!(decided(&world.buy("9", "alice", 1_000)), approved(ALICE, 1_000, 0), "without one as before");
    let tries: Vec<Option<u8>> = declines(&mut world).iter().map(|decline| decline.pin_tries).collect();
    assert_eq!(tries, [Some(1), Some(2), Some(1), Some(2), Some(3), None, None]);
    world.tell(vec![verifier(ALICE, FIRST, 7)]);
    assert_eq!(decided(&world.tap(right("10"))), approved(ALICE, 3_000, 0));
    world.check();
}

#[test]
fn tries_survive_the_end_of_the_process() {
    let temp = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Strict, temp.path());
    with_pin_seven(&mut world);
    world.disconnect();
    for sequence in ["1", "2", "3"] {
        world.tap(with_pin(sequence, 3_000, entered(FIRST, 8)));
        world.reopen();
    }
    let right = with_pin("4", 3_000, entered(FIRST, 7));
    assert_eq!(decided(&world.tap(right)), declined(DeclineReason::PinLocked));
}

#[test]
fn only_one_chosen_pin_that_the_document_names_pays() {
    let mut world = World::connected(Mode::Strict);
    with_pin_seven(&mut world);
    let right = |sequence, generation| with_pin(sequence, 3_000, entered(generation, 7));
    // Another is set, and its verifier has not come yet.
    let second = world.setting(ALICE, set(SECOND, vec![FIRST]));
    world.frame(second);
    assert_eq!(to_hash(&mut world, "1"), None);
    assert_eq!(decided(&world.tap(right("1", FIRST))), declined(DeclineReason::PinNotSet));
    world.tell(vec![verifier(ALICE, SECOND, 7)]);
    assert_eq!(
        decided(&world.tap(right("2", FIRST))),
        declined(DeclineReason::PinNotSet),
        "hashed for the old one"
    );
    assert_eq!(decided(&world.tap(right("3", SECOND))), approved(ALICE, 3_000, 0));
    // A third one, set by somebody who had not seen the second.
    let third = world.setting(ALICE, set(PinGeneration([3; 16]), vec![]));
    world.frame(third);
    assert_eq!(decided(&world.tap(right("4", SECOND))), declined(DeclineReason::PinNotSet));
    let confirm = Intent::ConfirmPin { generation: SECOND, others: vec![PinGeneration([3; 16])] };
    let confirmed = world.setting(ALICE, confirm);
    world.frame(confirmed);
    assert_eq!(decided(&world.tap(right("5", SECOND))), approved(ALICE, 3_000, 0));
    // The initial one again: whoever knows it, and even where its verifier were here.
    let initial = PinGeneration([4; 16]);
    let reset = world.setting(ALICE, Intent::ResetPin { generation: initial, replaces: vec![SECOND] });
    world.frame(reset);
    assert_eq!(decided(&world.tap(right("6", SECOND))), declined(DeclineReason::PinNotSet));
    world.tell(vec![verifier(ALICE, initial, 7)]);
    assert_eq!(decided(&world.tap(right("7", initial))), declined(DeclineReason::PinNotSet));
    world.check();
}

#[test]
fn a_pin_counts_once_however_long_the_tap_waits_for_money() {
    let mut world = World::connected(Mode::Strict);
    with_pin_seven(&mut world);
    world.tap(with_pin("1", 12_000, entered(FIRST, 8)));
    let outputs = world.tap(with_pin("2", 12_000, entered(FIRST, 7)));
    assert_eq!(decided(&outputs), [], "it waits for the rest");
    assert_eq!(to_hash(&mut world, "2"), None, "and is asked for nothing again");
    assert_eq!(decided(&world.grant(ALICE, 2_000)), approved(ALICE, 12_000, 0));
    let wrong = world.tap(with_pin("3", 3_000, entered(FIRST, 8)));
    assert_eq!(decided(&wrong), declined(DeclineReason::WrongPin));
    let tries: Vec<Option<u8>> = declines(&mut world).iter().map(|decline| decline.pin_tries).collect();
    assert_eq!(tries, [Some(1), Some(1)], "the right one stood between them");
}

#[test]
fn nothing_that_is_kept_tells_what_was_entered() {
    let one = with_pin("1", 3_000, entered(FIRST, 7));
    let other = with_pin("1", 3_000, entered(FIRST, 8));
    assert_eq!(crate::edge::request_digest(&one), crate::edge::request_digest(&other));
    assert_ne!(
        crate::edge::request_digest(&one),
        crate::edge::request_digest(&with_pin("1", 3_000, Pin::Absent))
    );
    let shown = format!("{one:?}");
    assert!(!shown.contains(&hex(&digest(FIRST, 7).to_bytes())), "{shown}");
}

/// A holder shows one PIN and chooses another, which is to have this name.
fn change(
    world: &mut World,
    shown: Option<(PinGeneration, u8)>,
    generation: PinGeneration,
) -> Result<SettingDone, SettingError> {
    let hash = |pin| PinHash::new([pin; 32]);
    let typed = TypedPins { current: hash(shown.map_or(6, |(_, pin)| pin)), chosen: hash(9) };
    let new = NewPin {
        shown: shown.map(|(generation, pin)| (generation, digest(generation, pin))),
        generation,
        typed: KEY.seal(ALICE, generation, &typed),
    };
    let request = SettingRequest {
        terminal: None,
        card: CardNumber::new("alice").unwrap(),
        kind: SettingKind::SetPin(Box::new(new)),
        by: Key::new("kiosk").unwrap(),
        proof: Proof::CardAndPin,
    };
    let outputs = world.step(vec![Input::Setting(Ticket(0), request)]);
    world.ingest(&outputs);
    let done = outputs.into_iter().find_map(|output| match output {
        Output::Setting(_, done) => Some(done),
        _ => None,
    });
    done.unwrap()
}

#[test]
fn a_pin_that_is_changed_here_pays_nowhere_before_the_centre_has_taken_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Strict, directory.path());
    with_pin_seven(&mut world);
    world.disconnect();
    world.core.identity.role = Role::Kiosk;
    let code = |done: Result<SettingDone, SettingError>| done.unwrap_err().code();
    assert_eq!(code(change(&mut world, Some((SECOND, 7)), SECOND)), "pin_changed");
    assert_eq!(code(change(&mut world, None, SECOND)), "pin_changed", "the initial PIN is not asked for");
    let position = change(&mut world, Some((FIRST, 7)), SECOND).unwrap().position;
    assert_eq!(code(change(&mut world, Some((FIRST, 7)), PinGeneration([3; 16]))), "pin_waits");
    let old = |sequence| with_pin(sequence, 3_000, entered(FIRST, 7));
    let new = |sequence| with_pin(sequence, 3_000, entered(SECOND, 9));
    assert_eq!(decided(&world.tap(new("1"))), declined(DeclineReason::PinNotSet));
    assert_eq!(decided(&world.tap(old("2"))), approved(ALICE, 3_000, 0));
    world.reopen();
    world.core.identity.role = Role::Kiosk;
    assert_eq!(world.status().settings_waiting, 1);

    world.connect();
    let log = world.uploaded();
    let settings: Vec<_> = log.iter().filter(|body| matches!(body, Body::Setting(_))).collect();
    let [Body::Setting(setting)] = settings[..] else { panic!("{settings:?}") };
    let typed = KEY.unseal(ALICE, SECOND, setting.typed.as_ref().unwrap()).unwrap();
    assert_eq!((typed.current, typed.chosen), (PinHash::new([7; 32]), PinHash::new([9; 32])));
    let frame = world.setting(ALICE, setting.intent.clone());
    world.frame(frame);
    let stream_position = world.centre.end(LogId::shard(INSTITUTION, ALICE.shard())).position;
    let answered = SettingAnswered { position: position.unwrap(), stream_position, refused: None };
    world.tell(vec![answered.into(), verifier(ALICE, SECOND, 9)]);
    assert_eq!(world.status().settings_waiting, 0);
    assert_eq!(decided(&world.tap(old("3"))), declined(DeclineReason::PinNotSet));
    assert_eq!(decided(&world.tap(new("4"))), approved(ALICE, 3_000, 0));
    world.check();
}

#[test]
fn a_wrong_pin_counts_where_it_is_shown_to_be_changed() {
    let mut world = cut_off_with_pin();
    let code = |done: Result<SettingDone, SettingError>| done.unwrap_err().code();
    assert_eq!(code(change(&mut world, Some((FIRST, 8)), SECOND)), "role", "a till counts nothing");
    world.core.identity.role = Role::Kiosk;
    let wrong = with_pin("1", 3_000, entered(FIRST, 8));
    assert_eq!(decided(&world.tap(wrong)), declined(DeclineReason::WrongPin));
    for _ in 0..2 {
        assert_eq!(code(change(&mut world, Some((FIRST, 8)), SECOND)), "wrong_pin");
    }
    assert_eq!(code(change(&mut world, Some((FIRST, 7)), SECOND)), "pin_locked");
    let right = with_pin("2", 3_000, entered(FIRST, 7));
    assert_eq!(decided(&world.tap(right)), declined(DeclineReason::PinLocked));
    world.connect();
    let tries: Vec<u8> = world
        .uploaded()
        .into_iter()
        .filter_map(|body| match body {
            Body::WrongPin(WrongPin { account: ALICE, tries }) => Some(tries),
            _ => None,
        })
        .collect();
    assert_eq!(tries, [2, 3]);
    let kinds = world.centre.records.iter().map(|record| Entry::from_record(record).unwrap().actor.kind);
    assert_eq!(kinds.filter(|kind| *kind == ActorKind::Kiosk).count(), 2);
    world.check();
}
