//! What is written down before a card is told to move money, so that what became of it can be found out at its next touch.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::key::Algorithm;
use super::mac::Terms;
use super::values::{CardSerial, Mac};

/// A purchase at its terminal, written before DEBIT is sent; or a load at the centre, written before MAC2 leaves.
///
/// There is at most one unresolved entry per card and place: what is open is resolved before anything new is begun.
#[derive(Clone, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct JournalEntry {
    /// The card.
    #[n(0)]
    pub serial: CardSerial,
    /// How its MACs are computed.
    #[n(1)]
    pub algorithm: Algorithm,
    /// Version of the key that was used.
    #[n(2)]
    pub key_version: u8,
    /// What was to be done.
    #[n(3)]
    pub terms: Terms,
    /// What went to the card: MAC1 of a purchase, MAC2 of a load.
    #[n(4)]
    pub mac: Mac,
}
