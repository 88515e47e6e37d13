//! Loads: the card says what it is, the centre lets the money go, the card takes it and proves that it did; in one touch.
//!
//! ```text
//! INITIALIZE -> node -> centre: MAC2 -> journal, fsync -> CREDIT: TAC -> journal -> reported, until the node has it
//! ```
//!
//! Once the centre has let the money go it is the card's alone to take. Where it is torn away meanwhile it is in transit, and
//! the next touch tells: the card is probed under a number that the centre has drawn, and the centre says whether the card has
//! the money, or the account has it back.

use std::time::{Duration, Instant};

use feiqian_protocol::ids::Key;
use feiqian_protocol::purse::identify::Identified;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::load::{LoadEnd, LoadOrder, LoadRefusal, LoadRequest};
use feiqian_protocol::purse::mac::Terms;
use feiqian_protocol::purse::recovery::LoadProbe;
use feiqian_protocol::purse::torn::{Outcome, load_by_card};
use feiqian_protocol::purse::touch::{self, Centre};
use feiqian_protocol::purse::values::{CardTime, Kind, Mac, PurseFen, TerminalNumber, TerminalSequence};
use serde_json::{Value, json};

use super::purchase::Aside;
use super::shown::{balance_of, load_json, touch_json};
use super::{Answer, Desk, Pin, Shared, SharedSam, broken};
use crate::answer::{Failure, Reason, declined, declined_by, load_unknown};
use crate::card::Inserted;
use crate::journal::loads::LoadTouch;
use crate::node::{Declined, Fate, LoadWord, Node, NodeError};
use crate::slot::Watch;

/// Longest that a load keeps the card for what is asked of the node: an older load is settled, and the money called home.
const LOAD_WAIT: Duration = Duration::from_secs(12);

/// The same before a purchase, of a purse that runs low or whose load was torn: a node gives the centre up after 2 s.
const PURCHASE_WAIT: Duration = Duration::from_millis(2_500);

/// Loads that are begun in one touch: an older one may stand in the way, and another may turn up.
const ATTEMPTS: usize = 3;

/// How much is to be loaded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Want {
    /// So much.
    Amount(PurseFen),
    /// What the account has, as far as the card has room.
    All,
}

impl Want {
    pub(super) fn amount(fen: u32) -> Result<Self, Failure> {
        let amount = PurseFen::new(fen).filter(|amount| *amount > PurseFen::ZERO);
        let amount =
            amount.ok_or_else(|| Failure::new("bad_request", format!("no purse takes {fen} fen")))?;
        Ok(Self::Amount(amount))
    }

    fn is_of(self, earlier: &LoadTouch) -> bool {
        match self {
            Self::Amount(amount) => !earlier.collect && earlier.entry.terms.amount == amount,
            Self::All => earlier.collect,
        }
    }
}

/// A load as it is ordered.
#[derive(Clone, Debug)]
struct Wish {
    /// The POS's; `None` where a purse ran low.
    key: Option<String>,
    want: Want,
    pin: Option<Pin>,
}

/// What became of the card's open load.
enum Settling {
    /// There was none.
    Nothing,
    /// It is known.
    Settled(LoadTouch),
    /// It is not known, or nobody could say.
    Open,
}

impl Desk {
    /// Waits for a card and loads it.
    pub(super) fn load(
        &self,
        key: &Key,
        want: Want,
        pin: Option<Pin>,
        reader: Option<String>,
        wait_ms: Option<u64>,
    ) -> Answer {
        if self.shared.node().is_none() {
            return Err(Failure::new("no_node", "loads need the node: the configuration has no [node]"));
        }
        let key = key.to_string();
        let (purchase, earlier) = {
            let journal = self.shared.journal();
            (journal.of_key(&key).map_err(broken)?, journal.load_of_key(&key).map_err(broken)?)
        };
        if purchase.is_some() {
            return Err(Failure::new("key_used", "the key was used for a purchase"));
        }
        if let Some(earlier) = &earlier {
            if !want.is_of(earlier) {
                return Err(Failure::new("key_used", "the key was used for another load"));
            }
            if let Some(answer) = first_answer(earlier) {
                return Ok(answer);
            }
        }
        let open = earlier.filter(|earlier| earlier.outcome.is_none());
        let was_open = open.is_some();
        let wish = Wish { key: Some(key.clone()), want, pin };
        let answer = self.touch(reader, wait_ms, load_unknown, move |shared, card, watch| {
            shared.load(card, watch, &wish, open)
        })?;
        // As long as the first touch of this key is open, nothing that went wrong since makes a decline of it.
        let still_open = || {
            self.shared
                .journal()
                .load_of_key(&key)
                .map(|load| load.is_some_and(|load| load.outcome.is_none()))
        };
        if was_open && answer["outcome"] == "declined" && still_open().map_err(broken)? {
            let mut open = load_unknown(answer["detail"].as_str().unwrap_or_default());
            open["reason"] = answer["reason"].clone();
            return Ok(open);
        }
        Ok(answer)
    }
}

impl Shared {
    fn load(&self, card: &mut Inserted<'_>, watch: &Watch, wish: &Wish, open: Option<LoadTouch>) -> Answer {
        let Some(node) = self.node() else {
            return Err(Failure::new("no_node", "loads need the node"));
        };
        let identified = match touch::identify(card, &self.config.profiles) {
            Ok(identified) => identified,
            Err(error) => return Ok(declined(Reason::from(&error), &error.to_string())),
        };
        let serial = identified.card.serial;
        if open.is_some_and(|open| open.entry.serial != serial) {
            return Ok(declined(Reason::OtherCard, "the load of this key was begun with another card"));
        }
        let until = Instant::now() + LOAD_WAIT;
        let mut aside = Aside::default();
        // A load would have the card forget the proof of what it last paid.
        let open = self.journal().open_of(serial).map_err(broken)?;
        if let Some(open) = open {
            match self.resolve(card, &identified, open)? {
                Some(touch) => aside.resolved.push(touch_json(&touch)),
                None => {
                    return Ok(declined(
                        Reason::Unresolved,
                        "the card's last purchase could not be found out",
                    ));
                }
            }
        }
        match self.settle_open(card, node, &identified, wish.pin.as_ref(), until)? {
            Settling::Nothing => {}
            Settling::Settled(load) if load.key.is_some() && load.key == wish.key => {
                if let Some(answer) = first_answer(&load) {
                    return Ok(aside.beside(answer));
                }
            }
            Settling::Settled(load) => aside.resolved.push(load_json(&load)),
            Settling::Open => {
                return Ok(declined(Reason::Unresolved, "the card's last load could not be found out"));
            }
        }
        let answer = self.load_now(card, watch, node, wish, &identified, until)?;
        Ok(aside.beside(answer))
    }

    /// What a purchase does first, where the node reaches the centre: a torn load is settled, and a purse that runs low is filled.
    /// The purchase goes on whatever comes of it.
    pub(super) fn before_paying(
        &self,
        card: &mut Inserted<'_>,
        watch: &Watch,
        identified: &Identified,
        amount: PurseFen,
        aside: &mut Aside,
    ) -> Result<(), Failure> {
        let Some(node) = self.node().filter(|node| node.is_connected()) else { return Ok(()) };
        let until = Instant::now() + PURCHASE_WAIT;
        match self.settle_open(card, node, identified, None, until)? {
            Settling::Nothing => {}
            Settling::Settled(load) => aside.resolved.push(load_json(&load)),
            Settling::Open => return Ok(()),
        }
        let below = self.config.node.as_ref().and_then(|node| node.collect_below);
        let Some(below) = below else { return Ok(()) };
        // What is left after a touch with a link is what the next one without has.
        let low = balance_of(card).is_ok_and(|balance| balance < amount.get().saturating_add(below.get()));
        if low {
            let wish = Wish { key: None, want: Want::All, pin: None };
            let collected = self.load_now(card, watch, node, &wish, identified, until);
            aside.collected = Some(collected.unwrap_or_else(|failure| failure.json()));
        }
        Ok(())
    }

    /// What became of the card's open load, where the node can be asked.
    pub(super) fn recover_load(
        &self,
        card: &mut Inserted<'_>,
        identified: &Identified,
    ) -> Result<Option<LoadTouch>, Failure> {
        let Some(node) = self.node() else { return Ok(None) };
        match self.settle_open(card, node, identified, None, Instant::now() + LOAD_WAIT)? {
            Settling::Settled(load) => Ok(Some(load)),
            Settling::Nothing | Settling::Open => Ok(None),
        }
    }

    fn load_now(
        &self,
        card: &mut Inserted<'_>,
        watch: &Watch,
        node: &Node,
        wish: &Wish,
        identified: &Identified,
        until: Instant,
    ) -> Answer {
        for _ in 0..ATTEMPTS {
            let amount = match wish.want {
                Want::Amount(amount) => amount,
                Want::All => match self.all(card, node, identified, until)? {
                    Ok(amount) => amount,
                    Err(answer) => return Ok(answer),
                },
            };
            let (time, _) = self.now()?;
            let pin = wish.pin.as_ref().map(Pin::bytes);
            let order = LoadOrder { amount, terminal: self.config.terminal, time, pin };
            let mut asking =
                Asking { shared: self, watch, node, wish, identified, until, written: None, stopped: None };
            let end = touch::load(card, &mut asking, identified.clone(), order);
            let Asking { written, stopped, .. } = asking;
            match (end, written, stopped) {
                (LoadEnd::Credited { tac }, Some(load), _) => {
                    return self.credited(watch, load, tac);
                }
                (LoadEnd::Unknown(error), Some(load), _) => {
                    tracing::warn!(
                        id = load.id,
                        ?error,
                        "it is not known whether the card has taken the load"
                    );
                    let detail =
                        error.map_or_else(|| LoadRefusal::Lost.to_string(), |error| error.to_string());
                    return self.in_doubt(card, node, wish, error.is_some(), &detail, until);
                }
                (_, _, Some(Stopped::Failure(failure))) => {
                    self.journal().doubt(identified.card.serial).map_err(broken)?;
                    return Err(failure);
                }
                (_, _, Some(Stopped::Node(error))) => {
                    // It may have been heard all the same.
                    if !matches!(error, NodeError::Refused { .. }) {
                        self.journal().doubt(identified.card.serial).map_err(broken)?;
                    }
                    return not_now(&error);
                }
                (_, _, Some(Stopped::Declined(by))) => {
                    return Ok(declined_by(&by, "the centre declined"));
                }
                (_, _, Some(Stopped::Unresolved(older, challenge))) => {
                    let fate = self.probe(card, node, &older, challenge, wish.pin.as_ref(), until);
                    match fate {
                        Some(Fate::Done | Fate::Reversed | Fate::Nothing) => {}
                        Some(Fate::InTransit | Fate::Declined) | None => {
                            return Ok(declined(
                                Reason::Unresolved,
                                "an older load of the card could not be found out",
                            ));
                        }
                    }
                }
                (LoadEnd::Refused(refusal), ..) => {
                    return Ok(declined(Reason::from(&refusal), &refusal.to_string()));
                }
                (end, ..) => unreachable!("a card is credited with what was written down: {end:?}"),
            }
        }
        Ok(declined(Reason::Unresolved, "older loads of the card keep turning up"))
    }

    /// How much there is to collect, or the answer where there is nothing.
    fn all(
        &self,
        card: &mut Inserted<'_>,
        node: &Node,
        identified: &Identified,
        until: Instant,
    ) -> Result<Result<PurseFen, Value>, Failure> {
        let balance = match balance_of(card) {
            Ok(balance) => balance,
            Err(error) => return Ok(Err(declined(Reason::TakenAway, &error.to_string()))),
        };
        let cash = match node.cash(identified.card.serial, until) {
            // More than a purse holds is all the same.
            Ok(Ok(cash)) => u32::try_from(cash.max(0)).unwrap_or(u32::MAX),
            Ok(Err(by)) => return Ok(Err(declined_by(&by, "the node shows no balance of this card"))),
            Err(error) => return not_now(&error).map(Err),
        };
        let room = identified.profile.balance_fen_max.get().saturating_sub(balance);
        let reason = match (room, cash) {
            (0, _) => Reason::CardFull,
            (_, 0) => Reason::NothingToCollect,
            (room, cash) => {
                return Ok(Ok(PurseFen::new(room.min(cash)).expect("a purse holds its own room")));
            }
        };
        Ok(Err(declined(reason, &format!("{cash} fen to collect, room for {room}"))))
    }

    fn credited(&self, watch: &Watch, load: LoadTouch, tac: Mac) -> Answer {
        let outcome = Outcome::Completed { tac };
        self.journal().resolve_load(load.id, &outcome).map_err(broken)?;
        watch.settle();
        self.wake_reporter();
        tracing::info!(id = load.id, "load taken");
        Ok(loaded(&load, Some(tac)))
    }

    /// CREDIT was sent, and what the card did is not known. Where it is still there it is asked at once.
    fn in_doubt(
        &self,
        card: &mut Inserted<'_>,
        node: &Node,
        wish: &Wish,
        is_there: bool,
        detail: &str,
        until: Instant,
    ) -> Answer {
        if !is_there {
            return Ok(load_unknown(detail));
        }
        let Ok(identified) = touch::identify(card, &self.config.profiles) else {
            return Ok(load_unknown(detail));
        };
        match self.settle_open(card, node, &identified, wish.pin.as_ref(), until)? {
            Settling::Settled(load) => {
                Ok(first_answer(&load).unwrap_or_else(|| declined(Reason::CardError, detail)))
            }
            Settling::Nothing | Settling::Open => Ok(load_unknown(detail)),
        }
    }

    /// Has the centre settle the card's open load, and writes down what became of it. Where the centre has no such load any more,
    /// another terminal has had it settled, and the card itself tells which way.
    fn settle_open(
        &self,
        card: &mut Inserted<'_>,
        node: &Node,
        identified: &Identified,
        pin: Option<&Pin>,
        until: Instant,
    ) -> Result<Settling, Failure> {
        let serial = identified.card.serial;
        let (open, doubted) = {
            let journal = self.journal();
            (journal.open_load_of(serial).map_err(broken)?, journal.is_doubted(serial).map_err(broken)?)
        };
        if open.is_none() && !doubted {
            return Ok(Settling::Nothing);
        }
        let (older, fate) = match node.open_load(serial, until) {
            Ok(LoadWord::Unresolved(older, challenge)) => {
                let fate = self.probe(card, node, &older, challenge, pin, until);
                (Some(older), fate)
            }
            Ok(LoadWord::Nothing) => (None, Some(Fate::Nothing)),
            Ok(word) => {
                tracing::warn!(?word, "open load not settled");
                (None, None)
            }
            Err(error) => {
                tracing::warn!(%error, code = error.code(), "open load not settled");
                (None, None)
            }
        };
        let Some(fate @ (Fate::Done | Fate::Reversed | Fate::Nothing)) = fate else {
            return Ok(Settling::Open);
        };
        self.journal().found_out(serial).map_err(broken)?;
        let Some(open) = open else { return Ok(Settling::Nothing) };
        let is_ours = older.is_some_and(|older| older.terms == open.entry.terms);
        let outcome = match fate {
            // The centre has the card's word already.
            Fate::Done if is_ours => Some(Outcome::CompletedWithoutProof { tac: None }),
            Fate::Reversed if is_ours => Some(Outcome::NeverHappened),
            _ => self.by_card(card, identified, &open.entry, pin),
        };
        let Some(outcome) = outcome else { return Ok(Settling::Open) };
        self.journal().resolve_load(open.id, &outcome).map_err(broken)?;
        self.wake_reporter();
        tracing::info!(id = open.id, outcome = outcome.name(), "open load settled");
        Ok(Settling::Settled(LoadTouch { outcome: Some(outcome), ..open }))
    }

    /// Probes the card about a load, under the number that the centre has drawn, and hands the centre what it said.
    fn probe(
        &self,
        card: &mut Inserted<'_>,
        node: &Node,
        load: &JournalEntry,
        challenge: TerminalNumber,
        pin: Option<&Pin>,
        until: Instant,
    ) -> Option<Fate> {
        let probed = touch::identify(card, &self.config.profiles)
            .map_err(|error| error.to_string())
            .and_then(|identified| {
                let probe = LoadProbe { challenge, pin: pin.map(Pin::bytes) };
                touch::probe_load(card, &mut SharedSam(self), identified, load, probe)
                    .map_err(|error| error.to_string())
            })
            .and_then(|evidence| {
                node.evidence(load.serial, &evidence, until).map_err(|error| error.to_string())
            });
        match probed {
            Ok(fate) => {
                tracing::info!(?fate, "the centre was told what the card says of its load");
                Some(fate)
            }
            Err(error) => {
                tracing::warn!(error, "a load that stays open");
                None
            }
        }
    }

    /// What the card itself says of a load.
    fn by_card(
        &self,
        card: &mut Inserted<'_>,
        identified: &Identified,
        load: &JournalEntry,
        pin: Option<&Pin>,
    ) -> Option<Outcome> {
        let probe = LoadProbe { challenge: self.config.terminal, pin: pin.map(Pin::bytes) };
        let evidence = touch::probe_load(card, &mut SharedSam(self), identified.clone(), load, probe).ok()?;
        Some(load_by_card(load, &identified.profile, &evidence.seen))
    }
}

/// Why a load was not begun at the card.
enum Stopped {
    Failure(Failure),
    Node(NodeError),
    Declined(Declined),
    Unresolved(Box<JournalEntry>, TerminalNumber),
}

/// The centre, as the load's machine asks it; what it lets go is written down before the card is credited.
struct Asking<'a> {
    shared: &'a Shared,
    watch: &'a Watch,
    node: &'a Node,
    wish: &'a Wish,
    identified: &'a Identified,
    until: Instant,
    written: Option<LoadTouch>,
    stopped: Option<Stopped>,
}

impl Centre for Asking<'_> {
    fn authorize(&mut self, request: &LoadRequest) -> Option<(CardTime, Mac)> {
        let stopped = match self.node.load(request, self.until) {
            Ok(LoadWord::Authorized(time, mac2)) => match self.write(request, time, mac2) {
                Ok(written) => {
                    self.written = Some(written);
                    return Some((time, mac2));
                }
                Err(failure) => Stopped::Failure(failure),
            },
            Ok(LoadWord::Unresolved(load, challenge)) => Stopped::Unresolved(load, challenge),
            Ok(LoadWord::Declined(declined)) => Stopped::Declined(declined),
            Ok(LoadWord::Nothing) => {
                Stopped::Node(NodeError::Unreachable("it says nothing of the load".to_owned()))
            }
            Err(error) => Stopped::Node(error),
        };
        self.stopped = Some(stopped);
        None
    }
}

impl Asking<'_> {
    fn write(&self, request: &LoadRequest, time: CardTime, mac2: Mac) -> Result<LoadTouch, Failure> {
        if !self.watch.stake() {
            return Err(Failure::new("abandoned", "the card was silent for too long"));
        }
        let LoadRequest { serial, amount, terminal, begun } = *request;
        let entry = JournalEntry {
            serial,
            algorithm: self.identified.profile.algorithm,
            key_version: begun.key_version,
            terms: Terms {
                kind: Kind::Load,
                amount,
                terminal,
                sequence: TerminalSequence(0),
                time,
                balance_before: begun.balance,
                counter: begun.counter,
                random: begun.random,
            },
            mac: mac2,
        };
        let (key, collect) = (self.wish.key.clone(), self.wish.want == Want::All);
        let id = self.shared.journal().begin_load(key.as_deref(), collect, &entry).map_err(broken)?;
        Ok(LoadTouch { id, key, collect, entry, outcome: None, report: None })
    }
}

/// The answer where the node or the centre cannot be asked, or refuses the terminal as such.
fn not_now(error: &NodeError) -> Answer {
    match error {
        NodeError::Refused { code, message } => {
            Err(Failure::new("node_refused", format!("the node refuses: {message} ({code})")))
        }
        error => Ok(declined(Reason::Unreachable, &error.to_string())),
    }
}

/// What the POS was or would have been told of a load; `None` where nothing came of it, and the load may be made.
fn first_answer(load: &LoadTouch) -> Option<Value> {
    match load.outcome? {
        Outcome::Completed { tac } => Some(loaded(load, Some(tac))),
        Outcome::CompletedWithoutProof { tac } => Some(loaded(load, tac)),
        Outcome::InTransit { .. } => Some(in_transit(load)),
        Outcome::NeverHappened => None,
    }
}

fn loaded(load: &LoadTouch, tac: Option<Mac>) -> Value {
    let JournalEntry { serial, terms, .. } = &load.entry;
    let (text_en, text_zh) =
        if load.collect { ("Collected", "领款成功") } else { ("Loaded", "圈存成功") };
    json!({
        "ok": true,
        "outcome": "loaded",
        "serial": serial,
        "amount_fen": terms.amount,
        "balance_fen": terms.balance_after(),
        "time": terms.time,
        "counter": terms.counter,
        "tac": tac,
        "text_en": text_en,
        "text_zh": text_zh,
    })
}

/// `in_transit`: the card contradicts itself; the money waits for a person.
fn in_transit(load: &LoadTouch) -> Value {
    json!({
        "ok": true,
        "outcome": "in_transit",
        "serial": load.entry.serial,
        "amount_fen": load.entry.terms.amount,
        "text_en": "The card office must look into this load",
        "text_zh": "该笔圈存需到卡务中心处理",
    })
}
