//! One input that fails by itself (a row that cannot be written, a frame that is no frame) takes nothing else of its step
//! along.
//!
//! Hardly ever does one fail, and a savepoint around each would copy every page that it changes. So a step is first tried
//! as a whole; where an input fails, all of it is taken back and run again from the same inputs, now with a savepoint around
//! each.

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::frame::{Frame, Recall};
use feiqian_protocol::ids::{AccountId, LogId, Unit};
use feiqian_protocol::session::Sender;

use super::{NodeCore, State};
use crate::apply::Fault;
use crate::edge::naming::Naming;
use crate::edge::{Queues, UnknownCards};
use crate::io::{Input, Now, Output};
use crate::purse::PurseWaits;
use crate::replication::{Link, Marked};
use crate::store::StoreError;

/// Taps that may wait while a step is tried as a whole: they are copied before it.
const WAITING_MAX: usize = 64;

/// What is taken back where one input fails by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Guard {
    /// The step, which is then run again.
    Step,
    /// That input alone.
    Input,
}

/// All that a step changes and that is not in the database, as it was before.
struct Before {
    state: State,
    link: Link,
    sender: Sender,
    queues: Queues,
    purses: PurseWaits,
    naming: Naming,
    recalls: BTreeMap<(AccountId, Unit), Recall>,
    early: Vec<Frame>,
    more_to_send: bool,
    acks: BTreeSet<LogId>,
    blocked: BTreeSet<LogId>,
    unknown_cards: UnknownCards,
    marked: Marked,
}

impl NodeCore {
    /// Runs a step inside its transaction, a second time where one input fails by itself.
    pub(super) fn attempt(
        &mut self,
        now: &Now,
        inputs: Vec<Input>,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        if self.waiting_taps() > WAITING_MAX || !self.early.is_empty() {
            self.guard = Guard::Input;
            return self.run(now, inputs, outputs);
        }
        self.guard = Guard::Step;
        let (before, said, again) = (self.before(), outputs.len(), inputs.clone());
        match self.run(now, inputs, outputs) {
            Err(StoreError::OneInput) => {}
            done => return done,
        }
        self.store.rollback();
        self.store.begin()?;
        outputs.truncate(said);
        self.go_back_to(before)?;
        self.guard = Guard::Input;
        self.run(now, again, outputs)
    }

    /// Does what may fail by itself: where only this failed, it is taken back and the step goes on.
    pub(crate) fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<Result<T, StoreError>, StoreError> {
        if self.guard == Guard::Step {
            return match work(self) {
                Err(error) if error.concerns_one_input() => Err(StoreError::OneInput),
                done => done.map(Ok),
            };
        }
        self.store.savepoint()?;
        let before = self.state.clone();
        match work(self) {
            Ok(done) => {
                self.store.release()?;
                Ok(Ok(done))
            }
            Err(error) if self.store.survives(&error) => {
                self.take_back(before)?;
                tracing::error!(%error, "one input could not be written");
                Ok(Err(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a frame; the fault of the peer, where there is one, by which it changes nothing.
    pub(crate) fn guarded_frame(
        &mut self,
        take: impl FnOnce(&mut Self) -> Result<(), Fault>,
    ) -> Result<Result<(), String>, StoreError> {
        if self.guard == Guard::Step {
            return match take(self) {
                Ok(()) => Ok(Ok(())),
                Err(Fault::Peer(_)) => Err(StoreError::OneInput),
                Err(Fault::Store(error)) => Err(error),
            };
        }
        self.store.savepoint()?;
        let before = self.state.clone();
        match take(self) {
            Ok(()) => {
                self.store.release()?;
                Ok(Ok(()))
            }
            Err(Fault::Peer(what)) => {
                self.take_back(before)?;
                Ok(Err(what))
            }
            Err(Fault::Store(error)) => Err(error),
        }
    }

    /// Takes back everything since the last savepoint.
    fn take_back(&mut self, before: State) -> Result<(), StoreError> {
        self.store.undo()?;
        self.state = before;
        self.reload()
    }

    fn before(&self) -> Before {
        Before {
            state: self.state.clone(),
            link: self.link,
            sender: self.sender.clone(),
            queues: self.queues.clone(),
            purses: self.purses.clone(),
            naming: self.naming.clone(),
            recalls: self.recalls.clone(),
            early: self.early.clone(),
            more_to_send: self.more_to_send,
            acks: self.acks.clone(),
            blocked: self.blocked.clone(),
            unknown_cards: self.unknown_cards.clone(),
            marked: self.marked,
        }
    }

    fn go_back_to(&mut self, before: Before) -> Result<(), StoreError> {
        let Before {
            state,
            link,
            sender,
            queues,
            purses,
            naming,
            recalls,
            early,
            more_to_send,
            acks,
            blocked,
            unknown_cards,
            marked,
        } = before;
        self.state = state;
        self.link = link;
        self.sender = sender;
        self.queues = queues;
        self.purses = purses;
        self.naming = naming;
        self.recalls = recalls;
        self.early = early;
        self.more_to_send = more_to_send;
        self.acks = acks;
        self.blocked = blocked;
        self.unknown_cards = unknown_cards;
        self.marked = marked;
        self.reload()
    }
}
