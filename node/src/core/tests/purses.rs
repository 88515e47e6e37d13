//! Purses in a building: reports are written once, the hotlist is asked, and an answer waits for the entry that it goes by.

use feiqian_protocol::account::Intent;
use feiqian_protocol::campus::Mode;
use feiqian_protocol::entry::{Body, PurseLoad, PurseLoadSettled, PurseLoaded};
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::{Key, LogId, TerminalId, Wallet};
use feiqian_protocol::purse::load::LoadRequest;
use feiqian_protocol::purse::question::{
    LoadFate, PurseAnswer, PurseQuestion, PurseRefusal, PurseReply, StreamPlace,
};
use feiqian_protocol::purse::values::{CardSerial, Counter, Kind, PurseFen, TerminalSequence};
use feiqian_protocol::tap::DeclineReason;

use super::super::testing::*;
use crate::export::{DecisionRow, decisions};
use crate::io::{Input, Output, Ticket};
use crate::purse::{PurchaseReport, PurseDone, PurseError, PurseRequest};
use crate::store::StoreError;

const SERIAL: &str = "31000000202600012345";

fn serial() -> CardSerial {
    SERIAL.parse().unwrap()
}

fn report(sequence: &str, counter: u16) -> PurchaseReport {
    PurchaseReport {
        epoch: 1,
        sequence: Key::new(sequence).unwrap(),
        serial: serial(),
        kind: Kind::Purchase,
        amount: PurseFen::new(1_250).unwrap(),
        balance_before: PurseFen::new(5_150).unwrap(),
        counter: Counter(counter),
        terminal_number: "000000000117".parse().unwrap(),
        terminal_sequence: TerminalSequence(7),
        time: "20260901121533".parse().unwrap(),
        tac: Some("c1af23cd".parse().unwrap()),
        proven: true,
    }
}

fn load_request() -> LoadRequest {
    serde_json::from_str(&format!(
        r#"{{"serial":"{SERIAL}","amount":5000,"terminal":"000000000117","begun":{{"balance":150,"counter":7,
            "key_version":1,"algorithm_id":0,"random":"9c4e21b7","mac1":"a221ce5f"}}}}"#
    ))
    .unwrap()
}

fn terminal() -> TerminalId {
    key("1").terminal
}

fn say(world: &mut World, request: PurseRequest) -> Vec<Output> {
    let outputs = world.step(vec![Input::Purse(Ticket(0), terminal(), request)]);
    world.ingest(&outputs);
    outputs
}

fn told(outputs: &[Output]) -> Option<Result<PurseDone, PurseError>> {
    outputs.iter().find_map(|output| match output {
        Output::Purse(_, done) => Some(done.clone()),
        _ => None,
    })
}

fn purchase(world: &mut World, report: PurchaseReport) -> Result<PurseDone, PurseError> {
    let outputs = say(world, PurseRequest::Purchase(Box::new(report)));
    told(&outputs).expect("answered at once")
}

fn reports(world: &World) -> usize {
    world.uploaded().iter().filter(|body| matches!(body, Body::PursePurchase(_))).count()
}

fn recorded(repeat: bool) -> Result<PurseDone, PurseError> {
    Ok(PurseDone::Recorded { repeat })
}

#[test]
fn a_purchase_is_written_once_however_it_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Strict, directory.path());
    assert_eq!(purchase(&mut world, report("1", 41)), recorded(false));
    assert_eq!(purchase(&mut world, report("1", 41)), recorded(true));
    assert_eq!(purchase(&mut world, report("2", 41)), recorded(true), "another key of the same purchase");
    assert_eq!(purchase(&mut world, report("1", 42)), Err(PurseError::OtherContent));
    // Another purchase with the same counter is what shows that there are two cards: the centre must hear of it.
    let other = PurchaseReport { terminal_sequence: TerminalSequence(8), ..report("3", 41) };
    assert_eq!(purchase(&mut world, other), recorded(false));
    assert_eq!(reports(&world), 2);
    assert_eq!(world.status().exposed_fen, 2_500, "two purchases, until the centre has them");
    world.reopen();
    assert_eq!(world.status().exposed_fen, 2_500);
    world.connect();
    assert_eq!(purchase(&mut world, report("2", 41)), recorded(true), "a restart forgets nothing");
    let nothing = PurchaseReport { amount: PurseFen::ZERO, ..report("4", 43) };
    assert_eq!(purchase(&mut world, nothing), Err(PurseError::Amount));
    let stranger = TerminalId::new("nobody").unwrap();
    let request = PurseRequest::Check(serial());
    let refused = told(&world.step(vec![Input::Purse(Ticket(0), stranger, request)]));
    assert_eq!(refused, Some(Err(PurseError::UnknownTerminal("nobody".to_owned()))));
    world.check();
}

#[test]
fn what_purses_paid_is_exported_in_its_place_among_the_taps() {
    let mut world = World::connected(Mode::Strict);
    world.grant(ALICE, 1_000);
    world.share_grant(ALICE, 1_000);
    world.buy("1", "alice", 100);
    assert_eq!(purchase(&mut world, report("2", 41)), recorded(false));
    world.buy("3", "alice", 200);
    let unproven = PurchaseReport { proven: false, ..report("4", 42) };
    assert_eq!(purchase(&mut world, unproven), recorded(false));
    let mut rows = Vec::new();
    let keep = |row: &DecisionRow| -> Result<(), StoreError> {
        rows.push((row.terminal_seq.clone(), row.card.clone(), row.kind, row.outcome, row.amount_fen));
        Ok(())
    };
    decisions(world.core.store.connection(), &identity(), keep).unwrap();
    let row = |sequence: &str, card: &str, kind, outcome, fen| {
        (sequence.to_owned(), card.to_owned(), kind, outcome, fen)
    };
    let serial = serial().card_number().to_string();
    let expected = [
        row("1", "alice", "purchase", "approved", 100),
        row("2", &serial, "purse", "approved", 1_250),
        row("3", "alice", "purchase", "approved", 200),
        row("4", &serial, "purse", "unproven", 1_250),
    ];
    assert_eq!(rows, expected);
}

#[test]
fn what_purses_paid_is_held_against_the_log_and_taken_from_it_where_it_was_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Strict, directory.path());
    assert_eq!(purchase(&mut world, report("1", 41)), recorded(false));
    let alter = |world: &World, sql: &str| world.core.store.connection().execute_batch(sql).unwrap();
    for wrong in ["UPDATE purse_debits SET amount = 1", "DELETE FROM purse_debits"] {
        alter(&world, wrong);
        let report = crate::verify::verify(world.core.store.connection(), &identity()).unwrap();
        assert_eq!(report.problems, ["what a purse paid by entry 1 is not what is kept of it"], "{wrong}");
    }
    alter(&world, "DROP TABLE purse_debits");
    world.check();
    world.reopen();
    assert_eq!(world.status().exposed_fen, 1_250);
    world.check();
}

#[test]
fn a_card_that_is_known_to_be_lost_or_withdrawn_may_not_pay() {
    let mut world = World::connected(Mode::Strict);
    let check = |world: &mut World| told(&say(world, PurseRequest::Check(serial()))).unwrap().unwrap();
    assert_eq!(check(&mut world), PurseDone::Usable { known: false, heard: None });
    let card = serial().card_number();
    let frame = world.setting(ALICE, Intent::IssueCard { card: card.clone() });
    world.frame(frame);
    let heard = Some(world.now.wall);
    assert_eq!(check(&mut world), PurseDone::Usable { known: true, heard });
    let key = Key::new("freeze-1").unwrap();
    let frame = world.setting(ALICE, Intent::Freeze { key });
    world.frame(frame);
    assert_eq!(check(&mut world), PurseDone::Declined(DeclineReason::Frozen));
    let frame = world.setting(ALICE, Intent::VoidCard { card });
    world.frame(frame);
    world.disconnect();
    assert_eq!(check(&mut world), PurseDone::Declined(DeclineReason::Void));
}

#[test]
fn mac2_is_passed_on_only_once_the_entry_that_it_goes_by_is_here() {
    let mut world = World::connected(Mode::Strict);
    let outputs = say(&mut world, PurseRequest::Load(load_request()));
    assert_eq!(told(&outputs), None);
    let asked = sent(&outputs).into_iter().find_map(|frame| match frame {
        Frame::PurseAsk(ask) => Some(*ask),
        _ => None,
    });
    let ask = asked.expect("the centre is asked");
    assert_eq!(ask.question, PurseQuestion::Load(load_request()));
    let log = LogId::shard(INSTITUTION, ALICE.shard());
    let load = PurseLoad {
        account: ALICE,
        wallet: Wallet::Cash,
        amount: fen(5_000),
        serial: serial(),
        counter: Counter(7),
        balance_before: fen(150),
        terminal: load_request().terminal,
        time: "20260901113005".parse().unwrap(),
        random: load_request().begun.random,
        key_version: 1,
        node: NODE,
        taken_over: fen(0),
    };
    let position = world.centre.end(log).position + 1;
    let entries = world.centre.write(log, world.now.wall, vec![load.clone().into()]);
    let (time, mac2) = (load.time, "b85f2237".parse().unwrap());
    let reply = PurseReply::Authorized(time, mac2);
    let after = Some(StreamPlace { log, position });
    let answer = Frame::PurseAnswer(Box::new(PurseAnswer { request: ask.request, reply, after }));
    assert_eq!(told(&world.frame(answer)), None, "not before the entry");
    assert_eq!(told(&world.frame(entries)), Some(Ok(PurseDone::Authorized(time, mac2))));

    let loaded = PurseLoaded { serial: serial(), counter: Counter(7), tac: "2e731ec0".parse().unwrap() };
    assert_eq!(told(&say(&mut world, PurseRequest::Loaded(loaded.clone()))), Some(recorded(false)));
    assert!(world.uploaded().contains(&Body::PurseLoaded(loaded)));
    let PurseLoad { account, wallet, amount, serial, .. } = load;
    let settled = PurseLoadSettled { account, wallet, amount, serial, load: position, reversed: true };
    let entries = world.centre.write(log, world.now.wall, vec![settled.into()]);
    world.frame(entries);
    world.check();
}

#[test]
fn a_load_that_nobody_answers_moves_nothing_here() {
    let mut world = World::connected(Mode::Strict);
    let outputs = say(&mut world, PurseRequest::Load(load_request()));
    assert_eq!(told(&outputs), None);
    assert_eq!(told(&world.pass(1_000)), None);
    assert_eq!(told(&world.pass(1_000)), Some(Err(PurseError::Unreachable)));
    // What comes too late is for nobody.
    let reply = PurseReply::Settled(LoadFate::Nothing);
    let late = Frame::PurseAnswer(Box::new(PurseAnswer { request: 1, reply, after: None }));
    assert_eq!(told(&world.frame(late)), None);

    say(&mut world, PurseRequest::Load(load_request()));
    let reply = PurseReply::Refused(PurseRefusal::Insufficient);
    let answer = Frame::PurseAnswer(Box::new(PurseAnswer { request: 2, reply, after: None }));
    assert_eq!(told(&world.frame(answer)), Some(Ok(PurseDone::Refused(PurseRefusal::Insufficient))));

    // Whether a card has a load that is not settled is the centre's to say, too.
    let outputs = say(&mut world, PurseRequest::Open(serial()));
    assert!(
        sent(&outputs).iter().any(
            |frame| matches!(frame, Frame::PurseAsk(ask) if ask.question == PurseQuestion::Open(serial()))
        )
    );
    let reply = PurseReply::Settled(LoadFate::Nothing);
    let answer = Frame::PurseAnswer(Box::new(PurseAnswer { request: 3, reply, after: None }));
    assert_eq!(told(&world.frame(answer)), Some(Ok(PurseDone::Settled(LoadFate::Nothing))));

    say(&mut world, PurseRequest::Load(load_request()));
    assert_eq!(told(&world.disconnect()), Some(Err(PurseError::Unreachable)), "the link is gone");
    assert_eq!(
        told(&say(&mut world, PurseRequest::Load(load_request()))),
        Some(Err(PurseError::Unreachable))
    );
}
