//! What of running sandboxes is on disk: one folder each, found by whoever comes after a crash.
//!
//! ```text
//! STATE/<id>/lock          locked (flock) by the owner for its whole life: who gets the lock owns what is left
//! STATE/<id>/record.json   what the sandbox is, written before any other resource is made
//! STATE/<id>/...           the engines' own files
//! STATE/names/<name>       a symbolic link to the id that has the name (`names`)
//! STATE/networks/<name>/   a network that sandboxes share (`net::bridge`)
//! STATE/templates/         machines that others go on from, which belong to no sandbox (`microvm`)
//! STATE/roster/<id>/       what stays of a sandbox when it has ended (`roster`)
//! STATE/new-*              a folder that is not complete yet: nothing exists but itself
//! ```
//!
//! Lock order: `names/.lock` after the lock of a folder. All locks are polled: the folder may be on a file system without waiting locks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::cgroup::{Cgroup, CgroupError};
use super::grip::{self, Grip, is_held, try_lock};
use super::names::{self, NAME_MAX, Names};
use crate::net::bridge::{BridgeError, Bridges};
use crate::spec::{IdError, Isolation, SandboxId, SandboxSpec};

/// Version of [`Record`] on disk.
const VERSION: u32 = 1;

/// An incomplete folder without a lock that is older than this belongs to nobody.
const STALE: Duration = Duration::from_secs(60);

/// The folder of all running sandboxes.
#[derive(Clone, Debug)]
pub struct Shelf {
    folder: PathBuf,
}

/// One sandbox's folder, held: as long as this lives, the sandbox is alive for everybody else.
#[derive(Debug)]
pub struct Slot {
    shelf: Shelf,
    id: SandboxId,
    name: Option<String>,
    path: PathBuf,
    lock: Option<File>,
}

/// What a sandbox is, in `record.json`. It says nothing that teardown relies on: names of resources derive from the id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Identity.
    pub id: SandboxId,
    /// The user's name for it.
    pub name: Option<String>,
    /// Kind of walls.
    pub isolation: Isolation,
    /// The reference as the user gave it.
    pub reference: String,
    /// Digest of the image's manifest.
    pub image: crate::spec::Digest,
    /// The command.
    pub args: Vec<String>,
    /// The keeper's process id, for people.
    pub keeper: u32,
    /// Seconds since 1970.
    pub created_at: u64,
}

/// What a sweep found and did.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// Sandboxes whose owner is gone and of which nothing is left now.
    pub cleared: Vec<SandboxId>,
    /// What could not be cleared, with its reason; the next sweep tries again.
    pub failed: Vec<ShelfError>,
}

/// Why the shelf cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// A file or folder cannot be made, read, written, locked or removed.
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
    /// Somebody has the name.
    #[error("The name '{name}' is taken by sandbox {holder}: choose another name, or remove that sandbox (duplex rm)")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: String,
    },
    /// A network that it shares with others.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// Not a name.
    #[error(
        "'{0}' is not a name: letters, digits, '_', '.' and '-', at most {NAME_MAX}, the first one a letter or digit"
    )]
    BadName(String),
    /// There is a sandbox of this id already.
    #[error("Sandbox {0} exists already")]
    Exists(SandboxId),
    /// The cgroup does not go.
    #[error("Cannot clear the cgroup of sandbox {id}")]
    Cgroup {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: CgroupError,
    },
    /// A record cannot be understood.
    #[error("{path} is not a record that this version of Duplex understands (version {VERSION})")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Shelf {
    /// The shelf in this folder, which is made (mode 0700) if it is not there.
    ///
    /// # Errors
    /// [`ShelfError::File`] naming the folder.
    pub fn open(folder: &Path) -> Result<Self, ShelfError> {
        let names = folder.join("names");
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&names);
        made.map_err(|e| failed("make", &names, e))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Takes a folder for this sandbox, with its record written, and its name if it has one. Clears first what dead owners have left.
    ///
    /// # Errors
    /// [`ShelfError::NameTaken`], [`ShelfError::Exists`] or what the file system says. Nothing is left then.
    pub fn reserve(&self, spec: &SandboxSpec) -> Result<Slot, ShelfError> {
        spec.name.as_deref().map_or(Ok(()), names::check)?;
        // What cannot be cleared now is the next sweep's; it does not keep anybody from starting.
        let _ = self.reconcile();
        let fresh = self.folder.join(format!("new-{}-{}", spec.id, std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(|e| failed("make", &fresh, e))?;
        let made = self.fill(&fresh, spec);
        if made.is_err() {
            let _ = fs::remove_dir_all(&fresh);
        }
        let mut slot = made?;
        if let Some(name) = &spec.name
            && Names::of(&self.folder).take(name, &spec.id)?
        {
            slot.name = Some(name.clone());
        }
        Ok(slot)
    }

    fn fill(&self, fresh: &Path, spec: &SandboxSpec) -> Result<Slot, ShelfError> {
        let lock_path = fresh.join("lock");
        let lock = grip::make(&lock_path).map_err(|e| failed("make", &lock_path, e))?;
        let record = Record::of(spec);
        let path = fresh.join("record.json");
        let text = serde_json::to_vec(&record).map_err(|source| ShelfError::Record { path: path.clone(), source })?;
        fs::write(&path, text).map_err(|e| failed("write", &path, e))?;
        let home = self.path_of(&spec.id);
        let no_replace = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(rustix::fs::CWD, fresh, rustix::fs::CWD, &home, no_replace) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(ShelfError::Exists(spec.id.clone())),
            Err(e) => return Err(failed("make", &home, e.into())),
        }
        Ok(Slot { shelf: self.clone(), id: spec.id.clone(), name: None, path: home, lock: Some(lock) })
    }

    /// The folder of this sandbox, whether there is one or not.
    pub fn path_of(&self, id: &SandboxId) -> PathBuf {
        self.folder.join(id.as_str())
    }

    /// Records of the sandboxes that are alive now, by time of creation.
    ///
    /// # Errors
    /// [`ShelfError::File`] if the shelf cannot be read. Records that cannot be read are left out: they may be going away.
    pub fn alive(&self) -> Result<Vec<Record>, ShelfError> {
        let mut records: Vec<Record> = Vec::new();
        for id in self.ids()? {
            let path = self.path_of(&id);
            if is_held(&path) {
                records.extend(Record::read(&path.join("record.json")).ok());
            }
        }
        records.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(records)
    }

    fn ids(&self) -> Result<Vec<SandboxId>, ShelfError> {
        let entries = fs::read_dir(&self.folder).map_err(|e| failed("read", &self.folder, e))?;
        let id = |name: std::ffi::OsString| -> Option<Result<SandboxId, IdError>> { Some(name.to_str()?.parse()) };
        Ok(entries.filter_map(|e| id(e.ok()?.file_name())).filter_map(Result::ok).collect())
    }

    /// Clears what sandboxes without an owner have left: processes, cgroup, mounts, files, names. Any number of processes may do this at
    /// once, beside others that create and remove.
    ///
    /// # Errors
    /// [`ShelfError::File`] if the shelf itself cannot be read; the rest is in the answer.
    pub fn reconcile(&self) -> Result<Reconciled, ShelfError> {
        let mut found = Reconciled::default();
        for id in self.ids()? {
            match self.clear_if_free(&id) {
                Ok(true) => found.cleared.push(id),
                Ok(false) => {}
                Err(error) => found.failed.push(error),
            }
        }
        self.clear_incomplete(&mut found)?;
        Ok(found)
    }

    fn clear_if_free(&self, id: &SandboxId) -> Result<bool, ShelfError> {
        let path = self.path_of(id);
        let lock = match try_lock(&path) {
            Ok(Grip::Free(lock)) => lock,
            Ok(Grip::Held | Grip::Gone) => return Ok(false),
            Err(source) => return Err(failed("lock", &path.join("lock"), source)),
        };
        let name = Record::read(&path.join("record.json")).ok().and_then(|r| r.name);
        Slot { shelf: self.clone(), id: id.clone(), name, path, lock }.release()?;
        Ok(true)
    }

    /// Folders that were never finished and whose lock is free. An owner may be about to make the lock, so those without go when they are old.
    fn clear_incomplete(&self, found: &mut Reconciled) -> Result<(), ShelfError> {
        let entries = fs::read_dir(&self.folder).map_err(|e| failed("read", &self.folder, e))?;
        for entry in entries.filter_map(Result::ok) {
            if !entry.file_name().to_string_lossy().starts_with("new-") {
                continue;
            }
            let age = |m: fs::Metadata| SystemTime::now().duration_since(m.modified().ok()?).ok();
            let old = entry.metadata().ok().and_then(age).is_some_and(|age| age > STALE);
            let path = entry.path();
            let _lock = match try_lock(&path) {
                Ok(Grip::Free(Some(lock))) => Some(lock),
                Ok(Grip::Free(None)) if old => None,
                _ => continue,
            };
            match fs::remove_dir_all(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => found.failed.push(failed("remove", &path, e)),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Slot {
    /// The sandbox's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends whatever is left of the sandbox (its cgroup's processes, mounts below its folder) and removes folder and name. The lock goes
    /// last: who dies on the way leaves a folder for the next sweep.
    ///
    /// # Errors
    /// The first thing that could not be done; all else was tried.
    pub fn release(mut self) -> Result<(), ShelfError> {
        let done = self.clear();
        self.lock = None;
        done
    }

    fn clear(&mut self) -> Result<(), ShelfError> {
        let cgroup = Cgroup::of(&self.id).remove().and(Cgroup::of_network(&self.id).remove());
        let left = Bridges::of(&self.shelf.folder).leave(&self.id);
        unmount_below(&self.path)?;
        let files = remove_files(&self.path);
        cgroup.map_err(|source| ShelfError::Cgroup { id: self.id.clone(), source })?;
        files?;
        left?;
        if let Some(name) = &self.name {
            let names = Names::of(&self.shelf.folder);
            if !names.on_roster(&self.id) {
                names.drop(name, &self.id)?;
            }
        }
        let lock = self.path.join("lock");
        match fs::remove_file(&lock) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &lock, e)),
            _ => {}
        }
        match fs::remove_dir(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.path, e)),
            _ => Ok(()),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.lock.is_some() {
            let _ = self.clear();
        }
    }
}

impl Record {
    fn of(spec: &SandboxSpec) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            version: VERSION,
            id: spec.id.clone(),
            name: spec.name.clone(),
            isolation: spec.isolation,
            reference: spec.reference.clone(),
            image: spec.image.clone(),
            args: spec.process.args.clone(),
            keeper: std::process::id(),
            created_at: now.as_secs(),
        }
    }

    fn read(path: &Path) -> Result<Self, ShelfError> {
        let text = fs::read(path).map_err(|e| failed("read", path, e))?;
        serde_json::from_slice(&text).map_err(|source| ShelfError::Record { path: path.to_owned(), source })
    }
}

/// Unmounts what is mounted below a folder in our own mount namespace, the deepest first.
fn unmount_below(folder: &Path) -> Result<(), ShelfError> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> = mount_points(&table).filter(|p| p.starts_with(folder) && p != folder).collect();
    points.sort();
    for point in points.iter().rev() {
        let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(point, flags).map_err(|e| failed("unmount", point, e.into()))?;
    }
    Ok(())
}

#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
pub(super) fn fuzz_mount_points(table: &str) -> Vec<PathBuf> {
    mount_points(table).collect()
}

/// The mount points of a mountinfo table (proc_pid_mountinfo(5)), its octal escapes undone.
fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> {
    table.lines().filter_map(|line| {
        let field = line.split(' ').nth(4)?;
        let mut text = String::with_capacity(field.len());
        let mut rest = field;
        while let Some(at) = rest.find('\\') {
            text.push_str(&rest[..at]);
            let code = rest.get(at + 1..at + 4).and_then(|c| u8::from_str_radix(c, 8).ok())?;
            text.push(char::from(code));
            rest = &rest[at + 4..];
        }
        text.push_str(rest);
        Some(PathBuf::from(text))
    })
}

/// Removes all of a folder but its lock.
fn remove_files(folder: &Path) -> Result<(), ShelfError> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| failed("read", folder, e))?,
    };
    // The record goes last but one: as long as it is there, the next sweep knows the name.
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
    paths.sort_by_key(|p| p.ends_with("record.json"));
    for path in paths.iter().filter(|p| !p.ends_with("lock")) {
        let is_folder = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
        let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", path, e)),
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn failed(operation: &'static str, path: &Path, source: io::Error) -> ShelfError {
    ShelfError::File { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
