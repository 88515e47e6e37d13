//! A run of another engine, looked at with the eyes of this one: the same books are gathered from its disks, and the same
//! promises held against them.
//!
//! Copies of the disks are read, so that looking changes nothing.

use std::collections::BTreeMap;

use anyhow::Result;
use feiqian_node::io as node_io;
use feiqian_protocol::ids::{AccountId, CardNumber, LogId};
use feiqian_protocol::money::Fen;
use feiqian_reconcile::io as centre_io;

use super::checks::Bounds;
use super::hosts::Site;
use super::{MS, Options, Trust, World};
use crate::link::tables::node_log;
use crate::outcome::Outcome;
use crate::plan::Plan;
use crate::promises::ledger::Ledger;
use crate::promises::{Coverage, Promise};
use crate::vfs::Disk;

/// What is looked at.
pub(crate) struct Observed {
    /// What people did and were told.
    pub(crate) ledger: Ledger,
    /// The nodes' machines.
    pub(crate) sites: Vec<ObservedSite>,
    /// Which of them is in service, by building.
    pub(crate) in_service: Vec<usize>,
    /// Who the centre is.
    pub(crate) centre: centre_io::Identity,
    /// The centre's disk.
    pub(crate) centre_disk: Disk,
    /// A disk holds what nobody wrote.
    pub(crate) rotten: bool,
    bounds: Bounds,
    now_ms: u64,
}

/// A node's machine.
pub(crate) struct ObservedSite {
    /// Its building.
    pub(crate) building: usize,
    /// Who it is.
    pub(crate) identity: node_io::Identity,
    /// Its disk.
    pub(crate) disk: Disk,
    /// How far that can be trusted.
    pub(crate) trust: Trust,
    /// True where it will not be started again.
    pub(crate) gone: bool,
    /// True where of what it is yet to send anything may be lost.
    pub(crate) may_lose: bool,
}

/// What was found at the end.
#[derive(Default)]
pub(crate) struct AtEnd {
    /// Broken promises.
    pub(crate) broken: Vec<(Promise, String)>,
    /// Rare paths that only the books show.
    pub(crate) coverage: Vec<(Coverage, u64)>,
    /// Entries in all logs.
    pub(crate) entries: u64,
    /// As [`Outcome::ledger`].
    pub(crate) ledger: String,
}

impl Observed {
    /// A centre, and nobody else yet.
    pub(crate) fn new(centre: centre_io::Identity, centre_disk: Disk) -> Self {
        centre_disk.audit();
        Self {
            ledger: Ledger::default(),
            sites: Vec::new(),
            in_service: Vec::new(),
            centre,
            centre_disk,
            rotten: false,
            bounds: Bounds::default(),
            now_ms: 0,
        }
    }

    /// Puts another machine into a building, in service unless it is a copy.
    pub(crate) fn add(&mut self, building: usize, identity: node_io::Identity, disk: Disk) {
        disk.audit();
        self.sites.push(ObservedSite {
            building,
            identity,
            disk,
            trust: Trust::Sound,
            gone: false,
            may_lose: false,
        });
    }

    /// The time of the run, for what the books are compared with.
    pub(crate) fn set_time(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    fn look<R>(&mut self, plan: &Plan, look: impl FnOnce(&mut World<'_>) -> R) -> R {
        let mut world = World::new(plan, Options::default());
        world.now = world.origin + self.now_ms * MS;
        world.centre.identity = self.centre.clone();
        world.centre.disk = self.centre_disk.clone();
        for (building, site) in self.in_service.iter().enumerate() {
            world.buildings[building].site = *site;
        }
        for site in &self.sites {
            let mut seen = Site::new(site.building, site.identity.clone(), site.disk.clone());
            seen.trust = site.trust;
            seen.gone = site.gone;
            seen.may_lose = site.may_lose;
            world.sites.push(seen);
        }
        world.ledger = std::mem::take(&mut self.ledger);
        world.bounds = std::mem::take(&mut self.bounds);
        world.bounds.rotten = self.rotten;
        let seen = look(&mut world);
        self.ledger = std::mem::take(&mut world.ledger);
        self.bounds = std::mem::take(&mut world.bounds);
        seen
    }

    /// Notes what a disk holds at the moment when a copy of it is made, or of when it may come back.
    pub(crate) fn note_copy(&mut self, plan: &Plan, site: usize) -> Result<()> {
        self.look(plan, |world| world.note_copy(site))
    }

    /// What only this disk held may be lost from here on; its terminals ask no more about it.
    pub(crate) fn lose_unacknowledged(&mut self, plan: &Plan, site: usize) -> Result<()> {
        self.look(plan, |world| world.lose_unacknowledged(site))
    }

    /// Nobody takes any more what a site says: of what it is yet to send anything may be lost.
    pub(crate) fn distrust(&mut self, plan: &Plan, site: usize) -> Result<()> {
        let (trust, may_lose) = self.look(plan, |world| {
            world.distrust(site)?;
            anyhow::Ok((world.sites[site].trust, world.sites[site].may_lose))
        })?;
        (self.sites[site].trust, self.sites[site].may_lose) = (trust, may_lose);
        Ok(())
    }

    /// How far every log of a node is ingested.
    pub(crate) fn ingested(&mut self, plan: &Plan) -> Result<BTreeMap<LogId, u64>> {
        self.look(plan, |world| world.ingested())
    }

    /// True where the centre grants nothing to the node of a site.
    pub(crate) fn is_shut_out(&mut self, plan: &Plan, site: usize) -> Result<bool> {
        self.look(plan, |world| world.is_shut_out(site))
    }

    /// True while the centre takes back what an older copy of it lacks.
    pub(crate) fn is_returning(&mut self, plan: &Plan) -> Result<bool> {
        self.look(plan, |world| world.is_returning())
    }

    /// What holds at every moment.
    pub(crate) fn check_now(&mut self, plan: &Plan) -> Result<Vec<(Promise, String)>> {
        self.look(plan, |world| {
            world.check_books_now()?;
            Ok(broken(&world.outcome))
        })
    }

    /// What holds once everything is repaired and quiet.
    pub(crate) fn check_at_end(&mut self, plan: &Plan) -> Result<AtEnd> {
        self.look(plan, |world| {
            world.check_books_now()?;
            world.check_books_at_rest()?;
            let counted = Coverage::ALL.iter().zip(&world.coverage).filter(|(_, count)| **count > 0);
            Ok(AtEnd {
                broken: broken(&world.outcome),
                coverage: counted.map(|(coverage, count)| (*coverage, *count)).collect(),
                entries: world.outcome.entries,
                ledger: std::mem::take(&mut world.outcome.ledger),
            })
        })
    }

    /// Sites whose log the centre does not hold whole, though nothing happened to their disks: held, ingested.
    pub(crate) fn not_ingested(&mut self, plan: &Plan) -> Result<Vec<(usize, usize, usize)>> {
        self.look(plan, |world| {
            let mut behind = Vec::new();
            for site in 0..world.sites.len() {
                if world.sites[site].trust == Trust::Sound && !world.sites[site].gone {
                    let node = world.sites[site].identity.node;
                    let held = world.node_tables(site)?.entries(node_log(node))?.len();
                    let ingested = world.centre_tables()?.entries(node_log(node))?.len();
                    if held != ingested {
                        behind.push((site, held, ingested));
                    }
                }
            }
            Ok(behind)
        })
    }

    /// What every account that is not lost can spend, as the centre has it, in the plan's order.
    pub(crate) fn money(&mut self, plan: &Plan) -> Result<Vec<(CardNumber, Fen)>> {
        self.look(plan, |world| {
            let centre = world.centre_tables()?;
            let (lost, cards, wallets) = (centre.lost_cards()?, centre.cards()?, centre.wallets()?);
            let mut funds: BTreeMap<AccountId, Fen> = BTreeMap::new();
            for ((account, _), wallet) in wallets {
                // What is owed in one wallet is not taken from the other.
                *funds.entry(account).or_default() += wallet.funds.or_zero();
            }
            let spendable = plan.accounts.iter().filter(|account| !lost.contains(&account.card));
            let of = |card: &CardNumber| {
                cards.get(card).and_then(|account| funds.get(account)).copied().unwrap_or_default()
            };
            Ok(spendable.map(|account| (account.card.clone(), of(&account.card))).collect())
        })
    }
}

fn broken(outcome: &Outcome) -> Vec<(Promise, String)> {
    outcome.violations.iter().map(|violation| (violation.promise, violation.text.clone())).collect()
}
