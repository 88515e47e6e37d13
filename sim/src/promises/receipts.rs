//! What terminals were told, against what is in the logs.

use std::collections::BTreeMap;
use std::sync::Arc;

use feiqian_protocol::entry::{Body, Entry, TapRef};
use feiqian_protocol::ids::{AccountId, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{TapKey, TapKind};

use super::Promise;
use super::books::{Books, Checked, Finding};
use super::ledger::{Ledger, Request, Sent};
use crate::plan::Plan;

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

fn broken(promise: Promise, request: &Request, at_centre: bool, what: &str) -> Finding {
    let place = if at_centre { "at the centre" } else { "at its node" };
    Finding::new(promise, format!("{place}: {:?} {what} (told {:?})", request.sent.key(), request.told))
}

/// Every account holds what it opened with and was paid in, less what its terminals were told, plus refunds. Where a terminal
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
    for entry in books.shards.iter().flat_map(|shard| shard.iter()) {
        if let Body::Refund(refund) = &entry.body {
            *expected.entry(refund.account).or_default() += refund.amount;
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
fn accounts(plan: &Plan, books: &Books) -> Vec<Option<AccountId>> {
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
