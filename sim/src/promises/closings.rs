//! Accounts that are closed.

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::entry::Body;
use feiqian_protocol::ids::{AccountId, NodeId, Wallet};

use super::Promise;
use super::books::{Books, Checked, Finding};
use super::ledger::Ledger;
use super::ledger::operators::{CLOSING_CHANNEL, CLOSING_SUBSIDY_CHANNEL};
use super::receipts::accounts;
use crate::plan::Plan;

/// Who was said to be closed is, and nobody else; what is paid out goes where it was asked to; and once everybody in service has
/// settled with the centre, nothing that is the holder's is left. `in_service`: the nodes that are.
///
/// # Errors
/// The first account of which this is not so.
pub fn check(plan: &Plan, ledger: &Ledger, books: &Books, in_service: &BTreeSet<NodeId>) -> Checked {
    let broken = |text: String| Err(Finding::new(Promise::Closing, text));
    let indices: BTreeMap<AccountId, usize> = accounts(plan, books)
        .into_iter()
        .enumerate()
        .filter_map(|(index, id)| id.map(|id| (id, index)))
        .collect();
    let mut closed = BTreeSet::new();
    for entry in books.shards.iter().flat_map(|shard| shard.iter()) {
        match &entry.body {
            Body::CloseOrdered(ordered) => {
                let index = indices.get(&ordered.account);
                if !index.is_some_and(|index| ledger.closings.contains_key(index)) {
                    return broken(format!("account {} is closed, and nobody has said so", ordered.account));
                }
                closed.insert(ordered.account);
            }
            Body::Payout(payout) => {
                let wanted = match payout.wallet {
                    Wallet::Cash => CLOSING_CHANNEL,
                    Wallet::Subsidy => CLOSING_SUBSIDY_CHANNEL,
                };
                let right = payout.channel.as_str() == wanted && payout.amount.is_positive();
                if !right || !closed.contains(&payout.account) {
                    return broken(format!("nobody has asked for this to be paid out: {payout:?}"));
                }
            }
            _ => {}
        }
    }
    for (id, index) in &indices {
        let told = ledger.closings.get(index).is_some_and(|closing| closing.told_ns.is_some());
        if told && !closed.contains(id) {
            return broken(format!("account {id} was said to be closed, and is not"));
        }
    }
    for account in closed {
        // What is with a building that is gone is waited for, as long as the term lasts.
        let waited_for = books.rights.iter().any(|((of, _, node, _), row)| {
            *of == account
                && (row.out.is_positive() || row.stand_in_out.is_positive())
                && !in_service.contains(&NodeId(*node))
        });
        let left = books.wallets.iter().find(|((of, _), held)| *of == account && held.funds.is_positive());
        if let Some(((_, wallet), held)) = left.filter(|_| !waited_for) {
            let funds = held.funds;
            return broken(format!(
                "account {account} is closed, and {funds} of its {wallet} are not paid out"
            ));
        }
    }
    Ok(())
}
