//! What a run yields: broken promises, what really struck, what was reached, and time lines for people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::promises::Promise;

/// What a run yields.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// `message` or `full_stack`.
    pub mode: String,
    /// Promises that were broken; empty where all was well.
    pub violations: Vec<Violation>,
    /// Faults that really struck, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Rare paths that were reached, by name, and how often.
    pub coverage: BTreeMap<String, u64>,
    /// Entries in all logs at the end.
    pub entries: u64,
    /// Taps that terminals began, and how they ended.
    pub taps: Taps,
    /// Simulated milliseconds.
    pub sim_ms: u64,
    /// Real milliseconds, setting up included.
    pub wall_ms: u64,
    /// Real milliseconds of setting the campus up.
    pub setup_ms: u64,
    /// SHA-256 over every event, frame and disk write, as hex.
    pub audit: String,
    /// SHA-256 of the ledger at the end (what every tap was told, what every wallet holds, every case), as hex.
    pub ledger: String,
    /// For the report.
    pub timeline: Timeline,
}

/// What a run simulates.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SimMode {
    /// Both cores and their frames ([`crate::world`]).
    #[default]
    Message,
    /// The shells too, with their QUIC and TLS, packet by packet ([`crate::full`]).
    FullStack,
}

impl SimMode {
    /// The stable name, as in [`Outcome::mode`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::FullStack => "full_stack",
        }
    }

    /// What a command line says.
    pub const fn of(full_stack: bool) -> Self {
        if full_stack { Self::FullStack } else { Self::Message }
    }
}

impl std::str::FromStr for SimMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let named = [Self::Message, Self::FullStack].into_iter().find(|mode| mode.name() == text);
        named.ok_or_else(|| format!("{text:?} is no mode (message, full_stack)"))
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// What was found.
    pub text: String,
    /// When, in simulated milliseconds.
    pub at_ms: u64,
    /// The last events before, oldest first.
    pub last_events: Vec<String>,
}

/// How taps ended.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Taps {
    /// Begun.
    pub begun: u64,
    /// Approved, as the terminal was told.
    pub approved: u64,
    /// Declined, as the terminal was told.
    pub declined: u64,
    /// Without an answer that reached the terminal.
    pub unanswered: u64,
    /// Fen approved.
    pub approved_fen: i64,
    /// Fen of it that were stand-in.
    pub stand_in_fen: i64,
}

/// What a report draws. Samples stand at equal distances; marks where something changed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Timeline {
    /// Milliseconds between samples.
    pub every_ms: u64,
    /// The buildings.
    pub nodes: Vec<NodeTimeline>,
    /// Outstanding stand-in over all nodes, in fen, by sample.
    pub stand_in_out_fen: Vec<i64>,
    /// Open cases, in fen, by sample.
    pub open_cases_fen: Vec<i64>,
    /// Faults: from, to, kind, host or buildings.
    pub faults: Vec<FaultMark>,
    /// How long taps took to be answered, in microseconds: count by power of two (index 10: 512 to 1,023 µs).
    pub latency_us: Vec<u64>,
}

/// A building over time.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NodeTimeline {
    /// Its name.
    pub node: String,
    /// When its session with the centre came up or went down (milliseconds, up).
    pub link: Vec<(u64, bool)>,
    /// When its process started or ended.
    pub process: Vec<(u64, bool)>,
    /// Entries that the centre had not acknowledged, by sample.
    pub backlog: Vec<u64>,
    /// Entries of account streams that it had not applied, by sample; 0: its balances are those of the centre.
    pub behind: Vec<u64>,
    /// Milliseconds since it last heard the centre (the age of its hotlist), by sample.
    pub view_age_ms: Vec<u64>,
    /// Debits that only its disk held, in fen, by sample.
    pub exposed_fen: Vec<i64>,
}

/// A fault that struck.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct FaultMark {
    /// From when on.
    pub from_ms: u64,
    /// Until when.
    pub to_ms: u64,
    /// The kind.
    pub kind: String,
    /// Where.
    pub place: String,
}

/// How many last events a violation comes with.
pub const LAST_EVENTS: usize = 40;

impl Outcome {
    /// True where every promise was kept.
    pub const fn good(&self) -> bool {
        self.violations.is_empty()
    }

    /// What to run to see it again.
    pub fn replay(&self) -> String {
        let full = if self.mode == SimMode::FullStack.name() { " --full-stack" } else { "" };
        format!("feiqian-sim run {} --seed {}{full}", self.scenario, self.seed)
    }
}
