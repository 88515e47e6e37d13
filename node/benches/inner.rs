//! What a node does for every tap: authorize, price a stand-in, decide and keep. The database is in memory: what a disk adds
//! is measured by `feiqian-sim bench`.

#![allow(clippy::unwrap_used)] // A bench that cannot be set up has nothing to say.

use divan::{Bencher, black_box};
use ed25519_dalek::SigningKey;
use feiqian_node::authorizer::{Funds, cover, price, standing};
use feiqian_node::core::NodeCore;
use feiqian_node::io::{Identity, Input, LinkId, Now, Output, Settings, Ticket};
use feiqian_node::policy::{StandIn, stand_in};
use feiqian_node::store::accounts::{Holder, Purse, WalletState};
use feiqian_protocol::account::{CardStatus, Document, NewAccount, actor_id};
use feiqian_protocol::campus::{Building, CampusConfig, Merchant, Mode, Policy, Terminal};
use feiqian_protocol::chain::{Cursor, LogWriter};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{AccountOpened, Actor, Anchor, Body, CampusPublished, Grant, Hint, ShareGrant};
use feiqian_protocol::frame::{CentreHello, Entries, Frame, PROTOCOL_VERSION};
use feiqian_protocol::ids::{
    AccountId, CampusId, CardNumber, Epoch, InstitutionId, Key, LogId, NodeId, NodeName, TerminalId, Wallet,
};
use feiqian_protocol::money::Fen;
use feiqian_protocol::rights::{Row, Share};
use feiqian_protocol::tap::{Decision, Pin, TapKey, TapKind, TapRequest};
use feiqian_protocol::time::{BusinessCalendar, BusinessDay, Hlc, Timestamp};
use rusqlite::Connection;

const INSTITUTION: InstitutionId = InstitutionId(1);
const NODE: NodeId = NodeId(1);
const ACCOUNTS: u64 = 1_000;
const NOON: Timestamp = Timestamp(1_667_790_000_000);
const NOW: Now = Now { mono_ms: 1, wall: NOON, elapsed_ms: 1 };

fn main() {
    divan::main();
}

fn card(number: u64) -> CardNumber {
    CardNumber::new(format!("c{number:05}")).unwrap()
}

#[divan::bench]
fn authorize_a_purchase(bencher: Bencher<'_, '_>) {
    let holder = Holder {
        account: AccountId(1),
        card: CardStatus::Active,
        frozen: false,
        closed: false,
        class: "student".to_owned(),
        single_limit: Fen::new(2_000),
        daily_limit: Fen::new(5_000),
        groups: vec!["dorm-1".to_owned()],
        valid_until: None,
    };
    let wallet = |fen| WalletState {
        posted: Fen::new(fen),
        own: Fen::ZERO,
        row: Row { granted: Fen::new(fen), unspent: Fen::new(fen), ..Row::default() },
    };
    let purse = Purse { subsidy: wallet(300), cash: wallet(9_000) };
    let day = BusinessDay(19_303);
    let share =
        Share { net_from: [(day, Fen::new(5_000))].into(), granted: Fen::new(5_000), ..Share::default() };
    let kind = TapKind::Amount(Fen::new(1_250));
    bencher.bench(|| {
        let holder =
            standing(black_box(kind), Some(black_box(&holder)), false, None, true, BusinessDay(1)).unwrap();
        let (amount, _) = price(black_box(kind), &holder.class, None, 1).unwrap();
        let (mode, meal, held) = (Mode::Hybrid, None, Fen::ZERO);
        let funds = Funds { holder, purse: &purse, share: &share, day, mode, meal, held };
        cover(amount, Pin::Absent, &funds).unwrap()
    });
}

#[divan::bench]
fn price_a_stand_in(bencher: Bencher<'_, '_>) {
    let tap = StandIn {
        amount: Fen::new(500),
        need: Fen::new(500),
        balance: Fen::new(6_000),
        granted_left: Fen::new(2_000),
        pool_left: Fen::new(100_000),
        hint: Some(hint(AccountId(1))),
        unheard_ms: 7_200_000,
        unheard_ms_max: 7 * 86_400_000,
        decline_price: Fen::new(400),
    };
    bencher.bench(|| stand_in(Mode::Hybrid, black_box(&tap)).unwrap());
}

fn hint(account: AccountId) -> Hint {
    Hint {
        account,
        elsewhere_per_day: Fen::new(800),
        purchase_mean: Fen::new(420),
        elsewhere_per_meal: Fen::new(500),
        habit: true,
        seasoned: true,
    }
}

/// One step with so many purchases in it, each of another account: facts, decision, entry, rows, signed head, COMMIT.
#[divan::bench(args = [1, 64], sample_count = 200)]
fn taps_of_one_step(bencher: Bencher<'_, '_>, taps: u64) {
    let mut core = core_with_rights();
    let mut number = 0;
    bencher
        .with_inputs(|| {
            let inputs = (0..taps).map(|_| {
                number += 1;
                tap(number)
            });
            inputs.collect::<Vec<_>>()
        })
        .bench_local_values(|inputs| {
            let mut outputs = Vec::new();
            core.step(NOW, inputs, &mut outputs).unwrap();
            let approved = |output: &&Output| {
                matches!(output, Output::Decided { decision: Decision::Approved { .. }, repeat: false, .. })
            };
            assert_eq!(outputs.iter().filter(approved).count() as u64, taps);
        });
}

/// The same tap said again: its first answer is looked up.
#[divan::bench]
fn a_repeat(bencher: Bencher<'_, '_>) {
    let mut core = core_with_rights();
    core.step(NOW, vec![tap(1)], &mut Vec::new()).unwrap();
    bencher.with_inputs(|| vec![tap(1)]).bench_local_values(|inputs| {
        let mut outputs = Vec::new();
        core.step(NOW, inputs, &mut outputs).unwrap();
        outputs
    });
}

fn tap(number: u64) -> Input {
    let key = TapKey {
        terminal: TerminalId::new("pos-1").unwrap(),
        epoch: 1,
        sequence: Key::new(number.to_string()).unwrap(),
    };
    let kind = TapKind::Amount(Fen::new(1));
    Input::Tap(
        Ticket(number),
        TapRequest { key, card: card(1 + number * 7_919 % ACCOUNTS), code: None, kind, pin: Pin::Absent },
    )
}

/// A node that was given the right to everybody's money and is cut off.
fn core_with_rights() -> NodeCore {
    let centre_key = SigningKey::from_bytes(&[9; 32]);
    let name = NodeName::new("canteen").unwrap();
    let identity = Identity {
        institution: INSTITUTION,
        campus: CampusId(1),
        node: NODE,
        name: name.clone(),
        role: Role::Pos,
        incarnation: 1,
        log_key: SigningKey::from_bytes(&[1; 32]),
        centre_key: centre_key.verifying_key().into(),
    };
    let connection = Connection::open_in_memory().unwrap();
    let mut core = NodeCore::open(connection, identity, Settings { ask_deadline_ms: 300 }).unwrap();
    let link = LinkId(1);
    let hello = CentreHello {
        version: PROTOCOL_VERSION,
        session: 1,
        time: NOON,
        log: Cursor::START,
        refused: None,
        branch: None,
        returning: None,
    };
    let mut inputs = vec![Input::LinkUp(link), Input::Frame(link, Frame::CentreHello(hello))];
    let terminal = Terminal { id: TerminalId::new("pos-1").unwrap(), merchant: Some(1), groups: Vec::new() };
    let campus = CampusConfig {
        institution: INSTITUTION,
        campus: CampusId(1),
        calendar: BusinessCalendar::CHINA,
        single_limit_fen: Fen::new(2_000),
        daily_limit_fen: Fen::new(5_000_000),
        policy: Policy::default(),
        voucher_keys: Vec::new(),
        hours: Vec::new(),
        holidays: Vec::new(),
        meals: Vec::new(),
        merchants: vec![Merchant { id: 1, name: "counter".to_owned(), tariff: Default::default() }],
        buildings: vec![Building { node: name, terminals: vec![terminal] }],
    };
    let mut streams = std::collections::BTreeMap::new();
    let mut write = |log: LogId, body: Body| {
        let writer = streams.entry(log).or_insert_with(|| LogWriter::new(log, Cursor::START, Hlc::default()));
        let first = writer.cursor().position + 1;
        let record = writer.append(NOON, CampusId(1), Actor::centre(), body).record;
        let heads = writer.sign_head(0, NOON, &centre_key).into_iter().collect();
        let entries = Entries { log, first, records: vec![record.into()], heads };
        inputs.push(Input::Frame(link, Frame::Entries(entries)));
    };
    let config = campus.to_bytes().unwrap().into();
    write(LogId::shard(INSTITUTION, 0), CampusPublished { version: 1, config }.into());
    let to_node = LogId::to_node(INSTITUTION, NODE);
    write(to_node, Anchor { session: 1, time: NOON }.into());
    for account in (1..=ACCOUNTS).map(AccountId) {
        let new = NewAccount {
            class: "student".to_owned(),
            cards: vec![card(account.0)],
            single_limit: Fen::new(2_000),
            daily_limit: Fen::new(5_000_000),
            groups: Vec::new(),
            valid_until: None,
        };
        let author = actor_id(INSTITUTION, NodeId::CENTRE, 1, 1, account);
        let document = Document::create(&new, author, NOON).unwrap().save().into();
        let shard = LogId::shard(INSTITUTION, account.shard());
        write(shard, AccountOpened { account, document, seasoned: true }.into());
        let (epoch, time, total) = (Epoch::FIRST, NOON, Fen::new(5_000_000));
        let grant = Grant { account, wallet: Wallet::Cash, epoch, amount: total, total, time };
        write(to_node, grant.into());
        let from_day = BusinessCalendar::CHINA.day(NOON);
        write(to_node, ShareGrant { account, epoch, from_day, amount: total, total, time }.into());
    }
    inputs.push(Input::LinkDown(link));
    for part in inputs.chunks(200) {
        core.step(NOW, part.to_vec(), &mut Vec::new()).unwrap();
    }
    core
}
