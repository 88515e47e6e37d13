//! Reports of purses: every purchase in the own log is found by its key, and no key is of another.

use std::collections::BTreeMap;

use feiqian_protocol::entry::{Body, Entry};
use feiqian_protocol::ids::LogId;
use rusqlite::Connection;

use super::Report;
use crate::io::Identity;
use crate::purse::report_digest;
use crate::store::StoreError;
use crate::store::log::each_record;
use crate::store::purses::{each_report, keeps_debits, paid};

/// Compares every report that is kept with the entries.
pub(super) fn compare(
    connection: &Connection,
    identity: &Identity,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut keys = BTreeMap::new();
    let mut digests = BTreeMap::new();
    let mut amounts = BTreeMap::new();
    each_record(connection, LogId::node(identity.institution, identity.node), |position, record| {
        // What does not read back is named by the chain.
        if let Ok(Entry { body: Body::PursePurchase(purchase), actor, .. }) = Entry::from_record(record) {
            let tap = &purchase.tap;
            let key = (actor.id.to_string(), tap.epoch, tap.sequence.to_string());
            digests.insert(position, report_digest(&purchase));
            amounts.insert(position, purchase.amount);
            keys.insert(key, position);
        }
        Ok(())
    })?;
    if !connection.prepare("SELECT 1 FROM sqlite_master WHERE name = 'purse_reports'")?.exists([])? {
        // The database of a build that knew no purses.
        return Ok(());
    }
    each_report(connection, |key, digest, position| {
        let (terminal, epoch, sequence) = &key;
        if digests.get(&position).is_none_or(|of| of[..] != digest[..]) {
            report.problem(format!(
                "the report {terminal} {epoch} {sequence} is not what entry {position} says"
            ));
        }
        if keys.remove(&key).is_some_and(|of| of != position) {
            report.problem(format!(
                "the report {terminal} {epoch} {sequence} is of another entry than {position}"
            ));
        }
    })?;
    for ((terminal, epoch, sequence), position) in keys {
        report.problem(format!("the report {terminal} {epoch} {sequence} of entry {position} is missing"));
    }
    let paid = if keeps_debits(connection)? { paid(connection)? } else { amounts.clone() };
    let differs = |position: &&u64| paid.get(position) != amounts.get(position);
    if let Some(position) = amounts.keys().chain(paid.keys()).find(differs) {
        report.problem(format!("what a purse paid by entry {position} is not what is kept of it"));
    }
    Ok(())
}
