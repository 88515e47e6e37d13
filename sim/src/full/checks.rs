//! The promises, held against what the machines keep and what people were told: the books by the message engine's checks
//! ([`crate::world::observed`]), here what only the running processes can say.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CardNumber, LogId};
use feiqian_protocol::money::Fen;
use feiqian_reconcile::io::{Command, Status};
use tokio::time::sleep;

use super::hosts::At;
use super::run::{Run, Shared};
use super::terminals;
use crate::plan::LinkQuality;
use crate::promises::Promise;
use crate::promises::books::Finding;
use crate::promises::probes::{self, PROBED_ACCOUNTS};

/// How often and how long it is waited for everything to settle at the end.
const SETTLE_MAX: u32 = 8;
const SETTLE: Duration = Duration::from_millis(400);

impl Run {
    /// What holds at every moment.
    pub(super) fn check_now(&mut self) {
        // A centre that came back from an old copy is checked once it has taken back what it lacks.
        if !self.is_up(At::Centre) || self.is_returning() {
            return;
        }
        let plan = self.plan.clone();
        let found = self.seen.check_now(&plan);
        self.found(found);
    }

    fn found(&mut self, found: Result<Vec<(Promise, String)>>) {
        match found {
            Ok(broken) => broken.into_iter().for_each(|(promise, text)| self.violated(promise, text)),
            Err(error) => self.violated(Promise::Sound, format!("the books cannot be read: {error:#}")),
        }
    }

    pub(super) fn note_copy(&mut self, site: usize) {
        let plan = self.plan.clone();
        let noted = self.seen.note_copy(&plan, site);
        self.found(noted.map(|()| Vec::new()));
    }

    pub(super) fn lose_unacknowledged(&mut self, site: usize) {
        let plan = self.plan.clone();
        let noted = self.seen.lose_unacknowledged(&plan, site);
        self.found(noted.map(|()| Vec::new()));
    }

    pub(super) fn distrust(&mut self, site: usize) {
        let plan = self.plan.clone();
        let noted = self.seen.distrust(&plan, site);
        self.found(noted.map(|()| Vec::new()));
    }

    pub(super) fn ingested(&mut self) -> std::collections::BTreeMap<LogId, u64> {
        let plan = self.plan.clone();
        self.seen.ingested(&plan).unwrap_or_else(|error| {
            self.found(Err(error));
            Default::default()
        })
    }

    /// True while the centre is an older copy of itself that takes back what it lacks.
    pub(super) fn is_returning(&mut self) -> bool {
        let plan = self.plan.clone();
        let seen = self.seen.is_returning(&plan).unwrap_or_else(|error| {
            self.found(Err(error));
            false
        });
        seen || self.campus.centre.restored
    }

    pub(super) fn is_shut_out(&mut self, site: usize) -> bool {
        let plan = self.plan.clone();
        self.seen.is_shut_out(&plan, site).unwrap_or_else(|error| {
            self.found(Err(error));
            false
        })
    }
}

/// What holds once everything is repaired and quiet.
///
/// # Errors
/// Where the centre does not answer as it should, or the books cannot be read.
pub(super) async fn check_at_end(run: &Shared) -> Result<()> {
    check_liveness(run).await?;
    {
        let mut state = run.borrow_mut();
        let plan = state.plan.clone();
        let now_ms = state.now_ms();
        state.seen.set_time(now_ms);
        let at_end = state.seen.check_at_end(&plan)?;
        state.found(Ok(at_end.broken));
        state.outcome.entries = at_end.entries;
        state.outcome.ledger = at_end.ledger;
        for (coverage, count) in at_end.coverage {
            state.reached_often(coverage, count);
        }
    }
    probe(run).await
}

async fn check_liveness(run: &Shared) -> Result<()> {
    let mut problems = Vec::new();
    // What the last mark or acknowledgement has set off is waited for.
    for _ in 0..SETTLE_MAX {
        sleep(SETTLE).await;
        problems = unsettled(run).await?;
        if problems.is_empty() {
            return Ok(());
        }
    }
    run.borrow_mut().violated(Promise::Liveness, problems.join("; "));
    Ok(())
}

/// What is still under way.
async fn unsettled(run: &Shared) -> Result<Vec<String>> {
    let core = run.borrow().core();
    let Some(core) = core else { return Ok(vec!["the centre does not run".to_owned()]) };
    let reply = core.command(Command::Status {}).await.map_err(|error| anyhow!("{}: {error}", error.code))?;
    let status: Status = serde_json::from_value(reply)?;
    let mut problems = Vec::new();
    if let Some(recovery) = status.recovery {
        problems.push(format!("the centre is still taking back what it lacks: {recovery:?}"));
    }
    if status.asks > 0 {
        problems.push(format!("{} asks wait at the centre", status.asks));
    }
    let mut state = run.borrow_mut();
    let plan = state.plan.clone();
    for (building, place) in plan.buildings.iter().enumerate() {
        let site = state.seen.in_service[building];
        let name = state.site_name(site);
        let process = state.campus.sites[site].process.as_ref();
        if !process.is_some_and(|(_, process)| process.is_open()) {
            problems.push(format!("{name} does not run"));
            continue;
        }
        // The newest node of the name is the one in service.
        match status.nodes.iter().rev().find(|node| node.node == place.name.as_str()) {
            Some(node) if !node.connected => problems.push(format!("{name} is not in session")),
            Some(node) if node.backlog > 0 => {
                problems.push(format!("{} things are under way to {name}", node.backlog));
            }
            Some(_) => {}
            None => problems.push(format!("the centre does not know {name}")),
        }
    }
    for (site, held, ingested) in state.seen.not_ingested(&plan)? {
        let name = state.site_name(site);
        problems.push(format!("{ingested} of {held} entries of {name} have come to the centre"));
    }
    Ok(problems)
}

/// Whoever has money can spend it, anywhere, to the last fen; and no fen more.
async fn probe(run: &Shared) -> Result<()> {
    let plan = run.borrow().plan.clone();
    let paying: Vec<usize> =
        (0..plan.buildings.len()).filter(|index| plan.buildings[*index].role != Role::Door).collect();
    if paying.is_empty() {
        return Ok(());
    }
    // A building at the end of a slow line does not get an answer from the centre in time, which is not promised.
    for building in 0..plan.buildings.len() {
        run.borrow().campus.network.set_quality(building, LinkQuality::LAN);
    }
    let probes: Vec<(CardNumber, Fen)> = {
        let mut state = run.borrow_mut();
        let mut money = state.seen.money(&plan)?;
        money.retain(|(_, money)| money.is_positive());
        state.chance.shuffle(&mut money);
        money.into_iter().take(PROBED_ACCOUNTS).collect()
    };
    for probe in probes::of(probes) {
        let building = paying[run.borrow_mut().chance.index(paying.len())];
        terminals::tap(run, &probe.tap(building));
        sleep(Duration::from_millis(plan.timing.ask_deadline_ms + 5_000)).await;
        let mut state = run.borrow_mut();
        let index = *state.numbers.get(&probe.number).context("the tap was begun")?;
        let told = state.seen.ledger.requests[index].told.as_ref();
        let place = state.site_name(state.seen.in_service[building]);
        if let Err(Finding { promise, text }) = probe.judge(told, &place) {
            state.violated(promise, text);
            break;
        }
    }
    Ok(())
}
