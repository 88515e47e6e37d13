//! The files of the purse application that a terminal reads: who the card is, and what it last did.

use minicbor::{Decode, Decoder, Encode, Encoder};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::values::{CardDate, CardSerial, CardTime, Counter, Kind, Overdraft, PurseFen, TerminalNumber};
use crate::chain::{hex, unhex};

/// Short file identifier of the card's data.
pub const CARD_SFI: u8 = 0x15;
/// Short file identifier of the holder's data.
pub const HOLDER_SFI: u8 = 0x16;
/// Short file identifier of the transaction log.
pub const LOG_SFI: u8 = 0x18;
/// Bytes that are read of the card's data; foreign cards have more.
pub const CARD_BYTES: usize = 30;
/// Bytes of the holder's data.
pub const HOLDER_BYTES: usize = 55;
/// Bytes of a record of the log.
pub const LOG_RECORD_BYTES: usize = 23;
/// Records that the log of a card keeps at least, and that are read at most.
pub const LOG_RECORDS: u8 = 10;

/// EF 0015: the card's data (公共应用信息). Whoever reads it has proof of nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CardData {
    /// Issuer.
    pub issuer: [u8; 8],
    /// Type of the application.
    pub application_type: u8,
    /// Version of it.
    pub version: u8,
    /// The card number.
    pub serial: CardSerial,
    /// First day.
    pub start: CardDate,
    /// Last day.
    pub expiry: CardDate,
    /// The issuer's own.
    pub own: [u8; 2],
}

/// A card's data that are none.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CardDataError {
    /// Not the length.
    #[error("{0} bytes where the card's data have {CARD_BYTES}")]
    Length(usize),
    /// The first or last day is no date.
    #[error("the card's first or last day is no date")]
    Date,
}

impl CardData {
    /// # Errors
    /// [`CardDataError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CardDataError> {
        let bytes: &[u8; CARD_BYTES] = bytes.try_into().map_err(|_| CardDataError::Length(bytes.len()))?;
        let date = |at| CardDate::from_bytes(array(bytes, at)).ok_or(CardDataError::Date);
        Ok(Self {
            issuer: array(bytes, 0),
            application_type: bytes[8],
            version: bytes[9],
            serial: CardSerial(array(bytes, 10)),
            start: date(20)?,
            expiry: date(24)?,
            own: array(bytes, 28),
        })
    }

    /// As on the card.
    pub fn encode(&self) -> [u8; CARD_BYTES] {
        let parts: [&[u8]; 6] = [
            &self.issuer,
            &[self.application_type, self.version],
            self.serial.as_ref(),
            self.start.as_ref(),
            self.expiry.as_ref(),
            &self.own,
        ];
        parts.concat().try_into().expect("8 + 2 + 10 + 4 + 4 + 2 = 30")
    }
}

/// EF 0016: the holder's data (持卡人基本信息). Text is GBK, padded; nothing here is decided by it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HolderData {
    /// Type of the card.
    pub card_type: u8,
    /// Whether the holder is staff of the issuer.
    pub staff: u8,
    /// Name.
    pub name: [u8; 20],
    /// Number of the identity document.
    pub document: [u8; 32],
    /// Type of it.
    pub document_type: u8,
}

impl HolderData {
    /// From the card; `None` where it is not [`HOLDER_BYTES`] long.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HOLDER_BYTES] = bytes.try_into().ok()?;
        Some(Self {
            card_type: bytes[0],
            staff: bytes[1],
            name: array(bytes, 2),
            document: array(bytes, 22),
            document_type: bytes[54],
        })
    }

    /// As on the card.
    pub fn encode(&self) -> [u8; HOLDER_BYTES] {
        let parts: [&[u8]; 4] =
            [&[self.card_type, self.staff], &self.name, &self.document, &[self.document_type]];
        parts.concat().try_into().expect("2 + 20 + 32 + 1 = 55")
    }
}

/// A record of EF 0018, the transaction log: cyclic, the newest first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogRecord {
    /// Online counter (load) or offline counter (purchase). Ours is the one before the transaction.
    pub counter: Counter,
    /// Overdraft limit.
    pub overdraft: Overdraft,
    /// How much, in fen.
    pub amount: PurseFen,
    /// The number of the kind; a foreign card may have kinds that are not in [`Kind`].
    pub kind: u8,
    /// At which terminal.
    pub terminal: TerminalNumber,
    /// When: BCD, which need not be a time on a card that was never used.
    pub time: [u8; 7],
}

impl LogRecord {
    /// From the card; `None` where it is not [`LOG_RECORD_BYTES`] long, or was never written (all FF), or holds no amount.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LOG_RECORD_BYTES] = bytes.try_into().ok()?;
        Some(Self {
            counter: Counter(u16::from_be_bytes(array(bytes, 0))),
            overdraft: Overdraft(array(bytes, 2)),
            amount: PurseFen::from_bytes(array(bytes, 5))?,
            kind: bytes[9],
            terminal: TerminalNumber(array(bytes, 10)),
            time: array(bytes, 16),
        })
    }

    /// As on the card.
    pub fn encode(&self) -> [u8; LOG_RECORD_BYTES] {
        let parts: [&[u8]; 6] = [
            &self.counter.0.to_be_bytes(),
            &self.overdraft.0,
            &self.amount.to_bytes(),
            &[self.kind],
            self.terminal.as_ref(),
            &self.time,
        ];
        parts.concat().try_into().expect("2 + 3 + 4 + 1 + 6 + 7 = 23")
    }

    /// From hex.
    fn from_text(text: &str) -> Option<Self> {
        Self::decode(&unhex(text)?)
    }

    /// The kind, where it is one of ours.
    pub const fn kind(&self) -> Option<Kind> {
        Kind::from_code(self.kind)
    }

    /// When, where it is a time.
    pub fn time(&self) -> Option<CardTime> {
        CardTime::from_bytes(self.time)
    }
}

/// In logs and frames: the bytes of the card.
impl<C> Encode<C> for LogRecord {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&Self::encode(self))?.ok()
    }
}

impl<'b, C> Decode<'b, C> for LogRecord {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::decode(d.bytes()?).ok_or_else(|| minicbor::decode::Error::message("no record of a card's log"))
    }
}

/// In JSON: the bytes of the card, as hex.
impl Serialize for LogRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&hex(&Self::encode(self)))
    }
}

impl<'de> Deserialize<'de> for LogRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_text(&text)
            .ok_or_else(|| serde::de::Error::custom("no record of a card's log (46 hex digits)"))
    }
}

/// `N` bytes from `at` on, which the caller has made sure are there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes are N bytes")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_log_record_of_the_example_card() {
        let bytes = unhex("0029000000000004e20600000000011720260901121533").unwrap();
        let record = LogRecord::decode(&bytes).unwrap();
        assert_eq!(
            (record.counter, record.amount.get(), record.kind()),
            (Counter(0x29), 1_250, Some(Kind::Purchase))
        );
        assert_eq!(record.terminal.to_string(), "000000000117");
        assert_eq!(record.time().unwrap().to_string(), "20260901121533");
        assert_eq!(record.encode().as_slice(), bytes);
        // Never written.
        assert_eq!(LogRecord::decode(&[0xFF; LOG_RECORD_BYTES]), None);
    }

    #[test]
    fn the_cards_data_name_what_is_wrong() {
        let text = "01020304050607080001310000002026000123452026090120300831abcd";
        let card = CardData::decode(&unhex(text).unwrap()).unwrap();
        assert_eq!(card.serial.to_string(), "31000000202600012345");
        assert_eq!(card.expiry.to_string(), "20300831");
        assert_eq!(hex(&card.encode()), text);
        assert_eq!(CardData::decode(&[0; 29]), Err(CardDataError::Length(29)));
        assert_eq!(CardData::decode(&[0; 30]), Err(CardDataError::Date));
    }

    proptest! {
        #[test]
        fn records_round_trip(bytes in any::<[u8; LOG_RECORD_BYTES]>()) {
            if let Some(record) = LogRecord::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }

        #[test]
        fn holders_round_trip(head in any::<[u8; 32]>(), tail in any::<[u8; 23]>()) {
            let bytes = [&head[..], &tail].concat();
            prop_assert_eq!(HolderData::decode(&bytes).unwrap().encode().to_vec(), bytes);
        }
    }
}
