//! Which declines were wrong: money was there, only not within the building's reach.

use std::collections::BTreeMap;

use feiqian_protocol::ids::CardNumber;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;

use super::receipt::{Kind, Receipt};
use super::workload::{Account, Topup};

/// Declines for funds or for the age of the view although the money was there.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct WrongDeclines {
    /// Opening and credits so far, less purchases approved before, covered it.
    pub false_declines: u64,
    /// Only credits made after the building was out of reach covered it.
    pub unreachable: u64,
}

#[derive(Clone, Debug, Default)]
struct Purse {
    funds: Fen,
    credits: Vec<(Timestamp, Fen)>,
}

impl Purse {
    /// What is there at `at`, of credits only those before `credits_before`.
    fn at(&self, at: Timestamp, credits_before: Timestamp) -> Fen {
        let credits = self.credits.iter().filter(|(time, _)| *time <= at && *time < credits_before);
        self.funds + credits.map(|(_, amount)| *amount).sum()
    }
}

/// Reads the receipts in order of time, terminal and sequence. `unreachable_since` says since when a building is out of
/// the centre's reach at a time.
pub fn wrong_declines(
    accounts: &[Account],
    topups: &[Topup],
    receipts: &[Receipt],
    unreachable_since: impl Fn(&str, Timestamp) -> Option<Timestamp>,
) -> WrongDeclines {
    let mut purses: BTreeMap<&CardNumber, Purse> = accounts
        .iter()
        .map(|account| (&account.card, Purse { funds: account.opening, credits: Vec::new() }))
        .collect();
    for topup in topups {
        purses.entry(&topup.card).or_default().credits.push((topup.at, topup.amount));
    }
    let mut wrong = WrongDeclines::default();
    for receipt in receipts {
        let Some(purse) = purses.get_mut(&receipt.card) else { continue };
        match (receipt.kind, receipt.declined.as_deref()) {
            (Kind::Purchase, None) => purse.funds -= receipt.amount,
            (Kind::Reversal, None) => purse.funds += receipt.amount,
            (Kind::Purchase, Some("insufficient" | "view_too_old"))
                if purse.at(receipt.at, Timestamp(i64::MAX)) >= receipt.amount =>
            {
                let known_before = unreachable_since(&receipt.building, receipt.at);
                if known_before.is_some_and(|since| purse.at(receipt.at, since) < receipt.amount) {
                    wrong.unreachable += 1;
                } else {
                    wrong.false_declines += 1;
                }
            }
            _ => {}
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campus::local;
    use crate::campus::receipt::sample;

    fn declined(at: &str, sequence: &str, reason: &str) -> Receipt {
        Receipt { declined: Some(reason.to_owned()), ..sample(at, sequence, "c1", Kind::Purchase) }
    }

    #[test]
    fn a_decline_is_wrong_where_the_money_was_there() {
        let account = Account {
            card: "c1".parse().unwrap(),
            patron_class: "student".to_owned(),
            opening: Fen::new(1_500),
            single_limit: None,
            daily_limit: None,
        };
        let topup = Topup {
            at: local::parse("2022-11-07T12:30").unwrap(),
            card: "c1".parse().unwrap(),
            amount: Fen::new(2_000),
            channel: "alipay".parse().unwrap(),
            key: "1".parse().unwrap(),
        };
        let judge = |receipts: &[Receipt], cut: Option<&str>| {
            let cut = cut.map(|cut| local::parse(cut).unwrap());
            let wrong = wrong_declines(
                std::slice::from_ref(&account),
                std::slice::from_ref(&topup),
                receipts,
                |_, _| cut,
            );
            (wrong.false_declines, wrong.unreachable)
        };
        let before = declined("2022-11-07T12:00", "1", "insufficient");
        assert_eq!(judge(std::slice::from_ref(&before), None), (1, 0));
        assert_eq!(judge(&[declined("2022-11-07T12:00", "1", "pin_required")], None), (0, 0));
        let spent = sample("2022-11-07T11:00", "0", "c1", Kind::Purchase);
        assert_eq!(judge(&[spent.clone(), before], None), (0, 0));
        let after = declined("2022-11-07T12:30", "2", "view_too_old");
        assert_eq!(judge(&[spent.clone(), after.clone()], None), (1, 0));
        assert_eq!(judge(&[spent.clone(), after.clone()], Some("2022-11-07T12:00")), (0, 1));
        assert_eq!(judge(&[spent.clone(), after.clone()], Some("2022-11-07T12:31")), (1, 0));
        let back =
            Receipt { amount: Fen::new(1_000), ..sample("2022-11-07T11:01", "1", "c1", Kind::Reversal) };
        assert_eq!(judge(&[spent, back, after], Some("2022-11-07T12:00")), (1, 0));
    }
}
