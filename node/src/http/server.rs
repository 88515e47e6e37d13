//! Connections of terminals: TLS, then HTTP/1.1 for as long as the terminal likes.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::run::stopped;

/// Connections at a time; more wait in the system's queue. A building has some tens of terminals.
const CONNECTIONS_MAX: usize = 1_024;

/// Of them, those that have not shown a terminal's key yet. Whoever comes when there are as many takes the place of the one
/// that has been there for longest, so a crowd of strangers keeps out nobody but itself.
const STRANGERS_MAX: usize = 256;

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be without a complete request head: a quiet terminal connects anew.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The pause after a connection could not be accepted, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the port.
///
/// # Errors
/// Where it cannot be opened, mostly because another process has it.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves connections until told to stop, then lets those finish that are in the middle of a request, for at most `finish`.
pub async fn run(
    listener: TcpListener,
    tls: rustls::ServerConfig,
    router: Router,
    finish: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut strangers = Strangers::default();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        tokio::select! {
            (place, accepted) = accepted => match accepted {
                Ok((stream, peer)) => {
                    let known = Known::default();
                    let connection =
                        connection(stream, acceptor.clone(), router.clone(), known.clone(), stop.clone());
                    let task = connections.spawn(async move {
                        if let Err(error) = connection.await {
                            tracing::debug!(%peer, %error, "connection");
                        }
                        drop(place);
                    });
                    strangers.admit(task, known);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(finish, finished).await.is_err() {
        tracing::warn!("terminals are still waiting for answers; they will ask again");
    }
}

/// Set once a request of a connection has shown a terminal's key. Every request carries it as an extension.
#[derive(Clone, Debug, Default)]
pub struct Known(Arc<AtomicBool>);

impl Known {
    /// The terminal is one of ours.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The connections that have shown no key, oldest first, and some that have or are over.
#[derive(Default)]
struct Strangers(VecDeque<(AbortHandle, Known)>);

impl Strangers {
    fn admit(&mut self, task: AbortHandle, known: Known) {
        if self.0.len() >= STRANGERS_MAX {
            self.0.retain(|(task, known)| !task.is_finished() && !known.is_set());
        }
        if self.0.len() >= STRANGERS_MAX
            && let Some((oldest, _)) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back((task, known));
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    known: Known,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
    let stream = tokio::select! {
        stream = handshake => stream??,
        () = stopped(&mut stop) => return Ok(()),
    };
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(known.clone());
        router.call(request)
    });
    let serving = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = stopped(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    served.map_err(io::Error::other)
}
