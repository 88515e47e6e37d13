//! What a POS may ask, and what is done about it.
//!
//! | command | answer |
//! |---|---|
//! | `purchase` `key`, `amount_fen` | `approved`, `declined`, `unknown` or `unproven` |
//! | `load` `key`, `amount_fen` | `loaded`, `declined`, `unknown` or `in_transit` |
//! | `collect` `key` | the same: as much as the account has and the card holds |
//! | `recover` | what became of what is open of the card |
//! | `info` | who the card is, what is on it, what it last did; what it carries of its issuance is shown to the node |
//! | `carry_issuance` `issuance` | puts onto the card what the centre has signed for it |
//! | `journal` `after`, `loads` `after` | what the terminal has to show for its money |
//! | `status` | readers, how the node stands, how much is open and how much is not reported |
//!
//! The **key** of a purchase or a load is the POS's: short text that it uses for no other. A repeat of one that was made gets the first
//! answer. One whose outcome is unknown is resolved by asking again with the same key and the same card: it then
//! turns out to be made, or is made, once.
//!
//! [`purchase`], [`load`] (which need the node), [`shown`].

mod load;
mod purchase;
mod shown;

use std::ffi::CString;
use std::fmt;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use feiqian_protocol::ids::Key;
use feiqian_protocol::issuance::SignedIssuance;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::sam::{MacCheck, Sam, SamError, SamRequest, SoftSam};
use feiqian_protocol::purse::values::{CardTime, Mac, TerminalNumber};
use feiqian_protocol::time::{BusinessDay, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answer::{Failure, load_unknown, unknown};
use crate::card::{self, Inserted, NoCard};
use crate::config::Config;
use crate::journal::{JournalError, JournalFile};
use crate::node::Node;
use crate::reporter;
use crate::slot::{SlotError, Slots, Watch};
use load::Want;

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
    /// Brings money of the account onto the card.
    Load {
        /// The POS's.
        key: Key,
        /// Fen, above zero.
        amount_fen: u32,
        /// The card's PIN, where it wants one before a load.
        pin: Option<Pin>,
        /// Which reader, where there are several.
        reader: Option<String>,
        /// How long to wait for a card.
        wait_ms: Option<u64>,
    },
    /// The same with all that the account has, as far as the card has room.
    Collect {
        /// The POS's.
        key: Key,
        /// The card's PIN, where it wants one before a load.
        pin: Option<Pin>,
        /// Which reader, where there are several.
        reader: Option<String>,
        /// How long to wait for a card.
        wait_ms: Option<u64>,
    },
    /// Finds out what became of the card's open purchase, and of its open load.
    Recover {
        /// Which reader, where there are several.
        reader: Option<String>,
        /// How long to wait for a card.
        wait_ms: Option<u64>,
    },
    /// Puts a card's issuance into its file.
    CarryIssuance {
        /// As `feiqian-reconcile card replace` prints it.
        issuance: String,
        /// Which reader, where there are several.
        reader: Option<String>,
        /// How long to wait for a card.
        wait_ms: Option<u64>,
    },
    /// Lists the purchases of the journal.
    Journal {
        /// Rows after this one.
        #[serde(default)]
        after: i64,
    },
    /// Lists its loads.
    Loads {
        /// Rows after this one.
        #[serde(default)]
        after: i64,
    },
    /// How the service stands.
    Status {},
}

/// A card's PIN. It is in no log and no journal.
#[derive(Clone, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct Pin(Vec<u8>);

impl Pin {
    /// As VERIFY PIN sends it: two digits a byte.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.clone()
    }
}

impl TryFrom<String> for Pin {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || !(4..=12).contains(&text.len()) || !text.len().is_multiple_of(2) {
            return Err("a card's PIN has 4 to 12 digits, an even number of them");
        }
        Ok(Self(text.as_bytes().chunks(2).map(|pair| (pair[0] - b'0') << 4 | (pair[1] - b'0')).collect()))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin")
    }
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
    journal: Arc<Mutex<JournalFile>>,
    sam: Mutex<SoftSam>,
    /// Wakes the thread that reports.
    wake: Option<SyncSender<()>>,
}

/// What a POS is answered, or why it is not.
type Answer = Result<Value, Failure>;

impl Desk {
    /// Opens the journal, and starts the thread that reports to the node, where there is one.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(config: Config) -> Result<Self, JournalError> {
        let journal = JournalFile::open(&config.data_dir)?;
        let last = journal.last_sequence()?;
        let sam =
            SoftSam::new(config.terminal, config.purchase_key.clone(), config.purchase_key_version, last);
        let journal = Arc::new(Mutex::new(journal));
        let wake = config.node.as_ref().map(|node| {
            let (wake, woken) = mpsc::sync_channel(1);
            let (node, journal) = (node.client.clone(), journal.clone());
            thread::spawn(move || reporter::run(&node, &journal, &woken));
            wake
        });
        let shared = Shared { config, journal, sam: Mutex::new(sam), wake };
        Ok(Self { slots: Slots::default(), shared: Arc::new(shared) })
    }

    /// Carries a request out, and answers.
    pub fn handle(&self, command: Command) -> Value {
        let answer = match command {
            Command::Info { reader, wait_ms } => {
                self.touch(reader, wait_ms, unknown, |shared, card, _| Ok(shared.info(card)))
            }
            Command::Purchase { key, amount_fen, reader, wait_ms } => {
                self.purchase(&key, amount_fen, reader, wait_ms)
            }
            Command::Load { key, amount_fen, pin, reader, wait_ms } => {
                Want::amount(amount_fen).and_then(|want| self.load(&key, want, pin, reader, wait_ms))
            }
            Command::Collect { key, pin, reader, wait_ms } => {
                self.load(&key, Want::All, pin, reader, wait_ms)
            }
            Command::Recover { reader, wait_ms } => {
                self.touch(reader, wait_ms, load_unknown, |shared, card, _| shared.recover(card))
            }
            Command::CarryIssuance { issuance, reader, wait_ms } => SignedIssuance::from_text(&issuance)
                .map_err(|error| Failure::new("not_issued", error))
                .and_then(|signed| {
                    self.touch(reader, wait_ms, unknown, move |shared, card, _| shared.carry(card, &signed))
                }),
            Command::Journal { after } => self.shared.purchases_shown(after),
            Command::Loads { after } => self.shared.loads_shown(after),
            Command::Status {} => self.status(),
        };
        answer.unwrap_or_else(|failure| failure.json())
    }

    /// Waits for a card and works on it, on the reader's own thread; `in_doubt` is the answer where the card falls silent while
    /// money is at stake.
    fn touch(
        &self,
        reader: Option<String>,
        wait_ms: Option<u64>,
        in_doubt: fn(&str) -> Value,
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
            Err(error @ SlotError::Silent { at_stake: true }) => Ok(in_doubt(&error.to_string())),
            Err(error @ SlotError::Silent { at_stake: false }) => Err(Failure::new("silent_card", error)),
            Err(error @ SlotError::Busy) => Err(Failure::new("busy", error)),
            Err(error @ SlotError::Stuck) => Err(Failure::new("reader_stuck", error)),
            Err(error) => Err(Failure::new("reader_failed", error)),
        }
    }

    fn status(&self) -> Answer {
        let (readers, middleware) = match card::readers() {
            Ok(readers) => (readers, json!(null)),
            Err(error) => (Vec::new(), json!(error.to_string())),
        };
        let mut status = self.shared.status_shown().map_err(broken)?;
        status["readers"] = json!(readers);
        status["middleware_error"] = middleware;
        Ok(status)
    }
}

/// Longest wait for a card that a POS may ask for.
const WAIT_MAX: Duration = Duration::from_secs(600);

impl Shared {
    fn now(&self) -> Result<(CardTime, BusinessDay), Failure> {
        let now = wall_now();
        let calendar = self.config.calendar;
        let time = CardTime::at(now, calendar.utc_offset_minutes);
        Ok((time.ok_or_else(|| Failure::new("clock", "the clock is wrong"))?, calendar.day(now)))
    }

    fn node(&self) -> Option<&Node> {
        self.config.node.as_ref().map(|node| &node.client)
    }

    /// There is something to report.
    fn wake_reporter(&self) {
        if let Some(wake) = &self.wake {
            // Where it is woken already it looks anyway.
            let _ = wake.try_send(());
        }
    }

    fn journal(&self) -> MutexGuard<'_, JournalFile> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The terminal's clock.
fn wall_now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_digits_and_is_not_shown() {
        let command = |pin: &str| {
            let text = format!(r#"{{"command":"collect","key":"k","pin":"{pin}"}}"#);
            serde_json::from_str::<Command>(&text)
        };
        let Ok(Command::Collect { pin: Some(pin), .. }) = command("123456") else { panic!("a PIN") };
        assert_eq!(pin.bytes(), [0x12, 0x34, 0x56]);
        assert_eq!(format!("{pin:?}"), "Pin");
        for wrong in ["12345", "12", "12a4", "1234567890123", ""] {
            let error = command(wrong).unwrap_err().to_string();
            assert!(error.contains("4 to 12 digits"), "{error}");
            assert!(wrong.len() < 4 || !error.contains(wrong), "{error}");
        }
    }
}
