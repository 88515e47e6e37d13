//! Short codes: what waits for the centre's word, and what comes of it.

use feiqian_protocol::code::ShortCode;
use feiqian_protocol::entry::Proof;
use feiqian_protocol::frame::{CodeAnswer, CodeAsk, Frame};

use super::*;

const CODE: ShortCode = ShortCode { alias: 12_345, digits: 678 };

fn short(sequence: &str, code: ShortCode, kind: TapKind) -> TapRequest {
    TapRequest { key: key(sequence), card: CardNumber::unnamed(&code), code: None, kind, pin: Pin::Absent }
}

fn purchase(sequence: &str, code: ShortCode, amount: i64) -> TapRequest {
    short(sequence, code, TapKind::Amount(fen(amount)))
}

fn asks(outputs: &[Output]) -> Vec<CodeAsk> {
    let asks = sent(outputs).into_iter().filter_map(|frame| match frame {
        Frame::CodeAsk(ask) => Some(ask),
        _ => None,
    });
    asks.collect()
}

fn answer(world: &mut World, request: u64, named: Result<CardNumber, DeclineReason>) -> Vec<Output> {
    let named = named.map(|card| (ALICE, card));
    world.frame(Frame::CodeAnswer(CodeAnswer { request, named }))
}

fn proofs(world: &World) -> Vec<Proof> {
    let records = world.core.store.records_after(world.core.own_log(), 0, 100).unwrap();
    records.iter().map(|record| Entry::from_record(record).unwrap().actor.proof).collect()
}

#[test]
fn a_short_code_pays_once_the_centre_has_said_whose_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (mut world, phone) = with_phone(World::on_disk(Mode::Strict, directory.path()));
    let outputs = world.tap(purchase("1", CODE, 700));
    let [ask] = <[_; 1]>::try_from(asks(&outputs)).unwrap();
    assert_eq!((ask.code, decided(&outputs)), (CODE, vec![]));
    // The terminal tries again meanwhile, and is told what the first try is told; with other content it is refused.
    let again = world.tap(purchase("1", CODE, 700));
    assert_eq!((asks(&again), decided(&again)), (vec![], vec![]));
    let other = world.tap(purchase("1", CODE, 701));
    assert!(matches!(other[0], Output::Refused(_, crate::io::TapError::OtherContent(_))), "{other:?}");
    let told = answer(&mut world, ask.request, Ok(phone.card()));
    assert_eq!(decided(&told), [approved(ALICE, 700, 0), approved(ALICE, 700, 0)].concat());
    assert_eq!(proofs(&world), [Proof::Code]);
    assert!(answer(&mut world, ask.request, Ok(phone.card())).is_empty(), "nobody waits for it any more");

    // From the log, also after a restart; not with other digits.
    world.reopen();
    assert!(matches!(world.tap(purchase("1", CODE, 700))[0], Output::Decided { repeat: true, .. }));
    let other = world.tap(purchase("1", ShortCode { digits: 679, ..CODE }, 700));
    assert!(matches!(other[0], Output::Refused(_, crate::io::TapError::OtherContent(_))), "{other:?}");
    world.check();
}

#[test]
fn a_door_opens_by_one_and_limits_stand() {
    let (mut world, phone) = connected();
    let mut door = short("1", CODE, TapKind::Access);
    door.key.terminal = TerminalId::new("door").unwrap();
    let ask = asks(&world.tap(door))[0];
    assert_eq!(decided(&answer(&mut world, ask.request, Ok(phone.card()))), approved(ALICE, 0, 0));
    let ask = asks(&world.tap(purchase("2", CODE, 2_100)))[0];
    let told = answer(&mut world, ask.request, Ok(phone.card()));
    assert_eq!(decided(&told), declined(DeclineReason::PinRequired));
    // A phone that this building has not heard of is its account's by the centre's word.
    let ask = asks(&world.tap(purchase("3", CODE, 100)))[0];
    let new = Phone::new(9, ALICE, 1).card();
    assert_eq!(decided(&answer(&mut world, ask.request, Ok(new))), approved(ALICE, 100, 0));
    world.check();
}

#[test]
fn without_the_centre_s_word_nothing_is_paid_and_nothing_is_written() {
    let (mut world, phone) = connected();
    let end = world.core.state.writer.cursor().position;
    let ask = asks(&world.tap(purchase("1", CODE, 700)))[0];
    let told = answer(&mut world, ask.request, Err(DeclineReason::CodeForged));
    assert_eq!(decided(&told), declined(DeclineReason::CodeForged));
    // The link goes while one waits, and is not there for the next.
    let ask = asks(&world.tap(purchase("2", CODE, 700)))[0];
    assert_eq!(decided(&world.disconnect()), declined(DeclineReason::CodeNeedsCentre));
    let outputs = world.tap(purchase("3", CODE, 700));
    assert_eq!(decided(&outputs), declined(DeclineReason::CodeNeedsCentre));
    world.connect();
    assert!(answer(&mut world, ask.request, Ok(phone.card())).is_empty());
    // The same tap is asked for again, under the same name.
    let again = asks(&world.tap(purchase("2", CODE, 700)))[0];
    assert_eq!(again.tap, ask.tap);
    assert_ne!(asks(&world.tap(purchase("4", CODE, 700)))[0].tap, ask.tap);
    // Nobody answers.
    let late = [world.pass(60_000), world.pass(60_000)].concat();
    assert_eq!(
        decided(&late),
        [declined(DeclineReason::CodeNeedsCentre), declined(DeclineReason::CodeNeedsCentre)].concat()
    );
    assert_eq!(world.core.state.writer.cursor().position, end);
    // What is taken back before the centre has answered is declined then, and later.
    let ask = asks(&world.tap(purchase("5", CODE, 700)))[0];
    let back = world.reverse("6", "5", None);
    assert!(decided(&back).contains(&Decision::Declined(DeclineReason::Reversed)), "{back:?}");
    assert!(answer(&mut world, ask.request, Ok(phone.card())).is_empty());
    assert_eq!(decided(&world.tap(purchase("5", CODE, 700))), declined(DeclineReason::Reversed));
    world.check();
}
