//! A blob as a plain stream of bytes, taken up again where it broke off.

use std::io::{self, Read};
use std::time::Instant;

use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::RegistryError;
use super::client::{Client, is_worth_another_try};
use crate::image::ingest::SourceError;
use crate::spec::Digest;

/// Most times one blob is taken up again, however much came in between.
const MAX_RESUMES: u32 = 8;
/// A stall limit's time must bring so many bytes.
const LEAST_PER_STALL: u64 = 1024;

/// One blob being fetched.
pub(super) struct Blob<'a> {
    client: &'a Client,
    event_loop: Runtime,
    digest: Digest,
    what: String,
    size: u64,
    /// Bytes given to the reader.
    at: u64,
    response: Option<Response>,
    /// Bytes of the current answer that come before `at`: the registry does not know ranges.
    skip: u64,
    chunk: Vec<u8>,
    chunk_at: usize,
    resumes: u32,
    /// Where we were when we last took up the blob again.
    resumed_at: Option<u64>,
    window: (Instant, u64),
}

impl<'a> Blob<'a> {
    /// Begins to fetch. An answer that announces another length than `size` is refused at once.
    pub(super) fn open(client: &'a Client, digest: &Digest, size: u64) -> Result<Self, RegistryError> {
        let mut blob = Self {
            client,
            event_loop: client.event_loop()?,
            digest: digest.clone(),
            what: format!("blob {digest}"),
            size,
            at: 0,
            response: None,
            skip: 0,
            chunk: Vec::new(),
            chunk_at: 0,
            resumes: 0,
            resumed_at: None,
            window: (Instant::now(), 0),
        };
        match blob.request() {
            Err(e) if is_worth_another_try(&e) => {
                blob.resumed_at = Some(0);
                blob.request()?;
            }
            result => result?,
        }
        Ok(blob)
    }

    fn request(&mut self) -> Result<(), RegistryError> {
        self.response = None;
        let response = self.event_loop.block_on(self.client.blob(&self.digest, self.at, &self.what))?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let begins = response.headers().get(CONTENT_RANGE).and_then(|h| h.to_str().ok()).and_then(range_begin);
        self.skip = match (partial, begins) {
            (true, Some(begin)) if begin <= self.at => self.at.saturating_sub(begin),
            (true, _) => return Err(self.cut(None)),
            (false, _) => self.at,
        };
        let expected = self.size.saturating_sub(self.at).saturating_add(self.skip);
        if let Some(announced) = response.content_length().filter(|announced| *announced != expected) {
            let (registry, what) = (self.client.registry.clone(), self.what.clone());
            return Err(RegistryError::Length { registry, what, announced, expected });
        }
        self.response = Some(response);
        self.window = (Instant::now(), 0);
        Ok(())
    }

    fn cut(&self, source: Option<reqwest::Error>) -> RegistryError {
        let (registry, what) = (self.client.registry.clone(), self.what.clone());
        let source = source.map(|e| Box::new(e.without_url()));
        RegistryError::Cut { registry, what, at: self.at, size: self.size, source }
    }

    fn stalled(&self) -> RegistryError {
        let (registry, what, after) = (self.client.registry.clone(), self.what.clone(), self.client.options.stall);
        RegistryError::Stalled { registry, what, after, at: self.at }
    }

    /// The next bytes from the wire, into `chunk`. `false` at the end.
    fn step(&mut self) -> Result<bool, RegistryError> {
        let Some(response) = &mut self.response else { return Err(self.cut(None)) };
        let stall = self.client.options.stall;
        let patience = self.client.patience(&self.what)?;
        let step = self.event_loop.block_on(async { timeout(patience, response.chunk()).await });
        let mut chunk = match step {
            Err(_) => return self.client.patience(&self.what).and_then(|_| Err(self.stalled())),
            Ok(Err(source)) => return Err(self.cut(Some(source))),
            Ok(Ok(None)) if self.at < self.size => return Err(self.cut(None)),
            Ok(Ok(None)) => return Ok(false),
            Ok(Ok(Some(chunk))) => chunk.to_vec(),
        };
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        self.window.1 = self.window.1.saturating_add(length);
        if self.window.0.elapsed() > stall {
            if self.window.1 < LEAST_PER_STALL {
                return Err(self.stalled());
            }
            self.window = (Instant::now(), 0);
        }
        let skipped = self.skip.min(length);
        self.skip = self.skip.saturating_sub(skipped);
        chunk.drain(..usize::try_from(skipped).unwrap_or(usize::MAX));
        (self.chunk, self.chunk_at) = (chunk, 0);
        Ok(true)
    }

    /// Like `step`, but a blob that broke off is taken up again: once at each place, and not for ever.
    fn step_or_resume(&mut self) -> Result<bool, RegistryError> {
        loop {
            let failure = match self.step() {
                Err(e) if is_worth_another_try(&e) => e,
                result => return result,
            };
            if self.resumed_at == Some(self.at) || self.resumes >= MAX_RESUMES {
                return Err(failure);
            }
            self.resumes = self.resumes.saturating_add(1);
            self.resumed_at = Some(self.at);
            self.request()?;
        }
    }
}

/// First byte of `bytes 100-199/200` (RFC 9110, section 14.4).
fn range_begin(header: &str) -> Option<u64> {
    header.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk_at >= self.chunk.len() {
            let more = self.step_or_resume().map_err(|e| io::Error::other(SourceError::from(e)))?;
            if !more {
                return Ok(0);
            }
        }
        let rest = &self.chunk[self.chunk_at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.chunk_at = self.chunk_at.saturating_add(count);
        self.at = self.at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}
