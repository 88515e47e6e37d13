//! Snapshots of account streams, what was dropped of the streams since, and how far nodes have acknowledged them.

use feiqian_protocol::chain::unhex;
use feiqian_protocol::ids::{AccountId, InstitutionId, LogId, NodeId, Wallet};
use feiqian_protocol::limits::SHARDS;
use feiqian_protocol::money::Fen;
use feiqian_protocol::snapshot::{AccountState, SignedSnapshot};
use feiqian_protocol::time::{BusinessDay, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use super::money::wallet_of;
use super::{StoreError, corrupt};

/// The newest snapshot of every stream that has one.
pub(crate) fn all(
    db: &Connection,
    institution: InstitutionId,
) -> Result<Vec<(LogId, SignedSnapshot)>, StoreError> {
    let mut statement = db.prepare("SELECT log, signed FROM snapshots ORDER BY log")?;
    let mut rows = statement.query([])?;
    let mut snapshots = Vec::new();
    while let Some(row) = rows.next()? {
        let signed = minicbor::decode(row.get_ref(1)?.as_blob().unwrap_or_default()).ok();
        snapshots.push((LogId::from_key(institution, row.get(0)?), corrupt(signed, "a snapshot")?));
    }
    Ok(snapshots)
}

/// Replaces the snapshot of a stream.
pub(crate) fn put(db: &Connection, signed: &SignedSnapshot, pieces: &[Vec<u8>]) -> Result<(), StoreError> {
    let log = signed.snapshot.log().key();
    db.prepare_cached("DELETE FROM snapshot_pieces WHERE log = ?1")?.execute([log])?;
    let mut statement = db.prepare_cached("INSERT INTO snapshot_pieces VALUES (?1, ?2, ?3)")?;
    for (index, piece) in pieces.iter().enumerate() {
        statement.execute(params![log, index as i64, piece])?;
    }
    let bytes = minicbor::to_vec(signed).expect("writing to a Vec cannot fail");
    db.prepare_cached("INSERT OR REPLACE INTO snapshots VALUES (?1, ?2)")?.execute(params![log, bytes])?;
    Ok(())
}

/// One piece of the snapshot of a stream.
pub(crate) fn piece(db: &Connection, log: LogId, index: u32) -> Result<Vec<u8>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT accounts FROM snapshot_pieces WHERE log = ?1 AND piece = ?2")?;
    Ok(statement.query_row(params![log.key(), index], |row| row.get(0))?)
}

/// Hands every account of a shard, as its stream has left it, to `each`, in order.
pub(crate) fn each_account(
    db: &Connection,
    shard: u8,
    last: u64,
    mut each: impl FnMut(&AccountState),
) -> Result<(), StoreError> {
    let mut document =
        db.prepare_cached("SELECT document, settings, heads FROM accounts WHERE account = ?1")?;
    let mut wallets =
        db.prepare_cached("SELECT wallet, funds FROM wallets WHERE account = ?1 ORDER BY wallet")?;
    for account in (u64::from(shard)..=last).step_by(usize::from(SHARDS)) {
        let found = document
            .query_row([account as i64], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, row.get::<_, String>(2)?))
            })
            .optional()?;
        let Some((saved, settings, heads)) = found else { continue };
        let heads =
            heads.split_whitespace().map(|head| Ok(corrupt(unhex(head), "a document's head")?.into()));
        let heads = heads.collect::<Result<_, StoreError>>()?;
        let mut rows = wallets.query([account as i64])?;
        let mut balances = Vec::new();
        while let Some(row) = rows.next()? {
            balances.push((wallet_of(row.get(0)?)?, Fen::new(row.get(1)?)));
        }
        let account = AccountId(account);
        each(&AccountState { account, document: saved.into(), settings, heads, balances });
    }
    Ok(())
}

/// The position up to which the entries of a log are no longer here; `None` where there are none at all.
pub(crate) fn kept_after(db: &Connection, log: LogId) -> Result<Option<u64>, StoreError> {
    let mut statement = db.prepare_cached("SELECT MIN(position) FROM entries WHERE log = ?1")?;
    let first: Option<i64> = statement.query_row([log.key()], |row| row.get(0))?;
    Ok(first.map(|first| (first as u64).saturating_sub(1)))
}

/// The newest head of a log up to a position that was signed by a time.
pub(crate) fn head_before(
    db: &Connection,
    log: LogId,
    position: u64,
    time: Timestamp,
) -> Result<Option<u64>, StoreError> {
    // Mostly not even the oldest one was, and anchors do not fall: that spares a look at all of them.
    let oldest: Option<i64> = db
        .prepare_cached("SELECT anchor FROM heads WHERE log = ?1 ORDER BY position LIMIT 1")?
        .query_row([log.key()], |row| row.get(0))
        .optional()?;
    if oldest.is_none_or(|oldest| oldest > time.0) {
        return Ok(None);
    }
    let mut statement = db.prepare_cached(
        "SELECT MAX(position) FROM heads WHERE log = ?1 AND position <= ?2 AND anchor <= ?3",
    )?;
    let found: Option<i64> =
        statement.query_row(params![log.key(), position as i64, time.0], |row| row.get(0))?;
    Ok(found.map(|position| position as u64))
}

/// Drops the entries of a log up to a head of it, and the heads before that one.
pub(crate) fn prune(db: &Connection, log: LogId, head: u64) -> Result<(), StoreError> {
    let parameters = params![log.key(), head as i64];
    db.execute("DELETE FROM entries WHERE log = ?1 AND position <= ?2", parameters)?;
    db.execute("DELETE FROM heads WHERE log = ?1 AND position < ?2", parameters)?;
    Ok(())
}

/// Keeps what a dropped entry had posted.
pub(crate) fn add_pruned(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    posted: Fen,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO pruned VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET posted = posted + ?3",
    )?
    .execute(params![account.0 as i64, wallet.number(), posted.get()])?;
    Ok(())
}

/// Notes how far a node has acknowledged a stream.
pub(crate) fn put_ack(
    db: &Connection,
    node: NodeId,
    log: LogId,
    position: u64,
    day: BusinessDay,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO stream_acks VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        node.0,
        log.key(),
        position as i64,
        day.0
    ])?;
    Ok(())
}

/// How far nodes had acknowledged a stream when they were last in session, since a day.
pub(crate) fn acks(
    db: &Connection,
    log: LogId,
    since: BusinessDay,
) -> Result<Vec<(NodeId, u64)>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT node, position FROM stream_acks WHERE log = ?1 AND day >= ?2")?;
    let acks = statement.query_map(params![log.key(), since.0], |row| {
        Ok((NodeId(row.get(0)?), row.get::<_, i64>(1)? as u64))
    })?;
    Ok(acks.collect::<Result<_, _>>()?)
}
