//! What prices a stand-in, and the pool of a day that all of them share.

use feiqian_protocol::entry::{Hint, Pool};
use feiqian_protocol::ids::AccountId;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::BusinessDay;
use rusqlite::{OptionalExtension, params};

use super::{Store, StoreError};

/// Stand-in of all accounts together on one day.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct PoolDay {
    /// Granted for the day.
    pub(crate) per_day: Fen,
    /// Of it closed to accounts without a habit here.
    pub(crate) habit_only: Fen,
    /// Used.
    pub(crate) used: Fen,
    /// Of it used by accounts without a habit here.
    pub(crate) used_other: Fen,
}

impl PoolDay {
    /// What is left of the day for an account with, or without, a habit here.
    pub(crate) fn left(&self, habit: bool) -> Fen {
        let left = self.per_day - self.used;
        if habit { left } else { left.min(self.per_day - self.habit_only - self.used_other) }
    }
}

impl Store {
    /// What prices a stand-in of an account.
    pub(crate) fn hint(&self, account: AccountId) -> Result<Option<Hint>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT elsewhere_per_day, purchase_mean, elsewhere_per_meal, habit, seasoned
             FROM hints WHERE account = ?1",
        )?;
        Ok(statement
            .query_row([account.0 as i64], |row| {
                Ok(Hint {
                    account,
                    elsewhere_per_day: Fen::new(row.get(0)?),
                    purchase_mean: Fen::new(row.get(1)?),
                    elsewhere_per_meal: Fen::new(row.get(2)?),
                    habit: row.get(3)?,
                    seasoned: row.get(4)?,
                })
            })
            .optional()?)
    }

    /// Keeps a hint.
    pub(crate) fn put_hint(&self, hint: &Hint) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO hints VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![
                hint.account.0 as i64,
                hint.elsewhere_per_day.get(),
                hint.purchase_mean.get(),
                hint.elsewhere_per_meal.get(),
                hint.habit,
                hint.seasoned,
            ])?;
        Ok(())
    }

    /// The pool of a day and what was used of it; nothing where no pool was granted.
    pub(crate) fn pool(&self, day: BusinessDay) -> Result<PoolDay, StoreError> {
        let mut pool = self
            .connection
            .prepare_cached(
                "SELECT per_day, habit_only FROM pools WHERE from_day <= ?1 ORDER BY from_day DESC LIMIT 1",
            )?
            .query_row([day.0], |row| {
                Ok(PoolDay {
                    per_day: Fen::new(row.get(0)?),
                    habit_only: Fen::new(row.get(1)?),
                    ..PoolDay::default()
                })
            })
            .optional()?
            .unwrap_or_default();
        let used: Option<(i64, i64)> = self
            .connection
            .prepare_cached("SELECT used, used_other FROM pool_used WHERE day = ?1")?
            .query_row([day.0], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some((used, used_other)) = used {
            (pool.used, pool.used_other) = (Fen::new(used), Fen::new(used_other));
        }
        Ok(pool)
    }

    /// Keeps a pool.
    pub(crate) fn put_pool(&self, pool: &Pool) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO pools VALUES (?1, ?2, ?3)")?
            .execute(params![pool.from_day.0, pool.per_day.get(), pool.habit_only.get()])?;
        Ok(())
    }

    /// Counts stand-in against the pool of a day.
    pub(crate) fn use_pool(&self, day: BusinessDay, amount: Fen, habit: bool) -> Result<(), StoreError> {
        let other = if habit { 0 } else { amount.get() };
        self.connection
            .prepare_cached(
                "INSERT INTO pool_used VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET used = used + ?2, used_other = used_other + ?3",
            )?
            .execute(params![day.0, amount.get(), other])?;
        Ok(())
    }
}
