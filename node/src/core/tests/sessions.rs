//! Sessions with the centre: refused, restored, overtaken, senseless, quiet.

use super::*;
use crate::core::NodeCore;

#[test]
fn a_refused_node_has_no_rights_but_opens_doors() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Optimistic, directory.path());
    world.share_grant(ALICE, 5_000);
    world.grant(ALICE, 1_000);
    world.buy("1", "alice", 100);
    world.disconnect();
    for session in 0..2 {
        world.hello();
        let welcome = world.welcome(Some(RefusalReason::StaleGrants));
        world.frame(Frame::CentreHello(welcome));
        let status = world.status();
        assert_eq!((status.link, status.refused.as_deref()), (LinkState::Refused, Some("stale_grants")));
        assert_eq!((status.unspent_fen, status.epoch), (0, 2));
        let sequence = format!("2-{session}");
        assert_eq!(decided(&world.buy(&sequence, "alice", 100)), declined(DeclineReason::OutOfService));
        world.reopen();
    }
    let ends = world.uploaded().iter().filter(|body| matches!(body, Body::EpochEnd(_))).count();
    assert_eq!(ends, 1, "and it is uploaded, once");
    let mut request = tap("3", "alice", TapKind::Access);
    request.key.terminal = feiqian_protocol::ids::TerminalId::new("door").unwrap();
    assert_eq!(decided(&world.tap(request)), approved(ALICE, 0, 0));
    world.check();
}

#[test]
fn a_refusal_that_is_about_the_moment_leaves_the_rights() {
    let mut world = stocked(Mode::Strict);
    world.disconnect();
    world.hello();
    let welcome = world.welcome(Some(RefusalReason::Version));
    world.frame(Frame::CentreHello(welcome));
    assert_eq!(decided(&world.buy("1", "alice", 600)), approved(ALICE, 600, 0));
    world.check();
}

#[test]
fn a_restored_copy_gets_its_tail_back_and_answers_retries_from_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Strict, directory.path());
    world.share_grant(ALICE, 5_000);
    world.grant(ALICE, 1_000);
    let backup = directory.path().join("backup.db");
    world.core.store.connection().execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
    world.buy("1", "alice", 300);
    world.buy("2", "alice", 200);
    world.reverse("r1", "1", Some(100));
    world.disconnect();
    let settings = crate::io::Settings { ask_deadline_ms: 300 };
    let copy = rusqlite::Connection::open(&backup).unwrap();
    world.core = NodeCore::open(copy, identity(), settings).unwrap();
    world.hello();
    let welcome = world.welcome(Some(RefusalReason::ShortLog));
    world.frame(Frame::CentreHello(welcome));
    assert_eq!(decided(&world.buy("9", "alice", 10)), declined(DeclineReason::OutOfService));
    assert_eq!(world.status().position, 0, "nothing may be written before the tail is back");
    let tail = Frame::Entries(Entries {
        log: LogId::node(INSTITUTION, NODE),
        first: 1,
        records: world.centre.records.iter().cloned().map(Into::into).collect(),
        heads: world.centre.heads.clone(),
    });
    world.frame(tail);
    assert_eq!(world.status().position, 4, "the tail and the end of the epoch");
    assert!(matches!(world.uploaded().last(), Some(Body::EpochEnd(_))));
    assert_eq!(decided(&world.buy("1", "alice", 300)), approved(ALICE, 300, 0));
    assert_eq!(decided(&world.buy("2", "alice", 200)), approved(ALICE, 200, 0));
    assert_eq!(decided(&world.reverse("r2", "1", None)), approved(ALICE, 200, 0));
    world.check();
}

#[test]
fn a_fork_is_uploaded_to_its_branch() {
    let mut world = stocked(Mode::Strict);
    world.buy("1", "alice", 300);
    world.disconnect();
    world.buy("2", "alice", 200);
    world.hello();
    let branch = LogId::branch(INSTITUTION, NODE, 1);
    let mut welcome = world.welcome(Some(RefusalReason::ForkedLog));
    welcome.branch = Some(Branch { log: branch, after: 1 });
    let outputs = world.frame(Frame::CentreHello(welcome));
    let [Frame::Entries(entries)] = &sent(&outputs)[..] else { panic!("no upload: {outputs:?}") };
    assert_eq!((entries.log, entries.first, entries.records.len()), (branch, 2, 2));
    world.check();
}

#[test]
fn entries_that_overtake_the_hello_wait_for_it() {
    let mut world = stocked(Mode::Strict);
    world.disconnect();
    world.hello();
    let early = world.grant_body(ALICE, Wallet::Cash, 500);
    assert!(sent(&world.tell(vec![early])).is_empty());
    assert_eq!(world.status().unspent_fen, 1_000);
    let welcome = world.welcome(None);
    let outputs = world.frame(Frame::CentreHello(welcome));
    assert!(matches!(sent(&outputs)[..], [Frame::Ack(_)]));
    assert_eq!(world.status().unspent_fen, 1_500);
    world.check();
}

#[test]
fn a_senseless_amount_closes_the_link_and_changes_nothing() {
    let mut world = stocked(Mode::Strict);
    let applied = world.status().applied;
    let outputs = world.grant(ALICE, i64::MAX - 1_000);
    assert!(matches!(outputs[..], [Output::CloseLink(..)]));
    let status = world.status();
    assert_eq!((status.applied, status.unspent_fen, status.link), (applied, 1_000, LinkState::Down));
    assert_eq!(decided(&world.buy("1", "alice", 600)), approved(ALICE, 600, 0));
    world.check();
}

#[test]
fn entries_ahead_of_their_hello_are_kept_up_to_a_bound() {
    let mut world = World::connected(Mode::Strict);
    world.hello();
    let log = LogId::shard(INSTITUTION, 0);
    let records = vec![vec![0; 60_000].into(); 16];
    let frame = Frame::Entries(Entries { log, first: 1, records, heads: Vec::new() });
    let taken = (0..).find(|_| {
        let outputs = world.frame(frame.clone());
        outputs.iter().any(|output| matches!(output, Output::CloseLink(..)))
    });
    assert_eq!(taken, Some(8), "some megabytes");
}

#[test]
fn a_quiet_node_marks_its_clock_and_never_writes_below_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Strict, directory.path());
    world.share_grant(ALICE, 5_000);
    world.buy("1", "nobody", 100);
    world.acknowledge();
    let outputs = world.pass(2_000);
    let Some(Frame::Mark(mark)) = sent(&outputs).pop() else { panic!("no mark: {outputs:?}") };
    assert_eq!((mark.position, mark.clock.time()), (1, world.now.wall));
    world.now.wall = world.now.wall.plus_ms(-3_600_000);
    world.reopen();
    world.buy("2", "nobody", 100);
    world.now.wall = world.now.wall.plus_ms(3_600_000);
    world.connect();
    let last = world.centre.records.last().unwrap();
    assert!(feiqian_protocol::entry::Entry::from_record(last).unwrap().clock > mark.clock);
    world.check();
}

#[test]
fn a_quiet_node_whose_clock_was_ahead_once_goes_on_marking() {
    let mut world = World::connected(Mode::Strict);
    world.share_grant(ALICE, 5_000);
    let right = world.now.wall;
    world.now.wall = right.plus_ms(365 * 86_400_000);
    world.buy("1", "nobody", 100);
    world.acknowledge();
    world.now.wall = right;
    let mut marks = 0;
    for _ in 0..8 {
        let outputs = world.pass(500);
        for frame in sent(&outputs) {
            let Frame::Mark(mark) = frame else { panic!("{frame:?}") };
            assert!(mark.clock.time() >= right.plus_ms(365 * 86_400_000));
            marks += 1;
        }
    }
    assert!((3..=5).contains(&marks), "one a second in four seconds: {marks}");
    world.check();
}

#[test]
fn a_frame_that_is_not_taken_takes_nothing_else_along() {
    let mut world = stocked(Mode::Strict);
    world.share_grant(BOB, 5_000);
    world.grant(BOB, 1_000);
    world.buy("0", "alice", 1_100);
    assert_eq!(world.status().pending, 1);
    let buy =
        |n: u64, card: &str| Input::Tap(Ticket(n), tap(&n.to_string(), card, TapKind::Amount(fen(100))));
    // The grant is in order, what is in the stream of an account's shard is not for it.
    let shard = LogId::shard(identity().institution, 1);
    let wrong = world.centre.write(shard, world.now.wall, vec![CloseRequest { epoch: Epoch::FIRST }.into()]);
    let link = world.link;
    let outputs = world.step(vec![buy(1, "bob"), Input::Frame(link, wrong), buy(2, "bob")]);
    let bob = approved(BOB, 100, 0);
    let out = declined(DeclineReason::Insufficient);
    assert_eq!(decided(&outputs), [bob.clone(), out, bob].concat(), "the link is down for what waits");
    assert_eq!(outputs.iter().filter(|output| matches!(output, Output::CloseLink(..))).count(), 1);
    let status = world.status();
    assert_eq!((status.link, status.position, status.unspent_fen), (LinkState::Down, 3, 1_800));
    assert_eq!(world.core.centre_cursor(shard).unwrap().position, 2, "campus and accounts");
    world.check();
}
