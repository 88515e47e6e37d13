//! Cases that a person decides, from the command line.

use std::io::Write;

use clap::{Args, Subcommand};
use feiqian_protocol::ids::Key;
use feiqian_protocol::money::Fen;
use serde_json::Value;

use super::{Data, say};
use crate::io::{CaseDecision, Command};

#[derive(Subcommand)]
pub(super) enum Case {
    /// The holder does not pay: what was paid is given back, at the risk fund's cost where the merchant keeps it.
    Refund(OfCase),
    /// The holder pays: the account, or the card where the books have enough on it.
    Deny(OfCase),
    /// The merchant gives back what was paid for a purchase of a purse.
    ChargeBack(OfCase),
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
    let (OfCase { case, operator, data }, decision) = match what {
        Case::Refund(of) => (of, CaseDecision::Refund),
        Case::Deny(of) => (of, CaseDecision::Deny),
        Case::ChargeBack(of) => (of, CaseDecision::ChargeBack),
    };
    let reply = say(data.path(), &Command::DecideCase { case, decision, operator })?;
    let refunded = Fen::new(reply.get("refunded_fen").and_then(Value::as_i64).unwrap_or_default());
    match (decision, reply.get("bearer").and_then(Value::as_str).unwrap_or_default()) {
        (CaseDecision::Refund, "risk_fund") if refunded == Fen::ZERO => {
            writeln!(out, "borne by the risk fund")?
        }
        (CaseDecision::Refund, _) => writeln!(out, "{refunded} yuan given back")?,
        (CaseDecision::Deny, _) => writeln!(out, "left to the holder")?,
        (CaseDecision::ChargeBack, _) => writeln!(out, "charged back to the merchant")?,
    }
    Ok(())
}
