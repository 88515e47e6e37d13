//! What a waiting tap has asked of the centre, what it was told, and what to ask next.
//!
//! Units are asked for in order: allowance, then subsidy where the balance shows some elsewhere, then cash. An ask names a
//! level (the total of granted that would suffice). A *no* stands for its level and all above: a tap that needs less later
//! asks again, and a partial grant does not make it ask for the same level twice. What is free where the whole is not is
//! asked for by itself, where that helps: it lessens the stand-in, or leaves the rest to the other wallet.

use std::collections::BTreeMap;

use feiqian_protocol::frame::No;
use feiqian_protocol::ids::{Unit, Wallet};
use feiqian_protocol::limits::AMOUNT_FEN_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::rights::Share;
use feiqian_protocol::tap::DeclineReason;

use crate::authorizer::Cover;
use crate::store::accounts::Purse;

/// Asks of one tap; beyond it the tap is decided with what is there.
const ASKS_MAX: u32 = 16;

const SUBSIDY: Unit = Unit::Wallet(Wallet::Subsidy);
const CASH: Unit = Unit::Wallet(Wallet::Cash);

/// What to do about a tap that is short.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// Wait for this level of this unit.
    Ask(Unit, Fen),
    /// The centre's word is final.
    Decline(DeclineReason),
    /// The offline policy decides.
    Decide,
}

/// See the top of the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asks {
    /// The level that is asked for, and in which session it was.
    asked: Option<(Unit, Fen, u64)>,
    count: u32,
    noes: BTreeMap<Unit, Told>,
    unheard_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    want: Fen,
    is_final: bool,
    /// What may still be asked for by itself.
    free: Fen,
    /// The level of that, once it was asked for.
    partial: Option<Fen>,
}

impl Asks {
    /// What to do about this shortage.
    pub(crate) fn next(&mut self, short: &Cover, purse: &Purse, share: &Share) -> Next {
        if self.count >= ASKS_MAX {
            return Next::Decide;
        }
        match *short {
            Cover::Full(_) => Next::Decide,
            Cover::ShortOfAllowance { want } => match self.level(Unit::Allowance, want, share.granted, false)
            {
                Some(level) => Next::Ask(Unit::Allowance, level),
                None => Next::Decline(DeclineReason::PinRequired),
            },
            Cover::ShortOfRight { subsidy_want, cash_want, .. } => {
                let subsidy =
                    subsidy_want.and_then(|want| self.level(SUBSIDY, want, purse.subsidy.row.granted, true));
                if let Some(level) = subsidy {
                    return Next::Ask(SUBSIDY, level);
                }
                // After a final no the rest is nowhere, so a part of it would only be hoarded.
                let is_final = self.noes.get(&CASH).is_some_and(|told| told.is_final);
                match self.level(CASH, cash_want, purse.cash.row.granted, !is_final) {
                    Some(level) => Next::Ask(CASH, level),
                    None if is_final => Next::Decline(DeclineReason::Insufficient),
                    None => Next::Decide,
                }
            }
        }
    }

    /// The level to ask for so as to reach `want`; `None` where the centre has said no to all that would help.
    fn level(&mut self, unit: Unit, want: Fen, granted: Fen, part_helps: bool) -> Option<Fen> {
        let Some(told) = self.noes.get_mut(&unit) else { return Some(want) };
        if want < told.want {
            return Some(want);
        }
        if let Some(partial) = told.partial {
            if granted < partial {
                return Some(partial);
            }
            told.partial = None;
        }
        if !part_helps || !told.free.is_positive() {
            return None;
        }
        let partial = granted + told.free;
        told.free = Fen::ZERO;
        if partial >= told.want {
            return None;
        }
        told.partial = Some(partial);
        Some(partial)
    }

    /// Notes an ask; true where it must be sent, since the level or the session is another.
    pub(crate) fn note(&mut self, unit: Unit, want: Fen, session: u64) -> bool {
        let asked = Some((unit, want, session));
        if self.asked == asked {
            return false;
        }
        self.asked = asked;
        self.count += 1;
        true
    }

    /// Takes note of a no; false where it is not about what this tap asks for.
    pub(crate) fn hear(&mut self, no: &No) -> bool {
        let Some((unit, want, _)) = self.asked else { return false };
        if unit != no.unit || want < no.want {
            return false;
        }
        let told = Told {
            want: no.want,
            is_final: no.r#final,
            free: no.free.or_zero().min(AMOUNT_FEN_MAX),
            partial: None,
        };
        self.noes.insert(unit, told);
        self.asked = None;
        self.unheard_ms = self.unheard_ms.max(no.unheard_ms);
        true
    }

    /// For how long it is not known what the account spent elsewhere, by the centre's word.
    pub(crate) const fn unheard_ms(&self) -> u64 {
        self.unheard_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorizer::Split;
    use feiqian_protocol::ids::AccountId;

    fn short(subsidy_want: Option<i64>, cash_want: i64) -> Cover {
        Cover::ShortOfRight {
            split: Split::default(),
            subsidy_want: subsidy_want.map(Fen::new),
            cash_want: Fen::new(cash_want),
        }
    }

    fn no(unit: Unit, want: i64, is_final: bool, free: i64) -> No {
        No {
            account: AccountId(1),
            unit,
            want: Fen::new(want),
            r#final: is_final,
            free: Fen::new(free),
            unheard_ms: if is_final { 0 } else { 7 },
        }
    }

    fn next(asks: &mut Asks, cover: &Cover, cash_granted: i64) -> Next {
        let mut purse = Purse::default();
        purse.cash.row.granted = Fen::new(cash_granted);
        let next = asks.next(cover, &purse, &Share::default());
        if let Next::Ask(unit, want) = next {
            asks.note(unit, want, 1);
        }
        next
    }

    #[test]
    fn subsidy_is_asked_for_before_cash_and_a_part_of_it_helps() {
        let mut asks = Asks::default();
        assert_eq!(next(&mut asks, &short(Some(300), 500), 0), Next::Ask(SUBSIDY, Fen::new(300)));
        assert!(!asks.hear(&no(CASH, 300, true, 0)), "about something else");
        assert!(asks.hear(&no(SUBSIDY, 300, true, 100)));
        assert_eq!(next(&mut asks, &short(Some(300), 500), 0), Next::Ask(SUBSIDY, Fen::new(100)));
        assert!(asks.hear(&no(SUBSIDY, 100, true, 0)));
        assert_eq!(next(&mut asks, &short(Some(300), 500), 0), Next::Ask(CASH, Fen::new(500)));
        assert!(asks.hear(&no(CASH, 500, true, 400)));
        assert_eq!(next(&mut asks, &short(Some(300), 500), 0), Next::Decline(DeclineReason::Insufficient));
    }

    #[test]
    fn after_a_no_that_is_not_final_the_free_part_is_asked_for_and_then_the_policy_decides() {
        let mut asks = Asks::default();
        assert_eq!(next(&mut asks, &short(None, 500), 0), Next::Ask(CASH, Fen::new(500)));
        assert!(!asks.hear(&no(CASH, 600, false, 0)), "the tap wants less than that");
        assert!(asks.hear(&no(CASH, 500, false, 200)));
        assert_eq!(next(&mut asks, &short(None, 500), 0), Next::Ask(CASH, Fen::new(200)));
        assert_eq!(next(&mut asks, &short(None, 500), 100), Next::Ask(CASH, Fen::new(200)), "not there yet");
        assert_eq!(next(&mut asks, &short(None, 500), 200), Next::Decide);
        assert_eq!(asks.unheard_ms(), 7);
        assert_eq!(
            next(&mut asks, &short(None, 450), 200),
            Next::Ask(CASH, Fen::new(450)),
            "less is a new ask"
        );
    }

    #[test]
    fn an_ask_is_sent_once_per_level_and_session() {
        let mut asks = Asks::default();
        assert!(asks.note(CASH, Fen::new(5), 1));
        assert!(!asks.note(CASH, Fen::new(5), 1));
        assert!(asks.note(CASH, Fen::new(6), 1));
        assert!(asks.note(CASH, Fen::new(6), 2));
    }
}
