//! The memory that connections to one database share (the index of its write-ahead log), and its locks. Volatile.

// SQLite reads and writes this memory by itself, through pointers that it keeps.
#![allow(unsafe_code)]

use super::parking::Shared;

/// Locks that SQLite uses on shared memory (`SQLITE_SHM_NLOCK`).
const SLOTS: usize = 8;

/// One region, allocated once and at one place until it is freed.
#[derive(Debug)]
struct Region {
    start: *mut u64,
    words: usize,
}

// SAFETY: the region is plain memory, owned by `Shm`; SQLite orders the accesses of its connections by the locks and
// barriers below, as it does for memory shared between processes.
unsafe impl Send for Region {}

impl Region {
    fn new(bytes: usize) -> Self {
        let words = bytes.div_ceil(8);
        let start = Box::into_raw(vec![0_u64; words].into_boxed_slice()).cast::<u64>();
        Self { start, words }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `start` and `words` are those of the boxed slice that `new` took apart, and nobody else frees it. Every
        // connection that was given the pointer held an `Arc` of the owner until it unmapped.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.start, self.words)) });
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    shared: u32,
    exclusive: bool,
}

/// The locks that one connection holds, one bit a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    shared: u8,
    exclusive: u8,
}

/// The shared memory of one database.
#[derive(Debug, Default)]
pub(super) struct Shm {
    regions: Shared<Vec<Region>>,
    slots: Shared<[Slot; SLOTS]>,
}

impl<T: Default> Default for Shared<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl Shm {
    /// Where a region begins; `None` where it is not there and `extend` is false.
    pub(super) fn region(&self, index: usize, bytes: usize, extend: bool) -> Option<*mut u64> {
        let mut regions = self.regions.lock();
        while extend && regions.len() <= index {
            regions.push(Region::new(bytes));
        }
        regions.get(index).map(|region| region.start)
    }

    /// Takes or gives back the locks of `count` slots from `first` on; false where somebody else holds one.
    pub(super) fn lock(&self, held: &mut Held, first: usize, count: usize, how: ShmLock) -> bool {
        let mut slots = self.slots.lock();
        let range = first.min(SLOTS)..(first + count).min(SLOTS);
        let mine = |bits: u8, slot: usize| bits & (1 << slot) != 0;
        match how {
            ShmLock::Shared => {
                if range.clone().any(|slot| slots[slot].exclusive && !mine(held.exclusive, slot)) {
                    return false;
                }
                for slot in range {
                    if !mine(held.shared, slot) {
                        slots[slot].shared += 1;
                        held.shared |= 1 << slot;
                    }
                }
            }
            ShmLock::Exclusive => {
                let others = |slot: usize| {
                    let own = u32::from(mine(held.shared, slot));
                    slots[slot].shared > own || (slots[slot].exclusive && !mine(held.exclusive, slot))
                };
                if range.clone().any(others) {
                    return false;
                }
                for slot in range {
                    slots[slot].exclusive = true;
                    held.exclusive |= 1 << slot;
                }
            }
            ShmLock::Unlock => {
                for slot in range {
                    if mine(held.shared, slot) {
                        slots[slot].shared -= 1;
                    }
                    if mine(held.exclusive, slot) {
                        slots[slot].exclusive = false;
                    }
                    held.shared &= !(1 << slot);
                    held.exclusive &= !(1 << slot);
                }
            }
        }
        true
    }

    /// Gives back everything that a connection holds.
    pub(super) fn release(&self, held: &mut Held) {
        self.lock(held, 0, SLOTS, ShmLock::Unlock);
    }
}

/// What is done to locks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ShmLock {
    Exclusive,
    Shared,
    Unlock,
}
