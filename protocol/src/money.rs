//! Money as integer fen, and tariffs that turn a measured quantity into fen.
//!
//! Whatever is signed, stored or merged is [`Fen`]. `rust_decimal` appears in two places only: the price of a
//! measured quantity, and what people read and type (yuan with two decimals).

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

use minicbor::{Decode, Encode};
use rust_decimal::prelude::ToPrimitive;
use rust_decimal::{Decimal, RoundingStrategy};
use serde::{Deserialize, Serialize};

use crate::canary::{Canary, planted};

/// An amount in fen (1/100 yuan, ISO 4217 CNY minor units). Signed: balances and deltas may be negative.
#[derive(
    Clone, Copy, Debug, Decode, Default, Deserialize, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct Fen(#[n(0)] i64);

impl Fen {
    /// No money.
    pub const ZERO: Self = Self(0);

    /// From a number of fen.
    pub const fn new(fen: i64) -> Self {
        Self(fen)
    }

    /// The number of fen.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// True for amounts above zero.
    pub const fn is_positive(self) -> bool {
        self.0 > 0
    }

    /// True for amounts below zero.
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// The amount, or zero where it is negative.
    pub const fn or_zero(self) -> Self {
        Self(if self.0 < 0 { 0 } else { self.0 })
    }

    /// Adds; `None` where the sum does not fit.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// Subtracts; `None` where the difference does not fit.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// Adds; a sum that does not fit is the largest (or smallest) amount whose negative fits. For what a peer says that
    /// may break every rule; money that counts is bounded where it enters.
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0).max(-i64::MAX))
    }

    /// The amount in yuan, exact.
    pub fn to_yuan(self) -> Decimal {
        Decimal::new(self.0, 2)
    }

    /// Parses yuan with at most two decimals, as people type it: `12`, `12.3`, `12.34`.
    ///
    /// # Errors
    /// [`MoneyError`] where the text is no decimal number, has more than two decimals, or does not fit.
    pub fn parse_yuan(text: &str) -> Result<Self, MoneyError> {
        let yuan = Decimal::from_str_exact(text).map_err(|_| MoneyError::NotANumber(text.to_owned()))?;
        let fen = yuan.checked_mul(Decimal::ONE_HUNDRED).ok_or(MoneyError::Overflow)?.normalize();
        if fen.scale() > 0 {
            return Err(MoneyError::TooManyDecimals(text.to_owned()));
        }
        fen.to_i64().map(Self).ok_or(MoneyError::Overflow)
    }
}

impl fmt::Display for Fen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.to_yuan())
    }
}

/// Overflow panics (`overflow-checks` is on in every profile): sums of money that leave i64 are a bug, since every
/// single amount that enters the system is bounded by [`crate::limits::AMOUNT_FEN_MAX`].
impl std::ops::Add for Fen {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl std::ops::Sub for Fen {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl std::ops::Neg for Fen {
    type Output = Self;
    fn neg(self) -> Self {
        Self(-self.0)
    }
}

impl std::ops::AddAssign for Fen {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::ops::SubAssign for Fen {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Fen {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, std::ops::Add::add)
    }
}

/// Why a text or a product is no amount.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MoneyError {
    /// Not a decimal number.
    #[error("{0:?} is not an amount in yuan")]
    NotANumber(String),
    /// More precise than a fen.
    #[error("{0:?} has more than two decimals; the smallest unit is 0.01 yuan")]
    TooManyDecimals(String),
    /// Beyond 64 bits of fen.
    #[error("the amount does not fit in 64 bits of fen")]
    Overflow,
}

/// A price per unit of a measured quantity (gram, litre, minute, piece), in yuan, as exact decimal.
///
/// On the wire and in files it is its decimal text, normalized, so that equal prices have equal bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct UnitPrice(Decimal);

impl UnitPrice {
    /// Checks that the price is not negative and brings it to its shortest form.
    ///
    /// # Errors
    /// [`MoneyError::NotANumber`] for a negative price.
    pub fn new(yuan_per_unit: Decimal) -> Result<Self, MoneyError> {
        if yuan_per_unit.is_sign_negative() && !yuan_per_unit.is_zero() {
            return Err(MoneyError::NotANumber(yuan_per_unit.to_string()));
        }
        Ok(Self(yuan_per_unit.normalize()))
    }

    /// The price of `quantity` units, rounded half up to the fen (GB/T 8170 is half to even; tills in Chinese
    /// canteens round half up, which is also what the price lists say).
    ///
    /// # Errors
    /// [`MoneyError::Overflow`] where the product does not fit.
    pub fn amount(self, quantity: u32) -> Result<Fen, MoneyError> {
        self.0
            .checked_mul(Decimal::from(quantity))
            .and_then(|yuan| yuan.checked_mul(Decimal::ONE_HUNDRED))
            .map(|fen| if planted(Canary::RoundedTwice) { half_up(fen, 1) } else { fen })
            .map(|fen| half_up(fen, 0))
            .and_then(|fen| fen.to_i64())
            .map(Fen)
            .ok_or(MoneyError::Overflow)
    }
}

fn half_up(fen: Decimal, decimals: u32) -> Decimal {
    fen.round_dp_with_strategy(decimals, RoundingStrategy::MidpointAwayFromZero)
}

impl fmt::Display for UnitPrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for UnitPrice {
    type Err = MoneyError;
    fn from_str(text: &str) -> Result<Self, MoneyError> {
        Decimal::from_str_exact(text).map_err(|_| MoneyError::NotANumber(text.to_owned())).and_then(Self::new)
    }
}

impl Serialize for UnitPrice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnitPrice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<C> Encode<C> for UnitPrice {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(&self.to_string())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for UnitPrice {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        d.str()?.parse().map_err(|_| minicbor::decode::Error::message("unit price is no decimal number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yuan_text_round_trips_and_refuses_what_is_finer_than_a_fen() {
        assert_eq!(Fen::parse_yuan("12.34"), Ok(Fen::new(1234)));
        assert_eq!(Fen::parse_yuan("0.5"), Ok(Fen::new(50)));
        assert_eq!(Fen::parse_yuan("7.100"), Ok(Fen::new(710)));
        assert!(matches!(Fen::parse_yuan("0.005"), Err(MoneyError::TooManyDecimals(_))));
        assert!(matches!(Fen::parse_yuan("ten"), Err(MoneyError::NotANumber(_))));
        assert!(matches!(Fen::parse_yuan("1e3"), Err(MoneyError::NotANumber(_))));
        assert_eq!(Fen::parse_yuan("100000000000000000000"), Err(MoneyError::Overflow));
        assert_eq!(Fen::new(-5).to_string(), "-0.05");
    }

    #[test]
    fn a_tariff_rounds_half_up_once() {
        let student: UnitPrice = "0.0240".parse().unwrap();
        assert_eq!(student.amount(552), Ok(Fen::new(1325))); // 13.248
        assert_eq!("0.015".parse::<UnitPrice>().unwrap().amount(1), Ok(Fen::new(2))); // exactly half
        assert_eq!(student.to_string(), "0.024");
        assert!("-1".parse::<UnitPrice>().is_err());
    }
}
