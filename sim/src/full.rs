//! Full-stack mode: the shipping shells, with their QUIC and TLS, on a simulated network, under one paused runtime.
//!
//! What runs is what the binaries run: the core loops, the link and the listener, quinn, rustls with certificates of a CA,
//! and SQLite on the crash disk. Replaced are only the wires ([`network`]), the clocks ([`clock`]) and what surrounds a
//! process ([`process`]). The terminals call a node's queue as its HTTP handlers do.
//!
//! One thread, one tokio runtime whose time stands still while anything can run and jumps to the next timer otherwise: a day
//! takes as long as its work. Every order in it follows from the seed. What is random all the same, keys and what is
//! encrypted with them, shows in no size and no time ([`audit`]).

pub mod audit;
pub mod campus;
mod checks;
pub mod clock;
mod faults;
mod hosts;
pub mod network;
mod operators;
mod panics;
pub mod process;
mod run;
mod samples;
mod socket;
mod terminals;

pub use run::run;
