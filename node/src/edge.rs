//! The one sequence that every tap takes: repeat, tombstone, facts, decision, entry, first answer.
//!
//! A tap that the rights at hand do not cover waits while the node asks the centre ([`asks`]); whatever comes (a grant, a
//! no, the deadline, the end of the link), it is judged again from the start, so what it is told is always by the newest
//! facts. Taps of one account are decided in order; a waiting tap pins nothing. Doors wait for nobody.

pub(crate) mod asks;
mod digest;
pub(crate) mod naming;
mod replay;
mod reversal;
mod unknown;
mod waiting;
mod written;

use feiqian_protocol::campus::{Meal, Merchant, Mode, Terminal};
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::Measured;
use feiqian_protocol::ids::{AccountId, CardNumber, Key};
use feiqian_protocol::limits::PENDING_TAPS_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::rights::Share;
use feiqian_protocol::tap::{Decision, DeclineReason, Pin, TapKey, TapKind, TapRequest};
use feiqian_protocol::time::BusinessDay;

use crate::authorizer::{Cover, Funds, Split, check_kind, cover, price, standing};
use crate::core::{Campus, NodeCore};
use crate::edge::asks::{Asks, Next};
pub(crate) use crate::edge::digest::{digest, request_digest};
pub(crate) use crate::edge::unknown::UnknownCards;
pub(crate) use crate::edge::waiting::{Queues, Waiting};
pub(crate) use crate::edge::written::actor;
use crate::io::{Now, Output, TapError, Ticket};
use crate::policy::{StandIn, stand_in};
use crate::store::StoreError;
use crate::store::accounts::{Facts, Holder, Purse};
use crate::store::taps::TapUse;

/// Days of used allowance that are kept day by day; a reversal of an older debit gives no allowance back.
pub(crate) const SHARE_DAYS_KEPT: i32 = 8;

/// A purchase that is to be written.
struct Purchase<'a> {
    holder: &'a Holder,
    amount: Fen,
    measured: Option<Measured>,
    merchant: u16,
    split: Split,
    day: BusinessDay,
    mode: Mode,
    /// The meal period that it counts in.
    meal: Option<&'a Meal>,
    /// Whether the account has a habit here; matters where there is stand-in.
    habit: bool,
}

impl NodeCore {
    /// A terminal's tap.
    pub(crate) fn on_tap(
        &mut self,
        now: &Now,
        ticket: Ticket,
        request: TapRequest,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let digest = request_digest(&request);
        if let Some(waiting) = self.waiting_tap(&request.key) {
            if waiting.digest == digest {
                waiting.tickets.push(ticket);
            } else {
                outputs.push(Output::Refused(ticket, TapError::OtherContent(request.key)));
            }
            return Ok(());
        }
        let waiting = Waiting {
            digest,
            tickets: vec![ticket],
            deadline_ms: now.mono_ms + self.settings.ask_deadline_ms,
            asks: Asks::default(),
            pin: Pin::Absent,
            named: None,
            request,
        };
        let known = self.tap_row(&waiting.request.key)?.filter(|_| !planted(Canary::DedupeSkipped));
        if let Some(row) = known {
            if row.used == TapUse::Tombstone {
                let decision = self.write_decline(now, &waiting, None, Fen::ZERO, DeclineReason::Reversed)?;
                self.answer(&waiting, decision, outputs)?;
            } else if row.digest.is_some_and(|first| first != digest) {
                outputs.push(Output::Refused(ticket, TapError::OtherContent(waiting.request.key)));
            } else {
                let receipt = self.receipt(&waiting.request)?;
                outputs.push(Output::Decided { ticket, decision: row.decision(), repeat: true, receipt });
            }
            return Ok(());
        }
        if let Err(error) = self.check_tap(&waiting.request) {
            outputs.push(Output::Refused(ticket, error));
            return Ok(());
        }
        match waiting.request.card.short_code() {
            Some(code) => self.name(code, waiting, outputs),
            None => self.take_tap(now, waiting, outputs),
        }
    }

    /// Decides a tap whose card is known, or lets it wait.
    fn take_tap(
        &mut self,
        now: &Now,
        mut waiting: Waiting,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let facts = self.facts_of(&waiting.request, waiting.named)?;
        let account = facts.as_ref().map(|facts| facts.holder.account);
        if waiting.request.kind != TapKind::Access
            && let Some(account) = account
            && self.queues.by_account.contains_key(&account)
        {
            self.queues.push(account, waiting);
            return Ok(());
        }
        match (self.decide(now, &mut waiting, facts, outputs)?, account) {
            (Some(decision), _) => self.answer(&waiting, decision, outputs)?,
            (None, Some(account)) => self.queues.push(account, waiting),
            // Only a purchase of a known account can wait.
            (None, None) => {
                self.answer(&waiting, Decision::Declined(DeclineReason::OutOfService), outputs)?;
            }
        }
        Ok(())
    }

    /// Decides the waiting taps of these accounts as far as they can be, in order.
    pub(crate) fn decide_waiting(
        &mut self,
        now: &Now,
        accounts: impl IntoIterator<Item = AccountId>,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        for account in accounts {
            let Some(mut queue) = self.queues.by_account.remove(&account) else { continue };
            while let Some(head) = queue.front_mut() {
                let facts = self.facts_of(&head.request, head.named)?;
                let Some(decision) = self.decide(now, head, facts, outputs)? else { break };
                self.answer(head, decision, outputs)?;
                self.queues.by_key.remove(&head.request.key);
                queue.pop_front();
            }
            if !queue.is_empty() {
                self.queues.by_account.insert(account, queue);
            }
        }
        Ok(())
    }

    /// Decides every tap that has waited long enough.
    pub(crate) fn decide_overdue(&mut self, now: &Now, outputs: &mut Vec<Output>) -> Result<(), StoreError> {
        let overdue: Vec<AccountId> = self
            .queues
            .by_account
            .iter()
            .filter(|(_, queue)| queue.front().is_some_and(|head| head.deadline_ms <= now.mono_ms))
            .map(|(account, _)| *account)
            .collect();
        self.decide_waiting(now, overdue, outputs)
    }

    /// True where a loss of this card was told ahead of its entry.
    pub(crate) fn is_told_lost(&self, card: &CardNumber, account: AccountId) -> bool {
        self.losses.get(card).is_some_and(|accounts| accounts.contains(&account))
    }

    /// The waiting tap of a key.
    fn waiting_tap(&mut self, key: &TapKey) -> Option<&mut Waiting> {
        self.queues.find_mut(key).or_else(|| self.naming.find_mut(key))
    }

    /// Taps that wait for the centre.
    pub(crate) fn waiting_taps(&self) -> usize {
        self.queues.len() + self.naming.len()
    }

    fn check_tap(&self, request: &TapRequest) -> Result<(), TapError> {
        let terminal = &request.key.terminal;
        let unknown = || TapError::UnknownTerminal(terminal.to_string());
        let campus = self.campus.as_ref().ok_or_else(unknown)?;
        let settings = campus.terminals.get(terminal).ok_or_else(unknown)?;
        check_kind(request.kind, terminal.as_str(), merchant(campus, settings))?;
        if self.waiting_taps() >= PENDING_TAPS_MAX { Err(TapError::Busy) } else { Ok(()) }
    }

    /// Judges a tap by what is known at this moment; `None` where it waits for the centre.
    fn decide(
        &mut self,
        now: &Now,
        waiting: &mut Waiting,
        facts: Option<Facts>,
        outputs: &mut Vec<Output>,
    ) -> Result<Option<Decision>, StoreError> {
        let Some(campus) = self.campus.clone() else {
            return Ok(Some(Decision::Declined(DeclineReason::OutOfService)));
        };
        let request = &waiting.request;
        let account = facts.as_ref().map(|facts| facts.holder.account);
        let Some(terminal) = campus.terminals.get(&request.key.terminal) else {
            return Ok(Some(Decision::Declined(DeclineReason::OutOfService)));
        };
        let shut_out = self.state.saved.refused.is_some();
        let code_fault = self.code_fault(now, request.code.as_deref());
        if let Some(fault) = code_fault
            && request.code.as_ref().is_some_and(|code| !code.is_vouched_for())
        {
            // It is about nobody, so nothing is written.
            return Ok(Some(Decision::Declined(fault)));
        }
        if request.kind != TapKind::Access && shut_out {
            let reason = DeclineReason::OutOfService;
            return self.write_decline(now, waiting, account, asked(request.kind), reason).map(Some);
        }
        if let Some(fault) = code_fault {
            return self.write_decline(now, waiting, account, asked(request.kind), fault).map(Some);
        }
        let lost = account.is_some_and(|account| self.is_told_lost(&request.card, account));
        // A debit by a door would be refused at ingest.
        let sells = self.identity.role != Role::Door;
        let held = facts.as_ref().map(|facts| &facts.holder);
        let open = self.open_to(now, &campus, terminal);
        let today = self.business_day(now);
        let mut judged = standing(request.kind, held, lost, open.as_deref(), sells, today).map(|_| ());
        if matches!(judged, Ok(()) | Err(DeclineReason::NotPermitted)) && self.is_code_used(request)? {
            judged = Err(DeclineReason::CodeUsed);
        }
        let Facts { holder, purse, share } = match (judged, facts) {
            (Ok(()), Some(facts)) => facts,
            (Ok(()), None) => return Err(StoreError::damaged("a card of nobody stands well")),
            (Err(reason), _) => {
                return self.write_decline(now, waiting, account, asked(request.kind), reason).map(Some);
            }
        };
        if request.kind == TapKind::Access {
            return self.write_access(now, waiting, &holder).map(Some);
        }
        let merchant = merchant(&campus, terminal);
        let (amount, measured) = match price(request.kind, &holder.class, merchant, campus.version) {
            Ok(priced) => priced,
            Err(reason) => {
                return self.write_decline(now, waiting, account, Fen::ZERO, reason).map(Some);
            }
        };
        if self.needs_pin_for_code(now, request) {
            return self.write_decline(now, waiting, account, amount, DeclineReason::PinRequired).map(Some);
        }
        waiting.pin = match self.judge_pin(waiting.request.pin, holder.account)? {
            Ok(pin) => pin,
            Err(reason) => return self.write_decline(now, waiting, account, amount, reason).map(Some),
        };
        let mut purchase = Purchase {
            holder: &holder,
            amount,
            measured,
            merchant: terminal.merchant.unwrap_or_default(),
            split: Split::default(),
            day: self.business_day(now),
            mode: campus.config.policy.mode,
            meal: merchant.and_then(|of| campus.config.meal_at(self.time_of_day(now), of.id)),
            habit: false,
        };
        self.decide_purchase(now, waiting, &campus, &mut purchase, (purse, share), outputs)
    }

    /// The groups whose members a terminal lets pass now; `None` for anybody.
    fn open_to<'a>(&self, now: &Now, campus: &Campus, terminal: &'a Terminal) -> Option<Vec<&'a Key>> {
        if terminal.groups.is_empty() {
            return None;
        }
        let (node, time) = (&self.identity.name, self.time_of_day(now));
        let is_open =
            |group: &&Key| campus.config.is_open(node, group, time) || planted(Canary::HoursIgnored);
        Some(terminal.groups.iter().filter(is_open).collect())
    }

    fn decide_purchase(
        &mut self,
        now: &Now,
        waiting: &mut Waiting,
        campus: &Campus,
        purchase: &mut Purchase<'_>,
        (purse, share): (Purse, Share),
        outputs: &mut Vec<Output>,
    ) -> Result<Option<Decision>, StoreError> {
        let account = purchase.holder.account;
        let (day, mode, meal) = (purchase.day, purchase.mode, purchase.meal);
        let held = self.held_by_voucher(now, &waiting.request)?;
        let funds = Funds { holder: purchase.holder, purse: &purse, share: &share, day, mode, meal, held };
        let covered = cover(purchase.amount, waiting.pin, &funds);
        let short = match covered {
            Ok(Cover::Full(split)) => {
                purchase.split = split;
                return self.write_purchase(now, waiting, purchase, purse, share).map(Some);
            }
            Ok(short) => short,
            Err(reason) => {
                return self.write_decline(now, waiting, Some(account), purchase.amount, reason).map(Some);
            }
        };
        let asks = self.link.is_up() || planted(Canary::WaitsThoughCut);
        let next = if asks && now.mono_ms < waiting.deadline_ms {
            waiting.asks.next(&short, &purse, &share)
        } else {
            Next::Decide
        };
        let verdict = match next {
            Next::Ask(unit, want) => {
                self.ask(now, account, unit, want, waiting, outputs);
                return Ok(None);
            }
            Next::Decline(reason) => Err(reason),
            Next::Decide => {
                let unheard_ms = self.unheard_ms(now, waiting);
                self.stand_in(campus, purchase, &short, &purse, unheard_ms)?
            }
        };
        match verdict {
            Ok(()) => self.write_purchase(now, waiting, purchase, purse, share).map(Some),
            Err(reason) => self.write_decline(now, waiting, Some(account), purchase.amount, reason).map(Some),
        }
    }

    /// For how long it is not known here what the account spends elsewhere.
    fn unheard_ms(&self, now: &Now, waiting: &Waiting) -> u64 {
        if self.link.is_up() {
            return waiting.asks.unheard_ms();
        }
        let since = |heard| u64::try_from(now.wall.ms_since(heard)).unwrap_or(0);
        self.state.saved.heard.map_or(u64::MAX, since)
    }

    /// The offline policy for the rest of a purchase; sets how it is paid where it approves.
    fn stand_in(
        &self,
        campus: &Campus,
        purchase: &mut Purchase<'_>,
        short: &Cover,
        purse: &Purse,
        unheard_ms: u64,
    ) -> Result<Result<(), DeclineReason>, StoreError> {
        let Cover::ShortOfRight { split, .. } = short else {
            return Ok(Err(DeclineReason::PinRequired));
        };
        purchase.split = *split;
        let policy = &campus.config.policy;
        let hint = match purchase.mode {
            Mode::Hybrid => self.store.hint(purchase.holder.account)?,
            _ => None,
        };
        let pool = match purchase.mode {
            Mode::Hybrid => self.store.pool(purchase.day)?,
            _ => Default::default(),
        };
        purchase.habit = hint.is_some_and(|hint| hint.habit);
        let pool_left = pool.left(purchase.habit);
        Ok(stand_in(
            purchase.mode,
            &StandIn {
                amount: purchase.amount,
                need: split.stand_in,
                balance: purse.cash.balance() + purse.subsidy.balance(),
                granted_left: purse.cash.row.stand_in_left,
                pool_left,
                hint,
                unheard_ms,
                unheard_ms_max: u64::from(policy.view_age_minutes_max) * 60_000,
                decline_price: policy.decline_price_fen,
            },
        ))
    }

    /// Tells all who asked, with the receipt where there is one.
    fn answer(
        &mut self,
        waiting: &Waiting,
        decision: Decision,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let receipt = match decision {
            Decision::Approved { .. } => self.receipt(&waiting.request)?,
            Decision::Declined(_) => None,
        };
        for (index, ticket) in waiting.tickets.iter().enumerate() {
            let (ticket, repeat, receipt) = (*ticket, index > 0, receipt.clone());
            outputs.push(Output::Decided { ticket, decision, repeat, receipt });
        }
        Ok(())
    }

    /// Allowance days before this are summed up.
    pub(crate) fn share_horizon(&self) -> BusinessDay {
        BusinessDay(self.state.saved.last_day.0 - SHARE_DAYS_KEPT)
    }
}

fn merchant<'a>(campus: &'a Campus, terminal: &Terminal) -> Option<&'a Merchant> {
    terminal.merchant.and_then(|merchant| campus.config.merchant(merchant))
}

/// The amount that a declined tap asked for, as far as that is known without a tariff.
const fn asked(kind: TapKind) -> Fen {
    match kind {
        TapKind::Amount(amount) => amount,
        TapKind::Access | TapKind::Quantity(_) => Fen::ZERO,
    }
}
