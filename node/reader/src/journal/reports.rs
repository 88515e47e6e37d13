//! What the node is to be told, in order, until it has it.

use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{JournalError, JournalFile, SELECT, columns, touch};
use crate::report::Report;

pub(super) const SCHEMA: &str = "
    CREATE TABLE reports (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        touch INTEGER UNIQUE,
        load INTEGER UNIQUE,
        refusal TEXT,
        recorded INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX reports_waiting ON reports (id) WHERE recorded = 0;
";

/// What was finished before there were reports is waiting. A node knows a purchase that it was told of by whoever runs the POS.
pub(super) const FROM_LAYOUT_0: &str = "
    INSERT INTO reports (touch) SELECT id FROM touches
        WHERE outcome IS NOT NULL AND outcome <> '{\"outcome\":\"never_happened\"}' ORDER BY id;
";

/// How a report stands.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportState {
    /// The node has not been told yet, or has not answered.
    Waiting,
    /// The node has it.
    Recorded,
    /// The node refuses it, for the time being.
    Refused(Refusal),
}

/// Why the node refuses a report.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refusal {
    /// The node's stable code.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A report that the node does not have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unrecorded {
    /// Its number.
    pub id: i64,
    /// The POS's key of the purchase or the load; `None` where a purse ran low.
    pub key: Option<String>,
    /// What is to be told.
    pub report: Report,
    /// What the node said to it.
    pub refusal: Option<Refusal>,
}

/// How many reports the node does not have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counts {
    /// That wait.
    pub waiting: i64,
    /// That the node refuses.
    pub refused: i64,
}

/// How a report stands that was joined to a row: its `recorded` and `refusal` from column `at` on.
pub(super) fn state(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<ReportState>> {
    let (recorded, refusal): (Option<bool>, Option<String>) = (row.get(at)?, row.get(at + 1)?);
    let Some(recorded) = recorded else { return Ok(None) };
    Ok(Some(match refusal {
        _ if recorded => ReportState::Recorded,
        Some(refusal) => ReportState::Refused(refusal_of(&refusal)),
        None => ReportState::Waiting,
    }))
}

fn refusal_of(text: &str) -> Refusal {
    serde_json::from_str(text)
        .unwrap_or_else(|_| Refusal { code: "unknown".to_owned(), message: text.to_owned() })
}

impl JournalFile {
    /// The first report after `id` that the node does not have; of those that it has refused, where `refused`, else of the others.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn unrecorded_after(&self, id: i64, refused: bool) -> Result<Option<Unrecorded>, JournalError> {
        let mut after = id;
        loop {
            let mut statement = self.connection.prepare_cached(
                "SELECT id, touch, load, refusal FROM reports
                 WHERE recorded = 0 AND id > ?1 AND (refusal IS NOT NULL) = ?2 ORDER BY id LIMIT 1",
            )?;
            let row = statement
                .query_row(params![after, refused], |row| {
                    let of: (Option<i64>, Option<i64>) = (row.get(1)?, row.get(2)?);
                    Ok((row.get::<_, i64>(0)?, of, row.get::<_, Option<String>>(3)?))
                })
                .optional()?;
            let Some((id, (of_touch, of_load), refusal)) = row else { return Ok(None) };
            let found = match (of_touch, of_load) {
                (Some(of_touch), _) => {
                    let sql = format!("{SELECT} WHERE touches.id = ?1");
                    let row =
                        self.connection.prepare_cached(&sql)?.query_row([of_touch], columns).optional()?;
                    let row = row.map(touch).transpose()?;
                    row.and_then(|touch| Some((Some(touch.key.clone()), touch.reported()?)))
                }
                (None, Some(of_load)) => {
                    self.load_at(of_load)?.and_then(|load| Some((load.key.clone(), load.reported()?)))
                }
                (None, None) => None,
            };
            if let Some((key, report)) = found {
                let refusal = refusal.as_deref().map(refusal_of);
                return Ok(Some(Unrecorded { id, key, report, refusal }));
            }
            after = id;
        }
    }

    /// The node has it; durable when this returns.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn recorded(&mut self, id: i64) -> Result<(), JournalError> {
        self.connection.execute("UPDATE reports SET recorded = 1, refusal = NULL WHERE id = ?1", [id])?;
        Ok(())
    }

    /// The node refuses it.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn refused(&mut self, id: i64, refusal: &Refusal) -> Result<(), JournalError> {
        let text = serde_json::to_string(refusal).expect("a refusal is JSON");
        let update = "UPDATE reports SET refusal = ?2 WHERE id = ?1 AND recorded = 0";
        self.connection.execute(update, params![id, text])?;
        Ok(())
    }

    /// How many reports the node does not have.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn report_counts(&self) -> Result<Counts, JournalError> {
        let sql = "SELECT count(*), count(refusal) FROM reports WHERE recorded = 0";
        let (all, refused): (i64, i64) =
            self.connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(Counts { waiting: all - refused, refused })
    }
}

#[cfg(test)]
mod tests {
    use feiqian_protocol::purse::torn::Outcome;
    use rusqlite::Connection;

    use super::super::testing::{A, B, entry, load};
    use super::*;

    fn tac() -> Outcome {
        Outcome::Completed { tac: "0102030405060708".parse().unwrap() }
    }

    fn keys(journal: &JournalFile, refused: bool) -> Vec<String> {
        let (mut keys, mut after) = (Vec::new(), 0);
        while let Some(Unrecorded { id, key, .. }) = journal.unrecorded_after(after, refused).unwrap() {
            keys.push(key.unwrap());
            after = id;
        }
        keys
    }

    #[test]
    fn what_is_over_is_reported_in_the_order_in_which_it_became_known_across_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = JournalFile::open(folder.path()).unwrap();
        let first = journal.begin("first", &entry(A, 1)).unwrap();
        let second = journal.begin("second", &entry(B, 2)).unwrap();
        assert_eq!(journal.unrecorded_after(0, false).unwrap(), None, "nothing of it is known yet");
        let taken = journal.begin_load(Some("load"), true, &load(A, 7)).unwrap();
        journal.resolve(second, &tac()).unwrap();
        journal.resolve_load(taken, &tac()).unwrap();
        journal.resolve(first, &Outcome::CompletedWithoutProof { tac: None }).unwrap();
        let third = journal.begin("third", &entry(A, 3)).unwrap();
        journal.resolve(third, &Outcome::NeverHappened).unwrap();
        assert_eq!(keys(&journal, false), ["second", "load", "first"]);
        let of_second = journal.unrecorded_after(0, false).unwrap().unwrap();
        assert_eq!(Some(&of_second.report), journal.of_key("second").unwrap().unwrap().reported().as_ref());
        journal.recorded(of_second.id).unwrap();
        drop(journal);

        let mut journal = JournalFile::open(folder.path()).unwrap();
        assert_eq!(keys(&journal, false), ["load", "first"]);
        assert_eq!(journal.of_key("second").unwrap().unwrap().report, Some(ReportState::Recorded));
        assert_eq!(journal.of_key("third").unwrap().unwrap().report, None);
        // A refusal stands in nobody's way, and is not forgotten.
        let of_load = journal.unrecorded_after(0, false).unwrap().unwrap();
        let refusal = Refusal { code: "unknown_terminal".into(), message: "who?".into() };
        journal.refused(of_load.id, &refusal).unwrap();
        drop(journal);
        let mut journal = JournalFile::open(folder.path()).unwrap();
        assert_eq!(
            (keys(&journal, false), keys(&journal, true)),
            (vec!["first".into()], vec!["load".into()])
        );
        assert_eq!(journal.report_counts().unwrap(), Counts { waiting: 1, refused: 1 });
        let load = journal.load_of_key("load").unwrap().unwrap();
        assert_eq!(load.report, Some(ReportState::Refused(refusal)));
        journal.recorded(of_load.id).unwrap();
        assert_eq!(journal.report_counts().unwrap(), Counts { waiting: 1, refused: 0 });
    }

    #[test]
    fn a_journal_from_before_there_were_reports_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let old = Connection::open(folder.path().join("journal.db")).unwrap();
        old.execute_batch(super::super::SCHEMA).unwrap();
        let outcomes = [
            None,
            Some(tac()),
            Some(Outcome::NeverHappened),
            Some(Outcome::CompletedWithoutProof { tac: None }),
        ];
        for (sequence, outcome) in (1..).zip(outcomes) {
            let entry = entry(A, sequence);
            let row = params![
                format!("pos-{sequence}"),
                A,
                sequence,
                serde_json::to_string(&entry).unwrap(),
                outcome.map(|outcome| serde_json::to_string(&outcome).unwrap()),
            ];
            let insert =
                "INSERT INTO touches (key, serial, sequence, entry, outcome) VALUES (?1, ?2, ?3, ?4, ?5)";
            old.execute(insert, row).unwrap();
        }
        drop(old);
        let journal = JournalFile::open(folder.path()).unwrap();
        assert_eq!(keys(&journal, false), ["pos-2", "pos-4"]);
        assert_eq!(journal.open_of(A.parse().unwrap()).unwrap().unwrap().key, "pos-1");
        drop(journal);
        let journal = JournalFile::open(folder.path()).unwrap();
        assert_eq!(keys(&journal, false), ["pos-2", "pos-4"], "once");
        drop(journal);
        let later = Connection::open(folder.path().join("journal.db")).unwrap();
        later.pragma_update(None, "user_version", 2).unwrap();
        drop(later);
        assert!(matches!(JournalFile::open(folder.path()), Err(JournalError::Later(2))));
    }
}
