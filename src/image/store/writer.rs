//! Adding to the store.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::lock::{Lock, Mode};
use super::record::{self, ImageRecord, LayerRecord, NameRecord};
use super::{PATIENCE, Store, StoreError};
use crate::image::Reference;
use crate::image::layer::Deadline;
use crate::spec::Digest;

/// One pull or load. While it lives nothing is collected; what it has not published when it is dropped is gone.
#[derive(Debug)]
pub(in crate::image) struct Writer<'a> {
    store: &'a Store,
    scratch: PathBuf,
    deadline: Deadline,
    lock: Option<Lock>,
}

/// A layer in the making: `data` and `tree` in a scratch folder.
#[derive(Debug)]
pub(in crate::image) struct LayerDraft {
    folder: PathBuf,
    /// Where the data blob goes.
    pub(in crate::image) data: File,
    /// Where the tree goes.
    pub(in crate::image) tree: File,
}

/// Sixteen random hexadecimal digits.
pub(super) fn scratch_name() -> Result<String, StoreError> {
    let mut random = [0u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| StoreError::io("read random bytes for", "tmp")(e.into()))?;
    Ok(random.iter().map(|b| format!("{b:02x}")).collect())
}

impl Store {
    /// Begins a pull or a load.
    pub(in crate::image) fn writer(&self) -> Result<Writer<'_>, StoreError> {
        self.writer_until(Deadline::new(&self.budget))
    }

    /// The same for one that has begun before.
    pub(in crate::image) fn writer_until(&self, deadline: Deadline) -> Result<Writer<'_>, StoreError> {
        let lock = Lock::take(&self.root.join("lock"), Mode::Shared, PATIENCE)?;
        let scratch = self.root.join("tmp").join(scratch_name()?);
        self.disk.make_folder(&scratch)?;
        Ok(Writer { store: self, scratch, deadline, lock: Some(lock) })
    }

    /// The layer, if it is here and its files have the lengths they were written with.
    pub(in crate::image) fn whole_layer(&self, diff_id: &Digest) -> Result<Option<LayerRecord>, StoreError> {
        let folder = self.layer_folder(diff_id);
        let length = |name: &str| fs::metadata(folder.join(name)).ok().map(|m| m.len());
        Ok(self
            .layer_record(diff_id)?
            .filter(|r| length("data") == Some(r.data_len) && length("tree") == Some(r.tree_len)))
    }

    /// A layer's tree, to be merged with others.
    pub(in crate::image) fn open_tree(&self, diff_id: &Digest) -> Result<(File, PathBuf), StoreError> {
        let path = self.layer_folder(diff_id).join("tree");
        File::open(&path).map(|file| (file, path.clone())).map_err(StoreError::io("open", path))
    }
}

impl LayerDraft {
    /// Path of `data` or `tree`, for messages.
    pub(in crate::image) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Writer<'_> {
    /// The store that is written to.
    pub(in crate::image) fn store(&self) -> &Store {
        self.store
    }

    /// When it has to be at its end.
    pub(in crate::image) fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// A folder of this writer's own, removed with it.
    pub(in crate::image) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A lock that lets one process at a time make this layer. `None` if another holds it longer than `patience`: both may make it then, and
    /// one result is kept.
    pub(in crate::image) fn layer_lock(
        &self,
        diff_id: &Digest,
        patience: Duration,
    ) -> Result<Option<impl Sized + use<>>, StoreError> {
        Lock::wait(&self.store.root.join("locks").join(diff_id.hex()), Mode::Exclusive, patience)
    }

    /// Begins a layer. `number` tells the layers of one writer apart.
    pub(in crate::image) fn draft_layer(&self, number: usize) -> Result<LayerDraft, StoreError> {
        let folder = self.scratch.join(format!("layer-{number}"));
        let disk = &self.store.disk;
        disk.make_folder(&folder)?;
        let data = disk.create(&folder.join("data"))?;
        let tree = disk.create(&folder.join("tree"))?;
        Ok(LayerDraft { folder, data, tree })
    }

    /// Makes a finished layer part of the store. If another process was faster, its layer stays.
    pub(in crate::image) fn publish_layer(&self, draft: &LayerDraft, record: &LayerRecord) -> Result<(), StoreError> {
        let disk = &self.store.disk;
        disk.sync(&draft.data, &draft.folder.join("data"))?;
        disk.sync(&draft.tree, &draft.folder.join("tree"))?;
        let path = draft.folder.join("record.json");
        disk.write(&path, &record::bytes(record, &path)?)?;
        let to = self.store.layer_folder(&record.diff_id);
        if disk.publish_folder(&draft.folder, &to)? || self.store.whole_layer(&record.diff_id)?.is_some() {
            return Ok(());
        }
        // What is there was damaged: put ours in its place.
        disk.remove_folder(&to, &self.scratch.join(scratch_name()?))?;
        disk.publish_folder(&draft.folder, &to).map(|_| ())
    }

    /// Begins an image: a scratch folder, and in it the file for the merged metadata.
    pub(in crate::image) fn draft_image(&self, manifest: &Digest) -> Result<(PathBuf, File), StoreError> {
        // An image that vanished before it had its name is begun again, and another draft of it may lie here.
        let folder = self.scratch.join(format!("image-{}-{}", manifest.short(), scratch_name()?));
        self.store.disk.make_folder(&folder)?;
        let meta = self.store.disk.create(&folder.join("meta"))?;
        Ok((folder, meta))
    }

    /// Makes a finished image part of the store, with the documents it was made from.
    pub(in crate::image) fn publish_image(
        &self,
        folder: &Path,
        meta: &File,
        record: &ImageRecord,
        documents: [(&str, &[u8]); 2],
    ) -> Result<(), StoreError> {
        let disk = &self.store.disk;
        disk.sync(meta, &folder.join("meta"))?;
        for (name, bytes) in documents {
            disk.write(&folder.join(name), bytes)?;
        }
        let path = folder.join("record.json");
        disk.write(&path, &record::bytes(record, &path)?)?;
        let _commit = Lock::take(&self.store.root.join("commit"), Mode::Exclusive, PATIENCE)?;
        let to = self.store.image_folder(&record.manifest);
        if disk.publish_folder(folder, &to)? || self.has_image(&record.manifest)? {
            return Ok(());
        }
        disk.remove_folder(&to, &self.scratch.join(scratch_name()?))?;
        disk.publish_folder(folder, &to).map(|_| ())
    }

    /// The image is in the store, it and its layers whole.
    pub(in crate::image) fn has_image(&self, manifest: &Digest) -> Result<bool, StoreError> {
        // A record that cannot be read is as good as none: the image is made again and replaces it.
        let Ok(Some(record)) = self.store.image_record(manifest) else { return Ok(false) };
        let meta = fs::metadata(self.store.image_folder(manifest).join("meta")).ok().map(|m| m.len());
        let mut whole = meta == Some(record.meta_len);
        for layer in &record.layers {
            whole = whole && self.store.whole_layer(&layer.diff_id)?.as_ref() == Some(layer);
        }
        Ok(whole)
    }

    /// Gives an image a name. `false` if the image has been removed by another process meanwhile; it must be added again then.
    pub(in crate::image) fn name(&self, reference: &Reference, manifest: &Digest) -> Result<bool, StoreError> {
        let _commit = Lock::take(&self.store.root.join("commit"), Mode::Exclusive, PATIENCE)?;
        if !self.store.has_record(manifest) {
            return Ok(false);
        }
        let record = NameRecord { reference: reference.clone(), manifest: manifest.clone() };
        self.replace(&self.store.name_path(reference), &record)?;
        Ok(true)
    }

    /// Notes which archive the embedded image was loaded from.
    pub(in crate::image) fn note_embedded(&self, seen: &impl serde::Serialize) -> Result<(), StoreError> {
        self.replace(&self.store.embedded_path(), seen)
    }

    fn replace(&self, to: &Path, record: &impl serde::Serialize) -> Result<(), StoreError> {
        let from = self.scratch.join(scratch_name()?);
        self.store.disk.write(&from, &record::bytes(record, to)?)?;
        self.store.disk.replace_file(&from, to)
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if self.store.disk.is_dead() {
            return;
        }
        // What cannot be removed now is found by the next opening.
        let _ = self.store.disk.remove_tree(&self.scratch);
        self.lock = None;
        let _ = self.store.collect(Duration::ZERO);
    }
}
