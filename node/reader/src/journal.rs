//! What is on disk: every purchase that a card was, or may have been, told to make, every load that it was told to take, what
//! became of them, and what of that the node has.
//!
//! | table | row |
//! |---|---|
//! | `touches` | a purchase: `id`; `key` of the POS; `serial`; `sequence` of the SAM; `entry` ([`JournalEntry`] as JSON); `outcome` ([`Outcome`] as JSON, null while open) |
//! | `loads` | a load: `id`; `key` of the POS, null of a purse that ran low; `collect` where it was all that the account has; `serial`; `entry` and `outcome` as above |
//! | `doubts` | `serial` of a card that the centre may have let money go to while its answer was lost |
//! | `reports` | what the node is to be told: `id`, in the order in which it became known; `touch` or `load`; `refusal` of the node, null where there was none; `recorded` |
//!
//! Rows stay: they are what the terminal has to show for its money. [`loads`] and [`reports`] have the other two tables.

pub mod loads;
pub mod reports;
#[cfg(test)]
pub(crate) mod testing;

use std::path::Path;

use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::torn::Outcome;
use feiqian_protocol::purse::values::{CardSerial, TerminalSequence};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use crate::report::Report;
use reports::ReportState;

/// Rows that one request lists at most.
pub const ROWS_MAX: u32 = 500;

/// The journal's file.
#[derive(Debug)]
pub struct JournalFile {
    connection: Connection,
}

/// A row of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Touch {
    /// Grows.
    pub id: i64,
    /// The POS's.
    pub key: String,
    /// What was to be done.
    pub entry: JournalEntry,
    /// What became of it; `None` while that is not known.
    pub outcome: Option<Outcome>,
    /// Whether the node has it; `None` where there is nothing to tell.
    pub report: Option<ReportState>,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database failed.
    #[error("the journal cannot be read or written")]
    Database(#[from] rusqlite::Error),
    /// A row that is none.
    #[error("the journal's row {id} is damaged")]
    Damaged {
        /// The row.
        id: i64,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Of a later program.
    #[error("the journal was written by a later version of this program (layout {0})")]
    Later(i64),
}

/// The layout of the tables, in `user_version`. Before 1 there were purchases alone.
const LAYOUT: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS touches (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL,
        serial TEXT NOT NULL,
        sequence INTEGER NOT NULL UNIQUE,
        entry TEXT NOT NULL,
        outcome TEXT
    ) STRICT;
    CREATE INDEX IF NOT EXISTS touches_by_key ON touches (key);
    CREATE UNIQUE INDEX IF NOT EXISTS touches_paid
        ON touches (key) WHERE outcome IS NULL OR outcome <> '{\"outcome\":\"never_happened\"}';
    CREATE UNIQUE INDEX IF NOT EXISTS touches_open ON touches (serial) WHERE outcome IS NULL;
";

impl JournalFile {
    /// Opens or makes `journal.db` in `directory`, for this process alone.
    ///
    /// # Errors
    /// [`JournalError`]; also where another process has it.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        let connection = Connection::open(directory.join("journal.db"))?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let mut journal = Self { connection };
        journal.lay_out()?;
        Ok(journal)
    }

    /// Makes the tables, where they are not there yet. What was finished before there were reports is reported, too.
    fn lay_out(&mut self) -> Result<(), JournalError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let layout: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if layout > LAYOUT {
            return Err(JournalError::Later(layout));
        }
        if layout < LAYOUT {
            for schema in [SCHEMA, loads::SCHEMA, reports::SCHEMA] {
                transaction.execute_batch(schema)?;
            }
            transaction.execute_batch(reports::FROM_LAYOUT_0)?;
            transaction.pragma_update(None, "user_version", LAYOUT)?;
        }
        Ok(transaction.commit()?)
    }

    /// The highest number that the SAM has given to a purchase that was written down.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn last_sequence(&self) -> Result<Option<TerminalSequence>, JournalError> {
        let last: Option<u32> =
            self.connection.query_row("SELECT max(sequence) FROM touches", [], |row| row.get(0))?;
        Ok(last.map(TerminalSequence))
    }

    /// Writes a purchase down before the card is told; durable when this returns. A card has one open row at
    /// most, and a key one that is open or came to something.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn begin(&mut self, key: &str, entry: &JournalEntry) -> Result<i64, JournalError> {
        let text = serde_json::to_string(entry).expect("an entry is JSON");
        self.connection.execute(
            "INSERT INTO touches (key, serial, sequence, entry) VALUES (?1, ?2, ?3, ?4)",
            params![key, entry.serial.to_string(), entry.terms.sequence.0, text],
        )?;
        Ok(self.connection.last_insert_rowid())
    }

    /// Writes down what became of an open row, and that the node is to be told; a row that is resolved keeps what it has.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn resolve(&mut self, id: i64, outcome: &Outcome) -> Result<(), JournalError> {
        let text = serde_json::to_string(outcome).expect("an outcome is JSON");
        let transaction = self.connection.transaction()?;
        let resolved = transaction.execute(
            "UPDATE touches SET outcome = ?2 WHERE id = ?1 AND outcome IS NULL",
            params![id, text],
        )?;
        if resolved > 0 && *outcome != Outcome::NeverHappened {
            transaction.execute("INSERT INTO reports (touch) VALUES (?1)", [id])?;
        }
        Ok(transaction.commit()?)
    }

    /// The open row of a card.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open_of(&self, serial: CardSerial) -> Result<Option<Touch>, JournalError> {
        self.one(&format!("{SELECT} WHERE serial = ?1 AND outcome IS NULL"), &serial.to_string())
    }

    /// The newest row of a POS's key.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn of_key(&self, key: &str) -> Result<Option<Touch>, JournalError> {
        self.one(&format!("{SELECT} WHERE key = ?1 ORDER BY touches.id DESC LIMIT 1"), key)
    }

    /// Rows after `id`, at most `limit`.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn after(&self, id: i64, limit: u32) -> Result<Vec<Touch>, JournalError> {
        let sql = format!("{SELECT} WHERE touches.id > ?1 ORDER BY touches.id LIMIT ?2");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![id, limit.min(ROWS_MAX)], columns)?;
        rows.map(|row| touch(row?)).collect()
    }

    /// How many rows are open.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open_count(&self) -> Result<i64, JournalError> {
        let count = "SELECT count(*) FROM touches WHERE outcome IS NULL";
        Ok(self.connection.query_row(count, [], |row| row.get(0))?)
    }

    fn one(&self, sql: &str, parameter: &str) -> Result<Option<Touch>, JournalError> {
        let row = self.connection.prepare_cached(sql)?.query_row([parameter], columns).optional()?;
        row.map(touch).transpose()
    }
}

/// Purchases, with how their reports stand.
const SELECT: &str = "SELECT touches.id, key, entry, outcome, reports.recorded, reports.refusal
    FROM touches LEFT JOIN reports ON reports.touch = touches.id";

type Columns = (i64, String, String, Option<String>, Option<ReportState>);

fn columns(row: &Row<'_>) -> rusqlite::Result<Columns> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, reports::state(row, 4)?))
}

fn touch((id, key, entry, outcome, report): Columns) -> Result<Touch, JournalError> {
    let (entry, outcome) = parsed(id, &entry, outcome.as_deref())?;
    Ok(Touch { id, key, entry, outcome, report })
}

/// Entry and outcome of a row.
fn parsed(
    id: i64,
    entry: &str,
    outcome: Option<&str>,
) -> Result<(JournalEntry, Option<Outcome>), JournalError> {
    let damaged = |source| JournalError::Damaged { id, source };
    let entry = serde_json::from_str(entry).map_err(damaged)?;
    Ok((entry, outcome.map(serde_json::from_str).transpose().map_err(damaged)?))
}

impl Touch {
    /// What the node is told of it.
    pub fn reported(&self) -> Option<Report> {
        Report::purchase(&self.entry, self.outcome.as_ref()?)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{A, B, entry};
    use super::*;

    #[test]
    fn what_was_written_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = JournalFile::open(folder.path()).unwrap();
        assert_eq!(journal.last_sequence().unwrap(), None);
        let id = journal.begin("pos-1", &entry(A, 7)).unwrap();
        // No second one of that card while the first is open; of another there may be.
        assert!(journal.begin("pos-2", &entry(A, 8)).is_err());
        journal.begin("pos-3", &entry(B, 9)).unwrap();
        assert!(JournalFile::open(folder.path()).is_err(), "one process alone");
        drop(journal);

        let mut journal = JournalFile::open(folder.path()).unwrap();
        assert_eq!(journal.last_sequence().unwrap(), Some(TerminalSequence(9)));
        let open = journal.open_of(A.parse().unwrap()).unwrap().unwrap();
        assert_eq!(open, Touch { id, key: "pos-1".into(), entry: entry(A, 7), outcome: None, report: None });
        assert_eq!(journal.open_count().unwrap(), 2);
        let tac = Outcome::Completed { tac: "0102030405060708".parse().unwrap() };
        journal.resolve(id, &tac).unwrap();
        // A key pays once, and may be used again where nothing came of it.
        assert!(journal.begin("pos-1", &entry(A, 10)).is_err());
        let again = journal.begin("pos-4", &entry(A, 10)).unwrap();
        journal.resolve(again, &Outcome::NeverHappened).unwrap();
        journal.begin("pos-4", &entry(A, 11)).unwrap();
        // What is resolved stays so.
        journal.resolve(id, &Outcome::NeverHappened).unwrap();
        assert_eq!(journal.of_key("pos-1").unwrap().unwrap().outcome, Some(tac));
        assert_eq!(journal.open_of(A.parse().unwrap()).unwrap().unwrap().key, "pos-4");
        assert_eq!(journal.after(id, 10).unwrap().len(), 3);
        assert_eq!(journal.after(0, 1).unwrap().len(), 1);
    }
}
