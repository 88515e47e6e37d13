//! Business days, last days, and hours of the day.

use feiqian_protocol::campus::{CampusConfig, Hours, Meal, Merchant};
use feiqian_protocol::entry::CampusPublished;
use feiqian_protocol::ids::TerminalId;
use feiqian_protocol::tap::{Decision, TapKey};
use feiqian_protocol::time::{BusinessCalendar, Timestamp};

use super::*;

/// Local midnight.
fn start_of(time: Timestamp) -> Timestamp {
    let calendar = BusinessCalendar::CHINA;
    calendar.start(calendar.day(time))
}

/// Alice at the door.
fn knock(world: &mut World, sequence: &str) -> Vec<Decision> {
    let door = TapKey { terminal: TerminalId::new("door").unwrap(), ..key(sequence) };
    decided(&world.tap(TapRequest { key: door, ..tap(sequence, "alice", TapKind::Access) }))
}

/// The centre's next configuration comes.
fn publish(world: &mut World, version: u32, config: &CampusConfig) {
    let config = config.to_bytes().unwrap().into();
    let published = CampusPublished { version, config };
    let frame = world.centre.write(LogId::shard(INSTITUTION, 0), world.now.wall, vec![published.into()]);
    world.frame(frame);
}

#[test]
fn a_door_lets_a_group_pass_in_its_hours() {
    let mut world = World::connected(Mode::Strict);
    let holiday = BusinessCalendar::CHINA.day(MORNING.plus_ms(2 * 86_400_000));
    let config = CampusConfig {
        hours: vec![Hours {
            group: Key::new("dorm-1").unwrap(),
            nodes: vec![],
            open: vec!["06:00-23:00".parse().unwrap()],
            holidays: Some(vec!["08:00-09:00".parse().unwrap()]),
        }],
        holidays: vec![holiday.to_string().parse().unwrap()],
        ..campus(Mode::Strict)
    };
    publish(&mut world, 2, &config);
    world.disconnect();
    let (open, shut) = (approved(ALICE, 0, 0), declined(DeclineReason::NotPermitted));
    for (sequence, day, minutes, expected) in [
        ("22:59", 0, 1_379, &open),
        ("23:00", 0, 1_380, &shut),
        ("05:59", 1, 359, &shut),
        ("06:00", 1, 360, &open),
        ("07:59 on a holiday", 2, 479, &shut),
        ("08:00 on a holiday", 2, 480, &open),
    ] {
        let time = start_of(MORNING).plus_ms((day * 1_440 + minutes) * 60_000);
        world.pass(u64::try_from(time.ms_since(world.now.wall)).unwrap());
        assert_eq!(knock(&mut world, &sequence.replace(' ', "-")), *expected, "{sequence}");
    }
    // A clock that has fallen back to 1970: the centre was heard, and for how long this has run since is known.
    world.now.wall = Timestamp(0);
    world.pass(20 * 60_000);
    assert_eq!(knock(&mut world, "08:20"), open);
    world.pass(45 * 60_000);
    assert_eq!(knock(&mut world, "09:05"), shut);
    world.check();
}

#[test]
fn a_card_is_good_to_the_end_of_its_last_day_cut_off_or_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Strict, directory.path());
    world.share_grant(ALICE, 5_000);
    world.grant(ALICE, 3_000);
    let today = BusinessCalendar::CHINA.day(world.now.wall);
    let frame = world.setting(ALICE, Intent::SetValidity { until: Some(today) });
    world.frame(frame);
    assert_eq!(decided(&world.buy("1", "alice", 100)), approved(ALICE, 100, 0));
    world.disconnect();
    world.pass(86_400_000);
    assert_eq!(decided(&world.buy("2", "alice", 100)), declined(DeclineReason::Expired));
    world.reopen();
    assert_eq!(decided(&world.buy("3", "alice", 100)), declined(DeclineReason::Expired));
    world.connect();
    let frame = world.setting(ALICE, Intent::SetValidity { until: None });
    world.frame(frame);
    assert_eq!(decided(&world.buy("4", "alice", 100)), approved(ALICE, 100, 0));
    world.check();
}

#[test]
fn allowance_is_another_sum_on_another_day() {
    let mut world = World::connected(Mode::Strict);
    world.share_grant(ALICE, 1_000);
    world.grant(ALICE, 5_000);
    world.disconnect();
    assert_eq!(decided(&world.buy("1", "alice", 900)), approved(ALICE, 900, 0));
    assert_eq!(decided(&world.buy("2", "alice", 200)), declined(DeclineReason::PinRequired));
    world.pass(13 * 3_600_000); // to 00:00 of the next day
    assert_eq!(decided(&world.buy("3", "alice", 900)), approved(ALICE, 900, 0));
    assert_eq!(decided(&world.reverse("r1", "1", Some(500))), approved(ALICE, 500, 0));
    assert_eq!(
        decided(&world.buy("4", "alice", 200)),
        declined(DeclineReason::PinRequired),
        "yesterday's share"
    );
    // A clock that jumps ahead opens one day beyond what is known, and no more.
    world.now.wall = world.now.wall.plus_ms(30 * 86_400_000);
    assert_eq!(decided(&world.buy("5", "alice", 900)), approved(ALICE, 900, 0));
    world.now.wall = world.now.wall.plus_ms(30 * 86_400_000);
    assert_eq!(decided(&world.buy("6", "alice", 900)), declined(DeclineReason::PinRequired));
    world.check();
}

#[test]
fn beyond_the_limit_of_a_meal_the_pin_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::on_disk(Mode::Hybrid, directory.path());
    world.share_grant(ALICE, 5_000);
    world.grant(ALICE, 9_000);
    let meal = |name: &str, time: &str, merchants| Meal {
        name: name.to_owned(),
        time: time.parse().unwrap(),
        limit_fen: fen(1_000),
        merchants,
    };
    let meals = vec![meal("lunch", "10:30-13:30", vec![]), meal("dinner", "16:30-19:30", vec![1])];
    let other = vec![meal("dinner", "16:30-19:30", vec![2])];
    let config = CampusConfig { meals, ..campus(Mode::Hybrid) };
    publish(&mut world, 2, &config);
    world.disconnect();
    let at = |world: &mut World, minutes: i64| {
        let time = start_of(MORNING).plus_ms(minutes * 60_000);
        world.pass(u64::try_from(time.ms_since(world.now.wall)).unwrap());
    };
    let (asked, noon) = (declined(DeclineReason::PinRequired), 12 * 60);
    at(&mut world, noon);
    assert_eq!(decided(&world.buy("1", "alice", 700)), approved(ALICE, 700, 0));
    assert_eq!(decided(&world.buy("2", "alice", 400)), asked);
    assert_eq!(decided(&world.reverse("r1", "1", Some(200))), approved(ALICE, 200, 0));
    assert_eq!(decided(&world.buy("3", "alice", 500)), approved(ALICE, 500, 0));
    world.reopen();
    assert_eq!(decided(&world.buy("4", "alice", 1)), asked, "kept over a restart");
    at(&mut world, 13 * 60 + 30);
    assert_eq!(decided(&world.buy("5", "alice", 1_100)), approved(ALICE, 1_100, 0), "no meal");
    at(&mut world, 16 * 60 + 30);
    assert_eq!(decided(&world.buy("6", "alice", 1_000)), approved(ALICE, 1_000, 0));
    assert_eq!(decided(&world.buy("7", "alice", 1)), asked);
    at(&mut world, 24 * 60 + noon);
    assert_eq!(decided(&world.buy("8", "alice", 1_000)), approved(ALICE, 1_000, 0), "the next day");
    assert_eq!(decided(&world.buy("9", "alice", 1)), asked);
    world.connect();
    let (mut merchants, meals) = (config.merchants.clone(), other);
    merchants.push(Merchant { id: 2, name: "shop".to_owned(), tariff: Default::default() });
    publish(&mut world, 3, &CampusConfig { meals, merchants, ..config });
    at(&mut world, 24 * 60 + 17 * 60);
    assert_eq!(
        decided(&world.buy("10", "alice", 1_500)),
        approved(ALICE, 1_500, 0),
        "another merchant's meal"
    );
    world.check();
    let connection = world.core.store.connection();
    connection.execute("UPDATE debits SET meal = meal + 1 WHERE position = 1", []).unwrap();
    let report = crate::verify::verify(connection, &identity()).unwrap();
    assert_eq!(report.problems, ["what is left of debit 1 is not what the entries give"]);
}
