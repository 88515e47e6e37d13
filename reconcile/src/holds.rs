//! Money that the centre holds for vouchers.
//!
//! A voucher with a ceiling is a holder as a node is: its row is that of node 0, by its number in place of an epoch, and
//! `funds = free + sum(out) + sum(residue)` counts it. What is held comes out of what is free when the voucher is signed, and goes
//! with the debit that the voucher pays, which needs no right. It pays once: as soon as its debit is ingested, or the phone has
//! brought the building's receipt of it, the rest is free. Of a voucher that has paid nothing, all is free again once no debit of
//! it can come any more: every open node was heard past its end, or the term is over. A loss report or a revocation
//! changes nothing of that, since a building may not have heard of it.
//!
//! **The day's allowance.** A ceiling counts against the no-PIN allowance of every day on which the voucher is good; what it has
//! paid, of that day alone, and with the PIN nothing.
//!
//! **Twice.** At a second building that has not heard of the first, a voucher pays once more: at most its ceiling for each island.
//! Both debits stand. The one that was known first, of two that are ingested the earlier by order key, is backed by what was
//! held, the other by nothing: a fault says so, and where funds do not suffice for it, it has a case of reason
//! `voucher_not_held`, which the holder owes. Only the phone's own key can make a second code, so nobody else did it; a single
//! code that was shown twice is a replay, and stands for a person to judge as without a voucher ([`crate::phones`]).
//!
//! **Accounts that pay by phone** keep their money and their allowance at the centre: what lies with buildings cannot be held.

use feiqian_protocol::account::AccountSettings;
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::code::{Receipt, SignedReceipt, Voucher};
use feiqian_protocol::entry::{Actor, CaseReason, Debit, EntryRef, HoldMoved, HoldPlaced};
use feiqian_protocol::ids::{AccountId, Epoch, NodeId, Unit, Wallet};
use feiqian_protocol::limits::HOLDS_PER_ACCOUNT_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Timestamp};
use serde_json::{Value, json};

use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::io::Reply;
use crate::store::holds::{self, HoldStage, HoldState};
use crate::store::money;

/// How long after a voucher's end a building may still take it, in milliseconds: it may be wrong about the centre's time by a minute
/// either way, and a phone by some seconds.
pub(crate) const TAKEN_AFTER_END_MS: i64 = 180_000;

/// Holds that one step returns.
const RETURNED_PER_STEP: usize = 64;

/// For so long after its last voucher with money, in seconds, an account counts as one that pays by phone.
const PAYS_BY_PHONE_S: i64 = 7 * 24 * 3_600;

/// What backs the part of a debit that a voucher pays.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Backing {
    /// Fen that were held for it.
    pub held: Fen,
    /// Fen of a debit later in order that had been ingested first, and gives its place up.
    pub given_up: Fen,
}

const fn row_of(voucher: u32) -> (NodeId, Epoch) {
    (NodeId::CENTRE, Epoch(voucher))
}

fn at(seconds: u32) -> Timestamp {
    Timestamp(i64::from(seconds) * 1_000)
}

impl Round<'_> {
    /// True for an account whose money stays at the centre.
    pub(crate) fn pays_by_phone(&self, account: AccountId) -> Result<bool, StoreError> {
        let now = self.state.time.0.div_euclid(1_000);
        holds::any_since(self.db, account, now.saturating_sub(PAYS_BY_PHONE_S))
    }

    /// What an account's vouchers hold.
    pub(crate) fn held(&mut self, account: AccountId) -> Result<Fen, StoreError> {
        let rows = &self.holding(account, Wallet::Cash)?.rows;
        Ok(rows.iter().filter(|(key, _)| key.0 == NodeId::CENTRE).map(|(_, row)| row.out).sum())
    }

    /// How much of `wanted` can be held for a new voucher now. What is missing and lies with connected nodes is called back.
    pub(crate) fn can_hold(
        &mut self,
        account: AccountId,
        settings: &AccountSettings,
        wanted: Fen,
    ) -> Result<Fen, StoreError> {
        let wanted = wanted.min(settings.single_limit);
        let free = self.holding(account, Wallet::Cash)?.wallet.free;
        let shares = money::shares(self.db, account)?;
        let allowance = self.allowance_free(account, &shares, settings.daily_limit)?;
        if free < wanted {
            self.recall_all(account, Unit::Wallet(Wallet::Cash))?;
        }
        if allowance < wanted {
            self.recall_all(account, Unit::Allowance)?;
        }
        let is_full = holds::open_of_account(self.db, account)? >= HOLDS_PER_ACCOUNT_MAX;
        Ok(if is_full { Fen::ZERO } else { wanted.min(free).min(allowance).or_zero() })
    }

    /// Holds a voucher's ceiling. One of 0 is noted all the same: the account is to pay by phone.
    pub(crate) fn place_hold(&mut self, voucher: &Voucher, signed: &[u8]) -> Result<(), StoreError> {
        let (account, amount) = (voucher.account, voucher.ceiling);
        let days = (self.state.day, self.last_day(voucher.until()));
        let hold = HoldState {
            account,
            voucher: voucher.number,
            card: voucher.card(),
            ceiling: amount,
            issued: voucher.issued,
            until: voucher.until(),
            stage: if amount.is_positive() { HoldStage::Whole } else { HoldStage::Returned },
            counted: amount,
            days,
            debit: None,
            order_key: Timestamp(0),
            signed: signed.to_vec(),
        };
        holds::put(self.db, &hold)?;
        holds::forget(self.db, self.state.time)?;
        if !amount.is_positive() {
            return Ok(());
        }
        self.hold(&hold)?;
        let placed = HoldPlaced {
            account,
            voucher: hold.voucher,
            amount,
            issued: hold.issued,
            until: hold.until,
            card: hold.card,
            day: days.0,
        };
        self.append(self.state.shard(account), Actor::centre(), placed).map(drop)
    }

    /// The last business day on which a building may take a voucher that ends then.
    fn last_day(&self, until: u32) -> BusinessDay {
        self.state.calendar().day(at(until).plus_ms(TAKEN_AFTER_END_MS))
    }

    fn hold(&mut self, hold: &HoldState) -> Result<(), StoreError> {
        let holding = self.holding(hold.account, Wallet::Cash)?;
        holding.wallet.free -= hold.ceiling;
        let row = holding.rows.entry(row_of(hold.voucher)).or_default();
        row.granted += hold.ceiling;
        row.out += hold.ceiling;
        Ok(())
    }

    /// Lets go of what a voucher holds beyond `kept`; returns how much is free now.
    fn let_go(&mut self, hold: &HoldState, kept: Fen) -> Result<Fen, StoreError> {
        let holding = self.holding(hold.account, Wallet::Cash)?;
        let row = holding.rows.entry(row_of(hold.voucher)).or_default();
        let freed = (row.out - kept).or_zero();
        row.out -= freed;
        holding.wallet.free += freed;
        self.state.hand_out.later(hold.account);
        Ok(freed)
    }

    fn tell(&mut self, hold: &HoldState, kept: Fen) -> Result<(), StoreError> {
        let HoldState { account, voucher, until, debit, .. } = *hold;
        let debit = debit.filter(|_| hold.stage != HoldStage::Returned);
        let moved = HoldMoved { account, voucher, until, kept, debit };
        self.append(self.state.shard(account), Actor::centre(), moved).map(drop)
    }

    /// A debit of a voucher is ingested: it takes what is held for it, and the rest is free.
    pub(crate) fn spend_hold(
        &mut self,
        of: EntryRef,
        order_key: Timestamp,
        debit: &Debit,
        by_pin: bool,
    ) -> Result<Backing, StoreError> {
        let paid = debit.of_voucher();
        let code = debit.code.filter(|_| debit.wallet == Wallet::Cash);
        let hold = match code {
            _ if !paid.is_positive() => return Ok(Backing::default()),
            Some(code) => holds::hold(self.db, of.log.institution, debit.account, code.voucher)?,
            None => None,
        };
        let Some(mut hold) = hold.filter(|hold| hold.card == debit.card && hold.ceiling.is_positive()) else {
            self.fault(of.log, of.position, "nothing was held for the voucher of this debit")?;
            return Ok(Backing::default());
        };
        let voucher = hold.voucher;
        match (hold.stage, hold.debit) {
            (HoldStage::Returned, _) => return Ok(Backing::default()),
            (HoldStage::Paid, Some(first)) => {
                let what = format!("voucher {voucher} had paid before, in {} {}", first.log, first.position);
                self.fault(of.log, of.position, &what)?;
                if planted(Canary::VoucherPaidOutTwice) {
                    return Ok(Backing { held: paid, given_up: Fen::ZERO });
                }
                return self.give_up_to(of, order_key, debit, hold);
            }
            (HoldStage::Receipted, Some(first)) if !self.is_told_of(first, of)? => {
                let what = format!(
                    "voucher {voucher} had paid before, by the receipt of {} {}",
                    first.log, first.position
                );
                self.fault(of.log, of.position, &what)?;
                return Ok(Backing::default());
            }
            _ => {}
        }
        let kept = self.holding(debit.account, Wallet::Cash)?.rows.get(&row_of(voucher)).copied();
        let kept = kept.unwrap_or_default().out;
        let held = paid.min(kept);
        let was_told = hold.stage == HoldStage::Receipted;
        if was_told && paid != kept {
            let what = format!("a receipt says that it took {kept} of voucher {voucher}, and it took {paid}");
            self.fault(of.log, of.position, &what)?;
        } else if held < paid {
            self.fault(of.log, of.position, "a debit of more than its voucher holds")?;
        }
        self.let_go(&hold, held)?;
        let holding = self.holding(debit.account, Wallet::Cash)?;
        holding.rows.entry(row_of(voucher)).or_default().out -= held;
        hold.stage = HoldStage::Paid;
        hold.counted = if by_pin { Fen::ZERO } else { paid };
        hold.days = (debit.day, debit.day);
        (hold.debit, hold.order_key) = (Some(of), order_key);
        holds::put(self.db, &hold)?;
        if !was_told && !self.is_recovering() {
            self.tell(&hold, held)?;
        }
        Ok(Backing { held, given_up: Fen::ZERO })
    }

    /// Of two debits of one voucher the earlier one by order is backed by what was held, whichever came first.
    fn give_up_to(
        &mut self,
        of: EntryRef,
        order_key: Timestamp,
        debit: &Debit,
        mut hold: HoldState,
    ) -> Result<Backing, StoreError> {
        let Some(first) = hold.debit else { return Ok(Backing::default()) };
        let place = |key: Timestamp, at: EntryRef| (key, at.log.key(), at.position);
        if place(hold.order_key, first) <= place(order_key, of) {
            return Ok(Backing::default());
        }
        let (account, wallet) = (debit.account, debit.wallet);
        let Some(mut movement) = money::movement(self.db, account, wallet, first)? else {
            return Ok(Backing::default());
        };
        let backed = (-movement.amount - movement.unbacked).or_zero();
        let given_up = backed.min(debit.of_voucher());
        movement.unbacked += given_up;
        movement.reason = CaseReason::VoucherNotHeld;
        money::put_movement(self.db, account, wallet, first, &movement)?;
        (hold.debit, hold.order_key) = (Some(of), order_key);
        holds::put(self.db, &hold)?;
        Ok(Backing { held: Fen::ZERO, given_up })
    }

    /// A debit that a voucher paid is given back, or part of it: so much of its day's allowance may be used again.
    pub(crate) fn reverse_hold(
        &mut self,
        debit: EntryRef,
        account: AccountId,
        amount: Fen,
    ) -> Result<(), StoreError> {
        let Some(mut hold) = holds::of_debit(self.db, account, debit)? else { return Ok(()) };
        hold.counted = (hold.counted - amount).or_zero();
        holds::put(self.db, &hold)
    }

    /// A phone brings what a terminal gave it. The building's log will say the same; what the voucher did not spend is free at once.
    pub(crate) fn take_receipt(&mut self, text: &str) -> Result<Reply, StoreError> {
        let Ok(signed) = SignedReceipt::from_text(text) else {
            return Ok(refused("receipt_unreadable", "this is no receipt"));
        };
        let receipt = *signed.receipt();
        if receipt.institution != self.state.identity.institution {
            return Ok(refused("receipt_foreign", "the receipt is of another institution"));
        }
        let node = self.state.nodes.get(&receipt.node);
        let is_revoked = self.state.revoked.contains_key(&receipt.node);
        if is_revoked || !node.is_some_and(|node| signed.is_signed_by(&node.log_key)) {
            return Ok(refused("receipt_forged", "no building of this campus has signed the receipt"));
        }
        let (institution, account) = (receipt.institution, receipt.account);
        let Some(hold) = holds::hold(self.db, institution, account, receipt.voucher)?
            .filter(|hold| hold.ceiling >= receipt.amount)
        else {
            return Ok(refused("nothing_held", "so much was never held for the voucher of the receipt"));
        };
        let kept = self.holding(account, Wallet::Cash)?.rows.get(&row_of(hold.voucher)).copied();
        let kept = kept.unwrap_or_default().out;
        let of = receipt.debit();
        let answer = |freed: Fen, known: bool| {
            let (voucher, amount) = (receipt.voucher, receipt.amount);
            let reply = json!({
                "account": account, "voucher": voucher, "amount_fen": amount, "freed_fen": freed, "known": known,
            });
            Ok(Ok(reply))
        };
        match hold.stage {
            HoldStage::Whole if self.state.log(of.log).posted >= of.position => self.contradicted(&receipt),
            HoldStage::Whole => {
                let freed = self.settle_hold(hold, &receipt)?;
                answer(freed, false)
            }
            HoldStage::Paid if hold.debit == Some(of) => answer(Fen::ZERO, true),
            HoldStage::Receipted if hold.debit == Some(of) && kept == receipt.amount => {
                answer(Fen::ZERO, true)
            }
            HoldStage::Receipted if hold.debit == Some(of) => self.contradicted(&receipt),
            HoldStage::Receipted | HoldStage::Paid => {
                let voucher = receipt.voucher;
                self.fault(of.log, of.position, &format!("by a receipt, voucher {voucher} has paid twice"))?;
                Ok(refused("voucher_spent", "the voucher has paid for something else before"))
            }
            HoldStage::Returned => Ok(refused("voucher_over", "nothing is held for the voucher any more")),
        }
    }

    /// The log of the building, or another receipt, says something else than a receipt that the building has signed.
    fn contradicted(&mut self, receipt: &Receipt) -> Result<Reply, StoreError> {
        let of = receipt.debit();
        let what = format!("a receipt says otherwise: {} of voucher {}", receipt.amount, receipt.voucher);
        self.fault(of.log, of.position, &what)?;
        Ok(refused("receipt_contradicted", "what the building has said besides is something else"))
    }

    fn settle_hold(&mut self, mut hold: HoldState, receipt: &Receipt) -> Result<Fen, StoreError> {
        let freed = self.let_go(&hold, receipt.amount)?;
        let day = self.state.calendar().day(at(receipt.time)).clamp(hold.days.0, hold.days.1);
        hold.stage = HoldStage::Receipted;
        hold.debit = Some(receipt.debit());
        hold.counted = receipt.amount;
        hold.days = (day, day);
        holds::put(self.db, &hold)?;
        self.tell(&hold, receipt.amount)?;
        Ok(freed)
    }

    /// Frees what vouchers held that nobody can spend any more.
    pub(crate) fn return_holds(&mut self) -> Result<(), StoreError> {
        let institution = self.state.identity.institution;
        let passed = self.horizon().plus_ms(-TAKEN_AFTER_END_MS);
        let mut before = passed.0.div_euclid(1_000);
        if planted(Canary::HoldReturnedEarly) {
            before = self.state.time.0.div_euclid(1_000) + 30;
        }
        for mut hold in holds::open_before(self.db, institution, before, RETURNED_PER_STEP)? {
            if let Some(of) = hold.debit
                && self.state.log(of.log).posted >= of.position
            {
                let what = format!("a receipt says that it was a debit of voucher {}", hold.voucher);
                self.fault(of.log, of.position, &what)?;
            }
            self.let_go(&hold, Fen::ZERO)?;
            hold.stage = HoldStage::Returned;
            hold.counted = Fen::ZERO;
            holds::put(self.db, &hold)?;
            self.tell(&hold, Fen::ZERO)?;
        }
        Ok(())
    }

    /// A centre that has come back takes a hold from its own streams.
    pub(crate) fn replay_hold(&mut self, placed: &HoldPlaced) -> Result<(), StoreError> {
        let HoldPlaced { account, voucher, amount, issued, until, card, day } = placed.clone();
        self.ensure_wallet(account, Wallet::Cash)?;
        let hold = HoldState {
            account,
            voucher,
            card,
            ceiling: amount,
            issued,
            until,
            stage: HoldStage::Whole,
            counted: amount,
            days: (day, self.last_day(until)),
            debit: None,
            order_key: Timestamp(0),
            signed: Vec::new(),
        };
        holds::put(self.db, &hold)?;
        self.hold(&hold)?;
        let last = crate::store::codes::last_voucher(self.db, account)?;
        if last.is_none_or(|last| last < voucher) {
            crate::store::codes::put_last_voucher(self.db, account, voucher)?;
        }
        Ok(())
    }

    /// And what became of it. What was ingested before the copy was made, or is a receipt's, is held until its debit is replayed.
    pub(crate) fn replay_hold_moved(&mut self, time: Timestamp, moved: &HoldMoved) -> Result<(), StoreError> {
        let institution = self.state.identity.institution;
        let found = holds::hold(self.db, institution, moved.account, moved.voucher)?;
        let Some(mut hold) = found.filter(|hold| hold.stage.is_open()) else { return Ok(()) };
        self.let_go(&hold, moved.kept)?;
        let day = self.state.calendar().day(time).clamp(hold.days.0, hold.days.1);
        (hold.stage, hold.days) = match moved.debit {
            Some(_) => (HoldStage::Receipted, (day, day)),
            None => (HoldStage::Returned, hold.days),
        };
        hold.debit = moved.debit;
        hold.counted = moved.kept;
        holds::put(self.db, &hold)
    }

    /// A voucher that holds something, as it is shown to operators.
    pub(crate) fn shown_hold(
        &self,
        account: AccountId,
        voucher: u32,
        held: Fen,
    ) -> Result<Option<Value>, StoreError> {
        let hold = holds::hold(self.db, self.state.identity.institution, account, voucher)?;
        Ok(hold.filter(|_| held.is_positive()).map(|hold| {
            json!({
                "number": voucher,
                "card": hold.card,
                "held_fen": held,
                "has_paid": hold.stage != HoldStage::Whole,
                "until_ms": at(hold.until),
            })
        }))
    }

    /// What of an account's allowance its vouchers count on a day.
    pub(crate) fn counted_by_vouchers(
        &self,
        account: AccountId,
        day: BusinessDay,
    ) -> Result<Fen, StoreError> {
        holds::counted_on(self.db, account, day)
    }
}
