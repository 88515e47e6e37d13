//! How long what happens at the centre takes to a building, beside nothing or beside a backlog on the same link.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use feiqian_node::http::api::BalanceAnswer;
use serde_json::{Value, json};
use tokio::time::sleep_until;

use super::{PATIENCE, TILLS, Town, card};
use crate::bench::client::Till;
use crate::bench::figures::{Downlink, millis};
use crate::bench::measure::{median, percentile};

/// Changes that are timed: on an idle link, and at most beside a backlog.
pub(super) const DOWNLINK_SAMPLES: usize = 200;
/// The last cards, which no terminal takes: some for each of the measurements here, since a card is lost once.
pub(super) const CARDS_TO_CHANGE: u64 = 3 * DOWNLINK_SAMPLES as u64;
/// The terminal that looks whether they have arrived enquires so often: what it adds to a time is less than this, and more often
/// it would take a processor from those that are measured.
const ENQUIRE_EVERY: Duration = Duration::from_millis(1);

/// What happens at the centre.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Changes {
    /// A credit, or every other time a loss report.
    Both,
    /// Loss reports alone.
    Losses,
}

/// What else is on the link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Link {
    /// Nothing.
    Idle,
    /// A backlog of entries, on its way up.
    Busy,
}

impl Town {
    /// The same as [`Town::downlink`] from the moment on when the link comes back, until the centre has what was tapped meanwhile.
    pub(super) async fn downlink_busy(&mut self, changes: Changes) -> Result<Downlink> {
        self.campus.nodes[0].relay.set_cut(false);
        self.until("the link", |node, _| node["link"] == "up").await?;
        self.downlink(DOWNLINK_SAMPLES, changes, Link::Busy).await
    }

    /// Changes at the centre, one after the other, each from its command until the canteen says so over HTTPS.
    pub(super) async fn downlink(
        &mut self,
        samples: usize,
        changes: Changes,
        link: Link,
    ) -> Result<Downlink> {
        let mut till = self.till(TILLS).await?;
        let mut took = Vec::new();
        for index in 0..samples {
            let (command, card) = self.change(index, changes, link);
            let body = json!({"card": card}).to_string();
            let before = enquire(&mut till, &body).await?;
            let begun = Instant::now();
            self.campus.centre.control.send(&command).await?;
            // Only what the command changes: the time of the centre's newest word moves with every batch that it posts.
            let is_there = |after: &BalanceAnswer| match &command["amount_fen"] {
                Value::Null => after.reason.as_deref() == Some("lost"),
                amount => {
                    after.cash_fen == before.cash_fen.zip(amount.as_i64()).map(|(cash, more)| cash + more)
                }
            };
            let mut next = tokio::time::Instant::now();
            while !is_there(&enquire(&mut till, &body).await?) {
                ensure!(begun.elapsed() < PATIENCE, "the canteen does not hear of {command}");
                next = (next + ENQUIRE_EVERY).max(tokio::time::Instant::now());
                sleep_until(next).await;
            }
            took.push(begun.elapsed());
            self.campus.centre.control.receive::<Value>().await?;
            if command["amount_fen"].is_null() {
                self.check_refused(&mut till, &card).await?;
            }
            if link == Link::Busy && self.is_drained().await? {
                break;
            }
        }
        ensure!(!took.is_empty(), "nothing was measured");
        Ok(Downlink { p50_ms: millis(median(&mut took)), p99_ms: millis(percentile(&mut took, 99)) })
    }

    /// A change, and the card that it is about.
    fn change(&self, index: usize, changes: Changes, link: Link) -> (Value, String) {
        let measured_before = match (link, changes) {
            (Link::Idle, _) => 0,
            (Link::Busy, Changes::Both) => 1,
            (Link::Busy, Changes::Losses) => 2,
        };
        let card = card(self.scale.accounts - (index + measured_before * DOWNLINK_SAMPLES) as u64);
        let is_credit = changes == Changes::Both && index.is_multiple_of(2);
        let command = if is_credit {
            json!({"command": "topup", "card": card, "amount_fen": 100, "channel": "bench", "key": card})
        } else {
            json!({"command": "report_loss", "card": card, "operator": "bench"})
        };
        (command, card)
    }

    /// A card that is shown as lost pays nothing.
    async fn check_refused(&mut self, till: &mut Till, card: &str) -> Result<()> {
        self.tapped += 1;
        let (_, answer) = till.send(till.tap(self.tapped, card)?).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        ensure!(answer["reason"] == "lost", "a tap with a lost card is answered {answer}");
        Ok(())
    }

    async fn is_drained(&mut self) -> Result<bool> {
        let status: Value = self.node().control.call(&json!({"command": "status"})).await?;
        Ok(status["acked"] == status["position"])
    }
}

/// What a terminal is told of a card.
async fn enquire(till: &mut Till, body: &str) -> Result<BalanceAnswer> {
    let (_, answer) = till.send(till.request("/v1/balance", body.to_owned())?).await?;
    serde_json::from_slice(&answer).with_context(|| String::from_utf8_lossy(&answer).into_owned())
}
