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
        Ok(Some(SettingRequest {
            terminal: None,
            card: reissue.card.clone(),
            kind: SettingKind::ShowCard(Box::new(issuance)),
            by: Key::new("slip").expect("letters are a key"),
            proof: Proof::Card,
        }))
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
            (false, Err(error @ (SettingError::NotIssued | SettingError::OtherCard))) => {
                Err(format!("site {site} refused the centre's word (tap {number}): {error}"))
            }
            (_, Err(_)) => Ok(None),
            (false, Ok(_)) => {
                let card = self.requests[index].card().cloned();
                let reissue = self.reissues.values_mut().find(|reissue| Some(&reissue.card) == card.as_ref());
                if let Some(reissue) = reissue {
                    reissue.heard.entry(site).or_insert(now_ns);
                }
                Ok(Some(Coverage::CardShown))
            }
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
