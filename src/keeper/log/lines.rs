//! Pieces of output put together to lines, each stream's for itself.

use super::Piece;
use crate::keeper::wire::Stream;

/// A longer line comes in parts.
const LONGEST: usize = 16 << 10;

/// A line, or the part of one that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When its first byte was written, nanoseconds since 1970.
    pub at_ns: u64,
    /// Where to.
    pub stream: Stream,
    /// Its bytes, the end of line included if it has come.
    pub bytes: Vec<u8>,
}

/// Lines in the making: at most one unfinished one per stream.
#[derive(Debug, Default)]
pub struct Lines {
    begun: [Option<Line>; 2],
}

impl Lines {
    /// The lines that this piece completes.
    pub fn push(&mut self, piece: Piece) -> Vec<Line> {
        let Piece::Output { at_ns, stream, bytes } = piece else { return Vec::new() };
        let mut done = Vec::new();
        let [out, error] = &mut self.begun;
        let place = if stream == Stream::Output { out } else { error };
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            for part in part.chunks(LONGEST) {
                let line = place.get_or_insert_with(|| Line { at_ns, stream, bytes: Vec::new() });
                line.bytes.extend_from_slice(part);
                if part.ends_with(b"\n") || line.bytes.len() >= LONGEST {
                    done.extend(place.take());
                }
            }
        }
        done
    }

    /// What has begun and not ended.
    pub fn rest(&mut self) -> Vec<Line> {
        let mut rest: Vec<Line> = self.begun.iter_mut().filter_map(Option::take).collect();
        rest.sort_by_key(|line| line.at_ns);
        rest
    }
}
