//! The no-PIN allowance of a day, shared out: each day is a sum of its own, whatever the clocks say.

use anyhow::{Result, ensure};
use feiqian_protocol::campus::{Mode, Policy};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::DeclineReason;
use feiqian_sim::link::{Notice, Setup, World};

use super::shortcuts::{approved, connected, strict};

const DAY_MS: u64 = 86_400_000;

fn limited(nodes: u16) -> Setup {
    Setup {
        limits: (Fen::new(300), Fen::new(500)),
        policy: Policy { mode: Mode::Strict, ..Policy::default() },
        ..strict(nodes, 100_000)
    }
}

fn over_limit(world: &mut World, site: usize, fen: i64) -> Result<()> {
    let answer = world.tap_and_wait(site, "c1", fen)?;
    ensure!(answer.declined() == Some(DeclineReason::PinRequired), "{fen} at site {site}: {answer:?}");
    world.check()
}

#[test]
fn an_allowance_is_one_over_all_buildings() -> Result<()> {
    let mut world = connected(limited(3))?;
    over_limit(&mut world, 0, 301)?;
    approved(&mut world, 0, "c1", 300)?;
    approved(&mut world, 1, "c1", 100)?;
    over_limit(&mut world, 2, 101)?;
    approved(&mut world, 2, "c1", 100)?;
    over_limit(&mut world, 0, 1)
}

#[test]
fn a_new_day_is_a_new_allowance_everywhere() -> Result<()> {
    let mut world = connected(limited(2))?;
    for day in 0..4 {
        let (one, other) = if day % 2 == 0 { (0, 1) } else { (1, 0) };
        approved(&mut world, one, "c1", 300)?;
        approved(&mut world, other, "c1", 200)?;
        over_limit(&mut world, one, 1)?;
        over_limit(&mut world, other, 1)?;
        world.run(DAY_MS)?;
        world.check()?;
    }
    Ok(())
}

/// Use, another day, release, a new share, use: on no label more than the limit.
#[test]
fn a_release_counts_from_its_day_on() -> Result<()> {
    let mut world = connected(limited(2))?;
    approved(&mut world, 0, "c1", 300)?;
    world.run(DAY_MS)?;
    approved(&mut world, 1, "c1", 300)?;
    approved(&mut world, 0, "c1", 200)?;
    over_limit(&mut world, 0, 1)?;
    world.run(DAY_MS)?;
    approved(&mut world, 0, "c1", 300)?;
    approved(&mut world, 1, "c1", 200)?;
    over_limit(&mut world, 1, 1)
}

/// A cut-off building has its share of every day and no more, however long it stays alone.
#[test]
fn a_cut_off_building_keeps_to_its_share_on_every_day() -> Result<()> {
    let mut world = connected(limited(2))?;
    approved(&mut world, 0, "c1", 300)?;
    let tap = world.tap(0, "c1", 200)?;
    world.run(1_000)?;
    world.reverse(&tap, None)?;
    world.hold(0, "c1", 100)?;
    world.run(1_000)?;
    world.cut(0, Notice::Both)?;
    for _ in 0..3 {
        let mut used = Fen::ZERO;
        for _ in 0..10 {
            used += world.tap_and_wait(0, "c1", 60)?.approved().unwrap_or_default();
        }
        ensure!(used <= Fen::new(500));
        world.check()?;
        world.tap_and_wait(1, "c1", 300)?;
        world.tap_and_wait(1, "c1", 200)?;
        world.check()?;
        world.run(DAY_MS)?;
    }
    world.connect(0)?;
    world.run(3_000)?;
    world.check_healed()
}

/// Clocks a day apart: each label stays within the limit; a clock that is far ahead opens one day more at most.
#[test]
fn wrong_clocks_open_no_days_at_will() -> Result<()> {
    let mut world = connected(limited(2))?;
    world.site_mut(1).skew_ms = DAY_MS as i64;
    for site in [0, 1, 0, 1] {
        world.tap_and_wait(site, "c1", 250)?;
        world.check()?;
    }
    world.cut(1, Notice::Both)?;
    let mut used = Fen::ZERO;
    for days in [1, 2, 30, 365, 3_650, -365, 1] {
        world.site_mut(1).skew_ms = days * DAY_MS as i64;
        for _ in 0..4 {
            used += world.tap_and_wait(1, "c1", 250)?.approved().unwrap_or_default();
            world.check()?;
        }
    }
    ensure!(used <= Fen::new(2 * 500), "one day more at most, not {used}");
    Ok(())
}

/// A cut-off building whose clock runs wild uses its share on the day and on the next, and that is all.
#[test]
fn a_clock_that_runs_wild_opens_one_day() -> Result<()> {
    let mut world = World::new(limited(2))?;
    // The first to come is given the money, so that nothing but the allowance is short.
    world.connect(1)?;
    world.run(2_000)?;
    ensure!(world.right_at(1, "c1")? > Fen::new(10_000));
    world.hold(1, "c1", 300)?;
    world.cut(1, Notice::Both)?;
    let mut used = Fen::ZERO;
    for days in [0, 1, 2, 30, 365, 3_650, -365, 4, 0] {
        world.site_mut(1).skew_ms = days * DAY_MS as i64;
        for _ in 0..6 {
            used += world.tap_and_wait(1, "c1", 50)?.approved().unwrap_or_default();
        }
        world.check()?;
    }
    ensure!(used.is_positive() && used <= Fen::new(2 * 500), "{used} on two days");
    Ok(())
}

#[test]
fn a_reversal_gives_the_allowance_of_its_day_back() -> Result<()> {
    let mut world = connected(limited(2))?;
    let tap = world.tap(0, "c1", 300)?;
    world.run(1_000)?;
    approved(&mut world, 1, "c1", 200)?;
    over_limit(&mut world, 1, 100)?;
    world.reverse(&tap, None)?;
    world.run(1_000)?;
    approved(&mut world, 1, "c1", 300)?;
    over_limit(&mut world, 0, 1)
}
