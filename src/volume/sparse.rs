//! Files with holes: what is in them without what is not.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// What counts as a hole where a file system has written zeroes.
const BLOCK: usize = 4096;

/// Calls with each block of a file that is not zero, and its offset, in order.
///
/// # Errors
/// What the file system says, or what the caller's function gave.
pub fn each_block(file: &File, mut act: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let len = file.metadata()?.len();
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while let Some((begin, end)) = data(file, at, len)? {
        // Whole blocks, wherever the file system's own begin.
        at = begin / BLOCK as u64 * BLOCK as u64;
        while at < end {
            let count = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
            let piece = piece.get_mut(..count).unwrap_or_default();
            file.read_exact_at(piece, at)?;
            for block in piece.chunks(BLOCK) {
                if block.iter().any(|byte| *byte != 0) {
                    act(at, block)?;
                }
                at += block.len() as u64;
            }
        }
    }
    Ok(())
}

/// The next range with data at or behind an offset.
fn data(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let begin = match seek(file, SeekFrom::Data(at)) {
        Ok(begin) => begin,
        Err(Errno::NXIO) => return Ok(None),
        // All of it, as far as this file system knows.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Some((at, len))),
        Err(e) => return Err(e.into()),
    };
    Ok(Some((begin, seek(file, SeekFrom::Hole(begin))?)))
}

/// Makes an empty file have another's content and holes. Where the file system can, both share what is there until one is changed.
///
/// # Errors
/// What the file system says.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(from.metadata()?.len())?;
    each_block(from, |at, block| to.write_all_at(block, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn holes_stay_holes_and_bytes_stay_bytes() {
        let (from, mut to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(&[7; 9000], 5_000_001).unwrap();
        from.write_all_at(b"end", (64 << 20) - 3).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "it has holes");
        let mut all = Vec::new();
        to.read_to_end(&mut all).unwrap();
        assert!(all.starts_with(b"begin\0") && all.ends_with(b"\0end"));
        assert!(all[5_000_001..5_009_001].iter().all(|b| *b == 7) && all[5_000_000] == 0 && all[5_009_001] == 0);
        let mut blocks = Vec::new();
        each_block(&to, |at, block| {
            blocks.push((at, block.len()));
            Ok(())
        })
        .unwrap();
        assert_eq!(blocks.first(), Some(&(0, 4096)));
        assert_eq!(blocks.len(), 5, "{blocks:?}");
    }

    #[test]
    fn a_file_may_end_anywhere_and_be_empty() {
        for len in [0, 1, 4095, 4097] {
            let (mut from, mut to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            from.write_all(&vec![3; len]).unwrap();
            copy(&from, &to).unwrap();
            let mut all = Vec::new();
            to.read_to_end(&mut all).unwrap();
            assert!(all == vec![3; len]);
        }
    }
}
