//! Measures what is promised, each figure beside its baseline: measured, baseline, measured, baseline, in one run on one disk.
//!
//! [`processes`] (a real centre and real nodes, over HTTPS and QUIC), [`reconnect`] (many of them), [`cores`] (both cores in this process), [`bare`] and
//! [`ingest`] (the same rows by prepared statements, and nothing else), [`client`] (terminals), [`measure`] and [`figures`].
#![allow(clippy::float_arithmetic, reason = "figures for people; nothing is decided by them")]

pub mod bare;
pub mod client;
pub mod cores;
pub mod figures;
pub mod ingest;
pub mod measure;
pub mod processes;
pub mod reconnect;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result};

use self::figures::Figures;
use self::measure::Scale;

/// Everything that can be measured, by its name in the JSON.
pub const NAMES: [&str; 19] = [
    "tap_one",
    "tap_open_100",
    "pin_10",
    "core_64",
    "http_64",
    "slow_disk_64",
    "catch_up",
    "catch_up_1m",
    "downlink",
    "downlink_busy",
    "loss_busy",
    "documents_50k",
    "wire_bytes_per_entry",
    "cpu_10_taps_percent",
    "cpu_idle_percent",
    "node_rss_kb",
    "first_sync_s",
    "cold_start_ms",
    "reconnect_200_s",
];

/// What is to be measured.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the figures go as JSON.
    pub json: Option<PathBuf>,
    /// Only these; all where empty.
    pub only: Vec<String>,
    /// On a small scale, to see that everything works.
    pub quick: bool,
}

/// The names that were asked for.
#[derive(Clone, Debug)]
pub struct Wanted(BTreeSet<String>);

impl Wanted {
    fn new(only: &[String]) -> Self {
        let all = only.is_empty();
        let names = NAMES.iter().filter(|name| all || only.iter().any(|wanted| wanted == *name));
        Self(names.map(|name| (*name).to_owned()).collect())
    }

    /// True where a figure was asked for.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// Measures, and writes the JSON.
///
/// # Errors
/// Where something does not work at all; a target that is missed is no error.
pub async fn run(options: &Options) -> Result<Figures> {
    let scale = if options.quick { Scale::QUICK } else { Scale::FULL };
    let wanted = Wanted::new(&options.only);
    let mut figures = Figures { accounts: scale.accounts, ..Figures::default() };
    cores::measure(&scale, &wanted, &mut figures)?;
    write(options, &figures)?;
    processes::measure(&scale, &wanted, &mut figures).await?;
    write(options, &figures)?;
    reconnect::measure(&scale, &wanted, &mut figures).await?;
    write(options, &figures)?;
    Ok(figures)
}

/// Writes what is there so far, so that a long run that ends early has not been for nothing.
fn write(options: &Options, figures: &Figures) -> Result<()> {
    let Some(path) = &options.json else { return Ok(()) };
    let json = serde_json::to_string(figures)? + "\n";
    std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))
}
