//! A purchase at a terminal, step by step.
//!
//! ```text
//! (READ RECORD) -> INITIALIZE -> SAM: MAC1 -> (cache the record) -> journal -> DEBIT -> SAM: MAC2 -> over
//! ```
//!
//! Whatever goes wrong before the journal is a decline: nothing has moved. From there on only the card's MAC2 is an approval, and
//! everything else is *unknown*, an error of the card included: the link is not to be believed. What became of it is found out by the
//! card's counter, at once or at its next touch ([`super::recovery`]).

use super::apdu::{AnswerError, Command, Proof, PurchaseBegun, data};
use super::identify::{Event, Identified, Step};
use super::journal::JournalEntry;
use super::key::RecordKey;
use super::profile::{Misfit, RecordPlace, in_time};
use super::record::{CardRecord, RECORD_BYTES};
use super::sam::{MacCheck, Sam, SamError, SamRequest};
use super::status::StatusWord;
use super::values::{CardDate, CardTime, Counter, Kind, Mac, PurseFen};
use crate::ids::NodeId;
use crate::time::BusinessDay;

/// What is to be bought.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PurchaseOrder {
    /// Fen, above zero.
    pub amount: PurseFen,
    /// The terminal's time.
    pub time: CardTime,
    /// The record that the purchase updates, on cards that carry one.
    pub record: Option<RecordOrder>,
}

/// What goes into the card's record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecordOrder {
    /// Seals it.
    pub key: RecordKey,
    /// Today.
    pub day: BusinessDay,
    /// The newest hotlist that the terminal has.
    pub hotlist: Option<CardDate>,
    /// The terminal's node.
    pub node: NodeId,
    /// Most fen in a day by what the card carries; above it the purchase is declined.
    pub spent_fen_max: Option<u32>,
    /// The oldest hotlist that the card must have met, here or where it was before; without one the purchase is declined.
    pub hotlist_min: Option<CardDate>,
}

/// A purchase that the card has proven.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Receipt {
    /// What was written down of it.
    pub entry: JournalEntry,
    /// For the centre.
    pub tac: Mac,
}

/// How a purchase ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PurchaseEnd {
    /// Debited, and proven by MAC2.
    Approved(Receipt),
    /// Nothing was debited.
    Declined(Decline),
    /// DEBIT was sent, and what became of it is not known.
    Unknown(Doubt),
}

/// Why nothing was debited.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Decline {
    /// Zero.
    #[error("a purchase of nothing")]
    Amount,
    /// Less on the card than asked for.
    #[error("insufficient balance: {0} fen")]
    Insufficient(u32),
    /// The card's day is spent.
    #[error("{spent} fen were spent today, {max} may be")]
    DayLimit {
        /// By the card's record.
        spent: u32,
        /// The limit.
        max: u32,
    },
    /// Nobody with a newer hotlist has looked at the card.
    #[error("the newest hotlist that the card has met is of {}, and one of {wanted} is wanted", date_text(*.newest))]
    HotlistOld {
        /// By the card's record and the terminal.
        newest: Option<CardDate>,
        /// By the terminal's rule.
        wanted: CardDate,
    },
    /// The terminal's day is none that a card's record can hold.
    #[error("{0} is no day that a card's record can hold")]
    Day(BusinessDay),
    /// Not as its profile, or not in its time.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The card has made all the purchases that it can.
    #[error("the card's counter is exhausted")]
    CounterExhausted,
    /// The card refused, or answered what it may not.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The SAM made no MAC1.
    #[error(transparent)]
    Sam(#[from] SamError),
    /// The card went away.
    #[error("the card was taken away too early")]
    Lost,
}

/// Why it is not known what became of a DEBIT.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Doubt {
    /// The card went away, or its answer.
    #[error("the card was taken away before it answered")]
    Lost,
    /// The card refused, or answered what it may not.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The card's proof is wrong: no genuine card, or something on the way.
    #[error("the card's proof (MAC2) is wrong")]
    WrongProof,
    /// The SAM could not check it.
    #[error(transparent)]
    Sam(#[from] SamError),
}

/// A purchase under way.
#[derive(Debug)]
pub struct Purchase {
    order: PurchaseOrder,
    identified: Identified,
    /// Where the record is, and what goes into it; `None` for a plain purchase.
    record: Option<(RecordPlace, RecordOrder)>,
    state: State,
}

#[derive(Debug)]
enum State {
    Reading,
    Beginning { record: Vec<u8> },
    Caching { entry: JournalEntry },
    Persisting { entry: JournalEntry },
    Debiting { entry: JournalEntry },
    Over,
}

impl Purchase {
    /// Begins; the first thing to send.
    ///
    /// # Errors
    /// [`Decline`], before anything is sent.
    pub fn start(
        identified: Identified,
        order: PurchaseOrder,
        sam: &dyn Sam,
    ) -> Result<(Self, Command), Decline> {
        if order.amount == PurseFen::ZERO {
            return Err(Decline::Amount);
        }
        in_time(&identified.card, order.time)?;
        let record = identified.profile.record.zip(order.record.clone());
        let mut purchase = Self { order, identified, record, state: State::Over };
        let command = match &purchase.record {
            Some((place, _)) => {
                let read =
                    Command::ReadRecord { sfi: place.sfi, number: place.number, length: RECORD_BYTES as u8 };
                purchase.state = State::Reading;
                read
            }
            None => purchase.begin(Vec::new(), sam),
        };
        Ok((purchase, command))
    }

    /// Takes what happened.
    pub fn handle(&mut self, event: Event<'_>, sam: &mut dyn Sam) -> Step<PurchaseEnd> {
        let declined = |decline| Step::Done(PurchaseEnd::Declined(decline));
        match (std::mem::replace(&mut self.state, State::Over), event) {
            (State::Reading, Event::Answer(answer)) => match record_answer(answer) {
                Ok(record) => Step::Transmit(self.begin(record, sam)),
                Err(error) => declined(error.into()),
            },
            (State::Beginning { record }, Event::Answer(answer)) => match self.begun(answer, &record, sam) {
                Ok(step) => step,
                Err(decline) => declined(decline),
            },
            (State::Caching { entry }, Event::Answer(answer)) => match data(answer, 0) {
                Ok(_) => self.persist(entry),
                Err(error) => declined(error.into()),
            },
            (State::Persisting { entry }, Event::Persisted) => {
                let terms = &entry.terms;
                let debit =
                    Command::DebitForPurchase { sequence: terms.sequence, time: terms.time, mac1: entry.mac };
                self.state = State::Debiting { entry };
                Step::Transmit(debit)
            }
            (State::Debiting { entry }, Event::Answer(answer)) => Step::Done(debited(entry, answer, sam)),
            (State::Debiting { .. }, _) => Step::Done(PurchaseEnd::Unknown(Doubt::Lost)),
            // Before DEBIT a card that is gone has lost nothing.
            _ => declined(Decline::Lost),
        }
    }

    fn kind(&self) -> Kind {
        if self.record.is_some() { Kind::Compound } else { Kind::Purchase }
    }

    fn begin(&mut self, record: Vec<u8>, sam: &dyn Sam) -> Command {
        self.state = State::Beginning { record };
        Command::BeginPurchase {
            key: self.identified.profile.purchase_key,
            amount: self.order.amount,
            terminal: sam.terminal(),
            compound: self.record.is_some(),
            algorithm: self.identified.profile.algorithm,
        }
    }

    /// After INITIALIZE: judges the card, has the SAM make MAC1, and puts the record into the card's cache.
    fn begun(
        &mut self,
        answer: &[u8],
        record: &[u8],
        sam: &mut dyn Sam,
    ) -> Result<Step<PurchaseEnd>, Decline> {
        let (serial, profile) = (self.identified.card.serial, &self.identified.profile);
        let begun = match PurchaseBegun::decode(answer, profile.algorithm) {
            Err(AnswerError::Status(StatusWord::CounterExhausted)) => return Err(Decline::CounterExhausted),
            begun => begun?,
        };
        profile.fits_purchase(begun.algorithm_id, begun.key_version)?;
        let spendable = begun.balance.get().saturating_sub(begun.overdraft.get());
        if spendable < self.order.amount.get() {
            return Err(Decline::Insufficient(spendable));
        }
        let after = begun.counter.next().ok_or(Decline::CounterExhausted)?;
        let sealed = self.sealed(record, begun.counter, after, sam)?;
        let request = SamRequest {
            serial,
            algorithm: profile.algorithm,
            algorithm_id: begun.algorithm_id,
            key_version: begun.key_version,
            kind: self.kind(),
            amount: self.order.amount,
            time: self.order.time,
            balance_before: begun.balance,
            counter: begun.counter,
            random: begun.random,
        };
        let answer = sam.begin(&request)?;
        let entry = JournalEntry {
            serial,
            algorithm: profile.algorithm,
            key_version: begun.key_version,
            terms: request.terms(sam.terminal(), answer.sequence),
            mac: answer.mac1,
        };
        Ok(match sealed {
            Some((place, data)) => {
                self.state = State::Caching { entry };
                Step::Transmit(Command::CacheRecord { number: place.number, sfi: place.sfi, data })
            }
            None => self.persist(entry),
        })
    }

    /// The record after this purchase; `None` for a plain one.
    fn sealed(
        &self,
        record: &[u8],
        counter: Counter,
        after: Counter,
        sam: &dyn Sam,
    ) -> Result<Option<(RecordPlace, Vec<u8>)>, Decline> {
        let Some((place, order)) = &self.record else {
            return Ok(None);
        };
        let serial = self.identified.card.serial;
        // One that is not believed counts as none: the money on the card is its holder's all the same.
        let before = CardRecord::open(record, &order.key, serial, counter).ok();
        let amount = self.order.amount.get();
        let next =
            CardRecord::after(before.as_ref(), order.day, amount, order.hotlist, sam.terminal(), order.node);
        if let Some(max) = order.spent_fen_max.filter(|max| next.spent_fen > *max) {
            return Err(Decline::DayLimit { spent: next.spent_fen.saturating_sub(amount), max });
        }
        if let Some(wanted) = order.hotlist_min.filter(|wanted| next.hotlist.is_none_or(|has| has < *wanted))
        {
            return Err(Decline::HotlistOld { newest: next.hotlist, wanted });
        }
        let data = next.seal(&order.key, serial, after).ok_or(Decline::Day(order.day))?;
        Ok(Some((*place, data.to_vec())))
    }

    fn persist(&mut self, entry: JournalEntry) -> Step<PurchaseEnd> {
        self.state = State::Persisting { entry: entry.clone() };
        Step::Persist(Box::new(entry))
    }
}

fn date_text(date: Option<CardDate>) -> String {
    date.map_or_else(|| "no date".to_owned(), |date| date.to_string())
}

/// The bytes of the record; none where there is none yet.
fn record_answer(answer: &[u8]) -> Result<Vec<u8>, AnswerError> {
    match data(answer, RECORD_BYTES) {
        Ok(bytes) => Ok(bytes.to_vec()),
        Err(AnswerError::Status(StatusWord::NoRecord)) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// After DEBIT: only a right MAC2 is an approval.
fn debited(entry: JournalEntry, answer: &[u8], sam: &mut dyn Sam) -> PurchaseEnd {
    let proof = match Proof::decode_debit(answer, entry.algorithm) {
        Ok(proof) => proof,
        Err(error) => return PurchaseEnd::Unknown(error.into()),
    };
    match sam.check(&entry, proof.mac) {
        Ok(MacCheck::Right) => PurchaseEnd::Approved(Receipt { entry, tac: proof.tac }),
        Ok(MacCheck::Wrong | MacCheck::Forgotten) => PurchaseEnd::Unknown(Doubt::WrongProof),
        Err(error) => PurchaseEnd::Unknown(error.into()),
    }
}
