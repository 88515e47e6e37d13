//! Edits of account documents, by the cores alone.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use feiqian_protocol::ids::Key;
use feiqian_protocol::money::Fen;
use feiqian_reconcile::core::ReconcileCore;
use feiqian_reconcile::io as centre_io;
use rusqlite::Connection;

use super::{Centre, LINK, Node, Pair, REST_MAX_MS, card, node_io};
use crate::bench::measure::{Scale, median};
use crate::bench::processes::{EDITED_ONE_IN, OPERATORS};

/// How long a run of edits takes the centre's core, and how long the node's: every step with its commit, nothing between them.
/// A step of the centre has as many as there are operators at once, one of the node what the centre has said in one.
pub(super) fn edits(scale: &Scale, pair: &Pair, root: &Path) -> Result<(Duration, Duration)> {
    let (centre_file, node_file) = (root.join("edits-centre.db"), root.join("edits-node.db"));
    pair.centre_image.write_file("centre.db", &centre_file)?;
    pair.node_image.write_file("node.db", &node_file)?;
    let core = ReconcileCore::open(Connection::open(&centre_file)?, pair.centre_identity.clone())?;
    let mut centre = Centre { core, ms: pair.cut_ms + 1_000, down: Default::default() };
    let mut node = Node::open(Connection::open(&node_file)?, &pair.node_identity, pair.cut_ms + 1_000)?;
    centre.link_up(pair.node_identity.node)?;
    node.step(vec![node_io::Input::LinkUp(node_io::LinkId(LINK))])?;
    rest(&mut centre, &mut node)?;
    let (mut at_centre, mut at_node) = (Vec::new(), Vec::new());
    let count = scale.accounts / EDITED_ONE_IN;
    for run in 0..scale.runs as u64 {
        let (mut centre_took, mut node_took) = (Duration::ZERO, Duration::ZERO);
        let mut number = 1 + run * count;
        let end = number + count;
        while number < end {
            let to = end.min(number + OPERATORS);
            let inputs = (number..to).map(|number| limits(number, run)).collect::<Result<_>>()?;
            let begun = Instant::now();
            let reply = centre.step(inputs)?;
            centre_took += begun.elapsed();
            ensure!(matches!(reply, Some(Ok(_))), "an edit is answered {reply:?}");
            let frames = std::mem::take(&mut centre.down).into();
            let begun = Instant::now();
            node.frames(frames)?;
            node_took += begun.elapsed();
            // What the node acknowledges makes room for the next ones.
            centre.frames(std::mem::take(&mut node.up).into())?;
            number = to;
        }
        rest(&mut centre, &mut node)?;
        at_centre.push(centre_took);
        at_node.push(node_took);
    }
    Ok((median(&mut at_centre), median(&mut at_node)))
}

fn limits(number: u64, run: u64) -> Result<centre_io::Input> {
    let change = centre_io::SettingCommand::Limits {
        single_limit_fen: Some(Fen::new(400_000 + run as i64)),
        daily_limit_fen: Some(Fen::new(9_000_000 + run as i64)),
    };
    let command =
        centre_io::Command::ChangeSetting { card: card(number)?, change, operator: Key::new("bench")? };
    Ok(centre_io::Input::Command(centre_io::Ticket(number), command))
}

/// Until neither has anything more to say.
fn rest(centre: &mut Centre, node: &mut Node) -> Result<()> {
    loop {
        centre.step(vec![centre_io::Input::Timer])?;
        node.step(vec![node_io::Input::Timer])?;
        let (down, up) = (std::mem::take(&mut centre.down), std::mem::take(&mut node.up));
        if down.is_empty() && up.is_empty() {
            return Ok(());
        }
        node.frames(down.into())?;
        centre.frames(up.into())?;
        centre.ms += 10;
        node.ms += 10;
        ensure!(centre.ms < REST_MAX_MS, "the two do not come to rest");
    }
}
