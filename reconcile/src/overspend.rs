//! Which debits bear a shortfall: the replay of one wallet's history. Pure.
//!
//! Movements are replayed by (order key, centre before nodes, log, position). A debit stands at its place with what is
//! left of it after reversals and refunds. At each new low below zero, beyond what is already owed and not recovered,
//! the increment is put on unbacked amounts at or before that place, latest first: that is the *target* of those
//! debits. What is posted is target minus posted, so resolving twice posts nothing, and a late entry moves only the
//! difference.
//!
//! Grants are written only out of money that is there, and no entry is ordered before a grant that it was made under;
//! so there is always enough unbacked money at or before a new low to bear it. Where a faulty node breaks that, the rest
//! is put on any debits, latest first: every overspent fen has a bearer.

use std::collections::BTreeMap;

use feiqian_protocol::entry::EntryRef;
use feiqian_protocol::ids::NodeId;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;

/// One movement of a wallet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Movement {
    /// The entry.
    pub at: EntryRef,
    /// Its recorded order key.
    pub order_key: Timestamp,
    /// Its effect on funds, net of what was given back; not above zero for a debit.
    pub amount: Fen,
    /// Of a debit: how much of it no right backed, net.
    pub unbacked: Fen,
    /// Of a recovery: how much of what was owed it recovered; negative where it was given back.
    pub recovered: Fen,
}

impl Movement {
    fn place(&self) -> (Timestamp, bool, i64, u64) {
        (self.order_key, self.at.log.writer != NodeId::CENTRE, self.at.log.key(), self.at.position)
    }
}

/// The target of every debit that bears something.
pub fn targets(mut movements: Vec<Movement>) -> BTreeMap<EntryRef, Fen> {
    movements.sort_unstable_by_key(Movement::place);
    let mut targets = BTreeMap::new();
    // What may still be put on debits so far, earliest first: unbacked, then the rest of each.
    let mut unbacked: Vec<(EntryRef, Fen)> = Vec::new();
    let mut backed: Vec<(EntryRef, Fen)> = Vec::new();
    let mut balance = Fen::ZERO;
    let mut owed = Fen::ZERO;
    for movement in movements {
        balance += movement.amount;
        owed -= movement.recovered;
        if movement.amount.is_negative() {
            let bare = movement.unbacked.min(-movement.amount).or_zero();
            unbacked.push((movement.at, bare));
            backed.push((movement.at, -movement.amount - bare));
        }
        let low = -balance - owed.or_zero();
        if low.is_positive() {
            let rest = put(&mut targets, &mut unbacked, low);
            put(&mut targets, &mut backed, rest);
            owed = owed.or_zero() + low;
        }
    }
    targets.retain(|_, target| target.is_positive());
    targets
}

/// Puts an amount on the latest of `bearers`; returns what did not fit.
fn put(targets: &mut BTreeMap<EntryRef, Fen>, bearers: &mut Vec<(EntryRef, Fen)>, amount: Fen) -> Fen {
    let mut rest = amount;
    while let Some((at, room)) = bearers.last_mut() {
        let part = rest.min(*room);
        if part.is_positive() {
            *targets.entry(*at).or_default() += part;
            *room -= part;
            rest -= part;
        }
        if !rest.is_positive() {
            break;
        }
        bearers.pop();
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use feiqian_protocol::ids::{InstitutionId, LogId};
    use proptest::prelude::*;

    fn node_debit(node: u16, position: u64, key: i64, amount: i64, unbacked: i64) -> Movement {
        Movement {
            at: EntryRef { log: LogId::node(InstitutionId(1), NodeId(node)), position },
            order_key: Timestamp(key),
            amount: Fen::new(-amount),
            unbacked: Fen::new(unbacked),
            recovered: Fen::ZERO,
        }
    }

    fn centre(position: u64, key: i64, amount: i64, recovered: i64) -> Movement {
        Movement {
            at: EntryRef { log: LogId::shard(InstitutionId(1), 1), position },
            order_key: Timestamp(key),
            amount: Fen::new(amount),
            unbacked: Fen::ZERO,
            recovered: Fen::new(recovered),
        }
    }

    fn fen_of(targets: &BTreeMap<EntryRef, Fen>, movement: &Movement) -> i64 {
        targets.get(&movement.at).map_or(0, |fen| fen.get())
    }

    #[test]
    fn the_latest_unbacked_debit_bears_the_new_low() {
        let first = node_debit(1, 1, 10, 600, 100);
        let second = node_debit(2, 1, 20, 600, 600);
        let found = targets(vec![centre(1, 1, 1000, 0), second, first]);
        assert_eq!((fen_of(&found, &first), fen_of(&found, &second)), (0, 200));
    }

    #[test]
    fn a_debit_from_right_is_not_blamed_for_an_earlier_stand_in() {
        let stand_in = node_debit(1, 1, 10, 700, 700);
        let from_right = node_debit(2, 1, 20, 600, 0);
        let found = targets(vec![centre(1, 1, 1000, 0), from_right, stand_in]);
        assert_eq!((fen_of(&found, &stand_in), fen_of(&found, &from_right)), (300, 0));
    }

    #[test]
    fn a_credit_before_the_debit_covers_it_and_one_after_it_does_not() {
        let debit = node_debit(1, 1, 10, 500, 500);
        assert_eq!(targets(vec![debit, centre(1, 10, 500, 0)]), BTreeMap::new(), "centre entries come first");
        assert_eq!(fen_of(&targets(vec![debit, centre(1, 11, 500, 0)]), &debit), 500);
    }

    #[test]
    fn what_was_recovered_can_be_overspent_again() {
        let first = node_debit(1, 1, 10, 500, 500);
        let second = node_debit(1, 2, 30, 300, 300);
        let history = vec![first, centre(1, 20, 500, 0), second];
        assert_eq!(fen_of(&targets(history.clone()), &second), 0, "the first is still owed");
        let recovered = [history, vec![centre(2, 20, 0, 500)]].concat();
        assert_eq!(fen_of(&targets(recovered), &second), 300);
    }

    fn movement() -> impl Strategy<Value = Movement> {
        (1..4_u16, 0..20_i64, 1..500_i64, 0..=100_i64)
            .prop_map(|(node, key, amount, percent)| node_debit(node, 0, key, amount, amount * percent / 100))
    }

    fn history() -> impl Strategy<Value = Vec<Movement>> {
        let credits = prop::collection::vec((0..20_i64, 1..500_i64), 0..4);
        (prop::collection::vec(movement(), 0..12), credits).prop_map(|(mut debits, credits)| {
            debits.sort_by_key(|debit| debit.order_key);
            let numbered = debits.into_iter().enumerate().map(|(index, mut debit)| {
                debit.at.position = index as u64 + 1;
                debit
            });
            let credited = credits
                .into_iter()
                .enumerate()
                .map(|(index, (key, amount))| centre(index as u64 + 1, key, amount, 0));
            numbered.chain(credited).collect()
        })
    }

    proptest! {
        #[test]
        fn targets_do_not_depend_on_arrival(history in history(), seed in any::<u64>()) {
            let mut shuffled = history.clone();
            let mut state = seed | 1;
            for index in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                shuffled.swap(index, (state >> 33) as usize % (index + 1));
            }
            prop_assert_eq!(targets(history), targets(shuffled));
        }

        #[test]
        fn targets_cover_the_depth_and_no_debit_bears_more_than_itself(history in history()) {
            let found = targets(history.clone());
            let mut sorted = history.clone();
            sorted.sort_by_key(Movement::place);
            let mut balance = 0;
            let mut depth = 0;
            for movement in &sorted {
                balance += movement.amount.get();
                depth = depth.max(-balance);
                prop_assert!(fen_of(&found, movement) <= (-movement.amount.get()).max(0));
            }
            prop_assert_eq!(found.values().map(|fen| fen.get()).sum::<i64>(), depth);
        }
    }
}
