//! What the caller's environment says: the only place that reads it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::lab::MARK;
use crate::spec::Installation;

/// The variables that Duplex reads, read once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Environment {
    /// `DUPLEX_ROOT`: root of the image store.
    pub root: Option<PathBuf>,
    /// `DUPLEX_STATE`: folder of running sandboxes.
    pub state: Option<PathBuf>,
    /// `DUPLEX_LIBDIR`: folder of the monitor and the guest's parts.
    pub libdir: Option<PathBuf>,
    /// `DUPLEX_NO_LAB`, set to anything but `0` or nothing: never work in the lab.
    pub no_lab: bool,
    /// `DUPLEX_IN_LAB`: set by the lab for what runs in it.
    pub in_lab: bool,
    /// `DUPLEX_LOG`: a filter of `tracing-subscriber`; nothing is logged without it.
    pub log: Option<String>,
    /// `NO_COLOR`, set to anything but nothing.
    pub no_color: bool,
    /// `XDG_DATA_HOME`, or `$HOME/.local/share`.
    pub data_home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
}

impl Environment {
    /// Reads the caller's environment.
    pub(super) fn read() -> Self {
        let path = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let flag = |name: &str| env::var_os(name).is_some_and(|v| !v.is_empty() && v != "0");
        Self {
            root: path("DUPLEX_ROOT"),
            state: path("DUPLEX_STATE"),
            libdir: path("DUPLEX_LIBDIR"),
            no_lab: flag("DUPLEX_NO_LAB"),
            in_lab: flag(MARK),
            log: env::var("DUPLEX_LOG").ok().filter(|v| !v.is_empty()),
            no_color: env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()),
            data_home: path("XDG_DATA_HOME").or_else(|| path("HOME").map(|home| home.join(".local/share"))),
            runtime_dir: path("XDG_RUNTIME_DIR"),
        }
    }

    /// Folder of this user's data; the image store unless something else is said.
    pub(super) fn data_folder(&self, uid: u32) -> PathBuf {
        let data = if uid == 0 { None } else { self.data_home.clone() };
        data.unwrap_or_else(|| "/var/lib".into()).join("duplex")
    }

    /// Where the parts of Duplex and its data are. `root` is what `--root` says; `uid` decides between the system's folders
    /// and the user's own.
    pub(super) fn installation(&self, program: &Path, root: Option<&Path>, uid: u32) -> Installation {
        let lib = self.libdir.clone().unwrap_or_else(|| program.parent().unwrap_or(Path::new("/")).to_owned());
        let store = root.map(Path::to_owned).or_else(|| self.root.clone());
        let runtime = if uid == 0 { None } else { self.runtime_dir.clone() };
        Installation {
            duplex: program.to_owned(),
            monitor: lib.join("duplex-vmm"),
            kernel: lib.join("guest/vmlinux"),
            initramfs: lib.join("guest/initramfs.cpio"),
            workloads: lib.join("guest/workloads.tar"),
            store: store.unwrap_or_else(|| self.data_folder(uid)),
            state: self.state.clone().unwrap_or_else(|| runtime.unwrap_or_else(|| "/run".into()).join("duplex")),
        }
    }
}

/// The value of the caller's variable, as `-e NAME` passes it on.
pub(super) fn variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

/// All variables, for a command in the lab.
pub(super) fn all() -> Vec<(OsString, OsString)> {
    env::vars_os().collect()
}

/// Folders where programs are looked up.
pub(super) fn search_path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

/// The parent of this process is this very program, and does this verb.
pub(super) fn called_by(verb: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Some(parent) = rustix::process::getppid() else { return false };
    let file = |exe: String| std::fs::metadata(exe).ok().map(|file| (file.dev(), file.ino()));
    let folder = format!("/proc/{}", parent.as_raw_nonzero());
    let itself = file(format!("{folder}/exe"));
    let words = std::fs::read(format!("{folder}/cmdline")).unwrap_or_default();
    itself.is_some()
        && itself == file("/proc/self/exe".to_owned())
        && words.split(|byte| *byte == 0).skip(1).any(|word| word == verb.as_bytes())
}

/// Path of the running program.
pub(super) fn program() -> std::io::Result<PathBuf> {
    env::current_exe()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_variables_and_variables_over_the_users_folders() {
        let program = Path::new("/opt/duplex/duplex");
        let mut environment = Environment { data_home: Some("/home/u/.local/share".into()), ..Environment::default() };
        let root = environment.installation(program, None, 0);
        assert_eq!((root.store, root.state), ("/var/lib/duplex".into(), "/run/duplex".into()));
        assert_eq!(root.monitor, Path::new("/opt/duplex/duplex-vmm"));
        assert_eq!(root.kernel, Path::new("/opt/duplex/guest/vmlinux"));
        assert_eq!(environment.installation(program, None, 1000).store, Path::new("/home/u/.local/share/duplex"));
        environment.root = Some("/data".into());
        environment.libdir = Some("/usr/lib/duplex".into());
        let set = environment.installation(program, None, 0);
        assert_eq!((set.store, set.initramfs), ("/data".into(), "/usr/lib/duplex/guest/initramfs.cpio".into()));
        assert_eq!(environment.installation(program, Some(Path::new("/flag")), 0).store, Path::new("/flag"));
    }
}
