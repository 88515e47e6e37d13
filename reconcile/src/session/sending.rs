//! What is said in a session: acknowledgements, and entries of the centre's streams.

use std::collections::BTreeMap;

use feiqian_protocol::chain::{Countersignature, Cursor};
use feiqian_protocol::frame::{Ack, Entries, Frame};
use feiqian_protocol::ids::{LogId, NodeId};
use feiqian_protocol::limits::ENTRIES_PER_FRAME_MAX;
use feiqian_protocol::session::pack;

use super::Phase;
use crate::core::{Round, StoreError};
use crate::io::{LinkId, Output};
use crate::store::logs;

/// Frames that one step reads for the links.
const FRAMES_READ_PER_STEP: usize = 32;

/// Frames of one log that are under way to a node in bulk: few, since what a person waits for may have to wait for them, and
/// enough for a node to have the next ones when it has taken some.
const BULK_FRAMES_UNDER_WAY: usize = 4;

impl Round<'_> {
    pub(super) fn acked(&mut self, id: LinkId, node_id: NodeId, ack: Ack) {
        let to_node = self.state.to_node(node_id);
        let Some(link) = self.state.links.get_mut(&id) else { return };
        if let Err(error) = link.sender.acked(ack.log, ack.position) {
            self.close_link(id, error.to_string());
            return;
        }
        if link.phase != Phase::Accepted {
            return;
        }
        if ack.log != to_node {
            self.note_known(node_id, ack.log, ack.position);
            return;
        }
        let anchored = link.anchored;
        link.anchored |= ack.position >= link.anchor;
        if link.anchored && !anchored {
            self.state.sweep.start(false);
        }
        if let Some(node) = self.state.nodes.get_mut(&node_id)
            && ack.position > node.to_node_acked
        {
            node.to_node_acked = ack.position;
            self.touched_nodes.insert(node_id);
        }
    }

    /// Says what is durable with this step, of what came on each link: there may be more here that came on another.
    pub(crate) fn send_acks(&mut self) -> Result<(), StoreError> {
        for ((link, log), last) in std::mem::take(&mut self.acks) {
            let mut cursor = match self.state.branches.get(&log) {
                Some(branch) => branch.cursor,
                None => self.state.log(log).cursor,
            };
            if last < cursor.position {
                let own = LogId::node(log.institution, log.writer);
                let Some(hash) = self.known_hash(log, own, last)? else { continue };
                cursor = Cursor { position: last, hash };
            }
            // What it has of its own streams it has signed already.
            let countersignature = (log.writer != NodeId::CENTRE)
                .then(|| Countersignature::sign(log, cursor, &self.state.identity.log_key));
            let ack = Ack { log, position: cursor.position, countersignature };
            self.outputs.push(Output::Send(link, Frame::Ack(ack)));
        }
        Ok(())
    }

    /// Sends what nodes in session lack, as far as may be under way: what somebody waits for first and in the urgent lane,
    /// the rest in bulk, log by log in turn. `grown` are the logs that this step has written, and their ends.
    pub(crate) fn send_entries(&mut self, grown: &[(LogId, u64)]) -> Result<(), StoreError> {
        let mut packed: BTreeMap<(LogId, u64), Entries> = BTreeMap::new();
        let mut sent = Vec::new();
        let mut read = |log: LogId, after: u64, full: bool| -> Result<Option<Entries>, StoreError> {
            if let Some(entries) = packed.get(&(log, after)) {
                return Ok(Some(entries.clone()));
            }
            if full && packed.len() >= FRAMES_READ_PER_STEP {
                return Ok(None);
            }
            let records = logs::records_after(self.db, log, after, ENTRIES_PER_FRAME_MAX)?;
            let heads = logs::heads_after(self.db, log, after, ENTRIES_PER_FRAME_MAX)?;
            let entries = pack(log, after, records, heads)
                .ok_or_else(|| StoreError::Corrupt(format!("{log} has no whole commit after {after}")))?;
            packed.insert((log, after), entries.clone());
            Ok(Some(entries))
        };
        for (id, link) in &mut self.state.links {
            for (log, end) in grown {
                link.sender.extend(*log, *end);
            }
            for log in link.sender.due_logs() {
                let Some(position) = self.state.waited_for.get(&log) else { continue };
                while let Some(after) = link.sender.due_fresh(log, *position) {
                    let Some(entries) = read(log, after, false)? else { break };
                    link.sender.sent(log, after + entries.records.len() as u64, true);
                    sent.push(Output::Send(*id, Frame::Fresh(entries)));
                }
            }
            while let Some((log, after)) = link.sender.due_in_bulk(BULK_FRAMES_UNDER_WAY, link.last_sent) {
                let Some(entries) = read(log, after, true)? else {
                    self.more_to_send = true;
                    break;
                };
                link.sender.sent(log, after + entries.records.len() as u64, false);
                link.last_sent = Some(log);
                sent.push(Output::Send(*id, Frame::Entries(entries)));
            }
        }
        self.outputs.append(&mut sent);
        Ok(())
    }

    /// The links of nodes in session.
    pub(crate) fn sessions(&self) -> Vec<LinkId> {
        self.state.links.iter().filter(|(_, link)| link.is_accepted()).map(|(id, _)| *id).collect()
    }
}
