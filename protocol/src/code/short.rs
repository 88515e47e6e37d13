//! The short code of a phone that is online, for a building that is: twenty digits, which only the centre can check.
//!
//! | digits | what |
//! |---|---|
//! | 2 | `91` |
//! | 10 | the *alias*, which stands for the virtual card |
//! | 8 | the time-based one-time password of RFC 6238: HMAC-SHA-256 by the secret that phone and centre share, over the number of the 30 s step since 1970, truncated as in RFC 4226 5.3 |
//!
//! It needs no voucher and fits a one-dimensional bar code. It says nothing to whoever does not have the secret, so a building that is cut
//! off cannot take it. The centre takes one step more to either side, and each step once.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use minicbor::{Decode, Encode};
use sha2::Sha256;

use crate::ids::CardNumber;
use crate::time::Timestamp;

/// What short codes begin with.
pub const SHORT_PREFIX: &str = "91";

/// Seconds of a step.
pub const STEP_S: i64 = 30;

/// Aliases are below this: ten digits.
pub const ALIAS_END: u64 = 10_000_000_000;

/// What depends on the time is below this: eight digits.
const DIGITS_END: u32 = 100_000_000;

/// What the card of a tap is called until the centre has said whose code it is; no card is called so.
const UNNAMED_PREFIX: &str = "code:";

/// A short code.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, Ord, PartialEq, PartialOrd)]
pub struct ShortCode {
    /// What stands for the virtual card.
    #[n(0)]
    pub alias: u64,
    /// What depends on the time.
    #[n(1)]
    pub digits: u32,
}

impl ShortCode {
    /// Reads the twenty digits. Nothing where they are none.
    pub fn from_text(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(SHORT_PREFIX)?;
        if digits.len() != 18 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let (alias, digits) = digits.split_at(10);
        Some(Self { alias: alias.parse().ok()?, digits: digits.parse().ok()? })
    }
}

impl fmt::Display for ShortCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SHORT_PREFIX}{:010}{:08}", self.alias, self.digits)
    }
}

impl CardNumber {
    /// What stands for the card of a short code until the centre has said which it is.
    pub fn unnamed(code: &ShortCode) -> Self {
        Self::new(format!("{UNNAMED_PREFIX}{code}")).expect("a prefix and digits are a name")
    }

    /// The short code that this stands for, where it stands for one.
    pub fn short_code(&self) -> Option<ShortCode> {
        ShortCode::from_text(self.as_str().strip_prefix(UNNAMED_PREFIX)?)
    }
}

/// What a phone and the centre share for short codes.
#[derive(Clone, Eq, PartialEq)]
pub struct ShortSecret([u8; 32]);

impl ShortSecret {
    /// Of its bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What a code has at the step of a time.
    pub fn digits(&self, step: u64) -> u32 {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(&step.to_be_bytes());
        let hash: [u8; 32] = mac.finalize().into_bytes().into();
        let offset = usize::from(hash[31] & 0x0f);
        let word: [u8; 4] = std::array::from_fn(|index| hash[offset + index]);
        (u32::from_be_bytes(word) & 0x7fff_ffff) % DIGITS_END
    }

    /// The code of an alias at a time, which is not before 1970.
    pub fn code(&self, alias: u64, at: Timestamp) -> ShortCode {
        ShortCode { alias, digits: self.digits(step_at(at)) }
    }
}

impl fmt::Debug for ShortSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShortSecret")
    }
}

/// The number of the step of a time.
pub fn step_at(time: Timestamp) -> u64 {
    u64::try_from(time.0.div_euclid(STEP_S * 1_000)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_are_those_of_rfc_6238_appendix_b() {
        let secret = ShortSecret::new(*b"12345678901234567890123456789012");
        for (seconds, digits) in [
            (59, 46_119_246),
            (1_111_111_109, 68_084_774),
            (1_111_111_111, 67_062_674),
            (1_234_567_890, 91_819_424),
            (2_000_000_000, 90_698_825),
            (20_000_000_000, 77_737_706),
        ] {
            assert_eq!(secret.code(7, Timestamp(seconds * 1_000)), ShortCode { alias: 7, digits });
        }
        assert_eq!(format!("{secret:?}"), "ShortSecret");
    }

    #[test]
    fn twenty_digits_are_read_and_nothing_else() {
        let code = ShortCode { alias: 42, digits: 7 };
        assert_eq!(code.to_string(), "91000000004200000007");
        assert_eq!(ShortCode::from_text(&code.to_string()), Some(code));
        for wrong in [
            "90000000004200000007",
            "9100000000420000000",
            "910000000042000000071",
            "9100000000420000000x",
            "91",
            "",
        ] {
            assert_eq!(ShortCode::from_text(wrong), None, "{wrong}");
        }
        let card = CardNumber::unnamed(&code);
        assert_eq!((card.as_str(), card.short_code()), ("code:91000000004200000007", Some(code)));
        assert_eq!(CardNumber::new("91000000004200000007").unwrap().short_code(), None);
    }
}
