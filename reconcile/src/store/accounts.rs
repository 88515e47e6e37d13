//! Accounts, cards and losses.

use std::collections::BTreeSet;

use feiqian_protocol::account::{AccountSettings, Document};
use feiqian_protocol::ids::{AccountId, CardNumber, Key};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use super::{StoreError, corrupt};

/// An account's document and what follows from it.
#[derive(Clone, Debug)]
pub(crate) struct StoredAccount {
    /// The epoch of its document.
    pub document_epoch: u32,
    /// The document, saved.
    pub document: Vec<u8>,
    /// From this day on stand-in may be used.
    pub seasoned_on: BusinessDay,
}

/// The account of a card.
pub(crate) fn account_of_card(db: &Connection, card: &CardNumber) -> Result<Option<AccountId>, StoreError> {
    let mut statement = db.prepare_cached("SELECT account FROM cards WHERE card = ?1")?;
    let found: Option<i64> = statement.query_row([card.as_str()], |row| row.get(0)).optional()?;
    Ok(found.map(|account| AccountId(account as u64)))
}

/// True where there is such an account.
pub(crate) fn exists(db: &Connection, account: AccountId) -> Result<bool, StoreError> {
    let mut statement = db.prepare_cached("SELECT 1 FROM accounts WHERE account = ?1")?;
    Ok(statement.exists([account.0 as i64])?)
}

/// The number of the newest account, which is how many there are: they are numbered from 1 and never removed.
pub(crate) fn count(db: &Connection) -> Result<u64, StoreError> {
    let mut statement = db.prepare_cached("SELECT COALESCE(MAX(account), 0) FROM accounts")?;
    Ok(statement.query_row([], |row| row.get::<_, i64>(0))? as u64)
}

/// Creates an account.
pub(crate) fn insert(
    db: &Connection,
    account: AccountId,
    card: &CardNumber,
    stored: &StoredAccount,
    settings: &AccountSettings,
    heads: &[String],
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO accounts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(params![
        account.0 as i64,
        card.as_str(),
        stored.seasoned_on.0,
        stored.document_epoch,
        stored.document,
        settings.canonical(),
        heads.join(" "),
        settings.daily_limit.get()
    ])?;
    Ok(())
}

/// Writes a document that has changed, as it is saved, and what it says; returns that.
pub(crate) fn update(
    db: &Connection,
    account: AccountId,
    saved: &[u8],
    document: &mut Document,
) -> Result<AccountSettings, StoreError> {
    let settings = document.settings()?;
    db.prepare_cached(
        "UPDATE accounts SET document_epoch = ?2, document = ?3, settings = ?4, heads = ?5, daily_limit = ?6
         WHERE account = ?1",
    )?
    .execute(params![
        account.0 as i64,
        document.epoch()?,
        saved,
        settings.canonical(),
        document.heads().join(" "),
        settings.daily_limit.get()
    ])?;
    Ok(settings)
}

/// An account's document.
pub(crate) fn load(db: &Connection, account: AccountId) -> Result<Option<StoredAccount>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT document_epoch, document, seasoned_on FROM accounts WHERE account = ?1")?;
    let found = statement
        .query_row([account.0 as i64], |row| {
            Ok(StoredAccount {
                document_epoch: row.get(0)?,
                document: row.get(1)?,
                seasoned_on: BusinessDay(row.get(2)?),
            })
        })
        .optional()?;
    Ok(found)
}

/// What an account's document comes to.
pub(crate) fn settings(db: &Connection, account: AccountId) -> Result<Option<AccountSettings>, StoreError> {
    let mut statement = db.prepare_cached("SELECT settings FROM accounts WHERE account = ?1")?;
    let found: Option<String> = statement.query_row([account.0 as i64], |row| row.get(0)).optional()?;
    let read = |text: String| corrupt(serde_json::from_str(&text).ok(), "the settings of an account");
    found.map(read).transpose()
}

/// The day from which on stand-in may be used, and the limit of a day.
pub(crate) fn grant_terms(
    db: &Connection,
    account: AccountId,
) -> Result<Option<(BusinessDay, Fen)>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT seasoned_on, daily_limit FROM accounts WHERE account = ?1")?;
    let found = statement
        .query_row([account.0 as i64], |row| Ok((BusinessDay(row.get(0)?), Fen::new(row.get(1)?))))
        .optional()?;
    Ok(found)
}

/// Registers a card; false where it is registered already.
pub(crate) fn insert_card(
    db: &Connection,
    card: &CardNumber,
    account: AccountId,
) -> Result<bool, StoreError> {
    let mut statement = db.prepare_cached("INSERT OR IGNORE INTO cards VALUES (?1, ?2)")?;
    Ok(statement.execute(params![card.as_str(), account.0 as i64])? == 1)
}

/// Notes a loss report; `position` is its place in the account's stream.
pub(crate) fn insert_loss(
    db: &Connection,
    card: &CardNumber,
    loss: &Key,
    account: AccountId,
    reported: Timestamp,
    position: u64,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO losses VALUES (?1, ?2, ?3, ?4, NULL, ?5)")?.execute(params![
        card.as_str(),
        loss.as_str(),
        account.0 as i64,
        reported.0,
        position as i64,
    ])?;
    Ok(())
}

/// When the oldest report of a card that stands was made, and its place in the account's stream.
pub(crate) fn standing_loss(
    db: &Connection,
    card: &CardNumber,
) -> Result<Option<(Timestamp, u64)>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT reported, position FROM losses WHERE card = ?1 AND lifted IS NULL ORDER BY position LIMIT 1",
    )?;
    let found = statement
        .query_row([card.as_str()], |row| Ok((Timestamp(row.get(0)?), row.get::<_, i64>(1)? as u64)));
    Ok(found.optional()?)
}

/// True where this report was ever noted, be it lifted since.
pub(crate) fn has_loss(db: &Connection, card: &CardNumber, loss: &Key) -> Result<bool, StoreError> {
    let mut statement = db.prepare_cached("SELECT 1 FROM losses WHERE card = ?1 AND loss = ?2")?;
    Ok(statement.exists(params![card.as_str(), loss.as_str()])?)
}

/// Notes that reports were lifted.
pub(crate) fn lift_losses(
    db: &Connection,
    card: &CardNumber,
    losses: &[Key],
    lifted: Timestamp,
) -> Result<(), StoreError> {
    let mut statement = db.prepare_cached("UPDATE losses SET lifted = ?3 WHERE card = ?1 AND loss = ?2")?;
    for loss in losses {
        statement.execute(params![card.as_str(), loss.as_str(), lifted.0])?;
    }
    Ok(())
}

/// Cards that were ever reported lost.
pub(crate) fn cards_lost(db: &Connection) -> Result<BTreeSet<CardNumber>, StoreError> {
    let mut statement = db.prepare("SELECT DISTINCT card FROM losses")?;
    let mut rows = statement.query([])?;
    let mut cards = BTreeSet::new();
    while let Some(row) = rows.next()? {
        cards.insert(corrupt(CardNumber::new(row.get::<_, String>(0)?).ok(), "a card number")?);
    }
    Ok(cards)
}

/// True where a tap of this card with this order key, ingested only now, came after a loss report: the report stands,
/// or it was lifted later than the tap.
pub(crate) fn lost_at(db: &Connection, card: &CardNumber, order_key: Timestamp) -> Result<bool, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT 1 FROM losses WHERE card = ?1 AND (lifted IS NULL OR lifted >= ?2)")?;
    Ok(statement.exists(params![card.as_str(), order_key.0])?)
}
