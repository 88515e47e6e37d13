//! Purses of cards at the centre: it alone lets money onto a card, and believes what a card paid by its TAC.
//!
//! **Load** ([`load`]): `reserved` is what the account has free while the centre judges; with the entry that precedes MAC2 the
//! money is `in_transit`, nobody's to spend; by the card's TAC, or by what the card says when it is probed, it is `done` or
//! `reversed`. A card has one load in transit at most. MAC1 of a request proves the card and not that the request is new, so a
//! counter that does not fit is refused and means nothing more.
//!
//! **Purchase** ([`purchase`]): the purse pays the merchant where the TAC is right, the card has made no other purchase with
//! that counter, and the books have the money on the card. Whatever else a terminal has handed something out for, suspense pays,
//! and a case says why. Two purchases with one counter are two cards: the card is withdrawn.
//!
//! **Return** ([`returned`]): what the books have on a withdrawn card, or one of a closed account, goes back to its account, once every
//! building was heard past that, or the term is over. What comes later of it is suspense's, as of any card that has paid more than the books have.
//!
//! The master keys lie in files beside the other secrets of the centre, and are in no database.

pub(crate) mod case;
pub(crate) mod command;
pub(crate) mod load;
pub(crate) mod purchase;
pub(crate) mod returned;
pub(crate) mod show;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use feiqian_protocol::account::{CardStatus, Intent};
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Actor, EntryRef};
use feiqian_protocol::money::Fen;
use feiqian_protocol::purse::issuer::Issuer;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::key::MasterKey;
use feiqian_protocol::purse::mac::Terms;
use feiqian_protocol::purse::profile::{ApplicationName, CardProfile, CardProfiles, ProfileError};
use feiqian_protocol::purse::values::{CardSerial, Mac};
use serde::Deserialize;

use crate::core::{Round, StoreError};
use crate::store::purses::PurseState;
use crate::store::{accounts, money, purses};

/// What makes a centre one that loads cards.
#[derive(Clone, Debug)]
pub struct Purses {
    pub(crate) issuer: Issuer,
    profiles: CardProfiles,
    take_over: bool,
}

/// The part of the configuration that is about purses.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurseConfig {
    /// The load master key: 32 hex digits in a file that only its owner may read.
    pub load_key_file: PathBuf,
    /// The TAC master key, likewise.
    pub tac_key_file: PathBuf,
    /// True while cards come that another system has loaded: what is on a card when it is first loaded here is believed.
    #[serde(default)]
    pub take_over: bool,
    /// The cards.
    pub profiles: Vec<CardProfile>,
}

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum PurseConfigError {
    /// A key's file.
    #[error("{}: {message}", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The profiles.
    #[error("purses.profiles: {0}")]
    Profiles(#[from] ProfileError),
}

impl Purses {
    /// From the keys and the profiles of the cards.
    ///
    /// # Errors
    /// [`ProfileError`] where the profiles make no sense.
    pub fn new(issuer: Issuer, profiles: Vec<CardProfile>, take_over: bool) -> Result<Self, ProfileError> {
        let profiles = CardProfiles::new(ApplicationName::feiqian(), profiles)?;
        Ok(Self { issuer, profiles, take_over })
    }

    /// Reads the keys that a configuration names.
    ///
    /// # Errors
    /// [`PurseConfigError`] names the file or the profile.
    pub fn open(config: &PurseConfig) -> Result<Self, PurseConfigError> {
        let (load, tac): (MasterKey, MasterKey) = (key(&config.load_key_file)?, key(&config.tac_key_file)?);
        Ok(Self::new(Issuer::new(load, tac), config.profiles.clone(), config.take_over)?)
    }

    /// The profile of a card; `None` for one that is not served.
    pub(crate) fn profile(&self, serial: CardSerial) -> Option<&CardProfile> {
        self.profiles.of(serial)
    }

    /// Whether a TAC is the card's own.
    pub(crate) fn tac_is_right(&self, serial: CardSerial, terms: Terms, tac: Mac) -> bool {
        let Some(profile) = self.profile(serial) else { return false };
        // Of what is only kept for a proof at the terminal a TAC binds nothing.
        let entry = JournalEntry { serial, algorithm: profile.algorithm, key_version: 0, terms, mac: tac };
        self.issuer.tac_is_right(&entry, tac) || planted(Canary::PurseTacNotVerified)
    }
}

/// A key from a file that nobody but its owner may read.
fn key<K: FromStr>(file: &Path) -> Result<K, PurseConfigError>
where
    K::Err: std::fmt::Display,
{
    let wrong = |message: String| PurseConfigError::Key { file: file.to_owned(), message };
    let metadata = std::fs::metadata(file).map_err(|error| wrong(error.to_string()))?;
    let mode = metadata.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(wrong(format!("others may read this key (mode {:o}); chmod 600 it", mode & 0o777)));
    }
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    text.trim().parse().map_err(|error: K::Err| wrong(error.to_string()))
}

/// The ledger account of what is on a card.
pub(crate) fn purse_ledger(serial: CardSerial) -> String {
    format!("purse:{serial}")
}

/// The ledger account of what is on its way onto a card.
pub(crate) fn transit_ledger(serial: CardSerial) -> String {
    format!("purse_transit:{serial}")
}

impl Round<'_> {
    /// The balance of a ledger account, with what this step has posted.
    pub(crate) fn ledger_now(&self, ledger: &str) -> Result<Fen, StoreError> {
        let posted = self.ledger.get(ledger).copied().unwrap_or_default();
        Ok(money::ledger_balance(self.db, ledger)? + posted)
    }

    /// Takes note of what a card was seen to say.
    fn note_purse(
        &self,
        serial: CardSerial,
        first: PurseState,
        change: impl FnOnce(&mut PurseState),
    ) -> Result<(), StoreError> {
        let mut state = purses::purse(self.db, serial)?.unwrap_or(first);
        change(&mut state);
        purses::put_purse(self.db, serial, &state)
    }

    /// Withdraws a card of which there are two.
    fn withdraw_cloned(&mut self, serial: CardSerial, at: EntryRef) -> Result<(), StoreError> {
        let card = serial.card_number();
        tracing::warn!(log = %at.log, position = at.position, "two cards have one serial: the card is withdrawn");
        let Some(account) = accounts::account_of_card(self.db, &card)? else { return Ok(()) };
        let Some(settings) = self.settings(account)? else { return Ok(()) };
        // A card of a closed account pays nowhere where that is known, as one that is withdrawn.
        if settings.closed || settings.cards.get(&card) == Some(&CardStatus::Void) {
            return Ok(());
        }
        let fresh = std::mem::replace(&mut self.fresh, true);
        let settled = self.settle_as(account, Intent::VoidCard { card }, Actor::centre())?;
        self.fresh = fresh;
        if let Err(error) = settled {
            self.fault(at.log, at.position, &format!("its card cannot be withdrawn: {error}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(mode: u32) -> Result<Purses, PurseConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| {
            let file = folder.path().join(name);
            std::fs::write(&file, "0f1e2d3c4b5a69788796a5b4c3d2e1f0\n").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            file
        };
        Purses::open(&PurseConfig {
            load_key_file: file("load.key", 0o600),
            tac_key_file: file("tac.key", mode),
            take_over: false,
            profiles: Vec::new(),
        })
    }

    #[test]
    fn a_master_key_that_others_may_read_is_refused() {
        open(0o600).unwrap();
        let error = open(0o640).unwrap_err().to_string();
        assert!(error.contains("tac.key: others may read this key (mode 640)"), "{error}");
    }
}
