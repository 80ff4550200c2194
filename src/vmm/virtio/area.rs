//! The readable or the writable half of a descriptor chain: pieces of guest memory that read as one run of bytes.

use vm_memory::{Bytes, VolatileSlice};

/// Pieces of guest memory in order. The driver may cut a request into pieces wherever it likes (virtio 1.2, 2.7.4.1).
#[derive(Clone, Debug, Default)]
pub struct Area<'a> {
    pieces: Vec<VolatileSlice<'a>>,
    len: u64,
}

impl<'a> Area<'a> {
    /// Appends a piece.
    pub fn push(&mut self, piece: VolatileSlice<'a>) {
        if !piece.is_empty() {
            self.len = self.len.saturating_add(piece.len() as u64);
            self.pieces.push(piece);
        }
    }

    /// Bytes in all pieces.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces.
    pub fn pieces(&self) -> &[VolatileSlice<'a>] {
        &self.pieces
    }

    /// Cuts off the first `count` bytes, or everything if there are fewer.
    pub fn take_front(&mut self, count: u64) -> Area<'a> {
        let mut front = Area::default();
        let mut whole: usize = 0;
        for piece in &mut self.pieces {
            let want = count.saturating_sub(front.len);
            if want == 0 {
                break;
            }
            let at = usize::try_from(want).unwrap_or(usize::MAX).min(piece.len());
            let Ok((head, tail)) = piece.split_at(at) else { break };
            front.push(head);
            *piece = tail;
            if tail.is_empty() {
                whole = whole.saturating_add(1);
            }
        }
        self.pieces.drain(..whole);
        self.len = self.len.saturating_sub(front.len);
        front
    }

    /// Cuts off the last byte, where a request has its status.
    pub fn take_last_byte(&mut self) -> Option<Area<'a>> {
        let front = self.take_front(self.len.checked_sub(1)?);
        Some(std::mem::replace(self, front))
    }

    /// Copies the first bytes out, as many as there are and the buffer holds. Returns the number.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        let mut done: usize = 0;
        for piece in &self.pieces {
            let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
            done = done.saturating_add(piece.copy_to(rest));
        }
        done
    }

    /// Copies bytes in, as many as fit. Returns the number.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut done: usize = 0;
        for piece in &self.pieces {
            let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) else { break };
            done = done.saturating_add(piece.write(rest, 0).unwrap_or(0));
        }
        done
    }

    /// Fills everything with zeroes.
    pub fn clear(&self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        for piece in &self.pieces {
            let mut at = 0;
            while at < piece.len() {
                let count = piece.len().saturating_sub(at).min(ZEROES.len());
                if piece.write(ZEROES.get(..count).unwrap_or(&ZEROES), at).is_err() {
                    break;
                }
                at = at.saturating_add(count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_wherever_asked() {
        let mut bytes: Vec<u8> = (0..100).collect();
        for cut in 0..=100_u64 {
            let mut area = Area::default();
            for piece in bytes.chunks_mut(7) {
                area.push(VolatileSlice::from(piece));
            }
            let front = area.take_front(cut);
            assert_eq!((front.len(), area.len()), (cut, 100 - cut));
            let mut out = [0; 100];
            let first = front.read(&mut out);
            let second = area.read(&mut out[first..]);
            assert_eq!(first + second, 100);
            assert!(out.iter().copied().eq(0..100));
        }
    }

    #[test]
    fn the_last_byte_comes_off_whole() {
        let mut bytes = [1_u8, 2, 3];
        let mut area = Area::default();
        area.push(VolatileSlice::from(&mut bytes[..]));
        let last = area.take_last_byte().unwrap();
        assert_eq!((area.len(), last.len()), (2, 1));
        assert_eq!(last.write(&[9, 9]), 1);
        area.clear();
        assert!(Area::default().take_last_byte().is_none());
        assert_eq!(bytes, [0, 0, 9]);
    }
}
