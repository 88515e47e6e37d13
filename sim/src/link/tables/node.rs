//! What a node keeps in its database.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use feiqian_protocol::entry::Entry;
use feiqian_protocol::ids::{AccountId, CardNumber, LogId, Wallet};
use feiqian_protocol::money::Fen;
use rusqlite::Connection;

use super::{Logs, documents, fen, wallet_of};
use crate::vfs::Disk;

/// A row of rights as a node has it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NodeRow {
    /// Granted so far.
    pub granted: Fen,
    /// Right that may still be spent.
    pub unspent: Fen,
    /// Stand-in granted so far.
    pub stand_in_granted: Fen,
    /// Stand-in that may still be used.
    pub stand_in_left: Fen,
}

/// A node's database.
pub struct NodeTables(Logs);

impl NodeTables {
    /// Opens the database of this disk.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open(disk: Disk) -> Result<Self> {
        Ok(Self(Logs::open(disk, "node.db")?))
    }

    /// The connection, for anything else.
    pub const fn connection(&self) -> &Connection {
        &self.0.connection
    }

    /// All entries of a log.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn entries(&mut self, log: LogId) -> Result<Arc<Vec<Entry>>> {
        self.0.entries(log)
    }

    /// The open epoch.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn epoch(&self) -> Result<u32> {
        Ok(self.connection().query_row("SELECT epoch FROM state", [], |row| row.get(0))?)
    }

    /// True where taps of the card are declined for a loss, or for good.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn is_lost(&self, card: &CardNumber) -> Result<bool> {
        let mut statement = self.connection().prepare_cached(
            "SELECT 1 FROM hotlist WHERE card = ?1 UNION SELECT 1 FROM cards WHERE card = ?1 AND status <> 0",
        )?;
        Ok(statement.exists([card.as_str()])?)
    }

    /// True for a card of which it knows whose it is.
    ///
    /// # Errors
    /// Where that cannot be read.
    pub fn knows(&self, card: &CardNumber) -> Result<bool> {
        let mut statement = self.connection().prepare_cached("SELECT 1 FROM cards WHERE card = ?1")?;
        Ok(statement.exists([card.as_str()])?)
    }

    /// True for a card whose account it knows to be closed.
    ///
    /// # Errors
    /// Where that cannot be read.
    pub fn is_closed(&self, card: &CardNumber) -> Result<bool> {
        let mut statement =
            self.connection().prepare_cached("SELECT 1 FROM cards WHERE card = ?1 AND closed <> 0")?;
        Ok(statement.exists([card.as_str()])?)
    }

    /// Sorted heads of every account's document.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn documents(&self) -> Result<BTreeMap<AccountId, String>> {
        documents(self.connection(), "SELECT account, heads FROM documents")
    }

    /// Posted balances, where there are any.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn posted(&self) -> Result<BTreeMap<(AccountId, Wallet), Fen>> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT account, wallet, posted FROM wallets WHERE posted IS NOT NULL")?;
        let rows = statement.query_map([], |row| {
            Ok(((AccountId(row.get::<_, i64>(0)? as u64), wallet_of(row, 1)?), fen(row, 2)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Rows of rights of the open epoch.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn rows(&self) -> Result<BTreeMap<(AccountId, Wallet), NodeRow>> {
        let mut statement = self.connection().prepare_cached(
            "SELECT account, wallet, granted, unspent, stand_in_granted, stand_in_left FROM wallets_now",
        )?;
        let rows = statement.query_map([], |row| {
            let held = NodeRow {
                granted: fen(row, 2)?,
                unspent: fen(row, 3)?,
                stand_in_granted: fen(row, 4)?,
                stand_in_left: fen(row, 5)?,
            };
            Ok(((AccountId(row.get::<_, i64>(0)? as u64), wallet_of(row, 1)?), held))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
