//! Keys: the institution's masters, a card's own, and those of one transaction.
//!
//! A card has three keys (load, purchase, TAC), each diversified from a master by the card's serial, in one level. None of them
//! prints itself.

use std::fmt;
use std::str::FromStr;

use aes::Aes128;
use cbc_mac::CbcMac;
use cmac::{Cmac, KeyInit, Mac as _};
use des::cipher::BlockCipherEncrypt;
use des::{Des, TdesEde2};

use super::values::{CardSerial, Mac};
use crate::chain::{hex, unhex};

/// How MACs and keys are computed. The number is a card's algorithm id; a profile maps what a card says to it.
#[derive(
    Clone,
    Copy,
    Debug,
    minicbor::Decode,
    serde::Deserialize,
    minicbor::Encode,
    Eq,
    PartialEq,
    serde::Serialize,
)]
#[cbor(index_only)]
pub enum Algorithm {
    /// The standard's: two-key 3DES for keys, DES CBC-MAC of 4 bytes.
    #[n(0x00)]
    #[serde(rename = "00")]
    Des,
    /// AES-128-CMAC of 8 bytes.
    #[n(0x11)]
    #[serde(rename = "11")]
    AesCmac,
}

impl Algorithm {
    /// The algorithm id on our cards.
    pub const fn id(self) -> u8 {
        match self {
            Self::Des => 0x00,
            Self::AesCmac => 0x11,
        }
    }

    /// Bytes of a MAC, a TAC and a random number.
    pub const fn mac_bytes(self) -> usize {
        match self {
            Self::Des => 4,
            Self::AesCmac => 8,
        }
    }
}

/// What a key is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// Load: held by the centre and the card.
    Load = 1,
    /// Purchase: held by SAMs and the card.
    Purchase = 2,
    /// Transaction authentication code: held by the centre and the card.
    Tac = 3,
}

/// A master key of the institution for one purpose, 16 bytes.
#[derive(Clone, Eq, PartialEq)]
pub struct MasterKey([u8; 16]);

/// A card's key for one purpose, 16 bytes.
#[derive(Clone, Eq, PartialEq)]
pub struct CardKey([u8; 16]);

/// The institution's key for the records that cards carry, held by its terminals, 16 bytes.
#[derive(Clone, Eq, PartialEq)]
pub struct RecordKey([u8; 16]);

/// The key of one transaction, or a card's TAC key.
#[derive(Clone, Eq, PartialEq)]
pub enum MacKey {
    /// Algorithm 00.
    Des([u8; 8]),
    /// Algorithm 11.
    AesCmac([u8; 16]),
}

macro_rules! secret {
    ($name:ident) => {
        impl From<[u8; 16]> for $name {
            fn from(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;
            fn from_str(text: &str) -> Result<Self, KeyError> {
                unhex(text).and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(KeyError)
            }
        }

        impl $name {
            /// In hex, for a file that only its owner reads.
            pub fn reveal(&self) -> String {
                hex(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    };
}

secret!(MasterKey);
secret!(CardKey);
secret!(RecordKey);

impl RecordKey {
    pub(super) const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(…)")
    }
}

/// Text that is no key. It does not repeat the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a key has 32 hex digits")]
pub struct KeyError;

impl MasterKey {
    /// The key of one card for `purpose`, which the master must be for. Algorithm 00: 3DES of the serial's factor and of its
    /// complement. Algorithm 11: AN10922 for AES-128, which equals CMAC for an input of 16 to 31 bytes as this is.
    pub fn diversify(&self, algorithm: Algorithm, serial: CardSerial, purpose: Purpose) -> CardKey {
        match algorithm {
            Algorithm::Des => {
                let factor = serial.factor();
                let mut key = [0; 16];
                key[..8].copy_from_slice(&triple_des(&self.0, factor));
                key[8..].copy_from_slice(&triple_des(&self.0, factor.map(|byte| !byte)));
                CardKey(key)
            }
            Algorithm::AesCmac => {
                CardKey(cmac(&self.0, &[&[0x01], serial.as_ref(), b"FQP", &[purpose as u8], b"CAMPUSEP"]))
            }
        }
    }
}

impl CardKey {
    /// The key of a transaction from what makes it unique. `parts` are those of the algorithm, 8 bytes in all for 00.
    pub(super) fn session(&self, algorithm: Algorithm, parts: &[&[u8]]) -> MacKey {
        match algorithm {
            Algorithm::Des => {
                let block = parts.concat().try_into().expect("the parts of algorithm 00 are 8 bytes");
                MacKey::Des(triple_des(&self.0, block))
            }
            Algorithm::AesCmac => MacKey::AesCmac(cmac(&self.0, parts)),
        }
    }

    /// The key that makes TACs, of a card's TAC key: in algorithm 00 its halves, one XOR the other.
    pub fn tac(&self, algorithm: Algorithm) -> MacKey {
        match algorithm {
            Algorithm::Des => MacKey::Des(std::array::from_fn(|at| self.0[at] ^ self.0[at + 8])),
            Algorithm::AesCmac => MacKey::AesCmac(self.0),
        }
    }
}

impl MacKey {
    /// The MAC over `parts`. Algorithm 00: ISO 9797-1 algorithm 1, padding 2, its left 4 bytes; 11: the left 8 of a CMAC.
    pub(super) fn mac(&self, parts: &[&[u8]]) -> Mac {
        match self {
            Self::Des(key) => Mac::from_slice(&des_cbc_mac(key, parts)[..4]),
            Self::AesCmac(key) => Mac::from_slice(&cmac(key, parts)[..8]),
        }
        .expect("4 and 8 bytes are a MAC")
    }
}

/// Two-key 3DES (encrypt, decrypt, encrypt) of one block.
fn triple_des(key: &[u8; 16], block: [u8; 8]) -> [u8; 8] {
    let mut block = block.into();
    TdesEde2::new(key.into()).encrypt_block(&mut block);
    block.into()
}

/// CBC-MAC by single DES: padded by 80 and zeros, which the crate appends. The final decryption and encryption of ISO 9797-1
/// algorithm 3 is not for keys of 8 bytes.
fn des_cbc_mac(key: &[u8; 8], parts: &[&[u8]]) -> [u8; 8] {
    let mut mac = CbcMac::<Des>::new(key.into());
    for part in parts {
        mac.update(part);
    }
    mac.update(&[0x80]);
    mac.finalize().into_bytes().into()
}

/// AES-128-CMAC (NIST SP 800-38B).
pub(super) fn cmac(key: &[u8; 16], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = Cmac::<Aes128>::new(key.into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        unhex(text).unwrap().try_into().unwrap()
    }

    #[test]
    fn card_keys_come_from_the_master_and_the_serial() {
        let serial: CardSerial = "31000000202600012345".parse().unwrap();
        for (master, purpose, card) in [
            ("0f1e2d3c4b5a69788796a5b4c3d2e1f0", Purpose::Load, "a0cb3cc0f11ba10a7e7313ffc39a55d6"),
            ("a1b2c3d4e5f60718293a4b5c6d7e8f90", Purpose::Purchase, "90ec321bab8d2bad9d8bf86a24ab6d0b"),
            ("5566778899aabbccddeeff0011223344", Purpose::Tac, "ba0f6bc2adcaf5a063da3dae37adf6eb"),
        ] {
            let master: MasterKey = master.parse().unwrap();
            assert_eq!(master.diversify(Algorithm::Des, serial, purpose).reveal(), card);
        }
        let master: MasterKey = "a1b2c3d4e5f60718293a4b5c6d7e8f90".parse().unwrap();
        let card = master.diversify(Algorithm::AesCmac, serial, Purpose::Purchase);
        assert_eq!(card.reveal(), "d076f13cd56d81a22e80769acc5560cb");
        // Another purpose, another key.
        assert_ne!(master.diversify(Algorithm::AesCmac, serial, Purpose::Tac), card);
    }

    #[test]
    fn the_tac_key_is_one_half_xor_the_other() {
        for (card, tac) in [
            ("00112233445566778899aabbccddeeff", "8888888888888888"),
            ("ba0f6bc2adcaf5a063da3dae37adf6eb", "d9d5566c9a67034b"),
        ] {
            let card: CardKey = card.parse().unwrap();
            assert!(card.tac(Algorithm::Des) == MacKey::Des(bytes(tac)));
        }
    }

    #[test]
    fn cmac_agrees_with_what_is_published() {
        // NIST SP 800-38B, AES-128, 16 bytes.
        let mac = cmac(
            &bytes("2b7e151628aed2a6abf7158809cf4f3c"),
            &[&bytes::<16>("6bc1bee22e409f96e93d7e117393172a")],
        );
        assert_eq!(hex(&mac), "070a16b46b4d4144f79bdd9dd04a287c");
        // NXP AN10922, AES-128.
        let input: [u8; 16] = bytes("04782e21801d803042f54e5850204162");
        let mac = cmac(&bytes("00112233445566778899aabbccddeeff"), &[&[0x01], &input, &[0x75]]);
        assert_eq!(hex(&mac), "a8dd63a3b89d54b37ca802473fda9175");
    }

    #[test]
    fn keys_do_not_print_themselves() {
        let master: MasterKey = "5566778899aabbccddeeff0011223344".parse().unwrap();
        let card = master.diversify(Algorithm::Des, "31000000202600012345".parse().unwrap(), Purpose::Tac);
        assert_eq!(
            format!("{master:?} {card:?} {:?}", card.tac(Algorithm::Des)),
            "MasterKey(…) CardKey(…) MacKey(…)"
        );
        assert_eq!("5566".parse::<MasterKey>().unwrap_err().to_string(), "a key has 32 hex digits");
    }
}
