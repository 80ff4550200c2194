//! The tree as bytes that outlive the process.
//!
//! ```text
//! magic "DUPLXTRE" | version u32 | inodes u32 | inode ... | crc32 of all before it, u32        (all numbers little-endian)
//! inode     = kind u8 | mode u16 | uid u32 | gid u32 | seconds i64 | nanos u32 | xattrs u16 { name, value } | by kind:
//! directory = flags u8 (1 implied, 2 opaque, 4 hides something) | whiteouts u32 { name } | entries u32 { name | inode u32 }
//! file      = size u64 | layer u16 | 0 u8 | address u64
//!           | size u64 | layer u16 | 1 u8 | chunk_bits u8 | runs u32 { first u64 | chunks u64 | address u64 }
//! symlink   = target            device = major u16 | minor u32            name, value, target = length u16 | bytes
//! ```
//! Inodes stand in the order of [`Tree::walk`]; a directory names only directories with a higher number, each once, so that what is read is
//! a tree.

use std::io::{self, Read, Write};

use super::{
    Attributes, Content, DeviceNumber, Directory, File, Inode, InodeId, Kind, Run, Sparse, Time, Tree, Whiteouts,
    Xattrs,
};

const MAGIC: &[u8; 8] = b"DUPLXTRE";

/// Version of the bytes.
pub const TREE_VERSION: u32 = 1;

/// Bounds of what is read, whatever the bytes claim.
const MOST_INODES: u32 = 16_000_000;
const MOST_ENTRIES: u32 = 16_000_000;
const MOST_DEPTH: u32 = 1024;
const MOST_XATTRS: u16 = 1024;
const MOST_RUNS: u32 = 1 << 20;
const MOST_CHUNKS: u64 = 1 << 20;
/// Inodes for which room is made before the first is read.
const ROOM: u32 = 4096;

/// Why bytes are not a tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The file failed or ends too early.
    #[error("Cannot read the layer's tree")]
    Read(#[source] io::Error),
    /// The file could not be written.
    #[error("Cannot write the layer's tree")]
    Write(#[source] io::Error),
    /// Not a tree at all.
    #[error("The file is not a layer's tree")]
    Magic,
    /// Written by another version.
    #[error(
        "The layer's tree has version {0}, this program reads version {TREE_VERSION}; remove the image and pull it again"
    )]
    Version(u32),
    /// Damaged.
    #[error("The layer's tree is damaged: {0}; remove the image and pull it again")]
    Damaged(&'static str),
}

impl Tree {
    /// Writes the tree. Equal trees give equal bytes.
    ///
    /// # Errors
    /// When writing fails, or the tree has a name, list or number that the format cannot hold.
    pub fn write_to(&self, out: &mut dyn Write) -> Result<(), TreeError> {
        let order = self.walk();
        let mut numbers = vec![0_u32; self.inodes().len()];
        for (number, id) in (0_u32..).zip(&order) {
            if let Some(slot) = numbers.get_mut(id.index()) {
                *slot = number;
            }
        }
        let mut out = Sink { out: io::BufWriter::new(out), crc: flate2::Crc::new() };
        out.bytes(MAGIC)?;
        out.bytes(&TREE_VERSION.to_le_bytes())?;
        out.count32(order.len())?;
        for inode in order.iter().filter_map(|id| self.get(*id)) {
            out.inode(inode, &numbers)?;
        }
        let sum = out.crc.sum();
        out.bytes(&sum.to_le_bytes())?;
        out.out.flush().map_err(TreeError::Write)
    }

    /// Reads a tree back.
    ///
    /// # Errors
    /// When reading fails or the bytes are not a tree of this version.
    pub fn read_from(input: &mut dyn Read) -> Result<Self, TreeError> {
        let mut source = Source { input: io::BufReader::new(input), crc: flate2::Crc::new() };
        if &source.array::<8>()? != MAGIC {
            return Err(TreeError::Magic);
        }
        let version = source.u32()?;
        if version != TREE_VERSION {
            return Err(TreeError::Version(version));
        }
        let count = source.u32()?;
        if count == 0 || count > MOST_INODES {
            return Err(TreeError::Damaged("number of inodes"));
        }
        let mut inodes = Vec::with_capacity(count.min(ROOM) as usize);
        for _ in 0..count {
            inodes.push(source.inode(count)?);
        }
        let sum = source.crc.sum();
        if source.u32()? != sum {
            return Err(TreeError::Damaged("checksum"));
        }
        let tree = Self { inodes };
        tree.check()?;
        Ok(tree)
    }

    /// Whether directories form one tree and every inode has a name.
    fn check(&self) -> Result<(), TreeError> {
        let mut depths = vec![0_u32; self.inodes().len()];
        if self.get(InodeId::ROOT).and_then(Inode::directory).is_none() {
            return Err(TreeError::Damaged("the root is not a directory"));
        }
        for (number, inode) in (0_u32..).zip(self.inodes()) {
            let depth = depths.get(number as usize).copied().unwrap_or_default();
            if depth == 0 && number != 0 {
                return Err(TreeError::Damaged("an inode without a name before it"));
            }
            for entry in inode.directory().into_iter().flat_map(|d| d.entries.values()) {
                let slot = depths.get_mut(entry.index()).ok_or(TreeError::Damaged("number of an inode"))?;
                let to_directory = self.get(*entry).is_some_and(|i| i.directory().is_some());
                if to_directory && (entry.0 <= number || *slot != 0) {
                    return Err(TreeError::Damaged("directories do not form a tree"));
                }
                *slot = depth.saturating_add(1);
                if *slot > MOST_DEPTH {
                    return Err(TreeError::Damaged("depth"));
                }
            }
        }
        Ok(())
    }
}

/// Kinds as numbers, and flags of directories.
mod code {
    pub(super) const DIRECTORY: u8 = 1;
    pub(super) const FILE: u8 = 2;
    pub(super) const SYMLINK: u8 = 3;
    pub(super) const CHAR_DEVICE: u8 = 4;
    pub(super) const BLOCK_DEVICE: u8 = 5;
    pub(super) const FIFO: u8 = 6;
    pub(super) const IMPLIED: u8 = 1;
    pub(super) const OPAQUE: u8 = 2;
    pub(super) const WHITEOUTS: u8 = 4;
}

struct Sink<W: Write> {
    out: W,
    crc: flate2::Crc,
}

impl<W: Write> Sink<W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        self.crc.update(bytes);
        self.out.write_all(bytes).map_err(TreeError::Write)
    }

    fn count32(&mut self, count: usize) -> Result<(), TreeError> {
        self.bytes(&u32::try_from(count).map_err(|_| TreeError::Damaged("a list is too long"))?.to_le_bytes())
    }

    fn text(&mut self, text: &[u8]) -> Result<(), TreeError> {
        let len = u16::try_from(text.len()).map_err(|_| TreeError::Damaged("a name or value is too long"))?;
        self.bytes(&len.to_le_bytes())?;
        self.bytes(text)
    }

    fn inode(&mut self, inode: &Inode, numbers: &[u32]) -> Result<(), TreeError> {
        let Attributes { mode, uid, gid, mtime, xattrs } = &inode.attributes;
        self.bytes(&[match &inode.kind {
            Kind::Directory(_) => code::DIRECTORY,
            Kind::File(_) => code::FILE,
            Kind::Symlink(_) => code::SYMLINK,
            Kind::CharDevice(_) => code::CHAR_DEVICE,
            Kind::BlockDevice(_) => code::BLOCK_DEVICE,
            Kind::Fifo => code::FIFO,
        }])?;
        self.bytes(&mode.to_le_bytes())?;
        self.bytes(&uid.to_le_bytes())?;
        self.bytes(&gid.to_le_bytes())?;
        self.bytes(&mtime.seconds().to_le_bytes())?;
        self.bytes(&mtime.nanos().to_le_bytes())?;
        let count = xattrs.as_ref().map_or(0, |x| x.len());
        let count = u16::try_from(count).map_err(|_| TreeError::Damaged("too many extended attributes"))?;
        self.bytes(&count.to_le_bytes())?;
        for (name, value) in xattrs.iter().flat_map(|x| x.iter()) {
            self.text(name)?;
            self.text(value)?;
        }
        match &inode.kind {
            Kind::Directory(directory) => self.directory(directory, numbers),
            Kind::File(file) => self.file(file),
            Kind::Symlink(target) => self.text(target),
            Kind::CharDevice(number) | Kind::BlockDevice(number) => {
                self.bytes(&number.major().to_le_bytes())?;
                self.bytes(&number.minor().to_le_bytes())
            }
            Kind::Fifo => Ok(()),
        }
    }

    fn directory(&mut self, directory: &Directory, numbers: &[u32]) -> Result<(), TreeError> {
        let hidden = directory.whiteouts.as_deref();
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(directory.implied, code::IMPLIED)
            | flag(hidden.is_some_and(|w| w.opaque), code::OPAQUE)
            | flag(hidden.is_some(), code::WHITEOUTS);
        self.bytes(&[flags])?;
        self.count32(hidden.map_or(0, |w| w.names.len()))?;
        for name in hidden.iter().flat_map(|w| &w.names) {
            self.text(name)?;
        }
        self.count32(directory.entries.len())?;
        for (name, id) in &directory.entries {
            self.text(name)?;
            let number = numbers.get(id.index()).copied().unwrap_or_default();
            self.bytes(&number.to_le_bytes())?;
        }
        Ok(())
    }

    fn file(&mut self, file: &File) -> Result<(), TreeError> {
        self.bytes(&file.size.to_le_bytes())?;
        self.bytes(&file.layer.to_le_bytes())?;
        match &file.content {
            Content::Whole(address) => {
                self.bytes(&[0])?;
                self.bytes(&address.to_le_bytes())
            }
            Content::Sparse(sparse) => {
                self.bytes(&[1, sparse.chunk_bits])?;
                self.count32(sparse.runs.len())?;
                for run in &sparse.runs {
                    for number in [run.first, run.chunks, run.address] {
                        self.bytes(&number.to_le_bytes())?;
                    }
                }
                Ok(())
            }
        }
    }
}

struct Source<R: Read> {
    input: R,
    crc: flate2::Crc,
}

impl<R: Read> Source<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], TreeError> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(TreeError::Read)?;
        self.crc.update(&bytes);
        Ok(bytes)
    }

    fn u8(&mut self) -> Result<u8, TreeError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, TreeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, TreeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, TreeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn count32(&mut self, most: u32) -> Result<u32, TreeError> {
        Some(self.u32()?).filter(|n| *n <= most).ok_or(TreeError::Damaged("a list is too long"))
    }

    fn text(&mut self) -> Result<Box<[u8]>, TreeError> {
        let mut text = vec![0; usize::from(self.u16()?)];
        self.input.read_exact(&mut text).map_err(TreeError::Read)?;
        self.crc.update(&text);
        Ok(text.into_boxed_slice())
    }

    /// A name of a directory entry.
    fn name(&mut self) -> Result<Box<[u8]>, TreeError> {
        let name = self.text()?;
        let plain =
            !matches!(&*name, b"" | b"." | b"..") && name.len() <= 255 && !name.iter().any(|b| matches!(b, b'/' | 0));
        if plain { Ok(name) } else { Err(TreeError::Damaged("a name")) }
    }

    fn inode(&mut self, inodes: u32) -> Result<Inode, TreeError> {
        let kind = self.u8()?;
        let mode = Some(self.u16()?).filter(|m| *m <= 0o7777).ok_or(TreeError::Damaged("mode"))?;
        let (uid, gid) = (self.u32()?, self.u32()?);
        let seconds = i64::from_le_bytes(self.array()?);
        let mtime = Time::new(seconds, self.u32()?).ok_or(TreeError::Damaged("time"))?;
        let count = Some(self.u16()?).filter(|n| *n <= MOST_XATTRS).ok_or(TreeError::Damaged("extended attributes"))?;
        let mut xattrs = Xattrs::new();
        for _ in 0..count {
            let (name, value) = (self.text()?, self.text()?);
            if name.len() > 255 || xattrs.insert(name, value).is_some() {
                return Err(TreeError::Damaged("extended attributes"));
            }
        }
        let xattrs = (!xattrs.is_empty()).then(|| Box::new(xattrs));
        let kind = match kind {
            code::DIRECTORY => Kind::Directory(self.directory(inodes)?),
            code::FILE => Kind::File(self.file()?),
            code::SYMLINK => Kind::Symlink(self.target()?),
            code::CHAR_DEVICE => Kind::CharDevice(self.device()?),
            code::BLOCK_DEVICE => Kind::BlockDevice(self.device()?),
            code::FIFO => Kind::Fifo,
            _ => return Err(TreeError::Damaged("kind of an inode")),
        };
        Ok(Inode { attributes: Attributes { mode, uid, gid, mtime, xattrs }, kind })
    }

    fn target(&mut self) -> Result<Box<[u8]>, TreeError> {
        let target = self.text()?;
        let valid = (1..=4095).contains(&target.len()) && !target.contains(&0);
        if valid { Ok(target) } else { Err(TreeError::Damaged("target of a link")) }
    }

    fn device(&mut self) -> Result<DeviceNumber, TreeError> {
        let (major, minor) = (self.u16()?, self.u32()?);
        DeviceNumber::new(u64::from(major), u64::from(minor)).ok_or(TreeError::Damaged("device number"))
    }

    fn directory(&mut self, inodes: u32) -> Result<Directory, TreeError> {
        let flags = self.u8()?;
        let mut whiteouts = Whiteouts { opaque: flags & code::OPAQUE != 0, ..Whiteouts::default() };
        for _ in 0..self.count32(MOST_ENTRIES)? {
            whiteouts.names.insert(self.name()?);
        }
        let hidden = flags & code::WHITEOUTS != 0;
        let known = flags <= (code::IMPLIED | code::OPAQUE | code::WHITEOUTS);
        if !known || (!hidden && whiteouts != Whiteouts::default()) {
            return Err(TreeError::Damaged("flags of a directory"));
        }
        let mut directory = Directory {
            implied: flags & code::IMPLIED != 0,
            whiteouts: hidden.then(|| Box::new(whiteouts)),
            ..Directory::default()
        };
        for _ in 0..self.count32(MOST_ENTRIES)? {
            let name = self.name()?;
            let id = Some(self.u32()?).filter(|id| *id < inodes).ok_or(TreeError::Damaged("number of an inode"))?;
            if directory.entries.insert(name, InodeId(id)).is_some() {
                return Err(TreeError::Damaged("a name comes twice"));
            }
        }
        Ok(directory)
    }

    fn file(&mut self) -> Result<File, TreeError> {
        let (size, layer) = (self.u64()?, self.u16()?);
        let content = match self.u8()? {
            0 => Content::Whole(self.address()?),
            1 => {
                let chunk_bits = self.u8()?;
                let mut runs = Vec::new();
                for _ in 0..self.count32(MOST_RUNS)? {
                    runs.push(Run { first: self.u64()?, chunks: self.u64()?, address: self.address()? });
                }
                Content::Sparse(Box::new(Sparse { chunk_bits, runs }))
            }
            _ => return Err(TreeError::Damaged("content of a file")),
        };
        let file = File { size, layer, content };
        if file.is_valid() { Ok(file) } else { Err(TreeError::Damaged("content of a file")) }
    }

    fn address(&mut self) -> Result<u64, TreeError> {
        Some(self.u64()?).filter(|a| a % 4096 == 0).ok_or(TreeError::Damaged("address of content"))
    }
}

impl File {
    /// Whether size, chunks and addresses make sense together.
    fn is_valid(&self) -> bool {
        let Content::Sparse(sparse) = &self.content else {
            return i64::try_from(self.size).is_ok();
        };
        if !(12..=43).contains(&sparse.chunk_bits) || i64::try_from(self.size).is_err() {
            return false;
        }
        let chunks = self.size.div_ceil(1 << sparse.chunk_bits);
        if chunks > MOST_CHUNKS {
            return false;
        }
        let mut end = 0_u64;
        sparse.runs.iter().all(|run| {
            let next = run.first.checked_add(run.chunks);
            let valid = run.first >= end && run.chunks > 0 && next.is_some_and(|n| n <= chunks);
            end = next.unwrap_or(u64::MAX);
            valid
        })
    }
}
