//! The invariants of ARCHITECTURE.md section 4, each a function, over what both sides hold and what terminals were told.
//!
//! They hold at every moment between two steps, whatever was cut, delayed or crashed, as long as no disk was copied (after
//! that a log may have two continuations; the tests of copies check their own bounds).

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use feiqian_protocol::balance::Projection;
use feiqian_protocol::campus::Mode;
use feiqian_protocol::entry::{Body, Entry};
use feiqian_protocol::ids::{AccountId, LogId, NodeId, Wallet};
use feiqian_protocol::limits::SHARDS;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::BusinessDay;

use super::model::Model;
use super::tables::{
    CentreRow, CentreTables, CentreWallet, NodeRow, NodeTables, RowKey, node_log, to_node_log,
};
use super::{INSTITUTION, World};
use crate::vfs::Disk;

/// One node's part of the picture.
#[derive(Debug)]
pub struct NodePicture {
    /// The node.
    pub node: NodeId,
    /// Its site.
    pub site: usize,
    /// Its log.
    pub log: Arc<Vec<Entry>>,
    /// How much of that the centre has ingested.
    pub ingested: usize,
    /// Its open epoch.
    pub epoch: u32,
    /// Its rows.
    pub rows: BTreeMap<(AccountId, Wallet), NodeRow>,
    /// What the centre wrote for it and it has not applied.
    pub not_applied: Vec<Entry>,
}

/// Everything that both sides hold, at one moment.
#[derive(Debug)]
pub struct Picture {
    /// The nodes.
    pub nodes: Vec<NodePicture>,
    /// The centre's wallets.
    pub wallets: BTreeMap<(AccountId, Wallet), CentreWallet>,
    /// The centre's rows of rights.
    pub rights: BTreeMap<RowKey, CentreRow>,
    /// The centre's account streams.
    pub shards: Vec<Arc<Vec<Entry>>>,
    /// What was out at the declared heads of epochs that the centre closed by itself.
    pub closed_by_force: Fen,
}

impl NodePicture {
    fn not_ingested(&self) -> &[Entry] {
        self.log.get(self.ingested..).unwrap_or_default()
    }
}

/// What an entry of a node's log does to the money of an account.
pub fn effect(body: &Body) -> Option<(AccountId, Wallet, Fen)> {
    match body {
        Body::Debit(debit) => Some((debit.account, debit.wallet, -debit.amount())),
        Body::Reversal(reversal) => Some((reversal.account, reversal.wallet, reversal.amount())),
        Body::TakenIn(taken_in) => Some((taken_in.account, taken_in.wallet, taken_in.amount)),
        _ => None,
    }
}

impl World {
    /// Reads what both sides hold.
    ///
    /// # Errors
    /// Where a database cannot be read.
    pub fn picture(&mut self) -> Result<Picture> {
        let mut nodes = Vec::new();
        for site in 0..self.sites() {
            let node = self.site(site).identity.node;
            let tables = self.node_tables(site)?;
            let log = tables.entries(node_log(node))?;
            let applied = tables.entries(to_node_log(node))?.len();
            let (epoch, rows) = (tables.epoch()?, tables.rows()?);
            let centre = self.centre_tables()?;
            let ingested = centre.entries(node_log(node))?.len();
            let not_applied = centre.entries(to_node_log(node))?.get(applied..).unwrap_or_default().to_vec();
            nodes.push(NodePicture { node, site, log, ingested, epoch, rows, not_applied });
        }
        let centre = self.centre_tables()?;
        let shards = (0..SHARDS).map(|shard| centre.entries(LogId::shard(INSTITUTION, shard)));
        let shards = shards.collect::<Result<_>>()?;
        let closed_by_force = centre.closed_by_force()?;
        Ok(Picture { nodes, wallets: centre.wallets()?, rights: centre.rights()?, shards, closed_by_force })
    }

    /// What a building holds. Where its process is down, a copy of its disk is read, so that the disk stays as it is.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub fn node_tables(&mut self, site: usize) -> Result<&mut NodeTables> {
        let site = &mut self.sites[site];
        if site.reader.is_none() {
            let disk = match site.core {
                Some(_) => site.disk.clone(),
                None => Disk::from_image(&site.disk.image()),
            };
            site.reader = Some(NodeTables::open(disk)?);
        }
        site.reader.as_mut().context("just opened")
    }

    /// What the centre holds; as [`World::node_tables`].
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub fn centre_tables(&mut self) -> Result<&mut CentreTables> {
        if self.centre.reader.is_none() {
            let disk = match self.centre.core {
                Some(_) => self.centre.disk.clone(),
                None => Disk::from_image(&self.centre.disk.image()),
            };
            self.centre.reader = Some(CentreTables::open(disk)?);
        }
        self.centre.reader.as_mut().context("just opened")
    }

    /// Checks every invariant that holds at every moment.
    ///
    /// # Errors
    /// The first that does not, with the picture.
    pub fn check(&mut self) -> Result<()> {
        let picture = self.picture()?;
        let policy = &self.setup().policy;
        let cap = policy.stand_in_account_cap_fen;
        let checked = receipts(&picture, &self.model)
            .and_then(|()| partition(&picture))
            .and_then(|()| if self.model.has_copies() { Ok(()) } else { conservation(&picture) })
            .and_then(|()| {
                if self.model.has_copies() {
                    Ok(())
                } else {
                    views(&picture, policy.mode != Mode::Optimistic)
                }
            })
            .and_then(|()| match policy.mode {
                Mode::Optimistic => Ok(()),
                Mode::Hybrid => exposure(&picture, cap),
                Mode::Strict => exposure(&picture, Fen::ZERO),
            })
            .and_then(|()| match policy.mode {
                Mode::Optimistic => Ok(()),
                _ if self.model.has_copies() => Ok(()),
                Mode::Hybrid => overspend(&picture, cap),
                Mode::Strict => overspend(&picture, Fen::ZERO),
            })
            .and_then(|()| match policy.mode {
                Mode::Optimistic => Ok(()),
                _ if self.model.has_copies() => Ok(()),
                _ => allowance(&picture, self.setup().limits.1),
            });
        checked.with_context(|| summary(&picture))?;
        let centre = self.centre_tables()?;
        let faults = centre.faults()?;
        ensure!(faults.is_empty(), "the centre found faults: {faults:?}");
        let unbalanced = centre.unbalanced()?;
        ensure!(unbalanced.is_empty(), "postings that do not sum to zero: {unbalanced:?}");
        Ok(())
    }

    /// The money of an account, from what was paid in and what nodes wrote down: F.
    ///
    /// # Errors
    /// Where a database cannot be read.
    pub fn money(&mut self, card: &str) -> Result<Fen> {
        let account = self.account(card)?;
        let picture = self.picture()?;
        let of_account = |((of, _), fen): (&(AccountId, Wallet), &Fen)| (*of == account).then_some(*fen);
        Ok(funds_from_entries(&picture).iter().filter_map(of_account).sum())
    }

    /// The account of a card.
    ///
    /// # Errors
    /// Where there is none.
    pub fn account(&mut self, card: &str) -> Result<AccountId> {
        let cards = self.centre_tables()?.cards()?;
        let found = cards.into_iter().find(|(number, _)| number.as_str() == card);
        Ok(found.context("no such card")?.1)
    }

    /// After a heal (all links up, everything delivered): nothing is under way, and all have equal projections.
    ///
    /// # Errors
    /// What is not so.
    pub fn check_healed(&mut self) -> Result<()> {
        self.check()?;
        let picture = self.picture()?;
        for node in &picture.nodes {
            ensure!(node.not_ingested().is_empty(), "node {} has entries that are not ingested", node.node);
            ensure!(node.not_applied.is_empty(), "node {} has grants that are not applied", node.node);
        }
        let mut projection = Projection::new(INSTITUTION);
        for entry in picture.shards.iter().flat_map(|shard| shard.iter()) {
            projection.apply(&entry.body)?;
        }
        let expected = projection.digest()?;
        for ((account, wallet), posted) in &projection.balances {
            let funds = picture.wallets.get(&(*account, *wallet)).map(|held| held.funds);
            ensure!(funds == Some(*posted), "account {account} {wallet}: {posted} posted, funds {funds:?}");
        }
        for site in 0..self.sites() {
            let identity = self.site(site).identity.clone();
            let report = feiqian_node::verify::verify(self.node_tables(site)?.connection(), &identity)?;
            ensure!(report.ok, "the books of site {site}: {report:?}");
            for digest in [&report.digest_tables, &report.digest_folded] {
                ensure!(*digest == expected, "site {site} has another projection");
            }
        }
        Ok(())
    }
}

fn summary(picture: &Picture) -> String {
    let mut text = String::new();
    for ((account, wallet), held) in &picture.wallets {
        text += &format!("\n  {account}/{wallet}: {held:?}");
    }
    for (key, row) in &picture.rights {
        text += &format!("\n  right {key:?}: {row:?}");
    }
    for node in &picture.nodes {
        text += &format!("\n  node {} epoch {} ingested {}", node.node, node.epoch, node.ingested);
        for (key, row) in &node.rows {
            text += &format!("\n    row {key:?}: {row:?}");
        }
        for entry in &node.not_applied {
            text += &format!("\n    not applied: {:?}", entry.body);
        }
        for (index, entry) in node.log.iter().enumerate() {
            text += &format!("\n    {}: {:?}", index + 1, entry.body);
        }
    }
    text
}

/// Every answer that a terminal was given is in its node's log, exactly once and with the amount that was told; and
/// nothing is in a log that no terminal asked for.
///
/// # Errors
/// What is lost, doubled or made up.
pub fn receipts(picture: &Picture, model: &Model) -> Result<()> {
    for node in &picture.nodes {
        let mut debited: BTreeMap<(&str, u32, &str), Fen> = BTreeMap::new();
        let mut returned: BTreeMap<(&str, u32, &str), Fen> = BTreeMap::new();
        for entry in node.log.iter() {
            let sums = match &entry.body {
                Body::Debit(debit) => Some((&mut debited, &debit.tap, debit.amount())),
                Body::Reversal(reversal) => Some((&mut returned, &reversal.tap, reversal.amount())),
                _ => None,
            };
            if let Some((sums, tap, amount)) = sums {
                let key = (entry.actor.id.as_str(), tap.epoch, tap.sequence.as_str());
                *sums.entry(key).or_default() += amount;
            }
        }
        for ((site, key), request) in model.requests.iter().filter(|((site, _), _)| *site == node.site) {
            let name = (key.terminal.as_str(), key.epoch, key.sequence.as_str());
            let taken = debited.remove(&name).unwrap_or_default();
            let back = returned.remove(&name).unwrap_or_default();
            if taken.is_positive() {
                ensure!(taken == request.asked(), "{request:?} took {taken}");
            }
            let Some(answer) = model.told.get(&(*site, key.clone())) else {
                continue;
            };
            match answer.approved() {
                Some(amount) => ensure!(
                    taken + back == amount,
                    "{request:?}: told {amount}, in the log {taken} taken and {back} returned"
                ),
                None => ensure!(
                    taken == Fen::ZERO && back == Fen::ZERO,
                    "{request:?} was told {answer:?}, and {taken} was taken"
                ),
            }
        }
        if !model.has_copies() {
            ensure!(debited.is_empty(), "debits that nobody asked for: {debited:?}");
            ensure!(returned.is_empty(), "reversals that nobody asked for: {returned:?}");
        }
    }
    credits(picture, model)
}

fn credits(picture: &Picture, model: &Model) -> Result<()> {
    let mut migrated = Fen::ZERO;
    let mut keys = BTreeMap::new();
    for entry in picture.shards.iter().flat_map(|shard| shard.iter()) {
        if let Body::Credit(credit) = &entry.body {
            if credit.channel.as_str() == "counter" {
                ensure!(
                    keys.insert(credit.key.clone(), credit.amount).is_none(),
                    "credited twice: {credit:?}"
                );
            } else {
                migrated += credit.amount;
            }
        }
    }
    ensure!(migrated == model.opening(), "{migrated} was taken over, not {}", model.opening());
    for key in model.credits_told() {
        ensure!(keys.contains_key(key), "the credit {key} is lost");
    }
    for (key, amount) in &keys {
        ensure!(model.credit_sent(key) == Some(*amount), "the credit {key} of {amount} was not sent");
    }
    Ok(())
}

/// I1: funds are partitioned among the centre and the holders of rights.
///
/// # Errors
/// Where they are not.
pub fn partition(picture: &Picture) -> Result<()> {
    for ((account, wallet), held) in &picture.wallets {
        let rows = picture.rights.iter().filter(|((of, which, ..), _)| of == account && which == wallet);
        let with_holders: Fen = rows.map(|(_, row)| row.out + row.residue).sum();
        ensure!(
            held.funds == held.free + with_holders,
            "I1: account {account} {wallet}: funds {} are not free {} + {with_holders} with holders",
            held.funds,
            held.free
        );
    }
    for (key, row) in &picture.rights {
        ensure!(
            !row.out.is_negative() && !row.residue.is_negative(),
            "I1: row {key:?} is below zero: {row:?}"
        );
    }
    Ok(())
}

/// F per account and wallet: credits, refunds and payouts, and what nodes wrote down, ingested or not.
pub fn funds_from_entries(picture: &Picture) -> BTreeMap<(AccountId, Wallet), Fen> {
    let mut funds = BTreeMap::new();
    let mut add = |account, wallet, fen: Fen| *funds.entry((account, wallet)).or_insert(Fen::ZERO) += fen;
    for entry in picture.shards.iter().flat_map(|shard| shard.iter()) {
        match &entry.body {
            Body::Credit(credit) => add(credit.account, credit.wallet, credit.amount),
            Body::Refund(refund) => add(refund.account, refund.wallet, refund.amount),
            Body::Payout(payout) => add(payout.account, payout.wallet, -payout.amount),
            _ => {}
        }
    }
    for entry in picture.nodes.iter().flat_map(|node| node.log.iter()) {
        if let Some((account, wallet, fen)) = effect(&entry.body) {
            add(account, wallet, fen);
        }
    }
    funds
}

/// I2: what is there, is there once: receipts equal funds and what is not ingested.
///
/// # Errors
/// Where they do not.
pub fn conservation(picture: &Picture) -> Result<()> {
    let mut expected = funds_from_entries(picture);
    for entry in picture.nodes.iter().flat_map(NodePicture::not_ingested) {
        if let Some((account, wallet, fen)) = effect(&entry.body) {
            *expected.entry((account, wallet)).or_default() -= fen;
        }
    }
    for ((account, wallet), fen) in expected {
        let funds = picture.wallets.get(&(account, wallet)).map(|held| held.funds).unwrap_or_default();
        ensure!(funds == fen, "I2: account {account} {wallet}: funds {funds}, by the entries {fen}");
    }
    Ok(())
}

/// I3: the centre's view of each row of an open epoch is the node's row, and what is under way.
///
/// # Errors
/// Where it is not.
pub fn views(picture: &Picture, with_stand_in: bool) -> Result<()> {
    for node in &picture.nodes {
        let number = node.node.0;
        // Once the centre has closed the epoch by itself, the rows of a node that has not heard of it count for nothing.
        if node.not_applied.iter().any(|entry| closes(&entry.body, node.epoch)) {
            continue;
        }
        let open = |key: &&RowKey| key.2 == number && key.3 == node.epoch;
        let mut rows: Vec<(AccountId, Wallet)> =
            picture.rights.keys().filter(open).map(|key| (key.0, key.1)).collect();
        rows.extend(node.rows.keys());
        rows.sort_unstable();
        rows.dedup();
        for (account, wallet) in rows {
            let held = node.rows.get(&(account, wallet)).copied().unwrap_or_default();
            let view =
                picture.rights.get(&(account, wallet, number, node.epoch)).copied().unwrap_or_default();
            let (mut out, mut stand_in_out) = (held.unspent, held.stand_in_left);
            for entry in &node.not_applied {
                match &entry.body {
                    Body::Grant(grant)
                        if (grant.account, grant.wallet, grant.epoch.0) == (account, wallet, node.epoch) =>
                    {
                        out += grant.amount;
                    }
                    Body::StandInGrant(grant)
                        if (grant.0.account, grant.0.wallet, grant.0.epoch.0)
                            == (account, wallet, node.epoch) =>
                    {
                        stand_in_out += grant.0.amount;
                    }
                    _ => {}
                }
            }
            for entry in node.not_ingested() {
                match &entry.body {
                    Body::Debit(debit)
                        if (debit.account, debit.wallet, debit.epoch.0) == (account, wallet, node.epoch) =>
                    {
                        out += debit.from_right;
                        stand_in_out += debit.stand_in;
                    }
                    Body::Reversal(back)
                        if (back.account, back.wallet, back.epoch.0) == (account, wallet, node.epoch) =>
                    {
                        out -= back.right_back;
                    }
                    Body::Release(release)
                        if (release.account, release.wallet, release.epoch.0)
                            == (account, wallet, node.epoch) =>
                    {
                        out += release.amount;
                    }
                    Body::TakenIn(taken_in)
                        if (taken_in.account, taken_in.wallet, taken_in.epoch.0)
                            == (account, wallet, node.epoch) =>
                    {
                        out -= taken_in.amount;
                    }
                    _ => {}
                }
            }
            ensure!(
                view.out == out,
                "I3: account {account} {wallet} at node {number}: the centre sees {}, there is {out}",
                view.out
            );
            ensure!(
                !with_stand_in || view.stand_in_out == stand_in_out,
                "I3: account {account} {wallet} at node {number}: stand-in seen {}, there is {stand_in_out}",
                view.stand_in_out
            );
        }
    }
    Ok(())
}

fn closes(body: &Body, epoch: u32) -> bool {
    matches!(body, Body::Closed(closed) if closed.epoch.0 == epoch)
}

/// I4: outstanding stand-in and shortfall of an account stay under its cap. What was out at forced closings comes on top.
///
/// # Errors
/// Where they do not.
pub fn exposure(picture: &Picture, cap: Fen) -> Result<()> {
    let mut exposed: BTreeMap<AccountId, Fen> = BTreeMap::new();
    for ((account, ..), row) in &picture.rights {
        *exposed.entry(*account).or_default() += row.stand_in_out;
    }
    for ((account, _), held) in &picture.wallets {
        *exposed.entry(*account).or_default() += (-held.free).or_zero();
    }
    for (account, fen) in exposed {
        let bound = cap + picture.closed_by_force;
        ensure!(fen <= bound, "I4: account {account} is exposed to {fen}, more than {bound}");
    }
    Ok(())
}

/// I5: without copies, nobody is overspent by more than the cap and what was out at forced closings.
///
/// # Errors
/// Where somebody is.
pub fn overspend(picture: &Picture, cap: Fen) -> Result<()> {
    let mut funds: BTreeMap<AccountId, Fen> = BTreeMap::new();
    for ((account, _), fen) in funds_from_entries(picture) {
        *funds.entry(account).or_default() += fen;
    }
    for (account, fen) in funds {
        let bound = cap + picture.closed_by_force;
        ensure!(-fen <= bound, "I5: account {account} is overspent by {}, more than {bound}", -fen);
    }
    Ok(())
}

/// On no business day is more of an account's no-PIN allowance used than there is, over all nodes together.
///
/// # Errors
/// Where it is.
pub fn allowance(picture: &Picture, daily: Fen) -> Result<()> {
    let mut used: BTreeMap<(AccountId, BusinessDay), Fen> = BTreeMap::new();
    for (log, entry) in picture.nodes.iter().flat_map(|node| node.log.iter().map(|entry| (&node.log, entry)))
    {
        match &entry.body {
            Body::Debit(debit) => {
                let of_voucher = if entry.actor.proof.has_pin() { Fen::ZERO } else { debit.of_voucher() };
                *used.entry((debit.account, debit.day)).or_default() += debit.allowance + of_voucher;
            }
            Body::Reversal(back) => {
                let debit = log.get(usize::try_from(back.debit).unwrap_or(usize::MAX).wrapping_sub(1));
                let of_voucher = match debit.map(|entry| &entry.body) {
                    Some(Body::Debit(debit)) if debit.from_voucher.is_some() => back.amount(),
                    _ => Fen::ZERO,
                };
                *used.entry((back.account, back.day)).or_default() -= back.allowance_back + of_voucher;
            }
            _ => {}
        }
    }
    for ((account, day), fen) in used {
        ensure!(fen <= daily, "account {account} used {fen} of its allowance of {daily} on {day}");
    }
    Ok(())
}
