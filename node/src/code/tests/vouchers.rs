//! Vouchers that hold money at a node: paid once, by nobody's leave, with a receipt.

use feiqian_protocol::code::SignedReceipt;
use feiqian_protocol::entry::{EntryRef, HoldMoved, HoldPlaced};
use feiqian_protocol::ids::LogId;
use feiqian_protocol::time::BusinessDay;

use super::*;

fn holding(phone: &Phone, number: u32, ceiling: i64) -> Phone {
    let voucher = Voucher { number, ceiling: fen(ceiling), ..phone.voucher.voucher().clone() };
    Phone { voucher: voucher.sign(&voucher_key()).unwrap(), secret: phone.secret.clone() }
}

fn receipt_of(outputs: &[Output]) -> Option<SignedReceipt> {
    outputs.iter().find_map(|output| match output {
        Output::Decided { receipt, .. } => receipt.as_deref().cloned(),
        _ => None,
    })
}

/// What stands in the node's own log, uploaded or not.
fn written(world: &World) -> Vec<Body> {
    let records = world.core.store.records_after(world.core.own_log(), 0, 1_000).unwrap();
    records.iter().map(|record| Entry::from_record(record).unwrap().body).collect()
}

/// Alice has a phone and nothing here: no right, no share.
fn empty() -> (World, Phone) {
    let mut world = World::connected(Mode::Strict);
    let phone = Phone::new(1, ALICE, 1);
    let activate = Intent::ActivateVirtualCard { card: phone.card(), phone: phone_text(&phone.secret.key()) };
    let frame = world.setting(ALICE, activate);
    world.frame(frame);
    (world, phone)
}

#[test]
fn a_voucher_pays_once_without_right_connected_or_cut_off() {
    let (mut world, phone) = empty();
    for (connected, number) in [(true, 1), (false, 2)] {
        if !connected {
            world.disconnect();
        }
        let phone = holding(&phone, number, 2_000);
        let name = |what: &str| format!("{number}{what}");
        let kind = TapKind::Amount(fen(1_250));
        let told = show(&mut world, &name("a"), phone.code(MORNING, 1), kind, Pin::Absent);
        assert_eq!(decided(&told), approved(ALICE, 1_250, 0));
        let receipt = receipt_of(&told).expect("a receipt");
        assert!(receipt.is_signed_by(&identity().log_key.verifying_key()));
        let said = *receipt.receipt();
        assert_eq!((said.account, said.voucher, said.counter, said.amount), (ALICE, number, 1, fen(1_250)));
        assert_eq!((said.institution, said.node), (INSTITUTION, identity().node));
        let written = written(&world);
        let Some(Body::Debit(debit)) = written.get(said.position as usize - 1) else { panic!("{said:?}") };
        assert_eq!(
            (debit.from_voucher, debit.from_right, debit.allowance),
            (Some(fen(1_250)), fen(0), fen(0))
        );
        let again = show(&mut world, &name("a"), phone.code(MORNING, 1), kind, Pin::Absent);
        assert!(matches!(again[0], Output::Decided { repeat: true, .. }));
        assert_eq!(receipt_of(&again), Some(receipt), "the first answer is the whole of it");
        // What it does not spend is not its any more: a door opens, a purchase goes the account's way.
        assert_eq!(open_door(&mut world, &name("b"), phone.code(MORNING, 2)), approved(ALICE, 0, 0));
        if !connected {
            let reason = DeclineReason::PinRequired;
            assert_eq!(buy(&mut world, &name("c"), phone.code(MORNING, 3), 100), declined(reason));
        }
    }
    world.check();
}

#[test]
fn what_is_beyond_the_ceiling_is_a_debit_of_its_own() {
    let (mut world, phone) = connected();
    let phone = holding(&phone, 2, 1_500);
    let told = show(&mut world, "1", phone.code(MORNING, 1), TapKind::Amount(fen(1_800)), Pin::Absent);
    assert_eq!(decided(&told), approved(ALICE, 1_800, 0));
    assert_eq!(receipt_of(&told).unwrap().receipt().amount, fen(1_500));
    let parts: Vec<_> = world
        .uploaded()
        .into_iter()
        .filter_map(|body| match body {
            Body::Debit(debit) => {
                Some((debit.of_voucher().get(), debit.from_right.get(), debit.allowance.get()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(parts, [(1_500, 0, 0), (0, 300, 300)]);
    // All of it is given back: the right comes back here, what the voucher held goes home.
    assert_eq!(decided(&world.reverse("2", "1", None)), approved(ALICE, 1_800, 0));
    let back: Vec<_> = world
        .uploaded()
        .into_iter()
        .filter_map(|body| match body {
            Body::Reversal(back) => {
                Some((back.right_back.get(), back.right_home.get(), back.allowance_back.get()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(back, [(300, 0, 300), (0, 1_500, 0)]);
    world.check();
    // Where the rest cannot be paid, nothing is taken.
    world.disconnect();
    let poor = holding(&phone, 3, 1_000);
    let code = poor.code(MORNING, 1);
    world.buy("3", "alice", 2_000);
    world.buy("4", "alice", 1_000);
    assert_eq!(buy(&mut world, "5", code.clone(), 1_100), declined(DeclineReason::Insufficient));
    assert_eq!(buy(&mut world, "6", code, 1_000), approved(ALICE, 1_000, 0));
    world.check();
}

#[test]
fn a_restart_and_the_centres_word_end_a_voucher() {
    let directory = tempfile::tempdir().unwrap();
    let (mut world, phone) = with_phone(World::on_disk(Mode::Strict, directory.path()));
    let (first, second) = (holding(&phone, 2, 1_000), holding(&phone, 3, 1_000));
    assert_eq!(buy(&mut world, "1", first.code(MORNING, 1), 100), approved(ALICE, 100, 0));
    world.reopen();
    world.connect();
    let of_right = |world: &World| {
        let bodies = world.uploaded();
        bodies
            .iter()
            .filter(|body| matches!(body, Body::Debit(debit) if debit.from_right.is_positive()))
            .count()
    };
    assert_eq!(buy(&mut world, "2", first.code(MORNING, 2), 100), approved(ALICE, 100, 0));
    assert_eq!(of_right(&world), 1, "it had paid before the restart");
    let problems =
        |world: &World| crate::verify::verify(world.core.store.connection(), &identity()).unwrap().problems;
    world.check();
    world.core.store.connection().execute("DELETE FROM spent_vouchers", []).unwrap();
    assert_eq!(problems(&world), ["that voucher 2 of account 1 has paid is missing"]);
    // The centre says of another one that it has paid elsewhere.
    let until = second.voucher.voucher().until();
    let shard = LogId::shard(INSTITUTION, ALICE.shard());
    let placed = HoldPlaced {
        account: ALICE,
        voucher: 3,
        amount: fen(1_000),
        issued: second.voucher.voucher().issued,
        until,
        card: phone.card(),
        day: BusinessDay(1),
    };
    let debit =
        Some(EntryRef { log: LogId::node(INSTITUTION, feiqian_protocol::ids::NodeId(9)), position: 1 });
    let moved = HoldMoved { account: ALICE, voucher: 3, until, kept: fen(300), debit };
    let wall = world.now.wall;
    let frame = world.centre.write(shard, wall, vec![placed.into(), moved.into()]);
    world.frame(frame);
    assert_eq!(buy(&mut world, "3", second.code(MORNING, 1), 100), approved(ALICE, 100, 0));
    assert_eq!(of_right(&world), 2, "not by the voucher");
}

#[test]
fn where_the_time_proves_nothing_a_voucher_pays_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (mut world, phone) = with_phone(World::on_disk(Mode::Strict, directory.path()));
    world.disconnect();
    world.reopen();
    let phone = holding(&phone, 2, 1_000);
    let told = show(&mut world, "1", phone.code(MORNING, 1), TapKind::Amount(fen(100)), Pin::Right);
    assert_eq!((decided(&told), receipt_of(&told)), (approved(ALICE, 100, 0), None));
    let by_right = written(&world).into_iter().any(|body| match body {
        Body::Debit(debit) => debit.from_right == fen(100) && debit.from_voucher.is_none(),
        _ => false,
    });
    assert!(by_right);
    world.check();
}
