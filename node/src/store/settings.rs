//! Settings that this node wrote and that the account's stream does not have yet: taps go by them on top of the document. A card
//! that was shown here with the centre's word for it stands among them.

use std::collections::BTreeSet;

use feiqian_protocol::account::{AccountSettings, Intent};
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::chain::Cursor;
use feiqian_protocol::ids::{AccountId, CardNumber};
use feiqian_protocol::issuance::{Issuance, SignedIssuance};
use rusqlite::{Connection, params};

use super::{Store, StoreError};

/// Refused settings that are kept, for the status.
const REFUSED_KEPT: i64 = 64;

/// The table; see the top of [`super`]. `stream_position` is where the account's stream has the setting, once the centre has said so;
/// `change` is the change of the document or, of a card that was shown, the centre's word.
pub(super) const SCHEMA: &str = "
CREATE TABLE own_settings (
    position INTEGER PRIMARY KEY, account INTEGER NOT NULL, intent BLOB NOT NULL, change BLOB NOT NULL,
    stream_position INTEGER, refused TEXT
);
";

/// A setting that this node wrote.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct OwnSetting {
    /// Its position in the own log.
    pub(crate) position: u64,
    /// What it means.
    pub(crate) intent: Intent,
    /// The change of the document; of a card that was shown, the centre's word.
    pub(crate) change: Vec<u8>,
}

impl OwnSetting {
    /// A card that was shown.
    pub(crate) fn shown(position: u64, signed: &SignedIssuance) -> Self {
        let intent = Intent::IssueCard { card: signed.issuance.card.clone() };
        let change = minicbor::to_vec(signed).expect("writing to a Vec cannot fail");
        Self { position, intent, change }
    }

    fn issuance(&self) -> Result<Option<Issuance>, StoreError> {
        if !matches!(self.intent, Intent::IssueCard { .. }) {
            return Ok(None);
        }
        let signed: SignedIssuance = minicbor::decode(&self.change)
            .map_err(|error| StoreError::damaged(format!("a card that was shown here: {error}")))?;
        Ok(Some(signed.issuance))
    }

    /// Makes of settings what they are by this.
    pub(crate) fn act_on(&self, settings: &mut AccountSettings) -> Result<(), StoreError> {
        match self.issuance()? {
            Some(Issuance { card, replaces, .. }) => settings.show_card(&card, replaces.as_ref()),
            None => settings.narrow(&self.intent),
        }
        Ok(())
    }
}

impl Store {
    /// Keeps a setting until the account's stream has it.
    pub(crate) fn put_own_setting(&self, account: AccountId, setting: &OwnSetting) -> Result<(), StoreError> {
        let intent = minicbor::to_vec(&setting.intent).expect("writing to a Vec cannot fail");
        self.connection
            .prepare_cached("INSERT INTO own_settings VALUES (?1, ?2, ?3, ?4, NULL, NULL)")?
            .execute(params![setting.position as i64, account.0 as i64, intent, setting.change])?;
        Ok(())
    }

    /// Settings of an account that taps still go by, in the order of the log.
    pub(crate) fn own_settings(&self, account: AccountId) -> Result<Vec<OwnSetting>, StoreError> {
        of_account(&self.connection, account)
    }

    /// The centre has said where the account's stream has a setting, or why it was refused; returns the account, unless the
    /// setting is not known here.
    pub(crate) fn answer_own_setting(
        &self,
        position: u64,
        stream_position: u64,
        refused: Option<&str>,
    ) -> Result<Option<AccountId>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "UPDATE own_settings SET stream_position = ?2, refused = ?3 WHERE position = ?1 RETURNING account",
        )?;
        let mut rows = statement.query(params![position as i64, stream_position as i64, refused])?;
        let account = rows.next()?.map(|row| row.get::<_, i64>(0)).transpose()?;
        drop(rows);
        if refused.is_some() {
            self.connection
                .prepare_cached(
                    "DELETE FROM own_settings WHERE refused IS NOT NULL AND position NOT IN
                     (SELECT position FROM own_settings WHERE refused IS NOT NULL ORDER BY position DESC LIMIT ?1)",
                )?
                .execute([REFUSED_KEPT])?;
        }
        Ok(account.map(|account| AccountId(account as u64)))
    }

    /// Forgets cards of an account that only the centre's word stood for, and which it does not stand by any more.
    pub(crate) fn forget_cards(&self, account: AccountId) -> Result<(), StoreError> {
        let Some(settings) = self.settings_in_force(account)? else { return Ok(()) };
        let mut statement = self.connection.prepare_cached("SELECT card FROM cards WHERE account = ?1")?;
        let cards = statement.query_map([account.0 as i64], |row| row.get::<_, String>(0))?;
        for card in cards {
            let card = CardNumber::new(card?).map_err(|_| StoreError::damaged("a card has no number"))?;
            if !settings.cards.contains_key(&card) {
                self.connection
                    .prepare_cached("DELETE FROM cards WHERE card = ?1 AND account = ?2")?
                    .execute(params![card.as_str(), account.0 as i64])?;
                self.cards.borrow_mut().forget(&card, account);
            }
        }
        Ok(())
    }

    /// Forgets settings that the account's stream has, as far as it is applied; returns their accounts.
    pub(crate) fn settle_own_settings(&self, shards: &[Cursor]) -> Result<BTreeSet<AccountId>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT position, account, stream_position FROM own_settings
             WHERE stream_position IS NOT NULL AND refused IS NULL",
        )?;
        let mut rows = statement.query([])?;
        let mut settled = Vec::new();
        while let Some(row) = rows.next()? {
            let account = AccountId(row.get::<_, i64>(1)? as u64);
            let applied = shards.get(usize::from(account.shard())).map_or(0, |cursor| cursor.position);
            if row.get::<_, i64>(2)? as u64 <= applied {
                settled.push((row.get::<_, i64>(0)?, account));
            }
        }
        for (position, _) in &settled {
            self.connection
                .prepare_cached("DELETE FROM own_settings WHERE position = ?1")?
                .execute([position])?;
        }
        Ok(settled.into_iter().map(|(_, account)| account).collect())
    }

    /// How many settings wait for the centre, and how many were refused lately.
    pub(crate) fn own_settings_count(&self) -> Result<(u64, u64), StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT count(*) FILTER (WHERE refused IS NULL), count(*) FILTER (WHERE refused IS NOT NULL) FROM own_settings",
        )?;
        Ok(statement.query_row([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?)
    }
}

/// What taps go by: the document's settings, changed by what was written here and is not in the document yet.
pub(crate) fn in_force(
    connection: &Connection,
    account: AccountId,
    settings: &AccountSettings,
) -> Result<AccountSettings, StoreError> {
    let mut in_force = settings.clone();
    for own in of_account(connection, account)?.iter().filter(|_| !planted(Canary::OwnSettingForgotten)) {
        own.act_on(&mut in_force)?;
    }
    Ok(in_force)
}

/// The positions of settings that taps still go by.
pub(crate) fn positions(connection: &Connection) -> Result<BTreeSet<u64>, StoreError> {
    let mut statement = connection.prepare("SELECT position FROM own_settings WHERE refused IS NULL")?;
    let positions = statement.query_map([], |row| Ok(row.get::<_, i64>(0)? as u64))?;
    Ok(positions.collect::<Result<_, _>>()?)
}

fn of_account(connection: &Connection, account: AccountId) -> Result<Vec<OwnSetting>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT position, intent, change FROM own_settings WHERE account = ?1 AND refused IS NULL ORDER BY position",
    )?;
    let mut rows = statement.query([account.0 as i64])?;
    let mut settings = Vec::new();
    while let Some(row) = rows.next()? {
        let intent = minicbor::decode(&row.get::<_, Vec<u8>>(1)?)
            .map_err(|error| StoreError::damaged(format!("a setting that was written here: {error}")))?;
        settings.push(OwnSetting { position: row.get::<_, i64>(0)? as u64, intent, change: row.get(2)? });
    }
    Ok(settings)
}
