//! Whose signatures count: a writer's public key, by itself or with a memory of what it has found right.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ed25519_dalek::{Signature, VerifyingKey};

/// Signatures that are remembered at most. They are asked for again within seconds, by the other readers of a stream.
const REMEMBERED_MAX: usize = 4_096;

/// Tells whether a signature is right.
pub trait PublicKey {
    /// True where the owner of the key signed the message. Strict (RFC 8032 with the checks of `verify_strict`):
    /// small-order keys and malleable signatures do not pass.
    fn has_signed(&self, message: &[u8], signature: &[u8; 64]) -> bool;
}

impl PublicKey for VerifyingKey {
    fn has_signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

/// Messages by their right signatures.
type Remembered = BTreeMap<[u8; 64], Vec<u8>>;

/// The centre's key, as a node holds it.
///
/// The centre sends the same signed heads to every node. Where many nodes run in one process, clones of a key that
/// [remembers](Self::remembering) verify each of them once; the answers are those of the key alone.
#[derive(Clone, Debug)]
pub struct CentreKey {
    key: VerifyingKey,
    right: Option<Arc<Mutex<Remembered>>>,
}

impl From<VerifyingKey> for CentreKey {
    fn from(key: VerifyingKey) -> Self {
        Self { key, right: None }
    }
}

impl CentreKey {
    /// A key that remembers the signatures which it has found right, together with its clones.
    pub fn remembering(key: VerifyingKey) -> Self {
        Self { key, right: Some(Arc::default()) }
    }
}

impl PublicKey for CentreKey {
    fn has_signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let Some(right) = &self.right else { return self.key.has_signed(message, signature) };
        let mut right = right.lock().unwrap_or_else(PoisonError::into_inner);
        if right.get(signature).is_some_and(|signed| signed == message) {
            return true;
        }
        let is_right = self.key.has_signed(message, signature);
        if is_right {
            if right.len() >= REMEMBERED_MAX {
                right.clear();
            }
            right.insert(*signature, message.to_vec());
        }
        is_right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    #[test]
    fn a_key_that_remembers_says_what_the_key_says() {
        let signer = SigningKey::from_bytes(&[7; 32]);
        let key = CentreKey::remembering(signer.verifying_key());
        let signature = signer.sign(b"a head").to_bytes();
        let mut altered = signature;
        altered[3] ^= 1;
        for _ in 0..2 {
            assert!(key.clone().has_signed(b"a head", &signature));
            assert!(!key.has_signed(b"another head", &signature), "remembered for its own message only");
            assert!(!key.has_signed(b"a head", &altered));
        }
        assert!(
            !CentreKey::from(SigningKey::from_bytes(&[8; 32]).verifying_key())
                .has_signed(b"a head", &signature)
        );
    }
}
