//! Purchases of purses that terminals reported: by the terminal's key, and by card and counter, so that each is written once.

use std::collections::BTreeMap;

use feiqian_protocol::entry::{Body, Entry, PursePurchase, TapRef};
use feiqian_protocol::ids::{LogId, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::purse::values::{CardSerial, Counter};
use rusqlite::{Connection, OptionalExtension, params};

use super::log::each_record;
use super::{Store, StoreError};
use crate::purse::report_digest;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS purse_reports (
    terminal TEXT NOT NULL, epoch INTEGER NOT NULL, sequence TEXT NOT NULL, digest BLOB NOT NULL,
    serial BLOB NOT NULL, counter INTEGER NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (terminal, epoch, sequence)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS purse_reports_of ON purse_reports (serial, counter);
CREATE TABLE IF NOT EXISTS purse_debits (position INTEGER PRIMARY KEY, amount INTEGER NOT NULL);
";

/// True for a database in which it is kept what purses paid: not for one that only a build which kept it nowhere has opened.
pub(crate) fn keeps_debits(connection: &Connection) -> Result<bool, StoreError> {
    Ok(connection.prepare("SELECT 1 FROM sqlite_master WHERE name = 'purse_debits'")?.exists([])?)
}

/// Makes the tables. What purses have paid before there were all of them, the own log says.
pub(super) fn create(connection: &Connection, own: LogId) -> Result<(), StoreError> {
    let is_kept = keeps_debits(connection)?;
    connection.execute_batch(SCHEMA)?;
    if is_kept {
        return Ok(());
    }
    each_record(connection, own, |position, record| {
        match Entry::from_record(record).map(|entry| entry.body) {
            Ok(Body::PursePurchase(purchase)) => put_debit(connection, position, purchase.amount),
            // What does not read back, verifying names.
            _ => Ok(()),
        }
    })
}

fn put_debit(connection: &Connection, position: u64, amount: Fen) -> Result<(), StoreError> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO purse_debits VALUES (?1, ?2)")?
        .execute(params![position as i64, amount.get()])?;
    Ok(())
}

/// A report.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ReportRow {
    terminal: String,
    tap: TapRef,
    /// What was reported, the key aside.
    pub(crate) digest: [u8; 16],
    serial: CardSerial,
    counter: Counter,
    /// Its entry.
    pub(crate) position: u64,
}

impl ReportRow {
    /// Of the entry at `position`.
    pub(crate) fn new(terminal: &TerminalId, purchase: &PursePurchase, position: u64) -> Self {
        Self {
            terminal: terminal.to_string(),
            tap: purchase.tap.clone(),
            digest: report_digest(purchase),
            serial: purchase.serial,
            counter: purchase.counter,
            position,
        }
    }

    /// The same, of another entry.
    pub(crate) fn at(self, position: u64) -> Self {
        Self { position, ..self }
    }
}

impl Store {
    /// What a key reported.
    pub(crate) fn purse_report(
        &self,
        terminal: &TerminalId,
        tap: &TapRef,
    ) -> Result<Option<ReportRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT digest, serial, counter, position FROM purse_reports
             WHERE terminal = ?1 AND epoch = ?2 AND sequence = ?3",
        )?;
        let key = params![terminal.as_str(), tap.epoch, tap.sequence.as_str()];
        let found: Option<(Vec<u8>, Vec<u8>, u16, i64)> = statement
            .query_row(key, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .optional()?;
        let Some((digest, serial, counter, position)) = found else { return Ok(None) };
        let (Ok(digest), Ok(serial)) = (digest.try_into(), serial.try_into()) else {
            return Err(StoreError::damaged("a report of a purse"));
        };
        Ok(Some(ReportRow {
            terminal: terminal.to_string(),
            tap: tap.clone(),
            digest,
            serial: CardSerial(serial),
            counter: Counter(counter),
            position: position as u64,
        }))
    }

    /// The entry of a purchase that was reported before, under whatever key.
    pub(crate) fn purse_report_of(
        &self,
        serial: CardSerial,
        counter: Counter,
        digest: [u8; 16],
    ) -> Result<Option<u64>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT position FROM purse_reports WHERE serial = ?1 AND counter = ?2 AND digest = ?3 LIMIT 1",
        )?;
        let found = statement.query_row(params![serial.0, counter.0, digest], |row| row.get::<_, i64>(0));
        Ok(found.optional()?.map(|position| position as u64))
    }

    /// Keeps the first report of a purchase, and how much is lost with this disk until the centre has it.
    pub(crate) fn put_purse_purchase(&self, row: &ReportRow, amount: Fen) -> Result<(), StoreError> {
        put_debit(&self.connection, row.position, amount)?;
        self.put_purse_report(row)
    }

    /// Keeps a report.
    pub(crate) fn put_purse_report(&self, row: &ReportRow) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO purse_reports VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![
                row.terminal,
                row.tap.epoch,
                row.tap.sequence.as_str(),
                row.digest,
                row.serial.0,
                row.counter.0,
                row.position as i64
            ])?;
        Ok(())
    }
}

/// What purses paid, by entry.
pub(crate) fn paid(connection: &Connection) -> Result<BTreeMap<u64, Fen>, StoreError> {
    let mut statement = connection.prepare("SELECT position, amount FROM purse_debits")?;
    let rows =
        statement.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1).map(Fen::new)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Hands every report that is kept to `each`: terminal, epoch, sequence, digest, position.
pub(crate) fn each_report(
    connection: &Connection,
    mut each: impl FnMut((String, u32, String), Vec<u8>, u64),
) -> Result<(), StoreError> {
    let mut statement =
        connection.prepare("SELECT terminal, epoch, sequence, digest, position FROM purse_reports")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let key = (row.get(0)?, row.get(1)?, row.get(2)?);
        each(key, row.get(3)?, row.get::<_, i64>(4)? as u64);
    }
    Ok(())
}
