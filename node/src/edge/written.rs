//! What is written of a tap: the entry, what it moves, and the first answer, in the one commit.

use feiqian_protocol::campus::{Meal, Mode};
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Access, Actor, ActorKind, Body, Debit, Decline, Proof, TapRef};
use feiqian_protocol::ids::{AccountId, Key, TerminalId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::rights::Share;
use feiqian_protocol::tap::{Decision, DeclineReason, Pin, TapKey, TapKind};
use feiqian_protocol::time::BusinessDay;

use super::{Purchase, Waiting};
use crate::code::{actor_of, code_use, is_about_code};
use crate::core::NodeCore;
use crate::io::Now;
use crate::store::StoreError;
use crate::store::accounts::{Holder, Purse, WalletState};
use crate::store::taps::{DebitRow, TapRow, TapUse};

impl NodeCore {
    /// What the terminal's key was used for before.
    pub(crate) fn tap_row(&mut self, key: &TapKey) -> Result<Option<TapRow>, StoreError> {
        match self.terminal_number(&key.terminal)? {
            Some(terminal) => self.store.tap(terminal, key.epoch, &key.sequence),
            None => Ok(None),
        }
    }

    pub(super) fn terminal_number(&mut self, terminal: &TerminalId) -> Result<Option<i64>, StoreError> {
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
    pub(super) fn write_or_out_of_service(
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

    pub(super) fn write_decline(
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

    pub(super) fn write_access(
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

    pub(super) fn write_purchase(
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
            split.voucher + split.subsidy + split.cash + split.stand_in,
            purchase.amount,
            "a purchase is paid in full"
        );
        let counts = waiting.pin != Pin::Right;
        self.write_or_out_of_service(|core| {
            core.count_pin(Some(account), waiting.pin)?;
            let mut first = None;
            let mut debits = 0;
            let mut measured = purchase.measured.clone();
            let parts = [
                (Wallet::Cash, split.voucher, Fen::ZERO, Fen::ZERO),
                (Wallet::Subsidy, Fen::ZERO, split.subsidy, Fen::ZERO),
                (Wallet::Cash, Fen::ZERO, split.cash, split.stand_in),
            ];
            for (wallet, from_voucher, from_right, stand_in) in parts {
                if from_voucher + from_right + stand_in == Fen::ZERO {
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
                    from_voucher: from_voucher.is_positive().then_some(from_voucher),
                    meal: purchase.meal.map(Meal::label),
                };
                let actor = actor_of(request, waiting.pin);
                let (position, clock) = core.append(now, actor, Body::Debit(debit.clone()))?;
                core.book_debit(position, &debit, &mut purse, purchase.mode)?;
                first.get_or_insert((position, clock));
                debits += 1;
            }
            if counts && !planted(Canary::AllowanceNotCounted) {
                let used = purchase.amount - split.voucher;
                use_allowance(day, used, &mut share, purchase.mode)?;
                if let Some(meal) = purchase.meal.filter(|_| used.is_positive()) {
                    share.count_in(day, meal.label(), used);
                }
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
            let from_cash = (split.voucher + split.cash + split.stand_in).is_positive();
            let spent = (from_cash || counts) && debited;
            core.put_recent(&request.key, &row, spent.then_some((&purse.cash, &share)))?;
            core.use_code(now, request)?;
            if split.voucher.is_positive() {
                core.spend_voucher(request)?;
            }
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
}

fn use_allowance(day: BusinessDay, amount: Fen, share: &mut Share, mode: Mode) -> Result<(), StoreError> {
    if mode == Mode::Optimistic {
        *share.used_on.entry(day).or_default() += amount;
        return Ok(());
    }
    share.spend(day, amount).map_err(|error| StoreError::damaged(format!("beyond the allowance: {error}")))
}

pub(crate) fn tap_ref(key: &TapKey) -> TapRef {
    TapRef { epoch: key.epoch, sequence: key.sequence.clone() }
}

pub(crate) fn actor(terminal: &TerminalId, proof: Proof) -> Actor {
    let id = Key::new(terminal.as_str()).expect("a terminal's name is a name");
    Actor { kind: ActorKind::Terminal, id, proof }
}
