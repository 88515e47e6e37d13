//! Closed accounts: who pays them out and what was paid; and rows of rights that were given up for it.

use std::collections::BTreeMap;

use feiqian_protocol::entry::EntryRef;
use feiqian_protocol::ids::{AccountId, Epoch, InstitutionId, Key, LogId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::money::wallet_of;
use super::{StoreError, corrupt};

/// Created at every opening: a database of a build that closed no accounts gets it so.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS closures (account INTEGER PRIMARY KEY, log INTEGER NOT NULL, position INTEGER NOT NULL,
  ordered INTEGER NOT NULL, channel TEXT NOT NULL, subsidy_channel TEXT NOT NULL, paid_cash INTEGER NOT NULL,
  paid_subsidy INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS given_up (account INTEGER NOT NULL, wallet INTEGER NOT NULL, node INTEGER NOT NULL,
  epoch INTEGER NOT NULL, out INTEGER NOT NULL, si_out INTEGER NOT NULL, PRIMARY KEY (account, wallet, node, epoch))
  WITHOUT ROWID;
";

/// The order to close an account and to pay it out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Closure {
    /// Its entry.
    pub at: EntryRef,
    /// When.
    pub ordered: Timestamp,
    /// Who pays the holder's own money out.
    pub channel: Key,
    /// Where the rest of the subsidy goes.
    pub subsidy_channel: Key,
    /// True where nothing was left when it was last looked at. Not kept.
    pub settled: bool,
}

/// What was out in a row when it was given up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct GivenUp {
    /// The account.
    pub account: AccountId,
    /// The wallet.
    pub wallet: Wallet,
    /// The node.
    pub node: NodeId,
    /// The epoch.
    pub epoch: Epoch,
    /// Right.
    pub out: Fen,
    /// Stand-in.
    pub si_out: Fen,
}

/// All orders.
pub(crate) fn all(
    db: &Connection,
    institution: InstitutionId,
) -> Result<BTreeMap<AccountId, Closure>, StoreError> {
    let mut statement =
        db.prepare("SELECT account, log, position, ordered, channel, subsidy_channel FROM closures")?;
    let mut rows = statement.query([])?;
    let mut orders = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let channel = |column: usize| -> Result<Key, StoreError> {
            corrupt(Key::new(row.get::<_, String>(column)?).ok(), "the channel of a payout")
        };
        let at = EntryRef {
            log: LogId::from_key(institution, row.get(1)?),
            position: row.get::<_, i64>(2)? as u64,
        };
        let closure = Closure {
            at,
            ordered: Timestamp(row.get(3)?),
            channel: channel(4)?,
            subsidy_channel: channel(5)?,
            settled: false,
        };
        orders.insert(AccountId(row.get::<_, i64>(0)? as u64), closure);
    }
    Ok(orders)
}

/// Keeps an order. Nothing is paid yet.
pub(crate) fn put(db: &Connection, account: AccountId, closure: &Closure) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO closures VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, 0)")?.execute(
        params![
            account.0 as i64,
            closure.at.log.key(),
            closure.at.position as i64,
            closure.ordered.0,
            closure.channel.as_str(),
            closure.subsidy_channel.as_str()
        ],
    )?;
    Ok(())
}

/// Counts what was paid out.
pub(crate) fn add_paid(
    db: &Connection,
    account: AccountId,
    wallet: Wallet,
    amount: Fen,
) -> Result<(), StoreError> {
    let sql = match wallet {
        Wallet::Cash => "UPDATE closures SET paid_cash = paid_cash + ?2 WHERE account = ?1",
        Wallet::Subsidy => "UPDATE closures SET paid_subsidy = paid_subsidy + ?2 WHERE account = ?1",
    };
    db.prepare_cached(sql)?.execute(params![account.0 as i64, amount.get()])?;
    Ok(())
}

/// What was paid out of cash and of subsidy.
pub(crate) fn paid(db: &Connection, account: AccountId) -> Result<(Fen, Fen), StoreError> {
    let mut statement =
        db.prepare_cached("SELECT paid_cash, paid_subsidy FROM closures WHERE account = ?1")?;
    let paid = statement
        .query_row([account.0 as i64], |row| Ok((Fen::new(row.get(0)?), Fen::new(row.get(1)?))))
        .optional()?;
    Ok(paid.unwrap_or_default())
}

/// Keeps a row that was given up.
pub(crate) fn put_given_up(db: &Connection, row: &GivenUp) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO given_up VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(
        params![
            row.account.0 as i64,
            row.wallet.number(),
            row.node.0,
            row.epoch.0,
            row.out.get(),
            row.si_out.get()
        ],
    )?;
    Ok(())
}

const GIVEN_UP: &str = "SELECT account, wallet, node, epoch, out, si_out FROM given_up";

/// All rows that were given up.
pub(crate) fn given_up(db: &Connection) -> Result<Vec<GivenUp>, StoreError> {
    let mut statement = db.prepare_cached(GIVEN_UP)?;
    read_given_up(&mut statement, [])
}

/// Those of an account.
pub(crate) fn given_up_of(db: &Connection, account: AccountId) -> Result<Vec<GivenUp>, StoreError> {
    let sql = format!("{GIVEN_UP} WHERE account = ?1");
    let mut statement = db.prepare_cached(&sql)?;
    read_given_up(&mut statement, [account.0 as i64])
}

fn read_given_up(
    statement: &mut rusqlite::Statement<'_>,
    values: impl rusqlite::Params,
) -> Result<Vec<GivenUp>, StoreError> {
    let mut rows = statement.query(values)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(GivenUp {
            account: AccountId(row.get::<_, i64>(0)? as u64),
            wallet: wallet_of(row.get(1)?)?,
            node: NodeId(row.get(2)?),
            epoch: Epoch(row.get(3)?),
            out: Fen::new(row.get(4)?),
            si_out: Fen::new(row.get(5)?),
        });
    }
    Ok(found)
}
