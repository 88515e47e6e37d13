//! What stands in the streams of accounts: settings, money in and out, what nodes did as balances, cases.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::account::Intent;
use crate::chain::Hash;
use crate::ids::{AccountId, CardNumber, Key, LogId, Wallet};
use crate::money::Fen;
use crate::pin::SealedPins;
use crate::time::BusinessDay;

/// An account and its document.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct AccountOpened {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The document as the centre created it (automerge, saved).
    #[n(1)]
    #[serde(skip)]
    pub document: ByteVec,
    /// False for an account too young for stand-in. Those taken over from elsewhere are as old as they were there.
    #[n(2)]
    pub seasoned: bool,
}

/// A change of settings.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Setting {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The epoch of the document that the change is made on.
    #[n(1)]
    pub document_epoch: u32,
    /// What is meant.
    #[n(2)]
    pub intent: Intent,
    /// The automerge change that carries it out.
    #[n(3)]
    #[serde(skip)]
    pub change: ByteVec,
    /// With [`Intent::SetPin`] in a node's log: what was typed there, for the centre to judge.
    #[n(4)]
    #[serde(skip)]
    pub typed: Option<SealedPins>,
    /// In an account's stream: the entry of the node that wrote it, where one did.
    #[n(5)]
    pub of: Option<EntryRef>,
}

/// The account's document, begun anew: it says what the one before said, without how it came to that.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct DocumentRenewed {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The new document (automerge, saved); its epoch is one above that of the one before.
    #[n(1)]
    #[serde(skip)]
    pub document: ByteVec,
}

/// Money in.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Credit {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The wallet.
    #[n(1)]
    pub wallet: Wallet,
    /// Fen.
    #[n(2)]
    pub amount: Fen,
    /// Where it came from: `migration`, `counter`, `alipay`, …
    #[n(3)]
    pub channel: Key,
    /// The channel's own id of it; the same one credits once.
    #[n(4)]
    pub key: Key,
}

/// What nodes did, as changes of balances, and up to where.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Posted {
    /// For each log with something in this batch: every entry up to this position that touches this shard is posted.
    #[n(0)]
    pub heads: Vec<PostedHead>,
    /// Changes of balances, sorted by account and wallet.
    #[n(1)]
    pub deltas: Vec<Delta>,
    /// What of the named logs is not here, and so not posted; absent where nothing was lost.
    #[n(2)]
    pub lost: Option<Vec<Lost>>,
}

/// Entries of a log that came altered: only the head over them is known.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Lost {
    /// The log.
    #[n(0)]
    pub log: LogId,
    /// The first of them.
    #[n(1)]
    pub first: u64,
    /// The last.
    #[n(2)]
    pub last: u64,
}

/// A log and how far it is posted. The hash says of which history of the log that is true, whatever name the history goes
/// by: a centre that comes back from an old copy may have given it another one, and a node's box may have been copied.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct PostedHead {
    /// The log.
    #[n(0)]
    pub log: LogId,
    /// Posted up to here.
    #[n(1)]
    pub position: u64,
    /// The hash of the entry there.
    #[cbor(n(2), with = "minicbor::bytes")]
    #[serde(skip)]
    pub hash: Hash,
}

/// One change of a balance.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Delta {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The wallet.
    #[n(1)]
    pub wallet: Wallet,
    /// Fen; negative for spending.
    #[n(2)]
    pub amount: Fen,
}

/// The entry in a node's log (or a branch of it) that a case or a refund is about.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct EntryRef {
    /// The log.
    #[n(0)]
    pub log: LogId,
    /// The position.
    #[n(1)]
    pub position: u64,
}

/// Who bears a loss.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum Bearer {
    /// Nobody yet: not all nodes have been heard.
    #[n(0)]
    Suspense,
    /// The account's holder owes it.
    #[n(1)]
    Holder,
    /// The institution's risk fund.
    #[n(2)]
    RiskFund,
}

impl Bearer {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Suspense, Self::Holder, Self::RiskFund];

    /// The stable name used in files and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Suspense => "suspense",
            Self::Holder => "holder",
            Self::RiskFund => "risk_fund",
        }
    }
}

/// Why there is a case.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum CaseReason {
    /// Approved beyond the funds, by stand-in.
    #[n(0)]
    StandIn,
    /// Approved by a node after the head declared at its forced close, or on a refused branch.
    #[n(1)]
    AfterClose,
    /// Paid with a card after its loss was reported.
    #[n(2)]
    Loss,
    /// A node debited more than its right and stand-in.
    #[n(3)]
    NodeFault,
    /// Paid with a code that had been used at another building.
    #[n(4)]
    CodeReplayed,
    /// Paid with a voucher whose money was not held any more: it had paid before, or it came after its time.
    #[n(5)]
    VoucherNotHeld,
}

impl CaseReason {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::StandIn,
        Self::AfterClose,
        Self::Loss,
        Self::NodeFault,
        Self::CodeReplayed,
        Self::VoucherNotHeld,
    ];

    /// True for debits that the holder has back from the risk fund, up to its cap, rather than owes.
    pub const fn is_refunded(self) -> bool {
        matches!(self, Self::Loss | Self::CodeReplayed)
    }

    /// The stable name used in files and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StandIn => "stand_in",
            Self::AfterClose => "after_close",
            Self::Loss => "loss",
            Self::NodeFault => "node_fault",
            Self::CodeReplayed => "code_replayed",
            Self::VoucherNotHeld => "voucher_not_held",
        }
    }
}

/// A movement of a case: totals as they are after it.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct CaseMoved {
    /// The debit that the case is about.
    #[n(0)]
    pub debit: EntryRef,
    /// The account.
    #[n(1)]
    pub account: AccountId,
    /// The wallet.
    #[n(2)]
    pub wallet: Wallet,
    /// Why.
    #[n(3)]
    pub reason: CaseReason,
    /// Who bears it.
    #[n(4)]
    pub bearer: Bearer,
    /// Fen of the debit that were overspent.
    #[n(5)]
    pub opened: Fen,
    /// Fen of it recovered from the holder.
    #[n(6)]
    pub recovered: Fen,
}

/// A debit given back to the holder at the cost of the risk fund.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Refund {
    /// The debit.
    #[n(0)]
    pub debit: EntryRef,
    /// The account.
    #[n(1)]
    pub account: AccountId,
    /// The wallet.
    #[n(2)]
    pub wallet: Wallet,
    /// Fen; negative where a refund is taken back because the node itself reversed the debit later.
    #[n(3)]
    pub amount: Fen,
    /// Why.
    #[n(4)]
    pub reason: CaseReason,
}

/// A closed account is to be paid out, as its money comes home. Its document was closed by the setting before.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct CloseOrdered {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// Who pays the holder's own money out: `counter`, a bank.
    #[n(1)]
    pub channel: Key,
    /// Where what is left of the subsidy goes.
    #[n(2)]
    pub subsidy_channel: Key,
}

/// Money out, of a closed account.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Payout {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The wallet.
    #[n(1)]
    pub wallet: Wallet,
    /// Fen.
    #[n(2)]
    pub amount: Fen,
    /// Who pays it out.
    #[n(3)]
    pub channel: Key,
}

/// A campus configuration, as the centre published it.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct CampusPublished {
    /// Grows by one with each publication.
    #[n(0)]
    pub version: u32,
    /// The configuration, as canonical JSON; see [`crate::campus::CampusConfig`].
    #[n(1)]
    #[serde(skip)]
    pub config: ByteVec,
}

/// The centre holds cash of an account for a voucher: it is nobody else's to spend. Nodes decide nothing by it.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct HoldPlaced {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The number of the voucher.
    #[n(1)]
    pub voucher: u32,
    /// Fen: the voucher's ceiling.
    #[n(2)]
    pub amount: Fen,
    /// When the voucher was issued, and when it ends, in Unix seconds.
    #[n(3)]
    pub issued: u32,
    /// See `issued`.
    #[n(4)]
    pub until: u32,
    /// The virtual card.
    #[n(5)]
    pub card: CardNumber,
    /// The first business day whose no-PIN allowance it counts against; the last is that of its end.
    #[n(6)]
    pub day: BusinessDay,
}

/// A voucher has paid, or cannot any more: what it spent stays held until the debit is ingested, the rest is free. No node
/// takes its money from here on.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct HoldMoved {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The number of the voucher.
    #[n(1)]
    pub voucher: u32,
    /// When the voucher ends, in Unix seconds.
    #[n(2)]
    pub until: u32,
    /// Fen that are held for the debit.
    #[n(3)]
    pub kept: Fen,
    /// The debit, by a receipt or as it was ingested; absent where the voucher's time is over.
    #[n(4)]
    pub debit: Option<EntryRef>,
}
