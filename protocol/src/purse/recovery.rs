//! How to find out what became of a touch that was cut, at the card's next one, step by step.
//!
//! ```text
//! GET TRANSACTION PROVE (n + 1) -> INITIALIZE (the counter; it moves nothing) -> READ RECORD, as far as needed -> over
//! ```
//!
//! The proof is asked for first: there are cards that forget it with the next INITIALIZE.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::apdu::{AnswerError, Command, LoadBegun, Proof, PurchaseBegun, data};
use super::file::{LOG_RECORD_BYTES, LOG_RECORDS, LOG_SFI, LogRecord};
use super::identify::{Event, Identified, Step};
use super::journal::JournalEntry;
use super::load::PIN_KEY;
use super::sam::{MacCheck, Sam, SamError};
use super::status::StatusWord;
use super::torn::{ProofSeen, Seen, is_for};
use super::values::{Counter, Kind, PurseFen, TerminalNumber};

/// What the card said; for a load, its answer to INITIALIZE too, by which the centre judges the counter.
#[derive(Clone, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct Evidence {
    /// What the card says now.
    #[n(0)]
    pub seen: Seen,
    /// INITIALIZE FOR LOAD, whose amount is [`PROBE_LOAD_FEN`] and whose terminal is the number that the centre drew.
    #[n(1)]
    pub begun: Option<LoadBegun>,
}

/// Why nothing was found out. The entry stays open.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecoveryError {
    /// Another card than the entry's.
    #[error("this is another card")]
    OtherCard,
    /// The card refused, or answered what it may not.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The SAM could not judge the proof.
    #[error(transparent)]
    Sam(#[from] SamError),
    /// The card went away.
    #[error("the card was taken away too early")]
    Lost,
}

/// The amount of an INITIALIZE FOR LOAD that only asks for the counter: the least there is.
pub const PROBE_LOAD_FEN: u32 = 1;

/// What a load's recovery needs beyond the card.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoadProbe {
    /// Drawn by the centre, for this recovery only.
    pub challenge: TerminalNumber,
    /// The card PIN, on cards that want one before a load.
    pub pin: Option<Vec<u8>>,
}

/// Finding out, under way.
#[derive(Debug)]
pub struct Recovery {
    entry: JournalEntry,
    identified: Identified,
    probe: Option<LoadProbe>,
    state: State,
    proof: ProofSeen,
    begun: Option<LoadBegun>,
    counter: Counter,
    balance: PurseFen,
    log: Vec<LogRecord>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Proving,
    Verifying,
    Beginning,
    Reading(u8),
    Over,
}

impl Recovery {
    /// Begins with a purchase; the first thing to send.
    ///
    /// # Errors
    /// [`RecoveryError::OtherCard`].
    pub fn purchase(identified: Identified, entry: JournalEntry) -> Result<(Self, Command), RecoveryError> {
        Self::start(identified, entry, None)
    }

    /// Begins with a load; the first thing to send.
    ///
    /// # Errors
    /// [`RecoveryError::OtherCard`].
    pub fn load(
        identified: Identified,
        entry: JournalEntry,
        probe: LoadProbe,
    ) -> Result<(Self, Command), RecoveryError> {
        Self::start(identified, entry, Some(probe))
    }

    fn start(
        identified: Identified,
        entry: JournalEntry,
        probe: Option<LoadProbe>,
    ) -> Result<(Self, Command), RecoveryError> {
        if identified.card.serial != entry.serial {
            return Err(RecoveryError::OtherCard);
        }
        let mut recovery = Self {
            identified,
            probe,
            state: State::Proving,
            proof: ProofSeen::None,
            begun: None,
            counter: entry.terms.counter,
            balance: PurseFen::ZERO,
            log: Vec::new(),
            entry,
        };
        let terms = &recovery.entry.terms;
        let command = match terms.counter.next() {
            Some(counter) => {
                Command::Prove { kind: terms.kind, counter, algorithm: recovery.entry.algorithm }
            }
            None => recovery.verify_or_begin(),
        };
        Ok((recovery, command))
    }

    /// Takes what happened. `sam` judges the MAC of a purchase.
    pub fn handle(&mut self, event: Event<'_>, sam: &mut dyn Sam) -> Step<Result<Evidence, RecoveryError>> {
        let Event::Answer(answer) = event else {
            return Step::Done(Err(RecoveryError::Lost));
        };
        match self.answered(answer, sam) {
            Ok(Some(command)) => Step::Transmit(command),
            Ok(None) => {
                let (counter, balance, proof) = (self.counter, self.balance, self.proof);
                let seen = Seen { counter, balance, proof, log: std::mem::take(&mut self.log) };
                Step::Done(Ok(Evidence { seen, begun: self.begun }))
            }
            Err(error) => Step::Done(Err(error)),
        }
    }

    /// The next command; `None` where everything is known.
    fn answered(&mut self, answer: &[u8], sam: &mut dyn Sam) -> Result<Option<Command>, RecoveryError> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Proving => {
                self.proof = self.proved(answer, sam)?;
                Ok(Some(self.verify_or_begin()))
            }
            State::Verifying => {
                data(answer, 0)?;
                Ok(Some(self.begin()))
            }
            State::Beginning => {
                self.take_counter(answer)?;
                Ok(self.read_if_needed(1))
            }
            State::Reading(number) => match data(answer, LOG_RECORD_BYTES) {
                Ok(bytes) => {
                    self.log.extend(LogRecord::decode(bytes));
                    Ok(self.read_if_needed(number + 1))
                }
                Err(AnswerError::Status(StatusWord::NoRecord)) => Ok(None),
                Err(error) => Err(error.into()),
            },
            State::Over => Ok(None),
        }
    }

    fn proved(&self, answer: &[u8], sam: &mut dyn Sam) -> Result<ProofSeen, RecoveryError> {
        let proof = match Proof::decode_prove(answer, self.entry.algorithm) {
            Ok(proof) => proof,
            // Whatever word a card has for it: it gives none.
            Err(AnswerError::Status(_)) => return Ok(ProofSeen::None),
            Err(error) => return Err(error.into()),
        };
        if self.entry.terms.kind == Kind::Load {
            // What stands in the MAC's place after a load differs among cards; the centre judges the TAC.
            return Ok(ProofSeen::Unchecked(proof.tac));
        }
        Ok(match sam.check(&self.entry, proof.mac)? {
            MacCheck::Right => ProofSeen::Right(proof.tac),
            MacCheck::Wrong => ProofSeen::Wrong,
            MacCheck::Forgotten => ProofSeen::Unchecked(proof.tac),
        })
    }

    fn verify_or_begin(&mut self) -> Command {
        match self.probe.as_ref().and_then(|probe| probe.pin.clone()) {
            Some(pin) => {
                self.state = State::Verifying;
                Command::VerifyPin { key: PIN_KEY, pin }
            }
            None => self.begin(),
        }
    }

    fn begin(&mut self) -> Command {
        self.state = State::Beginning;
        let (profile, algorithm) = (&self.identified.profile, self.identified.profile.algorithm);
        match &self.probe {
            Some(probe) => Command::BeginLoad {
                key: profile.load_key,
                amount: PurseFen::new(PROBE_LOAD_FEN).expect("one fen fits into a purse"),
                terminal: probe.challenge,
                algorithm,
            },
            // Of nothing, so that an empty purse answers too.
            None => Command::BeginPurchase {
                key: profile.purchase_key,
                amount: PurseFen::ZERO,
                terminal: self.entry.terms.terminal,
                compound: self.entry.terms.kind == Kind::Compound,
                algorithm,
            },
        }
    }

    fn take_counter(&mut self, answer: &[u8]) -> Result<(), RecoveryError> {
        let algorithm = self.identified.profile.algorithm;
        if self.probe.is_some() {
            let begun = LoadBegun::decode(answer, algorithm)?;
            (self.counter, self.balance, self.begun) = (begun.counter, begun.balance, Some(begun));
        } else {
            let begun = PurchaseBegun::decode(answer, algorithm)?;
            (self.counter, self.balance) = (begun.counter, begun.balance);
        }
        Ok(())
    }

    /// The log is read up to the entry's own record; not at all where the card stands as it stood, or has proven what it did.
    fn read_if_needed(&mut self, number: u8) -> Option<Command> {
        let terms = &self.entry.terms;
        let untouched = self.counter == terms.counter && self.balance == terms.balance_before;
        let logged = self.identified.profile.logged(terms.counter);
        let found =
            logged.is_some_and(|logged| self.log.iter().any(|record| is_for(record, &self.entry, logged)));
        let needed = !untouched && !found && !matches!(self.proof, ProofSeen::Right(_));
        (needed && number <= LOG_RECORDS).then(|| {
            self.state = State::Reading(number);
            Command::ReadRecord { sfi: LOG_SFI, number, length: LOG_RECORD_BYTES as u8 }
        })
    }
}
