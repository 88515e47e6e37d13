//! A centre and its nodes without anything between them: the shipping cores on disks in memory, frames delivered at once.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ed25519_dalek::{SigningKey, VerifyingKey};
use feiqian_node::core::NodeCore;
use feiqian_node::io as node_io;
use feiqian_protocol::campus::CampusConfig;
use feiqian_protocol::chain::hex;
use feiqian_protocol::code::{CheckedCode, Code, SignedReceipt};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::{CampusId, InstitutionId, LogId, NodeId, NodeName};
use feiqian_protocol::public_key::CentreKey;
use feiqian_protocol::tap::{Decision, TapRequest};
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::core::ReconcileCore;
use feiqian_reconcile::io as centre_io;

use crate::vfs::{Disk, Image};

/// The institution of every rig.
pub const INSTITUTION: InstitutionId = InstitutionId(1);

/// The number of the only voucher key of every rig.
pub const VOUCHER_KEY: u8 = 1;

/// Inputs of one step, as the shells bound it.
const INPUTS_PER_STEP: usize = 256;

/// Rounds of frames without any time passing: beyond it the cores talk in circles.
const ROUNDS_MAX: usize = 200_000;

/// How long an ask may take.
const SETTINGS: node_io::Settings = node_io::Settings { ask_deadline_ms: 300 };

/// What a terminal was told.
#[derive(Clone, Debug)]
pub struct Told {
    /// The decision.
    pub decision: Decision,
    /// The receipt of what a voucher paid.
    pub receipt: Option<Box<SignedReceipt>>,
}

/// What everything is on disk, and when: a rig goes on from it.
#[derive(Clone)]
pub struct Snapshot {
    centre: Image,
    nodes: Vec<(node_io::Identity, Image)>,
    now: Timestamp,
}

struct Node {
    identity: node_io::Identity,
    disk: Disk,
    core: NodeCore,
    link: Option<u64>,
    /// Frames for it.
    inbox: Vec<Frame>,
}

/// The cores and their clock.
pub struct Rig {
    centre_disk: Disk,
    centre: ReconcileCore,
    centre_key: CentreKey,
    voucher_key: VerifyingKey,
    /// Frames for it, by link.
    inbox: Vec<(u64, Frame)>,
    nodes: Vec<Node>,
    started: Timestamp,
    now: Timestamp,
    links: u64,
    tickets: u64,
    decisions: BTreeMap<u64, Told>,
    replies: BTreeMap<u64, centre_io::Reply>,
}

impl Rig {
    /// A centre that knows nothing yet.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn new(now: Timestamp) -> Result<Self> {
        let snapshot = Snapshot { centre: Image::default(), nodes: Vec::new(), now };
        Self::resume(&snapshot)
    }

    /// Goes on from a snapshot: nobody is connected.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn resume(snapshot: &Snapshot) -> Result<Self> {
        let centre_identity =
            centre_io::Identity { institution: INSTITUTION, log_key: SigningKey::from_bytes(&[9; 32]) };
        let centre_disk = Disk::from_image(&snapshot.centre);
        let centre = ReconcileCore::open(centre_disk.open("centre.db")?, centre_identity.clone())
            .context("opening the centre")?;
        let mut rig = Self {
            centre_disk,
            centre,
            voucher_key: centre_identity.voucher_key(VOUCHER_KEY).verifying_key(),
            centre_key: CentreKey::remembering(centre_identity.log_key.verifying_key()),
            inbox: Vec::new(),
            nodes: Vec::new(),
            started: snapshot.now,
            now: snapshot.now,
            links: 0,
            tickets: 0,
            decisions: BTreeMap::new(),
            replies: BTreeMap::new(),
        };
        for (identity, image) in &snapshot.nodes {
            rig.open(identity.clone(), Disk::from_image(image))?;
        }
        Ok(rig)
    }

    /// Everything as it is on disk. What is under way between the cores is not in it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            centre: self.centre_disk.image(),
            nodes: self.nodes.iter().map(|node| (node.identity.clone(), node.disk.image())).collect(),
            now: self.now,
        }
    }

    fn open(&mut self, identity: node_io::Identity, disk: Disk) -> Result<()> {
        let core =
            NodeCore::open(disk.open("node.db")?, identity.clone(), SETTINGS).context("opening a node")?;
        self.nodes.push(Node { identity, disk, core, link: None, inbox: Vec::new() });
        Ok(())
    }

    /// Publishes a campus.
    ///
    /// # Errors
    /// What the centre refuses.
    pub fn publish(&mut self, campus: &CampusConfig) -> Result<()> {
        let config = serde_json::to_value(campus)?;
        self.command(centre_io::Command::PublishCampus { config }).map(|_| ())
    }

    /// Enrols a building that takes payments and opens its node.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn enrol(&mut self, name: &NodeName) -> Result<()> {
        let number = self.nodes.len() as u8 + 1;
        let (secret, lookup) = (hex(&[number; 16]), hex(&[number; 32]));
        let role = Role::Pos;
        self.command(centre_io::Command::CreateEnrolment {
            name: name.clone(),
            role,
            lookup: lookup.clone(),
            secret,
        })?;
        let log_key = SigningKey::from_bytes(&[number; 32]);
        let key = hex(log_key.verifying_key().as_bytes());
        let reply = self.command(centre_io::Command::Enrol { lookup, log_key: key, pin_key: None })?;
        let node = reply["node"].as_u64().context("an enrolment names no node")?;
        let identity = node_io::Identity {
            institution: INSTITUTION,
            campus: CampusId(1),
            node: NodeId(u16::try_from(node)?),
            name: name.clone(),
            role,
            incarnation: 1,
            log_key,
            centre_key: self.centre_key.clone(),
        };
        self.open(identity, Disk::new())
    }

    /// The number of a building's node.
    pub fn node(&self, building: usize) -> NodeId {
        self.nodes[building].identity.node
    }

    /// The key that vouchers are verified by.
    pub const fn voucher_key(&self) -> VerifyingKey {
        self.voucher_key
    }

    /// True while a building is connected.
    pub fn is_connected(&self, building: usize) -> bool {
        self.nodes[building].link.is_some()
    }

    /// A code as a building's shell checks it.
    pub fn check(&self, building: usize, code: Code) -> CheckedCode {
        code.check(INSTITUTION, self.nodes[building].core.voucher_keys().1)
    }

    /// The centre's tables, for reading.
    pub fn tables(&self) -> &rusqlite::Connection {
        self.centre.connection()
    }

    /// The time.
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// Moves the clock on; timers that fall due are run with the next frames.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn advance(&mut self, to: Timestamp) -> Result<()> {
        ensure!(to >= self.now, "time goes back from {} to {}", self.now.0, to.0);
        self.now = to;
        Ok(())
    }

    fn mono_ms(&self) -> u64 {
        u64::try_from(self.now.ms_since(self.started)).unwrap_or(0)
    }

    /// Tells the centre something and gives its answer.
    ///
    /// # Errors
    /// What the centre refuses.
    pub fn command(&mut self, command: centre_io::Command) -> Result<serde_json::Value> {
        let replies = self.commands(vec![command])?;
        replies.into_iter().next().context("the centre gives no answer")
    }

    /// Tells the centre several things in as few steps as may be.
    ///
    /// # Errors
    /// What the centre refuses.
    pub fn commands(&mut self, commands: Vec<centre_io::Command>) -> Result<Vec<serde_json::Value>> {
        let replies = self.replies(commands)?.into_iter();
        replies.map(|reply| reply.map_err(|error| anyhow!("{}: {error}", error.code))).collect()
    }

    /// As [`Rig::commands`], where the centre may refuse.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn replies(&mut self, commands: Vec<centre_io::Command>) -> Result<Vec<centre_io::Reply>> {
        let first = self.tickets + 1;
        let mut inputs = Vec::new();
        for command in commands {
            self.tickets += 1;
            inputs.push(centre_io::Input::Command(centre_io::Ticket(self.tickets), command));
        }
        while !inputs.is_empty() {
            let rest = inputs.split_off(inputs.len().min(INPUTS_PER_STEP));
            self.step_centre(std::mem::replace(&mut inputs, rest))?;
        }
        let take = |ticket| self.replies.remove(&ticket).context("the centre gives no answer");
        (first..=self.tickets).map(take).collect()
    }

    /// Connects a building.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn connect(&mut self, building: usize) -> Result<()> {
        self.links += 1;
        let link = self.links;
        let node = &mut self.nodes[building];
        node.link = Some(link);
        let (id, incarnation) = (node.identity.node, node.identity.incarnation);
        let up =
            centre_io::Input::LinkUp { link: centre_io::LinkId(link), node: id, incarnation, expired: false };
        self.step_centre(vec![up])?;
        self.step_node(building, vec![node_io::Input::LinkUp(node_io::LinkId(link))])
    }

    /// Cuts a building off; both ends notice.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn cut(&mut self, building: usize) -> Result<()> {
        let Some(link) = self.nodes[building].link.take() else { return Ok(()) };
        self.nodes[building].inbox.clear();
        self.inbox.retain(|(of, _)| *of != link);
        self.step_centre(vec![centre_io::Input::LinkDown(centre_io::LinkId(link))])?;
        self.step_node(building, vec![node_io::Input::LinkDown(node_io::LinkId(link))])
    }

    /// Delivers frames until nothing is left to say.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn settle(&mut self) -> Result<()> {
        self.deliver(|_| true, |_| false)
    }

    /// As [`Rig::settle`], of what the nodes' ends get only what `to_node` lets through, and only until `done`.
    fn deliver(&mut self, to_node: impl Fn(&Frame) -> bool, done: impl Fn(&Self) -> bool) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            let mut quiet = true;
            for building in 0..self.nodes.len() {
                let mut frames = std::mem::take(&mut self.nodes[building].inbox);
                frames.retain(&to_node);
                let due = self.nodes[building].core.next_timer().is_some_and(|at| at <= self.mono_ms());
                let Some(link) = self.nodes[building].link.filter(|_| !frames.is_empty() || due) else {
                    continue;
                };
                quiet = false;
                let frame = |frame| node_io::Input::Frame(node_io::LinkId(link), frame);
                let mut inputs: Vec<_> = frames.into_iter().map(frame).collect();
                if due {
                    inputs.push(node_io::Input::Timer);
                }
                self.step_node(building, inputs)?;
            }
            let frames = std::mem::take(&mut self.inbox);
            let due = self.centre.next_timer().is_some_and(|at| at <= self.mono_ms());
            if !frames.is_empty() || due {
                quiet = false;
                let frame = |(link, frame)| centre_io::Input::Frame(centre_io::LinkId(link), frame);
                let mut inputs: Vec<_> = frames.into_iter().map(frame).collect();
                if due {
                    inputs.push(centre_io::Input::Timer);
                }
                self.step_centre(inputs)?;
            }
            if quiet || done(self) {
                return Ok(());
            }
        }
        bail!("the cores talk in circles")
    }

    /// Brings the accounts to the nodes and nothing else: no session is anchored, so nothing is granted yet.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn spread_accounts(&mut self) -> Result<()> {
        for building in 0..self.nodes.len() {
            self.connect(building)?;
        }
        let of_node = |log: LogId| log.as_shard().is_none();
        self.deliver(|frame| !matches!(frame, Frame::Entries(entries) if of_node(entries.log)), |_| false)?;
        for building in 0..self.nodes.len() {
            self.cut(building)?;
        }
        Ok(())
    }

    /// Connects every building that is cut off and takes in what it has, to the last entry; what goes down the links
    /// meanwhile is lost, which a test of what was spent does not need.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn collect(&mut self) -> Result<()> {
        for building in 0..self.nodes.len() {
            if self.nodes[building].link.is_none() {
                self.connect(building)?;
            }
        }
        let streams = |frame: &Frame| !matches!(frame, Frame::Entries(_));
        self.deliver(streams, |_| false)?;
        for building in 0..self.nodes.len() {
            let log = LogId::node(INSTITUTION, self.node(building)).key();
            let ingested: i64 = self
                .tables()
                .query_row("SELECT posted FROM logs WHERE log = ?1", [log], |row| row.get(0))
                .context("a log")?;
            let position = self.status(building)?.position;
            ensure!(
                ingested as u64 == position,
                "{ingested} of {position} entries of a building are ingested"
            );
        }
        Ok(())
    }

    /// How a building stands.
    ///
    /// # Errors
    /// What the core could not do.
    pub fn status(&mut self, building: usize) -> Result<node_io::Status> {
        self.tickets += 1;
        let now = self.node_now();
        let mut outputs = Vec::new();
        let input = node_io::Input::Status(node_io::Ticket(self.tickets));
        self.nodes[building].core.step(now, vec![input], &mut outputs)?;
        let status = outputs.into_iter().find_map(|output| match output {
            node_io::Output::Status(_, status) => Some(*status),
            _ => None,
        });
        status.context("a node gives no status")
    }

    /// Taps at a building, all of this moment; their decisions, in order.
    ///
    /// # Errors
    /// Where a core does not decide.
    pub fn taps(&mut self, taps: Vec<(usize, TapRequest)>) -> Result<Vec<Told>> {
        let first = self.tickets + 1;
        let mut inputs: BTreeMap<usize, Vec<node_io::Input>> = BTreeMap::new();
        for (building, request) in taps {
            self.tickets += 1;
            let tap = node_io::Input::Tap(node_io::Ticket(self.tickets), request);
            inputs.entry(building).or_default().push(tap);
        }
        let last = self.tickets;
        for (building, mut inputs) in inputs {
            while !inputs.is_empty() {
                let rest = inputs.split_off(inputs.len().min(INPUTS_PER_STEP));
                self.step_node(building, std::mem::replace(&mut inputs, rest))?;
            }
        }
        self.settle()?;
        if self.decisions.len() as u64 != last + 1 - first {
            // What still waits is decided at its deadline.
            self.now = self.now.plus_ms(i64::try_from(SETTINGS.ask_deadline_ms)?);
            for building in 0..self.nodes.len() {
                self.step_node(building, vec![node_io::Input::Timer])?;
            }
            self.settle()?;
        }
        let take = |ticket| self.decisions.remove(&ticket).context("a tap was not decided");
        (first..=last).map(take).collect()
    }

    fn node_now(&self) -> node_io::Now {
        let elapsed_ms = self.mono_ms();
        node_io::Now { mono_ms: elapsed_ms, wall: self.now, elapsed_ms }
    }

    fn step_node(&mut self, building: usize, inputs: Vec<node_io::Input>) -> Result<()> {
        let now = self.node_now();
        let mut outputs = Vec::new();
        let node = &mut self.nodes[building];
        node.core
            .step(now, inputs, &mut outputs)
            .with_context(|| format!("a step of {}", node.identity.name))?;
        for output in outputs {
            match output {
                node_io::Output::Decided { ticket, decision, receipt, .. } => {
                    self.decisions.insert(ticket.0, Told { decision, receipt });
                }
                node_io::Output::Send(link, frame) if node.link == Some(link.0) => {
                    self.inbox.push((link.0, frame));
                }
                node_io::Output::Send(..) => {}
                node_io::Output::CloseLink(_, why) => bail!("{} closes the link: {why}", node.identity.name),
                other => bail!("{} says {other:?}", node.identity.name),
            }
        }
        Ok(())
    }

    fn step_centre(&mut self, inputs: Vec<centre_io::Input>) -> Result<()> {
        let now = centre_io::Now { mono_ms: self.mono_ms(), wall: self.now, real: self.now };
        let mut outputs = Vec::new();
        self.centre.step(now, inputs, &mut outputs).context("a step of the centre")?;
        for output in outputs {
            match output {
                centre_io::Output::Reply(ticket, reply) => {
                    self.replies.insert(ticket.0, reply);
                }
                centre_io::Output::Send(link, frame) => {
                    if let Some(node) = self.nodes.iter_mut().find(|node| node.link == Some(link.0)) {
                        node.inbox.push(frame);
                    }
                }
                centre_io::Output::CloseLink(_, why) => bail!("the centre closes a link: {why}"),
            }
        }
        Ok(())
    }
}
