//! By what people pay: accounts, purses on cards, and phones with vouchers.
//!
//! **Account**: a card's number, and whatever the building may spend for it. **Purse**: everything in the account is collected
//! onto the card at a connected terminal before a purchase that would leave less than ¥20 on it; a purchase is paid from it, whoever is connected, or,
//! where it does not suffice, from what is left in the account, the account's way. Purses are modelled here by these rules; what they collect leaves the account by a purchase with the PIN at the
//! centre. **Phone**: the shipping cores. The phone is online throughout, fetches a voucher before it pays, shows a code, and
//! brings the receipt.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Context, Result};
use feiqian_protocol::chain::hex;
use feiqian_protocol::code::{Code, PhoneAlgorithm, PhoneSecret, SignedVoucher};
use feiqian_protocol::ids::{CardNumber, Key};
use feiqian_protocol::limits::VOUCHER_CEILING_FEN_DEFAULT;
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::io::Command;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::college::What;
use super::stage::{Workload, card};

/// A purse that a purchase would leave with less collects what is in the account, in fen.
const COLLECTS_BELOW_FEN: i64 = 2_000;

/// By what a campus pays.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Instruments {
    /// Everybody by their account.
    #[default]
    Account,
    /// Everybody by a purse.
    Card,
    /// 70 % by a purse, 25 % by phone, 5 % by their account.
    Mix,
}

impl Instruments {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Card => "card",
            Self::Mix => "mix",
        }
    }

    /// By what somebody pays.
    pub const fn of(self, person: usize) -> Instrument {
        match (self, person % 20) {
            (Self::Account, _) | (Self::Mix, 19) => Instrument::Account,
            (Self::Card, _) | (Self::Mix, 0..=13) => Instrument::Purse,
            (Self::Mix, _) => Instrument::Phone,
        }
    }
}

impl FromStr for Instruments {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Account, Self::Card, Self::Mix].into_iter().find(|known| known.name() == text);
        known.ok_or_else(|| format!("{text:?} is nothing to pay by (account, card, mix)"))
    }
}

/// By what one person pays.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Instrument {
    /// The account.
    Account,
    /// A purse.
    Purse,
    /// A phone.
    Phone,
}

/// What people carry.
#[derive(Clone, Debug)]
pub struct Carried {
    /// By what they pay.
    pub instruments: Instruments,
    /// What is in purses, by person.
    pub purse: Vec<i64>,
    phones: BTreeMap<u32, Phone>,
}

#[derive(Clone, Debug, Default)]
struct Phone {
    voucher: Option<SignedVoucher>,
    /// The last voucher that has paid.
    spent: Option<u32>,
    /// The last counter of each voucher.
    counters: BTreeMap<u32, u16>,
}

impl Carried {
    /// What is carried at a time, everything having been connected before: what people have in all, by these rules.
    pub fn at(instruments: Instruments, workload: &Workload, at: Timestamp) -> Self {
        let people = workload.opening.len();
        let (mut purse, mut account) = (vec![0; people], workload.opening.clone());
        for event in workload.between(Timestamp(i64::MIN), at) {
            let person = event.person as usize;
            match event.what {
                What::TopUp { fen } => account[person] += fen,
                What::Buy { .. } if instruments.of(person) != Instrument::Purse => {}
                What::Buy { fen, .. } => {
                    if purse[person] < fen + COLLECTS_BELOW_FEN {
                        purse[person] += std::mem::take(&mut account[person]);
                    }
                    if purse[person] >= fen {
                        purse[person] -= fen;
                    }
                }
            }
        }
        Self { instruments, purse, phones: BTreeMap::new() }
    }

    /// By what somebody pays.
    pub const fn of(&self, person: u32) -> Instrument {
        self.instruments.of(person as usize)
    }

    /// True where a purse collects what is in the account, before it pays at a connected terminal.
    pub fn collects(&self, person: u32, fen: i64) -> bool {
        self.of(person) == Instrument::Purse && self.purse[person as usize] < fen + COLLECTS_BELOW_FEN
    }

    /// What a phone asks the centre for before it pays.
    ///
    /// # Errors
    /// Where its key makes no card.
    pub fn fetch(&self, person: u32) -> Result<Command> {
        let after = self.phones.get(&person).and_then(|phone| phone.spent);
        let card = virtual_card(person)?;
        Ok(Command::Voucher { card, life_minutes: None, ceiling_fen: VOUCHER_CEILING_FEN_DEFAULT, after })
    }

    /// Keeps what the centre answered.
    ///
    /// # Errors
    /// Where that is no voucher.
    pub fn keep(&mut self, person: u32, answer: &Value) -> Result<()> {
        let text = answer["voucher"].as_str().context("an answer without a voucher")?;
        let voucher = SignedVoucher::from_text(text)?;
        self.phones.entry(person).or_default().voucher = Some(voucher);
        Ok(())
    }

    /// A fresh code; absent where there is no voucher.
    ///
    /// # Errors
    /// Where the time is none that a code can carry.
    pub fn code(&mut self, person: u32, at: Timestamp) -> Result<Option<Code>> {
        let Some(phone) = self.phones.get_mut(&person) else { return Ok(None) };
        let Some(voucher) = &phone.voucher else { return Ok(None) };
        let counter = phone.counters.entry(voucher.voucher().number).or_default();
        *counter += 1;
        let time = u32::try_from(at.0.div_euclid(1_000)).context("the time")?;
        Ok(Code::sign(voucher, &secret(person)?, time, *counter))
    }

    /// Its voucher has paid.
    pub fn spent(&mut self, person: u32, voucher: u32) {
        if let Some(phone) = self.phones.get_mut(&person) {
            phone.spent = Some(voucher);
        }
    }
}

/// The key of somebody's phone: always the same one.
fn secret(person: u32) -> Result<PhoneSecret> {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&person.to_be_bytes());
    PhoneSecret::new(PhoneAlgorithm::Ed25519, &seed).context("a phone's key")
}

/// Its virtual card.
///
/// # Errors
/// Where the key is none.
pub fn virtual_card(person: u32) -> Result<CardNumber> {
    Ok(CardNumber::of_phone(&secret(person)?.key()))
}

/// The command that makes it one of its owner's account.
///
/// # Errors
/// Where a name is none.
pub fn activate(person: u32) -> Result<Command> {
    Ok(Command::ActivateVirtualCard {
        card: card(person)?,
        algorithm: PhoneAlgorithm::Ed25519.name().to_owned(),
        key: hex(secret(person)?.key().as_bytes()),
        operator: Key::new("app").context("a name")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_seventy_to_twenty_five_to_five() {
        let count = |wanted| (0..2_000).filter(|person| Instruments::Mix.of(*person) == wanted).count();
        assert_eq!([Instrument::Purse, Instrument::Phone, Instrument::Account].map(count), [1_400, 500, 100]);
        assert!((0..40).all(|person| Instruments::Card.of(person) == Instrument::Purse));
        assert_eq!("mix".parse(), Ok(Instruments::Mix));
        assert!("cash".parse::<Instruments>().is_err());
    }
}
