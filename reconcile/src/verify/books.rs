//! The books, against what the logs come to: postings, wallets, holds, digests.

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::balance::ProjectionDigest;
use feiqian_protocol::ids::{AccountId, LogId};
use feiqian_protocol::limits::SHARDS;
use feiqian_protocol::money::Fen;

use super::Examination;
use crate::store::money::wallet_of;
use crate::store::{StoreError, holds};

impl Examination<'_> {
    pub(super) fn moves_wallet(&self, log: LogId, position: u64) -> bool {
        let sql = "SELECT 1 FROM postings WHERE log = ?1 AND position = ?2 AND ledger LIKE 'wallet:%'";
        let moved = self
            .db
            .prepare_cached(sql)
            .and_then(|mut statement| statement.exists([log.key(), position as i64]));
        moved.unwrap_or(false)
    }

    pub(super) fn examine_effects(&mut self) {
        let keys: BTreeSet<_> =
            self.by_nodes.keys().chain(self.by_posted.keys()).chain(self.gathered.keys()).copied().collect();
        for key in keys {
            let entries = self.by_nodes.get(&key).copied().unwrap_or_default();
            let batches = self.by_posted.get(&key).copied().unwrap_or_default();
            let gathered = self.gathered.get(&key).copied().unwrap_or_default();
            if entries != batches + gathered {
                let (account, wallet) = key;
                self.report.problem(format!(
                    "account {account}, {wallet}: entries of nodes say {entries}, posted batches {batches}"
                ));
            }
        }
    }

    pub(super) fn examine_ledger(&mut self) -> Result<(), StoreError> {
        let total: i64 =
            self.db.query_row("SELECT COALESCE(SUM(amount), 0) FROM postings", [], |row| row.get(0))?;
        if total != 0 {
            self.report.problem(format!("the trial balance is off by {}", Fen::new(total)));
        }
        let mut statement = self.db.prepare(
            "SELECT postings.log, postings.position FROM postings LEFT JOIN entries USING (log, position)
             WHERE entries.log IS NULL",
        )?;
        let mut rows = statement.query([])?;
        let mut orphans = 0;
        while let Some(row) = rows.next()? {
            let (log, position) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)? as u64);
            orphans += u64::from(self.kept_after.get(&log).is_none_or(|kept_after| position > *kept_after));
        }
        if orphans != 0 {
            self.report.problem(format!("{orphans} lines of the ledger belong to no entry"));
        }
        let mut statement = self.db.prepare(
            "SELECT ledger, SUM(amount), (SELECT balance FROM ledger WHERE ledger.ledger = postings.ledger)
             FROM postings GROUP BY ledger",
        )?;
        let mut rows = statement.query([])?;
        let mut wallets = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let (ledger, sum): (String, i64) = (row.get(0)?, row.get(1)?);
            if ledger.starts_with("wallet:") {
                wallets.insert(ledger, sum);
            } else if row.get::<_, Option<i64>>(2)? != Some(sum) {
                self.report.problem(format!("{ledger}: the balance is not the sum of its postings"));
            }
        }
        let mut statement = self.db.prepare("SELECT account, wallet, funds, claims FROM wallets")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let account = AccountId(row.get::<_, i64>(0)? as u64);
            let ledger = crate::ledger::wallet_ledger(account, wallet_of(row.get(1)?)?);
            let posted = wallets.remove(&ledger).unwrap_or(0);
            if posted != row.get::<_, i64>(2)? + row.get::<_, i64>(3)? {
                self.report
                    .problem(format!("{ledger}: the ledger is not the posted balance and open claims"));
            }
        }
        for ledger in wallets.into_keys() {
            self.report.problem(format!("{ledger}: no such wallet"));
        }
        Ok(())
    }

    pub(super) fn examine_wallets(&mut self) -> Result<(), StoreError> {
        let mut statement = self.db.prepare(
            "SELECT account, wallet, funds - free, claims,
               (SELECT COALESCE(SUM(out + residue), 0) FROM rights
                WHERE rights.account = wallets.account AND rights.wallet = wallets.wallet),
               (SELECT COALESCE(SUM(opened - recovered), 0) FROM cases
                WHERE cases.account = wallets.account AND cases.wallet = wallets.wallet AND loss = 0)
             FROM wallets",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let account = AccountId(row.get::<_, i64>(0)? as u64);
            let wallet = wallet_of(row.get(1)?)?;
            if row.get::<_, i64>(2)? != row.get::<_, i64>(4)? {
                self.report
                    .problem(format!("account {account}, {wallet}: funds are not free, out and residue"));
            }
            if row.get::<_, i64>(3)? != row.get::<_, i64>(5)? {
                self.report
                    .problem(format!("account {account}, {wallet}: claims are not those of its cases"));
            }
        }
        Ok(())
    }

    /// What vouchers hold stands with what is known of them.
    pub(super) fn examine_holds(&mut self) -> Result<(), StoreError> {
        for (account, voucher) in holds::at_odds(self.db)? {
            let what = "what it holds and what is known of it are at odds";
            self.report.problem(format!("account {account}, voucher {voucher}: {what}"));
        }
        Ok(())
    }

    pub(super) fn compare_digests(&mut self) -> Result<(), StoreError> {
        let mut digest = ProjectionDigest::default();
        let mut statement = self.db.prepare("SELECT account, wallet, funds FROM wallets")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let account = AccountId(row.get::<_, i64>(0)? as u64);
            let (wallet, funds) = (wallet_of(row.get(1)?)?, Fen::new(row.get(2)?));
            let owed = self.owed.get(&(account, wallet)).copied().unwrap_or_default();
            let gathered = self.gathered.get(&(account, wallet)).copied();
            let posted = funds + owed - gathered.unwrap_or_default();
            // A wallet of which nothing was posted yet is in no stream.
            if gathered.is_none()
                || posted != Fen::ZERO
                || self.projection.balances.contains_key(&(account, wallet))
            {
                digest.balance(account, wallet, posted);
            }
        }
        let mut statement = self.db.prepare("SELECT account, settings, heads FROM accounts")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let heads: Vec<String> = row.get::<_, String>(2)?.split(' ').map(str::to_owned).collect();
            digest.document(AccountId(row.get::<_, i64>(0)? as u64), &row.get::<_, String>(1)?, &heads);
        }
        self.report.digest_tables = digest.finish();
        match self.projection.digest() {
            Ok(digest) => self.report.digest_folded = digest,
            Err(error) => self.report.problem(format!("a folded document: {error}")),
        }
        if self.report.digest_folded != self.report.digest_tables {
            self.report.problem("the balances and documents are not what the entries say");
        }
        for shard in 0..SHARDS {
            let name = LogId::shard(self.institution, shard).to_string();
            self.report.positions.entry(name).or_default();
        }
        Ok(())
    }
}
