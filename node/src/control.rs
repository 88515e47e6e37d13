//! The local socket: one JSON object per line each way, for the operator's commands and for who drives the clock.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use feiqian_protocol::entry::Proof;
use feiqian_protocol::ids::{CardNumber, Key};
use feiqian_protocol::issuance::SignedIssuance;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::drive::{Answer, CoreQueue, NoAnswer, Request};
use crate::run::stopped;
use crate::settings::{SettingKind, SettingRequest};

/// Longest line that is read.
const LINE_BYTES_MAX: u64 = 4 * 1024;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 16;

/// How long a status may take.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client waits for an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(15);

/// What can be said on the socket.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// How the node stands, after everything that waits before it.
    Status {},
    /// Reports a card lost.
    ReportLoss {
        /// The card.
        card: CardNumber,
        /// Who says so.
        operator: Key,
    },
    /// Lowers the no-PIN limits of a card's account; one that is absent stays.
    LowerLimits {
        /// The card.
        card: CardNumber,
        /// Fen per purchase.
        #[serde(default)]
        single_limit_fen: Option<Fen>,
        /// Fen per business day.
        #[serde(default)]
        daily_limit_fen: Option<Fen>,
        /// Who says so.
        operator: Key,
    },
    /// Freezes a card's account.
    Freeze {
        /// The card.
        card: CardNumber,
        /// Who says so.
        operator: Key,
    },
    /// Withdraws a card, for ever.
    VoidCard {
        /// The card.
        card: CardNumber,
        /// Who says so.
        operator: Key,
    },
    /// Shows what the centre has signed for a card that this building may not have heard of.
    ShowCard {
        /// As the card or its slip carries it.
        issuance: String,
        /// Who says so.
        operator: Key,
    },
    /// Sets the driven wall clock.
    Clock {
        /// Milliseconds since 1970.
        now_ms: i64,
    },
}

/// What the socket needs to know.
pub struct Control {
    /// The way to the core.
    pub queue: CoreQueue,
    /// True where the wall clock comes through this socket.
    pub driven_clock: bool,
    /// Where terminals are served, once they are.
    pub terminals: watch::Receiver<Option<SocketAddr>>,
}

/// The socket, which is removed when this is dropped.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // One that stays behind is replaced at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// Opens the socket, replacing one that a killed process left. The caller holds the data directory's lock.
///
/// # Errors
/// Where the socket cannot be made; a path is at most some 100 bytes long.
pub fn bind(path: &Path) -> io::Result<ControlSocket> {
    // Made under another name and private before it can be found.
    let new = path.with_extension("new");
    for stale in [&new, path] {
        match fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(ControlSocket { listener, path: path.to_owned() })
}

/// Serves the socket until told to stop.
pub async fn run(socket: ControlSocket, control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (place, socket.listener.accept().await)
        };
        tokio::select! {
            (place, accepted) = accepted => match accepted {
                Ok((stream, _)) => {
                    let control = control.clone();
                    connections.spawn(async move {
                        if let Err(error) = serve(stream, &control).await {
                            tracing::debug!(%error, "local socket");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a local connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stop) => return,
        }
    }
}

async fn serve(stream: UnixStream, control: &Control) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = tokio::io::BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut read).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
        if length == 0 {
            return Ok(());
        }
        let complete = line.ends_with(b"\n") || (length as u64) < LINE_BYTES_MAX;
        let answer = if complete {
            answer(&line, control).await
        } else {
            failure("malformed", format!("a line is at most {LINE_BYTES_MAX} bytes long"))
        };
        let mut text = answer.to_string();
        text.push('\n');
        write.write_all(text.as_bytes()).await?;
        if !complete {
            return Ok(());
        }
    }
}

async fn answer(line: &[u8], control: &Control) -> Value {
    match serde_json::from_slice(line) {
        Err(error) => failure("malformed", error.to_string()),
        Ok(Command::Clock { .. }) if !control.driven_clock => {
            failure("clock_not_driven", "the wall clock of this process is the system's")
        }
        Ok(Command::Clock { now_ms }) => match clock(control, Timestamp(now_ms)).await {
            Ok(in_force) => json!({"ok": true, "now_ms": in_force.0}),
            Err(error) => failure("unavailable", error.to_string()),
        },
        Ok(Command::Status {}) => match status(control).await {
            Ok(status) => status,
            Err(error) => failure("unavailable", error.to_string()),
        },
        Ok(Command::ReportLoss { card, operator }) => {
            set(control, card, SettingKind::ReportLoss, operator).await
        }
        Ok(Command::LowerLimits { card, single_limit_fen, daily_limit_fen, operator }) => {
            let kind = SettingKind::LowerLimits { single: single_limit_fen, daily: daily_limit_fen };
            set(control, card, kind, operator).await
        }
        Ok(Command::Freeze { card, operator }) => set(control, card, SettingKind::Freeze, operator).await,
        Ok(Command::VoidCard { card, operator }) => set(control, card, SettingKind::VoidCard, operator).await,
        Ok(Command::ShowCard { issuance, operator }) => match SignedIssuance::from_text(&issuance) {
            Ok(signed) => {
                let card = signed.issuance.card.clone();
                set(control, card, SettingKind::ShowCard(Box::new(signed)), operator).await
            }
            Err(error) => failure("malformed", error.to_string()),
        },
    }
}

/// A change of settings by somebody who is logged in on this machine.
async fn set(control: &Control, card: CardNumber, kind: SettingKind, by: Key) -> Value {
    let request = SettingRequest { terminal: None, card, kind, by, proof: Proof::Login };
    match control.queue.ask(Request::Setting(request), STATUS_TIMEOUT).await {
        Ok(Answer::Setting(Ok(done))) => json!({"ok": true, "position": done.position}),
        Ok(Answer::Setting(Err(error))) => failure(error.code(), error.to_string()),
        Ok(_) => failure("unavailable", NoAnswer::Unavailable.to_string()),
        Err(error) => failure("unavailable", error.to_string()),
    }
}

/// The first time starts the node: it is acknowledged once terminals are served.
async fn clock(control: &Control, now: Timestamp) -> Result<Timestamp, NoAnswer> {
    let in_force = control.queue.clock(now).await?;
    let mut terminals = control.terminals.clone();
    let serving = terminals.wait_for(Option::is_some).await.map(drop);
    serving.map_err(|_| NoAnswer::Unavailable)?;
    Ok(in_force)
}

async fn status(control: &Control) -> Result<Value, NoAnswer> {
    let Answer::Status(status) = control.queue.ask(Request::Status, STATUS_TIMEOUT).await? else {
        return Err(NoAnswer::Unavailable);
    };
    let Ok(Value::Object(fields)) = serde_json::to_value(&*status) else {
        return Err(NoAnswer::Unavailable);
    };
    let mut answer = serde_json::Map::from_iter([("ok".to_owned(), Value::Bool(true))]);
    answer.extend(fields);
    let terminals = control.terminals.borrow().map_or(Value::Null, |address| address.to_string().into());
    answer.insert("terminals".to_owned(), terminals);
    Ok(Value::Object(answer))
}

fn failure(code: &str, error: impl Into<String>) -> Value {
    json!({"ok": false, "code": code, "error": error.into()})
}

/// Why a command got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no feiqian-node is running on this data directory ({} does not answer)", .0.display())]
    NotRunning(PathBuf, #[source] io::Error),
    /// The answer did not come.
    #[error("the running feiqian-node gives no answer")]
    NoAnswer(#[from] io::Error),
    /// It is not JSON.
    #[error("the running feiqian-node gives an answer that this build does not understand")]
    Malformed(#[from] serde_json::Error),
    /// It is no.
    #[error("{error}")]
    Refused {
        /// A stable code.
        code: String,
        /// For a person.
        error: String,
    },
}

/// Says a command to a running node, and returns its answer.
///
/// # Errors
/// [`ClientError`].
pub fn call(socket: &Path, command: &Command) -> Result<Value, ClientError> {
    let not_running = |error| ClientError::NotRunning(socket.to_owned(), error);
    let mut stream = BlockingStream::connect(socket).map_err(not_running)?;
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    let mut line = serde_json::to_string(command)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    let answer: Value = serde_json::from_str(&answer)?;
    if answer["ok"] == true {
        return Ok(answer);
    }
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    Err(ClientError::Refused { code: text("code"), error: text("error") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_one_form() {
        let parse = |text: &str| serde_json::from_str::<Command>(text).map_err(|error| error.to_string());
        assert!(matches!(parse(r#"{"command":"status"}"#), Ok(Command::Status {})));
        assert!(matches!(parse(r#"{"command":"clock","now_ms":5}"#), Ok(Command::Clock { now_ms: 5 })));
        assert!(parse(r#"{"command":"status","now_ms":5}"#).is_err());
        assert!(parse(r#"{"command":"clock"}"#).unwrap_err().contains("now_ms"));
        assert!(parse(r#"{"command":"fly"}"#).is_err());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_the_new_one_is_private() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("control.sock");
        std::mem::forget(bind(&path).unwrap());
        let socket = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        BlockingStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
        let error = call(&path, &Command::Status {}).unwrap_err();
        assert!(matches!(error, ClientError::NotRunning(..)), "{error}");
    }
}
