//! What is in force of each account is what its people and the centre's operators have said.

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::account::{AccountSettings, CardStatus};
use feiqian_protocol::entry::Body;
use feiqian_protocol::ids::{AccountId, CardNumber};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, DeclineReason};
use feiqian_protocol::time::BusinessDay;

use super::books::{Books, Checked, Finding};
use super::ledger::{Ledger, Told};
use super::pins::{PinKind, kind_of, pin_of};
use super::{Promise, receipts, reissues};
use crate::plan::Plan;

/// Nobody pays after the account's last day, as the building counts days, and nobody is told that it is over who has none.
///
/// # Errors
/// The first tap of which this is not so.
pub fn validity(plan: &Plan, ledger: &Ledger, books: &Books) -> Checked {
    for request in &ledger.requests {
        let expired = request.told == Some(Told::Decided(Decision::Declined(DeclineReason::Expired)));
        let account = request.card().and_then(|card| ledger.account_of(plan, card));
        if expired && account.is_some_and(|account| plan.accounts[account].valid_until.is_none()) {
            let text = format!("{:?} was declined as expired, and has no last day", request.sent.key());
            return Err(Finding::new(Promise::History, text));
        }
    }
    let last: BTreeMap<AccountId, BusinessDay> = receipts::accounts(plan, books)
        .into_iter()
        .zip(&plan.accounts)
        .filter_map(|(id, account)| id.zip(account.valid_until))
        .collect();
    for entry in books.nodes.iter().flat_map(|node| node.logs.iter()).flat_map(|log| log.iter()) {
        if let Body::Debit(debit) = &entry.body
            && last.get(&debit.account).is_some_and(|last| debit.day > *last)
        {
            let text = format!("account {} paid after its last day: {debit:?}", debit.account);
            return Err(Finding::new(Promise::History, text));
        }
    }
    Ok(())
}

/// Holds an account's settings against what was done: its limits, its PIN, its cards. `withdrawn`: virtual cards that were revoked or
/// reported lost.
///
/// # Errors
/// What nobody has said.
pub fn check(
    plan: &Plan,
    ledger: &Ledger,
    account: usize,
    settings: &AccountSettings,
    limits: (Fen, Fen),
    withdrawn: &BTreeSet<CardNumber>,
) -> Checked {
    let own = &plan.accounts[account];
    let broken = |text: String| Err(Finding::new(Promise::History, format!("of {}: {text}", own.card)));
    if (settings.single_limit, settings.daily_limit) != limits {
        let (single, daily) = (settings.single_limit, settings.daily_limit);
        return broken(format!("limits of {single} and {daily} are in force, and {limits:?} were set"));
    }
    if settings.valid_until != own.valid_until {
        return broken(format!("{:?} is its last day, and not {:?}", settings.valid_until, own.valid_until));
    }
    if settings.frozen || (settings.closed && !ledger.closings.contains_key(&account)) {
        return broken("it is frozen or closed, and nobody has said so".to_owned());
    }
    let generations: Vec<_> = settings.pins.keys().copied().collect();
    let chosen = kind_of(account) == PinKind::Chosen;
    if chosen && generations != [pin_of(account)] {
        return broken(format!("PINs {generations:?}, which nobody has chosen"));
    }
    for (card, status) in &settings.cards {
        let known = *card == own.card || ledger.further.get(card) == Some(&account);
        let purse = feiqian_protocol::purse::values::CardSerial::of_card(card).is_some();
        let was_lost = ledger.losses.iter().any(|loss| loss.card == *card)
            || ledger.building_losses.iter().any(|loss| loss.card == *card);
        let right = match status {
            CardStatus::Lost => was_lost,
            CardStatus::Void => purse || withdrawn.contains(card) || ledger.reissues.contains_key(&account),
            _ => true,
        };
        if !known || !right {
            return broken(format!("{card} is {status:?}, and nobody has said so"));
        }
    }
    reissues::check(ledger, account, settings)
}
