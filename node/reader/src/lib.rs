//! The service beside a POS that speaks with purse cards over PC/SC.
//!
//! A POS asks for a purchase, and the service waits for a card, has it debit itself, and says what became of that. It writes down
//! what it is about to do before the card is told, so that a touch that was torn is completed or undone at the card's next one.
//! What a purse is, and every decision about it, is [`feiqian_protocol::purse`]; here are the threads, the disk and the middleware.
//! A service of its own, so that a node builds and runs on a machine without pcsclite.
//!
//! With a node it also asks whether a card may pay, loads cards, and reports what was paid; without one, or cut off from it, cards pay all the same.
//!
//! In reading order: [`config`], [`journal`] (what is on disk), [`answer`] (what a POS is told), [`desk`] (what it may ask, and what is
//! done), [`node`] (the way to the building's node), [`report`] and [`reporter`] (what it is told of what is over), [`slot`] (a thread for each reader, and who watches it), [`card`] (the middleware), [`serve`] (the sockets), [`cli`].

pub mod answer;
pub mod card;
pub mod cli;
pub mod config;
pub mod desk;
pub mod journal;
pub mod node;
pub mod report;
pub mod reporter;
pub mod serve;
pub mod slot;
