//! A document begun anew, so that it does not grow with every change for ever.
//!
//! Automerge keeps how a document came to what it says. Nobody asks it for that: who did what stands in the logs. So the centre puts
//! a document without a past in the place of one that has a long one, in the account's stream, where every replica meets it at the
//! same place. A change that a building has made on the one before does not fit the new one; the centre carries its intent out by
//! itself. Keys stay what they were, so a lift still removes just the reports that its author had seen.

use automerge::transaction::Transactable;
use automerge::{ActorId, AutoCommit, ObjType, ROOT, ReadDoc, ScalarValue, Value};

use super::{AccountError, Document, HANDED_OVER, ISSUED, VALID_UNTIL};
use crate::limits::DOCUMENT_BYTES_WORN;

/// The epoch of a document that was never begun anew.
pub const FIRST_EPOCH: u32 = 1;

/// Fields of keys, which are there or not; the values say since when.
const SETS: [&str; 5] = ["void", "frozen", "closed", "cards", "groups"];

impl Document {
    /// How often it was begun, counted from [`FIRST_EPOCH`].
    ///
    /// # Errors
    /// [`AccountError::Shape`] where the document is not as the table says.
    pub fn epoch(&self) -> Result<u32, AccountError> {
        match self.doc.get(ROOT, "epoch")? {
            None => Ok(FIRST_EPOCH),
            Some((value, _)) => {
                let epoch = value.as_i64().and_then(|epoch| u32::try_from(epoch).ok());
                epoch.ok_or(AccountError::Shape("epoch"))
            }
        }
    }

    /// The same document with later changes by `author`.
    #[must_use]
    pub fn written_by(self, author: ActorId) -> Self {
        Self { doc: self.doc.with_actor(author), saved: self.saved }
    }

    /// True where it is time to begin it anew: it has more than `changes_max` changes ([`crate::limits::DOCUMENT_CHANGES_MAX`] in service), or
    /// an eighth of that and is large. `bytes` is what it takes when saved.
    pub fn is_worn(&self, bytes: usize, changes_max: u64) -> bool {
        let changes = self.doc.stats().num_changes;
        changes > changes_max || (bytes > DOCUMENT_BYTES_WORN && changes > changes_max / 8)
    }

    /// A document of the next epoch that says the same, as one change by `author`.
    ///
    /// # Errors
    /// [`AccountError::Shape`] where it would not say the same, or this one is not as the table says.
    pub fn renewed(&self, epoch: u32, author: ActorId) -> Result<Self, AccountError> {
        let settings = self.settings()?;
        let mut new = AutoCommit::new().with_actor(author);
        new.put(ROOT, "class", settings.class.as_str())?;
        new.put(ROOT, "epoch", i64::from(epoch))?;
        if let Some(day) = settings.valid_until {
            new.put(ROOT, VALID_UNTIL, i64::from(day.0))?;
        }
        for field in SETS {
            let from = self.map(field)?;
            let to = new.put_object(ROOT, field, ObjType::Map)?;
            for key in self.doc.keys(&from) {
                let value = match self.doc.get(&from, key.as_str())? {
                    Some((Value::Scalar(value), _)) => value.into_owned(),
                    _ => ScalarValue::Null,
                };
                new.put(&to, key.as_str(), value)?;
            }
        }
        let losses = new.put_object(ROOT, "losses", ObjType::Map)?;
        for (loss, card) in &settings.losses {
            new.put(&losses, loss.as_str(), card.as_str())?;
        }
        let limits = new.put_object(ROOT, "limits", ObjType::Map)?;
        new.put(&limits, "single", settings.single_limit.get())?;
        new.put(&limits, "daily", settings.daily_limit.get())?;
        let pins = new.put_object(ROOT, "pins", ObjType::Map)?;
        for (generation, pin) in &settings.pins {
            new.put(&pins, generation.to_string(), pin.to_text())?;
        }
        let phones = settings.phones.iter().map(|(card, phone)| (card.as_str(), phone.clone()));
        put_texts(&mut new, "phones", phones)?;
        let since = self.made_texts("inactive")?;
        let inactive = settings.inactive.iter().map(|(card, handed_over)| {
            let state = if *handed_over { HANDED_OVER } else { ISSUED };
            let values =
                since.iter().find(|(key, _)| key == card.as_str()).map(|(_, values)| values.as_slice());
            let value = values.unwrap_or_default().iter().find(|text| text.split(' ').next() == Some(state));
            (card.as_str(), value.cloned().unwrap_or_else(|| state.to_owned()))
        });
        put_texts(&mut new, "inactive", inactive)?;
        let legacy = settings.legacy.iter().map(|(card, group)| (card.as_str(), group.clone()));
        put_texts(&mut new, "legacy", legacy)?;
        let holder = settings.holder.iter().map(|(field, text)| (field.name(), text.clone()));
        put_texts(&mut new, "holder", holder)?;
        new.commit();
        let new = Self::from(new);
        if new.settings()? == settings { Ok(new) } else { Err(AccountError::Shape("renewal")) }
    }
}

/// Makes a field of texts, where there are any.
fn put_texts<'a>(
    document: &mut AutoCommit,
    field: &'static str,
    texts: impl ExactSizeIterator<Item = (&'a str, String)>,
) -> Result<(), AccountError> {
    if texts.len() == 0 {
        return Ok(());
    }
    let map = document.put_object(ROOT, field, ObjType::Map)?;
    for (key, text) in texts {
        document.put(&map, key, text)?;
    }
    Ok(())
}
