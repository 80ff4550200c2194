//! Machines to go on from: a guest that has booted and whose agent waits for its devices, one for each kernel, agent, monitor and machine size.
//!
//! ```text
//! STATE/templates/<key>        a saved machine (`vmm::snapshot`), under its name only when it is whole
//! STATE/templates/<key>.hot    what a start touches of it (`vmm::snapshot::hot`)
//! ```
//!
//! No program of any image has run in it. The key has the host's boot in it: a template never outlives the kernel and the processor it was made with.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat, open};
use sha2::{Digest as _, Sha256};

use super::monitor::clean;
use crate::sys::signals;
use crate::vmm::memory::{HUGE, PAGE, PAGE_BYTES, ranges};
use crate::vmm::snapshot::format::{HEADER, VERSION};
use crate::vmm::snapshot::hot::{self, HotRun};
use crate::vmm::snapshot::{Extent, MachineState, Saved};

/// Folder of templates inside the state folder.
const FOLDER: &str = "templates";

/// Commands that are over within this time are short.
const SHORT: Duration = Duration::from_secs(5);

/// Pages that the kernel is asked about at once.
const AT_ONCE: usize = 8192;

/// Extension of the list of a template's pages that a start touches.
const HOT: &str = "hot";

/// Most bytes of all templates on disk. The ones that were not used for the longest time go first.
const BUDGET: u64 = 512 << 20;

/// What decides whether a machine can go on from another's template.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape<'a> {
    pub(super) files: [&'a Path; 3],
    pub(super) cmdline: &'a str,
    pub(super) memory_mib: u32,
    pub(super) vcpus: u8,
}

/// What a machine does about templates.
#[derive(Debug)]
pub(super) enum Template {
    /// It goes on from this one.
    Restore(Kept),
    /// It writes this one.
    Save(Saving),
    /// It boots: another is writing one, or the file system has no files without a name.
    None,
}

/// What others will have of a machine's start.
#[derive(Debug)]
pub(super) enum Lesson {
    /// The template that it writes.
    Saved(Saving),
    /// What it touches of the template that it went on from.
    Touched(Learner),
}

impl Lesson {
    /// The machine's command runs. `saved` is what the monitor said about the template that it writes. Nothing here keeps a machine from running.
    /// Returns what may be learned once more at the command's end.
    pub(super) fn learn(self, saved: Option<&[String]>, monitor: Option<BorrowedFd<'_>>) -> Option<Unlearned> {
        let (learned, unlearned) = match (self, saved, monitor) {
            (Self::Saved(saving), Some([]), _) => (saving.keep(), None),
            (Self::Saved(_), Some(causes), _) => (Err(io::Error::other(clean(&causes.join(": ")))), None),
            (Self::Touched(Learner { unlearned: Some(unlearned), .. }), _, Some(monitor)) => {
                (unlearned.learn(monitor), Some(unlearned))
            }
            (Self::Saved(_), None, _) | (Self::Touched(_), ..) => (Ok(()), None),
        };
        if let Err(e) = learned {
            tracing::warn!("nothing was learned from this start: {e}");
        }
        unlearned
    }
}

/// A template that is whole.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) file: File,
    /// The list of its pages that a start touches.
    pub(super) hot: Option<File>,
    pub(super) learner: Learner,
}

/// A template that a machine goes on from, for what is learned of it.
#[derive(Debug)]
pub(super) struct Learner {
    path: PathBuf,
    /// Nobody knows yet what a start touches.
    unlearned: Option<Unlearned>,
}

impl Learner {
    /// The monitor refused it, which it will do again: the next start makes another one.
    pub(super) fn refused(self) {
        if let Err(e) = discard(&self.path) {
            tracing::warn!("the template {} stays: {e}", self.path.display());
        }
    }
}

/// A template of which nobody knows yet what a start touches.
#[derive(Debug)]
pub(super) struct Unlearned {
    path: PathBuf,
    inode: u64,
    memory_mib: u32,
    extents: Vec<Extent>,
}

/// A template that is being written. It has no name: if it is never kept, nothing is left.
#[derive(Debug)]
pub(super) struct Saving {
    file: File,
    folder: PathBuf,
    key: String,
    /// Locked: one template is written at a time.
    _lock: File,
}

/// Finds the template of a shape, or makes a place for it.
///
/// # Errors
/// What the file system or the kernel gave.
pub(super) fn find(state: &Path, shape: &Shape<'_>) -> io::Result<Template> {
    let folder = state.join(FOLDER);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let key = key(shape)?;
    if let Some(kept) = whole(&folder.join(&key), shape)? {
        return Ok(Template::Restore(kept));
    }
    let lock = File::open(&folder)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Template::None),
        Err(e) => return Err(e.into()),
    }
    match unnamed(&folder) {
        Ok(file) => Ok(Template::Save(Saving { file, folder, key, _lock: lock })),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => Ok(Template::None),
        Err(e) => Err(e.into()),
    }
}

/// Removes all templates below a state folder: how many bytes they had.
///
/// # Errors
/// What the file system gave.
pub fn remove_templates(state: &Path) -> io::Result<u64> {
    let mut freed = 0;
    for (path, size, _) in list(&state.join(FOLDER))? {
        gone(fs::remove_file(path))?;
        freed += size;
    }
    Ok(freed)
}

/// The template of this name, if it is whole. One that is not goes.
fn whole(path: &Path, shape: &Shape<'_>) -> io::Result<Option<Kept>> {
    let Some(file) = opened(path)? else { return Ok(None) };
    let file = OwnedFd::from(file);
    let saved = match Saved::read(&file, shape.memory_mib, shape.vcpus) {
        Ok(saved) => saved,
        Err(e) => {
            tracing::warn!("the template {} goes: {e}", path.display());
            discard(path)?;
            return Ok(None);
        }
    };
    let file = File::from(file);
    let list = path.with_extension(HOT);
    let hot = opened(&list)?;
    // The budget takes those that were not used for long. A file system that does not keep times is no reason not to go on.
    for file in [&file].into_iter().chain(&hot) {
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
    }
    let inode = file.metadata()?.ino();
    let MachineState { memory_mib, extents, .. } = saved.state;
    let unlearned = hot.is_none().then_some(Unlearned { path: list, inode, memory_mib, extents });
    Ok(Some(Kept { file, hot, learner: Learner { path: path.to_owned(), unlearned } }))
}

/// Removes a template and what is known of it.
fn discard(path: &Path) -> io::Result<()> {
    gone(fs::remove_file(path.with_extension(HOT)))?;
    gone(fs::remove_file(path))
}

fn opened(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Gives a file that is written a name, unless another has it.
fn name(file: &File, path: &Path) -> io::Result<()> {
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn unnamed(folder: &Path) -> Result<File, rustix::io::Errno> {
    open(folder, OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR).map(File::from)
}

impl Unlearned {
    /// Looks which pages a monitor that went on from the template has touched by now, and writes the list.
    fn learn(&self, monitor: BorrowedFd<'_>) -> io::Result<()> {
        let runs = self.touched(signals::pid_of(monitor)?)?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let mut file = unnamed(folder)?;
        file.write_all(&hot::encode(&runs).map_err(io::Error::other)?)?;
        gone(fs::remove_file(&self.path))?;
        name(&file, &self.path)
    }

    /// The command has ended, and the monitor is still there: a short one's whole life is a start.
    pub(super) fn learn_again(&self, began: Instant, monitor: BorrowedFd<'_>) {
        if began.elapsed() < SHORT
            && let Err(e) = self.learn(monitor)
        {
            tracing::warn!("nothing was learned from this command: {e}");
        }
    }

    /// Small pages of the machine's memory in the process's page tables (Documentation/admin-guide/mm/pagemap.rst): bit 63 says that one is there, bit
    /// 61 that it is still the file's.
    fn touched(&self, process: u32) -> io::Result<Vec<HotRun>> {
        let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
        let pagemap = File::open(format!("/proc/{process}/pagemap"))?;
        let mut runs: Vec<HotRun> = Vec::new();
        let mut entries = vec![0; AT_ONCE * 8];
        let pieces = self.memory(&maps).into_iter().flat_map(|(begin, end, guest)| {
            (begin..end).step_by(AT_ONCE * PAGE_BYTES).map(move |at| (at, end, guest + (at - begin)))
        });
        for (begin, end, guest) in pieces {
            let count = usize::try_from((end - begin) / PAGE).unwrap_or(usize::MAX).min(AT_ONCE);
            let entries = entries.get_mut(..count * 8).unwrap_or_default();
            pagemap.read_exact_at(entries, begin / PAGE * 8)?;
            for (place, entry) in (0..).zip(entries.as_chunks::<8>().0) {
                note(&mut runs, guest + place * PAGE, u64::from_le_bytes(*entry));
            }
            if runs.len() > hot::MOST_RUNS {
                return Err(io::Error::other("it has touched more than a start does"));
            }
        }
        // A huge page is made at its first touch, which costs one exit.
        runs.retain(|run| !run.written || u64::from(run.pages) * PAGE < HUGE);
        Ok(runs)
    }

    /// The mappings of a process that are the machine's memory, as begin, end and guest address: those of the template, and what has no file and lies
    /// where they say that memory is.
    fn memory(&self, maps: &str) -> Vec<(u64, u64, u64)> {
        let mappings: Vec<Mapping> = maps.lines().filter_map(Mapping::parse).collect();
        let guest = |m: &Mapping| self.address(m.offset).filter(|_| m.inode == self.inode);
        let mut found = Vec::new();
        for (first, len) in ranges(self.memory_mib) {
            let inside = |guest: &u64| (first..first + len).contains(guest);
            let base = mappings.iter().find_map(|m| Some(m.begin.wrapping_sub(guest(m).filter(inside)? - first)));
            let Some(base) = base else { continue };
            let of_memory = |m: &&Mapping| {
                (m.inode == 0 || m.inode == self.inode) && m.begin >= base && m.end <= base.saturating_add(len)
            };
            found.extend(mappings.iter().filter(of_memory).map(|m| (m.begin, m.end, m.begin - base + first)));
        }
        found
    }

    /// The guest address of a page at this offset of the file.
    fn address(&self, offset: u64) -> Option<u64> {
        let mut begin = HEADER;
        for extent in &self.extents {
            if let Some(inside) = offset.checked_sub(begin).filter(|inside| *inside < extent.len) {
                return Some(extent.addr + inside);
            }
            begin += extent.len;
        }
        None
    }
}

/// Takes in what the kernel says of a page.
fn note(runs: &mut Vec<HotRun>, addr: u64, entry: u64) {
    if entry >> 63 == 0 {
        return;
    }
    let written = entry >> 61 & 1 == 0;
    match runs.last_mut() {
        Some(run) if run.written == written && run.addr + u64::from(run.pages) * PAGE == addr => run.pages += 1,
        _ => runs.push(HotRun { addr, pages: 1, written }),
    }
}

/// A line of proc_pid_maps(5).
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    begin: u64,
    end: u64,
    /// Offset in its file.
    offset: u64,
    /// 0 without a file.
    inode: u64,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (begin, end) = words.next()?.split_once('-')?;
        let (offset, inode) = (words.nth(1)?, words.nth(1)?);
        let hex = |text| u64::from_str_radix(text, 16).ok();
        Some(Self { begin: hex(begin)?, end: hex(end)?, offset: hex(offset)?, inode: inode.parse().ok()? })
    }
}

#[cfg(any(feature = "fuzz", all(test, feature = "cli")))]
/// For the target of fuzzing: a table of maps.
pub(in crate::sandbox) fn fuzz_mappings(maps: &str) {
    let mut runs = Vec::new();
    for mapping in maps.lines().filter_map(Mapping::parse) {
        note(&mut runs, mapping.begin, mapping.end);
    }
}

impl Saving {
    /// For the monitor.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The file is whole: from now on others find it.
    pub(super) fn keep(self) -> io::Result<()> {
        let size = self.file.metadata()?.blocks() * 512;
        trim(&self.folder, BUDGET.saturating_sub(size))?;
        name(&self.file, &self.folder.join(&self.key))
    }
}

/// Makes the templates have at most so many bytes together.
fn trim(folder: &Path, most: u64) -> io::Result<()> {
    let mut found = list(folder)?;
    found.sort_by_key(|(_, _, used)| *used);
    let mut total: u64 = found.iter().map(|(_, size, _)| size).sum();
    for (path, size, _) in found {
        if total <= most {
            break;
        }
        gone(fs::remove_file(path))?;
        total -= size;
    }
    Ok(())
}

/// Templates as path, bytes on disk and last use.
fn list(folder: &Path) -> io::Result<Vec<(PathBuf, u64, SystemTime)>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        match entry.metadata() {
            Ok(about) => found.push((entry.path(), about.blocks() * 512, about.modified()?)),
            Err(e) => gone(Err(e))?,
        }
    }
    Ok(found)
}

/// What is not there any more has been removed by another.
fn gone(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

fn key(shape: &Shape<'_>) -> io::Result<String> {
    let mut hash = Sha256::new();
    hash.update(fs::read("/proc/sys/kernel/random/boot_id")?);
    hash.update(VERSION.to_le_bytes());
    for path in shape.files {
        let about = fs::metadata(path)?;
        for number in [about.dev(), about.ino(), about.len()] {
            hash.update(number.to_le_bytes());
        }
        for number in [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()] {
            hash.update(number.to_le_bytes());
        }
    }
    hash.update(shape.memory_mib.to_le_bytes());
    hash.update([shape.vcpus]);
    hash.update(shape.cmdline);
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn shape<'a>(file: &'a Path, cmdline: &'a str) -> Shape<'a> {
        Shape { files: [file; 3], cmdline, memory_mib: 64, vcpus: 1 }
    }

    #[test]
    fn one_is_written_at_a_time_and_what_is_damaged_goes() {
        let state = tempfile::tempdir().unwrap();
        let kernel = state.path().join("kernel");
        fs::write(&kernel, "1").unwrap();
        let shape = shape(&kernel, "quiet");
        let Template::Save(first) = find(state.path(), &shape).unwrap() else { panic!("there is none yet") };
        assert!(matches!(find(state.path(), &shape).unwrap(), Template::None), "another writes it");
        first.file().unwrap().write_all(b"not a machine").unwrap();
        first.keep().unwrap();
        let path = state.path().join(FOLDER).join(key(&shape).unwrap());
        assert!(path.exists());
        let Template::Save(never_kept) = find(state.path(), &shape).unwrap() else { panic!("what there is is none") };
        drop(never_kept);
        assert!(!path.exists() && list(&state.path().join(FOLDER)).unwrap().is_empty());
        assert_eq!(remove_templates(&state.path().join("nowhere")).unwrap(), 0);
    }

    #[test]
    fn memory_is_found_by_the_template_in_it() {
        let extents = vec![Extent { addr: 0x8000, len: 0x2000 }, Extent { addr: 0x10_0000, len: 0x1000 }];
        let unlearned = Unlearned { path: PathBuf::new(), inode: 4711, memory_mib: 2, extents };
        let found: Vec<_> = [0, 0x1000, 0x2000, 0x3000, 0x4000].map(|offset| unlearned.address(offset)).into();
        assert_eq!(found, [None, Some(0x8000), Some(0x9000), Some(0x10_0000), None]);
        let maps = "555500000000-555500001000 r-xp 00001000 00:1a 4712   /usr/bin/duplex-vmm
            7f0000000000-7f0000008000 rw-p 00000000 00:00 0
            7f0000008000-7f000000a000 rw-p 00001000 00:1a 4711       /run/duplex/templates/ab
            7f000000a000-7f0000100000 rw-p 00000000 00:00 0
            7f0000100000-7f0000101000 rw-p 00003000 00:1a 4711       /run/duplex/templates/ab
            7f0000101000-7f0000200000 rw-p 00000000 00:00 0
            7f0000200000-7f0000300000 rw-p 00000000 00:00 0          [stack]
            nonsense";
        let begins: Vec<_> = unlearned.memory(maps).into_iter().map(|(begin, _, guest)| (begin, guest)).collect();
        let expected = [0, 0x8000, 0xa000, 0x10_0000, 0x10_1000].map(|at| (0x7f00_0000_0000 + at, at));
        assert_eq!(begins, expected);
        assert_eq!(unlearned.memory(""), []);
    }

    #[test]
    fn pages_are_noted_in_runs() {
        let (file, own) = (1 << 63 | 1 << 61, 1 << 63);
        let mut runs = Vec::new();
        for (page, entry) in [(0, own), (1, own), (2, file), (3, 0), (4, file), (5, file), (9, own)] {
            note(&mut runs, page * PAGE, entry);
        }
        let run = |page, pages, written| HotRun { addr: page * PAGE, pages, written };
        assert_eq!(runs, [run(0, 2, true), run(2, 1, false), run(4, 2, false), run(9, 1, true)]);
    }

    #[test]
    fn other_machines_have_other_keys() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        fs::write(&kernel, "1").unwrap();
        let first = key(&shape(&kernel, "quiet")).unwrap();
        assert_eq!(first, key(&shape(&kernel, "quiet")).unwrap());
        assert_ne!(first, key(&shape(&kernel, "loud")).unwrap());
        assert_ne!(first, key(&Shape { vcpus: 2, ..shape(&kernel, "quiet") }).unwrap());
        assert_ne!(first, key(&Shape { memory_mib: 65, ..shape(&kernel, "quiet") }).unwrap());
        fs::write(&kernel, "12").unwrap();
        assert_ne!(first, key(&shape(&kernel, "quiet")).unwrap());
        assert!(key(&shape(&folder.path().join("missing"), "quiet")).is_err());
    }

    #[test]
    fn the_budget_takes_the_longest_unused() {
        let folder = tempfile::tempdir().unwrap();
        for (name, age) in [("old", 3), ("new", 1), ("older", 4), ("middle", 2)] {
            let mut file = File::create(folder.path().join(name)).unwrap();
            file.write_all(&[1; 8192]).unwrap();
            let used = SystemTime::now() - std::time::Duration::from_secs(age * 1000);
            file.set_times(FileTimes::new().set_modified(used)).unwrap();
        }
        trim(folder.path(), 2 * 8192).unwrap();
        let mut left: Vec<_> = list(folder.path()).unwrap().into_iter().map(|(path, _, _)| path).collect();
        left.sort();
        assert_eq!(left, [folder.path().join("middle"), folder.path().join("new")]);
    }
}
