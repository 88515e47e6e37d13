//! What is kept of a request, to know a repeat of it.

use feiqian_protocol::entry::CodeUse;
use feiqian_protocol::tap::{Pin, TapKind, TapRequest};
use sha2::{Digest, Sha256};

use crate::code::code_use;

/// What a repeat must have in common with the first request. Of a PIN only that there was one: this is kept, and a PIN, or
/// what it could be found by, is not.
pub(crate) fn request_digest(request: &TapRequest) -> [u8; 16] {
    digest_with(request, code_use(request))
}

/// The same of a request whose code is known from what was written of it only.
pub(super) fn digest_with(request: &TapRequest, code: Option<CodeUse>) -> [u8; 16] {
    let (tag, number) = match request.kind {
        TapKind::Access => (0_u8, 0),
        TapKind::Amount(amount) => (1, amount.get()),
        TapKind::Quantity(quantity) => (2, i64::from(quantity)),
    };
    let pin = u8::from(request.pin != Pin::Absent);
    let parts: [&[u8]; 3] = [&[tag, pin], &number.to_be_bytes(), request.card.as_str().as_bytes()];
    match code {
        None => digest(&parts),
        Some(CodeUse { voucher, counter, .. }) => {
            let [asked, number, card] = parts;
            digest(&[asked, number, card, &voucher.to_be_bytes(), &counter.to_be_bytes()])
        }
    }
}

pub(crate) fn digest(parts: &[&[u8]]) -> [u8; 16] {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update((part.len() as u64).to_be_bytes());
        sha.update(part);
    }
    let hash: [u8; 32] = sha.finalize().into();
    std::array::from_fn(|index| hash[index])
}
