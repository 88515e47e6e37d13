//! Faults: begun, struck, ended. A fault counts once it has really struck.

use std::collections::BTreeMap;

use anyhow::Result;
use feiqian_reconcile::io as centre_io;

use super::hosts::{Site, Trust};
use super::{Event, MS, World, forger};
use crate::outcome::FaultMark;
use crate::plan::{FaultKind, Host};
use crate::promises::Coverage;
use crate::vfs::{Disk, Image};

/// How a fault of the plan stands.
#[derive(Debug, Default)]
pub(super) struct State {
    begun: bool,
    struck: bool,
    ended: bool,
    /// A copy of a disk that was taken when it began, and whose.
    image: Option<(Copied, Image)>,
    /// The process that it brought up.
    brought: Option<usize>,
}

/// Whose disk was copied.
#[derive(Debug)]
enum Copied {
    Centre {
        /// As [`super::hosts::Centre::irrevocable`].
        irrevocable: u64,
        /// As [`World::confirmed`].
        confirmed: BTreeMap<usize, Option<usize>>,
    },
    Site(usize),
}

impl World<'_> {
    /// A fault has an effect.
    pub(super) fn struck(&mut self, index: usize) {
        if std::mem::replace(&mut self.faults[index].struck, true) {
            return;
        }
        let plan = self.plan;
        let fault = &plan.faults[index];
        *self.outcome.faults.entry(fault.kind.name().to_owned()).or_default() += 1;
        let from_ms = self.now_ms();
        self.outcome.timeline.faults.push(FaultMark {
            from_ms,
            to_ms: from_ms.max(fault.at_ms + fault.for_ms).min(plan.timing.length_ms),
            kind: fault.kind.name().to_owned(),
            place: self.place(&fault.kind),
        });
    }

    /// The fault in force at a building that frames meet.
    pub(super) fn fault_seen(&mut self, building: usize, name: &str) {
        let in_force = |(index, fault): (usize, &crate::plan::Fault)| {
            let of = match fault.kind {
                FaultKind::Replayed { building } | FaultKind::Forged { building, .. } => building,
                _ => return None,
            };
            let state = &self.faults[index];
            (of == building && fault.kind.name() == name && state.begun && !state.ended).then_some(index)
        };
        if let Some(index) = self.plan.faults.iter().enumerate().find_map(in_force) {
            self.struck(index);
        }
    }

    /// True once the centre was put back from an older copy.
    pub(super) fn centre_was_restored(&self) -> bool {
        let restores =
            |fault: &crate::plan::Fault| matches!(fault.kind, FaultKind::StaleBackup { host: Host::Centre });
        self.plan.faults.iter().zip(&self.faults).any(|(fault, state)| restores(fault) && state.struck)
    }

    /// True from a fault's beginning to its end.
    pub(super) fn is_in_force(&self, index: usize) -> bool {
        self.faults[index].begun && !self.faults[index].ended && !self.healed
    }

    fn place(&self, kind: &FaultKind) -> String {
        let name = |index: &usize| self.plan.buildings[*index].name.to_string();
        match kind {
            FaultKind::Partition { buildings } | FaultKind::Link { buildings, .. } => {
                buildings.iter().map(name).collect::<Vec<_>>().join(" ")
            }
            FaultKind::PowerCut { host, .. }
            | FaultKind::Crash { host, .. }
            | FaultKind::Restart { host }
            | FaultKind::DiskFull { host, .. }
            | FaultKind::Clock { host, .. }
            | FaultKind::StaleBackup { host } => self.plan.host_name(*host).to_owned(),
            FaultKind::LyingDisk { building }
            | FaultKind::BitRot { building, .. }
            | FaultKind::Clone { building }
            | FaultKind::Retire { building, .. }
            | FaultKind::Destroyed { building }
            | FaultKind::Replayed { building }
            | FaultKind::Revoked { building }
            | FaultKind::Compromised { building }
            | FaultKind::Forged { building, .. } => name(building),
        }
    }

    fn site_of(&self, building: usize) -> usize {
        self.buildings[building].site
    }

    /// True while the disk of a host may be full.
    pub(super) fn is_disk_full(&self, host: Host) -> bool {
        let here = match host {
            Host::Centre => Host::Centre,
            Host::Node(site) => Host::Node(self.sites[site].building),
        };
        let full = |(fault, state): (&crate::plan::Fault, &State)| {
            matches!(fault.kind, FaultKind::DiskFull { host, .. } if host == here)
                && state.begun
                && !state.ended
        };
        self.plan.faults.iter().zip(&self.faults).any(full)
    }

    pub(super) fn begin_fault(&mut self, index: usize) -> Result<()> {
        if self.healed || self.faults[index].begun {
            return Ok(());
        }
        self.faults[index].begun = true;
        let plan = self.plan;
        let fault = &plan.faults[index];
        self.audit.event(self.now, 13, index as u64);
        self.audit.say(self.now, || format!("fault: {:?} for {} ms", fault.kind, fault.for_ms));
        let down_ms = fault.for_ms.max(1);
        match &fault.kind {
            FaultKind::Partition { buildings } => {
                buildings.iter().for_each(|building| self.break_path(*building));
                self.struck(index);
            }
            FaultKind::Link { buildings, quality } => {
                buildings.iter().for_each(|building| self.buildings[*building].quality = Some(*quality));
                self.struck(index);
            }
            FaultKind::PowerCut { host, after } => self.end_host(index, *host, *after, true, down_ms),
            FaultKind::Crash { host, after } => self.end_host(index, *host, *after, false, down_ms),
            FaultKind::Restart { host } => self.restart(index, *host, down_ms),
            FaultKind::DiskFull { host, room } => {
                let disk = match host {
                    Host::Centre => &self.centre.disk,
                    Host::Node(building) => &self.sites[self.site_of(*building)].disk,
                };
                disk.set_capacity(Some(disk.image().bytes() + room));
                self.struck(index);
            }
            FaultKind::LyingDisk { building } => {
                let site = self.site_of(*building);
                if self.sites[site].trust == Trust::Sound && !self.sites[site].gone {
                    self.sites[site].disk.ignore_syncs(true);
                    self.faults[index].brought = Some(site);
                }
            }
            FaultKind::BitRot { building, bit } => self.rot(index, *building, *bit, down_ms)?,
            FaultKind::Clock { host, wrong } => {
                let now = self.now;
                self.bounds.wrong_clocks = true;
                match host {
                    Host::Centre => {
                        self.bounds.wrong_centre_clock = true;
                        self.centre.clock.spoil(now, *wrong);
                    }
                    Host::Node(building) => {
                        let site = self.site_of(*building);
                        self.sites[site].clock.spoil(now, *wrong);
                    }
                }
                self.struck(index);
            }
            FaultKind::StaleBackup { host: Host::Node(building) } | FaultKind::Clone { building } => {
                let site = self.site_of(*building);
                if !self.sites[site].gone {
                    self.note_copy(site)?;
                    self.faults[index].image = Some((Copied::Site(site), self.sites[site].disk.image()));
                }
            }
            FaultKind::StaleBackup { host: Host::Centre } => {
                if !self.is_returning()? {
                    let (irrevocable, confirmed) = (self.centre.irrevocable, self.confirmed.clone());
                    let copied = Copied::Centre { irrevocable, confirmed };
                    self.faults[index].image = Some((copied, self.centre.disk.image()));
                }
            }
            FaultKind::Retire { building, force } => {
                self.retire(*building, *force)?;
                self.struck(index);
            }
            FaultKind::Destroyed { building } => {
                let site = self.site_of(*building);
                if !self.sites[site].gone && self.may_lose_disk()? {
                    self.note_copy(site)?;
                    self.lose_unacknowledged(site)?;
                    self.sites[site].disk.kill();
                    self.node_gone(site);
                    self.sites[site].gone = true;
                    self.sites[site].trust = Trust::Broken;
                    self.struck(index);
                }
            }
            FaultKind::Replayed { building } => self.buildings[*building].replaying += 1,
            FaultKind::Forged { building, up } => {
                self.buildings[*building].forging += 1;
                self.buildings[*building].forging_up += u32::from(*up);
            }
            FaultKind::Revoked { building } => self.revoke(index, *building)?,
            FaultKind::Compromised { .. } => self.forger_step(forger::Step::TakeOver(index))?,
        }
        self.at(self.now + fault.for_ms * MS, Event::FaultEnd(index));
        Ok(())
    }

    /// A host ends at its n-th change of the disk from here on, or at once.
    fn end_host(&mut self, index: usize, host: Host, after: u64, power: bool, down_ms: u64) {
        let seed = self.chance.draw();
        let (disk, is_up, is_armed) = match host {
            Host::Centre => {
                (self.centre.disk.clone(), self.centre.core.is_some(), self.centre.armed.is_some())
            }
            Host::Node(building) => {
                let site = &self.sites[self.site_of(building)];
                (site.disk.clone(), site.core.is_some(), site.armed.is_some())
            }
        };
        if !is_up || is_armed {
            return;
        }
        if after > 0 {
            if power {
                disk.power_cut_after(after, seed)
            } else {
                disk.kill_after(after)
            }
            match host {
                Host::Centre => self.centre.armed = Some((index, down_ms)),
                Host::Node(building) => {
                    let site = self.site_of(building);
                    self.sites[site].armed = Some((index, down_ms));
                }
            }
            return;
        }
        if power {
            disk.power_cut(seed)
        } else {
            disk.kill()
        }
        self.struck(index);
        match host {
            Host::Centre => {
                self.centre_gone();
                let life = self.centre.life;
                self.after_ms(down_ms, Event::StartCentre(life));
            }
            Host::Node(building) => {
                let site = self.site_of(building);
                self.node_gone(site);
                let life = self.sites[site].life;
                self.after_ms(down_ms, Event::StartNode(site, life));
            }
        }
    }

    /// A process is stopped in order: what waits is stepped, connections are closed, then it ends.
    fn restart(&mut self, index: usize, host: Host, down_ms: u64) {
        match host {
            Host::Centre => {
                if self.centre.core.is_none() || self.centre.armed.is_some() {
                    return;
                }
                self.struck(index);
                let links: Vec<u64> = self.centre.links.keys().copied().collect();
                for link in links {
                    self.centre_closes(link, "the centre is stopping");
                }
                self.centre_gone();
                let life = self.centre.life;
                self.after_ms(down_ms, Event::StartCentre(life));
            }
            Host::Node(building) => {
                let site = self.site_of(building);
                if self.sites[site].core.is_none() || self.sites[site].armed.is_some() {
                    return;
                }
                self.struck(index);
                if let Some(link) = self.sites[site].link {
                    self.node_closes(link, "the node stops");
                }
                self.node_gone(site);
                let life = self.sites[site].life;
                self.after_ms(down_ms, Event::StartNode(site, life));
            }
        }
    }

    /// A bit turns while the process is down; it is started again on what is left.
    fn rot(&mut self, index: usize, building: usize, bit: u64, down_ms: u64) -> Result<()> {
        let site = self.site_of(building);
        // It rots once: what such a disk held is known from then.
        let rotten = self.sites[site].trust == Trust::Broken;
        if rotten || self.sites[site].gone || self.sites[site].armed.is_some() || !self.may_lose_disk()? {
            return Ok(());
        }
        self.note_copy(site)?;
        self.lose_unacknowledged(site)?;
        self.sites[site].disk.kill();
        self.node_gone(site);
        if self.sites[site].disk.flip_bit("node.db", bit) {
            self.sites[site].trust = Trust::Broken;
            self.bounds.rotten = true;
            self.struck(index);
        }
        let life = self.sites[site].life;
        self.after_ms(down_ms, Event::StartNode(site, life));
        Ok(())
    }

    pub(super) fn end_fault(&mut self, index: usize) -> Result<()> {
        let state = &mut self.faults[index];
        if !state.begun || std::mem::replace(&mut state.ended, true) {
            return Ok(());
        }
        let plan = self.plan;
        let fault = &plan.faults[index];
        self.audit.say(self.now, || format!("end of fault: {:?}", fault.kind));
        match &fault.kind {
            FaultKind::Partition { buildings } => {
                buildings.iter().for_each(|building| self.mend_path(*building));
            }
            FaultKind::Link { buildings, .. } => {
                buildings.iter().for_each(|building| self.buildings[*building].quality = None);
            }
            FaultKind::PowerCut { host, .. } | FaultKind::Crash { host, .. } => self.disarm(index, *host),
            FaultKind::Restart { .. } | FaultKind::BitRot { .. } => {}
            FaultKind::DiskFull { host, .. } => match host {
                Host::Centre => self.centre.disk.set_capacity(None),
                Host::Node(building) => {
                    let here = self.sites.iter().filter(|site| site.building == *building);
                    here.for_each(|site| site.disk.set_capacity(None));
                }
            },
            FaultKind::LyingDisk { .. } => self.end_lie(index)?,
            FaultKind::Clock { host, .. } => match host {
                Host::Centre => self.centre.clock.repair(),
                Host::Node(building) => {
                    let here = self.sites.iter_mut().filter(|site| site.building == *building);
                    here.for_each(|site| site.clock.repair());
                }
            },
            FaultKind::StaleBackup { .. } => self.restore(index)?,
            FaultKind::Clone { building } => self.run_clone(index, *building)?,
            FaultKind::Retire { building, .. }
            | FaultKind::Destroyed { building }
            | FaultKind::Compromised { building }
            | FaultKind::Revoked { building } => {
                if self.faults[index].struck {
                    self.enrol_anew(*building)?;
                }
            }
            FaultKind::Replayed { building } => self.buildings[*building].replaying -= 1,
            FaultKind::Forged { building, up } => {
                self.buildings[*building].forging -= 1;
                // Whoever stood between them is gone, and their connection with him: what he made unrecognizable is sent again.
                let site = self.site_of(*building);
                if let Some(link) = self.sites[site].link {
                    self.node_closes(link, "the connection was reset");
                }
                self.buildings[*building].forging_up -= u32::from(*up);
            }
        }
        Ok(())
    }

    fn disarm(&mut self, index: usize, host: Host) {
        match host {
            Host::Centre => {
                if self.centre.armed.is_some_and(|(fault, _)| fault == index) {
                    self.centre.armed = None;
                    self.centre.disk.disarm();
                }
            }
            Host::Node(_) => {
                for site in &mut self.sites {
                    if site.armed.is_some_and(|(fault, _)| fault == index) {
                        site.armed = None;
                        site.disk.disarm();
                    }
                }
            }
        }
    }

    /// The power goes at a disk that has lied; what it holds afterwards may be anything that it ever said it had.
    fn end_lie(&mut self, index: usize) -> Result<()> {
        let Some(site) = self.faults[index].brought else { return Ok(()) };
        self.sites[site].disk.ignore_syncs(false);
        if self.sites[site].gone || self.sites[site].armed.is_some() || !self.may_lose_disk()? {
            return Ok(());
        }
        self.note_copy(site)?;
        self.lose_unacknowledged(site)?;
        let seed = self.chance.draw();
        self.sites[site].disk.power_cut(seed);
        self.sites[site].trust.copied();
        self.node_gone(site);
        self.struck(index);
        let life = self.sites[site].life;
        self.after_ms(1_000, Event::StartNode(site, life));
        Ok(())
    }

    /// A copy of a disk is put back in its place.
    fn restore(&mut self, index: usize) -> Result<()> {
        match self.faults[index].image.take() {
            Some((Copied::Centre { irrevocable, confirmed }, image)) => {
                self.restore_centre(index, irrevocable, &confirmed, &image);
                Ok(())
            }
            Some((Copied::Site(site), image)) => self.restore_site(index, site, &image),
            None => Ok(()),
        }
    }

    fn restore_site(&mut self, index: usize, site: usize, image: &Image) -> Result<()> {
        if self.sites[site].gone || self.sites[site].armed.is_some() || !self.may_lose_disk()? {
            return Ok(());
        }
        self.lose_unacknowledged(site)?;
        self.sites[site].disk.restore(image);
        self.sites[site].trust.copied();
        self.node_gone(site);
        self.note_shown_copy(site);
        self.struck(index);
        let life = self.sites[site].life;
        self.after_ms(1_000, Event::StartNode(site, life));
        Ok(())
    }

    /// Yesterday's copy of the centre's disk is put back, by an operator who says so. Nobody restores one from before
    /// something that no building could give back.
    fn restore_centre(
        &mut self,
        index: usize,
        irrevocable: u64,
        known: &BTreeMap<usize, Option<usize>>,
        image: &Image,
    ) {
        if irrevocable != self.centre.irrevocable || self.centre.armed.is_some() || self.healed {
            return;
        }
        self.centre.disk.restore(image);
        self.centre.restored = true;
        self.centre_gone();
        self.struck(index);
        self.reached(Coverage::CentreRestored);
        let life = self.centre.life;
        self.after_ms(1_000, Event::StartCentre(life));
        self.say_again_since(known);
    }

    /// Whether a building's disk may be lost now, which is then remembered. A centre that is taking back what it lacks needs
    /// all of them: two disasters at once are more than is promised.
    pub(super) fn may_lose_disk(&mut self) -> Result<bool> {
        if self.is_returning()? {
            return Ok(false);
        }
        self.centre.irrevocable += 1;
        Ok(true)
    }

    fn run_clone(&mut self, index: usize, building: usize) -> Result<()> {
        let Some((Copied::Site(site), image)) = self.faults[index].image.take() else { return Ok(()) };
        if self.healed || self.sites[site].gone || self.buildings[building].site != site {
            return Ok(());
        }
        if !self.may_lose_disk()? {
            return Ok(());
        }
        let clone = self.sites.len();
        let identity = self.sites[site].identity.clone();
        self.sites.push(Site::new(building, identity, Disk::from_image(&image)));
        self.sites[site].trust.copied();
        self.sites[clone].trust = self.sites[site].trust;
        // Terminals that change boxes ask no more about what they asked the other one.
        self.give_up_requests(site);
        self.lose_unacknowledged(site)?;
        self.buildings[building].clone = Some(clone);
        self.faults[index].brought = Some(clone);
        self.struck(index);
        self.start_node(clone);
        Ok(())
    }

    fn revoke(&mut self, index: usize, building: usize) -> Result<()> {
        let site = self.site_of(building);
        let node = self.plan.buildings[building].name.clone();
        let told = self.command(centre_io::Command::Revoke { node, enrolment: None });
        self.centre.irrevocable += 1;
        // A centre that is down is not told; whoever wanted it comes again another day.
        if matches!(told, Some(Ok(_))) {
            self.struck(index);
            self.reached(Coverage::Revoked);
            self.sites[site].revoked = true;
            self.distrust(site)?;
            self.sites[site].trust.copied();
        }
        Ok(())
    }

    /// What a site says is not what its disk holds, or nobody takes it any more: of what it is yet to send anything may be lost.
    pub(super) fn distrust(&mut self, site: usize) -> Result<()> {
        if !self.sites[site].may_lose {
            self.note_copy(site)?;
            self.lose_unacknowledged(site)?;
            self.sites[site].may_lose = true;
            self.sites[site].trust.altered();
        }
        Ok(())
    }

    /// What only this disk held may be lost from here on; its terminals ask no more about it.
    pub(super) fn lose_unacknowledged(&mut self, site: usize) -> Result<()> {
        self.give_up_requests(site);
        let known = self.known_to_centre(site)?;
        for request in &mut self.ledger.requests {
            if request.site == site {
                request.may_be_lost = request.may_be_lost || !known.contains(request.sent.key());
            }
        }
        Ok(())
    }
}
