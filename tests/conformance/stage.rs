//! One backend with a state folder of its own, and the running of commands on it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use duplex::sandbox::{Backend, Exec, Sandbox, SandboxError, Stdio};
use duplex::spec::{
    DEFAULT_CAPABILITIES, Exit, Limits, MemorySize, Outcome, ProcessSpec, SandboxId, SandboxSpec, Transfer,
};

use super::image;

/// A backend and where it keeps its state.
pub(crate) struct Stage {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) state: tempfile::TempDir,
}

/// What a command left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) outcome: Outcome,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// A sandbox at work, with our ends of its streams.
pub(crate) struct Running {
    pub(crate) sandbox: Box<dyn Sandbox>,
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: Watched,
    pub(crate) stderr: Watched,
}

/// A further command at work.
pub(crate) struct Further {
    pub(crate) exec: Box<dyn Exec>,
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: Watched,
    pub(crate) stderr: Watched,
}

/// A stream that a thread reads, so that nobody blocks on it.
pub(crate) struct Watched {
    pieces: Receiver<Vec<u8>>,
    pub(crate) seen: Vec<u8>,
}

/// How long anything may take in an emulated host.
const PATIENCE: Duration = Duration::from_secs(120);

impl Stage {
    pub(crate) fn new(backend: Box<dyn Backend>, state: tempfile::TempDir) -> Self {
        Self { backend, state }
    }

    /// Nothing real runs in it.
    pub(crate) fn is_fake(&self) -> bool {
        format!("{:?}", self.backend).starts_with("Fake")
    }

    /// A sandbox of the test image with this command, as `duplex run` without options would make it.
    pub(crate) fn spec(&self, args: &[&str]) -> SandboxSpec {
        let mut bytes = [0; 6];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
        let (id, isolation) = (SandboxId::from_bytes(bytes), self.backend.isolation());
        SandboxSpec {
            hostname: "box".into(),
            limits: Limits { memory: Some(MemorySize(256 << 20)), ..Limits::default() },
            ..SandboxSpec::plain(id, isolation, image::digest(), process(args))
        }
    }

    /// Creates, and does not start.
    pub(crate) fn create(&self, spec: &SandboxSpec) -> Running {
        let (stdio, stdin, stdout, stderr) = streams(spec.process.stdin);
        let sandbox = self.backend.create(spec, stdio).unwrap_or_else(|e| panic!("{}", chain(&e)));
        Running { sandbox, stdin, stdout: Watched::new(stdout), stderr: Watched::new(stderr) }
    }

    /// Creates and starts.
    pub(crate) fn start(&self, spec: &SandboxSpec) -> Running {
        let mut running = self.create(spec);
        running.sandbox.start().unwrap_or_else(|e| panic!("{}", chain(&e)));
        running
    }

    /// The words of the error that keeps it from running.
    pub(crate) fn must_fail(&self, spec: &SandboxSpec) -> String {
        let (stdio, ..) = streams(false);
        let error = match self.backend.create(spec, stdio) {
            Err(error) => error,
            Ok(mut sandbox) => sandbox.start().expect_err("it starts"),
        };
        chain(&error)
    }

    /// Runs to the end, without input.
    pub(crate) fn run(&self, spec: &SandboxSpec) -> Ran {
        self.start(spec).finish()
    }

    /// Runs a shell script to the end.
    pub(crate) fn shell(&self, script: &str) -> Ran {
        self.run(&self.spec(&["sh", "-c", script]))
    }
}

impl Further {
    /// Closes the input, waits for the end and reads the rest.
    pub(crate) fn finish(mut self) -> Ran {
        drop(self.stdin.take());
        let outcome = self.exec.wait().unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(self.exec.wait().unwrap(), outcome, "asked again, it says the same");
        let (stdout, stderr) = (self.stdout.rest(), self.stderr.rest());
        Ran { outcome, stdout, stderr }
    }
}

impl Running {
    /// Runs a further command.
    pub(crate) fn exec(&self, process: &ProcessSpec) -> Further {
        self.try_exec(process).unwrap_or_else(|e| panic!("{}", chain(&e)))
    }

    pub(crate) fn try_exec(&self, process: &ProcessSpec) -> Result<Further, SandboxError> {
        let (stdio, stdin, stdout, stderr) = streams(process.stdin);
        let exec = self.sandbox.inside().exec(process, stdio)?;
        Ok(Further { exec, stdin, stdout: Watched::new(stdout), stderr: Watched::new(stderr) })
    }

    /// Copies files, with this for its input.
    pub(crate) fn copy(&self, transfer: &Transfer, input: &[u8]) -> Ran {
        let mut copy = self.try_copy(transfer).unwrap_or_else(|e| panic!("{}", chain(&e)));
        let input = input.to_vec();
        // One that fails does not read it to the end.
        let feeder = copy.stdin.take().map(|mut stdin| std::thread::spawn(move || stdin.write_all(&input)));
        let ran = copy.finish();
        drop(feeder.map(std::thread::JoinHandle::join));
        ran
    }

    pub(crate) fn try_copy(&self, transfer: &Transfer) -> Result<Further, SandboxError> {
        let (stdio, stdin, stdout, stderr) = streams(matches!(transfer, Transfer::In { .. }));
        let exec = self.sandbox.inside().copy(transfer, stdio)?;
        Ok(Further { exec, stdin, stdout: Watched::new(stdout), stderr: Watched::new(stderr) })
    }

    /// Runs a shell script as a further command to its end.
    pub(crate) fn exec_shell(&self, script: &str) -> Ran {
        self.exec(&process(&["sh", "-c", script])).finish()
    }
    /// Closes the input, waits for the end, reads the rest and removes the sandbox.
    pub(crate) fn finish(mut self) -> Ran {
        drop(self.stdin.take());
        let outcome = self.sandbox.wait().unwrap_or_else(|e| panic!("{}", chain(&e)));
        let (stdout, stderr) = (self.stdout.rest(), self.stderr.rest());
        self.sandbox.remove().unwrap_or_else(|e| panic!("{}", chain(&e)));
        Ran { outcome, stdout, stderr }
    }
}

impl Ran {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    /// Output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn good(&self) -> String {
        let words = String::from_utf8_lossy(&self.stderr);
        assert_eq!(self.outcome.exit, Exit::Code(0), "{:?}, stdout '{}', stderr '{words}'", self.outcome, self.text());
        self.text()
    }
}

impl Watched {
    fn new(file: File) -> Self {
        let (sender, pieces) = channel();
        std::thread::spawn(move || {
            let mut file = file;
            let mut bytes = vec![0; 64 << 10];
            while let Ok(count @ 1..) = file.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { pieces, seen: Vec::new() }
    }

    /// Reads until the text has been seen.
    #[track_caller]
    pub(crate) fn until(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(piece) => self.seen.extend(piece),
                Err(e) => panic!("'{text}' did not come ({e}), only '{}'", String::from_utf8_lossy(&self.seen)),
            }
        }
    }

    /// Reads for this long.
    pub(crate) fn settle(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Ok(piece) = self.pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.extend(piece);
        }
    }

    #[track_caller]
    fn rest(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(piece) => self.seen.extend(piece),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return std::mem::take(&mut self.seen),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("a stream stays open after the end"),
            }
        }
    }
}

/// A command as `duplex run` without options would make it.
pub(crate) fn process(args: &[&str]) -> ProcessSpec {
    ProcessSpec {
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        cwd: "/".into(),
        capabilities: DEFAULT_CAPABILITIES.to_vec(),
        ..ProcessSpec::default()
    }
}

fn streams(stdin: bool) -> (Stdio, Option<File>, File, File) {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((out, stdout), (err, stderr)) = (pipe(), pipe());
    let (theirs, ours): (Option<OwnedFd>, Option<File>) = if stdin {
        let (read, write) = pipe();
        (Some(read), Some(File::from(write)))
    } else {
        (None, None)
    };
    (Stdio { stdin: theirs, stdout, stderr }, ours, File::from(out), File::from(err))
}

/// Writes all of it from a thread of its own, then closes.
pub(crate) fn feed(mut stdin: File, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || stdin.write_all(&bytes).unwrap())
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n  because: ")
}
