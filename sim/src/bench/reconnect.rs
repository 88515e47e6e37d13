//! Many nodes, each a process of its own, whose links all come back at the same moment.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use feiqian_protocol::campus::Mode;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CardNumber, NodeName, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_reconcile::driver::real_now;
use feiqian_reconcile::io::Status;
use serde_json::json;
use tokio::time::sleep;

use super::Wanted;
use super::figures::{Figures, seconds};
use super::measure::{Scale, median};
use crate::campus::layout::Layout;
use crate::campus::setup::{Campus, set_up};
use crate::campus::workload::{Account, Site, Workload};

/// Accounts of this campus. Few, since each node holds all of them; a reconnect does not depend on how many there are.
const ACCOUNTS: u32 = 500;
/// Longest wait.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures how long it takes until all nodes are in session again.
///
/// # Errors
/// Where a process does not do what it should.
pub async fn measure(scale: &Scale, wanted: &Wanted, figures: &mut Figures) -> Result<()> {
    if !wanted.has("reconnect_200_s") {
        return Ok(());
    }
    let root = tempfile::Builder::new().prefix("feiqian-bench-").tempdir()?;
    let names: Vec<String> = (1..=scale.nodes).map(|number| format!("n{number}")).collect();
    let layout =
        Layout::create(&root.path().join("run"), &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut campus = set_up(&layout, &workload(&names)?, Mode::Hybrid, real_now()).await?;
    until(&mut campus, true).await?;
    let mut took = Vec::new();
    for _ in 0..scale.runs {
        campus.nodes.iter().for_each(|node| node.relay.set_cut(true));
        until(&mut campus, false).await?;
        campus.nodes.iter().for_each(|node| node.relay.set_cut(false));
        let begun = Instant::now();
        until(&mut campus, true).await?;
        took.push(begun.elapsed());
    }
    figures.reconnect_200_s = Some(seconds(median(&mut took)));
    campus.stop().await
}

fn workload(names: &[String]) -> Result<Workload> {
    let site = |name: &String| -> Result<Site> {
        let terminals = vec![TerminalId::new(format!("{name}-1"))?];
        Ok(Site { name: NodeName::new(name.as_str())?, role: Role::Pos, terminals })
    };
    let account = |number: u32| -> Result<Account> {
        Ok(Account {
            card: CardNumber::new(format!("c{number}"))?,
            patron_class: "student".to_owned(),
            opening: Fen::new(10_000),
            single_limit: None,
            daily_limit: None,
        })
    };
    Ok(Workload {
        buildings: names.iter().map(site).collect::<Result<_>>()?,
        tariff: Default::default(),
        accounts: (1..=ACCOUNTS).map(account).collect::<Result<_>>()?,
        topups: Vec::new(),
        taps: Vec::new(),
    })
}

/// Until all nodes are in session at the centre, or none.
async fn until(campus: &mut Campus, connected: bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let status: Status = campus.centre.control.call(&json!({"command": "status"})).await?;
        let count = status.nodes.iter().filter(|node| node.connected == connected).count();
        if count == campus.nodes.len() {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "only {count} nodes came to connected = {connected}");
        sleep(Duration::from_millis(20)).await;
    }
}
