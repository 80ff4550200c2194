//! The image that the promises are tried on: a static busybox, accounts, and traps.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use duplex::image::{Piece, RootDisk};
use duplex::sandbox::Images;
use duplex::spec::Digest;

use crate::runner::Skip;

const BUSYBOX: &str = "/usr/bin/busybox";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n";
const GROUP: &str = "root:x:0:\nann:x:1001:\nstaff:x:50:ann\nvideo:x:44:bob,ann\n";

/// The image's only name for itself.
pub(crate) fn digest() -> Digest {
    Digest::from_sha256([0xc0; 32])
}

/// One EROFS file without further pieces.
#[derive(Debug)]
pub(crate) struct OneFile(pub(crate) PathBuf);

impl Images for OneFile {
    fn root_disk(&self, _: &Digest) -> Result<RootDisk, Box<dyn std::error::Error + Send + Sync>> {
        let len = std::fs::metadata(&self.0)?.len();
        Ok(RootDisk { pieces: vec![Piece { path: self.0.clone(), len }] })
    }
}

/// Makes the image once for the whole run.
pub(crate) fn path() -> Result<&'static Path, Skip> {
    static IMAGE: OnceLock<Result<(tempfile::TempDir, PathBuf), String>> = OnceLock::new();
    match IMAGE.get_or_init(make) {
        Ok((_, path)) => Ok(path),
        Err(reason) => Err(Skip(reason.clone())),
    }
}

fn make() -> Result<(tempfile::TempDir, PathBuf), String> {
    if !is_static(Path::new(BUSYBOX)) {
        return Err(format!("needs a static {BUSYBOX} (package busybox-static)"));
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for folder in ["bin", "etc", "home/ann", "root", "tmp", "work/deep"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::set_permissions(root.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    let applets = Command::new(BUSYBOX).arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines().filter(|a| *a != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), PASSWD).unwrap();
    std::fs::write(root.join("etc/group"), GROUP).unwrap();
    for number in 0..200 {
        std::fs::write(root.join(format!("work/deep/{number}")), format!("file {number}\n").repeat(number)).unwrap();
    }
    traps(&root);
    let image = dir.path().join("image.erofs");
    let made = Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(&root).output().unwrap();
    if !made.status.success() {
        panic!("mkfs.erofs: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok((dir, image))
}

/// Who owns a file of the image, and is none of the users of a user namespace.
pub(crate) const FAR: u32 = 100_000;

/// Links that lead out for whoever follows them on the host, programs that do not run, and somebody else's file.
fn traps(root: &Path) {
    symlink("../../../../../../../../tmp", root.join("dev")).unwrap();
    symlink("/proc/self/root/etc", root.join("proc-etc")).unwrap();
    symlink("/host-secret", root.join("etc/resolv.conf")).unwrap();
    std::fs::write(root.join("bin/not-executable"), "#!/bin/sh\n").unwrap();
    std::fs::write(root.join("etc/far"), "far\n").unwrap();
    std::os::unix::fs::chown(root.join("etc/far"), Some(FAR), Some(FAR)).unwrap();
    for (name, content) in [("no-interpreter", "#!/nowhere/sh\n"), ("garbage", "\x01\x02\x03")] {
        let path = root.join("bin").join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A static program names no interpreter: no PT_INTERP (3) among its program headers.
fn is_static(program: &Path) -> bool {
    let Ok(bytes) = std::fs::read(program) else { return false };
    let number = |at: usize| bytes.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().unwrap()));
    let Some(table) = number(32).and_then(|n| usize::try_from(n).ok()) else { return false };
    let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    (0..count).all(|n| bytes.get(table + n * 56..table + n * 56 + 4) != Some(&[3, 0, 0, 0]))
}
