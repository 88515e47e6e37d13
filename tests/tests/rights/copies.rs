//! Restored, cloned and forked disks: found at first contact, and bounded until then.

use anyhow::{Result, ensure};
use feiqian_node::io::LinkState;
use feiqian_protocol::money::Fen;
use feiqian_sim::link::{Direction, Notice, World};
use feiqian_sim::vfs::Disk;

use super::shortcuts::{approved, connected, retire, strict};

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

/// Two copies that take turns with the centre, in either order, online and cut off: the first Hello of the second one ends
/// it, and all that both spent stays within the money and what the copy held when it was made.
#[test]
fn copies_that_take_turns_spend_no_more_than_was_held() -> Result<()> {
    for first in [0, 1] {
        for offline_taps in [0, 2] {
            let mut world = connected(strict(2, 2_000))?;
            world.hold(0, "c1", 1_000)?;
            let held = world.right_at(0, "c1")?;
            world.cut(0, Notice::Both)?;
            let image = world.image(0);
            let clone = world.clone_site(0, &image)?;
            let copies = [0, clone];
            let mut spent = Fen::ZERO;
            for turn in 0..6 {
                let site = copies[(first + turn) % 2];
                for _ in 0..offline_taps {
                    spent += world.tap_and_wait(site, "c1", 150)?.approved().unwrap_or_default();
                }
                world.connect(site)?;
                world.run(2_000)?;
                spent += world.tap_and_wait(site, "c1", 150)?.approved().unwrap_or_default();
                world.run(1_000)?;
                world.cut(site, Notice::Both)?;
            }
            for site in copies {
                ensure!(world.right_at(site, "c1")? == Fen::ZERO, "both are shut out in the end");
            }
            while let Some(amount) = world.tap_and_wait(1, "c1", 50)?.approved() {
                spent += amount;
            }
            ensure!(spent <= Fen::new(2_000) + held, "{spent} of 20.00, {held} was held");
            // Nothing of it is lost: what either of them sold is posted.
            for site in copies {
                world.connect(site)?;
                world.run(3_000)?;
                ensure!(world.node_status(site)?.exposed_fen == 0);
                world.cut(site, Notice::Both)?;
            }
            let funds: Fen = world.centre_tables()?.wallets()?.values().map(|held| held.funds).sum();
            ensure!(funds == Fen::new(2_000) - spent, "{funds} are left of 20.00, {spent} were spent");
        }
    }
    Ok(())
}

/// An expired certificate: what was sold is taken, nothing is given, and no right is lost by it.
#[test]
fn an_expired_certificate_costs_no_right_and_gets_none() -> Result<()> {
    let mut world = connected(strict(2, 2_000))?;
    world.hold(0, "c1", 1_000)?;
    world.hold(1, "c1", 600)?;
    world.run(2_000)?;
    let held = world.right_at(0, "c1")?;
    ensure!((Fen::new(400)..=Fen::new(1_400)).contains(&held), "{held}");
    world.cut(0, Notice::Both)?;
    let told = world.tap_and_wait(0, "c1", 300)?;
    ensure!(told.approved() == Some(Fen::new(300)), "{told:?}");
    world.site_mut(0).expired = true;
    world.connect(0)?;
    world.run(3_000)?;
    let status = world.node_status(0)?;
    ensure!(status.link == LinkState::Refused && status.refused.as_deref() == Some("expired"), "{status:?}");
    ensure!(status.acked == status.position && status.exposed_fen == 0, "{status:?}");
    ensure!(world.right_at(0, "c1")? == held - Fen::new(300), "its right is its own");
    // All the rest is at the centre or elsewhere, and it does not get it.
    let right = world.right_at(0, "c1")?;
    let told = world.tap_and_wait(0, "c1", right.get() + 1)?;
    ensure!(told.approved().is_none(), "{told:?}");
    let told = world.tap_and_wait(0, "c1", right.get())?;
    ensure!(told.approved() == Some(right), "{told:?}");
    // Its certificate is renewed: as if nothing had been.
    world.cut(0, Notice::Both)?;
    world.site_mut(0).expired = false;
    world.connect(0)?;
    world.run(3_000)?;
    ensure!(world.node_status(0)?.link == LinkState::Up);
    let rest = Fen::new(2_000 - 300) - right;
    let told = world.tap_and_wait(0, "c1", rest.get())?;
    ensure!(told.approved() == Some(rest), "{told:?}");
    world.run(3_000)?;
    world.check_healed()
}

/// A building is asked to close, cannot hear it, and is closed by force; its word comes after all. Whichever the centre has
/// written first has moved the epoch, and the other one moves nothing.
#[test]
fn an_orderly_and_a_forced_closing_may_cross() -> Result<()> {
    for told_first in [false, true] {
        let mut world = connected(strict(2, 2_000))?;
        world.hold(0, "c1", 1_000)?;
        retire(&mut world, 0, false)?;
        if told_first {
            // The request arrives, the answer does not.
            world.deliver_where(|frame| frame.direction == Direction::Down)?;
        }
        world.cut(0, Notice::Both)?;
        retire(&mut world, 0, true)?;
        retire(&mut world, 0, true)?;
        world.check()?;
        let mut spent = Fen::ZERO;
        while let Some(amount) = world.tap_and_wait(1, "c1", 500)?.approved() {
            spent += amount;
        }
        ensure!(spent == Fen::new(2_000), "all of it is free again: {spent}");
        world.connect(0)?;
        world.run(3_000)?;
        ensure!(world.right_at(0, "c1")? == Fen::ZERO);
        world.run(3_000)?;
        world.check_healed()?;
        ensure!(world.money("c1")? == Fen::ZERO);
        ensure!(world.centre_tables()?.cases()?.is_empty());
    }
    Ok(())
}
