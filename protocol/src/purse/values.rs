//! What purse transactions are made of: serials, amounts, counters, terminal numbers, BCD dates.

use std::fmt;
use std::str::FromStr;

use minicbor::{Decode, Decoder, Encode, Encoder};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::chain::{hex, unhex};
use crate::limits::AMOUNT_FEN_MAX;
use crate::money::Fen;
use crate::time::{Timestamp, civil_from_days};

/// Text that is not the value that it should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is no {what}")]
pub struct ValueError {
    text: String,
    what: &'static str,
}

macro_rules! hex_text {
    ($name:ident, $what:literal, $parse:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(self.as_ref()))
            }
        }

        impl FromStr for $name {
            type Err = ValueError;
            fn from_str(text: &str) -> Result<Self, ValueError> {
                let parse: fn(&[u8]) -> Option<Self> = $parse;
                unhex(text)
                    .and_then(|bytes| parse(&bytes))
                    .ok_or_else(|| ValueError { text: text.chars().take(64).collect(), what: $what })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        /// In logs and frames: the bytes.
        impl<C> Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(self.as_ref())?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let parse: fn(&[u8]) -> Option<Self> = $parse;
                parse(d.bytes()?).ok_or_else(|| minicbor::decode::Error::message(concat!("no ", $what)))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

/// The application serial of a purse (应用序列号): the card number, 10 bytes. Text: 20 hex digits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CardSerial(pub [u8; 10]);

impl CardSerial {
    /// The factor that diversifies keys in algorithm 00: the right 8 bytes.
    pub const fn factor(self) -> [u8; 8] {
        let [_, _, a, b, c, d, e, f, g, h] = self.0;
        [a, b, c, d, e, f, g, h]
    }
}

impl AsRef<[u8]> for CardSerial {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

hex_text!(CardSerial, "card serial (20 hex digits)", |bytes| bytes.try_into().ok().map(CardSerial));

/// The number of a terminal, 6 bytes, owned by its SAM. Text: 12 hex digits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TerminalNumber(pub [u8; 6]);

impl AsRef<[u8]> for TerminalNumber {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

hex_text!(TerminalNumber, "terminal number (12 hex digits)", |bytes| {
    bytes.try_into().ok().map(TerminalNumber)
});

/// The number of a purchase at its terminal, counted by the SAM; 0 in a load.
#[derive(
    Clone, Copy, Debug, Decode, Default, Deserialize, Encode, Eq, Ord, PartialEq, PartialOrd, Serialize,
)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct TerminalSequence(#[n(0)] pub u32);

/// A transaction counter of a card: the online one counts loads, the offline one purchases. A transaction has the counter
/// that its INITIALIZE answered; afterwards the card stands one higher.
#[derive(
    Clone, Copy, Debug, Decode, Default, Deserialize, Encode, Eq, Ord, PartialEq, PartialOrd, Serialize,
)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct Counter(#[n(0)] pub u16);

impl Counter {
    /// The counter after the transaction with this one; `None` where the card is worn out.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

/// Fen on a card or of a purse transaction: at most [`AMOUNT_FEN_MAX`].
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct PurseFen(u32);

impl PurseFen {
    /// No money.
    pub const ZERO: Self = Self(0);

    /// From a number of fen; `None` above [`AMOUNT_FEN_MAX`].
    pub fn new(fen: u32) -> Option<Self> {
        (i64::from(fen) <= AMOUNT_FEN_MAX.get()).then_some(Self(fen))
    }

    /// From an amount; `None` where it is negative or above [`AMOUNT_FEN_MAX`].
    pub fn from_fen(amount: Fen) -> Option<Self> {
        u32::try_from(amount.get()).ok().and_then(Self::new)
    }

    /// As on the card: 4 bytes.
    pub fn from_bytes(bytes: [u8; 4]) -> Option<Self> {
        Self::new(u32::from_be_bytes(bytes))
    }

    /// As on the card: 4 bytes.
    pub const fn to_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    /// The number of fen.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// As an amount of money.
    pub fn to_fen(self) -> Fen {
        Fen::new(i64::from(self.0))
    }

    /// Adds; `None` above [`AMOUNT_FEN_MAX`].
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).and_then(Self::new)
    }

    /// Subtracts; `None` below zero.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }
}

impl<C> Encode<C> for PurseFen {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u32(self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for PurseFen {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::new(d.u32()?).ok_or_else(|| minicbor::decode::Error::message("more fen than a purse holds"))
    }
}

impl<'de> Deserialize<'de> for PurseFen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(u32::deserialize(deserializer)?)
            .ok_or_else(|| D::Error::custom("more fen than a purse holds"))
    }
}

/// The overdraft limit of a purse, 3 bytes of fen, which a card counts inside the balance that it shows. 0 on our cards.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Overdraft(pub [u8; 3]);

impl Overdraft {
    /// The number of fen.
    pub const fn get(self) -> u32 {
        let [a, b, c] = self.0;
        u32::from_be_bytes([0, a, b, c])
    }
}

/// What a transaction does, with its number in MACs and in the card's log.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Load of the purse (圈存).
    Load = 0x02,
    /// Purchase from the purse.
    Purchase = 0x06,
    /// Purchase that writes a record in the same step (复合消费).
    Compound = 0x09,
}

impl<C> Encode<C> for Kind {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u8(self.code())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Kind {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::from_code(d.u8()?).ok_or_else(|| minicbor::decode::Error::message("no kind of transaction"))
    }
}

impl Kind {
    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The kind of a number.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0x02 => Some(Self::Load),
            0x06 => Some(Self::Purchase),
            0x09 => Some(Self::Compound),
            _ => None,
        }
    }
}

/// A calendar date as cards have it: 4 bytes of BCD, `YYYYMMDD`. Only dates that exist.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct CardDate([u8; 4]);

impl CardDate {
    /// From BCD; `None` where it is no date.
    pub fn from_bytes(bytes: [u8; 4]) -> Option<Self> {
        let [century, year, month, day] = bytes.map(from_bcd);
        let (year, month, day) = (u32::from(century?) * 100 + u32::from(year?), month?, day?);
        (year > 0 && (1..=12).contains(&month) && (1..=days_of_month(year, month)).contains(&day))
            .then_some(Self(bytes))
    }

    /// As on the card.
    pub const fn to_bytes(self) -> [u8; 4] {
        self.0
    }

    /// The local day of `time` where clocks are `utc_offset_minutes` ahead of UTC; `None` outside the years 1 to 9999.
    pub fn at(time: Timestamp, utc_offset_minutes: i32) -> Option<Self> {
        let CardTime([a, b, c, d, ..]) = CardTime::at(time, utc_offset_minutes)?;
        Self::from_bytes([a, b, c, d])
    }
}

impl AsRef<[u8]> for CardDate {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

hex_text!(CardDate, "date (YYYYMMDD)", |bytes| bytes.try_into().ok().and_then(CardDate::from_bytes));

/// Local date and time as cards have it: 7 bytes of BCD, `YYYYMMDDhhmmss`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct CardTime([u8; 7]);

impl CardTime {
    /// From BCD; `None` where it is no time.
    pub fn from_bytes(bytes: [u8; 7]) -> Option<Self> {
        let [a, b, c, d, hour, minute, second] = bytes;
        CardDate::from_bytes([a, b, c, d])?;
        (from_bcd(hour)? < 24 && from_bcd(minute)? < 60 && from_bcd(second)? < 60).then_some(Self(bytes))
    }

    /// The local time at `time` where clocks are `utc_offset_minutes` ahead of UTC; `None` outside the years 1 to 9999.
    pub fn at(time: Timestamp, utc_offset_minutes: i32) -> Option<Self> {
        let seconds = time.0.div_euclid(1_000).checked_add(i64::from(utc_offset_minutes) * 60)?;
        let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
        let second = seconds.rem_euclid(86_400);
        let pairs = [
            year.div_euclid(100),
            year.rem_euclid(100),
            month,
            day,
            second / 3_600,
            second / 60 % 60,
            second % 60,
        ];
        let mut bytes = [0; 7];
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            *byte = to_bcd(u8::try_from(pair).ok()?)?;
        }
        Self::from_bytes(bytes)
    }

    /// The day of it.
    pub const fn date(self) -> CardDate {
        let [a, b, c, d, ..] = self.0;
        CardDate([a, b, c, d])
    }

    /// As on the card.
    pub const fn to_bytes(self) -> [u8; 7] {
        self.0
    }
}

impl AsRef<[u8]> for CardTime {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

hex_text!(CardTime, "time (YYYYMMDDhhmmss)", |bytes| bytes.try_into().ok().and_then(CardTime::from_bytes));

macro_rules! short_or_long {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name {
            bytes: [u8; 8],
            length: usize,
        }

        impl $name {
            /// From 4 or 8 bytes; `None` for another number of them.
            pub fn from_slice(slice: &[u8]) -> Option<Self> {
                let mut bytes = [0; 8];
                matches!(slice.len(), 4 | 8).then(|| {
                    bytes[..slice.len()].copy_from_slice(slice);
                    Self { bytes, length: slice.len() }
                })
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.bytes[..self.length]
            }
        }

        impl PartialEq for $name {
            /// In a time that does not tell where they differ.
            fn eq(&self, other: &Self) -> bool {
                let difference = self.bytes.iter().zip(other.bytes).fold(0, |sum, (a, b)| sum | (a ^ b));
                self.length == other.length && difference == 0
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        hex_text!($name, $what, |bytes| $name::from_slice(bytes));
    };
}

short_or_long! {
    /// A MAC or TAC: 4 bytes in algorithm 00, 8 in 11.
    Mac, "MAC (8 or 16 hex digits)"
}
short_or_long! {
    /// The card's random number of one transaction: 4 bytes in algorithm 00, 8 in 11.
    Random, "random number (8 or 16 hex digits)"
}

fn from_bcd(byte: u8) -> Option<u8> {
    let (tens, ones) = (byte >> 4, byte & 0x0F);
    (tens < 10 && ones < 10).then_some(tens * 10 + ones)
}

fn to_bcd(number: u8) -> Option<u8> {
    (number < 100).then_some(((number / 10) << 4) | (number % 10))
}

const fn days_of_month(year: u32, month: u8) -> u8 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_that_do_not_exist_are_none() {
        for good in ["20260901", "20240229", "20000229", "99991231", "00010101"] {
            assert_eq!(good.parse::<CardDate>().unwrap().to_string(), good);
        }
        for bad in
            ["20260931", "20230229", "21000229", "20261301", "20260900", "00000101", "2026090a", "202609", ""]
        {
            assert!(bad.parse::<CardDate>().is_err(), "{bad}");
        }
        for bad in ["20260901240000", "20260901006000", "20260901000060", "202609010000"] {
            assert!(bad.parse::<CardTime>().is_err(), "{bad}");
        }
    }

    #[test]
    fn local_time_is_utc_and_an_offset() {
        // 2026-09-01T04:15:33Z.
        let time = Timestamp(1_788_236_133_000);
        assert_eq!(CardTime::at(time, 480).unwrap().to_string(), "20260901121533");
        assert_eq!(CardTime::at(time, -300).unwrap().to_string(), "20260831231533");
        assert_eq!(CardTime::at(Timestamp(i64::MAX), 480), None);
        assert_eq!(CardTime::at(Timestamp(i64::MIN), 480), None);
    }

    #[test]
    fn text_of_another_length_is_refused_and_named() {
        let error = "3100000020260001234".parse::<CardSerial>().unwrap_err();
        assert_eq!(error.to_string(), "\"3100000020260001234\" is no card serial (20 hex digits)");
        assert!("0000000001".parse::<TerminalNumber>().is_err());
        assert!("0102030405".parse::<Mac>().is_err());
        assert_ne!("01020304".parse::<Mac>().unwrap(), "0102030400000000".parse::<Mac>().unwrap());
        assert_ne!("01020304".parse::<Mac>().unwrap(), "01020305".parse::<Mac>().unwrap());
    }

    #[test]
    fn a_purse_holds_no_more_than_the_largest_amount() {
        assert_eq!(PurseFen::new(10_000_001), None);
        let full = PurseFen::new(10_000_000).unwrap();
        assert_eq!(full.checked_add(PurseFen::new(1).unwrap()), None);
        assert_eq!(PurseFen::ZERO.checked_sub(PurseFen::new(1).unwrap()), None);
        assert_eq!(PurseFen::from_fen(Fen::new(-1)), None);
        assert!(serde_json::from_str::<PurseFen>("10000001").is_err());
    }

    proptest! {
        #[test]
        fn every_second_of_four_centuries_is_a_time(seconds in -6_000_000_000_i64..7_000_000_000) {
            let time = CardTime::at(Timestamp(seconds * 1_000), 480).unwrap();
            prop_assert_eq!(CardTime::from_bytes(time.to_bytes()), Some(time));
            prop_assert_eq!(time.to_string().parse::<CardTime>(), Ok(time));
            // A second later is a later text.
            prop_assert!(CardTime::at(Timestamp(seconds * 1_000 + 1_000), 480).unwrap() > time);
        }
    }
}
