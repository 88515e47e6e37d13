//! What an entry of a node does, by kind, once it is taken.

use feiqian_protocol::campus::Mode;
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{
    Body, CaseReason, Debit, Decline, Entry, EntryRef, Refund, Release, Reversal, ShareRelease, TakenIn,
    WrongPin,
};
use feiqian_protocol::ids::{AccountId, Epoch, LogId, NodeId, Wallet};
use feiqian_protocol::limits::AMOUNT_FEN_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Timestamp};

use crate::core::{Round, StoreError};
use crate::habit::HabitDay;
use crate::ledger::{SUSPENSE, channel_ledger, merchant_ledger, wallet_ledger};
use crate::store::money::{self, MovementState};
use crate::store::nodes::NodeState;
use crate::store::{accounts, cases, habits, logs};

/// Which row an entry speaks of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct RowOf {
    node: NodeId,
    epoch: Epoch,
    open: bool,
}

/// The fault of a reversal whose debit was lost on its way; it is looked at again should the debit come.
pub(super) const NO_DEBIT: &str = "a reversal of a debit that is not there";

/// Epochs from here on are no node's: rows of branches, and of epochs that were never opened.
const EPOCH_FOREIGN: u32 = 0x8000_0000;

/// Where an entry stands and when.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: EntryRef,
    node: NodeId,
    order_key: Timestamp,
}

impl Round<'_> {
    /// What an entry does, where it stands.
    pub(crate) fn act_on(
        &mut self,
        log: LogId,
        position: u64,
        order_key: Timestamp,
        entry: &Entry,
    ) -> Result<(), StoreError> {
        self.act(Place { at: EntryRef { log, position }, node: log.writer, order_key }, entry)
    }

    /// C1 and C9, by kind.
    fn act(&mut self, place: Place, entry: &Entry) -> Result<(), StoreError> {
        let EntryRef { log, position } = place.at;
        let Some(role) = self.state.nodes.get(&place.node).map(|node| node.role) else { return Ok(()) };
        if !role.may_write(&entry.body) {
            self.fault(log, position, "its role may not write this")?;
            match &entry.body {
                Body::Debit(debit) => self.suspend_debit(place, debit)?,
                Body::PursePurchase(purchase) => {
                    self.suspend_purse_purchase(place.at, place.order_key, purchase)?;
                }
                _ => {}
            }
            return Ok(());
        }
        match &entry.body {
            Body::Debit(debit) => {
                self.note_right_pin(place.node, entry, debit)?;
                self.debit(place, entry, debit)
            }
            Body::Access(access) if access.code.is_some() && accounts::exists(self.db, access.account)? => {
                let code = access.code.as_ref();
                self.note_code(place.at, &entry.actor, access.account, &access.tap, code).map(drop)
            }
            Body::Reversal(reversal) => self.reversal(place, reversal),
            Body::Release(release) => self.release(place, release),
            Body::TakenIn(taken_in) => self.taken_in(place, taken_in),
            Body::EpochEnd(end) => self.epoch_end(place, end.epoch),
            Body::ShareRelease(release) => self.share_release(place, release),
            Body::Setting(setting) => {
                self.node_setting(place.at, place.node, place.order_key, entry, setting)
            }
            Body::CardShown(shown) => self.card_shown(place.at, place.node, shown),
            Body::PursePurchase(purchase) => self.purse_purchase(place.at, place.order_key, purchase),
            Body::PurseLoaded(loaded) => self.purse_loaded(place.at, loaded),
            Body::Decline(Decline { account: Some(account), pin_tries: Some(tries), .. })
            | Body::WrongPin(WrongPin { account, tries })
                if place.at.log.stream == 0 =>
            {
                self.note_wrong_pin(place.node, *account, *tries)
            }
            // The PIN was right, and something else was not: wrong ones before it are over as with a purchase.
            Body::Decline(Decline { account: Some(account), .. })
                if place.at.log.stream == 0 && entry.actor.proof.has_pin() =>
            {
                self.note_wrong_pin(place.node, *account, 0)
            }
            _ => Ok(()),
        }
    }

    fn row_of(&self, place: Place, epoch: Epoch) -> RowOf {
        let open = self.epoch(place.node);
        let stream = place.at.log.stream;
        if stream != 0 {
            // A branch has rows of its own, with nothing granted.
            let foreign = EPOCH_FOREIGN + (stream.min(0x7ffe) << 16) + epoch.0.min(0xffff);
            return RowOf { node: place.node, epoch: Epoch(foreign), open: false };
        }
        if epoch > open {
            return RowOf {
                node: place.node,
                epoch: Epoch(EPOCH_FOREIGN + epoch.0.min(0xffff)),
                open: false,
            };
        }
        RowOf { node: place.node, epoch, open: epoch == open || planted(Canary::LateEntryAsUsual) }
    }

    /// The same of an account's row: one that was given up is closed, whatever its epoch.
    fn row_of_account(&self, place: Place, epoch: Epoch, (account, wallet): (AccountId, Wallet)) -> RowOf {
        let row_of = self.row_of(place, epoch);
        let given_up = self.state.closures.is_given_up(account, wallet, row_of.node, row_of.epoch);
        RowOf { open: row_of.open && (!given_up || planted(Canary::GivenUpCountsAgain)), ..row_of }
    }

    fn own_day(&self, order_key: Timestamp) -> BusinessDay {
        self.state.calendar().day(order_key)
    }

    fn changed(
        &mut self,
        of: EntryRef,
        account: AccountId,
        wallet: Wallet,
        delta: Fen,
    ) -> Result<(), StoreError> {
        self.gather_effect(of, account, wallet, delta)?;
        self.state.hand_out.later(account);
        self.resolve.insert((account, wallet));
        Ok(())
    }

    fn suspend_debit(&mut self, place: Place, debit: &Debit) -> Result<(), StoreError> {
        if !parts_in_range(debit) {
            return Ok(());
        }
        let (amount, day) = (debit.amount(), self.own_day(place.order_key));
        self.post(place.at, day, amount, SUSPENSE.to_owned(), merchant_ledger(debit.merchant))
    }

    fn debit(&mut self, place: Place, entry: &Entry, debit: &Debit) -> Result<(), StoreError> {
        let EntryRef { log, position } = place.at;
        if !parts_in_range(debit) || !debit.amount().is_positive() {
            return self.fault(log, position, "a debit of an impossible amount");
        }
        let (account, wallet, amount) = (debit.account, debit.wallet, debit.amount());
        // Whoever has a wallet has an account.
        if !self.holding(account, wallet)?.is_stored() && !accounts::exists(self.db, account)? {
            self.fault(log, position, "a debit of an unknown account")?;
            return self.suspend_debit(place, debit);
        }
        let row_of = self.row_of_account(place, debit.epoch, (account, wallet));
        if !row_of.open && accounts::account_of_card(self.db, &debit.card)? != Some(account) {
            // A building that was given up may know another account by this number than the centre does since it came back.
            self.fault(log, position, "a late debit of a card that the account does not have")?;
            return self.suspend_debit(place, debit);
        }
        let backing = self.spend_hold(place.at, place.order_key, debit, entry.actor.proof.has_pin())?;
        let (pending, pending_stand_in) = self.pending(row_of.node, account, wallet);
        let optimistic = self.state.mode() == Mode::Optimistic;
        let holding = self.holding(account, wallet)?;
        let row = holding.rows.entry((row_of.node, row_of.epoch)).or_default();
        let (backed, fault) = if row_of.open {
            let backed = debit.from_right.min((row.out - pending).or_zero());
            row.out -= backed;
            // The reference mode stands in without a limit, so there its row goes below zero.
            let stand_in = if optimistic {
                debit.stand_in
            } else {
                debit.stand_in.min((row.si_out - pending_stand_in).or_zero())
            };
            row.si_out -= stand_in;
            (backed, backed < debit.from_right || stand_in < debit.stand_in)
        } else {
            let backed = debit.from_right.min(row.residue);
            row.residue -= backed;
            (backed, false)
        };
        let unbacked = amount - backed - backing.held;
        holding.wallet.funds -= amount;
        holding.wallet.free -= unbacked;
        holding.wallet.unbacked += unbacked;
        if fault {
            self.fault(log, position, "a debit beyond its right or stand-in")?;
        }
        let previous = self.link_movement(account, wallet, place.at)?;
        let reason = match (row_of.open, fault) {
            _ if debit.of_voucher().is_positive() => CaseReason::VoucherNotHeld,
            (true, false) => CaseReason::StandIn,
            (true, true) => CaseReason::NodeFault,
            (false, _) => CaseReason::AfterClose,
        };
        let movement = MovementState {
            stand_in: debit.stand_in,
            unbacked: unbacked - backing.given_up,
            reason,
            merchant: debit.merchant,
            day: debit.day,
            card: Some(debit.card.clone()),
            previous,
            ..MovementState::plain(place.order_key, -amount)
        };
        let own_day = self.own_day(place.order_key);
        self.post(
            place.at,
            own_day,
            amount,
            wallet_ledger(account, wallet),
            merchant_ledger(debit.merchant),
        )?;
        self.changed(place.at, account, wallet, -amount)?;
        self.note_purchase(place.node, account, place.order_key, amount)?;
        let replayed = self.note_code(place.at, &entry.actor, account, &debit.tap, debit.code.as_ref())?;
        if let Some(case) = self.told_case(account, wallet, place.at)? {
            // The streams have told already what became of it.
            let movement = MovementState { refunded: case.refunded, ..movement };
            return money::put_movement(self.db, account, wallet, place.at, &movement);
        }
        let reason = if entry.actor.proof.has_pin() {
            None
        } else if self.is_after_report(&debit.card, place.order_key, account, place.at)? {
            Some(CaseReason::Loss)
        } else {
            replayed.then_some(CaseReason::CodeReplayed)
        };
        let late = planted(Canary::LossOnlyWhereHeard) && self.state.time.ms_since(place.order_key) > 1_000;
        match reason.filter(|_| !late) {
            Some(reason) => self.refund_tap(place.at, account, wallet, movement, reason),
            None => money::put_movement(self.db, account, wallet, place.at, &movement),
        }
    }

    /// Makes a new movement the last of its wallet; returns the one before.
    pub(crate) fn link_movement(
        &mut self,
        account: AccountId,
        wallet: Wallet,
        at: EntryRef,
    ) -> Result<Option<EntryRef>, StoreError> {
        Ok(self.holding(account, wallet)?.wallet.last.replace(at))
    }

    /// An entry of the centre raises a wallet, or lowers it.
    pub(crate) fn move_funds(
        &mut self,
        at: EntryRef,
        time: Timestamp,
        (account, wallet): (AccountId, Wallet),
        amount: Fen,
    ) -> Result<(), StoreError> {
        let previous = self.link_movement(account, wallet, at)?;
        let movement = MovementState { previous, ..MovementState::plain(time, amount) };
        money::put_movement(self.db, account, wallet, at, &movement)?;
        let holding = self.holding(account, wallet)?;
        holding.wallet.funds += amount;
        holding.wallet.free += amount;
        self.resolve.insert((account, wallet));
        Ok(())
    }

    /// Counts a purchase among the habits of its account and the turnover of its node.
    pub(crate) fn note_purchase(
        &mut self,
        node: NodeId,
        account: AccountId,
        at: Timestamp,
        amount: Fen,
    ) -> Result<(), StoreError> {
        let day = self.own_day(at);
        let minute = at.ms_since(self.state.calendar().start(day)) / 60_000;
        let habit =
            HabitDay { purchases: 1, fen: amount.get(), meals: 1 << crate::habit::meal_period(minute) };
        let turnover = self.turnover.entry((node, day)).or_default();
        *turnover = (turnover.0 + 1, turnover.1 + amount.get());
        habits::add_habit(self.db, account, node, day, &habit)
    }

    /// The debit that a reversal names. On a branch it may be one from before the fork, or one that came by another name.
    fn reversed_debit(
        &self,
        place: Place,
        reversal: &Reversal,
    ) -> Result<Option<(EntryRef, MovementState)>, StoreError> {
        let (log, own, position) = (place.at.log, self.state.own_log(place.node), reversal.debit);
        let mut held_by = vec![log];
        match logs::hash_at(self.db, log, position)? {
            // What a branch has in common with the log is in the log.
            None => held_by.push(own),
            Some(hash) => {
                for (other, branch) in &self.state.branches {
                    if branch.node == place.node && logs::hash_at(self.db, *other, position)? == Some(hash) {
                        held_by.push(*other);
                    }
                }
            }
        }
        for log in held_by {
            let at = EntryRef { log, position };
            if let Some(found) = money::movement(self.db, reversal.account, reversal.wallet, at)? {
                return Ok(Some((at, found)));
            }
        }
        Ok(None)
    }

    fn reversal(&mut self, place: Place, reversal: &Reversal) -> Result<(), StoreError> {
        let EntryRef { log, position } = place.at;
        let parts = [reversal.right_back, reversal.right_home, reversal.stand_in_home];
        if !parts.iter().all(|part| in_range(*part)) {
            return self.fault(log, position, "a reversal of an impossible amount");
        }
        let (account, wallet, amount) = (reversal.account, reversal.wallet, reversal.amount());
        let Some((debit_at, mut debit)) = self.reversed_debit(place, reversal)? else {
            return self.fault(log, position, NO_DEBIT);
        };
        let rest = -debit.amount - debit.reversed;
        if !debit.amount.is_negative()
            || !amount.is_positive()
            || amount > rest
            || reversal.stand_in_home > debit.stand_in - debit.stand_in_home
        {
            return self.fault(log, position, "a reversal of more than is left of its debit");
        }
        debit.reversed += amount;
        debit.stand_in_home += reversal.stand_in_home;
        let row_of = self.row_of_account(place, reversal.epoch, (account, wallet));
        let holding = self.holding(account, wallet)?;
        let row = holding.rows.entry((row_of.node, row_of.epoch)).or_default();
        if row_of.open {
            row.out += reversal.right_back;
        } else {
            row.residue += reversal.right_back;
        }
        holding.wallet.funds += amount;
        holding.wallet.free += reversal.right_home + reversal.stand_in_home;
        let own_day = self.own_day(place.order_key);
        self.post(
            place.at,
            own_day,
            amount,
            merchant_ledger(debit.merchant),
            wallet_ledger(account, wallet),
        )?;
        self.changed(place.at, account, wallet, amount)?;
        self.reverse_hold(debit_at, account, amount)?;
        self.take_refund_back(debit_at, account, wallet, &mut debit)?;
        money::put_movement(self.db, account, wallet, debit_at, &debit)
    }

    /// A tap that the holder may not have to pay. With a card that was reported lost before the tap was ingested it is given back
    /// up to the cap. By a code that had been used before it is for a person to judge: whoever lends a code to a friend in
    /// another building would otherwise eat for nothing.
    pub(crate) fn refund_tap(
        &mut self,
        at: EntryRef,
        account: AccountId,
        wallet: Wallet,
        mut movement: MovementState,
        reason: CaseReason,
    ) -> Result<(), StoreError> {
        let left = -movement.amount - movement.reversed;
        let given_back = reason == CaseReason::Loss && -movement.amount <= self.state.policy().refund_cap_fen;
        let refunded = if given_back { left } else { Fen::ZERO };
        self.move_loss_case(at, account, wallet, &movement, reason, (left, refunded))?;
        if refunded.is_positive() {
            movement.refunded = refunded;
            self.refund(at, account, wallet, refunded, reason)?;
        }
        money::put_movement(self.db, account, wallet, at, &movement)
    }

    /// The node itself reversed a debit that the risk fund had given back: the fund takes back what is now given twice.
    fn take_refund_back(
        &mut self,
        at: EntryRef,
        account: AccountId,
        wallet: Wallet,
        debit: &mut MovementState,
    ) -> Result<(), StoreError> {
        let left = -debit.amount - debit.reversed;
        let Some(case) = cases::loss_case(self.db, account, wallet, at)? else { return Ok(()) };
        let refunded = debit.refunded.min(left);
        let back = debit.refunded - refunded;
        debit.refunded = refunded;
        let moved = (left.min(case.opened), refunded);
        self.move_loss_case(at, account, wallet, debit, case.reason, moved)?;
        if back.is_positive() {
            self.refund(at, account, wallet, -back, case.reason)?;
        }
        Ok(())
    }

    pub(crate) fn refund(
        &mut self,
        debit: EntryRef,
        account: AccountId,
        wallet: Wallet,
        amount: Fen,
        reason: CaseReason,
    ) -> Result<(), StoreError> {
        let holding = self.holding(account, wallet)?;
        holding.wallet.funds += amount;
        holding.wallet.free += amount;
        self.refunds.push(Refund { debit, account, wallet, amount, reason });
        self.state.hand_out.soon(account);
        self.resolve.insert((account, wallet));
        Ok(())
    }

    fn release(&mut self, place: Place, release: &Release) -> Result<(), StoreError> {
        let EntryRef { log, position } = place.at;
        if !in_range(release.amount) {
            return self.fault(log, position, "a release of an impossible amount");
        }
        let (account, wallet) = (release.account, release.wallet);
        let row_of = self.row_of_account(place, release.epoch, (account, wallet));
        if !row_of.open {
            // What was out came home when the epoch was closed, or the row given up. In that the node says what it has got since.
            let given_up = self.state.closures.is_given_up(account, wallet, row_of.node, row_of.epoch);
            let holding = self.holding(account, wallet)?;
            if let Some(row) = holding.rows.get_mut(&(row_of.node, row_of.epoch)).filter(|_| given_up) {
                let there = release.amount.min(row.residue);
                row.residue -= there;
                holding.wallet.free += there;
            }
            return Ok(());
        }
        let (pending, _) = self.pending(row_of.node, account, wallet);
        let holding = self.holding(account, wallet)?;
        let Some(row) = holding.rows.get_mut(&(row_of.node, row_of.epoch)) else {
            return self.fault(log, position, "a release of a row that was never granted");
        };
        let there = release.amount.min((row.out - pending).or_zero());
        row.out -= there;
        holding.wallet.free += there;
        self.state.hand_out.later(account);
        if there < release.amount {
            self.fault(log, position, "a release of more than the row holds")?;
        }
        Ok(())
    }

    fn taken_in(&mut self, place: Place, taken_in: &TakenIn) -> Result<(), StoreError> {
        let EntryRef { log, position } = place.at;
        let (account, wallet, amount) = (taken_in.account, taken_in.wallet, taken_in.amount);
        if !in_range(amount) || !amount.is_positive() {
            return self.fault(log, position, "cash of an impossible amount");
        }
        let own_day = self.own_day(place.order_key);
        let desk = channel_ledger("desk");
        if !accounts::exists(self.db, account)? {
            self.fault(log, position, "cash for an unknown account")?;
            return self.post(place.at, own_day, amount, desk, SUSPENSE.to_owned());
        }
        let row_of = self.row_of_account(place, taken_in.epoch, (account, wallet));
        let holding = self.holding(account, wallet)?;
        let row = holding.rows.entry((row_of.node, row_of.epoch)).or_default();
        if row_of.open {
            row.out += amount;
        } else {
            row.residue += amount;
        }
        holding.wallet.funds += amount;
        self.post(place.at, own_day, amount, desk, wallet_ledger(account, wallet))?;
        self.changed(place.at, account, wallet, amount)?;
        let previous = self.link_movement(account, wallet, place.at)?;
        let movement = MovementState { previous, ..MovementState::plain(place.order_key, amount) };
        money::put_movement(self.db, account, wallet, place.at, &movement)
    }

    fn epoch_end(&mut self, place: Place, epoch: Epoch) -> Result<(), StoreError> {
        let row_of = self.row_of(place, epoch);
        if row_of.open {
            let head = place.at.position;
            self.close_epoch(place.node, head)?;
            self.end_unasked(place.node);
            // Of rows that were given up before.
            self.free_residue(row_of.node, row_of.epoch)
        } else {
            self.free_residue(row_of.node, row_of.epoch)
        }
    }

    /// A node ends its epoch only when it is asked to, or told that it is closed or refused. Where it does by itself, or the
    /// asking is forgotten here, it is closed: to hand everything out again at its word would cost every account.
    fn end_unasked(&mut self, id: NodeId) {
        if let Some(node) = self.state.nodes.get_mut(&id)
            && node.is_open()
        {
            tracing::warn!(node = id.0, "the node has ended its epoch unasked; it is closed");
            node.state = NodeState::Closed;
            node.reason = Some("ended its epoch".to_owned());
            self.touched_nodes.insert(id);
        }
    }

    fn share_release(&mut self, place: Place, release: &ShareRelease) -> Result<(), StoreError> {
        let EntryRef { log, position } = place.at;
        let row_of = self.row_of(place, release.epoch);
        if !in_range(release.amount) || release.from_day > self.state.day {
            return self.fault(log, position, "a share release of an impossible amount or day");
        }
        if !row_of.open {
            return Ok(());
        }
        let key = (row_of.node, row_of.epoch);
        let mut shares = money::shares(self.db, release.account)?;
        let Some(share) = shares.get_mut(&key) else {
            return self.fault(log, position, "a release of a share that was never granted");
        };
        let there = release.amount.min(share.out);
        share.out -= there;
        money::put_share(self.db, release.account, key, share)?;
        self.state.hand_out.later(release.account);
        if there < release.amount {
            self.fault(log, position, "a share release of more than was granted")?;
        }
        Ok(())
    }
}

/// True where every part of a debit is an amount that an entry can be about.
fn parts_in_range(debit: &Debit) -> bool {
    [debit.from_right, debit.stand_in, debit.of_voucher()].into_iter().all(in_range)
}

/// True for an amount that an entry can be about.
pub(crate) fn in_range(amount: Fen) -> bool {
    !amount.is_negative() && amount <= AMOUNT_FEN_MAX
}
