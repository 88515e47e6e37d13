//! Both cores in this process, on files or on the crash disk, with nothing between them but frames.

mod edits;

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ed25519_dalek::SigningKey;
use feiqian_node::core::NodeCore;
use feiqian_node::io as node_io;
use feiqian_protocol::campus::{Building, CampusConfig, Merchant, Policy, Terminal};
use feiqian_protocol::chain::hex;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::frame::{Ack, Entries, Frame};
use feiqian_protocol::ids::{CampusId, CardNumber, InstitutionId, Key, NodeId, NodeName, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, Pin, TapKey, TapKind, TapRequest};
use feiqian_protocol::time::{BusinessCalendar, Timestamp};
use feiqian_reconcile::core::ReconcileCore;
use feiqian_reconcile::driver::Pace;
use feiqian_reconcile::io as centre_io;
use rusqlite::Connection;

use super::Wanted;
use super::bare::{self, BareTaps};
use super::figures::{Cpu, Figures, PerSecond, Rate, micros_each};
use super::ingest;
use super::measure::{Scale, median_rate, rate, thread_cpu};
use crate::vfs::{Disk, Image};

/// Clients that ask at the same time.
const CLIENTS: usize = 64;
/// Taps that a commit of a backlog has: a till or two, at lunch.
const BACKLOG_COMMIT: usize = 1;
/// What a sync of the slow disk takes.
const SLOW_SYNC: Duration = Duration::from_millis(5);
/// Balance of every account.
const OPENING: Fen = Fen::new(5_000_000);
/// Accounts of one import command.
const IMPORT_PART: u64 = 2_000;
/// When everything begins: 2022-11-07, 08:00 in China.
const START: Timestamp = Timestamp(1_667_779_200_000);
/// Milliseconds of the cores' time in which everything must have come to rest.
const REST_MAX_MS: u64 = 10_000_000;
/// The largest backlog.
const MILLION: u64 = 1_000_000;
/// Milliseconds after which effects that the centre gathers of a backlog must be posted.
const GATHERED_MS: u64 = 1_000;
const INSTITUTION: InstitutionId = InstitutionId(1);
const LINK: u64 = 1;

/// Measures what needs no process.
///
/// # Errors
/// Where a core does not do what it should.
pub fn measure(scale: &Scale, wanted: &Wanted, figures: &mut Figures) -> Result<()> {
    let names =
        ["core_64", "slow_disk_64", "catch_up", "catch_up_1m", "wire_bytes_per_entry", "documents_50k"];
    if !names.iter().any(|name| wanted.has(name)) {
        return Ok(());
    }
    let root = tempfile::Builder::new().prefix("feiqian-bench-").tempdir()?;
    let mut pair = Pair::new(scale.accounts)?;
    if wanted.has("core_64") {
        let (rate, cpu) = core_64(scale, &pair, root.path())?;
        (figures.core_64, figures.core_64_cpu) = (Some(rate), Some(cpu));
    }
    if wanted.has("slow_disk_64") {
        figures.slow_disk_64 = Some(slow_disk_64(scale, &pair)?);
    }
    if wanted.has("documents_50k") {
        let (centre, node) = edits::edits(scale, &pair, root.path())?;
        figures.edits_by_cores = Some((centre, node));
    }
    if wanted.has("catch_up") || wanted.has("wire_bytes_per_entry") {
        let frames = pair.backlog(scale.entries)?;
        let bytes: usize = frames.iter().map(|frame| frame.to_bytes().len() + 4).sum();
        if wanted.has("wire_bytes_per_entry") {
            figures.wire_bytes_per_entry = Some(super::figures::per_entry(bytes as u64, scale.entries));
        }
        if wanted.has("catch_up") {
            figures.catch_up = Some(catch_up(scale, &pair, root.path(), &frames)?);
        }
    }
    if wanted.has("catch_up_1m") {
        let entries = MILLION * scale.entries / Scale::FULL.entries;
        let frames = pair.backlog(entries)?;
        let image = &pair.centre_image;
        let took = pair.ingest_into(image, &root.path().join("million.db"), &frames, entries)?.0;
        figures.catch_up_1m = Some(PerSecond { per_s: rate(entries, took) });
    }
    Ok(())
}

/// A centre and a node that holds everybody's rights, cut off from each other; as files of the moment of the cut.
struct Pair {
    accounts: u64,
    node_image: Image,
    centre_image: Image,
    centre_identity: centre_io::Identity,
    node_identity: node_io::Identity,
    cut_ms: u64,
}

fn card(number: u64) -> Result<CardNumber> {
    Ok(CardNumber::new(format!("c{number:05}"))?)
}

fn campus(node: &NodeName) -> Result<CampusConfig> {
    let terminal = |number: usize| -> Result<Terminal> {
        Ok(Terminal { id: TerminalId::new(format!("pos-{number}"))?, merchant: Some(1), groups: Vec::new() })
    };
    let terminals = (0..CLIENTS).map(terminal).collect::<Result<_>>()?;
    Ok(CampusConfig {
        institution: INSTITUTION,
        campus: CampusId(1),
        calendar: BusinessCalendar::CHINA,
        single_limit_fen: Fen::new(1_000_000),
        daily_limit_fen: Fen::new(10_000_000),
        policy: Policy::default(),
        voucher_keys: Vec::new(),
        hours: Vec::new(),
        holidays: Vec::new(),
        meals: Vec::new(),
        merchants: vec![Merchant { id: 1, name: "canteen".to_owned(), tariff: Default::default() }],
        buildings: vec![Building { node: node.clone(), terminals }],
    })
}

/// A tap of one yuan; a terminal and a card that were not used just before.
fn tap(number: u64, accounts: u64) -> Result<node_io::Input> {
    let terminal = TerminalId::new(format!("pos-{}", number % CLIENTS as u64))?;
    let request = TapRequest {
        key: TapKey { terminal, epoch: 1, sequence: Key::new(number.to_string())? },
        card: card(1 + number * 7_919 % accounts)?,
        code: None,
        kind: TapKind::Amount(Fen::new(100)),
        pin: Pin::Absent,
    };
    Ok(node_io::Input::Tap(node_io::Ticket(number), request))
}

/// The centre's core and its time.
struct Centre {
    core: ReconcileCore,
    ms: u64,
    down: VecDeque<Frame>,
}

impl Centre {
    fn step(&mut self, inputs: Vec<centre_io::Input>) -> Result<Option<centre_io::Reply>> {
        let wall = START.plus_ms(i64::try_from(self.ms)?);
        let now = centre_io::Now { mono_ms: self.ms, wall, real: wall };
        let mut outputs = Vec::new();
        self.core.step(now, inputs, &mut outputs)?;
        let mut replied = None;
        for output in outputs {
            match output {
                centre_io::Output::Reply(_, reply) => replied = Some(reply),
                centre_io::Output::Send(_, frame) => self.down.push_back(frame),
                centre_io::Output::CloseLink(_, why) => bail!("the centre closes the link: {why}"),
            }
        }
        Ok(replied)
    }

    fn command(&mut self, command: centre_io::Command) -> Result<serde_json::Value> {
        let input = centre_io::Input::Command(centre_io::Ticket(1), command);
        let reply = self.step(vec![input])?.context("the centre gives no answer")?;
        reply.map_err(|error| anyhow!("{}: {error}", error.code))
    }

    fn enrol(&mut self, name: &NodeName, log_key: &SigningKey) -> Result<u16> {
        let lookup = hex(&[1; 32]);
        let secret = hex(&[1; 16]);
        self.command(centre_io::Command::CreateEnrolment {
            name: name.clone(),
            role: Role::Pos,
            lookup: lookup.clone(),
            secret,
        })?;
        let log_key = hex(log_key.verifying_key().as_bytes());
        let reply = self.command(centre_io::Command::Enrol { lookup, log_key, pin_key: None })?;
        Ok(u16::try_from(reply["node"].as_u64().context("the answer to an enrolment names no node")?)?)
    }

    fn frames(&mut self, frames: Vec<Frame>) -> Result<()> {
        self.step(
            frames.into_iter().map(|frame| centre_io::Input::Frame(centre_io::LinkId(LINK), frame)).collect(),
        )?;
        Ok(())
    }

    fn link_up(&mut self, node: NodeId) -> Result<()> {
        let link = centre_io::LinkId(LINK);
        self.step(vec![centre_io::Input::LinkUp { link, node, incarnation: 1, expired: false }])?;
        Ok(())
    }
}

/// A node's core and its time.
struct Node {
    core: NodeCore,
    ms: u64,
    up: VecDeque<Frame>,
    approved: u64,
    unspent: i64,
}

impl Node {
    fn open(connection: Connection, identity: &node_io::Identity, ms: u64) -> Result<Self> {
        let core = NodeCore::open(connection, identity.clone(), node_io::Settings { ask_deadline_ms: 300 })?;
        Ok(Self { core, ms, up: VecDeque::new(), approved: 0, unspent: 0 })
    }

    fn step(&mut self, inputs: Vec<node_io::Input>) -> Result<()> {
        let wall = START.plus_ms(i64::try_from(self.ms)?);
        let now = node_io::Now { mono_ms: self.ms, wall, elapsed_ms: self.ms };
        let mut outputs = Vec::new();
        self.core.step(now, inputs, &mut outputs)?;
        for output in outputs {
            match output {
                node_io::Output::Send(_, frame) => self.up.push_back(frame),
                node_io::Output::Decided { decision: Decision::Approved { .. }, .. } => self.approved += 1,
                node_io::Output::Status(_, status) => self.unspent = status.unspent_fen,
                node_io::Output::CloseLink(_, why) => bail!("the node closes the link: {why}"),
                other => bail!("not what was expected: {other:?}"),
            }
        }
        Ok(())
    }

    fn frames(&mut self, frames: Vec<Frame>) -> Result<()> {
        self.step(
            frames.into_iter().map(|frame| node_io::Input::Frame(node_io::LinkId(LINK), frame)).collect(),
        )
    }

    /// So many taps in one step, from one number on.
    fn taps(&mut self, from: u64, count: usize, accounts: u64) -> Result<()> {
        let inputs = (from..).take(count).map(|number| tap(number, accounts)).collect::<Result<_>>()?;
        self.step(inputs)
    }
}

impl Pair {
    fn new(accounts: u64) -> Result<Self> {
        let (centre_disk, node_disk) = (Disk::new(), Disk::new());
        let centre_identity =
            centre_io::Identity { institution: INSTITUTION, log_key: SigningKey::from_bytes(&[9; 32]) };
        let core = ReconcileCore::open(centre_disk.open("centre.db")?, centre_identity.clone())?;
        let mut centre = Centre { core, ms: 1_000, down: VecDeque::new() };
        let name = NodeName::new("canteen")?;
        centre
            .command(centre_io::Command::PublishCampus { config: serde_json::to_value(campus(&name)?)? })?;
        let mut first = 1;
        while first <= accounts {
            let last = accounts.min(first + IMPORT_PART - 1);
            let people = (first..=last).map(person).collect::<Result<_>>()?;
            centre.command(centre_io::Command::ImportAccounts { accounts: people })?;
            first = last + 1;
        }
        let log_key = SigningKey::from_bytes(&[7; 32]);
        let node_identity = node_io::Identity {
            institution: INSTITUTION,
            campus: CampusId(1),
            node: NodeId(centre.enrol(&name, &log_key)?),
            name,
            role: Role::Pos,
            incarnation: 1,
            log_key,
            centre_key: centre_identity.log_key.verifying_key().into(),
        };
        let mut node = Node::open(node_disk.open("node.db")?, &node_identity, centre.ms)?;
        centre.link_up(node_identity.node)?;
        node.step(vec![node_io::Input::LinkUp(node_io::LinkId(LINK))])?;
        let expected = OPENING.get() * i64::try_from(accounts)?;
        while node.unspent < expected || !centre.down.is_empty() || !node.up.is_empty() {
            let (down, up) = (std::mem::take(&mut centre.down), std::mem::take(&mut node.up));
            if !down.is_empty() {
                node.frames(down.into())?;
            }
            if up.is_empty() {
                centre.step(vec![centre_io::Input::Timer])?
            } else {
                centre.frames(up.into()).map(|()| None)?
            };
            node.step(vec![node_io::Input::Status(node_io::Ticket(0)), node_io::Input::Timer])?;
            centre.ms += 10;
            node.ms += 10;
            ensure!(centre.ms < REST_MAX_MS, "the rights of all accounts do not come to the node");
        }
        centre.step(vec![centre_io::Input::LinkDown(centre_io::LinkId(LINK))])?;
        node.step(vec![node_io::Input::LinkDown(node_io::LinkId(LINK))])?;
        let cut_ms = node.ms;
        drop((centre, node));
        Ok(Self {
            accounts,
            node_image: node_disk.image(),
            centre_image: centre_disk.image(),
            centre_identity,
            node_identity,
            cut_ms,
        })
    }

    /// The frames in which a node sends a backlog of taps, as many as come before the first acknowledgement.
    fn backlog(&mut self, entries: u64) -> Result<Vec<Frame>> {
        let centre_disk = Disk::from_image(&self.centre_image);
        let core = ReconcileCore::open(centre_disk.open("centre.db")?, self.centre_identity.clone())?;
        let mut centre = Centre { core, ms: self.cut_ms + entries, down: VecDeque::new() };
        let disk = Disk::from_image(&self.node_image);
        let mut node = Node::open(disk.open("node.db")?, &self.node_identity, self.cut_ms)?;
        let mut done = 0;
        while done < entries {
            let count = BACKLOG_COMMIT.min(usize::try_from(entries - done)?);
            node.taps(1 + done, count, self.accounts)?;
            done += count as u64;
            node.ms += 1;
        }
        ensure!(node.approved == entries, "{} of {entries} taps were approved", node.approved);
        centre.link_up(self.node_identity.node)?;
        node.step(vec![node_io::Input::LinkUp(node_io::LinkId(LINK))])?;
        let mut frames = Vec::new();
        let mut sent = 0;
        while sent < entries {
            let up: Vec<Frame> = std::mem::take(&mut node.up).into();
            for frame in &up {
                if let Frame::Entries(batch) = frame {
                    sent += batch.records.len() as u64;
                    frames.push(frame.clone());
                }
            }
            centre.frames(up)?;
            let down: Vec<Frame> = std::mem::take(&mut centre.down).into();
            node.frames(down)?;
            ensure!(!node.up.is_empty() || sent >= entries, "the backlog stops at {sent}");
        }
        Ok(frames)
    }

    /// Feeds a backlog to a centre on a file; how long it took, and the connection.
    pub(super) fn ingest_into(
        &self,
        image: &Image,
        path: &Path,
        frames: &[Frame],
        entries: u64,
    ) -> Result<(Duration, Connection)> {
        image.write_file("centre.db", path)?;
        let core = ReconcileCore::open(Connection::open(path)?, self.centre_identity.clone())?;
        let mut centre = Centre { core, ms: self.cut_ms + entries + 1_000, down: VecDeque::new() };
        centre.link_up(self.node_identity.node)?;
        let hello = self.hello()?;
        centre.frames(vec![hello])?;
        // As many entries to a step as the centre's driver takes.
        let mut pace = Pace::default();
        let mut frames = frames.iter().peekable();
        let begun = Instant::now();
        while frames.peek().is_some() {
            let step = Instant::now();
            let (wanted, mut taken) = (pace.entries(false, false), 0);
            let mut batch = Vec::new();
            while taken < wanted
                && let Some(frame) = frames.next()
            {
                if let Frame::Entries(entries) = frame {
                    taken += entries.records.len();
                }
                batch.push(frame.clone());
            }
            // The node is in session: it acknowledges what the centre posts and grants meanwhile.
            batch.extend(centre.down.drain(..).filter_map(|frame| acknowledgement(&frame)));
            centre.frames(batch)?;
            pace.learn(taken, step.elapsed());
        }
        // What is still gathered is posted in its time.
        centre.ms += GATHERED_MS;
        centre.step(vec![centre_io::Input::Timer])?;
        let took = begun.elapsed();
        drop(centre);
        let connection = Connection::open(path)?;
        let log = feiqian_protocol::ids::LogId::node(INSTITUTION, self.node_identity.node).key();
        let posted: i64 = connection
            .query_row("SELECT named FROM logs WHERE log = ?1", [log], |row| row.get(0))
            .context("the backlog")?;
        ensure!(posted as u64 == entries, "{posted} of {entries} entries are posted");
        Ok((took, connection))
    }

    /// What the node says first, before its backlog: its log is longer than the centre's.
    fn hello(&self) -> Result<Frame> {
        let disk = Disk::from_image(&self.node_image);
        let mut node = Node::open(disk.open("node.db")?, &self.node_identity, self.cut_ms)?;
        node.step(vec![node_io::Input::LinkUp(node_io::LinkId(LINK))])?;
        node.up.pop_front().context("a node says nothing")
    }
}

/// What a node says to entries once it has applied them.
fn acknowledgement(frame: &Frame) -> Option<Frame> {
    let (Frame::Entries(entries) | Frame::Fresh(entries)) = frame else { return None };
    let Entries { log, first, records, .. } = entries;
    let position = first + records.len() as u64 - 1;
    Some(Frame::Ack(Ack { log: *log, position, countersignature: None }))
}

fn person(number: u64) -> Result<centre_io::ImportedAccount> {
    Ok(centre_io::ImportedAccount {
        card: card(number)?,
        patron_class: "student".to_owned(),
        opening_fen: OPENING,
        subsidy_fen: Fen::ZERO,
        single_limit_fen: None,
        daily_limit_fen: None,
        groups: Vec::new(),
        initial_pin: None,
        opened: None,
        valid_until: None,
    })
}

fn core_64(scale: &Scale, pair: &Pair, root: &Path) -> Result<(Rate, Cpu)> {
    let (image, path) = (root.join("image.db"), root.join("node.db"));
    pair.node_image.write_file("node.db", &image)?;
    // Both are copies made in the same way: how a file came to be shows in what writing to it costs.
    bare::copy(&image, &path)?;
    let mut node = Node::open(Connection::open(&path)?, &pair.node_identity, pair.cut_ms)?;
    let mut number = 1;
    node.taps(number, 1, pair.accounts)?;
    let copy = root.join("bare.db");
    bare::copy(&path, &copy)?;
    let (mut measured, mut baseline) = (Vec::new(), Vec::new());
    let (mut cpu, mut bare_cpu) = ((Duration::ZERO, 0), (Duration::ZERO, 0));
    for _ in 0..scale.runs {
        number += CLIENTS as u64;
        let (first, before) = (number, thread_cpu());
        measured.push(taps_per_second(&mut node, &mut number, scale.load, pair.accounts)?);
        cpu = (cpu.0 + (thread_cpu() - before), cpu.1 + number - first);
        // Open only while it is measured: the connections of a process share one page cache, and the one that was busy last
        // would leave nothing of it to the other.
        let connection = bare::open(&copy)?;
        let mut bare = BareTaps::new(&connection, pair.accounts, CLIENTS)?;
        bare.commit(CLIENTS)?;
        let (begun, before) = (Instant::now(), thread_cpu());
        let mut done = 0;
        while begun.elapsed() < scale.load {
            bare.commit(CLIENTS)?;
            done += CLIENTS as u64;
        }
        baseline.push(rate(done, begun.elapsed()));
        bare_cpu = (bare_cpu.0 + (thread_cpu() - before), bare_cpu.1 + done);
    }
    let cpu = Cpu { us: micros_each(cpu.0, cpu.1), baseline_us: micros_each(bare_cpu.0, bare_cpu.1) };
    Ok((Rate::new(median_rate(&mut measured), median_rate(&mut baseline)), cpu))
}

fn taps_per_second(node: &mut Node, number: &mut u64, time: Duration, accounts: u64) -> Result<u64> {
    let begun = Instant::now();
    let (first, approved) = (*number, node.approved);
    while begun.elapsed() < time {
        node.ms += 1;
        node.taps(*number, CLIENTS, accounts)?;
        *number += CLIENTS as u64;
    }
    let took = begun.elapsed();
    ensure!(node.approved - approved == *number - first, "taps were declined");
    Ok(rate(*number - first, took))
}

fn slow_disk_64(scale: &Scale, pair: &Pair) -> Result<PerSecond> {
    let disk = Disk::from_image(&pair.node_image);
    let mut node = Node::open(disk.open("node.db")?, &pair.node_identity, pair.cut_ms)?;
    disk.set_sync_delay(SLOW_SYNC);
    let mut number = 1;
    let mut measured = Vec::new();
    for _ in 0..scale.runs {
        measured.push(taps_per_second(&mut node, &mut number, scale.load, pair.accounts)?);
    }
    Ok(PerSecond { per_s: median_rate(&mut measured) })
}

fn catch_up(scale: &Scale, pair: &Pair, root: &Path, frames: &[Frame]) -> Result<Rate> {
    let (mut measured, mut baseline) = (Vec::new(), Vec::new());
    let path = root.join("centre.db");
    let bare = root.join("bare-centre.db");
    let mut rows = None;
    for _ in 0..scale.runs {
        let (took, connection) = pair.ingest_into(&pair.centre_image, &path, frames, scale.entries)?;
        measured.push(rate(scale.entries, took));
        pair.centre_image.write_file("centre.db", &bare)?;
        let rows = match &rows {
            Some(rows) => rows,
            None => rows.insert(ingest::Rows::written(&connection, &bare)?),
        };
        baseline.push(rate(scale.entries, ingest::write(rows, &bare)?));
        drop(connection);
        for file in [&path, &bare] {
            std::fs::remove_file(file)?;
        }
    }
    Ok(Rate::new(median_rate(&mut measured), median_rate(&mut baseline)))
}
