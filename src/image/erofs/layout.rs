//! First pass: where everything goes. Nothing is written before all of it has a place.

use crate::image::tree::{Content, File, Inode, InodeId, Kind, Tree};

use super::directory::{self, Dirent};
use super::format::{
    BLOCK, CHUNK_FORMAT_INDEXES, CHUNK_INDEX, COMPACT_INODE, DEVICE_SLOT, DataLayout, EXTENDED_INODE, INODE_SLOT,
    InodeFields, MOST_CHUNK_BITS, SUPER_OFFSET, SUPER_SIZE, device_number, type_of,
};
use super::xattr::{self, Shared};
use super::{Device, ErofsError, inode};

/// A device slot with its place on a composed disk.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) tag: String,
    pub(super) blocks: u32,
    pub(super) mapped_block: u32,
}

/// Where an inode is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// Offset in the image, a multiple of 32.
    pub(super) offset: u64,
    /// First block outside the inode area, of a directory or link that has one.
    pub(super) block: u32,
    /// Names of the inode; for a directory, itself, `.` and its subdirectories' `..`.
    pub(super) links: u32,
    /// Where `..` leads, for a directory.
    pub(super) parent: InodeIdOrRoot,
}

/// An inode number whose default is the root.
#[derive(Clone, Copy, Debug)]
pub(super) struct InodeIdOrRoot(pub(super) InodeId);

impl Default for InodeIdOrRoot {
    fn default() -> Self {
        Self(InodeId::ROOT)
    }
}

/// The plan of an image.
#[derive(Debug)]
pub(super) struct Layout<'t> {
    pub(super) tree: &'t Tree,
    pub(super) slots: Vec<Slot>,
    /// Inodes in the order of their places.
    pub(super) order: Vec<InodeId>,
    places: Vec<Place>,
    pub(super) shared: Shared<'t>,
    pub(super) build_time: (i64, u32),
    /// First block of the shared attributes, and of what follows them.
    pub(super) xattr_block: u32,
    pub(super) outer_block: u32,
    /// All blocks.
    pub(super) blocks: u32,
}

/// How the parts of one inode lie.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) fields: InodeFields,
    pub(super) compact: bool,
    pub(super) xattrs: Vec<u8>,
    /// Bytes behind inode and attributes that must lie in one block.
    pub(super) inline: u64,
    /// Chunk indexes behind inode and attributes.
    pub(super) chunks: u64,
    /// Blocks outside the inode area.
    pub(super) outer_blocks: u64,
}

impl Shape {
    /// Bytes of inode and attributes.
    pub(super) fn head(&self) -> u64 {
        let inode = if self.compact { COMPACT_INODE } else { EXTENDED_INODE };
        inode.saturating_add(self.xattrs.len() as u64)
    }

    /// Bytes in the inode area: chunk indexes are aligned to 8 bytes.
    fn area(&self) -> u64 {
        let head = self.head();
        if self.chunks == 0 {
            return head.saturating_add(self.inline);
        }
        head.next_multiple_of(CHUNK_INDEX).saturating_add(self.chunks.saturating_mul(CHUNK_INDEX))
    }
}

impl<'t> Layout<'t> {
    pub(super) fn plan(tree: &'t Tree, devices: &[Device]) -> Result<Self, ErofsError> {
        let order = tree.walk();
        let mut layout = Self {
            tree,
            slots: Vec::new(),
            places: vec![Place::default(); tree.inodes().len()],
            shared: Shared::collect(tree)?,
            build_time: commonest_time(tree, &order),
            order,
            xattr_block: 0,
            outer_block: 0,
            blocks: 0,
        };
        layout.count_links()?;
        layout.check_contents(devices)?;
        let table = DEVICE_SLOT.saturating_mul(devices.len());
        let mut cursor = SUPER_OFFSET.saturating_add(SUPER_SIZE).saturating_add(table) as u64;
        let mut outer = 0_u64;
        for index in 0..layout.order.len() {
            let Some(id) = layout.order.get(index).copied() else { break };
            let shape = layout.shape(id)?;
            cursor = fitting(cursor.next_multiple_of(INODE_SLOT), &shape);
            if let Some(place) = layout.places.get_mut(id.index()) {
                place.offset = cursor;
                place.block = block_number(outer)?;
            }
            cursor = cursor.saturating_add(shape.area());
            outer = outer.saturating_add(shape.outer_blocks);
        }
        let xattr = cursor.div_ceil(BLOCK);
        let outer_start = xattr.saturating_add(layout.shared.area.len() as u64 / BLOCK);
        layout.xattr_block = block_number(xattr)?;
        layout.outer_block = block_number(outer_start)?;
        layout.blocks = block_number(outer_start.saturating_add(outer))?;
        layout.place_devices(devices)?;
        Ok(layout)
    }

    fn place_devices(&mut self, devices: &[Device]) -> Result<(), ErofsError> {
        let mut next = u64::from(self.blocks);
        if u16::try_from(devices.len()).is_err() {
            return Err(ErofsError::TooLarge("number of layers"));
        }
        for device in devices {
            if !device.data_len.is_multiple_of(BLOCK) {
                return Err(ErofsError::Unaligned { digest: device.digest.clone(), data_len: device.data_len });
            }
            let blocks = device.data_len / BLOCK;
            self.slots.push(Slot {
                tag: device.digest.hex().trim_start_matches("sha256:").to_owned(),
                blocks: block_number(blocks)?,
                mapped_block: block_number(next)?,
            });
            next = next.saturating_add(blocks);
            block_number(next)?;
        }
        Ok(())
    }

    pub(super) fn place(&self, id: InodeId) -> Place {
        self.places.get(id.index()).copied().unwrap_or_default()
    }

    /// The number by which directories name an inode: its offset in units of 32 bytes.
    pub(super) fn nid(&self, id: InodeId) -> u64 {
        self.place(id).offset / INODE_SLOT
    }

    fn count_links(&mut self) -> Result<(), ErofsError> {
        for id in &self.order {
            let here = inode(self.tree, *id)?;
            let Some(directory) = here.directory() else { continue };
            let mut own = 2_u32;
            for entry in directory.entries.values() {
                let is_directory = inode(self.tree, *entry)?.directory().is_some();
                let place = self.places.get_mut(entry.index()).ok_or(ErofsError::Tree("a name without its inode"))?;
                if is_directory {
                    own = own.saturating_add(1);
                    place.parent = InodeIdOrRoot(*id);
                } else {
                    place.links = place.links.saturating_add(1);
                }
            }
            if let Some(place) = self.places.get_mut(id.index()) {
                place.links = own;
            }
        }
        Ok(())
    }

    /// Whether every file lies inside the data of its layer.
    fn check_contents(&self, devices: &[Device]) -> Result<(), ErofsError> {
        for id in &self.order {
            let Kind::File(file) = &inode(self.tree, *id)?.kind else { continue };
            let device = devices.get(usize::from(file.layer)).map_or(0, |d| d.data_len);
            if !is_inside(file, device) {
                return Err(ErofsError::OutsideDevice { size: file.size, layer: file.layer });
            }
        }
        Ok(())
    }

    /// The entries of a directory with `.` and `..`, in byte order.
    pub(super) fn dirents(&self, id: InodeId) -> Result<Vec<Dirent<'t>>, ErofsError> {
        let directory = inode(self.tree, id)?.directory().ok_or(ErofsError::Tree("a directory is none"))?;
        let mut all = Vec::with_capacity(directory.entries.len().saturating_add(2));
        let parent = self.place(id).parent.0;
        for (name, id) in [(&b"."[..], id), (&b".."[..], parent)] {
            all.push(Dirent { name, nid: self.nid(id), file_type: 2 });
        }
        for (name, id) in &directory.entries {
            let (_, file_type) = type_of(&inode(self.tree, *id)?.kind);
            all.push(Dirent { name, nid: self.nid(*id), file_type });
        }
        all.sort_unstable_by_key(|entry| entry.name);
        Ok(all)
    }

    /// How an inode lies, and all of its fields once it has a place.
    pub(super) fn shape(&self, id: InodeId) -> Result<Shape, ErofsError> {
        let Inode { attributes, kind } = inode(self.tree, id)?;
        let xattrs = match attributes.xattrs.as_deref() {
            Some(xattrs) => self.shared.behind_inode(Some(xattrs))?,
            None => Vec::new(),
        };
        let place = self.place(id);
        let (size, layout, union) = match kind {
            Kind::Directory(_) => (directory::size(&self.dirents(id)?), DataLayout::FlatInline, 0),
            Kind::Symlink(target) => (target.len() as u64, DataLayout::FlatInline, 0),
            Kind::File(file) if file.size > 0 => {
                let format = CHUNK_FORMAT_INDEXES | u16::from(chunk_bits(file).saturating_sub(12));
                (file.size, DataLayout::ChunkBased, u32::from(format))
            }
            Kind::File(_) | Kind::Fifo => (0, DataLayout::FlatPlain, 0),
            Kind::CharDevice(number) | Kind::BlockDevice(number) => (0, DataLayout::FlatPlain, device_number(*number)),
        };
        let fields = InodeFields {
            layout,
            xattr_count: xattr::icount(xattrs.len())?,
            mode: type_of(kind).0 | attributes.mode,
            size,
            union,
            number: u32::try_from(self.nid(id)).unwrap_or(u32::MAX),
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: (attributes.mtime.seconds(), attributes.mtime.nanos()),
            links: place.links,
        };
        let compact = fields.fits_compact(self.build_time);
        let mut shape = Shape { fields, compact, xattrs, inline: 0, chunks: 0, outer_blocks: 0 };
        match layout {
            DataLayout::ChunkBased => {
                if let Kind::File(file) = kind {
                    shape.chunks = size.div_ceil(1 << chunk_bits(file));
                }
            }
            DataLayout::FlatInline => {
                let tail = size % BLOCK;
                if tail > 0 && shape.head().saturating_add(tail) <= BLOCK {
                    shape.inline = tail;
                } else {
                    shape.fields.layout = DataLayout::FlatPlain;
                }
                shape.outer_blocks = size.saturating_sub(shape.inline).div_ceil(BLOCK);
                if shape.outer_blocks > 0 {
                    shape.fields.union = self.outer_block.saturating_add(place.block);
                }
            }
            DataLayout::FlatPlain => {}
        }
        Ok(shape)
    }
}

/// The next offset at which the inode itself, and what it has inline, each lie in one block.
fn fitting(cursor: u64, shape: &Shape) -> u64 {
    let crosses = |start: u64, len: u64| (start % BLOCK).saturating_add(len) > BLOCK;
    let inode = if shape.compact { COMPACT_INODE } else { EXTENDED_INODE };
    if crosses(cursor, inode) || crosses(cursor.saturating_add(shape.head()), shape.inline) {
        return cursor.next_multiple_of(BLOCK);
    }
    cursor
}

/// Size of a file's chunks as a power of two: as large as the file if it is in one piece, so that one index does for it.
pub(super) fn chunk_bits(file: &File) -> u8 {
    match &file.content {
        Content::Sparse(sparse) => sparse.chunk_bits,
        Content::Whole(_) => {
            let mut bits = 12;
            while bits < MOST_CHUNK_BITS && 1_u64 << bits < file.size {
                bits = bits.saturating_add(1);
            }
            bits
        }
    }
}

fn is_inside(file: &File, device_len: u64) -> bool {
    let ends = |address: u64, len: u64| address.checked_add(len).is_some_and(|end| end <= device_len);
    let Some(size) = file.size.checked_next_multiple_of(BLOCK) else { return false };
    match &file.content {
        Content::Whole(address) => size == 0 || ends(*address, size),
        Content::Sparse(sparse) => sparse.runs.iter().all(|run| {
            let bytes = |chunks: u64| chunks.checked_mul(1 << sparse.chunk_bits);
            let start = bytes(run.first);
            let end = run.first.checked_add(run.chunks).and_then(bytes);
            let (Some(start), Some(end)) = (start, end) else { return false };
            end.min(size).checked_sub(start).is_some_and(|len| ends(run.address, len))
        }),
    }
}

/// The time that most inodes have: they can be compact.
fn commonest_time(tree: &Tree, order: &[InodeId]) -> (i64, u32) {
    let times = order.iter().filter_map(|id| tree.get(*id)).map(|i| i.attributes.mtime);
    let mut times: Vec<_> = times.map(|t| (t.seconds(), t.nanos())).collect();
    times.sort_unstable();
    let runs = times.chunk_by(|a, b| a == b);
    // The earliest of equals, so that the result depends on nothing else.
    runs.rev().max_by_key(|run| run.len()).and_then(|run| run.first().copied()).unwrap_or_default()
}

/// A number of blocks as the format has it: 32 bits, of which all ones mean "none".
pub(super) fn block_number(blocks: u64) -> Result<u32, ErofsError> {
    u32::try_from(blocks).ok().filter(|b| *b != u32::MAX).ok_or(ErofsError::TooLarge("16 TiB of blocks"))
}
