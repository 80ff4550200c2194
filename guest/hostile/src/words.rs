//! The command line, as the zero page names it (Linux `Documentation/arch/x86/zero-page.rst`).

use crate::sys::peek;

/// Offset of `cmd_line_ptr` in the zero page.
const COMMAND_LINE: u64 = 0x228;
/// Offsets of the number of memory ranges and of the ranges: u64 begin, u64 length, u32 kind.
const RANGES: u64 = 0x1e8;
const RANGE: u64 = 0x2d0;
const LONGEST: usize = 2048;

/// The command line.
pub(crate) struct Words {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Words {
    /// Of this zero page.
    pub(crate) fn at(zero_page: u64) -> Self {
        let begin = u64::from(peek::<u32>(zero_page + COMMAND_LINE));
        let mut words = Self { bytes: [0; LONGEST], len: 0 };
        for (at, place) in (begin..).zip(&mut words.bytes) {
            let byte: u8 = peek(at);
            if byte == 0 {
                break;
            }
            *place = byte;
            words.len += 1;
        }
        words
    }

    /// Calls with what stands behind this key in each word that begins with it.
    pub(crate) fn each(&self, key: &str, mut call: impl FnMut(&[u8])) {
        let line = self.bytes.get(..self.len).unwrap_or(&[]);
        line.split(|byte| *byte == b' ').filter_map(|word| word.strip_prefix(key.as_bytes())).for_each(&mut call);
    }
}

/// Whether the wanted words are this name or the beginning of it, in whole parts.
pub(crate) fn is_wanted(wanted: &[u8], name: &[&str]) -> bool {
    let mut parts = name.iter();
    wanted.split(|byte| *byte == b'.').all(|word| parts.next().is_some_and(|part| part.as_bytes() == word))
}

/// First address behind all memory below 4 GiB.
pub(crate) fn memory_end(zero_page: u64) -> u64 {
    let count = u64::from(peek::<u8>(zero_page + RANGES));
    let end = |n: u64| {
        let at = zero_page + RANGE + n * 20;
        peek::<u64>(at) + peek::<u64>(at + 8)
    };
    (0..count).map(end).filter(|end| *end <= 1 << 32).max().unwrap_or(0)
}

/// A number as C writes them, from the front of these bytes.
pub(crate) fn number(text: &[u8]) -> u64 {
    let (digits, base) = text.strip_prefix(b"0x").map_or((text, 10), |hexadecimal| (hexadecimal, 16));
    digits
        .iter()
        .map_while(|digit| char::from(*digit).to_digit(base))
        .fold(0, |n, d| n * u64::from(base) + u64::from(d))
}
