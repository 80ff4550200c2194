//! The lab's kernel: Debian's cloud kernel package, fetched and unpacked once, never installed.
//!
//! ```text
//! <kernel>/<release>/vmlinuz   lib/modules/<release>/   (with depmod's index)
//! <kernel>/fetch-*             an unfinished download; the next fetch removes it
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::sys::spawn::ChildSetup;

/// Packages that lead to a 6.12 or later kernel, best first: Debian 12 with its newer kernels, then Debian 13.
const PACKAGES: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];

/// The first release with file-backed EROFS mounts.
const OLDEST: (u32, u32) = (6, 12);

/// A kernel that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// `uname -r`.
    pub(super) release: String,
    /// The folder with `vmlinuz` and `lib/modules`.
    pub(super) dir: PathBuf,
}

/// Why there is no kernel for the lab.
#[derive(Debug, thiserror::Error)]
pub(super) enum KernelError {
    #[error("No kernel package for the lab: apt knows none of {}. Run 'apt-get update'", PACKAGES.join(", "))]
    NoPackage,
    #[error("'{command}' failed for the lab's kernel: {said}")]
    Command { command: String, said: String },
    #[error("'{command}' could not be run for the lab's kernel")]
    Spawn { command: String, source: io::Error },
    #[error("The package {package} does not look like a Debian kernel: {what}")]
    Package { package: String, what: &'static str },
    #[error("{path}: the lab's kernel could not be stored")]
    Io { path: PathBuf, source: io::Error },
}

/// The newest kernel in this folder.
pub(super) fn find(folder: &Path) -> Option<Kernel> {
    let entries = fs::read_dir(folder).ok()?;
    let whole = entries.filter_map(|entry| {
        let dir = entry.ok()?.path();
        let release = dir.file_name()?.to_str()?.to_owned();
        let complete = dir.join("vmlinuz").is_file() && dir.join("lib/modules").join(&release).is_dir();
        (complete && version(&release)? >= OLDEST).then_some(Kernel { release, dir })
    });
    whole.max_by_key(|k| (version(&k.release), k.release.clone()))
}

/// The kernel in this folder, fetched if there is none. Only one process may do this at a time.
pub(super) fn find_or_fetch(folder: &Path, tell: &mut dyn FnMut(&str)) -> Result<Kernel, KernelError> {
    if let Some(kernel) = find(folder) {
        return Ok(kernel);
    }
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| KernelError::Io { path, source }
    };
    fs::create_dir_all(folder).map_err(at(folder))?;
    drop_unfinished(folder).map_err(at(folder))?;
    let work = folder.join(format!("fetch-{}", std::process::id()));
    fs::create_dir(&work).map_err(at(&work))?;
    let fetched = fetch(folder, &work, tell);
    let removed = fs::remove_dir_all(&work);
    let kernel = fetched?;
    removed.map_err(at(&work))?;
    Ok(kernel)
}

fn drop_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("fetch-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn fetch(folder: &Path, work: &Path, tell: &mut dyn FnMut(&str)) -> Result<Kernel, KernelError> {
    let package = PACKAGES.iter().find_map(|p| kernel_package(p)).ok_or(KernelError::NoPackage)?;
    tell(&format!("fetching the lab's kernel, {package} (about 30 MB, once)"));
    run(Command::new("apt-get").args(["download", "-q", &package]).current_dir(work))?;
    let io = |source| KernelError::Io { path: work.to_owned(), source };
    let mut files = fs::read_dir(work).map_err(io)?.filter_map(|e| Some(e.ok()?.path()));
    let wrong = |what| KernelError::Package { package: package.clone(), what };
    let deb =
        files.find(|p| p.extension().is_some_and(|e| e == "deb")).ok_or_else(|| wrong("nothing was downloaded"))?;
    tell("unpacking the lab's kernel");
    let tree = work.join("tree");
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree))?;
    let modules = ["lib/modules", "usr/lib/modules"].iter().map(|m| tree.join(m)).find(|m| m.is_dir());
    let modules = modules.ok_or_else(|| wrong("it has no modules"))?;
    let release = fs::read_dir(&modules).map_err(io)?.find_map(|e| e.ok()?.file_name().into_string().ok());
    let release = release.ok_or_else(|| wrong("it has no modules"))?;
    if version(&release).is_none_or(|v| v < OLDEST) {
        return Err(wrong("it is older than 6.12"));
    }
    let ready = work.join("ready");
    fs::create_dir_all(ready.join("lib")).map_err(io)?;
    fs::rename(&modules, ready.join("lib/modules")).map_err(io)?;
    fs::rename(tree.join("boot").join(format!("vmlinuz-{release}")), ready.join("vmlinuz"))
        .map_err(|_| wrong("it has no /boot/vmlinuz of its release"))?;
    run(Command::new("depmod").arg("-b").arg(&ready).arg(&release))?;
    // A power cut must not leave a folder that looks whole and is not.
    let sync = |path: &Path| fs::File::open(path).and_then(|f| rustix::fs::syncfs(f).map_err(Into::into));
    sync(&ready).map_err(io)?;
    let dir = folder.join(&release);
    fs::rename(&ready, &dir).map_err(io)?;
    sync(folder).map_err(io)?;
    Ok(Kernel { release, dir })
}

/// The package with the files that this package, which only depends on it, leads to.
fn kernel_package(name: &str) -> Option<String> {
    let output =
        Command::new("apt-cache").args(["depends", "--no-recommends", name]).env("LC_ALL", "C").output().ok()?;
    dependency(&String::from_utf8_lossy(&output.stdout))
}

fn dependency(text: &str) -> Option<String> {
    let depends = text.lines().filter_map(|l| l.trim().strip_prefix("Depends: "));
    depends.map(str::trim).find(|d| d.starts_with("linux-image-")).map(str::to_owned)
}

/// First two numbers of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn run(command: &mut Command) -> Result<(), KernelError> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.env("LC_ALL", "C").stdin(Stdio::null());
    let setup = ChildSetup { death_signal: Some(Signal::KILL), ..ChildSetup::default() };
    let output =
        setup.apply(command).output().map_err(|source| KernelError::Spawn { command: name.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("it gave no reason").trim().to_owned();
    Err(KernelError::Command { command: name, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dependency_is_read_from_what_apt_says() {
        let text = "linux-image-6.12-cloud-amd64\n  Depends: linux-image-6.12.117+deb12-cloud-amd64\n";
        assert_eq!(dependency(text).as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(dependency("x\n  Depends: kmod\n"), None);
        assert_eq!(dependency(""), None);
    }

    #[test]
    fn only_whole_kernels_are_found_and_the_newest_wins() {
        let dir = tempfile::tempdir().unwrap();
        let make = |release: &str, whole: bool| {
            fs::create_dir_all(dir.path().join(release).join("lib/modules").join(release)).unwrap();
            if whole {
                fs::write(dir.path().join(release).join("vmlinuz"), "x").unwrap();
            }
        };
        assert_eq!(find(dir.path()), None);
        make("6.12.9-a", true);
        make("6.13.1-a", true);
        make("6.99.0-a", false);
        make("6.1.0-a", true);
        make("fetch-7", true);
        assert_eq!(find(dir.path()).unwrap().release, "6.13.1-a");
        drop_unfinished(dir.path()).unwrap();
        assert!(!dir.path().join("fetch-7").exists());
    }

    #[test]
    fn a_command_that_fails_gives_its_last_words() {
        let error = run(Command::new("sh").args(["-c", "echo first >&2; echo last >&2; exit 1"])).unwrap_err();
        assert_eq!(error.to_string(), "'sh' failed for the lab's kernel: last");
        assert!(matches!(run(&mut Command::new("/nonexistent/x")), Err(KernelError::Spawn { .. })));
    }
}
