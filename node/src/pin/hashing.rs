//! Hashing of PINs that terminals send: on a thread of its own, one after another, and no more waiting than can be answered.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use feiqian_protocol::ids::CardNumber;
use feiqian_protocol::pin::{PaymentPin, PinGeneration, PinKey, PinMemory, TypedPins};
use feiqian_protocol::tap::{Pin, TapRequest};
use tokio::sync::oneshot;

use super::change::{NewPin, PinToShow};
use crate::drive::{Answer, NoAnswer, Request};
use crate::http::{Failure, Terminals};
use crate::io::SettingError;

/// PINs that wait while another is hashed: what is through in about a second. Who comes after them is told to come again.
const WAITING_MAX: usize = 32;

/// How far the thread stands back (`nice`, the most there is): others decide taps meanwhile, for which somebody waits as well.
const STANDS_BACK: i32 = 19;

/// A hash to make, in the memory of the thread.
type Work = Box<dyn FnOnce(&mut PinMemory) + Send>;

/// Hashes PINs under this node's key.
pub struct PinHashing {
    key: Option<PinKey>,
    work: SyncSender<Work>,
}

impl PinHashing {
    /// Of a node with this key; without one no PIN is ever right here.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn new(key: Option<PinKey>) -> std::io::Result<Self> {
        let (work, waiting) = sync_channel(WAITING_MAX);
        std::thread::Builder::new().name("pins".to_owned()).spawn(move || hash_all(&waiting))?;
        Ok(Self { key, work })
    }

    /// What the core is told of a PIN that came with this tap.
    ///
    /// # Errors
    /// [`NoAnswer::Busy`] where too many wait; nothing was decided then, and no try counted.
    pub async fn enter(
        &self,
        terminals: &Terminals,
        tap: &TapRequest,
        pin: PaymentPin,
    ) -> Result<Pin, NoAnswer> {
        let Some(key) = self.key else { return Ok(Pin::NotHashed) };
        let ask = Request::Pin(tap.clone());
        let generation = match terminals.queue.ask(ask, terminals.answer_wait()).await? {
            Answer::PinGeneration(Some(generation)) => generation,
            Answer::PinGeneration(None) => return Ok(Pin::NotHashed),
            _ => return Err(NoAnswer::Unavailable),
        };
        let hash = self.hashed(move |memory| pin.hash_in(memory, generation)).await?;
        Ok(Pin::Entered { generation, digest: key.digest(generation, &hash) })
    }

    /// What the core is told of a holder who shows a PIN and has chosen another.
    ///
    /// # Errors
    /// [`Failure`]: there is nothing to compare with, or too many wait; nothing was written then, and no try counted.
    pub async fn change(
        &self,
        terminals: &Terminals,
        card: CardNumber,
        shown: PaymentPin,
        chosen: PaymentPin,
    ) -> Result<NewPin, Failure> {
        let Some(key) = self.key else {
            let message = "this building takes no PINs until it is enrolled anew".to_owned();
            return Err(SettingError::Refused { code: "pin_no_key", message }.into());
        };
        let ask = Request::PinToShow(card);
        let PinToShow { account, generation: current } =
            match terminals.queue.ask(ask, terminals.answer_wait()).await? {
                Answer::PinToShow(pin) => pin?,
                _ => return Err(NoAnswer::Unavailable.into()),
            };
        if current.is_none() && shown != PaymentPin::initial_without_id() {
            let message = "the PIN is wrong".to_owned();
            return Err(SettingError::Refused { code: "wrong_pin", message }.into());
        }
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|_| NoAnswer::Unavailable)?;
        let generation = PinGeneration(salt);
        let typed = self
            .hashed(move |memory| TypedPins {
                current: shown.hash_in(memory, current.unwrap_or(generation)),
                chosen: chosen.hash_in(memory, generation),
            })
            .await?;
        let shown = current.map(|current| (current, key.digest(current, &typed.current)));
        Ok(NewPin { shown, generation, typed: key.seal(account, generation, &typed) })
    }

    /// Runs a piece of work in its turn.
    async fn hashed<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PinMemory) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (answer, done) = oneshot::channel();
        let work: Work = Box::new(move |memory| {
            // Who asked may have gone.
            let _ = answer.send(work(memory));
        });
        self.work.try_send(work).map_err(|refused| match refused {
            TrySendError::Full(_) => NoAnswer::Busy,
            TrySendError::Disconnected(_) => NoAnswer::Unavailable,
        })?;
        done.await.map_err(|_| NoAnswer::Unavailable)
    }
}

/// The thread: until nobody can ask any more. Its memory stays for the next PIN; given back and asked for again it would be spread over
/// as many heaps of the allocator as there are threads.
fn hash_all(waiting: &Receiver<Work>) {
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), STANDS_BACK) {
        tracing::warn!(%error, "hashing of PINs competes with taps");
    }
    let mut memory = PinMemory::default();
    for work in waiting {
        work(&mut memory);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};

    use super::*;

    #[tokio::test]
    async fn as_many_wait_as_there_are_places_and_the_next_is_told_at_once() {
        let pins = Arc::new(PinHashing::new(None).unwrap());
        let (release, held) = mpsc::channel::<()>();
        let (begin, begun) = oneshot::channel();
        let first = {
            let pins = Arc::clone(&pins);
            tokio::spawn(async move {
                pins.hashed(move |_| {
                    begin.send(()).unwrap();
                    held.recv().is_err()
                })
                .await
            })
        };
        begun.await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let others: Vec<_> = (0..WAITING_MAX)
            .map(|number| {
                let (pins, asked) = (Arc::clone(&pins), Arc::clone(&asked));
                tokio::spawn(async move {
                    asked.fetch_add(1, Ordering::Relaxed);
                    pins.hashed(move |_| number).await
                })
            })
            .collect();
        while asked.load(Ordering::Relaxed) < WAITING_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(pins.hashed(|_| ()).await, Err(NoAnswer::Busy));
        drop(release);
        assert_eq!(first.await.unwrap(), Ok(true));
        for (other, number) in others.into_iter().zip(0..) {
            assert_eq!(other.await.unwrap(), Ok(number));
        }
        assert_eq!(pins.hashed(|_| 7).await, Ok(7));
    }
}
