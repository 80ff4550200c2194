//! Entries of an archive become a tree: parents, replacements, whiteouts, hard links.
//!
//! What Docker, containerd and umoci do differently is refused here: a path through a link or file of the same layer (they follow the link inside the
//! root, or replace it), and a hard link to what the layer does not have. What they agree on is done: a later entry replaces an earlier one, and a
//! directory over a directory changes its attributes only.

use crate::image::tar::{Entry, Refusal, TarPath, shown};
use crate::image::tree::{Attributes, Directory, Inode, InodeId, Kind, Tree, Whiteouts, Xattrs};

use super::Budget;
use super::blob::map_bytes;

/// Prefix of whiteouts (OCI image spec, "layer.md", "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// The whiteout of everything in its directory ("Opaque Whiteout").
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of what aufs kept for itself; old images have it, and no reader takes it for files.
const AUFS: &[u8] = b".wh..wh.";

/// Longest value of an extended attribute that EROFS can hold (a 16-bit length).
const XATTR_VALUE: usize = 65_535;

/// Why an entry does not fit the entries before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// A path below something that is not a directory.
    #[error("'{0}' in the same layer is not a directory; links are never followed")]
    NotBelowDirectory(String),
    /// A hard link to what is not there.
    #[error("Its hard link target '{0}' is not in front of it in the same layer")]
    MissingTarget(String),
    /// A hard link to a directory.
    #[error("Its hard link target '{0}' is a directory")]
    DirectoryTarget(String),
    /// A name with the prefix of whiteouts that is none.
    #[error("'{0}' is not a whiteout of the OCI image specification")]
    Whiteout(String),
    /// A limit.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Where an entry belongs.
pub(super) enum Place<'e> {
    /// Under this name in this directory.
    At(InodeId, &'e [u8]),
    /// It is dealt with: a whiteout, the root, or nothing that counts.
    Done,
}

/// A tree in the making.
pub(super) struct Builder<'b> {
    tree: Tree,
    budget: &'b Budget,
    metadata: u64,
}

impl<'b> Builder<'b> {
    pub(super) fn new(budget: &'b Budget) -> Self {
        Self { tree: Tree::default(), budget, metadata: 0 }
    }

    pub(super) fn finish(self) -> Tree {
        self.tree.compacted()
    }

    /// Finds the place of an entry, making the directories above it.
    pub(super) fn place<'e>(&mut self, entry: &'e Entry) -> Result<Place<'e>, Misplaced> {
        let Some((parent, name)) = entry.path.split_last() else {
            let attributes = self.attributes(entry)?;
            if let Some(root) = self.tree.get_mut(InodeId::ROOT) {
                given(root, attributes);
            }
            return Ok(Place::Done);
        };
        let aufs = |component: &[u8]| component.starts_with(AUFS) && component != OPAQUE;
        if entry.path.components().any(aufs) {
            return Ok(Place::Done);
        }
        if parent.split(|b| *b == b'/').any(|c| c.starts_with(WHITEOUT)) {
            return Err(Misplaced::Whiteout(entry.path.display()));
        }
        let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(Place::At(self.parents(parent)?, name)) };
        if name != OPAQUE && matches!(hidden, b"" | b"." | b"..") {
            return Err(Misplaced::Whiteout(entry.path.display()));
        }
        let directory = match self.parents(parent) {
            // umoci writes whiteouts of all that was below a directory which it has just replaced. The replacement hides them already.
            Err(Misplaced::NotBelowDirectory(_)) => return Ok(Place::Done),
            found => found?,
        };
        self.count(name.len())?;
        if let Some(directory) = self.tree.get_mut(directory).and_then(Inode::directory_mut) {
            let whiteouts: &mut Whiteouts = directory.whiteouts.get_or_insert_default();
            if name == OPAQUE {
                whiteouts.opaque = true;
            } else {
                whiteouts.names.insert(hidden.into());
            }
        }
        Ok(Place::Done)
    }

    /// The directory at this path, made where it is missing.
    fn parents(&mut self, path: &[u8]) -> Result<InodeId, Misplaced> {
        let mut at = InodeId::ROOT;
        for name in path.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
            at = match self.tree.lookup(at, name) {
                Some(below) if self.is_directory(below) => below,
                Some(_) => return Err(Misplaced::NotBelowDirectory(shown(path))),
                None => self.add(at, name, Inode::implied_directory())?,
            };
        }
        Ok(at)
    }

    fn is_directory(&self, id: InodeId) -> bool {
        self.tree.get(id).is_some_and(|i| i.directory().is_some())
    }

    /// Puts something that is not a directory at its place, in place of what was there.
    pub(super) fn put(&mut self, into: InodeId, name: &[u8], kind: Kind, entry: &Entry) -> Result<(), Misplaced> {
        if let Kind::Symlink(target) = &kind {
            self.count(target.len())?;
        }
        let mut attributes = self.attributes(entry)?;
        if matches!(kind, Kind::Symlink(_)) {
            // Linux has no permissions of links, and shows them as all granted.
            attributes.mode = 0o777;
        }
        self.add(into, name, Inode { attributes, kind }).map(|_| ())
    }

    /// Puts a directory at its place; one that is there keeps its names.
    pub(super) fn directory(&mut self, into: InodeId, name: &[u8], entry: &Entry) -> Result<(), Misplaced> {
        let attributes = self.attributes(entry)?;
        if let Some(existing) = self.tree.lookup(into, name).filter(|id| self.is_directory(*id)) {
            if let Some(inode) = self.tree.get_mut(existing) {
                given(inode, attributes);
            }
            return Ok(());
        }
        self.add(into, name, Inode { attributes, kind: Kind::Directory(Directory::default()) }).map(|_| ())
    }

    /// Gives an earlier file of the layer another name.
    pub(super) fn hard_link(&mut self, into: InodeId, name: &[u8], target: &TarPath) -> Result<(), Misplaced> {
        let id = self.tree.find(target.as_bytes()).ok_or_else(|| Misplaced::MissingTarget(target.display()))?;
        if self.is_directory(id) {
            return Err(Misplaced::DirectoryTarget(target.display()));
        }
        self.count(name.len())?;
        self.name(into, name, id);
        Ok(())
    }

    fn add(&mut self, into: InodeId, name: &[u8], inode: Inode) -> Result<InodeId, Misplaced> {
        self.count(name.len())?;
        let over = Refusal::Exceeds("entries", self.budget.entries);
        if self.tree.inodes().len() as u64 > self.budget.entries {
            return Err(over.into());
        }
        let id = self.tree.add(inode).ok_or(over)?;
        self.name(into, name, id);
        Ok(id)
    }

    fn name(&mut self, into: InodeId, name: &[u8], id: InodeId) {
        if let Some(directory) = self.tree.get_mut(into).and_then(Inode::directory_mut) {
            directory.entries.insert(name.into(), id);
        }
    }

    /// Counts what the map of a sparse file will take: a small entry can ask for a large one.
    pub(super) fn sparse(&mut self, size: u64) -> Result<(), Misplaced> {
        Ok(self.count_bytes(map_bytes(size))?)
    }

    fn count(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.count_bytes(bytes as u64)
    }

    /// Counts bytes that stay in memory or go into the metadata image.
    fn count_bytes(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.metadata = self.metadata.saturating_add(bytes);
        if self.metadata > self.budget.metadata_bytes {
            return Err(Refusal::Exceeds("metadata_bytes", self.budget.metadata_bytes));
        }
        Ok(())
    }

    fn attributes(&mut self, entry: &Entry) -> Result<Attributes, Refusal> {
        let mut xattrs = Xattrs::new();
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_kept(name)) {
            if value.len() > XATTR_VALUE {
                return Err(Refusal::Exceeds("size of one extended attribute", XATTR_VALUE as u64));
            }
            self.count(name.len().saturating_add(value.len()))?;
            xattrs.insert(name.as_slice().into(), value.as_slice().into());
        }
        let xattrs = (!xattrs.is_empty()).then(|| Box::new(xattrs));
        Ok(Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs })
    }
}

/// Sets the attributes of a directory that has an entry of its own.
fn given(inode: &mut Inode, attributes: Attributes) {
    inode.attributes = attributes;
    if let Some(directory) = inode.directory_mut() {
        directory.implied = false;
    }
}

/// Whether an extended attribute goes into the image: those of namespaces that Linux shows on every file system. Those that overlayfs
/// keeps for itself would let an image steer the overlay above it ("Documentation/filesystems/overlayfs.rst", redirects, metacopy).
fn is_kept(name: &[u8]) -> bool {
    let private = [&b"trusted.overlay."[..], b"user.overlay."].iter().any(|prefix| name.starts_with(prefix));
    let spaces = [&b"user."[..], b"trusted.", b"security."];
    let known = spaces.iter().any(|space| name.starts_with(space) && name.len() > space.len());
    known && !private || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default")
}
