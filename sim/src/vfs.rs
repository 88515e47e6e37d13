//! The crash disk: SQLite files in memory that a power cut treats as a real disk does.
//!
//! What was written since a file's last sync is, at a cut, dropped or kept sector by sector (512 bytes), in random
//! order; the same goes for changes of length, and for files created or removed without a directory sync. What was
//! synced stays. A process that is killed, on the other hand, loses nothing that it had written. After either, every
//! handle that was open fails with an I/O error, as the process that held it is gone.
//!
//! Cuts are drawn from a seed. SQLite's own randomness (salts in the log of a database) is of its process: it differs from run
//! to run, unless [`fix_randomness`] is called. Neither what is written where nor what survives depends on it.

mod content;
mod ffi;
mod shm;
mod state;

use std::sync::Arc;
use std::time::Duration;

use parking::Shared;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, OpenFlags};
pub use state::{Counters, Image};
use state::{Ending, State};

use crate::seed::Seed;

mod parking {
    //! A mutex whose poisoning is of no interest: a panic of a test thread leaves the disk as consistent as a kill.
    use std::sync::{Mutex, MutexGuard, PoisonError};

    #[derive(Debug)]
    pub(super) struct Shared<T>(Mutex<T>);

    impl<T> Shared<T> {
        pub(super) const fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

/// Makes SQLite's random numbers in this process start anew, and the same each time. Its generator is one per process and is
/// seeded through the default VFS, which from here on is the crash disk: for processes that do nothing but simulate.
pub fn fix_randomness() {
    ffi::fix_randomness();
}

pub(crate) use state::digest;

/// A disk with its files. Clones are the same disk; [`Disk::image`] copies one.
#[derive(Clone, Debug)]
pub struct Disk {
    name: String,
    state: Arc<Shared<State>>,
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::from_image(&Image::default())
    }

    /// A disk with a copy of these files, all of them synced.
    pub fn from_image(image: &Image) -> Self {
        let state = Arc::new(Shared::new(State::new(image)));
        let name = ffi::mount(&state);
        Self { name, state }
    }

    /// Opens a database on this disk.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn open(&self, file: &str) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Connection::open_with_flags_and_vfs(format!("{}/{file}", self.name), flags, ffi::VFS_NAME)
    }

    /// Opens a database on this disk so that `synchronous` stays at NORMAL, whatever its user sets: commits are not synced
    /// one by one. For showing what that loses.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn open_lowered(&self, file: &str) -> rusqlite::Result<Connection> {
        let connection = self.open(file)?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.authorizer(Some(|context: AuthContext<'_>| match context.action {
            AuthAction::Pragma { pragma_name: "synchronous", pragma_value: Some(_) } => Authorization::Ignore,
            _ => Authorization::Allow,
        }))?;
        Ok(connection)
    }

    /// The power goes: unsynced changes are dropped or torn, open handles are dead.
    pub fn power_cut(&self, seed: u64) {
        self.state.lock().end(Ending::PowerCut(Seed::new(seed)));
    }

    /// The process dies: everything that it wrote stays, open handles are dead.
    pub fn kill(&self) {
        self.state.lock().end(Ending::Kill);
    }

    /// Lets the power go by itself at the `changes`-th change (write, sync, truncation, removal) from here on.
    pub fn power_cut_after(&self, changes: u64, seed: u64) {
        self.state.lock().arm(changes, Ending::PowerCut(Seed::new(seed)));
    }

    /// Lets the process die by itself at the `changes`-th change from here on.
    pub fn kill_after(&self, changes: u64) {
        self.state.lock().arm(changes, Ending::Kill);
    }

    /// Forgets about what [`Disk::power_cut_after`] or [`Disk::kill_after`] had planned; true where it was still to come.
    pub fn disarm(&self) -> bool {
        self.state.lock().disarm()
    }

    /// A copy of all files as a process sees them at this moment.
    pub fn image(&self) -> Image {
        self.state.lock().image()
    }

    /// Puts an older (or another) copy of the files in place of what is here; open handles are dead.
    pub fn restore(&self, image: &Image) {
        self.state.lock().restore(image);
    }

    /// A lying disk: from here on syncs are said to be done and are not.
    pub fn ignore_syncs(&self, ignore: bool) {
        self.state.lock().ignore_syncs = ignore;
    }

    /// Bytes that all files together may have; a write beyond it fails with `SQLITE_FULL`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// How long every sync takes, in real time.
    pub fn set_sync_delay(&self, delay: Duration) {
        self.state.lock().sync_delay = delay;
    }

    /// From here on [`Counters::digest`] says what is written where.
    pub fn audit(&self) {
        self.state.lock().audited = true;
    }

    /// Turns a bit of a file, counted from its beginning and modulo its size; false where the file is empty or missing.
    pub fn flip_bit(&self, file: &str, bit: u64) -> bool {
        self.state.lock().flip(file, bit)
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.state.lock().counters
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(disk: &Disk, synchronous: &str) -> rusqlite::Result<Connection> {
        let connection = disk.open("t.db")?;
        connection.execute_batch(&format!(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous};
             PRAGMA wal_autocheckpoint=8;
             CREATE TABLE IF NOT EXISTS t(k INTEGER PRIMARY KEY, v BLOB) STRICT;"
        ))?;
        Ok(connection)
    }

    /// Commits rows until the disk stops; returns how many commits were confirmed.
    fn commit_rows(connection: &mut Connection, from: i64, upto: i64) -> i64 {
        let commit = |connection: &mut Connection, k: i64| -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            let blob = vec![k as u8; 40 + (k as usize * 37) % 3_000];
            transaction.execute("INSERT INTO t VALUES(?1, ?2)", (k, blob))?;
            transaction.commit()
        };
        (from..upto).take_while(|k| commit(connection, *k).is_ok()).count() as i64
    }

    fn rows(connection: &Connection) -> i64 {
        let bad: i64 = connection
            .query_row("SELECT count(*) FROM t WHERE length(v) <> 40 + (k * 37) % 3000", [], |row| row.get(0))
            .unwrap();
        assert_eq!(bad, 0);
        let (count, max): (i64, i64) = connection
            .query_row("SELECT count(*), coalesce(max(k), -1) + 1 FROM t", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(count, max, "rows are there without a gap");
        count
    }

    /// Runs one life after the other on one disk, each ended by a cut; returns how many confirmed commits were lost.
    fn lives(seed: u64, synchronous: &str, cuts: u64) -> i64 {
        let mut seed = Seed::new(seed);
        let disk = Disk::new();
        let mut confirmed = 0;
        let mut lost = 0;
        for _ in 0..cuts {
            disk.power_cut_after(seed.below(120), seed.draw());
            if let Ok(mut connection) = open(&disk, synchronous)
                && let Ok(there) = count(&connection)
            {
                assert!(there >= confirmed || synchronous != "FULL", "{there} of {confirmed}");
                lost += (confirmed - there).max(0);
                confirmed = there + commit_rows(&mut connection, there, there + 40);
            }
            if disk.disarm() {
                disk.power_cut(seed.draw());
            }
        }
        let connection = open(&disk, synchronous).unwrap();
        let integrity: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(integrity, "ok");
        lost + (confirmed - rows(&connection)).max(0)
    }

    fn count(connection: &Connection) -> rusqlite::Result<i64> {
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
    }

    #[test]
    fn confirmed_commits_survive_power_cuts_at_full() {
        for seed in 0..20 {
            assert_eq!(lives(seed, "FULL", 10), 0, "seed {seed}");
        }
    }

    #[test]
    fn without_a_sync_per_commit_confirmed_commits_are_lost() {
        let lost: i64 = (0..5).map(|seed| lives(seed, "NORMAL", 10)).sum();
        assert!(lost > 0, "the disk would catch a commit that is not synced");
    }

    #[test]
    fn a_lying_disk_loses_what_it_confirmed() {
        let disk = Disk::new();
        let mut connection = open(&disk, "FULL").unwrap();
        commit_rows(&mut connection, 0, 1);
        disk.ignore_syncs(true);
        assert_eq!(commit_rows(&mut connection, 1, 4), 3);
        let lost = (0..10).any(|seed| {
            let copy = disk.clone_with_unsynced();
            copy.power_cut(seed);
            rows(&open(&copy, "FULL").unwrap()) < 4
        });
        assert!(lost);
    }

    #[test]
    fn a_kill_keeps_what_was_written_and_ends_the_old_handles() {
        let disk = Disk::new();
        let mut connection = open(&disk, "NORMAL").unwrap();
        assert_eq!(commit_rows(&mut connection, 0, 5), 5);
        disk.kill();
        assert!(connection.execute("INSERT INTO t VALUES(99, x'')", []).is_err());
        drop(connection);
        assert_eq!(rows(&open(&disk, "NORMAL").unwrap()), 5);
    }

    #[test]
    fn equal_seeds_leave_equal_disks() {
        let survivors = |seed| {
            let disk = Disk::new();
            let mut connection = open(&disk, "NORMAL").unwrap();
            disk.power_cut_after(60, seed);
            commit_rows(&mut connection, 0, 40);
            drop(connection);
            (rows(&open(&disk, "FULL").unwrap()), disk.counters())
        };
        for seed in 0..20 {
            assert_eq!(survivors(seed), survivors(seed));
        }
    }

    #[test]
    fn several_connections_share_one_database() {
        let disk = Disk::new();
        let mut writer = open(&disk, "FULL").unwrap();
        let reader = open(&disk, "FULL").unwrap();
        commit_rows(&mut writer, 0, 3);
        assert_eq!(rows(&reader), 3);
        reader.execute_batch("BEGIN").unwrap();
        assert_eq!(rows(&reader), 3);
        commit_rows(&mut writer, 3, 50);
        assert_eq!(rows(&reader), 3, "a reader keeps its snapshot");
        reader.execute_batch("COMMIT").unwrap();
        assert_eq!(rows(&reader), 50);
        writer.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert!(reader.execute_batch("BEGIN IMMEDIATE").is_err(), "one writer at a time");
    }

    #[test]
    fn a_full_disk_refuses_writes_and_keeps_what_is_there() {
        let disk = Disk::new();
        let mut connection = open(&disk, "FULL").unwrap();
        commit_rows(&mut connection, 0, 5);
        disk.set_capacity(Some(disk.image().bytes() + 8_000));
        let more = commit_rows(&mut connection, 5, 500);
        assert!(more < 400);
        disk.set_capacity(None);
        assert_eq!(rows(&connection), 5 + more);
        assert_eq!(commit_rows(&mut connection, 5 + more, 8 + more), 3);
    }

    #[test]
    fn an_image_is_a_copy_that_lives_on_by_itself() {
        let disk = Disk::new();
        let mut connection = open(&disk, "FULL").unwrap();
        commit_rows(&mut connection, 0, 3);
        let old = disk.image();
        commit_rows(&mut connection, 3, 6);
        let copy = Disk::from_image(&old);
        assert_eq!(rows(&open(&copy, "FULL").unwrap()), 3);
        disk.restore(&old);
        assert!(connection.execute("INSERT INTO t VALUES(99, x'')", []).is_err());
        assert_eq!(rows(&open(&disk, "FULL").unwrap()), 3);
    }

    impl Disk {
        /// A second disk in exactly the same state, unsynced changes included.
        fn clone_with_unsynced(&self) -> Self {
            let state = Arc::new(Shared::new(self.state.lock().clone()));
            let name = ffi::mount(&state);
            Self { name, state }
        }
    }
}
