//! What the node has decided, as rows for people and their tools; and its log, to be carried to the centre in a file.

use std::collections::VecDeque;

use feiqian_protocol::campus::CampusConfig;
use feiqian_protocol::entry::{Body, Entry};
use feiqian_protocol::frame::{Frame, LOG_FILE_MAGIC};
use feiqian_protocol::ids::LogId;
use feiqian_protocol::tap::DeclineReason;
use feiqian_protocol::time::{BusinessCalendar, Timestamp};
use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::Offset;
use rusqlite::Connection;
use serde::Serialize;

use crate::io::Identity;
use crate::store::log::record_at;
use crate::store::purses::{keeps_debits, paid};
use crate::store::taps::{TapUse, each_tap};
use crate::store::{Store, StoreError, campus, check_version};

/// One decided tap.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct DecisionRow {
    /// When, by the entry's clock: local time with its offset from UTC, ISO 8601.
    pub time: String,
    /// The node's name.
    pub building: String,
    /// The terminal.
    pub terminal: String,
    /// The terminal's epoch.
    pub terminal_epoch: u32,
    /// The terminal's sequence.
    pub terminal_seq: String,
    /// The card; of a reversal, its tap's. Empty for a reversal that came before its tap.
    pub card: String,
    /// `purchase`, `access` or `reversal`; `purse` where a card's purse has paid, which the card decides.
    pub kind: &'static str,
    /// `approved` or `declined`; of a purse `unproven` where nothing shows that the terminal has handed anything out.
    pub outcome: &'static str,
    /// The decline reason; empty otherwise.
    pub reason: &'static str,
    /// Fen charged, or asked for where declined, or given back by a reversal.
    pub amount_fen: i64,
    /// Fen of a purchase that were stand-in.
    pub stand_in_fen: i64,
    /// Fen of a purchase that were reversed later.
    pub reversed_fen: i64,
}

/// Hands every decision to `each`, and what purses have paid among them, in the order of the log; stops where `each` returns an
/// error and returns that.
///
/// # Errors
/// What `each` returned, or [`StoreError`] turned into it.
pub fn decisions<E: From<StoreError>>(
    connection: &Connection,
    identity: &Identity,
    mut each: impl FnMut(&DecisionRow) -> Result<(), E>,
) -> Result<(), E> {
    check_version(connection)?;
    let calendar = match campus(connection)? {
        Some((_, bytes)) => CampusConfig::from_bytes(&bytes)
            .map(|config| config.calendar)
            .map_err(|error| StoreError::damaged(format!("the campus configuration: {error}")))?,
        None => BusinessCalendar::CHINA,
    };
    let own = LogId::node(identity.institution, identity.node);
    let mut paid = match keeps_debits(connection)? {
        true => paid(connection)?.into_keys().collect::<VecDeque<_>>(),
        false => VecDeque::new(),
    };
    let purse = |position| -> Result<Option<DecisionRow>, StoreError> {
        let Some(record) = record_at(connection, own, position)? else { return Ok(None) };
        let Ok(Entry { clock, actor, body: Body::PursePurchase(purchase), .. }) = Entry::from_record(&record)
        else {
            return Ok(None);
        };
        Ok(Some(DecisionRow {
            time: local(clock.time(), &calendar),
            building: identity.name.to_string(),
            terminal: actor.id.to_string(),
            terminal_epoch: purchase.tap.epoch,
            terminal_seq: purchase.tap.sequence.to_string(),
            card: purchase.serial.card_number().to_string(),
            kind: "purse",
            outcome: if purchase.proven { "approved" } else { "unproven" },
            reason: "",
            amount_fen: purchase.amount.get(),
            stand_in_fen: 0,
            reversed_fen: 0,
        }))
    };
    each_tap(connection, |terminal, terminal_epoch, terminal_seq, tap| {
        while let Some(position) = paid.pop_front_if(|position| *position < tap.position) {
            purse(position)?.iter().try_for_each(&mut each)?;
        }
        let kind = match tap.used {
            TapUse::Purchase => "purchase",
            TapUse::Access => "access",
            TapUse::Reversal => "reversal",
            TapUse::Tombstone => return Ok(()),
        };
        each(&DecisionRow {
            time: local(tap.clock.time(), &calendar),
            building: identity.name.to_string(),
            terminal: terminal.to_owned(),
            terminal_epoch,
            terminal_seq: terminal_seq.to_owned(),
            card: tap.card.map_or_else(String::new, |card| card.to_string()),
            kind,
            outcome: if tap.reason.is_none() { "approved" } else { "declined" },
            reason: tap.reason.map_or("", DeclineReason::name),
            amount_fen: tap.amount.get(),
            stand_in_fen: tap.stand_in.get(),
            reversed_fen: tap.reversed.get(),
        })
    })?;
    paid.into_iter().try_for_each(|position| purse(position)?.iter().try_for_each(&mut each))
}

/// Writes the own log for `feiqian-reconcile import log`: what such a file begins with, then frames as on a stream, each with
/// its length (4 bytes, big-endian) before it. Returns how many entries. It is not judged here: what was altered shows where
/// it is proven.
///
/// # Errors
/// [`StoreError`] where it cannot be read, or what `write` returned.
pub fn log<E: From<StoreError>>(
    connection: Connection,
    identity: &Identity,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<u64, E> {
    check_version(&connection)?;
    let own = LogId::node(identity.institution, identity.node);
    let store = Store::reading(connection);
    write(LOG_FILE_MAGIC)?;
    let mut after = store.first_record(own)?.saturating_sub(1);
    let mut entries = 0;
    while let Some(frame) = store.every_commit(own, own, after)? {
        let count = frame.records.len() as u64;
        (after, entries) = (after + count, entries + count);
        let bytes = Frame::Entries(frame).to_bytes();
        let length = u32::try_from(bytes.len()).expect("a frame is shorter than its bound");
        write(&length.to_be_bytes())?;
        write(&bytes)?;
    }
    Ok(entries)
}

/// A time as people of the campus read it, with milliseconds and the offset from UTC.
fn local(time: Timestamp, calendar: &BusinessCalendar) -> String {
    let offset = Offset::from_seconds(calendar.utc_offset_minutes * 60).unwrap_or(Offset::UTC);
    match jiff::Timestamp::from_millisecond(time.0) {
        Ok(time) => DateTimePrinter::new().precision(Some(3)).timestamp_with_offset_to_string(&time, offset),
        Err(_) => time.0.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_local_and_say_so() {
        let noon = Timestamp(1_667_791_982_007);
        assert_eq!(local(noon, &BusinessCalendar::CHINA), "2022-11-07T11:33:02.007+08:00");
    }
}
