//! The processes of a campus: this executable again, doing what `feiqian-node` and `feiqian-reconcile` do.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};

use feiqian_protocol::time::Timestamp;

use super::control::{Control, ControlError};

/// Hidden subcommand that runs what `feiqian-node` runs.
pub const NODE: &str = "__node";
/// Hidden subcommand that runs what `feiqian-reconcile` runs.
pub const RECONCILE: &str = "__reconcile";
/// Set for children that are to end with the driver: they watch their standard input.
pub const END_WITH_STDIN: &str = "FEIQIAN_SIM_END_WITH_STDIN";

/// Longest start of a process.
const START_MAX: Duration = Duration::from_secs(60);
/// Longest orderly end of a process.
const STOP_MAX: Duration = Duration::from_secs(20);

/// Runs one of the two binaries to its end and returns what it printed.
///
/// # Errors
/// With what it complained of, where it does not succeed.
pub async fn run_to_end(role: &str, arguments: &[&str]) -> Result<String> {
    let output = output(role, arguments).await?;
    if !output.status.success() {
        bail!(
            "{} {} ended with {}: {}{}",
            role.trim_start_matches('_'),
            arguments.first().unwrap_or(&""),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim(),
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs one of the two binaries to its end, however that is.
///
/// # Errors
/// Where it cannot be started.
pub async fn output(role: &str, arguments: &[&str]) -> Result<std::process::Output> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.with_context(|| format!("cannot start {role}"))
}

/// A long-running process and its local socket.
#[derive(Debug)]
pub struct Process {
    name: String,
    role: &'static str,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// Held open as long as the process is to live; waiting for a child would close it.
    input: Option<ChildStdin>,
    /// Its local socket.
    pub control: Control,
    /// Largest resident size seen, in kB.
    pub rss_kb_max: u64,
}

impl Process {
    /// A process that is not started yet. `data` is its data directory, in which `run.toml` is its configuration.
    pub fn new(name: &str, role: &'static str, data: &Path) -> Self {
        Self {
            name: name.to_owned(),
            role,
            config: data.join("run.toml"),
            log: data.join("run.log"),
            child: None,
            input: None,
            control: Control::new(data.join("control.sock")),
            rss_kb_max: 0,
        }
    }

    /// True while it is meant to run.
    pub const fn is_live(&self) -> bool {
        self.child.is_some()
    }

    /// Starts it with the wall clock at `now`; returns when it serves.
    ///
    /// # Errors
    /// Where it does not come up, with the end of its log.
    pub async fn start(&mut self, now: Timestamp) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let arguments: [OsString; 3] = ["run".into(), "--config".into(), self.config.clone().into()];
        let mut child = Command::new(std::env::current_exe()?)
            .arg(self.role)
            .args(arguments)
            .env(END_WITH_STDIN, "1")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the driver, which then ends its children.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        self.input = child.stdin.take();
        self.child = Some(child);
        self.control.forget();
        let clock = json!({"command": "clock", "now_ms": now.0});
        let begun = Instant::now();
        let mut pause = Duration::from_micros(500);
        loop {
            match self.control.call::<Value>(&clock).await {
                Ok(_) => break,
                Err(ControlError::Gone { .. }) if begun.elapsed() < START_MAX => {
                    self.check_alive()?;
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                Err(error) => return Err(error).context(self.last_words()),
            }
        }
        let status = json!({"command": "status"});
        self.control.call::<Value>(&status).await.with_context(|| self.last_words())?;
        Ok(())
    }

    /// Ends it at once, as a power cut would (except that the page cache survives).
    ///
    /// # Errors
    /// Where it cannot be waited for.
    pub async fn kill(&mut self) -> Result<()> {
        self.sample();
        self.control.forget();
        if let Some(mut child) = self.child.take() {
            child.kill().await.with_context(|| format!("cannot kill {}", self.name))?;
        }
        Ok(())
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// Where it does not end, or not well.
    pub async fn stop(&mut self) -> Result<()> {
        self.sample();
        self.control.forget();
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            kill_process(pid, Signal::TERM).with_context(|| format!("cannot stop {}", self.name))?;
        }
        match timeout(STOP_MAX, child.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(status) => bail!("{} ended badly ({:?}): {}", self.name, status, self.last_words()),
            Err(_) => {
                child.kill().await?;
                bail!("{} does not end on SIGTERM: {}", self.name, self.last_words())
            }
        }
    }

    /// Complains where it ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            self.child = None;
            bail!("{} ended by itself ({status}): {}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Takes note of its resident size.
    pub fn sample(&mut self) {
        if let Some(id) = self.child.as_ref().and_then(Child::id)
            && let Ok(status) = std::fs::read_to_string(format!("/proc/{id}/status"))
        {
            self.rss_kb_max = self.rss_kb_max.max(peak_kb(&status));
        }
    }

    /// What it has had of the cores since it was started; nothing where it does not run.
    pub fn cpu(&self) -> Duration {
        let id = self.child.as_ref().and_then(Child::id);
        let stat = id.and_then(|id| std::fs::read_to_string(format!("/proc/{id}/stat")).ok());
        stat.as_deref().map_or(Duration::ZERO, cpu_of)
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("the end of {}:\n{}", self.log.display(), lines[lines.len().saturating_sub(12)..].join("\n"))
    }
}

/// Fields 14 and 15 of `/proc/PID/stat` (proc_pid_stat(5)): user and system time in ticks, of which Linux shows a hundred a
/// second whatever it counts itself. The name, field 2, may have anything in it up to the last parenthesis.
fn cpu_of(stat: &str) -> Duration {
    let after_name = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

fn peak_kb(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_is_read_past_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 23 19 5 6 20 0 4 0";
        assert_eq!(cpu_of(stat), Duration::from_millis(420));
    }

    #[test]
    fn the_peak_is_read_from_the_kernel_s_words() {
        assert_eq!(peak_kb("Name:\tx\nVmHWM:\t   12345 kB\nVmRSS:\t 1 kB\n"), 12_345);
        assert_eq!(peak_kb(""), 0);
    }
}
