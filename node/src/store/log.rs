//! Entries and signed heads.

use ed25519_dalek::VerifyingKey;
use feiqian_protocol::chain::{Cursor, Head, SignedHead};
use feiqian_protocol::frame::Entries;
use feiqian_protocol::ids::{InstitutionId, LogId};
use feiqian_protocol::limits::ENTRIES_PER_FRAME_MAX;
use feiqian_protocol::session::pack_with_every_head;
use feiqian_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Store, StoreError};

macro_rules! heads_where {
    ($rest:literal) => {
        concat!("SELECT position, hash, applied, anchor, signature FROM heads WHERE log = ?1 ", $rest)
    };
}

impl Store {
    /// Keeps a record.
    pub(crate) fn put_entry(&self, log: LogId, position: u64, record: &[u8]) -> Result<(), StoreError> {
        self.connection.prepare_cached("INSERT INTO entries VALUES (?1, ?2, ?3)")?.execute(params![
            log.key(),
            position as i64,
            record
        ])?;
        Ok(())
    }

    /// Keeps a signed head.
    pub(crate) fn put_head(&self, signed: &SignedHead) -> Result<(), StoreError> {
        let head = &signed.head;
        self.connection.prepare_cached("INSERT INTO heads VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(
            params![
                head.log.key(),
                head.cursor.position as i64,
                head.cursor.hash,
                head.applied as i64,
                head.anchor.0,
                signed.signature,
            ],
        )?;
        Ok(())
    }

    /// The newest head of a log: where it ends.
    pub(crate) fn last_head(&self, log: LogId) -> Result<Option<SignedHead>, StoreError> {
        let mut statement = self.connection.prepare_cached(heads_where!("ORDER BY position DESC LIMIT 1"))?;
        Ok(statement.query_row([log.key()], |row| read_head(log, row)).optional()?)
    }

    /// The head at a position, where one was signed there.
    pub(crate) fn head_at(&self, log: LogId, position: u64) -> Result<Option<SignedHead>, StoreError> {
        let mut statement = self.connection.prepare_cached(heads_where!("AND position = ?2"))?;
        Ok(statement.query_row(params![log.key(), position as i64], |row| read_head(log, row)).optional()?)
    }

    /// At most `limit` records after a position, in order. One that is missing is empty, as no record is, so that those
    /// behind it keep their places.
    pub(crate) fn records_after(
        &self,
        log: LogId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT position, record FROM entries WHERE log = ?1 AND position > ?2 ORDER BY position LIMIT ?3",
        )?;
        let mut rows = statement.query(params![log.key(), after as i64, limit as i64])?;
        let mut records: Vec<Vec<u8>> = Vec::new();
        while let Some(row) = rows.next()? {
            let place = (row.get::<_, i64>(0)? as u64).saturating_sub(after + 1);
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            if place >= limit {
                break;
            }
            records.resize(place, Vec::new());
            records.push(row.get(1)?);
        }
        Ok(records)
    }

    /// The next frame of a log after a position, as a log of the name `named`, with every head: where records were altered or
    /// are missing, each commit is proven by itself.
    pub(crate) fn every_commit(
        &self,
        log: LogId,
        named: LogId,
        after: u64,
    ) -> Result<Option<Entries>, StoreError> {
        let mut records = self.records_after(log, after, ENTRIES_PER_FRAME_MAX)?;
        let heads = self.heads_after(log, after, ENTRIES_PER_FRAME_MAX)?;
        // Missing at the end of the log.
        let signed = heads.last().map_or(0, |signed| signed.head.cursor.position.saturating_sub(after));
        let signed = usize::try_from(signed).unwrap_or(usize::MAX).min(ENTRIES_PER_FRAME_MAX);
        records.resize(records.len().max(signed), Vec::new());
        Ok(pack_with_every_head(named, after, records, heads))
    }

    /// Where a log's first record stands; 0 where it has none.
    pub(crate) fn first_record(&self, log: LogId) -> Result<u64, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT coalesce(min(position), 0) FROM entries WHERE log = ?1")?;
        Ok(statement.query_row([log.key()], |row| row.get::<_, i64>(0))? as u64)
    }

    /// Where a log's last record stands; 0 where it has none.
    pub(crate) fn last_record(&self, log: LogId) -> Result<u64, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT coalesce(max(position), 0) FROM entries WHERE log = ?1")?;
        Ok(statement.query_row([log.key()], |row| row.get::<_, i64>(0))? as u64)
    }

    /// At most `limit` heads after a position, in order.
    pub(crate) fn heads_after(
        &self,
        log: LogId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<SignedHead>, StoreError> {
        let mut statement =
            self.connection.prepare_cached(heads_where!("AND position > ?2 ORDER BY position LIMIT ?3"))?;
        let heads =
            statement.query_map(params![log.key(), after as i64, limit as i64], |row| read_head(log, row))?;
        Ok(heads.collect::<Result<_, _>>()?)
    }
}

fn read_head(log: LogId, row: &Row<'_>) -> Result<SignedHead, rusqlite::Error> {
    Ok(SignedHead {
        head: Head {
            log,
            cursor: Cursor { position: row.get::<_, i64>(0)? as u64, hash: row.get(1)? },
            applied: row.get::<_, i64>(2)? as u64,
            anchor: Timestamp(row.get(3)?),
        },
        signature: row.get(4)?,
    })
}

/// Hands every record of a log, with its position, to `each`; for reading a whole log without holding it.
pub(crate) fn each_record(
    connection: &Connection,
    log: LogId,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut statement =
        connection.prepare("SELECT position, record FROM entries WHERE log = ?1 ORDER BY position")?;
    let mut rows = statement.query([log.key()])?;
    while let Some(row) = rows.next()? {
        let record = row.get_ref(1)?.as_blob().map_err(|_| StoreError::damaged("a record is no blob"))?;
        each(row.get::<_, i64>(0)? as u64, record)?;
    }
    Ok(())
}

/// One record.
pub(crate) fn record_at(
    connection: &Connection,
    log: LogId,
    position: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT record FROM entries WHERE log = ?1 AND position = ?2")?;
    Ok(statement.query_row([log.key(), position as i64], |row| row.get(0)).optional()?)
}

/// The position of the oldest record of a log that is kept.
pub(crate) fn first_position(connection: &Connection, log: LogId) -> Result<Option<u64>, StoreError> {
    let first: Option<i64> =
        connection
            .query_row("SELECT min(position) FROM entries WHERE log = ?1", [log.key()], |row| row.get(0))?;
    Ok(first.map(|position| position as u64))
}

/// Where a log ends: at its last head.
pub(crate) fn last_position(connection: &Connection, log: LogId) -> Result<u64, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT coalesce(max(position), 0) FROM heads WHERE log = ?1")?;
    Ok(statement.query_row([log.key()], |row| row.get::<_, i64>(0))? as u64)
}

/// All heads of a log, in order.
pub(crate) fn heads(connection: &Connection, log: LogId) -> Result<Vec<SignedHead>, StoreError> {
    let mut statement = connection.prepare(heads_where!("ORDER BY position"))?;
    let heads = statement.query_map([log.key()], |row| read_head(log, row))?;
    Ok(heads.collect::<Result<_, _>>()?)
}

/// The logs that have entries or heads.
pub(crate) fn logs(connection: &Connection, institution: InstitutionId) -> Result<Vec<LogId>, StoreError> {
    let mut statement =
        connection.prepare("SELECT log FROM entries UNION SELECT log FROM heads ORDER BY log")?;
    let logs = statement.query_map([], |row| Ok(LogId::from_key(institution, row.get(0)?)))?;
    Ok(logs.collect::<Result<_, _>>()?)
}

/// The keys that the own log was signed with, by the first position of each.
pub(crate) fn log_keys(connection: &Connection) -> Result<Vec<(u64, VerifyingKey)>, StoreError> {
    let mut statement = connection.prepare("SELECT first, key FROM log_keys ORDER BY first")?;
    let keys = statement
        .query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, [u8; 32]>(1)?)))?
        .collect::<Result<Vec<_>, _>>()?;
    keys.into_iter()
        .map(|(first, key)| {
            VerifyingKey::from_bytes(&key)
                .map(|key| (first, key))
                .map_err(|_| StoreError::damaged("a log key is no key"))
        })
        .collect()
}
