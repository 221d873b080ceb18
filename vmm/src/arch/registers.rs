//! Segments, control registers and the boot page tables of the first vCPU.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use memory::{Bytes, GuestAddress, GuestMemoryError, GuestRam};

/// The boot GDT, IDT and page tables, below the real-mode interrupt area's end; free RAM in the
/// memory map, as the boot protocols allow: the kernel soon loads its own.
const GDT_ADDRESS: u64 = 0x500;
const IDT_ADDRESS: u64 = 0x520;
const PML4_ADDRESS: u64 = 0x9000;
const PDPT_ADDRESS: u64 = 0xA000;
const PD_ADDRESS: u64 = 0xB000;
/// The stack that the first instructions may use, just below the page tables.
const STACK_ADDRESS: u64 = 0x8FF0;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_HUGE: u64 = 1 << 7;

/// How the first vCPU begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Long mode with the first GiB mapped one to one; `info` (boot_params) in RSI
    /// (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
    Long {
        /// First instruction.
        entry: GuestAddress,
        /// Address of boot_params.
        info: GuestAddress,
    },
    /// 32-bit protected mode without paging; `info` (hvm_start_info) in EBX
    /// (Xen's docs/misc/pvh.pandoc).
    Pvh {
        /// First instruction.
        entry: GuestAddress,
        /// Address of hvm_start_info.
        info: GuestAddress,
    },
}

/// A flat 4 GiB segment from its descriptor word.
fn segment(descriptor: u64, index: u16) -> kvm_segment {
    let bit = |at: u32| (descriptor >> at & 1) as u8;
    kvm_segment {
        base: (descriptor >> 16 & 0xFF_FFFF) | (descriptor >> 32 & 0xFF00_0000),
        limit: if bit(55) == 1 { 0xFFFF_FFFF } else { 0xFFFF },
        selector: index * 8,
        type_: (descriptor >> 40 & 0xF) as u8,
        present: bit(47),
        dpl: (descriptor >> 45 & 3) as u8,
        db: bit(54),
        s: bit(44),
        l: bit(53),
        g: bit(55),
        avl: bit(52),
        ..Default::default()
    }
}

const CODE64: u64 = 0x00AF_9B00_0000_FFFF;
const CODE32: u64 = 0x00CF_9B00_0000_FFFF;
const DATA: u64 = 0x00CF_9300_0000_FFFF;
const TSS: u64 = 0x008F_8B00_0000_FFFF;

/// General registers for `start`.
pub fn general(start: Start) -> kvm_regs {
    let base = kvm_regs {
        rflags: 2,
        ..Default::default()
    };
    match start {
        Start::Long { entry, info } => kvm_regs {
            rip: entry.0,
            rsi: info.0,
            rsp: STACK_ADDRESS,
            rbp: STACK_ADDRESS,
            ..base
        },
        Start::Pvh { entry, info } => kvm_regs {
            rip: entry.0,
            rbx: info.0,
            ..base
        },
    }
}

/// Writes the boot GDT (and, for long mode, page tables) and turns the reset state `sregs` into
/// the one that `start` promises.
///
/// # Errors
/// When the tables do not lie in guest memory.
pub fn special(
    ram: &GuestRam,
    start: Start,
    mut sregs: kvm_sregs,
) -> Result<kvm_sregs, GuestMemoryError> {
    let code = if matches!(start, Start::Long { .. }) {
        CODE64
    } else {
        CODE32
    };
    // The boot protocol wants code at 10h and data at 18h; the TSS stands behind them.
    let gdt = [0, 0, code, DATA, TSS];
    for (index, descriptor) in (0u64..).zip(gdt) {
        ram.write_obj(descriptor, GuestAddress(GDT_ADDRESS + index * 8))?;
    }
    ram.write_obj(0u64, GuestAddress(IDT_ADDRESS))?;
    sregs.gdt.base = GDT_ADDRESS;
    sregs.gdt.limit = (size_of_val(&gdt) - 1) as u16;
    sregs.idt.base = IDT_ADDRESS;
    sregs.idt.limit = 7;
    sregs.cs = segment(code, 2);
    let data = segment(DATA, 3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(TSS, 4);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    if matches!(start, Start::Long { .. }) {
        write_page_tables(ram)?;
        sregs.cr3 = PML4_ADDRESS;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
    Ok(sregs)
}

/// The first GiB, one to one, in 2 MiB pages.
fn write_page_tables(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    ram.write_obj(
        PDPT_ADDRESS | PAGE_PRESENT_WRITABLE,
        GuestAddress(PML4_ADDRESS),
    )?;
    ram.write_obj(
        PD_ADDRESS | PAGE_PRESENT_WRITABLE,
        GuestAddress(PDPT_ADDRESS),
    )?;
    for index in 0..512u64 {
        let entry = index << 21 | PAGE_PRESENT_WRITABLE | PAGE_HUGE;
        ram.write_obj(entry, GuestAddress(PD_ADDRESS + index * 8))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> GuestRam {
        memory::build(&memory::MemorySpec {
            size_mib: 2,
            ..Default::default()
        })
        .unwrap()
    }

    #[test]
    fn long_mode_starts_paged_with_code_at_selector_10h() {
        let start = Start::Long {
            entry: GuestAddress(0x100_0200),
            info: GuestAddress(0x7000),
        };
        let sregs = special(&ram(), start, kvm_sregs::default()).unwrap();
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db), (0x10, 1, 0));
        assert_eq!(sregs.ds.selector, 0x18);
        assert_eq!(sregs.cr0 & CR0_PG, CR0_PG);
        assert_eq!(general(start).rsi, 0x7000);
    }

    #[test]
    fn pvh_starts_in_32_bits_without_paging() {
        let start = Start::Pvh {
            entry: GuestAddress(0x100_0000),
            info: GuestAddress(0x6000),
        };
        let sregs = special(&ram(), start, kvm_sregs::default()).unwrap();
        assert_eq!(
            (sregs.cs.l, sregs.cs.db, sregs.cs.limit),
            (0, 1, 0xFFFF_FFFF)
        );
        assert_eq!((sregs.cr0 & CR0_PG, sregs.efer), (0, 0));
        assert_eq!(general(start).rbx, 0x6000);
    }

    #[test]
    fn the_page_tables_map_the_first_gib_to_itself() {
        let ram = ram();
        let start = Start::Long {
            entry: GuestAddress(0),
            info: GuestAddress(0),
        };
        special(&ram, start, kvm_sregs::default()).unwrap();
        let last: u64 = ram.read_obj(GuestAddress(PD_ADDRESS + 511 * 8)).unwrap();
        assert_eq!(last, 511 << 21 | 0b1000_0011);
    }
}
