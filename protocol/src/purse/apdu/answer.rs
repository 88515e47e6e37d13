//! What cards and SAMs answer.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::purse::key::Algorithm;
use crate::purse::status::StatusWord;
use crate::purse::values::{Counter, Mac, Overdraft, PurseFen, Random, TerminalSequence};

/// Longest answer in short form: 256 bytes and the status word.
pub const ANSWER_BYTES_MAX: usize = 258;

/// Why bytes are not the answer that was due.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AnswerError {
    /// A status word that says no.
    #[error("the card says: {0}")]
    Status(StatusWord),
    /// Too short for a status word, of no such class, or not as long as it must be: what became of the command is not known.
    #[error("{got} bytes where an answer of {expected} was due")]
    Malformed {
        /// Bytes due, status word included.
        expected: usize,
        /// Bytes received.
        got: usize,
    },
}

/// The data of an answer, which must be `length` bytes long.
///
/// # Errors
/// [`AnswerError`]. A link that drops in the middle of a command looks like an empty or a short answer.
pub fn data(answer: &[u8], length: usize) -> Result<&[u8], AnswerError> {
    let malformed = AnswerError::Malformed { expected: length + 2, got: answer.len() };
    let (status, data) = split_answer(answer).ok_or(malformed)?;
    match status {
        StatusWord::Done if data.len() == length => Ok(data),
        StatusWord::Done => Err(malformed),
        _ if data.is_empty() => Err(AnswerError::Status(status)),
        _ => Err(malformed),
    }
}

/// Status word and data of an answer; `None` where it is too short or too long, or has no status word of ISO 7816-4 (6xxx, 9xxx).
pub fn split_answer(answer: &[u8]) -> Option<(StatusWord, &[u8])> {
    let (data, word) = answer.split_last_chunk::<2>()?;
    let fits = answer.len() <= ANSWER_BYTES_MAX && matches!(word[0] >> 4, 6 | 9);
    fits.then(|| (StatusWord::from_u16(u16::from_be_bytes(*word)), data))
}

/// An answer: data, then the status word.
pub fn answer(status: StatusWord, data: &[u8]) -> Vec<u8> {
    [data, &status.to_u16().to_be_bytes()].concat()
}

/// What a card answers to INITIALIZE FOR LOAD.
#[derive(Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct LoadBegun {
    /// The balance before.
    #[n(0)]
    pub balance: PurseFen,
    /// The online counter before.
    #[n(1)]
    pub counter: Counter,
    /// Version of the load key.
    #[n(2)]
    pub key_version: u8,
    /// The card's algorithm id.
    #[n(3)]
    pub algorithm_id: u8,
    /// Random number.
    #[n(4)]
    pub random: Random,
    /// The card's MAC1.
    #[n(5)]
    pub mac1: Mac,
}

/// What a card answers to INITIALIZE FOR PURCHASE.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PurchaseBegun {
    /// The balance before, overdraft limit included.
    pub balance: PurseFen,
    /// The offline counter before.
    pub counter: Counter,
    /// Overdraft limit.
    pub overdraft: Overdraft,
    /// Version of the purchase key.
    pub key_version: u8,
    /// The card's algorithm id.
    pub algorithm_id: u8,
    /// Random number.
    pub random: Random,
}

/// What a SAM answers to INIT_SAM_FOR_PURCHASE.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SamBegun {
    /// The number that it gives the purchase.
    pub sequence: TerminalSequence,
    /// MAC1.
    pub mac1: Mac,
}

/// MAC2 and TAC of a purchase. DEBIT answers the TAC first, GET TRANSACTION PROVE the MAC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Proof {
    /// MAC2.
    pub mac: Mac,
    /// TAC.
    pub tac: Mac,
}

impl LoadBegun {
    /// # Errors
    /// [`AnswerError`], also for a balance that no purse holds.
    pub fn decode(bytes: &[u8], algorithm: Algorithm) -> Result<Self, AnswerError> {
        let width = algorithm.mac_bytes();
        let data = data(bytes, 8 + 2 * width)?;
        let malformed = AnswerError::Malformed { expected: 10 + 2 * width, got: bytes.len() };
        Ok(Self {
            balance: balance(data).ok_or(malformed)?,
            counter: Counter(u16::from_be_bytes([data[4], data[5]])),
            key_version: data[6],
            algorithm_id: data[7],
            random: Random::from_slice(&data[8..8 + width]).expect("of the length of a MAC"),
            mac1: Mac::from_slice(&data[8 + width..]).expect("of the length of a MAC"),
        })
    }

    /// As a card answers.
    pub fn encode(&self) -> Vec<u8> {
        let (balance, counter) = (self.balance.to_bytes(), self.counter.0.to_be_bytes());
        let ids = [self.key_version, self.algorithm_id];
        answer(
            StatusWord::Done,
            &[&balance[..], &counter, &ids, self.random.as_ref(), self.mac1.as_ref()].concat(),
        )
    }
}

impl PurchaseBegun {
    /// # Errors
    /// [`AnswerError`], also for a balance that no purse holds.
    pub fn decode(bytes: &[u8], algorithm: Algorithm) -> Result<Self, AnswerError> {
        let width = algorithm.mac_bytes();
        let data = data(bytes, 11 + width)?;
        let malformed = AnswerError::Malformed { expected: 13 + width, got: bytes.len() };
        Ok(Self {
            balance: balance(data).ok_or(malformed)?,
            counter: Counter(u16::from_be_bytes([data[4], data[5]])),
            overdraft: Overdraft([data[6], data[7], data[8]]),
            key_version: data[9],
            algorithm_id: data[10],
            random: Random::from_slice(&data[11..]).expect("of the length of a MAC"),
        })
    }

    /// As a card answers.
    pub fn encode(&self) -> Vec<u8> {
        let (balance, counter) = (self.balance.to_bytes(), self.counter.0.to_be_bytes());
        let ids = [self.key_version, self.algorithm_id];
        let parts = [&balance[..], &counter, &self.overdraft.0, &ids, self.random.as_ref()];
        answer(StatusWord::Done, &parts.concat())
    }
}

impl SamBegun {
    /// # Errors
    /// [`AnswerError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, AnswerError> {
        let data = data(bytes, 8)?;
        let sequence = TerminalSequence(u32::from_be_bytes([data[0], data[1], data[2], data[3]]));
        Ok(Self { sequence, mac1: Mac::from_slice(&data[4..]).expect("4 bytes are a MAC") })
    }

    /// As a SAM answers.
    pub fn encode(&self) -> Vec<u8> {
        answer(StatusWord::Done, &[&self.sequence.0.to_be_bytes()[..], self.mac1.as_ref()].concat())
    }
}

impl Proof {
    /// Of DEBIT FOR PURCHASE: TAC, then MAC2.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn decode_debit(bytes: &[u8], algorithm: Algorithm) -> Result<Self, AnswerError> {
        let (tac, mac) = Self::halves(bytes, algorithm)?;
        Ok(Self { mac, tac })
    }

    /// Of GET TRANSACTION PROVE: MAC, then TAC.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn decode_prove(bytes: &[u8], algorithm: Algorithm) -> Result<Self, AnswerError> {
        let (mac, tac) = Self::halves(bytes, algorithm)?;
        Ok(Self { mac, tac })
    }

    /// As a card answers DEBIT FOR PURCHASE.
    pub fn encode_debit(&self) -> Vec<u8> {
        answer(StatusWord::Done, &[self.tac.as_ref(), self.mac.as_ref()].concat())
    }

    /// As a card answers GET TRANSACTION PROVE.
    pub fn encode_prove(&self) -> Vec<u8> {
        answer(StatusWord::Done, &[self.mac.as_ref(), self.tac.as_ref()].concat())
    }

    fn halves(bytes: &[u8], algorithm: Algorithm) -> Result<(Mac, Mac), AnswerError> {
        let width = algorithm.mac_bytes();
        let (first, second) = data(bytes, 2 * width)?.split_at(width);
        let mac = |half| Mac::from_slice(half).expect("of the length of a MAC");
        Ok((mac(first), mac(second)))
    }
}

/// The TAC that CREDIT FOR LOAD answers.
///
/// # Errors
/// [`AnswerError`].
pub fn tac(bytes: &[u8], algorithm: Algorithm) -> Result<Mac, AnswerError> {
    data(bytes, algorithm.mac_bytes()).map(|data| Mac::from_slice(data).expect("of the length of a MAC"))
}

/// The 4 bytes that begin an answer as a balance.
fn balance(data: &[u8]) -> Option<PurseFen> {
    data.first_chunk().copied().and_then(PurseFen::from_bytes)
}
