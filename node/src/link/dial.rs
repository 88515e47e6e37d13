//! Connecting: the names, the addresses, and how long to wait for whom.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ClientConfig, Connection, Endpoint, EndpointConfig, Runtime, UdpPoller};
use tokio::task::JoinSet;

use super::{CLOSE_NORMAL, LinkError};
use crate::config::HostPort;
use crate::tls::CENTRE_NAME;

/// How long one attempt to connect may take where nothing at all is heard.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long it may take where something is heard: the way is there, but it is slow, or full of what was on it before. Certificates
/// both ways are some 6 KB; an attempt that is given up sends them once more, behind those of the last one, and on a slow link none
/// would ever come through. The centre waits as long for the rest of a handshake.
const SLOW_TIMEOUT: Duration = Duration::from_secs(20);

/// Addresses of one name that are tried, and the pause before the next one is tried beside a slow one.
const ADDRESSES_MAX: usize = 8;
const NEXT_ADDRESS_PAUSE: Duration = Duration::from_millis(250);

/// The addresses of a name; at least one.
///
/// # Errors
/// [`LinkError::Address`].
pub async fn addresses(centre: &HostPort) -> Result<Vec<SocketAddr>, LinkError> {
    let addresses: Vec<_> = tokio::net::lookup_host((centre.host.as_str(), centre.port))
        .await
        .map_err(|error| LinkError::Address(centre.clone(), error))?
        .take(ADDRESSES_MAX)
        .collect();
    if addresses.is_empty() {
        return Err(LinkError::Address(centre.clone(), io::ErrorKind::NotFound.into()));
    }
    Ok(addresses)
}

/// A QUIC endpoint that only connects, over any runtime and socket, and knows whether it hears anything.
#[derive(Clone, Debug)]
pub struct Dialer {
    endpoint: Endpoint,
    heard: Arc<AtomicU64>,
}

impl Dialer {
    /// Over a socket.
    ///
    /// # Errors
    /// Where the socket has no address.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        socket: Arc<dyn AsyncUdpSocket>,
        config: EndpointConfig,
    ) -> io::Result<Self> {
        let heard = Arc::new(AtomicU64::new(0));
        let socket = Arc::new(Listened { socket, heard: heard.clone() });
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, runtime)?;
        Ok(Self { endpoint, heard })
    }

    /// Looks a name up and connects.
    pub(super) async fn connect(
        &self,
        config: &ClientConfig,
        centre: &HostPort,
    ) -> Result<Connection, LinkError> {
        let addresses = match tokio::time::timeout(CONNECT_TIMEOUT, addresses(centre)).await {
            Ok(addresses) => addresses?,
            Err(elapsed) => return Err(LinkError::Address(centre.clone(), elapsed.into())),
        };
        self.connect_any(config, addresses, CONNECT_TIMEOUT).await
    }

    /// Connects to one of these addresses: to the next one where the one before has failed or is slow (RFC 8305), since a name
    /// often has addresses of both IP families of which one leads nowhere. An attempt takes `each` where nothing is heard meanwhile.
    ///
    /// # Errors
    /// Why the last attempt failed.
    pub async fn connect_any(
        &self,
        config: &ClientConfig,
        addresses: Vec<SocketAddr>,
        each: Duration,
    ) -> Result<Connection, LinkError> {
        let mut attempts = JoinSet::new();
        let mut addresses = addresses.into_iter().peekable();
        loop {
            let mut failed = None;
            if let Some(address) = addresses.next() {
                match self.endpoint.connect_with(config.clone(), address, CENTRE_NAME) {
                    Err(error) => failed = Some(error.into()),
                    Ok(connecting) => {
                        let (heard, before) = (self.heard.clone(), self.heard.load(Ordering::Relaxed));
                        attempts.spawn(async move {
                            tokio::pin!(connecting);
                            let mut connection = tokio::time::timeout(each, &mut connecting).await;
                            if connection.is_err() && heard.load(Ordering::Relaxed) > before {
                                connection =
                                    tokio::time::timeout(SLOW_TIMEOUT.saturating_sub(each), connecting).await;
                            }
                            Ok(connection.map_err(|_| LinkError::Silent(address))??)
                        });
                    }
                }
            }
            tokio::select! {
                biased;
                Some(ended) = attempts.join_next() => match ended {
                    Ok(Ok(connection)) => return Ok(connection),
                    Ok(Err(error)) => failed = Some(error),
                    Err(_) => {}
                },
                () = tokio::time::sleep(NEXT_ADDRESS_PAUSE), if addresses.peek().is_some() => {}
                else => {}
            }
            if addresses.peek().is_none() && attempts.is_empty() {
                return Err(failed.unwrap_or_else(|| LinkError::Violation("no address is left".to_owned())));
            }
        }
    }

    /// Closes all connections.
    pub fn close(&self, reason: &str) {
        self.endpoint.close(CLOSE_NORMAL, reason.as_bytes());
    }

    /// Until everything closed is forgotten.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

/// A socket that counts the datagrams which come.
struct Listened {
    socket: Arc<dyn AsyncUdpSocket>,
    heard: Arc<AtomicU64>,
}

impl fmt::Debug for Listened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

impl AsyncUdpSocket for Listened {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.socket.poll_recv(cx, buffers, meta));
        if let Ok(count) = &received {
            self.heard.fetch_add(*count as u64, Ordering::Relaxed);
        }
        Poll::Ready(received)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
