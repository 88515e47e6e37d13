//! A small campus of the real binaries on loopback: a centre, a building or two, and their terminals.
//!
//! Everything is done as an operator and a terminal do it: by the command line, the local socket and HTTPS.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use feiqian_node::http::auth::{TerminalKey, parse_mac};
use feiqian_protocol::chain::{hex, unhex};
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binaries::{binary, run, run_ok};
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

/// One of the two services: its data directory, configuration, log and process.
#[derive(Debug)]
pub struct Service {
    program: &'static str,
    /// Its data directory.
    pub data: PathBuf,
    /// The configuration of `run`.
    pub config: PathBuf,
    log: PathBuf,
    /// What the wall clock is set to at each start, where it is driven.
    pub clock_ms: Option<i64>,
    child: Option<Child>,
}

impl Service {
    /// A service that is not started, with its configuration and log beside its data directory.
    pub fn new(program: &'static str, data: &Path) -> Self {
        let (config, log) = (data.with_extension("toml"), data.with_extension("log"));
        Self { program, data: data.to_owned(), config, log, clock_ms: None, child: None }
    }

    /// The command that runs it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary(self.program));
        command.arg("run").arg("--config").arg(&self.config);
        command
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// With the end of its log, where it does not come up.
    pub fn start(&mut self) -> Result<()> {
        let command = self.command();
        self.start_as(command)
    }

    /// Starts it by another command than [`Service::command`].
    ///
    /// # Errors
    /// As [`Service::start`].
    pub fn start_as(&mut self, mut command: Command) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.data.display());
        let log = self.log_file()?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn()?);
        let begun = Instant::now();
        loop {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.child = None;
                bail!("{} ended with {status}:\n{}", self.program, self.log());
            }
            if self.is_serving() {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{} does not serve:\n{}", self.program, self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_serving(&self) -> bool {
        if let Some(now_ms) = self.clock_ms
            && self.ask(&json!({"command": "clock", "now_ms": now_ms})).is_err()
        {
            return false;
        }
        // A node opens its local socket before it serves its terminals.
        self.status().is_ok_and(|status| status.get("terminals") != Some(&Value::Null))
    }

    /// Runs it where it must fail at the start; returns what it said.
    ///
    /// # Errors
    /// Where it does not end within a few seconds.
    pub fn fails_to_start(&self) -> Result<Output> {
        let mut child =
            self.command().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let begun = Instant::now();
        while child.try_wait()?.is_none() {
            if begun.elapsed() > PATIENCE {
                child.kill()?;
                bail!("{} runs, though it should not", self.program);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(child.wait_with_output()?)
    }

    fn log_file(&self) -> Result<File> {
        Ok(OpenOptions::new().create(true).append(true).open(&self.log)?)
    }

    /// Its process id.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn pid(&self) -> Result<Pid> {
        let child = self.child.as_ref().context("the service does not run")?;
        Pid::from_raw(i32::try_from(child.id())?).context("a process has a number")
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// Where it does not end, or not well.
    pub fn stop(&mut self) -> Result<()> {
        let pid = self.pid()?;
        kill_process(pid, Signal::TERM)?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "{} stopped with {status}:\n{}", self.program, self.log());
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                bail!("{} does not stop:\n{}", self.program, self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it as a power cut would, as far as the process goes.
    ///
    /// # Errors
    /// Where it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// True while it runs.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(match &mut self.child {
            None => false,
            Some(child) => child.try_wait()?.is_none(),
        })
    }

    /// Everything that it has logged so far, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until its log has this text.
    ///
    /// # Errors
    /// With the whole log, where it does not come.
    pub fn wait_for_log(&self, text: &str) -> Result<()> {
        wait_for(text, || Ok(self.log().contains(text))).with_context(|| self.log())
    }

    /// Says a command on its local socket.
    ///
    /// # Errors
    /// Where there is no answer, or it is no.
    pub fn ask(&self, command: &Value) -> Result<Value> {
        let mut stream = UnixStream::connect(self.data.join("control.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)?;
        ensure!(answer["ok"] == true, "{command}: {answer}");
        Ok(answer)
    }

    /// Its status.
    ///
    /// # Errors
    /// Where it gives none.
    pub fn status(&self) -> Result<Value> {
        self.ask(&json!({"command": "status"}))
    }

    /// `verify --json` of its database, beside the running process or without it.
    ///
    /// # Errors
    /// Where it prints no report.
    pub fn verify(&self) -> Result<Value> {
        let output = self.run(["verify", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        ensure!(output.status.success() == (report["ok"] == true), "exit code against report: {report}");
        Ok(report)
    }

    /// Runs the program on its data directory.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        let arguments: Vec<_> = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        run(
            self.program,
            arguments.iter().map(AsRef::as_ref).chain(["--data".as_ref(), self.data.as_os_str()]),
        )
    }

    /// The same where it must succeed; returns what it printed.
    pub fn run_ok<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        let arguments: Vec<_> = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        run_ok(
            self.program,
            arguments.iter().map(AsRef::as_ref).chain(["--data".as_ref(), self.data.as_os_str()]),
        )
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A test that failed leaves no process behind; one that ended well has none.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a terminal was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Value,
    /// True where the answer carries a MAC, which is then right.
    pub authentic: bool,
}

impl Told {
    /// The stable code of an error.
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    /// `approved`, `declined` or `pending`.
    pub fn outcome(&self) -> &str {
        self.body["outcome"].as_str().unwrap_or_default()
    }

    /// The name of the reason of a decline.
    pub fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap_or_default()
    }

    /// Fen that were approved.
    pub fn approved_fen(&self) -> i64 {
        if self.outcome() == "approved" { self.body["amount_fen"].as_i64().unwrap_or_default() } else { 0 }
    }
}

/// A terminal of a building.
#[derive(Clone)]
pub struct Till {
    /// Its name.
    pub terminal: String,
    /// Where its building serves it.
    pub address: SocketAddr,
    server: ServerName<'static>,
    tls: Arc<ClientConfig>,
    key: [u8; 32],
}

impl Till {
    /// A terminal of a running node, with the key that the operator carries to it.
    ///
    /// # Errors
    /// Where the node does not say what a terminal needs.
    pub fn new(node: &Service, terminal: &str) -> Result<Self> {
        let shown: Value = serde_json::from_str(&node.run_ok(["terminal-key", terminal, "--json"]))?;
        let text = |key: &str| shown[key].as_str().with_context(|| format!("no {key} in {shown}"));
        let address = node.status()?;
        let address = address["terminals"].as_str().context("no terminals are served")?.parse()?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(text("ca")?)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = unhex(text("key")?).and_then(|key| key.try_into().ok()).context("a key has 32 bytes")?;
        Ok(Self {
            terminal: terminal.to_owned(),
            address,
            server: ServerName::try_from(text("server_name")?.to_owned())?,
            tls: Arc::new(tls),
            key,
        })
    }

    /// A purchase of so many fen; the answer must be authentic and of status 200.
    ///
    /// # Errors
    /// Where it is not.
    pub fn tap(&self, sequence: &str, card: &str, fen: i64) -> Result<Told> {
        let told = self.purchase(sequence, card, &json!({"amount_fen": fen}))?;
        ensure!(told.status == 200 && told.authentic, "{told:?}");
        Ok(told)
    }

    /// Sells for so many fen; tries again for a while, since right that is elsewhere may be on its way.
    ///
    /// # Errors
    /// With the last answer, where it is not approved.
    pub fn sell(&self, name: &str, card: &str, fen: i64) -> Result<()> {
        let begun = Instant::now();
        for sequence in 1.. {
            let told = self.tap(&format!("{name}-{sequence}"), card, fen)?;
            if told.approved_fen() == fen {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{name}: {told:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Brings right to this building: sells, and takes it back.
    ///
    /// # Errors
    /// Where one of them is not approved.
    pub fn hold(&self, name: &str, card: &str, fen: i64) -> Result<()> {
        let told = self.tap(name, card, fen)?;
        ensure!(told.approved_fen() == fen, "{told:?}");
        let original = json!({"epoch": 1, "sequence": name});
        let body = json!({"epoch": 1, "sequence": format!("{name}-back"), "original": original});
        let told = self.ask("/v1/reversals", body.to_string().as_bytes())?;
        ensure!(told.approved_fen() == fen, "{told:?}");
        Ok(())
    }

    /// A purchase with whatever stands for its amount.
    ///
    /// # Errors
    /// Where there is no answer, or one with a wrong MAC.
    pub fn purchase(&self, sequence: &str, card: &str, amount: &Value) -> Result<Told> {
        let mut body = json!({"epoch": 1, "sequence": sequence, "card": card, "kind": "purchase"});
        if let (Value::Object(body), Value::Object(amount)) = (&mut body, amount) {
            body.extend(amount.clone());
        }
        self.ask("/v1/taps", body.to_string().as_bytes())
    }

    /// Asks with the terminal's own MAC.
    ///
    /// # Errors
    /// Where there is no answer, or one with a wrong MAC.
    pub fn ask(&self, path: &str, body: &[u8]) -> Result<Told> {
        self.send(path, &self.mac(path, body), body)
    }

    /// The MAC of a request, as it stands in the header.
    pub fn mac(&self, path: &str, body: &[u8]) -> String {
        hex(&TerminalKey::new(self.key).request_mac("POST", path, body))
    }

    /// Asks with this MAC, on a connection of its own.
    ///
    /// # Errors
    /// Where there is no answer, or one with a wrong MAC.
    pub fn send(&self, path: &str, mac: &str, body: &[u8]) -> Result<Told> {
        let mut stream = self.connect()?;
        // A server that has seen enough of a body answers and hangs up.
        let _ = stream
            .write_all(self.head(path, mac, body, "close").as_bytes())
            .and_then(|()| stream.write_all(body));
        self.answer(&mut stream, mac)
    }

    fn head(&self, path: &str, mac: &str, body: &[u8], connection: &str) -> String {
        format!(
            "POST {path} HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\nx-feiqian-terminal: {}\r\n\
             x-feiqian-mac: {mac}\r\ncontent-length: {}\r\nconnection: {connection}\r\n\r\n",
            self.terminal,
            body.len()
        )
    }

    /// A connection for many requests.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn keep_alive(&self) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        self.connect()
    }

    /// Asks on such a connection.
    ///
    /// # Errors
    /// Where there is no answer, or one with a wrong MAC.
    pub fn ask_on(
        &self,
        stream: &mut StreamOwned<ClientConnection, TcpStream>,
        path: &str,
        body: &[u8],
    ) -> Result<Told> {
        let mac = self.mac(path, body);
        let request = [self.head(path, &mac, body, "keep-alive").as_bytes(), body].concat();
        stream.write_all(&request)?;
        self.answer(stream, &mac)
    }

    /// A TLS connection to the building.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn connect(&self) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let tcp = TcpStream::connect(self.address)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        Ok(StreamOwned::new(ClientConnection::new(Arc::clone(&self.tls), self.server.clone())?, tcp))
    }

    /// Reads the answer to the request with this MAC.
    ///
    /// # Errors
    /// Where there is none, or one with a wrong MAC.
    pub fn answer(&self, stream: &mut impl Read, mac: &str) -> Result<Told> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).context("no answer")?;
        let status = line.split(' ').nth(1).with_context(|| format!("no status in {line:?}"))?.parse()?;
        let (mut length, mut answer_mac) = (0, None);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse()?,
                "x-feiqian-mac" => answer_mac = Some(value.to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        if let Some(answer_mac) = &answer_mac {
            let (Some(request), Some(answer)) = (parse_mac(mac), parse_mac(answer_mac)) else {
                bail!("MACs are no MACs");
            };
            let right = TerminalKey::new(self.key).verify_answer(&request, status, &body, &answer);
            ensure!(right, "an answer with a wrong MAC: {}", String::from_utf8_lossy(&body));
        }
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Told { status, body, authentic: answer_mac.is_some() })
    }
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
