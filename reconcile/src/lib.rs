//! The centre: collects what the nodes did, posts it, resolves what went wrong, and hands out the rights to spend.
//!
//! In reading order: [`io`] (what goes in and comes out), [`core`] (the state machine: one transaction per batch, then the
//! ack), [`ingest`], [`ledger`], [`escrow`] and [`asks`] (rights), `phones` and `holds` (virtual cards and their money), [`habit`] (who gets how much), [`overspend`] and [`cases`],
//! [`accounts`] (what operators and channels ask for), `closing`, [`holders`], [`login`], [`pin`], [`purse`], `revocation`, [`session`], [`snapshot`] (what stands for old entries),
//! [`recovery`] (a restored copy), [`store`] (SQLite), [`verify`] and [`export`]; then the shell: [`config`], [`authority`]
//! (the CA), [`enrol`], [`listener`] (QUIC), [`control`] (local socket), [`import`], [`driver`] (the core's thread), [`checkpoint`] (the write-ahead log), [`run`] and
//! [`cli`].

pub mod accounts;
pub mod asks;
pub mod cases;
mod closing;
pub mod core;
mod desk;
mod enrolments;
pub mod escrow;
pub mod export;
pub mod habit;
pub mod history;
pub mod holders;
mod holds;
pub mod ingest;
pub mod io;
mod issuance;
pub mod ledger;
pub mod login;
pub mod overspend;
mod phones;
pub mod pin;
pub mod purse;
pub mod recovery;
mod renewal;
mod revocation;
pub mod session;
mod settings;
pub mod snapshot;
pub mod store;
pub mod verify;

pub mod authority;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod control;
pub mod driver;
pub mod enrol;
pub mod import;
pub mod listener;
pub mod run;
