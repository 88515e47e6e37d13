//! What a terminal shows or prints after a purchase with a voucher's money, for the phone to bring to the centre.
//!
//! The centre frees what the voucher did not spend as soon as it has the receipt, which is mostly long before the building's
//! log: so it must be the building's word. It is signed with the key that signs the building's log. The centre has that key
//! since the building was enrolled, and whoever could forge a receipt with it could forge the log. Big-endian:
//!
//! | bytes | |
//! |---|---|
//! | 1 | layout: 1 |
//! | 2, 2 | institution, node |
//! | 8 | position of the debit in the node's log |
//! | 8, 4, 2 | account, voucher, counter of the code |
//! | 3 | fen that the voucher paid; at least 1 |
//! | 4 | time of the debit, Unix seconds |
//! | 64 | Ed25519 over `"feiqian-receipt-1\0" ‖ all before` |
//!
//! As digits it is the prefix `92` and blocks like those of a code: 240 digits, a QR code of version 6-M (41 by 41 modules).

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use super::text::{from_digits, to_digits};
use super::{CodeFault, LAYOUT, SIGNATURE_BYTES, take};
use crate::entry::EntryRef;
use crate::ids::{AccountId, InstitutionId, LogId, NodeId};
use crate::limits::ACCOUNT_END;
use crate::money::Fen;

const RECEIPT_TAG: &[u8] = b"feiqian-receipt-1\0";

/// Bytes of a receipt before its signature.
const RECEIPT_FIXED_BYTES: usize = 34;
const RECEIPT_BYTES: usize = RECEIPT_FIXED_BYTES + SIGNATURE_BYTES;

/// What the digits begin with.
const PREFIX: &str = "92";

/// What a building says that it took of a voucher.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Receipt {
    /// The institution.
    pub institution: InstitutionId,
    /// The building's node.
    pub node: NodeId,
    /// Where the debit stands in its log.
    pub position: u64,
    /// The account.
    pub account: AccountId,
    /// The voucher's number.
    pub voucher: u32,
    /// The counter of the code.
    pub counter: u16,
    /// Fen that the voucher paid.
    pub amount: Fen,
    /// When, in Unix seconds by the building's clock.
    pub time: u32,
}

impl Receipt {
    /// The debit that it is about.
    pub const fn debit(&self) -> EntryRef {
        EntryRef { log: LogId::node(self.institution, self.node), position: self.position }
    }

    /// Signs it with the key of the node's log. Nothing where a field does not fit.
    pub fn sign(&self, key: &SigningKey) -> Option<SignedReceipt> {
        let amount = u32::try_from(self.amount.get()).ok()?.to_be_bytes();
        let mut bytes = Vec::with_capacity(RECEIPT_BYTES);
        bytes.push(LAYOUT);
        bytes.extend(self.institution.0.to_be_bytes());
        bytes.extend(self.node.0.to_be_bytes());
        bytes.extend(self.position.to_be_bytes());
        bytes.extend(self.account.0.to_be_bytes());
        bytes.extend(self.voucher.to_be_bytes());
        bytes.extend(self.counter.to_be_bytes());
        bytes.extend(&amount[1..]);
        bytes.extend(self.time.to_be_bytes());
        let signature = key.sign(&[RECEIPT_TAG, &bytes].concat());
        bytes.extend(signature.to_bytes());
        // Reading it again finds whatever a reader would not take.
        SignedReceipt::from_bytes(&bytes).ok().filter(|signed| signed.receipt == *self)
    }
}

/// A receipt as it travels. That its signature is right is not said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SignedReceipt {
    receipt: Receipt,
    bytes: Vec<u8>,
}

impl SignedReceipt {
    /// Reads one.
    ///
    /// # Errors
    /// [`CodeFault::Layout`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodeFault> {
        if bytes.len() != RECEIPT_BYTES {
            return Err(CodeFault::Layout);
        }
        let mut rest = bytes;
        let [layout] = take(&mut rest)?;
        let institution = InstitutionId(u16::from_be_bytes(take(&mut rest)?));
        let node = NodeId(u16::from_be_bytes(take(&mut rest)?));
        let position = u64::from_be_bytes(take(&mut rest)?);
        let account = AccountId(u64::from_be_bytes(take(&mut rest)?));
        let voucher = u32::from_be_bytes(take(&mut rest)?);
        let counter = u16::from_be_bytes(take(&mut rest)?);
        let [high, middle, low] = take(&mut rest)?;
        let amount = Fen::new(i64::from(u32::from_be_bytes([0, high, middle, low])));
        let time = u32::from_be_bytes(take(&mut rest)?);
        let fits = layout == LAYOUT
            && node != NodeId::CENTRE
            && (1..=i64::MAX as u64).contains(&position)
            && (1..ACCOUNT_END).contains(&account.0)
            && voucher > 0
            && counter > 0
            && amount.is_positive();
        if !fits {
            return Err(CodeFault::Layout);
        }
        let receipt = Receipt { institution, node, position, account, voucher, counter, amount, time };
        Ok(Self { receipt, bytes: bytes.to_vec() })
    }

    /// Reads the digits.
    ///
    /// # Errors
    /// [`CodeFault::Layout`].
    pub fn from_text(text: &str) -> Result<Self, CodeFault> {
        let digits = text.strip_prefix(PREFIX).ok_or(CodeFault::Layout)?;
        Self::from_bytes(&from_digits(digits, RECEIPT_BYTES)?)
    }

    /// What it says; only to be believed where [`SignedReceipt::is_signed_by`] its node's key.
    pub const fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The digits.
    pub fn to_digits(&self) -> String {
        to_digits(PREFIX, &self.bytes)
    }

    /// True where the node of this key has signed it.
    pub fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        let (signed, signature) = self.bytes.split_at(RECEIPT_FIXED_BYTES);
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        key.verify_strict(&[RECEIPT_TAG, signed].concat(), &signature).is_ok()
    }
}

// What the picture is sized for.
const _: () = assert!(RECEIPT_BYTES == 98);

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt() -> Receipt {
        Receipt {
            institution: InstitutionId(7),
            node: NodeId(3),
            position: 1 << 40,
            account: AccountId(269),
            voucher: 1_790_000_000,
            counter: 2,
            amount: Fen::new(1_250),
            time: 1_790_000_100,
        }
    }

    #[test]
    fn a_receipt_is_read_as_it_was_signed_and_nothing_of_it_can_be_changed() {
        let key = SigningKey::from_bytes(&[5; 32]);
        let signed = receipt().sign(&key).unwrap();
        let digits = signed.to_digits();
        assert_eq!((digits.len(), &digits[..2]), (240, "92"));
        assert_eq!(SignedReceipt::from_text(&digits), Ok(signed.clone()));
        assert!(signed.is_signed_by(&key.verifying_key()));
        assert!(!signed.is_signed_by(&SigningKey::from_bytes(&[6; 32]).verifying_key()), "of another node");
        for index in 0..RECEIPT_BYTES {
            let mut bytes = signed.as_bytes().to_vec();
            bytes[index] ^= 1;
            let altered = SignedReceipt::from_bytes(&bytes);
            assert!(altered.is_err() || !altered.unwrap().is_signed_by(&key.verifying_key()), "byte {index}");
        }
    }

    #[test]
    fn what_is_no_receipt_is_refused() {
        let key = SigningKey::from_bytes(&[5; 32]);
        for bad in [
            Receipt { amount: Fen::ZERO, ..receipt() },
            Receipt { amount: Fen::new(1 << 24), ..receipt() },
            Receipt { counter: 0, ..receipt() },
            Receipt { position: 0, ..receipt() },
            Receipt { node: NodeId::CENTRE, ..receipt() },
            Receipt { account: AccountId(0), ..receipt() },
        ] {
            assert_eq!(bad.sign(&key), None, "{bad:?}");
        }
        let digits = receipt().sign(&key).unwrap().to_digits();
        for bad in [&digits[1..], &digits[..239], &format!("{digits}0"), &format!("90{}", &digits[2..]), ""] {
            assert!(SignedReceipt::from_text(bad).is_err(), "{bad}");
        }
    }
}
