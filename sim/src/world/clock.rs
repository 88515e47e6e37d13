//! Wall clocks of hosts: true time, as far as a host knows it.

use feiqian_protocol::time::Timestamp;

use crate::plan::WrongClock;

const MS: u64 = 1_000_000;

/// 19 January 2038, 03:14:07: where 32-bit clocks end.
const YEAR_2038: Timestamp = Timestamp(2_147_483_647_000);

/// A host's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock(Option<(u64, WrongClock)>);

impl Clock {
    /// From now on it is wrong.
    pub(super) const fn spoil(&mut self, now_ns: u64, wrong: WrongClock) {
        self.0 = Some((now_ns, wrong));
    }

    /// Somebody sets it right.
    pub(super) const fn repair(&mut self) {
        self.0 = None;
    }

    /// What it shows.
    pub(super) fn read(&self, start: Timestamp, now_ns: u64) -> Timestamp {
        let truth = start.plus_ms((now_ns / MS) as i64);
        let Some((since, wrong)) = self.0 else { return truth };
        let passed = ((now_ns - since) / MS) as i64;
        match wrong {
            WrongClock::Off(ms) => truth.plus_ms(ms),
            WrongClock::Drifts(ppm) => truth.plus_ms(passed * ppm / 1_000_000),
            WrongClock::In1970 => Timestamp(passed),
            WrongClock::In2038 => YEAR_2038.plus_ms(passed),
        }
    }
}
