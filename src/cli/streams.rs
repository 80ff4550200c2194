//! The command's standard streams.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use rustix::fs::{FileType, fstat};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::keeper::Local;

/// Our own streams, for a keeper in this process. `shielded`: the sandbox gets the very descriptor of its input, so that is a pipe where ours is
/// a terminal, file or device: with one of those a container could read what the file holds, or put words into the terminal's mouth.
pub(crate) fn local(stdin: bool, shielded: bool) -> io::Result<Local> {
    let ours = io::stdin();
    let stdin = match (stdin, shielded) {
        (false, _) => None,
        (true, false) => Some(ours.as_fd().try_clone_to_owned()?),
        (true, true) => Some(input(ours.as_fd())?),
    };
    Ok(Local {
        stdin,
        stdout: Some(io::stdout().as_fd().try_clone_to_owned()?),
        stderr: Some(io::stderr().as_fd().try_clone_to_owned()?),
    })
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
