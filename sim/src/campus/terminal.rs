//! A terminal: one HTTPS connection that is kept open, requests and answers authenticated by the terminal's key.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use feiqian_protocol::chain::{hex, unhex};
use feiqian_protocol::ids::TerminalId;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use sha2::Sha256;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Longest wait for one answer; a node's own deadline for asking the centre is far below.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long a terminal goes on asking before the run fails.
const PATIENCE: Duration = Duration::from_secs(180);
/// Longest answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// What the terminals of one building have in common.
#[derive(Clone)]
pub struct Counter {
    address: SocketAddr,
    server: ServerName<'static>,
    tls: TlsConnector,
    secret: Vec<u8>,
}

impl Counter {
    /// From a joined node's data directory.
    ///
    /// # Errors
    /// Where the directory is not that of a joined node.
    pub fn open(data: &Path, address: SocketAddr) -> Result<Self> {
        #[derive(Deserialize)]
        struct Identity {
            node: u16,
        }
        let read = |name: &str| {
            let path = data.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let identity: Identity = serde_json::from_slice(&read("identity.json")?)?;
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&read("ca.crt")?).context("ca.crt holds no certificate")?)?;
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let secret = String::from_utf8(read("terminal.secret")?)?;
        Ok(Self {
            address,
            server: ServerName::try_from(format!("node-{}.feiqian.internal", identity.node))?,
            tls: TlsConnector::from(Arc::new(config)),
            secret: unhex(secret.trim()).context("terminal.secret is not hexadecimal")?,
        })
    }
}

/// The answer to a tap or reversal.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Answer {
    /// `approved`, `declined` or `pending`.
    pub outcome: String,
    /// Fen.
    #[serde(default)]
    pub amount_fen: i64,
    /// Fen of it beyond the node's spending right.
    #[serde(default)]
    pub stand_in_fen: i64,
    /// Why it was declined.
    #[serde(default)]
    pub reason: Option<String>,
    /// True for a first answer given again.
    #[serde(default)]
    pub repeat: bool,
}

/// An answer and how it was got.
#[derive(Clone, Debug)]
pub struct Told {
    /// The answer.
    pub answer: Answer,
    /// From asking to the answer, of the last try.
    pub latency: Duration,
    /// Tries beyond the first.
    pub retries: u64,
}

/// One terminal.
pub struct Terminal {
    id: TerminalId,
    counter: Counter,
    key: [u8; 32],
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Terminal {
    /// A terminal of a building.
    pub fn new(id: TerminalId, counter: Counter) -> Self {
        let key = mac(&counter.secret, &[b"feiqian-terminal-key-1\0", id.as_str().as_bytes()]);
        Self { id, counter, key, connection: None }
    }

    /// Asks until there is a definite answer, with the same body every time.
    ///
    /// # Errors
    /// A refusal of the request itself, or no answer for minutes.
    pub async fn ask(&mut self, path: &str, body: &str) -> Result<Told> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        let mut retries = 0;
        loop {
            let asked = Instant::now();
            let why = match timeout(ANSWER_MAX, self.try_once(path, body)).await {
                Ok(Ok((200, text))) => {
                    let answer: Answer = serde_json::from_slice(&text)
                        .with_context(|| format!("terminal {}: not an answer", self.id))?;
                    if answer.outcome != "pending" {
                        return Ok(Told { answer, latency: asked.elapsed(), retries });
                    }
                    "pending".to_owned()
                }
                Ok(Ok((503, _))) => "busy".to_owned(),
                Ok(Ok((status, text))) => {
                    bail!(
                        "terminal {}: {status} for {body}: {}",
                        self.id,
                        String::from_utf8_lossy(&text).trim()
                    );
                }
                Ok(Err(error)) => {
                    self.connection = None;
                    error.to_string()
                }
                Err(_) => {
                    self.connection = None;
                    "no answer in time".to_owned()
                }
            };
            if begun.elapsed() > PATIENCE {
                bail!("terminal {}: no answer after {retries} retries: {why}", self.id);
            }
            retries += 1;
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    async fn try_once(&mut self, path: &str, body: &str) -> Result<(u16, Bytes), Fault> {
        let mut connection = match self.connection.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let request_mac =
            mac(&self.key, &[b"feiqian-request-1\nPOST\n", path.as_bytes(), b"\n", body.as_bytes()]);
        let request_mac = hex(&request_mac);
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("host", "node.feiqian.internal")
            .header("content-type", "application/json")
            .header("x-feiqian-terminal", self.id.as_str())
            .header("x-feiqian-mac", &request_mac)
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))?;
        connection.ready().await?;
        let answer = connection.send_request(request).await?;
        let status = answer.status().as_u16();
        let given = answer
            .headers()
            .get("x-feiqian-mac")
            .and_then(|value| unhex(value.to_str().ok()?))
            .unwrap_or_default();
        let text = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
        let mut expected = keyed(&self.key);
        for part in
            [b"feiqian-answer-1\n", request_mac.as_bytes(), b"\n", status.to_string().as_bytes(), b"\n"]
        {
            expected.update(part);
        }
        expected.update(&text);
        if expected.verify_slice(&given).is_err() {
            return Err(format!(
                "an answer ({status}) that is not authenticated: {}",
                String::from_utf8_lossy(&text).trim()
            )
            .into());
        }
        self.connection = Some(connection);
        Ok((status, text))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Fault> {
        let stream = TcpStream::connect(self.counter.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.counter.tls.connect(self.counter.server.clone(), stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // The sender says what went wrong.
            let _ended = connection.await;
        });
        Ok(sender)
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length")
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = keyed(key);
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}
