//! A box whose program is not ours any more: its keys are valid, and what it writes into its log is what it may not write.
//!
//! It takes over once the centre has all that the honest program wrote, says Hello as that would have, and then writes settings
//! that it has no role for, of accounts that are none of its business, limits that are too high, changes that do something else than they
//! say, and at last what belongs into logs of others. Each must be refused, and change nothing.

use anyhow::{Context, Result};
use feiqian_protocol::account::{Document, Intent, actor_id};
use feiqian_protocol::chain::{Cursor, HASH_ZERO, LogWriter};
use feiqian_protocol::entry::{Actor, Body, Setting};
use feiqian_protocol::frame::{Entries, Frame, NodeHello, PROTOCOL_VERSION};
use feiqian_protocol::ids::{AccountId, CampusId, CardNumber, Key, LogId};
use feiqian_protocol::limits::{AMOUNT_FEN_MAX, SHARDS};
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::PinGeneration;
use feiqian_protocol::time::{Hlc, Timestamp};
use rusqlite::OptionalExtension;

use super::hosts::Trust;
use super::network::{Connection, Way};
use super::{End, Event, MS, World, pins};
use crate::link::tables::{node_log, to_node_log};
use crate::plan::{FaultKind, INSTITUTION};
use crate::promises::pins::pin_of;
use crate::promises::{Coverage, Promise};

/// How long it waits for the centre to have all, before it says Hello, before it writes, and before it writes into other logs.
const LOOK_AGAIN_MS: u64 = 1_000;
const HELLO_AFTER_MS: u64 = 500;
const WRITES_AFTER_MS: u64 = 2_500;
const MORE_AFTER_MS: u64 = 2_000;
const ENDED_AFTER_MS: u64 = 4_000;

/// A box in wrong hands.
#[derive(Debug)]
pub(super) struct Forger {
    site: usize,
    link: u64,
    hello: NodeHello,
    /// Where its log ended, and how the centre must answer what it wrote after that.
    answers: Vec<(u64, Option<&'static str>)>,
    clock: Hlc,
}

/// What it does next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Sees whether it can take over, for a fault.
    TakeOver(usize),
    /// Says Hello.
    Greet(usize),
    /// Writes what it may not.
    Write(usize),
    /// Writes into another log.
    WriteElsewhere(usize),
    /// Its connection must have ended.
    Ended(usize),
}

impl World<'_> {
    pub(super) fn forger_step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::TakeOver(fault) => self.take_over(fault),
            Step::Greet(forger) => {
                let Forger { link, hello, .. } = &self.forgers[forger];
                self.say_forged(*link, &Frame::NodeHello(Box::new(hello.clone())));
                self.after_ms(WRITES_AFTER_MS, Event::Forger(Step::Write(forger)));
                Ok(())
            }
            Step::Write(forger) => self.write_forged(forger),
            Step::WriteElsewhere(forger) => self.write_elsewhere(forger),
            Step::Ended(forger) => {
                self.check_ended(forger);
                Ok(())
            }
        }
    }

    fn take_over(&mut self, fault: usize) -> Result<()> {
        let FaultKind::Compromised { building } = self.plan.faults[fault].kind else { return Ok(()) };
        let site = self.buildings[building].site;
        if !self.is_in_force(fault) {
            return Ok(());
        }
        let again = Event::Forger(Step::TakeOver(fault));
        let host = &self.sites[site];
        let stands =
            host.core.is_some() && host.link.is_some() && host.armed.is_none() && host.trust == Trust::Sound;
        if !stands || self.is_cut(site) || self.centre.core.is_none() || self.is_shut_out(site)? {
            self.after_ms(LOOK_AGAIN_MS, again);
            return Ok(());
        }
        let node = self.sites[site].identity.node;
        let (log, stream) = (node_log(node), to_node_log(node));
        let held = self.node_tables(site)?.entries(log)?;
        let ingested = self.centre_tables()?.acknowledged(node)?.0;
        if held.len() as u64 != ingested || held.is_empty() || !self.may_lose_disk()? {
            self.after_ms(LOOK_AGAIN_MS, again);
            return Ok(());
        }
        let clock = held.last().context("an entry")?.clock;
        let identity = self.sites[site].identity.clone();
        let hello = NodeHello {
            version: PROTOCOL_VERSION,
            institution: INSTITUTION,
            node,
            incarnation: identity.incarnation,
            log: self.end_of(site, log)?,
            to_node: self.end_of(site, stream)?,
            shards: Vec::new(),
            countersigned: None,
            refused: None,
            kept_after: Vec::new(),
            heads: Vec::new(),
            branch: None,
        };
        self.note_copy(site)?;
        self.lose_unacknowledged(site)?;
        self.node_gone(site);
        self.sites[site].gone = true;
        self.sites[site].trust = Trust::Broken;
        self.struck(fault);
        self.links += 1;
        let link = self.links;
        let stands_at = self.now + MS;
        self.connections.insert(link, Connection::new(site, self.now, stands_at));
        self.at(stands_at, Event::CentreLinkUp(link));
        self.audit.say(self.now, || format!("{} is in wrong hands, link {link}", self.site_name(site)));
        self.forgers.push(Forger { site, link, hello, answers: Vec::new(), clock });
        let forger = self.forgers.len() - 1;
        self.after_ms(HELLO_AFTER_MS, Event::Forger(Step::Greet(forger)));
        Ok(())
    }

    /// Where a log ends on a node's disk.
    fn end_of(&mut self, site: usize, log: LogId) -> Result<Cursor> {
        let connection = self.node_tables(site)?.connection();
        let head = connection
            .query_row(
                "SELECT position, hash FROM heads WHERE log = ?1 ORDER BY position DESC LIMIT 1",
                [log.key()],
                |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)),
            )
            .optional()?;
        Ok(match head {
            Some((position, hash)) => {
                let hash = hash.try_into().map_err(|_| anyhow::anyhow!("a hash of 32 bytes"))?;
                Cursor { position: position as u64, hash }
            }
            None => Cursor::START,
        })
    }

    /// Says when it will be heard, in nanoseconds.
    fn say_forged(&mut self, link: u64, frame: &Frame) -> u64 {
        let stands = self.connections.get(&link).is_some_and(|connection| connection.node_end);
        if stands { self.send(link, Way::Up, frame) } else { self.now }
    }

    /// Settings that it may not write, each with the code that it must be refused with; `None` for what is as good as nothing.
    fn forged_settings(&mut self, site: usize) -> Result<Vec<(Setting, Option<&'static str>)>> {
        let plan = self.plan;
        let identity = self.sites[site].identity.clone();
        let node = identity.node;
        let cards = self.centre_tables()?.cards()?;
        let lost = self.centre_tables()?.lost_cards()?;
        let mut forged = Vec::new();
        for (index, account) in plan.accounts.iter().enumerate() {
            let Some(id) = cards.get(&account.card).copied() else { continue };
            let saved = self.document_at(site, id)?;
            let actor = actor_id(INSTITUTION, node, 1, 1, id);
            let mut add = |intent: Intent, does: Option<Intent>, refused: Option<&'static str>| {
                let change = does.and_then(|does| {
                    let mut document = Document::load(saved.as_ref()?, actor.clone()).ok()?;
                    document.carry_out(&does, Timestamp(0)).ok()
                });
                let change = change.unwrap_or_default().into();
                forged.push((
                    Setting { account: id, document_epoch: 1, intent, change, typed: None, of: None },
                    refused,
                ));
            };
            let raise = Intent::SetLimits { single: Fen::new(9_000), daily: Fen::new(90_000) };
            match index % 4 {
                0 => {
                    let card =
                        lost.iter().find(|card| cards.get(*card) == Some(&id)).unwrap_or(&account.card);
                    let lift = Intent::LiftLoss { card: card.clone(), losses: self.losses_of(id, card)? };
                    add(lift.clone(), Some(lift), Some("role"));
                }
                1 => {
                    let generation = PinGeneration([0xee; 16]);
                    let pin = Intent::SetPin { generation, replaces: vec![pin_of(index)] };
                    add(pin.clone(), Some(pin), Some("wrong_pin"));
                    // It has typed something, and does not know what there is.
                    let guessed = pins::guessed(&identity, id, generation);
                    forged.last_mut().context("just forged")?.0.typed = Some(guessed);
                }
                2 => {
                    add(raise.clone(), Some(raise.clone()), None);
                    let most =
                        Intent::SetLimits { single: AMOUNT_FEN_MAX + Fen::new(1), daily: AMOUNT_FEN_MAX };
                    add(most, None, None);
                }
                _ => {
                    // It says what is so, and does something else.
                    let (single, daily) = self.limits_of(index);
                    add(Intent::SetLimits { single, daily }, Some(raise), None);
                    let issue = Intent::IssueCard { card: CardNumber::new("thief")? };
                    add(issue.clone(), Some(issue), Some("role"));
                }
            }
        }
        let nobody = Intent::LiftLoss { card: CardNumber::new("nobody")?, losses: Vec::new() };
        let setting = Setting {
            account: AccountId(900_000),
            document_epoch: 1,
            intent: nobody,
            change: Vec::new().into(),
            typed: None,
            of: None,
        };
        forged.push((setting, Some("no_such_account")));
        // Of a role that may write some of these, what is as good as nothing is; of another all of it is refused.
        let role = identity.role;
        for (setting, refused) in &mut forged {
            if !setting.intent.is_open_to(role) && *refused != Some("no_such_account") {
                *refused = Some("role");
            }
        }
        self.audit.say(self.now, || format!("node {node} forges {forged:?}"));
        Ok(forged)
    }

    fn document_at(&mut self, site: usize, account: AccountId) -> Result<Option<Vec<u8>>> {
        let connection = self.node_tables(site)?.connection();
        let saved = connection.query_row(
            "SELECT saved FROM documents WHERE account = ?1",
            [account.0 as i64],
            |row| row.get(0),
        );
        Ok(saved.optional()?)
    }

    fn losses_of(&mut self, account: AccountId, card: &CardNumber) -> Result<Vec<Key>> {
        let settings = self.settings_of(account)?;
        let of_card = settings.losses.into_iter().filter(|(_, lost)| lost == card);
        Ok(of_card.map(|(loss, _)| loss).collect())
    }

    fn write_forged(&mut self, forger: usize) -> Result<()> {
        let Forger { site, link, ref hello, clock, .. } = self.forgers[forger];
        let (log, start) = (node_log(hello.node), hello.log);
        let identity = self.sites[site].identity.clone();
        let applied = hello.to_node.position;
        let wall = self.epoch().plus_ms((self.now / MS) as i64);
        let mut writer = LogWriter::new(log, start, clock);
        let (mut records, mut answers) = (Vec::new(), Vec::new());
        for (setting, refused) in self.forged_settings(site)? {
            let appended = writer.append(wall, CampusId(1), Actor::node(), Body::Setting(setting));
            answers.push((appended.cursor.position, refused));
            records.push(appended.record.into());
        }
        let head = writer
            .sign_head(applied, Timestamp(0), &identity.log_key)
            .context("there is something to sign")?;
        self.forgers[forger].answers = answers;
        let entries = Entries { log, first: start.position + 1, records, heads: vec![head] };
        self.say_forged(link, &Frame::Entries(entries));
        self.after_ms(MORE_AFTER_MS, Event::Forger(Step::WriteElsewhere(forger)));
        Ok(())
    }

    /// What belongs into an account stream, signed with the node's own key.
    fn write_elsewhere(&mut self, forger: usize) -> Result<()> {
        let Forger { site, link, clock, .. } = self.forgers[forger];
        let identity = self.sites[site].identity.clone();
        let shard = LogId::shard(INSTITUTION, self.chance.below(u64::from(SHARDS)) as u8);
        let other = self.sites.iter().find(|other| other.identity.node != identity.node);
        let other = other.map_or(shard, |other| node_log(other.identity.node));
        let log = if self.chance.chance(1, 2) { shard } else { other };
        let wall = self.epoch().plus_ms((self.now / MS) as i64);
        let mut writer = LogWriter::new(log, Cursor { position: 0, hash: HASH_ZERO }, clock);
        let intent = Intent::Freeze { key: Key::new("forged")? };
        let setting = Setting {
            account: AccountId(1),
            document_epoch: 1,
            intent,
            change: Vec::new().into(),
            typed: None,
            of: None,
        };
        let appended = writer.append(wall, CampusId(1), Actor::centre(), Body::Setting(setting));
        let head =
            writer.sign_head(0, Timestamp(0), &identity.log_key).context("there is something to sign")?;
        let entries = Entries { log, first: 1, records: vec![appended.record.into()], heads: vec![head] };
        // On a line that was slow what it said before may still be on its way.
        let heard_ns = self.say_forged(link, &Frame::Entries(entries));
        self.at(heard_ns + ENDED_AFTER_MS * MS, Event::Forger(Step::Ended(forger)));
        Ok(())
    }

    /// Whoever writes into a log of another is not listened to any longer.
    fn check_ended(&mut self, forger: usize) {
        let Forger { site, link, .. } = self.forgers[forger];
        let ended = self.connections.get(&link).is_none_or(|connection| !connection.centre_end);
        if ended {
            self.reached(Coverage::ForeignLogRefused);
        } else if !self.is_cut(site) && self.centre.core.is_some() && !self.buildings_are_slow(site) {
            let text = format!(
                "{} has written into a log of another, and is still in session",
                self.site_name(site)
            );
            self.violated(Promise::History, text);
        }
        self.drop_ends(|connection| connection.site == site, End::Node);
    }

    fn buildings_are_slow(&self, site: usize) -> bool {
        let quality = self.quality(self.sites[site].building);
        quality.latency_us > 100_000 || quality.loss_permille > 0 || quality.bits_per_s > 0
    }

    /// What was forged was refused with its reason, and nothing of it is in force.
    pub(super) fn check_forged(&mut self) -> Result<()> {
        for forger in 0..self.forgers.len() {
            let Forger { site, ref answers, .. } = self.forgers[forger];
            let answers = answers.clone();
            let node = self.sites[site].identity.node;
            let stream = self.centre_tables()?.entries(to_node_log(node))?;
            let mut refused_any = false;
            for (position, expected) in answers {
                let answered = stream.iter().find_map(|entry| match &entry.body {
                    Body::SettingAnswered(answered) if answered.position == position => {
                        Some(answered.refused.clone())
                    }
                    _ => None,
                });
                // It was cut off, or closed, before it came so far.
                let Some(refused) = answered else { continue };
                let refused = refused.as_ref().map(Key::as_str);
                refused_any |= refused.is_some();
                if refused != expected {
                    let text = format!(
                        "a setting that was forged at node {node}, {position}, is answered by {refused:?}, not {expected:?}"
                    );
                    self.violated(Promise::History, text);
                }
            }
            if refused_any {
                self.reached(Coverage::SettingRefused);
            }
        }
        Ok(())
    }
}
