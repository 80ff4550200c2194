//! The command's standard streams.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};

use rustix::fs::{FileType, fstat};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::sandbox::Stdio;

/// Copies that run beside the sandbox.
#[derive(Debug)]
pub(crate) struct Copies(Vec<JoinHandle<()>>);

impl Copies {
    /// Waits until all output has arrived. The sandbox must have let go of its streams.
    pub(crate) fn finish(self) {
        for copy in self.0 {
            let _ = copy.join();
        }
    }
}

/// Our own streams, for an engine that copies between them and the sandbox itself.
pub(crate) fn own(stdin: bool) -> io::Result<Stdio> {
    let dup = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
    Ok(Stdio {
        stdin: if stdin { Some(dup(io::stdin().as_fd())?) } else { None },
        stdout: dup(io::stdout().as_fd())?,
        stderr: dup(io::stderr().as_fd())?,
    })
}

/// Streams that a container may hold: our own where they are pipes, and pipes in place of terminals, files and devices. With one of those a
/// container could read what the file holds, or put words into the terminal's mouth.
pub(crate) fn detached(stdin: bool) -> io::Result<(Stdio, Copies)> {
    let mut copies = Vec::new();
    let stdio = Stdio {
        stdin: if stdin { Some(input(io::stdin().as_fd())?) } else { None },
        stdout: output(io::stdout().as_fd(), &mut copies)?,
        stderr: output(io::stderr().as_fd(), &mut copies)?,
    };
    Ok((stdio, Copies(copies)))
}

fn is_pipe(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

fn input(ours: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let from = ours.try_clone_to_owned()?;
    if is_pipe(ours) {
        return Ok(from);
    }
    let (theirs, to) = pipe_with(PipeFlags::CLOEXEC)?;
    // It ends with its input, or with this process: a read of a terminal cannot be called off.
    thread::spawn(move || copy(File::from(from), File::from(to)));
    Ok(theirs)
}

fn output(ours: BorrowedFd<'_>, copies: &mut Vec<JoinHandle<()>>) -> io::Result<OwnedFd> {
    let to = ours.try_clone_to_owned()?;
    if is_pipe(ours) {
        return Ok(to);
    }
    let (from, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    copies.push(thread::spawn(move || copy(File::from(from), File::from(to))));
    Ok(theirs)
}

/// Copies until one side ends. Dropping the files tells the other side.
fn copy(mut from: File, mut to: File) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => {
                if to.write_all(buffer.get(..read).unwrap_or_default()).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
