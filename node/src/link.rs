//! The link to the centre: a QUIC connection that is opened again whenever it is lost.
//!
//! The endpoint is built from a runtime and a socket that are passed in; production passes tokio and UDP. Each side opens
//! one one-way stream per lane, first byte the lane, then frames (4 bytes of length, CBOR). Nothing here knows what the
//! frames mean.

mod dial;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use feiqian_protocol::frame::{Frame, FrameError, Lane};
use feiqian_protocol::limits::{FRAME_BYTES_MAX, LINK_QUEUE_MAX};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{AsyncUdpSocket, ClientConfig, Connection, IdleTimeout, Runtime, TransportConfig, VarInt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::dial::{Dialer, addresses};
use crate::config::HostPort;
use crate::drive::{Chain, CoreQueue};
use crate::io::LinkId;
use crate::run::stopped;

/// The pause between attempts, the first time and at most. Short, since a handshake with nobody costs a few packets and a
/// building that stays cut off costs money.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_millis(1_000);

/// The pause of a node whose certificate was revoked: only an operator can help it.
const PAUSE_REVOKED: Duration = Duration::from_secs(60);

/// The round trip that a new connection reckons with before it has measured one: a campus, not a continent.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// How long a centre that has ended its streams may take to say why.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);

/// Frames of one lane that may wait before the core; a lane that is full waits on the wire. Of the bulk lane so many KiB, since
/// one step takes all that wait and taps wait for the step: two full frames, or a batch of small ones, each of which counts as
/// a few KiB for its signature.
const BULK_WAITING_MAX: usize = 64;
const BULK_FRAME_COUNTS_MIN: usize = 8;
const URGENT_FRAMES_WAITING_MAX: usize = 8;
const CONTROL_FRAMES_WAITING_MAX: usize = 64;

/// Bytes that a lane gathers before it writes.
const WRITE_BYTES_TARGET: usize = 64 * 1024;

/// Codes of a closed connection.
const CLOSE_NORMAL: VarInt = VarInt::from_u32(0);
const CLOSE_BY_CORE: VarInt = VarInt::from_u32(1);
const CLOSE_VIOLATION: VarInt = VarInt::from_u32(2);

/// The centre's code where the certificate was revoked.
const CLOSED_REVOKED: VarInt = VarInt::from_u32(7);

/// Where and how to connect.
pub struct LinkSettings {
    /// The centre.
    pub centre: HostPort,
    /// After how much silence the link is lost.
    pub idle_timeout: Duration,
    /// TLS with this node's certificate.
    pub tls: rustls::ClientConfig,
    /// Lets the pauses between attempts differ from those of other nodes.
    pub jitter_seed: u64,
    /// Told once an expired certificate was renewed: the link is made anew, under the new one.
    pub renewed: Arc<Notify>,
}

/// Why a connection does not stand or stands no longer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The name has no address.
    #[error("{0} has no address")]
    Address(HostPort, #[source] io::Error),
    /// QUIC cannot even start to connect.
    #[error("cannot connect")]
    Connect(#[from] quinn::ConnectError),
    /// The connection failed or ended.
    #[error("connection")]
    Connection(#[from] quinn::ConnectionError),
    /// Nobody answered.
    #[error("{0} does not answer")]
    Silent(SocketAddr),
    /// TLS is not fit for QUIC.
    #[error("TLS settings are not fit for QUIC")]
    Tls(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// A stream broke.
    #[error("stream")]
    Stream(#[from] io::Error),
    /// The centre has ended a stream, which it does before it closes a connection.
    #[error("the stream of {0:?} ended")]
    Ended(Lane),
    /// What came is no frame.
    #[error("frame")]
    Frame(#[from] FrameError),
    /// The centre does what this protocol does not have.
    #[error("{0}")]
    Violation(String),
}

/// The core's end of a connection.
pub struct LinkHandle {
    connection: Connection,
    lanes: [mpsc::Sender<Frame>; LANES.len()],
}

const LANES: [Lane; 3] = [Lane::Control, Lane::Urgent, Lane::Bulk];

impl LinkHandle {
    /// Puts a frame into its lane. A lane that is full closes the connection: the next session resumes from its cursors.
    pub fn send(&self, frame: Frame) {
        let lane = &self.lanes[usize::from(frame.lane().tag())];
        if let Err(mpsc::error::TrySendError::Full(_)) = lane.try_send(frame) {
            self.close("too many frames wait to be sent");
        }
    }

    /// Closes the connection; the reason is for both logs.
    pub fn close(&self, reason: &str) {
        tracing::info!(reason, "closing the link");
        self.connection.close(CLOSE_BY_CORE, reason.as_bytes());
    }
}

/// A socket for [`endpoint`] in production: both IP families where the machine has both.
///
/// # Errors
/// Where the system gives none.
pub fn bind(runtime: &dyn Runtime) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let socket = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    runtime.wrap_udp_socket(socket)
}

/// QUIC settings of a client.
///
/// # Errors
/// [`LinkError::Tls`].
pub fn client_config(tls: rustls::ClientConfig, idle_timeout: Duration) -> Result<ClientConfig, LinkError> {
    let mut transport = TransportConfig::default();
    let idle_ms = u32::try_from(idle_timeout.as_millis()).unwrap_or(u32::MAX);
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))))
        .keep_alive_interval(Some(idle_timeout / 3))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_uni_streams(VarInt::from_u32(LANES.len() as u32))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Keeps a connection to the centre until told to stop.
///
/// # Errors
/// [`LinkError::Tls`]; whatever else goes wrong is tried again.
pub async fn run(
    dialer: Dialer,
    settings: LinkSettings,
    queue: CoreQueue,
    mut stop: watch::Receiver<bool>,
) -> Result<(), LinkError> {
    let config = client_config(settings.tls, settings.idle_timeout)?;
    let mut jitter = Jitter(settings.jitter_seed);
    let mut pause = PAUSE_MIN;
    let mut failures = 0_u64;
    let mut links = 0;
    loop {
        let attempt = dialer.connect(&config, &settings.centre);
        let connection = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            connection = attempt => connection,
        };
        match connection {
            Ok(connection) => {
                links += 1;
                failures = 0;
                let link = LinkId(links);
                let address = connection.remote_address();
                tracing::info!(link = links, %address, "connected to the centre");
                let since = Instant::now();
                let error = tokio::select! {
                    biased;
                    error = serve(&connection, link, &queue, &mut stop) => error,
                    () = settings.renewed.notified() => {
                        connection.close(CLOSE_NORMAL, b"the certificate was renewed");
                        Some(quinn::ConnectionError::LocallyClosed.into())
                    }
                };
                queue.link_down(link).await;
                let Some(error) = error else { break };
                tracing::warn!(link = links, error = %Chain(&error), "the link to the centre is lost");
                if since.elapsed() > PAUSE_MAX {
                    pause = PAUSE_MIN;
                }
                if is_revoked(&error) {
                    pause = PAUSE_REVOKED;
                }
            }
            Err(error) => {
                failures += 1;
                // The first time somebody may want to know; a night of it would only fill the disk.
                if failures == 1 {
                    tracing::warn!(centre = %settings.centre, error = %Chain(&error), "the centre cannot be reached");
                } else {
                    tracing::debug!(failures, error = %Chain(&error), "the centre cannot be reached");
                }
            }
        }
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            () = tokio::time::sleep(jitter.apply(pause)) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    dialer.close("the node stops");
    // A peer that is gone does not keep us.
    let _ = tokio::time::timeout(Duration::from_secs(1), dialer.wait_idle()).await;
    Ok(())
}

/// Makes pauses up to a quarter longer or shorter, so that buildings that lost the same switch do not come back in the same
/// instant.
struct Jitter(u64);

impl Jitter {
    fn apply(&mut self, pause: Duration) -> Duration {
        // A linear congruential generator with the constants of Knuth's MMIX; its high bits are good enough to part nodes.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let draw = (self.0 >> 55) as u32;
        pause * 3 / 4 + pause * draw / 1_024
    }
}

/// True where the centre has cut us off because our certificate was revoked.
fn is_revoked(error: &LinkError) -> bool {
    matches!(
        error,
        LinkError::Connection(quinn::ConnectionError::ApplicationClosed(close)) if close.error_code == CLOSED_REVOKED
    )
}

/// Moves frames until the connection is gone. `None` where told to stop.
async fn serve(
    connection: &Connection,
    link: LinkId,
    queue: &CoreQueue,
    stop: &mut watch::Receiver<bool>,
) -> Option<LinkError> {
    let mut tasks = JoinSet::new();
    let lanes = LANES.map(|lane| {
        let (sender, frames) = mpsc::channel(LINK_QUEUE_MAX);
        tasks.spawn(write_lane(connection.clone(), lane, frames));
        sender
    });
    if !queue.link_up(link, LinkHandle { connection: connection.clone(), lanes }).await {
        return None;
    }
    let seen: Arc<[AtomicBool; LANES.len()]> = Arc::default();
    let error = loop {
        tokio::select! {
            biased;
            () = stopped(stop) => break None,
            error = connection.closed() => break Some(error.into()),
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    tasks.spawn(read_lane(stream, link, queue.clone(), seen.clone()));
                }
                Err(error) => break Some(error.into()),
            },
            Some(ended) = tasks.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(LinkError::Ended(lane))) => {
                    // Why, it says next.
                    let reason = tokio::time::timeout(REASON_TIMEOUT, connection.closed()).await;
                    break Some(reason.map_or(LinkError::Ended(lane), LinkError::from));
                }
                Ok(Err(error)) => break Some(error),
                Err(_) => break Some(LinkError::Violation("a lane's task ended".to_owned())),
            },
        }
    };
    match &error {
        None => connection.close(CLOSE_NORMAL, b"the node stops"),
        // The connection's own end says more than that of a stream which broke with it.
        Some(LinkError::Stream(_)) if connection.close_reason().is_some() => {
            tasks.shutdown().await;
            return connection.close_reason().map(LinkError::Connection);
        }
        Some(LinkError::Connection(_)) => {}
        Some(violation) => connection.close(CLOSE_VIOLATION, Chain(violation).to_string().as_bytes()),
    }
    tasks.shutdown().await;
    error
}

async fn write_lane(
    connection: Connection,
    lane: Lane,
    mut frames: mpsc::Receiver<Frame>,
) -> Result<(), LinkError> {
    let mut stream = connection.open_uni().await?;
    let priority = match lane {
        Lane::Urgent => 2,
        Lane::Control => 1,
        Lane::Bulk => 0,
    };
    // Fails only for a stream that is closed, which the write below reports.
    let _ = stream.set_priority(priority);
    let mut bytes = vec![lane.tag()];
    loop {
        stream.write_all(&bytes).await.map_err(io::Error::from)?;
        bytes.clear();
        match frames.recv().await {
            Some(frame) => put_frame(&mut bytes, &frame),
            None => return Ok(()),
        }
        while bytes.len() < WRITE_BYTES_TARGET
            && let Ok(frame) = frames.try_recv()
        {
            put_frame(&mut bytes, &frame);
        }
        tracing::trace!(?lane, bytes = bytes.len(), "frames sent");
    }
}

fn put_frame(bytes: &mut Vec<u8>, frame: &Frame) {
    let frame = frame.to_bytes();
    let length = u32::try_from(frame.len()).expect("a frame is shorter than its bound");
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&frame);
}

async fn read_lane<R: AsyncRead + Unpin>(
    mut stream: R,
    link: LinkId,
    queue: CoreQueue,
    seen: Arc<[AtomicBool; LANES.len()]>,
) -> Result<(), LinkError> {
    let tag = stream.read_u8().await?;
    let lane = Lane::from_tag(tag).ok_or_else(|| LinkError::Violation(format!("a stream with tag {tag}")))?;
    if seen[usize::from(tag)].swap(true, Ordering::Relaxed) {
        return Err(LinkError::Violation(format!("a second stream with tag {tag}")));
    }
    let waiting = match lane {
        Lane::Bulk => BULK_WAITING_MAX,
        Lane::Urgent => URGENT_FRAMES_WAITING_MAX,
        Lane::Control => CONTROL_FRAMES_WAITING_MAX,
    };
    let waiting = Arc::new(Semaphore::new(waiting));
    while let Some((frame, bytes)) = read_frame(&mut stream).await? {
        if frame.lane() != lane {
            return Err(LinkError::Violation(format!("a frame of {:?} in {lane:?}", frame.lane())));
        }
        let counts = match lane {
            Lane::Bulk => (bytes / 1024).clamp(BULK_FRAME_COUNTS_MIN, BULK_WAITING_MAX),
            Lane::Urgent | Lane::Control => 1,
        };
        let counts = u32::try_from(counts).expect("it is small");
        let permit = waiting.clone().acquire_many_owned(counts).await.expect("the semaphore is never closed");
        tracing::trace!(?lane, "frame received");
        if !queue.frame(link, frame, permit).await {
            return Ok(());
        }
    }
    Err(LinkError::Ended(lane))
}

/// Reads one frame, and says how long it was; `None` where the stream ends before one begins.
async fn read_frame<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<(Frame, usize)>, LinkError> {
    let mut prefix = [0; 4];
    if stream.read(&mut prefix[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[1..]).await?;
    let length = u32::from_be_bytes(prefix) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length).into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Some((Frame::from_bytes(&bytes)?, length)))
}

#[cfg(test)]
mod tests {
    use feiqian_protocol::frame::Mark;
    use feiqian_protocol::time::Hlc;
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn mark(position: u64) -> Frame {
        Frame::Mark(Mark { position, clock: Hlc::from_bits(7) })
    }

    #[tokio::test]
    async fn frames_are_read_however_they_are_cut() {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, &mark(1));
        put_frame(&mut bytes, &mark(2));
        for cut in 1..bytes.len() {
            let (mut ours, mut theirs) = tokio::io::duplex(1_024);
            let (first, second) = bytes.split_at(cut);
            theirs.write_all(first).await.unwrap();
            let reader = tokio::spawn(async move {
                let mut frames = Vec::new();
                while let Some((frame, _)) = read_frame(&mut ours).await.unwrap() {
                    frames.push(frame);
                }
                frames
            });
            tokio::task::yield_now().await;
            theirs.write_all(second).await.unwrap();
            drop(theirs);
            assert_eq!(reader.await.unwrap(), [mark(1), mark(2)]);
        }
    }

    #[tokio::test]
    async fn what_is_too_long_malformed_or_torn_is_refused() {
        let too_long = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_be_bytes();
        let error = read_frame(&mut &too_long[..]).await.unwrap_err();
        assert!(matches!(error, LinkError::Frame(FrameError::TooLong(_))), "{error:?}");
        let error = read_frame(&mut &[0, 0, 0, 1, 0xff][..]).await.unwrap_err();
        assert!(matches!(error, LinkError::Frame(FrameError::Malformed(_))), "{error:?}");
        let error = read_frame(&mut &[0, 0, 0, 9, 1][..]).await.unwrap_err();
        assert!(matches!(error, LinkError::Stream(_)), "{error:?}");
        let error = read_frame(&mut &[0, 0][..]).await.unwrap_err();
        assert!(matches!(error, LinkError::Stream(_)), "{error:?}");
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        let mut jitter = Jitter(7);
        let pauses: Vec<_> =
            (0..100).map(|_| jitter.apply(Duration::from_millis(1_000)).as_millis()).collect();
        assert!(pauses.iter().all(|pause| (750..=1_250).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause < 800) && pauses.iter().any(|pause| *pause > 1_200));
    }
}
