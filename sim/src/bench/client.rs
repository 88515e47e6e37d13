//! Terminals that ask as fast as they can: keep-alive, requests made and signed before the time is taken.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use feiqian_node::http::auth::{MAC_HEADER, TERMINAL_HEADER, TerminalKey};
use feiqian_node::identity::{DataDir, NodeFiles};
use feiqian_node::tls::node_name;
use feiqian_protocol::chain::hex;
use feiqian_protocol::ids::TerminalId;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// What the terminals of a node have in common.
pub struct Building {
    /// Keys and certificates of the node.
    pub files: NodeFiles,
    server: ServerName<'static>,
    tls: TlsConnector,
}

impl Building {
    /// From a joined node's data directory.
    ///
    /// # Errors
    /// Where it is none.
    pub fn open(data: &Path) -> Result<Self> {
        let files = DataDir::new(data).load()?;
        let mut roots = RootCertStore::empty();
        roots.add(files.ca.clone())?;
        let config = ClientConfig::builder_with_provider(feiqian_node::tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = ServerName::try_from(node_name(files.identity.node))?;
        Ok(Self { files, server, tls: TlsConnector::from(Arc::new(config)) })
    }

    /// Connects a terminal to the node (or to whoever has its certificate) at an address.
    ///
    /// # Errors
    /// Where nobody answers.
    pub async fn till(&self, id: &str, address: SocketAddr) -> Result<Till> {
        let stream = TcpStream::connect(address).await.context("a terminal cannot connect")?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(self.server.clone(), stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // The sender says what went wrong.
            let _ended = connection.await;
        });
        let id = TerminalId::new(id)?;
        let key = self.files.terminal_secret.key(&id);
        Ok(Till { id, key, sender })
    }
}

/// A terminal with its connection.
pub struct Till {
    id: TerminalId,
    key: TerminalKey,
    sender: SendRequest<Full<Bytes>>,
}

impl Till {
    /// A signed request.
    ///
    /// # Errors
    /// Where the path is none.
    pub fn request(&self, path: &str, body: String) -> Result<Request<Full<Bytes>>> {
        let mac = self.key.request_mac("POST", path, body.as_bytes());
        Ok(Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("host", "node.feiqian.internal")
            .header("content-type", "application/json")
            .header(TERMINAL_HEADER, self.id.as_str())
            .header(MAC_HEADER, hex(&mac))
            .body(Full::new(Bytes::from(body)))?)
    }

    /// A purchase of one yuan.
    ///
    /// # Errors
    /// Never, as things are.
    pub fn tap(&self, sequence: u64, card: &str) -> Result<Request<Full<Bytes>>> {
        let body = format!(
            "{{\"epoch\":1,\"sequence\":\"{sequence}\",\"card\":\"{card}\",\"kind\":\"purchase\",\"amount_fen\":100}}"
        );
        self.request("/v1/taps", body)
    }

    /// The same with a PIN.
    ///
    /// # Errors
    /// Never, as things are.
    pub fn tap_with_pin(&self, sequence: &str, card: &str, pin: &str) -> Result<Request<Full<Bytes>>> {
        let body = format!(
            "{{\"epoch\":1,\"sequence\":\"{sequence}\",\"card\":\"{card}\",\"kind\":\"purchase\",\"amount_fen\":100,\"pin\":\"{pin}\"}}"
        );
        self.request("/v1/taps", body)
    }

    /// Sends a request; the answer's body and how long it took.
    ///
    /// # Errors
    /// Where the answer is not 200.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<(Duration, Bytes)> {
        let begun = Instant::now();
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        let took = begun.elapsed();
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
        Ok((took, body))
    }
}

/// True where an answer says so.
pub fn approved(body: &[u8]) -> bool {
    let wanted = b"\"outcome\":\"approved\"";
    body.windows(wanted.len()).any(|part| part == wanted)
}
