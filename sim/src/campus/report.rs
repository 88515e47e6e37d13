//! What a run comes to: JSON for machines, a table for people.
#![allow(clippy::float_arithmetic, reason = "rates and yuan for people; nothing is decided by them")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use feiqian_protocol::money::Fen;
use serde::Serialize;

use super::check::{Findings, Overspend};
use super::funds::WrongDeclines;
use super::layout::Run;
use super::receipt::Totals;

/// The report of a run; its JSON is what `--json` writes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    taps: u64,
    approved: u64,
    declined: BTreeMap<String, u64>,
    pending: u64,
    stand_in: u64,
    stand_in_fen: i64,
    retries: u64,
    amount_approved_fen: i64,
    access: AccessReport,
    overspend: Overspend,
    false_declines: u64,
    unreachable: u64,
    conservation: Conservation,
    lost: u64,
    duplicated: u64,
    converged: bool,
    digest: String,
    convergence_ms: u64,
    nodes: Vec<NodeReport>,
    latency_us: Latency,
    taps_per_s: u64,
    loss_cases: u64,
    refunded_fen: i64,
    problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct AccessReport {
    granted: u64,
    denied: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Conservation {
    ok: bool,
    difference_fen: i64,
}

#[derive(Clone, Debug, Serialize)]
struct NodeReport {
    node: String,
    entries: u64,
    digest: String,
    offline_s: i64,
    rss_kb_max: u64,
}

/// Times from a tap to its answer, at the terminal, of taps that were answered at the first try.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Latency {
    /// Half are faster.
    pub p50: u64,
    /// Ninety-nine of a hundred are faster.
    pub p99: u64,
    /// The slowest.
    pub max: u64,
}

impl Latency {
    /// In microseconds.
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(index).map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
        };
        Self { p50: at(50), p99: at(99), max: at(100) }
    }
}

/// What only the driver knows.
#[derive(Clone, Debug, Default)]
pub struct Played {
    /// Tries beyond the first, over all taps.
    pub retries: u64,
    /// See [`Latency`].
    pub latencies: Vec<Duration>,
    /// Real time of the replay.
    pub wall: Duration,
    /// Real time from the last heal until all was drained.
    pub convergence: Duration,
    /// What went wrong on the way.
    pub problems: Vec<String>,
}

impl Report {
    /// Puts everything together.
    pub fn new(run: &Run, totals: Totals, wrong: WrongDeclines, played: Played, findings: Findings) -> Self {
        let answered = totals.purchases + totals.granted + totals.denied;
        let nodes = run
            .nodes
            .iter()
            .zip(&findings.nodes)
            .map(|(run, found)| NodeReport {
                node: run.node.clone(),
                entries: found.entries,
                digest: found.digest.clone(),
                offline_s: run.offline_s,
                rss_kb_max: run.rss_kb_max,
            })
            .collect();
        let mut problems = played.problems;
        problems.extend(findings.problems.iter().cloned());
        Self {
            taps: totals.purchases,
            approved: totals.approved,
            declined: totals.declined,
            pending: 0,
            stand_in: totals.stand_in,
            stand_in_fen: totals.stand_in_fen,
            retries: played.retries,
            amount_approved_fen: totals.amount_approved_fen,
            access: AccessReport { granted: totals.granted, denied: totals.denied },
            overspend: findings.overspend,
            false_declines: wrong.false_declines,
            unreachable: wrong.unreachable,
            conservation: Conservation {
                ok: findings.difference_fen == 0,
                difference_fen: findings.difference_fen,
            },
            lost: findings.lost,
            duplicated: findings.duplicated,
            converged: findings.converged,
            digest: findings.digest,
            convergence_ms: u64::try_from(played.convergence.as_millis()).unwrap_or(u64::MAX),
            nodes,
            latency_us: Latency::of(played.latencies),
            taps_per_s: (answered as f64 / played.wall.as_secs_f64().max(0.001)) as u64,
            loss_cases: findings.loss_cases,
            refunded_fen: findings.refunded_fen,
            problems,
        }
    }

    /// True where the run kept every promise that it can see.
    pub const fn good(&self) -> bool {
        self.converged
            && self.lost == 0
            && self.duplicated == 0
            && self.conservation.ok
            && self.problems.is_empty()
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let yuan = |fen: i64| format!("¥{}", Fen::new(fen));
        let yes = |good: bool| if good { "yes 是" } else { "NO 否" }.to_owned();
        let mut row = |label: &str, value: String| {
            let _infallible = writeln!(out, "  {}{value}", pad(label, 34));
        };
        row("taps 消费请求", self.taps.to_string());
        row("approved 同意", format!("{}  {}", self.approved, yuan(self.amount_approved_fen)));
        for (reason, count) in &self.declined {
            row(&format!("declined 拒绝: {reason}"), count.to_string());
        }
        row(
            "doors opened, kept shut 门禁通过/拒绝",
            format!("{}, {}", self.access.granted, self.access.denied),
        );
        row("stand-in 代授权", format!("{}  {}", self.stand_in, yuan(self.stand_in_fen)));
        row("false declines 误拒", self.false_declines.to_string());
        row("money out of reach 资金未达", self.unreachable.to_string());
        row(
            "overspend 透支",
            format!(
                "{} cases 笔  {}, recovered 已追回 {}",
                self.overspend.cases,
                yuan(self.overspend.fen),
                yuan(self.overspend.recovered_fen)
            ),
        );
        if self.loss_cases > 0 {
            row(
                "after loss reports 挂失后",
                format!("{} cases 笔, refunded 退款 {}", self.loss_cases, yuan(self.refunded_fen)),
            );
        }
        row("retries 重试", self.retries.to_string());
        row("lost, duplicated 丢失/重复", format!("{}, {}", self.lost, self.duplicated));
        row(
            "conservation 收支平衡",
            format!("{}  {}", yes(self.conservation.ok), yuan(self.conservation.difference_fen)),
        );
        row("converged 各方一致", format!("{}  {} ms", yes(self.converged), self.convergence_ms));
        row("digest 摘要", self.digest.chars().take(16).collect());
        let latency = self.latency_us;
        row(
            "answer 响应 p50, p99, max",
            format!("{}, {}, {} µs; {} taps/s 笔/秒", latency.p50, latency.p99, latency.max, self.taps_per_s),
        );
        row("", String::new());
        row("node 节点", "entries 记录 / offline 离线 / memory 内存".to_owned());
        for node in &self.nodes {
            let memory = node.rss_kb_max / 1_024;
            row(&node.node, format!("{} / {} s / {memory} MiB", node.entries, node.offline_s));
        }
        for problem in &self.problems {
            row("PROBLEM 问题", problem.clone());
        }
        out
    }
}

/// Pads to a width on the screen: Chinese characters take two columns.
fn pad(label: &str, width: usize) -> String {
    let taken: usize = label.chars().map(|c| if c >= '\u{1100}' { 2 } else { 1 }).sum();
    format!("{label}{}", " ".repeat(width.saturating_sub(taken).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campus::check::NodeFindings;
    use crate::campus::layout::RunNode;

    #[test]
    fn percentiles_of_few_and_of_none() {
        let times = (1..=200).map(Duration::from_micros).collect();
        assert_eq!(Latency::of(times), Latency { p50: 101, p99: 199, max: 200 });
        assert_eq!(Latency::of(Vec::new()), Latency::default());
    }

    #[test]
    fn the_report_has_the_fields_that_readers_rely_on() {
        let run = Run {
            mode: "hybrid".into(),
            seed: 1,
            workload: "generated".into(),
            nodes: vec![RunNode { node: "canteen-red".into(), offline_s: 5, rss_kb_max: 2_048 }],
        };
        let findings = Findings {
            converged: true,
            nodes: vec![NodeFindings { node: "canteen-red".into(), entries: 3, digest: "d".into() }],
            ..Findings::default()
        };
        let totals = Totals::of(&[]);
        let report = Report::new(&run, totals, WrongDeclines::default(), Played::default(), findings);
        assert!(report.good());
        let json = serde_json::to_value(&report).unwrap();
        for field in ["taps", "pending", "retries", "unreachable", "lost", "convergence_ms", "taps_per_s"] {
            assert!(json[field].is_u64(), "{field}");
        }
        assert_eq!(json["declined"]["insufficient"], 0);
        assert_eq!(json["access"]["denied"], 0);
        assert_eq!(json["conservation"]["ok"], true);
        assert_eq!(json["overspend"]["recovered_fen"], 0);
        assert_eq!(json["nodes"][0]["offline_s"], 5);
        assert_eq!(json["latency_us"]["p99"], 0);
        assert!(report.table().contains("canteen-red"));
        let bad = Report { problems: vec!["x".into()], ..report };
        assert!(!bad.good());
    }
}
