//! What `/dev/kvm` is worth, found by running a guest of a few instructions.
//!
//! A device that opens and makes machines may still interpret a guest's ring 0 in software, a thousand times slower than hardware, and give
//! up at instructions that it does not know. Only a guest that computes there can tell.

use std::io;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};

use super::facts::has_flag;
use crate::sys::kvm_page;

/// Below this many instructions a second at ring 0, KVM is software. Interpreters reach about a million, hardware a thousand million and an
/// emulated machine's KVM (the lab's) a hundred million: the line has room on both sides for a host that is busy.
const LEAST_RATE: u64 = 20_000_000;

/// What KVM is on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum KvmFinding {
    /// Real: guests run on the processor.
    Hardware {
        /// Instructions a second that the probe guest did.
        instructions_per_second: u64,
    },
    /// The host interprets guests: no ordinary kernel boots.
    Software {
        /// Instructions a second that the probe guest did.
        instructions_per_second: u64,
        /// The instruction at which interpretation stopped, if it did.
        stopped_at: Option<String>,
    },
    /// The device is there, and this user may not open it.
    NoPermission,
    /// There is no device.
    Absent {
        /// The processor has the extensions: a module or a setting is missing, not the ability.
        capable: bool,
    },
    /// The device is there and does not work.
    Broken {
        /// Why.
        why: String,
    },
}

impl KvmFinding {
    /// MicroVMs can run here.
    pub fn is_usable(&self) -> bool {
        matches!(self, Self::Hardware { .. })
    }

    /// The finding in a few words.
    pub fn words(&self) -> String {
        match self {
            Self::Hardware { instructions_per_second } => format!("hardware, {}", rate(*instructions_per_second)),
            Self::Software { instructions_per_second, stopped_at } => {
                let stop = stopped_at.as_ref().map(|s| format!(", stops at {s}")).unwrap_or_default();
                format!("software, {}{stop}", rate(*instructions_per_second))
            }
            Self::NoPermission => "no permission on /dev/kvm".to_owned(),
            Self::Absent { capable: true } => "no /dev/kvm, though the processor could".to_owned(),
            Self::Absent { capable: false } => "no /dev/kvm".to_owned(),
            Self::Broken { why } => format!("/dev/kvm does not work: {why}"),
        }
    }

    /// What a person can do about it.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Hardware { .. } => None,
            Self::NoPermission => Some("sudo usermod -aG kvm \"$USER\", then log in again"),
            Self::Absent { capable: true } => {
                Some("sudo modprobe kvm_intel (or kvm_amd); if that fails, switch virtualisation on in the firmware")
            }
            Self::Absent { capable: false } | Self::Software { .. } => {
                Some("on a virtual machine, ask its host for nested virtualisation; until then Duplex works in its lab")
            }
            Self::Broken { .. } => Some("look into dmesg; until then Duplex works in its lab"),
        }
    }
}

fn rate(per_second: u64) -> String {
    format!("{} M instructions/s", per_second.div_ceil(1_000_000))
}

/// Tries KVM: some milliseconds where it is hardware, up to 100 where it is not.
pub fn kvm() -> KvmFinding {
    match Kvm::new() {
        Ok(kvm) => probe(&kvm).unwrap_or_else(|e| KvmFinding::Broken { why: e.to_string() }),
        Err(e) => not_open(&e.into(), &std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
    }
}

/// `/dev/kvm` is there and this user may not open it: what can be asked before every run.
pub fn kvm_is_forbidden() -> bool {
    let opened = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    opened.is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

fn not_open(error: &io::Error, cpuinfo: &str) -> KvmFinding {
    match error.kind() {
        io::ErrorKind::PermissionDenied => KvmFinding::NoPermission,
        // ENODEV: the node is there, no driver answers.
        _ if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
            KvmFinding::Absent { capable: has_flag(cpuinfo, "vmx") || has_flag(cpuinfo, "svm") }
        }
        _ => KvmFinding::Broken { why: error.to_string() },
    }
}

// Where things are in the guest's memory.
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const SCRATCH: u64 = 0x4000;
const CODE: usize = 0x8000;

/// Port that the guest writes to when it is done.
const DONE: u16 = 0x10;

/// Instructions in one turn of the loop.
const IN_LOOP: u64 = 8;

/// `rcx` turns of loads, arithmetic and stores at `rbx`.
const LOOP: &[u8] = &[
    0x48, 0x8b, 0x03, // mov rax, [rbx]
    0x48, 0x01, 0xc8, // add rax, rcx
    0x48, 0xc1, 0xc0, 0x07, // rol rax, 7
    0x48, 0x31, 0xd0, // xor rax, rdx
    0x48, 0x8d, 0x14, 0x02, // lea rdx, [rdx + rax]
    0x48, 0x89, 0x03, // mov [rbx], rax
    0x48, 0xff, 0xc9, // dec rcx
    0x75, 0xe7, // jnz to the first
    0xe6, 0x10, // out DONE, al
];

/// Instructions that every kernel uses and interpreters are known to lack.
const HARD: [(&str, &[u8]); 2] = [
    ("popcnt", &[0xf3, 0x48, 0x0f, 0xb8, 0xc1, 0xe6, 0x10]), // popcnt rax, rcx; out DONE, al
    ("cmpxchg16b", &[0x48, 0x0f, 0xc7, 0x0b, 0xe6, 0x10]),   // cmpxchg16b [rbx]; out DONE, al
];

fn probe(kvm: &Kvm) -> Result<KvmFinding, ProbeError> {
    let (mut vcpu, starts) = machine(kvm)?;
    let mut best = 0;
    let mut turns: u64 = 256;
    let began = Instant::now();
    loop {
        let took = run(&mut vcpu, starts[0], turns)?.ok_or(ProbeError::Loop)?;
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        best = best.max(turns.saturating_mul(IN_LOOP).saturating_mul(1_000_000_000) / nanoseconds);
        // Short turns measure the way in and out, not the loop; and the first ones fault the guest's memory in.
        let enough = if best >= LEAST_RATE {
            took > Duration::from_millis(1)
        } else {
            turns >= 1 << 12 && began.elapsed() > Duration::from_millis(30)
        };
        if enough || turns > 1 << 22 {
            break;
        }
        turns *= 4;
    }
    let mut stopped_at = None;
    for (start, (name, _)) in starts[1..].iter().zip(HARD) {
        if run(&mut vcpu, *start, 1)?.is_none() {
            stopped_at = Some(name.to_owned());
            break;
        }
    }
    Ok(if best >= LEAST_RATE && stopped_at.is_none() {
        KvmFinding::Hardware { instructions_per_second: best }
    } else {
        KvmFinding::Software { instructions_per_second: best, stopped_at }
    })
}

#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("its API is version {0}, not 12")]
    Version(i32),
    #[error("the probe guest stopped in a plain loop")]
    Loop,
    #[error("{0}")]
    Kvm(#[from] kvm_ioctls::Error),
    #[error("{0}")]
    Memory(#[from] io::Error),
}

/// A machine with one processor in 64-bit mode at ring 0, and where its programs start.
fn machine(kvm: &Kvm) -> Result<(VcpuFd, Vec<u64>), ProbeError> {
    match kvm.get_api_version() {
        12 => {}
        other => return Err(ProbeError::Version(other)),
    }
    let vm = kvm.create_vm()?;
    let (content, starts) = content();
    kvm_page::give(&vm, &content)?;
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut sregs = vcpu.get_sregs()?;
    let code =
        kvm_segment { limit: u32::MAX, selector: 8, type_: 11, present: 1, s: 1, l: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: 16, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr3 = PML4 as u64;
    // PE, ET, NE, PG; PAE; LME, LMA.
    (sregs.cr0, sregs.cr4, sregs.efer) = (0x8000_0031, 0x20, 0x500);
    vcpu.set_sregs(&sregs)?;
    Ok((vcpu, starts))
}

/// Page tables that map the first 2 MiB to themselves, and the programs.
fn content() -> (Vec<u8>, Vec<u64>) {
    let mut bytes = vec![0; kvm_page::PROBE_BYTES];
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    // Present and writable; PD's entry is a 2 MiB page.
    put(PML4, &(PDPT as u64 | 3).to_le_bytes());
    put(PDPT, &(PD as u64 | 3).to_le_bytes());
    put(PD, &0x83_u64.to_le_bytes());
    let programs = std::iter::once(LOOP).chain(HARD.map(|(_, code)| code));
    let starts = programs.enumerate().map(|(n, code)| {
        let at = CODE + n * 0x100;
        put(at, code);
        at as u64
    });
    let starts = starts.collect();
    (bytes, starts)
}

/// Runs the program at `start` to its end and says how long it took; `None` if the processor stopped on the way.
fn run(vcpu: &mut VcpuFd, start: u64, rcx: u64) -> Result<Option<Duration>, ProbeError> {
    vcpu.set_regs(&kvm_regs { rip: start, rcx, rbx: SCRATCH, rflags: 2, ..Default::default() })?;
    let began = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(DONE, _)) => return Ok(Some(began.elapsed())),
            Ok(_) => return Ok(None),
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {}
            Err(_) => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_permission_is_not_absence() {
        let error = |errno| io::Error::from_raw_os_error(errno);
        assert_eq!(not_open(&error(libc::EACCES), ""), KvmFinding::NoPermission);
        assert_eq!(not_open(&error(libc::ENOENT), "flags\t: fpu vme"), KvmFinding::Absent { capable: false });
        assert_eq!(not_open(&error(libc::ENODEV), "x\nflags\t\t: fpu svm lm\n"), KvmFinding::Absent { capable: true });
        assert!(matches!(not_open(&error(libc::EMFILE), ""), KvmFinding::Broken { .. }));
    }

    #[test]
    fn every_finding_that_is_not_usable_has_a_mend() {
        for finding in [
            KvmFinding::Software { instructions_per_second: 1_000_000, stopped_at: Some("popcnt".to_owned()) },
            KvmFinding::NoPermission,
            KvmFinding::Absent { capable: false },
            KvmFinding::Absent { capable: true },
            KvmFinding::Broken { why: "x".to_owned() },
        ] {
            assert!(!finding.is_usable() && finding.mend().is_some(), "{finding:?}");
        }
        let software = KvmFinding::Software { instructions_per_second: 950_000, stopped_at: Some("popcnt".to_owned()) };
        assert_eq!(software.words(), "software, 1 M instructions/s, stops at popcnt");
    }

    /// Whatever this machine has, the probe comes to a verdict, and soon.
    #[test]
    fn the_probe_ends() {
        let finding = kvm();
        println!("{finding:?}");
        assert!(!finding.words().is_empty());
    }

    #[test]
    fn the_programs_lie_apart_and_the_loop_jumps_to_its_start() {
        let (bytes, starts) = content();
        assert_eq!(starts.len(), 1 + HARD.len());
        assert!(LOOP.len() <= 0x100);
        let jump = LOOP.iter().position(|b| *b == 0x75).unwrap();
        assert_eq!(jump + 2, 256 - usize::from(LOOP[jump + 1]));
        assert_eq!(&bytes[CODE..CODE + LOOP.len()], LOOP);
    }
}
