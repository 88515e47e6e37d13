//! Codes of virtual cards: what each was first used for is what that entry says, and no use is forgotten before its time.

use feiqian_protocol::entry::{Body, CodeUse, Entry, EntryRef, TapRef};
use feiqian_protocol::ids::{AccountId, NodeId};

use super::Examination;
use crate::store::{StoreError, accounts, codes, logs};

/// For so many milliseconds after the end of its voucher a use must be there: less than it is kept.
const SURELY_KEPT_MS: i64 = 60 * 86_400_000;

/// What an entry used a code for.
fn used(body: &Body) -> Option<(AccountId, &TapRef, CodeUse)> {
    match body {
        Body::Debit(debit) => debit.code.map(|code| (debit.account, &debit.tap, code)),
        Body::Access(access) => access.code.map(|code| (access.account, &access.tap, code)),
        _ => None,
    }
}

impl Examination<'_> {
    /// True for a database that keeps uses.
    pub(super) fn keeps_codes(&self) -> Result<bool, StoreError> {
        Ok(self.db.prepare("SELECT 1 FROM sqlite_master WHERE name = 'code_uses'")?.exists([])?)
    }

    /// An entry that was acted on used a code: some use of that code is kept.
    pub(super) fn examine_code(&mut self, at: EntryRef, entry: &Entry) -> Result<(), StoreError> {
        let EntryRef { log, position } = at;
        let Some((account, _, code)) = used(&entry.body) else { return Ok(()) };
        let is_old = i64::from(code.until) * 1_000 + SURELY_KEPT_MS < self.newest;
        if log.writer == NodeId::CENTRE
            || is_old
            || self.faults.contains(&(log.key(), position))
            || !accounts::exists(self.db, account)?
        {
            return Ok(());
        }
        if codes::first_use(self.db, self.institution, account, &code)?.is_none() {
            self.report.problem(format!("{log}: entry {position} used a code, and that is not kept"));
        }
        Ok(())
    }

    /// Every use that is kept is that of its entry.
    pub(super) fn examine_uses(&mut self) -> Result<(), StoreError> {
        for (account, code, first) in codes::uses(self.db, self.institution)? {
            let EntryRef { log, position } = first.at;
            let stored = logs::entry(self.db, log, position)?;
            let entry = stored.and_then(|(_, record)| Entry::from_record(&record).ok());
            let says = entry.as_ref().and_then(|entry| {
                let (account, tap, code) = used(&entry.body)?;
                Some((account, code, format!("{} {} {}", entry.actor.id, tap.epoch, tap.sequence)))
            });
            if says != Some((account, code, first.tap)) {
                let CodeUse { voucher, counter, .. } = code;
                let code = format!("code {counter} of voucher {voucher} of account {account}");
                self.report.problem(format!("{log}: entry {position} is not the use of {code} that is kept"));
            }
        }
        Ok(())
    }
}
