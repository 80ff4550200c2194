//! Maps of sparse files: where the stored bytes of an entry belong (GNU tar manual, "Storing Sparse Files").

use std::io::BufRead;

use crate::image::layer::Budget;

use super::header::{BLOCK, GNU_REAL_SIZE, Header, gnu_sparse_block};
use super::pax::{PaxSparse, decimal, within_regions};
use super::{Reader, Refusal, TarError};

/// A run of stored bytes in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where in the file the bytes belong.
    pub offset: u64,
    /// How many they are; never 0.
    pub len: u64,
}

/// A sparse file: size with holes, regions with data in ascending order that do not touch each other's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseMap {
    /// Size of the file in bytes.
    pub size: u64,
    /// The regions.
    pub regions: Vec<Region>,
}

impl SparseMap {
    /// Checks a map against itself and the number of bytes that the archive holds for it.
    fn new(size: u64, pairs: &[(u64, u64)], stored: u64) -> Result<Self, Refusal> {
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for (offset, len) in pairs {
            if *offset < end {
                return Err(Refusal::Sparse("regions overlap or are out of order"));
            }
            end = offset
                .checked_add(*len)
                .filter(|e| *e <= size)
                .ok_or(Refusal::Sparse("region ends behind the file"))?;
            sum = sum.saturating_add(*len);
        }
        if sum != stored {
            return Err(Refusal::Sparse("regions and stored bytes differ in size"));
        }
        let regions = pairs.iter().filter(|(_, len)| *len > 0);
        Ok(Self { size, regions: regions.map(|(offset, len)| Region { offset: *offset, len: *len }).collect() })
    }
}

/// An error of reading, or a reason to refuse the entry whose path the caller knows.
pub(crate) enum Failure {
    Tar(TarError),
    Refusal(Refusal),
}

impl From<TarError> for Failure {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

/// Old GNU format: four regions in the header, 21 in each block behind it.
pub(crate) fn old_gnu<R: BufRead>(reader: &mut Reader<R>, header: &Header, stored: u64) -> Result<SparseMap, Failure> {
    let (mut pairs, mut more) = header.gnu_sparse()?;
    while more {
        let at = reader.position();
        let mut block = [0; BLOCK];
        reader.exact(&mut block, "sparse map")?;
        let (regions, another) = gnu_sparse_block(&block, at)?;
        pairs.extend(regions);
        within_regions(pairs.len(), reader.budget())?;
        more = another;
    }
    Ok(SparseMap::new(header.unsigned(GNU_REAL_SIZE)?, &pairs, stored)?)
}

/// PAX formats 0.0, 0.1 and 1.0. Returns the map and how many stored bytes are left behind it.
pub(crate) fn pax<R: BufRead>(
    reader: &mut Reader<R>,
    sparse: &PaxSparse,
    stored: u64,
) -> Result<(SparseMap, u64), Failure> {
    let size = sparse.real_size.ok_or(Refusal::Sparse("the real size is missing"))?;
    let (pairs, stored) = match (sparse.version, &sparse.map) {
        ((Some(1), Some(0)), None) => map_in_data(reader, stored)?,
        ((None, None) | (Some(0), Some(0 | 1)), Some(map)) => (map.clone(), stored),
        ((None, None) | (Some(0), Some(0 | 1)), None) if sparse.regions == Some(0) => (Vec::new(), stored),
        _ => return Err(Refusal::Sparse("unknown version or missing map").into()),
    };
    if sparse.regions.is_some_and(|regions| regions != pairs.len() as u64) {
        return Err(Refusal::Sparse("number of regions and map differ").into());
    }
    Ok((SparseMap::new(size, &pairs, stored)?, stored))
}

/// Format 1.0: the map stands in front of the data as decimal lines, padded to a whole block.
fn map_in_data<R: BufRead>(reader: &mut Reader<R>, stored: u64) -> Result<(Vec<(u64, u64)>, u64), Failure> {
    let mut lines = Lines { left: stored, line: Vec::new(), block: [0; BLOCK], used: BLOCK };
    let count = lines.number(reader)?;
    let within = |n: u64, budget: &Budget| within_regions(usize::try_from(n).unwrap_or(usize::MAX), budget);
    within(count, reader.budget())?;
    let mut pairs = Vec::new();
    for _ in 0..count {
        pairs.push((lines.number(reader)?, lines.number(reader)?));
    }
    Ok((pairs, lines.left))
}

/// Decimal lines out of whole blocks.
struct Lines {
    /// Stored bytes behind the current block.
    left: u64,
    line: Vec<u8>,
    block: [u8; BLOCK],
    used: usize,
}

impl Lines {
    fn number<R: BufRead>(&mut self, reader: &mut Reader<R>) -> Result<u64, Failure> {
        const BAD: Refusal = Refusal::Sparse("the map in the data is not a list of numbers");
        self.line.clear();
        loop {
            if self.used == BLOCK {
                self.left = self.left.checked_sub(BLOCK as u64).ok_or(BAD)?;
                reader.exact(&mut self.block, "sparse map")?;
                self.used = 0;
            }
            let byte = *self.block.get(self.used).ok_or(BAD)?;
            self.used = self.used.saturating_add(1);
            match byte {
                b'\n' => return Ok(decimal(&self.line).ok_or(BAD)?),
                _ if self.line.len() >= 20 => return Err(BAD.into()),
                _ => self.line.push(byte),
            }
        }
    }
}
