//! Purses: every load and every reported purchase is in the tables as its entry says, and the ledger has what they amount to.

use std::collections::BTreeMap;

use feiqian_protocol::entry::{Body, EntryRef, PurseSide};
use feiqian_protocol::ids::LogId;
use feiqian_protocol::money::Fen;

use super::Examination;
use crate::purse::{purse_ledger, transit_ledger};
use crate::store::StoreError;
use crate::store::money;
use crate::store::purses::{self, DecisionRow, LoadRow, LoadState, PurchaseRow};

/// What entries say of purses, by log and position.
#[derive(Default)]
pub(super) struct PurseExamination {
    pub(super) entries: BTreeMap<(i64, u64), Body>,
}

impl Examination<'_> {
    pub(super) fn examine_purses(&mut self) -> Result<(), StoreError> {
        let sql = "SELECT 1 FROM sqlite_master WHERE name = 'purse_purchases'";
        if !self.db.prepare(sql)?.exists([])? {
            // The database of a build that knew no purses.
            return Ok(());
        }
        let entries = std::mem::take(&mut self.purses.entries);
        let mut on_cards: BTreeMap<String, Fen> = BTreeMap::new();
        let loads = purses::all_loads(self.db, self.institution)?;
        for row in &loads {
            self.examine_load(row, &entries);
            let load = &row.load;
            *on_cards.entry(purse_ledger(load.serial)).or_default() += load.taken_over;
            let holds = match row.state {
                LoadState::InTransit => transit_ledger(load.serial),
                LoadState::Done => purse_ledger(load.serial),
                LoadState::Reversed => continue,
            };
            *on_cards.entry(holds).or_default() += load.amount;
        }
        let mut purchases: BTreeMap<(i64, u64), PurchaseRow> = BTreeMap::new();
        for (serial, row) in purses::all_purchases(self.db, self.institution)? {
            if row.became.is_of_purse() {
                *on_cards.entry(purse_ledger(serial)).or_default() -= row.amount;
            }
            purchases.insert((row.at.log.key(), row.at.position), row);
        }
        let returns = purses::returns(self.db)?;
        for (place, serial, amount) in &returns {
            *on_cards.entry(purse_ledger(*serial)).or_default() -= *amount;
            let log = LogId::from_key(self.institution, place.0);
            match entries.get(place) {
                Some(Body::PurseReturned(back)) if (back.serial, back.amount) == (*serial, *amount) => {}
                None if self.kept_after.get(&place.0).is_some_and(|kept_after| place.1 <= *kept_after) => {}
                _ => self.report.problem(format!("{log}: entry {} gives nothing back of a card", place.1)),
            }
        }
        self.examine_decisions(&entries, &mut on_cards)?;
        for ((log, position), body) in &entries {
            if matches!(body, Body::PurseReturned(_))
                && !returns.iter().any(|back| back.0 == (*log, *position))
            {
                let log = LogId::from_key(self.institution, *log);
                self.report.problem(format!("{log}: what entry {position} gives back is not kept"));
            }
            let at = EntryRef { log: LogId::from_key(self.institution, *log), position: *position };
            self.examine_purse_entry(at, body, &loads, &purchases);
        }
        for (ledger, sum) in &on_cards {
            let posted = money::ledger_balance(self.db, ledger)?;
            if posted != *sum {
                self.report
                    .problem(format!("{ledger}: {posted} yuan are posted, loads and purchases say {sum}"));
            }
        }
        let mut statement =
            self.db.prepare("SELECT ledger, balance FROM ledger WHERE ledger LIKE 'purse%'")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (ledger, balance): (String, i64) = (row.get(0)?, row.get(1)?);
            if balance != 0 && !on_cards.contains_key(&ledger) {
                self.report.problem(format!("{ledger}: no load and no purchase is of this card"));
            }
        }
        Ok(())
    }

    /// What persons decided is as the entries say, and the other way round.
    fn examine_decisions(
        &mut self,
        entries: &BTreeMap<(i64, u64), Body>,
        on_cards: &mut BTreeMap<String, Fen>,
    ) -> Result<(), StoreError> {
        let decisions = purses::decisions(self.db, self.institution)?;
        for DecisionRow { at, decided } in &decisions {
            if decided.from == PurseSide::Purse {
                *on_cards.entry(purse_ledger(decided.serial)).or_default() -= decided.amount;
            }
            let EntryRef { log, position } = *at;
            match entries.get(&(log.key(), position)) {
                Some(Body::PurseCaseDecided(said)) if said == decided => {}
                None if self.kept_after.get(&log.key()).is_some_and(|kept_after| position <= *kept_after) => {
                }
                _ => {
                    self.report.problem(format!("{log}: entry {position} decides no case of a purse as kept"))
                }
            }
        }
        for ((log, position), body) in entries {
            let at = EntryRef { log: LogId::from_key(self.institution, *log), position: *position };
            if matches!(body, Body::PurseCaseDecided(_)) && !decisions.iter().any(|kept| kept.at == at) {
                self.report.problem(format!("{}: what entry {position} decides is not kept", at.log));
            }
        }
        Ok(())
    }

    /// A load is as its entry says. Of a dropped entry only the table is left.
    fn examine_load(&mut self, row: &LoadRow, entries: &BTreeMap<(i64, u64), Body>) {
        let EntryRef { log, position } = row.at;
        match entries.get(&(log.key(), position)) {
            Some(Body::PurseLoad(load)) if *load == row.load => {}
            None if self.kept_after.get(&log.key()).is_some_and(|kept_after| position <= *kept_after) => {}
            _ => {
                self.report.problem(format!("{log}: the load of entry {position} is not what the entry says"))
            }
        }
    }

    fn examine_purse_entry(
        &mut self,
        at: EntryRef,
        body: &Body,
        loads: &[LoadRow],
        purchases: &BTreeMap<(i64, u64), PurchaseRow>,
    ) {
        let EntryRef { log, position } = at;
        let row_of = |position| loads.iter().find(|row| row.at == EntryRef { log, position });
        match body {
            Body::PurseLoad(load) if row_of(position).is_none_or(|row| row.load != *load) => {
                self.report.problem(format!("{log}: no load is kept of entry {position}"));
            }
            Body::PurseLoadSettled(settled) => {
                let state = if settled.reversed { LoadState::Reversed } else { LoadState::Done };
                let row = row_of(settled.load);
                let fits = row.is_some_and(|row| {
                    row.state == state
                        && (row.load.amount, row.load.serial) == (settled.amount, settled.serial)
                });
                if !fits {
                    self.report.problem(format!("{log}: entry {position} settles a load that is not so"));
                }
            }
            Body::PursePurchase(purchase) => {
                let found = self.posted.get(&(log.key(), position)).copied();
                let Some(row) = purchases.get(&(log.key(), position)) else {
                    // A continuation that was uploaded twice acts under one of its names.
                    let twin = |key: &(i64, u64)| {
                        key.1 == position && LogId::from_key(self.institution, key.0).writer == log.writer
                    };
                    if !self.faults.contains(&(log.key(), position)) && !purchases.keys().any(twin) {
                        self.report.problem(format!("{log}: no purchase is kept of entry {position}"));
                    }
                    return;
                };
                let expected = row.became.is_posted().then_some(purchase.amount);
                if found != expected || row.amount != purchase.amount {
                    self.report.problem(format!(
                        "{log}: the purchase of entry {position} of {} yuan is posted as {found:?}",
                        purchase.amount
                    ));
                }
            }
            _ => {}
        }
    }
}
