//! What the centre notes while it takes back what an old copy of it lacks, and what of it stays.

use feiqian_protocol::chain::Hash;
use feiqian_protocol::entry::EntryRef;
use feiqian_protocol::ids::{AccountId, CardNumber, InstitutionId, Key, LogId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::StoreError;
use super::money::wallet_of;

/// Entries of nodes that settings in the account streams were of, as far as those were taken back.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS settings_taken (log INTEGER NOT NULL, position INTEGER NOT NULL,
  PRIMARY KEY (log, position)) WITHOUT ROWID;
";

/// Nodes that have given back all that they hold.
pub(crate) fn heard(db: &Connection) -> Result<Vec<NodeId>, StoreError> {
    let mut statement = db.prepare("SELECT node FROM heard ORDER BY node")?;
    let nodes = statement.query_map([], |row| Ok(NodeId(row.get(0)?)))?;
    Ok(nodes.collect::<Result<_, _>>()?)
}

/// Notes one more.
pub(crate) fn put_heard(db: &Connection, node: NodeId) -> Result<(), StoreError> {
    db.execute("INSERT OR IGNORE INTO heard VALUES (?1)", [node.0])?;
    Ok(())
}

/// What a posted batch says of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named {
    /// The account stream.
    pub stream: LogId,
    /// The batch's position there.
    pub at: u64,
    /// The log: that which has the entry here, or else the name.
    pub log: LogId,
    /// What the batch calls it.
    pub name: LogId,
    /// Posted up to here.
    pub position: u64,
}

/// Notes one; with the hash where its entry is not here yet.
pub(crate) fn put_named(db: &Connection, named: &Named, missing: Option<&Hash>) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO named VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        named.stream.key(),
        named.log.key(),
        named.position as i64,
        named.at as i64,
        named.name.key(),
        missing
    ])?;
    Ok(())
}

/// What batches say of an entry that was not here then.
pub(crate) fn missing(
    db: &Connection,
    institution: InstitutionId,
    hash: &Hash,
) -> Result<Vec<Named>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT stream, log, named, at, name FROM named WHERE hash = ?1")?;
    let named = statement.query_map([hash], |row| {
        Ok(Named {
            stream: LogId::from_key(institution, row.get(0)?),
            log: LogId::from_key(institution, row.get(1)?),
            position: row.get::<_, i64>(2)? as u64,
            at: row.get::<_, i64>(3)? as u64,
            name: LogId::from_key(institution, row.get(4)?),
        })
    })?;
    Ok(named.collect::<Result<_, _>>()?)
}

/// Its entry is here now, in a log.
pub(crate) fn put_found(db: &Connection, named: &Named, log: LogId) -> Result<(), StoreError> {
    db.prepare_cached(
        "UPDATE OR REPLACE named SET log = ?3, hash = NULL
         WHERE stream = ?1 AND log = ?2 AND named = ?4 AND at = ?5 AND name = ?6",
    )?
    .execute(params![
        named.stream.key(),
        named.log.key(),
        log.key(),
        named.position as i64,
        named.at as i64,
        named.name.key()
    ])?;
    Ok(())
}

/// Notes that entries of what a batch named had been lost, and are not posted by it.
pub(crate) fn put_lost(db: &Connection, named: &Named, first: u64, last: u64) -> Result<(), StoreError> {
    db.execute(
        "INSERT OR IGNORE INTO named_lost VALUES (?1, ?2, ?3, ?4, ?5)",
        params![named.stream.key(), named.at as i64, named.name.key(), first as i64, last as i64],
    )?;
    Ok(())
}

/// The first posted batch of a stream that included an entry of a log, where one did. A log is named further and further along.
pub(crate) fn named_at(
    db: &Connection,
    stream: LogId,
    log: LogId,
    position: u64,
) -> Result<Option<u64>, StoreError> {
    let at: Option<i64> = db
        .prepare_cached(
            "SELECT at FROM named WHERE stream = ?1 AND log = ?2 AND named >= ?3
               AND NOT EXISTS (SELECT 1 FROM named_lost AS lost WHERE lost.stream = named.stream
                 AND lost.at = named.at AND lost.name = named.name AND ?3 BETWEEN lost.first AND lost.last)
             ORDER BY named, at LIMIT 1",
        )?
        .query_row(params![stream.key(), log.key(), position as i64], |row| row.get(0))
        .optional()?;
    Ok(at.map(|at| at as u64))
}

/// How far batches of a stream named all of a log before a position, as far as its entries are here.
pub(crate) fn named_before(
    db: &Connection,
    stream: LogId,
    log: LogId,
    position: u64,
) -> Result<u64, StoreError> {
    let before: Option<i64> = db
        .prepare_cached(
            "SELECT MIN(MAX(named), COALESCE((SELECT MIN(first) - 1 FROM named_lost
               WHERE named_lost.stream = ?1 AND name >> 32 = ?2 >> 32), MAX(named)))
             FROM named WHERE stream = ?1 AND log = ?2 AND named < ?3 AND hash IS NULL",
        )?
        .query_row(params![stream.key(), log.key(), position as i64], |row| row.get(0))?;
    Ok(before.unwrap_or(0) as u64)
}

/// The newest posted batch of a stream that was taken back.
pub(crate) fn last_named(db: &Connection, stream: LogId) -> Result<Option<u64>, StoreError> {
    let at: Option<i64> = db
        .prepare_cached("SELECT MAX(at) FROM named WHERE stream = ?1")?
        .query_row([stream.key()], |row| row.get(0))?;
    Ok(at.map(|at| at as u64))
}

/// Forgets what is settled: names of logs that are posted as far as they were named, and everything else of the time of
/// taking back. True where names are left: entries that were posted and whose building was never heard again.
pub(crate) fn forget(db: &Connection) -> Result<bool, StoreError> {
    db.execute_batch(
        "DELETE FROM named WHERE hash IS NULL
           AND named <= (SELECT COALESCE(MAX(posted), 0) FROM logs WHERE logs.log = named.log);
         DELETE FROM named_lost WHERE NOT EXISTS (SELECT 1 FROM named
           WHERE named.stream = named_lost.stream AND named.at = named_lost.at AND named.name = named_lost.name);
         DELETE FROM heard; DELETE FROM reports; DELETE FROM unnamed; DELETE FROM unheard WHERE amount = 0;",
    )?;
    any_named(db)
}

/// True where a posted batch named entries that never came.
pub(crate) fn any_named(db: &Connection) -> Result<bool, StoreError> {
    Ok(db.prepare("SELECT 1 FROM named LIMIT 1")?.exists([])?)
}

/// Notes at which position of its stream a loss was reported.
pub(crate) fn put_report(db: &Connection, card: &CardNumber, loss: &Key, at: u64) -> Result<(), StoreError> {
    db.execute(
        "INSERT OR IGNORE INTO reports VALUES (?1, ?2, ?3)",
        params![card.as_str(), loss.as_str(), at as i64],
    )?;
    Ok(())
}

/// Notes that a node's setting is in the account's stream that was taken back. It stays noted: a building that was given up may still
/// come with it.
pub(crate) fn put_setting_taken(db: &Connection, of: EntryRef) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO settings_taken VALUES (?1, ?2)")?
        .execute(params![of.log.key(), of.position as i64])?;
    Ok(())
}

/// By which names settings at this place of the writer are noted.
pub(crate) fn settings_taken_at(db: &Connection, of: EntryRef) -> Result<Vec<EntryRef>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT log FROM settings_taken WHERE log BETWEEN ?1 AND ?1 | 0xffffffff AND position = ?2",
    )?;
    let log = LogId::node(of.log.institution, of.log.writer);
    let names = statement.query_map(params![log.key(), of.position as i64], |row| {
        Ok(EntryRef { log: LogId::from_key(of.log.institution, row.get(0)?), position: of.position })
    })?;
    Ok(names.collect::<Result<_, _>>()?)
}

/// For each report of a card that stands, or was lifted at or after a time: at which position it was taken back, 0 for one
/// that is older.
pub(crate) fn reports(
    db: &Connection,
    card: &CardNumber,
    order_key: Timestamp,
) -> Result<Vec<u64>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT COALESCE((SELECT at FROM reports WHERE reports.card = losses.card AND reports.loss = losses.loss), 0)
         FROM losses WHERE card = ?1 AND (lifted IS NULL OR lifted >= ?2)",
    )?;
    let at =
        statement.query_map(params![card.as_str(), order_key.0], |row| Ok(row.get::<_, i64>(0)? as u64))?;
    Ok(at.collect::<Result<_, _>>()?)
}

/// Adds to what batches posted of entries that are not here.
pub(crate) fn add_unheard(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    amount: Fen,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO unheard VALUES (?1, ?2, ?3, NULL) ON CONFLICT DO UPDATE SET amount = amount + ?3",
    )?
    .execute(params![account.0 as i64, wallet.number(), amount.get()])?;
    Ok(())
}

/// The batch that a wallet's part is booked under: `at`, where it is booked under none yet.
pub(crate) fn booked_at(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    at: u64,
) -> Result<u64, StoreError> {
    let mut statement = db.prepare_cached(
        "UPDATE unheard SET at = COALESCE(at, ?3) WHERE account = ?1 AND wallet = ?2 RETURNING at",
    )?;
    let at: i64 =
        statement.query_row(params![account.0 as i64, wallet.number(), at as i64], |row| row.get(0))?;
    Ok(at as u64)
}

/// What batches posted of entries that are not here, by wallet.
pub(crate) fn unheard(db: &Connection) -> Result<Vec<(AccountId, Wallet, Fen)>, StoreError> {
    by_wallet(db, "SELECT account, wallet, amount FROM unheard WHERE amount <> 0 ORDER BY account, wallet")
}

fn by_wallet(db: &Connection, sql: &str) -> Result<Vec<(AccountId, Wallet, Fen)>, StoreError> {
    let mut statement = db.prepare(sql)?;
    let read = |row: &Row<'_>| {
        let account = AccountId(row.get::<_, i64>(0)? as u64);
        Ok((account, wallet_of(row.get(1)?)?, Fen::new(row.get(2)?)))
    };
    statement.query_and_then([], read)?.collect()
}

/// Adds to what a batch posted that is not here to its end.
pub(crate) fn add_unnamed(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    amount: Fen,
) -> Result<(), StoreError> {
    db.execute(
        "INSERT INTO unnamed VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET amount = amount + ?3",
        params![account.0 as i64, wallet.number(), amount.get()],
    )?;
    Ok(())
}

/// What such batches posted, by wallet.
pub(crate) fn unnamed(db: &Connection) -> Result<Vec<(AccountId, Wallet, Fen)>, StoreError> {
    by_wallet(db, "SELECT account, wallet, amount FROM unnamed ORDER BY account, wallet")
}

/// The next free line of the postings of an entry.
pub(crate) fn next_line(db: &Connection, log: LogId, position: u64) -> Result<usize, StoreError> {
    let line: i64 = db
        .prepare_cached("SELECT COALESCE(MAX(line) + 1, 0) FROM postings WHERE log = ?1 AND position = ?2")?
        .query_row(params![log.key(), position as i64], |row| row.get(0))?;
    Ok(line as usize)
}

/// Wallets with debits beyond right, or with open claims.
pub(crate) fn wallets_to_resolve(db: &Connection) -> Result<Vec<(AccountId, Wallet)>, StoreError> {
    let mut statement = db.prepare("SELECT account, wallet FROM wallets WHERE unbacked > 0 OR claims > 0")?;
    let read = |row: &Row<'_>| Ok((AccountId(row.get::<_, i64>(0)? as u64), wallet_of(row.get(1)?)?));
    statement.query_and_then([], read)?.collect()
}

/// The next entry of a log after a position: position, order key, record.
pub(crate) fn next_entry(
    db: &Connection,
    log: LogId,
    after: u64,
) -> Result<Option<(u64, Timestamp, Vec<u8>)>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT position, order_key, record FROM entries WHERE log = ?1 AND position > ?2
         ORDER BY position LIMIT 1",
    )?;
    let found = statement.query_row(params![log.key(), after as i64], |row| {
        Ok((row.get::<_, i64>(0)? as u64, Timestamp(row.get(1)?), row.get(2)?))
    });
    Ok(found.optional()?)
}

/// How much of the centre's stream had been applied when an entry of a node's log was written: as its head says.
pub(crate) fn applied_at(db: &Connection, log: LogId, position: u64) -> Result<u64, StoreError> {
    let applied: Option<i64> = db
        .prepare_cached(
            "SELECT applied FROM heads WHERE log = ?1 AND position >= ?2 ORDER BY position LIMIT 1",
        )?
        .query_row(params![log.key(), position as i64], |row| row.get(0))
        .optional()?;
    Ok(applied.unwrap_or(0) as u64)
}

/// The time of the newest head of the account streams: what was done at the centre until then is here.
pub(crate) fn known_until(db: &Connection, institution: InstitutionId) -> Result<Timestamp, StoreError> {
    let first = LogId::shard(institution, 0).key();
    let last = LogId::shard(institution, feiqian_protocol::limits::SHARDS - 1).key();
    let until: i64 = db.query_row(
        "SELECT COALESCE(MAX(anchor), 0) FROM heads WHERE log BETWEEN ?1 AND ?2",
        [first, last],
        |row| row.get(0),
    )?;
    Ok(Timestamp(until))
}
