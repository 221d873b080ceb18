//! Which module of the guest's kernel an address lies in.
//!
//! `struct module` (include/linux/module.h) begins with its state, its place in the list of all
//! modules, and its name. Where in it the module's memory is told differs from kernel to kernel; but
//! it is always an address of whole pages with a size behind it, and of these only the one is of use
//! that has the address in it. So it is searched by that shape.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod symbols;

use std::fmt;

use super::kallsyms::Symbol;
use super::walk::{Physical, Space};

/// Where modules are (MODULES_VADDR), without KASLR and with it, up to the fixed mappings.
pub const AREA: std::ops::Range<u64> = 0xFFFF_FFFF_A000_0000..0xFFFF_FFFF_FF00_0000;
/// Modules that are looked through.
const MOST_MODULES: usize = 1024;
/// From a module's place in the list: its name, of 56 bytes.
const NAME: u64 = 16;
const NAME_BYTES: usize = 56;
/// So much of `struct module` is searched.
const SEARCHED: usize = 1280;
/// From an address, its size: up to Linux 6.12, and from 6.13 on.
const SIZES: [usize; 2] = [8, 20];
const MOST_BYTES: u64 = 64 << 20;

/// A module, and a place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// How far behind the beginning of its code or data the place is.
    pub offset: u64,
    /// How large that is.
    pub size: u64,
    /// The function there, if the module keeps its symbols.
    pub symbol: Option<Symbol>,
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.symbol {
            Some(symbol) => write!(f, "{symbol} [{}]", self.name),
            None => write!(f, "[{}]+{:#x}/{:#x}", self.name, self.offset, self.size),
        }
    }
}

/// The module that has `address`, of those in the list that begins at `list`.
pub fn module<M: Physical>(space: &Space<'_, M>, list: u64, address: u64) -> Option<Module> {
    let mut place = space.word(list).ok()?;
    for _ in 0..MOST_MODULES {
        if place == list {
            return None;
        }
        if let Some(found) = holds(space, place, address) {
            return Some(found);
        }
        place = space.word(place).ok()?;
    }
    None
}

/// The module at this place of the list, if `address` is its.
fn holds<M: Physical>(space: &Space<'_, M>, place: u64, address: u64) -> Option<Module> {
    let mut bytes = [0; SEARCHED];
    space.read(place.wrapping_add(NAME), &mut bytes).ok()?;
    let (name, rest) = bytes.split_at_checked(NAME_BYTES)?;
    let name = name.split(|byte| *byte == 0).next()?;
    let ours = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'-';
    if name.is_empty() || name.len() == NAME_BYTES || !name.iter().all(ours) {
        return None;
    }
    let (offset, size) = (0..rest.len())
        .step_by(8)
        .find_map(|at| memory(rest.get(at..)?, address))?;
    Some(Module {
        name: String::from_utf8_lossy(name).into_owned(),
        offset,
        size,
        symbol: symbols::symbol(space, rest, address),
    })
}

/// If `bytes` begin with an address and a size between which `address` lies: how far behind the
/// beginning, and the size.
fn memory(bytes: &[u8], address: u64) -> Option<(u64, u64)> {
    let base = u64::from_le_bytes(*bytes.first_chunk()?);
    if base & 0xFFF != 0 || !AREA.contains(&base) {
        return None;
    }
    let offset = address.checked_sub(base)?;
    let mut sizes = SIZES.into_iter().filter_map(|at| {
        let size = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
        Some(u64::from(size))
    });
    let size = sizes.find(|size| (1..=MOST_BYTES).contains(size) && offset < *size)?;
    Some((offset, size))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests {
    use super::super::walk::Tables;
    use super::*;

    struct Flat(Vec<u8>);

    impl Physical for Flat {
        fn fill(&self, address: u64, to: &mut [u8]) -> bool {
            let from = self.0.get(address as usize..);
            let Some(from) = from.and_then(|from| from.get(..to.len())) else {
                return false;
            };
            to.copy_from_slice(from);
            true
        }
    }

    const LIST: u64 = 0x100;
    const FIRST: u64 = 0x1008;
    const SECOND: u64 = 0x3008;
    const TEXT: u64 = 0xFFFF_FFFF_C012_3000;

    /// Two modules, of which the second says at `at` where its code is, and `size_at` behind that
    /// how large.
    fn two(at: usize, size_at: usize) -> Flat {
        let mut memory = Flat(vec![0; 0x8000]);
        let mut put = |at: u64, bytes: &[u8]| {
            memory.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        for (place, next, name) in [(FIRST, SECOND, "ext4"), (SECOND, LIST, "virtio_blk")] {
            put(place, &next.to_le_bytes());
            put(place + NAME, name.as_bytes());
        }
        put(LIST, &FIRST.to_le_bytes());
        // Something of the same shape that is not in the area, and one that is too small.
        put(FIRST + 0x100, &(TEXT - (1 << 40)).to_le_bytes());
        put(FIRST + 0x200, &TEXT.to_le_bytes());
        put(FIRST + 0x208, &0x10u32.to_le_bytes());
        put(SECOND + at as u64, &TEXT.to_le_bytes());
        put(SECOND + (at + size_at) as u64, &0x5000u32.to_le_bytes());
        memory
    }

    fn find(memory: &Flat, address: u64) -> Option<String> {
        let space = Space::new(memory, Tables::Flat);
        module(&space, LIST, address).map(|module| module.to_string())
    }

    #[test]
    fn the_module_is_found_wherever_its_kernel_says_where_it_is() {
        for (at, size_at) in [(0x148, 8), (0x400, 20), (0x4E8, 8)] {
            let memory = two(at, size_at);
            let found = find(&memory, TEXT + 0x1234).unwrap();
            assert_eq!(found, "[virtio_blk]+0x1234/0x5000");
            assert_eq!(find(&memory, TEXT + 8).unwrap(), "[ext4]+0x8/0x10");
            assert_eq!(find(&memory, TEXT + 0x5000), None);
        }
    }

    #[test]
    fn a_list_that_never_ends_and_a_name_that_is_none_are_borne() {
        let mut memory = two(0x148, 8);
        memory.0[SECOND as usize] = 0x08;
        assert!(find(&memory, TEXT + 0x1234).is_some());
        assert_eq!(find(&memory, TEXT + 0x9999), None);
        memory.0[(SECOND + NAME) as usize] = 0x1B;
        assert_eq!(find(&memory, TEXT + 0x1234), None);
    }
}
