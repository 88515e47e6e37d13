//! The issuance that a card carries in a file of its own: two bytes of length, then the bytes of [`SignedIssuance`].
//!
//! The file may be written by anybody, and torn: what stands in it is signed, and of this card, or counts as nothing.

use super::apdu::{AnswerError, Command, data, split_answer};
use super::identify::Identified;
use super::status::StatusWord;
use super::touch::Link;
use super::values::CardSerial;
use crate::issuance::SignedIssuance;

/// The longest issuance that goes into one command, behind its length.
const BYTES_MAX: usize = 253;

/// Why an issuance is not written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CarryError {
    /// The card's profile names no file for it.
    #[error("cards like {0} carry no issuance")]
    NoFile(CardSerial),
    /// It was signed for another card.
    #[error("this is not the issuance of card {0}")]
    OtherCard(CardSerial),
    /// It has more bytes than one command takes.
    #[error("an issuance of {0} bytes is too long for a card")]
    TooLong(usize),
    /// The card refused, or answered what it may not.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The card went away.
    #[error("the card was taken away too early")]
    Lost,
    /// What is read back is something else.
    #[error("the card does not keep what is written onto it")]
    NotKept,
}

/// What the card carries; `None` where that is nothing, or nothing of this card.
pub fn read(link: &mut dyn Link, identified: &Identified) -> Option<SignedIssuance> {
    let sfi = identified.profile.issuance?;
    let answer = link.transmit(&Command::ReadBinary { sfi, offset: 0, length: 0 }.encode())?;
    let (StatusWord::Done, file) = split_answer(&answer)? else { return None };
    let (length, rest) = file.split_first_chunk::<2>()?;
    let bytes = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
    SignedIssuance::from_bytes(bytes).ok().filter(|signed| is_of(signed, identified.card.serial))
}

/// Writes one, and reads it back.
///
/// # Errors
/// [`CarryError`].
pub fn write(
    link: &mut dyn Link,
    identified: &Identified,
    signed: &SignedIssuance,
) -> Result<(), CarryError> {
    let serial = identified.card.serial;
    let sfi = identified.profile.issuance.ok_or(CarryError::NoFile(serial))?;
    if !is_of(signed, serial) {
        return Err(CarryError::OtherCard(serial));
    }
    let bytes = signed.to_bytes();
    if bytes.len() > BYTES_MAX {
        return Err(CarryError::TooLong(bytes.len()));
    }
    let file = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
    let update = Command::UpdateBinary { sfi, offset: 0, data: file };
    let answer = link.transmit(&update.encode()).ok_or(CarryError::Lost)?;
    data(&answer, 0)?;
    match read(link, identified) {
        Some(kept) if kept == *signed => Ok(()),
        _ => Err(CarryError::NotKept),
    }
}

fn is_of(signed: &SignedIssuance, serial: CardSerial) -> bool {
    signed.issuance.card.as_str() == serial.to_string()
}
