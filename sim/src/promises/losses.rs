//! After a loss report the holder does not pay.

use std::collections::BTreeMap;

use anyhow::Result;
use feiqian_protocol::account::Intent;
use feiqian_protocol::entry::{Body, CaseReason, EntryRef};
use feiqian_protocol::ids::LogId;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;

use super::Promise;
use super::books::{Books, Checked, Finding};
use super::ledger::Ledger;
use crate::link::tables::{CentreTables, Kept};

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
            let EntryRef { log, position } = refund.debit;
            let at = EntryRef { log: centre.home_of(log, position)?, position };
            *refunds.entry(at).or_default() += refund.amount;
        }
    }
    let lifted = centre.losses()?;
    if lifted.is_empty() && refunds.is_empty() {
        return Ok(Ok(()));
    }
    let mut logs = Vec::new();
    for node in &books.nodes {
        logs.extend(centre.logs_once(node.node)?);
    }
    let reversed = reversed(centre, &logs)?;
    let in_buildings = reported_in_buildings(&logs);
    for (log, entries) in &logs {
        for paid in paid(*log, entries) {
            let left = paid.amount - reversed.get(&paid.at).copied().unwrap_or_default();
            let refund = refunds.remove(&paid.at).unwrap_or_default();
            let reports = in_buildings.get(&paid.card).map_or(&[][..], |reports| &reports[..]);
            let (must, may) = owed(ledger, &lifted, reports, &paid);
            let must = must && left.is_positive();
            let wanted = if paid.amount <= cap { left } else { Fen::ZERO };
            if must && refund != wanted {
                let text = format!(
                    "{} paid {} at {:?} after its loss was reported: {refund} were given back, not {wanted}",
                    paid.card, paid.amount, paid.at
                );
                return Ok(Err(Finding::new(Promise::AfterLoss, text)));
            }
            if must && paid.amount > cap && !has_case(books, &paid) {
                let text =
                    format!("{} paid {} at {:?} after its loss: no case", paid.card, paid.amount, paid.at);
                return Ok(Err(Finding::new(Promise::AfterLoss, text)));
            }
            if !may && refund != Fen::ZERO {
                let text = format!("{} paid {:?} itself, and {refund} were given back", paid.card, paid.at);
                return Ok(Err(Finding::new(Promise::AfterLoss, text)));
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

/// When each card was reported lost in buildings, by the order keys of those entries.
fn reported_in_buildings(logs: &[(LogId, Vec<Kept>)]) -> BTreeMap<String, Vec<Timestamp>> {
    let mut reports: BTreeMap<String, Vec<Timestamp>> = BTreeMap::new();
    for kept in logs.iter().flat_map(|(_, entries)| entries) {
        if let Body::Setting(setting) = &kept.entry.body
            && let Intent::ReportLoss { card, .. } = &setting.intent
        {
            reports.entry(card.to_string()).or_default().push(kept.order_key);
        }
    }
    reports
}

/// Whether a debit must be given back, and whether it may. What was reported in a building covers what was paid later, wherever and
/// whenever that came in.
fn owed(
    ledger: &Ledger,
    lifted: &[(String, Option<Timestamp>)],
    in_buildings: &[Timestamp],
    paid: &Paid,
) -> (bool, bool) {
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
    if let [at] = in_buildings
        && of_card().count() == 1
        && reports().count() == 0
    {
        return (stood && paid.order_key > *at, may_have_stood);
    }
    let single = of_card().count() == 1 && reports().count() == 1 && in_buildings.is_empty();
    (after_any && stood && single, may_have_stood && (!before_all || !in_buildings.is_empty()))
}

fn reversed(centre: &CentreTables, logs: &[(LogId, Vec<Kept>)]) -> Result<BTreeMap<EntryRef, Fen>> {
    let mut reversed: BTreeMap<EntryRef, Fen> = BTreeMap::new();
    for (log, entries) in logs {
        for kept in entries {
            if let Body::Reversal(back) = &kept.entry.body {
                let at = EntryRef { log: centre.home_of(*log, back.debit)?, position: back.debit };
                *reversed.entry(at).or_default() += back.amount();
            }
        }
    }
    Ok(reversed)
}

fn paid(log: LogId, entries: &[Kept]) -> Vec<Paid> {
    let debit = |kept: &Kept| {
        let Body::Debit(debit) = &kept.entry.body else { return None };
        Some(Paid {
            at: EntryRef { log, position: kept.position },
            card: debit.card.to_string(),
            order_key: kept.order_key,
            amount: debit.amount(),
            proven: kept.entry.actor.proof.has_pin(),
        })
    };
    entries.iter().filter_map(debit).collect()
}
