//! Cases: what was overspent or is to be given back, who bears it, and what of it has come back.

use feiqian_protocol::entry::{Bearer, CaseReason, EntryRef};
use feiqian_protocol::ids::{AccountId, InstitutionId, LogId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use rusqlite::{Connection, params};

use super::money::wallet_of;
use super::{StoreError, corrupt};

/// The reason of a number, which is that of its encoding.
pub(crate) fn reason_of(number: u8) -> Result<CaseReason, StoreError> {
    corrupt(CaseReason::ALL.get(usize::from(number)).copied(), "a case's reason")
}

/// The bearer of a number, which is that of its encoding.
pub(crate) fn bearer_of(number: u8) -> Result<Bearer, StoreError> {
    corrupt(Bearer::ALL.get(usize::from(number)).copied(), "a case's bearer")
}

/// A case.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct CaseState {
    /// The account.
    pub account: AccountId,
    /// The wallet.
    pub wallet: Wallet,
    /// The debit.
    pub debit: EntryRef,
    /// The debit's order key: the oldest case is recovered first.
    pub order_key: Timestamp,
    /// Why.
    pub reason: CaseReason,
    /// Who bears it.
    pub bearer: Bearer,
    /// Fen overspent (or paid after a loss report).
    pub opened: Fen,
    /// Fen recovered from the holder.
    pub recovered: Fen,
    /// Fen that the risk fund gave back.
    pub refunded: Fen,
    /// The debit's card.
    pub card: String,
}

const CASE_COLUMNS: &str =
    "account, wallet, log, position, order_key, reason, bearer, opened, recovered, refunded, card";

fn case_row(row: &rusqlite::Row<'_>, institution: InstitutionId) -> Result<CaseState, StoreError> {
    Ok(CaseState {
        account: AccountId(row.get::<_, i64>(0)? as u64),
        wallet: wallet_of(row.get(1)?)?,
        debit: EntryRef {
            log: LogId::from_key(institution, row.get(2)?),
            position: row.get::<_, i64>(3)? as u64,
        },
        order_key: Timestamp(row.get(4)?),
        reason: reason_of(row.get(5)?)?,
        bearer: bearer_of(row.get(6)?)?,
        opened: Fen::new(row.get(7)?),
        recovered: Fen::new(row.get(8)?),
        refunded: Fen::new(row.get(9)?),
        card: row.get(10)?,
    })
}

fn cases_by(
    db: &Connection,
    institution: InstitutionId,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<CaseState>, StoreError> {
    let mut statement = db.prepare_cached(&format!("SELECT {CASE_COLUMNS} FROM cases WHERE {condition}"))?;
    statement.query_and_then(parameters, |row| case_row(row, institution))?.collect()
}

/// The overspend cases of a wallet, oldest first.
pub(crate) fn overspend_cases(
    db: &Connection,
    institution: InstitutionId,
    account: AccountId,
    wallet: Wallet,
) -> Result<Vec<CaseState>, StoreError> {
    let condition = "account = ?1 AND wallet = ?2 AND loss = 0 ORDER BY order_key, log, position";
    cases_by(db, institution, condition, params![account.0 as i64, wallet.number()])
}

/// The case of a debit that the holder has back: after a loss report, or by a replayed code.
pub(crate) fn loss_case(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    debit: EntryRef,
) -> Result<Option<CaseState>, StoreError> {
    let cases = loss_cases_at(db, account, wallet, debit)?;
    Ok(cases.into_iter().find(|case| case.debit == debit))
}

/// Such cases of debits at the same position, in whichever log.
pub(crate) fn loss_cases_at(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    debit: EntryRef,
) -> Result<Vec<CaseState>, StoreError> {
    let condition = "account = ?1 AND wallet = ?2 AND position = ?3 AND loss = 1 ORDER BY log";
    let parameters = params![account.0 as i64, wallet.number(), debit.position as i64];
    cases_by(db, debit.log.institution, condition, parameters)
}

/// All cases of debits that a holder may have back.
pub(crate) fn refundable_cases(
    db: &Connection,
    institution: InstitutionId,
) -> Result<Vec<CaseState>, StoreError> {
    cases_by(db, institution, "loss = 1 ORDER BY order_key, log, position, wallet", [])
}

/// Cases in suspense whose debit is before a time.
pub(crate) fn suspense_cases_before(
    db: &Connection,
    institution: InstitutionId,
    before: Timestamp,
    limit: usize,
) -> Result<Vec<CaseState>, StoreError> {
    let condition = "bearer = 0 AND loss = 0 AND order_key < ?1 ORDER BY order_key, log, position LIMIT ?2";
    cases_by(db, institution, condition, params![before.0, limit as i64])
}

/// Writes a case.
pub(crate) fn put_case(db: &Connection, case: &CaseState) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO cases VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params![
        case.account.0 as i64,
        case.wallet.number(),
        case.debit.log.key(),
        case.debit.position as i64,
        u8::from(case.reason.is_refunded()),
        case.order_key.0,
        case.reason as u8,
        case.bearer as u8,
        case.opened.get(),
        case.recovered.get(),
        case.refunded.get(),
        case.card
    ])?;
    Ok(())
}

/// How many cases are open, and fen of them.
pub(crate) fn open_cases(db: &Connection) -> Result<(u64, Fen), StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT COUNT(*), COALESCE(SUM(opened - recovered - refunded), 0) FROM cases
         WHERE opened > recovered + refunded",
    )?;
    Ok(statement.query_row([], |row| Ok((row.get::<_, i64>(0)? as u64, Fen::new(row.get(1)?))))?)
}
