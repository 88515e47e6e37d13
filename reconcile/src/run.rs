//! The running centre: opens everything in order, and ends it in order.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use feiqian_protocol::campus::CampusConfig;
use quinn::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::authority::{self, Authority};
use crate::checkpoint::Checkpointer;
use crate::config::{Config, read_campus};
use crate::control::Control;
use crate::core::ReconcileCore;
use crate::driver::{self, Core, CoreHandle, WallClock, drive, real_now};
use crate::enrol::Desk;
use crate::io::{Command, Identity, Input, Now, Output, Status};
use crate::listener;
use crate::purse::Purses;
use crate::store::StoreError;

/// The database in the data directory.
pub const DATABASE: &str = "centre.db";

/// The campus file in the data directory, as `init` got it.
pub const CAMPUS: &str = "campus.toml";

/// Held while a process works in the data directory.
const LOCK: &str = "lock";

/// How long the end of the process waits for the nodes to hear of it.
const STOP_TIME: Duration = Duration::from_secs(1);

impl Core for ReconcileCore {
    type Error = StoreError;

    fn step(&mut self, now: Now, inputs: Vec<Input>, outputs: &mut Vec<Output>) -> Result<(), StoreError> {
        Self::step(self, now, inputs, outputs)
    }

    fn next_timer(&self) -> Option<u64> {
        Self::next_timer(self)
    }
}

/// Runs the centre until it is told to stop (SIGINT or SIGTERM).
///
/// # Errors
/// What keeps it from serving; the message is for the operator.
pub fn run(config: &Config, origin: Origin) -> anyhow::Result<()> {
    let dir = &config.data_dir;
    let _lock = lock(dir)?;
    let authority = Arc::new(Authority::open(dir, real_now())?);
    let (campus, _) = read_campus(&dir.join(CAMPUS))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the tokio runtime")?;
    runtime.block_on(serve(config, origin, authority, &campus))
}

/// What the operator says of the data directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Nothing: a database that is another file than the one the centre last ran on counts as restored.
    Unsaid,
    /// It was moved here whole, after the centre had stopped, and has run nowhere since.
    Moved,
    /// It was restored from a backup.
    Restored,
}

impl Origin {
    /// Begins to take back what a restored copy lacks, where it is one, and notes which file the database is.
    fn settle(self, core: &mut ReconcileCore, database: &Path) -> Result<(), StoreError> {
        let home = home(database)?;
        let known = core.home()?;
        let is_copy = known.is_some_and(|known| known != home);
        if self == Self::Restored || (is_copy && self == Self::Unsaid) {
            tracing::warn!(
                "this is a restored copy of the centre: before anything is granted, it takes back what the buildings hold; \
                 see feiqian-reconcile status"
            );
            core.restored()?;
        }
        core.set_home(&home)
    }
}

/// Tells a file from a copy of it: the file system's number and, where there is one, the time when it was made.
fn home(database: &Path) -> Result<String, StoreError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(database)?;
    let made = metadata.created().ok().and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(format!("{}:{}", metadata.ino(), made.map_or(0, |made| made.as_nanos())))
}

/// The identity of a data directory that `init` made. Changes nothing in it.
///
/// # Errors
/// It is none, or its keys are not readable.
pub fn identity(dir: &Path) -> anyhow::Result<Identity> {
    must_be_initialised(dir)?;
    let (campus, _) = read_campus(&dir.join(CAMPUS))?;
    Ok(Identity { institution: campus.institution, log_key: authority::log_key(dir)? })
}

/// Takes the data directory for this process.
fn lock(dir: &Path) -> anyhow::Result<File> {
    must_be_initialised(dir)?;
    let file = File::options().create(true).append(true).mode(0o600).open(dir.join(LOCK));
    let file = file.with_context(|| format!("{} cannot be written", dir.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("another feiqian-reconcile runs on {}", dir.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{} cannot be locked", dir.display()))
        }
    }
}

fn must_be_initialised(dir: &Path) -> anyhow::Result<()> {
    if !dir.join(CAMPUS).is_file() {
        bail!(
            "{} is not initialised; make it with: feiqian-reconcile init --data {0} --campus FILE.toml",
            dir.display()
        );
    }
    Ok(())
}

async fn serve(
    config: &Config,
    origin: Origin,
    authority: Arc<Authority>,
    campus: &CampusConfig,
) -> anyhow::Result<()> {
    let dir = &config.data_dir;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let signalled = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    tokio::pin!(signalled);

    // Bound before anybody is answered, so that whoever has had an answer can connect: it waits here until it is served.
    let socket = listener::bind(config.listen)
        .with_context(|| format!("UDP {} (listen) cannot be opened", config.listen))?;
    let clock = if config.driven_clock { WallClock::Driven } else { WallClock::Real };
    let (core, events) = driver::queue();
    let control = Control::bind(dir).with_context(|| {
        format!("the local socket {} cannot be opened", dir.join("control.sock").display())
    })?;
    let (serving, is_serving) = watch::channel(false);
    let control = tokio::spawn(control.serve(core.clone(), clock, is_serving));

    let identity = Identity { institution: campus.institution, log_key: authority.log_key().clone() };
    let purses = config.purses.as_ref().map(Purses::open).transpose()?.map(Arc::new);
    let database = dir.join(DATABASE);
    let mut origin = Some(origin);
    let checkpointer = Checkpointer::start(database.clone())?;
    let open = move || {
        let connection = rusqlite::Connection::open(&database)?;
        let mut core = ReconcileCore::open(connection, identity.clone())?;
        if let Some(purses) = &purses {
            core.serve_purses(purses.clone());
        }
        if let Some(origin) = origin.take() {
            origin.settle(&mut core, &database)?;
        }
        Ok(core)
    };
    let (ready_sender, mut ready) = oneshot::channel();
    let (end_sender, mut ended) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let thread = std::thread::Builder::new().name("core".to_owned()).spawn(move || {
        let end = drive(&runtime, events, clock, open, ready_sender);
        // Where nobody listens, the process is ending.
        let _ = end_sender.send(end);
    })?;

    let served = tokio::select! {
        () = &mut signalled => Ok(None),
        end = &mut ended => Err(core_ended(end)),
        started = async {
            if (&mut ready).await.is_err() {
                // The thread says why.
                return std::future::pending().await;
            }
            start(config, socket, &core, authority, campus).await
        } => started.map(Some),
    };
    let served = match served {
        Ok(Some(endpoint)) => {
            serving.send_replace(true);
            let end = tokio::select! {
                () = &mut signalled => Ok(()),
                end = &mut ended => Err(core_ended(end)),
            };
            tracing::info!("stopping");
            endpoint.close(listener::code::STOPPING, b"the centre is stopping");
            // A node that does not hear it notices the silence.
            let _ = tokio::time::timeout(STOP_TIME, endpoint.wait_idle()).await;
            end
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    control.abort();
    core.stop().await;
    let joined = tokio::task::spawn_blocking(move || {
        checkpointer.stop();
        thread.join()
    })
    .await?;
    served.and(joined.map_err(|_| anyhow!("the core failed; see the message above")))
}

/// Why the core's thread ended by itself.
fn core_ended(end: Result<Result<(), StoreError>, oneshot::error::RecvError>) -> anyhow::Error {
    match end {
        Ok(Err(error)) => anyhow::Error::new(error).context("the database cannot be opened"),
        Ok(Ok(())) => anyhow!("the core ended"),
        Err(_) => anyhow!("the core failed; see the message above"),
    }
}

/// Publishes the campus where none is published yet, and serves the network.
async fn start(
    config: &Config,
    socket: std::net::UdpSocket,
    core: &CoreHandle,
    authority: Arc<Authority>,
    campus: &CampusConfig,
) -> anyhow::Result<quinn::Endpoint> {
    let status: Status = serde_json::from_value(core.command(Command::Status {}).await?)?;
    if status.campus_version == 0 && status.recovery.is_none() {
        core.command(Command::PublishCampus { config: serde_json::to_value(campus)? }).await?;
        tracing::info!(buildings = campus.buildings.len(), "campus published");
    }
    let runtime: Arc<dyn Runtime> = Arc::new(quinn::TokioRuntime);
    let socket = runtime.wrap_udp_socket(socket)?;
    let (endpoint_config, tls) = (quinn::EndpointConfig::default(), authority.server_tls()?);
    let endpoint = listener::endpoint(runtime, socket, endpoint_config, tls, config.idle_timeout())?;
    let desk = Arc::new(Desk::new(authority, core.clone(), config.renew_certificates));
    tokio::spawn(listener::serve(endpoint.clone(), core.clone(), desk));
    tracing::info!(listen = %endpoint.local_addr()?, institution = %campus.institution, "serving");
    Ok(endpoint)
}
