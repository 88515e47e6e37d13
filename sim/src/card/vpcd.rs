//! A card in a virtual reader: the protocol of vsmartcard's vpcd.
//!
//! The card dials the reader. A frame is a length of two bytes, then as many bytes: one is control (00 power off, 01 power on, 02
//! reset, 04 the ATR is wanted), more are a command. Only 04 and commands are answered.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::applet::Applet;
use super::fault::{Faults, Moment};
use super::state::CardState;

/// Answer to reset: T=0 and T=1, no historical bytes.
const ATR: [u8; 5] = [0x3B, 0x80, 0x80, 0x01, 0x01];

const POWER_OFF: u8 = 0x00;
const POWER_ON: u8 = 0x01;
const RESET: u8 = 0x02;
const ATR_WANTED: u8 = 0x04;

/// Between two tries to reach the reader.
const RETRY: Duration = Duration::from_millis(100);

/// A card that is put into virtual readers, shared with who watches it.
#[derive(Clone, Debug)]
pub struct SoftCard {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    card: Mutex<Inserted>,
    /// Where its memory is kept; nowhere in tests that need no file.
    path: Option<PathBuf>,
    /// How long a card stays out after it was torn away.
    away: Duration,
    /// How long a silent card stays in.
    silence: Duration,
    stop: AtomicBool,
}

#[derive(Debug)]
struct Inserted {
    applet: Applet,
    faults: Faults,
}

impl SoftCard {
    /// A card with its memory in `path`, if any, which stays out for `away` after a tear and in for `silence` where it is silent.
    pub fn new(
        state: CardState,
        path: Option<PathBuf>,
        faults: Faults,
        away: Duration,
        silence: Duration,
    ) -> Self {
        let card = Mutex::new(Inserted { applet: Applet::new(state), faults });
        Self { shared: Arc::new(Shared { card, path, away, silence, stop: AtomicBool::new(false) }) }
    }

    /// The card's memory.
    pub fn state(&self) -> CardState {
        self.lock().applet.state.clone()
    }

    /// Changes the card's memory while nobody looks.
    pub fn change(&self, change: impl FnOnce(&mut CardState)) {
        change(&mut self.lock().applet.state);
    }

    /// Adds a fault.
    pub fn add_fault(&self, fault: super::fault::Fault) {
        self.lock().faults.add(fault);
    }

    /// Takes the card out for good: [`SoftCard::serve`] returns at the next frame or try.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }

    /// Puts the card into the reader at `reader`, again after each tear, until it is stopped.
    ///
    /// # Errors
    /// Where its memory cannot be written.
    pub fn serve(&self, reader: SocketAddr) -> Result<()> {
        while !self.stopped() {
            match TcpStream::connect(reader) {
                Ok(stream) => {
                    let torn = !self.insert(stream)?;
                    if !self.stopped() {
                        thread::sleep(if torn { self.shared.away } else { RETRY });
                    }
                }
                Err(_) => thread::sleep(RETRY),
            }
            self.lock().applet.reset();
        }
        Ok(())
    }

    /// One stay in the reader; false where it was torn out.
    fn insert(&self, mut stream: TcpStream) -> Result<bool> {
        // So that a card that is stopped leaves although nobody talks to it.
        stream.set_read_timeout(Some(Duration::from_secs(1))).context("setting a time limit")?;
        while !self.stopped() {
            let body = match frame(&mut stream) {
                Ok(Some(body)) => body,
                Ok(None) => continue,
                Err(_) => return Ok(true),
            };
            let answer = match body.as_slice() {
                [POWER_OFF | RESET] => {
                    self.lock().applet.reset();
                    None
                }
                [POWER_ON] | [] => None,
                [ATR_WANTED] => Some(ATR.to_vec()),
                command => match self.execute(command)? {
                    Executed::Answer(answer) => Some(answer),
                    Executed::Torn => return Ok(false),
                    Executed::Silent => {
                        thread::sleep(self.shared.silence);
                        return Ok(false);
                    }
                },
            };
            if let Some(answer) = answer {
                let length =
                    u16::try_from(answer.len()).context("an answer fits into a frame")?.to_be_bytes();
                // In one write: in two they cost a delayed acknowledgement.
                if stream.write_all(&[&length[..], &answer].concat()).is_err() {
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    /// Executes a command, and writes the memory before anything is answered.
    fn execute(&self, command: &[u8]) -> Result<Executed> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).context("drawing a random number")?;
        let mut card = self.lock();
        let fault = card.faults.at(command);
        if fault == Some(Moment::Before) {
            return Ok(Executed::Torn);
        }
        let before = card.applet.state.clone();
        let answer = card.applet.process(command, random);
        if let Some(path) = self.shared.path.as_ref().filter(|_| card.applet.state != before) {
            card.applet.state.write(path)?;
        }
        Ok(match fault {
            Some(Moment::After) => Executed::Torn,
            Some(Moment::Silent) => Executed::Silent,
            _ => Executed::Answer(answer),
        })
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inserted> {
        self.shared.card.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Executed {
    Answer(Vec<u8>),
    Silent,
    Torn,
}

/// The next frame; `None` where none has begun for a while.
fn frame(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read(&mut length[..1]) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    acknowledge(stream)?;
    stream.read_exact(&mut length[1..])?;
    acknowledge(stream)?;
    let mut body = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut body)?;
    acknowledge(stream)?;
    Ok(Some(body))
}

/// vpcd sends length and body in two writes, the second of which waits for the first to be acknowledged: 40 ms for each command
/// unless that is done at once. The kernel forgets this setting, so it is made after every read.
fn acknowledge(stream: &TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_tcp_quickack(stream, true).map_err(Into::into)
}
