//! The first steps of every touch: the application is selected, and the card says who it is.

use super::apdu::{AnswerError, Command, data, split_answer};
use super::file::{CARD_BYTES, CARD_SFI, CardData, CardDataError};
use super::profile::{CardProfile, CardProfiles};
use super::status::StatusWord;
use super::values::CardSerial;

/// What is to be done next, and handed back as an [`Event`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step<T> {
    /// Send this to the card.
    Transmit(Command),
    /// Write this down, durably: [`Event::Persisted`] says that it is.
    Persist(Box<super::journal::JournalEntry>),
    /// It is over.
    Done(T),
}

/// What has happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event<'a> {
    /// The card's answer, status word included.
    Answer(&'a [u8]),
    /// The card is gone, or its answer is.
    Lost,
    /// The journal's entry is on disk.
    Persisted,
}

/// A card that is served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identified {
    /// Its data.
    pub card: CardData,
    /// Its profile.
    pub profile: CardProfile,
}

/// Why a card is not served.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdentifyError {
    /// No purse application of ours.
    #[error("this card has no purse of ours")]
    NoApplication,
    /// The application is locked.
    #[error("the card's purse is locked")]
    Locked,
    /// The application is blocked for ever.
    #[error("the card's purse is blocked for ever")]
    Blocked,
    /// No profile.
    #[error("card {0} is not served here")]
    NoProfile(CardSerial),
    /// The card's data are malformed.
    #[error(transparent)]
    Data(#[from] CardDataError),
    /// The card refused, or answered what it may not.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The card went away.
    #[error("the card was taken away too early")]
    Lost,
}

/// Selects, then reads the card's data.
#[derive(Debug)]
pub struct Identify<'a> {
    profiles: &'a CardProfiles,
    selected: bool,
}

impl<'a> Identify<'a> {
    /// Begins; the first thing to send.
    pub fn start(profiles: &'a CardProfiles) -> (Self, Command) {
        let select = Command::SelectName(profiles.application().as_bytes().to_vec());
        (Self { profiles, selected: false }, select)
    }

    /// Takes what happened.
    pub fn handle(&mut self, event: Event<'_>) -> Step<Result<Identified, IdentifyError>> {
        let Event::Answer(answer) = event else {
            return Step::Done(Err(IdentifyError::Lost));
        };
        if !self.selected {
            return match selected(answer) {
                Ok(()) => {
                    self.selected = true;
                    Step::Transmit(Command::ReadBinary { sfi: CARD_SFI, offset: 0, length: CARD_BYTES as u8 })
                }
                Err(error) => Step::Done(Err(error)),
            };
        }
        Step::Done(self.identified(answer))
    }

    fn identified(&self, answer: &[u8]) -> Result<Identified, IdentifyError> {
        let card = CardData::decode(data(answer, CARD_BYTES)?)?;
        let profile = self.profiles.of(card.serial).ok_or(IdentifyError::NoProfile(card.serial))?;
        Ok(Identified { card, profile: profile.clone() })
    }
}

/// The FCI itself is not needed: the card's data are read.
fn selected(answer: &[u8]) -> Result<(), IdentifyError> {
    match split_answer(answer) {
        Some((StatusWord::Done, _)) => Ok(()),
        Some((StatusWord::NoFile, [])) => Err(IdentifyError::NoApplication),
        Some((StatusWord::ApplicationLocked, [])) => Err(IdentifyError::Locked),
        Some((StatusWord::Blocked, [])) => Err(IdentifyError::Blocked),
        Some((status, [])) => Err(AnswerError::Status(status).into()),
        _ => Err(AnswerError::Malformed { expected: 2, got: answer.len() }.into()),
    }
}
