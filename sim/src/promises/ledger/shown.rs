//! Cards that buildings have not heard of, and the centre's word that their holders show there; or one that somebody made up.

use feiqian_node::io::{SettingDone, SettingError};
use feiqian_node::settings::{SettingKind, SettingRequest};
use feiqian_protocol::entry::Proof;
use feiqian_protocol::ids::Key;
use feiqian_protocol::issuance::SignedIssuance;

use super::{Ledger, Reissue, Request};
use crate::promises::Coverage;

/// One word in so many is made up.
const MADE_UP_EVERY: u32 = 4;

impl Ledger {
    /// A card was not known where it was held to a terminal: what its holder shows, where it is one that was given out for another.
    /// `sound`: the disk there is as its process left it.
    ///
    /// # Errors
    /// Where the building goes by the card.
    pub fn card_unknown(&self, index: usize, sound: bool) -> Result<Option<SettingRequest>, String> {
        let Some((reissue, request)) = self.reissue_at(index) else { return Ok(None) };
        let heard_ns = reissue.heard.get(&request.site);
        if sound && heard_ns.is_some_and(|heard_ns| request.first_ns > *heard_ns) {
            let (site, key) = (request.site, request.sent.key());
            return Err(format!("site {site} goes by the card of {key:?}, and does not know it"));
        }
        let Some(issuance) = reissue.issuance.clone() else { return Ok(None) };
        let issuance = if is_made_up(request) { made_up_like(issuance) } else { issuance };
        Ok(Some(reissue.shows(issuance)))
    }

    /// The reissue that the card of a request comes from.
    fn reissue_at(&self, index: usize) -> Option<(&Reissue, &Request)> {
        let request = &self.requests[index];
        let reissue = self.reissues.values().find(|reissue| Some(&reissue.card) == request.card())?;
        Some((reissue, request))
    }

    /// What came of that; the rare path that this was.
    ///
    /// # Errors
    /// What should not have come of it.
    pub fn shown(
        &mut self,
        index: usize,
        done: &Result<SettingDone, SettingError>,
        now_ns: u64,
    ) -> Result<Option<Coverage>, String> {
        let request = &self.requests[index];
        let (site, number, made_up) = (request.site, request.number, is_made_up(request));
        match (made_up, done) {
            (true, Ok(_)) => {
                Err(format!("site {site} took a word that the centre never gave (tap {number})"))
            }
            (true, Err(SettingError::NotIssued)) => Ok(Some(Coverage::MadeUpIssuanceRefused)),
            (true, Err(_)) => Ok(None),
            (false, done) => {
                let card = self.requests[index].card().cloned();
                let reissue = self.reissues.values_mut().find(|reissue| Some(&reissue.card) == card.as_ref());
                let Some(reissue) = reissue else { return Ok(None) };
                reissue.shown(site, done, now_ns)?;
                Ok(done.is_ok().then_some(Coverage::CardShown))
            }
        }
    }
}

impl Reissue {
    /// The new card is shown with this word for it.
    pub fn shows(&self, issuance: SignedIssuance) -> SettingRequest {
        SettingRequest {
            terminal: None,
            card: self.card.clone(),
            kind: SettingKind::ShowCard(Box::new(issuance)),
            by: Key::new("slip").expect("letters are a key"),
            proof: Proof::Card,
        }
    }

    /// What came of it at a site, where it was the centre's word; true where the site goes by the card from here on.
    ///
    /// # Errors
    /// That was refused.
    pub fn shown(
        &mut self,
        site: usize,
        done: &Result<SettingDone, SettingError>,
        now_ns: u64,
    ) -> Result<bool, String> {
        match done {
            Ok(_) if self.heard.contains_key(&site) => Ok(false),
            Ok(_) => Ok(self.heard.insert(site, now_ns).is_none()),
            Err(error @ (SettingError::NotIssued | SettingError::OtherCard)) => {
                Err(format!("site {site} refused the centre's word for {}: {error}", self.card))
            }
            Err(_) => Ok(false),
        }
    }
}

/// Whether what is shown after a request is made up.
const fn is_made_up(request: &Request) -> bool {
    request.number.is_multiple_of(MADE_UP_EVERY)
}

/// The same with a signature that is not the centre's.
fn made_up_like(issuance: SignedIssuance) -> SignedIssuance {
    let mut signature = issuance.signature;
    signature[7] ^= 1;
    SignedIssuance { signature, ..issuance }
}
