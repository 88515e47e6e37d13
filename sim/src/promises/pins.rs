//! Over the no-PIN limits nothing is paid but with the right PIN, of the holder's choice, and not after three wrong ones.

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::entry::{Body, Entry};
use feiqian_protocol::ids::{AccountId, CardNumber};
use feiqian_protocol::limits::PIN_TRIES_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::PinGeneration;
use feiqian_protocol::tap::{DeclineReason, Pin, TapKey};

use super::Promise;
use super::books::{Books, Checked, Finding};
use super::ledger::{Ledger, Sent};
use super::probes::is_probe;
use super::receipts::key_of;
use crate::plan::Plan;

/// What PIN an account of the plan has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PinKind {
    /// None.
    Absent,
    /// One of the holder's choice.
    Chosen,
    /// The one by the campus rule.
    Initial,
}

/// The PIN of an account, by its index in the plan.
pub const fn kind_of(account: usize) -> PinKind {
    match account % 8 {
        6 => PinKind::Initial,
        7 => PinKind::Absent,
        _ => PinKind::Chosen,
    }
}

/// Its name.
pub const fn pin_of(account: usize) -> PinGeneration {
    PinGeneration((account as u128 + 1).to_be_bytes())
}

/// Accounts whose verifiers a node was told more than once: it counts wrong tries anew from each.
pub fn told_again(stream: &[Entry]) -> BTreeSet<AccountId> {
    let (mut told, mut again) = (BTreeSet::new(), BTreeSet::new());
    for entry in stream {
        let Body::PinVerifiers(pins) = &entry.body else { continue };
        again.extend(pins.verifiers.iter().map(|pin| pin.account).filter(|account| !told.insert(*account)));
    }
    again
}

/// Holds a node's log against what terminals sent. Of runs in which no account has a PIN only what was sent counts.
///
/// # Errors
/// A purchase over the limit without the right PIN, or tries that were not counted.
pub fn check(
    plan: &Plan,
    ledger: &Ledger,
    books: &Books,
    log: &[Entry],
    again: &BTreeSet<AccountId>,
) -> Checked {
    let in_use = books
        .to_nodes
        .iter()
        .any(|stream| stream.iter().any(|entry| matches!(entry.body, Body::PinVerifiers(_))));
    let mut accounts: BTreeMap<&CardNumber, usize> =
        plan.accounts.iter().enumerate().map(|(index, account)| (&account.card, index)).collect();
    accounts.extend(ledger.further.iter().map(|(card, account)| (card, *account)));
    let default = plan.campus().single_limit_fen;
    let mut sent: BTreeSet<&TapKey> = BTreeSet::new();
    for request in &ledger.requests {
        if let Sent::Tap(tap) = &request.sent
            && tap.pin == Pin::Right
        {
            sent.insert(&tap.key);
        }
    }
    let broken = |text: String| Err(Finding::new(Promise::Pin, text));
    let mut tries: BTreeMap<AccountId, u8> = BTreeMap::new();
    let mut without: BTreeMap<TapKey, Fen> = BTreeMap::new();
    for entry in log {
        let Some(key) = key_of(entry) else { continue };
        let proven = entry.actor.proof.has_pin();
        match &entry.body {
            Body::Decline(decline) if decline.reason == DeclineReason::WrongPin => {
                let (Some(account), Some(now)) = (decline.account, decline.pin_tries) else { continue };
                let before = tries.insert(account, now).unwrap_or(0);
                let fits = now == before + 1 || (now == 1 && again.contains(&account));
                if !fits || now > PIN_TRIES_MAX {
                    return broken(format!("{key:?}: wrong PIN number {now} in a row after {before}"));
                }
            }
            Body::Debit(debit) if proven => {
                let before = tries.insert(debit.account, 0).unwrap_or(0);
                if is_probe(&key) {
                    continue;
                }
                if !sent.contains(&key) {
                    return broken(format!("{key:?} was paid by a PIN that nobody typed right"));
                }
                if before >= PIN_TRIES_MAX && !again.contains(&debit.account) {
                    return broken(format!("{key:?} was paid by a PIN after {before} wrong ones"));
                }
                let kind = accounts.get(&debit.card).map(|account| kind_of(*account));
                if in_use && kind != Some(PinKind::Chosen) {
                    return broken(format!("{key:?} was paid by a PIN that is {kind:?}"));
                }
            }
            Body::Debit(debit) => {
                let paid = without.entry(key.clone()).or_default();
                *paid += debit.amount();
                let account = accounts.get(&debit.card).map(|account| &plan.accounts[*account]);
                let single = account.and_then(|account| account.single_limit).unwrap_or(default);
                if *paid > single {
                    return broken(format!("{key:?} paid {paid} without a PIN; the limit is {single}"));
                }
            }
            Body::Decline(decline) if proven => {
                if let Some(account) = decline.account {
                    tries.insert(account, 0);
                }
            }
            _ => {}
        }
    }
    Ok(())
}
