//! What a node and the centre must agree on, to the byte and to the fen.
//!
//! Pure: no clock, no randomness, no socket, no database, no async. If a change here would not force both sides to
//! upgrade, it belongs to one side.
//!
//! In reading order: [`money`], [`ids`], [`time`], [`tap`] (what a terminal asks and is told), [`terminal`] (how it shows who it is), [`entry`] (what is written
//! about it), [`chain`] (how that is linked and signed), [`rights`] (who may spend), [`account`] (settings as documents), [`pin`],
//! [`campus`] (the published configuration), [`code`] (the virtual card), [`issuance`] (a new card where it is not known), [`purse`] (money on a CPU card),
//! [`balance`] (the projection and its digest), [`frame`] and [`session`] (how
//! it travels), [`snapshot`] (what stands for the beginning of a stream), [`enrol`] (how a node joins), [`limits`] (every bound),
//! [`canary`] (planted bugs, of which nothing ships).

pub mod account;
pub mod balance;
pub mod campus;
pub mod canary;
pub mod chain;
pub mod code;
pub mod enrol;
pub mod entry;
pub mod frame;
pub mod ids;
pub mod issuance;
pub mod limits;
pub mod money;
pub mod pin;
pub mod public_key;
pub mod purse;
pub mod rights;
pub mod session;
pub mod snapshot;
pub mod tap;
pub mod terminal;
pub mod time;
