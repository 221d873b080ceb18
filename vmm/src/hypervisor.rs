//! /dev/kvm: opened, judged, and asked what it can do.

use std::io;
use std::path::Path;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use memory::GuestRam;

/// The only version of the KVM API that was ever stable (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;
/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";

/// What this machine cannot do without, with the word an operator can search for.
const REQUIRED: [(Cap, &str); 9] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
];

/// Why this host cannot run guests.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no /dev/kvm.
    #[error(
        "/dev/kvm does not exist: the kernel has no KVM or it is not loaded; enable virtualisation \
         in the firmware (or nested virtualisation in the outer hypervisor), then load kvm_intel or \
         kvm_amd"
    )]
    NoDevice,
    /// There is a /dev/kvm, but no driver answers behind it.
    #[error(
        "/dev/kvm is there but no KVM is behind it ({0}): load kvm_intel or kvm_amd; in a container, \
         the node must be the host's, and the host must have KVM"
    )]
    NoDriver(io::Error),
    /// No permission.
    #[error(
        "/dev/kvm cannot be opened: permission denied; run as a member of the group that owns it \
         (usually kvm)"
    )]
    NoPermission,
    /// Another error.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(io::Error),
    /// The device has no CPU behind it.
    #[error(
        "/dev/kvm is there but no hardware virtualisation is behind it ({0}); enable it in the \
         firmware or the outer hypervisor"
    )]
    NoHardware(io::Error),
    /// Another API.
    #[error("/dev/kvm speaks API version {found}; version 12 is needed")]
    Version {
        /// What it speaks.
        found: i32,
    },
    /// A capability is missing.
    #[error("this host's KVM lacks {name}; a newer kernel is needed")]
    Capability {
        /// Its name.
        name: &'static str,
    },
    /// An ioctl failed.
    #[error("KVM refused {what}: {source}")]
    Ioctl {
        /// What was asked.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// Turns KVM's errors into ours.
pub fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> HostError {
    move |e| HostError::Ioctl {
        what,
        source: io::Error::from_raw_os_error(e.errno()),
    }
}

/// Why /dev/kvm, which is there, does not open.
fn not_opened(errno: i32) -> HostError {
    let error = io::Error::from_raw_os_error(errno);
    match errno {
        libc::EACCES | libc::EPERM => HostError::NoPermission,
        libc::ENODEV | libc::ENXIO => HostError::NoDriver(error),
        _ => HostError::Open(error),
    }
}

/// An open /dev/kvm that can do what Vitrine needs.
pub struct Hypervisor {
    /// The device.
    pub kvm: Kvm,
}

impl Hypervisor {
    /// Opens and judges /dev/kvm.
    ///
    /// # Errors
    /// [`HostError`], with the remedy.
    pub fn open() -> Result<Self, HostError> {
        if !Path::new(DEVICE).exists() {
            return Err(HostError::NoDevice);
        }
        let kvm = Kvm::new().map_err(|error| not_opened(error.errno()))?;
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(HostError::Version { found });
        }
        for (cap, name) in REQUIRED {
            if !kvm.check_extension(cap) {
                return Err(HostError::Capability { name });
            }
        }
        Ok(Hypervisor { kvm })
    }

    /// Makes an empty VM.
    ///
    /// # Errors
    /// [`HostError::NoHardware`] when the CPU (or an outer hypervisor) does not offer
    /// virtualisation.
    pub fn create_vm(&self) -> Result<VmFd, HostError> {
        loop {
            match self.kvm.create_vm() {
                Ok(vm) => return Ok(vm),
                // KVM gives up creating a VM when a signal arrives meanwhile.
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) if matches!(e.errno(), libc::EOPNOTSUPP | libc::ENODEV | libc::EIO) => {
                    return Err(HostError::NoHardware(io::Error::from_raw_os_error(
                        e.errno(),
                    )));
                }
                Err(e) => return Err(refused("KVM_CREATE_VM")(e)),
            }
        }
    }

    /// The CPUID that KVM can give guests on this host.
    ///
    /// # Errors
    /// [`HostError::Ioctl`].
    pub fn supported_cpuid(&self) -> Result<CpuId, HostError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("KVM_GET_SUPPORTED_CPUID"))
    }

    /// Whether a guest needs a PIT: only where it has neither kvm-clock nor TSC deadline timers to
    /// keep time by.
    pub fn needs_pit(&self) -> bool {
        !(self.kvm.check_extension(Cap::TscDeadlineTimer)
            || self.kvm.check_extension(Cap::AdjustClock))
    }
}

/// Gives `ram` to the guest. Whoever calls this keeps `ram` longer than `vm`: their fields stand in
/// that order.
///
/// # Errors
/// [`HostError::Ioctl`].
#[allow(unsafe_code)]
pub fn give_memory(vm: &VmFd, ram: &GuestRam) -> Result<(), HostError> {
    for (slot, (guest, bytes, host)) in (0u32..).zip(memory::backing::host_ranges(ram)) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: guest,
            memory_size: bytes,
            userspace_addr: host,
        };
        // SAFETY: the range is a live mapping of guest memory, which the caller keeps longer than
        // the VM descriptor; slots do not overlap.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_kvm_is_not_called_absent() {
        for errno in [libc::ENODEV, libc::ENXIO] {
            let text = not_opened(errno).to_string();
            assert!(
                text.contains("/dev/kvm is there but no KVM is behind it"),
                "{text}"
            );
            assert!(text.contains("load kvm_intel or kvm_amd"), "{text}");
        }
        assert!(matches!(not_opened(libc::EACCES), HostError::NoPermission));
        assert!(matches!(not_opened(libc::EMFILE), HostError::Open(_)));
    }
}
