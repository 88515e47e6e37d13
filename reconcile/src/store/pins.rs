//! Payment PINs: the hashes that verifiers are made of, the nodes' keys for them, and wrong tries.

use std::collections::BTreeMap;

use feiqian_protocol::ids::{AccountId, NodeId};
use feiqian_protocol::pin::{PinGeneration, PinHash, PinKey};
use rusqlite::{Connection, OptionalExtension, params};

use super::{StoreError, meta_number, put_meta};

/// Created at every opening: a database of a build that knew no PINs gets it so.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS pins (account INTEGER NOT NULL, generation BLOB NOT NULL, hash BLOB NOT NULL,
  change INTEGER UNIQUE, PRIMARY KEY (account, generation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pin_keys (node INTEGER PRIMARY KEY, key BLOB NOT NULL, sent INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pin_tries (account INTEGER NOT NULL, node INTEGER NOT NULL, tries INTEGER NOT NULL,
  PRIMARY KEY (account, node)) WITHOUT ROWID;
";

/// A node's key, and the last change that was written for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyState {
    /// The key.
    pub key: PinKey,
    /// See [`changes`].
    pub sent: u64,
}

/// How many changes of PINs there were.
pub(crate) fn changes(db: &Connection) -> Result<u64, StoreError> {
    Ok(meta_number(db, "pin_changes")?.unwrap_or(0) as u64)
}

/// Counts one more.
pub(crate) fn put_changes(db: &Connection, changes: u64) -> Result<(), StoreError> {
    put_meta(db, "pin_changes", changes as i64)
}

/// Keeps the hash of a PIN, under the number of a change where nodes are told of it.
pub(crate) fn put(
    db: &Connection,
    account: AccountId,
    generation: PinGeneration,
    hash: &PinHash,
    change: Option<u64>,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO pins VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        account.0 as i64,
        generation.0,
        hash.to_bytes(),
        change.map(|change| change as i64)
    ])?;
    Ok(())
}

/// Forgets the hash of a PIN.
pub(crate) fn remove(
    db: &Connection,
    account: AccountId,
    generation: PinGeneration,
) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM pins WHERE account = ?1 AND generation = ?2")?
        .execute(params![account.0 as i64, generation.0])?;
    Ok(())
}

/// Another PIN comes beside or in place of these, and no node is told them any more. The hashes of all others go.
pub(crate) fn retire(db: &Connection, account: AccountId, kept: &[PinGeneration]) -> Result<(), StoreError> {
    let mut statement = db.prepare_cached("SELECT generation FROM pins WHERE account = ?1")?;
    let held = statement.query_map([account.0 as i64], |row| row.get(0).map(PinGeneration))?;
    for generation in held.collect::<Result<Vec<_>, _>>()? {
        if !kept.contains(&generation) {
            remove(db, account, generation)?;
        }
    }
    db.prepare_cached("UPDATE pins SET change = NULL WHERE account = ?1")?.execute([account.0 as i64])?;
    Ok(())
}

/// The hash of a PIN, where it is here.
pub(crate) fn hash(
    db: &Connection,
    account: AccountId,
    generation: PinGeneration,
) -> Result<Option<PinHash>, StoreError> {
    let mut statement = db.prepare_cached("SELECT hash FROM pins WHERE account = ?1 AND generation = ?2")?;
    let hash = statement.query_row(params![account.0 as i64, generation.0], |row| row.get(0)).optional()?;
    Ok(hash.map(PinHash::new))
}

/// A PIN that was changed.
pub(crate) struct Changed {
    /// The number of the change.
    pub change: u64,
    /// The account.
    pub account: AccountId,
    /// The PIN.
    pub generation: PinGeneration,
    /// Its hash.
    pub hash: PinHash,
    /// What the account's document says, as JSON.
    pub settings: String,
}

/// The next PINs that were changed after a change, so many at most.
pub(crate) fn changed_after(db: &Connection, after: u64, count: usize) -> Result<Vec<Changed>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT change, account, generation, hash, settings FROM pins JOIN accounts USING (account)
         WHERE change > ?1 ORDER BY change LIMIT ?2",
    )?;
    let rows = statement.query_map(params![after as i64, count as i64], |row| {
        Ok(Changed {
            change: row.get::<_, i64>(0)? as u64,
            account: AccountId(row.get::<_, i64>(1)? as u64),
            generation: PinGeneration(row.get(2)?),
            hash: PinHash::new(row.get(3)?),
            settings: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The keys of all nodes that told one.
pub(crate) fn keys(db: &Connection) -> Result<BTreeMap<NodeId, KeyState>, StoreError> {
    let mut statement = db.prepare("SELECT node, key, sent FROM pin_keys")?;
    let rows = statement.query_map([], |row| {
        let state = KeyState { key: PinKey::new(row.get(1)?), sent: row.get::<_, i64>(2)? as u64 };
        Ok((NodeId(row.get(0)?), state))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Keeps a node's key and how far it was written for.
pub(crate) fn put_key(db: &Connection, node: NodeId, state: &KeyState) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO pin_keys VALUES (?1, ?2, ?3)")?.execute(params![
        node.0,
        state.key.to_bytes(),
        state.sent as i64
    ])?;
    Ok(())
}

/// Wrong PINs in a row by node, as last heard; [`NodeId::CENTRE`] for those entered at the centre.
pub(crate) fn tries(db: &Connection, account: AccountId) -> Result<BTreeMap<NodeId, u8>, StoreError> {
    let mut statement = db.prepare_cached("SELECT node, tries FROM pin_tries WHERE account = ?1")?;
    let rows =
        statement.query_map([account.0 as i64], |row| Ok((NodeId(row.get(0)?), row.get::<_, u8>(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Notes wrong PINs in a row; none where it is 0.
pub(crate) fn put_tries(
    db: &Connection,
    account: AccountId,
    node: NodeId,
    tries: u8,
) -> Result<(), StoreError> {
    let place = params![account.0 as i64, node.0];
    if tries == 0 {
        db.prepare_cached("DELETE FROM pin_tries WHERE account = ?1 AND node = ?2")?.execute(place)?;
    } else {
        db.prepare_cached("INSERT OR REPLACE INTO pin_tries VALUES (?1, ?2, ?3)")?.execute(params![
            account.0 as i64,
            node.0,
            tries
        ])?;
    }
    Ok(())
}
