//! The state machine of a building.

use rusqlite::Connection;

use crate::io::{Identity, Input, Now, Output, Settings};
use crate::store::StoreError;

/// A building's decisions, log, rights and session over one database.
pub struct NodeCore {
    connection: Connection,
    identity: Identity,
    settings: Settings,
}

impl NodeCore {
    /// Opens the database, creating or migrating what is missing.
    ///
    /// # Errors
    /// [`StoreError`] where the database cannot be used.
    pub fn open(connection: Connection, identity: Identity, settings: Settings) -> Result<Self, StoreError> {
        Ok(Self { connection, identity, settings })
    }

    /// Takes all inputs that wait, in one transaction. The outputs may be released once this has returned `Ok`; on `Err`
    /// they must be thrown away and the core dropped and opened again.
    ///
    /// # Errors
    /// [`StoreError`] where the transaction did not commit.
    pub fn step(
        &mut self,
        now: Now,
        inputs: Vec<Input>,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let _ = (now, inputs, outputs, &self.connection, &self.identity, &self.settings);
        Ok(())
    }

    /// When [`Input::Timer`] is wanted next, as [`Now::mono_ms`].
    pub fn next_timer(&self) -> Option<u64> {
        None
    }
}
