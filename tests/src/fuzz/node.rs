//! A node's core against a script: terminals that say anything, links that come and go, clocks that jump, restarts, an old
//! copy of the disk, and a centre that signs what it likes. Whatever comes, no step fails, what was approved is
//! answered the same for ever, and the tables say what the entries say.

mod asked;
mod start;

use std::collections::BTreeMap;

use feiqian_node::core::NodeCore;
use feiqian_node::io::{Input, LinkId, LinkState, Now, Output, Settings, Status, Ticket};
use feiqian_node::verify::verify;
use feiqian_protocol::account::{Document, actor_id};
use feiqian_protocol::campus::Mode;
use feiqian_protocol::chain::{Countersignature, Cursor, Head, LogWriter, unhex};
use feiqian_protocol::entry::{Body, Grant, ShareGrant, StandInGrant};
use feiqian_protocol::frame::{
    Ack, Branch, CentreHello, Entries, Frame, LogCursor, LossNotice, No, PROTOCOL_VERSION, Recall,
    RefusalReason,
};
use feiqian_protocol::ids::{AccountId, Epoch, LogId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::snapshot::{
    AccountState, CampusState, PieceDigest, PieceWriter, Snapshot, SnapshotPiece,
};
use feiqian_protocol::tap::{Decision, TapKey};
use feiqian_protocol::time::{BusinessCalendar, Hlc};
use feiqian_sim::vfs::{Disk, Image};

use self::asked::{Asked, reversal, tap};
pub(crate) use self::start::campus;
use self::start::{OWN, Stream, TO_NODE, centre_key, identity, shard, start};
use super::script::{INSTITUTION, START, Script};

const NODE: NodeId = NodeId(1);

/// Moves of one script, which bounds what one run costs.
const MOVES_MAX: usize = 120;

/// Accounts that the node knows; cards `c5` and `c6` have none.
const ACCOUNTS: u64 = 4;

const SETTINGS: Settings = Settings { ask_deadline_ms: 300 };

/// One script.
pub fn session(data: &[u8]) {
    let mut script = Script::new(data);
    let start = start();
    let disk = Disk::from_image(&start.image);
    let mut rig = Rig::open(disk, start.streams.clone(), start.documents.clone());
    for _ in 0..MOVES_MAX {
        if script.is_over() {
            break;
        }
        rig.play(&mut script);
    }
    rig.end();
}

/// What was approved, by key.
type Approved = BTreeMap<TapKey, (Asked, Decision)>;

/// An old copy: of the disk, and of what had been approved by then.
struct Copy {
    image: Image,
    approved: Approved,
}

struct Rig {
    disk: Disk,
    core: NodeCore,
    now: Now,
    link: u64,
    tickets: u64,
    inputs: Vec<Input>,
    asked: BTreeMap<Ticket, Asked>,
    approved: Approved,
    status: Status,
    streams: BTreeMap<LogId, Stream>,
    documents: BTreeMap<AccountId, Vec<u8>>,
    /// The node's log as far as it was sent.
    own: Stream,
    ingested: Cursor,
    totals: BTreeMap<(AccountId, u8), i64>,
    copy: Option<Copy>,
}

impl Rig {
    fn open(disk: Disk, streams: BTreeMap<LogId, Stream>, documents: BTreeMap<AccountId, Vec<u8>>) -> Self {
        let connection = disk.open("node.db").expect("a disk in memory opens");
        let mut core = NodeCore::open(connection, identity(), SETTINGS).expect("a sound database opens");
        let now = Now { mono_ms: 0, wall: START, elapsed_ms: 0 };
        let status = status_of(&mut core, now);
        Self {
            disk,
            core,
            now,
            link: 0,
            tickets: 0,
            inputs: Vec::new(),
            asked: BTreeMap::new(),
            approved: Approved::new(),
            status,
            streams,
            documents,
            own: Stream::new(OWN),
            ingested: Cursor::START,
            totals: BTreeMap::new(),
            copy: None,
        }
    }

    fn play(&mut self, script: &mut Script<'_>) {
        match script.choice(24) {
            0..=4 => {
                let asked = tap(script);
                self.ask(asked);
            }
            5 | 6 => {
                let asked = reversal(script);
                self.ask(asked);
            }
            7 => self.inputs.push(Input::Balance(Ticket(0), script.card().into())),
            8 => self.link_up(),
            9 => {
                let link = if script.rarely(4) { script.u64() } else { self.link };
                self.inputs.push(Input::LinkDown(LinkId(link)));
            }
            10 => self.meet(),
            11 => {
                let hello = self.hello(script);
                self.hear(Frame::CentreHello(hello));
            }
            12 | 13 => self.commit(script),
            14 if script.rarely(3) => self.snapshot(script),
            14 => self.grant(script),
            15 => {
                let ack = self.ack(script);
                self.hear(Frame::Ack(ack));
            }
            16 => {
                let no = No {
                    account: script.account(),
                    unit: script.unit(),
                    want: script.fen(),
                    r#final: script.rarely(2),
                    free: script.fen(),
                    unheard_ms: u64::from(script.rarely(2)) * u64::MAX,
                };
                self.hear(Frame::No(no));
            }
            17 => {
                let recall = Recall {
                    account: script.account(),
                    unit: script.unit(),
                    epoch: script.epoch(Epoch(self.status.epoch)),
                    amount: script.fen(),
                    after: script.near(self.status.applied),
                    from_day: script.day(),
                };
                self.hear(Frame::Recall(recall));
            }
            18 => {
                let (account, card) = (script.account(), script.card());
                let log = if script.rarely(3) { script.log() } else { shard(account) };
                let notice = LossNotice { account, card, log, position: script.u64() };
                self.hear(Frame::LossNotice(notice));
            }
            19 => {
                if let Ok(frame) = Frame::from_bytes(script.bytes(512)) {
                    self.hear(frame);
                }
            }
            20 => self.pass(script),
            21 => self.restart(),
            22 => self.copy_or_restore(script),
            _ => self.tail(script),
        }
        // Several inputs share a step now and then.
        if !script.rarely(4) {
            self.step();
        }
    }

    fn ask(&mut self, asked: Asked) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.inputs.push(asked.input(ticket));
        self.asked.insert(ticket, asked);
    }

    fn hear(&mut self, frame: Frame) {
        self.inputs.push(Input::Frame(LinkId(self.link), frame));
    }

    fn link_up(&mut self) {
        self.link += 1;
        self.inputs.push(Input::LinkUp(LinkId(self.link)));
    }

    /// A session as it should be: Hello each way, then all that the node lacks.
    fn meet(&mut self) {
        self.link_up();
        self.step();
        self.hear(Frame::CentreHello(CentreHello {
            version: PROTOCOL_VERSION,
            session: self.link,
            time: self.now.wall,
            log: self.ingested,
            refused: None,
            branch: None,
            returning: None,
        }));
        self.step();
        let frames: Vec<Entries> =
            self.streams.values().filter_map(|stream| stream.after(self.held(stream.writer.log()))).collect();
        for entries in frames {
            self.hear(Frame::Entries(entries));
        }
        self.step();
    }

    /// How much of a stream the node has applied.
    fn held(&self, log: LogId) -> u64 {
        match log.as_shard() {
            Some(shard) => self.status.shards.get(usize::from(shard)).copied().unwrap_or(0),
            None => self.status.applied,
        }
    }

    fn hello(&self, script: &mut Script<'_>) -> CentreHello {
        let reasons = [
            RefusalReason::ShortLog,
            RefusalReason::ForkedLog,
            RefusalReason::StaleGrants,
            RefusalReason::CentreBehind,
            RefusalReason::Incarnation,
            RefusalReason::Version,
        ];
        let refused = script.rarely(3).then(|| script.pick(&reasons));
        let branch = script.rarely(6).then(|| Branch {
            log: if script.rarely(4) { script.log() } else { LogId::branch(INSTITUTION, NODE, 1) },
            after: script.near(self.status.position),
        });
        let mut log = self.ingested;
        if script.rarely(4) {
            log.position = script.near(self.status.position);
        }
        let returning = script.rarely(6).then(|| {
            let log = if script.rarely(4) { script.log() } else { TO_NODE };
            let position = script.near(self.status.applied);
            vec![LogCursor { log, cursor: Cursor { position, hash: [0; 32] } }]
        });
        CentreHello {
            version: if script.rarely(16) { script.u32() as u16 } else { PROTOCOL_VERSION },
            session: script.u64(),
            time: script.time(),
            log,
            refused,
            branch,
            returning,
        }
    }

    /// A signed commit of anything, delivered more or less as it should be. What the node does not take was never written.
    fn commit(&mut self, script: &mut Script<'_>) {
        self.step();
        let account = script.account();
        let log = if script.rarely(2) { TO_NODE } else { shard(account) };
        let before = self.streams.get(&log).cloned();
        let mut stream = before.clone().unwrap_or_else(|| Stream::new(log));
        let mut bodies = Vec::new();
        for _ in 0..=script.choice(3) {
            bodies.push(if script.rarely(12) {
                script.node_body(Epoch(self.status.epoch), self.status.position)
            } else if log == TO_NODE {
                script.to_node_body(Epoch(self.status.epoch))
            } else {
                let saved = self.documents.get(&account).cloned();
                let bytes = script.bytes(48);
                script.shard_body(account, |intent| {
                    carried_out(saved, account, intent).unwrap_or_else(|| bytes.to_vec())
                })
            });
        }
        let anchor = if script.rarely(8) { script.time() } else { self.now.wall };
        stream.commit(self.now.wall, anchor, bodies);
        let held = self.held(log);
        let from = if script.rarely(6) { held.saturating_sub(u64::from(script.byte() % 4)) } else { held };
        let Some(mut entries) = stream.after(from) else { return };
        match script.byte() {
            0..=7 => entries.first = script.near(entries.first),
            8..=15 => entries.heads.clear(),
            16..=23 => entries.log = script.log(),
            24..=31 => entries.records.reverse(),
            32..=39 => {
                entries.records.pop();
            }
            _ => {}
        }
        self.streams.insert(log, stream);
        if !entries.records.is_empty() {
            self.hear(Frame::Entries(entries));
        }
        self.step();
        let end = self.streams.get(&log).map_or(0, |stream| stream.writer.cursor().position);
        if self.held(log) != end {
            match before {
                Some(before) => self.streams.insert(log, before),
                None => self.streams.remove(&log),
            };
        }
    }

    /// A grant with the right total, of which the node makes use.
    fn grant(&mut self, script: &mut Script<'_>) {
        self.step();
        let account = AccountId(script.choice(ACCOUNTS as usize) as u64 + 1);
        let (epoch, time, wallet) = (Epoch(self.status.epoch), self.now.wall, Wallet::Cash);
        let amount = i64::from(script.byte()) * 20;
        let kind = script.choice(3) as u8;
        // Far above what a script's first grants come to, so that the total never falls.
        let total = self.totals.entry((account, kind)).or_insert(10_000);
        *total += amount;
        let (amount, total) = (Fen::new(amount), Fen::new(*total));
        let grant = Grant { account, wallet, epoch, amount, total, time };
        let body: Body = match kind {
            0 => grant.into(),
            1 => StandInGrant(grant).into(),
            _ => {
                let from_day = BusinessCalendar::CHINA.day(self.now.wall);
                ShareGrant { account, epoch, from_day, amount, total, time }.into()
            }
        };
        let stream = self.streams.entry(TO_NODE).or_insert_with(|| Stream::new(TO_NODE));
        let before = stream.clone();
        stream.commit(time, time, vec![body]);
        if let Some(entries) = self.streams.get(&TO_NODE).and_then(|stream| stream.after(self.status.applied))
        {
            self.hear(Frame::Entries(entries));
        }
        self.step();
        if self.status.applied <= before.writer.cursor().position {
            self.streams.insert(TO_NODE, before);
        }
    }

    /// A snapshot of an account's stream, signed, somewhat ahead of what the node has, with some of its pieces.
    fn snapshot(&mut self, script: &mut Script<'_>) {
        self.step();
        let account = AccountId(script.choice(ACCOUNTS as usize) as u64 + 1);
        let log = shard(account);
        let mut states = Vec::new();
        if let Some(saved) = self.documents.get(&account)
            && let Ok(mut document) = Document::load(saved, actor_id(INSTITUTION, NodeId(9), 1, 1, account))
            && let Ok(settings) = document.settings()
        {
            let heads = document.heads().iter().filter_map(|head| Some(unhex(head)?.into())).collect();
            let balances = vec![(script.wallet(), script.fen())];
            let (document, settings) = (document.save().into(), settings.canonical());
            states.push(AccountState { account, document, settings, heads, balances });
        }
        let mut writer = PieceWriter::default();
        let mut pieces: Vec<Vec<u8>> = states.iter().filter_map(|state| writer.add(state)).collect();
        pieces.extend(writer.finish());
        let Some(stream) = self.streams.get(&log) else { return };
        let mut cursor = stream.writer.cursor();
        if !script.rarely(3) {
            cursor = Cursor { position: script.near(cursor.position + 5), hash: [script.byte(); 32] };
        }
        let digest = pieces.iter().fold(PieceDigest::default(), |digest, piece| digest.with(piece));
        let snapshot = Snapshot {
            end: Head { log, cursor, applied: 0, anchor: self.now.wall }.sign(&centre_key()),
            time: if script.rarely(4) { script.time() } else { self.now.wall },
            accounts: if script.rarely(8) { script.u64() } else { states.len() as u64 },
            pieces: if script.rarely(8) { script.u32() } else { pieces.len() as u32 },
            digest: if script.rarely(8) { [0; 32] } else { digest.0 },
            projection: String::new(),
            posted: (0..script.choice(3)).map(|_| script.posted_head()).collect(),
            campus: script.rarely(4).then(|| CampusState {
                version: script.u32(),
                config: campus(Mode::Strict).to_bytes().unwrap_or_default().into(),
                unlimited: script.rarely(2),
            }),
        };
        self.hear(Frame::Snapshot(Box::new(snapshot.sign(&centre_key()))));
        for (index, piece) in (0..).zip(pieces) {
            let index = if script.rarely(8) { script.u32() } else { index };
            let accounts = if script.rarely(8) { script.bytes(64).to_vec() } else { piece };
            let position = if script.rarely(8) { script.u64() } else { cursor.position };
            self.hear(Frame::SnapshotPiece(SnapshotPiece {
                log,
                position,
                index,
                accounts: accounts.into(),
            }));
        }
        self.step();
        if self.held(log) == cursor.position
            && let Some(stream) = self.streams.get_mut(&log)
            && stream.writer.cursor() != cursor
        {
            // From here on the stream is what follows it.
            let writer = LogWriter::new(log, cursor, stream.writer.clock());
            *stream = Stream { base: cursor.position, writer, records: Vec::new(), heads: Vec::new() };
        }
    }

    fn ack(&self, script: &mut Script<'_>) -> Ack {
        let log = if script.rarely(6) { script.log() } else { OWN };
        let mut cursor = self.own.writer.cursor();
        if script.rarely(3) {
            cursor.position = script.near(cursor.position);
        }
        let countersignature = (!script.rarely(3)).then(|| {
            let mut signed = cursor;
            if script.rarely(6) {
                signed.hash[0] ^= 1;
            }
            Countersignature::sign(log, signed, &centre_key())
        });
        Ack { log, position: cursor.position, countersignature }
    }

    fn pass(&mut self, script: &mut Script<'_>) {
        self.step();
        let ms = match script.choice(4) {
            0 => u64::from(script.byte()),
            1 => u64::from(script.byte()) * 1_000,
            2 => u64::from(script.byte()) * 3_600_000,
            _ => 400,
        };
        self.now.mono_ms += ms;
        self.now.elapsed_ms += ms;
        self.now.wall = if script.rarely(5) { script.time() } else { self.now.wall.plus_ms(ms as i64) };
        self.inputs.push(Input::Timer);
    }

    /// The process ends between two steps, and starts again.
    fn restart(&mut self) {
        self.inputs.clear();
        self.disk.kill();
        let connection = self.disk.open("node.db").expect("a disk in memory opens");
        self.core = NodeCore::open(connection, identity(), SETTINGS).expect("what was committed opens");
        self.now.mono_ms = 0;
        self.now.elapsed_ms = 0;
        self.status = status_of(&mut self.core, self.now);
    }

    /// Keeps a copy of the disk, or brings the one that was kept back.
    fn copy_or_restore(&mut self, script: &mut Script<'_>) {
        self.step();
        match self.copy.take() {
            Some(copy) if script.rarely(2) => {
                self.disk.restore(&copy.image);
                self.approved = copy.approved;
                self.restart();
            }
            _ => self.copy = Some(Copy { image: self.disk.image(), approved: self.approved.clone() }),
        }
    }

    /// The node's own log comes back to it.
    fn tail(&mut self, script: &mut Script<'_>) {
        let from = if script.rarely(4) { script.u64() } else { self.status.position };
        if let Some(mut entries) = self.own.after(from) {
            if script.rarely(6) {
                entries.heads.pop();
            }
            self.hear(Frame::Entries(entries));
        }
    }

    fn step(&mut self) {
        self.inputs.push(Input::Status(Ticket(0)));
        let inputs = std::mem::take(&mut self.inputs);
        let mut outputs = Vec::new();
        self.core.step(self.now, inputs, &mut outputs).expect("nothing that comes from outside fails a step");
        for output in outputs {
            match output {
                Output::Decided { ticket, decision, .. } => self.decided(ticket, decision),
                Output::Status(_, status) => self.status = *status,
                Output::Send(_, Frame::Entries(entries)) => self.uploaded(&entries),
                _ => {}
            }
        }
    }

    fn decided(&mut self, ticket: Ticket, decision: Decision) {
        let Some(asked) = self.asked.get(&ticket) else { return };
        if let Some((first, before)) = self.approved.get(asked.key()) {
            assert_eq!((first, before), (asked, &decision), "the first answer stands");
        } else if matches!(decision, Decision::Approved { .. }) {
            self.approved.insert(asked.key().clone(), (asked.clone(), decision));
        }
    }

    fn uploaded(&mut self, entries: &Entries) {
        let Ok(known) = usize::try_from(entries.first.saturating_sub(1)) else { return };
        if known > self.own.records.len() {
            return;
        }
        // The newest continuation counts; an older one is what a copy of the disk had written.
        let cursor = entries.heads.last().map_or(Cursor::START, |head| head.head.cursor);
        self.own.records.truncate(known);
        self.own.heads.retain(|head| head.head.cursor.position < entries.first);
        self.own.records.extend(entries.records.iter().map(|record| record.to_vec()));
        self.own.heads.extend(&entries.heads);
        self.own.writer = LogWriter::new(OWN, cursor, Hlc::default());
        self.ingested = cursor;
    }

    /// What was approved is still known, and the tables say what the entries say.
    fn end(mut self) {
        self.step();
        self.restart();
        for (asked, _) in self.approved.clone().into_values() {
            self.ask(asked);
        }
        let tickets = self.tickets;
        let expected = self.approved.len();
        let again: Vec<Ticket> = (1..=expected as u64).map(|back| Ticket(tickets + 1 - back)).collect();
        let inputs = std::mem::take(&mut self.inputs);
        let mut outputs = Vec::new();
        self.core.step(self.now, inputs, &mut outputs).expect("a step of repeats");
        for ticket in again {
            let asked = &self.asked[&ticket];
            let (_, first) = &self.approved[asked.key()];
            let answered = outputs.iter().any(|output| {
                matches!(output, Output::Decided { ticket: of, decision, repeat: true, .. }
                    if *of == ticket && decision == first)
            });
            assert!(answered, "{asked:?} was approved and is not known any more");
        }
        let reader = self.disk.open("node.db").expect("a disk in memory opens");
        let report = verify(&reader, &identity()).expect("the database is read");
        assert!(report.ok, "{:?}", report.problems);
        assert!(matches!(self.status.link, LinkState::Down), "a process that starts has no link");
    }
}

fn status_of(core: &mut NodeCore, now: Now) -> Status {
    let mut outputs = Vec::new();
    core.step(now, vec![Input::Status(Ticket(0))], &mut outputs).expect("a status is always there");
    outputs
        .into_iter()
        .find_map(|output| match output {
            Output::Status(_, status) => Some(*status),
            _ => None,
        })
        .expect("a status is answered")
}

/// The change that carries an intent out, where the account's first document allows it.
fn carried_out(
    saved: Option<Vec<u8>>,
    account: AccountId,
    intent: &feiqian_protocol::account::Intent,
) -> Option<Vec<u8>> {
    let actor = actor_id(INSTITUTION, NodeId::CENTRE, 1, 2, account);
    Document::load(&saved?, actor).ok()?.carry_out(intent, START).ok()
}
