//! Restored, cloned and forked disks: found at first contact, and bounded until then.

use anyhow::{Result, ensure};
use feiqian_node::io::LinkState;
use feiqian_protocol::money::Fen;
use feiqian_sim::link::{Notice, World};
use feiqian_sim::vfs::Disk;

use super::shortcuts::{approved, connected, strict};

fn refusal(world: &mut World, site: usize) -> Result<Option<String>> {
    let status = world.node_status(site)?;
    Ok((status.link == LinkState::Refused || status.refused.is_some())
        .then(|| status.refused.unwrap_or_default()))
}

/// A disk is restored to before grants that the node had acknowledged, and whose spending it had not sent: not one of
/// them is granted again.
#[test]
fn a_restored_copy_gets_nothing_that_it_was_given_before() -> Result<()> {
    let mut world = World::new(strict(2, 2_000))?;
    let old = world.image(0);
    world.connect(0)?;
    world.connect(1)?;
    world.run(2_000)?;
    world.hold(0, "c1", 1_000)?;
    let held = world.right_at(0, "c1")?;
    world.cut(0, Notice::Both)?;
    let lost = world.tap(0, "c1", 600)?;
    ensure!(world.answer(&lost).is_some_and(|answer| answer.approved().is_some()));
    world.restore(0, &old)?;
    ensure!(world.right_at(0, "c1")? == Fen::ZERO);
    world.connect(0)?;
    world.run(2_000)?;
    ensure!(refusal(&mut world, 0)?.is_some(), "an older copy is refused");
    ensure!(world.right_at(0, "c1")? == Fen::ZERO);
    let told = world.tap_and_wait(0, "c1", 1)?;
    ensure!(told.approved().is_none(), "{told:?}");
    // Its epoch is closed, so the rest of the campus goes on; what the destroyed disk may have spent is the exposure.
    let mut spent = Fen::new(600);
    while let Some(amount) = world.tap_and_wait(1, "c1", 500)?.approved() {
        spent += amount;
    }
    ensure!(spent <= Fen::new(2_000) + held, "{spent} of 20.00, {held} was exposed");
    Ok(())
}

/// A copy of the log's beginning is refused, gets its tail back, and spends nothing.
#[test]
fn a_short_copy_is_refused_and_holds_no_right() -> Result<()> {
    let mut world = connected(strict(2, 2_000))?;
    world.hold(0, "c1", 1_500)?;
    let old = world.image(0);
    approved(&mut world, 0, "c1", 700)?;
    world.restore(0, &old)?;
    ensure!(world.right_at(0, "c1")?.is_positive(), "the copy holds what it held");
    world.connect(0)?;
    world.run(2_000)?;
    ensure!(refusal(&mut world, 0)?.is_some());
    ensure!(world.right_at(0, "c1")? == Fen::ZERO, "a refused node has no rights");
    let told = world.tap_and_wait(0, "c1", 100)?;
    ensure!(told.approved().is_none(), "{told:?}");
    // Again and again: nothing comes back by restoring.
    for _ in 0..2 {
        world.restore(0, &old)?;
        world.connect(0)?;
        world.run(2_000)?;
        ensure!(world.right_at(0, "c1")? == Fen::ZERO);
    }
    Ok(())
}

/// Two processes on equal disks: whichever talks first goes on, the other is found at its first Hello, even where both
/// have the same head.
#[test]
fn a_clone_is_refused_and_its_spending_is_bounded_by_what_it_held() -> Result<()> {
    let mut world = connected(strict(2, 2_000))?;
    world.hold(0, "c1", 1_000)?;
    let held = world.right_at(0, "c1")?;
    world.cut(0, Notice::Both)?;
    let image = world.image(0);
    let clone = world.clone_site(0, &image)?;
    // The original goes on.
    world.connect(0)?;
    world.run(1_000)?;
    approved(&mut world, 0, "c1", 500)?;
    // The clone spends what it held, cut off.
    let mut spent = Fen::ZERO;
    for _ in 0..4 {
        let told = world.tap_and_wait(clone, "c1", 400)?;
        spent += told.approved().unwrap_or_default();
    }
    ensure!(spent <= held, "the clone spent {spent} of {held}");
    ensure!(spent.is_positive());
    world.cut(0, Notice::Both)?;
    world.connect(clone)?;
    world.run(3_000)?;
    ensure!(refusal(&mut world, clone)?.is_some(), "a clone is refused");
    ensure!(world.right_at(clone, "c1")? == Fen::ZERO);
    // Its branch is posted, not lost: the merchant is paid.
    world.run(2_000)?;
    let wallets = world.centre_tables()?.wallets()?;
    let funds: Fen = wallets.values().map(|held| held.funds).sum();
    ensure!(world.node_status(clone)?.exposed_fen == 0, "everything is at the centre");
    ensure!(funds == Fen::new(2_000 - 500) - spent, "funds {funds}, the clone spent {spent}");
    Ok(())
}

/// A clone that has not written anything is found as well: a session moves what was acknowledged.
#[test]
fn a_clone_with_an_equal_head_is_refused() -> Result<()> {
    let mut world = connected(strict(2, 2_000))?;
    world.hold(0, "c1", 1_000)?;
    world.cut(0, Notice::Both)?;
    let image = world.image(0);
    let clone = world.clone_site(0, &image)?;
    world.connect(0)?;
    world.run(1_000)?;
    world.cut(0, Notice::Both)?;
    world.connect(clone)?;
    world.run(1_000)?;
    ensure!(refusal(&mut world, clone)?.is_some());
    Ok(())
}

/// A refused building is enrolled anew on an empty disk, and gets rights again.
#[test]
fn enrolment_anew_gives_rights_again() -> Result<()> {
    let mut world = connected(strict(2, 2_000))?;
    let old = world.image(0);
    approved(&mut world, 0, "c1", 300)?;
    world.restore(0, &old)?;
    world.connect(0)?;
    world.run(2_000)?;
    ensure!(refusal(&mut world, 0)?.is_some());
    world.cut(0, Notice::Both)?;
    world.crash(0)?;
    let identity = world.enrol(1)?;
    ensure!(identity.incarnation == 2);
    let again = world.add_site(1, identity, Disk::new())?;
    world.connect(again)?;
    world.run(3_000)?;
    ensure!(refusal(&mut world, again)?.is_none());
    let told = world.tap_and_wait(again, "c1", 200)?;
    ensure!(told.approved() == Some(Fen::new(200)), "{told:?}");
    Ok(())
}
