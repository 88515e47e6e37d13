//! The baseline of catching up: every row that the centre wrote for a backlog, written again by prepared statements over the
//! same pragmas, in transactions of a thousand entries. No decision, no signature, no hash, nothing read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, Statement, params_from_iter};

use super::measure::timed;

/// Entries of one transaction.
const ENTRIES_PER_COMMIT: usize = 1_000;

/// The pragmas of the centre's store.
const CENTRE_PRAGMAS: &str = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-131072; PRAGMA wal_autocheckpoint=8000;";

type Row = Vec<Value>;

/// What is written for one entry of the backlog.
struct OfEntry {
    account: i64,
    entry: Row,
    movement: Row,
    postings: Vec<Row>,
}

/// All rows of a backlog.
pub struct Rows {
    entries: Vec<OfEntry>,
    /// Rows that are replaced whenever their account is touched: by table, by account.
    replaced: Vec<(&'static str, BTreeMap<i64, Vec<Row>>)>,
    /// The centre's own entries about it, and the heads of all logs, in order.
    others: Vec<(&'static str, Vec<Row>)>,
    /// Replaced with every transaction.
    always: Vec<(&'static str, Vec<Row>)>,
}

fn integer(value: Option<&Value>) -> i64 {
    match value {
        Some(Value::Integer(number)) => *number,
        _ => 0,
    }
}

fn select(connection: &Connection, sql: &str) -> Result<Vec<Row>> {
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| (0..columns).map(|column| row.get(column)).collect())?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What is in a table now and was not before.
fn new_rows(connection: &Connection, table: &str, order: &str) -> Result<Vec<Row>> {
    select(
        connection,
        &format!(
            "SELECT * FROM (SELECT * FROM main.{table} EXCEPT SELECT * FROM before.{table}) ORDER BY {order}"
        ),
    )
}

fn by_account(rows: Vec<Row>) -> BTreeMap<i64, Vec<Row>> {
    let mut sorted: BTreeMap<i64, Vec<Row>> = BTreeMap::new();
    for row in rows {
        sorted.entry(integer(row.first())).or_default().push(row);
    }
    sorted
}

impl Rows {
    /// What a centre has written since `before`, a copy of its database from before the backlog.
    ///
    /// # Errors
    /// What SQLite says, or where the backlog is not of debits alone.
    pub fn written(connection: &Connection, before: &Path) -> Result<Self> {
        connection.execute("ATTACH ?1 AS before", [before.to_string_lossy()])?;
        let movements = new_rows(connection, "movements", "position")?;
        let log = integer(movements.first().context("nothing was moved")?.get(2));
        let mut records = BTreeMap::new();
        let mut own = Vec::new();
        for row in new_rows(connection, "entries", "position, log")? {
            if integer(row.first()) == log {
                records.insert(integer(row.get(1)), row);
            } else {
                own.push(row);
            }
        }
        let mut postings: BTreeMap<i64, Vec<Row>> = BTreeMap::new();
        for row in new_rows(connection, "postings", "position, line")? {
            postings.entry(integer(row.get(1))).or_default().push(row);
        }
        let of_entry = |movement: Row| -> Result<OfEntry> {
            let position = integer(movement.get(3));
            Ok(OfEntry {
                account: integer(movement.first()),
                entry: records.remove(&position).context("a movement without its entry")?,
                movement,
                postings: postings.remove(&position).context("a movement without its postings")?,
            })
        };
        let rows = Self {
            entries: movements.into_iter().map(of_entry).collect::<Result<_>>()?,
            replaced: ["wallets", "rights", "habits"]
                .into_iter()
                .map(|table| Ok((table, by_account(new_rows(connection, table, "account")?))))
                .collect::<Result<_>>()?,
            others: vec![("entries", own), ("heads", new_rows(connection, "heads", "position, log")?)],
            always: ["logs", "nodes", "ledger", "turnover"]
                .into_iter()
                .map(|table| Ok((table, new_rows(connection, table, "1")?)))
                .collect::<Result<_>>()?,
        };
        connection.execute("DETACH before", [])?;
        Ok(rows)
    }
}

/// The statements, by table.
struct Writer<'a> {
    connection: &'a Connection,
    statements: BTreeMap<&'static str, Statement<'a>>,
}

impl Writer<'_> {
    fn put(&mut self, table: &'static str, row: &Row) -> Result<()> {
        let statement = match self.statements.entry(table) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let values = vec!["?"; row.len()].join(", ");
                let sql = format!("INSERT OR REPLACE INTO {table} VALUES ({values})");
                entry.insert(self.connection.prepare(&sql)?)
            }
        };
        statement.execute(params_from_iter(row))?;
        Ok(())
    }
}

/// Writes all rows into a database from before the backlog; how long that took.
///
/// # Errors
/// What SQLite says.
pub fn write(rows: &Rows, path: &Path) -> Result<Duration> {
    let connection = Connection::open(path)?;
    connection.execute_batch(CENTRE_PRAGMAS)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    let mut writer = Writer { connection: &connection, statements: BTreeMap::new() };
    let commits = rows.entries.len().div_ceil(ENTRIES_PER_COMMIT);
    let (took, ()) = timed(|| {
        for (index, entries) in rows.entries.chunks(ENTRIES_PER_COMMIT).enumerate() {
            connection.execute_batch("BEGIN IMMEDIATE")?;
            commit(&mut writer, rows, entries, (index, commits))?;
            connection.execute_batch("COMMIT")?;
        }
        Ok(())
    })?;
    Ok(took)
}

fn commit(writer: &mut Writer<'_>, rows: &Rows, entries: &[OfEntry], part: (usize, usize)) -> Result<()> {
    for of_entry in entries {
        writer.put("entries", &of_entry.entry)?;
        writer.put("movements", &of_entry.movement)?;
        for posting in &of_entry.postings {
            writer.put("postings", posting)?;
        }
    }
    let accounts: BTreeSet<i64> = entries.iter().map(|of_entry| of_entry.account).collect();
    for (table, by_account) in &rows.replaced {
        for row in accounts.iter().filter_map(|account| by_account.get(account)).flatten() {
            writer.put(table, row)?;
        }
    }
    let (index, commits) = part;
    for (table, others) in &rows.others {
        for row in &others[others.len() * index / commits..others.len() * (index + 1) / commits] {
            writer.put(table, row)?;
        }
    }
    for (table, always) in &rows.always {
        for row in always {
            writer.put(table, row)?;
        }
    }
    Ok(())
}
