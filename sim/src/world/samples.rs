//! Time lines for the report: read from the disks, so that looking changes nothing.

use anyhow::Result;
use feiqian_protocol::ids::{LogId, NodeId};
use feiqian_protocol::limits::SHARDS;
use rusqlite::Connection;

use super::hosts::Trust;
use super::{Event, World};
use crate::outcome::NodeTimeline;
use crate::plan::INSTITUTION;

/// What a node's disk says at a sample.
struct Seen {
    backlog: u64,
    /// Entries of account streams that it has applied.
    applied: i64,
    heard: Option<i64>,
    exposed_fen: i64,
}

impl World<'_> {
    fn timeline(&mut self, site: usize) -> Option<&mut NodeTimeline> {
        if !self.samples {
            return None;
        }
        let building = self.sites[site].building;
        // A clone has no line of its own.
        if self.buildings[building].clone == Some(site) {
            return None;
        }
        let names = &self.plan.buildings;
        let nodes = &mut self.outcome.timeline.nodes;
        while nodes.len() < names.len() {
            let node = names[nodes.len()].name.to_string();
            nodes.push(NodeTimeline { node, ..NodeTimeline::default() });
        }
        nodes.get_mut(building)
    }

    pub(super) fn mark_link(&mut self, site: usize, at_ms: u64, up: bool) {
        if let Some(line) = self.timeline(site)
            && line.link.last().map(|(_, up)| *up) != Some(up)
        {
            line.link.push((at_ms, up));
        }
    }

    pub(super) fn mark_process(&mut self, site: usize, at_ms: u64, up: bool) {
        if let Some(line) = self.timeline(site) {
            line.process.push((at_ms, up));
        }
    }

    /// Takes a sample, and plans the next one.
    pub(super) fn sample(&mut self) -> Result<()> {
        let start = self.epoch();
        let shards = self.shard_positions()?;
        for building in 0..self.buildings.len() {
            let site = self.buildings[building].site;
            let wall = self.sites[site].clock.read(start, self.now);
            let seen = match self.seen(site) {
                Ok(seen) => Some(seen),
                Err(_) if self.sites[site].trust == Trust::Broken => None,
                Err(error) => return Err(error),
            };
            let up = self.sites[site].link.is_some();
            let Some(line) = self.timeline(site) else { continue };
            if let Some(Seen { backlog, applied, heard, exposed_fen }) = seen {
                let age = heard.map_or(0, |heard| wall.0 - heard);
                line.backlog.push(backlog);
                line.behind.push((shards - applied).max(0) as u64);
                line.view_age_ms.push(if up { 0 } else { age.max(0) as u64 });
                line.exposed_fen.push(exposed_fen);
            } else {
                // A disk that has rotted says no more: the line stays where it is.
                repeat(&mut line.backlog);
                repeat(&mut line.behind);
                repeat(&mut line.view_age_ms);
                repeat(&mut line.exposed_fen);
            }
        }
        let connection = self.centre_tables()?.connection();
        let out: i64 =
            connection.query_row("SELECT coalesce(sum(si_out), 0) FROM nodes", [], |row| row.get(0))?;
        let open: i64 = connection.query_row(
            "SELECT coalesce(sum(opened - recovered - refunded), 0) FROM cases",
            [],
            |row| row.get(0),
        )?;
        self.outcome.timeline.stand_in_out_fen.push(out);
        self.outcome.timeline.open_cases_fen.push(open);
        if !self.healed || self.now_ms() < self.plan.end_ms() {
            let every = self.outcome.timeline.every_ms;
            self.after_ms(every, Event::Sample);
        }
        Ok(())
    }

    fn seen(&mut self, site: usize) -> Result<Seen> {
        let node = self.sites[site].identity.node;
        let connection = self.node_tables(site)?.connection();
        let (acked, heard): (i64, Option<i64>) =
            connection
                .query_row("SELECT acked, heard FROM state", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let end = last_position(connection, LogId::node(INSTITUTION, node))?;
        let applied = (0..SHARDS).map(|shard| last_position(connection, LogId::shard(INSTITUTION, shard)));
        let applied = applied.sum::<Result<i64>>()?;
        let exposed_fen = connection.query_row(
            "SELECT (SELECT coalesce(sum(amount), 0) FROM debits WHERE position > ?1)
               + (SELECT coalesce(sum(amount), 0) FROM purse_debits WHERE position > ?1)",
            [acked],
            |row| row.get(0),
        )?;
        Ok(Seen { backlog: end.abs_diff(acked), applied, heard, exposed_fen })
    }

    fn shard_positions(&mut self) -> Result<i64> {
        let connection = self.centre_tables()?.connection();
        let sum = connection.query_row(
            "SELECT coalesce(sum(position), 0) FROM logs WHERE log >> 32 = ?1 AND log & 65536 = 65536",
            [NodeId::CENTRE.0],
            |row| row.get(0),
        )?;
        Ok(sum)
    }
}

/// Where a log ends. Of one log that is found at once; the last of each log by itself is found by reading them all.
fn last_position(connection: &Connection, log: LogId) -> Result<i64> {
    let mut statement =
        connection.prepare_cached("SELECT coalesce(max(position), 0) FROM entries WHERE log = ?1")?;
    Ok(statement.query_row([log.key()], |row| row.get(0))?)
}

/// The next sample of a line is its last one.
fn repeat<T: Copy + Default>(line: &mut Vec<T>) {
    line.push(line.last().copied().unwrap_or_default());
}
