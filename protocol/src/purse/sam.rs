//! The SAM (PSAM): who holds the purchase master key at a terminal, and numbers its purchases.
//!
//! It holds no other key: with a stolen SAM one makes cards that pay at terminals, not TACs that the centre takes.

use super::apdu::SamBegun;
use super::journal::JournalEntry;
use super::key::{Algorithm, MacKey, MasterKey, Purpose};
use super::mac::Terms;
use super::values::{
    CardSerial, CardTime, Counter, Kind, Mac, PurseFen, Random, TerminalNumber, TerminalSequence,
};

/// A purchase that a SAM is to make MAC1 for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SamRequest {
    /// The card.
    pub serial: CardSerial,
    /// How its MACs are computed.
    pub algorithm: Algorithm,
    /// What the card calls that.
    pub algorithm_id: u8,
    /// The card's version of the purchase key.
    pub key_version: u8,
    /// Plain or compound purchase.
    pub kind: Kind,
    /// Fen.
    pub amount: PurseFen,
    /// The terminal's time.
    pub time: CardTime,
    /// The card's balance before.
    pub balance_before: PurseFen,
    /// The card's offline counter before.
    pub counter: Counter,
    /// The card's random number.
    pub random: Random,
}

impl SamRequest {
    /// Everything that the MACs bind, once the SAM has given its number.
    pub const fn terms(&self, terminal: TerminalNumber, sequence: TerminalSequence) -> Terms {
        Terms {
            kind: self.kind,
            amount: self.amount,
            terminal,
            sequence,
            time: self.time,
            balance_before: self.balance_before,
            counter: self.counter,
            random: self.random,
        }
    }
}

/// What a SAM says of a MAC2.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MacCheck {
    /// The card is genuine and did it.
    Right,
    /// It is not.
    Wrong,
    /// The SAM no longer knows that purchase.
    Forgotten,
}

/// Why a SAM makes no MAC1, or checks no MAC2.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SamError {
    /// An algorithm that this SAM does not have.
    #[error("the SAM has no algorithm {0:02x}")]
    Algorithm(u8),
    /// A key version that this SAM does not have.
    #[error("the SAM has no purchase key of version {0}")]
    KeyVersion(u8),
    /// All 2^32 numbers are used up.
    #[error("the SAM has numbered its last purchase")]
    Exhausted,
    /// The device failed, or answered what it may not.
    #[error("the SAM failed: {0}")]
    Device(String),
}

/// Makes MAC1 and checks MAC2 of a terminal's purchases.
pub trait Sam {
    /// The terminal whose number this SAM carries.
    fn terminal(&self) -> TerminalNumber;

    /// Numbers a purchase and makes its MAC1.
    ///
    /// # Errors
    /// [`SamError`].
    fn begin(&mut self, request: &SamRequest) -> Result<SamBegun, SamError>;

    /// Checks a MAC2 of the purchase of `entry`.
    ///
    /// # Errors
    /// [`SamError`].
    fn check(&mut self, entry: &JournalEntry, mac2: Mac) -> Result<MacCheck, SamError>;
}

/// A SAM in software: the master key in this process. It forgets no purchase, since it can compute each again.
#[derive(Clone, Debug)]
pub struct SoftSam {
    terminal: TerminalNumber,
    master: MasterKey,
    key_version: u8,
    next: Option<TerminalSequence>,
}

impl SoftSam {
    /// `last` is the highest number of a purchase in the terminal's journal: what was numbered and not written there was never
    /// sent to a card, so that its number is free.
    pub fn new(
        terminal: TerminalNumber,
        master: MasterKey,
        key_version: u8,
        last: Option<TerminalSequence>,
    ) -> Self {
        let next = last.map_or(Some(TerminalSequence(1)), |last| last.0.checked_add(1).map(TerminalSequence));
        Self { terminal, master, key_version, next }
    }

    fn session(&self, serial: CardSerial, algorithm: Algorithm, terms: &Terms) -> MacKey {
        let key = self.master.diversify(algorithm, serial, Purpose::Purchase);
        terms.session_key(algorithm, &key)
    }

    const fn has(&self, key_version: u8) -> Result<(), SamError> {
        if key_version == self.key_version { Ok(()) } else { Err(SamError::KeyVersion(key_version)) }
    }
}

impl Sam for SoftSam {
    fn terminal(&self) -> TerminalNumber {
        self.terminal
    }

    fn begin(&mut self, request: &SamRequest) -> Result<SamBegun, SamError> {
        self.has(request.key_version)?;
        let sequence = self.next.ok_or(SamError::Exhausted)?;
        let terms = request.terms(self.terminal, sequence);
        let mac1 = terms.mac1(&self.session(request.serial, request.algorithm, &terms));
        self.next = sequence.0.checked_add(1).map(TerminalSequence);
        Ok(SamBegun { sequence, mac1 })
    }

    fn check(&mut self, entry: &JournalEntry, mac2: Mac) -> Result<MacCheck, SamError> {
        self.has(entry.key_version)?;
        let right = entry.terms.mac2(&self.session(entry.serial, entry.algorithm, &entry.terms));
        Ok(if mac2 == right { MacCheck::Right } else { MacCheck::Wrong })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> SamRequest {
        SamRequest {
            serial: "31000000202600012345".parse().unwrap(),
            algorithm: Algorithm::Des,
            algorithm_id: 0,
            key_version: 1,
            kind: Kind::Purchase,
            amount: PurseFen::new(1_250).unwrap(),
            time: "20260901121533".parse().unwrap(),
            balance_before: PurseFen::new(5_150).unwrap(),
            counter: Counter(0x29),
            random: "5d08f3a6".parse().unwrap(),
        }
    }

    fn sam(last: u32) -> SoftSam {
        let master = "a1b2c3d4e5f60718293a4b5c6d7e8f90".parse().unwrap();
        SoftSam::new("000000000117".parse().unwrap(), master, 1, Some(TerminalSequence(last)))
    }

    #[test]
    fn a_soft_sam_does_what_the_example_sam_did() {
        let mut sam = sam(0x1A2B2);
        let begun = sam.begin(&request()).unwrap();
        assert_eq!(begun.sequence, TerminalSequence(0x1A2B3));
        assert_eq!(begun.mac1.to_string(), "28d69d85");
        let terms = request().terms(sam.terminal(), begun.sequence);
        let entry = JournalEntry {
            serial: request().serial,
            algorithm: Algorithm::Des,
            key_version: 1,
            terms,
            mac: begun.mac1,
        };
        // Long after, and after others.
        sam.begin(&request()).unwrap();
        assert_eq!(sam.check(&entry, "9c4c21d9".parse().unwrap()), Ok(MacCheck::Right));
        assert_eq!(sam.check(&entry, "9c4c21d8".parse().unwrap()), Ok(MacCheck::Wrong));
    }

    #[test]
    fn a_sam_says_what_it_cannot() {
        let other = SamRequest { key_version: 2, ..request() };
        assert_eq!(sam(1).begin(&other), Err(SamError::KeyVersion(2)));
        let mut last = sam(u32::MAX - 1);
        assert_eq!(last.begin(&request()).unwrap().sequence, TerminalSequence(u32::MAX));
        assert_eq!(last.begin(&request()), Err(SamError::Exhausted));
    }
}
