//! Relocations: what must change when the kernel runs at another virtual address than it was
//! linked for (arch/x86/boot/compressed/misc.c, handle_relocations; arch/x86/tools/relocs.c).
//!
//! Behind the image stand sets of 32-bit words, each set ended, towards the front, by a zero: read
//! from the back, the places of 32-bit words to add to; then, before Linux 6.15, those of 32-bit
//! words to subtract from (per-CPU offsets relative to RIP); then those of 64-bit words. Each is
//! the linked virtual address of the place, cut to 32 bits.

use linux_loader::loader::bootparam::setup_header;

use super::{TEXT_MAP, UnpackError};

/// Which sets of relocations a kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sets {
    /// 64-bit, inverse 32-bit, 32-bit: up to Linux 6.14.
    WithInverse,
    /// 64-bit, 32-bit.
    Plain,
}

/// How far the kernel moves.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// The virtual address that the first byte was linked for.
    pub linked: u64,
    /// What is added to it.
    pub delta: u64,
}

/// The sets that the kernel in `file` has, by the version that its header names.
///
/// # Errors
/// [`UnpackError::Image`] when it names none.
pub fn sets(file: &[u8], header: &setup_header) -> Result<Sets, UnpackError> {
    let unknown = UnpackError::Image("no version that says how it is relocated");
    let text = file
        .get(usize::from(header.kernel_version) + 0x200..)
        .unwrap_or_default();
    let text = text.get(..64).unwrap_or_default();
    let mut numbers = text
        .split(|byte| !byte.is_ascii_digit())
        .map_while(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (6, 15) => Ok(Sets::WithInverse),
        (Some(_), Some(_)) => Ok(Sets::Plain),
        _ => Err(unknown),
    }
}

/// Applies the relocations in `table` (the words behind the kernel) to `text`, whose first byte was
/// linked for `map.linked`.
///
/// # Errors
/// [`UnpackError::Image`] when a place lies outside the kernel or a set has no end.
pub fn apply(text: &mut [u8], table: &[u8], sets: Sets, map: Map) -> Result<(), UnpackError> {
    let cut = table.len() % 4;
    let words = table.get(cut..).unwrap_or_default();
    let mut words = words
        .rchunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().unwrap_or_default()));
    // The cut to 32 bits is meant: it is the hardware's arithmetic.
    let delta = map.delta as u32;
    each(&mut words, text, map, |place: &mut [u8; 4]| {
        *place = u32::from_le_bytes(*place).wrapping_add(delta).to_le_bytes();
    })?;
    if sets == Sets::WithInverse {
        each(&mut words, text, map, |place: &mut [u8; 4]| {
            *place = u32::from_le_bytes(*place).wrapping_sub(delta).to_le_bytes();
        })?;
    }
    each(&mut words, text, map, |place: &mut [u8; 8]| {
        *place = u64::from_le_bytes(*place)
            .wrapping_add(map.delta)
            .to_le_bytes();
    })
}

/// Changes all places of one set.
fn each<const N: usize>(
    words: &mut impl Iterator<Item = u32>,
    text: &mut [u8],
    map: Map,
    change: impl Fn(&mut [u8; N]),
) -> Result<(), UnpackError> {
    for word in words {
        if word == 0 {
            return Ok(());
        }
        let linked = TEXT_MAP & 0xFFFF_FFFF_0000_0000 | u64::from(word);
        let place = linked
            .checked_sub(map.linked)
            .and_then(|at| text.get_mut(usize::try_from(at).ok()?..))
            .and_then(<[u8]>::first_chunk_mut)
            .ok_or(UnpackError::Image("a relocation outside"))?;
        change(place);
    }
    Err(UnpackError::Image("a set of relocations without an end"))
}
