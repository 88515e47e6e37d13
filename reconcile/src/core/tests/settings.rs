//! Settings: what buildings write of them, and what operators do.

use feiqian_protocol::account::{Document, Intent, actor_id};
use feiqian_protocol::entry::SettingAnswered;

use super::*;
use crate::io::SettingCommand;

/// What the kiosk holds of the account's document, and writes on.
struct Kiosk {
    node: usize,
    document: Document,
}

impl Kiosk {
    fn of(bench: &mut Bench, role: Role) -> Self {
        let node = bench.enrol(role.name(), role);
        bench.connect(node);
        Self { node, document: document_at(bench, node) }
    }

    /// Carries one intent out and says another.
    fn write(&mut self, bench: &mut Bench, intent: &Intent, says: &Intent) {
        let wall = bench.now.wall;
        let change = self.document.carry_out(intent, wall).unwrap();
        let setting = Setting {
            account: AccountId(1),
            document_epoch: self.document.epoch().unwrap(),
            intent: says.clone(),
            change: change.into(),
            typed: None,
            of: None,
        };
        bench.nodes[self.node].write(wall, Proof::Login, setting);
    }

    fn set(&mut self, bench: &mut Bench, intent: Intent) {
        self.write(bench, &intent, &intent);
        bench.upload(self.node);
    }

    /// What the centre has answered, in order.
    fn answers(&self, bench: &Bench) -> Vec<Option<String>> {
        let log = LogId::to_node(INSTITUTION, bench.nodes[self.node].id);
        let answers = bodies(bench, log).into_iter().filter_map(|body| match body {
            Body::SettingAnswered(SettingAnswered { refused, .. }) => Some(refused),
            _ => None,
        });
        answers.map(|refused| refused.map(|code| code.to_string())).collect()
    }
}

/// What stands in one of the centre's streams.
fn bodies(bench: &Bench, log: LogId) -> Vec<Body> {
    let mut statement = bench
        .core
        .connection()
        .prepare("SELECT record FROM entries WHERE log = ?1 ORDER BY position")
        .unwrap();
    let records = statement.query_map([log.key()], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    records.map(|record| Entry::from_record(&record.unwrap()).unwrap().body).collect()
}

/// The account's document as a node has it that will write on it.
fn document_at(bench: &Bench, node: usize) -> Document {
    let saved: Vec<u8> =
        bench.core.connection().query_row("SELECT document FROM accounts", [], |row| row.get(0)).unwrap();
    let author = |epoch| actor_id(INSTITUTION, bench.nodes[node].id, 1, epoch, AccountId(1));
    let document = Document::load(&saved, author(0)).unwrap();
    let epoch = document.epoch().unwrap();
    document.written_by(author(epoch))
}

fn settings(bench: &Bench) -> Value {
    let text: String =
        bench.core.connection().query_row("SELECT settings FROM accounts", [], |row| row.get(0)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn limits(single: i64, daily: i64) -> Intent {
    Intent::SetLimits { single: Fen::new(single), daily: Fen::new(daily) }
}

fn change(bench: &mut Bench, change: SettingCommand) -> Reply {
    bench.command(Command::ChangeSetting { card: card("c1"), change, operator: key("op") })
}

#[test]
fn an_account_has_a_last_day_and_goes_into_another_class() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    let day = BusinessCalendar::CHINA.day(bench.now.wall);
    let shown = change(&mut bench, SettingCommand::Validity { until: Some(day) }).unwrap();
    assert_eq!(shown["valid_until"], json!(day.to_string()));
    let shown = change(&mut bench, SettingCommand::Class { class: "staff".to_owned() }).unwrap();
    assert_eq!((&shown["patron_class"], &shown["valid_until"]), (&json!("staff"), &json!(day.to_string())));
    let shown = change(&mut bench, SettingCommand::Validity { until: None }).unwrap();
    assert_eq!(shown["valid_until"], json!(null));
    let class = SettingCommand::Class { class: String::new() };
    assert_eq!(change(&mut bench, class).unwrap_err().code, "class");
    // No building sets either.
    let mut desk = Kiosk::of(&mut bench, Role::Desk);
    desk.set(&mut bench, Intent::SetClass { class: "guest".to_owned() });
    desk.set(&mut bench, Intent::SetValidity { until: None });
    assert_eq!(settings(&bench)["class"], json!("staff"));
    assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 2);
    bench.check();
}

#[test]
fn a_kiosk_may_report_a_loss_but_not_lift_it() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    let mut kiosk = Kiosk::of(&mut bench, Role::Kiosk);
    let mut write = |bench: &mut Bench, intent: Intent, says: Intent| {
        kiosk.write(bench, &intent, &says);
        bench.upload(kiosk.node);
    };
    let report = Intent::ReportLoss { card: card("c1"), loss: key("k-1") };
    write(&mut bench, report.clone(), report.clone());
    assert_eq!(bench.number("SELECT COUNT(*) FROM losses WHERE lifted IS NULL"), 1);
    let lift = Intent::LiftLoss { card: card("c1"), losses: vec![key("k-1")] };
    write(&mut bench, lift.clone(), lift.clone());
    write(&mut bench, Intent::Close, Intent::Freeze { key: key("f") });
    assert_eq!(bench.number("SELECT COUNT(*) FROM losses WHERE lifted IS NULL"), 1);
    assert_eq!(
        bench.number("SELECT COUNT(*) FROM faults"),
        2,
        "a lift, and a change that does more than it says"
    );
    bench.check();
}

#[test]
fn what_is_refused_does_not_block_what_comes_after_it() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    let mut desk = Kiosk::of(&mut bench, Role::Desk);
    // A card that only the desk's own copy has; what the desk writes from now on builds on it.
    desk.document.carry_out(&Intent::IssueCard { card: card("c9") }, bench.now.wall).unwrap();
    desk.set(&mut bench, Intent::VoidCard { card: card("c9") });
    desk.set(&mut bench, limits(500, 4_000));
    desk.set(&mut bench, Intent::ReportLoss { card: card("c1"), loss: key("n-1") });
    let refused = Some("no_such_card".to_owned());
    assert_eq!(desk.answers(&bench), [refused, None, None]);
    let settings = settings(&bench);
    assert_eq!((&settings["single_limit"], &settings["daily_limit"]), (&json!(500), &json!(4_000)));
    assert_eq!(settings["cards"], json!({"c1": "lost"}));
    assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 0, "nobody has done wrong");
    bench.check();
}

#[test]
fn limits_of_two_buildings_meet_at_the_lower_and_none_raises_one() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    let mut left = Kiosk::of(&mut bench, Role::Kiosk);
    let mut right = Kiosk::of(&mut bench, Role::Desk);
    left.set(&mut bench, limits(1_500, 3_000));
    right.set(&mut bench, limits(1_800, 1_000));
    // Neither has heard of the other; the second one of the left is higher than what is in force by now.
    left.set(&mut bench, limits(1_200, 2_000));
    let settings = settings(&bench);
    assert_eq!((&settings["single_limit"], &settings["daily_limit"]), (&json!(1_200), &json!(1_000)));
    assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 0);
    change(
        &mut bench,
        SettingCommand::Limits { single_limit_fen: Some(Fen::new(9_000)), daily_limit_fen: None },
    )
    .unwrap();
    assert_eq!(super::settings::settings(&bench)["single_limit"], json!(9_000), "the centre may raise it");
    bench.check();
}

#[test]
fn what_was_paid_between_a_report_in_a_cut_off_building_and_its_arrival_is_given_back() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    let mut kiosk = Kiosk::of(&mut bench, Role::Kiosk);
    bench.debit(0, 1, 400, 0);
    bench.upload(0);
    bench.cut(kiosk.node);
    bench.advance(60_000);
    let report = Intent::ReportLoss { card: card("c1"), loss: key("n-1") };
    kiosk.write(&mut bench, &report, &report);
    bench.advance(60_000);
    bench.debit(0, 1, 700, 0);
    bench.upload(0);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 3_900, "nobody here knows of the loss");
    bench.connect(kiosk.node);
    bench.upload(kiosk.node);
    assert_eq!(bench.number("SELECT funds FROM wallets"), 4_600);
    let cases = bench.exported(Table::Cases, Format::Csv);
    assert!(cases.ends_with("\nn1:2,c1,loss,risk_fund,700,0,700\n"), "{cases}");
    bench.check();
}

#[test]
fn a_loss_is_shown_with_who_knows_and_what_the_others_can_spend() {
    let mut bench = campus_of(Mode::Strict, 2, &[5_000]);
    let show = |bench: &mut Bench| bench.command(Command::CardLoss { card: card("c1") });
    assert_eq!(show(&mut bench).unwrap_err().code, "not_lost");
    bench.cut(1);
    bench.command(Command::ReportLoss { card: card("c1"), operator: key("op") }).unwrap();
    let shown = show(&mut bench).unwrap();
    assert_eq!((&shown["buildings"], &shown["known"]), (&json!(2), &json!(1)));
    let out = bench.number("SELECT out + si_out FROM rights WHERE node = 2");
    assert!(out > 0);
    assert_eq!(shown["at_most_fen"], json!(out), "{shown}");
    assert_eq!(shown["unaware"][0]["node"], json!("n2"));
    bench.connect(1);
    let shown = show(&mut bench).unwrap();
    assert_eq!((&shown["known"], &shown["at_most_fen"]), (&json!(2), &json!(0)), "{shown}");
}

#[test]
fn a_card_is_replaced_in_one_step_and_an_account_frozen_and_thawed() {
    let mut bench = campus_of(Mode::Strict, 1, &[5_000]);
    bench.command(Command::ReportLoss { card: card("c1"), operator: key("op") }).unwrap();
    let replace = |new: &str| SettingCommand::ReplaceCard { new_card: card(new) };
    assert_eq!(change(&mut bench, replace("c1")).unwrap_err().code, "card_in_use");
    let shown = change(&mut bench, replace("c2")).unwrap();
    assert_eq!(shown["cards"], json!({"c1": "void", "c2": "active"}));
    let entries = "SELECT COUNT(*) FROM entries";
    let before = bench.number(entries);
    assert_eq!(change(&mut bench, replace("c2")).unwrap(), shown, "said again");
    assert_eq!(bench.number(entries), before);
    assert_eq!(change(&mut bench, replace("c3")).unwrap_err().code, "card_void");
    assert_eq!(change(&mut bench, SettingCommand::Unfreeze).unwrap_err().code, "not_frozen");
    change(&mut bench, SettingCommand::Freeze).unwrap();
    change(&mut bench, SettingCommand::Freeze).unwrap();
    assert_eq!(settings(&bench)["frozen"], json!(true));
    change(&mut bench, SettingCommand::Unfreeze).unwrap();
    assert_eq!(settings(&bench)["frozen"], json!(false));
    let wide = SettingCommand::Limits { single_limit_fen: Some(Fen::new(-1)), daily_limit_fen: None };
    assert_eq!(change(&mut bench, wide).unwrap_err().code, "limit_out_of_range");
    change(&mut bench, SettingCommand::JoinGroup { group: key("lab") }).unwrap();
    assert_eq!(settings(&bench)["groups"], json!(["lab"]));
    change(&mut bench, SettingCommand::LeaveGroup { group: key("lab") }).unwrap();
    assert_eq!(settings(&bench)["groups"], json!([]));
    let unknown = Command::Account { card: card("nobody") };
    assert_eq!(bench.command(unknown).unwrap_err().code, "unknown_card");
    bench.check();
}

#[test]
fn a_worn_document_is_begun_anew_and_what_was_made_on_the_one_before_is_carried_out() {
    let mut bench = campus_of(Mode::Strict, 1, &[1_000]);
    let mut kiosk = Kiosk::of(&mut bench, Role::Kiosk);
    bench.core.renew_documents_after(3);
    let renewed = |bench: &Bench| -> usize {
        let shard = LogId::shard(INSTITUTION, AccountId(1).shard());
        bodies(bench, shard).iter().filter(|body| matches!(body, Body::DocumentRenewed(_))).count()
    };
    for single in [1_900, 1_800] {
        let limits =
            SettingCommand::Limits { single_limit_fen: Some(Fen::new(single)), daily_limit_fen: None };
        change(&mut bench, limits).unwrap();
    }
    assert_eq!(renewed(&bench), 0);
    change(&mut bench, SettingCommand::Freeze).unwrap();
    assert_eq!(renewed(&bench), 1);

    // The kiosk has heard of none of it.
    kiosk.set(&mut bench, Intent::ReportLoss { card: card("c1"), loss: key("k-1") });
    kiosk.set(&mut bench, limits(700, 9_000));
    assert_eq!(kiosk.answers(&bench), [None, None], "both are taken");
    let after = settings(&bench);
    assert_eq!(after["losses"], json!({ "k-1": "c1" }));
    assert_eq!((&after["single_limit"], &after["frozen"]), (&json!(700), &Value::Bool(true)));

    // What is made on the new one is merged as it is.
    kiosk.document = document_at(&bench, kiosk.node);
    assert_eq!(kiosk.document.epoch().unwrap(), 2);
    kiosk.set(&mut bench, limits(600, 900));
    assert_eq!(kiosk.answers(&bench).len(), 3);
    assert_eq!(renewed(&bench), 2, "the fourth change of it");
    assert_eq!(settings(&bench)["single_limit"], json!(600));
    bench.check();
}
