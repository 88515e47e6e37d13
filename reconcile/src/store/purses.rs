//! Purses of cards: how each stands by the books, its loads, and every purchase that a terminal reported.
//!
//! | table | one row is | written |
//! |---|---|---|
//! | `purses` | a card: its online counter after the newest load that counts, and what it last said of itself: offline counter, balance, and when | replaced |
//! | `purse_loads` | a load, by its entry in the account's stream; `state` 0 in transit, 1 done, 2 reversed | replaced |
//! | `purse_voids` | a card that was withdrawn, and when | once |
//! | `purse_returns` | what was left on a withdrawn card and went back to its account, by its entry | once |
//! | `purse_decisions` | what a person decided of the case of a purchase, by the purchase's entry | once |
//! | `purse_purchases` | a reported purchase, by its entry, and what became of it ([`Became`]); of a card and counter one at most counts | once |

use feiqian_protocol::entry::{EntryRef, PurseCaseDecided, PurseLoad, PursePurchase, PurseSide};
use feiqian_protocol::ids::{AccountId, InstitutionId, LogId, NodeId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::purse::values::{CardSerial, Counter, Mac};
use feiqian_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::money::wallet_of;
use super::{StoreError, corrupt};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS purses (serial TEXT PRIMARY KEY, online INTEGER NOT NULL, offline INTEGER NOT NULL,
  balance INTEGER NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS purse_loads (log INTEGER NOT NULL, position INTEGER NOT NULL, serial TEXT NOT NULL,
  account INTEGER NOT NULL, wallet INTEGER NOT NULL, amount INTEGER NOT NULL, taken_over INTEGER NOT NULL,
  counter INTEGER NOT NULL, balance_before INTEGER NOT NULL, terminal TEXT NOT NULL, time TEXT NOT NULL,
  random TEXT NOT NULL, key_version INTEGER NOT NULL, node INTEGER NOT NULL, state INTEGER NOT NULL,
  PRIMARY KEY (log, position)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS purse_loads_of ON purse_loads (serial, counter);
CREATE TABLE IF NOT EXISTS purse_purchases (log INTEGER NOT NULL, position INTEGER NOT NULL, serial TEXT NOT NULL,
  counter INTEGER NOT NULL, amount INTEGER NOT NULL, terminal TEXT NOT NULL, sequence INTEGER NOT NULL,
  time TEXT NOT NULL, tac TEXT, merchant INTEGER NOT NULL, became INTEGER NOT NULL, PRIMARY KEY (log, position))
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS purse_voids (serial TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS purse_returns (log INTEGER NOT NULL, position INTEGER NOT NULL, serial TEXT NOT NULL,
  amount INTEGER NOT NULL, PRIMARY KEY (log, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS purse_decisions (purchase_log INTEGER NOT NULL, purchase_position INTEGER NOT NULL,
  log INTEGER NOT NULL, position INTEGER NOT NULL, serial TEXT NOT NULL, amount INTEGER NOT NULL,
  merchant INTEGER NOT NULL, source INTEGER NOT NULL, target INTEGER NOT NULL, account INTEGER,
  PRIMARY KEY (purchase_log, purchase_position)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS purse_purchases_of ON purse_purchases (serial, counter);
CREATE INDEX IF NOT EXISTS purse_purchases_at ON purse_purchases (serial, terminal, sequence);
";

/// How a load stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LoadState {
    /// MAC2 has left the centre.
    InTransit = 0,
    /// The card has the money.
    Done = 1,
    /// The account has it.
    Reversed = 2,
}

impl LoadState {
    fn from_number(number: u8) -> Result<Self, StoreError> {
        let all = [Self::InTransit, Self::Done, Self::Reversed];
        corrupt(all.get(usize::from(number)).copied(), "the state of a load")
    }

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InTransit => "in_transit",
            Self::Done => "done",
            Self::Reversed => "reversed",
        }
    }
}

/// What became of a purchase that a terminal reported.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Became {
    /// The purse paid the merchant.
    Posted = 0,
    /// It was here already, by another report.
    Repeat = 1,
    /// Its TAC is wrong or missing: an emulated card, or a terminal that makes things up. Suspense paid.
    WrongTac = 2,
    /// The card had made another purchase with this counter: there are two of it. Suspense paid.
    Clone = 3,
    /// More than the books have on the card. Suspense paid.
    Overdrawn = 4,
    /// The card debited itself, and nothing was handed out: suspense has the money.
    Unproven = 5,
    /// The terminal says that the card's log says so; nothing was handed out, and nothing is proven. Nothing moved.
    Hearsay = 6,
}

impl Became {
    const ALL: [Self; 7] = [
        Self::Posted,
        Self::Repeat,
        Self::WrongTac,
        Self::Clone,
        Self::Overdrawn,
        Self::Unproven,
        Self::Hearsay,
    ];

    pub(crate) fn from_number(number: u8) -> Result<Self, StoreError> {
        corrupt(Self::ALL.get(usize::from(number)).copied(), "what became of a purchase")
    }

    /// The reason of the case that it is; `None` where it is none.
    pub const fn case(self) -> Option<&'static str> {
        match self {
            Self::Posted | Self::Repeat => None,
            Self::WrongTac => Some("purse_wrong_tac"),
            Self::Clone => Some("purse_clone"),
            Self::Overdrawn => Some("purse_overdrawn"),
            Self::Unproven | Self::Hearsay => Some("purse_unproven"),
        }
    }

    /// True where the ledger has lines of it.
    pub(crate) const fn is_posted(self) -> bool {
        !matches!(self, Self::Repeat | Self::Hearsay)
    }

    /// True where the purse paid.
    pub(crate) const fn is_of_purse(self) -> bool {
        matches!(self, Self::Posted | Self::Unproven)
    }

    /// True where it is the card's purchase with that counter.
    const fn counts(self) -> bool {
        matches!(self, Self::Posted | Self::Overdrawn | Self::Unproven)
    }
}

/// What a card last said of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PurseState {
    /// The online counter that its next load must begin with.
    pub online: Counter,
    /// Its offline counter after the newest purchase heard of.
    pub offline: Counter,
    /// Fen after that, or after the newest load.
    pub balance: Fen,
    /// When that was ingested.
    pub at: Timestamp,
}

/// A load.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LoadRow {
    /// Its entry.
    pub at: EntryRef,
    /// What that says.
    pub load: PurseLoad,
    /// How it stands.
    pub state: LoadState,
}

/// A purchase.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PurchaseRow {
    /// Its entry.
    pub at: EntryRef,
    /// The offline counter before.
    pub counter: Counter,
    /// Fen.
    pub amount: Fen,
    /// Terminal, its number of the purchase, and time: what tells two purchases apart.
    pub terms: (String, u32, String),
    /// The TAC.
    pub tac: Option<Mac>,
    /// Who is paid.
    pub merchant: u16,
    /// What became of it.
    pub became: Became,
}

/// How a card stands; `None` for one that was never heard of.
pub(crate) fn purse(db: &Connection, serial: CardSerial) -> Result<Option<PurseState>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT online, offline, balance, at FROM purses WHERE serial = ?1")?;
    let found = statement.query_row([serial.to_string()], |row| {
        Ok(PurseState {
            online: Counter(row.get(0)?),
            offline: Counter(row.get(1)?),
            balance: Fen::new(row.get(2)?),
            at: Timestamp(row.get(3)?),
        })
    });
    Ok(found.optional()?)
}

/// Keeps it.
pub(crate) fn put_purse(db: &Connection, serial: CardSerial, state: &PurseState) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO purses VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        serial.to_string(),
        state.online.0,
        state.offline.0,
        state.balance.get(),
        state.at.0
    ])?;
    Ok(())
}

/// Keeps a load, in transit.
pub(crate) fn insert_load(db: &Connection, at: EntryRef, load: &PurseLoad) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO purse_loads VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, 0)",
    )?
    .execute(params![
        at.log.key(),
        at.position as i64,
        load.serial.to_string(),
        load.account.0 as i64,
        load.wallet.number(),
        load.amount.get(),
        load.taken_over.get(),
        load.counter.0,
        load.balance_before.get(),
        load.terminal.to_string(),
        load.time.to_string(),
        load.random.to_string(),
        load.key_version,
        load.node.0,
    ])?;
    Ok(())
}

const LOAD_COLUMNS: &str = "log, position, serial, account, wallet, amount, taken_over, counter, balance_before, terminal, time, \
     random, key_version, node, state";

fn load_row(row: &Row<'_>, institution: InstitutionId) -> Result<LoadRow, StoreError> {
    let text = |index: usize| -> Result<String, StoreError> { Ok(row.get(index)?) };
    let value = "a load of a purse";
    let load = PurseLoad {
        serial: corrupt(text(2)?.parse().ok(), value)?,
        account: AccountId(row.get::<_, i64>(3)? as u64),
        wallet: wallet_of(row.get(4)?)?,
        amount: Fen::new(row.get(5)?),
        taken_over: Fen::new(row.get(6)?),
        counter: Counter(row.get(7)?),
        balance_before: Fen::new(row.get(8)?),
        terminal: corrupt(text(9)?.parse().ok(), value)?,
        time: corrupt(text(10)?.parse().ok(), value)?,
        random: corrupt(text(11)?.parse().ok(), value)?,
        key_version: row.get(12)?,
        node: NodeId(row.get(13)?),
    };
    let at =
        EntryRef { log: LogId::from_key(institution, row.get(0)?), position: row.get::<_, i64>(1)? as u64 };
    Ok(LoadRow { at, load, state: LoadState::from_number(row.get(14)?)? })
}

fn loads_by(
    db: &Connection,
    institution: InstitutionId,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<LoadRow>, StoreError> {
    let mut statement =
        db.prepare_cached(&format!("SELECT {LOAD_COLUMNS} FROM purse_loads WHERE {condition}"))?;
    statement.query_and_then(parameters, |row| load_row(row, institution))?.collect()
}

/// The loads of a card, oldest first.
pub(crate) fn loads(
    db: &Connection,
    institution: InstitutionId,
    serial: CardSerial,
) -> Result<Vec<LoadRow>, StoreError> {
    loads_by(db, institution, "serial = ?1 ORDER BY counter, log, position", [serial.to_string()])
}

/// All loads.
pub(crate) fn all_loads(db: &Connection, institution: InstitutionId) -> Result<Vec<LoadRow>, StoreError> {
    loads_by(db, institution, "TRUE ORDER BY log, position", [])
}

/// A load by its entry.
pub(crate) fn load_at(db: &Connection, at: EntryRef) -> Result<Option<LoadRow>, StoreError> {
    let condition = "log = ?1 AND position = ?2";
    Ok(loads_by(db, at.log.institution, condition, params![at.log.key(), at.position as i64])?.pop())
}

/// The load of a card that is in transit.
pub(crate) fn open_load(
    db: &Connection,
    institution: InstitutionId,
    serial: CardSerial,
) -> Result<Option<LoadRow>, StoreError> {
    Ok(loads_by(db, institution, "serial = ?1 AND state = 0", [serial.to_string()])?.pop())
}

/// The loads of a card that began with a counter.
pub(crate) fn loads_with(
    db: &Connection,
    institution: InstitutionId,
    serial: CardSerial,
    counter: Counter,
) -> Result<Vec<LoadRow>, StoreError> {
    let condition = "serial = ?1 AND counter = ?2 ORDER BY log, position";
    loads_by(db, institution, condition, params![serial.to_string(), counter.0])
}

/// Says how a load stands.
pub(crate) fn settle_load(db: &Connection, at: EntryRef, state: LoadState) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE purse_loads SET state = ?3 WHERE log = ?1 AND position = ?2")?
        .execute(params![at.log.key(), at.position as i64, state as u8])?;
    Ok(())
}

/// Notes when a card was withdrawn.
pub(crate) fn put_void(db: &Connection, serial: CardSerial, at: Timestamp) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO purse_voids VALUES (?1, ?2)")?
        .execute(params![serial.to_string(), at.0])?;
    Ok(())
}

/// When it was.
pub(crate) fn void_at(db: &Connection, serial: CardSerial) -> Result<Option<Timestamp>, StoreError> {
    let mut statement = db.prepare_cached("SELECT at FROM purse_voids WHERE serial = ?1")?;
    Ok(statement.query_row([serial.to_string()], |row| row.get(0).map(Timestamp)).optional()?)
}

/// Keeps what went back to an account.
pub(crate) fn insert_return(
    db: &Connection,
    at: EntryRef,
    serial: CardSerial,
    amount: Fen,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO purse_returns VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        at.log.key(),
        at.position as i64,
        serial.to_string(),
        amount.get()
    ])?;
    Ok(())
}

/// What went back to an account: log and position, card, fen.
pub(crate) type Returned = ((i64, u64), CardSerial, Fen);

/// All that went back to accounts.
pub(crate) fn returns(db: &Connection) -> Result<Vec<Returned>, StoreError> {
    let mut statement = db.prepare_cached("SELECT log, position, serial, amount FROM purse_returns")?;
    let read = |row: &Row<'_>| {
        let serial: String = row.get(2)?;
        let place = (row.get(0)?, row.get::<_, i64>(1)? as u64);
        Ok((place, corrupt(serial.parse().ok(), "a card's serial")?, Fen::new(row.get(3)?)))
    };
    statement.query_and_then([], read)?.collect()
}

/// What a person decided of the case of a purchase.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DecisionRow {
    /// Its entry.
    pub at: EntryRef,
    /// What that says.
    pub decided: PurseCaseDecided,
}

fn side_of(number: u8) -> Result<PurseSide, StoreError> {
    corrupt(PurseSide::ALL.get(usize::from(number)).copied(), "a side of a decision")
}

/// Keeps a decision.
pub(crate) fn insert_decision(
    db: &Connection,
    at: EntryRef,
    decided: &PurseCaseDecided,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO purse_decisions VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
        .execute(params![
            decided.purchase.log.key(),
            decided.purchase.position as i64,
            at.log.key(),
            at.position as i64,
            decided.serial.to_string(),
            decided.amount.get(),
            decided.merchant,
            decided.from as u8,
            decided.to as u8,
            decided.account.map(|account| account.0 as i64),
        ])?;
    Ok(())
}

/// All decisions.
pub(crate) fn decisions(db: &Connection, institution: InstitutionId) -> Result<Vec<DecisionRow>, StoreError> {
    decisions_by(db, institution, "TRUE", [])
}

/// What was decided of the cases of a card.
pub(crate) fn decisions_about(
    db: &Connection,
    institution: InstitutionId,
    serial: CardSerial,
) -> Result<Vec<DecisionRow>, StoreError> {
    decisions_by(db, institution, "serial = ?1", [serial.to_string()])
}

/// What was decided of the case of a purchase.
pub(crate) fn decision_of(db: &Connection, purchase: EntryRef) -> Result<Option<DecisionRow>, StoreError> {
    let condition = "purchase_log = ?1 AND purchase_position = ?2";
    let parameters = params![purchase.log.key(), purchase.position as i64];
    Ok(decisions_by(db, purchase.log.institution, condition, parameters)?.pop())
}

fn decisions_by(
    db: &Connection,
    institution: InstitutionId,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<DecisionRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT purchase_log, purchase_position, log, position, serial, amount, merchant, source, target, account
         FROM purse_decisions WHERE {condition}"
    ))?;
    let read = |row: &Row<'_>| {
        let place = |index: usize| -> Result<EntryRef, StoreError> {
            let log = LogId::from_key(institution, row.get(index)?);
            Ok(EntryRef { log, position: row.get::<_, i64>(index + 1)? as u64 })
        };
        let serial: String = row.get(4)?;
        let decided = PurseCaseDecided {
            purchase: place(0)?,
            serial: corrupt(serial.parse().ok(), "a card's serial")?,
            amount: Fen::new(row.get(5)?),
            merchant: row.get(6)?,
            from: side_of(row.get(7)?)?,
            to: side_of(row.get(8)?)?,
            account: row.get::<_, Option<i64>>(9)?.map(|account| AccountId(account as u64)),
        };
        Ok(DecisionRow { at: place(2)?, decided })
    };
    statement.query_and_then(parameters, read)?.collect()
}

/// Keeps a purchase.
pub(crate) fn insert_purchase(
    db: &Connection,
    at: EntryRef,
    purchase: &PursePurchase,
    became: Became,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO purse_purchases VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)")?
        .execute(params![
        at.log.key(),
        at.position as i64,
        purchase.serial.to_string(),
        purchase.counter.0,
        purchase.amount.get(),
        purchase.terminal.to_string(),
        purchase.sequence.0,
        purchase.time.to_string(),
        purchase.tac.map(|tac| tac.to_string()),
        purchase.merchant,
        became as u8,
    ])?;
    Ok(())
}

const PURCHASE_COLUMNS: &str =
    "log, position, counter, amount, terminal, sequence, time, tac, merchant, became, serial";

fn purchase_row(row: &Row<'_>, institution: InstitutionId) -> Result<(CardSerial, PurchaseRow), StoreError> {
    let tac: Option<String> = row.get(7)?;
    let purchase = PurchaseRow {
        at: EntryRef {
            log: LogId::from_key(institution, row.get(0)?),
            position: row.get::<_, i64>(1)? as u64,
        },
        counter: Counter(row.get(2)?),
        amount: Fen::new(row.get(3)?),
        terms: (row.get(4)?, row.get(5)?, row.get(6)?),
        tac: tac.map(|tac| corrupt(tac.parse().ok(), "a TAC")).transpose()?,
        merchant: row.get(8)?,
        became: Became::from_number(row.get(9)?)?,
    };
    let serial: String = row.get(10)?;
    Ok((corrupt(serial.parse().ok(), "a card's serial")?, purchase))
}

fn purchases_by(
    db: &Connection,
    institution: InstitutionId,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<(CardSerial, PurchaseRow)>, StoreError> {
    let mut statement =
        db.prepare_cached(&format!("SELECT {PURCHASE_COLUMNS} FROM purse_purchases WHERE {condition}"))?;
    statement.query_and_then(parameters, |row| purchase_row(row, institution))?.collect()
}

/// The purchases that are cases.
pub(crate) fn cases(
    db: &Connection,
    institution: InstitutionId,
) -> Result<Vec<(CardSerial, PurchaseRow)>, StoreError> {
    let paid = Became::Repeat as u8;
    let mut cases = purchases_by(db, institution, "became > ?1 ORDER BY log, position", [paid])?;
    cases.retain(|(_, purchase)| purchase.became.case().is_some());
    Ok(cases)
}

/// The purchases of a card as they were reported, by counter.
pub(crate) fn purchases(
    db: &Connection,
    institution: InstitutionId,
    serial: CardSerial,
) -> Result<Vec<PurchaseRow>, StoreError> {
    let condition = "serial = ?1 ORDER BY counter, log, position";
    let found = purchases_by(db, institution, condition, [serial.to_string()])?;
    Ok(found.into_iter().map(|(_, purchase)| purchase).collect())
}

/// All purchases.
pub(crate) fn all_purchases(
    db: &Connection,
    institution: InstitutionId,
) -> Result<Vec<(CardSerial, PurchaseRow)>, StoreError> {
    purchases_by(db, institution, "TRUE ORDER BY log, position", [])
}

/// The purchase that a card made with a counter.
pub(crate) fn counted(
    db: &Connection,
    institution: InstitutionId,
    serial: CardSerial,
    counter: Counter,
) -> Result<Option<PurchaseRow>, StoreError> {
    let condition = "serial = ?1 AND counter = ?2";
    let found = purchases_by(db, institution, condition, params![serial.to_string(), counter.0])?;
    Ok(found.into_iter().map(|(_, purchase)| purchase).find(|purchase| purchase.became.counts()))
}

/// A purchase that counts, by what a TAC of algorithm 00 binds: it has no counter in it, so that one TAC could be reported with
/// many.
pub(crate) fn with_terms(
    db: &Connection,
    institution: InstitutionId,
    purchase: &PursePurchase,
) -> Result<Option<PurchaseRow>, StoreError> {
    let condition = "serial = ?1 AND terminal = ?2 AND sequence = ?3";
    let parameters = params![purchase.serial.to_string(), purchase.terminal.to_string(), purchase.sequence.0];
    let found = purchases_by(db, institution, condition, parameters)?;
    let mut counted = found.into_iter().map(|(_, row)| row).filter(|row| row.became.counts());
    Ok(counted.find(|row| row.is_same(purchase)))
}

impl PurchaseRow {
    /// True where another report is of the same purchase.
    pub(crate) fn is_same(&self, purchase: &PursePurchase) -> bool {
        let terms = (purchase.terminal.to_string(), purchase.sequence.0, purchase.time.to_string());
        self.amount == purchase.amount && self.terms == terms && self.tac == purchase.tac
    }
}
