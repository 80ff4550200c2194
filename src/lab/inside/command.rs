//! One command inside the lab.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::time::{ClockId, Timespec, clock_settime};

use super::agent::Agent;
use super::boot::CGROUPS;
use crate::lab::frame::{DATA_LIMIT, Frame};
use crate::lab::message::{CommandSpec, Control, Ended, Size, Stream};
use crate::lab::session::write_all;
use crate::lab::window::{Grants, Window};
use crate::sys::spawn::ChildSetup;

/// The lab's clock is set when it is further than this from the host's. An emulated machine's clock drifts when the host is busy.
const CLOCK_DRIFT: Duration = Duration::from_secs(1);

/// A command from its arrival to its end.
#[derive(Debug)]
pub(super) struct Running {
    id: u32,
    outlets: [Outlet; 2],
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    life: Life,
    input: Option<Sender<Vec<u8>>>,
    /// What came before there was a process.
    early_input: Vec<Vec<u8>>,
    early_signals: Vec<u8>,
    terminal: Option<OwnedFd>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Coming,
    Process(Pid),
    /// No process any more; its last output is under way.
    Draining,
    Ended,
}

/// Output or error on its way to the client.
#[derive(Debug)]
struct Outlet {
    stream: Stream,
    window: Window,
    /// The command has ended: what its pipe holds now is all that is its own.
    last_call: AtomicBool,
    /// Wakes the thread that reads the pipe.
    wake: Option<OwnedFd>,
}

impl Outlet {
    fn new(stream: Stream) -> Self {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok();
        Self { stream, window: Window::default(), last_call: AtomicBool::new(false), wake }
    }

    fn wake(&self) {
        if let Some(wake) = &self.wake {
            let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
        }
    }

    /// Sends what comes from `fd` until its end, the reader's going, or the last call with nothing left.
    fn pump(&self, id: u32, fd: &OwnedFd, agent: &Agent) {
        let mut buffer = vec![0; DATA_LIMIT];
        while let Some(room) = self.window.take(DATA_LIMIT) {
            let wake = self.wake.as_ref().unwrap_or(fd);
            let mut fds = [PollFd::new(fd, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
            if poll(&mut fds, None).is_err() {
                self.window.add(room);
                continue;
            }
            let readable = !fds[0].revents().is_empty();
            if !readable {
                self.window.add(room);
                if self.last_call.load(Ordering::Acquire) {
                    return;
                }
                let _ = self.wake.as_ref().map(|w| rustix::io::read(w, &mut [0_u8; 8][..]));
                continue;
            }
            // EIO from a terminal: its last user is gone.
            let read = rustix::io::read(fd, &mut buffer[..room]).unwrap_or(0);
            self.window.add(room - read);
            if read == 0 || agent.send(&Frame::data(id, self.stream, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    }
}

impl Running {
    pub(super) fn new(id: u32) -> Self {
        let outlets = [Outlet::new(Stream::Output), Outlet::new(Stream::Error)];
        Self { id, outlets, state: Mutex::default(), ended: Condvar::new() }
    }

    /// Runs the command to its end and reports it.
    pub(super) fn run(self: Arc<Self>, agent: &Arc<Agent>, spec: &CommandSpec) {
        let ended = match self.spawn(agent, spec) {
            Ok((child, outputs)) => self.follow(agent, child, outputs),
            Err(ended) => ended,
        };
        let cgroup = self.cgroup();
        {
            let mut state = self.lock();
            state.life = Life::Ended;
            state.input = None;
            state.terminal = None;
        }
        self.ended.notify_all();
        agent.forget(self.id);
        // Processes that the command left in the background keep it; as with any shell they may.
        let _ = fs::remove_dir(cgroup);
        let _ = agent.send(&Frame::control(self.id, Control::Exited(ended)));
    }

    fn follow(self: &Arc<Self>, agent: &Arc<Agent>, mut child: Child, outputs: Vec<OwnedFd>) -> Ended {
        let pumps: Vec<_> = outputs
            .into_iter()
            .enumerate()
            .map(|(n, fd)| {
                let (running, agent) = (Arc::clone(self), Arc::clone(agent));
                thread::spawn(move || running.outlets.get(n).map(|outlet| outlet.pump(running.id, &fd, &agent)))
            })
            .collect();
        let status = self.reap(&mut child);
        for outlet in &self.outlets {
            outlet.last_call.store(true, Ordering::Release);
            outlet.wake();
        }
        for pump in pumps {
            let _ = pump.join();
        }
        status.map_or_else(|e| failed(format!("the command's end was lost: {e}")), ended)
    }

    /// Waits for the process. Its number is forgotten before the kernel may give it to another.
    fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let seen = waitid(WaitId::Pid(Pid::from_child(child)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        self.lock().life = Life::Draining;
        seen?;
        child.wait()
    }

    fn spawn(self: &Arc<Self>, agent: &Arc<Agent>, spec: &CommandSpec) -> Result<(Child, Vec<OwnedFd>), Ended> {
        let cwd = path(&spec.cwd);
        let folders: Vec<_> = spec.live.iter().map(|l| path(l)).collect();
        for live in std::iter::once(&cwd).chain(&folders) {
            agent.live.ensure(live).map_err(|e| failed(format!("{} cannot be made live: {e}", live.display())))?;
        }
        agent.live.drop_stale();
        agent.live.hold(&folders);
        set_clock(spec.clock_ns);
        if !cwd.is_dir() {
            return Err(failed(format!("{} is not a folder", cwd.display())));
        }
        let Some((program, args)) = spec.argv.split_first() else {
            return Err(failed("no command was given".to_owned()));
        };
        let mut command = Command::new(text(program));
        command.args(args.iter().map(|a| text(a))).env_clear().current_dir(&cwd);
        command.envs(spec.env.iter().map(|(name, value)| (text(name), text(value))));
        let wiring = self.wire(spec, &mut command).map_err(|e| failed(format!("the command's streams: {e}")))?;
        let cgroup = self.make_cgroup().map_err(|e| failed(format!("the command's cgroup: {e}")))?;
        let setup = ChildSetup {
            cgroup: Some(cgroup),
            expendable: true,
            session: true,
            terminal: spec.terminal.is_some(),
            ..ChildSetup::default()
        };
        let child = setup.apply(&mut command).spawn().map_err(|e| not_started(program, &e))?;
        // Its copies of the streams' other ends go, so that the end of the command is the end of its streams.
        drop(command);
        self.began(agent, &child, wiring.input);
        Ok((child, wiring.outputs))
    }

    /// The command is a process: what came early is delivered.
    fn began(self: &Arc<Self>, agent: &Arc<Agent>, child: &Child, input: Option<OwnedFd>) {
        let (sender, receiver) = channel();
        let (running, agent) = (Arc::clone(self), Arc::clone(agent));
        thread::spawn(move || running.feed(&agent, input, &receiver));
        let mut state = self.lock();
        for bytes in std::mem::take(&mut state.early_input) {
            let _ = sender.send(bytes);
        }
        state.input = Some(sender);
        let pid = Pid::from_child(child);
        state.life = Life::Process(pid);
        for number in std::mem::take(&mut state.early_signals) {
            deliver(pid, number);
        }
    }

    fn wire(&self, spec: &CommandSpec, command: &mut Command) -> io::Result<Wiring> {
        if let Some(size) = spec.terminal {
            let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            grantpt(&master)?;
            unlockpt(&master)?;
            tcsetwinsize(&master, winsize(size))?;
            let terminal = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
            let input = spec.stdin.then(|| master.try_clone()).transpose()?;
            self.lock().terminal = Some(master.try_clone()?);
            return Ok(Wiring { input, outputs: vec![master] });
        }
        let input = if spec.stdin {
            let (reader, writer): (_, PipeWriter) = io::pipe()?;
            command.stdin(reader);
            Some(writer.into())
        } else {
            command.stdin(Stdio::null());
            None
        };
        let (output, theirs) = io::pipe()?;
        command.stdout(theirs);
        let (error, theirs) = io::pipe()?;
        command.stderr(theirs);
        Ok(Wiring { input, outputs: vec![output.into(), error.into()] })
    }

    /// Writes the client's bytes to the command. When the command takes no more they are dropped, and the client may go on.
    fn feed(&self, agent: &Agent, input: Option<OwnedFd>, bytes: &Receiver<Vec<u8>>) {
        let mut input = input.map(File::from);
        let mut grants = Grants::default();
        for bytes in bytes {
            if bytes.is_empty() {
                let is_terminal = self.lock().terminal.is_some();
                if let (true, Some(file)) = (is_terminal, &mut input) {
                    // End of file as it is typed (termios(3), VEOF).
                    let _ = write_all(file, b"\x04");
                }
                input = None;
            } else if let Some(file) = &mut input
                && write_all(file, &bytes).is_err()
            {
                input = None;
            }
            if let Some(credit) = grants.consumed(bytes.len()) {
                let _ = agent.send(&Frame::control(self.id, Control::Credit(Stream::Input, credit)));
            }
        }
    }

    /// Bytes for standard input; none is its end.
    pub(super) fn input(&self, bytes: Vec<u8>) {
        let mut state = self.lock();
        match (&state.input, state.life) {
            (Some(input), _) => drop(input.send(bytes)),
            (None, Life::Coming) => state.early_input.push(bytes),
            (None, _) => {}
        }
    }

    /// A signal of the client's.
    pub(super) fn signal(&self, number: u8) {
        let mut state = self.lock();
        match state.life {
            Life::Coming => state.early_signals.push(number),
            Life::Process(pid) => deliver(pid, number),
            Life::Draining | Life::Ended => {}
        }
    }

    /// The client's terminal has another size.
    pub(super) fn resize(&self, size: Size) {
        if let Some(terminal) = &self.lock().terminal {
            let _ = tcsetwinsize(terminal, winsize(size));
        }
    }

    /// The client can take more.
    pub(super) fn credit(&self, stream: Stream, bytes: u32) {
        if let Some(outlet) = self.outlets.iter().find(|o| o.stream == stream) {
            outlet.window.add(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
    }

    /// The client takes no more of this stream.
    pub(super) fn closed(&self, stream: Stream) {
        if let Some(outlet) = self.outlets.iter().find(|o| o.stream == stream) {
            outlet.window.close();
            outlet.wake();
        }
    }

    /// Ends the command: as when its terminal is closed, then by force with all that it started.
    pub(super) fn end(&self, patience: Duration) {
        self.closed(Stream::Output);
        self.closed(Stream::Error);
        for number in [Signal::HUP, Signal::TERM] {
            self.signal(u8::try_from(number.as_raw()).unwrap_or(0));
        }
        let state = self.lock();
        let _ = self.ended.wait_timeout_while(state, patience, |s| s.life != Life::Ended);
        // cgroup v2, "cgroup.kill". What is already empty or gone needs none.
        let _ = fs::write(self.cgroup().join("cgroup.kill"), "1");
        // The killed leave the cgroup one by one.
        for _ in 0..50 {
            if !self.cgroup().is_dir() || fs::remove_dir(self.cgroup()).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn cgroup(&self) -> PathBuf {
        Path::new(CGROUPS).join(self.id.to_string())
    }

    fn make_cgroup(&self) -> io::Result<OwnedFd> {
        let dir = self.cgroup();
        fs::create_dir_all(&dir)?;
        Ok(File::options().write(true).open(dir.join("cgroup.procs"))?.into())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// This side's ends of the command's streams.
struct Wiring {
    input: Option<OwnedFd>,
    outputs: Vec<OwnedFd>,
}

/// What a person types at a terminal goes to all of the command, anything else to the process that was asked for.
fn deliver(pid: Pid, number: u8) {
    let Some(signal) = Signal::from_named_raw(i32::from(number)) else { return };
    let _ = match signal {
        Signal::INT | Signal::QUIT | Signal::HUP => kill_process_group(pid, signal),
        _ => kill_process(pid, signal),
    };
}

fn winsize(size: Size) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn set_clock(host_ns: u64) {
    let host = Duration::from_nanos(host_ns);
    let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if here.abs_diff(host) > CLOCK_DRIFT
        && let Ok(time) = Timespec::try_from(host)
    {
        let _ = clock_settime(ClockId::Realtime, time);
    }
}

fn ended(status: ExitStatus) -> Ended {
    let byte = |number: Option<i32>| number.and_then(|n| u8::try_from(n).ok());
    match (byte(status.code()), byte(status.signal())) {
        (Some(code), _) => Ended::Code(code),
        (None, Some(signal)) => Ended::Signal(signal),
        (None, None) => failed(format!("the command ended strangely: {status}")),
    }
}

fn failed(reason: String) -> Ended {
    Ended::NotStarted { code: 125, reason }
}

fn not_started(program: &[u8], error: &io::Error) -> Ended {
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    Ended::NotStarted { code, reason: format!("{}: {error}", String::from_utf8_lossy(program)) }
}

fn text(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(text(bytes))
}
