//! `duplex compare`.

use std::path::PathBuf;

use clap::Args;

use super::Format;
use crate::spec::{Cpus, MemorySize};

/// Most idle sandboxes of an arm: each takes three of the 1,024 files that a process usually may have open.
const MOST_IDLE: i64 = 300;

/// Run one image both ways, taking turns, and measure what the difference costs
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Exit codes: 0 measured, 1 failed, 2 refused because the arms did not do the same, 3 worse than the baseline, 125 wrong usage."
)]
pub(crate) struct CompareArgs {
    /// One side: [NAME=]microvm|qemu|container|container-hardened|process|venv:/PATH|crun|runc|runsc|youki|runtime:/PATH[,cold][,kernel=FILE][,read-only]; twice or more. The first is the baseline [default: container, microvm, and one that boots each time]. 'process' isolates nothing: the command runs on this host, in its image and the same limits; 'venv:/PATH' isolates nothing either: the command runs on this host as it is, with that Python virtual environment's programs first; crun and so on are OCI runtimes in place of the built-in one; 'qemu' is the microVM by QEMU in place of Duplex's monitor
    #[arg(long = "arm", value_name = "ARM")]
    pub arms: Vec<String>,
    /// Measure with a program of the embedded image, such as syscall, fork-exec or tcp-latency, or with all of them: suite. Or with an application, one at a time, whose image 'make images' builds: pgbench, django-api, redis, python-start, compile
    #[arg(long = "workload", value_name = "NAME", value_delimiter = ',', conflicts_with_all = ["image", "command"])]
    pub workloads: Vec<String>,
    /// Measured rounds, each runs every arm once; with --precision or --budget the least number [default: 10; 1 of an application, and then on until --budget or --precision]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub runs: Option<u32>,
    /// Rounds before them that are kept but not counted: a microVM's first leaves a template, its second a list of what a start touches [default: 2; 1 of an application]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub warmup: Option<u32>,
    /// Rounds that measure memory, apart from the timed ones [default: 3; 1 of an application]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub memory_runs: Option<u32>,
    /// Try in every arm the first steps of known ways out, and what can be learnt of the host; nothing is harmed
    #[arg(long)]
    pub probes: bool,
    /// Run the command once more in every arm, untimed, and count what it reaches of the host: system calls and a virtual machine's exits, what a set-user-id program gains, where it may write
    #[arg(long)]
    pub reach: bool,
    /// With --reach (and implying it): count, in one more run of every arm, the functions of the host's kernel that it reaches; the host is slow meanwhile
    #[arg(long)]
    pub reach_functions: bool,
    /// Start idle sandboxes of the embedded image, so many of each arm, one after another, and measure what the first and each further one costs [default: none]. An arm stops before when the host has too little memory left, when one answers too slowly, or when one does not start
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST_IDLE))]
    pub density: Option<u32>,
    /// How much of the host's memory --density leaves available [default: a tenth of it or 256 MiB, whichever is more]
    #[arg(long, value_name = "SIZE", requires = "density")]
    pub density_reserve: Option<MemorySize>,
    /// How many milliseconds an idle sandbox may take to answer a line before --density stops
    #[arg(long, default_value_t = 1000, value_name = "MS", requires = "density", value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub density_ping: u64,
    /// Go on until the intervals reach at most so far to either side: of the workloads' ratios, or of the start's if there are none [default with --budget: 5%]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub precision: Option<f64>,
    /// No further round begins after so many seconds of the rounds before, those to warm up included, whatever the intervals are [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub budget: Option<u64>,
    /// Memory of every arm
    #[arg(short, long, default_value = "512m", value_name = "SIZE")]
    pub memory: MemorySize,
    /// Processors of every arm
    #[arg(long, default_value = "1", value_name = "N")]
    pub cpus: Cpus,
    /// Seed of the order in which the arms take turns [default: random, and recorded]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Compare although outputs or exit codes differ, and say so
    #[arg(long)]
    pub allow_difference: bool,
    /// Give up when one run takes longer than this many seconds [default: 300; 900 of an application]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
    /// Write the result with all samples and host facts to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the result as a page with plots to this file; it fetches nothing
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Fail if an arm got worse than in this earlier result, a file of --json
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// How much worse than the baseline is still allowed
    #[arg(long, default_value = "10%", value_name = "PERCENT", value_parser = percent, requires = "baseline")]
    pub regression: f64,
    /// What is printed on standard output
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// The image
    #[arg(default_value = "workloads")]
    pub image: String,
    /// The command, behind '--' [default: the image's own; 'hello' for the embedded image]
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// How often everything runs, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Amount {
    /// Measured rounds.
    pub runs: u32,
    /// Rounds before them.
    pub warmup: u32,
    /// Rounds for memory.
    pub memory_runs: u32,
    /// How precise, and for how many seconds.
    pub until: Option<(f64, u64)>,
    /// Longest run, in seconds.
    pub timeout: u64,
}

/// How narrow intervals are to be, and the seconds for it, if nothing is said of one of them.
const PRECISION: f64 = 0.05;
const BUDGET: u64 = 300;

impl CompareArgs {
    /// What was asked for, or the usual. One run of an application takes as long as many of a program's: where nothing is said of rounds, a clock
    /// ends them.
    pub(crate) fn amount(&self, application: bool) -> Amount {
        let or = |asked: Option<u32>, usual, of_application| {
            asked.unwrap_or(if application { of_application } else { usual })
        };
        let timed = self.precision.is_some() || self.budget.is_some() || (application && self.runs.is_none());
        Amount {
            runs: or(self.runs, 10, 1),
            warmup: or(self.warmup, 2, 1),
            memory_runs: or(self.memory_runs, 3, 1),
            until: timed.then(|| (self.precision.unwrap_or(PRECISION), self.budget.unwrap_or(BUDGET))),
            timeout: self.timeout.unwrap_or(if application { 900 } else { 300 }),
        }
    }
}

/// A share of more than nothing, written in hundredths with or without the sign.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    match number.trim().parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1000.0 => Ok(value / 100.0),
        _ => Err("it is not a percentage between 0 and 1000, such as 10%".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Amount, CompareArgs, percent};

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        args: CompareArgs,
    }

    #[test]
    fn an_application_runs_by_the_clock_unless_rounds_are_asked_for() {
        let amount = |words: &[&str], application| {
            Words::try_parse_from([&["compare"], words].concat()).unwrap().args.amount(application)
        };
        let usual = Amount { runs: 10, warmup: 2, memory_runs: 3, until: None, timeout: 300 };
        let app = Amount { runs: 1, warmup: 1, memory_runs: 1, until: Some((0.05, 300)), timeout: 900 };
        assert_eq!((amount(&[], false), amount(&[], true)), (usual, app));
        assert_eq!(
            amount(&["--runs", "4", "--timeout", "9"], true),
            Amount { runs: 4, until: None, timeout: 9, ..app }
        );
        assert_eq!(amount(&["--budget", "60"], true), Amount { until: Some((0.05, 60)), ..app });
        assert_eq!(amount(&["--budget", "60"], false), Amount { until: Some((0.05, 60)), ..usual });
        assert_eq!(amount(&["--precision", "2"], false), Amount { until: Some((0.02, 300)), ..usual });
        let none = Amount { warmup: 0, memory_runs: 0, ..app };
        assert_eq!(amount(&["--warmup", "0", "--memory-runs", "0"], true), none);
    }

    #[test]
    fn a_percentage_is_positive_and_bounded() {
        assert_eq!((percent("10%"), percent("2.5")), (Ok(0.1), Ok(0.025)));
        assert!(["0", "-1%", "x", "", "%", "nan", "1001%"].iter().all(|text| percent(text).is_err()));
    }
}
