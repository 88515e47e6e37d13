//! After a loss report the holder does not pay.

use std::collections::BTreeMap;

use anyhow::Result;
use feiqian_protocol::entry::{Body, CaseReason, EntryRef, Proof};
use feiqian_protocol::ids::{LogId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;

use super::Promise;
use super::books::{Books, Checked, Finding};
use super::ledger::Ledger;
use crate::link::tables::CentreTables;

/// A debit of a card, as the centre has it.
struct Paid {
    at: EntryRef,
    card: String,
    order_key: Timestamp,
    amount: Fen,
    proven: bool,
}

/// Each debit of a card that was reported lost before it was ingested, not proven by PIN and not made after the report was
/// lifted, is refunded in full less its reversals, up to the cap; above it there is a case for a person. No other is.
///
/// # Errors
/// Where the centre's database cannot be read.
pub fn check(ledger: &Ledger, centre: &mut CentreTables, books: &Books, cap: Fen) -> Result<Checked> {
    let mut refunds: BTreeMap<EntryRef, Fen> = BTreeMap::new();
    for entry in books.shards.iter().flat_map(|shard| shard.iter()) {
        if let Body::Refund(refund) = &entry.body {
            *refunds.entry(refund.debit).or_default() += refund.amount;
        }
    }
    let lifted = centre.losses()?;
    let reversed = reversed(centre, books)?;
    for node in &books.nodes {
        for log in centre.logs_of(node.node)? {
            for paid in paid(centre, log)? {
                let left = paid.amount - reversed.get(&paid.at).copied().unwrap_or_default();
                let refund = refunds.remove(&paid.at).unwrap_or_default();
                let (must, may) = owed(ledger, &lifted, &paid);
                let wanted = if paid.amount <= cap { left } else { Fen::ZERO };
                if must && refund != wanted {
                    let text = format!(
                        "{} paid {} at {:?} after its loss was reported: {refund} were given back, not {wanted}",
                        paid.card, paid.amount, paid.at
                    );
                    return Ok(Err(Finding::new(Promise::AfterLoss, text)));
                }
                if must && paid.amount > cap && !has_case(books, &paid) {
                    let text = format!(
                        "{} paid {} at {:?} after its loss: no case",
                        paid.card, paid.amount, paid.at
                    );
                    return Ok(Err(Finding::new(Promise::AfterLoss, text)));
                }
                if !may && refund != Fen::ZERO {
                    let text =
                        format!("{} paid {:?} itself, and {refund} were given back", paid.card, paid.at);
                    return Ok(Err(Finding::new(Promise::AfterLoss, text)));
                }
            }
        }
    }
    if let Some((at, fen)) = refunds.into_iter().find(|(_, fen)| *fen != Fen::ZERO) {
        return Ok(Err(Finding::new(
            Promise::AfterLoss,
            format!("{fen} were given back for {at:?}, which is no debit"),
        )));
    }
    Ok(Ok(()))
}

fn has_case(books: &Books, paid: &Paid) -> bool {
    books.cases.iter().any(|(_, case)| {
        case.reason == CaseReason::Loss as u8
            && case.log == paid.at.log.key()
            && case.position == paid.at.position
    })
}

/// Whether a debit must be given back, and whether it may.
fn owed(ledger: &Ledger, lifted: &[(String, Option<Timestamp>)], paid: &Paid) -> (bool, bool) {
    if paid.proven {
        return (false, false);
    }
    let of_card = || lifted.iter().filter(|(card, _)| *card == paid.card).map(|(_, lifted)| *lifted);
    let stood = of_card().any(|lifted| lifted.is_none_or(|lifted| lifted > paid.order_key));
    let may_have_stood = of_card().any(|lifted| lifted.is_none_or(|lifted| lifted >= paid.order_key));
    let reports = || ledger.losses.iter().filter(|loss| loss.card.as_str() == paid.card);
    let ingested = |positions: &BTreeMap<LogId, u64>| positions.get(&paid.at.log).copied().unwrap_or(0);
    // One report whose step had not ingested it: then every report that stood covers it.
    let after_any = reports()
        .any(|loss| loss.confirmed.as_ref().is_some_and(|positions| paid.at.position > ingested(positions)));
    let before_all =
        reports().all(|loss| !loss.asked.is_empty() && paid.at.position <= ingested(&loss.asked));
    let single = of_card().count() == 1 && reports().count() == 1;
    (after_any && stood && single, may_have_stood && !before_all)
}

fn reversed(centre: &mut CentreTables, books: &Books) -> Result<BTreeMap<EntryRef, Fen>> {
    let mut reversed: BTreeMap<EntryRef, Fen> = BTreeMap::new();
    for node in &books.nodes {
        let logs = centre.logs_of(node.node)?;
        let own = logs.first().copied();
        for log in logs {
            let first = centre.first_position(log)?;
            let entries = centre.entries_of(log)?;
            for entry in entries.iter() {
                if let Body::Reversal(back) = &entry.body {
                    // On a branch it may be a debit from before the fork.
                    let log = if back.debit < first { own.unwrap_or(log) } else { log };
                    let at = EntryRef { log, position: back.debit };
                    *reversed.entry(at).or_default() += back.amount();
                }
            }
        }
    }
    Ok(reversed)
}

fn paid(centre: &mut CentreTables, log: LogId) -> Result<Vec<Paid>> {
    let first = centre.first_position(log)?;
    let keys = centre.order_keys(log)?;
    let entries = centre.entries_of(log)?;
    let debit = |((position, entry), order_key): ((u64, &feiqian_protocol::entry::Entry), &Timestamp)| {
        let Body::Debit(debit) = &entry.body else { return None };
        let _: Wallet = debit.wallet;
        Some(Paid {
            at: EntryRef { log, position },
            card: debit.card.to_string(),
            order_key: *order_key,
            amount: debit.amount(),
            proven: entry.actor.proof == Proof::CardAndPin,
        })
    };
    Ok((first..).zip(entries.iter()).zip(&keys).filter_map(debit).collect())
}
