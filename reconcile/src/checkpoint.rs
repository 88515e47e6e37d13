//! Moves SQLite's write-ahead log into the database beside the core. The core would otherwise do it all by itself, within a
//! step once in a while, and what somebody waits for would wait for thousands of pages.
//!
//! A thread with a connection of its own looks at the log, and moves what stands there once it is worth a sync; a passive
//! checkpoint holds no writer up. The core's own checkpoint (`wal_autocheckpoint`) then finds little left to do, and
//! starts the log again from its beginning, which this one cannot while the core goes on writing.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Pages that are worth two syncs.
const PAGES_WORTH_IT: i64 = 500;

/// The running thread.
pub struct Checkpointer {
    stop: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Checkpointer {
    /// Starts it on a database, which need not exist yet.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start(database: PathBuf) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || run(&database, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub fn stop(self) {
        // Where it has ended already there is nothing to say, and a panic of it has said so itself.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

fn run(database: &Path, stopped: &mpsc::Receiver<()>) {
    let mut connection = None;
    while stopped.recv_timeout(LOOK_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
        if connection.is_none() {
            // The core makes the database, and says so where it cannot.
            connection = open(database).ok();
        }
        if let Some(found) = &connection
            && let Err(error) = look(found)
        {
            tracing::debug!(%error, "the write-ahead log is left to the core");
            connection = None;
        }
    }
}

fn open(database: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

/// Moves what stands in the log, where that is worth it; returns how many pages are moved of how many.
fn look(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let (pages, moved) = checkpoint(connection, "NOOP")?;
    if pages - moved < PAGES_WORTH_IT {
        Ok((moved, pages))
    } else {
        checkpoint(connection, "PASSIVE").map(|(pages, moved)| (moved, pages))
    }
}

/// Pages in the log, and those of them that are in the database, afterwards.
fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<(i64, i64)> {
    connection
        .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?
        .query_row([], |row| Ok((row.get(1)?, row.get(2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_worth_it_is_moved_while_its_writer_has_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("centre.db");
        assert!(open(&path).is_err(), "it makes no database");
        let writer = Connection::open(&path).unwrap();
        writer.pragma_update(None, "journal_mode", "WAL").unwrap();
        writer.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        writer.execute_batch("CREATE TABLE t (a BLOB); INSERT INTO t VALUES (zeroblob(40000))").unwrap();
        let beside = open(&path).unwrap();
        let (moved, pages) = look(&beside).unwrap();
        assert_eq!(moved, 0, "of {pages}");
        writer.execute_batch("INSERT INTO t VALUES (zeroblob(4000000))").unwrap();
        // Not committed, and in nobody's way.
        writer.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (zeroblob(40000))").unwrap();
        let (moved, pages) = look(&beside).unwrap();
        assert!(moved == pages && pages > PAGES_WORTH_IT, "{moved} of {pages}");
        writer.execute_batch("COMMIT").unwrap();
    }
}
