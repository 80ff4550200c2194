//! Names of sandboxes: symbolic links `STATE/names/<name>` to the id that has the name. A name is its sandbox's as long as that is on the
//! roster, or alive without being there.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::grip::is_held;
use super::shelf::{ShelfError, failed};
use crate::spec::SandboxId;
use crate::sys::locks;

/// Longest name of a sandbox, in bytes.
pub(super) const NAME_MAX: usize = 128;

/// How long the lock on names is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The names of one state folder.
#[derive(Clone, Debug)]
pub(super) struct Names {
    state: PathBuf,
}

impl Names {
    pub(super) fn of(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    /// Gives a name to a sandbox; false if that has it already.
    pub(super) fn take(&self, name: &str, id: &SandboxId) -> Result<bool, ShelfError> {
        check(name)?;
        let _guard = self.lock()?;
        self.take_locked(name, id)
    }

    /// Gives the first free one of these names to a sandbox that `settle` then puts where a name's holder lives; nobody else can take the name
    /// meanwhile.
    pub(super) fn take_first<E: From<ShelfError>>(
        &self,
        names: impl Iterator<Item = String>,
        id: &SandboxId,
        settle: impl FnOnce(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let _guard = self.lock()?;
        let mut last = None;
        for name in names {
            check(&name)?;
            match self.take_locked(&name, id) {
                Ok(_) => {
                    let settled = settle(&name);
                    if settled.is_err() {
                        let _ = fs::remove_file(self.link(&name));
                    }
                    return settled;
                }
                Err(error @ ShelfError::NameTaken { .. }) => last = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.unwrap_or_else(|| ShelfError::BadName(String::new())).into())
    }

    /// Gives up a name, if it is this sandbox's.
    pub(super) fn drop(&self, name: &str, id: &SandboxId) -> Result<(), ShelfError> {
        let _guard = self.lock()?;
        let link = self.link(name);
        if self.target(&link).as_ref() == Some(id) {
            fs::remove_file(&link).map_err(|e| failed("remove", &link, e))?;
        }
        Ok(())
    }

    /// Who has this name.
    pub(super) fn holder(&self, name: &str) -> Option<SandboxId> {
        check(name).ok()?;
        let id = self.target(&self.link(name))?;
        self.lives(&id).then_some(id)
    }

    fn take_locked(&self, name: &str, id: &SandboxId) -> Result<bool, ShelfError> {
        let link = self.link(name);
        match self.target(&link) {
            Some(holder) if holder == *id => return Ok(false),
            Some(holder) if self.lives(&holder) => {
                return Err(ShelfError::NameTaken { name: name.to_owned(), holder: holder.to_string() });
            }
            _ => {}
        }
        match fs::remove_file(&link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &link, e)),
            _ => {}
        }
        std::os::unix::fs::symlink(id.as_str(), &link).map_err(|e| failed("make", &link, e))?;
        Ok(true)
    }

    fn link(&self, name: &str) -> PathBuf {
        self.state.join("names").join(name)
    }

    fn target(&self, link: &Path) -> Option<SandboxId> {
        fs::read_link(link).ok()?.to_str()?.parse().ok()
    }

    fn lives(&self, id: &SandboxId) -> bool {
        self.on_roster(id) || is_held(&self.state.join(id.as_str()))
    }

    /// The sandbox is on the roster, which then owns its name.
    pub(super) fn on_roster(&self, id: &SandboxId) -> bool {
        self.state.join("roster").join(id.as_str()).exists()
    }

    /// All names with who has or had them.
    pub(super) fn all(&self) -> Vec<(String, SandboxId)> {
        let entries = fs::read_dir(self.state.join("names")).into_iter().flatten().flatten();
        entries.filter_map(|e| Some((e.file_name().into_string().ok()?, self.target(&e.path())?))).collect()
    }

    fn lock(&self) -> Result<File, ShelfError> {
        let path = self.state.join("names/.lock");
        let opened = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = opened.map_err(|e| failed("open", &path, e))?;
        locks::exclusive(file, PATIENCE).map_err(|e| failed("lock", &path, e))
    }
}

/// Docker's rule for names, so that a name is one path component.
pub(super) fn check(name: &str) -> Result<(), ShelfError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let good = name.len() <= NAME_MAX
        && name.bytes().all(allowed)
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if good { Ok(()) } else { Err(ShelfError::BadName(name.to_owned())) }
}
