//! What two runs of one seed must have in common: a hash over everything that happened, in its order.
//!
//! Packets count with their times, ends, sizes and fates, not with their bytes: keys come from the operating system.

use std::sync::{Arc, Mutex, PoisonError};

use feiqian_protocol::chain::hex;
use sha2::{Digest, Sha256};

/// Kinds of what is noted, so that one kind is never taken for another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Noted {
    /// A packet.
    Packet = 1,
    /// Something that a person, a process or a fault did.
    Event = 2,
    /// All that was written to a disk.
    Disk = 3,
}

/// The hash, shared by all that have something to say.
#[derive(Clone, Debug, Default)]
pub struct Audit(Arc<Mutex<Sha256>>);

impl Audit {
    /// Notes numbers: at what time, and what.
    pub fn numbers(&self, noted: Noted, numbers: &[u64]) {
        let mut bytes = [0; 1 + 8 * 8];
        bytes[0] = noted as u8;
        let mut end = 1;
        for number in numbers {
            bytes[end..end + 8].copy_from_slice(&number.to_be_bytes());
            end += 8;
        }
        self.note(&bytes[..end]);
    }

    /// Notes a line.
    pub fn line(&self, at_ms: u64, line: &str) {
        self.numbers(Noted::Event, &[at_ms, line.len() as u64]);
        self.note(line.as_bytes());
    }

    /// Notes the digest of everything that was done on a disk.
    pub fn disk(&self, digest: u64) {
        self.numbers(Noted::Disk, &[digest]);
    }

    fn note(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).update(bytes);
    }

    /// The hash so far, as hex.
    pub fn digest(&self) -> String {
        hex(&self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_time_and_kind_count() {
        let digest = |notes: &[(Noted, u64)]| {
            let audit = Audit::default();
            for (noted, number) in notes {
                audit.numbers(*noted, &[*number]);
            }
            audit.digest()
        };
        let (packet, event) = (Noted::Packet, Noted::Event);
        let first = digest(&[(packet, 1), (event, 2)]);
        assert_eq!(first, digest(&[(packet, 1), (event, 2)]));
        for other in [&[(event, 2), (packet, 1)], &[(packet, 1), (packet, 2)], &[(packet, 1), (event, 3)]] {
            assert_ne!(first, digest(other));
        }
    }
}
