//! Both cores, as the binaries run them, on crash disks and a virtual link under a virtual clock.
//!
//! Nothing happens by itself: a test says which frame is delivered, when time passes, which link is cut, and which
//! process or disk dies at which moment. [`World`] keeps what terminals were told, and [`World::check`] compares that with
//! what both sides hold, by the invariants of [`invariants`].

pub mod invariants;
pub mod model;
pub mod tables;
mod wire;

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ed25519_dalek::SigningKey;
use feiqian_node::core::NodeCore;
use feiqian_node::io as node_io;
use feiqian_protocol::campus::{Building, CampusConfig, Merchant, Policy, Terminal};
use feiqian_protocol::chain::hex;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::{CampusId, CardNumber, InstitutionId, Key, NodeId, NodeName, TerminalId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessCalendar, Timestamp};
use feiqian_reconcile::core::ReconcileCore;
use feiqian_reconcile::io as centre_io;
use model::Model;
pub use model::{Answer, Request};
use wire::Wire;
pub use wire::{Direction, Waiting};

use crate::vfs::{Disk, Image};

/// The institution of every world.
pub const INSTITUTION: InstitutionId = InstitutionId(1);

/// When a world begins: 2022-11-07, 08:00 in China.
pub const START: Timestamp = Timestamp(1_667_779_200_000);

/// Steps that may follow one another without anything being delivered or any time passing: beyond it a core spins.
const STEPS_AT_REST_MAX: usize = 100_000;

/// What a world starts with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many buildings.
    pub nodes: u16,
    /// Cards, and what their accounts open with.
    pub accounts: Vec<(String, Fen)>,
    /// Grants and stand-in.
    pub policy: Policy,
    /// No-PIN limit of a purchase, and of a day.
    pub limits: (Fen, Fen),
    /// How long an ask may take.
    pub ask_deadline_ms: u64,
    /// Nodes commit without a sync each: a wrong setting, to show what it costs.
    pub lowered_sync: bool,
}

impl Default for Setup {
    /// Two buildings, one account with 50 yuan, no limit that matters.
    fn default() -> Self {
        Self {
            nodes: 2,
            accounts: vec![("c1".to_owned(), Fen::new(5_000))],
            policy: Policy::default(),
            limits: (Fen::new(1_000_000), Fen::new(5_000_000)),
            ask_deadline_ms: 300,
            lowered_sync: false,
        }
    }
}

/// Who learns at once that a link broke. Whoever does not goes on sending into the void.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Notice {
    /// Both ends.
    Both,
    /// The centre only.
    Centre,
    /// Nobody.
    Neither,
    /// The node only.
    Node,
}

/// A building (or a copy of one).
pub struct Site {
    /// Which building it is.
    pub building: u16,
    /// Who it is.
    pub identity: node_io::Identity,
    /// Its disk.
    pub disk: Disk,
    /// Milliseconds that its wall clock is ahead.
    pub skew_ms: i64,
    core: Option<NodeCore>,
    reader: Option<tables::NodeTables>,
    opened_at: u64,
    wire: Option<Wire>,
    believes: Option<u64>,
}

struct Centre {
    identity: centre_io::Identity,
    disk: Disk,
    core: Option<ReconcileCore>,
    reader: Option<tables::CentreTables>,
    opened_at: u64,
}

/// A centre, some buildings, and their terminals.
pub struct World {
    setup: Setup,
    centre: Centre,
    sites: Vec<Site>,
    /// What terminals, desks and channels did and were told.
    pub model: Model,
    /// Links that a core closed: the site, which end, and why.
    pub closed: Vec<(usize, &'static str, String)>,
    now_ms: u64,
    links: u64,
    tickets: u64,
    sequences: u64,
    steps_at_rest: usize,
}

impl World {
    /// Sets up the centre, opens the accounts, enrols the nodes, and starts them. Nobody is connected.
    ///
    /// # Errors
    /// Whatever a core could not do.
    pub fn new(setup: Setup) -> Result<Self> {
        let centre = Centre {
            identity: centre_io::Identity {
                institution: INSTITUTION,
                log_key: SigningKey::from_bytes(&[9; 32]),
            },
            disk: Disk::new(),
            core: None,
            reader: None,
            opened_at: 0,
        };
        let mut world = Self {
            setup,
            centre,
            sites: Vec::new(),
            model: Model::default(),
            closed: Vec::new(),
            now_ms: 1_000,
            links: 0,
            tickets: 0,
            sequences: 0,
            steps_at_rest: 0,
        };
        world.start_centre()?;
        let config = serde_json::to_value(world.campus())?;
        world.command(centre_io::Command::PublishCampus { config })?;
        let accounts =
            world.setup.accounts.iter().map(|(card, opening)| import(card, *opening, world.setup.limits));
        let accounts: Vec<_> = accounts.collect::<Result<_>>()?;
        for account in &accounts {
            world.model.opened(account.opening_fen);
        }
        world.command(centre_io::Command::ImportAccounts { accounts })?;
        for number in 1..=world.setup.nodes {
            let identity = world.enrol(number)?;
            world.add_site(number, identity, Disk::new())?;
        }
        Ok(world)
    }

    fn campus(&self) -> CampusConfig {
        let building = |number: u16| {
            let terminals = (1..=3).map(|terminal| Terminal {
                id: terminal_id(number, terminal),
                merchant: Some(number),
                groups: Vec::new(),
            });
            Building { node: node_name(number), terminals: terminals.collect() }
        };
        CampusConfig {
            institution: INSTITUTION,
            campus: CampusId(1),
            calendar: BusinessCalendar::CHINA,
            single_limit_fen: self.setup.limits.0,
            daily_limit_fen: self.setup.limits.1,
            policy: self.setup.policy.clone(),
            merchants: (1..=self.setup.nodes)
                .map(|id| Merchant { id, name: format!("merchant {id}"), tariff: BTreeMap::new() })
                .collect(),
            buildings: (1..=self.setup.nodes).map(building).collect(),
        }
    }

    /// Enrols (or enrols anew) building `number`; the identity is what its `join` would have stored.
    ///
    /// # Errors
    /// Where the centre refuses.
    pub fn enrol(&mut self, number: u16) -> Result<node_io::Identity> {
        self.tickets += 1;
        let seed = [number as u8, self.tickets as u8];
        let log_key = SigningKey::from_bytes(&std::array::from_fn(|index| seed[index % 2]));
        let secret = hex(&[self.tickets as u8; 16]);
        let lookup = hex(&[self.tickets as u8; 32]);
        let name = node_name(number);
        self.command(centre_io::Command::CreateEnrolment {
            name: name.clone(),
            role: Role::Kiosk,
            lookup: lookup.clone(),
            secret,
        })?;
        let log_key_hex = hex(log_key.verifying_key().as_bytes());
        let reply = self.command(centre_io::Command::Enrol { lookup, log_key: log_key_hex })?;
        let number_of = |field: &str| {
            reply[field].as_u64().ok_or_else(|| anyhow!("the answer to an enrolment has no {field}"))
        };
        Ok(node_io::Identity {
            institution: INSTITUTION,
            campus: CampusId(1),
            node: NodeId(u16::try_from(number_of("node")?)?),
            name,
            role: Role::Kiosk,
            incarnation: u32::try_from(number_of("incarnation")?)?,
            log_key,
            centre_key: self.centre.identity.log_key.verifying_key(),
        })
    }

    // Processes and disks.

    /// Starts a building's process (again).
    ///
    /// # Errors
    /// Where the core does not open.
    pub fn start(&mut self, site: usize) -> Result<()> {
        let settings = node_io::Settings { ask_deadline_ms: self.setup.ask_deadline_ms };
        let now_ms = self.now_ms;
        let site = &mut self.sites[site];
        let connection = if self.setup.lowered_sync {
            site.disk.open_lowered("node.db")?
        } else {
            site.disk.open("node.db")?
        };
        site.core =
            Some(NodeCore::open(connection, site.identity.clone(), settings).context("opening a node")?);
        site.reader = None;
        site.opened_at = now_ms;
        Ok(())
    }

    /// Starts the centre's process (again).
    ///
    /// # Errors
    /// Where the core does not open.
    pub fn start_centre(&mut self) -> Result<()> {
        let connection = self.centre.disk.open("centre.db")?;
        let identity = self.centre.identity.clone();
        self.centre.core = Some(ReconcileCore::open(connection, identity).context("opening the centre")?);
        self.centre.reader = None;
        self.centre.opened_at = self.now_ms;
        Ok(())
    }

    /// Kills a building's process; its disk keeps what was written.
    ///
    /// # Errors
    /// What the centre meets when it hears of it.
    pub fn crash(&mut self, site: usize) -> Result<()> {
        self.sites[site].disk.kill();
        self.node_died(site)
    }

    /// Cuts a building's power; its disk keeps what was synced.
    ///
    /// # Errors
    /// What the centre meets when it hears of it.
    pub fn power_cut(&mut self, site: usize, seed: u64) -> Result<()> {
        self.sites[site].disk.power_cut(seed);
        self.node_died(site)
    }

    /// Kills the centre's process.
    ///
    /// # Errors
    /// What the nodes meet when they hear of it.
    pub fn crash_centre(&mut self) -> Result<()> {
        self.centre.disk.kill();
        self.centre_died()
    }

    /// Cuts the centre's power.
    ///
    /// # Errors
    /// What the nodes meet when they hear of it.
    pub fn power_cut_centre(&mut self, seed: u64) -> Result<()> {
        self.centre.disk.power_cut(seed);
        self.centre_died()
    }

    fn node_died(&mut self, site: usize) -> Result<()> {
        self.sites[site].core = None;
        self.sites[site].reader = None;
        self.sites[site].believes = None;
        self.model.forget_waiting(site);
        self.cut(site, Notice::Centre)
    }

    fn centre_died(&mut self) -> Result<()> {
        self.centre.core = None;
        self.centre.reader = None;
        for site in 0..self.sites.len() {
            self.cut(site, Notice::Node)?;
        }
        Ok(())
    }

    /// A copy of a building's disk as it is.
    pub fn image(&self, site: usize) -> Image {
        self.sites[site].disk.image()
    }

    /// Puts an older copy of its disk into a building that is down, and starts it.
    ///
    /// # Errors
    /// Where the core does not open.
    pub fn restore(&mut self, site: usize, image: &Image) -> Result<()> {
        self.crash(site)?;
        self.sites[site].disk.restore(image);
        self.model.copied();
        self.start(site)
    }

    /// Starts a second process of the same building on a copy of its disk; returns its site.
    ///
    /// # Errors
    /// Where the core does not open.
    pub fn clone_site(&mut self, site: usize, image: &Image) -> Result<usize> {
        self.model.copied();
        let (building, identity) = (self.sites[site].building, self.sites[site].identity.clone());
        self.add_site(building, identity, Disk::from_image(image))
    }

    /// Starts a process with an identity from [`World::enrol`] on a disk; returns its site.
    ///
    /// # Errors
    /// Where the core does not open.
    pub fn add_site(&mut self, building: u16, identity: node_io::Identity, disk: Disk) -> Result<usize> {
        self.sites.push(Site {
            building,
            identity,
            disk,
            skew_ms: 0,
            core: None,
            reader: None,
            opened_at: 0,
            wire: None,
            believes: None,
        });
        let site = self.sites.len() - 1;
        self.start(site)?;
        Ok(site)
    }

    // Links.

    /// Connects a building to the centre; an older connection is given up by both ends when the new one comes.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn connect(&mut self, site: usize) -> Result<()> {
        ensure!(self.is_up(site) && self.centre.core.is_some(), "both ends must run");
        self.links += 1;
        let link = self.links;
        self.sites[site].wire = Some(Wire::new(link));
        self.sites[site].believes = Some(link);
        let identity = &self.sites[site].identity;
        let (node, incarnation) = (identity.node, identity.incarnation);
        self.step_centre(vec![centre_io::Input::LinkUp {
            link: centre_io::LinkId(link),
            node,
            incarnation,
        }])?;
        self.step_node(site, vec![node_io::Input::LinkUp(node_io::LinkId(link))])
    }

    /// Breaks a link; everything under way is lost.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn cut(&mut self, site: usize, notice: Notice) -> Result<()> {
        let Some(wire) = self.sites[site].wire.take() else {
            return Ok(());
        };
        if matches!(notice, Notice::Both | Notice::Centre) && self.centre.core.is_some() {
            self.step_centre(vec![centre_io::Input::LinkDown(centre_io::LinkId(wire.link))])?;
        }
        if matches!(notice, Notice::Both | Notice::Node) {
            self.notice(site)?;
        }
        Ok(())
    }

    /// A building learns that its link is gone (its idle timeout).
    ///
    /// # Errors
    /// What the core could not do.
    pub fn notice(&mut self, site: usize) -> Result<()> {
        match self.sites[site].believes.take() {
            Some(link) if self.is_up(site) => {
                self.step_node(site, vec![node_io::Input::LinkDown(node_io::LinkId(link))])
            }
            _ => Ok(()),
        }
    }

    /// Frames that wait for delivery, over all links.
    pub fn waiting(&self) -> Vec<Waiting> {
        let of = |(site, node): (usize, &Site)| {
            node.wire.as_ref().map(|wire| wire.waiting(site)).unwrap_or_default()
        };
        self.sites.iter().enumerate().flat_map(of).collect()
    }

    /// Delivers one frame.
    ///
    /// # Errors
    /// What the receiver could not do.
    pub fn deliver(&mut self, frame: Waiting) -> Result<()> {
        let Some(wire) = &mut self.sites[frame.site].wire else {
            bail!("no link");
        };
        let link = wire.link;
        let bytes = wire.take(frame).context("no such frame")?;
        self.hand_over(frame, link, &bytes)
    }

    /// Delivers a copy of a frame and leaves the frame where it is: it comes twice.
    ///
    /// # Errors
    /// What the receiver could not do.
    pub fn deliver_copy(&mut self, frame: Waiting) -> Result<()> {
        let Some(wire) = &self.sites[frame.site].wire else {
            bail!("no link");
        };
        let bytes = wire.peek(frame).context("no such frame")?.to_vec();
        self.hand_over(frame, wire.link, &bytes)
    }

    /// Delivers whatever `which` names until none of it waits.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn deliver_where(&mut self, which: impl Fn(&Waiting) -> bool) -> Result<()> {
        while let Some(frame) = self.waiting().into_iter().find(&which) {
            self.deliver(frame)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, frame: Waiting, link: u64, bytes: &[u8]) -> Result<()> {
        let decoded = Frame::from_bytes(bytes)?;
        match frame.direction {
            Direction::Up => {
                self.step_centre(vec![centre_io::Input::Frame(centre_io::LinkId(link), decoded)])
            }
            Direction::Down => {
                self.step_node(frame.site, vec![node_io::Input::Frame(node_io::LinkId(link), decoded)])
            }
        }
    }

    /// Delivers everything, in an order that does not depend on anything but the world, until nothing waits.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn deliver_all(&mut self) -> Result<()> {
        while let Some(first) = self.waiting().first() {
            self.deliver(*first)?;
        }
        Ok(())
    }

    // Time.

    /// Milliseconds since the world began.
    pub const fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The wall clock of the centre.
    pub const fn wall(&self) -> Timestamp {
        START.plus_ms(self.now_ms as i64)
    }

    /// Lets time pass; timers ring in order, frames stay where they are.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn advance(&mut self, ms: u64) -> Result<()> {
        let until = self.now_ms + ms;
        while let Some((at, whose)) = self.next_timer().filter(|(at, _)| *at <= until) {
            if at > self.now_ms {
                self.now_ms = at;
                self.steps_at_rest = 0;
            }
            match whose {
                Some(site) => self.step_node(site, vec![node_io::Input::Timer])?,
                None => self.step_centre(vec![centre_io::Input::Timer])?,
            }
        }
        self.now_ms = until;
        self.steps_at_rest = 0;
        Ok(())
    }

    /// Lets time pass in steps, delivering everything between them.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn run(&mut self, ms: u64) -> Result<()> {
        let until = self.now_ms + ms;
        self.deliver_all()?;
        while self.now_ms < until {
            let next = self.next_timer().map_or(until, |(at, _)| at.clamp(self.now_ms + 1, until));
            self.advance(next - self.now_ms)?;
            self.deliver_all()?;
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<(u64, Option<usize>)> {
        let centre = self.centre.core.as_ref().and_then(ReconcileCore::next_timer);
        let centre = centre.map(|at| (at + self.centre.opened_at, None));
        let of = |(index, site): (usize, &Site)| {
            Some((site.core.as_ref()?.next_timer()? + site.opened_at, Some(index)))
        };
        self.sites.iter().enumerate().filter_map(of).chain(centre).min()
    }

    // Terminals, desks, channels.

    /// A card is held to a terminal of a building; the answer, where there is one yet, is [`World::answer`].
    ///
    /// # Errors
    /// What the core could not do.
    pub fn tap(&mut self, site: usize, card: &str, fen: i64) -> Result<Request> {
        self.sequences += 1;
        let terminal = terminal_id(self.sites[site].building, 1 + self.sequences % 3);
        let request = Request::tap(site, terminal, self.sequences, card, Fen::new(fen))?;
        self.submit(&request)?;
        Ok(request)
    }

    /// Taps, and lets time pass until there is an answer (the deadline of asks bounds it).
    ///
    /// # Errors
    /// What a core could not do, or where there is none.
    pub fn tap_and_wait(&mut self, site: usize, card: &str, fen: i64) -> Result<Answer> {
        let request = self.tap(site, card, fen)?;
        self.run(self.setup.ask_deadline_ms + 1_000)?;
        self.answer(&request).cloned().context("no answer")
    }

    /// Makes a connected building hold at least this much unspent right, by a tap that is reversed.
    ///
    /// # Errors
    /// Where it does not get it.
    pub fn hold(&mut self, site: usize, card: &str, fen: i64) -> Result<()> {
        let tap = self.tap(site, card, fen)?;
        self.run(self.setup.ask_deadline_ms + 1_000)?;
        let answer = self.answer(&tap).cloned();
        ensure!(answer.and_then(|answer| answer.approved()) == Some(Fen::new(fen)), "no right for {fen}");
        self.reverse(&tap, None)?;
        self.run(1_000)
    }

    /// Unspent right of an account's cash at a building.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn right_at(&mut self, site: usize, card: &str) -> Result<Fen> {
        let account = self.account(card)?;
        let rows = self.node_tables(site)?.rows()?;
        Ok(rows.get(&(account, Wallet::Cash)).map(|row| row.unspent).unwrap_or_default())
    }

    /// A terminal wants a tap of its own undone, whole or in part.
    ///
    /// # Errors
    /// What the core could not do.
    pub fn reverse(&mut self, tap: &Request, fen: Option<i64>) -> Result<Request> {
        self.sequences += 1;
        let request = Request::reversal(tap, self.sequences, fen.map(Fen::new))?;
        self.submit(&request)?;
        Ok(request)
    }

    /// Makes the key of a tap known without sending it, so that something may overtake it.
    ///
    /// # Errors
    /// Where the card has no valid number.
    pub fn hold_back(&mut self, site: usize, card: &str, fen: i64) -> Result<Request> {
        self.sequences += 1;
        let terminal = terminal_id(self.sites[site].building, 1);
        Request::tap(site, terminal, self.sequences, card, Fen::new(fen))
    }

    /// Sends a request, for the first time or again.
    ///
    /// # Errors
    /// What the core could not do.
    pub fn submit(&mut self, request: &Request) -> Result<()> {
        self.tickets += 1;
        let ticket = node_io::Ticket(self.tickets);
        self.model.sent(ticket, request);
        if !self.is_up(request.site) {
            self.model.forget_waiting(request.site);
            return Ok(());
        }
        self.step_node(request.site, vec![request.input(ticket)])
    }

    /// Sends several requests to one building, which takes them in one step.
    ///
    /// # Errors
    /// What the core could not do.
    pub fn submit_together(&mut self, site: usize, requests: &[Request]) -> Result<()> {
        let mut inputs = Vec::new();
        for request in requests {
            self.tickets += 1;
            let ticket = node_io::Ticket(self.tickets);
            self.model.sent(ticket, request);
            inputs.push(request.input(ticket));
        }
        if !self.is_up(site) {
            self.model.forget_waiting(site);
            return Ok(());
        }
        self.step_node(site, inputs)
    }

    /// What a request was told.
    pub fn answer(&self, request: &Request) -> Option<&Answer> {
        self.model.answer(request)
    }

    /// An operator or channel wants something of the centre.
    ///
    /// # Errors
    /// What the centre says, or where it died over it.
    pub fn command(&mut self, command: centre_io::Command) -> Result<serde_json::Value> {
        let credit = match &command {
            centre_io::Command::Topup { amount_fen, key, .. } => {
                self.model.crediting(key, *amount_fen);
                Some(key.clone())
            }
            _ => None,
        };
        self.tickets += 1;
        let ticket = centre_io::Ticket(self.tickets);
        let replies = self.step_centre_for_replies(vec![centre_io::Input::Command(ticket, command)])?;
        let reply = replies.into_iter().find(|(of, _)| *of == ticket).context("the centre gave no answer")?;
        let reply = reply.1.map_err(|error| anyhow!("{}: {error}", error.code))?;
        if let Some(key) = credit {
            self.model.credited(&key);
        }
        Ok(reply)
    }

    /// Tops an account up.
    ///
    /// # Errors
    /// What the centre says.
    pub fn top_up(&mut self, card: &str, fen: i64, key: &str) -> Result<()> {
        self.command(centre_io::Command::Topup {
            card: CardNumber::new(card)?,
            amount_fen: Fen::new(fen),
            wallet: Wallet::Cash,
            channel: Key::new("counter")?,
            key: Key::new(key)?,
        })?;
        Ok(())
    }

    // Steps.

    /// True where a building's process runs.
    pub fn is_up(&self, site: usize) -> bool {
        self.sites[site].core.is_some()
    }

    /// True where the centre's process runs.
    pub const fn is_centre_up(&self) -> bool {
        self.centre.core.is_some()
    }

    /// True where a link stands.
    pub fn is_connected(&self, site: usize) -> bool {
        self.sites[site].wire.is_some()
    }

    /// How many buildings there are, copies included.
    pub fn sites(&self) -> usize {
        self.sites.len()
    }

    /// A building.
    pub fn site(&self, site: usize) -> &Site {
        &self.sites[site]
    }

    /// A building, to turn its clock.
    pub fn site_mut(&mut self, site: usize) -> &mut Site {
        &mut self.sites[site]
    }

    /// The centre's disk.
    pub const fn centre_disk(&self) -> &Disk {
        &self.centre.disk
    }

    /// What the world started with.
    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// How a building stands.
    ///
    /// # Errors
    /// What the core could not do.
    pub fn node_status(&mut self, site: usize) -> Result<node_io::Status> {
        self.tickets += 1;
        let ticket = node_io::Ticket(self.tickets);
        self.step_node(site, vec![node_io::Input::Status(ticket)])?;
        self.model.take_status(ticket).context("no status")
    }

    /// How the centre stands.
    ///
    /// # Errors
    /// What the centre says.
    pub fn centre_status(&mut self) -> Result<centre_io::Status> {
        Ok(serde_json::from_value(self.command(centre_io::Command::Status)?)?)
    }

    fn at_rest(&mut self) -> Result<()> {
        self.steps_at_rest += 1;
        ensure!(self.steps_at_rest < STEPS_AT_REST_MAX, "a core spins: no time passes");
        Ok(())
    }

    /// One step of a node. Where its disk ended meanwhile (as planned), it is down afterwards and nothing leaves it.
    ///
    /// # Errors
    /// Where the step failed though the disk is sound, or an answer contradicts an earlier one.
    pub fn step_node(&mut self, index: usize, inputs: Vec<node_io::Input>) -> Result<()> {
        self.at_rest()?;
        let elapsed_ms = self.now_ms - self.sites[index].opened_at;
        let wall = self.wall().plus_ms(self.sites[index].skew_ms);
        let now = node_io::Now { mono_ms: elapsed_ms, wall, elapsed_ms };
        let site = &mut self.sites[index];
        let Some(core) = &mut site.core else {
            return Ok(());
        };
        let endings = site.disk.counters().endings;
        let mut outputs = Vec::new();
        if let Err(error) = core.step(now, inputs, &mut outputs) {
            if site.disk.counters().endings == endings {
                return Err(anyhow!(error)).with_context(|| format!("a step of site {index}"));
            }
            return self.node_died(index);
        }
        if site.disk.counters().endings != endings {
            return self.node_died(index);
        }
        for output in outputs {
            match output {
                node_io::Output::Decided { ticket, decision, repeat } => {
                    self.model.decided(ticket, decision, repeat)?;
                }
                node_io::Output::Refused(ticket, error) => self.model.refused(ticket, error)?,
                node_io::Output::Balance(..) => {}
                node_io::Output::Status(ticket, status) => self.model.status(ticket, *status),
                node_io::Output::Send(link, frame) => {
                    if let Some(wire) = &mut self.sites[index].wire
                        && wire.link == link.0
                    {
                        wire.push(Direction::Up, &frame);
                    }
                }
                node_io::Output::CloseLink(link, why) => self.close(index, link.0, "node", why)?,
            }
        }
        Ok(())
    }

    /// One step of the centre; as [`World::step_node`].
    ///
    /// # Errors
    /// Where the step failed though the disk is sound.
    pub fn step_centre(&mut self, inputs: Vec<centre_io::Input>) -> Result<()> {
        self.step_centre_for_replies(inputs).map(|_| ())
    }

    fn step_centre_for_replies(
        &mut self,
        inputs: Vec<centre_io::Input>,
    ) -> Result<Vec<(centre_io::Ticket, centre_io::Reply)>> {
        self.at_rest()?;
        let wall = self.wall();
        let now = centre_io::Now { mono_ms: self.now_ms - self.centre.opened_at, wall, real: wall };
        let mut replies = Vec::new();
        let Some(core) = &mut self.centre.core else {
            return Ok(replies);
        };
        let endings = self.centre.disk.counters().endings;
        let mut outputs = Vec::new();
        if let Err(error) = core.step(now, inputs, &mut outputs) {
            if self.centre.disk.counters().endings == endings {
                return Err(anyhow!(error)).context("a step of the centre");
            }
            self.centre_died()?;
            return Ok(replies);
        }
        if self.centre.disk.counters().endings != endings {
            self.centre_died()?;
            return Ok(replies);
        }
        for output in outputs {
            match output {
                centre_io::Output::Reply(ticket, reply) => replies.push((ticket, reply)),
                centre_io::Output::Send(link, frame) => {
                    let wire = self.sites.iter_mut().filter_map(|site| site.wire.as_mut());
                    if let Some(wire) = wire.into_iter().find(|wire| wire.link == link.0) {
                        wire.push(Direction::Down, &frame);
                    }
                }
                centre_io::Output::CloseLink(link, why) => {
                    let of = |site: &Site| site.wire.as_ref().is_some_and(|wire| wire.link == link.0);
                    if let Some(site) = self.sites.iter().position(of) {
                        self.close(site, link.0, "centre", why)?;
                    }
                }
            }
        }
        Ok(replies)
    }

    fn close(&mut self, site: usize, link: u64, end: &'static str, why: String) -> Result<()> {
        self.closed.push((site, end, why));
        let stands = self.sites[site].wire.as_ref().is_some_and(|wire| wire.link == link);
        if stands { self.cut(site, Notice::Both) } else { Ok(()) }
    }
}

fn import(card: &str, opening: Fen, limits: (Fen, Fen)) -> Result<centre_io::ImportedAccount> {
    Ok(centre_io::ImportedAccount {
        card: CardNumber::new(card)?,
        patron_class: "student".to_owned(),
        opening_fen: opening,
        subsidy_fen: Fen::ZERO,
        single_limit_fen: Some(limits.0),
        daily_limit_fen: Some(limits.1),
        groups: Vec::new(),
    })
}

fn node_name(number: u16) -> NodeName {
    NodeName::new(format!("building-{number}")).expect("a number makes a name")
}

fn terminal_id(building: u16, terminal: u64) -> TerminalId {
    TerminalId::new(format!("t{building}-{terminal}")).expect("numbers make a name")
}
