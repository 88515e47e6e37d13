//! Holders at the centre's desk: accounts are opened, cards given out of a stock of blank ones, picked up, activated and
//! exchanged, and an account is bound to the user of an app.
//!
//! **Cards.** A blank card is in the stock and nobody's. Given out, it is inactive: no building takes it until it is activated,
//! be it still in the office or with the holder. Whoever picks it up is noted in the document, so that a centre that comes back
//! from an old copy knows it too. A card that is missing at pick-up is void for ever, and the next blank one takes its place.
//!
//! **Binding** shows that a user knows name, number and the chosen payment PIN of a holder. Whatever does not match is answered
//! alike and counted alike, be there such a holder or not, so that nothing can be found out piece by piece.

pub mod command;
pub mod file;

use std::collections::BTreeSet;

use feiqian_protocol::account::{AccountError, AccountSettings, CardStatus, HolderField, Intent};
use feiqian_protocol::entry::{Actor, ActorKind, Proof};
use feiqian_protocol::ids::{AccountId, CardNumber, Key};
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::PinGeneration;
use feiqian_protocol::time::BusinessDay;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::io::{CommandError, ImportedAccount, Reply};
use crate::pin::{HashedPin, holder_key};
use crate::store::{StoreError as Store, accounts, holders};

/// Tries to bind that a number has on a business day: with a PIN of a million values, and a name to be known.
const BIND_TRIES_MAX: u8 = 5;

/// Accounts of a page of a pick-up list: each is some tens of microseconds to read.
const PICK_UP_PAGE_MAX: usize = 200;

/// An account that is opened for somebody.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NewHolder {
    /// The holder's name.
    pub name: String,
    /// The number that the institution knows the holder by.
    pub number: Key,
    /// Patron class.
    pub patron_class: String,
    /// Department: pick-up lists go by it.
    #[serde(default)]
    pub department: Option<String>,
    /// With whom it is opened.
    #[serde(default)]
    pub batch: Option<String>,
    /// Groups (doors).
    #[serde(default)]
    pub groups: Vec<Key>,
    /// The card that is given out; the next blank one where absent.
    #[serde(default)]
    pub card: Option<CardNumber>,
    /// No-PIN limit of a purchase; the campus's default where absent.
    #[serde(default)]
    pub single_limit_fen: Option<Fen>,
    /// No-PIN allowance of a day; the campus's default where absent.
    #[serde(default)]
    pub daily_limit_fen: Option<Fen>,
    /// The last day on which its cards are good; absent for no end.
    #[serde(default)]
    pub valid_until: Option<BusinessDay>,
    /// The initial PIN by the campus's rule.
    pub initial_pin: HashedPin,
}

/// A card of a pick-up list that is not active.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ToPickUp {
    /// The account.
    pub account: AccountId,
    /// Its holder's number.
    pub number: String,
    /// Its holder's name.
    pub name: String,
    /// The card.
    pub card: CardNumber,
    /// True where it was picked up, and waits for its activation.
    pub handed_over: bool,
}

impl Round<'_> {
    /// Opens accounts, all or none of them, each with a card that is inactive.
    pub(crate) fn open_accounts(&mut self, new: &[NewHolder], operator: Key) -> Result<Reply, StoreError> {
        let row = |index: usize, code: &'static str, why: String| {
            Ok(refused(code, format!("row {}: {why}", index + 1)))
        };
        let named: BTreeSet<&CardNumber> = new.iter().filter_map(|holder| holder.card.as_ref()).collect();
        let missing = new.iter().filter(|holder| holder.card.is_none()).count();
        let mut blanks = holders::next_blank(self.db, missing + named.len())?.into_iter();
        let mut numbers = BTreeSet::new();
        let mut imported = Vec::with_capacity(new.len());
        for (index, holder) in new.iter().enumerate() {
            if !numbers.insert(&holder.number)
                || holders::of_number(self.db, holder.number.as_str())?.is_some()
            {
                return row(index, "number_in_use", "the number belongs to an account already".to_owned());
            }
            let card = match &holder.card {
                Some(card) => Some(card.clone()),
                None => blanks.find(|blank| !named.contains(blank)),
            };
            let Some(card) = card else {
                let why =
                    "there is no blank card left; feiqian-reconcile card stock brings some in".to_owned();
                return row(index, "no_blank_card", why);
            };
            for (field, text) in holder.told() {
                if !field.takes(&text) {
                    let error = AccountError::HolderField(field.name());
                    return row(index, error.code(), error.to_string());
                }
            }
            imported.push(ImportedAccount {
                card,
                patron_class: holder.patron_class.clone(),
                opening_fen: Fen::ZERO,
                subsidy_fen: Fen::ZERO,
                single_limit_fen: holder.single_limit_fen,
                daily_limit_fen: holder.daily_limit_fen,
                groups: holder.groups.clone(),
                initial_pin: Some(holder.initial_pin.clone()),
                // Nothing is known of its habits.
                opened: Some(self.state.day),
                valid_until: holder.valid_until,
            });
        }
        let told = new.iter().map(NewHolder::told).collect();
        let actor = Actor { kind: ActorKind::Operator, id: operator, proof: Proof::Login };
        let opened = match self.open_all(&imported, Some(told), &actor)? {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error)),
        };
        let mut shown = Vec::with_capacity(opened.len());
        for (account, new) in opened.into_iter().zip(&imported) {
            holders::take_blank(self.db, &new.card)?;
            shown.push(json!({ "account": account, "card": new.card }));
        }
        Ok(Ok(json!({ "accounts": shown, "blank_cards": holders::blanks(self.db)? })))
    }

    /// Takes blank cards into the stock, in this order. Those that are there already stay where they are.
    pub(crate) fn stock_cards(&mut self, cards: &[CardNumber]) -> Result<Reply, StoreError> {
        for card in cards {
            if card.is_virtual() {
                return Ok(refused("not_virtual", "the number of a virtual card is that of a phone"));
            }
        }
        let (mut added, mut given_out) = (0_u64, 0_u64);
        for card in cards {
            if accounts::account_of_card(self.db, card)?.is_some() {
                given_out += 1;
            } else if holders::put_blank(self.db, card)? {
                added += 1;
            }
        }
        Ok(Ok(json!({ "added": added, "given_out": given_out, "blank_cards": holders::blanks(self.db)? })))
    }

    /// A page of the cards of a department that are not active: who is to pick one up, or has and not activated it.
    pub(crate) fn pick_up_list(&mut self, department: &str, after: AccountId) -> Result<Reply, StoreError> {
        let accounts = holders::of_department(self.db, department, after, PICK_UP_PAGE_MAX)?;
        let next = if accounts.len() == PICK_UP_PAGE_MAX {
            accounts.last().map(|(account, _)| *account)
        } else {
            None
        };
        let mut cards = Vec::new();
        for (account, settings) in accounts {
            let settings: AccountSettings = serde_json::from_str(&settings)
                .map_err(|error| Store::Corrupt(format!("settings of {account}: {error}")))?;
            if settings.closed {
                continue;
            }
            let told = |field| settings.holder.get(&field).cloned().unwrap_or_default();
            let waiting = settings.cards.iter().filter(|(_, status)| **status == CardStatus::Inactive);
            for (card, _) in waiting {
                cards.push(ToPickUp {
                    account,
                    number: told(HolderField::Number),
                    name: told(HolderField::Name),
                    card: card.clone(),
                    handed_over: settings.inactive.get(card) == Some(&true),
                });
            }
        }
        Ok(Ok(json!({ "cards": cards, "next": next })))
    }

    /// Which card is given out: the named one, or the next blank one.
    pub(crate) fn card_to_issue(
        &self,
        named: Option<CardNumber>,
    ) -> Result<Result<CardNumber, CommandError>, StoreError> {
        let error = |code, message: &str| Ok(Err(CommandError { code, message: message.to_owned() }));
        let Some(card) = named else {
            return match holders::next_blank(self.db, 1)?.pop() {
                Some(card) => Ok(Ok(card)),
                None => error("no_blank_card", "there is no blank card left in stock"),
            };
        };
        if accounts::account_of_card(self.db, &card)?.is_some() {
            return error("card_in_use", "the new card belongs to an account already");
        }
        Ok(Ok(card))
    }

    /// The holder activates a card by the chosen payment PIN.
    pub(crate) fn activate_by_pin(
        &mut self,
        card: &CardNumber,
        typed: &[HashedPin],
    ) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let Some(settings) = self.settings(account)? else {
            return Ok(refused("account", "the account has no document"));
        };
        let intent = Intent::ActivateCard { card: card.clone() };
        if let Err(error) = settings.check(&intent) {
            return Ok(refused(error.code(), error.to_string()));
        }
        let Some(generation) = settings.paying_pin() else {
            return Ok(refused(
                "pin_initial",
                "a payment PIN must be chosen first: the initial one opens its change only",
            ));
        };
        if let Err(error) = self.shown_pin(account, &[generation], typed)? {
            return Ok(Err(error));
        }
        let actor = Actor { kind: ActorKind::Holder, id: holder_key(account)?, proof: Proof::CardAndPin };
        match self.settle_as(account, intent, actor)? {
            Ok(()) => self.account(card),
            Err(error) => Ok(Err(error)),
        }
    }

    /// By which names a PIN must be hashed to bind to a number. Of a number that nobody has, one that nothing tells from
    /// another's.
    pub(crate) fn bind_salts(&self, number: &Key) -> Result<Reply, StoreError> {
        let mut salts = Vec::new();
        if let Some(account) = holders::of_number(self.db, number.as_str())?
            && let Some(settings) = self.settings(account)?
        {
            salts.extend(settings.pins.keys().copied());
        }
        if salts.len() != 1 {
            salts = vec![self.made_up_salt(number)];
        }
        Ok(Ok(json!({ "salts": salts })))
    }

    fn made_up_salt(&self, number: &Key) -> PinGeneration {
        let digest = Sha256::new()
            .chain_update(b"feiqian-bind-1\0")
            .chain_update(self.state.identity.log_key.to_bytes())
            .chain_update(number.as_str())
            .finalize();
        let mut salt = [0; 16];
        salt.copy_from_slice(&digest[..16]);
        PinGeneration(salt)
    }

    /// Binds a user of an app to the account of a number, where name and PIN match too.
    pub(crate) fn bind(
        &mut self,
        number: &Key,
        name: &str,
        typed: &[HashedPin],
        user: Key,
    ) -> Result<Reply, StoreError> {
        let day = self.state.day;
        if holders::bind_tries(self.db, number.as_str(), day)? >= BIND_TRIES_MAX {
            return Ok(refused("bind_locked", "too many tries for this number; come again tomorrow"));
        }
        let Some((account, settings)) = self.matching(number, name, typed)? else {
            holders::add_bind_try(self.db, number.as_str(), day)?;
            return Ok(refused("bind_mismatch", "number, name and PIN do not belong together"));
        };
        if settings.paying_pin().is_none() {
            return Ok(refused(
                "pin_initial",
                "a payment PIN must be chosen first: the initial one opens its change only",
            ));
        }
        if holders::of_user(self.db, user.as_str())?.is_some_and(|other| other != account) {
            return Ok(refused("user_bound", "this user is bound to another account"));
        }
        match settings.holder.get(&HolderField::User) {
            Some(bound) if *bound == user.as_str() => {}
            Some(_) => return Ok(refused("account_bound", "the account is bound to another user")),
            None => {
                let value = Some(user.as_str().to_owned());
                let intent = Intent::Describe { field: HolderField::User, value };
                let actor =
                    Actor { kind: ActorKind::Holder, id: holder_key(account)?, proof: Proof::CardAndPin };
                if let Err(error) = self.settle_as(account, intent, actor)? {
                    return Ok(Err(error));
                }
            }
        }
        Ok(Ok(json!({ "account": account, "user": user })))
    }

    /// The account of a number, where name and PIN are its own.
    fn matching(
        &self,
        number: &Key,
        name: &str,
        typed: &[HashedPin],
    ) -> Result<Option<(AccountId, AccountSettings)>, StoreError> {
        let Some(account) = holders::of_number(self.db, number.as_str())? else { return Ok(None) };
        let Some(settings) = self.settings(account)? else { return Ok(None) };
        let named = settings.holder.get(&HolderField::Name).is_some_and(|own| own == name.trim());
        let mut generations = settings.pins.keys();
        let (Some(generation), None) = (generations.next(), generations.next()) else { return Ok(None) };
        let hash = crate::store::pins::hash(self.db, account, *generation)?;
        let proven =
            typed.iter().any(|typed| typed.generation == *generation && Some(&typed.hash) == hash.as_ref());
        Ok((named && proven && !settings.closed).then_some((account, settings)))
    }

    /// The account of a number, or of a user that it is bound to.
    pub(crate) fn find_holder(
        &mut self,
        number: Option<&Key>,
        user: Option<&Key>,
    ) -> Result<Reply, StoreError> {
        let found = match (number, user) {
            (Some(number), None) => holders::of_number(self.db, number.as_str())?,
            (None, Some(user)) => holders::of_user(self.db, user.as_str())?,
            _ => return Ok(refused("holder", "either a number or a user is expected")),
        };
        let Some(account) = found else { return Ok(refused("unknown_holder", "no account has this holder")) };
        let Some(settings) = self.settings(account)? else {
            return Ok(refused("account", "the account has no document"));
        };
        match settings.cards.keys().next() {
            Some(card) => self.account(card),
            None => Ok(refused("account", "the account has no card")),
        }
    }

    /// Whether something can be told of a holder: a number and a user are one account's.
    pub(crate) fn describable(
        &self,
        account: AccountId,
        field: HolderField,
        value: Option<&str>,
    ) -> Result<Result<(), CommandError>, StoreError> {
        let Some(text) = value else { return Ok(Ok(())) };
        let (code, other) = match field {
            HolderField::Number => ("number_in_use", holders::of_number(self.db, text)?),
            HolderField::User => ("user_bound", holders::of_user(self.db, text)?),
            _ => return Ok(Ok(())),
        };
        let message = || format!("the {} belongs to another account", field.name());
        Ok(match other {
            Some(other) if other != account => Err(CommandError { code, message: message() }),
            _ => Ok(()),
        })
    }
}

impl NewHolder {
    /// What its document tells of the holder.
    fn told(&self) -> Vec<(HolderField, String)> {
        let mut told = vec![
            (HolderField::Name, self.name.clone()),
            (HolderField::Number, self.number.as_str().to_owned()),
        ];
        told.extend(self.department.clone().map(|text| (HolderField::Department, text)));
        told.extend(self.batch.clone().map(|text| (HolderField::Batch, text)));
        told
    }
}
