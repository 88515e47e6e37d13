//! `feiqian-reconcile virtual-card`.

use std::io::Write;

use clap::Subcommand;
use feiqian_protocol::chain::hex;
use feiqian_protocol::ids::{CardNumber, Key};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use serde_json::Value;

use crate::cli::print::local_time;
use crate::cli::{Data, OfCard, say, without_ok};
use crate::driver::real_now;
use crate::io::{Command, SettingCommand};
use crate::run;

/// What can be done about virtual cards.
#[derive(Subcommand)]
pub enum VirtualCard {
    /// Prints a voucher key for the campus file. Publish it a month before its first use; a number that is taken out of the
    /// file again ends all its vouchers. Works without the service.
    Key {
        /// Its number; one that was withdrawn is not used again.
        #[arg(long, default_value_t = 1)]
        number: u8,
        /// Days from now until its first use.
        #[arg(long, value_name = "DAYS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=3_650))]
        after: u16,
        /// Days of use.
        #[arg(long, value_name = "DAYS", default_value_t = 400, value_parser = clap::value_parser!(u16).range(1..=3_650))]
        days: u16,
        #[command(flatten)]
        data: Data,
    },
    /// Makes a virtual card of a phone's key, and prints its number.
    Activate {
        /// A card of the account.
        #[arg(long)]
        card: CardNumber,
        /// The key's algorithm: p256 or ed25519.
        #[arg(long, default_value = "p256")]
        algorithm: String,
        /// The public key in hexadecimal: 33 bytes compressed (p256), or 32 (ed25519).
        #[arg(long, value_name = "HEX")]
        key: String,
        /// Who says so.
        #[arg(long, default_value = "operator")]
        operator: Key,
        #[command(flatten)]
        data: Data,
    },
    /// Signs a voucher for a virtual card, and prints it: the phone shows codes by it until it ends.
    Voucher {
        /// The virtual card.
        card: CardNumber,
        /// How long it is good; three days where it is not given, or one where it holds money.
        #[arg(long)]
        minutes: Option<u16>,
        /// Holds money for it, by which it pays once where nobody can be asked: at most so many yuan, and no more than is free.
        #[arg(long, value_name = "YUAN", num_args = 0..=1, default_missing_value = "20.00", value_parser = Fen::parse_yuan)]
        pay: Option<Fen>,
        /// The number of the last one that the phone has used up; without it an unspent one is given again.
        #[arg(long, value_name = "NUMBER", requires = "pay")]
        after: Option<u32>,
        #[command(flatten)]
        data: Data,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints, as JSON, what a phone makes short codes by: the alias, and the secret of an RFC 6238 generator (SHA-256, 8 digits, 30 s).
    Short {
        /// The virtual card.
        card: CardNumber,
        #[command(flatten)]
        data: Data,
    },
    /// Takes the receipt that a terminal gave for what a voucher paid: what the voucher did not spend is free at once.
    Receipt {
        /// Its 240 digits.
        digits: String,
        #[command(flatten)]
        data: Data,
    },
    /// Revokes a virtual card, for ever. The account's other cards stay as they are.
    Revoke(OfCard),
}

/// Does it; says on `out` what was done.
///
/// # Errors
/// What the service refused.
pub fn act(what: VirtualCard, out: &mut impl Write) -> anyhow::Result<()> {
    match what {
        VirtualCard::Key { number, after, days, data } => {
            let key = run::identity(data.path())?.voucher_key(number).verifying_key();
            let day_ms = 24 * 3_600_000;
            // Vouchers say when they were issued in whole seconds.
            let now = Timestamp(real_now().0.div_euclid(1_000) * 1_000);
            let from = now.plus_ms(i64::from(after) * day_ms);
            let to = from.plus_ms(i64::from(days) * day_ms);
            writeln!(out, "[[voucher_keys]]\nnumber = {number}\nkey = \"{}\"", hex(key.as_bytes()))?;
            writeln!(out, "from_ms = {} # {}", from.0, local_time(from))?;
            writeln!(out, "to_ms = {} # {}", to.0, local_time(to))?;
        }
        VirtualCard::Activate { card, algorithm, key, operator, data } => {
            let command = Command::ActivateVirtualCard { card, algorithm, key, operator };
            let reply = say(data.path(), &command)?;
            writeln!(out, "{}", reply.get("card").and_then(Value::as_str).unwrap_or_default())?;
        }
        VirtualCard::Voucher { card, minutes, pay, after, data, json } => {
            let ceiling_fen = pay.unwrap_or_default();
            let command = Command::Voucher { card, life_minutes: minutes, ceiling_fen, after };
            let reply = without_ok(say(data.path(), &command)?);
            if json {
                writeln!(out, "{reply}")?;
            } else {
                writeln!(out, "{}", reply.get("voucher").and_then(Value::as_str).unwrap_or_default())?;
            }
        }
        VirtualCard::Short { card, data } => {
            writeln!(out, "{}", without_ok(say(data.path(), &Command::ShortCode { card })?))?;
        }
        VirtualCard::Receipt { digits, data } => {
            let reply = say(data.path(), &Command::Receipt { receipt: digits })?;
            let yuan = |field: &str| Fen::new(reply.get(field).and_then(Value::as_i64).unwrap_or_default());
            writeln!(out, "{} yuan paid, {} yuan free again", yuan("amount_fen"), yuan("freed_fen"))?;
        }
        VirtualCard::Revoke(OfCard { card, operator, data }) => {
            anyhow::ensure!(card.is_virtual(), "{card} is no virtual card");
            say(data.path(), &Command::ChangeSetting { card, change: SettingCommand::VoidCard, operator })?;
            writeln!(out, "revoked")?;
        }
    }
    Ok(())
}
