//! The core's thread, by its queue.

use feiqian_protocol::enrol::Role;
use feiqian_protocol::frame::LossNotice;
use feiqian_protocol::ids::{
    AccountId, CampusId, CardNumber, InstitutionId, Key, LogId, NodeId, NodeName, TerminalId,
};
use feiqian_protocol::tap::{Pin, TapKey, TapKind, TapRequest};
use rusqlite::Connection;
use std::path::PathBuf;

use super::*;
use crate::io::TapError;

const WAIT: Duration = Duration::from_secs(10);

fn start(database: PathBuf, driven_clock: bool) -> CoreThread {
    let log_key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
    let identity = Identity {
        institution: InstitutionId(1),
        campus: CampusId(1),
        node: NodeId(1),
        name: NodeName::new("canteen").unwrap(),
        role: Role::Pos,
        incarnation: 1,
        centre_key: log_key.verifying_key().into(),
        log_key,
    };
    let settings = Settings { ask_deadline_ms: 300 };
    let clock = if driven_clock { WallClock::Driven } else { WallClock::System };
    let database = Box::new(move || Connection::open(&database));
    let certificates = CertificateTime::default();
    let options = Options { database, identity, settings, clock, certificates };
    CoreThread::start(options).unwrap()
}

fn tap() -> Request {
    let terminal = TerminalId::new("pos-1").unwrap();
    let key = TapKey { terminal, epoch: 1, sequence: Key::new("1").unwrap() };
    let card = CardNumber::new("c1").unwrap();
    Request::Tap(TapRequest { key, card, code: None, kind: TapKind::Access, pin: Pin::Absent })
}

async fn wall(queue: &CoreQueue) -> Timestamp {
    match queue.ask(Request::Status, WAIT).await.unwrap() {
        Answer::Status(status) => status.wall,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn requests_are_answered_until_the_thread_stops() {
    let temp = tempfile::tempdir().unwrap();
    let mut core = start(temp.path().join("node.db"), false);
    core.opened().await.unwrap();
    let queue = core.queue();
    let answer = queue.ask(tap(), WAIT).await.unwrap();
    assert!(matches!(answer, Answer::Refused(TapError::UnknownTerminal(_))), "{answer:?}");
    assert!(wall(&queue).await > Timestamp(1_700_000_000_000));
    assert!(core.stop().await);
    assert_eq!(queue.ask(tap(), WAIT).await.unwrap_err(), NoAnswer::Unavailable);
    assert!(!temp.path().join("node.db-wal").exists());
}

#[tokio::test]
async fn a_driven_clock_starts_the_core_and_never_goes_back() {
    let temp = tempfile::tempdir().unwrap();
    let mut core = start(temp.path().join("node.db"), true);
    let queue = core.queue();
    assert_eq!(queue.ask(tap(), WAIT).await.unwrap_err(), NoAnswer::Unavailable);
    assert!(!core.open_flag().load(Ordering::Relaxed));
    assert_eq!(queue.clock(Timestamp(5_000)).await, Ok(Timestamp(5_000)));
    core.opened().await.unwrap();
    assert_eq!(wall(&queue).await, Timestamp(5_000));
    assert_eq!(queue.clock(Timestamp(4_000)).await, Ok(Timestamp(5_000)));
    assert_eq!(queue.clock(Timestamp(6_000)).await, Ok(Timestamp(6_000)));
    assert_eq!(wall(&queue).await, Timestamp(6_000));
    assert!(core.stop().await);
}

#[tokio::test]
async fn a_failed_step_reopens_the_core() {
    let temp = tempfile::tempdir().unwrap();
    let database = temp.path().join("node.db");
    let mut core = start(database.clone(), false);
    core.opened().await.unwrap();
    let (queue, open) = (core.queue(), core.open_flag());
    assert!(matches!(queue.ask(tap(), WAIT).await, Ok(Answer::Refused(TapError::UnknownTerminal(_)))));
    let other = Connection::open(&database).unwrap();
    other.execute_batch("ALTER TABLE terminals RENAME TO gone").unwrap();
    assert_eq!(queue.ask(tap(), WAIT).await.unwrap_err(), NoAnswer::Unavailable);
    other.execute_batch("ALTER TABLE gone RENAME TO terminals").unwrap();
    while !open.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(queue.ask(tap(), WAIT).await, Ok(Answer::Refused(TapError::UnknownTerminal(_)))));
    drop(other);
    assert!(core.stop().await);
}

#[tokio::test]
async fn a_database_of_somebody_else_is_reported_at_the_start() {
    let temp = tempfile::tempdir().unwrap();
    let database = temp.path().join("node.db");
    std::fs::write(&database, "no database at all, but long enough to look at").unwrap();
    let mut core = start(database, false);
    assert!(matches!(core.opened().await, Err(Some(_))));
    assert!(core.stop().await);
}

#[test]
fn a_loss_goes_before_whoever_shows_the_card_and_after_the_link_that_tells_of_it() {
    let (account, card) = (AccountId(1), CardNumber::new("c1").unwrap());
    let log = LogId::shard(InstitutionId(1), 0);
    let notice = || {
        Input::Frame(
            LinkId(1),
            Frame::LossNotice(LossNotice { account, card: card.clone(), log, position: 1 }),
        )
    };
    let shown = || Input::Status(Ticket(1));
    let order = |inputs: Vec<Input>| -> String {
        let mut lined_up = Vec::new();
        inputs.into_iter().for_each(|input| line_up(&mut lined_up, input));
        let letter = |input: &Input| match input {
            Input::LinkUp(_) => 'L',
            Input::Frame(..) => 'F',
            _ => 'S',
        };
        lined_up.iter().map(letter).collect()
    };
    assert_eq!(order(vec![shown(), shown(), notice()]), "FSS");
    assert_eq!(order(vec![shown(), Input::LinkUp(LinkId(1)), shown(), notice()]), "SLFS");
}
