//! How much of what comes in bulk a step takes, beside what a person waits for.

use std::time::Duration;

use feiqian_protocol::limits::{BUSY_FOR_MS, ENTRIES_PER_FRAME_TARGET};
use tokio::time::Instant;

/// Entries that come in bulk and share a step, give or take a frame: some milliseconds of work, for which everything else waits,
/// and a commit for each frame by itself would cost a slow disk too much.
const BULK_PER_STEP: usize = 4 * ENTRIES_PER_FRAME_TARGET;

/// The same where somebody waits, or did not long ago: what is not taken now goes in the next step but one.
const BULK_BESIDE_OTHERS: usize = ENTRIES_PER_FRAME_TARGET;

/// What a person waits for goes before what comes in bulk, but not twice in a row, so that this comes in all the same.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// True where the last step left something that came in bulk.
    stood_back: bool,
    /// When somebody waited last.
    waited: Option<Instant>,
}

impl Pace {
    /// Entries in bulk for the next step, where `others` says that somebody waits for something in it.
    pub(super) fn room(&mut self, others: bool, now: Instant) -> usize {
        if others {
            self.waited = Some(now);
        }
        let busy =
            self.waited.is_some_and(|since| now.duration_since(since) < Duration::from_millis(BUSY_FOR_MS));
        match (others, self.stood_back) {
            (true, false) => 0,
            _ if busy => BULK_BESIDE_OTHERS,
            _ => BULK_PER_STEP,
        }
    }

    /// The step had so much room, and left something for want of it or not.
    pub(super) const fn stepped(&mut self, room: usize, left: bool) {
        self.stood_back = room == 0 && left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_makes_way_once_and_comes_in_small_portions_for_a_second() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.room(false, now), BULK_PER_STEP);
        assert_eq!(pace.room(true, now), 0);
        pace.stepped(0, true);
        let room = pace.room(true, now);
        assert_eq!(room, BULK_BESIDE_OTHERS, "not twice in a row");
        pace.stepped(room, true);
        assert_eq!(pace.room(true, now), 0);
        pace.stepped(0, false);
        assert_eq!(pace.room(true, now), 0, "nothing had made way");
        let after = |ms| now + Duration::from_millis(ms);
        assert_eq!(pace.room(false, after(BUSY_FOR_MS - 1)), BULK_BESIDE_OTHERS);
        assert_eq!(pace.room(false, after(BUSY_FOR_MS)), BULK_PER_STEP);
    }
}
