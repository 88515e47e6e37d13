//! Vouchers of virtual cards by their last number, the first use of every code, and short codes.

use feiqian_protocol::entry::{CodeUse, EntryRef};
use feiqian_protocol::ids::{AccountId, CardNumber, InstitutionId, LogId};
use feiqian_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::{StoreError, corrupt};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS vouchers (account INTEGER PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS code_uses (until INTEGER NOT NULL, account INTEGER NOT NULL, voucher INTEGER NOT NULL,
  counter INTEGER NOT NULL, log INTEGER NOT NULL, position INTEGER NOT NULL, tap TEXT NOT NULL,
  PRIMARY KEY (until, account, voucher, counter)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS short_codes (alias INTEGER PRIMARY KEY, card TEXT NOT NULL UNIQUE, step INTEGER, tap BLOB NOT NULL,
  wrong INTEGER NOT NULL, paused_until INTEGER NOT NULL);
";

/// How long after the end of its voucher a use is kept, in seconds: a building that is silent for longer was closed.
pub(super) const USES_KEPT_S: i64 = 90 * 24 * 3_600;

/// Uses that one new one forgets at most, so that a step stays short.
const FORGOTTEN_PER_USE: i64 = 16;

/// What a code was first used for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct FirstUse {
    /// The first entry.
    pub at: EntryRef,
    /// Terminal, epoch and sequence: one tap may have two debits.
    pub tap: String,
}

/// What was last done with the short codes of a virtual card.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ShortUse {
    /// The newest step that was used.
    pub step: Option<u64>,
    /// What stands for the tap that used it.
    pub tap: [u8; 16],
    /// Wrong codes since.
    pub wrong: u32,
    /// None is taken before this.
    pub paused_until: Timestamp,
}

/// What stands for a virtual card in short codes.
pub(crate) fn alias_of(db: &Connection, card: &CardNumber) -> Result<Option<u64>, StoreError> {
    let mut statement = db.prepare_cached("SELECT alias FROM short_codes WHERE card = ?1")?;
    let alias = statement.query_row([card.as_str()], |row| row.get::<_, i64>(0)).optional()?;
    Ok(alias.map(|alias| alias as u64))
}

/// Gives a card an alias; false where that is another card's.
pub(crate) fn put_alias(db: &Connection, alias: u64, card: &CardNumber) -> Result<bool, StoreError> {
    let mut statement =
        db.prepare_cached("INSERT OR IGNORE INTO short_codes VALUES (?1, ?2, NULL, zeroblob(16), 0, 0)")?;
    Ok(statement.execute(params![alias as i64, card.as_str()])? == 1)
}

/// The virtual card of an alias, and what was done with its codes.
pub(crate) fn short_use(db: &Connection, alias: u64) -> Result<Option<(CardNumber, ShortUse)>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT card, step, tap, wrong, paused_until FROM short_codes WHERE alias = ?1")?;
    let mut rows = statement.query([alias as i64])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let card = corrupt(CardNumber::new(row.get::<_, String>(0)?).ok(), "a card number")?;
    let step = row.get::<_, Option<i64>>(1)?.map(|step| step as u64);
    let known = ShortUse { step, tap: row.get(2)?, wrong: row.get(3)?, paused_until: Timestamp(row.get(4)?) };
    Ok(Some((card, known)))
}

/// Keeps it.
pub(crate) fn put_short_use(db: &Connection, alias: u64, known: &ShortUse) -> Result<(), StoreError> {
    let ShortUse { step, tap, wrong, paused_until } = known;
    db.prepare_cached(
        "UPDATE short_codes SET step = ?2, tap = ?3, wrong = ?4, paused_until = ?5 WHERE alias = ?1",
    )?
    .execute(params![alias as i64, step.map(|step| step as i64), tap, wrong, paused_until.0])?;
    Ok(())
}

/// The number of the newest voucher of an account.
pub(crate) fn last_voucher(db: &Connection, account: AccountId) -> Result<Option<u32>, StoreError> {
    let mut statement = db.prepare_cached("SELECT number FROM vouchers WHERE account = ?1")?;
    Ok(statement.query_row([account.0 as i64], |row| row.get(0)).optional()?)
}

/// Keeps it.
pub(crate) fn put_last_voucher(db: &Connection, account: AccountId, number: u32) -> Result<(), StoreError> {
    let mut statement = db.prepare_cached("INSERT OR REPLACE INTO vouchers VALUES (?1, ?2)")?;
    statement.execute(params![account.0 as i64, number])?;
    Ok(())
}

/// What a code was first used for, where it was.
pub(crate) fn first_use(
    db: &Connection,
    institution: InstitutionId,
    account: AccountId,
    code: &CodeUse,
) -> Result<Option<FirstUse>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT log, position, tap FROM code_uses WHERE until = ?1 AND account = ?2 AND voucher = ?3 AND counter = ?4",
    )?;
    let key = params![code.until, account.0 as i64, code.voucher, code.counter];
    let found = statement
        .query_row(key, |row| {
            let log = LogId::from_key(institution, row.get(0)?);
            Ok(FirstUse { at: EntryRef { log, position: row.get::<_, i64>(1)? as u64 }, tap: row.get(2)? })
        })
        .optional()?;
    Ok(found)
}

/// Every use that is kept.
pub(crate) fn uses(
    db: &Connection,
    institution: InstitutionId,
) -> Result<Vec<(AccountId, CodeUse, FirstUse)>, StoreError> {
    let mut statement =
        db.prepare("SELECT account, voucher, counter, until, log, position, tap FROM code_uses")?;
    let rows = statement.query_map([], |row| {
        let code = CodeUse { voucher: row.get(1)?, counter: row.get(2)?, until: row.get(3)? };
        let log = LogId::from_key(institution, row.get(4)?);
        let at = EntryRef { log, position: row.get::<_, i64>(5)? as u64 };
        Ok((AccountId(row.get::<_, i64>(0)? as u64), code, FirstUse { at, tap: row.get(6)? }))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Keeps it.
pub(crate) fn put_first_use(
    db: &Connection,
    account: AccountId,
    code: &CodeUse,
    first: &FirstUse,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO code_uses VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params![
        code.until,
        account.0 as i64,
        code.voucher,
        code.counter,
        first.at.log.key(),
        first.at.position as i64,
        first.tap
    ])?;
    Ok(())
}

/// Forgets some uses of vouchers that ended long ago.
pub(crate) fn forget_uses(db: &Connection, now: Timestamp) -> Result<(), StoreError> {
    let before = now.0.div_euclid(1_000).saturating_sub(USES_KEPT_S);
    db.prepare_cached(
        "DELETE FROM code_uses WHERE (until, account, voucher, counter) IN
         (SELECT until, account, voucher, counter FROM code_uses WHERE until < ?1 ORDER BY until LIMIT ?2)",
    )?
    .execute(params![before, FORGOTTEN_PER_USE])?;
    Ok(())
}
