//! Operators and channels at the centre: top-ups, loss reports, closing and enrolling. What is not confirmed is said again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use feiqian_node::drive::{Answer, Request};
use feiqian_node::settings::{SettingKind, SettingRequest};
use feiqian_protocol::entry::Proof;
use feiqian_protocol::ids::Key;
use feiqian_reconcile::io::{Command, CommandError};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::hosts::At;
use super::run::{Run, Shared};
use super::terminals;
use crate::plan::What;
use crate::promises::Coverage;
use crate::promises::ledger::{BuildingLoss, Loss};
use crate::vfs::Disk;
use crate::world::Trust;

/// How long a channel or an operator waits for a confirmation before it says it again.
const AGAIN: Duration = Duration::from_millis(3_000);

/// What the plan has an operator or channel do.
pub(super) fn operate(run: &Shared, what: What) {
    if let What::Loss { account, building: Some(building) } = what {
        return report(run, account, building);
    }
    let loss = match &what {
        What::Loss { account, .. } => {
            let mut state = run.borrow_mut();
            let card = state.plan.accounts[*account].card.clone();
            state.seen.ledger.losses.push(Loss { card, asked: BTreeMap::new(), confirmed: None });
            Some(state.seen.ledger.losses.len() - 1)
        }
        _ => None,
    };
    say(run, what, loss, Duration::ZERO);
}

/// Somebody reports a loss at a kiosk, until it is taken.
fn report(run: &Shared, account: usize, building: usize) {
    let run = run.clone();
    spawn_local(async move {
        loop {
            let (site, request) = {
                let state = run.borrow();
                let request = SettingRequest {
                    terminal: None,
                    card: state.plan.accounts[account].card.clone(),
                    kind: SettingKind::ReportLoss,
                    by: Key::new("operator").expect("letters are a key"),
                    proof: Proof::Login,
                };
                (state.route(building, 0), request)
            };
            let card = request.card.clone();
            let answer = terminals::ask(&run, site, Request::Setting(request)).await;
            let taken = matches!(&answer, Some(Answer::Setting(Ok(_))));
            {
                let mut state = run.borrow_mut();
                state.say(|state| format!("{}: the report: {answer:?}", state.site_name(site)));
                if taken {
                    let told_ns = state.time.now_ns();
                    state.reached(Coverage::LossInBuilding);
                    state.seen.ledger.building_losses.push(BuildingLoss { site, account, card, told_ns });
                }
            }
            if taken {
                return;
            }
            sleep(AGAIN).await;
        }
    });
}

/// What a restored centre has confirmed since its copy was made it may know no more: it is said again, in the same order.
pub(super) fn say_again_since(run: &Shared, state: &mut Run, known: usize) {
    for (place, (what, loss)) in state.confirmed.split_off(known).into_iter().enumerate() {
        let Run { seen, plan, .. } = state;
        seen.ledger.forgotten(plan, &what, loss);
        let (run, after) = (run.clone(), AGAIN + Duration::from_millis(place as u64));
        spawn_local(async move { say(&run, what, loss, after) });
    }
}

/// Says it after so long, and again until it is confirmed.
fn say(run: &Shared, what: What, loss: Option<usize>, after: Duration) {
    let run = run.clone();
    spawn_local(async move {
        sleep(after).await;
        loop {
            let command = {
                let mut state = run.borrow_mut();
                let now_ns = state.time.now_ns();
                let Run { seen, plan, .. } = &mut *state;
                seen.ledger.said(plan, &what, now_ns)
            };
            let Some(command) = command else { return };
            if let Some(reply) = ask(&run, command, loss).await {
                let mut state = run.borrow_mut();
                state.say(|_| format!("the centre answers {reply:?}"));
                let now_ns = state.time.now_ns();
                let positions = matches!(what, What::Loss { .. }).then(|| state.ingested());
                let Run { seen, plan, .. } = &mut *state;
                if let Some(loss) = loss.and_then(|loss| seen.ledger.losses.get_mut(loss))
                    && reply.is_ok()
                {
                    loss.confirmed = positions;
                }
                if let Some(path) = seen.ledger.answered(plan, &what, &reply, now_ns) {
                    state.reached(path);
                }
                state.confirmed.push((what, loss));
                return;
            }
            sleep(AGAIN).await;
        }
    });
}

/// Asks the centre; `None` where it is down, or died over it.
async fn ask(
    run: &Shared,
    command: Command,
    loss: Option<usize>,
) -> Option<Result<serde_json::Value, CommandError>> {
    let core = {
        let mut state = run.borrow_mut();
        state.say(|_| format!("the centre is asked: {command:?}"));
        let core = state.core()?;
        if let Some(loss) = loss
            && state.seen.ledger.losses[loss].asked.is_empty()
        {
            state.seen.ledger.losses[loss].asked = state.ingested();
        }
        core
    };
    // An operator gives up on a centre that says nothing.
    let reply = tokio::time::timeout(AGAIN, core.command(command)).await.ok()?;
    match reply {
        Err(error) if ["interrupted", "stopping", "recovering"].contains(&error.code) => None,
        reply => Some(reply),
    }
}

/// Closes the rights of a building's node.
pub(super) async fn retire(run: Shared, building: usize, force: bool) {
    let node = run.borrow().plan.buildings[building].name.clone();
    loop {
        // Meanwhile it would give up a building that is yet to come.
        if run.borrow_mut().is_returning() {
            sleep(AGAIN).await;
            continue;
        }
        run.borrow_mut().irrevocable += 1;
        match ask(&run, Command::Retire { node: node.clone(), force }, None).await {
            Some(Ok(_)) => {
                let path = if force { Coverage::ClosedByForce } else { Coverage::ClosedInOrder };
                return run.borrow_mut().reached(path);
            }
            // It is closed already.
            Some(Err(_)) => return,
            None => sleep(AGAIN).await,
        }
    }
}

/// Revokes the certificate of a building's node.
pub(super) async fn revoke(run: Shared, fault: usize, building: usize) {
    let (site, node) = {
        let state = run.borrow();
        (state.seen.in_service[building], state.plan.buildings[building].name.clone())
    };
    run.borrow_mut().irrevocable += 1;
    // A centre that is down is not told; whoever wanted it comes again another day.
    if let Some(Ok(_)) = ask(&run, Command::Revoke { node, enrolment: None }, None).await {
        let mut state = run.borrow_mut();
        state.struck(fault);
        state.reached(Coverage::Revoked);
        state.distrust(site);
        state.seen.sites[site].trust.copied();
    }
}

/// Puts another box into a building: enrolled anew, on an empty disk. The old one may still upload, where it runs.
pub(super) async fn enrol_anew(run: Shared, building: usize) {
    let (name, role) = {
        let state = run.borrow();
        (state.plan.buildings[building].name.clone(), state.plan.buildings[building].role)
    };
    let files = loop {
        // A centre that waits for a box which will never come is told so.
        let awaited = {
            let mut state = run.borrow_mut();
            let seen = &state.seen.sites[state.seen.in_service[building]];
            let lost = seen.gone || seen.trust == Trust::Broken;
            lost && state.is_returning()
        };
        if awaited {
            ask(&run, Command::Retire { node: name.clone(), force: true }, None).await;
        }
        run.borrow_mut().irrevocable += 1;
        let enrolment = run.borrow_mut().campus.enrolment(&name, role);
        // The centre may be down, or die over it, or its clock may jump between making the code and using it.
        if let Ok(enrolment) = enrolment {
            match tokio::time::timeout(AGAIN, enrolment.run()).await {
                Ok(Ok(files)) => break files,
                Ok(Err(error)) => run.borrow_mut().say(|_| format!("enrolling {name} fails: {error:#}")),
                Err(_) => {}
            }
        }
        sleep(AGAIN).await;
    };
    let mut state = run.borrow_mut();
    let old = state.seen.in_service[building];
    let site = state.add_site(building, Arc::new(files), Disk::new());
    state.say(|state| format!("{} is enrolled anew", state.site_name(site)));
    state.reached(Coverage::EnrolledAnew);
    state.seen.in_service[building] = site;
    state.places[building].clone = None;
    state.give_up_requests(old);
    state.start(At::Site(site));
}
