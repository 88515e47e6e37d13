//! Purses, from the command line.

use std::io::Write;

use clap::Subcommand;
use feiqian_protocol::ids::Key;
use feiqian_protocol::purse::values::CardSerial;

use super::show;
use crate::cli::{Data, say, without_ok};
use crate::io::Command;

#[derive(Subcommand)]
pub(crate) enum PurseAction {
    /// Shows loads and purchases of a card, its last word, and counters that nobody has reported.
    Show {
        /// The serial of the card: 20 hex digits, which are its number too.
        serial: CardSerial,
        #[command(flatten)]
        data: Data,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Gives what is left on a card that was withdrawn, or whose account is closed, back to its account, in cash. Refused while
    /// a building that was not heard since then may still report purchases.
    Return {
        /// The serial of the card.
        serial: CardSerial,
        /// Who wants it.
        #[arg(long, default_value = "operator")]
        operator: Key,
        #[command(flatten)]
        data: Data,
    },
}

pub(crate) fn act(what: PurseAction, out: &mut impl Write) -> anyhow::Result<()> {
    match what {
        PurseAction::Show { serial, data, json } => {
            let reply = without_ok(say(data.path(), &Command::Purse { serial })?);
            if json {
                writeln!(out, "{reply}")?;
            } else {
                show::print(&serde_json::from_value(reply)?, out)?;
            }
        }
        PurseAction::Return { serial, operator, data } => {
            writeln!(out, "{}", without_ok(say(data.path(), &Command::ReturnPurse { serial, operator })?))?;
        }
    }
    Ok(())
}
