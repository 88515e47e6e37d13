//! What is in force of each account is what its people and the centre's operators have said.

use std::collections::BTreeSet;

use feiqian_protocol::account::{AccountSettings, CardStatus};
use feiqian_protocol::ids::CardNumber;
use feiqian_protocol::money::Fen;

use super::Promise;
use super::books::{Checked, Finding};
use super::ledger::Ledger;
use super::pins::{PinKind, kind_of, pin_of};
use super::reissues;
use crate::plan::Plan;

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
