//! A virtual link: frames under way, by direction and lane. Lanes overtake each other; within a lane nothing does.

use std::collections::{BTreeMap, VecDeque};

use feiqian_protocol::frame::{Frame, Lane};

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Direction {
    /// To the node.
    Down,
    /// To the centre.
    Up,
}

/// A frame that may be delivered next: the first of its lane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Waiting {
    /// The building.
    pub site: usize,
    /// Which way it goes.
    pub direction: Direction,
    /// Its lane.
    pub lane: Lane,
}

/// One connection.
pub(super) struct Wire {
    pub(super) link: u64,
    queues: BTreeMap<(Direction, Lane), VecDeque<Vec<u8>>>,
}

impl Wire {
    pub(super) const fn new(link: u64) -> Self {
        Self { link, queues: BTreeMap::new() }
    }

    pub(super) fn push(&mut self, direction: Direction, frame: &Frame) {
        self.queues.entry((direction, frame.lane())).or_default().push_back(frame.to_bytes());
    }

    pub(super) fn waiting(&self, site: usize) -> Vec<Waiting> {
        let with_frames = self.queues.iter().filter(|(_, frames)| !frames.is_empty());
        with_frames
            .map(|((direction, lane), _)| Waiting { site, direction: *direction, lane: *lane })
            .collect()
    }

    pub(super) fn take(&mut self, frame: Waiting) -> Option<Vec<u8>> {
        self.queues.get_mut(&(frame.direction, frame.lane))?.pop_front()
    }

    pub(super) fn replace(&mut self, frame: Waiting, bytes: Vec<u8>) {
        if let Some(first) = self.queues.get_mut(&(frame.direction, frame.lane)).and_then(VecDeque::front_mut)
        {
            *first = bytes;
        }
    }

    pub(super) fn peek(&self, frame: Waiting) -> Option<&[u8]> {
        self.queues.get(&(frame.direction, frame.lane))?.front().map(Vec::as_slice)
    }
}
