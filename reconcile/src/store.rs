//! The centre's SQLite database: schema, opening, and (in the submodules) every statement.
//!
//! Amounts are fen, times milliseconds since 1970, logs [`feiqian_protocol::ids::LogId::key`], clocks
//! [`feiqian_protocol::time::Hlc`] bits, wallets 1 (cash) and 2 (subsidy).
//!
//! | table | one row is | written |
//! |---|---|---|
//! | `meta` | a named value: `home` (the file that this database is, or was copied from), `recovery` (1 while the centre collects what an old copy lacks, 2 while it replays it), `recovered_until`, `node_numbers_from`, `pin_changes` (how many there were), `institution`, `campus` (JSON), `campus_version`, `unlimited` (present once a campus let stand-in be unlimited), `day` (the open business day) | replaced |
//! | `logs` | a log: its end (`position`, `hash`, `clock`), the last `order_key`, the newest head's `applied` and `anchor`, `posted` (how far it acts on money), `named` (how far posted batches include it), `quarantined` (the position that stopped it) | replaced |
//! | `entries` | a record of any log, as received; `order_key` as recorded at first ingest | once |
//! | `heads` | a signed head | once |
//! | `branches` | a refused continuation: its log, the node, the last common position `after`, and where its upload stands | replaced |
//! | `lost` | entries of a branch that came altered, and have not come whole since | added, removed |
//! | `nodes` | a node: enrolment, epoch, state (`open`, `closing`, `closed`, `refused`, `retired`), session, `to_node_acked`, `heard` (order keys below it can no longer come), sums of its rows | replaced |
//! | `revocations` | a node whose certificates were revoked, and when | once |
//! | `enrolments` | a one-time code | replaced |
//! | `accounts` | an account: the day from which on stand-in may be used, its document, the document's projection (`settings`) and `heads` | replaced |
//! | `cards` | a card | once |
//! | `losses` | a loss report and when it was lifted | replaced |
//! | `wallets` | (account, wallet): `funds` (the posted balance), `free` (what the centre may grant), `claims` (open cases that the holder may owe), `unbacked` (debits beyond right so far), its last movement | replaced |
//! | `rights` | (account, wallet, node, epoch): see [`crate::escrow`]; of node 0 what a voucher holds, by its number in place of an epoch, while it holds anything | replaced |
//! | `shares` | (account, node, epoch): allowance a day; `out` counts until `closed_day` is over | replaced |
//! | `movements` | what moved a wallet: a debit (with its card, unbacked part, and what of it was reversed or refunded), cash taken in, a credit, a recovery (which moves only claims). Written where the log ends, not where the account is, so that a backlog touches few pages; a wallet's movements are a list from its last to the one before | replaced |
//! | `closures` | a closed account: the order to pay it out, and what was paid | replaced |
//! | `given_up` | a row of rights of a closed account that came home without its node's word, and what was out | once |
//! | `holders` | what an account's document tells of its holder, to be found by | replaced |
//! | `blank_cards` | a blank card in stock, in the order in which they are given out | once |
//! | `logins` | the hash of an account's login password, and wrong ones in a row | replaced |
//! | `bind_tries` | a number: tries to bind to it that failed on a day | replaced |
//! | `vouchers` | the number of an account's newest voucher | replaced |
//! | `holds` | a voucher with money: its terms, how far it has come, the debit that it paid, and what it counts of which days' allowance; forgotten 90 days after its end | replaced |
//! | `code_uses` | the first use of a code: entry and tap; forgotten 90 days after the end of its voucher | once |
//! | `credits` | a credit of a channel by its key, and its answer | once |
//! | `cases` | a case; `loss` 1 for those that the holder has back, after a loss report or by a replayed code | replaced |
//! | `postings` | a line of the ledger, by the entry that caused it; `day` is the open business day, `own_day` the entry's own | once |
//! | `ledger` | the balance of a ledger account other than wallets | replaced |
//! | `habits` | (account, node, business day): purchases, fen, meal periods with any | replaced |
//! | `turnover` | (node, business day): purchases, fen | replaced |
//! | `hints` | the newest hint of (account, node) | replaced |
//! | `closings` | a closed epoch: declared head and the exposure that was out | once |
//! | `snapshots`, `snapshot_pieces` | the newest snapshot of an account stream; its pieces | replaced |
//! | `pruned` | (account, wallet): what posted batches that were dropped had posted | replaced |
//! | `stream_acks` | (node, account stream): how far it was acknowledged, as noted at the end of a session and once a day | replaced |
//! | `heard`, `named`, `named_lost`, `reports`, `unnamed`, `unheard` | while the centre takes back what an old copy lacks: nodes heard; logs that a batch named, where, by which name, and, until its entry is here, the hash there; what it had lost of it; at which position a card was reported lost; what a batch that is not whole posted; (account, wallet): what was posted of entries that are not here, and the batch that it is booked under. Of `named` and `unheard` there stays what was never heard again | replaced |
//! | `pins` | a payment PIN by its name: the hash that verifiers are made of, and, but for initial ones, the number of its last change | replaced |
//! | `pin_keys` | a node: its key for verifiers, and the last change that was written for it | replaced |
//! | `pin_tries` | (account, node): wrong PINs in a row, as last heard; node 0 is the centre | replaced |
//! | `purses`, `purse_loads`, `purse_purchases` | see [`purses`] | |
//! | `faults` | an entry that breaks a rule, and which | once |

pub mod accounts;
pub(crate) mod cases;
pub(crate) mod closures;
pub(crate) mod codes;
pub(crate) mod habits;
pub(crate) mod holders;
pub(crate) mod holds;
pub mod logs;
pub mod money;
pub mod nodes;
pub mod pins;
pub mod purses;
pub mod recovery;
pub mod snapshots;

use std::time::Duration;

use feiqian_protocol::account::AccountError;
use feiqian_protocol::chain::Hash;
use feiqian_protocol::entry::RecordError;
use feiqian_protocol::ids::InstitutionId;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, ToSql};

/// Why the store cannot go on. The core is dropped and opened again; the disk holds the last whole step.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("the database")]
    Sql(#[from] rusqlite::Error),
    /// Another version of the schema.
    #[error("the database has schema version {found}; this build knows {SCHEMA_VERSION}")]
    Schema {
        /// What it has.
        found: i64,
    },
    /// Another institution's database.
    #[error("the database is of institution {found}, not {expected}")]
    Institution {
        /// What it has.
        found: i64,
        /// What it should have.
        expected: InstitutionId,
    },
    /// Something stored does not read back.
    #[error("the database is corrupt: {0}")]
    Corrupt(String),
    /// A stored record does not read back.
    #[error("a stored record")]
    Record(#[from] RecordError),
    /// A stored document does not read back.
    #[error("a stored document")]
    Document(#[from] AccountError),
    /// A node's Hello shows that this database is an old copy; the core begins to take back what it lacks. Never leaves it.
    #[error("this database is an old copy: {0}")]
    OldCopy(String),
    /// A rule about money would be broken by this step, which therefore did not happen.
    #[error("invariant: {0}")]
    Invariant(String),
    /// An export could not be written.
    #[error("the output")]
    Output(#[from] std::io::Error),
}

/// The version of the schema, kept in `user_version`.
pub const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE logs (log INTEGER PRIMARY KEY, position INTEGER NOT NULL, hash BLOB NOT NULL, clock INTEGER NOT NULL,
  order_key INTEGER NOT NULL, applied INTEGER NOT NULL, anchor INTEGER NOT NULL, posted INTEGER NOT NULL,
  named INTEGER NOT NULL, quarantined INTEGER);
CREATE TABLE entries (log INTEGER NOT NULL, position INTEGER NOT NULL, kind INTEGER NOT NULL,
  order_key INTEGER NOT NULL, hash BLOB NOT NULL, record BLOB NOT NULL, PRIMARY KEY (log, position)) WITHOUT ROWID;
CREATE TABLE heads (log INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL, applied INTEGER NOT NULL,
  anchor INTEGER NOT NULL, signature BLOB NOT NULL, PRIMARY KEY (log, position)) WITHOUT ROWID;
CREATE TABLE branches (log INTEGER PRIMARY KEY, node INTEGER NOT NULL, after INTEGER NOT NULL,
  position INTEGER NOT NULL, hash BLOB NOT NULL);
CREATE TABLE lost (log INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, PRIMARY KEY (log, first))
  WITHOUT ROWID;
CREATE TABLE nodes (node INTEGER PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, incarnation INTEGER NOT NULL,
  log_key BLOB NOT NULL, epoch INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT, session INTEGER NOT NULL,
  to_node_acked INTEGER NOT NULL, heard INTEGER NOT NULL, out INTEGER NOT NULL, si_out INTEGER NOT NULL,
  pool_per_day INTEGER, pool_habit_only INTEGER);
CREATE TABLE revocations (node INTEGER PRIMARY KEY, at INTEGER NOT NULL);
CREATE TABLE enrolments (lookup BLOB PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, secret BLOB NOT NULL,
  expires INTEGER NOT NULL, tries INTEGER NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE accounts (account INTEGER PRIMARY KEY, card TEXT NOT NULL, seasoned_on INTEGER NOT NULL,
  document_epoch INTEGER NOT NULL, document BLOB NOT NULL, settings TEXT NOT NULL, heads TEXT NOT NULL,
  daily_limit INTEGER NOT NULL);
CREATE TABLE cards (card TEXT PRIMARY KEY, account INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE losses (card TEXT NOT NULL, loss TEXT NOT NULL, account INTEGER NOT NULL, reported INTEGER NOT NULL,
  lifted INTEGER, position INTEGER NOT NULL, PRIMARY KEY (card, loss)) WITHOUT ROWID;
CREATE TABLE wallets (account INTEGER NOT NULL, wallet INTEGER NOT NULL, funds INTEGER NOT NULL,
  free INTEGER NOT NULL, claims INTEGER NOT NULL, unbacked INTEGER NOT NULL, last_log INTEGER, last_position INTEGER,
  PRIMARY KEY (account, wallet)) WITHOUT ROWID;
CREATE TABLE rights (account INTEGER NOT NULL, wallet INTEGER NOT NULL, node INTEGER NOT NULL,
  epoch INTEGER NOT NULL, granted INTEGER NOT NULL, out INTEGER NOT NULL, si_granted INTEGER NOT NULL,
  si_out INTEGER NOT NULL, residue INTEGER NOT NULL, PRIMARY KEY (account, wallet, node, epoch)) WITHOUT ROWID;
CREATE INDEX rights_with_residue ON rights (node, epoch) WHERE residue <> 0;
CREATE TABLE shares (account INTEGER NOT NULL, node INTEGER NOT NULL, epoch INTEGER NOT NULL,
  granted INTEGER NOT NULL, out INTEGER NOT NULL, closed_day INTEGER, PRIMARY KEY (account, node, epoch))
  WITHOUT ROWID;
CREATE TABLE movements (account INTEGER NOT NULL, wallet INTEGER NOT NULL, log INTEGER NOT NULL,
  position INTEGER NOT NULL, order_key INTEGER NOT NULL, amount INTEGER NOT NULL, stand_in INTEGER NOT NULL,
  unbacked INTEGER NOT NULL, reversed INTEGER NOT NULL, stand_in_home INTEGER NOT NULL, refunded INTEGER NOT NULL,
  recovered INTEGER NOT NULL, reason INTEGER NOT NULL, merchant INTEGER NOT NULL, day INTEGER NOT NULL, card TEXT,
  previous_log INTEGER, previous_position INTEGER, PRIMARY KEY (log, position, account, wallet)) WITHOUT ROWID;
CREATE TABLE credits (channel TEXT NOT NULL, key TEXT NOT NULL, account INTEGER NOT NULL, wallet INTEGER NOT NULL,
  amount INTEGER NOT NULL, answer TEXT NOT NULL, PRIMARY KEY (channel, key)) WITHOUT ROWID;
CREATE TABLE cases (account INTEGER NOT NULL, wallet INTEGER NOT NULL, log INTEGER NOT NULL,
  position INTEGER NOT NULL, loss INTEGER NOT NULL, order_key INTEGER NOT NULL, reason INTEGER NOT NULL,
  bearer INTEGER NOT NULL, opened INTEGER NOT NULL, recovered INTEGER NOT NULL, refunded INTEGER NOT NULL,
  card TEXT NOT NULL, PRIMARY KEY (account, wallet, log, position, loss)) WITHOUT ROWID;
CREATE INDEX cases_in_suspense ON cases (order_key) WHERE bearer = 0 AND loss = 0;
CREATE INDEX cases_open ON cases (opened) WHERE opened > recovered + refunded;
CREATE TABLE postings (log INTEGER NOT NULL, position INTEGER NOT NULL, line INTEGER NOT NULL,
  ledger TEXT NOT NULL, amount INTEGER NOT NULL, day INTEGER NOT NULL, own_day INTEGER NOT NULL,
  PRIMARY KEY (log, position, line)) WITHOUT ROWID;
CREATE TABLE ledger (ledger TEXT PRIMARY KEY, balance INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE habits (account INTEGER NOT NULL, node INTEGER NOT NULL, day INTEGER NOT NULL,
  purchases INTEGER NOT NULL, fen INTEGER NOT NULL, meals INTEGER NOT NULL, PRIMARY KEY (account, node, day))
  WITHOUT ROWID;
CREATE TABLE turnover (node INTEGER NOT NULL, day INTEGER NOT NULL, purchases INTEGER NOT NULL,
  fen INTEGER NOT NULL, PRIMARY KEY (node, day)) WITHOUT ROWID;
CREATE TABLE hints (account INTEGER NOT NULL, node INTEGER NOT NULL, elsewhere_per_day INTEGER NOT NULL,
  purchase_mean INTEGER NOT NULL, elsewhere_per_meal INTEGER NOT NULL, habit INTEGER NOT NULL,
  seasoned INTEGER NOT NULL, PRIMARY KEY (account, node)) WITHOUT ROWID;
CREATE TABLE closings (node INTEGER NOT NULL, epoch INTEGER NOT NULL, declared_head INTEGER NOT NULL,
  out INTEGER NOT NULL, si_out INTEGER NOT NULL, PRIMARY KEY (node, epoch)) WITHOUT ROWID;
CREATE TABLE snapshots (log INTEGER PRIMARY KEY, signed BLOB NOT NULL);
CREATE TABLE snapshot_pieces (log INTEGER NOT NULL, piece INTEGER NOT NULL, accounts BLOB NOT NULL,
  PRIMARY KEY (log, piece));
CREATE TABLE pruned (account INTEGER NOT NULL, wallet INTEGER NOT NULL, posted INTEGER NOT NULL,
  PRIMARY KEY (account, wallet)) WITHOUT ROWID;
CREATE TABLE stream_acks (node INTEGER NOT NULL, log INTEGER NOT NULL, position INTEGER NOT NULL,
  day INTEGER NOT NULL, PRIMARY KEY (node, log)) WITHOUT ROWID;
CREATE TABLE heard (node INTEGER PRIMARY KEY);
CREATE TABLE named (stream INTEGER NOT NULL, log INTEGER NOT NULL, named INTEGER NOT NULL, at INTEGER NOT NULL,
  name INTEGER NOT NULL, hash BLOB, PRIMARY KEY (stream, log, named, at, name)) WITHOUT ROWID;
CREATE TABLE named_lost (stream INTEGER NOT NULL, at INTEGER NOT NULL, name INTEGER NOT NULL, first INTEGER NOT NULL,
  last INTEGER NOT NULL, PRIMARY KEY (stream, at, name, first)) WITHOUT ROWID;
CREATE INDEX named_by_hash ON named (hash) WHERE hash IS NOT NULL;
CREATE TABLE reports (card TEXT NOT NULL, loss TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (card, loss))
  WITHOUT ROWID;
CREATE TABLE unnamed (account INTEGER NOT NULL, wallet INTEGER NOT NULL, amount INTEGER NOT NULL,
  PRIMARY KEY (account, wallet)) WITHOUT ROWID;
CREATE TABLE unheard (account INTEGER NOT NULL, wallet INTEGER NOT NULL, amount INTEGER NOT NULL, at INTEGER,
  PRIMARY KEY (account, wallet)) WITHOUT ROWID;
CREATE TABLE faults (log INTEGER NOT NULL, position INTEGER NOT NULL, what TEXT NOT NULL,
  PRIMARY KEY (log, position, what)) WITHOUT ROWID;
";

/// Prepared statements kept: more than the core has, so that none is prepared twice.
const STATEMENTS_CACHED: usize = 160;

/// Sets up a connection for the core and creates the schema in an empty database.
pub(crate) fn prepare(connection: &Connection, institution: InstitutionId) -> Result<(), StoreError> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // What a backlog touches is spread over all accounts: with the default of 2 MB every entry reads from the disk.
    connection.pragma_update(None, "cache_size", -131_072)?;
    // The later pages go from the log to their place, the fewer writes that takes. Mostly the shell has done it by then.
    connection.pragma_update(None, "wal_autocheckpoint", 8_000)?;
    // Without it the bundled build plans a statement again at every bind.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    if schema_version(connection)? == 0 {
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        ))?;
        put_meta(connection, "institution", i64::from(institution.0))?;
    }
    connection.execute_batch(closures::SCHEMA)?;
    connection.execute_batch(codes::SCHEMA)?;
    connection.execute_batch(holders::SCHEMA)?;
    connection.execute_batch(holds::SCHEMA)?;
    connection.execute_batch(pins::SCHEMA)?;
    connection.execute_batch(purses::SCHEMA)?;
    connection.execute_batch(recovery::SCHEMA)?;
    sync_what_is_read(connection)?;
    check(connection, institution)
}

/// Makes durable what the database shows. A process that was killed between writing a commit and syncing it leaves a commit that the
/// next one reads and a power cut still takes away, and whatever nodes are told of it cannot be taken back. Moving the write-ahead log
/// into the database syncs it first; that there is no room for the rest is met again when something is written.
fn sync_what_is_read(connection: &Connection) -> Result<(), StoreError> {
    match connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        Err(error) if error.sqlite_error_code() != Some(ErrorCode::DiskFull) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Checks that a database is one of this build's and this institution's; enough for reading.
pub(crate) fn check(connection: &Connection, institution: InstitutionId) -> Result<(), StoreError> {
    let found = schema_version(connection)?;
    if found != SCHEMA_VERSION {
        return Err(StoreError::Schema { found });
    }
    match meta_number(connection, "institution")? {
        Some(found) if found == i64::from(institution.0) => Ok(()),
        found => Err(StoreError::Institution { found: found.unwrap_or(0), expected: institution }),
    }
}

fn schema_version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// A named number.
pub(crate) fn meta_number(connection: &Connection, key: &str) -> Result<Option<i64>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?)
}

/// A named text.
pub(crate) fn meta_text(connection: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?)
}

/// Sets a named value.
pub(crate) fn put_meta(connection: &Connection, key: &str, value: impl ToSql) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?;
    statement.execute(rusqlite::params![key, value])?;
    Ok(())
}

/// A hash as stored.
pub(crate) fn hash(bytes: Vec<u8>) -> Result<Hash, StoreError> {
    bytes.try_into().map_err(|_| StoreError::Corrupt("a hash that has not 32 bytes".to_owned()))
}

/// What a column holds, where only some values make sense.
pub(crate) fn corrupt<T>(found: Option<T>, what: &str) -> Result<T, StoreError> {
    found.ok_or_else(|| StoreError::Corrupt(what.to_owned()))
}
