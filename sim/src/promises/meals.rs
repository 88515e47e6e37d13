//! In a meal period an account pays in a building without its PIN what the period allows, and no more.

use std::collections::BTreeMap;

use feiqian_protocol::campus::Meal;
use feiqian_protocol::entry::Body;
use feiqian_protocol::ids::AccountId;
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::DeclineReason;
use feiqian_protocol::time::BusinessDay;

use super::Promise;
use super::books::{Books, Finding};
use crate::plan::Plan;

/// By how much the clock in an entry may be ahead of the one that its building went by, in milliseconds.
const CLOCK_AHEAD_MS: i64 = 5_000;

/// Holds the logs of buildings, whose clocks were right, against the plan's meal periods. Gives how often one of these asked for a PIN.
///
/// # Errors
/// The first debit beyond its period's limit, or of a period that it was not in.
pub fn check(plan: &Plan, books: &Books) -> Result<u64, Finding> {
    let campus = plan.campus();
    let mut asked = 0;
    for node in books.nodes.iter().filter(|node| node.sound) {
        let log = &node.logs[0];
        let mut used: BTreeMap<(AccountId, BusinessDay, u16), Fen> = BTreeMap::new();
        for entry in log.iter() {
            let time = entry.clock.time();
            match &entry.body {
                Body::Debit(debit) => {
                    let around = [0, CLOCK_AHEAD_MS]
                        .map(|ahead_ms| campus.meal_at(time.plus_ms(-ahead_ms), debit.merchant));
                    let Some(meal) = around.iter().find(|meal| meal.map(Meal::label) == debit.meal) else {
                        let text = format!("{}: {debit:?} was in none of {around:?}", node.node);
                        return Err(Finding::new(Promise::Allowance, text));
                    };
                    let Some(meal) = meal else { continue };
                    let sum = used.entry((debit.account, debit.day, meal.label())).or_default();
                    *sum += debit.allowance;
                    if *sum > meal.limit_fen {
                        let text = format!("{}: {sum} without a PIN in {meal:?}, with {debit:?}", node.node);
                        return Err(Finding::new(Promise::Allowance, text));
                    }
                }
                Body::Reversal(back) => {
                    if let Some(Body::Debit(debit)) = log.get(back.debit as usize - 1).map(|of| &of.body)
                        && let Some(meal) = debit.meal
                        && let Some(sum) = used.get_mut(&(debit.account, debit.day, meal))
                    {
                        *sum -= back.allowance_back;
                    }
                }
                Body::Decline(decline) if decline.reason == DeclineReason::PinRequired => {
                    let (Some(account), Some(meal)) = (decline.account, campus.meal_at(time, 0)) else {
                        continue;
                    };
                    let key = (account, campus.calendar.day(time), meal.label());
                    let sum = used.get(&key).copied().unwrap_or_default();
                    asked +=
                        u64::from(decline.amount <= meal.limit_fen && sum + decline.amount > meal.limit_fen);
                }
                // A share that is closed begins anew, for meals as for the day.
                Body::EpochEnd(_) => used.clear(),
                _ => {}
            }
        }
    }
    Ok(asked)
}
