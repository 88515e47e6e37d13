//! A node that signs and says what it is told to.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use feiqian_protocol::chain::{Cursor, LogWriter, SignedHead};
use feiqian_protocol::entry::{Actor, Body, Entry, StandInGrant};
use feiqian_protocol::frame::{Ack, Entries, LogCursor, NodeHello, PROTOCOL_VERSION};
use feiqian_protocol::ids::{AccountId, CampusId, Epoch, LogId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::io::LinkId;

use crate::fuzz::script::INSTITUTION;

/// A node as far as the centre can tell.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) incarnation: u32,
    pub(super) key: SigningKey,
    pub(super) writer: LogWriter,
    pub(super) records: Vec<Vec<u8>>,
    pub(super) heads: Vec<SignedHead>,
    /// Where its own log may be continued otherwise: the same log some entries earlier.
    pub(super) earlier: Option<(LogWriter, usize, usize)>,
    pub(super) streams: BTreeMap<LogId, Cursor>,
    pub(super) granted: BTreeMap<(AccountId, Wallet), Fen>,
    pub(super) branch: Option<LogId>,
    pub(super) acked: u64,
    pub(super) link: Option<LinkId>,
    pub(super) epoch: Epoch,
    pub(super) anchor: Timestamp,
}

impl Node {
    pub(super) fn log(&self) -> LogId {
        LogId::node(INSTITUTION, self.id)
    }

    pub(super) fn to_node(&self) -> LogId {
        LogId::to_node(INSTITUTION, self.id)
    }

    pub(super) fn cursor(&self, log: LogId) -> Cursor {
        self.streams.get(&log).copied().unwrap_or(Cursor::START)
    }

    pub(super) fn write(&mut self, wall: Timestamp, actor: Actor, body: Body) {
        let appended = self.writer.append(wall, CampusId(1), actor, body);
        self.records.push(appended.record);
    }

    pub(super) fn sign(&mut self, applied: u64, anchor: Timestamp) {
        self.heads.extend(self.writer.sign_head(applied, anchor, &self.key));
    }

    pub(super) fn entries_after(&self, after: u64) -> Option<Entries> {
        let records = self.records.get(usize::try_from(after).ok()?..)?;
        let heads = self.heads.iter().filter(|head| head.head.cursor.position > after).copied().collect();
        (!records.is_empty()).then(|| Entries {
            log: self.log(),
            first: after + 1,
            records: records.iter().cloned().map(Into::into).collect(),
            heads,
        })
    }

    pub(super) fn hello(&self) -> NodeHello {
        let shards = self.streams.iter().filter(|(log, _)| log.as_shard().is_some());
        NodeHello {
            version: PROTOCOL_VERSION,
            institution: INSTITUTION,
            node: self.id,
            incarnation: self.incarnation,
            log: self.writer.cursor(),
            to_node: self.cursor(self.to_node()),
            shards: shards.map(|(log, cursor)| LogCursor { log: *log, cursor: *cursor }).collect(),
            countersigned: None,
            refused: None,
            kept_after: Vec::new(),
            heads: Vec::new(),
            branch: None,
        }
    }

    /// Follows the centre's streams; returns the acknowledgement.
    pub(super) fn follow(&mut self, entries: &Entries) -> Option<Ack> {
        let mut cursor = self.cursor(entries.log);
        let known = usize::try_from((cursor.position + 1).checked_sub(entries.first)?).ok()?;
        for record in entries.records.iter().skip(known) {
            cursor = cursor.after(entries.log, record);
            match Entry::from_record(record).ok()?.body {
                Body::Anchor(anchor) => self.anchor = self.anchor.max(anchor.time),
                Body::Grant(grant) if grant.epoch == self.epoch => {
                    self.granted.insert((grant.account, grant.wallet), grant.total);
                    self.anchor = self.anchor.max(grant.time);
                }
                Body::StandInGrant(StandInGrant(grant)) => self.anchor = self.anchor.max(grant.time),
                Body::Closed(closed) => self.epoch = closed.epoch.next(),
                _ => {}
            }
        }
        self.streams.insert(entries.log, cursor);
        Some(Ack { log: entries.log, position: cursor.position, countersignature: None })
    }
}
