//! Recomputes everything that the database claims, from its entries alone.
//!
//! Four things, each by itself: every chain and every signed head; the account streams folded with
//! [`feiqian_protocol::balance::Projection`] (from the snapshot on that a stream starts from, where it does) against the
//! balances and documents of the tables, by digest; and the own log
//! with the centre's stream for this node folded into [`feiqian_protocol::rights::Rows`] against the rows of the tables; and
//! the verifiers of PINs in that stream against those in the tables.
//! It only reads, so it may run beside the service, in one read transaction.

mod answers;
mod codes;
mod pins;
mod purses;
mod rows;

use std::collections::BTreeMap;

use feiqian_protocol::balance::{Projection, ProjectionDigest};
use feiqian_protocol::chain::{Cursor, SignedHead};
use feiqian_protocol::entry::{Body, Entry};
use feiqian_protocol::ids::{AccountId, LogId};
use feiqian_protocol::limits::SHARDS;
use feiqian_protocol::money::Fen;
use feiqian_protocol::public_key::PublicKey;
use feiqian_protocol::snapshot::read_piece;
use feiqian_protocol::time::{Hlc, Timestamp};
use rusqlite::Connection;
use serde::Serialize;

use crate::io::Identity;
use crate::store::accounts::read_wallet;
use crate::store::cards::unlike_documents;
use crate::store::log::{each_record, first_position, heads, log_keys, logs};
use crate::store::snapshots::{each_piece, installed};
use crate::store::{StoreError, check_version};

/// Problems that a report names; more are only counted.
const PROBLEMS_MAX: usize = 100;

/// What `verify` found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// True where there are no problems.
    pub ok: bool,
    /// The node's name.
    pub node: String,
    /// Entries of its own log.
    pub entries: u64,
    /// Positions of the centre's streams, by name.
    pub positions: BTreeMap<String, u64>,
    /// The digest of the projection, read from the tables.
    pub digest_tables: String,
    /// The same, folded from the entries.
    pub digest_folded: String,
    /// What is wrong; the first hundred of it.
    pub problems: Vec<String>,
    #[serde(skip)]
    more: usize,
}

impl Report {
    fn problem(&mut self, what: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(what.into());
        } else {
            self.more += 1;
        }
    }
}

/// Checks a database, which may be open read-only.
///
/// # Errors
/// [`StoreError`] where it cannot be read at all; what is wrong in it stands in the report.
pub fn verify(connection: &Connection, identity: &Identity) -> Result<Report, StoreError> {
    check_version(connection)?;
    // One view of the whole, though the service may be writing.
    connection.execute_batch("BEGIN")?;
    let report = examine(connection, identity);
    connection.execute_batch("COMMIT")?;
    report
}

fn examine(connection: &Connection, identity: &Identity) -> Result<Report, StoreError> {
    let mut report = Report { node: identity.name.to_string(), ..Report::default() };
    let institution = identity.institution;
    let own = LogId::node(institution, identity.node);
    let to_node = LogId::to_node(institution, identity.node);
    for log in logs(connection, institution)? {
        if log != own && log != to_node && log.as_shard().is_none() {
            report.problem(format!("{log} is no log of this node"));
        }
    }

    let own_end = own_chain(connection, own, &mut report)?;
    report.entries = own_end;
    let end =
        chain(connection, to_node, None, |_| Some(identity.centre_key.clone()), &mut report, |_, _| {})?;
    report.positions.insert(to_node.to_string(), end);

    let mut projection = Projection::new(institution);
    for shard in 0..SHARDS {
        let log = LogId::shard(institution, shard);
        let mut faults = Vec::new();
        let base = base(connection, identity, log, &mut projection, &mut report)?;
        let folded = base.map_or(0, |base| base.position);
        let end = chain(
            connection,
            log,
            base,
            |_| Some(identity.centre_key.clone()),
            &mut report,
            |position, entry| {
                if position > folded
                    && let Err(error) = projection.apply(&entry.body)
                {
                    faults.push(format!("{log} {position}: {error}"));
                }
            },
        )?;
        faults.into_iter().for_each(|fault| report.problem(fault));
        report.positions.insert(log.to_string(), end);
    }
    compare_projection(connection, &projection, &mut report)?;
    rows::compare(connection, identity, &mut report)?;
    answers::compare(connection, identity, &mut report)?;
    codes::compare(connection, identity, &mut report)?;
    pins::compare(connection, identity, &mut report)?;
    purses::compare(connection, identity, &mut report)?;
    if report.more > 0 {
        let more = format!("and {} more", report.more);
        report.problems.push(more);
    }
    report.ok = report.problems.is_empty();
    Ok(report)
}

/// The own log: its key changes with each enrolment.
fn own_chain(connection: &Connection, own: LogId, report: &mut Report) -> Result<u64, StoreError> {
    let keys = log_keys(connection)?;
    let key_at = |position| keys.iter().rev().find(|(first, _)| *first <= position).map(|(_, key)| *key);
    chain(connection, own, None, key_at, report, |_, _| {})
}

/// What a stream starts from, where that is a snapshot: its accounts go into the projection, and its cursor is returned.
fn base(
    connection: &Connection,
    identity: &Identity,
    log: LogId,
    projection: &mut Projection,
    report: &mut Report,
) -> Result<Option<Cursor>, StoreError> {
    let signed = match installed(connection, log) {
        Err(StoreError::Damaged(what)) => {
            report.problem(format!("{log}: {what}"));
            return Ok(None);
        }
        signed => signed?,
    };
    let Some(signed) = signed else { return Ok(None) };
    let snapshot = &signed.snapshot;
    let shard = match signed.check(identity.institution, &identity.centre_key) {
        Ok(shard) if snapshot.log() == log => shard,
        Ok(_) => {
            report.problem(format!("{log}: it starts from a snapshot of {}", snapshot.log()));
            return Ok(None);
        }
        Err(error) => {
            report.problem(error.to_string());
            return Ok(None);
        }
    };
    let mut digest = ProjectionDigest::default();
    let mut last = AccountId(0);
    each_piece(connection, log, snapshot.cursor().position, |piece| {
        match read_piece(piece, shard, last) {
            Ok(accounts) => {
                for account in accounts {
                    last = account.account;
                    account.digest_into(&mut digest);
                    projection.restore(&account);
                }
            }
            Err(error) => report.problem(format!("{log}: {error}")),
        }
        Ok(())
    })?;
    if digest.finish() != snapshot.projection {
        report.problem(format!("{log}: the snapshot that it starts from is not what the centre signed"));
    }
    Ok(Some(snapshot.cursor()))
}

/// Links every record, checks every head, and hands the entries to `each`; returns where the log ends. Entries before
/// `base` may be gone: then the oldest head that is left says what the first one links to.
fn chain<K: PublicKey>(
    connection: &Connection,
    log: LogId,
    base: Option<Cursor>,
    key_at: impl Fn(u64) -> Option<K>,
    report: &mut Report,
    mut each: impl FnMut(u64, &Entry),
) -> Result<u64, StoreError> {
    let heads = heads(connection, log)?;
    let mut due = heads.iter().peekable();
    let mut cursor = Cursor::START;
    let mut clock = Hlc::default();
    let mut before = (0, Timestamp(i64::MIN));
    let first = first_position(connection, log)?;
    let kept_after = |head: &SignedHead| first.is_none_or(|first| first == head.head.cursor.position + 1);
    if let Some(base) = base
        && let Some(oldest) = due.next_if(|head| kept_after(head))
    {
        cursor = oldest.head.cursor;
        check_head(log, oldest, &cursor, &mut before, key_at(cursor.position), report);
        if cursor.position > base.position {
            report.problem(format!(
                "{log}: entries between {} and {} are missing",
                base.position, cursor.position
            ));
        }
    }
    each_record(connection, log, |position, record| {
        if position != cursor.position + 1 {
            report.problem(format!("{log}: entry {} is missing", cursor.position + 1));
            cursor.position = position - 1;
        }
        cursor = cursor.after(log, record);
        match Entry::from_record(record) {
            Ok(entry) => {
                if entry.clock < clock {
                    report.problem(format!("{log}: the clock falls at {position}"));
                }
                clock = entry.clock;
                each(position, &entry);
            }
            Err(error) => report.problem(format!("{log}: entry {position}: {error}")),
        }
        while let Some(signed) = due.next_if(|signed| signed.head.cursor.position <= position) {
            check_head(log, signed, &cursor, &mut before, key_at(position), report);
        }
        Ok(())
    })?;
    if let Some(signed) = due.next() {
        report.problem(format!("{log}: a head at {} without its entries", signed.head.cursor.position));
    }
    if let Some(base) = base.filter(|base| cursor.position < base.position) {
        report.problem(format!("{log}: it ends before {}, where it starts from", base.position));
    }
    if heads.last().map_or(0, |signed| signed.head.cursor.position) < cursor.position {
        report.problem(format!("{log}: the last entries are under no head"));
    }
    Ok(cursor.position)
}

fn check_head<K: PublicKey>(
    log: LogId,
    signed: &SignedHead,
    cursor: &Cursor,
    before: &mut (u64, Timestamp),
    key: Option<K>,
    report: &mut Report,
) {
    let head = &signed.head;
    let position = head.cursor.position;
    if head.cursor != *cursor {
        report.problem(format!("{log}: the head at {position} does not match the records before it"));
    }
    if !key.is_some_and(|key| signed.is_signed_by(&key)) {
        report.problem(format!("{log}: the head at {position} is not signed by its writer"));
    }
    if head.applied < before.0 || head.anchor < before.1 {
        report.problem(format!("{log}: the applied position or the anchor falls at {position}"));
    }
    *before = (head.applied, head.anchor);
}

/// The digest of the projection, from the tables alone.
fn digest_of_tables(connection: &Connection) -> Result<String, StoreError> {
    let mut digest = ProjectionDigest::default();
    let mut statement =
        connection.prepare("SELECT account, wallet, posted FROM wallets WHERE posted IS NOT NULL")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        digest.balance(
            AccountId(row.get::<_, i64>(0)? as u64),
            read_wallet(row.get(1)?)?,
            Fen::new(row.get(2)?),
        );
    }
    let mut statement = connection.prepare("SELECT account, projection, heads FROM documents")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let heads: Vec<String> = row.get::<_, String>(2)?.split_whitespace().map(str::to_owned).collect();
        digest.document(AccountId(row.get::<_, i64>(0)? as u64), &row.get::<_, String>(1)?, &heads);
    }
    Ok(digest.finish())
}

fn compare_projection(
    connection: &Connection,
    projection: &Projection,
    report: &mut Report,
) -> Result<(), StoreError> {
    report.digest_tables = digest_of_tables(connection)?;
    match projection.digest() {
        Ok(digest) => report.digest_folded = digest,
        Err(error) => report.problem(format!("the folded projection: {error}")),
    }
    if report.digest_tables != report.digest_folded {
        report.problem("the projection in the tables is not what the entries give");
    }
    for account in unlike_documents(connection)? {
        report.problem(format!("the cards of account {account} are not what its document says"));
    }
    Ok(())
}

/// True for entries that change what a node shows of a balance before it is posted.
const fn touches_balance(body: &Body) -> bool {
    matches!(body, Body::Debit(_) | Body::Reversal(_) | Body::TakenIn(_))
}
