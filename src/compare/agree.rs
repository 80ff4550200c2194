//! Whether two runs did the same: a comparison of different work is no comparison.

use std::fmt;

use crate::spec::Digest;

/// Bytes of a stream that are kept for telling where two differ; the hash covers all of them.
pub(super) const KEPT: usize = 64 << 10;

/// What a run wrote to one stream.
#[derive(Clone, PartialEq, Eq)]
pub struct Captured {
    /// The first [`KEPT`] bytes.
    pub head: Vec<u8>,
    /// Length of the whole.
    pub len: u64,
    /// Hash of the whole.
    pub sha256: Digest,
}

impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes {}", self.len, self.sha256.short())
    }
}

impl Captured {
    /// The kept part as text, at most `most` characters, with control characters shown as escapes.
    pub fn excerpt(&self, most: usize) -> String {
        excerpt(&self.head, most)
    }
}

fn excerpt(bytes: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text.chars().take(most).flat_map(char::escape_debug).collect();
    if text.chars().nth(most).is_some() {
        shown.push_str("...");
    }
    shown
}

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "Standard output",
            Self::Stderr => "Standard error",
        })
    }
}

/// What a run did, as far as another must do the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// Exit code.
    pub exit_code: u8,
    /// Standard output.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
}

/// The first difference between two runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disagreement {
    /// The exit codes.
    #[error("Exit codes differ: {other} of {other_run}, {first} of {first_run}")]
    ExitCode {
        /// The run that set the measure.
        first_run: String,
        /// Its exit code.
        first: u8,
        /// The run that differs.
        other_run: String,
        /// Its exit code.
        other: u8,
    },
    /// A stream.
    #[error("{stream} differs from byte {at} on (line {line}): \"{other}\" of {other_run}, \"{first}\" of {first_run}")]
    Output {
        /// Which stream.
        stream: Stream,
        /// Position of the first difference, from 0.
        at: u64,
        /// Line of the first difference, from 1.
        line: usize,
        /// The run that set the measure.
        first_run: String,
        /// What it wrote there.
        first: String,
        /// The run that differs.
        other_run: String,
        /// What it wrote there.
        other: String,
    },
    /// A stream, behind the part that is kept.
    #[error("{stream} differs behind its first {} KiB: {other} bytes of {other_run}, {first} bytes of {first_run}", KEPT >> 10)]
    Tail {
        /// Which stream.
        stream: Stream,
        /// The run that set the measure.
        first_run: String,
        /// Its length.
        first: u64,
        /// The run that differs.
        other_run: String,
        /// Its length.
        other: u64,
    },
}

/// The first difference of `other` from `first`; each comes with the words that name its run.
pub(super) fn disagreement(first: (&str, &Deed), other: (&str, &Deed)) -> Option<Disagreement> {
    let ((first_run, first), (other_run, other)) = (first, other);
    if first.exit_code != other.exit_code {
        return Some(Disagreement::ExitCode {
            first_run: first_run.to_owned(),
            first: first.exit_code,
            other_run: other_run.to_owned(),
            other: other.exit_code,
        });
    }
    [(Stream::Stdout, &first.stdout, &other.stdout), (Stream::Stderr, &first.stderr, &other.stderr)]
        .into_iter()
        .find(|(_, a, b)| a.sha256 != b.sha256 || a.len != b.len)
        .map(|(stream, a, b)| difference(stream, (first_run, a), (other_run, b)))
}

fn difference(stream: Stream, first: (&str, &Captured), other: (&str, &Captured)) -> Disagreement {
    let (a, b) = (&first.1.head, &other.1.head);
    let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let at_end = same == a.len() && same == b.len();
    let (first_run, other_run) = (first.0.to_owned(), other.0.to_owned());
    if at_end {
        return Disagreement::Tail { stream, first_run, first: first.1.len, other_run, other: other.1.len };
    }
    let begin = a.get(..same).unwrap_or_default();
    let rest = |bytes: &[u8]| excerpt(bytes.get(same..).unwrap_or_default(), 40);
    Disagreement::Output {
        stream,
        at: same as u64,
        line: begin.iter().filter(|b| **b == b'\n').count() + 1,
        first: rest(a),
        other: rest(b),
        first_run,
        other_run,
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn captured(bytes: &[u8]) -> Captured {
        Captured {
            head: bytes.iter().copied().take(KEPT).collect(),
            len: bytes.len() as u64,
            sha256: Digest::from_sha256(Sha256::digest(bytes).into()),
        }
    }

    fn deed(exit_code: u8, stdout: &[u8], stderr: &[u8]) -> Deed {
        Deed { exit_code, stdout: captured(stdout), stderr: captured(stderr) }
    }

    fn words(first: &Deed, other: &Deed) -> String {
        disagreement(("container, round 1", first), ("microvm, round 1", other))
            .map_or(String::new(), |d| d.to_string())
    }

    #[test]
    fn equal_deeds_agree() {
        assert_eq!(words(&deed(3, b"x", b"y"), &deed(3, b"x", b"y")), "");
    }

    #[test]
    fn the_first_difference_is_named() {
        let a = deed(0, b"one\ntwo\n", b"");
        assert_eq!(words(&a, &deed(1, b"", b"")), "Exit codes differ: 1 of microvm, round 1, 0 of container, round 1");
        assert_eq!(
            words(&a, &deed(0, b"one\ntree\n", b"")),
            "Standard output differs from byte 5 on (line 2): \"ree\\n\" of microvm, round 1, \"wo\\n\" of container, round 1"
        );
        assert!(words(&a, &deed(0, b"one\ntwo\n", b"warning")).starts_with("Standard error differs from byte 0"));
        assert!(words(&a, &deed(0, b"one\n", b"")).contains("from byte 4"));
    }

    #[test]
    fn a_difference_behind_the_kept_part_is_seen() {
        let mut long = vec![b'x'; KEPT + 10];
        let a = deed(0, &long, b"");
        long[KEPT + 5] = b'y';
        assert!(words(&a, &deed(0, &long, b"")).contains("behind its first 64 KiB"));
    }
}
