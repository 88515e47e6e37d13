//! The own log and the centre's stream for this node, folded into rows, shares, debits and own effects.

use std::collections::{BTreeMap, BTreeSet};

use feiqian_protocol::campus::{CampusConfig, Mode};
use feiqian_protocol::entry::{Body, Entry, StandInGrant};
use feiqian_protocol::ids::{AccountId, Epoch, LogId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::rights::{Row, Rows, Share};
use feiqian_protocol::time::BusinessDay;
use rusqlite::Connection;

use super::{Report, touches_balance};
use crate::edge::SHARE_DAYS_KEPT;
use crate::io::Identity;
use crate::store::accounts::{read_wallet, shares, summed_up};
use crate::store::log::{each_record, heads, last_position};
use crate::store::settings::positions;
use crate::store::snapshots::installed;
use crate::store::taps::DebitRow;
use crate::store::{Saved, StoreError, saved};

/// What the entries give, by epoch: a grant for the next one may be applied before this one's end is folded.
struct Fold {
    epochs: BTreeMap<Epoch, Rows>,
    open: Epoch,
    debits: BTreeMap<u64, DebitRow>,
    reversals: BTreeMap<u64, (AccountId, Wallet, Fen)>,
    own: BTreeMap<(AccountId, Wallet), Fen>,
    /// Settings that were written here, and their accounts.
    settings: BTreeMap<u64, AccountId>,
    /// Of those that are in an account's stream, where; 0 for one that was refused.
    answered: BTreeMap<u64, u64>,
    /// True where stand-in may have been unlimited at some time.
    unlimited: bool,
    /// True while a restored copy is getting back what it had lost of its log, and of the grants that it was written under.
    incomplete: bool,
}

/// Compares rights, shares, debits and own effects of the tables with what the entries give.
pub(super) fn compare(
    connection: &Connection,
    identity: &Identity,
    report: &mut Report,
) -> Result<(), StoreError> {
    let saved = saved(connection, identity)?;
    let own_log = LogId::node(identity.institution, identity.node);
    let to_node = LogId::to_node(identity.institution, identity.node);
    let mut fold = Fold {
        epochs: BTreeMap::new(),
        open: Epoch::FIRST,
        debits: BTreeMap::new(),
        reversals: BTreeMap::new(),
        own: BTreeMap::new(),
        settings: BTreeMap::new(),
        answered: BTreeMap::new(),
        unlimited: was_ever_optimistic(connection, identity)?,
        incomplete: saved.tail_until.is_some(),
    };

    let mut grants: BTreeMap<u64, Body> = BTreeMap::new();
    each_record(connection, to_node, |position, record| {
        match Entry::from_record(record).map(|entry| entry.body) {
            Ok(Body::SettingAnswered(answered)) => {
                let taken_at = if answered.refused.is_some() { 0 } else { answered.stream_position };
                fold.answered.insert(answered.position, taken_at);
            }
            Ok(body) => {
                grants.insert(position, body);
            }
            Err(_) => {}
        }
        Ok(())
    })?;
    let posted = posted_heads(connection)?;
    let heads = heads(connection, own_log)?;
    let mut due = heads.iter().peekable();
    each_record(connection, own_log, |position, record| {
        // The head of a commit says how much of the centre's stream was applied when its entries were written.
        while due.next_if(|signed| signed.head.cursor.position < position).is_some() {}
        let applied = due.peek().map_or(u64::MAX, |signed| signed.head.applied);
        while let Some(grant) = grants.first_entry().filter(|grant| *grant.key() <= applied) {
            fold.grant(&grant.remove(), report);
        }
        if let Ok(entry) = Entry::from_record(record) {
            fold.entry(position, &entry.body, &posted, report);
        }
        Ok(())
    })?;
    for body in grants.into_values() {
        fold.grant(&body, report);
    }

    if fold.open != saved.epoch {
        report.problem(format!("epoch {} is open by the entries, {} by the tables", fold.open, saved.epoch));
    }
    compare_wallets(connection, &fold, &saved, report)?;
    compare_shares(connection, &fold, &saved, report)?;
    compare_debits(connection, &fold, report)?;
    compare_reversals(connection, &fold, report)?;
    compare_settings(connection, identity, &fold, report)
}

impl Fold {
    fn rows(&mut self, epoch: Epoch) -> &mut Rows {
        self.epochs.entry(epoch).or_default()
    }

    fn grant(&mut self, body: &Body, report: &mut Report) {
        let result = match body {
            Body::Grant(grant) => {
                self.rows(grant.epoch).money.entry((grant.account, grant.wallet)).or_default().grant(grant)
            }
            Body::StandInGrant(StandInGrant(grant)) => self
                .rows(grant.epoch)
                .money
                .entry((grant.account, grant.wallet))
                .or_default()
                .stand_in_grant(grant),
            Body::ShareGrant(grant) => {
                self.rows(grant.epoch).shares.entry(grant.account).or_default().grant(grant)
            }
            _ => Ok(()),
        };
        if let Err(error) = result {
            report.problem(format!("a {} that does not fit: {error}", body.name()));
        }
    }

    fn entry(&mut self, position: u64, body: &Body, posted: &BTreeMap<u8, u64>, report: &mut Report) {
        if touches_balance(body) {
            self.own_effect(position, body, posted);
        }
        if let Err(error) = self.rights(position, body) {
            report.problem(format!("entry {position}, a {}: {error}", body.name()));
        }
    }

    fn own_effect(&mut self, position: u64, body: &Body, posted: &BTreeMap<u8, u64>) {
        let (account, wallet, amount) = match body {
            Body::Debit(debit) => (debit.account, debit.wallet, -debit.amount()),
            Body::Reversal(reversal) => (reversal.account, reversal.wallet, reversal.amount()),
            Body::TakenIn(taken_in) => (taken_in.account, taken_in.wallet, taken_in.amount),
            _ => return,
        };
        if position > posted.get(&account.shard()).copied().unwrap_or(0) {
            *self.own.entry((account, wallet)).or_default() += amount;
        }
    }

    fn rights(&mut self, position: u64, body: &Body) -> Result<(), Box<dyn std::error::Error>> {
        let unlimited = self.unlimited;
        match body {
            Body::Debit(debit) => {
                self.debits.insert(position, DebitRow::new(position, debit));
                let lenient = self.incomplete;
                let rows = self.rows(debit.epoch);
                let row = rows.money.entry((debit.account, debit.wallet)).or_default();
                let debited = row.debit(debit, unlimited);
                if !lenient {
                    debited?;
                }
                if debit.allowance.is_positive() {
                    let share = rows.shares.entry(debit.account).or_default();
                    if unlimited || lenient {
                        *share.used_on.entry(debit.day).or_default() += debit.allowance;
                    } else {
                        share.spend(debit.day, debit.allowance)?;
                    }
                    if let Some(meal) = debit.meal {
                        share.count_in(debit.day, meal, debit.allowance);
                    }
                }
            }
            Body::Reversal(reversal) => {
                let debit = self.debits.get_mut(&reversal.debit).ok_or("it names no debit")?;
                if reversal.amount() > debit.rest() || reversal.stand_in_home > debit.stand_in_rest {
                    return Err("more than is left of its debit".into());
                }
                debit.reverse(reversal);
                let meal = debit.meal;
                let effect = (reversal.account, reversal.wallet, reversal.amount());
                self.reversals.insert(position, effect);
                let rows = self.rows(reversal.epoch);
                rows.money.entry((reversal.account, reversal.wallet)).or_default().reversal(reversal)?;
                if reversal.allowance_back.is_positive() {
                    let share = rows.shares.entry(reversal.account).or_default();
                    share.give_back(reversal.day, reversal.allowance_back)?;
                    if let Some(meal) = meal {
                        share.count_out(reversal.day, meal, reversal.allowance_back);
                    }
                }
            }
            Body::Release(release) => {
                let lenient = self.incomplete;
                let rows = self.rows(release.epoch);
                let released =
                    rows.money.entry((release.account, release.wallet)).or_default().release(release);
                if !lenient {
                    released?;
                }
            }
            Body::ShareRelease(release) => {
                let lenient = self.incomplete;
                let released =
                    self.rows(release.epoch).shares.entry(release.account).or_default().release(release);
                // With unlimited use a day may have had less than nothing left, which took nothing from the others.
                if !lenient && !unlimited {
                    released?;
                }
            }
            Body::TakenIn(taken_in) => {
                self.rows(taken_in.epoch)
                    .money
                    .entry((taken_in.account, taken_in.wallet))
                    .or_default()
                    .take_in(taken_in)?;
            }
            Body::Setting(setting) => {
                self.settings.insert(position, setting.account);
            }
            Body::CardShown(shown) => {
                self.settings.insert(position, shown.issuance.issuance.account);
            }
            Body::EpochEnd(end) => {
                if end.epoch != self.open {
                    return Err(format!("epoch {} is open", self.open).into());
                }
                self.rows(end.epoch).end();
                self.open = end.epoch.next();
            }
            _ => {}
        }
        Ok(())
    }

    fn open_rows(&self) -> Rows {
        self.epochs.get(&self.open).cloned().unwrap_or_default()
    }
}

/// True where any campus configuration held here was `optimistic`.
fn was_ever_optimistic(connection: &Connection, identity: &Identity) -> Result<bool, StoreError> {
    let log = LogId::shard(identity.institution, 0);
    let base = match installed(connection, log) {
        // That is said already.
        Err(StoreError::Damaged(_)) => None,
        base => base?,
    };
    let mut found = base.and_then(|signed| signed.snapshot.campus).is_some_and(|campus| campus.unlimited);
    each_record(connection, log, |_, record| {
        if let Ok(Entry { body: Body::CampusPublished(published), .. }) = Entry::from_record(record)
            && let Ok(config) = CampusConfig::from_bytes(&published.config)
        {
            found |= config.policy.mode == Mode::Optimistic;
        }
        Ok(())
    })?;
    Ok(found)
}

fn posted_heads(connection: &Connection) -> Result<BTreeMap<u8, u64>, StoreError> {
    let mut statement = connection.prepare("SELECT shard, position FROM posted")?;
    let heads = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?;
    Ok(heads.collect::<Result<_, _>>()?)
}

fn compare_wallets(
    connection: &Connection,
    fold: &Fold,
    saved: &Saved,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut rows = fold.open_rows().money;
    if saved.refused.is_some() {
        rows.clear();
    }
    let mut own = fold.own.clone();
    let mut statement = connection.prepare(
        "SELECT account, wallet, own, granted, unspent, released, stand_in_granted, stand_in_left FROM wallets_now",
    )?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let key = (AccountId(row.get::<_, i64>(0)? as u64), read_wallet(row.get(1)?)?);
        let fen = |index| row.get::<_, i64>(index).map(Fen::new);
        let held = Row {
            granted: fen(3)?,
            unspent: fen(4)?,
            released: fen(5)?,
            stand_in_granted: fen(6)?,
            stand_in_left: fen(7)?,
        };
        let (account, wallet) = key;
        if held != rows.remove(&key).unwrap_or_default() {
            report
                .problem(format!("the rights of account {account}, {wallet}, are not what the entries give"));
        }
        if fen(2)? != own.remove(&key).unwrap_or_default() {
            report.problem(format!(
                "own effects of account {account}, {wallet}, are not what the entries give"
            ));
        }
    }
    rows.retain(|_, row| *row != Row::default());
    own.retain(|_, amount| *amount != Fen::ZERO);
    for (account, wallet) in rows.keys().chain(own.keys()) {
        report.problem(format!("account {account}, {wallet}, is missing in the tables"));
    }
    Ok(())
}

fn compare_shares(
    connection: &Connection,
    fold: &Fold,
    saved: &Saved,
    report: &mut Report,
) -> Result<(), StoreError> {
    let horizon = BusinessDay(saved.last_day.0 - SHARE_DAYS_KEPT);
    let normal = |shares: BTreeMap<AccountId, Share>| -> BTreeMap<AccountId, Share> {
        let short = shares.into_iter().map(|(account, share)| (account, summed_up(&share, horizon)));
        short.filter(|(_, share)| *share != Share::default()).collect()
    };
    let held = normal(shares(connection)?);
    let mut folded = normal(fold.open_rows().shares);
    if saved.refused.is_some() {
        folded.clear();
    }
    for account in held.keys().chain(folded.keys().filter(|account| !held.contains_key(account))) {
        if held.get(account) != folded.get(account) {
            report.problem(format!("the allowance share of account {account} is not what the entries give"));
        }
    }
    Ok(())
}

fn compare_debits(connection: &Connection, fold: &Fold, report: &mut Report) -> Result<(), StoreError> {
    let mut statement = connection.prepare(
        "SELECT position, amount, right_rest, stand_in_rest, allowance_rest, account, wallet, meal FROM debits
         ORDER BY position",
    )?;
    let mut rows = statement.query([])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let fen = |index| row.get::<_, i64>(index).map(Fen::new);
        let position = row.get::<_, i64>(0)? as u64;
        let held = (fen(1)?, fen(2)?, fen(3)?, fen(4)?);
        let of = (AccountId(row.get::<_, i64>(5)? as u64), read_wallet(row.get(6)?)?, row.get(7)?);
        let folded = fold.debits.get(&position).map(|debit| {
            let rests = (debit.amount, debit.right_rest, debit.stand_in_rest, debit.allowance_rest);
            (rests, (debit.account, debit.wallet, debit.meal))
        });
        if folded != Some((held, of)) {
            report.problem(format!("what is left of debit {position} is not what the entries give"));
        }
        count += 1;
    }
    if count != fold.debits.len() {
        report.problem(format!("{count} debits in the tables, {} in the log", fold.debits.len()));
    }
    Ok(())
}

fn compare_reversals(connection: &Connection, fold: &Fold, report: &mut Report) -> Result<(), StoreError> {
    let mut statement =
        connection.prepare("SELECT position, account, wallet, amount FROM reversals ORDER BY position")?;
    let mut rows = statement.query([])?;
    let mut missing = fold.reversals.clone();
    while let Some(row) = rows.next()? {
        let position = row.get::<_, i64>(0)? as u64;
        let held =
            (AccountId(row.get::<_, i64>(1)? as u64), read_wallet(row.get(2)?)?, Fen::new(row.get(3)?));
        if missing.remove(&position) != Some(held) {
            report.problem(format!("reversal {position} is not what the entries give"));
        }
    }
    for position in missing.keys() {
        report.problem(format!("reversal {position} is missing in the tables"));
    }
    Ok(())
}

/// What was written here and is in no document yet.
fn compare_settings(
    connection: &Connection,
    identity: &Identity,
    fold: &Fold,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut waiting = BTreeSet::new();
    for (position, account) in &fold.settings {
        let log = LogId::shard(identity.institution, account.shard());
        let applied = last_position(connection, log)?;
        if fold.answered.get(position).is_none_or(|taken_at| *taken_at > applied) {
            waiting.insert(*position);
        }
    }
    // While a restored copy gets its log back, the centre may have answered what is not here yet.
    if !fold.incomplete && positions(connection)? != waiting {
        report.problem("the settings that wait for the centre are not what the entries give");
    }
    Ok(())
}
