//! Cards that were given out for others carry the centre's word for it, and a terminal that looks at such a card shows it to its building.

use feiqian_node::io::{Input, SettingDone, SettingError, Ticket};
use feiqian_protocol::issuance::SignedIssuance;
use feiqian_protocol::purse::{carried, touch};

use super::Touch;
use super::cards::Field;
use crate::promises::{Coverage, Promise};
use crate::world::World;
use crate::world::hosts::{NodeMessage, TicketFor};

/// Terminals look at a card before it pays in one tap of so many.
const LOOKED_AT_EVERY: u32 = 2;

impl World<'_> {
    /// A card lies on a reader, for the tap of this number.
    pub(super) fn look_at(&mut self, touch: &Touch, number: u32) {
        let site = self.route(touch.building, touch.terminal);
        if touch.copied || !number.is_multiple_of(LOOKED_AT_EVERY) || self.sites[site].core.is_none() {
            return;
        }
        let reissued = self.ledger.reissues.iter().find(|(_, reissue)| reissue.card == touch.card);
        let Some((account, reissue)) = reissued.map(|(account, reissue)| (*account, reissue.clone())) else {
            return;
        };
        let Some(issuance) = self.carried(touch, reissue.issuance.clone()) else { return };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.sites[site].waiting.insert(ticket, (TicketFor::Carried(account), self.now));
        self.tell_node(site, NodeMessage::Ask(Input::Setting(ticket, reissue.shows(issuance))));
    }

    /// What a card says of itself; the desk writes that onto it before it hands it out.
    fn carried(&mut self, touch: &Touch, issuance: Option<SignedIssuance>) -> Option<SignedIssuance> {
        let profiles = self.purses.profiles();
        let chip = self.purses.cards.get_mut(&touch.card)?;
        let mut field = Field::steady(&mut chip.applet, &mut self.purses.seed);
        let identified = touch::identify(&mut field, &profiles).ok()?;
        let carried = carried::read(&mut field, &identified).or_else(|| {
            let issuance = issuance?;
            carried::write(&mut field, &identified, &issuance).ok()?;
            Some(issuance)
        });
        chip.applet.reset();
        carried
    }

    /// What a building made of it.
    pub(in crate::world) fn carried_shown(
        &mut self,
        site: usize,
        account: usize,
        done: &Result<SettingDone, SettingError>,
    ) {
        self.audit.say(self.now, || format!("{}: what a card carries: {done:?}", self.site_name(site)));
        let Some(reissue) = self.ledger.reissues.get_mut(&account) else { return };
        match reissue.shown(site, done, self.now) {
            Ok(true) => self.reached(Coverage::PurseCardShown),
            Ok(false) => {}
            Err(text) => self.violated(Promise::Reissue, text),
        }
    }
}
