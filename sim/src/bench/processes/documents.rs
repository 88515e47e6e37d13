//! What many account documents take of a building: its database, its memory, and the time until edits of them are there.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use feiqian_protocol::pin::{PinGeneration, PinHash};
use feiqian_reconcile::pin::HashedPin;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{PATIENCE, Town, card};
use crate::bench::figures::{Documents, mib, seconds};
use crate::bench::measure::median;
use crate::campus::control::Control;

/// Operators at the centre who edit at the same time, each on a connection of its own and with one edit at a time.
pub(in crate::bench) const OPERATORS: u64 = 16;
/// One run edits one account in so many.
pub(in crate::bench) const EDITED_ONE_IN: u64 = 50;
/// How often it is looked whether edits have arrived, which is in their time.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The command by which an operator changes the limits of an account, in a run.
fn limits(number: u64, run: u64) -> Value {
    let limits = json!({"single_limit_fen": 400_000 + run, "daily_limit_fen": 9_000_000 + run});
    json!({"command": "change_setting", "card": card(number), "change": {"limits": limits}, "operator": "bench"})
}

/// The command by which an operator sets the PIN of an account. Nobody pays with it, so any bytes do for its hash: such as no
/// compression makes smaller, as those of a hash are.
fn pin(number: u64) -> Value {
    let random = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let mut hash = [0; 32];
    hash[..16].copy_from_slice(&random.rotate_left(40).to_be_bytes());
    hash[16..].copy_from_slice(&random.rotate_left(80).to_be_bytes());
    let pin = HashedPin { generation: PinGeneration(random.to_be_bytes()), hash: PinHash::new(hash) };
    json!({"command": "set_pin", "card": card(number), "pin": pin, "operator": "bench"})
}

impl Town {
    /// Database, memory and edits, of a node that has nothing but documents and rights; beside what the edits take both cores.
    pub(super) async fn documents(&mut self, by_cores: (Duration, Duration)) -> Result<Documents> {
        self.node().stop().await?;
        let node_db_mib = size_mib(&self.database())?;
        let now = self.now;
        self.node().start(now).await?;
        self.until("a session", |node, _| node["link"] == "up").await?;
        let count = self.scale.accounts / EDITED_ONE_IN;
        let mut edits = Vec::new();
        for run in 0..self.scale.runs as u64 {
            let first = 1 + run * count;
            let begun = Instant::now();
            self.edit(first, count, move |number| limits(number, run)).await?;
            self.await_streams(begun).await?;
            edits.push(begun.elapsed());
        }
        self.edit(1, self.scale.accounts, pin).await?;
        self.await_streams(Instant::now()).await?;
        self.await_pins().await?;
        let node_rss_kb = self.peak_kb();
        self.node().stop().await?;
        Ok(Documents {
            node_db_mib,
            node_db_pins_mib: size_mib(&self.database())?,
            node_rss_kb,
            edits_1000_s: seconds(median(&mut edits)),
            edits_1000_centre_core_s: seconds(by_cores.0),
            edits_1000_node_core_s: seconds(by_cores.1),
        })
    }

    fn database(&self) -> PathBuf {
        self.root.path().join("run/nodes/canteen/node.db")
    }

    /// Some operators send a command for each of the accounts; the centre has them all on its disk when this returns.
    async fn edit(
        &self,
        first: u64,
        count: u64,
        command: impl Fn(u64) -> Value + Copy + Send + 'static,
    ) -> Result<()> {
        let socket = self.root.path().join("run/centre/control.sock");
        let mut running = JoinSet::new();
        for operator in 0..OPERATORS {
            let mut control = Control::new(socket.clone());
            running.spawn(async move {
                for number in (first + operator..first + count).step_by(OPERATORS as usize) {
                    control.call::<Value>(&command(number)).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = running.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Until the canteen has applied, and committed, all that the centre has written into the account streams.
    async fn await_streams(&mut self, begun: Instant) -> Result<()> {
        let status = json!({"command": "status"});
        let written: Value = self.campus.centre.control.call(&status).await?;
        loop {
            let node: Value = self.node().control.call(&status).await?;
            if node["shards"] == written["shards"] {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "the account streams do not arrive: {node} {written}");
            sleep(LOOK_EVERY).await;
        }
    }

    /// Until the canteen can check everybody's PIN.
    async fn await_pins(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(self.database(), flags)?;
            let held: i64 = connection.query_row("SELECT count(*) FROM pins", [], |row| row.get(0))?;
            if held as u64 == self.scale.accounts {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{held} PINs are at the node, and no more come");
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// What the files of a database take together, in MiB.
fn size_mib(path: &Path) -> Result<f64> {
    let mut bytes =
        std::fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.len();
    for suffix in ["db-wal", "db-shm"] {
        // Where it was checkpointed and closed there is none.
        bytes += std::fs::metadata(path.with_extension(suffix)).map_or(0, |file| file.len());
    }
    Ok(mib(bytes))
}
