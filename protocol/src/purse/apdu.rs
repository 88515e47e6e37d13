//! Commands to the card and its answers, as bytes.
//!
//! | command | bytes | answer |
//! |---|---|---|
//! | SELECT by name, by id | `00A40400 Lc name`, `00A40000 02 fid` | FCI |
//! | READ BINARY, READ RECORD | `00B0 80+SFI offset Le`, `00B2 number SFI<<3+4 Le` | data |
//! | UPDATE BINARY | `00D6 80+SFI offset Lc data` | - |
//! | VERIFY PIN | `002000 kid Lc pin` | - |
//! | GET BALANCE | `805C0002 04` | balance 4 |
//! | INITIALIZE FOR LOAD | `80500002 0B` kid 1, amount 4, terminal 6, Le | [`LoadBegun`] |
//! | CREDIT FOR LOAD | `80520000 Lc` date 4, time 3, MAC2, Le | TAC |
//! | INITIALIZE FOR PURCHASE | `80500102 0B` (compound: `80500302 0B`) kid 1, amount 4, terminal 6, Le | [`PurchaseBegun`] |
//! | UPDATE CAPP DATA CACHE | `80DC number SFI<<3 Lc record` | - |
//! | DEBIT FOR PURCHASE | `80540100 Lc` sequence 4, date 4, time 3, MAC1, Le | TAC, MAC2 |
//! | GET TRANSACTION PROVE | `805A00 type 02` counter 2, Le | MAC, TAC |
//! | INIT_SAM_FOR_PURCHASE | `80700000 1C` to a SAM, one factor | [`SamBegun`] |
//! | CREDIT_SAM_FOR_PURCHASE | `80720000 04` MAC2, to a SAM | - |
//!
//! MACs and random numbers have 4 bytes in algorithm 00 and 8 in 11; lengths follow.

mod answer;

pub use self::answer::{
    ANSWER_BYTES_MAX, AnswerError, LoadBegun, Proof, PurchaseBegun, SamBegun, answer, data, split_answer, tac,
};
use super::key::Algorithm;
use super::status::StatusWord;
use super::values::{CardTime, Counter, Kind, Mac, PurseFen, Random, TerminalNumber, TerminalSequence};

/// Longest command of ISO 7816-4 in short form: header, Lc, 255 bytes, Le.
pub const COMMAND_BYTES_MAX: usize = 261;

/// Longest application name (ISO 7816-4: 5 to 16 bytes).
pub const APPLICATION_NAME_BYTES_MAX: usize = 16;

/// A command to a card or a SAM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// Selects the application of this name, 5 to 16 bytes.
    SelectName(Vec<u8>),
    /// Selects the file of this id.
    SelectFile(u16),
    /// Reads `length` bytes of the binary file `sfi` (1 to 30) from `offset` on.
    ReadBinary {
        /// Short file identifier.
        sfi: u8,
        /// First byte.
        offset: u8,
        /// Bytes; 0 stands for 256.
        length: u8,
    },
    /// Writes into the binary file `sfi` from `offset` on; 1 to 255 bytes.
    UpdateBinary {
        /// Short file identifier.
        sfi: u8,
        /// First byte.
        offset: u8,
        /// What to write.
        data: Vec<u8>,
    },
    /// Reads record `number` (from 1, the newest first in a cyclic file) of file `sfi`.
    ReadRecord {
        /// Short file identifier.
        sfi: u8,
        /// Record.
        number: u8,
        /// Bytes; 0 stands for 256.
        length: u8,
    },
    /// Verifies the holder's card PIN, 2 to 6 bytes of BCD.
    VerifyPin {
        /// Key index of the PIN.
        key: u8,
        /// The PIN.
        pin: Vec<u8>,
    },
    /// Asks for the balance of the purse.
    Balance,
    /// Begins a load.
    BeginLoad {
        /// Key index.
        key: u8,
        /// Fen.
        amount: PurseFen,
        /// Where.
        terminal: TerminalNumber,
        /// Expected.
        algorithm: Algorithm,
    },
    /// Carries a load out.
    CreditForLoad {
        /// The centre's.
        time: CardTime,
        /// The centre's MAC2.
        mac2: Mac,
    },
    /// Begins a purchase, or a compound one.
    BeginPurchase {
        /// Key index.
        key: u8,
        /// Fen.
        amount: PurseFen,
        /// Where.
        terminal: TerminalNumber,
        /// True for a compound purchase.
        compound: bool,
        /// Expected.
        algorithm: Algorithm,
    },
    /// Puts a record into the cache of a compound purchase, which its debit commits.
    CacheRecord {
        /// Record.
        number: u8,
        /// Short file identifier.
        sfi: u8,
        /// The record.
        data: Vec<u8>,
    },
    /// Carries a purchase out.
    DebitForPurchase {
        /// Number at the terminal.
        sequence: TerminalSequence,
        /// The terminal's.
        time: CardTime,
        /// The SAM's MAC1.
        mac1: Mac,
    },
    /// Asks for MAC and TAC of the newest transaction again.
    Prove {
        /// Its kind.
        kind: Kind,
        /// The counter after it.
        counter: Counter,
        /// Expected.
        algorithm: Algorithm,
    },
    /// Asks a SAM for MAC1 of a purchase.
    SamBeginPurchase(SamTerms),
    /// Has a SAM check MAC2.
    SamCheck(Mac),
}

/// What a SAM is told of a purchase (algorithm 00, one level of diversification).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SamTerms {
    /// The card's.
    pub random: Random,
    /// The card's, before.
    pub counter: Counter,
    /// Fen.
    pub amount: PurseFen,
    /// Plain or compound.
    pub kind: Kind,
    /// The terminal's.
    pub time: CardTime,
    /// The card's key version.
    pub key_version: u8,
    /// The card's algorithm id.
    pub algorithm_id: u8,
    /// Right 8 bytes of the serial.
    pub factor: [u8; 8],
}

/// Bytes that are no command that is known here. A card answers with [`CommandError::status`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct CommandError(StatusWord);

impl CommandError {
    /// The status word that says it.
    pub const fn status(self) -> StatusWord {
        self.0
    }
}

/// Le of an answer of algorithm 00's `short` bytes that has `macs` MACs or random numbers.
const fn le(algorithm: Algorithm, rest: usize, macs: usize) -> u8 {
    (rest + macs * algorithm.mac_bytes()) as u8
}

impl Command {
    /// As sent.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::SelectName(name) => frame([0x00, 0xA4, 0x04, 0x00], &[name], Some(0)),
            Self::SelectFile(file) => frame([0x00, 0xA4, 0x00, 0x00], &[&file.to_be_bytes()], Some(0)),
            Self::ReadBinary { sfi, offset, length } => {
                frame([0x00, 0xB0, 0x80 | (sfi & 0x1F), *offset], &[], Some(*length))
            }
            Self::UpdateBinary { sfi, offset, data } => {
                frame([0x00, 0xD6, 0x80 | (sfi & 0x1F), *offset], &[data], None)
            }
            Self::ReadRecord { sfi, number, length } => {
                frame([0x00, 0xB2, *number, ((sfi & 0x1F) << 3) | 4], &[], Some(*length))
            }
            Self::VerifyPin { key, pin } => frame([0x00, 0x20, 0x00, *key], &[pin], None),
            Self::Balance => frame([0x80, 0x5C, 0x00, 0x02], &[], Some(4)),
            Self::BeginLoad { key, amount, terminal, algorithm } => {
                let data: [&[u8]; 3] = [&[*key], &amount.to_bytes(), terminal.as_ref()];
                frame([0x80, 0x50, 0x00, 0x02], &data, Some(le(*algorithm, 8, 2)))
            }
            Self::CreditForLoad { time, mac2 } => {
                let length = mac2.as_ref().len() as u8;
                frame([0x80, 0x52, 0x00, 0x00], &[time.as_ref(), mac2.as_ref()], Some(length))
            }
            Self::BeginPurchase { key, amount, terminal, compound, algorithm } => {
                let p1 = if *compound { 0x03 } else { 0x01 };
                let data: [&[u8]; 3] = [&[*key], &amount.to_bytes(), terminal.as_ref()];
                frame([0x80, 0x50, p1, 0x02], &data, Some(le(*algorithm, 11, 1)))
            }
            Self::CacheRecord { number, sfi, data } => {
                frame([0x80, 0xDC, *number, (sfi & 0x1F) << 3], &[data], None)
            }
            Self::DebitForPurchase { sequence, time, mac1 } => {
                let data: [&[u8]; 3] = [&sequence.0.to_be_bytes(), time.as_ref(), mac1.as_ref()];
                frame([0x80, 0x54, 0x01, 0x00], &data, Some(2 * mac1.as_ref().len() as u8))
            }
            Self::Prove { kind, counter, algorithm } => frame(
                [0x80, 0x5A, 0x00, kind.code()],
                &[&counter.0.to_be_bytes()],
                Some(le(*algorithm, 0, 2)),
            ),
            Self::SamBeginPurchase(terms) => {
                let data: [&[u8]; 7] = [
                    terms.random.as_ref(),
                    &terms.counter.0.to_be_bytes(),
                    &terms.amount.to_bytes(),
                    &[terms.kind.code()],
                    terms.time.as_ref(),
                    &[terms.key_version, terms.algorithm_id],
                    &terms.factor,
                ];
                frame([0x80, 0x70, 0x00, 0x00], &data, Some(8))
            }
            Self::SamCheck(mac2) => frame([0x80, 0x72, 0x00, 0x00], &[mac2.as_ref()], None),
        }
    }

    /// As a card or a SAM takes it. Le may be absent, and is not judged.
    ///
    /// # Errors
    /// [`CommandError`]: no command of the purse, or not its length.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        let fail = |status| Err(CommandError(status));
        let Some((&[class, instruction, p1, p2], body)) = bytes.split_first_chunk::<4>() else {
            return fail(StatusWord::Length);
        };
        let Some((data, le)) = split_body(body) else {
            return fail(StatusWord::Length);
        };
        // Lengths of data that are right for algorithm 00 and for 11.
        let sized = |short: usize, long: usize| data.len() == short || data.len() == long;
        let length = StatusWord::Length;
        match (class, instruction) {
            (0x00, 0xA4) => match (p1, p2, data) {
                (0x04, 0x00, name) if (5..=APPLICATION_NAME_BYTES_MAX).contains(&name.len()) => {
                    Ok(Self::SelectName(name.to_vec()))
                }
                (0x00, 0x00, &[high, low]) => Ok(Self::SelectFile(u16::from_be_bytes([high, low]))),
                (0x04 | 0x00, 0x00, _) => fail(length),
                _ => fail(StatusWord::Parameters),
            },
            (0x00, 0xB0) if p1 & 0xE0 == 0x80 && p1 != 0x80 => {
                Ok(Self::ReadBinary { sfi: p1 & 0x1F, offset: p2, length: le.unwrap_or(0) })
            }
            (0x00, 0xD6) if p1 & 0xE0 == 0x80 && p1 != 0x80 => match data.len() {
                0 => fail(length),
                _ => Ok(Self::UpdateBinary { sfi: p1 & 0x1F, offset: p2, data: data.to_vec() }),
            },
            (0x00, 0xB2) if p2 & 0x07 == 4 && p2 != 4 => {
                Ok(Self::ReadRecord { sfi: p2 >> 3, number: p1, length: le.unwrap_or(0) })
            }
            (0x00, 0x20) if p1 == 0 => match data.len() {
                2..=6 => Ok(Self::VerifyPin { key: p2, pin: data.to_vec() }),
                _ => fail(length),
            },
            (0x80, 0x5C) if (p1, p2) == (0, 2) => Ok(Self::Balance),
            (0x80, 0x50) if matches!(p1, 0 | 1 | 3) && p2 == 2 => {
                let &[key, a, b, c, d, ref terminal @ ..] = data else { return fail(length) };
                let Ok(terminal) = terminal.try_into().map(TerminalNumber) else { return fail(length) };
                let Some(amount) = PurseFen::from_bytes([a, b, c, d]) else {
                    return fail(StatusWord::Data);
                };
                // What a terminal expects shows in Le; a card does not go by it.
                let long = matches!(le, Some(0x13 | 0x18));
                let algorithm = if long { Algorithm::AesCmac } else { Algorithm::Des };
                Ok(match p1 {
                    0 => Self::BeginLoad { key, amount, terminal, algorithm },
                    _ => Self::BeginPurchase { key, amount, terminal, compound: p1 == 3, algorithm },
                })
            }
            (0x80, 0x52) if (p1, p2) == (0, 0) => {
                if !sized(11, 15) {
                    return fail(length);
                }
                match (time(&data[..7]), Mac::from_slice(&data[7..])) {
                    (Some(time), Some(mac2)) => Ok(Self::CreditForLoad { time, mac2 }),
                    _ => fail(StatusWord::Data),
                }
            }
            (0x80, 0xDC) if p2 & 0x07 == 0 && p2 != 0 => match data.len() {
                0 => fail(length),
                _ => Ok(Self::CacheRecord { number: p1, sfi: p2 >> 3, data: data.to_vec() }),
            },
            (0x80, 0x54) if (p1, p2) == (1, 0) => {
                if !sized(15, 19) {
                    return fail(length);
                }
                let sequence = TerminalSequence(u32::from_be_bytes([data[0], data[1], data[2], data[3]]));
                match (time(&data[4..11]), Mac::from_slice(&data[11..])) {
                    (Some(time), Some(mac1)) => Ok(Self::DebitForPurchase { sequence, time, mac1 }),
                    _ => fail(StatusWord::Data),
                }
            }
            (0x80, 0x5A) if p1 == 0 => match (Kind::from_code(p2), data) {
                (Some(kind), &[high, low]) => {
                    let algorithm = if le == Some(0x10) { Algorithm::AesCmac } else { Algorithm::Des };
                    Ok(Self::Prove { kind, counter: Counter(u16::from_be_bytes([high, low])), algorithm })
                }
                (None, _) => fail(StatusWord::Parameters),
                _ => fail(length),
            },
            (0x80, 0x70) if (p1, p2) == (0, 0) => match data.try_into().ok().map(SamTerms::from_bytes) {
                Some(Some(terms)) => Ok(Self::SamBeginPurchase(terms)),
                Some(None) => fail(StatusWord::Data),
                None => fail(length),
            },
            (0x80, 0x72) if (p1, p2) == (0, 0) => match Mac::from_slice(data) {
                Some(mac2) => Ok(Self::SamCheck(mac2)),
                None => fail(length),
            },
            (0x00, 0xB0 | 0xB2 | 0x20) | (0x80, 0x50 | 0x52 | 0x54 | 0x5A | 0x5C | 0x70 | 0x72 | 0xDC) => {
                fail(StatusWord::Parameters)
            }
            (0x00 | 0x80, _) => fail(StatusWord::Instruction),
            _ => fail(StatusWord::Class),
        }
    }
}

impl SamTerms {
    fn from_bytes(bytes: [u8; 28]) -> Option<Self> {
        Some(Self {
            random: Random::from_slice(&bytes[..4])?,
            counter: Counter(u16::from_be_bytes([bytes[4], bytes[5]])),
            amount: PurseFen::from_bytes([bytes[6], bytes[7], bytes[8], bytes[9]])?,
            kind: Kind::from_code(bytes[10])?,
            time: time(&bytes[11..18])?,
            key_version: bytes[18],
            algorithm_id: bytes[19],
            factor: bytes[20..].try_into().ok()?,
        })
    }
}

fn time(bytes: &[u8]) -> Option<CardTime> {
    bytes.try_into().ok().and_then(CardTime::from_bytes)
}

/// Header, then Lc and data where there are any, then Le.
fn frame(header: [u8; 4], parts: &[&[u8]], le: Option<u8>) -> Vec<u8> {
    let data = parts.concat();
    debug_assert!(data.len() <= 255, "a short command carries at most 255 bytes");
    let mut bytes = header.to_vec();
    if !data.is_empty() {
        bytes.push(data.len() as u8);
        bytes.extend_from_slice(&data);
    }
    bytes.extend(le);
    bytes
}

/// Data and Le of what follows a header; `None` where the lengths do not fit.
fn split_body(body: &[u8]) -> Option<(&[u8], Option<u8>)> {
    match body {
        [] => Some((&[], None)),
        &[le] => Some((&[], Some(le))),
        [lc, rest @ ..] => {
            let data = rest.get(..usize::from(*lc))?;
            match &rest[data.len()..] {
                [] => Some((data, None)),
                &[le] => Some((data, Some(le))),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chain::{hex, unhex};

    fn bytes(text: &str) -> Vec<u8> {
        unhex(&text.replace(' ', "").to_lowercase()).unwrap()
    }

    fn fen(fen: u32) -> PurseFen {
        PurseFen::new(fen).unwrap()
    }

    /// A load and a purchase of a card of algorithm 00, byte for byte.
    #[test]
    fn the_example_card_in_bytes() {
        let terminal: TerminalNumber = "000000000117".parse().unwrap();
        let algorithm = Algorithm::Des;
        let begin = Command::BeginLoad { key: 1, amount: fen(5_000), terminal, algorithm };
        assert_eq!(begin.encode(), bytes("805000020B 01 00001388 000000000117 10"));
        let begun =
            LoadBegun::decode(&bytes("00000096 0007 01 00 9C4E21B7 A221CE5F 9000"), algorithm).unwrap();
        let expected = (fen(150), Counter(7), 1, 0, "9c4e21b7".parse().unwrap(), "a221ce5f".parse().unwrap());
        let LoadBegun { balance, counter, key_version, algorithm_id, random, mac1 } = begun;
        assert_eq!((balance, counter, key_version, algorithm_id, random, mac1), expected);
        let credit = Command::CreditForLoad {
            time: "20260901113005".parse().unwrap(),
            mac2: "b85f2237".parse().unwrap(),
        };
        assert_eq!(credit.encode(), bytes("805200000B 20260901 113005 B85F2237 04"));
        assert_eq!(tac(&bytes("2E731EC0 9000"), algorithm).unwrap().to_string(), "2e731ec0");

        let begin =
            Command::BeginPurchase { key: 1, amount: fen(1_250), terminal, compound: false, algorithm };
        assert_eq!(begin.encode(), bytes("805001020B 01 000004E2 000000000117 0F"));
        let begun = bytes("0000141E 0029 000000 01 00 5D08F3A6 9000");
        let begun = PurchaseBegun::decode(&begun, algorithm).unwrap();
        assert_eq!((begun.balance, begun.counter, begun.overdraft.get()), (fen(5_150), Counter(0x29), 0));
        let time = "20260901121533".parse().unwrap();
        let sam = Command::SamBeginPurchase(SamTerms {
            random: begun.random,
            counter: begun.counter,
            amount: fen(1_250),
            kind: Kind::Purchase,
            time,
            key_version: 1,
            algorithm_id: 0,
            factor: bytes("0000202600012345").try_into().unwrap(),
        });
        let expected = "807000001C 5D08F3A6 0029 000004E2 06 20260901121533 01 00 0000202600012345 08";
        assert_eq!(sam.encode(), bytes(expected));
        let begun = SamBegun::decode(&bytes("0001A2B3 28D69D85 9000")).unwrap();
        let debit = Command::DebitForPurchase { sequence: begun.sequence, time, mac1: begun.mac1 };
        assert_eq!(debit.encode(), bytes("805401000F 0001A2B3 20260901 121533 28D69D85 08"));
        let debited = Proof::decode_debit(&bytes("C1AF23CD 9C4C21D9 9000"), algorithm).unwrap();
        let prove = Command::Prove { kind: Kind::Purchase, counter: Counter(0x2A), algorithm };
        assert_eq!(prove.encode(), bytes("805A000602 002A 08"));
        let proved = Proof::decode_prove(&bytes("9C4C21D9 C1AF23CD 9000"), algorithm).unwrap();
        assert_eq!(proved, debited);
        assert_eq!(proved.tac.to_string(), "c1af23cd");
    }

    #[test]
    fn reads_and_selects_in_bytes() {
        let card = Command::ReadBinary { sfi: 0x15, offset: 0, length: 0x1E };
        assert_eq!(hex(&card.encode()), "00b095001e");
        let log = Command::ReadRecord { sfi: 0x18, number: 1, length: 0x17 };
        assert_eq!(hex(&log.encode()), "00b201c417");
        assert_eq!(hex(&Command::Balance.encode()), "805c000204");
        let pin = Command::VerifyPin { key: 0, pin: vec![0x12, 0x34, 0x56] };
        assert_eq!(hex(&pin.encode()), "0020000003123456");
        assert_eq!(hex(&Command::SelectFile(0x3F00).encode()), "00a40000023f0000");
        let update = Command::UpdateBinary { sfi: 0x1A, offset: 0, data: vec![0, 2, 0xA0, 0xA1] };
        assert_eq!(hex(&update.encode()), "00d69a00040002a0a1");
        assert_eq!(Command::decode(&update.encode()), Ok(update));
    }

    #[test]
    fn an_answer_that_was_cut_is_malformed_and_never_done() {
        let whole = bytes("C1AF23CD 9C4C21D9 9000");
        for cut in 0..whole.len() {
            let cut = Proof::decode_debit(&whole[..cut], Algorithm::Des);
            assert!(matches!(cut, Err(AnswerError::Malformed { expected: 10, .. })), "{cut:?}");
        }
        // Data with an error, data of the other algorithm, and what is no status word.
        for bad in ["C1AF23CD 9302", "C1AF23CD9C4C21D9 C1AF23CD9C4C21D9 9000", "1234", "9000"] {
            let bad = Proof::decode_debit(&bytes(bad), Algorithm::Des);
            assert!(matches!(bad, Err(AnswerError::Malformed { .. })), "{bad:?}");
        }
        let refused = Proof::decode_debit(&bytes("9302"), Algorithm::Des);
        assert_eq!(refused, Err(AnswerError::Status(StatusWord::WrongMac)));
    }

    #[test]
    fn a_wrong_command_is_named_by_its_status_word() {
        for (command, status) in [
            ("80", StatusWord::Length),
            ("8050", StatusWord::Length),
            ("805001020B0100", StatusWord::Length),
            ("805001020A 01000004E2 0000000001 0F", StatusWord::Length),
            ("805001020B 01FFFFFFFF 000000000117 0F", StatusWord::Data),
            ("805009020B 01000004E2 000000000117 0F", StatusWord::Parameters),
            ("805401000F 0001A2B3 20261301 121533 28D69D85 08", StatusWord::Data),
            ("805401000E 0001A2B3 20260901 121533 28D69D 08", StatusWord::Length),
            ("80FF0000", StatusWord::Instruction),
            ("90500102", StatusWord::Class),
            ("00A40200 02 3F00", StatusWord::Parameters),
        ] {
            assert_eq!(Command::decode(&bytes(command)).unwrap_err().status(), status, "{command}");
        }
    }

    fn command() -> impl Strategy<Value = Command> {
        let algorithm = || prop_oneof![Just(Algorithm::Des), Just(Algorithm::AesCmac)];
        let amount = || (0..=10_000_000_u32).prop_map(fen);
        let terminal = || any::<[u8; 6]>().prop_map(TerminalNumber);
        let time = || {
            (0..4_000_000_000_i64)
                .prop_map(|second| CardTime::at(crate::time::Timestamp(second * 1_000), 480).unwrap())
        };
        let mac = || {
            prop_oneof![
                any::<[u8; 4]>().prop_map(|mac| mac.to_vec()),
                any::<[u8; 8]>().prop_map(|mac| mac.to_vec())
            ]
            .prop_map(|mac| Mac::from_slice(&mac).unwrap())
        };
        let kind = || prop_oneof![Just(Kind::Load), Just(Kind::Purchase), Just(Kind::Compound)];
        prop_oneof![
            prop::collection::vec(any::<u8>(), 5..=16).prop_map(Command::SelectName),
            any::<u16>().prop_map(Command::SelectFile),
            (1..31_u8, any::<u8>(), any::<u8>()).prop_map(|(sfi, offset, length)| Command::ReadBinary {
                sfi,
                offset,
                length
            }),
            (1..31_u8, any::<u8>(), any::<u8>()).prop_map(|(sfi, number, length)| Command::ReadRecord {
                sfi,
                number,
                length
            }),
            (any::<u8>(), prop::collection::vec(any::<u8>(), 2..=6))
                .prop_map(|(key, pin)| Command::VerifyPin { key, pin }),
            (any::<u8>(), amount(), terminal(), algorithm()).prop_map(
                |(key, amount, terminal, algorithm)| Command::BeginLoad { key, amount, terminal, algorithm }
            ),
            (time(), mac()).prop_map(|(time, mac2)| Command::CreditForLoad { time, mac2 }),
            (any::<u8>(), amount(), terminal(), any::<bool>(), algorithm()).prop_map(
                |(key, amount, terminal, compound, algorithm)| Command::BeginPurchase {
                    key,
                    amount,
                    terminal,
                    compound,
                    algorithm
                }
            ),
            (any::<u8>(), 1..31_u8, prop::collection::vec(any::<u8>(), 1..=255))
                .prop_map(|(number, sfi, data)| Command::CacheRecord { number, sfi, data }),
            (any::<u32>(), time(), mac()).prop_map(|(sequence, time, mac1)| Command::DebitForPurchase {
                sequence: TerminalSequence(sequence),
                time,
                mac1
            }),
            (kind(), any::<u16>(), algorithm()).prop_map(|(kind, counter, algorithm)| Command::Prove {
                kind,
                counter: Counter(counter),
                algorithm
            }),
            mac().prop_map(Command::SamCheck),
        ]
    }

    proptest! {
        #[test]
        fn commands_round_trip(command in command()) {
            let bytes = command.encode();
            prop_assert!(bytes.len() <= COMMAND_BYTES_MAX);
            prop_assert_eq!(Command::decode(&bytes), Ok(command));
        }

        #[test]
        fn any_bytes_are_a_command_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(command) = Command::decode(&bytes) {
                prop_assert_eq!(Command::decode(&command.encode()), Ok(command));
            }
        }

        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for algorithm in [Algorithm::Des, Algorithm::AesCmac] {
                if let Ok(begun) = LoadBegun::decode(&bytes, algorithm) {
                    prop_assert_eq!(&begun.encode(), &bytes);
                }
                if let Ok(begun) = PurchaseBegun::decode(&bytes, algorithm) {
                    prop_assert_eq!(&begun.encode(), &bytes);
                }
                if let Ok(proof) = Proof::decode_debit(&bytes, algorithm) {
                    prop_assert_eq!(&proof.encode_debit(), &bytes);
                }
                let _ = tac(&bytes, algorithm);
            }
        }
    }
}
