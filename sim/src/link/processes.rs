//! Processes and disks of a [`World`]: started, killed, cut, copied.

use anyhow::{Context, Result};
use feiqian_node::core::NodeCore;
use feiqian_node::io as node_io;
use feiqian_reconcile::core::ReconcileCore;

use super::{Notice, Site, World};
use crate::vfs::{Disk, Image};

/// Changes in an account's document before the centre begins it anew: so few that it often does, and that some still meet in one.
const DOCUMENT_CHANGES_MAX: u64 = 2;

impl World {
    /// Starts a building's process (again).
    ///
    /// # Errors
    /// Where the core does not open.
    pub fn start(&mut self, site: usize) -> Result<()> {
        let settings = node_io::Settings { ask_deadline_ms: self.setup.ask_deadline_ms };
        let now_ms = self.now_ms;
        let site = &mut self.sites[site];
        let connection = if self.setup.lowered_sync {
            site.disk.open_lowered("node.db")?
        } else {
            site.disk.open("node.db")?
        };
        site.core =
            Some(NodeCore::open(connection, site.identity.clone(), settings).context("opening a node")?);
        site.reader = None;
        site.opened_at = now_ms;
        Ok(())
    }

    /// Starts the centre's process (again).
    ///
    /// # Errors
    /// Where the core does not open.
    pub fn start_centre(&mut self) -> Result<()> {
        let connection = self.centre.disk.open("centre.db")?;
        let identity = self.centre.identity.clone();
        let mut core = ReconcileCore::open(connection, identity).context("opening the centre")?;
        core.renew_documents_after(DOCUMENT_CHANGES_MAX);
        self.centre.core = Some(core);
        self.centre.reader = None;
        self.centre.opened_at = self.now_ms;
        Ok(())
    }

    /// Kills a building's process; its disk keeps what was written.
    ///
    /// # Errors
    /// What the centre meets when it hears of it.
    pub fn crash(&mut self, site: usize) -> Result<()> {
        self.sites[site].disk.kill();
        self.node_died(site)
    }

    /// Cuts a building's power; its disk keeps what was synced.
    ///
    /// # Errors
    /// What the centre meets when it hears of it.
    pub fn power_cut(&mut self, site: usize, seed: u64) -> Result<()> {
        self.sites[site].disk.power_cut(seed);
        self.node_died(site)
    }

    /// Kills the centre's process.
    ///
    /// # Errors
    /// What the nodes meet when they hear of it.
    pub fn crash_centre(&mut self) -> Result<()> {
        self.centre.disk.kill();
        self.centre_died()
    }

    /// Cuts the centre's power.
    ///
    /// # Errors
    /// What the nodes meet when they hear of it.
    pub fn power_cut_centre(&mut self, seed: u64) -> Result<()> {
        self.centre.disk.power_cut(seed);
        self.centre_died()
    }

    pub(super) fn node_died(&mut self, site: usize) -> Result<()> {
        self.sites[site].core = None;
        self.sites[site].reader = None;
        self.sites[site].believes = None;
        self.model.forget_waiting(site);
        self.cut(site, Notice::Centre)
    }

    pub(super) fn centre_died(&mut self) -> Result<()> {
        self.centre.core = None;
        self.centre.reader = None;
        for site in 0..self.sites.len() {
            self.cut(site, Notice::Node)?;
        }
        Ok(())
    }

    /// A copy of a building's disk as it is.
    pub fn image(&self, site: usize) -> Image {
        self.sites[site].disk.image()
    }

    /// Puts an older copy of its disk into a building that is down, and starts it.
    ///
    /// # Errors
    /// Where the core does not open.
    pub fn restore(&mut self, site: usize, image: &Image) -> Result<()> {
        self.crash(site)?;
        self.sites[site].disk.restore(image);
        self.model.copied();
        self.start(site)
    }

    /// A copy of the centre's disk as it is.
    pub fn centre_image(&self) -> Image {
        self.centre.disk.image()
    }

    /// Puts an older copy of its disk into the centre, and starts it; where `declared`, as one that was restored.
    ///
    /// # Errors
    /// Where the core does not open.
    pub fn restore_centre(&mut self, image: &Image, declared: bool) -> Result<()> {
        self.crash_centre()?;
        self.centre.disk.restore(image);
        self.start_centre()?;
        match &mut self.centre.core {
            Some(core) if declared => Ok(core.restored()?),
            _ => Ok(()),
        }
    }

    /// Starts a second process of the same building on a copy of its disk; returns its site.
    ///
    /// # Errors
    /// Where the core does not open.
    pub fn clone_site(&mut self, site: usize, image: &Image) -> Result<usize> {
        self.model.copied();
        let (building, identity) = (self.sites[site].building, self.sites[site].identity.clone());
        self.add_site(building, identity, Disk::from_image(image))
    }

    /// Starts a process with an identity from [`World::enrol`] on a disk; returns its site.
    ///
    /// # Errors
    /// Where the core does not open.
    pub fn add_site(&mut self, building: u16, identity: node_io::Identity, disk: Disk) -> Result<usize> {
        self.sites.push(Site {
            building,
            identity,
            disk,
            skew_ms: 0,
            expired: false,
            core: None,
            reader: None,
            opened_at: 0,
            wire: None,
            believes: None,
        });
        let site = self.sites.len() - 1;
        self.start(site)?;
        Ok(site)
    }
}
