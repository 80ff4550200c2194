//! What happens in a sandbox beside its command: further processes, questions about it and their answers.

use serde::{Deserialize, Serialize};

use crate::{Connected, ProcessEntry, ProcessSpec, Transfer};

/// What a session does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Runs a program as the sandbox's own processes run.
    Run {
        /// The program.
        process: ProcessSpec,
        /// Host name, for `HOSTNAME`.
        hostname: String,
    },
    /// Copies files through its standard streams, without a program of the image's.
    Copy(Transfer),
}

impl Task {
    /// Its streams.
    pub fn connected(&self) -> Connected {
        match self {
            Self::Run { process, .. } => process.connected(),
            Self::Copy(transfer) => Connected { stdin: matches!(transfer, Transfer::In { .. }), terminal: false },
        }
    }
}

/// What the host asks about a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Its processes.
    Processes,
    /// What it uses.
    Counters,
    /// Change these limits of its command, and answer [`Answer::Done`].
    Limit {
        /// Most memory in bytes.
        memory_bytes: Option<u64>,
        /// Most processes; 0 is no limit.
        pids: Option<u32>,
    },
    /// Hold all its processes where they are, and answer [`Answer::Done`] when they stand.
    Hold,
    /// Let them go on, and answer [`Answer::Done`].
    Release,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// At most [`MOST_PROCESSES`] processes.
    Processes(Vec<ProcessEntry>),
    /// What it uses.
    Counters(Counters),
    /// It is done.
    Done,
}

/// Most processes that are listed; with the longest of commands they fit one message.
pub const MOST_PROCESSES: usize = 700;

/// What a sandbox uses and has used since its start. What cannot be measured is `None`, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Processor time, user and system, in microseconds.
    pub cpu_usec: Option<u64>,
    /// Memory in bytes, without file content that the kernel can drop at once (`memory.current` less `inactive_file`, as Docker counts).
    pub memory_bytes: Option<u64>,
    /// Most memory that it may use, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes read from block devices.
    pub block_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub block_written_bytes: Option<u64>,
    /// Bytes received by its network interfaces, loopback not counted. `None` without an interface.
    pub net_received_bytes: Option<u64>,
    /// Bytes sent by them.
    pub net_sent_bytes: Option<u64>,
}

impl Counters {
    /// From the files of a cgroup (cgroup-v2.rst): `read` gives a file's content by its name, `None` if there is none.
    pub fn of_cgroup(read: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let keyed = |name: &str, key: &str| value(&read(name)?, key);
        let memory = number("memory.current");
        let droppable = keyed("memory.stat", "inactive_file").unwrap_or(0);
        let io = read("io.stat");
        let io = |key: &str| io.as_deref().map(|text| sum_of_pairs(text, key));
        Self {
            cpu_usec: keyed("cpu.stat", "usage_usec"),
            memory_bytes: memory.map(|bytes| bytes.saturating_sub(droppable)),
            memory_limit_bytes: number("memory.max"),
            pids: number("pids.current"),
            block_read_bytes: io("rbytes="),
            block_written_bytes: io("wbytes="),
            ..Self::default()
        }
    }

    /// With the bytes of the network interfaces of a `/proc/net/dev` (proc(5)).
    #[must_use]
    pub fn with_network(self, dev: &str) -> Self {
        let interfaces = dev.lines().filter_map(|line| {
            let (name, fields) = line.split_once(':')?;
            let mut fields = fields.split_whitespace().map(str::parse::<u64>);
            let (received, sent) = (fields.next()?.ok()?, fields.nth(7)?.ok()?);
            (name.trim() != "lo").then_some((received, sent))
        });
        let sum = interfaces.fold(None, |sum: Option<(u64, u64)>, (received, sent)| {
            let (r, s) = sum.unwrap_or_default();
            Some((r.saturating_add(received), s.saturating_add(sent)))
        });
        Self { net_received_bytes: sum.map(|s| s.0), net_sent_bytes: sum.map(|s| s.1), ..self }
    }
}

/// The number behind a key in a flat keyed file.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '))?.trim().parse().ok()
}

/// The sum of all `key=number` of a nested keyed file.
fn sum_of_pairs(text: &str, key: &str) -> u64 {
    let numbers = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
    numbers.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_come_from_the_kernels_files() {
        let read = |name: &str| {
            let text = match name {
                "cpu.stat" => "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
                "memory.current" => "10000\n",
                "memory.stat" => "anon 5\nfile 7\ninactive_anon 1\ninactive_file 4000\n",
                "memory.max" => "max\n",
                "pids.current" => "3\n",
                "io.stat" => "254:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n7:1 rbytes=11 wbytes=0\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let counters = Counters::of_cgroup(read);
        let expected = Counters {
            cpu_usec: Some(1500),
            memory_bytes: Some(6000),
            pids: Some(3),
            block_read_bytes: Some(111),
            block_written_bytes: Some(20),
            ..Counters::default()
        };
        assert_eq!(counters, expected);
        assert_eq!(Counters::of_cgroup(|_| None), Counters::default());
        assert_eq!(Counters::of_cgroup(|_| Some("\u{0}x 99999999999999999999".into())).cpu_usec, None);
    }

    #[test]
    fn only_real_interfaces_count() {
        let head = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n";
        let lo = "    lo:     480       6    0    0    0     0          0         0      480       6    0    0    0     0       0          0\n";
        let eth = "  eth0: 1000 6 0 0 0 0 0 0 200 6 0 0 0 0 0 0\n  eth1:1 6 0 0 0 0 0 0 2 6 0 0 0 0 0 0\n";
        let none = Counters::default().with_network(&format!("{head}{lo}"));
        assert_eq!((none.net_received_bytes, none.net_sent_bytes), (None, None));
        let both = Counters::default().with_network(&format!("{head}{lo}{eth}"));
        assert_eq!((both.net_received_bytes, both.net_sent_bytes), (Some(1001), Some(202)));
    }
}
