//! Somebody at the centre who decides cases of purses now and then, as what really happened.

use anyhow::Result;
use feiqian_protocol::ids::Key;
use feiqian_reconcile::export::{Format, Table, export};
use feiqian_reconcile::io::{CaseDecision, Command, Ticket};

use crate::plan::INSTITUTION;
use crate::world::hosts::CentreMessage;
use crate::world::{Event, MS, World};

/// How often somebody looks, in a run.
const LOOKS: u64 = 12;

impl World<'_> {
    /// Draws when somebody looks: a centre that comes back from a backup may have forgotten what was decided before.
    pub(in crate::world) fn plan_decisions(&mut self) {
        if self.purses.is_empty() {
            return;
        }
        let length = (self.plan.timing.length_ms + self.plan.timing.heal_ms / 2) * MS;
        for _ in 0..LOOKS {
            let at = self.origin + length / 4 + self.purses.seed.below(length * 3 / 4);
            self.at(at, Event::AtTheDesk);
        }
    }

    /// Decides one case: a purchase of a forged card or of a copy is never its holder's, and what a card debited itself is.
    pub(in crate::world) fn decide_case(&mut self) -> Result<()> {
        let Some(core) = &self.centre.core else { return Ok(()) };
        let mut cases = Vec::new();
        export(core.connection(), INSTITUTION, Table::Cases, Format::Csv, &mut cases)?;
        let cases = String::from_utf8(cases)?;
        let open: Vec<(&str, &str)> = cases
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(',');
                let (case, _card) = (fields.next()?, fields.next()?);
                let reason = fields.next()?.strip_prefix("purse_")?;
                (fields.next()? == "suspense").then_some((case, reason))
            })
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        let (case, reason) = open[self.purses.seed.index(open.len())];
        let decision = match (reason, self.purses.seed.chance(1, 2)) {
            (_, true) => CaseDecision::Refund,
            ("unproven", false) => CaseDecision::Deny,
            (_, false) => CaseDecision::ChargeBack,
        };
        let command =
            Command::DecideCase { case: case.to_owned(), decision, operator: Key::new("operator")? };
        self.tickets += 1;
        self.audit.say(self.now, || format!("the centre is asked: {command:?}"));
        self.tell_centre(CentreMessage::Command(Ticket(self.tickets), command));
        Ok(())
    }
}
