//! Connections between buildings and the centre.
//!
//! A connection has three lanes each way. Within a lane frames keep their order; lanes overtake each other. A lost packet is
//! sent again, so loss is delay; what is on its way when the path breaks waits, and arrives late where the path is back before
//! an end gives up. Each end gives up by itself, after its own silence.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use feiqian_protocol::frame::Lane;

use crate::plan::LinkQuality;
use crate::seed::Seed;

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;

/// Smallest time after which a lost packet is sent again.
const RESEND_NS: u64 = 25 * MS;

/// What a packet carries, headers included.
const PACKET_BYTES: u64 = 1_200;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Way {
    /// To the node.
    Down,
    /// To the centre.
    Up,
}

/// A frame on its way.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub way: Way,
    pub lane: Lane,
    pub bytes: Rc<[u8]>,
    pub arrives_ns: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct LaneState {
    free_ns: u64,
    arrived_ns: u64,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub site: usize,
    /// True while the node's process holds it.
    pub node_end: bool,
    /// True while the centre's process holds it.
    pub centre_end: bool,
    lanes: [[LaneState; 3]; 2],
    /// Frames that came to a broken path.
    pub held: VecDeque<Flight>,
    /// When the path broke; ends give up by it.
    pub silent_since: Option<u64>,
    /// Counts breaks, so that a timer of an earlier one is nothing.
    pub breaks: u32,
    /// True where something that came this way was altered.
    pub forged: [bool; 2],
    /// Entries under way to either side, to see whether something urgent overtakes them.
    pub bulk_flying: [u32; 2],
}

const fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Urgent => 0,
        Lane::Control => 1,
        Lane::Bulk => 2,
    }
}

impl Connection {
    pub(super) fn new(site: usize, now_ns: u64, centre_from_ns: u64) -> Self {
        let down = [LaneState { free_ns: now_ns, arrived_ns: now_ns }; 3];
        let up = [LaneState { free_ns: now_ns, arrived_ns: centre_from_ns }; 3];
        Self {
            site,
            node_end: true,
            centre_end: true,
            lanes: [down, up],
            held: VecDeque::new(),
            silent_since: None,
            breaks: 0,
            forged: [false; 2],
            bulk_flying: [0; 2],
        }
    }

    /// When everything that was sent this way so far in a lane has arrived.
    pub(super) fn arrived_ns(&self, way: Way, lane: Lane) -> u64 {
        self.lanes[way as usize][lane_index(lane)].arrived_ns
    }

    /// Sends a frame; says when it arrives.
    pub(super) fn send(
        &mut self,
        now_ns: u64,
        way: Way,
        lane: Lane,
        bytes: Rc<[u8]>,
        quality: &LinkQuality,
        seed: &mut Seed,
    ) -> Flight {
        let lanes = &mut self.lanes[way as usize];
        let index = lane_index(lane);
        let length = bytes.len() as u64 + 4;
        let transmission = match quality.bits_per_s {
            0 => 0,
            bits => length * 8 * 1_000_000_000 / bits,
        };
        let left = now_ns.max(lanes[index].free_ns) + transmission;
        lanes[index].free_ns = left;
        // What is more urgent goes first on the same wire, so that the rest is later by it.
        for later in &mut lanes[index + 1..] {
            later.free_ns = later.free_ns.max(now_ns) + transmission;
        }
        let mut arrives_ns = left + quality.latency_us * US + seed.below(quality.jitter_us * US + 1);
        if quality.loss_permille > 0 {
            let again = RESEND_NS.max(2 * quality.latency_us * US);
            for _ in 0..length.div_ceil(PACKET_BYTES).min(64) {
                let mut pause = again;
                while seed.chance(u64::from(quality.loss_permille), 1_000) {
                    arrives_ns += pause;
                    pause = (pause * 2).min(2_000 * MS);
                }
            }
        }
        arrives_ns = arrives_ns.max(lanes[index].arrived_ns + 1);
        lanes[index].arrived_ns = arrives_ns;
        if lane == Lane::Bulk {
            self.bulk_flying[way as usize] += 1;
        }
        Flight { way, lane, bytes, arrives_ns }
    }

    /// When everything that was sent one way has arrived.
    pub(super) fn drained_ns(&self, way: Way) -> u64 {
        self.lanes[way as usize].iter().map(|lane| lane.arrived_ns).max().unwrap_or(0)
    }

    /// True where the receiving end of a way still holds the connection.
    pub(super) const fn received(&self, way: Way) -> bool {
        match way {
            Way::Down => self.node_end,
            Way::Up => self.centre_end,
        }
    }

    /// True where the sending end of a way still holds the connection.
    pub(super) const fn sending(&self, way: Way) -> bool {
        match way {
            Way::Down => self.centre_end,
            Way::Up => self.node_end,
        }
    }
}

/// All connections that at least one end holds.
pub(super) type Connections = BTreeMap<u64, Connection>;
