//! Cards that were given out for others carry the centre's word for it, and a terminal that looks at such a card shows it to its building.

use feiqian_node::io::{Input, SettingDone, SettingError, Ticket};
use feiqian_node::settings::{SettingKind, SettingRequest};
use feiqian_protocol::entry::Proof;
use feiqian_protocol::ids::Key;
use feiqian_protocol::issuance::SignedIssuance;
use feiqian_protocol::purse::{carried, touch};

use super::{Purses, Touch};
use crate::promises::{Coverage, Promise};
use crate::world::World;
use crate::world::hosts::{NodeMessage, TicketFor};
use crate::world::purses::cards::Field;

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
        let Some((account, issuance)) = reissued.map(|(account, of)| (*account, of.issuance.clone())) else {
            return;
        };
        let Some(issuance) = self.carried(touch, issuance) else { return };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.sites[site].waiting.insert(ticket, (TicketFor::Carried(account), self.now));
        let request = SettingRequest {
            terminal: Some(self.terminal(touch.building, touch.terminal)),
            card: touch.card.clone(),
            kind: SettingKind::ShowCard(Box::new(issuance)),
            by: Key::new("reader").expect("letters are a key"),
            proof: Proof::Card,
        };
        self.tell_node(site, NodeMessage::Ask(Input::Setting(ticket, request)));
    }

    /// What a card says of itself; the desk writes that onto it before it hands it out.
    fn carried(&mut self, touch: &Touch, issuance: Option<SignedIssuance>) -> Option<SignedIssuance> {
        let profiles = self.purses.profiles();
        let Purses { cards, seed, .. } = &mut self.purses;
        let mut field = Field::steady(&mut cards.get_mut(&touch.card)?.applet, seed);
        let identified = touch::identify(&mut field, &profiles).ok()?;
        let carried = carried::read(&mut field, &identified).or_else(|| {
            carried::write(&mut field, &identified, &issuance?).ok()?;
            carried::read(&mut field, &identified)
        });
        cards.get_mut(&touch.card)?.applet.reset();
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
        match done {
            Ok(_) => {
                if let Some(reissue) = self.ledger.reissues.get_mut(&account)
                    && !reissue.heard.contains_key(&site)
                {
                    reissue.heard.insert(site, self.now);
                    self.reached(Coverage::PurseCardShown);
                }
            }
            Err(error @ (SettingError::NotIssued | SettingError::OtherCard)) => {
                let text = format!("{} refused what a card carries: {error}", self.site_name(site));
                self.violated(Promise::Reissue, text);
            }
            Err(_) => {}
        }
    }
}
