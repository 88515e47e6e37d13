use feiqian_protocol::account::{Intent, phone_text};
use feiqian_protocol::campus::Mode;
use feiqian_protocol::code::{Code, PhoneAlgorithm, PhoneSecret, SignedVoucher, Voucher};
use feiqian_protocol::entry::{Body, PinVerifier, PinVerifiers};
use feiqian_protocol::ids::{AccountId, CardNumber, InstitutionId, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::{PinGeneration, PinHash, PinKey};
use feiqian_protocol::tap::Decision;

use super::*;
use crate::core::testing::*;
use crate::io::{Input, Output, Ticket};

mod short;
mod vouchers;

/// A phone, and the voucher that it has.
struct Phone {
    secret: PhoneSecret,
    voucher: SignedVoucher,
}

impl Phone {
    fn new(seed: u8, account: AccountId, number: u32) -> Self {
        let secret = PhoneSecret::new(PhoneAlgorithm::P256, &[seed; 32]).unwrap();
        let voucher = Voucher {
            institution: INSTITUTION,
            centre_key: 1,
            account,
            number,
            issued: (MORNING.0 / 1_000) as u32,
            life_minutes: 3 * 24 * 60,
            ceiling: Fen::ZERO,
            phone: secret.key(),
        };
        Self { secret, voucher: voucher.sign(&voucher_key()).unwrap() }
    }

    fn card(&self) -> CardNumber {
        self.voucher.voucher().card()
    }

    /// What it shows at this time.
    fn code(&self, at: Timestamp, counter: u16) -> Code {
        Code::sign(&self.voucher, &self.secret, (at.0 / 1_000) as u32, counter).unwrap()
    }
}

/// Somebody shows a code; what comes of it.
fn show(world: &mut World, sequence: &str, code: Code, kind: TapKind, pin: Pin) -> Vec<Output> {
    let keys = world.core.voucher_keys().1.to_vec();
    let code = code.check(INSTITUTION, &keys);
    let card = code.voucher().card();
    let mut key = key(sequence);
    if kind == TapKind::Access {
        key.terminal = TerminalId::new("door").unwrap();
    }
    world.tap(TapRequest { key, card, code: Some(Box::new(code)), kind, pin })
}

fn buy(world: &mut World, sequence: &str, code: Code, amount: i64) -> Vec<Decision> {
    decided(&show(world, sequence, code, TapKind::Amount(fen(amount)), Pin::Absent))
}

fn open_door(world: &mut World, sequence: &str, code: Code) -> Vec<Decision> {
    decided(&show(world, sequence, code, TapKind::Access, Pin::Absent))
}

/// A world in which Alice has a phone, and money and allowance are here.
fn with_phone(mut world: World) -> (World, Phone) {
    let phone = Phone::new(1, ALICE, 1);
    let activate = Intent::ActivateVirtualCard { card: phone.card(), phone: phone_text(&phone.secret.key()) };
    let frame = world.setting(ALICE, activate);
    world.frame(frame);
    for account in [ALICE, BOB] {
        world.share_grant(account, 5_000);
        world.grant(account, 3_000);
    }
    (world, phone)
}

fn connected() -> (World, Phone) {
    with_phone(World::connected(Mode::Strict))
}

#[test]
fn a_code_pays_once_and_opens_a_door_once() {
    let (mut world, phone) = connected();
    let code = |counter| phone.code(MORNING, counter);
    assert_eq!(buy(&mut world, "1", code(5), 700), approved(ALICE, 700, 0));
    let again = show(&mut world, "1", code(5), TapKind::Amount(fen(700)), Pin::Absent);
    assert!(matches!(again[0], Output::Decided { repeat: true, decision: Decision::Approved { .. }, .. }));
    for (sequence, counter) in [("2", 5), ("3", 4)] {
        assert_eq!(buy(&mut world, sequence, code(counter), 700), declined(DeclineReason::CodeUsed));
    }
    assert_eq!(open_door(&mut world, "4", code(5)), declined(DeclineReason::CodeUsed));
    assert_eq!(open_door(&mut world, "5", code(6)), approved(ALICE, 0, 0));
    assert_eq!(open_door(&mut world, "6", code(6)), declined(DeclineReason::CodeUsed));
    // Another voucher of the same phone counts by itself.
    assert_eq!(buy(&mut world, "7", Phone::new(1, ALICE, 2).code(MORNING, 1), 100), approved(ALICE, 100, 0));
    let used = world.uploaded().into_iter().filter_map(|body| match body {
        Body::Debit(debit) => Some((debit.card, debit.code.unwrap())),
        Body::Access(access) => Some((access.card, access.code.unwrap())),
        _ => None,
    });
    let until = phone.voucher.voucher().until();
    let expected = [(1, 5), (1, 6), (2, 1)].map(|(voucher, counter)| CodeUse { voucher, counter, until });
    assert_eq!(used.collect::<Vec<_>>(), expected.map(|code| (phone.card(), code)));
    world.check();
}

/// What whoever shows a code is told of the balance.
fn balance(world: &mut World, code: Code) -> Result<i64, DeclineReason> {
    let keys = world.core.voucher_keys().1.to_vec();
    let outputs = world.step(vec![Input::Balance(Ticket(1), code.check(INSTITUTION, &keys).into())]);
    match &outputs[..] {
        [Output::Balance(_, shown)] => shown.map(|view| view.cash.get()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_code_shows_the_balance_and_is_not_used_up() {
    let (mut world, phone) = connected();
    let code = phone.code(MORNING, 5);
    let before = balance(&mut world, code.clone()).unwrap();
    let written = world.uploaded().len();
    assert_eq!(balance(&mut world, code.clone()), Ok(before));
    assert_eq!(buy(&mut world, "1", code.clone(), 700), approved(ALICE, 700, 0));
    assert_eq!(balance(&mut world, code.clone()), Ok(before - 700), "the same code, once it has paid");
    assert_eq!(buy(&mut world, "2", code.clone(), 700), declined(DeclineReason::CodeUsed));
    assert_eq!(world.uploaded().len(), written + 2);
    let forged = Phone::new(9, ALICE, 1);
    let forged = Code::sign(&phone.voucher, &forged.secret, (MORNING.0 / 1_000) as u32, 6).unwrap();
    assert_eq!(balance(&mut world, forged), Err(DeclineReason::CodeForged));
    world.pass(10 * 60_000);
    assert_eq!(balance(&mut world, code), Err(DeclineReason::CodeExpired), "a screenshot");
    world.check();
}

#[test]
fn a_restart_does_not_forget_a_counter() {
    let directory = tempfile::tempdir().unwrap();
    let (mut world, phone) = with_phone(World::on_disk(Mode::Strict, directory.path()));
    assert_eq!(buy(&mut world, "1", phone.code(MORNING, 5), 700), approved(ALICE, 700, 0));
    world.reopen();
    let once_more = phone.code(MORNING, 5);
    assert_eq!(buy(&mut world, "2", once_more.clone(), 700), declined(DeclineReason::CodeUsed));
    assert_eq!(open_door(&mut world, "3", once_more), declined(DeclineReason::CodeUsed));
    world.check();
    // What stands in the log stands in the table.
    world.core.store.connection().execute("UPDATE counters SET counter = 4", []).unwrap();
    let problems =
        |world: &World| crate::verify::verify(world.core.store.connection(), &identity()).unwrap().problems;
    assert_eq!(problems(&world), ["the counter of voucher 1 of account 1 is 4, not Some(5)"]);
    world.core.store.connection().execute("DELETE FROM counters", []).unwrap();
    assert_eq!(problems(&world), ["the counter of voucher 1 of account 1 is missing"]);
}

#[test]
fn a_decline_does_not_use_a_code_up() {
    let (mut world, phone) = connected();
    world.disconnect();
    let code = phone.code(MORNING, 1);
    assert_eq!(buy(&mut world, "1", code.clone(), 3_001), declined(DeclineReason::PinRequired));
    assert_eq!(buy(&mut world, "2", code.clone(), 1_900), approved(ALICE, 1_900, 0));
    let code = phone.code(MORNING, 2);
    assert_eq!(buy(&mut world, "3", code.clone(), 1_200), declined(DeclineReason::Insufficient));
    assert_eq!(buy(&mut world, "4", code, 1_100), approved(ALICE, 1_100, 0));
    world.check();
}

#[test]
fn a_code_waits_for_the_centre_like_a_card() {
    let (mut world, phone) = connected();
    world.grant(BOB, 1);
    let code = phone.code(MORNING, 1);
    assert_eq!(buy(&mut world, "1", phone.code(MORNING, 1), 1_800), approved(ALICE, 1_800, 0));
    assert_eq!(buy(&mut world, "2", phone.code(MORNING, 2), 1_300), []);
    // The door does not wait, and the code is used when the purchase is judged again.
    assert_eq!(open_door(&mut world, "3", phone.code(MORNING, 2)), approved(ALICE, 0, 0));
    assert_eq!(decided(&world.grant(ALICE, 500)), declined(DeclineReason::CodeUsed));
    assert_eq!(buy(&mut world, "4", code, 1), declined(DeclineReason::CodeUsed));
    world.check();
}

#[test]
fn a_screenshot_dies_with_its_window_which_widens_while_the_centre_is_away() {
    let (mut world, phone) = connected();
    let code = phone.code(MORNING, 1);
    world.disconnect();
    // And the drift of these seconds.
    world.pass(42_010);
    assert_eq!(
        buy(&mut world, "1", code.clone(), 1),
        declined(DeclineReason::CodeExpired),
        "40 s and 2 s of doubt"
    );
    assert_eq!(open_door(&mut world, "2", code), declined(DeclineReason::CodeExpired));
    let early = phone.code(world.now.wall.plus_ms(13_000), 2);
    assert_eq!(buy(&mut world, "3", early, 1), declined(DeclineReason::CodeExpired), "from the future");
    // After a day the clock may be 10.6 s off.
    world.pass(86_400_000);
    let old = |world: &World, seconds: i64| phone.code(world.now.wall.plus_ms(-seconds * 1_000), 3);
    let (fits, late) = (old(&world, 50), old(&world, 52));
    assert_eq!(buy(&mut world, "4", late, 1), declined(DeclineReason::CodeExpired));
    assert_eq!(buy(&mut world, "5", fits, 1), approved(ALICE, 1, 0));
    world.pass(3 * 86_400_000);
    let over = phone.code(world.now.wall, 4);
    assert_eq!(buy(&mut world, "6", over, 1), declined(DeclineReason::VoucherExpired));
    world.check();
}

#[test]
fn without_proven_time_a_purchase_takes_the_pin_and_a_door_opens() {
    let directory = tempfile::tempdir().unwrap();
    let (mut world, phone) = with_phone(World::on_disk(Mode::Strict, directory.path()));
    world.pass(3_600_000);
    world.reopen();
    let code = |world: &World, counter| phone.code(world.now.wall, counter);
    let first = code(&world, 1);
    assert_eq!(buy(&mut world, "1", first.clone(), 100), declined(DeclineReason::PinRequired));
    assert_eq!(balance(&mut world, first.clone()), Err(DeclineReason::ViewTooOld));
    assert_eq!(
        decided(&show(&mut world, "2", first, TapKind::Amount(fen(100)), Pin::Right)),
        approved(ALICE, 100, 0)
    );
    let third = code(&world, 3);
    assert_eq!(open_door(&mut world, "3", third.clone()), approved(ALICE, 0, 0));
    assert_eq!(open_door(&mut world, "4", third), declined(DeclineReason::CodeUsed));
    // The time cannot be before what was heard an hour ago.
    let old = phone.code(MORNING.plus_ms(-60_000), 4);
    assert_eq!(open_door(&mut world, "5", old), declined(DeclineReason::CodeExpired));
    world.connect();
    let fifth = code(&world, 5);
    assert_eq!(buy(&mut world, "6", fifth, 100), approved(ALICE, 100, 0));
    let last = world.uploaded().len();
    world.disconnect();
    // A week of drift is more than a minute.
    world.pass(6 * 86_400_000);
    let renewed = Phone {
        voucher: Voucher {
            issued: (world.now.wall.0 / 1_000) as u32,
            number: 7,
            ..phone.voucher.voucher().clone()
        }
        .sign(&voucher_key())
        .unwrap(),
        ..phone
    };
    let sixth = renewed.code(world.now.wall, 1);
    assert_eq!(buy(&mut world, "7", sixth.clone(), 100), approved(ALICE, 100, 0));
    world.pass(86_400_000);
    let seventh = renewed.code(world.now.wall, 2);
    assert_eq!(buy(&mut world, "8", seventh, 100), declined(DeclineReason::PinRequired));
    assert!(last > 0);
    world.check();
}

#[test]
fn a_lost_or_revoked_phone_is_refused_and_lives_on_without_the_card() {
    let (mut world, phone) = connected();
    let code = |counter| phone.code(MORNING, counter);
    let lose = |card: &CardNumber, loss: &str| Intent::ReportLoss {
        card: card.clone(),
        loss: Key::new(loss).unwrap(),
    };
    let plastic = CardNumber::new("alice").unwrap();
    let frame = world.setting(ALICE, lose(&plastic, "l1"));
    world.frame(frame);
    assert_eq!(decided(&world.buy("1", "alice", 100)), declined(DeclineReason::Lost));
    assert_eq!(buy(&mut world, "2", code(1), 100), approved(ALICE, 100, 0));
    let frame = world.setting(ALICE, lose(&phone.card(), "l2"));
    world.frame(frame);
    assert_eq!(buy(&mut world, "3", code(2), 100), declined(DeclineReason::Lost));
    let lift = Intent::LiftLoss { card: phone.card(), losses: vec![Key::new("l2").unwrap()] };
    let frame = world.setting(ALICE, lift);
    world.frame(frame);
    assert_eq!(buy(&mut world, "4", code(2), 100), approved(ALICE, 100, 0));
    let frame = world.setting(ALICE, Intent::VoidCard { card: phone.card() });
    world.frame(frame);
    assert_eq!(buy(&mut world, "5", code(3), 100), declined(DeclineReason::Void));
    assert_eq!(open_door(&mut world, "6", code(3)), declined(DeclineReason::Void));
    world.check();
}

#[test]
fn a_phone_of_which_no_word_has_come_is_known_by_its_voucher() {
    let (mut world, _) = connected();
    world.disconnect();
    let new = Phone::new(2, BOB, 1);
    assert_eq!(buy(&mut world, "1", new.code(MORNING, 1), 100), approved(BOB, 100, 0));
    assert_eq!(buy(&mut world, "2", new.code(MORNING, 1), 100), declined(DeclineReason::CodeUsed));
    assert_eq!(open_door(&mut world, "3", new.code(MORNING, 2)), approved(BOB, 0, 0));
    let nobody = Phone::new(3, AccountId(99), 1);
    assert_eq!(buy(&mut world, "4", nobody.code(MORNING, 1), 100), declined(DeclineReason::UnknownCard));
    // One phone is of one account.
    let taken = Phone::new(1, BOB, 9);
    assert_eq!(buy(&mut world, "5", taken.code(MORNING, 1), 100), declined(DeclineReason::UnknownCard));
    world.check();
}

#[test]
fn its_pin_is_that_of_the_account_that_the_voucher_names() {
    let generation = PinGeneration([1; 16]);
    let (mut world, _) = connected();
    let frame = world.setting(BOB, Intent::SetPin { generation, replaces: Vec::new() });
    world.frame(frame);
    let digest = PinKey::new([9; 32]).digest(generation, &PinHash::new([7; 32]));
    world.tell(vec![
        PinVerifiers { verifiers: vec![PinVerifier { account: BOB, generation, digest }] }.into(),
    ]);
    world.disconnect();
    let new = Phone::new(2, BOB, 1);
    let code = new.code(MORNING, 1).check(INSTITUTION, world.core.voucher_keys().1);
    let (card, kind) = (new.card(), TapKind::Amount(fen(2_500)));
    let request = TapRequest { key: key("1"), card, code: Some(Box::new(code)), kind, pin: Pin::NotHashed };
    let outputs = world.step(vec![Input::Pin(Ticket(0), request.clone())]);
    assert!(matches!(outputs[..], [Output::PinGeneration(_, Some(asked))] if asked == generation));
    let right = Pin::Entered { generation, digest };
    assert_eq!(decided(&world.tap(TapRequest { pin: right, ..request })), approved(BOB, 2_500, 0));
    world.check();
}

#[test]
fn the_number_of_a_virtual_card_is_nothing_by_itself() {
    let (mut world, phone) = connected();
    let number = phone.card();
    assert_eq!(decided(&world.buy("1", number.as_str(), 100)), declined(DeclineReason::UnknownCard));
    let enquiry = world.step(vec![Input::Balance(Ticket(1), number.into())]);
    assert!(matches!(enquiry[0], Output::Balance(_, Err(DeclineReason::UnknownCard))));
}

#[test]
fn of_what_is_no_code_nothing_is_written_and_of_bad_ones_not_much() {
    let (mut world, phone) = connected();
    let before = world.uploaded().len();
    let forger = ed25519_dalek::SigningKey::from_bytes(&[8; 32]);
    let shown = |terms: Voucher, key: &ed25519_dalek::SigningKey| {
        Code::sign(&terms.sign(key).unwrap(), &phone.secret, (MORNING.0 / 1_000) as u32, 1).unwrap()
    };
    let terms = || phone.voucher.voucher().clone();
    let cases = [
        (shown(terms(), &forger), DeclineReason::VoucherForged),
        (
            shown(Voucher { institution: InstitutionId(2), ..terms() }, &voucher_key()),
            DeclineReason::CodeForeign,
        ),
        (shown(Voucher { centre_key: 2, ..terms() }, &voucher_key()), DeclineReason::CodeKeyUnknown),
    ];
    for (number, (code, reason)) in cases.into_iter().enumerate() {
        assert_eq!(buy(&mut world, &format!("f{number}"), code.clone(), 100), declined(reason));
        assert_eq!(open_door(&mut world, &format!("d{number}"), code), declined(reason));
    }
    assert_eq!(world.uploaded().len(), before);
    let thief = Phone {
        secret: PhoneSecret::new(PhoneAlgorithm::P256, &[9; 32]).unwrap(),
        ..Phone::new(1, ALICE, 1)
    };
    for number in 0..40 {
        let code = thief.code(MORNING, 1);
        assert_eq!(buy(&mut world, &format!("t{number}"), code, 100), declined(DeclineReason::CodeForged));
    }
    assert_eq!(world.uploaded().len(), before + 30);
    // A key that was taken out of the configuration ends its vouchers.
    let gone = phone.code(MORNING, 1).check(INSTITUTION, &[]);
    assert!(!gone.is_vouched_for());
    world.check();
}

#[test]
fn counters_are_forgotten_a_day_after_their_vouchers() {
    let (mut world, phone) = connected();
    let of_bob = Phone::new(2, BOB, 1);
    assert_eq!(open_door(&mut world, "1", of_bob.code(MORNING, 1)), approved(BOB, 0, 0));
    let kept = |world: &World| {
        let sql = "SELECT count(*) FROM counters";
        world.core.store.connection().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    for (number, days, left) in [(2, 3, 2), (3, 4, 2), (4, 5, 3)] {
        world.pass((days * 86_400_000 + 60_000) - (world.now.elapsed_ms));
        let issued = (world.now.wall.0 / 1_000) as u32;
        let voucher = Voucher { issued, number, ..phone.voucher.voucher().clone() };
        let renewed = Phone { voucher: voucher.sign(&voucher_key()).unwrap(), secret: phone.secret.clone() };
        let code = renewed.code(world.now.wall, 1);
        assert_eq!(open_door(&mut world, &number.to_string(), code), approved(ALICE, 0, 0));
        assert_eq!(kept(&world), left, "after {days} days");
    }
    world.check();
}

#[test]
fn the_centres_time_is_as_good_as_the_way_that_it_came() {
    let second = |seconds: i64| Timestamp(seconds * 1_000);
    let mut clock = CentreClock::default();
    let floor = second(5);
    assert_eq!(clock.now(0, floor), CentreTime { earliest: floor, latest: None });
    clock.signed(second(100), 10);
    assert_eq!(clock.now(10, floor).latest, None, "nothing was answered yet");
    clock.hello(0);
    clock.answered(second(100), 5_000);
    assert_eq!(clock.now(5_000, floor), CentreTime::about(second(100), 5_000));
    // What was on its way all the time says nothing; what is new does.
    clock.signed(second(94), 5_000);
    assert_eq!(clock.now(5_000, floor), CentreTime::about(second(100), 5_000));
    clock.signed(second(110), 15_000);
    assert_eq!(clock.now(15_000, floor), CentreTime::about(second(110), 2_000));
    let day_ms = 86_400_000;
    assert_eq!(
        clock.now(15_000 + day_ms, floor),
        CentreTime::about(second(110 + 86_400), 2_000 + day_ms as i64 / 10_000)
    );
    clock.hello(15_000 + day_ms);
    clock.answered(second(86_515), 15_000 + day_ms + 20);
    assert_eq!(clock.now(15_000 + day_ms + 20, floor), CentreTime::about(second(86_515), 2_000));
}
