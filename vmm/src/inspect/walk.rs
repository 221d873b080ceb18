//! The guest's page tables (Intel SDM vol. 3A, 4.5): 4 and 5 levels, pages of 4 KiB, 2 MiB and
//! 1 GiB. They are the guest's, and may say anything: a walk takes at most five reads.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use memory::{Bytes, GuestAddress, GuestRam};

use super::view::VcpuView;

const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const CR0_PAGING: u64 = 1 << 31;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// The address in an entry: bits 12 to 51.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// Page tables of a kernel that keeps two of them lie side by side, the kernel's first
/// (Documentation/arch/x86/pti.rst).
const USER_HALF: u64 = 1 << 12;
const PAGE: u64 = 4096;

/// Why a virtual address could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// The address is not one of this mode.
    #[error("{0:#x} is not a canonical address")]
    NotCanonical(u64),
    /// An entry of the tables says that it is not mapped.
    #[error("the guest has not mapped {0:#x}")]
    NotMapped(u64),
    /// Tables or page lie outside the guest's RAM.
    #[error("guest address {0:#x} is not RAM")]
    NotRam(u64),
    /// Neither long mode nor paging off: 32-bit page tables.
    #[error("the vcpu uses 32-bit page tables, which are not read here")]
    Mode,
}

/// Guest physical memory.
pub trait Physical {
    /// Fills `to` from `address` on; false if that is not all RAM.
    fn fill(&self, address: u64, to: &mut [u8]) -> bool;
}

impl Physical for GuestRam {
    fn fill(&self, address: u64, to: &mut [u8]) -> bool {
        self.read_slice(to, GuestAddress(address)).is_ok()
    }
}

/// How addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// Not at all.
    Flat,
    /// By the tables at this address, of so many levels (4 or 5).
    Long {
        /// Where the top table lies.
        root: u64,
        /// How many levels there are.
        levels: u8,
    },
    /// By tables that are not read here.
    Unknown,
}

impl Tables {
    /// Those that a vCPU uses.
    pub fn of(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> Tables {
        if cr0 & CR0_PAGING == 0 {
            return Tables::Flat;
        }
        if efer & EFER_LMA == 0 {
            return Tables::Unknown;
        }
        Tables::Long {
            root: cr3 & ADDRESS,
            levels: if cr4 & CR4_LA57 == 0 { 4 } else { 5 },
        }
    }
}

/// An address space of the guest.
#[derive(Debug)]
pub struct Space<'a, M> {
    memory: &'a M,
    tables: Tables,
}

impl<M> Clone for Space<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Space<'_, M> {}

/// A virtual address, translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The guest physical address.
    pub physical: u64,
    /// How many bytes from there on belong to the same page.
    pub left: u64,
}

impl<'a> Space<'a, GuestRam> {
    /// That of a vCPU.
    pub fn of(ram: &'a GuestRam, view: &VcpuView) -> Self {
        let tables = Tables::of(view.cr0, view.cr3, view.cr4, view.efer);
        Space::new(ram, tables)
    }
}

impl<'a, M: Physical> Space<'a, M> {
    /// What `tables` map of `memory`.
    pub fn new(memory: &'a M, tables: Tables) -> Self {
        Space { memory, tables }
    }

    /// The memory behind it.
    pub fn memory(&self) -> &'a M {
        self.memory
    }

    /// The space that the kernel of a process uses, where it is another than the process's own.
    #[must_use]
    pub fn kernel_half(self) -> Self {
        let tables = match self.tables {
            Tables::Long { root, levels } => Tables::Long {
                root: root & !USER_HALF,
                levels,
            },
            other => other,
        };
        Space { tables, ..self }
    }

    /// Translates `address`.
    ///
    /// # Errors
    /// [`WalkError`].
    pub fn translate(&self, address: u64) -> Result<Mapped, WalkError> {
        let (root, levels) = match self.tables {
            Tables::Flat => {
                return Ok(Mapped {
                    physical: address,
                    left: to_end(address, PAGE),
                });
            }
            Tables::Unknown => return Err(WalkError::Mode),
            Tables::Long { root, levels } => (root, levels),
        };
        if !canonical(address, levels) {
            return Err(WalkError::NotCanonical(address));
        }
        let mut table = root;
        for level in (1..=levels).rev() {
            let shift = shift(level);
            let index = address.checked_shr(shift).unwrap_or(0) & 0x1FF;
            let entry = self.entry(table, index)?;
            if entry & PRESENT == 0 {
                return Err(WalkError::NotMapped(address));
            }
            let bytes = 1u64.checked_shl(shift).unwrap_or(PAGE);
            let last = level == 1 || (level <= 3 && entry & LARGE != 0);
            if last {
                let inside = bytes.wrapping_sub(1);
                return Ok(Mapped {
                    physical: entry & ADDRESS & !inside | address & inside,
                    left: to_end(address, bytes),
                });
            }
            table = entry & ADDRESS;
        }
        Err(WalkError::NotMapped(address))
    }

    fn entry(&self, table: u64, index: u64) -> Result<u64, WalkError> {
        let at = table | index.wrapping_mul(8) & 0xFF8;
        let mut bytes = [0; 8];
        if self.memory.fill(at, &mut bytes) {
            Ok(u64::from_le_bytes(bytes))
        } else {
            Err(WalkError::NotRam(at))
        }
    }

    /// Fills `to` with what is at the virtual address `at`.
    ///
    /// # Errors
    /// [`WalkError`]; `to` may then be filled in part.
    pub fn read(&self, at: u64, to: &mut [u8]) -> Result<(), WalkError> {
        let (mut at, mut to) = (at, to);
        while !to.is_empty() {
            let mapped = self.translate(at)?;
            let left = usize::try_from(mapped.left).unwrap_or(usize::MAX);
            let (part, rest) = to.split_at_mut(left.min(to.len()));
            if part.is_empty() || !self.memory.fill(mapped.physical, part) {
                return Err(WalkError::NotRam(mapped.physical));
            }
            at = at.wrapping_add(part.len() as u64);
            to = rest;
        }
        Ok(())
    }

    /// The word of 8 bytes at `at`.
    ///
    /// # Errors
    /// [`WalkError`].
    pub fn word(&self, at: u64) -> Result<u64, WalkError> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// How far the index of a level lies up in an address.
fn shift(level: u8) -> u32 {
    u32::from(level)
        .saturating_sub(1)
        .saturating_mul(9)
        .saturating_add(12)
}

/// Whether all bits above those that are translated are the same.
fn canonical(address: u64, levels: u8) -> bool {
    let top = address.cast_signed() >> shift(levels.saturating_add(1)).saturating_sub(1).min(63);
    top == 0 || top == -1
}

/// Bytes from `address` to the end of the page of `bytes` in which it lies.
fn to_end(address: u64, bytes: u64) -> u64 {
    let inside = address & bytes.wrapping_sub(1);
    bytes.saturating_sub(inside)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
