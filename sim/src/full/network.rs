//! The wires: UDP between the centre and the buildings, packet by packet.
//!
//! A star: every building has one uplink to the centre, of a [`LinkQuality`], that may be blocked. A packet is lost, doubled
//! or late by draws from the seed; it waits for those before it where the link is slow, and is dropped where too many wait.
//! What is under way when a link is blocked is lost.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::AsyncUdpSocket;
use tokio::time::{Instant, sleep_until};

use super::audit::{Audit, Noted};
use super::clock::Time;
use super::socket::Socket;
use crate::plan::LinkQuality;
use crate::seed::Seed;

/// Bytes of UDP and IP headers, which count on a slow link.
const HEADER_BYTES: u64 = 28;

/// The largest payload that passes: Ethernet.
const PAYLOAD_BYTES_MAX: usize = 1_500 - HEADER_BYTES as usize;

/// What a slow link's queue holds: so many full packets, or what it sends in so many nanoseconds where that is more.
const QUEUE_PACKETS: u64 = 32;
const QUEUE_NS: u64 = 200_000_000;

/// Of the packets that are not lost on a link that loses some, this part of the loss is doubled instead.
const DOUBLED_PART: u64 = 4;

/// Packets that a link keeps to let them come again.
const KEPT_MAX: usize = 64;

/// One packet in so many comes again, or altered, where somebody on the wire does that.
const TAMPERED_ONE_IN: u64 = 8;

/// How much later a packet comes again, at most, in milliseconds.
const REPLAY_MS_MAX: u64 = 5_000;

/// The centre's address.
pub const CENTRE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 7_443);

/// What happened to packets so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PacketCounts {
    /// Delivered.
    pub delivered: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped by a full queue.
    pub dropped: u64,
    /// Dropped by a blocked link, or with nobody at the other end.
    pub unreachable: u64,
    /// Came twice by chance.
    pub doubled: u64,
    /// Came again because somebody kept them.
    pub replayed: u64,
    /// Altered.
    pub altered: u64,
    /// Overtaken by a later one.
    pub reordered: u64,
}

/// What somebody on the wire does.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tampering {
    /// Sends packets again later, also those of earlier connections.
    pub replays: bool,
    /// Alters packets.
    pub alters: bool,
}

/// The network. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Network {
    time: Time,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    audit: Audit,
    chance: Seed,
    uplinks: Vec<Uplink>,
    /// Which uplink the machines are behind, the centre's excepted.
    behind: BTreeMap<IpAddr, usize>,
    sockets: BTreeMap<SocketAddr, Inbox>,
    under_way: BinaryHeap<Reverse<Flight>>,
    last_number: u64,
    last_port: u16,
    carrier: Option<Waker>,
    counts: PacketCounts,
}

#[derive(Debug)]
struct Uplink {
    quality: LinkQuality,
    blocked: bool,
    tampering: Tampering,
    kept: VecDeque<Packet>,
    /// Replayed, altered.
    tampered: [u64; 2],
    /// Until when each direction is busy with what was sent: to the centre, from it.
    busy_until_ns: [u64; 2],
    /// The latest arrival in each direction.
    latest_ns: [u64; 2],
}

#[derive(Debug)]
struct Inbox {
    /// Which socket of this address: one that is left of an earlier process is nothing to it.
    number: u64,
    packets: VecDeque<Packet>,
    reader: Option<Waker>,
}

/// A UDP datagram.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// A packet under way; ordered by arrival, then by when it was sent.
#[derive(Debug, Eq, PartialEq)]
struct Flight {
    arrives_ns: u64,
    number: u64,
    packet: Packet,
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.arrives_ns, self.number).cmp(&(other.arrives_ns, other.number))
    }
}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Network {
    /// A network with these uplinks, and nobody connected.
    pub fn new(
        time: Time,
        chance: Seed,
        audit: Audit,
        uplinks: impl IntoIterator<Item = LinkQuality>,
    ) -> Self {
        let uplink = |quality| Uplink {
            quality,
            blocked: false,
            tampering: Tampering::default(),
            kept: VecDeque::new(),
            tampered: [0; 2],
            busy_until_ns: [0; 2],
            latest_ns: [0; 2],
        };
        let state = State {
            audit,
            chance,
            uplinks: uplinks.into_iter().map(uplink).collect(),
            behind: BTreeMap::new(),
            sockets: BTreeMap::new(),
            under_way: BinaryHeap::new(),
            last_number: 0,
            // The ports that systems give to whoever asks for none (RFC 6335).
            last_port: 49_151,
            carrier: None,
            counts: PacketCounts::default(),
        };
        Self { time, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a new machine behind an uplink; returns its address.
    pub fn add_machine(&self, uplink: usize) -> IpAddr {
        let mut state = self.state();
        let [.., high, low] = (state.behind.len() as u32 + 1).to_be_bytes();
        let address = IpAddr::V4(Ipv4Addr::new(10, 1, high, low));
        state.behind.insert(address, uplink);
        address
    }

    /// A socket at a port that was never used before; [`CENTRE`] for the centre.
    pub fn bind(&self, machine: Option<IpAddr>) -> Arc<dyn AsyncUdpSocket> {
        let mut state = self.state();
        let address = match machine {
            None => CENTRE,
            Some(machine) => {
                state.last_port = state.last_port.checked_add(1).unwrap_or(49_152);
                SocketAddr::new(machine, state.last_port)
            }
        };
        state.last_number += 1;
        let number = state.last_number;
        state.sockets.insert(address, Inbox { number, packets: VecDeque::new(), reader: None });
        Arc::new(Socket { network: self.clone(), address, number })
    }

    /// Closes all sockets of a machine whose process is gone.
    pub fn unbind(&self, machine: Option<IpAddr>) {
        let machine = machine.unwrap_or(CENTRE.ip());
        self.state().sockets.retain(|address, _| address.ip() != machine);
    }

    /// Blocks or opens an uplink.
    pub fn block(&self, uplink: usize, blocked: bool) {
        self.state().uplinks[uplink].blocked = blocked;
    }

    /// Changes what an uplink is like, for what is sent from now on.
    pub fn set_quality(&self, uplink: usize, quality: LinkQuality) {
        self.state().uplinks[uplink].quality = quality;
    }

    /// Lets somebody on the wire do something, or no more.
    pub fn set_tampering(&self, uplink: usize, tampering: Tampering) {
        self.state().uplinks[uplink].tampering = tampering;
    }

    /// What happened so far.
    pub fn counts(&self) -> PacketCounts {
        self.state().counts
    }

    /// The next packet for a socket. One that was closed waits for ever: its process is gone.
    pub(super) fn poll_receive(
        &self,
        number: u64,
        address: SocketAddr,
        context: &mut Context<'_>,
    ) -> Poll<Packet> {
        let mut state = self.state();
        let Some(inbox) = state.inbox(number, address) else { return Poll::Pending };
        match inbox.packets.pop_front() {
            Some(packet) => Poll::Ready(packet),
            None => {
                inbox.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Closes a socket.
    pub(super) fn close(&self, number: u64, address: SocketAddr) {
        let mut state = self.state();
        if state.inbox(number, address).is_some() {
            state.sockets.remove(&address);
        }
    }

    /// Carries packets; to be polled for as long as the network is to work.
    pub async fn carry(self) {
        let mut sleep = pin!(sleep_until(Instant::now()));
        poll_fn(|context| {
            loop {
                let mut state = self.state();
                state.deliver(self.time.now_ns());
                let Some(Reverse(next)) = state.under_way.peek() else {
                    state.carrier = Some(context.waker().clone());
                    return Poll::Pending;
                };
                let due = self.time.instant(Duration::from_nanos(next.arrives_ns));
                state.carrier = Some(context.waker().clone());
                drop(state);
                sleep.as_mut().reset(due);
                if sleep.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Replayed and altered packets of an uplink so far.
    pub fn tampered(&self, uplink: usize) -> [u64; 2] {
        self.state().uplinks[uplink].tampered
    }

    /// Sends from a socket, unless it was closed.
    pub(super) fn send(&self, number: u64, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let now_ns = self.time.now_ns();
        let mut state = self.state();
        if state.inbox(number, from).is_none() {
            return;
        }
        let before = state.under_way.peek().map(|Reverse(next)| next.arrives_ns);
        state.send(now_ns, Packet { from, to, bytes: bytes.to_vec() });
        let next = state.under_way.peek().map(|Reverse(next)| next.arrives_ns);
        if next != before
            && let Some(carrier) = state.carrier.take()
        {
            drop(state);
            carrier.wake();
        }
    }
}

impl State {
    /// The inbox of a socket; `None` where it was closed.
    fn inbox(&mut self, number: u64, address: SocketAddr) -> Option<&mut Inbox> {
        self.sockets.get_mut(&address).filter(|inbox| inbox.number == number)
    }

    fn send(&mut self, now_ns: u64, packet: Packet) {
        let bytes = packet.bytes.len() as u64;
        let direction = usize::from(packet.from == CENTRE);
        let machine = if direction == 0 { packet.from.ip() } else { packet.to.ip() };
        let uplink = self.behind.get(&machine).copied();
        let fate = uplink.and_then(|uplink| self.fate(now_ns, uplink, direction, &packet));
        let noted = [now_ns, end(packet.from), end(packet.to), bytes, fate.unwrap_or(0)];
        self.audit.numbers(Noted::Packet, &noted);
        let (Some(arrives_ns), Some(uplink)) = (fate, uplink) else { return };
        let latest = &mut self.uplinks[uplink].latest_ns[direction];
        if arrives_ns < *latest {
            self.counts.reordered += 1;
        }
        *latest = arrives_ns.max(*latest);
        self.tamper(now_ns, uplink, &packet);
        self.fly(arrives_ns, packet);
    }

    /// When a packet arrives; `None` where it does not.
    fn fate(&mut self, now_ns: u64, uplink: usize, direction: usize, packet: &Packet) -> Option<u64> {
        let link = &mut self.uplinks[uplink];
        if link.blocked || packet.bytes.len() > PAYLOAD_BYTES_MAX {
            self.counts.unreachable += 1;
            return None;
        }
        let quality = link.quality;
        let mut leaves_ns = now_ns;
        if quality.bits_per_s > 0 {
            let sending_ns = |bytes: u64| bytes * 8 * 1_000_000_000 / quality.bits_per_s;
            let queue_ns =
                QUEUE_NS.max(sending_ns(QUEUE_PACKETS * (PAYLOAD_BYTES_MAX as u64 + HEADER_BYTES)));
            let busy_until_ns = &mut link.busy_until_ns[direction];
            let begins_ns = (*busy_until_ns).max(now_ns);
            if begins_ns - now_ns > queue_ns {
                self.counts.dropped += 1;
                return None;
            }
            leaves_ns = begins_ns + sending_ns(packet.bytes.len() as u64 + HEADER_BYTES);
            *busy_until_ns = leaves_ns;
        }
        if self.chance.chance(u64::from(quality.loss_permille), 1_000) {
            self.counts.lost += 1;
            return None;
        }
        let travel_ns =
            |chance: &mut Seed| (quality.latency_us + chance.below(quality.jitter_us + 1)) * 1_000;
        let arrives_ns = leaves_ns + travel_ns(&mut self.chance);
        if self.chance.chance(u64::from(quality.loss_permille), 1_000 * DOUBLED_PART) {
            self.counts.doubled += 1;
            let again_ns = leaves_ns + travel_ns(&mut self.chance);
            self.fly(again_ns, packet.clone());
        }
        Some(arrives_ns)
    }

    /// Lets whoever sits on the wire do what it does.
    fn tamper(&mut self, now_ns: u64, uplink: usize, packet: &Packet) {
        let link = &mut self.uplinks[uplink];
        if link.tampering.replays {
            if link.kept.len() == KEPT_MAX {
                let out = self.chance.index(KEPT_MAX);
                link.kept.swap_remove_back(out);
            }
            link.kept.push_back(packet.clone());
            if self.chance.chance(1, TAMPERED_ONE_IN)
                && let Some(old) = link.kept.get(self.chance.index(link.kept.len())).cloned()
            {
                let later_ns = self.chance.below(REPLAY_MS_MAX) * 1_000_000;
                link.tampered[0] += 1;
                self.counts.replayed += 1;
                self.fly(now_ns + later_ns, old);
            }
        }
        if self.uplinks[uplink].tampering.alters && self.chance.chance(1, TAMPERED_ONE_IN) {
            // In its seal, at the end: what the rest would be taken for depends on bytes that no seed decides.
            let mut altered = packet.clone();
            let bit = self.chance.index(8 * 8);
            if let Some(byte) = altered.bytes.iter_mut().rev().nth(bit / 8) {
                *byte ^= 1 << (bit % 8);
                self.uplinks[uplink].tampered[1] += 1;
                self.counts.altered += 1;
                self.fly(now_ns + 1_000_000, altered);
            }
        }
    }

    fn fly(&mut self, arrives_ns: u64, packet: Packet) {
        self.last_number += 1;
        self.under_way.push(Reverse(Flight { arrives_ns, number: self.last_number, packet }));
    }

    fn deliver(&mut self, now_ns: u64) {
        while self.under_way.peek().is_some_and(|Reverse(next)| next.arrives_ns <= now_ns) {
            let Some(Reverse(Flight { packet, .. })) = self.under_way.pop() else { return };
            let machine = if packet.from == CENTRE { packet.to.ip() } else { packet.from.ip() };
            let blocked = self.behind.get(&machine).is_none_or(|uplink| self.uplinks[*uplink].blocked);
            match self.sockets.get_mut(&packet.to) {
                Some(inbox) if !blocked => {
                    self.counts.delivered += 1;
                    inbox.packets.push_back(packet);
                    if let Some(reader) = inbox.reader.take() {
                        reader.wake();
                    }
                }
                _ => self.counts.unreachable += 1,
            }
        }
    }
}

/// An address as a number.
fn end(address: SocketAddr) -> u64 {
    let ip = match address.ip() {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(_) => 0,
    };
    ip << 16 | u64::from(address.port())
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;

    use feiqian_protocol::time::Timestamp;
    use quinn::udp::{RecvMeta, Transmit};

    use super::*;

    const QUICK: LinkQuality =
        LinkQuality { latency_us: 2_000, jitter_us: 0, loss_permille: 0, bits_per_s: 0 };

    struct Wire {
        network: Network,
        audit: Audit,
        machine: IpAddr,
        node: Arc<dyn AsyncUdpSocket>,
        centre: Arc<dyn AsyncUdpSocket>,
    }

    /// One building on an uplink, and the centre.
    fn wire(quality: LinkQuality, seed: u64) -> Wire {
        let audit = Audit::default();
        let time = Time::begin(Timestamp(0), Duration::ZERO);
        let network = Network::new(time, Seed::new(seed), audit.clone(), [quality]);
        tokio::spawn(network.clone().carry());
        let machine = network.add_machine(0);
        let (node, centre) = (network.bind(Some(machine)), network.bind(None));
        Wire { network, audit, machine, node, centre }
    }

    impl Wire {
        fn send(&self, bytes: &[u8]) {
            let transmit = Transmit {
                destination: CENTRE,
                ecn: None,
                contents: bytes,
                segment_size: None,
                src_ip: None,
            };
            self.node.try_send(&transmit).unwrap();
        }

        /// What came to the centre, after so long.
        async fn after_ms(&self, ms: u64) -> Vec<Vec<u8>> {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            let mut came = Vec::new();
            loop {
                let mut bytes = vec![0; 2_000];
                let mut meta = [RecvMeta::default()];
                let polled = poll_fn(|context| {
                    let mut buffers = [IoSliceMut::new(&mut bytes)];
                    Poll::Ready(self.centre.poll_recv(context, &mut buffers, &mut meta))
                });
                match polled.await {
                    Poll::Ready(Ok(1)) => {
                        assert_eq!(meta[0].addr.ip(), self.machine);
                        bytes.truncate(meta[0].len);
                        came.push(bytes);
                    }
                    _ => return came,
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn packets_take_their_time_and_a_blocked_link_lets_none_through() {
        let wire = wire(QUICK, 1);
        wire.send(b"one");
        assert!(wire.after_ms(1).await.is_empty());
        assert_eq!(wire.after_ms(2).await, [b"one"]);
        wire.send(b"under way");
        wire.network.block(0, true);
        wire.send(b"too late");
        assert!(wire.after_ms(50).await.is_empty());
        wire.network.block(0, false);
        wire.send(b"two");
        assert_eq!(wire.after_ms(5).await, [b"two"]);
        wire.network.unbind(Some(wire.machine));
        wire.send(b"of a process that is gone");
        wire.send(&[0; PAYLOAD_BYTES_MAX + 1]);
        assert!(wire.after_ms(50).await.is_empty());
        assert_eq!(wire.network.counts().delivered, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_an_earlier_process_neither_hears_nor_closes_the_next() {
        let mut wire = wire(QUICK, 1);
        wire.network.unbind(None);
        let old = std::mem::replace(&mut wire.centre, wire.network.bind(None));
        wire.send(b"one");
        drop(old);
        assert_eq!(wire.after_ms(5).await, [b"one"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_link_sends_one_after_the_other_and_drops_what_does_not_fit() {
        let wire = wire(LinkQuality { bits_per_s: 64_000, ..QUICK }, 1);
        for _ in 0..50 {
            wire.send(&[7; PAYLOAD_BYTES_MAX]);
        }
        // 1,500 bytes at 64 kbit/s take 187.5 ms.
        assert_eq!(wire.after_ms(191).await.len(), 1);
        assert_eq!(wire.after_ms(188).await.len(), 1);
        assert_eq!(wire.after_ms(20_000).await.len(), QUEUE_PACKETS as usize - 1);
        assert_eq!(wire.network.counts().dropped, 50 - 1 - QUEUE_PACKETS);
    }

    #[tokio::test(start_paused = true)]
    async fn packets_are_lost_doubled_and_overtaken_by_chance() {
        let wire =
            wire(LinkQuality { latency_us: 1_000, jitter_us: 9_000, loss_permille: 200, bits_per_s: 0 }, 1);
        for number in 0..1_000_u16 {
            wire.send(&number.to_be_bytes());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let came = wire.after_ms(100).await;
        let counts = wire.network.counts();
        assert!((150..250).contains(&counts.lost), "{counts:?}");
        assert!((20..60).contains(&counts.doubled), "{counts:?}");
        assert_eq!(came.len() as u64, 1_000 - counts.lost + counts.doubled);
        assert!(!came.is_sorted() && counts.reordered > 100, "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sits_on_the_wire_repeats_and_alters_packets() {
        let wire = wire(QUICK, 1);
        wire.network.set_tampering(0, Tampering { replays: true, alters: true });
        for number in 0..400_u16 {
            wire.send(&[&number.to_be_bytes()[..], &[0; 30]].concat());
        }
        let came = wire.after_ms(REPLAY_MS_MAX + 100).await;
        let counts = wire.network.counts();
        assert!(counts.replayed > 20 && counts.altered > 20, "{counts:?}");
        assert_eq!(came.len() as u64, 400 + counts.replayed + counts.altered);
        let altered = came.iter().filter(|bytes| bytes[2..].iter().any(|byte| *byte != 0)).count();
        assert_eq!(altered as u64, counts.altered);
    }

    #[tokio::test(start_paused = true)]
    async fn equal_seeds_carry_alike() {
        let quality =
            LinkQuality { latency_us: 1_000, jitter_us: 5_000, loss_permille: 100, bits_per_s: 1_000_000 };
        let mut digests = Vec::new();
        for seed in [3, 3, 4] {
            let wire = wire(quality, seed);
            for number in 0..100 {
                wire.send(&vec![number; 100 + usize::from(number)]);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            digests.push(wire.audit.digest());
        }
        assert_eq!(digests[0], digests[1]);
        assert_ne!(digests[0], digests[2]);
    }
}
