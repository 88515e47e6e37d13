//! What taps have left lately, not yet in its place.
//!
//! First answers and wallets lie all over two large tables: written with each tap, nearly every row would take a page of its
//! own, once into the log of the database and once into the file. So a tap appends one row to `recent`, with its commit, and
//! what stands there is folded into the tables some thousand taps at a time, in the order of the tables. All of it is on the
//! disk all the time: `taps_now` and `wallets_now` show both together, and here is a copy in memory for looking up.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use feiqian_protocol::ids::{AccountId, Key, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::rights::Share;
use feiqian_protocol::time::BusinessDay;
use rusqlite::{Connection, OptionalExtension, ToSql};

use super::accounts::{Purse, WalletState, decode_share, encode_share, summed_up, wallet_id};
use super::taps::{TAP_COLUMNS, TapRow, bind_tap, read_tap};
use super::{Store, StoreError};

/// Rows that are folded into the tables at once: enough for most pages to be written for several rows; not so many that the
/// tap in whose step it happens waits for longer than some tens of milliseconds.
const RECENT_TAPS_MAX: usize = 4_096;

/// After a fold that failed (the disk is full), it is tried again after so many more rows.
const FOLD_AGAIN_AFTER: usize = 256;

// The views name the cash wallet by its number.
const _: () = assert!(Wallet::Cash.number() == 1);

pub(super) const SCHEMA: &str = "
CREATE TABLE recent (
    terminal INTEGER NOT NULL, epoch INTEGER NOT NULL, sequence TEXT NOT NULL, kind INTEGER NOT NULL,
    digest BLOB, card TEXT NOT NULL, account INTEGER NOT NULL, reason INTEGER NOT NULL, amount INTEGER NOT NULL,
    stand_in INTEGER NOT NULL, reversed INTEGER NOT NULL, clock INTEGER NOT NULL, position INTEGER PRIMARY KEY,
    debits INTEGER NOT NULL,
    own INTEGER, unspent INTEGER, stand_in_left INTEGER, share BLOB
);
CREATE VIEW taps_now AS
    SELECT terminal, epoch, sequence, kind, digest, card, account, reason, amount, stand_in, reversed, clock, position, debits
    FROM taps
    UNION ALL
    SELECT terminal, epoch, sequence, kind, digest, card, account, reason, amount, stand_in, reversed, clock, position, debits
    FROM recent;
CREATE VIEW recent_wallets AS
    SELECT account << 2 | 1 AS id, own, unspent, stand_in_left, share, max(position) AS position
    FROM recent WHERE own IS NOT NULL GROUP BY account;
CREATE VIEW wallets_now AS
    SELECT wallets.id, posted, coalesce(recent.own, wallets.own) AS own, granted,
        coalesce(recent.unspent, wallets.unspent) AS unspent, released, stand_in_granted,
        coalesce(recent.stand_in_left, wallets.stand_in_left) AS stand_in_left,
        coalesce(recent.share, wallets.share) AS share, account, wallet
    FROM wallets LEFT JOIN recent_wallets AS recent ON recent.id = wallets.id;
";

/// What a tap left of the cash wallet of its account.
#[derive(Clone, Debug)]
struct Spent {
    own: Fen,
    unspent: Fen,
    stand_in_left: Fen,
    share: Share,
}

/// By terminal, a key beyond which none was used: by epoch, then by the length of the sequence, then by its text, which is how
/// numbers count. Terminals count their taps, so hardly ever must a table be looked into for an earlier use.
#[derive(Debug, Default)]
pub(super) struct Newest(BTreeMap<i64, (u32, usize, Key)>);

/// See the top of the module.
#[derive(Debug, Default)]
pub(super) struct Recent {
    taps: BTreeMap<(i64, u32, Key), TapRow>,
    wallets: BTreeMap<AccountId, Spent>,
    /// How many rows there may be before they are folded.
    limit: usize,
    /// True where something was put or folded that is not committed yet.
    touched: bool,
}

impl Recent {
    /// Reads all of it.
    pub(super) fn load(connection: &Connection) -> Result<Self, StoreError> {
        let mut recent = Self { limit: RECENT_TAPS_MAX, ..Self::default() };
        let mut statement = connection.prepare(
            "SELECT kind, digest, card, account, reason, amount, stand_in, reversed, clock, position, debits, terminal, epoch,
             sequence, own, unspent, stand_in_left, share FROM recent ORDER BY position",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let tap = read_tap(row)?;
            let sequence = Key::new(row.get::<_, String>(13)?)
                .map_err(|_| StoreError::damaged("the key of a tap is none"))?;
            if let Some(own) = row.get::<_, Option<i64>>(14)? {
                let spent = Spent {
                    own: Fen::new(own),
                    unspent: Fen::new(row.get(15)?),
                    stand_in_left: Fen::new(row.get(16)?),
                    share: decode_share(&row.get::<_, Vec<u8>>(17)?)?,
                };
                recent.wallets.insert(tap.account, spent);
            }
            recent.taps.insert((row.get(11)?, row.get(12)?, sequence), tap);
        }
        Ok(recent)
    }

    /// Reads all of it again, something having been taken back; what is in it may still not be committed.
    pub(super) fn load_again(&mut self, connection: &Connection) -> Result<(), StoreError> {
        *self = Self { touched: true, limit: self.limit, ..Self::load(connection)? };
        Ok(())
    }

    /// What was put is committed.
    pub(super) const fn committed(&mut self) {
        self.touched = false;
    }

    /// True where something changed since the last commit, which is wrong if that was taken back.
    pub(super) const fn touched(&self) -> bool {
        self.touched
    }

    /// Lets what taps left of an account stand in place of what the tables say.
    pub(super) fn lay_over(&self, account: AccountId, purse: &mut Purse, share: &mut Share) {
        if let Some(spent) = self.wallets.get(&account) {
            purse.cash.own = spent.own;
            purse.cash.row.unspent = spent.unspent;
            purse.cash.row.stand_in_left = spent.stand_in_left;
            share.clone_from(&spent.share);
        }
    }
}

impl Store {
    /// What a key was used for lately.
    pub(super) fn recent_tap(&self, terminal: i64, epoch: u32, sequence: &Key) -> Option<TapRow> {
        self.recent.borrow().taps.get(&(terminal, epoch, sequence.clone())).cloned()
    }

    /// Keeps the first answer to a key that was never used, and what the tap left of the cash wallet and the share where it
    /// changed them; allowance days before `horizon` are summed up.
    pub(crate) fn put_recent(
        &self,
        (terminal, epoch, sequence): (i64, u32, &Key),
        tap: &TapRow,
        spent: Option<(&WalletState, &Share)>,
        horizon: BusinessDay,
    ) -> Result<(), StoreError> {
        if let Some((state, _)) = spent
            && state.row.granted == Fen::ZERO
        {
            // Where right was granted there is a row to fold into.
            self.connection
                .prepare_cached("INSERT OR IGNORE INTO wallets (id) VALUES (?1)")?
                .execute([wallet_id(tap.account, Wallet::Cash)?])?;
        }
        // As the row has it, so that reading it back changes nothing.
        let share = spent.map(|(_, share)| summed_up(share, horizon));
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO recent VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
        )?;
        bind_tap(&mut statement, (terminal, epoch, sequence), tap)?;
        let state = spent.map(|(state, _)| state);
        let left: [&dyn ToSql; 4] = [
            &state.map(|state| state.own.get()),
            &state.map(|state| state.row.unspent.get()),
            &state.map(|state| state.row.stand_in_left.get()),
            &share.as_ref().map(|share| encode_share(share, horizon)),
        ];
        for (column, place) in left.into_iter().zip(TAP_COLUMNS + 1..) {
            statement.raw_bind_parameter(place, column)?;
        }
        statement.raw_execute()?;
        self.used(terminal, epoch, sequence);
        let mut recent = self.recent.borrow_mut();
        recent.touched = true;
        if recent.taps.insert((terminal, epoch, sequence.clone()), tap.clone()).is_some() {
            return Err(StoreError::damaged("a tap would be answered twice"));
        }
        if let (Some((state, _)), Some(share)) = (spent, share) {
            let spent = Spent {
                own: state.own,
                unspent: state.row.unspent,
                stand_in_left: state.row.stand_in_left,
                share,
            };
            recent.wallets.insert(tap.account, spent);
        }
        Ok(())
    }

    /// True where a key is beyond every key that its terminal ever used.
    pub(super) fn is_beyond(&self, terminal: i64, epoch: u32, sequence: &Key) -> Result<bool, StoreError> {
        let mut newest = self.newest.borrow_mut();
        let newest = match newest.0.entry(terminal) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let kept: Option<(u32, String)> = self
                    .connection
                    .prepare_cached(
                        "SELECT epoch, sequence FROM taps
                         WHERE terminal = ?1 AND epoch = (SELECT max(epoch) FROM taps WHERE terminal = ?1)
                         ORDER BY length(sequence) DESC, sequence DESC LIMIT 1",
                    )?
                    .query_row([terminal], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                let kept = match kept {
                    Some((epoch, sequence)) => Some((
                        epoch,
                        Key::new(sequence).map_err(|_| StoreError::damaged("the key of a tap is none"))?,
                    )),
                    None => None,
                };
                let recent = self.recent.borrow();
                let recent =
                    recent.taps.keys().filter(|key| key.0 == terminal).map(|key| (key.1, key.2.clone()));
                let all = kept.into_iter().chain(recent).map(|(epoch, key)| (epoch, key.as_str().len(), key));
                match all.max() {
                    Some(newest) => unknown.insert(newest),
                    None => return Ok(true),
                }
            }
        };
        Ok((epoch, sequence.as_str().len(), sequence) > (newest.0, newest.1, &newest.2))
    }

    /// A key is used now. Where that is taken back, the table is looked into once more than necessary.
    pub(super) fn used(&self, terminal: i64, epoch: u32, sequence: &Key) {
        if let Some(newest) = self.newest.borrow_mut().0.get_mut(&terminal)
            && (epoch, sequence.as_str().len(), sequence) > (newest.0, newest.1, &newest.2)
        {
            *newest = (epoch, sequence.as_str().len(), sequence.clone());
        }
    }

    /// True where it is time to fold.
    pub(crate) fn must_fold(&self) -> bool {
        let recent = self.recent.borrow();
        recent.taps.len() >= recent.limit
    }

    /// A fold has failed: not again with the next tap.
    pub(crate) fn fold_later(&self) {
        let mut recent = self.recent.borrow_mut();
        recent.limit = recent.taps.len() + FOLD_AGAIN_AFTER;
    }

    /// Puts everything into its place. Whoever writes to `taps` or to cash wallets otherwise does this first.
    pub(crate) fn fold(&self) -> Result<(), StoreError> {
        if self.recent.borrow().taps.is_empty() {
            return Ok(());
        }
        // A statement that fails takes the step back, or what is guarded in it: it needs no journal of its own (OR FAIL).
        for sql in [
            "INSERT OR FAIL INTO taps SELECT terminal, epoch, sequence, kind, digest, card, account, reason, amount, stand_in,
             reversed, clock, position, debits FROM recent ORDER BY terminal, epoch, sequence",
            "UPDATE OR FAIL wallets SET own = recent.own, unspent = recent.unspent, stand_in_left = recent.stand_in_left,
             share = recent.share FROM recent_wallets AS recent WHERE wallets.id = recent.id",
            "DELETE FROM recent",
        ] {
            self.connection.prepare_cached(sql)?.execute([])?;
        }
        self.recent.replace(Recent { limit: RECENT_TAPS_MAX, touched: true, ..Recent::default() });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use feiqian_protocol::campus::Mode;
    use feiqian_protocol::tap::TapKind;

    use super::*;
    use crate::core::testing::*;
    use crate::io::{Input, Output, Ticket};

    /// The rows that taps look up, wherever they stand, and the wallets of an account as a tap sees them.
    fn tables(world: &World) -> Vec<String> {
        let mut all = Vec::new();
        for sql in ["SELECT * FROM taps_now ORDER BY 1, 2, 3", "SELECT * FROM wallets_now ORDER BY 1"] {
            let mut statement = world.core.store.connection().prepare(sql).unwrap();
            let columns = statement.column_count();
            let mut rows = statement.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let values: Vec<rusqlite::types::Value> = (0..columns).map(|n| row.get(n).unwrap()).collect();
                all.push(format!("{values:?}"));
            }
        }
        for account in [ALICE, BOB] {
            let (purse, share) = (world.core.store.purse(account), world.core.store.share(account));
            all.push(format!("{:?} {:?}", purse.unwrap(), share.unwrap()));
        }
        all
    }

    fn in_recent(world: &World) -> usize {
        let sql = "SELECT count(*) FROM recent";
        world.core.store.connection().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() as usize
    }

    #[test]
    fn what_taps_left_is_the_same_before_and_after_it_is_put_into_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let mut world = World::on_disk(Mode::Strict, directory.path());
        for account in [ALICE, BOB] {
            world.share_grant(account, 5_000);
            world.grant(account, 1_000);
        }
        world.disconnect();
        for (n, card) in ["alice", "bob", "alice", "nobody", "bob", "alice"].into_iter().enumerate() {
            world.buy(&n.to_string(), card, 100);
        }
        assert_eq!(in_recent(&world), 6);
        let before = tables(&world);
        world.reopen();
        assert_eq!(tables(&world), before, "read again from the disk");
        let again = world.buy("0", "alice", 100);
        assert!(matches!(again[0], Output::Decided { repeat: true, .. }));
        world.core.store.begin().unwrap();
        world.core.store.fold().unwrap();
        assert_eq!((tables(&world), in_recent(&world)), (before.clone(), 0));
        world.core.store.rollback();
        world.core.store.begin().unwrap();
        world.core.store.rollback();
        assert_eq!((tables(&world), in_recent(&world)), (before.clone(), 6), "taken back");
        world.core.store.begin().unwrap();
        world.core.store.savepoint().unwrap();
        world.core.store.fold().unwrap();
        world.core.store.undo().unwrap();
        assert_eq!((tables(&world), in_recent(&world)), (before.clone(), 6), "taken back to the savepoint");
        world.core.store.fold().unwrap();
        world.core.store.commit().unwrap();
        assert_eq!(tables(&world), before);
        world.check();
        assert!(matches!(world.buy("0", "alice", 100)[0], Output::Decided { repeat: true, .. }));
        // A key that was used after its terminal's newest was looked up is known in its place, too.
        for repeat in [false, true] {
            let outputs = world.buy("6", "bob", 100);
            assert!(matches!(outputs[0], Output::Decided { repeat: told, .. } if told == repeat));
            world.core.store.fold().unwrap();
        }
    }

    #[test]
    fn some_thousand_taps_are_put_into_their_place_at_once() {
        let mut world = World::connected(Mode::Strict);
        world.share_grant(ALICE, 5_000);
        world.grant(ALICE, 5_000);
        world.disconnect();
        let buy = |world: &mut World, first: usize, count: usize| {
            let taps = (first..first + count)
                .map(|n| Input::Tap(Ticket(n as u64), tap(&n.to_string(), "alice", TapKind::Amount(fen(1)))));
            let outputs = world.step(taps.collect());
            assert_eq!(decided(&outputs), vec![approved(ALICE, 1, 0); count].concat());
        };
        buy(&mut world, 0, RECENT_TAPS_MAX - 1);
        buy(&mut world, 10_000, 1);
        assert_eq!(in_recent(&world), RECENT_TAPS_MAX);
        // Where there is no room to put them, taps go on, and it is not tried with each of them.
        let run = |world: &World, sql: &str| world.core.store.connection().execute_batch(sql).unwrap();
        run(&world, "CREATE TRIGGER refuse BEFORE INSERT ON taps BEGIN SELECT RAISE(ABORT, ''); END");
        buy(&mut world, 20_000, 1);
        run(&world, "DROP TRIGGER refuse");
        buy(&mut world, 20_001, 1);
        assert_eq!(in_recent(&world), RECENT_TAPS_MAX + 2);
        buy(&mut world, 20_002, 256);
        buy(&mut world, 30_000, 1);
        assert_eq!(in_recent(&world), 1);
        world.check();
    }
}
