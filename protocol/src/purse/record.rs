//! The record that a compound purchase writes in the step of its debit: what the next building needs to know.
//!
//! 32 bytes: format 1, business day 3, spent without PIN that day 3, taps that day 1, newest hotlist date that the card's terminals
//! had 4, last terminal 6, last node 2, reserved 4, MAC 8. The MAC is AES-128-CMAC under the institution's record key, over the
//! serial, the 24 bytes before it and the offline counter after the debit. So a record of another card, or an older one of the
//! same card that was put back, is seen; and so is a purchase in between that wrote none.

use super::key::{RecordKey, cmac};
use super::values::{CardDate, CardSerial, Counter, Mac, TerminalNumber};
use crate::ids::NodeId;
use crate::time::BusinessDay;

/// Bytes of a record.
pub const RECORD_BYTES: usize = 32;

/// The format that is written here.
const FORMAT: u8 = 1;

/// Largest value of three bytes.
const THREE_BYTES_MAX: u32 = 0x00FF_FFFF;

/// What a card carries from building to building.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct CardRecord {
    /// The business day of the card's last compound purchase.
    pub day: BusinessDay,
    /// Fen spent without PIN on that day; more than 3 bytes hold counts as the most they hold.
    pub spent_fen: u32,
    /// Purchases on that day; 255 stands for as many or more.
    pub taps: u8,
    /// The newest hotlist among the terminals that the card has been at.
    pub hotlist: Option<CardDate>,
    /// The last terminal.
    pub terminal: TerminalNumber,
    /// The last node.
    pub node: NodeId,
}

/// Why a record is not believed. The card may still pay; it counts as one that carries nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordError {
    /// Nothing was ever written.
    #[error("the card carries no record")]
    Empty,
    /// A format that is not known here.
    #[error("the card's record has format {0}, known is {FORMAT}")]
    Format(u8),
    /// Not the length, or fields that hold what they cannot.
    #[error("the card's record is malformed")]
    Malformed,
    /// Of another card, of an earlier time, or made up.
    #[error("the card's record is not the one of its last purchase")]
    Mac,
}

impl CardRecord {
    /// The record after a purchase of `amount_fen` without PIN on `day`, from the one that the card had.
    pub fn after(
        before: Option<&Self>,
        day: BusinessDay,
        amount_fen: u32,
        hotlist: Option<CardDate>,
        terminal: TerminalNumber,
        node: NodeId,
    ) -> Self {
        // A terminal whose clock is behind adds to the later day: a limit must not grow by it.
        let same_day = before.filter(|before| before.day >= day);
        Self {
            day: same_day.map_or(day, |before| before.day),
            spent_fen: same_day
                .map_or(0, |before| before.spent_fen)
                .saturating_add(amount_fen)
                .min(THREE_BYTES_MAX),
            taps: same_day.map_or(0, |before| before.taps).saturating_add(1),
            hotlist: before.and_then(|before| before.hotlist).max(hotlist),
            terminal,
            node,
        }
    }

    /// As written with the debit after which the card's offline counter is `counter`. `None` for days outside 3 bytes (before 1970
    /// or after the year 47000).
    pub fn seal(&self, key: &RecordKey, serial: CardSerial, counter: Counter) -> Option<[u8; RECORD_BYTES]> {
        let day = u32::try_from(self.day.0).ok().filter(|day| *day <= THREE_BYTES_MAX)?;
        let mut bytes = [0; RECORD_BYTES];
        bytes[0] = FORMAT;
        bytes[1..4].copy_from_slice(&day.to_be_bytes()[1..]);
        bytes[4..7].copy_from_slice(&self.spent_fen.min(THREE_BYTES_MAX).to_be_bytes()[1..]);
        bytes[7] = self.taps;
        bytes[8..12].copy_from_slice(&self.hotlist.map_or([0; 4], CardDate::to_bytes));
        bytes[12..18].copy_from_slice(self.terminal.as_ref());
        bytes[18..20].copy_from_slice(&self.node.0.to_be_bytes());
        let mac = mac(key, serial, &bytes, counter);
        bytes[24..].copy_from_slice(mac.as_ref());
        Some(bytes)
    }

    /// As read from a card whose offline counter is `counter`.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn open(
        bytes: &[u8],
        key: &RecordKey,
        serial: CardSerial,
        counter: Counter,
    ) -> Result<Self, RecordError> {
        let bytes: &[u8; RECORD_BYTES] = bytes.try_into().map_err(|_| RecordError::Malformed)?;
        match bytes[0] {
            FORMAT => {}
            0x00 | 0xFF => return Err(RecordError::Empty),
            other => return Err(RecordError::Format(other)),
        }
        if Mac::from_slice(&bytes[24..]) != Some(mac(key, serial, bytes, counter)) {
            return Err(RecordError::Mac);
        }
        let hotlist = match [bytes[8], bytes[9], bytes[10], bytes[11]] {
            [0, 0, 0, 0] => None,
            date => Some(CardDate::from_bytes(date).ok_or(RecordError::Malformed)?),
        };
        let three = |at: usize| u32::from_be_bytes([0, bytes[at], bytes[at + 1], bytes[at + 2]]);
        Ok(Self {
            day: BusinessDay(three(1) as i32),
            spent_fen: three(4),
            taps: bytes[7],
            hotlist,
            terminal: TerminalNumber(bytes[12..18].try_into().expect("6 bytes are 6 bytes")),
            node: NodeId(u16::from_be_bytes([bytes[18], bytes[19]])),
        })
    }
}

fn mac(key: &RecordKey, serial: CardSerial, bytes: &[u8; RECORD_BYTES], counter: Counter) -> Mac {
    let mac = cmac(key.bytes(), &[serial.as_ref(), &bytes[..24], &counter.0.to_be_bytes()]);
    Mac::from_slice(&mac[..8]).expect("8 bytes are a MAC")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: BusinessDay = BusinessDay(20_697);

    fn key() -> RecordKey {
        RecordKey::from([7; 16])
    }

    fn serial() -> CardSerial {
        "31000000202600012345".parse().unwrap()
    }

    fn terminal() -> TerminalNumber {
        "000000000117".parse().unwrap()
    }

    fn record() -> CardRecord {
        CardRecord::after(None, DAY, 1_250, "20260831".parse().ok(), terminal(), NodeId(3))
    }

    #[test]
    fn a_record_is_believed_from_its_card_at_its_counter_only() {
        let bytes = record().seal(&key(), serial(), Counter(0x2A)).unwrap();
        assert_eq!(CardRecord::open(&bytes, &key(), serial(), Counter(0x2A)), Ok(record()));
        let other: CardSerial = "31000000202600012346".parse().unwrap();
        assert_eq!(CardRecord::open(&bytes, &key(), other, Counter(0x2A)), Err(RecordError::Mac));
        // Put back after a later purchase.
        assert_eq!(CardRecord::open(&bytes, &key(), serial(), Counter(0x2B)), Err(RecordError::Mac));
        assert_eq!(
            CardRecord::open(&bytes, &RecordKey::from([8; 16]), serial(), Counter(0x2A)),
            Err(RecordError::Mac)
        );
        for at in 1..RECORD_BYTES {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert_eq!(
                CardRecord::open(&changed, &key(), serial(), Counter(0x2A)),
                Err(RecordError::Mac),
                "{at}"
            );
        }
        assert_eq!(CardRecord::open(&[0; 32], &key(), serial(), Counter(0)), Err(RecordError::Empty));
        assert_eq!(CardRecord::open(&[2; 32], &key(), serial(), Counter(0)), Err(RecordError::Format(2)));
        assert_eq!(
            CardRecord::open(&bytes[..31], &key(), serial(), Counter(0x2A)),
            Err(RecordError::Malformed)
        );
    }

    #[test]
    fn spending_adds_up_within_a_day_and_never_shrinks_by_a_slow_clock() {
        let second =
            CardRecord::after(Some(&record()), DAY, 750, "20260830".parse().ok(), terminal(), NodeId(4));
        assert_eq!((second.spent_fen, second.taps, second.node), (2_000, 2, NodeId(4)));
        assert_eq!(second.hotlist, "20260831".parse().ok());
        let yesterday =
            CardRecord::after(Some(&second), BusinessDay(DAY.0 - 1), 100, None, terminal(), NodeId(3));
        assert_eq!((yesterday.day, yesterday.spent_fen, yesterday.taps), (DAY, 2_100, 3));
        let tomorrow = CardRecord::after(Some(&second), DAY.next(), 100, None, terminal(), NodeId(3));
        assert_eq!((tomorrow.day, tomorrow.spent_fen, tomorrow.taps), (DAY.next(), 100, 1));
        let most = CardRecord { spent_fen: THREE_BYTES_MAX, taps: 255, ..second };
        let more = CardRecord::after(Some(&most), DAY, 100, None, terminal(), NodeId(3));
        assert_eq!((more.spent_fen, more.taps), (THREE_BYTES_MAX, 255));
        assert_eq!(CardRecord { day: BusinessDay(-1), ..more }.seal(&key(), serial(), Counter(1)), None);
    }
}
