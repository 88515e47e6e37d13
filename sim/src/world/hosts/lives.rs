//! The lives of processes: they are started, fail, are killed, and come again on what their disks hold.

use feiqian_node::core::NodeCore;
use feiqian_node::io as node_io;
use feiqian_reconcile::core::ReconcileCore;

use super::{REOPEN_PAUSE_MS, Trust};
use crate::plan::Host;
use crate::promises::{Coverage, Promise};
use crate::world::{End, Event, World};

impl World<'_> {
    /// Starts a node's process, or opens its core again.
    pub(in crate::world) fn start_node(&mut self, site: usize) {
        let now = self.now;
        let settings = node_io::Settings { ask_deadline_ms: self.plan.timing.ask_deadline_ms };
        let host = &mut self.sites[site];
        if host.core.is_some() || host.gone {
            return;
        }
        host.reader = None;
        let endings = host.disk.counters().endings;
        let opened =
            if self.lowered_sync { host.disk.open_lowered("node.db") } else { host.disk.open("node.db") };
        let opened = opened
            .map_err(anyhow::Error::from)
            .and_then(|connection| Ok(NodeCore::open(connection, host.identity.clone(), settings)?));
        host.life += 1;
        if host.disk.counters().endings != endings {
            return self.node_ended_as_planned(site);
        }
        match opened {
            Ok(core) => {
                host.core = Some(core);
                host.opened = now;
                host.busy_until = now;
                self.audit.event(now, 3, site as u64);
                self.audit.say(now, || format!("{}: started", self.site_name(site)));
                let ms = self.now_ms();
                self.mark_process(site, ms, true);
                self.kick(site);
            }
            Err(error) => self.node_not_opened(site, &error),
        }
    }

    pub(super) fn node_not_opened(&mut self, site: usize, error: &anyhow::Error) {
        self.audit.say(self.now, || format!("{}: cannot be opened: {error:#}", self.site_name(site)));
        if self.sites[site].trust != Trust::Sound {
            // What it holds makes no sense any more: the operator puts another box in its place.
            self.sites[site].trust = Trust::Broken;
            return;
        }
        if !self.is_disk_full(Host::Node(site)) {
            let name = self.site_name(site);
            self.violated(Promise::Sound, format!("{name} cannot be opened: {error:#}"));
        }
        let life = self.sites[site].life;
        self.after_ms(2_000, Event::StartNode(site, life));
    }

    /// A step failed: the shell closes the link, forgets who waits, and opens the core again after a pause.
    pub(super) fn node_step_failed(&mut self, site: usize, error: &anyhow::Error) {
        self.audit.say(self.now, || format!("{}: a step failed: {error:#}", self.site_name(site)));
        self.reached(Coverage::CoreReopened);
        let broken = self.sites[site].trust != Trust::Sound;
        let full = self.is_disk_full(Host::Node(site));
        if full && !self.sites[site].waiting.is_empty() {
            self.reached(Coverage::DiskFull);
        }
        if !broken && !full {
            let name = self.site_name(site);
            self.violated(Promise::Sound, format!("a step of {name} failed: {error:#}"));
        }
        if let Some(link) = self.sites[site].link {
            self.node_closes(link, "the node's core is opened again");
        }
        self.end_node_process(site);
        let host = &mut self.sites[site];
        let pause = host.reopen_pause_ms;
        host.reopen_pause_ms = (pause * 2).min(REOPEN_PAUSE_MS.1);
        let life = host.life;
        self.after_ms(pause, Event::StartNode(site, life));
    }

    /// Forgets everything that only the process held.
    pub(super) fn end_node_process(&mut self, site: usize) {
        let ms = self.now_ms();
        let host = &mut self.sites[site];
        // Whoever closes the database last writes the log back: that must not depend on whether somebody has looked at it.
        host.reader = None;
        let ran = host.core.take().is_some();
        host.life += 1;
        host.scheduled = None;
        host.inbox.clear();
        host.waiting.clear();
        host.link = None;
        if ran {
            self.mark_process(site, ms, false);
        }
    }

    /// The process is gone without a word: its peer hears nothing any more.
    pub(in crate::world) fn node_gone(&mut self, site: usize) {
        self.audit.event(self.now, 4, site as u64);
        self.audit.say(self.now, || format!("{}: gone", self.site_name(site)));
        self.end_node_process(site);
        self.drop_ends(|connection| connection.site == site, End::Node);
    }

    pub(super) fn node_ended_as_planned(&mut self, site: usize) {
        self.node_gone(site);
        match self.sites[site].armed.take() {
            Some((fault, down_ms)) => {
                self.struck(fault);
                self.reached(Coverage::CutMidCommit);
                let life = self.sites[site].life;
                self.after_ms(down_ms, Event::StartNode(site, life));
            }
            None => self.violated(Promise::Sound, format!("{} ended by nothing", self.site_name(site))),
        }
    }

    /// Starts the centre's process.
    pub(in crate::world) fn start_centre(&mut self) {
        let now = self.now;
        let purses = (!self.purses.is_empty()).then(|| std::sync::Arc::new(self.purses.of_centre()));
        let document_changes_max = self.plan.document_changes_max();
        let host = &mut self.centre;
        if host.core.is_some() {
            return;
        }
        host.reader = None;
        let endings = host.disk.counters().endings;
        let identity = host.identity.clone();
        let opened = host.disk.open("centre.db").map_err(anyhow::Error::from);
        let opened = opened.and_then(|connection| {
            let mut core = ReconcileCore::open(connection, identity)?;
            core.renew_documents_after(document_changes_max);
            if let Some(purses) = purses {
                core.serve_purses(purses);
            }
            if host.restored {
                core.restored()?;
            }
            Ok(core)
        });
        host.life += 1;
        if host.disk.counters().endings != endings {
            return self.centre_ended_as_planned();
        }
        match opened {
            Ok(core) => {
                host.core = Some(core);
                host.restored = false;
                host.opened = now;
                host.busy_until = now;
                self.audit.event(now, 5, 0);
                self.audit.say(now, || "centre: started".to_owned());
                for site in 0..self.sites.len() {
                    self.kick(site);
                }
            }
            Err(error) => {
                self.audit.say(now, || format!("centre: cannot be opened: {error:#}"));
                if !self.is_disk_full(Host::Centre) {
                    self.violated(Promise::Sound, format!("the centre cannot be opened: {error:#}"));
                }
                let life = self.centre.life;
                self.after_ms(2_000, Event::StartCentre(life));
            }
        }
    }

    pub(super) fn centre_step_failed(&mut self, error: &anyhow::Error) {
        self.audit.say(self.now, || format!("centre: a step failed: {error:#}"));
        self.reached(Coverage::CoreReopened);
        if !self.is_disk_full(Host::Centre) {
            self.violated(Promise::Sound, format!("a step of the centre failed: {error:#}"));
        }
        let links: Vec<u64> = self.centre.links.keys().copied().collect();
        for link in links {
            self.centre_closes(link, "the centre starts again from disk");
        }
        self.end_centre_process();
        let pause = self.centre.reopen_pause_ms;
        self.centre.reopen_pause_ms = (pause * 2).min(REOPEN_PAUSE_MS.1);
        let life = self.centre.life;
        self.after_ms(pause, Event::StartCentre(life));
    }

    pub(super) fn end_centre_process(&mut self) {
        let host = &mut self.centre;
        host.reader = None;
        host.core = None;
        host.life += 1;
        host.scheduled = None;
        host.inbox.clear();
        host.links.clear();
    }

    pub(in crate::world) fn centre_gone(&mut self) {
        self.audit.event(self.now, 6, 0);
        self.audit.say(self.now, || "centre: gone".to_owned());
        self.end_centre_process();
        self.drop_ends(|_| true, End::Centre);
    }

    pub(super) fn centre_ended_as_planned(&mut self) {
        self.centre_gone();
        match self.centre.armed.take() {
            Some((fault, down_ms)) => {
                self.struck(fault);
                self.reached(Coverage::CutMidCommit);
                let life = self.centre.life;
                self.after_ms(down_ms, Event::StartCentre(life));
            }
            None => self.violated(Promise::Sound, "the centre ended by nothing".to_owned()),
        }
    }
}
