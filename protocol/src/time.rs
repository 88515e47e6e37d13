//! Time as data: timestamps, the hybrid logical clock of entries, and the business day.
//!
//! Nothing here reads a clock.

use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::limits::CLOCK_AHEAD_MS_MAX;

/// Milliseconds since 1970-01-01T00:00:00Z, leap seconds ignored.
#[derive(
    Clone, Copy, Debug, Decode, Default, Deserialize, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct Timestamp(#[n(0)] pub i64);

impl Timestamp {
    /// The time `ms` milliseconds later.
    pub const fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this; negative where this is the earlier one.
    pub const fn ms_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A hybrid logical clock (Kulkarni et al. 2014): 48 bits of milliseconds since 1970, then a 16-bit counter.
///
/// Within one log it never falls, so entries keep their order even where the wall clock jumps back.
#[derive(
    Clone, Copy, Debug, Decode, Default, Deserialize, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct Hlc(#[n(0)] u64);

impl Hlc {
    /// The first clock value at `time`; times before 1970 count as 1970.
    pub fn at(time: Timestamp) -> Self {
        let ms = u64::try_from(time.0).unwrap_or(0).min((1 << 48) - 1);
        Self(ms << 16)
    }

    /// The millisecond part.
    pub const fn time(self) -> Timestamp {
        Timestamp((self.0 >> 16) as i64)
    }

    /// The next value of a clock whose last value was `self`, at wall time `wall`: above `self`, and at least `wall`.
    pub fn tick(self, wall: Timestamp) -> Self {
        Self(self.0.saturating_add(1)).max(Self::at(wall))
    }

    /// Takes note of a peer's clock, at most [`CLOCK_AHEAD_MS_MAX`] ahead of our own wall clock.
    pub fn observe(self, peer: Self, wall: Timestamp) -> Self {
        self.max(peer.min(Self::at(wall.plus_ms(CLOCK_AHEAD_MS_MAX))))
    }

    /// The number as stored and signed.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// From the number as stored and signed.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// A business day: days since 1970-01-01 in the institution's time zone, shifted by its cut-off.
#[derive(
    Clone, Copy, Debug, Decode, Default, Deserialize, Encode, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct BusinessDay(#[n(0)] pub i32);

impl BusinessDay {
    /// The next day; the last one that there is stays.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for BusinessDay {
    /// The calendar date, as ISO 8601 `YYYY-MM-DD` (proleptic Gregorian).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(i64::from(self.0));
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// Date of a day number since 1970-01-01: eras of 400 years that start on 1 March, so that the leap day comes last.
pub(crate) fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// How business days are cut: a fixed offset from UTC and a cut-off after local midnight.
///
/// The offset is fixed, not a zone name: both sides must cut days alike, and two builds may hold different zone data.
/// Mainland China has had no clock changes since 1991.
#[derive(Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BusinessCalendar {
    /// Local time minus UTC, in minutes; China: 480.
    #[n(0)]
    pub utc_offset_minutes: i32,
    /// Minutes after local midnight at which the business day changes.
    #[n(1)]
    pub cutoff_minutes: u32,
}

impl BusinessCalendar {
    /// China Standard Time, days cut at midnight.
    pub const CHINA: Self = Self { utc_offset_minutes: 480, cutoff_minutes: 0 };

    /// The business day that `time` belongs to; the first or last there is for times millions of years away.
    pub fn day(&self, time: Timestamp) -> BusinessDay {
        let shift_ms = (i64::from(self.utc_offset_minutes) - i64::from(self.cutoff_minutes)) * 60_000;
        let day = time.0.saturating_add(shift_ms).div_euclid(86_400_000);
        BusinessDay(day.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32)
    }

    /// When `day` begins.
    pub const fn start(&self, day: BusinessDay) -> Timestamp {
        let shift_ms = (self.utc_offset_minutes as i64 - self.cutoff_minutes as i64) * 60_000;
        Timestamp(day.0 as i64 * 86_400_000 - shift_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_never_falls_and_follows_a_peer_by_at_most_a_minute() {
        let noon = Timestamp(1_667_800_000_000);
        let first = Hlc::default().tick(noon);
        assert_eq!(first.time(), noon);
        let after_jump_back = first.tick(noon.plus_ms(-3_600_000));
        assert!(after_jump_back > first);
        assert_eq!(after_jump_back.time(), noon);
        let pushed = first.observe(Hlc::at(noon.plus_ms(3_600_000)), noon);
        assert_eq!(pushed.time(), noon.plus_ms(CLOCK_AHEAD_MS_MAX));
    }

    #[test]
    fn a_business_day_changes_at_the_cutoff_in_local_time() {
        let calendar = BusinessCalendar { utc_offset_minutes: 480, cutoff_minutes: 180 };
        let midnight = BusinessCalendar::CHINA.start(BusinessDay(19_303)); // 2022-11-07
        assert_eq!(BusinessDay(19_303).to_string(), "2022-11-07");
        assert_eq!(BusinessDay(-1).to_string(), "1969-12-31");
        assert_eq!(BusinessDay(59).to_string(), "1970-03-01");
        assert_eq!(calendar.day(midnight.plus_ms(180 * 60_000 - 1)), BusinessDay(19_302));
        assert_eq!(calendar.day(midnight.plus_ms(180 * 60_000)), BusinessDay(19_303));
        assert_eq!(calendar.start(BusinessDay(19_303)), midnight.plus_ms(180 * 60_000));
    }

    #[test]
    fn what_a_peer_may_name_has_a_next_one() {
        assert_eq!(Hlc::from_bits(u64::MAX).tick(Timestamp(i64::MAX)), Hlc::from_bits(u64::MAX));
        assert_eq!(crate::ids::Epoch(u32::MAX).next(), crate::ids::Epoch(u32::MAX));
        for (time, day) in [(i64::MAX, i32::MAX), (i64::MIN, i32::MIN)] {
            assert_eq!(
                BusinessCalendar::CHINA.day(Timestamp(time)),
                BusinessDay(day),
                "days do not wrap around"
            );
        }
        assert_eq!(BusinessDay(i32::MAX).next(), BusinessDay(i32::MAX));
    }
}
