//! The canonical projection: balances and documents folded from the centre's account streams, and its digest.
//!
//! Every holder of the same prefixes of the account streams has the same projection, so the digest tells whether
//! replicas have converged. Rights and entries that are not posted yet are no part of it.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::account::{AccountError, AccountSettings, Document, actor_id};
use crate::chain::hex;
use crate::entry::Body;
use crate::ids::{AccountId, InstitutionId, NodeId, Wallet};
use crate::money::Fen;
use crate::snapshot::AccountState;

/// How an account stream's entry changes balances; empty for entries that change none.
pub fn balance_deltas(body: &Body) -> Vec<(AccountId, Wallet, Fen)> {
    match body {
        Body::Credit(credit) => vec![(credit.account, credit.wallet, credit.amount)],
        Body::Refund(refund) => vec![(refund.account, refund.wallet, refund.amount)],
        Body::PurseLoad(load) => {
            let amount = Fen::new(load.amount.get().saturating_neg());
            vec![(load.account, load.wallet, amount)]
        }
        Body::PurseReturned(back) => vec![(back.account, back.wallet, back.amount)],
        Body::PurseCaseDecided(decided) => decided.given_back().into_iter().collect(),
        Body::PurseLoadSettled(settled) if settled.reversed => {
            vec![(settled.account, settled.wallet, settled.amount)]
        }
        Body::Payout(payout) => {
            vec![(payout.account, payout.wallet, Fen::new(payout.amount.get().saturating_neg()))]
        }
        Body::Posted(posted) => {
            posted.deltas.iter().map(|delta| (delta.account, delta.wallet, delta.amount)).collect()
        }
        _ => Vec::new(),
    }
}

/// Collects the lines of a digest: SHA-256 over the sorted lines, each ended by a newline.
#[derive(Debug, Default)]
pub struct ProjectionDigest(Vec<String>);

impl ProjectionDigest {
    /// One wallet's posted balance. Zero is written too: every wallet that ever had a delta has a line.
    pub fn balance(&mut self, account: AccountId, wallet: Wallet, posted: Fen) {
        self.0.push(format!("balance,{account},{wallet},{}", posted.get()));
    }

    /// One account's document: its projection as canonical text, and its sorted heads.
    pub fn document(&mut self, account: AccountId, projection: &str, heads: &[String]) {
        self.0.push(format!("document,{account},{projection},{}", heads.join(" ")));
    }

    /// The digest, as hexadecimal.
    pub fn finish(mut self) -> String {
        self.0.sort_unstable();
        let mut sha = Sha256::new();
        for line in &self.0 {
            sha.update(line.as_bytes());
            sha.update(b"\n");
        }
        hex(&sha.finalize())
    }
}

/// The projection, folded entry by entry.
#[derive(Debug)]
pub struct Projection {
    institution: InstitutionId,
    /// Posted balances.
    pub balances: BTreeMap<(AccountId, Wallet), Fen>,
    documents: BTreeMap<AccountId, Vec<u8>>,
}

impl Projection {
    /// Of nothing.
    pub const fn new(institution: InstitutionId) -> Self {
        Self { institution, balances: BTreeMap::new(), documents: BTreeMap::new() }
    }

    /// Starts an account from a snapshot, in place of the entries that it stands for.
    pub fn restore(&mut self, state: &AccountState) {
        self.documents.insert(state.account, state.document.to_vec());
        self.balances.extend(state.balances.iter().map(|(wallet, fen)| ((state.account, *wallet), *fen)));
    }

    /// Applies the next entry of an account stream. Streams of different shards may be interleaved at will.
    ///
    /// # Errors
    /// [`AccountError`] where a document or change is not valid.
    pub fn apply(&mut self, body: &Body) -> Result<(), AccountError> {
        for (account, wallet, delta) in balance_deltas(body) {
            *self.balances.entry((account, wallet)).or_default() += delta;
        }
        match body {
            Body::AccountOpened(opened) => {
                self.documents.insert(opened.account, opened.document.to_vec());
            }
            Body::Setting(setting) => {
                let reader = self.reader(setting.account);
                let saved =
                    self.documents.get_mut(&setting.account).ok_or(AccountError::Shape("document"))?;
                let mut document = Document::load(saved, reader)?;
                document.merge_change(&setting.change)?;
                *saved = document.save();
            }
            Body::DocumentRenewed(renewed) => {
                let reader = self.reader(renewed.account);
                let new = Document::load(&renewed.document, reader)?;
                let before = self.documents.get(&renewed.account).ok_or(AccountError::Shape("document"))?;
                let before = Document::load(before, self.reader(renewed.account))?;
                let follows = before.epoch()?.checked_add(1) == Some(new.epoch()?);
                if !follows || new.settings()? != before.settings()? {
                    return Err(AccountError::Shape("renewal"));
                }
                self.documents.insert(renewed.account, renewed.document.to_vec());
            }
            _ => {}
        }
        Ok(())
    }

    /// The settings of an account.
    ///
    /// # Errors
    /// [`AccountError`] where there is no such document.
    pub fn settings(&self, account: AccountId) -> Result<AccountSettings, AccountError> {
        let saved = self.documents.get(&account).ok_or(AccountError::Shape("document"))?;
        Document::load(saved, self.reader(account))?.settings()
    }

    /// The digest.
    ///
    /// # Errors
    /// [`AccountError`] where a document is not valid.
    pub fn digest(&self) -> Result<String, AccountError> {
        let mut digest = ProjectionDigest::default();
        for ((account, wallet), posted) in &self.balances {
            digest.balance(*account, *wallet, *posted);
        }
        for (account, saved) in &self.documents {
            let mut document = Document::load(saved, self.reader(*account))?;
            digest.document(*account, &document.settings()?.canonical(), &document.heads());
        }
        Ok(digest.finish())
    }

    /// A reader writes nothing; automerge wants an actor id all the same.
    fn reader(&self, account: AccountId) -> automerge::ActorId {
        actor_id(self.institution, NodeId(u16::MAX), 0, 0, account)
    }
}
