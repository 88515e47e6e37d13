//! The way from a blank controller to the first tap: the page's own commands, run as they stand.

use std::net::{TcpListener, UdpSocket};
use std::process::Command;

use feiqian_tests::binaries::binary;

const PAGE: &str = include_str!("../../docs/first-tap.md");

/// The commands of the page: its `sh` blocks, in order.
fn commands() -> String {
    let mut inside = false;
    let mut commands = String::new();
    for line in PAGE.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside => {
                commands.push_str(line);
                commands.push('\n');
            }
            _ => {}
        }
    }
    commands
}

fn is_here(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
        || Command::new(program).arg("version").output().is_ok()
}

#[test]
fn the_page_leads_from_a_blank_controller_to_the_first_tap() {
    for program in ["bash", "curl", "openssl"] {
        if !is_here(program) {
            assert!(std::env::var_os("CI").is_none(), "{program} is needed");
            eprintln!("skipped: {program} is not installed");
            return;
        }
    }
    let directory = tempfile::tempdir().expect("a directory");
    let binaries = binary("feiqian-node");
    let binaries = binaries.parent().expect("a directory");
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap_or_default());
    let centre_port =
        UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let terminal_port =
        TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    // Whatever fails, no service stays behind.
    let script =
        format!("set -eu -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{}", commands());
    let output = Command::new("timeout")
        .args(["120", "bash", "-c", &script])
        .env("PATH", path)
        .env("CENTRE", directory.path().join("centre"))
        .env("NODE", directory.path().join("node"))
        .env("CENTRE_PORT", centre_port.to_string())
        .env("TERMINAL_PORT", terminal_port.to_string())
        .output()
        .expect("bash starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");

    let answers: Vec<serde_json::Value> = stdout
        .lines()
        .filter(|line| line.starts_with('{'))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let taps: Vec<_> = answers.iter().filter(|answer| answer.get("outcome").is_some()).collect();
    assert_eq!(taps.len(), 3, "{stdout}\n{stderr}");
    assert!(taps.iter().all(|answer| answer["outcome"] == "approved"), "{stdout}");
    assert_eq!((taps[0]["amount_fen"].as_i64(), taps[0]["repeat"].as_bool()), (Some(1250), Some(false)));
    assert_eq!(taps[1]["amount_fen"].as_i64(), Some(768), "320 g at 0.024 yuan");
    assert_eq!((taps[2]["amount_fen"].as_i64(), taps[2]["repeat"].as_bool()), (Some(1250), Some(true)));
    // 50.00 + 20.00 - 12.50 - 7.68
    assert!(stdout.lines().any(|line| line == "c00001,cash,4982"), "{stdout}");
}

#[test]
fn the_units_are_valid() {
    if !is_here("systemd-analyze") {
        eprintln!("skipped: systemd-analyze is not installed");
        assert!(std::env::var_os("CI").is_none(), "systemd-analyze is needed");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    for service in ["feiqian-node", "feiqian-reconcile"] {
        let unit =
            std::fs::read_to_string(format!("{}/../deploy/{service}.service", env!("CARGO_MANIFEST_DIR")))
                .expect("the unit is there");
        // The installed binaries' place does not exist here; everything else is checked as it stands.
        let binary = binary(service);
        let unit = unit.replace(&format!("/usr/bin/{service}"), binary.to_str().expect("UTF-8 path"));
        let file = directory.path().join(format!("{service}.service"));
        std::fs::write(&file, unit).expect("writes");
        let output = Command::new("systemd-analyze").arg("verify").arg(&file).output().expect("starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains(service), "{said}");
    }
}
