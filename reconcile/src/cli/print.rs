//! What commands show to people.

use std::io::Write;

use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessCalendar, Timestamp};
use serde_json::Value;

use crate::io::{Building, CardLoss, RecoveryStatus, Status};

/// A time as people here read it.
pub(crate) fn local_time(time: Timestamp) -> String {
    let zoned = jiff::tz::Offset::from_seconds(BusinessCalendar::CHINA.utc_offset_minutes * 60)
        .ok()
        .zip(jiff::Timestamp::from_millisecond(time.0).ok())
        .map(|(offset, time)| offset.to_datetime(time).strftime("%Y-%m-%d %H:%M:%S +08:00").to_string());
    zoned.unwrap_or_else(|| format!("{} ms", time.0))
}

pub(crate) fn print_loss(out: &mut impl Write, loss: &CardLoss) -> anyhow::Result<()> {
    writeln!(out, "reported {}", local_time(loss.reported))?;
    if loss.unaware.is_empty() {
        writeln!(out, "known everywhere ({} buildings)", loss.buildings)?;
        return Ok(());
    }
    let at_most = loss
        .at_most_fen
        .map_or("without a bound by the policy".to_owned(), |fen| format!("at most {fen} yuan"));
    writeln!(
        out,
        "known to {} of {} buildings; elsewhere {at_most} can still be spent",
        loss.known, loss.buildings
    )?;
    for building in &loss.unaware {
        let Building { node, heard, at_most_fen } = building;
        writeln!(out, "  {node:<24} last heard {}, {at_most_fen} yuan", local_time(*heard))?;
    }
    Ok(())
}

pub(crate) fn print_account(out: &mut impl Write, account: &Value) -> anyhow::Result<()> {
    let yuan = |value: &Value| Fen::new(value.as_i64().unwrap_or_default()).to_string();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    writeln!(out, "account {}, {}", account["account"], text(&account["patron_class"]))?;
    for (name, set) in [("frozen", &account["frozen"]), ("closed", &account["closed"])] {
        if set == true {
            writeln!(out, "  {name}")?;
        }
    }
    if let Some(day) = account["valid_until"].as_str() {
        writeln!(out, "  good until {day}")?;
    }
    for (field, told) in account["holder"].as_object().into_iter().flatten() {
        writeln!(out, "  {field}: {}", text(told))?;
    }
    print_closing(out, &account["closing"])?;
    for (card, status) in account["cards"].as_object().into_iter().flatten() {
        writeln!(out, "  card {card}: {}", text(status))?;
    }
    let (single, daily) = (yuan(&account["single_limit_fen"]), yuan(&account["daily_limit_fen"]));
    writeln!(out, "  without PIN: {single} yuan a purchase, {daily} yuan a day")?;
    let groups: Vec<_> = account["groups"].as_array().into_iter().flatten().map(text).collect();
    if !groups.is_empty() {
        writeln!(out, "  groups: {}", groups.join(" "))?;
    }
    for (wallet, state) in account["wallets"].as_object().into_iter().flatten() {
        let (funds, free, owed) =
            (yuan(&state["funds_fen"]), yuan(&state["at_the_centre_fen"]), yuan(&state["owed_fen"]));
        writeln!(out, "  {wallet}: {funds} yuan, {free} of it at the centre, {owed} owed")?;
    }
    for voucher in account["vouchers"].as_array().into_iter().flatten() {
        let until = local_time(Timestamp(voucher["until_ms"].as_i64().unwrap_or_default()));
        writeln!(
            out,
            "  voucher {}: {} yuan held, until {until}",
            voucher["number"],
            yuan(&voucher["held_fen"])
        )?;
    }
    for right in account["rights"].as_array().into_iter().flatten() {
        let (right_fen, stand_in) = (yuan(&right["right_fen"]), yuan(&right["stand_in_fen"]));
        let (node, wallet) = (text(&right["node"]), text(&right["wallet"]));
        writeln!(out, "  right at {node}: {right_fen} yuan of {wallet}, {stand_in} yuan stand-in")?;
    }
    if let Some(issuance) = account["issuance"].as_str() {
        writeln!(out, "  for the new card, where a building has not heard of it: {issuance}")?;
    }
    Ok(())
}

fn print_closing(out: &mut impl Write, closing: &Value) -> anyhow::Result<()> {
    if closing.is_null() {
        return Ok(());
    }
    let yuan = |value: &Value| Fen::new(value.as_i64().unwrap_or_default());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = |value: &Value| local_time(Timestamp(value.as_i64().unwrap_or_default()));
    for (paid, channel) in [("paid_fen", "channel"), ("subsidy_paid_fen", "subsidy_channel")] {
        if yuan(&closing[paid]).is_positive() {
            writeln!(out, "  paid out: {} yuan by {}", yuan(&closing[paid]), text(&closing[channel]))?;
        }
    }
    match closing["state"].as_str() {
        Some("paid_out") => writeln!(out, "  nothing is left of it")?,
        Some("owes") => writeln!(out, "  it owes {} yuan", yuan(&closing["owed_fen"]))?,
        _ => writeln!(
            out,
            "  {} yuan are still to be paid out, at the latest on {}",
            yuan(&closing["held_fen"]),
            time(&closing["waits_until"])
        )?,
    }
    for building in closing["waits_for"].as_array().into_iter().flatten() {
        let (node, right) = (text(&building["node"]), yuan(&building["right_fen"]));
        let knows = if building["knows"] == true { "knows of it" } else { "has not said that it knows" };
        writeln!(out, "  waits for {node}: {right} yuan, {knows}, last heard {}", time(&building["heard"]))?;
    }
    if yuan(&closing["given_up_fen"]).is_positive() {
        let given_up = yuan(&closing["given_up_fen"]);
        writeln!(out, "  {given_up} yuan of it came home without word of the buildings that had it")?;
    }
    Ok(())
}

pub(crate) fn print_status(out: &mut impl Write, status: &Status) -> std::io::Result<()> {
    let yuan = |fen: i64| Fen::new(fen).to_string();
    if let Some(recovery) = &status.recovery {
        print_recovery(out, recovery)?;
    }
    if let Some(until) = status.recovered_until {
        let until = jiff::Timestamp::from_millisecond(until.0).unwrap_or_default();
        writeln!(
            out,
            "restored from a backup: what was done here after {until} and told to no building is lost; submit credits \
             again under their keys\n"
        )?;
    }
    writeln!(
        out,
        "{} accounts, campus configuration {}, {} asks waiting, {} cases open ({} yuan), {} yuan in suspense",
        status.accounts,
        status.campus_version,
        status.asks,
        status.open_cases,
        yuan(status.open_cases_fen),
        yuan(status.suspense_fen),
    )?;
    writeln!(out)?;
    let width = status.nodes.iter().map(|node| node.node.len()).max().unwrap_or(0).max(4);
    writeln!(
        out,
        "{:width$}  {:9}  {:>9}  {:>13}  {:>8}  {:>12}  {:>12}  state",
        "node", "link", "ingested", "to node", "backlog", "right (yuan)", "stand-in"
    )?;
    for node in &status.nodes {
        writeln!(
            out,
            "{:width$}  {:9}  {:>9}  {:>13}  {:>8}  {:>12}  {:>12}  {}",
            node.node,
            if node.connected { "connected" } else { "-" },
            node.ingested,
            format!("{}/{}", node.to_node_acked, node.to_node),
            node.backlog,
            yuan(node.out_fen),
            yuan(node.stand_in_out_fen),
            node.state,
        )?;
    }
    for revoked in &status.revoked {
        writeln!(
            out,
            "revoked: {}, enrolment {} (node {})",
            revoked.node, revoked.enrolment, revoked.number
        )?;
    }
    Ok(())
}

fn print_recovery(out: &mut impl Write, recovery: &RecoveryStatus) -> std::io::Result<()> {
    writeln!(
        out,
        "RESTORED FROM A BACKUP: {} entries taken back from the buildings so far; nothing is granted until {}",
        recovery.entries,
        if recovery.replaying { "they are worked off" } else { "every building was heard" },
    )?;
    writeln!(
        out,
        "heard: {}",
        if recovery.heard.is_empty() { "-".to_owned() } else { recovery.heard.join(", ") }
    )?;
    for waiting in &recovery.not_heard {
        let trouble = waiting.trouble.as_ref().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
        writeln!(out, "waited for: {}{trouble}", waiting.node)?;
    }
    if !recovery.not_heard.is_empty() {
        writeln!(out, "one that will never come is given up by: feiqian-reconcile retire NODE --force")?;
    }
    writeln!(out)
}
