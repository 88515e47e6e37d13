//! Codes of virtual cards at a node: what it knows of the centre's time, and whom a code stands for.
//!
//! **Time.** A code is good for seconds, so a node must know what the centre's time is, and how well. It learns it from the
//! answer to its Hello, which cannot be older than the Hello, and from whatever the centre signs in a session. From then on it
//! is wrong by [`DOUBT_MS`] and by what the clock of a cheap controller drifts. What was heard before the process was started
//! only says which time it cannot be before. Where the doubt is too large, a purchase by code takes the PIN; a door, which takes
//! none, goes on by whatever is certain: signatures, losses, counters, and that the voucher was not over before.
//!
//! **Money.** What the centre holds for a voucher is spent without right and without stand-in, once: here that is remembered, and of
//! other buildings the centre tells. Where the time proves nothing about a code, its voucher pays nothing: its hold may be over.
//!
//! **Whom.** A voucher is the centre's word. It counts where the building was cut off before the virtual card was activated, as
//! long as its account is known.

use feiqian_protocol::code::{CentreTime, CheckedCode, Receipt, SignedReceipt, VoucherKey};
use feiqian_protocol::entry::{Actor, ActorKind, Body, CodeUse, Entry, Proof};
use feiqian_protocol::ids::{AccountId, CardNumber, Key};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{DeclineReason, Pin, TapKind, TapRequest};
use feiqian_protocol::time::Timestamp;

use crate::core::NodeCore;
use crate::io::{Now, Presented};
use crate::store::StoreError;
use crate::store::accounts::Facts;
use crate::store::taps::{EPOCH_OF_VOUCHERS, TapUse};

/// By how much the centre's time may be wrong when it was just heard, in milliseconds: its way here, and what a phone adds.
const DOUBT_MS: i64 = 2_000;

/// One millisecond of doubt more for so many since: 100 ppm, the worst of ordinary crystals.
const DRIFT_DIVISOR: u64 = 10_000;

/// With more doubt than this, in milliseconds, the time proves nothing about a code: a week without the centre.
const DOUBT_MS_MAX: i64 = 60_000;

/// Seconds for which a counter is kept after its voucher has ended: after a restart the time may seem to be somewhat earlier.
pub(crate) const COUNTER_KEPT_S: u32 = 24 * 3_600;

/// What is known of the centre's time since the core was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CentreClock {
    heard: Option<Heard>,
    /// When the last Hello was said, by the running clock.
    hello_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    time: Timestamp,
    /// When, by the running clock.
    at_ms: u64,
    doubt_ms: i64,
}

impl Heard {
    fn now(&self, elapsed_ms: u64) -> (Timestamp, i64) {
        let since = elapsed_ms.saturating_sub(self.at_ms);
        let ms = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        (self.time.plus_ms(ms(since)), self.doubt_ms.saturating_add(ms(since / DRIFT_DIVISOR)))
    }
}

impl CentreClock {
    /// A Hello is said.
    pub(crate) const fn hello(&mut self, elapsed_ms: u64) {
        self.hello_ms = elapsed_ms;
    }

    /// It is answered, with this time.
    pub(crate) fn answered(&mut self, time: Timestamp, elapsed_ms: u64) {
        let way_ms = i64::try_from(elapsed_ms.saturating_sub(self.hello_ms)).unwrap_or(i64::MAX);
        let heard = Heard { time, at_ms: elapsed_ms, doubt_ms: way_ms.max(DOUBT_MS) };
        if self.heard.is_none_or(|before| before.now(elapsed_ms).1 >= heard.doubt_ms) {
            self.heard = Some(heard);
        }
    }

    /// The centre has signed something at this time, as it says. What comes in order may have waited long on its way; then it
    /// lies before what is known already, and says nothing.
    pub(crate) fn signed(&mut self, time: Timestamp, elapsed_ms: u64) {
        let Some(heard) = self.heard else { return };
        let (now, doubt_ms) = heard.now(elapsed_ms);
        if time >= now.plus_ms(-doubt_ms) {
            self.heard = Some(Heard { time, at_ms: elapsed_ms, doubt_ms: DOUBT_MS });
        }
    }

    /// The centre's time; `floor` is one that it cannot be before.
    fn now(&self, elapsed_ms: u64, floor: Timestamp) -> CentreTime {
        match &self.heard {
            Some(heard) => {
                let (time, doubt_ms) = heard.now(elapsed_ms);
                CentreTime::about(time, doubt_ms)
            }
            None => CentreTime { earliest: floor, latest: None },
        }
    }
}

impl NodeCore {
    /// What vouchers are verified by, and the version of the configuration that says so.
    pub fn voucher_keys(&self) -> (u32, &[VoucherKey]) {
        let keys = |campus: &std::sync::Arc<crate::core::Campus>| campus.version;
        (
            self.campus.as_ref().map_or(0, keys),
            self.campus.as_ref().map_or(&[], |campus| &campus.config.voucher_keys),
        )
    }

    fn code_time(&self, now: &Now) -> CentreTime {
        let saved = &self.state.saved;
        let elapsed = i64::try_from(self.elapsed_ms(now)).unwrap_or(i64::MAX);
        let floor = saved.anchor.plus_ms(elapsed).max(saved.centre_time).plus_ms(-DOUBT_MS);
        self.state.centre_clock.now(now.elapsed_ms, floor)
    }

    /// The time that doors go by: this node's clock, as far as it agrees with what is known of the centre's.
    pub(crate) fn time_of_day(&self, now: &Now) -> Timestamp {
        let CentreTime { earliest, latest } = self.code_time(now);
        let time = now.wall.max(earliest);
        latest.map_or(time, |latest| time.min(latest))
    }

    /// Why nothing can be by a code; nothing where there is none.
    pub(crate) fn code_fault(&self, now: &Now, code: Option<&CheckedCode>) -> Option<DeclineReason> {
        let fault = code?.judge(&self.code_time(now)).err()?;
        Some(fault.reason())
    }

    /// True where the time proves nothing about a code.
    fn is_code_time_doubtful(&self, now: &Now) -> bool {
        self.code_time(now).doubt_ms().is_none_or(|doubt_ms| doubt_ms > DOUBT_MS_MAX)
    }

    /// All that a balance enquiry is answered by. A code that has just paid is good for it, within its window: nothing is used up.
    pub(crate) fn facts_presented(
        &self,
        now: &Now,
        presented: &Presented,
    ) -> Result<Result<Option<Facts>, DeclineReason>, StoreError> {
        let Presented { card, code } = presented;
        let code = code.as_deref();
        if let Some(fault) = self.code_fault(now, code) {
            return Ok(Err(fault));
        }
        if code.is_some() && self.is_code_time_doubtful(now) {
            return Ok(Err(DeclineReason::ViewTooOld));
        }
        self.facts_by(card, code, None).map(Ok)
    }

    /// True where the time proves so little about a code that a purchase takes the PIN.
    pub(crate) fn needs_pin_for_code(&self, now: &Now, request: &TapRequest) -> bool {
        request.code.is_some()
            && request.kind != TapKind::Access
            && request.pin == Pin::Absent
            && self.is_code_time_doubtful(now)
    }

    /// What the centre holds for the voucher of a purchase's code, as far as is known here.
    pub(crate) fn held_by_voucher(&self, now: &Now, request: &TapRequest) -> Result<Fen, StoreError> {
        let Some(code) = &request.code else { return Ok(Fen::ZERO) };
        let voucher = code.voucher();
        if self.is_code_time_doubtful(now) || !voucher.ceiling.is_positive() {
            return Ok(Fen::ZERO);
        }
        let spent = self.store.is_voucher_spent(voucher.account, voucher.number, voucher.until())?;
        Ok(if spent { Fen::ZERO } else { voucher.ceiling })
    }

    /// Its money is spent.
    pub(crate) fn spend_voucher(&self, request: &TapRequest) -> Result<(), StoreError> {
        let Some(code) = &request.code else { return Ok(()) };
        let voucher = code.voucher();
        self.store.put_spent_voucher(voucher.account, voucher.number, voucher.until())
    }

    /// The receipt of what a voucher paid of an approved purchase; always the same, since it says what the log says.
    pub(crate) fn receipt(&mut self, request: &TapRequest) -> Result<Option<Box<SignedReceipt>>, StoreError> {
        if !request.code.as_ref().is_some_and(|code| code.voucher().ceiling.is_positive()) {
            return Ok(None);
        }
        let approved =
            |tap: &crate::store::taps::TapRow| tap.used == TapUse::Purchase && tap.reason.is_none();
        let Some(tap) = self.tap_row(&request.key)?.filter(approved) else { return Ok(None) };
        let debits = self.store.debits(tap.position, tap.position + tap.debits.saturating_sub(1))?;
        let Some(row) = debits.iter().find(|debit| debit.epoch == EPOCH_OF_VOUCHERS) else {
            return Ok(None);
        };
        let record = self.store.records_after(self.own_log(), row.position - 1, 1)?.into_iter().next();
        let record = record.ok_or_else(|| StoreError::damaged("a debit is not in the log"))?;
        let entry =
            Entry::from_record(&record).map_err(|error| StoreError::damaged(format!("a debit: {error}")))?;
        let (Body::Debit(debit), time) = (&entry.body, entry.clock.time()) else { return Ok(None) };
        let Some(code) = debit.code else { return Ok(None) };
        let receipt = Receipt {
            institution: self.identity.institution,
            node: self.identity.node,
            position: row.position,
            account: debit.account,
            voucher: code.voucher,
            counter: code.counter,
            amount: debit.of_voucher(),
            time: u32::try_from(time.0.div_euclid(1_000)).unwrap_or_default(),
        };
        Ok(receipt.sign(&self.identity.log_key).map(Box::new))
    }

    /// All that a tap is judged by.
    pub(crate) fn facts_of(
        &self,
        request: &TapRequest,
        named: Option<AccountId>,
    ) -> Result<Option<Facts>, StoreError> {
        self.facts_by(&request.card, request.code.as_deref(), named)
    }

    /// A virtual card is of its account by the voucher, or by the centre's word on a short code, where word of it has not come yet;
    /// its number alone, without a code, is nobody's.
    fn facts_by(
        &self,
        card: &CardNumber,
        code: Option<&CheckedCode>,
        named: Option<AccountId>,
    ) -> Result<Option<Facts>, StoreError> {
        let account = match (code, named) {
            (None, None) if card.is_virtual() => return Ok(None),
            (None, None) => return self.store.facts(card),
            (Some(code), _) if !code.is_vouched_for() => return Ok(None),
            (Some(code), _) => code.voucher().account,
            (None, Some(account)) => account,
        };
        match self.store.facts(card)? {
            None => self.store.facts_of_account(account),
            facts => Ok(facts.filter(|facts| facts.holder.account == account)),
        }
    }

    /// True where this code, or a later one of its voucher, was used here before.
    pub(crate) fn is_code_used(&self, request: &TapRequest) -> Result<bool, StoreError> {
        match &request.code {
            Some(code) => {
                let code_use = code.code_use();
                let last = self.store.last_counter(code.voucher().account, &code_use)?;
                Ok(last.is_some_and(|last| code_use.counter <= last))
            }
            None => Ok(false),
        }
    }

    /// Uses a code up, and forgets some that nobody can use any more.
    pub(crate) fn use_code(&self, now: &Now, request: &TapRequest) -> Result<(), StoreError> {
        let Some(code) = &request.code else { return Ok(()) };
        self.store.put_counter(code.voucher().account, &code.code_use())?;
        let earliest = self.code_time(now).earliest.0.div_euclid(1_000);
        self.store.forget_counters(earliest.saturating_sub(i64::from(COUNTER_KEPT_S)))
    }
}

/// What is written of a request's code where it is used.
pub(crate) fn code_use(request: &TapRequest) -> Option<CodeUse> {
    request.code.as_deref().map(CheckedCode::code_use)
}

/// The terminal, and what showed it whose tap it was.
pub(crate) fn actor_of(request: &TapRequest, judged: Pin) -> Actor {
    let id = Key::new(request.key.terminal.as_str()).expect("a terminal's name is a name");
    // A virtual card without a voucher came by a short code.
    let proof = match (request.code.is_some() || request.card.is_virtual(), judged == Pin::Right) {
        (false, false) => Proof::Card,
        (false, true) => Proof::CardAndPin,
        (true, false) => Proof::Code,
        (true, true) => Proof::CodeAndPin,
    };
    Actor { kind: ActorKind::Terminal, id, proof }
}

/// True for what whoever has once seen a code can make a terminal decline again and again: of these only so many are written.
pub(crate) const fn is_about_code(reason: DeclineReason) -> bool {
    matches!(
        reason,
        DeclineReason::CodeExpired
            | DeclineReason::CodeForged
            | DeclineReason::CodeUsed
            | DeclineReason::VoucherExpired
    )
}

#[cfg(test)]
mod tests;
