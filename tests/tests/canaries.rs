//! What ships holds no planted bug: none is in the binaries, and nothing turns on the feature that would compile them in.

use std::path::Path;

use feiqian_protocol::canary::{Canary, planted};
use feiqian_tests::binaries::binary;

/// A sound build has [`planted`] as a constant: with the feature this does not compile.
const _: () = assert!(!planted(Canary::AnswerBeforeCommit));

const BINARIES: [&str; 3] = ["feiqian-node", "feiqian-reconcile", "feiqian-sim"];

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn no_binary_holds_a_planted_bug() {
    for name in BINARIES {
        let bytes = std::fs::read(binary(name)).unwrap();
        assert!(holds(&bytes, "pin_required"), "{name}: a text that it holds is found in it");
        // All markers begin like this.
        if holds(&bytes, "planted bug: ") {
            let found = Canary::ALL.iter().filter(|canary| holds(&bytes, canary.marker()));
            let found: Vec<_> = found.map(|canary| canary.name()).collect();
            panic!("{name} holds {found:?}");
        }
    }
}

#[test]
fn no_crate_turns_the_feature_on() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let members = ["protocol", "node", "reconcile", "sim", "tests"];
    for member in members {
        let text = std::fs::read_to_string(root.join(member).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        let features = manifest.get("features").and_then(|features| features.as_table());
        for (feature, turns_on) in features.into_iter().flatten() {
            assert_eq!(feature, "canaries", "{member}: a default or another feature could turn it on");
            let turns_on: Vec<_> = turns_on.as_array().unwrap().iter().filter_map(|on| on.as_str()).collect();
            assert!(turns_on.iter().all(|on| on.ends_with("/canaries")), "{member}: {turns_on:?}");
        }
        let tables = manifest.iter().filter(|(name, _)| name.ends_with("dependencies"));
        for (name, dependency) in tables.flat_map(|(_, table)| table.as_table().into_iter().flatten()) {
            let asked = dependency.get("features").map(ToString::to_string).unwrap_or_default();
            assert!(!asked.contains("canaries"), "{member} turns it on in {name}");
        }
    }
    let workspace = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(!workspace.contains("canaries"), "the workspace turns it on");
}
