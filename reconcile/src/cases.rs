//! Cases: what is posted of an overspend, as target minus posted; who bears it; and what credits recover of it.
//!
//! After each step the open cases of a wallet amount to exactly what its funds are below zero. A case is born in suspense
//! and becomes the holder's once every open node has been heard past its debit, or the term is over. What is recovered
//! is an entry with a place of its own, so a later overspend of the same money is seen as one.

mod decision;

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Actor, Bearer, CaseMoved, CaseReason, EntryRef};
use feiqian_protocol::ids::{AccountId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;

use crate::core::{Round, StoreError};
use crate::ledger::{claims_ledger, wallet_ledger};
use crate::overspend::{Movement, targets};
use crate::store::cases::{self, CaseState};
use crate::store::money::{self, MovementState};

/// Cases that one step takes out of suspense; the rest follow in the next steps.
const CLAIMS_PER_STEP: usize = 256;

impl CaseState {
    /// Owed and not recovered. What is refunded, such as after a loss, is not owed by the holder.
    pub(crate) fn outstanding(&self) -> Fen {
        if self.reason.is_refunded() { Fen::ZERO } else { self.opened - self.recovered }
    }
}

impl Round<'_> {
    /// Resolves the wallets that this step touched.
    pub(crate) fn resolve_cases(&mut self) -> Result<(), StoreError> {
        for (account, wallet) in std::mem::take(&mut self.resolve) {
            let state = self.holding(account, wallet)?.wallet;
            if state.unbacked.is_positive() || state.claims.is_positive() {
                self.resolve_wallet(account, wallet)?;
            }
        }
        Ok(())
    }

    fn resolve_wallet(&mut self, account: AccountId, wallet: Wallet) -> Result<(), StoreError> {
        let institution = self.state.identity.institution;
        let last = self.holding(account, wallet)?.wallet.last;
        let history: BTreeMap<EntryRef, MovementState> = money::movements(self.db, account, wallet, last)?;
        let targets = targets(history.iter().map(|(at, state)| replayed(*at, state)).collect());
        let before = cases::overspend_cases(self.db, institution, account, wallet)?;
        let mut cases = before.clone();
        let known: BTreeSet<EntryRef> = before.iter().map(|case| case.debit).collect();
        for (at, state) in &history {
            if targets.contains_key(at) && !known.contains(at) {
                cases.push(CaseState {
                    account,
                    wallet,
                    debit: *at,
                    order_key: state.order_key,
                    reason: state.reason,
                    bearer: Bearer::Suspense,
                    opened: Fen::ZERO,
                    recovered: Fen::ZERO,
                    refunded: Fen::ZERO,
                    card: state.card.as_ref().map(ToString::to_string).unwrap_or_default(),
                });
            }
        }
        let horizon = self.horizon();
        for case in &mut cases {
            let target = targets.get(&case.debit).copied().unwrap_or_default();
            case.opened = match case.opened {
                opened if planted(Canary::CaseOpenedAgain) => opened + target,
                opened if planted(Canary::LateEntryUnsettlesCase) => opened.max(target),
                _ => target,
            };
            // A holder who has paid for what turned out not to be overspent has it back in the funds.
            case.recovered = case.recovered.min(case.opened);
            if case.order_key < horizon {
                case.bearer = Bearer::Holder;
            }
        }
        let funds = self.holding(account, wallet)?.wallet.funds;
        let owed: Fen = cases.iter().map(CaseState::outstanding).sum();
        recover(&mut cases, owed - (-funds).or_zero());
        for (index, case) in cases.iter().enumerate() {
            if before.get(index) != Some(case) {
                self.move_case(before.get(index), case, Actor::centre())?;
            }
        }
        let claims = cases.iter().map(CaseState::outstanding).sum();
        self.holding(account, wallet)?.wallet.claims = claims;
        Ok(())
    }

    /// Order keys below this can no longer come: every open node was heard past it, or the term is over.
    pub(crate) fn horizon(&self) -> Timestamp {
        let open = self.state.nodes.values().filter(|node| node.is_open() && node.spends());
        let heard = open.map(|node| node.heard).min().unwrap_or(self.state.time);
        let term_ms = i64::from(self.state.policy().claim_term_minutes) * 60_000;
        heard.max(self.state.time.plus_ms(-term_ms))
    }

    /// Gives the cases whose place everybody has passed to their holders.
    pub(crate) fn open_claims(&mut self) -> Result<(), StoreError> {
        let institution = self.state.identity.institution;
        let horizon = self.horizon();
        for before in cases::suspense_cases_before(self.db, institution, horizon, CLAIMS_PER_STEP)? {
            let after = CaseState { bearer: Bearer::Holder, ..before.clone() };
            self.move_case(Some(&before), &after, Actor::centre())?;
        }
        Ok(())
    }

    /// Writes a case as it is now, and posts the difference.
    fn move_case(
        &mut self,
        before: Option<&CaseState>,
        after: &CaseState,
        actor: Actor,
    ) -> Result<(), StoreError> {
        // A case speaks of debits: they are posted before it.
        self.write_posted()?;
        let log = self.state.shard(after.account);
        let moved = CaseMoved {
            debit: after.debit,
            account: after.account,
            wallet: after.wallet,
            reason: after.reason,
            bearer: after.bearer,
            opened: after.opened,
            recovered: after.recovered,
        };
        let position = self.append(log, actor, moved)?;
        self.post_case(EntryRef { log, position }, self.state.time, before, after)
    }

    /// Posts what an entry about a case says, as the difference to how the case stood.
    pub(crate) fn post_case(
        &mut self,
        at: EntryRef,
        time: Timestamp,
        before: Option<&CaseState>,
        after: &CaseState,
    ) -> Result<(), StoreError> {
        let owed = before.map(CaseState::outstanding).unwrap_or_default();
        let owes = after.outstanding();
        let mut lines = Vec::new();
        if let Some(before) = before {
            lines.push((claims_ledger(before.bearer), owed));
        }
        lines.push((claims_ledger(after.bearer), -owes));
        lines.push((wallet_ledger(after.account, after.wallet), owes - owed));
        lines.retain(|(_, amount)| *amount != Fen::ZERO);
        let day = self.state.day;
        self.post_lines(at, day, lines)?;
        let recovered = after.recovered - before.map(|case| case.recovered).unwrap_or_default();
        if recovered != Fen::ZERO {
            let previous = self.link_movement(after.account, after.wallet, at)?;
            let movement = MovementState { recovered, previous, ..MovementState::plain(time, Fen::ZERO) };
            money::put_movement(self.db, after.account, after.wallet, at, &movement)?;
        }
        // Grants and hints go by open cases.
        self.state.hand_out.later(after.account);
        cases::put_case(self.db, after)
    }

    /// Writes how the case of a debit stands that the holder is to have back; above the refund cap a person looks at it.
    pub(crate) fn move_loss_case(
        &mut self,
        debit: EntryRef,
        account: AccountId,
        wallet: Wallet,
        movement: &MovementState,
        reason: CaseReason,
        (opened, refunded): (Fen, Fen),
    ) -> Result<(), StoreError> {
        let before = cases::loss_case(self.db, account, wallet, debit)?;
        // What a person has decided stays so.
        let decided = before.as_ref().map(|case| case.bearer).filter(|bearer| *bearer == Bearer::Holder);
        let bearer = if refunded == opened { Bearer::RiskFund } else { decided.unwrap_or(Bearer::Suspense) };
        let after = CaseState {
            account,
            wallet,
            debit,
            order_key: movement.order_key,
            reason,
            bearer,
            opened,
            recovered: Fen::ZERO,
            refunded,
            card: movement.card.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        if before.as_ref() == Some(&after) {
            return Ok(());
        }
        self.move_case(before.as_ref(), &after, Actor::centre())
    }
}

fn replayed(at: EntryRef, state: &MovementState) -> Movement {
    let is_debit = state.amount.is_negative();
    Movement {
        at,
        order_key: state.order_key,
        amount: if is_debit { -state.net() } else { state.amount },
        unbacked: if is_debit { state.unbacked_net() } else { Fen::ZERO },
        recovered: state.recovered,
    }
}

/// Recovers up to `amount`, oldest case first.
fn recover(cases: &mut [CaseState], amount: Fen) {
    let mut rest = amount.or_zero();
    let mut oldest: Vec<&mut CaseState> = cases.iter_mut().collect();
    oldest.sort_by_key(|case| (case.order_key, case.debit));
    for case in oldest {
        let part = rest.min(case.outstanding());
        if part.is_positive() {
            case.recovered += part;
            rest -= part;
        }
    }
}
