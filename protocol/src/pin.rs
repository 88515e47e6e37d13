//! The payment PIN (支付密码): what a node and the centre must agree on to check one without ever keeping it.
//!
//! ```text
//! generation  16 random bytes, made where the PIN is set; names it in the account's document, and is the salt
//! hash        Argon2id(PIN, generation)                              made by a shell, kept by the centre
//! digest      HMAC-SHA-256(a node's PIN key, tag ‖ generation ‖ hash)  kept by that node, told in its stream
//! ```
//!
//! A node that is given a PIN hashes it (in its shell: it takes some tens of milliseconds) and its core compares digests. What
//! a node's database alone gives away is nothing: the key lies in a file beside it. With both, or with the centre's database,
//! each of the million PINs can be tried, at the price of Argon2id.

mod sealed;

use std::fmt;
use std::str::FromStr;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use hmac::{Hmac, KeyInit, Mac};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

pub use self::sealed::{SealedPins, TypedPins};
use crate::chain::{hex, unhex};
use crate::limits::{PIN_ARGON2_KIB, PIN_ARGON2_LANES, PIN_ARGON2_PASSES, PIN_DIGITS};

/// The initial PIN of whoever told no ID number.
const INITIAL: &str = "666666";

/// Why a text is no payment PIN. The text itself is not in the message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PinError {
    /// Not six digits.
    #[error("a payment PIN has {PIN_DIGITS} digits and nothing else")]
    Form,
    /// Not the end of an ID number.
    #[error("the last six of an ID number are expected: digits, and perhaps an X at the end")]
    IdNumber,
    /// One that whoever finds a card tries first.
    #[error("this PIN is too easy to guess: not one digit six times, nor a run such as 123456")]
    Guessable,
}

/// A payment PIN as somebody typed it. It shows itself nowhere.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct PaymentPin([u8; PIN_DIGITS]);

impl PaymentPin {
    /// The initial PIN by the campus rule: the last six of the holder's ID number, X as 0.
    ///
    /// # Errors
    /// [`PinError::IdNumber`].
    pub fn initial(id_last_six: &str) -> Result<Self, PinError> {
        let digits = match id_last_six.as_bytes() {
            [digits @ .., b'X' | b'x'] => [digits, b"0"].concat(),
            digits => digits.to_vec(),
        };
        std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse().ok()).ok_or(PinError::IdNumber)
    }

    /// The initial PIN of whoever told no ID number.
    pub fn initial_without_id() -> Self {
        INITIAL.parse().expect("six digits")
    }

    /// Refuses what is no choice: such a PIN protects nothing.
    ///
    /// # Errors
    /// [`PinError::Guessable`].
    pub fn chosen(self) -> Result<Self, PinError> {
        let steps = |by: i16| {
            self.0.iter().zip(&self.0[1..]).all(|(digit, next)| i16::from(*next) - i16::from(*digit) == by)
        };
        if [0, 1, -1].into_iter().any(steps) { Err(PinError::Guessable) } else { Ok(self) }
    }

    /// The Argon2id hash under the salt that the generation is (RFC 9106). Takes tens of milliseconds and
    /// [`PIN_ARGON2_KIB`] of memory: no core calls it.
    pub fn hash(&self, generation: PinGeneration) -> PinHash {
        self.hash_in(&mut PinMemory::default(), generation)
    }

    /// As [`hash`](Self::hash), in memory that is used again.
    pub fn hash_in(&self, memory: &mut PinMemory, generation: PinGeneration) -> PinHash {
        let params = Params::new(PIN_ARGON2_KIB, PIN_ARGON2_PASSES, PIN_ARGON2_LANES, Some(32))
            .expect("parameters within the bounds of Argon2");
        memory.0.resize(params.block_count(), Block::default());
        let mut hash = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(&self.0, &generation.0, &mut hash, &mut memory.0)
            .expect("lengths within the bounds of Argon2");
        PinHash(hash)
    }
}

/// What Argon2id works in, kept from one hash to the next by whoever makes many. Says nothing of the PINs that were hashed
/// beyond what the hashes say.
#[derive(Default)]
pub struct PinMemory(Vec<Block>);

impl FromStr for PaymentPin {
    type Err = PinError;
    fn from_str(text: &str) -> Result<Self, PinError> {
        match <[u8; PIN_DIGITS]>::try_from(text.as_bytes()) {
            Ok(digits) if digits.iter().all(u8::is_ascii_digit) => Ok(Self(digits)),
            _ => Err(PinError::Form),
        }
    }
}

/// Shows nothing of it.
impl fmt::Debug for PaymentPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PaymentPin(..)")
    }
}

/// Which PIN of an account: a name that tells nothing of it. Also its salt, 16 bytes as RFC 9106 recommends.
#[derive(Clone, Copy, Decode, Encode, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[cbor(transparent)]
pub struct PinGeneration(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

impl PinGeneration {
    /// Stands for whatever a document names a PIN by that is no generation. Nobody has its hash.
    pub const UNREADABLE: Self = Self([0xff; 16]);
}

impl fmt::Display for PinGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PinGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PinGeneration {
    type Err = NotHex;
    fn from_str(text: &str) -> Result<Self, NotHex> {
        bytes_of(text).map(Self)
    }
}

impl Serialize for PinGeneration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PinGeneration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is not the hexadecimal digits that it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("hexadecimal digits of another number are expected")]
pub struct NotHex;

fn bytes_of<const N: usize>(text: &str) -> Result<[u8; N], NotHex> {
    unhex(text).and_then(|bytes| bytes.try_into().ok()).ok_or(NotHex)
}

macro_rules! secret_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Decode, Encode)]
        #[cbor(transparent)]
        pub struct $name(#[cbor(n(0), with = "minicbor::bytes")] [u8; 32]);

        impl $name {
            /// Of its bytes.
            pub const fn new(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Its bytes, for keeping.
            pub const fn to_bytes(self) -> [u8; 32] {
                self.0
            }
        }

        /// Compares all of it, whatever differs.
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.iter().zip(other.0).fold(0, |unlike, (one, two)| unlike | (one ^ two)) == 0
            }
        }

        impl Eq for $name {}

        /// As hexadecimal, for the centre's commands: between processes of one owner.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&hex(&self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                bytes_of(&text).map(Self).map_err(serde::de::Error::custom)
            }
        }

        /// Shows nothing of it.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

secret_bytes! {
    /// The Argon2id hash of a PIN. Kept by the centre alone, which makes digests of it for nodes that are enrolled later.
    PinHash
}

secret_bytes! {
    /// A node's own key for digests of PINs, made there and told to the centre when it enrols.
    PinKey
}

secret_bytes! {
    /// What a node compares: a PIN's hash under that node's key.
    PinDigest
}

impl PinKey {
    /// The digest of a PIN for the node with this key (HMAC-SHA-256, RFC 2104).
    pub fn digest(&self, generation: PinGeneration, hash: &PinHash) -> PinDigest {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(b"feiqian-pin-1\0");
        mac.update(&generation.0);
        mac.update(&hash.0);
        PinDigest(mac.finalize().into_bytes().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(text: &str) -> PaymentPin {
        text.parse().unwrap()
    }

    #[test]
    fn a_pin_is_six_digits() {
        assert!("012345".parse::<PaymentPin>().is_ok());
        for text in ["", "12345", "1234567", "12345a", " 12345", "１２３４５６", "-12345"] {
            assert_eq!(text.parse::<PaymentPin>(), Err(PinError::Form), "{text:?}");
        }
        for text in ["000000", "666666", "123456", "987654"] {
            assert_eq!(pin(text).chosen(), Err(PinError::Guessable), "{text:?}");
        }
        assert!(pin("123457").chosen().is_ok() && pin("890123").chosen().is_ok());
    }

    #[test]
    fn the_initial_pin_is_the_end_of_the_id_number() {
        assert_eq!(PaymentPin::initial("12345X"), Ok(pin("123450")));
        assert_eq!(PaymentPin::initial("12345x"), Ok(pin("123450")));
        assert_eq!(PaymentPin::initial("123456"), Ok(pin("123456")));
        for text in ["", "X23456", "1234XX", "12345", "1234567", "123456X"] {
            assert_eq!(PaymentPin::initial(text), Err(PinError::IdNumber), "{text:?}");
        }
    }

    /// From the Argon2 of another hand: `argon2 <16 bytes> -id -k 7168 -t 5 -p 1 -l 32` of the reference implementation.
    #[test]
    fn a_hash_is_that_of_the_reference_implementation() {
        let generation = PinGeneration(*b"0123456789abcdef");
        assert_eq!(hex(&pin("271828").hash(generation).0), REFERENCE);
    }

    const REFERENCE: &str = "dfcf1bc0995e2a9ca5fcc168ada0a3607fe4c87650102dcdf3da6564a9b6cde1";

    #[test]
    fn a_digest_depends_on_key_generation_and_pin() {
        let (one, two) = (PinGeneration([1; 16]), PinGeneration([2; 16]));
        let hash = pin("271828").hash(one);
        let key = PinKey::new([7; 32]);
        let digest = key.digest(one, &hash);
        assert_eq!(digest, key.digest(one, &pin("271828").hash(one)));
        assert_ne!(digest, key.digest(one, &pin("271829").hash(one)));
        assert_ne!(digest, key.digest(two, &hash));
        assert_ne!(digest, PinKey::new([8; 32]).digest(one, &hash));
        assert_eq!(
            format!("{digest:?} {:?} {hash:?}", pin("271828")),
            "PinDigest(..) PaymentPin(..) PinHash(..)"
        );
    }

    #[test]
    fn a_generation_is_text_in_json_and_sixteen_bytes_in_cbor() {
        let generation = PinGeneration([0xab; 16]);
        let json = serde_json::to_string(&generation).unwrap();
        assert_eq!(json, format!("\"{}\"", "ab".repeat(16)));
        assert_eq!(serde_json::from_str::<PinGeneration>(&json).unwrap(), generation);
        assert_eq!(minicbor::to_vec(generation).unwrap().len(), 17);
        assert!("ab".parse::<PinGeneration>().is_err());
    }
}
