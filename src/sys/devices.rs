//! Which devices the processes of a cgroup may open: a BPF program of type BPF_PROG_TYPE_CGROUP_DEVICE (cgroup-v2.rst, "Device controller").

use std::io;
use std::os::fd::BorrowedFd;

use super::bpf::{self, Hook, Instruction};

/// Character devices, by major and minor number, that every container has (OCI runtime spec, "Default Devices"): null, zero, full, random,
/// urandom, tty, ptmx, and all pseudo terminals.
const ALLOWED: [(i32, Option<i32>); 8] =
    [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];

/// BPF_PROG_TYPE_CGROUP_DEVICE and BPF_CGROUP_DEVICE.
const HOOK: Hook = Hook { program: 15, attach: 6 };

/// `BPF_DEVCG_ACC_MKNOD` and `BPF_DEVCG_DEV_CHAR`.
const ACCESS_MKNOD: i32 = 1;
const TYPE_CHAR: i32 = 2;

/// Lets the processes of this cgroup open nothing but the standard devices. Making nodes stays allowed: a node that cannot be opened is
/// harmless, and Docker allows it.
///
/// # Errors
/// `EPERM` without CAP_BPF, `EINVAL` on a kernel without CONFIG_CGROUP_BPF.
pub fn allow_standard_only(cgroup: BorrowedFd<'_>) -> io::Result<()> {
    bpf::attach(cgroup, HOOK, &program())
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
