//! What the node is told of what is over.

use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::torn::Outcome;
use feiqian_protocol::purse::values::{
    CardSerial, CardTime, Counter, Kind, Mac, PurseFen, TerminalNumber, TerminalSequence,
};
use serde::Serialize;

/// The epoch of every report's key: the key names the terminal's number, and a terminal that has lost its journal gets another one.
const EPOCH: u32 = 1;

/// What is reported.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Report {
    /// A purchase.
    Purchase(Box<PurchaseReport>),
    /// A card has taken a load.
    Load {
        /// The card.
        serial: CardSerial,
        /// The online counter that INITIALIZE answered.
        counter: Counter,
        /// The TAC of CREDIT.
        tac: Mac,
    },
}

/// A purchase, as a node takes it: `PursePurchaseBody` of its API.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct PurchaseReport {
    epoch: u32,
    sequence: String,
    serial: CardSerial,
    kind: Kind,
    amount_fen: PurseFen,
    balance_before_fen: PurseFen,
    counter: Counter,
    terminal_number: TerminalNumber,
    terminal_sequence: TerminalSequence,
    time: CardTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    tac: Option<Mac>,
    proven: bool,
}

impl Report {
    /// Of a purchase; `None` where nothing came of it. One that is in transit is reported without proof, for a person to look at.
    pub fn purchase(entry: &JournalEntry, outcome: &Outcome) -> Option<Self> {
        let tac = match *outcome {
            Outcome::Completed { tac } => Some(tac),
            Outcome::CompletedWithoutProof { tac } => tac,
            Outcome::InTransit { .. } => None,
            Outcome::NeverHappened => return None,
        };
        let JournalEntry { serial, terms, .. } = entry;
        Some(Self::Purchase(Box::new(PurchaseReport {
            epoch: EPOCH,
            sequence: format!("{}-{}", terms.terminal, terms.sequence.0),
            serial: *serial,
            kind: terms.kind,
            amount_fen: terms.amount,
            balance_before_fen: terms.balance_before,
            counter: terms.counter,
            terminal_number: terms.terminal,
            terminal_sequence: terms.sequence,
            time: terms.time,
            tac,
            proven: outcome.is_proven(),
        })))
    }

    /// Of a load; `None` where there is no TAC to report.
    pub fn load(entry: &JournalEntry, outcome: &Outcome) -> Option<Self> {
        let (Outcome::Completed { tac } | Outcome::CompletedWithoutProof { tac: Some(tac) }) = *outcome
        else {
            return None;
        };
        Some(Self::Load { serial: entry.serial, counter: entry.terms.counter, tac })
    }
}

#[cfg(test)]
mod tests {
    use feiqian_protocol::purse::torn::InTransit;
    use serde_json::json;

    use super::*;
    use crate::journal::testing::{A, entry};

    #[test]
    fn a_purchase_is_reported_with_what_its_terminal_has_of_it() {
        let tac: Mac = "0102030405060708".parse().unwrap();
        let reported = |outcome| match Report::purchase(&entry(A, 107_187), &outcome) {
            Some(Report::Purchase(report)) => serde_json::to_value(report).unwrap(),
            other => panic!("{other:?}"),
        };
        let proven = reported(Outcome::Completed { tac });
        assert_eq!(
            proven,
            json!({
                "epoch": 1, "sequence": "000000000117-107187", "serial": A, "kind": "compound", "amount_fen": 1_250,
                "balance_before_fen": 5_150, "counter": 41, "terminal_number": "000000000117",
                "terminal_sequence": 107_187, "time": "20260901121533", "tac": "0102030405060708", "proven": true,
            })
        );
        let unproven = reported(Outcome::CompletedWithoutProof { tac: Some(tac) });
        assert_eq!((&unproven["tac"], &unproven["proven"]), (&proven["tac"], &json!(false)));
        let in_transit = reported(Outcome::InTransit { reason: InTransit::RecordGone });
        assert_eq!((in_transit.get("tac"), &in_transit["proven"]), (None, &json!(false)));
        assert_eq!(Report::purchase(&entry(A, 1), &Outcome::NeverHappened), None);
    }

    #[test]
    fn of_a_load_only_a_tac_is_reported() {
        let tac: Mac = "0102030405060708".parse().unwrap();
        let load = Some(Report::Load { serial: A.parse().unwrap(), counter: Counter(41), tac });
        assert_eq!(Report::load(&entry(A, 0), &Outcome::Completed { tac }), load);
        assert_eq!(Report::load(&entry(A, 0), &Outcome::CompletedWithoutProof { tac: Some(tac) }), load);
        for outcome in [Outcome::CompletedWithoutProof { tac: None }, Outcome::NeverHappened] {
            assert_eq!(Report::load(&entry(A, 0), &outcome), None);
        }
    }
}
