//! `feiqian-reconcile pin`: reads PINs from standard input, hashes them, and tells the running service their hashes.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use feiqian_protocol::ids::{CardNumber, Key};
use feiqian_protocol::limits::PIN_TRIES_MAX;
use feiqian_protocol::pin::{PaymentPin, PinGeneration};
use feiqian_protocol::time::Timestamp;
use serde_json::Value;

use crate::cli::Data;
use crate::control::Client;
use crate::io::Command;
use crate::pin::{HashedPin, PinStatus};

/// Longest line that is read: a PIN is much shorter, and nothing else is expected.
const LINE_BYTES_MAX: u64 = 256;

/// What can be done about a payment PIN.
#[derive(Subcommand)]
pub enum PinAction {
    /// Sets the PIN that the holder types: one line of standard input. The operator has seen who it is.
    Set(PinOf),
    /// Changes the PIN: the one that there is (the initial one, if it was never changed), then the new one, each on a line of
    /// standard input. Three wrong ones in a row lock it here.
    Change(PinOf),
    /// Makes the PIN the initial one again, which opens nothing but its own change: the last six of the holder's ID number on a
    /// line of standard input, or an empty line, for 666666.
    Reset(PinOf),
    /// Confirms one of several PINs, which were set at once in buildings that did not hear of each other: the holder types it, on
    /// a line of standard input. Until then none pays.
    Confirm(PinOf),
    /// Forgets wrong tries at every building, as word of it comes there.
    Unlock(PinOf),
    /// Shows how the PIN stands: whether one is chosen, since when, and wrong tries by building.
    Show {
        /// Whose.
        #[command(flatten)]
        of: PinOf,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Whose PIN.
#[derive(Args)]
pub struct PinOf {
    /// A card of the account.
    #[arg(long)]
    card: CardNumber,
    /// Who says so.
    #[arg(long, default_value = "operator")]
    operator: Key,
    #[command(flatten)]
    data: Data,
}

/// Does it; says on `out` what was done.
///
/// # Errors
/// What is wrong with what was typed, or what the service refused.
pub fn act(action: PinAction, out: &mut impl Write) -> anyhow::Result<()> {
    let mut typed = Typed::standard_input();
    match action {
        PinAction::Set(PinOf { card, operator, data }) => {
            let pin = hashed(typed.chosen("New PIN")?)?;
            say(data.path(), &Command::SetPin { card, pin, operator })?;
            writeln!(out, "set")?;
        }
        PinAction::Change(PinOf { card, data, .. }) => {
            let status = status(data.path(), &card)?;
            let current = typed.pin("Present PIN")?;
            let pin = hashed(typed.chosen("New PIN")?)?;
            if status.pins.is_empty() && current != PaymentPin::initial_without_id() {
                bail!("the PIN is wrong");
            }
            let current = hashed_for(&current, &status);
            say(data.path(), &Command::ChangePin { card, current, pin })?;
            writeln!(out, "changed")?;
        }
        PinAction::Reset(PinOf { card, operator, data }) => {
            let line = typed.line("Last six of the ID number, or nothing")?;
            let pin = match line.trim() {
                "" => PaymentPin::initial_without_id(),
                last_six => PaymentPin::initial(last_six)?,
            };
            say(data.path(), &Command::ResetPin { card, pin: hashed(pin)?, operator })?;
            writeln!(out, "reset to the initial PIN")?;
        }
        PinAction::Confirm(PinOf { card, operator, data }) => {
            let status = status(data.path(), &card)?;
            let typed = hashed_for(&typed.pin("PIN")?, &status);
            say(data.path(), &Command::ConfirmPin { card, typed, operator })?;
            writeln!(out, "confirmed")?;
        }
        PinAction::Unlock(PinOf { card, data, .. }) => {
            say(data.path(), &Command::UnlockPin { card })?;
            writeln!(out, "unlocked")?;
        }
        PinAction::Show { of: PinOf { card, data, .. }, json } => {
            let status = status(data.path(), &card)?;
            if json { writeln!(out, "{}", serde_json::to_string(&status)?)? } else { show(out, &status)? }
        }
    }
    Ok(())
}

/// A PIN under a name of its own, which is its salt.
///
/// # Errors
/// The system has no randomness.
pub fn hashed(pin: PaymentPin) -> anyhow::Result<HashedPin> {
    let generation = salt()?;
    Ok(HashedPin { generation, hash: pin.hash(generation) })
}

/// A name of its own.
pub(crate) fn salt() -> anyhow::Result<PinGeneration> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(PinGeneration(salt))
}

/// The same PIN, hashed for each that the account has.
pub(crate) fn hashed_for(pin: &PaymentPin, status: &PinStatus) -> Vec<HashedPin> {
    let generations = status.pins.iter().map(|view| view.generation);
    generations.map(|generation| HashedPin { generation, hash: pin.hash(generation) }).collect()
}

fn say(dir: &Path, command: &Command) -> anyhow::Result<Value> {
    Ok(Client::connect(dir)?.command(command)?)
}

/// How the PIN of an account stands.
pub(crate) fn status(dir: &Path, card: &CardNumber) -> anyhow::Result<PinStatus> {
    let reply = say(dir, &Command::PinStatus { card: card.clone() })?;
    serde_json::from_value(reply).context("an answer that is no answer")
}

fn show(out: &mut impl Write, status: &PinStatus) -> anyhow::Result<()> {
    let state = match status.state.as_str() {
        "none" | "initial" => "the initial PIN, which pays nothing",
        "unconfirmed" => "several PINs, of which none pays until one is confirmed",
        _ => "a PIN of the holder's choice",
    };
    writeln!(out, "account {}: {state}", status.account)?;
    for pin in &status.pins {
        let since = Timestamp(pin.since_ms).0;
        let since = jiff::Timestamp::from_millisecond(since).map(|since| since.to_string());
        let held = if pin.held { "" } else { "; its hash was lost, so it must be set anew" };
        writeln!(out, "set {}{held}", since.unwrap_or_else(|_| "at an unknown time".to_owned()))?;
    }
    for (node, tries) in &status.tries {
        let locked = if *tries >= PIN_TRIES_MAX { ", locked" } else { "" };
        writeln!(out, "wrong tries at {node}: {tries}{locked}")?;
    }
    Ok(())
}

/// Lines of standard input.
pub(crate) struct Typed<R> {
    input: R,
}

impl Typed<std::io::StdinLock<'static>> {
    pub(crate) fn standard_input() -> Self {
        Self { input: std::io::stdin().lock() }
    }
}

impl<R: BufRead> Typed<R> {
    pub(crate) fn line(&mut self, what: &str) -> anyhow::Result<String> {
        if std::io::stdin().is_terminal() {
            eprint!("{what}: ");
            // A question that does not show is no reason to stop.
            let _ = std::io::stderr().flush();
        }
        let mut line = String::new();
        self.input.by_ref().take(LINE_BYTES_MAX).read_line(&mut line).context("standard input")?;
        anyhow::ensure!(!line.is_empty(), "nothing came on standard input, where the PIN is read from");
        Ok(line)
    }

    /// A line without its end, as it was typed.
    pub(crate) fn whole_line(&mut self, what: &str) -> anyhow::Result<String> {
        Ok(self.line(what)?.trim_end_matches(['\r', '\n']).to_owned())
    }

    pub(crate) fn pin(&mut self, what: &str) -> anyhow::Result<PaymentPin> {
        Ok(self.whole_line(what)?.parse::<PaymentPin>()?)
    }

    fn chosen(&mut self, what: &str) -> anyhow::Result<PaymentPin> {
        Ok(self.pin(what)?.chosen()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_line_by_line() {
        let mut typed = Typed { input: &b"271828\r\n12345\n123456\n"[..] };
        assert!(typed.pin("PIN").is_ok());
        assert!(typed.pin("PIN").unwrap_err().to_string().contains("6 digits"));
        assert!(typed.chosen("PIN").unwrap_err().to_string().contains("too easy"));
        assert!(typed.pin("PIN").unwrap_err().to_string().contains("nothing came"));
    }
}
