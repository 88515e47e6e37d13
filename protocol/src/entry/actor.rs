//! Who did it, and what showed that it was them.

use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::ids::Key;

/// Who did it, and what showed that it was them.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Actor {
    /// What acted.
    #[n(0)]
    pub kind: ActorKind,
    /// Which one: the terminal's name, the operator's, the channel's.
    #[n(1)]
    pub id: Key,
    /// What showed it.
    #[n(2)]
    pub proof: Proof,
}

impl Actor {
    /// The centre acting by its own rules.
    pub fn centre() -> Self {
        Self { kind: ActorKind::System, id: Key::new("centre").expect("a valid name"), proof: Proof::None }
    }

    /// A node acting by its own rules.
    pub fn node() -> Self {
        Self { kind: ActorKind::System, id: Key::new("node").expect("a valid name"), proof: Proof::None }
    }
}

/// Kinds of actor.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// The software, by rule.
    #[n(0)]
    System,
    /// A POS, a door, a meter.
    #[n(1)]
    Terminal,
    /// A cashier at a desk.
    #[n(2)]
    Cashier,
    /// The holder.
    #[n(3)]
    Holder,
    /// A kiosk.
    #[n(4)]
    Kiosk,
    /// An operator at the centre.
    #[n(5)]
    Operator,
    /// A top-up channel.
    #[n(6)]
    Channel,
}

/// What showed that the actor was who it says.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Nothing beyond being authenticated as a device or process.
    #[n(0)]
    None,
    /// A card was presented.
    #[n(1)]
    Card,
    /// A card, and the right payment PIN.
    #[n(2)]
    CardAndPin,
    /// A signed code from a phone.
    #[n(3)]
    Code,
    /// An operator's login.
    #[n(4)]
    Login,
    /// A signed code, and the right payment PIN.
    #[n(5)]
    CodeAndPin,
}

impl Proof {
    /// True where the payment PIN was entered.
    pub const fn has_pin(self) -> bool {
        matches!(self, Self::CardAndPin | Self::CodeAndPin)
    }
}
