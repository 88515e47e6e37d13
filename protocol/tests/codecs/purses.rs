//! Codecs of what logs and frames say of purses: what was written is read back, and what was not written by us is an error.

use feiqian_protocol::entry::{
    Body, PurseCaseDecided, PurseLoad, PurseLoadSettled, PurseLoaded, PursePurchase, PurseReturned,
    PurseSide, TapRef,
};
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::{CardNumber, InstitutionId, Key, LogId, NodeId};
use feiqian_protocol::limits::AMOUNT_FEN_MAX;
use feiqian_protocol::purse::apdu::LoadBegun;
use feiqian_protocol::purse::file::LogRecord;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::key::Algorithm;
use feiqian_protocol::purse::load::LoadRequest;
use feiqian_protocol::purse::mac::Terms;
use feiqian_protocol::purse::question::{
    LoadFate, PurseAnswer, PurseAsk, PurseQuestion, PurseRefusal, PurseReply, StreamPlace,
};
use feiqian_protocol::purse::recovery::Evidence;
use feiqian_protocol::purse::torn::{ProofSeen, Seen};
use feiqian_protocol::purse::values::{
    CardSerial, CardTime, Counter, Kind, Mac, Overdraft, PurseFen, Random, TerminalNumber, TerminalSequence,
};
use feiqian_protocol::time::Timestamp;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::strategies::{account, entry_ref, fen, wallet};

fn serial() -> impl Strategy<Value = CardSerial> {
    any::<[u8; 10]>().prop_map(CardSerial)
}

fn terminal() -> impl Strategy<Value = TerminalNumber> {
    any::<[u8; 6]>().prop_map(TerminalNumber)
}

fn counter() -> impl Strategy<Value = Counter> {
    any::<u16>().prop_map(Counter)
}

fn time() -> impl Strategy<Value = CardTime> {
    (0..4_000_000_000_000_i64).prop_map(|ms| CardTime::at(Timestamp(ms), 480).unwrap())
}

fn mac() -> impl Strategy<Value = Mac> {
    (any::<[u8; 8]>(), select(vec![4, 8]))
        .prop_map(|(bytes, length)| Mac::from_slice(&bytes[..length]).unwrap())
}

fn random() -> impl Strategy<Value = Random> {
    (any::<[u8; 8]>(), select(vec![4, 8]))
        .prop_map(|(bytes, length)| Random::from_slice(&bytes[..length]).unwrap())
}

fn purse_fen() -> impl Strategy<Value = PurseFen> {
    (0..=AMOUNT_FEN_MAX.get() as u32).prop_map(|fen| PurseFen::new(fen).unwrap())
}

fn kind() -> impl Strategy<Value = Kind> {
    select(vec![Kind::Load, Kind::Purchase, Kind::Compound])
}

fn terms() -> impl Strategy<Value = Terms> {
    let who = (kind(), purse_fen(), terminal(), any::<u32>());
    (who, time(), purse_fen(), counter(), random()).prop_map(
        |((kind, amount, terminal, sequence), time, balance_before, counter, random)| {
            let sequence = TerminalSequence(sequence);
            Terms { kind, amount, terminal, sequence, time, balance_before, counter, random }
        },
    )
}

fn begun() -> impl Strategy<Value = LoadBegun> {
    (purse_fen(), counter(), any::<u8>(), any::<u8>(), random(), mac()).prop_map(
        |(balance, counter, key_version, algorithm_id, random, mac1)| LoadBegun {
            balance,
            counter,
            key_version,
            algorithm_id,
            random,
            mac1,
        },
    )
}

fn record() -> impl Strategy<Value = LogRecord> {
    (counter(), any::<[u8; 3]>(), purse_fen(), any::<u8>(), terminal(), any::<[u8; 7]>()).prop_map(
        |(counter, overdraft, amount, kind, terminal, time)| LogRecord {
            counter,
            overdraft: Overdraft(overdraft),
            amount,
            kind,
            terminal,
            time,
        },
    )
}

fn evidence() -> impl Strategy<Value = Evidence> {
    let proof = prop_oneof![
        mac().prop_map(ProofSeen::Right),
        mac().prop_map(ProofSeen::Unchecked),
        Just(ProofSeen::Wrong),
        Just(ProofSeen::None),
    ];
    (counter(), purse_fen(), proof, vec(record(), 0..=10), option::of(begun())).prop_map(
        |(counter, balance, proof, log, begun)| Evidence {
            seen: Seen { counter, balance, proof, log },
            begun,
        },
    )
}

pub fn body() -> impl Strategy<Value = Body> {
    let report = ((any::<u32>(), "[a-z0-9]{1,64}"), serial(), kind(), fen(), counter(), fen());
    let rest = (terminal(), any::<u32>(), time(), option::of(mac()), any::<u16>(), any::<bool>());
    let purchase = (report, rest).prop_map(
        |(
            ((epoch, sequence), serial, kind, amount, counter, balance_before),
            (terminal, number, time, tac, merchant, proven),
        )| {
            Body::from(PursePurchase {
                tap: TapRef { epoch, sequence: Key::new(sequence).unwrap() },
                serial,
                kind,
                amount,
                counter,
                balance_before,
                terminal,
                sequence: TerminalSequence(number),
                time,
                tac,
                merchant,
                proven,
            })
        },
    );
    let loaded = (serial(), counter(), mac())
        .prop_map(|(serial, counter, tac)| Body::from(PurseLoaded { serial, counter, tac }));
    let whose = (account(), wallet(), fen(), serial(), counter(), fen());
    let load = (whose, terminal(), time(), random(), any::<u8>(), any::<u16>(), fen()).prop_map(
        |(
            (account, wallet, amount, serial, counter, balance_before),
            terminal,
            time,
            random,
            key_version,
            node,
            taken_over,
        )| {
            Body::from(PurseLoad {
                account,
                wallet,
                amount,
                serial,
                counter,
                balance_before,
                terminal,
                time,
                random,
                key_version,
                node: NodeId(node),
                taken_over,
            })
        },
    );
    let settled = (account(), wallet(), fen(), serial(), any::<u64>(), any::<bool>()).prop_map(
        |(account, wallet, amount, serial, load, reversed)| {
            Body::from(PurseLoadSettled { account, wallet, amount, serial, load, reversed })
        },
    );
    let returned = (account(), wallet(), fen(), serial()).prop_map(|(account, wallet, amount, serial)| {
        Body::from(PurseReturned { account, wallet, amount, serial })
    });
    let side = select(PurseSide::ALL.to_vec());
    let decided = (entry_ref(), serial(), fen(), any::<u16>(), (side.clone(), side), option::of(account()))
        .prop_map(|(purchase, serial, amount, merchant, (from, to), account)| {
            Body::from(PurseCaseDecided { purchase, serial, amount, merchant, from, to, account })
        });
    prop_oneof![purchase, loaded, load, settled, returned, decided]
}

pub fn frame() -> impl Strategy<Value = Frame> {
    let load = (serial(), purse_fen(), terminal(), begun()).prop_map(|(serial, amount, terminal, begun)| {
        PurseQuestion::Load(LoadRequest { serial, amount, terminal, begun })
    });
    let evidence =
        (serial(), evidence()).prop_map(|(serial, evidence)| PurseQuestion::Evidence(serial, evidence));
    let open = serial().prop_map(PurseQuestion::Open);
    let question = prop_oneof![load, evidence, open];
    let ask = (any::<u64>(), any::<u64>(), question).prop_map(|(request, ms_left, question)| {
        Frame::PurseAsk(Box::new(PurseAsk { request, ms_left, question }))
    });
    let algorithm = select(vec![Algorithm::Des, Algorithm::AesCmac]);
    let entry = (serial(), algorithm, any::<u8>(), terms(), mac()).prop_map(
        |(serial, algorithm, key_version, terms, mac)| JournalEntry {
            serial,
            algorithm,
            key_version,
            terms,
            mac,
        },
    );
    let fates = vec![LoadFate::Done, LoadFate::Reversed, LoadFate::InTransit, LoadFate::Nothing];
    let reply = prop_oneof![
        (time(), mac()).prop_map(|(time, mac)| PurseReply::Authorized(time, mac)),
        (entry, terminal()).prop_map(|(entry, challenge)| PurseReply::Unresolved(entry, challenge)),
        select(fates).prop_map(PurseReply::Settled),
        select(PurseRefusal::ALL.to_vec()).prop_map(PurseReply::Refused),
    ];
    let place = (any::<u16>(), any::<u8>(), any::<u64>()).prop_map(|(institution, shard, position)| {
        StreamPlace { log: LogId::shard(InstitutionId(institution), shard % 16), position }
    });
    let answer = (any::<u64>(), reply, option::of(place)).prop_map(|(request, reply, after)| {
        Frame::PurseAnswer(Box::new(PurseAnswer { request, reply, after }))
    });
    prop_oneof![ask, answer]
}

proptest! {
    #[test]
    fn evidence_is_read_back_from_json(evidence in evidence()) {
        let text = serde_json::to_string(&evidence).unwrap();
        prop_assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), evidence);
    }

    #[test]
    fn a_purse_cards_number_is_its_serial(serial in serial()) {
        prop_assert_eq!(CardSerial::of_card(&serial.card_number()), Some(serial));
    }
}

#[test]
fn a_number_that_is_written_otherwise_is_no_serial() {
    for text in ["31000000202600012345 ", "3100000020260001234A", "c00001", "31000000-02600012345"] {
        assert_eq!(CardNumber::new(text).ok().as_ref().and_then(CardSerial::of_card), None, "{text}");
    }
}

#[test]
fn more_records_than_a_log_has_are_refused() {
    let record = r#""0029000000000004e20600000000011720260901121533""#;
    let text = |count: usize| {
        let log = vec![record; count].join(",");
        format!(r#"{{"seen":{{"counter":1,"balance":2,"proof":"none","log":[{log}]}},"begun":null}}"#)
    };
    assert_eq!(serde_json::from_str::<Evidence>(&text(10)).unwrap().seen.log.len(), 10);
    assert!(serde_json::from_str::<Evidence>(&text(11)).is_err());
}
