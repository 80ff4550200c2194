//! A machine under test: `duplex-vmm` started as its callers start it, with an initramfs that holds nothing but the guest half.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use duplex::spec::{
    DiskSpec, ExtentSpec, MachineEvent, MachineExit, MachineSpec, NetBackend, NetDeviceSpec, RequestToMonitor,
    ShareSpec, SpecFd, TemplateSpec, VsockSpec, VsockStream,
};
use duplex::sys::spawn::ChildSetup;
use duplex::vmm::spawn::encode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
    sendmsg, socketpair,
};

use crate::runner::{Need, Skip, Verdict};

/// What every machine case needs.
pub(crate) const NEEDS: &[Need] = &[Need::Host, Need::Kvm, Need::Program("rustc")];

/// Longest life of a machine in these cases. The lab is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// The guest kernel: where `make build` puts it, or DUPLEX_TEST_KERNEL.
pub(crate) fn kernel() -> Result<File, Skip> {
    let path = std::env::var_os("DUPLEX_TEST_KERNEL")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/duplex/guest/vmlinux"), PathBuf::from);
    File::open(&path).map_err(|e| Skip(format!("needs the guest kernel {}: {e}", path.display())))
}

/// The guest half, compiled once into `target/vm-guest` and again when its source is newer.
pub(crate) fn guest_program() -> Vec<u8> {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(build_guest).clone()
}

fn build_guest() -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("tests/vm/guest.rs");
    let program = root.join("target/vm-guest/guest");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    let age = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    if age(&program) < age(&source) {
        // Process numbers of two labs may be the same.
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let fresh = folder.path().join("guest");
        let done = Command::new("rustc")
            .args([
                "--edition",
                "2024",
                "-O",
                "-C",
                "target-feature=+crt-static",
                "-C",
                "panic=abort",
                "-C",
                "strip=symbols",
            ])
            .args(["--target", "x86_64-unknown-linux-gnu", "-o"])
            .args([&fresh, &source])
            .status()
            .unwrap();
        assert!(done.success(), "the guest half does not compile");
        fs::rename(&fresh, &program).unwrap();
    }
    fs::read(program).unwrap()
}

/// An initramfs (cpio "newc") with the guest half as `/init` and a console node.
pub(crate) fn initramfs() -> File {
    let mut bytes = Vec::new();
    cpio_entry(&mut bytes, "dev", 0o040_755, (0, 0), b"");
    cpio_entry(&mut bytes, "dev/console", 0o020_600, (5, 1), b"");
    cpio_entry(&mut bytes, "init", 0o100_755, (0, 0), &guest_program());
    cpio_entry(&mut bytes, "TRAILER!!!", 0, (0, 0), b"");
    let mut file = File::from(memfd_create("initramfs", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&bytes).unwrap();
    file
}

fn cpio_entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    let inode = u32::try_from(archive.len()).unwrap() / 4 + 1;
    let size = u32::try_from(data.len()).unwrap();
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, u32::try_from(name.len()).unwrap() + 1, 0];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(data);
    pad(archive);
}

/// A disk: its extents as (file, offset, length), and whether it is read-only.
pub(crate) type Disk = (Vec<(File, u64, u64)>, bool);

/// What a machine shall be.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    /// The guest half's words.
    pub(crate) words: String,
    /// More kernel parameters.
    pub(crate) parameters: String,
    pub(crate) disks: Vec<Disk>,
    pub(crate) streams: Vec<(u32, UnixStream)>,
    /// The network device's end, and its MTU.
    pub(crate) net: Option<(Wire, u16)>,
    /// File system devices by tag, and the sockets of their back ends.
    pub(crate) shares: Vec<(String, UnixStream)>,
    /// A kernel file instead of the installed one.
    pub(crate) kernel: Option<File>,
    /// A bare-metal program instead of a kernel with the guest half: it gets the words and nothing else.
    pub(crate) bare: Option<File>,
    /// The console's output goes here instead of into a file.
    pub(crate) console: Option<OwnedFd>,
}

/// Where a network device's frames go.
pub(crate) enum Wire {
    Stream(UnixStream),
    Tap(OwnedFd),
}

/// The network device's hardware address.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

impl Plan {
    pub(crate) fn new(words: &str) -> Self {
        Self { vcpus: 1, memory_mib: 128, words: words.to_owned(), ..Self::default() }
    }
}

/// What a machine is before its guest half plays the case.
#[derive(Debug, Default)]
enum Life {
    /// It boots, with its devices.
    #[default]
    Booted,
    /// It boots without, and goes on.
    Late,
    /// It boots without, is written to one of these files, and goes on.
    Saved(Vec<File>),
    /// It goes on from one of these files, in their order.
    Restored(VecDeque<File>),
}

thread_local! {
    static LIFE: RefCell<Life> = RefCell::default();
}

/// Plays a case four times: with machines that boot, that get their devices late, that are saved, and that go on from those.
pub(crate) fn in_every_life(case: fn() -> Verdict) -> Verdict {
    LIFE.set(Life::Booted);
    case()?;
    LIFE.set(Life::Late);
    case()?;
    LIFE.set(Life::Saved(Vec::new()));
    case()?;
    let Life::Saved(files) = LIFE.take() else { unreachable!("it was set here") };
    LIFE.set(Life::Restored(files.into()));
    case()?;
    LIFE.set(Life::Booted);
    Ok(())
}

/// A running machine.
pub(crate) struct Machine {
    child: Child,
    pub(crate) control: Option<OwnedFd>,
    console: File,
    /// For whoever reads a failure.
    life: &'static str,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) events: Vec<MachineEvent>,
    pub(crate) console: String,
    pub(crate) code: Option<i32>,
}

impl Report {
    /// The machine's end.
    pub(crate) fn exit(&self) -> &MachineExit {
        match self.events.last() {
            Some(MachineEvent::Exited { exit, .. }) => exit,
            other => panic!("no end but {other:?}; console:\n{}", self.console),
        }
    }

    /// The value of a line `key=value` on the console.
    pub(crate) fn value(&self, key: &str) -> &str {
        let line = self.console.lines().find_map(|l| l.trim().strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {key}= on the console:\n{}", self.console))
    }

    /// Fails unless the guest half went well.
    pub(crate) fn expect_ok(&self) -> &Self {
        assert_eq!(self.exit(), &MachineExit::Shutdown, "console:\n{}", self.console);
        assert_eq!(self.code, Some(0));
        assert!(self.console.contains("GUEST OK"), "console:\n{}", self.console);
        self
    }
}

impl Machine {
    pub(crate) fn start(plan: Plan) -> Result<Self, Skip> {
        let console = File::from(memfd_create("console", MemfdFlags::CLOEXEC).unwrap());
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut keep: Vec<OwnedFd> = Vec::new();
        let mut pass = |fd: OwnedFd| {
            let number = SpecFd(fd.as_raw_fd());
            keep.push(fd);
            number
        };
        let (template, slots, life) = LIFE.with_borrow_mut(|life| match life {
            Life::Booted => (None, "", "booted"),
            Life::Late => (Some(TemplateSpec::Boot), "slots ", "late"),
            Life::Saved(files) => {
                files.push(File::from(memfd_create("template", MemfdFlags::CLOEXEC).unwrap()));
                let file = files.last().unwrap().try_clone().unwrap();
                (Some(TemplateSpec::Save(pass(file.into()))), "slots ", "saved")
            }
            Life::Restored(files) => {
                let file = pass(files.pop_front().expect("it was saved before").into());
                (Some(TemplateSpec::Restore { file, hot: None }), "slots ", "restored")
            }
        });
        let (initramfs, cmdline) = if plan.bare.is_some() {
            (None, plan.words)
        } else {
            // Quiet: a warning of the kernel would stand in the middle of a line of the guest half's.
            let usual = "console=ttyS0 console=hvc0 panic=-1 reboot=k tsc=reliable quiet";
            (Some(pass(initramfs().into())), format!("{usual} {} -- {slots}{}", plan.parameters, plan.words))
        };
        let kernel = plan.bare.or(plan.kernel).map_or_else(kernel, Ok)?;
        let mut disks = Vec::new();
        for (extents, read_only) in plan.disks {
            let extents =
                extents.into_iter().map(|(f, offset, len)| ExtentSpec { fd: pass(f.into()), offset, len }).collect();
            disks.push(DiskSpec { extents, read_only, direct: false });
        }
        let streams = plan.streams.into_iter().map(|(port, s)| VsockStream { port, fd: pass(s.into()) }).collect();
        let output = plan.console.unwrap_or_else(|| console.try_clone().unwrap().into());
        let spec = MachineSpec {
            kvm: pass(kvm.into()),
            vcpus: plan.vcpus,
            memory_mib: plan.memory_mib,
            kernel: pass(kernel.into()),
            initramfs,
            cmdline,
            disks,
            vsock: Some(VsockSpec { cid: 3, streams }),
            console: Some(pass(output)),
            nets: Vec::from_iter(plan.net.map(|(wire, mtu)| {
                let backend = match wire {
                    Wire::Stream(socket) => NetBackend::Stream(pass(socket.into())),
                    Wire::Tap(tap) => NetBackend::Tap(pass(tap)),
                };
                NetDeviceSpec { backend, mac: MAC, mtu, rate: None }
            })),
            template,
            shares: plan.shares.into_iter().map(|(tag, s)| ShareSpec { tag, socket: pass(s.into()) }).collect(),
            control: pass(theirs),
        };
        let child = spawn(&spec, keep);
        Ok(Self { child, control: Some(control), console, life })
    }

    /// Asks the monitor something.
    pub(crate) fn request(&self, request: &RequestToMonitor, fd: Option<&OwnedFd>) {
        let packet = postcard::to_stdvec(request).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let control = self.control.as_ref().unwrap();
        sendmsg(control, &[io::IoSlice::new(&packet)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    }

    /// Waits until the console shows this.
    pub(crate) fn wait_for(&mut self, words: &str) {
        self.wait_until(words, |machine| machine.console().contains(words));
    }

    /// Waits until this is so.
    pub(crate) fn wait_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "'{what}' does not come:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How many lines of the console have these words.
    pub(crate) fn lines(&mut self, words: &str) -> usize {
        self.console().lines().filter(|line| line.contains(words)).count()
    }

    /// Waits for an event of this kind; those before it are dropped.
    pub(crate) fn event(&self, wanted: impl Fn(&MachineEvent) -> bool) -> MachineEvent {
        let deadline = Instant::now() + PATIENCE;
        let control = self.control.as_ref().unwrap();
        std::iter::from_fn(|| next_event(control, deadline)).find(wanted).expect("the event comes")
    }

    /// The monitor's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the monitor has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What the console shows.
    pub(crate) fn console(&mut self) -> String {
        let mut copy = self.console.try_clone().unwrap();
        let at = copy.stream_position().unwrap();
        let mut text = vec![0; usize::try_from(at).unwrap()];
        rustix::io::pread(&copy, &mut text[..], 0).unwrap();
        drop(copy.flush());
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits for the machine's end.
    pub(crate) fn finish(mut self) -> Report {
        let deadline = Instant::now() + PATIENCE;
        let mut events = Vec::new();
        if let Some(control) = self.control.take() {
            while let Some(event) = next_event(&control, deadline) {
                events.push(event);
            }
        }
        let code = self.reap(deadline);
        let life = self.life;
        Report { events, console: format!("({life})\n{}", self.console()), code }
    }

    /// Closes the control socket, as a caller that dies does, and waits for the monitor to go.
    pub(crate) fn abandon(mut self) -> Report {
        drop(self.control.take());
        self.finish()
    }

    fn reap(&mut self, deadline: Instant) -> Option<i32> {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the monitor does not end; console:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The next event, or nothing when the monitor has closed its end or the time is over.
fn next_event(control: &OwnedFd, deadline: Instant) -> Option<MachineEvent> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs().try_into().unwrap(), tv_nsec: left.subsec_nanos().into() };
    if poll(&mut [PollFd::new(control, PollFlags::IN)], Some(&timeout)).unwrap() == 0 {
        return None;
    }
    let mut bytes = [0; 16 << 10];
    match recv(control, &mut bytes[..], RecvFlags::empty()) {
        Ok((count, _)) if count > 0 => Some(postcard::from_bytes(&bytes[..count]).unwrap()),
        _ => None,
    }
}

/// Starts the monitor with this spec and these descriptors.
pub(crate) fn spawn(spec: &MachineSpec, mut keep: Vec<OwnedFd>) -> Child {
    let mut memfd = File::from(memfd_create("spec", MemfdFlags::CLOEXEC).unwrap());
    memfd.write_all(&encode(spec).unwrap()).unwrap();
    memfd.rewind().unwrap();
    let mut command = Command::new(monitor());
    command.arg(memfd.as_raw_fd().to_string());
    keep.push(memfd.into());
    ChildSetup { keep, ..ChildSetup::default() }.apply(&mut command).spawn().unwrap()
}

/// The monitor's program: the installed static one, or the one that cargo built for this test.
pub(crate) fn monitor() -> PathBuf {
    std::env::var_os("DUPLEX_TEST_MONITOR").map_or_else(|| env!("CARGO_BIN_EXE_duplex-vmm").into(), PathBuf::from)
}

/// A file with this content.
pub(crate) fn file_of(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("file", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file
}

/// The byte that test data has at an offset, as the guest half computes it.
pub(crate) fn pattern(offset: u64) -> u8 {
    offset.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7]
}

/// Reads everything.
pub(crate) fn read_all(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}
