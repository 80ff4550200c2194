//! A file system without its file contents: what one layer brings, or a whole image after [`crate::image::merge`].
//!
//! Inodes stand in one list and directories name them by number, so that a hard link is two names of one number. Contents are addresses in the
//! data blob of a layer. No name is ever looked up on a host.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::{BTreeMap, BTreeSet};

mod codec;
#[cfg(test)]
mod tests;

pub use codec::{TREE_VERSION, TreeError};

/// Number of an inode in its [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

impl InodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    /// Position in lists that run along [`Tree::inodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }

    fn at(index: usize) -> Option<Self> {
        u32::try_from(index).ok().map(Self)
    }
}

/// A file system tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    inodes: Vec<Inode>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Owner, permissions, time, extended attributes.
    pub attributes: Attributes,
    /// What it is.
    pub kind: Kind,
}

/// Properties that all kinds of inodes have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-user-ID, set-group-ID and sticky (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Time of the last change.
    pub mtime: Time,
    /// Extended attributes, if any: full name and value.
    pub xattrs: Option<Box<Xattrs>>,
}

/// Extended attributes: full names (`user.x`, `security.capability`) and values.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// A time as seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    seconds: i64,
    nanos: u32,
}

/// Times that are taken: 34,000 years around the epoch. Go writes its zero time, year 1, into archives.
const MOST_SECONDS: u64 = 1 << 40;

impl Time {
    /// A time, if it is one that file systems can hold. `nanos` counts up from `seconds`, below 1,000,000,000.
    pub fn new(seconds: i64, nanos: u32) -> Option<Self> {
        (seconds.unsigned_abs() <= MOST_SECONDS && nanos < 1_000_000_000).then_some(Self { seconds, nanos })
    }

    /// Seconds since 1970-01-01 00:00 UTC, rounded down.
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds above the second.
    pub fn nanos(self) -> u32 {
        self.nanos
    }
}

/// A device number of Linux: 12 bits major, 20 bits minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber {
    major: u16,
    minor: u32,
}

impl DeviceNumber {
    /// A device number, if Linux can express it.
    pub fn new(major: u64, minor: u64) -> Option<Self> {
        let major = u16::try_from(major).ok().filter(|m| *m < 1 << 12)?;
        let minor = u32::try_from(minor).ok().filter(|m| *m < 1 << 20)?;
        Some(Self { major, minor })
    }

    /// The driver.
    pub fn major(self) -> u16 {
        self.major
    }

    /// The device of the driver.
    pub fn minor(self) -> u32 {
        self.minor
    }
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File(File),
    /// A symbolic link with its target.
    Symlink(Box<[u8]>),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}

/// A directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Names in byte order.
    pub entries: BTreeMap<Box<[u8]>, InodeId>,
    /// The layer has no entry of its own for it, only longer paths through it: what a lower layer says of it stays.
    pub implied: bool,
    /// What it hides of lower layers. `None` in a merged tree.
    pub whiteouts: Option<Box<Whiteouts>>,
}

/// What a directory hides of the layers below (OCI image spec, "layer.md", "Whiteouts").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whiteouts {
    /// Everything: `.wh..wh..opq`.
    pub opaque: bool,
    /// These names: `.wh.<name>`.
    pub names: BTreeSet<Box<[u8]>>,
}

/// A regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Size in bytes, holes included.
    pub size: u64,
    /// The layer whose data blob holds the content, 0 is the lowest. Always 0 in the tree of one layer.
    pub layer: u16,
    /// Where the content is.
    pub content: Content,
}

/// Where the content of a file is. Addresses are bytes in the layer's data blob, multiples of 4096.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In one piece from this address, without holes. Also an empty file, at address 0.
    Whole(u64),
    /// In chunks with holes between them.
    Sparse(Box<Sparse>),
}

/// Content in chunks of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Size of a chunk as a power of two, 12 or more.
    pub chunk_bits: u8,
    /// Runs of chunks with data, in ascending order of `first`, not overlapping.
    pub runs: Vec<Run>,
}

/// Consecutive chunks of a file that also follow each other in the data blob. The last chunk of a file may be cut off at the block (4096
/// bytes) in which the file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the first chunk in the file.
    pub first: u64,
    /// How many chunks.
    pub chunks: u64,
    /// Address of the first chunk's data.
    pub address: u64,
}

impl Default for Tree {
    /// An empty root directory that no layer has spoken of.
    fn default() -> Self {
        Self { inodes: vec![Inode::implied_directory()] }
    }
}

impl Inode {
    /// A directory of which only the name is known: root's, mode 0755, as image builders make them.
    pub fn implied_directory() -> Self {
        let directory = Directory { implied: true, ..Directory::default() };
        Self { attributes: Attributes { mode: 0o755, ..Attributes::default() }, kind: Kind::Directory(directory) }
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Directory> {
        match &self.kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The directory, if it is one.
    pub fn directory_mut(&mut self) -> Option<&mut Directory> {
        match &mut self.kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }
}

impl Tree {
    /// All inodes; [`InodeId::index`] is the position. The first is the root.
    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// Gives the inodes away, in the order of [`Tree::inodes`].
    pub fn into_inodes(self) -> Vec<Inode> {
        self.inodes
    }

    /// An inode.
    pub fn get(&self, id: InodeId) -> Option<&Inode> {
        self.inodes.get(id.index())
    }

    /// An inode.
    pub fn get_mut(&mut self, id: InodeId) -> Option<&mut Inode> {
        self.inodes.get_mut(id.index())
    }

    /// The inode of a name in a directory.
    pub fn lookup(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        self.get(directory)?.directory()?.entries.get(name).copied()
    }

    /// The inode at a path of components joined by `/`; links are not followed.
    pub fn find(&self, path: &[u8]) -> Option<InodeId> {
        let components = path.split(|b| *b == b'/').filter(|c| !c.is_empty());
        components.into_iter().try_fold(InodeId::ROOT, |at, name| self.lookup(at, name))
    }

    /// Adds an inode that has no name yet. `None` when the tree is full (2^32 inodes).
    pub fn add(&mut self, inode: Inode) -> Option<InodeId> {
        let id = InodeId::at(self.inodes.len())?;
        self.inodes.push(inode);
        Some(id)
    }

    /// Drops inodes without a name and numbers the rest in the order of a walk: directory by directory, names in byte order.
    #[must_use]
    pub fn compacted(mut self) -> Self {
        let order = self.walk();
        let mut numbers = vec![InodeId::ROOT; self.inodes.len()];
        for (index, id) in order.iter().enumerate() {
            if let (Some(slot), Some(number)) = (numbers.get_mut(id.index()), InodeId::at(index)) {
                *slot = number;
            }
        }
        let mut inodes = Vec::with_capacity(order.len());
        for id in order {
            let Some(slot) = self.inodes.get_mut(id.index()) else { continue };
            let mut inode = std::mem::replace(slot, Inode { attributes: Attributes::default(), kind: Kind::Fifo });
            if let Some(directory) = inode.directory_mut() {
                for entry in directory.entries.values_mut() {
                    *entry = numbers.get(entry.index()).copied().unwrap_or(InodeId::ROOT);
                }
            }
            inodes.push(inode);
        }
        Self { inodes }
    }

    /// Every inode that has a name, once, breadth first.
    pub fn walk(&self) -> Vec<InodeId> {
        let mut seen = vec![false; self.inodes.len()];
        let mut order = vec![InodeId::ROOT];
        let mut next = 0_usize;
        while let Some(id) = order.get(next).copied() {
            next = next.saturating_add(1);
            let Some(directory) = self.get(id).and_then(Inode::directory) else { continue };
            for entry in directory.entries.values() {
                if let Some(seen) = seen.get_mut(entry.index()).filter(|seen| !**seen) {
                    *seen = true;
                    order.push(*entry);
                }
            }
        }
        order
    }
}
