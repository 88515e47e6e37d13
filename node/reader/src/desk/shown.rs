//! What is shown of a card and of the journal.

use feiqian_protocol::issuance::SignedIssuance;
use feiqian_protocol::purse::apdu::{AnswerError, Command as CardCommand, data};
use feiqian_protocol::purse::carried::{self, CarryError};
use feiqian_protocol::purse::file::{LOG_RECORD_BYTES, LOG_RECORDS, LOG_SFI, LogRecord};
use feiqian_protocol::purse::touch::{self, Link};
use serde_json::{Value, json};

use super::{Answer, Shared, broken};
use crate::answer::{Failure, Reason};
use crate::card::Inserted;
use crate::journal::loads::LoadTouch;
use crate::journal::reports::Counts;
use crate::journal::{JournalError, ROWS_MAX, Touch};
use crate::node::Node;

/// Refused reports that `status` names.
const REFUSALS_SHOWN: usize = 20;

impl Shared {
    pub(super) fn info(&self, card: &mut Inserted<'_>) -> Value {
        let failed = |error: &dyn std::fmt::Display, code| Failure::new(code, error).json();
        let identified = match touch::identify(card, &self.config.profiles) {
            Ok(identified) => identified,
            Err(error) => return failed(&error, Reason::from(&error).code()),
        };
        let balance = match balance_of(card) {
            Ok(balance) => balance,
            Err(error) => return failed(&error, Reason::TakenAway.code()),
        };
        let mut log = Vec::new();
        for number in 1..=LOG_RECORDS {
            let read = CardCommand::ReadRecord { sfi: LOG_SFI, number, length: LOG_RECORD_BYTES as u8 };
            let answer = card.transmit(&read.encode()).unwrap_or_default();
            let Some(record) = data(&answer, LOG_RECORD_BYTES).ok().and_then(LogRecord::decode) else {
                break;
            };
            log.push(json!({
                "counter": record.counter,
                "kind": record.kind(),
                "amount_fen": record.amount,
                "terminal": record.terminal,
                "time": record.time(),
            }));
        }
        let serial = identified.card.serial;
        let issuance = carried::read(card, &identified);
        // A building that has not heard of the card goes by that from here on.
        let shown =
            issuance.as_ref().zip(self.node()).map(|(signed, node)| match node.show(serial, signed) {
                Ok(()) => json!("done"),
                Err(error) => json!(error.code()),
            });
        let open = self.journal().open_of(serial).ok().flatten();
        let open_load = self.journal().open_load_of(serial).ok().flatten();
        json!({
            "ok": true,
            "serial": serial,
            "balance_fen": balance,
            "start": identified.card.start,
            "expiry": identified.card.expiry,
            "algorithm": identified.profile.algorithm,
            "log": log,
            "issuance": issuance.as_ref().map(SignedIssuance::to_text),
            "issuance_shown": shown,
            "open": open.as_ref().map(touch_json),
            "open_load": open_load.as_ref().map(load_json),
        })
    }

    pub(super) fn carry(&self, card: &mut Inserted<'_>, signed: &SignedIssuance) -> Answer {
        let identified = touch::identify(card, &self.config.profiles)
            .map_err(|error| Failure::new(Reason::from(&error).code(), error))?;
        carried::write(card, &identified, signed).map_err(|error| {
            let code = match error {
                CarryError::NoFile(_) => "no_issuance_file",
                CarryError::OtherCard(_) => "other_card",
                CarryError::TooLong(_) => "not_issued",
                CarryError::Lost | CarryError::Answer(AnswerError::Malformed { .. }) => {
                    Reason::TakenAway.code()
                }
                CarryError::Answer(AnswerError::Status(_)) | CarryError::NotKept => Reason::CardError.code(),
            };
            Failure::new(code, error)
        })?;
        Ok(json!({ "ok": true, "outcome": "written", "serial": identified.card.serial }))
    }

    pub(super) fn purchases_shown(&self, after: i64) -> Answer {
        let rows = self.journal().after(after, ROWS_MAX).map_err(broken)?;
        let more = rows.len() == ROWS_MAX as usize;
        Ok(json!({ "ok": true, "touches": rows.iter().map(touch_json).collect::<Vec<_>>(), "more": more }))
    }

    pub(super) fn loads_shown(&self, after: i64) -> Answer {
        let rows = self.journal().loads_after(after, ROWS_MAX).map_err(broken)?;
        let more = rows.len() == ROWS_MAX as usize;
        Ok(json!({ "ok": true, "loads": rows.iter().map(load_json).collect::<Vec<_>>(), "more": more }))
    }

    /// How the service stands, the readers aside.
    pub(super) fn status_shown(&self) -> Result<Value, JournalError> {
        let journal = self.journal();
        let Counts { waiting, refused } = journal.report_counts()?;
        let (mut refusals, mut after) = (Vec::new(), 0);
        while refusals.len() < REFUSALS_SHOWN
            && let Some(report) = journal.unrecorded_after(after, true)?
        {
            after = report.id;
            refusals.push(json!({ "id": report.id, "key": report.key, "refusal": report.refusal }));
        }
        Ok(json!({
            "ok": true,
            "terminal": self.config.terminal,
            "open": journal.open_count()?,
            "open_loads": journal.open_load_count()?,
            "node": self.node().map(Node::json),
            "reports": { "waiting": waiting, "refused": refused, "refusals": refusals },
        }))
    }
}

/// What is on a card.
pub(super) fn balance_of(card: &mut dyn Link) -> Result<u32, AnswerError> {
    let answer = card.transmit(&CardCommand::Balance.encode()).unwrap_or_default();
    let bytes = data(&answer, 4)?;
    Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// A purchase of the journal.
pub(super) fn touch_json(touch: &Touch) -> Value {
    json!({
        "id": touch.id,
        "key": touch.key,
        "entry": touch.entry,
        "outcome": touch.outcome.map_or("open", |outcome| outcome.name()),
        "proven": touch.outcome.is_some_and(|outcome| outcome.is_proven()),
        "result": touch.outcome,
        "report": touch.report,
    })
}

/// A load of the journal.
pub(super) fn load_json(load: &LoadTouch) -> Value {
    json!({
        "id": load.id,
        "key": load.key,
        "collect": load.collect,
        "entry": load.entry,
        "outcome": load.outcome.map_or("open", |outcome| outcome.name()),
        "result": load.outcome,
        "report": load.report,
    })
}
