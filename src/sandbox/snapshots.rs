//! Machines that were saved while their command ran, and what it takes to go on from them.
//!
//! ```text
//! ROOT/snapshots/key                 32 random bytes, made with the first snapshot: only who has it can make one
//! ROOT/snapshots/<name>/record       HMAC-SHA256 (RFC 2104) of what follows, in hexadecimal digits, and a line feed; then the record as JSON
//! ROOT/snapshots/<name>/machine      memory and state (`vmm::snapshot`), by its digest part of the record
//! ROOT/snapshots/<name>/disk-<n>     the volumes that it wrote to, as they were, likewise
//! ROOT/snapshots/.new-<...>/         one that is not complete yet, its machine locked by its maker
//! STATE/forks/.new-<...>/            a machine that others go on from at once; it never gets a name
//! ```

mod copies;
mod host;

#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(super) use host::processor as fuzz_processor;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hmac::{Hmac, Mac};
use rustix::fs::{FlockOperation, RenameFlags, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::copies::{check_savable, forked, goes_on_once, written};
pub use self::host::Host;
use crate::spec::{Definition, MachineSize, SandboxSpec};
use crate::sys::clock::realtime_ns;
use crate::volume::sparse;

/// Version of [`Record`].
const VERSION: u32 = 1;

const RECORD: &str = "record";
const MACHINE: &str = "machine";
const PART: &str = "machine.part";
const KEY: &str = "key";
const FORKS: &str = "forks";
const NEW: &str = ".new-";

/// A folder without a machine is its maker's for so long.
const STALE: Duration = Duration::from_secs(60);

/// Longest record in bytes: a definition and some digests.
const LONGEST: u64 = 1 << 20;

/// Bytes of the key, and of the code in front of a record.
const KEY_BYTES: usize = 32;
const CODE: usize = 64;

/// Longest name.
const NAME_MAX: usize = 128;

/// What is known of a saved sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Its name.
    pub name: String,
    /// When it was saved: nanoseconds since 1970.
    pub created_at_ns: u64,
    /// The sandbox that was saved.
    pub definition: Definition,
    /// The size of its machine.
    pub size: MachineSize,
    /// The files beside it.
    parts: Vec<Part>,
    /// Where it was saved.
    pub host: Host,
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    file: String,
    /// Its length.
    bytes: u64,
    /// SHA-256 of its blocks that are not zero, each behind its offset (le64), in hexadecimal digits.
    sha256: String,
}

/// Why there is no snapshot, or none to go on from.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
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
    /// No such snapshot.
    #[error("No such snapshot: {0}")]
    Unknown(String),
    /// The name is taken.
    #[error("There is a snapshot '{0}' already: remove it with 'duplex snapshot rm {0}', or take another name")]
    Taken(String),
    /// Docker's rule for names.
    #[error(
        "'{0}' is no name for a snapshot: two or more of letters, digits, '_', '.' and '-' are allowed, the first a letter or digit"
    )]
    BadName(String),
    /// Somebody else made it, or its bytes have changed.
    #[error("The {part} of snapshot '{name}' is not what was written: 'duplex snapshot rm {name}' removes it")]
    Damaged {
        /// The snapshot.
        name: String,
        /// Which part.
        part: String,
    },
    /// Its disks are newer than the memory that it would have.
    #[error(
        "It went on with its volumes as they were when its machine was saved, and they have changed since: fork that once more"
    )]
    Once,
    /// What a sandbox went on from.
    #[error(
        "The saved machine that it went on from is gone ({0}): a sandbox that was forked starts again only while its snapshot is there"
    )]
    Gone(PathBuf),
    /// Another Duplex wrote it.
    #[error("Snapshot '{name}' has version {found}, this Duplex knows {VERSION}")]
    Version {
        /// The snapshot.
        name: String,
        /// Its version.
        found: u32,
    },
    /// Another host.
    #[error("Snapshot '{name}' was saved with another {what}: {saved}, not {here}")]
    Elsewhere {
        /// The snapshot.
        name: String,
        /// What differs.
        what: &'static str,
        /// There.
        saved: String,
        /// Here.
        here: String,
    },
    /// It has what cannot be had twice.
    #[error("It cannot be saved: {0}")]
    Unsavable(&'static str),
}

/// The snapshots of one store.
#[derive(Clone, Debug)]
pub struct Snapshots {
    folder: PathBuf,
}

/// A folder for a machine that is being written. It goes when this is dropped.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    /// Locked: whoever finds it otherwise removes it.
    machine: File,
    /// Names of the files.
    files: Vec<String>,
}

/// What others go on from: a machine, and the disks of its volumes as they were, in the order of the mounts that are written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The machine's file.
    pub machine: PathBuf,
    /// The files of the disks.
    pub disks: Vec<PathBuf>,
}

impl Draft {
    /// Makes an empty file for a machine.
    fn new(above: &Path, spec: &SandboxSpec) -> Result<Self, SnapshotError> {
        let mut random = [0_u8; 8];
        let filled = rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty());
        filled.map_err(|e| failed("name a folder in", above, e.into()))?;
        let folder = above.join(format!("{NEW}{}", hex(&random)));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|e| failed("make", &folder, e))?;
        let (part, path) = (folder.join(PART), folder.join(MACHINE));
        let machine = File::options().read(true).write(true).create_new(true).mode(0o600).open(&part);
        let machine = machine.map_err(|e| failed("make", &part, e))?;
        flock(&machine, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed("lock", &part, e.into()))?;
        // It has its name only once it is locked: one that is free has no maker any more.
        fs::rename(&part, &path).map_err(|e| failed("make", &path, e))?;
        let mut draft = Self { folder, machine, files: vec![MACHINE.to_owned()] };
        for number in 0..written(spec).count() {
            let (name, path) = (format!("disk-{number}"), draft.folder.join(format!("disk-{number}")));
            let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
            made.map_err(|e| failed("make", &path, e))?;
            draft.files.push(name);
        }
        Ok(draft)
    }

    /// A machine that others go on from at once, and that is gone after them.
    ///
    /// # Errors
    /// [`SnapshotError::File`].
    pub fn to_fork(state: &Path, spec: &SandboxSpec) -> Result<Self, SnapshotError> {
        Self::new(&state.join(FORKS), spec)
    }

    /// The files.
    pub fn origin(&self) -> Origin {
        origin(&self.folder, &self.files)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn origin(folder: &Path, files: &[String]) -> Origin {
    let disks = files.iter().filter(|name| *name != MACHINE).map(|name| folder.join(name));
    Origin { machine: folder.join(MACHINE), disks: disks.collect() }
}

fn is_older(made: SystemTime, than: Duration) -> bool {
    SystemTime::now().duration_since(made).is_ok_and(|age| age > than)
}

/// Removes what forks that were killed have left.
///
/// # Errors
/// [`SnapshotError::File`].
pub fn sweep_forks(state: &Path) -> Result<(), SnapshotError> {
    sweep(&state.join(FORKS))
}

/// Removes what makers that died have left.
fn sweep(folder: &Path) -> Result<(), SnapshotError> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| failed("read", folder, e))?,
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(NEW) {
            continue;
        }
        let held = match File::open(entry.path().join(MACHINE)) {
            Ok(file) => flock(&file, FlockOperation::NonBlockingLockShared).is_err(),
            Err(_) => entry.metadata().and_then(|about| about.modified()).is_ok_and(|made| !is_older(made, STALE)),
        };
        if !held {
            let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
            match removed {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &entry.path(), e)),
                _ => {}
            }
        }
    }
    Ok(())
}

impl Snapshots {
    /// Those of the store in this folder. Nothing is made yet.
    pub fn of(store: &Path) -> Self {
        Self { folder: store.join("snapshots") }
    }

    /// A place for a snapshot of this name, which nobody has.
    ///
    /// # Errors
    /// A bad name, one that is taken, or a file.
    pub fn draft(&self, name: &str, spec: &SandboxSpec) -> Result<Draft, SnapshotError> {
        check(name)?;
        sweep(&self.folder)?;
        if self.folder.join(name).exists() {
            return Err(SnapshotError::Taken(name.to_owned()));
        }
        Draft::new(&self.folder, spec)
    }

    /// Gives a machine that has been written its name and its record.
    ///
    /// # Errors
    /// A name that is taken by now, or a file.
    pub fn keep(
        &self,
        draft: &Draft,
        name: &str,
        (definition, size): (&Definition, MachineSize),
        host: Host,
    ) -> Result<Record, SnapshotError> {
        let parts = draft.files.iter().map(|file| part(&draft.folder, file)).collect::<Result<_, _>>()?;
        let (definition, created_at_ns) = (definition.clone(), realtime_ns());
        let record = Record { version: VERSION, name: name.to_owned(), created_at_ns, definition, size, parts, host };
        let text = serde_json::to_vec_pretty(&record).map_err(|e| failed("write", &draft.folder, e.into()))?;
        let code = self.code(&text)?;
        let path = draft.folder.join(RECORD);
        let write = || {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(code.as_bytes())?;
            file.write_all(b"\n")?;
            file.write_all(&text)?;
            file.sync_all()?;
            draft.machine.sync_all()
        };
        write().map_err(|e| failed("write", &path, e))?;
        let place = self.folder.join(name);
        match rustix::fs::renameat_with(rustix::fs::CWD, &draft.folder, rustix::fs::CWD, &place, RenameFlags::NOREPLACE)
        {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(SnapshotError::Taken(name.to_owned())),
            Err(e) => return Err(failed("make", &place, e.into())),
        }
        File::open(&self.folder).and_then(|f| f.sync_all()).map_err(|e| failed("keep", &place, e))?;
        Ok(record)
    }

    /// All of them, by name, and what cannot be read.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(&self) -> Result<(Vec<Record>, Vec<SnapshotError>), SnapshotError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
            entries => entries.map_err(|e| failed("read", &self.folder, e))?,
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| check(name).is_ok() && name != KEY).collect();
        names.sort();
        let (mut found, mut failures) = (Vec::new(), Vec::new());
        for name in names {
            match self.see(&name) {
                Ok(record) => found.push(record),
                Err(error) => failures.push(error),
            }
        }
        Ok((found, failures))
    }

    /// The record of a snapshot, whose code is checked before it is read.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn see(&self, name: &str) -> Result<Record, SnapshotError> {
        check(name).map_err(|_| SnapshotError::Unknown(name.to_owned()))?;
        let path = self.folder.join(name).join(RECORD);
        let mut bytes = Vec::new();
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.folder.join(name).is_dir() => {
                return Err(SnapshotError::Unknown(name.to_owned()));
            }
            file => file
                .and_then(|file| file.take(LONGEST).read_to_end(&mut bytes))
                .map_err(|e| failed("read", &path, e))?,
        };
        let damaged = || SnapshotError::Damaged { name: name.to_owned(), part: RECORD.to_owned() };
        let (code, text) = bytes.split_at_checked(CODE).ok_or_else(damaged)?;
        let text = text.strip_prefix(b"\n").ok_or_else(damaged)?;
        let code = from_hex(code).ok_or_else(damaged)?;
        self.mac(text)?.verify_slice(&code).map_err(|_| damaged())?;
        let version = serde_json::from_slice::<Versioned>(text).map_err(|_| damaged())?.version;
        if version != VERSION {
            return Err(SnapshotError::Version { name: name.to_owned(), found: version });
        }
        let record: Record = serde_json::from_slice(text).map_err(|_| damaged())?;
        if record.name != name {
            // Another's record, with a code that is good.
            return Err(damaged());
        }
        Ok(record)
    }

    /// Bytes that a snapshot takes on disk.
    pub fn used(&self, record: &Record) -> u64 {
        let blocks =
            |part: &Part| fs::metadata(self.folder.join(&record.name).join(&part.file)).map_or(0, |a| a.blocks());
        record.parts.iter().map(blocks).sum::<u64>().saturating_mul(512)
    }

    /// The files of a snapshot that may go on here: every byte of them has been looked at.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn origin(&self, record: &Record, here: &Host) -> Result<Origin, SnapshotError> {
        let (there, name) = (&record.host, &record.name);
        for (what, saved, here) in [
            ("kernel of the host", &there.kernel, &here.kernel),
            ("processor", &there.processor, &here.processor),
            ("build of Duplex's monitor", &there.monitor, &here.monitor),
        ] {
            if saved != here {
                let (saved, here) = (saved.clone(), here.clone());
                return Err(SnapshotError::Elsewhere { name: name.clone(), what, saved, here });
            }
        }
        let folder = std::path::absolute(self.folder.join(name)).map_err(|e| failed("find", &self.folder, e))?;
        for known in &record.parts {
            if part(&folder, &known.file)? != *known {
                return Err(SnapshotError::Damaged { name: name.clone(), part: known.file.clone() });
            }
        }
        let files: Vec<String> = record.parts.iter().map(|part| part.file.clone()).collect();
        Ok(origin(&folder, &files))
    }

    /// Whether a sandbox that went on from a saved machine may do so once more: the snapshot may have changed or gone since.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn check_again(
        &self,
        spec: &SandboxSpec,
        here: impl FnOnce() -> Result<Host, SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let Some(machine) = &spec.from else { return Ok(()) };
        if goes_on_once(spec) {
            return Err(SnapshotError::Once);
        }
        if !machine.exists() {
            return Err(SnapshotError::Gone(machine.to_owned()));
        }
        let folder = std::path::absolute(&self.folder).map_err(|e| failed("find", &self.folder, e))?;
        let name = machine.parent().filter(|place| place.parent() == Some(&folder)).and_then(Path::file_name);
        match name.and_then(|name| name.to_str()) {
            Some(name) => self.origin(&self.see(name)?, &here()?).map(drop),
            None => Ok(()),
        }
    }

    /// Removes a snapshot, whatever is in its folder. Sandboxes that went on from it have what they need.
    ///
    /// # Errors
    /// [`SnapshotError::Unknown`], or a file.
    pub fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        check(name).map_err(|_| SnapshotError::Unknown(name.to_owned()))?;
        let place = self.folder.join(name);
        let gone = self.folder.join(format!("{NEW}gone-{name}"));
        match fs::rename(&place, &gone) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(SnapshotError::Unknown(name.to_owned())),
            Err(e) => return Err(failed("remove", &place, e)),
        }
        fs::remove_dir_all(&gone).map_err(|e| failed("remove", &gone, e))
    }

    fn code(&self, text: &[u8]) -> Result<String, SnapshotError> {
        Ok(hex(&self.mac(text)?.finalize().into_bytes()))
    }

    fn mac(&self, text: &[u8]) -> Result<Hmac<Sha256>, SnapshotError> {
        let key = self.key()?;
        let path = || self.folder.join(KEY);
        let mac = Hmac::<Sha256>::new_from_slice(&key);
        let mut mac = mac.map_err(|e| failed("use", &path(), io::Error::other(e.to_string())))?;
        mac.update(text);
        Ok(mac)
    }

    /// The key of this store. Made once, whole, by whoever is first.
    fn key(&self) -> Result<Vec<u8>, SnapshotError> {
        let path = self.folder.join(KEY);
        let read = || fs::read(&path);
        let key = match read() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.make_key(&path).map_err(|e| failed("make", &path, e))?;
                read()
            }
            key => key,
        };
        let key = key.map_err(|e| failed("read", &path, e))?;
        if key.len() == KEY_BYTES {
            Ok(key)
        } else {
            Err(failed("use", &path, io::Error::new(io::ErrorKind::InvalidData, "it has not 32 bytes")))
        }
    }

    fn make_key(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let mut key = [0_u8; KEY_BYTES];
        rustix::rand::getrandom(&mut key[..], rustix::rand::GetRandomFlags::empty())?;
        let part = self.folder.join(format!("{NEW}key-{}", std::process::id()));
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
        let linked = file.write_all(&key).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&part, path));
        fs::remove_file(&part)?;
        linked.or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })
    }
}

/// A record's version without the rest.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn check(name: &str) -> Result<(), SnapshotError> {
    let mut chars = name.chars();
    let good = chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && (2..=NAME_MAX).contains(&name.len())
        && name != KEY
        && chars.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if good { Ok(()) } else { Err(SnapshotError::BadName(name.to_owned())) }
}

/// What a file of a folder is now.
fn part(folder: &Path, file: &str) -> Result<Part, SnapshotError> {
    let path = folder.join(file);
    let mut hash = Sha256::new();
    let read = || {
        let open = File::open(&path)?;
        sparse::each_block(&open, |at, block| {
            hash.update(at.to_le_bytes());
            hash.update(block);
            Ok(())
        })?;
        Ok(open.metadata()?.len())
    };
    let bytes = { read }().map_err(|e| failed("read", &path, e))?;
    Ok(Part { file: file.to_owned(), bytes, sha256: hex(&hash.finalize()) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(digits).ok()?;
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> SnapshotError {
    SnapshotError::File { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
