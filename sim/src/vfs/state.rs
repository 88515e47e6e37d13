//! What is on a crash disk: the safe half, without SQLite's types.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use super::content::Content;
use super::shm::Shm;
use crate::seed::Seed;

/// What a disk keeps or loses as a whole.
const SECTOR: usize = 512;

/// How the users of a disk come to an end.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    Kill,
    PowerCut(Seed),
}

/// The disk does not do it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum DiskError {
    /// The handle is of a process that is gone.
    Dead,
    /// No room.
    Full,
    /// No such file.
    Missing,
}

/// What was done on a disk so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Syncs, those that were ignored included.
    pub syncs: u64,
    /// Times that everything open came to an end: kills, power cuts, restored copies.
    pub endings: u64,
    /// A digest of what was written where, synced, truncated and removed so far; see [`super::Disk::audit`].
    pub digest: u64,
}

/// A copy of all files of a disk.
#[derive(Clone, Debug, Default)]
pub struct Image(BTreeMap<String, Content>);

impl Image {
    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.0.values().map(|content| content.len() as u64).sum()
    }

    /// Writes one of the files to a real disk, and waits until it is there; nothing where there is none of this name.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write_file(&self, name: &str, path: &std::path::Path) -> std::io::Result<()> {
        match self.0.get(name) {
            Some(content) => {
                std::fs::write(path, content.to_bytes())?;
                std::fs::File::open(path)?.sync_all()
            }
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug)]
enum Change {
    Truncate(usize),
    Write { offset: usize, bytes: Vec<u8> },
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Self::Truncate(len) => content.truncate(*len),
            Self::Write { offset, bytes } => content.write(*offset, bytes),
        }
    }

    /// The bytes that may be others after it.
    const fn bytes(&self) -> std::ops::Range<usize> {
        match self {
            Self::Truncate(len) => *len..usize::MAX,
            Self::Write { offset, bytes } => *offset..*offset + bytes.len(),
        }
    }

    /// The pieces that survive or get lost by themselves.
    fn sectors(self) -> Vec<Self> {
        let Self::Write { mut offset, bytes } = self else {
            return vec![self];
        };
        let mut rest = bytes.as_slice();
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(SECTOR - offset % SECTOR));
            pieces.push(Self::Write { offset, bytes: piece.to_vec() });
            offset += piece.len();
            rest = after;
        }
        pieces
    }
}

/// The locks of a database file, as SQLite's five levels need them.
#[derive(Clone, Debug, Default)]
pub(super) struct FileLocks {
    pub(super) shared: u32,
    pub(super) reserved: bool,
    pub(super) pending: bool,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    live: Content,
    durable: Content,
    unsynced: Vec<Change>,
    /// True once the name is on disk as well.
    linked: bool,
    handles: u32,
    locks: FileLocks,
    shm: Weak<Shm>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) ignore_syncs: bool,
    pub(super) capacity: Option<u64>,
    pub(super) sync_delay: Duration,
    pub(super) audited: bool,
    pub(super) counters: Counters,
    generation: u64,
    armed: Option<(u64, Ending)>,
    names: BTreeMap<String, u64>,
    /// Names that were removed without a directory sync: they may come back.
    ghosts: BTreeMap<String, u64>,
    inodes: BTreeMap<u64, Inode>,
    last_inode: u64,
}

/// Names an open file. Valid in one generation: after a kill or a cut it is dead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    generation: u64,
    inode: u64,
}

impl State {
    pub(super) fn new(image: &Image) -> Self {
        let mut state = Self::default();
        state.restore(image);
        state
    }

    pub(super) fn image(&self) -> Image {
        let live = |inode| self.inodes.get(inode).map(|inode: &Inode| inode.live.clone()).unwrap_or_default();
        Image(self.names.iter().map(|(name, inode)| (name.clone(), live(inode))).collect())
    }

    pub(super) fn restore(&mut self, image: &Image) {
        self.end(Ending::Kill);
        self.names.clear();
        self.ghosts.clear();
        self.inodes.clear();
        for (name, content) in &image.0 {
            let inode = self.create(name);
            if let Some(inode) = self.inodes.get_mut(&inode) {
                inode.live.clone_from(content);
                inode.durable.clone_from(content);
                inode.linked = true;
            }
        }
    }

    /// Turns a bit of a file, on the platter and in what is read from it; false where there is no such file.
    pub(super) fn flip(&mut self, name: &str, bit: u64) -> bool {
        let Some(inode) = self.names.get(name).and_then(|inode| self.inodes.get_mut(inode)) else {
            return false;
        };
        let bits = inode.durable.len() as u64 * 8;
        if bits == 0 {
            return false;
        }
        let (byte, mask) = ((bit % bits / 8) as usize, 1 << (bit % 8));
        inode.durable.flip(byte, mask);
        inode.live.flip(byte, mask);
        true
    }

    pub(super) fn arm(&mut self, changes: u64, ending: Ending) {
        self.armed = Some((changes, ending));
    }

    pub(super) fn disarm(&mut self) -> bool {
        self.armed.take().is_some()
    }

    pub(super) fn end(&mut self, ending: Ending) {
        self.generation += 1;
        self.counters.endings += 1;
        self.armed = None;
        if let Ending::PowerCut(seed) = ending {
            self.lose_unsynced(seed);
        }
        let named: Vec<u64> = self.names.values().chain(self.ghosts.values()).copied().collect();
        self.inodes.retain(|id, _| named.contains(id));
        for inode in self.inodes.values_mut() {
            inode.handles = 0;
            inode.locks = FileLocks::default();
            inode.shm = Weak::new();
        }
    }

    fn lose_unsynced(&mut self, mut seed: Seed) {
        for (name, inode) in std::mem::take(&mut self.ghosts) {
            if seed.chance(1, 2) && !self.names.contains_key(&name) {
                self.names.insert(name, inode);
            }
        }
        let inodes = &self.inodes;
        self.names.retain(|_, id| inodes.get(id).is_some_and(|inode| inode.linked) || seed.chance(1, 2));
        for inode in self.inodes.values_mut() {
            inode.lose_unsynced(&mut seed);
        }
    }

    /// Counts a change of the disk; true where the planned end comes with it.
    fn due(&mut self) -> Option<Ending> {
        match &mut self.armed {
            Some((0, _)) => self.armed.take().map(|(_, ending)| ending),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        }
    }

    /// Takes a change into the digest.
    fn note(&mut self, what: u64, bytes: &[u8]) {
        if self.audited {
            self.counters.digest = digest(self.counters.digest ^ what, bytes);
        }
    }

    fn create(&mut self, name: &str) -> u64 {
        self.last_inode += 1;
        self.names.insert(name.to_owned(), self.last_inode);
        self.inodes.insert(self.last_inode, Inode::default());
        self.last_inode
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    pub(super) fn open(&mut self, name: &str, create: bool) -> Result<Opened, DiskError> {
        let inode = match self.names.get(name) {
            Some(inode) => *inode,
            None if create => self.create(name),
            None => return Err(DiskError::Missing),
        };
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.handles += 1;
        }
        Ok(Opened { generation: self.generation, inode })
    }

    pub(super) fn close(&mut self, opened: Opened) {
        let named = self.names.values().chain(self.ghosts.values()).any(|id| *id == opened.inode);
        if let Ok(inode) = self.inode(opened) {
            inode.handles -= 1;
            if inode.handles == 0 && !named {
                self.inodes.remove(&opened.inode);
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str, sync_directory: bool) -> Result<(), DiskError> {
        let due = self.due();
        self.note(3, name.as_bytes());
        let inode = self.names.remove(name).ok_or(DiskError::Missing)?;
        self.ghosts.insert(name.to_owned(), inode);
        if let Some(ending) = due {
            self.end(ending);
            return Err(DiskError::Dead);
        }
        if sync_directory && !self.ignore_syncs {
            self.ghosts.clear();
        }
        Ok(())
    }

    fn inode(&mut self, opened: Opened) -> Result<&mut Inode, DiskError> {
        if opened.generation != self.generation {
            return Err(DiskError::Dead);
        }
        self.inodes.get_mut(&opened.inode).ok_or(DiskError::Dead)
    }

    /// Fills `into` from `offset` on; returns how many bytes were there.
    pub(super) fn read(
        &mut self,
        opened: Opened,
        offset: usize,
        into: &mut [u8],
    ) -> Result<usize, DiskError> {
        Ok(self.inode(opened)?.live.read(offset, into))
    }

    pub(super) fn write(&mut self, opened: Opened, offset: usize, bytes: &[u8]) -> Result<(), DiskError> {
        let used: u64 = self.inodes.values().map(|inode| inode.live.len() as u64).sum();
        let capacity = self.capacity;
        let inode = self.inode(opened)?;
        let growth = (offset + bytes.len()).saturating_sub(inode.live.len()) as u64;
        if growth > 0 && capacity.is_some_and(|capacity| used + growth > capacity) {
            return Err(DiskError::Full);
        }
        self.note((opened.inode << 48) ^ offset as u64, bytes);
        self.change(opened, Change::Write { offset, bytes: bytes.to_vec() })?;
        self.counters.writes += 1;
        self.counters.bytes += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn truncate(&mut self, opened: Opened, len: usize) -> Result<(), DiskError> {
        self.note((opened.inode << 48) ^ (len as u64) ^ (1 << 46), &[]);
        self.change(opened, Change::Truncate(len))
    }

    fn change(&mut self, opened: Opened, change: Change) -> Result<(), DiskError> {
        let due = self.due();
        let inode = self.inode(opened)?;
        change.apply(&mut inode.live);
        inode.unsynced.push(change);
        match due {
            Some(ending) => {
                self.end(ending);
                Err(DiskError::Dead)
            }
            None => Ok(()),
        }
    }

    pub(super) fn sync(&mut self, opened: Opened) -> Result<(), DiskError> {
        self.inode(opened)?;
        if let Some(ending) = self.due() {
            self.end(ending);
            return Err(DiskError::Dead);
        }
        self.counters.syncs += 1;
        self.note((opened.inode << 48) ^ (1 << 45), &[]);
        if !self.ignore_syncs {
            let inode = self.inode(opened)?;
            let changed = inode.unsynced.drain(..).map(|change| change.bytes());
            inode.durable.follow(&inode.live, changed);
            // The first sync of a new file takes its directory along, as SQLite's own VFS for Unix does it.
            if !std::mem::replace(&mut inode.linked, true) {
                self.ghosts.clear();
            }
        }
        Ok(())
    }

    pub(super) fn len(&mut self, opened: Opened) -> Result<usize, DiskError> {
        Ok(self.inode(opened)?.live.len())
    }

    pub(super) fn locks(&mut self, opened: Opened) -> Result<&mut FileLocks, DiskError> {
        Ok(&mut self.inode(opened)?.locks)
    }

    /// The shared memory of a file; lost with the last connection that uses it, and with every end.
    pub(super) fn shm(&mut self, opened: Opened) -> Result<std::sync::Arc<Shm>, DiskError> {
        let inode = self.inode(opened)?;
        Ok(inode.shm.upgrade().unwrap_or_else(|| {
            let shm = std::sync::Arc::new(Shm::default());
            inode.shm = std::sync::Arc::downgrade(&shm);
            shm
        }))
    }

    pub(super) const fn is_alive(&self, opened: Opened) -> bool {
        self.generation == opened.generation
    }
}

/// Mixes bytes into a digest (the rounds of MurmurHash64A, Appleby 2008): fast, and equal runs stay equal.
pub(crate) fn digest(seed: u64, bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0xc6a4_a793_5bd1_e995;
    let mut mixed = seed ^ (bytes.len() as u64).wrapping_mul(FACTOR);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let mut bits = u64::from_le_bytes(word.try_into().unwrap_or_default()).wrapping_mul(FACTOR);
        bits ^= bits >> 47;
        mixed = (mixed ^ bits.wrapping_mul(FACTOR)).wrapping_mul(FACTOR);
    }
    for byte in words.remainder() {
        mixed = (mixed ^ u64::from(*byte)).wrapping_mul(FACTOR);
    }
    mixed ^= mixed >> 47;
    mixed = mixed.wrapping_mul(FACTOR);
    mixed ^ (mixed >> 47)
}

impl Inode {
    fn lose_unsynced(&mut self, seed: &mut Seed) {
        // From nothing to everything: both ends are likely on a real disk, and so is anything between.
        let kept = *seed.pick(&[0, 1, 4, 7, 8]).unwrap_or(&0);
        let mut pieces: Vec<Change> = self.unsynced.drain(..).flat_map(Change::sectors).collect();
        if kept < 8 {
            pieces.retain(|_| seed.chance(kept, 8));
            seed.shuffle(&mut pieces);
        }
        for piece in &pieces {
            piece.apply(&mut self.durable);
        }
        self.live.clone_from(&self.durable);
        self.linked = true;
    }
}
