//! The service without a node.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use feiqian_protocol::purse::key::Algorithm;
use feiqian_protocol::purse::record::CardRecord;
use feiqian_protocol::purse::values::PurseFen;
use feiqian_sim::card::fault::Fault;
use feiqian_sim::card::state::CardState;
use feiqian_sim::card::vpcd::SoftCard;
use serde_json::{Value, json};

use crate::rig::{self, RECORD_KEY, REQUIRED, Running, SILENCE, ask, configure, insert, name, wait_until};

const START_FEN: u32 = 20_000;

/// Everything that a POS and a card do with it.
pub fn run() {
    for (algorithm, compound) in [(Algorithm::Des, false), (Algorithm::AesCmac, true)] {
        let mut stand = Stand::new(algorithm, compound);
        stand.info();
        stand.purchases();
        stand.torn_after_the_debit();
        stand.torn_before_the_debit();
        stand.torn_before_anything();
        stand.another_card_in_between();
        stand.silent();
        stand.killed();
        stand.account_for_everything();
        drop(stand);
        // Removal is seen within 0.4 s.
        thread::sleep(Duration::from_secs(1));
    }
}

/// What another program reads from the card through the same middleware.
fn opensc_agrees() {
    let mut opensc = Command::new("opensc-tool");
    opensc.args([
        "--reader",
        name(),
        "--card-driver",
        "default",
        "-s",
        "00A4040009F04645495149414E01",
        "-s",
        "805C000204",
    ]);
    match opensc.output() {
        Ok(output) => {
            let printed = String::from_utf8_lossy(&output.stdout);
            // 20,000 fen.
            assert!(printed.contains("00 00 4E 20"), "{printed}");
        }
        Err(error) => {
            assert!(std::env::var_os(REQUIRED).is_none(), "opensc-tool: {error}");
            eprintln!("skipped: there is no opensc-tool here (Debian: opensc)");
        }
    }
}

/// A service, and a card in its reader.
struct Stand {
    folder: tempfile::TempDir,
    compound: bool,
    service: Option<Running>,
    card: SoftCard,
    serving: Option<thread::JoinHandle<()>>,
    /// What the POS holds as paid, in fen.
    paid: u32,
}

impl Stand {
    fn new(algorithm: Algorithm, compound: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut state = rig::card(algorithm, "31000000202600012345");
        state.balance = PurseFen::new(START_FEN).unwrap();
        configure(folder.path(), algorithm, compound, "");
        let (card, serving) = insert(state, folder.path().join("card.json"));
        let mut stand = Self { folder, compound, service: None, card, serving: Some(serving), paid: 0 };
        stand.start();
        stand
    }

    fn start(&mut self) {
        self.service = Some(rig::service(&self.folder.path().join("reader.toml")));
        let socket = self.socket();
        wait_until("the service serves", || UnixStream::connect(&socket).is_ok());
        wait_until("the card is there", || {
            self.call(&json!({"command": "info", "wait_ms": 100}))["ok"] == true
        });
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("data/reader.sock")
    }

    fn call(&self, request: &Value) -> Value {
        ask(UnixStream::connect(self.socket()).unwrap(), request)
    }

    fn buy(&self, key: &str, amount: u32) -> Value {
        self.call(&json!({"command": "purchase", "key": key, "amount_fen": amount, "wait_ms": 10_000}))
    }

    /// A purchase that is approved; the POS hands out what was bought.
    fn paid(&mut self, key: &str, amount: u32) -> Value {
        let answer = self.buy(key, amount);
        assert_eq!(answer["outcome"], "approved", "{answer}");
        self.paid += amount;
        self.balance_is_right();
        answer
    }

    fn balance_is_right(&self) {
        assert_eq!(self.card.state().balance.get(), START_FEN - self.paid);
    }

    fn fault(&self, fault: &str) {
        self.card.add_fault(fault.parse::<Fault>().unwrap());
    }

    fn info(&self) {
        let info = self.call(&json!({"command": "info"}));
        assert_eq!(info["serial"], "31000000202600012345", "{info}");
        assert_eq!((&info["balance_fen"], &info["log"]), (&json!(START_FEN), &json!([])));
        opensc_agrees();
        let status = ask(TcpStream::connect(("127.0.0.1", 7007)).unwrap(), &json!({"command": "status"}));
        assert_eq!((&status["ok"], &status["open"]), (&json!(true), &json!(0)), "{status}");
        assert_eq!(status["readers"].as_array().unwrap().len(), 2, "vpcd has two slots");
        // With several readers the POS must say which, and the configuration does not guess.
        let unnamed =
            ask(UnixStream::connect(self.socket()).unwrap(), &json!({"command": "info", "reader": null}));
        assert_eq!(unnamed["code"], "which_reader", "{unnamed}");
    }

    fn purchases(&mut self) {
        let first = self.paid("a", 1_250);
        assert_eq!(first["balance_fen"], json!(START_FEN - 1_250));
        assert_eq!(self.buy("a", 1_250), first, "a repeat gets the first answer");
        assert_eq!(self.buy("a", 1_251)["code"], "key_used");
        self.balance_is_right();
        let dear = self.buy("b", START_FEN);
        assert_eq!(
            (&dear["outcome"], &dear["reason"]),
            (&json!("declined"), &json!("insufficient")),
            "{dear}"
        );
        assert_eq!(dear["text_zh"], "卡内余额不足");
        // Declined, so that the key is free.
        self.paid("b", 100);
        for amount in [0, 10_000_001] {
            assert_eq!(self.buy("c", amount)["code"], "bad_request");
        }
        let malformed = self.call(&json!({"command": "purchase", "amount_fen": 1}));
        assert_eq!(malformed["code"], "bad_request", "{malformed}");
    }

    fn torn_after_the_debit(&mut self) {
        self.fault("after:debit");
        let torn = self.buy("after", 300);
        assert_eq!(torn["outcome"], "unknown", "{torn}");
        assert_eq!(self.card.state().balance.get(), START_FEN - self.paid - 300, "the card has paid");
        assert_eq!(self.call(&json!({"command": "status"}))["open"], 1);
        // The same key and the same card: paid, and not again.
        self.paid("after", 300);
    }

    fn torn_before_the_debit(&mut self) {
        self.fault("before:debit");
        let torn = self.buy("before", 300);
        assert_eq!(torn["outcome"], "unknown", "{torn}");
        self.balance_is_right();
        // Another purchase first: what is open is resolved on the way.
        let other = self.paid("other", 200);
        assert_eq!(other["resolved"][0]["outcome"], "never_happened", "{other}");
        assert_eq!(other["resolved"][0]["key"], "before");
        self.paid("before", 300);
    }

    fn torn_before_anything(&mut self) {
        for (number, fault) in
            ["before:select", "after:select", "after:read-binary", "before:initialize", "after:initialize"]
                .into_iter()
                .enumerate()
        {
            self.fault(fault);
            let key = format!("early-{number}");
            let torn = self.buy(&key, 10);
            assert_eq!(
                (&torn["outcome"], &torn["reason"]),
                (&json!("declined"), &json!("taken_away")),
                "{fault}: {torn}"
            );
            self.paid(&key, 10);
        }
    }

    /// A torn card goes away, another one comes, and the POS still asks with the first one's key.
    fn another_card_in_between(&mut self) {
        self.fault("after:debit");
        assert_eq!(self.buy("first", 50)["outcome"], "unknown");
        self.take_out();
        let algorithm = self.card.state().algorithm;
        let mut other = rig::card(algorithm, "31000000202600012346");
        other.balance = PurseFen::new(1_000).unwrap();
        let (other, serving) = insert(other, self.folder.path().join("other.json"));
        let refused = self.buy("first", 50);
        // Not declined: the first card has paid, and the POS must not let go of that.
        assert_eq!(
            (&refused["outcome"], &refused["reason"]),
            (&json!("unknown"), &json!("other_card")),
            "{refused}"
        );
        // The other card buys on its own key.
        assert_eq!(self.buy("second", 70)["outcome"], "approved");
        assert_eq!(other.state().balance.get(), 930);
        other.stop();
        serving.join().unwrap();
        thread::sleep(Duration::from_secs(1));
        self.put_in();
        let recovered = self.call(&json!({"command": "recover", "wait_ms": 10_000}));
        assert_eq!(recovered["resolved"][0]["outcome"], "completed", "{recovered}");
        assert_eq!(recovered["resolved"][0]["proven"], true);
        // The POS hears of it by its key, without a card.
        self.take_out();
        self.paid("first", 50);
        let absent = self.call(&json!({"command": "info", "wait_ms": 300}));
        assert_eq!(absent["code"], "no_card", "{absent}");
        self.put_in();
    }

    fn silent(&mut self) {
        self.fault("silent:debit");
        let asked = Instant::now();
        let silent = self.buy("silent", 40);
        assert_eq!(silent["outcome"], "unknown", "{silent}");
        assert!(asked.elapsed() < SILENCE, "the POS is not kept until the card goes");
        let stuck = self.buy("next", 30);
        assert_eq!(stuck["code"], "reader_stuck", "{stuck}");
        // The card goes, and comes again: paid once.
        wait_until("the reader serves again", || {
            self.call(&json!({"command": "info", "wait_ms": 100}))["ok"] == true
        });
        self.paid("silent", 40);
        self.paid("next", 30);
        // Silent before anything is at stake: declined, and nothing open.
        self.fault("silent:initialize");
        let early = self.buy("early", 20);
        assert_eq!(early["code"], "silent_card", "{early}");
        assert_eq!(self.call(&json!({"command": "status"}))["open"], 0);
        wait_until("the reader serves again", || {
            self.call(&json!({"command": "info", "wait_ms": 100}))["ok"] == true
        });
        self.balance_is_right();
        self.paid("early", 20);
    }

    /// The service is killed between the debit and its answer.
    fn killed(&mut self) {
        self.fault("silent:debit");
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let request = json!({"command": "purchase", "key": "killed", "amount_fen": 60, "reader": name(), "wait_ms": 10_000});
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        let before = self.card.state().balance.get();
        wait_until("the card has paid", || self.card.state().balance.get() == before - 60);
        self.service = None;
        let mut rest = String::new();
        let _ = stream.read_to_string(&mut rest);
        assert!(!rest.contains("approved"), "{rest}");
        self.start();
        self.paid("killed", 60);
    }

    fn account_for_everything(&self) {
        let journal = self.call(&json!({"command": "journal"}));
        let touches = journal["touches"].as_array().unwrap();
        let of_card = |touch: &&Value| touch["entry"]["serial"] == "31000000202600012345";
        let completed: Vec<&Value> =
            touches.iter().filter(of_card).filter(|touch| touch["outcome"] == "completed").collect();
        let sum: u64 =
            completed.iter().map(|touch| touch["entry"]["terms"]["amount"].as_u64().unwrap()).sum();
        assert_eq!(sum, u64::from(self.paid));
        assert!(touches.iter().all(|touch| touch["outcome"] != "open"), "{journal}");
        // Each counter of the card has been used by one debit, and each is there.
        let mut counters: Vec<u64> =
            completed.iter().map(|touch| touch["entry"]["terms"]["counter"].as_u64().unwrap()).collect();
        counters.sort_unstable();
        let state = self.card.state();
        assert_eq!(counters, (0..u64::from(state.offline.0)).collect::<Vec<u64>>());
        // What survived on the card's own disk is what it is.
        let kept = CardState::read(&self.folder.path().join("card.json")).unwrap().unwrap();
        assert_eq!(kept.balance, state.balance);
        let info = self.call(&json!({"command": "info"}));
        assert_eq!(info["balance_fen"], json!(START_FEN - self.paid));
        assert_eq!(info["log"][0]["amount_fen"], 60);
        if self.compound {
            let bytes = feiqian_protocol::chain::unhex(state.record.as_deref().unwrap()).unwrap();
            let record =
                CardRecord::open(&bytes, &RECORD_KEY.parse().unwrap(), state.serial, state.offline).unwrap();
            // All within a day, unless it ended meanwhile.
            assert!(record.spent_fen <= self.paid && record.taps > 0, "{record:?}");
        }
    }

    fn take_out(&mut self) {
        self.card.stop();
        self.serving.take().unwrap().join().unwrap();
        thread::sleep(Duration::from_secs(1));
    }

    fn put_in(&mut self) {
        let (card, serving) = insert(self.card.state(), self.folder.path().join("card.json"));
        (self.card, self.serving) = (card, Some(serving));
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.card.stop();
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}
