//! Accounts, from the command line.

use std::io::Write;
use std::time::{Duration, Instant};

use clap::Subcommand;
use feiqian_protocol::ids::{CardNumber, Key, Wallet};
use feiqian_protocol::money::Fen;
use serde_json::Value;

use super::print::print_account;
use super::{Data, OfCard, change, say, without_ok};
use crate::control::Client;
use crate::holders::command as holder;
use crate::io::{Command, SettingCommand};

#[derive(Subcommand)]
pub(super) enum Account {
    /// Shows its cards, settings, money, and where the rights to it are.
    Show {
        /// A card of it.
        card: CardNumber,
        #[command(flatten)]
        data: Data,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Opens one for a holder, or those of a file, each with a card that is inactive until it is activated. The last six of the
    /// ID number are read from a line of standard input (an empty one for none): the initial payment PIN is made of them.
    Open(holder::Open),
    /// Tells something of its holder: name, number, verified phone, notices wanted.
    Describe(holder::Describe),
    /// Binds it to the user of an app who knows name, number and chosen payment PIN (a line of standard input). Whatever does not
    /// match is answered alike; a number has five tries a day.
    Bind(holder::Bind),
    /// Finds it by its holder's number, or by the user that it is bound to.
    Find(holder::Find),
    /// No purchases from it.
    Freeze(OfCard),
    /// Purchases again.
    Unfreeze(OfCard),
    /// Sets its no-PIN limits; one that is not given stays.
    Limits {
        /// In fen per purchase.
        #[arg(long, value_name = "FEN", required_unless_present = "daily")]
        single: Option<i64>,
        /// In fen per day.
        #[arg(long, value_name = "FEN")]
        daily: Option<i64>,
        #[command(flatten)]
        of: OfCard,
    },
    /// Closes it for ever: no tap from now on, and what it has is paid out once all of it has come home from the buildings. One
    /// that cannot be reached is waited for until the campus's term is over. Waits a few seconds for the payout; `account show`
    /// tells later how it stands.
    Close {
        /// Who pays the holder's own money out, as credits name their channels.
        #[arg(long, default_value = "counter")]
        channel: Key,
        /// Where what is left of the subsidy goes; the same channel pays it out to the holder as well.
        #[arg(long, value_name = "CHANNEL", default_value = "subsidy")]
        subsidy_channel: Key,
        #[command(flatten)]
        of: OfCard,
    },
    /// Ends what it owes at the risk fund's cost: nobody will pay it any more. Refused while a building may still change it.
    WriteOff {
        /// The wallet.
        #[arg(long, default_value = "cash")]
        wallet: Wallet,
        #[command(flatten)]
        of: OfCard,
    },
    /// Sets the last day on which its cards pay and open doors (有效期), or takes the end away; of one account, or of all in a list.
    Validity(holder::Validity),
    /// Puts it into another patron class: other prices.
    Class {
        /// Its name, as the campus configuration has it.
        class: String,
        #[command(flatten)]
        of: OfCard,
    },
    /// Makes it a member of a group (doors, price lists).
    Join {
        /// The group.
        group: Key,
        #[command(flatten)]
        of: OfCard,
    },
    /// Ends its membership of a group.
    Leave {
        /// The group.
        group: Key,
        #[command(flatten)]
        of: OfCard,
    },
}

/// How long the command line waits for a payout: a building in session gives its right back within a fraction of it.
const PAYOUT_TIME: Duration = Duration::from_secs(5);

pub(super) fn act(what: Account, out: &mut impl Write) -> anyhow::Result<()> {
    match what {
        Account::Show { card, data, json } => {
            let reply = without_ok(say(&data.dir, &Command::Account { card })?);
            if json { writeln!(out, "{reply}")? } else { print_account(out, &reply)? }
        }
        Account::Open(open) => holder::open(out, open)?,
        Account::Describe(told) => print_account(out, &holder::describe(told)?)?,
        Account::Bind(bind) => holder::bind(out, bind)?,
        Account::Find(find) => print_account(out, &holder::find(find)?)?,
        Account::Freeze(of) => change(out, of, SettingCommand::Freeze)?,
        Account::Unfreeze(of) => change(out, of, SettingCommand::Unfreeze)?,
        Account::Limits { single, daily, of } => {
            let (single_limit_fen, daily_limit_fen) = (single.map(Fen::new), daily.map(Fen::new));
            change(out, of, SettingCommand::Limits { single_limit_fen, daily_limit_fen })?;
        }
        Account::Close { channel, subsidy_channel, of } => {
            close_account(out, channel, subsidy_channel, of)?;
        }
        Account::WriteOff { wallet, of: OfCard { card, operator, data } } => {
            let reply = say(&data.dir, &Command::WriteOff { card, wallet, operator })?;
            let owed = Fen::new(reply.get("amount_fen").and_then(Value::as_i64).unwrap_or_default());
            writeln!(out, "{owed} yuan written off")?;
        }
        Account::Validity(validity) => holder::validity(out, validity)?,
        Account::Class { class, of } => change(out, of, SettingCommand::Class { class })?,
        Account::Join { group, of } => {
            change(out, of, SettingCommand::JoinGroup { group })?;
        }
        Account::Leave { group, of } => {
            change(out, of, SettingCommand::LeaveGroup { group })?;
        }
    }
    Ok(())
}

fn close_account(out: &mut impl Write, channel: Key, subsidy_channel: Key, of: OfCard) -> anyhow::Result<()> {
    let OfCard { card, operator, data } = of;
    let mut client = Client::connect(&data.dir)?;
    let close = Command::CloseAccount { card: card.clone(), channel, subsidy_channel, operator };
    let mut reply = client.command(&close)?;
    let begun = Instant::now();
    while reply["closing"]["state"] == "closing" && begun.elapsed() < PAYOUT_TIME {
        std::thread::sleep(Duration::from_millis(100));
        reply = client.command(&Command::Account { card: card.clone() })?;
    }
    print_account(out, &reply)
}
