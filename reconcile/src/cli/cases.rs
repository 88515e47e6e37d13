//! Cases that a person decides, from the command line.

use std::io::Write;

use clap::{Args, Subcommand};
use feiqian_protocol::ids::Key;
use feiqian_protocol::money::Fen;
use serde_json::Value;

use super::{Data, say};
use crate::io::Command;

#[derive(Subcommand)]
pub(super) enum Case {
    /// Gives the holder back what it is about, at the risk fund's cost.
    Refund(OfCase),
    /// Leaves it to the holder.
    Deny(OfCase),
}

#[derive(Args)]
pub(super) struct OfCase {
    /// The case, as `export cases` names it.
    case: String,
    /// Who says so.
    #[arg(long, default_value = "operator")]
    operator: Key,
    #[command(flatten)]
    data: Data,
}

pub(super) fn act(what: Case, out: &mut impl Write) -> anyhow::Result<()> {
    let (OfCase { case, operator, data }, refund) = match what {
        Case::Refund(of) => (of, true),
        Case::Deny(of) => (of, false),
    };
    let reply = say(data.path(), &Command::DecideCase { case, refund, operator })?;
    let refunded = Fen::new(reply.get("refunded_fen").and_then(Value::as_i64).unwrap_or_default());
    if refund {
        writeln!(out, "{refunded} yuan given back")?;
    } else {
        writeln!(out, "left to the holder")?;
    }
    Ok(())
}
