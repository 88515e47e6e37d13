//! Rare paths that only the books show.

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::entry::{Bearer, Body};
use feiqian_protocol::time::BusinessDay;

use super::{Books, NodeBooks};
use crate::promises::Coverage;
use crate::promises::ledger::Ledger;

impl Books {
    /// Rare paths that the books show, and how often.
    pub fn coverage(&self, ledger: &Ledger) -> Vec<(Coverage, u64)> {
        let mut counts: BTreeMap<Coverage, u64> = BTreeMap::new();
        let mut reach = |coverage| *counts.entry(coverage).or_default() += 1;
        let reissued: BTreeSet<_> = ledger.reissues.values().map(|reissue| &reissue.card).collect();
        for node in &self.nodes {
            for (position, entry) in node.logs.iter().flat_map(|log| (1_u64..).zip(log.iter())) {
                match &entry.body {
                    Body::Debit(debit) if reissued.contains(&debit.card) => reach(Coverage::ReissuedPaid),
                    Body::Release(_) => reach(Coverage::RightReleased),
                    Body::ShareRelease(_) => reach(Coverage::AllowanceReleased),
                    Body::Reversal(back) if (back.right_home + back.stand_in_home).is_positive() => {
                        reach(Coverage::ReversalHome);
                    }
                    _ => {}
                }
                let epoch = match &entry.body {
                    Body::Debit(debit) => debit.epoch.0,
                    Body::Reversal(back) => back.epoch.0,
                    Body::Release(release) => release.epoch.0,
                    _ => continue,
                };
                let late = |(of, closed, head): &(u16, u32, u64)| {
                    *of == node.node.0 && epoch <= *closed && position > *head
                };
                if self.closings.iter().any(late) {
                    reach(Coverage::LateEntry);
                }
            }
        }
        for (_, case) in &self.cases {
            reach(Coverage::CaseOpened);
            if case.bearer == Bearer::Holder as u8 {
                reach(Coverage::CaseClaimed);
            }
            if case.bearer == Bearer::RiskFund as u8 {
                reach(Coverage::CaseAtRiskFund);
            }
            if case.recovered.is_positive() {
                reach(Coverage::CaseRecovered);
            }
        }
        let mut days: Vec<BusinessDay> = Vec::new();
        for entry in self.nodes.iter().flat_map(NodeBooks::entries) {
            if let Body::Debit(debit) = &entry.body
                && !days.contains(&debit.day)
            {
                days.push(debit.day);
            }
        }
        if days.len() > 1 {
            reach(Coverage::DayChanged);
        }
        let mut paid_out = BTreeSet::new();
        for entry in self.shard_entries() {
            match &entry.body {
                Body::Payout(payout) if paid_out.insert((payout.account, payout.wallet)) => {
                    reach(Coverage::ClosedPaidOut);
                }
                Body::Payout(_) => reach(Coverage::ClosedPaidOutAgain),
                Body::Refund(_) => reach(Coverage::LossRefunded),
                Body::DocumentRenewed(_) => reach(Coverage::DocumentRenewed),
                _ => {}
            }
        }
        self.given_up.values().for_each(|_| reach(Coverage::ClosedGivenUp));
        self.vouchers.coverage().into_iter().for_each(&mut reach);
        if self.faults.iter().any(|fault| fault.contains("was used before")) {
            reach(Coverage::CodeReplayFound);
        }
        counts.into_iter().collect()
    }
}
