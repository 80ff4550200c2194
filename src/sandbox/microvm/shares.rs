//! Folders and files of the host in a microVM: for each a file server (virtiofsd) that has nothing else, and a file system device of the machine.
//!
//! ```text
//! view of the folder, attached nowhere -- in a room of its own (`jail`) --> virtiofsd: chroot, few capabilities, seccomp
//!                                                                              |  \
//!                                            socket in the sandbox's folder ---'   guest memory, lent by the monitor
//! ```
//!
//! virtiofsd sees the view as its whole file tree: a folder, or an empty folder of ours with the one file over it. A view for reading only is
//! read-only to it too. Around that tree is a room with programs' libraries only, in namespaces of its own, and a filter of ours under its own:
//! left to itself, the one of Debian 12 keeps a thread with all of root's capabilities and no filter, and a way to `/proc/sys`. It is in the
//! sandbox's cgroup and ends with the monitor's end of the socket.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::monitor::clean;
use crate::jail::around_file_server;
use crate::sandbox::binds::{self, BindError};
use crate::spec::{MIB, MountSource, SandboxSpec};
use crate::sys::birth::{Child, FIRST_FD, spawn};
use crate::sys::last_words::{self, LastWords};
use crate::sys::mounts::{files_view, folder_of_one, programs_view};
use crate::sys::walls::{PROCESSES, Room};

/// Most folders and files of the host in one machine.
const MOST: usize = crate::vmm::assemble::MOST_SHARES;

/// Name of the one file in a share of a file.
const ONE: &str = "file";

/// What is shared, in a file server's root.
const SHARE: &str = "share";

/// The file server of QEMU, in Debian 12, and the one that replaced it.
const OF_QEMU: &str = "/usr/lib/qemu/virtiofsd";
const PROGRAMS: [&str; 4] = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/virtiofsd/virtiofsd", OF_QEMU];

/// Host memory that a file server may use beside what it holds open for the guest.
const MEMORY: u64 = 64 * MIB;
/// Its threads: four, and some for a moment.
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
            let args = args(program, FIRST_FD);
            let wrong = |source| ShareError::Spawn { program: program.clone(), source };
            let stderr = LastWords::new().map_err(wrong)?;
            let walls = around_file_server(room(view.around, view.view).map_err(wrong)?);
            let fds = [listener.as_fd()];
            let child = Child {
                program,
                args: &args,
                fds: &fds,
                stderr: stderr.as_fd(),
                cgroup: Some(cgroup),
                walls: Some(&walls),
                dies_with_caller: false,
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

/// Where programs and their libraries are, by names that some distributions have as links into the others.
const LIBRARIES: [&str; 4] = ["usr", "lib", "lib64", "nix"];
/// What tells the loader where in them.
const LOADER_CACHE: &str = "etc/ld.so.cache";

/// How many files the host can have open.
const MOST_FILES: &str = "proc/sys/fs/file-max";

/// A room with the view, or with the folder around it and the view in that, at [`SHARE`], and beside it the libraries of this host.
fn room(around: Option<OwnedFd>, view: OwnedFd) -> io::Result<Room> {
    let text = |path: &str| CString::new(path).map_err(io::Error::other);
    let mut room = Room::default();
    for name in LIBRARIES {
        let path = Path::new("/").join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                let says = CString::new(std::fs::read_link(&path)?.into_os_string().into_encoded_bytes());
                room.links.push((says.map_err(io::Error::other)?, text(name)?));
            }
            Ok(found) if found.is_dir() => {
                room.folders.push(text(name)?);
                room.mounts.push((programs_view(&path)?, text(name)?));
            }
            _ => {}
        }
    }
    let cache = Path::new("/").join(LOADER_CACHE);
    if cache.is_file() {
        room.folders.push(c"etc".to_owned());
        room.files.push(text(LOADER_CACHE)?);
        room.mounts.push((programs_view(&cache)?, text(LOADER_CACHE)?));
    }
    // Of the kernel's /proc it has its own processes, by which it opens files again, and the number that it asks for.
    room.folders.extend([c"proc".to_owned(), c"proc/sys".to_owned(), c"proc/sys/fs".to_owned()]);
    room.links.push((text(&format!("../{PROCESSES}/self"))?, c"proc/self".to_owned()));
    room.files.push(text(MOST_FILES)?);
    room.mounts.push((files_view(&Path::new("/").join(MOST_FILES), true)?, text(MOST_FILES)?));
    room.folders.push(text(SHARE)?);
    if let Some(around) = around {
        room.mounts.push((around, text(SHARE)?));
        room.mounts.push((view, text(&format!("{SHARE}/{ONE}"))?));
    } else {
        room.mounts.push((view, text(SHARE)?));
    }
    Ok(room)
}

/// Arguments of a file server that shows what its room has at [`SHARE`] to who has connected to this listening socket.
///
/// Contents are cached and attributes are not: each access asks the host whether a file has changed, and shared mappings are possible. File
/// locks stay in the guest. Without CAP_MKNOD root in the guest makes no device nodes on the host. Its namespaces are made for it, without the
/// capabilities that making them takes.
fn args(program: &Path, socket: i32) -> Vec<String> {
    let socket = format!("--fd={socket}");
    if program.as_os_str() != OsStr::new(OF_QEMU) {
        let words = ["--sandbox=chroot", "--cache=metadata", "--announce-submounts", "--xattr", "--log-level=error"];
        let shared = format!("--shared-dir=/{SHARE}");
        return words.into_iter().map(str::to_owned).chain([socket, shared, "--modcaps=-mknod".to_owned()]).collect();
    }
    let options = format!(
        "sandbox=chroot,cache=auto,timeout=0,xattr,announce_submounts,no_posix_lock,no_flock,modcaps=-mknod,log_level=err,source=/{SHARE}"
    );
    vec![socket, "-f".to_owned(), "-o".to_owned(), options]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_the_programs_own() {
        let words = args(Path::new(OF_QEMU), 3);
        assert!(words.contains(&"--fd=3".to_owned()));
        assert!(words.last().unwrap().ends_with(",source=/share"), "{words:?}");
        let words = args(Path::new("/usr/libexec/virtiofsd"), 3);
        assert!(words.contains(&"--fd=3".to_owned()) && words.contains(&"--shared-dir=/share".to_owned()), "{words:?}");
    }

    #[test]
    fn a_machine_without_shares_gets_nothing_for_them() {
        assert_eq!(allowance(0, 512 * MIB), (0, 0));
        assert_eq!(allowance(2, 512 * MIB), (640 * MIB, 32));
        assert_eq!(allowance(usize::MAX, u64::MAX), (u64::MAX, u32::MAX));
    }
}
