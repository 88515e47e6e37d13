//! What a person decides of a case that no rule decides: a tap after a loss report above the refund cap, or by a code that had been
//! used at another building; and a purchase of a purse ([`crate::purse::case`]).

use feiqian_protocol::entry::{Actor, ActorKind, Bearer, Proof};
use feiqian_protocol::ids::Key;
use feiqian_protocol::money::Fen;
use serde_json::json;

use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::export::case_name;
use crate::io::{CaseDecision, Reply};
use crate::store::StoreError as Store;
use crate::store::cases::{self, CaseState};
use crate::store::money;
use crate::store::nodes::Node;

impl Round<'_> {
    /// Gives the holder back what such a case is about, at the risk fund's cost, or leaves it to the holder.
    pub(crate) fn decide_case(
        &mut self,
        name: &str,
        decision: CaseDecision,
        operator: Key,
    ) -> Result<Reply, StoreError> {
        let actor = Actor { kind: ActorKind::Operator, id: operator, proof: Proof::Login };
        let mut cases = Vec::new();
        for case in cases::refundable_cases(self.db, self.state.identity.institution)? {
            let node = self.state.nodes.get(&case.debit.log.writer).map(Node::display_name);
            if case_name(node, case.debit.log, case.debit.position) == name {
                cases.push(case);
            }
        }
        if cases.is_empty() {
            if let Some(purchase) = self.purse_case(name)? {
                return self.decide_purse_case(name, purchase, decision, actor);
            }
            let message = format!("{name} is no case that a person decides; export cases has their names");
            return Ok(refused("case", message));
        }
        cases.retain(|case| case.bearer == Bearer::Suspense);
        if cases.is_empty() {
            return Ok(refused("case_decided", format!("{name} is decided already")));
        }
        let refund = match decision {
            CaseDecision::Refund => true,
            CaseDecision::Deny => false,
            CaseDecision::ChargeBack => {
                let message =
                    "the account paid the merchant, who has handed something out; refund or deny it";
                return Ok(refused("not_charged_back", message));
            }
        };
        let mut given_back = Fen::ZERO;
        for case in cases {
            let back = if refund { case.opened - case.refunded } else { Fen::ZERO };
            self.settle_case(&case, back, actor.clone())?;
            given_back += back;
        }
        let bearer = if refund { Bearer::RiskFund } else { Bearer::Holder };
        Ok(Ok(json!({ "case": name, "bearer": bearer.name(), "refunded_fen": given_back })))
    }

    fn settle_case(&mut self, case: &CaseState, back: Fen, actor: Actor) -> Result<(), StoreError> {
        let CaseState { account, wallet, debit, reason, .. } = *case;
        let refunded = case.refunded + back;
        let bearer = if refunded == case.opened { Bearer::RiskFund } else { Bearer::Holder };
        let after = CaseState { bearer, refunded, ..case.clone() };
        self.move_case(Some(case), &after, actor)?;
        if !back.is_positive() {
            return Ok(());
        }
        let mut movement = money::movement(self.db, account, wallet, debit)?.ok_or_else(|| {
            Store::Corrupt(format!("{} {} has a case and no debit", debit.log, debit.position))
        })?;
        movement.refunded += back;
        money::put_movement(self.db, account, wallet, debit, &movement)?;
        self.refund(debit, account, wallet, back, reason)
    }
}
