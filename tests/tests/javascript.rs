//! The account document is automerge's own format, not only ours: the JavaScript package reads what is written here, and what it
//! changes merges here.
//!
//! The package is looked for in `target/javascript`, or where `FEIQIAN_JAVASCRIPT_DIR` says:
//! `npm install --prefix target/javascript @automerge/automerge@3.5.0`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use feiqian_protocol::account::{CardStatus, Document, Intent, NewAccount, actor_id};
use feiqian_protocol::ids::{AccountId, CardNumber, InstitutionId, Key, NodeId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use serde_json::{Value, json};

/// Where the package is; `None` where there is none, which CI does not accept.
fn packages() -> Option<PathBuf> {
    let chosen = std::env::var_os("FEIQIAN_JAVASCRIPT_DIR").map(PathBuf::from);
    let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/javascript");
    let directory = chosen.unwrap_or_else(|| PathBuf::from(usual));
    let node = Command::new("node").arg("--version").output().is_ok_and(|output| output.status.success());
    if node && directory.join("node_modules/@automerge/automerge").is_dir() {
        return Some(directory);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "node or @automerge/automerge is missing in {}",
        directory.display()
    );
    eprintln!("skipped: node or @automerge/automerge is missing; see the top of tests/tests/javascript.rs");
    None
}

fn author(writer: u16) -> automerge::ActorId {
    actor_id(InstitutionId(1), NodeId(writer), 1, 1, AccountId(1))
}

#[test]
fn a_document_opens_in_javascript_and_what_is_changed_there_merges_here() -> Result<()> {
    let Some(packages) = packages() else { return Ok(()) };
    let new = NewAccount {
        class: "\u{5b66}\u{751f}".to_owned(),
        cards: vec![CardNumber::new("c1")?, CardNumber::new("c2")?],
        single_limit: Fen::new(2_000),
        daily_limit: Fen::new(5_000),
        groups: vec![Key::new("dorm-1")?],
        valid_until: None,
    };
    let mut document = Document::create(&new, author(0), Timestamp(1_667_779_200_000))?;
    document.carry_out(&Intent::VoidCard { card: CardNumber::new("c2")? }, Timestamp(1_667_779_300_000))?;

    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let read = |document: &mut Document| -> Result<Value> {
        std::fs::write(path("document"), document.save())?;
        let output = Command::new("node")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/javascript/documents.mjs"))
            .args([&packages.canonicalize()?, &path("document"), &path("change"), &path("changed")])
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let at = 1_667_779_200_000_i64;
    let mut expected = json!({
        "class": "学生",
        "cards": {"c1": at, "c2": at},
        "void": {"c2": at + 100_000},
        "losses": {},
        "frozen": {},
        "closed": {},
        "limits": {"single": 2_000, "daily": 5_000},
        "groups": {"dorm-1": at},
        "pins": {},
    });
    let mut renewed = document.renewed(2, author(0))?;
    let said = read(&mut renewed)?;
    expected["epoch"] = json!(2);
    ensure!(said["values"] == expected && said["heads"] == json!(renewed.heads()), "begun anew: {said}");
    renewed.merge_change(&std::fs::read(path("change"))?)?;
    ensure!(renewed.settings()?.single_limit == Fen::new(500));

    let said = read(&mut document)?;
    expected.as_object_mut().expect("an object").remove("epoch");
    ensure!(said["values"] == expected, "{said}");
    ensure!(said["heads"] == json!(document.heads()), "{said}");

    // Somebody here has lowered the same limit less far meanwhile.
    let lower = Intent::SetLimits { single: Fen::new(700), daily: Fen::new(5_000) };
    document.carry_out(&lower, Timestamp(1_667_779_400_000))?;
    document.merge_change(&std::fs::read(path("change"))?)?;
    let settings = document.settings()?;
    ensure!(settings.cards[&CardNumber::new("c1")?] == CardStatus::Lost);
    ensure!((settings.single_limit, settings.daily_limit) == (Fen::new(500), Fen::new(5_000)));

    let mut alone = Document::load(&std::fs::read(path("changed"))?, author(1))?;
    ensure!(alone.settings()?.losses.contains_key(&Key::new("from-javascript")?));
    alone.merge_change(&document_change(&mut document, &alone)?)?;
    ensure!(alone.heads() == document.heads() && alone.settings()? == settings);
    Ok(())
}

/// What the one document has that the other lacks: the one change that was made here.
fn document_change(document: &mut Document, other: &Document) -> Result<Vec<u8>> {
    let mut all = automerge::AutoCommit::load(&document.save())?;
    let lacking = all.get_changes(&[]).into_iter().find(|change| !other.has_change(change.raw_bytes()));
    Ok(lacking.expect("the lower limit").raw_bytes().to_vec())
}
