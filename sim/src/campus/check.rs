//! The end of a run: what terminals were told and what was paid in, against what the centre and the nodes have on disk.
//!
//! It reads a directory with no process running, so that it can be done again by anybody, any time later.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use feiqian_protocol::ids::{Key, TerminalId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::layout::Layout;
use super::process::{self, NODE, RECONCILE};
use super::receipt::{self, Kind, Receipt};
use super::replay::Table;

/// Most problems that are listed one by one.
const PROBLEMS_MAX: usize = 50;

/// What the checks found.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Findings {
    /// All copies verify and are equal.
    pub converged: bool,
    /// The digest, where all agree.
    pub digest: String,
    /// Approved, but not posted or not whole.
    pub lost: u64,
    /// Posted twice, or posted and never approved.
    pub duplicated: u64,
    /// Fen, summed over cards, by which balances differ from receipts and input files.
    pub difference_fen: i64,
    /// Cases other than losses.
    pub overspend: Overspend,
    /// Cases of reason `loss`.
    pub loss_cases: u64,
    /// Fen refunded.
    pub refunded_fen: i64,
    /// The nodes.
    pub nodes: Vec<NodeFindings>,
    /// What is wrong, for a person.
    pub problems: Vec<String>,
}

impl Findings {
    /// True where nothing is wrong.
    pub const fn good(&self) -> bool {
        self.converged && self.lost == 0 && self.duplicated == 0 && self.difference_fen == 0
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text);
        }
    }
}

/// Cases other than losses.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Overspend {
    /// How many.
    pub cases: u64,
    /// Fen overspent.
    pub fen: i64,
    /// Fen of it recovered.
    pub recovered_fen: i64,
}

/// One node's copy.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct NodeFindings {
    /// Its name.
    pub node: String,
    /// Entries of its own log.
    pub entries: u64,
    /// Digest of its tables.
    pub digest: String,
}

/// What `verify --json` says.
#[derive(Clone, Debug, Deserialize)]
struct Verified {
    ok: bool,
    node: String,
    entries: u64,
    positions: BTreeMap<String, u64>,
    digest_tables: String,
    digest_folded: String,
    #[serde(default)]
    problems: Vec<String>,
}

/// Checks a directory in which no process runs; what the centre exports goes to `exports`.
///
/// # Errors
/// Where something needed cannot be read. What is read and wrong is in the findings.
pub async fn check(layout: &Layout, exports: &Path) -> Result<Findings> {
    let run = layout.read_run()?;
    let mut findings = Findings::default();
    let centre = layout.centre();
    let mut copies = vec![verify(RECONCILE, &centre).await?];
    for node in &run.nodes {
        copies.push(verify(NODE, &layout.node(&node.node)).await?);
    }
    compare_copies(&copies, &mut findings);
    for (export, file, format) in [
        ("balances", "balances.csv", "csv"),
        ("cases", "cases.csv", "csv"),
        ("entries", "entries.jsonl", "jsonl"),
    ] {
        let data = centre.to_string_lossy();
        let output = exports.join(file);
        let output = output.to_string_lossy();
        let arguments = ["export", export, "--data", &data, "--format", format, "--output", &output];
        process::run_to_end(RECONCILE, &arguments).await?;
    }
    let receipts = receipt::read(layout.root())?;
    let entries = std::fs::read_to_string(exports.join("entries.jsonl"))?;
    compare_postings(&receipts, &posted(&entries)?, &mut findings);
    let cases = read_cases(exports)?;
    sum_cases(&cases, &mut findings);
    let mut money_in = layout.read_accounts()?;
    money_in.extend(layout.read_topups()?);
    let money_in = money_in.into_iter().map(|(card, fen)| (card, fen.get()));
    compare_balances(&receipts, money_in, &cases, &read_balances(exports)?, &mut findings);
    Ok(findings)
}

async fn verify(role: &str, data: &Path) -> Result<Verified> {
    let text = data.to_string_lossy();
    let output = process::output(role, &["verify", "--data", &text, "--json"]).await?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "verify of {text} ended with {} and no result: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })
}

/// The first copy is the centre's.
fn compare_copies(copies: &[Verified], findings: &mut Findings) {
    let Some((centre, nodes)) = copies.split_first() else { return };
    findings.digest.clone_from(&centre.digest_folded);
    findings.converged = true;
    let shards = |copy: &Verified| -> BTreeMap<String, u64> {
        let shards = copy.positions.iter().filter(|(log, _)| log.starts_with("shard-"));
        shards.map(|(log, position)| (log.clone(), *position)).collect()
    };
    for copy in copies {
        let mut wrong = copy.problems.clone();
        if !copy.ok {
            wrong.push("does not verify".to_owned());
        }
        if copy.digest_tables != copy.digest_folded {
            wrong.push("its tables are not what its entries say".to_owned());
        }
        if copy.digest_folded != centre.digest_folded || copy.digest_tables != centre.digest_tables {
            wrong.push("its digest is not the centre's".to_owned());
        }
        if shards(copy) != shards(centre) {
            wrong.push("its account streams do not end where the centre's do".to_owned());
        }
        findings.converged &= wrong.is_empty();
        wrong.into_iter().for_each(|wrong| findings.problem(format!("{}: {wrong}", copy.node)));
    }
    findings.nodes = nodes
        .iter()
        .map(|copy| NodeFindings {
            node: copy.node.clone(),
            entries: copy.entries,
            digest: copy.digest_tables.clone(),
        })
        .collect();
}

/// What the centre holds of one tap or reversal.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Posted {
    fen: i64,
    /// Wallets that it moved, each of which may move once; how often any moved again.
    wallets: BTreeSet<String>,
    repeats: u64,
}

type Postings = BTreeMap<(Kind, TerminalId, Key), Posted>;

/// Collects debits and reversals from `entries.jsonl`.
fn posted(entries: &str) -> Result<Postings> {
    let mut postings = Postings::new();
    for (line, number) in entries.lines().zip(1..) {
        let entry: Value = serde_json::from_str(line).with_context(|| format!("entries.jsonl:{number}"))?;
        let missing = |what: &str| format!("entries.jsonl:{number}: a debit or reversal without {what}");
        let kind = match entry["kind"].as_str() {
            Some("debit") => Kind::Purchase,
            Some("reversal") => Kind::Reversal,
            _ => continue,
        };
        let body = if entry["body"].is_object() { &entry["body"] } else { &entry };
        let body = body.get(kind_name(kind)).unwrap_or(body);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let terminal: TerminalId = text(&entry["actor"]["id"]).with_context(|| missing("actor"))?.parse()?;
        let sequence: Key = text(&body["tap"]["sequence"]).with_context(|| missing("tap"))?.parse()?;
        let amounts: &[&str] = match kind {
            Kind::Purchase => &["from_right", "stand_in"],
            _ => &["right_back", "right_home", "stand_in_home"],
        };
        let mut fen = 0;
        for amount in amounts {
            fen += body[*amount].as_i64().with_context(|| missing(amount))?;
        }
        fen += body["from_voucher"].as_i64().unwrap_or_default();
        let posting = postings.entry((kind, terminal, sequence)).or_default();
        posting.fen += fen;
        // A reversal may give several parts of one wallet back, one per debit.
        let part = format!("{} {}", body["wallet"], body.get("debit").unwrap_or(&Value::Null));
        if !posting.wallets.insert(part) {
            posting.repeats += 1;
        }
    }
    Ok(postings)
}

const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Purchase => "debit",
        _ => "reversal",
    }
}

fn compare_postings(receipts: &[Receipt], postings: &Postings, findings: &mut Findings) {
    let mut told = BTreeSet::new();
    for receipt in receipts.iter().filter(|receipt| receipt.kind != Kind::Access && receipt.approved()) {
        let key = (receipt.kind, receipt.terminal.clone(), receipt.sequence.clone());
        let what = format!("{} {} {}", receipt.kind.name(), receipt.terminal, receipt.sequence);
        let fen = postings.get(&key).map_or(0, |posting| posting.fen);
        if fen < receipt.amount.get() {
            findings.lost += 1;
            findings.problem(format!("{what}: approved {} fen, posted {fen}", receipt.amount.get()));
        }
        let repeats = postings.get(&key).map_or(0, |posting| posting.repeats);
        if fen > receipt.amount.get() || repeats > 0 {
            findings.duplicated += 1;
            findings.problem(format!(
                "{what}: approved {} fen, posted {fen} ({repeats} times again)",
                receipt.amount.get()
            ));
        }
        told.insert(key);
    }
    for (key, posting) in postings.iter().filter(|(key, _)| !told.contains(*key)) {
        findings.duplicated += 1;
        let (kind, terminal, sequence) = key;
        findings.problem(format!(
            "{} {terminal} {sequence}: posted {} fen, no terminal was told",
            kind.name(),
            posting.fen
        ));
    }
}

#[derive(Clone, Debug)]
struct Case {
    card: String,
    reason: String,
    opened_fen: i64,
    recovered_fen: i64,
    refunded_fen: i64,
}

fn read_cases(dir: &Path) -> Result<Vec<Case>> {
    let mut table = Table::open(dir, "cases")?;
    let mut cases = Vec::new();
    while table.advance()? {
        cases.push(Case {
            card: table.text("card")?.to_owned(),
            reason: table.text("reason")?.to_owned(),
            opened_fen: table.parse("opened_fen")?,
            recovered_fen: table.parse("recovered_fen")?,
            refunded_fen: table.parse("refunded_fen")?,
        });
    }
    Ok(cases)
}

fn read_balances(dir: &Path) -> Result<BTreeMap<String, i64>> {
    let mut table = Table::open(dir, "balances")?;
    let mut balances = BTreeMap::new();
    while table.advance()? {
        *balances.entry(table.text("card")?.to_owned()).or_default() += table.parse::<i64>("posted_fen")?;
    }
    Ok(balances)
}

fn sum_cases(cases: &[Case], findings: &mut Findings) {
    for case in cases {
        findings.refunded_fen += case.refunded_fen;
        if case.reason == "loss" {
            findings.loss_cases += 1;
        } else if case.opened_fen != 0 || case.recovered_fen != 0 {
            findings.overspend.cases += 1;
            findings.overspend.fen += case.opened_fen;
            findings.overspend.recovered_fen += case.recovered_fen;
        }
    }
}

/// Per card: opening + top-ups - approved net of reversals + refunds = posted.
fn compare_balances(
    receipts: &[Receipt],
    money_in: impl Iterator<Item = (String, i64)>,
    cases: &[Case],
    balances: &BTreeMap<String, i64>,
    findings: &mut Findings,
) {
    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    for (card, fen) in money_in {
        *expected.entry(card).or_default() += fen;
    }
    for receipt in receipts.iter().filter(|receipt| receipt.approved()) {
        let fen = match receipt.kind {
            Kind::Purchase => -receipt.amount.get(),
            Kind::Reversal => receipt.amount.get(),
            Kind::Access => continue,
        };
        *expected.entry(receipt.card.to_string()).or_default() += fen;
    }
    for case in cases {
        *expected.entry(case.card.clone()).or_default() += case.refunded_fen;
    }
    let cards: BTreeSet<&String> = expected.keys().chain(balances.keys()).collect();
    for card in cards {
        let (expected, posted) = (expected.get(card).unwrap_or(&0), balances.get(card).unwrap_or(&0));
        if expected != posted {
            findings.difference_fen += (expected - posted).abs();
            findings.problem(format!("card {card}: {posted} fen are posted, receipts say {expected}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campus::receipt::sample;

    fn debit(sequence: &str, wallet: &str, from_right: i64, stand_in: i64) -> String {
        format!(
            "{{\"log\":\"node-1\",\"position\":1,\"kind\":\"debit\",\"actor\":{{\"kind\":\"terminal\",\"id\":\"t\"}},\
             \"body\":{{\"tap\":{{\"epoch\":1,\"sequence\":\"{sequence}\"}},\"wallet\":\"{wallet}\",\
             \"from_right\":{from_right},\"stand_in\":{stand_in}}}}}\n"
        )
    }

    fn judge(entries: &str, receipts: &[Receipt]) -> (u64, u64) {
        let mut findings = Findings::default();
        compare_postings(receipts, &posted(entries).unwrap(), &mut findings);
        assert_eq!(findings.problems.is_empty(), findings.lost + findings.duplicated == 0);
        (findings.lost, findings.duplicated)
    }

    #[test]
    fn what_is_lost_and_what_is_doubled_is_found() {
        let paid = [sample("2022-11-07T12:00", "1", "c1", Kind::Purchase)];
        let whole = debit("1", "cash", 600, 400);
        assert_eq!(judge(&whole, &paid), (0, 0));
        let split = debit("1", "subsidy", 600, 0) + &debit("1", "cash", 0, 400);
        assert_eq!(judge(&split, &paid), (0, 0));
        assert_eq!(judge("", &paid), (1, 0));
        assert_eq!(judge(&debit("1", "cash", 600, 399), &paid), (1, 0));
        assert_eq!(judge(&(whole.clone() + &whole), &paid), (0, 1));
        assert_eq!(judge(&(debit("1", "cash", 600, 0) + &debit("1", "cash", 400, 0)), &paid), (0, 1));
        assert_eq!(judge(&(whole + &debit("2", "cash", 5, 0)), &paid), (0, 1));
        let declined = [Receipt { declined: Some("insufficient".into()), ..paid[0].clone() }];
        assert_eq!(judge(&debit("1", "cash", 1_000, 0), &declined), (0, 1));
        assert!(posted("{\"kind\":\"debit\"}\n").is_err());
        assert!(posted("no json\n").is_err());
    }

    #[test]
    fn a_fen_that_is_not_accounted_for_is_found() {
        let bought = sample("2022-11-07T12:00", "1", "c1", Kind::Purchase);
        let back = sample("2022-11-07T12:01", "2", "c1", Kind::Reversal);
        let lost = sample("2022-11-07T12:02", "3", "c1", Kind::Purchase);
        let refund = Case {
            card: "c1".into(),
            reason: "loss".into(),
            opened_fen: 0,
            recovered_fen: 0,
            refunded_fen: 1_000,
        };
        let difference = |posted: i64| {
            let mut findings = Findings::default();
            let receipts = [bought.clone(), back.clone(), lost.clone()];
            let money_in = [("c1".to_owned(), 500), ("c2".to_owned(), 70)].into_iter();
            let balances = BTreeMap::from([("c1".to_owned(), posted), ("c2".to_owned(), 70)]);
            compare_balances(&receipts, money_in, std::slice::from_ref(&refund), &balances, &mut findings);
            findings.difference_fen
        };
        assert_eq!(difference(500), 0);
        assert_eq!(difference(499), 1);
        assert_eq!(difference(-500), 1_000);
    }

    #[test]
    fn copies_must_be_equal_and_sound() {
        let copy = |node: &str, digest: &str, position: u64| Verified {
            ok: true,
            node: node.into(),
            entries: 1,
            positions: BTreeMap::from([("shard-0".into(), position), (format!("node-{node}"), position)]),
            digest_tables: digest.into(),
            digest_folded: digest.into(),
            problems: Vec::new(),
        };
        let converged = |copies: &[Verified]| {
            let mut findings = Findings::default();
            compare_copies(copies, &mut findings);
            assert_eq!(findings.converged, findings.problems.is_empty());
            findings.converged
        };
        assert!(converged(&[copy("centre", "d", 7), copy("a", "d", 7)]));
        assert!(!converged(&[copy("centre", "d", 7), copy("a", "e", 7)]));
        assert!(!converged(&[copy("centre", "d", 7), copy("a", "d", 6)]));
        let flipped = Verified { digest_tables: "x".into(), ..copy("a", "d", 7) };
        assert!(!converged(&[copy("centre", "d", 7), flipped]));
        let unsound = Verified { ok: false, ..copy("a", "d", 7) };
        assert!(!converged(&[copy("centre", "d", 7), unsound]));
    }

    #[test]
    fn losses_are_no_overspend() {
        let case = |reason: &str, opened_fen| Case {
            card: "c1".into(),
            reason: reason.into(),
            opened_fen,
            recovered_fen: 5,
            refunded_fen: 0,
        };
        let mut findings = Findings::default();
        sum_cases(&[case("stand_in", 30), case("loss", 90)], &mut findings);
        assert_eq!(findings.overspend, Overspend { cases: 1, fen: 30, recovered_fen: 5 });
        assert_eq!(findings.loss_cases, 1);
    }
}
