//! The registers of a vCPU, and how a dump shows them.

use std::fmt::Write;

use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// MSR_KERNEL_GS_BASE (Intel SDM volume 4, table 2-2).
const KERNEL_GS_BASE: u32 = 0xC000_0102;

/// The registers of one vCPU that does not run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// KVM_GET_REGS.
    pub general: kvm_regs,
    /// KVM_GET_SREGS.
    pub special: kvm_sregs,
    /// What SWAPGS brings.
    pub kernel_gs_base: u64,
    /// KVM_GET_MP_STATE.
    pub mp_state: u32,
}

impl Registers {
    /// Reads them; waits while the vCPU runs.
    ///
    /// # Errors
    /// What KVM says.
    pub fn read(fd: &VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        let entry = kvm_msr_entry {
            index: KERNEL_GS_BASE,
            ..kvm_msr_entry::default()
        };
        let mut msrs =
            Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
        fd.get_msrs(&mut msrs)?;
        Ok(Registers {
            general: fd.get_regs()?,
            special: fd.get_sregs()?,
            kernel_gs_base: msrs.as_slice().first().map_or(0, |msr| msr.data),
            mp_state: fd.get_mp_state()?.mp_state,
        })
    }

    /// The general ones by name.
    fn named(&self) -> [(&'static str, u64); 26] {
        let (g, s) = (&self.general, &self.special);
        [
            ("rip", g.rip),
            ("rflags", g.rflags),
            ("rax", g.rax),
            ("rbx", g.rbx),
            ("rcx", g.rcx),
            ("rdx", g.rdx),
            ("rsi", g.rsi),
            ("rdi", g.rdi),
            ("rsp", g.rsp),
            ("rbp", g.rbp),
            ("r8", g.r8),
            ("r9", g.r9),
            ("r10", g.r10),
            ("r11", g.r11),
            ("r12", g.r12),
            ("r13", g.r13),
            ("r14", g.r14),
            ("r15", g.r15),
            ("cr0", s.cr0),
            ("cr2", s.cr2),
            ("cr3", s.cr3),
            ("cr4", s.cr4),
            ("cr8", s.cr8),
            ("efer", s.efer),
            ("apic_base", s.apic_base),
            ("kernel_gs_base", self.kernel_gs_base),
        ]
    }

    /// The segments by name.
    pub(super) fn segments(&self) -> [(&'static str, &kvm_segment); 8] {
        let s = &self.special;
        [
            ("cs", &s.cs),
            ("ds", &s.ds),
            ("es", &s.es),
            ("fs", &s.fs),
            ("gs", &s.gs),
            ("ss", &s.ss),
            ("ldt", &s.ldt),
            ("tr", &s.tr),
        ]
    }
}

/// A segment's attributes as its descriptor has them (Intel SDM volume 3, 3.4.5), in the bits of the
/// descriptor's upper half.
pub(super) fn attributes(segment: &kvm_segment) -> u32 {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    u32::from(segment.type_ & 0xf) << 8
        | bit(segment.s, 12)
        | u32::from(segment.dpl & 3) << 13
        | bit(segment.present, 15)
        | bit(segment.avl, 20)
        | bit(segment.l, 21)
        | bit(segment.db, 22)
        | bit(segment.g, 23)
}

/// What a vCPU does, by KVM_GET_MP_STATE.
fn activity(mp_state: u32) -> &'static str {
    match mp_state {
        0 => "runnable",
        1 => "not started",
        2 => "init received",
        3 => "halted",
        4 => "startup IPI received",
        _ => "unknown",
    }
}

/// All vCPUs as JSON. Numbers are texts in hexadecimal: JSON's own are exact to 53 bits only.
pub fn json(all: &[Registers]) -> String {
    let mut out = String::from("{\"vcpus\":[");
    for (index, registers) in all.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let state = activity(registers.mp_state);
        // Writing to a String cannot fail.
        let _ = write!(out, "{comma}\n{{\"vcpu\":{index},\"state\":\"{state}\"");
        for (name, value) in registers.named() {
            let _ = write!(out, ",\"{name}\":\"{value:#x}\"");
        }
        for (name, segment) in registers.segments() {
            let kvm_segment {
                selector,
                base,
                limit,
                ..
            } = segment;
            let attributes = attributes(segment);
            let _ = write!(
                out,
                ",\n \"{name}\":{{\"selector\":\"{selector:#x}\",\"base\":\"{base:#x}\",\
                 \"limit\":\"{limit:#x}\",\"attributes\":\"{attributes:#x}\"}}"
            );
        }
        for (name, kvm_dtable { base, limit, .. }) in [
            ("gdt", &registers.special.gdt),
            ("idt", &registers.special.idt),
        ] {
            let _ = write!(
                out,
                ",\n \"{name}\":{{\"base\":\"{base:#x}\",\"limit\":\"{limit:#x}\"}}"
            );
        }
        out.push('}');
    }
    out.push_str("\n]}\n");
    out
}
