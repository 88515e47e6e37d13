//! `feiqian-reconcile login`: reads login passwords from standard input, hashes them, and tells the running service their hashes.

use std::io::Write;

use anyhow::Context;
use clap::{Args, Subcommand};
use feiqian_protocol::ids::{CardNumber, Key};
use feiqian_protocol::pin::PinGeneration;

use crate::cli::Data;
use crate::control::Client;
use crate::io::Command;
use crate::login::LoginPassword;
use crate::pin::HashedPin;
use crate::pin::command::{Typed, salt};

/// What can be done about a login password.
#[derive(Subcommand)]
pub enum LoginAction {
    /// Sets the password that the holder types: one line of standard input. The operator has seen who it is.
    Set(LoginOf),
    /// Checks one: a line of standard input. Ends with 1 where it is wrong. Five wrong ones in a row close the login for a
    /// quarter of an hour.
    Check(LoginOf),
    /// Changes it: the one that there is, then the new one, each on a line of standard input.
    Change(LoginOf),
}

/// Whose password.
#[derive(Args)]
pub struct LoginOf {
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
pub fn act(action: LoginAction, out: &mut impl Write) -> anyhow::Result<()> {
    let mut typed = Typed::standard_input();
    match action {
        LoginAction::Set(LoginOf { card, operator, data }) => {
            let login = chosen(&typed.whole_line("New login password")?)?;
            Client::connect(data.path())?.command(&Command::SetLogin { card, login, operator })?;
            writeln!(out, "set")?;
        }
        LoginAction::Check(LoginOf { card, data, .. }) => {
            let mut client = Client::connect(data.path())?;
            let typed = shown(&mut client, &card, &typed.whole_line("Login password")?)?;
            client.command(&Command::CheckLogin { card, typed })?;
            writeln!(out, "right")?;
        }
        LoginAction::Change(LoginOf { card, data, .. }) => {
            let mut client = Client::connect(data.path())?;
            let current = shown(&mut client, &card, &typed.whole_line("Present login password")?)?;
            let login = chosen(&typed.whole_line("New login password")?)?;
            client.command(&Command::ChangeLogin { card, current, login })?;
            writeln!(out, "changed")?;
        }
    }
    Ok(())
}

fn chosen(text: &str) -> anyhow::Result<HashedPin> {
    let password = LoginPassword::chosen(text)?;
    let generation = salt()?;
    Ok(HashedPin { generation, hash: password.hash(generation) })
}

fn shown(client: &mut Client, card: &CardNumber, text: &str) -> anyhow::Result<HashedPin> {
    let reply = client.command(&Command::LoginSalt { card: card.clone() })?;
    let generation: PinGeneration =
        serde_json::from_value(reply["salt"].clone()).context("an answer that is no answer")?;
    Ok(HashedPin { generation, hash: LoginPassword::typed(text)?.hash(generation) })
}
