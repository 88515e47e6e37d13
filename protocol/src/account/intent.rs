//! What changes of settings mean, and who may write them.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::enrol::Role;
use crate::ids::{CardNumber, Key};
use crate::limits::NAME_BYTES_MAX;
use crate::money::Fen;
use crate::pin::PinGeneration;
use crate::time::BusinessDay;

/// What a change of settings means. The change itself must do this and no more.
#[derive(Clone, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// A card was lost.
    #[n(0)]
    ReportLoss {
        /// The card.
        #[n(0)]
        card: CardNumber,
        /// A key of this report, unique in the account.
        #[n(1)]
        loss: Key,
    },
    /// A lost card was found: these reports, all of one card, are withdrawn.
    #[n(1)]
    LiftLoss {
        /// The card.
        #[n(0)]
        card: CardNumber,
        /// The reports that the author had seen.
        #[n(1)]
        losses: Vec<Key>,
    },
    /// The account's no-PIN limits.
    #[n(2)]
    SetLimits {
        /// Fen per purchase.
        #[n(0)]
        single: Fen,
        /// Fen per business day.
        #[n(1)]
        daily: Fen,
    },
    /// A card is given out for the account.
    #[n(3)]
    IssueCard {
        /// The card.
        #[n(0)]
        card: CardNumber,
    },
    /// A card is no longer valid, for ever.
    #[n(4)]
    VoidCard {
        /// The card.
        #[n(0)]
        card: CardNumber,
    },
    /// No purchases.
    #[n(5)]
    Freeze {
        /// A key of this order, unique in the account.
        #[n(0)]
        key: Key,
    },
    /// A freeze is withdrawn.
    #[n(6)]
    Unfreeze {
        /// The orders that the author had seen.
        #[n(0)]
        keys: Vec<Key>,
    },
    /// The account ends.
    #[n(7)]
    Close,
    /// Membership of a group (doors, price lists).
    #[n(8)]
    JoinGroup {
        /// The group.
        #[n(0)]
        group: Key,
    },
    /// Membership ends.
    #[n(9)]
    LeaveGroup {
        /// The group.
        #[n(0)]
        group: Key,
    },
    /// A phone's key becomes a virtual card of the account. It ends as cards do, by [`Intent::VoidCard`].
    #[n(20)]
    ActivateVirtualCard {
        /// [`CardNumber::of_phone`] of the key.
        #[n(0)]
        card: CardNumber,
        /// The key; see [`phone_text`].
        #[n(1)]
        phone: Key,
    },
    /// The holder has chosen a payment PIN. It is named here and told nowhere.
    #[n(10)]
    SetPin {
        /// The new one.
        #[n(0)]
        generation: PinGeneration,
        /// Those that the author had seen.
        #[n(1)]
        replaces: Vec<PinGeneration>,
    },
    /// The payment PIN is the initial one again, which opens nothing but its own change.
    #[n(11)]
    ResetPin {
        /// The new one.
        #[n(0)]
        generation: PinGeneration,
        /// Those that the author had seen.
        #[n(1)]
        replaces: Vec<PinGeneration>,
    },
    /// Of several PINs the holder has shown this one.
    #[n(12)]
    ConfirmPin {
        /// The one that stays.
        #[n(0)]
        generation: PinGeneration,
        /// The others that the author had seen.
        #[n(1)]
        others: Vec<PinGeneration>,
    },
    /// The last business day on which the account's cards pay and open doors; absent for no end.
    #[n(35)]
    SetValidity {
        /// That day.
        #[n(0)]
        until: Option<BusinessDay>,
    },
    /// The holder is of another patron class from now on: other prices.
    #[n(36)]
    SetClass {
        /// Its name.
        #[n(0)]
        class: String,
    },
    /// Something about the holder; nothing where the value is absent.
    #[n(30)]
    Describe {
        /// What.
        #[n(0)]
        field: HolderField,
        /// See [`HolderField`].
        #[n(1)]
        value: Option<String>,
    },
    /// A card is given out for the account that pays nothing and opens nothing until it is activated.
    #[n(31)]
    IssueInactiveCard {
        /// The card.
        #[n(0)]
        card: CardNumber,
    },
    /// The holder has picked a card up that is not active yet.
    #[n(32)]
    HandOverCard {
        /// The card.
        #[n(0)]
        card: CardNumber,
    },
    /// A card that was inactive is good from now on.
    #[n(33)]
    ActivateCard {
        /// The card.
        #[n(0)]
        card: CardNumber,
    },
    /// A card of an older system goes on to open the doors of one group, and pays nothing.
    #[n(34)]
    IssueLegacyCard {
        /// The card.
        #[n(0)]
        card: CardNumber,
        /// The group.
        #[n(1)]
        group: Key,
    },
}

/// What a document tells of the holder, in text of 1 to [`crate::limits::NAME_BYTES_MAX`] bytes without control characters.
#[derive(
    Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum HolderField {
    /// The holder's name.
    #[n(0)]
    Name,
    /// The number that the institution knows the holder by (学工号).
    #[n(1)]
    Number,
    /// Department or college: pick-up lists go by it.
    #[n(2)]
    Department,
    /// With whom the account was opened: a year, a term.
    #[n(3)]
    Batch,
    /// The phone whose number was verified: digits, after a plus where the country is named.
    #[n(4)]
    Phone,
    /// Kinds of notices that the holder wants, by name, with spaces between.
    #[n(5)]
    Notices,
    /// The user of the app or another channel whom the account is bound to, as that channel names them.
    #[n(6)]
    User,
}

impl HolderField {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Name, Self::Number, Self::Department, Self::Batch, Self::Phone, Self::Notices, Self::User];

    /// The stable name, in documents and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Number => "number",
            Self::Department => "department",
            Self::Batch => "batch",
            Self::Phone => "phone",
            Self::Notices => "notices",
            Self::User => "user",
        }
    }

    /// Whether a text is one for this field.
    pub fn takes(self, text: &str) -> bool {
        if text.is_empty()
            || text.len() > NAME_BYTES_MAX
            || text.trim() != text
            || text.chars().any(char::is_control)
        {
            return false;
        }
        let is_key = |word: &str| Key::new(word).is_ok();
        match self {
            Self::Name | Self::Department | Self::Batch => true,
            Self::Number | Self::User => is_key(text),
            Self::Phone => {
                let digits = text.strip_prefix('+').unwrap_or(text);
                (5..=PHONE_DIGITS_MAX).contains(&digits.len())
                    && digits.bytes().all(|digit| digit.is_ascii_digit())
            }
            Self::Notices => text.split(' ').all(is_key),
        }
    }
}

/// Digits of a phone number at most (ITU-T E.164).
const PHONE_DIGITS_MAX: usize = 15;

impl Intent {
    /// True for changes that take possibilities away: these act at once wherever they are made. Limits are what they were before or
    /// less where a node sets them ([`AccountSettings::check_of_node`]).
    pub const fn narrows(&self) -> bool {
        matches!(
            self,
            Self::ReportLoss { .. }
                | Self::VoidCard { .. }
                | Self::Freeze { .. }
                | Self::Close
                | Self::LeaveGroup { .. }
        )
    }

    /// Whether a node of this role may write it.
    pub const fn is_open_to(&self, role: Role) -> bool {
        match self {
            Self::ReportLoss { .. } | Self::SetLimits { .. } | Self::SetPin { .. } => {
                matches!(role, Role::Kiosk | Role::Desk)
            }
            Self::VoidCard { .. } | Self::Freeze { .. } => matches!(role, Role::Desk),
            _ => false,
        }
    }
}
