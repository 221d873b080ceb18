//! The head of an ELF core: where guest memory lies in the file, and the registers of the vCPUs.
//!
//! ELF-64 as in the System V gABI. A vCPU has two notes: `CORE`/NT_PRSTATUS, which gdb shows as a
//! thread, and `QEMU`, from which crash learns where a kernel lies that was placed at random.

use kvm_bindings::kvm_segment;

use super::registers::{Registers, attributes};

/// Where memory is put in the file: at multiples of this.
const ALIGN: u64 = 4096;
const HEADER_BYTES: u64 = 64;
const PROGRAM_BYTES: u64 = 56;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
/// Of `struct elf_prstatus` on x86-64: all of it, the process, and the registers.
const PRSTATUS_BYTES: usize = 336;
const PRSTATUS_PID: usize = 32;
const PRSTATUS_REGISTERS: usize = 112;
/// Of the note `QEMU`: its version, and its length with `kernel_gs_base`.
const STATE_VERSION: u32 = 1;
const STATE_BYTES: u32 = 440;

/// A piece of guest memory and its place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins in the guest.
    pub guest: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Where it begins in the file.
    pub offset: u64,
}

/// The head of a core, and where memory comes.
#[derive(Debug)]
pub struct Head {
    /// What the file begins with.
    pub bytes: Vec<u8>,
    /// Memory, in the order in which it was given.
    pub pieces: Vec<Piece>,
    /// The length of the whole file.
    pub file_bytes: u64,
}

/// The head of a core of a guest with this memory (where it begins, and bytes) and these vCPUs.
pub fn head(regions: &[(u64, u64)], vcpus: &[Registers]) -> Head {
    let notes = notes(vcpus);
    let programs = regions.len() as u64 + 1;
    let notes_at = HEADER_BYTES + PROGRAM_BYTES * programs;
    let mut offset = (notes_at + notes.len() as u64).next_multiple_of(ALIGN);
    let mut pieces = Vec::new();
    for (guest, bytes) in regions {
        pieces.push(Piece {
            guest: *guest,
            bytes: *bytes,
            offset,
        });
        offset = (offset + bytes).next_multiple_of(ALIGN);
    }
    let mut bytes = header(programs);
    program(&mut bytes, PT_NOTE, notes_at, 0, notes.len() as u64);
    for piece in &pieces {
        program(&mut bytes, PT_LOAD, piece.offset, piece.guest, piece.bytes);
    }
    bytes.extend(notes);
    let last = pieces.last().map(|piece| piece.offset + piece.bytes);
    Head {
        file_bytes: last.unwrap_or(bytes.len() as u64),
        bytes,
        pieces,
    }
}

fn header(programs: u64) -> Vec<u8> {
    // Class 64 bits, little-endian, version 1, System V.
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    out.extend([0; 8]);
    for half in [ET_CORE, EM_X86_64] {
        out.extend(half.to_le_bytes());
    }
    out.extend(1u32.to_le_bytes());
    // Entry, program headers, section headers.
    for word in [0, HEADER_BYTES, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend(0u32.to_le_bytes());
    let programs = u16::try_from(programs).unwrap_or(u16::MAX);
    for half in [HEADER_BYTES as u16, PROGRAM_BYTES as u16, programs, 0, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    out
}

fn program(out: &mut Vec<u8>, kind: u32, offset: u64, guest: u64, bytes: u64) {
    const READ_WRITE_EXECUTE: u32 = 7;
    let (flags, memory) = match kind {
        PT_LOAD => (READ_WRITE_EXECUTE, bytes),
        _ => (0, 0),
    };
    out.extend(kind.to_le_bytes());
    out.extend(flags.to_le_bytes());
    // The guest's virtual addresses are its own business: a debugger without its page tables sees
    // physical ones.
    for word in [offset, guest, guest, bytes, memory, 0] {
        out.extend(word.to_le_bytes());
    }
}

fn notes(vcpus: &[Registers]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, registers) in (1u32..).zip(vcpus) {
        note(&mut out, b"CORE\0", NT_PRSTATUS, &process(index, registers));
    }
    for registers in vcpus {
        note(&mut out, b"QEMU\0", 0, &state(registers));
    }
    out
}

fn note(out: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    for word in [name.len() as u32, content.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    for part in [name, content] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// `struct elf_prstatus` of Linux on x86-64, with the vCPU as a process.
fn process(number: u32, registers: &Registers) -> Vec<u8> {
    let (g, s) = (&registers.general, &registers.special);
    let mut out = vec![0; PRSTATUS_PID];
    out.extend(number.to_le_bytes());
    out.resize(PRSTATUS_REGISTERS, 0);
    let none = u64::MAX;
    for word in [
        g.r15,
        g.r14,
        g.r13,
        g.r12,
        g.rbp,
        g.rbx,
        g.r11,
        g.r10,
        g.r9,
        g.r8,
        g.rax,
        g.rcx,
        g.rdx,
        g.rsi,
        g.rdi,
        none,
        g.rip,
        s.cs.selector.into(),
        g.rflags,
        g.rsp,
        s.ss.selector.into(),
        s.fs.base,
        s.gs.base,
        s.ds.selector.into(),
        s.es.selector.into(),
        s.fs.selector.into(),
        s.gs.selector.into(),
    ] {
        out.extend(word.to_le_bytes());
    }
    out.resize(PRSTATUS_BYTES, 0);
    out
}

/// The state of a CPU as QEMU's dumps have it.
fn state(registers: &Registers) -> Vec<u8> {
    let (g, s) = (&registers.general, &registers.special);
    let mut out = Vec::new();
    for word in [STATE_VERSION, STATE_BYTES] {
        out.extend(word.to_le_bytes());
    }
    for word in [
        g.rax, g.rbx, g.rcx, g.rdx, g.rsi, g.rdi, g.rsp, g.rbp, g.r8, g.r9, g.r10, g.r11, g.r12,
        g.r13, g.r14, g.r15, g.rip, g.rflags,
    ] {
        out.extend(word.to_le_bytes());
    }
    let table = |base, limit: u16| kvm_segment {
        base,
        limit: limit.into(),
        ..kvm_segment::default()
    };
    let tables = [
        table(s.gdt.base, s.gdt.limit),
        table(s.idt.base, s.idt.limit),
    ];
    let segments = registers.segments().map(|(_, segment)| *segment);
    for segment in segments.iter().chain(&tables) {
        for word in [
            segment.selector.into(),
            segment.limit,
            attributes(segment),
            0,
        ] {
            out.extend(word.to_le_bytes());
        }
        out.extend(segment.base.to_le_bytes());
    }
    for word in [s.cr0, 0, s.cr2, s.cr3, s.cr4, registers.kernel_gs_base] {
        out.extend(word.to_le_bytes());
    }
    out
}
