//! The virtual card: what a phone shows (a QR code), to the byte, and the checks that need nothing but it.
//!
//! A **voucher** says that a phone's key stands for an account; the centre signs it while the phone is online. A **code** is
//! a voucher and what the phone signs over it, good for seconds. Big-endian:
//!
//! | bytes | voucher | | bytes | code |
//! |---|---|---|---|---|
//! | 1 | layout and phone algorithm: 11 P-256, 12 Ed25519 (hex) | | 124 or 123 | the voucher, its signature included |
//! | 2 | institution | | 1 | layout: 1 |
//! | 1 | number of the centre's voucher key | | 4 | time, Unix seconds of the centre |
//! | 8 | account | | 2 | counter, from 1 in each voucher |
//! | 4 | voucher number; grows per account | | 64 | signature of the phone |
//! | 4, 2 | issued, Unix seconds; life, minutes | | | |
//! | 3 | ceiling, fen; 0 is identity alone | | | |
//! | 1, 1 | patron class (0: the account's); flags (0) | | | |
//! | 33 or 32 | the phone's key: P-256 compressed (SEC 1), or Ed25519 | | | |
//! | 64 | Ed25519 over `"feiqian-voucher-1\0" ‖ all before` | | | |
//!
//! The phone signs `"feiqian-code-1\0" ‖ SHA-256(voucher) ‖ layout ‖ time ‖ counter`: Ed25519, or ECDSA with SHA-256 as r ‖ s
//! with the lower s, so that nobody can make a second signature out of one. In all 195 or 194 bytes; [`text`] has the forms in
//! which they are shown.
//!
//! **Order of checks**, each with a reason of its own ([`CodeFault::reason`]): layout, institution, centre key, the voucher's
//! signature, its period, the phone's signature, time. A node goes on with what it knows: the virtual card and its account, the
//! counter, permissions, limits. A voucher is verified by a key of the campus configuration only, never by one that came with it.
//!
//! **Money.** The centre holds a voucher's ceiling until the voucher has paid, or cannot any more ([`crate::entry::HoldPlaced`]). It
//! pays once, up to the ceiling, without right and without stand-in; the building gives a [`Receipt`] of it.

mod key;
mod receipt;
mod short;
mod text;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

pub use self::key::{KeyError, PhoneAlgorithm, PhoneKey, PhoneSecret};
pub use self::receipt::{Receipt, SignedReceipt};
pub use self::short::{ALIAS_END, STEP_S, ShortCode, ShortSecret, step_at};
use crate::canary::{Canary, planted};
use crate::chain::{hex, unhex};
use crate::entry::CodeUse;
use crate::ids::{AccountId, CardNumber, InstitutionId};
use crate::limits::ACCOUNT_END;
use crate::money::Fen;
use crate::tap::DeclineReason;
use crate::time::Timestamp;

/// How much older than its signing a code may be, in milliseconds: a phone shows a new one every 15 s, and somebody holds it up.
pub const CODE_AGE_MS_MAX: i64 = 40_000;

/// How far a code, or the issue of its voucher, may lie ahead, in milliseconds: the phone's clock is as good as that.
pub const CODE_AHEAD_MS_MAX: i64 = 10_000;

/// Largest ceiling of a voucher, in fen: what its 3 bytes hold.
pub const CEILING_FEN_MAX: Fen = Fen::new((1 << 24) - 1);

/// Voucher keys in one campus configuration: one in use, one to come, and those of which vouchers may still be about.
pub const VOUCHER_KEYS_MAX: usize = 8;

/// Bytes of a voucher before its phone key, and of every signature here.
const VOUCHER_FIXED_BYTES: usize = 27;
const SIGNATURE_BYTES: usize = 64;

/// Layout, time and counter of a code.
const STAMP_BYTES: usize = 7;

/// What the first half byte of a voucher, and the first byte of what the phone signs, say.
const LAYOUT: u8 = 1;

const VOUCHER_TAG: &[u8] = b"feiqian-voucher-1\0";
const CODE_TAG: &[u8] = b"feiqian-code-1\0";

/// What the numbers of virtual cards begin with; no other card's does.
const VIRTUAL_PREFIX: &str = "virtual:";

impl CardNumber {
    /// The virtual card of a phone's key. It is on no chip: a terminal that names it instead of showing a code is refused.
    pub fn of_phone(key: &PhoneKey) -> Self {
        let hash = Sha256::new()
            .chain_update(b"feiqian-virtual-card-1\0")
            .chain_update([key.algorithm().number()])
            .chain_update(key.as_bytes())
            .finalize();
        Self::new(format!("{VIRTUAL_PREFIX}{}", hex(&hash[..12]))).expect("a prefix and digits are a name")
    }

    /// True for the number of a virtual card.
    pub fn is_virtual(&self) -> bool {
        self.as_str().starts_with(VIRTUAL_PREFIX)
    }
}

/// A key that vouchers are verified by, as the campus configuration has it. Without one that a voucher names, it is worth
/// nothing: taking a number out of the configuration ends all its vouchers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VoucherKey {
    /// Its number, which vouchers carry.
    pub number: u8,
    /// Ed25519, in hexadecimal.
    #[serde(deserialize_with = "read_key", serialize_with = "write_key")]
    pub key: VerifyingKey,
    /// Vouchers issued before this are not its.
    pub from_ms: Timestamp,
    /// Nor those issued from this on.
    pub to_ms: Timestamp,
}

fn read_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<VerifyingKey, D::Error> {
    let bytes = unhex(&String::deserialize(deserializer)?).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let key = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok()).filter(|key| !key.is_weak());
    key.ok_or_else(|| {
        serde::de::Error::custom("a voucher key must be an Ed25519 public key of 64 hexadecimal digits")
    })
}

fn write_key<S: Serializer>(key: &VerifyingKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(key.as_bytes()))
}

/// What the centre says in a voucher.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Voucher {
    /// The institution.
    pub institution: InstitutionId,
    /// The number of the key that it is signed with.
    pub centre_key: u8,
    /// The account.
    pub account: AccountId,
    /// Its number, above that of every older one of the account.
    pub number: u32,
    /// When it was issued, in Unix seconds.
    pub issued: u32,
    /// How long it is good, in minutes; at least 1.
    pub life_minutes: u16,
    /// What may be spent with it where nobody can be asked, up to [`CEILING_FEN_MAX`]; 0 is identity alone.
    pub ceiling: Fen,
    /// The phone's key.
    pub phone: PhoneKey,
}

impl Voucher {
    /// The virtual card that it is for.
    pub fn card(&self) -> CardNumber {
        CardNumber::of_phone(&self.phone)
    }

    /// When it ends, in Unix seconds.
    pub fn until(&self) -> u32 {
        self.issued.saturating_add(u32::from(self.life_minutes) * 60)
    }

    /// Signs it.
    ///
    /// # Errors
    /// [`CodeFault::Layout`] where a field does not fit.
    pub fn sign(&self, key: &SigningKey) -> Result<SignedVoucher, CodeFault> {
        let ceiling = u32::try_from(self.ceiling.get()).map_err(|_| CodeFault::Layout)?.to_be_bytes();
        let mut bytes = Vec::with_capacity(self.phone.algorithm().voucher_bytes());
        bytes.push(LAYOUT << 4 | self.phone.algorithm().number());
        bytes.extend(self.institution.0.to_be_bytes());
        bytes.push(self.centre_key);
        bytes.extend(self.account.0.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.issued.to_be_bytes());
        bytes.extend(self.life_minutes.to_be_bytes());
        bytes.extend(&ceiling[1..]);
        bytes.extend([0, 0]);
        bytes.extend(self.phone.as_bytes());
        let signature = key.sign(&[VOUCHER_TAG, &bytes].concat());
        bytes.extend(signature.to_bytes());
        // Reading it again finds whatever a reader would not take.
        match SignedVoucher::from_bytes(&bytes) {
            Ok(signed) if signed.voucher == *self => Ok(signed),
            _ => Err(CodeFault::Layout),
        }
    }
}

/// A voucher as it travels. That its signature is right is not said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SignedVoucher {
    voucher: Voucher,
    bytes: Vec<u8>,
}

impl SignedVoucher {
    /// Reads one.
    ///
    /// # Errors
    /// [`CodeFault::Layout`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodeFault> {
        let (algorithm, mut rest) = read_algorithm(bytes)?;
        if bytes.len() != algorithm.voucher_bytes() {
            return Err(CodeFault::Layout);
        }
        let institution = InstitutionId(u16::from_be_bytes(take(&mut rest)?));
        let [centre_key] = take(&mut rest)?;
        let account = AccountId(u64::from_be_bytes(take(&mut rest)?));
        let number = u32::from_be_bytes(take(&mut rest)?);
        let issued = u32::from_be_bytes(take(&mut rest)?);
        let life_minutes = u16::from_be_bytes(take(&mut rest)?);
        let [high, middle, low] = take(&mut rest)?;
        let ceiling = Fen::new(i64::from(u32::from_be_bytes([0, high, middle, low])));
        let [class, flags] = take(&mut rest)?;
        let phone = rest.get(..algorithm.key_bytes()).ok_or(CodeFault::Layout)?;
        let phone = PhoneKey::new(algorithm, phone).map_err(|_| CodeFault::Layout)?;
        let account_fits = (1..ACCOUNT_END).contains(&account.0);
        if !account_fits || number == 0 || life_minutes == 0 || (class, flags) != (0, 0) {
            return Err(CodeFault::Layout);
        }
        let voucher =
            Voucher { institution, centre_key, account, number, issued, life_minutes, ceiling, phone };
        Ok(Self { voucher, bytes: bytes.to_vec() })
    }

    /// What it says.
    pub const fn voucher(&self) -> &Voucher {
        &self.voucher
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The key that it is verified by, where there is one here for when it was issued.
    fn key<'a>(&self, keys: &'a [VoucherKey]) -> Option<&'a VerifyingKey> {
        let issued = Timestamp(i64::from(self.voucher.issued) * 1_000);
        let key = keys.iter().find(|key| key.number == self.voucher.centre_key)?;
        (key.from_ms..key.to_ms).contains(&issued).then_some(&key.key)
    }

    fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        let (signed, signature) = self.bytes.split_at(self.bytes.len() - SIGNATURE_BYTES);
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        key.verify_strict(&[VOUCHER_TAG, signed].concat(), &signature).is_ok()
    }
}

/// A code. That it is signed is not said; see [`Code::check`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Code {
    /// The voucher.
    pub voucher: SignedVoucher,
    /// When the phone signed, in Unix seconds of the centre.
    pub time: u32,
    /// Grows with each code under a voucher.
    pub counter: u16,
    signature: [u8; SIGNATURE_BYTES],
}

impl Code {
    /// Signs one, as a phone does. Nothing where the counter is 0.
    pub fn sign(voucher: &SignedVoucher, secret: &PhoneSecret, time: u32, counter: u16) -> Option<Self> {
        let signature = secret.sign(&signed_by_phone(voucher, time, counter));
        (counter > 0).then(|| Self { voucher: voucher.clone(), time, counter, signature })
    }

    /// Reads the bytes of a code.
    ///
    /// # Errors
    /// [`CodeFault::Layout`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodeFault> {
        let (algorithm, _) = read_algorithm(bytes)?;
        let (voucher, mut rest) =
            bytes.split_at_checked(algorithm.voucher_bytes()).ok_or(CodeFault::Layout)?;
        let [layout] = take(&mut rest)?;
        let time = u32::from_be_bytes(take(&mut rest)?);
        let counter = u16::from_be_bytes(take(&mut rest)?);
        let signature = take(&mut rest)?;
        if layout != LAYOUT || counter == 0 || !rest.is_empty() {
            return Err(CodeFault::Layout);
        }
        Ok(Self { voucher: SignedVoucher::from_bytes(voucher)?, time, counter, signature })
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let stamp = stamp(self.time, self.counter);
        [self.voucher.as_bytes(), &stamp, &self.signature].concat()
    }

    /// Checks all that is no question of time. Some hundred microseconds of work, and none of it depends on anything else.
    pub fn check(self, institution: InstitutionId, keys: &[VoucherKey]) -> CheckedCode {
        let voucher = &self.voucher;
        let fault = if voucher.voucher.institution != institution {
            Some(CodeFault::Institution)
        } else {
            match voucher.key(keys) {
                None => Some(CodeFault::CentreKey),
                Some(key) if !voucher.is_signed_by(key) => Some(CodeFault::VoucherSignature),
                Some(_) => {
                    let signed = signed_by_phone(voucher, self.time, self.counter);
                    let right = voucher.voucher.phone.verify(&signed, &self.signature);
                    (!right).then_some(CodeFault::CodeSignature)
                }
            }
        };
        CheckedCode { voucher: voucher.voucher.clone(), time: self.time, counter: self.counter, fault }
    }
}

/// What a node decides by: a code and what its checks said. Made by [`Code::check`] only.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckedCode {
    voucher: Voucher,
    time: u32,
    counter: u16,
    fault: Option<CodeFault>,
}

impl CheckedCode {
    /// The voucher; only to be believed where [`CheckedCode::is_vouched_for`].
    pub const fn voucher(&self) -> &Voucher {
        &self.voucher
    }

    /// What is written of it where it is used.
    pub fn code_use(&self) -> CodeUse {
        CodeUse { voucher: self.voucher.number, counter: self.counter, until: self.voucher.until() }
    }

    /// True where the centre has signed the voucher: then it is about the account that it names, whoever shows it.
    pub fn is_vouched_for(&self) -> bool {
        self.fault.is_none_or(|fault| fault == CodeFault::CodeSignature)
    }

    /// Whether the code is good at this time.
    ///
    /// # Errors
    /// The first fault, in the order of checks.
    pub fn judge(&self, now: &CentreTime) -> Result<(), CodeFault> {
        let at = |seconds: u32| Timestamp(i64::from(seconds) * 1_000);
        match self.fault {
            Some(fault) if fault != CodeFault::CodeSignature => return Err(fault),
            _ => {}
        }
        let is_ahead =
            |time: Timestamp| now.latest.is_some_and(|latest| latest.plus_ms(CODE_AHEAD_MS_MAX) < time);
        if now.earliest > at(self.voucher.until()) || is_ahead(at(self.voucher.issued)) {
            return Err(CodeFault::Period);
        }
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let is_old = now.earliest > at(self.time).plus_ms(CODE_AGE_MS_MAX);
        if (is_old && !planted(Canary::CodeWindowUnchecked)) || is_ahead(at(self.time)) {
            return Err(CodeFault::Time);
        }
        Ok(())
    }
}

/// What is known of the centre's time: it is not before one time and not after another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CentreTime {
    /// Not before this.
    pub earliest: Timestamp,
    /// Not after this; absent where the clock is not proven.
    pub latest: Option<Timestamp>,
}

impl CentreTime {
    /// A time, and by how many milliseconds it may be wrong either way.
    pub const fn about(time: Timestamp, doubt_ms: i64) -> Self {
        Self { earliest: time.plus_ms(-doubt_ms), latest: Some(time.plus_ms(doubt_ms)) }
    }

    /// By how many milliseconds it may be wrong either way; absent where that is not bounded.
    pub fn doubt_ms(&self) -> Option<i64> {
        self.latest.map(|latest| latest.ms_since(self.earliest) / 2)
    }
}

/// Why a code is not good, in the order of checks.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, thiserror::Error)]
pub enum CodeFault {
    /// Not a code, in no form.
    #[error("not a code")]
    Layout,
    /// Of another institution.
    #[error("a code of another institution")]
    Institution,
    /// The key that it names is not in the configuration, or not for the time of its issue.
    #[error("the key of the voucher is not known here")]
    CentreKey,
    /// The centre has not signed the voucher.
    #[error("the voucher is not signed by the centre")]
    VoucherSignature,
    /// The voucher is over, or not yet issued.
    #[error("the voucher is not valid at this time")]
    Period,
    /// The phone that the voucher is for has not signed the code.
    #[error("the code is not signed by the phone of its voucher")]
    CodeSignature,
    /// The code is too old, or from the future.
    #[error("the code is not of this time")]
    Time,
}

impl CodeFault {
    /// What a tap with it is declined for.
    pub const fn reason(self) -> DeclineReason {
        match self {
            Self::Layout => DeclineReason::CodeUnreadable,
            Self::Institution => DeclineReason::CodeForeign,
            Self::CentreKey => DeclineReason::CodeKeyUnknown,
            Self::VoucherSignature => DeclineReason::VoucherForged,
            Self::Period => DeclineReason::VoucherExpired,
            Self::CodeSignature => DeclineReason::CodeForged,
            Self::Time => DeclineReason::CodeExpired,
        }
    }
}

fn stamp(time: u32, counter: u16) -> [u8; STAMP_BYTES] {
    let ([a, b, c, d], [e, f]) = (time.to_be_bytes(), counter.to_be_bytes());
    [LAYOUT, a, b, c, d, e, f]
}

fn signed_by_phone(voucher: &SignedVoucher, time: u32, counter: u16) -> Vec<u8> {
    [CODE_TAG, Sha256::digest(voucher.as_bytes()).as_slice(), &stamp(time, counter)].concat()
}

fn read_algorithm(bytes: &[u8]) -> Result<(PhoneAlgorithm, &[u8]), CodeFault> {
    let (first, rest) = bytes.split_first().ok_or(CodeFault::Layout)?;
    let algorithm = PhoneAlgorithm::from_number(first & 0x0f).filter(|_| first >> 4 == LAYOUT);
    Ok((algorithm.ok_or(CodeFault::Layout)?, rest))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], CodeFault> {
    let (taken, left) = rest.split_first_chunk().ok_or(CodeFault::Layout)?;
    *rest = left;
    Ok(*taken)
}

impl PhoneAlgorithm {
    const fn voucher_bytes(self) -> usize {
        VOUCHER_FIXED_BYTES + self.key_bytes() + SIGNATURE_BYTES
    }

    const fn code_bytes(self) -> usize {
        self.voucher_bytes() + STAMP_BYTES + SIGNATURE_BYTES
    }
}

// What the pictures are sized for.
const _: () =
    assert!(PhoneAlgorithm::P256.code_bytes() == 195 && PhoneAlgorithm::Ed25519.code_bytes() == 194);

#[cfg(test)]
mod tests;
