//! Trees of files grown at random, packed by GNU tar, Python and umoci in every format that they have, and unpacked by them: ours must be the same,
//! file by file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use duplex::image::decompress::Compression;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, setxattr, utimensat};

use crate::debian::must;
use crate::layers::{Facts, assert_same, blobs_of, facts, make, umoci_unpacked, untarred};
use crate::runner::{Case, Need, Verdict};

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Outside,
    Need::Program("mount"),
    Need::Program("fsck.erofs"),
    Need::Program("tar"),
    Need::Program("python3"),
];
const UMOCI: &[Need] =
    &[Need::Root, Need::Outside, Need::Program("mount"), Need::Program("fsck.erofs"), Need::Program("umoci")];

pub(crate) const CASES: &[Case] = &[
    Case { name: "random_layers::as_tar_and_python_unpack_them", needs: NEEDS, run: as_tar_and_python_unpack_them },
    Case { name: "random_layers::changes_as_umoci_packs_them", needs: UMOCI, run: changes_as_umoci_packs_them },
];

/// How many trees; each seed gives the same one always.
const TREES: u64 = 12;

/// Steps that make a tree, and that change one.
const STEPS: u64 = 80;

/// SplitMix64: the next number of a sequence that depends on nothing but its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn of<'a, T>(&mut self, these: &'a [T]) -> &'a T {
        &these[usize::try_from(self.below(these.len() as u64)).unwrap()]
    }

    /// A name: mostly short, some as long as can be, some with letters, blanks and bytes that are no text.
    fn name(&mut self) -> OsString {
        let length = *self.of(&[1, 3, 8, 8, 20, 99, 100, 101, 155, 200]);
        let letters: &[u8] = match self.below(4) {
            0 => b"ab \\'\"%\t*?[{~;-",
            1 => &[b'x', 0xc3, 0xa4, b'y'],
            _ => b"abcdefgh.-_0123456789",
        };
        let bytes: Vec<u8> = (0..length).map(|_| *self.of(letters)).collect();
        // Not what has a meaning of its own: "." and "..", and marks of layers.
        OsString::from_vec([b"n", &bytes[..]].concat())
    }
}

/// A tree and what is in it so far.
struct Tree<'d> {
    dice: &'d mut Dice,
    root: PathBuf,
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
    others: Vec<PathBuf>,
}

impl<'d> Tree<'d> {
    fn of(root: &Path, dice: &'d mut Dice) -> Self {
        let mut tree = Self { dice, root: root.to_owned(), folders: vec![], files: vec![], others: vec![] };
        let mut open = vec![root.to_owned()];
        while let Some(folder) = open.pop() {
            let mut entries: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
            entries.sort();
            for path in entries {
                match fs::symlink_metadata(&path).unwrap().file_type() {
                    kind if kind.is_dir() => open.push(path),
                    kind if kind.is_file() => tree.files.push(path),
                    _ => tree.others.push(path),
                }
            }
            tree.folders.push(folder);
        }
        tree
    }

    fn place(&mut self) -> PathBuf {
        let folder = self.dice.of(&self.folders).clone();
        let name = self.dice.name();
        folder.join(name)
    }

    fn step(&mut self) {
        let path = self.place();
        if fs::symlink_metadata(&path).is_ok() || path.as_os_str().len() > 3000 {
            return;
        }
        match self.dice.below(12) {
            0..2 => {
                fs::create_dir(&path).unwrap();
                self.folders.push(path.clone());
            }
            2..7 => {
                self.write(&path);
                self.files.push(path.clone());
            }
            7 if !self.files.is_empty() => {
                fs::hard_link(self.dice.of(&self.files), &path).unwrap();
                self.files.push(path.clone());
            }
            8 => {
                symlink(self.dice.name(), &path).unwrap();
                self.others.push(path.clone());
            }
            9 => {
                let kind = *self.dice.of(&[FileType::Fifo, FileType::CharacterDevice, FileType::BlockDevice]);
                let device = if kind == FileType::Fifo { 0 } else { rustix::fs::makedev(7, 300) };
                mknodat(CWD, &path, kind, Mode::from_raw_mode(0o640), device).unwrap();
                self.others.push(path.clone());
            }
            _ => return,
        }
        self.adorn(&path);
    }

    /// Sizes around blocks, and files with holes.
    fn write(&mut self, path: &Path) {
        let file = File::create(path).unwrap();
        let size = *self.dice.of(&[0, 1, 511, 512, 513, 4095, 4096, 4097, 10_000, 200_000]);
        let bytes: Vec<u8> = (0..size).map(|_| u8::try_from(self.dice.below(256)).unwrap()).collect();
        let hole = *self.dice.of(&[0, 0, 0, 4096, 1 << 20]);
        file.write_all_at(&bytes, hole).unwrap();
        if self.dice.below(4) == 0 {
            file.set_len(hole + size + 70_000).unwrap();
        }
    }

    fn adorn(&mut self, path: &Path) {
        let of = fs::symlink_metadata(path).unwrap().file_type();
        let owner = *self.dice.of(&[0, 1, 1000, 65_534, 2_000_000, 3_000_000_000]);
        lchown(path, Some(owner), Some(owner / 2)).unwrap();
        if !of.is_symlink() {
            let mode = *self.dice.of(&[0o644, 0o600, 0o755, 0o4755, 0o2711, 0o1777, 0o000]);
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            chown(path, Some(owner), None).unwrap();
        }
        if (of.is_file() || of.is_dir()) && self.dice.below(4) == 0 {
            let value = self.dice.name();
            setxattr(path, "user.given", value.into_vec().as_slice(), XattrFlags::empty()).unwrap();
        }
        let time = Timespec { tv_sec: *self.dice.of(&[0, 1, 1_700_000_000, 8_589_934_592]), tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    /// Takes something away, moves it, or changes it.
    fn change(&mut self) {
        let from = match self.dice.below(3) {
            0 => &mut self.folders,
            1 => &mut self.files,
            _ => &mut self.others,
        };
        if from.is_empty() {
            return;
        }
        let at = usize::try_from(self.dice.below(from.len() as u64)).unwrap();
        let path = from.swap_remove(at);
        if path == self.root {
            self.folders.push(path);
            return;
        }
        let Ok(about) = fs::symlink_metadata(&path) else { return };
        match self.dice.below(3) {
            0 if about.is_dir() => fs::remove_dir_all(&path).unwrap(),
            0 => fs::remove_file(&path).unwrap(),
            1 if !about.is_dir() => {
                let to = self.place();
                if to.parent().is_some_and(Path::is_dir) && fs::symlink_metadata(&to).is_err() {
                    fs::rename(&path, to).unwrap();
                }
            }
            _ => self.adorn(&path),
        }
        self.folders.retain(|folder| folder.is_dir());
        self.files.retain(|file| file.is_file());
    }
}

/// A folder that has extended attributes and devices: what the lab shares with its host has none.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("duplex-random").tempdir().unwrap()
}

fn grown(root: &Path, dice: &mut Dice) {
    fs::create_dir(root).unwrap();
    let mut tree = Tree::of(root, dice);
    (0..STEPS).for_each(|_| tree.step());
}

/// All times are whole seconds, which each format has.
fn settle(root: &Path) {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        folders.extend(
            fs::read_dir(&folder)
                .unwrap()
                .map(|e| e.unwrap())
                .filter(|e| e.file_type().unwrap().is_dir())
                .map(|e| e.path()),
        );
        let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, &folder, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn ours(archive: &[u8]) -> Result<BTreeMap<PathBuf, Facts>, crate::runner::Skip> {
    let made = make(&[(archive, Compression::None)]);
    let mounted = made.mounted()?;
    Ok(facts(&mounted.at))
}

const PACK: &str = "import sys, tarfile
name, folder, form = sys.argv[1:]
with tarfile.open(name, 'w', format=getattr(tarfile, form)) as tar:
    tar.add(folder, arcname='.')
";

const UNPACK: &str = "import sys, tarfile
with tarfile.open(sys.argv[1]) as tar:
    tar.extractall(sys.argv[2], numeric_owner=True)
";

/// What Python makes of an archive, which does not know of extended attributes, nor of links' times.
fn by_python(archive: &Path, into: &Path) -> BTreeMap<PathBuf, Facts> {
    fs::create_dir(into).unwrap();
    must(Command::new("python3").args(["-c", UNPACK]).arg(archive).arg(into));
    facts(into)
}

fn as_python_knows(mut found: BTreeMap<PathBuf, Facts>) -> BTreeMap<PathBuf, Facts> {
    for facts in found.values_mut() {
        facts.xattrs.clear();
        facts.mtime = facts.mtime.filter(|_| !facts.is_link());
    }
    found
}

fn as_tar_and_python_unpack_them() -> Verdict {
    for seed in 0..TREES {
        let folder = folder();
        let root = folder.path().join("root");
        grown(&root, &mut Dice(seed));
        settle(&root);
        let archive = folder.path().join("archive.tar");
        let packers: [(&str, &[&str]); 5] = [
            ("tar", &["--format=gnu", "--sparse"]),
            ("tar", &["--format=posix", "--sparse", "--xattrs", "--xattrs-include=*"]),
            ("tar", &["--format=posix", "--sparse", "--sparse-version=0.1", "--xattrs", "--xattrs-include=*"]),
            ("python", &["GNU_FORMAT"]),
            ("python", &["PAX_FORMAT"]),
        ];
        for (number, (packer, options)) in packers.iter().enumerate() {
            match *packer {
                "tar" => must(
                    Command::new("tar")
                        .args(["--numeric-owner", "-C"])
                        .arg(&root)
                        .args(*options)
                        .arg("-cf")
                        .arg(&archive)
                        .arg("."),
                ),
                _ => must(Command::new("python3").args(["-c", PACK]).arg(&archive).arg(&root).args(*options)),
            };
            let bytes = fs::read(&archive).unwrap();
            let ours = ours(&bytes)?;
            assert!(ours.len() > 30, "{}", ours.len());
            let who = |by: &str| format!("seed {seed}, packed by {packer} {options:?}, unpacked by {by}");
            assert_same(&ours, &untarred(&bytes), &who("tar"));
            // It loses the name of a sparse file in a pax archive where that is no text.
            if !options.contains(&"--format=posix") {
                let theirs = by_python(&archive, &folder.path().join(format!("by-python-{number}")));
                assert_same(&as_python_knows(ours), &as_python_knows(theirs), &who("Python"));
            }
        }
    }
    Ok(())
}

/// A tree, changed at random behind umoci's back: the layer that it makes of the changes, over the first.
fn changes_as_umoci_packs_them() -> Verdict {
    for seed in 100..100 + TREES {
        let folder = folder();
        let folder = folder.path();
        let mut dice = Dice(seed);
        let root = folder.join("root");
        grown(&root, &mut dice);
        settle(&root);
        let base = folder.join("base.tar");
        must(
            Command::new("tar")
                .args(["--numeric-owner", "--format=posix", "-C"])
                .arg(&root)
                .arg("-cf")
                .arg(&base)
                .arg("."),
        );
        let unpacked = umoci_unpacked(folder, &[base]);
        let mut tree = Tree::of(&unpacked, &mut dice);
        (0..STEPS / 4).for_each(|_| tree.change());
        (0..STEPS / 4).for_each(|_| tree.step());
        let image = format!("{}:x", folder.join("oci").display());
        must(Command::new("umoci").args(["repack", "--image", &image]).arg(folder.join("bundle")));
        let layers = blobs_of(&folder.join("oci"));
        assert_eq!(layers.len(), 2);
        let layers: Vec<_> = layers.iter().map(|layer| (layer.as_slice(), Compression::Gzip)).collect();
        let made = make(&layers);
        let mounted = made.mounted()?;
        must(Command::new("umoci").args(["unpack", "--image", &image]).arg(folder.join("again")));
        assert_same(&facts(&mounted.at), &facts(&folder.join("again/rootfs")), &format!("seed {seed}, umoci"));
    }
    Ok(())
}
