//! The configuration file of `feiqian-node run`.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use feiqian_protocol::limits::ASK_DEADLINE_MS;
use serde::Deserialize;
use toml::Spanned;

/// The exit code for a bad configuration: `EX_USAGE` of sysexits(3).
pub const EXIT_CONFIG: u8 = 64;

/// How a node runs. Everything in it is checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The data directory that `join` made.
    pub data_dir: PathBuf,
    /// Where the centre is.
    pub centre: HostPort,
    /// Where terminals are served.
    pub terminal_listen: SocketAddr,
    /// True where the wall clock comes through the local socket.
    pub driven_clock: bool,
    /// How long a tap may wait for the centre, in milliseconds.
    pub ask_deadline_ms: u64,
    /// After how much silence the link to the centre counts as lost, in milliseconds.
    pub idle_timeout_ms: u64,
    /// JSON log lines.
    pub log_json: bool,
}

/// A host name or address, and a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostPort {
    /// The name or address, an IPv6 address without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no HOST:PORT");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(format!("{text:?}: write an IPv6 address in brackets")),
            None => host,
        };
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What is wrong with a configuration file, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}{}{}: {message}", file.display(), Colon(*line), Key(key.as_deref()))]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: Option<usize>,
    /// The key.
    pub key: Option<String>,
    /// What is wrong.
    pub message: String,
}

struct Colon(Option<usize>);

impl fmt::Display for Colon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

struct Key<'a>(Option<&'a str>);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |key| write!(f, ": {key}"))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: PathBuf,
    centre: Spanned<String>,
    terminal_listen: Option<Spanned<String>>,
    #[serde(default)]
    driven_clock: bool,
    ask_deadline_ms: Option<Spanned<i64>>,
    idle_timeout_ms: Option<Spanned<i64>>,
    #[serde(default)]
    log_json: bool,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, and where it can the line and the key.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            file: file.to_owned(),
            line: None,
            key: None,
            message: format!("cannot be read: {error}"),
        })?;
        Self::parse(file, &text)
    }

    /// Checks the text of a file; `file` is only named.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let source = Source { file, text };
        let parsed: File = toml::from_str(text)
            .map_err(|error| source.error(error.span(), None, error.message().trim_end().to_owned()))?;
        let terminal_listen = match &parsed.terminal_listen {
            None => SocketAddr::from(([0, 0, 0, 0], 8443)),
            Some(listen) => source.check(listen, "terminal_listen", |text| {
                text.parse().map_err(|_| format!("{text:?} is no ADDRESS:PORT"))
            })?,
        };
        let number = |value: &Option<Spanned<i64>>, key: &str, default: u64, allowed: Range<u64>| {
            value.as_ref().map_or(Ok(default), |value| {
                source.check(value, key, |number| {
                    u64::try_from(*number)
                        .ok()
                        .filter(|number| allowed.contains(number))
                        .ok_or_else(|| format!("must be from {} to {}", allowed.start, allowed.end - 1))
                })
            })
        };
        Ok(Self {
            data_dir: parsed.data_dir,
            centre: source.check(&parsed.centre, "centre", |text| text.parse())?,
            terminal_listen,
            driven_clock: parsed.driven_clock,
            ask_deadline_ms: number(&parsed.ask_deadline_ms, "ask_deadline_ms", ASK_DEADLINE_MS, 0..10_001)?,
            idle_timeout_ms: number(&parsed.idle_timeout_ms, "idle_timeout_ms", 10_000, 100..600_001)?,
            log_json: parsed.log_json,
        })
    }
}

struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn check<T, U>(
        &self,
        value: &Spanned<T>,
        key: &str,
        check: impl FnOnce(&T) -> Result<U, String>,
    ) -> Result<U, ConfigError> {
        check(value.get_ref()).map_err(|message| self.error(Some(value.span()), Some(key), message))
    }

    fn error(&self, span: Option<Range<usize>>, key: Option<&str>, message: String) -> ConfigError {
        // A missing key is reported for the whole table, and stands on no line.
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        let key = key.or(missing);
        let start = span.filter(|_| missing.is_none()).map(|span| span.start);
        let before = start.and_then(|start| self.text.get(..start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        let key = key.map(str::to_owned).or_else(|| {
            let (name, _) = self.text.lines().nth(line? - 1)?.split_once('=')?;
            Some(name.trim().to_owned())
        });
        ConfigError { file: self.file.to_owned(), line, key, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("node.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_configuration_is_valid_and_shows_the_defaults() {
        let example = parse(include_str!("../../deploy/node.example.toml")).unwrap();
        let minimal =
            parse("data_dir = \"/var/lib/feiqian-node\"\ncentre = \"centre.example.edu:7443\"").unwrap();
        assert_eq!(example, minimal);
    }

    #[test]
    fn an_error_names_file_line_and_key() {
        let cases = [
            ("data_dir = \"d\"\ncentre = \"c\"", "node.toml:2: centre: \"c\" is no HOST:PORT"),
            ("data_dir = \"d\"\ncentre = \"::1:5\"", "node.toml:2: centre: \"::1:5\": write an IPv6 address"),
            ("data_dir = \"d\"\ncentre = \"c:0\"", "node.toml:2: centre: \"c:0\" is no HOST:PORT"),
            ("data_dir = \"d\"\n\nspeed = 1\ncentre = \"c:1\"", "node.toml:3: speed: unknown field `speed`"),
            ("data_dir = 5\ncentre = \"c:1\"", "node.toml:1: data_dir: invalid type"),
            ("centre = \"c:1\"\n", "node.toml: data_dir: missing field"),
            (
                "data_dir = \"d\"\ncentre = \"c:1\"\nidle_timeout_ms = -1",
                "node.toml:3: idle_timeout_ms: must be from 100 to 600000",
            ),
            (
                "data_dir = \"d\"\ncentre = \"c:1\"\nterminal_listen = \"8443\"",
                "node.toml:3: terminal_listen: \"8443\" is no ADDRESS:PORT",
            ),
            ("data_dir = \"d\"\ncentre = ", "node.toml:2: centre"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{error:?} does not start with {expected:?}");
        }
        let missing = Config::read(Path::new("/nowhere/node.toml")).unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/node.toml: cannot be read"), "{missing}");
    }

    #[test]
    fn addresses_are_read_and_shown_alike() {
        for text in ["centre:7443", "10.0.0.1:1", "[::1]:7443"] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
    }
}
