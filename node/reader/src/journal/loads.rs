//! Loads: what a card was told to take.

use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::torn::Outcome;
use feiqian_protocol::purse::values::CardSerial;
use rusqlite::{OptionalExtension, Row, params};

use super::reports::{ReportState, state};
use super::{JournalError, JournalFile, ROWS_MAX, parsed};
use crate::report::Report;

pub(super) const SCHEMA: &str = "
    CREATE TABLE loads (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT,
        collect INTEGER NOT NULL,
        serial TEXT NOT NULL,
        entry TEXT NOT NULL,
        outcome TEXT
    ) STRICT;
    CREATE INDEX loads_by_key ON loads (key);
    CREATE UNIQUE INDEX loads_taken
        ON loads (key) WHERE outcome IS NULL OR outcome <> '{\"outcome\":\"never_happened\"}';
    CREATE UNIQUE INDEX loads_open ON loads (serial) WHERE outcome IS NULL;
    CREATE TABLE doubts (serial TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
";

/// Loads, with how their reports stand.
const SELECT: &str = "SELECT loads.id, key, collect, entry, outcome, reports.recorded, reports.refusal
    FROM loads LEFT JOIN reports ON reports.load = loads.id";

/// A row.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoadTouch {
    /// Grows.
    pub id: i64,
    /// The POS's; `None` where a purse ran low.
    pub key: Option<String>,
    /// True where all was wanted that the account has.
    pub collect: bool,
    /// What the card was to take; the MAC is MAC2.
    pub entry: JournalEntry,
    /// What became of it; `None` while that is not known.
    pub outcome: Option<Outcome>,
    /// Whether the node has the card's word; `None` where there is none to tell.
    pub report: Option<ReportState>,
}

impl LoadTouch {
    /// What the node is told of it.
    pub fn reported(&self) -> Option<Report> {
        Report::load(&self.entry, self.outcome.as_ref()?)
    }
}

impl JournalFile {
    /// Writes a load down before the card is credited; durable when this returns. A card has one open row at most, and a key one
    /// that is open or came to something.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn begin_load(
        &mut self,
        key: Option<&str>,
        collect: bool,
        entry: &JournalEntry,
    ) -> Result<i64, JournalError> {
        let text = serde_json::to_string(entry).expect("an entry is JSON");
        self.connection.execute(
            "INSERT INTO loads (key, collect, serial, entry) VALUES (?1, ?2, ?3, ?4)",
            params![key, collect, entry.serial.to_string(), text],
        )?;
        Ok(self.connection.last_insert_rowid())
    }

    /// Writes down what became of an open load, and that the node is to be told where there is a TAC; a row that is resolved keeps
    /// what it has.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn resolve_load(&mut self, id: i64, outcome: &Outcome) -> Result<(), JournalError> {
        let text = serde_json::to_string(outcome).expect("an outcome is JSON");
        let transaction = self.connection.transaction()?;
        let resolved = transaction
            .execute("UPDATE loads SET outcome = ?2 WHERE id = ?1 AND outcome IS NULL", params![id, text])?;
        let has_tac =
            matches!(outcome, Outcome::Completed { .. } | Outcome::CompletedWithoutProof { tac: Some(_) });
        if resolved > 0 && has_tac {
            transaction.execute("INSERT INTO reports (load) VALUES (?1)", [id])?;
        }
        Ok(transaction.commit()?)
    }

    /// The open load of a card.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open_load_of(&self, serial: CardSerial) -> Result<Option<LoadTouch>, JournalError> {
        self.one_load(&format!("{SELECT} WHERE serial = ?1 AND outcome IS NULL"), &serial.to_string())
    }

    /// The newest load of a POS's key.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn load_of_key(&self, key: &str) -> Result<Option<LoadTouch>, JournalError> {
        self.one_load(&format!("{SELECT} WHERE key = ?1 ORDER BY loads.id DESC LIMIT 1"), key)
    }

    /// Loads after `id`, at most `limit`.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn loads_after(&self, id: i64, limit: u32) -> Result<Vec<LoadTouch>, JournalError> {
        let sql = format!("{SELECT} WHERE loads.id > ?1 ORDER BY loads.id LIMIT ?2");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![id, limit.min(ROWS_MAX)], columns)?;
        rows.map(|row| load(row?)).collect()
    }

    /// How many loads are open.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open_load_count(&self) -> Result<i64, JournalError> {
        let count = "SELECT count(*) FROM loads WHERE outcome IS NULL";
        Ok(self.connection.query_row(count, [], |row| row.get(0))?)
    }

    /// The centre may have let money go to a card, and this terminal has not heard of it.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn doubt(&mut self, serial: CardSerial) -> Result<(), JournalError> {
        self.connection.execute("INSERT OR IGNORE INTO doubts VALUES (?1)", [serial.to_string()])?;
        Ok(())
    }

    /// True where [`JournalFile::doubt`] said so, and nobody has found out.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn is_doubted(&self, serial: CardSerial) -> Result<bool, JournalError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM doubts WHERE serial = ?1)";
        Ok(self.connection.query_row(sql, [serial.to_string()], |row| row.get(0))?)
    }

    /// The centre has no load of the card that is not settled.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn found_out(&mut self, serial: CardSerial) -> Result<(), JournalError> {
        self.connection.execute("DELETE FROM doubts WHERE serial = ?1", [serial.to_string()])?;
        Ok(())
    }

    pub(super) fn load_at(&self, id: i64) -> Result<Option<LoadTouch>, JournalError> {
        let sql = format!("{SELECT} WHERE loads.id = ?1");
        let row = self.connection.prepare_cached(&sql)?.query_row([id], columns).optional()?;
        row.map(load).transpose()
    }

    fn one_load(&self, sql: &str, parameter: &str) -> Result<Option<LoadTouch>, JournalError> {
        let row = self.connection.prepare_cached(sql)?.query_row([parameter], columns).optional()?;
        row.map(load).transpose()
    }
}

type Columns = (i64, Option<String>, bool, String, Option<String>, Option<ReportState>);

fn columns(row: &Row<'_>) -> rusqlite::Result<Columns> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, state(row, 5)?))
}

fn load((id, key, collect, entry, outcome, report): Columns) -> Result<LoadTouch, JournalError> {
    let (entry, outcome) = parsed(id, &entry, outcome.as_deref())?;
    Ok(LoadTouch { id, key, collect, entry, outcome, report })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{A, B, load};
    use super::*;

    #[test]
    fn a_load_is_there_after_a_restart_and_a_key_takes_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = JournalFile::open(folder.path()).unwrap();
        let id = journal.begin_load(Some("pos-1"), false, &load(A, 7)).unwrap();
        assert!(journal.begin_load(Some("pos-2"), false, &load(A, 7)).is_err(), "one open load of a card");
        journal.begin_load(None, true, &load(B, 1)).unwrap();
        drop(journal);

        let mut journal = JournalFile::open(folder.path()).unwrap();
        let open = journal.open_load_of(A.parse().unwrap()).unwrap().unwrap();
        assert_eq!(
            open,
            LoadTouch {
                id,
                key: Some("pos-1".into()),
                collect: false,
                entry: load(A, 7),
                outcome: None,
                report: None
            }
        );
        assert_eq!(journal.open_load_count().unwrap(), 2);
        journal.resolve_load(id, &Outcome::NeverHappened).unwrap();
        let again = journal.begin_load(Some("pos-1"), false, &load(A, 7)).unwrap();
        let tac = Outcome::Completed { tac: "0102030405060708".parse().unwrap() };
        journal.resolve_load(again, &tac).unwrap();
        journal.resolve_load(again, &Outcome::NeverHappened).unwrap();
        let known = journal.load_of_key("pos-1").unwrap().unwrap();
        assert_eq!((known.id, known.outcome, known.report), (again, Some(tac), Some(ReportState::Waiting)));
        assert!(journal.begin_load(Some("pos-1"), false, &load(A, 8)).is_err());
        // Of purses that ran low there may be many.
        journal.begin_load(None, true, &load(A, 8)).unwrap();
        assert_eq!(journal.loads_after(id, 10).unwrap().len(), 3);
    }

    #[test]
    fn a_doubt_stays_until_somebody_has_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let serial = A.parse().unwrap();
        let mut journal = JournalFile::open(folder.path()).unwrap();
        assert!(!journal.is_doubted(serial).unwrap());
        journal.doubt(serial).unwrap();
        journal.doubt(serial).unwrap();
        drop(journal);
        let mut journal = JournalFile::open(folder.path()).unwrap();
        assert!(journal.is_doubted(serial).unwrap() && !journal.is_doubted(B.parse().unwrap()).unwrap());
        journal.found_out(serial).unwrap();
        assert!(!journal.is_doubted(serial).unwrap());
    }
}
