//! Nodes that are not trusted any more: their certificates are revoked, and their logs come in from files.
//!
//! A revocation closes the node's rights as a forced closing does, ends its session at once, and from then on nothing of it
//! is taken from the network. What its disk holds was signed when it was written, so it can be carried to the centre in a
//! file: it is proven like an upload, and posted as what it is, entries of a closed epoch.

use feiqian_protocol::chain::{Cursor, unhex};
use feiqian_protocol::frame::{Entries, Frame};
use feiqian_protocol::ids::{LogId, NodeId, NodeName};
use serde_json::{Value, json};

use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::ingest::Ingest;
use crate::io::{LinkId, Reply};
use crate::store::logs;
use crate::store::nodes::{self, NodeState};

impl Round<'_> {
    /// Revokes the certificates of one enrolment of a name, the newest where none is named.
    pub(crate) fn revoke(&mut self, name: &NodeName, enrolment: Option<u32>) -> Result<Reply, StoreError> {
        let found = self
            .state
            .nodes
            .iter()
            .filter(|(_, node)| {
                node.name == *name && enrolment.is_none_or(|wanted| wanted == node.incarnation)
            })
            .map(|(id, node)| (*id, node.incarnation))
            .max();
        let Some((id, incarnation)) = found else { return Ok(refused("unknown_node", "no such node")) };
        if !self.state.revoked.contains_key(&id) {
            let at = self.state.time;
            nodes::insert_revocation(self.db, id, at)?;
            self.state.revoked.insert(id, at);
            tracing::warn!(node = id.0, %name, enrolment = incarnation, "certificates revoked");
        }
        if let Some(node) = self.state.nodes.get(&id)
            && node.state != NodeState::Retired
        {
            self.shut_out(id, "revoked", NodeState::Closed)?;
            if let Some(node) = self.state.nodes.get_mut(&id) {
                node.reason = Some("revoked".to_owned());
                self.touched_nodes.insert(id);
            }
        }
        let links: Vec<LinkId> =
            self.state.links.iter().filter(|(_, link)| link.node == id).map(|(link, _)| *link).collect();
        for link in links {
            self.refuse_revoked(link, id);
        }
        Ok(Ok(json!({ "node": id, "enrolment": incarnation })))
    }

    /// Whether a node may have its certificate renewed.
    pub(crate) fn renew(&self, id: NodeId, incarnation: u32) -> Reply {
        let Some(node) = self.state.nodes.get(&id).filter(|node| node.incarnation == incarnation) else {
            return refused("unknown_node", "no such node");
        };
        if self.state.revoked.contains_key(&id) {
            return refused("not_renewed", crate::session::REVOKED);
        }
        match node.state {
            NodeState::Open | NodeState::Closing => Ok(json!({ "name": node.name })),
            NodeState::Closed | NodeState::Refused | NodeState::Retired => {
                let why = node.reason.as_deref().unwrap_or(node.state.name());
                refused("not_renewed", format!("this node is closed ({why}); enrol the building anew"))
            }
        }
    }

    /// Takes a frame of a node's log from a file.
    pub(crate) fn import_log(&mut self, frame: &str, branch: Option<u32>) -> Result<Reply, StoreError> {
        let frame = unhex(frame).and_then(|bytes| Frame::from_bytes(&bytes).ok());
        let Some(Frame::Entries(entries)) = frame else {
            return Ok(refused("log", "this is no part of a node's log"));
        };
        let id = entries.log.writer;
        let own = self.state.own_log(id);
        let Some(node) = self.state.nodes.get(&id).filter(|_| entries.log == own) else {
            return Ok(refused("log", format!("{} is no log of a node of this institution", entries.log)));
        };
        if matches!(node.state, NodeState::Open | NodeState::Closing) {
            let why = "this node is not closed: it uploads by itself, or is to be retired or revoked first";
            return Ok(refused("node_open", format!("{}: {why}", node.name)));
        }
        let (name, mut log) = (node.name.clone(), own);
        let mut taken = Ingest::Forked;
        let before = self.log_end(own);
        if branch.is_none() {
            taken = self.ingest(id, entries.clone())?;
        }
        let mut new = self.log_end(own) - before;
        if matches!(taken, Ingest::Forked) {
            // It is not the history that the centre holds: to the branch where it has been before, or to one of its own.
            for (known, _) in self.branches_of(id) {
                if branch.is_some_and(|branch| branch != known.stream) || !matches!(taken, Ingest::Forked) {
                    continue;
                }
                (taken, new) = self.import_branch(id, known, &entries, new)?;
                log = known;
            }
            if matches!(taken, Ingest::Forked) && branch.is_none() {
                let position = entries.first.saturating_sub(1);
                let Some(hash) = logs::hash_at(self.db, own, position)? else {
                    return Ok(refused("log", format!("the centre holds no entry {position} of {own}")));
                };
                let Some(fresh) = self.new_branch(id, Cursor { position, hash })? else {
                    return Ok(refused("log", format!("too many continuations of {own}")));
                };
                (taken, new) = self.import_branch(id, fresh, &entries, new)?;
                log = fresh;
            }
        }
        let reply = |log: LogId| -> Value {
            let branch = (log != own).then_some(log.stream);
            json!({ "node": name, "log": log.to_string(), "branch": branch, "new": new })
        };
        Ok(match taken {
            Ingest::Taken(_) => Ok(reply(log)),
            Ingest::Forked => refused("log", format!("{log} has yet another history")),
            Ingest::Refused(why) => refused("log", why),
        })
    }

    fn import_branch(
        &mut self,
        node: NodeId,
        branch: LogId,
        entries: &Entries,
        new: u64,
    ) -> Result<(Ingest, u64), StoreError> {
        let before = self.log_end(branch);
        let taken = match self.ingest(node, Entries { log: branch, ..entries.clone() })? {
            // A branch that leaves the log later, or ends earlier, is not the one.
            Ingest::Refused(_) => Ingest::Forked,
            taken => taken,
        };
        Ok((taken, new + (self.log_end(branch) - before)))
    }

    fn log_end(&self, log: LogId) -> u64 {
        match self.state.branches.get(&log) {
            Some(branch) => branch.cursor.position,
            None => self.state.log(log).cursor.position,
        }
    }
}
