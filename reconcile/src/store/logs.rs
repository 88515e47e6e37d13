//! Logs, entries, heads and branches.

use feiqian_protocol::chain::{Cursor, HASH_ZERO, Hash, Head, SignedHead};
use feiqian_protocol::entry::{Body, EpochEnd, Lost};
use feiqian_protocol::ids::{Epoch, InstitutionId, LogId, NodeId};
use feiqian_protocol::time::{Hlc, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use super::{StoreError, hash};

/// Where a log stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogState {
    /// Its end.
    pub cursor: Cursor,
    /// The clock of its last entry.
    pub clock: Hlc,
    /// The order key of its last entry.
    pub order_key: Timestamp,
    /// Of its newest head.
    pub applied: u64,
    /// Of its newest head.
    pub anchor: Timestamp,
    /// How far it acts on money; behind `cursor` only where it is quarantined.
    pub posted: u64,
    /// Of a node's log: how far posted batches include its effects; behind `posted` while they are gathered.
    pub named: u64,
    /// The entry that stopped its posting.
    pub quarantined: Option<u64>,
}

impl LogState {
    /// Of an empty log.
    pub const EMPTY: Self = Self {
        cursor: Cursor::START,
        clock: Hlc::from_bits(0),
        order_key: Timestamp(0),
        applied: 0,
        anchor: Timestamp(0),
        posted: 0,
        named: 0,
        quarantined: None,
    };
}

/// All logs.
pub(crate) fn all(db: &Connection, institution: InstitutionId) -> Result<Vec<(LogId, LogState)>, StoreError> {
    let mut statement = db.prepare(
        "SELECT log, position, hash, clock, order_key, applied, anchor, posted, named, quarantined FROM logs ORDER BY log",
    )?;
    let mut rows = statement.query([])?;
    let mut logs = Vec::new();
    while let Some(row) = rows.next()? {
        let log = LogId::from_key(institution, row.get(0)?);
        let state = LogState {
            cursor: Cursor { position: row.get::<_, i64>(1)? as u64, hash: hash(row.get(2)?)? },
            clock: Hlc::from_bits(row.get::<_, i64>(3)? as u64),
            order_key: Timestamp(row.get(4)?),
            applied: row.get::<_, i64>(5)? as u64,
            anchor: Timestamp(row.get(6)?),
            posted: row.get::<_, i64>(7)? as u64,
            named: row.get::<_, i64>(8)? as u64,
            quarantined: row.get::<_, Option<i64>>(9)?.map(|position| position as u64),
        };
        logs.push((log, state));
    }
    Ok(logs)
}

/// Writes where a log stands.
pub(crate) fn put(db: &Connection, log: LogId, state: &LogState) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO logs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
        .execute(params![
            log.key(),
            state.cursor.position as i64,
            state.cursor.hash,
            state.clock.to_bits() as i64,
            state.order_key.0,
            state.applied as i64,
            state.anchor.0,
            state.posted as i64,
            state.named as i64,
            state.quarantined.map(|position| position as i64),
        ])?;
    Ok(())
}

/// Stores an entry. A second one at the same place is an error of the database: (log, position) names one entry.
pub(crate) fn insert_entry(
    db: &Connection,
    log: LogId,
    cursor: &Cursor,
    kind: u16,
    order_key: Timestamp,
    record: &[u8],
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO entries VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        log.key(),
        cursor.position as i64,
        kind,
        order_key.0,
        cursor.hash,
        record
    ])?;
    Ok(())
}

/// Stores a signed head.
pub(crate) fn insert_head(db: &Connection, log: LogId, signed: &SignedHead) -> Result<(), StoreError> {
    let head = &signed.head;
    db.prepare_cached("INSERT OR IGNORE INTO heads VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        log.key(),
        head.cursor.position as i64,
        head.cursor.hash,
        head.applied as i64,
        head.anchor.0,
        signed.signature
    ])?;
    Ok(())
}

/// The hash at a position; `None` beyond the end, and where the entries there were dropped. At the cut itself the head is left.
pub(crate) fn hash_at(db: &Connection, log: LogId, position: u64) -> Result<Option<Hash>, StoreError> {
    if position == 0 {
        return Ok(Some(HASH_ZERO));
    }
    let found: Option<Vec<u8>> = db
        .prepare_cached("SELECT hash FROM entries WHERE log = ?1 AND position = ?2")?
        .query_row(params![log.key(), position as i64], |row| row.get(0))
        .optional()?;
    let found = match found {
        Some(found) => Some(found),
        None if log.writer == NodeId::CENTRE => db
            .prepare_cached("SELECT hash FROM heads WHERE log = ?1 AND position = ?2")?
            .query_row(params![log.key(), position as i64], |row| row.get(0))
            .optional()?,
        None => None,
    };
    found.map(hash).transpose()
}

/// Records after a position, in order.
pub(crate) fn records_after(
    db: &Connection,
    log: LogId,
    after: u64,
    limit: usize,
) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT record FROM entries WHERE log = ?1 AND position > ?2 ORDER BY position LIMIT ?3",
    )?;
    let records = statement
        .query_map(params![log.key(), after as i64, limit as i64], |row| row.get::<_, Vec<u8>>(0))?;
    Ok(records.collect::<Result<_, _>>()?)
}

/// Signed heads after a position, in order.
pub(crate) fn heads_after(
    db: &Connection,
    log: LogId,
    after: u64,
    limit: usize,
) -> Result<Vec<SignedHead>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT position, hash, applied, anchor, signature FROM heads WHERE log = ?1 AND position > ?2
         ORDER BY position LIMIT ?3",
    )?;
    let parameters = params![log.key(), after as i64, limit as i64];
    statement.query_and_then(parameters, |row| read_head(log, row))?.collect()
}

/// The signed head at a position, where there is one.
pub(crate) fn head_at(db: &Connection, log: LogId, position: u64) -> Result<Option<SignedHead>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT position, hash, applied, anchor, signature FROM heads WHERE log = ?1 AND position = ?2",
    )?;
    let mut rows = statement.query(params![log.key(), position as i64])?;
    rows.next()?.map(|row| read_head(log, row)).transpose()
}

fn read_head(log: LogId, row: &rusqlite::Row<'_>) -> Result<SignedHead, StoreError> {
    let cursor = Cursor { position: row.get::<_, i64>(0)? as u64, hash: hash(row.get(1)?)? };
    // A branch is kept under a log of its own, but was signed as the node's log.
    let signed_log =
        if log.writer == NodeId::CENTRE { log } else { LogId::node(log.institution, log.writer) };
    let head = Head {
        log: signed_log,
        cursor,
        applied: row.get::<_, i64>(2)? as u64,
        anchor: Timestamp(row.get(3)?),
    };
    let signature = row
        .get::<_, Vec<u8>>(4)?
        .try_into()
        .map_err(|_| StoreError::Corrupt("a signature that has not 64 bytes".to_owned()))?;
    Ok(SignedHead { head, signature })
}

/// A stored entry's order key and record.
pub(crate) fn entry(
    db: &Connection,
    log: LogId,
    position: u64,
) -> Result<Option<(Timestamp, Vec<u8>)>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT order_key, record FROM entries WHERE log = ?1 AND position = ?2")?;
    let found = statement
        .query_row(params![log.key(), position as i64], |row| Ok((Timestamp(row.get(0)?), row.get(1)?)))
        .optional()?;
    Ok(found)
}

/// The order keys before `first` and after `last` in a log: the least and the most that entries in between may have.
pub(crate) fn order_keys_around(
    db: &Connection,
    log: LogId,
    first: u64,
    last: u64,
) -> Result<(Timestamp, Timestamp), StoreError> {
    let around = db
        .prepare_cached(
            "SELECT (SELECT order_key FROM entries WHERE log = ?1 AND position < ?2 ORDER BY position DESC LIMIT 1),
               (SELECT order_key FROM entries WHERE log = ?1 AND position > ?3 ORDER BY position LIMIT 1)",
        )?
        .query_row(params![log.key(), first as i64, last as i64], |row| {
            Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?))
        })?;
    Ok((Timestamp(around.0.unwrap_or(i64::MIN)), Timestamp(around.1.unwrap_or(i64::MAX))))
}

/// A refused continuation of a node's log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BranchState {
    /// The node.
    pub node: NodeId,
    /// The last position that is surely common.
    pub after: u64,
    /// Where its upload stands, in the node's own counting.
    pub cursor: Cursor,
}

/// All branches.
pub(crate) fn branches(
    db: &Connection,
    institution: InstitutionId,
) -> Result<Vec<(LogId, BranchState)>, StoreError> {
    let mut statement = db.prepare("SELECT log, node, after, position, hash FROM branches ORDER BY log")?;
    let mut rows = statement.query([])?;
    let mut branches = Vec::new();
    while let Some(row) = rows.next()? {
        let state = BranchState {
            node: NodeId(row.get(1)?),
            after: row.get::<_, i64>(2)? as u64,
            cursor: Cursor { position: row.get::<_, i64>(3)? as u64, hash: hash(row.get(4)?)? },
        };
        branches.push((LogId::from_key(institution, row.get(0)?), state));
    }
    Ok(branches)
}

/// Writes a branch.
pub(crate) fn put_branch(db: &Connection, log: LogId, branch: &BranchState) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO branches VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        log.key(),
        branch.node.0,
        branch.after as i64,
        branch.cursor.position as i64,
        branch.cursor.hash
    ])?;
    Ok(())
}

/// What was lost of branches: log, first, last.
pub(crate) fn lost(db: &Connection, institution: InstitutionId) -> Result<Vec<Lost>, StoreError> {
    let mut statement = db.prepare("SELECT log, first, last FROM lost ORDER BY log, first")?;
    let lost = statement.query_map([], |row| {
        Ok(Lost {
            log: LogId::from_key(institution, row.get(0)?),
            first: row.get::<_, i64>(1)? as u64,
            last: row.get::<_, i64>(2)? as u64,
        })
    })?;
    Ok(lost.collect::<Result<_, _>>()?)
}

/// Notes that something was lost.
pub(crate) fn put_lost(db: &Connection, lost: &Lost) -> Result<(), StoreError> {
    db.execute(
        "INSERT OR REPLACE INTO lost VALUES (?1, ?2, ?3)",
        params![lost.log.key(), lost.first as i64, lost.last as i64],
    )?;
    Ok(())
}

/// It has come after all, and is no fault any more.
pub(crate) fn delete_lost(db: &Connection, lost: &Lost) -> Result<(), StoreError> {
    db.execute("DELETE FROM lost WHERE log = ?1 AND first = ?2", params![lost.log.key(), lost.first as i64])?;
    db.execute(
        "DELETE FROM faults WHERE log = ?1 AND position = ?2 AND what LIKE 'lost: %'",
        params![lost.log.key(), lost.last as i64],
    )?;
    Ok(())
}

/// Entries of a log after a position that were noted with this fault: position, order key, record.
pub(crate) fn with_fault(
    db: &Connection,
    log: LogId,
    after: u64,
    what: &str,
) -> Result<Vec<(u64, Timestamp, Vec<u8>)>, StoreError> {
    let mut statement = db.prepare(
        "SELECT entries.position, order_key, record FROM faults JOIN entries USING (log, position)
         WHERE log = ?1 AND position > ?2 AND what = ?3 ORDER BY position",
    )?;
    let found = statement.query_map(params![log.key(), after as i64, what], |row| {
        Ok((row.get::<_, i64>(0)? as u64, Timestamp(row.get(1)?), row.get(2)?))
    })?;
    Ok(found.collect::<Result<_, _>>()?)
}

/// The ends of epochs in a log after a position: position, order key, record.
pub(crate) fn epoch_ends(
    db: &Connection,
    log: LogId,
    after: u64,
) -> Result<Vec<(u64, Timestamp, Vec<u8>)>, StoreError> {
    let kind = Body::from(EpochEnd { epoch: Epoch::FIRST }).kind();
    let mut statement = db.prepare(
        "SELECT position, order_key, record FROM entries WHERE log = ?1 AND position > ?2 AND kind = ?3 ORDER BY position",
    )?;
    let found = statement.query_map(params![log.key(), after as i64, kind], |row| {
        Ok((row.get::<_, i64>(0)? as u64, Timestamp(row.get(1)?), row.get(2)?))
    })?;
    Ok(found.collect::<Result<_, _>>()?)
}

/// It breaks the rule no more.
pub(crate) fn delete_fault(db: &Connection, log: LogId, position: u64, what: &str) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM faults WHERE log = ?1 AND position = ?2 AND what = ?3",
        params![log.key(), position as i64, what],
    )?;
    Ok(())
}

/// Notes that an entry breaks a rule.
pub(crate) fn insert_fault(db: &Connection, log: LogId, position: u64, what: &str) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO faults VALUES (?1, ?2, ?3)")?.execute(params![
        log.key(),
        position as i64,
        what
    ])?;
    Ok(())
}
