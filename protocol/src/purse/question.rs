//! What a node asks the centre in a load, and what it is told.
//!
//! ```text
//! Load(INITIALIZE's answer) -> Authorized(time, MAC2)   the card is credited; its TAC goes into the node's log
//!                           -> Unresolved(load, number) the card has an older load of which nobody knows what became: it is
//!                                                       probed under the number, and
//! Evidence(what it said)    -> Settled                  then the terminal begins anew
//! Open(card)                -> Unresolved, or Settled(Nothing)   asked at any touch of a card of which the terminal is in doubt
//! ```
//!
//! An answer that lets money go names the entry by which it does. A node passes it on only once it has that entry itself, so
//! that a centre which comes back from an old copy finds it with a building.

use minicbor::{Decode, Encode};
use serde::Serialize;

use super::journal::JournalEntry;
use super::load::LoadRequest;
use super::recovery::Evidence;
use super::values::{CardSerial, CardTime, Mac, TerminalNumber};
use crate::ids::LogId;

/// A node asks; it numbers its questions within a session.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct PurseAsk {
    /// The node's number of it.
    #[n(0)]
    pub request: u64,
    /// Milliseconds until nobody waits for the answer.
    #[n(1)]
    pub ms_left: u64,
    /// What.
    #[n(2)]
    pub question: PurseQuestion,
}

/// What a node asks.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub enum PurseQuestion {
    /// May this card have this amount?
    #[n(0)]
    Load(#[n(0)] LoadRequest),
    /// What a card said of its older load.
    #[n(1)]
    Evidence(#[n(0)] CardSerial, #[n(1)] Evidence),
    /// Has this card a load of which nobody knows what became?
    #[n(2)]
    Open(#[n(0)] CardSerial),
}

/// The centre answers.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct PurseAnswer {
    /// The node's number of the question.
    #[n(0)]
    pub request: u64,
    /// What.
    #[n(1)]
    pub reply: PurseReply,
    /// The entry that must be at the node before it acts on the answer.
    #[n(2)]
    pub after: Option<StreamPlace>,
}

/// A position of one of the centre's streams.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct StreamPlace {
    /// The stream.
    #[n(0)]
    pub log: LogId,
    /// The position.
    #[n(1)]
    pub position: u64,
}

/// What the centre says.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub enum PurseReply {
    /// Credit the card.
    #[n(0)]
    Authorized(#[n(0)] CardTime, #[n(1)] Mac),
    /// Probe the card about this load first, under this number in place of a terminal's.
    #[n(1)]
    Unresolved(#[n(0)] JournalEntry, #[n(1)] TerminalNumber),
    /// The older load is settled.
    #[n(2)]
    Settled(#[n(0)] LoadFate),
    /// Nothing moves.
    #[n(3)]
    Refused(#[n(0)] PurseRefusal),
}

/// What became of a load.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum LoadFate {
    /// The card has the money.
    #[n(0)]
    Done,
    /// It never happened; the account has the money.
    #[n(1)]
    Reversed,
    /// It is still not known.
    #[n(2)]
    InTransit,
    /// There is no load that is not settled.
    #[n(3)]
    Nothing,
}

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal, $en:literal, $zh:literal;)*) => {
        /// Why the centre lets nothing onto a card.
        #[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
        #[cbor(index_only)]
        pub enum PurseRefusal {
            $($(#[doc = $doc])+ #[n($number)] $variant,)*
        }

        impl PurseRefusal {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What a terminal shows, in English.
            pub const fn text_en(self) -> &'static str {
                match self { $(Self::$variant => $en,)* }
            }

            /// What a terminal shows, in Chinese.
            pub const fn text_zh(self) -> &'static str {
                match self { $(Self::$variant => $zh,)* }
            }
        }
    };
}

refusals! {
    /// The centre has no keys for purses.
    NotServed = 0, "not_served", "Cards are not loaded here", "本校未开通圈存";
    /// No account has this card, or no profile.
    UnknownCard = 1, "unknown_card", "Unknown card", "无效卡";
    /// The card was replaced or withdrawn.
    Void = 2, "void", "Card void", "卡已作废";
    /// The card is reported lost.
    Lost = 3, "lost", "Card reported lost", "卡已挂失";
    /// The account is frozen.
    Frozen = 4, "frozen", "Account frozen", "账户已冻结";
    /// The account is closed.
    Closed = 5, "closed", "Account closed", "账户已销户";
    /// The account has less than that.
    Insufficient = 6, "insufficient", "Insufficient balance", "余额不足";
    /// Part of the money is with buildings that cannot be asked, or did not answer in time.
    Elsewhere = 7, "elsewhere", "Try again later", "资金暂不可用，请稍后再试";
    /// Zero, or more than a purse may hold.
    Amount = 8, "amount", "Amount not possible", "金额超限";
    /// The card's proof (MAC1) is wrong.
    WrongProof = 9, "wrong_proof", "Card not accepted", "卡片校验失败";
    /// The card says another algorithm or key version than its profile.
    Misfit = 10, "misfit", "Card not accepted", "卡片类型不符";
    /// The card's counter is exhausted: it must be exchanged.
    Worn = 11, "worn", "Please exchange the card", "卡片需更换";
    /// The card and the books disagree; a person must look.
    Disagrees = 12, "disagrees", "Please see the card office", "卡账不符，请到卡务中心处理";
    /// The building's role lets it load nothing.
    Role = 13, "role", "Not possible here", "此处不能办理";
    /// The account's last day is over.
    Expired = 14, "expired", "Account expired", "账户已过有效期";
}
