//! Writes that survive a power cut: everything is made complete in a scratch folder, synced, and then appears by one rename; the folder that
//! names it is synced last.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::StoreError;

/// Where durable steps are taken. In tests a cut can be set: the power fails before the chosen step, and what was written but not synced by
/// then is lost.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) cut: Option<std::sync::Arc<super::power::Cut>>,
}

impl Disk {
    /// Called before every step that changes the disk.
    #[cfg_attr(not(test), allow(clippy::unused_self, clippy::unnecessary_wraps))]
    fn step(&self, action: &'static str, path: &Path) -> Result<(), StoreError> {
        #[cfg(test)]
        if let Some(cut) = &self.cut {
            cut.step().map_err(StoreError::io(action, path))?;
        }
        let _ = (action, path);
        Ok(())
    }

    /// The power has failed: nothing more happens, cleaning up included.
    #[cfg_attr(not(test), allow(clippy::unused_self))]
    pub(super) fn is_dead(&self) -> bool {
        #[cfg(test)]
        return self.cut.as_ref().is_some_and(|cut| cut.happened());
        #[cfg(not(test))]
        false
    }

    #[cfg_attr(not(test), allow(clippy::unused_self))]
    fn note(&self, path: &Path, synced: bool) {
        #[cfg(test)]
        if let Some(cut) = &self.cut {
            cut.note(path, synced);
        }
        let _ = (path, synced);
    }

    /// A new, empty file for reading and writing; it must not exist.
    pub(super) fn create(&self, path: &Path) -> Result<File, StoreError> {
        self.step("create", path)?;
        self.note(path, false);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW);
        options.open(path).map_err(StoreError::io("create", path))
    }

    /// Puts a file's contents on the disk.
    pub(super) fn sync(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        self.step("sync", path)?;
        file.sync_all().map_err(StoreError::io("sync", path))?;
        self.note(path, true);
        Ok(())
    }

    /// A whole new file, synced.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let mut file = self.create(path)?;
        self.step("write", path)?;
        file.write_all(bytes).map_err(StoreError::io("write", path))?;
        self.sync(&file, path)
    }

    /// A new folder.
    pub(super) fn make_folder(&self, path: &Path) -> Result<(), StoreError> {
        self.step("create folder", path)?;
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().mode(0o700).create(path).map_err(StoreError::io("create folder", path))
    }

    /// Puts a folder's names on the disk.
    pub(super) fn sync_folder(&self, path: &Path) -> Result<(), StoreError> {
        self.step("sync folder", path)?;
        File::open(path).and_then(|f| f.sync_all()).map_err(StoreError::io("sync folder", path))
    }

    /// Lets a synced scratch file take the place of `to`, and syncs the folder it is in.
    pub(super) fn replace_file(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.step("rename", to)?;
        fs::rename(from, to).map_err(StoreError::io("rename", to))?;
        self.sync_parent(to)
    }

    /// Lets a scratch folder whose files are synced appear as `to`. `false` if a folder is there already; then nothing changes.
    pub(super) fn publish_folder(&self, from: &Path, to: &Path) -> Result<bool, StoreError> {
        self.sync_folder(from)?;
        self.step("rename", to)?;
        match fs::rename(from, to) {
            Ok(()) => self.sync_parent(to).map(|()| true),
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => Ok(false),
            Err(e) => Err(StoreError::io("rename", to)(e)),
        }
    }

    /// Takes a file's name away for good. One that is not there is no error.
    pub(super) fn remove_file(&self, path: &Path) -> Result<(), StoreError> {
        self.step("remove", path)?;
        match fs::remove_file(path) {
            Ok(()) => self.sync_parent(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(StoreError::io("remove", path)(e)),
        }
    }

    /// Takes a folder's name away at once by moving it to `trash`, where it may lie half removed. One that is not there is no error.
    pub(super) fn remove_folder(&self, path: &Path, trash: &Path) -> Result<(), StoreError> {
        self.step("rename", path)?;
        match fs::rename(path, trash) {
            Ok(()) => self.sync_parent(path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A full disk may have no room for the new name; deletion must work all the same.
            Err(e) if e.kind() == io::ErrorKind::StorageFull => return self.remove_tree(path),
            Err(e) => return Err(StoreError::io("rename", path)(e)),
        }
        self.remove_tree(trash)
    }

    /// Removes a folder with all it holds.
    pub(super) fn remove_tree(&self, path: &Path) -> Result<(), StoreError> {
        self.step("remove", path)?;
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(e)),
            _ => Ok(()),
        }
    }

    fn sync_parent(&self, path: &Path) -> Result<(), StoreError> {
        path.parent().map_or(Ok(()), |parent| self.sync_folder(parent))
    }
}
