//! Operators and channels at the centre: setting the campus up, enrolling, closing, top-ups, loss reports; and the repair of
//! everything at the end.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use ed25519_dalek::SigningKey;
use feiqian_node::io as node_io;
use feiqian_node::settings::{SettingKind, SettingRequest};
use feiqian_protocol::chain::hex;
use feiqian_protocol::entry::Proof;
use feiqian_protocol::ids::{CampusId, Key, LogId, NodeId};
use feiqian_protocol::pin::PinKey;
use feiqian_reconcile::io::{self as centre_io, Command};

use super::hosts::{CentreMessage, NodeMessage, Site, TicketFor, Trust};
use super::pins;
use super::{ATTEND_AT_HEAL_MS, Event, MS, World};
use crate::plan::{INSTITUTION, What};
use crate::promises::ledger::operators::is_closed;
use crate::promises::ledger::{BuildingLoss, Loss};
use crate::promises::{Coverage, Promise};
use crate::vfs::Disk;

/// How long a channel or an operator waits for a confirmation before it says it again.
const AGAIN_MS: u64 = 3_000;

/// Accounts of one import.
const IMPORT_PART: usize = 2_000;

/// Something that is said until it is confirmed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// An action of the plan; the number of its loss report, where it is one.
    Action(usize, Option<usize>),
    /// A building gets a new box.
    Enrol(usize),
    /// An errand of a phone; the number of its loss report, where it is one.
    Phone(usize, Option<usize>),
    /// A node's rights are closed, by force or in order.
    Retire(usize, bool),
}

/// True where the centre does nothing but take back what it lacks.
fn is_recovering(reply: &centre_io::Reply) -> bool {
    reply.as_ref().is_err_and(|error| error.code == "recovering")
}

impl World<'_> {
    /// Publishes the campus, opens the accounts, enrols a node for every building.
    pub(super) fn open_campus(&mut self) -> Result<()> {
        self.start_centre();
        let plan = self.plan;
        let mut campus = plan.campus();
        campus.voucher_keys = self.voucher_keys();
        let config = serde_json::to_value(campus)?;
        self.must(Command::PublishCampus { config })?;
        let accounts: Vec<_> = plan
            .accounts
            .iter()
            .enumerate()
            .map(|(index, account)| centre_io::ImportedAccount {
                card: account.card.clone(),
                patron_class: account.patron_class.clone(),
                opening_fen: account.opening,
                subsidy_fen: account.subsidy,
                single_limit_fen: account.single_limit,
                daily_limit_fen: account.daily_limit,
                groups: account.groups.clone(),
                initial_pin: pins::initial(index),
                opened: None,
                valid_until: account.valid_until,
            })
            .collect();
        for part in accounts.chunks(IMPORT_PART) {
            self.must(Command::ImportAccounts { accounts: part.to_vec() })?;
        }
        self.choose_pins()?;
        self.activate_phones()?;
        for building in 0..plan.buildings.len() {
            let identity = self.enrol(building)?.context("the centre is up")?;
            self.sites.push(Site::new(building, identity, Disk::new()));
            self.buildings[building].site = building;
        }
        Ok(())
    }

    pub(super) fn must(&mut self, command: Command) -> Result<serde_json::Value> {
        let reply = self.command(command).context("the centre gave no answer")?;
        reply.map_err(|error| anyhow!("{}: {error}", error.code))
    }

    /// Enrols a building (anew); the identity is what its `join` would have stored. `None` where the centre is down.
    fn enrol(&mut self, building: usize) -> Result<Option<node_io::Identity>> {
        self.tickets += 1;
        let number = self.tickets.to_be_bytes();
        let log_key = SigningKey::from_bytes(&std::array::from_fn(|index| number[index % 8] ^ index as u8));
        let lookup = hex(&std::array::from_fn::<u8, 32, _>(|index| number[index % 8]));
        let secret = hex(&std::array::from_fn::<u8, 16, _>(|index| number[index % 8]));
        let place = &self.plan.buildings[building];
        let (name, role) = (place.name.clone(), place.role);
        let create = Command::CreateEnrolment { name: name.clone(), role, lookup: lookup.clone(), secret };
        self.centre.irrevocable += 1;
        let Some(reply) = self.command(create) else { return Ok(None) };
        if is_recovering(&reply) {
            self.give_up_node(building);
            return Ok(None);
        }
        reply.map_err(|error| anyhow!("{}: {error}", error.code))?;
        let log_key_hex = hex(log_key.verifying_key().as_bytes());
        let pin_key = Some(PinKey::new(log_key.to_bytes()));
        let Some(reply) = self.command(Command::Enrol { lookup, log_key: log_key_hex, pin_key }) else {
            return Ok(None);
        };
        let reply = match reply {
            Ok(reply) => reply,
            // The clock of the centre may have jumped between the two.
            Err(error) if error.code == "enrolment_expired" => return Ok(None),
            Err(error) => bail!("{}: {error}", error.code),
        };
        let number_of = |field: &str| {
            reply[field].as_u64().ok_or_else(|| anyhow!("the answer to an enrolment has no {field}"))
        };
        Ok(Some(node_io::Identity {
            institution: INSTITUTION,
            campus: CampusId(1),
            node: NodeId(u16::try_from(number_of("node")?)?),
            name,
            role,
            incarnation: u32::try_from(number_of("incarnation")?)?,
            log_key,
            centre_key: self.centre.public_key.clone(),
        }))
    }

    /// A centre that waits for a box which will never come is told so.
    fn give_up_node(&mut self, building: usize) {
        let host = &self.sites[self.buildings[building].site];
        if host.gone || host.trust == Trust::Broken {
            let node = self.plan.buildings[building].name.clone();
            self.command(Command::Retire { node, force: true });
        }
    }

    /// What the plan has an operator or channel do.
    pub(super) fn operate(&mut self, index: usize, what: &What) {
        let mut loss = None;
        if let What::Loss { account, building: None } = what {
            loss = Some(self.ledger.losses.len());
            let card = self.plan.accounts[*account].card.clone();
            self.ledger.losses.push(Loss { card, asked: BTreeMap::new(), confirmed: None });
        }
        self.say_to_centre(Wanted::Action(index, loss));
    }

    fn say_to_centre(&mut self, wanted: Wanted) {
        let Wanted::Action(index, _) = wanted else { return };
        if let What::Loss { account, building: Some(building) } = self.plan.actions[index].what {
            return self.report(index, account, building);
        }
        let what = &self.plan.actions[index].what;
        let Some(command) = self.ledger.said(self.plan, what, self.now) else { return };
        self.tickets += 1;
        self.audit.event(self.now, 12, index as u64);
        self.audit.say(self.now, || format!("the centre is asked: {command:?}"));
        if self.centre.core.is_some() {
            self.commands.insert(self.tickets, wanted);
            self.tell_centre(CentreMessage::Command(centre_io::Ticket(self.tickets), command));
        }
        self.after_ms(AGAIN_MS, Event::Want(wanted));
    }

    /// Somebody reports a loss at a kiosk.
    fn report(&mut self, index: usize, account: usize, building: usize) {
        let site = self.buildings[building].site;
        let request = SettingRequest {
            terminal: None,
            card: self.plan.accounts[account].card.clone(),
            kind: SettingKind::ReportLoss,
            by: Key::new("operator").expect("letters are a key"),
            proof: Proof::Login,
        };
        self.audit.event(self.now, 13, index as u64);
        self.audit.say(self.now, || format!("{}: {request:?}", self.site_name(site)));
        if self.sites[site].core.is_some() {
            self.tickets += 1;
            let ticket = node_io::Ticket(self.tickets);
            self.sites[site].waiting.insert(ticket, (TicketFor::Report(index), self.now));
            self.tell_node(site, NodeMessage::Ask(node_io::Input::Setting(ticket, request)));
        }
        self.after_ms(AGAIN_MS, Event::Want(Wanted::Action(index, None)));
    }

    /// A building has taken a loss report, or says why not.
    pub(super) fn reported(
        &mut self,
        site: usize,
        ticket: node_io::Ticket,
        done: Result<node_io::SettingDone, node_io::SettingError>,
    ) {
        let index = match self.sites[site].waiting.remove(&ticket) {
            Some((TicketFor::Report(index), _)) => index,
            Some((TicketFor::Shown(index), _)) => return self.shown(index, &done),
            Some((TicketFor::Carried(account), _)) => return self.carried_shown(site, account, &done),
            _ => return,
        };
        self.audit.say(self.now, || format!("{}: the report: {done:?}", self.site_name(site)));
        // It writes nothing at the moment, or does not know the account yet: it is told again.
        if done.is_err() || self.confirmed.insert(index, None).is_some() {
            return;
        }
        let What::Loss { account, .. } = self.plan.actions[index].what else { return };
        self.reached(Coverage::LossInBuilding);
        let card = self.plan.accounts[account].card.clone();
        self.ledger.building_losses.push(BuildingLoss { site, account, card, told_ns: self.now });
    }

    /// Says it again where it was not confirmed.
    pub(super) fn want(&mut self, wanted: Wanted) -> Result<()> {
        match wanted {
            Wanted::Action(index, _) if !self.confirmed.contains_key(&index) => self.say_to_centre(wanted),
            Wanted::Action(..) => {}
            Wanted::Phone(errand, _) => self.say_errand(errand),
            Wanted::Enrol(building) => self.enrol_anew(building)?,
            Wanted::Retire(building, force) => self.retire(building, force)?,
        }
        Ok(())
    }

    /// What a restored centre has confirmed since its copy was made it may know no more: it is said again, in the same order.
    pub(super) fn say_again_since(&mut self, known: &BTreeMap<usize, Option<usize>>) {
        let since: Vec<_> = self.confirmed.iter().filter(|(index, _)| !known.contains_key(index)).collect();
        let since: Vec<_> = since.into_iter().map(|(index, loss)| (*index, *loss)).collect();
        let plan = self.plan;
        for (place, (index, loss)) in since.into_iter().enumerate() {
            if matches!(plan.actions[index].what, What::Loss { building: Some(_), .. }) {
                // The building has it in its log.
                continue;
            }
            self.confirmed.remove(&index);
            self.ledger.forgotten(plan, &plan.actions[index].what, loss);
            self.after_ms(AGAIN_MS + place as u64, Event::Want(Wanted::Action(index, loss)));
        }
    }

    /// The centre answers a command.
    pub(super) fn replied(&mut self, ticket: centre_io::Ticket, reply: centre_io::Reply) {
        let wanted = self.commands.remove(&ticket.0);
        if is_recovering(&reply) {
            return;
        }
        let (index, loss) = match wanted {
            Some(Wanted::Action(index, loss)) => (index, loss),
            Some(Wanted::Phone(errand, _)) => return self.errand_answered(errand, ticket.0, reply),
            _ => return,
        };
        self.audit.say(self.now, || format!("the centre answers {reply:?}"));
        self.confirmed.insert(index, loss);
        let what = &self.plan.actions[index].what;
        if let Some(path) = self.ledger.answered(self.plan, what, &reply, self.now) {
            self.reached(path);
        }
        match what {
            What::Loss { account, .. } if reply.is_ok() => {
                self.loss_told(*account);
                if let Some(loss) = loss.and_then(|loss| self.ledger.losses.get_mut(loss)) {
                    loss.confirmed = self.ingested_at.remove(&ticket.0);
                }
            }
            What::Close { account } if is_closed(&reply) => self.closing_told(*account),
            What::Reissue { account } if reply.is_ok() => self.reissue_told(*account),
            _ => {}
        }
    }

    /// Notes how far every log is ingested, before and after the step of a loss report.
    pub(super) fn note_ingested(&mut self, tickets: &[u64], after: bool) {
        let Ok(positions) = self.ingested() else { return };
        for ticket in tickets {
            let Some(Wanted::Action(_, Some(loss)) | Wanted::Phone(_, Some(loss))) =
                self.commands.get(ticket).copied()
            else {
                continue;
            };
            if after {
                self.ingested_at.insert(*ticket, positions.clone());
            } else if let Some(loss) = self.ledger.losses.get_mut(loss)
                && loss.asked.is_empty()
            {
                loss.asked.clone_from(&positions);
            }
        }
    }

    /// How far every log of a node is ingested.
    pub(super) fn ingested(&mut self) -> Result<BTreeMap<LogId, u64>> {
        let connection = self.centre_tables()?.connection();
        let mut statement = connection.prepare_cached(
            "SELECT log, position FROM logs UNION ALL SELECT log, position FROM branches ORDER BY 1, 2",
        )?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        let mut positions = BTreeMap::new();
        for row in rows {
            let (log, position) = row?;
            let log = LogId::from_key(INSTITUTION, log);
            if log.writer != NodeId::CENTRE {
                let known: &mut u64 = positions.entry(log).or_default();
                *known = (*known).max(position as u64);
            }
        }
        Ok(positions)
    }

    /// Closes the rights of a building's node.
    pub(super) fn retire(&mut self, building: usize, force: bool) -> Result<()> {
        // Meanwhile it would give up a building that is yet to come.
        if self.is_returning()? {
            self.after_ms(AGAIN_MS, Event::Want(Wanted::Retire(building, force)));
            return Ok(());
        }
        self.centre.irrevocable += 1;
        let node = self.plan.buildings[building].name.clone();
        let there = if force { self.right_there(building) } else { None };
        match self.command(Command::Retire { node, force }) {
            Some(Ok(_)) => {
                self.check_declared(there);
                self.reached(if force { Coverage::ClosedByForce } else { Coverage::ClosedInOrder });
            }
            // It is closed already.
            Some(Err(_)) => {}
            None => self.after_ms(AGAIN_MS, Event::Want(Wanted::Retire(building, force))),
        }
        Ok(())
    }

    /// True while the centre is an older copy of itself that takes back what it lacks.
    pub(super) fn is_returning(&mut self) -> Result<bool> {
        let restored = self.centre.restored;
        let connection = self.centre_tables()?.connection();
        let recovering =
            connection.query_row("SELECT count(*) FROM meta WHERE key = 'recovery'", [], |row| {
                row.get::<_, i64>(0)
            })?;
        Ok(restored || recovering > 0)
    }

    /// Puts another box into a building: enrolled anew, on an empty disk. The old one may still upload, where it runs.
    pub(super) fn enrol_anew(&mut self, building: usize) -> Result<()> {
        let Some(identity) = self.enrol(building)? else {
            self.after_ms(AGAIN_MS, Event::Want(Wanted::Enrol(building)));
            return Ok(());
        };
        let site = self.sites.len();
        let old = self.buildings[building].site;
        self.audit
            .say(self.now, || format!("building {building} is enrolled anew, as node {}", identity.node));
        self.reached(Coverage::EnrolledAnew);
        self.sites.push(Site::new(building, identity, Disk::new()));
        self.buildings[building].site = site;
        self.buildings[building].clone = None;
        for older in self.sites.iter_mut().take(site).filter(|older| older.building == building) {
            older.replaced_at.get_or_insert(self.now);
        }
        self.give_up_requests(old);
        self.start_node(site);
        Ok(())
    }

    /// The quiet at the end. Everything is repaired; what was found to be a copy is replaced.
    pub(super) fn heal(&mut self, stage: u32) -> Result<()> {
        if stage == 0 {
            self.audit.say(self.now, || "everything is repaired".to_owned());
            self.healed = true;
            self.attend_ms = self.attend_ms.min(ATTEND_AT_HEAL_MS);
            for index in 0..self.faults.len() {
                self.end_fault(index)?;
            }
            self.centre.clock.repair();
            self.centre.disk.set_capacity(None);
            for site in &mut self.sites {
                site.clock.repair();
                site.disk.set_capacity(None);
            }
            for building in 0..self.buildings.len() {
                self.buildings[building].clone = None;
            }
            if self.centre.core.is_none() {
                self.start_centre();
            }
            for site in 0..self.sites.len() {
                if self.sites[site].core.is_none() {
                    self.start_node(site);
                }
            }
            self.attend_all();
            return Ok(());
        }
        self.bring_cards_back();
        self.bring_receipts();
        for building in 0..self.buildings.len() {
            let site = self.buildings[building].site;
            let host = &self.sites[site];
            let (gone, sound, node) = (host.gone, host.trust == Trust::Sound, host.identity.node);
            if sound && !self.centre_was_restored() && self.state_of(node)? == "refused" {
                let name = self.site_name(site);
                self.violated(Promise::History, format!("{name} was refused, and its disk is as it left it"));
            }
            if gone || self.sites[site].trust == Trust::Broken || self.is_shut_out(site)? {
                self.enrol_anew(building)?;
            }
        }
        self.at(self.now + MS, Event::Check);
        Ok(())
    }

    /// True where the centre grants nothing to the node of a site.
    pub(super) fn is_shut_out(&mut self, site: usize) -> Result<bool> {
        Ok(self.state_of(self.sites[site].identity.node)? != "open")
    }

    /// How a node stands at the centre.
    pub(super) fn state_of(&mut self, node: NodeId) -> Result<String> {
        let connection = self.centre_tables()?.connection();
        Ok(connection.query_row("SELECT state FROM nodes WHERE node = ?1", [node.0], |row| row.get(0))?)
    }
}
