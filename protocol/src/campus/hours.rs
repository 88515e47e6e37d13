//! When doors let members of a group pass: time tables, and the days that have other ones.

use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;
use jiff::tz::Offset;
use serde::{Deserialize, Serialize};

use crate::ids::{Key, NodeName};
use crate::time::{BusinessCalendar, Timestamp};

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// When members of a group pass at doors that are theirs. Where several are of one group and building, any of them lets pass;
/// where none is, the door is open to the group at all hours.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// The group.
    pub group: Key,
    /// The nodes of the buildings; all where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeName>,
    /// When it is open.
    pub open: Vec<Span>,
    /// When on holidays; as on other days where absent, and never where empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holidays: Option<Vec<Span>>,
}

/// Part of a day on the campus's wall clock, such as `06:00-23:00`; the end is not in it. One that ends before it begins goes on after
/// midnight.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    pub(super) from: u16,
    to: u16,
}

/// A point of the campus's wall clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalTime {
    pub(super) day: Date,
    pub(super) minute: u16,
}

impl LocalTime {
    /// `None` for times and offsets that no calendar has.
    pub(super) fn of(time: Timestamp, calendar: &BusinessCalendar) -> Option<Self> {
        let offset = Offset::from_seconds(calendar.utc_offset_minutes * 60).ok()?;
        let local = offset.to_datetime(jiff::Timestamp::from_millisecond(time.0).ok()?);
        Some(Self { day: local.date(), minute: local.hour() as u16 * 60 + local.minute() as u16 })
    }
}

impl Hours {
    /// True where this is about a group in a building.
    pub(super) fn is_about(&self, group: &Key, node: &NodeName) -> bool {
        self.group == *group && (self.nodes.is_empty() || self.nodes.contains(node))
    }

    pub(super) fn is_open(&self, at: LocalTime, is_holiday: bool) -> bool {
        let other = self.holidays.as_ref().filter(|_| is_holiday);
        other.unwrap_or(&self.open).iter().any(|span| span.contains(at.minute))
    }
}

impl Span {
    pub(super) const fn contains(self, minute: u16) -> bool {
        if self.from < self.to {
            self.from <= minute && minute < self.to
        } else {
            self.from <= minute || minute < self.to
        }
    }

    pub(super) const fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.from) || other.contains(self.from)
    }
}

fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let digits = |text: &str| (text.len() == 2).then(|| text.parse::<u16>().ok()).flatten();
    let (hour, minute) = (digits(hour)?, digits(minute)?);
    let of_day = hour * 60 + minute;
    (minute < 60 && of_day <= DAY).then_some(of_day)
}

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) =
            text.split_once('-').and_then(|(from, to)| minute(from).zip(minute(to))).unwrap_or_default();
        if from < DAY && from != to {
            Ok(Self { from, to })
        } else {
            Err(format!("{text:?} is no part of a day such as 06:00-23:00"))
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Span {
        text.parse().unwrap()
    }

    #[test]
    fn a_span_ends_before_its_end_and_may_go_on_after_midnight() {
        let at = |text: &str| minute(text).unwrap();
        let day = span("06:00-23:00");
        assert_eq!(
            ["05:59", "06:00", "22:59", "23:00"].map(|time| day.contains(at(time))),
            [false, true, true, false]
        );
        let night = span("22:00-01:30");
        assert_eq!(
            ["21:59", "23:59", "00:00", "01:30"].map(|time| night.contains(at(time))),
            [false, true, true, false]
        );
        assert!(span("00:00-24:00").contains(at("23:59")));
        let overlap = |one, other| span(one).overlaps(&span(other)) && span(other).overlaps(&span(one));
        assert!(overlap("06:00-09:00", "08:59-10:00") && overlap("22:00-01:30", "01:00-02:00"));
        assert!(overlap("06:00-20:00", "11:00-12:00") && overlap("06:00-07:00", "06:00-07:00"));
        assert!(!span("06:00-09:00").overlaps(&span("09:00-22:00")) && !day.overlaps(&span("23:00-06:00")));
        for text in
            ["6:00-23:00", "06:00", "06:00-06:00", "24:00-06:00", "06:60-07:00", "06:00-24:01", "", "a-b"]
        {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert_eq!(span("06:05-24:00").to_string(), "06:05-24:00");
    }
}
