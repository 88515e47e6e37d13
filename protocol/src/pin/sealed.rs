//! PINs on their way to the centre: what was typed where a PIN is changed in a building, which the building's log carries.
//!
//! Sealed with ChaCha20-Poly1305 (RFC 8439) under a key of its own for every change: HMAC-SHA-256 of the node's PIN key, which
//! the centre has, over account and new generation. So the nonce is constant. Whoever has the node's PIN key has what its
//! verifiers are worth as well ([`super`]): a key pair of the centre's for this alone would protect nothing more.

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{Aead, KeyInit, Nonce, Payload};
use hmac::{Hmac, Mac};
use minicbor::{Decode, Encode};
use sha2::Sha256;

use super::{PinGeneration, PinHash, PinKey};
use crate::ids::AccountId;

/// Two hashes and the tag.
const SEALED_BYTES: usize = 32 + 32 + 16;

/// What was typed, hashed: the PIN that there was, and the one that the holder has chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TypedPins {
    /// Under the generation that the account had.
    pub current: PinHash,
    /// Under the new one.
    pub chosen: PinHash,
}

/// Typed PINs that the centre alone can read, and the node that sealed them.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
#[cbor(transparent)]
pub struct SealedPins(#[cbor(n(0), with = "minicbor::bytes")] [u8; SEALED_BYTES]);

impl PinKey {
    /// Seals what was typed for an account, to become this generation.
    pub fn seal(&self, account: AccountId, generation: PinGeneration, typed: &TypedPins) -> SealedPins {
        let text = [typed.current.to_bytes(), typed.chosen.to_bytes()].concat();
        let sealed =
            self.cipher(account, generation).encrypt(&Nonce::<ChaCha20Poly1305>::default(), &text[..]);
        let sealed = sealed.expect("two hashes are far from the longest text that is sealed");
        SealedPins(sealed.try_into().expect("two hashes and a tag"))
    }

    /// What was typed; nothing where it was not sealed under this key, or for something else.
    pub fn unseal(
        &self,
        account: AccountId,
        generation: PinGeneration,
        sealed: &SealedPins,
    ) -> Option<TypedPins> {
        let sealed = Payload { msg: &sealed.0, aad: &[] };
        let text =
            self.cipher(account, generation).decrypt(&Nonce::<ChaCha20Poly1305>::default(), sealed).ok()?;
        let (current, chosen) = text.split_first_chunk()?;
        Some(TypedPins { current: PinHash::new(*current), chosen: PinHash::new(chosen.try_into().ok()?) })
    }

    fn cipher(&self, account: AccountId, generation: PinGeneration) -> ChaCha20Poly1305 {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.to_bytes())
            .expect("HMAC takes a key of any length");
        mac.update(b"feiqian-pin-seal-1\0");
        mac.update(&account.0.to_be_bytes());
        mac.update(&generation.0);
        ChaCha20Poly1305::new(&mac.finalize().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_account_and_generation_read_it() {
        let typed = TypedPins { current: PinHash::new([1; 32]), chosen: PinHash::new([2; 32]) };
        let (key, account, generation) = (PinKey::new([7; 32]), AccountId(5), PinGeneration([3; 16]));
        let sealed = key.seal(account, generation, &typed);
        assert_eq!(key.unseal(account, generation, &sealed), Some(typed));
        assert_eq!(PinKey::new([8; 32]).unseal(account, generation, &sealed), None);
        assert_eq!(key.unseal(AccountId(6), generation, &sealed), None);
        assert_eq!(key.unseal(account, PinGeneration([4; 16]), &sealed), None);
        for at in 0..SEALED_BYTES {
            let mut changed = sealed;
            changed.0[at] ^= 1;
            assert_eq!(key.unseal(account, generation, &changed), None, "byte {at}");
        }
        assert!(!format!("{sealed:?} {typed:?}").contains("TypedPins { current: PinHash([1"));
    }
}
