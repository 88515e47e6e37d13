//! The time of a run, and the wall clocks of its machines, which may be wrong.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use feiqian_protocol::time::Timestamp;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use tokio::time::Instant;

use crate::plan::WrongClock;

/// How long it takes to set the campus up.
const SET_UP: Duration = Duration::from_secs(1);

/// True time: what has passed since the run began, by the runtime.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    began: Instant,
    /// From then to the plan's first moment.
    before: Duration,
    start: Timestamp,
}

impl Time {
    /// Begins now, before the plan's first moment, which is `start`: by the time of setting the campus up, and of warming up.
    /// To be called on the runtime.
    pub fn begin(start: Timestamp, warm_up: Duration) -> Self {
        Self { began: Instant::now(), before: SET_UP + warm_up, start }
    }

    /// When the campus is set up, and its nodes are started.
    pub fn set_up(&self) -> Instant {
        self.began + SET_UP
    }

    /// Nanoseconds since the beginning.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Milliseconds since the plan's first moment; 0 before.
    pub fn now_ms(&self) -> u64 {
        let passed = self.began.elapsed().saturating_sub(self.before);
        u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    }

    /// When so much will have passed since the beginning.
    pub fn instant(&self, since_beginning: Duration) -> Instant {
        self.began + since_beginning
    }

    /// A moment of the plan.
    pub fn moment(&self, at_ms: u64) -> Instant {
        self.began + self.before + Duration::from_millis(at_ms)
    }

    /// What a right clock shows.
    pub fn wall(&self) -> Timestamp {
        let passed_ms = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.start.plus_ms(passed_ms - self.before.as_millis() as i64)
    }
}

/// The wall clock of a machine. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct HostClock {
    time: Time,
    wrong: Arc<Mutex<Option<(u64, WrongClock)>>>,
}

impl HostClock {
    /// A clock that is right.
    pub fn new(time: Time) -> Self {
        Self { time, wrong: Arc::default() }
    }

    /// From now on it is wrong in this way, or right again.
    pub fn set(&self, wrong: Option<WrongClock>) {
        let since = self.time.now_ns() / 1_000_000;
        *self.wrong.lock().unwrap_or_else(PoisonError::into_inner) = wrong.map(|wrong| (since, wrong));
    }

    /// What it shows.
    pub fn read(&self) -> Timestamp {
        let right = self.time.wall();
        let wrong = *self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((since_ms, wrong)) = wrong else { return right };
        let passed_ms = i64::try_from(self.time.now_ns() / 1_000_000 - since_ms).unwrap_or(i64::MAX);
        match wrong {
            WrongClock::Off(ms) => right.plus_ms(ms),
            WrongClock::Drifts(ppm) => right.plus_ms(passed_ms.saturating_mul(ppm) / 1_000_000),
            WrongClock::In1970 => Timestamp(passed_ms),
            WrongClock::In2038 => Y2038.plus_ms(passed_ms),
        }
    }

    /// The same, for a shell.
    pub fn reader(&self) -> Arc<dyn Fn() -> Timestamp + Send + Sync> {
        let clock = self.clone();
        Arc::new(move || clock.read())
    }

    /// When the software of this machine was built.
    pub const fn built(&self) -> Timestamp {
        self.time.start
    }

    /// The time by which the centre judges certificates: its wall clock.
    pub fn certificate_time(&self) -> Arc<dyn TimeProvider> {
        Arc::new(CertificateTime(self.clone()))
    }
}

/// 2038-01-19 03:14:08 UTC: one second after the last that 32 bits hold.
const Y2038: Timestamp = Timestamp(2_147_483_648_000);

#[derive(Debug)]
struct CertificateTime(HostClock);

impl TimeProvider for CertificateTime {
    fn current_time(&self) -> Option<UnixTime> {
        let now = self.0.read();
        Some(UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(now.0).unwrap_or(0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wrong_clock_is_wrong_from_then_on_and_right_again_afterwards() {
        let start = Timestamp(1_667_779_200_000);
        let time = Time::begin(start, Duration::ZERO);
        let clock = HostClock::new(time);
        assert_eq!(clock.read(), start.plus_ms(-1_000));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(clock.read(), start.plus_ms(10_000));
        clock.set(Some(WrongClock::Off(-3_000)));
        assert_eq!(clock.read(), start.plus_ms(7_000));
        clock.set(Some(WrongClock::Drifts(100_000)));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(clock.read(), start.plus_ms(21_000));
        clock.set(Some(WrongClock::In1970));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(clock.read(), Timestamp(1_000));
        assert_eq!(clock.certificate_time().current_time().unwrap().as_secs(), 1);
        clock.set(Some(WrongClock::In2038));
        assert_eq!(clock.read(), Timestamp(2_147_483_648_000));
        clock.set(None);
        assert_eq!(clock.read(), start.plus_ms(21_000));
    }
}
