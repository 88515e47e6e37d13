//! What is held for vouchers, followed by the entries alone: what the centre held, what buildings took, and what became of it.

use std::collections::BTreeMap;

use feiqian_protocol::entry::{Body, Entry, EntryRef, HoldMoved, HoldPlaced};
use feiqian_protocol::ids::{AccountId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;

use super::books::{Books, Checked, Finding};
use super::{Coverage, Promise};
use crate::link::tables::node_log;

/// The account and number of a voucher.
pub type VoucherKey = (AccountId, u32);

/// A debit of a voucher's money.
#[derive(Clone, Copy, Debug)]
struct Taken {
    node: NodeId,
    /// Where it stands in the node's log; absent on a branch.
    position: Option<u64>,
    amount: Fen,
    /// The node's log has one continuation.
    sound: bool,
}

/// A voucher with money, all that is written of it.
#[derive(Clone, Debug, Default)]
struct Voucher {
    placed: Option<HoldPlaced>,
    moved: Vec<(Timestamp, HoldMoved)>,
    taken: Vec<Taken>,
    /// By counter, the places where its codes were used.
    used: BTreeMap<u16, Vec<(NodeId, String)>>,
}

/// All vouchers of a campus.
#[derive(Clone, Debug, Default)]
pub struct Vouchers(BTreeMap<VoucherKey, Voucher>);

impl Vouchers {
    /// Reads them from account streams and from the logs of nodes: node, whether its log has one continuation, its log and branches.
    pub fn read<'a>(
        shards: impl Iterator<Item = &'a Entry>,
        nodes: impl Iterator<Item = (NodeId, bool, &'a [std::sync::Arc<Vec<Entry>>])>,
    ) -> Self {
        let mut vouchers: BTreeMap<VoucherKey, Voucher> = BTreeMap::new();
        for entry in shards {
            match &entry.body {
                Body::HoldPlaced(placed) => {
                    vouchers.entry((placed.account, placed.voucher)).or_default().placed =
                        Some(placed.clone());
                }
                Body::HoldMoved(moved) => {
                    let voucher = vouchers.entry((moved.account, moved.voucher)).or_default();
                    voucher.moved.push((entry.clock.time(), moved.clone()));
                }
                _ => {}
            }
        }
        for (node, sound, logs) in nodes {
            for (branch, log) in logs.iter().enumerate() {
                for (position, entry) in (1..).zip(log.iter()) {
                    let (account, code, tap) = match &entry.body {
                        Body::Debit(debit) => (debit.account, debit.code, &debit.tap),
                        Body::Access(access) => (access.account, access.code, &access.tap),
                        _ => continue,
                    };
                    let Some(code) = code else { continue };
                    let voucher = vouchers.entry((account, code.voucher)).or_default();
                    let tap = format!("{} {} {}", entry.actor.id, tap.epoch, tap.sequence);
                    let places = voucher.used.entry(code.counter).or_default();
                    if !places.contains(&(node, tap.clone())) {
                        places.push((node, tap));
                    }
                    if let Body::Debit(debit) = &entry.body
                        && debit.of_voucher().is_positive()
                    {
                        let position = (branch == 0).then_some(position);
                        let amount = debit.of_voucher();
                        voucher.taken.push(Taken { node, position, amount, sound });
                    }
                }
            }
        }
        Self(vouchers)
    }

    /// True where nobody has a voucher with money.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What may be taken of an account beyond what was held: each building after the first may take a voucher once more, up to
    /// its ceiling.
    pub fn beyond(&self, account: AccountId) -> Fen {
        let of_account = self.0.range((account, 0)..=(account, u32::MAX));
        of_account.map(|(_, voucher)| voucher.beyond()).sum()
    }

    /// What vouchers of an account have paid that no stream tells of: a centre signed them that was restored since.
    pub fn forgotten(&self, account: AccountId) -> Fen {
        let of_account = self.0.range((account, 0)..=(account, u32::MAX));
        let forgotten = of_account.filter(|(_, voucher)| voucher.placed.is_none());
        forgotten.flat_map(|(_, voucher)| &voucher.taken).map(|taken| taken.amount).sum()
    }

    /// True where the centre's note of a fault is of a voucher or a code that was in fact used twice, or of a voucher that a centre
    /// which was restored since has signed, and no stream that came back tells of.
    pub fn explains(&self, fault: &str, was_restored: bool) -> bool {
        if fault.contains("nothing was held for the voucher") {
            let place = fault.split_once(' ').and_then(|(place, _)| place.split_once(':'));
            let place = place.and_then(|(log, position)| Some((log.parse().ok()?, position.parse().ok()?)));
            let is_there = |taken: &Taken| {
                let at = taken.position.map(|position| (node_log(taken.node).key(), position));
                at.is_some() && at == place
            };
            let forgotten =
                |voucher: &Voucher| voucher.placed.is_none() && voucher.taken.iter().any(is_there);
            return was_restored && self.0.values().any(forgotten);
        }
        let number = |after: &str| {
            let (_, rest) = fault.split_once(after)?;
            rest.split(|character: char| !character.is_ascii_digit()).next()?.parse::<u32>().ok()
        };
        let any = |number: u32, is_so: &dyn Fn(&Voucher) -> bool| {
            self.0.iter().any(|((_, of), voucher)| *of == number && is_so(voucher))
        };
        if fault.contains("was used before") {
            let twice = |voucher: &Voucher| voucher.used.values().any(|places| places.len() > 1);
            return number("of voucher ").is_some_and(|number| any(number, &twice));
        }
        if fault.contains("had paid before") || fault.contains("has paid twice") {
            return number("voucher ").is_some_and(|number| any(number, &|voucher| voucher.taken.len() > 1));
        }
        false
    }

    /// Rare paths that they show.
    pub fn coverage(&self) -> Vec<Coverage> {
        let mut reached = Vec::new();
        for voucher in self.0.values() {
            if voucher.taken.len() > 1 {
                reached.push(Coverage::VoucherPaidTwice);
            }
            if voucher.moved.iter().any(|(_, moved)| moved.debit.is_none()) {
                reached.push(Coverage::HoldReturned);
            }
        }
        reached
    }
}

impl Voucher {
    fn ceiling(&self) -> Fen {
        self.placed.as_ref().map(|placed| placed.amount).unwrap_or_default()
    }

    fn beyond(&self) -> Fen {
        let more = self.taken.len().saturating_sub(1) as i64;
        Fen::new(self.ceiling().get() * more)
    }
}

fn broken(promise: Promise, text: String) -> Checked {
    Err(Finding::new(promise, text))
}

/// What is held for each voucher is its ceiling until it has paid, or nobody can take it any more; no building takes more than that,
/// or a second time; of what buildings took, one debit is paid out of it.
///
/// # Errors
/// The first voucher of which this is not so.
pub fn holds(books: &Books) -> Checked {
    let ingested: BTreeMap<NodeId, (u64, bool)> =
        books.nodes.iter().map(|node| (node.node, (node.ingested as u64, node.sound))).collect();
    for ((account, number), voucher) in &books.vouchers.0 {
        let name = format!("voucher {number} of account {account}");
        let ceiling = voucher.ceiling();
        let forgotten = books.was_restored && voucher.placed.is_none();
        if let Some(taken) = voucher.taken.iter().find(|taken| taken.amount > ceiling && !forgotten) {
            return broken(Promise::Code, format!("{name} holds {ceiling}, and {taken:?}"));
        }
        let sound = |taken: &&Taken| taken.sound;
        for taken in voucher.taken.iter().filter(sound) {
            let here = voucher.taken.iter().filter(sound).filter(|other| other.node == taken.node).count();
            if here > 1 {
                return broken(Promise::Code, format!("{name} has paid {here} times at node {}", taken.node));
            }
        }
        let row = books
            .rights
            .get(&(*account, Wallet::Cash, NodeId::CENTRE.0, *number))
            .copied()
            .unwrap_or_default();
        let held = match voucher.moved.last() {
            None => ceiling,
            Some((_, moved)) => match moved.debit {
                Some(of) => {
                    let node = of.log.writer;
                    let (up_to, sound) = ingested.get(&node).copied().unwrap_or_default();
                    // A restored copy has lost the debit that its receipt tells of, and has written something else there; or it
                    // has it in a branch, where a position says nothing.
                    let is_there = |taken: &Taken| {
                        taken.node == node && taken.position.is_none_or(|position| position == of.position)
                    };
                    let has_paid =
                        if sound { up_to >= of.position } else { voucher.taken.iter().any(is_there) };
                    if has_paid { Fen::ZERO } else { moved.kept }
                }
                None => Fen::ZERO,
            },
        };
        if row.out != held && !books.was_restored {
            return broken(
                Promise::Code,
                format!("{} are held for {name}, by the entries {held}: {voucher:?}", row.out),
            );
        }
        moves(&name, voucher)?;
        backed(books, *account, &name, voucher)?;
    }
    Ok(())
}

/// What is held becomes free where a debit took it, a building has signed a receipt of one, or nobody can take it any more.
fn moves(name: &str, voucher: &Voucher) -> Checked {
    for (at, moved) in &voucher.moved {
        let Some(of) = moved.debit else {
            let over = Timestamp(i64::from(moved.until) * 1_000);
            if *at < over {
                return broken(
                    Promise::Code,
                    format!("what {name} holds is free at {at:?}, and it ends at {over:?}"),
                );
            }
            if let Some(taken) = voucher.taken.iter().find(|taken| taken.sound) {
                return broken(Promise::Code, format!("what {name} holds was returned, and {taken:?}"));
            }
            continue;
        };
        let at_place = |taken: &&Taken| taken.node == of.log.writer && taken.position == Some(of.position);
        let known = voucher.taken.iter().find(at_place);
        let sound = voucher.taken.iter().all(|taken| taken.node != of.log.writer || taken.sound);
        if known.is_none_or(|taken| taken.amount != moved.kept) && sound && known.is_some() {
            return broken(Promise::Code, format!("{moved:?}, and the debit is {known:?}"));
        }
    }
    Ok(())
}

/// What was held pays as much as one debit took, however many there are: of two the earlier in order has it, and of what is left over
/// nothing is the other's.
fn backed(books: &Books, account: AccountId, name: &str, voucher: &Voucher) -> Checked {
    let mut backed = Vec::new();
    for taken in voucher.taken.iter().filter(|taken| taken.sound) {
        let Some(position) = taken.position else { continue };
        let at = EntryRef { log: node_log(taken.node), position };
        let Some(unbacked) = books.unbacked.get(&(account, at.log.key(), position)) else { continue };
        backed.push((at, taken.amount - *unbacked));
    }
    let total: Fen = backed.iter().map(|(_, fen)| *fen).sum();
    let most = voucher.taken.iter().map(|taken| taken.amount).max().unwrap_or_default();
    if total > most {
        return broken(
            Promise::Code,
            format!("what is held for {name} has paid {total}, more than {most}: {backed:?}"),
        );
    }
    Ok(())
}

/// Once everybody was heard past their ends, nothing is held for vouchers any more.
///
/// # Errors
/// The first for which something is.
pub fn all_ended(books: &Books) -> Checked {
    for ((account, wallet, node, number), row) in &books.rights {
        if *node == NodeId::CENTRE.0 && row.out != Fen::ZERO {
            let text =
                format!("{} {wallet} are held for ever for voucher {number} of account {account}", row.out);
            return broken(Promise::Liveness, text);
        }
    }
    Ok(())
}
