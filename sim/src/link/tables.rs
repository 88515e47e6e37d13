//! What both sides hold, read from their databases by a second connection.

mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Result;
use feiqian_protocol::entry::{Body, Entry};
use feiqian_protocol::ids::{AccountId, CardNumber, LogId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension};

pub use self::node::{NodeRow, NodeTables};
use super::INSTITUTION;
use crate::vfs::Disk;

/// The logs of a database, decoded once.
struct Logs {
    connection: Connection,
    /// The files vanish with their disk.
    _disk: Disk,
    decoded: BTreeMap<LogId, Arc<Vec<Entry>>>,
}

impl Logs {
    fn open(disk: Disk, file: &str) -> Result<Self> {
        Ok(Self { connection: disk.open(file)?, _disk: disk, decoded: BTreeMap::new() })
    }

    /// All entries of a log; the one at position n has index n - 1.
    fn entries(&mut self, log: LogId) -> Result<Arc<Vec<Entry>>> {
        let shared = self.decoded.entry(log).or_default();
        let mut statement = self.connection.prepare_cached(
            "SELECT record FROM entries WHERE log = ?1 AND position > ?2 ORDER BY position",
        )?;
        let mut rows = statement.query((log.key(), shared.len() as i64))?;
        while let Some(row) = rows.next()? {
            Arc::make_mut(shared).push(Entry::from_record(row.get_ref(0)?.as_blob()?)?);
        }
        Ok(Arc::clone(shared))
    }
}

/// A row of rights as the centre has it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CentreRow {
    /// Right that it must assume is there.
    pub out: Fen,
    /// Stand-in likewise.
    pub stand_in_out: Fen,
    /// Of a closed epoch.
    pub residue: Fen,
}

/// A wallet as the centre has it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CentreWallet {
    /// The posted balance.
    pub funds: Fen,
    /// What may be granted.
    pub free: Fen,
    /// Open cases that the holder may owe.
    pub claims: Fen,
}

/// An entry as the centre keeps it.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its position.
    pub position: u64,
    /// When it counts as made.
    pub order_key: Timestamp,
    /// What it says.
    pub entry: Entry,
}

/// A case.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Case {
    /// Whose.
    pub account: AccountId,
    /// The debit's log.
    pub log: i64,
    /// The debit's position.
    pub position: u64,
    /// The stable number of the reason.
    pub reason: u8,
    /// The stable number of the bearer.
    pub bearer: u8,
    /// Fen overspent.
    pub opened: Fen,
    /// Fen recovered.
    pub recovered: Fen,
}

/// The number of a row of rights: account, wallet, node, epoch.
pub type RowKey = (AccountId, Wallet, u16, u32);

/// The centre's database.
pub struct CentreTables(Logs);

impl CentreTables {
    /// Opens the database of this disk.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open(disk: Disk) -> Result<Self> {
        Ok(Self(Logs::open(disk, "centre.db")?))
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

    /// Wallets.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn wallets(&self) -> Result<BTreeMap<(AccountId, Wallet), CentreWallet>> {
        let mut statement =
            self.connection().prepare_cached("SELECT account, wallet, funds, free, claims FROM wallets")?;
        let rows = statement.query_map([], |row| {
            let wallet = CentreWallet { funds: fen(row, 2)?, free: fen(row, 3)?, claims: fen(row, 4)? };
            Ok(((AccountId(row.get::<_, i64>(0)? as u64), wallet_of(row, 1)?), wallet))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What posted batches have told a centre that came back, of entries that are not here: wallets follow them, and suspense has
    /// the other side until the entries come.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn unheard(&self) -> Result<BTreeMap<(AccountId, Wallet), Fen>> {
        let mut statement = self.connection().prepare_cached(
            "SELECT account, wallet, amount FROM unheard WHERE at IS NOT NULL AND amount <> 0",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(((AccountId(row.get::<_, i64>(0)? as u64), wallet_of(row, 1)?), fen(row, 2)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Rows of rights.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn rights(&self) -> Result<BTreeMap<RowKey, CentreRow>> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT account, wallet, node, epoch, out, si_out, residue FROM rights")?;
        let rows = statement.query_map([], |row| {
            let key = (AccountId(row.get::<_, i64>(0)? as u64), wallet_of(row, 1)?, row.get(2)?, row.get(3)?);
            Ok((key, CentreRow { out: fen(row, 4)?, stand_in_out: fen(row, 5)?, residue: fen(row, 6)? }))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The account of every card.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn cards(&self) -> Result<BTreeMap<CardNumber, AccountId>> {
        let mut statement = self.connection().prepare_cached("SELECT card, account FROM cards")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
        rows.map(|row| {
            let (card, account) = row?;
            Ok((CardNumber::new(card)?, AccountId(account as u64)))
        })
        .collect()
    }

    /// Cases, sorted.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn cases(&self) -> Result<Vec<Case>> {
        let mut statement = self.connection().prepare_cached(
            "SELECT account, log, position, reason, bearer, opened, recovered FROM cases ORDER BY 1, 2, 3, 4",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(Case {
                account: AccountId(row.get::<_, i64>(0)? as u64),
                log: row.get(1)?,
                position: row.get::<_, i64>(2)? as u64,
                reason: row.get(3)?,
                bearer: row.get(4)?,
                opened: fen(row, 5)?,
                recovered: fen(row, 6)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Cases, sorted, with their wallets.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn cases_by_wallet(&self) -> Result<Vec<(Wallet, Case)>> {
        let mut statement = self.connection().prepare_cached(
            "SELECT account, log, position, reason, bearer, opened, recovered, wallet FROM cases
             ORDER BY 1, 8, 2, 3, 4",
        )?;
        let rows = statement.query_map([], |row| {
            let case = Case {
                account: AccountId(row.get::<_, i64>(0)? as u64),
                log: row.get(1)?,
                position: row.get::<_, i64>(2)? as u64,
                reason: row.get(3)?,
                bearer: row.get(4)?,
                opened: fen(row, 5)?,
                recovered: fen(row, 6)?,
            };
            Ok((wallet_of(row, 7)?, case))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What every wallet's movements, in the order in which they are replayed, have brought below zero beyond what was owed
    /// already: the sum of what its cases must be opened with.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn overspent(&self) -> Result<BTreeMap<(AccountId, Wallet), Fen>> {
        // Streams of the centre have no writer, and come first.
        let mut statement = self.connection().prepare_cached(
            "SELECT account, wallet, amount + reversed + refunded, recovered FROM movements
             ORDER BY account, wallet, order_key, log >> 32 <> 0, log, position",
        )?;
        let mut rows = statement.query([])?;
        let mut overspent: BTreeMap<(AccountId, Wallet), Fen> = BTreeMap::new();
        let (mut of, mut balance, mut owed) = (None, Fen::ZERO, Fen::ZERO);
        while let Some(row) = rows.next()? {
            let key = (AccountId(row.get::<_, i64>(0)? as u64), wallet_of(row, 1)?);
            if of.replace(key) != Some(key) {
                (balance, owed) = (Fen::ZERO, Fen::ZERO);
            }
            balance += fen(row, 2)?;
            // What was recovered of a case that is none any more is given back later in this order.
            owed -= fen(row, 3)?;
            let more = -balance - owed.or_zero();
            if more.is_positive() {
                owed = owed.or_zero() + more;
                *overspent.entry(key).or_default() += more;
            }
        }
        Ok(overspent)
    }

    /// Of each debit of cash, by account, log and position, how much nothing covers.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn unbacked(&self) -> Result<BTreeMap<(AccountId, i64, u64), Fen>> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT account, log, position, unbacked FROM movements WHERE wallet = ?1")?;
        let rows = statement.query_map([i64::from(Wallet::Cash.number())], |row| {
            let key = (AccountId(row.get::<_, i64>(0)? as u64), row.get(1)?, row.get::<_, i64>(2)? as u64);
            Ok((key, fen(row, 3)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How far a node's log is ingested, and how much of the centre's stream for it the node has acknowledged.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn acknowledged(&self, node: NodeId) -> Result<(u64, u64)> {
        let acked = "SELECT to_node_acked FROM nodes WHERE node = ?1";
        let acked: i64 = self.connection().query_row(acked, [node.0], |row| row.get(0))?;
        let ingested = "SELECT coalesce(max(position), 0) FROM logs WHERE log = ?1";
        let ingested: i64 =
            self.connection().query_row(ingested, [node_log(node).key()], |row| row.get(0))?;
        Ok((ingested as u64, acked as u64))
    }

    /// What was declared to be out when an epoch of a node was closed; `None` where it was not.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn declared(&self, node: NodeId, epoch: u32) -> Result<Option<Fen>> {
        let sql = "SELECT out FROM closings WHERE node = ?1 AND epoch = ?2";
        Ok(self.connection().query_row(sql, (node.0, epoch), |row| fen(row, 0)).optional()?)
    }

    /// A node's open epoch, as the centre has it.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn open_epoch(&self, node: NodeId) -> Result<u32> {
        Ok(self
            .connection()
            .query_row("SELECT epoch FROM nodes WHERE node = ?1", [node.0], |row| row.get(0))?)
    }

    /// Declared heads of closed epochs: node, epoch, position.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn closings(&self) -> Result<Vec<(u16, u32, u64)>> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT node, epoch, declared_head FROM closings ORDER BY 1, 2")?;
        let rows =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)? as u64)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Loss reports, lifted ones with the time of that.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn losses(&self) -> Result<Vec<(String, Option<Timestamp>)>> {
        let mut statement =
            self.connection().prepare_cached("SELECT card, lifted FROM losses ORDER BY 1, 2")?;
        let rows =
            statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?.map(Timestamp))))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Cards with a loss report that stands.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn lost_cards(&self) -> Result<BTreeSet<CardNumber>> {
        let standing = self.losses()?.into_iter().filter(|(_, lifted)| lifted.is_none());
        standing.map(|(card, _)| Ok(CardNumber::new(card)?)).collect()
    }

    /// A node's log and the branches of it.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn logs_of(&self, node: NodeId) -> Result<Vec<LogId>> {
        let branches = self.branches(node)?.into_iter();
        Ok(std::iter::once(node_log(node)).chain(branches).collect())
    }

    /// The branches of a node's log.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn branches(&self, node: NodeId) -> Result<Vec<LogId>> {
        let mut statement =
            self.connection().prepare_cached("SELECT log FROM branches WHERE node = ?1 ORDER BY log")?;
        let rows = statement.query_map([node.0], |row| row.get::<_, i64>(0))?;
        rows.map(|log| Ok(LogId::from_key(INSTITUTION, log?))).collect()
    }

    /// True where a node's continuation was refused into a branch, with something in it.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn has_branches(&self) -> Result<bool> {
        let query = "SELECT 1 FROM entries WHERE log IN (SELECT log FROM branches) LIMIT 1";
        Ok(self.connection().prepare_cached(query)?.exists([])?)
    }

    /// What the centre has of a node's log and of its branches, log by log, with positions and order keys; what two of them share
    /// is in the first.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn logs_once(&self, node: NodeId) -> Result<Vec<(LogId, Vec<Kept>)>> {
        let mut seen = BTreeSet::new();
        let mut logs = Vec::new();
        for log in self.logs_of(node)? {
            let mut statement = self.connection().prepare_cached(
                "SELECT position, hash, record, order_key FROM entries WHERE log = ?1 ORDER BY position",
            )?;
            let mut rows = statement.query([log.key()])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                if seen.insert(row.get::<_, Vec<u8>>(1)?) {
                    entries.push(Kept {
                        position: row.get::<_, i64>(0)? as u64,
                        order_key: Timestamp(row.get(3)?),
                        entry: Entry::from_record(row.get_ref(2)?.as_blob()?)?,
                    });
                }
            }
            logs.push((log, entries));
        }
        Ok(logs)
    }

    /// The log of [`CentreTables::logs_once`] that has what `log` says at a position: on a branch it may be from before the fork,
    /// or have come by an earlier branch.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn home_of(&self, log: LogId, position: u64) -> Result<LogId> {
        let own = node_log(log.writer);
        if log == own {
            return Ok(own);
        }
        let query = "SELECT min(log) FROM entries WHERE position = ?2 AND log >= ?3 AND log <= ?1
             AND hash = (SELECT hash FROM entries WHERE log = ?1 AND position = ?2)";
        let home = self
            .connection()
            .prepare_cached(query)?
            .query_row((log.key(), position as i64, own.key()), |row| row.get::<_, Option<i64>>(0))?;
        Ok(home.map_or(own, |home| LogId::from_key(INSTITUTION, home)))
    }

    /// Sorted heads of every account's document.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn documents(&self) -> Result<BTreeMap<AccountId, String>> {
        documents(self.connection(), "SELECT account, heads FROM accounts")
    }

    /// What was out, right and stand-in together, at the declared heads of epochs that the centre closed by itself.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn closed_by_force(&mut self) -> Result<Fen> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT node, epoch, out + si_out FROM closings ORDER BY 1, 2")?;
        let closings = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, fen(row, 2)?)))?;
        let closings: Vec<(u16, u32, Fen)> = closings.collect::<Result<_, _>>()?;
        drop(statement);
        let mut exposed = Fen::ZERO;
        for (node, epoch, out) in closings {
            let stream = self.entries(to_node_log(NodeId(node)))?;
            let by_force =
                |entry: &Entry| matches!(&entry.body, Body::Closed(closed) if closed.epoch.0 == epoch);
            if stream.iter().any(by_force) {
                exposed += out;
            }
        }
        Ok(exposed)
    }

    /// What was reversed of debits that had been given back after a loss, by account.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn refunds_taken_back(&self) -> Result<BTreeMap<AccountId, Fen>> {
        let mut statement = self.connection().prepare_cached(
            "SELECT cases.account, sum(movements.reversed) FROM cases
             JOIN movements USING (log, position, account, wallet)
             WHERE cases.loss = 1 AND movements.reversed > 0 GROUP BY 1 ORDER BY 1",
        )?;
        let rows =
            statement.query_map([], |row| Ok((AccountId(row.get::<_, i64>(0)? as u64), fen(row, 1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Rows of closed accounts that were given up, with the right and stand-in that were out in them.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn given_up(&self) -> Result<BTreeMap<RowKey, Fen>> {
        let mut statement = self.connection().prepare_cached(
            "SELECT account, wallet, node, epoch, out + si_out FROM given_up ORDER BY 1, 2, 3, 4",
        )?;
        let rows = statement.query_map([], |row| {
            let key = (AccountId(row.get::<_, i64>(0)? as u64), wallet_of(row, 1)?, row.get(2)?, row.get(3)?);
            Ok((key, fen(row, 4)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Entries that break a rule, as the centre noted them.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn faults(&self) -> Result<Vec<String>> {
        let mut statement =
            self.connection().prepare_cached("SELECT log || ':' || position || ' ' || what FROM faults")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Entries whose postings do not sum to zero.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn unbalanced(&self) -> Result<Vec<(i64, i64, i64)>> {
        let mut statement = self.connection().prepare_cached(
            "SELECT log, position, sum(amount) FROM postings GROUP BY 1, 2 HAVING sum(amount) <> 0",
        )?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn documents(connection: &Connection, query: &str) -> Result<BTreeMap<AccountId, String>> {
    let mut statement = connection.prepare_cached(query)?;
    let rows = statement.query_map([], |row| Ok((AccountId(row.get::<_, i64>(0)? as u64), row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn fen(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Fen> {
    row.get(column).map(Fen::new)
}

fn wallet_of(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Wallet> {
    let number: i64 = row.get(column)?;
    let wallet = u8::try_from(number).ok().and_then(Wallet::from_number);
    wallet.ok_or(rusqlite::Error::IntegralValueOutOfRange(column, number))
}

/// The log that a node writes.
pub const fn node_log(node: NodeId) -> LogId {
    LogId::node(INSTITUTION, node)
}

/// The centre's stream for a node.
pub const fn to_node_log(node: NodeId) -> LogId {
    LogId::to_node(INSTITUTION, node)
}
