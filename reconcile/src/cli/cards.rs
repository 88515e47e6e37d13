//! Cards and their losses, from the command line.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use feiqian_protocol::ids::{CardNumber, Key};

use super::print::{print_account, print_loss};
use super::{Data, OfCard, change, say, without_ok};
use crate::holders::command::{self as holder, PickUp};
use crate::io::{Command, SettingCommand};

#[derive(Subcommand)]
pub(super) enum Card {
    /// Gives out a new card for one that is lost or worn, and withdraws the old one for ever.
    Replace {
        /// The new one.
        #[arg(long)]
        new: CardNumber,
        #[command(flatten)]
        of: OfCard,
    },
    /// Prints what the holder of a new card shows in a building that has been cut off since it was given out.
    Issuance {
        /// The card.
        card: CardNumber,
        #[command(flatten)]
        data: Data,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Withdraws it, for ever.
    Void(OfCard),
    /// Brings blank cards into the stock that accounts are opened with: a file with a number on each line.
    Stock {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        data: Data,
    },
    /// Cards that were given out and are not active yet: who is to pick one up, and what was missing there.
    PickUp {
        #[command(subcommand)]
        what: PickUp,
    },
    /// Activates a card that was given out: until then it pays nothing and opens no door.
    Activate {
        /// By the holder's chosen payment PIN, on a line of standard input, in place of the operator's word.
        #[arg(long)]
        pin: bool,
        #[command(flatten)]
        of: OfCard,
    },
    /// Exchanges a worn card, which is there, for another one that is good at once. The account stays as it is.
    Exchange {
        /// The new one; the next blank one where it is not given.
        #[arg(long)]
        new: Option<CardNumber>,
        #[command(flatten)]
        of: OfCard,
    },
    /// Lets a card of an older system open the doors of one group, such as classrooms. It never pays.
    Legacy {
        /// That card.
        #[arg(long)]
        old: CardNumber,
        /// The group.
        #[arg(long, default_value = "classrooms")]
        group: Key,
        #[command(flatten)]
        of: OfCard,
    },
}

#[derive(Subcommand)]
pub(super) enum Loss {
    /// Reports a card lost, at once.
    Report(OfCard),
    /// Lifts all reports of a card.
    Lift(OfCard),
    /// Shows which buildings have the report, and what can still be spent in the others.
    Show {
        /// The card.
        card: CardNumber,
        #[command(flatten)]
        data: Data,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn act(what: Card, out: &mut impl Write) -> anyhow::Result<()> {
    match what {
        Card::Replace { new, of } => {
            change(out, of, SettingCommand::ReplaceCard { new_card: new })?;
        }
        Card::Issuance { card, data, json } => {
            let reply = without_ok(say(&data.dir, &Command::Issuance { card })?);
            if json {
                writeln!(out, "{reply}")?;
            } else {
                writeln!(out, "{}", reply["issuance"].as_str().unwrap_or_default())?;
            }
        }
        Card::Void(of) => change(out, of, SettingCommand::VoidCard)?,
        Card::Stock { file, data } => holder::stock(out, &file, &data)?,
        Card::PickUp { what } => holder::pick_up(out, what)?,
        Card::Activate { pin, of: OfCard { card, operator, data } } => {
            print_account(out, &holder::activate(card, pin, operator, &data)?)?;
        }
        Card::Exchange { new, of } => {
            change(out, of, SettingCommand::ExchangeCard { new_card: new })?;
        }
        Card::Legacy { old, group, of } => {
            change(out, of, SettingCommand::IssueLegacyCard { new_card: old, group })?;
        }
    }
    Ok(())
}

pub(super) fn act_on_loss(what: Loss, out: &mut impl Write) -> anyhow::Result<()> {
    match what {
        Loss::Report(OfCard { card, operator, data }) => {
            say(&data.dir, &Command::ReportLoss { card, operator })?;
            writeln!(out, "reported lost")?;
        }
        Loss::Lift(OfCard { card, operator, data }) => {
            say(&data.dir, &Command::LiftLoss { card, operator })?;
            writeln!(out, "lifted")?;
        }
        Loss::Show { card, data, json } => {
            let reply = without_ok(say(&data.dir, &Command::CardLoss { card })?);
            if json {
                writeln!(out, "{reply}")?;
            } else {
                print_loss(out, &serde_json::from_value(reply)?)?;
            }
        }
    }
    Ok(())
}
