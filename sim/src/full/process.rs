//! Processes: the tasks of a node or of the centre, started as the binaries start them, stopped in order, or gone from one
//! moment to the next.

use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use feiqian_node::drive::{CoreLoop, CoreQueue, Options, WallClock};
use feiqian_node::identity::NodeFiles;
use feiqian_node::io::Settings;
use feiqian_node::link::{self, Dialer, LinkSettings};
use feiqian_node::tls::{self, CertificateTime, NodeCertificate};
use feiqian_protocol::frame::ALPN_REPLICATION;
use feiqian_reconcile::authority::Authority;
use feiqian_reconcile::core::ReconcileCore;
use feiqian_reconcile::driver::{self, CoreHandle};
use feiqian_reconcile::enrol::Desk;
use feiqian_reconcile::io as centre_io;
use feiqian_reconcile::listener;
use feiqian_reconcile::store::StoreError;
use quinn::{AsyncTimer, AsyncUdpSocket, EndpointConfig, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::clock::HostClock;
use super::network::{CENTRE, Network};
use crate::seed::Seed;
use crate::vfs::Disk;

/// How long a stopping centre waits for the nodes to hear of it, as its binary does.
const STOP_TIME: Duration = Duration::from_secs(1);

/// What is said of a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum News {
    /// Its disk ended, and it with it: a planned kill or power cut struck.
    DiskEnded,
    /// It ended by itself: because it was told to, or because its database cannot be opened.
    Ended,
    /// A step failed; it opens its core again.
    StepFailed,
}

/// Where news go: of which process (a number of the caller's), and what.
pub type NewsDesk = mpsc::UnboundedSender<(u64, News)>;

/// The tasks of one process, quinn's among them.
#[derive(Clone, Debug, Default)]
struct Tasks(Arc<Mutex<Vec<AbortHandle>>>);

impl Tasks {
    /// Runs something until it ends or the process does.
    fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.keep(tokio::spawn(future).abort_handle());
    }

    /// Likewise something that stays on this thread: a core.
    fn spawn_local(&self, future: impl Future<Output = ()> + 'static) {
        self.keep(tokio::task::spawn_local(future).abort_handle());
    }

    fn keep(&self, task: AbortHandle) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Connections come and go.
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task);
    }

    fn abort(&self) {
        for task in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

/// quinn's runtime of one process.
#[derive(Debug)]
struct HostRuntime(Tasks);

impl Runtime for HostRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        quinn::TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(future);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "there is no real network here"))
    }

    fn now(&self) -> Instant {
        quinn::TokioRuntime.now()
    }
}

/// What ends a process from outside.
#[derive(Clone, Debug)]
struct Life {
    tasks: Tasks,
    network: Network,
    machine: Option<IpAddr>,
    alive: watch::Sender<bool>,
}

impl Life {
    fn new(network: &Network, machine: Option<IpAddr>) -> Self {
        let alive = watch::Sender::new(true);
        Self { tasks: Tasks::default(), network: network.clone(), machine, alive }
    }

    fn is_alive(&self) -> bool {
        *self.alive.borrow()
    }

    /// Waits until it is no more.
    async fn ended(&self) {
        // The sender is ours, so this does not fail.
        let _ = self.alive.subscribe().wait_for(|alive| !alive).await;
    }

    /// Not a packet leaves it any more, not a line of it runs. True where it lived.
    fn end(&self) -> bool {
        let lived = self.alive.send_replace(false);
        if lived {
            self.network.unbind(self.machine);
            self.tasks.abort();
        }
        lived
    }

    /// Runs a core, and ends the process where the disk under it does, or the core. `open` is true while the core is.
    fn run_core(
        &self,
        core: impl Future<Output = ()> + 'static,
        open: Arc<AtomicBool>,
        disk: &Disk,
        tell: (u64, NewsDesk),
    ) {
        let (life, disk) = (self.clone(), disk.clone());
        let endings = disk.counters().endings;
        self.tasks.spawn_local(async move {
            let mut core = pin!(core);
            let ended = poll_fn(|context| {
                let was_open = open.load(Ordering::Relaxed);
                let polled = core.as_mut().poll(context);
                if disk.counters().endings != endings {
                    return Poll::Ready(News::DiskEnded);
                }
                if was_open && polled.is_pending() && !open.load(Ordering::Relaxed) {
                    let _ = tell.1.send((tell.0, News::StepFailed));
                }
                polled.map(|()| News::Ended)
            })
            .await;
            if life.end() {
                // Nobody listens where the run is over.
                let _ = tell.1.send((tell.0, ended));
            }
        });
    }
}

/// The centre's core, which says when a step fails.
struct Watched {
    core: ReconcileCore,
    disk: Disk,
    tell: (u64, NewsDesk),
}

impl driver::Core for Watched {
    type Error = StoreError;

    fn step(
        &mut self,
        now: centre_io::Now,
        inputs: Vec<centre_io::Input>,
        outputs: &mut Vec<centre_io::Output>,
    ) -> Result<(), StoreError> {
        let endings = self.disk.counters().endings;
        let stepped = self.core.step(now, inputs, outputs);
        // Where the disk ended, the process does.
        if stepped.is_err() && self.disk.counters().endings == endings {
            // Nobody listens where the run is over.
            let _ = self.tell.1.send((self.tell.0, News::StepFailed));
        }
        stepped
    }

    fn next_timer(&self) -> Option<u64> {
        self.core.next_timer()
    }
}

fn endpoint_config(seed: &mut Seed) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.rng_seed(Some(seed_bytes(seed)));
    config
}

/// 32 bytes of a seed.
pub fn seed_bytes(seed: &mut Seed) -> [u8; 32] {
    let words = [seed.draw(), seed.draw(), seed.draw(), seed.draw()];
    std::array::from_fn(|index| words[index / 8].to_be_bytes()[index % 8])
}

/// What a node's process is started with.
pub struct NodeStart<'a> {
    /// How news name it.
    pub number: u64,
    /// Its machine.
    pub machine: IpAddr,
    /// Its disk.
    pub disk: &'a Disk,
    /// Its data directory.
    pub files: &'a NodeFiles,
    /// Its wall clock.
    pub clock: &'a HostClock,
    /// As in its configuration.
    pub ask_deadline_ms: u64,
    /// As in its configuration.
    pub idle_timeout: Duration,
}

/// The running process of a node.
pub struct NodeProcess {
    life: Life,
    queue: CoreQueue,
    open: Arc<AtomicBool>,
    in_session: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    stopped: oneshot::Receiver<()>,
}

impl NodeProcess {
    /// Starts it.
    ///
    /// # Errors
    /// Where its keys do not make TLS.
    pub fn start(start: NodeStart<'_>, network: &Network, seed: &mut Seed, news: &NewsDesk) -> Result<Self> {
        let life = Life::new(network, Some(start.machine));
        let certificates = CertificateTime::of_host(start.clock.reader(), start.clock.built());
        let certificate = NodeCertificate::new(start.files)?;
        let tls = tls::link_config(&certificate, &certificates, ALPN_REPLICATION)?;
        let settings = LinkSettings {
            centre: CENTRE.to_string().parse().map_err(|error: String| anyhow!(error))?,
            idle_timeout: start.idle_timeout,
            tls,
            jitter_seed: seed.draw(),
            renewed: Arc::default(),
        };
        let disk = start.disk.clone();
        let mut core = CoreLoop::new(Options {
            database: Box::new(move || disk.open("node.db")),
            identity: start.files.identity.clone(),
            settings: Settings { ask_deadline_ms: start.ask_deadline_ms },
            clock: WallClock::Hosted(start.clock.reader()),
            certificates,
        });
        let (queue, open, in_session) = (core.queue(), core.open_flag(), core.session_flag());
        let (stop, stopping) = watch::channel(false);
        let (report_stopped, stopped) = oneshot::channel();
        let opened = core.opened();
        let config = endpoint_config(seed);
        let (network, machine) = (network.clone(), start.machine);
        let runtime = Arc::new(HostRuntime(life.tasks.clone()));
        let link_queue = queue.clone();
        life.tasks.spawn(async move {
            // Where the core does not open, the process ends by that.
            let Some(opened) = opened else { return };
            if !matches!(opened.await, Ok(Ok(()))) {
                return;
            }
            let dialer = Dialer::new(runtime, network.bind(Some(machine)), config);
            let dialer = dialer.expect("a simulated socket has an address");
            // It ends when told to; the settings were good when the process was started.
            let _ = link::run(dialer, settings, link_queue, stopping).await;
            let _ = report_stopped.send(());
        });
        life.run_core(core.run(), open.clone(), start.disk, (start.number, news.clone()));
        Ok(Self { life, queue, open, in_session, stop, stopped })
    }

    /// The way to its core, as its HTTP handlers have it; `None` where the process is gone.
    pub fn queue(&self) -> Option<CoreQueue> {
        self.life.is_alive().then(|| self.queue.clone())
    }

    /// True while its core is open.
    pub fn is_open(&self) -> bool {
        self.life.is_alive() && self.open.load(Ordering::Relaxed)
    }

    /// True while it is in session with the centre.
    pub fn is_in_session(&self) -> bool {
        self.life.is_alive() && self.in_session.load(Ordering::Relaxed)
    }

    /// True while it runs.
    pub fn is_alive(&self) -> bool {
        self.life.is_alive()
    }

    /// Ends it at once. What becomes of its disk is for the caller to say, before.
    pub fn end(&self) -> bool {
        self.life.end()
    }

    /// Stops it in the order in which its binary does: the link first, then the core.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        // A link that never began does not say that it ended.
        let _ = self.stopped.await;
        self.queue.stop().await;
        self.life.ended().await;
    }
}

/// What the centre's process is started with.
pub struct CentreStart<'a> {
    /// How news name it.
    pub number: u64,
    /// Its disk.
    pub disk: &'a Disk,
    /// True where that was put back from a copy, which its binary sees by the file.
    pub restored: bool,
    /// Who it is.
    pub identity: &'a centre_io::Identity,
    /// Its keys on the network.
    pub authority: &'a Arc<Authority>,
    /// Its wall clock.
    pub clock: &'a HostClock,
    /// As in its configuration.
    pub idle_timeout: Duration,
    /// Changes in an account's document before it is begun anew.
    pub document_changes_max: u64,
}

/// The running process of the centre.
pub struct CentreProcess {
    life: Life,
    core: CoreHandle,
    desk: Arc<Desk>,
    endpoint: Arc<Mutex<Option<quinn::Endpoint>>>,
}

impl CentreProcess {
    /// Starts it.
    ///
    /// # Errors
    /// Where its keys do not make TLS.
    pub fn start(
        start: CentreStart<'_>,
        network: &Network,
        seed: &mut Seed,
        news: &NewsDesk,
    ) -> Result<Self> {
        let life = Life::new(network, None);
        let mut tls = start.authority.server_tls()?;
        tls.time_provider = start.clock.certificate_time();
        let (core, events) = driver::queue();
        let desk =
            Arc::new(Desk::new(start.authority.clone(), core.clone(), true).by_clock(start.clock.reader()));
        let (report_ready, ready) = oneshot::channel();
        // Bound before anybody is answered, as in its binary.
        let (socket, config) = (network.bind(None), endpoint_config(seed));
        let runtime = Arc::new(HostRuntime(life.tasks.clone()));
        let endpoint = Arc::new(Mutex::new(None));
        let (serving, served_core, served_desk) = (endpoint.clone(), core.clone(), desk.clone());
        let idle_timeout = start.idle_timeout;
        life.tasks.spawn(async move {
            if ready.await.is_err() {
                return;
            }
            let endpoint = listener::endpoint(runtime, socket, config, tls, idle_timeout)
                .expect("a simulated socket has an address, and the TLS of the authority is fit for QUIC");
            *serving.lock().unwrap_or_else(PoisonError::into_inner) = Some(endpoint.clone());
            listener::serve(endpoint, served_core, served_desk).await;
        });
        let (disk, identity) = (start.disk.clone(), start.identity.clone());
        let tell = (start.number, news.clone());
        let (mut restored, document_changes_max) = (start.restored, start.document_changes_max);
        let open = move || {
            let mut core = ReconcileCore::open(disk.open("centre.db")?, identity.clone())?;
            core.renew_documents_after(document_changes_max);
            if std::mem::take(&mut restored) {
                core.restored()?;
            }
            Ok::<_, StoreError>(Watched { core, disk: disk.clone(), tell: tell.clone() })
        };
        let clock = start.clock.clone();
        let cores = async move {
            // What it fails for stands in its log; here, that it ended says enough.
            let _ =
                driver::run_cores(events, driver::WallClock::Real, move || clock.read(), open, report_ready)
                    .await;
        };
        life.run_core(cores, Arc::default(), start.disk, (start.number, news.clone()));
        Ok(Self { life, core, desk, endpoint })
    }

    /// Asks the core something, as the local socket does.
    ///
    /// # Errors
    /// What the core says.
    pub async fn command(&self, command: centre_io::Command) -> centre_io::Reply {
        self.core.command(command).await
    }

    /// The way to its core; `None` where the process is gone.
    pub fn core(&self) -> Option<CoreHandle> {
        self.life.is_alive().then(|| self.core.clone())
    }

    /// Its enrolment desk.
    pub fn desk(&self) -> Arc<Desk> {
        self.desk.clone()
    }

    /// True while it runs.
    pub fn is_alive(&self) -> bool {
        self.life.is_alive()
    }

    /// Ends it at once. What becomes of its disk is for the caller to say, before.
    pub fn end(&self) -> bool {
        self.life.end()
    }

    /// Stops it in the order in which its binary does: the network first, then the core.
    pub async fn stop(self) {
        let endpoint = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(endpoint) = endpoint {
            endpoint.close(listener::code::STOPPING, b"the centre is stopping");
            let _ = tokio::time::timeout(STOP_TIME, endpoint.wait_idle()).await;
        }
        self.core.stop().await;
        self.life.ended().await;
    }
}
