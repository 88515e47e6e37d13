//! Taps as terminals see them: shares of one account, equal prices, retries, reversals that overtake.

use anyhow::{Result, ensure};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::DeclineReason;
use feiqian_sim::link::Notice;

use super::shortcuts::{approved, connected, hybrid, insufficient, strict};

#[test]
fn two_cut_off_buildings_spend_their_shares_of_one_account() -> Result<()> {
    let mut world = connected(strict(2, 1_000))?;
    world.hold(0, "c1", 600)?;
    world.hold(1, "c1", 400)?;
    world.cut(0, Notice::Both)?;
    world.cut(1, Notice::Both)?;
    approved(&mut world, 0, "c1", 600)?;
    approved(&mut world, 1, "c1", 400)?;
    insufficient(&mut world, 0, "c1", 1)?;
    insufficient(&mut world, 1, "c1", 1)?;
    world.connect(0)?;
    world.connect(1)?;
    world.run(3_000)?;
    world.check_healed()?;
    ensure!(world.money("c1")? == Fen::ZERO);
    ensure!(world.centre_tables()?.cases()?.is_empty());
    Ok(())
}

#[test]
fn the_same_price_twice_in_the_same_second_at_two_buildings_is_two_taps() -> Result<()> {
    for cut in [false, true] {
        let mut world = connected(strict(2, 3_000))?;
        world.hold(0, "c1", 1_250)?;
        world.hold(1, "c1", 1_250)?;
        if cut {
            world.cut(0, Notice::Both)?;
            world.cut(1, Notice::Both)?;
        }
        let one = world.tap(0, "c1", 1_250)?;
        let two = world.tap(1, "c1", 1_250)?;
        world.run(1_000)?;
        for tap in [one, two] {
            ensure!(world.answer(&tap).and_then(|answer| answer.approved()) == Some(Fen::new(1_250)));
        }
        world.connect(0)?;
        world.connect(1)?;
        world.run(3_000)?;
        world.check_healed()?;
        ensure!(world.money("c1")? == Fen::new(500));
    }
    Ok(())
}

/// The process dies after each number of disk changes, before or after the commit: the retry gets one answer, and the
/// money is taken once.
#[test]
fn a_retry_through_a_restart_is_the_same_tap() -> Result<()> {
    for changes in 0..12 {
        let mut world = connected(strict(1, 5_000))?;
        world.hold(0, "c1", 2_000)?;
        world.site(0).disk.kill_after(changes);
        let tap = world.tap(0, "c1", 500)?;
        world.site(0).disk.disarm();
        world.crash(0)?;
        world.start(0)?;
        for _ in 0..3 {
            world.submit(&tap)?;
            world.run(1_000)?;
            ensure!(world.answer(&tap).and_then(|answer| answer.approved()) == Some(Fen::new(500)));
        }
        world.connect(0)?;
        world.run(2_000)?;
        world.check_healed()?;
        ensure!(world.money("c1")? == Fen::new(4_500));
    }
    Ok(())
}

#[test]
fn a_reversal_that_overtakes_its_tap_declines_it() -> Result<()> {
    let mut world = connected(strict(1, 5_000))?;
    world.hold(0, "c1", 1_000)?;
    let tap = world.hold_back(0, "c1", 400)?;
    let reversal = world.reverse(&tap, None)?;
    ensure!(world.answer(&reversal).is_some());
    world.submit(&tap)?;
    world.run(1_000)?;
    ensure!(world.answer(&tap).and_then(|answer| answer.declined()) == Some(DeclineReason::Reversed));
    // After a restart as well.
    world.crash(0)?;
    world.start(0)?;
    world.submit(&tap)?;
    world.submit(&reversal)?;
    world.connect(0)?;
    world.run(1_000)?;
    world.check_healed()?;
    ensure!(world.money("c1")? == Fen::new(5_000));
    Ok(())
}

#[test]
fn a_tap_is_reversed_in_parts_and_never_beyond() -> Result<()> {
    let mut world = connected(strict(1, 5_000))?;
    let tap = world.tap(0, "c1", 1_000)?;
    world.run(1_000)?;
    for part in [300, 500] {
        let reversal = world.reverse(&tap, Some(part))?;
        ensure!(world.answer(&reversal).and_then(|answer| answer.approved()) == Some(Fen::new(part)));
        world.submit(&reversal)?;
    }
    let beyond = world.reverse(&tap, Some(201))?;
    ensure!(world.answer(&beyond).is_some_and(|answer| answer.approved().is_none()));
    let rest = world.reverse(&tap, None)?;
    ensure!(world.answer(&rest).and_then(|answer| answer.approved()) == Some(Fen::new(200)));
    world.run(1_000)?;
    world.check_healed()?;
    ensure!(world.money("c1")? == Fen::new(5_000));
    Ok(())
}

/// A tap that waits for the centre is told at the deadline, and a retry meanwhile does not make it two.
#[test]
fn a_waiting_tap_is_answered_at_its_deadline() -> Result<()> {
    let mut world = connected(hybrid(2, 1_000, 5_000))?;
    world.hold(1, "c1", 1_000)?;
    world.cut(0, Notice::Neither)?;
    let tap = world.tap(0, "c1", 900)?;
    ensure!(world.answer(&tap).is_none(), "it asks first");
    world.submit(&tap)?;
    world.advance(world.setup().ask_deadline_ms - 1)?;
    ensure!(world.answer(&tap).is_none());
    world.advance(2)?;
    ensure!(world.answer(&tap).is_some());
    world.check()
}

#[test]
fn a_top_up_can_be_spent_at_once_at_every_connected_building() -> Result<()> {
    let mut world = connected(strict(3, 100))?;
    insufficient(&mut world, 0, "c1", 200)?;
    world.top_up("c1", 5_000, "k1")?;
    world.top_up("c1", 5_000, "k1")?;
    approved(&mut world, 1, "c1", 3_000)?;
    approved(&mut world, 2, "c1", 2_100)?;
    insufficient(&mut world, 0, "c1", 1)?;
    world.run(2_000)?;
    world.check_healed()
}
