//! Properties of every codec: what was written is read back, and what was not written by us is an error, never a panic.

#![allow(clippy::unwrap_used, clippy::panic)] // A failed unwrap is a failed property.

mod codecs {
    pub mod frames;
    pub mod purses;
    pub mod strategies;
}

use feiqian_protocol::chain::{Countersignature, Cursor, Head, SignedHead, hex, unhex};
use feiqian_protocol::enrol::{self, EnrolAnswer, EnrolCode, SealedEnrolRequest};
use feiqian_protocol::entry::{Actor, Body, Entry, EpochEnd, RecordError};
use feiqian_protocol::frame::{Entries, Frame, FrameError, LogCursor, NodeHello, RefusalReason};
use feiqian_protocol::ids::{AccountId, CampusId, Epoch, InstitutionId, LogId, NodeId};
use feiqian_protocol::limits::{
    ACCOUNT_END, ENTRIES_PER_FRAME_MAX, FRAME_BYTES_MAX, HELLO_LIST_MAX, RECORD_BYTES_MAX,
};
use feiqian_protocol::money::{Fen, UnitPrice};
use feiqian_protocol::time::{Hlc, Timestamp};
use proptest::array::uniform16;
use proptest::collection::vec;
use proptest::prelude::*;

use codecs::frames::*;
use codecs::strategies::*;

/// Where damage is done: flips one bit, then cuts.
fn damaged(bytes: &[u8], bit: prop::sample::Index, end: prop::sample::Index) -> (Vec<u8>, &[u8]) {
    let mut flipped = bytes.to_vec();
    let bit = bit.index(bytes.len() * 8);
    flipped[bit / 8] ^= 1 << (bit % 8);
    (flipped, &bytes[..end.index(bytes.len())])
}

/// The record of an entry as a newer build might write it: `extra` after the fields of the body and of the record.
fn with_appended_fields(entry: &Entry, extra: &str) -> Vec<u8> {
    let record = entry.to_record();
    let mut d = minicbor::Decoder::new(&record);
    d.array().unwrap();
    for _ in 0..5 {
        d.skip().unwrap();
    }
    let before_body = d.position();
    let body = d.bytes().unwrap();
    let mut body_d = minicbor::Decoder::new(body);
    let body_fields = body_d.array().unwrap().unwrap();
    // Absent last fields are left out, and hold their places with nulls once another one follows.
    let absent_last = match &entry.body {
        Body::Debit(debit) if debit.meal.is_some() => 0,
        Body::Debit(debit) if debit.from_voucher.is_some() => 1,
        Body::Debit(debit) if debit.code.is_some() => 2,
        Body::Debit(debit) => 3 + u64::from(debit.measured.is_none()),
        Body::Access(access) => u64::from(access.code.is_none()),
        Body::Decline(decline) => u64::from(decline.pin_tries.is_none()),
        Body::SettingAnswered(answered) => u64::from(answered.refused.is_none()),
        Body::HoldMoved(moved) => u64::from(moved.debit.is_none()),
        Body::Posted(posted) => u64::from(posted.lost.is_none()),
        Body::PurseCaseDecided(decided) => u64::from(decided.account.is_none()),
        Body::Setting(setting) if setting.of.is_some() => 0,
        Body::Setting(setting) => 1 + u64::from(setting.typed.is_none()),
        _ => 0,
    };
    let mut longer_body = Vec::new();
    minicbor::Encoder::new(&mut longer_body).array(body_fields + absent_last + 1).unwrap();
    longer_body.extend_from_slice(&body[body_d.position()..]);
    for _ in 0..absent_last {
        minicbor::Encoder::new(&mut longer_body).null().unwrap();
    }
    minicbor::Encoder::new(&mut longer_body).array(2).unwrap().str(extra).unwrap().u8(7).unwrap();
    let mut longer = Vec::new();
    minicbor::Encoder::new(&mut longer).array(7).unwrap();
    longer.extend_from_slice(&record[1..before_body]);
    minicbor::Encoder::new(&mut longer).bytes(&longer_body).unwrap().str(extra).unwrap();
    longer
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_entry_round_trips(entry in entry()) {
        let record = entry.to_record();
        prop_assert!(record.len() <= RECORD_BYTES_MAX);
        let read = Entry::from_record(&record).unwrap();
        prop_assert_eq!(&read, &entry);
        prop_assert_eq!(read.to_record(), record, "equal entries have equal bytes");
    }

    #[test]
    fn a_damaged_record_is_an_error_or_another_entry_but_never_a_panic(
        entry in entry(), bit: prop::sample::Index, end: prop::sample::Index, tail in any::<u8>(),
    ) {
        let record = entry.to_record();
        let (flipped, cut) = damaged(&record, bit, end);
        if let Ok(other) = Entry::from_record(&flipped) {
            other.to_record();
        }
        prop_assert!(Entry::from_record(cut).is_err(), "a prefix of a record is no record");
        let mut longer = record;
        longer.push(tail);
        prop_assert!(Entry::from_record(&longer).is_err(), "nothing may follow a record");
    }

    #[test]
    fn arbitrary_bytes_do_not_panic_any_decoder(bytes in vec(any::<u8>(), 0..600)) {
        let _ = Entry::from_record(&bytes);
        let _ = Frame::from_bytes(&bytes);
        let _ = enrol::decode::<SealedEnrolRequest>(&bytes);
        let _ = enrol::decode::<EnrolAnswer>(&bytes);
        let _ = minicbor::decode::<SignedHead>(&bytes);
        let _ = minicbor::decode::<Countersignature>(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = Fen::parse_yuan(&text);
        let _ = text.parse::<EnrolCode>();
        let _ = text.parse::<UnitPrice>();
        let _ = unhex(&text);
    }

    #[test]
    fn an_unknown_kind_is_kept_as_it_is_with_its_critical_bit(entry in with_body(unknown_body())) {
        let record = entry.to_record();
        let read = Entry::from_record(&record).unwrap();
        prop_assert_eq!(read.body.critical(), entry.body.critical());
        prop_assert_eq!(read.body.kind(), entry.body.kind());
        prop_assert_eq!(read.to_record(), record);
    }

    #[test]
    fn fields_that_a_newer_build_appends_are_skipped(
        entry in with_body(known_body()), extra in ".{0,40}",
    ) {
        prop_assert_eq!(Entry::from_record(&with_appended_fields(&entry, &extra)).unwrap(), entry);
    }

    #[test]
    fn every_frame_round_trips(frame in frame()) {
        let bytes = frame.to_bytes();
        prop_assert_eq!(Frame::from_bytes(&bytes).unwrap(), frame);
    }

    #[test]
    fn a_damaged_frame_is_an_error_or_another_frame_but_never_a_panic(
        frame in frame(), bit: prop::sample::Index, end: prop::sample::Index,
    ) {
        let bytes = frame.to_bytes();
        let (flipped, cut) = damaged(&bytes, bit, end);
        let _ = Frame::from_bytes(&flipped);
        prop_assert!(Frame::from_bytes(cut).is_err(), "a prefix of a frame is no frame");
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(matches!(Frame::from_bytes(&longer), Err(FrameError::TrailingBytes)));
    }

    #[test]
    fn enrolment_messages_round_trip(
        request in enrol_request(), answer in enrol_answer(), secret in uniform16(any::<u8>()),
        key in vec(any::<u8>(), 0..60), bit: prop::sample::Index, end: prop::sample::Index,
    ) {
        let code = EnrolCode::new(secret, &key);
        prop_assert_eq!(&code.to_string().parse::<EnrolCode>().unwrap(), &code);
        let mac = code.mac(&request);
        prop_assert!(code.verify(&request, &mac));
        let sealed = SealedEnrolRequest { request, mac };
        let bytes = minicbor::to_vec(&sealed).unwrap();
        prop_assert_eq!(&enrol::decode::<SealedEnrolRequest>(&bytes).unwrap(), &sealed);
        let (flipped, cut) = damaged(&bytes, bit, end);
        prop_assert!(enrol::decode::<SealedEnrolRequest>(cut).is_err());
        if let Ok(other) = enrol::decode::<SealedEnrolRequest>(&flipped) && other != sealed {
            prop_assert!(!code.verify(&other.request, &other.mac), "a MAC is good for one request only");
        }
        let bytes = minicbor::to_vec(&answer).unwrap();
        prop_assert_eq!(enrol::decode::<EnrolAnswer>(&bytes).unwrap(), answer);
        let (flipped, cut) = damaged(&bytes, bit, end);
        let _ = enrol::decode::<EnrolAnswer>(&flipped);
        prop_assert!(enrol::decode::<EnrolAnswer>(cut).is_err());
    }

    #[test]
    fn heads_and_cursors_round_trip(head in signed_head(), countersigned in countersignature()) {
        let bytes = minicbor::to_vec(head).unwrap();
        prop_assert_eq!(minicbor::decode::<SignedHead>(&bytes).unwrap(), head);
        let bytes = minicbor::to_vec(countersigned).unwrap();
        prop_assert_eq!(minicbor::decode::<Countersignature>(&bytes).unwrap(), countersigned);
        prop_assert_eq!(LogId::from_key(head.head.log.institution, head.head.log.key()), head.head.log);
        prop_assert_eq!(unhex(&hex(&head.signature)).unwrap(), head.signature.to_vec());
    }

    #[test]
    fn money_text_round_trips(fen in any::<i64>().prop_map(Fen::new), price in unit_price()) {
        prop_assert_eq!(Fen::parse_yuan(&fen.to_string()).unwrap(), fen);
        let json = serde_json::to_string(&fen).unwrap();
        prop_assert_eq!(serde_json::from_str::<Fen>(&json).unwrap(), fen);
        prop_assert_eq!(price.to_string().parse::<UnitPrice>().unwrap(), price);
        let bytes = minicbor::to_vec(price).unwrap();
        prop_assert_eq!(minicbor::decode::<UnitPrice>(&bytes).unwrap(), price);
    }

    #[test]
    fn a_typed_amount_is_read_exactly(yuan in 0_i64..1_000_000, decimals in 0_i64..100) {
        let fen = Fen::new(yuan * 100 + decimals);
        prop_assert_eq!(Fen::parse_yuan(&format!("{yuan}.{decimals:02}")).unwrap(), fen);
        prop_assert_eq!(Fen::parse_yuan(&format!("{yuan}.{decimals:02}00")).unwrap(), fen);
        let finer = format!("{yuan}.{decimals:02}1");
        prop_assert!(Fen::parse_yuan(&finer).is_err());
    }
}

#[test]
fn the_list_of_known_kinds_is_complete() {
    for kind in 0..=u16::from(u8::MAX) {
        let body = Body::Unknown { kind, critical: true, body: vec![0x80] };
        let entry = Entry { clock: Hlc::default(), campus: CampusId(1), actor: Actor::node(), body };
        let read = Entry::from_record(&entry.to_record());
        let known = KNOWN_KINDS.contains(&kind);
        assert_eq!(read.is_err(), known, "kind {kind} has a body of its own, and an empty array is none");
    }
}

#[test]
fn lengths_are_bounded_before_anything_is_read() {
    assert!(Entry::from_record(&vec![0; RECORD_BYTES_MAX + 1]).is_err());
    assert!(matches!(Frame::from_bytes(&vec![0; FRAME_BYTES_MAX + 1]), Err(FrameError::TooLong(_))));
    let log = LogId::node(InstitutionId(1), NodeId(1));
    for count in [0, ENTRIES_PER_FRAME_MAX + 1] {
        let records = vec![vec![0_u8].into(); count];
        let bytes = Frame::Entries(Entries { log, first: 1, records, heads: Vec::new() }).to_bytes();
        assert!(matches!(Frame::from_bytes(&bytes), Err(FrameError::Entries(n)) if n == count));
    }
    // A list is not decoded beyond what it may have, however little an element takes on the wire.
    let records = vec![Vec::new().into(); 500_000];
    let bytes = Frame::Entries(Entries { log, first: 1, records, heads: Vec::new() }).to_bytes();
    assert!(matches!(Frame::from_bytes(&bytes), Err(FrameError::Malformed(_))));
    let cursor = Cursor { position: 1, hash: [0; 32] };
    let signed = Head { log, cursor, applied: 0, anchor: Timestamp(0) };
    let head = SignedHead { head: signed, signature: [0; 64] };
    for (count, fits) in [(HELLO_LIST_MAX, true), (HELLO_LIST_MAX + 1, false)] {
        let lists: [(usize, usize, usize); 3] = [(count, 0, 0), (0, count, 0), (0, 0, count)];
        for (shards, kept_after, heads) in lists {
            let bytes = Frame::NodeHello(Box::new(NodeHello {
                version: 1,
                institution: InstitutionId(1),
                node: NodeId(1),
                incarnation: 1,
                log: cursor,
                to_node: cursor,
                shards: vec![LogCursor { log, cursor }; shards],
                countersigned: None,
                refused: None,
                kept_after: vec![0; kept_after],
                heads: vec![head; heads],
                branch: None,
            }))
            .to_bytes();
            assert_eq!(Frame::from_bytes(&bytes).is_ok(), fits, "{shards} {kept_after} {heads}");
        }
    }
    // An array that claims 2^32 records, in a frame of a few bytes.
    let claim = [0x82, 0x02, 0x81, 0x84, 0x83, 1, 1, 0, 1, 0x9a, 0xff, 0xff, 0xff, 0xff];
    assert!(Frame::from_bytes(&claim).is_err());
}

#[test]
fn nothing_may_follow_the_body_within_a_record() {
    let body = Body::from(EpochEnd { epoch: Epoch(1) });
    let entry = Entry { clock: Hlc::default(), campus: CampusId(1), actor: Actor::node(), body };
    let record = entry.to_record();
    // The body is the record's last three bytes: a length, and an array of one number.
    let (before, body) = record.split_at(record.len() - 3);
    assert_eq!(body, [0x42, 0x81, 1]);
    let longer = [before, &[0x43, 0x81, 1, 0]].concat();
    assert!(matches!(Entry::from_record(&longer), Err(RecordError::TrailingBytes)));
}

#[test]
fn an_account_beyond_all_numbers_is_no_account() {
    for (number, is_one) in [(0, true), (ACCOUNT_END - 1, true), (ACCOUNT_END, false), (u64::MAX, false)] {
        let bytes = minicbor::to_vec(AccountId(number)).unwrap();
        assert_eq!(minicbor::decode::<AccountId>(&bytes).is_ok(), is_one, "{number}");
    }
}

#[test]
fn sums_of_what_a_peer_may_say_do_not_overflow() {
    for extreme in [Fen::new(i64::MIN), Fen::new(i64::MAX)] {
        let sum = extreme.saturating_add(extreme);
        assert_eq!((-sum).is_negative(), extreme.is_positive());
    }
}

#[test]
fn every_refusal_has_its_own_name() {
    use RefusalReason as R;
    let all = [
        R::Version,
        R::Identity,
        R::StaleGrants,
        R::ShortLog,
        R::ForkedLog,
        R::ForeignGrants,
        R::Incarnation,
        R::CentreBehind,
    ];
    let names: std::collections::BTreeSet<_> = all.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), all.len());
}
