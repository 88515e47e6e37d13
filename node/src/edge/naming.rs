//! Short codes: whose one is, only the centre can say.
//!
//! A tap with one waits until it has, and then goes the way of every tap, as one with the virtual card. Where the centre is not to be
//! had, or says no, nothing is written: it is about nobody. What the centre said is kept nowhere either, since it gives the same
//! answer to the same tap again.

use std::collections::BTreeMap;

use feiqian_protocol::code::ShortCode;
use feiqian_protocol::frame::{CodeAnswer, CodeAsk, Frame};
use feiqian_protocol::ids::{AccountId, CardNumber};
use feiqian_protocol::tap::{Decision, DeclineReason, TapKey};

use super::digest::digest;
use super::waiting::Waiting;
use crate::core::NodeCore;
use crate::io::{Now, Output};
use crate::replication::Link;
use crate::store::StoreError;

/// Taps whose cards the centre was asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Naming {
    last: u64,
    waiting: BTreeMap<u64, Waiting>,
    by_key: BTreeMap<TapKey, u64>,
}

impl Naming {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// When the first of them is too late.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.waiting.values().map(Waiting::deadline_ms).min()
    }

    pub(super) fn find_mut(&mut self, key: &TapKey) -> Option<&mut Waiting> {
        self.waiting.get_mut(self.by_key.get(key)?)
    }

    pub(super) fn remove(&mut self, key: &TapKey) -> Option<Waiting> {
        let request = self.by_key.remove(key)?;
        self.waiting.remove(&request)
    }

    fn push(&mut self, waiting: Waiting) -> u64 {
        self.last += 1;
        self.by_key.insert(waiting.request.key.clone(), self.last);
        self.waiting.insert(self.last, waiting);
        self.last
    }

    fn take(&mut self, request: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&request)?;
        self.by_key.remove(&waiting.request.key);
        Some(waiting)
    }
}

impl NodeCore {
    /// Asks whose code it is.
    pub(super) fn name(
        &mut self,
        code: ShortCode,
        waiting: Waiting,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let Link::Up(link, _) = self.link else {
            return self.answer(&waiting, Decision::Declined(DeclineReason::CodeNeedsCentre), outputs);
        };
        let key = &waiting.request.key;
        let (epoch, sequence) = (key.epoch.to_be_bytes(), key.sequence.as_str().as_bytes());
        let tap = digest(&[key.terminal.as_str().as_bytes(), &epoch, sequence, &waiting.digest]);
        let request = self.naming.push(waiting);
        outputs.push(Output::Send(link, Frame::CodeAsk(CodeAsk { request, code, tap })));
        Ok(())
    }

    /// The centre says whose it is, or why it is nobody's.
    pub(crate) fn on_code_answer(
        &mut self,
        now: &Now,
        answer: CodeAnswer,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let Some(waiting) = self.naming.take(answer.request) else { return Ok(()) };
        match answer.named {
            Ok((account, card)) => self.take_tap(now, named(waiting, account, card), outputs),
            Err(reason) => self.answer(&waiting, Decision::Declined(reason), outputs),
        }
    }

    /// Declines what has waited long enough.
    pub(crate) fn give_up_naming(&mut self, now: &Now, outputs: &mut Vec<Output>) -> Result<(), StoreError> {
        self.decline_unnamed(|waiting| waiting.deadline_ms() <= now.mono_ms, outputs)
    }

    /// The centre is gone.
    pub(crate) fn drop_naming(&mut self, outputs: &mut Vec<Output>) -> Result<(), StoreError> {
        self.decline_unnamed(|_| true, outputs)
    }

    fn decline_unnamed(
        &mut self,
        which: impl Fn(&Waiting) -> bool,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let requests: Vec<u64> = self
            .naming
            .waiting
            .iter()
            .filter(|(_, waiting)| which(waiting))
            .map(|(request, _)| *request)
            .collect();
        for request in requests {
            if let Some(waiting) = self.naming.take(request) {
                self.answer(&waiting, Decision::Declined(DeclineReason::CodeNeedsCentre), outputs)?;
            }
        }
        Ok(())
    }
}

fn named(mut waiting: Waiting, account: AccountId, card: CardNumber) -> Waiting {
    waiting.request.card = card;
    waiting.named = Some(account);
    waiting
}
