//! The node's database: one SQLite file, written by one connection, inside the one transaction of a step.
//!
//! | table | key | what |
//! |---|---|---|
//! | `state` | 1 | what a commit carries beside its entries; see [`Saved`] |
//! | `log_keys` | first position | the keys that this node's log was signed with, by enrolment |
//! | `entries` | log, position | every record: the own log, the centre's stream for this node, the account streams |
//! | `heads` | log, position | every signed head; a log ends at its last one |
//! | `cards`, `documents` | card, account; account | settings: what a tap reads, in each card's row, and what it comes from |
//! | `own_settings` | position | settings written here, and cards shown here, that the account's stream does not have yet, or that were refused: [`settings`] |
//! | `wallets` | account, wallet | posted balance, own spending that is not in it yet, rights of the open epoch; in the row of cash the account's allowance share |
//! | `hints` | account | what prices a stand-in |
//! | `pools`, `pool_used` | day | stand-in of all accounts together, granted and used |
//! | `taps` | terminal, epoch, sequence | first answers, and tombstones |
//! | `recent` | position | what taps left lately of `taps` and `wallets`, until it is folded into them: [`recent`] |
//! | `purse_debits` | purchase of a purse | how much: [`purses`] |
//! | `purse_reports` | report of a purse | which entry it is: [`purses`] |
//! | `counters`, `spent_vouchers` | voucher | the last code used of each; those that pay no more: [`codes`] |
//! | `debits`, `reversals` | position | own effects on balances: a debit with what is left of it for reversals, a reversal |
//! | `posted` | shard | the position of the own log that the newest posted batch names: own effects after it are in no posted balance |
//! | `pins` | account | what a payment PIN is compared with, and wrong ones in a row: [`pins`] |
//! | `hotlist` | card, account | losses told ahead of their entries |
//! | `snapshots`, `snapshot_pieces` | log, position(, piece) | snapshots of account streams: what a stream starts from, or one under way |
//! | `campus` | 1 | the newest campus configuration |
//!
//! `wallets`, `cards`, `documents`, `hints`, `debits`, `reversals`, `taps`, `recent`, `counters` and `posted` follow from the entries:
//! [`crate::verify`] folds these again and compares.
//!
//! A tap writes three rows (entry, debit, recent), each at the end of its table; a commit adds a head and `state`. What only a reversal or a posted batch needs is looked for then.

pub mod accounts;
pub(crate) mod cards;
pub(crate) mod codes;
pub(crate) mod log;
pub(crate) mod pins;
pub(crate) mod purses;
pub(crate) mod recent;
pub(crate) mod settings;
pub(crate) mod snapshots;
pub(crate) mod stand_in;
pub(crate) mod taps;

use std::cell::RefCell;
use std::time::Duration;

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::chain::Countersignature;
use feiqian_protocol::frame::RefusalReason;
use feiqian_protocol::ids::{Epoch, LogId};
use feiqian_protocol::time::{BusinessDay, Hlc, Timestamp};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use self::cards::Cards;
use self::recent::{Newest, Recent};
use crate::io::Identity;

/// Why the database, or what it holds, cannot be used. The core that met it is dropped and reopened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("the database refused")]
    Sqlite(#[from] rusqlite::Error),
    /// The database holds what this build never writes.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// The database is another node's.
    #[error("the database is of {found}, not of {expected}")]
    Foreign {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// One input of a step failed by itself, so the step is run again with savepoints; never leaves a core.
    #[error("one input could not be taken")]
    OneInput,
    /// The database was written by a newer build.
    #[error("the database has schema version {found}, this build knows {known}")]
    Version {
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
}

impl StoreError {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    /// True where the error is about this one write, so that the rest of the step can still be kept.
    pub(crate) fn concerns_one_input(&self) -> bool {
        match self {
            Self::Damaged(_) => true,
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DiskFull | ErrorCode::TooBig | ErrorCode::ConstraintViolation)
            ),
            _ => false,
        }
    }
}

/// Makes durable what the database shows. A process that was killed between writing a commit and syncing it leaves a commit that the
/// next one reads and a power cut still takes away, and whatever the centre is told of it cannot be taken back. Moving the write-ahead
/// log into the database syncs it first; that there is no room for the rest is met again when something is written.
fn sync_what_is_read(connection: &Connection) -> Result<(), StoreError> {
    match connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        Err(error) if error.sqlite_error_code() != Some(ErrorCode::DiskFull) => Err(error.into()),
        _ => Ok(()),
    }
}

/// The newest schema known here; `PRAGMA user_version`.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    institution INTEGER NOT NULL, node INTEGER NOT NULL, name TEXT NOT NULL, incarnation INTEGER NOT NULL,
    epoch INTEGER NOT NULL, anchor INTEGER NOT NULL, elapsed_ms INTEGER NOT NULL, clock INTEGER NOT NULL,
    last_day INTEGER NOT NULL, heard INTEGER, centre_time INTEGER NOT NULL, acked INTEGER NOT NULL,
    countersigned BLOB, refused TEXT, refused_epoch INTEGER NOT NULL, tail_until INTEGER, branch INTEGER
);
CREATE TABLE log_keys (first INTEGER PRIMARY KEY, incarnation INTEGER NOT NULL, key BLOB NOT NULL);
CREATE TABLE entries (
    log INTEGER NOT NULL, position INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (log, position)
) WITHOUT ROWID;
CREATE TABLE heads (
    log INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL, applied INTEGER NOT NULL,
    anchor INTEGER NOT NULL, signature BLOB NOT NULL, PRIMARY KEY (log, position)
) WITHOUT ROWID;
CREATE TABLE cards (
    card TEXT NOT NULL, account INTEGER NOT NULL, status INTEGER NOT NULL, frozen INTEGER NOT NULL,
    closed INTEGER NOT NULL, class TEXT NOT NULL, single_limit INTEGER NOT NULL, daily_limit INTEGER NOT NULL,
    groups TEXT NOT NULL, valid_until INTEGER, PRIMARY KEY (card, account)
) WITHOUT ROWID;
CREATE TABLE documents (
    account INTEGER PRIMARY KEY, saved BLOB NOT NULL, heads TEXT NOT NULL, projection TEXT NOT NULL
);
CREATE TABLE wallets (
    id INTEGER PRIMARY KEY, posted INTEGER, own INTEGER NOT NULL DEFAULT 0,
    granted INTEGER NOT NULL DEFAULT 0, unspent INTEGER NOT NULL DEFAULT 0, released INTEGER NOT NULL DEFAULT 0,
    stand_in_granted INTEGER NOT NULL DEFAULT 0, stand_in_left INTEGER NOT NULL DEFAULT 0, share BLOB,
    account INTEGER NOT NULL AS (id >> 2) VIRTUAL, wallet INTEGER NOT NULL AS (id & 3) VIRTUAL
);
CREATE TABLE hints (
    account INTEGER PRIMARY KEY, elsewhere_per_day INTEGER NOT NULL, purchase_mean INTEGER NOT NULL,
    elsewhere_per_meal INTEGER NOT NULL, habit INTEGER NOT NULL, seasoned INTEGER NOT NULL
);
CREATE TABLE pools (from_day INTEGER PRIMARY KEY, per_day INTEGER NOT NULL, habit_only INTEGER NOT NULL);
CREATE TABLE pool_used (day INTEGER PRIMARY KEY, used INTEGER NOT NULL, used_other INTEGER NOT NULL);
CREATE TABLE terminals (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE taps (
    terminal INTEGER NOT NULL, epoch INTEGER NOT NULL, sequence TEXT NOT NULL, kind INTEGER NOT NULL,
    digest BLOB, card TEXT NOT NULL, account INTEGER NOT NULL, reason INTEGER NOT NULL, amount INTEGER NOT NULL,
    stand_in INTEGER NOT NULL, reversed INTEGER NOT NULL, clock INTEGER NOT NULL, position INTEGER NOT NULL,
    debits INTEGER NOT NULL, PRIMARY KEY (terminal, epoch, sequence)
) WITHOUT ROWID;
CREATE TABLE debits (
    position INTEGER PRIMARY KEY, account INTEGER NOT NULL, wallet INTEGER NOT NULL, epoch INTEGER NOT NULL,
    day INTEGER NOT NULL, amount INTEGER NOT NULL, right_rest INTEGER NOT NULL, stand_in_rest INTEGER NOT NULL,
    allowance_rest INTEGER NOT NULL, meal INTEGER
);
CREATE TABLE reversals (
    position INTEGER PRIMARY KEY, account INTEGER NOT NULL, wallet INTEGER NOT NULL, amount INTEGER NOT NULL
);
CREATE TABLE posted (shard INTEGER PRIMARY KEY, position INTEGER NOT NULL);
CREATE TABLE hotlist (
    card TEXT NOT NULL, account INTEGER NOT NULL, log INTEGER NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (card, account)
) WITHOUT ROWID;
CREATE TABLE snapshots (
    log INTEGER NOT NULL, position INTEGER NOT NULL, signed BLOB NOT NULL, pieces INTEGER NOT NULL,
    digest BLOB NOT NULL, last INTEGER NOT NULL, installed INTEGER NOT NULL, PRIMARY KEY (log, position)
);
CREATE TABLE snapshot_pieces (
    log INTEGER NOT NULL, position INTEGER NOT NULL, piece INTEGER NOT NULL, accounts BLOB NOT NULL,
    PRIMARY KEY (log, position, piece)
);
CREATE TABLE campus (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL, config BLOB NOT NULL);
PRAGMA user_version = 1;
";

/// What a commit carries beside its entries: the one row of `state`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Saved {
    /// The open epoch.
    pub(crate) epoch: Epoch,
    /// The last centre-signed time in the stream for this node.
    pub(crate) anchor: Timestamp,
    /// Milliseconds since the anchor was heard, as far as this node was running: a lower bound.
    pub(crate) elapsed_ms: u64,
    /// The log's clock, marks included.
    pub(crate) clock: Hlc,
    /// The newest business day that a debit was labelled with.
    pub(crate) last_day: BusinessDay,
    /// When the centre was last heard, by the wall clock here.
    pub(crate) heard: Option<Timestamp>,
    /// The newest time in any signed head of the centre.
    pub(crate) centre_time: Timestamp,
    /// How far the centre has acknowledged the log.
    pub(crate) acked: u64,
    /// The newest countersignature.
    pub(crate) countersigned: Option<Countersignature>,
    /// Why the centre has shut this node out, where it has.
    pub(crate) refused: Option<RefusalReason>,
    /// Epochs up to this ended with a refusal: grants for them may still come, and are nothing.
    pub(crate) refused_epoch: Epoch,
    /// The log is a prefix of what the centre holds up to here: nothing may be written before that has come back.
    pub(crate) tail_until: Option<u64>,
    /// Where the log is uploaded to since it was refused as a fork.
    pub(crate) branch: Option<LogId>,
}

/// The database.
pub(crate) struct Store {
    connection: Connection,
    cards: RefCell<Cards>,
    recent: RefCell<Recent>,
    newest: RefCell<Newest>,
}

impl Store {
    /// Sets the connection up and creates or checks the schema.
    pub(crate) fn open(connection: Connection, identity: &Identity) -> Result<Self, StoreError> {
        connection.busy_timeout(Duration::from_secs(10))?;
        // A memory database answers "memory" here; that is for tests, and the rest holds all the same.
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        let synchronous = if planted(Canary::SynchronousNormal) { "NORMAL" } else { "FULL" };
        connection.pragma_update(None, "synchronous", synchronous)?;
        // What taps touch again and again is some megabytes; a node is to stay small.
        connection.pragma_update(None, "cache_size", -24_576)?;
        // A tap touches pages all over the file, and the same ones again soon: the later they go from the log to their place,
        // the fewer writes that takes.
        connection.pragma_update(None, "wal_autocheckpoint", 8_000)?;
        // Without it the bundled build plans a join anew at every bind.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.set_prepared_statement_cache_capacity(128);
        let store = Self {
            connection,
            cards: RefCell::default(),
            recent: RefCell::default(),
            newest: RefCell::default(),
        };
        store.begin()?;
        match store.create_or_check(identity) {
            Ok(()) => store.commit()?,
            Err(error) => {
                store.rollback();
                return Err(error);
            }
        }
        if planted(Canary::CodeCounterForgotten) {
            store.connection.execute("DELETE FROM counters", [])?;
        }
        if planted(Canary::PinTriesForgotten) {
            store.connection.execute("UPDATE pins SET tries = 0", [])?;
        }
        sync_what_is_read(&store.connection)?;
        store.cards.replace(Cards::load(&store.connection)?);
        store.recent.replace(Recent::load(&store.connection)?);
        Ok(store)
    }

    fn create_or_check(&self, identity: &Identity) -> Result<(), StoreError> {
        match check_version(&self.connection)? {
            0 => {
                self.connection.execute_batch(SCHEMA)?;
                self.connection.execute_batch(recent::SCHEMA)?;
                self.connection.execute_batch(settings::SCHEMA)?;
                self.connection.execute(
                    "INSERT INTO state VALUES (1, ?1, ?2, ?3, ?4, 1, 0, 0, 0, 0, NULL, 0, 0, NULL, NULL, 0, NULL, NULL)",
                    params![identity.institution.0, identity.node.0, identity.name.as_str(), identity.incarnation],
                )?;
                self.put_log_key(1, identity)?;
            }
            _ => self.check_owner(identity)?,
        }
        self.connection.execute_batch(codes::SCHEMA)?;
        self.connection.execute_batch(pins::SCHEMA)?;
        purses::create(&self.connection, LogId::node(identity.institution, identity.node))
    }

    fn check_owner(&self, identity: &Identity) -> Result<(), StoreError> {
        let (institution, node, incarnation): (u16, u16, u32) =
            self.connection.query_row("SELECT institution, node, incarnation FROM state", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        if (institution, node) != (identity.institution.0, identity.node.0) {
            let name = |institution: u16, node: u16| format!("node {node} of institution {institution}");
            return Err(StoreError::Foreign {
                found: name(institution, node),
                expected: name(identity.institution.0, identity.node.0),
            });
        }
        if identity.incarnation > incarnation {
            self.enrol_anew(identity)?;
        }
        Ok(())
    }

    /// A new enrolment: the log goes on under a new key, and an old refusal is over.
    fn enrol_anew(&self, identity: &Identity) -> Result<(), StoreError> {
        let log = LogId::node(identity.institution, identity.node);
        let end = self.last_head(log)?.map_or(0, |head| head.head.cursor.position);
        self.put_log_key(end + 1, identity)?;
        self.connection.execute(
            "UPDATE state SET incarnation = ?1, name = ?2, refused = NULL, tail_until = NULL, branch = NULL",
            params![identity.incarnation, identity.name.as_str()],
        )?;
        Ok(())
    }

    fn put_log_key(&self, first: u64, identity: &Identity) -> Result<(), StoreError> {
        self.connection.execute(
            "INSERT INTO log_keys VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET incarnation = excluded.incarnation, key = excluded.key",
            params![first as i64, identity.incarnation, identity.log_key.verifying_key().as_bytes()],
        )?;
        Ok(())
    }

    /// For reading what is there, without a look at whose it is.
    pub(crate) fn reading(connection: Connection) -> Self {
        Self { connection, cards: RefCell::default(), recent: RefCell::default(), newest: RefCell::default() }
    }

    #[cfg(test)]
    pub(crate) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Starts the transaction of a step; its one writer is this connection.
    pub(crate) fn begin(&self) -> Result<(), StoreError> {
        if planted(Canary::AnswerBeforeCommit) && !self.connection.is_autocommit() {
            self.run("COMMIT")?;
        }
        self.run("BEGIN IMMEDIATE")?;
        let mut cards = self.cards.borrow_mut();
        if cards.touched() {
            // The transaction before this one was taken back.
            *cards = Cards::load(&self.connection)?;
        }
        let mut recent = self.recent.borrow_mut();
        if recent.touched() {
            *recent = Recent::load(&self.connection)?;
        }
        Ok(())
    }

    /// Ends it.
    pub(crate) fn commit(&self) -> Result<(), StoreError> {
        if !planted(Canary::AnswerBeforeCommit) {
            self.run("COMMIT")?;
        }
        self.cards.borrow_mut().committed();
        self.recent.borrow_mut().committed();
        Ok(())
    }

    /// Takes it back. The core is dropped after this, so a failure changes nothing.
    pub(crate) fn rollback(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.run("ROLLBACK")
        {
            tracing::warn!(%error, "rollback failed");
        }
    }

    /// Starts what may be taken back alone.
    pub(crate) fn savepoint(&self) -> Result<(), StoreError> {
        Ok(self.run("SAVEPOINT input")?)
    }

    /// Keeps it.
    pub(crate) fn release(&self) -> Result<(), StoreError> {
        Ok(self.run("RELEASE input")?)
    }

    /// Takes it back, keeping what was before it.
    pub(crate) fn undo(&self) -> Result<(), StoreError> {
        self.run("ROLLBACK TO input")?;
        let mut cards = self.cards.borrow_mut();
        if cards.touched() {
            cards.load_again(&self.connection)?;
        }
        let mut recent = self.recent.borrow_mut();
        if recent.touched() {
            recent.load_again(&self.connection)?;
        }
        self.release()
    }

    /// True where the step can go on after taking back what met this error. SQLite ends the whole transaction by itself
    /// on some errors; then it cannot.
    pub(crate) fn survives(&self, error: &StoreError) -> bool {
        error.concerns_one_input() && !self.connection.is_autocommit()
    }

    pub(crate) fn run(&self, sql: &str) -> Result<(), rusqlite::Error> {
        self.connection.prepare_cached(sql)?.execute([]).map(|_| ())
    }

    /// Reads the row of `state`.
    pub(crate) fn saved(&self, identity: &Identity) -> Result<Saved, StoreError> {
        saved(&self.connection, identity)
    }

    /// Writes it.
    pub(crate) fn save(&self, saved: &Saved) -> Result<(), StoreError> {
        let countersigned = saved
            .countersigned
            .map(|countersigned| minicbor::to_vec(countersigned).expect("writing to a Vec cannot fail"));
        self.connection
            .prepare_cached(
                "UPDATE state SET epoch = ?1, anchor = ?2, elapsed_ms = ?3, clock = ?4, last_day = ?5, heard = ?6,
                 centre_time = ?7, acked = ?8, countersigned = ?9, refused = ?10, refused_epoch = ?11,
                 tail_until = ?12, branch = ?13",
            )?
            .execute(params![
                saved.epoch.0,
                saved.anchor.0,
                saved.elapsed_ms as i64,
                saved.clock.to_bits() as i64,
                saved.last_day.0,
                saved.heard.map(|heard| heard.0),
                saved.centre_time.0,
                saved.acked as i64,
                countersigned,
                saved.refused.map(RefusalReason::name),
                saved.refused_epoch.0,
                saved.tail_until.map(|position| position as i64),
                saved.branch.map(LogId::key),
            ])?;
        Ok(())
    }

    /// The newest campus configuration, as published.
    pub(crate) fn campus(&self) -> Result<Option<(u32, Vec<u8>)>, StoreError> {
        campus(&self.connection)
    }

    /// Keeps a campus configuration.
    pub(crate) fn put_campus(&self, version: u32, config: &[u8]) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO campus VALUES (1, ?1, ?2)")?
            .execute(params![version, config])?;
        Ok(())
    }
}

/// The schema version of a database that this build can read.
pub(crate) fn check_version(connection: &Connection) -> Result<i64, StoreError> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::Version { found, known: SCHEMA_VERSION });
    }
    Ok(found)
}

/// Reads the row of `state`.
pub(crate) fn saved(connection: &Connection, identity: &Identity) -> Result<Saved, StoreError> {
    let row = connection.query_row(
        "SELECT epoch, anchor, elapsed_ms, clock, last_day, heard, centre_time, acked, refused_epoch, tail_until,
         countersigned, refused, branch FROM state",
        [],
        |row| {
            let saved = Saved {
                epoch: Epoch(row.get(0)?),
                anchor: Timestamp(row.get(1)?),
                elapsed_ms: row.get::<_, i64>(2)? as u64,
                clock: Hlc::from_bits(row.get::<_, i64>(3)? as u64),
                last_day: BusinessDay(row.get(4)?),
                heard: row.get::<_, Option<i64>>(5)?.map(Timestamp),
                centre_time: Timestamp(row.get(6)?),
                acked: row.get::<_, i64>(7)? as u64,
                refused_epoch: Epoch(row.get(8)?),
                tail_until: row.get::<_, Option<i64>>(9)?.map(|position| position as u64),
                countersigned: None,
                refused: None,
                branch: row
                    .get::<_, Option<i64>>(12)?
                    .map(|key| LogId::from_key(identity.institution, key)),
            };
            Ok((saved, row.get::<_, Option<Vec<u8>>>(10)?, row.get::<_, Option<String>>(11)?))
        },
    )?;
    let (mut saved, countersigned, refused) = row;
    saved.countersigned = match countersigned {
        Some(bytes) => Some(
            minicbor::decode(&bytes).map_err(|_| StoreError::damaged("the countersignature is malformed"))?,
        ),
        None => None,
    };
    saved.refused = match refused {
        Some(name) => Some(refusal(&name)?),
        None => None,
    };
    Ok(saved)
}

fn refusal(name: &str) -> Result<RefusalReason, StoreError> {
    [
        RefusalReason::Version,
        RefusalReason::Identity,
        RefusalReason::StaleGrants,
        RefusalReason::ShortLog,
        RefusalReason::ForkedLog,
        RefusalReason::ForeignGrants,
        RefusalReason::Incarnation,
        RefusalReason::CentreBehind,
        RefusalReason::Revoked,
        RefusalReason::Expired,
    ]
    .into_iter()
    .find(|reason| reason.name() == name)
    .ok_or_else(|| StoreError::damaged(format!("{name:?} is no reason for a refusal")))
}

/// The newest campus configuration, as published.
pub(crate) fn campus(connection: &Connection) -> Result<Option<(u32, Vec<u8>)>, StoreError> {
    Ok(connection
        .query_row("SELECT version, config FROM campus", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?)
}
