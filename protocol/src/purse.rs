//! Money on a CPU card: the electronic purse (电子钱包), as a terminal, a SAM, the centre and the card must agree on it.
//!
//! The purse holds money of its own and spends it anywhere, network or not: the card checks that the terminal is genuine (MAC1),
//! debits itself, and proves that it did (MAC2 to the terminal, TAC to the centre). Money comes onto it only from the centre
//! (load, 圈存). Nothing here does I/O: what is to be sent is handed out, what was answered is handed in.
//!
//! In reading order: [`values`] (serials, amounts, counters, dates), [`key`] (keys and how a card's come from the master),
//! [`mac`] (what the MACs bind), [`status`] and [`apdu`] (commands and answers as bytes), [`file`](mod@file) and [`record`] (what is read
//! from the card), [`profile`] (which cards are served, and how), [`sam`] (who holds the purchase key), [`identify`],
//! [`purchase`] and [`load`] (a touch, step by step), [`journal`] (what is kept of it), [`recovery`] (how to find out about a touch
//! that was cut) and [`torn`] (what became of it), [`touch`] (all of that over a link to a card), [`issuer`] (the centre's part),
//! [`entry`](mod@entry) (what stands in logs) and [`question`] (what a node asks the centre in a load).
//!
//! **What is standard.** Files, commands, status words, the flows of load, purchase and compound purchase and the MACs of algorithm
//! 00 are those of the electronic purse of PBOC 2.0 (JR/T 0025.2-2005), which transit and campus cards kept when PBOC
//! 3.0 dropped it. They are built from public descriptions and from public programs that read such cards; the one worked example that
//! is public is a test of [`mac`]. Where descriptions differ a [`profile`] says what a card does.
//!
//! **What is ours.** The application name, algorithm 11 (AES-128-CMAC, NIST SP 800-38B; keys diversified as NXP AN10922 does),
//! the record that a compound purchase carries, the journal, how torn touches are resolved, and the challenge in the load's recovery.
//!
//! **Weaknesses of algorithm 00**, which a campus that still issues such cards accepts: session keys of 56 bits, MACs and
//! random numbers of 32. One recorded transaction gives a search over 2^56 keys; a card's TAC key is static, so that its loss
//! is that card's TACs for ever. The master keys are as safe as 112 bits of 3DES. Random number and counter in the session key stop
//! replay; the TAC binds neither card nor counter nor balance. A SAM holds the purchase master: who steals one makes cards
//! that pay, but not their TACs, which the centre verifies. Card number and UID prove nothing. Hence what may not be left out,
//! each with a test that fails without it: the card checks MAC1, the terminal MAC2, the centre MAC1 of a load and every TAC, and
//! which algorithm is used is said by the [`profile`], never by the card alone.

pub mod apdu;
pub mod carried;
pub mod entry;
pub mod file;
pub mod identify;
pub mod issuer;
pub mod journal;
pub mod key;
pub mod load;
pub mod mac;
pub mod profile;
pub mod purchase;
pub mod question;
pub mod record;
pub mod recovery;
pub mod sam;
pub mod status;
pub mod torn;
pub mod touch;
pub mod values;
