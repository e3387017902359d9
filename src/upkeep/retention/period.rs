//! The periods of a calendar that snapshots fall into.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// How long a rule's periods are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Each snapshot is one.
    Snapshot,
    /// 60 minutes: the hour that clocks show twice in autumn is two.
    Hour,
    /// From local midnight to local midnight.
    Day,
    /// As ISO 8601 counts them: Monday to Sunday, of the year that has its Thursday.
    Week,
    /// A calendar month.
    Month,
    /// A calendar year.
    Year,
}

impl Period {
    /// The name of the period that `time` falls into in `zone`.
    pub fn of(self, time: Timestamp, zone: &TimeZone) -> String {
        let format = match self {
            Period::Snapshot => "%s.%f",
            Period::Hour => "%Y-%m-%dT%H%:z",
            Period::Day => "%Y-%m-%d",
            Period::Week => "%G-W%V",
            Period::Month => "%Y-%m",
            Period::Year => "%Y",
        };
        time.to_zoned(zone.clone()).strftime(format).to_string()
    }
}
