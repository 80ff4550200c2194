//! Programs of other projects that Duplex uses, and the Debian packages that have them.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A program that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingTool {
    /// Its name.
    pub program: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
}

impl fmt::Display for MissingTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (package {})", self.program, self.package)
    }
}

/// The emulator.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// The file server of QEMU 7 and before, and the one that replaced it.
const FILE_SERVERS: [&str; 3] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"];

/// Folders of system programs, which are not in everyone's `PATH`.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Path of a program, in these folders or in those of system programs.
pub(crate) fn find(program: &str, search: &[PathBuf]) -> Option<PathBuf> {
    let system = SYSTEM.map(PathBuf::from);
    search.iter().chain(&system).map(|dir| dir.join(program)).find(|p| p.is_file())
}

/// Path of virtiofsd, which distributions keep outside of everyone's `PATH`.
pub(crate) fn file_server(search: &[PathBuf]) -> Option<PathBuf> {
    FILE_SERVERS.iter().map(PathBuf::from).find(|p| p.is_file()).or_else(|| find("virtiofsd", search))
}

/// What a lab needs and this machine lacks, looked up in the folders of `search`. `kernel` says that the lab's kernel has still to be
/// fetched.
pub fn missing_for_lab(search: &[PathBuf], kernel: bool) -> Vec<MissingTool> {
    let mut wanted = vec![(QEMU, "qemu-system-x86"), ("modprobe", "kmod")];
    if kernel {
        wanted.extend([("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("depmod", "kmod")]);
    }
    let mut missing: Vec<MissingTool> = wanted
        .into_iter()
        .filter(|(program, _)| find(program, search).is_none())
        .map(|(program, package)| MissingTool { program, package })
        .collect();
    if file_server(search).is_none() {
        missing
            .push(MissingTool { program: "virtiofsd", package: package_of_file_server(Path::new("/etc/os-release")) });
    }
    missing
}

/// Debian 12 has virtiofsd in a package of QEMU's, later ones in one of its own.
pub(crate) fn package_of_file_server(release: &Path) -> &'static str {
    let text = fs::read_to_string(release).unwrap_or_default();
    let version = text.lines().find_map(|l| l.strip_prefix("VERSION_ID="));
    match version.and_then(|v| v.trim_matches('"').parse::<f32>().ok()) {
        Some(version) if version < 13.0 => "qemu-system-common",
        _ => "virtiofsd",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nowhere_is_missing_with_its_package() {
        let missing = missing_for_lab(&[], true);
        let qemu = missing.iter().find(|t| t.program == QEMU).unwrap();
        assert_eq!(qemu.to_string(), "qemu-system-x86_64 (package qemu-system-x86)");
    }

    #[test]
    fn the_package_of_the_file_server_follows_the_release() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("os-release");
        for (text, package) in [
            ("ID=debian\nVERSION_ID=\"12\"\n", "qemu-system-common"),
            ("VERSION_ID=\"13\"", "virtiofsd"),
            ("ID=debian\n", "virtiofsd"),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(package_of_file_server(&file), package);
        }
    }
}
