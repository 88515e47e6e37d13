//! The last counter that was used of each voucher, so that a code pays once here, restarts or not; and vouchers whose money is
//! spent, here or by the centre's word.
//!
//! The end of the voucher stands first in the key, for forgetting; it is signed, so it is always the same for a voucher.

use feiqian_protocol::entry::CodeUse;
use feiqian_protocol::ids::AccountId;
use rusqlite::{Connection, OptionalExtension, params};

use super::{Store, StoreError};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS counters (
    until INTEGER NOT NULL, account INTEGER NOT NULL, voucher INTEGER NOT NULL, counter INTEGER NOT NULL,
    PRIMARY KEY (until, account, voucher)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent_vouchers (
    until INTEGER NOT NULL, account INTEGER NOT NULL, voucher INTEGER NOT NULL, PRIMARY KEY (until, account, voucher)
) WITHOUT ROWID;
";

/// Counters, and spent vouchers, that one use forgets at most, so that a tap does not wait for many.
const FORGOTTEN_PER_USE: i64 = 16;

impl Store {
    /// The last counter used of a voucher.
    pub(crate) fn last_counter(&self, account: AccountId, code: &CodeUse) -> Result<Option<u16>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT counter FROM counters WHERE until = ?1 AND account = ?2 AND voucher = ?3",
        )?;
        let key = params![code.until, account.0 as i64, code.voucher];
        Ok(statement.query_row(key, |row| row.get(0)).optional()?)
    }

    /// Keeps a counter as the last one used, unless a later one is known.
    pub(crate) fn put_counter(&self, account: AccountId, code: &CodeUse) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO counters VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET counter = max(counter, excluded.counter)",
            )?
            .execute(params![code.until, account.0 as i64, code.voucher, code.counter])?;
        Ok(())
    }

    /// Forgets some counters of vouchers that ended before a time, in Unix seconds.
    pub(crate) fn forget_counters(&self, before: i64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "DELETE FROM counters WHERE (until, account, voucher) IN
                 (SELECT until, account, voucher FROM counters WHERE until < ?1 ORDER BY until LIMIT ?2)",
            )?
            .execute(params![before, FORGOTTEN_PER_USE])?;
        self.connection
            .prepare_cached(
                "DELETE FROM spent_vouchers WHERE (until, account, voucher) IN
                 (SELECT until, account, voucher FROM spent_vouchers WHERE until < ?1 ORDER BY until LIMIT ?2)",
            )?
            .execute(params![before, FORGOTTEN_PER_USE])?;
        Ok(())
    }

    /// Keeps that a voucher pays no more.
    pub(crate) fn put_spent_voucher(
        &self,
        account: AccountId,
        voucher: u32,
        until: u32,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT OR IGNORE INTO spent_vouchers VALUES (?1, ?2, ?3)")?
            .execute(params![until, account.0 as i64, voucher])?;
        Ok(())
    }

    /// True where it pays no more, as far as is known here.
    pub(crate) fn is_voucher_spent(
        &self,
        account: AccountId,
        voucher: u32,
        until: u32,
    ) -> Result<bool, StoreError> {
        is_voucher_spent(&self.connection, account, voucher, until)
    }
}

/// See [`Store::is_voucher_spent`].
pub(crate) fn is_voucher_spent(
    connection: &Connection,
    account: AccountId,
    voucher: u32,
    until: u32,
) -> Result<bool, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT 1 FROM spent_vouchers WHERE until = ?1 AND account = ?2 AND voucher = ?3")?;
    Ok(statement.exists(params![until, account.0 as i64, voucher])?)
}

/// Hands every counter that is kept to `each`.
pub(crate) fn each_counter(
    connection: &Connection,
    mut each: impl FnMut(AccountId, CodeUse),
) -> Result<(), StoreError> {
    let mut statement = connection.prepare("SELECT account, voucher, counter, until FROM counters")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let code = CodeUse { voucher: row.get(1)?, counter: row.get(2)?, until: row.get(3)? };
        each(AccountId(row.get::<_, i64>(0)? as u64), code);
    }
    Ok(())
}
