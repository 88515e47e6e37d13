//! Money: wallets, rights, shares, movements, credits and postings.

use std::collections::BTreeMap;

use feiqian_protocol::entry::{CaseReason, EntryRef};
use feiqian_protocol::ids::{AccountId, CardNumber, Epoch, InstitutionId, LogId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use super::cases::reason_of;
use super::{StoreError, corrupt};
use crate::ledger::of_wallet_ledger;

/// An (account, wallet) at the centre.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct WalletState {
    /// Credits - debits + reversals + refunds, as ingested: the posted balance.
    pub funds: Fen,
    /// What the centre may grant; below zero where stand-in was used while right lay elsewhere.
    pub free: Fen,
    /// Overspent and not recovered.
    pub claims: Fen,
    /// Debits beyond right so far; where it is zero nothing can be overspent.
    pub unbacked: Fen,
    /// What moved it last.
    pub last: Option<EntryRef>,
}

/// A row of rights as the centre counts it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct RowState {
    /// Granted so far.
    pub granted: Fen,
    /// Right that the centre must assume is there.
    pub out: Fen,
    /// Stand-in granted so far.
    pub si_granted: Fen,
    /// Stand-in that the centre must assume is there.
    pub si_out: Fen,
    /// Of a closed epoch: what late reversals left there.
    pub residue: Fen,
}

/// The rows of one (account, wallet).
pub(crate) type Rows = BTreeMap<(NodeId, Epoch), RowState>;

fn entry_ref(institution: InstitutionId, log: Option<i64>, position: Option<i64>) -> Option<EntryRef> {
    let (log, position) = log.zip(position)?;
    Some(EntryRef { log: LogId::from_key(institution, log), position: position as u64 })
}

/// A wallet of an account.
pub(crate) fn wallet(
    db: &Connection,
    institution: InstitutionId,
    account: AccountId,
    wallet: Wallet,
) -> Result<Option<WalletState>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT funds, free, claims, unbacked, last_log, last_position FROM wallets WHERE account = ?1 AND wallet = ?2",
    )?;
    let found = statement
        .query_row(params![account.0 as i64, wallet.number()], |row| {
            Ok(WalletState {
                funds: Fen::new(row.get(0)?),
                free: Fen::new(row.get(1)?),
                claims: Fen::new(row.get(2)?),
                unbacked: Fen::new(row.get(3)?),
                last: entry_ref(institution, row.get(4)?, row.get(5)?),
            })
        })
        .optional()?;
    Ok(found)
}

/// Writes a wallet.
pub(crate) fn put_wallet(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    state: &WalletState,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO wallets VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(
        params![
            account.0 as i64,
            wallet.number(),
            state.funds.get(),
            state.free.get(),
            state.claims.get(),
            state.unbacked.get(),
            state.last.map(|last| last.log.key()),
            state.last.map(|last| last.position as i64),
        ],
    )?;
    Ok(())
}

/// The rows of a wallet, of all nodes and epochs.
pub(crate) fn rows(db: &Connection, account: AccountId, wallet: Wallet) -> Result<Rows, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT node, epoch, granted, out, si_granted, si_out, residue FROM rights
         WHERE account = ?1 AND wallet = ?2",
    )?;
    let mut found = statement.query(params![account.0 as i64, wallet.number()])?;
    let mut rows = Rows::new();
    while let Some(row) = found.next()? {
        let state = RowState {
            granted: Fen::new(row.get(2)?),
            out: Fen::new(row.get(3)?),
            si_granted: Fen::new(row.get(4)?),
            si_out: Fen::new(row.get(5)?),
            residue: Fen::new(row.get(6)?),
        };
        rows.insert((NodeId(row.get(0)?), Epoch(row.get(1)?)), state);
    }
    Ok(rows)
}

/// Writes a row.
pub(crate) fn put_row(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    (node, epoch): (NodeId, Epoch),
    state: &RowState,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO rights VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?.execute(
        params![
            account.0 as i64,
            wallet.number(),
            node.0,
            epoch.0,
            state.granted.get(),
            state.out.get(),
            state.si_granted.get(),
            state.si_out.get(),
            state.residue.get()
        ],
    )?;
    Ok(())
}

/// Forgets what a voucher held.
pub(crate) fn drop_held(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    (node, epoch): (NodeId, Epoch),
) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM rights WHERE account = ?1 AND wallet = ?2 AND node = ?3 AND epoch = ?4")?
        .execute(params![account.0 as i64, wallet.number(), node.0, epoch.0])?;
    Ok(())
}

/// The wallets in which a node has something in an epoch. A scan: epochs end rarely, and an index would cost every tap.
pub(crate) fn wallets_of_epoch(
    db: &Connection,
    node: NodeId,
    epoch: Epoch,
) -> Result<Vec<(AccountId, Wallet)>, StoreError> {
    let sql = "SELECT account, wallet FROM rights WHERE node = ?1 AND epoch = ?2
               AND (out <> 0 OR si_out <> 0 OR residue <> 0)";
    wallets_where(db, sql, node, epoch)
}

/// The wallets in which a closed epoch of a node has something left. By an index, since a node may say at any time, and as
/// often as it likes, that an old epoch has ended; few rows have a residue.
pub(crate) fn residues_of_epoch(
    db: &Connection,
    node: NodeId,
    epoch: Epoch,
) -> Result<Vec<(AccountId, Wallet)>, StoreError> {
    let sql = "SELECT account, wallet FROM rights WHERE node = ?1 AND epoch = ?2 AND residue <> 0";
    wallets_where(db, sql, node, epoch)
}

fn wallets_where(
    db: &Connection,
    sql: &str,
    node: NodeId,
    epoch: Epoch,
) -> Result<Vec<(AccountId, Wallet)>, StoreError> {
    let mut statement = db.prepare_cached(sql)?;
    let mut found = statement.query(params![node.0, epoch.0])?;
    let mut wallets = Vec::new();
    while let Some(row) = found.next()? {
        wallets.push((AccountId(row.get::<_, i64>(0)? as u64), wallet_of(row.get(1)?)?));
    }
    Ok(wallets)
}

pub(crate) fn wallet_of(number: u8) -> Result<Wallet, StoreError> {
    corrupt(Wallet::from_number(number), "a wallet's number")
}

/// An account's allowance at one node in one epoch, fen a day.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct ShareState {
    /// Granted so far.
    pub granted: Fen,
    /// Granted minus released.
    pub out: Fen,
    /// The day on which the epoch was closed: what was out may have been used until its end.
    pub closed_day: Option<BusinessDay>,
}

/// The shares of an account, of all nodes and epochs.
pub(crate) fn shares(
    db: &Connection,
    account: AccountId,
) -> Result<BTreeMap<(NodeId, Epoch), ShareState>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT node, epoch, granted, out, closed_day FROM shares WHERE account = ?1")?;
    let mut found = statement.query([account.0 as i64])?;
    let mut shares = BTreeMap::new();
    while let Some(row) = found.next()? {
        let state = ShareState {
            granted: Fen::new(row.get(2)?),
            out: Fen::new(row.get(3)?),
            closed_day: row.get::<_, Option<i32>>(4)?.map(BusinessDay),
        };
        shares.insert((NodeId(row.get(0)?), Epoch(row.get(1)?)), state);
    }
    Ok(shares)
}

/// Writes a share.
pub(crate) fn put_share(
    db: &Connection,
    account: AccountId,
    (node, epoch): (NodeId, Epoch),
    state: &ShareState,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO shares VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        account.0 as i64,
        node.0,
        epoch.0,
        state.granted.get(),
        state.out.get(),
        state.closed_day.map(|day| day.0)
    ])?;
    Ok(())
}

/// Closes all shares of a node's epoch, and returns the accounts.
pub(crate) fn close_shares(
    db: &Connection,
    node: NodeId,
    epoch: Epoch,
    day: BusinessDay,
) -> Result<Vec<AccountId>, StoreError> {
    let mut statement = db.prepare_cached(
        "UPDATE shares SET closed_day = ?3 WHERE node = ?1 AND epoch = ?2 AND closed_day IS NULL
         RETURNING account",
    )?;
    let accounts = statement
        .query_map(params![node.0, epoch.0, day.0], |row| Ok(AccountId(row.get::<_, i64>(0)? as u64)))?;
    Ok(accounts.collect::<Result<_, _>>()?)
}

/// What moved a wallet: the history that overspend is resolved from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct MovementState {
    /// See [`crate::ingest`].
    pub order_key: Timestamp,
    /// Effect on funds as the entry says: negative for a debit.
    pub amount: Fen,
    /// Of a debit: beyond right, by the node's word.
    pub stand_in: Fen,
    /// Of a debit: not backed by right as the centre counts it, `stand_in` included.
    pub unbacked: Fen,
    /// Of a debit: given back by the node.
    pub reversed: Fen,
    /// The part of `reversed` that was stand-in.
    pub stand_in_home: Fen,
    /// Of a debit: given back by the risk fund.
    pub refunded: Fen,
    /// Of a recovery: what was recovered (moves claims, not funds).
    pub recovered: Fen,
    /// Why a case about it would be opened.
    pub reason: CaseReason,
    /// Of a debit: who was paid.
    pub merchant: u16,
    /// Of a debit: its own business day.
    pub day: BusinessDay,
    /// Of a debit: the card.
    pub card: Option<CardNumber>,
    /// What moved the wallet before.
    pub previous: Option<EntryRef>,
}

impl MovementState {
    /// A movement that is no debit.
    pub fn plain(order_key: Timestamp, amount: Fen) -> Self {
        Self {
            order_key,
            amount,
            stand_in: Fen::ZERO,
            unbacked: Fen::ZERO,
            reversed: Fen::ZERO,
            stand_in_home: Fen::ZERO,
            refunded: Fen::ZERO,
            recovered: Fen::ZERO,
            reason: CaseReason::StandIn,
            merchant: 0,
            day: BusinessDay(0),
            card: None,
            previous: None,
        }
    }

    /// Of a debit: what is left of it.
    pub fn net(&self) -> Fen {
        -self.amount - self.reversed - self.refunded
    }

    /// Of a debit: what is left of its unbacked part.
    pub fn unbacked_net(&self) -> Fen {
        (self.unbacked - self.stand_in_home).or_zero().min(self.net().or_zero())
    }
}

const MOVEMENT_COLUMNS: &str = "log, position, order_key, amount, stand_in, unbacked, reversed, stand_in_home, \
                                refunded, recovered, reason, merchant, day, card, \
                                previous_log, previous_position";

fn movement_row(
    row: &rusqlite::Row<'_>,
    institution: InstitutionId,
) -> Result<(EntryRef, MovementState), StoreError> {
    let debit =
        EntryRef { log: LogId::from_key(institution, row.get(0)?), position: row.get::<_, i64>(1)? as u64 };
    let state = MovementState {
        order_key: Timestamp(row.get(2)?),
        amount: Fen::new(row.get(3)?),
        stand_in: Fen::new(row.get(4)?),
        unbacked: Fen::new(row.get(5)?),
        reversed: Fen::new(row.get(6)?),
        stand_in_home: Fen::new(row.get(7)?),
        refunded: Fen::new(row.get(8)?),
        recovered: Fen::new(row.get(9)?),
        reason: reason_of(row.get(10)?)?,
        merchant: row.get(11)?,
        day: BusinessDay(row.get(12)?),
        card: row.get::<_, Option<String>>(13)?.and_then(|card| CardNumber::new(card).ok()),
        previous: entry_ref(institution, row.get(14)?, row.get(15)?),
    };
    Ok((debit, state))
}

/// One movement.
pub(crate) fn movement(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    at: EntryRef,
) -> Result<Option<MovementState>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {MOVEMENT_COLUMNS} FROM movements
         WHERE log = ?1 AND position = ?2 AND account = ?3 AND wallet = ?4"
    ))?;
    let mut rows =
        statement.query(params![at.log.key(), at.position as i64, account.0 as i64, wallet.number()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(movement_row(row, at.log.institution)?.1))
}

/// All movements of a wallet, from its last one back.
pub(crate) fn movements(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    last: Option<EntryRef>,
) -> Result<BTreeMap<EntryRef, MovementState>, StoreError> {
    let mut movements = BTreeMap::new();
    let mut next = last;
    while let Some(at) = next {
        let found = movement(db, account, wallet, at)?;
        let state = corrupt(found, "the movements of a wallet: one is missing")?;
        next = state.previous;
        if movements.insert(at, state).is_some() {
            return corrupt(None, "the movements of a wallet: one comes twice");
        }
    }
    Ok(movements)
}

/// Writes a movement.
pub(crate) fn put_movement(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    at: EntryRef,
    state: &MovementState,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO movements
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
    )?
    .execute(params![
        account.0 as i64,
        wallet.number(),
        at.log.key(),
        at.position as i64,
        state.order_key.0,
        state.amount.get(),
        state.stand_in.get(),
        state.unbacked.get(),
        state.reversed.get(),
        state.stand_in_home.get(),
        state.refunded.get(),
        state.recovered.get(),
        state.reason as u8,
        state.merchant,
        state.day.0,
        state.card.as_ref().map(CardNumber::as_str),
        state.previous.map(|previous| previous.log.key()),
        state.previous.map(|previous| previous.position as i64),
    ])?;
    Ok(())
}

/// What the entries of a log after `after`, up to `until`, did to wallets, by the ledger: position, account, wallet, fen.
pub(crate) fn wallet_effects(
    db: &Connection,
    log: LogId,
    after: u64,
    until: u64,
) -> Result<Vec<(u64, AccountId, Wallet, Fen)>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT position, ledger, amount FROM postings
         WHERE log = ?1 AND position > ?2 AND position <= ?3 AND ledger LIKE 'wallet:%'",
    )?;
    let mut rows = statement.query(params![log.key(), after as i64, until as i64])?;
    let mut effects = Vec::new();
    while let Some(row) = rows.next()? {
        let ledger: String = row.get(1)?;
        let (account, wallet) = corrupt(of_wallet_ledger(&ledger), "a wallet's ledger account")?;
        effects.push((row.get::<_, i64>(0)? as u64, account, wallet, Fen::new(row.get(2)?)));
    }
    Ok(effects)
}

/// The first answer to a credit, where the key was used: account, wallet, amount, answer.
pub(crate) type FormerCredit = (AccountId, Wallet, Fen, String);

/// A credit by its key.
pub(crate) fn credit(db: &Connection, channel: &str, key: &str) -> Result<Option<FormerCredit>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT account, wallet, amount, answer FROM credits WHERE channel = ?1 AND key = ?2",
    )?;
    let found: Option<(i64, u8, i64, String)> = statement
        .query_row([channel, key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    let Some((account, wallet, amount, answer)) = found else { return Ok(None) };
    Ok(Some((AccountId(account as u64), wallet_of(wallet)?, Fen::new(amount), answer)))
}

/// Notes a credit and its answer.
pub(crate) fn insert_credit(
    db: &Connection,
    channel: &str,
    key: &str,
    (account, wallet, amount, answer): (AccountId, Wallet, Fen, &str),
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO credits VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        channel,
        key,
        account.0 as i64,
        wallet.number(),
        amount.get(),
        answer
    ])?;
    Ok(())
}

/// Writes one line of the ledger.
pub(crate) fn insert_posting(
    db: &Connection,
    at: EntryRef,
    line: usize,
    ledger: &str,
    amount: Fen,
    (day, own_day): (BusinessDay, BusinessDay),
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO postings VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params![
        at.log.key(),
        at.position as i64,
        line as i64,
        ledger,
        amount.get(),
        day.0,
        own_day.0
    ])?;
    Ok(())
}

/// Moves the balance of a ledger account.
pub(crate) fn add_ledger(db: &Connection, ledger: &str, amount: Fen) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO ledger VALUES (?1, ?2) ON CONFLICT (ledger) DO UPDATE SET balance = balance + ?2",
    )?
    .execute(params![ledger, amount.get()])?;
    Ok(())
}

/// The balance of a ledger account other than a wallet.
pub(crate) fn ledger_balance(db: &Connection, ledger: &str) -> Result<Fen, StoreError> {
    let mut statement = db.prepare_cached("SELECT balance FROM ledger WHERE ledger = ?1")?;
    Ok(Fen::new(statement.query_row([ledger], |row| row.get(0)).optional()?.unwrap_or(0)))
}
