//! Layers through our reader, merge and EROFS writer, mounted by this kernel and compared file by file with what GNU tar and umoci make of the
//! same archives.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use duplex::image::decompress::Compression;
use duplex::image::erofs::{self, Device};
use duplex::image::layer::{self, Budget};
use duplex::image::merge::merge;
use duplex::image::tree::Tree;
use rustix::fs::FileType;
use sha2::{Digest, Sha256};

use crate::debian;
use crate::debian::must;
use crate::runner::{Case, Need, Skip, Verdict};
use crate::tarball::{Header, Tarball};

const MOUNT: &[Need] = &[Need::Root, Need::Program("mount"), Need::Program("fsck.erofs")];
const MOUNT_AND_TAR: &[Need] = &[Need::Root, Need::Program("mount"), Need::Program("fsck.erofs"), Need::Program("tar")];
const UMOCI: &[Need] =
    &[Need::Root, Need::Outside, Need::Program("mount"), Need::Program("fsck.erofs"), Need::Program("umoci")];
const DEBIAN: &[Need] = &[
    Need::Root,
    Need::Outside,
    Need::Program("mount"),
    Need::Program("fsck.erofs"),
    Need::Program("tar"),
    Need::Program("mmdebstrap"),
    Need::Program("umoci"),
];

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "layers::every_feature_as_tar_unpacks_it",
        needs: MOUNT_AND_TAR,
        run: every_feature_as_tar_unpacks_it,
    },
    Case { name: "layers::the_three_ways_to_mount_agree", needs: MOUNT, run: the_three_ways_to_mount_agree },
    Case {
        name: "layers::stacked_layers_as_umoci_unpacks_them",
        needs: UMOCI,
        run: stacked_layers_as_umoci_unpacks_them,
    },
    Case { name: "layers::a_layer_that_umoci_packed", needs: UMOCI, run: a_layer_that_umoci_packed },
    Case { name: "layers::debian_as_umoci_and_tar_unpack_it", needs: DEBIAN, run: debian_as_umoci_and_tar_unpack_it },
    Case {
        name: "layers::large_directories_links_and_sparse_files",
        needs: MOUNT,
        run: large_directories_links_and_sparse_files,
    },
];

/// Layers as files: metadata image, data blobs, and all of them end to end.
pub(crate) struct Made {
    folder: tempfile::TempDir,
    meta: PathBuf,
    blobs: Vec<PathBuf>,
    composed: PathBuf,
}

pub(crate) fn make(layers: &[(&[u8], Compression)]) -> Made {
    let folder = tempfile::Builder::new().prefix("duplex-layers").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (mut trees, mut devices, mut blobs) = (Vec::new(), Vec::new(), Vec::new());
    for (number, (bytes, compression)) in layers.iter().enumerate() {
        let path = folder.path().join(format!("layer{number}"));
        let mut data = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        let mut input: &[u8] = bytes;
        let converted = layer::convert(&mut input, *compression, &Budget::default(), &mut data).unwrap();
        assert_eq!(data.metadata().unwrap().len(), converted.data_len);
        // What is stored is what is merged.
        let mut stored = Vec::new();
        converted.tree.write_to(&mut stored).unwrap();
        trees.push(Tree::read_from(&mut stored.as_slice()).unwrap());
        devices.push(Device { data_len: converted.data_len, digest: converted.diff_id });
        blobs.push(path);
    }
    let meta = folder.path().join("meta");
    let mut out = File::options().create_new(true).read(true).write(true).open(&meta).unwrap();
    let len = erofs::write(&merge(trees).unwrap(), &devices, &mut out).unwrap();
    assert_eq!(out.metadata().unwrap().len(), len);
    let composed = folder.path().join("composed");
    let mut whole = File::create(&composed).unwrap();
    for piece in std::iter::once(&meta).chain(&blobs) {
        std::io::copy(&mut File::open(piece).unwrap(), &mut whole).unwrap();
    }
    fsck(&meta, &blobs);
    Made { folder, meta, blobs, composed }
}

/// erofs-utils' opinion, each layer a `--device`.
fn fsck(meta: &Path, blobs: &[PathBuf]) {
    let mut command = Command::new("fsck.erofs");
    command.args(blobs.iter().map(|b| format!("--device={}", b.display()))).args(["-d3", "--extract"]).arg(meta);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success() && said.contains("No errors found"), "{command:?}\n{said}");
}

/// A mount that goes away with its owner.
pub(crate) struct Mounted {
    pub(crate) at: PathBuf,
}

impl Mounted {
    fn new(source: &Path, options: &str, at: PathBuf) -> Result<Self, Skip> {
        fs::create_dir_all(&at).unwrap();
        let output = Command::new("mount").args(["-t", "erofs", "-o", options]).arg(source).arg(&at).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success()
            && ["unknown filesystem", "not permitted", "loop device"].iter().any(|w| said.contains(w))
        {
            return Err(Skip(format!("this host cannot mount EROFS: {}", said.trim())));
        }
        assert!(output.status.success(), "mount -o {options} {}: {said}", source.display());
        Ok(Self { at })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}

impl Made {
    /// As a guest sees it: one disk.
    pub(crate) fn mounted(&self) -> Result<Mounted, Skip> {
        Mounted::new(&self.composed, "ro,loop", self.folder.path().join("mnt"))
    }
}

/// What a file is, as far as an image says it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    mode: u32,
    owner: (u32, u32),
    pub(crate) mtime: Option<(i64, i64)>,
    links: Option<u64>,
    rdev: u64,
    size: u64,
    content: String,
    pub(crate) xattrs: BTreeMap<OsString, Vec<u8>>,
    same_as: Option<PathBuf>,
}

impl Facts {
    pub(crate) fn is_link(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::Symlink
    }
}

/// Everything below a folder.
pub(crate) fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut found = BTreeMap::new();
    let mut first_names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        if kind.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let content = if kind.is_file() {
            hash(&path)
        } else if kind.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            String::new()
        };
        let special = kind.is_char_device() || kind.is_block_device();
        let inside = path.strip_prefix(root).unwrap().to_owned();
        let facts = Facts {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: Some((meta.mtime(), meta.mtime_nsec())),
            links: (!kind.is_dir()).then(|| meta.nlink()),
            rdev: if special { meta.rdev() } else { 0 },
            size: if kind.is_dir() { 0 } else { meta.size() },
            content,
            xattrs: xattrs(&path),
            same_as: None,
        };
        if meta.nlink() > 1 && !kind.is_dir() {
            let name = first_names.entry(meta.ino()).or_insert_with(|| inside.clone());
            *name = inside.clone().min(name.clone());
        }
        found.insert(inside, facts);
    }
    // Names of one inode, by the first of them: inode numbers themselves differ.
    for (path, facts) in &mut found {
        let meta = fs::symlink_metadata(root.join(path)).unwrap();
        facts.same_as = first_names.get(&meta.ino()).filter(|_| !meta.is_dir()).cloned();
    }
    found
}

fn hash(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if n == 0 {
            return format!("{:x}", hash.finalize());
        }
        hash.update(&buffer[..n]);
    }
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut list = vec![0; 1 << 16];
    let n = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..n].split(|b| *b == 0).filter(|n| !n.is_empty()).map(|n| OsString::from_vec(n.to_vec()));
    names
        .filter(|n| n != "security.selinux")
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let n = rustix::fs::lgetxattr(path, &name, &mut value[..])
                .unwrap_or_else(|e| panic!("{}: {name:?}: {e}", path.display()));
            (name, value[..n].to_vec())
        })
        .collect()
}

pub(crate) fn assert_same(ours: &BTreeMap<PathBuf, Facts>, theirs: &BTreeMap<PathBuf, Facts>, who: &str) {
    let mut wrong = Vec::new();
    for path in ours.keys().chain(theirs.keys()) {
        let (a, b) = (ours.get(path), theirs.get(path));
        if a != b && !wrong.iter().any(|(p, _)| p == &path) {
            wrong.push((path, format!("{}\n  ours:   {a:?}\n  {who}: {b:?}", path.display())));
        }
    }
    let shown: Vec<_> = wrong.iter().take(10).map(|(_, text)| text.as_str()).collect();
    assert!(wrong.is_empty(), "{} of {} files differ:\n{}", wrong.len(), ours.len(), shown.join("\n"));
}

/// GNU tar's opinion.
pub(crate) fn untarred(archive: &[u8]) -> BTreeMap<PathBuf, Facts> {
    // Not below target/: what the lab shares with its host has no extended attributes.
    let folder = tempfile::Builder::new().prefix("duplex-untarred").tempdir().unwrap();
    let (into, file) = (folder.path().join("root"), folder.path().join("archive.tar"));
    fs::create_dir(&into).unwrap();
    fs::write(&file, archive).unwrap();
    let flags = ["--numeric-owner", "--same-owner", "-p", "--xattrs", "--xattrs-include=*"];
    must(Command::new("tar").arg("-C").arg(&into).args(flags).arg("-xf").arg(&file));
    facts(&into)
}

/// An archive with everything that GNU tar unpacks as we do.
fn everything() -> Vec<u8> {
    let mut tar = Tarball::default();
    tar.pax(b'g', &[("comment", b"a global header")]);
    tar.0.extend(features().0);
    tar.end()
}

/// The same without what umoci does not know.
fn features() -> Tarball {
    let mut tar = Tarball::default();
    let long = format!("long/{}/{}", "n".repeat(200), "m".repeat(255));
    tar.dir("./").dir("etc/").dir("empty").dir("long");
    tar.dir(&format!("long/{}", "n".repeat(90)));
    tar.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n").file("etc/empty", b"");
    tar.hard_link("etc/again", "etc/passwd").hard_link("another", "./etc/passwd");
    tar.symlink("link", "etc/passwd").symlink("dangling", "../../outside").hard_link("same-link", "link");
    tar.device(b'3', "null", (1, 3)).device(b'4', "disk", (259, 70_000)).device(b'6', "pipe", (0, 0));
    let mut odd = Header::new(b'0', b"odd", 3);
    odd.octal(100, 8, 0o6751).octal(108, 8, 1000).octal(116, 8, 65_535).octal(136, 12, 1);
    tar.entry(&odd, b"odd");
    let mut far = Header::new(b'0', b"far", 4);
    far.gnu().base256(108, 8, 3_000_000_000).base256(116, 8, 70_000).base256(136, 12, -5);
    tar.entry(&far, b"away");
    let names: [(&str, &[u8]); 3] =
        [("path", "dir\u{e4}/na\u{fc}m".as_bytes()), ("mtime", b"1700000000.123456789"), ("uid", b"4000000")];
    tar.dir("dir\u{e4}").pax(b'x', &names).file("short", b"pax");
    tar.pax(b'x', &[("mtime", b"-1.5")]).file("before-the-epoch", b"");
    tar.gnu_long(b'L', long.as_bytes()).file("cut", b"gnu");
    let target = format!("{}/t", "t/".repeat(150));
    tar.gnu_long(b'K', target.as_bytes()).symlink("long-link", "cut");
    tar.pax(b'x', &[("linkpath", target.as_bytes())]).symlink("long-link-2", "cut");
    tar.pax(b'x', &[("SCHILY.xattr.user.one", b"1"), ("SCHILY.xattr.trusted.two", b"\0\n=2")]).file("attributes", b"x");
    tar.pax(b'x', &[("SCHILY.xattr.user.one", b"1")]).dir("attributed");
    tar.pax(b'x', &[("SCHILY.xattr.user.big", &[b'v'; 3000])]).file("big-attribute", b"x");
    let caps = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    tar.pax(b'x', &[("SCHILY.xattr.security.capability", caps)]).file("capable", b"x");
    for size in [1_usize, 511, 512, 513, 4095, 4096, 4097, 8192, 100_000] {
        let content: Vec<u8> = (0..=250).cycle().take(size).collect();
        tar.file(&format!("size-{size}"), &content);
    }
    // A later entry replaces an earlier one; a directory keeps what is in it.
    tar.file("twice", b"first").file("twice", b"second").entry(Header::new(b'5', b"etc", 0).octal(100, 8, 0o700), b"");
    tar.file("was-file", b"x").symlink("was-file", "now-link");
    tar
}

/// A directory that is only implied has no time in the archive, and making it changes that of the one above it.
fn forget_implied_times(sides: [&mut BTreeMap<PathBuf, Facts>; 2]) {
    for side in sides {
        for implied in [format!("long/{}", "n".repeat(200)), "long".to_owned()] {
            side.get_mut(Path::new(&implied)).unwrap().mtime = None;
        }
    }
}

fn every_feature_as_tar_unpacks_it() -> Verdict {
    let archive = everything();
    let made = make(&[(&archive, Compression::None)]);
    let mounted = made.mounted()?;
    let mut ours = facts(&mounted.at);
    let mut theirs = untarred(&archive);
    forget_implied_times([&mut ours, &mut theirs]);
    assert!(ours.len() > 35);
    assert_same(&ours, &theirs, "tar ");
    Ok(())
}

fn the_three_ways_to_mount_agree() -> Verdict {
    let mut upper = Tarball::default();
    upper.dir("etc").file("etc/.wh.passwd", b"").file("etc/group", b"root:x:0:\n").file("size-4096", b"smaller");
    let made = make(&[(&everything(), Compression::None), (&upper.end(), Compression::None)]);
    let one_disk = facts(&made.mounted()?.at);
    assert!(!one_disk.contains_key(Path::new("etc/passwd")) && one_disk.contains_key(Path::new("another")));
    assert_eq!(one_disk[Path::new("size-4096")].size, 7);
    let folder = made.folder.path();
    let looped: Vec<String> =
        made.blobs.iter().map(|b| must(Command::new("losetup").args(["-f", "--show", "-r"]).arg(b))).collect();
    let devices: Vec<String> = looped.iter().map(|l| format!("device={}", l.trim())).collect();
    let options = format!("ro,loop,{}", devices.join(","));
    let by_loop = Mounted::new(&made.meta, &options, folder.join("loops")).map(|m| facts(&m.at));
    for device in &looped {
        must(Command::new("losetup").arg("-d").arg(device.trim()));
    }
    assert_same(&one_disk, &by_loop?, "loop");
    let devices: Vec<String> = made.blobs.iter().map(|b| format!("device={}", b.display())).collect();
    let at = folder.join("files");
    fs::create_dir(&at).unwrap();
    let source = made.meta.to_str().unwrap();
    // mount(8) would put a loop device in front of a file; the kernel takes the file itself since 6.12.
    let options = std::ffi::CString::new(devices.join(",")).unwrap();
    match rustix::mount::mount(source, &at, "erofs", rustix::mount::MountFlags::RDONLY, options.as_c_str()) {
        Ok(()) => {
            let mounted = Mounted { at };
            assert_same(&one_disk, &facts(&mounted.at), "file");
            Ok(())
        }
        Err(e) if e == rustix::io::Errno::NOTBLK => Err(Skip(
            "loop mounts agree; this kernel mounts no EROFS from files of this file system (before 6.12, or tmpfs)"
                .to_owned(),
        )),
        Err(e) => panic!("file-backed mount: {e}"),
    }
}

/// Many files, odd names, long links, shared attributes.
fn many_of_everything() -> Tarball {
    let mut tar = Tarball::default();
    for number in 0..2000 {
        tar.file(&format!("many/file-{number:05}-{}", "x".repeat(number % 60)), format!("{number}").as_bytes());
        tar.hard_link(&format!("again/{number}"), &format!("many/file-{number:05}-{}", "x".repeat(number % 60)));
    }
    for name in ["!", "-", ".a", "..a", "...", "a", "\u{ff}", " "] {
        tar.file(&format!("odd/{name}"), name.as_bytes());
    }
    for len in [59, 60, 2000, 3900, 4000, 4064, 4095] {
        tar.pax(b'x', &[("linkpath", "t".repeat(len).as_bytes())]).symlink(&format!("link-{len}"), "");
    }
    for number in 0..300 {
        let name = format!("SCHILY.xattr.user.{}", number % 7);
        tar.pax(b'x', &[(name.as_str(), b"shared"), ("SCHILY.xattr.user.own", format!("{number}").as_bytes())]);
        tar.file(&format!("attributed/{number}"), b"");
    }
    tar
}

/// PAX sparse 1.0: one mebibyte of holes, data at three places, one of them the last byte; and a file of 50 GB.
fn add_sparse_files(tar: &mut Tarball) {
    let map = b"3\n0\n4\n500000\n5000\n1048575\n1\n";
    let mut body = map.to_vec();
    body.resize(512, 0);
    body.extend(b"head");
    body.extend([7; 5000]);
    body.extend(b"!");
    let keys: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"1048576"),
    ];
    tar.pax(b'x', &keys).entry(&Header::new(b'0', b"GNUSparseFile.0/sparse", body.len() as u64), &body);
    let keys: [(&str, &[u8]); 4] = [
        ("GNU.sparse.size", b"50000000000"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.map", b"49999999990,10"),
        ("GNU.sparse.name", b"huge"),
    ];
    tar.pax(b'x', &keys).file("short", b"0123456789");
}

fn large_directories_links_and_sparse_files() -> Verdict {
    let mut tar = many_of_everything();
    add_sparse_files(&mut tar);
    let made = make(&[(&tar.end(), Compression::None)]);
    let mounted = made.mounted()?;
    let names = fs::read_dir(mounted.at.join("many")).unwrap().count();
    assert_eq!((names, fs::read_dir(mounted.at.join("again")).unwrap().count()), (2000, 2000));
    for number in (0..2000).step_by(7) {
        let path = mounted.at.join(format!("again/{number}"));
        assert_eq!(fs::read(&path).unwrap(), format!("{number}").as_bytes());
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 2);
    }
    for name in ["!", "-", ".a", "..a", "...", "a", "\u{ff}", " "] {
        assert_eq!(fs::read(mounted.at.join("odd").join(name)).unwrap(), name.as_bytes());
    }
    for len in [59, 60, 2000, 3900, 4000, 4064, 4095] {
        assert_eq!(
            fs::read_link(mounted.at.join(format!("link-{len}"))).unwrap().as_os_str().as_bytes(),
            "t".repeat(len).as_bytes()
        );
    }
    for number in 0..300 {
        let found = xattrs(&mounted.at.join(format!("attributed/{number}")));
        assert_eq!(found[&OsString::from("user.own")], format!("{number}").as_bytes());
        assert_eq!(found[&OsString::from(format!("user.{}", number % 7))], b"shared");
    }
    let mut expected = vec![0; 1 << 20];
    expected[..4].copy_from_slice(b"head");
    expected[500_000..505_000].fill(7);
    expected[1_048_575] = b'!';
    assert_eq!(fs::read(mounted.at.join("sparse")).unwrap(), expected);
    let huge = File::open(mounted.at.join("huge")).unwrap();
    let mut end = [0; 20];
    std::os::unix::fs::FileExt::read_exact_at(&huge, &mut end, 49_999_999_980).unwrap();
    assert_eq!(&end, b"\0\0\0\0\0\0\0\0\0\x000123456789");
    assert!(fs::metadata(&made.blobs[0]).unwrap().len() < 30 << 20);
    Ok(())
}

/// Packs layers into an OCI layout and lets umoci unpack it.
pub(crate) fn umoci_unpacked(folder: &Path, layers: &[PathBuf]) -> PathBuf {
    let layout = folder.join("oci");
    let image = format!("{}:x", layout.display());
    must(Command::new("umoci").args(["init", "--layout"]).arg(&layout));
    must(Command::new("umoci").args(["new", "--image", &image]));
    for layer in layers {
        must(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(layer));
    }
    must(Command::new("umoci").args(["unpack", "--image", &image]).arg(folder.join("bundle")));
    folder.join("bundle/rootfs")
}

fn stacked_layers_as_umoci_unpacks_them() -> Verdict {
    let mut middle = Tarball::default();
    middle.dir("etc").dir("opaque").file("opaque/old", b"old").dir("gone").file("gone/deep", b"x").file("to-dir", b"x");
    middle
        .dir("to-file")
        .file("to-file/inside", b"x")
        .file("a", b"a")
        .hard_link("b", "a")
        .dir("kept")
        .file("kept/x", b"x");
    let mut upper = Tarball::default();
    upper.dir("opaque").file("opaque/.wh..wh..opq", b"").file("opaque/new", b"new").file(".wh.gone", b"");
    upper.dir("to-dir").file("to-dir/x", b"x").file("to-file", b"now a file").file(".wh.a", b"").file("kept/y", b"y");
    upper.file(".wh.never-there", b"").symlink("etc/mtab", "/proc/mounts").file("gone", b"a file now");
    let layers = [features().end(), middle.end(), upper.end()];
    let made = make(&layers.each_ref().map(|l| (l.as_slice(), Compression::None)));
    let mounted = made.mounted()?;
    let folder = made.folder.path();
    let files: Vec<PathBuf> = (0..layers.len()).map(|n| folder.join(format!("{n}.tar"))).collect();
    for (path, bytes) in files.iter().zip(&layers) {
        fs::write(path, bytes).unwrap();
    }
    let theirs = umoci_unpacked(folder, &files);
    let (mut ours, mut theirs) = (facts(&mounted.at), facts(&theirs));
    forget_implied_times([&mut ours, &mut theirs]);
    assert_same(&ours, &theirs, "umoci");
    Ok(())
}

fn debian_as_umoci_and_tar_unpack_it() -> Verdict {
    let archive = fs::read(debian::tarball()).unwrap();
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all(&archive).unwrap();
    let zipped = zipped.finish().unwrap();
    let made = make(&[(&zipped, Compression::Gzip)]);
    let mounted = made.mounted()?;
    let ours = facts(&mounted.at);
    assert!(ours.len() > 5000, "{}", ours.len());
    let folder = made.folder.path();
    assert_same(&ours, &untarred(&archive), "tar ");
    drop(archive);
    assert_same(&ours, &facts(&umoci_unpacked(folder, &[debian::tarball()])), "umoci");
    Ok(())
}

/// The layers of umoci's image, as it packed them, the lowest first.
pub(crate) fn blobs_of(layout: &Path) -> Vec<Vec<u8>> {
    let blob = |digest: &serde_json::Value| {
        let name = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        fs::read(layout.join("blobs/sha256").join(name)).unwrap()
    };
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let index = json(&fs::read(layout.join("index.json")).unwrap());
    let manifest = json(&blob(&index["manifests"].as_array().unwrap().last().unwrap()["digest"]));
    manifest["layers"].as_array().unwrap().iter().map(|layer| blob(&layer["digest"])).collect()
}

/// A layer that another tool makes of changes to a tree: its whiteouts, link targets and attributes are not ours.
fn a_layer_that_umoci_packed() -> Verdict {
    let folder = tempfile::Builder::new().prefix("duplex-repacked").tempdir().unwrap();
    let folder = folder.path();
    let base = folder.join("base.tar");
    let mut tar = features();
    tar.dir("opt").dir("opt/app").file("opt/app/one", b"1").file("opt/app/two", b"2").dir("srv").file("srv/x", b"x");
    tar.file("usr/lib/a/b/c", b"deep");
    fs::write(&base, tar.end()).unwrap();
    let root = umoci_unpacked(folder, &[base]);
    let shell = "set -e; rm etc/empty; rm -r srv; mv opt/app opt/moved; ln -s moved opt/app; chmod 4711 odd; chown 5:6 far
        ln another one-more; rm -r empty; echo file > empty; rm -r usr/lib/a; mkdir -p usr/lib/a; touch -d @77.125 usr/lib/a/new
        setfattr -n user.new -v value twice || true; mknod fifo p; ln -s nowhere 'with space'; truncate -s 3M zeros; echo end >> zeros";
    must(Command::new("sh").args(["-c", shell]).current_dir(&root));
    let image = format!("{}:x", folder.join("oci").display());
    must(Command::new("umoci").args(["repack", "--image", &image]).arg(folder.join("bundle")));
    let layers = blobs_of(&folder.join("oci"));
    assert_eq!(layers.len(), 2);
    let layers: Vec<_> = layers.iter().map(|l| (l.as_slice(), Compression::Gzip)).collect();
    let made = make(&layers);
    let mounted = made.mounted()?;
    must(Command::new("umoci").args(["unpack", "--image", &image]).arg(folder.join("again")));
    let (mut ours, mut theirs) = (facts(&mounted.at), facts(&folder.join("again/rootfs")));
    forget_implied_times([&mut ours, &mut theirs]);
    for side in [&mut ours, &mut theirs] {
        for implied in ["usr", "usr/lib"] {
            side.get_mut(Path::new(implied)).unwrap().mtime = None;
        }
    }
    assert!(!ours.contains_key(Path::new("srv")) && ours.contains_key(Path::new("opt/moved/two")));
    assert_same(&ours, &theirs, "umoci");
    Ok(())
}
