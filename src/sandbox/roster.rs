//! All sandboxes that have been defined and not yet removed, alive or not: one folder each.
//!
//! ```text
//! STATE/roster/<id>/lock             locked (flock) by the keeper, or by whoever changes the entry
//! STATE/roster/<id>/definition.json  what was asked for, written once
//! STATE/roster/<id>/standing.json    what has become of it, replaced whole
//! STATE/roster/<id>/unsettled        its owner is at work: found with the lock free, the owner has died and the entry needs repair
//! STATE/roster/<id>/control          the keeper's socket
//! STATE/roster/<id>/health.json      its last health checks
//! STATE/roster/<id>/log.<n>          its output
//! STATE/roster/<id>/room             bytes that are given up when the disk is full, so that its end can be written down
//! STATE/roster/new-*                 a folder that is not complete yet
//! ```
//!
//! What the engines hold of a running sandbox is on the shelf (`shelf`), and is cleared before an entry is repaired.

mod health;
mod names;
mod room;
mod stored;
mod volumes;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::grip::{self, Grip, is_held, try_lock};
use super::names::Names;
use super::shelf::{Shelf, ShelfError};
use crate::spec::{Definition, Digest, Exit, LimitChange, Limits, Outcome, Restart, SandboxId, Standing, Status};
use crate::sys::clock::realtime_ns;
use crate::volume::VolumeError;

/// How long another command may hold an entry's lock for a change.
const PATIENCE: Duration = Duration::from_secs(15);

/// An incomplete folder without a lock that is older than this belongs to nobody.
const STALE: Duration = Duration::from_secs(20);

const DEFINITION: &str = "definition.json";
const STANDING: &str = "standing.json";
const UNSETTLED: &str = "unsettled";

/// Name of the keeper's socket in an entry's folder.
pub const CONTROL: &str = "control";

/// Whether the sandbox of this folder has an owner that lives.
pub fn is_owned(folder: &Path) -> bool {
    is_held(folder)
}

/// The roster of one state folder.
#[derive(Clone, Debug)]
pub struct Roster {
    state: PathBuf,
    folder: PathBuf,
    names: Names,
}

/// One sandbox on the roster, held: nobody else changes it while this lives.
#[derive(Debug)]
pub struct Entry {
    path: PathBuf,
    names: Names,
    /// What was asked for.
    pub definition: Definition,
    /// What has become of it; [`Entry::save`] writes it.
    pub standing: Standing,
    lock: Option<File>,
    unsettled: bool,
}

/// One sandbox on the roster as it is to be read at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its folder.
    pub path: PathBuf,
    /// What was asked for.
    pub definition: Definition,
    /// What has become of it.
    pub standing: Standing,
}

/// Why the roster does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
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
    /// A name is bad or taken, or the shelf cannot be read.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// A volume of a sandbox that goes.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Nothing has this name or id.
    #[error("No such sandbox: {0}")]
    Unknown(String),
    /// More than one id begins like this.
    #[error("'{word}' is the beginning of {count} ids: write more of it")]
    Ambiguous {
        /// What was given.
        word: String,
        /// How many ids begin so.
        count: usize,
    },
    /// Somebody else works on it.
    #[error("Sandbox {0} is in use by another command")]
    Busy(SandboxId),
    /// Written by another version of Duplex.
    #[error(
        "{path} has version {found}, this Duplex knows {known}: use the one that wrote it, or remove the sandbox with 'duplex rm -f'"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The one that is understood.
        known: u32,
    },
    /// Not what such a file holds.
    #[error("{path} cannot be understood: 'duplex rm -f' removes the sandbox")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Roster {
    /// The roster in this state folder, which is made (mode 0700) if it is not there.
    ///
    /// # Errors
    /// [`RosterError::File`] naming the folder.
    pub fn open(state: &Path) -> Result<Self, RosterError> {
        let folder = state.join("roster");
        if !folder.is_dir() {
            for path in [&state.join("names"), &folder] {
                let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
                made.map_err(|e| failed("make", path, e))?;
            }
        }
        Ok(Self { state: state.to_owned(), folder, names: Names::of(state) })
    }

    /// Puts a sandbox on the roster, under this name or one that is made up. `at_work`: its owner goes on to run it, and if that ends
    /// without a word the entry is repaired.
    ///
    /// # Errors
    /// [`ShelfError::NameTaken`], or what the file system says. Nothing is left then.
    pub fn add(&self, definition: Definition, name: Option<&str>, at_work: bool) -> Result<Entry, RosterError> {
        let id = definition.spec.id.clone();
        let fresh = self.folder.join(format!("new-{id}-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(|e| failed("make", &fresh, e))?;
        let path = self.path_of(&id);
        let added = self.fill(&fresh, &definition, at_work).and_then(|lock| {
            let standing = Standing::new(String::new());
            let names = self.names.clone();
            let (at, lock) = (fresh.clone(), Some(lock));
            let mut entry = Entry { path: at, names, definition, standing, lock, unsettled: at_work };
            let settle = |name: &str| {
                name.clone_into(&mut entry.standing.name);
                stored::write_new(&fresh.join(STANDING), &entry.standing)?;
                let no_replace = rustix::fs::RenameFlags::NOREPLACE;
                let renamed = rustix::fs::renameat_with(rustix::fs::CWD, &fresh, rustix::fs::CWD, &path, no_replace);
                renamed.map_err(|e| failed("make", &path, e.into()))
            };
            match name {
                Some(name) => self.names.take_first(std::iter::once(name.to_owned()), &id, settle)?,
                None => self.names.take_first(names::random(), &id, settle)?,
            }
            Ok(Entry { path: path.clone(), ..entry })
        });
        if added.is_err() {
            let _ = fs::remove_dir_all(&fresh);
        }
        added
    }

    fn fill(&self, fresh: &Path, definition: &Definition, at_work: bool) -> Result<File, RosterError> {
        let path = fresh.join("lock");
        let lock = grip::make(&path).map_err(|e| failed("make", &path, e))?;
        if at_work {
            mark(fresh)?;
        }
        stored::write_new(&fresh.join(DEFINITION), definition)?;
        room::keep(fresh)?;
        Ok(lock)
    }

    /// The folder of this sandbox, whether there is one or not.
    pub fn path_of(&self, id: &SandboxId) -> PathBuf {
        self.folder.join(id.as_str())
    }

    /// All sandboxes by time of definition, the newest first, and what could not be read.
    ///
    /// # Errors
    /// [`RosterError::File`] if the roster itself cannot be read.
    pub fn list(&self) -> Result<(Vec<Seen>, Vec<RosterError>), RosterError> {
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        for id in self.ids()? {
            match self.see(&id) {
                Ok(seen) => found.push(seen),
                Err(RosterError::Unknown(_)) => {}
                Err(error) => failed.push(error),
            }
        }
        found.sort_by(|a: &Seen, b| {
            (b.definition.created_at_ns, &b.definition.spec.id)
                .cmp(&(a.definition.created_at_ns, &a.definition.spec.id))
        });
        Ok((found, failed))
    }

    /// One sandbox as it is now.
    ///
    /// # Errors
    /// [`RosterError::Unknown`] if it is not (any more) there, or why it cannot be understood.
    pub fn see(&self, id: &SandboxId) -> Result<Seen, RosterError> {
        let path = self.path_of(id);
        let gone = || RosterError::Unknown(id.to_string());
        let definition: Definition = stored::read(&path.join(DEFINITION))?.ok_or_else(gone)?;
        let standing: Standing = stored::read(&path.join(STANDING))?.ok_or_else(gone)?;
        Ok(Seen { path, definition, standing })
    }

    /// The sandbox that a person means: its id, its name, or the beginning of its id.
    ///
    /// # Errors
    /// [`RosterError::Unknown`] or [`RosterError::Ambiguous`].
    pub fn find(&self, word: &str) -> Result<SandboxId, RosterError> {
        let ids = self.ids()?;
        if let Some(id) = ids.iter().find(|id| id.as_str() == word) {
            return Ok(id.clone());
        }
        if let Some(id) = self.names.holder(word).filter(|id| ids.contains(id)) {
            return Ok(id);
        }
        let begins: Vec<&SandboxId> =
            ids.iter().filter(|id| !word.is_empty() && id.as_str().starts_with(word)).collect();
        match begins.as_slice() {
            [] => Err(RosterError::Unknown(word.to_owned())),
            [only] => Ok((*only).clone()),
            several => Err(RosterError::Ambiguous { word: word.to_owned(), count: several.len() }),
        }
    }

    /// Takes hold of a sandbox without an owner; `None` if it has one.
    ///
    /// # Errors
    /// [`RosterError::Unknown`] if it is gone, or why it cannot be understood.
    pub fn try_take(&self, id: &SandboxId) -> Result<Option<Entry>, RosterError> {
        let path = self.path_of(id);
        match try_lock(&path).map_err(|e| failed("lock", &path.join("lock"), e))? {
            Grip::Held => Ok(None),
            Grip::Gone | Grip::Free(None) => Err(RosterError::Unknown(id.to_string())),
            Grip::Free(Some(lock)) => self.entry(id, lock).map(Some),
        }
    }

    /// The same, but waits for an owner that is about to let go.
    ///
    /// # Errors
    /// [`RosterError::Busy`] if it does not.
    pub fn take(&self, id: &SandboxId) -> Result<Entry, RosterError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(entry) = self.try_take(id)? {
                return Ok(entry);
            }
            if Instant::now() > deadline {
                return Err(RosterError::Busy(id.clone()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes over a sandbox whose lock another process has taken and handed on.
    ///
    /// # Errors
    /// As [`Roster::see`].
    pub fn adopt(&self, id: &SandboxId, lock: OwnedFd) -> Result<Entry, RosterError> {
        self.entry(id, lock.into())
    }

    fn entry(&self, id: &SandboxId, lock: File) -> Result<Entry, RosterError> {
        let Seen { path, definition, standing } = self.see(id)?;
        let unsettled = path.join(UNSETTLED).exists();
        Ok(Entry { path, names: self.names.clone(), definition, standing, lock: Some(lock), unsettled })
    }

    /// Removes a sandbox that has no owner and cannot be understood.
    ///
    /// # Errors
    /// [`RosterError::Busy`], or what cannot be removed.
    pub fn remove_damaged(&self, id: &SandboxId) -> Result<(), RosterError> {
        let path = self.path_of(id);
        match try_lock(&path).map_err(|e| failed("lock", &path.join("lock"), e))? {
            Grip::Held => Err(RosterError::Busy(id.clone())),
            Grip::Gone => Ok(()),
            Grip::Free(_lock) => self.remove_folder(id, &path),
        }
    }

    /// Manifests of the images that sandboxes on the roster run: they must stay in the store.
    ///
    /// # Errors
    /// As [`Roster::list`].
    pub fn images(&self) -> Result<BTreeSet<Digest>, RosterError> {
        Ok(self.list()?.0.into_iter().map(|seen| seen.definition.spec.image).collect())
    }

    /// Clears what dead owners have left, on the shelf and here: a sandbox whose keeper has died is told to have ended, and one that was to go
    /// then goes. Costs little when there is nothing to do. What fails is the answer; the next repair tries again.
    ///
    /// # Errors
    /// If shelf or roster cannot be read.
    pub fn repair(&self) -> Result<Vec<RosterError>, RosterError> {
        let shelf = Shelf::open(&self.state)?;
        let mut failures: Vec<RosterError> = shelf.reconcile()?.failed.into_iter().map(RosterError::Shelf).collect();
        let (ids, incomplete) = self.scan()?;
        for id in ids {
            let path = self.path_of(&id);
            let unsettled = path.join(UNSETTLED).exists() || !path.join(DEFINITION).exists();
            // What the shelf still has of it must go first.
            if unsettled && !shelf.path_of(&id).exists() {
                failures.extend(self.settle(&id, &path).err());
            }
        }
        failures.extend(incomplete.iter().filter_map(|name| self.clear_incomplete(name).err()));
        Ok(failures)
    }

    fn settle(&self, id: &SandboxId, path: &Path) -> Result<(), RosterError> {
        let _lock = match try_lock(path).map_err(|e| failed("lock", &path.join("lock"), e))? {
            Grip::Held | Grip::Gone => return Ok(()),
            Grip::Free(None) => return self.remove_folder(id, path),
            Grip::Free(Some(lock)) => lock,
        };
        // Another repair may have been faster.
        if path.join(DEFINITION).exists() && !path.join(UNSETTLED).exists() {
            return Ok(());
        }
        let Seen { definition, mut standing, .. } = match self.see(id) {
            Ok(seen) => seen,
            Err(RosterError::Unknown(_)) => return self.remove_folder(id, path),
            Err(error) => return Err(error),
        };
        if definition.remove || standing.status == Status::Removing {
            self.remove_name(&standing.name, id)?;
            if definition.remove {
                volumes::remove_anonymous(&definition)?;
            }
            return self.remove_folder(id, path);
        }
        if standing.status.is_live() {
            let reason = Some("its keeper was killed, and the sandbox ended with it".to_owned());
            let outcome = Outcome { exit: Exit::SandboxFailed, oom: false, reason };
            standing.end(Status::Exited, outcome, realtime_ns());
        }
        (standing.keeper, standing.network) = (None, None);
        stored::write(&path.join(STANDING), &standing)?;
        settled(path)
    }

    fn remove_name(&self, name: &str, id: &SandboxId) -> Result<(), RosterError> {
        Ok(self.names.drop(name, id)?)
    }

    fn remove_folder(&self, id: &SandboxId, path: &Path) -> Result<(), RosterError> {
        // A name that still points here would be taken for a living one's.
        let links = fs::read_dir(self.state.join("names")).into_iter().flatten().filter_map(Result::ok);
        for link in links {
            if fs::read_link(link.path()).is_ok_and(|target| target.as_os_str() == id.as_str()) {
                self.names.drop(&link.file_name().to_string_lossy(), id)?;
            }
        }
        remove_all(path)
    }

    /// A folder that was never finished. Its owner may be about to make the lock, so one without is left alone until it is old.
    fn clear_incomplete(&self, name: &str) -> Result<(), RosterError> {
        let path = self.folder.join(name);
        let age = |m: fs::Metadata| SystemTime::now().duration_since(m.modified().ok()?).ok();
        let old = || fs::metadata(&path).ok().and_then(age).is_some_and(|age| age > STALE);
        let Ok(Grip::Free(lock)) = try_lock(&path) else { return Ok(()) };
        if lock.is_none() && !old() {
            return Ok(());
        }
        let id = name.split('-').nth(1).and_then(|id| id.parse::<SandboxId>().ok());
        id.map_or_else(|| remove_all(&path), |id| self.remove_folder(&id, &path))
    }

    fn ids(&self) -> Result<Vec<SandboxId>, RosterError> {
        Ok(self.scan()?.0)
    }

    /// The sandboxes, and the names of folders that are not complete.
    fn scan(&self) -> Result<(Vec<SandboxId>, Vec<String>), RosterError> {
        let entries = fs::read_dir(&self.folder).map_err(|e| failed("read", &self.folder, e))?;
        let (mut ids, mut incomplete) = (Vec::new(), Vec::new());
        for name in entries.filter_map(|e| e.ok()?.file_name().into_string().ok()) {
            match name.parse() {
                Ok(id) => ids.push(id),
                Err(_) if name.starts_with("new-") => incomplete.push(name),
                Err(_) => {}
            }
        }
        Ok((ids, incomplete))
    }
}

impl Seen {
    /// Its restart policy, changed or not.
    pub fn restart(&self) -> Restart {
        self.standing.restart.unwrap_or(self.definition.restart)
    }

    /// Its limits, changed or not.
    pub fn limits(&self) -> Limits {
        self.standing.limits.unwrap_or(self.definition.spec.limits)
    }
}

impl Entry {
    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the standing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self) -> Result<(), RosterError> {
        room::save(&self.path, &self.standing)
    }

    /// Says that its owner is at work from now on.
    ///
    /// # Errors
    /// What the file system says.
    pub fn at_work(&mut self) -> Result<(), RosterError> {
        if !self.unsettled {
            mark(&self.path)?;
            self.unsettled = true;
        }
        Ok(())
    }

    /// Says that its standing is the last word of its owner.
    ///
    /// # Errors
    /// What the file system says.
    pub fn settled(&mut self) -> Result<(), RosterError> {
        self.unsettled = false;
        settled(&self.path)
    }

    /// Its limits, changed or not.
    pub fn limits(&self) -> Limits {
        self.standing.limits.unwrap_or(self.definition.spec.limits)
    }

    /// Has other limits from now on, once it is saved.
    pub fn change_limits(&mut self, change: &LimitChange) {
        self.standing.limits = Some(self.limits().changed(change));
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// [`ShelfError::NameTaken`], [`ShelfError::BadName`] or what the file system says; it has its old name then.
    pub fn rename(&mut self, name: &str) -> Result<(), RosterError> {
        let id = &self.definition.spec.id;
        self.names.take(name, id)?;
        let old = std::mem::replace(&mut self.standing.name, name.to_owned());
        if let Err(error) = self.save() {
            if old != name {
                let _ = self.names.drop(name, id);
            }
            self.standing.name = old;
            return Err(error);
        }
        if old == name { Ok(()) } else { Ok(self.names.drop(&old, &self.definition.spec.id)?) }
    }

    /// Takes it off the roster. Who dies on the way leaves it for the next repair.
    ///
    /// # Errors
    /// What cannot be removed.
    pub fn remove(mut self) -> Result<(), RosterError> {
        self.at_work()?;
        // A repair removes what was to go at its end without being told more.
        if !self.definition.remove {
            self.standing.status = Status::Removing;
            room::save_or_make_room(&self.path, &self.standing)?;
        }
        self.names.drop(&self.standing.name, &self.definition.spec.id)?;
        let volumes = if self.definition.remove { volumes::remove_anonymous(&self.definition) } else { Ok(()) };
        remove_all(&self.path)?;
        Ok(volumes?)
    }

    /// The same, and the volumes that were made for it with it.
    ///
    /// # Errors
    /// What cannot be removed.
    pub fn remove_with_volumes(mut self) -> Result<(), RosterError> {
        self.definition.remove = false;
        volumes::remove_anonymous(&self.definition)?;
        self.remove()
    }

    /// The lock, for the process that takes over. The sandbox stays held as long as either has it.
    ///
    /// # Errors
    /// If there is no descriptor to be had.
    pub fn lock_to_hand_on(&self) -> io::Result<OwnedFd> {
        let lock = self.lock.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(lock.try_clone()?.into())
    }
}

fn mark(path: &Path) -> Result<(), RosterError> {
    let mark = path.join(UNSETTLED);
    File::create(&mark).map(drop).map_err(|e| failed("make", &mark, e))
}

fn settled(path: &Path) -> Result<(), RosterError> {
    for name in [CONTROL, UNSETTLED] {
        let file = path.join(name);
        match fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &file, e)),
            _ => {}
        }
    }
    Ok(())
}

/// Removes a folder: the lock and the definition last, so that who finds the rest knows what it is.
fn remove_all(path: &Path) -> Result<(), RosterError> {
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| failed("read", path, e))?,
    };
    let rank = |file: &PathBuf| (file.ends_with("lock"), file.ends_with(DEFINITION), file.ends_with(UNSETTLED));
    let mut files: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
    files.sort_by_key(rank);
    for file in files {
        match fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &file, e)),
            _ => {}
        }
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, e)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> RosterError {
    RosterError::File { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
