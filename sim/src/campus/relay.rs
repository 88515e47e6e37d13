//! The network between a node and the centre: a UDP relay in the driver that can stop carrying anything.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// Largest datagram.
const DATAGRAM_BYTES_MAX: usize = 65_536;

#[derive(Debug, Default)]
struct State {
    cut: AtomicBool,
    dropped: AtomicU64,
    /// Where the node speaks from; it changes when the node is restarted.
    node: Mutex<Option<SocketAddr>>,
}

/// One node's link to the centre.
#[derive(Debug)]
pub struct Relay {
    state: Arc<State>,
    address: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

impl Relay {
    /// Opens a relay to `centre`.
    ///
    /// # Errors
    /// Where sockets cannot be opened.
    pub async fn open(centre: SocketAddr) -> Result<Self> {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let down = Arc::new(bind().await.context("cannot open a relay socket")?);
        let up = Arc::new(bind().await.context("cannot open a relay socket")?);
        let address = down.local_addr()?;
        let state = Arc::new(State::default());
        let upward = tokio::spawn(carry_up(Arc::clone(&state), Arc::clone(&down), Arc::clone(&up), centre));
        let downward = tokio::spawn(carry_down(Arc::clone(&state), down, up, centre));
        Ok(Self { state, address, tasks: [upward, downward] })
    }

    /// Where the node finds the centre.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drops everything from now on, both ways, or carries again.
    pub fn set_cut(&self, cut: bool) {
        self.state.cut.store(cut, Ordering::Release);
    }

    /// True while everything is dropped.
    pub fn is_cut(&self) -> bool {
        self.state.cut.load(Ordering::Acquire)
    }

    /// Datagrams dropped so far.
    pub fn dropped(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl State {
    fn drops(&self) -> bool {
        let cut = self.cut.load(Ordering::Acquire);
        if cut {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        cut
    }

    fn node(&self) -> std::sync::MutexGuard<'_, Option<SocketAddr>> {
        self.node.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// An error on a datagram socket is one lost datagram (a closed port answers so); the network goes on.
async fn carry_up(state: Arc<State>, down: Arc<UdpSocket>, up: Arc<UdpSocket>, centre: SocketAddr) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok((length, from)) = down.recv_from(&mut buffer).await else { continue };
        *state.node() = Some(from);
        if !state.drops() {
            let _lost = up.send_to(&buffer[..length], centre).await;
        }
    }
}

async fn carry_down(state: Arc<State>, down: Arc<UdpSocket>, up: Arc<UdpSocket>, centre: SocketAddr) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok((length, from)) = up.recv_from(&mut buffer).await else { continue };
        let node = *state.node();
        if let Some(node) = node
            && from == centre
            && !state.drops()
        {
            let _lost = down.send_to(&buffer[..length], node).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_cut_link_carries_nothing_either_way() {
        let centre = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::open(centre.local_addr().unwrap()).await.unwrap();
        let node = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut buffer = [0; 16];
        node.send_to(b"up", relay.address()).await.unwrap();
        let (length, from) = centre.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"up");
        centre.send_to(b"down", from).await.unwrap();
        let (length, _) = node.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"down");
        relay.set_cut(true);
        node.send_to(b"lost", relay.address()).await.unwrap();
        centre.send_to(b"lost", from).await.unwrap();
        let wait = Duration::from_millis(100);
        assert!(tokio::time::timeout(wait, centre.recv_from(&mut buffer)).await.is_err());
        assert!(tokio::time::timeout(wait, node.recv_from(&mut buffer)).await.is_err());
        assert_eq!(relay.dropped(), 2);
        relay.set_cut(false);
        node.send_to(b"again", relay.address()).await.unwrap();
        let (length, _) = centre.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"again");
    }
}
