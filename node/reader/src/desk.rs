//! What a POS may ask, and what is done about it.
//!
//! | command | answer |
//! |---|---|
//! | `purchase` `key`, `amount_fen` | `approved`, `declined`, `unknown` or `unproven` |
//! | `recover` | what became of the card's open purchase |
//! | `info` | who the card is, what is on it, what it last did |
//! | `journal` `after` | what the terminal has to show for its money |
//! | `status` | readers, and how much is open |
//!
//! The **key** of a purchase is the POS's: short text that it uses for no other. A repeat of an approved one gets the first answer.
//! One whose outcome is unknown is resolved by asking again with the same key and the same card: it then
//! turns out to be paid, or is made, once.

use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use feiqian_protocol::ids::Key;
use feiqian_protocol::purse::apdu::{Command as CardCommand, data};
use feiqian_protocol::purse::file::{LOG_RECORD_BYTES, LOG_RECORDS, LOG_SFI, LogRecord};
use feiqian_protocol::purse::identify::Identified;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::purchase::{Doubt, PurchaseEnd, PurchaseOrder, RecordOrder};
use feiqian_protocol::purse::sam::{MacCheck, Sam, SamError, SamRequest, SoftSam};
use feiqian_protocol::purse::torn::Outcome;
use feiqian_protocol::purse::touch::{self, Link};
use feiqian_protocol::purse::values::{CardTime, Mac, PurseFen, TerminalNumber};
use feiqian_protocol::time::{BusinessDay, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answer::{Failure, Reason, declined, unknown, unproven};
use crate::card::{self, Inserted, NoCard};
use crate::config::Config;
use crate::journal::{JournalError, JournalFile, ROWS_MAX, Touch};
use crate::slot::{SlotError, Slots, Watch};

/// What can be asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Who the card is.
    Info {
        /// Which reader, where there are several.
        reader: Option<String>,
        /// How long to wait for a card.
        wait_ms: Option<u64>,
    },
    /// Debits the card.
    Purchase {
        /// The POS's.
        key: Key,
        /// Fen, above zero.
        amount_fen: u32,
        /// Which reader, where there are several.
        reader: Option<String>,
        /// How long to wait for a card.
        wait_ms: Option<u64>,
    },
    /// Finds out what became of the card's open purchase.
    Recover {
        /// Which reader, where there are several.
        reader: Option<String>,
        /// How long to wait for a card.
        wait_ms: Option<u64>,
    },
    /// Lists the journal.
    Journal {
        /// Rows after this one.
        #[serde(default)]
        after: i64,
    },
    /// How the service stands.
    Status {},
}

/// Everything that requests share.
#[derive(Debug)]
pub struct Desk {
    slots: Slots,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    journal: Mutex<JournalFile>,
    sam: Mutex<SoftSam>,
}

/// What a POS is answered, or why it is not.
type Answer = Result<Value, Failure>;

impl Desk {
    /// Opens the journal.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(config: Config) -> Result<Self, JournalError> {
        let journal = JournalFile::open(&config.data_dir)?;
        let last = journal.last_sequence()?;
        let sam =
            SoftSam::new(config.terminal, config.purchase_key.clone(), config.purchase_key_version, last);
        let shared = Shared { config, journal: Mutex::new(journal), sam: Mutex::new(sam) };
        Ok(Self { slots: Slots::default(), shared: Arc::new(shared) })
    }

    /// Carries a request out, and answers.
    pub fn handle(&self, command: Command) -> Value {
        let answer = match command {
            Command::Info { reader, wait_ms } => {
                self.touch(reader, wait_ms, |shared, card, _| Ok(shared.info(card)))
            }
            Command::Purchase { key, amount_fen, reader, wait_ms } => {
                self.purchase(&key, amount_fen, reader, wait_ms)
            }
            Command::Recover { reader, wait_ms } => {
                self.touch(reader, wait_ms, |shared, card, _| shared.recover(card))
            }
            Command::Journal { after } => self.shared.rows(after),
            Command::Status {} => self.status(),
        };
        answer.unwrap_or_else(|failure| failure.json())
    }

    fn purchase(&self, key: &Key, amount: u32, reader: Option<String>, wait_ms: Option<u64>) -> Answer {
        let amount = PurseFen::new(amount)
            .filter(|amount| *amount > PurseFen::ZERO)
            .ok_or_else(|| Failure::new("bad_request", format!("no purse pays {amount} fen at once")))?;
        let key = key.to_string();
        let earlier = self.shared.journal().of_key(&key).map_err(broken)?;
        if let Some(earlier) = &earlier {
            if earlier.entry.terms.amount != amount {
                let was = earlier.entry.terms.amount.get();
                return Err(Failure::new("key_used", format!("the key was used for {was} fen")));
            }
            if let Some(answer) = first_answer(earlier) {
                return Ok(answer);
            }
        }
        // Of a touch that never happened nothing is left; of an open one, its card.
        let open = earlier.filter(|earlier| earlier.outcome.is_none());
        let was_open = open.is_some();
        let work = {
            let key = key.clone();
            move |shared: &Shared, card: &mut Inserted<'_>, watch: &Watch| {
                shared.purchase(card, watch, &key, amount, open)
            }
        };
        let answer = self.touch(reader, wait_ms, work)?;
        // As long as the first touch of this key is open, nothing that went wrong since makes a decline of it.
        let still_open = || {
            self.shared.journal().of_key(&key).map(|touch| touch.is_some_and(|touch| touch.outcome.is_none()))
        };
        if was_open && answer["outcome"] == "declined" && still_open().map_err(broken)? {
            let mut open = unknown(answer["detail"].as_str().unwrap_or_default());
            open["reason"] = answer["reason"].clone();
            return Ok(open);
        }
        Ok(answer)
    }

    /// Waits for a card and works on it, on the reader's own thread.
    fn touch(
        &self,
        reader: Option<String>,
        wait_ms: Option<u64>,
        work: impl FnOnce(&Shared, &mut Inserted<'_>, &Watch) -> Answer + Send + 'static,
    ) -> Answer {
        let reader = which(reader)?;
        let wait = wait_ms.map_or(self.shared.config.wait, Duration::from_millis).min(WAIT_MAX);
        let name =
            CString::new(reader.clone()).map_err(|_| Failure::new("no_reader", "a name has no NUL"))?;
        let shared = self.shared.clone();
        let worked = self.slots.run(&reader, self.shared.config.answer, move |watch| {
            match card::insert(&name, wait, watch) {
                Ok(mut card) => work(&shared, &mut card, watch),
                Err(error @ NoCard::Absent) => Err(Failure::new("no_card", error)),
                Err(error @ NoCard::Mute(_)) => Err(Failure::new("mute_card", error)),
                Err(error @ NoCard::Reader(_)) => Err(Failure::new("no_reader", error)),
            }
        });
        match worked {
            Ok(answer) => answer,
            Err(error @ SlotError::Silent { at_stake: true }) => Ok(unknown(&error.to_string())),
            Err(error @ SlotError::Silent { at_stake: false }) => Err(Failure::new("silent_card", error)),
            Err(error @ SlotError::Busy) => Err(Failure::new("busy", error)),
            Err(error @ SlotError::Stuck) => Err(Failure::new("reader_stuck", error)),
            Err(error) => Err(Failure::new("reader_failed", error)),
        }
    }

    fn status(&self) -> Answer {
        let open = self.shared.journal().open_count().map_err(broken)?;
        let (readers, middleware) = match card::readers() {
            Ok(readers) => (readers, json!(null)),
            Err(error) => (Vec::new(), json!(error.to_string())),
        };
        let terminal = self.shared.config.terminal.to_string();
        Ok(
            json!({ "ok": true, "terminal": terminal, "readers": readers, "middleware_error": middleware, "open": open }),
        )
    }
}

/// Longest wait for a card that a POS may ask for.
const WAIT_MAX: Duration = Duration::from_secs(600);

impl Shared {
    fn purchase(
        &self,
        card: &mut Inserted<'_>,
        watch: &Watch,
        key: &str,
        amount: PurseFen,
        open: Option<Touch>,
    ) -> Answer {
        let identified = match touch::identify(card, &self.config.profiles) {
            Ok(identified) => identified,
            Err(error) => return Ok(declined(Reason::from(&error), &error.to_string())),
        };
        let serial = identified.card.serial;
        if open.is_some_and(|open| open.entry.serial != serial) {
            return Ok(declined(Reason::OtherCard, "the purchase of this key was begun with another card"));
        }
        let mut resolved = Vec::new();
        // Not within the condition, where the journal would stay locked through the block.
        let earlier = self.journal().open_of(serial).map_err(broken)?;
        if let Some(earlier) = earlier {
            let Some(earlier) = self.resolve(card, &identified, earlier)? else {
                return Ok(declined(Reason::Unresolved, "the card's last purchase could not be found out"));
            };
            if earlier.key == key {
                if let Some(answer) = first_answer(&earlier) {
                    return Ok(answer);
                }
            } else {
                resolved.push(touch_json(&earlier));
            }
        }
        let (now, day) = self.now()?;
        let record = self.config.record.as_ref().map(|record| RecordOrder {
            key: record.key.clone(),
            day,
            hotlist: None,
            node: record.node,
            spent_fen_max: record.spent_fen_max,
        });
        let order = PurchaseOrder { amount, time: now, record };
        let mut writing = Writing { shared: self, watch, key, id: None };
        let end = touch::purchase(card, &mut SharedSam(self), &mut writing, identified.clone(), order)?;
        let written = writing.id;
        let mut answer = self.ended(card, &identified, end, written)?;
        if !resolved.is_empty() {
            answer["resolved"] = Value::Array(resolved);
        }
        Ok(answer)
    }

    /// The answer to how a purchase ended. Where that is not known and the card is still there, it is asked at once.
    fn ended(
        &self,
        card: &mut Inserted<'_>,
        identified: &Identified,
        end: PurchaseEnd,
        written: Option<i64>,
    ) -> Answer {
        let doubt = match end {
            PurchaseEnd::Approved(receipt) => {
                let id = written.expect("an approved purchase was written down");
                let outcome = Outcome::Completed { tac: receipt.tac };
                self.journal().resolve(id, &outcome).map_err(broken)?;
                tracing::info!(id, "purchase approved");
                return Ok(approved(&receipt.entry, receipt.tac));
            }
            PurchaseEnd::Declined(decline) => {
                return Ok(declined(Reason::from(&decline), &decline.to_string()));
            }
            PurchaseEnd::Unknown(doubt) => doubt,
        };
        tracing::warn!(id = written, %doubt, "it is not known whether the card has paid");
        if doubt == Doubt::Lost {
            return Ok(unknown(&doubt.to_string()));
        }
        let Ok(again) = touch::identify(card, &self.config.profiles) else {
            return Ok(unknown(&doubt.to_string()));
        };
        let serial = identified.card.serial;
        let Some(open) = self.journal().open_of(serial).map_err(broken)? else {
            return Ok(unknown(&doubt.to_string()));
        };
        match self.resolve(card, &again, open)? {
            Some(touch) => {
                Ok(first_answer(&touch).unwrap_or_else(|| declined(Reason::CardError, &doubt.to_string())))
            }
            None => Ok(unknown(&doubt.to_string())),
        }
    }

    fn recover(&self, card: &mut Inserted<'_>) -> Answer {
        let identified = touch::identify(card, &self.config.profiles)
            .map_err(|error| Failure::new(Reason::from(&error).code(), error))?;
        let serial = identified.card.serial;
        let Some(open) = self.journal().open_of(serial).map_err(broken)? else {
            return Ok(json!({ "ok": true, "serial": serial, "resolved": [] }));
        };
        match self.resolve(card, &identified, open)? {
            Some(touch) => Ok(json!({ "ok": true, "serial": serial, "resolved": [touch_json(&touch)] })),
            None => Err(Failure::new(
                "unresolved",
                "the card's last purchase could not be found out: hold it again",
            )),
        }
    }

    /// Finds out what became of an open purchase of the card, and writes it down; `None` where that fails.
    fn resolve(
        &self,
        card: &mut Inserted<'_>,
        identified: &Identified,
        open: Touch,
    ) -> Result<Option<Touch>, Failure> {
        let found = touch::recover_purchase(card, &mut SharedSam(self), identified.clone(), &open.entry);
        match found {
            Ok(outcome) => {
                self.journal().resolve(open.id, &outcome).map_err(broken)?;
                tracing::info!(id = open.id, outcome = outcome.name(), "open purchase resolved");
                Ok(Some(Touch { outcome: Some(outcome), ..open }))
            }
            Err(error) => {
                tracing::warn!(id = open.id, %error, "open purchase not resolved");
                Ok(None)
            }
        }
    }

    fn info(&self, card: &mut Inserted<'_>) -> Value {
        let failed = |error: &dyn std::fmt::Display, code| Failure::new(code, error).json();
        let identified = match touch::identify(card, &self.config.profiles) {
            Ok(identified) => identified,
            Err(error) => return failed(&error, Reason::from(&error).code()),
        };
        let balance = card.transmit(&CardCommand::Balance.encode()).unwrap_or_default();
        let balance = match data(&balance, 4) {
            Ok(bytes) => u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Err(error) => return failed(&error, Reason::TakenAway.code()),
        };
        let mut log = Vec::new();
        for number in 1..=LOG_RECORDS {
            let read = CardCommand::ReadRecord { sfi: LOG_SFI, number, length: LOG_RECORD_BYTES as u8 };
            let answer = card.transmit(&read.encode()).unwrap_or_default();
            let Some(record) = data(&answer, LOG_RECORD_BYTES).ok().and_then(LogRecord::decode) else {
                break;
            };
            log.push(json!({
                "counter": record.counter,
                "kind": record.kind(),
                "amount_fen": record.amount,
                "terminal": record.terminal,
                "time": record.time(),
            }));
        }
        let open = self.journal().open_of(identified.card.serial).ok().flatten();
        json!({
            "ok": true,
            "serial": identified.card.serial,
            "balance_fen": balance,
            "start": identified.card.start,
            "expiry": identified.card.expiry,
            "algorithm": identified.profile.algorithm,
            "log": log,
            "open": open.as_ref().map(touch_json),
        })
    }

    fn rows(&self, after: i64) -> Answer {
        let rows = self.journal().after(after, ROWS_MAX).map_err(broken)?;
        let more = rows.len() == ROWS_MAX as usize;
        Ok(json!({ "ok": true, "touches": rows.iter().map(touch_json).collect::<Vec<_>>(), "more": more }))
    }

    fn now(&self) -> Result<(CardTime, BusinessDay), Failure> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
        let calendar = self.config.calendar;
        let time = CardTime::at(now, calendar.utc_offset_minutes);
        Ok((time.ok_or_else(|| Failure::new("clock", "the clock is wrong"))?, calendar.day(now)))
    }

    fn journal(&self) -> MutexGuard<'_, JournalFile> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one software SAM, held by a touch for a computation at a time: a card that is silent must not keep other readers from it.
struct SharedSam<'a>(&'a Shared);

impl SharedSam<'_> {
    fn sam(&self) -> MutexGuard<'_, SoftSam> {
        self.0.sam.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sam for SharedSam<'_> {
    fn terminal(&self) -> TerminalNumber {
        self.sam().terminal()
    }

    fn begin(&mut self, request: &SamRequest) -> Result<feiqian_protocol::purse::apdu::SamBegun, SamError> {
        self.sam().begin(request)
    }

    fn check(&mut self, entry: &JournalEntry, mac2: Mac) -> Result<MacCheck, SamError> {
        self.sam().check(entry, mac2)
    }
}

/// The journal as the purchase's machine writes it.
struct Writing<'a> {
    shared: &'a Shared,
    watch: &'a Watch,
    key: &'a str,
    id: Option<i64>,
}

impl touch::Journal for Writing<'_> {
    type Error = Failure;
    fn persist(&mut self, entry: &JournalEntry) -> Result<(), Failure> {
        if !self.watch.stake() {
            return Err(Failure::new("abandoned", "the card was silent for too long"));
        }
        self.id = Some(self.shared.journal().begin(self.key, entry).map_err(broken)?);
        Ok(())
    }
}

/// What the POS was or would have been told of a touch; `None` where nothing came of it, and the purchase may be made.
fn first_answer(touch: &Touch) -> Option<Value> {
    match touch.outcome? {
        Outcome::Completed { tac } => Some(approved(&touch.entry, tac)),
        outcome @ (Outcome::CompletedWithoutProof { .. } | Outcome::InTransit { .. }) => {
            Some(unproven(outcome.name()))
        }
        Outcome::NeverHappened => None,
    }
}

fn approved(entry: &JournalEntry, tac: Mac) -> Value {
    json!({
        "ok": true,
        "outcome": "approved",
        "serial": entry.serial,
        "amount_fen": entry.terms.amount,
        "balance_fen": entry.terms.balance_after(),
        "time": entry.terms.time,
        "sequence": entry.terms.sequence,
        "counter": entry.terms.counter,
        "tac": tac,
        "text_en": "Paid",
        "text_zh": "付款成功",
    })
}

fn touch_json(touch: &Touch) -> Value {
    json!({
        "id": touch.id,
        "key": touch.key,
        "entry": touch.entry,
        "outcome": touch.outcome.map_or("open", |outcome| outcome.name()),
        "proven": touch.outcome.is_some_and(|outcome| outcome.is_proven()),
        "result": touch.outcome,
    })
}

/// The reader that is meant: the one named, or the only one.
fn which(reader: Option<String>) -> Result<String, Failure> {
    if let Some(reader) = reader {
        return Ok(reader);
    }
    let mut readers =
        card::readers().map_err(|error| Failure::new("no_reader", format!("PC/SC: {error}")))?;
    match readers.len() {
        0 => Err(Failure::new("no_reader", "there is no reader")),
        1 => Ok(readers.remove(0)),
        _ => Err(Failure::new("which_reader", format!("name one of the readers: {}", readers.join(", ")))),
    }
}

/// What is wrong with the disk is for the log; the POS is told that the journal is.
fn broken(error: JournalError) -> Failure {
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    tracing::error!(%error, cause, "journal");
    Failure::new("journal", error)
}
