//! What a script begins with: a node that knows accounts and holds rights, and the streams that said so.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use ed25519_dalek::SigningKey;
use feiqian_node::io::{Identity, Input, LinkId};
use feiqian_protocol::account::{Document, NewAccount, actor_id};
use feiqian_protocol::campus::{Building, CampusConfig, Merchant, Mode, Policy, Terminal};
use feiqian_protocol::chain::{Cursor, LogWriter, SignedHead};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{
    AccountOpened, Actor, Anchor, Body, CampusPublished, Credit, Grant, Hint, Pool, ShareGrant, StandInGrant,
};
use feiqian_protocol::frame::Entries;
use feiqian_protocol::ids::{
    AccountId, CampusId, CardNumber, Epoch, Key, LogId, NodeId, NodeName, TerminalId, Wallet,
};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessCalendar, Hlc, Timestamp};
use feiqian_sim::vfs::{Disk, Image};

use super::{ACCOUNTS, NODE, Rig};
use crate::fuzz::script::{INSTITUTION, START};

/// What a script begins with.
pub(super) struct Start {
    pub(super) image: Image,
    pub(super) streams: BTreeMap<LogId, Stream>,
    pub(super) documents: BTreeMap<AccountId, Vec<u8>>,
}

/// One stream that the centre writes.
#[derive(Clone)]
pub(super) struct Stream {
    /// The position that `records` come after.
    pub(super) base: u64,
    pub(super) writer: LogWriter,
    pub(super) records: Vec<Vec<u8>>,
    pub(super) heads: Vec<SignedHead>,
}

impl Stream {
    pub(super) fn new(log: LogId) -> Self {
        let writer = LogWriter::new(log, Cursor::START, Hlc::default());
        Self { base: 0, writer, records: Vec::new(), heads: Vec::new() }
    }

    pub(super) fn commit(&mut self, wall: Timestamp, anchor: Timestamp, bodies: Vec<Body>) {
        for body in bodies {
            let appended = self.writer.append(wall, CampusId(1), Actor::centre(), body);
            self.records.push(appended.record);
        }
        self.heads.extend(self.writer.sign_head(0, anchor, &centre_key()));
    }

    /// Everything after a position, as one frame.
    pub(super) fn after(&self, position: u64) -> Option<Entries> {
        let known = position.checked_sub(self.base)?;
        let records = self.records.get(usize::try_from(known).ok()?..)?;
        let heads = self.heads.iter().filter(|head| head.head.cursor.position > position);
        (!records.is_empty()).then(|| Entries {
            log: self.writer.log(),
            first: position + 1,
            records: records.iter().cloned().map(Into::into).collect(),
            heads: heads.copied().collect(),
        })
    }
}

pub(super) fn centre_key() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

pub(super) fn identity() -> Identity {
    Identity {
        institution: INSTITUTION,
        campus: CampusId(1),
        node: NODE,
        name: NodeName::new("n1").expect("a letter and a digit make a name"),
        role: Role::Kiosk,
        incarnation: 1,
        log_key: SigningKey::from_bytes(&[1; 32]),
        centre_key: centre_key().verifying_key().into(),
    }
}

/// A campus of one building with two tills and a door.
pub(crate) fn campus(mode: Mode) -> CampusConfig {
    let terminal = |id: &str, merchant| Terminal {
        id: TerminalId::new(id).expect("letters and digits make a name"),
        merchant,
        groups: Vec::new(),
    };
    let tariff = [("student".to_owned(), "0.024".parse().expect("a price"))].into();
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
        merchants: vec![Merchant { id: 1, name: "counter".to_owned(), tariff }],
        buildings: vec![Building {
            node: identity().name,
            terminals: vec![terminal("t1", Some(1)), terminal("t2", Some(1)), terminal("door", None)],
        }],
    }
}

pub(super) fn shard(account: AccountId) -> LogId {
    LogId::shard(INSTITUTION, account.shard())
}

pub(super) const TO_NODE: LogId = LogId::to_node(INSTITUTION, NODE);
pub(super) const OWN: LogId = LogId::node(INSTITUTION, NODE);

pub(super) fn start() -> &'static Start {
    static START: OnceLock<Start> = OnceLock::new();
    START.get_or_init(prepare)
}

/// Accounts, credits, rights, shares, hints and a pool, all applied, and the node alone again.
pub(super) fn prepare() -> Start {
    let mut streams: BTreeMap<LogId, Stream> = BTreeMap::new();
    let mut documents = BTreeMap::new();
    let mut write = |log: LogId, bodies: Vec<Body>| {
        streams.entry(log).or_insert_with(|| Stream::new(log)).commit(START, START, bodies);
    };
    let config = campus(Mode::Hybrid).to_bytes().expect("a small configuration");
    write(LogId::shard(INSTITUTION, 0), vec![CampusPublished { version: 1, config: config.into() }.into()]);
    write(TO_NODE, vec![Anchor { session: 1, time: START }.into()]);
    for account in (1..=ACCOUNTS).map(AccountId) {
        let new = NewAccount {
            class: "student".to_owned(),
            cards: vec![CardNumber::new(format!("c{account}")).expect("letters and digits make a name")],
            single_limit: Fen::new(2_000),
            daily_limit: Fen::new(5_000),
            groups: Vec::new(),
            valid_until: None,
        };
        let actor = actor_id(INSTITUTION, NodeId::CENTRE, 1, 1, account);
        let mut document = Document::create(&new, actor, START).expect("limits are in range");
        let saved = document.save();
        let opened = AccountOpened { account, document: saved.clone().into(), seasoned: true };
        let key = Key::new(format!("k{account}")).expect("letters and digits make a name");
        let (wallet, amount) = (Wallet::Cash, Fen::new(10_000));
        let credit = Credit { account, wallet, amount, channel: key.clone(), key };
        write(shard(account), vec![opened.into(), credit.into()]);
        documents.insert(account, saved);
        let (epoch, time) = (Epoch::FIRST, START);
        let grant = |fen| Grant { account, wallet, epoch, amount: Fen::new(fen), total: Fen::new(fen), time };
        let from_day = BusinessCalendar::CHINA.day(START);
        let share = Fen::new(2_500);
        write(
            TO_NODE,
            vec![
                grant(3_000).into(),
                StandInGrant(grant(2_000)).into(),
                ShareGrant { account, epoch, from_day, amount: share, total: share, time }.into(),
                Hint {
                    account,
                    elsewhere_per_day: Fen::new(800),
                    purchase_mean: Fen::new(420),
                    elsewhere_per_meal: Fen::new(500),
                    habit: true,
                    seasoned: true,
                }
                .into(),
                Pool { from_day, per_day: Fen::new(100_000), habit_only: Fen::new(50_000) }.into(),
            ],
        );
    }
    let disk = Disk::new();
    let mut rig = Rig::open(disk.clone(), streams.clone(), documents.clone());
    rig.meet();
    assert_eq!(rig.status.applied, streams[&TO_NODE].writer.cursor().position);
    rig.inputs.push(Input::LinkDown(LinkId(rig.link)));
    rig.step();
    drop(rig);
    Start { image: disk.image(), streams, documents }
}
