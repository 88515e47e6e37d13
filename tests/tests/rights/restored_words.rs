//! The centre comes back from an old copy: what buildings had set, and what a person had decided, is as it was.

use anyhow::{Context, Result, ensure};
use feiqian_node::settings::SettingKind;
use feiqian_protocol::campus::{Mode, Policy};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::Body;
use feiqian_protocol::ids::{CardNumber, Key};
use feiqian_protocol::money::Fen;
use feiqian_reconcile::io::{CaseDecision, Command, SettingCommand};
use feiqian_sim::link::{Notice, Setup, World};

use super::restored_centre::{books, come_back};
use super::shortcuts::{approved, connected, strict};

fn account(world: &mut World) -> Result<serde_json::Value> {
    world.command(Command::Account { card: CardNumber::new("c1")? })
}

/// The document was begun anew since, so that the change by itself would look like one that was never there.
#[test]
fn a_freeze_of_a_building_that_was_ended_stays_ended() -> Result<()> {
    let mut world = connected(Setup { role: Role::Desk, ..strict(2, 2_000) })?;
    let copy = world.centre_image();
    world.set(0, "c1", SettingKind::Freeze)?.context("the desk is up")??;
    world.run(1_000)?;
    ensure!(account(&mut world)?["frozen"] == true);
    let (card, operator) = (CardNumber::new("c1")?, Key::new("op")?);
    world.command(Command::ChangeSetting { card, change: SettingCommand::Unfreeze, operator })?;
    world.run(1_000)?;
    let picture = world.picture()?;
    let renewed = picture.shards.iter().flat_map(|shard| shard.iter());
    ensure!(renewed.filter(|entry| matches!(entry.body, Body::DocumentRenewed(_))).count() == 1);
    let expected = account(&mut world)?;
    world.restore_centre(&copy, true)?;
    come_back(&mut world)?;
    ensure!(account(&mut world)? == expected, "{}, expected {expected}", account(&mut world)?);
    world.check_healed()?;
    approved(&mut world, 1, "c1", 100)
}

/// A tap after a loss report, above the cap, is decided by a person; the copy is from before the tap, or from after it.
#[test]
fn what_a_person_has_decided_stays_so() -> Result<()> {
    for (refund, before_the_tap) in [(true, true), (true, false), (false, true), (false, false)] {
        let refund_cap_fen = Fen::new(500);
        let policy = Policy { mode: Mode::Strict, refund_cap_fen, ..Policy::default() };
        let mut world = connected(Setup { policy, ..strict(2, 2_000) })?;
        world.hold(1, "c1", 900)?;
        world.cut(1, Notice::Both)?;
        let (card, operator) = (CardNumber::new("c1")?, Key::new("op")?);
        world.command(Command::ReportLoss { card, operator: operator.clone() })?;
        world.run(1_000)?;
        approved(&mut world, 1, "c1", 900)?;
        let early = world.centre_image();
        world.connect(1)?;
        world.run(3_000)?;
        let late = world.centre_image();
        let case = world.centre_tables()?.cases()?.pop().context("no case")?;
        ensure!((case.opened, case.bearer) == (Fen::new(900), 0), "{case:?}");
        let case = format!("{}:{}", world.site(1).identity.name, case.position);
        let decision = if refund { CaseDecision::Refund } else { CaseDecision::Deny };
        world.command(Command::DecideCase { case: case.clone(), decision, operator: operator.clone() })?;
        world.run(3_000)?;
        let expected = books(&mut world)?;
        world.restore_centre(if before_the_tap { &early } else { &late }, true)?;
        come_back(&mut world)?;
        ensure!(books(&mut world)? == expected, "{:?}, expected {expected:?}", books(&mut world)?);
        world.check_healed()?;
        let again = world.command(Command::DecideCase { case, decision, operator });
        ensure!(again.is_err(), "it is decided again: {again:?}");
    }
    Ok(())
}
