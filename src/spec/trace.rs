//! The moments of a start, all taken on the host with CLOCK_MONOTONIC.

use serde::{Deserialize, Serialize};

/// A point in the life of one `duplex run`, in the order in which they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Somebody called exec on `duplex run` (known to the caller only).
    Exec,
    /// Its `main` began.
    Main,
    /// The image is resolved and its pieces are open.
    ImageReady,
    /// The machine is about to run its first instruction (microVM), or namespaces, mounts and cgroup stand (container).
    MachineReady,
    /// The agent spoke (microVM only): the guest kernel is up.
    AgentReady,
    /// The command was executed.
    Started,
    /// The first byte of its output arrived (known to the caller only).
    FirstByte,
    /// The command ended.
    Exited,
    /// All resources are released.
    Cleaned,
    /// The `duplex run` process is gone (known to the caller only).
    Gone,
}

/// A stretch between two moments, named for what the time goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Our own program: exec to main.
    Process,
    /// Finding and opening the image.
    Image,
    /// Building the machine, or the namespaces.
    Setup,
    /// The guest kernel (microVM only).
    Kernel,
    /// The agent: mounts and exec (microVM), or the runtime's exec (container).
    Launch,
    /// From the command's exec to the first byte of its output.
    FirstByte,
    /// From its first byte to its end.
    Work,
    /// From its end until nothing is left.
    Exit,
}

impl Phase {
    /// All phases in order, with the moments at which they end; each begins where the one before ended.
    pub const ALL: [(Self, Moment); 8] = [
        (Self::Process, Moment::Main),
        (Self::Image, Moment::ImageReady),
        (Self::Setup, Moment::MachineReady),
        (Self::Kernel, Moment::AgentReady),
        (Self::Launch, Moment::Started),
        (Self::FirstByte, Moment::FirstByte),
        (Self::Work, Moment::Exited),
        (Self::Exit, Moment::Gone),
    ];

    /// The phase's name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Image => "image",
            Self::Setup => "setup",
            Self::Kernel => "kernel",
            Self::Launch => "launch",
            Self::FirstByte => "first_byte",
            Self::Work => "work",
            Self::Exit => "exit",
        }
    }
}

/// Moments with their times in nanoseconds of CLOCK_MONOTONIC, in the order in which they were noted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moments(pub Vec<(Moment, u64)>);

impl Moments {
    /// Notes a moment. A moment noted twice keeps its first time.
    pub fn note(&mut self, moment: Moment, at_ns: u64) {
        if self.at(moment).is_none() {
            self.0.push((moment, at_ns));
        }
    }

    /// When the moment was, if it was.
    pub fn at(&self, moment: Moment) -> Option<u64> {
        self.0.iter().find(|(m, _)| *m == moment).map(|(_, at)| *at)
    }

    /// Length of every phase that happened, in milliseconds. A phase whose end was never noted is left out and its time
    /// belongs to the next one; a moment noted before the phase's begin gives a phase of length 0.
    pub fn phases_ms(&self) -> Vec<(Phase, f64)> {
        let Some(mut begin) = self.at(Moment::Exec) else { return Vec::new() };
        let mut phases = Vec::new();
        for (phase, end) in Phase::ALL {
            if let Some(end) = self.at(end) {
                let length = end.saturating_sub(begin);
                #[allow(clippy::cast_precision_loss, reason = "2^53 ns is 104 days")]
                phases.push((phase, length as f64 / 1e6));
                begin = begin.max(end);
            }
        }
        phases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_fill_the_whole_run() {
        let mut moments = Moments::default();
        for (n, moment) in [Moment::Exec, Moment::Main, Moment::ImageReady, Moment::MachineReady, Moment::Started]
            .into_iter()
            .enumerate()
        {
            moments.note(moment, u64::try_from(n).unwrap() * 1_000_000);
        }
        moments.note(Moment::Gone, 10_000_000);
        let phases = moments.phases_ms();
        assert!(!phases.iter().any(|(p, _)| *p == Phase::Kernel), "a container has no kernel phase");
        assert!((phases.iter().map(|(_, ms)| ms).sum::<f64>() - 10.0).abs() < 1e-9);
    }
}
