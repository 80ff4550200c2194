//! Bytes on their way, counted, hashed and held to what was announced.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

use super::{IngestError, SourceError};
use crate::image::layer::Deadline;
use crate::spec::Digest;

/// Most bytes read to find out whether content that cannot be used is what was announced.
const MAX_DRAIN: u64 = 64 << 20;

/// A stream that is announced with its length and its digest.
pub(in crate::image) struct Verified<'a> {
    inner: Box<dyn Read + 'a>,
    /// For messages: `layer sha256:...`.
    what: String,
    digest: Digest,
    size: u64,
    read: u64,
    hasher: Sha256,
    failure: Option<SourceError>,
    stop: Option<&'a AtomicBool>,
    deadline: Option<Deadline>,
    on_read: Box<dyn FnMut(u64) + 'a>,
}

impl<'a> Verified<'a> {
    /// Holds `inner` to `size` bytes and to `digest`.
    pub(in crate::image) fn new(inner: Box<dyn Read + 'a>, what: String, digest: Digest, size: u64) -> Self {
        let (hasher, on_read) = (Sha256::new(), Box::new(|_| {}));
        Self { inner, what, digest, size, read: 0, hasher, failure: None, stop: None, deadline: None, on_read }
    }

    /// Ends the stream with an error as soon as `stop` is set; tells `on_read` how many bytes have been read.
    pub(super) fn watched(self, stop: &'a AtomicBool, on_read: impl FnMut(u64) + 'a) -> Self {
        Self { stop: Some(stop), on_read: Box::new(on_read), ..self }
    }

    /// Ends the stream with an error when this time is over.
    pub(super) fn hurry(&mut self, deadline: Deadline) {
        self.deadline = Some(deadline);
    }

    /// All of it, verified. For documents whose size has been found small enough.
    pub(in crate::image) fn document(mut self) -> Result<Vec<u8>, IngestError> {
        let mut bytes = Vec::new();
        let result = self.read_to_end(&mut bytes);
        self.finish(result.map_err(|source| IngestError::Read { what: self.what.clone(), source }).err())?;
        Ok(bytes)
    }

    /// Says whether what came is what was announced. `refused` is what the reader found wrong with it, if anything: it counts only if the source
    /// did not fail and the bytes are the announced ones, because then they themselves are bad.
    pub(in crate::image) fn finish(&mut self, refused: Option<IngestError>) -> Result<(), IngestError> {
        let mut drained = 0u64;
        let mut buffer = vec![0; 64 << 10];
        while self.failure.is_none() && self.read <= self.size {
            if refused.is_some() && drained > MAX_DRAIN {
                break;
            }
            match self.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => drained = drained.saturating_add(u64::try_from(n).unwrap_or(u64::MAX)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(IngestError::Stopped);
        }
        if let Some(failure) = self.failure.take() {
            return Err(failure.into());
        }
        // Too much is left to be fetched only to learn whether it is what was announced.
        let given_up = refused.is_some() && drained > MAX_DRAIN;
        if !given_up {
            self.compare()?;
        }
        refused.map_or(Ok(()), Err)
    }

    fn compare(&mut self) -> Result<(), IngestError> {
        if self.read != self.size {
            let (what, expected, found) = (self.what.clone(), self.size, self.read);
            return Err(if found < expected {
                IngestError::Truncated { what, expected, found }
            } else {
                IngestError::TooLong { what, expected }
            });
        }
        let found = Digest::from_sha256(std::mem::take(&mut self.hasher).finalize().into());
        if found == self.digest {
            return Ok(());
        }
        Err(IngestError::WrongDigest { what: self.what.clone(), expected: self.digest.clone(), found })
    }
}

impl Read for Verified<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(io::Error::other("stopped"));
        }
        if self.failure.is_some() {
            return Err(io::Error::other("the source has failed"));
        }
        if let Some(late) = self.deadline.filter(|deadline| deadline.left().is_none()) {
            self.failure = Some(SourceError::Time { what: self.what.clone(), limit: late.limit });
            return Err(io::Error::other("out of time"));
        }
        // One byte more than announced is let in, to be noticed; none of it reaches the reader.
        let left = self.size.saturating_sub(self.read).saturating_add(1);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match self.inner.read(&mut buffer[..most]) {
            Ok(n) => {
                self.read = self.read.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
                if self.read > self.size {
                    return Err(io::Error::other("longer than announced"));
                }
                self.hasher.update(&buffer[..n]);
                (self.on_read)(self.read);
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let text = e.to_string();
                self.failure = Some(SourceError::from_read(e, &self.what));
                Err(io::Error::other(text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> Digest {
        Digest::from_sha256(Sha256::digest(bytes).into())
    }

    fn stream(bytes: &'static [u8], expected: &[u8], size: u64) -> Verified<'static> {
        Verified::new(Box::new(bytes), "layer x".to_owned(), digest(expected), size)
    }

    #[test]
    fn only_the_announced_bytes_pass() {
        assert_eq!(stream(b"abc", b"abc", 3).document().unwrap(), b"abc");
        assert!(matches!(stream(b"abc", b"abd", 3).document(), Err(IngestError::WrongDigest { .. })));
        assert!(matches!(stream(b"abc", b"abc", 4).document(), Err(IngestError::Truncated { found: 3, .. })));
        assert!(matches!(stream(b"abc", b"abc", 2).document(), Err(IngestError::TooLong { expected: 2, .. })));
    }

    #[test]
    fn a_refusal_counts_only_if_the_bytes_are_the_announced_ones() {
        let refusal = || Some(IngestError::Stopped);
        let finish = |mut stream: Verified<'_>| stream.finish(refusal()).unwrap_err();
        assert!(matches!(finish(stream(b"abc", b"abc", 3)), IngestError::Stopped));
        assert!(matches!(finish(stream(b"abc", b"xyz", 3)), IngestError::WrongDigest { .. }));
        assert!(matches!(finish(stream(b"abc", b"abc", 5)), IngestError::Truncated { .. }));
    }

    #[test]
    fn what_the_source_says_comes_first() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let mut stream = Verified::new(Box::new(Fails), "layer x".to_owned(), digest(b""), 9);
        assert!(stream.read(&mut [0; 4]).is_err());
        assert!(matches!(stream.finish(Some(IngestError::Stopped)), Err(IngestError::Source(_))));
    }
}
