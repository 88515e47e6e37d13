//! Recalls: right and allowance that the centre calls home.

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Actor, Release, ShareRelease};
use feiqian_protocol::frame::{Frame, Recall, Recalled};
use feiqian_protocol::ids::Unit;
use feiqian_protocol::limits::PENDING_TAPS_MAX;

use super::Link;
use crate::apply::Fault;
use crate::core::NodeCore;
use crate::io::{Now, Output};
use crate::store::StoreError;

impl NodeCore {
    pub(super) fn on_recall(
        &mut self,
        now: &Now,
        recall: Recall,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        if self.recalls.len() >= PENDING_TAPS_MAX {
            return Err(Fault::peer("too many recalls"));
        }
        self.recalls.insert((recall.account, recall.unit), recall);
        Ok(self.obey_recalls(now, outputs)?)
    }

    /// Obeys the recalls whose time has come: what the stream before them brought is applied and spent from.
    pub(super) fn obey_recalls(&mut self, now: &Now, outputs: &mut Vec<Output>) -> Result<(), StoreError> {
        let Link::Up(link, _) = self.link else { return Ok(()) };
        let applied = self.state.to_node.position;
        let due: Vec<Recall> =
            self.recalls.values().filter(|recall| recall.after <= applied).copied().collect();
        for recall in due {
            self.recalls.remove(&(recall.account, recall.unit));
            if recall.epoch == self.state.saved.epoch {
                self.release(now, &recall)?;
            }
            let at = self.state.writer.cursor().position;
            let Recall { account, unit, .. } = recall;
            outputs.push(Output::Send(link, Frame::Recalled(Recalled { account, unit, at })));
            // A tap that waits for this account is short by more than it was.
            self.decide_waiting(now, [account], outputs)?;
        }
        Ok(())
    }

    fn release(&mut self, now: &Now, recall: &Recall) -> Result<(), StoreError> {
        let account = recall.account;
        match recall.unit {
            Unit::Wallet(wallet) => {
                let mut purse = self.store.purse(account)?;
                let state = purse.wallet_mut(wallet);
                let there = state.row.unspent.min(recall.amount);
                let amount = if planted(Canary::RecallBeyondUnspent) { recall.amount } else { there };
                if !amount.is_positive() {
                    return Ok(());
                }
                let released_total = state.row.released + amount;
                let release = Release { account, wallet, epoch: recall.epoch, amount, released_total };
                state
                    .row
                    .release(&release)
                    .map_err(|error| StoreError::damaged(format!("a release of its row: {error}")))?;
                self.append(now, Actor::node(), release.into())?;
                self.store.put_wallet(account, wallet, state)?;
                self.state.totals.unspent -= amount;
            }
            Unit::Allowance => {
                let mut share = self.store.share(account)?;
                let amount = share.releasable(recall.from_day).min(recall.amount);
                if !amount.is_positive() {
                    return Ok(());
                }
                let release =
                    ShareRelease { account, epoch: recall.epoch, from_day: recall.from_day, amount };
                share
                    .release(&release)
                    .map_err(|error| StoreError::damaged(format!("a release of its share: {error}")))?;
                self.append(now, Actor::node(), release.into())?;
                self.store.put_share(account, &share, self.share_horizon())?;
            }
        }
        Ok(())
    }
}
