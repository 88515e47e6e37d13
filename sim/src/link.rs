//! Both cores, as the binaries run them, on crash disks and a virtual link under a virtual clock.
//!
//! Nothing happens by itself: a test says which frame is delivered, when time passes, which link is cut, and which
//! process or disk dies at which moment. [`World`] keeps what terminals were told, and [`World::check`] compares that with
//! what both sides hold, by the invariants of [`invariants`].

pub mod invariants;
pub mod model;
mod network;
mod phones;
mod processes;
pub mod tables;
mod terminals;
mod wire;

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, ensure};
use ed25519_dalek::SigningKey;
use feiqian_node::core::NodeCore;
use feiqian_node::io as node_io;
use feiqian_protocol::campus::{Building, CampusConfig, Merchant, Policy, Terminal};
use feiqian_protocol::chain::hex;
use feiqian_protocol::code::SignedReceipt;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CampusId, CardNumber, InstitutionId, NodeId, NodeName, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::public_key::CentreKey;
use feiqian_protocol::time::{BusinessCalendar, Timestamp};
use feiqian_reconcile::core::ReconcileCore;
use feiqian_reconcile::io as centre_io;
use model::Model;
pub use model::{Answer, Request};
pub use phones::Phone;
use wire::Wire;
pub use wire::{Direction, Waiting};

use crate::vfs::Disk;

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
    /// What the buildings may write.
    pub role: Role,
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
            role: Role::Kiosk,
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
    /// True where its certificate has expired.
    pub expired: bool,
    core: Option<NodeCore>,
    reader: Option<tables::NodeTables>,
    opened_at: u64,
    wire: Option<Wire>,
    believes: Option<u64>,
}

struct Centre {
    identity: centre_io::Identity,
    /// As the nodes hold it.
    public_key: CentreKey,
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
    /// What buildings answered to changes of settings that nobody has asked for yet.
    settings: BTreeMap<node_io::Ticket, Result<node_io::SettingDone, node_io::SettingError>>,
    /// Receipts that terminals were given, also those given again.
    pub receipts: Vec<SignedReceipt>,
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
        let log_key = SigningKey::from_bytes(&[9; 32]);
        let centre = Centre {
            public_key: CentreKey::remembering(log_key.verifying_key()),
            identity: centre_io::Identity { institution: INSTITUTION, log_key },
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
            settings: BTreeMap::new(),
            receipts: Vec::new(),
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
            voucher_keys: self.voucher_keys(),
            hours: Vec::new(),
            holidays: Vec::new(),
            meals: Vec::new(),
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
            role: self.setup.role,
            lookup: lookup.clone(),
            secret,
        })?;
        let log_key_hex = hex(log_key.verifying_key().as_bytes());
        let reply =
            self.command(centre_io::Command::Enrol { lookup, log_key: log_key_hex, pin_key: None })?;
        let number_of = |field: &str| {
            reply[field].as_u64().ok_or_else(|| anyhow!("the answer to an enrolment has no {field}"))
        };
        Ok(node_io::Identity {
            institution: INSTITUTION,
            campus: CampusId(1),
            node: NodeId(u16::try_from(number_of("node")?)?),
            name,
            role: self.setup.role,
            incarnation: u32::try_from(number_of("incarnation")?)?,
            log_key,
            centre_key: self.centre.public_key.clone(),
        })
    }

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
        Ok(serde_json::from_value(self.command(centre_io::Command::Status {})?)?)
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
                node_io::Output::Decided { ticket, decision, repeat, receipt } => {
                    self.receipts.extend(receipt.map(|receipt| *receipt));
                    self.model.decided(ticket, decision, repeat)?;
                }
                node_io::Output::Refused(ticket, error) => self.model.refused(ticket, error)?,
                node_io::Output::Balance(..)
                | node_io::Output::PinGeneration(..)
                | node_io::Output::PinToShow(..)
                | node_io::Output::Purse(..) => {}
                node_io::Output::Setting(ticket, done) => {
                    self.settings.insert(ticket, done);
                }
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
        initial_pin: None,
        opened: None,
        valid_until: None,
    })
}

fn node_name(number: u16) -> NodeName {
    NodeName::new(format!("building-{number}")).expect("a number makes a name")
}

fn terminal_id(building: u16, terminal: u64) -> TerminalId {
    TerminalId::new(format!("t{building}-{terminal}")).expect("numbers make a name")
}
