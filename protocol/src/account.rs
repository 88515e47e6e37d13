//! An account's settings: one automerge document per account, merged to the safe side.
//!
//! | field | form | writer | widening or narrowing | merge rule |
//! |---|---|---|---|---|
//! | `class` | text | centre | neither | the lexically first of concurrent values |
//! | `cards` | map card → time | centre | widening | union; a card is valid while it is here and not in `void` |
//! | `phones` | map virtual card → algorithm and key, text | centre | widening | written once with its card; says that the card is virtual |
//! | `void` | map card → time | centre, desk | narrowing, final | present is void; never removed |
//! | `losses` | map loss key → card | centre, kiosk, desk | narrowing | present is lost; lifted by deleting the keys that were seen |
//! | `frozen` | map key → time | centre, desk | narrowing | present is frozen |
//! | `closed` | map key → time | centre | narrowing, final | present is closed |
//! | `limits` | map `single`, `daily` → fen | centre; nodes lower | either | the lower of concurrent values |
//! | `pins` | map generation → `chosen` or `initial`, and a time | centre | widening | a PIN that is set deletes those that its author had seen: two at once leave two, and then none pays until one is confirmed |
//! | `groups` | map group → time | centre | widening | present is member |
//!
//! Documents from before virtual cards have no `phones`; the centre, which alone writes it, makes it with the first.
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

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::transaction::Transactable;
use automerge::{
    ActorId, AutoCommit, AutomergeError, Change, ObjId, ObjType, ROOT, ReadDoc, ScalarValue, Value,
};
use data_encoding::BASE64URL_NOPAD;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::canary::{Canary, planted};
use crate::chain::hex;
use crate::code::PhoneKey;
use crate::enrol::Role;
use crate::ids::{AccountId, CardNumber, InstitutionId, Key, NodeId};
use crate::limits::{
    AMOUNT_FEN_MAX, DOCUMENT_BYTES_KEPT, DOCUMENT_BYTES_MAX, DOCUMENT_BYTES_SLACK, NAME_BYTES_MAX,
    PINS_PER_ACCOUNT_MAX,
};
use crate::money::Fen;
use crate::pin::PinGeneration;
use crate::time::Timestamp;

/// What a change of settings means. The change itself must do this and no more.
#[derive(Clone, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// A card was lost.
    #[n(0)]
    ReportLoss {
        /// The card.
        #[n(0)]
        card: CardNumber,
        /// A key of this report, unique in the account.
        #[n(1)]
        loss: Key,
    },
    /// A lost card was found: these reports, all of one card, are withdrawn.
    #[n(1)]
    LiftLoss {
        /// The card.
        #[n(0)]
        card: CardNumber,
        /// The reports that the author had seen.
        #[n(1)]
        losses: Vec<Key>,
    },
    /// The account's no-PIN limits.
    #[n(2)]
    SetLimits {
        /// Fen per purchase.
        #[n(0)]
        single: Fen,
        /// Fen per business day.
        #[n(1)]
        daily: Fen,
    },
    /// A card is given out for the account.
    #[n(3)]
    IssueCard {
        /// The card.
        #[n(0)]
        card: CardNumber,
    },
    /// A card is no longer valid, for ever.
    #[n(4)]
    VoidCard {
        /// The card.
        #[n(0)]
        card: CardNumber,
    },
    /// No purchases.
    #[n(5)]
    Freeze {
        /// A key of this order, unique in the account.
        #[n(0)]
        key: Key,
    },
    /// A freeze is withdrawn.
    #[n(6)]
    Unfreeze {
        /// The orders that the author had seen.
        #[n(0)]
        keys: Vec<Key>,
    },
    /// The account ends.
    #[n(7)]
    Close,
    /// Membership of a group (doors, price lists).
    #[n(8)]
    JoinGroup {
        /// The group.
        #[n(0)]
        group: Key,
    },
    /// Membership ends.
    #[n(9)]
    LeaveGroup {
        /// The group.
        #[n(0)]
        group: Key,
    },
    /// A phone's key becomes a virtual card of the account. It ends as cards do, by [`Intent::VoidCard`].
    #[n(20)]
    ActivateVirtualCard {
        /// [`CardNumber::of_phone`] of the key.
        #[n(0)]
        card: CardNumber,
        /// The key; see [`phone_text`].
        #[n(1)]
        phone: Key,
    },
    /// The holder has chosen a payment PIN. It is named here and told nowhere.
    #[n(10)]
    SetPin {
        /// The new one.
        #[n(0)]
        generation: PinGeneration,
        /// Those that the author had seen.
        #[n(1)]
        replaces: Vec<PinGeneration>,
    },
    /// The payment PIN is the initial one again, which opens nothing but its own change.
    #[n(11)]
    ResetPin {
        /// The new one.
        #[n(0)]
        generation: PinGeneration,
        /// Those that the author had seen.
        #[n(1)]
        replaces: Vec<PinGeneration>,
    },
    /// Of several PINs the holder has shown this one.
    #[n(12)]
    ConfirmPin {
        /// The one that stays.
        #[n(0)]
        generation: PinGeneration,
        /// The others that the author had seen.
        #[n(1)]
        others: Vec<PinGeneration>,
    },
}

impl Intent {
    /// True for changes that take possibilities away: these act at once wherever they are made. Limits are what they were before or
    /// less where a node sets them ([`AccountSettings::check_narrowing`]).
    pub const fn narrows(&self) -> bool {
        matches!(
            self,
            Self::ReportLoss { .. }
                | Self::VoidCard { .. }
                | Self::Freeze { .. }
                | Self::Close
                | Self::LeaveGroup { .. }
        )
    }

    /// Whether a node of this role may write it.
    pub const fn is_open_to(&self, role: Role) -> bool {
        match self {
            Self::ReportLoss { .. } | Self::SetLimits { .. } => matches!(role, Role::Kiosk | Role::Desk),
            Self::VoidCard { .. } | Self::Freeze { .. } => matches!(role, Role::Desk),
            _ => false,
        }
    }
}

/// Whether a card may be used.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CardStatus {
    /// It may.
    Active,
    /// Reported lost and not lifted.
    Lost,
    /// Replaced or withdrawn.
    Void,
}

/// A payment PIN as a document has it: never the PIN itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PinReference {
    /// True for one that was made by the campus's rule, which anybody may guess.
    pub initial: bool,
    /// Since when.
    pub since: Timestamp,
}

impl PinReference {
    fn to_text(self) -> String {
        format!("{} {}", if self.initial { "initial" } else { "chosen" }, self.since.0)
    }

    /// What is not written by an intent pays nothing.
    fn from_text(text: &str) -> Self {
        let (kind, since) = text.split_once(' ').unwrap_or((text, ""));
        Self { initial: kind != "chosen", since: Timestamp(since.parse().unwrap_or(0)) }
    }
}

/// A document's projection: what authorization needs of it. Equal change sets have equal projections.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct AccountSettings {
    /// Patron class (身份类别); selects the tariff.
    pub class: String,
    /// Every card that was ever issued.
    pub cards: BTreeMap<CardNumber, CardStatus>,
    /// The reports behind each lost card, for a lift.
    pub losses: BTreeMap<Key, CardNumber>,
    /// No purchases.
    pub frozen: bool,
    /// No more anything.
    pub closed: bool,
    /// No-PIN limit of a purchase, in fen.
    pub single_limit: Fen,
    /// No-PIN allowance of a business day, in fen.
    pub daily_limit: Fen,
    /// Groups that the holder belongs to.
    pub groups: Vec<String>,
    /// The phones behind virtual cards; see [`phone_text`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phones: BTreeMap<CardNumber, String>,
    /// Payment PINs; none where the holder has the initial one of those who told no ID number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: BTreeMap<PinGeneration, PinReference>,
}

/// A phone's key as documents have it: the name of its algorithm, a colon, its bytes in base64url.
pub fn phone_text(phone: &PhoneKey) -> Key {
    let text = format!("{}:{}", phone.algorithm(), BASE64URL_NOPAD.encode(phone.as_bytes()));
    Key::new(text).expect("a name and digits are short visible text")
}

/// The key of [`phone_text`].
pub fn read_phone(text: &str) -> Option<PhoneKey> {
    let (algorithm, key) = text.split_once(':')?;
    PhoneKey::new(algorithm.parse().ok()?, &BASE64URL_NOPAD.decode(key.as_bytes()).ok()?).ok()
}

impl AccountSettings {
    /// The PIN that pays: the only one, and a chosen one.
    pub fn paying_pin(&self) -> Option<PinGeneration> {
        let mut pins = self.pins.iter();
        match (pins.next(), pins.next()) {
            (Some((generation, pin)), None) if !pin.initial || planted(Canary::InitialPinPays) => {
                Some(*generation)
            }
            _ => None,
        }
    }

    /// The canonical text that digests are made of.
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).expect("plain data serializes")
    }

    /// Whether an intent fits the account as it is.
    ///
    /// # Errors
    /// [`AccountError`] says why it does not.
    pub fn check(&self, intent: &Intent) -> Result<(), AccountError> {
        if self.closed {
            return Err(AccountError::Closed);
        }
        match intent {
            Intent::ReportLoss { card, .. } | Intent::VoidCard { card } if !self.cards.contains_key(card) => {
                Err(AccountError::NoSuchCard)
            }
            Intent::ReportLoss { loss, .. } if self.losses.contains_key(loss) => Err(AccountError::KeyUsed),
            Intent::LiftLoss { card, losses }
                if losses.is_empty() || !losses.iter().all(|key| self.losses.get(key) == Some(card)) =>
            {
                Err(AccountError::NotLost)
            }
            Intent::SetLimits { single, daily } => {
                check_limit(*single)?;
                check_limit(*daily)
            }
            Intent::IssueCard { card } if card.is_virtual() => Err(AccountError::NotVirtual),
            Intent::ActivateVirtualCard { card, phone }
                if read_phone(phone.as_str()).is_none_or(|key| CardNumber::of_phone(&key) != *card) =>
            {
                Err(AccountError::NotVirtual)
            }
            Intent::ActivateVirtualCard { card, .. } if self.cards.contains_key(card) => {
                Err(AccountError::PhoneUsed)
            }
            Intent::SetPin { generation, replaces } | Intent::ResetPin { generation, replaces } => {
                self.check_pins(replaces)?;
                if self.pins.contains_key(generation) {
                    return Err(AccountError::KeyUsed);
                }
                let left = self.pins.len() - replaces.len();
                if left < PINS_PER_ACCOUNT_MAX { Ok(()) } else { Err(AccountError::TooManyPins) }
            }
            Intent::ConfirmPin { generation, others } => {
                self.check_pins(others)?;
                let stays = self.pins.contains_key(generation) && !others.contains(generation);
                if stays && !others.is_empty() { Ok(()) } else { Err(AccountError::NoSuchPin) }
            }
            _ => Ok(()),
        }
    }

    /// Whether the account has these PINs, each named once.
    fn check_pins(&self, pins: &[PinGeneration]) -> Result<(), AccountError> {
        let distinct: BTreeSet<_> = pins.iter().collect();
        let here = pins.iter().all(|pin| self.pins.contains_key(pin));
        if here && distinct.len() == pins.len() { Ok(()) } else { Err(AccountError::NoSuchPin) }
    }

    /// The same for a node of this role, which may narrow and no more.
    ///
    /// # Errors
    /// [`AccountError::Role`], [`AccountError::LimitRaised`], or as [`AccountSettings::check`].
    pub fn check_narrowing(&self, intent: &Intent, role: Role) -> Result<(), AccountError> {
        if !intent.is_open_to(role) {
            return Err(AccountError::Role(role.name()));
        }
        self.check(intent)?;
        match intent {
            Intent::SetLimits { single, daily }
                if *single > self.single_limit || *daily > self.daily_limit =>
            {
                Err(AccountError::LimitRaised)
            }
            _ => Ok(()),
        }
    }

    /// The settings after an intent that narrows: what a node goes by while its own word is not in the document yet.
    pub fn narrow(&mut self, intent: &Intent) {
        match intent {
            Intent::ReportLoss { card, loss } => {
                self.losses.insert(loss.clone(), card.clone());
                if let Some(status) = self.cards.get_mut(card) {
                    *status = (*status).max(CardStatus::Lost);
                }
            }
            Intent::VoidCard { card } => {
                if let Some(status) = self.cards.get_mut(card) {
                    *status = CardStatus::Void;
                }
            }
            Intent::SetLimits { single, daily } => {
                self.single_limit = self.single_limit.min(*single);
                self.daily_limit = self.daily_limit.min(*daily);
            }
            Intent::Freeze { .. } => self.frozen = true,
            Intent::Close => self.closed = true,
            Intent::LeaveGroup { group } => self.groups.retain(|own| own != group.as_str()),
            Intent::LiftLoss { .. }
            | Intent::IssueCard { .. }
            | Intent::Unfreeze { .. }
            | Intent::JoinGroup { .. }
            | Intent::ActivateVirtualCard { .. }
            | Intent::SetPin { .. }
            | Intent::ResetPin { .. }
            | Intent::ConfirmPin { .. } => {}
        }
    }
}

/// Why a document or a change is refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// Not an automerge document or change.
    #[error("not a valid document or change")]
    Automerge(#[from] AutomergeError),
    /// A change that is malformed or lacks the changes it builds on.
    #[error("the change is malformed or builds on changes that are not here")]
    Change,
    /// The document is not shaped as the table of this module says.
    #[error("the document has no {0:?} of the expected form")]
    Shape(&'static str),
    /// Too large.
    #[error("the document has {0} bytes, more than {DOCUMENT_BYTES_MAX}")]
    TooLarge(usize),
    /// It would become too large.
    #[error("there is no room in the document: it would have {0} bytes")]
    NoRoom(usize),
    /// Not the form of a document, or far more in it than fits an account.
    #[error("not a document of a size that is read")]
    TooCostly,
    /// A patron class that is empty, or longer than [`NAME_BYTES_MAX`].
    #[error("a patron class must have 1 to {NAME_BYTES_MAX} bytes")]
    Class,
    /// An intent about a card that the account does not have.
    #[error("the account has no such card")]
    NoSuchCard,
    /// A lift of a card that is not reported lost.
    #[error("the card is not reported lost")]
    NotLost,
    /// A key that is already used in the account.
    #[error("this key was used before")]
    KeyUsed,
    /// A limit below zero or above [`AMOUNT_FEN_MAX`].
    #[error("a limit must be from 0 to {AMOUNT_FEN_MAX} yuan")]
    LimitOutOfRange,
    /// A virtual card whose number is not that of its key, or a card with the number of one.
    #[error("the number of a virtual card must be that of its phone's key, and no other card's")]
    NotVirtual,
    /// A phone's key that is a virtual card of the account already.
    #[error("the phone's key is, or was, a virtual card of this account")]
    PhoneUsed,
    /// An intent about a PIN that the account does not have.
    #[error("the account has no such PIN")]
    NoSuchPin,
    /// More PINs at once than [`PINS_PER_ACCOUNT_MAX`].
    #[error("the account has too many unconfirmed PINs")]
    TooManyPins,
    /// The account is closed: only reading is left.
    #[error("the account is closed")]
    Closed,
    /// A node may not write such a change.
    #[error("a building of the role {0} may not change this")]
    Role(&'static str),
    /// A building can lower a limit, and not raise it.
    #[error("a limit can be lowered here, and raised at the centre only")]
    LimitRaised,
    /// There is no such account.
    #[error("there is no such account")]
    NoSuchAccount,
}

impl AccountError {
    /// The stable code of a refusal.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoSuchCard => "no_such_card",
            Self::NoSuchPin => "no_such_pin",
            Self::TooManyPins => "too_many_pins",
            Self::NotLost => "not_lost",
            Self::KeyUsed => "key_used",
            Self::LimitOutOfRange => "limit_out_of_range",
            Self::LimitRaised => "limit_raised",
            Self::Closed => "closed",
            Self::NoRoom(_) | Self::TooLarge(_) => "no_room",
            Self::Role(_) => "role",
            Self::Class => "class",
            Self::NoSuchAccount => "no_such_account",
            Self::NotVirtual => "not_virtual",
            Self::PhoneUsed => "phone_used",
            Self::Automerge(_) | Self::Change | Self::Shape(_) | Self::TooCostly => "malformed",
        }
    }
}

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
pub struct Document(AutoCommit);

impl Document {
    /// Creates the document of a new account. Only the centre does: two creations would not merge.
    ///
    /// # Errors
    /// [`AccountError::LimitOutOfRange`], [`AccountError::Class`], [`AccountError::NotVirtual`], [`AccountError::NoRoom`], or an automerge error.
    pub fn create(new: &NewAccount, actor: ActorId, at: Timestamp) -> Result<Self, AccountError> {
        check_limit(new.single_limit)?;
        check_limit(new.daily_limit)?;
        if !(1..=NAME_BYTES_MAX).contains(&new.class.len()) {
            return Err(AccountError::Class);
        }
        if new.cards.iter().any(CardNumber::is_virtual) {
            return Err(AccountError::NotVirtual);
        }
        let mut doc = AutoCommit::new().with_actor(actor);
        doc.put(ROOT, "class", new.class.as_str())?;
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
        check_room(&mut doc, DOCUMENT_BYTES_KEPT)?;
        Ok(Self(doc))
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
        Ok(Self(contained(|| AutoCommit::load(bytes))??.with_actor(actor)))
    }

    /// The document as bytes. Equal heads do not mean equal bytes.
    pub fn save(&mut self) -> Vec<u8> {
        self.0.save()
    }

    /// Carries out an intent; returns the change to send to the others. What takes possibilities away finds room in a
    /// document that has none left for the rest.
    ///
    /// # Errors
    /// [`AccountError`] where the intent does not fit the account; the document is unchanged then.
    pub fn carry_out(&mut self, intent: &Intent, at: Timestamp) -> Result<Vec<u8>, AccountError> {
        let before = self.0.clone();
        let kept = if intent.narrows() { DOCUMENT_BYTES_SLACK } else { DOCUMENT_BYTES_KEPT };
        let carried_out = self.write(intent, at).and_then(|change| {
            check_room(&mut self.0, kept)?;
            Ok(change)
        });
        if carried_out.is_err() {
            self.0 = before;
        }
        carried_out
    }

    fn write(&mut self, intent: &Intent, at: Timestamp) -> Result<Vec<u8>, AccountError> {
        self.settings()?.check(intent)?;
        let now = ScalarValue::Timestamp(at.0);
        match intent {
            Intent::ReportLoss { card, loss } => {
                let losses = self.map("losses")?;
                self.0.put(&losses, loss.as_str(), card.as_str())?;
            }
            Intent::LiftLoss { losses: keys, .. } => {
                let losses = self.map("losses")?;
                for key in keys {
                    self.0.delete(&losses, key.as_str())?;
                }
            }
            Intent::SetLimits { single, daily } => {
                let limits = self.map("limits")?;
                self.0.put(&limits, "single", single.get())?;
                self.0.put(&limits, "daily", daily.get())?;
            }
            Intent::IssueCard { card } => self.put_key("cards", card.as_str(), now)?,
            Intent::VoidCard { card } => self.put_key("void", card.as_str(), now)?,
            Intent::Freeze { key } => self.put_key("frozen", key.as_str(), now)?,
            Intent::Unfreeze { keys } => {
                let frozen = self.map("frozen")?;
                for key in keys {
                    self.0.delete(&frozen, key.as_str())?;
                }
            }
            Intent::Close => self.put_key("closed", "closed", now)?,
            Intent::JoinGroup { group } => self.put_key("groups", group.as_str(), now)?,
            Intent::LeaveGroup { group } => {
                let groups = self.map("groups")?;
                self.0.delete(&groups, group.as_str())?;
            }
            Intent::ActivateVirtualCard { card, phone } => {
                let phones = match self.0.get(ROOT, "phones")? {
                    None => self.0.put_object(ROOT, "phones", ObjType::Map)?,
                    Some(_) => self.map("phones")?,
                };
                self.0.put(&phones, card.as_str(), phone.as_str())?;
                self.put_key("cards", card.as_str(), now)?;
            }
            Intent::SetPin { generation, replaces } | Intent::ResetPin { generation, replaces } => {
                self.remove_pins(replaces)?;
                let initial = matches!(intent, Intent::ResetPin { .. });
                let pin = PinReference { initial, since: at };
                let pins = self.pins()?;
                self.0.put(&pins, generation.to_string(), pin.to_text())?;
            }
            Intent::ConfirmPin { others, .. } => self.remove_pins(others)?,
        }
        self.0.commit();
        let change = self.0.get_last_local_change().ok_or(AccountError::Change)?;
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
            self.0.get_change_by_hash(&change.hash()).map(drop)
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
        let mut merged = self.0.clone();
        let saved = contained(|| {
            let change = Change::from_bytes(bytes.to_vec()).map_err(|_| AccountError::Change)?;
            let hash = change.hash();
            merged.apply_changes([change])?;
            if merged.get_change_by_hash(&hash).is_none() {
                return Err(AccountError::Change);
            }
            Ok(merged.save())
        })??;
        let mut again = Self::load(&saved, self.0.get_actor().clone()).map_err(|error| match error {
            AccountError::TooLarge(_) => error,
            _ => AccountError::Change,
        })?;
        if again.0.get_heads() != merged.get_heads() {
            return Err(AccountError::Change);
        }
        self.0 = again.0;
        Ok(())
    }

    /// True where what the centre itself may have to write still fits, such as a lift of what was reported: a change by a
    /// node that leaves less is not to be taken.
    pub fn has_room(&mut self) -> bool {
        check_room(&mut self.0, 2 * DOCUMENT_BYTES_KEPT).is_ok()
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
        let mut heads: Vec<String> = self.0.get_heads().iter().map(|head| hex(&head.0)).collect();
        heads.sort();
        heads
    }

    /// The projection, with every conflict resolved to the safe side.
    ///
    /// # Errors
    /// [`AccountError::Shape`] where the document is not as the table says.
    pub fn settings(&self) -> Result<AccountSettings, AccountError> {
        let void = self.keys("void")?;
        let losses = self.losses()?;
        let cards = self
            .keys("cards")?
            .into_iter()
            .filter_map(|card| CardNumber::new(card).ok())
            .map(|card| {
                let status = if void.iter().any(|void| void == card.as_str()) {
                    CardStatus::Void
                } else if losses.values().any(|lost| *lost == card) {
                    CardStatus::Lost
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
            pins: self.pin_references()?,
        })
    }

    /// Where the PINs are. A document of an older build gets its place for them with its first one.
    fn pins(&mut self) -> Result<ObjId, AccountError> {
        match self.0.get(ROOT, "pins")? {
            None => Ok(self.0.put_object(ROOT, "pins", ObjType::Map)?),
            Some(_) => self.map("pins"),
        }
    }

    fn remove_pins(&mut self, gone: &[PinGeneration]) -> Result<(), AccountError> {
        let pins = self.pins()?;
        for pin in gone {
            self.0.delete(&pins, pin.to_string())?;
        }
        Ok(())
    }

    fn map(&self, field: &'static str) -> Result<ObjId, AccountError> {
        match self.0.get(ROOT, field)? {
            Some((Value::Object(ObjType::Map), id)) => Ok(id),
            _ => Err(AccountError::Shape(field)),
        }
    }

    fn put_key(&mut self, field: &'static str, key: &str, value: ScalarValue) -> Result<(), AccountError> {
        let map = self.map(field)?;
        Ok(self.0.put(&map, key, value)?)
    }

    fn keys(&self, field: &'static str) -> Result<Vec<String>, AccountError> {
        Ok(self.0.keys(self.map(field)?).collect())
    }

    /// Rule: a loss is a key that is present.
    fn losses(&self) -> Result<BTreeMap<Key, CardNumber>, AccountError> {
        let map = self.map("losses")?;
        let mut losses = BTreeMap::new();
        for key in self.0.keys(&map) {
            for (value, _) in self.0.get_all(&map, key.as_str())? {
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
        if self.0.get(ROOT, "phones")?.is_none() {
            return Ok(BTreeMap::new());
        }
        let map = self.map("phones")?;
        let mut phones = BTreeMap::new();
        for card in self.0.keys(&map) {
            for (value, _) in self.0.get_all(&map, card.as_str())? {
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

    /// Rule: a PIN is a key that is present, and an initial one where any of its values says so.
    fn pin_references(&self) -> Result<BTreeMap<PinGeneration, PinReference>, AccountError> {
        let mut pins = BTreeMap::new();
        if self.0.get(ROOT, "pins")?.is_none() {
            return Ok(pins);
        }
        let map = self.map("pins")?;
        for key in self.0.keys(&map) {
            // A key that no intent writes is a PIN too, so that it cannot be passed over.
            let generation = key.parse().unwrap_or(PinGeneration::UNREADABLE);
            for (value, _) in self.0.get_all(&map, key.as_str())? {
                let new = PinReference::from_text(value.as_str().unwrap_or_default());
                let pin = pins.entry(generation).or_insert(new);
                *pin = PinReference { initial: pin.initial || new.initial, since: pin.since.max(new.since) };
            }
        }
        Ok(pins)
    }

    /// Rule: of concurrent classes the lexically first; any fixed choice converges, and only the centre writes it.
    fn class(&self) -> Result<String, AccountError> {
        let values = self.0.get_all(ROOT, "class")?;
        let class = values.iter().filter_map(|(value, _)| value.as_str()).min();
        class.map(str::to_owned).ok_or(AccountError::Shape("class"))
    }

    /// Rule: of concurrent limits the lower.
    fn limit(&self, name: &'static str) -> Result<Fen, AccountError> {
        let values = self.0.get_all(self.map("limits")?, name)?;
        let limit = values.iter().filter_map(|(value, _)| value.as_i64()).min();
        // What no intent writes is cut to the nearest that one could.
        let in_range = |limit: i64| Fen::new(limit.clamp(0, AMOUNT_FEN_MAX.get()));
        limit.map(in_range).ok_or(AccountError::Shape("limits"))
    }
}

/// Runs what reads foreign bytes with somebody else's code: a panic in there is the bytes' fault and must not take the
/// process down. What it was working on is not used any more.
fn contained<T>(read: impl FnOnce() -> T) -> Result<T, AccountError> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| AccountError::Change)
}

/// Checks that so many bytes of the largest document are left.
fn check_room(doc: &mut AutoCommit, kept: usize) -> Result<(), AccountError> {
    let length = doc.save().len();
    if length + kept <= DOCUMENT_BYTES_MAX { Ok(()) } else { Err(AccountError::NoRoom(length)) }
}

fn check_limit(limit: Fen) -> Result<(), AccountError> {
    if limit.is_negative() || limit > AMOUNT_FEN_MAX { Err(AccountError::LimitOutOfRange) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Digest;

    fn actor(writer: u16) -> ActorId {
        actor_id(InstitutionId(1), NodeId(writer), 1, 1, AccountId(1))
    }

    fn card(text: &str) -> CardNumber {
        CardNumber::new(text).unwrap()
    }

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn document() -> Document {
        let new = NewAccount {
            class: "student".to_owned(),
            cards: vec![card("c1")],
            single_limit: Fen::new(2000),
            daily_limit: Fen::new(5000),
            groups: vec![key("dorm-1")],
        };
        Document::create(&new, actor(0), Timestamp(1)).unwrap()
    }

    fn copy(document: &mut Document, writer: u16) -> Document {
        Document::load(&document.save(), actor(writer)).unwrap()
    }

    #[test]
    fn a_loss_beats_a_lift_that_had_not_seen_it() {
        let mut centre = document();
        let first = Intent::ReportLoss { card: card("c1"), loss: key("l1") };
        centre.carry_out(&first, Timestamp(2)).unwrap();
        let mut left = copy(&mut centre, 1);
        let mut right = copy(&mut centre, 2);
        let lift = Intent::LiftLoss { card: card("c1"), losses: vec![key("l1")] };
        let lifted = left.carry_out(&lift, Timestamp(3)).unwrap();
        let again = Intent::ReportLoss { card: card("c1"), loss: key("l2") };
        let reported = right.carry_out(&again, Timestamp(3)).unwrap();
        left.merge_change(&reported).unwrap();
        right.merge_change(&lifted).unwrap();
        for document in [&mut left, &mut right] {
            assert_eq!(document.settings().unwrap().cards[&card("c1")], CardStatus::Lost);
        }
        assert_eq!(left.heads(), right.heads());
        assert_eq!(left.settings().unwrap().canonical(), right.settings().unwrap().canonical());
    }

    #[test]
    fn of_two_limits_the_lower_holds_and_void_is_final() {
        let mut centre = document();
        let mut left = copy(&mut centre, 1);
        let mut right = copy(&mut centre, 2);
        let limits = |single, daily| Intent::SetLimits { single: Fen::new(single), daily: Fen::new(daily) };
        let one = left.carry_out(&limits(1000, 9000), Timestamp(2)).unwrap();
        let two = right.carry_out(&limits(3000, 4000), Timestamp(2)).unwrap();
        let void = right.carry_out(&Intent::VoidCard { card: card("c1") }, Timestamp(3)).unwrap();
        for change in [&two, &void, &one, &two] {
            left.merge_change(change).unwrap();
        }
        right.merge_change(&one).unwrap();
        let settings = left.settings().unwrap();
        assert_eq!((settings.single_limit, settings.daily_limit), (Fen::new(1000), Fen::new(4000)));
        assert_eq!(settings.cards[&card("c1")], CardStatus::Void);
        assert_eq!(settings, right.settings().unwrap());
    }

    fn pin(number: u8) -> PinGeneration {
        PinGeneration([number; 16])
    }

    #[test]
    fn two_pins_at_once_pay_nothing_until_one_is_confirmed() {
        let mut centre = document();
        let initial = Intent::ResetPin { generation: pin(1), replaces: vec![] };
        centre.carry_out(&initial, Timestamp(2)).unwrap();
        assert_eq!(centre.settings().unwrap().paying_pin(), None, "an initial PIN pays nothing");
        let chosen = Intent::SetPin { generation: pin(2), replaces: vec![pin(1)] };
        centre.carry_out(&chosen, Timestamp(3)).unwrap();
        assert_eq!(centre.settings().unwrap().paying_pin(), Some(pin(2)));
        let mut left = copy(&mut centre, 1);
        let mut right = copy(&mut centre, 2);
        let set = |number| Intent::SetPin { generation: pin(number), replaces: vec![pin(2)] };
        let one = left.carry_out(&set(3), Timestamp(4)).unwrap();
        let two = right.carry_out(&set(4), Timestamp(4)).unwrap();
        assert_eq!(left.settings().unwrap().paying_pin(), Some(pin(3)));
        left.merge_change(&two).unwrap();
        right.merge_change(&one).unwrap();
        for document in [&left, &right] {
            let settings = document.settings().unwrap();
            assert_eq!(settings.pins.keys().copied().collect::<Vec<_>>(), [pin(3), pin(4)]);
            assert_eq!(settings.paying_pin(), None);
        }
        let confirm = Intent::ConfirmPin { generation: pin(4), others: vec![pin(3)] };
        let confirmed = left.carry_out(&confirm, Timestamp(5)).unwrap();
        right.merge_change(&confirmed).unwrap();
        assert_eq!(right.settings().unwrap().paying_pin(), Some(pin(4)));
        assert_eq!(left.heads(), right.heads());
    }

    #[test]
    fn an_intent_about_pins_that_are_not_there_is_refused() {
        let mut centre = document();
        let unseen = Intent::SetPin { generation: pin(1), replaces: vec![pin(9)] };
        assert!(matches!(centre.carry_out(&unseen, Timestamp(2)), Err(AccountError::NoSuchPin)));
        let set = Intent::SetPin { generation: pin(1), replaces: vec![] };
        centre.carry_out(&set, Timestamp(2)).unwrap();
        assert!(matches!(centre.carry_out(&set, Timestamp(2)), Err(AccountError::KeyUsed)));
        let confirm = |others| Intent::ConfirmPin { generation: pin(1), others };
        for others in [vec![], vec![pin(1)], vec![pin(2)]] {
            assert!(matches!(centre.carry_out(&confirm(others), Timestamp(3)), Err(AccountError::NoSuchPin)));
        }
        let count = fill_pins(&mut centre);
        assert_eq!(count, PINS_PER_ACCOUNT_MAX - 1);
        assert_eq!(centre.settings().unwrap().paying_pin(), None);
    }

    /// Sets PINs that have not seen each other until no more are taken.
    fn fill_pins(document: &mut Document) -> usize {
        let set = |number| Intent::SetPin { generation: pin(number), replaces: vec![] };
        (100..).take_while(|number| document.carry_out(&set(*number), Timestamp(4)).is_ok()).count()
    }

    #[test]
    fn a_value_that_no_intent_writes_pays_nothing() {
        let mut odd = document();
        let pins = odd.pins().unwrap();
        odd.0.put(&pins, pin(1).to_string(), 7).unwrap();
        assert_eq!(odd.settings().unwrap().paying_pin(), None);
        let mut odd = document();
        odd.carry_out(&Intent::SetPin { generation: pin(1), replaces: vec![] }, Timestamp(2)).unwrap();
        odd.0.put(&pins, "no generation", "chosen 1").unwrap();
        assert_eq!(odd.settings().unwrap().paying_pin(), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let mut centre = document();
        let before = centre.heads();
        let unknown = Intent::ReportLoss { card: card("c2"), loss: key("l1") };
        assert!(matches!(centre.carry_out(&unknown, Timestamp(2)), Err(AccountError::NoSuchCard)));
        let lift = Intent::LiftLoss { card: card("c1"), losses: vec![key("l1")] };
        assert!(matches!(centre.carry_out(&lift, Timestamp(2)), Err(AccountError::NotLost)));
        let limits = Intent::SetLimits { single: Fen::new(-1), daily: Fen::ZERO };
        assert!(matches!(centre.carry_out(&limits, Timestamp(2)), Err(AccountError::LimitOutOfRange)));
        assert!(centre.merge_change(b"garbage").is_err());
        assert_eq!(centre.heads(), before);
    }

    #[test]
    fn a_change_without_its_ancestor_is_refused() {
        let mut centre = document();
        let mut left = copy(&mut centre, 1);
        left.carry_out(&Intent::Freeze { key: key("f1") }, Timestamp(2)).unwrap();
        let second = left.carry_out(&Intent::Freeze { key: key("f2") }, Timestamp(3)).unwrap();
        assert!(matches!(centre.merge_change(&second), Err(AccountError::Change)));
    }

    /// Fills a document until nothing more of this kind fits, and returns how many there are.
    fn fill(document: &mut Document, intent: impl Fn(usize) -> Intent) -> usize {
        (0..)
            .find(|number| {
                matches!(document.carry_out(&intent(*number), Timestamp(2)), Err(AccountError::NoRoom(_)))
            })
            .unwrap()
    }

    #[test]
    fn a_full_document_still_takes_a_report_of_loss_and_can_be_loaded() {
        let mut centre = document();
        // Keys that differ in every letter, so that nothing of them can be left out.
        let long = |number: usize| key(&hex(&sha2::Sha256::digest(number.to_be_bytes())));
        let groups = fill(&mut centre, |number| Intent::JoinGroup { group: long(number) });
        assert!(groups > 100 && !centre.has_room());
        let loss = Intent::ReportLoss { card: card("c1"), loss: key("l1") };
        let change = centre.carry_out(&loss, Timestamp(3)).unwrap();
        let heads = centre.heads();
        let mut again = copy(&mut centre, 1);
        assert_eq!(again.settings().unwrap().cards[&card("c1")], CardStatus::Lost);
        again.merge_change(&change).unwrap();
        let reports = fill(&mut centre, |number| Intent::ReportLoss { card: card("c1"), loss: long(number) });
        assert!(reports > 100);
        assert_ne!(centre.heads(), heads);
        copy(&mut centre, 1);
    }

    #[test]
    fn a_new_account_is_named_and_of_a_size_that_leaves_room() {
        let new = |class: &str, groups: usize| NewAccount {
            class: class.to_owned(),
            cards: vec![card("c1")],
            single_limit: Fen::ZERO,
            daily_limit: Fen::ZERO,
            groups: (0..groups)
                .map(|number| key(&hex(&sha2::Sha256::digest(number.to_be_bytes()))))
                .collect(),
        };
        let create = |new: &NewAccount| Document::create(new, actor(0), Timestamp(1)).map(drop);
        assert!(create(&new("\u{5b66}\u{751f}", 3)).is_ok());
        for class in ["", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(matches!(create(&new(class, 0)), Err(AccountError::Class)));
        }
        assert!(matches!(create(&new("student", 2_000)), Err(AccountError::NoRoom(_))));
    }

    /// The change with its first operation numbered as 1, and a checksum that fits.
    fn renumbered(change: &[u8]) -> Vec<u8> {
        let change = Change::from_bytes(change.to_vec()).unwrap();
        let mut expanded = change.decode();
        expanded.start_op = std::num::NonZeroU64::MIN;
        Change::from(expanded).raw_bytes().to_vec()
    }

    #[test]
    fn a_change_after_which_the_document_could_not_be_loaded_is_refused() {
        let mut centre = document();
        let change =
            copy(&mut centre, 1).carry_out(&Intent::Freeze { key: key("f1") }, Timestamp(2)).unwrap();
        let heads = centre.heads();
        assert!(matches!(centre.merge_change(&renumbered(&change)), Err(AccountError::Change)));
        assert_eq!(centre.heads(), heads);
        centre.merge_change(&change).unwrap();
    }
}
