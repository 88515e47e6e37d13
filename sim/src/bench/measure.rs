//! Percentiles and medians of what was measured.

use std::time::{Duration, Instant};

use anyhow::Result;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Accounts.
    pub accounts: u64,
    /// Entries of a backlog, and taps before memory is looked at.
    pub entries: u64,
    /// Runs of each measurement and of its baseline, one after the other.
    pub runs: usize,
    /// Taps of one run that are measured one by one.
    pub taps: usize,
    /// How long a run under load lasts.
    pub load: Duration,
    /// Nodes that reconnect at once.
    pub nodes: usize,
    /// Seconds over which the time of a process is looked at.
    pub cpu_seconds: u64,
}

impl Scale {
    /// What the targets speak of.
    pub const FULL: Self = Self {
        accounts: 50_000,
        entries: 100_000,
        runs: 5,
        taps: 300,
        load: Duration::from_secs(3),
        nodes: 200,
        cpu_seconds: 60,
    };
    /// Small enough to see in a minute that everything works; its figures mean little.
    pub const QUICK: Self = Self {
        accounts: 2_000,
        entries: 4_000,
        runs: 5,
        taps: 50,
        load: Duration::from_millis(400),
        nodes: 20,
        cpu_seconds: 3,
    };
}

/// A percentile (in hundredths) of some durations.
pub fn percentile(durations: &mut [Duration], hundredths: usize) -> Duration {
    durations.sort_unstable();
    let index = (durations.len() * hundredths / 100).min(durations.len().saturating_sub(1));
    durations.get(index).copied().unwrap_or_default()
}

/// The median of some durations.
pub fn median(durations: &mut [Duration]) -> Duration {
    percentile(durations, 50)
}

/// The median of some rates.
pub fn median_rate(rates: &mut [u64]) -> u64 {
    rates.sort_unstable();
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

/// So many in this time, per second.
pub fn rate(count: u64, took: Duration) -> u64 {
    let nanos = took.as_nanos().max(1);
    u64::try_from(u128::from(count) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

/// What the calling thread has had of a core so far; nothing where the system does not say.
pub fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// How long something took.
///
/// # Errors
/// Its own.
pub fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let begun = Instant::now();
    let done = work()?;
    Ok((begun.elapsed(), done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_percentiles_and_rates() {
        let mut durations: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut durations, 99), Duration::from_millis(100));
        assert_eq!(median(&mut durations), Duration::from_millis(51));
        assert_eq!(median(&mut []), Duration::ZERO);
        assert_eq!(median_rate(&mut [9, 1, 5]), 5);
        assert_eq!(rate(500, Duration::from_millis(250)), 2_000);
    }
}
