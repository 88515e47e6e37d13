//! Counters of vouchers: what is kept is what the own log says, and of vouchers that may still be good all of it is. So are those
//! that have paid here; the centre's word adds others.

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::entry::{Body, Entry};
use feiqian_protocol::ids::{AccountId, LogId};
use rusqlite::Connection;

use super::Report;
use crate::io::Identity;
use crate::store::StoreError;
use crate::store::codes::{each_counter, is_voucher_spent};
use crate::store::log::each_record;

/// Compares every counter with the entries of its voucher.
pub(super) fn compare(
    connection: &Connection,
    identity: &Identity,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut used: BTreeMap<(u32, AccountId, u32), u16> = BTreeMap::new();
    let mut spent: BTreeSet<(u32, AccountId, u32)> = BTreeSet::new();
    let mut last = 0;
    each_record(connection, LogId::node(identity.institution, identity.node), |_, record| {
        // What does not read back is named by the chain.
        let Ok(entry) = Entry::from_record(record) else { return Ok(()) };
        let (account, code) = match &entry.body {
            Body::Debit(debit) => {
                if let Some(code) = debit.code.filter(|_| debit.from_voucher.is_some()) {
                    spent.insert((code.until, debit.account, code.voucher));
                }
                (debit.account, debit.code)
            }
            Body::Access(access) => (access.account, access.code),
            _ => return Ok(()),
        };
        if let Some(code) = code {
            let counter = used.entry((code.until, account, code.voucher)).or_default();
            *counter = code.counter.max(*counter);
            last = entry.clock.time().0.div_euclid(1_000).max(last);
        }
        Ok(())
    })?;
    // The centre's word that a voucher has paid takes along what had ended when it was said.
    let heard: i64 = connection.query_row("SELECT centre_time FROM state", [], |row| row.get(0))?;
    let last = last.max(heard.div_euclid(1_000));
    each_counter(connection, |account, code| {
        let expected = used.remove(&(code.until, account, code.voucher));
        if expected != Some(code.counter) {
            let voucher = code.voucher;
            report.problem(format!(
                "the counter of voucher {voucher} of account {account} is {}, not {expected:?}",
                code.counter
            ));
        }
    })?;
    for (until, account, voucher) in spent {
        if i64::from(until) >= last && !is_voucher_spent(connection, account, voucher, until)? {
            report.problem(format!("that voucher {voucher} of account {account} has paid is missing"));
        }
    }
    for ((until, account, voucher), _) in used {
        if i64::from(until) >= last {
            report.problem(format!("the counter of voucher {voucher} of account {account} is missing"));
        }
    }
    Ok(())
}
