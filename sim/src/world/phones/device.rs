//! One phone: its key, its voucher, its counters; and codes and receipts that somebody makes up.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::SigningKey;
use feiqian_protocol::chain::unhex;
use feiqian_protocol::code::{
    Code, PhoneAlgorithm, PhoneSecret, Receipt, ShortCode, ShortSecret, SignedReceipt, SignedVoucher, Voucher,
};
use feiqian_protocol::ids::CardNumber;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use serde_json::Value;

use crate::seed::Seed;

/// A phone.
pub(super) struct Device {
    pub(super) secret: PhoneSecret,
    pub(super) card: CardNumber,
    voucher: Option<SignedVoucher>,
    /// How far the centre's time is ahead of its own clock, which is right.
    offset_ms: i64,
    /// The last counter of each voucher.
    counters: BTreeMap<u32, u16>,
    /// The vouchers of which it knows that they have paid.
    spent: BTreeSet<u32>,
    /// The one that it says it has used when it asks for another.
    pub(super) says: Option<u32>,
    /// Receipts that it has scanned and not brought yet.
    pub(super) receipts: Vec<String>,
    /// What it makes short codes by: alias and secret.
    short: Option<(u64, ShortSecret)>,
}

impl Device {
    pub(super) fn new(seed: &mut Seed) -> Self {
        let secret = secret(seed);
        let card = CardNumber::of_phone(&secret.key());
        Self {
            secret,
            card,
            voucher: None,
            offset_ms: 0,
            counters: BTreeMap::new(),
            spent: BTreeSet::new(),
            says: None,
            receipts: Vec::new(),
            short: None,
        }
    }

    /// Keeps what the centre has said of short codes.
    pub(super) fn keep_short(&mut self, told: &Value) {
        let alias = told["alias"].as_str().and_then(|alias| alias.parse().ok());
        let secret =
            unhex(told["secret"].as_str().unwrap_or_default()).and_then(|bytes| bytes.try_into().ok());
        self.short = alias.zip(secret).map(|(alias, secret)| (alias, ShortSecret::new(secret)));
    }

    /// The short code of a time, where it makes such.
    pub(super) fn short_code(&self, now: Timestamp) -> Option<ShortCode> {
        let (alias, secret) = self.short.as_ref()?;
        Some(secret.code(*alias, self.centre_time(now)))
    }

    pub(super) const fn centre_time(&self, now: Timestamp) -> Timestamp {
        now.plus_ms(self.offset_ms)
    }

    /// Keeps a voucher, or says with the next question that it has used it.
    pub(super) fn keep(&mut self, voucher: SignedVoucher, offset_ms: i64) {
        let number = voucher.voucher().number;
        if self.spent.contains(&number) {
            self.says = Some(number);
        } else {
            self.voucher = Some(voucher);
        }
        self.offset_ms = offset_ms;
    }

    /// A voucher has paid.
    pub(super) fn has_spent(&mut self, voucher: u32) {
        self.spent.insert(voucher);
        self.says = Some(voucher);
    }

    /// True where it has none that is worth showing: it has paid, or is half over.
    pub(super) fn wants_voucher(&self, now: Timestamp) -> bool {
        self.voucher.as_ref().is_none_or(|signed| {
            let voucher = signed.voucher();
            let half_s = (i64::from(voucher.issued) + i64::from(voucher.until())) / 2;
            self.spent.contains(&voucher.number) || now.0 >= half_s * 1_000
        })
    }

    /// A fresh code, where it has a voucher that is not over.
    pub(super) fn sign(&mut self, now: Timestamp) -> Option<Code> {
        let now = self.centre_time(now);
        let voucher = self.voucher.as_ref()?;
        let seconds = u32::try_from(now.0.div_euclid(1_000)).ok()?;
        if seconds >= voucher.voucher().until() {
            return None;
        }
        let counter = self.counters.entry(voucher.voucher().number).or_default();
        *counter = counter.checked_add(1)?;
        Code::sign(voucher, &self.secret, seconds, *counter)
    }
}

fn secret(seed: &mut Seed) -> PhoneSecret {
    loop {
        let bytes: [u8; 32] = std::array::from_fn(|_| seed.draw() as u8);
        // Hardly any 32 bytes are no key of the curve.
        if let Some(secret) = PhoneSecret::new(PhoneAlgorithm::P256, &bytes) {
            return secret;
        }
    }
}

fn thief(seed: &mut Seed) -> SigningKey {
    SigningKey::from_bytes(&std::array::from_fn(|_| seed.draw() as u8))
}

/// What somebody makes of a code who has neither the centre's key nor the phone's: the same voucher under a key of his own, or a
/// voucher of his own, with a higher ceiling.
pub(super) fn forged_code(code: Code, now: Timestamp, seed: &mut Seed) -> Code {
    let own = secret(seed);
    let seconds = u32::try_from(now.0.div_euclid(1_000)).unwrap_or_default();
    let voucher = if seed.chance(1, 2) {
        code.voucher.clone()
    } else {
        let ceiling = Fen::new(code.voucher.voucher().ceiling.get() + 10_000);
        let richer = Voucher { ceiling, ..code.voucher.voucher().clone() };
        richer.sign(&thief(seed)).unwrap_or_else(|_| code.voucher.clone())
    };
    Code::sign(&voucher, &own, seconds, code.counter).unwrap_or(code)
}

/// What somebody makes of a receipt so that it says less than was paid, or speaks of another voucher.
pub(super) fn forged_receipt(signed: &SignedReceipt, seed: &mut Seed) -> String {
    let receipt = *signed.receipt();
    let lower = Receipt { amount: Fen::new(1), ..receipt };
    let other = Receipt { voucher: receipt.voucher + 1, ..receipt };
    let made_up = match seed.below(3) {
        0 => lower.sign(&thief(seed)),
        1 => other.sign(&thief(seed)),
        _ => {
            // The building's own signature, under another amount.
            let mut bytes = signed.as_bytes().to_vec();
            bytes[29] ^= 1;
            SignedReceipt::from_bytes(&bytes).ok()
        }
    };
    // Digits that are none of ours.
    made_up.map_or_else(|| "92123".to_owned(), |receipt| receipt.to_digits())
}
