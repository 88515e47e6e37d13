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
//! | 50 | [`PurseLoad`] | shard | lowers a balance: money is on its way onto a card |
//! | 51 | [`PurseLoadSettled`] | shard | the card has it, or the balance is raised again |
//! | 52 | [`PurseReturned`] | shard | raises a balance by what was left on a withdrawn card |
//! | 60 | [`CloseOrdered`] | shard | where a closed account's money goes; not critical |
//! | 61 | [`Payout`] | shard | lowers a balance |
//! | 70 | [`HoldPlaced`] | shard | the centre holds money for a voucher; not critical |
//! | 71 | [`HoldMoved`] | shard | less of it is held, and the voucher pays no more; not critical |

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::account::Intent;
use crate::enrol::Role;
use crate::ids::{AccountId, CampusId, CardNumber, Epoch, Key, LogId, NodeId, NodeName, Wallet};
use crate::limits::RECORD_BYTES_MAX;
use crate::money::{Fen, UnitPrice};
use crate::pin::{PinDigest, PinGeneration};
pub use crate::purse::entry::{PurseLoad, PurseLoadSettled, PurseLoaded, PursePurchase, PurseReturned};
use crate::tap::DeclineReason;
use crate::time::{BusinessDay, Hlc, Timestamp};

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

/// The part of a tap's key that the actor (the terminal) does not already say.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct TapRef {
    /// The terminal's epoch.
    #[n(0)]
    pub epoch: u32,
    /// The terminal's sequence.
    #[n(1)]
    pub sequence: Key,
}

/// A measured quantity and the tariff that priced it.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Measured {
    /// Units (grams, litres, minutes).
    #[n(0)]
    pub quantity: u32,
    /// Price per unit.
    #[n(1)]
    pub unit_price: UnitPrice,
    /// Version of the campus configuration that the price is from.
    #[n(2)]
    pub tariff_version: u32,
}

/// Which code was used, in the entry of what it was used for.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct CodeUse {
    /// The number of the voucher.
    #[n(0)]
    pub voucher: u32,
    /// The counter of the code.
    #[n(1)]
    pub counter: u16,
    /// When the voucher ends, in Unix seconds: some time after it nobody need remember the counter.
    #[n(2)]
    pub until: u32,
}

/// Money spent from one wallet by one tap. A tap may write several, subsidy before cash.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Debit {
    /// The tap.
    #[n(0)]
    pub tap: TapRef,
    /// The account.
    #[n(1)]
    pub account: AccountId,
    /// The wallet.
    #[n(2)]
    pub wallet: Wallet,
    /// The node's epoch.
    #[n(3)]
    pub epoch: Epoch,
    /// Fen covered by the node's spending right.
    #[n(4)]
    pub from_right: Fen,
    /// Fen beyond it, covered by granted stand-in.
    #[n(5)]
    pub stand_in: Fen,
    /// Fen counted against the day's no-PIN allowance.
    #[n(6)]
    pub allowance: Fen,
    /// The business day at the node; labels the allowance.
    #[n(7)]
    pub day: BusinessDay,
    /// Who is paid.
    #[n(8)]
    pub merchant: u16,
    /// The card.
    #[n(9)]
    pub card: CardNumber,
    /// Where the amount came from a tariff; on the first debit of a tap only.
    #[n(10)]
    pub measured: Option<Measured>,
    /// The code, where one was presented in place of a card; on every debit of the tap.
    #[n(11)]
    pub code: Option<CodeUse>,
    /// Fen that the code's voucher held at the centre. A debit that has any is of nothing else; what a purchase takes beyond it is a
    /// debit of its own.
    #[n(12)]
    pub from_voucher: Option<Fen>,
}

impl Debit {
    /// The whole debit: right, stand-in, or what a voucher held.
    pub fn amount(&self) -> Fen {
        self.from_right.saturating_add(self.stand_in).saturating_add(self.of_voucher())
    }

    /// What of it a voucher held.
    pub fn of_voucher(&self) -> Fen {
        self.from_voucher.unwrap_or_default()
    }
}

/// A debit given back, whole or in part, by the node that wrote it.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Reversal {
    /// The reversal's own key.
    #[n(0)]
    pub tap: TapRef,
    /// Position of the debit in this log.
    #[n(1)]
    pub debit: u64,
    /// The debit's account.
    #[n(2)]
    pub account: AccountId,
    /// The debit's wallet.
    #[n(3)]
    pub wallet: Wallet,
    /// The node's *current* epoch.
    #[n(4)]
    pub epoch: Epoch,
    /// Fen that are the node's right again; only where the debit's epoch is the open one.
    #[n(5)]
    pub right_back: Fen,
    /// Fen of right, or of what a voucher held, that go home to the centre.
    #[n(6)]
    pub right_home: Fen,
    /// Fen of stand-in that go home; stand-in never comes back to the node.
    #[n(7)]
    pub stand_in_home: Fen,
    /// Fen of the debit's day's allowance that may be used again.
    #[n(8)]
    pub allowance_back: Fen,
    /// The debit's day.
    #[n(9)]
    pub day: BusinessDay,
}

impl Reversal {
    /// All that is given back.
    pub fn amount(&self) -> Fen {
        self.right_back.saturating_add(self.right_home).saturating_add(self.stand_in_home)
    }
}

/// Spending right given back.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Release {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The wallet.
    #[n(1)]
    pub wallet: Wallet,
    /// The node's epoch.
    #[n(2)]
    pub epoch: Epoch,
    /// Fen released.
    #[n(3)]
    pub amount: Fen,
    /// Fen released by this row so far, this release included.
    #[n(4)]
    pub released_total: Fen,
}

/// Cash taken in at a cut-off desk, within its drawer limit.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct TakenIn {
    /// The desk's key for it.
    #[n(0)]
    pub tap: TapRef,
    /// The account.
    #[n(1)]
    pub account: AccountId,
    /// The wallet.
    #[n(2)]
    pub wallet: Wallet,
    /// The node's epoch.
    #[n(3)]
    pub epoch: Epoch,
    /// Fen taken in.
    #[n(4)]
    pub amount: Fen,
}

/// All rows of an epoch are nothing from here on.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct EpochEnd {
    /// The epoch that ends.
    #[n(0)]
    pub epoch: Epoch,
}

/// A tap that was declined.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Decline {
    /// The tap.
    #[n(0)]
    pub tap: TapRef,
    /// The account, where the card is known.
    #[n(1)]
    pub account: Option<AccountId>,
    /// The card.
    #[n(2)]
    pub card: CardNumber,
    /// Fen asked for; 0 for access.
    #[n(3)]
    pub amount: Fen,
    /// Why.
    #[n(4)]
    pub reason: DeclineReason,
    /// True for access.
    #[n(5)]
    pub access: bool,
    /// Wrong PINs in a row of this account at this node, this one included, where a wrong PIN was the reason.
    #[n(6)]
    pub pin_tries: Option<u8>,
}

/// A door opened.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Access {
    /// The tap.
    #[n(0)]
    pub tap: TapRef,
    /// The account.
    #[n(1)]
    pub account: AccountId,
    /// The card.
    #[n(2)]
    pub card: CardNumber,
    /// The code, where one was presented in place of a card.
    #[n(3)]
    pub code: Option<CodeUse>,
}

/// Allowance given back, from a day on.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct ShareRelease {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The node's epoch.
    #[n(1)]
    pub epoch: Epoch,
    /// The first day that it is missing from.
    #[n(2)]
    pub from_day: BusinessDay,
    /// Fen a day.
    #[n(3)]
    pub amount: Fen,
}

/// A reversal came before its tap: the tap will be declined.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Tombstone {
    /// The reversal's own key.
    #[n(0)]
    pub tap: TapRef,
    /// The tap that it reversed; same terminal.
    #[n(1)]
    pub original: TapRef,
}

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
}

/// A log and how far it is posted.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct PostedHead {
    /// The log.
    #[n(0)]
    pub log: LogId,
    /// Posted up to here.
    #[n(1)]
    pub position: u64,
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

/// A stand-in grant is a [`Grant`] of another kind; the wrapper keeps the two apart.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct StandInGrant(#[n(0)] pub Grant);

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
    PurseLoad(PurseLoad) = 50, critical true, "purse_load";
    PurseLoadSettled(PurseLoadSettled) = 51, critical true, "purse_load_settled";
    PurseReturned(PurseReturned) = 52, critical true, "purse_returned";
    CloseOrdered(CloseOrdered) = 60, critical false, "close_ordered";
    Payout(Payout) = 61, critical true, "payout";
    HoldPlaced(HoldPlaced) = 70, critical false, "hold_placed";
    HoldMoved(HoldMoved) = 71, critical false, "hold_moved";
}

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
