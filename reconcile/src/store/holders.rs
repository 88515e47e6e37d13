//! Holders as their documents tell of them, blank cards, login passwords, and tries to bind.

use feiqian_protocol::account::{AccountSettings, HolderField};
use feiqian_protocol::ids::{AccountId, CardNumber};
use feiqian_protocol::pin::PinHash;
use feiqian_protocol::time::{BusinessDay, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use super::{StoreError, corrupt};

/// Created at every opening: a database of a build that knew none of it gets it so.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS holders (account INTEGER PRIMARY KEY, number TEXT UNIQUE, user TEXT UNIQUE, name TEXT,
  department TEXT);
CREATE INDEX IF NOT EXISTS holders_by_department ON holders (department, account);
CREATE TABLE IF NOT EXISTS blank_cards (place INTEGER PRIMARY KEY, card TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS logins (account INTEGER PRIMARY KEY, salt BLOB NOT NULL, hash BLOB NOT NULL,
  since INTEGER NOT NULL, tries INTEGER NOT NULL, tried INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS bind_tries (number TEXT PRIMARY KEY, day INTEGER NOT NULL, tries INTEGER NOT NULL)
  WITHOUT ROWID;
";

/// Keeps what an account's document tells of its holder, to be found by.
pub(crate) fn put(db: &Connection, account: AccountId, settings: &AccountSettings) -> Result<(), StoreError> {
    let field = |field| settings.holder.get(&field);
    db.prepare_cached("INSERT OR REPLACE INTO holders VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        account.0 as i64,
        field(HolderField::Number),
        field(HolderField::User),
        field(HolderField::Name),
        field(HolderField::Department),
    ])?;
    Ok(())
}

/// The account of a number that the institution knows its holder by.
pub(crate) fn of_number(db: &Connection, number: &str) -> Result<Option<AccountId>, StoreError> {
    one(db, "SELECT account FROM holders WHERE number = ?1", number)
}

/// The account that a user of a channel is bound to.
pub(crate) fn of_user(db: &Connection, user: &str) -> Result<Option<AccountId>, StoreError> {
    one(db, "SELECT account FROM holders WHERE user = ?1", user)
}

fn one(db: &Connection, sql: &str, value: &str) -> Result<Option<AccountId>, StoreError> {
    let found: Option<i64> = db.prepare_cached(sql)?.query_row([value], |row| row.get(0)).optional()?;
    Ok(found.map(|account| AccountId(account as u64)))
}

/// The next accounts of a department after one, with their settings as JSON.
pub(crate) fn of_department(
    db: &Connection,
    department: &str,
    after: AccountId,
    count: usize,
) -> Result<Vec<(AccountId, String)>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT account, settings FROM holders JOIN accounts USING (account)
         WHERE department = ?1 AND account > ?2 ORDER BY account LIMIT ?3",
    )?;
    let rows = statement.query_map(params![department, after.0 as i64, count as i64], |row| {
        Ok((AccountId(row.get::<_, i64>(0)? as u64), row.get(1)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Puts a blank card at the end of the stock; false where it is there already.
pub(crate) fn put_blank(db: &Connection, card: &CardNumber) -> Result<bool, StoreError> {
    let mut statement = db.prepare_cached("INSERT OR IGNORE INTO blank_cards (card) VALUES (?1)")?;
    Ok(statement.execute([card.as_str()])? == 1)
}

/// The next blank cards, so many at most, in the order in which they came in.
pub(crate) fn next_blank(db: &Connection, count: usize) -> Result<Vec<CardNumber>, StoreError> {
    let mut statement = db.prepare_cached("SELECT card FROM blank_cards ORDER BY place LIMIT ?1")?;
    let mut rows = statement.query([count as i64])?;
    let mut cards = Vec::new();
    while let Some(row) = rows.next()? {
        cards.push(corrupt(CardNumber::new(row.get::<_, String>(0)?).ok(), "the number of a blank card")?);
    }
    Ok(cards)
}

/// How many there are.
pub(crate) fn blanks(db: &Connection) -> Result<u64, StoreError> {
    let mut statement = db.prepare_cached("SELECT COUNT(*) FROM blank_cards")?;
    Ok(statement.query_row([], |row| row.get::<_, i64>(0))? as u64)
}

/// A card is given out, from the stock or not.
pub(crate) fn take_blank(db: &Connection, card: &CardNumber) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM blank_cards WHERE card = ?1")?.execute([card.as_str()])?;
    Ok(())
}

/// A login password as it is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct StoredLogin {
    /// The salt of the hash.
    pub salt: [u8; 16],
    /// The hash.
    pub hash: PinHash,
    /// When it was set.
    pub since: Timestamp,
    /// Wrong ones in a row.
    pub tries: u8,
    /// When the last wrong one came.
    pub tried: Timestamp,
}

/// The login password of an account.
pub(crate) fn login(db: &Connection, account: AccountId) -> Result<Option<StoredLogin>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT salt, hash, since, tries, tried FROM logins WHERE account = ?1")?;
    let found = statement
        .query_row([account.0 as i64], |row| {
            Ok(StoredLogin {
                salt: row.get(0)?,
                hash: PinHash::new(row.get(1)?),
                since: Timestamp(row.get(2)?),
                tries: row.get(3)?,
                tried: Timestamp(row.get(4)?),
            })
        })
        .optional()?;
    Ok(found)
}

/// Keeps it.
pub(crate) fn put_login(db: &Connection, account: AccountId, login: &StoredLogin) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO logins VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        account.0 as i64,
        login.salt,
        login.hash.to_bytes(),
        login.since.0,
        login.tries,
        login.tried.0
    ])?;
    Ok(())
}

/// Tries to bind to a number that failed on a day, be there such a number or not.
pub(crate) fn bind_tries(db: &Connection, number: &str, day: BusinessDay) -> Result<u8, StoreError> {
    let mut statement = db.prepare_cached("SELECT tries FROM bind_tries WHERE number = ?1 AND day = ?2")?;
    Ok(statement.query_row(params![number, day.0], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// Counts one more, and forgets some of the days before.
pub(crate) fn add_bind_try(db: &Connection, number: &str, day: BusinessDay) -> Result<(), StoreError> {
    let tries = bind_tries(db, number, day)?.saturating_add(1);
    db.prepare_cached("INSERT OR REPLACE INTO bind_tries VALUES (?1, ?2, ?3)")?
        .execute(params![number, day.0, tries])?;
    db.prepare_cached(
        "DELETE FROM bind_tries WHERE number IN (SELECT number FROM bind_tries WHERE day < ?1 LIMIT 8)",
    )?
    .execute([day.0])?;
    Ok(())
}
