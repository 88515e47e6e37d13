//! The hash chain of a log, the signed head of each commit, and the centre's countersignature.
//!
//! `hash(0)` is 32 zero bytes; `hash(n) = SHA-256("feiqian-entry-1\0" ‖ log ‖ n ‖ hash(n-1) ‖ record(n))`, with the log
//! as institution (2 bytes), writer (2), stream (4) and n as 8 bytes, big-endian. So a record cannot be moved to another
//! log or position. One head is signed per commit (Ed25519, RFC 8032), over everything before it.

use ed25519_dalek::{Signer, SigningKey};
use minicbor::{Decode, Encode};
use sha2::{Digest, Sha256};

use crate::entry::{Actor, Body, Entry, RecordError};
use crate::ids::{CampusId, LogId};
use crate::limits::{ENTRIES_PER_FRAME_TARGET, FRAME_RECORDS_BYTES_TARGET, RECORD_BYTES_MAX};
use crate::public_key::PublicKey;
use crate::time::{Hlc, Timestamp};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The hash before the first entry.
pub const HASH_ZERO: Hash = [0; 32];

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
    }
    text
}

/// The bytes of lower- or upper-case hexadecimal; `None` for anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (pairs, rest) = text.as_bytes().as_chunks();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// How far a log goes: the number of its entries and the hash of the last.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Cursor {
    /// Entries so far; the position of the last one.
    #[n(0)]
    pub position: u64,
    /// Its hash.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub hash: Hash,
}

impl Cursor {
    /// Of an empty log.
    pub const START: Self = Self { position: 0, hash: HASH_ZERO };

    /// The cursor after one more record.
    pub fn after(&self, log: LogId, record: &[u8]) -> Self {
        let position = self.position + 1;
        let hash = Sha256::new()
            .chain_update(b"feiqian-entry-1\0")
            .chain_update(log.institution.0.to_be_bytes())
            .chain_update(log.writer.0.to_be_bytes())
            .chain_update(log.stream.to_be_bytes())
            .chain_update(position.to_be_bytes())
            .chain_update(self.hash)
            .chain_update(record)
            .finalize()
            .into();
        Self { position, hash }
    }
}

/// The head of a commit: what its writer signs.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Head {
    /// The log.
    #[n(0)]
    pub log: LogId,
    /// Where it ends with this commit.
    #[n(1)]
    pub cursor: Cursor,
    /// For a node's log: the position of the centre's stream for it that had been applied. Else 0.
    #[n(2)]
    pub applied: u64,
    /// The last centre-signed time that the writer held, grants included; for the centre, its own time.
    #[n(3)]
    pub anchor: Timestamp,
}

/// A head and its writer's signature.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct SignedHead {
    /// The head.
    #[n(0)]
    pub head: Head,
    /// Ed25519 over it.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

fn head_message(head: &Head) -> Vec<u8> {
    let mut message = b"feiqian-head-1\0".to_vec();
    minicbor::encode(head, &mut message).expect("writing to a Vec cannot fail");
    message
}

fn countersign_message(log: LogId, cursor: &Cursor) -> Vec<u8> {
    let mut message = b"feiqian-countersign-1\0".to_vec();
    minicbor::encode((log, cursor), &mut message).expect("writing to a Vec cannot fail");
    message
}

impl Head {
    /// Signs the head.
    pub fn sign(self, key: &SigningKey) -> SignedHead {
        SignedHead { head: self, signature: key.sign(&head_message(&self)).to_bytes() }
    }
}

impl SignedHead {
    /// True where `key` made the signature.
    pub fn is_signed_by(&self, key: &impl PublicKey) -> bool {
        key.has_signed(&head_message(&self.head), &self.signature)
    }
}

/// The centre's word that it holds a node's log up to a cursor.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Countersignature {
    /// The node's log.
    #[n(0)]
    pub log: LogId,
    /// Up to here.
    #[n(1)]
    pub cursor: Cursor,
    /// Ed25519 by the centre.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

impl Countersignature {
    /// Signs for the centre.
    pub fn sign(log: LogId, cursor: Cursor, key: &SigningKey) -> Self {
        Self { log, cursor, signature: key.sign(&countersign_message(log, &cursor)).to_bytes() }
    }

    /// True where `key` made it.
    pub fn is_signed_by(&self, key: &impl PublicKey) -> bool {
        key.has_signed(&countersign_message(self.log, &self.cursor), &self.signature)
    }
}

/// Appends to a log: counts, links, ticks the clock, and says when a head must be signed.
///
/// A commit ends with a signed head. A large one gets heads in between, so that what stands between two heads always
/// fits into one frame.
#[derive(Clone, Debug)]
pub struct LogWriter {
    log: LogId,
    cursor: Cursor,
    clock: Hlc,
    unsigned_entries: usize,
    unsigned_bytes: usize,
}

impl LogWriter {
    /// Continues a log after `cursor`, whose last entry had `clock`.
    pub const fn new(log: LogId, cursor: Cursor, clock: Hlc) -> Self {
        Self { log, cursor, clock, unsigned_entries: 0, unsigned_bytes: 0 }
    }

    /// The log.
    pub const fn log(&self) -> LogId {
        self.log
    }

    /// Where the log ends.
    pub const fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The clock of the last entry, or what was observed since.
    pub const fn clock(&self) -> Hlc {
        self.clock
    }

    /// Takes note of another writer's clock, so that what is written here later is ordered after it.
    pub fn observe(&mut self, peer: Hlc, wall: Timestamp) {
        self.clock = self.clock.observe(peer, wall);
    }

    /// Appends an entry; returns its position, bytes and the cursor after it.
    pub fn append(&mut self, wall: Timestamp, campus: CampusId, actor: Actor, body: Body) -> Appended {
        self.clock = self.clock.tick(wall);
        let entry = Entry { clock: self.clock, campus, actor, body };
        let record = entry.to_record();
        assert!(record.len() <= RECORD_BYTES_MAX, "an entry that we write fits a record");
        self.cursor = self.cursor.after(self.log, &record);
        self.unsigned_entries += 1;
        self.unsigned_bytes += record.len();
        Appended { cursor: self.cursor, clock: self.clock, record, entry }
    }

    /// True where so much stands unsigned that a head must be signed before the next entry.
    pub const fn head_due(&self) -> bool {
        self.unsigned_entries >= ENTRIES_PER_FRAME_TARGET || self.unsigned_bytes >= FRAME_RECORDS_BYTES_TARGET
    }

    /// Signs the head over all that was appended since the last; `None` where nothing was.
    pub fn sign_head(&mut self, applied: u64, anchor: Timestamp, key: &SigningKey) -> Option<SignedHead> {
        if self.unsigned_entries == 0 {
            return None;
        }
        self.unsigned_entries = 0;
        self.unsigned_bytes = 0;
        Some(Head { log: self.log, cursor: self.cursor, applied, anchor }.sign(key))
    }
}

/// What [`LogWriter::append`] made.
#[derive(Clone, Debug)]
pub struct Appended {
    /// Position and hash of the entry.
    pub cursor: Cursor,
    /// Its clock.
    pub clock: Hlc,
    /// Its bytes.
    pub record: Vec<u8>,
    /// What they say.
    pub entry: Entry,
}

/// Why a batch of records does not continue a log.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// Something between is missing, or comes again.
    #[error("log {log}: entry {got} is out of order, expected {expected}")]
    OutOfOrder {
        /// The log.
        log: LogId,
        /// The position that would continue it.
        expected: u64,
        /// The position that came.
        got: u64,
    },
    /// The signed head names another hash: the writer has two histories, or a record was altered on the way.
    #[error("log {log}: the signed head at {position} does not match the records before it")]
    Fork {
        /// The log.
        log: LogId,
        /// Where.
        position: u64,
    },
    /// The signature of a head is not the writer's.
    #[error("log {log}: the head at {position} is not signed by its writer")]
    Signature {
        /// The log.
        log: LogId,
        /// Where.
        position: u64,
    },
    /// A record is no entry.
    #[error("log {log}: entry {position}")]
    Record {
        /// The log.
        log: LogId,
        /// Where.
        position: u64,
        /// What is wrong.
        #[source]
        source: RecordError,
    },
    /// The clock of an entry is below the one before it, or a head's applied position or anchor falls.
    #[error("log {log}: the clock, applied position or anchor falls at {position}")]
    ClockFell {
        /// The log.
        log: LogId,
        /// Where.
        position: u64,
    },
}

/// An entry whose place in a log is proven: linked, under a signed head.
#[derive(Clone, Debug)]
pub struct VerifiedEntry {
    /// Its position.
    pub position: u64,
    /// Its hash.
    pub hash: Hash,
    /// Its bytes.
    pub record: Vec<u8>,
    /// What they say.
    pub entry: Entry,
}

/// The entries of one commit, proven.
#[derive(Clone, Debug)]
pub struct VerifiedCommit {
    /// The entries, in order; at least one.
    pub entries: Vec<VerifiedEntry>,
    /// The head that covers them.
    pub head: SignedHead,
}

/// What of a batch is proven, and what came after it that is not.
#[derive(Debug)]
pub struct Proven {
    /// The commits up to the first fault, in order.
    pub commits: Vec<VerifiedCommit>,
    /// The first fault. Nothing after it is looked at.
    pub fault: Option<ChainError>,
}

/// A part of a batch that [`salvage`] looked at.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A commit that is what its writer signed.
    Commit(VerifiedCommit),
    /// The writer signed something else than these records: what stood from `first` to its head is lost.
    Lost {
        /// The position of the first lost entry.
        first: u64,
        /// The head that covers the last one.
        head: SignedHead,
    },
}

/// Checks records that claim to continue `log` after `from`, and cuts them into commits at the signed heads. Records
/// after the last head are left out: they are not proven and will be sent again.
///
/// The signature is checked before a hash is called a fork, so that nobody but the writer can accuse the writer.
///
/// # Errors
/// [`ChainError`]; nothing of the batch is returned then. [`verify_prefix`] returns what comes before the fault.
pub fn verify(
    log: LogId,
    from: &Cursor,
    first: u64,
    records: Vec<Vec<u8>>,
    heads: &[SignedHead],
    key: &impl PublicKey,
) -> Result<Vec<VerifiedCommit>, ChainError> {
    let proven = verify_prefix(log, from, first, records, heads, key);
    proven.fault.map_or(Ok(proven.commits), Err)
}

/// As [`verify`], but what is proven before a fault is returned beside it: one altered record takes nothing with it that
/// was signed before it.
pub fn verify_prefix(
    log: LogId,
    from: &Cursor,
    first: u64,
    records: Vec<Vec<u8>>,
    heads: &[SignedHead],
    key: &impl PublicKey,
) -> Proven {
    let mut batch = match Batch::new(log, from, first, records) {
        Ok(batch) => batch,
        Err(fault) => return Proven { commits: Vec::new(), fault: Some(fault) },
    };
    let mut commits = Vec::with_capacity(heads.len());
    for head in heads {
        match batch.commit(head, key) {
            Ok(commit) => commits.push(commit),
            Err(fault) => return Proven { commits, fault: Some(fault) },
        }
    }
    Proven { commits, fault: None }
}

/// As [`verify`], for the log of a disk that was altered: where records are not what the writer signed, they are lost, and
/// the next ones are checked from the hash that it did sign. So an altered record costs its own commit and no other.
///
/// # Errors
/// [`ChainError`] other than [`ChainError::Fork`].
pub fn salvage(
    log: LogId,
    from: &Cursor,
    first: u64,
    records: Vec<Vec<u8>>,
    heads: &[SignedHead],
    key: &impl PublicKey,
) -> Result<Vec<Piece>, ChainError> {
    let mut batch = Batch::new(log, from, first, records)?;
    let mut pieces = Vec::with_capacity(heads.len());
    for head in heads {
        let first = batch.cursor.position + 1;
        pieces.push(match batch.commit(head, key) {
            Ok(commit) => Piece::Commit(commit),
            Err(ChainError::Fork { .. }) => {
                batch.cursor = head.head.cursor;
                batch.previous = Some((head.head.applied, head.head.anchor));
                Piece::Lost { first, head: *head }
            }
            Err(fault) => return Err(fault),
        });
    }
    Ok(pieces)
}

/// A batch under examination, commit by commit.
struct Batch {
    log: LogId,
    cursor: Cursor,
    clock: Hlc,
    records: std::vec::IntoIter<Vec<u8>>,
    /// Applied position and anchor of the head before.
    previous: Option<(u64, Timestamp)>,
}

impl Batch {
    fn new(log: LogId, from: &Cursor, first: u64, records: Vec<Vec<u8>>) -> Result<Self, ChainError> {
        if first != from.position + 1 {
            return Err(ChainError::OutOfOrder { log, expected: from.position + 1, got: first });
        }
        let records = records.into_iter();
        Ok(Self { log, cursor: *from, clock: Hlc::default(), records, previous: None })
    }

    /// The records up to a head, which must be signed over them.
    fn commit(&mut self, signed: &SignedHead, key: &impl PublicKey) -> Result<VerifiedCommit, ChainError> {
        let (log, head) = (self.log, &signed.head);
        let position = head.cursor.position;
        let expected = self.cursor.position + 1;
        if head.log != log || position < expected {
            return Err(ChainError::OutOfOrder { log, expected, got: position });
        }
        if !signed.is_signed_by(key) {
            return Err(ChainError::Signature { log, position });
        }
        let count = position - self.cursor.position;
        if count > self.records.len() as u64 {
            return Err(ChainError::OutOfOrder {
                log,
                expected: expected + self.records.len() as u64,
                got: position,
            });
        }
        let mut linked = Vec::with_capacity(count as usize);
        let mut cursor = self.cursor;
        for record in self.records.by_ref().take(count as usize) {
            cursor = cursor.after(log, &record);
            linked.push((cursor, record));
        }
        // Before anything else is said of the records: what was altered or swapped is a fork, whatever it reads like.
        if cursor.hash != head.cursor.hash {
            return Err(ChainError::Fork { log, position });
        }
        let mut entries = Vec::with_capacity(linked.len());
        let mut clock = self.clock;
        for (Cursor { position, hash }, record) in linked {
            let entry =
                Entry::from_record(&record).map_err(|source| ChainError::Record { log, position, source })?;
            if entry.clock < clock {
                return Err(ChainError::ClockFell { log, position });
            }
            clock = entry.clock;
            entries.push(VerifiedEntry { position, hash, record, entry });
        }
        if self.previous.is_some_and(|(applied, anchor)| head.applied < applied || head.anchor < anchor) {
            return Err(ChainError::ClockFell { log, position });
        }
        (self.cursor, self.clock) = (cursor, clock);
        self.previous = Some((head.applied, head.anchor));
        Ok(VerifiedCommit { entries, head: *signed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EpochEnd;
    use crate::ids::{Epoch, InstitutionId, NodeId};

    const LOG: LogId = LogId::node(InstitutionId(1), NodeId(1));

    fn record(clock: u64) -> Vec<u8> {
        Entry {
            clock: Hlc::from_bits(clock),
            campus: CampusId(1),
            actor: Actor::node(),
            body: Body::EpochEnd(EpochEnd { epoch: Epoch(clock as u32) }),
        }
        .to_record()
    }

    fn head(cursor: Cursor, key: &SigningKey) -> SignedHead {
        Head { log: LOG, cursor, applied: 0, anchor: Timestamp(0) }.sign(key)
    }

    #[test]
    fn a_batch_is_cut_at_its_heads_and_the_unproven_tail_left_out() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let records = vec![record(1), record(2), record(3)];
        let one = Cursor::START.after(LOG, &records[0]);
        let two = one.after(LOG, &records[1]);
        let heads = [head(one, &key), head(two, &key)];
        let commits = verify(LOG, &Cursor::START, 1, records.clone(), &heads, &key.verifying_key()).unwrap();
        assert_eq!(commits.iter().map(|commit| commit.entries.len()).collect::<Vec<_>>(), [1, 1]);

        let mut altered = records.clone();
        altered[1] = record(9);
        let error = verify(LOG, &Cursor::START, 1, altered, &heads, &key.verifying_key());
        assert!(matches!(error, Err(ChainError::Fork { position: 2, .. })));

        let other = SigningKey::from_bytes(&[8; 32]);
        let error = verify(LOG, &Cursor::START, 1, records.clone(), &heads, &other.verifying_key());
        assert!(matches!(error, Err(ChainError::Signature { position: 1, .. })));

        let error = verify(LOG, &one, 3, records[2..].to_vec(), &heads[1..], &key.verifying_key());
        assert!(matches!(error, Err(ChainError::OutOfOrder { expected: 2, got: 3, .. })));
    }

    #[test]
    fn what_is_proven_before_an_altered_record_is_kept_and_only_its_commit_is_lost() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let mut records: Vec<Vec<u8>> = (1..=5).map(record).collect();
        let mut cursor = Cursor::START;
        let heads: Vec<SignedHead> = records
            .iter()
            .map(|record| {
                cursor = cursor.after(LOG, record);
                head(cursor, &key)
            })
            .collect();
        let public = key.verifying_key();
        for bad in [record(9), Vec::new(), vec![0xff]] {
            records[2] = bad;
            let proven = verify_prefix(LOG, &Cursor::START, 1, records.clone(), &heads, &public);
            assert_eq!(proven.commits.len(), 2);
            assert!(matches!(proven.fault, Some(ChainError::Fork { position: 3, .. })), "{:?}", proven.fault);
            let pieces = salvage(LOG, &Cursor::START, 1, records.clone(), &heads, &public).unwrap();
            let kept: Vec<Option<u64>> = pieces
                .iter()
                .map(|piece| match piece {
                    Piece::Commit(commit) => Some(commit.head.head.cursor.position),
                    Piece::Lost { first, head } => {
                        assert_eq!((*first, head.head.cursor.position), (3, 3));
                        None
                    }
                })
                .collect();
            assert_eq!(kept, [Some(1), Some(2), None, Some(4), Some(5)]);
            // Nobody but the writer can call an entry lost.
            let mut forged = heads.clone();
            forged[2].signature[0] ^= 1;
            let salvaged = salvage(LOG, &Cursor::START, 1, records.clone(), &forged, &public);
            assert!(matches!(salvaged, Err(ChainError::Signature { position: 3, .. })));
        }
    }

    #[test]
    fn swapped_records_are_a_fork_whatever_their_clocks_say() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let records = vec![record(1), record(2)];
        let end = Cursor::START.after(LOG, &records[0]).after(LOG, &records[1]);
        let swapped = records.into_iter().rev().collect();
        let error = verify(LOG, &Cursor::START, 1, swapped, &[head(end, &key)], &key.verifying_key());
        assert!(matches!(error, Err(ChainError::Fork { position: 2, .. })));
    }

    #[test]
    fn a_falling_clock_is_refused() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let records = vec![record(2), record(1)];
        let end = Cursor::START.after(LOG, &records[0]).after(LOG, &records[1]);
        let error = verify(LOG, &Cursor::START, 1, records, &[head(end, &key)], &key.verifying_key());
        assert!(matches!(error, Err(ChainError::ClockFell { position: 2, .. })));
    }

    #[test]
    fn a_record_counts_only_at_its_own_place() {
        let record = record(1);
        let elsewhere = LogId::node(InstitutionId(1), NodeId(2));
        assert_ne!(Cursor::START.after(LOG, &record), Cursor::START.after(elsewhere, &record));
    }

    #[test]
    fn hex_round_trips() {
        assert_eq!(unhex(&hex(&[0, 15, 255])), Some(vec![0, 15, 255]));
        assert_eq!(unhex("0g"), None);
        assert_eq!(unhex("000"), None);
    }
}
