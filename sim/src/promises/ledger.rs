//! The naive ledger: what terminals, channels and operators did and were told, and nothing else. A promise can be held against
//! nothing but this; it knows no rights, no logs and no batches.

pub mod operators;
mod shown;

use std::collections::BTreeMap;

use feiqian_node::io::{Input, TapError, Ticket};
use feiqian_protocol::ids::{CardNumber, Key, LogId};
use feiqian_protocol::issuance::SignedIssuance;
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, DeclineReason, Pin, ReversalRequest, TapKey, TapRequest};

pub use operators::replacement;

use crate::plan::Plan;

/// What a terminal sends, as often as it likes.
#[derive(Clone, Debug)]
pub enum Sent {
    /// A reversal.
    Reversal(ReversalRequest),
    /// A tap.
    Tap(TapRequest),
}

impl Sent {
    /// Its key.
    pub const fn key(&self) -> &TapKey {
        match self {
            Self::Reversal(reversal) => &reversal.key,
            Self::Tap(tap) => &tap.key,
        }
    }

    /// As the core takes it.
    pub fn input(&self, ticket: Ticket) -> Input {
        match self {
            Self::Reversal(reversal) => Input::Reversal(ticket, reversal.clone()),
            Self::Tap(tap) => Input::Tap(ticket, tap.clone()),
        }
    }
}

/// A request and what became of it, as its terminal knows.
#[derive(Clone, Debug)]
pub struct Request {
    /// The process that it was sent to.
    pub site: usize,
    /// The number in the plan.
    pub number: u32,
    /// What was sent.
    pub sent: Sent,
    /// When first, in nanoseconds.
    pub first_ns: u64,
    /// How often.
    pub times: u32,
    /// The first decision, or the refusal.
    pub told: Option<Told>,
    /// True where the terminal may not ask again: its building has another box, or the box another memory.
    pub given_up: bool,
    /// True where the log that had it may be lost, before it came to the centre.
    pub may_be_lost: bool,
    /// True where it was a short code: until the centre has said whose, nothing is written of it.
    pub short_code: bool,
}

/// What a terminal was told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Told {
    /// A decision.
    Decided(Decision),
    /// That this is no tap.
    Refused(TapError),
}

impl Request {
    /// True for what a node decides without writing anything: what is no code of this campus, and a short code that the centre does
    /// not say whose it is.
    pub const fn is_unwritten(&self, decision: Decision) -> bool {
        match decision {
            Decision::Declined(
                DeclineReason::CodeForeign
                | DeclineReason::CodeKeyUnknown
                | DeclineReason::CodeUnreadable
                | DeclineReason::VoucherForged,
            ) => true,
            Decision::Declined(
                DeclineReason::CodeExpired
                | DeclineReason::CodeForged
                | DeclineReason::CodeNeedsCentre
                | DeclineReason::CodePaused
                | DeclineReason::CodeUsed
                | DeclineReason::Lost
                | DeclineReason::Void,
            ) => self.short_code,
            _ => false,
        }
    }

    /// Fen approved; `None` where it was not, or nothing was told.
    pub const fn approved(&self) -> Option<Fen> {
        match &self.told {
            Some(Told::Decided(Decision::Approved { amount, .. })) => Some(*amount),
            _ => None,
        }
    }

    /// True for a reversal.
    pub const fn is_reversal(&self) -> bool {
        matches!(self.sent, Sent::Reversal(_))
    }

    /// The card of a tap.
    pub const fn card(&self) -> Option<&CardNumber> {
        match &self.sent {
            Sent::Tap(tap) => Some(&tap.card),
            Sent::Reversal(_) => None,
        }
    }

    /// True for a tap with the right PIN.
    pub const fn is_proven(&self) -> bool {
        matches!(&self.sent, Sent::Tap(tap) if matches!(tap.pin, Pin::Right))
    }
}

/// A top-up, as its channel knows it.
#[derive(Clone, Debug)]
pub struct Credit {
    /// The account's index in the plan.
    pub account: usize,
    /// Fen.
    pub amount: Fen,
    /// True once the centre said so.
    pub confirmed: bool,
}

/// A loss report, as the operator knows it.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The card.
    pub card: CardNumber,
    /// How far each log was ingested when it was asked for.
    pub asked: BTreeMap<LogId, u64>,
    /// How far each was when the centre confirmed it; `None` until then.
    pub confirmed: Option<BTreeMap<LogId, u64>>,
}

/// The closing of an account, as the operator knows it.
#[derive(Clone, Debug, Default)]
pub struct Closing {
    /// When the centre said that it is closed, in nanoseconds.
    pub told_ns: Option<u64>,
    /// Processes that were seen to go by it, and when first, in nanoseconds.
    pub heard: BTreeMap<usize, u64>,
}

/// Another card for an account's own, as the operator knows it.
#[derive(Clone, Debug)]
pub struct Reissue {
    /// The old one.
    pub old: CardNumber,
    /// The new one.
    pub card: CardNumber,
    /// When the centre said that it is good, in nanoseconds.
    pub told_ns: Option<u64>,
    /// What it gave for the holder to show.
    pub issuance: Option<SignedIssuance>,
    /// Processes that were seen to go by it, or were shown that, and when first, in nanoseconds.
    pub heard: BTreeMap<usize, u64>,
}

/// One tap in so many of a card that was replaced is made with the old one, by whoever has it.
const WITH_OLD_CARD_EVERY: u32 = 3;

/// A loss report that was made in a building, from when on it goes by it.
#[derive(Clone, Debug)]
pub struct BuildingLoss {
    /// The process that took it.
    pub site: usize,
    /// Whose card: an index into the plan's accounts.
    pub account: usize,
    /// The card.
    pub card: CardNumber,
    /// When the building said so, in nanoseconds.
    pub told_ns: u64,
}

/// Everything that was asked and told.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Every request.
    pub requests: Vec<Request>,
    by_key: BTreeMap<(usize, TapKey), usize>,
    /// Top-ups by channel and key.
    pub credits: BTreeMap<(Key, Key), Credit>,
    /// Loss reports.
    pub losses: Vec<Loss>,
    /// When a report of an account's card was last asked for, in nanoseconds.
    pub reports: BTreeMap<usize, u64>,
    /// When the lift of an account's card was last asked for, in nanoseconds.
    pub lifts: BTreeMap<usize, u64>,
    /// Closings that were asked for, by account: an index into the plan's.
    pub closings: BTreeMap<usize, Closing>,
    /// Cards that were given out for others, by account: an index into the plan's.
    pub reissues: BTreeMap<usize, Reissue>,
    /// Virtual cards and cards given out later, and whose they are: an index into the plan's accounts.
    pub further: BTreeMap<CardNumber, usize>,
    /// Loss reports that buildings took.
    pub building_losses: Vec<BuildingLoss>,
    /// What contradicts what was told before.
    pub contradictions: Vec<String>,
}

impl Ledger {
    /// A terminal begins a request; returns its index.
    pub fn begin(&mut self, site: usize, number: u32, sent: Sent, now_ns: u64) -> usize {
        let index = self.requests.len();
        self.by_key.entry((site, sent.key().clone())).or_insert(index);
        self.requests.push(Request {
            site,
            number,
            sent,
            first_ns: now_ns,
            times: 0,
            told: None,
            given_up: false,
            may_be_lost: false,
            short_code: false,
        });
        index
    }

    /// The account of a card or virtual card: an index into the plan's.
    pub fn account_of(&self, plan: &Plan, card: &CardNumber) -> Option<usize> {
        let own = self.further.get(card).copied();
        own.or_else(|| plan.accounts.iter().position(|account| account.card == *card))
    }

    /// The card that is held to a terminal where this one is to be: mostly the one that was given out for it.
    pub fn card_shown(&self, card: &CardNumber, number: u32) -> CardNumber {
        let replaced = |reissue: &&Reissue| reissue.old == *card && reissue.told_ns.is_some();
        match self.reissues.values().find(replaced) {
            Some(reissue) if !number.is_multiple_of(WITH_OLD_CARD_EVERY) => reissue.card.clone(),
            _ => card.clone(),
        }
    }

    /// The request of a key at a site.
    pub fn find(&self, site: usize, key: &TapKey) -> Option<&Request> {
        self.by_key.get(&(site, key.clone())).and_then(|index| self.requests.get(*index))
    }

    /// A terminal is told a decision. The first one counts for ever.
    pub fn decided(&mut self, index: usize, decision: Decision, repeat: bool) {
        let request = &mut self.requests[index];
        match &request.told {
            // Of what is no code of this campus nothing is written: it is judged anew.
            Some(Told::Decided(first)) if request.is_unwritten(*first) => {
                request.told = Some(Told::Decided(decision))
            }
            Some(Told::Decided(first)) if *first != decision => {
                let text = format!("{:?} was told {first:?}, and then {decision:?}", request.sent.key());
                self.contradictions.push(text);
            }
            Some(Told::Decided(_)) if !repeat => {
                let text = format!("{:?} was decided a second time: {decision:?}", request.sent.key());
                self.contradictions.push(text);
            }
            Some(Told::Decided(_)) => {}
            _ => request.told = Some(Told::Decided(decision)),
        }
    }

    /// A terminal is told that this is no tap. It may become one: a terminal that is not configured yet.
    pub fn refused(&mut self, index: usize, error: TapError) {
        let request = &mut self.requests[index];
        match &request.told {
            Some(Told::Decided(first)) => {
                let text = format!("{:?} was told {first:?}, and then refused: {error}", request.sent.key());
                self.contradictions.push(text);
            }
            _ if error == TapError::Busy => {}
            _ => request.told = Some(Told::Refused(error)),
        }
    }
}
