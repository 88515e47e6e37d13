//! Purchases that another system booked before us, taken over as habits: what rights are handed out by from the first day on.
//!
//! A row counts exactly as an ingested debit does for habits and turnover, and for nothing else. The file is checked whole,
//! then goes to the service in parts; a part is known by the file's digest and its number and counts once, so that an import
//! that broke off is simply run again.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use feiqian_protocol::chain::hex;
use feiqian_protocol::ids::{CardNumber, Key, NodeId, NodeName};
use feiqian_protocol::limits::AMOUNT_FEN_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::accounts::refused;
use crate::control::Client;
use crate::core::{Round, StoreError};
use crate::io::{Command, PastPurchase, Reply};
use crate::store::{accounts, meta_number, put_meta};

/// Purchases of one command: one step of the core, which taps wait for.
const PART: usize = 500;

/// Errors that are shown of one file.
const ERRORS_SHOWN_MAX: usize = 20;

const COLUMNS: [&str; 4] = ["time", "card", "node", "amount_fen"];

impl Round<'_> {
    /// Takes over one part of a file; all of it or nothing.
    pub(crate) fn import_history(
        &mut self,
        file: &Key,
        part: u32,
        last: bool,
        purchases: &[PastPurchase],
    ) -> Result<Reply, StoreError> {
        let key = format!("history {file} {part}");
        if meta_number(self.db, &key)?.is_some() {
            return Ok(Ok(json!({ "purchases": 0, "unknown_cards": 0, "repeat": true })));
        }
        let offset_ms = i64::from(self.state.calendar().utc_offset_minutes) * 60_000;
        let mut known = Vec::with_capacity(purchases.len());
        let mut unknown = BTreeSet::new();
        for (index, purchase) in purchases.iter().enumerate() {
            let row = index + 1;
            let Some(node) = self.node_named(&purchase.node) else {
                let message = format!("row {row}: no building {} was enrolled", purchase.node);
                return Ok(refused("unknown_node", message));
            };
            if !purchase.amount_fen.is_positive() || purchase.amount_fen > AMOUNT_FEN_MAX {
                let message = format!("row {row}: the amount must be from 0.01 to {AMOUNT_FEN_MAX} yuan");
                return Ok(refused("amount", message));
            }
            let at = Timestamp(purchase.local_ms.saturating_sub(offset_ms));
            if at < Timestamp(0) || at > self.state.time {
                return Ok(refused("time", format!("row {row}: the time is not in the past")));
            }
            match accounts::account_of_card(self.db, &purchase.card)? {
                Some(account) => known.push((node, account, at, purchase.amount_fen)),
                // People leave; what they bought says nothing about those who are here.
                None => {
                    unknown.insert(&purchase.card);
                }
            }
        }
        let count = known.len();
        for (node, account, at, amount) in known {
            self.note_purchase(node, account, at, amount)?;
        }
        put_meta(self.db, &key, 1)?;
        self.state.means = None;
        if last {
            self.state.sweep.start(true);
        }
        Ok(Ok(json!({ "purchases": count, "unknown_cards": unknown.len(), "repeat": false })))
    }

    /// The node that stands for a building: the newest of its name.
    fn node_named(&self, name: &NodeName) -> Option<NodeId> {
        let mut nodes = self.state.nodes.iter().rev();
        nodes.find(|(_, node)| node.name == *name).map(|(id, _)| *id)
    }
}

/// Imports a file through the running service; says on `out` how many purchases.
///
/// # Errors
/// What is wrong with the file, by line, where nothing was imported; or what the service refused, and how far it came.
pub fn import(out: &mut impl Write, file: &Path, data_dir: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let purchases = match parse(bytes.as_slice()) {
        Ok(purchases) => purchases,
        Err(errors) => {
            for (line, error) in errors.iter().take(ERRORS_SHOWN_MAX) {
                eprintln!("{}:{line}: {error}", file.display());
            }
            bail!("{} errors in {}; nothing was imported", errors.len(), file.display());
        }
    };
    let name = Key::new(hex(&Sha256::digest(&bytes))).context("the digest of the file")?;
    let mut client = Client::connect(data_dir)?;
    let progress = std::io::stderr().is_terminal();
    let parts = purchases.len().div_ceil(PART);
    let (mut taken, mut sent, mut repeated) = (0, 0, 0);
    for (part, batch) in (0_u32..).zip(purchases.chunks(PART)) {
        let command = Command::ImportHistory {
            file: name.clone(),
            part,
            last: part as usize + 1 == parts,
            purchases: batch.to_vec(),
        };
        let reply = client.command(&command).with_context(|| {
            let (first, last) = (sent + 1, sent + batch.len());
            format!("purchases {first} to {last} were refused; {sent} of {} went before", purchases.len())
        })?;
        sent += batch.len();
        taken += reply.get("purchases").and_then(serde_json::Value::as_u64).unwrap_or(0);
        repeated += usize::from(reply.get("repeat") == Some(&json!(true)));
        if progress {
            eprint!("\r{sent} of {} purchases", purchases.len());
            // A progress line that does not show is no reason to stop.
            let _ = std::io::stderr().flush();
        }
    }
    if progress {
        eprintln!();
    }
    writeln!(out, "{taken} of {} purchases taken over", purchases.len())?;
    if repeated > 0 {
        writeln!(out, "{repeated} of {parts} parts of this file had been taken over before")?;
    }
    Ok(())
}

/// Reads all purchases, or says for each line what is wrong with it.
///
/// # Errors
/// Line numbers, from 1, and what is wrong there.
pub fn parse(input: impl Read) -> Result<Vec<PastPurchase>, Vec<(u64, String)>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input);
    let columns = match reader.headers() {
        Ok(header) => columns(header).map_err(|error| vec![(1, error)])?,
        Err(error) => return Err(vec![(1, error.to_string())]),
    };
    let mut purchases = Vec::new();
    let mut errors = Vec::new();
    for record in reader.records() {
        match record {
            Ok(record) => {
                let line = record.position().map_or(0, csv::Position::line);
                match purchase(&columns, &record) {
                    Ok(purchase) => purchases.push(purchase),
                    Err(error) => errors.push((line, error)),
                }
            }
            Err(error) => {
                errors.push((error.position().map_or(0, csv::Position::line), error.to_string()));
            }
        }
    }
    if purchases.is_empty() && errors.is_empty() {
        errors.push((1, "no purchases after the header".to_owned()));
    }
    if errors.is_empty() { Ok(purchases) } else { Err(errors) }
}

/// The place of each column, in the order of [`COLUMNS`]. Others are of no interest.
fn columns(header: &csv::StringRecord) -> Result<[usize; COLUMNS.len()], String> {
    let mut places = [0; COLUMNS.len()];
    for (place, name) in places.iter_mut().zip(COLUMNS) {
        // Spreadsheets put a byte order mark before the first name.
        let mut found = header.iter().map(|header| header.trim_start_matches('\u{feff}'));
        *place = found.position(|header| header == name).ok_or(format!("column {name:?} is missing"))?;
    }
    Ok(places)
}

fn purchase(columns: &[usize; COLUMNS.len()], record: &csv::StringRecord) -> Result<PastPurchase, String> {
    let [time, card, node, amount] = columns.map(|place| record.get(place).unwrap_or_default());
    let civil: DateTime =
        time.parse().map_err(|_| format!("time: {time:?} is no local time such as 2025-09-08T11:30"))?;
    let local = civil.to_zoned(TimeZone::UTC).map_err(|error| format!("time: {error}"))?;
    let fen: i64 = amount.parse().map_err(|_| format!("amount_fen: {amount:?} is not a number of fen"))?;
    if !(1..=AMOUNT_FEN_MAX.get()).contains(&fen) {
        return Err(format!("amount_fen: {fen} is not from 1 to {}", AMOUNT_FEN_MAX.get()));
    }
    Ok(PastPurchase {
        local_ms: local.timestamp().as_millisecond(),
        // Not the text itself: errors end up in mails and logs.
        card: CardNumber::new(card).map_err(|_| {
            "card: 1 to 64 visible ASCII characters without comma and quotes are expected".to_owned()
        })?,
        node: NodeName::new(node).map_err(|error| format!("node: {error}"))?,
        amount_fen: Fen::new(fen),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_in_any_order_and_others_are_left_alone() {
        let text = "\u{feff}amount_fen,till, card,node,time\n450,7,c1,canteen,2025-09-08T11:30\n\
                    80,7,c2,shop,2025-09-08T11:30:05\n";
        let purchases = parse(text.as_bytes()).unwrap();
        assert_eq!(purchases.len(), 2);
        assert_eq!(purchases[1].local_ms - purchases[0].local_ms, 5_000);
        assert_eq!(purchases[0].local_ms, 1_757_331_000_000);
        assert_eq!((purchases[0].node.as_str(), purchases[0].amount_fen), ("canteen", Fen::new(450)));
    }

    #[test]
    fn every_wrong_line_is_named() {
        let text = "time,card,node,amount_fen\nnoon,c1,a,5\n2025-09-08T11:30,c1,a,0\n2025-09-08T11:30,c1,a,1.5\n\
                    2025-09-08T11:30,c 1,a,5\n2025-09-08T11:30,c1,,5\n2025-09-08T11:30,c1,a\n";
        let errors = parse(text.as_bytes()).unwrap_err();
        assert_eq!(errors.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7]);
        for (text, expected) in [
            ("time,card,node\n", "amount_fen"),
            ("time,card,node,amount_fen\n", "no purchases"),
            ("", "missing"),
        ] {
            let errors = parse(text.as_bytes()).unwrap_err();
            assert!(errors[0].0 == 1 && errors[0].1.contains(expected), "{text:?}: {errors:?}");
        }
    }
}
