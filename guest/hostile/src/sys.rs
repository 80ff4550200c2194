//! What only a processor can do: memory by address, ports, its registers, faults and interrupts.
//!
//! The program owns the whole machine: there is no memory of others that it could harm, and on a host none of this is ever called.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::entry::TRAMPOLINE;

/// Memory that no part of the program is in: page tables and the table of vectors, rings, and what requests carry.
pub(crate) const TABLES: u64 = 0x200_0000;
/// Rings, 64 KiB for each queue.
pub(crate) const RINGS: u64 = 0x210_0000;
/// Buffers.
pub(crate) const DATA: u64 = 0x220_0000;
/// Stack of the second processor, to its end.
const SECOND_STACK: u64 = 0x21f_f000;

const VECTORS: u64 = TABLES;
const FIRST_TABLE: u64 = TABLES + 0x2000;
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

unsafe extern "C" {
    static hostile_stubs: u8;
    static hostile_second: u8;
    static hostile_second_end: u8;
    static hostile_faults: AtomicU64;
    static hostile_interrupts: AtomicU64;
}

/// Reads memory.
pub(crate) fn peek<T: Copy>(addr: u64) -> T {
    // SAFETY: the first 4 GiB are mapped one to one, and the program owns the machine.
    unsafe { (addr as *const T).read_volatile() }
}

/// Writes memory.
pub(crate) fn poke<T: Copy>(addr: u64, value: T) {
    // SAFETY: as for `peek`; callers name rings, buffers and registers, never the program itself.
    unsafe { (addr as *mut T).write_volatile(value) }
}

/// Fills memory with a byte.
pub(crate) fn fill(addr: u64, byte: u8, count: u64) {
    // SAFETY: as for `poke`.
    unsafe { asm!("rep stosb", inout("rdi") addr => _, inout("rcx") count => _, in("al") byte, options(nostack)) }
}

/// Copies bytes into memory.
pub(crate) fn put(addr: u64, bytes: &[u8]) {
    (addr..).zip(bytes).for_each(|(at, byte)| poke(at, *byte));
}

macro_rules! ports {
    ($($out:ident $in:ident $type:ty, $register:tt;)*) => {$(
        /// Writes a port.
        pub(crate) fn $out(port: u16, value: $type) {
            // SAFETY: no device of the machine writes to memory of the program because of a port.
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nostack)) }
        }

        /// Reads a port.
        pub(crate) fn $in(port: u16) -> $type {
            let value;
            // SAFETY: as above.
            unsafe { asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nostack)) }
            value
        }
    )*};
}

ports! {
    out8 in8 u8, "al";
    out16 in16 u16, "ax";
    out32 in32 u32, "eax";
}

/// Writes so many bytes to one port.
pub(crate) fn out_many(port: u16, from: u64, count: u64) {
    // SAFETY: only reads memory.
    unsafe { asm!("rep outsb", in("dx") port, inout("rsi") from => _, inout("rcx") count => _, options(nostack)) }
}

/// Reads so many bytes from one port.
pub(crate) fn in_many(port: u16, to: u64, count: u64) {
    // SAFETY: callers name buffers.
    unsafe { asm!("rep insb", in("dx") port, inout("rdi") to => _, inout("rcx") count => _, options(nostack)) }
}

/// CPUID.
pub(crate) fn cpuid(leaf: u32, index: u32) -> CpuidResult {
    __cpuid_count(leaf, index)
}

/// The time stamp.
pub(crate) fn ticks() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Waits a moment.
pub(crate) fn pause() {
    core::hint::spin_loop();
}

/// Waits for a moment that is long for a processor.
pub(crate) fn wait(turns: u32) {
    (0..turns).for_each(|_| pause());
}

fn faults() -> u64 {
    // SAFETY: an aligned word that only the fault handler writes.
    unsafe { hostile_faults.load(Ordering::SeqCst) }
}

/// Interrupts so far.
pub(crate) fn interrupts() -> u64 {
    // SAFETY: an aligned word that only the handler writes.
    unsafe { hostile_interrupts.load(Ordering::SeqCst) }
}

/// Reads a model-specific register; `None` if that faults.
pub(crate) fn read_msr(register: u32) -> Option<u64> {
    let before = faults();
    let (low, high): (u32, u32);
    // SAFETY: a fault goes on behind the instruction.
    unsafe {
        asm!(
            "lea rax, [rip + 2f]", "mov [rip + hostile_resume], rax", "rdmsr",
            "2:", "mov qword ptr [rip + hostile_resume], 0",
            in("ecx") register, out("eax") low, out("edx") high,
        );
    }
    (faults() == before).then_some(u64::from(high) << 32 | u64::from(low))
}

/// Writes a model-specific register. False if that faults. Callers leave out those without which the program cannot go on.
pub(crate) fn write_msr(register: u32, value: u64) -> bool {
    let before = faults();
    // SAFETY: a fault goes on behind the instruction.
    unsafe {
        asm!(
            "lea rsi, [rip + 2f]", "mov [rip + hostile_resume], rsi", "wrmsr",
            "2:", "mov qword ptr [rip + hostile_resume], 0",
            in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, out("rsi") _,
        );
    }
    faults() == before
}

/// Calls this address as a function, whatever is there. True if it came back or faulted where that is caught.
pub(crate) fn jump(addr: u64) {
    // SAFETY: where it leads is the point; the machine ends, or a fault goes on behind the call.
    unsafe {
        asm!(
            "mov r12, rsp", "lea rax, [rip + 2f]", "mov [rip + hostile_resume], rax", "call {addr}",
            "2:", "mov rsp, r12", "mov qword ptr [rip + hostile_resume], 0",
            addr = in(reg) addr, out("rax") _, out("r12") _, clobber_abi("C"),
        );
    }
}

/// `asm!` cannot name RBX, which the compiler keeps for itself.
macro_rules! instructions {
    ($($name:ident $about:literal: $($code:literal),+;)*) => {$(
        #[doc = $about]
        pub(crate) fn $name() -> bool {
            let before = faults();
            // SAFETY: a fault goes on behind the instruction; no memory of the program is written.
            unsafe {
                asm!(
                    "push rbx", "mov r12, rsp", "lea rax, [rip + 2f]", "mov [rip + hostile_resume], rax", $($code,)+
                    "2:", "mov qword ptr [rip + hostile_resume], 0", "mov rsp, r12", "pop rbx",
                    out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r12") _, out("xmm0") _,
                );
            }
            faults() == before
        }
    )*};
}

instructions! {
    undefined "UD2.": "ud2";
    breakpoint "INT3.": "int3";
    divide_by_zero "A division by zero.": "xor ecx, ecx", "div ecx";
    vmcall "A hypercall of KVM on Intel, with a number that it does not know.": "mov eax, 0x7fff", "vmcall";
    vmmcall "A hypercall of KVM on AMD, with a number that it does not know.": "mov eax, 0x7fff", "vmmcall";
    vmrun "A guest of the guest.": "mov eax, 0x1000", "vmrun";
    vmxon "A guest of the guest, on Intel.": "vmxon [rip]";
    monitor_wait "MONITOR and MWAIT.": "lea rax, [rip]", "xor ecx, ecx", "xor edx, edx", "monitor", "mwait";
    read_counter "A performance counter.": "mov ecx, 0x40000000", "rdpmc";
    extended_state "XSETBV with every bit.": "xor ecx, ecx", "mov eax, -1", "mov edx, -1", "xsetbv";
    write_back "WBINVD.": "wbinvd";
    leave_smm "RSM outside of SMM.": "rsm";
    far_call "A far call through a descriptor that is not there.": "push 0x7f8", "push 0", "retfq";
    control_0 "CR0 with paging and without protection.": "mov eax, 0x80000000", "mov cr0, rax";
    control_4 "CR4 with every bit.": "mov rax, -1", "mov cr4, rax";
    control_8 "CR8 with every bit.": "mov rax, -1", "mov cr8, rax";
    control_8_clear "CR8 as it was.": "xor eax, eax", "mov cr8, rax";
    debug_7 "DR7 with every bit.": "mov rax, -1", "mov dr7, rax";
    task_register "A task that is not there.": "mov eax, 0x50", "ltr ax";
    local_table "A local table that is not there.": "mov eax, 0x50", "lldt ax";
    touch_unmapped "An address that no table maps.": "mov rax, 0x700000000000", "mov rax, [rax]";
    touch_odd "An address that can be none.": "mov rax, 0x7070707070707070", "mov rax, [rax]";
    sleep_once "Interrupts on, HLT until one comes.": "sti", "hlt", "cli";
    wide_device "Sixteen bytes from a device at once.": "mov eax, 0xd0000000", "movups xmm0, [rax]", "movups [rax + 0x100], xmm0";
    locked_device "A locked addition to a device's register.": "mov eax, 0xd0000000", "lock add dword ptr [rax + 0x70], 64";
    exchange_device "An exchange with a device's register.": "mov eax, 0xd0000000", "mov ecx, -1", "xchg dword ptr [rax + 0x50], ecx";
    compare_device "A comparison of sixteen bytes with a device.": "mov ecx, 0xd0000000", "mov rdi, rcx", "cmpxchg16b [rdi]";
    string_device "A string from a device into the device.": "mov esi, 0xd0000000", "mov edi, 0xd0000100", "mov ecx, 64", "rep movsd";
    port_string_to_device "A string from a port into a device.": "mov edx, 0x3f8", "mov edi, 0xd0000100", "mov ecx, 16", "rep insb";
    device_to_port_string "A string from a device to a port.": "mov edx, 0x80", "mov esi, 0xd0000000", "mov ecx, 16", "rep outsd";
}

/// Makes faults and interrupts come back, and maps the first 4 GiB one to one.
pub(crate) fn prepare() {
    let stubs = &raw const hostile_stubs as u64;
    for vector in 0..256_u64 {
        let to = stubs + vector * 16;
        // An interrupt gate in the boot protocol's code segment (Intel SDM volume 3, 6.14.1).
        let low = (to & 0xffff) | 0x10 << 16 | 0x8e00 << 32 | (to >> 16 & 0xffff) << 48;
        poke(VECTORS + vector * 16, low);
        poke(VECTORS + vector * 16 + 8, to >> 32);
    }
    load_vectors(0xfff);
    fill(FIRST_TABLE, 0, 6 * 0x1000);
    poke(FIRST_TABLE, (FIRST_TABLE + 0x1000) | PRESENT_WRITABLE);
    for gib in 0..4_u64 {
        let table = FIRST_TABLE + 0x2000 + gib * 0x1000;
        poke(FIRST_TABLE + 0x1000 + gib * 8, table | PRESENT_WRITABLE);
        map(table, gib << 30);
    }
    // SAFETY: the tables map what the loader's do, and more.
    unsafe { asm!("mov cr3, {}", in(reg) FIRST_TABLE, options(nostack)) }
}

/// Fills a table of 2 MiB pages with the GiB from here.
fn map(table: u64, from: u64) {
    (0..512_u64).for_each(|n| poke(table + n * 8, (from + (n << 21)) | PRESENT_WRITABLE | LARGE));
}

/// Maps the GiB from this physical address at 4 GiB.
pub(crate) fn map_above(physical: u64) {
    let table = FIRST_TABLE + 0x6000;
    map(table, physical);
    poke(FIRST_TABLE + 0x1000 + 4 * 8, table | PRESENT_WRITABLE);
    // SAFETY: flushes what was known of the tables.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack)) }
}

/// Where [`map_above`] maps.
pub(crate) const ABOVE: u64 = 4 << 30;

/// The vectors with this limit. With 0 the next fault is the machine's end.
pub(crate) fn load_vectors(limit: u16) {
    let mut pointer = [0_u8; 10];
    pointer[..2].copy_from_slice(&limit.to_le_bytes());
    pointer[2..].copy_from_slice(&VECTORS.to_le_bytes());
    // SAFETY: the table is in its place.
    unsafe { asm!("lidt [{}]", in(reg) pointer.as_ptr(), options(nostack)) }
}

/// Page tables that map nothing.
pub(crate) fn lose_tables(at: u64) {
    // SAFETY: the end of the machine, which is the point.
    unsafe { asm!("mov cr3, {}", in(reg) at) }
}

/// A stack where nothing is, and then a fault.
pub(crate) fn lose_stack(at: u64) {
    // SAFETY: the end of the machine, which is the point.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) at) }
}

/// Starts the second processor's first instructions at its trampoline, which call this function.
pub(crate) fn place_second(function: extern "C" fn() -> !) -> u8 {
    let (begin, end) = (&raw const hostile_second as u64, &raw const hostile_second_end as u64);
    for at in 0..end - begin {
        poke(TRAMPOLINE + at, peek::<u8>(begin + at));
    }
    let last = TRAMPOLINE + (end - begin);
    poke(last - 24, FIRST_TABLE);
    poke(last - 16, SECOND_STACK);
    poke(last - 8, function as *const () as u64);
    (TRAMPOLINE >> 12) as u8
}

/// Halts for good: no interrupt goes on.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: nothing happens any more.
        unsafe { asm!("cli", "hlt") }
    }
}

/// A fault that nobody expected.
#[unsafe(no_mangle)]
extern "C" fn hostile_fault(vector: u64, at: u64) -> ! {
    crate::report::say("FAULT ");
    crate::report::say_number(vector);
    crate::report::say(" at ");
    crate::report::say_number(at);
    crate::report::say("\n");
    halt()
}

/// What the compiler expects of a C library.
#[cfg(feature = "program")]
mod library {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    extern "C" fn memcpy(to: u64, from: u64, count: u64) -> u64 {
        // SAFETY: the caller's.
        unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count => _) }
        to
    }

    #[unsafe(no_mangle)]
    extern "C" fn memmove(to: u64, from: u64, count: u64) -> u64 {
        if to <= from {
            return memcpy(to, from, count);
        }
        let last = count.wrapping_sub(1);
        let (to_last, from_last) = (to.wrapping_add(last), from.wrapping_add(last));
        // SAFETY: the caller's.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rdi") to_last => _, inout("rsi") from_last => _, inout("rcx") count => _);
        }
        to
    }

    #[unsafe(no_mangle)]
    extern "C" fn memset(to: u64, byte: u32, count: u64) -> u64 {
        super::fill(to, byte as u8, count);
        to
    }

    #[unsafe(no_mangle)]
    extern "C" fn memcmp(a: u64, b: u64, count: u64) -> i32 {
        for at in 0..count {
            let (left, right): (u8, u8) = (super::peek(a + at), super::peek(b + at));
            if left != right {
                return i32::from(left) - i32::from(right);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    extern "C" fn bcmp(a: u64, b: u64, count: u64) -> i32 {
        memcmp(a, b, count)
    }

    /// Named by the tables for unwinding in the compiled core library, and never called: a panic ends the program.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}
}
