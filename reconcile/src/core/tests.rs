//! The core with nodes that are nothing but a log, a signing key and an ear ([`bench`]).

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use feiqian_protocol::campus::{Building, CampusConfig, Merchant, Mode, Policy, Terminal};
use feiqian_protocol::chain::{Cursor, LogWriter, SignedHead};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{
    Actor, ActorKind, Body, Debit, Entry, Proof, Reversal, Setting, StandInGrant, TakenIn, TapRef,
};
use feiqian_protocol::frame::{
    Ack, Ask, Branch, CentreHello, Entries, Frame, LogCursor, Mark, NodeHello, PROTOCOL_VERSION, Recall,
    Recalled,
};
use feiqian_protocol::ids::{
    AccountId, CampusId, CardNumber, Epoch, InstitutionId, Key, LogId, NodeId, NodeName, Unit, Wallet,
};
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::PinKey;
use feiqian_protocol::time::{BusinessCalendar, BusinessDay, Hlc, Timestamp};
use rusqlite::Connection;
use serde_json::{Value, json};

use self::bench::*;
use super::ReconcileCore;
use crate::export::{Format, Table, export};
use crate::io::{Command, Identity, Input, LinkId, Now, Output, Reply, Ticket};
use crate::verify::verify;

mod bench;
mod closing;
mod codes;
mod copies;
mod habits;
mod holders;
mod holds;
mod hostile;
mod issuance;
mod pins;
mod purses;
mod settings;

const INSTITUTION: InstitutionId = InstitutionId(7);
const START: Timestamp = Timestamp(1_667_779_200_000);

#[test]
fn an_import_is_all_or_nothing_and_everything_is_handed_out() {
    let mut bench = campus_of(Mode::Hybrid, 2, &[10_000, 0]);
    let refused = bench.import(&[("c3", 100), ("c1", 100)]).unwrap_err();
    assert_eq!(refused.code, "card_in_use");
    assert!(refused.message.contains("row 2"), "{}", refused.message);
    assert_eq!(bench.number("SELECT COUNT(*) FROM accounts"), 2);
    let granted: Fen = bench.nodes.iter().filter_map(|node| node.granted.get(&AccountId(1))).copied().sum();
    assert_eq!(granted, Fen::new(10_000), "nothing is kept at the centre");
    assert!(bench.nodes.iter().all(|node| node.stand_in[&AccountId(1)] == Fen::new(1_000)));
    assert!(
        bench.nodes.iter().all(|node| !node.stand_in.contains_key(&AccountId(2))),
        "never above the balance"
    );
    assert_eq!(bench.number("SELECT SUM(out) FROM shares WHERE account = 2"), 5_000);
    assert_eq!(
        bench.exported(Table::Balances, Format::Csv),
        "card,wallet,posted_fen\nc1,cash,10000\nc2,cash,0\n"
    );
    bench.check();
}

#[test]
fn a_credit_key_counts_once_and_for_one_content() {
    let mut bench = campus_of(Mode::Strict, 1, &[0]);
    let first = bench.topup("c1", 500, "k1").unwrap();
    assert_eq!(bench.topup("c1", 500, "k1").unwrap(), first);
    assert_eq!(bench.topup("c1", 501, "k1").unwrap_err().code, "key_reused");
    assert_eq!(bench.topup("c9", 500, "k2").unwrap_err().code, "unknown_card");
    assert_eq!(bench.topup("c1", 0, "k3").unwrap_err().code, "amount");
    assert_eq!(bench.number("SELECT funds FROM wallets"), 500);
    bench.check();
}

#[test]
fn a_shortfall_is_a_case_until_credits_recover_it() {
    let mut bench = campus_of(Mode::Hybrid, 2, &[4_000]);
    let right = bench.nodes[0].granted[&AccountId(1)].get();
    bench.cut(1);
    let other = bench.nodes[1].granted.get(&AccountId(1)).map_or(0, |fen| fen.get());
    assert_eq!(right + other, 4_000);
    assert!(other > 0);
    bench.debit(0, 1, right, 300);
    bench.upload(0);
    assert_eq!(bench.number("SELECT COUNT(*) FROM cases"), 0, "the other half is still there");
    bench.advance(1_000);
    bench.debit(1, 1, other, 0);
    bench.connect(1);
    bench.upload(1);
    let cases = "SELECT opened || ' ' || recovered || ' ' || bearer || ' ' || reason FROM cases";
    assert_eq!(bench.text(cases), "300 0 0 0", "in suspense, for its stand-in");
    assert_eq!(bench.number("SELECT funds FROM wallets"), -300);
    assert!(bench.exported(Table::Balances, Format::Csv).contains("c1,cash,-300"));
    bench.check();
    let write_off = Command::WriteOff { card: card("c1"), wallet: Wallet::Cash, operator: key("op") };
    assert_eq!(bench.command(write_off.clone()).unwrap_err().code, "not_yet");
    // Both nodes are heard past the debit: it is the holder's.
    bench.advance(5_000);
    for index in 0..2 {
        let position = bench.nodes[index].writer.cursor().position;
        let clock = Hlc::at(bench.now.wall);
        bench.frame(index, Frame::Mark(Mark { position, clock }));
    }
    assert_eq!(bench.text(cases), "300 0 1 0");
    bench.topup("c1", 200, "k1").unwrap();
    assert_eq!(bench.text(cases), "300 200 1 0");
    // The rest is nobody's to pay any more.
    assert_eq!(bench.command(write_off.clone()).unwrap()["amount_fen"], 100);
    assert_eq!(bench.text(cases), "300 300 1 0");
    assert_eq!(bench.number("SELECT funds FROM wallets"), 0);
    assert_eq!(bench.number("SELECT balance FROM ledger WHERE ledger = 'risk_fund'"), -100);
    assert_eq!(bench.command(write_off).unwrap_err().code, "nothing_owed");
    for own in ["write_off", "migration"] {
        let taken = Command::Topup {
            card: card("c1"),
            amount_fen: Fen::new(1),
            wallet: Wallet::Cash,
            channel: key(own),
            key: key("k"),
        };
        assert_eq!(bench.command(taken).unwrap_err().code, "channel");
    }
    let shard = "SELECT position FROM logs WHERE log = (SELECT log FROM postings WHERE ledger = 'migration')";
    let before = bench.number(shard);
    let again = bench.nodes[0].entries_after(0);
    bench.frame(0, again);
    assert_eq!(bench.number(shard), before, "resolving again posts nothing");
    assert_eq!(
        bench.exported(Table::Cases, Format::Csv),
        "case,card,reason,bearer,opened_fen,recovered_fen,refunded_fen\nn1:1,c1,stand_in,holder,300,300,0\n"
    );
    bench.check();
}

#[test]
fn after_a_loss_report_the_holder_does_not_pay() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    let operator = key("op");
    let before = bench.debit(0, 1, 400, 0);
    bench.upload(0);
    let late = bench.debit(0, 1, 700, 0);
    bench.command(Command::ReportLoss { card: card("c1"), operator: operator.clone() }).unwrap();
    assert!(bench.nodes[0].heard.iter().any(|frame| matches!(frame, Frame::LossNotice(_))));
    let twice = bench.command(Command::ReportLoss { card: card("c1"), operator: operator.clone() });
    assert_eq!(twice.unwrap_err().code, "already_lost");
    bench.upload(0);
    assert_eq!((before, late), (1, 2));
    assert_eq!(bench.number("SELECT funds FROM wallets"), 4_600, "only what came before the report");
    let cases = bench.exported(Table::Cases, Format::Csv);
    assert!(cases.ends_with("\nn1:2,c1,loss,risk_fund,700,0,700\n"), "{cases}");
    bench.check();
    // The terminal takes part of it back: so does the fund.
    bench.reverse(0, 1, late, 200);
    bench.upload(0);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 4_600);
    assert_eq!(bench.number("SELECT refunded FROM cases"), 500);
    bench.check();
    bench.advance(1_000);
    bench.command(Command::LiftLoss { card: card("c1"), operator: operator.clone() }).unwrap();
    assert_eq!(bench.command(Command::LiftLoss { card: card("c1"), operator }).unwrap_err().code, "not_lost");
    bench.advance(1_000);
    bench.debit(0, 1, 100, 0);
    bench.upload(0);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 4_500);
    bench.check();
}

#[test]
fn an_unknown_critical_kind_stops_its_log_and_no_other() {
    let mut bench = campus_of(Mode::Strict, 2, &[4_000]);
    let wall = bench.now.wall;
    let unknown = Body::Unknown { kind: 999, critical: true, body: vec![0x80] };
    bench.nodes[0].write(wall, Proof::None, unknown);
    bench.debit(0, 1, 100, 0);
    bench.upload(0);
    assert_eq!(bench.nodes[0].acked(), 2, "it is durable, and says so");
    assert_eq!(bench.number("SELECT funds FROM wallets"), 4_000);
    bench.debit(1, 1, 100, 0);
    bench.upload(1);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 3_900);
    let status = bench.command(Command::Status {}).unwrap();
    assert_eq!(status["nodes"][0]["state"], "open, quarantined at 1");
    bench.check();
}

#[test]
fn what_was_approved_is_paid_though_it_makes_no_sense() {
    let mut bench = campus_of(Mode::Strict, 1, &[500]);
    bench.debit(0, 99, 300, 0);
    bench.debit(0, 1, 900, 0);
    bench.upload(0);
    assert_eq!(bench.number("SELECT -balance FROM ledger WHERE ledger = 'suspense'"), 300);
    assert_eq!(bench.number("SELECT balance FROM ledger WHERE ledger = 'merchant:1'"), 1_200);
    assert_eq!(bench.number("SELECT funds FROM wallets"), -400);
    let cases = bench.exported(Table::Cases, Format::Jsonl);
    assert!(cases.contains(r#""reason":"node_fault""#) && cases.contains(r#""opened_fen":400"#), "{cases}");
    assert_eq!(bench.command(Command::Status {}).unwrap()["suspense_fen"], 300);
    bench.check();
}

#[test]
fn a_door_spends_nothing_and_a_desk_takes_cash_in() {
    let mut bench = campus_of(Mode::Strict, 1, &[500]);
    let door = bench.enrol("door", Role::Door);
    let desk = bench.enrol("desk", Role::Desk);
    bench.connect(door);
    bench.connect(desk);
    bench.debit(door, 1, 100, 0);
    bench.upload(door);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 500);
    let wall = bench.now.wall;
    let taken_in = TakenIn {
        tap: TapRef { epoch: 1, sequence: key("t") },
        account: AccountId(1),
        wallet: Wallet::Cash,
        epoch: Epoch::FIRST,
        amount: Fen::new(2_000),
    };
    bench.nodes[desk].write(wall, Proof::None, taken_in);
    bench.upload(desk);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 2_500);
    assert!(!bench.nodes[door].granted.contains_key(&AccountId(1)));
    bench.check();
}

#[test]
fn an_ask_is_granted_from_what_is_free_or_answered_with_a_final_no() {
    let mut bench = campus_of(Mode::Strict, 2, &[1_000]);
    let held = bench.nodes[0].granted.get(&AccountId(1)).copied().unwrap_or_default();
    let ask = |want: i64| {
        let want = Fen::new(want);
        let unit = Unit::Wallet(Wallet::Cash);
        Frame::Ask(Ask { account: AccountId(1), unit, epoch: Epoch::FIRST, want, at: 0, ms_left: 300 })
    };
    // The other node has spent all it had, and says so before it answers the recall.
    let other = bench.nodes[1].granted.get(&AccountId(1)).map_or(0, |fen| fen.get());
    bench.debit(1, 1, other, 0);
    bench.upload(1);
    bench.frame(0, ask(held.get() + 1));
    let no = bench.nodes[0].heard.iter().find_map(|frame| match frame {
        Frame::No(no) => Some(*no),
        _ => None,
    });
    assert!(no.is_some_and(|no| no.r#final), "{no:?}");
    bench.topup("c1", 700, "k1").unwrap();
    bench.check();
    assert_eq!(bench.command(Command::Status {}).unwrap()["asks"], 0);
}

#[test]
fn an_ask_waits_no_longer_than_its_deadline() {
    let mut bench = campus_of(Mode::Strict, 2, &[4_000]);
    bench.nodes[1].obeys = false;
    let unit = Unit::Wallet(Wallet::Cash);
    let want = Fen::new(4_000);
    bench.frame(
        0,
        Frame::Ask(Ask { account: AccountId(1), unit, epoch: Epoch::FIRST, want, at: 0, ms_left: 300 }),
    );
    assert_eq!(bench.core.next_timer(), Some(300));
    bench.advance(300);
    bench.step(vec![Input::Timer]);
    assert_eq!(bench.command(Command::Status {}).unwrap()["asks"], 0);
    assert!(!bench.nodes[0].heard.iter().any(|frame| matches!(frame, Frame::No(_))));
}

#[test]
fn a_faulty_frame_closes_its_link_and_nothing_else() {
    let mut bench = campus_of(Mode::Strict, 2, &[1_000]);
    bench.debit(0, 1, 10, 0);
    let Frame::Entries(mut altered) = bench.nodes[0].entries_after(0) else { unreachable!() };
    altered.heads[0].signature[5] ^= 1;
    let gap = Frame::Entries(Entries { first: 7, ..altered.clone() });
    for frame in [
        Frame::Entries(altered),
        gap,
        Frame::Ack(Ack {
            log: LogId::to_node(INSTITUTION, bench.nodes[0].id),
            position: 1_000_000,
            countersignature: None,
        }),
    ] {
        bench.frame(0, frame);
        assert!(bench.nodes[0].closed.is_some());
        assert!(bench.nodes[1].closed.is_none());
        bench.connect(0);
    }
    bench.upload(0);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 990);
    bench.check();
}

#[test]
fn an_enrolment_anew_is_a_new_number_and_closes_the_old_one() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    assert_eq!(bench.number("SELECT SUM(out) FROM rights"), 1_000);
    let anew = bench.enrol("n1", Role::Pos);
    assert_eq!((bench.nodes[anew].id, bench.nodes[anew].incarnation), (NodeId(2), 2));
    assert_eq!(bench.number("SELECT SUM(out) FROM rights"), 0);
    bench.connect(anew);
    assert_eq!(bench.nodes[anew].granted[&AccountId(1)], Fen::new(1_000));
    // The old one still spends what it held, and uploads it.
    bench.debit(0, 1, 400, 0);
    bench.connect(0);
    assert!(bench.nodes[0].centre_hello().refused.is_some());
    bench.upload(0);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 600);
    bench.debit(anew, 1, 1_000, 0);
    bench.upload(anew);
    let cases = bench.exported(Table::Cases, Format::Csv);
    assert!(cases.contains("n1:1,c1,after_close,"), "{cases}");
    assert!(cases.contains(",400,0,0"), "{cases}");
    bench.check();
}

#[test]
fn a_code_is_short_lived_single_and_bears_few_tries() {
    let mut bench = Bench::new(Mode::Strict);
    let lookup = "ab".repeat(32);
    let create = Command::CreateEnrolment {
        name: NodeName::new("n1").unwrap(),
        role: Role::Pos,
        lookup: lookup.clone(),
        secret: "01".repeat(16),
    };
    bench.command(create).unwrap();
    let look = |bench: &mut Bench| bench.command(Command::LookUpEnrolment { lookup: lookup.clone() });
    for _ in 0..feiqian_protocol::limits::ENROL_TRIES_MAX {
        assert_eq!(look(&mut bench).unwrap()["secret"], "01".repeat(16));
    }
    assert_eq!(look(&mut bench).unwrap_err().code, "enrolment_used");
    bench.advance(16 * 60 * 1_000);
    assert_eq!(look(&mut bench).unwrap_err().code, "enrolment_expired");
    let unknown = Command::LookUpEnrolment { lookup: "cd".repeat(32) };
    assert_eq!(bench.command(unknown).unwrap_err().code, "enrolment_unknown");
}

#[test]
fn a_core_that_is_opened_again_goes_on_where_it_was() {
    let mut bench = campus_of(Mode::Hybrid, 2, &[3_000, 4_000]);
    bench.debit(0, 1, 100, 0);
    bench.upload(0);
    let identity = Identity { institution: INSTITUTION, log_key: bench.centre_key.clone() };
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("centre.db");
    bench.core.connection().execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
    bench.core = ReconcileCore::open(Connection::open(&path).unwrap(), identity).unwrap();
    bench.now.mono_ms = 0;
    for index in 0..2 {
        bench.connect(index);
        assert!(bench.nodes[index].centre_hello().refused.is_none());
    }
    bench.debit(0, 1, 100, 0);
    bench.upload(0);
    assert_eq!(bench.number("SELECT funds FROM wallets WHERE account = 1"), 2_800);
    bench.check();
}

#[test]
fn a_backlog_is_posted_in_few_batches_and_none_of_it_is_lost_with_the_core() {
    let mut bench = campus_of(Mode::Strict, 1, &[100_000, 100_000]);
    let batches = "SELECT COUNT(*) FROM entries WHERE kind = 43";
    for part in 0..3 {
        for number in 0..40 {
            bench.debit(0, 1 + number % 2, 100, 0);
        }
        bench.upload(0);
        assert_eq!(bench.nodes[0].acked(), 40 * (part + 1));
        assert_eq!(bench.number("SELECT SUM(funds) FROM wallets"), 200_000 - 4_000 * (part as i64 + 1));
        assert_eq!(bench.number(batches), 0, "they are gathered");
        bench.check();
    }
    let identity = Identity { institution: INSTITUTION, log_key: bench.centre_key.clone() };
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("centre.db");
    bench.core.connection().execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
    bench.core = ReconcileCore::open(Connection::open(&path).unwrap(), identity).unwrap();
    bench.step(vec![Input::Timer]);
    bench.command(Command::Status {}).unwrap();
    assert_eq!(bench.number(batches), 0, "an old copy must not write before it has heard a node");
    bench.check();
    bench.connect(0);
    assert_eq!(bench.number(batches), 2, "one for each account stream");
    bench.check();

    bench.core.connection().execute("UPDATE logs SET named = named - 1 WHERE named > 0", []).unwrap();
    let report = verify(bench.core.connection(), INSTITUTION, &bench.centre_key.verifying_key()).unwrap();
    assert!(!report.ok, "an effect that would be posted twice shows");
}

#[test]
fn taps_of_two_seconds_are_posted_together_and_a_status_leaves_nothing_gathered() {
    let mut bench = campus_of(Mode::Strict, 1, &[100_000]);
    let batches = "SELECT COUNT(*) FROM entries WHERE kind = 43";
    for after in [0, 1_999] {
        bench.advance(after);
        bench.debit(0, 1, 100, 0);
        bench.upload(0);
        assert_eq!(bench.number(batches), 0);
    }
    assert_eq!(bench.core.next_timer(), Some(2_000));
    bench.advance(1);
    bench.step(vec![Input::Timer]);
    assert_eq!(bench.number(batches), 1);
    (0..40).for_each(|_| {
        bench.debit(0, 1, 100, 0);
    });
    bench.upload(0);
    assert_eq!(bench.number(batches), 1);
    bench.command(Command::Status {}).unwrap();
    assert_eq!(bench.number(batches), 2);
    (0..40).for_each(|_| {
        bench.debit(0, 1, 100, 0);
    });
    bench.upload(0);
    bench.advance(250);
    bench.step(vec![Input::Timer]);
    assert_eq!(bench.number(batches), 3);
    bench.check();
}

#[test]
fn a_report_of_loss_is_written_after_what_its_own_account_has_moved_and_waits_for_nobody_else() {
    let mut bench = campus_of(Mode::Strict, 1, &[100_000, 100_000]);
    let kinds = |bench: &Bench, account: u64| {
        let log = LogId::shard(INSTITUTION, AccountId(account).shard()).key();
        bench.text(&format!("SELECT GROUP_CONCAT(kind, ' ') FROM (SELECT kind FROM entries WHERE log = {log} ORDER BY position)"))
    };
    let (before, other_before) = (kinds(&bench, 1), kinds(&bench, 2));
    bench.debit(0, 1, 100, 0);
    bench.upload(0);
    bench.command(Command::ReportLoss { card: card("c2"), operator: key("op") }).unwrap();
    assert_eq!(kinds(&bench, 2), format!("{other_before} 41"));
    assert_eq!(kinds(&bench, 1), before, "what others have moved is still gathered");
    bench.command(Command::ReportLoss { card: card("c1"), operator: key("op") }).unwrap();
    assert_eq!(kinds(&bench, 1), format!("{before} 43 41"));
    bench.check();
}

#[test]
fn beside_others_handing_out_goes_on_by_the_timer_alone_where_accounts_wait() {
    let mut bench = campus_of(Mode::Strict, 1, &[10_000; 40]);
    bench.topup("c1", 100, "k1").unwrap();
    (1..=40).for_each(|account| {
        bench.debit(0, account, 10, 0);
    });
    let link = bench.nodes[0].link.unwrap();
    let backlog = bench.nodes[0].entries_after(0);
    let mark = Frame::Mark(Mark { position: 40, clock: Hlc::default() });
    // What a step has touched is handed out in it, as far as that goes; then nothing before the timer.
    let inputs = [(Input::Frame(link, backlog), 24), (Input::Frame(link, mark), 24), (Input::Timer, 8)];
    for (input, waiting) in inputs {
        bench.core.step(bench.now, vec![input], &mut Vec::new()).unwrap();
        assert_eq!(bench.core.state.hand_out.waiting(), waiting);
    }
    bench.check();
}

#[test]
fn a_credit_overtakes_what_is_under_way_in_bulk() {
    let mut bench = campus_of(Mode::Strict, 2, &[10_000; 16]);
    // A link that takes everything and acknowledges nothing, while the other building brings a backlog.
    let (link, id) = (bench.nodes[0].link.take().unwrap(), bench.nodes[0].id);
    (0..64).for_each(|number| {
        bench.debit(1, 1 + number % 8, 10, 0);
    });
    bench.upload(1);
    bench.advance(250);
    let mut said = |input: Input, wanted: fn(&Frame) -> Option<&Entries>| -> Vec<LogId> {
        let mut outputs = Vec::new();
        bench.core.step(bench.now, vec![input], &mut outputs).unwrap();
        let frames = outputs.iter().filter_map(|output| match output {
            Output::Send(to, frame) if *to == link => wanted(frame),
            _ => None,
        });
        frames.map(|entries| entries.log).collect()
    };
    let bulk =
        said(Input::Timer, |frame| if let Frame::Entries(entries) = frame { Some(entries) } else { None });
    assert_eq!(bulk.len(), 8, "posted batches are under way in bulk: {bulk:?}");
    for account in (1..=16).map(AccountId) {
        let topup = Command::Topup {
            card: card(&format!("c{account}")),
            amount_fen: Fen::new(100),
            wallet: Wallet::Cash,
            channel: key("counter"),
            key: key(&format!("k{account}")),
        };
        let fresh = said(Input::Command(Ticket(1), topup), |frame| {
            if let Frame::Fresh(entries) = frame { Some(entries) } else { None }
        });
        let shard = LogId::shard(INSTITUTION, account.shard());
        let expected = if bulk.contains(&shard) { vec![] } else { vec![shard] };
        let (grants, credits): (Vec<_>, Vec<_>) =
            fresh.into_iter().partition(|log| log.as_to_node().is_some());
        assert_eq!(credits, expected, "account {account}");
        assert!(grants.iter().all(|log| *log == LogId::to_node(INSTITUTION, id)));
    }
}

#[test]
fn one_flipped_fen_shows() {
    let bench = campus_of(Mode::Strict, 1, &[3_000]);
    bench.check();
    bench.core.connection().execute("UPDATE wallets SET funds = funds + 1, free = free + 1", []).unwrap();
    let report = verify(bench.core.connection(), INSTITUTION, &bench.centre_key.verifying_key()).unwrap();
    assert!(!report.ok);
    assert_ne!(report.digest_tables, report.digest_folded);
}

/// A college: 7,500 accounts over eight buildings are opened and handed out while the centre goes on serving.
#[test]
fn a_college_is_imported_in_short_steps() {
    let mut bench = Bench::new(Mode::Hybrid);
    for index in 0..8 {
        let node = bench.enrol(&format!("n{}", index + 1), Role::Pos);
        bench.connect(node);
    }
    let accounts: Vec<String> = (1..=7_500).map(|number| format!("c{number}")).collect();
    let accounts: Vec<(&str, i64)> = accounts.iter().map(|card| (card.as_str(), 6_000)).collect();
    let started = std::time::Instant::now();
    bench.import(&accounts).unwrap();
    eprintln!("imported and handed out in {:?}", started.elapsed());
    assert_eq!(bench.number("SELECT SUM(free) FROM wallets"), 0);
    assert_eq!(bench.number("SELECT SUM(out) FROM shares"), 7_500 * 5_000);
    bench.check();
}
