//! A sandbox as its user thinks of it: it has a name, ends, and may start again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Attachment, HealthStatus, Healthcheck, Limits, MIB, Outcome, SandboxSpec};

/// SIGTERM, what asks a command to end unless something else is said.
pub const SIGTERM: u8 = 15;

/// What was asked for, fixed when the sandbox is defined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// What runs. Its `name` is the one of [`Standing`].
    pub spec: SandboxSpec,
    /// The user's and the image's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The sandbox goes when its command has ended.
    #[serde(default)]
    pub remove: bool,
    /// When it starts again by itself.
    #[serde(default)]
    pub restart: Restart,
    /// The signal that asks its command to end.
    pub stop_signal: u8,
    /// Seconds from that signal to SIGKILL.
    pub stop_timeout_s: u32,
    /// Its standard input ends with the input of the first client that attaches.
    #[serde(default)]
    pub input_once: bool,
    /// How much of its output is kept.
    #[serde(default)]
    pub log: LogLimits,
    /// How its health is checked.
    #[serde(default)]
    pub health: Option<Healthcheck>,
    /// Root of the store that its volumes are in; `None` if it has none.
    #[serde(default)]
    pub store: Option<PathBuf>,
    /// When it was defined: nanoseconds since 1970.
    pub created_at_ns: u64,
}

/// When a sandbox starts again after its command has ended by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When it failed (its exit code was not 0), at most so many times; 0 is without end.
    OnFailure(u32),
    /// Always.
    Always,
    /// Always. (Without a daemon nothing starts after a reboot, so this does not differ from `Always`.)
    UnlessStopped,
}

/// Not a restart policy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Restart policy '{0}' is none of 'no', 'always', 'unless-stopped' and 'on-failure[:N]'")]
pub struct RestartError(String);

impl Restart {
    /// Whether a command that ended so, after this many restarts, starts again.
    pub fn wants(self, failed: bool, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => failed && (most == 0 || restarts < most),
            Self::Always | Self::UnlessStopped => true,
        }
    }

    /// Docker's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure(_) => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }

    /// How long to wait before the restart of this number (from 1): 0.1 s, doubled each time, at most a minute.
    pub fn pause(number: u32) -> Duration {
        let doubled = 100_u64.saturating_mul(1 << number.saturating_sub(1).min(16));
        Duration::from_millis(doubled.min(60_000))
    }
}

impl FromStr for Restart {
    type Err = RestartError;

    fn from_str(text: &str) -> Result<Self, RestartError> {
        match text.split_once(':') {
            None => match text {
                "no" | "" => Ok(Self::No),
                "always" => Ok(Self::Always),
                "unless-stopped" => Ok(Self::UnlessStopped),
                "on-failure" => Ok(Self::OnFailure(0)),
                _ => Err(RestartError(text.to_owned())),
            },
            Some(("on-failure", most)) => most.parse().map(Self::OnFailure).map_err(|_| RestartError(text.to_owned())),
            Some(_) => Err(RestartError(text.to_owned())),
        }
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnFailure(most) if *most > 0 => write!(f, "on-failure:{most}"),
            other => f.write_str(other.name()),
        }
    }
}

/// How much output is kept: at most `files` files of `file_bytes` bytes; the oldest goes when a new one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Files; 0 keeps no output at all.
    pub files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { file_bytes: 4 * MIB, files: 3 }
    }
}

/// Where a defined sandbox is in its life.
///
/// ```text
///          .--> Restarting --.
/// Created -+-> Running <-----'--> Exited -> Running ...
///          |      ^
///          |      v
///          |    Paused
///          `-----------------------^            any of them -> Removing
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Defined, never started.
    Created,
    /// Its command runs.
    Running,
    /// Its command is held.
    Paused,
    /// Its command has ended and starts again soon.
    Restarting,
    /// Its command has ended.
    Exited,
    /// It is being removed.
    Removing,
}

impl Status {
    /// Docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Removing => "removing",
        }
    }

    /// A keeper works for it.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }
}

/// What has become of a defined sandbox so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub status: Status,
    /// The keeper's process, while there is one.
    pub keeper: Option<u32>,
    /// The last start: nanoseconds since 1970.
    pub started_at_ns: Option<u64>,
    /// The last end.
    pub finished_at_ns: Option<u64>,
    /// How its command ended the last time.
    pub outcome: Option<Outcome>,
    /// How often it has started again by itself since its user started it.
    #[serde(default)]
    pub restarts: u32,
    /// Limits in place of those that it was defined with.
    #[serde(default)]
    pub limits: Option<Limits>,
    /// Restart policy in place of the one that it was defined with.
    #[serde(default)]
    pub restart: Option<Restart>,
    /// How it is connected while it runs; `None` without a network of its own.
    #[serde(default)]
    pub network: Option<Attachment>,
    /// What its health checks say; `None` without any, and before its first start.
    #[serde(default)]
    pub health: Option<HealthStatus>,
}

impl Standing {
    /// Of a sandbox that has just been defined.
    pub fn new(name: String) -> Self {
        Self {
            name,
            status: Status::Created,
            keeper: None,
            started_at_ns: None,
            finished_at_ns: None,
            outcome: None,
            restarts: 0,
            limits: None,
            restart: None,
            network: None,
            health: None,
        }
    }

    /// Its command has ended.
    pub fn end(&mut self, status: Status, outcome: Outcome, at_ns: u64) {
        self.status = status;
        self.finished_at_ns = Some(at_ns);
        self.outcome = Some(outcome);
        self.network = None;
        self.unchecked();
    }

    /// Nothing checks its health any more.
    pub fn unchecked(&mut self) {
        self.health = self.health.map(|_| HealthStatus::Unhealthy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies_read_as_docker_reads_them() {
        for (text, policy) in [
            ("no", Restart::No),
            ("always", Restart::Always),
            ("unless-stopped", Restart::UnlessStopped),
            ("on-failure", Restart::OnFailure(0)),
            ("on-failure:3", Restart::OnFailure(3)),
        ] {
            assert_eq!(text.parse(), Ok(policy));
        }
        for bad in ["yes", "on-failure:", "on-failure:x", "always:3", "on-failure:-1"] {
            assert!(bad.parse::<Restart>().is_err(), "{bad}");
        }
    }

    #[test]
    fn failures_restart_as_often_as_allowed() {
        assert!(Restart::OnFailure(2).wants(true, 1) && !Restart::OnFailure(2).wants(true, 2));
        assert!(!Restart::OnFailure(0).wants(false, 0) && Restart::OnFailure(0).wants(true, 1000));
        assert!(Restart::Always.wants(false, 9) && !Restart::No.wants(true, 0));
        let pauses = [1, 2, 3, 10, 11, u32::MAX].map(|n| Restart::pause(n).as_millis());
        assert_eq!(pauses, [100, 200, 400, 51_200, 60_000, 60_000]);
    }
}
