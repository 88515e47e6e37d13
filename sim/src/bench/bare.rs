//! The baseline of a tap: the rows that a node writes for it, by prepared statements over the same pragmas, in a copy of the
//! node's own database. No decision, no signature, no hash, nothing read.

use std::fs::File;
use std::path::Path;

use anyhow::{Result, ensure};
use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, Statement};

/// The pragmas of the node's store.
const NODE_PRAGMAS: &str = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-24576; PRAGMA wal_autocheckpoint=8000;";

/// Numbers of terminals that the node itself has not given.
const FIRST_TERMINAL: i64 = 10_000;

/// Copies a database that nobody writes to at the moment, its log included, and waits until the copy is on the disk: what is
/// still on its way there would slow down whoever is measured next.
///
/// # Errors
/// Where it cannot be copied.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    for suffix in ["db", "db-wal"] {
        let (from, to) = (from.with_extension(suffix), to.with_extension(suffix));
        if from.exists() {
            std::fs::copy(from, &to)?;
            File::open(&to)?.sync_all()?;
        }
    }
    let index = to.with_extension("db-shm");
    if index.exists() {
        std::fs::remove_file(index)?;
    }
    Ok(())
}

/// Opens a copy of a node's database.
///
/// # Errors
/// What SQLite says.
pub fn open(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.execute_batch(NODE_PRAGMAS)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

/// A row of each table that a tap writes, taken from the node's last tap.
struct Sample {
    log: i64,
    position: i64,
    record: Value,
    head: Vec<Value>,
    wallet: Vec<Value>,
    debit: Vec<Value>,
    tap: Vec<Value>,
    clock: i64,
}

fn row(connection: &Connection, sql: &str) -> Result<Vec<Value>> {
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    Ok(statement.query_row([], |row| (0..columns).map(|column| row.get(column)).collect())?)
}

/// The statements of bare taps.
pub struct BareTaps<'a> {
    connection: &'a Connection,
    sample: Sample,
    first: i64,
    accounts: i64,
    terminals: i64,
    begin: Statement<'a>,
    entry: Statement<'a>,
    wallet: Statement<'a>,
    debit: Statement<'a>,
    tap: Statement<'a>,
    head: Statement<'a>,
    state: Statement<'a>,
    commit: Statement<'a>,
}

impl<'a> BareTaps<'a> {
    /// Prepares them, for taps of so many accounts at so many terminals. There must have been a tap.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn new(connection: &'a Connection, accounts: u64, terminals: usize) -> Result<Self> {
        let debit = row(connection, "SELECT * FROM debits ORDER BY position DESC LIMIT 1")?;
        let position = integer(&debit[0]);
        let tap = row(connection, &format!("SELECT * FROM taps_now WHERE position = {position}"))?;
        let (account, wallet) = (integer(&debit[1]), integer(&debit[2]));
        let head = row(connection, &format!("SELECT * FROM heads WHERE position = {position} LIMIT 1"))?;
        let log = integer(&head[0]);
        let entry = format!("SELECT record FROM entries WHERE log = {log} AND position = {position}");
        let end = row(connection, &format!("SELECT max(position) FROM entries WHERE log = {log}"))?;
        let wallet = format!(
            "SELECT own, unspent, stand_in_left, share, wallet FROM wallets_now WHERE id = {account} << 2 | {wallet}"
        );
        let accounts = i64::try_from(accounts)?;
        let newest = row(connection, "SELECT max(id) >> 2 FROM wallets")?;
        let sample = Sample {
            log,
            position: integer(&end[0]),
            record: row(connection, &entry)?.remove(0),
            wallet: row(connection, &wallet)?,
            clock: integer(&tap[11]),
            debit,
            head,
            tap,
        };
        Ok(Self {
            connection,
            sample,
            first: integer(&newest[0]) + 1 - accounts,
            accounts,
            terminals: i64::try_from(terminals)?,
            begin: connection.prepare("BEGIN IMMEDIATE")?,
            entry: connection.prepare("INSERT INTO entries VALUES (?1, ?2, ?3)")?,
            wallet: connection.prepare(
                "UPDATE wallets SET own = ?2, unspent = ?3, stand_in_left = ?4, share = ?5 WHERE id = ?1",
            )?,
            debit: connection.prepare("INSERT INTO debits VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?,
            tap: connection
                .prepare("INSERT INTO taps VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14)")?,
            head: connection.prepare("INSERT INTO heads VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?,
            state: connection.prepare("UPDATE state SET elapsed_ms = ?1, clock = ?2, last_day = last_day")?,
            commit: connection.prepare("COMMIT")?,
        })
    }

    /// One transaction with so many taps.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn commit(&mut self, taps: usize) -> Result<()> {
        self.begin.execute([])?;
        for _ in 0..taps {
            self.tap()?;
        }
        let Sample { log, position, head, clock, .. } = &self.sample;
        self.head.execute((log, position, &head[2], &head[3], &head[4], &head[5]))?;
        self.state.execute((position, clock))?;
        self.commit.execute([])?;
        debug_assert!(self.connection.is_autocommit());
        Ok(())
    }

    fn tap(&mut self) -> Result<()> {
        let Sample { log, position, record, wallet, debit, tap, clock, .. } = &mut self.sample;
        *position += 1;
        *clock += 1;
        // Far from the taps before, as people are who come one after the other.
        let account = self.first + *position * 7_919 % self.accounts;
        // As at the node, each terminal counts its own taps.
        let terminal = FIRST_TERMINAL + *position % self.terminals;
        self.entry.execute((&*log, &*position, &*record))?;
        let updated = self.wallet.execute((
            account << 2 | integer(&wallet[4]),
            &wallet[0],
            &wallet[1],
            &wallet[2],
            &wallet[3],
        ))?;
        ensure!(updated == 1, "account {account} has no wallet");
        self.debit.execute((
            &*position, account, &debit[2], &debit[3], &debit[4], &debit[5], &debit[6], &debit[7], &debit[8],
        ))?;
        self.tap.execute((
            terminal,
            &tap[1],
            position.to_string(),
            &tap[3],
            &tap[4],
            &tap[5],
            account,
            &tap[7],
            &tap[8],
            &tap[9],
            &tap[10],
            &*clock,
            &*position,
            &tap[13],
        ))?;
        Ok(())
    }
}

fn integer(value: &Value) -> i64 {
    match value {
        Value::Integer(number) => *number,
        _ => 0,
    }
}
