//! Who must have heard of a loss: a building that is in session hears of it in time, whatever else is under way to it, and
//! goes by it.

use anyhow::Result;
use feiqian_protocol::ids::CardNumber;

use super::{Event, MS, Trust, World};
use crate::promises::Promise;

/// How soon a building in session has heard: some round trips of the slowest link and a step at either end.
const HEARD_WITHIN_MS: u64 = 5_000;

/// How long a link must have stood for its session to have been accepted.
const IN_SESSION_AFTER_MS: u64 = 10_000;

/// On a link that loses more than this, even what goes first may come late.
const LOSS_PERMILLE_MAX: u32 = 50;

/// A building that is to hear of a loss.
#[derive(Clone, Debug)]
pub(super) struct ToHear {
    site: usize,
    life: u32,
    link: u64,
    breaks: u32,
    account: usize,
    reported_ns: u64,
}

impl World<'_> {
    /// A loss is reported: whoever is in session is told.
    pub(super) fn loss_told(&mut self, account: usize) {
        for building in 0..self.buildings.len() {
            let site = self.buildings[building].site;
            let host = &self.sites[site];
            let Some(link) = host.link.filter(|link| self.centre.links.get(link) == Some(&true)) else {
                continue;
            };
            let stands = self.now.saturating_sub(host.connected_at) >= IN_SESSION_AFTER_MS * MS;
            let Some(breaks) = self.unbroken(link).filter(|_| stands) else { continue };
            if self.quality(building).loss_permille > LOSS_PERMILLE_MAX || host.trust == Trust::Broken {
                continue;
            }
            let life = host.life;
            let to_hear = ToHear { site, life, link, breaks, account, reported_ns: self.now };
            self.after_ms(HEARD_WITHIN_MS, Event::LossHeard(to_hear));
        }
    }

    /// How often the path of a link broke; `None` where it is broken, or an end is gone.
    fn unbroken(&self, link: u64) -> Option<u32> {
        let connection = self.connections.get(&link)?;
        let stands = connection.node_end && connection.centre_end && connection.silent_since.is_none();
        stands.then_some(connection.breaks)
    }

    /// Looks whether it has heard, where nothing has kept it from that.
    pub(super) fn check_loss_heard(&mut self, to_hear: &ToHear) -> Result<()> {
        let ToHear { site, life, link, breaks, account, reported_ns } = *to_hear;
        let host = &self.sites[site];
        let went_on = host.core.is_some() && host.life == life && host.link == Some(link);
        let may_be_lifted = self.ledger.lifts.get(&account).is_some_and(|said_ns| *said_ns >= reported_ns);
        if !went_on || self.unbroken(link) != Some(breaks) || may_be_lifted || self.is_shut_out(site)? {
            return Ok(());
        }
        let card: CardNumber = self.plan.accounts[account].card.clone();
        if !self.node_tables(site)?.is_lost(&card)? {
            let name = self.site_name(site);
            let text = format!(
                "{name} was in session, and {HEARD_WITHIN_MS} ms after {card} was reported lost does not go by it"
            );
            self.violated(Promise::AfterLoss, text);
        }
        Ok(())
    }
}
