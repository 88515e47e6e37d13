//! What a card does with a command.
//!
//! It is strict: a purchase or load that was begun is forgotten with any other command than the next one that is due, with a
//! reset, and with the removal from the field. A money command changes balance, counter, log and record together.

use feiqian_protocol::chain::{hex, unhex};
use feiqian_protocol::purse::apdu::{Command, LoadBegun, Proof, PurchaseBegun, answer};
use feiqian_protocol::purse::file::{CARD_SFI, HOLDER_BYTES, HOLDER_SFI, LOG_SFI, LogRecord};
use feiqian_protocol::purse::mac::Terms;
use feiqian_protocol::purse::profile::ApplicationName;
use feiqian_protocol::purse::record::RECORD_BYTES;
use feiqian_protocol::purse::status::StatusWord;
use feiqian_protocol::purse::values::{
    CardTime, Counter, Kind, Mac, Overdraft, PurseFen, Random, TerminalNumber, TerminalSequence,
};

use super::state::{CardState, LOAD_TRIES, Newest, PIN_TRIES, PURCHASE_TRIES};

/// Where the record of compound purchases is.
pub const RECORD_SFI: u8 = 0x19;
/// Its number there.
pub const RECORD_NUMBER: u8 = 1;
/// Where a card carries its issuance; anybody may write there.
pub const ISSUANCE_SFI: u8 = 0x1A;
/// Bytes of that file.
const ISSUANCE_FILE_BYTES: usize = 254;
/// Index of the load and of the purchase key.
const KEY: u8 = 1;
/// The master file.
const MASTER_FILE: u16 = 0x3F00;

/// A card in a reader.
#[derive(Clone, Debug)]
pub struct Applet {
    /// What it keeps.
    pub state: CardState,
    volatile: Volatile,
}

/// What a card forgets without power.
#[derive(Clone, Debug, Default)]
struct Volatile {
    selected: bool,
    pin_verified: bool,
    begun: Option<Begun>,
}

/// After INITIALIZE.
#[derive(Clone, Debug)]
struct Begun {
    kind: Kind,
    amount: PurseFen,
    terminal: TerminalNumber,
    random: Random,
    record: Option<Vec<u8>>,
}

type Answer = Result<Vec<u8>, StatusWord>;

impl Applet {
    /// A card that was just put in.
    pub fn new(state: CardState) -> Self {
        Self { state, volatile: Volatile::default() }
    }

    /// Power off, reset, removal.
    pub fn reset(&mut self) {
        self.volatile = Volatile::default();
    }

    /// Takes a command and answers. `random` is fresh for each command.
    pub fn process(&mut self, command: &[u8], random: [u8; 8]) -> Vec<u8> {
        let begun = self.volatile.begun.take();
        match Command::decode(command) {
            Ok(command) => self.execute(command, begun, random).unwrap_or_else(|status| answer(status, &[])),
            Err(error) => answer(error.status(), &[]),
        }
    }

    fn execute(&mut self, command: Command, begun: Option<Begun>, random: [u8; 8]) -> Answer {
        match &command {
            Command::SelectName(name) => return self.select(name),
            Command::SelectFile(MASTER_FILE) => {
                self.reset();
                return Ok(answer(StatusWord::Done, &[]));
            }
            Command::SelectFile(_) => return Err(StatusWord::NoFile),
            Command::SamBeginPurchase(_) | Command::SamCheck(_) => return Err(StatusWord::Instruction),
            _ if !self.volatile.selected => return Err(StatusWord::Conditions),
            _ => {}
        }
        match command {
            Command::ReadBinary { sfi, offset, length } => self.read_binary(sfi, offset, length),
            Command::UpdateBinary { sfi: ISSUANCE_SFI, offset, data } => self.carry(offset, &data),
            Command::UpdateBinary { .. } => Err(StatusWord::PinNotVerified),
            Command::ReadRecord { sfi, number, length } => self.read_record(sfi, number, length),
            Command::VerifyPin { key: 0, pin } => self.verify_pin(&pin),
            Command::VerifyPin { .. } => Err(StatusWord::NoKey),
            Command::Balance => Ok(answer(StatusWord::Done, &self.state.balance.to_bytes())),
            Command::BeginLoad { key, amount, terminal, .. } => {
                self.begin_load(key, amount, terminal, random)
            }
            Command::CreditForLoad { time, mac2 } => self.credit(begun, time, mac2),
            Command::BeginPurchase { key, amount, terminal, compound, .. } => {
                let kind = if compound { Kind::Compound } else { Kind::Purchase };
                self.begin_purchase(key, kind, amount, terminal, random)
            }
            Command::CacheRecord { number, sfi, data } => self.cache(begun, number, sfi, data),
            Command::DebitForPurchase { sequence, time, mac1 } => self.debit(begun, sequence, time, mac1),
            Command::Prove { kind, counter, .. } => match self.state.newest {
                Some(newest) if (newest.kind, newest.counter) == (kind, counter) => {
                    Ok(Proof { mac: newest.mac, tac: newest.tac }.encode_prove())
                }
                _ => Err(StatusWord::NoProof),
            },
            Command::SelectName(_)
            | Command::SelectFile(_)
            | Command::SamBeginPurchase(_)
            | Command::SamCheck(_) => Err(StatusWord::Instruction),
        }
    }

    fn select(&mut self, name: &[u8]) -> Answer {
        self.reset();
        let ours = ApplicationName::feiqian();
        if name != ours.as_bytes() {
            return Err(StatusWord::NoFile);
        }
        if self.state.is_blocked() {
            return Err(StatusWord::Blocked);
        }
        self.volatile.selected = true;
        let data = self.state.card_data().encode();
        let own = [&[0x9F, 0x0C, data.len() as u8][..], &data].concat();
        let body = [&[0x84, name.len() as u8][..], name, &[0xA5, own.len() as u8], &own].concat();
        Ok(answer(StatusWord::Done, &[&[0x6F, body.len() as u8][..], &body].concat()))
    }

    fn read_binary(&self, sfi: u8, offset: u8, length: u8) -> Answer {
        let file = match sfi {
            CARD_SFI => self.state.card_data().encode().to_vec(),
            HOLDER_SFI => vec![0; HOLDER_BYTES],
            ISSUANCE_SFI => self.issuance_file(),
            _ => return Err(StatusWord::NoFile),
        };
        let rest = file.get(usize::from(offset)..).ok_or(StatusWord::Offset)?;
        part(rest, length)
    }

    fn issuance_file(&self) -> Vec<u8> {
        let mut file = self.state.issuance.as_deref().and_then(unhex).unwrap_or_default();
        file.resize(ISSUANCE_FILE_BYTES, 0);
        file
    }

    fn carry(&mut self, offset: u8, data: &[u8]) -> Answer {
        let mut file = self.issuance_file();
        let from = usize::from(offset);
        file.get_mut(from..from + data.len()).ok_or(StatusWord::Offset)?.copy_from_slice(data);
        self.state.issuance = Some(hex(&file));
        Ok(answer(StatusWord::Done, &[]))
    }

    fn read_record(&self, sfi: u8, number: u8, length: u8) -> Answer {
        let record = match (sfi, number) {
            (LOG_SFI, number) => self.state.log_record(number),
            (RECORD_SFI, RECORD_NUMBER) => self.state.record_bytes(),
            (RECORD_SFI, _) => None,
            _ => return Err(StatusWord::NoFile),
        };
        part(&record.ok_or(StatusWord::NoRecord)?, length)
    }

    fn verify_pin(&mut self, pin: &[u8]) -> Answer {
        let right = self.state.pin.as_deref().and_then(unhex).ok_or(StatusWord::NoKey)?;
        if self.state.pin_tries == 0 {
            return Err(StatusWord::PinLocked);
        }
        if pin != right {
            self.state.pin_tries -= 1;
            return Err(StatusWord::WrongPin(self.state.pin_tries));
        }
        self.state.pin_tries = PIN_TRIES;
        self.volatile.pin_verified = true;
        Ok(answer(StatusWord::Done, &[]))
    }

    fn begin_load(&mut self, key: u8, amount: PurseFen, terminal: TerminalNumber, random: [u8; 8]) -> Answer {
        if self.state.pin.is_some() && !self.volatile.pin_verified {
            return Err(StatusWord::PinNotVerified);
        }
        self.usable(key)?;
        self.state.online.next().ok_or(StatusWord::CounterExhausted)?;
        self.state.balance.checked_add(amount).ok_or(StatusWord::Insufficient)?;
        let begun = Begun { kind: Kind::Load, amount, terminal, random: self.random(random), record: None };
        // The time is not known yet, and MAC1 does not depend on it.
        let terms = self.terms(&begun, TerminalSequence(0), self.any_time());
        let session = terms.session_key(self.state.algorithm, &self.state.load_key);
        let answer = LoadBegun {
            balance: self.state.balance,
            counter: self.state.online,
            key_version: self.state.key_version,
            algorithm_id: self.state.algorithm.id(),
            random: begun.random,
            mac1: terms.mac1(&session),
        };
        self.volatile.begun = Some(begun);
        Ok(answer.encode())
    }

    fn credit(&mut self, begun: Option<Begun>, time: CardTime, mac2: Mac) -> Answer {
        let begun = begun.filter(|begun| begun.kind == Kind::Load).ok_or(StatusWord::Conditions)?;
        let terms = self.terms(&begun, TerminalSequence(0), time);
        let session = terms.session_key(self.state.algorithm, &self.state.load_key);
        if terms.mac2(&session) != mac2 {
            self.state.load_tries -= 1;
            return Err(if self.state.is_blocked() { StatusWord::Blocked } else { StatusWord::WrongMac });
        }
        let tac = self.finish(&terms, mac2, None)?;
        self.state.load_tries = LOAD_TRIES;
        Ok(answer(StatusWord::Done, tac.as_ref()))
    }

    fn begin_purchase(
        &mut self,
        key: u8,
        kind: Kind,
        amount: PurseFen,
        terminal: TerminalNumber,
        random: [u8; 8],
    ) -> Answer {
        self.usable(key)?;
        self.state.offline.next().ok_or(StatusWord::CounterExhausted)?;
        self.state.balance.checked_sub(amount).ok_or(StatusWord::Insufficient)?;
        let begun = Begun { kind, amount, terminal, random: self.random(random), record: None };
        let answer = PurchaseBegun {
            balance: self.state.balance,
            counter: self.state.offline,
            overdraft: Overdraft::default(),
            key_version: self.state.key_version,
            algorithm_id: self.state.algorithm.id(),
            random: begun.random,
        };
        self.volatile.begun = Some(begun);
        Ok(answer.encode())
    }

    fn cache(&mut self, begun: Option<Begun>, number: u8, sfi: u8, data: Vec<u8>) -> Answer {
        let begun = begun.filter(|begun| begun.kind == Kind::Compound).ok_or(StatusWord::Conditions)?;
        match (sfi, number) {
            (RECORD_SFI, RECORD_NUMBER) if data.len() == RECORD_BYTES => {
                self.volatile.begun = Some(Begun { record: Some(data), ..begun });
                Ok(answer(StatusWord::Done, &[]))
            }
            (RECORD_SFI, RECORD_NUMBER) => Err(StatusWord::Length),
            (RECORD_SFI, _) => Err(StatusWord::NoRecord),
            _ => Err(StatusWord::NoFile),
        }
    }

    fn debit(
        &mut self,
        begun: Option<Begun>,
        sequence: TerminalSequence,
        time: CardTime,
        mac1: Mac,
    ) -> Answer {
        let mut begun = begun.filter(|begun| begun.kind != Kind::Load).ok_or(StatusWord::Conditions)?;
        if begun.amount == PurseFen::ZERO {
            return Err(StatusWord::Conditions);
        }
        let terms = self.terms(&begun, sequence, time);
        let session = terms.session_key(self.state.algorithm, &self.state.purchase_key);
        if terms.mac1(&session) != mac1 {
            self.state.purchase_tries -= 1;
            return Err(if self.state.is_blocked() { StatusWord::Blocked } else { StatusWord::WrongMac });
        }
        let mac2 = terms.mac2(&session);
        let tac = self.finish(&terms, mac2, begun.record.take())?;
        self.state.purchase_tries = PURCHASE_TRIES;
        Ok(Proof { mac: mac2, tac }.encode_debit())
    }

    /// Balance, counter, log and record, together; the TAC.
    fn finish(&mut self, terms: &Terms, mac: Mac, record: Option<Vec<u8>>) -> Result<Mac, StatusWord> {
        let tac = terms.tac(&self.state.tac_key.tac(self.state.algorithm)).ok_or(StatusWord::Insufficient)?;
        let counter = terms.counter.next().ok_or(StatusWord::CounterExhausted)?;
        self.state.balance = terms.balance_after().ok_or(StatusWord::Insufficient)?;
        match terms.kind {
            Kind::Load => self.state.online = counter,
            Kind::Purchase | Kind::Compound => self.state.offline = counter,
        }
        self.state.write_log(&LogRecord {
            counter: terms.counter,
            overdraft: Overdraft::default(),
            amount: terms.amount,
            kind: terms.kind.code(),
            terminal: terms.terminal,
            time: terms.time.to_bytes(),
        });
        if let Some(record) = record {
            self.state.record = Some(hex(&record));
        }
        self.state.newest = Some(Newest { kind: terms.kind, counter, mac, tac });
        self.volatile.pin_verified = false;
        Ok(tac)
    }

    fn usable(&self, key: u8) -> Result<(), StatusWord> {
        if self.state.is_blocked() {
            return Err(StatusWord::Blocked);
        }
        if key == KEY { Ok(()) } else { Err(StatusWord::NoKey) }
    }

    fn random(&self, bytes: [u8; 8]) -> Random {
        Random::from_slice(&bytes[..self.state.algorithm.mac_bytes()])
            .expect("4 or 8 bytes are a random number")
    }

    fn any_time(&self) -> CardTime {
        let [a, b, c, d] = self.state.start.to_bytes();
        CardTime::from_bytes([a, b, c, d, 0, 0, 0]).expect("midnight of a date is a time")
    }

    fn terms(&self, begun: &Begun, sequence: TerminalSequence, time: CardTime) -> Terms {
        let counter: Counter = match begun.kind {
            Kind::Load => self.state.online,
            Kind::Purchase | Kind::Compound => self.state.offline,
        };
        Terms {
            kind: begun.kind,
            amount: begun.amount,
            terminal: begun.terminal,
            sequence,
            time,
            balance_before: self.state.balance,
            counter,
            random: begun.random,
        }
    }
}

/// `length` bytes of a file or record, 0 standing for all there are.
fn part(bytes: &[u8], length: u8) -> Answer {
    match usize::from(length) {
        0 => Ok(answer(StatusWord::Done, bytes)),
        length if length <= bytes.len() => Ok(answer(StatusWord::Done, &bytes[..length])),
        _ => Err(StatusWord::WrongLe(bytes.len() as u8)),
    }
}
