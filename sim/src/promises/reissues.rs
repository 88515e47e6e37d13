//! Cards that are given out for others.

use feiqian_protocol::account::{AccountSettings, CardStatus};
use feiqian_protocol::ids::CardNumber;
use feiqian_protocol::purse::values::CardSerial;

use super::Promise;
use super::books::{Checked, Finding};
use super::ledger::Ledger;

/// Where another card was said to be given out, that is the one that is good, and the old one is not.
///
/// # Errors
/// What an account's settings say instead.
pub fn check(ledger: &Ledger, account: usize, settings: &AccountSettings) -> Checked {
    let Some(reissue) = ledger.reissues.get(&account).filter(|reissue| reissue.told_ns.is_some()) else {
        return Ok(());
    };
    let status = |card: &CardNumber| settings.cards.get(card);
    // Somebody may have copied the new one, too, where it has a purse.
    let copied =
        |card: &CardNumber| status(card) == Some(&CardStatus::Void) && CardSerial::of_card(card).is_some();
    let good = status(&reissue.card) == Some(&CardStatus::Active) || copied(&reissue.card);
    if status(&reissue.old) == Some(&CardStatus::Void) && good {
        return Ok(());
    }
    let (old, new) = (&reissue.old, &reissue.card);
    let text = format!("{new} was given out for {old}, and they are {:?} and {:?}", status(new), status(old));
    Err(Finding::new(Promise::Reissue, text))
}
