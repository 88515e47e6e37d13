//! The configuration file of `feiqian-reader run`.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use feiqian_protocol::chain::unhex;
use feiqian_protocol::ids::{NodeId, TerminalId};
use feiqian_protocol::purse::key::{MasterKey, RecordKey};
use feiqian_protocol::purse::profile::{ApplicationName, CardProfile, CardProfiles};
use feiqian_protocol::purse::values::{PurseFen, TerminalNumber};
use feiqian_protocol::terminal::TerminalKey;
use feiqian_protocol::time::BusinessCalendar;
use serde::Deserialize;

use crate::node::{Node, NodeSetupError};

/// How long a command to a card may take where nothing is said: a card answers within a tenth of a second.
const ANSWER_MS: u64 = 3_000;

/// How long a POS waits for a card where nothing is said.
const WAIT_MS: u64 = 15_000;

/// How the service runs. Everything in it is checked, and the keys are read.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the journal is.
    pub data_dir: PathBuf,
    /// The Unix socket.
    pub socket: PathBuf,
    /// A TCP address to serve besides, on loopback only: what is said there is neither authenticated nor encrypted.
    pub listen: Option<SocketAddr>,
    /// The terminal's number.
    pub terminal: TerminalNumber,
    /// The purchase master key of the software SAM.
    pub purchase_key: MasterKey,
    /// Its version.
    pub purchase_key_version: u8,
    /// Which cards are served.
    pub profiles: CardProfiles,
    /// How days are cut, and how far local time is from UTC.
    pub calendar: BusinessCalendar,
    /// What is needed for cards that carry a record.
    pub record: Option<RecordConfig>,
    /// The way to the building's node; without one, nothing is reported and no card is loaded.
    pub node: Option<NodeConfig>,
    /// How long a request waits for a card.
    pub wait: Duration,
    /// How long a command to a card may take until it counts as silent.
    pub answer: Duration,
}

/// What goes into the records of cards.
#[derive(Clone, Debug)]
pub struct RecordConfig {
    /// Seals them.
    pub key: RecordKey,
    /// The node that this terminal belongs to.
    pub node: NodeId,
    /// Most fen in a day by what the card carries.
    pub spent_fen_max: Option<u32>,
    /// Most days since the newest hotlist that the card has met.
    pub hotlist_days_max: Option<u16>,
}

/// The terminal as its node knows it.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Speaks with the node.
    pub client: Node,
    /// A purse that a purchase would leave with less than this is filled from the account first.
    pub collect_below: Option<PurseFen>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    data_dir: PathBuf,
    socket: Option<PathBuf>,
    listen: Option<SocketAddr>,
    terminal: TerminalNumber,
    purchase_key_file: PathBuf,
    #[serde(default = "one")]
    purchase_key_version: u8,
    application: Option<ApplicationName>,
    #[serde(default = "china")]
    calendar: BusinessCalendar,
    record: Option<RecordText>,
    node: Option<NodeText>,
    #[serde(default = "wait")]
    wait_ms: u64,
    #[serde(default = "answer")]
    answer_ms: u64,
    profiles: Vec<CardProfile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordText {
    key_file: PathBuf,
    node: NodeId,
    spent_fen_max: Option<u32>,
    hotlist_days_max: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeText {
    address: String,
    server_name: String,
    ca_file: PathBuf,
    terminal: TerminalId,
    key_file: PathBuf,
    collect_below_fen: Option<u32>,
}

const fn one() -> u8 {
    1
}

const fn china() -> BusinessCalendar {
    BusinessCalendar::CHINA
}

const fn wait() -> u64 {
    WAIT_MS
}

const fn answer() -> u64 {
    ANSWER_MS
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", file.display())]
pub struct ConfigError {
    /// The file: the configuration, or a key's.
    pub file: PathBuf,
    /// What is wrong.
    pub message: String,
}

impl Config {
    /// Reads and checks a configuration, and the keys that it names.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let wrong = |message: String| ConfigError { file: file.to_owned(), message };
        let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
        let text: Text =
            toml::from_str(&text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        if let Some(address) = text.listen.filter(|address| !address.ip().is_loopback()) {
            return Err(wrong(format!(
                "listen = {address}: only a loopback address, since nothing there is encrypted"
            )));
        }
        if !(100..=60_000).contains(&text.answer_ms) {
            return Err(wrong(format!("answer_ms = {}: between 100 and 60000", text.answer_ms)));
        }
        if text.wait_ms > 600_000 {
            return Err(wrong(format!("wait_ms = {}: at most 600000", text.wait_ms)));
        }
        if text.profiles.is_empty() {
            return Err(wrong("no [[profiles]]: no card would be served".into()));
        }
        let application = text.application.unwrap_or_else(ApplicationName::feiqian);
        let profiles =
            CardProfiles::new(application, text.profiles).map_err(|error| wrong(error.to_string()))?;
        let record = match text.record {
            Some(record) => Some(RecordConfig {
                key: key(&record.key_file)?,
                node: record.node,
                spent_fen_max: record.spent_fen_max,
                hotlist_days_max: record.hotlist_days_max,
            }),
            None => None,
        };
        let node = text.node.map(|node| node.checked(file)).transpose()?;
        Ok(Self {
            socket: text.socket.unwrap_or_else(|| text.data_dir.join("reader.sock")),
            data_dir: text.data_dir,
            listen: text.listen,
            terminal: text.terminal,
            purchase_key: key(&text.purchase_key_file)?,
            purchase_key_version: text.purchase_key_version,
            profiles,
            calendar: text.calendar,
            record,
            node,
            wait: Duration::from_millis(text.wait_ms),
            answer: Duration::from_millis(text.answer_ms),
        })
    }
}

impl NodeText {
    fn checked(self, file: &Path) -> Result<NodeConfig, ConfigError> {
        let wrong = |message: String| ConfigError { file: file.to_owned(), message };
        let of_ca = |message: String| ConfigError { file: self.ca_file.clone(), message };
        let ca = std::fs::read(&self.ca_file).map_err(|error| of_ca(error.to_string()))?;
        let client = Node::new(&self.address, &self.server_name, &ca, self.terminal, key_of(&self.key_file)?)
            .map_err(|error| match error {
                NodeSetupError::Authority(_) => of_ca(error.to_string()),
                _ => wrong(error.to_string()),
            })?;
        let collect_below = match self.collect_below_fen {
            None => None,
            Some(fen) => {
                let below = PurseFen::new(fen).filter(|below| *below > PurseFen::ZERO);
                Some(below.ok_or_else(|| wrong(format!("collect_below_fen = {fen}: no amount of a purse")))?)
            }
        };
        Ok(NodeConfig { client, collect_below })
    }
}

/// A terminal's key, as the node shows it.
struct HexKey(TerminalKey);

impl FromStr for HexKey {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = unhex(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|key| Self(TerminalKey::new(key))).ok_or("a terminal's key is 64 hex digits")
    }
}

fn key_of(file: &Path) -> Result<TerminalKey, ConfigError> {
    Ok(key::<HexKey>(file)?.0)
}

/// A key from a file that nobody but its owner may read.
fn key<K: FromStr>(file: &Path) -> Result<K, ConfigError>
where
    K::Err: std::fmt::Display,
{
    let wrong = |message: String| ConfigError { file: file.to_owned(), message };
    let mode = std::fs::metadata(file).map_err(|error| wrong(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(wrong(format!("others may read this key (mode {:o}); chmod 600 it", mode & 0o777)));
    }
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    text.trim().parse().map_err(|error: K::Err| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(change: &str, mode: u32) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("purchase.key");
        std::fs::write(&key, "a1b2c3d4e5f60718293a4b5c6d7e8f90\n").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let file = folder.path().join("reader.toml");
        let text = format!(
            "data_dir = \"/tmp/reader\"\nterminal = \"000000000117\"\npurchase_key_file = {key:?}\n{change}\n\
            [[profiles]]\nfirst = \"31000000202600000000\"\nlast = \"31000000202600099999\"\nalgorithm = \"11\"\n\
            balance_fen_max = 100000\n"
        );
        std::fs::write(&file, text).unwrap();
        Config::load(&file)
    }

    #[test]
    fn a_configuration_is_checked_before_anything_is_opened() {
        let config = load("", 0o600).unwrap();
        assert_eq!(config.socket, Path::new("/tmp/reader/reader.sock"));
        assert_eq!(config.answer, Duration::from_secs(3));
        let error = |change, mode| load(change, mode).unwrap_err().to_string();
        assert!(error("", 0o640).contains("others may read this key (mode 640)"));
        assert!(error("listen = \"0.0.0.0:7000\"", 0o600).contains("only a loopback address"));
        assert!(error("answer_ms = 10", 0o600).contains("answer_ms = 10: between 100 and 60000"));
        assert!(error("colour = 1", 0o600).contains("colour"));
        assert!(load("listen = \"127.0.0.1:7000\"", 0o600).is_ok());
    }

    #[test]
    fn the_way_to_the_node_is_checked_too() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, key) = (folder.path().join("ca.pem"), folder.path().join("terminal.key"));
        let made = rcgen::generate_simple_self_signed(vec!["node-1.feiqian.internal".to_owned()]).unwrap();
        std::fs::write(&ca, made.cert.pem()).unwrap();
        std::fs::write(&key, "ab".repeat(32)).unwrap();
        let mode = |mode| {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let with = |more: &str| {
            let node = format!(
                "[node]\naddress = \"127.0.0.1:8443\"\nserver_name = \"node-1.feiqian.internal\"\nca_file = {ca:?}\n\
                terminal = \"canteen-1\"\nkey_file = {key:?}\n{more}\n"
            );
            load(&node, 0o600)
        };
        mode(0o600);
        assert_eq!(with("").unwrap().node.unwrap().collect_below, None);
        let below = with("collect_below_fen = 2000").unwrap().node.unwrap().collect_below;
        assert_eq!(below, PurseFen::new(2_000));
        assert!(with("collect_below_fen = 0").unwrap_err().to_string().contains("no amount of a purse"));
        mode(0o644);
        assert!(with("").unwrap_err().to_string().contains("others may read this key"));
        mode(0o600);
        std::fs::write(&key, "ab").unwrap();
        assert!(with("").unwrap_err().to_string().contains("64 hex digits"));
        std::fs::write(&key, "ab".repeat(32)).unwrap();
        std::fs::write(&ca, "no certificate").unwrap();
        assert!(with("").unwrap_err().to_string().contains("ca.pem"));
    }
}
