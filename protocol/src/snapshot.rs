//! The signed snapshot of an account stream: what its entries up to a position say, in place of them.
//!
//! The account streams are independent of one another, so each has snapshots of its own: the projections of its accounts
//! (documents with what they project to, posted balances), how far each node's log is posted in them, and, with stream 0,
//! the campus configuration. A snapshot is a [`SignedSnapshot`] and pieces of bounded size, which a running digest ties to
//! it: `digest(0)` is 32 zero bytes, `digest(n) = SHA-256("feiqian-piece-1\0" ‖ digest(n-1) ‖ piece(n))`. The centre signs the
//! stream, the position with the stream's own head there, its time, and the digest, so a piece is worth nothing in another
//! snapshot, stream or institution.
//!
//! Whoever has all pieces holds the same projection as whoever folded the stream, and follows the stream from there. A node
//! that has folded it already checks itself by the digest of the projection, without any piece.

use ed25519_dalek::{Signer, SigningKey};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use sha2::{Digest, Sha256};

use crate::account::AccountSettings;
use crate::balance::ProjectionDigest;
use crate::chain::{Cursor, HASH_ZERO, Hash, SignedHead, hex};
use crate::entry::PostedHead;
use crate::ids::{AccountId, InstitutionId, LogId, Wallet};
use crate::limits::{
    CAMPUS_CONFIG_BYTES_MAX, DOCUMENT_BYTES_MAX, SNAPSHOT_PIECE_BYTES_MAX, SNAPSHOT_PIECE_BYTES_TARGET,
    SNAPSHOT_POSTED_MAX,
};
use crate::money::Fen;
use crate::public_key::PublicKey;
use crate::time::Timestamp;

/// One account, as the entries of its stream have left it.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct AccountState {
    /// The account.
    #[n(0)]
    pub account: AccountId,
    /// Its document (automerge, saved).
    #[n(1)]
    pub document: ByteVec,
    /// What the document projects to: [`AccountSettings::canonical`].
    #[n(2)]
    pub settings: String,
    /// The heads of the document, sorted.
    #[n(3)]
    pub heads: Vec<ByteVec>,
    /// Posted balances of the wallets that ever had one.
    #[n(4)]
    pub balances: Vec<(Wallet, Fen)>,
}

impl AccountState {
    /// The settings.
    ///
    /// # Errors
    /// [`SnapshotError::Piece`] where they are no settings.
    pub fn read_settings(&self) -> Result<AccountSettings, SnapshotError> {
        serde_json::from_str(&self.settings).map_err(|_| SnapshotError::Piece("settings that cannot be read"))
    }

    /// The heads as sorted hexadecimal.
    pub fn hex_heads(&self) -> Vec<String> {
        self.heads.iter().map(|head| hex(head)).collect()
    }

    /// Adds the account's lines to the digest of a projection.
    pub fn digest_into(&self, digest: &mut ProjectionDigest) {
        for (wallet, posted) in &self.balances {
            digest.balance(self.account, *wallet, *posted);
        }
        digest.document(self.account, &self.settings, &self.hex_heads());
    }
}

/// The campus configuration as stream 0 has left it.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct CampusState {
    /// Its version.
    #[n(0)]
    pub version: u32,
    /// The configuration, as published.
    #[n(1)]
    pub config: ByteVec,
    /// True where this configuration or any before it let stand-in be unlimited.
    #[n(2)]
    pub unlimited: bool,
}

/// What the centre signs of a snapshot.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Snapshot {
    /// The head of the stream at the snapshot's position, signed as any head.
    #[n(0)]
    pub end: SignedHead,
    /// When it was taken, by the centre's time.
    #[n(1)]
    pub time: Timestamp,
    /// Accounts in it.
    #[n(2)]
    pub accounts: u64,
    /// Its pieces.
    #[n(3)]
    pub pieces: u32,
    /// The running digest after the last piece.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub digest: Hash,
    /// The digest of the projection of the stream's accounts, hexadecimal; see [`ProjectionDigest`].
    #[n(5)]
    pub projection: String,
    /// For every log with posted entries: everything of it up to here that touches this stream is in the balances.
    #[n(6)]
    pub posted: Vec<PostedHead>,
    /// With stream 0, the campus configuration, where one was published.
    #[n(7)]
    pub campus: Option<CampusState>,
}

/// A snapshot and the centre's signature.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct SignedSnapshot {
    /// The snapshot.
    #[n(0)]
    pub snapshot: Snapshot,
    /// Ed25519 over it.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

/// Some accounts of a snapshot, in order.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct SnapshotPiece {
    /// The stream.
    #[n(0)]
    pub log: LogId,
    /// The snapshot's position in it.
    #[n(1)]
    pub position: u64,
    /// Counts from 0.
    #[n(2)]
    pub index: u32,
    /// CBOR of [`AccountState`]s, by account.
    #[n(3)]
    pub accounts: ByteVec,
}

/// So many pieces of a snapshot are durable at the node; all of them: it is installed.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct SnapshotAck {
    /// The stream.
    #[n(0)]
    pub log: LogId,
    /// The snapshot's position in it.
    #[n(1)]
    pub position: u64,
    /// Pieces.
    #[n(2)]
    pub pieces: u32,
    /// True where the node has folded the stream up to there and its projection is another one.
    #[n(3)]
    pub differs: bool,
}

/// Why a snapshot or a piece is not taken. Nothing was changed.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum SnapshotError {
    /// Of another institution, or of no account stream.
    #[error("a snapshot of {0}, which is no account stream of this institution")]
    Log(LogId),
    /// Not signed by the centre, or the head in it is not.
    #[error("the snapshot of {0} is not signed by the centre")]
    Signature(LogId),
    /// A field that makes no sense.
    #[error("the snapshot of {log} makes no sense: {what}")]
    Sense {
        /// The stream.
        log: LogId,
        /// What.
        what: &'static str,
    },
    /// A piece that cannot be read.
    #[error("a piece of a snapshot has {0}")]
    Piece(&'static str),
    /// The pieces are not those that were signed.
    #[error("the pieces of the snapshot of {0} are not those that the centre signed")]
    Digest(LogId),
}

impl Snapshot {
    /// The stream.
    pub const fn log(&self) -> LogId {
        self.end.head.log
    }

    /// Where in the stream.
    pub const fn cursor(&self) -> Cursor {
        self.end.head.cursor
    }

    fn message(&self) -> Vec<u8> {
        let mut message = b"feiqian-snapshot-1\0".to_vec();
        minicbor::encode(self, &mut message).expect("writing to a Vec cannot fail");
        message
    }

    /// Signs for the centre.
    pub fn sign(self, key: &SigningKey) -> SignedSnapshot {
        let signature = key.sign(&self.message()).to_bytes();
        SignedSnapshot { snapshot: self, signature }
    }
}

impl SignedSnapshot {
    /// Checks that this is a snapshot of an account stream of the institution, signed by its centre.
    ///
    /// # Errors
    /// [`SnapshotError`] says what is wrong.
    pub fn check(&self, institution: InstitutionId, centre: &impl PublicKey) -> Result<u8, SnapshotError> {
        let log = self.snapshot.log();
        let shard = log.as_shard().filter(|_| log.institution == institution);
        let Some(shard) = shard else { return Err(SnapshotError::Log(log)) };
        if !centre.has_signed(&self.snapshot.message(), &self.signature)
            || !self.snapshot.end.is_signed_by(centre)
        {
            return Err(SnapshotError::Signature(log));
        }
        let sense = |what| Err(SnapshotError::Sense { log, what });
        if self.snapshot.posted.len() > SNAPSHOT_POSTED_MAX {
            return sense("too many logs are posted in it");
        }
        if (self.snapshot.accounts == 0) != (self.snapshot.pieces == 0) {
            return sense("its pieces do not fit its accounts");
        }
        if self.snapshot.campus.as_ref().is_some_and(|campus| campus.config.len() > CAMPUS_CONFIG_BYTES_MAX) {
            return sense("its campus configuration is too large");
        }
        Ok(shard)
    }
}

/// The running digest over pieces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PieceDigest(pub Hash);

impl Default for PieceDigest {
    fn default() -> Self {
        Self(HASH_ZERO)
    }
}

impl PieceDigest {
    /// The digest with one more piece.
    pub fn with(self, piece: &[u8]) -> Self {
        let sha = Sha256::new().chain_update(b"feiqian-piece-1\0").chain_update(self.0).chain_update(piece);
        Self(sha.finalize().into())
    }
}

/// Cuts accounts into pieces.
#[derive(Debug, Default)]
pub struct PieceWriter {
    bytes: Vec<u8>,
}

impl PieceWriter {
    /// Adds an account; returns a piece that is full.
    pub fn add(&mut self, account: &AccountState) -> Option<Vec<u8>> {
        minicbor::encode(account, &mut self.bytes).expect("writing to a Vec cannot fail");
        (self.bytes.len() >= SNAPSHOT_PIECE_BYTES_TARGET).then(|| std::mem::take(&mut self.bytes))
    }

    /// The last piece, where there is something left.
    pub fn finish(self) -> Option<Vec<u8>> {
        (!self.bytes.is_empty()).then_some(self.bytes)
    }
}

/// The accounts of a piece of a shard, which come after `after`, in order.
///
/// # Errors
/// [`SnapshotError::Piece`] for bytes that are no piece, or accounts that do not belong there.
pub fn read_piece(piece: &[u8], shard: u8, after: AccountId) -> Result<Vec<AccountState>, SnapshotError> {
    if piece.len() > SNAPSHOT_PIECE_BYTES_MAX {
        return Err(SnapshotError::Piece("too many bytes"));
    }
    let mut decoder = minicbor::Decoder::new(piece);
    let mut accounts: Vec<AccountState> = Vec::new();
    let mut last = after;
    while decoder.position() < piece.len() {
        let account: AccountState =
            decoder.decode().map_err(|_| SnapshotError::Piece("an account that cannot be read"))?;
        if account.account <= last || account.account.shard() != shard {
            return Err(SnapshotError::Piece("an account out of place"));
        }
        if account.document.len() > DOCUMENT_BYTES_MAX {
            return Err(SnapshotError::Piece("a document that is too large"));
        }
        last = account.account;
        accounts.push(account);
    }
    if accounts.is_empty() {
        return Err(SnapshotError::Piece("no account"));
    }
    Ok(accounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Head;

    const LOG: LogId = LogId::shard(InstitutionId(1), 3);

    fn account(number: u64, document: usize) -> AccountState {
        AccountState {
            account: AccountId(number),
            document: vec![7; document].into(),
            settings: "{}".to_owned(),
            heads: vec![vec![1; 32].into()],
            balances: vec![(Wallet::Cash, Fen::new(5))],
        }
    }

    fn snapshot(log: LogId, key: &SigningKey) -> Snapshot {
        let cursor = Cursor { position: 9, hash: [4; 32] };
        Snapshot {
            end: Head { log, cursor, applied: 0, anchor: Timestamp(5) }.sign(key),
            time: Timestamp(5),
            accounts: 1,
            pieces: 1,
            digest: PieceDigest::default().with(b"piece").0,
            projection: String::new(),
            posted: Vec::new(),
            campus: None,
        }
    }

    #[test]
    fn only_the_centre_of_this_institution_signs_one() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let other = SigningKey::from_bytes(&[8; 32]);
        let centre = key.verifying_key();
        let signed = snapshot(LOG, &key).sign(&key);
        assert_eq!(signed.check(InstitutionId(1), &centre), Ok(3));
        assert_eq!(signed.check(InstitutionId(2), &centre), Err(SnapshotError::Log(LOG)));
        let node = LogId::node(InstitutionId(1), crate::ids::NodeId(1));
        assert_eq!(
            snapshot(node, &key).sign(&key).check(InstitutionId(1), &centre),
            Err(SnapshotError::Log(node))
        );
        let forged = [snapshot(LOG, &key).sign(&other), snapshot(LOG, &other).sign(&key)];
        for forged in forged {
            assert_eq!(forged.check(InstitutionId(1), &centre), Err(SnapshotError::Signature(LOG)));
        }
        let altered: [fn(&mut Snapshot); 5] = [
            |snapshot| snapshot.digest[0] ^= 1,
            |snapshot| snapshot.pieces += 1,
            |snapshot| snapshot.time = Timestamp(6),
            |snapshot| snapshot.end.head.cursor.position += 1,
            |snapshot| {
                snapshot.campus = Some(CampusState { version: 9, config: vec![].into(), unlimited: true });
            },
        ];
        for alter in altered {
            let mut altered = signed.clone();
            alter(&mut altered.snapshot);
            assert_eq!(altered.check(InstitutionId(1), &centre), Err(SnapshotError::Signature(LOG)));
        }
    }

    #[test]
    fn pieces_are_bounded_and_give_their_accounts_back() {
        let accounts: Vec<_> = (0..100).map(|index| account(3 + 16 * index, 2_000)).collect();
        let mut writer = PieceWriter::default();
        let mut pieces: Vec<Vec<u8>> = accounts.iter().filter_map(|account| writer.add(account)).collect();
        pieces.extend(writer.finish());
        assert!(pieces.len() > 2);
        let mut read = Vec::new();
        for piece in &pieces {
            assert!(piece.len() < SNAPSHOT_PIECE_BYTES_TARGET + 3_000);
            let after = read.last().map_or(AccountId(0), |last: &AccountState| last.account);
            read.extend(read_piece(piece, 3, after).unwrap());
        }
        assert_eq!(read, accounts);
        let last = accounts[99].account;
        assert!(read_piece(&pieces[0], 3, last).is_err(), "out of order");
        assert!(read_piece(&pieces[0], 4, AccountId(0)).is_err(), "another shard's");
        assert!(read_piece(&pieces[0][1..], 3, AccountId(0)).is_err());
        assert!(read_piece(&[], 3, AccountId(0)).is_err());
        let digest = |pieces: &[Vec<u8>]| {
            pieces.iter().fold(PieceDigest::default(), |digest, piece| digest.with(piece))
        };
        let whole = digest(&pieces);
        assert_ne!(whole, digest(&pieces[1..]));
        pieces.swap(0, 1);
        assert_ne!(whole, digest(&pieces));
    }
}
