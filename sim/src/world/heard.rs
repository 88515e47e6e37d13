//! Who must have heard of a loss, a closing or another card: a building that is in session hears of it in time, and goes by it; of a loss
//! whatever else is under way to it.

use anyhow::Result;
use feiqian_protocol::frame::Lane;
use feiqian_protocol::ids::CardNumber;

use super::network::Way;
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
    Reissue,
}

/// A building that is to hear of something.
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

    /// Another card is given out, likewise.
    pub(super) fn reissue_told(&mut self, account: usize) {
        self.told(News::Reissue, account);
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
            if self.delayed(link, news) {
                continue;
            }
            let life = host.life;
            let to_hear = ToHear { news, site, life, link, breaks, account, told_ns: self.now };
            self.after_ms(HEARD_WITHIN_MS, Event::Heard(to_hear));
        }
    }

    /// True where what was lost on its way, while the link was a bad one, still has to arrive before any news of this kind.
    fn delayed(&self, link: u64, news: News) -> bool {
        let lanes = match news {
            News::Loss => &[Lane::Urgent][..],
            News::Closing | News::Reissue => &[Lane::Urgent, Lane::Control, Lane::Bulk],
        };
        let soon = self.now + HEARD_WITHIN_MS / 2 * MS;
        let connection = self.connections.get(&link);
        connection
            .is_some_and(|connection| lanes.iter().any(|lane| connection.arrived_ns(Way::Down, *lane) > soon))
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
        // The lift may have been asked for while the report was not answered yet.
        let asked_ns = self.ledger.reports.get(&account).map_or(told_ns, |asked_ns| told_ns.min(*asked_ns));
        let may_be_lifted = self.ledger.lifts.get(&account).is_some_and(|said_ns| *said_ns >= asked_ns);
        if !went_on || self.unbroken(link) != Some(breaks) || self.is_shut_out(site)? {
            return Ok(());
        }
        let card: CardNumber = self.plan.accounts[account].card.clone();
        let new = self.ledger.reissues.get(&account).map(|reissue| reissue.card.clone());
        let tables = self.node_tables(site)?;
        let (heard, promise, what) = match news {
            News::Loss => (may_be_lifted || tables.is_lost(&card)?, Promise::AfterLoss, "reported lost"),
            News::Closing => (tables.is_closed(&card)?, Promise::Closing, "closed"),
            News::Reissue => {
                let knows_new = new.map(|new| tables.knows(&new)).transpose()?.unwrap_or_default();
                (knows_new && tables.is_lost(&card)?, Promise::Reissue, "replaced")
            }
        };
        if !heard {
            let name = self.site_name(site);
            let text = format!(
                "{name} was in session, and {HEARD_WITHIN_MS} ms after {card} was {what} does not go by it"
            );
            self.violated(promise, text);
            return Ok(());
        }
        let heard = match news {
            News::Loss => None,
            News::Closing => self.ledger.closings.get_mut(&account).map(|closing| &mut closing.heard),
            News::Reissue => self.ledger.reissues.get_mut(&account).map(|reissue| &mut reissue.heard),
        };
        if let Some(heard) = heard {
            heard.entry(site).or_insert(self.now);
        }
        Ok(())
    }

    /// A building that goes by a closing, or knows that a card was replaced, goes on doing so.
    pub(super) fn check_withdrawn_there(&mut self) {
        let closings = self.ledger.closings.iter().flat_map(|(account, closing)| {
            let card = &self.plan.accounts[*account].card;
            closing.heard.iter().map(move |heard| (Promise::Closing, card, heard))
        });
        let reissues =
            self.ledger.reissues.values().flat_map(|reissue| {
                reissue.heard.iter().map(|heard| (Promise::Reissue, &reissue.old, heard))
            });
        let mut approved = Vec::new();
        for (promise, card, (site, heard_ns)) in closings.chain(reissues) {
            let host = &self.sites[*site];
            // A disk that came back older may have forgotten it.
            if host.trust != Trust::Sound || host.gone {
                continue;
            }
            approved.extend(self.ledger.requests.iter().filter_map(|request| {
                let later = request.site == *site && request.first_ns > *heard_ns;
                let paid = later && request.card() == Some(card) && request.approved().is_some();
                let key = request.sent.key();
                paid.then(|| {
                    (promise, format!("site {site} knew that {card} is good no more, and approved {key:?}"))
                })
            }));
        }
        approved.into_iter().for_each(|(promise, text)| self.violated(promise, text));
    }
}
