//! What became of vouchers with money. How much of one is held is its row of rights, whose node is the centre and whose epoch is the
//! voucher's number: a voucher is a holder like any other.

use feiqian_protocol::entry::EntryRef;
use feiqian_protocol::ids::{AccountId, CardNumber, InstitutionId, LogId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Timestamp};
use rusqlite::{Connection, params};

use super::codes::USES_KEPT_S;
use super::{StoreError, corrupt};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS holds (account INTEGER NOT NULL, voucher INTEGER NOT NULL, card TEXT NOT NULL,
  ceiling INTEGER NOT NULL, issued INTEGER NOT NULL, until INTEGER NOT NULL, state INTEGER NOT NULL,
  counted INTEGER NOT NULL, day_from INTEGER NOT NULL, day_to INTEGER NOT NULL, log INTEGER, position INTEGER,
  order_key INTEGER NOT NULL, signed BLOB NOT NULL, PRIMARY KEY (account, voucher)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS holds_open ON holds (until) WHERE state < 2;
CREATE INDEX IF NOT EXISTS holds_over ON holds (until) WHERE state >= 2;
";

/// Holds that one new one forgets at most, so that a step stays short.
const FORGOTTEN_PER_HOLD: i64 = 4;

/// How far it has come with a voucher.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HoldStage {
    /// All of its ceiling is held.
    Whole = 0,
    /// A receipt says what it paid: so much is held for that debit.
    Receipted = 1,
    /// The debit is ingested, and took it.
    Paid = 2,
    /// Its time is over, and what was held is free again.
    Returned = 3,
}

impl HoldStage {
    const ALL: [Self; 4] = [Self::Whole, Self::Receipted, Self::Paid, Self::Returned];

    /// True while something may be held.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Whole | Self::Receipted)
    }
}

/// A voucher with money.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct HoldState {
    /// The account.
    pub account: AccountId,
    /// The voucher's number.
    pub voucher: u32,
    /// The virtual card.
    pub card: CardNumber,
    /// Its ceiling.
    pub ceiling: Fen,
    /// When it was issued, in Unix seconds.
    pub issued: u32,
    /// When it ends, likewise.
    pub until: u32,
    /// How far it has come.
    pub stage: HoldStage,
    /// Fen that count against the no-PIN allowance of each day from the first to the last.
    pub counted: Fen,
    /// See `counted`.
    pub days: (BusinessDay, BusinessDay),
    /// The debit that it paid, by a receipt or the log.
    pub debit: Option<EntryRef>,
    /// Where the debit is ingested, its order key.
    pub order_key: Timestamp,
    /// The voucher as it was signed; empty where it is given to nobody again: its phone has used it, or the centre was restored since.
    pub signed: Vec<u8>,
}

const COLUMNS: &str = "account, voucher, card, ceiling, issued, until, state, counted, day_from, day_to, log, position, order_key, signed";

fn read(row: &rusqlite::Row<'_>, institution: InstitutionId) -> Result<HoldState, StoreError> {
    let stage = HoldStage::ALL.get(usize::from(row.get::<_, u8>(6)?)).copied();
    let debit = row.get::<_, Option<i64>>(10)?.zip(row.get::<_, Option<i64>>(11)?);
    Ok(HoldState {
        account: AccountId(row.get::<_, i64>(0)? as u64),
        voucher: row.get(1)?,
        card: corrupt(CardNumber::new(row.get::<_, String>(2)?).ok(), "the card of a voucher")?,
        ceiling: Fen::new(row.get(3)?),
        issued: row.get(4)?,
        until: row.get(5)?,
        stage: corrupt(stage, "how far it has come with a voucher")?,
        counted: Fen::new(row.get(7)?),
        days: (BusinessDay(row.get(8)?), BusinessDay(row.get(9)?)),
        debit: debit.map(|(log, position)| EntryRef {
            log: LogId::from_key(institution, log),
            position: position as u64,
        }),
        order_key: Timestamp(row.get(12)?),
        signed: row.get(13)?,
    })
}

/// One of them.
pub(crate) fn hold(
    db: &Connection,
    institution: InstitutionId,
    account: AccountId,
    voucher: u32,
) -> Result<Option<HoldState>, StoreError> {
    let mut statement =
        db.prepare_cached(&format!("SELECT {COLUMNS} FROM holds WHERE account = ?1 AND voucher = ?2"))?;
    let mut rows = statement.query(params![account.0 as i64, voucher])?;
    rows.next()?.map(|row| read(row, institution)).transpose()
}

/// Those of a card that hold all of their ceiling, end after a time, in Unix seconds, and can be given again.
pub(crate) fn to_give_again(
    db: &Connection,
    institution: InstitutionId,
    account: AccountId,
    card: &CardNumber,
    now: i64,
) -> Result<Vec<HoldState>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM holds
         WHERE account = ?1 AND card = ?2 AND state = 0 AND until > ?3 AND signed <> x'' ORDER BY voucher"
    ))?;
    let key = params![account.0 as i64, card.as_str(), now];
    statement.query_and_then(key, |row| read(row, institution))?.collect()
}

/// Gives a card's voucher to nobody again: its phone has used it.
pub(crate) fn give_no_more(
    db: &Connection,
    account: AccountId,
    card: &CardNumber,
    voucher: u32,
) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE holds SET signed = x'' WHERE account = ?1 AND card = ?2 AND voucher = ?3")?
        .execute(params![account.0 as i64, card.as_str(), voucher])?;
    Ok(())
}

/// Gives none of them again: what phones have said that they used may be forgotten.
pub(crate) fn give_none_again(db: &Connection) -> Result<(), StoreError> {
    db.execute("UPDATE holds SET signed = x'' WHERE state = 0", [])?;
    Ok(())
}

/// Those of an account that end no earlier than a time, in Unix seconds, and whose money was not returned.
pub(crate) fn not_over(
    db: &Connection,
    institution: InstitutionId,
    account: AccountId,
    from: i64,
) -> Result<Vec<HoldState>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM holds WHERE account = ?1 AND until >= ?2 AND state < 3 ORDER BY voucher"
    ))?;
    statement.query_and_then(params![account.0 as i64, from], |row| read(row, institution))?.collect()
}

/// How many of an account's vouchers hold something.
pub(crate) fn open_of_account(db: &Connection, account: AccountId) -> Result<usize, StoreError> {
    let mut statement = db.prepare_cached("SELECT COUNT(*) FROM holds WHERE account = ?1 AND state < 2")?;
    let count: u32 = statement.query_row([account.0 as i64], |row| row.get(0))?;
    Ok(count as usize)
}

/// Fen of an account's allowance of a day that its vouchers count.
pub(crate) fn counted_on(db: &Connection, account: AccountId, day: BusinessDay) -> Result<Fen, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT COALESCE(SUM(counted), 0) FROM holds WHERE account = ?1 AND ?2 BETWEEN day_from AND day_to",
    )?;
    Ok(statement.query_row(params![account.0 as i64, day.0], |row| row.get(0).map(Fen::new))?)
}

/// True where an account has had money held for a voucher since a time, in Unix seconds. Numbers of vouchers are no lower than the time
/// of their issue.
pub(crate) fn any_since(db: &Connection, account: AccountId, since: i64) -> Result<bool, StoreError> {
    let mut statement = db.prepare_cached("SELECT 1 FROM holds WHERE account = ?1 AND voucher >= ?2")?;
    Ok(statement.exists(params![account.0 as i64, since])?)
}

/// The oldest of those that hold something and ended before a time, in Unix seconds.
pub(crate) fn open_before(
    db: &Connection,
    institution: InstitutionId,
    before: i64,
    limit: usize,
) -> Result<Vec<HoldState>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM holds WHERE state < 2 AND until < ?1 ORDER BY until LIMIT ?2"
    ))?;
    statement.query_and_then(params![before, limit as i64], |row| read(row, institution))?.collect()
}

/// The voucher that paid a debit.
pub(crate) fn of_debit(
    db: &Connection,
    account: AccountId,
    debit: EntryRef,
) -> Result<Option<HoldState>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM holds WHERE account = ?1 AND log = ?2 AND position = ?3 AND state = 2"
    ))?;
    let mut rows = statement.query(params![account.0 as i64, debit.log.key(), debit.position as i64])?;
    rows.next()?.map(|row| read(row, debit.log.institution)).transpose()
}

/// Writes one.
pub(crate) fn put(db: &Connection, hold: &HoldState) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO holds VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?
    .execute(params![
        hold.account.0 as i64,
        hold.voucher,
        hold.card.as_str(),
        hold.ceiling.get(),
        hold.issued,
        hold.until,
        hold.stage as u8,
        hold.counted.get(),
        hold.days.0.0,
        hold.days.1.0,
        hold.debit.map(|debit| debit.log.key()),
        hold.debit.map(|debit| debit.position as i64),
        hold.order_key.0,
        hold.signed,
    ])?;
    Ok(())
}

/// Forgets some of those that ended long ago.
pub(crate) fn forget(db: &Connection, now: Timestamp) -> Result<(), StoreError> {
    let before = now.0.div_euclid(1_000).saturating_sub(USES_KEPT_S);
    db.prepare_cached(
        "DELETE FROM holds WHERE state >= 2 AND (account, voucher) IN
         (SELECT account, voucher FROM holds WHERE state >= 2 AND until < ?1 ORDER BY until LIMIT ?2)",
    )?
    .execute(params![before, FORGOTTEN_PER_HOLD])?;
    Ok(())
}

/// Rows of rights that vouchers have without a voucher that may hold so much, and vouchers that hold without a row: account, number.
pub(crate) fn at_odds(db: &Connection) -> Result<Vec<(AccountId, u32)>, StoreError> {
    if !db.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'holds'")?.exists([])? {
        // A database that no build which knew of holds has opened yet.
        return Ok(Vec::new());
    }
    let mut statement = db.prepare(
        "SELECT rights.account, epoch FROM rights LEFT JOIN holds ON holds.account = rights.account AND voucher = epoch
         WHERE node = 0 AND (wallet <> 1 OR out <= 0 OR residue <> 0 OR ceiling IS NULL OR state >= 2 OR out > ceiling
           OR (state = 0 AND out <> ceiling))
         UNION ALL
         SELECT account, voucher FROM holds WHERE state < 2 AND NOT EXISTS
           (SELECT 1 FROM rights WHERE rights.account = holds.account AND wallet = 1 AND node = 0 AND epoch = voucher)",
    )?;
    let found = statement.query_map([], |row| Ok((AccountId(row.get::<_, i64>(0)? as u64), row.get(1)?)))?;
    Ok(found.collect::<Result<_, _>>()?)
}
