//! A thread for each reader, and who watches it.
//!
//! A card that never answers blocks the middleware without end, and nothing frees it but the card's removal. So whoever asked is
//! answered by a watchdog on another thread, which abandons the touch: what is abandoned before money is at stake stops there, what is
//! abandoned later is unknown. A late answer reaches nobody any more; where it proves a debit, that is still written down in
//! the entry that it belongs to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often the watchdog looks.
const LOOK: Duration = Duration::from_millis(20);

/// Readers that there may be at one POS.
const SLOTS_MAX: usize = 8;

const NOTHING_AT_STAKE: u8 = 0;
const AT_STAKE: u8 = 1;
const ABANDONED: u8 = 2;

/// How far a touch is, for its watchdog.
#[derive(Debug, Default)]
pub struct Watch {
    phase: AtomicU8,
    transmitting: Mutex<Option<Instant>>,
}

impl Watch {
    /// From here on money is at stake; false where the touch was abandoned, and must stop.
    pub fn stake(&self) -> bool {
        let turned =
            self.phase.compare_exchange(NOTHING_AT_STAKE, AT_STAKE, Ordering::SeqCst, Ordering::SeqCst);
        turned != Err(ABANDONED)
    }

    /// What was at stake is settled.
    pub fn settle(&self) {
        // A touch that was given up stays so.
        let _ = self.phase.compare_exchange(AT_STAKE, NOTHING_AT_STAKE, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Gives the touch up; true where money was at stake.
    pub fn abandon(&self) -> bool {
        self.phase.swap(ABANDONED, Ordering::SeqCst) == AT_STAKE
    }

    /// Whether the touch was given up.
    pub fn is_abandoned(&self) -> bool {
        self.phase.load(Ordering::SeqCst) == ABANDONED
    }

    /// A command is at the card until what this returns is dropped.
    pub fn transmitting(&self) -> Transmitting<'_> {
        *lock(&self.transmitting) = Some(Instant::now());
        Transmitting(self)
    }

    fn silent_for(&self) -> Duration {
        lock(&self.transmitting).map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// While a command is at the card.
#[derive(Debug)]
pub struct Transmitting<'a>(&'a Watch);

impl Drop for Transmitting<'_> {
    fn drop(&mut self) {
        *lock(&self.0.transmitting) = None;
    }
}

/// Why a reader did not do what it was asked to.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SlotError {
    /// It is at another request.
    #[error("the reader is busy with another request")]
    Busy,
    /// It waits for a card that does not answer.
    #[error("the card on the reader does not answer: take it away")]
    Stuck,
    /// The card has just stopped to answer.
    #[error("the card does not answer: take it away")]
    Silent {
        /// Whether it may have been debited.
        at_stake: bool,
    },
    /// More readers than a POS has.
    #[error("there are more than {SLOTS_MAX} readers")]
    TooMany,
    /// The thread ended.
    #[error("the reader's thread failed")]
    Failed,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
struct Slot {
    jobs: mpsc::Sender<Job>,
    /// The touch under way.
    touch: Arc<Mutex<Option<Arc<Watch>>>>,
}

/// The readers that were used so far, by name.
#[derive(Debug, Default)]
pub struct Slots(Mutex<BTreeMap<String, Slot>>);

impl Slots {
    /// Has the reader's thread do `work`, and returns what came of it; or gives it up where a command to the card takes longer
    /// than `limit`.
    ///
    /// # Errors
    /// [`SlotError`].
    pub fn run<T: Send + 'static>(
        &self,
        reader: &str,
        limit: Duration,
        work: impl FnOnce(&Watch) -> T + Send + 'static,
    ) -> Result<T, SlotError> {
        let watch = Arc::new(Watch::default());
        let answer = self.start(reader, watch.clone(), work)?;
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(SlotError::Failed),
                Err(RecvTimeoutError::Timeout) if watch.silent_for() > limit => {
                    return Err(SlotError::Silent { at_stake: watch.abandon() });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn start<T: Send + 'static>(
        &self,
        reader: &str,
        watch: Arc<Watch>,
        work: impl FnOnce(&Watch) -> T + Send + 'static,
    ) -> Result<mpsc::Receiver<T>, SlotError> {
        let mut slots = lock(&self.0);
        if !slots.contains_key(reader) && slots.len() >= SLOTS_MAX {
            return Err(SlotError::TooMany);
        }
        let slot = slots.entry(reader.to_owned()).or_insert_with(Slot::new);
        {
            let mut touch = lock(&slot.touch);
            match &*touch {
                Some(touch) if touch.is_abandoned() => return Err(SlotError::Stuck),
                Some(_) => return Err(SlotError::Busy),
                None => *touch = Some(watch.clone()),
            }
        }
        let over = Over(slot.touch.clone());
        let (sender, answer) = mpsc::channel();
        let job: Job = Box::new(move || {
            let worked = {
                // Free again before the answer is heard: who is answered may ask at once.
                let _over = over;
                work(&watch)
            };
            // Nobody listens to an answer that comes too late.
            let _ = sender.send(worked);
        });
        if slot.jobs.send(job).is_err() {
            slots.remove(reader);
            return Err(SlotError::Failed);
        }
        Ok(answer)
    }
}

impl Slot {
    fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for job in queue {
                job();
            }
        });
        Self { jobs, touch: Arc::default() }
    }
}

/// The touch is over when this is dropped, also where it failed.
struct Over(Arc<Mutex<Option<Arc<Watch>>>>);

impl Drop for Over {
    fn drop(&mut self) {
        *lock(&self.0) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    #[test]
    fn a_silent_card_is_given_up_and_its_late_answer_reaches_nobody() {
        let slots = Slots::default();
        let (free, freed) = mpsc::channel::<()>();
        let (say, said) = mpsc::channel();
        let silent = slots.run("reader", LIMIT, move |watch| {
            assert!(watch.stake());
            let sent = watch.transmitting();
            freed.recv().unwrap();
            drop(sent);
            // Too late for another step.
            say.send(watch.stake()).unwrap();
            "late"
        });
        assert_eq!(silent, Err(SlotError::Silent { at_stake: true }));
        assert_eq!(slots.run("reader", LIMIT, |_| "next"), Err(SlotError::Stuck));
        assert_eq!(slots.run("other", LIMIT, |_| "other"), Ok("other"));
        free.send(()).unwrap();
        assert!(!said.recv().unwrap());
        // As soon as the card is gone the reader serves again, with the answer to what is asked.
        let next = loop {
            match slots.run("reader", LIMIT, |_| "next") {
                Err(SlotError::Stuck) => thread::sleep(LOOK),
                other => break other,
            }
        };
        assert_eq!(next, Ok("next"));
    }

    #[test]
    fn nothing_is_at_stake_before_the_journal() {
        let slots = Slots::default();
        let (free, freed) = mpsc::channel::<()>();
        let silent = slots.run("reader", LIMIT, move |watch| {
            let _sent = watch.transmitting();
            freed.recv().unwrap();
        });
        assert_eq!(silent, Err(SlotError::Silent { at_stake: false }));
        free.send(()).unwrap();
    }

    #[test]
    fn one_request_at_a_time_and_a_long_wait_for_a_card_is_no_silence() {
        let slots = Arc::new(Slots::default());
        let (begun, has_begun) = mpsc::channel();
        let waiting = {
            let slots = slots.clone();
            thread::spawn(move || {
                slots.run("reader", LIMIT, move |_| {
                    begun.send(()).unwrap();
                    thread::sleep(LIMIT * 3);
                })
            })
        };
        has_begun.recv().unwrap();
        assert_eq!(slots.run("reader", LIMIT, |_| ()), Err(SlotError::Busy));
        assert_eq!(waiting.join().unwrap(), Ok(()));
    }

    #[test]
    fn who_is_answered_may_ask_at_once() {
        let slots = Slots::default();
        for turn in 0..2_000 {
            assert_eq!(slots.run("reader", LIMIT, move |_| turn), Ok(turn));
        }
    }

    #[test]
    fn a_thread_that_fails_is_replaced() {
        let slots = Slots::default();
        let failed: Result<(), SlotError> = slots.run("reader", LIMIT, |_| panic!("on purpose"));
        assert_eq!(failed, Err(SlotError::Failed));
        let next = loop {
            match slots.run("reader", LIMIT, |_| ()) {
                Err(SlotError::Failed | SlotError::Busy) => thread::sleep(LOOK),
                other => break other,
            }
        };
        assert_eq!(next, Ok(()));
    }
}
