//! An approved tap survives a power cut: ten thousand taps, fifty cuts at random moments, many of them inside a commit.

use anyhow::{Result, ensure};
use feiqian_protocol::campus::{Mode, Policy};
use feiqian_protocol::money::Fen;
use feiqian_sim::link::{Request, Setup, World};
use feiqian_sim::seed::Seed;

/// What came of it.
struct Outcome {
    taps: usize,
    approved: usize,
    lost: Option<String>,
    cuts: u64,
    syncs: u64,
}

fn ten_thousand_taps(lowered_sync: bool, seed: u64) -> Result<Outcome> {
    let mut seed = Seed::new(seed);
    let accounts = (0..20).map(|account| (format!("c{account}"), Fen::new(10_000_000))).collect();
    let policy = Policy { mode: Mode::Optimistic, ..Policy::default() };
    let limits = (Fen::new(10_000_000), Fen::new(10_000_000));
    let mut world =
        World::new(Setup { nodes: 1, accounts, policy, limits, lowered_sync, ..Setup::default() })?;
    world.connect(0)?;
    world.run(5_000)?;
    let mut taps: Vec<Request> = Vec::new();
    let mut unanswered: Vec<Request> = Vec::new();
    let mut lost = None;
    let mut cuts = 0;
    while taps.len() < 10_000 {
        let together: Vec<Request> = (0..1 + seed.below(8))
            .map(|_| world.hold_back(0, &format!("c{}", seed.below(20)), 1 + seed.below(1_500) as i64))
            .collect::<Result<_>>()?;
        world.submit_together(0, &together)?;
        taps.extend(together.iter().cloned());
        unanswered.extend(together);
        world.run(20)?;
        if !world.is_up(0) {
            world.start(0)?;
            if let Err(error) = world.check() {
                lost.get_or_insert(format!("{error}"));
                return Ok(outcome(&world, &taps, lost, cuts));
            }
            if seed.chance(3, 4) {
                world.connect(0)?;
            }
            // Terminals that got no answer ask again.
            for tap in std::mem::take(&mut unanswered) {
                if world.answer(&tap).is_none() {
                    world.submit(&tap)?;
                    unanswered.push(tap);
                }
            }
            world.run(500)?;
        }
        if cuts < 50 && taps.len() as u64 >= (cuts + 1) * 195 {
            cuts += 1;
            world.site(0).disk.power_cut_after(seed.below(60), seed.draw());
        }
        unanswered.retain(|tap| world.answer(tap).is_none());
    }
    world.site(0).disk.disarm();
    world.power_cut(0, seed.draw())?;
    world.start(0)?;
    world.connect(0)?;
    world.run(10_000)?;
    if let Err(error) = world.check() {
        lost.get_or_insert(format!("{error}"));
    } else {
        world.check_healed()?;
    }
    Ok(outcome(&world, &taps, lost, cuts))
}

fn outcome(world: &World, taps: &[Request], lost: Option<String>, cuts: u64) -> Outcome {
    let approved = taps.iter().filter_map(|tap| world.answer(tap)?.approved()).count();
    Outcome { taps: taps.len(), approved, lost, cuts, syncs: world.site(0).disk.counters().syncs }
}

#[test]
fn no_approved_tap_is_lost_or_doubled_by_power_cuts() -> Result<()> {
    let outcome = ten_thousand_taps(false, 1)?;
    ensure!(outcome.lost.is_none(), "{:?}", outcome.lost);
    ensure!(outcome.cuts == 50 && outcome.taps >= 10_000, "{} cuts, {} taps", outcome.cuts, outcome.taps);
    ensure!(outcome.approved > 9_500, "only {} were approved", outcome.approved);
    ensure!(outcome.syncs > 1_000);
    Ok(())
}

/// The same, were commits not synced one by one: the disk and the checks would notice.
#[test]
fn without_a_sync_per_commit_approved_taps_are_lost() -> Result<()> {
    let outcome = ten_thousand_taps(true, 1)?;
    ensure!(outcome.lost.is_some(), "{} taps, {} cuts and nothing lost", outcome.taps, outcome.cuts);
    Ok(())
}
