//! What changes of settings mean, and who may write them.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::enrol::Role;
use crate::ids::{CardNumber, Key};
use crate::money::Fen;
use crate::pin::PinGeneration;

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
}

impl Intent {
    /// True for changes that take possibilities away: these act at once wherever they are made. Limits are what they were before or
    /// less where a node sets them ([`AccountSettings::check_narrowing`]).
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
            Self::ReportLoss { .. } | Self::SetLimits { .. } => matches!(role, Role::Kiosk | Role::Desk),
            Self::VoidCard { .. } | Self::Freeze { .. } => matches!(role, Role::Desk),
            _ => false,
        }
    }
}
