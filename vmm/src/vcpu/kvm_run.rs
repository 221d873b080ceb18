//! Reads an exit out of the page that KVM shares with us (`struct kvm_run`).
//!
//! Done here and not by kvm-ioctls' `VcpuExit`, because that does not tell the width of the
//! accesses of a string instruction, without which they cannot be counted or served one by one.

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_HYPERCALL, KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, kvm_run,
};

use super::counters::ExitKind;
use super::exit::Exit;

/// The exit that `run` describes. `mapped` is the size of the whole kvm_run mapping, which the
/// port data lies in.
#[allow(unsafe_code)]
#[allow(clippy::inline_always)] // a part of the vCPU's loop, as dispatch is
#[inline(always)]
pub fn exit(run: &mut kvm_run, mapped: usize) -> Exit<'_> {
    match run.exit_reason {
        KVM_EXIT_IO => io(run, mapped),
        KVM_EXIT_MMIO => {
            // SAFETY: exit_reason says that the mmio member is the valid one.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let length = mmio.len as usize;
            let (address, write) = (mmio.phys_addr, mmio.is_write != 0);
            let Some(data) = mmio.data.get_mut(..length) else {
                return fatal(
                    ExitKind::Other,
                    [u64::from(KVM_EXIT_MMIO), length as u64, 0, 0],
                );
            };
            if write {
                Exit::MmioWrite { address, data }
            } else {
                Exit::MmioRead { address, data }
            }
        }
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_INTR => Exit::Interrupted,
        KVM_EXIT_HLT => Exit::Nothing(ExitKind::Halt),
        KVM_EXIT_DEBUG => Exit::Nothing(ExitKind::Debug),
        KVM_EXIT_HYPERCALL => Exit::Nothing(ExitKind::Hypercall),
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: exit_reason says that the system_event member is the valid one.
            let kind = unsafe { run.__bindgen_anon_1.system_event.type_ };
            fatal(ExitKind::SystemEvent, [u64::from(kind), 0, 0, 0])
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: exit_reason says that the fail_entry member is the valid one.
            let entry = unsafe { run.__bindgen_anon_1.fail_entry };
            let words = [
                entry.hardware_entry_failure_reason,
                u64::from(entry.cpu),
                0,
                0,
            ];
            fatal(ExitKind::FailEntry, words)
        }
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: exit_reason says that the internal member is the valid one.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            let [first, second, third, ..] = internal.data;
            fatal(
                ExitKind::InternalError,
                [u64::from(internal.suberror), first, second, third],
            )
        }
        KVM_EXIT_MEMORY_FAULT => {
            // SAFETY: exit_reason says that the memory_fault member is the valid one.
            let fault = unsafe { run.__bindgen_anon_1.memory_fault };
            fatal(
                ExitKind::MemoryFault,
                [fault.gpa, fault.size, fault.flags, 0],
            )
        }
        reason => fatal(ExitKind::Other, [u64::from(reason), 0, 0, 0]),
    }
}

#[cold]
fn fatal<'a>(kind: ExitKind, words: [u64; 4]) -> Exit<'a> {
    Exit::Fatal { kind, words }
}

#[allow(unsafe_code)]
#[allow(clippy::inline_always)] // as exit
#[inline(always)]
fn io(run: &mut kvm_run, mapped: usize) -> Exit<'_> {
    // SAFETY: the caller saw KVM_EXIT_IO, so the io member is the valid one.
    let io = unsafe { run.__bindgen_anon_1.io };
    let (offset, width) = (io.data_offset as usize, usize::from(io.size));
    let length = width.saturating_mul(io.count as usize);
    if offset.saturating_add(length) > mapped {
        return fatal(
            ExitKind::Other,
            [u64::from(KVM_EXIT_IO), offset as u64, length as u64, 0],
        );
    }
    // SAFETY: offset + length lies inside the mapping that `run` is the start of (checked above);
    // the data page is behind the struct, so it aliases nothing else that is borrowed.
    let data = unsafe {
        let start = std::ptr::from_mut(run).cast::<u8>().add(offset);
        std::slice::from_raw_parts_mut(start, length)
    };
    if u32::from(io.direction) == KVM_EXIT_IO_IN {
        Exit::IoIn {
            port: io.port,
            width,
            data,
        }
    } else {
        Exit::IoOut {
            port: io.port,
            width,
            data,
        }
    }
}
