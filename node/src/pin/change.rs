//! A holder changes the payment PIN in this building, cut off or not, by showing the one that there is.
//!
//! What was typed is judged here where this node holds a verifier, and by the centre in any case: both PINs go there sealed, with
//! the log. Until word of the new one comes from there, the one before is the account's PIN, here as elsewhere.

use feiqian_protocol::account::{AccountSettings, Intent};
use feiqian_protocol::entry::WrongPin;
use feiqian_protocol::ids::{AccountId, CardNumber};
use feiqian_protocol::limits::PIN_TRIES_MAX;
use feiqian_protocol::pin::{PinDigest, PinGeneration, SealedPins};

use crate::core::NodeCore;
use crate::io::{Now, SettingError};
use crate::settings::SettingRequest;
use crate::store::StoreError;
use crate::store::settings::OwnSetting;

/// What the holder has typed, as the shell has hashed it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewPin {
    /// The PIN that was shown: which one it was hashed for, and what it gives; nothing where the account had none, and the
    /// initial PIN of those who told no ID number was typed.
    pub shown: Option<(PinGeneration, PinDigest)>,
    /// The name of the new one, drawn at random.
    pub generation: PinGeneration,
    /// Both, for the centre.
    pub typed: SealedPins,
}

/// What a PIN that is shown is to be hashed for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PinToShow {
    /// The account.
    pub account: AccountId,
    /// The PIN that it has; none where its holder told no ID number.
    pub generation: Option<PinGeneration>,
}

impl NodeCore {
    /// What is to be shown before the PIN of this card's account is changed.
    pub(crate) fn pin_to_show(
        &self,
        card: &CardNumber,
    ) -> Result<Result<PinToShow, SettingError>, StoreError> {
        let Some(account) = self.store.account_of(card) else { return Ok(Err(SettingError::UnknownCard)) };
        let Some(settings) = self.store.settings(account)? else {
            return Ok(Err(SettingError::UnknownCard));
        };
        Ok(only_pin(&settings).map(|generation| PinToShow { account, generation }))
    }

    /// Whether the PIN that was shown is the one that there is, as far as this node can tell. A wrong one counts as it does
    /// with a purchase.
    pub(crate) fn check_new_pin(
        &mut self,
        now: &Now,
        account: AccountId,
        new: &NewPin,
        settings: &AccountSettings,
        waiting: &[OwnSetting],
        request: &SettingRequest,
    ) -> Result<Result<(), SettingError>, StoreError> {
        let current = match only_pin(settings) {
            Ok(current) => current,
            Err(error) => return Ok(Err(error)),
        };
        if new.shown.map(|(generation, _)| generation) != current {
            return Ok(Err(refused("pin_changed", "the PIN was changed meanwhile; try again")));
        }
        if waiting.iter().any(|own| matches!(own.intent, Intent::SetPin { .. })) {
            return Ok(Err(refused("pin_waits", "a change of this PIN waits for the centre already")));
        }
        let held = self.store.held_pin(account)?.filter(|held| Some(held.generation) == current);
        let (Some(held), Some((_, digest))) = (held, new.shown) else { return Ok(Ok(())) };
        if held.tries >= PIN_TRIES_MAX {
            return Ok(Err(refused("pin_locked", "too many wrong PINs; an operator can unlock or reset it")));
        }
        if digest == held.digest {
            self.store.put_pin_tries(account, 0)?;
            return Ok(Ok(()));
        }
        let tries = held.tries + 1;
        self.append(now, self.author(request), WrongPin { account, tries }.into())?;
        self.store.put_pin_tries(account, tries)?;
        Ok(Err(refused("wrong_pin", "the PIN is wrong")))
    }
}

/// The only PIN of an account, if it has any.
fn only_pin(settings: &AccountSettings) -> Result<Option<PinGeneration>, SettingError> {
    let mut pins = settings.pins.keys();
    match (pins.next(), pins.next()) {
        (current, None) => Ok(current.copied()),
        _ => Err(refused(
            "pin_unconfirmed",
            "the account has several PINs; one must be confirmed at the centre first",
        )),
    }
}

fn refused(code: &'static str, message: &str) -> SettingError {
    SettingError::Refused { code, message: message.to_owned() }
}
