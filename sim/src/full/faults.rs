//! Faults: begun, struck, ended. A fault counts once it has really struck.

use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{sleep, sleep_until};

use super::hosts::{At, start_after};
use super::operators;
use super::run::{Run, Shared};
use crate::plan::{Fault, FaultKind, Host, Plan};
use crate::promises::{Coverage, Promise};
use crate::vfs::{Disk, Image};
use crate::world::Trust;

/// How long a machine is down whose disk was put right by hand, in milliseconds.
const REPAIR_MS: u64 = 1_000;

/// What a fault has to put back at its end.
#[derive(Default)]
struct Begun {
    /// A copy of a disk that was taken when it began, and whose.
    image: Option<(At, Image)>,
    /// Of a copy of the centre's: what had been confirmed then, and as [`Run::irrevocable`].
    known: (usize, u64),
    /// Packets that were replayed and altered before, on the link that is tampered with.
    tampered: [u64; 2],
    /// The site whose disk lies.
    lies: Option<usize>,
}

/// Where a fault is, for people.
pub(super) fn place(plan: &Plan, kind: &FaultKind) -> String {
    let name = |index: &usize| plan.buildings[*index].name.to_string();
    match kind {
        FaultKind::Partition { buildings } | FaultKind::Link { buildings, .. } => {
            buildings.iter().map(name).collect::<Vec<_>>().join(" ")
        }
        FaultKind::PowerCut { host, .. }
        | FaultKind::Crash { host, .. }
        | FaultKind::Restart { host }
        | FaultKind::DiskFull { host, .. }
        | FaultKind::Clock { host, .. }
        | FaultKind::StaleBackup { host } => plan.host_name(*host).to_owned(),
        FaultKind::LyingDisk { building }
        | FaultKind::BitRot { building, .. }
        | FaultKind::Clone { building }
        | FaultKind::Retire { building, .. }
        | FaultKind::Destroyed { building }
        | FaultKind::Replayed { building }
        | FaultKind::Revoked { building }
        | FaultKind::Compromised { building }
        | FaultKind::Forged { building, .. } => name(building),
    }
}

/// One fault of the plan, from its beginning to its end, which comes no later than the repair of everything.
pub(super) async fn strike(run: Shared, index: usize) {
    let (plan, time, mut healed) = {
        let state = run.borrow();
        (state.plan.clone(), state.time, state.healed.subscribe())
    };
    let fault = &plan.faults[index];
    sleep_until(time.moment(fault.at_ms)).await;
    if run.borrow().is_healed() {
        return;
    }
    run.borrow_mut().say(|_| format!("fault: {:?} for {} ms", fault.kind, fault.for_ms));
    let begun = begin(&run, index, fault);
    tokio::select! {
        biased;
        // The sender lives as long as the run, which holds this task.
        _ = healed.wait_for(|healed| *healed) => {}
        () = sleep(Duration::from_millis(fault.for_ms)) => {}
    }
    run.borrow_mut().say(|_| format!("end of fault: {:?}", fault.kind));
    end(&run, index, fault, begun);
}

fn begin(run: &Shared, index: usize, fault: &Fault) -> Begun {
    let mut begun = Begun::default();
    let mut state = run.borrow_mut();
    let down_ms = fault.for_ms.max(1);
    match &fault.kind {
        FaultKind::Partition { buildings } => {
            for building in buildings {
                state.places[*building].cuts += 1;
                state.campus.network.block(*building, true);
            }
            state.struck(index);
        }
        FaultKind::Link { buildings, quality } => {
            for building in buildings {
                state.places[*building].qualities.push((index, *quality));
                state.campus.network.set_quality(*building, *quality);
            }
            state.struck(index);
        }
        FaultKind::PowerCut { host, after } => end_host(run, &mut state, index, *host, *after, true, down_ms),
        FaultKind::Crash { host, after } => end_host(run, &mut state, index, *host, *after, false, down_ms),
        FaultKind::Restart { host } => {
            let at = state.at(*host);
            if state.is_up(at) && state.fate(at).armed.is_none() {
                state.struck(index);
                spawn_local(restart(run.clone(), at, down_ms));
            }
        }
        FaultKind::DiskFull { host, room } => {
            let at = state.at(*host);
            let disk = state.disk(at);
            disk.set_capacity(Some(disk.image().bytes() + room));
            state.full.push((index, at));
            state.struck(index);
        }
        FaultKind::LyingDisk { building } => {
            let site = state.seen.in_service[*building];
            if state.seen.sites[site].trust == Trust::Sound && !state.seen.sites[site].gone {
                state.campus.sites[site].disk.ignore_syncs(true);
                begun.lies = Some(site);
            }
        }
        FaultKind::BitRot { building, bit } => {
            let site = state.seen.in_service[*building];
            if !state.seen.sites[site].gone && state.fates[site].armed.is_none() && may_lose_disk(&mut state)
            {
                state.note_copy(site);
                state.lose_unacknowledged(site);
                state.campus.sites[site].disk.kill();
                state.end(At::Site(site));
                if state.campus.sites[site].disk.flip_bit("node.db", *bit) {
                    state.seen.sites[site].trust = Trust::Broken;
                    state.seen.rotten = true;
                    state.struck(index);
                }
                start_after(run, At::Site(site), down_ms);
            }
        }
        FaultKind::Clock { host, wrong } => {
            let at = state.at(*host);
            state.clock(at).set(Some(*wrong));
            state.struck(index);
        }
        FaultKind::StaleBackup { host: Host::Node(building) } | FaultKind::Clone { building } => {
            let site = state.seen.in_service[*building];
            if !state.seen.sites[site].gone {
                state.note_copy(site);
                begun.image = Some((At::Site(site), state.campus.sites[site].disk.image()));
            }
        }
        FaultKind::StaleBackup { host: Host::Centre } => {
            if !state.is_returning() {
                begun.image = Some((At::Centre, state.campus.centre.disk.image()));
                begun.known = (state.confirmed.len(), state.irrevocable);
            }
        }
        FaultKind::Retire { building, force } => {
            spawn_local(operators::retire(run.clone(), *building, *force));
            state.struck(index);
        }
        FaultKind::Revoked { building } => {
            spawn_local(operators::revoke(run.clone(), index, *building));
        }
        FaultKind::Destroyed { building } => {
            let site = state.seen.in_service[*building];
            if !state.seen.sites[site].gone && may_lose_disk(&mut state) {
                state.note_copy(site);
                state.lose_unacknowledged(site);
                state.campus.sites[site].disk.kill();
                state.end(At::Site(site));
                state.seen.sites[site].gone = true;
                state.seen.sites[site].trust = Trust::Broken;
                state.struck(index);
            }
        }
        // What such a box writes is nothing that a shell looks at; message mode plays it.
        FaultKind::Compromised { .. } => {}
        FaultKind::Replayed { building } => {
            begun.tampered = state.campus.network.tampered(*building);
            state.places[*building].replaying += 1;
            state.tamper(*building);
        }
        FaultKind::Forged { building, .. } => {
            begun.tampered = state.campus.network.tampered(*building);
            state.places[*building].forging += 1;
            state.tamper(*building);
        }
    }
    begun
}

/// A host ends at its n-th change of the disk from here on, or at once.
fn end_host(run: &Shared, state: &mut Run, index: usize, host: Host, after: u64, power: bool, down_ms: u64) {
    let seed = state.chance.draw();
    let at = state.at(host);
    if !state.is_up(at) || state.fate(at).armed.is_some() {
        return;
    }
    let disk = state.disk(at);
    if after > 0 {
        if power {
            disk.power_cut_after(after, seed)
        } else {
            disk.kill_after(after)
        }
        state.fate(at).armed = Some((index, down_ms));
        return;
    }
    if power {
        disk.power_cut(seed)
    } else {
        disk.kill()
    }
    state.struck(index);
    state.end(at);
    start_after(run, at, down_ms);
}

/// A process is stopped in order, and started again.
async fn restart(run: Shared, at: At, down_ms: u64) {
    let name = run.borrow().name(at);
    run.borrow_mut().say(|_| format!("{name}: is told to stop"));
    run.borrow_mut().fate(at).stopping = true;
    match at {
        At::Centre => {
            let process = run.borrow_mut().campus.centre.process.take();
            if let Some((_, process)) = process {
                process.stop().await;
            }
        }
        At::Site(site) => {
            let process = run.borrow_mut().campus.sites[site].process.take();
            if let Some((_, process)) = process {
                process.stop().await;
            }
        }
    }
    run.borrow_mut().fate(at).stopping = false;
    run.borrow_mut().say(|_| format!("{name}: has stopped"));
    start_after(&run, at, down_ms);
}

fn end(run: &Shared, index: usize, fault: &Fault, begun: Begun) {
    let mut state = run.borrow_mut();
    match &fault.kind {
        FaultKind::Partition { buildings } => {
            for building in buildings {
                state.places[*building].cuts -= 1;
                let blocked = state.places[*building].cuts > 0;
                state.campus.network.block(*building, blocked);
            }
        }
        FaultKind::Link { buildings, .. } => {
            for building in buildings {
                let usual = state.plan.buildings[*building].link;
                let qualities = &mut state.places[*building].qualities;
                qualities.retain(|(fault, _)| *fault != index);
                let quality = qualities.last().map_or(usual, |(_, quality)| *quality);
                state.campus.network.set_quality(*building, quality);
            }
        }
        FaultKind::PowerCut { .. } | FaultKind::Crash { .. } => state.disarm(index),
        FaultKind::Restart { .. } | FaultKind::BitRot { .. } | FaultKind::Compromised { .. } => {}
        FaultKind::DiskFull { .. } => {
            let here: Vec<At> =
                state.full.iter().filter(|(fault, _)| *fault == index).map(|(_, at)| *at).collect();
            state.full.retain(|(fault, _)| *fault != index);
            for at in here {
                state.disk(at).set_capacity(None);
            }
        }
        FaultKind::LyingDisk { .. } => {
            if let Some(site) = begun.lies {
                end_lie(run, &mut state, index, site);
            }
        }
        FaultKind::Clock { host, .. } => match host {
            Host::Centre => state.campus.centre.clock.set(None),
            Host::Node(building) => {
                let here = state.campus.sites.iter().filter(|site| site.building == *building);
                here.for_each(|site| site.clock.set(None));
            }
        },
        FaultKind::StaleBackup { .. } => match begun.image {
            Some((At::Centre, image)) => restore_centre(run, &mut state, index, begun.known, &image),
            Some((At::Site(site), image)) => restore_site(run, &mut state, index, site, &image),
            None => {}
        },
        FaultKind::Clone { building } => {
            if let Some((At::Site(site), image)) = begun.image {
                run_clone(&mut state, index, *building, site, &image);
            }
        }
        FaultKind::Retire { building, .. }
        | FaultKind::Destroyed { building }
        | FaultKind::Revoked { building } => {
            if state.has_struck(index) {
                spawn_local(operators::enrol_anew(run.clone(), *building));
            }
        }
        FaultKind::Replayed { building } => {
            state.places[*building].replaying -= 1;
            state.tamper(*building);
            if state.campus.network.tampered(*building)[0] > begun.tampered[0] {
                state.struck_from(index, fault.at_ms);
            }
        }
        FaultKind::Forged { building, .. } => {
            state.places[*building].forging -= 1;
            state.tamper(*building);
            if state.campus.network.tampered(*building)[1] > begun.tampered[1] {
                state.struck_from(index, fault.at_ms);
                // Its receiver cannot have taken it for anything: it was altered under its seal.
                state.reached(Coverage::ForgedRefused);
            }
        }
    }
}

/// The power goes at a disk that has lied; what it holds afterwards may be anything that it ever said it had.
fn end_lie(run: &Shared, state: &mut Run, index: usize, site: usize) {
    state.campus.sites[site].disk.ignore_syncs(false);
    if state.seen.sites[site].gone || state.fates[site].armed.is_some() || !may_lose_disk(state) {
        return;
    }
    state.note_copy(site);
    state.lose_unacknowledged(site);
    let seed = state.chance.draw();
    state.campus.sites[site].disk.power_cut(seed);
    state.seen.sites[site].trust.copied();
    state.end(At::Site(site));
    state.struck(index);
    start_after(run, At::Site(site), REPAIR_MS);
}

/// Whether a building's disk may be lost now, which is then remembered. A centre that is taking back what it lacks needs all of
/// them: two disasters at once are more than is promised.
fn may_lose_disk(state: &mut Run) -> bool {
    if state.is_returning() {
        return false;
    }
    state.irrevocable += 1;
    true
}

/// The copy of a building's disk is put in its place.
fn restore_site(run: &Shared, state: &mut Run, index: usize, site: usize, image: &Image) {
    if state.seen.sites[site].gone || state.fates[site].armed.is_some() || !may_lose_disk(state) {
        return;
    }
    state.lose_unacknowledged(site);
    state.seen.sites[site].trust.copied();
    put_back(run, state, index, At::Site(site), image);
}

/// The copy of the centre's disk is put in its place, by an operator who says so. Nobody restores one from before something
/// that no building could give back.
fn restore_centre(run: &Shared, state: &mut Run, index: usize, known: (usize, u64), image: &Image) {
    let (confirmed, irrevocable) = known;
    if irrevocable != state.irrevocable || state.centre_fate.armed.is_some() || state.is_healed() {
        return;
    }
    state.campus.centre.restored = true;
    state.reached(Coverage::CentreRestored);
    put_back(run, state, index, At::Centre, image);
    operators::say_again_since(run, state, confirmed);
}

fn put_back(run: &Shared, state: &mut Run, index: usize, at: At, image: &Image) {
    state.disk(at).restore(image);
    state.end(at);
    state.struck(index);
    start_after(run, at, REPAIR_MS);
}

/// A second process runs on the copy, with half of the building's terminals.
fn run_clone(state: &mut Run, index: usize, building: usize, site: usize, image: &Image) {
    if state.is_healed() || state.seen.sites[site].gone || state.seen.in_service[building] != site {
        return;
    }
    if !may_lose_disk(state) {
        return;
    }
    let files = state.campus.sites[site].files.clone();
    let clone = state.add_site(building, files, Disk::from_image(image));
    state.seen.sites[site].trust.copied();
    state.seen.sites[clone].trust = state.seen.sites[site].trust;
    // Terminals that change boxes ask no more about what they asked the other one.
    state.lose_unacknowledged(site);
    state.places[building].clone = Some(clone);
    state.struck(index);
    state.start(At::Site(clone));
}

/// A process found a database that it cannot open.
pub(super) fn not_opened(state: &mut Run, at: At) {
    let name = state.name(at);
    if state.trust(at) != Trust::Sound {
        // What it holds makes no sense any more: the operator puts another box in its place.
        if let At::Site(site) = at {
            state.seen.sites[site].trust = Trust::Broken;
        }
    } else if !state.is_disk_full(at) {
        state.violated(Promise::Sound, format!("{name} cannot be opened"));
    }
}

/// A step failed, which on a sound disk with room it must not.
pub(super) fn step_failed(state: &mut Run, at: At) {
    let name = state.name(at);
    if state.trust(at) == Trust::Sound && !state.is_disk_full(at) {
        state.violated(Promise::Sound, format!("a step of {name} failed"));
    }
}

/// Everything is repaired; what was found to be a copy is replaced, then and a few times later.
pub(super) fn heal(run: &Shared) {
    let mut state = run.borrow_mut();
    state.say(|_| "everything is repaired".to_owned());
    // Faults under way end by this.
    state.healed.send_replace(true);
    drop(state);
    let run = run.clone();
    spawn_local(async move {
        // Once the faults under way have ended.
        sleep(Duration::from_millis(1)).await;
        let heal_ms = {
            let mut state = run.borrow_mut();
            state.campus.centre.clock.set(None);
            state.campus.centre.disk.set_capacity(None);
            for site in &state.campus.sites {
                site.clock.set(None);
                site.disk.set_capacity(None);
            }
            for place in &mut state.places {
                place.clone = None;
            }
            state.start(At::Centre);
            for site in 0..state.campus.sites.len() {
                state.start(At::Site(site));
            }
            state.plan.timing.heal_ms
        };
        for _ in 0..3 {
            sleep(Duration::from_millis(heal_ms / 5)).await;
            let buildings = run.borrow().places.len();
            for building in 0..buildings {
                let replace = {
                    let mut state = run.borrow_mut();
                    let site = state.seen.in_service[building];
                    let seen = &state.seen.sites[site];
                    seen.gone || seen.trust == Trust::Broken || state.is_shut_out(site)
                };
                if replace {
                    operators::enrol_anew(run.clone(), building).await;
                }
            }
        }
    });
}
