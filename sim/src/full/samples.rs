//! Time lines for the report: what shows from outside the processes, so that looking changes nothing.

use std::time::Duration;

use tokio::time::sleep;

use super::hosts::At;
use super::run::{Run, Shared};
use crate::outcome::NodeTimeline;
use crate::plan::Plan;

/// How often it is looked whether links stand.
const EVERY: Duration = Duration::from_millis(500);

/// The time lines of a plan's buildings, empty.
pub(super) fn lines(plan: &Plan) -> Vec<NodeTimeline> {
    let line = |node: String| NodeTimeline { node, ..NodeTimeline::default() };
    plan.buildings.iter().map(|building| line(building.name.to_string())).collect()
}

/// Watches the links of the nodes in service, for as long as the run lasts. It always does, so that a run is the same whether
/// or not somebody wants its time lines.
pub(super) async fn watch_links(run: Shared) {
    loop {
        {
            let mut state = run.borrow_mut();
            let at_ms = state.now_ms();
            for building in 0..state.seen.in_service.len() {
                let site = &state.campus.sites[state.seen.in_service[building]];
                let up = site.process.as_ref().is_some_and(|(_, process)| process.is_in_session());
                mark(&mut state.outcome.timeline.nodes[building].link, at_ms, up);
            }
        }
        sleep(EVERY).await;
    }
}

fn mark(line: &mut Vec<(u64, bool)>, at_ms: u64, up: bool) {
    if line.last().is_some_and(|(_, up)| *up) != up {
        line.push((at_ms, up));
    }
}

impl Run {
    /// A process of a node in service has started or ended.
    pub(super) fn mark_process(&mut self, host: At, up: bool) {
        let at_ms = self.now_ms();
        if let At::Site(site) = host
            && let Some(building) = self.seen.in_service.iter().position(|in_service| *in_service == site)
            && let Some(line) = self.outcome.timeline.nodes.get_mut(building)
        {
            mark(&mut line.process, at_ms, up);
        }
    }
}
