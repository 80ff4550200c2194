//! Layers laid over each other (OCI image spec, "layer.md", "Applying Changesets"): trees in, one tree out, no file system involved.
//!
//! A directory over a directory merges, and the upper one's owner and mode count unless it is only implied. Anything else replaces what is below,
//! a directory over a link included: a link of a lower layer is never followed, as in an overlay mount of unpacked layers.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use crate::image::tree::{Directory, Inode, InodeId, Kind, Tree};

#[cfg(test)]
mod tests;

/// Why layers cannot be merged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// More layers than a file's layer number can say.
    #[error("Image has {0} layers, at most {MOST_LAYERS} are supported")]
    TooManyLayers(usize),
    /// More inodes than numbers.
    #[error("Image has more files than fit one tree (2^32)")]
    TooManyFiles,
}

/// Most layers of one image: what the root inode of the metadata image can be addressed behind (its number has 16 bits).
pub const MOST_LAYERS: usize = 1024;

/// Merges the trees of layers, the bottom layer first. In the result no whiteout is left and each file knows the position of its layer.
///
/// # Errors
/// When there are too many layers or files.
pub fn merge(layers: Vec<Tree>) -> Result<Tree, MergeError> {
    if layers.len() > MOST_LAYERS {
        return Err(MergeError::TooManyLayers(layers.len()));
    }
    let mut merged = Tree::default();
    for (layer, tree) in (0_u16..).zip(layers) {
        Upper::new(tree, layer).lay_over(&mut merged)?;
    }
    Ok(merged.compacted())
}

/// A layer that is being laid over what is below it.
struct Upper {
    inodes: Vec<Option<Inode>>,
    /// Numbers in the merged tree of inodes already moved there (hard links).
    moved: Vec<Option<InodeId>>,
    layer: u16,
    /// Directories to merge: number here, number in the merged tree.
    open: Vec<(InodeId, InodeId)>,
}

impl Upper {
    fn new(tree: Tree, layer: u16) -> Self {
        let inodes: Vec<_> = tree.into_inodes().into_iter().map(Some).collect();
        let moved = vec![None; inodes.len()];
        Self { inodes, moved, layer, open: vec![(InodeId::ROOT, InodeId::ROOT)] }
    }

    fn lay_over(mut self, merged: &mut Tree) -> Result<(), MergeError> {
        while let Some((id, below)) = self.open.pop() {
            let taken = self.inodes.get_mut(id.index()).and_then(Option::take);
            let Some(Inode { attributes, kind: Kind::Directory(upper) }) = taken else { continue };
            if let Some(inode) = merged.get_mut(below) {
                let implied_below = inode.directory().is_some_and(|d| d.implied);
                if !upper.implied || implied_below {
                    inode.attributes = attributes;
                }
                if let Some(lower) = inode.directory_mut() {
                    lower.implied &= upper.implied;
                    hide(lower, &upper);
                }
            }
            for (name, id) in upper.entries {
                self.place(merged, below, name, id)?;
            }
        }
        Ok(())
    }

    /// Gives an inode of the layer its name in the merged directory.
    fn place(&mut self, merged: &mut Tree, into: InodeId, name: Box<[u8]>, id: InodeId) -> Result<(), MergeError> {
        let is_directory =
            self.inodes.get(id.index()).is_some_and(|i| i.as_ref().is_some_and(|i| i.directory().is_some()));
        let below = merged.lookup(into, &name);
        let number = match below.filter(|b| merged.get(*b).is_some_and(|i| i.directory().is_some())) {
            Some(below) if is_directory => {
                self.open.push((id, below));
                return Ok(());
            }
            _ if is_directory => {
                let number = merged.add(Inode::implied_directory()).ok_or(MergeError::TooManyFiles)?;
                self.open.push((id, number));
                number
            }
            _ => self.moved_file(merged, id)?,
        };
        if let Some(directory) = merged.get_mut(into).and_then(Inode::directory_mut) {
            directory.entries.insert(name, number);
        }
        Ok(())
    }

    /// The number in the merged tree of something that is not a directory, which is moved there at its first name.
    fn moved_file(&mut self, merged: &mut Tree, id: InodeId) -> Result<InodeId, MergeError> {
        if let Some(number) = self.moved.get(id.index()).copied().flatten() {
            return Ok(number);
        }
        let taken = self.inodes.get_mut(id.index()).and_then(Option::take);
        // A tree names only inodes it has; an empty directory is what a broken one degrades to.
        let mut inode = taken.unwrap_or_else(Inode::implied_directory);
        if let Kind::File(file) = &mut inode.kind {
            file.layer = self.layer;
        }
        let number = merged.add(inode).ok_or(MergeError::TooManyFiles)?;
        if let Some(slot) = self.moved.get_mut(id.index()) {
            *slot = Some(number);
        }
        Ok(number)
    }
}

/// Takes away from a lower directory what the upper one hides.
fn hide(lower: &mut Directory, upper: &Directory) {
    let Some(whiteouts) = &upper.whiteouts else { return };
    if whiteouts.opaque {
        lower.entries.clear();
    }
    for name in &whiteouts.names {
        lower.entries.remove(name);
    }
}
