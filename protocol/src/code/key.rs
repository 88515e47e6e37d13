//! Keys of phones. P-256 is what their secure hardware keeps; Ed25519 is there where it can.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::Signer;
use p256::ecdsa;

use super::SIGNATURE_BYTES;
use crate::ids::NameError;

/// What a phone signs with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PhoneAlgorithm {
    /// ECDSA over P-256 with SHA-256 (FIPS 186-5).
    P256,
    /// Ed25519 (RFC 8032).
    Ed25519,
}

impl PhoneAlgorithm {
    /// The stable number in a voucher.
    pub const fn number(self) -> u8 {
        match self {
            Self::P256 => 1,
            Self::Ed25519 => 2,
        }
    }

    /// The algorithm of a stable number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::P256),
            2 => Some(Self::Ed25519),
            _ => None,
        }
    }

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p256",
            Self::Ed25519 => "ed25519",
        }
    }

    /// Bytes of a public key.
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::P256 => 33,
            Self::Ed25519 => 32,
        }
    }
}

impl fmt::Display for PhoneAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PhoneAlgorithm {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            "p256" => Ok(Self::P256),
            "ed25519" => Ok(Self::Ed25519),
            _ => Err(NameError::new(text, "is no algorithm of a phone (p256, ed25519)")),
        }
    }
}

/// Why bytes are no key of a phone.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a public key: {length} bytes of {algorithm} that name a point of its curve are expected", length = .0.key_bytes(), algorithm = .0)]
pub struct KeyError(PhoneAlgorithm);

/// The public key of a phone: a point of its curve, in the one form that there is for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PhoneKey {
    algorithm: PhoneAlgorithm,
    bytes: Vec<u8>,
}

impl PhoneKey {
    /// Checks a key: P-256 compressed (33 bytes, SEC 1), Ed25519 32 bytes.
    ///
    /// # Errors
    /// [`KeyError`] for anything else, weak keys included.
    pub fn new(algorithm: PhoneAlgorithm, bytes: &[u8]) -> Result<Self, KeyError> {
        let key = Self { algorithm, bytes: bytes.to_vec() };
        let fits = match algorithm {
            PhoneAlgorithm::P256 => key.p256().is_some(),
            PhoneAlgorithm::Ed25519 => key.ed25519().is_some(),
        };
        if fits { Ok(key) } else { Err(KeyError(algorithm)) }
    }

    /// Its algorithm.
    pub const fn algorithm(&self) -> PhoneAlgorithm {
        self.algorithm
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// True for the one signature that its holder makes over a message: of two that the arithmetic would take, only the
    /// canonical one is.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        match self.algorithm {
            PhoneAlgorithm::P256 => {
                let Ok(signature) = ecdsa::Signature::from_slice(signature) else { return false };
                let is_low = signature.normalize_s() == signature;
                is_low
                    && self.p256().is_some_and(|key| {
                        ecdsa::signature::Verifier::verify(&key, message, &signature).is_ok()
                    })
            }
            PhoneAlgorithm::Ed25519 => {
                let signature = ed25519_dalek::Signature::from_bytes(signature);
                self.ed25519().is_some_and(|key| key.verify_strict(message, &signature).is_ok())
            }
        }
    }

    fn p256(&self) -> Option<ecdsa::VerifyingKey> {
        // SEC 1 knows other forms of the same point.
        let is_compressed = self.bytes.len() == 33 && matches!(self.bytes.first(), Some(2 | 3));
        is_compressed.then(|| ecdsa::VerifyingKey::from_sec1_bytes(&self.bytes).ok()).flatten()
    }

    fn ed25519(&self) -> Option<ed25519_dalek::VerifyingKey> {
        let key = ed25519_dalek::VerifyingKey::try_from(&self.bytes[..]).ok()?;
        // A point has encodings that are read as it and are not it.
        let is_canonical = key.to_edwards().compress().as_bytes()[..] == self.bytes;
        (is_canonical && !key.is_weak()).then_some(key)
    }
}

/// The secret of a phone. Real ones never leave its hardware; this is for trying things out, and for tests.
#[derive(Clone)]
pub struct PhoneSecret(Secret);

#[derive(Clone)]
enum Secret {
    P256(Box<ecdsa::SigningKey>),
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

impl PhoneSecret {
    /// From 32 random bytes; nothing for the few that are no secret of P-256.
    pub fn new(algorithm: PhoneAlgorithm, random: &[u8; 32]) -> Option<Self> {
        Some(Self(match algorithm {
            PhoneAlgorithm::P256 => Secret::P256(Box::new(ecdsa::SigningKey::from_slice(random).ok()?)),
            PhoneAlgorithm::Ed25519 => {
                Secret::Ed25519(Box::new(ed25519_dalek::SigningKey::from_bytes(random)))
            }
        }))
    }

    /// The public key.
    pub fn key(&self) -> PhoneKey {
        let (algorithm, bytes) = match &self.0 {
            Secret::P256(secret) => {
                (PhoneAlgorithm::P256, secret.verifying_key().to_sec1_point(true).as_bytes().to_vec())
            }
            Secret::Ed25519(secret) => (PhoneAlgorithm::Ed25519, secret.verifying_key().as_bytes().to_vec()),
        };
        PhoneKey { algorithm, bytes }
    }

    /// Signs; the same message always alike (RFC 6979, RFC 8032).
    pub(super) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        match &self.0 {
            Secret::P256(secret) => {
                let signature: ecdsa::Signature = secret.sign(message);
                signature.normalize_s().to_bytes().into()
            }
            Secret::Ed25519(secret) => secret.sign(message).to_bytes(),
        }
    }
}
