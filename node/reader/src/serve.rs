//! The sockets: one JSON object per line each way, on a Unix socket and, where wanted, on loopback TCP.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::answer::Failure;
use crate::desk::Desk;

/// Longest line that is read.
const LINE_BYTES_MAX: u64 = 4 * 1024;

/// Connections at a time; each has a thread.
const CONNECTIONS_MAX: usize = 16;

/// Opens the Unix socket, replacing one that a killed process left. The caller holds the journal, so that no other process serves it.
///
/// # Errors
/// Where it cannot be made; a path is at most some 100 bytes long.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    // Made under another name and private before it can be found.
    let new = path.with_extension("new");
    for stale in [&new, path] {
        match fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

/// Serves until the process ends.
pub fn serve(desk: &Arc<Desk>, unix: UnixListener, tcp: Option<TcpListener>) {
    let places = Arc::new(AtomicUsize::new(0));
    if let Some(tcp) = tcp {
        let (desk, places) = (desk.clone(), places.clone());
        thread::spawn(move || accept(&desk, &places, tcp.incoming(), |stream| stream.try_clone()));
    }
    accept(desk, &places, unix.incoming(), |stream| stream.try_clone());
}

fn accept<S: Read + Write + Send + 'static>(
    desk: &Arc<Desk>,
    places: &Arc<AtomicUsize>,
    incoming: impl Iterator<Item = io::Result<S>>,
    clone: fn(&S) -> io::Result<S>,
) {
    for stream in incoming {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if places.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            places.fetch_sub(1, Ordering::SeqCst);
            // Closed without a word: what it asked was not read.
            continue;
        }
        let (desk, place) = (desk.clone(), Place(places.clone()));
        thread::spawn(move || {
            let _place = place;
            if let Err(error) = clone(&stream).and_then(|read| lines(&desk, read, stream)) {
                tracing::debug!(%error, "connection");
            }
        });
    }
}

/// A connection's place, free again when this is dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lines(desk: &Desk, read: impl Read, mut write: impl Write) -> io::Result<()> {
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = read.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        let complete = line.ends_with(b"\n") || (length as u64) < LINE_BYTES_MAX;
        let mut answer = answer(desk, &line, complete).to_string();
        answer.push('\n');
        write.write_all(answer.as_bytes())?;
        if !complete {
            return Ok(());
        }
    }
}

fn answer(desk: &Desk, line: &[u8], complete: bool) -> Value {
    if !complete {
        return Failure::new("bad_request", format!("a line is at most {LINE_BYTES_MAX} bytes long")).json();
    }
    match serde_json::from_slice(line) {
        Ok(command) => desk.handle(command),
        Err(error) => Failure::new("bad_request", error).json(),
    }
}
