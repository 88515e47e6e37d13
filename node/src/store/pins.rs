//! What payment PINs are compared with: digests under this node's key, which is not in the database, and wrong tries.

use feiqian_protocol::entry::PinVerifier;
use feiqian_protocol::ids::AccountId;
use feiqian_protocol::pin::{PinDigest, PinGeneration};
use rusqlite::{Connection, OptionalExtension, params};

use super::{Store, StoreError};

/// Created at every opening: a database of a build that knew no PINs gets it so.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS pins (
    account INTEGER PRIMARY KEY, generation BLOB NOT NULL, digest BLOB NOT NULL, tries INTEGER NOT NULL
);
";

/// A verifier as this node holds it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct HeldPin {
    /// Which PIN.
    pub(crate) generation: PinGeneration,
    /// What the right one gives.
    pub(crate) digest: PinDigest,
    /// Wrong ones in a row.
    pub(crate) tries: u8,
}

impl Store {
    /// The newest verifier of an account.
    pub(crate) fn held_pin(&self, account: AccountId) -> Result<Option<HeldPin>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT generation, digest, tries FROM pins WHERE account = ?1")?;
        Ok(statement
            .query_row([account.0 as i64], |row| {
                Ok(HeldPin {
                    generation: PinGeneration(row.get(0)?),
                    digest: PinDigest::new(row.get(1)?),
                    tries: row.get(2)?,
                })
            })
            .optional()?)
    }

    /// The PIN that pays, as the account's document says it.
    pub(crate) fn paying_pin(&self, account: AccountId) -> Result<Option<PinGeneration>, StoreError> {
        Ok(self.settings(account)?.and_then(|settings| settings.paying_pin()))
    }

    /// Keeps a verifier; wrong tries are counted anew.
    pub(crate) fn put_verifier(&self, verifier: &PinVerifier) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO pins VALUES (?1, ?2, ?3, 0)")?
            .execute(params![verifier.account.0 as i64, verifier.generation.0, verifier.digest.to_bytes()])?;
        Ok(())
    }

    /// Keeps how many wrong ones there were in a row.
    pub(crate) fn put_pin_tries(&self, account: AccountId, tries: u8) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE pins SET tries = ?2 WHERE account = ?1 AND tries <> ?2")?
            .execute(params![account.0 as i64, tries])?;
        Ok(())
    }
}

/// Account, generation and digest of every verifier, by account.
pub(crate) fn verifiers(
    connection: &Connection,
) -> Result<std::collections::BTreeMap<AccountId, (PinGeneration, PinDigest)>, StoreError> {
    let mut statement = connection.prepare("SELECT account, generation, digest FROM pins")?;
    let rows = statement.query_map([], |row| {
        let pin = (PinGeneration(row.get(1)?), PinDigest::new(row.get(2)?));
        Ok((AccountId(row.get::<_, i64>(0)? as u64), pin))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
