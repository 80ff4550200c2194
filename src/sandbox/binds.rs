//! Folders and files of the host that a sandbox shows: what both engines do before they open one.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It is not there, and nobody has asked for a folder in its place.
    #[error("bind source path does not exist: {0}")]
    NoSource(PathBuf),
    /// It is not there, and cannot be made.
    #[error("Cannot make the folder {path} of the host")]
    Make {
        /// The folder.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// Sees to it that the source of a mount is there. With `create` one that is missing becomes a folder, as in Docker, which stays.
///
/// # Errors
/// [`BindError`].
pub(super) fn prepare(path: &Path, create: bool) -> Result<(), BindError> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound && create => {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
            made.map_err(|source| BindError::Make { path: path.to_owned(), source })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(BindError::NoSource(path.to_owned())),
        // Whatever else keeps it from being opened is told when it is.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_made_only_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        assert!(matches!(prepare(&path, false), Err(BindError::NoSource(_))));
        prepare(&path, true).unwrap();
        prepare(&path, false).unwrap();
        assert!(path.is_dir());
        std::fs::write(path.join("file"), "x").unwrap();
        prepare(&path.join("file"), true).unwrap();
        assert!(path.join("file").is_file());
        assert!(matches!(prepare(&path.join("file/below"), false), Ok(())), "told when it is opened");
    }
}
