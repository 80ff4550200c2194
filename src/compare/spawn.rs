//! Runs arms as a user does: `duplex run` children, watched through their pipes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::control::{Evidence, INSIDE, INSIDE_RUNTIME, namespaces};
use super::measures;
use super::meters::{MemorySample, Meter};
use super::plan::{Arm, Plan};
use super::probes::{Probe, probes};
use super::reach::Reach;
use super::runner::{Crowd, Observation, Runner, RunnerError, Trace};
use crate::spec::{Exit, Isolation};
use crate::sys::clock::monotonic_ns;

mod crowd;
mod functions;
mod reach;
mod venv;
mod watch;

use crowd::Idlers;
use watch::{Watched, watch};

/// Name of the embedded image, for proofs and the idle sandbox.
pub(super) const EMBEDDED: &str = "workloads";
/// Pause between two memory samples.
const SAMPLING: Duration = Duration::from_millis(10);
/// Longest wait for an idle sandbox's memory to settle.
const SETTLING: Duration = Duration::from_secs(5);
/// How far the host's memory may move between two looks that see it calm, in bytes.
const CALM: u64 = 2 << 20;

/// Starts `duplex run` for every run.
#[derive(Debug)]
pub struct Spawner {
    /// The program.
    pub program: PathBuf,
    /// Words that every `duplex` call gets before its verb.
    pub everywhere: Vec<String>,
    /// What is compared.
    pub plan: Plan,
    trace: File,
    interrupt: Interrupt,
}

/// Ends a comparison from another thread: the run that is under way, and those to come.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    child: Arc<Mutex<Option<u32>>>,
}

impl Interrupt {
    /// Asks the run under way to end; the comparison ends with [`RunnerError::Interrupted`].
    pub fn interrupt(&self) {
        self.asked.store(true, Ordering::SeqCst);
        // The lock is held while the child is reaped, so the number is still its own.
        if let Ok(child) = self.child.lock() {
            let pid = child.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
    }

    fn note(&self, child: Option<u32>) {
        if let Ok(mut current) = self.child.lock() {
            *current = child;
        }
    }
}

impl Spawner {
    /// A spawner of this program, with the words that every call of it gets before its verb.
    pub fn new(program: PathBuf, everywhere: Vec<String>, plan: Plan) -> Result<Self, RunnerError> {
        let trace = tempfile::tempfile().map_err(RunnerError::Scratch)?;
        Ok(Self { program, everywhere, plan, trace, interrupt: Interrupt::default() })
    }

    /// A handle that ends the comparison.
    pub fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// The file for traces, by a path that children can open. It has no name, so nothing is ever left of it.
    fn trace_file(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.trace.as_raw_fd())
    }

    /// `duplex run` of this arm, without a network, telling its moments.
    fn command(&self, arm: &Arm, options: &[&str], image: &str, words: &[String]) -> Command {
        let trace = self.trace_file();
        self.command_on(arm, "none", &[&["--trace", &trace], options].concat(), image, words)
    }

    /// `duplex run` of this arm on this network. The host name is fixed: by default it is the sandbox's id, and outputs that show it would
    /// differ.
    fn command_on(&self, arm: &Arm, network: &str, options: &[&str], image: &str, words: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.everywhere).args(["run", "--rm", "--no-lab", "--pull", "never"]);
        // A plain process has the host's network, whatever others have.
        let network = if arm.isolation == Isolation::Process { "host" } else { network };
        command.args(["--hostname", "duplex", "--net", network]);
        command.arg("--isolation").arg(arm.isolation.to_string());
        let mut words = words.to_owned();
        if let Some(venv) = &arm.venv {
            words = self::venv::enter(&mut command, venv, image, words);
        }
        if let Some(runtime) = &arm.runtime {
            command.arg("--runtime").arg(runtime);
        }
        // No swap on either side: a guest has none.
        let memory = self.plan.memory.0.to_string();
        command.args(["--memory", &memory, "--memory-swap", &memory]).arg("--cpus").arg(self.plan.cpus.to_string());
        if let Some(kernel) = &arm.kernel {
            command.arg("--kernel").arg(kernel);
        }
        if arm.cold {
            command.arg("--cold");
        }
        if arm.hardened {
            command.arg("--hardened");
        }
        if arm.read_only {
            command.arg("--read-only");
        }
        command.args(options).arg("--").arg(image).args(&words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts it; answers with the moment just before.
    fn spawn(&self, command: &mut Command) -> Result<(u64, Child), RunnerError> {
        if self.interrupt.asked.load(Ordering::SeqCst) {
            return Err(RunnerError::Interrupted);
        }
        self.trace.set_len(0).map_err(RunnerError::Scratch)?;
        let exec = monotonic_ns();
        match command.spawn() {
            Ok(child) => {
                self.interrupt.note(Some(child.id()));
                Ok((exec, child))
            }
            Err(source) => Err(RunnerError::Spawn { program: self.program.clone(), source }),
        }
    }

    fn finish(&self, mut child: Child, sample: bool) -> Result<(Watched, Option<MemorySample>), RunnerError> {
        let meter = Meter::default();
        let pid = child.id();
        let mut peak: Option<MemorySample> = None;
        let mut look = || {
            peak = meter.sample(pid).into_iter().chain(peak).max_by_key(MemorySample::total);
        };
        let sampling: Option<(Duration, &mut dyn FnMut())> = if sample { Some((SAMPLING, &mut look)) } else { None };
        let watched = watch(&mut child, self.plan.timeout, sampling, || self.interrupt.note(None));
        if self.interrupt.asked.load(Ordering::SeqCst) {
            return Err(RunnerError::Interrupted);
        }
        Ok((watched?, peak))
    }

    fn trace(&self, watched: &Watched) -> Result<Trace, RunnerError> {
        let failed =
            || RunnerError::Failed { exit_code: watched.deed.exit_code, stderr: watched.deed.stderr.excerpt(2000) };
        let mut text =
            vec![0; usize::try_from(self.trace.metadata().map_err(RunnerError::Scratch)?.len()).unwrap_or(0)];
        self.trace.read_exact_at(&mut text, 0).map_err(RunnerError::Scratch)?;
        if text.is_empty() {
            return Err(failed());
        }
        let trace: Trace = serde_json::from_slice(&text).map_err(|e| RunnerError::Scratch(e.into()))?;
        match &trace.outcome {
            None => Err(failed()),
            Some(outcome) if outcome.exit == Exit::SandboxFailed => Err(failed()),
            Some(_) => Ok(trace),
        }
    }

    /// The embedded image's `cat`, up.
    fn waiting(&self, arm: &Arm) -> Result<(Child, OwnedFd), RunnerError> {
        self.up(self.command(arm, &["-i"], EMBEDDED, &["cat".to_owned()]))
    }

    /// Starts what echoes and waits for that: then it is up, and does nothing until its input ends.
    fn up(&self, mut command: Command) -> Result<(Child, OwnedFd), RunnerError> {
        const WORD: &[u8] = b"up\n";
        let (_, mut child) = self.spawn(command.stdin(Stdio::piped()))?;
        let io = |operation| move |source| RunnerError::Watch { operation, source };
        // Whoever has ended already does not read: what it said tells why.
        let sent = child.stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(WORD));
        let sent = sent.or_else(|e| if e.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(e) });
        let echo = sent.map_err(io("write to the input")).and_then(|()| {
            let stdout = child.stdout.as_ref().map(AsFd::as_fd);
            watch::read_exactly(stdout, WORD.len(), self.plan.timeout).map_err(io("read the output"))
        });
        match (echo, child.stdin.take()) {
            (Ok(echo), Some(stdin)) if echo == WORD => Ok((child, stdin.into())),
            (Err(error), _) => {
                self.interrupt.note(None);
                watch::stop(&mut child);
                Err(error)
            }
            (Ok(said), stdin) => {
                drop(stdin);
                let ended = watch(&mut child, Duration::from_secs(10), None, || self.interrupt.note(None));
                if self.interrupt.asked.load(Ordering::SeqCst) {
                    return Err(RunnerError::Interrupted);
                }
                let stderr = ended.map_or_else(|_| String::new(), |w| w.deed.stderr.excerpt(2000));
                let said = format!("{}{stderr}", String::from_utf8_lossy(&said));
                Err(RunnerError::NoEcho { seconds: self.plan.timeout.as_secs(), said })
            }
        }
    }

    fn end_waiting(&self, child: Child, stdin: OwnedFd) -> Result<(), RunnerError> {
        drop(stdin);
        let (watched, _) = self.finish(child, false)?;
        self.trace(&watched).map(|_| ())
    }
}

/// What is seen when it has not changed for a while: the memory of sandboxes by no more than a two-hundredth, that of the host by no more than
/// 2 MiB; or what is seen last, when it goes on changing.
fn calm(mut look: impl FnMut() -> (Option<MemorySample>, u64)) -> (Option<MemorySample>, u64) {
    let settled = Instant::now() + SETTLING;
    let mut last = look();
    let mut calm = 0;
    while calm < 3 && Instant::now() < settled {
        std::thread::sleep(Duration::from_millis(200));
        let now = look();
        let total = |s: &Option<MemorySample>| s.map_or(0, |s| s.total());
        let near = total(&now.0).abs_diff(total(&last.0)) <= total(&last.0) / 200;
        calm = if near && now.1.abs_diff(last.1) <= CALM { calm + 1 } else { 0 };
        last = now;
    }
    last
}

impl Runner for Spawner {
    fn run(&mut self, arm: &Arm, sample: bool) -> Result<Observation, RunnerError> {
        let mut command = self.command(arm, &[], &self.plan.reference, &self.plan.command);
        let (exec, child) = self.spawn(command.stdin(Stdio::null()))?;
        let (watched, peak) = self.finish(child, sample)?;
        let trace = self.trace(&watched)?;
        let moments = watched.moments(exec, &trace.moments);
        let mut deed = watched.deed;
        let mut measured = BTreeMap::new();
        if !self.plan.workloads.is_empty() {
            measured = measures::take(&mut deed.stdout).ok_or_else(|| RunnerError::NoMeasure {
                exit_code: deed.exit_code,
                said: format!("{}{}", deed.stderr.excerpt(1000), deed.stdout.excerpt(1000)),
            })?;
        }
        Ok(Observation {
            moments,
            deed,
            measured,
            image: trace.image,
            outcome: trace.outcome,
            usage: trace.usage,
            peak,
        })
    }

    fn idle(&mut self, arm: &Arm) -> Result<Option<MemorySample>, RunnerError> {
        let (child, stdin) = self.waiting(arm)?;
        let meter = Meter::default();
        let last = calm(|| (meter.sample(child.id()), 0)).0;
        self.end_waiting(child, stdin)?;
        Ok(last)
    }

    fn crowd(&mut self, arm: &Arm) -> Box<dyn Crowd + '_> {
        Box::new(Idlers::new(self, arm.clone()))
    }

    /// On the network that a sandbox has by itself, with somebody on the host's loopback who may be reached.
    fn probes(&mut self, arm: &Arm) -> Result<Vec<Probe>, RunnerError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(RunnerError::Scratch)?;
        let port = listener.local_addr().map_err(RunnerError::Scratch)?.port();
        let words = ["probe".to_owned(), port.to_string()];
        let trace = self.trace_file();
        let mut command = self.command_on(arm, "user", &["--trace", &trace], EMBEDDED, &words);
        let (_, child) = self.spawn(command.stdin(Stdio::null()))?;
        let (watched, _) = self.finish(child, false)?;
        self.trace(&watched)?;
        drop(listener);
        let deed = &watched.deed;
        probes(&String::from_utf8_lossy(&deed.stdout.head), arm.walls(), Path::new("/")).map_err(|source| {
            let said = format!("{}{}", deed.stderr.excerpt(1000), deed.stdout.excerpt(1000));
            RunnerError::NoProbes { exit_code: deed.exit_code, said, source }
        })
    }

    fn reach(&mut self, arm: &Arm) -> Result<Reach, RunnerError> {
        reach::reach(self, arm)
    }

    fn evidence(&mut self, arm: &Arm) -> Result<Evidence, RunnerError> {
        let files = if arm.brings_kernel() { &INSIDE_RUNTIME } else { &INSIDE };
        let words: Vec<String> = ["cat"].iter().chain(files).map(|w| (*w).to_owned()).collect();
        let mut command = self.command(arm, &[], EMBEDDED, &words);
        let (_, child) = self.spawn(command.stdin(Stdio::null()))?;
        let (watched, _) = self.finish(child, false)?;
        self.trace(&watched)?;
        let mut inside = Evidence::from_inside(&String::from_utf8_lossy(&watched.deed.stdout.head));
        inside.python = self::venv::python(self, arm)?;
        if arm.isolation == Isolation::MicroVm && !arm.is_qemus() {
            return Ok(inside);
        }
        let (child, stdin) = self.waiting(arm)?;
        let meter = Meter::default();
        if arm.is_qemus() {
            inside.program = meter.program(child.id());
            self.end_waiting(child, stdin)?;
            return Ok(inside);
        }
        let file = |name| meter.sandbox_file(child.id(), name);
        let mut evidence = inside.with_limits(file("memory.max").as_deref(), file("cpu.max").as_deref());
        if let Some((shared, root)) = meter.shared(child.id(), &namespaces(arm)) {
            (evidence.shared, evidence.root) = (Some(shared), Some(root));
        }
        self.end_waiting(child, stdin)?;
        Ok(evidence)
    }
}

#[cfg(test)]
mod tests;
