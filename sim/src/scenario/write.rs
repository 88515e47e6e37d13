//! A scenario written back as a file: what the shrinker leaves is kept as one.

use std::fmt::Write;

use feiqian_protocol::ids::Key;
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::Pin;

use super::units::length_text;
use super::{AccountSpec, Scenario, Workload};
use crate::campus::local;
use crate::plan::{Action, Ask, Fault, FaultKind, Host, LinkQuality, Manner, What, WrongClock};

/// The text of a file.
pub(super) fn write(scenario: &Scenario) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_to(scenario, &mut out);
    out
}

fn write_to(scenario: &Scenario, out: &mut String) -> std::fmt::Result {
    let timing = &scenario.timing;
    writeln!(out, "title = {}", quoted(&scenario.title))?;
    writeln!(out, "title_zh = {}", quoted(&scenario.title_zh))?;
    writeln!(out, "large = {}", scenario.large)?;
    writeln!(out, "start = {}", quoted(&local::format(timing.start)))?;
    for (key, ms) in [
        ("length", timing.length_ms),
        ("heal", timing.heal_ms),
        ("attend", timing.attend_ms),
        ("warm_up", timing.warm_up_ms),
        ("idle_timeout", timing.idle_timeout_ms),
        ("ask_deadline", timing.ask_deadline_ms),
    ] {
        writeln!(out, "{key} = {}", quoted(&length_text(ms)))?;
    }
    if let Some(seed) = scenario.seed {
        writeln!(out, "seed = {seed}")?;
    }
    let modes: Vec<_> = scenario.modes.iter().map(|mode| quoted(mode.name())).collect();
    if !modes.is_empty() {
        writeln!(out, "modes = [{}]", modes.join(", "))?;
    }
    if let Ok(policy) = toml::to_string(&scenario.policy) {
        write!(out, "\n[policy]\n{policy}")?;
    }
    for meal in &scenario.meals {
        writeln!(out, "\n[[meals]]")?;
        out.push_str(&toml::to_string(meal).map_err(|_| std::fmt::Error)?);
    }
    for building in &scenario.buildings {
        writeln!(out, "\n[[building]]\nname = {}", quoted(building.name.as_str()))?;
        writeln!(out, "count = {}", building.count)?;
        writeln!(out, "role = {}\nterminals = {}", quoted(building.role.name()), building.terminals)?;
        writeln!(out, "weight = {}\nlink = {}", building.weight, link(&building.link))?;
        write_groups(&building.groups, out)?;
        if !building.terminal_groups.is_empty() {
            let groups: Vec<_> = building.terminal_groups.iter().map(|groups| group_list(groups)).collect();
            writeln!(out, "terminal_groups = [{}]", groups.join(", "))?;
        }
        if !building.open.is_empty() {
            let open: Vec<_> = building.open.iter().map(|span| quoted(&span.to_string())).collect();
            writeln!(out, "open = [{}]", open.join(", "))?;
        }
    }
    for account in &scenario.accounts {
        write_account(account, out)?;
    }
    match &scenario.workload {
        Workload::Fixed(actions) => {
            for action in actions {
                write_action(scenario, action, out)?;
            }
        }
        Workload::College { people, days } => {
            writeln!(out, "\n[workload]\ncollege = {people}\ndays = {days}")?;
        }
        Workload::Doors { dir } => {
            writeln!(out, "\n[workload]\ndoors = {}", quoted(&dir.to_string_lossy()))?;
        }
        Workload::Replay { dir, days } => {
            writeln!(out, "\n[workload]\nreplay = {}", quoted(&dir.to_string_lossy()))?;
            days.map_or(Ok(()), |days| writeln!(out, "days = {days}"))?;
        }
        Workload::Drawn(drawn) => {
            writeln!(out, "\n[workload]\ntaps = {}\nburst = {}", drawn.taps, drawn.burst)?;
            writeln!(out, "amount = {}\nday_profile = {}", range(drawn.amount), drawn.day_profile)?;
            for (key, value) in [
                ("access", drawn.access),
                ("measured", drawn.measured),
                ("reversals", drawn.reversals),
                ("partial", drawn.partial),
                ("strangers", drawn.strangers),
                ("pins", drawn.pins),
                ("misbehaving", drawn.misbehaving),
                ("top_ups", drawn.top_ups),
                ("losses", drawn.losses),
                ("losses_in_buildings", drawn.losses_in_buildings),
                ("lifts", drawn.lifts),
                ("closings", drawn.closings),
                ("reissues", drawn.reissues),
                ("thefts", drawn.thefts),
            ] {
                writeln!(out, "{key} = {value}")?;
            }
            writeln!(out, "top_up = {}", range(drawn.top_up))?;
        }
    }
    for fault in &scenario.faults {
        write_fault(scenario, fault, out)?;
    }
    if let Some(drawn) = &scenario.drawn {
        let kinds: Vec<_> = drawn.kinds.iter().map(|kind| quoted(kind)).collect();
        writeln!(out, "\n[faults]\nkinds = [{}]", kinds.join(", "))?;
        writeln!(out, "count = [{}, {}]", drawn.count.0, drawn.count.1)?;
        let (least, most) = drawn.length_ms;
        writeln!(out, "length = [{}, {}]", quoted(&length_text(least)), quoted(&length_text(most)))?;
        writeln!(out, "after = {}", quoted(&length_text(drawn.after_ms)))?;
        writeln!(out, "hostile_every = {}", drawn.hostile_every)?;
    }
    Ok(())
}

fn write_account(account: &AccountSpec, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n[[account]]")?;
    match &account.card {
        Some(card) => writeln!(out, "card = {}", quoted(card.as_str()))?,
        None => writeln!(out, "count = {}", account.count)?,
    }
    if account.purse {
        writeln!(out, "purse = true")?;
    }
    if account.phone {
        writeln!(out, "phone = true")?;
    }
    writeln!(out, "class = {}", quoted(&account.patron_class))?;
    writeln!(out, "opening = {}\nsubsidy = {}", range(account.opening), range(account.subsidy))?;
    for (key, limit) in [("single_limit", account.single_limit), ("daily_limit", account.daily_limit)] {
        limit.map_or(Ok(()), |limit| writeln!(out, "{key} = {}", yuan(limit)))?;
    }
    writeln!(out, "favourite = {}", account.favourite)?;
    if let Some(days) = account.valid_days {
        writeln!(out, "valid_days = {days}")?;
    }
    write_groups(&account.groups, out)
}

fn write_groups(groups: &[Key], out: &mut String) -> std::fmt::Result {
    if groups.is_empty() { Ok(()) } else { writeln!(out, "groups = {}", group_list(groups)) }
}

fn group_list(groups: &[Key]) -> String {
    let groups: Vec<_> = groups.iter().map(|group| quoted(group.as_str())).collect();
    format!("[{}]", groups.join(", "))
}

fn write_action(scenario: &Scenario, action: &Action, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n[[event]]\nat = \"{}ms\"", action.at_ms)?;
    let card = |account: usize| quoted(&card_of(scenario, account));
    match &action.what {
        What::Tap(tap) => {
            writeln!(out, "kind = \"tap\"\nnumber = {}", tap.number)?;
            writeln!(out, "building = {}", quoted(&building(scenario, tap.building)))?;
            writeln!(out, "terminal = {}\ncard = {}", tap.terminal + 1, quoted(tap.card.as_str()))?;
            match tap.ask {
                Ask::Access => {}
                Ask::Amount(amount) => writeln!(out, "amount = {}", yuan(amount))?,
                Ask::Quantity(grams) => writeln!(out, "grams = {grams}")?,
            }
            match tap.pin {
                Pin::Absent | Pin::Entered { .. } | Pin::NotHashed => {}
                Pin::Right => writeln!(out, "pin = \"right\"")?,
                Pin::Wrong => writeln!(out, "pin = \"wrong\"")?,
            }
            if tap.manner == Manner::Patient {
                Ok(())
            } else {
                writeln!(out, "manner = {}", quoted(tap.manner.name()))
            }
        }
        What::Reversal { of, amount, number } => {
            writeln!(out, "kind = \"reversal\"\nof = {of}\nnumber = {number}")?;
            amount.map_or(Ok(()), |amount| writeln!(out, "amount = {}", yuan(amount)))
        }
        What::TopUp { account, amount, channel, key } => {
            writeln!(out, "kind = \"top_up\"\ncard = {}\namount = {}", card(*account), yuan(*amount))?;
            writeln!(out, "channel = {}\nkey = {}", quoted(channel.as_str()), quoted(key.as_str()))
        }
        What::Loss { account, building: at } => {
            writeln!(out, "kind = \"loss\"\ncard = {}", card(*account))?;
            at.map_or(Ok(()), |at| writeln!(out, "building = {}", quoted(&building(scenario, at))))
        }
        What::Lift { account } => writeln!(out, "kind = \"lift\"\ncard = {}", card(*account)),
        What::Close { account } => writeln!(out, "kind = \"close\"\ncard = {}", card(*account)),
        What::Reissue { account } => writeln!(out, "kind = \"reissue\"\ncard = {}", card(*account)),
        What::Unlock { account } => writeln!(out, "kind = \"unlock\"\ncard = {}", card(*account)),
    }
}

fn write_fault(scenario: &Scenario, fault: &Fault, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n[[fault]]\nat = \"{}ms\"\nfor = \"{}ms\"", fault.at_ms, fault.for_ms)?;
    writeln!(out, "kind = {}", quoted(fault.kind.name()))?;
    let one = |index: usize| quoted(&building(scenario, index));
    let list = |all: &[usize]| all.iter().map(|index| one(*index)).collect::<Vec<_>>().join(", ");
    let host = |host: &Host| match host {
        Host::Centre => quoted("centre"),
        Host::Node(index) => one(*index),
    };
    match &fault.kind {
        FaultKind::Partition { buildings } => writeln!(out, "buildings = [{}]", list(buildings)),
        FaultKind::Link { buildings, quality } => {
            writeln!(out, "buildings = [{}]\nlink = {}", list(buildings), link(quality))
        }
        FaultKind::PowerCut { host: of, after } | FaultKind::Crash { host: of, after } => {
            writeln!(out, "host = {}\nafter = {after}", host(of))
        }
        FaultKind::Restart { host: of } | FaultKind::StaleBackup { host: of } => {
            writeln!(out, "host = {}", host(of))
        }
        FaultKind::DiskFull { host: of, room } => writeln!(out, "host = {}\nroom = {room}", host(of)),
        FaultKind::BitRot { building, bit } => writeln!(out, "building = {}\nbit = {bit}", one(*building)),
        FaultKind::Clock { host: of, wrong } => {
            writeln!(out, "host = {}", host(of))?;
            match wrong {
                WrongClock::In1970 => writeln!(out, "clock = \"1970\""),
                WrongClock::In2038 => writeln!(out, "clock = \"2038\""),
                WrongClock::Off(ms) if *ms < 0 => writeln!(out, "clock = \"-{}ms\"", ms.unsigned_abs()),
                WrongClock::Off(ms) => writeln!(out, "clock = \"+{ms}ms\""),
                WrongClock::Drifts(ppm) => writeln!(out, "ppm = {ppm}"),
            }
        }
        FaultKind::Retire { building, force } => {
            writeln!(out, "building = {}\nforce = {force}", one(*building))
        }
        FaultKind::LyingDisk { building }
        | FaultKind::Clone { building }
        | FaultKind::Destroyed { building }
        | FaultKind::Replayed { building }
        | FaultKind::Compromised { building }
        | FaultKind::Revoked { building } => writeln!(out, "building = {}", one(*building)),
        FaultKind::Forged { building, up } => writeln!(out, "building = {}\nup = {up}", one(*building)),
    }
}

/// A plan's buildings and accounts are written one by one, so an index is a place in the list.
fn building(scenario: &Scenario, index: usize) -> String {
    scenario.buildings.get(index).map_or_else(|| index.to_string(), |building| building.name.to_string())
}

fn card_of(scenario: &Scenario, index: usize) -> String {
    let card = scenario.accounts.get(index).and_then(|account| account.card.as_ref());
    card.map_or_else(|| format!("c{}", index + 1), ToString::to_string)
}

fn link(quality: &LinkQuality) -> String {
    let mut text = format!("{{ latency_us = {}, jitter_us = {}", quality.latency_us, quality.jitter_us);
    let _ = write!(text, ", loss_permille = {}", quality.loss_permille);
    if quality.bits_per_s > 0 {
        let _ = write!(text, ", rate = \"{}bit/s\"", quality.bits_per_s);
    }
    text + " }"
}

fn range((least, most): (Fen, Fen)) -> String {
    format!("[{}, {}]", yuan(least), yuan(most))
}

fn yuan(fen: Fen) -> String {
    format!("\"{fen}\"")
}

/// A string as TOML has it; its basic strings escape what JSON escapes.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
