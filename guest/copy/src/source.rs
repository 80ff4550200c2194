//! A tree of files becomes a stream.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::base::{kind_of, look};
use crate::{Base, CopyError, DEPTH, Entry, Kind, Writer, names, shown};

/// File systems that are windows into the kernel (statfs(2)): from above, nothing in them is copied.
const KERNEL: [u64; 9] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
];

/// Most bytes of a file whose size only its end tells.
const MOST_UNSIZED: u64 = 16 << 20;

const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is copied: a path as a person wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    path: Vec<u8>,
    /// The link at the end of the path is followed: what it leads to is copied, under the link's name.
    follow: bool,
    /// It must be a folder.
    folder: bool,
    contents: bool,
    name: Vec<u8>,
}

/// What was left out of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Sockets and devices, at most [`Told::MOST`] by name.
    pub skipped: Vec<String>,
    /// How many there were in all.
    pub count: u64,
}

impl Told {
    /// Most names.
    pub const MOST: usize = 8;
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let more = if self.count > Self::MOST as u64 { ", ..." } else { "" };
        write!(f, "{} sockets or devices were left out: {}{more}", self.count, self.skipped.join(", "))
    }
}

impl Source {
    /// What this path means. A path that ends with `/.` means what is in a folder, and not the folder itself.
    pub fn new(path: &[u8], follow: bool) -> Self {
        let last = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let contents = last == b"." || names(path).next().is_none();
        let folder = contents || last.is_empty();
        let name = names(path).next_back().unwrap_or_default().to_vec();
        Self { path: path.to_vec(), follow: follow || folder, folder, contents, name }
    }

    /// The path.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Its last name: what it is called at the other end. Empty where what is in a folder is meant.
    pub fn name(&self) -> &[u8] {
        if self.contents { b"" } else { &self.name }
    }

    /// Under another name.
    #[must_use]
    pub fn called(self, name: &[u8]) -> Self {
        Self { name: name.to_vec(), ..self }
    }

    /// Writes the tree, without the end of the stream. Its first entry is the tree's root.
    ///
    /// # Errors
    /// What cannot be read or written.
    pub fn send<W: Write>(&self, base: &Base, to: &mut Writer<W>) -> Result<Told, CopyError> {
        let (handle, stat) = base.handle(&self.path, self.follow).map_err(CopyError::of("find", &self.path))?;
        let mut walk = Walk { to, links: HashMap::new(), told: Told::default() };
        let name = self.name().to_vec();
        let link = if self.follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let open = |flags: OFlags| base.open(&self.path, flags | link);
        match kind_of(&stat) {
            FileType::Directory => {
                let failed = CopyError::of("open", &self.path);
                let folder = open(OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
                walk.folder(&folder, &name, None, 0)?;
            }
            _ if self.folder => return Err(CopyError::NotFolder(shown(&self.path))),
            FileType::RegularFile => walk.file(&open(READ).map_err(CopyError::of("open", &self.path))?, &name)?,
            FileType::Symlink => walk.link(&handle, &stat, &name)?,
            FileType::Fifo => walk.plain(&stat, &name, Kind::Pipe)?,
            _ => return Err(CopyError::Special(shown(&self.path))),
        }
        Ok(walk.told)
    }
}

struct Walk<'a, W> {
    to: &'a mut Writer<W>,
    /// Files with several names, and which of them the stream has.
    links: HashMap<(u64, u64), Vec<u8>>,
    told: Told,
}

impl<W: Write> Walk<'_, W> {
    fn plain(&mut self, stat: &Stat, path: &[u8], kind: Kind) -> Result<(), CopyError> {
        let entry = Entry {
            path: path.to_vec(),
            kind,
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            modified_s: stat.st_mtime,
        };
        self.to.entry(&entry).map_err(CopyError::Send)
    }

    fn folder(&mut self, folder: &OwnedFd, path: &[u8], above: Option<u64>, depth: u32) -> Result<(), CopyError> {
        if depth > DEPTH {
            return Err(CopyError::Deep(shown(path)));
        }
        let stat = rustix::fs::fstat(folder).map_err(CopyError::of("look at", path))?;
        self.plain(&stat, path, Kind::Folder)?;
        if above.is_some_and(|device| device != stat.st_dev) && is_the_kernels(folder.as_fd()) {
            return Ok(());
        }
        for name in sorted(folder.as_fd()).map_err(CopyError::of("list", path))? {
            let below = if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() };
            self.below(folder.as_fd(), &name, &below, (stat.st_dev, depth))?;
        }
        Ok(())
    }

    /// One of a folder. What has gone meanwhile was never there.
    fn below(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CString,
        path: &[u8],
        (device, depth): (u64, u32),
    ) -> Result<(), CopyError> {
        let Some(stat) = look(folder, name.to_bytes()).map_err(CopyError::of("look at", path))? else { return Ok(()) };
        let open = |flags: OFlags| match rustix::fs::openat(folder, name, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(opened) => Ok(Some(opened)),
            // It became something else.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(None),
            Err(other) => Err(CopyError::of("open", path)(other)),
        };
        match kind_of(&stat) {
            FileType::Directory => match open(FOLDER)? {
                Some(folder) => self.folder(&folder, path, Some(device), depth.saturating_add(1)),
                None => Ok(()),
            },
            FileType::RegularFile => open(READ)?.map_or(Ok(()), |file| self.file(&file, path)),
            FileType::Symlink => match open(OFlags::PATH | OFlags::CLOEXEC)? {
                Some(link) => self.link(&link, &stat, path),
                None => Ok(()),
            },
            FileType::Fifo => self.plain(&stat, path, Kind::Pipe),
            _ => {
                self.told.count = self.told.count.saturating_add(1);
                if self.told.skipped.len() < Told::MOST {
                    self.told.skipped.push(shown(path));
                }
                Ok(())
            }
        }
    }

    fn file(&mut self, file: &OwnedFd, path: &[u8]) -> Result<(), CopyError> {
        let stat = rustix::fs::fstat(file).map_err(CopyError::of("look at", path))?;
        if kind_of(&stat) != FileType::RegularFile {
            return Err(CopyError::Special(shown(path)));
        }
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                let first = first.clone();
                return self.plain(&stat, path, Kind::Again(first));
            }
            self.links.insert(inode, path.to_vec());
        }
        let mut content = File::from(file.try_clone().map_err(CopyError::Send)?);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size == 0 || is_the_kernels(file.as_fd()) {
            return self.unsized_file(&stat, path, content);
        }
        self.plain(&stat, path, Kind::File(size))?;
        self.content(&mut content, size, path)
    }

    /// A file that may have more or less in it than it says, such as one of `/proc`: it is read to its end first.
    fn unsized_file(&mut self, stat: &Stat, path: &[u8], content: File) -> Result<(), CopyError> {
        let mut bytes = Vec::new();
        let read = content.take(MOST_UNSIZED.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|source| CopyError::File { operation: "read", path: shown(path), source })?;
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if size > MOST_UNSIZED {
            return Err(CopyError::Endless(shown(path)));
        }
        self.plain(stat, path, Kind::File(size))?;
        self.content(&mut bytes.as_slice(), size, path)
    }

    fn content(&mut self, from: &mut impl Read, size: u64, path: &[u8]) -> Result<(), CopyError> {
        match self.to.content(from, size) {
            Ok(true) => Ok(()),
            Ok(false) => Err(CopyError::Shrunk(shown(path))),
            Err(source) => Err(CopyError::Send(source)),
        }
    }

    fn link(&mut self, link: &OwnedFd, stat: &Stat, path: &[u8]) -> Result<(), CopyError> {
        match rustix::fs::readlinkat(link, c"", Vec::new()) {
            Ok(target) => self.plain(stat, path, Kind::Link(target.into_bytes())),
            Err(Errno::INVAL | Errno::NOENT) => Ok(()), // no link any more
            Err(other) => Err(CopyError::of("read", path)(other)),
        }
    }
}

fn is_the_kernels(folder: BorrowedFd<'_>) -> bool {
    let kind = rustix::fs::fstatfs(folder).map(|found| u64::try_from(found.f_type).unwrap_or(0));
    kind.is_ok_and(|kind| KERNEL.contains(&kind))
}

/// The names in a folder but `.` and `..`, in order.
fn sorted(folder: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
