//! One virtual processor: run it, and get it out of the guest from another thread.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering, compiler_fence};
use std::thread::JoinHandle;

use kvm_bindings::{CpuId, KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::registers::{BootState, set_boot_state};
use super::state::{self, VcpuState};
use super::{KvmError, refused};

// kvm-ioctls has no call for it yet (KVM API, 4.143).
ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

thread_local! {
    /// The `immediate_exit` byte of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

/// Why a processor left the guest, as far as the monitor acts on it.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest wrote to an I/O port.
    Out(u16, &'a [u8]),
    /// The guest reads an I/O port; the bytes are the answer.
    In(u16, &'a mut [u8]),
    /// The guest wrote to a device's memory.
    Write(u64, &'a [u8]),
    /// The guest reads a device's memory; the bytes are the answer.
    Read(u64, &'a mut [u8]),
    /// A signal arrived: somebody wants this processor's thread.
    Interrupted,
    /// Triple fault.
    Shutdown,
    /// KVM gave up; in words.
    Fault(String),
}

/// A processor. Runs on the thread that holds it.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    cpuid: CpuId,
    /// Model-specific registers as they were at first, for one that will be saved.
    fresh: Vec<(u32, u64)>,
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, cpuid: CpuId) -> Self {
        Self { fd, cpuid, fresh: Vec::new() }
    }

    /// Notes what will not need to be saved ([`Bound::save`]). Call it before the processor runs.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn expect_saving(&mut self, msrs: &[u32]) -> Result<(), KvmError> {
        self.fresh = state::read_msrs(&self.fd, msrs)?;
        Ok(())
    }

    /// Puts a state into a processor that has just been made. The machine's memory must be in its place.
    ///
    /// # Errors
    /// [`KvmError::OtherProcessor`] if this one's features are others, or [`KvmError::Refused`].
    pub fn restore(&mut self, state: &VcpuState) -> Result<(), KvmError> {
        state::restore(&self.fd, self.cpuid.as_slice(), state)?;
        state.fresh().clone_into(&mut self.fresh);
        Ok(())
    }

    /// Sets the registers with which the kernel's 64-bit entry is called. Only for the boot processor: the others wait for its call.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn prepare_boot(&self, state: &BootState) -> Result<(), KvmError> {
        set_boot_state(&self.fd, state).map_err(refused("set the boot processor's registers"))
    }

    /// Maps guest memory `[addr, addr + len)` into the machine before the guest touches it, one call instead of an exit for each page.
    /// Whatever KVM cannot map now it maps at the first touch, so that a KVM without this call (before Linux 6.11) only costs time.
    pub fn map_ahead(&self, addr: u64, len: u64) {
        let mut range = kvm_pre_fault_memory { gpa: addr, size: len, ..Default::default() };
        while range.size > 0 {
            // SAFETY: the structure is the call's own and outlives it; KVM checks the range and reads and writes nothing of ours beside it.
            let done = unsafe { ioctl_with_mut_ref(&self.fd, KVM_PRE_FAULT_MEMORY(), &mut range) };
            let interrupted = || matches!(io::Error::last_os_error().raw_os_error(), Some(libc::EINTR | libc::EAGAIN));
            if done != 0 && !interrupted() {
                return;
            }
        }
    }

    /// Makes this thread the processor's own: a [`Kicker`]'s signal from now on takes it out of the guest, even if it arrives just before
    /// [`Bound::run`]. Undone when the returned guard is dropped.
    pub fn bind(&mut self) -> Bound<'_> {
        let byte = &raw const self.fd.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.set(byte.cast::<AtomicU8>());
        compiler_fence(Ordering::SeqCst);
        Bound { vcpu: self }
    }
}

/// A processor bound to this thread.
#[derive(Debug)]
pub struct Bound<'a> {
    vcpu: &'a mut Vcpu,
}

impl Bound<'_> {
    /// Runs the guest until something needs the monitor.
    pub fn run(&mut self) -> Exit<'_> {
        match self.vcpu.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => Exit::Out(port, data),
            Ok(VcpuExit::IoIn(port, data)) => Exit::In(port, data),
            Ok(VcpuExit::MmioWrite(addr, data)) => Exit::Write(addr, data),
            Ok(VcpuExit::MmioRead(addr, data)) => Exit::Read(addr, data),
            Ok(VcpuExit::Shutdown) => Exit::Shutdown,
            Ok(VcpuExit::Intr) => interrupted(),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                Exit::Fault(format!("the processor refused to enter the guest (reason {reason:#x})"))
            }
            Ok(VcpuExit::InternalError) => {
                Exit::Fault("KVM met an instruction it cannot emulate (internal error)".to_owned())
            }
            Ok(other) => Exit::Fault(format!("unexpected exit {other:?}")),
            Err(e) => match io::Error::from(e) {
                e if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => interrupted(),
                e => Exit::Fault(format!("KVM_RUN failed: {e}")),
            },
        }
    }
}

impl Bound<'_> {
    /// The processor's state. The answer to its last exit is taken in first: KVM ends an instruction of port or device access when it is called the
    /// next time (KVM API, 5, `immediate_exit`).
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn save(&mut self) -> Result<VcpuState, KvmError> {
        self.vcpu.fd.set_kvm_immediate_exit(1);
        let ended = self.vcpu.fd.run().map(drop);
        self.vcpu.fd.set_kvm_immediate_exit(0);
        match ended.map_err(io::Error::from) {
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            Ok(()) => return Err(refused("end an instruction")(kvm_ioctls::Error::new(libc::EBUSY))),
            Err(source) => return Err(KvmError::Refused { what: "end an instruction", source }),
        }
        state::save(&self.vcpu.fd, self.vcpu.cpuid.as_slice(), &self.vcpu.fresh)
    }

    /// Tells the guest's kernel that it has been stopped for a while: its watchdogs then do not take the gap for a hang (KVM API, 4.70,
    /// KVM_KVMCLOCK_CTRL). A guest that does not use KVM's clock need not be told.
    pub fn was_stopped(&self) {
        let _ = self.vcpu.fd.kvmclock_ctrl();
    }
}

/// A kick is heard: the next run enters the guest, unless there is another kick.
fn interrupted() -> Exit<'static> {
    let byte = IMMEDIATE_EXIT.get();
    if !byte.is_null() {
        // SAFETY: set by `Vcpu::bind` on this very thread to a byte of the vCPU's shared page, and cleared before that page can go away.
        unsafe { &*byte }.store(0, Ordering::Relaxed);
    }
    Exit::Interrupted
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null());
    }
}

/// The signal that takes a processor's thread out of the guest: the second real-time signal of the C library's range.
pub fn kick_signal() -> libc::c_int {
    SIGRTMIN() + 1
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let byte = IMMEDIATE_EXIT.get();
    if !byte.is_null() {
        // SAFETY: set by `Vcpu::bind` on this very thread to a byte of the vCPU's shared page, and cleared before that page can go away.
        unsafe { &*byte }.store(1, Ordering::Relaxed);
    }
}

/// Installs the handler of the kick signal for the process. It touches only a thread-local cell without destructor and an atomic.
///
/// # Errors
/// What `sigaction` gave.
pub fn ready_for_kicks() -> io::Result<()> {
    Ok(register_signal_handler(kick_signal(), on_kick)?)
}

/// Takes a processor's thread out of the guest.
#[derive(Debug)]
pub struct Kicker<T>(JoinHandle<T>);

impl<T> Kicker<T> {
    /// For the thread that runs the processor.
    pub fn new(thread: JoinHandle<T>) -> Self {
        Self(thread)
    }

    /// Kicks the thread: the processor leaves the guest once.
    pub fn kick(&self) {
        // Fails only for a thread that has ended already.
        let _ = self.0.kill(kick_signal());
    }

    /// Kicks the thread and waits until it ends. The thread must end by itself after its processor was interrupted.
    ///
    /// # Errors
    /// The thread's panic.
    pub fn end(self) -> std::thread::Result<T> {
        self.kick();
        self.0.join()
    }
}
