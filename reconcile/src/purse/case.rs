//! What a person decides of a purchase of a purse that suspense has paid, or that handed nothing out.
//!
//! | the case | `refund` | `deny` | `charge_back` |
//! |---|---|---|---|
//! | `purse_wrong_tac`, `purse_clone`, `purse_overdrawn` | the risk fund bears it | the card paid it | the merchant gives it back |
//! | `purse_unproven`, suspense has it | the account gets it | the merchant gets it | |
//! | `purse_unproven`, nothing moved | the card's money goes to the account | the card's money goes to the merchant | |
//!
//! A card pays no more than the books have on it.

use feiqian_protocol::entry::{Actor, EntryRef, PurseCaseDecided, PurseSide};
use feiqian_protocol::ids::{LogId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::purse::values::CardSerial;
use feiqian_protocol::time::Timestamp;
use serde_json::json;

use super::purse_ledger;
use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::export::case_name;
use crate::io::{CaseDecision, Reply};
use crate::ledger::{RISK_FUND, SUSPENSE, merchant_ledger, wallet_ledger};
use crate::store::StoreError as Store;
use crate::store::accounts;
use crate::store::nodes::Node;
use crate::store::purses::{self, Became, PurchaseRow};

/// From whom to whom such a decision moves what the purchase was about; `None` where it decides nothing.
const fn sides(became: Became, decision: CaseDecision) -> Option<(PurseSide, PurseSide)> {
    Some(match (became, decision) {
        (Became::WrongTac | Became::Clone | Became::Overdrawn, decision) => {
            let from = match decision {
                CaseDecision::Refund => PurseSide::RiskFund,
                CaseDecision::Deny => PurseSide::Purse,
                CaseDecision::ChargeBack => PurseSide::Merchant,
            };
            (from, PurseSide::Suspense)
        }
        (Became::Unproven, CaseDecision::Refund) => (PurseSide::Suspense, PurseSide::Account),
        (Became::Unproven, CaseDecision::Deny) => (PurseSide::Suspense, PurseSide::Merchant),
        (Became::Hearsay, CaseDecision::Refund) => (PurseSide::Purse, PurseSide::Account),
        (Became::Hearsay, CaseDecision::Deny) => (PurseSide::Purse, PurseSide::Merchant),
        _ => return None,
    })
}

/// Who bears a case that is decided, as exports and answers say it.
pub(crate) const fn bearer(decided: &PurseCaseDecided) -> &'static str {
    match (decided.from, decided.to) {
        (PurseSide::RiskFund, _) => "risk_fund",
        (PurseSide::Merchant, _) => "merchant",
        (_, PurseSide::Account) => "nobody",
        _ => "holder",
    }
}

/// What came back into suspense, and what went to the holder, in fen.
pub(crate) fn moved(decided: &PurseCaseDecided) -> (Fen, Fen) {
    match (decided.from, decided.to) {
        (_, PurseSide::Account) => (Fen::ZERO, decided.amount),
        (PurseSide::Merchant | PurseSide::Purse, PurseSide::Suspense) => (decided.amount, Fen::ZERO),
        _ => (Fen::ZERO, Fen::ZERO),
    }
}

impl Round<'_> {
    /// The purchase of a purse that a case of this name is about.
    pub(crate) fn purse_case(&self, name: &str) -> Result<Option<(CardSerial, PurchaseRow)>, StoreError> {
        let cases = purses::cases(self.db, self.state.identity.institution)?;
        Ok(cases.into_iter().find(|(_, purchase)| {
            let EntryRef { log, position } = purchase.at;
            let node = self.state.nodes.get(&log.writer).map(Node::display_name);
            case_name(node, log, position) == name
        }))
    }

    /// Carries out what a person decides of it.
    pub(crate) fn decide_purse_case(
        &mut self,
        name: &str,
        (serial, purchase): (CardSerial, PurchaseRow),
        decision: CaseDecision,
        actor: Actor,
    ) -> Result<Reply, StoreError> {
        let PurchaseRow { at, amount, merchant, became, .. } = purchase;
        if purses::decision_of(self.db, at)?.is_some() {
            return Ok(refused("case_decided", format!("{name} is decided already")));
        }
        let Some((from, to)) = sides(became, decision) else {
            return Ok(refused("not_charged_back", "the merchant was not paid; refund or deny it"));
        };
        let account = accounts::account_of_card(self.db, &serial.card_number())?;
        if to == PurseSide::Account && account.is_none() {
            return Ok(refused("unknown_card", "no account has this card"));
        }
        let on_card = self.ledger_now(&purse_ledger(serial))?;
        if from == PurseSide::Purse && on_card < amount {
            let message =
                format!("the books have {on_card} yuan on the card, and the purchase was of {amount}");
            return Ok(refused("not_on_card", message));
        }
        let decided = PurseCaseDecided { purchase: at, serial, amount, merchant, from, to, account };
        // That of a card which is nobody's stands where the campus configuration does.
        let log = account.map_or_else(
            || LogId::shard(self.state.identity.institution, 0),
            |account| self.state.shard(account),
        );
        let position = self.append(log, actor, decided.clone())?;
        self.apply_purse_case(EntryRef { log, position }, self.state.time, &decided)?;
        let (_, refunded) = moved(&decided);
        Ok(Ok(json!({ "case": name, "bearer": bearer(&decided), "refunded_fen": refunded })))
    }

    /// What such an entry does.
    pub(crate) fn apply_purse_case(
        &mut self,
        at: EntryRef,
        time: Timestamp,
        decided: &PurseCaseDecided,
    ) -> Result<(), StoreError> {
        let ledger = |side| match side {
            PurseSide::Suspense => Some(SUSPENSE.to_owned()),
            PurseSide::RiskFund => Some(RISK_FUND.to_owned()),
            PurseSide::Merchant => Some(merchant_ledger(decided.merchant)),
            PurseSide::Purse => Some(purse_ledger(decided.serial)),
            PurseSide::Account => decided.account.map(|account| wallet_ledger(account, Wallet::Cash)),
        };
        let (Some(from), Some(to)) = (ledger(decided.from), ledger(decided.to)) else {
            return Err(Store::Corrupt(format!("{} {}: a decision for no account", at.log, at.position)));
        };
        let own_day = self.state.calendar().day(time);
        self.post(at, own_day, decided.amount, from, to)?;
        purses::insert_decision(self.db, at, decided)?;
        match decided.given_back() {
            Some((account, wallet, amount)) => self.move_wallet(at, time, (account, wallet), amount),
            None => Ok(()),
        }
    }
}
