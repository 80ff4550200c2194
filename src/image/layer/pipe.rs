//! The bounded pipe between the thread that inflates and the thread that reads the archive: chunks go forth, empty buffers come back.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use sha2::{Digest as _, Sha256};

use crate::image::decompress::{DecompressError, Decompressor};
use crate::spec::Digest;

/// Bytes of a chunk.
const CHUNK: usize = 256 << 10;

/// Chunks under way at most, besides the one at each end.
const DEPTH: usize = 4;

/// A piece of the stream, or its proper end.
enum Message {
    Chunk(Vec<u8>),
    End,
}

/// The end that inflates.
pub(super) struct ChunkSender {
    full: SyncSender<Message>,
    empty: Receiver<Vec<u8>>,
}

/// The end that reads: every byte that passes is hashed.
pub(super) struct Chunks {
    full: Receiver<Message>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    used: usize,
    ended: bool,
    hash: Sha256,
}

pub(super) fn pipe() -> (ChunkSender, Chunks) {
    let (full_sender, full) = sync_channel(DEPTH);
    let (empty_sender, empty) = channel();
    let chunks = Chunks { full, empty: empty_sender, current: Vec::new(), used: 0, ended: false, hash: Sha256::new() };
    (ChunkSender { full: full_sender, empty }, chunks)
}

/// Sends the whole stream. Ends early, without an error, when the reader has gone: it has the error.
pub(super) fn pump(source: &mut Decompressor<'_>, sender: ChunkSender) -> Result<(), DecompressError> {
    let ChunkSender { full, empty } = sender;
    loop {
        let mut chunk = empty.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let n = source.fill(&mut chunk)?;
        chunk.truncate(n);
        let message = if n == 0 { Message::End } else { Message::Chunk(chunk) };
        if full.send(message).is_err() || n == 0 {
            return Ok(());
        }
    }
}

impl Chunks {
    /// SHA-256 of what has passed.
    pub(super) fn digest(self) -> Digest {
        Digest::from_sha256(self.hash.finalize().into())
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used >= self.current.len() && !self.ended {
            match self.full.recv() {
                Ok(Message::Chunk(chunk)) => {
                    self.hash.update(&chunk);
                    // The inflating end may be gone already, then no buffer is needed.
                    let _ = self.empty.send(std::mem::replace(&mut self.current, chunk));
                    self.used = 0;
                }
                Ok(Message::End) => self.ended = true,
                // Never reported: the inflating end has the reason.
                Err(_) => return Err(io::Error::other("the stream was given up")),
            }
        }
        Ok(self.current.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.used = self.used.saturating_add(n).min(self.current.len());
    }
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}
