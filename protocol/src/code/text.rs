//! The forms in which a code is shown and read: digits, or base64url (RFC 4648, unpadded).
//!
//! Digits cost no larger picture and survive scanners that type, with any keyboard layout or input method: the prefix `90`,
//! then blocks of 7 bytes as 17 digits, a rest of 1 to 6 bytes as 3, 5, 8, 10, 13 or 15. Base64url is for whoever reads
//! pictures by camera. No base64url of a code begins as its digits do.

use std::fmt::Write;

use data_encoding::BASE64URL_NOPAD;

use super::{Code, CodeFault, PhoneAlgorithm, SignedVoucher};

/// What the digits begin with; `91` are codes that only the centre can check ([`super::ShortCode`]), and receipts begin with `92`.
const PREFIX: &str = "90";

/// Digits of a block of so many bytes.
const BLOCK_DIGITS: [usize; 8] = [0, 3, 5, 8, 10, 13, 15, 17];

/// Bytes of a whole block.
const BLOCK_BYTES: usize = 7;

impl Code {
    /// The digits.
    pub fn to_digits(&self) -> String {
        to_digits(PREFIX, &self.to_bytes())
    }

    /// The same in base64url.
    pub fn to_base64url(&self) -> String {
        BASE64URL_NOPAD.encode(&self.to_bytes())
    }

    /// Reads either form.
    ///
    /// # Errors
    /// [`CodeFault::Layout`].
    pub fn from_text(text: &str) -> Result<Self, CodeFault> {
        match text.strip_prefix(PREFIX) {
            Some(digits) => Self::from_bytes(&from_digits(digits, PhoneAlgorithm::P256.code_bytes())?),
            None => Self::from_bytes(&from_base64url(text, PhoneAlgorithm::P256.code_bytes())?),
        }
    }
}

impl SignedVoucher {
    /// In base64url, as a phone gets it.
    pub fn to_base64url(&self) -> String {
        BASE64URL_NOPAD.encode(self.as_bytes())
    }

    /// Reads that.
    ///
    /// # Errors
    /// [`CodeFault::Layout`].
    pub fn from_text(text: &str) -> Result<Self, CodeFault> {
        Self::from_bytes(&from_base64url(text, PhoneAlgorithm::P256.voucher_bytes())?)
    }
}

fn from_base64url(text: &str, bytes_max: usize) -> Result<Vec<u8>, CodeFault> {
    if text.len() > BASE64URL_NOPAD.encode_len(bytes_max) {
        return Err(CodeFault::Layout);
    }
    BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| CodeFault::Layout)
}

/// A prefix, then the digits of some bytes.
pub(super) fn to_digits(prefix: &str, bytes: &[u8]) -> String {
    let mut text = prefix.to_owned();
    for block in bytes.chunks(BLOCK_BYTES) {
        let number = block.iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        write!(text, "{number:0width$}", width = BLOCK_DIGITS[block.len()]).expect("a String takes all");
    }
    text
}

/// The bytes of digits without their prefix.
pub(super) fn from_digits(digits: &str, bytes_max: usize) -> Result<Vec<u8>, CodeFault> {
    let whole = BLOCK_DIGITS[BLOCK_BYTES];
    if digits.len() > (bytes_max / BLOCK_BYTES + 1) * whole
        || !digits.bytes().all(|digit| digit.is_ascii_digit())
    {
        return Err(CodeFault::Layout);
    }
    let mut bytes = Vec::with_capacity(bytes_max);
    for block in digits.as_bytes().chunks(whole) {
        let length =
            BLOCK_DIGITS.iter().position(|digits| *digits == block.len()).ok_or(CodeFault::Layout)?;
        let number = block.iter().fold(0, |number: u64, digit| number * 10 + u64::from(digit - b'0'));
        if number >> (8 * length) != 0 {
            return Err(CodeFault::Layout);
        }
        bytes.extend(&number.to_be_bytes()[8 - length..]);
    }
    Ok(bytes)
}
