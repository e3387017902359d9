//! Times and lengths of time as people write them, in the grammar of rdiff-backup.
//!
//! Nothing here reads a clock or asks for a zone: both come in with `now`.

use jiff::fmt::temporal::Pieces;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp, Zoned, civil};

/// A TIME: a moment, or some backups back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// A moment, in the zone that was written with it or else that of `now`.
    Moment(Zoned),
    /// As many backups before the newest; 0 is the newest.
    Backups(usize),
}

impl When {
    /// Reads `now`, seconds since 1970, a date with or without time and zone, a length of time
    /// back from `now`, or `2B`. Dates are midnight in the zone of `now`. A local time that the
    /// clocks showed twice is the first one, one that they skipped is as much later.
    pub fn parse(text: &str, now: &Zoned) -> Result<Self, String> {
        if let Some(count) = text.strip_suffix('B').filter(|count| is_number(count)) {
            return count.parse().map(When::Backups).map_err(|_| format!("'{text}': too many backups"));
        }
        parse_moment(text, now)?.map(When::Moment).ok_or_else(|| {
            format!(
                "'{text}' is not a time: write 2026-11-20, 2026-11-20T03:00:00, 3D for three days ago, \
                 2B for two backups ago, or now"
            )
        })
    }

    /// The moment; refused where no backups can be counted.
    pub fn moment(self) -> Result<Zoned, String> {
        match self {
            When::Moment(moment) => Ok(moment),
            When::Backups(count) => {
                Err(format!("'{count}B' counts backups; a time is needed here, such as 2026-11-20T03:00:00"))
            }
        }
    }
}

/// A length of time in whole seconds, never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval(SignedDuration);

impl Interval {
    /// Reads numbers with units, added up: `3D`, `1W2D4h5m20s`. The units are s, m, h, D, W, M
    /// (30 days) and Y (365 days); a day is 24 hours, whatever the clocks do.
    pub fn parse(text: &str) -> Result<Self, String> {
        match parse_pairs(text) {
            Pairs::Sum(seconds) => Ok(Self(SignedDuration::from_secs(seconds))),
            Pairs::Overflow => Err(too_long(text)),
            Pairs::Other => Err(format!(
                "'{text}' is not a length of time: write 3D or 1W2D4h5m20s (s m h D W M Y; m is minutes, M is \
                 30 days)"
            )),
        }
    }

    /// Its length in seconds.
    pub fn seconds(self) -> u64 {
        self.0.as_secs().unsigned_abs()
    }

    /// The moment that lies this long before `moment`; `None` if no calendar reaches it.
    pub fn before(self, moment: Timestamp) -> Option<Timestamp> {
        moment.checked_sub(self.0).ok()
    }
}

/// `None` for what has the shape of no time.
fn parse_moment(text: &str, now: &Zoned) -> Result<Option<Zoned>, String> {
    if text == "now" {
        return Ok(Some(now.clone()));
    }
    if is_number(text) {
        let time = text.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        let time =
            time.ok_or_else(|| format!("'{text}' seconds after 1970: no calendar reaches that far"))?;
        return Ok(Some(time.to_zoned(now.time_zone().clone())));
    }
    match parse_pairs(text) {
        Pairs::Sum(seconds) => {
            let time = Interval(SignedDuration::from_secs(seconds)).before(now.timestamp());
            let time = time.ok_or_else(|| too_long(text))?;
            Ok(Some(time.to_zoned(now.time_zone().clone())))
        }
        Pairs::Overflow => Err(too_long(text)),
        Pairs::Other => parse_date(text, now),
    }
}

fn too_long(text: &str) -> String {
    format!("'{text}' is longer than any calendar reaches")
}

/// A date of four digits for the year, alone or as the beginning of RFC 3339.
fn parse_date(text: &str, now: &Zoned) -> Result<Option<Zoned>, String> {
    let day = text.get(..10).unwrap_or_default();
    let Some([year, month, date]) = day_numbers(day) else { return Ok(None) };
    let day_of = |year: u16, month, date| civil::Date::new(year as i16, month, date);
    let wrong = |why: &dyn std::fmt::Display| format!("'{text}': {why}");
    let day = day_of(year, month as i8, date as i8).map_err(|e| wrong(&e))?;
    let rest = &text[10..];
    if rest.is_empty() {
        return day.to_zoned(now.time_zone().clone()).map(Some).map_err(|e| wrong(&e));
    }
    if !rest.starts_with(['T', 't', ' ']) {
        return Ok(None);
    }
    parse_rfc3339(&format!("{day}{rest}"), now).map_err(|e| wrong(&e))
}

fn parse_rfc3339(text: &str, now: &Zoned) -> Result<Option<Zoned>, jiff::Error> {
    let pieces = Pieces::parse(text)?;
    let Some(time) = pieces.time() else { return Ok(None) };
    let local = pieces.date().to_datetime(time);
    let zone = match (pieces.to_time_zone()?, pieces.to_numeric_offset()) {
        // Whoever writes both has them checked against each other.
        (Some(_), _) => return text.parse().map(Some),
        (None, Some(offset)) => offset.to_time_zone(),
        (None, None) if pieces.offset().is_some() => Offset::UTC.to_time_zone(),
        (None, None) => now.time_zone().clone(),
    };
    local.to_zoned(zone).map(Some)
}

/// Year, month and day of `2026-11-20`, `2026/11/20`, `11/20/2026` or `11-20-2026`.
fn day_numbers(text: &str) -> Option<[u16; 3]> {
    let separator = text.chars().find(|c| !c.is_ascii_digit()).filter(|c| matches!(c, '-' | '/'))?;
    let mut parts = text.split(separator);
    let parts = [parts.next()?, parts.next()?, parts.next()?];
    if parts.iter().any(|part| !is_number(part)) {
        return None;
    }
    let [year, month, date] = match parts.map(str::len) {
        [4, 2, 2] => parts,
        [2, 2, 4] => [parts[2], parts[0], parts[1]],
        _ => return None,
    };
    Some([year.parse().ok()?, month.parse().ok()?, date.parse().ok()?])
}

/// What [`parse_pairs`] found.
enum Pairs {
    /// So many seconds.
    Sum(i64),
    /// More than can be counted.
    Overflow,
    /// Something else than numbers with units.
    Other,
}

fn parse_pairs(text: &str) -> Pairs {
    let mut rest = text;
    let mut sum = Some(0i64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let mut tail = tail.chars();
        let Some(unit) = tail.next().and_then(unit_seconds).filter(|_| digits > 0) else {
            return Pairs::Other;
        };
        let pair = number.parse::<i64>().ok().and_then(|number| number.checked_mul(unit));
        sum = sum.zip(pair).and_then(|(sum, pair)| sum.checked_add(pair));
        rest = tail.as_str();
    }
    match sum {
        _ if text.is_empty() => Pairs::Other,
        Some(sum) => Pairs::Sum(sum),
        None => Pairs::Overflow,
    }
}

fn unit_seconds(unit: char) -> Option<i64> {
    const DAY: i64 = 24 * 60 * 60;
    Some(match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'D' => DAY,
        'W' => 7 * DAY,
        'M' => 30 * DAY,
        'Y' => 365 * DAY,
        _ => return None,
    })
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn now() -> Zoned {
        "2026-11-21T14:30:00+01:00[Europe/Stockholm]".parse().unwrap()
    }

    fn moment(text: &str) -> Zoned {
        When::parse(text, &now()).and_then(When::moment).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    /// The moment in UTC.
    fn utc(text: &str) -> String {
        moment(text).timestamp().to_string()
    }

    #[test]
    fn every_form_is_read() {
        for (text, time) in [
            ("now", "2026-11-21T13:30:00Z"),
            ("0", "1970-01-01T00:00:00Z"),
            ("1763600000", "2025-11-20T00:53:20Z"),
            ("2026", "1970-01-01T00:33:46Z"),
            ("2026-11-20T03:00:00Z", "2026-11-20T03:00:00Z"),
            ("2026-11-20t03:00:00z", "2026-11-20T03:00:00Z"),
            ("2026-11-20T03:00:00+02:00", "2026-11-20T01:00:00Z"),
            ("2026-11-20T03:00:00-08:00", "2026-11-20T11:00:00Z"),
            ("2026-11-20T03:00:00", "2026-11-20T02:00:00Z"),
            ("2026-11-20 03:00", "2026-11-20T02:00:00Z"),
            ("2026-11-20T03", "2026-11-20T02:00:00Z"),
            ("2026-11-20T03:00:00.25", "2026-11-20T02:00:00.25Z"),
            ("2026-11-20T03:00:00-05:00[America/New_York]", "2026-11-20T08:00:00Z"),
            ("2026-11-20", "2026-11-19T23:00:00Z"),
            ("2026/11/20", "2026-11-19T23:00:00Z"),
            ("11/20/2026", "2026-11-19T23:00:00Z"),
            ("11-20-2026", "2026-11-19T23:00:00Z"),
            ("2024-02-29", "2024-02-28T23:00:00Z"),
            ("3D", "2026-11-18T13:30:00Z"),
            ("1W2D4h5m20s", "2026-11-12T09:24:40Z"),
            ("1M", "2026-10-22T13:30:00Z"),
            ("1Y", "2025-11-21T13:30:00Z"),
            ("0s", "2026-11-21T13:30:00Z"),
        ] {
            assert_eq!(utc(text), time, "{text}");
        }
        for (text, count) in [("0B", 0), ("2B", 2), ("1000000B", 1_000_000)] {
            assert_eq!(When::parse(text, &now()), Ok(When::Backups(count)), "{text}");
        }
    }

    #[test]
    fn one_moment_may_be_written_in_any_zone() {
        assert_eq!(utc("2026-06-01T12:00:00Z"), utc("2026-06-01T04:00:00-08:00"));
        assert_eq!(moment("2026-06-01T04:00:00-08:00").offset().seconds(), -8 * 3600);
        assert_eq!(moment("2026-06-01T04:00:00Z").offset().seconds(), 0);
        assert_eq!(moment("2026-06-01T04:00:00").offset().seconds(), 2 * 3600);
        assert_eq!(moment("2026-12-01").offset().seconds(), 3600);
    }

    #[test]
    fn daylight_saving_is_that_of_the_day() {
        // The clocks go forward at 02:00 on 29 March 2026 and back at 03:00 on 25 October.
        for (text, time) in [
            ("2026-03-29", "2026-03-28T23:00:00Z"),
            ("2026-03-30", "2026-03-29T22:00:00Z"),
            ("2026-03-29T01:59:59", "2026-03-29T00:59:59Z"),
            ("2026-03-29T02:30:00", "2026-03-29T01:30:00Z"),
            ("2026-03-29T03:00:00", "2026-03-29T01:00:00Z"),
            ("2026-10-25", "2026-10-24T22:00:00Z"),
            ("2026-10-26", "2026-10-25T23:00:00Z"),
            ("2026-10-25T02:30:00", "2026-10-25T00:30:00Z"),
            ("2026-10-25T02:30:00+01:00", "2026-10-25T01:30:00Z"),
            ("2026-10-25T03:00:00", "2026-10-25T02:00:00Z"),
        ] {
            assert_eq!(utc(text), time, "{text}");
        }
        // Midnight itself is skipped where the clocks go forward then; the day begins at one.
        let now: Zoned = "2018-12-01T12:00:00[America/Sao_Paulo]".parse().unwrap();
        let day = When::parse("2018-11-04", &now).and_then(When::moment).unwrap();
        assert_eq!(day.timestamp().to_string(), "2018-11-04T03:00:00Z");
    }

    #[test]
    fn what_is_no_time_is_refused_with_an_example() {
        for text in [
            "",
            " ",
            "hello",
            "-1",
            "+1",
            "1.5",
            "32B ",
            "B",
            "-2B",
            "d",
            "3d",
            "231I",
            "MM",
            "s",
            "-2h",
            "3q",
            "2D ",
            " 2D",
            "2D3",
            "x2026-11-20",
            "2026-11",
            "2026-1-2",
            "26-11-20",
            "20-11-2026x",
            "2026-11/20",
            "2026-11-20x",
            "11/20/26",
            "2026-11-20T",
            "2026-11-20Z",
            "Ä026-11-20",
            "2026-11-2Ä",
            "２026-11-20",
        ] {
            let error = When::parse(text, &now()).unwrap_err();
            assert!(error.starts_with(&format!("'{text}'")), "{error}");
        }
        assert!(When::parse("hello", &now()).unwrap_err().contains("write 2026-11-20,"));
        for text in [
            "2026-02-29",
            "2026-13-01",
            "13/13/2026",
            "2026-11-20T24:00:00",
            "2026-11-20T03:61:00",
            "2026-11-20T03:00:00+99:00",
            "2026-11-20T03:00:00+01:00[America/New_York]",
            "2026-11-20T03:00:00[Nowhere/Land]",
        ] {
            assert!(When::parse(text, &now()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_no_calendar_reaches_is_refused() {
        for text in [
            "99999999999999999999",
            "9999999999999",
            "99999999999999999999B",
            "99999999999999999999D",
            "9223372036854775807Y",
            "9223372036854775807s1s",
            "20000Y",
        ] {
            assert!(When::parse(text, &now()).is_err(), "{text}");
        }
        assert!(Interval::parse("9223372036854775807s1s").is_err());
        let longest = Interval::parse("9223372036854775807s").unwrap();
        assert_eq!(longest.before(now().timestamp()), None);
    }

    #[test]
    fn intervals_stand_alone() {
        for (text, seconds) in [
            ("7D", 604_800),
            ("1M2W4D2h5m20s", 30 * 86_400 + 18 * 86_400 + 2 * 3600 + 5 * 60 + 20),
            ("20s5m", 320),
            ("1D1D", 2 * 86_400),
            ("1Y", 365 * 86_400),
            ("0D", 0),
        ] {
            assert_eq!(Interval::parse(text).map(Interval::seconds), Ok(seconds), "{text}");
        }
        for text in ["32", "", "d", "231I", "MM", "s", "-2h", "hello", "3q", "now", "2B", "2026-11-20"] {
            assert!(Interval::parse(text).unwrap_err().contains("write 3D or 1W2D4h5m20s"), "{text}");
        }
        assert!(Interval::parse("2W").unwrap() > Interval::parse("13D").unwrap());
    }

    #[test]
    fn backups_are_not_counted_where_a_time_is_needed() {
        let error = When::parse("2B", &now()).and_then(When::moment).unwrap_err();
        assert!(error.contains("'2B' counts backups"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "\\PC*|[0-9TZ:/ +-]{0,30}|[0-9smhDWMYB]{0,40}") {
            let _ = When::parse(&text, &now());
            let _ = Interval::parse(&text);
        }

        #[test]
        fn what_was_printed_is_read(seconds in -60_000_000_000i64..200_000_000_000) {
            let time = Timestamp::from_second(seconds).unwrap();
            prop_assert_eq!(moment(&time.to_string()).timestamp(), time);
            let local = time.to_zoned(now().time_zone().clone());
            let read = moment(&local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string());
            prop_assert_eq!(read.timestamp(), time);
        }
    }
}
