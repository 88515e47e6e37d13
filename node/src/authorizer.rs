//! What a tap deserves, from what is known: pure functions, in the order of precedence of [`DeclineReason`].
//!
//! First [`standing`] (card, account, permission, PIN), then [`price`], then [`cover`] (limits before funds). What a node
//! does when it cannot cover is [`crate::policy`]'s and [`crate::edge`]'s.

use feiqian_protocol::account::CardStatus;
use feiqian_protocol::campus::{Meal, Merchant, Mode};
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::Measured;
use feiqian_protocol::ids::Key;
use feiqian_protocol::limits::{AMOUNT_FEN_MAX, QUANTITY_MAX};
use feiqian_protocol::money::Fen;
use feiqian_protocol::rights::Share;
use feiqian_protocol::tap::{DeclineReason, Pin, TapKind};
use feiqian_protocol::time::BusinessDay;

use crate::io::TapError;
use crate::store::accounts::{Holder, Purse};

/// Checks what a terminal asked for, before anything is looked up about the card.
///
/// # Errors
/// [`TapError`] where it is no tap at all.
pub fn check_kind(kind: TapKind, terminal: &str, merchant: Option<&Merchant>) -> Result<(), TapError> {
    match kind {
        TapKind::Access => Ok(()),
        _ if merchant.is_none() => Err(TapError::NoMerchant(terminal.to_owned())),
        TapKind::Amount(amount) if !amount.is_positive() || amount > AMOUNT_FEN_MAX => Err(TapError::Amount),
        TapKind::Quantity(quantity) if !(1..=QUANTITY_MAX).contains(&quantity) => Err(TapError::Quantity),
        TapKind::Amount(_) | TapKind::Quantity(_) => Ok(()),
    }
}

/// Whether card and account are good for this kind of tap at this terminal, money aside. `lost` is a loss that was
/// told ahead of its entry; `groups` are those whose members may pass now, absent for anybody; `sells` is false where this node may not
/// write purchases.
///
/// # Errors
/// The reason to decline.
pub fn standing<'a>(
    kind: TapKind,
    holder: Option<&'a Holder>,
    lost: bool,
    groups: Option<&[&Key]>,
    sells: bool,
    today: BusinessDay,
) -> Result<&'a Holder, DeclineReason> {
    let holder = holder.ok_or(DeclineReason::UnknownCard)?;
    let access = kind == TapKind::Access;
    match holder.card {
        CardStatus::Void if planted(Canary::VoidStillPays) => {}
        CardStatus::Void => return Err(DeclineReason::Void),
        CardStatus::Lost => return Err(DeclineReason::Lost),
        CardStatus::Active | CardStatus::Legacy | CardStatus::Inactive if lost => {
            return Err(DeclineReason::Lost);
        }
        CardStatus::Inactive => return Err(DeclineReason::CardInactive),
        CardStatus::Active | CardStatus::Legacy => {}
    }
    if holder.frozen && !access {
        return Err(DeclineReason::Frozen);
    }
    if holder.closed && !planted(Canary::ClosedStillPays) {
        return Err(DeclineReason::Closed);
    }
    if holder.valid_until.is_some_and(|last| last < today) && !planted(Canary::ExpiredStillPays) {
        return Err(DeclineReason::Expired);
    }
    let is_legacy = holder.card == CardStatus::Legacy;
    let permitted = if access {
        groups.map_or(!is_legacy, |groups| {
            groups.iter().any(|group| holder.groups.iter().any(|own| own == group.as_str()))
        })
    } else {
        sells && !is_legacy
    };
    if permitted { Ok(holder) } else { Err(DeclineReason::NotPermitted) }
}

/// What a purchase costs this holder, and the tariff where there was one.
///
/// # Errors
/// [`DeclineReason::NoTariff`] where the merchant has no price for the holder's class, or none that gives an amount.
pub fn price(
    kind: TapKind,
    class: &str,
    merchant: Option<&Merchant>,
    version: u32,
) -> Result<(Fen, Option<Measured>), DeclineReason> {
    match kind {
        TapKind::Access => Ok((Fen::ZERO, None)),
        TapKind::Amount(amount) => Ok((amount, None)),
        TapKind::Quantity(quantity) => {
            let tariff = merchant.and_then(|merchant| merchant.tariff.get(class));
            let unit_price = *tariff.ok_or(DeclineReason::NoTariff)?;
            match unit_price.amount(quantity) {
                Ok(amount) if amount.is_positive() && amount <= AMOUNT_FEN_MAX => {
                    Ok((amount, Some(Measured { quantity, unit_price, tariff_version: version })))
                }
                _ => Err(DeclineReason::NoTariff),
            }
        }
    }
}

/// How a purchase is paid: what a voucher holds first, then right, subsidy before cash, the rest as stand-in on cash.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Split {
    /// From what the centre holds for the voucher of the code.
    pub voucher: Fen,
    /// From the right to subsidy.
    pub subsidy: Fen,
    /// From the right to cash.
    pub cash: Fen,
    /// Beyond it.
    pub stand_in: Fen,
}

/// Whether the rights at hand cover a purchase.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cover {
    /// They do.
    Full(Split),
    /// The day's allowance here is short; this total granted would suffice.
    ShortOfAllowance {
        /// The level to ask for.
        want: Fen,
    },
    /// Right is short by `split.stand_in`.
    ShortOfRight {
        /// What the rights give, and the rest.
        split: Split,
        /// The level of subsidy to ask for first, where the balance says that there is more of it elsewhere.
        subsidy_want: Option<Fen>,
        /// The level of cash to ask for.
        cash_want: Fen,
    },
}

/// The money side of an account as a purchase meets it.
pub struct Funds<'a> {
    /// Card and account.
    pub holder: &'a Holder,
    /// Both wallets.
    pub purse: &'a Purse,
    /// The allowance share.
    pub share: &'a Share,
    /// The business day of the debit.
    pub day: BusinessDay,
    /// How the campus stands in.
    pub mode: Mode,
    /// The meal period that the purchase counts in.
    pub meal: Option<&'a Meal>,
    /// What the centre holds for the voucher of the code, and its part of the day's allowance with it.
    pub held: Fen,
}

/// Covers a purchase from a voucher, allowance and rights. With the right PIN neither limit counts.
///
/// # Errors
/// The reason to decline, whatever the centre might say.
pub fn cover(amount: Fen, pin: Pin, funds: &Funds<'_>) -> Result<Cover, DeclineReason> {
    let from_voucher = amount.min(funds.held);
    let rest = amount - from_voucher;
    match pin {
        Pin::Wrong => return Err(DeclineReason::WrongPin),
        // Judged before ([`crate::pin`]).
        Pin::Entered { .. } | Pin::NotHashed => return Err(DeclineReason::PinNotSet),
        Pin::Right => {}
        Pin::Absent => {
            let used = funds.share.used_on.get(&funds.day).copied().unwrap_or_default();
            // What was used here alone may already be too much for the day, whatever share is here.
            let over_daily = rest.is_positive() && used + rest > funds.holder.daily_limit;
            let over_meal = rest.is_positive()
                && funds.meal.is_some_and(|meal| {
                    funds.share.used_in(funds.day, meal.label()) + rest > meal.limit_fen
                        && !planted(Canary::MealLimitIgnored)
                });
            if amount > funds.holder.single_limit || over_daily || over_meal {
                return Err(DeclineReason::PinRequired);
            }
            let left = funds.share.left(funds.day);
            if funds.mode != Mode::Optimistic && rest.is_positive() && left < rest {
                return Ok(Cover::ShortOfAllowance { want: funds.share.granted + rest - left });
            }
        }
    }
    let (subsidy, cash) = (&funds.purse.subsidy, &funds.purse.cash);
    let from_subsidy = rest.min(subsidy.row.unspent);
    let from_cash = (rest - from_subsidy).min(cash.row.unspent);
    let short = rest - from_subsidy - from_cash;
    let split = Split { voucher: from_voucher, subsidy: from_subsidy, cash: from_cash, stand_in: short };
    if short == Fen::ZERO {
        return Ok(Cover::Full(split));
    }
    let elsewhere = (subsidy.balance() - subsidy.row.unspent).or_zero().min(short);
    Ok(Cover::ShortOfRight {
        split,
        subsidy_want: elsewhere.is_positive().then(|| subsidy.row.granted + elsewhere),
        cash_want: cash.row.granted + short,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::accounts::WalletState;
    use feiqian_protocol::ids::AccountId;
    use feiqian_protocol::rights::Row;

    const TODAY: BusinessDay = BusinessDay(20_000);

    fn holder() -> Holder {
        Holder {
            account: AccountId(1),
            card: CardStatus::Active,
            frozen: false,
            closed: false,
            class: "student".to_owned(),
            single_limit: Fen::new(2_000),
            daily_limit: Fen::new(5_000),
            groups: vec!["dorm-1".to_owned()],
            valid_until: None,
        }
    }

    fn wallet(posted: i64, granted: i64, unspent: i64) -> WalletState {
        let row = Row { granted: Fen::new(granted), unspent: Fen::new(unspent), ..Row::default() };
        WalletState { posted: Fen::new(posted), own: Fen::ZERO, row }
    }

    fn share(granted: i64, used: i64) -> Share {
        Share {
            net_from: [(BusinessDay(1), Fen::new(granted))].into(),
            used_on: [(BusinessDay(1), Fen::new(used))].into(),
            granted: Fen::new(granted),
            ..Share::default()
        }
    }

    fn covered(
        amount: i64,
        pin: Pin,
        purse: &Purse,
        share: &Share,
        mode: Mode,
    ) -> Result<Cover, DeclineReason> {
        covered_with(Fen::ZERO, amount, pin, purse, share, mode)
    }

    fn covered_with(
        held: Fen,
        amount: i64,
        pin: Pin,
        purse: &Purse,
        share: &Share,
        mode: Mode,
    ) -> Result<Cover, DeclineReason> {
        let holder = holder();
        cover(
            Fen::new(amount),
            pin,
            &Funds { holder: &holder, purse, share, day: BusinessDay(1), mode, meal: None, held },
        )
    }

    #[test]
    fn the_first_reason_in_order_of_precedence_is_given() {
        let purchase = TapKind::Amount(Fen::new(100));
        let group = Key::new("dorm-1").unwrap();
        let reason = |kind, holder: Option<&Holder>, lost, sells| {
            standing(kind, holder, lost, Some(&[&group]), sells, TODAY).map(|holder| holder.account)
        };
        assert_eq!(reason(purchase, None, false, true), Err(DeclineReason::UnknownCard));
        let mut bad =
            Holder { card: CardStatus::Void, frozen: true, closed: true, groups: vec![], ..holder() };
        assert_eq!(reason(purchase, Some(&bad), true, true), Err(DeclineReason::Void));
        bad.card = CardStatus::Active;
        assert_eq!(reason(purchase, Some(&bad), true, true), Err(DeclineReason::Lost));
        assert_eq!(reason(purchase, Some(&bad), false, true), Err(DeclineReason::Frozen));
        assert_eq!(reason(TapKind::Access, Some(&bad), false, true), Err(DeclineReason::Closed));
        bad.closed = false;
        bad.valid_until = Some(BusinessDay(TODAY.0 - 1));
        assert_eq!(reason(TapKind::Access, Some(&bad), false, true), Err(DeclineReason::Expired));
        bad.valid_until = Some(TODAY);
        assert_eq!(reason(TapKind::Access, Some(&bad), false, true), Err(DeclineReason::NotPermitted));
        bad.card = CardStatus::Inactive;
        assert_eq!(reason(purchase, Some(&bad), true, true), Err(DeclineReason::Lost));
        for kind in [purchase, TapKind::Access] {
            assert_eq!(reason(kind, Some(&bad), false, true), Err(DeclineReason::CardInactive));
        }
        bad.card = CardStatus::Active;
        bad.groups = holder().groups;
        assert_eq!(
            reason(TapKind::Access, Some(&bad), false, true),
            Ok(AccountId(1)),
            "frozen money opens doors"
        );
        assert_eq!(reason(purchase, Some(&holder()), false, false), Err(DeclineReason::NotPermitted));
    }

    #[test]
    fn a_legacy_card_opens_the_doors_of_its_group_and_pays_nothing() {
        let purchase = TapKind::Amount(Fen::new(100));
        let old = Holder { card: CardStatus::Legacy, groups: vec!["classrooms".to_owned()], ..holder() };
        let keys = ["dorm-1", "labs", "classrooms"].map(|group| Key::new(group).unwrap());
        let [dorm, labs, classrooms] = keys.each_ref();
        let judged = |kind, groups: Option<&[&Key]>| {
            standing(kind, Some(&old), false, groups, true, TODAY).map(|holder| holder.account)
        };
        assert_eq!(judged(TapKind::Access, Some(&[labs, classrooms])), Ok(AccountId(1)));
        for groups in [Some(&[dorm][..]), Some(&[]), None] {
            assert_eq!(judged(TapKind::Access, groups), Err(DeclineReason::NotPermitted));
        }
        assert_eq!(judged(purchase, None), Err(DeclineReason::NotPermitted));
        assert_eq!(judged(purchase, Some(&[classrooms])), Err(DeclineReason::NotPermitted));
    }

    #[test]
    fn limits_come_before_funds_and_a_pin_lifts_them() {
        let poor = Purse::default();
        let hybrid = Mode::Hybrid;
        let full = share(5_000, 0);
        assert_eq!(covered(2_001, Pin::Absent, &poor, &full, hybrid), Err(DeclineReason::PinRequired));
        assert_eq!(covered(100, Pin::Wrong, &poor, &full, hybrid), Err(DeclineReason::WrongPin));
        assert_eq!(
            covered(600, Pin::Absent, &poor, &share(5_000, 4_500), hybrid),
            Err(DeclineReason::PinRequired)
        );
        let short = Cover::ShortOfAllowance { want: Fen::new(800) };
        assert_eq!(covered(500, Pin::Absent, &poor, &share(400, 300), hybrid), Ok(short));
        let rich = Purse { cash: wallet(9_000, 9_000, 9_000), ..Purse::default() };
        let whole = |cash| Ok(Cover::Full(Split { cash: Fen::new(cash), ..Split::default() }));
        assert_eq!(covered(9_000, Pin::Right, &rich, &share(0, 0), hybrid), whole(9_000));
        assert_eq!(covered(500, Pin::Absent, &rich, &share(0, 0), Mode::Optimistic), whole(500));
    }

    #[test]
    fn subsidy_goes_before_cash_and_is_asked_for_where_the_balance_shows_more() {
        let purse = Purse { subsidy: wallet(1_000, 300, 300), cash: wallet(5_000, 900, 400) };
        let split = Split { subsidy: Fen::new(300), cash: Fen::new(200), ..Split::default() };
        let all = share(5_000, 0);
        assert_eq!(covered(500, Pin::Absent, &purse, &all, Mode::Hybrid), Ok(Cover::Full(split)));
        let short = Cover::ShortOfRight {
            split: Split {
                subsidy: Fen::new(300),
                cash: Fen::new(400),
                stand_in: Fen::new(100),
                ..Split::default()
            },
            subsidy_want: Some(Fen::new(400)),
            cash_want: Fen::new(1_000),
        };
        assert_eq!(covered(800, Pin::Absent, &purse, &all, Mode::Hybrid), Ok(short));
    }

    #[test]
    fn a_voucher_pays_without_right_and_without_the_share_and_the_rest_goes_the_usual_way() {
        let (poor, none) = (Purse::default(), share(0, 4_900));
        let held = Fen::new(1_500);
        let with = |amount, pin| covered_with(held, amount, pin, &poor, &none, Mode::Strict);
        let of_voucher = |fen| Split { voucher: Fen::new(fen), ..Split::default() };
        assert_eq!(with(1_500, Pin::Absent), Ok(Cover::Full(of_voucher(1_500))));
        assert_eq!(with(100, Pin::Right), Ok(Cover::Full(of_voucher(100))));
        assert_eq!(
            with(1_700, Pin::Absent),
            Err(DeclineReason::PinRequired),
            "the day's limit, with the rest"
        );
        assert_eq!(with(2_001, Pin::Absent), Err(DeclineReason::PinRequired), "the limit of a purchase");
        let short = Cover::ShortOfAllowance { want: Fen::new(4_950) };
        assert_eq!(with(1_550, Pin::Absent), Ok(short));
        let short = Cover::ShortOfRight {
            split: Split { stand_in: Fen::new(200), ..of_voucher(1_500) },
            subsidy_want: None,
            cash_want: Fen::new(200),
        };
        assert_eq!(with(1_700, Pin::Right), Ok(short));
        let rich = Purse { cash: wallet(9_000, 9_000, 9_000), ..Purse::default() };
        let all = covered_with(held, 1_700, Pin::Absent, &rich, &share(5_000, 0), Mode::Strict);
        assert_eq!(all, Ok(Cover::Full(Split { cash: Fen::new(200), ..of_voucher(1_500) })));
    }

    #[test]
    fn a_quantity_is_priced_by_the_holders_class() {
        let merchant = Merchant {
            id: 1,
            name: "counter".to_owned(),
            tariff: [("student".to_owned(), "0.024".parse().unwrap())].into(),
        };
        let (amount, measured) = price(TapKind::Quantity(552), "student", Some(&merchant), 3).unwrap();
        assert_eq!((amount, measured.unwrap().tariff_version), (Fen::new(1_325), 3));
        let guest = price(TapKind::Quantity(552), "guest", Some(&merchant), 3);
        assert_eq!(guest, Err(DeclineReason::NoTariff));
        assert_eq!(check_kind(TapKind::Amount(Fen::ZERO), "t", Some(&merchant)), Err(TapError::Amount));
        assert_eq!(check_kind(TapKind::Quantity(0), "t", Some(&merchant)), Err(TapError::Quantity));
        assert!(matches!(check_kind(TapKind::Quantity(1), "t", None), Err(TapError::NoMerchant(_))));
    }
}
