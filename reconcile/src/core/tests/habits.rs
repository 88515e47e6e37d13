//! Where rights go: by what was bought where, ours or taken over, and by how long an account is there.

use super::*;

fn history(rows: &[(&str, &str, i64, i64)], part: u32) -> Command {
    let purchases: Vec<Value> = rows
        .iter()
        .map(|(node, card, days_ago, fen)| {
            let local_ms = START.plus_ms(8 * 3_600_000 - days_ago * 86_400_000).0;
            json!({ "local_ms": local_ms, "card": card, "node": node, "amount_fen": fen })
        })
        .collect();
    let command = json!({
        "command": "import_history", "file": "f", "part": part, "last": true, "purchases": purchases,
    });
    serde_json::from_value(command).unwrap()
}

#[test]
fn an_imported_history_says_where_rights_go_and_counts_once() {
    let mut bench = Bench::new(Mode::Hybrid);
    let (canteen, shop) = (bench.enrol("n1", Role::Pos), bench.enrol("n2", Role::Pos));
    bench.import(&[("c1", 3_000)]).unwrap();
    let rows: Vec<_> = (1..=20).map(|day| ("n2", "c1", day, 1_000)).collect();
    let taken = bench.command(history(&[rows.clone(), vec![("n1", "gone", 3, 500)]].concat(), 0)).unwrap();
    assert_eq!(taken, json!({ "purchases": 20, "unknown_cards": 1, "repeat": false }));
    let again = bench.command(history(&rows, 0)).unwrap();
    assert_eq!(again["repeat"], json!(true));
    for (wrong, code) in [
        (("n9", "c1", 1, 1_000), "unknown_node"),
        (("n1", "c1", -1, 1_000), "time"),
        (("n1", "c1", 1, 0), "amount"),
    ] {
        let before: i64 = count(&bench, "SELECT SUM(purchases) FROM habits");
        assert_eq!(bench.command(history(&[("n1", "c1", 1, 100), wrong], 1)).unwrap_err().code, code);
        assert_eq!(count(&bench, "SELECT SUM(purchases) FROM habits"), before, "all of it or nothing");
    }
    assert_eq!(count(&bench, "SELECT SUM(purchases) FROM turnover"), 20);
    bench.connect(canteen);
    bench.connect(shop);
    // The first session got everything while it was alone.
    bench.advance(24 * 3_600_000);
    bench.step(vec![Input::Timer]);
    let surplus = bench.nodes[canteen].heard.iter().find_map(|frame| match frame {
        Frame::Recall(recall) => Some(recall.amount),
        _ => None,
    });
    assert!(surplus.is_some_and(|amount| amount > Fen::new(2_000)), "{surplus:?}");
    bench.topup("c1", 2_000, "t1").unwrap();
    assert!(bench.nodes[shop].granted[&AccountId(1)] > Fen::new(1_500), "{:?}", bench.nodes[shop].granted);
}

fn count(bench: &Bench, sql: &str) -> i64 {
    bench.core.connection().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn right_that_is_called_back_at_night_goes_where_it_will_be_wanted() {
    let mut bench = Bench::new(Mode::Strict);
    let (canteen, shop) = (bench.enrol("n1", Role::Pos), bench.enrol("n2", Role::Pos));
    bench.import(&[("c1", 3_000)]).unwrap();
    bench.command(history(&(1..=20).map(|day| ("n2", "c1", day, 1_000)).collect::<Vec<_>>(), 0)).unwrap();
    bench.connect(canteen);
    bench.connect(shop);
    assert_eq!(bench.nodes[canteen].granted[&AccountId(1)], Fen::new(3_000));
    bench.nodes[canteen].obeys = false;
    bench.advance(24 * 3_600_000);
    bench.step(vec![Input::Timer]);
    let recalls = |bench: &Bench| {
        let of = bench.nodes[canteen].heard.iter().filter(|frame| matches!(frame, Frame::Recall(_)));
        of.count()
    };
    assert_eq!(recalls(&bench), 1);
    let node = &mut bench.nodes[canteen];
    let (wall, account, wallet) = (bench.now.wall, AccountId(1), Wallet::Cash);
    let (amount, epoch) = (Fen::new(2_500), Epoch::FIRST);
    let release = feiqian_protocol::entry::Release { account, wallet, epoch, amount, released_total: amount };
    let at = node.write(wall, Proof::None, release);
    bench.upload(canteen);
    bench.frame(canteen, Frame::Recalled(Recalled { account, unit: Unit::Wallet(wallet), at }));
    assert!(bench.nodes[shop].granted[&account] >= Fen::new(2_000), "{:?}", bench.nodes[shop].granted);
    // A quiet night: everything lies where it should.
    bench.advance(24 * 3_600_000);
    bench.step(vec![Input::Timer]);
    assert_eq!(recalls(&bench), 1);
}

#[test]
fn a_young_account_is_not_stood_in_for() {
    let mut bench = Bench::new(Mode::Hybrid);
    let (canteen, shop) = (bench.enrol("n1", Role::Pos), bench.enrol("n2", Role::Pos));
    let today = BusinessCalendar::CHINA.day(START).0;
    let account = |card: &str, opened: Option<i32>| json!({ "card": card, "patron_class": "student", "opening_fen": 10_000, "opened": opened });
    let import = |accounts: Value| {
        serde_json::from_value(json!({ "command": "import_accounts", "accounts": accounts })).unwrap()
    };
    let tomorrow = bench.command(import(json!([account("c1", Some(today + 1))])));
    assert_eq!(tomorrow.unwrap_err().code, "account");
    let accounts = json!([account("c1", None), account("c2", Some(today)), account("c3", Some(today - 14))]);
    bench.command(import(accounts)).unwrap();
    bench.connect(canteen);
    bench.connect(shop);
    let stood_in_for = |bench: &Bench| bench.nodes[shop].stand_in.keys().map(|id| id.0).collect::<Vec<_>>();
    assert_eq!(stood_in_for(&bench), [1, 3]);
    bench.advance(13 * 24 * 3_600_000);
    bench.step(vec![Input::Timer]);
    assert_eq!(stood_in_for(&bench), [1, 3]);
    bench.advance(24 * 3_600_000);
    bench.step(vec![Input::Timer]);
    assert_eq!(stood_in_for(&bench), [1, 2, 3]);
}
