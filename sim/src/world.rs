//! Message mode: both cores, as the binaries run them, on crash disks, under virtual time, from one seed.
//!
//! An event heap drives everything; events of one nanosecond come in an order drawn from the seed. What the two shells do
//! around their cores is done here the same way (`node/src/drive.rs`, `reconcile/src/driver.rs`): inputs wait for the step that
//! is under way, one step takes what waits, outputs leave once it has committed, frames of links that were replaced are
//! dropped, a failed step opens the core again from disk.
//!
//! [`run`] plays a [`Plan`] and says how it went. Nothing in here knows what a decision should be: that is for
//! [`crate::promises`], from what terminals were told.

mod audit;
mod checks;
mod clock;
mod faults;
mod forger;
mod heard;
mod hosts;
mod links;
mod network;
pub(crate) mod observed;
mod operators;
mod phones;
mod pins;
mod purses;
mod samples;
mod terminals;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::io::Write;
use std::time::Instant;

use anyhow::Result;
use audit::Audit;
use ed25519_dalek::SigningKey;
use feiqian_node::io as node_io;
use feiqian_protocol::ids::{LogId, NodeId};
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::io as centre_io;
pub(crate) use hosts::Trust;
use hosts::{Centre, Site};
use network::{Connections, Flight};
use operators::Wanted;

use crate::outcome::{Outcome, Violation};
use crate::plan::{INSTITUTION, LinkQuality, Manner, Plan, What};
use crate::promises::ledger::Ledger;
use crate::promises::{Coverage, Promise};
use crate::seed::Seed;

const MS: u64 = 1_000_000;

/// Events without any time passing: beyond it something spins.
const EVENTS_AT_REST_MAX: u32 = 200_000;

/// Checks of every promise that holds at every moment, over a run.
const CHECKS: u64 = 10;

/// The world's own time when the campus is opened, in milliseconds.
const BEFORE_MS: u64 = 1_000;

/// How background work is attended to while a campus warms up.
const ATTEND_AT_WARM_UP_MS: u64 = 100;

/// How background work is attended to while everything comes to rest.
const ATTEND_AT_HEAL_MS: u64 = 1_500;

/// What a run may do beside running.
#[derive(Default)]
pub struct Options {
    /// Put events into words, for a violation's last events.
    pub words: bool,
    /// Write every event here, in words.
    pub trace: Option<Box<dyn Write>>,
    /// Sample for the report.
    pub samples: bool,
    /// Nodes commit without a sync each: a wrong setting, to show what it costs.
    pub lowered_sync: bool,
}

/// Plays a plan. Where a promise is broken it is played again, to put the last events into words.
pub fn run(plan: &Plan, options: Options) -> Outcome {
    let (words, samples) = (options.words || options.trace.is_some(), options.samples);
    let lowered_sync = options.lowered_sync;
    let outcome = run_once(plan, options);
    if outcome.violations.is_empty() || words {
        return outcome;
    }
    run_once(plan, Options { words: true, trace: None, samples, lowered_sync })
}

fn run_once(plan: &Plan, options: Options) -> Outcome {
    crate::vfs::fix_randomness();
    let began = Instant::now();
    let mut world = World::new(plan, options);
    let played = world.set_up().and_then(|()| {
        world.outcome.setup_ms = began.elapsed().as_millis() as u64;
        world.play()
    });
    if let Err(error) = played {
        world.violated(Promise::Sound, format!("{error:#}"));
    }
    if !world.outcome.violations.is_empty()
        && let Err(error) = world.dump()
    {
        world.violated(Promise::Sound, format!("the books cannot be read: {error:#}"));
    }
    world.finish(began)
}

/// Something that is to happen.
#[derive(Debug)]
enum Event {
    Action(usize),
    /// A flight comes to its receiver.
    Arrive(u64, Flight),
    /// The centre's end of a new connection stands.
    CentreLinkUp(u64),
    Check,
    /// An end hears that the other one closed.
    Closed(u64, End),
    /// A node tries to connect; the number is that of the attempt.
    Connect(usize, u64),
    FaultBegin(usize),
    FaultEnd(usize),
    /// A box in wrong hands.
    Forger(forger::Step),
    /// An end has heard nothing for its idle timeout; the number is that of the break.
    GiveUp(u64, End, u32),
    Heal(u32),
    /// A building must have heard of a loss.
    Heard(heard::ToHear),
    ReleaseCentre(u32, Vec<centre_io::Output>),
    ReleaseNode(usize, u32, Vec<node_io::Output>),
    /// Something about a phone.
    Phone(phones::Step),
    /// Somebody at the centre looks after purses: decides a case, and has what is left on cards given back.
    AtTheDesk,
    /// A terminal has waited for an answer about a purse.
    Purse(u64),
    /// A terminal looks whether it has an answer.
    Resend(usize),
    /// A terminal sends a key again that was answered.
    Again(usize),
    Sample,
    StartCentre(u32),
    StartNode(usize, u32),
    StepCentre(u32, u64),
    StepNode(usize, u32, u64),
    /// A terminal or channel or operator acts again.
    Want(Wanted),
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Centre,
    Node,
}

struct Scheduled {
    at: u64,
    tie: u32,
    number: u64,
    event: Event,
}

impl Scheduled {
    const fn key(&self) -> (u64, u32, u64) {
        (self.at, self.tie, self.number)
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// A building as its terminals see it.
#[derive(Debug, Default)]
struct Building {
    /// The process that answers.
    site: usize,
    /// A second one on a copied disk, that half of the terminals talk to.
    clone: Option<usize>,
    /// Partitions in force.
    cuts: u32,
    /// What its link is like at present.
    quality: Option<LinkQuality>,
    replaying: u32,
    forging: u32,
    forging_up: u32,
}

struct World<'p> {
    plan: &'p Plan,
    now: u64,
    /// The plan's first moment.
    origin: u64,
    heap: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    at_rest: u32,
    /// Chance for: ties, the network, hosts, terminals, faults.
    ties: Seed,
    chance: Seed,
    centre: Centre,
    sites: Vec<Site>,
    buildings: Vec<Building>,
    connections: Connections,
    links: u64,
    attend_ms: u64,
    tickets: u64,
    ledger: Ledger,
    purses: purses::Purses,
    phones: phones::Phones,
    /// The request of each tap's number.
    numbers: BTreeMap<u32, usize>,
    /// How the terminals of some taps misbehave.
    manners: BTreeMap<u32, Manner>,
    commands: BTreeMap<u64, Wanted>,
    /// Actions that the centre has confirmed, each with its loss report, where it is one.
    confirmed: BTreeMap<usize, Option<usize>>,
    /// Nodes whose disk was put back from a copy that shows at the next Hello.
    shown_copies: BTreeSet<NodeId>,
    /// How far logs were ingested when the step of a loss report had ended, by its ticket.
    ingested_at: BTreeMap<u64, BTreeMap<LogId, u64>>,
    faults: Vec<faults::State>,
    forgers: Vec<forger::Forger>,
    healed: bool,
    coverage: Vec<u64>,
    audit: Audit,
    outcome: Outcome,
    samples: bool,
    lowered_sync: bool,
    wedged: bool,
    /// What the centre's disk was in the middle of, for bounds that a copied disk widens.
    bounds: checks::Bounds,
}

impl<'p> World<'p> {
    fn new(plan: &'p Plan, options: Options) -> Self {
        let mut root = Seed::new(plan.seed ^ 0x0e7e_7a71);
        let [ties, chance, purses, phones] = std::array::from_fn(|_| root.fork());
        let cards = plan.accounts.iter().map(|account| account.card.clone());
        let log_key = SigningKey::from_bytes(&[9; 32]);
        let identity = centre_io::Identity { institution: INSTITUTION, log_key };
        Self {
            plan,
            now: BEFORE_MS * MS,
            origin: (BEFORE_MS + plan.timing.warm_up_ms) * MS,
            heap: BinaryHeap::new(),
            scheduled: 0,
            at_rest: 0,
            ties,
            chance,
            centre: Centre::new(identity),
            sites: Vec::new(),
            buildings: (0..plan.buildings.len()).map(|_| Building::default()).collect(),
            connections: Connections::new(),
            links: 0,
            attend_ms: plan.timing.attend_ms,
            tickets: 0,
            ledger: Ledger::default(),
            purses: purses::Purses::new(cards, purses),
            phones: phones::Phones::new(phones),
            numbers: BTreeMap::new(),
            manners: plan
                .actions
                .iter()
                .filter_map(|action| match &action.what {
                    What::Tap(tap) if tap.manner != Manner::Patient => Some((tap.number, tap.manner)),
                    _ => None,
                })
                .collect(),
            commands: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            shown_copies: BTreeSet::new(),
            ingested_at: BTreeMap::new(),
            faults: plan.faults.iter().map(|_| faults::State::default()).collect(),
            forgers: Vec::new(),
            healed: false,
            coverage: vec![0; Coverage::ALL.len()],
            audit: Audit::new(options.words, options.trace, (BEFORE_MS + plan.timing.warm_up_ms) * MS),
            outcome: Outcome {
                scenario: plan.scenario.clone(),
                seed: plan.seed,
                mode: "message".to_owned(),
                ..Outcome::default()
            },
            samples: options.samples,
            lowered_sync: options.lowered_sync,
            wedged: false,
            bounds: checks::Bounds::default(),
        }
    }

    /// Opens the campus: the centre, its accounts, a node in every building.
    fn set_up(&mut self) -> Result<()> {
        self.open_campus()?;
        self.heap.clear();
        self.centre.scheduled = None;
        self.schedule_centre(self.now + MS);
        for site in 0..self.sites.len() {
            self.start_node(site);
        }
        if self.plan.timing.warm_up_ms > 0 {
            let attend_ms = std::mem::replace(&mut self.attend_ms, ATTEND_AT_WARM_UP_MS);
            self.run_until(self.origin)?;
            self.attend_ms = attend_ms;
        }
        let origin = self.origin;
        for (index, action) in self.plan.actions.iter().enumerate() {
            self.at(origin + action.at_ms * MS, Event::Action(index));
        }
        for (index, fault) in self.plan.faults.iter().enumerate() {
            self.at(origin + fault.at_ms * MS, Event::FaultBegin(index));
        }
        self.plan_phones();
        self.plan_decisions();
        let length = self.plan.timing.length_ms * MS;
        for _ in 0..CHECKS {
            let at = origin + self.chance.below(length);
            self.at(at, Event::Check);
        }
        let heal = self.plan.timing.heal_ms * MS;
        for (stage, part) in [0, 2, 4, 6].into_iter().enumerate() {
            self.at(origin + length + heal * part / 10, Event::Heal(stage as u32));
        }
        if self.samples {
            self.outcome.timeline.every_ms = (self.plan.end_ms() / 400).max(100);
            self.at(origin, Event::Sample);
        }
        Ok(())
    }

    fn play(&mut self) -> Result<()> {
        self.run_until(self.origin + self.plan.end_ms() * MS)?;
        if !self.wedged {
            self.check_at_end()?;
        }
        Ok(())
    }

    /// Plays events until this time.
    fn run_until(&mut self, until: u64) -> Result<()> {
        while !self.wedged
            && let Some(Reverse(next)) = self.heap.peek()
            && next.at <= until
        {
            let Some(Reverse(next)) = self.heap.pop() else { break };
            if next.at / MS > self.now / MS {
                self.at_rest = 0;
            }
            self.at_rest += 1;
            anyhow::ensure!(self.at_rest < EVENTS_AT_REST_MAX, "events without end: no time passes");
            self.now = next.at;
            self.happen(next.event)?;
        }
        self.now = self.now.max(until);
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Action(index) => self.act(index),
            Event::Again(index) => self.send_again(index),
            Event::Arrive(link, flight) => self.arrive(link, flight)?,
            Event::CentreLinkUp(link) => self.centre_link_up(link),
            Event::Check => self.check_now()?,
            Event::Closed(link, end) => self.heard_close(link, end),
            Event::Connect(site, attempt) => self.connect(site, attempt),
            Event::FaultBegin(index) => self.begin_fault(index)?,
            Event::FaultEnd(index) => self.end_fault(index)?,
            Event::Forger(step) => self.forger_step(step)?,
            Event::GiveUp(link, end, breaks) => self.give_up(link, end, breaks),
            Event::Heal(stage) => self.heal(stage)?,
            Event::Heard(to_hear) => self.check_heard(&to_hear)?,
            Event::ReleaseCentre(life, outputs) => self.release_centre(life, outputs),
            Event::ReleaseNode(site, life, outputs) => self.release_node(site, life, outputs),
            Event::Phone(step) => self.phone_step(step),
            Event::Purse(ticket) => self.purse_late(ticket),
            Event::AtTheDesk => {
                self.decide_case()?;
                self.give_purses_back()?;
            }
            Event::Resend(index) => self.resend(index),
            Event::Sample => self.sample()?,
            Event::StartCentre(life) => {
                if life == self.centre.life {
                    self.start_centre();
                }
            }
            Event::StartNode(site, life) => {
                if life == self.sites[site].life {
                    self.start_node(site);
                }
            }
            Event::StepCentre(life, number) => {
                if life == self.centre.life && self.centre.scheduled.is_some_and(|(_, step)| step == number) {
                    self.step_centre();
                }
            }
            Event::StepNode(site, life, number) => {
                let host = &self.sites[site];
                if life == host.life && host.scheduled.is_some_and(|(_, step)| step == number) {
                    self.step_node(site);
                }
            }
            Event::Want(wanted) => self.want(wanted)?,
        }
        Ok(())
    }

    fn at(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        // Whether somebody takes samples must not change what happens.
        let tie = if matches!(event, Event::Sample) { 0 } else { self.ties.draw() as u32 };
        self.heap.push(Reverse(Scheduled { at: at.max(self.now), tie, number: self.scheduled, event }));
    }

    fn after_ms(&mut self, ms: u64, event: Event) {
        self.at(self.now + ms * MS, event);
    }

    fn reached(&mut self, coverage: Coverage) {
        self.coverage[coverage as usize] += 1;
    }

    fn violated(&mut self, promise: Promise, text: String) {
        // The first of a promise says it; what follows from it says it again and again.
        if self.outcome.violations.iter().any(|violation| violation.promise == promise) {
            return;
        }
        self.outcome.violations.push(Violation {
            promise,
            text,
            at_ms: self.now_ms(),
            last_events: self.audit.last_events(),
        });
    }

    /// Milliseconds since the plan's first moment.
    const fn now_ms(&self) -> u64 {
        self.now.saturating_sub(self.origin) / MS
    }

    /// The true time when the world's own time was nothing.
    pub(crate) const fn epoch(&self) -> Timestamp {
        self.plan.timing.start.plus_ms(-((self.origin / MS) as i64))
    }

    fn quality(&self, building: usize) -> LinkQuality {
        self.buildings[building].quality.unwrap_or(self.plan.buildings[building].link)
    }

    fn finish(mut self, began: Instant) -> Outcome {
        for text in std::mem::take(&mut self.ledger.contradictions) {
            self.violated(Promise::ExactlyOnce, text);
        }
        let covered = Coverage::ALL.iter().zip(&self.coverage).filter(|(_, count)| **count > 0);
        self.outcome.coverage =
            covered.map(|(coverage, count)| (coverage.name().to_owned(), *count)).collect();
        let disks = std::iter::once(&self.centre.disk).chain(self.sites.iter().map(|site| &site.disk));
        self.outcome.audit = self.audit.finish(disks.map(|disk| disk.counters().digest));
        self.outcome.sim_ms = self.now_ms();
        self.outcome.wall_ms = began.elapsed().as_millis() as u64;
        self.count_taps();
        self.outcome
    }
}
