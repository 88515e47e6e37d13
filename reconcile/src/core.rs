//! The centre as a state machine: what waits is taken together, one transaction commits it, then the outputs are released.

use rusqlite::Connection;

use crate::io::{Identity, Input, Now, Output};
pub use crate::store::StoreError;

/// The centre.
pub struct ReconcileCore {
    connection: Connection,
    identity: Identity,
}

impl ReconcileCore {
    /// Opens the centre's database, creating its schema where it is empty.
    ///
    /// # Errors
    /// [`StoreError`] where the database is not the centre's or not readable.
    pub fn open(connection: Connection, identity: Identity) -> Result<Self, StoreError> {
        crate::store::prepare(&connection, identity.institution)?;
        Ok(Self { connection, identity })
    }

    /// Handles inputs in one transaction. What is pushed to `outputs` must be released only where this returns `Ok`; on
    /// an error the core is to be dropped and opened again.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the step happened then.
    pub fn step(&mut self, _now: Now, _inputs: Vec<Input>, _outputs: &mut Vec<Output>) -> Result<(), StoreError> {
        let _ = (&self.connection, &self.identity);
        Ok(())
    }

    /// When an [`Input::Timer`] is due, in `mono_ms`.
    pub fn next_timer(&self) -> Option<u64> {
        None
    }
}
