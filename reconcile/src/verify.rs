//! Recomputes everything that the database claims, from its entries alone.
//!
//! Every chain and every signed head; the account streams folded with [`feiqian_protocol::balance::Projection`]
//! (from the snapshot on, where older entries were dropped) against
//! the tables, by digest; the entries of the nodes against what was posted, each exactly once; the ledger against itself
//! and against the wallets; and that every wallet is partitioned (`funds = free + out + residue`). Effects that are gathered for
//! the next posted batches count as posted, but are in no balance of a stream yet. It only reads, in one
//! read transaction, so it may run beside the service.

mod books;
mod codes;
mod purses;

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::VerifyingKey;
use feiqian_protocol::balance::Projection;
use feiqian_protocol::chain::{Cursor, SignedHead};
use feiqian_protocol::entry::{Body, Entry, EntryRef};
use feiqian_protocol::ids::{AccountId, InstitutionId, LogId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::snapshot::{PieceDigest, SnapshotError, read_piece};
use rusqlite::Connection;
use serde::Serialize;

use crate::ingest::in_range;
use crate::store::money::{self, wallet_of};
use crate::store::{StoreError, check, logs, meta_number, nodes, recovery, snapshots};
use crate::verify::purses::PurseExamination;

/// Problems that a report names; more are only counted.
const PROBLEMS_MAX: usize = 100;

/// Records read at a time.
const PAGE: usize = 1_024;

/// What `verify` found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// True where there are no problems.
    pub ok: bool,
    /// Always `centre`.
    pub node: String,
    /// Entries of all logs.
    pub entries: u64,
    /// Positions of the account streams, by name.
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
pub fn verify(
    connection: &Connection,
    institution: InstitutionId,
    centre_key: &VerifyingKey,
) -> Result<Report, StoreError> {
    check(connection, institution)?;
    // One view of the whole, though the service may be writing.
    connection.execute_batch("BEGIN")?;
    let report = Examination::new(connection, institution).examine(centre_key);
    connection.execute_batch("COMMIT")?;
    report
}

type Balances = BTreeMap<(AccountId, Wallet), Fen>;

struct Examination<'a> {
    db: &'a Connection,
    institution: InstitutionId,
    report: Report,
    projection: Projection,
    /// Effects on balances by the nodes' entries, and by the posted batches.
    by_nodes: Balances,
    by_posted: Balances,
    /// Effects that are on the ledger and will be in the next posted batches.
    gathered: Balances,
    /// All logs that are here.
    logs: Vec<LogId>,
    faults: BTreeSet<(i64, u64)>,
    /// How often an entry is on the ledger, and what of it was credited.
    posted: BTreeMap<(i64, u64), Fen>,
    /// Of streams with dropped entries: up to where.
    kept_after: BTreeMap<i64, u64>,
    /// What entries say of purses.
    purses: PurseExamination,
    /// Whether uses of codes are kept here, and the time of the newest entry, in milliseconds.
    keeps_codes: bool,
    newest: i64,
    /// What batches posted and wallets do not have yet, while a restored copy takes back what it lacks.
    owed: Balances,
}

impl<'a> Examination<'a> {
    fn new(db: &'a Connection, institution: InstitutionId) -> Self {
        Self {
            db,
            institution,
            report: Report { node: "centre".to_owned(), ..Report::default() },
            projection: Projection::new(institution),
            by_nodes: Balances::new(),
            by_posted: Balances::new(),
            gathered: Balances::new(),
            logs: Vec::new(),
            faults: BTreeSet::new(),
            posted: BTreeMap::new(),
            kept_after: BTreeMap::new(),
            purses: PurseExamination::default(),
            keeps_codes: false,
            newest: i64::MIN,
            owed: Balances::new(),
        }
    }

    fn examine(mut self, centre_key: &VerifyingKey) -> Result<Report, StoreError> {
        self.read_faults()?;
        self.read_postings()?;
        self.read_pruned()?;
        self.read_unheard()?;
        let keys: BTreeMap<NodeId, VerifyingKey> =
            nodes::all(self.db)?.into_iter().map(|(id, node)| (id, node.log_key)).collect();
        let all = logs::all(self.db, self.institution)?;
        self.logs = all.iter().map(|(log, _)| *log).collect();
        self.keeps_codes = self.keeps_codes()?;
        self.newest = all.iter().map(|(_, state)| state.order_key.0).max().unwrap_or(i64::MIN);
        for (log, state) in all {
            let key = if log.writer == NodeId::CENTRE { Some(centre_key) } else { keys.get(&log.writer) };
            match key {
                Some(key) => self.examine_log(log, &state, key)?,
                None => self.report.problem(format!("{log}: no such node")),
            }
            if log.writer == NodeId::CENTRE {
                continue;
            }
            if state.named > state.posted {
                self.report.problem(format!("{log}: posted batches include more of it than was posted"));
            }
            for (_, account, wallet, amount) in
                money::wallet_effects(self.db, log, state.named, state.posted)?
            {
                *self.gathered.entry((account, wallet)).or_default() += amount;
            }
        }
        self.examine_effects();
        self.examine_ledger()?;
        self.examine_purses()?;
        if self.keeps_codes {
            self.examine_uses()?;
        }
        self.examine_wallets()?;
        self.examine_holds()?;
        self.compare_digests()?;
        self.report.problems.sort();
        if self.report.more > 0 {
            let more = self.report.more;
            self.report.problems.push(format!("and {more} more"));
        }
        self.report.ok = self.report.problems.is_empty();
        Ok(self.report)
    }

    fn read_faults(&mut self) -> Result<(), StoreError> {
        let mut statement = self.db.prepare("SELECT log, position FROM faults")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.faults.insert((row.get(0)?, row.get::<_, i64>(1)? as u64));
        }
        Ok(())
    }

    fn read_postings(&mut self) -> Result<(), StoreError> {
        let mut statement = self.db.prepare(
            "SELECT log, position, SUM(amount), SUM(MAX(amount, 0)) FROM postings GROUP BY log, position",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let key = (row.get(0)?, row.get::<_, i64>(1)? as u64);
            if row.get::<_, i64>(2)? != 0 {
                let log = LogId::from_key(self.institution, key.0);
                self.report.problem(format!("{log}: the postings of entry {} do not sum to zero", key.1));
            }
            self.posted.insert(key, Fen::new(row.get(3)?));
        }
        Ok(())
    }

    fn read_pruned(&mut self) -> Result<(), StoreError> {
        let mut statement = self.db.prepare("SELECT account, wallet, posted FROM pruned")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let account = AccountId(row.get::<_, i64>(0)? as u64);
            self.by_posted.insert((account, wallet_of(row.get(1)?)?), Fen::new(row.get(2)?));
        }
        Ok(())
    }

    /// What batches posted of entries that a restored copy never got back counts for those entries. While it still takes them
    /// back, the wallets have not followed yet.
    fn read_unheard(&mut self) -> Result<(), StoreError> {
        let recovering = meta_number(self.db, "recovery")?.is_some();
        for (account, wallet, amount) in recovery::unheard(self.db)? {
            self.by_nodes.insert((account, wallet), amount);
            if recovering {
                self.owed.insert((account, wallet), amount);
            }
        }
        for (account, wallet, amount) in recovery::unnamed(self.db)? {
            *self.by_nodes.entry((account, wallet)).or_default() += amount;
            *self.owed.entry((account, wallet)).or_default() += amount;
        }
        Ok(())
    }

    /// Where the entries of a log begin: after the cut, where older ones were dropped. What the dropped ones gave is in the
    /// snapshot, and it is what follows the snapshot that is folded.
    fn beginning(
        &mut self,
        log: LogId,
        end: Cursor,
        centre_key: &VerifyingKey,
    ) -> Result<(Cursor, u64), StoreError> {
        let Some(kept_after) = snapshots::kept_after(self.db, log)? else {
            // The last entry is never dropped.
            if end.position > 0 {
                self.report.problem(format!("{log}: all of its entries are missing"));
            }
            return Ok((Cursor::START, 0));
        };
        if log.as_shard().is_none() || kept_after == 0 {
            return Ok((Cursor::START, 0));
        }
        self.kept_after.insert(log.key(), kept_after);
        // The head at the cut is the oldest that is left: with an older one, what is missing was not dropped here.
        let head = logs::heads_after(self.db, log, 0, 1)?.first().copied();
        let Some(cut) = head.filter(|head| head.head.cursor.position == kept_after) else {
            self.report.problem(format!("{log}: no head is left at {kept_after}, where its entries begin"));
            return Ok((Cursor::START, 0));
        };
        if !cut.is_signed_by(centre_key) {
            self.report.problem(format!("{log}: the head at {kept_after} is not signed"));
        }
        let folded = self.restore(log, kept_after, centre_key)?;
        Ok((cut.head.cursor, folded))
    }

    /// Starts the accounts of a stream from its snapshot; returns its position.
    fn restore(&mut self, log: LogId, kept_after: u64, centre_key: &VerifyingKey) -> Result<u64, StoreError> {
        let stored = match snapshots::all(self.db, self.institution) {
            Err(StoreError::Corrupt(what)) => {
                self.report.problem(format!("{log}: {what} does not read back"));
                return Ok(0);
            }
            stored => stored?,
        };
        let Some((_, signed)) = stored.into_iter().find(|(of, _)| *of == log) else {
            self.report.problem(format!("{log}: its first {kept_after} entries are missing"));
            return Ok(0);
        };
        let snapshot = &signed.snapshot;
        let position = snapshot.cursor().position;
        let shard = match signed.check(self.institution, centre_key) {
            Ok(shard) if snapshot.log() == log => shard,
            Ok(_) => {
                self.report.problem(format!("{log}: its snapshot is of {}", snapshot.log()));
                return Ok(position);
            }
            Err(error) => {
                self.report.problem(error.to_string());
                return Ok(position);
            }
        };
        if position < kept_after {
            self.report.problem(format!("{log}: entries between {position} and {kept_after} are missing"));
        }
        let mut digest = PieceDigest::default();
        let mut last = AccountId(0);
        for index in 0..snapshot.pieces {
            let piece = snapshots::piece(self.db, log, index)?;
            digest = digest.with(&piece);
            match read_piece(&piece, shard, last) {
                Ok(accounts) => {
                    for account in accounts {
                        last = account.account;
                        self.projection.restore(&account);
                    }
                }
                Err(error) => self.report.problem(format!("{log}: {error}")),
            }
        }
        if digest.0 != snapshot.digest {
            self.report.problem(SnapshotError::Digest(log).to_string());
        }
        Ok(position)
    }

    fn examine_log(
        &mut self,
        log: LogId,
        state: &logs::LogState,
        key: &VerifyingKey,
    ) -> Result<(), StoreError> {
        let own = LogId::node(log.institution, log.writer);
        let is_branch = log.writer != NodeId::CENTRE && log.stream != 0;
        let chain = if is_branch { own } else { log };
        let (mut cursor, folded) = if is_branch {
            (self.fork_point(log, own, key)?, 0)
        } else {
            self.beginning(log, state.cursor, key)?
        };
        let mut heads: BTreeMap<u64, SignedHead> = BTreeMap::new();
        let mut last_order = i64::MIN;
        let mut signed_up_to = cursor.position;
        loop {
            let page = self.page(log, cursor.position)?;
            if page.is_empty() {
                break;
            }
            for head in logs::heads_after(self.db, log, cursor.position, PAGE)? {
                heads.insert(head.head.cursor.position, head);
            }
            for (position, order_key, hash, record) in page {
                if is_branch && let Some(lost) = self.lost_before(log, position, cursor, key)? {
                    cursor = lost;
                }
                if position != cursor.position + 1 {
                    self.report.problem(format!("{log}: entry {} is missing", cursor.position + 1));
                    cursor.position = position - 1;
                }
                cursor = cursor.after(chain, &record);
                if cursor.hash[..] != hash[..] {
                    self.report
                        .problem(format!("{log}: the hash of entry {position} is not that of its record"));
                    cursor.hash = crate::store::hash(hash)?;
                }
                if order_key < last_order {
                    self.report.problem(format!("{log}: the order key falls at entry {position}"));
                }
                last_order = order_key;
                if let Some(head) = heads.remove(&position) {
                    if head.head.cursor != cursor || !head.is_signed_by(key) {
                        self.report
                            .problem(format!("{log}: the head at {position} is not signed over its entries"));
                    }
                    signed_up_to = position;
                }
                self.report.entries += 1;
                match Entry::from_record(&record) {
                    // What has come by another name as well counts there.
                    Ok(_) if self.is_posted_elsewhere(log, cursor)? => {}
                    Ok(entry) => {
                        self.examine_entry(log, position, (folded, state.posted), &entry);
                        if self.keeps_codes && position <= state.posted {
                            self.examine_code(EntryRef { log, position }, &entry)?;
                        }
                    }
                    Err(error) => self.report.problem(format!("{log}: entry {position}: {error}")),
                }
            }
        }
        if is_branch && let Some(lost) = self.lost_before(log, state.cursor.position + 1, cursor, key)? {
            (cursor, signed_up_to) = (lost, lost.position);
        }
        if cursor != state.cursor && state.cursor.position > 0 {
            self.report
                .problem(format!("{log}: ends at {}, not at {}", cursor.position, state.cursor.position));
        }
        if signed_up_to != cursor.position {
            self.report.problem(format!("{log}: no signed head covers what follows {signed_up_to}"));
        }
        if log.as_shard().is_some() {
            self.report.positions.insert(log.to_string(), cursor.position);
        }
        Ok(())
    }

    /// Where a branch leaves the log: before its first entry. Where it begins with something lost, its writer has signed what that
    /// was, and the log may have something else there.
    fn fork_point(&self, log: LogId, own: LogId, key: &VerifyingKey) -> Result<Cursor, StoreError> {
        let mut statement =
            self.db.prepare_cached("SELECT COALESCE(MIN(position), 1) FROM entries WHERE log = ?1")?;
        let first = statement.query_row([log.key()], |row| row.get::<_, i64>(0))? as u64;
        let position = first - 1;
        let lost = logs::head_at(self.db, log, position)?.filter(|head| head.is_signed_by(key));
        let hash = match lost {
            Some(head) => head.head.cursor.hash,
            None => logs::hash_at(self.db, own, position)?.unwrap_or_default(),
        };
        Ok(Cursor { position, hash })
    }

    /// What a branch lost before `position`: where it goes on by what its writer signed, where a fault says so, or by the log, where
    /// that has it.
    fn lost_before(
        &self,
        log: LogId,
        position: u64,
        cursor: Cursor,
        key: &VerifyingKey,
    ) -> Result<Option<Cursor>, StoreError> {
        let last = position - 1;
        if last <= cursor.position {
            return Ok(None);
        }
        if self.faults.contains(&(log.key(), last)) {
            let head = logs::head_at(self.db, log, last)?.filter(|head| head.is_signed_by(key));
            return Ok(head.map(|head| head.head.cursor));
        }
        let own = LogId::node(log.institution, log.writer);
        Ok(logs::hash_at(self.db, own, last)?.map(|hash| Cursor { position: last, hash }))
    }

    #[allow(clippy::type_complexity)]
    fn page(&self, log: LogId, after: u64) -> Result<Vec<(u64, i64, Vec<u8>, Vec<u8>)>, StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT position, order_key, hash, record FROM entries WHERE log = ?1 AND position > ?2
             ORDER BY position LIMIT ?3",
        )?;
        let rows = statement.query_map([log.key(), after as i64, PAGE as i64], |row| {
            Ok((row.get::<_, i64>(0)? as u64, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// True where an entry of a node is posted as one of another branch of its log, or of the log itself, and not as one of this.
    fn is_posted_elsewhere(&self, log: LogId, cursor: Cursor) -> Result<bool, StoreError> {
        if log.writer == NodeId::CENTRE || self.posted.contains_key(&(log.key(), cursor.position)) {
            return Ok(false);
        }
        for other in self.logs.iter().filter(|other| other.writer == log.writer && **other != log) {
            if self.posted.contains_key(&(other.key(), cursor.position))
                && logs::hash_at(self.db, *other, cursor.position)? == Some(cursor.hash)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn examine_entry(
        &mut self,
        log: LogId,
        position: u64,
        (folded, posted_up_to): (u64, u64),
        entry: &Entry,
    ) {
        if log.as_shard().is_some() {
            // What a restored copy has taken back and not replayed yet.
            if position > posted_up_to {
                return;
            }
            if let Body::PurseLoad(_)
            | Body::PurseLoadSettled(_)
            | Body::PurseReturned(_)
            | Body::PurseCaseDecided(_) = &entry.body
            {
                self.purses.entries.insert((log.key(), position), entry.body.clone());
            }
            if let Body::Posted(posted) = &entry.body {
                for delta in &posted.deltas {
                    *self.by_posted.entry((delta.account, delta.wallet)).or_default() += delta.amount;
                }
            }
            if let Body::Payout(payout) = &entry.body
                && position > self.kept_after.get(&log.key()).copied().unwrap_or_default()
                && self.posted.get(&(log.key(), position)) != Some(&payout.amount)
            {
                self.report.problem(format!("{log}: the payout at {position} is not posted as it is"));
            }
            if position > folded
                && let Err(error) = self.projection.apply(&entry.body)
            {
                self.report.problem(format!("{log}: entry {position}: {error}"));
            }
            return;
        }
        if log.writer == NodeId::CENTRE || position > posted_up_to {
            return;
        }
        if let Body::PursePurchase(_) | Body::PurseLoaded(_) = &entry.body {
            self.purses.entries.insert((log.key(), position), entry.body.clone());
            return;
        }
        let (account, wallet, parts) = match &entry.body {
            Body::Debit(debit) => {
                (debit.account, debit.wallet, [debit.from_right, debit.stand_in, debit.of_voucher()])
            }
            Body::Reversal(back) => {
                (back.account, back.wallet, [back.right_back, back.right_home, back.stand_in_home])
            }
            Body::TakenIn(taken_in) => {
                (taken_in.account, taken_in.wallet, [taken_in.amount, Fen::ZERO, Fen::ZERO])
            }
            _ => return,
        };
        let is_fault = self.faults.contains(&(log.key(), position));
        if !parts.into_iter().all(in_range) {
            // A sum of what somebody made up may be no number at all; it is nobody's money.
            if !is_fault || self.moves_wallet(log, position) {
                self.report.problem(format!("{log}: entry {position} of an impossible amount is no fault"));
            }
            return;
        }
        let sum: Fen = parts.into_iter().sum();
        let effect = if matches!(entry.body, Body::Debit(_)) { -sum } else { sum };
        let size = if effect.is_negative() { -effect } else { effect };
        let found = self.posted.get(&(log.key(), position)).copied();
        if is_fault {
            // What breaks a rule may be posted to suspense, or not at all; if it moved the wallet, the ledger says so.
            if found.is_some() && self.moves_wallet(log, position) {
                *self.by_nodes.entry((account, wallet)).or_default() += effect;
            }
            return;
        }
        *self.by_nodes.entry((account, wallet)).or_default() += effect;
        if found != Some(size) {
            self.report.problem(format!("{log}: entry {position} of {size} yuan is posted as {found:?}"));
        }
    }
}
