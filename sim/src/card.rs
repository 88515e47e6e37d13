//! A CPU card in software: the purse of [`feiqian_protocol::purse`] from the card's side, to try terminals on and to tear out of them.
//!
//! In reading order: [`state`] (what a card keeps without power), [`applet`] (what it does with a command), [`fault`] (when it
//! is torn away or falls silent), [`vpcd`] (how it is put into a virtual reader of pcscd), [`cli`].

pub mod applet;
pub mod cli;
pub mod fault;
pub mod state;
#[cfg(test)]
mod tests;
pub mod vpcd;
