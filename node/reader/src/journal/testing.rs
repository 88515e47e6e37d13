//! Entries for tests.

use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::key::Algorithm;
use feiqian_protocol::purse::mac::Terms;
use feiqian_protocol::purse::values::{Counter, Kind, PurseFen, TerminalSequence};

/// A card, and another one.
pub(crate) const A: &str = "31000000202600012345";
pub(crate) const B: &str = "31000000202600012346";

/// A purchase that a card was told to make.
pub(crate) fn entry(serial: &str, sequence: u32) -> JournalEntry {
    JournalEntry {
        serial: serial.parse().unwrap(),
        algorithm: Algorithm::AesCmac,
        key_version: 1,
        terms: Terms {
            kind: Kind::Compound,
            amount: PurseFen::new(1_250).unwrap(),
            terminal: "000000000117".parse().unwrap(),
            sequence: TerminalSequence(sequence),
            time: "20260901121533".parse().unwrap(),
            balance_before: PurseFen::new(5_150).unwrap(),
            counter: Counter(0x29),
            random: "5d08f3a6c1e47b92".parse().unwrap(),
        },
        mac: "ef513801e04e126c".parse().unwrap(),
    }
}

/// A load that a card was told to take.
pub(crate) fn load(serial: &str, counter: u16) -> JournalEntry {
    let mut entry = entry(serial, 0);
    (entry.terms.kind, entry.terms.counter) = (Kind::Load, Counter(counter));
    entry
}
