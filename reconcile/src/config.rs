//! The two files that an operator writes: the configuration of `run`, and the campus file of `init`.
//!
//! Both are TOML, and both are read into their final types before anything is opened. What is wrong is named by file,
//! line and key.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use feiqian_protocol::campus::{CampusConfig, CampusError};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::purse::PurseConfig;

/// Longest configuration file that is read.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// How the centre runs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The data directory that `init` made.
    pub data_dir: PathBuf,
    /// Where nodes connect to (UDP).
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// True where the business clock comes from the local socket.
    #[serde(default)]
    pub driven_clock: bool,
    /// After how much silence a connection counts as gone.
    #[serde(default = "default_idle_timeout_ms")]
    pub idle_timeout_ms: u64,
    /// True where a node may have its certificate renewed by itself, under the one that it has.
    #[serde(default = "default_renew_certificates")]
    pub renew_certificates: bool,
    /// The keys and the profiles of cards with a purse; a centre without loads no cards and believes no purse.
    #[serde(default)]
    pub purses: Option<PurseConfig>,
    /// True for log lines as JSON.
    #[serde(default)]
    pub log_json: bool,
}

const fn default_listen() -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7443)
}

const fn default_idle_timeout_ms() -> u64 {
    10_000
}

const fn default_renew_certificates() -> bool {
    true
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] names file, line and key.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(file, &read_text(file)?)
    }

    /// Checks the text of a file; `file` is only named.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = parse(file, text)?;
        if !(100..=600_000).contains(&config.idle_timeout_ms) {
            return Err(ConfigError::at(file, text, "idle_timeout_ms", 1, "must be from 100 to 600000"));
        }
        Ok(config)
    }

    /// [`Config::idle_timeout_ms`].
    pub const fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }
}

/// Reads and checks a campus file; also returns its text, which `init` keeps as it is, comments included.
///
/// # Errors
/// [`ConfigError`] names file, line and key.
pub fn read_campus(file: &Path) -> Result<(CampusConfig, String), ConfigError> {
    let text = read_text(file)?;
    Ok((parse_campus(file, &text)?, text))
}

/// Checks the text of a campus file; `file` is only named.
///
/// # Errors
/// As [`read_campus`].
pub fn parse_campus(file: &Path, text: &str) -> Result<CampusConfig, ConfigError> {
    let campus: CampusConfig = parse(file, text)?;
    campus.check().and_then(|()| campus.to_bytes().map(drop)).map_err(|error| {
        // The types do not know lines, so the line is that of the name which the error names.
        let (needle, nth) = match &error {
            CampusError::Twice { what: "merchant", name } => (format!("id = {name}"), 2),
            CampusError::Twice { name, .. } => (format!("\"{name}\""), 2),
            CampusError::NoMerchant { terminal, .. } => (format!("\"{terminal}\""), 1),
            CampusError::OutOfRange { key, .. } => ((*key).to_owned(), 1),
            CampusError::NoMealMerchant { meal: name, .. }
            | CampusError::MealLimit(name)
            | CampusError::MealsOverlap(_, name) => (format!("{name:?}"), 1),
            CampusError::NoBuilding(node) => (format!("{node:?}"), 1),
            CampusError::Malformed(_) | CampusError::TooLarge(_) => (String::new(), 0),
        };
        ConfigError::at(file, text, &needle, nth, &error.to_string())
    })?;
    Ok(campus)
}

/// What is wrong with a file that an operator wrote.
#[derive(Debug, Eq, PartialEq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1, where it is known.
    pub line: Option<usize>,
    /// The key, where it is known.
    pub key: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        match &self.key {
            Some(key) if !self.message.contains(key.as_str()) => write!(f, ": {key}: {}", self.message),
            _ => write!(f, ": {}", self.message),
        }
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    fn whole(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, key: None, message: message.into() }
    }

    /// At the `nth` line (from 1) that contains `needle`; without a line where there is none.
    fn at(file: &Path, text: &str, needle: &str, nth: usize, message: &str) -> Self {
        let place = nth.checked_sub(1).and_then(|skipped| {
            text.lines().enumerate().filter(|(_, line)| line.contains(needle)).nth(skipped)
        });
        Self {
            file: file.to_owned(),
            line: place.map(|(index, _)| index + 1),
            key: place.and_then(|(_, line)| key_of(line)),
            message: message.to_owned(),
        }
    }
}

fn read_text(file: &Path) -> Result<String, ConfigError> {
    let length = std::fs::metadata(file).map_err(|error| ConfigError::whole(file, error.to_string()))?.len();
    if length > CONFIG_BYTES_MAX {
        return Err(ConfigError::whole(file, format!("has {length} bytes, more than {CONFIG_BYTES_MAX}")));
    }
    std::fs::read_to_string(file).map_err(|error| ConfigError::whole(file, error.to_string()))
}

fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        // A span that covers the whole file is no place: that is how a missing key of the top level is reported.
        let start = error.span().filter(|span| span.end - span.start < text.len()).map(|span| span.start);
        let before = start.and_then(|start| text.get(..start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        let key = line.and_then(|line| text.lines().nth(line - 1)).and_then(key_of);
        ConfigError { file: file.to_owned(), line, key, message: error.message().to_owned() }
    })
}

/// The key of a line `key = value`, or of a table header.
fn key_of(line: &str) -> Option<String> {
    let line = line.trim();
    let key = if line.starts_with('[') {
        line.trim_matches(['[', ']'])
    } else {
        line.split_once('=').map_or("", |(key, _)| key)
    };
    let key = key.trim().trim_start_matches('{').trim();
    (!key.is_empty()).then(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn place(error: &ConfigError) -> (Option<usize>, Option<&str>) {
        (error.line, error.key.as_deref())
    }

    #[test]
    fn only_the_data_directory_must_be_given() {
        let file = file("data_dir = \"/var/lib/feiqian\"\n");
        let config = Config::read(file.path()).unwrap();
        assert_eq!(config.listen.to_string(), "0.0.0.0:7443");
        assert_eq!(config.idle_timeout(), Duration::from_secs(10));
        assert!(!config.driven_clock && !config.log_json);
    }

    #[test]
    fn what_is_wrong_is_named_by_file_line_and_key() {
        let cases = [
            ("data_dir = \"d\"\n\nlisten = \"everywhere\"\n", (Some(3), Some("listen"))),
            ("data_dir = \"d\"\nport = 7443\n", (Some(2), Some("port"))),
            ("data_dir = \"d\"\nidle_timeout_ms = 5\n", (Some(2), Some("idle_timeout_ms"))),
            ("data_dir = 7\nlog_json = true\n", (Some(1), Some("data_dir"))),
        ];
        for (text, expected) in cases {
            let file = file(text);
            let error = Config::read(file.path()).unwrap_err();
            assert_eq!(place(&error), expected, "{error}");
            assert!(error.to_string().starts_with(&file.path().display().to_string()), "{error}");
            assert!(error.to_string().contains(expected.1.unwrap()), "{error}");
        }
        let missing = file("log_json = true\n");
        let error = Config::read(missing.path()).unwrap_err();
        assert!(error.to_string().contains("data_dir"), "{error}");
        assert!(Config::read(Path::new("/nowhere/at-all.toml")).is_err());
    }

    #[test]
    fn a_campus_is_checked_beyond_its_types() {
        let good = "institution = 1\ncampus = 1\n[[merchants]]\nid = 1\nname = \"Red\"\n\
                    [[buildings]]\nnode = \"canteen-red\"\n[[buildings.terminals]]\nid = \"t1\"\nmerchant = 1\n";
        let (campus, text) = read_campus(file(good).path()).unwrap();
        assert_eq!((campus.merchants.len(), text.as_str()), (1, good));

        let no_merchant = good.replace("merchant = 1", "merchant = 2");
        let error = read_campus(file(&no_merchant).path()).unwrap_err();
        assert_eq!(place(&error), (Some(9), Some("id")), "{error}");

        let twice = format!("{good}[[merchants]]\nid = 1\nname = \"Other\"\n");
        let error = read_campus(file(&twice).path()).unwrap_err();
        assert_eq!(place(&error), (Some(12), Some("id")), "{error}");

        let range = format!("single_limit_fen = -1\n{good}");
        let error = read_campus(file(&range).path()).unwrap_err();
        assert_eq!(place(&error), (Some(1), Some("single_limit_fen")), "{error}");

        let hours = |open: &str, node: &str| {
            format!(
                "holidays = [\"2026-10-01\"]\n{good}[[hours]]\ngroup = \"a\"\nnodes = [\"{node}\"]\nopen = [\"{open}\"]\n"
            )
        };
        let (campus, _) = read_campus(file(&hours("06:00-23:00", "canteen-red")).path()).unwrap();
        assert_eq!((campus.hours.len(), campus.holidays.len()), (1, 1));
        let error = read_campus(file(&hours("6-23", "canteen-red")).path()).unwrap_err();
        assert_eq!(error.line, Some(15), "{error}");
        assert!(error.to_string().contains("06:00-23:00"), "{error}");
        let error = read_campus(file(&hours("06:00-23:00", "dormitory")).path()).unwrap_err();
        assert_eq!(place(&error), (Some(14), Some("nodes")), "{error}");

        let meals = |time: &str, merchant: u16| {
            format!(
                "{good}[[meals]]\nname = \"lunch\"\ntime = \"10:30-13:30\"\nlimit_fen = 3000\n\
                 [[meals]]\nname = \"dinner\"\ntime = \"{time}\"\nlimit_fen = 3000\nmerchants = [{merchant}]\n"
            )
        };
        let (campus, _) = read_campus(file(&meals("16:30-19:30", 1)).path()).unwrap();
        assert_eq!(campus.meals.len(), 2);
        for (time, merchant, said) in [("13:00-19:30", 1, "overlap"), ("16:30-19:30", 2, "merchant 2")] {
            let error = read_campus(file(&meals(time, merchant)).path()).unwrap_err();
            assert_eq!(error.line, Some(16), "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
        let negative = meals("16:30-19:30", 1).replace("limit_fen = 3000", "limit_fen = -1");
        let error = read_campus(file(&negative).path()).unwrap_err();
        assert_eq!(error.line, Some(12), "{error}");
        assert!(error.to_string().contains("limit"), "{error}");

        let unknown = good.replace("name = \"Red\"", "nmae = \"Red\"");
        let error = read_campus(file(&unknown).path()).unwrap_err();
        assert_eq!(error.line, Some(5), "{error}");
        assert!(error.to_string().contains("nmae"), "{error}");
    }

    #[test]
    fn the_example_files_are_what_they_say() {
        let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
        let config = Config::read(&Path::new(deploy).join("reconcile.example.toml")).unwrap();
        assert_eq!(config.listen, default_listen());
        let (campus, _) = read_campus(&Path::new(deploy).join("campus.example.toml")).unwrap();
        assert_eq!(campus.policy, feiqian_protocol::campus::Policy::default());
        assert_eq!(campus.buildings.len(), 3);
    }
}
