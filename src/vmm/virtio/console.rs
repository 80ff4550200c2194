//! Console device (virtio 1.2, 5.3): output only. The receive queue's buffers are never filled.
//!
//! Output goes to a descriptor of the caller's. When that is not ready for more, the chain stays in the queue and the guest waits: nothing is
//! buffered here.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::area::Area;
use super::device::{BUDGET, DeviceIo, Next, Sources, VirtioDevice};
use super::fault::GuestFault;
use super::queue::{Progress, Served};
use crate::vmm::events::{Interest, Readiness};

const TRANSMIT: u16 = 1;
/// A pipe that polls ready takes this much without blocking (PIPE_BUF).
const PIECE: usize = 4096;
/// Bytes written before others have their turn. A chain may have 4 GiB.
const MOST_AT_ONCE: u64 = 1 << 20;

/// The console device.
#[derive(Debug)]
pub struct Console {
    output: Arc<OwnedFd>,
    sources: Sources,
    /// The first chain's bytes that are written already, if the output stopped within it.
    written: u64,
}

impl Console {
    /// Writes to this descriptor.
    pub fn new(output: Arc<OwnedFd>, sources: Sources) -> Self {
        Self { output, sources, written: 0 }
    }

    fn transmit(&mut self, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        let counters = io.counters;
        let Some(Some(live)) = io.queues.get_mut(usize::from(TRANSMIT)) else { return Ok(Next::Wait) };
        let progress = live.serve(io.ram, BUDGET, |chain| {
            let mut rest = chain.readable;
            rest.take_front(self.written);
            match write_ready(&self.output, &mut rest, &mut self.written) {
                Written::Whole => {}
                Written::Blocked => return Ok(Served::Later),
                Written::Partly => return Ok(Served::Partly),
            }
            self.written = 0;
            counters.served.add();
            Ok(Served::Done(0))
        })?;
        io.notify(TRANSMIT)?;
        if progress == Progress::Blocked {
            // A descriptor that cannot be watched (a regular file) never blocks.
            let _ = self.sources.watch(&self.output, 0, Interest::WRITE_ONCE);
        }
        Ok(if progress == Progress::Budget { Next::Again(TRANSMIT) } else { Next::Wait })
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> u32 {
        3
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64, 64]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn kick(&mut self, queue: u16, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        if queue == TRANSMIT { self.transmit(io) } else { Ok(Next::Wait) }
    }

    fn ready(&mut self, _source: u32, _readiness: Readiness, io: &mut DeviceIo<'_>) -> Result<Next, GuestFault> {
        self.sources.forget(std::os::fd::AsFd::as_fd(&self.output));
        self.transmit(io)
    }

    fn reset(&mut self) {
        self.written = 0;
        self.sources.forget(std::os::fd::AsFd::as_fd(&self.output));
    }
}

/// Whether a write of [`PIECE`] bytes would not block.
pub fn can_write(output: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An error or a hang-up counts as ready: the write itself then tells.
    matches!(poll(&mut [PollFd::new(output, PollFlags::OUT)], Some(&now)), Ok(1))
}

/// How far a chain's bytes came.
enum Written {
    Whole,
    /// The output takes no more now.
    Blocked,
    /// It takes more, and others have their turn.
    Partly,
}

/// Writes the bytes as long as the output takes them, and not too many. Output that is gone takes everything.
fn write_ready(output: &OwnedFd, rest: &mut Area<'_>, written: &mut u64) -> Written {
    let mut buffer = [0_u8; PIECE];
    let most = written.saturating_add(MOST_AT_ONCE);
    while !rest.is_empty() {
        if *written >= most {
            return Written::Partly;
        }
        if !can_write(output) {
            return Written::Blocked;
        }
        let count = rest.read(&mut buffer);
        match rustix::io::write(output, buffer.get(..count).unwrap_or(&[])) {
            Ok(count) => {
                rest.take_front(count as u64);
                *written = written.saturating_add(count as u64);
            }
            Err(e) if io::Error::from(e).kind() == io::ErrorKind::Interrupted => {}
            Err(e) if io::Error::from(e).kind() == io::ErrorKind::WouldBlock => return Written::Blocked,
            Err(_) => return Written::Whole,
        }
    }
    Written::Whole
}

#[cfg(test)]
mod tests;
