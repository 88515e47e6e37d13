//! Hosts: processes that start, step, release, fail and die, as their shells have it.

mod inbox;
mod lives;

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Result, anyhow};
use feiqian_node::core::NodeCore;
use feiqian_node::io as node_io;
use feiqian_protocol::frame::Frame;
use feiqian_protocol::limits::INPUTS_PER_STEP_MAX;
use feiqian_protocol::public_key::CentreKey;
use feiqian_reconcile::core::ReconcileCore;
use feiqian_reconcile::io as centre_io;

use self::inbox::is_urgent_for_centre;
pub(super) use self::inbox::{CentreMessage, NodeMessage};
use super::clock::Clock;
use super::network::Way;
use super::{Event, MS, World};
use crate::link::tables::{CentreTables, NodeTables};
use crate::promises::Coverage;
use crate::vfs::Disk;

const US: u64 = 1_000;

/// What a commit takes: a sync of a small SSD, and up to so much more.
const COMMIT_NS: u64 = 200 * US;
const COMMIT_MORE_NS: u64 = 1_500 * US;

/// What an input takes beside it.
const INPUT_NS: u64 = 30 * US;

/// The pause before a core is opened again, the first time and at most.
const REOPEN_PAUSE_MS: (u64, u64) = (100, 5_000);

/// What a ticket was for.
#[derive(Clone, Copy, Debug)]
pub(super) enum TicketFor {
    /// A request of the ledger.
    Request(usize),
    /// Another request under the key of one that was answered.
    Reuse(usize),
    /// A loss report; the action of the plan.
    Report(usize),
    /// What a holder shows, after a request of the ledger.
    Shown(usize),
    /// What a card with a purse says of itself; the account in the plan.
    Carried(usize),
}

/// How far a site's disk can be trusted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Trust {
    /// It is as its process left it.
    Sound,
    /// So it is, and what it sent was altered on its way: nothing of it is lost once it can send it whole.
    Altered,
    /// It was copied, restored or lied to: its log may have another continuation.
    Copied,
    /// It was destroyed, or holds what nobody wrote.
    Broken,
}

impl Trust {
    /// The disk was copied, restored or lied to. What holds what nobody wrote does so after that as well.
    pub(crate) fn copied(&mut self) {
        if *self != Self::Broken {
            *self = Self::Copied;
        }
    }

    /// What it sends is altered on its way.
    pub(super) fn altered(&mut self) {
        if *self == Self::Sound {
            *self = Self::Altered;
        }
    }
}

/// A building's process.
pub(super) struct Site {
    pub building: usize,
    pub identity: node_io::Identity,
    pub disk: Disk,
    pub clock: Clock,
    pub core: Option<NodeCore>,
    pub reader: Option<NodeTables>,
    /// Counts starts and ends, so that what was for an earlier life is nothing.
    pub life: u32,
    pub opened: u64,
    pub scheduled: Option<(u64, u64)>,
    pub busy_until: u64,
    pub inbox: VecDeque<NodeMessage>,
    pub waiting: BTreeMap<node_io::Ticket, (TicketFor, u64)>,
    pub link: Option<u64>,
    pub attempt: u64,
    pub lost_quickly: u32,
    pub connected_at: u64,
    pub reopen_pause_ms: u64,
    pub trust: Trust,
    /// True where it will not be started again.
    pub gone: bool,
    /// When its building was enrolled anew, on another box.
    pub replaced_at: Option<u64>,
    /// True where no connection of it is accepted.
    pub revoked: bool,
    /// True where of what it is yet to send anything may be lost.
    pub may_lose: bool,
    /// The fault that a planned end belongs to, and for how long the host is down then.
    pub armed: Option<(usize, u64)>,
    pub old_frames: Vec<(u64, Frame)>,
}

/// The centre's process.
pub(super) struct Centre {
    pub identity: centre_io::Identity,
    /// As the buildings hold it.
    pub public_key: CentreKey,
    pub disk: Disk,
    pub clock: Clock,
    pub core: Option<ReconcileCore>,
    pub reader: Option<CentreTables>,
    pub life: u32,
    pub opened: u64,
    pub scheduled: Option<(u64, u64)>,
    pub busy_until: u64,
    pub inbox: VecDeque<CentreMessage>,
    /// Links that this life knows, and whether anything is taken of them.
    pub links: BTreeMap<u64, bool>,
    pub reopen_pause_ms: u64,
    pub armed: Option<(usize, u64)>,
    /// What was done so far that no building could give back to an older copy: enrolments, closings, revocations, and
    /// disks of buildings that were lost.
    pub irrevocable: u64,
    /// True where it starts next on a copy that its operator says was restored.
    pub restored: bool,
}

impl Centre {
    pub(super) fn new(identity: centre_io::Identity) -> Self {
        let disk = Disk::new();
        disk.audit();
        Self {
            public_key: CentreKey::remembering(identity.log_key.verifying_key()),
            identity,
            disk,
            clock: Clock::default(),
            core: None,
            reader: None,
            life: 0,
            opened: 0,
            scheduled: None,
            busy_until: 0,
            inbox: VecDeque::new(),
            links: BTreeMap::new(),
            reopen_pause_ms: REOPEN_PAUSE_MS.0,
            armed: None,
            irrevocable: 0,
            restored: false,
        }
    }
}

impl Site {
    /// True where all that its disk holds comes to the centre in the end.
    pub(super) fn comes_whole(&self) -> bool {
        !self.gone && matches!(self.trust, Trust::Sound | Trust::Altered)
    }

    pub(super) fn new(building: usize, identity: node_io::Identity, disk: Disk) -> Self {
        disk.audit();
        Self {
            building,
            identity,
            disk,
            clock: Clock::default(),
            core: None,
            reader: None,
            life: 0,
            opened: 0,
            scheduled: None,
            busy_until: 0,
            inbox: VecDeque::new(),
            waiting: BTreeMap::new(),
            link: None,
            attempt: 0,
            lost_quickly: 0,
            connected_at: 0,
            reopen_pause_ms: REOPEN_PAUSE_MS.0,
            trust: Trust::Sound,
            gone: false,
            replaced_at: None,
            revoked: false,
            may_lose: false,
            armed: None,
            old_frames: Vec::new(),
        }
    }
}

impl World<'_> {
    fn commit_ns(&mut self, inputs: usize) -> u64 {
        COMMIT_NS + self.chance.below(COMMIT_MORE_NS) + INPUT_NS * inputs as u64
    }

    /// One step of a node, over what waits.
    pub(super) fn step_node(&mut self, site: usize) {
        let now = self.now;
        let start = self.epoch();
        let host = &mut self.sites[site];
        host.scheduled = None;
        let Some(core) = &mut host.core else { return };
        let mut inputs = Vec::new();
        let (mut asks, mut stale) = (0, 0);
        while inputs.len() < INPUTS_PER_STEP_MAX
            && let Some(message) = host.inbox.pop_front()
        {
            match message {
                NodeMessage::Ask(input) => {
                    asks += 1;
                    inputs.push(input);
                }
                NodeMessage::Frame(link, frame) if host.link == Some(link) => {
                    inputs.push(node_io::Input::Frame(node_io::LinkId(link), frame));
                }
                NodeMessage::Frame(..) => stale += 1,
                NodeMessage::LinkDown(link) => {
                    if host.link == Some(link) {
                        host.link = None;
                        inputs.push(node_io::Input::LinkDown(node_io::LinkId(link)));
                    }
                }
                NodeMessage::LinkUp(link) => {
                    host.link = Some(link);
                    inputs.push(node_io::Input::LinkUp(node_io::LinkId(link)));
                }
            }
        }
        let mono_ms = (now - host.opened) / MS;
        let due = core.next_timer().is_some_and(|due| due <= mono_ms);
        if due {
            inputs.push(node_io::Input::Timer);
        }
        let count = inputs.len();
        let mut outputs = Vec::new();
        let endings = host.disk.counters().endings;
        let stepped = if inputs.is_empty() {
            Ok(())
        } else {
            let wall = host.clock.read(start, now);
            core.step(node_io::Now { mono_ms, wall, elapsed_ms: mono_ms }, inputs, &mut outputs)
        };
        let ended = host.disk.counters().endings != endings;
        self.audit.event(now, 1 << 32 | site as u64, (count as u64) << 32 | outputs.len() as u64);
        for _ in 0..stale {
            self.reached(Coverage::StaleFrame);
        }
        if asks > 1 {
            self.reached(Coverage::GroupCommit);
        }
        if ended {
            self.audit.say(now, || format!("{}: the planned end comes in a step", self.site_name(site)));
            return self.node_ended_as_planned(site);
        }
        if let Err(error) = stepped {
            return self.node_step_failed(site, &anyhow!(error));
        }
        self.audit.say(now, || {
            format!("{}: a step of {count} inputs, {} outputs", self.site_name(site), outputs.len())
        });
        let released = now + self.commit_ns(count);
        let host = &mut self.sites[site];
        host.busy_until = released;
        let life = host.life;
        if !outputs.is_empty() {
            self.at(released, Event::ReleaseNode(site, life, outputs));
        }
        if count > 0 {
            self.note_waiting(site);
        }
        self.plan_node_step(site);
    }

    /// One step of the centre, over what waits.
    pub(super) fn step_centre(&mut self) {
        self.centre.scheduled = None;
        let Some(inputs) = self.centre_inputs() else { return };
        // What is left of replies is to those who do not wait for one.
        self.step_centre_with(inputs);
    }

    fn centre_inputs(&mut self) -> Option<Vec<centre_io::Input>> {
        let host = &mut self.centre;
        let core = host.core.as_ref()?;
        let mut inputs = Vec::new();
        let mut stale = 0;
        while inputs.len() < INPUTS_PER_STEP_MAX
            && let Some(message) = host.inbox.pop_front()
        {
            match message {
                CentreMessage::Command(ticket, command) => {
                    inputs.push(centre_io::Input::Command(ticket, command));
                }
                CentreMessage::Frame(link, frame) if host.links.get(&link) == Some(&true) => {
                    inputs.push(centre_io::Input::Frame(centre_io::LinkId(link), frame));
                }
                CentreMessage::Frame(..) => stale += 1,
                CentreMessage::LinkDown(link) => {
                    if host.links.remove(&link).is_some() {
                        inputs.push(centre_io::Input::LinkDown(centre_io::LinkId(link)));
                    }
                }
                CentreMessage::LinkUp(link) => {
                    if let Some(connection) = self.connections.get(&link) {
                        host.links.insert(link, true);
                        let identity = &self.sites[connection.site].identity;
                        inputs.push(centre_io::Input::LinkUp {
                            link: centre_io::LinkId(link),
                            node: identity.node,
                            incarnation: identity.incarnation,
                            expired: false,
                        });
                    }
                }
            }
        }
        if core.next_timer().is_some_and(|due| due <= (self.now - host.opened) / MS) {
            inputs.push(centre_io::Input::Timer);
        }
        for _ in 0..stale {
            self.reached(Coverage::StaleFrame);
        }
        Some(inputs)
    }

    /// Steps the centre over exactly these inputs and releases what they say, except replies to `own` tickets, which are
    /// returned. `None` where it died over them.
    fn step_centre_with(
        &mut self,
        inputs: Vec<centre_io::Input>,
    ) -> Option<Vec<(centre_io::Ticket, centre_io::Reply)>> {
        let now = self.now;
        let start = self.epoch();
        let reports: Vec<u64> = inputs
            .iter()
            .filter_map(|input| match input {
                centre_io::Input::Command(ticket, centre_io::Command::ReportLoss { .. }) => Some(ticket.0),
                _ => None,
            })
            .collect();
        if !reports.is_empty() {
            self.note_ingested(&reports, false);
        }
        let count = inputs.len();
        let mut outputs = Vec::new();
        let host = &mut self.centre;
        let core = host.core.as_mut()?;
        let endings = host.disk.counters().endings;
        let wall = host.clock.read(start, now);
        let mono_ms = (now - host.opened) / MS;
        let stepped = if inputs.is_empty() {
            Ok(())
        } else {
            core.step(centre_io::Now { mono_ms, wall, real: wall }, inputs, &mut outputs)
        };
        let ended = host.disk.counters().endings != endings;
        self.audit.event(now, 2 << 32, (count as u64) << 32 | outputs.len() as u64);
        if ended {
            self.audit.say(now, || "centre: the planned end comes in a step".to_owned());
            self.centre_ended_as_planned();
            return None;
        }
        if let Err(error) = stepped {
            self.centre_step_failed(&anyhow!(error));
            return None;
        }
        if !reports.is_empty() {
            self.note_ingested(&reports, true);
        }
        self.audit.say(now, || format!("centre: a step of {count} inputs, {} outputs", outputs.len()));
        let mut own = Vec::new();
        outputs.retain(|output| match output {
            centre_io::Output::Reply(ticket, reply) if !self.commands.contains_key(&ticket.0) => {
                own.push((*ticket, reply.clone()));
                false
            }
            _ => true,
        });
        let released = now.max(self.centre.busy_until) + self.commit_ns(count);
        self.centre.busy_until = released;
        let life = self.centre.life;
        if !outputs.is_empty() {
            self.at(released, Event::ReleaseCentre(life, outputs));
        }
        let host = &self.centre;
        let asked = host.core.as_ref().is_some_and(|core| core.next_timer().is_some());
        if let Some(urgent) = host.inbox.iter().map(|message| is_urgent_for_centre(message, asked)).max() {
            let at = if urgent { released + 1 } else { released.max(now + self.attend_ms * MS) };
            self.schedule_centre(at);
        }
        if let Some(due) = self.centre.core.as_ref().and_then(ReconcileCore::next_timer) {
            // At least a millisecond, as the driver has it.
            let at = (self.centre.opened + due * MS).max(now + MS).max(released + 1);
            self.schedule_centre(at);
        }
        Some(own)
    }

    /// What an operator at the centre's local socket wants at once. `None` where the centre is down or dies over it.
    pub(super) fn command(&mut self, command: centre_io::Command) -> Option<centre_io::Reply> {
        self.tickets += 1;
        let ticket = centre_io::Ticket(self.tickets);
        self.centre.core.as_ref()?;
        let replies = self.step_centre_with(vec![centre_io::Input::Command(ticket, command)])?;
        replies.into_iter().find(|(of, _)| *of == ticket).map(|(_, reply)| reply)
    }

    pub(super) fn release_node(&mut self, site: usize, life: u32, outputs: Vec<node_io::Output>) {
        if self.sites[site].life != life {
            return;
        }
        for output in outputs {
            match output {
                node_io::Output::Decided { ticket, decision, repeat, receipt } => {
                    self.answered(site, ticket, decision, repeat, receipt.as_deref());
                }
                node_io::Output::Refused(ticket, error) => self.refused(site, ticket, error),
                node_io::Output::Setting(ticket, done) => self.reported(site, ticket, done),
                node_io::Output::Balance(ticket, view) => self.purse_balance(ticket, view.ok()),
                node_io::Output::Purse(ticket, done) => self.purse_told(ticket, done),
                node_io::Output::PinGeneration(..)
                | node_io::Output::PinToShow(..)
                | node_io::Output::Status(..) => {}
                node_io::Output::Send(link, frame) => {
                    if self.sites[site].link == Some(link.0) {
                        self.send_up(site, link.0, &frame);
                    }
                }
                node_io::Output::CloseLink(link, reason) => {
                    if self.sites[site].link == Some(link.0) {
                        self.audit.say(self.now, || format!("{} closes: {reason}", self.site_name(site)));
                        self.closes_forged(link.0, Way::Down);
                        self.node_closes(link.0, &reason);
                    }
                }
            }
        }
    }

    pub(super) fn release_centre(&mut self, life: u32, outputs: Vec<centre_io::Output>) {
        if self.centre.life != life {
            return;
        }
        for output in outputs {
            match output {
                centre_io::Output::Reply(ticket, reply) => self.replied(ticket, reply),
                centre_io::Output::Send(link, frame) => {
                    if self.centre.links.get(&link.0) == Some(&true) {
                        self.send_down(link.0, &frame);
                    }
                }
                centre_io::Output::CloseLink(link, reason) => {
                    self.audit.say(self.now, || format!("centre closes link {}: {reason}", link.0));
                    self.closes_forged(link.0, Way::Up);
                    if let Some(takes) = self.centre.links.get_mut(&link.0) {
                        *takes = false;
                        self.centre_closes(link.0, &reason);
                    }
                }
            }
        }
    }

    /// What a building holds. Where its process is down, a copy of its disk is read, so that the disk stays as it is.
    pub(super) fn node_tables(&mut self, site: usize) -> Result<&mut NodeTables> {
        let host = &mut self.sites[site];
        if host.reader.is_none() {
            let disk = match host.core {
                Some(_) => host.disk.clone(),
                None => Disk::from_image(&host.disk.image()),
            };
            host.reader = Some(NodeTables::open(disk)?);
        }
        host.reader.as_mut().ok_or_else(|| anyhow!("just opened"))
    }

    /// What the centre holds; as [`World::node_tables`].
    pub(super) fn centre_tables(&mut self) -> Result<&mut CentreTables> {
        let host = &mut self.centre;
        if host.reader.is_none() {
            let disk = match host.core {
                Some(_) => host.disk.clone(),
                None => Disk::from_image(&host.disk.image()),
            };
            host.reader = Some(CentreTables::open(disk)?);
        }
        host.reader.as_mut().ok_or_else(|| anyhow!("just opened"))
    }

    pub(super) fn site_name(&self, site: usize) -> String {
        let host = &self.sites[site];
        format!("{} (node {}, site {site})", self.plan.buildings[host.building].name, host.identity.node)
    }
}
