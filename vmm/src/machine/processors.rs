//! vCPUs: made, given their registers, and put on threads.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use devices::bus::DEVICE_ROWS;
use kvm_bindings::{CpuId, kvm_lapic_state};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use memory::GuestRam;
use observe::{BlackBox, Block};

use crate::arch::cpuid::{self, Clocks, Topology};
use crate::arch::msr;
use crate::arch::registers::{self, Start};
use crate::boot::BootError;
use crate::driver::Message;
use crate::hypervisor::{HostError, Hypervisor, refused};
use crate::spec::VmSpec;
use crate::vcpu::counters::{EXIT_NAMES, VcpuBlock};
use crate::vcpu::exit::Buses;
use crate::vcpu::kick::Kicker;
use crate::vcpu::{VcpuHandle, VcpuParts};
use crate::vm::LaunchError;

/// Makes all vCPUs, as they are after reset.
///
/// # Errors
/// [`LaunchError::Host`].
pub fn make(hypervisor: &Hypervisor, vm: &VmFd, spec: &VmSpec) -> Result<Vec<VcpuFd>, LaunchError> {
    let supported = hypervisor.supported_cpuid()?;
    let tsc_deadline = hypervisor.kvm.check_extension(Cap::TscDeadlineTimer);
    let mut fds = Vec::new();
    for index in 0..spec.vcpus {
        let fd = vm
            .create_vcpu(u64::from(index))
            .map_err(refused("KVM_CREATE_VCPU"))?;
        let tsc_khz = fd.get_tsc_khz().unwrap_or(0);
        let clocks = Clocks {
            tsc_khz,
            tsc_deadline,
        };
        set_up(&fd, &supported, spec, clocks, index)?;
        fds.push(fd);
    }
    Ok(fds)
}

/// Has the first vCPU begin at `start`; the others wait for their startup IPI.
///
/// # Errors
/// [`LaunchError`] when KVM or guest memory refuses the state.
pub fn begin_at(first: &VcpuFd, ram: &GuestRam, start: Start) -> Result<(), LaunchError> {
    first
        .set_regs(&registers::general(start))
        .map_err(refused("KVM_SET_REGS"))?;
    let reset = first.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    let special = registers::special(ram, start, reset).map_err(BootError::from)?;
    first
        .set_sregs(&special)
        .map_err(refused("KVM_SET_SREGS"))?;
    Ok(())
}

/// Puts each vCPU on a thread of its own, paused.
///
/// # Errors
/// [`LaunchError::Refused`] when the host is out of threads or descriptors.
pub fn spawn(
    vm: &VmFd,
    fds: Vec<VcpuFd>,
    blocks: Vec<Block<VcpuBlock>>,
    buses: &Arc<Buses>,
    inbox: &Sender<Message>,
) -> Result<Vec<VcpuHandle>, LaunchError> {
    let host = |what| move |source| LaunchError::Refused { what, source };
    let mut handles = Vec::new();
    for ((index, fd), block) in (0u8..).zip(fds).zip(blocks) {
        let kicker = Kicker::new(vm, &fd).map_err(host("a second vCPU handle"))?;
        let sender = inbox.clone();
        let parts = VcpuParts {
            index,
            fd,
            run_bytes: vm.run_size(),
            block,
            buses: Arc::clone(buses),
            // The vm thread is gone only when the VM is.
            reports: Box::new(move |report| drop(sender.send(Message::Vcpu(report)))),
        };
        handles.push(VcpuHandle::spawn(parts, kicker).map_err(host("a vCPU thread"))?);
    }
    Ok(handles)
}

/// Places the blocks of all vCPUs.
pub fn blocks(
    black_box: &mut BlackBox,
    vcpus: u8,
    buses: &Buses,
) -> Result<Vec<Block<VcpuBlock>>, LaunchError> {
    let reasons = EXIT_NAMES.map(ToOwned::to_owned);
    let mut devices = vec![String::new(); DEVICE_ROWS];
    buses.pio.name_rows(&mut devices);
    buses.mmio.name_rows(&mut devices);
    let labels = [("reason", &reasons[..]), ("device", &devices[..])];
    (0..vcpus)
        .map(|index| Ok(black_box.section(&format!("vcpu/{index}"), &labels)?))
        .collect()
}

fn set_up(
    fd: &VcpuFd,
    supported: &CpuId,
    spec: &VmSpec,
    clocks: Clocks,
    index: u8,
) -> Result<(), LaunchError> {
    let topology = Topology {
        vcpus: spec.vcpus,
        smt: spec.smt,
    };
    let table = cpuid::table(supported, topology, clocks, index);
    let too_many = |what| {
        move |_| HostError::Ioctl {
            what,
            source: std::io::Error::from_raw_os_error(libc::E2BIG),
        }
    };
    let table = CpuId::from_entries(&table).map_err(too_many("a CPUID table of this size"))?;
    fd.set_cpuid2(&table).map_err(refused("KVM_SET_CPUID2"))?;
    let msrs = msr::initial().map_err(too_many("the initial MSRs"))?;
    let set = fd.set_msrs(&msrs).map_err(refused("KVM_SET_MSRS"))?;
    if set != msrs.as_slice().len() {
        tracing::warn!(
            "vcpu {index}: KVM took {set} of {} initial MSRs",
            msrs.as_slice().len()
        );
    }
    let mut lapic = fd.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
    wire_local_interrupts(&mut lapic);
    fd.set_lapic(&lapic).map_err(refused("KVM_SET_LAPIC"))?;
    Ok(())
}

/// LINT0 takes the legacy interrupt controller, LINT1 the NMI, as firmware leaves them
/// (MultiProcessor Specification 1.4, 3.6.1).
fn wire_local_interrupts(lapic: &mut kvm_lapic_state) {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const MODE_NMI: u32 = 4;
    const MODE_EXTINT: u32 = 7;
    for (at, mode) in [(LINT0, MODE_EXTINT), (LINT1, MODE_NMI)] {
        let Some(register) = lapic.regs.get_mut(at..at + 4) else {
            continue;
        };
        let word = register
            .iter()
            .rev()
            .fold(0u32, |w, b| w << 8 | u32::from(*b as u8));
        let word = word & !0x700 | mode << 8;
        for (to, from) in register.iter_mut().zip(word.to_le_bytes()) {
            *to = from.cast_signed() as std::ffi::c_char;
        }
    }
}
