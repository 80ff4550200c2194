//! The same image and command in several arms, measured: one command, same digest, same limits, same meters outside the sandbox.
//!
//! ```text
//! plan -> controls -> timed rounds -> memory rounds -> density -> reach -> record -> table, JSON, page
//!              \------------\-------------\-----------\-- Runner (spawn: `duplex run` children as a user starts them)
//! ```
//!
//! Nothing here knows an engine: an arm is words on a command line. What an arm cannot measure is absent, never zero.

mod agree;
mod applications;
mod baseline;
mod break_even;
mod control;
mod density;
mod drive;
mod facts;
#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) mod fuzz;
mod measures;
mod meters;
mod plan;
mod probes;
mod random;
mod reach;
mod record;
mod report;
mod runner;
mod schedule;
mod spawn;
mod stats;
mod table;
mod venv;
mod verdict;
mod words;

pub use agree::{Captured, Disagreement, Stream};
pub use applications::{APPLICATIONS, Application, WorkloadError, application};
pub use baseline::{Against, BaselineError, Change, Fate, against, fits, read, summary};
pub use control::{Control, Evidence};
pub use density::{Crowded, Density, Figures, Stopped, Sweep};
pub use drive::{CompareError, Given, MONITOR, Step, compare};
pub use facts::{HostFacts, host_facts};
pub use measures::Measured;
pub use meters::MemorySample;
pub use plan::{Arm, ArmError, Plan, Until, arms, find_runtimes};
pub use probes::{Probe, ProbesError, Reached};
pub use reach::{Counts, Reach, SetUserId};
pub use record::{ArmRecord, Build, Comparison, Ended, MemoryRun, Record, Run, SCHEMA, Summary};
pub use report::{ReportError, report};
pub use runner::{Crowd, Look, Observation, Runner, RunnerError, Trace};
pub use schedule::turns;
pub use spawn::{Interrupt, Spawner};
pub use stats::{Ratio, Spread};
pub use table::table;
pub use venv::{Python, VenvError, bytes_on_disk, check_entrypoint, find_venvs};
pub use verdict::Verdict;
