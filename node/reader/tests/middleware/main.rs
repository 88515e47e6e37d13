//! The service on real middleware: Debian's pcscd with vsmartcard's virtual reader, and a card of ours in it; alone, and with a real
//! node and centre.
//!
//! vpcd listens on every address and pcscd's socket has a fixed path, so all of it runs in a network and a mount namespace of
//! its own: each test starts itself once more inside.

#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod alone;
mod campus;
mod rig;

use std::path::Path;
use std::process::{Command, Stdio};

use rig::{PCSCD, REQUIRED, Running, wait_until};

const PCSCD_SOCKET: &str = "/run/pcscd/pcscd.comm";
/// Set inside the namespaces.
const INSIDE: &str = "FEIQIAN_READER_INSIDE";

#[test]
fn a_pos_with_a_real_reader_service() {
    in_namespaces("a_pos_with_a_real_reader_service", alone::run);
}

#[test]
fn a_pos_between_its_cards_and_a_campus() {
    // Outside, where the build may use the network.
    if std::env::var_os(INSIDE).is_none() {
        feiqian_tests::binaries::binary(feiqian_tests::stand::NODE);
    }
    in_namespaces("a_pos_between_its_cards_and_a_campus", campus::run);
}

/// Has a test run itself in namespaces of its own, with the middleware there.
fn in_namespaces(test: &str, run: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        let pcscd = Running::new(Command::new(PCSCD).arg("--foreground").stdout(Stdio::null()));
        wait_until("pcscd serves", || Path::new(PCSCD_SOCKET).exists());
        run();
        drop(pcscd);
        return;
    }
    if !Path::new(PCSCD).exists() {
        assert!(std::env::var_os(REQUIRED).is_none(), "{PCSCD} must be there: {REQUIRED} is set");
        eprintln!("skipped: there is no {PCSCD} here (Debian: pcscd, vsmartcard-vpcd)");
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "--mount"]);
    // Without root, a user namespace makes us root inside.
    if !is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let inner = "mkdir -p /run/pcscd && mount -t tmpfs tmpfs /run/pcscd && ip link set lo up && exec \"$@\"";
    unshare.args(["sh", "-c", inner, "inside"]).arg(std::env::current_exe().unwrap());
    unshare.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let status = unshare.status().expect("unshare is part of util-linux");
    assert!(status.success(), "inside the namespaces: {status}");
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id is part of coreutils");
    output.stdout.trim_ascii() == b"0"
}
