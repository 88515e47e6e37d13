//! What terminals were told, against what is in the logs.

use std::collections::BTreeMap;
use std::sync::Arc;

use feiqian_node::io::TapError;
use feiqian_protocol::entry::{Body, Entry, TapRef};
use feiqian_protocol::ids::{AccountId, Key, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, DeclineReason, TapKey, TapKind};
use feiqian_protocol::time::Timestamp;

use super::Promise;
use super::books::{Books, Checked, Finding, centre_effect};
use super::ledger::{Ledger, Request, Sent, Told};
use crate::plan::{Plan, What};

/// How soon after it came a tap is in the log.
const IN_ORDER_WITHIN_MS: i64 = 1_000;

/// The key of the tap or reversal that an entry answers.
pub fn key_of(entry: &Entry) -> Option<TapKey> {
    let tap: &TapRef = match &entry.body {
        Body::Debit(debit) => &debit.tap,
        Body::Reversal(back) => &back.tap,
        Body::Decline(decline) => &decline.tap,
        Body::Access(access) => &access.tap,
        Body::Tombstone(tombstone) => &tombstone.tap,
        _ => return None,
    };
    let terminal = TerminalId::new(entry.actor.id.as_str()).ok()?;
    Some(TapKey { terminal, epoch: tap.epoch, sequence: tap.sequence.clone() })
}

/// What was taken and given back under one key.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    taken: Fen,
    back: Fen,
}

fn moved(logs: &[Arc<Vec<Entry>>]) -> BTreeMap<TapKey, Moved> {
    let mut by_key: BTreeMap<TapKey, Moved> = BTreeMap::new();
    for entry in logs.iter().flat_map(|log| log.iter()) {
        let Some(key) = key_of(entry) else { continue };
        match &entry.body {
            Body::Debit(debit) => by_key.entry(key).or_default().taken += debit.amount(),
            Body::Reversal(back) => by_key.entry(key).or_default().back += back.amount(),
            _ => {}
        }
    }
    by_key
}

/// Every answer that a terminal was given is in these logs of its sites, once and with the amount that was told; and nothing
/// is in them that no terminal asked for. `at_centre`: these are the logs as they have come to the centre at the end.
///
/// # Errors
/// What is lost, doubled or made up.
pub fn check(ledger: &Ledger, sites: &[usize], logs: &[Arc<Vec<Entry>>], at_centre: bool) -> Checked {
    let mut by_key = moved(logs);
    reversals(ledger, sites, &by_key, at_centre)?;
    for request in ledger.requests.iter().filter(|request| sites.contains(&request.site)) {
        let found = by_key.remove(request.sent.key()).unwrap_or_default();
        let total = found.taken + found.back;
        if request.may_be_lost && total == Fen::ZERO {
            continue;
        }
        match (&request.told, request.approved()) {
            (Some(_), Some(amount)) if total < amount => {
                let lost = format!("was told {amount}, in the log are {total}");
                return Err(broken(Promise::Survives, request, at_centre, &lost));
            }
            (Some(_), Some(amount)) if total > amount => {
                let doubled = format!("was told {amount}, in the log are {total}");
                return Err(broken(Promise::ExactlyOnce, request, at_centre, &doubled));
            }
            // A terminal that is not configured yet asks again: the answer to that may be on its way.
            (Some(Told::Refused(TapError::UnknownTerminal(_))), None) => {}
            (Some(_), None) if total != Fen::ZERO => {
                let taken = format!("was told no, and {total} were moved");
                return Err(broken(Promise::ExactlyOnce, request, at_centre, &taken));
            }
            _ => {}
        }
        if let Sent::Tap(tap) = &request.sent
            && let TapKind::Amount(asked) = tap.kind
            && found.taken != Fen::ZERO
            && found.taken != asked
        {
            let text = format!("asked for {asked}, {} were taken", found.taken);
            return Err(broken(Promise::ExactlyOnce, request, at_centre, &text));
        }
    }
    // A probe of a key that terminals never used would be somebody else's money.
    if let Some((key, moved)) = by_key.into_iter().next() {
        return Err(Finding::new(Promise::History, format!("nobody asked for {key:?}: {moved:?}")));
    }
    Ok(())
}

/// What a terminal was told is taken back is taken back whole, also where the reversal was there before its tap.
fn reversals(ledger: &Ledger, sites: &[usize], by_key: &BTreeMap<TapKey, Moved>, at_centre: bool) -> Checked {
    let mut back: BTreeMap<&TapKey, Fen> = BTreeMap::new();
    let here = || ledger.requests.iter().filter(|request| sites.contains(&request.site));
    for request in here() {
        if let Sent::Reversal(reversal) = &request.sent
            && let Some(moved) = by_key.get(&reversal.key)
        {
            *back.entry(&reversal.original).or_default() += moved.back;
        }
    }
    for request in here().filter(|request| !request.may_be_lost && request.approved().is_some()) {
        let Sent::Reversal(reversal) = &request.sent else { continue };
        let original = ledger.find(request.site, &reversal.original);
        if reversal.amount.is_some() || original.is_none_or(|original| original.may_be_lost) {
            continue;
        }
        let taken = by_key.get(&reversal.original).copied().unwrap_or_default().taken;
        let back = back.get(&reversal.original).copied().unwrap_or_default();
        if taken != back {
            let text = format!("of {:?}, which took {taken}, {back} came back", reversal.original);
            return Err(broken(Promise::ExactlyOnce, request, at_centre, &text));
        }
    }
    Ok(())
}

/// What was measured is paid by the price list: the price of the holder's class times the quantity, half a fen up.
///
/// # Errors
/// The first tap that took something else.
pub fn prices(plan: &Plan, ledger: &Ledger, books: &Books) -> Checked {
    let logs: Vec<_> = books.nodes.iter().flat_map(|node| node.logs.iter().cloned()).collect();
    let by_key = moved(&logs);
    for request in &ledger.requests {
        let Sent::Tap(tap) = &request.sent else { continue };
        let (TapKind::Quantity(quantity), Some(told)) = (tap.kind, request.approved()) else { continue };
        let account = ledger.account_of(plan, &tap.card).map(|account| &plan.accounts[account]);
        let price = account.and_then(|account| plan.tariff.get(&account.patron_class));
        let due = price.and_then(|price| price_of(&price.to_string(), quantity));
        let taken = by_key.get(&tap.key).map_or(told, |moved| moved.taken);
        if due != Some(taken) || taken != told {
            let text = format!("took {taken} for {quantity} at {price:?}, which is {due:?}");
            return Err(broken(Promise::ExactlyOnce, request, false, &text));
        }
    }
    Ok(())
}

/// A quantity at a price in yuan, as digits say it.
fn price_of(yuan: &str, quantity: u32) -> Option<Fen> {
    let (whole, decimals) = yuan.split_once('.').unwrap_or((yuan, ""));
    let digits: i64 = format!("{whole}{decimals}").parse().ok()?;
    let scale = 10_i64.checked_pow(u32::try_from(decimals.len()).ok()?)?;
    let hundredths = digits.checked_mul(i64::from(quantity))?.checked_mul(100)?;
    Some(Fen::new((2 * hundredths + scale).div_euclid(2 * scale)))
}

fn broken(promise: Promise, request: &Request, at_centre: bool, what: &str) -> Finding {
    let place = if at_centre { "at the centre" } else { "at its node" };
    Finding::new(promise, format!("{place}: {:?} {what} (told {:?})", request.sent.key(), request.told))
}

/// How long after a tap was first sent its building may decide it, in milliseconds: a terminal asks again for so long.
const DECIDED_WITHIN_MS: i64 = 20_000;

/// A door opens to whom its groups say, when their hours say it, and to nobody else. `at`: the time of a moment of the run, in
/// nanoseconds; hours are not looked at where buildings may have had another one.
///
/// # Errors
/// The first tap of which this is not so.
pub fn access(plan: &Plan, ledger: &Ledger, at: Option<&dyn Fn(u64) -> Timestamp>) -> Checked {
    let campus = plan.campus();
    let mut members: BTreeMap<_, _> =
        plan.accounts.iter().map(|account| (&account.card, &account.groups)).collect();
    members.extend(ledger.further.iter().map(|(card, account)| (card, &plan.accounts[*account].groups)));
    let groups: BTreeMap<_, _> = plan
        .buildings
        .iter()
        .flat_map(|building| building.terminals.iter().enumerate().map(move |of| (building, of)))
        .map(|(building, (index, terminal))| (terminal, (building, building.groups_of(index))))
        .collect();
    for request in &ledger.requests {
        let (Sent::Tap(tap), Some(Told::Decided(decision))) = (&request.sent, &request.told) else {
            continue;
        };
        let (Some(held), Some((building, wanted))) = (members.get(&tap.card), groups.get(&tap.key.terminal))
        else {
            continue;
        };
        let may_pass_at = |time: Timestamp| {
            let is_open = |group: &Key| held.contains(group) && campus.is_open(&building.name, group, time);
            wanted.is_empty() || wanted.iter().any(is_open)
        };
        let may_pass = match at {
            _ if building.open.is_empty() => may_pass_at(plan.timing.start),
            None => continue,
            Some(at) => {
                let time = at(request.first_ns);
                if may_pass_at(time) != may_pass_at(time.plus_ms(DECIDED_WITHIN_MS)) {
                    continue;
                }
                may_pass_at(time)
            }
        };
        let right = match decision {
            Decision::Approved { .. } => may_pass,
            Decision::Declined(DeclineReason::NotPermitted) => !may_pass,
            // Whatever else is wrong with a card or a building comes first.
            Decision::Declined(_) => true,
        };
        if !right && tap.kind == TapKind::Access {
            let text = format!("{} at {:?}: {decision:?}, though may_pass is {may_pass}", tap.card, tap.key);
            return Err(Finding::new(Promise::Access, text));
        }
    }
    Ok(())
}

/// Where the plan's taps are far enough apart, a building's log at the centre is exactly these, in their order, at their time,
/// and ended as their terminals were told.
///
/// # Errors
/// The first place where it differs.
pub fn in_order(plan: &Plan, ledger: &Ledger, building: usize, log: &[Entry]) -> Checked {
    let taps = plan.actions.iter().filter_map(|action| match &action.what {
        What::Tap(tap) if tap.building == building => Some((action.at_ms, tap)),
        _ => None,
    });
    let passed: BTreeMap<u32, bool> =
        ledger.requests.iter().map(|request| (request.number, request.approved().is_some())).collect();
    let mut entries = log.iter().filter_map(|entry| key_of(entry).map(|key| (key, entry)));
    for (at_ms, tap) in taps {
        let at = plan.timing.start.plus_ms(at_ms as i64);
        let terminal = &plan.buildings[building].terminals[tap.terminal];
        let found = entries.next();
        let passed = passed.get(&tap.number).copied().unwrap_or_default();
        let right = found.as_ref().is_some_and(|(key, entry)| {
            let late_ms = entry.clock.time().ms_since(at);
            key.terminal == *terminal
                && key.sequence.as_str() == tap.number.to_string()
                && (0..IN_ORDER_WITHIN_MS).contains(&late_ms)
                && passed == matches!(entry.body, Body::Access(_))
        });
        if !right {
            let found = found.map(|(_, entry)| entry);
            let text = format!(
                "tap {} of {} at {terminal}, passed: {passed}; the log has {found:?}",
                tap.number, tap.card
            );
            return Err(Finding::new(Promise::History, text));
        }
    }
    match entries.next() {
        Some((_, entry)) => Err(Finding::new(Promise::History, format!("beyond what was tapped: {entry:?}"))),
        None => Ok(()),
    }
}

/// Every account holds what it opened with and was paid in, less what its terminals were told and what was paid out, plus refunds. Where a terminal
/// had no answer, the logs say what was done.
///
/// # Errors
/// The first account of which this is not so, or a top-up that is lost, doubled or made up.
pub fn balances(plan: &Plan, ledger: &Ledger, books: &Books) -> Checked {
    let accounts = accounts(plan, books);
    let mut expected: BTreeMap<AccountId, Fen> = BTreeMap::new();
    for (account, id) in plan.accounts.iter().zip(&accounts) {
        let Some(id) = id else {
            return Err(Finding::new(Promise::Conservation, format!("no account for {}", account.card)));
        };
        *expected.entry(*id).or_default() += account.opening + account.subsidy;
    }
    credits(ledger, books, &accounts, &mut expected)?;
    let logs: Vec<_> = books.nodes.iter().flat_map(|node| node.logs.iter().cloned()).collect();
    for entry in logs.iter().flat_map(|log| log.iter()) {
        // The amounts under each key were compared with what its terminal was told.
        match &entry.body {
            Body::Debit(debit) => *expected.entry(debit.account).or_default() -= debit.amount(),
            Body::Reversal(back) => *expected.entry(back.account).or_default() += back.amount(),
            _ => {}
        }
    }
    // Credits were compared with what was paid in; whether cards have what was loaded is held against the cards.
    let by_centre = books.shards.iter().flat_map(|shard| shard.iter()).map(|entry| &entry.body);
    for body in by_centre.filter(|body| !matches!(body, Body::Credit(_))) {
        if let Some((account, _, fen)) = centre_effect(body) {
            *expected.entry(account).or_default() += fen;
        }
    }
    let money = books.money();
    for (account, fen) in expected {
        let held = money.get(&account).copied().unwrap_or_default();
        if held != fen {
            let text = format!("account {account} holds {held}, by what people did it should be {fen}");
            return Err(Finding::new(Promise::Conservation, text));
        }
    }
    Ok(())
}

/// The account of each card of the plan, in its order: as the centre opened them.
pub(super) fn accounts(plan: &Plan, books: &Books) -> Vec<Option<AccountId>> {
    let mut by_card = BTreeMap::new();
    for entry in books.shards.iter().flat_map(|shard| shard.iter()) {
        if let Body::AccountOpened(opened) = &entry.body {
            let settings = feiqian_protocol::account::Document::load(
                &opened.document,
                feiqian_protocol::account::actor_id(
                    crate::plan::INSTITUTION,
                    feiqian_protocol::ids::NodeId(u16::MAX),
                    0,
                    0,
                    opened.account,
                ),
            )
            .and_then(|document| document.settings());
            if let Ok(settings) = settings {
                for card in settings.cards.keys() {
                    by_card.insert(card.clone(), opened.account);
                }
            }
        }
    }
    plan.accounts.iter().map(|account| by_card.get(&account.card).copied()).collect()
}

fn credits(
    ledger: &Ledger,
    books: &Books,
    accounts: &[Option<AccountId>],
    expected: &mut BTreeMap<AccountId, Fen>,
) -> Checked {
    let mut found = BTreeMap::new();
    for entry in books.shards.iter().flat_map(|shard| shard.iter()) {
        if let Body::Credit(credit) = &entry.body
            && credit.channel.as_str() != "migration"
        {
            let key = (credit.channel.clone(), credit.key.clone());
            let known = ledger.credits.get(&key);
            let right = known.is_some_and(|known| {
                known.amount == credit.amount && accounts.get(known.account) == Some(&Some(credit.account))
            });
            if !right || found.insert(key, ()).is_some() {
                let text = format!("credited twice, or not as paid in: {credit:?}");
                return Err(Finding::new(Promise::ExactlyOnce, text));
            }
            *expected.entry(credit.account).or_default() += credit.amount;
        }
    }
    for (key, credit) in &ledger.credits {
        if credit.confirmed && !found.contains_key(key) {
            let text = format!("the top-up {key:?} of {} was confirmed and is lost", credit.amount);
            return Err(Finding::new(Promise::Survives, text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_multiplied_before_they_are_rounded() {
        assert_eq!(price_of("0.024", 552), Some(Fen::new(1_325)), "13.248 yuan");
        assert_eq!(price_of("0.0145", 100), Some(Fen::new(145)));
        assert_eq!(price_of("0.00445", 1_000), Some(Fen::new(445)));
        assert_eq!(price_of("0.005", 1), Some(Fen::new(1)), "half a fen goes up");
        assert_eq!(price_of("0.0049", 1), Some(Fen::ZERO));
        assert_eq!(price_of("2", 3), Some(Fen::new(600)));
    }
}
