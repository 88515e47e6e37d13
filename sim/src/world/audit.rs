//! A digest of everything that happens, so that two runs of a seed can be compared; and the last events, for people.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::Write;

use crate::outcome::LAST_EVENTS;
use crate::vfs::digest;

/// Where events go. Whoever tells of one looks at the world meanwhile, so everything here is behind a shared reference.
pub(super) struct Audit {
    state: Cell<u64>,
    /// What times are counted from.
    origin_ns: u64,
    /// Whether events are put into words: costly, so only where somebody will read them.
    words: bool,
    last: RefCell<VecDeque<String>>,
    trace: RefCell<Option<Box<dyn Write>>>,
}

impl Audit {
    pub(super) fn new(words: bool, trace: Option<Box<dyn Write>>, origin_ns: u64) -> Self {
        let words = words || trace.is_some();
        Self {
            origin_ns,
            state: Cell::new(0x5eed),
            words,
            last: RefCell::default(),
            trace: RefCell::new(trace),
        }
    }

    /// Something happened, as numbers.
    pub(super) fn event(&self, now_ns: u64, what: u64, more: u64) {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&now_ns.to_le_bytes());
        bytes[8..16].copy_from_slice(&what.to_le_bytes());
        bytes[16..].copy_from_slice(&more.to_le_bytes());
        self.bytes(&bytes);
    }

    /// Bytes that left a host.
    pub(super) fn bytes(&self, bytes: &[u8]) {
        self.state.set(digest(self.state.get(), bytes));
    }

    /// The same in words.
    pub(super) fn say(&self, now_ns: u64, words: impl FnOnce() -> String) {
        if !self.words {
            return;
        }
        let us = (now_ns as i64 - self.origin_ns as i64) / 1_000;
        let line = format!("{:>9}.{:03} ms  {}", us / 1_000, us.unsigned_abs() % 1_000, words());
        if let Some(trace) = self.trace.borrow_mut().as_mut() {
            // A trace that cannot be written is missed by whoever wanted it, and harms nothing else.
            let _ = writeln!(trace, "{line}");
        }
        let mut last = self.last.borrow_mut();
        if last.len() == LAST_EVENTS {
            last.pop_front();
        }
        last.push_back(line);
    }

    pub(super) fn has_trace(&self) -> bool {
        self.trace.borrow().is_some()
    }

    pub(super) fn last_events(&self) -> Vec<String> {
        self.last.borrow().iter().cloned().collect()
    }

    /// The digest, with those of the disks.
    pub(super) fn finish(&self, disks: impl Iterator<Item = u64>) -> String {
        let all = disks.fold(self.state.get(), |state, disk| digest(state, &disk.to_le_bytes()));
        format!("{all:016x}")
    }
}
