//! What both sides do for every entry: price, encode, chain, sign, verify, fold, merge.

#![allow(clippy::unwrap_used)] // A bench that cannot be set up has nothing to say.

use divan::{Bencher, black_box};
use ed25519_dalek::SigningKey;
use feiqian_protocol::account::{Document, Intent, NewAccount, actor_id};
use feiqian_protocol::chain::{Cursor, LogWriter, SignedHead, verify};
use feiqian_protocol::code::{Code, PhoneAlgorithm, PhoneSecret, Voucher, VoucherKey};
use feiqian_protocol::entry::{Actor, ActorKind, Body, Debit, Entry, Grant, Proof, TapRef};
use feiqian_protocol::frame::{Entries, Frame};
use feiqian_protocol::ids::{
    AccountId, CampusId, CardNumber, Epoch, InstitutionId, Key, LogId, NodeId, Wallet,
};
use feiqian_protocol::limits::ENTRIES_PER_FRAME_MAX;
use feiqian_protocol::money::{Fen, UnitPrice};
use feiqian_protocol::rights::Row;
use feiqian_protocol::time::{BusinessDay, Hlc, Timestamp};

const LOG: LogId = LogId::node(InstitutionId(1), NodeId(1));
const NOON: Timestamp = Timestamp(1_667_790_000_000);

fn main() {
    divan::main();
}

fn debit(number: usize) -> Debit {
    Debit {
        tap: TapRef { epoch: 1, sequence: Key::new(format!("{number}-1")).unwrap() },
        account: AccountId(40_000 + number as u64),
        wallet: Wallet::Cash,
        epoch: Epoch(3),
        from_right: Fen::new(1_250),
        stand_in: Fen::ZERO,
        allowance: Fen::new(1_250),
        day: BusinessDay(19_303),
        merchant: 12,
        card: CardNumber::new(format!("c{number:05}")).unwrap(),
        measured: None,
        code: None,
        from_voucher: None,
        meal: None,
    }
}

fn actor() -> Actor {
    Actor { kind: ActorKind::Terminal, id: Key::new("pos-12").unwrap(), proof: Proof::Card }
}

fn entry() -> Entry {
    Entry { clock: Hlc::at(NOON), campus: CampusId(1), actor: actor(), body: Body::Debit(debit(1)) }
}

#[divan::bench]
fn price_of_a_quantity(bencher: Bencher<'_, '_>) {
    let price: UnitPrice = "0.0240".parse().unwrap();
    bencher.bench(|| black_box(price).amount(black_box(552)));
}

#[divan::bench]
fn encode_an_entry(bencher: Bencher<'_, '_>) {
    let entry = entry();
    bencher.bench(|| black_box(&entry).to_record());
}

#[divan::bench]
fn decode_an_entry(bencher: Bencher<'_, '_>) {
    let record = entry().to_record();
    bencher.bench(|| Entry::from_record(black_box(&record)));
}

#[divan::bench]
fn append_to_a_log(bencher: Bencher<'_, '_>) {
    bencher
        .with_inputs(|| (LogWriter::new(LOG, Cursor::START, Hlc::default()), actor(), Body::Debit(debit(1))))
        .bench_values(|(mut writer, actor, body)| writer.append(NOON, CampusId(1), actor, body).cursor);
}

#[divan::bench]
fn sign_a_head(bencher: Bencher<'_, '_>) {
    let key = SigningKey::from_bytes(&[7; 32]);
    bencher
        .with_inputs(|| {
            let mut writer = LogWriter::new(LOG, Cursor::START, Hlc::default());
            writer.append(NOON, CampusId(1), actor(), Body::Debit(debit(1)));
            writer
        })
        .bench_values(|mut writer| writer.sign_head(5, NOON, &key));
}

/// What a node's shell does for a tap by code: reading its digits, and two signatures.
#[divan::bench(args = ["p256", "ed25519"])]
fn check_a_code(bencher: Bencher<'_, '_>, algorithm: &str) {
    let algorithm: PhoneAlgorithm = algorithm.parse().unwrap();
    let (key, secret) = (SigningKey::from_bytes(&[7; 32]), PhoneSecret::new(algorithm, &[1; 32]).unwrap());
    let voucher = Voucher {
        institution: InstitutionId(1),
        centre_key: 1,
        account: AccountId(1),
        number: 1,
        issued: 1,
        life_minutes: 60,
        ceiling: Fen::ZERO,
        phone: secret.key(),
    };
    let text = Code::sign(&voucher.sign(&key).unwrap(), &secret, 1, 1).unwrap().to_digits();
    let keys =
        [VoucherKey { number: 1, key: key.verifying_key(), from_ms: Timestamp(0), to_ms: Timestamp(9_999) }];
    assert!(Code::from_text(&text).unwrap().check(InstitutionId(1), &keys).is_vouched_for());
    bencher.bench(|| Code::from_text(black_box(&text)).unwrap().check(InstitutionId(1), &keys));
}

/// A frame of as many entries as one may have, in commits of so many.
fn batch(per_commit: usize) -> (Vec<Vec<u8>>, Vec<SignedHead>) {
    let key = SigningKey::from_bytes(&[7; 32]);
    let mut writer = LogWriter::new(LOG, Cursor::START, Hlc::default());
    let (mut records, mut heads) = (Vec::new(), Vec::new());
    for number in 1..=ENTRIES_PER_FRAME_MAX {
        records.push(writer.append(NOON, CampusId(1), actor(), Body::Debit(debit(number))).record);
        if number % per_commit == 0 {
            heads.extend(writer.sign_head(number as u64, NOON, &key));
        }
    }
    (records, heads)
}

#[divan::bench(args = [1, 16, 256])]
fn verify_256_entries_in_commits_of(bencher: Bencher<'_, '_>, per_commit: usize) {
    let (records, heads) = batch(per_commit);
    let key = SigningKey::from_bytes(&[7; 32]).verifying_key();
    bencher
        .with_inputs(|| records.clone())
        .bench_values(|records| verify(LOG, &Cursor::START, 1, records, &heads, &key).unwrap());
}

#[divan::bench]
fn encode_a_frame_of_256_entries(bencher: Bencher<'_, '_>) {
    let (records, heads) = batch(256);
    let records = records.into_iter().map(Into::into).collect();
    let frame = Frame::Entries(Entries { log: LOG, first: 1, records, heads });
    bencher.bench(|| black_box(&frame).to_bytes());
}

#[divan::bench]
fn decode_a_frame_of_256_entries(bencher: Bencher<'_, '_>) {
    let (records, heads) = batch(256);
    let records = records.into_iter().map(Into::into).collect();
    let bytes = Frame::Entries(Entries { log: LOG, first: 1, records, heads }).to_bytes();
    bencher.bench(|| Frame::from_bytes(black_box(&bytes)).unwrap());
}

#[divan::bench]
fn fold_a_grant_and_a_debit(bencher: Bencher<'_, '_>) {
    let debit = debit(1);
    let grant = Grant {
        account: debit.account,
        wallet: Wallet::Cash,
        epoch: Epoch(3),
        amount: Fen::new(2_000),
        total: Fen::new(2_000),
        time: NOON,
    };
    bencher.bench(|| {
        let mut row = black_box(Row::default());
        row.grant(black_box(&grant)).unwrap();
        row.debit(black_box(&debit), false).unwrap();
        row
    });
}

fn document() -> Document {
    let new = NewAccount {
        class: "student".to_owned(),
        cards: vec![CardNumber::new("c00001").unwrap()],
        single_limit: Fen::new(2_000),
        daily_limit: Fen::new(5_000),
        groups: vec![Key::new("dorm-1").unwrap()],
        valid_until: None,
    };
    Document::create(&new, author(NodeId::CENTRE), NOON).unwrap()
}

fn author(writer: NodeId) -> automerge::ActorId {
    actor_id(InstitutionId(1), writer, 1, 1, AccountId(1))
}

#[divan::bench]
fn create_an_account_document(bencher: Bencher<'_, '_>) {
    bencher.bench(|| document().save());
}

#[divan::bench]
fn load_an_account_document(bencher: Bencher<'_, '_>) {
    let saved = document().save();
    bencher.bench(|| Document::load(black_box(&saved), author(NodeId(1))).unwrap().settings().unwrap());
}

#[divan::bench]
fn merge_a_loss_report(bencher: Bencher<'_, '_>) {
    let saved = document().save();
    let intent =
        Intent::ReportLoss { card: CardNumber::new("c00001").unwrap(), loss: Key::new("loss-1").unwrap() };
    let change = Document::load(&saved, author(NodeId(1))).unwrap().carry_out(&intent, NOON).unwrap();
    bencher.with_inputs(|| Document::load(&saved, author(NodeId::CENTRE)).unwrap()).bench_values(
        |mut document| {
            document.merge_change(&change).unwrap();
            document
        },
    );
}
