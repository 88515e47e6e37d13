//! Account documents: bytes that claim to be one, changes that claim to belong to one, and replicas that part and meet.

use std::sync::OnceLock;

use feiqian_protocol::account::{Document, NewAccount, actor_id};
use feiqian_protocol::ids::{AccountId, CardNumber, Key, NodeId};
use feiqian_protocol::limits::DOCUMENT_BYTES_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use sha2::{Digest, Sha256};

use super::script::{INSTITUTION, START, Script};

/// Intents that one script carries out, which bounds what one run costs.
const INTENTS_MAX: usize = 64;

const REPLICAS: usize = 3;

/// The four bytes that an automerge chunk begins with.
const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];

const DOCUMENT: u8 = 0;
const CHANGE: u8 = 1;

/// A document, or a change of one: bytes as they are, or put into a chunk with a checksum that fits, or a sound one with
/// some bytes altered and the checksum made to fit again.
pub fn document(data: &[u8]) {
    let mut script = Script::new(data);
    match script.choice(6) {
        0 => load(script.rest()),
        1 => merge(script.rest()),
        2 => load(&chunk(DOCUMENT, script.rest())),
        3 => merge(&chunk(script.pick(&[CHANGE, 2, 3]), script.rest())),
        4 => load(&altered(DOCUMENT, &samples().0, &mut script)),
        _ => merge(&altered(CHANGE, &samples().1, &mut script)),
    }
}

/// A document of one account, and a change that builds on it.
pub(crate) fn samples() -> &'static (Vec<u8>, Vec<u8>) {
    static SAMPLES: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let mut document = new_account();
        let saved = document.save();
        let mut node = open(&saved, 1).expect("a document that was just saved");
        let loss = feiqian_protocol::account::Intent::ReportLoss { card: card(), loss: key("l1") };
        (saved, node.carry_out(&loss, START).expect("the card is the account's"))
    })
}

fn card() -> CardNumber {
    CardNumber::new("c1").expect("a letter and a digit make a name")
}

fn key(text: &str) -> Key {
    Key::new(text).expect("letters and digits make a name")
}

/// The document of a new account.
pub(crate) fn new_account() -> Document {
    let new = NewAccount {
        class: "student".to_owned(),
        cards: vec![card()],
        single_limit: Fen::new(2_000),
        daily_limit: Fen::new(5_000),
        groups: vec![key("dorm-1")],
        valid_until: None,
    };
    let actor = actor_id(INSTITUTION, NodeId::CENTRE, 1, 1, AccountId(1));
    Document::create(&new, actor, START).expect("limits are in range")
}

fn open(saved: &[u8], writer: u16) -> Result<Document, feiqian_protocol::account::AccountError> {
    Document::load(saved, actor_id(INSTITUTION, NodeId(writer), 1, 1, AccountId(1)))
}

fn load(bytes: &[u8]) {
    let Ok(mut document) = open(bytes, 1) else { return };
    let (Ok(settings), heads) = (document.settings(), document.heads()) else { return };
    let saved = document.save();
    // What is too large afterwards is refused the next time, which is all that is promised.
    if saved.len() <= DOCUMENT_BYTES_MAX {
        let mut again = open(&saved, 2).expect("what was saved is loaded");
        assert_eq!(again.settings().expect("of the same form"), settings);
        assert_eq!(again.heads(), heads);
    }
    merge_into(document, &samples().1);
}

fn merge(bytes: &[u8]) {
    merge_into(open(&samples().0, 1).expect("a sound document"), bytes);
}

fn merge_into(mut document: Document, change: &[u8]) {
    let heads = document.heads();
    if document.merge_change(change).is_err() {
        assert_eq!(document.heads(), heads, "a change that is refused changes nothing");
        return;
    }
    let once = (document.heads(), document.settings().ok());
    document.merge_change(change).expect("a repeat changes nothing");
    assert_eq!((document.heads(), document.settings().ok()), once);
    let saved = document.save();
    if saved.len() <= DOCUMENT_BYTES_MAX {
        assert_eq!(open(&saved, 2).expect("what was saved is loaded").heads(), once.0);
    }
}

/// A chunk of this type around these bytes.
pub(crate) fn chunk(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut hashed = vec![kind];
    let mut length = body.len();
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        hashed.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    hashed.extend_from_slice(body);
    let checksum = Sha256::digest(&hashed);
    [&MAGIC[..], &checksum[..4], &hashed].concat()
}

/// What is in a chunk whose length takes one or two bytes.
pub(crate) fn body_of(chunk: &[u8]) -> &[u8] {
    match chunk.get(9) {
        Some(0..0x80) => &chunk[10..],
        _ => chunk.get(11..).unwrap_or_default(),
    }
}

fn altered(kind: u8, sound: &[u8], script: &mut Script<'_>) -> Vec<u8> {
    let mut body = body_of(sound).to_vec();
    for _ in 0..=script.choice(8) {
        let (at, byte) = (script.choice(body.len()), script.byte());
        match script.choice(4) {
            0 => body.insert(at, byte),
            1 if body.len() > 1 => {
                body.remove(at);
            }
            2 => {
                let bytes = script.bytes(32);
                body.splice(at..at, bytes.iter().copied());
            }
            _ => body[at] = byte,
        }
    }
    chunk(kind, &body)
}

/// Replicas of a document that carry intents out by themselves and hear of each other's changes late and in any order
/// that keeps an author's own: once all have heard all, all say the same.
pub fn replicas(data: &[u8]) {
    let mut script = Script::new(data);
    let saved = &samples().0;
    let mut replicas: Vec<Document> =
        (1..=REPLICAS as u16).map(|writer| open(saved, writer).expect("a sound document")).collect();
    let mut changes: Vec<Vec<u8>> = Vec::new();
    let mut heard = [0; REPLICAS];
    for _ in 0..INTENTS_MAX {
        if script.is_over() {
            break;
        }
        let at = script.choice(REPLICAS);
        if script.rarely(2) {
            // In the order in which they were made, so that nothing that a change builds on is missing.
            let until = heard[at] + script.choice(changes.len() - heard[at] + 1);
            for change in &changes[heard[at]..until] {
                replicas[at].merge_change(change).expect("all that it builds on is here");
            }
            heard[at] = until;
        } else {
            let before = (replicas[at].heads(), replicas[at].settings().expect("of the right form"));
            let time = Timestamp(START.0 + i64::from(script.byte()));
            match replicas[at].carry_out(&script.intent(), time) {
                Ok(change) => changes.push(change),
                Err(_) => {
                    let after = replicas[at].settings().expect("of the right form");
                    assert_eq!((replicas[at].heads(), after), before, "what is refused changes nothing");
                }
            }
        }
    }
    for (replica, heard) in replicas.iter_mut().zip(heard) {
        for change in &changes[heard..] {
            replica.merge_change(change).expect("all that it builds on is here");
        }
    }
    let said: Vec<_> = replicas
        .iter_mut()
        .map(|replica| (replica.heads(), replica.settings().expect("of the right form").canonical()))
        .collect();
    assert!(said.iter().all(|one| *one == said[0]), "replicas that have heard the same say the same");
}
