//! A building: decides taps from its own disk, through days without network, and tells the centre what it did.
//!
//! It deliberately decides nothing about what other buildings did: that comes from the centre's streams.
//!
//! In reading order: [`io`] (what goes in and comes out), [`core`] (the state machine), [`authorizer`] and [`policy`] (pure
//! decisions), [`edge`] (the one sequence that every tap takes), [`pin`], [`settings`] (what people change here), [`purse`] (purses of cards), [`store`] (SQLite), [`apply`] (the centre's streams),
//! [`snapshot`] (what stands for their beginning), [`replication`] (the session), [`verify`] and [`export`]; then the shell: [`config`], [`identity`] (the data directory),
//! [`tls`], [`join`], [`drive`] (the core's thread), [`link`] (QUIC), [`http`] (terminals), [`control`] (local socket),
//! [`run`] and [`cli`].

pub mod apply;
pub mod authorizer;
pub mod cli;
pub mod code;
pub mod config;
pub mod control;
pub mod core;
pub mod drive;
pub mod edge;
pub mod export;
pub mod http;
pub mod identity;
pub mod io;
pub mod join;
pub mod link;
pub mod pin;
pub mod policy;
pub mod purse;
pub mod renew;
pub mod replication;
pub mod run;
pub mod settings;
pub mod snapshot;
pub mod store;
pub mod tls;
pub mod verify;
