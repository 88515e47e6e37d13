//! All cards in memory, as taps look them up: a copy of the table `cards`, read when the database is opened.
//!
//! A tap reads one page less for it, and hardly ever one that no other tap has just used. A card takes some 130 bytes: most
//! accounts of a campus have the same terms, which are kept once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use feiqian_protocol::account::{AccountSettings, CardStatus};
use feiqian_protocol::ids::{AccountId, CardNumber};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::BusinessDay;
use rusqlite::{Connection, Row};

use super::StoreError;
use super::accounts::{Holder, read_card_status};
use super::settings::in_force;

/// See the top of the module. It is only ever asked for one card, so it has no order.
#[derive(Debug, Default)]
pub(super) struct Cards {
    by_number: HashMap<CardNumber, Vec<Card>>,
    terms: BTreeSet<Arc<Terms>>,
    /// True where something was put that is not committed yet.
    touched: bool,
}

/// A card of one account. Several accounts may have had the card, one after the other.
#[derive(Debug, Eq, PartialEq)]
struct Card {
    account: AccountId,
    status: CardStatus,
    terms: Arc<Terms>,
}

/// What else of an account's settings taps go by.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Terms {
    class: String,
    groups: Vec<String>,
    single_limit: Fen,
    daily_limit: Fen,
    frozen: bool,
    closed: bool,
    valid_until: Option<BusinessDay>,
}

impl Cards {
    /// Reads all of them.
    pub(super) fn load(connection: &Connection) -> Result<Self, StoreError> {
        let mut cards = Self::default();
        let mut statement = connection.prepare(
            "SELECT card, account, status, frozen, closed, class, single_limit, daily_limit, groups,
               valid_until FROM cards",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let number = CardNumber::new(row.get::<_, String>(0)?)
                .map_err(|_| StoreError::damaged("a card has no number"))?;
            let (account, status) = (AccountId(row.get::<_, i64>(1)? as u64), read_card_status(row.get(2)?)?);
            let terms = read_terms(row)?;
            cards.put_card(number, account, status, terms);
        }
        Ok(cards)
    }

    /// The account of a card. Where several accounts have had the card, the one where it may be used.
    pub(super) fn holder(&self, card: &CardNumber) -> Option<Holder> {
        let cards = self.by_number.get(card)?;
        let Card { account, status, terms } = cards.iter().min_by_key(|card| (card.status, card.account))?;
        Some(Holder {
            account: *account,
            card: *status,
            frozen: terms.frozen,
            closed: terms.closed,
            class: terms.class.clone(),
            single_limit: terms.single_limit,
            daily_limit: terms.daily_limit,
            groups: terms.groups.clone(),
            valid_until: terms.valid_until,
        })
    }

    /// Keeps the cards of an account. A card never leaves a document; what a building alone went by is forgotten by name.
    pub(super) fn put(&mut self, account: AccountId, settings: &AccountSettings) {
        self.touched = true;
        for (card, status) in &settings.cards {
            let terms = Terms {
                class: settings.class.clone(),
                groups: settings.groups_of(card),
                single_limit: settings.single_limit,
                daily_limit: settings.daily_limit,
                frozen: settings.frozen,
                closed: settings.closed,
                valid_until: settings.valid_until,
            };
            self.put_card(card.clone(), account, *status, terms);
        }
    }

    /// A card that is none of the account's after all.
    pub(super) fn forget(&mut self, card: &CardNumber, account: AccountId) {
        self.touched = true;
        if let Some(cards) = self.by_number.get_mut(card) {
            cards.retain(|card| card.account != account);
            if cards.is_empty() {
                self.by_number.remove(card);
            }
        }
    }

    fn put_card(&mut self, number: CardNumber, account: AccountId, status: CardStatus, terms: Terms) {
        let terms = match self.terms.get(&terms) {
            Some(kept) => kept.clone(),
            None => {
                let terms = Arc::new(terms);
                self.terms.insert(terms.clone());
                terms
            }
        };
        let cards = self.by_number.entry(number).or_default();
        match cards.iter_mut().find(|card| card.account == account) {
            Some(card) => {
                card.status = status;
                let before = std::mem::replace(&mut card.terms, terms);
                // One is kept here, one is at hand.
                if Arc::strong_count(&before) == 2 {
                    self.terms.remove(&before);
                }
            }
            None => {
                cards.reserve_exact(1);
                cards.push(Card { account, status, terms });
            }
        }
    }

    /// The accounts that have a card here which is not, or is another, there.
    fn missing_in(&self, other: &Self) -> BTreeSet<AccountId> {
        let missing = self.by_number.iter().flat_map(|(number, cards)| {
            let there = other.by_number.get(number).map(Vec::as_slice).unwrap_or_default();
            cards.iter().filter(|card| !there.contains(card)).map(|card| card.account)
        });
        missing.collect()
    }

    /// What was put is committed.
    pub(super) const fn committed(&mut self) {
        self.touched = false;
    }

    /// True where something was put since the last commit, which is wrong if that was taken back.
    pub(super) const fn touched(&self) -> bool {
        self.touched
    }

    /// Reads all of them again, within a transaction in which some were put.
    pub(super) fn load_again(&mut self, connection: &Connection) -> Result<(), StoreError> {
        *self = Self::load(connection)?;
        self.touched = true;
        Ok(())
    }
}

/// The accounts whose cards are not what their documents say.
pub(crate) fn unlike_documents(connection: &Connection) -> Result<BTreeSet<AccountId>, StoreError> {
    let held = Cards::load(connection)?;
    let mut expected = Cards::default();
    let mut statement = connection.prepare("SELECT account, projection FROM documents")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let account = AccountId(row.get::<_, i64>(0)? as u64);
        match serde_json::from_str(&row.get::<_, String>(1)?) {
            Ok(settings) => expected.put(account, &in_force(connection, account, &settings)?),
            Err(_) => {
                return Err(StoreError::damaged(format!("the settings of account {account} are malformed")));
            }
        }
    }
    let mut unlike = held.missing_in(&expected);
    unlike.append(&mut expected.missing_in(&held));
    Ok(unlike)
}

fn read_terms(row: &Row<'_>) -> Result<Terms, rusqlite::Error> {
    Ok(Terms {
        frozen: row.get(3)?,
        closed: row.get(4)?,
        class: row.get(5)?,
        single_limit: Fen::new(row.get(6)?),
        daily_limit: Fen::new(row.get(7)?),
        groups: row.get_ref(8)?.as_str()?.lines().map(str::to_owned).collect(),
        valid_until: row.get::<_, Option<i32>>(9)?.map(BusinessDay),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(class: &str, status: CardStatus) -> AccountSettings {
        AccountSettings {
            class: class.to_owned(),
            frozen: false,
            closed: false,
            single_limit: Fen::new(1),
            daily_limit: Fen::new(2),
            groups: Vec::new(),
            cards: [(CardNumber::new("c1").unwrap(), status)].into(),
            ..AccountSettings::default()
        }
    }

    #[test]
    fn a_card_is_of_the_account_where_it_may_be_used_and_terms_are_kept_once() {
        let mut cards = Cards::default();
        let card = CardNumber::new("c1").unwrap();
        assert_eq!(cards.holder(&card), None);
        cards.put(AccountId(1), &settings("student", CardStatus::Lost));
        cards.put(AccountId(2), &settings("student", CardStatus::Active));
        assert_eq!(cards.terms.len(), 1);
        let holder = cards.holder(&card).unwrap();
        assert_eq!((holder.account, holder.card), (AccountId(2), CardStatus::Active));
        cards.put(AccountId(2), &settings("staff", CardStatus::Void));
        let holder = cards.holder(&card).unwrap();
        assert_eq!(
            (holder.account, holder.card, holder.class.as_str()),
            (AccountId(1), CardStatus::Lost, "student")
        );
        cards.put(AccountId(1), &settings("staff", CardStatus::Lost));
        assert_eq!(cards.terms.len(), 1, "what nobody has any more is forgotten");
    }
}
