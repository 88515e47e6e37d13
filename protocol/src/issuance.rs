//! What a new card says for itself in a building that has not heard of it: the centre's signed word that it was given out for an
//! account, and in place of which other card.
//!
//! The holder carries it, in a file of the card or as a picture on the slip that the desk hands out; a terminal shows it to its
//! node. It opens nothing by itself: the card must be there, and what the building knows of the account counts as ever.

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::{Signer as _, SigningKey};
use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::ids::{AccountId, CardNumber, InstitutionId};
use crate::public_key::PublicKey;
use crate::time::Timestamp;

/// More bytes than one has: two card numbers, a signature, and what CBOR adds.
const BYTES_MAX: usize = 256;

/// A card was given out.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct Issuance {
    /// The institution.
    #[n(0)]
    pub institution: InstitutionId,
    /// The account.
    #[n(1)]
    pub account: AccountId,
    /// The card.
    #[n(2)]
    pub card: CardNumber,
    /// The card that it was given out for, which is void from then on.
    #[n(3)]
    pub replaces: Option<CardNumber>,
    /// When this was signed.
    #[n(4)]
    pub time: Timestamp,
}

/// The same under the centre's signature.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq, Serialize)]
pub struct SignedIssuance {
    /// What is signed.
    #[n(0)]
    pub issuance: Issuance,
    /// Ed25519 by the centre.
    #[serde(skip)]
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

/// A text that is no issuance.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this is not the issuance of a card")]
pub struct NoIssuance;

impl Issuance {
    /// Signs for the centre.
    pub fn sign(self, key: &SigningKey) -> SignedIssuance {
        let signature = key.sign(&message(&self)).to_bytes();
        SignedIssuance { issuance: self, signature }
    }
}

impl SignedIssuance {
    /// True where `key` made it.
    pub fn is_signed_by(&self, key: &impl PublicKey) -> bool {
        key.has_signed(&message(&self.issuance), &self.signature)
    }

    /// As a file of a card carries it.
    pub fn to_bytes(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("writing to a Vec cannot fail")
    }

    /// Reads that.
    ///
    /// # Errors
    /// [`NoIssuance`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NoIssuance> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let read = decoder.decode().map_err(|_| NoIssuance)?;
        if decoder.position() == bytes.len() { Ok(read) } else { Err(NoIssuance) }
    }

    /// In base64url (RFC 4648, unpadded), as slips carry it, and messages.
    pub fn to_text(&self) -> String {
        BASE64URL_NOPAD.encode(&self.to_bytes())
    }

    /// Reads that.
    ///
    /// # Errors
    /// [`NoIssuance`].
    pub fn from_text(text: &str) -> Result<Self, NoIssuance> {
        if text.len() > BYTES_MAX.div_ceil(3) * 4 {
            return Err(NoIssuance);
        }
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| NoIssuance)?;
        Self::from_bytes(&bytes)
    }
}

fn message(issuance: &Issuance) -> Vec<u8> {
    let mut message = b"feiqian-issuance-1\0".to_vec();
    minicbor::encode(issuance, &mut message).expect("writing to a Vec cannot fail");
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuance(card: &str) -> Issuance {
        Issuance {
            institution: InstitutionId(7),
            account: AccountId(3),
            card: CardNumber::new(card).unwrap(),
            replaces: CardNumber::new("04A1B2C3").ok(),
            time: Timestamp(1_667_779_200_000),
        }
    }

    #[test]
    fn it_is_read_as_it_was_written_and_holds_for_its_signer_alone() {
        let key = SigningKey::from_bytes(&[9; 32]);
        let signed = issuance("04D4E5F6").sign(&key);
        let text = signed.to_text();
        assert!(text.len() < 160, "{} letters make a small picture", text.len());
        assert_eq!(SignedIssuance::from_text(&text), Ok(signed.clone()));
        assert!(signed.is_signed_by(&key.verifying_key()));
        assert!(!signed.is_signed_by(&SigningKey::from_bytes(&[8; 32]).verifying_key()));
        let other = SignedIssuance { issuance: issuance("04D4E5F7"), ..signed };
        assert!(!other.is_signed_by(&key.verifying_key()));
    }

    #[test]
    fn what_is_none_is_refused() {
        let text = issuance("04D4E5F6").sign(&SigningKey::from_bytes(&[9; 32])).to_text();
        for bad in
            ["", "a", "!", &text[1..], &text[..text.len() - 2], &format!("{text}AAAA"), &"A".repeat(10_000)]
        {
            assert_eq!(SignedIssuance::from_text(bad), Err(NoIssuance), "{bad}");
        }
    }
}
