//! Named volumes: disks that outlive sandboxes. Each is a raw ext4 file, sparse, that a microVM gets as a block device and a container from a
//! loop device: the same bytes.
//!
//! ```text
//! ROOT/volumes/<name>/volume.json    what it is, written once
//! ROOT/volumes/<name>/disk           the file system
//! ROOT/volumes/<name>/writer         id of the sandbox that was the last to write: a word for people
//! ROOT/volumes/.new-<...>/           one that is not complete yet, its disk locked by its maker
//! ROOT/volumes/.gone-<...>/          one that is being removed
//! ```
//!
//! Who uses a volume holds a lock (flock(2)) on the open file itself: shared to read, exclusive to write. The lock goes with the file to the
//! monitor or the loop device and ends with the last of them, however the keeper ended. Locks are polled: the folder may be on a file system
//! without waiting locks.

mod e2fs;
pub mod sparse;
mod superblock;

#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(crate) use superblock::fuzz as fuzz_superblock;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, RenameFlags, flock};
use serde::{Deserialize, Serialize};

use crate::spec::{MIB, SandboxId};
use crate::sys::clock::realtime_ns;
pub use e2fs::ToolError;
use superblock::Superblock;
pub use superblock::SuperblockError;

/// Version of [`Volume`] on disk.
const VERSION: u32 = 1;

/// Size of a volume where nobody says another; blocks that nobody wrote take no space.
pub const DEFAULT_SIZE: u64 = 10 << 30;

/// Smallest and largest volume, in bytes.
pub const SIZES: std::ops::RangeInclusive<u64> = 16 * MIB..=16 << 40;

/// How long the last user of a volume may take to let go of it: a container's mounts go a moment after its processes.
const PATIENCE: Duration = Duration::from_secs(5);

/// An incomplete volume without a disk is its maker's for so long.
const STALE: Duration = Duration::from_secs(60);

const RECORD: &str = "volume.json";
const DISK: &str = "disk";
const PART: &str = "disk.part";
const WRITER: &str = "writer";

/// Longest name.
const NAME_MAX: usize = 128;

/// The volumes of one store.
#[derive(Clone, Debug)]
pub struct Volumes {
    folder: PathBuf,
}

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    version: u32,
    /// Its name.
    pub name: String,
    /// Size of its disk in bytes.
    pub size: u64,
    /// It was made for a sandbox and nobody gave it a name.
    pub anonymous: bool,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made: nanoseconds since 1970.
    pub created_at_ns: u64,
}

/// What is asked of a new volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Bytes; [`DEFAULT_SIZE`] if `None`.
    pub size: Option<u64>,
    /// See [`Volume::anonymous`].
    pub anonymous: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// It begins as a copy of the disk in this file, and has its size.
    pub content: Option<PathBuf>,
}

/// An open disk, locked as long as any copy of its descriptor is open.
#[derive(Debug)]
pub struct Attached {
    /// The disk; open for reading only if that was asked for.
    pub disk: File,
    /// Its length in bytes.
    pub len: u64,
}

impl Attached {
    /// Goes past the host's page cache from now on: what is written later and by the host itself counts for nobody's rate.
    ///
    /// # Errors
    /// [`VolumeError::Direct`] on a file system that cannot.
    pub fn go_direct(&self, name: &str) -> Result<(), VolumeError> {
        let set = rustix::fs::fcntl_getfl(&self.disk)
            .and_then(|flags| rustix::fs::fcntl_setfl(&self.disk, flags | rustix::fs::OFlags::DIRECT));
        set.map_err(|e| VolumeError::Direct { name: name.to_owned(), source: e.into() })
    }
}

/// Why a volume cannot be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Its file system has no direct I/O.
    #[error("The rate of writes to volume {name} cannot be limited: the file system that it is on has no direct I/O")]
    Direct {
        /// Its name.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A file or folder.
    #[error("Cannot {operation} {path}")]
    File {
        /// The verb.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No such volume.
    #[error("No such volume: {0}")]
    Unknown(String),
    /// Docker's rule for names.
    #[error(
        "'{0}' includes invalid characters for a volume name: two or more of letters, digits, '_', '.' and '-' are allowed, the first a letter or digit; a folder of the host is given by its absolute path"
    )]
    BadName(String),
    /// Too small or too large.
    #[error("A volume has 16 MiB to 16 TiB, not {0} bytes")]
    Size(u64),
    /// Somebody writes.
    #[error(
        "Volume '{name}' is being written by sandbox {by}: one sandbox at a time writes to a volume; stop that one first"
    )]
    Written {
        /// The volume.
        name: String,
        /// Who.
        by: String,
    },
    /// Somebody reads.
    #[error(
        "Volume '{0}' is mounted read-only by other sandboxes, and cannot be written or removed meanwhile: stop them first"
    )]
    Read(String),
    /// Its bytes are not a volume's.
    #[error("The disk of volume '{name}' is not used: {path}")]
    Damaged {
        /// The volume.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: SuperblockError,
    },
    /// A program of e2fsprogs.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The record.
    #[error("{path} is not a volume's record that this Duplex understands (version {VERSION})")]
    Record {
        /// The file.
        path: PathBuf,
    },
}

impl Volumes {
    /// The volumes of the store in this folder. Nothing is made yet.
    pub fn of(store: &Path) -> Self {
        Self { folder: store.join("volumes") }
    }

    /// Where a volume's disk is.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.folder.join(name).join(DISK)
    }

    /// Makes a volume, whole or not at all. One that is there stays as it is, and is the answer.
    ///
    /// # Errors
    /// A bad name or size, or what mke2fs and the file system say.
    pub fn create(&self, name: &str, wanted: &Wanted) -> Result<Volume, VolumeError> {
        check(name)?;
        let size = wanted.size.unwrap_or(DEFAULT_SIZE) & !4095;
        let content = wanted.content.as_ref().map(|path| {
            let file = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
            file.map_err(failed("read", path))
        });
        let content = content.transpose()?;
        let size = content.as_ref().map_or(size, |(len, _)| *len);
        if !SIZES.contains(&size) {
            return Err(VolumeError::Size(wanted.size.unwrap_or(DEFAULT_SIZE)));
        }
        match self.see(name) {
            Err(VolumeError::Unknown(_)) => {}
            other => return other,
        }
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(failed("make", &self.folder))?;
        self.sweep()?;
        let volume = Volume {
            version: VERSION,
            name: name.to_owned(),
            size,
            anonymous: wanted.anonymous,
            labels: wanted.labels.clone(),
            created_at_ns: realtime_ns(),
        };
        let fresh = self.folder.join(format!(".new-{}-{}", std::process::id(), realtime_ns()));
        fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(failed("make", &fresh))?;
        let filled = self.fill(&fresh, &volume, content.map(|(_, file)| file));
        if !matches!(filled, Ok(true)) {
            let _ = fs::remove_dir_all(&fresh);
        }
        // Another process may have been faster.
        if filled? { Ok(volume) } else { self.see(name) }
    }

    /// False if there is one of this name meanwhile.
    fn fill(&self, fresh: &Path, volume: &Volume, content: Option<File>) -> Result<bool, VolumeError> {
        let (part, path) = (fresh.join(PART), fresh.join(DISK));
        let disk = File::options().create_new(true).read(true).write(true).mode(0o600).open(&part);
        let disk = disk.map_err(failed("make", &part))?;
        flock(&disk, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed("lock", &part)(e.into()))?;
        // It has its name only once it is locked: one that is free has no maker any more.
        fs::rename(&part, &path).map_err(failed("make", &path))?;
        if let Some(content) = content {
            sparse::copy(&content, &disk).map_err(failed("write", &path))?;
        } else {
            disk.set_len(volume.size).map_err(failed("enlarge", &path))?;
            e2fs::make(&path)?;
        }
        disk.sync_all().map_err(failed("write", &path))?;
        let record = fresh.join(RECORD);
        let text = serde_json::to_vec(volume).map_err(|e| failed("write", &record)(e.into()))?;
        let written = File::create_new(&record).and_then(|mut f| f.write_all(&text).and_then(|()| f.sync_all()));
        written.map_err(failed("write", &record))?;
        sync(fresh)?;
        let home = self.folder.join(&volume.name);
        match rustix::fs::renameat_with(rustix::fs::CWD, fresh, rustix::fs::CWD, &home, RenameFlags::NOREPLACE) {
            Ok(()) => sync(&self.folder).map(|()| true),
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(e) => Err(failed("make", &home)(e.into())),
        }
    }

    /// What this volume is.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`], or what the file system says.
    pub fn see(&self, name: &str) -> Result<Volume, VolumeError> {
        if check(name).is_err() {
            return Err(VolumeError::Unknown(name.to_owned()));
        }
        let path = self.folder.join(name).join(RECORD);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(VolumeError::Unknown(name.to_owned())),
            other => other.map_err(failed("read", &path))?,
        };
        let volume: Option<Volume> = serde_json::from_slice(&text).ok();
        volume.filter(|v| v.version == VERSION && v.name == name).ok_or(VolumeError::Record { path })
    }

    /// All volumes by name, and what could not be read.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(&self) -> Result<(Vec<Volume>, Vec<VolumeError>), VolumeError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
            other => other.map_err(failed("read", &self.folder))?,
        };
        let (mut found, mut failures) = (Vec::new(), Vec::new());
        for name in entries.filter_map(|e| e.ok()?.file_name().into_string().ok()) {
            match self.see(&name) {
                Ok(volume) => found.push(volume),
                Err(VolumeError::Unknown(_)) => {}
                Err(error) => failures.push(error),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((found, failures))
    }

    /// Bytes that a volume takes on disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn used(&self, name: &str) -> Result<u64, VolumeError> {
        let path = self.disk(name);
        let blocks = fs::metadata(&path).map_err(failed("look at", &path))?.blocks();
        Ok(blocks.saturating_mul(512))
    }

    /// Opens a volume for a sandbox. The volume is the sandbox's as long as a copy of the descriptor is open.
    ///
    /// # Errors
    /// [`VolumeError::Written`] or [`VolumeError::Read`] if others use it, [`VolumeError::Damaged`] if its bytes are not a volume's.
    pub fn attach(&self, name: &str, read_only: bool, sandbox: &SandboxId) -> Result<Attached, VolumeError> {
        let volume = self.see(name)?;
        let mut disk = self.lock(name, read_only)?;
        let read = |disk: &File| {
            let damaged = |source| VolumeError::Damaged { name: name.to_owned(), path: self.disk(name), source };
            Superblock::read(disk).map_err(damaged)
        };
        if read(&disk)?.needs_recovery && read_only {
            // Who reads cannot replay the journal: it is done by one who could write, before.
            drop(disk);
            let alone = self.lock(name, false)?;
            e2fs::replay(&self.disk(name))?;
            drop(alone);
            disk = self.lock(name, true)?;
            read(&disk)?;
        }
        if !read_only {
            // For the words of who is refused; nothing depends on it.
            let _ = fs::write(self.folder.join(name).join(WRITER), sandbox.as_str());
        }
        Ok(Attached { disk, len: volume.size })
    }

    /// Opens the disk and locks it, waiting for a user that is about to let go.
    fn lock(&self, name: &str, read_only: bool) -> Result<File, VolumeError> {
        let path = self.disk(name);
        let how =
            if read_only { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let disk = match File::options().read(true).write(!read_only).open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(VolumeError::Unknown(name.to_owned())),
                other => other.map_err(failed("open", &path))?,
            };
            match flock(&disk, how) {
                Ok(()) => {
                    // It may have been removed, and another made, between open and lock.
                    let same = |now: fs::Metadata| disk.metadata().is_ok_and(|m| m.ino() == now.ino());
                    if fs::metadata(&path).is_ok_and(same) {
                        return Ok(disk);
                    }
                }
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() > deadline => {
                    return Err(self.refusal(name, &disk));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(20)),
                Err(e) => return Err(failed("lock", &path)(e.into())),
            }
        }
    }

    fn refusal(&self, name: &str, disk: &File) -> VolumeError {
        if flock(disk, FlockOperation::NonBlockingLockShared).is_ok() {
            return VolumeError::Read(name.to_owned());
        }
        let by = fs::read_to_string(self.folder.join(name).join(WRITER)).ok();
        let by =
            by.and_then(|id| id.parse::<SandboxId>().ok()).map_or_else(|| "another".to_owned(), |id| id.to_string());
        VolumeError::Written { name: name.to_owned(), by }
    }

    /// Removes a volume that nobody uses.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`], or [`VolumeError::Written`] or [`VolumeError::Read`] if somebody uses it.
    pub fn remove(&self, name: &str) -> Result<(), VolumeError> {
        let home = self.folder.join(name);
        // One whose record is damaged can go too.
        if check(name).is_err() || !home.exists() {
            return Err(VolumeError::Unknown(name.to_owned()));
        }
        let _held = self.lock(name, false)?;
        let gone = self.folder.join(format!(".gone-{}-{}", std::process::id(), realtime_ns()));
        fs::rename(&home, &gone).map_err(failed("remove", &home))?;
        fs::remove_dir_all(&gone).map_err(failed("remove", &gone))
    }

    /// Clears what makers and removers that died have left.
    ///
    /// # Errors
    /// What cannot be read or removed.
    pub fn sweep(&self) -> Result<(), VolumeError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed("read", &self.folder))?,
        };
        for path in entries.filter_map(|e| Some(e.ok()?.path())) {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let (new, gone) = (name.starts_with(".new-"), name.starts_with(".gone-"));
            let age = |m: fs::Metadata| SystemTime::now().duration_since(m.modified().ok()?).ok();
            let abandoned = || match File::open(path.join(DISK)) {
                Ok(disk) => flock(&disk, FlockOperation::NonBlockingLockShared).is_ok(),
                Err(_) => fs::metadata(&path).ok().and_then(age).is_some_and(|age| age > STALE),
            };
            if gone || (new && abandoned()) {
                match fs::remove_dir_all(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(e)),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Whether this is a name of a volume.
///
/// # Errors
/// [`VolumeError::BadName`].
pub fn check(name: &str) -> Result<(), VolumeError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let good = (2..=NAME_MAX).contains(&name.len())
        && name.bytes().all(plain)
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if good { Ok(()) } else { Err(VolumeError::BadName(name.to_owned())) }
}

fn sync(folder: &Path) -> Result<(), VolumeError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(failed("write", folder))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError + use<> {
    let path = path.to_owned();
    move |source| VolumeError::File { operation, path, source }
}

#[cfg(test)]
mod tests;
