//! Purses of cards in a building: what terminals report of them, and loads, which only the centre can let happen.
//!
//! A purchase is between card and terminal; it is reported when it is over, cut off or not, and kept in the node's log once,
//! however often it is reported. A card that is known here to be lost or withdrawn is refused before it is debited.
//!
//! A load is the centre's: the node carries question and answer. What lets money go is passed on only once the entry that it goes
//! by is here ([`feiqian_protocol::purse::question`]). What the node does not hear in time, or at all, moves nothing here; at the
//! centre it is in transit until the card is seen again.

use std::collections::BTreeMap;

use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{Body, Proof, PurseLoaded, PursePurchase, TapRef};
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::{Key, TerminalId};
use feiqian_protocol::limits::AMOUNT_FEN_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::load::LoadRequest;
use feiqian_protocol::purse::question::{
    LoadFate, PurseAnswer, PurseAsk, PurseQuestion, PurseRefusal, PurseReply,
};
use feiqian_protocol::purse::recovery::Evidence;
use feiqian_protocol::purse::values::{
    CardSerial, CardTime, Counter, Kind, Mac, PurseFen, TerminalNumber, TerminalSequence,
};
use feiqian_protocol::tap::{DeclineReason, TapKind};
use feiqian_protocol::time::Timestamp;

use crate::authorizer::standing;
use crate::core::NodeCore;
use crate::edge::{actor, digest};
use crate::io::{Now, Output, Ticket};
use crate::replication::Link;
use crate::store::StoreError;
use crate::store::purses::ReportRow;

/// Questions that may wait: a terminal has one card at a time.
const WAITING_MAX: usize = 64;

/// How much longer than for right a terminal waits for the centre's word on a load, in milliseconds: right may have to come
/// home from other buildings first, and the holder keeps the card on the reader.
const LOAD_GRACE_MS: u64 = 1_500;

/// What a terminal wants of a purse.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PurseRequest {
    /// Whether a card may pay.
    Check(CardSerial),
    /// A purchase is over.
    Purchase(Box<PurchaseReport>),
    /// May this card have this amount?
    Load(LoadRequest),
    /// The card has taken it.
    Loaded(PurseLoaded),
    /// What a card said about its older load.
    Evidence(CardSerial, Box<Evidence>),
    /// Has this card a load of which nobody knows what became?
    Open(CardSerial),
}

/// A purchase as its terminal reports it; what of it is not named here is the terminal's in the campus configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PurchaseReport {
    /// The epoch of the report's key.
    pub epoch: u32,
    /// Its sequence.
    pub sequence: Key,
    /// The card.
    pub serial: CardSerial,
    /// Plain or compound.
    pub kind: Kind,
    /// Fen.
    pub amount: PurseFen,
    /// Fen on the card before.
    pub balance_before: PurseFen,
    /// The offline counter before.
    pub counter: Counter,
    /// The number of the terminal.
    pub terminal_number: TerminalNumber,
    /// The number of the purchase there.
    pub terminal_sequence: TerminalSequence,
    /// When.
    pub time: CardTime,
    /// The TAC, where the card gave one.
    pub tac: Option<Mac>,
    /// True where MAC2 was right.
    pub proven: bool,
}

/// What a terminal is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PurseDone {
    /// The card may pay; false where this building does not know it, whose money is its own all the same.
    Usable {
        /// Whether an account has it.
        known: bool,
        /// Until when losses of the card are known here.
        heard: Option<Timestamp>,
    },
    /// It may not.
    Declined(DeclineReason),
    /// It is in the log.
    Recorded {
        /// True where it was there already.
        repeat: bool,
    },
    /// Credit the card.
    Authorized(CardTime, Mac),
    /// Probe it about this load first, under this number.
    Unresolved(Box<JournalEntry>, TerminalNumber),
    /// What became of the older load.
    Settled(LoadFate),
    /// The centre lets nothing onto it.
    Refused(PurseRefusal),
}

/// Why a request about a purse came to nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PurseError {
    /// The terminal is not in this building's configuration.
    #[error("terminal {0} is not configured at this node")]
    UnknownTerminal(String),
    /// The terminal has no merchant.
    #[error("terminal {0} takes no payments")]
    NoMerchant(String),
    /// The building's role lets it write no purchases.
    #[error("a building of this role takes no payments")]
    Role,
    /// Zero, or more than any amount.
    #[error("the amount must be from 0.01 to 100000.00 yuan")]
    Amount,
    /// The key was used for something else.
    #[error("this epoch and sequence reported something else before")]
    OtherContent,
    /// The centre cannot be asked, or does not answer.
    #[error("the centre cannot be reached")]
    Unreachable,
    /// Too much waits.
    #[error("too many loads are waiting")]
    Busy,
    /// The node writes nothing at the moment.
    #[error("the node writes nothing at the moment")]
    OutOfService,
}

impl PurseError {
    /// A stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownTerminal(_) => "unknown_terminal",
            Self::NoMerchant(_) => "no_merchant",
            Self::Role => "role",
            Self::Amount => "amount",
            Self::OtherContent => "key_reused",
            Self::Unreachable => "unreachable",
            Self::Busy => "busy",
            Self::OutOfService => "unavailable",
        }
    }
}

/// Questions to the centre that wait.
#[derive(Clone, Debug, Default)]
pub(crate) struct PurseWaits {
    last: u64,
    waiting: BTreeMap<u64, PurseWait>,
}

#[derive(Clone, Debug)]
struct PurseWait {
    ticket: Ticket,
    deadline_ms: u64,
    answer: Option<PurseAnswer>,
}

impl PurseWaits {
    /// When the first of them is too late.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.waiting.values().map(|wait| wait.deadline_ms).min()
    }
}

impl NodeCore {
    /// A terminal wants something of a purse.
    pub(crate) fn on_purse(
        &mut self,
        now: &Now,
        ticket: Ticket,
        terminal: &TerminalId,
        request: PurseRequest,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let merchant = match self.merchant_of(terminal) {
            Ok(merchant) => merchant,
            Err(error) => {
                outputs.push(Output::Purse(ticket, Err(error)));
                return Ok(());
            }
        };
        let done = match request {
            PurseRequest::Check(serial) => Ok(self.check_purse(now, serial)?),
            PurseRequest::Purchase(report) => match merchant {
                _ if self.identity.role == Role::Door => Err(PurseError::Role),
                None => Err(PurseError::NoMerchant(terminal.to_string())),
                Some(merchant) => self.report_purchase(now, terminal, merchant, &report)?,
            },
            PurseRequest::Loaded(_) if self.identity.role == Role::Door => Err(PurseError::Role),
            PurseRequest::Loaded(loaded) => self.write_purse(|core| {
                core.append(now, actor(terminal, Proof::Card), Body::PurseLoaded(loaded))?;
                Ok(PurseDone::Recorded { repeat: false })
            })?,
            PurseRequest::Load(load) => {
                return self.ask_purse(now, ticket, PurseQuestion::Load(load), outputs);
            }
            PurseRequest::Evidence(serial, evidence) => {
                return self.ask_purse(now, ticket, PurseQuestion::Evidence(serial, *evidence), outputs);
            }
            PurseRequest::Open(serial) => {
                return self.ask_purse(now, ticket, PurseQuestion::Open(serial), outputs);
            }
        };
        outputs.push(Output::Purse(ticket, done));
        Ok(())
    }

    fn merchant_of(&self, terminal: &TerminalId) -> Result<Option<u16>, PurseError> {
        let campus = self.campus.as_ref();
        let known = campus.and_then(|campus| campus.terminals.get(terminal));
        known
            .map(|terminal| terminal.merchant)
            .ok_or_else(|| PurseError::UnknownTerminal(terminal.to_string()))
    }

    /// The hotlist: whether anything is known here against a card.
    fn check_purse(&self, now: &Now, serial: CardSerial) -> Result<PurseDone, StoreError> {
        let card = serial.card_number();
        let facts = self.store.facts(&card)?;
        let holder = facts.as_ref().map(|facts| &facts.holder);
        let lost = holder.is_some_and(|holder| self.is_told_lost(&card, holder.account));
        let sells = self.identity.role != Role::Door;
        let heard = self.heard_until(now);
        Ok(match standing(TapKind::Amount(Fen::new(1)), holder, lost, None, sells, self.business_day(now)) {
            Ok(_) => PurseDone::Usable { known: true, heard },
            // Nothing can be said of a card that nobody here has heard of.
            Err(DeclineReason::UnknownCard) => PurseDone::Usable { known: false, heard: None },
            Err(reason) => PurseDone::Declined(reason),
        })
    }

    fn report_purchase(
        &mut self,
        now: &Now,
        terminal: &TerminalId,
        merchant: u16,
        report: &PurchaseReport,
    ) -> Result<Result<PurseDone, PurseError>, StoreError> {
        let amount = report.amount.to_fen();
        if !amount.is_positive() || amount > AMOUNT_FEN_MAX || report.kind == Kind::Load {
            return Ok(Err(PurseError::Amount));
        }
        let purchase = PursePurchase {
            tap: TapRef { epoch: report.epoch, sequence: report.sequence.clone() },
            serial: report.serial,
            kind: report.kind,
            amount,
            counter: report.counter,
            balance_before: report.balance_before.to_fen(),
            terminal: report.terminal_number,
            sequence: report.terminal_sequence,
            time: report.time,
            tac: report.tac,
            merchant,
            proven: report.proven,
        };
        let row = ReportRow::new(terminal, &purchase, 0);
        if let Some(first) = self.store.purse_report(terminal, &purchase.tap)? {
            let same = first.digest == row.digest;
            return Ok(if same {
                Ok(PurseDone::Recorded { repeat: true })
            } else {
                Err(PurseError::OtherContent)
            });
        }
        let twin = self.store.purse_report_of(purchase.serial, purchase.counter, row.digest)?;
        self.write_purse(|core| {
            if let Some(position) = twin {
                // The same purchase under another key: the terminal has lost its own.
                core.store.put_purse_report(&row.at(position))?;
                return Ok(PurseDone::Recorded { repeat: true });
            }
            let (position, _) =
                core.append(now, actor(terminal, Proof::Card), Body::PursePurchase(purchase))?;
            core.store.put_purse_purchase(&row.at(position), amount)?;
            core.state.totals.exposed += amount;
            Ok(PurseDone::Recorded { repeat: false })
        })
    }

    fn write_purse(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<PurseDone, StoreError>,
    ) -> Result<Result<PurseDone, PurseError>, StoreError> {
        if self.state.saved.tail_until.is_some() || self.damage.is_some() {
            return Ok(Err(PurseError::OutOfService));
        }
        Ok(self.guarded(write)?.map_err(|_| PurseError::OutOfService))
    }

    fn ask_purse(
        &mut self,
        now: &Now,
        ticket: Ticket,
        question: PurseQuestion,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let Link::Up(link, _) = self.link else {
            outputs.push(Output::Purse(ticket, Err(PurseError::Unreachable)));
            return Ok(());
        };
        if self.purses.waiting.len() >= WAITING_MAX {
            outputs.push(Output::Purse(ticket, Err(PurseError::Busy)));
            return Ok(());
        }
        self.purses.last += 1;
        let (request, ms_left) = (self.purses.last, self.settings.ask_deadline_ms + LOAD_GRACE_MS);
        let deadline_ms = now.mono_ms.saturating_add(ms_left);
        self.purses.waiting.insert(request, PurseWait { ticket, deadline_ms, answer: None });
        let ask = PurseAsk { request, ms_left, question };
        outputs.push(Output::Send(link, Frame::PurseAsk(Box::new(ask))));
        Ok(())
    }

    /// The centre answers. What nobody waits for any more is in transit there, and found when the card is seen again.
    pub(crate) fn on_purse_answer(&mut self, answer: PurseAnswer) {
        if let Some(wait) = self.purses.waiting.get_mut(&answer.request) {
            wait.answer = Some(answer);
        }
    }

    /// Passes on the answers whose entries are here, and gives up what is too late.
    pub(crate) fn release_purses(&mut self, now: &Now, outputs: &mut Vec<Output>) {
        let is_here = |answer: &PurseAnswer| {
            answer.after.is_none_or(|place| {
                self.centre_cursor(place.log).is_some_and(|end| end.position >= place.position)
            })
        };
        let (mut told, mut late) = (Vec::new(), Vec::new());
        for (request, wait) in &self.purses.waiting {
            if wait.answer.as_ref().is_some_and(is_here) {
                told.push(*request);
            } else if wait.deadline_ms <= now.mono_ms {
                late.push(*request);
            }
        }
        for request in told {
            if let Some(PurseWait { ticket, answer: Some(answer), .. }) = self.purses.waiting.remove(&request)
            {
                outputs.push(Output::Purse(ticket, Ok(done(answer.reply))));
            }
        }
        for request in late {
            if let Some(wait) = self.purses.waiting.remove(&request) {
                outputs.push(Output::Purse(wait.ticket, Err(PurseError::Unreachable)));
            }
        }
    }

    /// The centre is gone; what was asked of it is not answered any more.
    pub(crate) fn drop_purses(&mut self, outputs: &mut Vec<Output>) {
        for wait in std::mem::take(&mut self.purses.waiting).into_values() {
            outputs.push(Output::Purse(wait.ticket, Err(PurseError::Unreachable)));
        }
    }
}

fn done(reply: PurseReply) -> PurseDone {
    match reply {
        PurseReply::Authorized(time, mac2) => PurseDone::Authorized(time, mac2),
        PurseReply::Unresolved(entry, challenge) => PurseDone::Unresolved(Box::new(entry), challenge),
        PurseReply::Settled(fate) => PurseDone::Settled(fate),
        PurseReply::Refused(refusal) => PurseDone::Refused(refusal),
    }
}

/// What a repeat of a report must have in common with the first.
pub(crate) fn report_digest(purchase: &PursePurchase) -> [u8; 16] {
    let nothing = TapRef { epoch: 0, sequence: Key::new("0").expect("a digit is a name") };
    let content = PursePurchase { tap: nothing, ..purchase.clone() };
    digest(&[&minicbor::to_vec(content).expect("writing to a Vec cannot fail")])
}
