//! From an empty directory to a campus that serves: the same commands that an operator types.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use feiqian_protocol::campus::Mode;
use feiqian_protocol::ids::TerminalId;
use feiqian_protocol::time::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;

use super::layout::Layout;
use super::process::{NODE, Process, RECONCILE, run_to_end};
use super::random::Random;
use super::relay::Relay;
use super::terminal::{Counter, Terminal};
use super::workload::{Site, Workload};

/// One machine carries the whole campus here, and deadlines are real: an ask may take longer than on a controller of its own.
const ASK_DEADLINE_MS: u64 = 2_000;
/// A cut is noticed after this much silence.
const IDLE_TIMEOUT_MS: u64 = 1_000;
/// Ports are taken below those that the kernel gives out, so that a restarted process finds its own free.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A building's node, its link and its terminals.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its process.
    pub process: Process,
    /// Its link to the centre.
    pub relay: Relay,
    /// Its terminals.
    pub terminals: BTreeMap<TerminalId, Arc<Mutex<Terminal>>>,
}

/// All processes.
pub struct Campus {
    /// The centre's.
    pub centre: Process,
    /// The nodes, in the order of the workload's buildings.
    pub nodes: Vec<Node>,
}

/// Sets a campus up and starts it with the wall clock at `now`.
///
/// # Errors
/// Where a step fails, with what it complained of.
pub async fn set_up(layout: &Layout, workload: &Workload, mode: Mode, now: Timestamp) -> Result<Campus> {
    let campus_file = layout.file("campus.toml");
    std::fs::write(&campus_file, toml::to_string(&workload.campus(mode))?)?;
    let data = layout.centre();
    let data_text = data.to_string_lossy().into_owned();
    run_to_end(RECONCILE, &["init", "--data", &data_text, "--campus", &campus_file.to_string_lossy()])
        .await?;
    let mut ports = Ports::new();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.next()?));
    let config = format!(
        "data_dir = {}\nlisten = \"{address}\"\ndriven_clock = true\nidle_timeout_ms = {IDLE_TIMEOUT_MS}\n",
        json!(data_text)
    );
    std::fs::write(data.join("run.toml"), config)?;
    let mut centre = Process::new("centre", RECONCILE, &data);
    centre.start(now).await?;
    let mut nodes = Vec::new();
    for site in &workload.buildings {
        nodes.push(add_node(layout, site, address, &data_text, &mut ports, now).await?);
    }
    layout.write_accounts(&workload.accounts)?;
    layout.write_topups(&workload.topups)?;
    let accounts = layout.file("accounts.csv");
    run_to_end(RECONCILE, &["import", "accounts", &accounts.to_string_lossy(), "--data", &data_text]).await?;
    Ok(Campus { centre, nodes })
}

async fn add_node(
    layout: &Layout,
    site: &Site,
    centre: SocketAddr,
    centre_data: &str,
    ports: &mut Ports,
    now: Timestamp,
) -> Result<Node> {
    #[derive(Deserialize)]
    struct Enrolment {
        code: String,
    }
    let name = site.name.as_str();
    let enroll = ["enroll", name, "--role", site.role.name(), "--data", centre_data, "--json"];
    let enrolment: Enrolment = serde_json::from_str(&run_to_end(RECONCILE, &enroll).await?)?;
    let relay = Relay::open(centre).await?;
    let link = relay.address().to_string();
    let data = layout.node(name);
    let data_text = data.to_string_lossy().into_owned();
    std::fs::create_dir_all(layout.file("nodes"))?;
    let join = ["join", "--data", &data_text, "--centre", &link, "--code", &enrolment.code];
    run_to_end(NODE, &join).await?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.next()?));
    let config = format!(
        "data_dir = {}\ncentre = \"{link}\"\nterminal_listen = \"{listen}\"\ndriven_clock = true\n\
         ask_deadline_ms = {ASK_DEADLINE_MS}\nidle_timeout_ms = {IDLE_TIMEOUT_MS}\n",
        json!(data_text)
    );
    std::fs::write(data.join("run.toml"), config)?;
    let mut process = Process::new(name, NODE, &data);
    process.start(now).await?;
    let counter = Counter::open(&data, listen)?;
    let terminal =
        |id: &TerminalId| (id.clone(), Arc::new(Mutex::new(Terminal::new(id.clone(), counter.clone()))));
    Ok(Node {
        name: name.to_owned(),
        process,
        relay,
        terminals: site.terminals.iter().map(terminal).collect(),
    })
}

/// Free ports of this machine, tried at random places so that two campuses do not meet.
struct Ports(Random, Vec<u16>);

impl Ports {
    fn new() -> Self {
        let process = u64::from(std::process::id());
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(Random::new(time.map_or(0, |time| u64::from(time.subsec_nanos())) << 32 | process), Vec::new())
    }

    fn next(&mut self) -> Result<u16> {
        for _ in 0..1_000 {
            let port = PORTS.start + self.0.below(u64::from(PORTS.end - PORTS.start)) as u16;
            let address = (Ipv4Addr::LOCALHOST, port);
            let free = TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
            if free && !self.1.contains(&port) {
                self.1.push(port);
                return Ok(port);
            }
        }
        bail!("no free port on {}", Ipv4Addr::LOCALHOST)
    }
}

impl Campus {
    /// Sets the wall clock of every live process.
    ///
    /// # Errors
    /// Where a process does not answer.
    pub async fn set_clock(&mut self, now: Timestamp) -> Result<()> {
        let request = json!({"command": "clock", "now_ms": now.0});
        for process in self.live() {
            process.control.send(&request).await?;
        }
        for process in self.live() {
            process.control.receive::<serde_json::Value>().await.context("setting the clock")?;
        }
        Ok(())
    }

    /// Complains where a process ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_alive(&mut self) -> Result<()> {
        self.live().try_for_each(Process::check_alive)
    }

    /// Takes note of resident sizes.
    pub fn sample(&mut self) {
        self.live().for_each(Process::sample);
    }

    /// Ends all processes in order. The centre goes first, so that it writes nothing that no node will read.
    ///
    /// # Errors
    /// Where one does not end, or not well.
    pub async fn stop(&mut self) -> Result<()> {
        self.centre.stop().await?;
        for node in &mut self.nodes {
            node.process.stop().await?;
        }
        Ok(())
    }

    fn live(&mut self) -> impl Iterator<Item = &mut Process> {
        std::iter::once(&mut self.centre)
            .chain(self.nodes.iter_mut().map(|node| &mut node.process))
            .filter(|process| process.is_live())
    }
}
