//! What one layer or archive may cost: every quantity that an image drives has a limit here.

use std::time::{Duration, Instant};

use crate::spec::MIB;

/// Limits of one conversion. An archive that passes one of them is refused with the limit's name and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Most bytes that the compressed stream may inflate to.
    pub inflated_bytes: u64,
    /// Highest ratio of inflated to compressed bytes, looked at once more than [`Budget::ratio_from`] bytes have come out.
    pub ratio: u64,
    /// Inflated bytes from which on the ratio counts. DEFLATE makes 1 byte of up to 1032 zeros, so that an honest layer with a file of
    /// zeros has a high ratio for a while; nothing honest keeps it.
    pub ratio_from: u64,
    /// Most files, directories and links, those included that are only implied by a longer path.
    pub entries: u64,
    /// Longest path in bytes (`PATH_MAX` of Linux less the terminator).
    pub path_bytes: u64,
    /// Most components of a path.
    pub path_depth: u64,
    /// Longest target of a symbolic link in bytes.
    pub link_bytes: u64,
    /// Most extended attributes of one entry.
    pub xattrs: u64,
    /// Most bytes of names and values of the extended attributes of one entry.
    pub xattr_bytes: u64,
    /// Longest extended header (PAX record block or GNU long name) in bytes.
    pub header_bytes: u64,
    /// Most bytes of names, link targets, extended attributes and maps of sparse files of the whole archive: what is kept in memory and in
    /// the metadata image.
    pub metadata_bytes: u64,
    /// Largest size of one file in bytes, holes included.
    pub file_bytes: u64,
    /// Largest data blob of a layer in bytes, holes included.
    pub data_bytes: u64,
    /// Most data regions of one sparse file.
    pub sparse_regions: u64,
    /// Longest time that one pull or load may take, in seconds.
    pub time: u64,
}

/// When a pull or load has to be at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    begin: Instant,
    /// [`Budget::time`], in seconds.
    pub(crate) limit: u64,
}

impl Deadline {
    /// From now on.
    pub(crate) fn new(budget: &Budget) -> Self {
        Self { begin: Instant::now(), limit: budget.time }
    }

    /// Time that is left; none if it is over.
    pub(crate) fn left(&self) -> Option<Duration> {
        Duration::from_secs(self.limit).checked_sub(self.begin.elapsed()).filter(|left| !left.is_zero())
    }
}

impl Budget {
    /// Names of the limits, as errors and [`Budget::set`] spell them.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let names = Self::default().slots().map(|(name, _)| name);
        names.into_iter()
    }

    /// The limit of this name.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.clone().slots().into_iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    /// Changes the limit of this name, if there is one and it may be so high.
    ///
    /// # Errors
    /// The highest value that it may have: beyond it are those of file systems, of formats, or of any host. 0 if there is no such limit.
    pub fn set(&mut self, name: &str, value: u64) -> Result<(), u64> {
        let (_, slot) = self.slots().into_iter().find(|(n, _)| *n == name).ok_or(0_u64)?;
        let most = match name {
            "path_bytes" | "link_bytes" => 4095,
            "path_depth" => 2047,
            "xattrs" => 4096,
            "xattr_bytes" => 128 << 10,
            "entries" => 1 << 24,
            "header_bytes" => 64 * MIB,
            "metadata_bytes" => 4096 * MIB,
            "sparse_regions" => 1 << 20,
            "inflated_bytes" | "file_bytes" | "data_bytes" => 8 << 40,
            "time" => 365 * 86_400,
            _ => 1 << 40,
        };
        if value > most {
            return Err(most);
        }
        *slot = value;
        Ok(())
    }

    fn slots(&mut self) -> [(&'static str, &mut u64); 15] {
        [
            ("inflated_bytes", &mut self.inflated_bytes),
            ("ratio", &mut self.ratio),
            ("ratio_from", &mut self.ratio_from),
            ("entries", &mut self.entries),
            ("path_bytes", &mut self.path_bytes),
            ("path_depth", &mut self.path_depth),
            ("link_bytes", &mut self.link_bytes),
            ("xattrs", &mut self.xattrs),
            ("xattr_bytes", &mut self.xattr_bytes),
            ("header_bytes", &mut self.header_bytes),
            ("metadata_bytes", &mut self.metadata_bytes),
            ("file_bytes", &mut self.file_bytes),
            ("data_bytes", &mut self.data_bytes),
            ("sparse_regions", &mut self.sparse_regions),
            ("time", &mut self.time),
        ]
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            inflated_bytes: 65_536 * MIB,
            ratio: 1000,
            ratio_from: 256 * MIB,
            entries: 1_000_000,
            path_bytes: 4095,
            path_depth: 256,
            link_bytes: 4095,
            xattrs: 128,
            xattr_bytes: 128 << 10,
            header_bytes: MIB,
            metadata_bytes: 128 * MIB,
            file_bytes: 65_536 * MIB,
            data_bytes: 2 * 65_536 * MIB,
            sparse_regions: 65_536,
            time: 6 * 3600,
        }
    }
}
