//! The local socket of a process: one JSON object per line each way.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Longest wait for one answer. A status is computed in order after everything that waits.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The process is not there, or went away.
    #[error("no answer from {path}: {source}")]
    Gone {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The process refused.
    #[error("{path}: {code}: {message}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The stable code.
        code: String,
        /// For a person.
        message: String,
    },
    /// Not what was expected.
    #[error("{path}: {source}")]
    Form {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// What the driver reads of a node's status.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct NodeView {
    /// `down`, `opening`, `up`, `refused`.
    pub link: String,
    /// Why the centre refused it, where it did.
    #[serde(default)]
    pub refused: Option<String>,
    /// The end of its log.
    pub position: u64,
    /// How much of it the centre has.
    pub acked: u64,
    /// How much of the centre's stream is applied.
    pub applied: u64,
    /// Positions in the account streams.
    pub shards: Vec<u64>,
    /// Taps that wait.
    pub pending: usize,
    /// Version of the campus configuration; 0 where there is none yet.
    pub campus_version: u32,
}

/// A client of one local socket.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    stream: Option<BufReader<UnixStream>>,
}

impl Control {
    /// Of the socket at `path`.
    pub const fn new(path: PathBuf) -> Self {
        Self { path, stream: None }
    }

    /// Forgets the connection: the process is gone.
    pub fn forget(&mut self) {
        self.stream = None;
    }

    /// Sends a request. Its answer must be fetched by [`Control::receive`] before the next one is sent.
    ///
    /// # Errors
    /// [`ControlError::Gone`].
    pub async fn send(&mut self, request: &Value) -> Result<(), ControlError> {
        let mut line = request.to_string();
        line.push('\n');
        let sent = async {
            if self.stream.is_none() {
                self.stream = Some(BufReader::new(UnixStream::connect(&self.path).await?));
            }
            match &mut self.stream {
                Some(stream) => stream.get_mut().write_all(line.as_bytes()).await,
                None => Ok(()),
            }
        };
        let sent = sent.await;
        sent.map_err(|source| self.gone(source))
    }

    /// The answer to what was sent.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, ControlError> {
        let mut line = String::new();
        let read = match &mut self.stream {
            None => Err(std::io::ErrorKind::NotConnected.into()),
            Some(stream) => match timeout(ANSWER_MAX, stream.read_line(&mut line)).await {
                Ok(Ok(0)) => Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
            },
        };
        read.map_err(|source| self.gone(source))?;
        let form = |source| ControlError::Form { path: self.path.clone(), source };
        let answer: Value = serde_json::from_str(&line).map_err(form)?;
        if answer.get("ok").and_then(Value::as_bool) != Some(true) {
            let text = |key| answer.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            return Err(ControlError::Refused {
                path: self.path.clone(),
                code: text("code"),
                message: text("error"),
            });
        }
        serde_json::from_value(answer).map_err(form)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn call<T: DeserializeOwned>(&mut self, request: &Value) -> Result<T, ControlError> {
        self.send(request).await?;
        self.receive().await
    }

    fn gone(&mut self, source: std::io::Error) -> ControlError {
        self.stream = None;
        ControlError::Gone { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_refusals_and_absence_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let mut control = Control::new(path.clone());
        let status = serde_json::json!({"command": "status"});
        assert!(matches!(control.call::<Value>(&status).await, Err(ControlError::Gone { .. })));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let answers = [
                "{\"ok\":true,\"link\":\"up\",\"position\":3,\"acked\":3,\"applied\":1,\"shards\":[1],\"pending\":0,\
                 \"campus_version\":1,\"more\":7}\n",
                "{\"ok\":false,\"code\":\"clock_not_driven\",\"error\":\"the clock is real\"}\n",
            ];
            for answer in answers {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let view: NodeView = control.call(&status).await.unwrap();
        assert_eq!((view.position, view.link.as_str()), (3, "up"));
        let refused = control.call::<Value>(&status).await.unwrap_err();
        assert!(matches!(refused, ControlError::Refused { ref code, .. } if code == "clock_not_driven"));
        server.await.unwrap();
        assert!(matches!(control.call::<Value>(&status).await, Err(ControlError::Gone { .. })));
    }
}
