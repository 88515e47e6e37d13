//! The verifiers of PINs in the centre's stream for this node, against the table of them. Wrong tries are not folded: what
//! they are counted anew from is in another log than they are.

use std::collections::BTreeMap;

use feiqian_protocol::entry::{Body, Entry};
use feiqian_protocol::ids::LogId;
use rusqlite::Connection;

use super::Report;
use crate::io::Identity;
use crate::store::StoreError;
use crate::store::log::each_record;
use crate::store::pins::verifiers;

pub(super) fn compare(
    connection: &Connection,
    identity: &Identity,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut told = BTreeMap::new();
    each_record(connection, LogId::to_node(identity.institution, identity.node), |_, record| {
        if let Ok(Entry { body: Body::PinVerifiers(pins), .. }) = Entry::from_record(record) {
            told.extend(pins.verifiers.iter().map(|pin| (pin.account, (pin.generation, pin.digest))));
        }
        Ok(())
    })?;
    let held = verifiers(connection)?;
    let accounts = told.keys().chain(held.keys().filter(|account| !told.contains_key(account)));
    for account in accounts.filter(|account| told.get(account) != held.get(account)) {
        report.problem(format!("the PIN of account {account} is not what the centre has told of it"));
    }
    Ok(())
}
