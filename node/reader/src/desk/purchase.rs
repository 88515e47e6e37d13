//! Purchases: what is open is resolved first, the node is asked about the card, and then the card debits itself.

use feiqian_protocol::ids::Key;
use feiqian_protocol::purse::identify::Identified;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::purchase::{Doubt, PurchaseEnd, PurchaseOrder, RecordOrder};
use feiqian_protocol::purse::torn::Outcome;
use feiqian_protocol::purse::touch;
use feiqian_protocol::purse::values::{CardDate, Mac, PurseFen};
use serde_json::{Value, json};

use super::shown::{load_json, touch_json};
use super::{Answer, Desk, Shared, SharedSam, broken, wall_now};
use crate::answer::{Failure, Reason, declined, declined_by, unknown, unproven};
use crate::card::Inserted;
use crate::journal::Touch;
use crate::slot::Watch;

impl Desk {
    /// Waits for a card and debits it.
    pub(super) fn purchase(
        &self,
        key: &Key,
        amount: u32,
        reader: Option<String>,
        wait_ms: Option<u64>,
    ) -> Answer {
        let amount = PurseFen::new(amount)
            .filter(|amount| *amount > PurseFen::ZERO)
            .ok_or_else(|| Failure::new("bad_request", format!("no purse pays {amount} fen at once")))?;
        let key = key.to_string();
        if self.shared.journal().load_of_key(&key).map_err(broken)?.is_some() {
            return Err(Failure::new("key_used", "the key was used for a load"));
        }
        let earlier = self.shared.journal().of_key(&key).map_err(broken)?;
        if let Some(earlier) = &earlier {
            if earlier.entry.terms.amount != amount {
                let was = earlier.entry.terms.amount.get();
                return Err(Failure::new("key_used", format!("the key was used for {was} fen")));
            }
            if let Some(answer) = first_answer(earlier) {
                return Ok(answer);
            }
        }
        // Of a touch that never happened nothing is left; of an open one, its card.
        let open = earlier.filter(|earlier| earlier.outcome.is_none());
        let was_open = open.is_some();
        let work = {
            let key = key.clone();
            move |shared: &Shared, card: &mut Inserted<'_>, watch: &Watch| {
                shared.purchase(card, watch, &key, amount, open)
            }
        };
        let answer = self.touch(reader, wait_ms, unknown, work)?;
        // As long as the first touch of this key is open, nothing that went wrong since makes a decline of it.
        let still_open = || {
            self.shared.journal().of_key(&key).map(|touch| touch.is_some_and(|touch| touch.outcome.is_none()))
        };
        if was_open && answer["outcome"] == "declined" && still_open().map_err(broken)? {
            let mut open = unknown(answer["detail"].as_str().unwrap_or_default());
            open["reason"] = answer["reason"].clone();
            return Ok(open);
        }
        Ok(answer)
    }
}

impl Shared {
    fn purchase(
        &self,
        card: &mut Inserted<'_>,
        watch: &Watch,
        key: &str,
        amount: PurseFen,
        open: Option<Touch>,
    ) -> Answer {
        let identified = match touch::identify(card, &self.config.profiles) {
            Ok(identified) => identified,
            Err(error) => return Ok(declined(Reason::from(&error), &error.to_string())),
        };
        let serial = identified.card.serial;
        if open.is_some_and(|open| open.entry.serial != serial) {
            return Ok(declined(Reason::OtherCard, "the purchase of this key was begun with another card"));
        }
        let mut aside = Aside::default();
        // Not within the condition, where the journal would stay locked through the block.
        let earlier = self.journal().open_of(serial).map_err(broken)?;
        if let Some(earlier) = earlier {
            let Some(earlier) = self.resolve(card, &identified, earlier)? else {
                return Ok(declined(Reason::Unresolved, "the card's last purchase could not be found out"));
            };
            if earlier.key == key {
                if let Some(answer) = first_answer(&earlier) {
                    return Ok(answer);
                }
            } else {
                aside.resolved.push(touch_json(&earlier));
            }
        }
        let answer = self.pay(card, watch, key, amount, &identified, &mut aside)?;
        Ok(aside.beside(answer))
    }

    /// What is new about a purchase, once the card's last one is resolved.
    fn pay(
        &self,
        card: &mut Inserted<'_>,
        watch: &Watch,
        key: &str,
        amount: PurseFen,
        identified: &Identified,
        aside: &mut Aside,
    ) -> Answer {
        let heard = match self.node().map(|node| node.check(identified.card.serial)).transpose() {
            Ok(heard) => heard.flatten(),
            Err(declined) => {
                return Ok(declined_by(&declined, "the node knows something against this card"));
            }
        };
        self.before_paying(card, watch, identified, amount, aside)?;
        let (now, day) = self.now()?;
        let date = |at| CardDate::at(at, self.config.calendar.utc_offset_minutes);
        let record = self.config.record.as_ref().map(|record| RecordOrder {
            key: record.key.clone(),
            day,
            hotlist: heard.and_then(date),
            node: record.node,
            spent_fen_max: record.spent_fen_max,
            hotlist_min: record
                .hotlist_days_max
                .and_then(|days| date(wall_now().plus_ms(-i64::from(days) * 86_400_000))),
        });
        let order = PurchaseOrder { amount, time: now, record };
        let mut writing = Writing { shared: self, watch, key, id: None };
        let end = touch::purchase(card, &mut SharedSam(self), &mut writing, identified.clone(), order)?;
        let written = writing.id;
        self.ended(card, identified, end, written)
    }

    /// The answer to how a purchase ended. Where that is not known and the card is still there, it is asked at once.
    fn ended(
        &self,
        card: &mut Inserted<'_>,
        identified: &Identified,
        end: PurchaseEnd,
        written: Option<i64>,
    ) -> Answer {
        let doubt = match end {
            PurchaseEnd::Approved(receipt) => {
                let id = written.expect("an approved purchase was written down");
                let outcome = Outcome::Completed { tac: receipt.tac };
                self.journal().resolve(id, &outcome).map_err(broken)?;
                self.wake_reporter();
                tracing::info!(id, "purchase approved");
                return Ok(approved(&receipt.entry, receipt.tac));
            }
            PurchaseEnd::Declined(decline) => {
                return Ok(declined(Reason::from(&decline), &decline.to_string()));
            }
            PurchaseEnd::Unknown(doubt) => doubt,
        };
        tracing::warn!(id = written, %doubt, "it is not known whether the card has paid");
        if doubt == Doubt::Lost {
            return Ok(unknown(&doubt.to_string()));
        }
        let Ok(again) = touch::identify(card, &self.config.profiles) else {
            return Ok(unknown(&doubt.to_string()));
        };
        let serial = identified.card.serial;
        let Some(open) = self.journal().open_of(serial).map_err(broken)? else {
            return Ok(unknown(&doubt.to_string()));
        };
        match self.resolve(card, &again, open)? {
            Some(touch) => {
                Ok(first_answer(&touch).unwrap_or_else(|| declined(Reason::CardError, &doubt.to_string())))
            }
            None => Ok(unknown(&doubt.to_string())),
        }
    }

    /// Finds out what became of what is open of the card.
    pub(super) fn recover(&self, card: &mut Inserted<'_>) -> Answer {
        let identified = touch::identify(card, &self.config.profiles)
            .map_err(|error| Failure::new(Reason::from(&error).code(), error))?;
        let serial = identified.card.serial;
        let mut resolved = Vec::new();
        let open = self.journal().open_of(serial).map_err(broken)?;
        if let Some(open) = open {
            let touch = self.resolve(card, &identified, open)?.ok_or_else(|| {
                Failure::new("unresolved", "the card's last purchase could not be found out: hold it again")
            })?;
            resolved.push(touch_json(&touch));
        }
        let settled = self.recover_load(card, &identified)?;
        let open_load = self.journal().open_load_of(serial).map_err(broken)?;
        resolved.extend(settled.as_ref().map(load_json));
        Ok(json!({
            "ok": true,
            "serial": serial,
            "resolved": resolved,
            "open_load": open_load.as_ref().map(load_json),
        }))
    }

    /// Finds out what became of an open purchase of the card, and writes it down; `None` where that fails.
    pub(super) fn resolve(
        &self,
        card: &mut Inserted<'_>,
        identified: &Identified,
        open: Touch,
    ) -> Result<Option<Touch>, Failure> {
        let found = touch::recover_purchase(card, &mut SharedSam(self), identified.clone(), &open.entry);
        match found {
            Ok(outcome) => {
                self.journal().resolve(open.id, &outcome).map_err(broken)?;
                self.wake_reporter();
                tracing::info!(id = open.id, outcome = outcome.name(), "open purchase resolved");
                Ok(Some(Touch { outcome: Some(outcome), ..open }))
            }
            Err(error) => {
                tracing::warn!(id = open.id, %error, "open purchase not resolved");
                Ok(None)
            }
        }
    }
}

/// What else happened in the touch of a purchase.
#[derive(Debug, Default)]
pub(super) struct Aside {
    /// What was open of the card before.
    pub(super) resolved: Vec<Value>,
    /// The load of a purse that ran low.
    pub(super) collected: Option<Value>,
}

impl Aside {
    pub(super) fn beside(self, mut answer: Value) -> Value {
        if !self.resolved.is_empty() {
            answer["resolved"] = Value::Array(self.resolved);
        }
        if let Some(collected) = self.collected {
            answer["collected"] = collected;
        }
        answer
    }
}

/// The journal as the purchase's machine writes it.
struct Writing<'a> {
    shared: &'a Shared,
    watch: &'a Watch,
    key: &'a str,
    id: Option<i64>,
}

impl touch::Journal for Writing<'_> {
    type Error = Failure;
    fn persist(&mut self, entry: &JournalEntry) -> Result<(), Failure> {
        if !self.watch.stake() {
            return Err(Failure::new("abandoned", "the card was silent for too long"));
        }
        self.id = Some(self.shared.journal().begin(self.key, entry).map_err(broken)?);
        Ok(())
    }
}

/// What the POS was or would have been told of a touch; `None` where nothing came of it, and the purchase may be made.
fn first_answer(touch: &Touch) -> Option<Value> {
    match touch.outcome? {
        Outcome::Completed { tac } => Some(approved(&touch.entry, tac)),
        outcome @ (Outcome::CompletedWithoutProof { .. } | Outcome::InTransit { .. }) => {
            Some(unproven(outcome.name()))
        }
        Outcome::NeverHappened => None,
    }
}

fn approved(entry: &JournalEntry, tac: Mac) -> Value {
    json!({
        "ok": true,
        "outcome": "approved",
        "serial": entry.serial,
        "amount_fen": entry.terms.amount,
        "balance_fen": entry.terms.balance_after(),
        "time": entry.terms.time,
        "sequence": entry.terms.sequence,
        "counter": entry.terms.counter,
        "tac": tac,
        "text_en": "Paid",
        "text_zh": "付款成功",
    })
}
