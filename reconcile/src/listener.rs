//! The centre's QUIC endpoint: one socket for replication, enrolment and renewal, told apart by the ALPN.
//!
//! Runtime and socket are passed in, so that production brings UDP and a simulation its own network. A link has three
//! one-way streams each way, one per lane; whatever is malformed ends its connection with a reason, and both sides say
//! it again from their cursors.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use feiqian_protocol::frame::{ALPN_ENROL, ALPN_RENEW, ALPN_REPLICATION, Frame, FrameError, Lane};
use feiqian_protocol::ids::NodeId;
use feiqian_protocol::limits::FRAME_BYTES_MAX;
use feiqian_protocol::time::Timestamp;
use quinn::{AsyncUdpSocket, Runtime};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::authority::{peer_of, validity};
use crate::driver::{CoreHandle, LinkQueues, Outgoing, Peer, Queued, Stopped, chain};
use crate::enrol::Desk;
use crate::io::LinkId;
use crate::session::REVOKED;

/// Receive buffer of the UDP socket: what a campus of nodes may send at once after a long outage.
const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Lanes of a link.
const LANES: usize = 3;

/// Connections at once; far above the nodes of an institution.
const CONNECTIONS_MAX: usize = 2_048;

/// Time for a TLS handshake: a slow link takes seconds for the certificates, and longer where other things are on it.
const HANDSHAKE_TIME: Duration = Duration::from_secs(20);

/// Connections of one node at once. It needs one; those that it lost without a word stay for a while.
const CONNECTIONS_PER_NODE_MAX: usize = 16;

/// How long a link may be up without a word.
const FIRST_FRAME_TIME: Duration = Duration::from_secs(20);

/// Handshakes under way above which a peer must first show that it has the address that it sends from (RFC 9000, 8.1).
const UNPROVEN_HANDSHAKES_MAX: usize = 64;

/// How often a link looks whether its certificate has expired: a wall clock may be set.
const EXPIRY_CHECK: Duration = Duration::from_secs(3_600);

/// How long a closing link may take to deliver what was already queued.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// Why a connection was closed, beside the reason in words.
pub mod code {
    use quinn::VarInt;

    /// All is done.
    pub const DONE: VarInt = VarInt::from_u32(0);
    /// The centre ends the link, for the reason given.
    pub const CLOSED: VarInt = VarInt::from_u32(1);
    /// What came is not this protocol.
    pub const MALFORMED: VarInt = VarInt::from_u32(2);
    /// No certificate, or one that names no node.
    pub const IDENTITY: VarInt = VarInt::from_u32(3);
    /// It took too long.
    pub const TIMEOUT: VarInt = VarInt::from_u32(4);
    /// Too many at once.
    pub const BUSY: VarInt = VarInt::from_u32(5);
    /// The process ends.
    pub const STOPPING: VarInt = VarInt::from_u32(6);
    /// The node's certificate was revoked: to come again is of no use.
    pub const REVOKED: VarInt = VarInt::from_u32(7);
}

/// Opens the UDP socket of production.
///
/// # Errors
/// The address is in use, or not ours.
pub fn bind(listen: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(listen)?;
    // The kernel caps the buffer silently (net.core.rmem_max); a smaller one only means more resending.
    if let Err(error) = socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER_BYTES) {
        tracing::debug!(%error, "receive buffer not raised");
    }
    Ok(socket)
}

/// Makes the endpoint on a socket.
///
/// # Errors
/// The TLS configuration does not do for QUIC, or the socket fails.
pub fn endpoint(
    runtime: Arc<dyn Runtime>,
    socket: Arc<dyn AsyncUdpSocket>,
    config: quinn::EndpointConfig,
    tls: rustls::ServerConfig,
    idle_timeout: Duration,
) -> anyhow::Result<quinn::Endpoint> {
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls)?;
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle_timeout.try_into()?))
        .keep_alive_interval(Some(idle_timeout / 3))
        .max_concurrent_uni_streams(3_u8.into())
        .max_concurrent_bidi_streams(1_u8.into())
        .datagram_receive_buffer_size(None);
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::new(transport));
    Ok(quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)?)
}

/// Accepts connections until the endpoint is closed, and serves them until they are. Dropped, it drops what it serves.
pub async fn serve(endpoint: quinn::Endpoint, core: CoreHandle, desk: Arc<Desk>) {
    let links = Arc::new(AtomicU64::new(1));
    let handshakes = Arc::new(Semaphore::new(UNPROVEN_HANDSHAKES_MAX));
    let crowd = Arc::new(Crowd::default());
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            biased;
            Some(_) = connections.join_next() => continue,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        if endpoint.open_connections() >= CONNECTIONS_MAX {
            tracing::warn!(peer = %incoming.remote_address(), "too many connections");
            incoming.refuse();
            continue;
        }
        let handshake = Arc::clone(&handshakes).try_acquire_owned().ok();
        if handshake.is_none() && !incoming.remote_address_validated() {
            // Fails only for an address that was validated.
            let _ = incoming.retry();
            continue;
        }
        let (core, desk, links, crowd) =
            (core.clone(), Arc::clone(&desk), Arc::clone(&links), Arc::clone(&crowd));
        connections.spawn(async move {
            let peer = incoming.remote_address();
            let connection = tokio::time::timeout(HANDSHAKE_TIME, incoming).await;
            drop(handshake);
            let connection = match connection {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => return tracing::info!(%peer, %error, "handshake failed"),
                Err(_) => return tracing::info!(%peer, "handshake took too long"),
            };
            match alpn(&connection).as_deref() {
                Some(ALPN_ENROL) => desk.serve(connection, None).await,
                Some(ALPN_RENEW) => match certificate(&connection) {
                    Some(certificate) => desk.serve(connection, Some(certificate)).await,
                    None => connection.close(code::IDENTITY, b"a renewal needs the certificate of a node"),
                },
                Some(ALPN_REPLICATION) => {
                    let link = LinkId(links.fetch_add(1, Ordering::Relaxed));
                    serve_link(connection, link, &core, &desk, &crowd).await;
                }
                _ => connection.close(code::MALFORMED, b"an application protocol of Feiqian is expected"),
            }
        });
    }
    while connections.join_next().await.is_some() {}
}

fn alpn(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    data.protocol
}

/// The verified client certificate, which may have expired.
fn certificate(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let certificates = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    certificates.into_iter().next()
}

/// Who the verified client certificate is of, and until when it is good.
fn peer(connection: &quinn::Connection, now: Timestamp) -> Result<(Peer, Timestamp), &'static str> {
    let certificate =
        certificate(connection).ok_or("replication needs the certificate of a node; enrol first")?;
    let (node, incarnation) = peer_of(&certificate).ok_or("the certificate names no node")?;
    let (_, until) = validity(&certificate).ok_or("the certificate names no time")?;
    Ok((Peer { node, incarnation, expired: until <= now }, until))
}

/// How many connections each node has.
#[derive(Default)]
struct Crowd(Mutex<BTreeMap<NodeId, usize>>);

impl Crowd {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection, where the node does not have too many.
    fn enter(&self, node: NodeId) -> Option<Place<'_>> {
        let mut nodes = self.nodes();
        let count = nodes.entry(node).or_default();
        if *count >= CONNECTIONS_PER_NODE_MAX {
            return None;
        }
        *count += 1;
        Some(Place(self, node))
    }
}

/// A place in the crowd, given back when this is dropped.
struct Place<'a>(&'a Crowd, NodeId);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut nodes = self.0.nodes();
        if let Some(count) = nodes.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(&self.1);
            }
        }
    }
}

/// Waits until a certificate has expired.
async fn expired(until: Timestamp, desk: &Desk) {
    loop {
        let left = u64::try_from(until.ms_since(desk.now())).unwrap_or(0);
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(left).min(EXPIRY_CHECK)).await;
    }
}

#[tracing::instrument(skip_all, fields(link = link.0, node))]
async fn serve_link(
    connection: quinn::Connection,
    link: LinkId,
    core: &CoreHandle,
    desk: &Desk,
    crowd: &Crowd,
) {
    let (peer, until) = match peer(&connection, desk.now()) {
        Ok(peer) => peer,
        Err(why) => {
            tracing::warn!(peer = %connection.remote_address(), why, "connection refused");
            return connection.close(code::IDENTITY, why.as_bytes());
        }
    };
    let Peer { node, incarnation, .. } = peer;
    tracing::Span::current().record("node", node.0);
    let Some(_place) = crowd.enter(node) else {
        tracing::warn!(peer = %connection.remote_address(), "too many connections of this node");
        return connection.close(code::BUSY, b"too many connections of this node");
    };
    connection.set_max_concurrent_bi_streams(0_u8.into());
    let (outgoing, queues) = Outgoing::new();
    if core.link_up(link, peer, outgoing).await.is_err() {
        return connection.close(code::STOPPING, b"the centre is stopping");
    }
    if peer.expired {
        tracing::warn!("the certificate of this node has expired: it may upload and renew it");
    }
    tracing::info!(incarnation, peer = %connection.remote_address(), "link up");
    let end = tokio::select! {
        biased;
        end = run_link(&connection, link, core, queues) => end,
        // It comes back, by a renewed certificate or to upload under this one.
        () = expired(until, desk), if !peer.expired => {
            (code::CLOSED, "the certificate of this node has expired".to_owned())
        }
    };
    connection.close(end.0, end.1.as_bytes());
    tracing::info!(reason = end.1, "link down");
    // Where the core is gone, nobody needs to know.
    let _ = core.link_down(link).await;
}

/// Moves frames both ways until the link ends; says why it does.
async fn run_link(
    connection: &quinn::Connection,
    link: LinkId,
    core: &CoreHandle,
    queues: LinkQueues,
) -> (quinn::VarInt, String) {
    let LinkQueues { lanes, mut close } = queues;
    let mut writers = JoinSet::new();
    for (lane, frames) in lanes {
        writers.spawn(write_lane(connection.clone(), lane, frames));
    }
    let mut readers = JoinSet::new();
    let lanes_seen = Arc::new(AtomicU8::new(0));
    let spoken = Arc::new(AtomicBool::new(false));
    let first_frame = tokio::time::sleep(FIRST_FRAME_TIME);
    tokio::pin!(first_frame);
    let reason = loop {
        tokio::select! {
            biased;
            () = first_frame.as_mut(), if !spoken.load(Ordering::Relaxed) && !first_frame.is_elapsed() => {
                if !spoken.load(Ordering::Relaxed) {
                    return (code::TIMEOUT, "no word for too long after the handshake".to_owned());
                }
            }
            reason = close.wait_for(Option::is_some) => {
                let reason = reason.ok().and_then(|reason| reason.clone());
                break reason.unwrap_or_else(|| "the centre is stopping".to_owned());
            }
            stream = connection.accept_uni() => match stream {
                Ok(stream) if readers.len() < LANES => {
                    let (seen, spoken) = (Arc::clone(&lanes_seen), Arc::clone(&spoken));
                    readers.spawn(read_stream(stream, seen, spoken, link, core.clone()));
                }
                Ok(_) => return (code::MALFORMED, LaneError::Repeated.to_string()),
                Err(error) => return (code::DONE, error.to_string()),
            },
            Some(done) = readers.join_next() => {
                // A connection that is gone ends its lanes, too, and says more about why.
                return match (connection.close_reason(), done) {
                    (Some(reason), _) => (code::DONE, reason.to_string()),
                    (None, Ok(Err(error))) => (code::MALFORMED, chain(&error)),
                    (None, _) => (code::MALFORMED, "a lane ended before its connection".to_owned()),
                };
            }
        }
    };
    // What the core said before it closed the link (why, above all) still goes out; nothing more is taken in.
    readers.shutdown().await;
    let flush = async { while writers.join_next().await.is_some() {} };
    if tokio::time::timeout(FLUSH_TIME, flush).await.is_err() {
        tracing::debug!("link closed with frames left");
    }
    (if reason == REVOKED { code::REVOKED } else { code::CLOSED }, reason)
}

/// Writes one lane until its queue ends and the peer has what was written. Where it cannot, the connection is going
/// down, which its reader notices.
async fn write_lane(
    connection: quinn::Connection,
    lane: Lane,
    mut frames: mpsc::UnboundedReceiver<Queued>,
) -> anyhow::Result<()> {
    let mut stream = connection.open_uni().await?;
    stream.set_priority(match lane {
        Lane::Urgent => 2,
        Lane::Control => 1,
        Lane::Bulk => 0,
    })?;
    stream.write_all(&[lane.tag()]).await?;
    while let Some(queued) = frames.recv().await {
        let bytes = queued.frame.to_bytes();
        tracing::trace!(?lane, bytes = bytes.len(), "frame sent");
        let length = u32::try_from(bytes.len())?;
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&bytes).await?;
    }
    stream.finish()?;
    stream.stopped().await?;
    Ok(())
}

/// Why a lane is not what it should be.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error("the lane broke off")]
    Broken(#[from] std::io::Error),
    #[error("not a frame")]
    Frame(#[from] FrameError),
    #[error("a frame in the wrong lane")]
    Misplaced,
    #[error("more than one stream of one lane")]
    Repeated,
    #[error("the service is stopping")]
    Stopped(#[from] Stopped),
    #[error("stream tag {0} is no lane")]
    Tag(u8),
}

/// Reads one stream of a peer, whose first byte says which lane it is, and hands its frames to the core.
async fn read_stream(
    mut stream: quinn::RecvStream,
    lanes_seen: Arc<AtomicU8>,
    spoken: Arc<AtomicBool>,
    link: LinkId,
    core: CoreHandle,
) -> Result<(), LaneError> {
    let tag = stream.read_u8().await?;
    let lane = Lane::from_tag(tag).ok_or(LaneError::Tag(tag))?;
    if lanes_seen.fetch_or(1 << tag, Ordering::Relaxed) & (1 << tag) != 0 {
        return Err(LaneError::Repeated);
    }
    while let Some(frame) = read_frame(&mut stream, lane).await? {
        spoken.store(true, Ordering::Relaxed);
        // Where the core is behind, this waits, and QUIC's flow control makes the peer wait.
        core.frame(link, frame).await?;
    }
    Ok(())
}

/// The next frame of a lane; `None` where the lane ends between frames.
async fn read_frame(stream: &mut (impl AsyncRead + Unpin), lane: Lane) -> Result<Option<Frame>, LaneError> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length).into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    let frame = Frame::from_bytes(&bytes)?;
    tracing::trace!(?lane, bytes = length, "frame received");
    if frame.lane() == lane { Ok(Some(frame)) } else { Err(LaneError::Misplaced) }
}

#[cfg(test)]
mod tests;
