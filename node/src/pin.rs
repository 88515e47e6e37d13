//! The payment PIN at this node: what one that was entered is worth, and how wrong ones are counted.
//!
//! A PIN that was entered is always judged, also where the limits would not have asked for one: the right one pays, and
//! whatever else it is, the purchase is declined. Only the one PIN that the account's document names pays, and only where
//! this node holds its verifier. Three wrong ones in a row lock it here, whatever is entered then, until word of a PIN comes
//! from the centre: a new one, or the same one again where it was unlocked.

pub mod change;
pub mod hashing;

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::ids::AccountId;
use feiqian_protocol::limits::PIN_TRIES_MAX;
use feiqian_protocol::pin::PinGeneration;
use feiqian_protocol::tap::{DeclineReason, Pin, TapRequest};

use crate::core::NodeCore;
use crate::store::StoreError;
use crate::store::pins::HeldPin;

/// What an entered PIN is worth: [`Pin::Right`], [`Pin::Wrong`], or [`Pin::Absent`] where none was entered. `paying` is the
/// PIN that pays by the account's document, `held` the verifier here.
///
/// # Errors
/// The reason to decline where it cannot be judged.
fn judge(entered: Pin, paying: Option<PinGeneration>, held: Option<&HeldPin>) -> Result<Pin, DeclineReason> {
    if matches!(entered, Pin::Absent | Pin::Right | Pin::Wrong) {
        return Ok(entered);
    }
    let current = held.filter(|held| paying == Some(held.generation)).ok_or(DeclineReason::PinNotSet)?;
    if current.tries >= PIN_TRIES_MAX {
        return Err(DeclineReason::PinLocked);
    }
    match entered {
        Pin::Entered { generation, digest } if generation == current.generation => {
            Ok(if digest == current.digest { Pin::Right } else { Pin::Wrong })
        }
        // It was hashed before word of the current one came.
        _ => Err(DeclineReason::PinNotSet),
    }
}

impl NodeCore {
    /// What a PIN entered for a tap that is to come is to be hashed for; `None` where that would be for nothing.
    pub(crate) fn pin_to_hash(&mut self, tap: &TapRequest) -> Result<Option<PinGeneration>, StoreError> {
        // A repeat gets its first answer.
        if self.queues.is_waiting(&tap.key) || self.tap_row(&tap.key)?.is_some() {
            return Ok(None);
        }
        let Some(account) = self.facts_of(tap, None)?.map(|facts| facts.holder.account) else {
            return Ok(None);
        };
        let paying = self.store.paying_pin(account)?;
        let held = self.store.held_pin(account)?;
        let held = held.filter(|held| Some(held.generation) == paying && held.tries < PIN_TRIES_MAX);
        Ok(held.map(|held| held.generation))
    }

    /// What a PIN that was entered for a purchase is worth.
    pub(crate) fn judge_pin(
        &self,
        entered: Pin,
        account: AccountId,
    ) -> Result<Result<Pin, DeclineReason>, StoreError> {
        if entered == Pin::Absent {
            return Ok(Ok(entered));
        }
        Ok(judge(entered, self.store.paying_pin(account)?, self.store.held_pin(account)?.as_ref()))
    }

    /// Counts a PIN that was judged, with what is written about its tap: wrong ones in a row, of which the right one is the
    /// end. Returns how many there are, where this was one.
    pub(crate) fn count_pin(
        &self,
        account: Option<AccountId>,
        judged: Pin,
    ) -> Result<Option<u8>, StoreError> {
        let Some(account) = account else { return Ok(None) };
        match judged {
            Pin::Right => self.store.put_pin_tries(account, 0).map(|()| None),
            Pin::Wrong => {
                let Some(held) = self.store.held_pin(account)? else { return Ok(None) };
                let tries = held.tries.saturating_add(1);
                if !planted(Canary::PinTriesNotCounted) {
                    self.store.put_pin_tries(account, tries)?;
                }
                Ok(Some(tries))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use feiqian_protocol::pin::{PinDigest, PinHash, PinKey};

    use super::*;

    const CHOSEN: PinGeneration = PinGeneration([1; 16]);
    const OTHER: PinGeneration = PinGeneration([2; 16]);

    fn digest(pin: u8) -> PinDigest {
        PinKey::new([7; 32]).digest(CHOSEN, &PinHash::new([pin; 32]))
    }

    fn entered(generation: PinGeneration, pin: u8) -> Pin {
        Pin::Entered { generation, digest: digest(pin) }
    }

    #[test]
    fn only_the_pin_that_the_document_names_is_judged() {
        let held = HeldPin { generation: CHOSEN, digest: digest(1), tries: 2 };
        assert_eq!(judge(Pin::Absent, None, None), Ok(Pin::Absent));
        assert_eq!(judge(entered(CHOSEN, 1), Some(CHOSEN), Some(&held)), Ok(Pin::Right));
        assert_eq!(judge(entered(CHOSEN, 2), Some(CHOSEN), Some(&held)), Ok(Pin::Wrong));
        for (entered, paying, held) in [
            (entered(CHOSEN, 1), None, Some(&held)),
            (entered(CHOSEN, 1), Some(OTHER), Some(&held)),
            (entered(OTHER, 1), Some(CHOSEN), Some(&held)),
            (entered(CHOSEN, 1), Some(CHOSEN), None),
            (Pin::NotHashed, Some(CHOSEN), Some(&held)),
            (Pin::NotHashed, None, None),
        ] {
            assert_eq!(judge(entered, paying, held), Err(DeclineReason::PinNotSet));
        }
        let locked = HeldPin { tries: PIN_TRIES_MAX, ..held };
        for entered in [entered(CHOSEN, 1), entered(CHOSEN, 2), Pin::NotHashed] {
            assert_eq!(judge(entered, Some(CHOSEN), Some(&locked)), Err(DeclineReason::PinLocked));
        }
    }
}
