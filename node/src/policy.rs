//! Stand-in: what a node does beyond its right when the centre does not answer in time. Pure, and in integers.
//!
//! `hybrid` prices a stand-in of a purchase `a`, `t` days after the centre was last heard (or, where it is heard, after it
//! heard those who may have spent meanwhile), by what the account usually spends elsewhere: `D` a working day, `m` a
//! purchase, `g` in a meal period that has any.
//! ```text
//! E = D·t             V = E·max(m, ¥1)        spent elsewhere so far: mean and variance
//! L = D·min(1, 2t)                            still to come: twice the time so far, at most a day
//! left = last known balance − own spending since − E
//! P0 = φ((left − a) / √V)                     the money is there now
//! P1 = φ((left − L − a) / √(V + L·g))         and will have been
//! approve where (1 − P1)·a ≤ λ·P0             λ: what avoiding one false decline is worth
//! ```
//! with `φ(z) = 1 / (1 + exp(−1.702 z))` from a table, and roots of at least one fen. Betting on a top-up that the node
//! has not seen would raise overspend far more than it spares declines, so it is no part of this.

use feiqian_protocol::campus::Mode;
use feiqian_protocol::entry::Hint;
use feiqian_protocol::limits::AMOUNT_FEN_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::DeclineReason;

/// What a stand-in is judged by.
#[derive(Clone, Copy, Debug)]
pub struct StandIn {
    /// The whole purchase.
    pub amount: Fen,
    /// The part of it beyond the right.
    pub need: Fen,
    /// Last known balance over all wallets, less own spending that is not in it.
    pub balance: Fen,
    /// Stand-in granted and not used, of this account here.
    pub granted_left: Fen,
    /// What the pool of the day has left for this account.
    pub pool_left: Fen,
    /// What is known of the account's habits.
    pub hint: Option<Hint>,
    /// Milliseconds since the centre was last heard; 0 while connected.
    pub unheard_ms: u64,
    /// Milliseconds after which the view is too old.
    pub unheard_ms_max: u64,
    /// What avoiding one false decline is worth.
    pub decline_price: Fen,
}

/// Whether the rest of a purchase may be stood in for.
///
/// # Errors
/// The reason to decline.
pub fn stand_in(mode: Mode, tap: &StandIn) -> Result<(), DeclineReason> {
    let approved = match mode {
        Mode::Strict => false,
        Mode::Optimistic => tap.balance >= tap.amount,
        Mode::Hybrid => {
            let within_caps = tap.need <= tap.granted_left && tap.need <= tap.pool_left;
            // An account without a hint is as good as a young one: nothing is known of it.
            let hint = tap.hint.filter(|hint| hint.seasoned);
            let approved = within_caps && hint.is_some_and(|hint| is_worth_it(tap, &hint, tap.unheard_ms));
            if approved && tap.unheard_ms > tap.unheard_ms_max {
                return Err(DeclineReason::ViewTooOld);
            }
            approved
        }
    };
    if approved { Ok(()) } else { Err(DeclineReason::Insufficient) }
}

const DAY_MS: i128 = 86_400_000;

/// The price rule at the top of the module.
fn is_worth_it(tap: &StandIn, hint: &Hint, unheard_ms: u64) -> bool {
    // Bounded, so that no product leaves 128 bits, however long the centre was not heard.
    let fen = |amount: Fen| i128::from(amount.or_zero().min(AMOUNT_FEN_MAX).get());
    let (per_day, mean) = (fen(hint.elsewhere_per_day), fen(hint.purchase_mean).max(100));
    let ms = i128::from(unheard_ms);
    let spent = per_day * ms / DAY_MS;
    let spent_variance = per_day * ms * mean / DAY_MS;
    let to_come = per_day * (2 * ms).min(DAY_MS) / DAY_MS;
    let to_come_variance = to_come * fen(hint.elsewhere_per_meal);
    let amount = fen(tap.amount);
    let over = i128::from(tap.balance.get()) - spent - amount;
    let there_now = phi(over, spent_variance);
    let there_later = phi(over - to_come, spent_variance + to_come_variance);
    (ONE - there_later) * amount <= fen(tap.decline_price) * there_now
}

/// Fixed point of [`phi`].
const ONE: i128 = 1_000_000;

/// Steps of the table per unit of z.
const STEPS: i128 = 16;

/// φ(z) at z = 0, 1/16, … 6, in millionths.
const PHI: [i128; 97] = [
    500_000, 526_569, 552_988, 579_111, 604_799, 629_920, 654_358, 678_006, 700_777, 722_596, 743_407,
    763_168, 781_853, 799_452, 815_966, 831_406, 845_796, 859_165, 871_552, 882_997, 893_547, 903_251,
    912_156, 920_314, 927_775, 934_586, 940_797, 946_451, 951_593, 956_265, 960_504, 964_347, 967_829,
    970_982, 973_833, 976_412, 978_741, 980_845, 982_745, 984_459, 986_006, 987_400, 988_657, 989_790,
    990_811, 991_730, 992_559, 993_305, 993_976, 994_581, 995_125, 995_615, 996_056, 996_452, 996_809,
    997_130, 997_419, 997_679, 997_913, 998_123, 998_312, 998_482, 998_635, 998_773, 998_896, 999_008,
    999_108, 999_198, 999_279, 999_351, 999_417, 999_476, 999_528, 999_576, 999_619, 999_657, 999_692,
    999_723, 999_751, 999_776, 999_799, 999_819, 999_837, 999_854, 999_868, 999_882, 999_894, 999_904,
    999_914, 999_923, 999_930, 999_937, 999_944, 999_949, 999_955, 999_959, 999_963,
];

/// `φ(over / √variance)` in millionths; between the table's steps it is linear.
fn phi(over: i128, variance: i128) -> i128 {
    // Both in 1/1024, which keeps the root of small variances exact enough.
    let root = (variance.max(1) << 20).isqrt().max(1 << 10);
    let z_1024ths = (over.abs() << 20) / root;
    let position = z_1024ths * STEPS;
    let (step, rest) = (position >> 10, position & 1023);
    let at = |step: i128| {
        let index = usize::try_from(step).unwrap_or(usize::MAX);
        PHI.get(index).copied().unwrap_or(ONE)
    };
    let value = at(step) + (at(step + 1) - at(step)) * rest / 1024;
    if over < 0 { ONE - value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use feiqian_protocol::ids::AccountId;

    fn tap(amount: i64, balance: i64, hours: u64) -> StandIn {
        StandIn {
            amount: Fen::new(amount),
            need: Fen::new(amount),
            balance: Fen::new(balance),
            granted_left: Fen::new(2_000),
            pool_left: Fen::new(100_000),
            hint: Some(Hint {
                account: AccountId(1),
                elsewhere_per_day: Fen::new(800),
                purchase_mean: Fen::new(420),
                elsewhere_per_meal: Fen::new(500),
                habit: true,
                seasoned: true,
            }),
            unheard_ms: hours * 3_600_000,
            unheard_ms_max: 7 * 86_400_000,
            decline_price: Fen::new(400),
        }
    }

    #[test]
    fn strict_never_stands_in_and_optimistic_looks_at_the_balance_only() {
        let mut rich = tap(500, 10_000, 1);
        assert_eq!(stand_in(Mode::Strict, &rich), Err(DeclineReason::Insufficient));
        rich.granted_left = Fen::ZERO;
        rich.hint = None;
        rich.unheard_ms = u64::MAX;
        assert_eq!(stand_in(Mode::Optimistic, &rich), Ok(()));
        assert_eq!(stand_in(Mode::Optimistic, &tap(500, 499, 0)), Err(DeclineReason::Insufficient));
    }

    #[test]
    fn hybrid_approves_what_is_likely_there_and_within_its_caps() {
        assert_eq!(stand_in(Mode::Hybrid, &tap(500, 6_000, 2)), Ok(()));
        assert_eq!(stand_in(Mode::Hybrid, &tap(500, 100, 2)), Err(DeclineReason::Insufficient));
        assert_eq!(stand_in(Mode::Hybrid, &tap(1_500, 1_600, 24)), Err(DeclineReason::Insufficient));
        let insufficient = Err(DeclineReason::Insufficient);
        let over_cap = StandIn { granted_left: Fen::new(499), ..tap(500, 6_000, 2) };
        assert_eq!(stand_in(Mode::Hybrid, &over_cap), insufficient);
        let empty_pool = StandIn { pool_left: Fen::new(499), ..tap(500, 6_000, 2) };
        assert_eq!(stand_in(Mode::Hybrid, &empty_pool), insufficient);
        let young = StandIn {
            hint: tap(1, 1, 1).hint.map(|hint| Hint { seasoned: false, ..hint }),
            ..tap(500, 6_000, 2)
        };
        assert_eq!(stand_in(Mode::Hybrid, &young), insufficient);
        assert_eq!(stand_in(Mode::Hybrid, &StandIn { hint: None, ..tap(500, 6_000, 2) }), insufficient);
        let old = StandIn { unheard_ms: 8 * 86_400_000, ..tap(500, 60_000, 2) };
        assert_eq!(stand_in(Mode::Hybrid, &old), Err(DeclineReason::ViewTooOld));
    }

    #[test]
    fn the_largest_numbers_are_priced_too() {
        let most = Fen::new(i64::MAX);
        for balance in [i64::MIN, 0, i64::MAX] {
            for unheard_ms in [0, 1, u64::MAX] {
                let hint = Hint {
                    elsewhere_per_day: most,
                    purchase_mean: most,
                    elsewhere_per_meal: most,
                    ..tap(1, 1, 1).hint.unwrap()
                };
                let tap = StandIn {
                    hint: Some(hint),
                    balance: Fen::new(balance),
                    unheard_ms,
                    unheard_ms_max: u64::MAX,
                    decline_price: most,
                    ..tap(500, 0, 0)
                };
                let approved = stand_in(Mode::Hybrid, &tap).is_ok();
                assert!(if balance < 0 { !approved } else { approved || balance == 0 }, "{tap:?}");
            }
        }
    }

    #[test]
    fn what_is_not_heard_of_elsewhere_makes_a_stand_in_dearer() {
        let connected = StandIn { unheard_ms: 0, ..tap(500, 1_000, 0) };
        assert_eq!(stand_in(Mode::Hybrid, &connected), Ok(()));
        let in_the_dark = StandIn { unheard_ms: 24 * 3_600_000, ..connected };
        assert_eq!(stand_in(Mode::Hybrid, &in_the_dark), Err(DeclineReason::Insufficient));
    }

    #[test]
    fn phi_is_a_distribution() {
        assert_eq!(phi(0, 100), 500_000);
        let mut before = 0;
        for over in -200..=200 {
            let value = phi(over, 900);
            assert!(value >= before && (0..=ONE).contains(&value));
            assert_eq!(phi(-over, 900), ONE - value);
            before = value;
        }
        // φ(1) = 1 / (1 + exp(−1.702)) = 0.845797…
        assert!((phi(30, 900) - 845_797).abs() < 200);
        assert_eq!(phi(i128::from(i64::MAX), 0), ONE);
    }
}
