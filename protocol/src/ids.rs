//! Identifiers. Each is a type of its own, so that the wrong one does not compile.

use std::fmt;
use std::str::FromStr;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::limits::{ACCOUNT_END, NAME_BYTES_MAX, SHARDS};

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
        )]
        #[cbor(transparent)]
        #[serde(transparent)]
        pub struct $name(#[n(0)] pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id! {
    /// One institution (university). Part of every log's identity.
    InstitutionId(u16)
}
number_id! {
    /// One campus of an institution.
    CampusId(u8)
}
number_id! {
    /// A building controller, numbered from 1 by the centre. 0 is the centre itself as a writer of logs.
    NodeId(u16)
}
/// An account, numbered by the centre from 1, below [`ACCOUNT_END`].
#[derive(Clone, Copy, Debug, Deserialize, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct AccountId(#[n(0)] pub u64);

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'b, C> Decode<'b, C> for AccountId {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        match d.u64()? {
            number if number < ACCOUNT_END => Ok(Self(number)),
            _ => Err(minicbor::decode::Error::message("no number of an account")),
        }
    }
}
number_id! {
    /// A number that grows with each closing of a node's rights; starts at 1.
    Epoch(u32)
}

impl AccountId {
    /// The shard of the centre's account streams that this account's entries are written to.
    pub const fn shard(self) -> u8 {
        (self.0 % SHARDS as u64) as u8
    }
}

impl NodeId {
    /// The centre as a writer.
    pub const CENTRE: Self = Self(0);
}

impl Epoch {
    /// The epoch of a newly enrolled node.
    pub const FIRST: Self = Self(1);

    /// The epoch after this one. The last number stays: an epoch that a peer names may be any.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A log: one writer's one stream of entries.
#[derive(
    Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct LogId {
    /// The institution.
    #[n(0)]
    pub institution: InstitutionId,
    /// Who writes it.
    #[n(1)]
    pub writer: NodeId,
    /// Which of the writer's streams; see [`LogId::node`], [`LogId::to_node`], [`LogId::shard`].
    #[n(2)]
    pub stream: u32,
}

/// Streams of the centre from this number on are account shards; below it, stream `n` is the one for node `n`.
const SHARD_STREAM_FIRST: u32 = 0x0001_0000;

impl LogId {
    /// What node `node` writes: stream 0, or a branch that the centre refused (stream `branch`, from 1).
    pub const fn node(institution: InstitutionId, node: NodeId) -> Self {
        Self { institution, writer: node, stream: 0 }
    }

    /// A refused continuation of a node's log, numbered from 1 by the centre.
    pub const fn branch(institution: InstitutionId, node: NodeId, branch: u32) -> Self {
        Self { institution, writer: node, stream: branch }
    }

    /// What the centre writes for node `node`: grants and answers.
    pub const fn to_node(institution: InstitutionId, node: NodeId) -> Self {
        Self { institution, writer: NodeId::CENTRE, stream: node.0 as u32 }
    }

    /// What the centre writes about the accounts of one shard.
    pub const fn shard(institution: InstitutionId, shard: u8) -> Self {
        Self { institution, writer: NodeId::CENTRE, stream: SHARD_STREAM_FIRST + shard as u32 }
    }

    /// The shard number, where this is an account shard of the centre.
    pub const fn as_shard(self) -> Option<u8> {
        if self.writer.0 == 0
            && self.stream >= SHARD_STREAM_FIRST
            && self.stream < SHARD_STREAM_FIRST + SHARDS as u32
        {
            Some((self.stream - SHARD_STREAM_FIRST) as u8)
        } else {
            None
        }
    }

    /// The destination, where this is one of the centre's streams for a node.
    pub const fn as_to_node(self) -> Option<NodeId> {
        if self.writer.0 == 0 && self.stream > 0 && self.stream < SHARD_STREAM_FIRST {
            Some(NodeId(self.stream as u16))
        } else {
            None
        }
    }

    /// One number for a table's key: writer in the upper half, stream in the lower (the institution is the same for
    /// everything in one database).
    pub const fn key(self) -> i64 {
        ((self.writer.0 as i64) << 32) | self.stream as i64
    }

    /// The log of [`LogId::key`].
    pub const fn from_key(institution: InstitutionId, key: i64) -> Self {
        Self { institution, writer: NodeId((key >> 32) as u16), stream: (key & 0xffff_ffff) as u32 }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.as_shard(), self.as_to_node()) {
            (Some(shard), _) => write!(f, "shard-{shard}"),
            (_, Some(node)) => write!(f, "to-node-{node}"),
            _ if self.stream == 0 => write!(f, "node-{}", self.writer),
            _ => write!(f, "node-{}-branch-{}", self.writer, self.stream),
        }
    }
}

/// A wallet of an account.
#[derive(
    Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum Wallet {
    /// The holder's own money.
    #[n(1)]
    Cash,
    /// Money given for a purpose (补助); spent before cash.
    #[n(2)]
    Subsidy,
}

impl Wallet {
    /// All wallets in the order in which a purchase uses them.
    pub const SPENDING_ORDER: [Self; 2] = [Self::Subsidy, Self::Cash];

    /// The stable number used in tables and on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Cash => 1,
            Self::Subsidy => 2,
        }
    }

    /// The wallet of a stable number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Cash),
            2 => Some(Self::Subsidy),
            _ => None,
        }
    }

    /// The stable name used in files and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cash => "cash",
            Self::Subsidy => "subsidy",
        }
    }
}

impl fmt::Display for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Wallet {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            "cash" => Ok(Self::Cash),
            "subsidy" => Ok(Self::Subsidy),
            _ => Err(NameError { text: text.to_owned(), why: "is no wallet (cash, subsidy)" }),
        }
    }
}

/// What a row of rights is counted in.
#[derive(
    Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Fen of a wallet.
    #[n(0)]
    Wallet(#[n(0)] Wallet),
    /// Fen of the account's no-PIN allowance of a business day.
    #[n(1)]
    Allowance,
}

impl Unit {
    /// The stable number used in tables: the wallet's, or 3.
    pub const fn number(self) -> u8 {
        match self {
            Self::Wallet(wallet) => wallet.number(),
            Self::Allowance => 3,
        }
    }
}

/// Why a text is no name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} {why}")]
pub struct NameError {
    text: String,
    why: &'static str,
}

impl NameError {
    pub(crate) fn new(text: &str, why: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), why }
    }
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 1 to 64 visible ASCII characters other than the comma and the quotes, so that it stands in a CSV field,
        /// a URL segment or a log line as it is.
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks length and characters.
            ///
            /// # Errors
            /// [`NameError`] says what is wrong.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                match name_fault(&text) {
                    None => Ok(Self(text)),
                    Some(why) => Err(NameError { text: text.chars().take(80).collect(), why }),
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                Self::new(d.str()?).map_err(|_| minicbor::decode::Error::message("malformed name"))
            }
        }
    };
}

name_id! {
    /// The name of a building controller, unique in the institution.
    NodeName
}
name_id! {
    /// A terminal (POS, door reader, meter, kiosk), unique in the institution.
    TerminalId
}
name_id! {
    /// The number that identifies a card (printed number or UID, as the institution registers it). Never logged.
    CardNumber
}
name_id! {
    /// Any other short text key: a tap's sequence, an external transaction id, a merchant.
    Key
}

fn name_fault(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        Some("is empty")
    } else if text.len() > NAME_BYTES_MAX {
        Some("is longer than 64 characters")
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b',' | b'"' | b'\'')) {
        Some("has characters other than visible ASCII without comma and quotes")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_keys_round_trip_and_kinds_of_log_are_told_apart() {
        let institution = InstitutionId(7);
        let logs = [
            LogId::node(institution, NodeId(3)),
            LogId::branch(institution, NodeId(3), 1),
            LogId::to_node(institution, NodeId(3)),
            LogId::shard(institution, 15),
        ];
        for log in logs {
            assert_eq!(LogId::from_key(institution, log.key()), log);
        }
        assert_eq!(logs[2].as_to_node(), Some(NodeId(3)));
        assert_eq!(logs[3].as_shard(), Some(15));
        assert_eq!(logs[0].as_shard(), None);
        assert_eq!(logs[0].as_to_node(), None);
    }

    #[test]
    fn a_name_is_short_visible_text() {
        assert!(CardNumber::new("c00001").is_ok());
        for bad in ["", "a b", "a,b", "名", "\"", &"x".repeat(65)] {
            assert!(CardNumber::new(bad).is_err(), "{bad:?}");
        }
    }
}
