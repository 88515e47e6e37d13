//! What a card keeps without power.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use feiqian_protocol::chain::{hex, unhex};
use feiqian_protocol::purse::file::{CardData, LOG_RECORDS, LogRecord};
use feiqian_protocol::purse::key::{Algorithm, CardKey, MasterKey, Purpose};
use feiqian_protocol::purse::record::RECORD_BYTES;
use feiqian_protocol::purse::values::{CardDate, CardSerial, Counter, Kind, Mac, PurseFen};
use serde::{Deserialize, Serialize};

/// Wrong PINs in a row until the PIN is locked.
pub const PIN_TRIES: u8 = 3;
/// Wrong MACs of loads in a row until the application is blocked.
pub const LOAD_TRIES: u8 = 3;
/// Wrong MACs of purchases in a row until the application is blocked: terminals are many, and some are broken.
pub const PURCHASE_TRIES: u8 = 15;

/// The master keys of an institution, all of them: only who makes cards has them together.
#[derive(Clone, Debug)]
pub struct Masters {
    /// Load.
    pub load: MasterKey,
    /// Purchase.
    pub purchase: MasterKey,
    /// TAC.
    pub tac: MasterKey,
}

impl Masters {
    /// Keys for trying things out, known to everybody.
    pub fn example() -> Self {
        let key = |text: &str| text.parse().expect("32 hex digits are a key");
        Self {
            load: key("0f1e2d3c4b5a69788796a5b4c3d2e1f0"),
            purchase: key("a1b2c3d4e5f60718293a4b5c6d7e8f90"),
            tac: key("5566778899aabbccddeeff0011223344"),
        }
    }
}

/// The newest transaction's MAC and TAC, for GET TRANSACTION PROVE.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Newest {
    /// Its kind.
    pub kind: Kind,
    /// The counter after it.
    pub counter: Counter,
    /// MAC2.
    pub mac: Mac,
    /// TAC.
    pub tac: Mac,
}

/// A card's memory. As a file it is JSON, for its owner alone: the card's keys are in it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CardState {
    /// The card number.
    pub serial: CardSerial,
    /// First day.
    pub start: CardDate,
    /// Last day.
    pub expiry: CardDate,
    /// How MACs are computed.
    pub algorithm: Algorithm,
    /// Version of all its keys.
    pub key_version: u8,
    /// Load key.
    #[serde(with = "key_text")]
    pub load_key: CardKey,
    /// Purchase key.
    #[serde(with = "key_text")]
    pub purchase_key: CardKey,
    /// TAC key.
    #[serde(with = "key_text")]
    pub tac_key: CardKey,
    /// Card PIN, which a load wants, in BCD; none on cards that want none.
    pub pin: Option<String>,
    /// Wrong PINs until it is locked.
    pub pin_tries: u8,
    /// Fen.
    pub balance: PurseFen,
    /// Loads.
    pub online: Counter,
    /// Purchases.
    pub offline: Counter,
    /// Records of the log in hex, the newest first.
    pub log: Vec<String>,
    /// The record of compound purchases in hex.
    pub record: Option<String>,
    /// The file with its issuance in hex.
    #[serde(default)]
    pub issuance: Option<String>,
    /// For GET TRANSACTION PROVE.
    pub newest: Option<Newest>,
    /// Wrong MACs of loads until the application is blocked.
    pub load_tries: u8,
    /// Wrong MACs of purchases until the application is blocked.
    pub purchase_tries: u8,
}

mod key_text {
    use super::CardKey;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(key: &CardKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&key.reveal())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CardKey, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl CardState {
    /// A new card, empty, valid from 2026 to 2035.
    pub fn issue(masters: &Masters, serial: CardSerial, algorithm: Algorithm) -> Self {
        let date = |text: &str| text.parse().expect("the date is one");
        Self {
            serial,
            start: date("20260101"),
            expiry: date("20351231"),
            algorithm,
            key_version: 1,
            load_key: masters.load.diversify(algorithm, serial, Purpose::Load),
            purchase_key: masters.purchase.diversify(algorithm, serial, Purpose::Purchase),
            tac_key: masters.tac.diversify(algorithm, serial, Purpose::Tac),
            pin: None,
            pin_tries: PIN_TRIES,
            balance: PurseFen::ZERO,
            online: Counter(0),
            offline: Counter(0),
            log: Vec::new(),
            record: None,
            issuance: None,
            newest: None,
            load_tries: LOAD_TRIES,
            purchase_tries: PURCHASE_TRIES,
        }
    }

    /// What EF 0015 holds.
    pub fn card_data(&self) -> CardData {
        CardData {
            issuer: *b"FEIQIAN\0",
            application_type: 0,
            version: 1,
            serial: self.serial,
            start: self.start,
            expiry: self.expiry,
            own: [0; 2],
        }
    }

    /// Whether the application is blocked for ever.
    pub const fn is_blocked(&self) -> bool {
        self.load_tries == 0 || self.purchase_tries == 0
    }

    pub(super) fn write_log(&mut self, record: &LogRecord) {
        self.log.insert(0, hex(&record.encode()));
        self.log.truncate(usize::from(LOG_RECORDS));
    }

    pub(super) fn log_record(&self, number: u8) -> Option<Vec<u8>> {
        let text = self.log.get(usize::from(number).checked_sub(1)?)?;
        unhex(text)
    }

    pub(super) fn record_bytes(&self) -> Option<Vec<u8>> {
        self.record.as_deref().and_then(unhex).filter(|bytes| bytes.len() == RECORD_BYTES)
    }

    /// Reads a card's memory; `None` where there is no such file.
    ///
    /// # Errors
    /// Where the file cannot be read, or is no card's memory.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let state = serde_json::from_str(&text);
                state.map(Some).with_context(|| format!("{} is no card's memory", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Writes it as a whole, and returns once it is on disk.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let next = path.with_extension("next");
        let write = || -> Result<()> {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
            file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&next, path)?;
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(folder)?.sync_all()?;
            Ok(())
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}
