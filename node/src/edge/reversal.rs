//! Reversals: a tap given back, whole or in part, by the node that wrote it.
//!
//! The debits of a tap are given back in the reverse order of spending, and of each debit the stand-in part first, which
//! always goes home; right comes back to the row only within the debit's epoch. A reversal that overtakes its tap leaves a
//! tombstone, which declines the tap when it comes; it is answered as approved with nothing given back, and since no card
//! is known then, with account 0.

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Body, Delta, Proof, Reversal, Tombstone};
use feiqian_protocol::ids::{AccountId, CardNumber};
use feiqian_protocol::limits::AMOUNT_FEN_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::rights::split_reversal;
use feiqian_protocol::tap::{Decision, DeclineReason, ReversalRequest, TapKey};

use crate::core::NodeCore;
use crate::edge::digest::digest;
use crate::edge::written::{actor, tap_ref};
use crate::io::{Now, Output, TapError, Ticket};
use crate::store::StoreError;
use crate::store::taps::{DebitRow, TapRow, TapUse};

impl NodeCore {
    /// A terminal's reversal.
    pub(crate) fn on_reversal(
        &mut self,
        now: &Now,
        ticket: Ticket,
        request: ReversalRequest,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let output = match self.reverse(now, &request, outputs)? {
            Ok((decision, repeat)) => Output::Decided { ticket, decision, repeat, receipt: None },
            Err(error) => Output::Refused(ticket, error),
        };
        outputs.push(output);
        Ok(())
    }

    fn reverse(
        &mut self,
        now: &Now,
        request: &ReversalRequest,
        outputs: &mut Vec<Output>,
    ) -> Result<Result<(Decision, bool), TapError>, StoreError> {
        let digest = reversal_digest(request);
        let other_content = || TapError::OtherContent(request.key.clone());
        if self.waiting_tap(&request.key).is_some() {
            return Ok(Err(other_content()));
        }
        if let Some(row) = self.tap_row(&request.key)? {
            let same = row.used == TapUse::Reversal && row.digest.is_none_or(|first| first == digest);
            return Ok(if same { Ok((row.decision(), true)) } else { Err(other_content()) });
        }
        if let Err(error) = self.check_reversal(request) {
            return Ok(Err(error));
        }
        if let Some((account, waiting)) = self.queues.remove(&request.original) {
            // The tombstone first: what declines the tap is the reversal.
            let decision = self.write_tombstone(now, request, digest, account, None)?;
            let reason = DeclineReason::Reversed;
            let declined = self.write_decline(now, &waiting, Some(account), Fen::ZERO, reason)?;
            self.answer(&waiting, declined, outputs)?;
            self.decide_waiting(now, [account], outputs)?;
            return Ok(Ok((decision, false)));
        }
        if let Some(waiting) = self.naming.remove(&request.original) {
            let original = Some(&request.original);
            let decision = self.write_tombstone(now, request, digest, AccountId(0), original)?;
            self.answer(&waiting, Decision::Declined(DeclineReason::Reversed), outputs)?;
            return Ok(Ok((decision, false)));
        }
        let Some(tap) = self.tap_row(&request.original)? else {
            return Ok(Ok((
                self.write_tombstone(now, request, digest, AccountId(0), Some(&request.original))?,
                false,
            )));
        };
        match tap.used {
            TapUse::Tombstone => {
                Ok(Ok((self.write_tombstone(now, request, digest, AccountId(0), None)?, false)))
            }
            TapUse::Purchase if tap.reason.is_none() => {
                let debits = self.store.debits(tap.position, tap.position + tap.debits.saturating_sub(1))?;
                let rest: Fen = debits.iter().map(DebitRow::rest).sum();
                let amount = request.amount.unwrap_or(rest);
                if amount > rest || !amount.is_positive() {
                    return Ok(Err(TapError::ReversalTooLarge));
                }
                Ok(Ok((self.write_reversal(now, request, digest, &tap, debits, amount)?, false)))
            }
            _ => Ok(Err(TapError::NothingToReverse)),
        }
    }

    fn check_reversal(&self, request: &ReversalRequest) -> Result<(), TapError> {
        let terminal = &request.key.terminal;
        if !self.campus.as_ref().is_some_and(|campus| campus.terminals.contains_key(terminal)) {
            return Err(TapError::UnknownTerminal(terminal.to_string()));
        }
        if request.original.terminal != *terminal {
            return Err(TapError::OtherTerminal);
        }
        match request.amount {
            Some(amount) if !amount.is_positive() || amount > AMOUNT_FEN_MAX => Err(TapError::Amount),
            // A key cannot undo itself.
            _ if request.original == request.key => Err(TapError::NothingToReverse),
            _ => Ok(()),
        }
    }

    /// Writes that the original came too late, or will; `unseen` where its key must be kept for that.
    fn write_tombstone(
        &mut self,
        now: &Now,
        request: &ReversalRequest,
        digest: [u8; 16],
        account: AccountId,
        unseen: Option<&TapKey>,
    ) -> Result<Decision, StoreError> {
        self.write_or_out_of_service(|core| {
            let tombstone = Tombstone { tap: tap_ref(&request.key), original: tap_ref(&request.original) };
            let (position, clock) =
                core.append(now, actor(&request.key.terminal, Proof::None), tombstone.into())?;
            let mut row = TapRow {
                used: TapUse::Reversal,
                digest: Some(digest),
                card: None,
                account,
                reason: None,
                amount: Fen::ZERO,
                stand_in: Fen::ZERO,
                reversed: Fen::ZERO,
                clock,
                position,
                debits: 0,
            };
            core.put_tap_row(&request.key, &row)?;
            let decision = row.decision();
            if let Some(original) = unseen.filter(|_| !planted(Canary::TombstoneIgnored)) {
                row.used = TapUse::Tombstone;
                row.digest = None;
                core.put_tap_row(original, &row)?;
            }
            Ok(decision)
        })
    }

    fn write_reversal(
        &mut self,
        now: &Now,
        request: &ReversalRequest,
        digest: [u8; 16],
        tap: &TapRow,
        mut debits: Vec<DebitRow>,
        amount: Fen,
    ) -> Result<Decision, StoreError> {
        self.write_or_out_of_service(|core| {
            let mut left = amount;
            let mut first = None;
            for debit in debits.iter_mut().rev() {
                let part = left.min(debit.rest());
                if !part.is_positive() {
                    continue;
                }
                let reversal = core.reversal_of(request, debit, part)?;
                let by = actor(&request.key.terminal, Proof::None);
                let (position, clock) = core.append(now, by, Body::Reversal(reversal.clone()))?;
                core.book_reversal(position, &reversal, debit)?;
                first.get_or_insert((position, clock));
                left -= part;
            }
            assert_eq!(left, Fen::ZERO, "no more is reversed than is left of the debits");
            let (position, clock) = first.ok_or_else(|| StoreError::damaged("a reversal of nothing"))?;
            core.put_reversal_row(&request.key, Some(digest), tap, amount, (position, clock))?;
            core.count_reversed(&request.original, amount)?;
            Ok(Decision::Approved { account: tap.account, amount, stand_in: Fen::ZERO })
        })
    }

    /// Keeps the first answer of a reversal.
    pub(crate) fn put_reversal_row(
        &mut self,
        key: &TapKey,
        digest: Option<[u8; 16]>,
        tap: &TapRow,
        amount: Fen,
        (position, clock): (u64, feiqian_protocol::time::Hlc),
    ) -> Result<(), StoreError> {
        let card: Option<CardNumber> = tap.card.clone();
        let row = TapRow {
            used: TapUse::Reversal,
            digest,
            card,
            account: tap.account,
            reason: None,
            amount,
            stand_in: Fen::ZERO,
            reversed: Fen::ZERO,
            clock,
            position,
            debits: 0,
        };
        self.put_tap_row(key, &row)
    }

    /// Counts a reversal on its tap.
    pub(crate) fn count_reversed(&mut self, original: &TapKey, amount: Fen) -> Result<(), StoreError> {
        match self.terminal_number(&original.terminal)? {
            Some(terminal) => self.store.add_reversed(terminal, original.epoch, &original.sequence, amount),
            None => Ok(()),
        }
    }

    fn reversal_of(
        &self,
        request: &ReversalRequest,
        debit: &DebitRow,
        part: Fen,
    ) -> Result<Reversal, StoreError> {
        let named = planted(Canary::ReversalNamesDebitsEpoch);
        let epoch = if named { debit.epoch } else { self.state.saved.epoch };
        let same_epoch = debit.epoch == epoch;
        let (right_back, right_home, stand_in_home) =
            split_reversal(part, debit.right_rest, debit.stand_in_rest, same_epoch)
                .ok_or_else(|| StoreError::damaged("a reversal beyond its debit"))?;
        // With the epoch its shares are gone, and with old days what was used on them.
        let allowance_back = if same_epoch && debit.allowance_rest.is_positive() {
            let share = self.store.share(debit.account)?;
            let used = share.used_on.get(&debit.day).copied().unwrap_or_default();
            part.min(debit.allowance_rest).min(used)
        } else {
            Fen::ZERO
        };
        Ok(Reversal {
            tap: tap_ref(&request.key),
            debit: debit.position,
            account: debit.account,
            wallet: debit.wallet,
            epoch,
            right_back,
            right_home,
            stand_in_home,
            allowance_back,
            day: debit.day,
        })
    }

    fn book_reversal(
        &mut self,
        position: u64,
        reversal: &Reversal,
        debit: &mut DebitRow,
    ) -> Result<(), StoreError> {
        let account = reversal.account;
        let mut purse = self.store.purse(account)?;
        let wallet = purse.wallet_mut(reversal.wallet);
        wallet
            .row
            .reversal(reversal)
            .map_err(|error| StoreError::damaged(format!("a reversal of its row: {error}")))?;
        wallet.own += reversal.amount();
        self.store.put_wallet(account, reversal.wallet, wallet)?;
        let delta = Delta { account, wallet: reversal.wallet, amount: reversal.amount() };
        self.store.put_reversal(position, &delta)?;
        if reversal.allowance_back.is_positive() {
            let mut share = self.store.share(account)?;
            share
                .give_back(reversal.day, reversal.allowance_back)
                .map_err(|error| StoreError::damaged(format!("allowance given back: {error}")))?;
            if let Some(meal) = debit.meal {
                share.count_out(reversal.day, meal, reversal.allowance_back);
            }
            self.store.put_share(account, &share, self.share_horizon())?;
        }
        debit.reverse(reversal);
        self.store.put_rest(debit)?;
        self.state.totals.unspent += reversal.right_back;
        Ok(())
    }
}

fn reversal_digest(request: &ReversalRequest) -> [u8; 16] {
    let amount = request.amount.map_or(0, Fen::get);
    let original = &request.original;
    digest(&[
        b"reversal",
        &amount.to_be_bytes(),
        &original.epoch.to_be_bytes(),
        original.sequence.as_str().as_bytes(),
        original.terminal.as_str().as_bytes(),
    ])
}
