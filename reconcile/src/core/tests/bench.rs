//! A centre, and buildings as far as it can tell.

use super::*;

/// A node as far as the centre can tell.
#[derive(Clone)]
pub(super) struct FakeNode {
    pub(super) id: NodeId,
    pub(super) incarnation: u32,
    pub(super) key: SigningKey,
    pub(super) writer: LogWriter,
    pub(super) records: Vec<Vec<u8>>,
    pub(super) heads: Vec<SignedHead>,
    pub(super) to_node: Cursor,
    pub(super) shards: BTreeMap<LogId, Cursor>,
    pub(super) granted: BTreeMap<AccountId, Fen>,
    pub(super) stand_in: BTreeMap<AccountId, Fen>,
    pub(super) link: Option<LinkId>,
    pub(super) heard: Vec<Frame>,
    /// Where the centre has said that its log goes.
    pub(super) branch: Option<Branch>,
    pub(super) closed: Option<String>,
    pub(super) anchor: Timestamp,
    pub(super) obeys: bool,
}

impl FakeNode {
    pub(super) fn log(&self) -> LogId {
        LogId::node(INSTITUTION, self.id)
    }

    pub(super) fn write(&mut self, wall: Timestamp, proof: Proof, body: impl Into<Body>) -> u64 {
        let actor = Actor { kind: ActorKind::Terminal, id: key("pos-1"), proof };
        let appended = self.writer.append(wall, CampusId(1), actor, body.into());
        self.records.push(appended.record);
        let head = self.writer.sign_head(self.to_node.position, self.anchor, &self.key).unwrap();
        self.heads.push(head);
        appended.cursor.position
    }

    pub(super) fn entries_after(&self, after: u64) -> Frame {
        Frame::Entries(Entries {
            log: self.log(),
            first: after + 1,
            records: self.records[after as usize..].iter().cloned().map(Into::into).collect(),
            heads: self.heads[after as usize..].to_vec(),
        })
    }

    pub(super) fn hello(&self) -> Frame {
        Frame::NodeHello(Box::new(NodeHello {
            version: PROTOCOL_VERSION,
            institution: INSTITUTION,
            node: self.id,
            incarnation: self.incarnation,
            log: self.writer.cursor(),
            to_node: self.to_node,
            shards: self
                .shards
                .iter()
                .map(|(log, cursor)| LogCursor { log: *log, cursor: *cursor })
                .collect(),
            countersigned: None,
            refused: None,
            kept_after: Vec::new(),
            heads: Vec::new(),
            branch: self.branch.map(|branch| branch.log),
        }))
    }

    /// Follows the centre's streams; returns the acknowledgement.
    pub(super) fn follow(&mut self, entries: &Entries) -> Ack {
        let start = Cursor::START;
        let mut cursor = if entries.log.as_to_node().is_some() {
            self.to_node
        } else {
            self.shards.get(&entries.log).copied().unwrap_or(start)
        };
        assert_eq!(entries.first, cursor.position + 1, "{}", entries.log);
        for record in &entries.records {
            cursor = cursor.after(entries.log, record);
            match Entry::from_record(record).unwrap().body {
                Body::Anchor(anchor) => self.anchor = self.anchor.max(anchor.time),
                Body::Grant(grant) => {
                    self.granted.insert(grant.account, grant.total);
                    self.anchor = self.anchor.max(grant.time);
                }
                Body::StandInGrant(StandInGrant(grant)) => {
                    self.stand_in.insert(grant.account, grant.total);
                    self.anchor = self.anchor.max(grant.time);
                }
                _ => {}
            }
        }
        assert_eq!(entries.heads.last().unwrap().head.cursor, cursor);
        if entries.log.as_to_node().is_some() {
            self.to_node = cursor;
        } else {
            self.shards.insert(entries.log, cursor);
        }
        Ack { log: entries.log, position: cursor.position, countersignature: None }
    }

    pub(super) fn centre_hello(&self) -> &CentreHello {
        let hello = self.heard.iter().rev().find_map(|frame| match frame {
            Frame::CentreHello(hello) => Some(hello),
            _ => None,
        });
        hello.expect("the centre said Hello")
    }

    pub(super) fn acked(&self) -> u64 {
        let acks = self.heard.iter().filter_map(|frame| match frame {
            Frame::Ack(ack) if ack.log.writer == self.id => Some(ack.position),
            _ => None,
        });
        acks.max().unwrap_or(0)
    }
}

pub(super) struct Bench {
    pub(super) core: ReconcileCore,
    pub(super) centre_key: SigningKey,
    pub(super) now: Now,
    pub(super) nodes: Vec<FakeNode>,
    pub(super) links: u64,
}

pub(super) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// The command that closes an account, which is paid out at the counter.
pub(super) fn closing(card_text: &str) -> Command {
    let (channel, subsidy_channel) = (key("counter"), key("subsidy"));
    Command::CloseAccount { card: card(card_text), channel, subsidy_channel, operator: key("op") }
}

pub(super) fn card(text: &str) -> CardNumber {
    CardNumber::new(text).unwrap()
}

pub(super) fn campus(mode: Mode) -> CampusConfig {
    let terminal = Terminal { id: "pos-1".parse().unwrap(), merchant: Some(1), groups: Vec::new() };
    CampusConfig {
        institution: INSTITUTION,
        campus: CampusId(1),
        calendar: BusinessCalendar::CHINA,
        single_limit_fen: Fen::new(2_000),
        daily_limit_fen: Fen::new(5_000),
        policy: Policy { mode, ..Policy::default() },
        voucher_keys: Vec::new(),
        hours: Vec::new(),
        holidays: Vec::new(),
        meals: Vec::new(),
        merchants: vec![Merchant { id: 1, name: "canteen".to_owned(), tariff: BTreeMap::new() }],
        buildings: vec![Building { node: NodeName::new("n1").unwrap(), terminals: vec![terminal] }],
    }
}

impl Bench {
    pub(super) fn new(mode: Mode) -> Self {
        let centre_key = SigningKey::from_bytes(&[9; 32]);
        let identity = Identity { institution: INSTITUTION, log_key: centre_key.clone() };
        let core = ReconcileCore::open(Connection::open_in_memory().unwrap(), identity).unwrap();
        let now = Now { mono_ms: 0, wall: START, real: START };
        let mut bench = Self { core, centre_key, now, nodes: Vec::new(), links: 0 };
        let config = serde_json::to_value(campus(mode)).unwrap();
        bench.command(Command::PublishCampus { config }).unwrap();
        bench
    }

    /// Steps until nothing is due; nodes hear what is said to them and acknowledge what they follow.
    pub(super) fn step(&mut self, inputs: Vec<Input>) -> Vec<Reply> {
        let mut replies = Vec::new();
        let mut next = inputs;
        loop {
            let mut outputs = Vec::new();
            self.core.step(self.now, std::mem::take(&mut next), &mut outputs).unwrap();
            for output in outputs {
                match output {
                    Output::Reply(_, reply) => replies.push(reply),
                    Output::CloseLink(link, why) => {
                        if let Some(node) = self.nodes.iter_mut().find(|node| node.link == Some(link)) {
                            node.closed = Some(why);
                            node.link = None;
                        }
                    }
                    Output::Send(link, frame) => {
                        let Some(node) = self.nodes.iter_mut().find(|node| node.link == Some(link)) else {
                            continue;
                        };
                        match &frame {
                            Frame::Entries(entries) | Frame::Fresh(entries)
                                if entries.log.writer == NodeId::CENTRE =>
                            {
                                next.push(Input::Frame(link, Frame::Ack(node.follow(entries))));
                            }
                            Frame::Recall(Recall { account, unit, .. }) if node.obeys => {
                                let at = node.writer.cursor().position;
                                let recalled = Recalled { account: *account, unit: *unit, at };
                                next.push(Input::Frame(link, Frame::Recalled(recalled)));
                            }
                            Frame::CentreHello(hello) => node.branch = hello.branch.or(node.branch),
                            _ => {}
                        }
                        node.heard.push(frame);
                    }
                }
            }
            if next.is_empty() {
                if self.core.next_timer().is_none_or(|due| due > self.now.mono_ms) {
                    return replies;
                }
                next.push(Input::Timer);
            }
        }
    }

    pub(super) fn command(&mut self, command: Command) -> Reply {
        self.step(vec![Input::Command(Ticket(1), command)]).remove(0)
    }

    pub(super) fn advance(&mut self, ms: i64) {
        self.now.mono_ms += ms as u64;
        self.now.wall = self.now.wall.plus_ms(ms);
        self.now.real = self.now.real.plus_ms(ms);
    }

    pub(super) fn enrol(&mut self, name: &str, role: Role) -> usize {
        let seed = self.nodes.len() as u8 + 1;
        let signing = SigningKey::from_bytes(&[seed; 32]);
        let lookup = format!("{seed:02x}").repeat(32);
        let name = NodeName::new(name).unwrap();
        let secret = "00".repeat(16);
        self.command(Command::CreateEnrolment { name, role, lookup: lookup.clone(), secret }).unwrap();
        let log_key = feiqian_protocol::chain::hex(signing.verifying_key().as_bytes());
        let enrolled =
            self.command(Command::Enrol { lookup, log_key, pin_key: Some(PinKey::new([seed; 32])) }).unwrap();
        let id = NodeId(enrolled["node"].as_u64().unwrap() as u16);
        let log = LogId::node(INSTITUTION, id);
        self.nodes.push(FakeNode {
            id,
            incarnation: enrolled["incarnation"].as_u64().unwrap() as u32,
            key: signing,
            writer: LogWriter::new(log, Cursor::START, Hlc::default()),
            records: Vec::new(),
            heads: Vec::new(),
            to_node: Cursor::START,
            shards: BTreeMap::new(),
            granted: BTreeMap::new(),
            stand_in: BTreeMap::new(),
            link: None,
            heard: Vec::new(),
            branch: None,
            closed: None,
            anchor: Timestamp(0),
            obeys: true,
        });
        self.nodes.len() - 1
    }

    pub(super) fn connect(&mut self, index: usize) {
        self.links += 1;
        let link = LinkId(self.links);
        let node = &mut self.nodes[index];
        node.link = Some(link);
        node.closed = None;
        let (id, incarnation, hello) = (node.id, node.incarnation, node.hello());
        self.step(vec![
            Input::LinkUp { link, node: id, incarnation, expired: false },
            Input::Frame(link, hello),
        ]);
    }

    pub(super) fn cut(&mut self, index: usize) {
        if let Some(link) = self.nodes[index].link.take() {
            self.step(vec![Input::LinkDown(link)]);
        }
    }

    pub(super) fn frame(&mut self, index: usize, frame: Frame) {
        let link = self.nodes[index].link.expect("connected");
        self.step(vec![Input::Frame(link, frame)]);
    }

    /// Sends what the centre has not acknowledged.
    pub(super) fn upload(&mut self, index: usize) {
        let node = &self.nodes[index];
        let frame = node.entries_after(node.acked());
        self.frame(index, frame);
    }

    pub(super) fn import(&mut self, cards: &[(&str, i64)]) -> Reply {
        let accounts: Vec<Value> = cards
            .iter()
            .map(|(card, fen)| json!({ "card": card, "patron_class": "student", "opening_fen": fen }))
            .collect();
        self.command(
            serde_json::from_value(json!({ "command": "import_accounts", "accounts": accounts })).unwrap(),
        )
    }

    pub(super) fn topup(&mut self, card_text: &str, fen: i64, text: &str) -> Reply {
        self.command(Command::Topup {
            card: card(card_text),
            amount_fen: Fen::new(fen),
            wallet: Wallet::Cash,
            channel: key("counter"),
            key: key(text),
        })
    }

    pub(super) fn debit(&mut self, index: usize, account: u64, from_right: i64, stand_in: i64) -> u64 {
        let wall = self.now.wall;
        let node = &mut self.nodes[index];
        let debit = Debit {
            tap: TapRef { epoch: 1, sequence: key(&format!("s{}", node.records.len())) },
            account: AccountId(account),
            wallet: Wallet::Cash,
            epoch: Epoch::FIRST,
            from_right: Fen::new(from_right),
            stand_in: Fen::new(stand_in),
            allowance: Fen::ZERO,
            day: BusinessDay(1),
            merchant: 1,
            card: card(&format!("c{account}")),
            measured: None,
            code: None,
            from_voucher: None,
            meal: None,
        };
        node.write(wall, Proof::Card, debit)
    }

    /// A debit is given back; what it took of the right is right again.
    pub(super) fn reverse(&mut self, index: usize, account: u64, debit: u64, right_back: i64) -> u64 {
        let wall = self.now.wall;
        let reversal = Reversal {
            tap: TapRef { epoch: 1, sequence: key("r") },
            debit,
            account: AccountId(account),
            wallet: Wallet::Cash,
            epoch: Epoch::FIRST,
            right_back: Fen::new(right_back),
            right_home: Fen::ZERO,
            stand_in_home: Fen::ZERO,
            allowance_back: Fen::ZERO,
            day: BusinessDay(1),
        };
        self.nodes[index].write(wall, Proof::None, reversal)
    }

    pub(super) fn close(&mut self, card_text: &str) -> Reply {
        self.command(closing(card_text))
    }

    pub(super) fn number(&self, sql: &str) -> i64 {
        self.core.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    pub(super) fn text(&self, sql: &str) -> String {
        self.core.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    pub(super) fn check(&self) {
        let report = verify(self.core.connection(), INSTITUTION, &self.centre_key.verifying_key()).unwrap();
        assert!(report.ok, "{:?}", report.problems);
        assert_eq!(report.digest_tables, report.digest_folded);
    }

    pub(super) fn exported(&self, table: Table, format: Format) -> String {
        let mut output = Vec::new();
        export(self.core.connection(), INSTITUTION, table, format, &mut output).unwrap();
        String::from_utf8(output).unwrap()
    }
}

/// Nodes in session, then accounts `c1`, `c2`, … with these openings.
pub(super) fn campus_of(mode: Mode, nodes: usize, openings: &[i64]) -> Bench {
    let mut bench = Bench::new(mode);
    for index in 0..nodes {
        let node = bench.enrol(&format!("n{}", index + 1), Role::Pos);
        bench.connect(node);
    }
    let cards: Vec<String> = (1..=openings.len()).map(|number| format!("c{number}")).collect();
    let cards: Vec<(&str, i64)> = cards.iter().map(String::as_str).zip(openings.iter().copied()).collect();
    bench.import(&cards).unwrap();
    bench
}
