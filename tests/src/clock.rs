//! A wall clock that is wrong, for a real process: a shim that the loader puts before the C library.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Moves the wall clock to `FEIQIAN_TEST_CLOCK_S` as it was when the process began; the running clock is left alone.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long long ahead;

__attribute__((constructor)) static void begin(void) {
    struct timespec now;
    const char *to = getenv("FEIQIAN_TEST_CLOCK_S");
    if (to && syscall(SYS_clock_gettime, CLOCK_REALTIME, &now) == 0) ahead = atoll(to) - now.tv_sec;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec += ahead;
    return result;
}
"#;

/// The shim, built.
#[derive(Debug)]
pub struct WrongClock(PathBuf);

impl WrongClock {
    /// Builds it in `directory`, with the C compiler that also links our own programs.
    ///
    /// # Errors
    /// Where there is none.
    pub fn build(directory: &Path) -> Result<Self> {
        let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
        std::fs::write(&source, SHIM)?;
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(&source)
            .output()
            .context("cc builds the shim")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(Self(library))
    }

    /// Runs a command by a wall clock that begins at this second since 1970.
    pub fn set(&self, command: &mut Command, seconds: i64) {
        command.env("LD_PRELOAD", &self.0).env("FEIQIAN_TEST_CLOCK_S", seconds.to_string());
    }
}
