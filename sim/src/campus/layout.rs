//! What lies where in the directory of a run, and what is kept of it for later checks.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use feiqian_protocol::ids::Key;
use feiqian_protocol::money::Fen;
use serde::{Deserialize, Serialize};

use super::local;
use super::replay::Table;
use super::workload::{Account, Topup};

/// Longest path of a Unix socket, its closing zero not counted (`sun_path`).
const SOCKET_PATH_MAX: usize = 107;

/// The directory of a run.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

/// What is known of one node after a run; part of `run.json`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RunNode {
    /// Its name.
    pub node: String,
    /// For how long of the replay it was out of the centre's reach.
    pub offline_s: i64,
    /// Its largest resident size, in kB.
    pub rss_kb_max: u64,
}

/// `run.json`: what the checks need beyond the tables.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Run {
    /// The mode.
    pub mode: String,
    /// The seed.
    pub seed: u64,
    /// What was played: `generated`, or the folder.
    pub workload: String,
    /// The nodes.
    pub nodes: Vec<RunNode>,
}

impl Layout {
    /// A new run in `root`, which must be empty or absent; absolute, since processes are told about it.
    ///
    /// # Errors
    /// Where it is not, or where it is too deep for the processes' local sockets.
    pub fn create(root: &Path, names: &[&str]) -> Result<Self> {
        let root = std::path::absolute(root)?;
        std::fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
        if std::fs::read_dir(&root)?.next().is_some() {
            bail!("{} is not empty", root.display());
        }
        let layout = Self { root };
        for name in names {
            let length = layout.node(name).join("control.sock").as_os_str().len();
            if length > SOCKET_PATH_MAX {
                bail!(
                    "{} is too deep: the socket of node {name} would have a path of {length} bytes, and {SOCKET_PATH_MAX} \
                     are possible",
                    layout.root.display()
                );
            }
        }
        Ok(layout)
    }

    /// An existing run.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open(root: &Path) -> Result<Self> {
        let layout = Self { root: std::path::absolute(root)? };
        if !layout.file("run.json").exists() {
            bail!("{} holds no kept campus (there is no run.json)", root.display());
        }
        Ok(layout)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The centre's data directory.
    pub fn centre(&self) -> PathBuf {
        self.root.join("centre")
    }

    /// A node's data directory.
    pub fn node(&self, name: &str) -> PathBuf {
        self.root.join("nodes").join(name)
    }

    /// Writes `run.json`.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write_run(&self, run: &Run) -> Result<()> {
        Ok(std::fs::write(self.file("run.json"), serde_json::to_string_pretty(run)? + "\n")?)
    }

    /// Reads `run.json`.
    ///
    /// # Errors
    /// Where it is not what was written.
    pub fn read_run(&self) -> Result<Run> {
        let path = self.file("run.json");
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))
    }

    /// Writes `accounts.csv` as it is imported.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write_accounts(&self, accounts: &[Account]) -> Result<()> {
        let mut writer = csv::Writer::from_path(self.file("accounts.csv"))?;
        writer.write_record([
            "card",
            "patron_class",
            "opening_fen",
            "single_limit_fen",
            "daily_limit_fen",
        ])?;
        let optional = |fen: Option<Fen>| fen.map_or_else(String::new, |fen| fen.get().to_string());
        for account in accounts {
            writer.write_record([
                account.card.as_str(),
                &account.patron_class,
                &account.opening.get().to_string(),
                &optional(account.single_limit),
                &optional(account.daily_limit),
            ])?;
        }
        Ok(writer.flush()?)
    }

    /// Writes `topups.csv`.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write_topups(&self, topups: &[Topup]) -> Result<()> {
        let mut writer = csv::Writer::from_path(self.file("topups.csv"))?;
        writer.write_record(["time", "card", "amount_fen", "channel", "key"])?;
        for topup in topups {
            writer.write_record([
                local::format(topup.at).as_str(),
                topup.card.as_str(),
                &topup.amount.get().to_string(),
                topup.channel.as_str(),
                topup.key.as_str(),
            ])?;
        }
        Ok(writer.flush()?)
    }

    /// Opening balances by card.
    ///
    /// # Errors
    /// Names file, line and column.
    pub fn read_accounts(&self) -> Result<Vec<(String, Fen)>> {
        let mut table = Table::open(&self.root, "accounts")?;
        let mut openings = Vec::new();
        while table.advance()? {
            openings.push((table.text("card")?.to_owned(), table.fen("opening_fen", true)?));
        }
        Ok(openings)
    }

    /// Top-ups by card.
    ///
    /// # Errors
    /// Names file, line and column.
    pub fn read_topups(&self) -> Result<Vec<(String, Fen)>> {
        let mut table = Table::open(&self.root, "topups")?;
        let mut topups = Vec::new();
        while table.advance()? {
            table.parse::<Key>("key")?;
            topups.push((table.text("card")?.to_owned(), table.fen("amount_fen", false)?));
        }
        Ok(topups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_needs_an_empty_directory_that_is_not_too_deep() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(&dir.path().join("new"), &["canteen-red"]).unwrap();
        assert!(Layout::open(layout.root()).is_err());
        layout
            .write_run(&Run { mode: "hybrid".into(), seed: 1, workload: "generated".into(), nodes: vec![] })
            .unwrap();
        assert_eq!(Layout::open(layout.root()).unwrap().read_run().unwrap().seed, 1);
        assert!(Layout::create(layout.root(), &[]).unwrap_err().to_string().contains("not empty"));
        let deep = dir.path().join("x".repeat(90));
        assert!(Layout::create(&deep, &["canteen-red"]).unwrap_err().to_string().contains("too deep"));
    }
}
