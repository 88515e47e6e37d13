//! Several boxes that bear one name, and what is altered on its way: what each of them did comes up, whatever the others do.

use feiqian_protocol::entry::EpochEnd;
use feiqian_protocol::frame::RefusalReason;

use super::*;

/// What a box sends after a position, a record a frame, under the name of a branch.
pub(super) fn frames(bench: &Bench, index: usize, log: LogId, after: u64) -> Vec<Input> {
    let node = &bench.nodes[index];
    let link = node.link.expect("connected");
    let frame = |at: usize| Entries {
        log,
        first: at as u64 + 1,
        records: vec![node.records[at].clone().into()],
        heads: vec![node.heads[at]],
    };
    let at = after as usize..node.records.len();
    at.map(|at| Input::Frame(link, Frame::Entries(frame(at)))).collect()
}

/// Says Hello and sends what the centre asks for, where it asks for it.
fn comes(bench: &mut Bench, index: usize) {
    bench.connect(index);
    let mut told = None;
    while let Some(branch) = bench.nodes[index].branch
        && told != Some(branch.log)
    {
        told = Some(branch.log);
        let frames = frames(bench, index, branch.log, branch.after);
        bench.step(frames);
    }
}

#[test]
fn boxes_of_one_name_upload_side_by_side_each_to_a_branch_of_its_own() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    bench.debit(0, 1, 100, 0);
    bench.upload(0);
    bench.cut(0);
    for _ in 0..2 {
        let copy = bench.nodes[0].clone();
        bench.nodes.push(copy);
    }
    for (index, fen) in [(0, 10), (1, 20), (2, 30)] {
        for _ in 0..3 {
            bench.debit(index, 1, fen, 0);
        }
    }
    bench.connect(0);
    bench.upload(0);
    comes(&mut bench, 1);
    assert_eq!(bench.nodes[0].closed.as_deref(), Some("another copy of the node was refused"));
    comes(&mut bench, 2);
    bench.debit(0, 1, 10, 0);
    bench.connect(0);
    assert_eq!(bench.nodes[0].centre_hello().refused, Some(RefusalReason::ForkedLog));
    assert_eq!(bench.nodes[0].branch, None, "it continues what is there");
    bench.upload(0);
    assert!(bench.nodes.iter().all(|node| node.link.is_some()), "nobody is in another's way");
    assert_eq!(bench.nodes[0].acked(), 5);

    // They come again, the older one first: each goes on where it was.
    for index in [1, 2, 1] {
        bench.cut(index);
        bench.debit(index, 1, 1, 0);
        comes(&mut bench, index);
    }
    let branches: Vec<_> =
        bench.nodes.iter().map(|node| node.branch.map(|branch| branch.log.stream)).collect();
    assert_eq!(branches[0], None);
    assert_ne!(branches[1], branches[2]);
    assert_eq!(bench.number("SELECT COUNT(*) FROM branches"), 2);
    for (index, entries) in [(1, 5), (2, 4)] {
        let log = bench.nodes[index].branch.unwrap().log.key();
        assert_eq!(bench.number(&format!("SELECT COUNT(*) FROM entries WHERE log = {log}")), entries);
    }
    assert_eq!(bench.number("SELECT funds FROM wallets"), 1_000 - 100 - 4 * 10 - 3 * 20 - 2 - 3 * 30 - 1);
    bench.check();
}

/// A bit of a record turns on its way.
pub(super) fn alter(input: &mut Input) {
    let Input::Frame(_, Frame::Entries(entries)) = input else { panic!("entries") };
    let record = entries.records.first_mut().unwrap();
    let last = record.len() - 1;
    record[last] ^= 1;
}

#[test]
fn what_came_altered_counts_once_when_it_comes_whole() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    bench.debit(0, 1, 100, 0);
    bench.upload(0);
    for fen in [10, 20, 30] {
        bench.debit(0, 1, fen, 0);
    }
    let own = bench.nodes[0].log();
    let mut altered = frames(&bench, 0, own, 1);
    alter(&mut altered[0]);
    bench.step(altered[..1].to_vec());
    let branch = bench.nodes[0].branch.expect("it is told to go on in a branch");
    // The second of the three is altered there.
    let mut altered = frames(&bench, 0, branch.log, branch.after);
    let at = altered.len() - 2;
    alter(&mut altered[at]);
    bench.step(altered);
    bench.advance(3_000);
    bench.step(vec![Input::Timer]);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 1_000 - 100 - 10 - 30);
    assert_eq!(
        bench.text("SELECT what FROM faults"),
        "lost: entries 3 to 3 are not what their head was signed over"
    );
    let posted = "SELECT COUNT(*) FROM entries WHERE kind = 43";
    let before = bench.number(posted);
    bench.check();
    // It comes again, whole, as often as it likes.
    for _ in 0..3 {
        bench.connect(0);
        let whole = frames(&bench, 0, branch.log, branch.after);
        bench.step(whole);
        assert_eq!(bench.number("SELECT funds FROM wallets"), 1_000 - 100 - 10 - 20 - 30);
        assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 0);
        assert_eq!(bench.number("SELECT COUNT(*) FROM lost"), 0);
        // In the same step, since a core that opens would not find it: the log was posted beyond it.
        assert_eq!(bench.number(posted), before + 1);
        bench.check();
    }
}

#[test]
fn a_reversal_that_came_before_its_debit_counts_once_the_debit_is_there() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    bench.upload(0);
    bench.debit(0, 1, 10, 0);
    let debit = bench.debit(0, 1, 300, 0);
    bench.reverse(0, 1, debit, 300);
    let wall = bench.now.wall;
    bench.nodes[0].write(wall, Proof::None, EpochEnd { epoch: Epoch::FIRST });
    let own = bench.nodes[0].log();
    let mut altered = frames(&bench, 0, own, 0);
    alter(&mut altered[0]);
    bench.step(altered[..1].to_vec());
    let branch = bench.nodes[0].branch.expect("it is told to go on in a branch");
    let mut altered = frames(&bench, 0, branch.log, branch.after);
    alter(&mut altered[debit as usize - 1]);
    bench.step(altered);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 990);
    assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 2);
    bench.connect(0);
    let whole = frames(&bench, 0, branch.log, branch.after);
    bench.step(whole);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 990);
    assert_eq!(bench.number("SELECT reversed FROM movements WHERE amount = -300"), 300);
    assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 0);
    // It ended its epoch since, so nothing of it stays there.
    assert_eq!(bench.number("SELECT COALESCE(SUM(residue), 0) FROM rights"), 0);
    bench.advance(3_000);
    bench.check();
}

#[test]
fn what_came_altered_into_a_branch_and_whole_into_the_log_counts_once() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    bench.debit(0, 1, 100, 0);
    bench.upload(0);
    bench.debit(0, 1, 20, 0);
    let own = bench.nodes[0].log();
    let mut altered = frames(&bench, 0, own, 1);
    alter(&mut altered[0]);
    bench.step(altered);
    let branch = bench.nodes[0].branch.take().expect("it is told to go on in a branch");
    let mut altered = frames(&bench, 0, branch.log, branch.after);
    alter(altered.last_mut().unwrap());
    bench.step(altered);
    assert_eq!(bench.number("SELECT COUNT(*) FROM lost"), 1);
    // Its Hello does not show that it was told one, and its log continues what is here.
    bench.connect(0);
    assert_eq!(bench.nodes[0].branch, None);
    let whole = frames(&bench, 0, own, 1);
    bench.step(whole);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 880);
    bench.nodes[0].branch = Some(branch);
    bench.connect(0);
    let whole = frames(&bench, 0, branch.log, branch.after);
    bench.step(whole);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 880);
    assert_eq!(bench.number("SELECT COUNT(*) FROM lost"), 0);
    bench.advance(3_000);
    bench.step(vec![Input::Timer]);
    bench.check();
}

#[test]
fn a_box_keeps_its_branch_when_its_name_is_enrolled_anew() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    bench.debit(0, 1, 100, 0);
    bench.upload(0);
    bench.cut(0);
    let copy = bench.nodes[0].clone();
    bench.nodes.push(copy);
    // The original's log grows longer than the copy's will.
    for _ in 0..4 {
        bench.debit(0, 1, 10, 0);
    }
    bench.connect(0);
    bench.upload(0);
    let debit = bench.debit(1, 1, 20, 0);
    comes(&mut bench, 1);
    let branch = bench.nodes[1].branch.expect("it is told a branch");
    bench.cut(0);
    bench.cut(1);
    let name = bench.text("SELECT name FROM nodes");
    bench.enrol(&name, Role::Pos);
    bench.reverse(1, 1, debit, 20);
    bench.connect(1);
    let hello = bench.nodes[1].centre_hello();
    assert_eq!(hello.refused, Some(RefusalReason::Incarnation));
    assert_eq!(hello.branch.map(|branch| branch.log), Some(branch.log));
    let rest = frames(&bench, 1, branch.log, branch.after);
    bench.step(rest);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 1_000 - 100 - 4 * 10);
    bench.check();
}
