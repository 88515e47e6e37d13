//! First answers: for every key in the own log there is one row, and it says what the entries say.

use std::collections::BTreeMap;

use feiqian_protocol::entry::{Body, Entry, TapRef};
use feiqian_protocol::ids::LogId;
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::DeclineReason;
use rusqlite::Connection;

use super::Report;
use crate::io::Identity;
use crate::store::StoreError;
use crate::store::log::each_record;
use crate::store::taps::{TapUse, each_tap};

/// Terminal, epoch and sequence.
type Place = (String, u32, String);

/// What a row must say.
#[derive(Debug, Eq, PartialEq)]
struct Answer {
    used: TapUse,
    reason: Option<DeclineReason>,
    amount: Fen,
    reversed: Fen,
    position: u64,
}

/// Compares every row with the entries of its key.
pub(super) fn compare(
    connection: &Connection,
    identity: &Identity,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut answers = expected(connection, LogId::node(identity.institution, identity.node))?;
    each_tap(connection, |terminal, epoch, sequence, tap| -> Result<(), StoreError> {
        let found = Answer {
            used: tap.used,
            reason: tap.reason,
            amount: tap.amount,
            reversed: tap.reversed,
            position: tap.position,
        };
        let name = || format!("{terminal} {epoch} {sequence}");
        match answers.remove(&(terminal.to_owned(), epoch, sequence.to_owned())) {
            Some(answer) if answer == found => {}
            Some(answer) => {
                report.problem(format!("the first answer to {} is {found:?}, not {answer:?}", name()));
            }
            None => report.problem(format!("the first answer to {} is of no entry, or stands twice", name())),
        }
        Ok(())
    })?;
    for ((terminal, epoch, sequence), answer) in answers {
        report.problem(format!("the first answer to {terminal} {epoch} {sequence} is missing: {answer:?}"));
    }
    Ok(())
}

fn expected(connection: &Connection, own: LogId) -> Result<BTreeMap<Place, Answer>, StoreError> {
    let mut answers: BTreeMap<Place, Answer> = BTreeMap::new();
    // By the position of a debit, the key that it was made with.
    let mut debits: BTreeMap<u64, Place> = BTreeMap::new();
    each_record(connection, own, |position, record| {
        // What does not read back is named by the chain.
        let Ok(entry) = Entry::from_record(record) else { return Ok(()) };
        let place = |tap: &TapRef| (entry.actor.id.as_str().to_owned(), tap.epoch, tap.sequence.to_string());
        let answer = |used, reason, amount| Answer { used, reason, amount, reversed: Fen::ZERO, position };
        match &entry.body {
            Body::Debit(debit) => {
                let place = place(&debit.tap);
                debits.insert(position, place.clone());
                match answers.get_mut(&place).filter(|known| known.used == TapUse::Purchase) {
                    Some(first) => first.amount += debit.amount(),
                    None => {
                        answers.insert(place, answer(TapUse::Purchase, None, debit.amount()));
                    }
                }
            }
            Body::Decline(decline) => {
                let used = if decline.access { TapUse::Access } else { TapUse::Purchase };
                answers.insert(place(&decline.tap), answer(used, Some(decline.reason), decline.amount));
            }
            Body::Access(access) => {
                answers.insert(place(&access.tap), answer(TapUse::Access, None, Fen::ZERO));
            }
            Body::Reversal(reversal) => {
                if let Some(tap) = debits.get(&reversal.debit).and_then(|place| answers.get_mut(place)) {
                    tap.reversed += reversal.amount();
                }
                let first = answers
                    .entry(place(&reversal.tap))
                    .or_insert_with(|| answer(TapUse::Reversal, None, Fen::ZERO));
                first.amount += reversal.amount();
            }
            Body::Tombstone(tombstone) => {
                answers.insert(place(&tombstone.tap), answer(TapUse::Reversal, None, Fen::ZERO));
                answers
                    .entry(place(&tombstone.original))
                    .or_insert_with(|| answer(TapUse::Tombstone, None, Fen::ZERO));
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(answers)
}
