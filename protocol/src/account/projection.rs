//! What a document says, with every conflict resolved to the safe side: the merge rules of the table above.

use std::collections::BTreeMap;

use automerge::{ROOT, ReadDoc, Value};

use super::{
    AccountError, AccountSettings, CardStatus, Document, HANDED_OVER, HolderField, PinReference, VALID_UNTIL,
    read_phone,
};
use crate::ids::{CardNumber, Key};
use crate::limits::AMOUNT_FEN_MAX;
use crate::money::Fen;
use crate::pin::PinGeneration;
use crate::time::BusinessDay;

impl Document {
    /// The projection, with every conflict resolved to the safe side.
    ///
    /// # Errors
    /// [`AccountError::Shape`] where the document is not as the table says.
    pub fn settings(&self) -> Result<AccountSettings, AccountError> {
        let void = self.keys("void")?;
        let losses = self.losses()?;
        let (inactive, legacy) = (self.inactive()?, self.legacy()?);
        let cards = self
            .keys("cards")?
            .into_iter()
            .filter_map(|card| CardNumber::new(card).ok())
            .map(|card| {
                let status = if void.iter().any(|void| void == card.as_str()) {
                    CardStatus::Void
                } else if losses.values().any(|lost| *lost == card) {
                    CardStatus::Lost
                } else if inactive.contains_key(&card) {
                    CardStatus::Inactive
                } else if legacy.contains_key(&card) {
                    CardStatus::Legacy
                } else {
                    CardStatus::Active
                };
                (card, status)
            })
            .collect();
        Ok(AccountSettings {
            class: self.class()?,
            cards,
            losses,
            frozen: !self.keys("frozen")?.is_empty(),
            closed: !self.keys("closed")?.is_empty(),
            single_limit: self.limit("single")?,
            daily_limit: self.limit("daily")?,
            groups: self.keys("groups")?,
            phones: self.phones()?,
            inactive,
            legacy,
            holder: self.holder()?,
            pins: self.pin_references()?,
            valid_until: self.valid_until()?,
        })
    }

    /// All values of a field that a document does not begin with, by key.
    pub(super) fn made_texts(&self, field: &'static str) -> Result<Vec<(String, Vec<String>)>, AccountError> {
        if self.doc.get(ROOT, field)?.is_none() {
            return Ok(Vec::new());
        }
        let map = self.map(field)?;
        let mut texts = Vec::new();
        for key in self.doc.keys(&map) {
            let values = self.doc.get_all(&map, key.as_str())?;
            let values =
                values.iter().map(|(value, _)| value.as_str().unwrap_or_default().to_owned()).collect();
            texts.push((key, values));
        }
        Ok(texts)
    }

    /// Rule: a loss is a key that is present.
    pub(super) fn losses(&self) -> Result<BTreeMap<Key, CardNumber>, AccountError> {
        let map = self.map("losses")?;
        let mut losses = BTreeMap::new();
        for key in self.doc.keys(&map) {
            for (value, _) in self.doc.get_all(&map, key.as_str())? {
                let card = value.as_str().and_then(|card| CardNumber::new(card).ok());
                if let (Ok(key), Some(card)) = (Key::new(key.as_str()), card) {
                    losses.insert(key, card);
                }
            }
        }
        Ok(losses)
    }

    /// Rule: a phone's key is what its card's number says, so there is one only.
    fn phones(&self) -> Result<BTreeMap<CardNumber, String>, AccountError> {
        if self.doc.get(ROOT, "phones")?.is_none() {
            return Ok(BTreeMap::new());
        }
        let map = self.map("phones")?;
        let mut phones = BTreeMap::new();
        for card in self.doc.keys(&map) {
            for (value, _) in self.doc.get_all(&map, card.as_str())? {
                let phone = value.as_str().filter(|text| {
                    read_phone(text).is_some_and(|key| CardNumber::of_phone(&key).as_str() == card)
                });
                if let (Ok(card), Some(phone)) = (CardNumber::new(card.as_str()), phone) {
                    phones.insert(card, phone.to_owned());
                }
            }
        }
        Ok(phones)
    }

    /// Rule: a card is inactive while its key is present, whatever the value; picked up where one value says so.
    fn inactive(&self) -> Result<BTreeMap<CardNumber, bool>, AccountError> {
        let handed_over = |text: &String| text.split(' ').next() == Some(HANDED_OVER);
        let texts = self.made_texts("inactive")?.into_iter();
        let inactive = texts
            .filter_map(|(card, values)| Some((CardNumber::new(card).ok()?, values.iter().any(handed_over))));
        Ok(inactive.collect())
    }

    /// Rule: a card is a legacy one while its key is present; a value that is no group opens nothing.
    fn legacy(&self) -> Result<BTreeMap<CardNumber, String>, AccountError> {
        let texts = self.made_texts("legacy")?.into_iter();
        let legacy =
            texts.filter_map(|(card, values)| Some((CardNumber::new(card).ok()?, values.into_iter().min()?)));
        Ok(legacy.collect())
    }

    /// Rule: the lexically first of concurrent values, and none that is no text for its field.
    fn holder(&self) -> Result<BTreeMap<HolderField, String>, AccountError> {
        let texts = self.made_texts("holder")?.into_iter();
        let holder = texts.filter_map(|(key, values)| {
            let field = HolderField::ALL.into_iter().find(|field| field.name() == key)?;
            Some((field, values.into_iter().filter(|text| field.takes(text)).min()?))
        });
        Ok(holder.collect())
    }

    /// Rule: a PIN is a key that is present, and an initial one where any of its values says so.
    fn pin_references(&self) -> Result<BTreeMap<PinGeneration, PinReference>, AccountError> {
        let mut pins = BTreeMap::new();
        if self.doc.get(ROOT, "pins")?.is_none() {
            return Ok(pins);
        }
        let map = self.map("pins")?;
        for key in self.doc.keys(&map) {
            // A key that no intent writes is a PIN too, so that it cannot be passed over.
            let generation = key.parse().unwrap_or(PinGeneration::UNREADABLE);
            for (value, _) in self.doc.get_all(&map, key.as_str())? {
                let new = PinReference::from_text(value.as_str().unwrap_or_default());
                let pin = pins.entry(generation).or_insert(new);
                *pin = PinReference { initial: pin.initial || new.initial, since: pin.since.max(new.since) };
            }
        }
        Ok(pins)
    }

    /// Rule: of concurrent classes the lexically first; any fixed choice converges, and only the centre writes it.
    fn class(&self) -> Result<String, AccountError> {
        let values = self.doc.get_all(ROOT, "class")?;
        let class = values.iter().filter_map(|(value, _)| value.as_str()).min();
        class.map(str::to_owned).ok_or(AccountError::Shape("class"))
    }

    /// Rule: of concurrent last days the earliest. What no intent writes has been long ago.
    fn valid_until(&self) -> Result<Option<BusinessDay>, AccountError> {
        let values = self.doc.get_all(ROOT, VALID_UNTIL)?;
        let day = |value: &Value<'_>| value.as_i64().and_then(|day| i32::try_from(day).ok()).unwrap_or(0);
        Ok(values.iter().map(|(value, _)| BusinessDay(day(value))).min())
    }

    /// Rule: of concurrent limits the lower.
    pub(super) fn limit(&self, name: &'static str) -> Result<Fen, AccountError> {
        let values = self.doc.get_all(self.map("limits")?, name)?;
        let limit = values.iter().filter_map(|(value, _)| value.as_i64()).min();
        // What no intent writes is cut to the nearest that one could.
        let in_range = |limit: i64| Fen::new(limit.clamp(0, AMOUNT_FEN_MAX.get()));
        limit.map(in_range).ok_or(AccountError::Shape("limits"))
    }
}
