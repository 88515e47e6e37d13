//! The machines of a run: the centre, the nodes, their disks, clocks and keys.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ed25519_dalek::SigningKey;
use feiqian_node::http::auth::TerminalSecret;
use feiqian_node::identity::NodeFiles;
use feiqian_node::io as node_io;
use feiqian_protocol::chain::hex;
use feiqian_protocol::enrol::{EnrolRequest, Role, SealedEnrolRequest};
use feiqian_protocol::ids::NodeName;
use feiqian_reconcile::authority::{self, Authority};
use feiqian_reconcile::io as centre_io;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::clock::{HostClock, Time};
use super::network::Network;
use super::process::{CentreProcess, CentreStart, News, NewsDesk, NodeProcess, NodeStart, seed_bytes};
use crate::plan::{Account, INSTITUTION, Plan};
use crate::seed::Seed;
use crate::vfs::Disk;

/// Accounts that one import opens.
const IMPORT_MAX: usize = 1_000;

/// A machine in a building, with its process where one runs.
pub struct Site {
    /// Which building: an index into the plan's.
    pub building: usize,
    /// Its address.
    pub machine: IpAddr,
    /// Its disk.
    pub disk: Disk,
    /// Its wall clock.
    pub clock: HostClock,
    /// Its data directory.
    pub files: Arc<NodeFiles>,
    /// The running process, and how news name it.
    pub process: Option<(u64, NodeProcess)>,
}

/// The centre's machine.
pub struct Centre {
    /// Its disk.
    pub disk: Disk,
    /// Its wall clock.
    pub clock: HostClock,
    /// True where its disk was put back from a copy, and it has not run on that yet.
    pub restored: bool,
    /// Who it is.
    pub identity: centre_io::Identity,
    /// The running process, and how news name it.
    pub process: Option<(u64, CentreProcess)>,
    authority: Arc<Authority>,
    _keys: TempDir,
}

/// All machines.
pub struct Campus {
    /// True time.
    pub time: Time,
    /// What connects them.
    pub network: Network,
    /// The centre.
    pub centre: Centre,
    /// The nodes; first those of the plan's buildings, in their order.
    pub sites: Vec<Site>,
    chance: Seed,
    news: NewsDesk,
    processes: u64,
    idle_timeout: Duration,
    ask_deadline_ms: u64,
    document_changes_max: u64,
}

impl Campus {
    /// The machines of a plan, before anything runs; and where news of their processes come.
    ///
    /// # Errors
    /// Where keys cannot be made.
    pub fn new(
        plan: &Plan,
        time: Time,
        network: Network,
        mut chance: Seed,
    ) -> Result<(Self, mpsc::UnboundedReceiver<(u64, News)>)> {
        let keys = tempfile::tempdir().context("a directory for the keys of the centre")?;
        Authority::create(keys.path(), INSTITUTION, plan.timing.start)?;
        // What it signs is on disk and on the wire, so that it must be the same in every run.
        let log_key = hex(&seed_bytes(&mut chance));
        authority::write_private(keys.path(), "log.key", log_key.as_bytes())?;
        let authority = Arc::new(Authority::open(keys.path(), plan.timing.start)?);
        let log_key = authority.log_key().clone();
        let identity = centre_io::Identity { institution: INSTITUTION, log_key };
        let (news, read) = mpsc::unbounded_channel();
        let centre = Centre {
            disk: Disk::new(),
            clock: HostClock::new(time),
            restored: false,
            identity,
            process: None,
            authority,
            _keys: keys,
        };
        let campus = Self {
            time,
            network,
            centre,
            sites: Vec::new(),
            chance,
            news,
            processes: 0,
            idle_timeout: Duration::from_millis(plan.timing.idle_timeout_ms),
            ask_deadline_ms: plan.timing.ask_deadline_ms,
            document_changes_max: plan.document_changes_max(),
        };
        Ok((campus, read))
    }

    /// Starts the centre.
    ///
    /// # Errors
    /// Where its keys do not make TLS.
    pub fn start_centre(&mut self) -> Result<()> {
        self.processes += 1;
        let start = CentreStart {
            number: self.processes,
            disk: &self.centre.disk,
            restored: std::mem::take(&mut self.centre.restored),
            identity: &self.centre.identity,
            authority: &self.centre.authority,
            clock: &self.centre.clock,
            idle_timeout: self.idle_timeout,
            document_changes_max: self.document_changes_max,
        };
        let process = CentreProcess::start(start, &self.network, &mut self.chance, &self.news)?;
        self.centre.process = Some((self.processes, process));
        Ok(())
    }

    /// Starts a node.
    ///
    /// # Errors
    /// Where its keys do not make TLS.
    pub fn start_node(&mut self, site: usize) -> Result<()> {
        self.processes += 1;
        let site = &mut self.sites[site];
        let start = NodeStart {
            number: self.processes,
            machine: site.machine,
            disk: &site.disk,
            files: &site.files,
            clock: &site.clock,
            ask_deadline_ms: self.ask_deadline_ms,
            idle_timeout: self.idle_timeout,
        };
        let process = NodeProcess::start(start, &self.network, &mut self.chance, &self.news)?;
        site.process = Some((self.processes, process));
        Ok(())
    }

    /// Puts a machine into a building; returns its site.
    pub fn add_site(&mut self, building: usize, files: Arc<NodeFiles>, disk: Disk) -> usize {
        let machine = self.network.add_machine(building);
        let clock = HostClock::new(self.time);
        self.sites.push(Site { building, machine, disk, clock, files, process: None });
        self.sites.len() - 1
    }

    /// What is needed to enrol a building; see [`Enrolment::run`].
    ///
    /// # Errors
    /// Where the centre does not run.
    pub fn enrolment(&mut self, name: &NodeName, role: Role) -> Result<Enrolment> {
        let (_, process) = self.centre.process.as_ref().context("the centre does not run")?;
        let core = process.core().context("the centre does not run")?;
        let secret: [u8; 16] = std::array::from_fn(|_| self.chance.draw() as u8);
        let log_key = SigningKey::from_bytes(&seed_bytes(&mut self.chance));
        let terminal_secret = seed_bytes(&mut self.chance);
        Ok(Enrolment {
            name: name.clone(),
            role,
            core,
            desk: process.desk(),
            authority: self.centre.authority.clone(),
            clock: self.centre.clock.clone(),
            secret,
            log_key,
            terminal_secret,
        })
    }
}

/// A building that is being enrolled.
pub struct Enrolment {
    name: NodeName,
    role: Role,
    core: feiqian_reconcile::driver::CoreHandle,
    desk: Arc<feiqian_reconcile::enrol::Desk>,
    authority: Arc<Authority>,
    clock: HostClock,
    secret: [u8; 16],
    log_key: SigningKey,
    terminal_secret: [u8; 32],
}

impl Enrolment {
    /// Makes a code, and has the desk turn it into an identity; the data directory is what `join` would have stored.
    ///
    /// # Errors
    /// Where the centre refuses, or is gone.
    pub async fn run(self) -> Result<NodeFiles> {
        let code = self.authority.code(self.secret);
        let lookup = hex(&code.lookup());
        let (name, role, secret) = (self.name.clone(), self.role, hex(&self.secret));
        let create = centre_io::Command::CreateEnrolment { name, role, lookup, secret };
        self.core.command(create).await.map_err(|error| anyhow!("{}: {error}", error.code))?;
        let tls_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate_request = CertificateParams::default().serialize_request(&tls_key)?;
        let request = EnrolRequest {
            lookup: code.lookup(),
            certificate_request: certificate_request.der().to_vec().into(),
            log_key: self.log_key.verifying_key().to_bytes(),
            pin_key: None,
        };
        let sealed = SealedEnrolRequest { mac: code.mac(&request), request };
        let enrolled =
            self.desk.enrol(&sealed, self.clock.read()).await.map_err(|error| anyhow!("{error}"))?;
        let centre_key = ed25519_dalek::VerifyingKey::from_bytes(&enrolled.centre_log_key)?;
        Ok(NodeFiles {
            identity: node_io::Identity {
                institution: enrolled.institution,
                campus: enrolled.campus,
                node: enrolled.node,
                name: enrolled.name,
                role: enrolled.role,
                incarnation: enrolled.incarnation,
                log_key: self.log_key,
                centre_key: centre_key.into(),
            },
            tls_key: PrivateKeyDer::from(tls_key),
            certificate: CertificateDer::from(enrolled.certificate.to_vec()),
            ca: CertificateDer::from(enrolled.ca.to_vec()),
            terminal_secret: TerminalSecret::new(self.terminal_secret),
            pin_key: None,
        })
    }
}

/// The commands that open accounts.
pub fn imports(accounts: &[Account]) -> impl Iterator<Item = centre_io::Command> {
    accounts.chunks(IMPORT_MAX).map(|accounts| {
        let import = |account: &Account| centre_io::ImportedAccount {
            card: account.card.clone(),
            patron_class: account.patron_class.clone(),
            opening_fen: account.opening,
            subsidy_fen: account.subsidy,
            single_limit_fen: account.single_limit,
            daily_limit_fen: account.daily_limit,
            groups: account.groups.clone(),
            initial_pin: None,
            opened: None,
            valid_until: account.valid_until,
        };
        centre_io::Command::ImportAccounts { accounts: accounts.iter().map(import).collect() }
    })
}
