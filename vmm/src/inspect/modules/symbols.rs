//! A module's own symbols: `struct mod_kallsyms` (include/linux/module.h), in `struct module`.
//!
//! It is found by its shape, as where it lies differs from kernel to kernel: the address of the
//! symbols (ELF64, the first one all zeros), how many there are, and the address of their names, of
//! which the first is empty. Both lie among the modules.

use super::super::kallsyms::Symbol;
use super::super::walk::{Physical, Space};
use super::AREA;

/// An ELF64 symbol: name, info, other, section, value, size.
const SYMBOL: usize = 24;
/// Symbols that are looked through.
const MOST_SYMBOLS: u64 = 16 << 10;
const SYMBOLS_AT_ONCE: u64 = 128;
const MOST_NAME: usize = 128;
/// No function is larger.
const MOST_SIZE: u64 = 1 << 20;

/// Where the symbols are.
#[derive(Clone, Copy)]
struct Table {
    symbols: u64,
    count: u64,
    names: u64,
}

/// The best symbol so far.
#[derive(Clone, Copy)]
struct Best {
    name: u32,
    value: u64,
    size: u64,
}

/// The function that has `address`, by the symbols of the module whose `struct module` has these
/// `bytes`, aligned to 8.
pub fn symbol<M: Physical>(space: &Space<'_, M>, bytes: &[u8], address: u64) -> Option<Symbol> {
    let places = (0..bytes.len()).step_by(8);
    let mut tables = places.filter_map(|at| table(bytes.get(at..)?));
    tables.find_map(|table| {
        let begins = begins_empty(space, table);
        begins.then(|| find(space, table, address)).flatten()
    })
}

fn table(bytes: &[u8]) -> Option<Table> {
    let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let (symbols, names) = (word(0)?, word(16)?);
    // Of the number's word, the upper half is a gap.
    let count = word(8)? & 0xFFFF_FFFF;
    let is_one = symbols & 7 == 0
        && AREA.contains(&symbols)
        && AREA.contains(&names)
        && (2..=MOST_SYMBOLS).contains(&count);
    is_one.then_some(Table {
        symbols,
        count,
        names,
    })
}

fn begins_empty<M: Physical>(space: &Space<'_, M>, table: Table) -> bool {
    let (mut symbol, mut name) = ([1; SYMBOL], [1; 1]);
    let is_read = space.read(table.symbols, &mut symbol).is_ok()
        && space.read(table.names, &mut name).is_ok();
    is_read && symbol == [0; SYMBOL] && name == [0]
}

fn find<M: Physical>(space: &Space<'_, M>, table: Table, address: u64) -> Option<Symbol> {
    let mut best: Option<Best> = None;
    let mut next = u64::MAX;
    let mut first = 0;
    let mut bytes = [0; SYMBOL * SYMBOLS_AT_ONCE as usize];
    while first < table.count {
        let count = table.count.saturating_sub(first).min(SYMBOLS_AT_ONCE);
        let length = usize::try_from(count).ok()?.checked_mul(SYMBOL)?;
        let from = first.checked_mul(SYMBOL as u64)?;
        let part = bytes.get_mut(..length)?;
        space.read(table.symbols.checked_add(from)?, part).ok()?;
        for symbol in part.chunks_exact(SYMBOL) {
            let Some(found) = defined(symbol) else {
                continue;
            };
            if found.value > address {
                next = next.min(found.value);
            } else if best.is_none_or(|best| (best.value, best.size) < (found.value, found.size)) {
                best = Some(found);
            }
        }
        first = first.checked_add(count)?;
    }
    let best = best?;
    let offset = address.checked_sub(best.value)?;
    let to_next = next.checked_sub(best.value)?;
    let size = if best.size > 0 { best.size } else { to_next };
    if offset >= size.min(MOST_SIZE) {
        return None;
    }
    Some(Symbol {
        name: name(space, table, best.name)?,
        offset,
        size,
    })
}

/// A symbol that has a section.
fn defined(bytes: &[u8]) -> Option<Best> {
    let section = u16::from_le_bytes(*bytes.get(6..)?.first_chunk()?);
    let found = Best {
        name: u32::from_le_bytes(*bytes.first_chunk()?),
        value: u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?),
        size: u64::from_le_bytes(*bytes.get(16..)?.first_chunk()?),
    };
    (section != 0 && found.name != 0 && AREA.contains(&found.value)).then_some(found)
}

fn name<M: Physical>(space: &Space<'_, M>, table: Table, at: u32) -> Option<String> {
    let from = table.names.checked_add(u64::from(at))?;
    let mut text = String::new();
    for index in 0..MOST_NAME as u64 {
        let mut byte = [0; 1];
        space.read(from.checked_add(index)?, &mut byte).ok()?;
        match byte {
            [0] => break,
            [byte] if byte.is_ascii_graphic() => text.push(char::from(byte)),
            _ => return None,
        }
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
