//! The promises, held against what both sides keep on disk and what terminals were told.
//!
//! What needs no knowledge of this engine is in [`crate::promises::books`] and [`crate::promises::receipts`]; here the books
//! are gathered, at chosen moments and at the end.

mod copies;
mod probe;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use feiqian_protocol::account::{AccountSettings, Document, actor_id};
use feiqian_protocol::entry::{Body, Entry};
use feiqian_protocol::ids::{AccountId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::TapKey;
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::io as centre_io;

use super::hosts::{Site, Trust};
use super::{MS, World};
use crate::link::tables::{node_log, to_node_log};
use crate::plan::INSTITUTION;
use crate::promises::books::{Books, Finding, NodeBooks};
use crate::promises::ledger::Sent;
use crate::promises::{Coverage, Promise, books, closings, losses, meals, pins, receipts, settings};

/// How often and how long it is waited for everything to settle at the end, in milliseconds, and how quickly what nobody waits for
/// is attended to then.
const SETTLE_MAX: u32 = 8;
const SETTLE_MS: u64 = 400;
const ATTEND_AT_END_MS: u64 = 20;

/// Accounts whose documents are read at the end: of a campus with more of them, none.
const ACCOUNTS_LOOKED_AT: usize = 64;

/// What widens the bound on overspend: copies of disks.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    copies: Vec<Copy>,
    /// A disk holds what nobody wrote.
    pub rotten: bool,
    /// Some clock was wrong.
    pub wrong_clocks: bool,
    /// The centre's was.
    pub wrong_centre_clock: bool,
}

/// What a copied disk held.
#[derive(Debug)]
struct Copy {
    node: NodeId,
    /// Right and stand-in together.
    held: BTreeMap<AccountId, Fen>,
    /// How much of the centre's stream for the node it had applied.
    applied: usize,
}

impl World<'_> {
    /// The right that is with a building's node, or under way to or from it, where its epoch is the one that the centre has.
    pub(super) fn right_there(&mut self, building: usize) -> Option<(NodeId, u32, Fen)> {
        let node = self.sites[self.buildings[building].site].identity.node;
        if self.centre_was_restored() || self.centre.core.is_none() {
            return None;
        }
        let books = self.books().ok()?;
        let held = books.nodes.iter().find(|books| books.node == node && books.sound)?;
        let given_up = |(account, wallet): &(AccountId, Wallet)| {
            books.given_up.contains_key(&(*account, *wallet, node.0, held.epoch))
        };
        let rows = books::rows_there(held);
        let right = rows.iter().filter(|(key, _)| !given_up(key)).map(|(_, row)| row.0).sum();
        let open = self.centre_tables().ok()?.open_epoch(node).ok()?;
        (open == held.epoch).then_some((node, open, right))
    }

    /// What is declared to be out when an epoch is closed by force is what was there.
    pub(super) fn check_declared(&mut self, there: Option<(NodeId, u32, Fen)>) {
        let Some((node, epoch, right)) = there else { return };
        let declared = self.centre_tables().and_then(|centre| centre.declared(node, epoch));
        if let Ok(Some(declared)) = declared
            && declared != right
        {
            let text = format!("node {node} was closed with {right} there, and {declared} were declared");
            self.violated(Promise::NoOverspend, text);
        }
    }

    /// The keys that the centre has of a site's log.
    pub(super) fn known_to_centre(&mut self, site: usize) -> Result<BTreeSet<TapKey>> {
        let node = self.sites[site].identity.node;
        let logs = self.logs_at_centre(node)?;
        Ok(logs.iter().flat_map(|log| log.iter()).filter_map(receipts::key_of).collect())
    }

    /// A node's log and the branches of it, as the centre has them.
    fn logs_at_centre(&mut self, node: NodeId) -> Result<Vec<std::sync::Arc<Vec<Entry>>>> {
        let centre = self.centre_tables()?;
        let mut logs = vec![centre.entries(node_log(node))?];
        if !centre.branches(node)?.is_empty() {
            for (_, branch) in centre.logs_once(node)?.into_iter().skip(1) {
                logs.push(std::sync::Arc::new(branch.into_iter().map(|kept| kept.entry).collect()));
            }
        }
        Ok(logs)
    }

    /// Gathers the books.
    fn books(&mut self) -> Result<Books> {
        let mut nodes: Vec<NodeBooks> = Vec::new();
        for site in 0..self.sites.len() {
            let node = self.sites[site].identity.node;
            if nodes.iter().any(|known| known.node == node) {
                continue;
            }
            let sound =
                self.sites.iter().all(|host| host.identity.node != node || host.trust == Trust::Sound);
            let at_centre = self.logs_at_centre(node)?;
            let ingested = at_centre[0].len();
            if sound {
                let tables = self.node_tables(site)?;
                let log = tables.entries(node_log(node))?;
                let applied = tables.entries(to_node_log(node))?.len();
                let (epoch, rows) = (tables.epoch()?, tables.rows()?);
                let stream = self.centre_tables()?.entries(to_node_log(node))?;
                let not_applied = stream.get(applied..).unwrap_or_default().to_vec();
                nodes.push(NodeBooks { node, sound, logs: vec![log], ingested, epoch, rows, not_applied });
            } else {
                nodes.push(NodeBooks {
                    node,
                    sound,
                    logs: at_centre,
                    ingested,
                    epoch: 0,
                    rows: BTreeMap::new(),
                    not_applied: Vec::new(),
                });
            }
        }
        let slack = self.slack()?;
        let policy = self.plan.policy.clone();
        let rotten = self.bounds.rotten;
        let was_restored = self.centre_was_restored();
        let mut books = Books::gather(self.centre_tables()?, nodes, policy, slack, rotten)?;
        books.was_restored = was_restored;
        // With a wrong clock one more share per day opened may be used, per node; closing an epoch lets its share out again.
        if !self.bounds.wrong_clocks && books.closings.is_empty() {
            books.daily = self.daily_limits()?;
        }
        Ok(books)
    }

    fn daily_limits(&mut self) -> Result<BTreeMap<AccountId, Fen>> {
        let default = self.plan.campus().daily_limit_fen;
        let plan = self.plan;
        let cards = self.centre_tables()?.cards()?;
        let limit = |account: &crate::plan::Account| {
            cards.get(&account.card).map(|id| (*id, account.daily_limit.unwrap_or(default)))
        };
        Ok(plan.accounts.iter().filter_map(limit).collect())
    }

    /// What copies may spend once more, by account.
    fn slack(&mut self) -> Result<BTreeMap<AccountId, Fen>> {
        let mut slack: BTreeMap<AccountId, Fen> = BTreeMap::new();
        for copy in std::mem::take(&mut self.bounds.copies) {
            let stream = self.centre_tables()?.entries(to_node_log(copy.node))?;
            for entry in stream.get(copy.applied.min(stream.len())..).unwrap_or_default() {
                let granted = match &entry.body {
                    Body::Grant(grant) => grant,
                    Body::StandInGrant(grant) => &grant.0,
                    _ => continue,
                };
                *slack.entry(granted.account).or_default() += granted.amount;
            }
            for (account, fen) in &copy.held {
                *slack.entry(*account).or_default() += *fen;
            }
            self.bounds.copies.push(copy);
        }
        Ok(slack)
    }

    fn found(&mut self, finding: Result<(), Finding>) {
        if let Err(Finding { promise, text }) = finding {
            self.violated(promise, text);
        }
    }

    /// What holds at every moment.
    pub(super) fn check_now(&mut self) -> Result<()> {
        // A centre that came back from an old copy is checked once it has taken back what it lacks.
        if self.centre.core.is_none() || self.is_returning()? {
            return Ok(());
        }
        self.check_books_now()
    }

    /// The same from the books alone.
    pub(super) fn check_books_now(&mut self) -> Result<()> {
        let books = self.books()?;
        for check in books::AT_ANY_MOMENT {
            self.found(check(&books));
        }
        for site in 0..self.sites.len() {
            if self.sites[site].trust == Trust::Sound {
                let node = self.sites[site].identity.node;
                let log = books.nodes.iter().find(|books| books.node == node).map(|books| &books.logs[..]);
                let found = receipts::check(&self.ledger, &[site], log.unwrap_or_default(), false);
                self.found(found);
            }
        }
        Ok(())
    }

    /// What holds once everything is repaired and quiet.
    pub(super) fn check_at_end(&mut self) -> Result<()> {
        self.settle()?;
        self.check_books_now()?;
        self.check_liveness()?;
        self.check_copies()?;
        self.check_books_at_rest()?;
        self.check_purses()?;
        self.check_phones()?;
        self.check_forged()?;
        self.check_settings()?;
        self.check_tries()?;
        self.probe()
    }

    /// A building that has taken a loss report goes by it from then on, and the centre learns of it.
    fn check_reports(&mut self) -> Result<()> {
        let lost = self.centre_tables()?.lost_cards()?;
        for report in self.ledger.building_losses.clone() {
            let host = &self.sites[report.site];
            let lifted =
                self.ledger.lifts.get(&report.account).is_some_and(|said_ns| *said_ns >= report.told_ns);
            // A disk that came back older may have forgotten it.
            if lifted || host.trust != Trust::Sound || host.gone {
                continue;
            }
            let name = self.site_name(report.site);
            let paid = self.ledger.requests.iter().find(|request| {
                let of_card = matches!(&request.sent, Sent::Tap(tap) if tap.card == report.card);
                of_card
                    && request.site == report.site
                    && request.first_ns > report.told_ns
                    && request.approved().is_some()
            });
            if let Some(request) = paid {
                let text = format!(
                    "{name} took a report that {} is lost, and later approved {:?}",
                    report.card,
                    request.sent.key()
                );
                self.violated(Promise::AfterLoss, text);
            }
            if !lost.contains(&report.card) && !self.is_shut_out(report.site)? {
                let text =
                    format!("{name} took a report that {} is lost; the centre knows of none", report.card);
                self.violated(Promise::AfterLoss, text);
            }
        }
        Ok(())
    }

    /// What holds at rest, from the books alone.
    pub(super) fn check_books_at_rest(&mut self) -> Result<()> {
        let books = self.books()?;
        self.found(books::all_is_home(&books));
        // While the centre's time is ahead, what it names cannot be passed by anybody's clock.
        if self.centre_time()? <= self.plan.timing.start.plus_ms(self.now_ms() as i64) {
            self.found(books::bearers(&books));
        }
        for node in &books.nodes {
            let sites: Vec<usize> =
                (0..self.sites.len()).filter(|site| self.sites[*site].identity.node == node.node).collect();
            let logs = self.logs_at_centre(node.node)?;
            // What a destroyed or copied disk held is compared as far as it came to the centre.
            let found = receipts::check(&self.ledger, &sites, &logs, true);
            self.found(found);
        }
        for (node, stream) in books.nodes.iter().zip(&books.to_nodes) {
            let again = pins::told_again(stream);
            let log = self.centre_tables()?.entries(node_log(node.node))?;
            let found = pins::check(self.plan, &self.ledger, &books, &log, &again);
            self.found(found);
        }
        let found = receipts::prices(self.plan, &self.ledger, &books);
        self.found(found);
        let found = receipts::balances(self.plan, &self.ledger, &books);
        self.found(found);
        let epoch = self.epoch();
        let at = |ns: u64| epoch.plus_ms((ns / MS) as i64);
        let found = receipts::access(self.plan, &self.ledger, (!self.bounds.wrong_clocks).then_some(&at));
        self.found(found);
        if !self.bounds.wrong_clocks {
            match meals::check(self.plan, &books) {
                Ok(asked) => (0..asked).for_each(|_| self.reached(Coverage::MealLimitReached)),
                Err(found) => self.found(Err(found)),
            }
        }
        let found = settings::validity(self.plan, &self.ledger, &books);
        self.found(found);
        self.check_reports()?;
        self.check_withdrawn_there();
        let in_service = self.buildings.iter().map(|building| self.sites[building.site].identity.node);
        let found = closings::check(self.plan, &self.ledger, &books, &in_service.collect());
        self.found(found);
        if self.plan.in_order {
            for building in 0..self.buildings.len() {
                let node = self.sites[self.buildings[building].site].identity.node;
                let log = self.centre_tables()?.entries(node_log(node))?;
                let found = receipts::in_order(self.plan, &self.ledger, building, &log);
                self.found(found);
            }
        }
        self.centre_tables()?;
        if let Some(centre) = self.centre.reader.as_mut() {
            let found = losses::check(&self.ledger, centre, &books, self.plan.policy.refund_cap_fen)?;
            self.found(found);
        }
        self.check_convergence(&books)?;
        self.count(&books)?;
        self.outcome.ledger = self.ledger_digest(&books);
        Ok(())
    }

    /// The limits that an account has, by the plan.
    pub(super) fn limits_of(&self, account: usize) -> (Fen, Fen) {
        let campus = self.plan.campus();
        let account = &self.plan.accounts[account];
        (
            account.single_limit.unwrap_or(campus.single_limit_fen),
            account.daily_limit.unwrap_or(campus.daily_limit_fen),
        )
    }

    /// The settings of an account, as the centre's document has them.
    pub(super) fn settings_of(&mut self, account: AccountId) -> Result<AccountSettings> {
        let connection = self.centre_tables()?.connection();
        let saved: Vec<u8> = connection.query_row(
            "SELECT document FROM accounts WHERE account = ?1",
            [account.0 as i64],
            |row| row.get(0),
        )?;
        let reader = actor_id(INSTITUTION, NodeId(u16::MAX), 0, 0, account);
        Ok(Document::load(&saved, reader)?.settings()?)
    }

    /// What is in force of each account is what somebody has said who may.
    fn check_settings(&mut self) -> Result<()> {
        if self.plan.accounts.len() > ACCOUNTS_LOOKED_AT {
            return Ok(());
        }
        let cards = self.centre_tables()?.cards()?;
        let withdrawn = self.withdrawn_phones();
        for account in 0..self.plan.accounts.len() {
            let Some(id) = cards.get(&self.plan.accounts[account].card).copied() else { continue };
            let settings = self.settings_of(id)?;
            let limits = self.limits_of(account);
            let found = settings::check(self.plan, &self.ledger, account, &settings, limits, &withdrawn);
            self.found(found);
        }
        Ok(())
    }

    /// Waits for what the last mark or acknowledgement has set off.
    fn settle(&mut self) -> Result<()> {
        self.attend_ms = ATTEND_AT_END_MS;
        self.attend_all();
        for _ in 0..SETTLE_MAX {
            self.run_until(self.now + SETTLE_MS * MS)?;
            if self.unsettled()?.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// The latest time that the centre has signed.
    fn centre_time(&mut self) -> Result<Timestamp> {
        let connection = self.centre_tables()?.connection();
        let newest = connection.query_row("SELECT max(anchor) FROM logs WHERE log >> 32 = 0", [], |row| {
            row.get::<_, Option<i64>>(0)
        })?;
        Ok(Timestamp(newest.unwrap_or(0)))
    }

    fn check_liveness(&mut self) -> Result<()> {
        let problems = self.unsettled()?;
        if !problems.is_empty() {
            self.violated(Promise::Liveness, problems.join("; "));
        }
        Ok(())
    }

    /// What is still under way.
    fn unsettled(&mut self) -> Result<Vec<String>> {
        let Some(reply) = self.command(centre_io::Command::Status {}) else {
            return Ok(vec!["the centre does not answer".to_owned()]);
        };
        let status: centre_io::Status =
            serde_json::from_value(reply.map_err(|error| anyhow::anyhow!(error))?)?;
        let mut problems = Vec::new();
        if let Some(recovery) = status.recovery {
            problems.push(format!("the centre is still taking back what it lacks: {recovery:?}"));
        }
        if status.asks > 0 {
            problems.push(format!("{} asks wait at the centre", status.asks));
        }
        if self.sites.iter().all(Site::comes_whole) {
            for ((account, wallet), fen) in self.centre_tables()?.unheard()? {
                problems.push(format!(
                    "{fen} of account {account}, {wallet}, is posted of entries that have not come"
                ));
            }
        }
        for building in 0..self.buildings.len() {
            let site = self.buildings[building].site;
            let (name, host) = (self.site_name(site), &self.sites[site]);
            if host.core.is_none() {
                problems.push(format!("{name} does not run"));
                continue;
            }
            if !host.waiting.is_empty() {
                problems.push(format!("{} requests wait at {name}", host.waiting.len()));
            }
            // The newest node of the name is the one in service.
            let node = status
                .nodes
                .iter()
                .rev()
                .find(|node| node.node == self.plan.buildings[building].name.as_str());
            match node {
                Some(node) if !node.connected => problems.push(format!("{name} is not in session")),
                Some(node) if node.backlog > 0 => {
                    problems.push(format!("{} things are under way to {name}", node.backlog));
                }
                Some(_) => {}
                None => problems.push(format!("the centre does not know {name}")),
            }
        }
        for site in 0..self.sites.len() {
            let host = &self.sites[site];
            if !host.comes_whole() {
                continue;
            }
            let (node, is_altered) = (host.identity.node, host.trust == Trust::Altered);
            let held = self.node_tables(site)?.entries(node_log(node))?;
            let ingested = if is_altered {
                let logs = self.centre_tables()?.logs_once(node)?;
                let has = |position: u64, entry: &Entry| {
                    let mut kept = logs.iter().flat_map(|(_, kept)| kept);
                    kept.any(|kept| kept.position == position && kept.entry == *entry)
                };
                (1..).zip(&*held).filter(|(position, entry)| has(*position, entry)).count()
            } else {
                self.centre_tables()?.entries(node_log(node))?.len()
            };
            if held.len() != ingested {
                let (name, held) = (self.site_name(site), held.len());
                problems.push(format!("{ingested} of {held} entries of {name} have come to the centre"));
            }
        }
        Ok(problems)
    }

    /// Everybody in service has equal balances and documents; one of them, and the centre, are folded again from their entries.
    fn check_convergence(&mut self, books: &Books) -> Result<()> {
        let expected = self.centre_tables()?.documents()?;
        let posted = books.posted();
        for building in 0..self.buildings.len() {
            let site = self.buildings[building].site;
            let name = self.site_name(site);
            let tables = self.node_tables(site)?;
            let (documents, balances) = (tables.documents()?, tables.posted()?);
            if documents != expected {
                self.violated(Promise::Convergence, format!("{name} has other documents than the centre"));
            }
            let differs =
                posted.iter().find(|(key, fen)| balances.get(key).copied().unwrap_or_default() != **fen);
            if let Some((key, fen)) = differs {
                let held = balances.get(key);
                self.violated(Promise::Convergence, format!("{name} holds {held:?} for {key:?}, not {fen}"));
            }
        }
        let building = self.chance.index(self.buildings.len());
        let site = self.buildings[building].site;
        let identity = self.sites[site].identity.clone();
        let report = feiqian_node::verify::verify(self.node_tables(site)?.connection(), &identity)?;
        if !report.ok || report.digest_tables != report.digest_folded {
            let name = self.site_name(site);
            self.violated(Promise::History, format!("the books of {name}: {:?}", report.problems));
        }
        let centre_key = self.centre.identity.log_key.verifying_key();
        let report =
            feiqian_reconcile::verify::verify(self.centre_tables()?.connection(), INSTITUTION, &centre_key)?;
        if !report.ok {
            self.violated(Promise::History, format!("the books of the centre: {:?}", report.problems));
        }
        Ok(())
    }

    /// Puts all logs into the trace, for whoever looks for what went wrong.
    pub(super) fn dump(&mut self) -> Result<()> {
        if !self.audit.has_trace() {
            return Ok(());
        }
        let books = self.books()?;
        for node in &books.nodes {
            for (branch, log) in node.logs.iter().enumerate() {
                for (position, entry) in (1..).zip(log.iter()) {
                    self.audit.say(self.now, || {
                        format!("log node-{}.{branch}:{position} {:?}", node.node, entry.body)
                    });
                }
            }
        }
        let streams = books.shards.iter().chain(&books.to_nodes);
        for entry in streams.flat_map(|stream| stream.iter()) {
            self.audit.say(self.now, || format!("log of the centre: {:?}", entry.body));
        }
        books.cases.iter().for_each(|case| self.audit.say(self.now, || format!("{case:?}")));
        Ok(())
    }

    /// Counts entries and the rare paths that only the books show.
    fn count(&mut self, books: &Books) -> Result<()> {
        self.outcome.entries = books.entries();
        for (coverage, count) in books.coverage(&self.ledger) {
            self.coverage[coverage as usize] += count;
        }
        if self.centre_tables()?.has_branches()? {
            self.reached(Coverage::QuarantineEntered);
        }
        Ok(())
    }

    /// What the run ends with, in a way that does not depend on how it came about: what taps were told, what accounts hold.
    fn ledger_digest(&self, books: &Books) -> String {
        let mut lines: Vec<String> = self
            .ledger
            .requests
            .iter()
            .map(|request| {
                let approved = request.approved().map_or("-".to_owned(), |fen| fen.get().to_string());
                format!("{} {} {approved}", request.number, request.is_reversal())
            })
            .collect();
        lines.sort();
        lines.extend(books.money().into_iter().map(|(account, fen)| format!("{account} {}", fen.get())));
        books::digest_lines(&lines)
    }
}
