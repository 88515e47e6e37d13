//! The local socket: one JSON object per line each way, for the operator's commands and for whoever drives the clock.
//!
//! It is a file of the data directory that only its owner may open, so whoever may read the keys may also command. The
//! commands are [`Command`]; `clock` is the shell's own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use feiqian_protocol::time::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

use crate::driver::{CoreHandle, WallClock};
use crate::io::{Command, CommandError};

/// The socket's name in the data directory.
pub const SOCKET: &str = "control.sock";

/// Longest line; an import of 500 accounts is a tenth of it.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Clients at once.
const CLIENTS_MAX: usize = 64;

/// How long a client of the command line waits for an answer.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// The socket, removed when this is dropped.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Control {
    fn drop(&mut self) {
        // A leftover is removed by the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Control {
    /// Opens the socket. The caller holds the data directory's lock, so a socket that is there is a leftover.
    ///
    /// # Errors
    /// The directory cannot be written, or its path is too long for a socket.
    pub fn bind(data_dir: &Path) -> std::io::Result<Self> {
        let path = data_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Serves clients until it is dropped. `serving` is true once the network is served, too: whoever has had an answer
    /// (from a driven process: has had its clock acknowledged) finds everything there.
    pub async fn serve(self, core: CoreHandle, clock: WallClock, serving: watch::Receiver<bool>) {
        let shell = Arc::new(Shell { core, clock, serving });
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let shell = Arc::clone(&shell);
                    tokio::spawn(async move {
                        if let Err(error) = serve_client(stream, &shell).await {
                            tracing::debug!(%error, "local client gone");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "local socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve_client(stream: UnixStream, shell: &Shell) -> std::io::Result<()> {
    let (receive, mut send) = stream.into_split();
    let mut receive = tokio::io::BufReader::new(receive);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = LINE_BYTES_MAX as u64 + 1;
        if (&mut receive).take(limit).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let too_long = line.len() > LINE_BYTES_MAX;
        let reply = if too_long {
            Err(error("line", format!("a line of more than {LINE_BYTES_MAX} bytes")))
        } else {
            shell.answer(&line).await
        };
        let mut bytes = to_json(reply).to_string().into_bytes();
        bytes.push(b'\n');
        send.write_all(&bytes).await?;
        if too_long {
            // Where the next line begins is not known any more.
            return Ok(());
        }
    }
}

/// What the socket speaks to.
struct Shell {
    core: CoreHandle,
    clock: WallClock,
    serving: watch::Receiver<bool>,
}

impl Shell {
    async fn answer(&self, line: &[u8]) -> Result<Value, CommandError> {
        let request: Value =
            serde_json::from_slice(line).map_err(|why| error("json", format!("not a JSON object: {why}")))?;
        if request.get("command").and_then(Value::as_str) == Some("clock") {
            return self.set_clock(&request).await;
        }
        let command: Command =
            serde_json::from_value(request).map_err(|why| error("command", why.to_string()))?;
        if matches!(command, Command::LookUpEnrolment { .. } | Command::Enrol { .. } | Command::Renew { .. })
        {
            return Err(error("command", "only the enrolment desk does that".to_owned()));
        }
        // Of a driven process the core itself says that there is no clock yet.
        if self.clock == WallClock::Real {
            self.until_serving().await?;
        }
        self.core.command(command).await
    }

    async fn set_clock(&self, request: &Value) -> Result<Value, CommandError> {
        if self.clock != WallClock::Driven {
            let why = "the business clock is the system's; driven_clock is not set in the configuration";
            return Err(error("clock_not_driven", why.to_owned()));
        }
        let now_ms = request
            .get("now_ms")
            .and_then(Value::as_i64)
            .ok_or_else(|| error("command", "now_ms must be a number of milliseconds".to_owned()))?;
        self.core.set_clock(Timestamp(now_ms)).await.map_err(|why| error("stopping", why.to_string()))?;
        self.until_serving().await?;
        Ok(Value::Null)
    }

    async fn until_serving(&self) -> Result<(), CommandError> {
        let serving = self.serving.clone().wait_for(|serving| *serving).await.map(drop);
        serving.map_err(|_| error("stopping", "the service is stopping".to_owned()))
    }
}

const fn error(code: &'static str, message: String) -> CommandError {
    CommandError { code, message }
}

/// `{"ok":true,…}` with the fields of the reply, or `{"ok":false,"code":…,"error":…}`.
fn to_json(reply: Result<Value, CommandError>) -> Value {
    match reply {
        Ok(Value::Object(mut fields)) => {
            fields.insert("ok".to_owned(), Value::Bool(true));
            Value::Object(fields)
        }
        Ok(Value::Null) => json!({"ok": true}),
        Ok(value) => json!({"ok": true, "value": value}),
        Err(error) => json!({"ok": false, "code": error.code, "error": error.message}),
    }
}

/// Why the running service did not do what the command line asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It said no.
    #[error("{message}")]
    Refused {
        /// See [`CommandError::code`].
        code: String,
        /// Why.
        message: String,
    },
    /// Nothing listens there.
    #[error(
        "the service does not run on {0} (start it with feiqian-reconcile run, or look with systemctl status feiqian-reconcile)"
    )]
    NotRunning(PathBuf),
    /// The connection broke.
    #[error("no answer from the service")]
    Broken(#[from] std::io::Error),
    /// Not what is expected.
    #[error("an answer that is no answer")]
    Malformed,
}

/// A connection of the command line to the running service.
pub struct Client(BufReader<std::os::unix::net::UnixStream>);

impl Client {
    /// Connects to the service of a data directory.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`].
    pub fn connect(data_dir: &Path) -> Result<Self, ClientError> {
        let stream = std::os::unix::net::UnixStream::connect(data_dir.join(SOCKET)).map_err(|error| {
            match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                    ClientError::NotRunning(data_dir.to_owned())
                }
                _ => error.into(),
            }
        })?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Says a command and returns its reply.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn command(&mut self, command: &Command) -> Result<Value, ClientError> {
        let mut line = serde_json::to_vec(command).map_err(std::io::Error::from)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line)?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        let answer: Value = serde_json::from_str(&answer).map_err(|_| ClientError::Malformed)?;
        let text = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        match answer.get("ok").and_then(Value::as_bool) {
            Some(true) => Ok(answer),
            Some(false) => Err(ClientError::Refused { code: text("code"), message: text("error") }),
            None => Err(ClientError::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Core, drive, queue};
    use crate::io::{Input, Now, Output};

    /// Answers every command with the clock.
    struct FakeCore;

    impl Core for FakeCore {
        type Error = std::io::Error;

        fn step(&mut self, now: Now, inputs: Vec<Input>, outputs: &mut Vec<Output>) -> std::io::Result<()> {
            for input in inputs {
                if let Input::Command(ticket, _) = input {
                    outputs.push(Output::Reply(ticket, Ok(json!({"wall": now.wall.0}))));
                }
            }
            Ok(())
        }

        fn next_timer(&self) -> Option<u64> {
            None
        }
    }

    /// A socket in front of a fake core, and what a line is answered with.
    async fn ask(clock: WallClock, lines: &[&[u8]]) -> Vec<Value> {
        let dir = tempfile::tempdir().unwrap();
        let (core, events) = queue();
        let runtime = tokio::runtime::Handle::current();
        std::thread::spawn(move || {
            let ready = tokio::sync::oneshot::channel().0;
            drive(&runtime, events, clock, || Ok::<_, std::io::Error>(FakeCore), ready)
        });
        let control = Control::bind(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let server = tokio::spawn(control.serve(core, clock, watch::channel(true).1));
        let mut stream =
            tokio::io::BufReader::new(UnixStream::connect(dir.path().join(SOCKET)).await.unwrap());
        let mut answers = Vec::new();
        for line in lines {
            stream.write_all(line).await.unwrap();
            stream.write_all(b"\n").await.unwrap();
            let mut answer = String::new();
            stream.read_line(&mut answer).await.unwrap();
            answers.push(serde_json::from_str(&answer).unwrap());
        }
        server.abort();
        answers
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_line_is_answered_by_the_core_or_with_what_is_wrong_with_it() {
        let lookup = br#"{"command":"look_up_enrolment","lookup":"00"}"#;
        let lines: [&[u8]; 6] = [
            br#"{"command":"status"}"#,
            br#"{"command":"clock","now_ms":5}"#,
            br#"{"command":"dance"}"#,
            b"status",
            lookup,
            br#"{"command":"topup","card":"c1","amount_fen":1}"#,
        ];
        let answers = ask(WallClock::Real, &lines).await;
        let codes: Vec<_> =
            answers.iter().map(|answer| answer.get("code").and_then(Value::as_str).unwrap_or("ok")).collect();
        assert_eq!(codes, ["ok", "clock_not_driven", "command", "json", "command", "command"]);
        assert!(answers[0]["wall"].as_i64().unwrap() > 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_driven_clock_is_in_force_once_it_is_acknowledged() {
        let lines: [&[u8]; 4] = [
            br#"{"command":"status"}"#,
            br#"{"command":"clock"}"#,
            br#"{"command":"clock","now_ms":1667800000000}"#,
            br#"{"command":"status"}"#,
        ];
        let answers = ask(WallClock::Driven, &lines).await;
        assert_eq!(answers[0]["code"], "clock_not_set");
        assert_eq!(answers[1]["code"], "command");
        assert_eq!(answers[2], json!({"ok": true}));
        assert_eq!(answers[3], json!({"ok": true, "wall": 1_667_800_000_000_i64}));
    }

    #[tokio::test]
    async fn nothing_is_answered_before_the_network_is_served() {
        let (core, _events) = queue();
        let (sender, serving) = watch::channel(false);
        let shell = Shell { core, clock: WallClock::Real, serving };
        let early = shell.answer(br#"{"command":"status"}"#);
        assert!(tokio::time::timeout(Duration::from_millis(20), early).await.is_err());
        drop(sender);
        assert_eq!(shell.answer(br#"{"command":"status"}"#).await.unwrap_err().code, "stopping");
    }

    #[test]
    fn a_service_that_does_not_run_is_named() {
        assert!(matches!(Client::connect(Path::new("/nowhere")), Err(ClientError::NotRunning(_))));
    }
}
