//! `feiqian-sim purse-card`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use feiqian_protocol::purse::key::{Algorithm, MasterKey};
use feiqian_protocol::purse::values::{CardSerial, PurseFen};

use super::fault::{Fault, Faults};
use super::state::{CardState, Masters};
use super::vpcd::SoftCard;

/// What is asked for.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
    The card dials the reader (vpcd of vsmartcard: port 35963, second slot 35964) and tries again until it is there. A memory that \
    does not exist yet is made, of a card with the master keys given or else with those of docs/purse.md, which everybody \
    knows. Faults happen once each: before:debit tears the card away before it executes DEBIT, after:debit after it has, silent:debit \
    has it never answer; after:debit:2 is the second DEBIT. Instructions: select, read-binary, update-binary, read-record, verify-pin, balance, \
    initialize, credit, cache, debit, prove. Beware: vpcd listens on every address; docs/purse.md shows how to keep it in a network \
    namespace of its own.")]
pub struct Arguments {
    /// The virtual reader.
    #[arg(value_name = "HOST:PORT")]
    reader: SocketAddr,
    /// The card's memory, written before each answer.
    #[arg(long, value_name = "FILE")]
    state: PathBuf,
    /// Serial of a new card, 20 hex digits.
    #[arg(long, default_value = "31000000202600012345")]
    serial: CardSerial,
    /// Algorithm of a new card: 00 (3DES, DES) or 11 (AES-128-CMAC).
    #[arg(long, default_value = "00", value_parser = algorithm)]
    algorithm: Algorithm,
    /// Fen on a new card.
    #[arg(long, value_name = "FEN", default_value = "0", value_parser = fen)]
    balance: PurseFen,
    /// Load master key of a new card, 32 hex digits.
    #[arg(long, value_name = "HEX", requires_all = ["purchase_key", "tac_key"])]
    load_key: Option<MasterKey>,
    /// Purchase master key of a new card.
    #[arg(long, value_name = "HEX", requires_all = ["load_key", "tac_key"])]
    purchase_key: Option<MasterKey>,
    /// TAC master key of a new card.
    #[arg(long, value_name = "HEX", requires_all = ["load_key", "purchase_key"])]
    tac_key: Option<MasterKey>,
    /// A fault: before|after|silent:INSTRUCTION[:N]. Repeatable.
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Fault>,
    /// How long the card stays out after it was torn away, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1_000)]
    away_ms: u64,
    /// How long a silent card stays in, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    silence_ms: u64,
}

/// Serves until it is dropped.
///
/// # Errors
/// Where the memory cannot be read or written.
pub async fn run(arguments: Arguments) -> Result<()> {
    let state = match CardState::read(&arguments.state)? {
        Some(state) => state,
        None => {
            let masters = match (arguments.load_key, arguments.purchase_key, arguments.tac_key) {
                (Some(load), Some(purchase), Some(tac)) => Masters { load, purchase, tac },
                (None, None, None) => Masters::example(),
                _ => bail!("a card needs all three master keys"),
            };
            let mut state = CardState::issue(&masters, arguments.serial, arguments.algorithm);
            state.balance = arguments.balance;
            state.write(&arguments.state)?;
            state
        }
    };
    eprintln!(
        "card {} with {} fen, for the reader at {}",
        state.serial,
        state.balance.get(),
        arguments.reader
    );
    let away = Duration::from_millis(arguments.away_ms);
    let silence = Duration::from_millis(arguments.silence_ms);
    let card = SoftCard::new(state, Some(arguments.state), Faults::new(arguments.faults), away, silence);
    let out = TakeOut(card.clone());
    let served = tokio::task::spawn_blocking(move || card.serve(arguments.reader)).await?;
    drop(out);
    served
}

/// Takes the card out when it is dropped, so that an interruption ends the thread that serves it.
struct TakeOut(SoftCard);

impl Drop for TakeOut {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    match text {
        "00" => Ok(Algorithm::Des),
        "11" => Ok(Algorithm::AesCmac),
        _ => Err(format!("{text:?} is no algorithm (00, 11)")),
    }
}

fn fen(text: &str) -> Result<PurseFen, String> {
    text.parse()
        .ok()
        .and_then(PurseFen::new)
        .ok_or_else(|| format!("{text:?} is no amount that a purse holds"))
}
