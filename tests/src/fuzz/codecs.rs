//! What travels and what is signed: records, frames, heads, enrolment messages.
//!
//! A reader takes more than a writer makes: CBOR has longer forms of the same number, and a newer build appends fields.
//! That is harmless, since what is hashed, signed, kept and passed on are the bytes as received, never what they are
//! encoded to again; so two forms of one entry are two records, and the signed head says which one it was. What is checked
//! here is that reading, writing and reading again gives the same, in the one form that a writer makes.

use ed25519_dalek::SigningKey;
use feiqian_protocol::balance::{ProjectionDigest, balance_deltas};
use feiqian_protocol::chain::{Countersignature, Cursor, Head, SignedHead, verify};
use feiqian_protocol::enrol::{
    self, EnrolAnswer, EnrolCode, RenewAnswer, RenewRequest, Role, SealedEnrolRequest,
};
use feiqian_protocol::entry::Entry;
use feiqian_protocol::frame::{Frame, LOG_FILE_MAGIC};
use feiqian_protocol::ids::{AccountId, LogId, NodeId};
use feiqian_protocol::limits::{RECORD_BYTES_MAX, SHARDS};
use feiqian_protocol::session::pack;
use feiqian_protocol::snapshot::{AccountState, PieceWriter, read_piece};

use super::script::{INSTITUTION, Script};

/// An entry's record.
pub fn record(data: &[u8]) {
    let Ok(entry) = Entry::from_record(data) else { return };
    let record = entry.to_record();
    assert!(record.len() <= RECORD_BYTES_MAX, "what was read can be written");
    let again = Entry::from_record(&record).expect("what was written is read");
    assert_eq!(again, entry);
    assert_eq!(again.to_record(), record, "equal entries have equal bytes");
    // What is done with any entry, whoever wrote it.
    serde_json::to_string(&entry).expect("an export shows every entry");
    balance_deltas(&entry.body);
    for role in [Role::Desk, Role::Door, Role::Kiosk, Role::Pos] {
        role.may_write(&entry.body);
    }
}

/// A frame without its length.
pub fn frame(data: &[u8]) {
    let Ok(frame) = Frame::from_bytes(data) else { return };
    let bytes = frame.to_bytes();
    let again = Frame::from_bytes(&bytes).expect("what was written is read");
    assert_eq!(again, frame);
    assert_eq!(again.to_bytes(), bytes);
    if let Frame::Entries(entries) = frame {
        entries.records.iter().for_each(|data| record(data));
    }
}

/// A node's log in a file, with or without what such a file begins with.
pub fn log_file(data: &[u8]) {
    let mut file = data.strip_prefix(LOG_FILE_MAGIC).unwrap_or(data);
    while let Ok(Some(bytes)) = feiqian_reconcile::import::next_frame(&mut file) {
        frame(&bytes);
    }
}

/// Signed heads and countersignatures.
pub fn heads(data: &[u8]) {
    if let Ok(head) = minicbor::decode::<SignedHead>(data) {
        let bytes = minicbor::to_vec(head).expect("writing to a Vec cannot fail");
        assert_eq!(minicbor::decode::<SignedHead>(&bytes).ok(), Some(head));
        assert!(!head.is_signed_by(&key().verifying_key()), "nobody signed it");
    }
    if let Ok(signed) = minicbor::decode::<Countersignature>(data) {
        let bytes = minicbor::to_vec(signed).expect("writing to a Vec cannot fail");
        assert_eq!(minicbor::decode::<Countersignature>(&bytes).ok(), Some(signed));
        assert!(!signed.is_signed_by(&key().verifying_key()), "nobody signed it");
    }
}

/// A batch of a log: records as they come, under heads that are signed and say what the script says.
pub fn chain(data: &[u8]) {
    let mut script = Script::new(data);
    let log = LogId::node(INSTITUTION, NodeId(1));
    let from = if script.rarely(4) {
        Cursor { position: script.u64().min(u64::MAX - 64), hash: [script.byte(); 32] }
    } else {
        Cursor::START
    };
    let mut records = Vec::new();
    let mut heads = Vec::new();
    let mut cursor = from;
    while !script.is_over() && records.len() < 48 {
        let record = match script.choice(4) {
            0 => script.bytes(80).to_vec(),
            _ => Entry {
                clock: feiqian_protocol::time::Hlc::from_bits(script.u64()),
                campus: feiqian_protocol::ids::CampusId(1),
                actor: script.actor(),
                body: script.node_body(feiqian_protocol::ids::Epoch::FIRST, cursor.position),
            }
            .to_record(),
        };
        cursor = cursor.after(log, &record);
        records.push(record);
        if script.rarely(3) {
            let mut head = Head { log, cursor, applied: script.u64(), anchor: script.time() };
            if script.rarely(16) {
                head.cursor.position = script.near(cursor.position);
            }
            if script.rarely(16) {
                head.log = script.log();
            }
            if script.rarely(16) {
                head.cursor.hash[0] ^= 1;
            }
            heads.push(head.sign(&key()));
        }
    }
    let first = if script.rarely(8) { script.near(from.position + 1) } else { from.position + 1 };
    let Ok(commits) = verify(log, &from, first, records.clone(), &heads, &key().verifying_key()) else {
        return;
    };
    let proven: usize = commits.iter().map(|commit| commit.entries.len()).sum();
    assert_eq!(commits.len(), heads.len());
    assert!(proven <= records.len());
    let verified = commits.iter().flat_map(|commit| &commit.entries);
    for ((entry, record), position) in verified.zip(&records).zip(first..) {
        assert_eq!((&entry.record, entry.position), (record, position));
    }
    // What is passed on proves the same.
    let Some(packed) = pack(log, from.position, records.into_iter().take(proven), heads) else { return };
    let passed_on: Vec<Vec<u8>> = packed.records.iter().map(|record| record.to_vec()).collect();
    let again = verify(log, &from, packed.first, passed_on, &packed.heads, &key().verifying_key());
    let again = again.expect("what was proven can be passed on");
    let end = again.last().map(|commit| commit.head.head.cursor.position);
    assert_eq!(end, Some(from.position + packed.records.len() as u64));
}

/// A request for enrolment or for a renewal, or the answer.
pub fn enrolment(data: &[u8]) {
    if let Ok(sealed) = enrol::decode::<SealedEnrolRequest>(data) {
        let bytes = minicbor::to_vec(&sealed).expect("writing to a Vec cannot fail");
        assert_eq!(enrol::decode::<SealedEnrolRequest>(&bytes).ok().as_ref(), Some(&sealed));
        let code = EnrolCode { secret: [7; 16], ca: [0; 16] };
        assert!(!code.verify(&sealed.request, &sealed.mac), "nobody sealed it");
    }
    if let Ok(answer) = enrol::decode::<EnrolAnswer>(data) {
        let bytes = minicbor::to_vec(&answer).expect("writing to a Vec cannot fail");
        assert_eq!(enrol::decode::<EnrolAnswer>(&bytes).ok(), Some(answer));
    }
    if let Ok(request) = enrol::decode::<RenewRequest>(data) {
        let bytes = minicbor::to_vec(request).expect("writing to a Vec cannot fail");
        assert_eq!(enrol::decode::<RenewRequest>(&bytes).ok(), Some(request));
    }
    if let Ok(answer) = enrol::decode::<RenewAnswer>(data) {
        let bytes = minicbor::to_vec(&answer).expect("writing to a Vec cannot fail");
        assert_eq!(enrol::decode::<RenewAnswer>(&bytes).ok(), Some(answer));
    }
}

/// A piece of a snapshot; the first byte says of which shard.
pub fn piece(data: &[u8]) {
    let Some((shard, piece)) = data.split_first() else { return };
    let Ok(accounts) = read_piece(piece, shard % SHARDS, AccountId(0)) else { return };
    let mut writer = PieceWriter::default();
    let mut pieces: Vec<Vec<u8>> = accounts.iter().filter_map(|account| writer.add(account)).collect();
    pieces.extend(writer.finish());
    let mut again = Vec::new();
    for piece in &pieces {
        let after = again.last().map_or(AccountId(0), |last: &AccountState| last.account);
        again.extend(read_piece(piece, shard % SHARDS, after).expect("what was written is read"));
    }
    assert_eq!(again, accounts);
    let mut digest = ProjectionDigest::default();
    for account in &accounts {
        account.digest_into(&mut digest);
        if let Ok(settings) = account.read_settings() {
            settings.canonical();
        }
    }
    digest.finish();
}

/// Signs what scripts have signed.
pub(crate) fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}
