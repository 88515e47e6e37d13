//! Overspend: found and put on the same taps whichever building is heard first, and only once.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use feiqian_protocol::campus::{Mode, Policy};
use feiqian_protocol::money::Fen;
use feiqian_sim::link::{Notice, Setup, World};

use super::shortcuts::{connected, strict};

/// Three cut-off buildings spend more than there is; they come back in this order, with restarts between.
fn overspent(order: [usize; 3], restarts: bool) -> Result<World> {
    let policy = Policy { mode: Mode::Optimistic, ..Policy::default() };
    let mut world = connected(Setup { policy, ..strict(3, 1_000) })?;
    for site in 0..3 {
        world.cut(site, Notice::Both)?;
    }
    let mut reversible = Vec::new();
    for round in 0..3 {
        for site in 0..3 {
            world.run(10_000)?;
            let tap = world.tap(site, "c1", 150 + 50 * round + 10 * site as i64)?;
            world.run(1_000)?;
            reversible.push(tap);
        }
    }
    world.reverse(&reversible[4], None)?;
    world.reverse(&reversible[5], Some(70))?;
    for site in order {
        world.connect(site)?;
        world.run(2_000)?;
        world.check()?;
        if restarts {
            world.crash_centre()?;
            world.start_centre()?;
            world.check()?;
        }
    }
    for site in 0..3 {
        world.connect(site)?;
    }
    world.run(60_000)?;
    world.check_healed()?;
    Ok(world)
}

fn opened(world: &mut World) -> Result<BTreeMap<(i64, u64), Fen>> {
    let cases = world.centre_tables()?.cases()?;
    Ok(cases
        .into_iter()
        .filter(|case| !case.opened.is_negative() && case.opened != Fen::ZERO)
        .map(|case| ((case.log, case.position), case.opened))
        .collect())
}

#[test]
fn the_order_of_arrival_decides_nothing() -> Result<()> {
    let mut first = overspent([0, 1, 2], false)?;
    let expected = opened(&mut first)?;
    let money = first.money("c1")?;
    ensure!(money.is_negative(), "there is something to resolve: {money}");
    ensure!(expected.values().copied().sum::<Fen>() >= -money, "{expected:?} cover {money}");
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for restarts in [false, true] {
            let mut other = overspent(order, restarts)?;
            ensure!(other.money("c1")? == money);
            let cases = opened(&mut other)?;
            ensure!(cases == expected, "{order:?}: {cases:?}, expected {expected:?}");
        }
    }
    Ok(())
}

#[test]
fn resolving_again_posts_nothing_and_a_credit_recovers() -> Result<()> {
    let mut world = overspent([2, 0, 1], true)?;
    let money = world.money("c1")?;
    let before = world.centre_tables()?.cases()?;
    let entries = world.picture()?.shards.iter().map(|shard| shard.len()).sum::<usize>();
    world.run(60_000)?;
    world.crash_centre()?;
    world.start_centre()?;
    for site in 0..3 {
        world.connect(site)?;
    }
    world.run(60_000)?;
    ensure!(world.centre_tables()?.cases()? == before);
    ensure!(
        world.picture()?.shards.iter().map(|shard| shard.len()).sum::<usize>() == entries,
        "nothing new was posted"
    );
    world.top_up("c1", 500 - money.get(), "k1")?;
    world.run(5_000)?;
    world.check_healed()?;
    let cases = world.centre_tables()?.cases()?;
    ensure!(cases.iter().all(|case| case.opened == case.recovered), "{cases:?}");
    ensure!(world.money("c1")? == Fen::new(500));
    let told = world.tap_and_wait(1, "c1", 500)?;
    ensure!(told.approved() == Some(Fen::new(500)), "{told:?}");
    Ok(())
}
