//! Nodes and enrolment codes.

use std::collections::BTreeMap;

use ed25519_dalek::VerifyingKey;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{Body, EpochEnd};
use feiqian_protocol::ids::{Epoch, LogId, NodeId, NodeName};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::{StoreError, corrupt};

/// Whether a node may hold rights.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NodeState {
    /// It may.
    Open,
    /// It was asked to end its epoch; nothing is granted until it has.
    Closing,
    /// It was closed, by its own word or by force; it may upload, and only enrolling anew gives it rights again.
    Closed,
    /// Its session was refused; only enrolling anew helps.
    Refused,
    /// It was replaced by an enrolment anew.
    Retired,
}

impl NodeState {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Refused => "refused",
            Self::Retired => "retired",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Open, Self::Closing, Self::Closed, Self::Refused, Self::Retired]
            .into_iter()
            .find(|state| state.name() == name)
    }
}

/// Why a node stays outside that was given up while the centre was coming back.
pub(crate) const GIVEN_UP: &str = "given up while the centre was coming back";

/// A node as the centre knows it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its name; an enrolment anew has the name of the node that it replaces.
    pub name: NodeName,
    /// What it may write.
    pub role: Role,
    /// Counts the enrolments of the name.
    pub incarnation: u32,
    /// Signs its log.
    pub log_key: VerifyingKey,
    /// The open epoch of its rows.
    pub epoch: Epoch,
    /// Whether it may hold rights.
    pub state: NodeState,
    /// Why it may not.
    pub reason: Option<String>,
    /// Sessions so far.
    pub session: u64,
    /// How far it acknowledged the stream for it.
    pub to_node_acked: u64,
    /// Later entries of it have order keys of at least this.
    pub heard: Timestamp,
    /// Sum of `out` over its rows.
    pub out: Fen,
    /// Sum of `si_out` over its rows.
    pub si_out: Fen,
    /// The newest pool: fen a day, and fen of it closed to accounts without a habit.
    pub pool: Option<(Fen, Fen)>,
}

impl Node {
    /// One that has just been enrolled.
    pub const fn enrolled(name: NodeName, role: Role, incarnation: u32, log_key: VerifyingKey) -> Self {
        Self {
            name,
            role,
            incarnation,
            log_key,
            epoch: Epoch::FIRST,
            state: NodeState::Open,
            reason: None,
            session: 0,
            to_node_acked: 0,
            heard: Timestamp(0),
            out: Fen::ZERO,
            si_out: Fen::ZERO,
            pool: None,
        }
    }

    /// The name that tells enrolments of one name apart: `canteen`, then `canteen.2`.
    pub fn display_name(&self) -> String {
        display_name(self.name.as_str(), self.incarnation)
    }

    /// True where rights may be granted to it, as far as its state goes.
    pub fn is_open(&self) -> bool {
        self.state == NodeState::Open
    }

    /// True while it may have rights, and is waited for.
    pub const fn holds(&self) -> bool {
        matches!(self.state, NodeState::Open | NodeState::Closing)
    }

    /// True where the status speaks of it: those that were replaced are spoken of by their name.
    pub fn is_shown(&self) -> bool {
        self.state != NodeState::Retired || self.reason.as_deref() == Some(GIVEN_UP)
    }

    /// True where its entries can spend.
    pub fn spends(&self) -> bool {
        self.role != Role::Door
    }
}

/// See [`Node::display_name`].
pub(crate) fn display_name(name: &str, incarnation: u32) -> String {
    if incarnation == 1 { name.to_owned() } else { format!("{name}.{incarnation}") }
}

/// All nodes.
pub(crate) fn all(db: &Connection) -> Result<Vec<(NodeId, Node)>, StoreError> {
    let mut statement = db.prepare(
        "SELECT node, name, role, incarnation, log_key, epoch, state, reason, session, to_node_acked, heard, out,
         si_out, pool_per_day, pool_habit_only FROM nodes ORDER BY node",
    )?;
    let mut rows = statement.query([])?;
    let mut nodes = Vec::new();
    while let Some(row) = rows.next()? {
        let key: Option<[u8; 32]> = row.get::<_, Vec<u8>>(4)?.try_into().ok();
        let pool: (Option<i64>, Option<i64>) = (row.get(13)?, row.get(14)?);
        let node = Node {
            name: corrupt(NodeName::new(row.get::<_, String>(1)?).ok(), "a node's name")?,
            role: corrupt(row.get::<_, String>(2)?.parse().ok(), "a node's role")?,
            incarnation: row.get(3)?,
            log_key: corrupt(key.and_then(|key| VerifyingKey::from_bytes(&key).ok()), "a node's log key")?,
            epoch: Epoch(row.get(5)?),
            state: corrupt(NodeState::from_name(&row.get::<_, String>(6)?), "a node's state")?,
            reason: row.get(7)?,
            session: row.get::<_, i64>(8)? as u64,
            to_node_acked: row.get::<_, i64>(9)? as u64,
            heard: Timestamp(row.get(10)?),
            out: Fen::new(row.get(11)?),
            si_out: Fen::new(row.get(12)?),
            pool: pool.0.zip(pool.1).map(|(day, habit)| (Fen::new(day), Fen::new(habit))),
        };
        nodes.push((NodeId(row.get(0)?), node));
    }
    Ok(nodes)
}

/// Writes a node.
pub(crate) fn put(db: &Connection, id: NodeId, node: &Node) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO nodes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )?
    .execute(params![
        id.0,
        node.name.as_str(),
        node.role.name(),
        node.incarnation,
        node.log_key.as_bytes(),
        node.epoch.0,
        node.state.name(),
        node.reason,
        node.session as i64,
        node.to_node_acked as i64,
        node.heard.0,
        node.out.get(),
        node.si_out.get(),
        node.pool.map(|pool| pool.0.get()),
        node.pool.map(|pool| pool.1.get()),
    ])?;
    Ok(())
}

/// The nodes whose certificates were revoked, and when.
pub(crate) fn revocations(db: &Connection) -> Result<BTreeMap<NodeId, Timestamp>, StoreError> {
    let mut statement = db.prepare("SELECT node, at FROM revocations")?;
    let revoked = statement.query_map([], |row| Ok((NodeId(row.get(0)?), Timestamp(row.get(1)?))))?;
    Ok(revoked.collect::<Result<_, _>>()?)
}

/// Notes a revocation.
pub(crate) fn insert_revocation(db: &Connection, node: NodeId, at: Timestamp) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO revocations VALUES (?1, ?2)")?.execute(params![node.0, at.0])?;
    Ok(())
}

/// Notes a closed epoch and what was out.
pub(crate) fn insert_closing(
    db: &Connection,
    node: NodeId,
    epoch: Epoch,
    declared_head: u64,
    out: Fen,
    si_out: Fen,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO closings VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        node.0,
        epoch.0,
        declared_head as i64,
        out.get(),
        si_out.get()
    ])?;
    Ok(())
}

/// True where an epoch of a node was ever closed.
pub(crate) fn was_closed(db: &Connection, node: NodeId) -> Result<bool, StoreError> {
    Ok(db.prepare_cached("SELECT 1 FROM closings WHERE node = ?1")?.exists([node.0])?)
}

/// What was out at closings of a node of which its word that the epoch has ended is not in `log`, its own log.
pub(crate) fn exposed(db: &Connection, node: NodeId, log: LogId) -> Result<Fen, StoreError> {
    let kind = Body::from(EpochEnd { epoch: Epoch::FIRST }).kind();
    // An orderly closing is at the very position of that word, any other one before it.
    let mut statement = db.prepare_cached(
        "SELECT coalesce(sum(out + si_out), 0) FROM closings WHERE node = ?1 AND NOT EXISTS (
         SELECT 1 FROM entries WHERE log = ?2 AND position >= declared_head AND kind = ?3)",
    )?;
    Ok(Fen::new(statement.query_row(params![node.0, log.key(), kind], |row| row.get(0))?))
}

/// A one-time code.
#[derive(Clone, Debug)]
pub(crate) struct Enrolment {
    /// For which node.
    pub name: NodeName,
    /// With what role.
    pub role: Role,
    /// The secret.
    pub secret: Vec<u8>,
    /// Until when, by the real clock.
    pub expires: Timestamp,
    /// Tries so far.
    pub tries: u32,
    /// True once a node was enrolled with it.
    pub used: bool,
}

/// The code behind a lookup.
pub(crate) fn enrolment(db: &Connection, lookup: &[u8]) -> Result<Option<Enrolment>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT name, role, secret, expires, tries, used FROM enrolments WHERE lookup = ?1",
    )?;
    let found = statement
        .query_row([lookup], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
                row.get(5)?,
            ))
        })
        .optional()?;
    let Some((name, role, secret, expires, tries, used)) = found else { return Ok(None) };
    Ok(Some(Enrolment {
        name: corrupt(NodeName::new(name).ok(), "an enrolment's name")?,
        role: corrupt(role.parse().ok(), "an enrolment's role")?,
        secret,
        expires: Timestamp(expires),
        tries,
        used,
    }))
}

/// Writes a code.
pub(crate) fn put_enrolment(db: &Connection, lookup: &[u8], code: &Enrolment) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO enrolments VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(
        params![
            lookup,
            code.name.as_str(),
            code.role.name(),
            code.secret,
            code.expires.0,
            code.tries,
            code.used
        ],
    )?;
    Ok(())
}
