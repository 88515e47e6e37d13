//! The driver: owns the time, and moves it on only when everything that is due has been answered and has arrived.
//!
//! At each moment, in this order: the clocks are set; links are cut and healed, the centre goes down and comes back, each
//! noticed by both ends; money is paid in and losses are reported; cards are tapped, all terminals at once, while processes
//! may be killed; and then the driver waits until every intact link has drained.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use feiqian_protocol::ids::{CardNumber, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::io::{NodeStatus, Status};
use serde_json::{Value, json};
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::control::NodeView;
use super::local;
use super::plan::{Plan, Victim};
use super::random::Random;
use super::receipt::{Kind, Receipt};
use super::report::Played;
use super::setup::Campus;
use super::steps::Step;
use super::terminal::{Answer, Terminal, Told};
use super::workload::{Ask, Tap, Workload};

/// Longest real time until everything has arrived, before the run fails.
const DRAIN_MAX: Duration = Duration::from_secs(120);
/// Longest real time until the last cases have their bearer; it is no failure when they have not.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// A kill comes within this time after the taps of its moment were sent.
const KILL_WITHIN_US: u64 = 8_000;
/// One of so many answered taps is asked again, as by a terminal whose answer got lost.
const ASK_AGAIN_EVERY: usize = 100;

/// Drives a campus through a workload.
pub struct Driver<'a> {
    workload: &'a Workload,
    plan: &'a Plan,
    campus: &'a mut Campus,
    classes: BTreeMap<&'a CardNumber, &'a str>,
    random: Random,
    /// What each tap was told; by index of the workload's taps.
    told: Vec<Option<Answer>>,
    /// Commands for a centre that is down.
    waiting: Vec<Value>,
    played: Played,
}

struct Job {
    index: usize,
    path: &'static str,
    body: String,
    after: Option<oneshot::Receiver<()>>,
    done: Option<oneshot::Sender<()>>,
}

impl<'a> Driver<'a> {
    /// A driver of a campus that serves.
    pub fn new(workload: &'a Workload, plan: &'a Plan, campus: &'a mut Campus, seed: u64) -> Self {
        let classes = workload.accounts.iter().map(|account| (&account.card, account.patron_class.as_str()));
        Self {
            workload,
            plan,
            campus,
            classes: classes.collect(),
            random: Random::new(seed).fork(0x6b69_6c6c),
            told: vec![None; workload.taps.len()],
            waiting: Vec::new(),
            played: Played::default(),
        }
    }

    /// Plays one step.
    ///
    /// # Errors
    /// Where something fails that no plan asked for.
    pub async fn step(&mut self, now: Timestamp, step: &Step) -> Result<()> {
        let set = self.campus.set_clock(now).await;
        self.campus.check_alive()?;
        set?;
        if step.edge {
            self.change_links(now).await?;
        }
        let mut commands: Vec<Value> = Vec::new();
        commands.extend(self.workload.topups[step.topups.clone()].iter().map(|topup| {
            json!({"command": "topup", "card": topup.card, "amount_fen": topup.amount, "channel": topup.channel,
                   "key": topup.key})
        }));
        commands.extend(
            self.plan.losses[step.losses.clone()]
                .iter()
                .map(|(_, card)| json!({"command": "report_loss", "card": card, "operator": "sim"})),
        );
        if !commands.is_empty() {
            self.waiting.extend(commands);
            self.tell_centre().await?;
            self.drain().await?;
        }
        if step.taps.is_empty() && step.kills.is_empty() {
            return Ok(());
        }
        self.tap(now, step).await?;
        let answered = Instant::now();
        self.drain().await?;
        if self.plan.edges().is_empty() {
            self.played.convergence = answered.elapsed();
        }
        Ok(())
    }

    /// Waits for what is still to be concluded when the replay is over, and hands out what was found.
    ///
    /// # Errors
    /// Where not everything arrives.
    pub async fn finish(mut self, last: Timestamp) -> Result<(Vec<Receipt>, Played)> {
        let begun = Instant::now();
        for minutes in 1.. {
            self.campus.set_clock(last.plus_ms(minutes * 60_000)).await?;
            sleep(Duration::from_millis(50)).await;
            self.drain().await?;
            let status: Status = self.campus.centre.control.call(&json!({"command": "status"})).await?;
            if status.suspense_fen == 0 || begun.elapsed() > SETTLE_MAX {
                break;
            }
        }
        let receipts = self.receipts()?;
        Ok((receipts, self.played))
    }

    /// Resident sizes so far.
    pub fn sample(&mut self) {
        self.campus.sample();
    }

    /// Cuts, heals, and the centre's end and return, as the plan has it for `now`.
    async fn change_links(&mut self, now: Timestamp) -> Result<()> {
        let down = self.plan.centre.since(now).is_some();
        let mut healed = None;
        if down && self.campus.centre.is_live() {
            self.campus.centre.kill().await?;
        }
        for (node, cuts) in self.campus.nodes.iter().zip(&self.plan.cuts) {
            let cut = cuts.since(now).is_some();
            if node.relay.is_cut() && !cut {
                healed = Some(Instant::now());
            }
            node.relay.set_cut(cut);
        }
        if !down && !self.campus.centre.is_live() {
            healed = Some(Instant::now());
            self.campus.centre.start(now).await?;
            self.tell_centre().await?;
        }
        self.drain().await?;
        if let Some(healed) = healed {
            self.played.convergence = healed.elapsed();
        }
        Ok(())
    }

    /// Carries out what waits for the centre, where it is up.
    async fn tell_centre(&mut self) -> Result<()> {
        if !self.campus.centre.is_live() {
            return Ok(());
        }
        for command in std::mem::take(&mut self.waiting) {
            let told: Result<Value, _> = self.campus.centre.control.call(&command).await;
            told.with_context(|| format!("the centre and {}", command["command"]))?;
        }
        Ok(())
    }

    async fn tap(&mut self, now: Timestamp, step: &Step) -> Result<()> {
        let mut running = self.fire(step.taps.clone().collect());
        for victim in &step.kills {
            // Somewhere among the taps of this moment: between a terminal's question and its answer, mostly.
            sleep(Duration::from_micros(50 + self.random.below(KILL_WITHIN_US))).await;
            let process = match victim {
                Victim::Centre => &mut self.campus.centre,
                Victim::Node(node) => &mut self.campus.nodes[*node].process,
            };
            process.kill().await?;
            process.start(now).await?;
        }
        let mut answered = Vec::new();
        while let Some(told) = running.join_next().await {
            for (index, told) in told.context("a terminal")?? {
                self.played.retries += told.retries;
                if told.retries == 0 {
                    self.played.latencies.push(told.latency);
                }
                self.told[index] = Some(told.answer);
                answered.push(index);
            }
        }
        answered.retain(|index| !step.kills.is_empty() || index % ASK_AGAIN_EVERY == 0);
        let mut running = self.fire(answered);
        while let Some(told) = running.join_next().await {
            for (index, again) in told.context("a terminal")?? {
                self.compare(index, &again.answer);
            }
        }
        Ok(())
    }

    /// A repeat must get the first answer.
    fn compare(&mut self, index: usize, again: &Answer) {
        let tap = &self.workload.taps[index];
        if let Some(first) = &self.told[index]
            && (first.outcome != again.outcome
                || first.amount_fen != again.amount_fen
                || first.reason != again.reason
                || !again.repeat)
        {
            self.played.problems.push(format!(
                "{} {}: told {first:?} first and {again:?} when asked again",
                tap.terminal, tap.sequence
            ));
        }
    }

    /// Sends taps, all terminals at once. A terminal has one tap at a time, and so has a card: two taps of one card at the same
    /// moment follow each other in the order of terminal and sequence, which is the order that they are judged in.
    fn fire(&self, mut taps: Vec<usize>) -> JoinSet<Result<Vec<(usize, Told)>>> {
        let tap = |index: usize| &self.workload.taps[index];
        taps.sort_by_key(|index| (&tap(*index).terminal, *index));
        let mut jobs: BTreeMap<(usize, &TerminalId), Vec<Job>> = BTreeMap::new();
        let mut last_of_card: BTreeMap<&CardNumber, oneshot::Receiver<()>> = BTreeMap::new();
        for index in taps {
            let Some((path, body)) = self.request(index) else { continue };
            let (done, receiver) = oneshot::channel();
            let after = last_of_card.insert(&tap(index).card, receiver);
            let job = Job { index, path, body, after, done: Some(done) };
            jobs.entry((tap(index).building, &tap(index).terminal)).or_default().push(job);
        }
        let mut running = JoinSet::new();
        for ((building, id), jobs) in jobs {
            let terminal = self.campus.nodes[building].terminals.get(id).map(Arc::clone);
            running.spawn(work_through(terminal, jobs));
        }
        running
    }

    /// Path and body of a tap's request; `None` for a reversal of what was declined.
    fn request(&self, index: usize) -> Option<(&'static str, String)> {
        let tap = &self.workload.taps[index];
        let mut body = json!({"epoch": 1, "sequence": tap.sequence});
        let mut set = |key: &str, value: Value| body[key] = value;
        let mut path = "/v1/taps";
        match tap.ask {
            Ask::Access => set("kind", "access".into()),
            Ask::Amount(amount) => {
                set("kind", "purchase".into());
                set("amount_fen", amount.get().into());
            }
            Ask::Quantity(quantity) => {
                set("kind", "purchase".into());
                set("quantity", quantity.into());
            }
            Ask::Reversal(original) => {
                let approved = self.told[original].as_ref().is_some_and(|told| told.outcome == "approved");
                if !approved {
                    return None;
                }
                set("original", json!({"epoch": 1, "sequence": self.workload.taps[original].sequence}));
                path = "/v1/reversals";
            }
        }
        if path == "/v1/taps" {
            set("card", tap.card.as_str().into());
        }
        Some((path, body.to_string()))
    }

    /// Waits until every link is as it should be, and everything has arrived wherever a link is intact.
    async fn drain(&mut self) -> Result<()> {
        let begun = Instant::now();
        let mut pause = Duration::from_micros(300);
        loop {
            let undrained = self.undrained().await;
            // A process that ended explains an answer that did not come.
            self.campus.check_alive()?;
            let Some(undrained) = undrained? else { return Ok(()) };
            if begun.elapsed() > DRAIN_MAX {
                bail!("not drained after {} s: {undrained}", DRAIN_MAX.as_secs());
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(10));
        }
    }

    /// What is still under way; `None` where nothing is. The centre is asked before and after the nodes, so that what they say
    /// belongs together.
    async fn undrained(&mut self) -> Result<Option<String>> {
        let request = json!({"command": "status"});
        let before = match self.campus.centre.is_live() {
            true => Some(self.campus.centre.control.call::<Status>(&request).await?),
            false => None,
        };
        let expected: Vec<bool> =
            self.campus.nodes.iter().map(|node| before.is_some() && !node.relay.is_cut()).collect();
        if let Some(status) = &before
            && let Some(undrained) = centre_undrained(status, &self.campus.nodes_by_name(), &expected)
        {
            return Ok(Some(undrained));
        }
        for node in &mut self.campus.nodes {
            node.process.control.send(&request).await?;
        }
        let mut views = Vec::new();
        for node in &mut self.campus.nodes {
            // Every answer is fetched, also after one that failed, so that none is taken for a later one.
            views.push(node.process.control.receive::<NodeView>().await);
        }
        for ((node, view), expected) in self.campus.nodes.iter().zip(views).zip(&expected) {
            let view = view?;
            if let Some(reason) = &view.refused {
                bail!("node {} was refused by the centre: {reason}", node.name);
            }
            let at_centre = before.as_ref().and_then(|status| find(status, &node.name));
            let shards = before.as_ref().map(|status| status.shards.as_slice()).unwrap_or_default();
            if let Some(undrained) = node_undrained(&view, at_centre, shards, *expected) {
                return Ok(Some(format!("node {}: {undrained}", node.name)));
            }
        }
        let Some(before) = before else { return Ok(None) };
        let after: Status = self.campus.centre.control.call(&request).await?;
        let still =
            before.shards == after.shards
                && before.nodes.iter().zip(&after.nodes).all(|(before, after)| {
                    (before.ingested, before.to_node) == (after.ingested, after.to_node)
                });
        Ok((!still).then(|| "the centre is still at work".to_owned()))
    }

    fn receipts(&self) -> Result<Vec<Receipt>> {
        let mut reversed: BTreeMap<usize, i64> = BTreeMap::new();
        let mut order: Vec<usize> = (0..self.workload.taps.len()).collect();
        order.sort_by_key(|index| {
            let tap = &self.workload.taps[*index];
            (tap.at, &tap.terminal, *index)
        });
        for (tap, told) in self.workload.taps.iter().zip(&self.told) {
            if let (Ask::Reversal(original), Some(answer)) = (tap.ask, told)
                && answer.outcome == "approved"
            {
                *reversed.entry(original).or_default() += answer.amount_fen;
            }
        }
        order
            .into_iter()
            .filter_map(|index| Some((index, self.told[index].as_ref()?)))
            .map(|(index, answer)| {
                let back = reversed.get(&index).copied().unwrap_or(0);
                self.receipt(&self.workload.taps[index], answer, back)
            })
            .collect()
    }

    fn receipt(&self, tap: &Tap, answer: &Answer, reversed: i64) -> Result<Receipt> {
        let class = self.classes.get(&tap.card).copied();
        let asked = self.workload.asked(tap, class).unwrap_or(Fen::ZERO);
        let declined = match answer.outcome.as_str() {
            "approved" => None,
            "declined" => Some(answer.reason.clone().context("a decline without a reason")?),
            other => bail!("an outcome {other:?}"),
        };
        let kind = match tap.ask {
            Ask::Access => Kind::Access,
            Ask::Reversal(_) => Kind::Reversal,
            Ask::Amount(_) | Ask::Quantity(_) => Kind::Purchase,
        };
        if kind == Kind::Purchase && declined.is_none() && asked.get() != answer.amount_fen {
            bail!(
                "{} {} at {}: {asked} yuan were asked for and {} charged",
                tap.terminal,
                tap.sequence,
                local::format(tap.at),
                Fen::new(answer.amount_fen)
            );
        }
        let building = self.workload.buildings[tap.building].name.to_string();
        Ok(Receipt {
            at: tap.at,
            building,
            terminal: tap.terminal.clone(),
            sequence: tap.sequence.clone(),
            card: tap.card.clone(),
            kind,
            amount: if declined.is_none() { Fen::new(answer.amount_fen) } else { asked },
            declined,
            stand_in: Fen::new(answer.stand_in_fen),
            reversed: Fen::new(reversed),
        })
    }
}

async fn work_through(terminal: Option<Arc<Mutex<Terminal>>>, jobs: Vec<Job>) -> Result<Vec<(usize, Told)>> {
    let terminal = terminal.context("a tap at a terminal that is not there")?;
    let mut terminal = terminal.lock().await;
    let mut told = Vec::new();
    for mut job in jobs {
        if let Some(after) = job.after.take() {
            // A tap that failed ends the run; whoever waits for it need not know.
            let _done = after.await;
        }
        told.push((job.index, terminal.ask(job.path, &job.body).await?));
        if let Some(done) = job.done.take() {
            let _nobody_waits = done.send(());
        }
    }
    Ok(told)
}

fn find<'s>(status: &'s Status, name: &str) -> Option<&'s NodeStatus> {
    status.nodes.iter().find(|node| node.node == name)
}

fn centre_undrained(status: &Status, names: &[&str], expected: &[bool]) -> Option<String> {
    if status.asks > 0 {
        return Some(format!("{} asks wait at the centre", status.asks));
    }
    names.iter().zip(expected).find_map(|(name, expected)| {
        let Some(node) = find(status, name) else { return Some(format!("the centre knows no node {name}")) };
        if node.connected != *expected {
            return Some(format!("the centre sees node {name} connected: {}", node.connected));
        }
        let behind = node.backlog > 0 || node.to_node != node.to_node_acked;
        (*expected && behind).then(|| format!("the centre's streams for node {name} are not acknowledged"))
    })
}

fn node_undrained(
    view: &NodeView,
    at_centre: Option<&NodeStatus>,
    shards: &[u64],
    expected: bool,
) -> Option<String> {
    if view.pending > 0 {
        return Some(format!("{} taps wait", view.pending));
    }
    if (view.link == "up") != expected {
        return Some(format!("its link is {}", view.link));
    }
    let at_centre = at_centre.filter(|_| expected)?;
    if view.position != view.acked || view.position != at_centre.ingested {
        return Some(format!("position {}, acknowledged {}", view.position, view.acked));
    }
    if view.applied != at_centre.to_node || view.shards != shards || view.campus_version == 0 {
        return Some("it has not applied all of the centre's streams".to_owned());
    }
    None
}

impl Campus {
    fn nodes_by_name(&self) -> Vec<&str> {
        self.nodes.iter().map(|node| node.name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            revoked: Vec::new(),
            nodes: vec![NodeStatus {
                node: "a".into(),
                connected: true,
                state: "open".into(),
                ingested: 5,
                to_node: 7,
                to_node_acked: 7,
                backlog: 0,
                out_fen: 0,
                stand_in_out_fen: 0,
            }],
            shards: vec![1, 2],
            accounts: 1,
            asks: 0,
            open_cases: 0,
            open_cases_fen: 0,
            suspense_fen: 0,
            campus_version: 1,
            recovery: None,
            recovered_until: None,
            wall: Timestamp(0),
        }
    }

    fn view() -> NodeView {
        NodeView {
            link: "up".into(),
            refused: None,
            position: 5,
            acked: 5,
            applied: 7,
            shards: vec![1, 2],
            pending: 0,
            campus_version: 1,
        }
    }

    #[test]
    fn drained_means_that_both_ends_say_the_same() {
        let status = status();
        let centre = |status: &Status, expected| centre_undrained(status, &["a"], &[expected]);
        assert_eq!(centre(&status, true), None);
        assert!(centre(&status, false).is_some());
        assert!(centre_undrained(&status, &["b"], &[true]).is_some());
        let node =
            |view: &NodeView, expected| node_undrained(view, status.nodes.first(), &status.shards, expected);
        assert_eq!(node(&view(), true), None);
        for changed in [
            NodeView { pending: 1, ..view() },
            NodeView { link: "opening".into(), ..view() },
            NodeView { acked: 4, ..view() },
            NodeView { position: 6, acked: 6, ..view() },
            NodeView { applied: 6, ..view() },
            NodeView { shards: vec![1, 1], ..view() },
            NodeView { campus_version: 0, ..view() },
        ] {
            assert!(node(&changed, true).is_some(), "{changed:?}");
        }
        let cut = NodeView { link: "down".into(), position: 9, shards: vec![0, 0], ..view() };
        assert_eq!(node(&cut, false), None);
        assert!(node(&view(), false).is_some());
    }
}
