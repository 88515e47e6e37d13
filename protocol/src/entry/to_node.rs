//! What the centre writes into the stream for a node: rights, what prices a stand-in, PINs, answers.

use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::enrol::Role;
use crate::ids::{AccountId, Epoch, Key, NodeId, NodeName, Wallet};
use crate::money::Fen;
use crate::pin::{PinDigest, PinGeneration};
use crate::time::{BusinessDay, Timestamp};

/// A session with the centre.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Anchor {
    /// Counts the sessions of this node, from 1.
    #[n(0)]
    pub session: u64,
    /// The centre's time.
    #[n(1)]
    pub time: Timestamp,
}

/// A spending right, or a stand-in, raised.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Grant {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The wallet.
    #[n(1)]
    pub wallet: Wallet,
    /// The epoch of the row.
    #[n(2)]
    pub epoch: Epoch,
    /// Fen granted by this entry.
    #[n(3)]
    pub amount: Fen,
    /// Fen granted to this row so far, this grant included. This is what counts.
    #[n(4)]
    pub total: Fen,
    /// The centre's time, so that an entry written under this grant is never ordered before it.
    #[n(5)]
    pub time: Timestamp,
}

/// A stand-in grant is a [`Grant`] of another kind; the wrapper keeps the two apart.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct StandInGrant(#[n(0)] pub Grant);

/// The centre wants the node to end its epoch.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct CloseRequest {
    /// The epoch.
    #[n(0)]
    pub epoch: Epoch,
}

/// The centre has closed an epoch by itself.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Closed {
    /// The epoch.
    #[n(0)]
    pub epoch: Epoch,
    /// The last position of the node's log that counts for it.
    #[n(1)]
    pub declared_head: u64,
}

/// A share of an account's daily no-PIN allowance raised, from a day on.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct ShareGrant {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The epoch of the row.
    #[n(1)]
    pub epoch: Epoch,
    /// The first day that it counts for.
    #[n(2)]
    pub from_day: BusinessDay,
    /// Fen a day, by this entry.
    #[n(3)]
    pub amount: Fen,
    /// Fen a day granted to this row so far over all labels, this grant included.
    #[n(4)]
    pub total: Fen,
    /// The centre's time.
    #[n(5)]
    pub time: Timestamp,
}

/// What a node needs to know of an account's habits to price a stand-in. Amounts in fen.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Hint {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// Mean spend per day at other nodes.
    #[n(1)]
    pub elsewhere_per_day: Fen,
    /// Mean purchase.
    #[n(2)]
    pub purchase_mean: Fen,
    /// Mean spend at other nodes in a meal period that has any.
    #[n(3)]
    pub elsewhere_per_meal: Fen,
    /// True where the account bought here within the history.
    #[n(4)]
    pub habit: bool,
    /// False for accounts too young, or with an open case: no stand-in.
    #[n(5)]
    pub seasoned: bool,
}

/// The stand-in that a node may use a business day, over all accounts.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Pool {
    /// The first day that it counts for; it stands for every later day until the next such entry.
    #[n(0)]
    pub from_day: BusinessDay,
    /// Fen a day.
    #[n(1)]
    pub per_day: Fen,
    /// Fen of it that are closed to accounts without a habit here.
    #[n(2)]
    pub habit_only: Fen,
}

/// The node that the stream is for, as the centre enrolled it. A centre that has come back from a copy of before learns of
/// the node from this.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct NodeEnrolled {
    /// Its number.
    #[n(0)]
    pub node: NodeId,
    /// Its name.
    #[n(1)]
    pub name: NodeName,
    /// What it may write.
    #[n(2)]
    pub role: Role,
    /// Counts the enrolments of the name.
    #[n(3)]
    pub incarnation: u32,
    /// Signs its log (Ed25519).
    #[cbor(n(4), with = "minicbor::bytes")]
    pub log_key: [u8; 32],
}

/// What this node compares PINs with. Of several for one account the newest counts, and wrong tries are counted anew from it.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct PinVerifiers {
    /// At most [`crate::limits::PIN_VERIFIERS_PER_ENTRY_MAX`].
    #[n(0)]
    pub verifiers: Vec<PinVerifier>,
}

/// What one PIN is compared with at one node.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct PinVerifier {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The PIN, as the account's document names it.
    #[n(1)]
    pub generation: PinGeneration,
    /// The digest of the right one, under the node's key.
    #[n(2)]
    #[serde(skip)]
    pub digest: PinDigest,
}

/// What became of a setting that a node wrote. Until it is applied, and the account's stream up to where it says, the node goes by
/// what it wrote.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct SettingAnswered {
    /// The position of the setting in the node's log.
    #[n(0)]
    pub position: u64,
    /// Where the account's stream has it.
    #[n(1)]
    pub stream_position: u64,
    /// Why it was refused, where it was: [`crate::account::AccountError::code`].
    #[n(2)]
    pub refused: Option<Key>,
}
