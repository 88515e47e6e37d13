//! Local times as files and options write them: naive, in China Standard Time.

use feiqian_protocol::time::{BusinessCalendar, Timestamp};
use jiff::civil::DateTime;
use jiff::tz::Offset;

/// The calendar of every campus here.
pub const CALENDAR: BusinessCalendar = BusinessCalendar::CHINA;

/// Parses `2022-11-08T11:30` or `2022-11-08T11:30:05`.
///
/// # Errors
/// What is wrong, for a person.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    let civil: DateTime = text
        .parse()
        .ok()
        .filter(|_| text.len() >= "2022-11-08T11:30".len())
        .ok_or_else(|| format!("{text:?} is no local time (expected e.g. 2022-11-08T11:30)"))?;
    let time = offset().to_timestamp(civil).map_err(|_| format!("{text:?} is out of range"))?;
    Ok(Timestamp(time.as_millisecond()))
}

/// The local time of a timestamp, with seconds.
pub fn format(time: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(time.0) {
        Ok(instant) => offset().to_datetime(instant).strftime("%Y-%m-%dT%H:%M:%S").to_string(),
        Err(_) => format!("{}ms", time.0),
    }
}

fn offset() -> Offset {
    Offset::constant((CALENDAR.utc_offset_minutes / 60) as i8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_times_round_trip() {
        let time = parse("2022-11-07T11:03:02").unwrap();
        assert_eq!(time, Timestamp(1_667_790_182_000));
        assert_eq!(format(time), "2022-11-07T11:03:02");
        assert_eq!(parse("2022-11-07T11:03").unwrap(), Timestamp(1_667_790_180_000));
        for bad in ["", "noon", "2022-11-07", "2022-11-07T25:00", "2022-13-07T11:00", "2022-11-07T11:03Zx"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
