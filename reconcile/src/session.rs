//! The centre's half of a replication session: judging Hellos, anchoring, sending what a node lacks, acknowledging.
//!
//! A link goes from *opening* (no Hello yet) to *provisional* (the node's log goes beyond what is ingested, so its next
//! entries must link first) to *accepted*, where the anchor is written; rights are granted once the node has acknowledged
//! that anchor. A Hello that shows a copy or a fork is *refused*: the node's epoch is closed, it may upload, and gets its
//! own tail back, but rights only after an operator enrols it anew. A node whose certificate has expired is told so, and may
//! upload; one whose certificate was revoked is told so, and cut off. A faulty frame closes its link and nothing else.
//!
//! An enrolment anew is a new node number under the old name: its log and the centre's stream for it begin empty, one key
//! signs one log, and whatever the old disk still uploads is posted as what it is, entries of a closed epoch.

mod branches;
mod sending;

use std::collections::BTreeMap;

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Actor, Anchor};
use feiqian_protocol::frame::{
    Branch, CentreHello, Entries, Frame, LogCursor, NodeHello, PROTOCOL_VERSION, RefusalReason,
};
use feiqian_protocol::ids::{LogId, NodeId};
use feiqian_protocol::limits::{CLOCK_AHEAD_MS_MAX, SHARDS};
use feiqian_protocol::session::{KnownNode, Sender, SessionError, judge_hello};
use feiqian_protocol::time::Timestamp;

use crate::core::{Round, StoreError};
use crate::ingest::Ingest;
use crate::io::{LinkId, Output};
use crate::recovery::Giving;
use crate::snapshot::Transfer;
use crate::store::logs;
use crate::store::nodes::{Node, NodeState};

/// Why a link of a node whose certificate was revoked is closed. The shell tells it by this, so that the node does not come
/// back every second.
pub const REVOKED: &str = "the certificate of this node was revoked";

/// How far a link has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Opening,
    Provisional,
    Accepted,
    Refused,
    /// It gives back what an old copy of the centre lacks.
    Returning,
}

/// One connection of a node.
#[derive(Debug)]
pub(crate) struct Link {
    /// The node, as its certificate says.
    pub node: NodeId,
    incarnation: u32,
    /// True where its certificate has expired.
    expired: bool,
    phase: Phase,
    hello: Option<NodeHello>,
    pub sender: Sender,
    /// Account streams of which a snapshot comes first, and where the node stands in them.
    pub snapshots: BTreeMap<LogId, u64>,
    /// The snapshot that is on its way.
    pub transfer: Option<Transfer>,
    /// What it has said it will give back.
    pub giving: Option<Giving>,
    /// The log of the last frame that was sent in bulk: logs take turns.
    last_sent: Option<LogId>,
    anchor: u64,
    anchored: bool,
    /// The branch that the node was told its continuation goes to.
    branch: Option<LogId>,
    /// True once somebody was told that the node's clock is wrong.
    clock_told: bool,
}

impl Link {
    /// True while in session.
    pub fn is_accepted(&self) -> bool {
        self.phase == Phase::Accepted
    }

    /// True once rights may be granted in this session.
    pub fn is_anchored(&self) -> bool {
        self.phase == Phase::Accepted && self.anchored
    }

    /// True while it gives back what an old copy of the centre lacks, and has not given all.
    pub fn is_giving(&self) -> bool {
        self.phase == Phase::Returning && self.giving.as_ref().is_some_and(|giving| !giving.is_complete())
    }

    /// Its first word.
    pub const fn hello(&self) -> Option<&NodeHello> {
        self.hello.as_ref()
    }

    /// Keeps its first word.
    pub fn set_hello(&mut self, hello: NodeHello) {
        self.hello = Some(hello);
    }

    /// The enrolment, as its certificate says.
    pub const fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// Entries, and pieces of snapshots, that the node has not acknowledged.
    pub fn backlog(&self) -> u64 {
        let pieces = self.transfer.map_or(0, |transfer| transfer.left());
        self.sender.backlog() + pieces + self.snapshots.len() as u64
    }
}

impl Round<'_> {
    pub(crate) fn link_up(&mut self, id: LinkId, node: NodeId, incarnation: u32, expired: bool) {
        let link = Link {
            node,
            incarnation,
            expired,
            phase: Phase::Opening,
            hello: None,
            sender: Sender::default(),
            snapshots: BTreeMap::new(),
            transfer: None,
            giving: None,
            last_sent: None,
            anchor: 0,
            anchored: false,
            branch: None,
            clock_told: false,
        };
        self.state.links.insert(id, link);
        if self.state.revoked.contains_key(&node) {
            self.refuse_revoked(id, node);
        }
    }

    /// Says to a node whose certificate was revoked that it was, and takes nothing more of it.
    pub(crate) fn refuse_revoked(&mut self, id: LinkId, node: NodeId) {
        tracing::warn!(node = node.0, reason = RefusalReason::Revoked.name(), "session refused");
        let session = self.state.nodes.get(&node).map_or(0, |node| node.session);
        self.send_hello(id, node, session, Some(RefusalReason::Revoked), None);
        self.close_link(id, REVOKED);
    }

    /// Notes the clock that a node lives by, which is in the log once for each link where it is far from ours. It orders
    /// nothing: order keys are cut to what the centre knows.
    pub(crate) fn judge_clock(&mut self, node: NodeId, clock: Timestamp, is_now: bool) {
        let ahead_ms = clock.ms_since(self.state.time);
        let wrong = ahead_ms > CLOCK_AHEAD_MS_MAX || is_now && ahead_ms < -CLOCK_AHEAD_MS_MAX;
        if !wrong {
            return;
        }
        let links = self.state.links.values_mut().filter(|link| link.node == node && !link.clock_told);
        for link in links {
            link.clock_told = true;
            let (seconds, direction) =
                (ahead_ms.unsigned_abs() / 1_000, if ahead_ms > 0 { "ahead" } else { "behind" });
            tracing::warn!(node = node.0, seconds, direction, "the clock of a node is wrong");
        }
    }

    pub(crate) fn link_down(&mut self, id: LinkId) {
        if let Some(link) = self.state.links.remove(&id) {
            self.forget_recalls(link.node);
            self.forget_loads(id);
            self.acks.retain(|(link, _), _| *link != id);
            if let Some(giving) = link.giving {
                self.stopped_giving(&giving);
            }
        }
    }

    pub(crate) fn close_link(&mut self, id: LinkId, reason: impl Into<String>) {
        self.link_down(id);
        self.outputs.push(Output::CloseLink(id, reason.into()));
    }

    pub(crate) fn handle_frame(&mut self, id: LinkId, frame: Frame) -> Result<(), StoreError> {
        // Frames of a link that is closing are nothing.
        let Some(link) = self.state.links.get(&id) else { return Ok(()) };
        let (node, phase) = (link.node, link.phase);
        match (phase, frame) {
            (Phase::Opening, Frame::NodeHello(hello)) => self.hello(id, *hello),
            (Phase::Returning, Frame::Entries(entries)) if entries.log.writer == NodeId::CENTRE => {
                self.take_back(id, node, entries)
            }
            (
                Phase::Provisional | Phase::Accepted | Phase::Refused | Phase::Returning,
                Frame::Entries(entries),
            ) => self.entries(id, node, entries),
            (Phase::Accepted | Phase::Refused | Phase::Provisional, Frame::Ack(ack)) => {
                self.acked(id, node, ack);
                Ok(())
            }
            (Phase::Accepted, Frame::Ask(ask)) => {
                self.ask(id, node, ask);
                Ok(())
            }
            (Phase::Accepted, Frame::Recalled(recalled)) => {
                self.recalled(node, recalled);
                Ok(())
            }
            (Phase::Accepted, Frame::Mark(mark)) => {
                self.mark(node, mark);
                Ok(())
            }
            (Phase::Accepted, Frame::PurseAsk(ask)) => self.purse_ask(id, node, *ask),
            (Phase::Accepted, Frame::CodeAsk(ask)) => self.code_ask(id, ask),
            (Phase::Accepted, Frame::SnapshotAck(ack)) => {
                self.snapshot_acked(id, node, ack);
                Ok(())
            }
            // Said before it was known that the session is refused or provisional.
            (
                Phase::Provisional | Phase::Refused | Phase::Returning,
                Frame::Ask(_) | Frame::Recalled(_) | Frame::Mark(_) | Frame::PurseAsk(_) | Frame::CodeAsk(_),
            ) => Ok(()),
            _ => {
                self.close_link(id, SessionError::OutOfPlace.to_string());
                Ok(())
            }
        }
    }

    /// H1.
    fn hello(&mut self, id: LinkId, hello: NodeHello) -> Result<(), StoreError> {
        let Some(link) = self.state.links.get(&id) else { return Ok(()) };
        let (node_id, incarnation) = (link.node, link.incarnation);
        if self.is_recovering() {
            return self.hello_returning(id, hello);
        }
        let node = self.state.nodes.get(&node_id).cloned();
        // One that was shut out may have been so because it held more: then it says nothing new.
        if node.as_ref().is_none_or(Node::holds)
            && let Some(why) = self.shown_by(node_id, &hello)
        {
            return Err(StoreError::OldCopy(why));
        }
        let Some(node) = node else {
            self.close_link(id, "unknown node");
            return Ok(());
        };
        let verdict = self.judge(node_id, incarnation, &hello)?;
        if let Some(link) = self.state.links.get_mut(&id) {
            link.hello = Some(hello.clone());
        }
        let reason = match (verdict, node.state) {
            (_, NodeState::Retired) if !planted(Canary::StaleIncarnationAccepted) => {
                Err(RefusalReason::Incarnation)
            }
            (Ok(()), NodeState::Refused) => Err(reason_of(node.reason.as_deref())),
            (verdict, _) => verdict,
        };
        let expired = self.state.links.get(&id).is_some_and(|link| link.expired);
        match reason {
            Ok(()) if expired => self.refuse(id, RefusalReason::Expired),
            Ok(()) => {
                self.end_other_sessions(id, node_id, "a newer session of the node");
                let beyond = hello.log.position > self.state.log(self.state.own_log(node_id)).cursor.position;
                if let Some(link) = self.state.links.get_mut(&id) {
                    link.phase = Phase::Provisional;
                }
                self.send_hello(id, node_id, node.session + 1, None, None);
                if beyond { Ok(()) } else { self.accept(id) }
            }
            Err(reason) => self.refuse(id, reason),
        }
    }

    fn judge(
        &self,
        node_id: NodeId,
        incarnation: u32,
        hello: &NodeHello,
    ) -> Result<Result<(), RefusalReason>, StoreError> {
        let Some(node) = self.state.nodes.get(&node_id) else { return Ok(Err(RefusalReason::Identity)) };
        if incarnation != node.incarnation {
            return Ok(Err(RefusalReason::Incarnation));
        }
        let (own, to_node) = (self.state.own_log(node_id), self.state.to_node(node_id));
        let known = KnownNode {
            institution: self.state.identity.institution,
            node: node_id,
            incarnation: node.incarnation,
            ingested: self.state.log(own).cursor,
            to_node: self.state.log(to_node).cursor,
            to_node_acked: node.to_node_acked,
            to_node_hash_at_hello: logs::hash_at(self.db, to_node, hello.to_node.position)?,
            log_hash_at_hello: logs::hash_at(self.db, own, hello.log.position)?,
        };
        if let Err(reason) = judge_hello(hello, &known) {
            return Ok(Err(reason));
        }
        for cursor in &hello.shards {
            if cursor.log.as_shard().is_none() || cursor.log.institution != known.institution {
                return Ok(Err(RefusalReason::ForeignGrants));
            }
            match logs::hash_at(self.db, cursor.log, cursor.cursor.position)? {
                // What was there was dropped; a snapshot comes in its place.
                None if self
                    .state
                    .kept_after
                    .get(&cursor.log)
                    .is_some_and(|after| cursor.cursor.position < *after) => {}
                None => return Ok(Err(RefusalReason::CentreBehind)),
                Some(hash) if hash != cursor.cursor.hash => return Ok(Err(RefusalReason::ForeignGrants)),
                Some(_) => {}
            }
        }
        Ok(Ok(()))
    }

    /// Ends the other sessions of a node. Boxes that are refused upload side by side: were each to end the others, none would come
    /// to its end.
    pub(crate) fn end_other_sessions(&mut self, id: LinkId, node: NodeId, reason: &str) {
        let older: Vec<LinkId> = self
            .state
            .links
            .iter()
            .filter(|(other, link)| **other != id && link.node == node)
            .filter(|(_, link)| !matches!(link.phase, Phase::Opening | Phase::Refused))
            .map(|(other, _)| *other)
            .collect();
        for other in older {
            self.close_link(other, reason);
        }
    }

    /// Ends all links of a node.
    pub(crate) fn end_sessions(&mut self, node: NodeId, reason: &str) {
        let links: Vec<LinkId> =
            self.state.links.iter().filter(|(_, link)| link.node == node).map(|(id, _)| *id).collect();
        for link in links {
            self.close_link(link, reason);
        }
    }

    fn send_hello(
        &mut self,
        id: LinkId,
        node: NodeId,
        session: u64,
        refused: Option<RefusalReason>,
        branch: Option<Branch>,
    ) {
        let hello = self.centre_hello(node, session, refused, branch);
        self.outputs.push(Output::Send(id, Frame::CentreHello(hello)));
    }

    /// Says to a node what is wanted back of it.
    pub(crate) fn say_returning(
        &mut self,
        id: LinkId,
        node: NodeId,
        wanted: Vec<LogCursor>,
        branch: Option<Branch>,
    ) {
        let session = self.state.nodes.get(&node).map_or(0, |node| node.session);
        let hello = CentreHello { returning: Some(wanted), ..self.centre_hello(node, session, None, branch) };
        if let Some(link) = self.state.links.get_mut(&id) {
            link.phase = Phase::Returning;
        }
        self.outputs.push(Output::Send(id, Frame::CentreHello(hello)));
    }

    fn centre_hello(
        &self,
        node: NodeId,
        session: u64,
        refused: Option<RefusalReason>,
        branch: Option<Branch>,
    ) -> CentreHello {
        CentreHello {
            version: PROTOCOL_VERSION,
            session,
            time: self.state.time,
            log: self.state.log(self.state.own_log(node)).cursor,
            refused,
            branch,
            returning: None,
        }
    }

    /// H2: the session counts, its anchor is written, and what the node lacks is sent.
    fn accept(&mut self, id: LinkId) -> Result<(), StoreError> {
        let Some(link) = self.state.links.get_mut(&id) else { return Ok(()) };
        let Some(hello) = link.hello.clone() else { return Ok(()) };
        let node_id = link.node;
        link.phase = Phase::Accepted;
        let Some(node) = self.state.nodes.get_mut(&node_id) else { return Ok(()) };
        node.session += 1;
        let session = node.session;
        self.touched_nodes.insert(node_id);
        let to_node = self.state.to_node(node_id);
        let time = self.state.time;
        self.fresh = true;
        let anchor = self.append(to_node, Actor::centre(), Anchor { session, time })?;
        self.fresh = false;
        self.state.gathered.due_now();
        #[cfg(feature = "canaries")]
        if planted(Canary::GrantResentAfterRestart) {
            self.count_under_way_again(node_id)?;
        }
        let institution = self.state.identity.institution;
        let mut shards = Vec::new();
        for log in (0..SHARDS).map(|shard| LogId::shard(institution, shard)) {
            let known = hello.shards.iter().find(|cursor| cursor.log == log);
            let from = known.map_or(0, |cursor| cursor.cursor.position);
            shards.push((log, from, self.end(log), self.is_far_behind(log, from)?));
            self.note_known(node_id, log, from);
        }
        let Some(link) = self.state.links.get_mut(&id) else { return Ok(()) };
        link.anchor = anchor;
        link.sender.open(to_node, hello.to_node.position, anchor);
        for (log, from, end, far_behind) in shards {
            if far_behind {
                link.snapshots.insert(log, from);
            } else {
                link.sender.open(log, from, end);
            }
        }
        tracing::info!(node = node_id.0, session, "session accepted");
        Ok(())
    }

    fn end(&self, log: LogId) -> u64 {
        self.state.log(log).cursor.position
    }

    /// H3.
    pub(crate) fn refuse(&mut self, id: LinkId, reason: RefusalReason) -> Result<(), StoreError> {
        let Some(link) = self.state.links.get_mut(&id) else { return Ok(()) };
        let node_id = link.node;
        let by_hello = link.phase == Phase::Opening;
        link.phase = Phase::Refused;
        let hello = link.hello.clone();
        tracing::warn!(node = node_id.0, reason = reason.name(), "session refused");
        let shows_copy = matches!(
            reason,
            RefusalReason::StaleGrants
                | RefusalReason::ShortLog
                | RefusalReason::ForkedLog
                | RefusalReason::ForeignGrants
        );
        if shows_copy {
            self.end_other_sessions(id, node_id, "another copy of the node was refused");
            self.shut_out(node_id, reason.name(), NodeState::Refused)?;
        }
        let branch = match reason {
            RefusalReason::ForkedLog => self.branch_for(id, node_id, by_hello)?,
            // It continues the log, and gets what it lacks of it first.
            RefusalReason::ShortLog => None,
            // A branch stays what it was, whatever the box is refused for later.
            _ => self.named_branch(id, node_id),
        };
        let session = self.state.nodes.get(&node_id).map_or(0, |node| node.session);
        self.send_hello(id, node_id, session, Some(reason), branch);
        if reason == RefusalReason::ShortLog
            && let Some(hello) = hello
        {
            // Its tail comes back to it, and what it was written under.
            let (own, to_node) = (self.state.own_log(node_id), self.state.to_node(node_id));
            let (end, to_node_end) = (self.end(own), self.end(to_node));
            if let Some(link) = self.state.links.get_mut(&id) {
                link.sender.open(own, hello.log.position, end);
                link.sender.open(to_node, hello.to_node.position, to_node_end);
            }
        }
        Ok(())
    }

    /// No rights any more: the epoch is closed at what is ingested, and nothing is granted until an enrolment anew.
    pub(crate) fn shut_out(&mut self, id: NodeId, reason: &str, state: NodeState) -> Result<(), StoreError> {
        let Some(node) = self.state.nodes.get_mut(&id) else { return Ok(()) };
        let was = node.state;
        if was == state {
            return Ok(());
        }
        node.state = state;
        node.reason = Some(reason.to_owned());
        self.touched_nodes.insert(id);
        // An old copy that takes back what it lacks writes nothing before it has: it closes then.
        if matches!(was, NodeState::Open | NodeState::Closing) && !self.is_recovering() {
            self.force_close(id)?;
        }
        Ok(())
    }

    fn entries(&mut self, id: LinkId, node: NodeId, entries: Entries) -> Result<(), StoreError> {
        let log = entries.log;
        let last = entries.first.saturating_add(entries.records.len() as u64).saturating_sub(1);
        let branch = self.state.links.get(&id).and_then(|link| link.branch);
        if branch.is_some_and(|branch| branch != log) {
            // Under way since before the branch was named: it comes again, there.
            return Ok(());
        }
        match self.ingest(node, entries)? {
            Ingest::Taken(new) => {
                let acked = self.acks.entry((id, log)).or_default();
                *acked = last.max(*acked);
                match self.state.links.get(&id).map(|link| link.phase) {
                    Some(Phase::Provisional) if new => self.accept(id),
                    Some(Phase::Returning) => self.hear(id),
                    _ => Ok(()),
                }
            }
            Ingest::Refused(why) => {
                self.close_link(id, why);
                Ok(())
            }
            Ingest::Forked if log == self.state.own_log(node) => {
                // One that was refused for another reason may have forked as well, which shows only here.
                self.refuse(id, RefusalReason::ForkedLog)
            }
            Ingest::Forked => match self.branch_of_its_own(id, node)? {
                Some(branch) => {
                    let session = self.state.nodes.get(&node).map_or(0, |node| node.session);
                    self.send_hello(id, node, session, Some(RefusalReason::ForkedLog), Some(branch));
                    Ok(())
                }
                None => {
                    self.close_link(id, "too many continuations of one log");
                    Ok(())
                }
            },
        }
    }
}

fn reason_of(name: Option<&str>) -> RefusalReason {
    [
        RefusalReason::StaleGrants,
        RefusalReason::ShortLog,
        RefusalReason::ForkedLog,
        RefusalReason::ForeignGrants,
    ]
    .into_iter()
    .find(|reason| Some(reason.name()) == name)
    .unwrap_or(RefusalReason::StaleGrants)
}
