//! Reading a vCPU by KVM's ioctls, on the vCPU's own thread, while it is out of the guest.

use std::io;

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;
use memory::GuestRam;

use super::view::{Pending, Timer, TimerMode, VcpuView, Vectors};
use super::walk::Space;
use super::{InspectError, Sight, StackCopy};

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6E0;
const MSR_LSTAR: u32 = 0xC000_0082;
/// The most that is copied of a stack: a kernel stack of x86-64.
const STACK_BYTES: u64 = 16 << 10;
const PAGE: u64 = 4096;

/// Reads the vCPU, and the top of its stack if there is guest memory to read it from. The caller
/// has brought the vCPU out of the guest with no access half done.
///
/// # Errors
/// [`InspectError::Refused`].
pub fn capture(fd: &VcpuFd, vcpu: u8, ram: Option<&GuestRam>) -> Result<Box<Sight>, InspectError> {
    let view = view(fd, vcpu)?;
    let stack = ram.map(|ram| top_of_stack(ram, &view)).unwrap_or_default();
    Ok(Box::new(Sight { view, stack }))
}

fn view(fd: &VcpuFd, vcpu: u8) -> Result<VcpuView, InspectError> {
    let refused = |what| {
        move |error: kvm_ioctls::Error| InspectError::Refused {
            vcpu,
            what,
            source: io::Error::from_raw_os_error(error.errno()),
        }
    };
    let regs = fd.get_regs().map_err(refused("KVM_GET_REGS"))?;
    let special = fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    let events = fd
        .get_vcpu_events()
        .map_err(refused("KVM_GET_VCPU_EVENTS"))?;
    let state = fd.get_mp_state().map_err(refused("KVM_GET_MP_STATE"))?;
    let lapic = fd.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
    let [lstar, tsc, deadline] = msrs(fd, [MSR_LSTAR, MSR_TSC, MSR_TSC_DEADLINE]);
    Ok(VcpuView {
        vcpu,
        rip: regs.rip,
        rsp: regs.rsp,
        rbp: regs.rbp,
        rdx: regs.rdx,
        rdi: regs.rdi,
        r10: regs.r10,
        r13: regs.r13,
        general: [
            regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rsp, regs.rbp,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rflags: regs.rflags,
        cr0: special.cr0,
        cr2: special.cr2,
        cr3: special.cr3,
        cr4: special.cr4,
        efer: special.efer,
        cs_selector: special.cs.selector,
        cs_base: special.cs.base,
        cs_long: special.cs.l != 0,
        ss_base: special.ss.base,
        gs_base: special.gs.base,
        idt_base: special.idt.base,
        ring: special.ss.dpl & 3,
        mp_state: state.mp_state,
        requested: registers(&lapic, IRR),
        in_service: registers(&lapic, ISR),
        task_priority: register(&lapic, TPR) as u8,
        apic_on: special.apic_base & APIC_ENABLE != 0 && register(&lapic, SVR) & SVR_ENABLE != 0,
        timer: timer(&lapic, deadline.filter(|at| *at != 0)),
        tsc,
        lstar: lstar.unwrap_or(0),
        pending: pending(&events),
        took_ns: 0,
    })
}

/// Each by itself: KVM stops at the first that it does not have.
fn msrs<const N: usize>(fd: &VcpuFd, numbers: [u32; N]) -> [Option<u64>; N] {
    numbers.map(|index| {
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut list = Msrs::from_entries(&[entry]).ok()?;
        let read = fd.get_msrs(&mut list).ok()?;
        list.as_slice().get(..read)?.first().map(|entry| entry.data)
    })
}

const TPR: usize = 0x80;
const SVR: usize = 0xF0;
const ISR: usize = 0x100;
const IRR: usize = 0x200;
const LVT_TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const APIC_ENABLE: u64 = 1 << 11;
const SVR_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;

/// A register of the local APIC (Intel SDM vol. 3A, table 11-1).
fn register(lapic: &kvm_lapic_state, at: usize) -> u32 {
    let bytes = lapic.regs.get(at..).and_then(<[_]>::first_chunk::<4>);
    bytes.map_or(0, |bytes| u32::from_le_bytes(bytes.map(i8::cast_unsigned)))
}

/// Eight registers of 32 vectors each, 16 bytes apart.
fn registers(lapic: &kvm_lapic_state, from: usize) -> Vectors {
    let mut words = [0; 8];
    for (word, at) in words.iter_mut().zip((from..).step_by(16)) {
        *word = register(lapic, at);
    }
    Vectors(words)
}

fn timer(lapic: &kvm_lapic_state, deadline: Option<u64>) -> Timer {
    let lvt = register(lapic, LVT_TIMER);
    let mode = match lvt >> 17 & 3 {
        0 => TimerMode::OneShot,
        1 => TimerMode::Periodic,
        2 => TimerMode::TscDeadline,
        _ => TimerMode::Reserved,
    };
    let initial = register(lapic, INITIAL_COUNT);
    let current = register(lapic, CURRENT_COUNT);
    let counting = match mode {
        TimerMode::OneShot => initial != 0 && current != 0,
        TimerMode::Periodic => initial != 0,
        TimerMode::TscDeadline => deadline.is_some(),
        TimerMode::Reserved => false,
    };
    Timer {
        mode,
        vector: lvt as u8,
        masked: lvt & LVT_MASKED != 0,
        counting,
        current,
        deadline,
    }
}

fn pending(events: &kvm_vcpu_events) -> Pending {
    let exception = events.exception.pending != 0 || events.exception.injected != 0;
    Pending {
        exception: exception.then_some(events.exception.nr),
        interrupt: (events.interrupt.injected != 0).then_some(events.interrupt.nr),
        interrupt_shadow: events.interrupt.shadow != 0,
        nmi: events.nmi.pending != 0 || events.nmi.injected != 0,
        nmi_masked: events.nmi.masked != 0,
        smm: events.smi.smm != 0,
    }
}

/// The stack from RSP on, as far as it is mapped: page by page, for these may lie anywhere.
fn top_of_stack(ram: &GuestRam, view: &VcpuView) -> StackCopy {
    let from = view.ss_base.wrapping_add(view.rsp);
    let from = if view.cs_long { view.rsp } else { from };
    let space = Space::of(ram, view);
    let mut bytes = Vec::with_capacity(STACK_BYTES as usize);
    let mut at = from;
    let end = from.saturating_add(STACK_BYTES);
    while at < end {
        let part = (PAGE - at % PAGE).min(end - at);
        let have = bytes.len();
        bytes.resize(have + part as usize, 0);
        let to = bytes.get_mut(have..).unwrap_or_default();
        if space.read(at, to).is_err() {
            bytes.truncate(have);
            break;
        }
        at += part;
    }
    StackCopy { from, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapic(registers: &[(usize, u32)]) -> kvm_lapic_state {
        let mut lapic = kvm_lapic_state::default();
        for (at, value) in registers {
            let place = lapic.regs[*at..].first_chunk_mut().unwrap();
            *place = value.to_le_bytes().map(u8::cast_signed);
        }
        lapic
    }

    #[test]
    fn vectors_are_found_in_the_registers_that_hold_them() {
        let lapic = lapic(&[
            (IRR + 0x70, 1 << 12 | 1 << 31),
            (IRR + 0x10, 1),
            (ISR, 1 << 16),
        ]);
        let requested: Vec<u8> = registers(&lapic, IRR).iter().collect();
        assert_eq!(requested, [0x20, 0xEC, 0xFF]);
        assert_eq!(registers(&lapic, IRR).to_string(), "0x20, 0xec, 0xff");
        assert_eq!(registers(&lapic, ISR).iter().collect::<Vec<_>>(), [16]);
    }

    #[test]
    fn a_timer_is_armed_when_it_counts_in_its_mode_and_is_not_masked() {
        let deadline = 2 << 17 | 0xEC;
        for (lvt, initial, current, until, armed, words) in [
            (0xEC, 100, 7, None, true, "armed (one-shot, vector 0xec)"),
            (0xEC, 100, 0, None, false, "not armed (one-shot"),
            (1 << 17 | 0xEC, 100, 0, None, true, "armed (periodic"),
            (1 << 17 | 0xEC, 0, 0, None, false, "not armed (periodic"),
            (deadline, 100, 7, None, false, "not armed (TSC deadline"),
            (
                deadline,
                0,
                0,
                Some(0x99),
                true,
                "vector 0xec), deadline 0x99",
            ),
            (deadline | LVT_MASKED, 0, 0, Some(9), false, "but is masked"),
        ] {
            let lapic = lapic(&[
                (LVT_TIMER, lvt),
                (INITIAL_COUNT, initial),
                (CURRENT_COUNT, current),
            ]);
            let timer = timer(&lapic, until);
            assert_eq!(timer.armed(), armed, "{timer:?}");
            assert!(timer.to_string().contains(words), "{timer}");
        }
    }

    #[test]
    fn what_waits_to_be_delivered_has_words() {
        let mut events = kvm_vcpu_events::default();
        assert_eq!(pending(&events).to_string(), "none");
        events.exception.pending = 1;
        events.exception.nr = 14;
        events.nmi.masked = 1;
        assert_eq!(pending(&events).to_string(), "exception 14, NMIs masked");
    }
}
