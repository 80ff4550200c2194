//! The content-addressed store. Its folder:
//!
//! ```text
//! version                                 "duplex image store 1"
//! lock  commit  locks/<diff id>           flocks, see `lock`
//! tmp/                                    scratch of writers that live, leftovers of those that died
//! layers/<diff id>/{data,tree,record.json}             a converted layer, shared by all images that have it
//! images/<manifest>/{meta,manifest.json,config.json,record.json}
//! references/<sha256 of the name>.json    name -> manifest
//! embedded.json                           which archive the embedded image was loaded from
//! ```
//!
//! Layers and images are folders that appear whole, by one rename, after everything in them is synced; a name is written after its image, an
//! image after its layers. So a crash at any point leaves the old state or the new one, and perhaps something in `tmp` or a layer without an
//! image, which the next opening finds and clears.
//!
//! The compressed layers themselves are not kept. They would double the store (a layer of Debian: 50 MiB compressed beside 110 MiB converted),
//! nothing reads them after the conversion, and an image that is to be sent on can be written anew from the converted layers.

mod durable;
mod error;
mod gc;
mod lock;
mod names;
#[cfg(test)]
mod power;
mod record;
mod writer;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use error::{RemoveError, ResolveError, StoreError};
pub use gc::Removed;
pub(super) use record::{ImageRecord, LayerRecord};
pub(super) use writer::Writer;

use super::embedded::is_embedded;
use super::layer::Budget;
use super::{Image, Piece, Reference, RootDisk};
use crate::spec::Digest;
use durable::Disk;
use lock::{Lock, Mode};

const VERSION: &str = "duplex image store 1";
const FOLDERS: [&str; 5] = ["tmp", "locks", "layers", "images", "references"];
/// How long a short lock (one commit, one collection) may be held by others.
const PATIENCE: Duration = Duration::from_secs(30);

/// The image store.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    embedded: Option<PathBuf>,
    budget: Budget,
    disk: Disk,
}

/// One line of `duplex images`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSummary {
    /// A name of the image; `None` if it has none (any more).
    pub reference: Option<Reference>,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Digest of its config: what Docker calls the image id.
    pub id: Digest,
    /// When it was made, if it says so.
    pub created: Option<SystemTime>,
    /// Bytes on disk, of which `shared` belong to layers that other images have too.
    pub size: u64,
    /// Bytes on disk of layers that at least one other image has too.
    pub shared: u64,
}

/// Keeps an image from being removed while it lives, also by other processes.
#[derive(Debug)]
pub struct Lease(#[allow(dead_code, reason = "held, not used")] Lock);

impl Store {
    /// Opens the store in this folder, making it if it is not there, and clears what writers that died have left.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self { root: root.to_owned(), embedded: None, budget: Budget::default(), disk: Disk::default() };
        store.prepare()?;
        store.sweep()?;
        Ok(store)
    }

    /// The same store with the embedded image: `workloads` is then resolved from this OCI archive.
    #[must_use]
    pub fn with_embedded(self, archive: &Path) -> Self {
        Self { embedded: Some(archive.to_owned()), ..self }
    }

    /// The same store with other limits of what an image may cost that comes into it.
    #[must_use]
    pub fn with_budget(self, budget: Budget) -> Self {
        Self { budget, ..self }
    }

    /// What an image may cost.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The folder it is in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let version = self.root.join("version");
        let mut found = String::new();
        match File::open(&version).and_then(|f| f.take(256).read_to_string(&mut found)) {
            Ok(_) if found.trim_end() == VERSION => return Ok(()),
            Ok(_) => {
                return Err(StoreError::Version { path: version, found: found.trim_end().to_owned(), known: VERSION });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::io("read", version)(e)),
        }
        for folder in FOLDERS {
            let path = self.root.join(folder);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(StoreError::io("create folder", path))?;
        }
        // Two processes may come here at once; both write the same file, last of all, and by a rename. The lock keeps sweepers away.
        let _lock = Lock::take(&self.root.join("lock"), Mode::Shared, PATIENCE)?;
        let scratch = self.root.join("tmp").join(writer::scratch_name()?);
        self.disk.write(&scratch, format!("{VERSION}\n").as_bytes())?;
        self.disk.replace_file(&scratch, &version)
    }

    /// Finds an image by name, id or the beginning of an id, and checks that its files have the lengths they were written with.
    pub fn resolve(&self, reference: &Reference) -> Result<Image, ResolveError> {
        let manifest = self.find(reference)?;
        let Some(record) = self.image_record(&manifest)? else {
            return Err(self.unknown(reference));
        };
        let disk = self.root_disk(&record);
        for piece in &disk.pieces {
            self.check_length(reference, &piece.path, piece.len)?;
        }
        Ok(Image { reference: reference.clone(), manifest: record.manifest, config: record.config, disk })
    }

    /// Keeps the image from being removed until the lease is dropped. An image that was removed since it was resolved is unknown.
    pub fn hold(&self, image: &Image) -> Result<Lease, ResolveError> {
        let path = self.image_folder(&image.manifest).join("record.json");
        let unknown = || self.unknown(&image.reference);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(unknown()),
            Err(e) => return Err(StoreError::io("open", path)(e).into()),
        };
        // Only who removes the image holds the lock exclusively, and then it is gone.
        let lock = Lock::try_on(file, &path, Mode::Shared)?.ok_or_else(unknown)?;
        if path.exists() { Ok(Lease(lock)) } else { Err(unknown()) }
    }

    /// All images, one line for each name, sorted by name; nameless ones last.
    pub fn images(&self) -> Result<Vec<ImageSummary>, StoreError> {
        let records = self.image_records()?;
        let names = self.names()?;
        let mut lines = Vec::new();
        for record in &records {
            let elsewhere: BTreeSet<&Digest> = records
                .iter()
                .filter(|other| other.manifest != record.manifest)
                .flat_map(|other| other.layers.iter().map(|l| &l.diff_id))
                .collect();
            let own: BTreeSet<&Digest> = record.layers.iter().map(|l| &l.diff_id).collect();
            let bytes = |layers: &mut dyn Iterator<Item = &Digest>| layers.map(|l| used(&self.layer_folder(l))).sum();
            let shared: u64 = bytes(&mut own.iter().copied().filter(|l| elsewhere.contains(l)));
            let unshared: u64 = bytes(&mut own.iter().copied().filter(|l| !elsewhere.contains(l)));
            let size = used(&self.image_folder(&record.manifest)).saturating_add(shared).saturating_add(unshared);
            let line = |reference| ImageSummary {
                reference,
                manifest: record.manifest.clone(),
                id: record.config_digest.clone(),
                created: record.config.created_at(),
                size,
                shared,
            };
            let before = lines.len();
            lines.extend(
                names.iter().filter(|n| n.manifest == record.manifest).map(|n| line(Some(n.reference.clone()))),
            );
            if lines.len() == before {
                lines.push(line(None));
            }
        }
        lines.sort_by_key(|l| (l.reference.is_none(), l.reference.clone(), l.manifest.clone()));
        Ok(lines)
    }

    /// Bytes that the image takes on disk, layers shared with other images included.
    pub fn bytes_on_disk(&self, image: &Image) -> u64 {
        let folders: BTreeSet<&Path> = image.disk.pieces.iter().filter_map(|p| p.path.parent()).collect();
        folders.into_iter().map(used).sum()
    }

    fn find(&self, reference: &Reference) -> Result<Digest, ResolveError> {
        if let Some(archive) = self.embedded.as_ref().filter(|_| is_embedded(reference)) {
            return self.bring_embedded(archive).map_err(|source| ResolveError::Embedded(Box::new(source)));
        }
        self.find_here(reference)
    }

    /// The same without loading anything.
    fn find_here(&self, reference: &Reference) -> Result<Digest, ResolveError> {
        if let Some(name) = self.name(reference)? {
            return Ok(name.manifest);
        }
        // Content pinned by digest is the same under whatever name it came.
        if let Some(digest) = reference.digest().filter(|d| self.image_folder(d).exists()) {
            return Ok(digest.clone());
        }
        let Some(id) = reference.id().map(Digest::hex).or_else(|| reference.short_id()) else {
            return Err(self.unknown(reference));
        };
        let mut found: Vec<Digest> = Vec::new();
        for record in self.image_records()? {
            if record.manifest.hex().starts_with(id) || record.config_digest.hex().starts_with(id) {
                found.push(record.manifest);
            }
        }
        match found.as_slice() {
            [] => Err(self.unknown(reference)),
            [only] => Ok(only.clone()),
            several => Err(ResolveError::Ambiguous { id: id.to_owned(), count: several.len() }),
        }
    }

    fn unknown(&self, reference: &Reference) -> ResolveError {
        let known: Vec<String> = self.names().unwrap_or_default().iter().map(|n| n.reference.to_string()).collect();
        ResolveError::Unknown { near: names::near(&reference.to_string(), &known), reference: reference.clone() }
    }

    fn check_length(&self, reference: &Reference, path: &Path, expected: u64) -> Result<(), ResolveError> {
        let found = fs::metadata(path).map_or(0, |m| m.len());
        if found == expected {
            return Ok(());
        }
        Err(ResolveError::Damaged { reference: reference.clone(), path: path.to_owned(), expected, found })
    }

    fn root_disk(&self, record: &ImageRecord) -> RootDisk {
        let meta = Piece { path: self.image_folder(&record.manifest).join("meta"), len: record.meta_len };
        let layers =
            record.layers.iter().map(|l| Piece { path: self.layer_folder(&l.diff_id).join("data"), len: l.data_len });
        RootDisk { pieces: std::iter::once(meta).chain(layers).collect() }
    }

    fn image_folder(&self, manifest: &Digest) -> PathBuf {
        self.root.join("images").join(manifest.hex())
    }

    fn layer_folder(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    /// The image is here, by its record.
    pub(super) fn has_record(&self, manifest: &Digest) -> bool {
        self.image_folder(manifest).join("record.json").exists()
    }

    /// What is noted about the embedded image's archive.
    pub(super) fn embedded_record<T: serde::de::DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        record::read(&self.embedded_path())
    }

    fn embedded_path(&self) -> PathBuf {
        self.root.join("embedded.json")
    }

    fn image_record(&self, manifest: &Digest) -> Result<Option<ImageRecord>, StoreError> {
        record::read(&self.image_folder(manifest).join("record.json"))
    }

    fn layer_record(&self, diff_id: &Digest) -> Result<Option<LayerRecord>, StoreError> {
        record::read(&self.layer_folder(diff_id).join("record.json"))
    }

    /// Records of all images; one that vanishes while we read is passed over.
    fn image_records(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let folder = self.root.join("images");
        let paths = entries(&folder)?;
        paths.iter().filter_map(|p| record::read(&p.join("record.json")).transpose()).collect()
    }
}

/// Paths of what is in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let read = || -> io::Result<Vec<PathBuf>> { fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect() };
    let mut paths = read().map_err(StoreError::io("read folder", folder))?;
    paths.sort();
    Ok(paths)
}

/// Bytes that a folder and the files in it take on disk, as du counts them.
fn used(folder: &Path) -> u64 {
    let blocks = |path: &Path| fs::symlink_metadata(path).map_or(0, |m| m.blocks());
    let inside: u64 = entries(folder).unwrap_or_default().iter().map(|p| blocks(p)).sum();
    inside.saturating_add(blocks(folder)).saturating_mul(512)
}

#[cfg(test)]
mod tests;
