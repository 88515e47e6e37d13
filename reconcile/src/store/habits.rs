//! What accounts buy where, what buildings turn over, and the hints that were sent of it: what grants go by.

use std::collections::BTreeMap;

use feiqian_protocol::entry::Hint;
use feiqian_protocol::ids::{AccountId, NodeId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::BusinessDay;
use rusqlite::{Connection, params};

use super::StoreError;
use crate::habit::HabitDay;

/// Adds to a day of habits.
pub(crate) fn add_habit(
    db: &Connection,
    account: AccountId,
    node: NodeId,
    day: BusinessDay,
    more: &HabitDay,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO habits VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (account, node, day)
         DO UPDATE SET purchases = purchases + ?4, fen = fen + ?5, meals = meals | ?6",
    )?
    .execute(params![account.0 as i64, node.0, day.0, more.purchases, more.fen, more.meals])?;
    Ok(())
}

/// The habits of an account from a day on.
pub(crate) fn habits(
    db: &Connection,
    account: AccountId,
    from: BusinessDay,
) -> Result<Vec<(NodeId, BusinessDay, HabitDay)>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT node, day, purchases, fen, meals FROM habits WHERE account = ?1 AND day >= ?2",
    )?;
    let habits = statement.query_map(params![account.0 as i64, from.0], |row| {
        let day = HabitDay { purchases: row.get(2)?, fen: row.get(3)?, meals: row.get(4)? };
        Ok((NodeId(row.get(0)?), BusinessDay(row.get(1)?), day))
    })?;
    Ok(habits.collect::<Result<_, _>>()?)
}

/// Adds to a day's turnover of a node.
pub(crate) fn add_turnover(
    db: &Connection,
    node: NodeId,
    day: BusinessDay,
    purchases: i64,
    fen: i64,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO turnover VALUES (?1, ?2, ?3, ?4) ON CONFLICT (node, day)
         DO UPDATE SET purchases = purchases + ?3, fen = fen + ?4",
    )?
    .execute(params![node.0, day.0, purchases, fen])?;
    Ok(())
}

/// The turnover of all nodes from a day on: node, day, purchases, fen.
pub(crate) fn turnover(
    db: &Connection,
    from: BusinessDay,
) -> Result<Vec<(NodeId, BusinessDay, i64, i64)>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT node, day, purchases, fen FROM turnover WHERE day >= ?1 ORDER BY node, day",
    )?;
    let days = statement.query_map([from.0], |row| {
        Ok((NodeId(row.get(0)?), BusinessDay(row.get(1)?), row.get(2)?, row.get(3)?))
    })?;
    Ok(days.collect::<Result<_, _>>()?)
}

/// Gives the habits and the turnover of one node to another.
pub(crate) fn move_habits(db: &Connection, from: NodeId, to: NodeId) -> Result<(), StoreError> {
    for table in ["habits", "turnover"] {
        db.execute(
            &format!("UPDATE OR REPLACE {table} SET node = ?2 WHERE node = ?1"),
            params![from.0, to.0],
        )?;
    }
    Ok(())
}

/// The newest hints of an account, by node.
pub(crate) fn hints(db: &Connection, account: AccountId) -> Result<BTreeMap<NodeId, Hint>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT node, elsewhere_per_day, purchase_mean, elsewhere_per_meal, habit, seasoned FROM hints
         WHERE account = ?1",
    )?;
    let hints = statement.query_map([account.0 as i64], |row| {
        let hint = Hint {
            account,
            elsewhere_per_day: Fen::new(row.get(1)?),
            purchase_mean: Fen::new(row.get(2)?),
            elsewhere_per_meal: Fen::new(row.get(3)?),
            habit: row.get(4)?,
            seasoned: row.get(5)?,
        };
        Ok((NodeId(row.get(0)?), hint))
    })?;
    Ok(hints.collect::<Result<_, _>>()?)
}

/// Writes the newest hint.
pub(crate) fn put_hint(db: &Connection, node: NodeId, hint: &Hint) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO hints VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(
        params![
            hint.account.0 as i64,
            node.0,
            hint.elsewhere_per_day.get(),
            hint.purchase_mean.get(),
            hint.elsewhere_per_meal.get(),
            hint.habit,
            hint.seasoned
        ],
    )?;
    Ok(())
}
