//! Publishing a campus file: what it changes is shown first.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{Data, say};
use crate::config::read_campus;
use crate::io::Command;

#[derive(Args)]
pub(super) struct Publish {
    /// The campus (TOML).
    #[arg(long, value_name = "FILE.toml")]
    campus: PathBuf,
    /// Shows what it would change, and publishes nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    data: Data,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What differs at a place.
#[derive(Debug, Eq, PartialEq)]
struct Difference {
    path: String,
    old: Option<Value>,
    new: Option<Value>,
}

pub(super) fn act(publish: Publish, out: &mut impl Write) -> anyhow::Result<()> {
    let Publish { campus, dry_run, data, json } = publish;
    let (campus, _) = read_campus(&campus)?;
    let config = serde_json::to_value(&campus)?;
    let now = say(&data.dir, &Command::Campus {})?;
    let differences = differences(&now["config"], &config);
    if !json {
        for Difference { path, old, new } in &differences {
            for (sign, value) in [('-', old), ('+', new)] {
                if let Some(value) = value {
                    writeln!(out, "{sign} {path}: {value}")?;
                }
            }
        }
        out.flush()?;
    }
    let publishes = !dry_run && !differences.is_empty();
    let mut version = now["version"].clone();
    if publishes {
        version = say(&data.dir, &Command::PublishCampus { config })?["version"].clone();
    }
    if json {
        let differences: Vec<_> = differences
            .into_iter()
            .map(|Difference { path, old, new }| json!({ "path": path, "old": old, "new": new }))
            .collect();
        writeln!(
            out,
            "{}",
            json!({ "version": version, "published": publishes, "differences": differences })
        )?;
        return Ok(());
    }
    match (differences.is_empty(), dry_run) {
        (true, _) => writeln!(out, "nothing differs from version {version}")?,
        (false, true) => writeln!(out, "not published; version {version} stays")?,
        (false, false) => writeln!(out, "published, version {version}")?,
    }
    Ok(())
}

/// All that differs, by path.
fn differences(old: &Value, new: &Value) -> Vec<Difference> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    flatten(old, String::new(), &mut before);
    flatten(new, String::new(), &mut after);
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort();
    paths.dedup();
    let differ = paths.into_iter().filter(|path| before.get(*path) != after.get(*path));
    differ
        .map(|path| Difference {
            path: path.clone(),
            old: before.get(path).cloned(),
            new: after.get(path).cloned(),
        })
        .collect()
}

/// Every value by its path. What has a name in a list stands under it, wherever in the list it is.
fn flatten(value: &Value, path: String, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(value, path, into);
            }
        }
        Value::Array(items) if !items.is_empty() && items.iter().all(|item| name_of(item).is_some()) => {
            let mut seen: BTreeMap<String, u32> = BTreeMap::new();
            for item in items {
                let name = name_of(item).unwrap_or_default();
                let count = seen.entry(name.clone()).or_default();
                *count += 1;
                let name = if *count == 1 { name } else { format!("{name} #{count}") };
                flatten(item, format!("{path}[{name}]"), into);
            }
        }
        // What is empty or absent is the same.
        Value::Null => {}
        Value::Array(items) if items.is_empty() => {}
        other => {
            into.insert(path, other.clone());
        }
    }
}

/// What an element of the configuration is told from others by.
fn name_of(item: &Value) -> Option<String> {
    let fields = item.as_object()?;
    let name = ["id", "node", "number", "group", "name"].into_iter().find_map(|name| fields.get(name))?;
    Some(name.as_str().map_or_else(|| name.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_said_by_name_wherever_it_stands() {
        let old = json!({
            "policy": { "mode": "hybrid" }, "hours": [], "meals": [{ "name": "lunch", "limit_fen": 3000 }],
            "merchants": [{ "id": 1, "name": "noodles" }, { "id": 2, "name": "rice" }],
            "buildings": [{ "node": "east", "terminals": [{ "id": "t1", "groups": ["a"], "merchant": null }] }],
        });
        assert_eq!(differences(&old, &old), []);
        let new = json!({
            "policy": { "mode": "strict" }, "meals": [{ "name": "lunch", "limit_fen": 2500 }],
            "merchants": [{ "id": 2, "name": "rice" }, { "id": 1, "name": "soup" }],
            "buildings": [{ "node": "east", "terminals": [{ "id": "t1", "groups": ["a", "b"] }] }],
            "hours": [{ "group": "a", "open": ["06:00-23:00"] }, { "group": "a", "open": ["23:10-23:20"] }],
        });
        let found: Vec<_> = differences(&old, &new)
            .into_iter()
            .map(|Difference { path, old, new }| {
                format!("{path}: {} {}", old.unwrap_or_default(), new.unwrap_or_default())
            })
            .collect();
        let expected = [
            "buildings[east].terminals[t1].groups: [\"a\"] [\"a\",\"b\"]",
            "hours[a #2].group: null \"a\"",
            "hours[a #2].open: null [\"23:10-23:20\"]",
            "hours[a].group: null \"a\"",
            "hours[a].open: null [\"06:00-23:00\"]",
            "meals[lunch].limit_fen: 3000 2500",
            "merchants[1].name: \"noodles\" \"soup\"",
            "policy.mode: \"hybrid\" \"strict\"",
        ];
        assert_eq!(found, expected);
    }
}
