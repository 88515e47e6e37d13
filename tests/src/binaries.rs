//! Finds the binaries under test, and runs them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// What the variables begin with that cargo sets for a test of this package.
const OF_THE_TEST: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];

/// The path of a binary of this workspace, of the profile that the tests themselves were built with.
///
/// # Panics
/// Where it cannot be built.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        let test = std::env::current_exe().expect("a running test has a path");
        let directory = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/test").to_owned();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--bins", "--quiet"]);
        // What cargo tells a test of its package, build scripts of dependencies would take for another package than theirs, and all
        // that depends on them would be built once more.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| OF_THE_TEST.iter().any(|of| name.starts_with(of))) {
                build.env_remove(name);
            }
        }
        if directory.ends_with("release") {
            build.arg("--release");
        }
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        assert!(build.status().expect("cargo starts").success(), "the binaries build");
        directory
    });
    directory.join(name)
}

/// Runs a binary to its end.
///
/// # Panics
/// Where it cannot be started.
pub fn run<A: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) -> Output {
    Command::new(binary(name)).args(arguments).output().expect("the binary starts")
}

/// Runs a binary that must succeed; returns what it printed.
///
/// # Panics
/// With all that it printed, where it fails.
pub fn run_ok<A: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let output = run(name, arguments);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} ended with {}:\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// The folder with real taps, where there is one. Says so where there is none.
pub fn replay_directory() -> Option<PathBuf> {
    let directory = std::env::var_os("FEIQIAN_REPLAY_DIR").map(PathBuf::from);
    if directory.is_none() {
        eprintln!("skipped: FEIQIAN_REPLAY_DIR names no folder with taps to replay");
    }
    directory
}
