//! Small and read-only disks, where the tests may mount some.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// A mounted file system; unmounted when this is dropped.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// An empty disk of so many KiB at `at`, which is made; `None`, and a word about it, where this machine lets us mount
    /// nothing.
    ///
    /// # Errors
    /// Where the directory cannot be made.
    pub fn small(at: &Path, kib: u32) -> Result<Option<Self>> {
        std::fs::create_dir_all(at)?;
        let size = format!("size={kib}k,mode=0700");
        Ok(mounted(at, &["-t", "tmpfs", "-o", &size, "tmpfs"]))
    }

    /// What lies at `at`, from now on read-only.
    ///
    /// # Errors
    /// Where it is mounted and cannot be made read-only.
    pub fn read_only(at: &Path) -> Result<Option<Self>> {
        let here = at.to_str().context("a path in UTF-8")?;
        let Some(mount) = mounted(at, &["--bind", here]) else { return Ok(None) };
        let status = Command::new("mount").args(["-o", "remount,bind,ro"]).arg(at).status()?;
        anyhow::ensure!(status.success(), "{} does not become read-only", at.display());
        Ok(Some(mount))
    }

    /// Fills the disk to the last byte; returns the file that does.
    ///
    /// # Errors
    /// Where not even the file can be made.
    pub fn fill(&self) -> Result<PathBuf> {
        use std::io::Write;
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path)?;
        // Large pieces first, then small ones, until not one byte more is taken.
        for size in [64 * 1024, 4 * 1024, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        Ok(path)
    }
}

fn mounted(at: &Path, arguments: &[&str]) -> Option<Mount> {
    let output = Command::new("mount").args(arguments).arg(at).output();
    match output {
        Ok(output) if output.status.success() => Some(Mount(at.to_owned())),
        _ => {
            eprintln!("skipped: nothing can be mounted here (root may)");
            None
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a process of a failed test may still be in there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
