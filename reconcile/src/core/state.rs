//! What the centre holds in memory between two steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use feiqian_protocol::campus::{CampusConfig, Mode, Policy};
use feiqian_protocol::chain::LogWriter;
use feiqian_protocol::ids::{AccountId, CampusId, CardNumber, LogId, NodeId, Unit};
use feiqian_protocol::limits::{DOCUMENT_CHANGES_MAX, SHARDS};
use feiqian_protocol::snapshot::SignedSnapshot;
use feiqian_protocol::time::{BusinessCalendar, BusinessDay, Timestamp};
use rusqlite::Connection;

use super::Gathered;
use crate::asks::{AskQueue, Debts};
use crate::closing::Closures;
use crate::escrow::{HandOut, PendingGrants, Sweep};
use crate::habit::CampusMeans;
use crate::io::{Identity, LinkId};
use crate::pin::Pins;
use crate::purse::Purses;
use crate::purse::load::WaitingLoad;
use crate::recovery::Recovery;
use crate::session::Link;
use crate::store::logs::{self, BranchState, LogState};
use crate::store::nodes::{self, Node};
use crate::store::{StoreError, accounts, meta_number, meta_text, recovery, snapshots};

/// What the core holds in memory: the small tables as they are on disk, and what is volatile.
pub(crate) struct State {
    pub identity: Identity,
    pub campus: Option<CampusConfig>,
    pub campus_version: u32,
    /// The centre's time: its wall clock, but never falling.
    pub time: Timestamp,
    /// The open business day; never falls.
    pub day: BusinessDay,
    pub nodes: BTreeMap<NodeId, Node>,
    /// Nodes whose certificates were revoked, and when.
    pub revoked: BTreeMap<NodeId, Timestamp>,
    pub logs: BTreeMap<LogId, LogState>,
    pub writers: BTreeMap<LogId, LogWriter>,
    pub branches: BTreeMap<LogId, BranchState>,
    /// What of branches came altered and has not come whole: (log, first), last.
    pub lost: BTreeMap<(LogId, u64), u64>,
    pub pending: BTreeMap<NodeId, PendingGrants>,
    pub links: BTreeMap<LinkId, Link>,
    pub asks: BTreeMap<(AccountId, Unit), AskQueue>,
    /// How many of them each node has.
    pub asks_of: BTreeMap<NodeId, usize>,
    /// Changes in a document before it is begun anew.
    pub document_changes_max: u64,
    pub debts: Debts,
    pub closures: Closures,
    pub pins: Pins,
    pub hand_out: HandOut,
    pub sweep: Sweep,
    pub gathered: Gathered,
    /// How far nodes have the account streams, by their own word since this was opened.
    pub known: BTreeMap<(NodeId, LogId), u64>,
    /// Cards that were ever reported lost: few, and every debit asks.
    pub cards_lost: BTreeSet<CardNumber>,
    /// Up to where somebody waits for the entries of one of the centre's streams.
    pub waited_for: BTreeMap<LogId, u64>,
    pub means: Option<CampusMeans>,
    /// The newest snapshots of the account streams.
    pub snapshots: BTreeMap<LogId, SignedSnapshot>,
    /// Of account streams with dropped entries: up to where.
    pub kept_after: BTreeMap<LogId, u64>,
    /// Account streams to look at for old entries.
    pub upkeep: BTreeSet<LogId>,
    /// What is being taken back, where this is an old copy.
    pub recovery: Option<Recovery>,
    /// True where batches posted entries that have never come since.
    pub has_unheard: bool,
    /// Logs that may be posted further by this build than by the one that stopped.
    pub resume: BTreeSet<LogId>,
    /// What makes this centre one that loads cards.
    pub purses: Option<Arc<Purses>>,
    /// Loads of cards that wait.
    pub purse_loads: Vec<WaitingLoad>,
    pub next_timer: Option<u64>,
    /// When a step last had something that somebody waited for, in `mono_ms`.
    pub urgent_ms: Option<u64>,
}

impl State {
    pub(super) fn load(db: &Connection, identity: Identity) -> Result<Self, StoreError> {
        let institution = identity.institution;
        let campus = meta_text(db, "campus")?
            .map(|json| CampusConfig::from_bytes(json.as_bytes()))
            .transpose()
            .map_err(|error| StoreError::Corrupt(format!("the campus configuration: {error}")))?;
        let logs: BTreeMap<LogId, LogState> = logs::all(db, institution)?.into_iter().collect();
        let nodes: BTreeMap<NodeId, Node> = nodes::all(db)?.into_iter().collect();
        let times = logs.iter().map(|(log, state)| {
            let clock = if log.writer == NodeId::CENTRE { state.clock.time() } else { Timestamp(0) };
            clock.max(state.order_key)
        });
        let heard = nodes.values().map(|node| node.heard);
        let time = times.chain(heard).max().unwrap_or_default();
        let resume =
            logs.iter().filter(|(_, state)| state.quarantined.is_some()).map(|(log, _)| *log).collect();
        let mut state = Self {
            campus,
            campus_version: meta_number(db, "campus_version")?.unwrap_or(0) as u32,
            time,
            day: BusinessDay(meta_number(db, "day")?.unwrap_or(0) as i32),
            nodes,
            revoked: nodes::revocations(db)?,
            logs,
            writers: BTreeMap::new(),
            branches: logs::branches(db, institution)?.into_iter().collect(),
            lost: logs::lost(db, institution)?
                .into_iter()
                .map(|lost| ((lost.log, lost.first), lost.last))
                .collect(),
            pending: BTreeMap::new(),
            links: BTreeMap::new(),
            asks: BTreeMap::new(),
            asks_of: BTreeMap::new(),
            document_changes_max: DOCUMENT_CHANGES_MAX,
            debts: Debts::default(),
            closures: Closures::load(db, institution)?,
            pins: Pins::load(db)?,
            hand_out: HandOut::default(),
            sweep: Sweep::default(),
            gathered: Gathered::default(),
            known: BTreeMap::new(),
            cards_lost: accounts::cards_lost(db)?,
            waited_for: BTreeMap::new(),
            means: None,
            snapshots: snapshots::all(db, institution)?.into_iter().collect(),
            kept_after: BTreeMap::new(),
            upkeep: BTreeSet::new(),
            recovery: Recovery::load(db)?,
            has_unheard: recovery::any_named(db)?,
            resume,
            purses: None,
            purse_loads: Vec::new(),
            next_timer: None,
            urgent_ms: None,
            identity,
        };
        for log in (0..SHARDS).map(|shard| LogId::shard(institution, shard)) {
            if let Some(kept_after) = snapshots::kept_after(db, log)?.filter(|position| *position > 0) {
                state.kept_after.insert(log, kept_after);
            }
        }
        for node in state.nodes.keys().copied().collect::<Vec<_>>() {
            let pending = PendingGrants::load(db, &state, node)?;
            state.pending.insert(node, pending);
        }
        state.gathered = Gathered::load(db, &state)?;
        Ok(state)
    }

    pub fn own_log(&self, node: NodeId) -> LogId {
        LogId::node(self.identity.institution, node)
    }

    pub fn to_node(&self, node: NodeId) -> LogId {
        LogId::to_node(self.identity.institution, node)
    }

    pub fn shard(&self, account: AccountId) -> LogId {
        LogId::shard(self.identity.institution, account.shard())
    }

    /// Where a log stands; an empty one where nothing was written.
    pub fn log(&self, log: LogId) -> LogState {
        self.logs.get(&log).copied().unwrap_or(LogState::EMPTY)
    }

    /// How far a node has an account stream on its disk, as far as it has said since the centre started.
    pub fn known_position(&self, node: NodeId, log: LogId) -> u64 {
        self.known.get(&(node, log)).copied().unwrap_or_default()
    }

    pub fn campus_id(&self) -> CampusId {
        self.campus.as_ref().map_or(CampusId(0), |campus| campus.campus)
    }

    pub fn calendar(&self) -> BusinessCalendar {
        self.campus.as_ref().map_or(BusinessCalendar::CHINA, |campus| campus.calendar)
    }

    pub fn policy(&self) -> Policy {
        self.campus.as_ref().map(|campus| campus.policy.clone()).unwrap_or_default()
    }

    pub fn mode(&self) -> Mode {
        self.campus.as_ref().map(|campus| campus.policy.mode).unwrap_or_default()
    }
}
