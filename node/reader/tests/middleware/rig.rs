//! Processes, cards and questions.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use feiqian_protocol::purse::key::Algorithm;
use feiqian_sim::card::fault::Faults;
use feiqian_sim::card::state::{CardState, Masters};
use feiqian_sim::card::vpcd::SoftCard;
use serde_json::{Value, json};

pub const PCSCD: &str = "/usr/sbin/pcscd";
const READER: &str = "127.0.0.1:35963";
/// Set where the middleware must be there, as in CI.
pub const REQUIRED: &str = "FEIQIAN_REQUIRE_PCSCD";
/// How long a torn card stays away: the middleware looks every 0.4 s.
const AWAY: Duration = Duration::from_millis(1_200);
/// How long a silent card stays in.
pub const SILENCE: Duration = Duration::from_secs(3);
/// When the service gives a silent card up.
const ANSWER_MS: u64 = 700;

/// A process that ends with the test.
pub struct Running(Child);

impl Running {
    pub fn new(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub const RECORD_KEY: &str = "00112233445566778899aabbccddeeff";

pub fn card(algorithm: Algorithm, serial: &str) -> CardState {
    CardState::issue(&Masters::example(), serial.parse().unwrap(), algorithm)
}

pub fn insert(state: CardState, path: PathBuf) -> (SoftCard, thread::JoinHandle<()>) {
    let card = SoftCard::new(state, Some(path), Faults::default(), AWAY, SILENCE);
    let reader: SocketAddr = READER.parse().unwrap();
    let serving = card.clone();
    (card, thread::spawn(move || serving.serve(reader).unwrap()))
}

pub fn configure(folder: &Path, algorithm: Algorithm, compound: bool, node: &str) {
    for (file, key) in [("purchase.key", "a1b2c3d4e5f60718293a4b5c6d7e8f90"), ("record.key", RECORD_KEY)] {
        secret(&folder.join(file), key);
    }
    let record = if compound {
        format!("[record]\nkey_file = {:?}\nnode = 3\nspent_fen_max = 20000\n", folder.join("record.key"))
    } else {
        String::new()
    };
    let place = if compound { "record = { sfi = 25, number = 1 }\n" } else { "" };
    let algorithm = if algorithm == Algorithm::Des { "00" } else { "11" };
    let text = format!(
        "data_dir = {data:?}\nlisten = \"127.0.0.1:7007\"\nterminal = \"000000000117\"\npurchase_key_file = {key:?}\n\
        answer_ms = {ANSWER_MS}\n{record}\n{node}\n[[profiles]]\nfirst = \"31000000202600000000\"\n\
        last = \"31000000202600099999\"\nalgorithm = \"{algorithm}\"\nbalance_fen_max = 100000\nissuance = 26\n{place}",
        data = folder.join("data"),
        key = folder.join("purchase.key"),
    );
    std::fs::write(folder.join("reader.toml"), text).unwrap();
}

/// vpcd has two slots; the card is in the first.
pub fn name() -> &'static str {
    "Virtual PCD 00 00"
}

/// One request, one answer. A request that wants a card and names no reader gets the first slot.
pub fn ask(mut stream: impl Read + Write, request: &Value) -> Value {
    let mut request = request.clone();
    let wants_card = !matches!(request["command"].as_str(), Some("status" | "journal" | "loads"));
    if wants_card && request.get("reader").is_none() {
        request["reader"] = json!(name());
    }
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A file that nobody but its owner may read.
pub fn secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// The service of a configuration.
pub fn service(config: &Path) -> Running {
    Running::new(Command::new(env!("CARGO_BIN_EXE_feiqian-reader")).args(["run", "--config"]).arg(config))
}

/// A way to the node on which its answers can be lost.
pub struct Way {
    pub address: SocketAddr,
    lost: Arc<AtomicBool>,
}

impl Way {
    pub fn to(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, lost) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let losing = lost.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                // Nobody there: the connection is closed.
                let (near, Ok(far)) = (near.unwrap(), TcpStream::connect(node)) else { continue };
                let (to, back) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                thread::spawn(move || pass(near, to, &AtomicBool::new(false)));
                let losing = losing.clone();
                thread::spawn(move || pass(far, back, &losing));
            }
        });
        Self { address, lost }
    }

    /// From now on, or no longer.
    pub fn lose_answers(&self, lost: bool) {
        self.lost.store(lost, Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, lost: &AtomicBool) {
    let mut buffer = [0; 4_096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !lost.load(Ordering::SeqCst) && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
