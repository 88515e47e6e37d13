//! Hashing of PINs that terminals send: on threads of their own, few at a time, and no more waiting than can be answered.

use std::sync::Arc;

use feiqian_protocol::pin::{PaymentPin, PinKey};
use feiqian_protocol::tap::{Pin, TapRequest};
use tokio::sync::Semaphore;

use crate::drive::{Answer, NoAnswer, Request};
use crate::http::Terminals;

/// PINs hashed at a time. Each takes a processor for some tens of milliseconds, and the others decide taps meanwhile.
const AT_ONCE: usize = 1;

/// PINs that wait or are hashed: what is through in about a second. Who comes after them is told to come again.
const WAITING_MAX: usize = 32;

/// Hashes PINs under this node's key.
pub struct PinHashing {
    key: Option<PinKey>,
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl PinHashing {
    /// Of a node with this key; without one no PIN is ever right here.
    pub fn new(key: Option<PinKey>) -> Self {
        Self {
            key,
            running: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        }
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
        let hash = self.hashed(move || pin.hash(generation)).await?;
        Ok(Pin::Entered { generation, digest: key.digest(generation, &hash) })
    }

    /// Runs a piece of work in its turn.
    async fn hashed<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let place = Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| NoAnswer::Busy)?;
        let turn = Arc::clone(&self.running).acquire_owned().await.map_err(|_| NoAnswer::Unavailable)?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            // Who asked may have gone; the work keeps its place and its turn all the same until it is done.
            drop((place, turn));
            done
        });
        done.await.map_err(|_| NoAnswer::Unavailable)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn as_many_wait_as_there_are_places_and_the_next_is_told_at_once() {
        let pins = Arc::new(PinHashing::new(None));
        let (release, held) = mpsc::channel::<()>();
        let first = {
            let pins = Arc::clone(&pins);
            tokio::spawn(async move { pins.hashed(move || held.recv().is_err()).await })
        };
        let others: Vec<_> = (1..WAITING_MAX)
            .map(|number| {
                let pins = Arc::clone(&pins);
                tokio::spawn(async move { pins.hashed(move || number).await })
            })
            .collect();
        while pins.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pins.hashed(|| ()).await, Err(NoAnswer::Busy));
        drop(release);
        assert_eq!(first.await.unwrap(), Ok(true));
        for (other, number) in others.into_iter().zip(1..) {
            assert_eq!(other.await.unwrap(), Ok(number));
        }
        assert_eq!(pins.hashed(|| 7).await, Ok(7));
    }
}
