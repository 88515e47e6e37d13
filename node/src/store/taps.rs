//! First answers by tap key, and what is left of debits.

use feiqian_protocol::entry::{Debit, Delta, Reversal};
use feiqian_protocol::ids::{AccountId, CardNumber, Epoch, Key, TerminalId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, DeclineReason};
use feiqian_protocol::time::{BusinessDay, Hlc};
use rusqlite::{Connection, OptionalExtension, Row, Statement, ToSql, params};

use super::accounts::read_wallet;
use super::{Store, StoreError};

/// What a key of a terminal was used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TapUse {
    /// A purchase.
    Purchase,
    /// A door.
    Access,
    /// A reversal.
    Reversal,
    /// Nothing yet: a reversal of this key came first.
    Tombstone,
}

impl TapUse {
    const ALL: [Self; 4] = [Self::Purchase, Self::Access, Self::Reversal, Self::Tombstone];

    const fn number(self) -> u8 {
        match self {
            Self::Purchase => 0,
            Self::Access => 1,
            Self::Reversal => 2,
            Self::Tombstone => 3,
        }
    }
}

/// A tap's row: the request's digest, the first answer, and where its entries are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct TapRow {
    /// What the key was used for.
    pub(crate) used: TapUse,
    /// Digest of the request; absent where the request is known from its entries only.
    pub(crate) digest: Option<[u8; 16]>,
    /// The card; of a reversal, the card of its tap.
    pub(crate) card: Option<CardNumber>,
    /// The account; 0 where there is none.
    pub(crate) account: AccountId,
    /// Why it was declined; absent where approved.
    pub(crate) reason: Option<DeclineReason>,
    /// Fen charged, asked for, or given back.
    pub(crate) amount: Fen,
    /// Fen of it that were stand-in.
    pub(crate) stand_in: Fen,
    /// Fen of it that were reversed later.
    pub(crate) reversed: Fen,
    /// The clock of its first entry.
    pub(crate) clock: Hlc,
    /// The position of its first entry.
    pub(crate) position: u64,
    /// How many debits stand there.
    pub(crate) debits: u64,
}

impl TapRow {
    /// The first answer.
    pub(crate) fn decision(&self) -> Decision {
        match self.reason {
            Some(reason) => Decision::Declined(reason),
            None => {
                Decision::Approved { account: self.account, amount: self.amount, stand_in: self.stand_in }
            }
        }
    }
}

/// No epoch: what a voucher held was never this node's right.
pub(crate) const EPOCH_OF_VOUCHERS: Epoch = Epoch(0);

/// A debit and what is left of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct DebitRow {
    /// Its position.
    pub(crate) position: u64,
    /// Its account.
    pub(crate) account: AccountId,
    /// Its wallet.
    pub(crate) wallet: Wallet,
    /// Its epoch; [`EPOCH_OF_VOUCHERS`] where a voucher paid it, so that what is given back goes home.
    pub(crate) epoch: Epoch,
    /// Its day.
    pub(crate) day: BusinessDay,
    /// The whole of it.
    pub(crate) amount: Fen,
    /// Of its right, or of what a voucher paid, what was not reversed.
    pub(crate) right_rest: Fen,
    /// Of its stand-in, what was not reversed.
    pub(crate) stand_in_rest: Fen,
    /// Of what it counted against the allowance, what was not given back.
    pub(crate) allowance_rest: Fen,
    /// The label of the meal period that it counts in.
    pub(crate) meal: Option<u16>,
}

impl DebitRow {
    /// A debit of which nothing was reversed.
    pub(crate) fn new(position: u64, debit: &Debit) -> Self {
        Self {
            position,
            account: debit.account,
            wallet: debit.wallet,
            epoch: if debit.from_voucher.is_some() { EPOCH_OF_VOUCHERS } else { debit.epoch },
            day: debit.day,
            amount: debit.amount(),
            right_rest: debit.from_right + debit.of_voucher(),
            stand_in_rest: debit.stand_in,
            allowance_rest: debit.allowance,
            meal: debit.meal,
        }
    }

    /// Takes a reversal out of what is left.
    pub(crate) fn reverse(&mut self, reversal: &Reversal) {
        self.right_rest -= reversal.right_back + reversal.right_home;
        self.stand_in_rest -= reversal.stand_in_home;
        self.allowance_rest -= reversal.allowance_back;
    }

    /// What may still be reversed.
    pub(crate) fn rest(&self) -> Fen {
        self.right_rest + self.stand_in_rest
    }
}

macro_rules! taps_from {
    ($rest:literal) => {
        concat!(
            "SELECT kind, digest, card, account, reason, amount, stand_in, reversed, clock, position, debits ",
            $rest
        )
    };
}

impl Store {
    /// The short number of a terminal, where it has one.
    pub(crate) fn terminal(&self, terminal: &TerminalId) -> Result<Option<i64>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT number FROM terminals WHERE name = ?1")?;
        Ok(statement.query_row([terminal.as_str()], |row| row.get(0)).optional()?)
    }

    /// Gives a terminal a short number.
    pub(crate) fn add_terminal(&self, terminal: &TerminalId) -> Result<i64, StoreError> {
        let mut statement = self.connection.prepare_cached("INSERT INTO terminals (name) VALUES (?1)")?;
        Ok(statement.insert([terminal.as_str()])?)
    }

    /// What a key was used for.
    pub(crate) fn tap(
        &self,
        terminal: i64,
        epoch: u32,
        sequence: &Key,
    ) -> Result<Option<TapRow>, StoreError> {
        if let Some(tap) = self.recent_tap(terminal, epoch, sequence) {
            return Ok(Some(tap));
        }
        if self.is_beyond(terminal, epoch, sequence)? {
            return Ok(None);
        }
        let mut statement = self
            .connection
            .prepare_cached(taps_from!("FROM taps WHERE terminal = ?1 AND epoch = ?2 AND sequence = ?3"))?;
        let mut rows = statement.query(params![terminal, epoch, sequence.as_str()])?;
        rows.next()?.map(read_tap).transpose()
    }

    /// Keeps a first answer in its place. It is kept once; only a tombstone gives way.
    pub(crate) fn put_tap(
        &self,
        terminal: i64,
        epoch: u32,
        sequence: &Key,
        tap: &TapRow,
    ) -> Result<(), StoreError> {
        self.fold()?;
        self.used(terminal, epoch, sequence);
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO taps VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
             ON CONFLICT DO UPDATE SET kind = ?4, digest = ?5, card = ?6, account = ?7, reason = ?8, amount = ?9,
             stand_in = ?10, reversed = ?11, clock = ?12, position = ?13, debits = ?14 WHERE kind = 3",
        )?;
        bind_tap(&mut statement, (terminal, epoch, sequence), tap)?;
        let kept = statement.raw_execute()?;
        if kept == 1 { Ok(()) } else { Err(StoreError::damaged("a tap would be answered twice")) }
    }

    /// Counts a reversal on the tap that it reversed.
    pub(crate) fn add_reversed(
        &self,
        terminal: i64,
        epoch: u32,
        sequence: &Key,
        amount: Fen,
    ) -> Result<(), StoreError> {
        self.fold()?;
        self.connection
            .prepare_cached(
                "UPDATE taps SET reversed = reversed + ?4 WHERE terminal = ?1 AND epoch = ?2 AND sequence = ?3",
            )?
            .execute(params![terminal, epoch, sequence.as_str(), amount.get()])?;
        Ok(())
    }

    /// Counts a reversal on the tap whose debits stand around a position. Reads all taps: for entries that come back.
    pub(crate) fn add_reversed_at(&self, debit: u64, amount: Fen) -> Result<(), StoreError> {
        self.fold()?;
        self.connection.execute(
            "UPDATE taps SET reversed = reversed + ?2
             WHERE position <= ?1 AND position + debits > ?1 AND kind = 0",
            params![debit as i64, amount.get()],
        )?;
        Ok(())
    }

    /// Forgets a tap, to keep it anew.
    pub(crate) fn drop_tap(&self, terminal: i64, epoch: u32, sequence: &Key) -> Result<(), StoreError> {
        self.fold()?;
        self.connection.execute(
            "DELETE FROM taps WHERE terminal = ?1 AND epoch = ?2 AND sequence = ?3",
            params![terminal, epoch, sequence.as_str()],
        )?;
        Ok(())
    }

    /// Keeps a debit, of which nothing was reversed yet.
    pub(crate) fn put_debit(&self, debit: &DebitRow) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT INTO debits VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
            .execute(params![
                debit.position as i64,
                debit.account.0 as i64,
                debit.wallet.number(),
                debit.epoch.0,
                debit.day.0,
                debit.amount.get(),
                debit.right_rest.get(),
                debit.stand_in_rest.get(),
                debit.allowance_rest.get(),
                debit.meal,
            ])?;
        Ok(())
    }

    /// Keeps what a reversal left of a debit.
    pub(crate) fn put_rest(&self, debit: &DebitRow) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE debits SET right_rest = ?2, stand_in_rest = ?3, allowance_rest = ?4 WHERE position = ?1",
            )?
            .execute(params![
                debit.position as i64,
                debit.right_rest.get(),
                debit.stand_in_rest.get(),
                debit.allowance_rest.get(),
            ])?;
        Ok(())
    }

    /// Keeps what a reversal does to a balance.
    pub(crate) fn put_reversal(&self, position: u64, delta: &Delta) -> Result<(), StoreError> {
        self.connection.prepare_cached("INSERT INTO reversals VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            position as i64,
            delta.account.0 as i64,
            delta.wallet.number(),
            delta.amount.get(),
        ])?;
        Ok(())
    }

    /// What is left of the debits from `first` to `last`, in order.
    pub(crate) fn debits(&self, first: u64, last: u64) -> Result<Vec<DebitRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT position, account, wallet, epoch, day, amount, right_rest, stand_in_rest, allowance_rest,
             meal FROM debits WHERE position BETWEEN ?1 AND ?2 ORDER BY position",
        )?;
        let mut rows = statement.query(params![first as i64, last as i64])?;
        let mut debits = Vec::new();
        while let Some(row) = rows.next()? {
            debits.push(DebitRow {
                position: row.get::<_, i64>(0)? as u64,
                account: AccountId(row.get::<_, i64>(1)? as u64),
                wallet: read_wallet(row.get(2)?)?,
                epoch: Epoch(row.get(3)?),
                day: BusinessDay(row.get(4)?),
                amount: Fen::new(row.get(5)?),
                right_rest: Fen::new(row.get(6)?),
                stand_in_rest: Fen::new(row.get(7)?),
                allowance_rest: Fen::new(row.get(8)?),
                meal: row.get(9)?,
            });
        }
        Ok(debits)
    }

    /// The sum of the debits after one position, up to another, those of purses too.
    pub(crate) fn debited(&self, after: u64, to: u64) -> Result<Fen, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT (SELECT coalesce(sum(amount), 0) FROM debits WHERE position > ?1 AND position <= ?2)
               + (SELECT coalesce(sum(amount), 0) FROM purse_debits WHERE position > ?1 AND position <= ?2)",
        )?;
        Ok(statement.query_row(params![after as i64, to as i64], |row| row.get(0).map(Fen::new))?)
    }
}

/// The columns of a tap, which are the first ones of both tables that have taps.
pub(super) const TAP_COLUMNS: usize = 14;

/// Binds them, in their order.
pub(super) fn bind_tap(
    statement: &mut Statement<'_>,
    (terminal, epoch, sequence): (i64, u32, &Key),
    tap: &TapRow,
) -> rusqlite::Result<()> {
    let columns: [&dyn ToSql; TAP_COLUMNS] = [
        &terminal,
        &epoch,
        &sequence.as_str(),
        &tap.used.number(),
        &tap.digest,
        &tap.card.as_ref().map_or("", CardNumber::as_str),
        &(tap.account.0 as i64),
        &tap.reason.map_or(0, DeclineReason::code),
        &tap.amount.get(),
        &tap.stand_in.get(),
        &tap.reversed.get(),
        &(tap.clock.to_bits() as i64),
        &(tap.position as i64),
        &(tap.debits as i64),
    ];
    columns.into_iter().zip(1..).try_for_each(|(column, place)| statement.raw_bind_parameter(place, column))
}

pub(super) fn read_tap(row: &Row<'_>) -> Result<TapRow, StoreError> {
    let used = usize::from(row.get::<_, u8>(0)?);
    let card: String = row.get(2)?;
    let reason: u8 = row.get(4)?;
    Ok(TapRow {
        used: *TapUse::ALL.get(used).ok_or_else(|| StoreError::damaged("a tap of no known use"))?,
        digest: row.get(1)?,
        card: CardNumber::new(card).ok(),
        account: AccountId(row.get::<_, i64>(3)? as u64),
        reason: match reason {
            0 => None,
            code => Some(
                DeclineReason::from_code(code)
                    .ok_or_else(|| StoreError::damaged("a tap declined for no known reason"))?,
            ),
        },
        amount: Fen::new(row.get(5)?),
        stand_in: Fen::new(row.get(6)?),
        reversed: Fen::new(row.get(7)?),
        clock: Hlc::from_bits(row.get::<_, i64>(8)? as u64),
        position: row.get::<_, i64>(9)? as u64,
        debits: row.get::<_, i64>(10)? as u64,
    })
}

/// Hands every tap to `each`, in the order of the log, with its terminal, epoch and sequence.
pub(crate) fn each_tap<E: From<StoreError>>(
    connection: &Connection,
    mut each: impl FnMut(&str, u32, &str, TapRow) -> Result<(), E>,
) -> Result<(), E> {
    let sql = taps_from!(
        ", name, epoch, sequence FROM taps_now JOIN terminals ON number = terminal ORDER BY position, kind"
    );
    let mut statement = connection.prepare(sql).map_err(StoreError::from)?;
    let mut rows = statement.query([]).map_err(StoreError::from)?;
    while let Some(row) = rows.next().map_err(StoreError::from)? {
        let text = |index| row.get::<_, String>(index).map_err(StoreError::from);
        let epoch: u32 = row.get(12).map_err(StoreError::from)?;
        each(&text(11)?, epoch, &text(13)?, read_tap(row)?)?;
    }
    Ok(())
}
