//! Reads what `feiqian-sim campus --keep` leaves, with nothing of the simulator's own code.

#![allow(clippy::panic)] // A helper of tests fails the test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A row of a CSV file by column name.
pub type Row = BTreeMap<String, String>;

/// Reads a CSV file with a header.
///
/// # Panics
/// Where it is not there or malformed.
pub fn rows(file: &Path) -> Vec<Row> {
    let mut reader =
        csv::Reader::from_path(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let rows: Result<Vec<Row>, _> = reader.deserialize().collect();
    rows.unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// A number of a row; empty is 0.
///
/// # Panics
/// Where the column is missing or no number.
pub fn number(row: &Row, column: &str) -> i64 {
    let text = row.get(column).unwrap_or_else(|| panic!("no column {column} in {row:?}"));
    if text.is_empty() { 0 } else { text.parse().unwrap_or_else(|_| panic!("{column} of {row:?}")) }
}

/// A kept directory.
#[derive(Debug)]
pub struct Kept {
    directory: PathBuf,
}

impl Kept {
    /// Of this directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// What terminals were told.
    pub fn receipts(&self) -> Vec<Row> {
        rows(&self.directory.join("receipts.csv"))
    }

    /// The cases.
    pub fn cases(&self) -> Vec<Row> {
        rows(&self.directory.join("cases.csv"))
    }

    /// Posted cash balances by card.
    pub fn balances(&self) -> BTreeMap<String, i64> {
        let mut balances = BTreeMap::new();
        for row in rows(&self.directory.join("balances.csv")) {
            *balances.entry(row["card"].clone()).or_default() += number(&row, "posted_fen");
        }
        balances
    }

    /// The total by which balances differ from `funds in - receipts + refunds`, per card.
    pub fn difference(&self, funds_in: &BTreeMap<String, i64>) -> i64 {
        let mut expected = funds_in.clone();
        for receipt in self.receipts() {
            if receipt["kind"] == "purchase" && receipt["outcome"] == "approved" {
                *expected.entry(receipt["card"].clone()).or_default() -=
                    number(&receipt, "amount_fen") - number(&receipt, "reversed_fen");
            }
        }
        for case in self.cases() {
            *expected.entry(case["card"].clone()).or_default() += number(&case, "refunded_fen");
        }
        let balances = self.balances();
        let cards = expected.keys().chain(balances.keys()).collect::<std::collections::BTreeSet<_>>();
        cards
            .into_iter()
            .map(|card| {
                let fen = |map: &BTreeMap<String, i64>| map.get(card).copied().unwrap_or_default();
                (fen(&expected) - fen(&balances)).abs()
            })
            .sum()
    }
}

/// The first file of this name in a directory or below it, in the order of names.
pub fn find_below(directory: &Path, name: &str) -> Option<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(directory).ok()?.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter().find_map(|path| {
        if path.is_dir() { find_below(&path, name) } else { (path.file_name()? == name).then_some(path) }
    })
}
