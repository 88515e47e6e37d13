//! What became of a touch that was cut, from the journal's entry and what the card says now.
//!
//! A card does all of balance, counter and log, or nothing, and only its counter tells which. With `n` the counter in the entry:
//!
//! | the card's counter | and | then |
//! |---|---|---|
//! | n | no log record of ours | it never happened |
//! | n | a log record of ours | in transit: the card contradicts itself |
//! | n + 1 | a right MAC or TAC | completed |
//! | above n | its log record n is ours | completed without proof |
//! | above n | its log record n is another's | it never happened |
//! | above n | its log record n is gone | in transit |
//! | below n | | in transit: a card cannot go back |
//!
//! **Purchase.** The counter is not authenticated, nor is the log; only MAC2 is. Who lies about them hurts the holder, except by a log that
//! claims a debit: *completed without proof* is for the books, and no reason to hand out goods ([`Outcome::is_proven`]).
//!
//! **Load.** Whoever makes the centre believe that a load never happened has the money twice. So the counter must be proven: the INITIALIZE
//! that asks for it carries a number that the centre draws for it in place of a terminal's, which MAC1 binds. Without it an answer
//! recorded before the load would do. As the centre alone lets that counter grow, one that is proven and above n
//! needs no TAC.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::file::{LOG_RECORDS, LogRecord};
use super::journal::JournalEntry;
use super::profile::CardProfile;
use super::values::{Counter, Mac, PurseFen};

/// What the card says now.
#[derive(Clone, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct Seen {
    /// The counter of the entry's kind.
    #[n(0)]
    pub counter: Counter,
    /// The balance.
    #[n(1)]
    pub balance: PurseFen,
    /// What it answered when asked for MAC and TAC of the entry's transaction.
    #[n(2)]
    pub proof: ProofSeen,
    /// Records of its log, the newest first, as far as they were needed.
    #[cbor(n(3), decode_with = "few_records")]
    #[serde(deserialize_with = "few_records_of_json")]
    pub log: Vec<LogRecord>,
}

/// A list of at most [`LOG_RECORDS`].
fn few_records<'b, C>(
    d: &mut minicbor::Decoder<'b>,
    context: &mut C,
) -> Result<Vec<LogRecord>, minicbor::decode::Error> {
    let mut records = Vec::new();
    for record in d.array_iter_with(context)? {
        if records.len() == usize::from(LOG_RECORDS) {
            return Err(minicbor::decode::Error::message("more records than are read of a log"));
        }
        records.push(record?);
    }
    Ok(records)
}

fn few_records_of_json<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<LogRecord>, D::Error> {
    let records = Vec::<LogRecord>::deserialize(deserializer)?;
    if records.len() > usize::from(LOG_RECORDS) {
        return Err(serde::de::Error::custom("more records than are read of a log"));
    }
    Ok(records)
}

/// MAC and TAC of the transaction, as the card gives them and as they were judged.
#[derive(Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProofSeen {
    /// Given, and right; with the TAC.
    #[n(0)]
    Right(#[n(0)] Mac),
    /// Given, and nobody here can judge it; with the TAC.
    #[n(1)]
    Unchecked(#[n(0)] Mac),
    /// Given, and wrong.
    #[n(2)]
    Wrong,
    /// Not given.
    #[n(3)]
    None,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// It was done.
    Completed {
        /// For the centre.
        tac: Mac,
    },
    /// It was done, by the card's own log or counter alone. For the centre to judge.
    CompletedWithoutProof {
        /// What the card gave as its TAC, which nobody has judged.
        #[serde(skip_serializing_if = "Option::is_none")]
        tac: Option<Mac>,
    },
    /// It was not done, and cannot be done any more.
    NeverHappened,
    /// Not known. The money is nobody's to spend, and a person looks.
    InTransit {
        /// Why.
        reason: InTransit,
    },
}

/// Why it cannot be said what became of a touch.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InTransit {
    /// The card's counter says that it was not done, its log that it was.
    Contradiction,
    /// The card's counter went back: a copy, or another card under this serial.
    CounterWentBack,
    /// The card could not prove its counter (load).
    CounterUnproven,
    /// The card moved on, and its log no longer reaches back.
    RecordGone,
}

impl Outcome {
    /// Whether goods may be handed out for it.
    pub const fn is_proven(&self) -> bool {
        matches!(self, Self::Completed { .. })
    }

    /// Whether the entry is resolved: nothing more can be learnt from the card.
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::InTransit { reason: InTransit::CounterUnproven })
    }

    /// The stable name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Completed { .. } => "completed",
            Self::CompletedWithoutProof { .. } => "completed_without_proof",
            Self::NeverHappened => "never_happened",
            Self::InTransit { .. } => "in_transit",
        }
    }
}

/// Of a purchase.
pub fn resolve_purchase(entry: &JournalEntry, profile: &CardProfile, seen: &Seen) -> Outcome {
    // A right MAC2 is proof, whatever else the card says.
    if let ProofSeen::Right(tac) = seen.proof {
        return Outcome::Completed { tac };
    }
    resolve_by_log(entry, profile, seen)
}

/// Of a load, at the centre. `counter_is_proven`: MAC1 of the card's answer is right, for the number that was drawn for it.
pub fn resolve_load(
    entry: &JournalEntry,
    profile: &CardProfile,
    seen: &Seen,
    counter_is_proven: bool,
) -> Outcome {
    if let ProofSeen::Right(tac) = seen.proof {
        return Outcome::Completed { tac };
    }
    if !counter_is_proven {
        return Outcome::InTransit { reason: InTransit::CounterUnproven };
    }
    if entry.terms.counter.next() == Some(seen.counter) {
        return Outcome::CompletedWithoutProof { tac: None };
    }
    resolve_by_log(entry, profile, seen)
}

/// Of a load, at its terminal, which can judge neither TAC nor counter: what the card itself says, for the holder to be told. The
/// money goes by [`resolve_load`].
pub fn load_by_card(entry: &JournalEntry, profile: &CardProfile, seen: &Seen) -> Outcome {
    resolve_by_log(entry, profile, seen)
}

/// Without a proof that is right: by the counter, then by what the log has for it.
fn resolve_by_log(entry: &JournalEntry, profile: &CardProfile, seen: &Seen) -> Outcome {
    let record = record_of(entry, profile, &seen.log);
    let counter = entry.terms.counter;
    match record {
        _ if seen.counter < counter => Outcome::InTransit { reason: InTransit::CounterWentBack },
        Some(true) if seen.counter == counter => Outcome::InTransit { reason: InTransit::Contradiction },
        _ if seen.counter == counter => Outcome::NeverHappened,
        Some(true) => {
            let unchecked = match seen.proof {
                ProofSeen::Unchecked(tac) => Some(tac),
                _ => None,
            };
            Outcome::CompletedWithoutProof { tac: unchecked }
        }
        Some(false) => Outcome::NeverHappened,
        None => Outcome::InTransit { reason: InTransit::RecordGone },
    }
}

/// Whether the log's record for the entry's counter is the entry's; `None` where there is no such record.
fn record_of(entry: &JournalEntry, profile: &CardProfile, log: &[LogRecord]) -> Option<bool> {
    let logged = profile.logged(entry.terms.counter)?;
    let record = log.iter().find(|record| is_for(record, entry, logged))?;
    let terms = &entry.terms;
    let ours = record.kind == terms.kind.code()
        && record.amount == terms.amount
        && record.terminal == terms.terminal
        && record.time == terms.time.to_bytes();
    Some(ours)
}

/// Whether a record is the one that used the counter `logged` of the entry's kind: loads count online, all purchases offline.
pub(super) fn is_for(record: &LogRecord, entry: &JournalEntry, logged: Counter) -> bool {
    use super::values::Kind;
    let is_load = |kind: Kind| kind == Kind::Load;
    record.counter == logged && record.kind().is_some_and(|kind| is_load(kind) == is_load(entry.terms.kind))
}

#[cfg(test)]
mod tests {
    use super::super::key::Algorithm;
    use super::super::mac::Terms;
    use super::super::profile::LogCounter;
    use super::super::values::{Kind, Overdraft, TerminalSequence};
    use super::*;

    const N: Counter = Counter(0x29);

    fn mac() -> Mac {
        "c1af23cd".parse().unwrap()
    }

    fn entry(kind: Kind) -> JournalEntry {
        JournalEntry {
            serial: "31000000202600012345".parse().unwrap(),
            algorithm: Algorithm::Des,
            key_version: 1,
            terms: Terms {
                kind,
                amount: PurseFen::new(1_250).unwrap(),
                terminal: "000000000117".parse().unwrap(),
                sequence: TerminalSequence(7),
                time: "20260901121533".parse().unwrap(),
                balance_before: PurseFen::new(5_150).unwrap(),
                counter: N,
                random: "5d08f3a6".parse().unwrap(),
            },
            mac: mac(),
        }
    }

    fn profile() -> CardProfile {
        CardProfile::of_one(entry(Kind::Purchase).serial)
    }

    fn ours(kind: Kind) -> LogRecord {
        let terms = entry(kind).terms;
        LogRecord {
            counter: N,
            overdraft: Overdraft([0; 3]),
            amount: terms.amount,
            kind: kind.code(),
            terminal: terms.terminal,
            time: terms.time.to_bytes(),
        }
    }

    fn seen(counter: u16, proof: ProofSeen, log: &[LogRecord]) -> Seen {
        Seen { counter: Counter(counter), balance: PurseFen::new(5_150).unwrap(), proof, log: log.to_vec() }
    }

    fn purchase(seen: &Seen) -> Outcome {
        resolve_purchase(&entry(Kind::Purchase), &profile(), seen)
    }

    fn in_transit(reason: InTransit) -> Outcome {
        Outcome::InTransit { reason }
    }

    const UNPROVEN: Outcome = Outcome::CompletedWithoutProof { tac: None };

    #[test]
    fn a_purchase_by_every_line_of_the_table() {
        let (n, ours) = (N.0, ours(Kind::Purchase));
        let other = LogRecord { terminal: "000000000118".parse().unwrap(), ..ours };
        assert_eq!(purchase(&seen(n, ProofSeen::None, &[])), Outcome::NeverHappened);
        assert_eq!(purchase(&seen(n, ProofSeen::None, &[ours])), in_transit(InTransit::Contradiction));
        assert_eq!(purchase(&seen(n, ProofSeen::None, &[other])), Outcome::NeverHappened);
        assert_eq!(purchase(&seen(n + 1, ProofSeen::Right(mac()), &[])), Outcome::Completed { tac: mac() });
        for counter in [n + 1, n + 2, u16::MAX] {
            for proof in [ProofSeen::None, ProofSeen::Wrong] {
                assert_eq!(purchase(&seen(counter, proof, &[ours])), UNPROVEN);
                assert_eq!(purchase(&seen(counter, proof, &[other])), Outcome::NeverHappened);
                assert_eq!(purchase(&seen(counter, proof, &[])), in_transit(InTransit::RecordGone));
            }
        }
        let unchecked = purchase(&seen(n + 1, ProofSeen::Unchecked(mac()), &[ours]));
        assert_eq!(unchecked, Outcome::CompletedWithoutProof { tac: Some(mac()) });
        assert_eq!(purchase(&seen(n - 1, ProofSeen::None, &[ours])), in_transit(InTransit::CounterWentBack));
    }

    #[test]
    fn only_a_proof_hands_out_goods() {
        assert!(Outcome::Completed { tac: mac() }.is_proven());
        for other in [UNPROVEN, Outcome::NeverHappened, in_transit(InTransit::RecordGone)] {
            assert!(!other.is_proven());
        }
        assert!(!in_transit(InTransit::CounterUnproven).is_final());
        assert!(in_transit(InTransit::RecordGone).is_final());
    }

    #[test]
    fn a_record_of_ours_agrees_in_every_field() {
        let n = N.0;
        let ours = ours(Kind::Purchase);
        for other in [
            LogRecord { amount: PurseFen::new(1_251).unwrap(), ..ours },
            LogRecord { kind: Kind::Compound.code(), ..ours },
            LogRecord { time: [0x20, 0x26, 0x09, 0x01, 0x12, 0x15, 0x34], ..ours },
        ] {
            assert_eq!(purchase(&seen(n + 1, ProofSeen::None, &[other])), Outcome::NeverHappened);
        }
        // A load counts by another counter: its record says nothing about this one.
        let load = LogRecord { kind: Kind::Load.code(), ..ours };
        assert_eq!(purchase(&seen(n + 1, ProofSeen::None, &[load])), in_transit(InTransit::RecordGone));
        assert_eq!(purchase(&seen(n + 1, ProofSeen::None, &[load, ours])), UNPROVEN);
    }

    #[test]
    fn a_foreign_card_logs_the_counter_after() {
        let foreign = CardProfile { log_counter: LogCounter::After, ..profile() };
        let logged = LogRecord { counter: Counter(N.0 + 1), ..ours(Kind::Purchase) };
        let seen = seen(N.0 + 1, ProofSeen::None, &[logged]);
        assert_eq!(resolve_purchase(&entry(Kind::Purchase), &foreign, &seen), UNPROVEN);
        assert_eq!(purchase(&seen), in_transit(InTransit::RecordGone));
    }

    #[test]
    fn a_load_by_every_line_of_the_table() {
        let load = |seen: &Seen, proven| resolve_load(&entry(Kind::Load), &profile(), seen, proven);
        let (n, ours) = (N.0, ours(Kind::Load));
        let other = LogRecord { time: [0x20, 0x26, 0x09, 0x01, 0x12, 0x15, 0x34], ..ours };
        assert_eq!(load(&seen(n, ProofSeen::None, &[]), true), Outcome::NeverHappened);
        assert_eq!(load(&seen(n, ProofSeen::None, &[ours]), true), in_transit(InTransit::Contradiction));
        assert_eq!(load(&seen(n + 1, ProofSeen::Right(mac()), &[]), true), Outcome::Completed { tac: mac() });
        for proof in [ProofSeen::None, ProofSeen::Wrong] {
            // The counter is enough; what the log says of it is not asked.
            assert_eq!(load(&seen(n + 1, proof, &[other]), true), UNPROVEN);
            assert_eq!(load(&seen(n + 2, proof, &[ours]), true), UNPROVEN);
            assert_eq!(load(&seen(n + 2, proof, &[other]), true), Outcome::NeverHappened);
            assert_eq!(load(&seen(n + 2, proof, &[]), true), in_transit(InTransit::RecordGone));
            assert_eq!(load(&seen(n - 1, proof, &[]), true), in_transit(InTransit::CounterWentBack));
            // Without proof of the counter nothing is given back and nothing is done.
            for counter in [n - 1, n, n + 1, n + 2] {
                assert_eq!(
                    load(&seen(counter, proof, &[ours]), false),
                    in_transit(InTransit::CounterUnproven)
                );
            }
        }
    }
}
