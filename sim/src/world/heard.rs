//! Who must have heard of a loss or a closing: a building that is in session hears of it in time, and goes by it; of a loss
//! whatever else is under way to it.

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

/// What is heard of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum News {
    Loss,
    Closing,
}

/// A building that is to hear of a loss or a closing.
#[derive(Clone, Debug)]
pub(super) struct ToHear {
    news: News,
    site: usize,
    life: u32,
    link: u64,
    breaks: u32,
    account: usize,
    told_ns: u64,
}

impl World<'_> {
    /// A loss is reported: whoever is in session is told.
    pub(super) fn loss_told(&mut self, account: usize) {
        self.told(News::Loss, account);
    }

    /// An account is closed, likewise.
    pub(super) fn closing_told(&mut self, account: usize) {
        self.told(News::Closing, account);
    }

    fn told(&mut self, news: News, account: usize) {
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
            let to_hear = ToHear { news, site, life, link, breaks, account, told_ns: self.now };
            self.after_ms(HEARD_WITHIN_MS, Event::Heard(to_hear));
        }
    }

    /// How often the path of a link broke; `None` where it is broken, or an end is gone.
    fn unbroken(&self, link: u64) -> Option<u32> {
        let connection = self.connections.get(&link)?;
        let stands = connection.node_end && connection.centre_end && connection.silent_since.is_none();
        stands.then_some(connection.breaks)
    }

    /// Looks whether it has heard, where nothing has kept it from that.
    pub(super) fn check_heard(&mut self, to_hear: &ToHear) -> Result<()> {
        let ToHear { news, site, life, link, breaks, account, told_ns } = *to_hear;
        let host = &self.sites[site];
        let went_on = host.core.is_some() && host.life == life && host.link == Some(link);
        let may_be_lifted = self.ledger.lifts.get(&account).is_some_and(|said_ns| *said_ns >= told_ns);
        if !went_on || self.unbroken(link) != Some(breaks) || self.is_shut_out(site)? {
            return Ok(());
        }
        let card: CardNumber = self.plan.accounts[account].card.clone();
        let tables = self.node_tables(site)?;
        let (heard, promise, what) = match news {
            News::Loss => (may_be_lifted || tables.is_lost(&card)?, Promise::AfterLoss, "reported lost"),
            News::Closing => (tables.is_closed(&card)?, Promise::Closing, "closed"),
        };
        if !heard {
            let name = self.site_name(site);
            let text = format!(
                "{name} was in session, and {HEARD_WITHIN_MS} ms after {card} was {what} does not go by it"
            );
            self.violated(promise, text);
        } else if news == News::Closing {
            self.ledger.closings.entry(account).or_default().heard.entry(site).or_insert(self.now);
        }
        Ok(())
    }

    /// A building that goes by a closing goes on doing so.
    pub(super) fn check_closed_there(&mut self) {
        let closings = &self.ledger.closings;
        let heard = closings.iter().flat_map(|(account, closing)| {
            closing.heard.iter().map(|(site, heard_ns)| (*account, *site, *heard_ns))
        });
        let mut approved = Vec::new();
        for (account, site, heard_ns) in heard {
            let host = &self.sites[site];
            // A disk that came back older may have forgotten it.
            if host.trust != Trust::Sound || host.gone {
                continue;
            }
            let card = &self.plan.accounts[account].card;
            approved.extend(self.ledger.requests.iter().filter_map(|request| {
                let later = request.site == site && request.first_ns > heard_ns;
                let paid = later && request.card() == Some(card) && request.approved().is_some();
                paid.then(|| {
                    format!("site {site} knew that {card} is closed, and approved {:?}", request.sent.key())
                })
            }));
        }
        approved.into_iter().for_each(|text| self.violated(Promise::Closing, text));
    }
}
