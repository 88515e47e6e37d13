//! Taps that wait for the centre: in a queue per account, and found by their key.

use std::collections::{BTreeMap, VecDeque};

use feiqian_protocol::ids::AccountId;
use feiqian_protocol::tap::{Pin, TapKey, TapRequest};

use super::asks::Asks;
use crate::io::Ticket;

/// A tap that is being decided, or waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(super) request: TapRequest,
    pub(super) digest: [u8; 16],
    /// Who asked; more than one where the terminal tried again meanwhile.
    pub(super) tickets: Vec<Ticket>,
    pub(super) deadline_ms: u64,
    /// What the PIN was found to be when it was last judged.
    pub(super) pin: Pin,
    /// Whose short code it came by, as the centre has said.
    pub(crate) named: Option<AccountId>,
    /// What was asked of the centre, and what it said.
    pub(crate) asks: Asks,
}

impl Waiting {
    /// When it must be decided, by the running clock.
    pub(crate) const fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }
}

/// Waiting taps: a queue per account, and where to find a key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queues {
    pub(super) by_account: BTreeMap<AccountId, VecDeque<Waiting>>,
    pub(super) by_key: BTreeMap<TapKey, AccountId>,
}

impl Queues {
    /// How many taps wait.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// When the first of them must be decided.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.by_account.values().filter_map(|queue| queue.front()).map(|head| head.deadline_ms).min()
    }

    /// The accounts with waiting taps.
    pub(crate) fn accounts(&self) -> Vec<AccountId> {
        self.by_account.keys().copied().collect()
    }

    /// The first waiting tap of an account.
    pub(crate) fn head_mut(&mut self, account: AccountId) -> Option<&mut Waiting> {
        self.by_account.get_mut(&account)?.front_mut()
    }

    /// True where a tap of this key waits.
    pub(crate) fn is_waiting(&self, key: &TapKey) -> bool {
        self.by_key.contains_key(key)
    }

    pub(super) fn push(&mut self, account: AccountId, waiting: Waiting) {
        self.by_key.insert(waiting.request.key.clone(), account);
        self.by_account.entry(account).or_default().push_back(waiting);
    }

    pub(super) fn find_mut(&mut self, key: &TapKey) -> Option<&mut Waiting> {
        let account = self.by_key.get(key)?;
        self.by_account.get_mut(account)?.iter_mut().find(|waiting| waiting.request.key == *key)
    }

    pub(super) fn remove(&mut self, key: &TapKey) -> Option<(AccountId, Waiting)> {
        let account = self.by_key.remove(key)?;
        let queue = self.by_account.get_mut(&account)?;
        let index = queue.iter().position(|waiting| waiting.request.key == *key)?;
        let waiting = queue.remove(index)?;
        if queue.is_empty() {
            self.by_account.remove(&account);
        }
        Some((account, waiting))
    }
}
