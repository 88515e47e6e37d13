//! What of purses stands in logs.
//!
//! A purchase is written by the node that its terminal reported it to, and the centre believes it by its TAC. Money of an account
//! goes onto a card by two entries of the account's stream: *in transit* when the centre gives MAC2 away, and *settled* when it
//! knows by the card's proof what became of it. What is in transit is nobody's to spend.
//!
//! **A purse card's number is its serial**, 20 hex digits in lower case: a card of an account like any other, which is
//! issued, lost and withdrawn by the account's document.

use minicbor::{Decode, Encode};
use serde::Serialize;

use super::mac::Terms;
use super::values::{
    CardSerial, CardTime, Counter, Kind, Mac, PurseFen, Random, TerminalNumber, TerminalSequence,
};
use crate::entry::{EntryRef, TapRef};
use crate::ids::{AccountId, CardNumber, NodeId, Wallet};
use crate::money::Fen;

impl CardSerial {
    /// The number of the card in its account.
    pub fn card_number(self) -> CardNumber {
        CardNumber::new(self.to_string()).expect("20 hex digits are a card number")
    }

    /// The serial of a card whose number is one.
    pub fn of_card(card: &CardNumber) -> Option<Self> {
        card.as_str().parse().ok().filter(|serial: &Self| serial.to_string() == card.as_str())
    }
}

/// A purchase that a card made (kind 10).
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct PursePurchase {
    /// The terminal's key of the report.
    #[n(0)]
    pub tap: TapRef,
    /// The card.
    #[n(1)]
    pub serial: CardSerial,
    /// Plain or compound.
    #[n(2)]
    pub kind: Kind,
    /// Fen.
    #[n(3)]
    pub amount: Fen,
    /// The offline counter before.
    #[n(4)]
    pub counter: Counter,
    /// Fen on the card before.
    #[n(5)]
    pub balance_before: Fen,
    /// The number of the terminal (of its SAM).
    #[n(6)]
    pub terminal: TerminalNumber,
    /// The number of the purchase there.
    #[n(7)]
    pub sequence: TerminalSequence,
    /// When, by the terminal.
    #[n(8)]
    pub time: CardTime,
    /// What the centre believes it by; absent where the card gave none.
    #[n(9)]
    pub tac: Option<Mac>,
    /// Who is paid.
    #[n(10)]
    pub merchant: u16,
    /// True where MAC2 was right, so that something was handed out for it.
    #[n(11)]
    pub proven: bool,
}

impl PursePurchase {
    /// What its TAC binds; `None` for amounts that no purse has. The card's random number, which no TAC binds, is zeros.
    pub fn terms(&self) -> Option<Terms> {
        if self.kind == Kind::Load {
            return None;
        }
        Some(Terms {
            kind: self.kind,
            amount: PurseFen::from_fen(self.amount)?,
            terminal: self.terminal,
            sequence: self.sequence,
            time: self.time,
            balance_before: PurseFen::from_fen(self.balance_before)?,
            counter: self.counter,
            random: Random::from_slice(&[0; 4]).expect("4 bytes are a random number"),
        })
    }
}

/// A card has taken a load (kind 11).
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct PurseLoaded {
    /// The card.
    #[n(0)]
    pub serial: CardSerial,
    /// The online counter before.
    #[n(1)]
    pub counter: Counter,
    /// What the centre believes it by.
    #[n(2)]
    pub tac: Mac,
}

/// Money on its way from an account to a purse (kind 50). It is written before MAC2 leaves the centre.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct PurseLoad {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The wallet.
    #[n(1)]
    pub wallet: Wallet,
    /// Fen.
    #[n(2)]
    pub amount: Fen,
    /// The card.
    #[n(3)]
    pub serial: CardSerial,
    /// The online counter before.
    #[n(4)]
    pub counter: Counter,
    /// Fen on the card before, as it has proven.
    #[n(5)]
    pub balance_before: Fen,
    /// Where.
    #[n(6)]
    pub terminal: TerminalNumber,
    /// When, in the card's form.
    #[n(7)]
    pub time: CardTime,
    /// The card's random number.
    #[n(8)]
    pub random: Random,
    /// Version of the load key.
    #[n(9)]
    pub key_version: u8,
    /// The node that asked.
    #[n(10)]
    pub node: NodeId,
    /// Fen of the balance before that the books did not know of, taken over from the system before.
    #[n(11)]
    pub taken_over: Fen,
}

impl PurseLoad {
    /// What its MACs bind; `None` for amounts that no purse has.
    pub fn terms(&self) -> Option<Terms> {
        Some(Terms {
            kind: Kind::Load,
            amount: PurseFen::from_fen(self.amount)?,
            terminal: self.terminal,
            sequence: TerminalSequence(0),
            time: self.time,
            balance_before: PurseFen::from_fen(self.balance_before)?,
            counter: self.counter,
            random: self.random,
        })
    }
}

/// What was left on a withdrawn card goes back to its account (kind 52).
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct PurseReturned {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The wallet.
    #[n(1)]
    pub wallet: Wallet,
    /// Fen.
    #[n(2)]
    pub amount: Fen,
    /// The card.
    #[n(3)]
    pub serial: CardSerial,
}

/// A person has decided a case of a purse's purchase (kind 53): what was paid or kept for it goes from one side to another.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct PurseCaseDecided {
    /// The purchase, by the entry of the node that reported it.
    #[n(0)]
    pub purchase: EntryRef,
    /// The card.
    #[n(1)]
    pub serial: CardSerial,
    /// Fen.
    #[n(2)]
    pub amount: Fen,
    /// Who was to be paid.
    #[n(3)]
    pub merchant: u16,
    /// Who gives it.
    #[n(4)]
    pub from: PurseSide,
    /// Who gets it.
    #[n(5)]
    pub to: PurseSide,
    /// The account of the card; absent where it is no card of this campus.
    #[n(6)]
    pub account: Option<AccountId>,
}

impl PurseCaseDecided {
    /// What it raises the account's balance by, where the holder has it back.
    pub fn given_back(&self) -> Option<(AccountId, Wallet, Fen)> {
        let account = self.account.filter(|_| self.to == PurseSide::Account)?;
        Some((account, Wallet::Cash, self.amount))
    }
}

/// Where the money of a case of a purse's purchase is.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum PurseSide {
    /// With nobody yet.
    #[n(0)]
    Suspense,
    /// The institution bears it.
    #[n(1)]
    RiskFund,
    /// The merchant has it.
    #[n(2)]
    Merchant,
    /// It is on the card.
    #[n(3)]
    Purse,
    /// It is in the account of the card, in cash.
    #[n(4)]
    Account,
}

impl PurseSide {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Suspense, Self::RiskFund, Self::Merchant, Self::Purse, Self::Account];
}

/// What became of a load (kind 51).
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct PurseLoadSettled {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// The wallet.
    #[n(1)]
    pub wallet: Wallet,
    /// Fen.
    #[n(2)]
    pub amount: Fen,
    /// The card.
    #[n(3)]
    pub serial: CardSerial,
    /// The position of the load in this stream.
    #[n(4)]
    pub load: u64,
    /// True where it never happened, and the account has its money back.
    #[n(5)]
    pub reversed: bool,
}
