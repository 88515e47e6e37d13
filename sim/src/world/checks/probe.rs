//! What is there can be spent, and no more.

use anyhow::{Context, Result};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, Pin};

use crate::plan::{Ask, LinkQuality, Manner, Tap};
use crate::promises::Promise;
use crate::promises::ledger::Told;
use crate::promises::pins::PROBE;
use crate::world::{MS, World};

/// Accounts that are spent to the last fen at the end.
const PROBED_ACCOUNTS: usize = 2;

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
        for (step, (card, money)) in probes.into_iter().enumerate() {
            for (part, ask) in [money, Fen::new(1)].into_iter().enumerate() {
                let building = paying[self.chance.index(paying.len())];
                let tap = Tap {
                    number: PROBE + 2 * step as u32 + part as u32,
                    building,
                    terminal: 0,
                    card: card.clone(),
                    ask: Ask::Amount(ask),
                    pin: Pin::Right,
                    manner: Manner::Patient,
                };
                let index = self.begin(self.buildings[building].site, &tap);
                self.transmit(index);
                self.run_until(self.now + (self.plan.timing.ask_deadline_ms + 5_000) * MS)?;
                let told = self.ledger.requests[index].told.clone();
                let right = match (&told, part) {
                    (Some(Told::Decided(Decision::Approved { amount, stand_in, .. })), 0) => {
                        *amount == money && *stand_in == Fen::ZERO
                    }
                    (Some(Told::Decided(Decision::Declined(_))), 1) => true,
                    _ => false,
                };
                if !right {
                    let place = self.site_name(self.buildings[building].site);
                    let text =
                        format!("{ask} of {card}, which has {money}, at {place}, all connected: {told:?}");
                    let promise = if part == 0 { Promise::Liveness } else { Promise::NoOverspend };
                    self.violated(promise, text);
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
