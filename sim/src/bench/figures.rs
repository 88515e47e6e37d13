//! The figures: as JSON for programs, as a table with the targets for people.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

/// Times of one tap, and of the bare transaction.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TapOne {
    /// Over HTTPS.
    pub p50_us: u64,
    /// The bare transaction.
    pub baseline_p50_us: u64,
    /// The one by the other.
    pub ratio: f64,
}

/// Times of taps that come at a fixed rate.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Open {
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
}

/// The slowest taps of a fixed rate, beside the same taps while nothing else comes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Beside {
    /// 99th percentile.
    pub p99_us: u64,
    /// The same while nothing else comes.
    pub baseline_p99_us: u64,
    /// The one by the other.
    pub ratio: f64,
}

/// A rate beside its baseline.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rate {
    /// Measured.
    pub per_s: u64,
    /// Baseline.
    pub baseline_per_s: u64,
    /// The one by the other.
    pub ratio: f64,
}

/// What one tap takes of a core, beside its baseline: what is left of a comparison of rates on a machine that is shared.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cpu {
    /// Measured, in microseconds.
    pub us: f64,
    /// Baseline, in microseconds.
    pub baseline_us: f64,
}

/// A rate alone.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PerSecond {
    /// Measured.
    pub per_s: u64,
}

/// How long the way down takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Downlink {
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
}

/// What the documents of all accounts take of a node.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Documents {
    /// MiB of its database, stopped and checkpointed.
    pub node_db_mib: f64,
    /// The same once every account has had its PIN set, and one in ten its limits changed.
    pub node_db_pins_mib: f64,
    /// Peak resident size while all that arrived.
    pub node_rss_kb: u64,
    /// 1,000 edits, one account in fifty: from the first command at the centre until the node has committed the last.
    pub edits_1000_s: f64,
    /// What they take the centre's core alone.
    pub edits_1000_centre_core_s: f64,
    /// What they take the node's core alone.
    pub edits_1000_node_core_s: f64,
}

/// All figures; those that were not asked for are left out.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Figures {
    /// One terminal over HTTPS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap_one: Option<TapOne>,
    /// The same of an empty handler, microseconds: what HTTPS alone takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap_one_empty_p50_us: Option<u64>,
    /// 100 taps a second, whether answered or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap_open_100: Option<Open>,
    /// 100 taps a second while ten others a second come with a PIN, which is hashed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin_10: Option<Beside>,
    /// 64 clients of one core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_64: Option<Rate>,
    /// What they take of a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_64_cpu: Option<Cpu>,
    /// 64 terminals over HTTPS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_64: Option<Rate>,
    /// 64 clients of one core whose disk takes 5 ms to sync.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_disk_64: Option<PerSecond>,
    /// A backlog at the centre.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<Rate>,
    /// A backlog ten times as large.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catch_up_1m: Option<PerSecond>,
    /// A credit or loss report at a connected node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downlink: Option<Downlink>,
    /// The same while a backlog is on the link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downlink_busy: Option<Downlink>,
    /// A loss report alone while a backlog is on the link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_busy: Option<Downlink>,
    /// The documents of all accounts at a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents_50k: Option<Documents>,
    /// What a thousand edits of them take the cores of centre and node alone: shown with them.
    #[serde(skip)]
    pub edits_by_cores: Option<(Duration, Duration)>,
    /// Bytes of frames by entries, in bulk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wire_bytes_per_entry: Option<f64>,
    /// Percent of one core that a node in session takes while ten taps a second come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_10_taps_percent: Option<f64>,
    /// The same while nothing comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_idle_percent: Option<f64>,
    /// Resident size of a node after its taps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_rss_kb: Option<u64>,
    /// A new node until it holds every account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_sync_s: Option<f64>,
    /// From the start of a node to its first tap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_start_ms: Option<u64>,
    /// All nodes reconnecting at once, until all are in session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnect_200_s: Option<f64>,
    /// Accounts.
    pub accounts: u64,
}

/// Whole microseconds.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds by count, with one decimal.
pub fn micros_each(duration: Duration, count: u64) -> f64 {
    (duration.as_secs_f64() * 10_000_000.0 / count.max(1) as f64).round() / 10.0
}

/// Milliseconds with two decimals.
pub fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

/// Seconds with two decimals.
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100.0).round() / 100.0
}

/// MiB with one decimal.
pub fn mib(bytes: u64) -> f64 {
    (bytes as f64 / 104_857.6).round() / 10.0
}

/// The one by the other in percent, with two decimals.
pub fn percent(part: Duration, whole: Duration) -> f64 {
    (part.as_secs_f64() / whole.as_secs_f64().max(f64::MIN_POSITIVE) * 10_000.0).round() / 100.0
}

/// So many by entry, with one decimal.
pub fn per_entry(bytes: u64, entries: u64) -> f64 {
    (bytes as f64 / entries.max(1) as f64 * 10.0).round() / 10.0
}

/// The one by the other, with two decimals.
pub fn ratio(one: u64, other: u64) -> f64 {
    (one as f64 / other.max(1) as f64 * 100.0).round() / 100.0
}

impl TapOne {
    /// From both medians.
    pub fn new(measured: Duration, baseline: Duration) -> Self {
        let (p50_us, baseline_p50_us) = (micros(measured), micros(baseline));
        Self { p50_us, baseline_p50_us, ratio: ratio(p50_us, baseline_p50_us) }
    }
}

impl Rate {
    /// From both rates.
    pub fn new(per_s: u64, baseline_per_s: u64) -> Self {
        Self { per_s, baseline_per_s, ratio: ratio(per_s, baseline_per_s) }
    }
}

impl Documents {
    fn lines(&self, table: &mut Table) {
        let Self { node_db_mib, node_db_pins_mib, node_rss_kb, edits_1000_s, .. } = *self;
        table.alone("documents: database", format!("{node_db_mib} MiB"), "<= 120 MiB", node_db_mib <= 120.0);
        let met = node_db_pins_mib <= 120.0;
        table.alone("  with PINs", format!("{node_db_pins_mib} MiB"), "<= 120 MiB", met);
        table.alone("  node_rss_kb", node_rss_kb.to_string(), "<= 65536", node_rss_kb <= 65_536);
        table.alone("  1,000 edits", format!("{edits_1000_s} s"), "<= 1 s", edits_1000_s <= 1.0);
        table.alone("    centre's core", format!("{} s", self.edits_1000_centre_core_s), "", true);
        table.alone("    node's core", format!("{} s", self.edits_1000_node_core_s), "", true);
    }
}

impl Figures {
    /// A table for people: figure, baseline, ratio, target, and whether it is met.
    pub fn table(&self) -> String {
        let mut table = Table(format!(
            "{:<22} {:>14} {:>14} {:>7}  {:<28}\n",
            "", "measured", "baseline", "ratio", "target"
        ));
        if let Some(TapOne { p50_us, baseline_p50_us, ratio }) = self.tap_one {
            let baseline = format!("{baseline_p50_us} us");
            table.with("tap_one p50", format!("{p50_us} us"), baseline, ratio, "ratio <= 2", ratio <= 2.0);
        }
        if let Some(empty) = self.tap_one_empty_p50_us {
            table.alone("an empty handler", format!("{empty} us"), "", true);
        }
        if let Some(Open { p50_us, p99_us }) = self.tap_open_100 {
            table.alone("tap_open_100 p50", format!("{p50_us} us"), "", true);
            table.alone("tap_open_100 p99", format!("{p99_us} us"), "<= 10000 us", p99_us <= 10_000);
        }
        if let Some(Beside { p99_us, baseline_p99_us, ratio }) = self.pin_10 {
            let baseline = format!("{baseline_p99_us} us");
            table.with("pin_10 p99", format!("{p99_us} us"), baseline, ratio, "ratio <= 1.2", ratio <= 1.2);
        }
        let rates = [
            ("core_64", self.core_64, "ratio >= 0.7", 0.7),
            ("http_64", self.http_64, "ratio >= 0.4", 0.4),
            ("catch_up", self.catch_up, "ratio >= 0.4", 0.4),
        ];
        for (name, figure, target, least) in rates {
            if let Some(Rate { per_s, baseline_per_s, ratio }) = figure {
                let baseline = format!("{baseline_per_s}/s");
                table.with(name, format!("{per_s}/s"), baseline, ratio, target, ratio >= least);
            }
        }
        if let Some(Cpu { us, baseline_us }) = self.core_64_cpu {
            table.line(
                "core_64 CPU of a tap",
                &format!("{us} us"),
                &format!("{baseline_us} us"),
                "",
                "",
                true,
            );
        }
        if let Some(PerSecond { per_s }) = self.catch_up_1m {
            let met = self.catch_up.is_none_or(|short| per_s * 3 >= short.per_s * 2);
            table.alone("catch_up_1m", format!("{per_s}/s"), "within 1.5 x of catch_up", met);
        }
        if let Some(PerSecond { per_s }) = self.slow_disk_64 {
            table.alone("slow_disk_64", format!("{per_s}/s"), ">= 6000/s", per_s >= 6_000);
        }
        for (name, figure) in [("downlink", self.downlink), ("downlink_busy", self.downlink_busy)] {
            if let Some(Downlink { p50_ms, p99_ms }) = figure {
                table.alone(&format!("{name} p50"), format!("{p50_ms} ms"), "<= 5 ms", p50_ms <= 5.0);
                table.alone(&format!("{name} p99"), format!("{p99_ms} ms"), "<= 20 ms", p99_ms <= 20.0);
            }
        }
        if let Some(Downlink { p50_ms, p99_ms }) = self.loss_busy {
            table.alone("loss_busy p50", format!("{p50_ms} ms"), "", true);
            table.alone("loss_busy p99", format!("{p99_ms} ms"), "<= 20 ms", p99_ms <= 20.0);
        }
        if let Some(documents) = &self.documents_50k {
            documents.lines(&mut table);
        }
        if let Some(bytes) = self.wire_bytes_per_entry {
            table.alone("wire_bytes_per_entry", bytes.to_string(), "<= 80", bytes <= 80.0);
        }
        let shares = [
            ("cpu_10_taps_percent", self.cpu_10_taps_percent, "< 5", 5.0),
            ("cpu_idle_percent", self.cpu_idle_percent, "< 0.5", 0.5),
        ];
        for (name, figure, target, below) in shares {
            if let Some(percent) = figure {
                table.alone(name, percent.to_string(), target, percent < below);
            }
        }
        if let Some(kb) = self.node_rss_kb {
            table.alone("node_rss_kb", kb.to_string(), "<= 65536", kb <= 65_536);
        }
        if let Some(s) = self.first_sync_s {
            table.alone("first_sync_s", s.to_string(), "<= 30", s <= 30.0);
        }
        if let Some(ms) = self.cold_start_ms {
            table.alone("cold_start_ms", ms.to_string(), "<= 1000", ms <= 1_000);
        }
        if let Some(s) = self.reconnect_200_s {
            table.alone("reconnect_200_s", s.to_string(), "<= 3", s <= 3.0);
        }
        // Writing to a String cannot fail.
        let _ = writeln!(table.0, "{:<22} {:>14}", "accounts", self.accounts);
        table.0
    }
}

struct Table(String);

impl Table {
    fn with(&mut self, name: &str, figure: String, baseline: String, ratio: f64, target: &str, met: bool) {
        self.line(name, &figure, &baseline, &format!("{ratio:.2}"), target, met);
    }

    fn alone(&mut self, name: &str, figure: String, target: &str, met: bool) {
        self.line(name, &figure, "", "", target, met);
    }

    fn line(&mut self, name: &str, figure: &str, baseline: &str, ratio: &str, target: &str, met: bool) {
        let target = if met { target.to_owned() } else { format!("{target}  MISSED") };
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{name:<22} {figure:>14} {baseline:>14} {ratio:>7}  {target}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_figures_that_were_measured_and_the_table_says_what_is_missed() {
        let figures = Figures {
            tap_one: Some(TapOne::new(Duration::from_micros(900), Duration::from_micros(300))),
            core_64: Some(Rate::new(8_000, 10_000)),
            accounts: 50_000,
            ..Figures::default()
        };
        let json = serde_json::to_string(&figures).unwrap();
        let expected = "{\"tap_one\":{\"p50_us\":900,\"baseline_p50_us\":300,\"ratio\":3.0},\
                        \"core_64\":{\"per_s\":8000,\"baseline_per_s\":10000,\"ratio\":0.8},\"accounts\":50000}";
        assert_eq!(json, expected);
        let table = figures.table();
        assert!(table.contains("ratio <= 2  MISSED"), "{table}");
        assert!(table.contains("ratio >= 0.7\n"), "{table}");
    }
}
