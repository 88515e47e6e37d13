//! The card against the terminal's machines, in one process: every touch, torn at every command.

mod carried;
mod loads;

use feiqian_protocol::ids::NodeId;
use feiqian_protocol::purse::apdu::{AnswerError, Command, Proof, answer};
use feiqian_protocol::purse::identify::IdentifyError;
use feiqian_protocol::purse::issuer::Issuer;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::key::{Algorithm, RecordKey};
use feiqian_protocol::purse::load::{LoadEnd, LoadOrder, LoadRefusal, LoadRequest};
use feiqian_protocol::purse::profile::{
    ApplicationName, CardProfile, CardProfiles, LogCounter, Misfit, RecordPlace,
};
use feiqian_protocol::purse::purchase::{Decline, Doubt, PurchaseEnd, PurchaseOrder, RecordOrder};
use feiqian_protocol::purse::record::CardRecord;
use feiqian_protocol::purse::recovery::LoadProbe;
use feiqian_protocol::purse::sam::SoftSam;
use feiqian_protocol::purse::status::StatusWord;
use feiqian_protocol::purse::torn::{InTransit, Outcome};
use feiqian_protocol::purse::touch::{self, Centre, Journal, Link};
use feiqian_protocol::purse::values::{CardTime, Kind, Mac, PurseFen, TerminalNumber};
use feiqian_protocol::time::BusinessDay;

use super::applet::{Applet, RECORD_NUMBER, RECORD_SFI};
use super::state::{CardState, LOAD_TRIES, Masters, PURCHASE_TRIES};

const DAY: BusinessDay = BusinessDay(20_697);
const START_FEN: u32 = 5_000;
const PRICE_FEN: u32 = 1_250;
const LOAD_FEN: u32 = 3_000;
const ACCOUNT_FEN: u32 = 10_000;

fn fen(fen: u32) -> PurseFen {
    PurseFen::new(fen).unwrap()
}

fn noon() -> CardTime {
    "20260901120000".parse().unwrap()
}

fn terminal() -> TerminalNumber {
    "000000000117".parse().unwrap()
}

fn new_card(algorithm: Algorithm) -> CardState {
    let mut state = CardState::issue(&Masters::example(), "31000000202600012345".parse().unwrap(), algorithm);
    state.balance = fen(START_FEN);
    state
}

fn profile(algorithm: Algorithm, compound: bool) -> CardProfile {
    CardProfile {
        first: "31000000202600000000".parse().unwrap(),
        last: "31000000202600099999".parse().unwrap(),
        algorithm,
        algorithm_id: None,
        purchase_key: 1,
        purchase_key_version: 1,
        load_key: 1,
        load_key_version: 1,
        log_counter: LogCounter::Before,
        balance_fen_max: fen(100_000),
        record: compound.then_some(RecordPlace { sfi: RECORD_SFI, number: RECORD_NUMBER }),
        issuance: None,
    }
}

/// How a touch is cut short.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cut {
    /// Before the command is executed.
    Before,
    /// After it, and nothing of the answer arrives.
    After,
    /// After it, and so many bytes of the answer arrive.
    Partly(usize),
}

/// A card in the field, torn away at the `at`th command.
struct Field {
    applet: Applet,
    cut: Option<(usize, Cut)>,
    commands: usize,
    gone: bool,
    random: u64,
}

impl Field {
    fn new(state: CardState) -> Self {
        Self { applet: Applet::new(state), cut: None, commands: 0, gone: false, random: 1 }
    }

    /// The card leaves, and comes again with `cut` to come.
    fn touch(&mut self, cut: Option<(usize, Cut)>) {
        self.applet.reset();
        (self.cut, self.commands, self.gone) = (cut, 0, false);
    }
}

impl Link for Field {
    fn transmit(&mut self, command: &[u8]) -> Option<Vec<u8>> {
        if self.gone {
            return None;
        }
        let cut = self.cut.filter(|(at, _)| *at == self.commands).map(|(_, cut)| cut);
        self.commands += 1;
        self.gone = cut.is_some();
        if cut == Some(Cut::Before) {
            return None;
        }
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let answer = self.applet.process(command, self.random.to_be_bytes());
        match cut {
            Some(Cut::Partly(bytes)) => Some(answer[..bytes.min(answer.len() - 1)].to_vec()),
            Some(_) => None,
            None => Some(answer),
        }
    }
}

/// A terminal and the centre, with every fen that they know of.
struct Place {
    profiles: CardProfiles,
    sam: SoftSam,
    issuer: Issuer,
    /// The terminal's open purchase.
    open: Option<JournalEntry>,
    /// Sold, with the TAC where there is one.
    sold: Vec<(JournalEntry, Option<Mac>)>,
    /// The centre's open load.
    open_load: Option<JournalEntry>,
    account: u32,
    probes: u8,
}

impl Journal for Place {
    type Error = std::convert::Infallible;
    fn persist(&mut self, entry: &JournalEntry) -> Result<(), Self::Error> {
        assert_eq!(self.open, None, "what is open is resolved first");
        self.open = Some(entry.clone());
        Ok(())
    }
}

/// The centre as the load's machine asks it.
struct Asked<'a>(&'a mut Place);

impl Centre for Asked<'_> {
    fn authorize(&mut self, request: &LoadRequest) -> Option<(CardTime, Mac)> {
        assert_eq!(self.0.open_load, None, "one load at a time");
        let profile = self.0.profiles.of(request.serial)?;
        let entry = self.0.issuer.authorize_load(profile, request, noon()).ok()?;
        self.0.account = self.0.account.checked_sub(request.amount.get())?;
        let granted = (entry.terms.time, entry.mac);
        self.0.open_load = Some(entry);
        Some(granted)
    }
}

impl Place {
    fn new(profile: CardProfile) -> Self {
        let masters = Masters::example();
        Self {
            profiles: CardProfiles::new(ApplicationName::feiqian(), vec![profile]).unwrap(),
            sam: SoftSam::new(terminal(), masters.purchase, 1, None),
            issuer: Issuer::new(masters.load, masters.tac),
            open: None,
            sold: Vec::new(),
            open_load: None,
            account: ACCOUNT_FEN,
            probes: 0,
        }
    }

    fn order(&self) -> PurchaseOrder {
        let record = RecordOrder {
            key: RecordKey::from([7; 16]),
            day: DAY,
            hotlist: None,
            node: NodeId(3),
            spent_fen_max: Some(5_000),
            hotlist_min: None,
        };
        PurchaseOrder { amount: fen(PRICE_FEN), time: noon(), record: Some(record) }
    }

    /// A purchase in one touch, with what was open before it. `None` where the card was gone before anything was begun.
    fn buy(&mut self, field: &mut Field) -> Option<PurchaseEnd> {
        self.resolve(field)?;
        let identified = touch::identify(field, &self.profiles).ok()?;
        let (mut sam, order) = (self.sam.clone(), self.order());
        let Ok(end) = touch::purchase(field, &mut sam, self, identified, order);
        self.sam = sam;
        if let PurchaseEnd::Approved(receipt) = &end {
            self.sold.push((receipt.entry.clone(), Some(receipt.tac)));
            self.open = None;
        }
        Some(end)
    }

    /// Resolves the open purchase; `None` where that could not be found out.
    fn resolve(&mut self, field: &mut Field) -> Option<Option<Outcome>> {
        let Some(entry) = self.open.clone() else {
            return Some(None);
        };
        let identified = touch::identify(field, &self.profiles).ok()?;
        let outcome = touch::recover_purchase(field, &mut self.sam, identified, &entry).ok()?;
        match outcome {
            Outcome::Completed { tac } => self.sold.push((entry, Some(tac))),
            Outcome::CompletedWithoutProof { .. } => self.sold.push((entry, None)),
            Outcome::NeverHappened => {}
            Outcome::InTransit { .. } => return None,
        }
        self.open = None;
        Some(Some(outcome))
    }

    /// A load in one touch, with the load that was open before it.
    fn load(&mut self, field: &mut Field) -> Option<LoadEnd> {
        self.resolve_load(field)?;
        let identified = touch::identify(field, &self.profiles).ok()?;
        let order = LoadOrder { amount: fen(LOAD_FEN), terminal: terminal(), time: noon(), pin: None };
        let end = touch::load(field, &mut Asked(self), identified, order);
        if let (LoadEnd::Credited { tac }, Some(entry)) = (&end, &self.open_load) {
            assert!(self.issuer.tac_is_right(entry, *tac));
            self.open_load = None;
        }
        Some(end)
    }

    fn resolve_load(&mut self, field: &mut Field) -> Option<Option<Outcome>> {
        let Some(entry) = self.open_load.clone() else {
            return Some(None);
        };
        self.probes += 1;
        let probe = LoadProbe { challenge: TerminalNumber([self.probes; 6]), pin: None };
        let identified = touch::identify(field, &self.profiles).ok()?;
        let profile = identified.profile.clone();
        let evidence = touch::probe_load(field, &mut self.sam, identified, &entry, probe.clone()).ok()?;
        let outcome = self.issuer.resolve_load(&profile, &entry, &probe, &evidence);
        match outcome {
            Outcome::Completed { .. } | Outcome::CompletedWithoutProof { .. } => {}
            Outcome::NeverHappened => self.account += entry.terms.amount.get(),
            Outcome::InTransit { .. } => return None,
        }
        self.open_load = None;
        Some(Some(outcome))
    }

    /// All the money there is. What is open is not counted: it is resolved by now.
    fn sum(&self, field: &Field) -> u32 {
        assert_eq!((&self.open, &self.open_load), (&None, &None));
        let sold: u32 = self.sold.iter().map(|(entry, _)| entry.terms.amount.get()).sum();
        self.account + sold + field.applet.state.balance.get()
    }
}

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Des, Algorithm::AesCmac];

fn cuts() -> impl Iterator<Item = Cut> {
    [Cut::Before, Cut::After].into_iter().chain((0..19).map(Cut::Partly))
}

/// How many commands a touch has that nothing cuts.
fn commands_of(algorithm: Algorithm, compound: bool, touch: impl Fn(&mut Place, &mut Field)) -> usize {
    let (mut place, mut field) = (Place::new(profile(algorithm, compound)), Field::new(new_card(algorithm)));
    touch(&mut place, &mut field);
    field.commands
}

#[test]
fn a_purchase_torn_anywhere_is_paid_once_or_not_at_all() {
    let (mut completed, mut never) = (0, 0);
    for (algorithm, compound) in
        ALGORITHMS.into_iter().flat_map(|algorithm| [(algorithm, false), (algorithm, true)])
    {
        let commands = commands_of(algorithm, compound, |place, field| {
            assert!(matches!(place.buy(field), Some(PurchaseEnd::Approved(_))));
        });
        assert_eq!(commands, if compound { 6 } else { 4 });
        for (at, cut) in (0..commands).flat_map(|at| cuts().map(move |cut| (at, cut))) {
            let case = format!("algorithm {algorithm:?}, compound {compound}, command {at}, {cut:?}");
            let (mut place, mut field) =
                (Place::new(profile(algorithm, compound)), Field::new(new_card(algorithm)));
            field.touch(Some((at, cut)));
            let end = place.buy(&mut field);
            assert!(!matches!(end, Some(PurchaseEnd::Approved(_))), "{case}: {end:?}");
            let debited = field.applet.state.balance.get() < START_FEN;
            assert_eq!(debited, at == commands - 1 && cut != Cut::Before, "{case}");
            // What may have moved is open, and nothing else is.
            assert_eq!(place.open.is_some(), at == commands - 1, "{case}");
            let unknown = matches!(end, Some(PurchaseEnd::Unknown(_)));
            assert_eq!(unknown, place.open.is_some(), "{case}: {end:?}");
            field.touch(None);
            let outcome = place.resolve(&mut field).unwrap();
            match outcome {
                Some(Outcome::Completed { .. }) => completed += 1,
                Some(Outcome::NeverHappened) => never += 1,
                other => assert_eq!(other, None, "{case}"),
            }
            assert_eq!(matches!(outcome, Some(Outcome::Completed { .. })), debited, "{case}");
            assert_eq!(place.sum(&field), ACCOUNT_FEN + START_FEN, "{case}");
            // The card goes on as if nothing had been, and every TAC is the card's.
            assert!(matches!(place.buy(&mut field), Some(PurchaseEnd::Approved(_))), "{case}");
            assert_eq!(place.sum(&field), ACCOUNT_FEN + START_FEN, "{case}");
            for (entry, tac) in &place.sold {
                assert!(place.issuer.tac_is_right(entry, tac.unwrap()), "{case}");
            }
            if compound {
                let state = &field.applet.state;
                let bytes = state.record_bytes().unwrap();
                let record =
                    CardRecord::open(&bytes, &RecordKey::from([7; 16]), state.serial, state.offline).unwrap();
                let sold = place.sold.len() as u32;
                assert_eq!((record.spent_fen, u32::from(record.taps)), (sold * PRICE_FEN, sold), "{case}");
            }
        }
    }
    assert!(completed >= 80 && never >= 4, "{completed} and {never}");
}

#[test]
fn finding_out_may_be_torn_as_often_as_it_likes() {
    for algorithm in ALGORITHMS {
        for (at, cut) in (0..5).flat_map(|at| cuts().map(move |cut| (at, cut))) {
            let (mut place, mut field) =
                (Place::new(profile(algorithm, false)), Field::new(new_card(algorithm)));
            field.touch(Some((3, Cut::After)));
            assert!(matches!(place.buy(&mut field), Some(PurchaseEnd::Unknown(Doubt::Lost))));
            field.touch(Some((at, cut)));
            let torn = place.resolve(&mut field);
            assert_eq!(torn.is_none(), place.open.is_some(), "{at} {cut:?}");
            field.touch(None);
            place.resolve(&mut field).unwrap();
            assert_eq!(place.sold.len(), 1);
            assert_eq!(place.sum(&field), ACCOUNT_FEN + START_FEN);
        }
    }
}

/// Bought at place A and torn, then at place B, then back to A.
#[test]
fn a_card_that_moved_on_is_found_in_its_own_log() {
    for algorithm in ALGORITHMS {
        for (elsewhere, cut) in (1..12).flat_map(|times| [(times, Cut::Before), (times, Cut::After)]) {
            let mut state = new_card(algorithm);
            state.balance = fen(100_000);
            let (mut here, mut there) =
                (Place::new(profile(algorithm, false)), Place::new(profile(algorithm, false)));
            let other: TerminalNumber = "000000000118".parse().unwrap();
            there.sam = SoftSam::new(other, Masters::example().purchase, 1, None);
            let mut field = Field::new(state);
            field.touch(Some((3, cut)));
            here.buy(&mut field);
            for _ in 0..elsewhere {
                field.touch(None);
                assert!(matches!(there.buy(&mut field), Some(PurchaseEnd::Approved(_))));
            }
            field.touch(None);
            let outcome = here.resolve(&mut field);
            // Ten records: the one of this counter is there as long as at most nine came after it.
            let later = if cut == Cut::After { elsewhere } else { elsewhere - 1 };
            match (cut, later < 10) {
                (Cut::After, true) => {
                    assert_eq!(outcome, Some(Some(Outcome::CompletedWithoutProof { tac: None })))
                }
                (_, true) => assert_eq!(outcome, Some(Some(Outcome::NeverHappened))),
                (_, false) => {
                    assert_eq!(outcome, None, "in transit");
                    assert!(here.open.is_some());
                }
            }
        }
    }
}

#[test]
fn a_card_that_says_another_algorithm_than_its_profile_is_refused() {
    // A genuine old card under a serial whose profile is modern, made to look as short as need be: what it answers does not fit.
    let (mut place, mut field) =
        (Place::new(profile(Algorithm::AesCmac, false)), Field::new(new_card(Algorithm::Des)));
    assert!(matches!(
        place.buy(&mut field),
        Some(PurchaseEnd::Declined(Decline::Answer(AnswerError::Malformed { .. })))
    ));
    // One that answers as long as it should, and names the weak algorithm.
    struct Says(Field);
    impl Link for Says {
        fn transmit(&mut self, command: &[u8]) -> Option<Vec<u8>> {
            let mut answer = self.0.transmit(command)?;
            if command[1] == 0x50 {
                answer[10] = 0x00;
            }
            Some(answer)
        }
    }
    let mut says = Says(Field::new(new_card(Algorithm::AesCmac)));
    let identified = touch::identify(&mut says, &place.profiles).unwrap();
    let (mut sam, order) = (place.sam.clone(), place.order());
    let Ok(end) = touch::purchase(&mut says, &mut sam, &mut place, identified, order);
    assert_eq!(end, PurchaseEnd::Declined(Decline::Misfit(Misfit::Algorithm { expected: 0x11, got: 0x00 })));
    assert_eq!(place.open, None);
}

/// A card emulator without the key: it copies a genuine card's answers as far as it can, and makes up the rest.
struct Emulator {
    copy: Field,
    forged_log: bool,
}

impl Link for Emulator {
    fn transmit(&mut self, command: &[u8]) -> Option<Vec<u8>> {
        match Command::decode(command) {
            Ok(Command::DebitForPurchase { sequence: _, time, mac1: _ }) => {
                let mac = Mac::from_slice(&[0; 4]).unwrap();
                let state = &mut self.copy.applet.state;
                state.balance = state.balance.checked_sub(fen(PRICE_FEN)).unwrap();
                if self.forged_log {
                    let record = feiqian_protocol::purse::file::LogRecord {
                        counter: state.offline,
                        overdraft: Default::default(),
                        amount: fen(PRICE_FEN),
                        kind: Kind::Purchase.code(),
                        terminal: terminal(),
                        time: time.to_bytes(),
                    };
                    state.write_log(&record);
                }
                state.offline = state.offline.next().unwrap();
                Some(Proof { mac, tac: mac }.encode_debit())
            }
            Ok(Command::Prove { .. }) => Some(answer(StatusWord::NoProof, &[])),
            _ => self.copy.transmit(command),
        }
    }
}

#[test]
fn an_emulator_gets_no_goods_at_once_or_later() {
    for forged_log in [false, true] {
        let mut place = Place::new(profile(Algorithm::Des, false));
        let mut emulator = Emulator { copy: Field::new(new_card(Algorithm::Des)), forged_log };
        let identified = touch::identify(&mut emulator, &place.profiles).unwrap();
        let (mut sam, order) = (place.sam.clone(), place.order());
        let Ok(end) = touch::purchase(&mut emulator, &mut sam, &mut place, identified.clone(), order);
        assert_eq!(end, PurchaseEnd::Unknown(Doubt::WrongProof));
        let entry = place.open.clone().unwrap();
        let outcome = touch::recover_purchase(&mut emulator, &mut sam, identified, &entry).unwrap();
        assert!(!outcome.is_proven(), "{outcome:?}");
        let expected = if forged_log { "completed_without_proof" } else { "in_transit" };
        assert_eq!(outcome.name(), expected);
    }
}

#[test]
fn a_terminal_without_the_key_debits_nothing_and_a_wrong_mac_too_often_blocks() {
    let mut place = Place::new(profile(Algorithm::Des, false));
    place.sam = SoftSam::new(terminal(), "00112233445566778899aabbccddeeff".parse().unwrap(), 1, None);
    let mut field = Field::new(new_card(Algorithm::Des));
    for turn in 1..=PURCHASE_TRIES {
        field.touch(None);
        let refused = if turn < PURCHASE_TRIES { StatusWord::WrongMac } else { StatusWord::Blocked };
        let end = place.buy(&mut field);
        assert_eq!(end, Some(PurchaseEnd::Unknown(Doubt::Answer(AnswerError::Status(refused)))), "{turn}");
        place.open = None;
    }
    assert_eq!(field.applet.state.balance, fen(START_FEN));
    field.touch(None);
    assert_eq!(touch::identify(&mut field, &place.profiles), Err(IdentifyError::Blocked));
}

#[test]
fn declines_move_nothing_and_say_why() {
    let mut field = Field::new(new_card(Algorithm::Des));
    let mut place = Place::new(profile(Algorithm::Des, true));
    let mut buy = |field: &mut Field, change: fn(&mut PurchaseOrder)| {
        field.touch(None);
        let identified = touch::identify(field, &place.profiles).unwrap();
        let mut order = place.order();
        change(&mut order);
        let mut sam = place.sam.clone();
        let Ok(end) = touch::purchase(field, &mut sam, &mut place, identified, order);
        place.open = None;
        end
    };
    let declined = |end| match end {
        PurchaseEnd::Declined(decline) => decline.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(declined(buy(&mut field, |order| order.amount = fen(0))), "a purchase of nothing");
    let late = buy(&mut field, |order| order.time = "20360101000000".parse().unwrap());
    assert_eq!(declined(late), "the card was valid until 20351231");
    let early = buy(&mut field, |order| order.time = "20251231235959".parse().unwrap());
    assert_eq!(declined(early), "the card is valid from 20260101 on");
    let dear = buy(&mut field, |order| order.amount = fen(START_FEN + 1));
    assert_eq!(declined(dear), "the card says: insufficient balance (9401)");
    assert!(matches!(buy(&mut field, |_| ()), PurchaseEnd::Approved(_)));
    let over = buy(&mut field, |order| order.record.as_mut().unwrap().spent_fen_max = Some(2_499));
    assert_eq!(declined(over), "1250 fen were spent today, 2499 may be");
    assert_eq!(field.applet.state.balance, fen(START_FEN - PRICE_FEN));
    // Somebody with a hotlist must have looked at the card, here or where it was before.
    fn wanted(order: &mut PurchaseOrder, has: Option<&str>) {
        let record = order.record.as_mut().unwrap();
        record.hotlist_min = "20260901".parse().ok();
        record.hotlist = has.and_then(|date| date.parse().ok());
    }
    let hotlist = |newest: &str| {
        format!("the newest hotlist that the card has met is of {newest}, and one of 20260901 is wanted")
    };
    assert_eq!(declined(buy(&mut field, |order| wanted(order, None))), hotlist("no date"));
    assert_eq!(declined(buy(&mut field, |order| wanted(order, Some("20260831")))), hotlist("20260831"));
    assert!(matches!(buy(&mut field, |order| wanted(order, Some("20260902"))), PurchaseEnd::Approved(_)));
    assert!(matches!(buy(&mut field, |order| wanted(order, None)), PurchaseEnd::Approved(_)));
    field.applet.state.offline.0 = u16::MAX;
    assert_eq!(declined(buy(&mut field, |_| ())), "the card's counter is exhausted");
}

#[test]
fn a_memory_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("card.json");
    assert_eq!(CardState::read(&path).unwrap(), None);
    let (mut place, mut field) =
        (Place::new(profile(Algorithm::AesCmac, true)), Field::new(new_card(Algorithm::AesCmac)));
    place.buy(&mut field);
    field.applet.state.write(&path).unwrap();
    assert_eq!(CardState::read(&path).unwrap(), Some(field.applet.state));
    std::fs::write(&path, "{}").unwrap();
    assert!(CardState::read(&path).unwrap_err().to_string().ends_with("card.json is no card's memory"));
}
