//! The one sequence that every tap takes: repeat, tombstone, facts, decision, entry, first answer.
//!
//! A tap that the rights at hand do not cover waits while the node asks the centre ([`asks`]); whatever comes (a grant, a
//! no, the deadline, the end of the link), it is judged again from the start, so what it is told is always by the newest
//! facts. Taps of one account are decided in order; a waiting tap pins nothing. Doors wait for nobody.

pub(crate) mod asks;
mod replay;
mod reversal;
mod unknown;
mod waiting;

use feiqian_protocol::campus::{Merchant, Mode, Terminal};
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{
    Access, Actor, ActorKind, Body, CodeUse, Debit, Decline, Measured, Proof, TapRef,
};
use feiqian_protocol::ids::{AccountId, CardNumber, Key, TerminalId, Wallet};
use feiqian_protocol::limits::PENDING_TAPS_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::rights::Share;
use feiqian_protocol::tap::{Decision, DeclineReason, Pin, TapKey, TapKind, TapRequest};
use feiqian_protocol::time::BusinessDay;
use sha2::{Digest, Sha256};

use crate::authorizer::{Cover, Funds, Split, check_kind, cover, price, standing};
use crate::code::{actor_of, code_use, is_about_code};
use crate::core::{Campus, NodeCore};
use crate::edge::asks::{Asks, Next};
pub(crate) use crate::edge::unknown::UnknownCards;
pub(crate) use crate::edge::waiting::{Queues, Waiting};
use crate::io::{Now, Output, TapError, Ticket};
use crate::policy::{StandIn, stand_in};
use crate::store::StoreError;
use crate::store::accounts::{Facts, Holder, Purse, WalletState};
use crate::store::taps::{DebitRow, TapRow, TapUse};

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
        if let Some(waiting) = self.queues.find_mut(&request.key) {
            if waiting.digest == digest {
                waiting.tickets.push(ticket);
            } else {
                outputs.push(Output::Refused(ticket, TapError::OtherContent(request.key)));
            }
            return Ok(());
        }
        let mut waiting = Waiting {
            digest,
            tickets: vec![ticket],
            deadline_ms: now.mono_ms + self.settings.ask_deadline_ms,
            asks: Asks::default(),
            pin: Pin::Absent,
            request,
        };
        let known = self.tap_row(&waiting.request.key)?.filter(|_| !planted(Canary::DedupeSkipped));
        if let Some(row) = known {
            if row.used == TapUse::Tombstone {
                let decision = self.write_decline(now, &waiting, None, Fen::ZERO, DeclineReason::Reversed)?;
                answer(&waiting, decision, outputs);
            } else if row.digest.is_some_and(|first| first != digest) {
                outputs.push(Output::Refused(ticket, TapError::OtherContent(waiting.request.key)));
            } else {
                outputs.push(Output::Decided { ticket, decision: row.decision(), repeat: true });
            }
            return Ok(());
        }
        if let Err(error) = self.check_tap(&waiting.request) {
            outputs.push(Output::Refused(ticket, error));
            return Ok(());
        }
        let facts = self.facts_of(&waiting.request)?;
        let account = facts.as_ref().map(|facts| facts.holder.account);
        if waiting.request.kind != TapKind::Access
            && let Some(account) = account
            && self.queues.by_account.contains_key(&account)
        {
            self.queues.push(account, waiting);
            return Ok(());
        }
        match (self.decide(now, &mut waiting, facts, outputs)?, account) {
            (Some(decision), _) => answer(&waiting, decision, outputs),
            (None, Some(account)) => self.queues.push(account, waiting),
            // Only a purchase of a known account can wait.
            (None, None) => answer(&waiting, Decision::Declined(DeclineReason::OutOfService), outputs),
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
                let facts = self.facts_of(&head.request)?;
                let Some(decision) = self.decide(now, head, facts, outputs)? else { break };
                answer(head, decision, outputs);
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

    fn check_tap(&self, request: &TapRequest) -> Result<(), TapError> {
        let terminal = &request.key.terminal;
        let unknown = || TapError::UnknownTerminal(terminal.to_string());
        let campus = self.campus.as_ref().ok_or_else(unknown)?;
        let settings = campus.terminals.get(terminal).ok_or_else(unknown)?;
        check_kind(request.kind, terminal.as_str(), merchant(campus, settings))?;
        if self.queues.len() >= PENDING_TAPS_MAX { Err(TapError::Busy) } else { Ok(()) }
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
        let code_fault = self.code_fault(now, request);
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
        let mut judged = standing(request.kind, held, lost, &terminal.groups, sells).map(|_| ());
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
            habit: false,
        };
        self.decide_purchase(now, waiting, &campus, &mut purchase, (purse, share), outputs)
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
        let (day, mode) = (purchase.day, purchase.mode);
        let funds = Funds { holder: purchase.holder, purse: &purse, share: &share, day, mode };
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

    /// What the terminal's key was used for before.
    pub(crate) fn tap_row(&mut self, key: &TapKey) -> Result<Option<TapRow>, StoreError> {
        match self.terminal_number(&key.terminal)? {
            Some(terminal) => self.store.tap(terminal, key.epoch, &key.sequence),
            None => Ok(None),
        }
    }

    fn terminal_number(&mut self, terminal: &TerminalId) -> Result<Option<i64>, StoreError> {
        if let Some(number) = self.terminals.get(terminal) {
            return Ok(Some(*number));
        }
        let number = self.store.terminal(terminal)?;
        if let Some(number) = number {
            self.terminals.insert(terminal.clone(), number);
        }
        Ok(number)
    }

    /// Keeps a first answer where there may be a tombstone.
    pub(crate) fn put_tap_row(&mut self, key: &TapKey, row: &TapRow) -> Result<(), StoreError> {
        let terminal = self.number_of_terminal(&key.terminal)?;
        self.store.put_tap(terminal, key.epoch, &key.sequence, row)
    }

    /// Keeps the first answer to a key that was not used before, and what the tap left of cash and share where it changed
    /// them.
    fn put_recent(
        &mut self,
        key: &TapKey,
        row: &TapRow,
        spent: Option<(&WalletState, &Share)>,
    ) -> Result<(), StoreError> {
        let terminal = self.number_of_terminal(&key.terminal)?;
        self.store.put_recent((terminal, key.epoch, &key.sequence), row, spent, self.share_horizon())
    }

    fn number_of_terminal(&mut self, terminal: &TerminalId) -> Result<i64, StoreError> {
        if let Some(number) = self.terminal_number(terminal)? {
            return Ok(number);
        }
        let number = self.store.add_terminal(terminal)?;
        self.terminals.insert(terminal.clone(), number);
        Ok(number)
    }

    /// Writes a decision and keeps the answer; where that fails by itself (a full disk), nothing is kept and the terminal
    /// is told to come again.
    fn write_or_out_of_service(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<Decision, StoreError>,
    ) -> Result<Decision, StoreError> {
        // While a lost tail of the log is on its way back, an entry written now would fork the log; and to a damaged one
        // none can be added.
        if self.state.saved.tail_until.is_some() || self.damage.is_some() {
            return Ok(Decision::Declined(DeclineReason::OutOfService));
        }
        let written = self.guarded(write)?;
        Ok(written.unwrap_or(Decision::Declined(DeclineReason::OutOfService)))
    }

    fn write_decline(
        &mut self,
        now: &Now,
        waiting: &Waiting,
        account: Option<AccountId>,
        amount: Fen,
        reason: DeclineReason,
    ) -> Result<Decision, StoreError> {
        let request = &waiting.request;
        if (reason == DeclineReason::UnknownCard || is_about_code(reason))
            && !self.unknown_cards.admit(&request.key.terminal, now.elapsed_ms)
        {
            return Ok(Decision::Declined(reason));
        }
        self.write_or_out_of_service(|core| {
            let access = request.kind == TapKind::Access;
            let tap = tap_ref(&request.key);
            let card = request.card.clone();
            let pin_tries = core.count_pin(account, waiting.pin)?;
            let decline = Decline { tap, account, card, amount, reason, access, pin_tries };
            let (position, clock) = core.append(now, actor_of(request, waiting.pin), decline.into())?;
            let row = TapRow {
                used: if access { TapUse::Access } else { TapUse::Purchase },
                digest: Some(waiting.digest),
                card: Some(request.card.clone()),
                account: account.unwrap_or(AccountId(0)),
                reason: Some(reason),
                amount,
                stand_in: Fen::ZERO,
                reversed: Fen::ZERO,
                clock,
                position,
                debits: 0,
            };
            if reason == DeclineReason::Reversed {
                core.put_tap_row(&request.key, &row)?;
            } else {
                core.put_recent(&request.key, &row, None)?;
            }
            Ok(row.decision())
        })
    }

    fn write_access(
        &mut self,
        now: &Now,
        waiting: &Waiting,
        holder: &Holder,
    ) -> Result<Decision, StoreError> {
        let request = &waiting.request;
        self.write_or_out_of_service(|core| {
            let access = Access {
                tap: tap_ref(&request.key),
                account: holder.account,
                card: request.card.clone(),
                code: code_use(request),
            };
            let (position, clock) = core.append(now, actor_of(request, waiting.pin), access.into())?;
            let row = TapRow {
                used: TapUse::Access,
                digest: Some(waiting.digest),
                card: Some(request.card.clone()),
                account: holder.account,
                reason: None,
                amount: Fen::ZERO,
                stand_in: Fen::ZERO,
                reversed: Fen::ZERO,
                clock,
                position,
                debits: 0,
            };
            core.put_recent(&request.key, &row, None)?;
            core.use_code(now, request)?;
            Ok(row.decision())
        })
    }

    fn write_purchase(
        &mut self,
        now: &Now,
        waiting: &Waiting,
        purchase: &Purchase<'_>,
        mut purse: Purse,
        mut share: Share,
    ) -> Result<Decision, StoreError> {
        let request = &waiting.request;
        let (account, split, day) = (purchase.holder.account, purchase.split, purchase.day);
        assert_eq!(
            split.subsidy + split.cash + split.stand_in,
            purchase.amount,
            "a purchase is paid in full"
        );
        let counts = waiting.pin != Pin::Right;
        self.write_or_out_of_service(|core| {
            core.count_pin(Some(account), waiting.pin)?;
            let mut first = None;
            let mut debits = 0;
            let mut measured = purchase.measured.clone();
            let parts =
                [(Wallet::Subsidy, split.subsidy, Fen::ZERO), (Wallet::Cash, split.cash, split.stand_in)];
            for (wallet, from_right, stand_in) in parts {
                if from_right + stand_in == Fen::ZERO {
                    continue;
                }
                let debit = Debit {
                    tap: tap_ref(&request.key),
                    account,
                    wallet,
                    epoch: core.state.saved.epoch,
                    from_right,
                    stand_in,
                    allowance: if counts { from_right + stand_in } else { Fen::ZERO },
                    day,
                    merchant: purchase.merchant,
                    card: request.card.clone(),
                    measured: measured.take(),
                    code: code_use(request),
                };
                let actor = actor_of(request, waiting.pin);
                let (position, clock) = core.append(now, actor, Body::Debit(debit.clone()))?;
                core.book_debit(position, &debit, &mut purse, purchase.mode)?;
                first.get_or_insert((position, clock));
                debits += 1;
            }
            if counts && !planted(Canary::AllowanceNotCounted) {
                use_allowance(day, purchase.amount, &mut share, purchase.mode)?;
            }
            let debited = !planted(Canary::RightNotDebitedOnRetry) || waiting.tickets.len() == 1;
            if split.subsidy.is_positive() && debited {
                core.store.put_wallet(account, Wallet::Subsidy, &purse.subsidy)?;
            }
            if split.stand_in.is_positive() && purchase.mode == Mode::Hybrid {
                core.store.use_pool(day, split.stand_in, purchase.habit)?;
            }
            core.state.saved.last_day = core.state.saved.last_day.max(day);
            let (position, clock) =
                first.ok_or_else(|| StoreError::damaged("a purchase of nothing was approved"))?;
            let row = TapRow {
                used: TapUse::Purchase,
                digest: Some(waiting.digest),
                card: Some(request.card.clone()),
                account,
                reason: None,
                amount: purchase.amount,
                stand_in: split.stand_in,
                reversed: Fen::ZERO,
                clock,
                position,
                debits,
            };
            let from_cash = (split.cash + split.stand_in).is_positive();
            let spent = (from_cash || counts) && debited;
            core.put_recent(&request.key, &row, spent.then_some((&purse.cash, &share)))?;
            core.use_code(now, request)?;
            Ok(row.decision())
        })
    }

    /// Takes a debit out of its row and the balance as it is shown here, which the caller keeps, and keeps what a reversal
    /// will need.
    fn book_debit(
        &mut self,
        position: u64,
        debit: &Debit,
        purse: &mut Purse,
        mode: Mode,
    ) -> Result<(), StoreError> {
        let wallet = purse.wallet_mut(debit.wallet);
        wallet
            .row
            .debit(debit, mode == Mode::Optimistic)
            .map_err(|error| StoreError::damaged(format!("a debit beyond its right: {error}")))?;
        wallet.own -= debit.amount();
        self.store.put_debit(&DebitRow::new(position, debit))?;
        let totals = &mut self.state.totals;
        totals.unspent -= debit.from_right;
        totals.stand_in_left -= debit.stand_in;
        totals.exposed += debit.amount();
        Ok(())
    }

    /// Allowance days before this are summed up.
    pub(crate) fn share_horizon(&self) -> BusinessDay {
        BusinessDay(self.state.saved.last_day.0 - SHARE_DAYS_KEPT)
    }
}

fn use_allowance(day: BusinessDay, amount: Fen, share: &mut Share, mode: Mode) -> Result<(), StoreError> {
    if mode == Mode::Optimistic {
        *share.used_on.entry(day).or_default() += amount;
        return Ok(());
    }
    share.spend(day, amount).map_err(|error| StoreError::damaged(format!("beyond the allowance: {error}")))
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

fn answer(waiting: &Waiting, decision: Decision, outputs: &mut Vec<Output>) {
    for (index, ticket) in waiting.tickets.iter().enumerate() {
        outputs.push(Output::Decided { ticket: *ticket, decision, repeat: index > 0 });
    }
}

pub(crate) fn tap_ref(key: &TapKey) -> TapRef {
    TapRef { epoch: key.epoch, sequence: key.sequence.clone() }
}

fn actor(terminal: &TerminalId, proof: Proof) -> Actor {
    let id = Key::new(terminal.as_str()).expect("a terminal's name is a name");
    Actor { kind: ActorKind::Terminal, id, proof }
}

/// What a repeat must have in common with the first request. Of a PIN only that there was one: this is kept, and a PIN, or
/// what it could be found by, is not.
pub(crate) fn request_digest(request: &TapRequest) -> [u8; 16] {
    digest_with(request, code_use(request))
}

/// The same of a request whose code is known from what was written of it only.
fn digest_with(request: &TapRequest, code: Option<CodeUse>) -> [u8; 16] {
    let (tag, number) = match request.kind {
        TapKind::Access => (0_u8, 0),
        TapKind::Amount(amount) => (1, amount.get()),
        TapKind::Quantity(quantity) => (2, i64::from(quantity)),
    };
    let pin = u8::from(request.pin != Pin::Absent);
    let parts: [&[u8]; 3] = [&[tag, pin], &number.to_be_bytes(), request.card.as_str().as_bytes()];
    match code {
        None => digest(&parts),
        Some(CodeUse { voucher, counter, .. }) => {
            let [asked, number, card] = parts;
            digest(&[asked, number, card, &voucher.to_be_bytes(), &counter.to_be_bytes()])
        }
    }
}

fn digest(parts: &[&[u8]]) -> [u8; 16] {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update((part.len() as u64).to_be_bytes());
        sha.update(part);
    }
    let hash: [u8; 32] = sha.finalize().into();
    std::array::from_fn(|index| hash[index])
}
