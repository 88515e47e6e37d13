//! The service between a card, a real node and a real centre: the card is filled, pays, is torn away, is lost; the books agree.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use feiqian_protocol::purse::key::Algorithm;
use feiqian_sim::card::vpcd::SoftCard;
use feiqian_tests::stand::{Plan, Stand};
use serde_json::{Value, json};

use crate::rig::{self, Running, Way, ask, configure, insert, secret, wait_until};

const SERIAL: &str = "31000000202600012345";
/// The card that is given out in its place.
const NEW: &str = "31000000202600012346";
/// What the account has at first, in fen.
const OPENING_FEN: i64 = 30_000;
/// The centre's keys, of the cards in software.
const KEYS: [(&str, &str); 2] =
    [("load.key", "0f1e2d3c4b5a69788796a5b4c3d2e1f0"), ("tac.key", "5566778899aabbccddeeff0011223344")];

/// A holder's card at a POS of a canteen, from its first filling to its loss.
pub fn run() {
    for algorithm in [Algorithm::Des, Algorithm::AesCmac] {
        let mut campus = Campus::new(algorithm);
        campus.collected_in_one_touch();
        campus.cut_off();
        campus.torn_loads();
        campus.an_answer_that_is_lost();
        campus.a_purse_that_runs_low();
        campus.lost();
        campus.finish();
        // Removal is seen within 0.4 s.
        thread::sleep(std::time::Duration::from_secs(1));
    }
}

struct Campus {
    stand: Stand,
    way: Way,
    service: Option<Running>,
    card: SoftCard,
    serving: Option<thread::JoinHandle<()>>,
    algorithm: Algorithm,
    /// Fen that the card should have.
    on_card: u32,
}

impl Campus {
    fn new(algorithm: Algorithm) -> Self {
        let plan = Plan { accounts: vec![(SERIAL, OPENING_FEN)], ..Plan::default() };
        let mut stand = Stand::start(plan).unwrap();
        stand.centre.stop().unwrap();
        let mut config = std::fs::read_to_string(&stand.centre.config).unwrap();
        config += "[purses]\n";
        for (file, key) in KEYS {
            let path = stand.path(file);
            secret(&path, key);
            config += &format!("{} = {path:?}\n", file.replace(".key", "_key_file"));
        }
        let code = if algorithm == Algorithm::Des { "00" } else { "11" };
        config += &format!(
            "[[purses.profiles]]\nfirst = \"31000000202600000000\"\nlast = \"31000000202600099999\"\n\
             algorithm = \"{code}\"\nbalance_fen_max = 100000\n"
        );
        std::fs::write(&stand.centre.config, config).unwrap();
        stand.centre.start().unwrap();
        // The node keeps its port when it is started again.
        let address = stand.nodes[0].status().unwrap()["terminals"].as_str().unwrap().to_owned();
        let config = std::fs::read_to_string(&stand.nodes[0].config).unwrap();
        std::fs::write(&stand.nodes[0].config, config.replace("127.0.0.1:0", &address)).unwrap();
        let (card, serving) = insert(rig::card(algorithm, SERIAL), stand.path("card.json"));
        let way = Way::to(address.parse().unwrap());
        let mut campus =
            Self { stand, way, service: None, card, serving: Some(serving), algorithm, on_card: 0 };
        campus.configure("");
        campus.start();
        campus
    }

    /// The service's configuration, as `feiqian-node terminal-key` has it.
    fn configure(&self, more: &str) {
        let node = &self.stand.nodes[0];
        let shown: Value =
            serde_json::from_str(&node.run_ok(["terminal-key", "canteen-1", "--json"])).unwrap();
        let key_file = self.stand.path("terminal.key");
        secret(&key_file, shown["key"].as_str().unwrap());
        let table = format!(
            "[node]\naddress = \"{}\"\nserver_name = {}\nca_file = {}\nterminal = \"canteen-1\"\nkey_file = {key_file:?}\n{more}\n",
            self.way.address, shown["server_name"], shown["ca"],
        );
        configure(self.stand.directory.path(), self.algorithm, false, &table);
    }

    fn start(&mut self) {
        self.service = Some(rig::service(&self.stand.path("reader.toml")));
        let socket = self.socket();
        wait_until("the service serves", || UnixStream::connect(&socket).is_ok());
        wait_until("the card is there", || {
            self.call(&json!({"command": "info", "wait_ms": 100}))["ok"] == true
        });
    }

    /// The service is killed and comes again.
    fn restart(&mut self) {
        self.service = None;
        self.start();
    }

    fn socket(&self) -> PathBuf {
        self.stand.path("data/reader.sock")
    }

    fn call(&self, request: &Value) -> Value {
        ask(UnixStream::connect(self.socket()).unwrap(), request)
    }

    fn status(&self) -> Value {
        self.call(&json!({"command": "status"}))
    }

    fn buy(&self, key: &str, amount: u32) -> Value {
        self.call(&json!({"command": "purchase", "key": key, "amount_fen": amount, "wait_ms": 10_000}))
    }

    fn paid(&mut self, key: &str, amount: u32) -> Value {
        let answer = self.buy(key, amount);
        assert_eq!(answer["outcome"], "approved", "{answer}");
        self.on_card -= amount;
        answer
    }

    fn load(&self, key: &str, amount: u32) -> Value {
        self.call(&json!({"command": "load", "key": key, "amount_fen": amount, "wait_ms": 10_000}))
    }

    fn info(&self) -> Value {
        self.call(&json!({"command": "info", "wait_ms": 10_000}))
    }

    fn fault(&self, fault: &str) {
        self.card.add_fault(fault.parse().unwrap());
    }

    fn topup(&self, key: &str, fen: &str) {
        self.stand.centre.run_ok([
            "topup",
            "--card",
            SERIAL,
            "--fen",
            fen,
            "--channel",
            "counter",
            "--key",
            key,
        ]);
    }

    /// What the centre has of the card.
    fn books(&self) -> Value {
        serde_json::from_str(&self.stand.centre.run_ok(["purse", "show", SERIAL, "--json"])).unwrap()
    }

    /// Everything is reported, and the books have on the card what is on it.
    fn books_agree(&self) -> Value {
        assert_eq!(self.card.state().balance.get(), self.on_card);
        wait_until("everything is reported", || {
            let reports = &self.status()["reports"];
            (&reports["waiting"], &reports["refused"]) == (&json!(0), &json!(0))
        });
        wait_until("the books agree", || {
            let books = self.books();
            (&books["books_fen"], &books["in_transit_fen"]) == (&json!(self.on_card), &json!(0))
        });
        let books = self.books();
        assert_eq!((&books["difference_fen"], &books["suspense_fen"]), (&json!(0), &json!(0)), "{books}");
        assert_eq!(books["missing_counters"], json!([]), "{books}");
        books
    }

    /// The node is in session with the centre, and the service knows it.
    fn in_session(&self) {
        wait_until("the node reaches the centre", || self.status()["node"]["connected"] == true);
    }

    fn collected_in_one_touch(&mut self) {
        self.in_session();
        let collect = json!({"command": "collect", "key": "first"});
        let collected = self.call(&collect);
        assert_eq!(
            (&collected["outcome"], &collected["amount_fen"], &collected["text_zh"]),
            (&json!("loaded"), &json!(OPENING_FEN), &json!("领款成功")),
            "{collected}"
        );
        self.on_card = OPENING_FEN as u32;
        let books = self.books_agree();
        assert_eq!(books["loads"][0]["state"], "done");
        assert_eq!(self.call(&collect), collected, "a repeat gets the first answer");
        assert_eq!(self.load("first", 10)["code"], "key_used");
        assert_eq!(self.buy("first", 10)["code"], "key_used");
        let nothing = self.call(&json!({"command": "collect", "key": "second"}));
        assert_eq!(nothing["reason"], "nothing_to_collect", "{nothing}");
        let dear = self.load("dear", 100);
        // The centre's own word, and its texts.
        assert_eq!(
            (&dear["reason"], &dear["text_zh"]),
            (&json!("insufficient"), &json!("余额不足")),
            "{dear}"
        );
        let too_much = self.load("too-much", 99_000);
        assert_eq!(too_much["outcome"], "declined", "{too_much}");
        self.paid("lunch", 1_250);
        let books = self.books_agree();
        assert_eq!(books["purchases"][0]["amount_fen"], 1_250);
        let journal = self.call(&json!({"command": "journal"}));
        assert_eq!(journal["touches"][0]["report"], "recorded", "{journal}");
        let loads = self.call(&json!({"command": "loads"}));
        assert_eq!(loads["loads"][0]["report"], "recorded", "{loads}");
        assert_eq!(loads["loads"].as_array().unwrap().len(), 1, "what is declined leaves no row: {loads}");
    }

    /// The node is away; what is paid meanwhile is reported when it is back, in order, whoever was restarted in between.
    fn cut_off(&mut self) {
        self.stand.nodes[0].kill().unwrap();
        self.paid("off-1", 300);
        self.fault("after:debit");
        assert_eq!(self.buy("off-2", 200)["outcome"], "unknown");
        self.paid("off-3", 100);
        self.on_card -= 200;
        let not_now = self.call(&json!({"command": "collect", "key": "off-4"}));
        assert_eq!((&not_now["outcome"], &not_now["reason"]), (&json!("declined"), &json!("unreachable")));
        let status = self.status();
        assert_eq!(status["node"]["reachable"], false, "{status}");
        assert_eq!(status["reports"]["waiting"], 3, "{status}");
        self.restart();
        assert_eq!(self.status()["reports"]["waiting"], 3);
        self.stand.nodes[0].start().unwrap();
        let books = self.books_agree();
        let counters: Vec<&Value> =
            books["purchases"].as_array().unwrap().iter().map(|line| &line["counter"]).collect();
        assert_eq!(counters, [3, 2, 1, 0]);
        // Once recorded they stay so.
        self.restart();
        assert_eq!(self.status()["reports"]["waiting"], 0);
    }

    fn torn_loads(&mut self) {
        self.topup("torn", "20000");
        self.in_session();
        self.fault("after:credit");
        let torn = self.load("taken", 6_000);
        assert_eq!(torn["outcome"], "unknown", "{torn}");
        assert_eq!(self.books()["in_transit_fen"], 6_000);
        assert_eq!(self.status()["open_loads"], 1);
        // The same key and the same card: it has the money, and gets no more.
        let taken = self.load("taken", 6_000);
        assert_eq!((&taken["outcome"], &taken["amount_fen"]), (&json!("loaded"), &json!(6_000)), "{taken}");
        self.on_card += 6_000;
        assert_eq!(self.books_agree()["loads"][0]["state"], "done");
        assert_eq!(self.load("taken", 6_000), taken);

        // Torn before: the next touch, a purchase, gives the money back; then the load is made.
        self.fault("before:credit");
        assert_eq!(self.load("undone", 4_000)["outcome"], "unknown");
        assert_eq!(self.books()["in_transit_fen"], 4_000);
        let bought = self.paid("in-between", 50);
        assert_eq!(bought["resolved"][0]["outcome"], "never_happened", "{bought}");
        assert_eq!(self.books_agree()["loads"][0]["state"], "reversed");
        let loaded = self.load("undone", 4_000);
        assert_eq!(loaded["outcome"], "loaded", "{loaded}");
        self.on_card += 4_000;
        self.books_agree();

        // In one touch: the older load is given back, and the new one made.
        self.fault("before:credit");
        assert_eq!(self.load("given-back", 2_000)["outcome"], "unknown");
        let loaded = self.load("next", 3_000);
        assert_eq!(loaded["outcome"], "loaded", "{loaded}");
        assert_eq!(loaded["resolved"][0]["key"], "given-back");
        self.on_card += 3_000;
        let books = self.books_agree();
        assert_eq!(
            (&books["loads"][0]["state"], &books["loads"][1]["state"]),
            (&json!("done"), &json!("reversed"))
        );

        // Of a load that the service knows nothing of, too, as at another terminal.
        self.fault("after:credit");
        assert_eq!(self.load("elsewhere", 1_000)["outcome"], "unknown");
        self.on_card += 1_000;
        self.service = None;
        // With what a killed process has not moved into the file yet.
        let files = ["journal.db", "journal.db-wal"]
            .map(|name| (self.stand.path("data").join(name), self.stand.path("away").join(name)));
        std::fs::create_dir(self.stand.path("away")).unwrap();
        for (here, away) in files.iter().filter(|(here, _)| here.exists()) {
            std::fs::rename(here, away).unwrap();
        }
        self.start();
        self.in_session();
        let loaded = self.load("after-all", 500);
        assert_eq!(loaded["outcome"], "loaded", "{loaded}");
        self.on_card += 500;
        self.books_agree();
        // Back at the first one: the centre has no such load any more, and the card says that it has taken it.
        self.service = None;
        for (here, away) in &files {
            let _ = std::fs::remove_file(here);
            if away.exists() {
                std::fs::rename(away, here).unwrap();
            }
        }
        self.start();
        self.in_session();
        let recovered = self.call(&json!({"command": "recover", "wait_ms": 10_000}));
        assert_eq!(recovered["resolved"][0]["key"], "elsewhere", "{recovered}");
        assert_eq!(recovered["resolved"][0]["outcome"], "completed_without_proof", "{recovered}");
        assert_eq!((&recovered["open_load"], &self.status()["open_loads"]), (&Value::Null, &json!(0)));
        self.books_agree();
    }

    /// The centre's yes is lost on its way back.
    fn an_answer_that_is_lost(&mut self) {
        self.way.lose_answers(true);
        let late = self.load("late", 700);
        assert_eq!(
            (&late["outcome"], &late["reason"]),
            (&json!("declined"), &json!("unreachable")),
            "{late}"
        );
        assert_eq!(self.books()["in_transit_fen"], 700);
        self.way.lose_answers(false);
        self.in_session();
        // Whatever the card is held there for next.
        self.paid("after-late", 60);
        assert_eq!(self.books_agree()["loads"][0]["state"], "reversed");
    }

    /// A purse with little on it is filled in the touch that it pays in.
    fn a_purse_that_runs_low(&mut self) {
        self.configure("collect_below_fen = 2000");
        self.restart();
        self.in_session();
        let rest = self.on_card - 2_200;
        let dear = self.paid("dear-1", rest);
        assert_eq!(dear.get("collected"), None, "{dear}");
        self.topup("low", "10000");
        let filled = self.buy("low", 201);
        assert_eq!(
            (&filled["outcome"], &filled["collected"]["outcome"]),
            (&json!("approved"), &json!("loaded")),
            "{filled}"
        );
        self.on_card += filled["collected"]["amount_fen"].as_u64().unwrap() as u32;
        self.on_card -= 201;
        self.books_agree();
        let more = self.paid("more", 100);
        assert_eq!(more.get("collected"), None, "{more}");
    }

    fn lost(&mut self) {
        self.stand
            .centre
            .ask(&json!({"command": "report_loss", "card": SERIAL, "operator": "desk"}))
            .unwrap();
        self.stand.settle().unwrap();
        let lost = self.buy("lost", 100);
        assert_eq!(
            (&lost["outcome"], &lost["reason"], &lost["text_zh"]),
            (&json!("declined"), &json!("lost"), &json!("卡已挂失")),
            "{lost}"
        );
        let collect = self.call(&json!({"command": "collect", "key": "lost-too"}));
        assert_eq!(
            (&collect["outcome"], &collect["reason"]),
            (&json!("declined"), &json!("lost")),
            "{collect}"
        );
        self.books_agree();
        // Where nobody can say so the card pays: what is on it is at its holder's risk.
        self.stand.nodes[0].kill().unwrap();
        self.paid("lost", 100);
        self.stand.nodes[0].start().unwrap();
        self.books_agree();
    }

    /// Another card is given out while the building is cut off; what it carries lets it in there.
    fn replaced(&mut self) {
        self.books_agree();
        self.stand.nodes[0].kill().unwrap();
        let told = self.stand.centre.run_ok(["card", "replace", SERIAL, "--new", NEW]);
        let line = told.lines().find(|line| line.contains("for the new card")).expect("an issuance");
        let issuance = line.rsplit(' ').next().unwrap().to_owned();
        self.stand.centre.stop().unwrap();
        self.stand.nodes[0].start().unwrap();
        wait_until("the service reaches the node", || self.status()["node"]["reachable"] == true);

        let carry = json!({"command": "carry_issuance", "issuance": issuance, "wait_ms": 10_000});
        let other = self.call(&carry);
        assert_eq!(other["code"], "other_card", "the old card does not take it: {other}");
        let none = self.call(&json!({"command": "carry_issuance", "issuance": "abc"}));
        assert_eq!(none["code"], "not_issued", "{none}");
        self.card.stop();
        self.serving.take().unwrap().join().unwrap();
        let (card, serving) = insert(rig::card(self.algorithm, NEW), self.stand.path("new.json"));
        (self.card, self.serving) = (card, Some(serving));
        wait_until("the new card is there", || self.info()["serial"] == NEW);
        let balance = |card: &str| {
            let asked = json!({"card": card}).to_string();
            self.stand.till(0).unwrap().ask("/v1/balance", asked.as_bytes()).unwrap().body
        };
        assert_eq!(self.info()["issuance"], Value::Null);
        assert_eq!(balance(NEW)["reason"], "unknown_card");
        // Torn while it is written: half of it is nothing.
        self.fault("before:update-binary");
        assert_eq!(self.call(&carry)["code"], "taken_away");
        let written = self.call(&carry);
        assert_eq!((&written["outcome"], &written["serial"]), (&json!("written"), &json!(NEW)), "{written}");
        let shown = self.info();
        assert_eq!(
            (&shown["issuance"], &shown["issuance_shown"]),
            (&json!(issuance), &json!("done")),
            "{shown}"
        );
        assert!(balance(NEW)["cash_fen"].is_i64(), "the building knows it now: {}", balance(NEW));
        assert!(balance(SERIAL)["cash_fen"].is_null(), "and the old one no more: {}", balance(SERIAL));
        self.stand.centre.start().unwrap();
        self.in_session();
        self.stand.settle().unwrap();
        assert_eq!(self.info()["issuance_shown"], "done", "what is known already changes nothing");
    }

    fn finish(mut self) {
        let journal = self.call(&json!({"command": "journal"}));
        let touches = journal["touches"].as_array().unwrap();
        assert!(
            touches.iter().all(|touch| touch["report"] == "recorded" || touch["report"].is_null()),
            "{journal}"
        );
        let books = self.books_agree();
        self.replaced();
        self.service = None;
        self.card.stop();
        self.serving.take().unwrap().join().unwrap();
        assert_eq!(books["books_fen"], self.on_card);
        assert!(self.stand.cases().unwrap().is_empty());
        self.stand.finish().unwrap();
    }
}
