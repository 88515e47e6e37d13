//! The centre has come back from an old copy (yesterday's backup was restored): it takes back what the nodes hold.
//!
//! What it had written after the copy was made is lost here, but not everywhere: each node has the stream for it as far as
//! it had come, every node has the account streams, all under the centre's signature, and every node has its own log. So the
//! centre says in its Hello from where on it wants its own streams back, and *collects*: entries are verified, kept and
//! acknowledged, but nothing acts and nothing is written, since whatever it wrote might be another continuation of what some
//! node holds. Once every node that may have rights was heard, or was given up by an operator, it *replays* what it has
//! collected, in this order: the account streams; then for each node the stream for it and its log, a closing at its declared
//! head. Then it closes all links, and everything goes on as after any start.
//!
//! **Once and only once.** A posted batch names the entries that it includes. What it names is not posted again when the
//! entry itself is replayed; what no batch names is posted then. It names them by the hash of the last one: what was a branch then
//! may be the log here, or the other way round, where boxes of one name come in another order. A box that was told a branch says
//! so, and has it back by its name, which is what cases and refunds in the streams go by. A case or refund that the streams tell is not opened again.
//! A tap that was posted before its card was reported lost is not refunded because it is ingested a second time.
//!
//! **What cannot be given back.** Whatever was written after the copy and reached nobody: credits above all, whose channels
//! submit them again under the same keys. Entries of a building that is never heard again, though they had been posted: the
//! batches still say what became of the balances, so the wallets follow and suspense takes the other side, until the
//! building turns up. Order keys are given anew; they differ only where a node's clock ran ahead.
//!
//! **Forks.** While the centre collects, it writes into no stream, so none can have two continuations. It knows that it has
//! come back by being told (`run --restored`), by its database being another file than the one it last ran on, or by the
//! Hello of a node that holds more of a stream, or a countersignature of more of its log, than the centre does, both under the
//! centre's own signature. A copy that is restored in place and not declared may have written before such a Hello comes. Then
//! what it wrote and what the node holds are two continuations: the node's is not taken, `status` says so, and the centre
//! goes on collecting until the copy is restored once more or the node is given up.

mod replay;

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::VerifyingKey;
use feiqian_protocol::chain::{ChainError, Cursor, SignedHead, verify};
use feiqian_protocol::entry::{Body, Entry, NodeEnrolled};
use feiqian_protocol::frame::{
    Ack, Branch, Entries, Frame, LogCursor, NodeHello, PROTOCOL_VERSION, RefusalReason,
};
use feiqian_protocol::ids::{LogId, NodeId, NodeName};
use feiqian_protocol::limits::SHARDS;
use serde_json::json;

use crate::core::{Round, State, StoreError};
use crate::escrow::PendingGrants;
use crate::io::{LinkId, NotHeard, Output, RecoveryStatus, Reply};
use crate::store::nodes::{GIVEN_UP, Node, NodeState};
use crate::store::{habits, holds, logs, meta_number, put_meta, recovery as notes};

/// How far the centre has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    /// Takes entries, acts on none.
    Collecting,
    /// Acts on them.
    Replaying,
}

/// The centre while it takes back what it lacks.
#[derive(Clone, Debug)]
pub(crate) struct Recovery {
    stage: Stage,
    heard: BTreeSet<NodeId>,
    /// What keeps a node from being heard, where it is known.
    troubles: BTreeMap<NodeId, String>,
    /// Entries taken back since this start.
    taken: u64,
}

impl Recovery {
    /// Reads how far it has come; `None` where nothing is to be taken back.
    pub fn load(db: &rusqlite::Connection) -> Result<Option<Self>, StoreError> {
        let stage = match meta_number(db, "recovery")? {
            None => return Ok(None),
            Some(1) => Stage::Collecting,
            Some(_) => Stage::Replaying,
        };
        let heard = notes::heard(db)?.into_iter().collect();
        Ok(Some(Self { stage, heard, troubles: BTreeMap::new(), taken: 0 }))
    }
}

/// Notes that this database is an old copy. Before anything else happens with it.
pub(crate) fn begin(db: &rusqlite::Connection) -> Result<(), StoreError> {
    if meta_number(db, "recovery")?.is_none() {
        put_meta(db, "recovery", 1)?;
        holds::give_none_again(db)?;
    }
    Ok(())
}

/// What a link has said it will give back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Giving {
    promised: BTreeMap<LogId, u64>,
    complete: bool,
}

impl Giving {
    /// True once all of it is here.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }
}

impl State {
    /// Nodes that are still to be heard: all that may hold rights.
    fn awaited(&self) -> Vec<NodeId> {
        let Some(recovery) = &self.recovery else { return Vec::new() };
        let holders = self.nodes.iter().filter(|(id, node)| node.holds() && !recovery.heard.contains(id));
        holders.map(|(id, _)| *id).collect()
    }

    fn shards(&self) -> impl Iterator<Item = LogId> + use<> {
        let institution = self.identity.institution;
        (0..SHARDS).map(move |shard| LogId::shard(institution, shard))
    }
}

impl Round<'_> {
    /// Why a Hello shows that this centre has come back from an old copy, where it does: all of it is under the centre's own
    /// signature.
    pub(crate) fn shown_by(&self, node: NodeId, hello: &NodeHello) -> Option<String> {
        let key = self.state.identity.log_key.verifying_key();
        let own = self.state.own_log(node);
        let ingested = self.state.log(own).cursor.position;
        if let Some(signed) = hello.countersigned
            && signed.log == own
            && signed.cursor.position > ingested
            && signed.is_signed_by(&key)
        {
            return Some(format!(
                "it has acknowledged {own} up to {}, and holds {ingested}",
                signed.cursor.position
            ));
        }
        let ours = |head: &&SignedHead| {
            let log = head.head.log;
            let is_of_node = log == self.state.to_node(node) || log.as_shard().is_some();
            is_of_node && log.institution == own.institution
        };
        let beyond = |head: &&SignedHead| {
            head.head.cursor.position > self.state.log(head.head.log).cursor.position
                && head.is_signed_by(&key)
        };
        let head = hello.heads.iter().filter(ours).find(beyond)?.head;
        let held = self.state.log(head.log).cursor.position;
        Some(format!("it has signed {} up to {}, and holds {held}", head.log, head.cursor.position))
    }

    /// A Hello while entries are taken back.
    pub(crate) fn hello_returning(&mut self, id: LinkId, hello: NodeHello) -> Result<(), StoreError> {
        let Some(link) = self.state.links.get_mut(&id) else { return Ok(()) };
        let (node_id, incarnation) = (link.node, link.incarnation());
        link.set_hello(hello.clone());
        if self.replays() {
            self.close_link(id, "say Hello again in a moment: the centre works off what it has taken back");
            return Ok(());
        }
        if hello.version != PROTOCOL_VERSION {
            return self.refuse(id, RefusalReason::Version);
        }
        if hello.institution != self.state.identity.institution || hello.node != node_id {
            return self.refuse(id, RefusalReason::Identity);
        }
        let to_node = self.state.to_node(node_id);
        let Some(node) = self.state.nodes.get(&node_id).cloned() else {
            if self.shown_by(node_id, &hello).is_none() || hello.to_node.position == 0 {
                self.close_link(id, "unknown node");
                return Ok(());
            }
            // Enrolled after the copy was made: the stream for it begins with who it is.
            let start = LogCursor { log: to_node, cursor: Cursor::START };
            let promised = [(to_node, hello.to_node.position)].into();
            self.give_back(id, node_id, vec![start], promised, None);
            return Ok(());
        };
        if node.state == NodeState::Retired || incarnation != node.incarnation {
            return self.refuse(id, RefusalReason::Incarnation);
        }
        let branch = self.branch_again(id, node_id, &hello)?;
        let refused = hello.refused.or_else(|| branch.map(|_| RefusalReason::ForkedLog));
        if let Some(reason) = refused
            && node.holds()
        {
            // The centre has shut it out, and forgotten that.
            self.shut_out(node_id, reason.name(), NodeState::Refused)?;
        }
        if let Err(reason) = self.judge_returning(&node, node_id, &hello)? {
            return self.refuse(id, reason);
        }
        self.end_other_sessions(id, node_id, "a newer session of the node");
        for end in &hello.shards {
            let hash = logs::hash_at(self.db, end.log, end.cursor.position)?;
            if end.log.as_shard().is_some() && hash.is_some_and(|hash| hash != end.cursor.hash) {
                return self.two_continuations(id, node_id, end.log, end.cursor.position);
            }
        }
        self.ask_back(id, node_id, &hello, branch);
        self.hear(id)
    }

    /// A restored copy, a clone or a fork shows against an old copy of the centre as well, as far as that goes back.
    fn judge_returning(
        &self,
        node: &Node,
        id: NodeId,
        hello: &NodeHello,
    ) -> Result<Result<(), RefusalReason>, StoreError> {
        let (own, to_node) = (self.state.own_log(id), self.state.to_node(id));
        let ingested = self.state.log(own).cursor;
        if hello.log.position <= ingested.position
            && logs::hash_at(self.db, own, hello.log.position)? != Some(hello.log.hash)
        {
            return Ok(Err(RefusalReason::ForkedLog));
        }
        if hello.log.position < ingested.position {
            return Ok(Err(RefusalReason::ShortLog));
        }
        if hello.to_node.position <= self.state.log(to_node).cursor.position
            && logs::hash_at(self.db, to_node, hello.to_node.position)? != Some(hello.to_node.hash)
        {
            return Ok(Err(RefusalReason::ForeignGrants));
        }
        if hello.to_node.position < node.to_node_acked {
            return Ok(Err(RefusalReason::StaleGrants));
        }
        Ok(Ok(()))
    }

    /// Says which streams are wanted of a node: its own, and those account streams of which it has more than anybody who
    /// gives them already.
    fn ask_back(&mut self, id: LinkId, node: NodeId, hello: &NodeHello, branch: Option<Branch>) {
        let mut wanted = Vec::new();
        let mut promised = BTreeMap::new();
        let to_node = self.state.to_node(node);
        let here = self.state.log(to_node).cursor;
        if hello.to_node.position > here.position {
            wanted.push(LogCursor { log: to_node, cursor: here });
        }
        let mut out_of_reach = None;
        for (index, log) in self.state.shards().enumerate() {
            let here = self.state.log(log).cursor;
            let there =
                hello.shards.iter().find(|cursor| cursor.log == log).map_or(0, |end| end.cursor.position);
            let given = self.state.links.values().filter_map(|link| link.giving.as_ref()?.promised.get(&log));
            if there <= here.position.max(given.copied().max().unwrap_or(0)) {
                continue;
            }
            let kept_after = hello.kept_after.get(index).copied().unwrap_or(0);
            if kept_after > here.position {
                out_of_reach = Some(format!(
                    "it keeps {log} from {} on, and this copy of the centre ends at {}: a younger one is needed",
                    kept_after + 1,
                    here.position
                ));
                continue;
            }
            promised.insert(log, there);
            wanted.push(LogCursor { log, cursor: here });
        }
        if let Some(recovery) = &mut self.state.recovery {
            match out_of_reach {
                Some(trouble) => recovery.troubles.insert(node, trouble),
                None => recovery.troubles.remove(&node),
            };
        }
        self.give_back(id, node, wanted, promised, branch);
    }

    fn give_back(
        &mut self,
        id: LinkId,
        node: NodeId,
        wanted: Vec<LogCursor>,
        promised: BTreeMap<LogId, u64>,
        branch: Option<Branch>,
    ) {
        if let Some(link) = self.state.links.get_mut(&id) {
            link.giving = Some(Giving { promised, complete: false });
        }
        self.say_returning(id, node, wanted, branch);
    }

    /// Entries that a node gives back.
    pub(crate) fn take_back(&mut self, id: LinkId, node: NodeId, entries: Entries) -> Result<(), StoreError> {
        let log = entries.log;
        let wanted = self.state.links.get(&id).and_then(|link| link.giving.as_ref());
        if !(log == self.state.to_node(node)
            || wanted.is_some_and(|giving| giving.promised.contains_key(&log)))
        {
            self.close_link(id, format!("entries of {log}, which were not asked for"));
            return Ok(());
        }
        let end = self.state.log(log).cursor;
        let before = entries.first.saturating_sub(1);
        let from = logs::hash_at(self.db, log, before)?.map(|hash| Cursor { position: before, hash });
        let Some(from) = from.filter(|from| from.position <= end.position) else {
            self.close_link(id, format!("entries of {log} from {} do not continue it", entries.first));
            return Ok(());
        };
        let key = self.state.identity.log_key.verifying_key();
        let last = before + entries.records.len() as u64;
        let records = entries.records.into_iter().map(Vec::from).collect();
        let commits = match verify(log, &from, entries.first, records, &entries.heads, &key) {
            Ok(commits) => commits,
            Err(ChainError::Fork { position, .. }) => return self.two_continuations(id, node, log, position),
            Err(error) => {
                self.close_link(id, error.to_string());
                return Ok(());
            }
        };
        for commit in commits {
            for verified in &commit.entries {
                if verified.position <= end.position {
                    if verified.position == end.position && verified.hash != end.hash {
                        return self.two_continuations(id, node, log, verified.position);
                    }
                    continue;
                }
                self.keep(log, verified.position, verified.hash, &verified.record, &verified.entry)?;
            }
            if commit.head.head.cursor.position > end.position {
                logs::insert_head(self.db, log, &commit.head)?;
                let mut state = self.state.log(log);
                state.anchor = state.anchor.max(commit.head.head.anchor);
                self.state.logs.insert(log, state);
            }
        }
        // Not up to where the stream ends here: somebody else may have given more of it.
        let ack = Ack { log, position: last, countersignature: None };
        self.outputs.push(Output::Send(id, Frame::Ack(ack)));
        if !self.state.nodes.contains_key(&node) {
            return self.learn_of(id, node);
        }
        self.hear_all()
    }

    /// Keeps an entry of the centre's own, which does not act yet.
    fn keep(
        &mut self,
        log: LogId,
        position: u64,
        hash: [u8; 32],
        record: &[u8],
        entry: &Entry,
    ) -> Result<(), StoreError> {
        let time = entry.clock.time();
        let cursor = Cursor { position, hash };
        logs::insert_entry(self.db, log, &cursor, entry.body.kind(), time, record)?;
        let mut state = self.state.log(log);
        state.cursor = cursor;
        state.clock = state.clock.max(entry.clock);
        state.order_key = state.order_key.max(time);
        self.state.logs.insert(log, state);
        // What is written later is written after it.
        self.state.writers.remove(&log);
        self.state.time = self.state.time.max(time);
        self.touched_logs.insert(log);
        if let Some(recovery) = &mut self.state.recovery {
            recovery.taken += 1;
        }
        Ok(())
    }

    /// This copy has written on before it knew that it was one.
    fn two_continuations(
        &mut self,
        id: LinkId,
        node: NodeId,
        log: LogId,
        position: u64,
    ) -> Result<(), StoreError> {
        let trouble = format!(
            "it holds another {log} than this centre at {position}: an old copy of the centre has written on; restore \
             the copy again and start it with --restored, or retire the node"
        );
        tracing::error!(node = node.0, %log, position, "two continuations of one stream of the centre");
        if let Some(recovery) = &mut self.state.recovery {
            recovery.troubles.insert(node, trouble.clone());
        }
        self.close_link(id, trouble);
        Ok(())
    }

    /// A node that was enrolled after the copy was made: its stream begins with who it is.
    fn learn_of(&mut self, id: LinkId, node_id: NodeId) -> Result<(), StoreError> {
        let stream = self.state.to_node(node_id);
        let first = notes::next_entry(self.db, stream, 0)?;
        let enrolled = match first.map(|(_, _, record)| Entry::from_record(&record)).transpose()? {
            Some(Entry { body: Body::NodeEnrolled(enrolled), .. }) if enrolled.node == node_id => enrolled,
            _ => {
                self.close_link(id, "unknown node: its stream does not say who it is");
                return Ok(());
            }
        };
        let NodeEnrolled { name, role, incarnation, log_key, .. } = enrolled;
        let Ok(log_key) = VerifyingKey::from_bytes(&log_key) else {
            self.close_link(id, "unknown node: its log key is none");
            return Ok(());
        };
        tracing::warn!(node = node_id.0, %name, incarnation, "a node that was enrolled after this copy of the centre was made");
        let older: Vec<NodeId> = self
            .state
            .nodes
            .iter()
            .filter(|(_, node)| node.name == name && node.incarnation < incarnation)
            .map(|(id, _)| *id)
            .collect();
        let node = Node::enrolled(name, role, incarnation, log_key);
        self.state.nodes.insert(node_id, node);
        self.state.pending.insert(node_id, PendingGrants::default());
        self.touched_nodes.insert(node_id);
        self.state.means = None;
        for older in older {
            self.end_sessions(older, "the node was enrolled anew");
            self.shut_out(older, "enrolled anew", NodeState::Retired)?;
            habits::move_habits(self.db, older, node_id)?;
        }
        self.close_link(id, "the centre knows this node again");
        Ok(())
    }

    /// Counts a node as heard once everything that its Hello named is here.
    pub(crate) fn hear(&mut self, id: LinkId) -> Result<(), StoreError> {
        let Some(link) = self.state.links.get(&id) else { return Ok(()) };
        let node_id = link.node;
        let (Some(hello), Some(_)) = (link.hello(), &link.giving) else { return Ok(()) };
        let has = |log: LogId, position: u64| self.state.log(log).cursor.position >= position;
        let to_node = hello.to_node.position;
        let branch = hello.branch.and_then(|log| self.state.branches.get(&log));
        let uploaded = match branch.filter(|branch| branch.node == node_id) {
            Some(branch) => branch.cursor.position >= hello.log.position,
            None => has(self.state.own_log(node_id), hello.log.position),
        };
        let complete = uploaded
            && has(self.state.to_node(node_id), to_node)
            && hello.shards.iter().all(|end| has(end.log, end.cursor.position));
        if !complete || !self.state.nodes.contains_key(&node_id) {
            return Ok(());
        }
        if let Some(giving) = self.state.links.get_mut(&id).and_then(|link| link.giving.as_mut()) {
            giving.complete = true;
        }
        if let Some(node) = self.state.nodes.get_mut(&node_id)
            && node.to_node_acked < to_node
        {
            node.to_node_acked = to_node;
            self.touched_nodes.insert(node_id);
        }
        let Some(recovery) = &mut self.state.recovery else { return Ok(()) };
        recovery.troubles.remove(&node_id);
        if recovery.heard.insert(node_id) {
            notes::put_heard(self.db, node_id)?;
            tracing::info!(node = node_id.0, "heard");
        }
        Ok(())
    }

    /// What one gives may be what others wait for as well.
    fn hear_all(&mut self) -> Result<(), StoreError> {
        let giving = self.state.links.iter().filter(|(_, link)| link.is_giving());
        for id in giving.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.hear(id)?;
        }
        Ok(())
    }

    /// A link that was giving is gone: whoever else has what it had promised is asked, by saying Hello again.
    pub(crate) fn stopped_giving(&mut self, giving: &Giving) {
        if giving.complete {
            return;
        }
        let left: Vec<LogId> = giving
            .promised
            .iter()
            .filter(|(log, promised)| self.state.log(**log).cursor.position < **promised)
            .map(|(log, _)| *log)
            .collect();
        let has_more = |link: &crate::session::Link| {
            let hello = link.hello();
            link.is_giving()
                && left.iter().any(|log| {
                    let there = hello.and_then(|hello| hello.shards.iter().find(|end| end.log == *log));
                    there.is_some_and(|end| end.cursor.position > self.state.log(*log).cursor.position)
                })
        };
        let again: Vec<LinkId> =
            self.state.links.iter().filter(|(_, link)| has_more(link)).map(|(id, _)| *id).collect();
        for id in again {
            self.close_link(
                id,
                "say Hello again: what another building was giving back is wanted of this one",
            );
        }
    }

    /// Gives a node up that will not come: everything else goes on without it.
    pub(crate) fn give_up(&mut self, name: &NodeName, force: bool) -> Result<Reply, StoreError> {
        let no = |code, message: &str| Ok(Err(crate::io::CommandError { code, message: message.to_owned() }));
        let awaited = self.state.awaited();
        let found = awaited.iter().find(|id| self.state.nodes.get(id).is_some_and(|node| node.name == *name));
        let Some(id) = found.copied() else {
            return no(
                "recovering",
                "the centre is taking back what it lacks, and does not wait for this node",
            );
        };
        if !force {
            return no(
                "recovering",
                "the centre waits to hear this node before it writes anything; --force gives it up for ever",
            );
        }
        let epoch = self.epoch(id);
        self.end_sessions(id, "the node was retired");
        self.shut_out(id, GIVEN_UP, NodeState::Retired)?;
        tracing::warn!(node = id.0, %name, "given up");
        Ok(Ok(json!({ "node": id, "epoch": epoch })))
    }

    /// What is under way, for the status.
    pub(crate) fn recovery_status(&self) -> Option<RecoveryStatus> {
        let recovery = self.state.recovery.as_ref()?;
        let name = |id: &NodeId| self.state.nodes.get(id).map(Node::display_name);
        let awaited = self.state.awaited();
        let not_heard = awaited
            .iter()
            .filter_map(|id| Some(NotHeard { node: name(id)?, trouble: recovery.troubles.get(id).cloned() }));
        Some(RecoveryStatus {
            replaying: recovery.stage == Stage::Replaying,
            heard: recovery.heard.iter().filter_map(name).collect(),
            not_heard: not_heard.collect(),
            entries: recovery.taken,
        })
    }
}
