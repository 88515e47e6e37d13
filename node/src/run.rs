//! The running node: local socket, core, link to the centre and terminals, from start to stop.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use feiqian_protocol::frame::ALPN_REPLICATION;
use quinn::EndpointConfig;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::control::{self, Control};
use crate::drive::{CoreThread, Options, WallClock};
use crate::http::{self, Terminals, server};
use crate::identity::{DataDir, DataDirError, NodeFiles};
use crate::io::Settings;
use crate::link::{self, Dialer, LinkError, LinkSettings};
use crate::pin::hashing::PinHashing;
use crate::renew::Renewal;
use crate::store::StoreError;
use crate::tls::{self, CertificateTime, NodeCertificate, TlsError};

/// How much longer than their answers may take terminals are waited for at the end.
const FINISH_GRACE: Duration = Duration::from_millis(500);

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Keys and certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The link cannot be set up.
    #[error("the link to the centre cannot be set up")]
    Link(#[from] LinkError),
    /// The database cannot be used.
    #[error("the database cannot be opened")]
    Store(#[source] StoreError),
    /// Terminals cannot be served there.
    #[error("terminals cannot be served at {0}")]
    Terminals(SocketAddr, #[source] io::Error),
    /// The local socket cannot be made.
    #[error("the local socket {} cannot be opened", .0.display())]
    Control(PathBuf, #[source] io::Error),
    /// The system refuses something else.
    #[error("the system refuses")]
    System(#[from] io::Error),
    /// The core ended by itself: a bug, which its log line tells of.
    #[error("the core ended")]
    Core,
}

/// Runs a node until SIGINT or SIGTERM.
///
/// # Errors
/// [`RunError`] says why it cannot run.
pub fn run(config: &Config) -> Result<(), RunError> {
    let dir = DataDir::new(&config.data_dir);
    let files = dir.load()?;
    let _lock = dir.lock()?;
    // One thread for everything that waits: the work is the core's, on its own thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_until_stopped(config, &dir, files))
}

async fn run_until_stopped(config: &Config, dir: &DataDir, files: NodeFiles) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let identity = &files.identity;
    tracing::info!(node = %identity.name, number = %identity.node, role = identity.role.name(), "starting");
    let database = dir.database();
    let options = Options {
        database: Box::new(move || rusqlite::Connection::open(&database)),
        identity: identity.clone(),
        settings: Settings { ask_deadline_ms: config.ask_deadline_ms },
        clock: if config.driven_clock { WallClock::Driven } else { WallClock::System },
        certificates: CertificateTime::default(),
    };
    let certificates = options.certificates.clone();
    let mut core = CoreThread::start(options)?;
    let result = serve(config, dir, &files, certificates, &mut core, &mut signals).await;
    tracing::info!("stopping");
    if !core.stop().await {
        return Err(RunError::Core);
    }
    result
}

async fn serve(
    config: &Config,
    dir: &DataDir,
    files: &NodeFiles,
    time: CertificateTime,
    core: &mut CoreThread,
    signals: &mut Signals,
) -> Result<(), RunError> {
    let (stop, stopping) = watch::channel(false);
    let socket = dir.control_socket();
    let socket = control::bind(&socket).map_err(|error| RunError::Control(socket, error))?;
    let (serving, terminals) = watch::channel(None);
    let control = Control { queue: core.queue(), driven_clock: config.driven_clock, terminals };
    let control_task = tokio::spawn(control::run(socket, Arc::new(control), stopping.clone()));

    // With a driven clock this waits for the first time.
    tokio::select! {
        opened = core.opened() => opened.map_err(|error| error.map_or(RunError::Core, RunError::Store))?,
        () = signals.recv() => return Ok(()),
    }

    let listen = config.terminal_listen;
    let listener = server::bind(listen).await.map_err(|error| RunError::Terminals(listen, error))?;
    let address = listener.local_addr()?;
    let certificate = NodeCertificate::new(files)?;
    let terminal_tls = tls::terminal_config(&certificate, &time)?;
    let runtime: Arc<dyn quinn::Runtime> = Arc::new(quinn::TokioRuntime);
    let dialer = Dialer::new(runtime.clone(), link::bind(&*runtime)?, EndpointConfig::default())?;
    let renewed = Arc::new(Notify::new());
    let settings = LinkSettings {
        centre: config.centre.clone(),
        idle_timeout: Duration::from_millis(config.idle_timeout_ms),
        tls: tls::link_config(&certificate, &time, ALPN_REPLICATION)?,
        // Without a draw every building has the same pauses, which costs a little at the centre and nothing else.
        jitter_seed: getrandom::u64().unwrap_or(0),
        renewed: renewed.clone(),
    };
    let renewal = Renewal {
        dir: dir.clone(),
        node: files.identity.node,
        centre: config.centre.clone(),
        dialer: dialer.clone(),
        certificate,
        time,
        renewed,
    };
    let renewal_task = tokio::spawn(renewal.run());
    let terminals = Arc::new(Terminals {
        queue: core.queue(),
        secret: files.terminal_secret.clone(),
        institution: files.identity.institution,
        voucher_keys: core.voucher_keys(),
        pins: PinHashing::new(files.pin_key)?,
        ask_deadline: Duration::from_millis(config.ask_deadline_ms),
        open: core.open_flag(),
        in_session: core.session_flag(),
    });
    let finish = terminals.answer_wait() + FINISH_GRACE;
    let router = http::router(terminals);
    // The link outlives the terminals, so that waiting taps are still decided with the centre's help.
    let (stop_link, link_stopping) = watch::channel(false);
    let mut link_task = tokio::spawn(link::run(dialer, settings, core.queue(), link_stopping));
    let server_task = tokio::spawn(server::run(listener, terminal_tls, router, finish, stopping));
    serving.send_replace(Some(address));
    tracing::info!(%address, centre = %config.centre, "serving terminals");

    let result = tokio::select! {
        () = signals.recv() => Ok(()),
        () = core.ended() => Err(RunError::Core),
        ended = &mut link_task => match ended {
            Ok(Err(error)) => Err(error.into()),
            _ => Err(RunError::Core),
        },
    };
    renewal_task.abort();
    // Tasks that have ended already, or panicked, are not in the way of the others.
    let _ = stop.send(true);
    let _ = server_task.await;
    let _ = stop_link.send(true);
    if !link_task.is_finished() {
        let _ = link_task.await;
    }
    let _ = control_task.await;
    result
}

/// Waits until the flag is set, or whoever would set it is gone.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The borrow that this returns must not live across an await.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
