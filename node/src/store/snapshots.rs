//! Snapshots of account streams: one under way, or the one that the stream's entries here start from.

use feiqian_protocol::chain::Cursor;
use feiqian_protocol::ids::{AccountId, LogId, Wallet};
use feiqian_protocol::limits::SHARDS;
use feiqian_protocol::money::Fen;
use feiqian_protocol::snapshot::{AccountState, PieceDigest, SignedSnapshot};
use feiqian_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::accounts::{read_wallet, wallet_id};
use super::{Store, StoreError};

/// A snapshot of which some pieces are here.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    /// The snapshot.
    pub(crate) signed: SignedSnapshot,
    /// Pieces that are here.
    pub(crate) pieces: u32,
    /// The digest over them.
    pub(crate) digest: PieceDigest,
    /// Their last account.
    pub(crate) last: AccountId,
}

impl Store {
    /// The snapshot of a stream that is under way.
    pub(crate) fn staged(&self, log: LogId) -> Result<Option<Staged>, StoreError> {
        let row = self
            .connection
            .prepare_cached(
                "SELECT signed, pieces, digest, last FROM snapshots WHERE log = ?1 AND installed = 0",
            )?
            .query_row([log.key()], |row| {
                let digest = PieceDigest(row.get(2)?);
                Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, digest, row.get::<_, i64>(3)?))
            })
            .optional()?;
        let Some((signed, pieces, digest, last)) = row else { return Ok(None) };
        Ok(Some(Staged { signed: read_signed(&signed)?, pieces, digest, last: AccountId(last as u64) }))
    }

    /// Begins a snapshot, in place of another one that was under way.
    pub(crate) fn stage(&self, signed: &SignedSnapshot) -> Result<(), StoreError> {
        let (log, position) = (signed.snapshot.log(), signed.snapshot.cursor().position);
        self.drop_staged(Some(log))?;
        let bytes = minicbor::to_vec(signed).expect("writing to a Vec cannot fail");
        self.connection.execute(
            "INSERT INTO snapshots VALUES (?1, ?2, ?3, 0, ?4, 0, 0)",
            params![log.key(), position as i64, bytes, PieceDigest::default().0],
        )?;
        Ok(())
    }

    /// Keeps a piece and how far the snapshot has come with it.
    pub(crate) fn put_piece(&self, staged: &Staged, piece: &[u8]) -> Result<(), StoreError> {
        let snapshot = &staged.signed.snapshot;
        let (log, position) = (snapshot.log().key(), snapshot.cursor().position as i64);
        self.connection
            .prepare_cached("INSERT INTO snapshot_pieces VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![log, position, staged.pieces - 1, piece])?;
        self.connection
            .prepare_cached(
                "UPDATE snapshots SET pieces = ?3, digest = ?4, last = ?5 WHERE log = ?1 AND position = ?2",
            )?
            .execute(params![log, position, staged.pieces, staged.digest.0, staged.last.0 as i64])?;
        Ok(())
    }

    /// Drops snapshots that are under way: of one stream, or all.
    pub(crate) fn drop_staged(&self, log: Option<LogId>) -> Result<(), StoreError> {
        let key = log.map(LogId::key);
        self.connection
            .prepare_cached(
                "DELETE FROM snapshot_pieces WHERE EXISTS (SELECT 1 FROM snapshots WHERE installed = 0
                 AND snapshots.log = snapshot_pieces.log AND snapshots.position = snapshot_pieces.position
                 AND (?1 IS NULL OR snapshots.log = ?1))",
            )?
            .execute([key])?;
        self.connection
            .prepare_cached("DELETE FROM snapshots WHERE installed = 0 AND (?1 IS NULL OR log = ?1)")?
            .execute([key])?;
        Ok(())
    }

    /// One piece.
    pub(crate) fn piece(&self, log: LogId, position: u64, piece: u32) -> Result<Vec<u8>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT accounts FROM snapshot_pieces WHERE log = ?1 AND position = ?2 AND piece = ?3",
        )?;
        Ok(statement.query_row(params![log.key(), position as i64, piece], |row| row.get(0))?)
    }

    /// From here on the stream starts from this snapshot: the one before it is dropped.
    pub(crate) fn install(&self, log: LogId, position: u64) -> Result<(), StoreError> {
        for table in ["snapshot_pieces", "snapshots"] {
            self.connection.execute(
                &format!("DELETE FROM {table} WHERE log = ?1 AND position <> ?2"),
                params![log.key(), position as i64],
            )?;
        }
        self.connection.execute(
            "UPDATE snapshots SET installed = 1 WHERE log = ?1 AND position = ?2",
            params![log.key(), position as i64],
        )?;
        Ok(())
    }

    /// True where the stream starts from the snapshot at this position.
    pub(crate) fn is_installed(&self, log: LogId, position: u64) -> Result<bool, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT 1 FROM snapshots WHERE log = ?1 AND position = ?2 AND installed = 1")?;
        Ok(statement.exists(params![log.key(), position as i64])?)
    }

    /// Sets a posted balance.
    pub(crate) fn set_posted(
        &self,
        account: AccountId,
        wallet: Wallet,
        posted: Fen,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO wallets (id, posted) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET posted = ?2",
            )?
            .execute(params![wallet_id(account, wallet)?, posted.get()])?;
        Ok(())
    }

    /// How many accounts there are.
    pub(crate) fn count_accounts(&self) -> Result<u64, StoreError> {
        let count: i64 = self.connection.query_row("SELECT count(*) FROM documents", [], |row| row.get(0))?;
        Ok(count as u64)
    }

    /// Hands every account of a shard to `each`, in order.
    pub(crate) fn each_account(
        &self,
        shard: u8,
        mut each: impl FnMut(&AccountState) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let last: i64 =
            self.connection
                .query_row("SELECT coalesce(max(account), 0) FROM documents", [], |row| row.get(0))?;
        let mut document = self
            .connection
            .prepare_cached("SELECT saved, projection, heads FROM documents WHERE account = ?1")?;
        let mut wallets = self.connection.prepare_cached(
            "SELECT wallet, posted FROM wallets WHERE id BETWEEN ?1 << 2 AND ?1 << 2 | 3
             AND posted IS NOT NULL ORDER BY id",
        )?;
        for account in (u64::from(shard)..=last as u64).step_by(usize::from(SHARDS)) {
            let found = document
                .query_row([account as i64], |row| {
                    Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, row.get::<_, String>(2)?))
                })
                .optional()?;
            let Some((saved, settings, heads)) = found else { continue };
            let heads = heads.split_whitespace().map(|head| {
                feiqian_protocol::chain::unhex(head)
                    .map(Into::into)
                    .ok_or_else(|| StoreError::damaged("the head of a document is no hash"))
            });
            let mut state = AccountState {
                account: AccountId(account),
                document: saved.into(),
                settings,
                heads: heads.collect::<Result<_, _>>()?,
                balances: Vec::new(),
            };
            let mut rows = wallets.query([account as i64])?;
            while let Some(row) = rows.next()? {
                state.balances.push((read_wallet(row.get(0)?)?, Fen::new(row.get(1)?)));
            }
            each(&state)?;
        }
        Ok(())
    }

    /// The position up to which the entries of a stream that ends at `end` are no longer here.
    pub(crate) fn kept_after(&self, log: LogId, end: Cursor) -> Result<u64, StoreError> {
        let first: Option<i64> = self
            .connection
            .prepare_cached("SELECT min(position) FROM entries WHERE log = ?1")?
            .query_row([log.key()], |row| row.get(0))?;
        Ok(first.map_or(end.position, |first| (first as u64).saturating_sub(1)))
    }

    /// The newest head of a stream up to a position that was signed by a time.
    pub(crate) fn head_before(
        &self,
        log: LogId,
        position: u64,
        time: Timestamp,
    ) -> Result<Option<u64>, StoreError> {
        let found: Option<i64> = self
            .connection
            .prepare_cached(
                "SELECT max(position) FROM heads WHERE log = ?1 AND position <= ?2 AND anchor <= ?3",
            )?
            .query_row(params![log.key(), position as i64, time.0], |row| row.get(0))?;
        Ok(found.map(|position| position as u64))
    }

    /// Drops the entries of a stream up to a head of it, and the heads before that one.
    pub(crate) fn prune(&self, log: LogId, head: u64) -> Result<usize, StoreError> {
        let dropped = self.connection.execute(
            "DELETE FROM entries WHERE log = ?1 AND position <= ?2",
            params![log.key(), head as i64],
        )?;
        self.connection
            .execute("DELETE FROM heads WHERE log = ?1 AND position < ?2", params![log.key(), head as i64])?;
        Ok(dropped)
    }
}

/// The snapshot that a stream starts from here, where there is one.
pub(crate) fn installed(connection: &Connection, log: LogId) -> Result<Option<SignedSnapshot>, StoreError> {
    let signed: Option<Vec<u8>> = connection
        .query_row("SELECT signed FROM snapshots WHERE log = ?1 AND installed = 1", [log.key()], |row| {
            row.get(0)
        })
        .optional()?;
    signed.map(|bytes| read_signed(&bytes)).transpose()
}

/// Hands the pieces of a snapshot to `each`, in order.
pub(crate) fn each_piece(
    connection: &Connection,
    log: LogId,
    position: u64,
    mut each: impl FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut statement = connection
        .prepare("SELECT accounts FROM snapshot_pieces WHERE log = ?1 AND position = ?2 ORDER BY piece")?;
    let mut rows = statement.query(params![log.key(), position as i64])?;
    while let Some(row) = rows.next()? {
        each(row.get_ref(0)?.as_blob().map_err(|_| StoreError::damaged("a piece is no blob"))?)?;
    }
    Ok(())
}

fn read_signed(bytes: &[u8]) -> Result<SignedSnapshot, StoreError> {
    minicbor::decode(bytes).map_err(|_| StoreError::damaged("a snapshot is malformed"))
}
