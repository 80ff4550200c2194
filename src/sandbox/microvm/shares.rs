//! Folders and files of the host in a microVM: for each a file server (virtiofsd) that has nothing else, and a file system device of the machine.
//!
//! ```text
//! view of the folder, attached nowhere -- in a mount namespace of its own --> virtiofsd: pivot_root, no network, few capabilities, seccomp
//!                                                                                |  \
//!                                              socket in the sandbox's folder ---'   guest memory, lent by the monitor
//! ```
//!
//! virtiofsd sees the view as its whole file tree: a folder, or an empty folder of ours with the one file over it. A view for reading only is
//! read-only to it too. It is in the sandbox's cgroup and ends with the monitor's end of the socket.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::monitor::clean;
use crate::sandbox::binds::{self, BindError};
use crate::spec::{MIB, MountSource, SandboxSpec};
use crate::sys::birth::{Child, FIRST_FD, spawn};
use crate::sys::last_words::{self, LastWords};
use crate::sys::mounts::{files_view, folder_of_one};

/// Most folders and files of the host in one machine.
const MOST: usize = crate::vmm::assemble::MOST_SHARES;

/// Name of the one file in a share of a file.
const ONE: &str = "file";

/// The file server of QEMU, in Debian 12, and the one that replaced it.
const OF_QEMU: &str = "/usr/lib/qemu/virtiofsd";
const PROGRAMS: [&str; 4] = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/virtiofsd/virtiofsd", OF_QEMU];

/// Host memory that a file server may use beside what it holds open for the guest.
const MEMORY: u64 = 64 * MIB;
/// Its processes and threads: two of each, and some for a moment.
const THREADS: u32 = 16;

/// What the tags of all devices begin with.
const TAG: &str = "share";

/// Why a share cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The source is not there.
    #[error(transparent)]
    Source(#[from] BindError),
    /// It cannot be opened.
    #[error("Cannot share {path} of the host: only root may mount, and the kernel must be Linux 5.12 or later")]
    View {
        /// The folder or file.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// It is something that only processes of one kernel can share.
    #[error(
        "A microVM cannot share {path}: it is a {what}, which leads to processes of this host's kernel; only folders and files can be shared"
    )]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// More than a machine has places for.
    #[error("A microVM has at most {MOST} folders and files of the host, not {0}: share a folder above some of them")]
    Many(usize),
    /// The program is not installed.
    #[error(
        "virtiofsd is not installed: apt-get install qemu-system-common (Debian 12) or virtiofsd (later), or use a volume (-v NAME:/path)"
    )]
    Missing,
    /// Programs' arguments are text.
    #[error("The state folder {0} must have a name in UTF-8 for a microVM to share folders")]
    State(PathBuf),
    /// No socket.
    #[error("Cannot make a socket in {path}")]
    Socket {
        /// The sandbox's folder.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The program cannot be executed.
    #[error("Cannot run {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// It ended by itself.
    #[error("{0}")]
    Ended(String),
}

/// A share's view of the host, opened before anything is made.
#[derive(Debug)]
struct View {
    path: PathBuf,
    view: OwnedFd,
    /// The folder around it, if it is a file.
    around: Option<OwnedFd>,
}

/// All shares of a sandbox.
#[derive(Debug, Default)]
pub(super) struct Shares {
    program: PathBuf,
    views: Vec<View>,
    listeners: Vec<UnixListener>,
    home: PathBuf,
    servers: Vec<Server>,
}

/// A file server's process.
#[derive(Debug)]
struct Server {
    path: PathBuf,
    process: OwnedFd,
    stderr: LastWords,
}

/// The tag of a share by its place among the sandbox's.
fn tag(number: usize) -> String {
    format!("{TAG}{number}")
}

impl Shares {
    /// Opens what the sandbox shows of the host, in the order of its mounts.
    pub(super) fn open(spec: &SandboxSpec) -> Result<Self, ShareError> {
        let binds = spec.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Bind { path, create } => Some((path, *create, mount.read_only)),
            MountSource::Volume { .. } => None,
        });
        let binds: Vec<_> = binds.collect();
        if binds.is_empty() {
            return Ok(Self::default());
        }
        if binds.len() > MOST {
            return Err(ShareError::Many(binds.len()));
        }
        let mut shares = Self::default();
        shares.program = PROGRAMS.iter().map(PathBuf::from).find(|path| path.exists()).ok_or(ShareError::Missing)?;
        let views = binds.into_iter().map(|(path, create, read_only)| {
            binds::prepare(path, create)?;
            View::open(path, read_only)
        });
        shares.views = views.collect::<Result<_, _>>()?;
        Ok(shares)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.views.len()
    }

    /// For the agent: the shares' devices and files, in order.
    pub(super) fn for_guest(&self) -> impl Iterator<Item = duplex_wire::MountSource> {
        self.views.iter().enumerate().map(|(number, view)| duplex_wire::MountSource::Share {
            tag: tag(number),
            file: view.around.is_some().then(|| ONE.to_owned()),
        })
    }

    /// Makes a socket for each, in the sandbox's folder, where nobody else comes. Returns the monitor's ends, with the tags of the devices.
    pub(super) fn connect(&mut self, home: &Path) -> Result<Vec<(String, UnixStream)>, ShareError> {
        let wrong = |source| ShareError::Socket { path: home.to_owned(), source };
        home.clone_into(&mut self.home);
        let mut ends = Vec::new();
        if self.views.is_empty() {
            return Ok(ends);
        }
        // A socket's address has 108 bytes; paths of state folders may be longer.
        let folder = File::open(home).map_err(wrong)?;
        for number in 0..self.views.len() {
            let name = tag(number);
            let address = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
            let made = UnixListener::bind(&address).and_then(|listener| Ok((listener, UnixStream::connect(&address)?)));
            let (listener, end) = made.map_err(wrong)?;
            std::fs::remove_file(home.join(&name)).map_err(wrong)?;
            self.listeners.push(listener);
            ends.push((name, end));
        }
        Ok(ends)
    }

    /// Starts the file servers in this cgroup. They get ready while the monitor starts.
    pub(super) fn start(&mut self, cgroup: BorrowedFd<'_>) -> Result<(), ShareError> {
        let views = std::mem::take(&mut self.views);
        for (view, listener) in views.into_iter().zip(std::mem::take(&mut self.listeners)) {
            let program = &self.program;
            let source = self.home.to_str().ok_or_else(|| ShareError::State(self.home.clone()))?;
            let args = args(program, source, FIRST_FD);
            let wrong = |source| ShareError::Spawn { program: program.clone(), source };
            let stderr = LastWords::new().map_err(wrong)?;
            let inner = self.home.join(ONE);
            let mounts: &[(BorrowedFd<'_>, &Path)] = match &view.around {
                Some(around) => &[(around.as_fd(), &self.home), (view.view.as_fd(), &inner)],
                None => &[(view.view.as_fd(), &self.home)],
            };
            let fds = [listener.as_fd()];
            let child = Child {
                program,
                args: &args,
                fds: &fds,
                stderr: stderr.as_fd(),
                cgroup: Some(cgroup),
                mounts,
                walls: None,
            };
            let process = spawn(&child).map_err(wrong)?;
            self.servers.push(Server { path: view.path, process, stderr });
        }
        Ok(())
    }

    /// A sentence about the first one that has ended by anything but the monitor's end.
    pub(super) fn failure(&self) -> Option<String> {
        self.servers.iter().find_map(Server::failure)
    }

    /// Ends and reaps them. What they leave in the cgroup goes with that.
    pub(super) fn end(&mut self) {
        for server in self.servers.drain(..) {
            let _ = pidfd_send_signal(&server.process, Signal::KILL);
            let _ = waitid(WaitId::PidFd(server.process.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the host gives to file servers above the machine's own: memory for them, and for the files that the guest knows, each of which
/// costs the host as much as it costs the guest and cannot be taken back; and their threads.
pub(super) fn allowance(count: usize, machine: u64) -> (u64, u32) {
    if count == 0 {
        return (0, 0);
    }
    let number = u32::try_from(count).unwrap_or(u32::MAX);
    (machine.saturating_add(u64::from(number).saturating_mul(MEMORY)), number.saturating_mul(THREADS))
}

impl View {
    fn open(path: &Path, read_only: bool) -> Result<Self, ShareError> {
        let wrong = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ShareError::Source(BindError::NoSource(path.to_owned())),
            _ => ShareError::View { path: path.to_owned(), source },
        };
        let view = files_view(path, read_only).map_err(wrong)?;
        let kind = File::from(view.try_clone().map_err(wrong)?).metadata().map_err(wrong)?.file_type();
        let kinds = [
            (kind.is_socket(), "socket"),
            (kind.is_fifo(), "pipe"),
            (kind.is_char_device() || kind.is_block_device(), "device"),
        ];
        if let Some((_, what)) = kinds.into_iter().find(|(is, _)| *is) {
            return Err(ShareError::Kind { path: path.to_owned(), what });
        }
        let around = kind.is_file().then(|| folder_of_one(ONE)).transpose().map_err(wrong)?;
        Ok(Self { path: path.to_owned(), view, around })
    }
}

impl Server {
    fn failure(&self) -> Option<String> {
        // With code 0 it ends when the monitor is gone.
        let how = last_words::failure(&self.process)?;
        let words = self.words();
        let words = if words.is_empty() { words } else { format!(": {words}") };
        Some(format!("The file server (virtiofsd) of {} {how}{words}", self.path.display()))
    }

    /// What it wrote to its standard error, in one line.
    fn words(&self) -> String {
        let text = clean(&self.stderr.text());
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
    }
}

/// Arguments of a file server that shows `source` to who has connected to this listening socket.
///
/// Contents are cached and attributes are not: each access asks the host whether a file has changed, and shared mappings are possible. File
/// locks stay in the guest. Without CAP_MKNOD root in the guest makes no device nodes on the host.
fn args(program: &Path, source: &str, socket: i32) -> Vec<String> {
    let socket = format!("--fd={socket}");
    if program.as_os_str() != OsStr::new(OF_QEMU) {
        let words = ["--sandbox=namespace", "--cache=metadata", "--announce-submounts", "--xattr", "--log-level=error"];
        let shared = format!("--shared-dir={source}");
        return words.into_iter().map(str::to_owned).chain([socket, shared, "--modcaps=-mknod".to_owned()]).collect();
    }
    // libfuse's options are separated by commas, and a backslash takes a character as it is.
    let source = source.replace('\\', "\\\\").replace(',', "\\,");
    let options = format!(
        "sandbox=namespace,cache=auto,timeout=0,xattr,announce_submounts,no_posix_lock,no_flock,modcaps=-mknod,log_level=err,source={source}"
    );
    vec![socket, "-f".to_owned(), "-o".to_owned(), options]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_the_programs_own() {
        let words = args(Path::new(OF_QEMU), "/a,b\\c", 3);
        assert!(words.contains(&"--fd=3".to_owned()));
        assert!(words.last().unwrap().ends_with(",source=/a\\,b\\\\c"), "{words:?}");
        let words = args(Path::new("/usr/libexec/virtiofsd"), "/a,b", 3);
        assert!(words.contains(&"--fd=3".to_owned()) && words.contains(&"--shared-dir=/a,b".to_owned()), "{words:?}");
    }

    #[test]
    fn a_machine_without_shares_gets_nothing_for_them() {
        assert_eq!(allowance(0, 512 * MIB), (0, 0));
        assert_eq!(allowance(2, 512 * MIB), (640 * MIB, 32));
        assert_eq!(allowance(usize::MAX, u64::MAX), (u64::MAX, u32::MAX));
    }
}
