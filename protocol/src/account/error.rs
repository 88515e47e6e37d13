//! Why a document or a change is refused.

use automerge::AutomergeError;

use crate::limits::{AMOUNT_FEN_MAX, DOCUMENT_BYTES_MAX, NAME_BYTES_MAX};

/// Why a document or a change is refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// Not an automerge document or change.
    #[error("not a valid document or change")]
    Automerge(#[from] AutomergeError),
    /// A change that is malformed or lacks the changes it builds on.
    #[error("the change is malformed or builds on changes that are not here")]
    Change,
    /// The document is not shaped as the table of this module says.
    #[error("the document has no {0:?} of the expected form")]
    Shape(&'static str),
    /// Too large.
    #[error("the document has {0} bytes, more than {DOCUMENT_BYTES_MAX}")]
    TooLarge(usize),
    /// It would become too large.
    #[error("there is no room in the document: it would have {0} bytes")]
    NoRoom(usize),
    /// Not the form of a document, or far more in it than fits an account.
    #[error("not a document of a size that is read")]
    TooCostly,
    /// A patron class that is empty, or longer than [`NAME_BYTES_MAX`].
    #[error("a patron class must have 1 to {NAME_BYTES_MAX} bytes")]
    Class,
    /// An intent about a card that the account does not have.
    #[error("the account has no such card")]
    NoSuchCard,
    /// A lift of a card that is not reported lost.
    #[error("the card is not reported lost")]
    NotLost,
    /// A key that is already used in the account.
    #[error("this key was used before")]
    KeyUsed,
    /// A limit below zero or above [`AMOUNT_FEN_MAX`].
    #[error("a limit must be from 0 to {AMOUNT_FEN_MAX} yuan")]
    LimitOutOfRange,
    /// A virtual card whose number is not that of its key, or a card with the number of one.
    #[error("the number of a virtual card must be that of its phone's key, and no other card's")]
    NotVirtual,
    /// A phone's key that is a virtual card of the account already.
    #[error("the phone's key is, or was, a virtual card of this account")]
    PhoneUsed,
    /// An intent about a PIN that the account does not have.
    #[error("the account has no such PIN")]
    NoSuchPin,
    /// More PINs at once than [`crate::limits::PINS_PER_ACCOUNT_MAX`].
    #[error("the account has too many unconfirmed PINs")]
    TooManyPins,
    /// A card that is not one that waits for its activation.
    #[error("the card does not wait for its activation")]
    NotInactive,
    /// A text about the holder that is none for its field.
    #[error(
        "{0}: 1 to {NAME_BYTES_MAX} bytes without control characters are expected; a number or user without spaces, a phone in digits"
    )]
    HolderField(&'static str),
    /// The account is closed: reading is left, and reports of loss.
    #[error("the account is closed")]
    Closed,
    /// A node may not write such a change.
    #[error("a building of the role {0} may not change this")]
    Role(&'static str),
    /// A building can lower a limit, and not raise it.
    #[error("a limit can be lowered here, and raised at the centre only")]
    LimitRaised,
    /// There is no such account.
    #[error("there is no such account")]
    NoSuchAccount,
}

impl AccountError {
    /// The stable code of a refusal.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoSuchCard => "no_such_card",
            Self::NoSuchPin => "no_such_pin",
            Self::TooManyPins => "too_many_pins",
            Self::NotLost => "not_lost",
            Self::KeyUsed => "key_used",
            Self::LimitOutOfRange => "limit_out_of_range",
            Self::LimitRaised => "limit_raised",
            Self::Closed => "closed",
            Self::NotInactive => "not_inactive",
            Self::HolderField(_) => "holder_field",
            Self::NoRoom(_) | Self::TooLarge(_) => "no_room",
            Self::Role(_) => "role",
            Self::Class => "class",
            Self::NoSuchAccount => "no_such_account",
            Self::NotVirtual => "not_virtual",
            Self::PhoneUsed => "phone_used",
            Self::Automerge(_) | Self::Change | Self::Shape(_) | Self::TooCostly => "malformed",
        }
    }
}
