//! A campus of real processes on one machine, and the means to show that Feiqian keeps its promises.
//!
//! It deliberately has no model of a node or of the centre: what runs is what the two binaries run.
//!
//! In reading order: [`cli`], [`campus`] (the driver of separate processes, from a replay or a generated day to the report);
//! [`seed`], [`vfs`] (a disk that loses what was not synced), [`link`] (both cores on crash disks and a virtual link, moved by
//! hand); [`scenario`] (what a person writes), [`plan`] (what a seed makes of it), [`world`] (plays it), [`promises`] (what must
//! hold), [`outcome`]; [`full`] (the shells, QUIC and TLS on a simulated network); [`sweep`], [`twice`], [`shrink`] (many runs);
//! [`frontier`] (both cores with nothing between them, to choose a policy by); [`card`] (a CPU card in a virtual reader).

pub mod bench;
pub mod campus;
#[cfg(feature = "canaries")]
pub mod canaries;
pub mod card;
pub mod cli;
pub mod frontier;
pub mod full;
pub mod link;
pub mod outcome;
pub mod phone;
pub mod plan;
pub mod promises;
pub mod report;
pub mod scenario;
pub mod seed;
pub mod shrink;
pub mod sweep;
pub mod twice;
pub mod vfs;
pub mod world;
