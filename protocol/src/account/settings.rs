//! What a document comes to: what authorization goes by, and whether a change fits it.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use super::{AccountError, HolderField, Intent, check_class, check_limit};
use crate::canary::{Canary, planted};
use crate::code::PhoneKey;
use crate::enrol::Role;
use crate::ids::{CardNumber, Key};
use crate::limits::PINS_PER_ACCOUNT_MAX;
use crate::money::Fen;
use crate::pin::PinGeneration;
use crate::time::{BusinessDay, Timestamp};

/// Whether a card may be used.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CardStatus {
    /// It may.
    Active,
    /// It opens the doors of one group, and pays nothing.
    Legacy,
    /// Given out, and not activated yet.
    Inactive,
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
    pub(super) fn to_text(self) -> String {
        format!("{} {}", if self.initial { "initial" } else { "chosen" }, self.since.0)
    }

    /// What is not written by an intent pays nothing.
    pub(super) fn from_text(text: &str) -> Self {
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
    /// Cards that are not activated, and whether their holder has picked them up.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inactive: BTreeMap<CardNumber, bool>,
    /// Cards of an older system, and the group whose doors each opens.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub legacy: BTreeMap<CardNumber, String>,
    /// What is told of the holder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub holder: BTreeMap<HolderField, String>,
    /// Payment PINs; none where the holder has the initial one of those who told no ID number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: BTreeMap<PinGeneration, PinReference>,
    /// The last business day on which the account's cards are good; for ever where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<BusinessDay>,
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

    /// True where the account's last day is over.
    pub fn is_expired(&self, today: BusinessDay) -> bool {
        self.valid_until.is_some_and(|last| last < today)
    }

    /// The groups whose doors a card of the account opens.
    pub fn groups_of(&self, card: &CardNumber) -> Vec<String> {
        self.legacy.get(card).map_or_else(|| self.groups.clone(), |group| vec![group.clone()])
    }

    /// A card of ours, and no virtual one, that is good or may yet be.
    pub fn card_in_use(&self) -> Option<&CardNumber> {
        let is_of_use = |status: &CardStatus| !matches!(status, CardStatus::Void | CardStatus::Legacy);
        let mut cards = self.cards.iter().filter(|(card, status)| is_of_use(status) && !card.is_virtual());
        cards.next().map(|(card, _)| card)
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
        // What was paid after a loss is given back, also of an account that is closed since.
        if self.closed && !matches!(intent, Intent::ReportLoss { .. }) {
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
            Intent::IssueCard { card }
            | Intent::IssueInactiveCard { card }
            | Intent::IssueLegacyCard { card, .. }
                if card.is_virtual() =>
            {
                Err(AccountError::NotVirtual)
            }
            Intent::IssueInactiveCard { card } | Intent::IssueLegacyCard { card, .. }
                if self.cards.contains_key(card) =>
            {
                Err(AccountError::KeyUsed)
            }
            Intent::HandOverCard { card } | Intent::ActivateCard { card } => match self.cards.get(card) {
                Some(CardStatus::Inactive) => Ok(()),
                Some(_) => Err(AccountError::NotInactive),
                None => Err(AccountError::NoSuchCard),
            },
            Intent::Describe { field, value: Some(text) } if !field.takes(text) => {
                Err(AccountError::HolderField(field.name()))
            }
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
            Intent::SetClass { class } => check_class(class),
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

    /// The same for a node of this role, which may narrow, and change a PIN for who shows the one that there is.
    ///
    /// # Errors
    /// [`AccountError::Role`], [`AccountError::LimitRaised`], or as [`AccountSettings::check`].
    pub fn check_of_node(&self, intent: &Intent, role: Role) -> Result<(), AccountError> {
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

    /// The settings once a card was shown that they do not know, with the centre's word that it was given out. What they do know
    /// of it stands; so does that the card which it replaces is void, and if that one is shown later.
    pub fn show_card(&mut self, card: &CardNumber, replaces: Option<&CardNumber>) {
        if let Some(replaced) = replaces {
            self.cards.insert(replaced.clone(), CardStatus::Void);
        }
        self.cards.entry(card.clone()).or_insert(CardStatus::Active);
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
            | Intent::ConfirmPin { .. }
            | Intent::SetValidity { .. }
            | Intent::SetClass { .. }
            | Intent::Describe { .. }
            | Intent::IssueInactiveCard { .. }
            | Intent::HandOverCard { .. }
            | Intent::ActivateCard { .. }
            | Intent::IssueLegacyCard { .. } => {}
        }
    }
}
