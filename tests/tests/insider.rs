//! A building with a good certificate and bad intentions: whatever it says is refused by name, or counted as what it is; what
//! nothing covers is a fault and a case, and nobody else is disturbed.

use anyhow::{Context, Result, ensure};
use feiqian_protocol::chain::{Cursor, HASH_ZERO};
use feiqian_protocol::entry::{Body, Debit, EpochEnd, Release, Reversal, TakenIn, TapRef};
use feiqian_protocol::frame::{Ack, Ask, Entries, Frame, Mark, Recalled, RefusalReason};
use feiqian_protocol::ids::{AccountId, CardNumber, Epoch, InstitutionId, Key, LogId, NodeId, Unit, Wallet};
use feiqian_protocol::limits::{ENTRIES_PER_FRAME_MAX, RECORD_BYTES_MAX};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Hlc, Timestamp};
use feiqian_reconcile::driver::real_now;
use feiqian_tests::kept::number;
use feiqian_tests::liar::{Liar, block_on};
use feiqian_tests::stand::{Plan, Stand, wait_for};

const CARD: &str = "card-1001";

/// One honest building, and the name of one that is not.
fn stand() -> Result<Stand> {
    let mut stand = Stand::centre_alone(Plan { buildings: vec!["honest", "liar"], ..Plan::default() })?;
    let data = stand.path("honest");
    stand.add_node("honest", "pos", &data)?;
    stand.settle()?;
    Ok(stand)
}

fn undisturbed(stand: &Stand, session: &serde_json::Value, sequence: &str) -> Result<()> {
    let status = stand.nodes[0].status()?;
    ensure!(status["link"] == "up" && status["session"] == *session, "{status}\n{}", stand.centre.log());
    stand.till(0)?.sell(sequence, "card-1002", 10)
}

/// The number that the account of a card has at the centre: they count from 1 in the order of the import.
const fn account(place: u64) -> AccountId {
    AccountId(place)
}

fn debit(sequence: u32, account: AccountId, from_right: i64, stand_in: i64) -> Debit {
    Debit {
        tap: TapRef { epoch: 1, sequence: Key::new(sequence.to_string()).expect("a number is a key") },
        account,
        wallet: Wallet::Cash,
        epoch: Epoch::FIRST,
        from_right: Fen::new(from_right),
        stand_in: Fen::new(stand_in),
        allowance: Fen::ZERO,
        day: BusinessDay(20_000),
        merchant: 1,
        card: CardNumber::new(CARD).expect("a card number"),
        measured: None,
        code: None,
        from_voucher: None,
        meal: None,
    }
}

fn end() -> Body {
    EpochEnd { epoch: Epoch(7) }.into()
}

/// What is no continuation of its log, or no word of this protocol, ends its connection with a reason.
#[test]
fn what_a_node_may_not_say_ends_its_connection() -> Result<()> {
    let stand = stand()?;
    let session = stand.nodes[0].status()?["session"].clone();
    let mut liar = Liar::enrol(&stand, "liar", "pos")?;
    let now = real_now();
    for _ in 0..3 {
        liar.write(now, 0, [end()]);
    }
    let all = liar.entries_after(0);
    let own = liar.log();
    let of = |log: LogId| Frame::Entries(Entries { log, ..all.clone() });
    let institution = InstitutionId(1);
    let mut forged = all.clone();
    forged.heads[0].signature[5] ^= 1;
    let single = |record: Vec<u8>| {
        let cursor = Cursor::START.after(own, &record);
        Frame::Entries(Entries {
            log: own,
            first: 1,
            records: vec![record.into()],
            heads: vec![liar.sign(own, cursor)],
        })
    };
    let many = Entries { records: vec![vec![0_u8; 4].into(); ENTRIES_PER_FRAME_MAX + 1], ..all.clone() };
    let unit = Unit::Wallet(Wallet::Cash);
    let cases: Vec<(&str, Frame, &str)> = vec![
        ("a gap", Frame::Entries(liar.entries_after(2)), "do not continue it"),
        ("another node's log", of(LogId::node(institution, NodeId(1))), "is no log of this node"),
        ("the centre's stream", of(LogId::to_node(institution, liar.node)), "is no log of this node"),
        ("an account stream", of(LogId::shard(institution, 3)), "is no log of this node"),
        (
            "a branch that nobody named",
            of(LogId::branch(institution, liar.node, 1)),
            "is no log of this node",
        ),
        ("another institution's", of(LogId::node(InstitutionId(9), liar.node)), "is no log of this node"),
        ("a forged head", Frame::Entries(forged), "is not signed by its writer"),
        ("no entry", single(b"no entry".to_vec()), "entry 1"),
        ("an empty record", single(Vec::new()), "entry 1"),
        ("an entry too long", single(vec![0x40; RECORD_BYTES_MAX + 1]), "entry 1"),
        ("too many entries", Frame::Entries(many), "257 entries"),
        (
            "an acknowledgement of what was never sent",
            Frame::Ack(Ack {
                log: LogId::to_node(institution, liar.node),
                position: u64::MAX,
                countersignature: None,
            }),
            "acknowledged up to",
        ),
        (
            "an acknowledgement of another log",
            Frame::Ack(Ack {
                log: LogId::to_node(institution, NodeId(1)),
                position: 1,
                countersignature: None,
            }),
            "is no log of this session",
        ),
        ("a second Hello", Frame::NodeHello(Box::new(liar.hello())), "out of place"),
        (
            "a word of the centre's",
            Frame::No(feiqian_protocol::frame::No {
                account: account(1),
                unit,
                want: Fen::new(1),
                r#final: true,
                free: Fen::ZERO,
                unheard_ms: 0,
            }),
            "out of place",
        ),
    ];
    block_on(async {
        for (what, frame, expected) in &cases {
            let mut talk = liar.connect(&stand).await?;
            let mut hello = liar.hello();
            hello.log = Cursor::START;
            let answer = talk.greet(hello).await.with_context(|| (*what).to_owned())?;
            ensure!(answer.refused.is_none(), "{what}: {answer:?}");
            talk.say(frame).await;
            let reason = talk.ended().await.with_context(|| (*what).to_owned())?;
            ensure!(reason.contains(expected), "{what}: {reason}");
        }
        // Its applied position falls: it signed that itself, so it is a fault of its own, and what stands before it counts.
        let mut falling = Liar::enrol(&stand, "liar", "pos")?;
        falling.write(now, 5, [end()]);
        falling.write(now, 4, [end()]);
        let mut talk = falling.connect(&stand).await?;
        talk.greet(falling.hello()).await?;
        talk.say(&Frame::Entries(falling.entries_after(0))).await;
        let reason = talk.ended().await?;
        ensure!(reason.contains("falls at 2"), "{reason}");
        let liar = falling;
        // The first word is a Hello.
        let mut talk = liar.connect(&stand).await?;
        talk.say(&Frame::Mark(Mark { position: 0, clock: Hlc::default() })).await;
        let reason = talk.ended().await?;
        ensure!(reason.contains("out of place"), "{reason}");
        // Who it is, says its certificate.
        for (change, refused) in
            [(0, RefusalReason::Version), (1, RefusalReason::Identity), (2, RefusalReason::Incarnation)]
        {
            let mut talk = liar.connect(&stand).await?;
            let mut hello = liar.hello();
            match change {
                0 => hello.version += 1,
                1 => hello.node = NodeId(1),
                _ => hello.incarnation += 1,
            }
            let answer = talk.greet(hello).await?;
            ensure!(answer.refused == Some(refused), "{answer:?}");
        }
        Ok(())
    })?;
    let log = stand.centre.log();
    ensure!(log.contains("is not signed by its writer") && log.contains("do not continue it"), "{log}");
    wait_for("what was proven", || Ok(stand.at_centre("liar")?["ingested"] == 1))?;
    undisturbed(&stand, &session, "after")?;
    stand.finish()
}

/// What it signs is its word, and counts as far as it can: a debit without right is a fault and nobody's right, a debit that
/// its role may not write is paid out of suspense, and no number is so large that the books do not hold.
#[test]
fn what_a_node_signs_counts_as_what_it_is() -> Result<()> {
    let stand = stand()?;
    let session = stand.nodes[0].status()?["session"].clone();
    let mut liar = Liar::enrol(&stand, "liar", "pos")?;
    let future = Timestamp(4_102_444_800_000);
    let (ours, nobody) = (account(1), account(999_999));
    let reversal = |debit: u64, right_back: i64| Reversal {
        tap: TapRef { epoch: 1, sequence: Key::new("r").expect("a key") },
        debit,
        account: ours,
        wallet: Wallet::Cash,
        epoch: Epoch::FIRST,
        right_back: Fen::new(right_back),
        right_home: Fen::ZERO,
        stand_in_home: Fen::ZERO,
        allowance_back: Fen::ZERO,
        day: BusinessDay(20_000),
    };
    let release = |amount: i64| Release {
        account: ours,
        wallet: Wallet::Cash,
        epoch: Epoch::FIRST,
        amount: Fen::new(amount),
        released_total: Fen::new(amount),
    };
    let tap = TapRef { epoch: 1, sequence: Key::new("cash").expect("a key") };
    let taken_in =
        TakenIn { tap, account: ours, wallet: Wallet::Cash, epoch: Epoch::FIRST, amount: Fen::new(50_000) };
    let mut far = debit(9, ours, 1, 0);
    far.epoch = Epoch(u32::MAX);
    far.day = BusinessDay(i32::MAX);
    liar.write(
        future,
        u64::MAX,
        [
            debit(1, ours, 300, 0).into(),
            debit(2, ours, 0, 200).into(),
            debit(3, nobody, 500, 0).into(),
            debit(4, ours, 0, 0).into(),
            debit(5, ours, -100, 0).into(),
            debit(6, ours, i64::MAX, 0).into(),
            debit(7, ours, i64::MAX, i64::MAX).into(),
            debit(8, ours, i64::MIN, 0).into(),
            far.into(),
            reversal(1, 301).into(),
            reversal(77, 1).into(),
            reversal(u64::MAX, 1).into(),
            reversal(1, i64::MIN).into(),
            release(1_000).into(),
            release(i64::MAX).into(),
            taken_in.into(),
            EpochEnd { epoch: Epoch(u32::MAX) }.into(),
            EpochEnd { epoch: Epoch(0) }.into(),
        ],
    );
    block_on(async {
        let mut talk = liar.connect(&stand).await?;
        ensure!(talk.greet(liar.hello()).await?.refused.is_none());
        talk.say(&Frame::Entries(liar.entries_after(0))).await;
        talk.acked(liar.log(), liar.end().position).await?;
        // Messages move no money, whatever they say.
        let unit = Unit::Wallet(Wallet::Cash);
        for want in [0, -1, i64::MIN, i64::MAX] {
            for (account, epoch) in [(ours, Epoch::FIRST), (nobody, Epoch::FIRST), (ours, Epoch(u32::MAX))] {
                let ask = Ask { account, unit, epoch, want: Fen::new(want), at: u64::MAX, ms_left: u64::MAX };
                talk.say(&Frame::Ask(ask)).await;
                talk.say(&Frame::Ask(Ask { unit: Unit::Allowance, at: 0, ..ask })).await;
            }
        }
        talk.say(&Frame::Recalled(Recalled { account: ours, unit, at: u64::MAX })).await;
        for position in [0, liar.end().position, u64::MAX] {
            talk.say(&Frame::Mark(Mark { position, clock: Hlc::from_bits(u64::MAX) })).await;
        }
        // Everything was taken in, and the conversation stands.
        talk.say(&Frame::Entries(liar.entries_after(0))).await;
        talk.acked(liar.log(), liar.end().position).await?;
        ensure!(talk.connection.close_reason().is_none());
        anyhow::Ok(())
    })?;
    // 300 and 200 and 1 are real words about real money; the rest is nothing.
    wait_for("the debits", || Ok(stand.balances()?[CARD] == 100_000 - 501))
        .with_context(|| format!("{:?}", stand.balances()))?;
    ensure!(stand.centre.status()?["suspense_fen"] == 500, "{}", stand.centre.status()?);
    let log = stand.centre.log();
    for fault in [
        "a debit beyond its right or stand-in",
        "a debit of an unknown account",
        "a debit of an impossible amount",
        "a reversal of a debit that is not there",
        "a reversal of more than is left of its debit",
        "a reversal of an impossible amount",
        "a release of more than the row holds",
        "a release of an impossible amount",
        "its role may not write this",
        "the clock of a node is wrong",
    ] {
        ensure!(log.contains(fault), "{fault:?} is not in {log}");
    }
    // Its clock of 2100 orders nothing: what it wrote is ordered by when it came.
    let now = real_now().0;
    for entry in stand.export("entries")?.iter().filter(|entry| entry["log"] == "node-2") {
        ensure!((now - 600_000..=now).contains(&number(entry, "order_key_ms")), "{entry:?}");
    }
    ensure!(stand.cases()?.is_empty(), "there is money for it: {:?}", stand.cases()?);

    // One that may only open doors sells nothing.
    let mut door = Liar::enrol(&stand, "liar", "door")?;
    door.write(real_now(), 0, [debit(1, ours, 700, 0).into()]);
    block_on(async {
        let mut talk = door.connect(&stand).await?;
        ensure!(talk.greet(door.hello()).await?.refused.is_none());
        talk.say(&Frame::Entries(door.entries_after(0))).await;
        talk.acked(door.log(), 1).await.map(drop)
    })?;
    wait_for("suspense", || Ok(stand.centre.status()?["suspense_fen"] == 500 + 700))?;
    ensure!(stand.balances()?[CARD] == 100_000 - 501, "the holder does not pay for it");
    undisturbed(&stand, &session, "after")?;
    stand.finish()
}

/// It signs two histories, and then says that the second one is the log: a fork. Both are kept and posted, and it holds
/// nothing any more.
#[test]
fn a_node_that_signs_two_histories_is_shut_out_and_both_count() -> Result<()> {
    let stand = stand()?;
    let session = stand.nodes[0].status()?["session"].clone();
    let mut liar = Liar::enrol(&stand, "liar", "pos")?;
    let (ours, now) = (account(1), real_now());
    liar.write(now, 0, [debit(1, ours, 100, 0).into()]);
    liar.write(now, 0, [debit(2, ours, 200, 0).into()]);
    let (first, first_end) = (liar.entries_after(0), liar.end());
    block_on(async {
        let mut talk = liar.connect(&stand).await?;
        ensure!(talk.greet(liar.hello()).await?.refused.is_none());
        talk.say(&Frame::Entries(first)).await;
        talk.acked(liar.log(), 2).await?;

        liar.rewind(1);
        liar.write(now, 0, [debit(3, ours, 400, 0).into()]);
        liar.write(now, 0, [debit(4, ours, 800, 0).into()]);
        // In the middle of the session: from the last that both have.
        talk.say(&Frame::Entries(liar.entries_after(1))).await;
        let refusal = talk.hello().await?;
        ensure!(refusal.refused == Some(RefusalReason::ForkedLog), "{refusal:?}");
        let branch = refusal.branch.context("a branch for the rest")?;
        ensure!(branch.after <= 1, "{branch:?}");
        let rest = Entries { log: branch.log, ..liar.entries_after(branch.after) };
        talk.say(&Frame::Entries(rest)).await;
        let ack = talk.acked(branch.log, 3).await?;
        let countersigned = ack.countersignature.context("a countersignature")?;
        ensure!(countersigned.cursor == liar.end());

        // Again with the first one, and with a third one of equal length: refused at Hello, whichever it is.
        for cursor in [first_end, Cursor { position: 2, hash: HASH_ZERO }] {
            let mut talk = liar.connect(&stand).await?;
            let mut hello = liar.hello();
            hello.log = cursor;
            let answer = talk.greet(hello).await?;
            ensure!(answer.refused == Some(RefusalReason::ForkedLog), "{answer:?}");
        }
        Ok(())
    })?;
    wait_for("both histories", || Ok(stand.balances()?[CARD] == 100_000 - 100 - 200 - 400 - 800))
        .with_context(|| format!("{:?}", stand.balances()))?;
    let state = stand.at_centre("liar")?;
    ensure!(state["state"].as_str().is_some_and(|state| state.contains("forked_log")), "{state}");
    ensure!(state["out_fen"] == 0, "{state}");
    ensure!(stand.centre.log().contains("reason=\"forked_log\""), "{}", stand.centre.log());
    undisturbed(&stand, &session, "after")?;
    stand.finish()
}
