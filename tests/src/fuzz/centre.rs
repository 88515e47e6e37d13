//! The centre's core against a script: a node with a real certificate that signs and says what it likes, operators who
//! command anything, clocks, restarts, and beside all that an honest node. Whatever comes, no step fails, the ledger
//! balances and every wallet is partitioned (`verify`), and the honest node's purchase is posted from its right.

mod node;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use ed25519_dalek::SigningKey;
use feiqian_protocol::account::{Document, actor_id};
use feiqian_protocol::campus::{CampusConfig, Mode};
use feiqian_protocol::chain::{Countersignature, Cursor, Head, LogWriter, hex};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{Actor, ActorKind, Body, Debit, Proof, Setting, TapRef};
use feiqian_protocol::frame::{
    Ack, Ask, Entries, Frame, LogCursor, Mark, NodeHello, Recalled, RefusalReason,
};
use feiqian_protocol::ids::{AccountId, CardNumber, Epoch, Key, LogId, NodeId, NodeName, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::snapshot::SnapshotAck;
use feiqian_protocol::time::{BusinessCalendar, Hlc, Timestamp};
use feiqian_reconcile::core::ReconcileCore;
use feiqian_reconcile::io::{Command, Identity, ImportedAccount, Input, LinkId, Now, Output, Reply, Ticket};
use feiqian_reconcile::verify::verify;
use feiqian_sim::vfs::{Disk, Image};

use self::node::Node;
use super::node::campus;
use super::script::{INSTITUTION, START, Script};

/// Moves of one script, which bounds what one run costs.
const MOVES_MAX: usize = 80;

const ACCOUNTS: u64 = 4;

/// Steps that may follow from one without time passing.
const STEPS_AT_REST_MAX: usize = 1_000;

/// The honest node's place in [`Rig::nodes`]; the others do what the script says.
const HONEST: usize = 0;

/// What a script begins with.
struct Start {
    image: Image,
    nodes: Vec<Node>,
    links: u64,
}

fn identity() -> Identity {
    Identity { institution: INSTITUTION, log_key: SigningKey::from_bytes(&[9; 32]) }
}

fn start() -> &'static Start {
    static START: OnceLock<Start> = OnceLock::new();
    START.get_or_init(prepare)
}

/// A campus, accounts with money, and three nodes that were in session and got their rights: one honest, a kiosk and a
/// desk.
fn prepare() -> Start {
    let disk = Disk::new();
    let mut rig = Rig::open(disk.clone(), Vec::new(), 0);
    let config = serde_json::to_value(campus(Mode::Hybrid)).expect("a configuration is plain data");
    rig.command(Command::PublishCampus { config }).expect("a sound configuration");
    for (name, role) in [("n1", Role::Pos), ("n2", Role::Kiosk), ("n3", Role::Desk)] {
        rig.enrol(name, role);
    }
    let accounts = (1..=ACCOUNTS).map(|number| account(&format!("c{number}"), 10_000));
    rig.command(Command::ImportAccounts { accounts: accounts.collect() }).expect("sound accounts");
    for node in 0..rig.nodes.len() {
        rig.meet(node);
        rig.cut(node);
    }
    Start { image: disk.image(), nodes: rig.nodes, links: rig.links }
}

fn account(card: &str, fen: i64) -> ImportedAccount {
    ImportedAccount {
        card: CardNumber::new(card).expect("letters and digits make a name"),
        patron_class: "student".to_owned(),
        opening_fen: Fen::new(fen),
        subsidy_fen: Fen::new(fen / 10),
        single_limit_fen: None,
        daily_limit_fen: None,
        groups: Vec::new(),
        initial_pin: None,
        opened: None,
        valid_until: None,
    }
}

/// One script.
pub fn session(data: &[u8]) {
    let mut script = Script::new(data);
    let start = start();
    let mut rig = Rig::open(Disk::from_image(&start.image), start.nodes.clone(), start.links);
    for node in 0..rig.nodes.len() {
        rig.meet(node);
    }
    for _ in 0..MOVES_MAX {
        if script.is_over() {
            break;
        }
        rig.play(&mut script);
    }
    rig.end();
}

struct Rig {
    disk: Disk,
    core: ReconcileCore,
    now: Now,
    nodes: Vec<Node>,
    links: u64,
    inputs: Vec<Input>,
    replies: Vec<Reply>,
}

impl Rig {
    fn open(disk: Disk, nodes: Vec<Node>, links: u64) -> Self {
        let connection = disk.open("centre.db").expect("a disk in memory opens");
        let core = ReconcileCore::open(connection, identity()).expect("a sound database opens");
        let now = Now { mono_ms: 0, wall: START, real: START };
        Self { disk, core, now, nodes, links, inputs: Vec::new(), replies: Vec::new() }
    }

    fn enrol(&mut self, name: &str, role: Role) {
        let seed = self.nodes.len() as u8 + 1;
        let key = SigningKey::from_bytes(&[seed; 32]);
        let lookup = hex(&[seed; 32]);
        let node_name = NodeName::new(name).expect("letters and digits make a name");
        let secret = hex(&[seed; 16]);
        self.command(Command::CreateEnrolment { name: node_name, role, lookup: lookup.clone(), secret })
            .expect("a new code");
        let log_key = hex(key.verifying_key().as_bytes());
        self.command(Command::Enrol { lookup, log_key, pin_key: None }).expect("a code that was just made");
        let id = NodeId(u16::from(seed));
        let writer = LogWriter::new(LogId::node(INSTITUTION, id), Cursor::START, Hlc::default());
        self.nodes.push(Node {
            id,
            name: name.to_owned(),
            incarnation: 1,
            key,
            writer,
            records: Vec::new(),
            heads: Vec::new(),
            earlier: None,
            streams: BTreeMap::new(),
            granted: BTreeMap::new(),
            branch: None,
            acked: 0,
            link: None,
            epoch: Epoch::FIRST,
            anchor: Timestamp(0),
        });
    }

    fn command(&mut self, command: Command) -> Reply {
        self.inputs.push(Input::Command(Ticket(1), command));
        self.settle();
        self.replies.pop().expect("a command is answered")
    }

    fn play(&mut self, script: &mut Script<'_>) {
        let node = 1 + script.choice(self.nodes.len() - 1);
        match script.choice(20) {
            0 => self.link_up(node, script.rarely(4)),
            1 => self.meet(node),
            2 => self.cut(node),
            3 => {
                let hello = self.hello(node, script);
                self.say(node, Frame::NodeHello(Box::new(hello)));
            }
            4..=7 => self.write(node, script),
            8 => self.fork(node, script),
            9 => {
                let ask = Ask {
                    account: script.account(),
                    unit: script.unit(),
                    epoch: script.epoch(self.nodes[node].epoch),
                    want: script.fen(),
                    at: script.near(self.nodes[node].writer.cursor().position),
                    ms_left: script.u64(),
                };
                self.say(node, Frame::Ask(ask));
            }
            10 => {
                let at = script.near(self.nodes[node].writer.cursor().position);
                let recalled = Recalled { account: script.account(), unit: script.unit(), at };
                self.say(node, Frame::Recalled(recalled));
            }
            11 => {
                let position = script.near(self.nodes[node].writer.cursor().position);
                self.say(node, Frame::Mark(Mark { position, clock: Hlc::from_bits(script.u64()) }));
            }
            12 => {
                let log = script.log();
                let position = script.near(self.nodes[node].cursor(log).position);
                self.say(node, Frame::Ack(Ack { log, position, countersignature: None }));
            }
            13 if script.rarely(2) => {
                let log = LogId::shard(INSTITUTION, script.byte() % 17);
                let position = script.near(self.nodes[node].cursor(log).position);
                let ack = SnapshotAck { log, position, pieces: script.u32(), differs: script.rarely(4) };
                self.say(node, Frame::SnapshotAck(ack));
            }
            13 => {
                if let Ok(frame) = Frame::from_bytes(script.bytes(512)) {
                    self.say(node, frame);
                }
            }
            14 => self.setting(node, script),
            15..=17 => {
                let command = command(script, &self.nodes[node]);
                self.inputs.push(Input::Command(Ticket(1), command));
            }
            18 => {
                let ms = i64::from(script.byte()) * script.pick(&[1, 1_000, 3_600_000]);
                self.now.mono_ms += ms as u64;
                self.now.real = self.now.real.plus_ms(ms);
                self.now.wall = if script.rarely(5) { script.time() } else { self.now.wall.plus_ms(ms) };
                self.inputs.push(Input::Timer);
            }
            _ => self.restart(),
        }
        if !script.rarely(4) {
            self.settle();
        }
    }

    fn link_up(&mut self, node: usize, expired: bool) {
        self.links += 1;
        let link = LinkId(self.links);
        let Node { id, incarnation, .. } = self.nodes[node];
        self.nodes[node].link = Some(link);
        self.inputs.push(Input::LinkUp { link, node: id, incarnation, expired });
    }

    fn say(&mut self, node: usize, frame: Frame) {
        if let Some(link) = self.nodes[node].link {
            self.inputs.push(Input::Frame(link, frame));
        }
    }

    /// A session as it should be.
    fn meet(&mut self, node: usize) {
        self.link_up(node, false);
        let hello = self.nodes[node].hello();
        self.say(node, Frame::NodeHello(Box::new(hello)));
        self.settle();
    }

    fn cut(&mut self, node: usize) {
        if let Some(link) = self.nodes[node].link.take() {
            self.inputs.push(Input::LinkDown(link));
            self.settle();
        }
    }

    fn hello(&self, node: usize, script: &mut Script<'_>) -> NodeHello {
        let node = &self.nodes[node];
        let mut hello = node.hello();
        match script.choice(11) {
            8 => hello.kept_after = vec![script.u64(); script.choice(20)],
            9 => {
                // Heads that nobody but the centre could have signed, signed by the node.
                let cursor = Cursor { position: script.u64(), hash: [script.byte(); 32] };
                let head = Head { log: script.log(), cursor, applied: 0, anchor: script.time() };
                hello.heads.push(head.sign(&node.key));
                hello.refused = Some(script.pick(&[RefusalReason::ForkedLog, RefusalReason::ShortLog]));
            }
            0 => hello.log.position = script.near(hello.log.position),
            1 => hello.log.hash[0] ^= 1,
            2 => hello.to_node.position = script.near(hello.to_node.position),
            3 => hello.to_node.hash[0] ^= 1,
            4 => {
                let cursor = Cursor { position: script.u64(), hash: [script.byte(); 32] };
                hello.shards.push(LogCursor { log: script.log(), cursor });
            }
            5 => hello.version = script.u32() as u16,
            10 => hello.branch = Some(script.log()),
            6 => hello.incarnation = script.u32(),
            7 => {
                let cursor = Cursor { position: script.near(hello.log.position), hash: [script.byte(); 32] };
                hello.countersigned = Some(Countersignature::sign(node.log(), cursor, &identity().log_key));
            }
            _ => {}
        }
        hello
    }

    /// Entries of anything, signed, uploaded more or less as they should be.
    fn write(&mut self, node: usize, script: &mut Script<'_>) {
        let wall = if script.rarely(8) { script.time() } else { self.now.wall };
        let writer = &mut self.nodes[node];
        let applied = writer.cursor(writer.to_node()).position;
        for _ in 0..=script.choice(4) {
            let (actor, epoch) = (script.actor(), writer.epoch);
            let mut body = script.node_body(epoch, writer.writer.cursor().position);
            // Now and then what an honest node might write.
            if let Body::Debit(debit) = &mut body
                && script.rarely(2)
            {
                debit.epoch = epoch;
                debit.from_right = Fen::new(i64::from(script.byte()));
                debit.stand_in = Fen::new(i64::from(script.byte()));
            }
            writer.write(wall, actor, body);
            if script.rarely(3) {
                let anchor = if script.rarely(6) { script.time() } else { writer.anchor };
                writer.sign(applied, anchor);
            }
        }
        let applied = if script.rarely(8) { script.u64() } else { applied };
        writer.sign(applied, writer.anchor);
        self.upload(node, script);
    }

    fn upload(&mut self, node: usize, script: &mut Script<'_>) {
        let writer = &self.nodes[node];
        let after = if script.rarely(6) { script.near(writer.acked) } else { writer.acked };
        let Some(mut entries) = writer.entries_after(after) else { return };
        if let Some(branch) = writer.branch {
            entries.log = branch;
        }
        match script.byte() {
            0..=7 => entries.first = script.near(entries.first),
            8..=15 => entries.heads.truncate(1),
            16..=23 => entries.log = script.log(),
            24..=31 => entries.records.reverse(),
            32..=39 => {
                entries.records.pop();
            }
            40..=47 => {
                let head = Head { log: entries.log, ..entries.heads[0].head };
                entries.heads.insert(0, head.sign(&writer.key));
            }
            _ => {}
        }
        if !entries.records.is_empty() {
            self.say(node, Frame::Entries(entries));
        }
    }

    /// Goes back to an earlier end of its log and continues from there.
    fn fork(&mut self, node: usize, script: &mut Script<'_>) {
        let writer = &mut self.nodes[node];
        match writer.earlier.take() {
            Some((older, records, heads)) if script.rarely(2) => {
                writer.writer = older;
                writer.records.truncate(records);
                writer.heads.truncate(heads);
                writer.acked = writer.acked.min(records as u64);
            }
            _ => {
                writer.earlier = Some((writer.writer.clone(), writer.records.len(), writer.heads.len()));
            }
        }
    }

    /// A change of settings by a node, which may be what it says.
    fn setting(&mut self, node: usize, script: &mut Script<'_>) {
        let (account, intent) = (script.account(), script.intent());
        let reader = actor_id(INSTITUTION, self.nodes[node].id, 1, 1, account);
        let saved: Option<Vec<u8>> = self
            .core
            .connection()
            .query_row("SELECT document FROM accounts WHERE account = ?1", [account.0 as i64], |row| {
                row.get(0)
            })
            .ok();
        let bytes = script.bytes(64);
        let carried_out = saved.and_then(|saved| {
            let other = if script.rarely(6) { script.intent() } else { intent.clone() };
            Document::load(&saved, reader).ok()?.carry_out(&other, self.now.wall).ok()
        });
        let change = carried_out.unwrap_or_else(|| bytes.to_vec()).into();
        let setting = Setting {
            account,
            document_epoch: u32::from(!script.rarely(12)),
            intent,
            change,
            typed: None,
            of: None,
        };
        let (wall, actor) = (self.now.wall, script.actor());
        let writer = &mut self.nodes[node];
        writer.write(wall, actor, setting.into());
        let applied = writer.cursor(writer.to_node()).position;
        writer.sign(applied, writer.anchor);
        self.upload(node, script);
    }

    /// The process ends between two steps, and starts again.
    fn restart(&mut self) {
        self.inputs.clear();
        self.disk.kill();
        let connection = self.disk.open("centre.db").expect("a disk in memory opens");
        self.core = ReconcileCore::open(connection, identity()).expect("what was committed opens");
        self.now.mono_ms = 0;
        for node in &mut self.nodes {
            node.link = None;
        }
        self.meet(HONEST);
    }

    /// Steps until nothing is due. Nodes follow what is said to them; the honest one obeys as well.
    fn settle(&mut self) {
        for _ in 0..STEPS_AT_REST_MAX {
            if self.inputs.is_empty() {
                if self.core.next_timer().is_none_or(|due| due > self.now.mono_ms) {
                    return;
                }
                self.inputs.push(Input::Timer);
            }
            let mut outputs = Vec::new();
            let inputs = std::mem::take(&mut self.inputs);
            self.core
                .step(self.now, inputs, &mut outputs)
                .expect("nothing that comes from outside fails a step");
            for output in outputs {
                self.heard(output);
            }
        }
        unreachable!("the core spins: no time passes");
    }

    fn heard(&mut self, output: Output) {
        let (link, frame) = match output {
            Output::Reply(_, reply) => return self.replies.push(reply),
            Output::CloseLink(link, _) => {
                let closed = self.nodes.iter_mut().find(|node| node.link == Some(link));
                return closed.into_iter().for_each(|node| node.link = None);
            }
            Output::Send(link, frame) => (link, frame),
        };
        let Some(index) = self.nodes.iter().position(|node| node.link == Some(link)) else { return };
        let node = &mut self.nodes[index];
        match frame {
            Frame::Entries(entries) if entries.log.writer == NodeId::CENTRE => {
                if let Some(ack) = node.follow(&entries) {
                    self.inputs.push(Input::Frame(link, Frame::Ack(ack)));
                }
            }
            Frame::CentreHello(hello) => {
                node.branch = hello.branch.map(|branch| branch.log);
                node.acked = hello.branch.map_or(hello.log.position, |branch| branch.after);
            }
            Frame::Ack(ack) => node.acked = node.acked.max(ack.position),
            Frame::Recall(recall) if index == HONEST => {
                // It keeps what it has: its answer says that there is nothing to give.
                let at = node.writer.cursor().position;
                let recalled = Recalled { account: recall.account, unit: recall.unit, at };
                self.inputs.push(Input::Frame(link, Frame::Recalled(recalled)));
            }
            _ => {}
        }
    }

    /// The honest node buys within its right and is heard, and everything adds up.
    fn end(mut self) {
        self.settle();
        if self.nodes[HONEST].link.is_none() {
            self.meet(HONEST);
        }
        let wall = self.now.wall;
        let node = &mut self.nodes[HONEST];
        let key = (AccountId(1), Wallet::Cash);
        let spent = node.records.len() as i64;
        let right = node.granted.get(&key).copied().unwrap_or_default() - Fen::new(spent);
        let debit = Debit {
            tap: TapRef { epoch: 1, sequence: Key::new(format!("s{spent}")).expect("digits make a name") },
            account: key.0,
            wallet: key.1,
            epoch: node.epoch,
            from_right: Fen::new(1).min(right.or_zero()),
            stand_in: Fen::ZERO,
            allowance: Fen::ZERO,
            day: BusinessCalendar::CHINA.day(START),
            merchant: 1,
            card: CardNumber::new("c1").expect("a letter and a digit make a name"),
            measured: None,
            code: None,
            from_voucher: None,
            meal: None,
        };
        if debit.from_right.is_positive() {
            let actor = Actor {
                kind: ActorKind::Terminal,
                id: Key::new("t1").expect("a letter and a digit make a name"),
                proof: Proof::Card,
            };
            node.write(wall, actor, debit.into());
            let applied = node.cursor(node.to_node()).position;
            node.sign(applied, node.anchor);
            let position = node.writer.cursor().position;
            if let Some(entries) = node.entries_after(node.acked) {
                self.say(HONEST, Frame::Entries(entries));
            }
            self.settle();
            assert_eq!(self.nodes[HONEST].acked, position, "the honest node is heard");
            let log = self.nodes[HONEST].log().key();
            let faults: i64 = self
                .core
                .connection()
                .query_row("SELECT COUNT(*) FROM faults WHERE log = ?1", [log], |row| row.get(0))
                .expect("faults are counted");
            assert_eq!(faults, 0, "and is not blamed for anything");
        }
        self.restart();
        let key = identity().log_key.verifying_key();
        let report = verify(self.core.connection(), INSTITUTION, &key).expect("the database is read");
        assert!(report.ok, "{:?}", report.problems);
    }
}

fn policy(script: &mut Script<'_>) -> CampusConfig {
    let mut campus = campus(script.pick(&[Mode::Hybrid, Mode::Strict, Mode::Optimistic]));
    let policy = &mut campus.policy;
    policy.stand_in_habit_fen = script.fen();
    policy.stand_in_other_fen = script.fen();
    policy.stand_in_account_cap_fen = script.fen();
    policy.pool_percent = script.u32();
    policy.pool_habit_percent = script.u32();
    policy.pool_turnover_fen = script.fen();
    policy.decline_price_fen = script.fen();
    policy.history_days = script.u32();
    policy.view_age_minutes_max = script.u32();
    policy.refund_cap_fen = script.fen();
    policy.claim_term_minutes = script.u32();
    campus.daily_limit_fen = script.fen();
    campus.single_limit_fen = script.fen();
    campus.calendar.utc_offset_minutes = script.u32() as i32;
    campus.calendar.cutoff_minutes = script.u32();
    // One number that is out of range hides the others.
    for fen in [
        &mut campus.policy.stand_in_habit_fen,
        &mut campus.policy.stand_in_other_fen,
        &mut campus.policy.stand_in_account_cap_fen,
        &mut campus.policy.decline_price_fen,
        &mut campus.policy.refund_cap_fen,
        &mut campus.daily_limit_fen,
        &mut campus.single_limit_fen,
    ] {
        *fen = Fen::new(fen.get().clamp(0, 10_000_000));
    }
    campus.policy.pool_percent %= 1_001;
    campus.policy.pool_habit_percent %= 101;
    campus.calendar.utc_offset_minutes %= 1_441;
    campus.calendar.cutoff_minutes %= 1_440;
    campus
}

fn command(script: &mut Script<'_>, node: &Node) -> Command {
    let (card, operator) = (script.card(), script.key());
    let name = || NodeName::new(node.name.as_str()).expect("a node's name");
    match script.choice(10) {
        0 | 1 => Command::Topup {
            card,
            amount_fen: script.fen(),
            wallet: script.wallet(),
            channel: operator,
            key: script.key(),
        },
        2 => Command::ReportLoss { card, operator },
        3 => Command::LiftLoss { card, operator },
        4 => {
            let config = serde_json::to_value(policy(script)).expect("a configuration is plain data");
            Command::PublishCampus { config }
        }
        5 => {
            let mut accounts = vec![account(card.as_str(), script.i64())];
            accounts[0].daily_limit_fen = script.rarely(2).then(|| script.fen());
            accounts[0].patron_class = String::from_utf8_lossy(script.bytes(64)).into_owned();
            Command::ImportAccounts { accounts }
        }
        6 => Command::Retire { node: name(), force: script.rarely(2) },
        7 if script.rarely(3) => Command::Revoke { node: name(), enrolment: None },
        7 => Command::Renew { node: node.id, incarnation: script.u32() },
        8 => {
            let entries = node.entries_after(script.near(0)).unwrap_or_else(|| Entries {
                log: node.log(),
                first: 1,
                records: vec![script.bytes(64).to_vec().into()],
                heads: Vec::new(),
            });
            let frame = hex(&Frame::Entries(entries).to_bytes());
            Command::ImportLog { frame, branch: script.rarely(3).then(|| script.u32()) }
        }
        _ => Command::Status {},
    }
}
