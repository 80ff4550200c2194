//! The process that owns a lab: it starts the machine, takes clients, passes frames between them and the agent, and ends the lab when it
//! is told to or has been idle for long.

mod clients;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use self::clients::Clients;
use super::frame::{Frame, FrameError};
use super::kernel::{self, Kernel, KernelError};
use super::leftovers::{Recorded, ended};
use super::machine::{CPU_WORDS, Machine, MachineError};
use super::message::Control;
use super::{Places, Settings, Status};

/// The hidden verb; one argument follows, [`Settings`] as JSON.
pub(super) const VERB: &str = "lab-keeper";

/// Longest time from QEMU's start to the agent's first word, on a machine that is busy with other things.
const BOOT: Duration = Duration::from_secs(300);

/// What the keeper tells the process that started it, one JSON line each on its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Says {
    /// What it does now.
    Step(String),
    /// Another keeper has the lock.
    Busy,
    /// The lab takes commands.
    Ready,
    /// The lab could not be started: the error and its causes.
    Failed(Vec<String>),
}

/// Why a lab could not be started or kept.
#[derive(Debug, thiserror::Error)]
enum KeeperError {
    #[error("The keeper's settings do not decode")]
    Settings(#[source] serde_json::Error),
    #[error("{path}: the lab's state folder cannot be used", path = .0.state.display())]
    State(Places, #[source] io::Error),
    #[error("There is no kernel for the lab")]
    Kernel(#[from] KernelError),
    #[error("The lab's machine could not be started")]
    Machine(#[from] MachineError),
    #[error("The lab ended while it booted. Its last words: {words}")]
    Boot { words: String },
    #[error("The lab did not come up within {} s. Its last words: {words}", BOOT.as_secs())]
    Slow { words: String },
    #[error("The lab's agent could not be understood")]
    Channel(#[from] FrameError),
    #[error("The lab cannot wait for clients")]
    Wait(#[source] io::Error),
}

/// Runs a lab from start to end.
pub(super) fn main(settings: &OsStr) -> u8 {
    let text = settings.to_string_lossy();
    let done =
        serde_json::from_str(&text).map_err(KeeperError::Settings).and_then(|settings: Settings| keep(&settings));
    match done {
        Ok(()) => 0,
        Err(error) => {
            say(&Says::Failed(chain(&error)));
            1
        }
    }
}

fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect()
}

/// Whoever started the keeper may be gone: the lab goes on without a listener.
fn say(what: &Says) {
    if let Ok(mut line) = serde_json::to_vec(what) {
        line.push(b'\n');
        let mut out = io::stdout().lock();
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

fn keep(settings: &Settings) -> Result<(), KeeperError> {
    let places = &settings.places;
    let state = |e| KeeperError::State(places.clone(), e);
    let lock = loop {
        places.make_state().map_err(state)?;
        match places.lock() {
            // The last keeper removed the folder in this moment.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(state(e)),
            Ok(Some(lock)) => break lock,
            Ok(None) => {
                say(&Says::Busy);
                return Ok(());
            }
        }
    };
    places.clear(false);
    // From here on 'lab stop' finds this process.
    places.record(&[Recorded::of(std::process::id(), "keeper").map_err(state)?]).map_err(state)?;
    let kept = start_and_serve(settings);
    // A failure's logs stay, for the person who reads the error.
    places.clear(kept.is_err());
    places.remove_lock();
    drop(lock);
    kept
}

fn start_and_serve(settings: &Settings) -> Result<(), KeeperError> {
    let kernel = kernel::find_or_fetch(&settings.places.kernel, &mut |step| say(&Says::Step(step.to_owned())))?;
    say(&Says::Step("booting the lab (about 10 s)".to_owned()));
    let began = Instant::now();
    let mut machine = Machine::start(settings, &kernel)?;
    let served = wait_until_up(settings, &mut machine, began)
        .and_then(|()| Lab { settings, kernel: &kernel, machine: &machine, began }.serve());
    let patience = if served.is_ok() { Duration::from_secs(20) } else { Duration::ZERO };
    machine.end(patience);
    served
}

fn wait_until_up(settings: &Settings, machine: &mut Machine, began: Instant) -> Result<(), KeeperError> {
    let words = || Places::last_words(&settings.places.console()) + &Places::last_words(&settings.places.log());
    let deadline = Timespec::try_from(BOOT.saturating_sub(began.elapsed())).ok();
    let mut fds = [PollFd::new(&machine.channel, PollFlags::IN), PollFd::new(machine.qemu_fd(), PollFlags::IN)];
    let ready = poll(&mut fds, deadline.as_ref()).map_err(|e| KeeperError::Wait(e.into()))?;
    if ready == 0 {
        return Err(KeeperError::Slow { words: words() });
    }
    if !fds[1].revents().is_empty() {
        return Err(KeeperError::Boot { words: words() });
    }
    match Frame::read(&mut machine.channel)? {
        Frame { command: 0, body: super::frame::Body::Control(Control::Ready) } => Ok(()),
        _ => Err(KeeperError::Boot { words: words() }),
    }
}

/// A lab that is up.
struct Lab<'a> {
    settings: &'a Settings,
    kernel: &'a Kernel,
    machine: &'a Machine,
    began: Instant,
}

impl Lab<'_> {
    /// Takes clients until the lab is to end.
    fn serve(&self) -> Result<(), KeeperError> {
        let (mut asked, signal) = UnixStream::pair().map_err(KeeperError::Wait)?;
        for number in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            let signal = signal.try_clone().map_err(KeeperError::Wait)?;
            signal_hook::low_level::pipe::register(number, signal).map_err(KeeperError::Wait)?;
        }
        let listener = UnixListener::bind(self.settings.places.socket()).map_err(KeeperError::Wait)?;
        let channel = || self.machine.channel.try_clone().map_err(KeeperError::Wait);
        let clients = Arc::new(Clients::new(channel()?));
        let router = {
            let (clients, from) = (Arc::clone(&clients), channel()?);
            thread::spawn(move || clients.route(from))
        };
        {
            let clients = Arc::clone(&clients);
            thread::spawn(move || clients.keep_awake());
        }
        say(&Says::Ready);
        let why = self.wait(&listener, &mut asked, &clients)?;
        drop(listener);
        let _ = std::fs::remove_file(self.settings.places.socket());
        clients.end(why);
        // The agent powers the machine off when it has ended its commands; with that the channel ends.
        if ended(self.machine.qemu_fd(), Duration::from_secs(20)) {
            let _ = self.machine.channel.shutdown(std::net::Shutdown::Both);
            let _ = router.join();
        }
        Ok(())
    }

    /// Waits for clients, a signal, QEMU's end or idleness; why the lab ends.
    fn wait(
        &self,
        listener: &UnixListener,
        asked: &mut UnixStream,
        clients: &Arc<Clients>,
    ) -> Result<&'static str, KeeperError> {
        loop {
            let left = clients.idle().map_or(self.settings.idle, |idle| self.settings.idle.saturating_sub(idle));
            if left.is_zero() {
                return Ok("it was idle");
            }
            // A second at most: a command that ends restarts the clock without waking this loop.
            let timeout = Timespec::try_from(left.min(Duration::from_secs(1))).ok();
            let fds = [listener.as_fd(), asked.as_fd(), self.machine.qemu_fd().as_fd()];
            let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut polled, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) | Ok(0) => continue,
                other => other.map_err(|e| KeeperError::Wait(e.into()))?,
            };
            let [client, signal, qemu] = polled.map(|p| !p.revents().is_empty());
            if signal {
                return Ok("it was told to stop");
            }
            if qemu {
                return Ok("its machine ended");
            }
            if client {
                let (stream, _) = listener.accept().map_err(KeeperError::Wait)?;
                let status = self.status(clients);
                let clients = Arc::clone(clients);
                thread::spawn(move || clients.attend(stream, status));
            }
        }
    }

    fn status(&self, clients: &Clients) -> Status {
        Status {
            pid: std::process::id(),
            uptime_s: self.began.elapsed().as_secs(),
            idle_s: clients.idle().map(|idle| idle.as_secs()),
            idle_limit_s: self.settings.idle.as_secs(),
            memory_mib: self.machine.memory_mib,
            memory_used_bytes: self.machine.memory_used(),
            cpu: CPU_WORDS.to_owned(),
            kernel: self.kernel.release.clone(),
            commands: clients.commands(),
        }
    }
}

/// The words that start a keeper.
pub(super) fn words(settings: &Settings) -> Result<[OsString; 2], serde_json::Error> {
    Ok([VERB.into(), serde_json::to_string(settings)?.into()])
}

/// Where a keeper's own complaints go that nobody reads any more: nowhere.
pub(super) fn nowhere() -> io::Result<File> {
    File::options().write(true).open("/dev/null")
}
