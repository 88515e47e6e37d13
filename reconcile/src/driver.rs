//! The core's loop, in production on an OS thread of its own: takes what waits, runs one step over it, and releases what
//! the step said once it is on disk.
//!
//! Links and replies live here and not in the core, so that a core that failed can be dropped and opened again: whoever
//! was connected is cut off and comes back, whoever waited is told so, and nothing that was answered is lost.

mod queue;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use feiqian_protocol::frame::Frame;
use feiqian_protocol::limits::{BUSY_FOR_MS, ENTRIES_PER_FRAME_TARGET, INPUTS_PER_STEP_MAX};
use feiqian_protocol::time::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::queue::{BULK_QUEUE_MAX, Event};
pub use self::queue::{CoreHandle, Events, LinkQueues, Outgoing, Peer, Queued, Stopped, queue};
use crate::io::{Command, CommandError, Input, LinkId, Now, Output, Reply, Ticket};

/// Longest wait between two attempts of a core that keeps failing.
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Entries that one step takes at most, give or take a frame.
const ENTRIES_PER_STEP_MAX: usize = 4_096;

/// How long a step over entries should take with its commit. The more of them share a commit, the less it costs; the first
/// ask, credit or loss that comes while a backlog comes in waits for the step that is under way. It takes as many entries as
/// that allows by how long the last ones took, and a frame of them at least.
const STEP_TIME: Duration = Duration::from_millis(32);

/// The same where there was something of the kind not long ago: then there is more to come.
const BUSY_STEP_TIME: Duration = Duration::from_millis(3);

/// After such a step over entries, or over what the core goes on with by itself, there is none for so many times as long as it took:
/// what comes in that time waits for nothing, and a machine that has little more to do than to take a backlog in is not kept busy by
/// it alone. A step takes 2 to 4 ms, and each other one hands out, so more than a thousand entries a second come in all the same.
const REST_PER_STEP: u32 = 3;

/// Longest such rest: a step that took long for a reason of its own, say to open thousands of accounts, is no reason to rest.
const REST_MAX: Duration = Duration::from_millis(100);

/// What an entry takes as far as nothing is known.
const ENTRY_TIME: Duration = Duration::from_micros(50);

/// Entries of a step from which on it says something about what one takes.
const ENTRIES_TO_LEARN_FROM: usize = 32;

/// A core as the driver sees it.
pub trait Core {
    /// Why a step failed.
    type Error: std::error::Error;

    /// One transaction over all inputs. After an error the core is dropped and its outputs are discarded.
    ///
    /// # Errors
    /// Whatever keeps the transaction from being durable.
    fn step(&mut self, now: Now, inputs: Vec<Input>, outputs: &mut Vec<Output>) -> Result<(), Self::Error>;

    /// When the core wants [`Input::Timer`], in milliseconds since it was opened.
    fn next_timer(&self) -> Option<u64>;
}

/// Where the business clock comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WallClock {
    /// The operating system.
    Real,
    /// The local socket; nothing is served before it is set.
    Driven,
}

/// Where the real wall clock is read.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The real wall clock.
pub fn real_now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Runs [`run_cores`] on the calling thread, which it occupies, by the operating system's clock.
///
/// # Errors
/// As [`run_cores`].
pub fn drive<C: Core, E>(
    runtime: &tokio::runtime::Handle,
    events: Events,
    clock: WallClock,
    open: impl FnMut() -> Result<C, E>,
    ready: oneshot::Sender<()>,
) -> Result<(), E> {
    runtime.block_on(run_cores(events, clock, real_now, open, ready))
}

/// Runs cores until it is told to stop: opens one, steps it, and opens the next where a step failed. `ready` is told when
/// the first one stands. Timers go by the time of the runtime and the real wall clock is `real`, so that a simulation
/// brings its own. Dropped, it is a process that was killed.
///
/// # Errors
/// The error of `open`: a store that does not even open is nothing that trying again helps.
pub async fn run_cores<C: Core, E>(
    mut events: Events,
    clock: WallClock,
    real: impl Fn() -> Timestamp,
    mut open: impl FnMut() -> Result<C, E>,
    ready: oneshot::Sender<()>,
) -> Result<(), E> {
    let mut driven = None;
    if clock == WallClock::Driven {
        driven = first_clock(&mut events).await;
        if driven.is_none() {
            return Ok(());
        }
    }
    let mut ready = Some(ready);
    let mut pause = Duration::from_millis(50);
    let mut tickets = 0;
    loop {
        let core = open()?;
        if let Some(ready) = ready.take() {
            // Nobody waits for it where the process is ending already.
            let _ = ready.send(());
        }
        let opened = Instant::now();
        let mut run = Run {
            core,
            real: &real,
            opened,
            driven,
            tickets,
            waiting: BTreeMap::new(),
            links: BTreeMap::new(),
            urgent: None,
            pace: Pace::default(),
            rest_until: Instant::now(),
            statuses: VecDeque::new(),
            frames_taken: 0,
        };
        match run.run(&mut events).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::error!(error = %chain(&error), "step failed; the core is opened again from disk");
            }
        }
        driven = run.driven;
        tickets = run.tickets;
        for (_, outgoing) in std::mem::take(&mut run.links) {
            if let Some(outgoing) = outgoing {
                outgoing.close("the centre starts again from disk".to_owned());
            }
        }
        if opened.elapsed() > REOPEN_PAUSE_MAX * 2 {
            pause = Duration::from_millis(50);
        }
        drop(run);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REOPEN_PAUSE_MAX);
    }
}

/// Waits for the first clock; `None` where the process ends before.
async fn first_clock(events: &mut Events) -> Option<Timestamp> {
    loop {
        match events.events.recv().await? {
            Event::Clock(now, done) => {
                let _ = done.send(());
                return Some(now);
            }
            Event::Command(_, reply) => {
                let message = "the business clock is not set yet";
                let _ = reply.send(Err(CommandError { code: "clock_not_set", message: message.to_owned() }));
            }
            Event::Stop => return None,
            Event::Frame(..) | Event::LinkDown(_) | Event::LinkUp(..) => {}
        }
    }
}

/// One life of a core.
struct Run<C, R> {
    core: C,
    /// The real wall clock.
    real: R,
    opened: Instant,
    driven: Option<Timestamp>,
    tickets: u64,
    waiting: BTreeMap<Ticket, oneshot::Sender<Reply>>,
    /// The links that this core knows of; `None` for one that is closing, of which nothing is taken any more.
    links: BTreeMap<LinkId, Option<Outgoing>>,
    /// When there was something that must not wait for a long step.
    urgent: Option<Instant>,
    pace: Pace,
    /// Until when no entries are taken, and the timer waits.
    rest_until: Instant,
    /// Statuses that wait until so many frames of entries are taken.
    statuses: VecDeque<(u64, Ticket)>,
    frames_taken: u64,
}

/// How many entries a step takes.
#[derive(Debug)]
pub struct Pace {
    /// What an entry took of late, its part of the commit included.
    entry: Duration,
    /// True where the last step left entries waiting for what is urgent.
    stood_back: bool,
    /// True where the last turn was the timer's.
    timed: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { entry: ENTRY_TIME, stood_back: false, timed: false }
    }
}

impl Pace {
    /// Entries for the next step, where `urgent` says that it has something that must not wait: that goes alone, but not
    /// twice in a row, so that a backlog comes in all the same.
    pub fn entries(&mut self, urgent: bool, busy: bool) -> usize {
        self.stood_back = urgent && !self.stood_back;
        if self.stood_back {
            return 0;
        }
        let time = if busy { BUSY_STEP_TIME } else { STEP_TIME };
        let entries = time.as_nanos() / self.entry.as_nanos().max(1);
        usize::try_from(entries).unwrap_or(usize::MAX).clamp(1, ENTRIES_PER_STEP_MAX)
    }

    /// True where a timer that is due has the next step without entries: beside what others wait for they take turns, so that each
    /// step is short.
    const fn timer_goes_alone(&mut self, busy: bool) -> bool {
        self.timed = busy && !self.timed;
        self.timed
    }

    /// A step over so many entries took so long.
    pub fn learn(&mut self, entries: usize, took: Duration) {
        if entries >= ENTRIES_TO_LEARN_FROM {
            let each = took / u32::try_from(entries).unwrap_or(u32::MAX);
            self.entry = (self.entry * 3 + each) / 4;
        }
    }
}

impl<C: Core, R: Fn() -> Timestamp> Run<C, R> {
    async fn run(&mut self, events: &mut Events) -> Result<(), C::Error> {
        loop {
            let mut inputs = Vec::new();
            let mut urgent = false;
            let mut next = self.wait(events).await;
            while let Some(event) = next {
                match event {
                    Event::Clock(now, done) => {
                        // What was queued before the clock belongs to the time before.
                        self.admit_bulk(events, &mut inputs, BULK_QUEUE_MAX + 1, usize::MAX);
                        self.admit_statuses(&mut inputs, u64::MAX);
                        if !inputs.is_empty() {
                            self.step(std::mem::take(&mut inputs))?;
                        }
                        self.driven = self.driven.max(Some(now));
                        inputs.push(Input::Timer);
                        // Whoever drives may be gone; the clock stands all the same.
                        let _ = done.send(());
                    }
                    Event::Stop => {
                        self.admit_statuses(&mut inputs, u64::MAX);
                        return if inputs.is_empty() { Ok(()) } else { self.step(inputs) };
                    }
                    Event::Command(Command::Status {}, reply) => {
                        // A status speaks of everything that was queued before it, entries included.
                        let waiting = events.bulk.len() + usize::from(events.first_bulk.is_some());
                        let ticket = self.ticket(reply);
                        self.statuses.push_back((self.frames_taken + waiting as u64, ticket));
                    }
                    event => {
                        urgent |= event.is_urgent();
                        inputs.extend(self.admit(event));
                    }
                }
                if inputs.len() >= INPUTS_PER_STEP_MAX {
                    break;
                }
                next = events.events.try_recv().ok();
            }
            let room = INPUTS_PER_STEP_MAX.saturating_sub(inputs.len()).max(1);
            if urgent {
                self.urgent = Some(Instant::now());
            }
            let busy = self.urgent.is_some_and(|since| since.elapsed() < Duration::from_millis(BUSY_FOR_MS));
            let entries = if self.rests() { 0 } else { self.pace.entries(urgent, busy) };
            // Handing out goes on by the timer, and makes way as entries do.
            let due = entries > 0 && self.core.next_timer().is_some_and(|due| due <= self.mono_ms());
            let alone = due && self.pace.timer_goes_alone(busy);
            let frames = if entries > 0 && !alone { room } else { 0 };
            let taken = self.admit_bulk(events, &mut inputs, frames, entries);
            self.admit_statuses(&mut inputs, self.frames_taken);
            let timer = due && (alone || !busy || taken == 0);
            if timer {
                inputs.push(Input::Timer);
            }
            if !inputs.is_empty() {
                let begun = Instant::now();
                self.step(inputs)?;
                let took = begun.elapsed();
                self.pace.learn(taken, took);
                if busy && (taken > 0 || timer) {
                    self.rest_until = Instant::now() + (took * REST_PER_STEP).min(REST_MAX);
                }
            }
        }
    }

    /// Takes of the entries that wait: at most so many frames, and about so many entries. Returns how many.
    fn admit_bulk(
        &mut self,
        events: &mut Events,
        inputs: &mut Vec<Input>,
        frames_max: usize,
        entries_max: usize,
    ) -> usize {
        let mut entries = 0;
        for _ in 0..frames_max {
            let first = events.first_bulk.take();
            let Some((link, frame)) = first.or_else(|| events.bulk.try_recv().ok()) else { break };
            self.frames_taken += 1;
            if let Frame::Entries(batch) = &frame {
                entries += batch.records.len();
            }
            if self.takes_from(link) {
                inputs.push(Input::Frame(link, frame));
            }
            // Another frame would go far beyond.
            if entries + ENTRIES_PER_FRAME_TARGET / 2 > entries_max {
                break;
            }
        }
        entries
    }

    /// Takes the statuses that have waited for no more than so many frames.
    fn admit_statuses(&mut self, inputs: &mut Vec<Input>, frames_taken: u64) {
        while let Some((_, ticket)) = self.statuses.pop_front_if(|(after, _)| *after <= frames_taken) {
            inputs.push(Input::Command(ticket, Command::Status {}));
        }
    }

    /// Waits until there is something to do; returns the event where that is what it is.
    async fn wait(&self, events: &mut Events) -> Option<Event> {
        if let Ok(event) = events.events.try_recv() {
            return Some(event);
        }
        let rests = self.rests();
        if events.first_bulk.is_some() && !rests {
            return None;
        }
        let timer = async {
            match self.core.next_timer() {
                // At least a millisecond, so that a timer which does not move cannot spin.
                Some(due) => {
                    let left = due.saturating_sub(self.mono_ms()).max(1);
                    tokio::time::sleep(Duration::from_millis(left)).await;
                }
                None => std::future::pending().await,
            }
        };
        let Events { events, bulk, first_bulk } = events;
        tokio::select! {
            biased;
            // All senders gone is a stop, too.
            event = events.recv() => Some(event.unwrap_or(Event::Stop)),
            Some(frame) = bulk.recv(), if !rests => {
                *first_bulk = Some(frame);
                None
            }
            () = tokio::time::sleep_until(self.rest_until), if rests => None,
            () = timer, if !rests => None,
        }
    }

    fn rests(&self) -> bool {
        Instant::now() < self.rest_until
    }

    fn mono_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Keeps who waits for an answer.
    fn ticket(&mut self, reply: oneshot::Sender<Reply>) -> Ticket {
        self.tickets += 1;
        self.waiting.insert(Ticket(self.tickets), reply);
        Ticket(self.tickets)
    }

    /// Keeps the shell's part of an event; the input is the core's.
    fn admit(&mut self, event: Event) -> Option<Input> {
        match event {
            Event::Command(command, reply) => Some(Input::Command(self.ticket(reply), command)),
            Event::LinkUp(link, Peer { node, incarnation, expired }, outgoing) => {
                self.links.insert(link, Some(outgoing));
                Some(Input::LinkUp { link, node, incarnation, expired })
            }
            Event::Frame(link, frame) => self.takes_from(link).then_some(Input::Frame(link, frame)),
            Event::LinkDown(link) => self.links.remove(&link).map(|_| Input::LinkDown(link)),
            Event::Clock(..) | Event::Stop => None,
        }
    }

    /// A link of an earlier core, or one that is closing, is nothing to this core.
    fn takes_from(&self, link: LinkId) -> bool {
        matches!(self.links.get(&link), Some(Some(_)))
    }

    fn step(&mut self, inputs: Vec<Input>) -> Result<(), C::Error> {
        let real = (self.real)();
        let now = Now { mono_ms: self.mono_ms(), wall: self.driven.unwrap_or(real), real };
        let mut outputs = Vec::new();
        self.core.step(now, inputs, &mut outputs)?;
        for output in outputs {
            match output {
                Output::Reply(ticket, reply) => {
                    if let Some(waiting) = self.waiting.remove(&ticket) {
                        // A client that is gone does not want it any more.
                        let _ = waiting.send(reply);
                    }
                }
                Output::Send(link, frame) => {
                    if let Some(Some(outgoing)) = self.links.get(&link)
                        && !outgoing.send(frame)
                    {
                        tracing::warn!(link = link.0, "the link's queue is full");
                        self.close(link, "the node does not keep up; it resumes from its cursors".to_owned());
                    }
                }
                Output::CloseLink(link, reason) => self.close(link, reason),
            }
        }
        Ok(())
    }

    fn close(&mut self, link: LinkId, reason: String) {
        if let Some(outgoing) = self.links.get_mut(&link).and_then(Option::take) {
            outgoing.close(reason);
        }
    }
}

/// An error with all its causes, for the one place that logs it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
