//! A tiny centre for the tests of the core: it signs streams, keeps what the node uploads, and grants what it is told to.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use feiqian_protocol::account::{Document, Intent, NewAccount, actor_id};
use feiqian_protocol::campus::{Building, CampusConfig, Merchant, Mode, Policy, Terminal};
use feiqian_protocol::chain::{Countersignature, Cursor, LogWriter, SignedHead, verify};
use feiqian_protocol::code::VoucherKey;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{
    AccountOpened, Actor, Anchor, Body, CampusPublished, Credit, Entry, Grant, Setting, ShareGrant,
    StandInGrant,
};
use feiqian_protocol::frame::{Ack, CentreHello, Entries, Frame, NodeHello, PROTOCOL_VERSION, RefusalReason};
use feiqian_protocol::ids::{
    AccountId, CampusId, CardNumber, Epoch, InstitutionId, Key, LogId, NodeId, NodeName, TerminalId, Unit,
    Wallet,
};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, DeclineReason, Pin, ReversalRequest, TapKey, TapKind, TapRequest};
use feiqian_protocol::time::{BusinessCalendar, BusinessDay, Hlc, Timestamp};
use rusqlite::Connection;

use crate::core::NodeCore;
use crate::io::{Identity, Input, LinkId, Now, Output, Settings, Status, Ticket};

pub(crate) const INSTITUTION: InstitutionId = InstitutionId(1);
pub(crate) const NODE: NodeId = NodeId(1);
pub(crate) const ALICE: AccountId = AccountId(1);
pub(crate) const BOB: AccountId = AccountId(2);
pub(crate) const CASH: Unit = Unit::Wallet(Wallet::Cash);

/// 2022-11-07, 11:00 in China.
pub(crate) const MORNING: Timestamp = Timestamp(1_667_790_000_000);

pub(crate) fn fen(amount: i64) -> Fen {
    Fen::new(amount)
}

pub(crate) fn day(of: Timestamp) -> BusinessDay {
    BusinessCalendar::CHINA.day(of)
}

pub(crate) fn identity() -> Identity {
    Identity {
        institution: INSTITUTION,
        campus: CampusId(1),
        node: NODE,
        name: NodeName::new("canteen").unwrap(),
        role: Role::Pos,
        incarnation: 1,
        log_key: SigningKey::from_bytes(&[1; 32]),
        centre_key: SigningKey::from_bytes(&[2; 32]).verifying_key().into(),
    }
}

/// What the centre signs vouchers with.
pub(crate) fn voucher_key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

pub(crate) fn campus(mode: Mode) -> CampusConfig {
    let terminal = |id: &str, merchant, groups: &[&str]| Terminal {
        id: TerminalId::new(id).unwrap(),
        merchant,
        groups: groups.iter().map(|group| Key::new(*group).unwrap()).collect(),
    };
    CampusConfig {
        institution: INSTITUTION,
        campus: CampusId(1),
        calendar: BusinessCalendar::CHINA,
        single_limit_fen: fen(2_000),
        daily_limit_fen: fen(5_000),
        voucher_keys: vec![VoucherKey {
            number: 1,
            key: voucher_key().verifying_key(),
            from_ms: Timestamp(0),
            to_ms: MORNING.plus_ms(365 * 86_400_000),
        }],
        policy: Policy { mode, ..Policy::default() },
        hours: Vec::new(),
        holidays: Vec::new(),
        meals: Vec::new(),
        merchants: vec![Merchant {
            id: 1,
            name: "counter".to_owned(),
            tariff: [("student".to_owned(), "0.024".parse().unwrap())].into(),
        }],
        buildings: vec![Building {
            node: NodeName::new("canteen").unwrap(),
            terminals: vec![terminal("till", Some(1), &[]), terminal("door", None, &["dorm-1"])],
        }],
    }
}

/// One stream that the centre writes.
struct Stream {
    writer: LogWriter,
    records: Vec<Vec<u8>>,
    heads: Vec<SignedHead>,
}

/// The centre.
pub(crate) struct Centre {
    key: SigningKey,
    streams: BTreeMap<LogId, Stream>,
    documents: BTreeMap<AccountId, Document>,
    granted: BTreeMap<(AccountId, u8, bool), i64>,
    /// The node's log as ingested.
    pub(crate) ingested: Cursor,
    pub(crate) records: Vec<Vec<u8>>,
    pub(crate) heads: Vec<SignedHead>,
    sessions: u64,
}

impl Centre {
    fn new() -> Self {
        Self {
            key: SigningKey::from_bytes(&[2; 32]),
            streams: BTreeMap::new(),
            documents: BTreeMap::new(),
            granted: BTreeMap::new(),
            ingested: Cursor::START,
            records: Vec::new(),
            heads: Vec::new(),
            sessions: 0,
        }
    }

    /// Writes one commit and returns it as a frame.
    pub(crate) fn write(&mut self, log: LogId, wall: Timestamp, bodies: Vec<Body>) -> Frame {
        let stream = self.streams.entry(log).or_insert_with(|| Stream {
            writer: LogWriter::new(log, Cursor::START, Hlc::default()),
            records: Vec::new(),
            heads: Vec::new(),
        });
        let first = stream.writer.cursor().position + 1;
        for body in bodies {
            let appended = stream.writer.append(wall, CampusId(1), Actor::centre(), body);
            stream.records.push(appended.record);
        }
        let head = stream.writer.sign_head(0, wall, &self.key).unwrap();
        stream.heads.push(head);
        self.entries(log, first, vec![head])
    }

    /// What stands in a stream from `first` on, under `heads`.
    fn entries(&self, log: LogId, first: u64, heads: Vec<SignedHead>) -> Frame {
        let records =
            self.streams[&log].records[first as usize - 1..].iter().cloned().map(Into::into).collect();
        Frame::Entries(Entries { log, first, records, heads })
    }

    /// Everything after the cursors of a Hello.
    fn rest(&self, hello: &NodeHello) -> Vec<Frame> {
        let at = |log| {
            let shard = hello.shards.iter().find(|cursor| cursor.log == log).map(|cursor| cursor.cursor);
            shard.unwrap_or(hello.to_node).position
        };
        self.streams
            .iter()
            .filter(|(log, stream)| stream.writer.cursor().position > at(**log))
            .map(|(log, stream)| {
                let heads = stream.heads.iter().filter(|head| head.head.cursor.position > at(*log)).copied();
                self.entries(*log, at(*log) + 1, heads.collect())
            })
            .collect()
    }

    pub(crate) fn end(&self, log: LogId) -> Cursor {
        self.streams.get(&log).map_or(Cursor::START, |stream| stream.writer.cursor())
    }

    fn total(&mut self, account: AccountId, unit: u8, stand_in: bool, amount: i64) -> Fen {
        let total = self.granted.entry((account, unit, stand_in)).or_default();
        *total += amount;
        fen(*total)
    }
}

/// A node and its centre.
pub(crate) struct World {
    pub(crate) core: NodeCore,
    pub(crate) centre: Centre,
    pub(crate) now: Now,
    pub(crate) link: LinkId,
    /// The epoch that grants are written for.
    pub(crate) epoch: Epoch,
    tickets: u64,
    path: Option<std::path::PathBuf>,
}

impl World {
    /// In memory, with a campus and two accounts of 100 yuan, in session.
    pub(crate) fn connected(mode: Mode) -> Self {
        let mut world = Self::open(Connection::open_in_memory().unwrap(), mode, None);
        world.connect();
        world
    }

    /// The same on disk, so that it can be opened again.
    pub(crate) fn on_disk(mode: Mode, directory: &std::path::Path) -> Self {
        let path = directory.join("node.db");
        let mut world = Self::open(Connection::open(&path).unwrap(), mode, Some(path));
        world.connect();
        world
    }

    fn open(connection: Connection, mode: Mode, path: Option<std::path::PathBuf>) -> Self {
        let settings = Settings { ask_deadline_ms: 300 };
        let mut world = Self {
            core: NodeCore::open(connection, identity(), settings).unwrap(),
            centre: Centre::new(),
            now: Now { mono_ms: 0, wall: MORNING, elapsed_ms: 0 },
            link: LinkId(0),
            epoch: Epoch::FIRST,
            tickets: 0,
            path,
        };
        let config = campus(mode).to_bytes().unwrap();
        let published = CampusPublished { version: 1, config: config.into() };
        let shard = |account: AccountId| LogId::shard(INSTITUTION, account.shard());
        world.centre.write(LogId::shard(INSTITUTION, 0), MORNING, vec![published.into()]);
        for (account, card) in [(ALICE, "alice"), (BOB, "bob")] {
            let new = NewAccount {
                class: "student".to_owned(),
                cards: vec![CardNumber::new(card).unwrap()],
                single_limit: fen(2_000),
                daily_limit: fen(5_000),
                groups: vec![Key::new("dorm-1").unwrap()],
                valid_until: None,
            };
            let actor = actor_id(INSTITUTION, NodeId::CENTRE, 1, 1, account);
            let mut document = Document::create(&new, actor, MORNING).unwrap();
            let opened = AccountOpened { account, document: document.save().into(), seasoned: true };
            world.centre.documents.insert(account, document);
            let credit = Credit {
                account,
                wallet: Wallet::Cash,
                amount: fen(10_000),
                channel: Key::new("counter").unwrap(),
                key: Key::new(card).unwrap(),
            };
            world.centre.write(shard(account), MORNING, vec![opened.into(), credit.into()]);
        }
        world
    }

    /// The process ends, however it ended, and starts again.
    pub(crate) fn reopen(&mut self) {
        let path = self.path.clone().unwrap();
        let settings = Settings { ask_deadline_ms: 300 };
        self.core = NodeCore::open(Connection::open(path).unwrap(), identity(), settings).unwrap();
        self.now.elapsed_ms = 0;
        self.now.mono_ms = 0;
    }

    pub(crate) fn step(&mut self, inputs: Vec<Input>) -> Vec<Output> {
        let mut outputs = Vec::new();
        self.core.step(self.now, inputs, &mut outputs).unwrap();
        outputs
    }

    /// Time goes by, for every clock.
    pub(crate) fn pass(&mut self, ms: u64) -> Vec<Output> {
        self.now.mono_ms += ms;
        self.now.elapsed_ms += ms;
        self.now.wall = self.now.wall.plus_ms(ms as i64);
        self.step(vec![Input::Timer])
    }

    /// A new link and the node's Hello on it.
    pub(crate) fn hello(&mut self) -> NodeHello {
        self.link = LinkId(self.link.0 + 1);
        let outputs = self.step(vec![Input::LinkUp(self.link)]);
        match sent(&outputs).as_slice() {
            [Frame::NodeHello(hello)] => NodeHello::clone(hello),
            other => panic!("expected a Hello, got {other:?}"),
        }
    }

    /// What the centre says to a Hello.
    pub(crate) fn welcome(&mut self, refused: Option<RefusalReason>) -> CentreHello {
        self.centre.sessions += 1;
        CentreHello {
            version: PROTOCOL_VERSION,
            session: self.centre.sessions,
            time: self.now.wall,
            log: self.centre.ingested,
            refused,
            branch: None,
            returning: None,
        }
    }

    /// Opens a session: Hello each way, an anchor, and everything that the node lacks.
    pub(crate) fn connect(&mut self) -> Vec<Output> {
        let hello = self.hello();
        let welcome = self.welcome(None);
        let anchor = Anchor { session: welcome.session, time: self.now.wall };
        self.centre.write(LogId::to_node(INSTITUTION, NODE), self.now.wall, vec![anchor.into()]);
        let mut outputs = self.frame(Frame::CentreHello(welcome));
        for frame in self.centre.rest(&hello) {
            outputs.extend(self.frame(frame));
        }
        outputs
    }

    pub(crate) fn disconnect(&mut self) -> Vec<Output> {
        self.step(vec![Input::LinkDown(self.link)])
    }

    /// A frame from the centre; what the node uploads on it is ingested and acknowledged.
    pub(crate) fn frame(&mut self, frame: Frame) -> Vec<Output> {
        let outputs = self.step(vec![Input::Frame(self.link, frame)]);
        self.ingest(&outputs);
        outputs
    }

    /// Ingests what was sent, as the centre does; acknowledges nothing.
    pub(crate) fn ingest(&mut self, outputs: &[Output]) {
        let own = LogId::node(INSTITUTION, NODE);
        for frame in sent(outputs) {
            if let Frame::Entries(entries) = frame
                && entries.log == own
            {
                let records: Vec<Vec<u8>> = entries.records.iter().map(|record| record.to_vec()).collect();
                let key = identity().log_key.verifying_key();
                let commits =
                    verify(own, &self.centre.ingested, entries.first, records.clone(), &entries.heads, &key)
                        .unwrap();
                self.centre.ingested = commits.last().unwrap().head.head.cursor;
                self.centre.records.extend(records);
                self.centre.heads.extend(entries.heads);
            }
        }
    }

    /// Acknowledges all that was ingested.
    pub(crate) fn acknowledge(&mut self) -> Vec<Output> {
        let log = LogId::node(INSTITUTION, NODE);
        let cursor = self.centre.ingested;
        let countersignature = Some(Countersignature::sign(log, cursor, &self.centre.key));
        self.frame(Frame::Ack(Ack { log, position: cursor.position, countersignature }))
    }

    /// Entries in the stream for the node.
    pub(crate) fn tell(&mut self, bodies: Vec<Body>) -> Vec<Output> {
        let frame = self.centre.write(LogId::to_node(INSTITUTION, NODE), self.now.wall, bodies);
        self.frame(frame)
    }

    pub(crate) fn grant_body(&mut self, account: AccountId, wallet: Wallet, amount: i64) -> Body {
        let total = self.centre.total(account, wallet.number(), false, amount);
        Body::Grant(Grant {
            account,
            wallet,
            epoch: self.epoch,
            amount: fen(amount),
            total,
            time: self.now.wall,
        })
    }

    pub(crate) fn grant(&mut self, account: AccountId, amount: i64) -> Vec<Output> {
        let body = self.grant_body(account, Wallet::Cash, amount);
        self.tell(vec![body])
    }

    pub(crate) fn stand_in_grant(&mut self, account: AccountId, amount: i64) -> Vec<Output> {
        let total = self.centre.total(account, Wallet::Cash.number(), true, amount);
        let (wallet, epoch, time) = (Wallet::Cash, self.epoch, self.now.wall);
        let grant = Grant { account, wallet, epoch, amount: fen(amount), total, time };
        self.tell(vec![StandInGrant(grant).into()])
    }

    pub(crate) fn share_grant(&mut self, account: AccountId, amount: i64) -> Vec<Output> {
        let total = self.centre.total(account, Unit::Allowance.number(), false, amount);
        let (epoch, time, from_day) = (self.epoch, self.now.wall, day(self.now.wall));
        let grant = ShareGrant { account, epoch, from_day, amount: fen(amount), total, time };
        self.tell(vec![grant.into()])
    }

    /// A change of settings, as the frame that carries it.
    pub(crate) fn setting(&mut self, account: AccountId, intent: Intent) -> Frame {
        let setting = self.setting_body(account, intent);
        self.centre.write(LogId::shard(INSTITUTION, account.shard()), self.now.wall, vec![setting])
    }

    pub(crate) fn setting_body(&mut self, account: AccountId, intent: Intent) -> Body {
        let document = self.centre.documents.get_mut(&account).unwrap();
        let change = document.carry_out(&intent, self.now.wall).unwrap().into();
        Setting { account, document_epoch: 1, intent, change, typed: None, of: None }.into()
    }

    /// A purchase at the till; what came of it.
    pub(crate) fn buy(&mut self, sequence: &str, card: &str, amount: i64) -> Vec<Output> {
        let tap = tap(sequence, card, TapKind::Amount(fen(amount)));
        self.tap(tap)
    }

    pub(crate) fn tap(&mut self, request: TapRequest) -> Vec<Output> {
        self.tickets += 1;
        let outputs = self.step(vec![Input::Tap(Ticket(self.tickets), request)]);
        self.ingest(&outputs);
        outputs
    }

    pub(crate) fn reverse(&mut self, sequence: &str, original: &str, amount: Option<i64>) -> Vec<Output> {
        self.tickets += 1;
        let request =
            ReversalRequest { key: key(sequence), original: key(original), amount: amount.map(fen) };
        let outputs = self.step(vec![Input::Reversal(Ticket(self.tickets), request)]);
        self.ingest(&outputs);
        outputs
    }

    pub(crate) fn status(&mut self) -> Status {
        match self.step(vec![Input::Status(Ticket(0))]).pop() {
            Some(Output::Status(_, status)) => *status,
            other => panic!("expected a status, got {other:?}"),
        }
    }

    /// What the node has written, as far as it was uploaded.
    pub(crate) fn uploaded(&self) -> Vec<Body> {
        self.centre.records.iter().map(|record| Entry::from_record(record).unwrap().body).collect()
    }

    /// Nothing in the tables may differ from what the entries give.
    pub(crate) fn check(&self) {
        let report = crate::verify::verify(self.core.store.connection(), &identity()).unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
        assert!(report.ok);
    }
}

pub(crate) fn key(sequence: &str) -> TapKey {
    TapKey { terminal: TerminalId::new("till").unwrap(), epoch: 1, sequence: Key::new(sequence).unwrap() }
}

pub(crate) fn tap(sequence: &str, card: &str, kind: TapKind) -> TapRequest {
    TapRequest {
        key: key(sequence),
        card: CardNumber::new(card).unwrap(),
        code: None,
        kind,
        pin: Pin::Absent,
    }
}

/// The frames among the outputs.
pub(crate) fn sent(outputs: &[Output]) -> Vec<Frame> {
    let frames = outputs.iter().filter_map(|output| match output {
        Output::Send(_, frame) => Some(frame.clone()),
        _ => None,
    });
    frames.collect()
}

/// The decisions among the outputs.
pub(crate) fn decided(outputs: &[Output]) -> Vec<Decision> {
    let decisions = outputs.iter().filter_map(|output| match output {
        Output::Decided { decision, .. } => Some(*decision),
        _ => None,
    });
    decisions.collect()
}

pub(crate) fn approved(account: AccountId, amount: i64, stand_in: i64) -> Vec<Decision> {
    vec![Decision::Approved { account, amount: fen(amount), stand_in: fen(stand_in) }]
}

pub(crate) fn declined(reason: DeclineReason) -> Vec<Decision> {
    vec![Decision::Declined(reason)]
}
