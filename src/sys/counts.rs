//! Counts what the kernel does for cgroups: BPF programs on tracepoints, which add up by cgroup and number in a map (bpf(2)).
//!
//! Counted is what the processes of a cgroup of the second level do, such as `/duplex/ID` or below it, from the first program on that is executed
//! there: what makes a container, before it becomes the command, is not.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::bpf::{self, Hook, Instruction};

/// `enum bpf_cmd`.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_LINK_CREATE: libc::c_long = 28;

/// BPF_MAP_TYPE_HASH.
const HASH: u32 = 1;
/// BPF_PROG_TYPE_TRACEPOINT and BPF_PROG_TYPE_RAW_TRACEPOINT.
const TRACEPOINT: Hook = Hook { program: 5, attach: 0 };
const RAW_TRACEPOINT: Hook = Hook { program: 17, attach: 0 };
/// BPF_PROG_TYPE_KPROBE to be attached by BPF_TRACE_KPROBE_MULTI.
const FUNCTIONS: Hook = Hook { program: 2, attach: 42 };

/// Functions of the kernel (`enum bpf_func_id`).
const LOOK_UP: i32 = 1;
const UPDATE: i32 = 2;
const PID_TGID: i32 = 14;
const ANCESTOR_CGROUP: i32 = 123;
const FUNCTION: i32 = 173;
/// BPF_NOEXIST: an update of what is there already is refused.
const NO_EXIST: i32 = 1;

/// PERF_TYPE_TRACEPOINT, PERF_FLAG_FD_CLOEXEC, and requests to a perf event (perf_event_open(2)).
const PERF_TRACEPOINT: u32 = 2;
const PERF_CLOEXEC: libc::c_ulong = 8;
const SET_BPF: libc::c_ulong = 0x4004_2408;
const ENABLE: libc::c_ulong = 0x2400;

/// Most cgroups; what others do is not counted.
const CGROUPS: u32 = 4096;
/// Most pairs of cgroup and number, of all cgroups together. What comes beyond is counted without its number: a program that makes up numbers of
/// system calls has as many as it likes.
pub const PAIRS: u32 = 1 << 15;

/// What is added up: the cgroup's id, which is the number of its folder's inode, and a number of the event.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Key {
    cgroup: u64,
    number: u64,
}

/// Events of a kind, counted as long as this lives.
#[derive(Debug)]
pub struct Counter {
    /// By a cgroup's id, how many events found no room in `counts`.
    started: OwnedFd,
    counts: OwnedFd,
    _attached: [OwnedFd; 2],
    _event: Option<OwnedFd>,
}

/// What the processes of a cgroup have done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How often, by number.
    pub by_number: BTreeMap<u64, u64>,
    /// How often beside that: there was no room for further numbers.
    pub unsorted: u64,
}

/// A system call and who made it, in a number: the process in the upper half, this bit for other threads than its first, the call's number.
const OTHER_THREAD: u64 = 1 << 30;

/// Kinds of system calls by who made them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// The process, as the host numbers it.
    pub process: u32,
    /// Its first thread made it.
    pub first_thread: bool,
    /// The call's number, or its lower 16 bits.
    pub number: u16,
}

impl Call {
    fn of(number: u64) -> Self {
        let lower = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
        Self {
            process: lower(number >> 32),
            first_thread: number & OTHER_THREAD == 0,
            number: u16::try_from(number & 0xffff).unwrap_or(0),
        }
    }
}

/// Where in an event its number is.
#[derive(Clone, Copy, Debug)]
enum At {
    /// The second word of a raw tracepoint, in full.
    SecondWord,
    /// The lower 16 bits of that, and who made the event: [`Call`]'s.
    ByThread,
    /// These four bytes in the lower half, those in the upper.
    Fields(i16, i16),
    /// The address of the function that is called.
    Function,
}

impl Counter {
    /// System calls by their numbers, in the cgroups below the one with this id.
    ///
    /// # Errors
    /// `EPERM` without CAP_BPF and CAP_PERFMON, `EINVAL` on a kernel without CONFIG_BPF_EVENTS.
    pub fn of_system_calls(family: u64) -> io::Result<Self> {
        Self::of_calls(family, At::SecondWord)
    }

    /// The same by threads: what [`Counter::calls`] tells.
    ///
    /// # Errors
    /// As [`Counter::of_system_calls`].
    pub fn of_threads(family: u64) -> io::Result<Self> {
        Self::of_calls(family, At::ByThread)
    }

    /// Which calls this cgroup's processes have made so far, of a counter by threads.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn calls(&self, cgroup: u64) -> io::Result<Vec<Call>> {
        Ok(self.counts(cgroup)?.by_number.into_keys().map(Call::of).collect())
    }

    fn of_calls(family: u64, at: At) -> io::Result<Self> {
        let (started, attached) = starts(family)?;
        let counts = map(size_of::<Key>(), PAIRS)?;
        let program = bpf::load(RAW_TRACEPOINT, &adding(family, [started.as_fd(), counts.as_fd()], at))?;
        let tracepoint = open_raw(c"sys_enter", program.as_fd())?;
        Ok(Self { started, counts, _attached: [attached, tracepoint], _event: None })
    }

    /// Events of the tracepoint with this id (tracefs, `events/*/*/id`), by four bytes of each at `lower`, with those at `upper` in the upper half.
    ///
    /// # Errors
    /// As [`Counter::of_system_calls`].
    pub fn of_tracepoint(family: u64, id: u64, lower: i16, upper: i16) -> io::Result<Self> {
        let (started, attached) = starts(family)?;
        let counts = map(size_of::<Key>(), PAIRS)?;
        let at = At::Fields(lower, upper);
        let program = bpf::load(TRACEPOINT, &adding(family, [started.as_fd(), counts.as_fd()], at))?;
        let event = open_event(id)?;
        request(&event, SET_BPF, program.as_raw_fd())?;
        request(&event, ENABLE, 0)?;
        Ok(Self { started, counts, _attached: [attached, program], _event: Some(event) })
    }

    /// Calls of the kernel's functions with these addresses (`available_filter_functions_addrs` of tracefs), by address. As long as this lives,
    /// each call of one of them is slower, whoever makes it.
    ///
    /// # Errors
    /// As [`Counter::of_system_calls`], `EOPNOTSUPP` on a kernel without CONFIG_FPROBE, `ESRCH` or `EINVAL` for an address that is none.
    pub fn of_functions(family: u64, addresses: &[u64]) -> io::Result<Self> {
        let (started, attached) = starts(family)?;
        let counts = map(size_of::<Key>(), PAIRS)?;
        let program = bpf::load(FUNCTIONS, &adding(family, [started.as_fd(), counts.as_fd()], At::Function))?;
        let link = link_functions(program.as_fd(), addresses)?;
        Ok(Self { started, counts, _attached: [attached, link], _event: None })
    }

    /// What the processes of this cgroup, and those of cgroups below it, have done so far.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn counts(&self, cgroup: u64) -> io::Result<Counted> {
        let unsorted = value(&self.started, &cgroup)?.unwrap_or(0);
        let mut found = Counted { by_number: BTreeMap::new(), unsorted };
        let mut last: Option<Key> = None;
        loop {
            let mut next = Key::default();
            let key = last.as_ref().map_or(0, |key| std::ptr::from_ref(key) as u64);
            match ask(&self.counts, BPF_MAP_GET_NEXT_KEY, key, std::ptr::from_mut(&mut next) as u64) {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
                other => other?,
            }
            if next.cgroup == cgroup {
                found.by_number.insert(next.number, value(&self.counts, &next)?.unwrap_or(0));
            }
            last = Some(next);
        }
    }
}

/// The cgroups in which a program has been executed, and what notes them.
fn starts(family: u64) -> io::Result<(OwnedFd, OwnedFd)> {
    let started = map(size_of::<u64>(), CGROUPS)?;
    let program = bpf::load(RAW_TRACEPOINT, &noting(family, started.as_fd()))?;
    let tracepoint = open_raw(c"sched_process_exec", program.as_fd())?;
    Ok((started, tracepoint))
}

const fn op(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

/// `to = value`, of 64 bits.
fn wide(to: u8, value: u64) -> [Instruction; 2] {
    let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0).cast_signed();
    [op(0x18, to, 0, half(value)), op(0, 0, 0, half(value >> 32))]
}

/// `to` = this map.
fn map_in(to: u8, map: BorrowedFd<'_>) -> [Instruction; 2] {
    [op(0x18, 0x10 | to, 0, map.as_raw_fd()), op(0, 0, 0, 0)]
}

/// Ends with 0.
const END: [Instruction; 2] = [op(0xb7, 0, 0, 0), op(0x95, 0, 0, 0)];

/// The id of this process's cgroup of the second level in r0; ends if that is not in the family.
fn member(family: u64) -> Vec<Instruction> {
    let [lower, upper] = wide(7, family);
    let mut program = vec![
        op(0xbf, 0x16, 0, 0), // r6 = r1: the event
        lower,
        upper,
        op(0xb7, 1, 0, 1),
        op(0x85, 0, 0, ANCESTOR_CGROUP),
        op(0x1d, 0x70, 2, 0), // the family: go on
    ];
    program.extend(END);
    program.extend([
        op(0xb7, 1, 0, 2),
        op(0x85, 0, 0, ANCESTOR_CGROUP),
        op(0x55, 0, 2, 0), // there is one: go on
    ]);
    program.extend(END);
    program
}

/// Notes that a program was executed; its cgroup's count of events without room begins at 0, once.
fn noting(family: u64, started: BorrowedFd<'_>) -> Vec<Instruction> {
    let mut program = member(family);
    program.extend([
        op(0x7b, 0x0a, -8, 0),  // *(fp - 8) = r0
        op(0x7a, 0x0a, -16, 0), // *(fp - 16) = 0
    ]);
    program.extend(map_in(1, started));
    program.extend([
        op(0xbf, 0xa2, 0, 0),
        op(0x07, 2, 0, -8),
        op(0xbf, 0xa3, 0, 0),
        op(0x07, 3, 0, -16),
        op(0xb7, 4, 0, NO_EXIST),
        op(0x85, 0, 0, UPDATE),
    ]);
    program.extend(END);
    program
}

/// r0 = where the map has the value of the key at `fp - 16`, which is the cgroup's id there and a number behind it.
fn look_up(map: BorrowedFd<'_>) -> Vec<Instruction> {
    let mut program = map_in(1, map).to_vec();
    program.extend([op(0xbf, 0xa2, 0, 0), op(0x07, 2, 0, -16), op(0x85, 0, 0, LOOK_UP)]);
    program
}

/// Adds one to the count of the event's number, or of those without room.
fn adding(family: u64, [started, counts]: [BorrowedFd<'_>; 2], at: At) -> Vec<Instruction> {
    let mut program = member(family);
    program.push(op(0x7b, 0x0a, -16, 0)); // *(fp - 16) = r0
    program.extend(look_up(started));
    program.push(op(0x55, 0, 2, 0)); // it has begun: go on
    program.extend(END);
    program.push(op(0xbf, 0x08, 0, 0)); // r8 = r0
    match at {
        At::SecondWord => program.push(op(0x79, 0x62, 8, 0)),
        At::ByThread => program.extend([
            op(0x79, 0x69, 8, 0), // r9 = the call's number
            op(0x57, 9, 0, 0xffff),
            op(0x85, 0, 0, PID_TGID),
            op(0xbf, 0x02, 0, 0), // r2 = the process
            op(0x77, 2, 0, 32),
            op(0xbf, 0x03, 0, 0), // r3 = the thread
            op(0x67, 3, 0, 32),
            op(0x77, 3, 0, 32),
            op(0x1d, 0x32, 1, 0), // the same: leave the next out
            op(0x47, 9, 0, 1 << 30),
            op(0x67, 2, 0, 32),
            op(0x4f, 0x92, 0, 0),
        ]),
        At::Fields(lower, upper) => program.extend([
            op(0x61, 0x62, lower, 0),
            op(0x61, 0x63, upper, 0),
            op(0x67, 3, 0, 32), // r3 <<= 32
            op(0x4f, 0x32, 0, 0),
        ]),
        At::Function => program.extend([
            op(0xbf, 0x61, 0, 0), // r1 = r6
            op(0x85, 0, 0, FUNCTION),
            op(0xbf, 0x02, 0, 0), // r2 = r0
        ]),
    }
    program.push(op(0x7b, 0x2a, -8, 0)); // *(fp - 8) = r2
    // A value of 0 if there is none yet; whichever processor makes it, all add to it.
    program.extend(look_up(counts));
    let mut make = vec![op(0x7a, 0x0a, -24, 0)];
    make.extend(map_in(1, counts));
    make.extend([
        op(0xbf, 0xa2, 0, 0),
        op(0x07, 2, 0, -16),
        op(0xbf, 0xa3, 0, 0),
        op(0x07, 3, 0, -24),
        op(0xb7, 4, 0, NO_EXIST),
        op(0x85, 0, 0, UPDATE),
    ]);
    make.extend(look_up(counts));
    program.push(op(0x55, 0, i16::try_from(make.len()).unwrap_or(0), 0));
    program.extend(make);
    program.extend([
        op(0x55, 0, 1, 0),
        op(0xbf, 0x80, 0, 0), // the map is full: r0 = r8
        op(0xb7, 1, 0, 1),
        op(0xdb, 0x10, 0, 0), // lock *r0 += r1
    ]);
    program.extend(END);
    program
}

/// The head of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
struct Create {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

/// That for what is asked of a map.
#[repr(C)]
struct Element {
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
}

/// That for BPF_RAW_TRACEPOINT_OPEN.
#[repr(C)]
struct Raw {
    name: u64,
    program: u64,
}

/// That for BPF_LINK_CREATE, of many functions.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
    functions_flags: u32,
    count: u32,
    names: u64,
    addresses: u64,
    cookies: u64,
}

/// The head of `struct perf_event_attr`, up to PERF_ATTR_SIZE_VER0.
#[repr(C)]
#[derive(Default)]
struct Event {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample: u64,
    read: u64,
    flags: u64,
    wake: u32,
    breakpoint: u32,
    address: u64,
}

fn map(key: usize, entries: u32) -> io::Result<OwnedFd> {
    let key = u32::try_from(key).map_err(io::Error::other)?;
    let create = Create { kind: HASH, key, value: 8, entries, flags: 0 };
    // SAFETY: the attribute is as long as is said, holds no pointer and outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const create, size_of::<Create>()) })
}

/// The value of this key, if there is one. The key has the size that the map was made with.
fn value<K>(map: &OwnedFd, key: &K) -> io::Result<Option<u64>> {
    let mut value = 0_u64;
    match ask(map, BPF_MAP_LOOKUP_ELEM, std::ptr::from_ref(key) as u64, std::ptr::from_mut(&mut value) as u64) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other.map(|()| Some(value)),
    }
}

/// `key` is the address of a key or 0, and `value` where the answer goes.
fn ask(map: &OwnedFd, what: libc::c_long, key: u64, value: u64) -> io::Result<()> {
    let map = u64::try_from(map.as_raw_fd()).map_err(io::Error::other)?;
    let element = Element { map, key, value, flags: 0 };
    // SAFETY: the attribute is as long as is said; the callers' keys and values have the sizes that the map was made with and outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, what, &raw const element, size_of::<Element>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn open_raw(name: &std::ffi::CStr, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let program = u64::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    let raw = Raw { name: name.as_ptr() as u64, program };
    // SAFETY: the attribute is as long as is said; the name is a C string that outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_bpf, BPF_RAW_TRACEPOINT_OPEN, &raw const raw, size_of::<Raw>()) })
}

fn link_functions(program: BorrowedFd<'_>, addresses: &[u64]) -> io::Result<OwnedFd> {
    let link = Link {
        program: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        target: 0,
        attach: FUNCTIONS.attach,
        flags: 0,
        functions_flags: 0,
        count: u32::try_from(addresses.len()).map_err(io::Error::other)?,
        names: 0,
        addresses: addresses.as_ptr() as u64,
        cookies: 0,
    };
    // SAFETY: the attribute is as long as is said; its pointer names `count` addresses, which the kernel reads during the call.
    owned(unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const link, size_of::<Link>()) })
}

/// The tracepoint on processor 0: a program that is attached to it runs wherever the tracepoint is passed.
fn open_event(id: u64) -> io::Result<OwnedFd> {
    let size = u32::try_from(size_of::<Event>()).map_err(io::Error::other)?;
    let event = Event { kind: PERF_TRACEPOINT, size, config: id, period: 1, ..Event::default() };
    // SAFETY: the attribute has the size that it names and outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const event, -1, 0, -1, PERF_CLOEXEC) })
}

fn request(event: &OwnedFd, request: libc::c_ulong, argument: libc::c_int) -> io::Result<()> {
    // SAFETY: neither request takes a pointer.
    let done = unsafe { libc::ioctl(event.as_raw_fd(), request, argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
