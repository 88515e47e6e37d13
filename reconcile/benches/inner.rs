//! What the centre does for every entry: ingest and post, split free money, find who bears a shortfall. The database is in
//! memory: what a disk adds is measured by `feiqian-sim bench`.

#![allow(clippy::unwrap_used)] // A bench that cannot be set up has nothing to say.

use divan::{Bencher, black_box};
use ed25519_dalek::SigningKey;
use feiqian_protocol::campus::{Building, CampusConfig, Merchant, Policy, Terminal};
use feiqian_protocol::chain::{Cursor, LogWriter, hex};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{Actor, ActorKind, Debit, EntryRef, Proof, TapRef};
use feiqian_protocol::frame::{Ack, Entries, Frame, NodeHello, PROTOCOL_VERSION};
use feiqian_protocol::ids::{
    AccountId, CampusId, CardNumber, Epoch, InstitutionId, Key, LogId, NodeId, NodeName, TerminalId, Wallet,
};
use feiqian_protocol::limits::ENTRIES_PER_FRAME_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessCalendar, BusinessDay, Hlc, Timestamp};
use feiqian_reconcile::core::ReconcileCore;
use feiqian_reconcile::habit::{AccountHabits, CampusMeans};
use feiqian_reconcile::io::{Command, Identity, ImportedAccount, Input, LinkId, Now, Output, Ticket};
use feiqian_reconcile::overspend::{Movement, targets};
use rusqlite::Connection;

const INSTITUTION: InstitutionId = InstitutionId(1);
const NODE: NodeId = NodeId(1);
const LINK: LinkId = LinkId(1);
const ACCOUNTS: u64 = 1_000;
const NOON: Timestamp = Timestamp(1_667_790_000_000);
const NOW: Now = Now { mono_ms: 1, wall: NOON, real: NOON };

fn main() {
    divan::main();
}

/// A wallet that was topped up again and again and overspent again and again.
#[divan::bench(args = [10, 1_000])]
fn resolve_an_overspend_of_entries(bencher: Bencher<'_, '_>, entries: u64) {
    let movements: Vec<Movement> = (1..=entries)
        .map(|position| {
            let log = match position % 4 {
                0 => LogId::shard(INSTITUTION, 1),
                node => LogId::node(INSTITUTION, NodeId(node as u16)),
            };
            let amount = if position % 4 == 0 { 1_500 } else { -700 };
            let place = position * 7_919 % entries;
            Movement {
                at: EntryRef { log, position },
                order_key: NOON.plus_ms(place as i64),
                amount: Fen::new(amount),
                unbacked: Fen::new(if position % 3 == 0 { 700 } else { 0 }),
                recovered: Fen::ZERO,
            }
        })
        .collect();
    bencher.with_inputs(|| movements.clone()).bench_values(targets);
}

#[divan::bench]
fn split_free_money_over_20_nodes(bencher: Bencher<'_, '_>) {
    let nodes: Vec<NodeId> = (1..=20).map(NodeId).collect();
    let turnover: Vec<_> = nodes
        .iter()
        .map(|node| (*node, BusinessDay(19_302), 900, 900_000 + i64::from(node.0) * 10_000))
        .collect();
    let means = CampusMeans::new(&turnover, &nodes);
    let habits = AccountHabits::default();
    let held: Vec<_> = nodes.iter().map(|node| (*node, Fen::new(i64::from(node.0) * 30))).collect();
    bencher.bench(|| habits.allocate(black_box(Fen::new(20_000)), &held, 130, &means));
}

/// One step over a frame of as many debits as one may have: verified, posted to the ledger, named in the account streams,
/// what is free handed out, heads signed, COMMIT.
#[divan::bench(sample_count = 40, sample_size = 1)]
fn ingest_and_post_a_frame_of_256_debits(bencher: Bencher<'_, '_>) {
    let mut centre = Centre::new();
    let key = SigningKey::from_bytes(&[1; 32]);
    let log = LogId::node(INSTITUTION, NODE);
    let mut writer = LogWriter::new(log, Cursor::START, Hlc::default());
    bencher
        .with_inputs(|| {
            let first = writer.cursor().position + 1;
            let mut entries = Entries { log, first, records: Vec::new(), heads: Vec::new() };
            for number in first..first + ENTRIES_PER_FRAME_MAX as u64 {
                let actor =
                    Actor { kind: ActorKind::Terminal, id: Key::new("pos-1").unwrap(), proof: Proof::Card };
                let appended = writer.append(NOON, CampusId(1), actor, debit(number).into());
                entries.records.push(appended.record.into());
                entries.heads.extend(writer.sign_head(0, NOON, &key));
            }
            // What a sender does with heads that say the same.
            entries.heads.drain(..ENTRIES_PER_FRAME_MAX - 1);
            vec![Input::Frame(LINK, Frame::Entries(entries))]
        })
        .bench_local_values(|inputs| centre.step(inputs));
}

fn debit(number: u64) -> Debit {
    Debit {
        tap: TapRef { epoch: 1, sequence: Key::new(number.to_string()).unwrap() },
        account: AccountId(1 + number * 7_919 % ACCOUNTS),
        wallet: Wallet::Cash,
        epoch: Epoch::FIRST,
        from_right: Fen::new(1),
        stand_in: Fen::ZERO,
        allowance: Fen::new(1),
        day: BusinessCalendar::CHINA.day(NOON),
        merchant: 1,
        card: CardNumber::new(format!("c{:05}", 1 + number * 7_919 % ACCOUNTS)).unwrap(),
        measured: None,
        code: None,
        from_voucher: None,
        meal: None,
    }
}

/// A centre in session with one node, which has the right to everybody's money.
struct Centre(ReconcileCore);

impl Centre {
    fn new() -> Self {
        let identity = Identity { institution: INSTITUTION, log_key: SigningKey::from_bytes(&[9; 32]) };
        let core = ReconcileCore::open(Connection::open_in_memory().unwrap(), identity).unwrap();
        let mut centre = Self(core);
        let node = NodeName::new("canteen").unwrap();
        let terminal =
            Terminal { id: TerminalId::new("pos-1").unwrap(), merchant: Some(1), groups: Vec::new() };
        let campus = CampusConfig {
            institution: INSTITUTION,
            campus: CampusId(1),
            calendar: BusinessCalendar::CHINA,
            single_limit_fen: Fen::new(2_000),
            daily_limit_fen: Fen::new(5_000),
            policy: Policy::default(),
            voucher_keys: Vec::new(),
            hours: Vec::new(),
            holidays: Vec::new(),
            meals: Vec::new(),
            merchants: vec![Merchant { id: 1, name: "counter".to_owned(), tariff: Default::default() }],
            buildings: vec![Building { node: node.clone(), terminals: vec![terminal] }],
        };
        let lookup = hex(&[1; 32]);
        let log_key = hex(SigningKey::from_bytes(&[1; 32]).verifying_key().as_bytes());
        let accounts = (1..=ACCOUNTS).map(|number| ImportedAccount {
            card: CardNumber::new(format!("c{number:05}")).unwrap(),
            patron_class: "student".to_owned(),
            opening_fen: Fen::new(1_000_000),
            subsidy_fen: Fen::ZERO,
            single_limit_fen: None,
            daily_limit_fen: None,
            groups: Vec::new(),
            initial_pin: None,
            opened: None,
            valid_until: None,
        });
        for command in [
            Command::PublishCampus { config: serde_json::to_value(campus).unwrap() },
            Command::CreateEnrolment {
                name: node,
                role: Role::Pos,
                lookup: lookup.clone(),
                secret: hex(&[1; 16]),
            },
            Command::Enrol { lookup, log_key, pin_key: None },
            Command::ImportAccounts { accounts: accounts.collect() },
        ] {
            centre.step(vec![Input::Command(Ticket(1), command)]);
        }
        let hello = NodeHello {
            version: PROTOCOL_VERSION,
            institution: INSTITUTION,
            node: NODE,
            incarnation: 1,
            log: Cursor::START,
            to_node: Cursor::START,
            shards: Vec::new(),
            countersigned: None,
            refused: None,
            kept_after: Vec::new(),
            heads: Vec::new(),
            branch: None,
        };
        centre.step(vec![
            Input::LinkUp { link: LINK, node: NODE, incarnation: 1, expired: false },
            Input::Frame(LINK, Frame::NodeHello(Box::new(hello))),
        ]);
        centre
    }

    /// Steps until all is handed out; the node acknowledges what it is sent.
    fn step(&mut self, inputs: Vec<Input>) {
        let mut next = inputs;
        while !next.is_empty() {
            let mut outputs = Vec::new();
            self.0.step(NOW, std::mem::take(&mut next), &mut outputs).unwrap();
            for output in outputs {
                match output {
                    Output::Reply(_, reply) => drop(reply.unwrap()),
                    Output::Send(link, Frame::Entries(entries)) => {
                        let position = entries.first + entries.records.len() as u64 - 1;
                        let ack = Ack { log: entries.log, position, countersignature: None };
                        next.push(Input::Frame(link, Frame::Ack(ack)));
                    }
                    Output::CloseLink(_, why) => unreachable!("{why}"),
                    Output::Send(..) => {}
                }
            }
            if next.is_empty() && self.0.next_timer().is_some_and(|due| due <= NOW.mono_ms) {
                next.push(Input::Timer);
            }
        }
    }
}
