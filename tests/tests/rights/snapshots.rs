//! Snapshots of account streams: what they give equals what the entries give, whatever happens on the way, and old entries
//! go without anything being lost.

use anyhow::{Context, Result, bail, ensure};
use ed25519_dalek::SigningKey;
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::{InstitutionId, LogId};
use feiqian_protocol::limits::STREAM_KEPT_MS;
use feiqian_protocol::money::Fen;
use feiqian_protocol::snapshot::{PieceDigest, SignedSnapshot};
use feiqian_protocol::time::BusinessCalendar;
use feiqian_sim::link::{Direction, INSTITUTION, Notice, Setup, Waiting, World};
use feiqian_sim::vfs::Disk;

use super::shortcuts::approved;

/// The stream of the one account.
const STREAM: LogId = LogId::shard(INSTITUTION, 1);

/// So many credits that their outcome is less to send.
const MANY: usize = 300;

fn credits(world: &mut World, name: &str, count: usize) -> Result<()> {
    for number in 0..count {
        world.top_up("c1", 1, &format!("{name}-{number}"))?;
    }
    Ok(())
}

/// Building 0 in session with everything, building 1 never connected.
fn grown() -> Result<World> {
    let mut world = World::new(Setup::default())?;
    world.connect(0)?;
    world.run(1_000)?;
    credits(&mut world, "k", MANY)?;
    world.run(2_000)?;
    Ok(world)
}

/// Buildings that have not heard of any of many accounts.
fn crowded() -> Result<World> {
    let accounts = (0..16 * 160).map(|number| (format!("c{number}"), Fen::new(100))).collect();
    World::new(Setup { nodes: 1, accounts, ..Setup::default() })
}

fn applied(world: &mut World, site: usize) -> Result<u64> {
    Ok(world.node_status(site)?.shards[1])
}

/// Entries of the stream that a building keeps: their number, and the first.
fn kept(world: &mut World, site: usize) -> Result<(u64, u64)> {
    let tables = world.node_tables(site)?;
    Ok(tables.connection().query_row(
        "SELECT count(*), coalesce(min(position), 0) FROM entries WHERE log = ?1",
        [STREAM.key()],
        |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)),
    )?)
}

/// Delivers until a frame of this sort is the next in a lane.
fn until(world: &mut World, is_it: impl Fn(&Frame) -> bool) -> Result<Waiting> {
    for _ in 0..10_000 {
        let mut other = None;
        for waiting in world.waiting() {
            if is_it(&world.look_at(waiting)?) {
                return Ok(waiting);
            }
            other.get_or_insert(waiting);
        }
        match other {
            Some(waiting) => world.deliver(waiting)?,
            None => world.advance(1)?,
        }
    }
    bail!("no such frame comes")
}

const fn is_snapshot(frame: &Frame) -> bool {
    matches!(frame, Frame::Snapshot(_))
}

const fn is_piece(frame: &Frame) -> bool {
    matches!(frame, Frame::SnapshotPiece(_))
}

#[test]
fn a_new_building_gets_the_outcome_and_equals_one_that_folded_the_entries() -> Result<()> {
    let mut world = grown()?;
    ensure!(kept(&mut world, 0)?.0 > MANY as u64, "building 0 has folded them");
    world.connect(1)?;
    world.run(2_000)?;
    ensure!(kept(&mut world, 1)?.0 < 10, "building 1 has not: {:?}", kept(&mut world, 1)?);
    world.check_healed()?;
    // What follows is followed as ever.
    approved(&mut world, 1, "c1", 700)?;
    world.top_up("c1", 5, "later")?;
    world.run(2_000)?;
    world.check_healed()?;
    // It survives, and nobody sends it again.
    let before = applied(&mut world, 1)?;
    world.crash(1)?;
    world.start(1)?;
    ensure!(applied(&mut world, 1)? == before);
    world.connect(1)?;
    world.run(1_000)?;
    world.check_healed()
}

/// One that knows the accounts and was away for long, and has spent meanwhile.
#[test]
fn a_building_far_behind_keeps_what_it_spent_and_knows() -> Result<()> {
    let mut world = World::new(Setup::default())?;
    world.connect(0)?;
    world.connect(1)?;
    world.run(2_000)?;
    world.hold(1, "c1", 2_000)?;
    world.cut(1, Notice::Both)?;
    approved(&mut world, 1, "c1", 600)?;
    credits(&mut world, "k", MANY)?;
    approved(&mut world, 0, "c1", 500)?;
    world.run(1_000)?;
    let before = applied(&mut world, 1)?;
    world.connect(1)?;
    world.run(2_000)?;
    let (count, first) = kept(&mut world, 1)?;
    let skipped = count == 0 || first > before + MANY as u64;
    ensure!(skipped && count < 20, "{count} entries from {first} on");
    world.check_healed()?;
    // The right that it held outlives the snapshot.
    approved(&mut world, 1, "c1", 300)?;
    world.run(1_000)?;
    world.check_healed()
}

/// Half of a snapshot is nothing, through a power cut too; what is durable of it is not sent again.
#[test]
fn half_a_snapshot_changes_nothing_and_is_resumed() -> Result<()> {
    let mut world = crowded()?;
    world.connect(0)?;
    let piece = until(&mut world, is_piece)?;
    world.deliver(piece)?;
    let second = until(&mut world, is_piece)?;
    let Frame::SnapshotPiece(second) = world.look_at(second)? else { bail!("looked at another frame") };
    ensure!(second.index == 1, "{}", second.index);
    ensure!(world.node_status(0)?.accounts == 0, "half a snapshot is nothing");
    world.power_cut(0, 7)?;
    world.start(0)?;
    ensure!(world.node_status(0)?.accounts == 0 && world.node_status(0)?.shards.iter().all(|end| *end == 0));
    let report = {
        let identity = world.site(0).identity.clone();
        feiqian_node::verify::verify(world.node_tables(0)?.connection(), &identity)?
    };
    ensure!(report.ok, "{report:?}");
    world.connect(0)?;
    let resumed = until(&mut world, is_piece)?;
    let Frame::SnapshotPiece(resumed) = world.look_at(resumed)? else { bail!("looked at another frame") };
    ensure!((resumed.log, resumed.index) == (second.log, second.index), "{} {}", resumed.log, resumed.index);
    world.run(5_000)?;
    ensure!(world.node_status(0)?.accounts == 16 * 160);
    ensure!(world.closed.is_empty(), "{:?}", world.closed);
    world.check_healed()
}

/// The centre takes a newer one while the first is half there.
#[test]
fn half_a_snapshot_gives_way_to_a_newer_one() -> Result<()> {
    let mut world = crowded()?;
    world.connect(0)?;
    let piece = until(&mut world, is_piece)?;
    let Frame::SnapshotPiece(first) = world.look_at(piece)? else { bail!("looked at another frame") };
    world.deliver(piece)?;
    world.cut(0, Notice::Both)?;
    let shard = first.log.as_shard().context("a shard")?;
    let card = format!("c{}", if shard == 0 { 15 } else { shard - 1 });
    for number in 0..16 * 160 / 16 * 8 + 300 {
        world.top_up(&card, 1, &format!("k{number}"))?;
    }
    world.connect(0)?;
    world.run(5_000)?;
    ensure!(world.closed.is_empty(), "{:?}", world.closed);
    ensure!(world.node_status(0)?.accounts == 16 * 160);
    world.check_healed()
}

/// Where building 1 stands afterwards, and what it said when it closed the link.
fn refused(mut world: World) -> Result<String> {
    let before = applied(&mut world, 1)?;
    let digest = |world: &mut World| {
        let identity = world.site(1).identity.clone();
        feiqian_node::verify::verify(world.node_tables(1)?.connection(), &identity)
            .map_err(anyhow::Error::from)
    };
    let held = digest(&mut world)?;
    world.deliver_where(|waiting| waiting.site == 1)?;
    let (site, end, why) = world.closed.pop().context("the link stands")?;
    ensure!((site, end) == (1, "node"), "{site} {end} {why}");
    let after = digest(&mut world)?;
    ensure!(applied(&mut world, 1)? == before && after.ok && after.digest_tables == held.digest_tables);
    // The centre's own is taken all the same.
    world.connect(1)?;
    world.run(5_000)?;
    ensure!(world.closed.is_empty(), "{:?}", world.closed);
    world.check_healed()?;
    Ok(why)
}

fn centre_key() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

fn offered(alter: impl FnOnce(&mut SignedSnapshot)) -> Result<String> {
    let mut world = grown()?;
    world.connect(1)?;
    let offer = until(&mut world, is_snapshot)?;
    world.alter(offer, |frame| {
        if let Frame::Snapshot(signed) = frame {
            alter(signed);
        }
    })?;
    refused(world)
}

#[test]
fn a_forged_altered_or_foreign_snapshot_is_refused() -> Result<()> {
    let forger = SigningKey::from_bytes(&[66; 32]);
    let why = offered(|signed| *signed = signed.snapshot.clone().sign(&forger))?;
    ensure!(why.contains("not signed by the centre"), "{why}");
    let why = offered(|signed| signed.snapshot.accounts += 1)?;
    ensure!(why.contains("not signed by the centre"), "{why}");
    let why = offered(|signed| signed.snapshot.end.head.cursor.position += 1)?;
    ensure!(why.contains("not signed by the centre"), "{why}");
    let why = offered(|signed| {
        let mut snapshot = signed.snapshot.clone();
        snapshot.end.head.log = LogId::shard(InstitutionId(2), 1);
        snapshot.end = snapshot.end.head.sign(&centre_key());
        *signed = snapshot.sign(&centre_key());
    })?;
    ensure!(why.contains("no account stream of this institution"), "{why}");
    Ok(())
}

fn with_piece(alter: impl FnOnce(&mut Frame)) -> Result<String> {
    let mut world = grown()?;
    world.connect(1)?;
    let piece = until(&mut world, is_piece)?;
    world.alter(piece, alter)?;
    refused(world)
}

#[test]
fn an_altered_truncated_or_displaced_piece_is_refused() -> Result<()> {
    let why = with_piece(|frame| {
        if let Frame::SnapshotPiece(piece) = frame {
            let last = piece.accounts.len() - 1;
            // The last byte is of a balance.
            piece.accounts[last] ^= 1;
        }
    })?;
    ensure!(why.contains("not those that the centre signed"), "{why}");
    let why = with_piece(|frame| {
        if let Frame::SnapshotPiece(piece) = frame {
            let half = piece.accounts.len() / 2;
            piece.accounts = piece.accounts[..half].to_vec().into();
        }
    })?;
    ensure!(why.contains("cannot be read"), "{why}");
    let why = with_piece(|frame| {
        if let Frame::SnapshotPiece(piece) = frame {
            piece.index += 1;
        }
    })?;
    ensure!(why.contains("out of place"), "{why}");
    Ok(())
}

/// A snapshot that was right once is no way back.
#[test]
fn an_older_snapshot_is_refused() -> Result<()> {
    let mut world = grown()?;
    world.connect(1)?;
    let offer = until(&mut world, is_snapshot)?;
    let old = world.look_at(offer)?;
    world.run(2_000)?;
    world.top_up("c1", 7, "later")?;
    world.run(2_000)?;
    world.inject(1, Direction::Down, &old)?;
    let why = refused(world)?;
    ensure!(why.contains("older than what is applied here"), "{why}");
    Ok(())
}

/// The signature covers the pieces only by their digest; one over other pieces is another snapshot.
#[test]
fn the_digest_ties_the_pieces_to_the_signature() -> Result<()> {
    let why = offered(|signed| {
        let mut snapshot = signed.snapshot.clone();
        snapshot.digest = PieceDigest::default().with(b"other").0;
        *signed = snapshot.sign(&centre_key());
    })?;
    ensure!(why.contains("not those that the centre signed"), "{why}");
    Ok(())
}

/// Entries of before the term are gone at both ends, everything verifies, and whoever lacks them gets their outcome.
#[test]
fn old_entries_go_and_everything_still_verifies() -> Result<()> {
    let mut world = World::new(Setup { nodes: 3, ..Setup::default() })?;
    world.connect(0)?;
    world.connect(1)?;
    world.run(1_000)?;
    approved(&mut world, 0, "c1", 300)?;
    credits(&mut world, "k", MANY)?;
    world.run(1_000)?;
    world.check()?;
    let end = applied(&mut world, 0)?;
    world.cut(0, Notice::Both)?;
    world.cut(1, Notice::Both)?;
    // Over the next begin of a business day after the term, building 0 is in session.
    let calendar = BusinessCalendar::CHINA;
    let day = calendar.day(world.wall().plus_ms(STREAM_KEPT_MS)).next();
    world.advance(STREAM_KEPT_MS as u64 - 3_600_000)?;
    world.top_up("c1", 11, "young")?;
    let begin = calendar.start(day).ms_since(world.wall());
    world.advance(begin as u64 - 20_000)?;
    world.connect(0)?;
    world.run(30_000)?;
    let centre = |world: &mut World| -> Result<(u64, feiqian_reconcile::verify::Report)> {
        let connection = world.centre_tables()?.connection();
        let first: i64 = connection.query_row(
            "SELECT min(position) FROM entries WHERE log = ?1",
            [STREAM.key()],
            |row| row.get(0),
        )?;
        let key = centre_key().verifying_key();
        Ok((first as u64, feiqian_reconcile::verify::verify(connection, INSTITUTION, &key)?))
    };
    let (first, report) = centre(&mut world)?;
    ensure!(first == end + 1, "the centre keeps entries from {first} on, not from {end}");
    ensure!(report.ok, "{report:?}");
    ensure!(kept(&mut world, 0)?.1 == end + 1, "{:?}", kept(&mut world, 0)?);
    ensure!(kept(&mut world, 1)?.1 == 1, "building 1 has not heard of it");
    let at_node = |world: &mut World, site: usize| -> Result<feiqian_node::verify::Report> {
        let identity = world.site(site).identity.clone();
        Ok(feiqian_node::verify::verify(world.node_tables(site)?.connection(), &identity)?)
    };
    let node = at_node(&mut world, 0)?;
    ensure!(node.ok && node.digest_folded == report.digest_folded, "{node:?}");
    // One that was away all the time, and one that has nothing.
    for site in [1, 2] {
        world.connect(site)?;
        world.run(1_000)?;
        let node = at_node(&mut world, site)?;
        ensure!(node.ok && node.digest_folded == centre(&mut world)?.1.digest_folded, "{site}: {node:?}");
        // Without the invariants, which need all entries.
        ensure!(world.tap_and_wait(site, "c1", 200)?.approved() == Some(Fen::new(200)));
        ensure!(centre(&mut world)?.1.ok, "{:?}", centre(&mut world)?.1);
    }
    // A terminal's retry still gets its first answer, and a tap of then can be taken back.
    let tap = world.model.requests.values().find(|request| request.site == 0).cloned().context("a tap")?;
    world.submit(&tap)?;
    let back = world.reverse(&tap, None)?;
    world.run(1_000)?;
    ensure!(world.answer(&back).and_then(|answer| answer.approved()) == Some(Fen::new(300)));
    ensure!(at_node(&mut world, 0)?.ok && centre(&mut world)?.1.ok);
    // What stands for the old entries cannot be altered, nor the head that the rest links to.
    let tampers = [
        "UPDATE snapshot_pieces SET accounts = zeroblob(length(accounts)) WHERE log = 65537",
        "UPDATE snapshots SET signed = CAST(substr(signed, 1, length(signed) - 1) || x'00' AS BLOB) WHERE log = 65537",
        "UPDATE snapshots SET signed = substr(signed, 1, length(signed) - 1) WHERE log = 65537",
        "DELETE FROM snapshots WHERE log = 65537",
        "UPDATE heads SET signature = zeroblob(64) WHERE log = 65537
         AND position = (SELECT min(position) FROM heads WHERE log = 65537)",
        "UPDATE heads SET hash = zeroblob(32) WHERE log = 65537
         AND position = (SELECT min(position) FROM heads WHERE log = 65537)",
        "DELETE FROM heads WHERE log = 65537
         AND position = (SELECT min(position) FROM heads WHERE log = 65537)",
        "DELETE FROM entries WHERE log = 65537
         AND position = (SELECT min(position) FROM entries WHERE log = 65537)",
        "DELETE FROM entries WHERE log = 65537",
    ];
    let (centre_image, node_image) = (world.centre_disk().image(), world.image(0));
    let identity = world.site(0).identity.clone();
    let key = centre_key().verifying_key();
    for tamper in tampers {
        let connection = Disk::from_image(&centre_image).open("centre.db")?;
        ensure!(connection.execute(tamper, [])? > 0, "{tamper}");
        ensure!(!feiqian_reconcile::verify::verify(&connection, INSTITUTION, &key)?.ok, "centre: {tamper}");
        let connection = Disk::from_image(&node_image).open("node.db")?;
        ensure!(connection.execute(tamper, [])? > 0, "{tamper}");
        ensure!(!feiqian_node::verify::verify(&connection, &identity)?.ok, "node: {tamper}");
    }
    Ok(())
}
