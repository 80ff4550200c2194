//! Streams that wait for the guest to connect to their port.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

/// Streams that may wait at once.
const MOST: usize = 256;

/// The table port -> streams, shared by the device and the control socket. Its lock is held for single operations only.
#[derive(Clone, Debug, Default)]
pub struct WaitingStreams(Arc<Mutex<BTreeMap<u32, VecDeque<UnixStream>>>>);

/// Why a stream does not wait.
#[derive(Debug, thiserror::Error)]
pub enum WaitingFull {
    /// So many wait already.
    #[error("{MOST} streams wait for the guest already")]
    Full,
    /// The descriptor cannot be made non-blocking.
    #[error("The stream for port {port} cannot be made non-blocking")]
    NonBlocking {
        /// The port.
        port: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl WaitingStreams {
    /// Holds a stream for the next connection to this port, behind those that wait for it already.
    ///
    /// # Errors
    /// [`WaitingFull`].
    pub fn add(&self, port: u32, stream: OwnedFd) -> Result<(), WaitingFull> {
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(true).map_err(|source| WaitingFull::NonBlocking { port, source })?;
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.values().map(VecDeque::len).sum::<usize>() >= MOST {
            return Err(WaitingFull::Full);
        }
        table.entry(port).or_default().push_back(stream);
        Ok(())
    }

    /// Takes the first stream that waits for this port.
    pub fn take(&self, port: u32) -> Option<UnixStream> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = table.get_mut(&port)?;
        let stream = queue.pop_front();
        if queue.is_empty() {
            table.remove(&port);
        }
        stream
    }
}
