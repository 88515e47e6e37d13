//! Accounts as a tap sees them: settings, wallets with their rights, allowance shares, hints, pools, losses.

use std::collections::BTreeMap;

use feiqian_protocol::account::{AccountSettings, CardStatus};
use feiqian_protocol::ids::{AccountId, CardNumber, LogId, Wallet};
use feiqian_protocol::limits::{ACCOUNT_END, SHARDS};
use feiqian_protocol::money::Fen;
use feiqian_protocol::rights::{Row, Share};
use feiqian_protocol::time::BusinessDay;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};

use super::settings::in_force;
use super::{Store, StoreError};

/// A card and its account, as far as a tap needs them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// The account.
    pub account: AccountId,
    /// Whether the card may be used.
    pub card: CardStatus,
    /// No purchases.
    pub frozen: bool,
    /// No more anything.
    pub closed: bool,
    /// Patron class.
    pub class: String,
    /// No-PIN limit of a purchase.
    pub single_limit: Fen,
    /// No-PIN allowance of a day.
    pub daily_limit: Fen,
    /// Groups.
    pub groups: Vec<String>,
    /// The last day on which the card is good; for ever where there is none.
    pub valid_until: Option<BusinessDay>,
}

/// One wallet of an account: its posted balance, what was done here since, and the rights of the open epoch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct WalletState {
    /// Posted balance.
    pub posted: Fen,
    /// Effects of the own log that no posted batch has named: negative for spending.
    pub own: Fen,
    /// Rights.
    pub row: Row,
}

impl WalletState {
    /// The balance as far as this node knows.
    pub fn balance(&self) -> Fen {
        self.posted + self.own
    }
}

/// Both wallets of an account.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Purse {
    /// Money given for a purpose.
    pub subsidy: WalletState,
    /// The holder's own money.
    pub cash: WalletState,
}

impl Purse {
    /// One wallet, to change.
    pub(crate) const fn wallet_mut(&mut self, wallet: Wallet) -> &mut WalletState {
        match wallet {
            Wallet::Cash => &mut self.cash,
            Wallet::Subsidy => &mut self.subsidy,
        }
    }
}

/// Sums over all rows, for the status.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Totals {
    /// Accounts.
    pub(crate) accounts: u64,
    /// Unspent right.
    pub(crate) unspent: Fen,
    /// Stand-in that may still be used.
    pub(crate) stand_in_left: Fen,
    /// Debits that are not acknowledged.
    pub(crate) exposed: Fen,
}

/// The number of a card's status in tables.
pub(super) const fn status_number(status: CardStatus) -> u8 {
    match status {
        CardStatus::Active => 0,
        CardStatus::Lost => 1,
        CardStatus::Void => 2,
        CardStatus::Inactive => 3,
        CardStatus::Legacy => 4,
    }
}

/// The status of a stored number.
pub(super) fn read_card_status(number: u8) -> Result<CardStatus, StoreError> {
    [CardStatus::Active, CardStatus::Lost, CardStatus::Void, CardStatus::Inactive, CardStatus::Legacy]
        .into_iter()
        .find(|status| status_number(*status) == number)
        .ok_or_else(|| StoreError::damaged(format!("{number} is no status of a card")))
}

/// What a tap is judged by: who holds the card, and what is there for the account.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Card and account.
    pub(crate) holder: Holder,
    /// Both wallets.
    pub(crate) purse: Purse,
    /// The allowance share.
    pub(crate) share: Share,
}

/// The key of a wallet. The wallets of an account stand side by side.
pub(crate) fn wallet_id(account: AccountId, wallet: Wallet) -> Result<i64, StoreError> {
    Ok(wallets_from(account)? | i64::from(wallet.number()))
}

/// Before the key of the first wallet of an account; the last one is at most three above.
fn wallets_from(account: AccountId) -> Result<i64, StoreError> {
    if account.0 >= ACCOUNT_END {
        return Err(StoreError::damaged(format!("{account} is no number of an account")));
    }
    Ok((account.0 as i64) << 2)
}

impl Store {
    /// All that a tap with this card is judged by. Where several accounts have had the card, of the one where it may be
    /// used.
    pub(crate) fn facts(&self, card: &CardNumber) -> Result<Option<Facts>, StoreError> {
        let Some(holder) = self.cards.borrow().holder(card) else { return Ok(None) };
        let (purse, share) = self.purse_and_share(holder.account)?;
        Ok(Some(Facts { holder, purse, share }))
    }

    /// The account of a card.
    pub(crate) fn account_of(&self, card: &CardNumber) -> Option<AccountId> {
        self.cards.borrow().holder(card).map(|holder| holder.account)
    }

    /// The same of an account whose card is not known here, as if it were a good one.
    pub(crate) fn facts_of_account(&self, account: AccountId) -> Result<Option<Facts>, StoreError> {
        let Some(settings) = self.settings_in_force(account)? else { return Ok(None) };
        let holder = Holder {
            account,
            card: CardStatus::Active,
            frozen: settings.frozen,
            closed: settings.closed,
            class: settings.class,
            single_limit: settings.single_limit,
            daily_limit: settings.daily_limit,
            groups: settings.groups,
            valid_until: settings.valid_until,
        };
        let (purse, share) = self.purse_and_share(account)?;
        Ok(Some(Facts { holder, purse, share }))
    }

    /// What taps of an account go by: what its document comes to, with what was written here on top.
    pub(crate) fn settings_in_force(
        &self,
        account: AccountId,
    ) -> Result<Option<AccountSettings>, StoreError> {
        let settings = self.settings(account)?;
        settings.map(|settings| in_force(&self.connection, account, &settings)).transpose()
    }

    /// What the document of an account comes to; what was written here is not on top of it.
    pub(crate) fn settings(&self, account: AccountId) -> Result<Option<AccountSettings>, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT projection FROM documents WHERE account = ?1")?;
        let projection: Option<String> =
            statement.query_row([account.0 as i64], |row| row.get(0)).optional()?;
        let read = |projection: String| {
            serde_json::from_str(&projection)
                .map_err(|_| StoreError::damaged(format!("the settings of account {account} are malformed")))
        };
        projection.map(read).transpose()
    }

    /// Keeps a document and what a tap reads of it, with what was written here on top.
    pub(crate) fn put_account(
        &self,
        account: AccountId,
        saved: &[u8],
        heads: &[String],
        settings: &AccountSettings,
    ) -> Result<(), StoreError> {
        let key = account.0 as i64;
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO documents VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![key, saved, heads.join(" "), settings.canonical()])?;
        let settings = &in_force(&self.connection, account, settings)?;
        // A card never leaves a document, so writing all of them is enough.
        let mut statement = self.connection.prepare_cached(
            "INSERT OR REPLACE INTO cards VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        for (card, status) in &settings.cards {
            statement.execute(params![
                card.as_str(),
                key,
                status_number(*status),
                settings.frozen,
                settings.closed,
                settings.class,
                settings.single_limit.get(),
                settings.daily_limit.get(),
                settings.groups_of(card).join("\n"),
                settings.valid_until.map(|day| day.0),
            ])?;
        }
        self.cards.borrow_mut().put(account, settings);
        Ok(())
    }

    /// The saved document of an account.
    pub(crate) fn document(&self, account: AccountId) -> Result<Option<Vec<u8>>, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT saved FROM documents WHERE account = ?1")?;
        Ok(statement.query_row([account.0 as i64], |row| row.get(0)).optional()?)
    }

    /// Both wallets of an account.
    pub(crate) fn purse(&self, account: AccountId) -> Result<Purse, StoreError> {
        Ok(self.purse_and_share(account)?.0)
    }

    /// An account's allowance share.
    pub(crate) fn share(&self, account: AccountId) -> Result<Share, StoreError> {
        Ok(self.purse_and_share(account)?.1)
    }

    fn purse_and_share(&self, account: AccountId) -> Result<(Purse, Share), StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id & 3, posted, own, granted, unspent, released, stand_in_granted, stand_in_left, share
             FROM wallets WHERE id > ?1 AND id <= ?1 + 3",
        )?;
        let mut rows = statement.query([wallets_from(account)?])?;
        let (mut purse, mut share) = (Purse::default(), Share::default());
        while let Some(row) = rows.next()? {
            read_wallet_row(row, 1, row.get(0)?, &mut purse, &mut share)?;
        }
        self.recent.borrow().lay_over(account, &mut purse, &mut share);
        Ok((purse, share))
    }

    /// Keeps the rights and own effects of a wallet; the posted balance is left alone.
    pub(crate) fn put_wallet(
        &self,
        account: AccountId,
        wallet: Wallet,
        state: &WalletState,
    ) -> Result<(), StoreError> {
        if wallet == Wallet::Cash {
            self.fold()?;
        }
        let row = &state.row;
        let values = params![
            wallet_id(account, wallet)?,
            state.own.get(),
            row.granted.get(),
            row.unspent.get(),
            row.released.get(),
            row.stand_in_granted.get(),
            row.stand_in_left.get(),
        ];
        let known = self
            .connection
            .prepare_cached(
                "UPDATE wallets SET own = ?2, granted = ?3, unspent = ?4, released = ?5, stand_in_granted = ?6,
                 stand_in_left = ?7 WHERE id = ?1",
            )?
            .execute(values)?;
        if known == 0 {
            self.connection
                .prepare_cached(
                    "INSERT INTO wallets (id, own, granted, unspent, released, stand_in_granted, stand_in_left)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(values)?;
        }
        Ok(())
    }

    /// Moves a posted balance.
    pub(crate) fn add_posted(
        &self,
        account: AccountId,
        wallet: Wallet,
        amount: Fen,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO wallets (id, posted) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET posted = coalesce(posted, 0) + ?2",
            )?
            .execute(params![wallet_id(account, wallet)?, amount.get()])?;
        Ok(())
    }

    /// Takes out of the own effects what a posted batch has named: everything of a shard up to a position.
    pub(crate) fn settle(&self, shard: u8, position: u64) -> Result<(), StoreError> {
        let before = self.posted_head(shard)?;
        if position <= before {
            return Ok(());
        }
        self.fold()?;
        self.connection
            .prepare_cached(
                "INSERT INTO posted VALUES (?1, ?2) ON CONFLICT DO UPDATE SET position = excluded.position",
            )?
            .execute(params![shard, position as i64])?;
        let mut effects = self.connection.prepare_cached(
            "SELECT account << 2 | wallet, -amount FROM debits
             WHERE position > ?1 AND position <= ?2 AND account % ?4 = ?3
             UNION ALL SELECT account << 2 | wallet, amount FROM reversals
             WHERE position > ?1 AND position <= ?2 AND account % ?4 = ?3",
        )?;
        let mut statement =
            self.connection.prepare_cached("UPDATE wallets SET own = own - ?2 WHERE id = ?1")?;
        let mut rows = effects.query(params![before as i64, position as i64, shard, SHARDS])?;
        while let Some(row) = rows.next()? {
            statement.execute(params![row.get::<_, i64>(0)?, row.get::<_, i64>(1)?])?;
        }
        Ok(())
    }

    /// The position of the own log that the newest posted batch of a shard names.
    pub(crate) fn posted_head(&self, shard: u8) -> Result<u64, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT position FROM posted WHERE shard = ?1")?;
        let position: Option<i64> = statement.query_row([shard], |row| row.get(0)).optional()?;
        Ok(position.unwrap_or(0) as u64)
    }

    /// Keeps an allowance share; days before `horizon` are summed up.
    pub(crate) fn put_share(
        &self,
        account: AccountId,
        share: &Share,
        horizon: BusinessDay,
    ) -> Result<(), StoreError> {
        self.fold()?;
        self.connection
            .prepare_cached(
                "INSERT INTO wallets (id, share) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET share = ?2",
            )?
            .execute(params![wallet_id(account, Wallet::Cash)?, encode_share(share, horizon)])?;
        Ok(())
    }

    /// Ends the epoch: every right is nothing.
    pub(crate) fn end_rows(&self) -> Result<(), StoreError> {
        self.fold()?;
        self.connection.execute(
            "UPDATE wallets SET granted = 0, unspent = 0, released = 0, stand_in_granted = 0, stand_in_left = 0,
             share = NULL",
            [],
        )?;
        Ok(())
    }

    /// Keeps a loss until the entry that says so is applied.
    pub(crate) fn put_loss(
        &self,
        card: &CardNumber,
        account: AccountId,
        log: LogId,
        position: u64,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO hotlist VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![card.as_str(), account.0 as i64, log.key(), position as i64])?;
        Ok(())
    }

    /// Forgets losses whose entries are applied; true where there were any.
    pub(crate) fn forget_losses(&self, log: LogId, position: u64) -> Result<bool, StoreError> {
        let forgotten = self
            .connection
            .prepare_cached("DELETE FROM hotlist WHERE log = ?1 AND position <= ?2")?
            .execute(params![log.key(), position as i64])?;
        Ok(forgotten > 0)
    }

    /// The cards that were told lost ahead of their entries.
    pub(crate) fn losses(&self) -> Result<BTreeMap<CardNumber, Vec<AccountId>>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT card, account FROM hotlist")?;
        let mut rows = statement.query([])?;
        let mut losses: BTreeMap<CardNumber, Vec<AccountId>> = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let card = CardNumber::new(row.get::<_, String>(0)?)
                .map_err(|_| StoreError::damaged("a card in the hotlist is no card"))?;
            losses.entry(card).or_default().push(AccountId(row.get::<_, i64>(1)? as u64));
        }
        Ok(losses)
    }

    /// Sums over all rows.
    pub(crate) fn totals(&self, acked: u64) -> Result<Totals, StoreError> {
        let (unspent, stand_in_left) = self.connection.query_row(
            "SELECT coalesce(sum(unspent), 0), coalesce(sum(stand_in_left), 0) FROM wallets_now",
            [],
            |row| Ok((Fen::new(row.get(0)?), Fen::new(row.get(1)?))),
        )?;
        let accounts: i64 =
            self.connection.query_row("SELECT count(DISTINCT account) FROM cards", [], |row| row.get(0))?;
        let exposed = self.debited(acked, i64::MAX as u64)?;
        Ok(Totals { accounts: accounts as u64, unspent, stand_in_left, exposed })
    }
}

/// The wallet of a stored number.
pub(crate) fn read_wallet(number: u8) -> Result<Wallet, StoreError> {
    Wallet::from_number(number).ok_or_else(|| StoreError::damaged(format!("{number} is no wallet")))
}

/// Reads a wallet, whose columns begin at `from` with the posted balance and end with the share, into its place.
fn read_wallet_row(
    row: &rusqlite::Row<'_>,
    from: usize,
    wallet: u8,
    purse: &mut Purse,
    share: &mut Share,
) -> Result<(), StoreError> {
    let fen = |column: usize| row.get(from + column).map(Fen::new);
    *purse.wallet_mut(read_wallet(wallet)?) = WalletState {
        posted: row.get::<_, Option<i64>>(from)?.map_or(Fen::ZERO, Fen::new),
        own: fen(1)?,
        row: Row {
            granted: fen(2)?,
            unspent: fen(3)?,
            released: fen(4)?,
            stand_in_granted: fen(5)?,
            stand_in_left: fen(6)?,
        },
    };
    match row.get_ref(from + 7)? {
        ValueRef::Null => {}
        ValueRef::Blob(bytes) => *share = decode_share(bytes)?,
        _ => return Err(StoreError::damaged("an allowance share is no blob")),
    }
    Ok(())
}

pub(super) fn encode_share(share: &Share, horizon: BusinessDay) -> Vec<u8> {
    let share = if is_summed_up(share, horizon) { share } else { &summed_up(share, horizon) };
    let mut bytes = Vec::with_capacity(64);
    minicbor::encode((share.granted, &share.net_from, &share.used_on, &share.used_in), &mut bytes)
        .expect("writing to a Vec cannot fail");
    bytes
}

/// The share of its bytes: granted so far, net by first day, used by day and in meal periods.
pub(crate) fn decode_share(bytes: &[u8]) -> Result<Share, StoreError> {
    let (granted, net_from, used_on, used_in) =
        minicbor::decode(bytes).map_err(|_| StoreError::damaged("an allowance share is malformed"))?;
    Ok(Share { net_from, used_on, used_in, granted })
}

/// The share with everything before `horizon` summed up: one first day stands for all of them, and what was used then
/// is forgotten. Days from `horizon` on have the same left, earlier ones at most what they had.
pub(crate) fn summed_up(share: &Share, horizon: BusinessDay) -> Share {
    let mut net_from: BTreeMap<BusinessDay, Fen> =
        share.net_from.range(horizon..).map(|(day, net)| (*day, *net)).collect();
    if let Some((newest, _)) = share.net_from.range(..horizon).next_back() {
        net_from.insert(*newest, share.net_from.range(..horizon).map(|(_, net)| *net).sum());
    }
    net_from.retain(|_, net| *net != Fen::ZERO);
    let used_on = share
        .used_on
        .range(horizon..)
        .map(|(day, used)| (*day, *used))
        .filter(|(_, used)| *used != Fen::ZERO)
        .collect();
    Share { net_from, used_on, used_in: share.used_in.clone(), granted: share.granted }
}

/// True where [`summed_up`] would change nothing.
fn is_summed_up(share: &Share, horizon: BusinessDay) -> bool {
    let sums = [&share.net_from, &share.used_on];
    share.net_from.range(..horizon).nth(1).is_none()
        && share.used_on.range(..horizon).next().is_none()
        && sums.iter().all(|sums| sums.values().all(|sum| *sum != Fen::ZERO))
}

/// Every share of a database.
pub(crate) fn shares(connection: &Connection) -> Result<BTreeMap<AccountId, Share>, StoreError> {
    let mut statement =
        connection.prepare("SELECT account, share FROM wallets_now WHERE share IS NOT NULL")?;
    let rows = statement
        .query_map([], |row| Ok((AccountId(row.get::<_, i64>(0)? as u64), row.get::<_, Vec<u8>>(1)?)))?
        .collect::<Result<Vec<_>, _>>()?;
    rows.into_iter().map(|(account, bytes)| Ok((account, decode_share(&bytes)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summing_up_old_days_keeps_what_is_left_from_the_horizon_on() {
        let day = BusinessDay;
        let share = Share {
            net_from: [(day(1), 50), (day(3), -20), (day(9), 10)].map(|(d, f)| (d, Fen::new(f))).into(),
            used_on: [(day(2), 5), (day(9), 7)].map(|(d, f)| (d, Fen::new(f))).into(),
            used_in: [((day(9), 1), Fen::new(7))].into(),
            granted: Fen::new(60),
        };
        let short = summed_up(&share, day(8));
        assert_eq!((short.net_from.len(), short.used_in.len()), (2, 1));
        for later in 8..12 {
            assert_eq!(short.left(day(later)), share.left(day(later)));
        }
        assert!(short.left(day(2)) <= share.left(day(2)));
        assert_eq!(summed_up(&short, day(8)), short);
        assert!(is_summed_up(&short, day(8)) && !is_summed_up(&share, day(8)));
        assert!(
            !is_summed_up(&share, day(4)) && is_summed_up(&share, day(2)) && !is_summed_up(&short, day(10))
        );
        assert_eq!(summed_up(&summed_up(&share, day(5)), day(8)), short);
    }
}
