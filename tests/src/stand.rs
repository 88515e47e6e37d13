//! A small campus of the real binaries on loopback: a centre, a building or two, and their terminals.
//!
//! Everything is done as an operator and a terminal do it: by the command line, the local socket and HTTPS.

mod service;
mod till;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use self::service::Service;
pub use self::till::{Till, Told};
use crate::kept::{Row, number, rows};

/// The building's program.
pub const NODE: &str = "feiqian-node";
/// The centre's program.
pub const CENTRE: &str = "feiqian-reconcile";

/// How long something may take that takes a moment; generous, since tests share a machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until it is so.
///
/// # Errors
/// With what was waited for, where it is not so in time, and whatever `is_so` fails with.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so().with_context(|| format!("waiting for {what}"))? {
        ensure!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What a stand is like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The buildings, each a node with role `pos` and the terminal `NODE-1`.
    pub buildings: Vec<&'static str>,
    /// `strict`, `hybrid` or `optimistic`.
    pub mode: &'static str,
    /// Opening balances by card.
    pub accounts: Vec<(&'static str, i64)>,
    /// The wall clock, where it is driven.
    pub clock_ms: Option<i64>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            buildings: vec!["canteen"],
            mode: "strict",
            accounts: vec![("card-1001", 100_000), ("card-1002", 100_000)],
            clock_ms: None,
        }
    }
}

/// A centre and its buildings.
#[derive(Debug)]
pub struct Stand {
    /// Where everything lies.
    pub directory: TempDir,
    /// The centre.
    pub centre: Service,
    /// Where it listens.
    pub centre_port: u16,
    /// The buildings, in the order of the plan, then those that were added.
    pub nodes: Vec<Service>,
    plan: Plan,
}

impl Stand {
    /// Everything is up, in session, and every right is where it belongs.
    ///
    /// # Errors
    /// Whatever does not come up.
    pub fn start(plan: Plan) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let centre = directory.path().join("centre");
        let mut stand = Self::new(directory, &centre, plan)?;
        for building in stand.plan.buildings.clone() {
            let data = stand.path(building);
            stand.add_node(building, "pos", &data)?;
        }
        // Last, so that every building gets its part of the day's allowance at once.
        stand.import()?;
        stand.settle()?;
        Ok(stand)
    }

    /// The centre is up, with the accounts, and no building has joined yet.
    ///
    /// # Errors
    /// Whatever does not come up.
    pub fn centre_alone(plan: Plan) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let centre = directory.path().join("centre");
        Self::centre_in(directory, &centre, plan)
    }

    /// The same with the centre's data somewhere in particular.
    ///
    /// # Errors
    /// Whatever does not come up.
    pub fn centre_in(directory: TempDir, data: &Path, plan: Plan) -> Result<Self> {
        let stand = Self::new(directory, data, plan)?;
        stand.import()?;
        Ok(stand)
    }

    fn new(directory: TempDir, data: &Path, plan: Plan) -> Result<Self> {
        let mut centre = Service::new(CENTRE, data);
        centre.config = directory.path().join("centre.toml");
        centre.log = directory.path().join("centre.log");
        let centre_port = free_udp_port()?;
        let mut stand = Self { directory, centre, centre_port, nodes: Vec::new(), plan };
        stand.start_centre()?;
        Ok(stand)
    }

    /// A path in the stand's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start_centre(&mut self) -> Result<()> {
        let campus = self.path("campus.toml");
        let buildings: String = self
            .plan
            .buildings
            .iter()
            .map(|name| {
                format!(
                    "[[buildings]]\nnode = \"{name}\"\nterminals = [{{ id = \"{name}-1\", merchant = 1 }}, \
                     {{ id = \"{name}-2\", merchant = 1 }}]\n"
                )
            })
            .collect();
        let text = format!(
            "institution = 1\ncampus = 1\nsingle_limit_fen = 1000000\ndaily_limit_fen = 10000000\n[policy]\n\
             mode = \"{}\"\n[[merchants]]\nid = 1\nname = \"Canteen\"\ntariff = {{ student = \"0.0240\" }}\n{buildings}",
            self.plan.mode
        );
        std::fs::write(&campus, text)?;
        self.centre.run_ok(["init".as_ref(), "--campus".as_ref(), campus.as_os_str()]);
        self.centre.clock_ms = self.plan.clock_ms;
        self.write_centre_config()?;
        self.centre.start()
    }

    fn import(&self) -> Result<()> {
        let accounts = self.path("accounts.csv");
        let mut text = "card,patron_class,opening_fen\n".to_owned();
        for (card, fen) in &self.plan.accounts {
            text += &format!("{card},student,{fen}\n");
        }
        std::fs::write(&accounts, text)?;
        self.centre.run_ok(["import".as_ref(), "accounts".as_ref(), accounts.as_os_str()]);
        Ok(())
    }

    fn write_centre_config(&self) -> Result<()> {
        let config = format!(
            "data_dir = {}\nlisten = \"127.0.0.1:{}\"\ndriven_clock = {}\nidle_timeout_ms = 3000\n",
            json!(self.centre.data),
            self.centre_port,
            self.plan.clock_ms.is_some()
        );
        Ok(std::fs::write(&self.centre.config, config)?)
    }

    /// A one-time code for a building.
    ///
    /// # Errors
    /// Where the centre makes none.
    pub fn code(&self, name: &str, role: &str) -> Result<String> {
        let made: Value =
            serde_json::from_str(&self.centre.run_ok(["enroll", name, "--role", role, "--json"]))?;
        Ok(made["code"].as_str().context("no code")?.to_owned())
    }

    /// Where nodes find the centre.
    pub fn centre_address(&self) -> String {
        format!("127.0.0.1:{}", self.centre_port)
    }

    /// Tries to make a data directory a node.
    pub fn join(&self, data: &Path, code: &str) -> Output {
        Service::new(NODE, data).run(["join", "--centre", &self.centre_address(), "--code", code])
    }

    /// Enrols, starts and adds a building; returns its place in [`Stand::nodes`].
    ///
    /// # Errors
    /// Where it does not get into session.
    pub fn add_node(&mut self, name: &str, role: &str, data: &Path) -> Result<usize> {
        let code = self.code(name, role)?;
        let joined = self.join(data, &code);
        ensure!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
        let mut node = self.service(data)?;
        node.start()?;
        wait_for("a session", || Ok(node.status()?["link"] == "up"))
            .with_context(|| format!("{}\n{}", node.log(), self.centre.log()))?;
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    /// A node on a data directory that has joined, configured and not started.
    ///
    /// # Errors
    /// Where its configuration cannot be written.
    pub fn service(&self, data: &Path) -> Result<Service> {
        let mut node = Service::new(NODE, data);
        node.clock_ms = self.plan.clock_ms;
        let config = format!(
            "data_dir = {}\ncentre = \"{}\"\nterminal_listen = \"127.0.0.1:0\"\ndriven_clock = {}\n\
             ask_deadline_ms = 1500\nidle_timeout_ms = 3000\n",
            json!(data),
            self.centre_address(),
            node.clock_ms.is_some()
        );
        std::fs::write(&node.config, config)?;
        Ok(node)
    }

    /// The first terminal of a building.
    ///
    /// # Errors
    /// Where the building does not run.
    pub fn till(&self, node: usize) -> Result<Till> {
        let node = &self.nodes[node];
        let name = node.status()?;
        Till::new(node, &format!("{}-1", name["node"].as_str().unwrap_or_default()))
    }

    /// What the centre's status says of a building, by its name.
    ///
    /// # Errors
    /// Where it says nothing.
    pub fn at_centre(&self, name: &str) -> Result<Value> {
        let status = self.centre.status()?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.into_iter().find(|node| node["node"] == name).with_context(|| format!("no {name} in {status}"))
    }

    /// Waits until all running nodes and the centre have said everything to one another, and nothing more comes.
    ///
    /// # Errors
    /// Where it does not become quiet.
    pub fn settle(&mut self) -> Result<()> {
        let mut before = Vec::new();
        let mut quiet = 0;
        wait_for("quiet", || {
            let mut now = vec![self.centre.status()?];
            let mut all_said = true;
            for node in &mut self.nodes {
                if !node.is_running()? {
                    continue;
                }
                let status = node.status()?;
                let name = status["node"].as_str().unwrap_or_default().to_owned();
                let up = status["link"] == "up";
                let nodes = now[0]["nodes"].as_array().cloned().unwrap_or_default();
                let seen = nodes.iter().find(|seen| seen["node"] == *name && seen["connected"] == true);
                all_said &= status["position"] == status["acked"]
                    && (!up
                        || seen.is_some_and(|seen| {
                            seen["backlog"] == 0 && seen["to_node"] == seen["to_node_acked"]
                        }));
                // How the session stands must be known.
                all_said &= up || status["link"] == "refused";
                now.push(status);
            }
            let marks: Vec<Value> = now
                .iter()
                .map(|status| {
                    json!([status["position"], status["applied"], status["shards"], status["asks"]])
                })
                .collect();
            quiet = if all_said && marks == before { quiet + 1 } else { 0 };
            before = marks;
            Ok(quiet >= 5)
        })
    }

    /// Posted balances by card.
    ///
    /// # Errors
    /// Where they cannot be exported.
    pub fn balances(&self) -> Result<BTreeMap<String, i64>> {
        let mut balances = BTreeMap::new();
        for row in self.export("balances")? {
            *balances.entry(row["card"].clone()).or_default() += number(&row, "posted_fen");
        }
        Ok(balances)
    }

    /// The cases.
    ///
    /// # Errors
    /// Where they cannot be exported.
    pub fn cases(&self) -> Result<Vec<Row>> {
        self.export("cases")
    }

    /// One of the centre's exports.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn export(&self, table: &str) -> Result<Vec<Row>> {
        let file = self.path(&format!("{table}.csv"));
        self.centre.run_ok(["export".as_ref(), table.as_ref(), "--output".as_ref(), file.as_os_str()]);
        Ok(rows(&file))
    }

    /// Everything is said, stops in order, holds together, and no log tells of a panic.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn finish(mut self) -> Result<()> {
        self.settle()?;
        self.centre.stop()?;
        for node in &mut self.nodes {
            if node.is_running()? {
                node.stop()?;
            }
            let report = node.verify()?;
            ensure!(report["ok"] == true, "{report}");
        }
        let report = self.centre.verify()?;
        ensure!(report["ok"] == true, "{report}");
        self.no_panic()
    }

    /// No log tells of a panic.
    ///
    /// # Errors
    /// With the log that does.
    pub fn no_panic(&self) -> Result<()> {
        for service in std::iter::once(&self.centre).chain(&self.nodes) {
            let log = service.log();
            ensure!(!log.to_lowercase().contains("panic"), "{log}");
        }
        Ok(())
    }
}

fn free_udp_port() -> Result<u16> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
