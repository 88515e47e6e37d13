//! A terminal, which talks HTTPS and knows its key.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use feiqian_node::http::auth::{TerminalKey, parse_mac};
use feiqian_protocol::chain::{hex, unhex};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use super::{PATIENCE, Service};

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
