//! What nodes write into their logs.

use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::ids::{AccountId, CardNumber, Epoch, Key, Wallet};
use crate::issuance::SignedIssuance;
use crate::money::{Fen, UnitPrice};
use crate::tap::DeclineReason;
use crate::time::BusinessDay;

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
    /// The meal period that it counts in, if any, by the minute of the day at which that begins.
    #[n(13)]
    pub meal: Option<u16>,
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

/// Somebody wanted to change a payment PIN, and showed another one than there is.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct WrongPin {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// Wrong PINs in a row of this account at this node, this one included.
    #[n(1)]
    pub tries: u8,
}

/// A card that was not known here was presented with the centre's word for it. Until its account's stream has it, the node goes by
/// that.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct CardShown {
    /// The centre's word.
    #[n(0)]
    pub issuance: SignedIssuance,
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
