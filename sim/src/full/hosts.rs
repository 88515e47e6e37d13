//! The hosts of a run: processes started, ended and missed, and what a run keeps of their machines.

use std::sync::Arc;
use std::time::Duration;

use feiqian_node::identity::NodeFiles;
use tokio::sync::mpsc;

use super::campus::Site;
use super::clock::HostClock;
use super::faults;
use super::process::News;
use super::run::{Run, Shared};
use crate::plan::Host;
use crate::promises::{Coverage, Promise};
use crate::vfs::Disk;
use crate::world::Trust;

/// How long a process that ended by itself is down before its host starts it again (`deploy/*.service`): node, centre.
const RESTART_MS: [u64; 2] = [1_000, 2_000];

/// A machine of a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum At {
    Centre,
    Site(usize),
}

/// What a run keeps of a site beside the machine.
#[derive(Clone, Debug)]
pub(super) struct Fate {
    /// The fault that a planned end belongs to, and for how long the host is down then.
    pub(super) armed: Option<(usize, u64)>,
    /// Starts of it so far: what was to be done to an earlier life is not done to a later one.
    pub(super) life: u64,
    /// True while its process is being stopped in order.
    pub(super) stopping: bool,
    /// When it was started last, in nanoseconds.
    pub(super) started_ns: u64,
}

impl Fate {
    pub(super) const fn new() -> Self {
        Self { armed: None, life: 0, stopping: false, started_ns: 0 }
    }
}

impl Run {
    pub(super) fn site_name(&self, site: usize) -> String {
        let host = &self.campus.sites[site];
        let name = &self.plan.buildings[host.building].name;
        format!("{name} (node {}, site {site})", host.files.identity.node)
    }

    /// Puts a machine into a building.
    pub(super) fn add_site(&mut self, building: usize, files: Arc<NodeFiles>, disk: Disk) -> usize {
        self.fates.push(Fate::new());
        self.seen.add(building, files.identity.clone(), disk.clone());
        self.campus.add_site(building, files, disk)
    }

    /// Starts a host's process, where it does not run.
    pub(super) fn start(&mut self, host: At) {
        if self.is_up(host) || self.is_gone(host) || self.fate(host).stopping {
            return;
        }
        let now_ns = self.time.now_ns();
        let fate = self.fate(host);
        fate.life += 1;
        fate.started_ns = now_ns;
        let started = match host {
            At::Centre => self.campus.start_centre(),
            At::Site(site) => self.campus.start_node(site),
        };
        let name = self.name(host);
        self.say(|_| format!("{name}: started"));
        self.mark_process(host, true);
        if let Err(error) = started {
            self.violated(Promise::Sound, format!("{name} cannot be started: {error:#}"));
        }
    }

    /// Ends a host's process at once; what becomes of its disk was said before.
    pub(super) fn end(&mut self, host: At) {
        let name = self.name(host);
        let ended = match host {
            At::Centre => self.campus.centre.process.take().is_some_and(|(_, process)| process.end()),
            At::Site(site) => {
                self.campus.sites[site].process.take().is_some_and(|(_, process)| process.end())
            }
        };
        // What was planned for its disk went with it.
        self.fate(host).armed = None;
        if ended {
            self.say(|_| format!("{name}: gone"));
            self.mark_process(host, false);
        }
    }

    pub(super) fn name(&self, host: At) -> String {
        match host {
            At::Centre => "centre".to_owned(),
            At::Site(site) => self.site_name(site),
        }
    }

    pub(super) fn fate(&mut self, host: At) -> &mut Fate {
        match host {
            At::Centre => &mut self.centre_fate,
            At::Site(site) => &mut self.fates[site],
        }
    }

    pub(super) fn disk(&self, host: At) -> Disk {
        match host {
            At::Centre => self.campus.centre.disk.clone(),
            At::Site(site) => self.campus.sites[site].disk.clone(),
        }
    }

    /// Where the plan's host is at present.
    pub(super) fn at(&self, host: Host) -> At {
        match host {
            Host::Centre => At::Centre,
            Host::Node(building) => At::Site(self.seen.in_service[building]),
        }
    }

    pub(super) fn clock(&self, host: At) -> &HostClock {
        match host {
            At::Centre => &self.campus.centre.clock,
            At::Site(site) => &self.campus.sites[site].clock,
        }
    }

    /// True where a host will not be started again.
    pub(super) fn is_gone(&self, host: At) -> bool {
        matches!(host, At::Site(site) if self.seen.sites[site].gone)
    }

    /// How far a host's disk can be trusted.
    pub(super) fn trust(&self, host: At) -> Trust {
        match host {
            At::Centre => Trust::Sound,
            At::Site(site) => self.seen.sites[site].trust,
        }
    }

    /// True where a host's process runs.
    pub(super) fn is_up(&self, host: At) -> bool {
        match host {
            At::Centre => self.campus.centre.process.is_some(),
            At::Site(site) => self.campus.sites[site].process.is_some(),
        }
    }

    /// True while the disk of a host may be full.
    pub(super) fn is_disk_full(&self, host: At) -> bool {
        self.full.iter().any(|(_, full)| *full == host)
    }

    /// An end that was planned by a fault does not come any more.
    pub(super) fn disarm(&mut self, fault: usize) {
        let hosts = std::iter::once(At::Centre).chain((0..self.fates.len()).map(At::Site));
        for host in hosts.collect::<Vec<_>>() {
            if self.fate(host).armed.is_some_and(|(armed, _)| armed == fault) {
                self.fate(host).armed = None;
                self.disk(host).disarm();
            }
        }
    }

    fn host_of(&self, number: u64) -> Option<At> {
        if self.campus.centre.process.as_ref().is_some_and(|(running, _)| *running == number) {
            return Some(At::Centre);
        }
        let site = |site: &Site| site.process.as_ref().is_some_and(|(running, _)| *running == number);
        self.campus.sites.iter().position(site).map(At::Site)
    }
}

/// Hears of processes that ended without being told to, or failed.
pub(super) async fn hear(run: Shared, mut news: mpsc::UnboundedReceiver<(u64, News)>) {
    while let Some((number, news)) = news.recv().await {
        let mut state = run.borrow_mut();
        // Of one that was stopped in order nobody asks.
        let Some(host) = state.host_of(number) else { continue };
        let name = state.name(host);
        if news == News::StepFailed {
            state.say(|_| format!("{name}: a step failed"));
            state.reached(Coverage::CoreReopened);
            faults::step_failed(&mut state, host);
            continue;
        }
        let armed = state.fate(host).armed.take();
        state.end(host);
        let after_ms = match (news, armed) {
            (News::DiskEnded, Some((fault, down_ms))) => {
                state.say(|_| format!("{name}: the planned end comes in a step"));
                state.struck(fault);
                state.reached(Coverage::CutMidCommit);
                down_ms
            }
            (_, armed) => {
                state.fate(host).armed = armed;
                state.say(|_| format!("{name}: ended by itself"));
                faults::not_opened(&mut state, host);
                RESTART_MS[usize::from(host == At::Centre)]
            }
        };
        drop(state);
        start_after(&run, host, after_ms);
    }
}

/// Starts a host's process after so long, unless somebody does it before.
pub(super) fn start_after(run: &Shared, host: At, after_ms: u64) {
    let run = run.clone();
    tokio::task::spawn_local(async move {
        let life = run.borrow_mut().fate(host).life;
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        let mut run = run.borrow_mut();
        if run.fate(host).life == life {
            run.start(host);
        }
    });
}
