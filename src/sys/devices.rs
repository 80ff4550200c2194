//! Which devices the processes of a cgroup may open: a BPF program of type BPF_PROG_TYPE_CGROUP_DEVICE (cgroup-v2.rst, "Device controller").

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Character devices, by major and minor number, that every container has (OCI runtime spec, "Default Devices"): null, zero, full, random,
/// urandom, tty, ptmx, and all pseudo terminals.
const ALLOWED: [(i32, Option<i32>); 8] =
    [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];

/// `enum bpf_cmd`, `enum bpf_prog_type`, `enum bpf_attach_type` and flags of include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// `BPF_DEVCG_ACC_MKNOD` and `BPF_DEVCG_DEV_CHAR`.
const ACCESS_MKNOD: i32 = 1;
const TYPE_CHAR: i32 = 2;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The head of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Lets the processes of this cgroup open nothing but the standard devices. Making nodes stays allowed: a node that cannot be opened is
/// harmless, and Docker allows it.
///
/// # Errors
/// `EPERM` without CAP_BPF, `EINVAL` on a kernel without CONFIG_CGROUP_BPF.
pub fn allow_standard_only(cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let program = load(&program())?;
    let number = |fd: i32| u32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF));
    let attach = Attach {
        target: number(cgroup.as_raw_fd())?,
        program: number(program.as_raw_fd())?,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attribute is as long as is said, holds no pointer and outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the attribute is as long as is said; its pointers name the instructions, `count` of them, and a C string, which the kernel
    // reads during the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The program: its context is `struct bpf_cgroup_dev_ctx { access << 16 | type, major, minor }` in r1.
fn program() -> Vec<Instruction> {
    let op = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    let load_word = |to: u8, offset| op(0x61, 0x10 | to, offset, 0);
    let jump_if_not = |register: u8, value, by| op(0x55, register, by, value);
    let allow = [op(0xb7, 0, 0, 1), op(0x95, 0, 0, 0)];
    let mut program = vec![
        load_word(2, 0),
        op(0xbf, 0x23, 0, 0),   // r3 = r2
        op(0x57, 3, 0, 0xffff), // r3 &= 0xffff: the type
        op(0x77, 2, 0, 16),     // r2 >>= 16: the access
        load_word(4, 4),
        load_word(5, 8),
        jump_if_not(2, ACCESS_MKNOD, 2),
    ];
    program.extend(allow);
    let rules: Vec<Instruction> = ALLOWED
        .iter()
        .flat_map(|(major, minor)| {
            let minor = minor.map(|minor| jump_if_not(5, minor, 2));
            let skip = if minor.is_some() { 3 } else { 2 };
            std::iter::once(jump_if_not(4, *major, skip)).chain(minor).chain(allow)
        })
        .collect();
    program.push(jump_if_not(3, TYPE_CHAR, i16::try_from(rules.len()).unwrap_or(i16::MAX)));
    program.extend(rules);
    program.extend([op(0xb7, 0, 0, 0), op(0x95, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, on the instructions that it uses.
    fn verdict(access: u32, kind: u32, major: u32, minor: u32) -> i64 {
        let program = program();
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i64; 11];
        let mut at = 0_usize;
        loop {
            let Instruction { code, registers: r, offset, immediate } = program[at];
            let (to, from) = (usize::from(r & 15), usize::from(r >> 4));
            at += 1;
            match code {
                0x61 => registers[to] = i64::from(context[usize::try_from(offset).unwrap() / 4]),
                0xbf => registers[to] = registers[from],
                0x57 => registers[to] &= i64::from(immediate),
                0x77 => registers[to] >>= immediate,
                0xb7 => registers[to] = i64::from(immediate),
                0x55 if registers[to] != i64::from(immediate) => at += usize::try_from(offset).unwrap(),
                0x55 => {}
                0x95 => return registers[0],
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn standard_devices_are_open_and_nothing_else() {
        let (mknod, read, write, block, char) = (1, 2, 4, 1, 2);
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0), (136, 77)] {
            assert_eq!(verdict(read | write, char, major, minor), 1, "{major}:{minor}");
        }
        for (kind, major, minor) in
            [(char, 1, 1), (char, 1, 2), (char, 5, 1), (char, 10, 232), (block, 8, 0), (block, 1, 3), (block, 136, 0)]
        {
            assert_eq!(verdict(read, kind, major, minor), 0, "{kind} {major}:{minor}");
            assert_eq!(verdict(mknod | read, kind, major, minor), 0, "{kind} {major}:{minor}");
            assert_eq!(verdict(mknod, kind, major, minor), 1, "a node may be made");
        }
    }
}
