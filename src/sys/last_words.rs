//! What a child says on its standard error, and how it ended: for whoever has to tell why it is gone.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

/// Room for what a child writes, in bytes; more is refused to it.
const ROOM: u64 = 16 << 10;

/// A file without a name for a child's standard error. It cannot grow.
#[derive(Debug)]
pub struct LastWords(File);

impl LastWords {
    /// Empty.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        let fd = memfd_create("duplex-stderr", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        fallocate(&fd, FallocateFlags::empty(), 0, ROOM)?;
        fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Self(File::from(fd)))
    }

    /// What has been written, as it is; nothing if that cannot be read.
    pub fn text(&self) -> String {
        let (mut file, mut bytes) = (&self.0, Vec::new());
        if file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).is_err() {
            return String::new();
        }
        // The rest of the room is zeroes.
        let written = bytes.iter().take_while(|b| **b != 0).count();
        String::from_utf8_lossy(bytes.get(..written).unwrap_or_default()).into_owned()
    }
}

impl AsFd for LastWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a child ended, as the end of a sentence.
pub fn told(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The same of a child that has ended by anything but exit code 0; it stays to be reaped.
pub fn failure(process: &OwnedFd) -> Option<String> {
    let flags = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::PidFd(process.as_fd()), flags).ok()??;
    (status.exit_status() != Some(0)).then(|| told(&status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn words_have_an_end() {
        let words = LastWords::new().unwrap();
        let mut file = &words.0;
        file.write_all(b"one\n").unwrap();
        assert_eq!(words.text(), "one\n");
        file.seek(SeekFrom::Start(0)).unwrap();
        let all = "x".repeat(usize::try_from(ROOM).unwrap());
        file.write_all(all.as_bytes()).unwrap();
        assert!(file.write_all(b"x").is_err());
        assert_eq!(words.text(), all);
    }
}
