//! The entries of every log: what is on disk, under a signature and on the wire, to the byte.
//!
//! A **record** is one entry as bytes: the CBOR array (RFC 8949, definite lengths, shortest integers)
//! `[kind, critical, clock, campus, [actor kind, actor id, proof], body bytes]`. The body is again an array, whose
//! fields are the numbered ones of the structs below. Evolution: new fields are appended (older readers skip them),
//! existing ones never change; a new fact gets a new kind. A reader that does not know a kind keeps the record; where
//! the record says *critical*, it also stops posting that log until it is updated.
//!
//! The institution, the writer and the position are not in the record: they are in its log and in the hash link
//! ([`crate::chain`]), which covers them. The position of the centre stream that had been applied, and the last
//! centre-signed time, stand in the signed head of the commit.
//!
//! | kind | entry | log | effect |
//! |---|---|---|---|
//! | 1 | [`Debit`] | node | spends right, stand-in and allowance |
//! | 2 | [`Reversal`] | node | gives back a debit, or part of it |
//! | 3 | [`Release`] | node | gives right back to the centre |
//! | 4 | [`TakenIn`] | node | cash taken in at a cut-off desk |
//! | 5 | [`EpochEnd`] | node | ends all rows of an epoch |
//! | 6 | [`Decline`] | node | none; not critical |
//! | 7 | [`Access`] | node | none |
//! | 8 | [`ShareRelease`] | node | gives allowance back to the centre |
//! | 9 | [`Tombstone`] | node | declines a tap that comes after its reversal |
//! | 10 | [`PursePurchase`] | node | a card's purse has paid |
//! | 11 | [`PurseLoaded`] | node | a card's purse has taken a load |
//! | 12 | [`WrongPin`] | node | none; not critical |
//! | 13 | [`CardShown`] | node | none at the centre: a card is known there that was not; not critical |
//! | 20 | [`Anchor`] | to node | opens a session |
//! | 21, 22 | [`Grant`] | to node | raises a spending right; a stand-in |
//! | 23 | [`CloseRequest`] | to node | asks for an epoch end |
//! | 24 | [`Closed`] | to node | says that an epoch was closed |
//! | 25 | [`ShareGrant`] | to node | raises an allowance share |
//! | 26 | [`Hint`] | to node | what prices a stand-in; not critical |
//! | 27 | [`Pool`] | to node | stand-in of all accounts together, a day |
//! | 28 | [`NodeEnrolled`] | to node | none: who the stream is for, as its first entry; not critical |
//! | 29 | [`PinVerifiers`] | to node | what PINs are compared with there; not critical |
//! | 35 | [`SettingAnswered`] | to node | a setting that it wrote is in the account's stream, or refused |
//! | 40 | [`AccountOpened`] | shard | creates the account and its document |
//! | 41 | [`Setting`] | shard, node | an intent and the change that carries it out |
//! | 42 | [`Credit`] | shard | raises a balance |
//! | 43 | [`Posted`] | shard | what nodes did, as balance deltas |
//! | 44 | [`CaseMoved`] | shard | a case's target, bearer, recovery |
//! | 45 | [`Refund`] | shard | gives a tap back at the risk fund's cost |
//! | 46 | [`CampusPublished`] | shard 0 | a new campus configuration |
//! | 47 | [`DocumentRenewed`] | shard | puts a shorter document that says the same in the place of an account's |
//! | 50 | [`PurseLoad`] | shard | lowers a balance: money is on its way onto a card |
//! | 51 | [`PurseLoadSettled`] | shard | the card has it, or the balance is raised again |
//! | 52 | [`PurseReturned`] | shard | raises a balance by what was left on a withdrawn card |
//! | 53 | [`PurseCaseDecided`] | shard | raises a balance where a purchase of a card is given back |
//! | 60 | [`CloseOrdered`] | shard | where a closed account's money goes; not critical |
//! | 61 | [`Payout`] | shard | lowers a balance |
//! | 70 | [`HoldPlaced`] | shard | the centre holds money for a voucher; not critical |
//! | 71 | [`HoldMoved`] | shard | less of it is held, and the voucher pays no more; not critical |

mod actor;
mod node;
mod shard;
mod to_node;

use serde::Serialize;

pub use self::actor::{Actor, ActorKind, Proof};
pub use self::node::{
    Access, CardShown, CodeUse, Debit, Decline, EpochEnd, Measured, Release, Reversal, ShareRelease, TakenIn,
    TapRef, Tombstone, WrongPin,
};
pub use self::shard::{
    AccountOpened, Bearer, CampusPublished, CaseMoved, CaseReason, CloseOrdered, Credit, Delta,
    DocumentRenewed, EntryRef, HoldMoved, HoldPlaced, Lost, Payout, Posted, PostedHead, Refund, Setting,
};
pub use self::to_node::{
    Anchor, CloseRequest, Closed, Grant, Hint, NodeEnrolled, PinVerifier, PinVerifiers, Pool,
    SettingAnswered, ShareGrant, StandInGrant,
};
use crate::ids::CampusId;
use crate::limits::RECORD_BYTES_MAX;
pub use crate::purse::entry::{
    PurseCaseDecided, PurseLoad, PurseLoadSettled, PurseLoaded, PursePurchase, PurseReturned, PurseSide,
};
use crate::time::Hlc;

/// One entry of a log.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Entry {
    /// The writer's clock; never falls within a log.
    pub clock: Hlc,
    /// The campus where it happened.
    pub campus: CampusId,
    /// Who did it.
    pub actor: Actor,
    /// What happened.
    pub body: Body,
}

/// Why bytes are no entry.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Longer than [`RECORD_BYTES_MAX`].
    #[error("the record has {0} bytes, more than {RECORD_BYTES_MAX}")]
    TooLong(usize),
    /// Not the CBOR of an entry.
    #[error("the record is malformed")]
    Malformed(#[from] minicbor::decode::Error),
    /// Something follows the entry, or its body.
    #[error("the record has bytes after its end")]
    TrailingBytes,
}

impl Entry {
    /// The record: the entry's bytes. Equal entries have equal bytes.
    pub fn to_record(&self) -> Vec<u8> {
        let body = self.body.to_bytes();
        let mut out = Vec::with_capacity(body.len() + 112);
        let mut e = minicbor::Encoder::new(&mut out);
        let written = (|| {
            e.array(6)?.u16(self.body.kind())?.bool(self.body.critical())?.u64(self.clock.to_bits())?;
            e.u8(self.campus.0)?.encode(&self.actor)?.bytes(&body)?;
            Ok::<(), minicbor::encode::Error<core::convert::Infallible>>(())
        })();
        written.expect("writing to a Vec cannot fail");
        out
    }

    /// The entry of a record.
    ///
    /// # Errors
    /// [`RecordError`] for bytes that are no entry. A kind that this build does not know is no error.
    pub fn from_record(record: &[u8]) -> Result<Self, RecordError> {
        if record.len() > RECORD_BYTES_MAX {
            return Err(RecordError::TooLong(record.len()));
        }
        let mut d = minicbor::Decoder::new(record);
        let fields = d.array()?.ok_or_else(|| minicbor::decode::Error::message("indefinite length"))?;
        if fields < 6 {
            return Err(minicbor::decode::Error::message("fewer than six fields").into());
        }
        let kind = d.u16()?;
        let critical = d.bool()?;
        let clock = Hlc::from_bits(d.u64()?);
        let campus = CampusId(d.u8()?);
        let actor = d.decode()?;
        let body = Body::from_bytes(kind, critical, d.bytes()?)?;
        for _ in 6..fields {
            d.skip()?;
        }
        if d.position() != record.len() {
            return Err(RecordError::TrailingBytes);
        }
        Ok(Self { clock, campus, actor, body })
    }
}

macro_rules! bodies {
    ($($variant:ident($body:ty) = $kind:literal, critical $critical:literal, $name:literal;)*) => {
        /// What an entry says. The table at the top of the module has the kinds.
        #[derive(Clone, Debug, Eq, PartialEq, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Body {
            $(
                #[doc = concat!("Kind ", stringify!($kind), ".")]
                $variant($body),
            )*
            /// A kind that this build does not know, kept as it is.
            Unknown {
                /// The kind.
                kind: u16,
                /// Whether posting must stop here.
                critical: bool,
                /// The body's bytes.
                #[serde(skip)]
                body: Vec<u8>,
            },
        }

        impl Body {
            /// The stable number of the kind.
            pub const fn kind(&self) -> u16 {
                match self { $(Self::$variant(_) => $kind,)* Self::Unknown { kind, .. } => *kind }
            }

            /// The stable name of the kind, as exports show it.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)* Self::Unknown { .. } => "unknown" }
            }

            /// Whether a reader that does not know the kind must stop posting this log.
            pub const fn critical(&self) -> bool {
                match self { $(Self::$variant(_) => $critical,)* Self::Unknown { critical, .. } => *critical }
            }

            fn to_bytes(&self) -> Vec<u8> {
                match self {
                    $(Self::$variant(body) => {
                        // Most bodies fit, and what grows step by step is copied at each.
                        let mut bytes = Vec::with_capacity(96);
                        minicbor::encode(body, &mut bytes).expect("writing to a Vec cannot fail");
                        bytes
                    })*
                    Self::Unknown { body, .. } => body.clone(),
                }
            }

            fn from_bytes(kind: u16, critical: bool, bytes: &[u8]) -> Result<Self, RecordError> {
                let mut d = minicbor::Decoder::new(bytes);
                let body = match kind {
                    $($kind => d.decode::<$body>().map(Self::$variant)?,)*
                    _ => return Ok(Self::Unknown { kind, critical, body: bytes.to_vec() }),
                };
                if d.position() != bytes.len() {
                    return Err(RecordError::TrailingBytes);
                }
                Ok(body)
            }
        }

        $(impl From<$body> for Body {
            fn from(body: $body) -> Self {
                Self::$variant(body)
            }
        })*
    };
}

bodies! {
    Debit(Debit) = 1, critical true, "debit";
    Reversal(Reversal) = 2, critical true, "reversal";
    Release(Release) = 3, critical true, "release";
    TakenIn(TakenIn) = 4, critical true, "taken_in";
    EpochEnd(EpochEnd) = 5, critical true, "epoch_end";
    Decline(Decline) = 6, critical false, "decline";
    Access(Access) = 7, critical false, "access";
    ShareRelease(ShareRelease) = 8, critical true, "share_release";
    Tombstone(Tombstone) = 9, critical false, "tombstone";
    PursePurchase(PursePurchase) = 10, critical true, "purse_purchase";
    PurseLoaded(PurseLoaded) = 11, critical true, "purse_loaded";
    WrongPin(WrongPin) = 12, critical false, "wrong_pin";
    CardShown(CardShown) = 13, critical false, "card_shown";
    Anchor(Anchor) = 20, critical true, "anchor";
    Grant(Grant) = 21, critical true, "grant";
    StandInGrant(StandInGrant) = 22, critical true, "stand_in_grant";
    CloseRequest(CloseRequest) = 23, critical true, "close_request";
    Closed(Closed) = 24, critical true, "closed";
    ShareGrant(ShareGrant) = 25, critical true, "share_grant";
    Hint(Hint) = 26, critical false, "hint";
    Pool(Pool) = 27, critical true, "pool";
    NodeEnrolled(NodeEnrolled) = 28, critical false, "node_enrolled";
    PinVerifiers(PinVerifiers) = 29, critical false, "pin_verifiers";
    SettingAnswered(SettingAnswered) = 35, critical true, "setting_answered";
    AccountOpened(AccountOpened) = 40, critical true, "account_opened";
    Setting(Setting) = 41, critical true, "setting";
    Credit(Credit) = 42, critical true, "credit";
    Posted(Posted) = 43, critical true, "posted";
    CaseMoved(CaseMoved) = 44, critical true, "case_moved";
    Refund(Refund) = 45, critical true, "refund";
    CampusPublished(CampusPublished) = 46, critical true, "campus_published";
    DocumentRenewed(DocumentRenewed) = 47, critical true, "document_renewed";
    PurseLoad(PurseLoad) = 50, critical true, "purse_load";
    PurseLoadSettled(PurseLoadSettled) = 51, critical true, "purse_load_settled";
    PurseReturned(PurseReturned) = 52, critical true, "purse_returned";
    PurseCaseDecided(PurseCaseDecided) = 53, critical true, "purse_case_decided";
    CloseOrdered(CloseOrdered) = 60, critical false, "close_ordered";
    Payout(Payout) = 61, critical true, "payout";
    HoldPlaced(HoldPlaced) = 70, critical false, "hold_placed";
    HoldMoved(HoldMoved) = 71, critical false, "hold_moved";
}
