//! Health checks: a command that says from time to time whether a sandbox does its work. Fields, defaults and states are Docker's.
//!
//! ```text
//!            a check succeeds
//! Starting ------------------> Healthy
//!    |                          |    ^
//!    | `retries` failures       v    | one success
//!    `-----------------------> Unhealthy      and so it is while nothing checks: paused, or ended
//! ```

use std::fmt::{self, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Time between the end of a check and the next one.
const INTERVAL: Duration = Duration::from_secs(30);
/// Time that a check may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Time between checks of a sandbox that starts.
const START_INTERVAL: Duration = Duration::from_secs(5);
/// Failures in a row that make a sandbox unhealthy.
const RETRIES: u32 = 3;

/// Docker's shortest time.
pub const LEAST_HEALTH_TIME: Duration = Duration::from_millis(1);
/// A longer time than this is this: nothing that an image says is added to a clock as it is.
const MOST_TIME: Duration = Duration::from_secs(365 * 86400);

/// Checks that are remembered.
const MOST_LOGGED: usize = 5;

/// How a sandbox's health is checked. A number that is 0 is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// `["CMD", program, argument ...]`, `["CMD-SHELL", script]` or `["NONE"]`; empty is none too.
    pub test: Vec<String>,
    /// What runs a `CMD-SHELL`; empty is `/bin/sh -c`.
    #[serde(default)]
    pub shell: Vec<String>,
    /// Nanoseconds from the end of a check to the next one.
    pub interval_ns: u64,
    /// Nanoseconds that a check may take.
    pub timeout_ns: u64,
    /// Nanoseconds from the start in which failures do not count.
    pub start_period_ns: u64,
    /// Nanoseconds between checks in that time.
    pub start_interval_ns: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
}

impl Healthcheck {
    /// With what this one does not say taken from the image's.
    #[must_use]
    pub fn over(self, image: &Self) -> Self {
        let or = |own: u64, other: u64| if own == 0 { other } else { own };
        Self {
            test: if self.test.is_empty() { image.test.clone() } else { self.test },
            shell: self.shell,
            interval_ns: or(self.interval_ns, image.interval_ns),
            timeout_ns: or(self.timeout_ns, image.timeout_ns),
            start_period_ns: or(self.start_period_ns, image.start_period_ns),
            start_interval_ns: or(self.start_interval_ns, image.start_interval_ns),
            retries: if self.retries == 0 { image.retries } else { self.retries },
        }
    }

    /// The command; `None` if nothing is to be checked, or in a way that is not known.
    pub fn command(&self) -> Option<Vec<String>> {
        let (kind, words) = self.test.split_first()?;
        if words.is_empty() {
            return None;
        }
        match kind.as_str() {
            "CMD" => Some(words.to_vec()),
            "CMD-SHELL" if self.shell.is_empty() => Some([&["/bin/sh".to_owned(), "-c".to_owned()], words].concat()),
            "CMD-SHELL" => Some([&self.shell, words].concat()),
            _ => None,
        }
    }

    /// How long a check may take.
    pub fn timeout(&self) -> Duration {
        time(self.timeout_ns, TIMEOUT)
    }

    /// How long to wait before the next check of a sandbox that was started so long ago and is in this state.
    pub fn pause(&self, age: Duration, status: HealthStatus) -> Duration {
        if status == HealthStatus::Starting && self.is_early(age) {
            time(self.start_interval_ns, START_INTERVAL)
        } else {
            time(self.interval_ns, INTERVAL)
        }
    }

    /// Whether failures do not count yet, so long after the start.
    fn is_early(&self, age: Duration) -> bool {
        age < time(self.start_period_ns, Duration::ZERO)
    }

    fn retries(&self) -> u32 {
        if self.retries == 0 { RETRIES } else { self.retries }
    }
}

fn time(ns: u64, default: Duration) -> Duration {
    if ns == 0 { default } else { Duration::from_nanos(ns).clamp(LEAST_HEALTH_TIME, MOST_TIME) }
}

/// What is known of a sandbox's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No check has succeeded yet, and not too many have failed.
    Starting,
    /// The last checks succeeded, or not too many failed since.
    Healthy,
    /// Too many failed, or nothing is checked: it is paused or has ended.
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// The checks of a sandbox so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthLog {
    /// Failures since the last success, those of the start period left out.
    pub failing_streak: u32,
    /// The last checks, the oldest first.
    pub checks: Vec<Checked>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// When it began: nanoseconds since 1970.
    pub start_ns: u64,
    /// When it had ended.
    pub end_ns: u64,
    /// Its command's exit code; -1 if it was not executed or took too long.
    pub exit_code: i32,
    /// What it wrote, or why it has no exit code.
    pub output: String,
}

impl HealthLog {
    /// Remembers a check that began so long after the start: what the sandbox is now, if it was `status`.
    pub fn note(&mut self, checked: Checked, check: &Healthcheck, age: Duration, status: HealthStatus) -> HealthStatus {
        let success = checked.exit_code == 0;
        let surplus = self.checks.len().saturating_sub(MOST_LOGGED - 1);
        self.checks.drain(..surplus);
        self.checks.push(checked);
        if success {
            self.failing_streak = 0;
            return HealthStatus::Healthy;
        }
        if status == HealthStatus::Starting && check.is_early(age) {
            return status;
        }
        self.failing_streak = self.failing_streak.saturating_add(1);
        if self.failing_streak >= check.retries() { HealthStatus::Unhealthy } else { status }
    }
}

/// A time as Go, and so Docker, writes it: `1m30s`, `1.5s`, `250ms`.
#[derive(Clone, Copy, Debug)]
pub struct GoTime(pub Duration);

impl fmt::Display for GoTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        if seconds == 0 && nanos != 0 {
            let (unit, digits) = match nanos {
                1_000_000.. => ("ms", 6),
                1000.. => ("µs", 3),
                _ => ("ns", 0),
            };
            return write!(f, "{}{unit}", decimal(u64::from(nanos), digits));
        }
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        let mut text = String::new();
        if hours > 0 {
            write!(text, "{hours}h")?;
        }
        if seconds >= 60 {
            write!(text, "{minutes}m")?;
        }
        let rest = (seconds % 60).saturating_mul(1_000_000_000).saturating_add(u64::from(nanos));
        write!(f, "{text}{}s", decimal(rest, 9))
    }
}

/// A number with so many digits behind the point, those at its end that say nothing left out.
fn decimal(number: u64, digits: usize) -> String {
    let whole = format!("{number:0>width$}", width = digits + 1);
    let (whole, part) = whole.split_at(whole.len() - digits);
    let part = part.trim_end_matches('0');
    if part.is_empty() { whole.to_owned() } else { format!("{whole}.{part}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(test: &[&str]) -> Healthcheck {
        Healthcheck { test: test.iter().map(|w| (*w).to_owned()).collect(), ..Healthcheck::default() }
    }

    fn checked(exit_code: i32) -> Checked {
        Checked { start_ns: 1, end_ns: 2, exit_code, output: String::new() }
    }

    #[test]
    fn a_check_is_a_command_or_a_script() {
        assert_eq!(check(&["CMD", "a", "b c"]).command().unwrap(), ["a", "b c"]);
        assert_eq!(check(&["CMD-SHELL", "a || b"]).command().unwrap(), ["/bin/sh", "-c", "a || b"]);
        let bash = Healthcheck { shell: vec!["bash".into(), "-ec".into()], ..check(&["CMD-SHELL", "a"]) };
        assert_eq!(bash.command().unwrap(), ["bash", "-ec", "a"]);
        for none in [&["NONE"][..], &[], &["CMD"], &["CMD-SHELL"], &["HTTP", "x"]] {
            assert_eq!(check(none).command(), None, "{none:?}");
        }
    }

    #[test]
    fn what_is_not_said_is_the_images() {
        let image = Healthcheck { interval_ns: 1, timeout_ns: 2, retries: 3, ..check(&["CMD", "image"]) };
        let own = Healthcheck { timeout_ns: 20, start_period_ns: 30, start_interval_ns: 40, ..Healthcheck::default() };
        let merged = own.over(&image);
        assert_eq!(merged.test, ["CMD", "image"]);
        assert_eq!((merged.interval_ns, merged.timeout_ns, merged.retries), (1, 20, 3));
        assert_eq!((merged.start_period_ns, merged.start_interval_ns), (30, 40));
        assert_eq!(check(&["NONE"]).over(&image).command(), None);
    }

    #[test]
    fn defaults_are_dockers_and_every_number_is_bounded() {
        let seconds = Duration::from_secs;
        let plain = check(&["CMD", "x"]);
        assert_eq!(plain.timeout(), seconds(30));
        assert_eq!(plain.pause(Duration::ZERO, HealthStatus::Starting), seconds(30));
        let patient = Healthcheck { start_period_ns: 60_000_000_000, interval_ns: u64::MAX, timeout_ns: 1, ..plain };
        assert_eq!(patient.pause(seconds(59), HealthStatus::Starting), seconds(5));
        assert_eq!(patient.pause(seconds(59), HealthStatus::Healthy), MOST_TIME);
        assert_eq!(patient.pause(seconds(60), HealthStatus::Starting), MOST_TIME);
        assert_eq!(patient.timeout(), LEAST_HEALTH_TIME);
    }

    #[test]
    fn failures_in_a_row_make_unhealthy_and_one_success_mends() {
        let (check, mut log) = (Healthcheck { retries: 2, ..check(&["CMD", "x"]) }, HealthLog::default());
        let mut status = HealthStatus::Starting;
        for (code, expected, streak) in [
            (1, HealthStatus::Starting, 1),
            (0, HealthStatus::Healthy, 0),
            (-1, HealthStatus::Healthy, 1),
            (7, HealthStatus::Unhealthy, 2),
            (7, HealthStatus::Unhealthy, 3),
            (0, HealthStatus::Healthy, 0),
        ] {
            status = log.note(checked(code), &check, Duration::ZERO, status);
            assert_eq!((status, log.failing_streak), (expected, streak));
        }
        assert_eq!(log.checks.iter().map(|c| c.exit_code).collect::<Vec<_>>(), [0, -1, 7, 7, 0], "the last five");
    }

    #[test]
    fn failures_of_the_start_do_not_count_until_a_success() {
        let check = Healthcheck { retries: 1, start_period_ns: 10_000_000_000, ..check(&["CMD", "x"]) };
        let (mut log, early) = (HealthLog::default(), Duration::from_secs(9));
        assert_eq!(log.note(checked(1), &check, early, HealthStatus::Starting), HealthStatus::Starting);
        assert_eq!(log.failing_streak, 0);
        assert_eq!(log.note(checked(0), &check, early, HealthStatus::Starting), HealthStatus::Healthy);
        assert_eq!(log.note(checked(1), &check, early, HealthStatus::Healthy), HealthStatus::Unhealthy);
        let late = Duration::from_secs(10);
        assert_eq!(
            HealthLog::default().note(checked(1), &check, late, HealthStatus::Starting),
            HealthStatus::Unhealthy
        );
    }

    #[test]
    fn times_are_written_as_go_writes_them() {
        for (ms, text) in
            [(0, "0s"), (250, "250ms"), (1000, "1s"), (1500, "1.5s"), (90_000, "1m30s"), (3_600_000, "1h0m0s")]
        {
            assert_eq!(GoTime(Duration::from_millis(ms)).to_string(), text);
        }
        assert_eq!(GoTime(Duration::from_nanos(1_500)).to_string(), "1.5µs");
        assert_eq!(GoTime(Duration::from_nanos(7)).to_string(), "7ns");
    }
}
