//! One run: a [`Plan`] played on the machines of a [`Campus`], and what came of it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use feiqian_reconcile::driver::CoreHandle;
use feiqian_reconcile::io as centre_io;
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::audit::Audit;
use super::campus::{Campus, imports};
use super::clock::Time;
use super::hosts::{At, Fate, hear};
use super::network::{Network, Tampering};
use super::panics::Panics;
use super::samples::{lines, watch_links};
use super::{checks, faults, operators, terminals};
use crate::outcome::{FaultMark, LAST_EVENTS, Outcome, SimMode, Timeline, Violation};
use crate::plan::{LinkQuality, Manner, Plan, What};
use crate::promises::{Coverage, Promise};
use crate::seed::Seed;
use crate::vfs::{self, Disk};
use crate::world::Options;
use crate::world::observed::Observed;

/// Checks of every promise that holds at every moment, over a run.
const CHECKS: u64 = 10;

/// What all tasks of a run share. Never borrowed across an await.
pub(super) type Shared = Rc<RefCell<Run>>;

/// A building as its terminals and its link see it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// A second one on a copied disk, that half of the terminals talk to.
    pub(super) clone: Option<usize>,
    /// Partitions in force.
    pub(super) cuts: u32,
    /// What faults make of its link, the latest last.
    pub(super) qualities: Vec<(usize, LinkQuality)>,
    pub(super) replaying: u32,
    pub(super) forging: u32,
}

pub(super) struct Run {
    pub(super) plan: Arc<Plan>,
    pub(super) time: Time,
    pub(super) campus: Campus,
    pub(super) places: Vec<Place>,
    /// By site.
    pub(super) fates: Vec<Fate>,
    pub(super) centre_fate: Fate,
    /// What the promises are held against.
    pub(super) seen: Observed,
    /// The request of each tap's number.
    pub(super) numbers: BTreeMap<u32, usize>,
    pub(super) manners: BTreeMap<u32, Manner>,
    pub(super) chance: Seed,
    pub(super) healed: watch::Sender<bool>,
    /// What the centre has confirmed to channels and operators, in order; each with its loss report, where it is one.
    pub(super) confirmed: Vec<(What, Option<usize>)>,
    /// What was done so far that no building could give back to an older copy of the centre: enrolments, closings, revocations,
    /// and disks of buildings that were lost.
    pub(super) irrevocable: u64,
    /// Disks that may be full, and by which fault.
    pub(super) full: Vec<(usize, At)>,
    pub(super) outcome: Outcome,
    coverage: Vec<u64>,
    struck: Vec<bool>,
    audit: Audit,
    words: bool,
    trace: Option<Box<dyn Write>>,
    last_events: VecDeque<String>,
}

impl Run {
    pub(super) fn now_ms(&self) -> u64 {
        self.time.now_ms()
    }

    pub(super) fn reached(&mut self, coverage: Coverage) {
        self.reached_often(coverage, 1);
    }

    pub(super) fn reached_often(&mut self, coverage: Coverage, count: u64) {
        self.coverage[coverage as usize] += count;
    }

    /// Something happened that a person may want to read of.
    pub(super) fn say(&mut self, words: impl FnOnce(&Self) -> String) {
        let line = words(self);
        self.audit.line(self.time.now_ns(), &line);
        if !self.words {
            return;
        }
        let line = format!("{:>12} ms {line}", self.now_ms());
        if let Some(trace) = &mut self.trace {
            // A trace that cannot be written is missed by whoever wanted it, and harms nothing else.
            let _ = writeln!(trace, "{line}");
        }
        if self.last_events.len() == LAST_EVENTS {
            self.last_events.pop_front();
        }
        self.last_events.push_back(line);
    }

    pub(super) fn violated(&mut self, promise: Promise, text: String) {
        // The first of a promise says it; what follows from it says it again and again.
        if self.outcome.violations.iter().any(|violation| violation.promise == promise) {
            return;
        }
        let last_events = self.last_events.iter().cloned().collect();
        self.outcome.violations.push(Violation { promise, text, at_ms: self.now_ms(), last_events });
    }

    /// A fault really struck.
    pub(super) fn struck(&mut self, fault: usize) {
        self.struck_from(fault, self.now_ms());
    }

    /// The same of one that was only found out later.
    pub(super) fn struck_from(&mut self, fault: usize, from_ms: u64) {
        if std::mem::replace(&mut self.struck[fault], true) {
            return;
        }
        let planned = &self.plan.faults[fault];
        let kind = planned.kind.name().to_owned();
        let place = faults::place(&self.plan, &planned.kind);
        let mark = FaultMark {
            from_ms,
            to_ms: (from_ms + planned.for_ms).min(self.plan.timing.length_ms),
            kind: kind.clone(),
            place,
        };
        *self.outcome.faults.entry(kind).or_default() += 1;
        self.outcome.timeline.faults.push(mark);
    }

    pub(super) fn has_struck(&self, fault: usize) -> bool {
        self.struck[fault]
    }

    pub(super) fn is_healed(&self) -> bool {
        *self.healed.borrow()
    }

    /// The way to the centre's core, where it runs.
    pub(super) fn core(&self) -> Option<CoreHandle> {
        self.campus.centre.process.as_ref().and_then(|(_, process)| process.core())
    }

    /// Lets somebody on a building's wire do what the faults in force say.
    pub(super) fn tamper(&self, building: usize) {
        let place = &self.places[building];
        let tampering = Tampering { replays: place.replaying > 0, alters: place.forging > 0 };
        self.campus.network.set_tampering(building, tampering);
    }
}

/// Plays a plan. Where a promise is broken it is played again, to put the last events into words.
pub fn run(plan: &Plan, options: Options) -> Outcome {
    let words = options.words || options.trace.is_some();
    let outcome = run_once(plan, words, options.trace);
    if outcome.violations.is_empty() || words { outcome } else { run_once(plan, true, None) }
}

fn run_once(plan: &Plan, words: bool, trace: Option<Box<dyn Write>>) -> Outcome {
    vfs::fix_randomness();
    let began = Instant::now();
    let mut outcome = Outcome {
        scenario: plan.scenario.clone(),
        seed: plan.seed,
        mode: SimMode::FullStack.name().to_owned(),
        ..Outcome::default()
    };
    let panics = Panics::watch();
    let broken = match on_a_runtime(plan, words, trace, began) {
        Ok(played) => {
            outcome = played;
            None
        }
        Err(error) => Some(format!("{error:#}")),
    };
    for text in panics.seen().into_iter().chain(broken) {
        let last_events = Vec::new();
        outcome.violations.push(Violation { promise: Promise::Sound, text, at_ms: 0, last_events });
    }
    outcome.wall_ms = began.elapsed().as_millis() as u64;
    outcome
}

fn on_a_runtime(plan: &Plan, words: bool, trace: Option<Box<dyn Write>>, began: Instant) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, play(plan, words, trace, began))
}

async fn play(plan: &Plan, words: bool, trace: Option<Box<dyn Write>>, began: Instant) -> Result<Outcome> {
    let mut root = Seed::new(plan.seed ^ 0xf011_57ac);
    let [wires, machines, chance] = std::array::from_fn(|_| root.fork());
    let time = Time::begin(plan.timing.start, Duration::from_millis(plan.timing.warm_up_ms));
    let audit = Audit::default();
    let uplinks = plan.buildings.iter().map(|building| building.link);
    let network = Network::new(time, wires, audit.clone(), uplinks);
    let carrier = tokio::spawn(network.clone().carry());
    let (campus, news) = Campus::new(plan, time, network, machines)?;
    let manner = |action: &crate::plan::Action| match &action.what {
        What::Tap(tap) => Some((tap.number, tap.manner)),
        _ => None,
    };
    let seen = Observed::new(campus.centre.identity.clone(), campus.centre.disk.clone());
    let run = Rc::new(RefCell::new(Run {
        plan: Arc::new(plan.clone()),
        time,
        campus,
        places: Vec::new(),
        fates: Vec::new(),
        centre_fate: Fate::new(),
        seen,
        numbers: BTreeMap::new(),
        manners: plan.actions.iter().filter_map(manner).collect(),
        chance,
        healed: watch::Sender::new(false),
        full: Vec::new(),
        confirmed: Vec::new(),
        irrevocable: 0,
        outcome: Outcome {
            scenario: plan.scenario.clone(),
            seed: plan.seed,
            mode: SimMode::FullStack.name().to_owned(),
            timeline: Timeline { nodes: lines(plan), ..Timeline::default() },
            ..Outcome::default()
        },
        coverage: vec![0; Coverage::ALL.len()],
        struck: vec![false; plan.faults.len()],
        audit: audit.clone(),
        words,
        trace,
        last_events: VecDeque::new(),
    }));
    set_up(&run, plan).await?;
    run.borrow_mut().outcome.setup_ms = began.elapsed().as_millis() as u64;
    tokio::task::spawn_local(hear(run.clone(), news));
    sleep_until(time.set_up()).await;
    for site in 0..plan.buildings.len() {
        run.borrow_mut().start(At::Site(site));
    }
    let moments: Vec<u64> =
        (0..CHECKS).map(|_| run.borrow_mut().chance.below(plan.timing.length_ms)).collect();
    for at_ms in moments {
        let run = run.clone();
        tokio::task::spawn_local(async move {
            sleep_until(time.moment(at_ms)).await;
            run.borrow_mut().check_now();
        });
    }
    tokio::task::spawn_local(watch_links(run.clone()));
    for index in 0..plan.faults.len() {
        tokio::task::spawn_local(faults::strike(run.clone(), index));
    }
    tokio::task::spawn_local(act(run.clone()));
    sleep_until(time.moment(plan.timing.length_ms)).await;
    faults::heal(&run);
    sleep_until(time.moment(plan.end_ms())).await;
    if let Err(error) = checks::check_at_end(&run).await {
        run.borrow_mut().violated(Promise::Sound, format!("{error:#}"));
    }
    let outcome = finish(&run);
    carrier.abort();
    Ok(outcome)
}

/// Opens the campus: the centre, its accounts, an identity for a node in every building.
async fn set_up(run: &Shared, plan: &Plan) -> Result<()> {
    run.borrow_mut().start(At::Centre);
    let core = run.borrow().core().context("the centre runs")?;
    let config = serde_json::to_value(plan.campus())?;
    let command = async |command| {
        core.command(command)
            .await
            .map_err(|error: centre_io::CommandError| anyhow!("{}: {error}", error.code))
    };
    command(centre_io::Command::PublishCampus { config }).await.context("publishing the campus")?;
    for import in imports(&plan.accounts) {
        command(import).await.context("opening accounts")?;
    }
    for (index, building) in plan.buildings.iter().enumerate() {
        let enrolment = run.borrow_mut().campus.enrolment(&building.name, building.role)?;
        let files = enrolment.run().await.context("enrolling a building")?;
        let mut run = run.borrow_mut();
        let site = run.add_site(index, Arc::new(files), Disk::new());
        run.seen.in_service.push(site);
        run.places.push(Place { clone: None, cuts: 0, qualities: Vec::new(), replaying: 0, forging: 0 });
    }
    Ok(())
}

/// Does what people and operators do, when they do it.
async fn act(run: Shared) {
    let (plan, time) = {
        let run = run.borrow();
        (run.plan.clone(), run.time)
    };
    for action in &plan.actions {
        sleep_until(time.moment(action.at_ms)).await;
        match &action.what {
            What::Tap(tap) => {
                run.borrow_mut().outcome.taps.begun += 1;
                terminals::tap(&run, tap);
            }
            What::Reversal { of, amount, number } => terminals::reverse(&run, *of, *amount, *number),
            other => operators::operate(&run, other.clone()),
        }
    }
}

fn finish(run: &Shared) -> Outcome {
    let mut run = run.borrow_mut();
    for text in std::mem::take(&mut run.seen.ledger.contradictions) {
        run.violated(Promise::ExactlyOnce, text);
    }
    let covered = Coverage::ALL.iter().zip(&run.coverage).filter(|(_, count)| **count > 0);
    run.outcome.coverage = covered.map(|(coverage, count)| (coverage.name().to_owned(), *count)).collect();
    run.outcome.sim_ms = run.now_ms();
    run.count_taps();
    let disks =
        std::iter::once(&run.campus.centre.disk).chain(run.campus.sites.iter().map(|site| &site.disk));
    for disk in disks {
        run.audit.disk(disk.counters().digest);
    }
    run.outcome.audit = run.audit.digest();
    run.outcome.clone()
}
