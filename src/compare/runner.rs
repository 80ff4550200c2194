//! How a comparison runs an arm, whoever does it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::agree::Deed;
use super::control::Evidence;
use super::measures::Measured;
use super::meters::MemorySample;
use super::plan::Arm;
use super::probes::{Probe, ProbesError};
use super::reach::Reach;
use crate::spec::{Digest, Moments, Outcome, Usage};

/// What `duplex run --trace FILE` writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The image that ran.
    pub image: Digest,
    /// The moments of the run that it saw itself.
    pub moments: Moments,
    /// How it ended; absent when it did not come that far.
    pub outcome: Option<Outcome>,
    /// What the sandbox's cgroup had counted at its end.
    pub usage: Usage,
}

/// One run of the plan's command.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// What it did.
    pub deed: Deed,
    /// The child's moments and the observer's, together.
    pub moments: Moments,
    /// The image that ran.
    pub image: Digest,
    /// How the sandbox ended, in its own words.
    pub outcome: Option<Outcome>,
    /// What its cgroup counted.
    pub usage: Usage,
    /// What the command measured itself, if it is there to measure.
    pub measured: BTreeMap<String, Measured>,
    /// The highest memory sample, where sampling was asked for and possible.
    pub peak: Option<MemorySample>,
}

/// Runs arms. The real one is [`Spawner`](super::Spawner).
pub trait Runner {
    /// Runs the plan's image and command once; samples memory all the while if `sample` is set.
    fn run(&mut self, arm: &Arm, sample: bool) -> Result<Observation, RunnerError>;

    /// Memory of a sandbox that waits for input and does nothing.
    fn idle(&mut self, arm: &Arm) -> Result<Option<MemorySample>, RunnerError>;

    /// Room for idle sandboxes of this arm; none lives yet.
    fn crowd(&mut self, arm: &Arm) -> Box<dyn Crowd + '_>;

    /// What a sandbox of this arm lets its programs reach, and learn of the host.
    fn probes(&mut self, arm: &Arm) -> Result<Vec<Probe>, RunnerError>;

    /// What a sandbox of this arm reaches of the host while it runs the plan's command once more.
    fn reach(&mut self, arm: &Arm) -> Result<Reach, RunnerError>;

    /// What a sandbox of this arm sees of itself and the host of it.
    fn evidence(&mut self, arm: &Arm) -> Result<Evidence, RunnerError>;
}

/// Idle sandboxes of one arm. The real ones are those of [`Spawner`](super::Spawner). Whoever drops it ends them all.
pub trait Crowd {
    /// Starts one more and waits until it is up.
    fn add(&mut self) -> Result<(), RunnerError>;

    /// What all of them use, and what the host has left, as soon as that is calm or does not become so.
    fn settle(&mut self) -> Result<Look, RunnerError>;

    /// MemAvailable of the host in bytes, now.
    fn available(&mut self) -> Option<u64>;

    /// Sends a line to each of them, one after another, some times over: how long each answer took.
    fn ping(&mut self) -> Result<Vec<Duration>, RunnerError>;

    /// Ends all of them: how many did not end by themselves with exit code 0.
    fn end(&mut self) -> u32;
}

/// Memory at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Of all sandboxes together.
    pub memory: Option<MemorySample>,
    /// MemAvailable of the host in bytes.
    pub available_bytes: Option<u64>,
}

/// Why an arm could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The program did not start.
    #[error("Cannot start '{}'", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its pipes or its end could not be watched.
    #[error("Cannot {operation} of 'duplex run'")]
    Watch {
        /// What failed.
        operation: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It took too long and was ended.
    #[error("The run did not end within {seconds} s and was stopped: allow it more time with --timeout")]
    Timeout {
        /// The limit in seconds.
        seconds: u64,
    },
    /// It ended, and something still holds its output.
    #[error("The run ended with exit code {exit_code} but left a process behind that holds its output")]
    Lingering {
        /// The exit code.
        exit_code: u8,
    },
    /// Duplex itself failed, not the command.
    #[error("'duplex run' failed with exit code {exit_code}: {stderr}")]
    Failed {
        /// The exit code.
        exit_code: u8,
        /// What it said.
        stderr: String,
    },
    /// The measuring programs said something else.
    #[error("The programs that measure did not say how long they took (exit code {exit_code}); they said \"{said}\"")]
    NoMeasure {
        /// The exit code.
        exit_code: u8,
        /// The beginning of it.
        said: String,
    },
    /// The program that probes said something else.
    #[error("The probes did not say what they found (exit code {exit_code}); they said \"{said}\"")]
    NoProbes {
        /// The exit code.
        exit_code: u8,
        /// The end of it.
        said: String,
        /// What is wrong with it.
        #[source]
        source: ProbesError,
    },
    /// The idle sandbox did not answer.
    #[error("The idle sandbox did not echo what it was sent within {seconds} s; it said \"{said}\"")]
    NoEcho {
        /// The limit in seconds.
        seconds: u64,
        /// The beginning of what came instead.
        said: String,
    },
    /// One of many idle sandboxes did not answer.
    #[error("Idle sandbox {number} did not answer a ping within {seconds} s, or has ended")]
    Silent {
        /// Which, in the order of their starts, from 1.
        number: usize,
        /// The limit in seconds.
        seconds: u64,
    },
    /// The file through which runs tell their moments.
    #[error("Cannot use the file for the moments of runs")]
    Scratch(#[source] std::io::Error),
    /// Somebody asked for the end.
    #[error("Interrupted")]
    Interrupted,
}
