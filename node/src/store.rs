//! The node's database.

/// Why the database, or what it holds, cannot be used. The core that met it is dropped and reopened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("the database refused")]
    Sqlite(#[from] rusqlite::Error),
    /// The database holds what this build never writes.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// The database is another node's.
    #[error("the database is of {found}, not of {expected}")]
    Foreign {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// The database was written by a newer build.
    #[error("the database has schema version {found}, this build knows {known}")]
    Version {
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
}
