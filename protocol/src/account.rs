//! An account's settings: one automerge document per account, merged to the safe side.
//!
//! | field | form | writer | widening or narrowing | merge rule |
//! |---|---|---|---|---|
//! | `class` | text | centre | neither | the lexically first of concurrent values |
//! | `valid_until` | number: days since 1970 | centre | either | the earliest of concurrent values; absent is for ever |
//! | `cards` | map card → time | centre | widening | union; a card is valid while it is here and not in `void` |
//! | `phones` | map virtual card → algorithm and key, text | centre | widening | written once with its card; says that the card is virtual |
//! | `void` | map card → time | centre, desk | narrowing, final | present is void; never removed |
//! | `losses` | map loss key → card | centre, kiosk, desk | narrowing | present is lost; lifted by deleting the keys that were seen |
//! | `frozen` | map key → time | centre, desk | narrowing | present is frozen |
//! | `closed` | map key → time | centre | narrowing, final | present is closed |
//! | `limits` | map `single`, `daily` → fen | centre; nodes lower | either | the lower of concurrent values |
//! | `pins` | map generation → `chosen` or `initial`, and a time | centre | widening | a PIN that is set deletes those that its author had seen: two at once leave two, and then none pays until one is confirmed |
//! | `inactive` | map card → `issued` or `handed_over`, and a time | centre | narrowing | present is inactive; ended by deleting the key that was seen; handed over where one value says so |
//! | `legacy` | map card → group | centre | narrowing | written once with its card; present opens that group's doors and pays nothing; the lexically first of concurrent groups |
//! | `holder` | map [`HolderField`] → text | centre | neither | the lexically first of concurrent values |
//! | `groups` | map group → time | centre | widening | present is member |
//! | `epoch` | number | centre | neither | written once, with a document that is [begun anew](Document::renewed) |
//!
//! `phones`, `inactive`, `legacy` and `holder` are made with the first that is in them, by the centre, which alone writes them.
//!
//! A loss has a key of its own, so a lift (a deletion) removes only the reports that its author had seen. Nothing here
//! is money: that is in the logs.
//!
//! A document changes where the centre's account streams say so, and nowhere else, so equal prefixes are equal documents. What a
//! node narrows acts there from the moment it is written, on top of the document ([`AccountSettings::narrow`]), until the
//! centre has taken it into the stream or refused it ([`crate::entry::SettingAnswered`]). The centre merges the node's change
//! where it fits, so that concurrent ones meet by the rules above, and otherwise carries the intent out by itself: one change that
//! was refused never blocks a later one of the same author.
//!
//! Documents and changes come from peers, so they are bounded before automerge reads them ([`chunk`]), what makes it panic
//! is an error here, and a change counts only where the document that it gives can be saved and loaded again.

mod chunk;
mod error;
mod intent;
mod projection;
mod renewal;
mod settings;

use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::transaction::Transactable;
use automerge::{ActorId, AutoCommit, Change, ChangeHash, ObjId, ObjType, ROOT, ReadDoc, ScalarValue, Value};

pub use self::error::AccountError;
pub use self::intent::{HolderField, Intent};
pub use self::renewal::FIRST_EPOCH;
pub use self::settings::{AccountSettings, CardStatus, PinReference, phone_text, read_phone};
use crate::chain::hex;
use crate::ids::{AccountId, CardNumber, InstitutionId, Key, NodeId};
use crate::limits::{
    AMOUNT_FEN_MAX, DOCUMENT_BYTES_KEPT, DOCUMENT_BYTES_MAX, DOCUMENT_BYTES_SLACK, NAME_BYTES_MAX,
};
use crate::money::Fen;
use crate::pin::PinGeneration;
use crate::time::{BusinessDay, Timestamp};

/// The field of the last day.
const VALID_UNTIL: &str = "valid_until";

/// What stands for a card in `inactive`: before it was picked up, and after.
const ISSUED: &str = "issued";
const HANDED_OVER: &str = "handed_over";

/// What an account starts with.
#[derive(Clone, Debug)]
pub struct NewAccount {
    /// Patron class.
    pub class: String,
    /// Cards.
    pub cards: Vec<CardNumber>,
    /// No-PIN limit of a purchase.
    pub single_limit: Fen,
    /// No-PIN allowance of a day.
    pub daily_limit: Fen,
    /// Groups.
    pub groups: Vec<Key>,
    /// The last day on which its cards are good; absent for no end.
    pub valid_until: Option<BusinessDay>,
}

/// The author of changes: one per writer, enrolment and document epoch, never used again.
pub fn actor_id(
    institution: InstitutionId,
    writer: NodeId,
    incarnation: u32,
    document_epoch: u32,
    account: AccountId,
) -> ActorId {
    let mut bytes = Vec::with_capacity(20);
    bytes.extend(institution.0.to_be_bytes());
    bytes.extend(writer.0.to_be_bytes());
    bytes.extend(incarnation.to_be_bytes());
    bytes.extend(document_epoch.to_be_bytes());
    bytes.extend(account.0.to_be_bytes());
    ActorId::from(bytes)
}

/// An account document, loaded.
#[derive(Debug)]
pub struct Document {
    doc: AutoCommit,
    /// As bytes, where it has been loaded or saved since its last change.
    saved: Option<Vec<u8>>,
}

impl Document {
    /// Creates the document of a new account. Only the centre does: two creations would not merge.
    ///
    /// # Errors
    /// [`AccountError::LimitOutOfRange`], [`AccountError::Class`], [`AccountError::NotVirtual`], [`AccountError::NoRoom`], or an automerge error.
    pub fn create(new: &NewAccount, actor: ActorId, at: Timestamp) -> Result<Self, AccountError> {
        check_limit(new.single_limit)?;
        check_limit(new.daily_limit)?;
        check_class(&new.class)?;
        if new.cards.iter().any(CardNumber::is_virtual) {
            return Err(AccountError::NotVirtual);
        }
        let mut doc = AutoCommit::new().with_actor(actor);
        doc.put(ROOT, "class", new.class.as_str())?;
        if let Some(day) = new.valid_until {
            doc.put(ROOT, VALID_UNTIL, i64::from(day.0))?;
        }
        for field in ["void", "losses", "frozen", "closed", "pins"] {
            doc.put_object(ROOT, field, ObjType::Map)?;
        }
        let cards = doc.put_object(ROOT, "cards", ObjType::Map)?;
        for card in &new.cards {
            doc.put(&cards, card.as_str(), ScalarValue::Timestamp(at.0))?;
        }
        let limits = doc.put_object(ROOT, "limits", ObjType::Map)?;
        doc.put(&limits, "single", new.single_limit.get())?;
        doc.put(&limits, "daily", new.daily_limit.get())?;
        let groups = doc.put_object(ROOT, "groups", ObjType::Map)?;
        for group in &new.groups {
            doc.put(&groups, group.as_str(), ScalarValue::Timestamp(at.0))?;
        }
        doc.commit();
        let mut document = Self::from(doc);
        document.check_room(DOCUMENT_BYTES_KEPT)?;
        Ok(document)
    }

    /// Loads a saved document; `actor` writes later changes.
    ///
    /// # Errors
    /// [`AccountError`] for bytes that are no document.
    pub fn load(bytes: &[u8], actor: ActorId) -> Result<Self, AccountError> {
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(AccountError::TooLarge(bytes.len()));
        }
        chunk::check_document(bytes).map_err(|chunk::TooCostly| AccountError::TooCostly)?;
        let doc = contained(|| AutoCommit::load(bytes))??.with_actor(actor);
        Ok(Self { doc, saved: Some(bytes.to_vec()) })
    }

    /// The document as bytes. Equal heads do not mean equal bytes.
    pub fn save(&mut self) -> Vec<u8> {
        self.saved.get_or_insert_with(|| self.doc.save()).clone()
    }

    /// Carries out an intent; returns the change to send to the others. What takes possibilities away finds room in a
    /// document that has none left for the rest.
    ///
    /// # Errors
    /// [`AccountError`] where the intent does not fit the account; the document is unchanged then.
    pub fn carry_out(&mut self, intent: &Intent, at: Timestamp) -> Result<Vec<u8>, AccountError> {
        self.settings()?.check(intent)?;
        let before = self.save();
        let kept = if intent.narrows() { DOCUMENT_BYTES_SLACK } else { DOCUMENT_BYTES_KEPT };
        let carried_out = self.write(intent, at).and_then(|change| {
            self.check_room(kept)?;
            Ok(change)
        });
        if carried_out.is_err() {
            *self = Self::load(&before, self.doc.get_actor().clone())?;
        }
        carried_out
    }

    fn write(&mut self, intent: &Intent, at: Timestamp) -> Result<Vec<u8>, AccountError> {
        self.saved = None;
        let now = ScalarValue::Timestamp(at.0);
        match intent {
            Intent::ReportLoss { card, loss } => {
                let losses = self.map("losses")?;
                self.doc.put(&losses, loss.as_str(), card.as_str())?;
            }
            Intent::LiftLoss { losses: keys, .. } => {
                let losses = self.map("losses")?;
                for key in keys {
                    self.doc.delete(&losses, key.as_str())?;
                }
            }
            Intent::SetLimits { single, daily } => {
                let limits = self.map("limits")?;
                self.doc.put(&limits, "single", single.get())?;
                self.doc.put(&limits, "daily", daily.get())?;
            }
            Intent::IssueCard { card } => self.put_key("cards", card.as_str(), now)?,
            Intent::VoidCard { card } => self.put_key("void", card.as_str(), now)?,
            Intent::Freeze { key } => self.put_key("frozen", key.as_str(), now)?,
            Intent::Unfreeze { keys } => {
                let frozen = self.map("frozen")?;
                for key in keys {
                    self.doc.delete(&frozen, key.as_str())?;
                }
            }
            Intent::Close => self.put_key("closed", "closed", now)?,
            Intent::JoinGroup { group } => self.put_key("groups", group.as_str(), now)?,
            Intent::LeaveGroup { group } => {
                let groups = self.map("groups")?;
                self.doc.delete(&groups, group.as_str())?;
            }
            Intent::ActivateVirtualCard { card, phone } => {
                let phones = self.made_map("phones")?;
                self.doc.put(&phones, card.as_str(), phone.as_str())?;
                self.put_key("cards", card.as_str(), now)?;
            }
            Intent::SetPin { generation, replaces } | Intent::ResetPin { generation, replaces } => {
                self.remove_pins(replaces)?;
                let initial = matches!(intent, Intent::ResetPin { .. });
                let pin = PinReference { initial, since: at };
                let pins = self.pins()?;
                self.doc.put(&pins, generation.to_string(), pin.to_text())?;
            }
            Intent::ConfirmPin { others, .. } => self.remove_pins(others)?,
            Intent::SetValidity { until: Some(day) } => {
                self.doc.put(ROOT, VALID_UNTIL, i64::from(day.0))?;
            }
            Intent::SetValidity { until: None } => self.doc.delete(ROOT, VALID_UNTIL)?,
            Intent::SetClass { class } => self.doc.put(ROOT, "class", class.as_str())?,
            Intent::Describe { field, value } => {
                let holder = self.made_map("holder")?;
                match value {
                    Some(text) => self.doc.put(&holder, field.name(), text.as_str())?,
                    None => self.doc.delete(&holder, field.name())?,
                }
            }
            Intent::IssueInactiveCard { card } => {
                let inactive = self.made_map("inactive")?;
                self.doc.put(&inactive, card.as_str(), format!("{ISSUED} {}", at.0))?;
                self.put_key("cards", card.as_str(), now)?;
            }
            Intent::HandOverCard { card } => {
                let inactive = self.made_map("inactive")?;
                self.doc.put(&inactive, card.as_str(), format!("{HANDED_OVER} {}", at.0))?;
            }
            Intent::ActivateCard { card } => {
                let inactive = self.made_map("inactive")?;
                self.doc.delete(&inactive, card.as_str())?;
            }
            Intent::IssueLegacyCard { card, group } => {
                let legacy = self.made_map("legacy")?;
                self.doc.put(&legacy, card.as_str(), group.as_str())?;
                self.put_key("cards", card.as_str(), now)?;
            }
        }
        self.doc.commit();
        let change = self.doc.get_last_local_change().ok_or(AccountError::Change)?;
        Ok(change.raw_bytes().to_vec())
    }

    /// True where the account is as a narrowing intent wants it already, under the same keys.
    ///
    /// # Errors
    /// [`AccountError::Shape`] where the document is not as the table says.
    pub fn is_so(&self, intent: &Intent) -> Result<bool, AccountError> {
        Ok(match intent {
            Intent::ReportLoss { card, loss } => self.losses()?.get(loss) == Some(card),
            Intent::VoidCard { card } => self.keys("void")?.iter().any(|void| void == card.as_str()),
            Intent::Freeze { key } => self.keys("frozen")?.iter().any(|frozen| frozen == key.as_str()),
            Intent::SetLimits { single, daily } => {
                self.limit("single")? <= *single && self.limit("daily")? <= *daily
            }
            _ => false,
        })
    }

    /// True where a change is merged already.
    pub fn has_change(&self, bytes: &[u8]) -> bool {
        if chunk::check_change(bytes).is_err() {
            return false;
        }
        let known = contained(|| {
            let change = Change::from_bytes(bytes.to_vec()).ok()?;
            self.doc.get_change_by_hash(&change.hash()).map(drop)
        });
        matches!(known, Ok(Some(())))
    }

    /// Merges a change made elsewhere. A repeat changes nothing.
    ///
    /// # Errors
    /// [`AccountError::Change`] where it is malformed, something that it builds on is missing, or what it makes of the
    /// document cannot be loaded again; [`AccountError::TooLarge`] where that is too large.
    pub fn merge_change(&mut self, bytes: &[u8]) -> Result<(), AccountError> {
        chunk::check_change(bytes).map_err(|chunk::TooCostly| AccountError::Change)?;
        let (before, actor) = (self.save(), self.doc.get_actor().clone());
        match self.merged(bytes) {
            Ok(merged) => {
                *self = merged;
                Ok(())
            }
            Err(error) => {
                *self = Self::load(&before, actor)?;
                Err(error)
            }
        }
    }

    /// This document with a change that the centre has merged, and loaded again, before it wrote it into the account's stream: as
    /// [`Self::merge_change`], without loading it once more.
    ///
    /// # Errors
    /// As [`Self::merge_change`].
    pub fn with_proven_change(mut self, bytes: &[u8]) -> Result<Self, AccountError> {
        chunk::check_change(bytes).map_err(|chunk::TooCostly| AccountError::Change)?;
        let (saved, _) = self.apply(bytes)?;
        if saved.len() > DOCUMENT_BYTES_MAX {
            return Err(AccountError::TooLarge(saved.len()));
        }
        chunk::check_document(&saved).map_err(|chunk::TooCostly| AccountError::Change)?;
        self.saved = Some(saved);
        Ok(self)
    }

    /// Applies a change; returns the bytes and the heads that come of it. Where it fails this document is as it may be.
    fn apply(&mut self, bytes: &[u8]) -> Result<(Vec<u8>, Vec<ChangeHash>), AccountError> {
        self.saved = None;
        let doc = &mut self.doc;
        contained(|| {
            let change = Change::from_bytes(bytes.to_vec()).map_err(|_| AccountError::Change)?;
            let hash = change.hash();
            doc.apply_changes([change])?;
            if doc.get_change_by_hash(&hash).is_none() {
                return Err(AccountError::Change);
            }
            Ok((doc.save(), doc.get_heads()))
        })?
    }

    /// This document with a change, loaded from its bytes. Where it fails this one is as it may be.
    fn merged(&mut self, bytes: &[u8]) -> Result<Self, AccountError> {
        let (saved, heads) = self.apply(bytes)?;
        let mut again = Self::load(&saved, self.doc.get_actor().clone()).map_err(|error| match error {
            AccountError::TooLarge(_) => error,
            _ => AccountError::Change,
        })?;
        if again.doc.get_heads() == heads { Ok(again) } else { Err(AccountError::Change) }
    }

    /// True where what the centre itself may have to write still fits, such as a lift of what was reported: a change by a
    /// node that leaves less is not to be taken.
    pub fn has_room(&mut self) -> bool {
        self.check_room(2 * DOCUMENT_BYTES_KEPT).is_ok()
    }

    /// Checks that so many bytes of the largest document are left.
    fn check_room(&mut self, kept: usize) -> Result<(), AccountError> {
        let length = self.saved.get_or_insert_with(|| self.doc.save()).len();
        if length + kept <= DOCUMENT_BYTES_MAX { Ok(()) } else { Err(AccountError::NoRoom(length)) }
    }

    /// The keys of the freezes in force, for an end of all of them.
    ///
    /// # Errors
    /// [`AccountError::Shape`] where the document is not as the table says.
    pub fn freezes(&self) -> Result<Vec<Key>, AccountError> {
        Ok(self.keys("frozen")?.into_iter().filter_map(|key| Key::new(key).ok()).collect())
    }

    /// The hashes of the newest changes, as sorted hexadecimal.
    pub fn heads(&mut self) -> Vec<String> {
        let mut heads: Vec<String> = self.doc.get_heads().iter().map(|head| hex(&head.0)).collect();
        heads.sort();
        heads
    }

    /// Where the PINs are. A document of an older build gets its place for them with its first one.
    fn pins(&mut self) -> Result<ObjId, AccountError> {
        self.made_map("pins")
    }

    /// A field that a document does not begin with: made with the first that is put into it.
    fn made_map(&mut self, field: &'static str) -> Result<ObjId, AccountError> {
        match self.doc.get(ROOT, field)? {
            None => Ok(self.doc.put_object(ROOT, field, ObjType::Map)?),
            Some(_) => self.map(field),
        }
    }

    fn remove_pins(&mut self, gone: &[PinGeneration]) -> Result<(), AccountError> {
        let pins = self.pins()?;
        for pin in gone {
            self.doc.delete(&pins, pin.to_string())?;
        }
        Ok(())
    }

    fn map(&self, field: &'static str) -> Result<ObjId, AccountError> {
        match self.doc.get(ROOT, field)? {
            Some((Value::Object(ObjType::Map), id)) => Ok(id),
            _ => Err(AccountError::Shape(field)),
        }
    }

    fn put_key(&mut self, field: &'static str, key: &str, value: ScalarValue) -> Result<(), AccountError> {
        let map = self.map(field)?;
        Ok(self.doc.put(&map, key, value)?)
    }

    fn keys(&self, field: &'static str) -> Result<Vec<String>, AccountError> {
        Ok(self.doc.keys(self.map(field)?).collect())
    }
}

/// Runs what reads foreign bytes with somebody else's code: a panic in there is the bytes' fault and must not take the
/// process down. What it was working on is not used any more.
fn contained<T>(read: impl FnOnce() -> T) -> Result<T, AccountError> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| AccountError::Change)
}

impl From<AutoCommit> for Document {
    fn from(doc: AutoCommit) -> Self {
        Self { doc, saved: None }
    }
}

fn check_class(class: &str) -> Result<(), AccountError> {
    if (1..=NAME_BYTES_MAX).contains(&class.len()) { Ok(()) } else { Err(AccountError::Class) }
}

fn check_limit(limit: Fen) -> Result<(), AccountError> {
    if limit.is_negative() || limit > AMOUNT_FEN_MAX { Err(AccountError::LimitOutOfRange) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
