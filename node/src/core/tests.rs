//! The core as a whole, with a virtual clock and a centre that does as it is told.

use feiqian_protocol::account::Intent;
use feiqian_protocol::campus::Mode;
use feiqian_protocol::entry::{Body, CloseRequest, Closed, Delta, Hint, Pool, Posted, PostedHead};
use feiqian_protocol::frame::{Ask, Branch, Entries, Frame, LossNotice, No, Recall, RefusalReason};
use feiqian_protocol::ids::{CardNumber, Epoch, Key, LogId, Unit, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{DeclineReason, Pin, TapKind, TapRequest};

mod days;
mod pins;
mod purses;
mod sessions;

use super::testing::*;
use crate::io::{Input, LinkState, Output, TapError, Ticket};

fn asks(outputs: &[Output]) -> Vec<Ask> {
    let asks = sent(outputs).into_iter().filter_map(|frame| match frame {
        Frame::Ask(ask) => Some(ask),
        _ => None,
    });
    asks.collect()
}

fn no(unit: Unit, want: i64, is_final: bool, free: i64) -> Frame {
    Frame::No(No { account: ALICE, unit, want: fen(want), r#final: is_final, free: fen(free), unheard_ms: 0 })
}

fn recall(unit: Unit, amount: i64, after: u64) -> Frame {
    Frame::Recall(Recall {
        account: ALICE,
        unit,
        epoch: Epoch::FIRST,
        amount: fen(amount),
        after,
        from_day: day(MORNING),
    })
}

/// A session in which Alice has right and allowance here.
fn stocked(mode: Mode) -> World {
    let mut world = World::connected(mode);
    world.share_grant(ALICE, 5_000);
    world.grant(ALICE, 1_000);
    world
}

#[test]
fn a_tap_within_the_right_is_approved_at_once_and_uploaded_after() {
    let mut world = stocked(Mode::Strict);
    let outputs = world.buy("1", "alice", 600);
    assert_eq!(decided(&outputs), approved(ALICE, 600, 0));
    let status = world.status();
    assert_eq!((status.unspent_fen, status.exposed_fen, status.position, status.acked), (400, 600, 1, 0));
    world.acknowledge();
    assert_eq!((world.status().exposed_fen, world.status().acked), (0, 1));
    let balance = world.step(vec![Input::Balance(Ticket(9), CardNumber::new("alice").unwrap().into())]);
    let Some(Output::Balance(_, Ok(view))) = balance.first() else { panic!("no balance") };
    assert_eq!(view.cash, fen(9_400));
    world.check();
}

#[test]
fn a_quantity_is_priced_and_a_door_opens_for_its_group() {
    let mut world = stocked(Mode::Strict);
    let outputs = world.tap(tap("1", "alice", TapKind::Quantity(250)));
    assert_eq!(decided(&outputs), approved(ALICE, 600, 0));
    let mut request = tap("2", "alice", TapKind::Access);
    request.key.terminal = feiqian_protocol::ids::TerminalId::new("door").unwrap();
    assert_eq!(decided(&world.tap(request)), approved(ALICE, 0, 0));
    assert_eq!(decided(&world.buy("3", "nobody", 100)), declined(DeclineReason::UnknownCard));
    assert_eq!(decided(&world.buy("4", "alice", 2_001)), declined(DeclineReason::PinRequired));
    let kinds: Vec<&str> = world.uploaded().iter().map(Body::name).collect();
    assert_eq!(kinds, ["debit", "access", "decline", "decline"]);
    world.check();
}

#[test]
fn a_repeat_gets_its_first_answer_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Strict, directory.path());
    world.share_grant(ALICE, 5_000);
    world.grant(ALICE, 1_000);
    assert_eq!(decided(&world.buy("1", "alice", 600)), approved(ALICE, 600, 0));
    for _ in 0..2 {
        let outputs = world.buy("1", "alice", 600);
        assert!(matches!(outputs.as_slice(), [Output::Decided { repeat: true, .. }]));
        assert_eq!(decided(&outputs), approved(ALICE, 600, 0));
        let other = world.buy("1", "alice", 601);
        assert!(matches!(other.as_slice(), [Output::Refused(_, TapError::OtherContent(_))]));
        world.reopen();
    }
    assert_eq!(decided(&world.buy("2", "alice", 600)), declined(DeclineReason::Insufficient));
    assert_eq!(decided(&world.buy("2", "alice", 600)), declined(DeclineReason::Insufficient));
    assert_eq!(world.status().position, 2);
    world.check();
}

#[test]
fn a_decision_is_on_disk_before_its_answer_is_released() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Strict, directory.path());
    world.share_grant(ALICE, 5_000);
    world.grant(ALICE, 1_000);
    world.buy("1", "alice", 300);
    // Another process sees what the step has committed, without the core being closed.
    let other = rusqlite::Connection::open(directory.path().join("node.db")).unwrap();
    let report = crate::verify::verify(&other, &identity()).unwrap();
    assert_eq!((report.entries, report.ok), (1, true));
    let mut rows = Vec::new();
    crate::export::decisions(&other, &identity(), |row| {
        rows.push(row.clone());
        Ok::<(), crate::store::StoreError>(())
    })
    .unwrap();
    assert_eq!((rows[0].kind, rows[0].amount_fen, rows[0].terminal_seq.as_str()), ("purchase", 300, "1"));
}

#[test]
fn a_reversal_that_comes_first_declines_its_tap() {
    let mut world = stocked(Mode::Strict);
    let nothing = approved(feiqian_protocol::ids::AccountId(0), 0, 0);
    assert_eq!(decided(&world.reverse("r1", "1", None)), nothing);
    assert_eq!(decided(&world.reverse("r1", "1", None)), nothing, "a repeat");
    assert_eq!(decided(&world.buy("1", "alice", 600)), declined(DeclineReason::Reversed));
    assert_eq!(decided(&world.buy("1", "alice", 600)), declined(DeclineReason::Reversed));
    let outputs = world.reverse("r2", "1", None);
    assert!(matches!(outputs.as_slice(), [Output::Refused(_, TapError::NothingToReverse)]));
    assert_eq!(world.status().unspent_fen, 1_000);
    world.check();
}

#[test]
fn a_reversal_of_a_waiting_tap_declines_it() {
    let mut world = stocked(Mode::Strict);
    world.buy("1", "alice", 1_400);
    world.buy("2", "alice", 300);
    let outputs = world.reverse("r1", "1", None);
    let expected =
        [declined(DeclineReason::Reversed), approved(ALICE, 300, 0), approved(ALICE, 0, 0)].concat();
    assert_eq!(decided(&outputs), expected, "and the next one is decided");
    assert_eq!(decided(&world.buy("1", "alice", 1_400)), declined(DeclineReason::Reversed));
    assert_eq!(decided(&world.grant(ALICE, 400)), [], "what comes for it later is right all the same");
    assert_eq!(world.status().unspent_fen, 1_100);
    world.check();
}

#[test]
fn a_tap_that_cannot_be_written_takes_nothing_else_along() {
    let mut world = stocked(Mode::Strict);
    world.share_grant(BOB, 5_000);
    world.grant(BOB, 1_000);
    let run = |world: &World, sql: &str| world.core.store.connection().execute_batch(sql).unwrap();
    run(
        &world,
        "CREATE TRIGGER refuse BEFORE INSERT ON recent WHEN new.account = 1 BEGIN SELECT RAISE(ABORT, ''); END",
    );
    let taps = ["bob", "alice", "bob"].into_iter().zip(0..);
    let taps =
        taps.map(|(card, n)| Input::Tap(Ticket(n), tap(&n.to_string(), card, TapKind::Amount(fen(100)))));
    let outputs = world.step(taps.collect());
    world.ingest(&outputs);
    let (bob, out) = (approved(BOB, 100, 0), declined(DeclineReason::OutOfService));
    assert_eq!(decided(&outputs), [bob.clone(), out, bob].concat());
    assert_eq!((world.status().position, world.status().unspent_fen), (2, 1_800));
    run(&world, "DROP TRIGGER refuse");
    world.check();
    let again = world.buy("1", "alice", 100);
    assert!(matches!(again[0], Output::Decided { repeat: false, .. }), "nothing of it was kept");
    assert_eq!(decided(&again), approved(ALICE, 100, 0));
    world.check();
}

#[test]
fn a_reversal_in_parts_gives_stand_in_home_first_and_allowance_back() {
    let mut world = stocked(Mode::Optimistic);
    world.disconnect();
    assert_eq!(decided(&world.buy("1", "alice", 1_500)), approved(ALICE, 1_500, 500));
    assert_eq!(decided(&world.reverse("r1", "1", Some(700))), approved(ALICE, 700, 0));
    assert_eq!(world.status().unspent_fen, 200);
    let outputs = world.reverse("r2", "1", Some(801));
    assert!(matches!(outputs.as_slice(), [Output::Refused(_, TapError::ReversalTooLarge)]));
    assert_eq!(decided(&world.reverse("r3", "1", None)), approved(ALICE, 800, 0));
    let outputs = world.reverse("r4", "1", None);
    assert!(matches!(outputs.as_slice(), [Output::Refused(_, TapError::ReversalTooLarge)]));
    assert_eq!(world.status().unspent_fen, 1_000);
    assert_eq!(world.core.store.share(ALICE).unwrap().used_on.len(), 0);
    world.check();
}

#[test]
fn a_reversal_of_another_epoch_goes_home() {
    let mut world = stocked(Mode::Strict);
    world.buy("1", "alice", 600);
    world.tell(vec![CloseRequest { epoch: Epoch::FIRST }.into()]);
    assert_eq!(decided(&world.reverse("r1", "1", None)), approved(ALICE, 600, 0));
    let Some(Body::Reversal(reversal)) = world.uploaded().pop() else { panic!("no reversal") };
    assert_eq!((reversal.epoch, reversal.right_back, reversal.right_home), (Epoch(2), fen(0), fen(600)));
    assert_eq!(reversal.allowance_back, Fen::ZERO);
    assert_eq!(world.status().unspent_fen, 0);
    world.check();
}

#[test]
fn a_connected_node_asks_and_decides_when_the_grant_comes() {
    let mut world = stocked(Mode::Strict);
    let outputs = world.buy("1", "alice", 1_400);
    let [ask] = asks(&outputs)[..] else { panic!("one ask") };
    assert_eq!((ask.unit, ask.want, ask.at, ask.ms_left), (CASH, fen(1_400), 0, 300));
    assert!(decided(&outputs).is_empty());
    assert_eq!(decided(&world.buy("2", "alice", 100)), [], "taps of one account are decided in order");
    assert_eq!(world.status().pending, 2);
    let again = world.buy("1", "alice", 1_400);
    assert!(again.is_empty(), "the terminal's retry waits too");
    assert_eq!(decided(&world.grant(ALICE, 400)).len(), 2, "both tickets");
    assert_eq!(world.status().pending, 1, "the next one asks for itself");
    assert_eq!(decided(&world.grant(ALICE, 100)), approved(ALICE, 100, 0));
    world.check();
}

#[test]
fn a_final_no_declines_and_an_open_one_goes_to_the_policy() {
    let mut world = stocked(Mode::Optimistic);
    world.buy("1", "alice", 1_400);
    assert_eq!(decided(&world.frame(no(CASH, 1_500, true, 0))), [], "about a higher level");
    assert_eq!(decided(&world.frame(no(CASH, 1_400, true, 0))), declined(DeclineReason::Insufficient));
    world.buy("2", "alice", 1_400);
    let outputs = world.frame(no(CASH, 1_400, false, 300));
    assert_eq!(asks(&outputs)[0].want, fen(1_300), "what is free is asked for by itself");
    assert_eq!(decided(&world.grant(ALICE, 300)), approved(ALICE, 1_400, 100));
    world.check();
}

#[test]
fn without_an_answer_in_time_the_policy_decides() {
    let mut world = stocked(Mode::Strict);
    world.buy("1", "alice", 1_400);
    assert_eq!(world.core.next_timer(), Some(250));
    assert_eq!(decided(&world.pass(299)), []);
    assert_eq!(decided(&world.pass(1)), declined(DeclineReason::Insufficient));
    world.buy("2", "alice", 1_400);
    assert_eq!(decided(&world.disconnect()), declined(DeclineReason::Insufficient));
    assert_eq!(decided(&world.buy("3", "alice", 1_000)), approved(ALICE, 1_000, 0));
    world.check();
}

#[test]
fn allowance_is_asked_for_before_money_and_a_no_means_pin() {
    let mut world = World::connected(Mode::Strict);
    let outputs = world.buy("1", "alice", 600);
    assert_eq!((asks(&outputs)[0].unit, asks(&outputs)[0].want), (Unit::Allowance, fen(600)));
    let outputs = world.share_grant(ALICE, 600);
    assert_eq!((asks(&outputs)[0].unit, asks(&outputs)[0].want), (CASH, fen(600)));
    assert_eq!(decided(&world.grant(ALICE, 600)), approved(ALICE, 600, 0));
    world.buy("2", "alice", 100);
    let outputs = world.frame(no(Unit::Allowance, 700, true, 0));
    assert_eq!(decided(&outputs), declined(DeclineReason::PinRequired));
    world.grant(ALICE, 3_000);
    let request = TapRequest { pin: Pin::Right, ..tap("3", "alice", TapKind::Amount(fen(3_000))) };
    assert_eq!(decided(&world.tap(request)), approved(ALICE, 3_000, 0), "with the PIN no limit counts");
    world.check();
}

#[test]
fn subsidy_is_spent_before_cash() {
    let mut world = stocked(Mode::Strict);
    let subsidy = world.grant_body(ALICE, Wallet::Subsidy, 300);
    world.tell(vec![subsidy]);
    assert_eq!(decided(&world.buy("1", "alice", 500)), approved(ALICE, 500, 0));
    let debits: Vec<(Wallet, Fen)> = world
        .uploaded()
        .into_iter()
        .filter_map(|body| match body {
            Body::Debit(debit) => Some((debit.wallet, debit.amount())),
            _ => None,
        })
        .collect();
    assert_eq!(debits, [(Wallet::Subsidy, fen(300)), (Wallet::Cash, fen(200))]);
    assert_eq!(decided(&world.reverse("r1", "1", Some(250))), approved(ALICE, 250, 0));
    let Some(Body::Reversal(last)) = world.uploaded().pop() else { panic!("no reversal") };
    assert_eq!((last.wallet, last.right_back), (Wallet::Subsidy, fen(50)), "cash went back first");
    world.check();
}

#[test]
fn a_recall_waits_for_the_grants_before_it() {
    let mut world = stocked(Mode::Strict);
    let applied = world.status().applied;
    let outputs = world.frame(recall(CASH, 5_000, applied + 1));
    assert!(sent(&outputs).is_empty());
    let outputs = world.grant(ALICE, 500);
    let [Frame::Recalled(recalled)] = &sent(&outputs)
        .into_iter()
        .filter(|frame| matches!(frame, Frame::Recalled(_)))
        .collect::<Vec<_>>()[..]
    else {
        panic!("not recalled: {outputs:?}")
    };
    assert_eq!(recalled.at, 1);
    let Some(Body::Release(release)) = world.uploaded().pop() else { panic!("no release") };
    assert_eq!((release.amount, release.released_total), (fen(1_500), fen(1_500)));
    let outputs = world.frame(recall(CASH, 100, 0));
    assert!(matches!(sent(&outputs)[..], [Frame::Recalled(_)]), "nothing there, and said so");
    assert_eq!(world.uploaded().len(), 1);
    world.check();
}

#[test]
fn a_waiting_tap_is_decided_before_a_recall_and_asks_again_after_one() {
    let mut world = stocked(Mode::Strict);
    world.buy("1", "alice", 1_200);
    let outputs = world.frame(recall(CASH, 1_000, 0));
    assert_eq!(asks(&outputs)[0].want, fen(2_200), "what was released is missing now");
    let applied = world.status().applied;
    world.frame(recall(CASH, 1_000, applied + 1));
    let outputs = world.grant(ALICE, 1_200);
    assert_eq!(decided(&outputs), approved(ALICE, 1_200, 0));
    assert_eq!(world.status().unspent_fen, 0);
    world.check();
}

#[test]
fn a_recall_of_allowance_fits_every_later_day() {
    let mut world = stocked(Mode::Strict);
    world.buy("1", "alice", 400);
    world.frame(recall(Unit::Allowance, 9_000, 0));
    let Some(Body::ShareRelease(release)) = world.uploaded().pop() else { panic!("no release") };
    assert_eq!(release.amount, fen(4_600));
    assert_eq!(world.core.store.share(ALICE).unwrap().left(day(MORNING)), Fen::ZERO);
    world.check();
}

#[test]
fn an_epoch_ends_once_and_its_rows_are_nothing() {
    let mut world = stocked(Mode::Strict);
    world.stand_in_grant(ALICE, 700);
    world.buy("1", "alice", 1_400);
    let outputs = world.tell(vec![CloseRequest { epoch: Epoch::FIRST }.into()]);
    assert_eq!(asks(&outputs)[0].want, fen(1_400), "the tap that waits asks in the new epoch");
    let status = world.status();
    assert_eq!((status.epoch, status.unspent_fen, status.stand_in_left_fen), (2, 0, 0));
    world.tell(vec![Closed { epoch: Epoch::FIRST, declared_head: 0 }.into()]);
    assert_eq!(world.uploaded().iter().filter(|body| matches!(body, Body::EpochEnd(_))).count(), 1);
    // A grant of the ended epoch cannot be: the stream is in order.
    let outputs = world.grant(ALICE, 100);
    assert!(outputs.iter().any(|output| matches!(output, Output::CloseLink(..))));
    assert_eq!(world.status().link, LinkState::Down);
    world.check();
}

#[test]
fn hybrid_stands_in_within_grant_pool_and_price() {
    let mut world = stocked(Mode::Hybrid);
    world.stand_in_grant(ALICE, 700);
    let hint = Hint {
        account: ALICE,
        elsewhere_per_day: fen(800),
        purchase_mean: fen(400),
        elsewhere_per_meal: fen(500),
        habit: false,
        seasoned: true,
    };
    let pool = Pool { from_day: day(MORNING), per_day: fen(1_000), habit_only: fen(500) };
    world.tell(vec![hint.into(), pool.into()]);
    world.disconnect();
    assert_eq!(
        decided(&world.buy("1", "alice", 1_701)),
        declined(DeclineReason::Insufficient),
        "beyond grant"
    );
    assert_eq!(decided(&world.buy("2", "alice", 1_300)), approved(ALICE, 1_300, 300));
    assert_eq!(decided(&world.buy("3", "alice", 300)), declined(DeclineReason::Insufficient), "beyond pool");
    assert_eq!(decided(&world.buy("4", "alice", 200)), approved(ALICE, 200, 200));
    assert_eq!(world.status().stand_in_left_fen, 200);
    world.check();
}

#[test]
fn optimistic_goes_by_the_last_known_balance() {
    let mut world = World::connected(Mode::Optimistic);
    world.disconnect();
    for sequence in ["1", "2"] {
        assert_eq!(decided(&world.buy(sequence, "alice", 2_000)), approved(ALICE, 2_000, 2_000));
    }
    assert_eq!(
        decided(&world.buy("3", "alice", 2_000)),
        declined(DeclineReason::PinRequired),
        "the day's limit"
    );
    let request = TapRequest { pin: Pin::Right, ..tap("4", "alice", TapKind::Amount(fen(6_001))) };
    assert_eq!(decided(&world.tap(request)), declined(DeclineReason::Insufficient), "own spending counts");
    assert_eq!(world.status().stand_in_left_fen, -4_000);
    world.check();
}

#[test]
fn posted_batches_take_over_from_own_effects() {
    let mut world = stocked(Mode::Strict);
    world.buy("1", "alice", 600);
    world.buy("2", "alice", 100);
    let own = LogId::node(INSTITUTION, NODE);
    let hash = world.core.store.head_at(own, 1).unwrap().unwrap().head.cursor.hash;
    let posted = Posted {
        heads: vec![PostedHead { log: own, position: 1, hash }],
        deltas: vec![Delta { account: ALICE, wallet: Wallet::Cash, amount: fen(-600) }],
        lost: None,
    };
    let shard = LogId::shard(INSTITUTION, ALICE.shard());
    let frame = world.centre.write(shard, world.now.wall, vec![posted.into()]);
    world.frame(frame.clone());
    let outputs = world.frame(frame);
    assert!(matches!(sent(&outputs)[..], [Frame::Ack(_)]), "what is known is only acknowledged again");
    let purse = world.core.store.purse(ALICE).unwrap();
    assert_eq!((purse.cash.posted, purse.cash.own), (fen(9_400), fen(-100)));
    world.check();
}

#[test]
fn one_changed_fen_shows() {
    let mut world = stocked(Mode::Strict);
    world.buy("1", "alice", 600);
    world.check();
    let connection = world.core.store.connection();
    let problems = |sql: &str| {
        connection.execute_batch(sql).unwrap();
        crate::verify::verify(connection, &identity()).unwrap().problems.len()
    };
    assert_eq!(problems("UPDATE wallets SET posted = posted + 1 WHERE account = 1"), 1);
    assert_eq!(problems("UPDATE wallets SET posted = posted - 1 WHERE account = 1"), 0);
    // What the tap left stands in `recent` first, and then in its place.
    for table in ["recent", "wallets"] {
        let set = |what: &str| problems(&format!("UPDATE {table} SET {what} WHERE account = 1"));
        assert_eq!(set("unspent = unspent + 1"), 1, "{table}");
        assert_eq!(set("unspent = unspent - 1, own = own + 1"), 1, "{table}");
        assert_eq!(set("own = own - 1"), 0, "{table}");
        world.core.store.fold().unwrap();
    }
    for table in ["taps", "wallets"] {
        connection.execute_batch(&format!("CREATE TABLE kept AS SELECT * FROM {table}")).unwrap();
        assert!(problems(&format!("DELETE FROM {table}")) >= 1, "{table}");
        let columns = "id, posted, own, granted, unspent, released, stand_in_granted, stand_in_left, share";
        let columns = if table == "taps" { "*" } else { columns };
        let back = format!("INSERT INTO {table} SELECT {columns} FROM kept; DROP TABLE kept");
        assert_eq!(problems(&back), 0, "{table}");
    }
    assert_eq!(problems("UPDATE taps SET amount = amount + 1"), 1);
    assert_eq!(problems("UPDATE taps SET amount = amount - 1, reversed = 1"), 1);
    assert_eq!(problems("UPDATE taps SET reversed = 0"), 0);
    assert_eq!(
        problems(
            "INSERT INTO taps SELECT terminal, 9, sequence, kind, digest, card, account, reason, amount, stand_in, reversed, clock, position, debits FROM taps"
        ),
        1
    );
    assert_eq!(problems("DELETE FROM taps WHERE epoch = 9"), 0);
    assert_eq!(problems("UPDATE cards SET status = 1 WHERE account = 1"), 1);
    assert_eq!(problems("UPDATE cards SET status = 0, single_limit = single_limit + 1 WHERE account = 1"), 1);
    assert_eq!(problems("UPDATE cards SET single_limit = single_limit - 1 WHERE account = 1"), 0);
    assert_eq!(
        problems(
            "INSERT INTO cards SELECT 'x', account, 0, 0, 0, class, 1, 1, '', NULL FROM cards WHERE account = 1"
        ),
        1
    );
    assert_eq!(problems("DELETE FROM cards WHERE card = 'x'"), 0);
    assert_eq!(problems("UPDATE documents SET heads = 'x' WHERE account = 2"), 1);
    assert!(problems("UPDATE entries SET record = x'00' WHERE log = 1 << 32") >= 2);
}

#[test]
fn a_loss_acts_before_its_entry_and_a_lift_undoes_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Strict, directory.path());
    world.share_grant(ALICE, 5_000);
    world.grant(ALICE, 1_000);
    let card = CardNumber::new("alice").unwrap();
    let loss = Key::new("l1").unwrap();
    world.setting(ALICE, Intent::ReportLoss { card: card.clone(), loss: loss.clone() });
    let log = LogId::shard(INSTITUTION, ALICE.shard());
    let position = world.centre.end(log).position;
    world.frame(Frame::LossNotice(LossNotice { account: ALICE, card: card.clone(), log, position }));
    assert_eq!(decided(&world.buy("1", "alice", 100)), declined(DeclineReason::Lost));
    world.reopen();
    assert_eq!(decided(&world.buy("2", "alice", 100)), declined(DeclineReason::Lost));
    world.connect();
    assert_eq!(decided(&world.buy("3", "alice", 100)), declined(DeclineReason::Lost));
    assert!(world.core.losses.is_empty(), "the entry has taken over");
    let lift = world.setting(ALICE, Intent::LiftLoss { card, losses: vec![loss] });
    world.frame(lift);
    assert_eq!(decided(&world.buy("4", "alice", 100)), approved(ALICE, 100, 0));
    world.check();
}

#[test]
fn a_loss_in_a_stream_that_is_not_the_accounts_is_not_kept() {
    let mut world = World::connected(Mode::Strict);
    let card = CardNumber::new("alice").unwrap();
    let own = LogId::shard(INSTITUTION, ALICE.shard());
    for (log, position) in [
        (LogId::shard(INSTITUTION, ALICE.shard() + 1), 5),
        (LogId::node(INSTITUTION, NODE), 5),
        (LogId { stream: u32::MAX, ..own }, 5),
        (own, u64::MAX),
    ] {
        let notice = LossNotice { account: ALICE, card: card.clone(), log, position };
        let outputs = world.frame(Frame::LossNotice(notice));
        assert!(outputs.iter().any(|output| matches!(output, Output::CloseLink(..))), "{log} {position}");
        assert!(world.core.losses.is_empty());
        world.connect();
    }
}

#[test]
fn a_million_strangers_leave_a_few_entries() {
    let mut world = World::connected(Mode::Strict);
    world.disconnect();
    let taps = (0..3_000)
        .map(|n| Input::Tap(Ticket(n), tap(&format!("s{n}"), &format!("c{n}"), TapKind::Amount(fen(100)))));
    let outputs = world.step(taps.collect());
    assert_eq!(outputs.len(), 3_000);
    let count = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        world.core.store.connection().query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!((count("documents"), count("cards"), count("wallets")), (2, 2, 2));
    assert_eq!((count("heads WHERE log = 1 << 32"), count("terminals")), (1, 1));
    let status = world.status();
    assert_eq!((status.position, status.unknown_cards_not_kept), (30, 2_970), "a minute's worth is written");
    world.check();
}

#[test]
fn a_step_that_is_run_again_counts_once() {
    let mut world = stocked(Mode::Strict);
    world.disconnect();
    for n in 0..29 {
        world.buy(&format!("s{n}"), "nobody", 100);
    }
    let refuse =
        "CREATE TRIGGER refuse BEFORE INSERT ON recent WHEN new.own BEGIN SELECT RAISE(ABORT, ''); END";
    world.core.store.connection().execute_batch(refuse).unwrap();
    let taps = ["nobody", "alice"].into_iter().zip(0..);
    let taps =
        taps.map(|(card, n)| Input::Tap(Ticket(n), tap(&format!("t{n}"), card, TapKind::Amount(fen(100)))));
    let outputs = world.step(taps.collect());
    let (unknown, out) = (DeclineReason::UnknownCard, DeclineReason::OutOfService);
    assert_eq!(decided(&outputs), [declined(unknown), declined(out)].concat());
    let status = world.status();
    assert_eq!(
        (status.position, status.unknown_cards_not_kept),
        (30, 0),
        "the thirtieth is within the bound"
    );
}

#[test]
fn what_is_taken_back_of_settings_is_taken_back_in_memory_too() {
    let mut world = stocked(Mode::Strict);
    let log = LogId::shard(INSTITUTION, ALICE.shard());
    let lost = |card: &str| Intent::ReportLoss {
        card: CardNumber::new(card).unwrap(),
        loss: Key::new(format!("loss of {card}").replace(' ', "-")).unwrap(),
    };
    // The first loss is taken; the second one stands beside what is not for this stream.
    let taken = world.setting(ALICE, lost("alice"));
    let second = world.setting_body(BOB, lost("bob"));
    let wrong = CloseRequest { epoch: Epoch::FIRST };
    let not_taken = world.centre.write(log, world.now.wall, vec![second, wrong.into()]);
    let link = world.link;
    let outputs = world.step(vec![Input::Frame(link, taken), Input::Frame(link, not_taken)]);
    assert_eq!(outputs.iter().filter(|output| matches!(output, Output::CloseLink(..))).count(), 1);
    assert_eq!(decided(&world.buy("1", "alice", 100)), declined(DeclineReason::Lost));
    assert_eq!(decided(&world.buy("2", "bob", 100)), declined(DeclineReason::PinRequired), "not lost");
    world.check();
}
