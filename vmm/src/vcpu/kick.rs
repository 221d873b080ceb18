//! Kicks: getting a vCPU out of the guest, wherever it is.
//!
//! A signal alone is lost when it lands between two KVM_RUNs. So the kicker first sets
//! `immediate_exit` in the shared kvm_run page through a handle of its own on a duplicated vCPU
//! descriptor, then sends the signal: either KVM_RUN is interrupted, or the next one returns at
//! once (Documentation/virt/kvm/api.rst, 5. "immediate_exit").

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::Once;

use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The second handle on a vCPU.
pub struct Kicker {
    fd: VcpuFd,
}

static HANDLER: Once = Once::new();

/// The signal that interrupts KVM_RUN.
pub fn signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Makes [`signal`] interrupt system calls and do nothing else. Once a process.
pub fn install_handler() {
    HANDLER.call_once(|| {
        if let Err(error) = register_signal_handler(signal(), ignore) {
            tracing::error!("no handler for the vCPU kick signal: {error}; pausing will time out");
        }
    });
}

/// Signals meant for the process are other threads' business: they must not cost the guest exits.
#[allow(unsafe_code)]
pub fn block_other_signals() {
    // SAFETY: the set is initialised by sigfillset before use, and only this thread's mask changes.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut set);
        for kept in [
            signal(),
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
        ] {
            libc::sigdelset(&raw mut set, kept);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

impl Kicker {
    /// A second handle on `vcpu`.
    ///
    /// # Errors
    /// When no descriptor or mapping can be had.
    #[allow(unsafe_code)]
    pub fn new(vm: &VmFd, vcpu: &VcpuFd) -> Result<Self, std::io::Error> {
        // SAFETY: the descriptor is borrowed for this call alone; `vcpu` keeps it open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let duplicate = borrowed.try_clone_to_owned()?;
        // SAFETY: a vCPU descriptor of this VM that nobody else owns; the VcpuFd takes it over.
        let fd = unsafe { vm.create_vcpu_from_rawfd(duplicate.into_raw_fd()) }
            .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))?;
        Ok(Kicker { fd })
    }

    /// The vCPU. What it is asked waits while it runs.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Gets the vCPU whose thread is `tid` of this process out of the guest. A thread that has
    /// ended is not kicked.
    #[allow(unsafe_code)]
    pub fn kick(&mut self, tid: libc::pid_t) {
        self.fd.set_kvm_immediate_exit(1);
        // SAFETY: plain system call; a thread that has ended gives ESRCH. The thread is joined
        // before its id could be reused, because only its handle's owner calls this.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal()) };
    }
}
