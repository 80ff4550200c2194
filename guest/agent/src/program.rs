//! Finding the program: the rules of Docker, which are those of Go's `exec.LookPath` as the command's user sees the files.

use std::ffi::{CStr, CString};

use duplex_wire::FailureKind;
use rustix::fs::{Access, Advice, AtFlags, CWD, FileType, Mode, OFlags, accessat, fadvise, fstat, open, stat};
use rustix::io::Errno;

/// Largest program in bytes that is read whole before it starts. Of larger ones most starts touch a part only.
const READ_WHOLE: u64 = 2 << 20;

/// Why the command cannot run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) text: String,
}

impl Failure {
    /// A failure of this kind.
    pub(crate) fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// Path of the program `name`: as it is if it has a slash, else the first executable file of that name in the folders of `path`.
pub(crate) fn find(name: &str, path: &str) -> Result<CString, Failure> {
    let c_string = |text: String| {
        CString::new(text)
            .map_err(|_| Failure::new(FailureKind::Other, format!("The program's name {name:?} has a NUL byte")))
    };
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => c_string(name.to_owned()),
            Err(errno) => Err(refused(name, errno)),
        };
    }
    let folders = path.split(':').map(|folder| if folder.is_empty() { "." } else { folder });
    let found =
        folders.map(|folder| format!("{folder}/{name}")).find(|file| !name.is_empty() && executable(file).is_ok());
    let missing =
        || Failure::new(FailureKind::NotFound, format!("'{name}' was not found in the PATH of the image ({path})"));
    found.ok_or_else(missing).and_then(c_string)
}

/// What an error of looking at or executing `name` means.
pub(crate) fn refused(name: &str, errno: Errno) -> Failure {
    let (kind, text) = match errno {
        Errno::NOENT => (FailureKind::NotFound, "it, or the interpreter it names, does not exist".to_owned()),
        Errno::NOTDIR => (FailureKind::NotFound, "a part of its path is not a folder".to_owned()),
        Errno::ACCESS => (FailureKind::CannotExecute, "permission denied".to_owned()),
        Errno::ISDIR => (FailureKind::CannotExecute, "it is a folder".to_owned()),
        Errno::NOEXEC => (FailureKind::CannotExecute, "its format is not one that the kernel executes".to_owned()),
        other => (FailureKind::CannotExecute, other.to_string()),
    };
    Failure::new(kind, format!("Cannot execute '{name}': {text}"))
}

/// Has a small program brought into memory in few large reads. Whether it was.
pub(crate) fn read_ahead(file: &CStr) -> Result<bool, Errno> {
    let is_file = |mode| FileType::from_raw_mode(mode) == FileType::RegularFile;
    // Opening what is no file may do something: looked at by its name first.
    if !is_file(stat(file)?.st_mode) {
        return Ok(false);
    }
    let file = open(file, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())?;
    let about = fstat(&file)?;
    if !is_file(about.st_mode) || u64::try_from(about.st_size).is_ok_and(|size| size > READ_WHOLE) {
        return Ok(false);
    }
    fadvise(&file, 0, None, Advice::WillNeed)?;
    Ok(true)
}

fn executable(file: &str) -> Result<(), Errno> {
    if FileType::from_raw_mode(stat(file)?.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn kind(name: &str, path: &str) -> Result<String, FailureKind> {
        find(name, path).map(|p| p.into_string().unwrap()).map_err(|f| f.kind)
    }

    #[test]
    fn programs_are_found_as_docker_finds_them() {
        assert_eq!(kind("sh", "/nowhere:/bin"), Ok("/bin/sh".into()));
        assert_eq!(kind("/bin/sh", ""), Ok("/bin/sh".into()));
        assert_eq!(kind("no-such-program", "/bin:/usr/bin"), Err(FailureKind::NotFound));
        assert_eq!(kind("passwd", "/etc"), Err(FailureKind::NotFound), "a file that is not executable is passed over");
        assert_eq!(kind("etc", "/"), Err(FailureKind::NotFound), "so is a folder");
        assert_eq!(kind("/no/such", "/bin"), Err(FailureKind::NotFound));
        assert_eq!(kind("/etc", "/bin"), Err(FailureKind::CannotExecute));
        assert_eq!(kind("/etc/passwd", "/bin"), Err(FailureKind::CannotExecute));
        assert_eq!(kind("", "/bin"), Err(FailureKind::NotFound));
        assert_eq!(kind("/bin/sh\0", "/bin"), Err(FailureKind::CannotExecute));
    }

    #[test]
    fn small_programs_are_read_ahead() {
        assert_eq!(read_ahead(c"/etc/passwd"), Ok(true));
        let large = rustix::fs::memfd_create("large", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&large, READ_WHOLE + 1).unwrap();
        let path = CString::new(format!("/proc/self/fd/{}", large.as_raw_fd())).unwrap();
        assert_eq!(read_ahead(&path), Ok(false));
        rustix::fs::ftruncate(&large, READ_WHOLE).unwrap();
        assert_eq!(read_ahead(&path), Ok(true));
        assert_eq!(read_ahead(c"/dev/null"), Ok(false), "a device is not opened");
        assert_eq!(read_ahead(c"/no/such"), Err(Errno::NOENT));
    }

    #[test]
    fn exec_errors_have_dockers_kinds() {
        assert_eq!(refused("x", Errno::NOENT).kind, FailureKind::NotFound);
        assert_eq!(refused("x", Errno::NOEXEC).kind, FailureKind::CannotExecute);
        assert!(refused("x", Errno::NOEXEC).text.contains("'x'"));
    }
}
