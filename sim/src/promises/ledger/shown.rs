//! Cards that buildings have not heard of, and the centre's word that their holders show there; or one that somebody made up.

use feiqian_node::io::{SettingDone, SettingError};
use feiqian_node::settings::{SettingKind, SettingRequest};
use feiqian_protocol::entry::Proof;
use feiqian_protocol::ids::Key;
use feiqian_protocol::issuance::SignedIssuance;

use super::Ledger;
use crate::promises::Coverage;

/// One word in so many is made up.
const MADE_UP_EVERY: u32 = 4;

impl Ledger {
    /// A card was not known where it was held to a terminal: what its holder shows, where it is one that was given out for another;
    /// and whether that is made up.
    pub fn to_show(&self, index: usize) -> Option<(SettingRequest, bool)> {
        let request = &self.requests[index];
        let card = request.card()?;
        let reissue = self.reissues.values().find(|reissue| reissue.card == *card)?;
        let issuance = reissue.issuance.clone()?;
        let made_up = request.number.is_multiple_of(MADE_UP_EVERY);
        let issuance = if made_up { made_up_like(issuance) } else { issuance };
        let request = SettingRequest {
            terminal: None,
            card: card.clone(),
            kind: SettingKind::ShowCard(Box::new(issuance)),
            by: Key::new("slip").expect("letters are a key"),
            proof: Proof::Card,
        };
        Some((request, made_up))
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
        let Some((_, made_up)) = self.to_show(index) else { return Ok(None) };
        let (site, number) = (self.requests[index].site, self.requests[index].number);
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

    /// True where a card was not known to a building that goes by it.
    pub fn is_forgotten(&self, index: usize) -> bool {
        let request = &self.requests[index];
        let reissue = self.reissues.values().find(|reissue| Some(&reissue.card) == request.card());
        let heard_ns = reissue.and_then(|reissue| reissue.heard.get(&request.site));
        heard_ns.is_some_and(|heard_ns| request.first_ns > *heard_ns)
    }
}

/// The same with a signature that is not the centre's.
fn made_up_like(issuance: SignedIssuance) -> SignedIssuance {
    let mut signature = issuance.signature;
    signature[7] ^= 1;
    SignedIssuance { signature, ..issuance }
}
