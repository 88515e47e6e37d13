//! What terminals were told, as a cashier's drawer would have it on paper.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use feiqian_protocol::ids::{CardNumber, Key, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;

use super::local;
use super::replay::Table;

/// What was asked for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Passing a door.
    Access,
    /// A purchase.
    Purchase,
    /// Giving a purchase back.
    Reversal,
}

impl Kind {
    /// The name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Purchase => "purchase",
            Self::Reversal => "reversal",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Access, Self::Purchase, Self::Reversal]
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| "must be access, purchase or reversal".to_owned())
    }
}

/// One first definite answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Receipt {
    /// When it was asked, in the replay's time.
    pub at: Timestamp,
    /// Where.
    pub building: String,
    /// The terminal.
    pub terminal: TerminalId,
    /// The terminal's sequence.
    pub sequence: Key,
    /// The card.
    pub card: CardNumber,
    /// What for.
    pub kind: Kind,
    /// Why not; absent where it was approved.
    pub declined: Option<String>,
    /// What was charged or given back, or asked for in vain.
    pub amount: Fen,
    /// What of it was beyond the node's spending right.
    pub stand_in: Fen,
    /// What of it was given back later.
    pub reversed: Fen,
}

impl Receipt {
    /// True where it was done.
    pub const fn approved(&self) -> bool {
        self.declined.is_none()
    }

    /// By what the centre knows it.
    pub fn key(&self) -> (TerminalId, Key) {
        (self.terminal.clone(), self.sequence.clone())
    }
}

const COLUMNS: [&str; 11] = [
    "time",
    "building",
    "terminal",
    "terminal_seq",
    "card",
    "kind",
    "outcome",
    "reason",
    "amount_fen",
    "stand_in_fen",
    "reversed_fen",
];

/// Writes `receipts.csv`.
///
/// # Errors
/// Where the file cannot be written.
pub fn write(path: &Path, receipts: &[Receipt]) -> Result<()> {
    let mut writer =
        csv::Writer::from_path(path).with_context(|| format!("cannot write {}", path.display()))?;
    writer.write_record(COLUMNS)?;
    for receipt in receipts {
        let outcome = if receipt.approved() { "approved" } else { "declined" };
        writer.write_record([
            local::format(receipt.at).as_str(),
            &receipt.building,
            receipt.terminal.as_str(),
            receipt.sequence.as_str(),
            receipt.card.as_str(),
            receipt.kind.name(),
            outcome,
            receipt.declined.as_deref().unwrap_or_default(),
            &receipt.amount.get().to_string(),
            &receipt.stand_in.get().to_string(),
            &receipt.reversed.get().to_string(),
        ])?;
    }
    writer.flush()?;
    Ok(())
}

/// Reads `receipts.csv`.
///
/// # Errors
/// Names file, line and column.
pub fn read(dir: &Path) -> Result<Vec<Receipt>> {
    let mut table = Table::open(dir, "receipts")?;
    let mut receipts = Vec::new();
    while table.advance()? {
        let approved = match table.text("outcome")? {
            "approved" => true,
            "declined" => false,
            _ => return Err(table.fault("outcome", "must be approved or declined")),
        };
        receipts.push(Receipt {
            at: table.time("time")?,
            building: table.text("building")?.to_owned(),
            terminal: table.parse("terminal")?,
            sequence: table.parse("terminal_seq")?,
            card: table.parse("card")?,
            kind: table.parse("kind")?,
            declined: (!approved).then(|| table.text("reason").map(str::to_owned)).transpose()?,
            amount: table.fen("amount_fen", true)?,
            stand_in: table.fen("stand_in_fen", true)?,
            reversed: table.fen("reversed_fen", true)?,
        });
    }
    Ok(receipts)
}

/// What all receipts together say.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Totals {
    /// Purchases asked for.
    pub purchases: u64,
    /// Purchases approved.
    pub approved: u64,
    /// Purchases declined, by reason.
    pub declined: BTreeMap<String, u64>,
    /// Approved purchases with stand-in.
    pub stand_in: u64,
    /// Fen of it, net of reversals (a reversal takes the stand-in first).
    pub stand_in_fen: i64,
    /// Fen approved, net of reversals.
    pub amount_approved_fen: i64,
    /// Doors opened.
    pub granted: u64,
    /// Doors kept shut.
    pub denied: u64,
}

impl Totals {
    /// Counts.
    pub fn of(receipts: &[Receipt]) -> Self {
        let mut totals =
            Self { declined: BTreeMap::from([("insufficient".to_owned(), 0)]), ..Self::default() };
        for receipt in receipts {
            match (receipt.kind, &receipt.declined) {
                (Kind::Reversal, _) => {}
                (Kind::Access, None) => totals.granted += 1,
                (Kind::Access, Some(_)) => totals.denied += 1,
                (Kind::Purchase, Some(reason)) => {
                    totals.purchases += 1;
                    *totals.declined.entry(reason.clone()).or_default() += 1;
                }
                (Kind::Purchase, None) => {
                    totals.purchases += 1;
                    totals.approved += 1;
                    totals.stand_in += u64::from(receipt.stand_in.is_positive());
                    totals.stand_in_fen += (receipt.stand_in - receipt.reversed).or_zero().get();
                    totals.amount_approved_fen += (receipt.amount - receipt.reversed).get();
                }
            }
        }
        totals
    }
}

/// A receipt for tests: approved, 10 yuan, at terminal `t`.
#[cfg(test)]
pub fn sample(at: &str, sequence: &str, card: &str, kind: Kind) -> Receipt {
    Receipt {
        at: local::parse(at).unwrap(),
        building: "b".to_owned(),
        terminal: "t".parse().unwrap(),
        sequence: sequence.parse().unwrap(),
        card: card.parse().unwrap(),
        kind,
        declined: None,
        amount: Fen::new(1_000),
        stand_in: Fen::ZERO,
        reversed: Fen::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_round_trip_and_add_up_net_of_reversals() {
        let noon = "2022-11-07T12:00:00";
        let reversed = Receipt {
            reversed: Fen::new(400),
            stand_in: Fen::new(300),
            ..sample(noon, "1", "c1", Kind::Purchase)
        };
        let declined =
            Receipt { declined: Some("pin_required".to_owned()), ..sample(noon, "2", "c1", Kind::Purchase) };
        let back = Receipt { amount: Fen::new(400), ..sample(noon, "3", "c1", Kind::Reversal) };
        let door = Receipt { amount: Fen::ZERO, ..sample(noon, "4", "c1", Kind::Access) };
        let receipts = vec![reversed, declined, back, door];
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("receipts.csv"), &receipts).unwrap();
        assert_eq!(read(dir.path()).unwrap(), receipts);
        let totals = Totals::of(&receipts);
        assert_eq!((totals.purchases, totals.approved, totals.granted), (2, 1, 1));
        assert_eq!((totals.amount_approved_fen, totals.stand_in, totals.stand_in_fen), (600, 1, 0));
        assert_eq!(totals.declined["pin_required"], 1);
        assert_eq!(totals.declined["insufficient"], 0);
    }
}
