//! What terminals, desks and channels did and were told: the only thing that a promise can be held against.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use feiqian_node::io::{Input, Status, TapError, Ticket};
use feiqian_protocol::code::CheckedCode;
use feiqian_protocol::ids::{CardNumber, Key, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, DeclineReason, Pin, ReversalRequest, TapKey, TapKind, TapRequest};

/// A tap or a reversal, as a terminal sends it, as often as it likes.
#[derive(Clone, Debug)]
pub struct Request {
    /// The building.
    pub site: usize,
    /// Its key.
    pub key: TapKey,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Reversal(ReversalRequest),
    Tap(TapRequest),
}

impl Request {
    pub(super) fn tap(
        site: usize,
        terminal: TerminalId,
        sequence: u64,
        card: &str,
        amount: Fen,
    ) -> Result<Self> {
        let key = TapKey { terminal, epoch: 1, sequence: Key::new(sequence.to_string())? };
        let tap = TapRequest {
            key: key.clone(),
            card: CardNumber::new(card)?,
            code: None,
            kind: TapKind::Amount(amount),
            pin: Pin::Absent,
        };
        Ok(Self { site, key, what: What::Tap(tap) })
    }

    /// The same by a code in place of the card.
    pub(super) fn by_code(mut self, code: CheckedCode) -> Self {
        if let What::Tap(tap) = &mut self.what {
            tap.code = Some(Box::new(code));
        }
        self
    }

    pub(super) fn reversal(of: &Self, sequence: u64, amount: Option<Fen>) -> Result<Self> {
        let key = TapKey { sequence: Key::new(sequence.to_string())?, ..of.key.clone() };
        let reversal = ReversalRequest { key: key.clone(), original: of.key.clone(), amount };
        Ok(Self { site: of.site, key, what: What::Reversal(reversal) })
    }

    pub(super) fn input(&self, ticket: Ticket) -> Input {
        match &self.what {
            What::Reversal(reversal) => Input::Reversal(ticket, reversal.clone()),
            What::Tap(tap) => Input::Tap(ticket, tap.clone()),
        }
    }

    /// What a tap asks for; zero for a reversal.
    pub fn asked(&self) -> Fen {
        match &self.what {
            What::Tap(TapRequest { kind: TapKind::Amount(fen), .. }) => *fen,
            _ => Fen::ZERO,
        }
    }

    /// The same request at another site: a clone of its building.
    pub fn at(&self, site: usize) -> Self {
        Self { site, ..self.clone() }
    }
}

/// What a terminal was told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// A decision.
    Decided(Decision),
    /// That this is no tap.
    Refused(TapError),
}

impl Answer {
    /// Fen approved; `None` where it was not.
    pub const fn approved(&self) -> Option<Fen> {
        match self {
            Self::Decided(Decision::Approved { amount, .. }) => Some(*amount),
            _ => None,
        }
    }

    /// Fen of it that were stand-in.
    pub const fn stand_in(&self) -> Option<Fen> {
        match self {
            Self::Decided(Decision::Approved { stand_in, .. }) => Some(*stand_in),
            _ => None,
        }
    }

    /// Why it was declined; `None` where it was not.
    pub const fn declined(&self) -> Option<DeclineReason> {
        match self {
            Self::Decided(Decision::Declined(reason)) => Some(*reason),
            _ => None,
        }
    }
}

/// Everything that was asked and told.
#[derive(Default)]
pub struct Model {
    waiting: BTreeMap<Ticket, Request>,
    /// Every request ever sent, by site and key.
    pub requests: BTreeMap<(usize, TapKey), Request>,
    /// The first answer that a terminal was given.
    pub told: BTreeMap<(usize, TapKey), Answer>,
    opening: Fen,
    credits_sent: BTreeMap<Key, Fen>,
    credits_told: BTreeSet<Key>,
    statuses: BTreeMap<Ticket, Status>,
    copies: bool,
}

impl Model {
    pub(super) fn opened(&mut self, opening: Fen) {
        self.opening += opening;
    }

    pub(super) fn crediting(&mut self, key: &Key, fen: Fen) {
        self.credits_sent.entry(key.clone()).or_insert(fen);
    }

    pub(super) fn credited(&mut self, key: &Key) {
        self.credits_told.insert(key.clone());
    }

    /// What all accounts opened with.
    pub const fn opening(&self) -> Fen {
        self.opening
    }

    /// Top-ups that were confirmed.
    pub const fn credits_told(&self) -> &BTreeSet<Key> {
        &self.credits_told
    }

    /// What a top-up was for.
    pub fn credit_sent(&self, key: &Key) -> Option<Fen> {
        self.credits_sent.get(key).copied()
    }

    pub(super) fn sent(&mut self, ticket: Ticket, request: &Request) {
        self.waiting.insert(ticket, request.clone());
        self.requests.insert((request.site, request.key.clone()), request.clone());
    }

    pub(super) fn decided(&mut self, ticket: Ticket, decision: Decision, repeat: bool) -> Result<()> {
        let request = self.waiting.remove(&ticket).context("an answer to nothing")?;
        if matches!(self.told.get(&(request.site, request.key.clone())), Some(Answer::Decided(_))) {
            ensure!(repeat, "a second decision that does not say so: {request:?}");
        }
        self.tell(request, Answer::Decided(decision))
    }

    pub(super) fn refused(&mut self, ticket: Ticket, error: TapError) -> Result<()> {
        let request = self.waiting.remove(&ticket).context("an answer to nothing")?;
        if error == TapError::Busy {
            return Ok(());
        }
        self.tell(request, Answer::Refused(error))
    }

    /// A decision is final; a refusal (a terminal that is not configured yet) is not.
    fn tell(&mut self, request: Request, answer: Answer) -> Result<()> {
        let first = self.told.entry((request.site, request.key.clone())).or_insert_with(|| answer.clone());
        if matches!(first, Answer::Refused(_)) {
            first.clone_from(&answer);
        }
        ensure!(*first == answer, "{request:?} was told {first:?}, and then {answer:?}");
        Ok(())
    }

    pub(super) fn status(&mut self, ticket: Ticket, status: Status) {
        self.statuses.insert(ticket, status);
    }

    pub(super) fn take_status(&mut self, ticket: Ticket) -> Option<Status> {
        self.statuses.remove(&ticket)
    }

    pub(super) fn forget_waiting(&mut self, site: usize) {
        self.waiting.retain(|_, request| request.site != site);
    }

    pub(super) fn answer(&self, request: &Request) -> Option<&Answer> {
        self.told.get(&(request.site, request.key.clone()))
    }

    pub(super) fn copied(&mut self) {
        self.copies = true;
    }

    /// True once a disk was copied or restored: then a log may have two continuations, and sums over sites mean nothing.
    pub const fn has_copies(&self) -> bool {
        self.copies
    }

    /// Requests that wait for an answer.
    pub fn waits(&self) -> usize {
        self.waiting.len()
    }
}
