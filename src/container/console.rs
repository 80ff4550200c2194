//! The socket on which an OCI runtime hands over the terminal's master side (runtime spec, "process.terminal").

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::orders::{WireError, receive_descriptor};

/// Why no terminal came.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConsoleError {
    #[error("Cannot make the socket that the terminal comes through")]
    Socket(#[source] io::Error),
    #[error("The terminal did not come")]
    Receive(#[source] WireError),
}

/// A socket that waits for one terminal.
pub(super) struct Console {
    folder: OwnedFd,
    listener: UnixListener,
}

impl Console {
    pub(super) fn listen(folder: &Path) -> Result<Self, ConsoleError> {
        let folder = OwnedFd::from(std::fs::File::open(folder).map_err(ConsoleError::Socket)?);
        let path = format!("/proc/self/fd/{}/console.sock", folder.as_raw_fd());
        let listener = UnixListener::bind(path).map_err(ConsoleError::Socket)?;
        Ok(Self { folder, listener })
    }

    /// Its path for other processes, short whatever the folder's path is: a socket's address has 107 bytes.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}/console.sock", std::process::id(), self.folder.as_raw_fd())
    }

    /// Takes the terminal that has been sent.
    pub(super) fn take(self) -> Result<OwnedFd, ConsoleError> {
        let (stream, _) = self.listener.accept().map_err(ConsoleError::Socket)?;
        receive_descriptor(&stream).map_err(ConsoleError::Receive)
    }
}
