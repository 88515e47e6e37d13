//! What a real centre and real nodes do, as processes of their own over HTTPS and QUIC on loopback.

mod documents;
mod downlink;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use axum::Router;
use axum::routing::post;
use feiqian_protocol::campus::Mode;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CardNumber, NodeName, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::{PaymentPin, PinGeneration};
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::driver::real_now;
use feiqian_reconcile::pin::HashedPin;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

pub(super) use self::documents::{EDITED_ONE_IN, OPERATORS};
use self::downlink::{CARDS_TO_CHANGE, Changes, DOWNLINK_SAMPLES, Link};
use super::Wanted;
use super::bare::{self, BareTaps};
use super::client::{Building, Till, approved};
use super::figures::{Beside, Figures, Open, Rate, TapOne, micros, percent, seconds};
use super::measure::{Scale, median, median_rate, percentile, rate};
use crate::campus::layout::Layout;
use crate::campus::process::{Process, RECONCILE, run_to_end};
use crate::campus::setup::{Campus, set_up};
use crate::campus::workload::{Account, Site, Workload};

/// Terminals that ask at the same time.
const TILLS: usize = 64;
/// Taps a second of the open loop.
const OPEN_PER_SECOND: u64 = 100;
/// Taps a second of a calm hour.
const CALM_PER_SECOND: u32 = 10;
/// Purchases a second with a PIN, by the holders of so many accounts, each with this one.
const PINS_PER_SECOND: u32 = 10;
const WITH_PIN: u64 = 20;
const BENCH_PIN: &str = "271829";
/// Balance of every account, in fen.
const OPENING_FEN: u64 = 1_000_000;
/// Longest wait for a state that must come.
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures what needs processes.
///
/// # Errors
/// Where a process does not do what it should.
pub async fn measure(scale: &Scale, wanted: &Wanted, figures: &mut Figures) -> Result<()> {
    let names = [
        "tap_one",
        "tap_open_100",
        "pin_10",
        "http_64",
        "downlink",
        "downlink_busy",
        "loss_busy",
        "cpu_10_taps_percent",
        "cpu_idle_percent",
        "node_rss_kb",
        "first_sync_s",
        "cold_start_ms",
    ];
    if names.iter().any(|name| wanted.has(name)) {
        measure_taps(scale, wanted, figures).await?;
    }
    if wanted.has("documents_50k") {
        // In a town of its own: the database has nothing else in it.
        let mut town = Town::new(scale).await?;
        figures.documents_50k = Some(town.documents(figures.edits_by_cores.unwrap_or_default()).await?);
        town.campus.stop().await?;
    }
    Ok(())
}

async fn measure_taps(scale: &Scale, wanted: &Wanted, figures: &mut Figures) -> Result<()> {
    let mut town = Town::new(scale).await?;
    if wanted.has("downlink") {
        let samples = if scale.entries < 100_000 { 20 } else { DOWNLINK_SAMPLES };
        figures.downlink = Some(town.downlink(samples, Changes::Both, Link::Idle).await?);
    }
    if wanted.has("cold_start_ms") || wanted.has("tap_one") {
        figures.cold_start_ms = Some(town.cold_start().await?);
    }
    if wanted.has("first_sync_s") {
        figures.first_sync_s = Some(seconds(town.first_sync().await?));
    }
    if wanted.has("cpu_idle_percent") {
        figures.cpu_idle_percent = Some(town.cpu_percent(0).await?);
    }
    if wanted.has("cpu_10_taps_percent") {
        figures.cpu_10_taps_percent = Some(town.cpu_percent(CALM_PER_SECOND).await?);
    }
    if wanted.has("pin_10") {
        town.set_pins().await?;
    }
    town.cut().await?;
    if wanted.has("tap_one") {
        let (one, empty) = town.tap_one().await?;
        (figures.tap_one, figures.tap_one_empty_p50_us) = (Some(one), Some(micros(empty)));
    }
    if wanted.has("tap_open_100") {
        let runs = town.scale.runs;
        let (mut p50, mut p99) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let (median, slowest) = town.tap_open().await?;
            p50.push(median);
            p99.push(slowest);
        }
        figures.tap_open_100 =
            Some(Open { p50_us: micros(median(&mut p50)), p99_us: micros(median(&mut p99)) });
    }
    if wanted.has("pin_10") {
        figures.pin_10 = Some(town.pin_10().await?);
    }
    if wanted.has("http_64") {
        figures.http_64 = Some(town.http_64().await?);
    }
    if wanted.has("node_rss_kb") || wanted.has("downlink_busy") || wanted.has("loss_busy") {
        town.fill().await?;
        figures.node_rss_kb = Some(town.peak_kb());
    }
    if wanted.has("downlink_busy") {
        figures.downlink_busy = Some(town.downlink_busy(Changes::Both).await?);
    }
    if wanted.has("loss_busy") {
        if wanted.has("downlink_busy") {
            town.cut().await?;
            town.fill().await?;
        }
        figures.loss_busy = Some(town.downlink_busy(Changes::Losses).await?);
    }
    town.campus.stop().await
}

/// A centre, a canteen with everybody's rights, and a shop that is new.
struct Town {
    scale: Scale,
    root: tempfile::TempDir,
    campus: Campus,
    canteen: Building,
    address: SocketAddr,
    tapped: u64,
    now: Timestamp,
}

fn card(number: u64) -> String {
    format!("c{number:05}")
}

/// The card of a tap: far from the one before. The last ones are kept for what is changed at the centre.
fn payer(tap: u64, accounts: u64) -> String {
    card(1 + tap * 7_919 % (accounts - CARDS_TO_CHANGE))
}

impl Town {
    async fn new(scale: &Scale) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("feiqian-bench-").tempdir()?;
        let layout = Layout::create(&root.path().join("run"), &["canteen", "shop"])?;
        let site = |name: &str| -> Result<Site> {
            let terminals = (0..=TILLS).map(|till| TerminalId::new(format!("{name}-{till}")));
            Ok(Site {
                name: NodeName::new(name)?,
                role: Role::Pos,
                terminals: terminals.collect::<Result<_, _>>()?,
            })
        };
        let workload = Workload {
            buildings: vec![site("canteen")?, site("shop")?],
            tariff: Default::default(),
            // Somebody without money, so that there is something to import while both nodes run.
            accounts: vec![Account {
                card: CardNumber::new("visitor")?,
                patron_class: "student".to_owned(),
                opening: Fen::ZERO,
                single_limit: None,
                daily_limit: None,
            }],
            topups: Vec::new(),
            taps: Vec::new(),
        };
        let now = real_now();
        let mut campus = set_up(&layout, &workload, Mode::Hybrid, now).await?;
        campus.nodes[1].process.stop().await?;
        let accounts = layout.file("people.csv");
        let mut table = String::from("card,patron_class,opening_fen,single_limit_fen,daily_limit_fen\n");
        for number in 1..=scale.accounts {
            table += &format!("{},student,{OPENING_FEN},500000,10000000\n", card(number));
        }
        std::fs::write(&accounts, table)?;
        let data = layout.centre();
        let import = ["import", "accounts", &accounts.to_string_lossy(), "--data", &data.to_string_lossy()];
        run_to_end(RECONCILE, &import).await?;
        let data = layout.node("canteen");
        let address = listen_address(&data)?;
        let canteen = Building::open(&data)?;
        let mut town = Self { scale: *scale, root, campus, canteen, address, tapped: 0, now };
        town.await_rights().await?;
        Ok(town)
    }

    fn node(&mut self) -> &mut Process {
        &mut self.campus.nodes[0].process
    }

    /// Until the canteen holds the right to everybody's money, and the centre has nothing more to say.
    async fn await_rights(&mut self) -> Result<()> {
        let expected = OPENING_FEN * self.scale.accounts;
        self.until("the rights of all accounts", move |node, centre| {
            let drained = centre["nodes"][0]["backlog"] == 0
                && centre["nodes"][0]["to_node"] == centre["nodes"][0]["to_node_acked"];
            node["unspent_fen"] == expected && drained
        })
        .await
    }

    async fn until(&mut self, what: &str, is_there: impl Fn(&Value, &Value) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            let status = json!({"command": "status"});
            let node: Value = self.node().control.call(&status).await?;
            let centre: Value = self.campus.centre.control.call(&status).await?;
            if is_there(&node, &centre) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("waited too long for {what}: {node} {centre}");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Cuts the canteen off, so that nothing but taps happens there.
    async fn cut(&mut self) -> Result<()> {
        self.campus.nodes[0].relay.set_cut(true);
        self.until("the end of the link", |node, _| node["link"] == "down").await
    }

    async fn till(&self, number: usize) -> Result<Till> {
        self.canteen.till(&format!("canteen-{number}"), self.address).await
    }

    /// The next tap of somebody: card and sequence.
    fn next_tap(&mut self) -> (u64, String) {
        self.tapped += 1;
        (self.tapped, payer(self.tapped, self.scale.accounts))
    }

    async fn tap(&mut self, till: &mut Till) -> Result<Duration> {
        let (sequence, card) = self.next_tap();
        let request = till.tap(sequence, &card)?;
        let (took, answer) = till.send(request).await?;
        ensure!(approved(&answer), "declined: {}", String::from_utf8_lossy(&answer));
        Ok(took)
    }

    /// A node that was killed, until it answers its first tap. Leaves a copy of its database for the baseline.
    async fn cold_start(&mut self) -> Result<u64> {
        let mut took = Vec::new();
        for _ in 0..self.scale.runs {
            let mut till = self.till(0).await?;
            self.tap(&mut till).await?;
            self.node().kill().await?;
            self.copy_database()?;
            let begun = Instant::now();
            let now = self.now;
            self.node().start(now).await?;
            let mut till = self.till(0).await?;
            self.tap(&mut till).await?;
            took.push(begun.elapsed());
        }
        Ok(u64::try_from(median(&mut took).as_millis())?)
    }

    fn copy(&self) -> PathBuf {
        self.root.path().join("bare.db")
    }

    fn copy_database(&self) -> Result<()> {
        let data = self.root.path().join("run/nodes/canteen");
        bare::copy(&data.join("node.db"), &self.copy())
    }

    /// A node that has never seen an account, from its start until it holds all of them.
    async fn first_sync(&mut self) -> Result<Duration> {
        let (accounts, now) = (self.scale.accounts, self.now);
        let begun = Instant::now();
        let shop = &mut self.campus.nodes[1].process;
        shop.start(now).await?;
        loop {
            let status: Value = shop.control.call(&json!({"command": "status"})).await?;
            if status["accounts"] == accounts + 1 {
                break;
            }
            ensure!(begun.elapsed() < PATIENCE, "the first sync does not end: {status}");
            sleep(Duration::from_millis(20)).await;
        }
        let took = begun.elapsed();
        shop.stop().await?;
        Ok(took)
    }

    /// What the canteen takes of one core while it is in session and so many taps come a second. Its clock is moved as time
    /// passes, so that it does all that it does by the clock.
    async fn cpu_percent(&mut self, taps: u32) -> Result<f64> {
        let mut till = self.till(0).await?;
        self.until("a session", |node, _| node["link"] == "up").await?;
        let (begun, before) = (tokio::time::Instant::now(), self.node().cpu());
        for second in 0..self.scale.cpu_seconds {
            let start = begun + Duration::from_secs(second);
            for tap in 0..taps {
                sleep_until(start + Duration::from_secs(1) / taps * tap).await;
                self.tap(&mut till).await?;
            }
            sleep_until(start + Duration::from_secs(1)).await;
            self.now = self.now.plus_ms(1_000);
            let clock = json!({"command": "clock", "now_ms": self.now.0});
            self.node().control.call::<Value>(&clock).await?;
        }
        let (used, took) = (self.node().cpu() - before, begun.elapsed());
        Ok(percent(used, took))
    }

    async fn tap_one(&mut self) -> Result<(TapOne, Duration)> {
        let connection = bare::open(&self.copy())?;
        let mut bare = BareTaps::new(&connection, self.scale.accounts, 1)?;
        let mut till = self.till(0).await?;
        let handler = Empty::start(&self.canteen).await?;
        let mut idle = self.canteen.till("canteen-0", handler.address).await?;
        let (mut measured, mut empty, mut baseline) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.scale.runs {
            let mut taps = Vec::new();
            for _ in 0..self.scale.taps {
                taps.push(self.tap(&mut till).await?);
            }
            measured.push(median(&mut taps));
            let mut requests = Vec::new();
            for _ in 0..self.scale.taps {
                requests.push(idle.send(idle.tap(1, "c00001")?).await?.0);
            }
            empty.push(median(&mut requests));
            let mut commits = Vec::new();
            for _ in 0..self.scale.taps {
                let begun = Instant::now();
                bare.commit(1)?;
                commits.push(begun.elapsed());
            }
            baseline.push(median(&mut commits));
        }
        handler.stop();
        Ok((TapOne::new(median(&mut measured), median(&mut baseline)), median(&mut empty)))
    }

    /// Taps at fixed moments, each timed from the moment when it was due: median and 99th percentile.
    async fn tap_open(&mut self) -> Result<(Duration, Duration)> {
        let each = Duration::from_secs(1) / u32::try_from(OPEN_PER_SECOND)?;
        let count = self.scale.load.as_millis() as u64 * OPEN_PER_SECOND / 1_000;
        let mut free = Vec::new();
        for number in 0..TILLS {
            free.push(self.till(number).await?);
        }
        let begun = tokio::time::Instant::now() + each;
        let mut running = JoinSet::new();
        let mut took = Vec::new();
        for index in 0..count {
            while let Some(done) = running.try_join_next() {
                let (till, elapsed) = done??;
                free.push(till);
                took.push(elapsed);
            }
            let (sequence, card) = self.next_tap();
            let mut till = free.pop().context("all terminals wait for answers")?;
            let request = till.tap(sequence, &card)?;
            let due = begun + each * u32::try_from(index)?;
            sleep_until(due).await;
            running.spawn(async move {
                till.send(request).await?;
                anyhow::Ok((till, due.elapsed()))
            });
        }
        while let Some(done) = running.join_next().await {
            took.push(done??.1);
        }
        Ok((median(&mut took), percentile(&mut took, 99)))
    }

    /// Some holders choose their PINs, and the canteen hears of it.
    async fn set_pins(&mut self) -> Result<()> {
        let pin: PaymentPin = BENCH_PIN.parse()?;
        for number in 1..=WITH_PIN {
            let generation = PinGeneration(u128::from(number).to_be_bytes());
            let hashed = HashedPin { generation, hash: pin.hash(generation) };
            let command =
                json!({"command": "set_pin", "card": card(number), "pin": hashed, "operator": "bench"});
            let _: Value = self.campus.centre.control.call(&command).await?;
        }
        self.until("the PINs", |_, centre| {
            centre["nodes"][0]["backlog"] == 0
                && centre["nodes"][0]["to_node"] == centre["nodes"][0]["to_node_acked"]
        })
        .await
    }

    /// The same taps by turns while nothing else comes, and while others come with a PIN.
    async fn pin_10(&mut self) -> Result<Beside> {
        let (mut beside, mut alone) = (Vec::new(), Vec::new());
        for run in 0..self.scale.runs {
            let mut till = self.till(TILLS).await?;
            let purchases = tokio::spawn(async move {
                let begun = tokio::time::Instant::now();
                for number in 0.. {
                    sleep_until(begun + Duration::from_secs(1) / PINS_PER_SECOND * number).await;
                    let sequence = format!("pin-{run}-{number}");
                    let card = card(1 + u64::from(number) % WITH_PIN);
                    let request = till.tap_with_pin(&sequence, &card, BENCH_PIN)?;
                    let (_, answer) = till.send(request).await?;
                    ensure!(approved(&answer), "declined: {}", String::from_utf8_lossy(&answer));
                }
                anyhow::Ok(())
            });
            let (_, slowest) = self.tap_open().await?;
            beside.push(slowest);
            ensure!(!purchases.is_finished(), "the purchases with a PIN have ended: {:?}", purchases.await);
            purchases.abort();
            alone.push(self.tap_open().await?.1);
        }
        let (p99_us, baseline_p99_us) = (micros(median(&mut beside)), micros(median(&mut alone)));
        Ok(Beside { p99_us, baseline_p99_us, ratio: p99_us as f64 / baseline_p99_us as f64 })
    }

    /// So many terminals, each with one tap at a time, for a while (or until there were so many taps).
    async fn load(&mut self, address: SocketAddr, time: Duration, taps_max: u64) -> Result<u64> {
        let mut tills = Vec::new();
        for number in 0..TILLS {
            tills.push(self.canteen.till(&format!("canteen-{number}"), address).await?);
        }
        let begun = Instant::now();
        let mut running = JoinSet::new();
        let (first, accounts) = (self.tapped, self.scale.accounts);
        for (number, mut till) in (1..).zip(tills) {
            running.spawn(async move {
                let mut done = 0;
                while begun.elapsed() < time && done * (TILLS as u64) < taps_max {
                    let sequence = first + done * TILLS as u64 + number;
                    let request = till.tap(sequence, &payer(sequence, accounts))?;
                    let (_, answer) = till.send(request).await?;
                    ensure!(approved(&answer) || answer.len() < 3, "{}", String::from_utf8_lossy(&answer));
                    done += 1;
                }
                anyhow::Ok(done)
            });
        }
        let (mut sum, mut most) = (0, 0);
        while let Some(done) = running.join_next().await {
            let done = done??;
            sum += done;
            most = most.max(done);
        }
        let took = begun.elapsed();
        self.tapped += (most + 1) * TILLS as u64;
        Ok(rate(sum, took))
    }

    async fn http_64(&mut self) -> Result<Rate> {
        let empty = Empty::start(&self.canteen).await?;
        let (mut measured, mut baseline) = (Vec::new(), Vec::new());
        for _ in 0..self.scale.runs {
            measured.push(self.load(self.address, self.scale.load, u64::MAX / 128).await?);
            baseline.push(self.load(empty.address, self.scale.load, u64::MAX / 128).await?);
        }
        empty.stop();
        Ok(Rate::new(median_rate(&mut measured), median_rate(&mut baseline)))
    }

    /// The largest resident size of the canteen since it was started last.
    fn peak_kb(&mut self) -> u64 {
        let node = self.node();
        node.rss_kb_max = 0;
        node.sample();
        node.rss_kb_max
    }

    /// A backlog of taps that the centre does not have.
    async fn fill(&mut self) -> Result<()> {
        self.load(self.address, PATIENCE, self.scale.entries).await?;
        Ok(())
    }
}

/// Where a node of a run listens for terminals.
fn listen_address(data: &Path) -> Result<SocketAddr> {
    #[derive(serde::Deserialize)]
    struct Listen {
        terminal_listen: SocketAddr,
    }
    let text = std::fs::read_to_string(data.join("run.toml"))?;
    Ok(toml::from_str::<Listen>(&text)?.terminal_listen)
}

/// The baseline of a terminal's request: a handler that does nothing, behind the same TLS and the same server, on a thread
/// of its own as a node's is.
struct Empty {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
}

impl Empty {
    async fn start(building: &Building) -> Result<Self> {
        let certificate = feiqian_node::tls::NodeCertificate::new(&building.files)?;
        let tls = feiqian_node::tls::terminal_config(&certificate, &Default::default())?;
        let (stop, stopping) = watch::channel(false);
        let (ready, is_ready) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("empty".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let Ok(listener) = feiqian_node::http::server::bind(local).await else { return };
                let Ok(address) = listener.local_addr() else { return };
                // Whoever started it waits for it.
                let _ = ready.send(address);
                let router = Router::new().route("/v1/taps", post(|| async { "{}" }));
                feiqian_node::http::server::run(listener, tls, router, Duration::ZERO, stopping).await;
            });
        })?;
        Ok(Self { address: is_ready.await.context("the empty handler does not start")?, stop, thread })
    }

    fn stop(self) {
        self.stop.send_replace(true);
        // It has nothing to say at its end.
        let _ = self.thread.join();
    }
}
