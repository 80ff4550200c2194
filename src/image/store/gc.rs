//! Removing: names, images without use, layers without image, leftovers.

use std::collections::BTreeSet;
use std::time::Duration;

use super::error::RemoveError;
use super::lock::{Lock, Mode};
use super::{PATIENCE, Store, StoreError, entries, writer};
use crate::image::Reference;
use crate::spec::Digest;

/// What `Store::remove` did, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A name is gone.
    Untagged(Reference),
    /// An image is gone.
    Image(Digest),
    /// A layer that no image has any more is gone; its diff id.
    Layer(Digest),
}

impl Store {
    /// Removes a name as `docker rmi` does, and the image with its last name, and layers with their last image. An image whose manifest is in
    /// `in_use`, or that is held by a [`super::Lease`], keeps its last name: that is refused. An id removes the image with its only name.
    pub fn remove(&self, reference: &Reference, in_use: &BTreeSet<Digest>) -> Result<Vec<Removed>, RemoveError> {
        let mut removed = Vec::new();
        {
            let _commit = Lock::take(&self.root.join("commit"), Mode::Exclusive, PATIENCE)?;
            let manifest = self.find_here(reference)?;
            let names: Vec<Reference> =
                self.names()?.into_iter().filter(|n| n.manifest == manifest).map(|n| n.reference).collect();
            let named = names.contains(reference);
            if !named && names.len() > 1 {
                return Err(RemoveError::SeveralNames {
                    manifest,
                    names: names.iter().map(|n| n.to_string()).collect(),
                });
            }
            if named && names.len() > 1 {
                self.disk.remove_file(&self.name_path(reference))?;
                return Ok(vec![Removed::Untagged(reference.clone())]);
            }
            let _alone = self.image_alone(reference, &manifest, in_use)?;
            // The image goes before its name: a crash between the two leaves a name that resolves to nothing and can be removed.
            self.disk.remove_folder(&self.image_folder(&manifest), &self.trash()?)?;
            for name in names {
                self.disk.remove_file(&self.name_path(&name))?;
                removed.push(Removed::Untagged(name));
            }
            removed.push(Removed::Image(manifest));
        }
        removed.extend(self.collect(Duration::from_millis(500))?.into_iter().map(Removed::Layer));
        Ok(removed)
    }

    /// Holds the image's record so that nobody takes a lease on it any more. Its folder may be gone (a crash while it was removed).
    fn image_alone(
        &self,
        reference: &Reference,
        manifest: &Digest,
        in_use: &BTreeSet<Digest>,
    ) -> Result<Option<Lock>, RemoveError> {
        let path = self.image_folder(manifest).join("record.json");
        let in_use_error = || RemoveError::InUse { reference: reference.clone(), manifest: manifest.clone() };
        if in_use.contains(manifest) {
            return Err(in_use_error());
        }
        match std::fs::File::open(&path) {
            Ok(file) => Lock::try_on(file, &path, Mode::Exclusive)?.map(Some).ok_or_else(in_use_error),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("open", path)(e).into()),
        }
    }

    /// Removes layers that no image has. While a pull or load goes on anywhere nothing is removed: its layers have no image yet. Whoever ends
    /// that pull collects again.
    pub(in crate::image) fn collect(&self, patience: Duration) -> Result<Vec<Digest>, StoreError> {
        let lock = Lock::wait(&self.root.join("lock"), Mode::Exclusive, patience)?;
        if lock.is_some() { self.collect_locked() } else { Ok(Vec::new()) }
    }

    /// Clears what dead writers left. Live writers hold the store's lock, so whoever has it exclusively knows that all of `tmp` is left over.
    pub(super) fn sweep(&self) -> Result<(), StoreError> {
        let tmp = self.root.join("tmp");
        if entries(&tmp)?.is_empty() {
            return Ok(());
        }
        let Some(_lock) = Lock::try_take(&self.root.join("lock"), Mode::Exclusive)? else { return Ok(()) };
        for leftover in entries(&tmp)? {
            if leftover.is_dir() { self.disk.remove_tree(&leftover)? } else { self.disk.remove_file(&leftover)? }
        }
        self.collect_locked().map(|_| ())
    }

    fn collect_locked(&self) -> Result<Vec<Digest>, StoreError> {
        let needed: BTreeSet<String> = self
            .image_records()?
            .into_iter()
            .flat_map(|r| r.layers.into_iter().map(|l| l.diff_id.hex().to_owned()))
            .collect();
        let mut gone = Vec::new();
        for folder in entries(&self.root.join("layers"))? {
            let name = folder.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if !needed.contains(name) {
                self.disk.remove_folder(&folder, &self.trash()?)?;
                gone.extend(format!("sha256:{name}").parse::<Digest>());
            }
        }
        for lock in entries(&self.root.join("locks"))? {
            self.disk.remove_file(&lock)?;
        }
        Ok(gone)
    }

    fn trash(&self) -> Result<std::path::PathBuf, StoreError> {
        Ok(self.root.join("tmp").join(writer::scratch_name()?))
    }
}
