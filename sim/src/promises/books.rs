//! The books of all sides at one moment, and what must be true of them.

mod reached;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use feiqian_protocol::campus::{Mode, Policy};
use feiqian_protocol::entry::{Bearer, Body, CaseReason, Entry, Reversal};
use feiqian_protocol::ids::{AccountId, LogId, NodeId, Wallet};
use feiqian_protocol::limits::SHARDS;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::BusinessDay;
use sha2::{Digest, Sha256};

use super::Promise;
use super::vouchers::{Vouchers, all_ended, holds};
use crate::link::invariants::effect;
use crate::link::tables::{Case, CentreRow, CentreTables, CentreWallet, NodeRow, RowKey};
use crate::plan::INSTITUTION;

/// Something that is not as promised.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was promised.
    pub promise: Promise,
    /// What was found.
    pub text: String,
}

impl Finding {
    pub(crate) fn new(promise: Promise, text: impl Into<String>) -> Self {
        Self { promise, text: text.into() }
    }
}

/// What a check says.
pub type Checked = Result<(), Finding>;

/// One node's part.
#[derive(Debug)]
pub struct NodeBooks {
    /// The node.
    pub node: NodeId,
    /// True where the log has one continuation and its disk keeps what it says it keeps.
    pub sound: bool,
    /// Its log, from its own disk; where it is not sound, the log and its branches as the centre has them.
    pub logs: Vec<Arc<Vec<Entry>>>,
    /// How much of the log the centre has ingested.
    pub ingested: usize,
    /// Its open epoch.
    pub epoch: u32,
    /// Its rows.
    pub rows: BTreeMap<(AccountId, Wallet), NodeRow>,
    /// What the centre wrote for it and it has not applied.
    pub not_applied: Vec<Entry>,
}

impl NodeBooks {
    fn not_ingested(&self) -> &[Entry] {
        if self.sound { self.logs[0].get(self.ingested..).unwrap_or_default() } else { &[] }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.logs.iter().flat_map(|log| log.iter())
    }
}

/// Everything that both sides hold, at one moment.
#[derive(Debug)]
pub struct Books {
    /// The nodes.
    pub nodes: Vec<NodeBooks>,
    /// The centre's wallets.
    pub wallets: BTreeMap<(AccountId, Wallet), CentreWallet>,
    /// What a centre that came back knows of them from posted batches alone.
    pub unheard: BTreeMap<(AccountId, Wallet), Fen>,
    /// The centre's rows of rights.
    pub rights: BTreeMap<RowKey, CentreRow>,
    /// The centre's account streams.
    pub shards: Vec<Arc<Vec<Entry>>>,
    /// The centre's streams for nodes.
    pub to_nodes: Vec<Arc<Vec<Entry>>>,
    /// Cases.
    pub cases: Vec<(Wallet, Case)>,
    /// What replaying each wallet's movements says that its cases must be opened with.
    pub overspent: BTreeMap<(AccountId, Wallet), Fen>,
    /// What was out at the declared heads of epochs that the centre closed by itself.
    pub closed_by_force: Fen,
    /// Rows that were given up when their account was closed, with what was out in them.
    pub given_up: BTreeMap<RowKey, Fen>,
    /// What was reversed of taps that had been refunded, by account: the refund is taken back from whatever is left of it.
    pub taken_back: BTreeMap<AccountId, Fen>,
    /// Heads that were declared: node, epoch, position.
    pub closings: Vec<(u16, u32, u64)>,
    /// Entries that break a rule, as the centre noted them.
    pub faults: Vec<String>,
    /// Entries whose postings do not sum to zero.
    pub unbalanced: Vec<(i64, i64, i64)>,
    /// The daily allowance of each account, where the business day of every node can be trusted.
    pub daily: BTreeMap<AccountId, Fen>,
    /// What was held for vouchers.
    pub vouchers: Vouchers,
    /// Of debits of cash by account, log and position, how much nothing covers; empty where nobody has a voucher.
    pub unbacked: BTreeMap<(AccountId, i64, u64), Fen>,
    /// The centre came back from an old copy, which may not know all that it held.
    pub was_restored: bool,
    policy: Policy,
    slack: BTreeMap<AccountId, Fen>,
    rotten: bool,
}

/// What holds between any two steps.
pub const AT_ANY_MOMENT: [fn(&Books) -> Checked; 9] =
    [balanced, partition, conservation, views, holds, stand_in_cap, no_overspend, allowance, cases];

impl Books {
    /// Adds what the centre holds. `slack`: what copied disks may spend once more, by account; `rotten`: a disk holds what
    /// nobody wrote.
    ///
    /// # Errors
    /// Where a database cannot be read.
    pub fn gather(
        centre: &mut CentreTables,
        nodes: Vec<NodeBooks>,
        policy: Policy,
        slack: BTreeMap<AccountId, Fen>,
        rotten: bool,
    ) -> Result<Self> {
        let shards = (0..SHARDS).map(|shard| centre.entries(LogId::shard(INSTITUTION, shard)));
        let shards: Vec<Arc<Vec<Entry>>> = shards.collect::<Result<_>>()?;
        let to_nodes = nodes.iter().map(|node| centre.entries(LogId::to_node(INSTITUTION, node.node)));
        let to_nodes = to_nodes.collect::<Result<_>>()?;
        let by_node = nodes.iter().map(|node| (node.node, node.sound, &node.logs[..]));
        let vouchers = Vouchers::read(shards.iter().flat_map(|shard| shard.iter()), by_node);
        let unbacked = if vouchers.is_empty() { BTreeMap::new() } else { centre.unbacked()? };
        Ok(Self {
            vouchers,
            unbacked,
            was_restored: false,
            daily: BTreeMap::new(),
            wallets: centre.wallets()?,
            unheard: centre.unheard()?,
            rights: centre.rights()?,
            cases: centre.cases_by_wallet()?,
            overspent: centre.overspent()?,
            closed_by_force: centre.closed_by_force()?,
            given_up: centre.given_up()?,
            taken_back: centre.refunds_taken_back()?,
            closings: centre.closings()?,
            faults: centre.faults()?,
            unbalanced: centre.unbalanced()?,
            nodes,
            shards,
            to_nodes,
            policy,
            slack,
            rotten,
        })
    }

    fn has_copies(&self) -> bool {
        self.nodes.iter().any(|node| !node.sound)
    }

    fn cap(&self) -> Option<Fen> {
        match self.policy.mode {
            Mode::Optimistic => None,
            Mode::Hybrid => Some(self.policy.stand_in_account_cap_fen),
            Mode::Strict => Some(Fen::ZERO),
        }
    }

    fn shard_entries(&self) -> impl Iterator<Item = &Entry> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// F per account and wallet: credits, refunds and payouts, and what nodes wrote down, ingested or not.
    pub fn funds_from_entries(&self) -> BTreeMap<(AccountId, Wallet), Fen> {
        let mut funds = BTreeMap::new();
        let mut add = |account, wallet, fen: Fen| *funds.entry((account, wallet)).or_insert(Fen::ZERO) += fen;
        for entry in self.shard_entries() {
            if let Some((account, wallet, fen)) = centre_effect(&entry.body) {
                add(account, wallet, fen);
            }
        }
        for entry in self.nodes.iter().flat_map(NodeBooks::entries) {
            if let Some((account, wallet, fen)) = effect(&entry.body) {
                add(account, wallet, fen);
            }
        }
        funds
    }

    /// What each account holds at the centre, over its wallets.
    pub fn money(&self) -> BTreeMap<AccountId, Fen> {
        let mut money = BTreeMap::new();
        for ((account, _), held) in &self.wallets {
            *money.entry(*account).or_default() += held.funds;
        }
        money
    }

    /// What the account streams say that is posted.
    pub fn posted(&self) -> BTreeMap<(AccountId, Wallet), Fen> {
        let mut posted = BTreeMap::new();
        for entry in self.shard_entries() {
            for (account, wallet, fen) in feiqian_protocol::balance::balance_deltas(&entry.body) {
                *posted.entry((account, wallet)).or_default() += fen;
            }
        }
        posted
    }

    /// Entries in all logs.
    pub fn entries(&self) -> u64 {
        let nodes = self.nodes.iter().flat_map(|node| &node.logs);
        nodes.chain(&self.shards).chain(&self.to_nodes).map(|log| log.len() as u64).sum()
    }
}

/// What an entry of the centre does to the funds of an account.
pub(super) fn centre_effect(body: &Body) -> Option<(AccountId, Wallet, Fen)> {
    match body {
        Body::Credit(credit) => Some((credit.account, credit.wallet, credit.amount)),
        Body::Refund(refund) => Some((refund.account, refund.wallet, refund.amount)),
        Body::PurseLoad(load) => Some((load.account, load.wallet, -load.amount)),
        Body::PurseReturned(back) => Some((back.account, back.wallet, back.amount)),
        Body::PurseCaseDecided(decided) => decided.given_back(),
        Body::PurseLoadSettled(settled) if settled.reversed => {
            Some((settled.account, settled.wallet, settled.amount))
        }
        Body::Payout(payout) => Some((payout.account, payout.wallet, -payout.amount)),
        _ => None,
    }
}

/// SHA-256 over lines, as hex.
pub fn digest_lines(lines: &[String]) -> String {
    let mut sha = Sha256::new();
    for line in lines {
        sha.update(line.as_bytes());
        sha.update(b"\n");
    }
    feiqian_protocol::chain::hex(&sha.finalize())
}

macro_rules! promise {
    ($holds:expr, $promise:ident, $($text:tt)*) => {
        if !$holds {
            return Err(Finding::new(Promise::$promise, format!($($text)*)));
        }
    };
}

/// Postings sum to zero; no entry of an honest node breaks a rule.
fn balanced(books: &Books) -> Checked {
    promise!(
        books.unbalanced.is_empty(),
        Conservation,
        "postings that do not sum to zero: {:?}",
        books.unbalanced
    );
    let explained = |fault: &&String| books.vouchers.explains(fault, books.was_restored);
    let unexplained: Vec<_> = books.faults.iter().filter(|fault| !explained(fault)).collect();
    promise!(
        books.rotten || books.has_copies() || unexplained.is_empty(),
        History,
        "the centre found faults: {unexplained:?}"
    );
    Ok(())
}

/// I1: funds are partitioned among the centre and the holders of rights.
fn partition(books: &Books) -> Checked {
    let mut with_holders: BTreeMap<(AccountId, Wallet), Fen> = BTreeMap::new();
    for (key, row) in &books.rights {
        promise!(
            !row.out.is_negative() && !row.residue.is_negative(),
            Conservation,
            "I1: row {key:?} is below zero: {row:?}"
        );
        *with_holders.entry((key.0, key.1)).or_default() += row.out + row.residue;
    }
    for (key, held) in &books.wallets {
        let out = with_holders.get(key).copied().unwrap_or_default();
        promise!(
            held.funds == held.free + out,
            Conservation,
            "I1: {key:?}: funds {} are not free {} + {out} with holders",
            held.funds,
            held.free
        );
    }
    Ok(())
}

/// I2: what is there, is there once: entries equal funds and what is not ingested, and has not been told by a posted batch.
fn conservation(books: &Books) -> Checked {
    let mut expected = books.funds_from_entries();
    for (key, fen) in &books.unheard {
        *expected.entry(*key).or_default() += *fen;
    }
    for entry in books.nodes.iter().flat_map(NodeBooks::not_ingested) {
        if let Some((account, wallet, fen)) = effect(&entry.body) {
            *expected.entry((account, wallet)).or_default() -= fen;
        }
    }
    for (key, fen) in expected {
        let funds = books.wallets.get(&key).map(|held| held.funds).unwrap_or_default();
        promise!(funds == fen, Conservation, "I2: {key:?}: funds {funds}, by the entries {fen}");
    }
    Ok(())
}

/// I3: the centre's view of each row of an open epoch is the node's row, and what is under way.
fn views(books: &Books) -> Checked {
    for node in books.nodes.iter().filter(|node| node.sound) {
        // Once the centre has closed the epoch by itself, the rows of a node that has not heard of it count for nothing.
        let closes =
            |entry: &Entry| matches!(&entry.body, Body::Closed(closed) if closed.epoch.0 == node.epoch);
        if !node.not_applied.iter().any(closes) {
            row_views(books, node)?;
        }
    }
    Ok(())
}

/// The rows of a node's open epoch, and what is under way: right and stand-in that the centre must assume is there.
pub fn rows_there(node: &NodeBooks) -> BTreeMap<(AccountId, Wallet), (Fen, Fen)> {
    let mut rows: BTreeMap<(AccountId, Wallet), (Fen, Fen)> = BTreeMap::new();
    for (key, held) in &node.rows {
        rows.insert(*key, (held.unspent, held.stand_in_left));
    }
    let mut add = |account, wallet, epoch: u32, out: Fen, stand_in: Fen| {
        if epoch == node.epoch {
            let row = rows.entry((account, wallet)).or_default();
            row.0 += out;
            row.1 += stand_in;
        }
    };
    for entry in &node.not_applied {
        match &entry.body {
            Body::Grant(grant) => add(grant.account, grant.wallet, grant.epoch.0, grant.amount, Fen::ZERO),
            Body::StandInGrant(grant) => {
                let grant = &grant.0;
                add(grant.account, grant.wallet, grant.epoch.0, Fen::ZERO, grant.amount);
            }
            _ => {}
        }
    }
    for entry in node.not_ingested() {
        match &entry.body {
            Body::Debit(debit) => {
                add(debit.account, debit.wallet, debit.epoch.0, debit.from_right, debit.stand_in);
            }
            Body::Reversal(back) => add(back.account, back.wallet, back.epoch.0, -back.right_back, Fen::ZERO),
            Body::Release(release) => {
                add(release.account, release.wallet, release.epoch.0, release.amount, Fen::ZERO);
            }
            Body::TakenIn(taken) => add(taken.account, taken.wallet, taken.epoch.0, -taken.amount, Fen::ZERO),
            _ => {}
        }
    }
    rows
}

fn row_views(books: &Books, node: &NodeBooks) -> Checked {
    let mut rows = rows_there(node);
    for key in books.rights.keys().filter(|key| key.2 == node.node.0 && key.3 == node.epoch) {
        rows.entry((key.0, key.1)).or_default();
    }
    let with_stand_in = books.policy.mode != Mode::Optimistic;
    for ((account, wallet), (out, stand_in)) in rows {
        let key = (account, wallet, node.node.0, node.epoch);
        if books.given_up.contains_key(&key) {
            // Whatever is there counts for nothing.
            continue;
        }
        let view = books.rights.get(&key).copied().unwrap_or_default();
        promise!(
            view.out == out,
            NoOverspend,
            "I3: account {account} {wallet} at node {}: the centre sees {}, there is {out}",
            node.node,
            view.out
        );
        promise!(
            !with_stand_in || view.stand_in_out == stand_in,
            StandInCap,
            "I3: account {account} {wallet} at node {}: stand-in seen {}, there is {stand_in}",
            node.node,
            view.stand_in_out
        );
    }
    Ok(())
}

/// I4: outstanding stand-in and shortfall of an account stay under its cap. What was out at forced closings comes on top.
fn stand_in_cap(books: &Books) -> Checked {
    let Some(cap) = books.cap() else { return Ok(()) };
    let mut exposed: BTreeMap<AccountId, Fen> = BTreeMap::new();
    for ((account, ..), row) in &books.rights {
        *exposed.entry(*account).or_default() += row.stand_in_out;
    }
    for ((account, _), held) in &books.wallets {
        *exposed.entry(*account).or_default() += (-held.free).or_zero();
    }
    for (account, fen) in exposed {
        let bound = bound(books, cap, account);
        promise!(
            books.rotten || fen <= bound,
            StandInCap,
            "I4: account {account} is exposed to {fen}, more than {bound}"
        );
    }
    Ok(())
}

/// The cap, what was out at forced closings and in rows that were given up, refunds of taps that were reversed later, what copies held, and ceilings of vouchers for each building after the first.
fn bound(books: &Books, cap: Fen, account: AccountId) -> Fen {
    let copies = books.slack.get(&account).copied().unwrap_or_default();
    let given_up =
        books.given_up.iter().filter(|(key, _)| key.0 == account).map(|(_, fen)| *fen).sum::<Fen>();
    let taken_back = books.taken_back.get(&account).copied().unwrap_or_default();
    cap + books.closed_by_force + given_up + taken_back + copies + books.vouchers.beyond(account)
}

/// I5: nobody is overspent by more than the cap, what was out at forced closings, and what copies held.
fn no_overspend(books: &Books) -> Checked {
    let Some(cap) = books.cap() else { return Ok(()) };
    let mut funds: BTreeMap<AccountId, Fen> = BTreeMap::new();
    for ((account, _), fen) in books.funds_from_entries() {
        *funds.entry(account).or_default() += fen;
    }
    for (account, fen) in funds {
        let bound = bound(books, cap, account);
        promise!(
            books.rotten || -fen <= bound,
            NoOverspend,
            "I5: account {account} is overspent by {}, more than {bound}",
            -fen
        );
    }
    Ok(())
}

/// On no business day is more of an account's no-PIN allowance used than there is, over all nodes together.
fn allowance(books: &Books) -> Checked {
    if books.has_copies() || books.policy.mode == Mode::Optimistic {
        return Ok(());
    }
    let mut used: BTreeMap<(AccountId, BusinessDay), Fen> = BTreeMap::new();
    let logs = books.nodes.iter().flat_map(|node| &node.logs);
    for (log, entry) in logs.flat_map(|log| log.iter().map(move |entry| (log, entry))) {
        match &entry.body {
            Body::Debit(debit) => {
                let of_voucher = if entry.actor.proof.has_pin() { Fen::ZERO } else { debit.of_voucher() };
                *used.entry((debit.account, debit.day)).or_default() += debit.allowance + of_voucher;
            }
            Body::Reversal(back) => {
                *used.entry((back.account, back.day)).or_default() -=
                    back.allowance_back + of_voucher_back(log, back);
            }
            _ => {}
        }
    }
    for ((account, day), fen) in used {
        if let Some(daily) = books.daily.get(&account) {
            // A voucher counts once, in however many buildings it pays; and one that a centre has forgotten is in no share.
            let forgotten = if books.was_restored { books.vouchers.forgotten(account) } else { Fen::ZERO };
            let daily = *daily + books.vouchers.beyond(account) + forgotten;
            promise!(
                fen <= daily,
                Allowance,
                "account {account} used {fen} of its allowance of {daily} on {day}"
            );
        }
    }
    Ok(())
}

/// What of a reversal goes back to the day's allowance though no share of it was used: a voucher had paid, without a PIN.
fn of_voucher_back(log: &[Entry], back: &Reversal) -> Fen {
    let debit = usize::try_from(back.debit).ok().and_then(|position| log.get(position.checked_sub(1)?));
    match debit.map(|entry| (&entry.body, entry.actor.proof.has_pin())) {
        Some((Body::Debit(debit), false)) if debit.from_voucher.is_some() => back.amount(),
        _ => Fen::ZERO,
    }
}

/// What funds are below zero, open cases amount to exactly, at every moment; and no fen was ever opened twice.
fn cases(books: &Books) -> Checked {
    let mut owed: BTreeMap<(AccountId, Wallet), Fen> = BTreeMap::new();
    let mut opened: BTreeMap<(AccountId, Wallet), Fen> = BTreeMap::new();
    for (wallet, case) in books.cases.iter().filter(|(_, case)| !is_refunded(case.reason)) {
        *owed.entry((case.account, *wallet)).or_default() += case.opened - case.recovered;
        *opened.entry((case.account, *wallet)).or_default() += case.opened;
        promise!(
            !case.opened.is_negative() && !case.recovered.is_negative() && case.recovered <= case.opened,
            Cases,
            "an impossible case: {case:?}"
        );
    }
    for (key, held) in &books.wallets {
        let owed = owed.get(key).copied().unwrap_or_default();
        let short = (-held.funds).or_zero();
        promise!(owed == short, Cases, "{key:?} is short of {short}, its open cases amount to {owed}");
        let opened = opened.get(key).copied().unwrap_or_default();
        let overspent = books.overspent.get(key).copied().unwrap_or_default();
        promise!(
            opened == overspent,
            Cases,
            "{key:?} was overspent by {overspent}, its cases were opened with {opened}"
        );
    }
    Ok(())
}

/// True for cases that the holder has back from the risk fund.
fn is_refunded(reason: u8) -> bool {
    [CaseReason::Loss, CaseReason::CodeReplayed].into_iter().any(|refunded| refunded as u8 == reason)
}

/// I6: everything that was written is applied and ingested everywhere.
///
/// # Errors
/// What is not.
pub fn all_is_home(books: &Books) -> Checked {
    for node in books.nodes.iter().filter(|node| node.sound) {
        promise!(
            node.not_ingested().is_empty(),
            Liveness,
            "node {} has {} entries that are not ingested",
            node.node,
            node.not_ingested().len()
        );
    }
    all_ended(books)?;
    let posted = books.posted();
    for (key, held) in &books.wallets {
        let posted = posted.get(key).copied().unwrap_or_default();
        promise!(posted == held.funds, Convergence, "{key:?}: {posted} posted, funds {}", held.funds);
    }
    Ok(())
}

/// Once everybody was heard, every case has a bearer.
///
/// # Errors
/// The first that has none.
pub fn bearers(books: &Books) -> Checked {
    for (_, case) in &books.cases {
        let open = case.opened > case.recovered;
        promise!(
            is_refunded(case.reason) || !open || case.bearer != Bearer::Suspense as u8,
            Cases,
            "nobody bears {case:?}, though everybody was heard"
        );
    }
    Ok(())
}
