//! One of the two programs, as somebody starts, asks and stops it.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{PATIENCE, wait_for};
use crate::binaries::{binary, run, run_ok};

/// One of the two services: its data directory, configuration, log and process.
#[derive(Debug)]
pub struct Service {
    program: &'static str,
    /// Its data directory.
    pub data: PathBuf,
    /// The configuration of `run`.
    pub config: PathBuf,
    pub(super) log: PathBuf,
    /// What the wall clock is set to at each start, where it is driven.
    pub clock_ms: Option<i64>,
    child: Option<Child>,
}

impl Service {
    /// A service that is not started, with its configuration and log beside its data directory.
    pub fn new(program: &'static str, data: &Path) -> Self {
        let (config, log) = (data.with_extension("toml"), data.with_extension("log"));
        Self { program, data: data.to_owned(), config, log, clock_ms: None, child: None }
    }

    /// The command that runs it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary(self.program));
        command.arg("run").arg("--config").arg(&self.config);
        command
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// With the end of its log, where it does not come up.
    pub fn start(&mut self) -> Result<()> {
        let command = self.command();
        self.start_as(command)
    }

    /// Starts it by another command than [`Service::command`].
    ///
    /// # Errors
    /// As [`Service::start`].
    pub fn start_as(&mut self, mut command: Command) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.data.display());
        let log = self.log_file()?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn()?);
        let begun = Instant::now();
        loop {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.child = None;
                bail!("{} ended with {status}:\n{}", self.program, self.log());
            }
            if self.is_serving() {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{} does not serve:\n{}", self.program, self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_serving(&self) -> bool {
        if let Some(now_ms) = self.clock_ms
            && self.ask(&json!({"command": "clock", "now_ms": now_ms})).is_err()
        {
            return false;
        }
        // A node opens its local socket before it serves its terminals.
        self.status().is_ok_and(|status| status.get("terminals") != Some(&Value::Null))
    }

    /// Runs it where it must fail at the start; returns what it said.
    ///
    /// # Errors
    /// Where it does not end within a few seconds.
    pub fn fails_to_start(&self) -> Result<Output> {
        let mut child =
            self.command().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let begun = Instant::now();
        while child.try_wait()?.is_none() {
            if begun.elapsed() > PATIENCE {
                child.kill()?;
                bail!("{} runs, though it should not", self.program);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(child.wait_with_output()?)
    }

    fn log_file(&self) -> Result<File> {
        Ok(OpenOptions::new().create(true).append(true).open(&self.log)?)
    }

    /// Its process id.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn pid(&self) -> Result<Pid> {
        let child = self.child.as_ref().context("the service does not run")?;
        Pid::from_raw(i32::try_from(child.id())?).context("a process has a number")
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// Where it does not end, or not well.
    pub fn stop(&mut self) -> Result<()> {
        let pid = self.pid()?;
        kill_process(pid, Signal::TERM)?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "{} stopped with {status}:\n{}", self.program, self.log());
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                bail!("{} does not stop:\n{}", self.program, self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it as a power cut would, as far as the process goes.
    ///
    /// # Errors
    /// Where it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// True while it runs.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(match &mut self.child {
            None => false,
            Some(child) => child.try_wait()?.is_none(),
        })
    }

    /// Everything that it has logged so far, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until its log has this text.
    ///
    /// # Errors
    /// With the whole log, where it does not come.
    pub fn wait_for_log(&self, text: &str) -> Result<()> {
        wait_for(text, || Ok(self.log().contains(text))).with_context(|| self.log())
    }

    /// Says a command on its local socket.
    ///
    /// # Errors
    /// Where there is no answer, or it is no.
    pub fn ask(&self, command: &Value) -> Result<Value> {
        let mut stream = UnixStream::connect(self.data.join("control.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)?;
        ensure!(answer["ok"] == true, "{command}: {answer}");
        Ok(answer)
    }

    /// Its status.
    ///
    /// # Errors
    /// Where it gives none.
    pub fn status(&self) -> Result<Value> {
        self.ask(&json!({"command": "status"}))
    }

    /// `verify --json` of its database, beside the running process or without it.
    ///
    /// # Errors
    /// Where it prints no report.
    pub fn verify(&self) -> Result<Value> {
        let output = self.run(["verify", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        ensure!(output.status.success() == (report["ok"] == true), "exit code against report: {report}");
        Ok(report)
    }

    /// Runs the program on its data directory.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        let arguments: Vec<_> = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        run(
            self.program,
            arguments.iter().map(AsRef::as_ref).chain(["--data".as_ref(), self.data.as_os_str()]),
        )
    }

    /// The same where it must succeed; returns what it printed.
    pub fn run_ok<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        let arguments: Vec<_> = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        run_ok(
            self.program,
            arguments.iter().map(AsRef::as_ref).chain(["--data".as_ref(), self.data.as_os_str()]),
        )
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A test that failed leaves no process behind; one that ended well has none.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
