//! Times as people write and read them.

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};

/// Not a moment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' is not a time: write 2026-01-31T12:00:00Z, 2026-01-31, seconds since 1970, or a time ago such as 90s or 1h30m"
)]
pub(crate) struct TimeError(String);

const SECOND: u64 = 1_000_000_000;

/// Nanoseconds since 1970 as RFC 3339 in UTC, as Docker's logs have it.
pub(crate) fn rfc3339(at_ns: u64) -> String {
    utc(at_ns).to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// The same in the words of `docker ps`.
pub(crate) fn plain(at_ns: u64) -> String {
    utc(at_ns).format("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()
}

fn utc(at_ns: u64) -> DateTime<Utc> {
    DateTime::from_timestamp_nanos(i64::try_from(at_ns).unwrap_or(i64::MAX))
}

/// The moment that a text means, in nanoseconds since 1970; `now` is what a time ago counts from.
pub(crate) fn moment(text: &str, now: u64) -> Result<u64, TimeError> {
    let nanos = |time: DateTime<Utc>| time.timestamp_nanos_opt().and_then(|n| u64::try_from(n).ok());
    let absolute = || {
        let zoned = DateTime::parse_from_rfc3339(text).map(|t| t.to_utc());
        let local = || text.parse::<NaiveDateTime>().map(|t| t.and_utc());
        let day = || text.parse::<NaiveDate>().map(|d| d.and_time(chrono::NaiveTime::MIN).and_utc());
        zoned.or_else(|_| local()).or_else(|_| day()).ok().and_then(nanos)
    };
    let found = seconds(text).or_else(|| Some(now.saturating_sub(duration(text)?))).or_else(absolute);
    found.ok_or_else(|| TimeError(text.to_owned()))
}

/// `1700000000` or `1700000000.123`.
fn seconds(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 9 {
        return None;
    }
    let nanos: u64 = format!("{part:0<9}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(SECOND)?.checked_add(nanos)
}

/// `90s`, `1h30m`, `1.5s`: Go's durations without a sign. What is less than a nanosecond is left out.
pub(crate) fn duration(text: &str) -> Option<u64> {
    let (mut rest, mut total) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, behind) = rest.split_at_checked(digits)?;
        let letters = behind.bytes().take_while(|b| b.is_ascii_alphabetic()).count();
        let (unit, behind) = behind.split_at_checked(letters)?;
        let unit = match unit {
            "ns" => 1,
            "us" => 1000,
            "ms" => 1_000_000,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3600 * SECOND,
            _ => return None,
        };
        total = total.checked_add(scaled(number, unit)?)?;
        rest = behind;
    }
    (!text.is_empty()).then_some(total)
}

/// A decimal number of units.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && part.is_empty()) || part.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // More digits than these are less than a nanosecond of any unit.
    let part: u128 = format!("{part:0<15}").get(..15)?.parse().ok()?;
    let part = part.checked_mul(u128::from(unit))? / 1_000_000_000_000_000;
    whole.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
}

/// A stretch of time in Docker's words.
pub(crate) fn span(ns: u64) -> String {
    let seconds = ns / SECOND;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        3600..7200 => "About an hour".to_owned(),
        7200..172_800 => format!("{hours} hours"),
        172_800..1_209_600 => format!("{} days", hours / 24),
        1_209_600..5_184_000 => format!("{} weeks", hours / 24 / 7),
        5_184_000..63_072_000 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_every_form() {
        let now = 1_700_000_000 * SECOND;
        for (text, expected) in [
            ("1699999990", now - 10 * SECOND),
            ("1699999990.25", now - 10 * SECOND + SECOND / 4),
            ("10s", now - 10 * SECOND),
            ("1h30m", now - 5400 * SECOND),
            ("500ms", now - SECOND / 2),
            ("2023-11-14T22:13:20Z", now),
            ("2023-11-14T23:13:20+01:00", now),
            ("2023-11-14T22:13:20", now),
            ("2023-11-14", now - (22 * 3600 + 13 * 60 + 20) * SECOND),
        ] {
            assert_eq!(moment(text, now), Ok(expected), "{text}");
        }
        for bad in ["", "now", "-5", "10", "1x", "h", "2023-13-01", "99999999999999999999"] {
            assert_eq!(moment(bad, now).is_ok(), bad == "10", "{bad}");
        }
        assert_eq!(rfc3339(now + 5), "2023-11-14T22:13:20.000000005Z");
        assert_eq!(plain(now), "2023-11-14 22:13:20 +0000 UTC");
    }

    #[test]
    fn durations_are_gos() {
        for (text, ns) in [
            ("90s", 90 * SECOND),
            ("1h30m", 5400 * SECOND),
            ("1.5s", SECOND * 3 / 2),
            (".25ms", 250_000),
            ("1.h", 3600 * SECOND),
        ] {
            assert_eq!(duration(text), Some(ns), "{text}");
        }
        assert_eq!(duration("1.99999999999999999999s"), Some(2 * SECOND - 1));
        for bad in ["", "1", ".s", "1.2.3s", "-1s", "1e3s", "1d", "s", "9999999999h"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn spans_are_told_in_dockers_words() {
        let told =
            [0, 1, 59, 60, 180, 3600, 7200, 200_000, 1_300_000, 6_000_000, 100_000_000].map(|s| span(s * SECOND));
        let words = [
            "Less than a second",
            "1 second",
            "59 seconds",
            "About a minute",
            "3 minutes",
            "About an hour",
            "2 hours",
            "2 days",
            "2 weeks",
            "2 months",
            "3 years",
        ];
        assert_eq!(told, words);
    }
}
