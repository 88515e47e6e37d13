//! Spending rights and allowance shares as a node holds them: sums that only grow, and what follows from them.
//!
//! A **row** is (account, wallet, node, epoch). `unspent = granted + taken_in + reversed - debited - released` is kept
//! as one number here, since every part of it is an entry in a log; the type offers no way to raise it other than by
//! those entries. The node applies the same functions when it writes an entry as anyone does who folds its log again,
//! so the row at a signed head is a pure function of the node's log up to there and the centre's stream up to the
//! position that the head names.

use std::collections::BTreeMap;

use crate::canary::{Canary, planted};
use crate::entry::{Debit, Grant, Release, Reversal, ShareGrant, ShareRelease, TakenIn};
use crate::ids::{AccountId, Epoch, Wallet};
use crate::money::Fen;
use crate::time::BusinessDay;

/// Why an entry cannot apply to a row: its writer broke the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RightsError {
    /// An amount that must be above zero (or not below) is not.
    #[error("amount {0} is out of range")]
    Amount(Fen),
    /// More was spent or released than the row holds.
    #[error("{wanted} taken of {held}")]
    Overdrawn {
        /// Fen taken.
        wanted: Fen,
        /// Fen there.
        held: Fen,
    },
    /// A running total does not continue the row's.
    #[error("total {got} does not follow {held}")]
    Total {
        /// The total that the row has.
        held: Fen,
        /// The total in the entry.
        got: Fen,
    },
    /// The entry names another epoch than the open one.
    #[error("epoch {got} is not the open epoch {open}")]
    Epoch {
        /// The open one.
        open: Epoch,
        /// The entry's.
        got: Epoch,
    },
}

/// One (account, wallet) at one node in its open epoch, in fen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Row {
    /// Granted so far.
    pub granted: Fen,
    /// Right that may still be spent.
    pub unspent: Fen,
    /// Released so far.
    pub released: Fen,
    /// Stand-in granted so far.
    pub stand_in_granted: Fen,
    /// Stand-in that may still be used.
    pub stand_in_left: Fen,
}

fn take(held: &mut Fen, wanted: Fen) -> Result<(), RightsError> {
    if wanted.is_negative() {
        return Err(RightsError::Amount(wanted));
    }
    if wanted > *held {
        return Err(RightsError::Overdrawn { wanted, held: *held });
    }
    *held -= wanted;
    Ok(())
}

impl Row {
    /// Applies a grant: what counts is the new total, so that a repeat changes nothing.
    ///
    /// # Errors
    /// [`RightsError::Total`] where the total is below the one held.
    pub fn grant(&mut self, grant: &Grant) -> Result<(), RightsError> {
        let more = grant.total - self.granted;
        if more.is_negative() {
            return Err(RightsError::Total { held: self.granted, got: grant.total });
        }
        self.granted = grant.total;
        self.unspent += if planted(Canary::GrantAddedOnEveryDelivery) { grant.amount } else { more };
        Ok(())
    }

    /// Applies a stand-in grant; as [`Row::grant`].
    ///
    /// # Errors
    /// [`RightsError::Total`] where the total is below the one held.
    pub fn stand_in_grant(&mut self, grant: &Grant) -> Result<(), RightsError> {
        let more = grant.total - self.stand_in_granted;
        if more.is_negative() {
            return Err(RightsError::Total { held: self.stand_in_granted, got: grant.total });
        }
        self.stand_in_granted = grant.total;
        self.stand_in_left += more;
        Ok(())
    }

    /// Applies a debit. Where stand-in is unlimited (the optimistic reference), `stand_in_left` falls below zero.
    ///
    /// # Errors
    /// [`RightsError::Overdrawn`] where right or limited stand-in is short; the row is unchanged then.
    pub fn debit(&mut self, debit: &Debit, unlimited_stand_in: bool) -> Result<(), RightsError> {
        let mut after = *self;
        take(&mut after.unspent, debit.from_right)?;
        if unlimited_stand_in {
            after.stand_in_left -= debit.stand_in;
        } else {
            take(&mut after.stand_in_left, debit.stand_in)?;
        }
        *self = after;
        Ok(())
    }

    /// Applies a reversal: only what comes back to the row; the rest went home.
    ///
    /// # Errors
    /// [`RightsError::Amount`] where a part is negative.
    pub fn reversal(&mut self, reversal: &Reversal) -> Result<(), RightsError> {
        for part in [reversal.right_back, reversal.right_home, reversal.stand_in_home] {
            if part.is_negative() {
                return Err(RightsError::Amount(part));
            }
        }
        self.unspent += reversal.right_back;
        if planted(Canary::ReversalRestoresStandIn) {
            self.stand_in_left += reversal.stand_in_home;
        }
        Ok(())
    }

    /// Applies a release.
    ///
    /// # Errors
    /// [`RightsError::Overdrawn`] where there is less, [`RightsError::Total`] where the running total is another.
    pub fn release(&mut self, release: &Release) -> Result<(), RightsError> {
        if self.released + release.amount != release.released_total {
            return Err(RightsError::Total { held: self.released, got: release.released_total });
        }
        let amount = if planted(Canary::RecallBeyondUnspent) {
            release.amount.min(self.unspent)
        } else {
            release.amount
        };
        take(&mut self.unspent, amount)?;
        self.released = release.released_total;
        Ok(())
    }

    /// Applies cash taken in.
    ///
    /// # Errors
    /// [`RightsError::Amount`] where it is not above zero.
    pub fn take_in(&mut self, taken_in: &TakenIn) -> Result<(), RightsError> {
        if !taken_in.amount.is_positive() {
            return Err(RightsError::Amount(taken_in.amount));
        }
        self.unspent += taken_in.amount;
        Ok(())
    }
}

/// One account's share of its daily no-PIN allowance at one node: for each day a sum of its own, nothing expires.
///
/// `left(d) = granted from days <= d - released from days <= d - used on d`, where used is net of reversals.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Share {
    /// Granted minus released, by first day.
    pub net_from: BTreeMap<BusinessDay, Fen>,
    /// Used, net of reversals, by day.
    pub used_on: BTreeMap<BusinessDay, Fen>,
    /// Used in the meal periods of the last day that had any, net of reversals.
    pub used_in: BTreeMap<(BusinessDay, u16), Fen>,
    /// Granted so far over all labels.
    pub granted: Fen,
}

impl Share {
    /// Fen left on `day`.
    pub fn left(&self, day: BusinessDay) -> Fen {
        let granted: Fen = self.net_from.range(..=day).map(|(_, fen)| *fen).sum();
        granted - self.used_on.get(&day).copied().unwrap_or_default()
    }

    /// The least left on any day from `day` on: what a release from that day may take.
    pub fn releasable(&self, day: BusinessDay) -> Fen {
        let days = self.net_from.keys().chain(self.used_on.keys()).copied().filter(|later| *later > day);
        days.chain([day]).map(|later| self.left(later)).min().unwrap_or_default().or_zero()
    }

    /// Applies a grant.
    ///
    /// # Errors
    /// [`RightsError::Total`] where the total is below the one held.
    pub fn grant(&mut self, grant: &ShareGrant) -> Result<(), RightsError> {
        let more = grant.total - self.granted;
        if more.is_negative() {
            return Err(RightsError::Total { held: self.granted, got: grant.total });
        }
        self.granted = grant.total;
        *self.net_from.entry(grant.from_day).or_default() += more;
        Ok(())
    }

    /// Applies a release, which must fit every day from its first day on.
    ///
    /// # Errors
    /// [`RightsError::Overdrawn`] where some day has less.
    pub fn release(&mut self, release: &ShareRelease) -> Result<(), RightsError> {
        let held = self.releasable(release.from_day);
        if !release.amount.is_positive() || release.amount > held {
            return Err(RightsError::Overdrawn { wanted: release.amount, held });
        }
        *self.net_from.entry(release.from_day).or_default() -= release.amount;
        Ok(())
    }

    /// Uses `amount` on `day`.
    ///
    /// # Errors
    /// [`RightsError::Overdrawn`] where less is left.
    pub fn spend(&mut self, day: BusinessDay, amount: Fen) -> Result<(), RightsError> {
        let mut left = self.left(day);
        take(&mut left, amount)?;
        *self.used_on.entry(day).or_default() += amount;
        Ok(())
    }

    /// Gives `amount` of `day` back.
    ///
    /// # Errors
    /// [`RightsError::Overdrawn`] where less was used.
    pub fn give_back(&mut self, day: BusinessDay, amount: Fen) -> Result<(), RightsError> {
        let used = self.used_on.entry(day).or_default();
        take(used, amount)
    }

    /// Used in a meal period, net of reversals.
    pub fn used_in(&self, day: BusinessDay, meal: u16) -> Fen {
        self.used_in.get(&(day, meal)).copied().unwrap_or_default()
    }

    /// Counts `amount` in a meal period; those of earlier days are forgotten.
    pub fn count_in(&mut self, day: BusinessDay, meal: u16, amount: Fen) {
        self.used_in.retain(|(of, _), _| *of >= day);
        *self.used_in.entry((day, meal)).or_default() += amount;
    }

    /// Counts `amount` in a meal period no more, as far as it is remembered.
    pub fn count_out(&mut self, day: BusinessDay, meal: u16, amount: Fen) {
        if let Some(used) = self.used_in.get_mut(&(day, meal)) {
            *used -= amount.min(*used);
        }
        self.used_in.retain(|_, used| *used != Fen::ZERO);
    }
}

/// Which business day a node may label a debit with: days open forward only, from the last opened or the day of the
/// last centre-signed time, up to the day that this time and the time elapsed since allow, plus one.
pub fn business_day_to_open(
    wall: BusinessDay,
    last_opened: BusinessDay,
    anchor: BusinessDay,
    anchor_plus_elapsed: BusinessDay,
) -> BusinessDay {
    let earliest = last_opened.max(anchor);
    let latest = anchor_plus_elapsed.next().max(earliest);
    wall.clamp(earliest, latest)
}

/// How a debit of `amount` splits a reversal: the stand-in part first and always home; right back to the row only
/// within the debit's epoch, else home.
///
/// `stand_in_rest` and `right_rest` are what is left of the debit's two parts after earlier reversals.
pub fn split_reversal(
    amount: Fen,
    right_rest: Fen,
    stand_in_rest: Fen,
    same_epoch: bool,
) -> Option<(Fen, Fen, Fen)> {
    if !amount.is_positive() || amount > right_rest + stand_in_rest {
        return None;
    }
    let stand_in_home = amount.min(stand_in_rest);
    let right = amount - stand_in_home;
    Some(if same_epoch { (right, Fen::ZERO, stand_in_home) } else { (Fen::ZERO, right, stand_in_home) })
}

/// All rows of one node in its open epoch; what folding its log and the centre's stream gives.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rows {
    /// Money rows.
    pub money: BTreeMap<(AccountId, Wallet), Row>,
    /// Allowance shares.
    pub shares: BTreeMap<AccountId, Share>,
}

impl Rows {
    /// Ends the epoch: every row is nothing.
    pub fn end(&mut self) {
        self.money.clear();
        self.shares.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::TapRef;
    use crate::ids::{CardNumber, Key};
    use crate::time::Timestamp;

    fn grant(amount: i64, total: i64) -> Grant {
        Grant {
            account: AccountId(1),
            wallet: Wallet::Cash,
            epoch: Epoch::FIRST,
            amount: Fen::new(amount),
            total: Fen::new(total),
            time: Timestamp(0),
        }
    }

    fn debit(from_right: i64, stand_in: i64) -> Debit {
        Debit {
            tap: TapRef { epoch: 1, sequence: Key::new("1").unwrap() },
            account: AccountId(1),
            wallet: Wallet::Cash,
            epoch: Epoch::FIRST,
            from_right: Fen::new(from_right),
            stand_in: Fen::new(stand_in),
            allowance: Fen::ZERO,
            day: BusinessDay(1),
            merchant: 1,
            card: CardNumber::new("c1").unwrap(),
            measured: None,
            code: None,
            from_voucher: None,
            meal: None,
        }
    }

    #[test]
    fn a_meal_counts_what_was_used_in_it_until_the_next_day_has_one() {
        let (mut share, today) = (Share::default(), BusinessDay(1));
        share.count_in(today, 1, Fen::new(500));
        share.count_in(today, 2, Fen::new(700));
        share.count_in(today, 2, Fen::new(100));
        share.count_out(today, 1, Fen::new(200));
        assert_eq!([1, 2, 3].map(|meal| share.used_in(today, meal)), [300, 800, 0].map(Fen::new));
        share.count_out(today, 1, Fen::new(900));
        assert_eq!(share.used_in.len(), 1);
        share.count_in(today.next(), 1, Fen::new(400));
        share.count_out(today, 2, Fen::new(100));
        assert_eq!(share.used_in, [((today.next(), 1), Fen::new(400))].into());
    }

    #[test]
    fn a_repeated_grant_changes_nothing_and_a_debit_needs_the_right() {
        let mut row = Row::default();
        row.grant(&grant(500, 500)).unwrap();
        row.grant(&grant(500, 500)).unwrap();
        assert_eq!(row.unspent, Fen::new(500));
        assert!(row.debit(&debit(501, 0), false).is_err());
        assert!(row.debit(&debit(400, 1), false).is_err(), "no stand-in was granted");
        assert_eq!(row.unspent, Fen::new(500), "a refused debit leaves the row alone");
        row.debit(&debit(500, 0), false).unwrap();
        assert_eq!(row.unspent, Fen::ZERO);
        assert!(row.grant(&grant(0, 400)).is_err(), "a total never falls");
    }

    #[test]
    fn a_reversal_sends_stand_in_home_first() {
        let fen = Fen::new;
        assert_eq!(split_reversal(fen(300), fen(500), fen(200), true), Some((fen(100), fen(0), fen(200))));
        assert_eq!(split_reversal(fen(700), fen(500), fen(200), false), Some((fen(0), fen(500), fen(200))));
        assert_eq!(split_reversal(fen(701), fen(500), fen(200), true), None);
        assert_eq!(split_reversal(fen(0), fen(500), fen(200), true), None);
    }

    #[test]
    fn a_share_release_must_fit_every_later_day() {
        let mut share = Share::default();
        let (today, tomorrow) = (BusinessDay(10), BusinessDay(11));
        let granted = |from_day, amount, total| ShareGrant {
            account: AccountId(1),
            epoch: Epoch::FIRST,
            from_day,
            amount: Fen::new(amount),
            total: Fen::new(total),
            time: Timestamp(0),
        };
        share.grant(&granted(today, 50, 50)).unwrap();
        share.spend(tomorrow, Fen::new(30)).unwrap();
        assert_eq!(share.left(today), Fen::new(50));
        assert_eq!(share.releasable(today), Fen::new(20));
        let release = |amount| ShareRelease {
            account: AccountId(1),
            epoch: Epoch::FIRST,
            from_day: today,
            amount: Fen::new(amount),
        };
        assert!(share.release(&release(21)).is_err());
        share.release(&release(20)).unwrap();
        assert_eq!((share.left(today), share.left(tomorrow)), (Fen::new(30), Fen::ZERO));
        assert_eq!(share.left(BusinessDay(12)), Fen::new(30), "a new day is a new sum");
        share.give_back(tomorrow, Fen::new(30)).unwrap();
        assert!(share.give_back(tomorrow, Fen::new(1)).is_err());
    }

    #[test]
    fn days_open_forward_only_and_at_most_one_beyond_what_is_known() {
        let day = BusinessDay;
        assert_eq!(business_day_to_open(day(10), day(10), day(10), day(10)), day(10));
        assert_eq!(business_day_to_open(day(9), day(10), day(10), day(10)), day(10));
        assert_eq!(business_day_to_open(day(11), day(10), day(10), day(10)), day(11));
        assert_eq!(business_day_to_open(day(24_000), day(10), day(10), day(10)), day(11));
        assert_eq!(business_day_to_open(day(0), day(8), day(10), day(12)), day(10));
    }
}
