//! One command in the lab, as seen from the process that asked for it: streams, signals, terminal, exit code.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};

use super::client::{LabError, connect};
use super::frame::{Body, DATA_LIMIT, Frame, FrameError};
use super::message::{CommandSpec, Control, Ended, Size, Stream};
use super::window::{Grants, Window};
use super::{MARK, Places};

/// A command for the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments; the program is looked up in the `PATH` of `env`.
    pub argv: Vec<OsString>,
    /// The whole environment. The lab adds its mark.
    pub env: Vec<(OsString, OsString)>,
    /// Working folder; live inside.
    pub cwd: PathBuf,
    /// More folders that must be live inside: the image store, those of files that the command writes. Paths under `/proc`, `/sys`, `/dev` and
    /// `/run`, and `/` and `/tmp` themselves, stay the lab's own.
    pub live: Vec<PathBuf>,
    /// Standard input is passed on; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// The command gets a terminal, and the caller's is put into raw mode if its standard input is one.
    pub terminal: bool,
}

/// The caller's ends of the command's streams.
#[derive(Debug)]
pub struct Stdio {
    /// Read from.
    pub input: OwnedFd,
    /// Written to.
    pub output: OwnedFd,
    /// Written to; nothing comes here from a terminal.
    pub error: OwnedFd,
}

impl Stdio {
    /// This process's own.
    ///
    /// # Errors
    /// `EBADF` if one of the three is closed, `EMFILE`.
    pub fn inherit() -> io::Result<Self> {
        Ok(Self {
            input: io::stdin().as_fd().try_clone_to_owned()?,
            output: io::stdout().as_fd().try_clone_to_owned()?,
            error: io::stderr().as_fd().try_clone_to_owned()?,
        })
    }
}

/// Why a command in the lab has no exit code.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No lab runs.
    #[error("No lab runs in {state}. 'duplex lab start' starts one")]
    NoLab {
        /// The state folder.
        state: PathBuf,
    },
    /// The lab could not be reached.
    #[error("The lab cannot be reached")]
    Lab(#[from] LabError),
    /// The command was never a process.
    #[error("In the lab: {reason}")]
    NotStarted {
        /// 125, 126 or 127, as a shell says it.
        code: u8,
        /// Why.
        reason: String,
    },
    /// The lab ended under the command.
    #[error("The lab ended before the command did: {why}")]
    Ended {
        /// Why.
        why: String,
    },
    /// The channel broke.
    #[error("The channel to the lab broke")]
    Channel(#[from] FrameError),
    /// Signals, the terminal or a stream of the caller.
    #[error("The command's streams could not be connected")]
    Io(#[from] io::Error),
}

/// Runs a command in the lab that runs, to its end; its exit code, or 128 and the signal that ended it. Signals that this process gets
/// meanwhile go to the command.
///
/// # Errors
/// See [`RunError`].
pub fn run(places: &Places, command: &Command, stdio: Stdio) -> Result<u8, RunError> {
    let stream = connect(places)?.ok_or_else(|| RunError::NoLab { state: places.state.clone() })?;
    let link = Arc::new(Link { out: Mutex::new(stream.try_clone()?), input: Window::default() });
    let signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH])?;
    let size =
        command.terminal.then(|| size_of(&stdio.output).or_else(|| size_of(&stdio.input)).unwrap_or(DEFAULT_SIZE));
    link.send(Control::Run(spec(command, size)))?;
    // Restored on every way out.
    let _raw = if command.terminal { Raw::enter(&stdio.input)? } else { None };
    let handle = signals.handle();
    let watcher = {
        let (link, output) = (Arc::clone(&link), stdio.output.try_clone()?);
        thread::spawn(move || watch(signals, &link, &output))
    };
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?);
    let feeder = command.stdin.then(|| {
        let (link, stop, input) = (Arc::clone(&link), Arc::clone(&stop), stdio.input);
        thread::spawn(move || feed(&link, &input, &stop))
    });
    let ended = receive(stream, &link, stdio.output, stdio.error);
    handle.close();
    link.input.close();
    rustix::io::write(&*stop, &1_u64.to_ne_bytes()).map_err(io::Error::from)?;
    let _ = watcher.join();
    if let Some(feeder) = feeder {
        let _ = feeder.join();
    }
    match ended? {
        Ended::Code(code) => Ok(code),
        Ended::Signal(signal) => Ok(128_u8.saturating_add(signal)),
        Ended::NotStarted { code, reason } => Err(RunError::NotStarted { code, reason }),
    }
}

const DEFAULT_SIZE: Size = Size { rows: 24, columns: 80 };

fn size_of(fd: &OwnedFd) -> Option<Size> {
    let size = tcgetwinsize(fd).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(Size { rows: size.ws_row, columns: size.ws_col })
}

fn spec(command: &Command, terminal: Option<Size>) -> CommandSpec {
    let bytes = |text: &OsString| text.clone().into_vec();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut env: Vec<_> = command.env.iter().map(|(name, value)| (bytes(name), bytes(value))).collect();
    env.retain(|(name, _)| name != MARK.as_bytes());
    env.push((MARK.into(), b"1".to_vec()));
    CommandSpec {
        argv: command.argv.iter().map(bytes).collect(),
        env,
        cwd: command.cwd.clone().into_os_string().into_vec(),
        live: command.live.iter().map(|path| path.clone().into_os_string().into_vec()).collect(),
        stdin: command.stdin,
        terminal,
        clock_ns: u64::try_from(now.as_nanos()).unwrap_or(0),
    }
}

/// The way to the keeper, shared by the threads.
struct Link {
    out: Mutex<UnixStream>,
    /// What the command's standard input can take.
    input: Window,
}

impl Link {
    fn send(&self, control: Control) -> Result<(), FrameError> {
        self.write(&Frame::control(0, control))
    }

    fn write(&self, frame: &Frame) -> Result<(), FrameError> {
        frame.write(&mut *self.out.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Passes signals on until the handle is closed.
fn watch(mut signals: signal_hook::iterator::Signals, link: &Link, output: &OwnedFd) {
    for signal in signals.forever() {
        let message = match signal {
            SIGWINCH => size_of(output).map(Control::Resize),
            other => u8::try_from(other).ok().map(Control::Signal),
        };
        // A channel that is broken ends the main thread, which ends this one.
        let _ = message.map(|m| link.send(m));
    }
}

/// Passes standard input on, as far as the command takes it, until its end or `stop`.
fn feed(link: &Link, input: &OwnedFd, stop: &OwnedFd) {
    let mut buffer = vec![0; DATA_LIMIT];
    while let Some(room) = link.input.take(DATA_LIMIT) {
        let mut fds = [PollFd::new(input, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {
                link.input.add(room);
                continue;
            }
            Err(_) => return,
            Ok(_) if !fds[1].revents().is_empty() => return,
            Ok(_) => {}
        }
        // An input that cannot be read is at its end, as for any program.
        let read = loop {
            match rustix::io::read(input, &mut buffer[..room]) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.unwrap_or(0),
            }
        };
        link.input.add(room - read);
        if link.write(&Frame::data(0, Stream::Input, buffer[..read].to_vec())).is_err() || read == 0 {
            return;
        }
    }
}

/// Writes what the command says until it has ended.
fn receive(mut stream: UnixStream, link: &Link, output: OwnedFd, error: OwnedFd) -> Result<Ended, RunError> {
    let mut outlets = [Outlet::new(Stream::Output, output), Outlet::new(Stream::Error, error)];
    loop {
        let frame = match Frame::read(&mut stream) {
            Err(FrameError::Closed) => return Err(RunError::Ended { why: "its keeper is gone".to_owned() }),
            other => other?,
        };
        match frame.body {
            Body::Data(which, bytes) => {
                if let Some(outlet) = outlets.iter_mut().find(|o| o.stream == which) {
                    outlet.write(&bytes, link);
                }
            }
            Body::Control(Control::Credit(Stream::Input, bytes)) => {
                link.input.add(usize::try_from(bytes).unwrap_or(usize::MAX));
            }
            Body::Control(Control::Exited(ended)) => return Ok(ended),
            Body::Control(Control::LabEnds(why)) => return Err(RunError::Ended { why }),
            Body::Control(_) => {}
        }
    }
}

/// A stream of the command's and where it goes here.
struct Outlet {
    stream: Stream,
    file: Option<File>,
    grants: Grants,
}

impl Outlet {
    fn new(stream: Stream, fd: OwnedFd) -> Self {
        Self { stream, file: Some(fd.into()), grants: Grants::default() }
    }

    /// A keeper that has sent the command's end closes the channel while its last words are still being read here: what it no longer hears it
    /// no longer needs, and a channel that breaks before is told by the next read.
    fn write(&mut self, bytes: &[u8], link: &Link) {
        let Some(file) = &mut self.file else { return };
        if write_all(file, bytes).is_err() {
            // The reader here is gone; the command is to feel it there.
            self.file = None;
            let _ = link.send(Control::Closed(self.stream));
        } else if let Some(credit) = self.grants.consumed(bytes.len()) {
            let _ = link.send(Control::Credit(self.stream, credit));
        }
    }
}

/// Writes all, waiting where the caller's descriptor is a non-blocking one.
pub(super) fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(&*file, PollFlags::OUT)], None)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The caller's terminal in raw mode; as it was before when this is dropped.
struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    fn enter(input: &OwnedFd) -> io::Result<Option<Self>> {
        if !isatty(input) {
            return Ok(None);
        }
        let before = tcgetattr(input)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(input, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal: input.try_clone()?, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing better can be done for a terminal that is gone.
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use super::*;

    #[test]
    fn the_last_output_is_whole_when_the_keeper_has_closed() {
        // A sender may have so much under way, and a socket holds it.
        const FRAMES: usize = 4;
        let (ours, mut keeper) = UnixStream::pair().unwrap();
        let link = Link { out: Mutex::new(ours.try_clone().unwrap()), input: Window::default() };
        let mut sink = tempfile::tempfile().unwrap();
        let output = sink.try_clone().unwrap().into();
        let error = tempfile::tempfile().unwrap().into();
        for _ in 0..FRAMES {
            Frame::data(0, Stream::Output, vec![7; DATA_LIMIT]).write(&mut keeper).unwrap();
        }
        Frame::control(0, Control::Exited(Ended::Code(3))).write(&mut keeper).unwrap();
        keeper.shutdown(std::net::Shutdown::Both).unwrap();
        let ended = receive(ours, &link, output, error);
        assert!(matches!(ended, Ok(Ended::Code(3))), "{ended:?}");
        assert_eq!(sink.seek(SeekFrom::End(0)).unwrap(), u64::try_from(FRAMES * DATA_LIMIT).unwrap());
    }
}
