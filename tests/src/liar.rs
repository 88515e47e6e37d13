//! A building whose keys are in wrong hands: it has a good certificate, and says whatever a test wants it to.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ed25519_dalek::SigningKey;
use feiqian_protocol::chain::{Cursor, Head, LogWriter, SignedHead, unhex};
use feiqian_protocol::entry::{Actor, Body, Entry};
use feiqian_protocol::frame::{
    ALPN_REPLICATION, Ack, CentreHello, Entries, Frame, Lane, NodeHello, PROTOCOL_VERSION,
};
use feiqian_protocol::ids::{CampusId, InstitutionId, LogId, NodeId};
use feiqian_protocol::time::{Hlc, Timestamp};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use crate::stand::{PATIENCE, Stand};

/// What a client shows of itself.
#[derive(Debug)]
pub struct Shown {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Shown {
    /// That of a node, from its data directory.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn of_node(data: &Path) -> Result<Self> {
        let certificate = CertificateDer::from_pem_file(data.join("node.crt"))?;
        Ok(Self { certificate, key: PrivateKeyDer::from_pem_file(data.join("tls.key"))? })
    }
}

/// A QUIC connection to the centre of a stand.
///
/// # Errors
/// Where the handshake fails.
pub async fn connect(
    stand: &Stand,
    shown: Option<Shown>,
    alpn: &[u8],
) -> Result<(quinn::Endpoint, quinn::Connection)> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(stand.centre.data.join("ca.crt"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut tls = match shown {
        Some(shown) => builder.with_client_auth_cert(vec![shown.certificate], shown.key)?,
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, stand.centre_port));
    let connection = endpoint.connect_with(config, address, "centre.feiqian.internal")?.await?;
    Ok((endpoint, connection))
}

/// How the centre ends a connection, which it must do soon.
///
/// # Errors
/// Where it does not.
pub async fn ended(connection: &quinn::Connection) -> Result<String> {
    let reason = tokio::time::timeout(Duration::from_secs(20), connection.closed()).await;
    Ok(reason.context("the centre does not end the connection")?.to_string())
}

/// Runs this to its end.
///
/// # Errors
/// What it fails with.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(work)
}

/// An enrolled building that was never started: its directory, keys, and the log that it makes up.
#[derive(Debug)]
pub struct Liar {
    data: std::path::PathBuf,
    /// Its number.
    pub node: NodeId,
    institution: InstitutionId,
    incarnation: u32,
    /// Signs its log.
    pub key: SigningKey,
    writer: LogWriter,
    records: Vec<Vec<u8>>,
    heads: Vec<SignedHead>,
}

impl Liar {
    /// Enrols a building on a fresh data directory.
    ///
    /// # Errors
    /// Where the centre refuses.
    pub fn enrol(stand: &Stand, name: &str, role: &str) -> Result<Self> {
        let code = stand.code(name, role)?;
        let data = stand.path(&format!("{name}-{}", &code[..8]));
        let joined = stand.join(&data, &code);
        ensure!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
        let identity: Value = serde_json::from_slice(&std::fs::read(data.join("identity.json"))?)?;
        let number = |field: &str| identity[field].as_u64().with_context(|| format!("no {field}"));
        let seed = unhex(std::fs::read_to_string(data.join("log.key"))?.trim())
            .and_then(|seed| seed.try_into().ok());
        let (node, institution) =
            (NodeId(u16::try_from(number("node")?)?), InstitutionId(u16::try_from(number("institution")?)?));
        Ok(Self {
            data,
            node,
            institution,
            incarnation: u32::try_from(number("incarnation")?)?,
            key: SigningKey::from_bytes(&seed.context("a key of 32 bytes")?),
            writer: LogWriter::new(LogId::node(institution, node), Cursor::START, Hlc::default()),
            records: Vec::new(),
            heads: Vec::new(),
        })
    }

    /// Its own log.
    pub const fn log(&self) -> LogId {
        LogId::node(self.institution, self.node)
    }

    /// Where its log ends.
    pub const fn end(&self) -> Cursor {
        self.writer.cursor()
    }

    /// Writes one commit into its log, at this time, with this applied position in its head.
    pub fn write(&mut self, wall: Timestamp, applied: u64, bodies: impl IntoIterator<Item = Body>) {
        for body in bodies {
            let appended = self.writer.append(wall, CampusId(1), Actor::node(), body);
            self.records.push(appended.record);
        }
        self.heads.extend(self.writer.sign_head(applied, Timestamp(0), &self.key));
    }

    /// Forgets everything after a position, to write another history from there.
    pub fn rewind(&mut self, position: u64) {
        self.records.truncate(position as usize);
        self.heads.retain(|head| head.head.cursor.position <= position);
        let log = self.log();
        let cursor = self.records.iter().fold(Cursor::START, |cursor, record| cursor.after(log, record));
        let clock =
            self.records.last().and_then(|record| Entry::from_record(record).ok()).map(|entry| entry.clock);
        self.writer = LogWriter::new(log, cursor, clock.unwrap_or_default());
    }

    /// What it has written after a position, as a frame.
    pub fn entries_after(&self, after: u64) -> Entries {
        Entries {
            log: self.log(),
            first: after + 1,
            records: self.records[after as usize..].iter().cloned().map(Into::into).collect(),
            heads: self.heads.iter().filter(|head| head.head.cursor.position > after).copied().collect(),
        }
    }

    /// A head of its log at any cursor, signed.
    pub fn sign(&self, log: LogId, cursor: Cursor) -> SignedHead {
        Head { log, cursor, applied: 0, anchor: Timestamp(0) }.sign(&self.key)
    }

    /// The Hello that it would say if it were honest.
    pub fn hello(&self) -> NodeHello {
        NodeHello {
            version: PROTOCOL_VERSION,
            institution: self.institution,
            node: self.node,
            incarnation: self.incarnation,
            log: self.end(),
            to_node: Cursor::START,
            shards: Vec::new(),
            countersigned: None,
            refused: None,
            kept_after: Vec::new(),
            heads: Vec::new(),
            branch: None,
        }
    }

    /// Connects with its certificate.
    ///
    /// # Errors
    /// Where the handshake fails.
    pub async fn connect(&self, stand: &Stand) -> Result<Talk> {
        let (endpoint, connection) =
            connect(stand, Some(Shown::of_node(&self.data)?), ALPN_REPLICATION).await?;
        let mut lanes = Vec::new();
        for lane in [Lane::Control, Lane::Urgent, Lane::Bulk] {
            let mut stream = connection.open_uni().await?;
            stream.write_all(&[lane.tag()]).await?;
            lanes.push(stream);
        }
        Ok(Talk { _endpoint: endpoint, connection, lanes, control: None })
    }
}

/// A conversation with the centre.
#[derive(Debug)]
pub struct Talk {
    _endpoint: quinn::Endpoint,
    /// The connection.
    pub connection: quinn::Connection,
    lanes: Vec<quinn::SendStream>,
    control: Option<quinn::RecvStream>,
}

impl Talk {
    /// Says a frame. Where the centre has hung up already, nothing happens.
    pub async fn say(&mut self, frame: &Frame) {
        let bytes = frame.to_bytes();
        let lane = &mut self.lanes[usize::from(frame.lane().tag())];
        let length = u32::try_from(bytes.len()).expect("a frame is short").to_be_bytes();
        let _ = lane.write_all(&[&length[..], &bytes].concat()).await;
    }

    /// Says Hello and returns what the centre says to it.
    ///
    /// # Errors
    /// Where it says nothing.
    pub async fn greet(&mut self, hello: NodeHello) -> Result<CentreHello> {
        self.say(&Frame::NodeHello(Box::new(hello))).await;
        self.hello().await
    }

    /// The next Hello of the centre: the answer to ours, or a refusal that comes later.
    ///
    /// # Errors
    /// Where there is none.
    pub async fn hello(&mut self) -> Result<CentreHello> {
        self.hear(|frame| match frame {
            Frame::CentreHello(hello) => Some(hello),
            _ => None,
        })
        .await
    }

    /// Waits until the centre acknowledges a log up to a position.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn acked(&mut self, log: LogId, position: u64) -> Result<Ack> {
        self.hear(|frame| match frame {
            Frame::Ack(ack) if ack.log == log && ack.position >= position => Some(ack),
            _ => None,
        })
        .await
    }

    /// The next frame of the control lane that is wanted.
    ///
    /// # Errors
    /// Where it does not come in time, or the connection ends.
    pub async fn hear<T>(&mut self, wanted: impl Fn(Frame) -> Option<T>) -> Result<T> {
        let heard = async {
            loop {
                if let Some(found) = wanted(self.next().await?) {
                    return anyhow::Ok(found);
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.context("the centre does not say it")?
    }

    async fn next(&mut self) -> Result<Frame> {
        if self.control.is_none() {
            for _ in 0..3 {
                let mut stream = self.connection.accept_uni().await?;
                let mut tag = [0];
                stream.read_exact(&mut tag).await?;
                if tag[0] == Lane::Control.tag() {
                    self.control = Some(stream);
                    break;
                }
            }
        }
        let Some(stream) = &mut self.control else { bail!("the centre has no control lane") };
        let mut length = [0; 4];
        stream.read_exact(&mut length).await?;
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut bytes).await?;
        Ok(Frame::from_bytes(&bytes)?)
    }

    /// How the centre ends the conversation.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn ended(&self) -> Result<String> {
        ended(&self.connection).await
    }
}
