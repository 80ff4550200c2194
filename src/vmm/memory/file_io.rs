//! `preadv` and `pwritev` between a file and pieces of guest memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::VolatileSlice;

/// Most pieces in one system call; `IOV_MAX` on Linux.
const MOST_PIECES: usize = 1024;

type Call = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

/// Reads from `offset` of the file into the pieces, in order. Returns the bytes read, less than asked only at the file's end.
///
/// # Errors
/// What `preadv` gave, except EINTR.
pub fn read_at(file: &impl AsFd, pieces: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    vectored(file, pieces, offset, libc::preadv)
}

/// Writes the pieces, in order, to `offset` of the file. Returns the bytes written.
///
/// # Errors
/// What `pwritev` gave, except EINTR.
pub fn write_at(file: &impl AsFd, pieces: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    vectored(file, pieces, offset, libc::pwritev)
}

fn vectored(file: &impl AsFd, pieces: &[VolatileSlice<'_>], offset: u64, call: Call) -> io::Result<usize> {
    let mut done = 0;
    let mut rest = pieces.to_vec();
    while !rest.is_empty() {
        let guards: Vec<_> = rest.iter().take(MOST_PIECES).map(VolatileSlice::ptr_guard_mut).collect();
        let vector: Vec<_> = guards
            .iter()
            .map(|g| libc::iovec { iov_base: g.as_ptr().cast::<libc::c_void>(), iov_len: g.len() })
            .collect();
        let at = offset
            .checked_add(done as u64)
            .and_then(|at| libc::off_t::try_from(at).ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let count = libc::c_int::try_from(vector.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `vector` has `count` entries; each is the memory of a volatile slice that outlives this call (the guards hold it mapped).
        // Guest memory is never behind a Rust reference, so the kernel may read and write it at any time.
        let moved = unsafe { call(file.as_fd().as_raw_fd(), vector.as_ptr(), count, at) };
        let moved = match usize::try_from(moved) {
            Ok(0) => break,
            Ok(moved) => moved,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => continue,
                e => return Err(e),
            },
        };
        drop(guards);
        done += moved;
        advance(&mut rest, moved);
    }
    Ok(done)
}

/// Drops the first `count` bytes of the pieces.
fn advance(pieces: &mut Vec<VolatileSlice<'_>>, mut count: usize) {
    let mut whole = 0;
    for piece in pieces.iter_mut() {
        if count < piece.len() {
            if let Ok(rest) = piece.offset(count) {
                *piece = rest;
            }
            break;
        }
        count -= piece.len();
        whole += 1;
    }
    pieces.drain(..whole);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pieces_round_trip() {
        let file = tempfile::tempfile().unwrap();
        let mut out: Vec<u8> = (0..3000_u32).map(|i| u8::try_from(i % 256).unwrap()).collect();
        let expected = out.clone();
        let pieces: Vec<_> = out.chunks_mut(2).map(VolatileSlice::from).collect();
        assert_eq!(write_at(&file, &pieces, 7).unwrap(), 3000, "more pieces than one call takes");
        let mut back = vec![0; 3500];
        let pieces: Vec<_> = back.chunks_mut(100).map(VolatileSlice::from).collect();
        assert_eq!(read_at(&file, &pieces, 7).unwrap(), 3000, "stops at the file's end");
        assert_eq!(back[..3000], expected);
    }

    #[test]
    fn errors_come_through() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut bytes = [1_u8; 4];
        assert!(write_at(&file, &[VolatileSlice::from(&mut bytes[..])], 0).is_err(), "opened for reading only");
    }
}
