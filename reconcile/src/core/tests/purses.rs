//! Purses: money goes onto a card and off it once, whatever is repeated, forged, torn or restored.

mod returned;

use std::sync::Arc;

use feiqian_protocol::entry::{PurseLoaded, PursePurchase, Release};
use feiqian_protocol::purse::apdu::LoadBegun;
use feiqian_protocol::purse::issuer::Issuer;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::key::{Algorithm, MacKey, MasterKey, Purpose};
use feiqian_protocol::purse::load::LoadRequest;
use feiqian_protocol::purse::mac::Terms;
use feiqian_protocol::purse::profile::CardProfile;
use feiqian_protocol::purse::question::{LoadFate, PurseAsk, PurseQuestion, PurseRefusal, PurseReply};
use feiqian_protocol::purse::recovery::{Evidence, PROBE_LOAD_FEN};
use feiqian_protocol::purse::torn::{ProofSeen, Seen};
use feiqian_protocol::purse::values::{
    CardSerial, CardTime, Counter, Kind, Mac, PurseFen, Random, TerminalNumber, TerminalSequence,
};

use super::*;
use crate::io::{CaseDecision, SettingCommand};
use crate::purse::Purses;

const SERIAL: &str = "31000000202600012345";
const ACCOUNT: AccountId = AccountId(1);

fn master(byte: u8) -> MasterKey {
    MasterKey::from([byte; 16])
}

fn purses(take_over: bool) -> Arc<Purses> {
    let profile =
        format!(r#"{{"first":"{SERIAL}","last":"{SERIAL}","algorithm":"00","balance_fen_max":100000}}"#);
    let profile: CardProfile = serde_json::from_str(&profile).unwrap();
    Arc::new(Purses::new(Issuer::new(master(1), master(3)), vec![profile], take_over).unwrap())
}

/// A card, as far as the centre can tell.
#[derive(Clone)]
struct Chip {
    balance: u32,
    online: u16,
    offline: u16,
    randoms: u32,
}

fn serial() -> CardSerial {
    SERIAL.parse().unwrap()
}

fn fen(amount: u32) -> PurseFen {
    PurseFen::new(amount).unwrap()
}

fn terminal(last: u8) -> TerminalNumber {
    TerminalNumber([0, 0, 0, 0, 1, last])
}

impl Chip {
    fn new() -> Self {
        Self { balance: 0, online: 0, offline: 0, randoms: 0 }
    }

    fn load_terms(&self, amount: u32, terminal: TerminalNumber, time: CardTime) -> Terms {
        Terms {
            kind: Kind::Load,
            amount: fen(amount),
            terminal,
            sequence: TerminalSequence(0),
            time,
            balance_before: fen(self.balance),
            counter: Counter(self.online),
            random: Random::from_slice(&self.randoms.to_be_bytes()).unwrap(),
        }
    }

    fn session(terms: &Terms) -> MacKey {
        terms.session_key(Algorithm::Des, &master(1).diversify(Algorithm::Des, serial(), Purpose::Load))
    }

    fn tac(terms: &Terms) -> Mac {
        let key = master(3).diversify(Algorithm::Des, serial(), Purpose::Tac).tac(Algorithm::Des);
        terms.tac(&key).unwrap()
    }

    /// INITIALIZE FOR LOAD.
    fn begin(&mut self, amount: u32, terminal: TerminalNumber) -> LoadRequest {
        self.randoms += 1;
        let terms = self.load_terms(amount, terminal, any_time());
        let begun = LoadBegun {
            balance: fen(self.balance),
            counter: Counter(self.online),
            key_version: 1,
            algorithm_id: 0,
            random: terms.random,
            mac1: terms.mac1(&Self::session(&terms)),
        };
        LoadRequest { serial: serial(), amount: fen(amount), terminal, begun }
    }

    /// CREDIT FOR LOAD; what follows the one INITIALIZE.
    fn credit(&mut self, request: &LoadRequest, time: CardTime, mac2: Mac) -> PurseLoaded {
        let terms = self.load_terms(request.amount.get(), request.terminal, time);
        assert_eq!(terms.mac2(&Self::session(&terms)), mac2);
        let counter = Counter(self.online);
        self.balance += request.amount.get();
        self.online += 1;
        PurseLoaded { serial: serial(), counter, tac: Self::tac(&terms) }
    }

    /// What it says when it is probed about a load.
    fn probed(&mut self, challenge: TerminalNumber, newest: Option<Mac>) -> Evidence {
        let begun = self.begin(PROBE_LOAD_FEN, challenge).begun;
        let proof = newest.map_or(ProofSeen::None, ProofSeen::Unchecked);
        let seen = Seen { counter: begun.counter, balance: begun.balance, proof, log: Vec::new() };
        Evidence { seen, begun: Some(begun) }
    }

    /// DEBIT FOR PURCHASE, as its terminal reports it.
    fn purchase(&mut self, amount: u32, sequence: u32) -> PursePurchase {
        let mut purchase = PursePurchase {
            tap: TapRef { epoch: 1, sequence: key(&format!("p{sequence}")) },
            serial: serial(),
            kind: Kind::Purchase,
            amount: Fen::new(i64::from(amount)),
            counter: Counter(self.offline),
            balance_before: Fen::new(i64::from(self.balance)),
            terminal: terminal(9),
            sequence: TerminalSequence(sequence),
            time: any_time(),
            tac: None,
            merchant: 1,
            proven: true,
        };
        purchase.tac = Some(Self::tac(&purchase.terms().unwrap()));
        self.balance -= amount;
        self.offline += 1;
        purchase
    }
}

fn any_time() -> CardTime {
    "20260901121533".parse().unwrap()
}

/// One node in session, one account whose card has a purse, nothing of its money with the node.
fn bench_with(fen: i64) -> Bench {
    let mut bench = Bench::new(Mode::Strict);
    bench.core.serve_purses(purses(false));
    let node = bench.enrol("n1", Role::Pos);
    bench.connect(node);
    bench.import(&[(SERIAL, fen)]).unwrap();
    bench
}

fn release_all(bench: &mut Bench) {
    let amount = bench.nodes[0].granted.insert(ACCOUNT, Fen::ZERO).unwrap_or_default();
    let wall = bench.now.wall;
    let (account, wallet, epoch) = (ACCOUNT, Wallet::Cash, Epoch::FIRST);
    let release = Release { account, wallet, epoch, amount, released_total: amount };
    bench.nodes[0].write(wall, Proof::None, release);
    bench.upload(0);
}

fn ask(bench: &mut Bench, question: PurseQuestion) -> Option<PurseReply> {
    let before = bench.nodes[0].heard.len();
    bench.frame(0, Frame::PurseAsk(Box::new(PurseAsk { request: 1, ms_left: 1_000, question })));
    answer_since(bench, before)
}

fn answer_since(bench: &Bench, before: usize) -> Option<PurseReply> {
    let mut answers = bench.nodes[0].heard[before..].iter().filter_map(|frame| match frame {
        Frame::PurseAnswer(answer) => Some(answer.reply.clone()),
        _ => None,
    });
    answers.next_back()
}

/// Asks for a load, and calls the right home that it needs.
fn ask_load(bench: &mut Bench, request: LoadRequest) -> PurseReply {
    let before = bench.nodes[0].heard.len();
    if let Some(reply) = ask(bench, PurseQuestion::Load(request)) {
        return reply;
    }
    assert!(bench.nodes[0].heard[before..].iter().any(|frame| matches!(frame, Frame::Recall(_))));
    release_all(bench);
    answer_since(bench, before).expect("what came home is enough")
}

fn authorized(reply: &PurseReply) -> (CardTime, Mac) {
    match reply {
        PurseReply::Authorized(time, mac2) => (*time, *mac2),
        other => panic!("{other:?}"),
    }
}

fn report(bench: &mut Bench, body: impl Into<Body>) {
    let wall = bench.now.wall;
    bench.nodes[0].write(wall, Proof::Card, body);
    bench.upload(0);
}

fn ledger(bench: &Bench, name: &str) -> i64 {
    bench.number(&format!("SELECT COALESCE((SELECT balance FROM ledger WHERE ledger = '{name}'), 0)"))
}

fn on_card(bench: &Bench) -> i64 {
    ledger(bench, &format!("purse:{SERIAL}"))
}

fn in_transit(bench: &Bench) -> i64 {
    ledger(bench, &format!("purse_transit:{SERIAL}"))
}

fn load(bench: &mut Bench, chip: &mut Chip, amount: u32) {
    let request = chip.begin(amount, terminal(1));
    let (time, mac2) = authorized(&ask_load(bench, request));
    let loaded = chip.credit(&request, time, mac2);
    report(bench, loaded);
}

#[test]
fn a_load_calls_right_home_waits_in_transit_and_is_done_by_the_cards_word() {
    let mut bench = bench_with(10_000);
    let mut chip = Chip::new();
    let request = chip.begin(6_000, terminal(1));
    let (time, mac2) = authorized(&ask_load(&mut bench, request));
    assert_eq!(
        (bench.number("SELECT funds FROM wallets"), in_transit(&bench), on_card(&bench)),
        (4_000, 6_000, 0)
    );
    // The same request again, by a terminal that has not heard the answer.
    assert_eq!(authorized(&ask_load(&mut bench, request)), (time, mac2));
    assert_eq!(in_transit(&bench), 6_000);
    bench.check();

    let mut forged = chip.clone().credit(&request, time, mac2);
    forged.tac = "00000000".parse().unwrap();
    report(&mut bench, forged);
    assert_eq!((in_transit(&bench), bench.number("SELECT COUNT(*) FROM faults")), (6_000, 1));
    let loaded = chip.credit(&request, time, mac2);
    report(&mut bench, loaded.clone());
    report(&mut bench, loaded);
    assert_eq!((in_transit(&bench), on_card(&bench)), (0, 6_000));
    assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 1, "a repeat is none");
    bench.check();
}

#[test]
fn what_the_centre_may_not_load_moves_nothing() {
    let mut bench = bench_with(10_000);
    let mut chip = Chip::new();
    let refusal = |bench: &mut Bench, request| match ask(bench, PurseQuestion::Load(request)) {
        Some(PurseReply::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let mut forged = chip.begin(1_000, terminal(1));
    forged.begun.mac1 = "00000000".parse().unwrap();
    assert_eq!(refusal(&mut bench, forged), PurseRefusal::WrongProof);
    let mut downgraded = chip.begin(1_000, terminal(1));
    downgraded.begun.key_version = 2;
    assert_eq!(refusal(&mut bench, downgraded), PurseRefusal::Misfit);
    assert_eq!(refusal(&mut bench, chip.begin(10_001, terminal(1))), PurseRefusal::Insufficient);
    assert_eq!(refusal(&mut bench, chip.begin(100_001, terminal(1))), PurseRefusal::Amount);
    let other =
        LoadRequest { serial: "31000000202600012346".parse().unwrap(), ..chip.begin(1_000, terminal(1)) };
    assert_eq!(refusal(&mut bench, other), PurseRefusal::UnknownCard);
    let richer = Chip { balance: 500, ..chip.clone() }.begin(1_000, terminal(1));
    assert_eq!(refusal(&mut bench, richer), PurseRefusal::Disagrees);
    let validity = |until| Command::ChangeSetting {
        card: card(SERIAL),
        change: SettingCommand::Validity { until },
        operator: key("desk"),
    };
    bench.command(validity(Some(BusinessDay(1)))).unwrap();
    assert_eq!(refusal(&mut bench, chip.begin(1_000, terminal(1))), PurseRefusal::Expired);
    bench.command(validity(None)).unwrap();
    bench.command(Command::ReportLoss { card: card(SERIAL), operator: key("desk") }).unwrap();
    assert_eq!(refusal(&mut bench, chip.begin(1_000, terminal(1))), PurseRefusal::Lost);
    assert_eq!(bench.number("SELECT COUNT(*) FROM purse_loads"), 0);
    bench.check();
}

#[test]
fn a_card_of_the_system_before_is_taken_over_with_what_is_on_it() {
    let mut bench = bench_with(10_000);
    bench.core.serve_purses(purses(true));
    let mut chip = Chip { balance: 500, online: 7, ..Chip::new() };
    load(&mut bench, &mut chip, 1_000);
    assert_eq!(on_card(&bench), 1_500);
    // Only once.
    let richer = Chip { balance: 2_000, ..chip.clone() }.begin(1_000, terminal(1));
    let refused = ask(&mut bench, PurseQuestion::Load(richer));
    assert_eq!(refused, Some(PurseReply::Refused(PurseRefusal::Disagrees)));
    bench.check();
}

#[test]
fn a_torn_load_is_settled_by_what_the_card_proves_and_by_nothing_else() {
    for (credited, fate) in [(false, LoadFate::Reversed), (true, LoadFate::Done)] {
        let mut bench = bench_with(10_000);
        let mut chip = Chip::new();
        let request = chip.begin(6_000, terminal(1));
        let recorded = chip.clone().begin(PROBE_LOAD_FEN, terminal(7)).begun;
        let (time, mac2) = authorized(&ask_load(&mut bench, request));
        if credited {
            // And torn before the terminal heard of it.
            chip.credit(&request, time, mac2);
        }
        let again = chip.begin(1_000, terminal(2));
        let Some(PurseReply::Unresolved(JournalEntry { terms, .. }, challenge)) =
            ask(&mut bench, PurseQuestion::Load(again))
        else {
            panic!("a card has one load in transit");
        };
        assert_eq!(terms.counter, Counter(0));
        // Whoever asks whether there is one is told the same, and nothing is begun by it.
        match ask(&mut bench, PurseQuestion::Open(serial())) {
            Some(PurseReply::Unresolved(open, number)) => {
                assert_eq!((open.terms, number), (terms, challenge));
            }
            other => panic!("{other:?}"),
        }
        // The terminal's word, an answer from before the load, and one under another number prove nothing.
        let unproven = |begun| Evidence {
            seen: Seen {
                counter: Counter(0),
                balance: fen(0),
                proof: ProofSeen::Right("00000000".parse().unwrap()),
                log: Vec::new(),
            },
            begun,
        };
        for evidence in [unproven(None), unproven(Some(recorded)), chip.clone().probed(terminal(7), None)] {
            let still = ask(&mut bench, PurseQuestion::Evidence(serial(), evidence));
            assert_eq!(still, Some(PurseReply::Settled(LoadFate::InTransit)));
        }
        assert_eq!(in_transit(&bench), 6_000);
        let evidence = chip.probed(challenge, None);
        let settled = ask(&mut bench, PurseQuestion::Evidence(serial(), evidence.clone()));
        assert_eq!(settled, Some(PurseReply::Settled(fate)));
        let nothing = ask(&mut bench, PurseQuestion::Evidence(serial(), evidence));
        assert_eq!(nothing, Some(PurseReply::Settled(LoadFate::Nothing)));
        let nothing = ask(&mut bench, PurseQuestion::Open(serial()));
        assert_eq!(nothing, Some(PurseReply::Settled(LoadFate::Nothing)));
        let (funds, purse) = if credited { (4_000, 6_000) } else { (10_000, 0) };
        assert_eq!(
            (bench.number("SELECT funds FROM wallets"), in_transit(&bench), on_card(&bench)),
            (funds, 0, purse)
        );
        bench.check();
        load(&mut bench, &mut chip, 1_000);
        assert_eq!(on_card(&bench), purse + 1_000);
        bench.check();
    }
}

#[test]
fn a_purchase_is_paid_once_and_only_by_its_tac() {
    let mut bench = bench_with(10_000);
    let mut chip = Chip::new();
    load(&mut bench, &mut chip, 2_000);
    let first = chip.purchase(500, 1);
    report(&mut bench, first.clone());
    // Reported again, under another key, and under another counter, which a TAC of this algorithm does not bind.
    let tap = TapRef { epoch: 2, sequence: key("again") };
    report(&mut bench, PursePurchase { tap: tap.clone(), ..first.clone() });
    report(&mut bench, PursePurchase { tap, counter: Counter(40), ..first.clone() });
    assert_eq!((on_card(&bench), ledger(&bench, "merchant:1"), ledger(&bench, "suspense")), (1_500, 500, 0));
    // A SAM thief's card: it pays, and its TAC is nobody's.
    let forged = PursePurchase { tac: Some("12345678".parse().unwrap()), ..chip.clone().purchase(300, 2) };
    report(&mut bench, forged);
    assert_eq!(
        (on_card(&bench), ledger(&bench, "merchant:1"), ledger(&bench, "suspense")),
        (1_500, 800, -300)
    );
    // Nothing was handed out for what only a log says, or only the card.
    let hearsay = PursePurchase { tac: None, proven: false, ..chip.clone().purchase(200, 3) };
    report(&mut bench, hearsay);
    let unproven = PursePurchase { proven: false, ..chip.purchase(200, 4) };
    report(&mut bench, unproven);
    assert_eq!(
        (on_card(&bench), ledger(&bench, "merchant:1"), ledger(&bench, "suspense")),
        (1_300, 800, -100)
    );
    // More than the books have on it.
    let rich = Chip { balance: 5_000, ..chip.clone() }.purchase(1_301, 5);
    report(&mut bench, rich);
    assert_eq!((on_card(&bench), ledger(&bench, "merchant:1")), (1_300, 2_101));
    let cases = bench.exported(Table::Cases, Format::Csv);
    let reasons: Vec<&str> = cases.lines().skip(1).filter_map(|line| line.split(',').nth(2)).collect();
    assert_eq!(reasons, ["purse_wrong_tac", "purse_unproven", "purse_unproven", "purse_overdrawn"]);
    bench.check();

    // A person decides each, once: suspense is even in the end.
    let names: Vec<String> =
        cases.lines().skip(1).filter_map(|line| Some(line.split(',').next()?.to_owned())).collect();
    let decide = |bench: &mut Bench, case: usize, decision| {
        let case = names[case].clone();
        let told = bench.command(Command::DecideCase { case, decision, operator: key("op") });
        told.map_or_else(|error| error.code.to_owned(), |told| told["bearer"].as_str().unwrap().to_owned())
    };
    let refused = [
        (1, CaseDecision::ChargeBack, "not_charged_back"),
        (2, CaseDecision::ChargeBack, "not_charged_back"),
        (3, CaseDecision::Deny, "not_on_card"),
    ];
    let decided = [
        (0, CaseDecision::ChargeBack, "merchant"),
        (1, CaseDecision::Refund, "nobody"),
        (2, CaseDecision::Deny, "holder"),
        (3, CaseDecision::Refund, "risk_fund"),
    ];
    for (case, decision, answer) in refused.into_iter().chain(decided) {
        assert_eq!(decide(&mut bench, case, decision), answer);
        bench.check();
    }
    for (case, decision, _) in decided {
        assert_eq!(decide(&mut bench, case, decision), "case_decided");
    }
    assert_eq!(
        ["merchant:1", "suspense", "risk_fund"].map(|name| ledger(&bench, name)),
        [2_101 - 300 + 200, 0, -1_301]
    );
    assert_eq!((on_card(&bench), bench.number("SELECT funds FROM wallets")), (1_100, 8_200));
    let view = bench.command(Command::Purse { serial: serial() }).unwrap();
    assert_eq!((&view["suspense_fen"], &view["paid_fen"]), (&json!(0), &json!(900)));
    let cases = bench.exported(Table::Cases, Format::Csv);
    let ends: Vec<&str> =
        cases.lines().skip(1).filter_map(|line| Some(line.split_once(",purse_")?.1)).collect();
    assert_eq!(
        ends,
        [
            "wrong_tac,merchant,300,300,0",
            "unproven,nobody,200,0,200",
            "unproven,holder,200,0,0",
            "overdrawn,risk_fund,1301,0,0"
        ]
    );
}

#[test]
fn two_cards_of_one_serial_are_found_by_their_counter_and_withdrawn() {
    let mut bench = bench_with(10_000);
    let mut chip = Chip::new();
    load(&mut bench, &mut chip, 2_000);
    let mut clone = chip.clone();
    let first = chip.purchase(500, 1);
    report(&mut bench, first);
    let second = clone.purchase(700, 8);
    report(&mut bench, second);
    assert_eq!(
        (on_card(&bench), ledger(&bench, "merchant:1"), ledger(&bench, "suspense")),
        (1_500, 1_200, -700)
    );
    let account = bench.command(Command::Account { card: card(SERIAL) }).unwrap();
    assert_eq!(account["cards"][SERIAL], "void");
    let view = bench.command(Command::Purse { serial: serial() }).unwrap();
    assert_eq!((&view["suspense_fen"], &view["purchases"][0]["case"]), (&json!(700), &json!("purse_clone")));
    assert!(
        bench
            .exported(Table::Cases, Format::Csv)
            .contains(&format!(",{SERIAL},purse_clone,suspense,700,0,0"))
    );
    bench.check();
    // Whoever holds both of them pays with both.
    let case = bench.exported(Table::Cases, Format::Csv);
    let case = case.lines().nth(1).and_then(|line| line.split(',').next()).unwrap().to_owned();
    let deny = Command::DecideCase { case, decision: CaseDecision::Deny, operator: key("op") };
    assert_eq!(bench.command(deny).unwrap()["bearer"], "holder");
    assert_eq!((on_card(&bench), ledger(&bench, "suspense")), (800, 0));
    bench.check();
}

#[test]
fn a_copy_of_a_card_whose_account_is_closed_is_a_case_and_no_fault() {
    let mut bench = bench_with(10_000);
    let mut chip = Chip::new();
    load(&mut bench, &mut chip, 2_000);
    let mut clone = chip.clone();
    let first = chip.purchase(500, 1);
    report(&mut bench, first);
    bench.close(SERIAL).unwrap();
    let second = clone.purchase(700, 8);
    report(&mut bench, second);
    let view = bench.command(Command::Purse { serial: serial() }).unwrap();
    assert_eq!(view["purchases"][0]["case"], json!("purse_clone"));
    assert_eq!(bench.number("SELECT COUNT(*) FROM faults"), 0);
    bench.check();
}

#[test]
fn a_purse_that_disagrees_is_explained_by_what_nobody_reported() {
    let mut bench = bench_with(10_000);
    let mut chip = Chip::new();
    load(&mut bench, &mut chip, 2_000);
    let reports: Vec<PursePurchase> = (1..=4).map(|number| chip.purchase(100, number)).collect();
    report(&mut bench, reports[0].clone());
    report(&mut bench, reports[3].clone());
    let view = bench.command(Command::Purse { serial: serial() }).unwrap();
    assert_eq!((&view["books_fen"], &view["card"]["balance_fen"]), (&json!(1_800), &json!(1_600)));
    assert_eq!((&view["difference_fen"], &view["missing_counters"]), (&json!(200), &json!([[1, 2]])));
    report(&mut bench, reports[1].clone());
    report(&mut bench, reports[2].clone());
    let view = bench.command(Command::Purse { serial: serial() }).unwrap();
    assert_eq!((&view["difference_fen"], &view["missing_counters"]), (&json!(0), &json!([])));
    bench.check();
}

#[test]
fn money_on_its_way_may_be_spent_before_its_word_comes() {
    let mut bench = bench_with(10_000);
    let mut chip = Chip::new();
    let request = chip.begin(2_000, terminal(1));
    let (time, mac2) = authorized(&ask_load(&mut bench, request));
    let loaded = chip.credit(&request, time, mac2);
    let bought = chip.purchase(500, 1);
    report(&mut bench, bought);
    assert_eq!((on_card(&bench), in_transit(&bench), ledger(&bench, "suspense")), (-500, 2_000, 0));
    report(&mut bench, loaded);
    assert_eq!((on_card(&bench), in_transit(&bench)), (1_500, 0));
    bench.check();
}
