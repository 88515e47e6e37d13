//! Loads onto the card, torn and forged.

use super::*;

#[test]
fn a_load_torn_anywhere_is_on_the_card_or_in_the_account() {
    let (mut completed, mut never) = (0, 0);
    for algorithm in ALGORITHMS {
        let commands = commands_of(algorithm, false, |place, field| {
            assert!(matches!(place.load(field), Some(LoadEnd::Credited { .. })));
        });
        assert_eq!(commands, 4);
        for (at, cut) in (0..commands).flat_map(|at| cuts().map(move |cut| (at, cut))) {
            let case = format!("algorithm {algorithm:?}, command {at}, {cut:?}");
            let (mut place, mut field) =
                (Place::new(profile(algorithm, false)), Field::new(new_card(algorithm)));
            field.touch(Some((at, cut)));
            let end = place.load(&mut field);
            assert!(!matches!(end, Some(LoadEnd::Credited { .. })), "{case}: {end:?}");
            let credited = field.applet.state.balance.get() > START_FEN;
            assert_eq!(credited, at == 3 && cut != Cut::Before, "{case}");
            assert_eq!(place.open_load.is_some(), at == 3, "{case}");
            field.touch(None);
            let outcome = place.resolve_load(&mut field).unwrap();
            match outcome {
                Some(Outcome::Completed { .. }) => completed += 1,
                Some(Outcome::NeverHappened) => never += 1,
                other => assert_eq!(other, None, "{case}"),
            }
            assert_eq!(matches!(outcome, Some(Outcome::Completed { .. })), credited, "{case}");
            assert_eq!(place.sum(&field), ACCOUNT_FEN + START_FEN, "{case}");
            assert!(matches!(place.load(&mut field), Some(LoadEnd::Credited { .. })), "{case}");
            assert_eq!(place.sum(&field), ACCOUNT_FEN + START_FEN, "{case}");
        }
    }
    assert!(completed >= 40 && never >= 2, "{completed} and {never}");
}

/// Who says that a load never happened, by an answer that a genuine card gave before it, does not get the money twice.
#[test]
fn a_load_is_not_given_back_for_an_old_answer() {
    struct Replays {
        field: Field,
        old: Vec<u8>,
    }
    impl Link for Replays {
        fn transmit(&mut self, command: &[u8]) -> Option<Vec<u8>> {
            match Command::decode(command) {
                Ok(Command::Prove { .. }) => Some(answer(StatusWord::NoProof, &[])),
                Ok(Command::BeginLoad { .. }) => Some(self.old.clone()),
                _ => self.field.transmit(command),
            }
        }
    }
    for algorithm in ALGORITHMS {
        let (mut place, mut field) = (Place::new(profile(algorithm, false)), Field::new(new_card(algorithm)));
        // Recorded before the load, for the very amount of the probe.
        touch::identify(&mut field, &place.profiles).unwrap();
        let begin = Command::BeginLoad { key: 1, amount: fen(1), terminal: terminal(), algorithm };
        let old = field.transmit(&begin.encode()).unwrap();
        field.touch(Some((3, Cut::After)));
        place.load(&mut field);
        assert_eq!(field.applet.state.balance, fen(START_FEN + LOAD_FEN));
        field.touch(None);
        let entry = place.open_load.clone().unwrap();
        let probe = LoadProbe { challenge: TerminalNumber([9; 6]), pin: None };
        let mut replays = Replays { field, old };
        let identified = touch::identify(&mut replays, &place.profiles).unwrap();
        let profile = identified.profile.clone();
        let evidence =
            touch::probe_load(&mut replays, &mut place.sam, identified, &entry, probe.clone()).unwrap();
        let outcome = place.issuer.resolve_load(&profile, &entry, &probe, &evidence);
        assert_eq!(outcome, Outcome::InTransit { reason: InTransit::CounterUnproven });
        // Where the challenge were the terminal's number, as in any load, the same answer would be believed.
        let fixed = LoadProbe { challenge: terminal(), pin: None };
        let believed = place.issuer.resolve_load(&profile, &entry, &fixed, &evidence);
        assert_eq!(believed, Outcome::NeverHappened);
        // The genuine card then says what it did.
        let mut field = replays.field;
        field.touch(None);
        assert!(matches!(place.resolve_load(&mut field), Some(Some(Outcome::Completed { .. }))));
        assert_eq!(place.sum(&field), ACCOUNT_FEN + START_FEN);
    }
}

#[test]
fn a_centre_without_the_key_credits_nothing() {
    struct Thief;
    impl Centre for Thief {
        fn authorize(&mut self, _: &LoadRequest) -> Option<(CardTime, Mac)> {
            Some((noon(), "01020304".parse().unwrap()))
        }
    }
    let place = Place::new(profile(Algorithm::Des, false));
    let mut field = Field::new(new_card(Algorithm::Des));
    for _ in 0..LOAD_TRIES {
        field.touch(None);
        let identified = touch::identify(&mut field, &place.profiles).unwrap();
        let order = LoadOrder { amount: fen(LOAD_FEN), terminal: terminal(), time: noon(), pin: None };
        assert!(matches!(touch::load(&mut field, &mut Thief, identified, order), LoadEnd::Unknown(Some(_))));
    }
    assert_eq!(field.applet.state.balance, fen(START_FEN));
    assert!(field.applet.state.is_blocked());
}

/// MAC2 is bound to its INITIALIZE: after a reset, or another INITIALIZE, the card refuses it.
#[test]
fn an_old_mac2_loads_nothing() {
    for reset in [false, true] {
        let (mut place, mut field) =
            (Place::new(profile(Algorithm::Des, false)), Field::new(new_card(Algorithm::Des)));
        field.touch(Some((3, Cut::Before)));
        place.load(&mut field);
        let entry = place.open_load.clone().unwrap();
        field.touch(None);
        touch::identify(&mut field, &place.profiles).unwrap();
        if !reset {
            let begin = Command::BeginLoad {
                key: 1,
                amount: fen(LOAD_FEN),
                terminal: terminal(),
                algorithm: Algorithm::Des,
            };
            field.transmit(&begin.encode()).unwrap();
        }
        let credit = Command::CreditForLoad { time: entry.terms.time, mac2: entry.mac };
        let refused = field.transmit(&credit.encode()).unwrap();
        let expected = if reset { StatusWord::Conditions } else { StatusWord::WrongMac };
        assert_eq!(refused, answer(expected, &[]));
        assert_eq!(field.applet.state.balance, fen(START_FEN));
    }
}

#[test]
fn a_load_wants_the_pin_of_a_card_that_has_one() {
    let mut state = new_card(Algorithm::Des);
    state.pin = Some("123456".into());
    let place = Place::new(profile(Algorithm::Des, false));
    let mut field = Field::new(state);
    let mut load = |pin: Option<&[u8]>| {
        field.touch(None);
        let identified = touch::identify(&mut field, &place.profiles).unwrap();
        let order =
            LoadOrder { amount: fen(1), terminal: terminal(), time: noon(), pin: pin.map(<[u8]>::to_vec) };
        let mut place = Place::new(profile(Algorithm::Des, false));
        touch::load(&mut field, &mut Asked(&mut place), identified, order)
    };
    let refused = |status| LoadEnd::Refused(LoadRefusal::Answer(AnswerError::Status(status)));
    assert_eq!(load(None), refused(StatusWord::PinNotVerified));
    assert_eq!(load(Some(&[0x12, 0x34, 0x57])), refused(StatusWord::WrongPin(2)));
    assert!(matches!(load(Some(&[0x12, 0x34, 0x56])), LoadEnd::Credited { .. }));
    for left in [2, 1, 0] {
        assert_eq!(load(Some(&[0; 3])), refused(StatusWord::WrongPin(left)));
    }
    assert_eq!(load(Some(&[0x12, 0x34, 0x56])), refused(StatusWord::PinLocked));
}
