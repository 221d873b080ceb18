//! The guest kernel's own table of its symbols, kallsyms, read where it lies in the guest's memory:
//! there it is for every kernel, however it was loaded and wherever KASLR has put it, and addresses
//! in it are those of the running kernel. Nothing of it is kept but where its parts are.
//!
//! The parts, as scripts/kallsyms.c writes them, each aligned to 8 bytes:
//!
//! | part | what |
//! |---|---|
//! | `offsets` | 32 bits for each symbol, in order of address: see [`Tables::address`] |
//! | `relative_base` | what offsets count from |
//! | `num_syms` | how many symbols there are |
//! | `names` | for each a length (one byte, or two above 127) and so many tokens |
//! | `markers` | where in `names` every 256th begins |
//! | `token_table` | 256 texts, each ended by a NUL |
//! | `token_index` | where in `token_table` each begins, 16 bits |
//!
//! Up to Linux 6.3 they come in this order, with `seqs_of_names` before `token_table` from 6.2 on
//! and in stable 6.1; from 6.4 on, `offsets`, `relative_base` and then `seqs_of_names` are last.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod find;

use std::fmt;

use super::image::{IMAGE_BYTES, Image};
use super::walk::Physical;

/// Longest name (KSYM_NAME_LEN).
const MOST_NAME: usize = 512;
/// Symbols in a block of `names` that a marker leads to.
const BLOCK: u32 = 256;
/// Longest block: every name with the longest length that two bytes can say is no kernel's.
const MOST_BLOCK: u64 = 64 << 10;
/// Symbols at one address that are looked through for the first and for the next address.
const MOST_ALIASES: u32 = 1024;

/// Where the parts are, and how offsets are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    names: u64,
    markers: u64,
    tokens: u64,
    index: u64,
    offsets: u64,
    base: u64,
    count: u32,
    /// Offsets below zero count down from the base, others are absolute
    /// (KALLSYMS_ABSOLUTE_PERCPU).
    signed: bool,
}

/// A symbol, and a place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name.
    pub name: String,
    /// How far behind its beginning the place is.
    pub offset: u64,
    /// From its beginning to the next symbol's.
    pub size: u64,
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}/{:#x}", self.name, self.offset, self.size)
    }
}

/// The symbols of a running kernel.
#[derive(Debug)]
pub struct Kallsyms<'a, M> {
    image: &'a Image<'a, M>,
    tables: Tables,
    /// `token_index` and `token_table`.
    index: Vec<u8>,
    tokens: Vec<u8>,
}

impl<'a, M: Physical> Kallsyms<'a, M> {
    /// Finds the tables in the image, of which `code` is an address of its text. Only what the guest
    /// has `mapped` is read: memory beyond the image may never have been touched, and would be then.
    pub fn find(image: &'a Image<'a, M>, code: u64, mapped: impl Fn(u64) -> bool) -> Option<Self> {
        Kallsyms::open(image, find::tables(image, code, mapped)?)
    }

    /// The symbols, if it is known where they are.
    pub fn open(image: &'a Image<'a, M>, tables: Tables) -> Option<Self> {
        let bytes = tables.index.checked_sub(tables.tokens)?;
        if bytes > find::MOST_TOKENS {
            return None;
        }
        Some(Kallsyms {
            image,
            tables,
            index: image.bytes(tables.index, 512)?,
            tokens: image.bytes(tables.tokens, bytes)?,
        })
    }

    /// Where its parts are.
    pub fn tables(&self) -> Tables {
        self.tables
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.tables.count
    }

    /// The symbol in which `address` lies; `None` outside of the kernel's image.
    pub fn symbol(&self, address: u64) -> Option<Symbol> {
        let (mut low, mut high) = (0, self.tables.count);
        while high.checked_sub(low)? > 1 {
            let middle = low.midpoint(high);
            if self.address(middle)? <= address {
                low = middle;
            } else {
                high = middle;
            }
        }
        let start = self.address(low)?;
        let offset = address.checked_sub(start)?;
        let mut first = low;
        for _ in 0..MOST_ALIASES {
            match first.checked_sub(1) {
                Some(before) if self.address(before)? == start => first = before,
                _ => break,
            }
        }
        // Behind the last symbol nothing is the kernel's.
        let next = self.address(high).filter(|_| high < self.tables.count)?;
        let size = next.checked_sub(start).filter(|size| *size < IMAGE_BYTES)?;
        let name = self.name(first)?;
        Some(Symbol { name, offset, size })
    }

    /// The addresses of symbols by name, in one pass over all names. Each is `None` if there is no
    /// such symbol.
    pub fn addresses<const N: usize>(&self, wanted: [&str; N]) -> [Option<u64>; N] {
        let mut found = [None; N];
        let blocks = self.tables.count.div_ceil(BLOCK);
        for block in 0..blocks {
            let Some(bytes) = self.block(block) else {
                break;
            };
            let first = block.saturating_mul(BLOCK);
            let names = Names { rest: &bytes };
            for (number, packed) in (first..self.tables.count).zip(names).take(BLOCK as usize) {
                let name = self.unpack(packed);
                for (place, _) in found
                    .iter_mut()
                    .zip(wanted)
                    .filter(|(place, wanted)| place.is_none() && *wanted == name)
                {
                    *place = self.address(number);
                }
            }
        }
        found
    }

    /// The address of symbol `number`.
    fn address(&self, number: u32) -> Option<u64> {
        let tables = &self.tables;
        let at = tables
            .offsets
            .checked_add(u64::from(number).checked_mul(4)?)?;
        let offset = self.image.u32(at)?;
        Some(match (tables.signed, offset.cast_signed()) {
            (true, down @ ..0) => {
                let down = u64::from(down.unsigned_abs());
                tables.base.wrapping_sub(1).wrapping_add(down)
            }
            _ if tables.signed => u64::from(offset),
            _ => tables.base.wrapping_add(u64::from(offset)),
        })
    }

    /// The names from the one that marker `block` leads to on.
    fn block(&self, block: u32) -> Option<Vec<u8>> {
        let tables = &self.tables;
        let marker = tables
            .markers
            .checked_add(u64::from(block).checked_mul(4)?)?;
        let from = tables
            .names
            .checked_add(u64::from(self.image.u32(marker)?))?;
        let most = tables.markers.checked_sub(from)?.min(MOST_BLOCK);
        self.image.bytes(from, most)
    }

    fn name(&self, number: u32) -> Option<String> {
        let block = self.block(number.checked_div(BLOCK)?)?;
        let inside = number.checked_rem(BLOCK)?;
        let mut names = Names { rest: &block };
        names.nth(inside as usize).map(|packed| self.unpack(packed))
    }

    /// The text of tokens, without its first character, which is the symbol's kind.
    fn unpack(&self, packed: &[u8]) -> String {
        let mut name = String::new();
        let texts = packed.iter().filter_map(|token| {
            let at = usize::from(*token).checked_mul(2)?;
            let at = u16::from_le_bytes(*self.index.get(at..)?.first_chunk()?);
            self.tokens.get(usize::from(at)..)
        });
        for text in texts {
            let text = text.iter().take_while(|byte| **byte != 0);
            name.extend(text.map(|byte| match byte {
                b'!'..=b'~' => char::from(*byte),
                _ => '?',
            }));
            if name.len() > MOST_NAME {
                break;
            }
        }
        name.truncate(MOST_NAME);
        if name.is_empty() {
            return name;
        }
        name.split_off(1)
    }
}

/// The packed names in a piece of `names`.
struct Names<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Names<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (first, rest) = self.rest.split_first()?;
        let (length, rest) = if first & 0x80 == 0 {
            (usize::from(*first), rest)
        } else {
            let (second, rest) = rest.split_first()?;
            (usize::from(first & 0x7F) | usize::from(*second) << 7, rest)
        };
        let (name, rest) = rest.split_at_checked(length)?;
        self.rest = rest;
        Some(name)
    }
}

/// Rounds up to a multiple of 8.
fn align(address: u64) -> Option<u64> {
    address.checked_next_multiple_of(8)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
