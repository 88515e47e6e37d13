//! Connections made, used, broken and given up.

use std::rc::Rc;

use anyhow::Result;
use feiqian_protocol::frame::{Frame, Lane, RefusalReason};
use feiqian_protocol::ids::LogId;

use super::hosts::{CentreMessage, NodeMessage};
use super::network::{Connection, Flight, Way};
use super::{End, Event, MS, World};
use crate::plan::INSTITUTION;
use crate::promises::{Coverage, Promise};

/// The pause between attempts to connect, the first time and at most (`node/src/link.rs`).
const PAUSE_MIN_MS: u64 = 100;
const PAUSE_MAX_MS: u64 = 1_000;

/// What an attempt that leads nowhere takes. A path that is back helps the attempt under way, at its next packet.
const ATTEMPT_MS: u64 = 3_000;

/// Frames of earlier connections that are kept to be played again.
const OLD_FRAMES_MAX: usize = 64;

impl World<'_> {
    /// A node whose way to the centre has just become possible tries soon: how soon depends on where its attempts stand.
    pub(super) fn kick(&mut self, site: usize) {
        let host = &mut self.sites[site];
        if host.core.is_none() || host.link.is_some() {
            return;
        }
        host.attempt += 1;
        let attempt = host.attempt;
        let at = self.now + self.chance.below((PAUSE_MAX_MS + ATTEMPT_MS / 3) * MS);
        self.at(at, Event::Connect(site, attempt));
    }

    /// After a connection that stood: the pause of the shell's back-off, a quarter longer or shorter.
    fn connect_again(&mut self, site: usize) {
        let lasted_ms = (self.now - self.sites[site].connected_at) / MS;
        let host = &mut self.sites[site];
        host.lost_quickly = if lasted_ms > PAUSE_MAX_MS { 0 } else { host.lost_quickly + 1 };
        host.attempt += 1;
        let attempt = host.attempt;
        let pause = (PAUSE_MIN_MS << host.lost_quickly.min(8)).min(PAUSE_MAX_MS) * MS;
        let pause = pause * 3 / 4 + self.chance.below(pause / 2);
        self.at(self.now + pause, Event::Connect(site, attempt));
    }

    pub(super) fn is_cut(&self, site: usize) -> bool {
        self.buildings[self.sites[site].building].cuts > 0
    }

    pub(super) fn connect(&mut self, site: usize, attempt: u64) {
        let host = &self.sites[site];
        let wants = host.core.is_some() && host.attempt == attempt && host.link.is_none();
        // Whatever makes it possible again kicks.
        if !wants || host.revoked || self.is_cut(site) || self.centre.core.is_none() {
            return;
        }
        let quality = self.quality(host.building);
        let trip = (quality.latency_us + self.chance.below(quality.jitter_us + 1)) * 1_000;
        self.links += 1;
        let link = self.links;
        let stands_at = self.now + trip;
        self.connections.insert(link, Connection::new(site, self.now, stands_at));
        self.sites[site].connected_at = self.now;
        self.audit.event(self.now, 7, link);
        self.audit.say(self.now, || format!("{}: connected, link {link}", self.site_name(site)));
        // The queue of the core may hold the end of the link before.
        self.tell_node(site, NodeMessage::LinkUp(link));
        self.at(stands_at, Event::CentreLinkUp(link));
    }

    pub(super) fn centre_link_up(&mut self, link: u64) {
        let Some(connection) = self.connections.get(&link) else { return };
        if !connection.centre_end || self.centre.core.is_none() {
            return self.end_gone(link, End::Centre);
        }
        let site = connection.site;
        let older = self.connections.iter().any(|(other, older)| {
            *other != link && older.site == site && older.centre_end && self.centre.links.contains_key(other)
        });
        if older {
            self.reached(Coverage::LinkReplaced);
        }
        self.tell_centre(CentreMessage::LinkUp(link));
    }

    pub(super) fn send_up(&mut self, site: usize, link: u64, frame: &Frame) {
        if matches!(frame, Frame::NodeHello(_)) {
            let ms = self.now_ms();
            self.mark_link(site, ms, true);
        }
        self.send(link, Way::Up, frame);
    }

    pub(super) fn send_down(&mut self, link: u64, frame: &Frame) {
        match frame {
            Frame::CentreHello(hello) => match hello.refused {
                Some(reason) => self.reached_refusal(reason),
                None if hello.returning.is_none() => self.check_accepted(link),
                None => {}
            },
            Frame::No(no) => {
                self.reached(if no.r#final { Coverage::NoFinal } else { Coverage::NoForNow });
            }
            Frame::Entries(entries) => {
                let own = self
                    .connections
                    .get(&link)
                    .map(|connection| LogId::node(INSTITUTION, self.sites[connection.site].identity.node));
                if own == Some(entries.log) {
                    self.reached(Coverage::TailReturned);
                }
            }
            _ => {}
        }
        self.send(link, Way::Down, frame);
    }

    /// A session was accepted: it must not be that of a box that another has replaced. What the step before the enrolment
    /// said may be on its way still.
    fn check_accepted(&mut self, link: u64) {
        let Some(site) = self.connections.get(&link).map(|connection| connection.site) else { return };
        let replaced = self.sites[site].replaced_at.is_some_and(|at| self.now > at + 1_000 * MS);
        if replaced && !self.centre_was_restored() {
            let name = self.site_name(site);
            self.violated(
                Promise::History,
                format!("{name} is in session, though its building has another box"),
            );
        }
    }

    fn reached_refusal(&mut self, reason: RefusalReason) {
        match reason {
            RefusalReason::StaleGrants => self.reached(Coverage::RefusedStaleGrants),
            RefusalReason::ShortLog => self.reached(Coverage::RefusedShortLog),
            RefusalReason::ForkedLog => self.reached(Coverage::RefusedForkedLog),
            RefusalReason::Incarnation => self.reached(Coverage::RefusedIncarnation),
            RefusalReason::CentreBehind => self.reached(Coverage::RefusedCentreBehind),
            _ => {}
        }
    }

    /// Says when it will be there, in nanoseconds.
    pub(super) fn send(&mut self, link: u64, way: Way, frame: &Frame) -> u64 {
        let Some(connection) = self.connections.get_mut(&link) else { return self.now };
        let site = connection.site;
        let building = self.sites[site].building;
        let quality = self.buildings[building].quality.unwrap_or(self.plan.buildings[building].link);
        let bytes: Rc<[u8]> = frame.to_bytes().into();
        self.audit.event(self.now, 8 << 32 | link, way as u64);
        self.audit.bytes(&bytes);
        let flight = connection.send(self.now, way, frame.lane(), bytes, &quality, &mut self.chance);
        self.audit.say(self.now, || {
            let (name, ms) = (self.site_name(site), (flight.arrives_ns - self.now) / MS);
            format!("{way:?} {name}, link {link}, there in {ms} ms: {}", brief(frame))
        });
        let arrives_ns = flight.arrives_ns;
        self.at(arrives_ns, Event::Arrive(link, flight));
        arrives_ns
    }

    pub(super) fn arrive(&mut self, link: u64, flight: Flight) -> Result<()> {
        let Some(connection) = self.connections.get_mut(&link) else { return Ok(()) };
        let site = connection.site;
        let (way, lane) = (flight.way, flight.lane);
        if !connection.received(way) {
            if lane == Lane::Bulk {
                self.reached(Coverage::Resumed);
            }
            return Ok(());
        }
        if self.buildings[self.sites[site].building].cuts > 0 {
            connection.held.push_back(flight);
            return Ok(());
        }
        if lane == Lane::Bulk {
            connection.bulk_flying[way as usize] = connection.bulk_flying[way as usize].saturating_sub(1);
        }
        let overtakes = lane == Lane::Urgent && connection.bulk_flying[way as usize] > 0;
        if overtakes {
            self.reached(Coverage::UrgentOvertook);
        }
        let building = self.sites[site].building;
        let mut bytes = Rc::clone(&flight.bytes);
        let mut forged = false;
        let may_forge = match way {
            Way::Down => self.buildings[building].forging > 0,
            Way::Up => self.buildings[building].forging_up > 0,
        };
        if may_forge && let Some(altered) = self.forge(&flight) {
            bytes = altered;
            forged = true;
            if let Some(connection) = self.connections.get_mut(&link) {
                connection.forged[way as usize] = true;
            }
            if way == Way::Up {
                self.distrust(site)?;
            }
            self.fault_seen(building, "forged");
        }
        self.replay(link, &flight);
        let frame = match Frame::from_bytes(&bytes) {
            Ok(frame) if frame.lane() == lane => frame,
            _ => {
                // What is no frame ends its connection.
                self.audit.say(self.now, || format!("link {link}: what came {way:?} is no frame"));
                self.closes_forged(link, way);
                let end = if way == Way::Up { End::Centre } else { End::Node };
                self.reader_ended(link, end);
                return Ok(());
            }
        };
        if forged {
            self.audit.say(self.now, || format!("link {link}: forged {way:?}: {}", brief(&frame)));
        }
        match way {
            Way::Up => self.tell_centre(CentreMessage::Frame(link, frame)),
            Way::Down => self.tell_node(site, NodeMessage::Frame(link, frame)),
        }
        Ok(())
    }

    /// The receiver of what came this way ends the connection.
    pub(super) fn closes_forged(&mut self, link: u64, way: Way) {
        if self.connections.get(&link).is_some_and(|connection| connection.forged[way as usize]) {
            self.reached(Coverage::ForgedRefused);
        }
    }

    /// What somebody who holds the transport's keys makes of a frame: a bit of entries turns, or a Hello claims to know more.
    fn forge(&mut self, flight: &Flight) -> Option<Rc<[u8]>> {
        if flight.lane == Lane::Bulk {
            if !self.chance.chance(1, 4) {
                return None;
            }
            let mut altered = flight.bytes.to_vec();
            let bit = self.chance.below(altered.len() as u64 * 8);
            altered[(bit / 8) as usize] ^= 1 << (bit % 8);
            return Some(altered.into());
        }
        let Ok(Frame::NodeHello(mut hello)) = Frame::from_bytes(&flight.bytes) else { return None };
        let more = 1 + self.chance.below(20);
        match self.chance.below(3) {
            0 => hello.to_node.position += more,
            1 => hello.log.position += more,
            _ => {
                let shard = self.chance.index(hello.shards.len().max(1));
                hello.shards.get_mut(shard)?.cursor.position += more;
            }
        }
        Some(Frame::NodeHello(hello).to_bytes().into())
    }

    /// While frames are replayed, some come again, and some of an earlier connection come as well.
    fn replay(&mut self, link: u64, flight: &Flight) {
        let Some(connection) = self.connections.get(&link) else { return };
        let site = connection.site;
        let building = self.sites[site].building;
        if flight.way == Way::Down
            && self.sites[site].old_frames.len() < OLD_FRAMES_MAX
            && let Ok(frame) = Frame::from_bytes(&flight.bytes)
            && self.chance.chance(1, 16)
        {
            self.sites[site].old_frames.push((link, frame));
        }
        if self.buildings[building].replaying == 0 {
            return;
        }
        if self.chance.chance(1, 3) {
            self.fault_seen(building, "replayed");
            self.reached(Coverage::DuplicateFrame);
            let frame = Frame::from_bytes(&flight.bytes);
            let (site_or, way) = (site, flight.way);
            if let Ok(frame) = frame {
                match way {
                    Way::Up => self.tell_centre(CentreMessage::Frame(link, frame)),
                    Way::Down => self.tell_node(site_or, NodeMessage::Frame(link, frame)),
                }
            }
        }
        if self.chance.chance(1, 6)
            && let Some((old, frame)) = self.chance.pick(&self.sites[site].old_frames).cloned()
            && old != link
        {
            self.tell_node(site, NodeMessage::Frame(old, frame));
        }
    }

    /// An end's reader met something that is not this protocol: the shell closes the connection and tells its core.
    fn reader_ended(&mut self, link: u64, end: End) {
        match end {
            End::Node => self.node_closes(link, "not this protocol"),
            End::Centre => {
                if let Some(takes) = self.centre.links.get_mut(&link) {
                    *takes = false;
                }
                self.centre_closes(link, "not this protocol");
            }
        }
    }

    /// The node's shell closes a connection: its core hears that it is gone, the centre when word of it comes.
    pub(super) fn node_closes(&mut self, link: u64, _reason: &str) {
        let Some(connection) = self.connections.get_mut(&link) else { return };
        if !connection.node_end {
            return;
        }
        connection.node_end = false;
        let site = connection.site;
        let quality = self.quality(self.sites[site].building);
        let at = self.now + quality.latency_us * 1_000;
        self.at(at, Event::Closed(link, End::Centre));
        self.orphan(link, End::Centre);
        self.node_lost(site, link);
    }

    /// The centre's shell closes a connection, once what was said before is there.
    pub(super) fn centre_closes(&mut self, link: u64, _reason: &str) {
        let Some(connection) = self.connections.get_mut(&link) else { return };
        if !connection.centre_end {
            return;
        }
        connection.centre_end = false;
        let quality = self.quality(self.sites[self.connections[&link].site].building);
        let at = self.connections[&link].drained_ns(Way::Down).max(self.now + quality.latency_us * 1_000) + 1;
        self.at(at, Event::Closed(link, End::Node));
        self.orphan(link, End::Node);
        self.tell_centre(CentreMessage::LinkDown(link));
    }

    /// An end hears that the other one has closed.
    pub(super) fn heard_close(&mut self, link: u64, end: End) {
        let Some(connection) = self.connections.get(&link) else { return };
        if self.is_cut(connection.site) {
            return;
        }
        self.end_noticed(link, end);
    }

    pub(super) fn give_up(&mut self, link: u64, end: End, breaks: u32) {
        if self.connections.get(&link).is_some_and(|connection| connection.breaks == breaks) {
            self.end_noticed(link, end);
        }
    }

    /// An end knows that its connection is gone, and tells its core.
    fn end_noticed(&mut self, link: u64, end: End) {
        let Some(connection) = self.connections.get_mut(&link) else { return };
        let site = connection.site;
        match end {
            End::Centre if connection.centre_end => {
                connection.centre_end = false;
                self.audit.say(self.now, || format!("centre: link {link} is gone"));
                self.tell_centre(CentreMessage::LinkDown(link));
                self.orphan(link, End::Node);
            }
            End::Node if connection.node_end => {
                connection.node_end = false;
                self.audit.say(self.now, || format!("{}: link {link} is gone", self.site_name(site)));
                self.orphan(link, End::Centre);
                self.node_lost(site, link);
            }
            _ => {}
        }
    }

    fn node_lost(&mut self, site: usize, link: u64) {
        let ms = self.now_ms();
        self.mark_link(site, ms, false);
        self.tell_node(site, NodeMessage::LinkDown(link));
        self.connect_again(site);
    }

    /// An end that vanished without a word: nobody tells its core, since that is gone as well.
    fn end_gone(&mut self, link: u64, end: End) {
        let Some(connection) = self.connections.get_mut(&link) else { return };
        let (other, alive) = match end {
            End::Centre => (End::Node, std::mem::replace(&mut connection.centre_end, false)),
            End::Node => (End::Centre, std::mem::replace(&mut connection.node_end, false)),
        };
        if alive {
            self.orphan(link, other);
        }
    }

    pub(super) fn drop_ends(&mut self, which: impl Fn(&Connection) -> bool, end: End) {
        let links = self.connections.iter().filter(|(_, connection)| which(connection));
        let links: Vec<u64> = links.map(|(link, _)| *link).collect();
        for link in links {
            if end == End::Node {
                let (site, ms) = (self.connections[&link].site, self.now_ms());
                self.mark_link(site, ms, false);
            }
            self.end_gone(link, end);
        }
    }

    /// One end of a connection has no other end any more: it hears nothing until its idle timeout.
    fn orphan(&mut self, link: u64, end: End) {
        let Some(connection) = self.connections.get(&link) else { return };
        if !connection.node_end && !connection.centre_end {
            self.connections.remove(&link);
            return;
        }
        let breaks = connection.breaks;
        self.plan_give_up(link, end, breaks);
    }

    fn plan_give_up(&mut self, link: u64, end: End, breaks: u32) {
        // The last word came at most a keep-alive ago.
        let idle = self.plan.timing.idle_timeout_ms * MS;
        let at = self.now + idle - self.chance.below(idle / 3 + 1);
        self.at(at, Event::GiveUp(link, end, breaks));
    }

    /// Nothing passes to or from a building any more.
    pub(super) fn break_path(&mut self, building: usize) {
        self.buildings[building].cuts += 1;
        if self.buildings[building].cuts > 1 {
            return;
        }
        let here = self
            .connections
            .iter_mut()
            .filter(|(_, connection)| self.sites[connection.site].building == building);
        let mut broken = Vec::new();
        for (link, connection) in here {
            connection.silent_since = Some(self.now);
            connection.breaks += 1;
            broken.push((*link, connection.breaks, connection.node_end, connection.centre_end));
        }
        for (link, breaks, node_end, centre_end) in broken {
            if node_end {
                self.plan_give_up(link, End::Node, breaks);
            }
            if centre_end {
                self.plan_give_up(link, End::Centre, breaks);
            }
        }
    }

    /// It passes again. What waited arrives late, where its receiver has not given up.
    pub(super) fn mend_path(&mut self, building: usize) {
        self.buildings[building].cuts -= 1;
        if self.buildings[building].cuts > 0 {
            return;
        }
        let quality = self.quality(building);
        let links: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| self.sites[connection.site].building == building)
            .map(|(link, _)| *link)
            .collect();
        for link in links {
            let Some(connection) = self.connections.get_mut(&link) else { continue };
            connection.breaks += 1;
            let silent_ns = connection.silent_since.take().map_or(0, |since| self.now - since);
            let held: Vec<Flight> = connection.held.drain(..).collect();
            let (node_end, centre_end) = (connection.node_end, connection.centre_end);
            // Whoever sends again does so ever more rarely: up to half of the silence later.
            let mut at =
                self.now + quality.latency_us * 1_000 + self.chance.below(silent_ns / 2 + 1).min(2_000 * MS);
            for flight in held {
                // A sender that is gone does not send again.
                if self.connections.get(&link).is_some_and(|connection| connection.sending(flight.way)) {
                    at += 1;
                    self.at(at, Event::Arrive(link, flight));
                }
            }
            if node_end && !centre_end {
                self.orphan(link, End::Node);
            }
            if centre_end && !node_end {
                self.orphan(link, End::Centre);
            }
        }
        for site in 0..self.sites.len() {
            if self.sites[site].building == building {
                self.kick(site);
            }
        }
    }
}

fn brief(frame: &Frame) -> String {
    match frame {
        Frame::Entries(entries) => {
            format!("entries {} {}+{}", entries.log, entries.first, entries.records.len())
        }
        other => {
            let mut text = format!("{other:?}");
            if let Some((end, _)) = text.char_indices().nth(200) {
                text.truncate(end);
            }
            text
        }
    }
}
