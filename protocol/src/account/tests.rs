use super::*;
use crate::limits::{DOCUMENT_BYTES_WORN, PINS_PER_ACCOUNT_MAX};
use sha2::Digest;

fn actor(writer: u16) -> ActorId {
    actor_id(InstitutionId(1), NodeId(writer), 1, 1, AccountId(1))
}

fn card(text: &str) -> CardNumber {
    CardNumber::new(text).unwrap()
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn document() -> Document {
    let new = NewAccount {
        class: "student".to_owned(),
        cards: vec![card("c1")],
        single_limit: Fen::new(2000),
        daily_limit: Fen::new(5000),
        groups: vec![key("dorm-1")],
        valid_until: None,
    };
    Document::create(&new, actor(0), Timestamp(1)).unwrap()
}

fn copy(document: &mut Document, writer: u16) -> Document {
    Document::load(&document.save(), actor(writer)).unwrap()
}

#[test]
fn a_loss_beats_a_lift_that_had_not_seen_it() {
    let mut centre = document();
    let first = Intent::ReportLoss { card: card("c1"), loss: key("l1") };
    centre.carry_out(&first, Timestamp(2)).unwrap();
    let mut left = copy(&mut centre, 1);
    let mut right = copy(&mut centre, 2);
    let lift = Intent::LiftLoss { card: card("c1"), losses: vec![key("l1")] };
    let lifted = left.carry_out(&lift, Timestamp(3)).unwrap();
    let again = Intent::ReportLoss { card: card("c1"), loss: key("l2") };
    let reported = right.carry_out(&again, Timestamp(3)).unwrap();
    left.merge_change(&reported).unwrap();
    right.merge_change(&lifted).unwrap();
    for document in [&mut left, &mut right] {
        assert_eq!(document.settings().unwrap().cards[&card("c1")], CardStatus::Lost);
    }
    assert_eq!(left.heads(), right.heads());
    assert_eq!(left.settings().unwrap().canonical(), right.settings().unwrap().canonical());
}

#[test]
fn of_two_limits_the_lower_holds_and_void_is_final() {
    let mut centre = document();
    let mut left = copy(&mut centre, 1);
    let mut right = copy(&mut centre, 2);
    let limits = |single, daily| Intent::SetLimits { single: Fen::new(single), daily: Fen::new(daily) };
    let one = left.carry_out(&limits(1000, 9000), Timestamp(2)).unwrap();
    let two = right.carry_out(&limits(3000, 4000), Timestamp(2)).unwrap();
    let void = right.carry_out(&Intent::VoidCard { card: card("c1") }, Timestamp(3)).unwrap();
    for change in [&two, &void, &one, &two] {
        left.merge_change(change).unwrap();
    }
    right.merge_change(&one).unwrap();
    let settings = left.settings().unwrap();
    assert_eq!((settings.single_limit, settings.daily_limit), (Fen::new(1000), Fen::new(4000)));
    assert_eq!(settings.cards[&card("c1")], CardStatus::Void);
    assert_eq!(settings, right.settings().unwrap());
}

#[test]
fn of_two_last_days_the_earlier_holds_and_an_end_that_was_taken_away_unseen_stays() {
    let until = |day: Option<i32>| Intent::SetValidity { until: day.map(BusinessDay) };
    let cases = [
        (None, Some(20), Some(10), Some(10)),
        (Some(5), Some(20), Some(10), Some(10)),
        (Some(5), Some(20), None, Some(20)),
        (Some(5), None, None, None),
    ];
    for (before, left_day, right_day, expected) in cases {
        let mut centre = document();
        centre.carry_out(&until(before), Timestamp(1)).unwrap();
        let (mut left, mut right) = (copy(&mut centre, 1), copy(&mut centre, 2));
        let one = left.carry_out(&until(left_day), Timestamp(2)).unwrap();
        let two = right.carry_out(&until(right_day), Timestamp(2)).unwrap();
        left.merge_change(&two).unwrap();
        right.merge_change(&one).unwrap();
        for document in [&mut left, &mut right] {
            let settings = document.settings().unwrap();
            assert_eq!(settings.valid_until, expected.map(BusinessDay));
            assert_eq!(settings.is_expired(BusinessDay(11)), expected == Some(10));
        }
    }
    let mut document = document();
    let class = |class: &str| Intent::SetClass { class: class.to_owned() };
    document.carry_out(&class("postgraduate"), Timestamp(1)).unwrap();
    assert_eq!(document.settings().unwrap().class, "postgraduate");
    assert!(matches!(document.carry_out(&class(""), Timestamp(1)), Err(AccountError::Class)));
}

fn pin(number: u8) -> PinGeneration {
    PinGeneration([number; 16])
}

#[test]
fn two_pins_at_once_pay_nothing_until_one_is_confirmed() {
    let mut centre = document();
    let initial = Intent::ResetPin { generation: pin(1), replaces: vec![] };
    centre.carry_out(&initial, Timestamp(2)).unwrap();
    assert_eq!(centre.settings().unwrap().paying_pin(), None, "an initial PIN pays nothing");
    let chosen = Intent::SetPin { generation: pin(2), replaces: vec![pin(1)] };
    centre.carry_out(&chosen, Timestamp(3)).unwrap();
    assert_eq!(centre.settings().unwrap().paying_pin(), Some(pin(2)));
    let mut left = copy(&mut centre, 1);
    let mut right = copy(&mut centre, 2);
    let set = |number| Intent::SetPin { generation: pin(number), replaces: vec![pin(2)] };
    let one = left.carry_out(&set(3), Timestamp(4)).unwrap();
    let two = right.carry_out(&set(4), Timestamp(4)).unwrap();
    assert_eq!(left.settings().unwrap().paying_pin(), Some(pin(3)));
    left.merge_change(&two).unwrap();
    right.merge_change(&one).unwrap();
    for document in [&left, &right] {
        let settings = document.settings().unwrap();
        assert_eq!(settings.pins.keys().copied().collect::<Vec<_>>(), [pin(3), pin(4)]);
        assert_eq!(settings.paying_pin(), None);
    }
    let confirm = Intent::ConfirmPin { generation: pin(4), others: vec![pin(3)] };
    let confirmed = left.carry_out(&confirm, Timestamp(5)).unwrap();
    right.merge_change(&confirmed).unwrap();
    assert_eq!(right.settings().unwrap().paying_pin(), Some(pin(4)));
    assert_eq!(left.heads(), right.heads());
}

#[test]
fn an_intent_about_pins_that_are_not_there_is_refused() {
    let mut centre = document();
    let unseen = Intent::SetPin { generation: pin(1), replaces: vec![pin(9)] };
    assert!(matches!(centre.carry_out(&unseen, Timestamp(2)), Err(AccountError::NoSuchPin)));
    let set = Intent::SetPin { generation: pin(1), replaces: vec![] };
    centre.carry_out(&set, Timestamp(2)).unwrap();
    assert!(matches!(centre.carry_out(&set, Timestamp(2)), Err(AccountError::KeyUsed)));
    let confirm = |others| Intent::ConfirmPin { generation: pin(1), others };
    for others in [vec![], vec![pin(1)], vec![pin(2)]] {
        assert!(matches!(centre.carry_out(&confirm(others), Timestamp(3)), Err(AccountError::NoSuchPin)));
    }
    let count = fill_pins(&mut centre);
    assert_eq!(count, PINS_PER_ACCOUNT_MAX - 1);
    assert_eq!(centre.settings().unwrap().paying_pin(), None);
}

/// Sets PINs that have not seen each other until no more are taken.
fn fill_pins(document: &mut Document) -> usize {
    let set = |number| Intent::SetPin { generation: pin(number), replaces: vec![] };
    (100..).take_while(|number| document.carry_out(&set(*number), Timestamp(4)).is_ok()).count()
}

#[test]
fn a_value_that_no_intent_writes_pays_nothing() {
    let mut odd = document();
    let pins = odd.pins().unwrap();
    odd.doc.put(&pins, pin(1).to_string(), 7).unwrap();
    assert_eq!(odd.settings().unwrap().paying_pin(), None);
    let mut odd = document();
    odd.carry_out(&Intent::SetPin { generation: pin(1), replaces: vec![] }, Timestamp(2)).unwrap();
    odd.doc.put(&pins, "no generation", "chosen 1").unwrap();
    assert_eq!(odd.settings().unwrap().paying_pin(), None);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut centre = document();
    let before = centre.heads();
    let unknown = Intent::ReportLoss { card: card("c2"), loss: key("l1") };
    assert!(matches!(centre.carry_out(&unknown, Timestamp(2)), Err(AccountError::NoSuchCard)));
    let lift = Intent::LiftLoss { card: card("c1"), losses: vec![key("l1")] };
    assert!(matches!(centre.carry_out(&lift, Timestamp(2)), Err(AccountError::NotLost)));
    let limits = Intent::SetLimits { single: Fen::new(-1), daily: Fen::ZERO };
    assert!(matches!(centre.carry_out(&limits, Timestamp(2)), Err(AccountError::LimitOutOfRange)));
    assert!(centre.merge_change(b"garbage").is_err());
    assert_eq!(centre.heads(), before);
}

#[test]
fn a_change_without_its_ancestor_is_refused() {
    let mut centre = document();
    let mut left = copy(&mut centre, 1);
    left.carry_out(&Intent::Freeze { key: key("f1") }, Timestamp(2)).unwrap();
    let second = left.carry_out(&Intent::Freeze { key: key("f2") }, Timestamp(3)).unwrap();
    assert!(matches!(centre.merge_change(&second), Err(AccountError::Change)));
}

/// Fills a document until nothing more of this kind fits, and returns how many there are.
fn fill(document: &mut Document, intent: impl Fn(usize) -> Intent) -> usize {
    (0..)
        .find(|number| {
            matches!(document.carry_out(&intent(*number), Timestamp(2)), Err(AccountError::NoRoom(_)))
        })
        .unwrap()
}

#[test]
fn a_full_document_still_takes_a_report_of_loss_and_can_be_loaded() {
    let mut centre = document();
    // Keys that differ in every letter, so that nothing of them can be left out.
    let long = |number: usize| key(&hex(&sha2::Sha256::digest(number.to_be_bytes())));
    let groups = fill(&mut centre, |number| Intent::JoinGroup { group: long(number) });
    assert!(groups > 100 && !centre.has_room());
    let loss = Intent::ReportLoss { card: card("c1"), loss: key("l1") };
    let change = centre.carry_out(&loss, Timestamp(3)).unwrap();
    let heads = centre.heads();
    let mut again = copy(&mut centre, 1);
    assert_eq!(again.settings().unwrap().cards[&card("c1")], CardStatus::Lost);
    again.merge_change(&change).unwrap();
    let reports = fill(&mut centre, |number| Intent::ReportLoss { card: card("c1"), loss: long(number) });
    assert!(reports > 100);
    assert_ne!(centre.heads(), heads);
    copy(&mut centre, 1);
}

#[test]
fn a_new_account_is_named_and_of_a_size_that_leaves_room() {
    let new = |class: &str, groups: usize| NewAccount {
        class: class.to_owned(),
        cards: vec![card("c1")],
        single_limit: Fen::ZERO,
        daily_limit: Fen::ZERO,
        groups: (0..groups).map(|number| key(&hex(&sha2::Sha256::digest(number.to_be_bytes())))).collect(),
        valid_until: None,
    };
    let create = |new: &NewAccount| Document::create(new, actor(0), Timestamp(1)).map(drop);
    assert!(create(&new("\u{5b66}\u{751f}", 3)).is_ok());
    for class in ["", &"x".repeat(NAME_BYTES_MAX + 1)] {
        assert!(matches!(create(&new(class, 0)), Err(AccountError::Class)));
    }
    assert!(matches!(create(&new("student", 2_000)), Err(AccountError::NoRoom(_))));
}

/// The change with its first operation numbered as 1, and a checksum that fits.
fn renumbered(change: &[u8]) -> Vec<u8> {
    let change = Change::from_bytes(change.to_vec()).unwrap();
    let mut expanded = change.decode();
    expanded.start_op = std::num::NonZeroU64::MIN;
    Change::from(expanded).raw_bytes().to_vec()
}

#[test]
fn a_change_after_which_the_document_could_not_be_loaded_is_refused() {
    let mut centre = document();
    let change = copy(&mut centre, 1).carry_out(&Intent::Freeze { key: key("f1") }, Timestamp(2)).unwrap();
    let heads = centre.heads();
    assert!(matches!(centre.merge_change(&renumbered(&change)), Err(AccountError::Change)));
    assert_eq!(centre.heads(), heads);
    centre.merge_change(&change).unwrap();
}

#[test]
fn a_card_is_inactive_until_its_activation_has_seen_it() {
    let mut centre = document();
    let old = centre.settings().unwrap().canonical();
    assert!(
        !old.contains("inactive") && !old.contains("holder"),
        "documents of before have equal projections"
    );
    let issue = Intent::IssueInactiveCard { card: card("c2") };
    centre.carry_out(&issue, Timestamp(2)).unwrap();
    assert!(matches!(centre.carry_out(&issue, Timestamp(2)), Err(AccountError::KeyUsed)));
    let settings = centre.settings().unwrap();
    assert_eq!(settings.cards[&card("c2")], CardStatus::Inactive);
    assert_eq!(settings.inactive, [(card("c2"), false)].into());
    let activate = |name: &str| Intent::ActivateCard { card: card(name) };
    assert!(matches!(centre.carry_out(&activate("c1"), Timestamp(3)), Err(AccountError::NotInactive)));
    assert!(matches!(centre.carry_out(&activate("c9"), Timestamp(3)), Err(AccountError::NoSuchCard)));
    // One replica hands it over while the other activates it: what had not seen the handing over does not undo it.
    let mut left = copy(&mut centre, 1);
    let mut right = copy(&mut centre, 2);
    let handed = left.carry_out(&Intent::HandOverCard { card: card("c2") }, Timestamp(3)).unwrap();
    let activated = right.carry_out(&activate("c2"), Timestamp(3)).unwrap();
    assert_eq!(right.settings().unwrap().cards[&card("c2")], CardStatus::Active);
    left.merge_change(&activated).unwrap();
    right.merge_change(&handed).unwrap();
    for document in [&left, &right] {
        let settings = document.settings().unwrap();
        assert_eq!(settings.cards[&card("c2")], CardStatus::Inactive, "the safe side");
        assert_eq!(settings.inactive, [(card("c2"), true)].into());
    }
    left.carry_out(&activate("c2"), Timestamp(4)).unwrap();
    assert_eq!(left.settings().unwrap().cards[&card("c2")], CardStatus::Active);
    left.carry_out(&Intent::VoidCard { card: card("c2") }, Timestamp(5)).unwrap();
    assert!(matches!(left.carry_out(&activate("c2"), Timestamp(6)), Err(AccountError::NotInactive)));
}

#[test]
fn a_legacy_card_has_one_group_and_is_lost_and_void_like_any() {
    let mut centre = document();
    let issue = |group: &str| Intent::IssueLegacyCard { card: card("old"), group: key(group) };
    let mut left = copy(&mut centre, 1);
    let one = centre.carry_out(&issue("labs"), Timestamp(2)).unwrap();
    let two = left.carry_out(&issue("classrooms"), Timestamp(2)).unwrap();
    left.merge_change(&one).unwrap();
    centre.merge_change(&two).unwrap();
    let settings = centre.settings().unwrap();
    assert_eq!(settings, left.settings().unwrap());
    assert_eq!(settings.cards[&card("old")], CardStatus::Legacy);
    assert_eq!(settings.groups_of(&card("c1")), ["dorm-1"]);
    centre.carry_out(&Intent::ReportLoss { card: card("old"), loss: key("l") }, Timestamp(3)).unwrap();
    assert_eq!(centre.settings().unwrap().cards[&card("old")], CardStatus::Lost);
    centre.carry_out(&Intent::VoidCard { card: card("old") }, Timestamp(3)).unwrap();
    assert_eq!(centre.settings().unwrap().cards[&card("old")], CardStatus::Void);
}

#[test]
fn what_is_told_of_a_holder_is_bounded_text_of_its_field() {
    let mut centre = document();
    let mut describe = |field, value: Option<&str>| {
        let value = value.map(str::to_owned);
        let written = centre.carry_out(&Intent::Describe { field, value }, Timestamp(2));
        written.map(|_| centre.settings().unwrap().holder).map_err(|error| error.code())
    };
    use HolderField::{Name, Notices, Number, Phone, User};
    assert_eq!(describe(Name, Some("李雷")).unwrap()[&Name], "李雷");
    assert_eq!(describe(Name, Some("韩梅梅")).unwrap()[&Name], "韩梅梅");
    assert_eq!(describe(Number, Some("2025110001")).unwrap().len(), 2);
    assert_eq!(describe(Phone, Some("+8613800138000")).unwrap().len(), 3);
    assert_eq!(describe(Notices, Some("purchase loss")).unwrap().len(), 4);
    assert_eq!(describe(Phone, None).unwrap().len(), 3);
    for (field, text) in [
        (Name, ""),
        (Name, " "),
        (Name, "a\nb"),
        (Name, &"x".repeat(65)),
        (Number, "20 25"),
        (User, "用户"),
        (Phone, "call me"),
        (Phone, "1234"),
        (Phone, "1234567890123456"),
        (Notices, "purchase  loss"),
    ] {
        assert_eq!(describe(field, Some(text)), Err("holder_field"), "{text:?}");
    }
}

/// The next of a row of numbers that look drawn.
fn draw(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

/// What somebody may want of the account, be it possible or not.
fn drawn(state: &mut u64, number: u64) -> Intent {
    let cards = ["c1", "c2", "c3"];
    let card = card(cards[draw(state, 3) as usize]);
    let limit = |state: &mut u64| Fen::new(draw(state, 9_000) as i64);
    match draw(state, 16) {
        0 => Intent::ReportLoss { card, loss: key(&format!("l{number}")) },
        1 => Intent::LiftLoss { card, losses: vec![key(&format!("l{}", draw(state, number + 1)))] },
        2 => Intent::SetLimits { single: limit(state), daily: limit(state) },
        3 => Intent::IssueCard { card },
        4 => Intent::VoidCard { card },
        5 => Intent::Freeze { key: key(&format!("f{number}")) },
        6 => Intent::Unfreeze { keys: vec![key(&format!("f{}", draw(state, number + 1)))] },
        7 => Intent::JoinGroup { group: key(&format!("g{}", draw(state, 4))) },
        8 => Intent::LeaveGroup { group: key(&format!("g{}", draw(state, 4))) },
        9 => Intent::SetPin { generation: pin(number as u8), replaces: vec![] },
        10 => Intent::ResetPin { generation: pin(number as u8), replaces: vec![pin(draw(state, 9) as u8)] },
        11 => Intent::IssueInactiveCard { card },
        12 => Intent::HandOverCard { card },
        13 => Intent::SetValidity { until: (draw(state, 3) > 0).then(|| BusinessDay(draw(state, 9) as i32)) },
        14 => Intent::SetClass { class: format!("class {}", draw(state, 4)) },
        _ => Intent::Describe { field: HolderField::Name, value: Some(format!("name {number}")) },
    }
}

#[test]
fn a_document_begun_anew_says_the_same_whatever_has_met_in_it() {
    let mut carried_out = 0;
    for seed in 0..150 {
        let mut state = seed;
        let mut replicas = vec![document()];
        for writer in 1..4 {
            let copied = copy(&mut replicas[0], writer);
            replicas.push(copied);
        }
        for number in 1..40 {
            let replica = draw(&mut state, 4) as usize;
            let intent = drawn(&mut state, number);
            let Ok(change) = replicas[replica].carry_out(&intent, Timestamp(number as i64)) else { continue };
            carried_out += 1;
            for other in (0..4).filter(|other| *other != replica) {
                // Some never hear of it, and what builds on it does not fit there.
                if draw(&mut state, 3) > 0 {
                    let _ = replicas[other].merge_change(&change);
                }
            }
        }
        for document in &mut replicas {
            let author = actor_id(InstitutionId(1), NodeId::CENTRE, 1, 2, AccountId(1));
            let mut new = document.renewed(2, author).unwrap();
            assert_eq!(new.settings().unwrap(), document.settings().unwrap(), "seed {seed}");
            assert_eq!((document.epoch().unwrap(), new.epoch().unwrap()), (FIRST_EPOCH, 2));
            let loaded = copy(&mut new, 1);
            assert_eq!(loaded.settings().unwrap(), document.settings().unwrap(), "seed {seed}");
            // Keys stay what they were, so what was seen before can be undone after.
            if let Some((loss, lost)) = document.settings().unwrap().losses.into_iter().next()
                && !document.settings().unwrap().closed
            {
                let lift = Intent::LiftLoss { card: lost, losses: vec![loss.clone()] };
                new.carry_out(&lift, Timestamp(99)).unwrap();
                assert!(!new.settings().unwrap().losses.contains_key(&loss));
            }
        }
    }
    assert!(carried_out > 2_000, "{carried_out} intents were possible");
}

#[test]
fn what_was_made_on_a_document_before_does_not_fit_the_one_begun_anew() {
    let mut before = document();
    let mut kiosk = copy(&mut before, 1);
    for number in 0..20_u32 {
        let group = key(&hex(&sha2::Sha256::digest(number.to_be_bytes())));
        before.carry_out(&Intent::JoinGroup { group: group.clone() }, Timestamp(2)).unwrap();
        before.carry_out(&Intent::LeaveGroup { group }, Timestamp(2)).unwrap();
    }
    let long = before.save().len();
    assert!(!before.is_worn(long, 41) && before.is_worn(long, 40));
    assert!(before.is_worn(DOCUMENT_BYTES_WORN + 1, 300) && !before.is_worn(DOCUMENT_BYTES_WORN + 1, 336));
    let report = Intent::ReportLoss { card: card("c1"), loss: key("l1") };
    let change = kiosk.carry_out(&report, Timestamp(3)).unwrap();
    let mut new = before.renewed(2, actor_id(InstitutionId(1), NodeId(0), 1, 2, AccountId(1))).unwrap();
    let short = new.save().len();
    assert!(short * 2 < long && !new.is_worn(DOCUMENT_BYTES_MAX, 40), "{short} bytes of {long}");
    assert!(matches!(new.merge_change(&change), Err(AccountError::Change)));
    assert!(!new.has_change(&change) && new.settings().unwrap().losses.is_empty());
    before.merge_change(&change).unwrap();
}
