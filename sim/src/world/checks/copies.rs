//! Copies of a node's disk: what they hold, and that they are found out where they show.

use std::collections::BTreeMap;

use anyhow::Result;
use feiqian_protocol::ids::AccountId;
use feiqian_protocol::money::Fen;

use super::{Copy, Trust};
use crate::link::tables::{node_log, to_node_log};
use crate::promises::Promise;
use crate::world::World;

impl World<'_> {
    /// Notes what a disk holds at the moment when a copy of it is made, or of when it may come back.
    pub(in crate::world) fn note_copy(&mut self, site: usize) -> Result<()> {
        match self.copy_of(site) {
            Ok(copy) => self.bounds.copies.push(copy),
            // What a disk held that has rotted was noted when it did.
            Err(_) if self.sites[site].trust == Trust::Broken => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn copy_of(&mut self, site: usize) -> Result<Copy> {
        let node = self.sites[site].identity.node;
        let tables = self.node_tables(site)?;
        let applied = tables.entries(to_node_log(node))?.len();
        let mut held: BTreeMap<AccountId, Fen> = BTreeMap::new();
        for ((account, _), row) in tables.rows()? {
            *held.entry(account).or_default() += row.unspent + row.stand_in_left;
        }
        Ok(Copy { node, held, applied })
    }

    /// Notes a disk that was put back from a copy, where the next Hello shows that.
    pub(in crate::world) fn note_shown_copy(&mut self, site: usize) {
        // What cannot be read will not say Hello.
        if self.is_behind(site).unwrap_or(false) {
            self.shown_copies.insert(self.sites[site].identity.node);
        }
    }

    /// True where a disk holds less than the centre has ingested of its log, or than was acknowledged of the centre's stream.
    fn is_behind(&mut self, site: usize) -> Result<bool> {
        let node = self.sites[site].identity.node;
        let tables = self.node_tables(site)?;
        let (log, stream) = (tables.entries(node_log(node))?.len(), tables.entries(to_node_log(node))?.len());
        let (ingested, acked) = self.centre_tables()?.acknowledged(node)?;
        Ok((log as u64) < ingested || (stream as u64) < acked)
    }

    /// A copy that shows is refused.
    pub(super) fn check_copies(&mut self) -> Result<()> {
        for node in self.shown_copies.clone() {
            if !self.centre_was_restored() && self.state_of(node)? == "open" {
                self.violated(
                    Promise::History,
                    format!("node {node} runs on a restored copy, and was not refused"),
                );
            }
        }
        Ok(())
    }
}
