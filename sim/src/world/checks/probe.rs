//! What is there can be spent, and no more.

use anyhow::{Context, Result};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::money::Fen;

use crate::plan::LinkQuality;
use crate::promises::books::Finding;
use crate::promises::probes::{self, PROBED_ACCOUNTS};
use crate::world::{MS, World};

impl World<'_> {
    /// Whoever has money can spend it, anywhere, to the last fen; and no fen more.
    pub(super) fn probe(&mut self) -> Result<()> {
        // A building at the end of a slow line does not get an answer from the centre in time, which is not promised.
        for building in &mut self.buildings {
            building.quality = Some(LinkQuality::LAN);
        }
        let paying: Vec<usize> = (0..self.buildings.len())
            .filter(|index| self.plan.buildings[*index].role != Role::Door)
            .collect();
        let lost = self.centre_tables()?.lost_cards()?;
        let mut order: Vec<usize> = (0..self.plan.accounts.len()).collect();
        self.chance.shuffle(&mut order);
        let mut probes = Vec::new();
        for account in order {
            let own = self.plan.accounts[account].card.clone();
            let reissue = self.ledger.reissues.get(&account).filter(|reissue| reissue.told_ns.is_some());
            let card = reissue.map_or(own, |reissue| reissue.card.clone());
            if probes.len() == PROBED_ACCOUNTS
                || paying.is_empty()
                || lost.contains(&card)
                || self.ledger.closings.contains_key(&account)
                || self.plan.accounts[account].valid_until.is_some()
                || self.purses.has(&card)
            {
                continue;
            }
            let id = self.centre_tables()?.cards()?.get(&card).copied().context("an account of the plan")?;
            let wallets = self.centre_tables()?.wallets()?;
            // What is owed in one wallet is not taken from the other.
            let money: Fen =
                wallets.iter().filter(|((of, _), _)| *of == id).map(|(_, held)| held.funds.or_zero()).sum();
            if money.is_positive() {
                probes.push((card, money));
            }
        }
        for probe in probes::of(probes) {
            let building = paying[self.chance.index(paying.len())];
            let site = self.buildings[building].site;
            let index = self.begin(site, &probe.tap(building));
            self.transmit(index);
            self.run_until(self.now + (self.plan.timing.ask_deadline_ms + 5_000) * MS)?;
            let told = self.ledger.requests[index].told.as_ref();
            if let Err(Finding { promise, text }) = probe.judge(told, &self.site_name(site)) {
                self.violated(promise, text);
                break;
            }
        }
        Ok(())
    }
}
