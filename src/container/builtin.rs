//! The built-in runtime: `libcontainer` over the bundle.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::execute::Execute;
use super::orders::WireError;

/// A container that waits for its start.
pub(super) struct Created {
    pub(super) container: Container,
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) terminal: Option<OwnedFd>,
}

/// Why the built-in runtime failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuiltinError {
    #[error("The container cannot be created")]
    Create(#[source] LibcontainerError),
    #[error("The container cannot be started")]
    Start(#[source] LibcontainerError),
    #[error("The container has no first process")]
    NoProcess,
    #[error("Cannot watch the container's first process")]
    Watch(#[source] rustix::io::Errno),
    #[error("Cannot make the socket that the terminal comes through")]
    ConsoleSocket(#[source] std::io::Error),
    #[error("The terminal did not come")]
    Console(#[source] WireError),
}

/// Creates the container of `folder/bundle`; its state is kept in `folder/oci` and nowhere else.
pub(super) fn create(
    folder: &Path,
    id: &str,
    executor: Execute,
    stdio: [OwnedFd; 3],
    terminal: bool,
) -> Result<Created, BuiltinError> {
    let builder = ContainerBuilder::new(id.to_owned(), SyscallType::default()).with_executor(executor);
    let builder = builder.with_root_path(folder.join("oci")).map_err(BuiltinError::Create)?;
    let console = if terminal { Some(Console::listen(folder)?) } else { None };
    let builder = match &console {
        Some(console) => builder.with_console_socket(Some(console.path())),
        None => {
            let [stdin, stdout, stderr] = stdio;
            builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
        }
    };
    let init = builder.as_init(folder.join("bundle")).with_systemd(false).with_detach(true);
    let container = init.build().map_err(BuiltinError::Create)?;
    let pid = container.pid().and_then(|p| Pid::from_raw(p.as_raw())).ok_or(BuiltinError::NoProcess)?;
    // It is our own child and not waited for yet: the number is its own.
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(BuiltinError::Watch)?;
    let terminal = console.map(Console::take).transpose()?;
    Ok(Created { container, pid, pidfd, terminal })
}

/// The socket on which `libcontainer` hands over the terminal's master side (runtime spec, "process.terminal").
struct Console {
    folder: OwnedFd,
    listener: UnixListener,
}

impl Console {
    fn listen(folder: &Path) -> Result<Self, BuiltinError> {
        let opened = std::fs::File::open(folder).map_err(BuiltinError::ConsoleSocket)?;
        let folder = OwnedFd::from(opened);
        let path = format!("/proc/self/fd/{}/console.sock", folder.as_raw_fd());
        let listener = UnixListener::bind(path).map_err(BuiltinError::ConsoleSocket)?;
        Ok(Self { folder, listener })
    }

    /// Short whatever the folder's path is: a socket's address has 107 bytes.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}/console.sock", self.folder.as_raw_fd())
    }

    fn take(self) -> Result<OwnedFd, BuiltinError> {
        let (stream, _) = self.listener.accept().map_err(BuiltinError::ConsoleSocket)?;
        super::orders::receive_descriptor(&stream).map_err(BuiltinError::Console)
    }
}
