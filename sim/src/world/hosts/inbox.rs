//! What waits before a host, and when it gets round to it.

use feiqian_node::core::NodeCore;
use feiqian_node::io as node_io;
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::LogId;
use feiqian_reconcile::io as centre_io;

use super::Site;
use crate::plan::INSTITUTION;
use crate::world::{Event, MS, World};

/// What waits before a node.
pub(in crate::world) enum NodeMessage {
    Ask(node_io::Input),
    Frame(u64, Frame),
    LinkDown(u64),
    LinkUp(u64),
}

/// What waits before the centre.
pub(in crate::world) enum CentreMessage {
    Command(centre_io::Ticket, centre_io::Command),
    Frame(u64, Frame),
    LinkDown(u64),
    LinkUp(u64),
}

impl Site {
    pub(super) fn to_node_log(&self) -> LogId {
        LogId::to_node(INSTITUTION, self.identity.node)
    }

    /// True where somebody waits for what this message brings.
    fn is_urgent(&self, message: &NodeMessage) -> bool {
        match message {
            NodeMessage::Ask(_) | NodeMessage::LinkDown(_) | NodeMessage::LinkUp(_) => true,
            NodeMessage::Frame(_, Frame::Entries(entries)) => {
                entries.log == self.to_node_log() || !self.waiting.is_empty()
            }
            NodeMessage::Frame(_, Frame::Ack(_)) => false,
            NodeMessage::Frame(..) => true,
        }
    }
}

/// True where somebody waits for what this message brings. `asked`: something waits at the centre for entries to come.
pub(super) fn is_urgent_for_centre(message: &CentreMessage, asked: bool) -> bool {
    match message {
        CentreMessage::Command(..) | CentreMessage::LinkDown(_) | CentreMessage::LinkUp(_) => true,
        CentreMessage::Frame(_, frame) => match frame {
            // An anchor's acknowledgement lets rights be granted.
            Frame::Ack(ack) => ack.log.as_to_node().is_some(),
            Frame::Entries(_) => asked,
            Frame::Mark(_) => false,
            _ => true,
        },
    }
}

impl World<'_> {
    /// Hands a message to a node's queue.
    pub(in crate::world) fn tell_node(&mut self, site: usize, message: NodeMessage) {
        let urgent = self.sites[site].is_urgent(&message);
        self.sites[site].inbox.push_back(message);
        self.attend_node(site, urgent);
    }

    /// Has a node step: at once, or when it gets round to it.
    fn attend_node(&mut self, site: usize, urgent: bool) {
        let host = &self.sites[site];
        if host.core.is_none() {
            return;
        }
        let at = if urgent { self.now } else { self.now + self.attend_ms * MS };
        self.schedule_node(site, at.max(host.busy_until + 1));
    }

    fn schedule_node(&mut self, site: usize, at: u64) {
        let host = &mut self.sites[site];
        if host.scheduled.is_some_and(|(planned, _)| planned <= at) {
            return;
        }
        let number = self.scheduled + 1;
        host.scheduled = Some((at, number));
        let life = host.life;
        self.at(at, Event::StepNode(site, life, number));
    }

    /// Hands a message to the centre's queue.
    pub(in crate::world) fn tell_centre(&mut self, message: CentreMessage) {
        let asked = self.centre.core.as_ref().is_some_and(|core| core.next_timer().is_some());
        let urgent = is_urgent_for_centre(&message, asked);
        self.centre.inbox.push_back(message);
        if self.centre.core.is_some() {
            let at = if urgent { self.now } else { self.now + self.attend_ms * MS };
            self.schedule_centre(at.max(self.centre.busy_until + 1));
        }
    }

    pub(in crate::world) fn schedule_centre(&mut self, at: u64) {
        if self.centre.scheduled.is_some_and(|(planned, _)| planned <= at) {
            return;
        }
        let number = self.scheduled + 1;
        self.centre.scheduled = Some((at, number));
        let life = self.centre.life;
        self.at(at, Event::StepCentre(life, number));
    }

    /// When a node steps next, by what waits and by its timer.
    pub(super) fn plan_node_step(&mut self, site: usize) {
        let host = &self.sites[site];
        let next = host.busy_until + 1;
        if let Some(urgent) = host.inbox.iter().map(|message| host.is_urgent(message)).max() {
            let at = if urgent { next } else { next.max(self.now + self.attend_ms * MS) };
            self.schedule_node(site, at);
        }
        let host = &self.sites[site];
        if let Some(due) = host.core.as_ref().and_then(NodeCore::next_timer) {
            let due = host.opened + due * MS;
            let at = if host.waiting.is_empty() { due.max(self.now + self.attend_ms * MS) } else { due };
            self.schedule_node(site, at.max(next));
        }
    }

    /// Has everybody look at what waits for him, by how quickly that is attended to from now on.
    pub(in crate::world) fn attend_all(&mut self) {
        for site in 0..self.sites.len() {
            if self.sites[site].core.is_some() {
                self.plan_node_step(site);
            }
        }
        if self.centre.core.is_some() && !self.centre.inbox.is_empty() {
            let at = (self.now + self.attend_ms * MS).max(self.centre.busy_until + 1);
            self.schedule_centre(at);
        }
    }
}
