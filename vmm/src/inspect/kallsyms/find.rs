//! Finding kallsyms in an image that says nowhere where it is.
//!
//! All digits occur in names, so `token_table` has them as they are, one after the other. From
//! there `token_index` is counted forwards and proves the find; `markers`, `names` and the number of
//! symbols are counted backwards, each proving the one before.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use super::{BLOCK, MOST_BLOCK, Names, Tables, align};
use crate::inspect::image::{IMAGE_BYTES, Image, KERNEL_MAP, u32_of as word};
use crate::inspect::walk::Physical;

/// Longest `token_table`.
pub const MOST_TOKENS: u64 = 16 << 10;
/// More symbols than this has no kernel.
const MOST_SYMBOLS: u64 = 1 << 20;
/// How far from the code that is known the tables are looked for, in each direction.
const REACH: u64 = 96 << 20;
/// Digits in a row that are looked at; a kernel has them once or twice elsewhere.
const MOST_TRIES: u32 = 32;
/// Steps back through what could be markers, in one try.
const MOST_STEPS: u32 = 4 << 20;
const CHUNK: u64 = 256 << 10;
/// So much of a chunk is looked at again with the next.
const OVERLAP: u64 = 64;
const DIGITS: [u8; 20] = *b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";
/// Lengths of a block of 256 names that a kernel can have.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 2 * BLOCK..=120 * BLOCK;

/// Looks for the tables: behind the code first, where they are in a kernel that has booted.
pub fn tables<M: Physical>(
    image: &Image<'_, M>,
    code: u64,
    mapped: impl Fn(u64) -> bool,
) -> Option<Tables> {
    let start = code & !7;
    let steps = REACH.checked_div(CHUNK)?;
    let behind = (0..steps).map(|step| start.wrapping_add(step.wrapping_mul(CHUNK)));
    let before = (1..=steps).map(|step| start.wrapping_sub(step.wrapping_mul(CHUNK)));
    let mut bytes = vec![0; usize::try_from(CHUNK.wrapping_add(OVERLAP)).ok()?];
    let mut tries = MOST_TRIES;
    let chunks = behind.chain(before).filter(|at| *at >= KERNEL_MAP);
    for at in chunks {
        // Both ends: a kernel unmaps what lies unused between two of its parts.
        if !mapped(at) && !mapped(at.wrapping_add(CHUNK)) {
            continue;
        }
        if image.read(at, &mut bytes).is_none() {
            continue;
        }
        for found in digits(&bytes) {
            tries = tries.checked_sub(1)?;
            let zero = at.wrapping_add(found as u64);
            if let Some(tables) = around(image, zero, code) {
                return Some(tables);
            }
        }
    }
    None
}

/// Where in `bytes` the ten digits lie as tokens. Each place of them holds one whole aligned word,
/// so only words are looked at.
fn digits(bytes: &[u8]) -> impl Iterator<Item = usize> {
    const EVEN: (u64, u64) = (0xFFF0_FFF0_FFF0_FFF0, 0x0030_0030_0030_0030);
    const ODD: (u64, u64) = (0xF0FF_F0FF_F0FF_F0FF, 0x3000_3000_3000_3000);
    let words = bytes.chunks_exact(8).enumerate();
    let hits = words.filter(|(_, word)| {
        let word = word
            .first_chunk()
            .map_or(0, |word| u64::from_le_bytes(*word));
        word & EVEN.0 == EVEN.1 || word & ODD.0 == ODD.1
    });
    let mut last = None;
    hits.filter_map(move |(index, _)| {
        let from = index.saturating_mul(8).saturating_sub(DIGITS.len());
        let around = bytes.get(from..)?;
        let around = around.get(..48).unwrap_or(around);
        let mut windows = around.windows(DIGITS.len());
        let found = windows.position(|window| window == DIGITS)?;
        let found = from.checked_add(found)?;
        (last.replace(found) != Some(found)).then_some(found)
    })
}

/// The tables whose token "0" is at `zero`.
fn around<M: Physical>(image: &Image<'_, M>, zero: u64, code: u64) -> Option<Tables> {
    let (tokens, index) = tokens(image, zero)?;
    let (markers, blocks, exact) = markers(image, tokens)?;
    let (names, count) = names(image, markers, blocks, exact)?;
    let size = u64::from(count).checked_mul(4)?;
    let behind = index.checked_add(512)?;
    let base_behind = align(behind.checked_add(size)?)?;
    let base_before = names.checked_sub(16)?;
    let before = base_before.checked_sub(align(size)?)?;
    // A relative_base is the image's beginning.
    let fits = |base: &u64| {
        let far = code.checked_sub(*base);
        *base >= KERNEL_MAP && base & 0xFFF == 0 && far.is_some_and(|far| far < IMAGE_BYTES)
    };
    let (offsets, base) = [(behind, base_behind), (before, base_before)]
        .into_iter()
        .find_map(|(offsets, at)| Some((offsets, image.u64(at).filter(fits)?)))?;
    let last = u64::from(count).checked_sub(1)?.checked_mul(4)?;
    let last = image.u32(offsets.checked_add(last)?)?;
    Some(Tables {
        names,
        markers,
        tokens,
        index,
        offsets,
        base,
        count,
        signed: last.cast_signed() < 0,
    })
}

/// Where `token_table` and `token_index` begin.
fn tokens<M: Physical>(image: &Image<'_, M>, zero: u64) -> Option<(u64, u64)> {
    let mut bytes = vec![0; usize::try_from(MOST_TOKENS).ok()?];
    image.read(zero, &mut bytes)?;
    let mut ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == 0);
    // "0" is number 48 of 256.
    let (end, _) = ends.nth(207)?;
    let end = zero.checked_add(end as u64)?.checked_add(1)?;
    let index = align(end)?;
    let entries: [u8; 512] = image.array(index)?;
    let entries = entries.chunks_exact(2);
    let entries = entries.filter_map(|entry| entry.first_chunk().copied());
    let entries: Vec<u16> = entries.map(u16::from_le_bytes).collect();
    let ascending = entries.is_sorted_by(|one, two| one < two);
    if entries.first() != Some(&0) || !ascending {
        return None;
    }
    let table = zero.checked_sub(u64::from(*entries.get(48)?))?;
    let last = table.checked_add(u64::from(*entries.last()?))?;
    (table & 7 == 0 && last < end).then_some((table, index))
}

/// Where `markers` begins, how many there are, and how many symbols if `seqs_of_names` tells that.
fn markers<M: Physical>(image: &Image<'_, M>, tokens: u64) -> Option<(u64, u32, Option<u32>)> {
    // 3 bytes a symbol, and the markers of as many.
    const SEQS: u64 = 3 * MOST_SYMBOLS;
    const MARKERS: u64 = 4 * (MOST_SYMBOLS / BLOCK as u64);
    // What is there of it: an image that begins later is read from its beginning.
    let (from, bytes) = [SEQS + MARKERS, SEQS / 2, SEQS / 4, MARKERS, 4096]
        .into_iter()
        .find_map(|most| {
            let from = tokens.checked_sub(most)?;
            Some((from, image.bytes(from, most)?))
        })?;
    let ends = (8..=bytes.len()).rev().step_by(8);
    let mut steps = MOST_STEPS;
    for end in ends {
        let Some((start, blocks)) = run(&bytes, end, &mut steps) else {
            continue;
        };
        let seqs = bytes.len().checked_sub(end)? as u64;
        let markers = from.checked_add(start as u64)?;
        if seqs == 0 {
            return Some((markers, blocks, None));
        }
        let counts = seqs.saturating_sub(7).div_ceil(3)..=seqs.checked_div(3)?;
        let fits = |count: &u64| count.div_ceil(u64::from(BLOCK)) == u64::from(blocks);
        if let Some(count) = counts.rev().find(fits) {
            return Some((markers, blocks, Some(u32::try_from(count).ok()?)));
        }
    }
    None
}

/// The markers that end at `end` of `bytes`, maybe before a padding of 4 zeros: where they begin,
/// and how many they are. They rise by what a block can be long, from 0 on.
fn run(bytes: &[u8], end: usize, steps: &mut u32) -> Option<(usize, u32)> {
    let mut at = end.checked_sub(4)?;
    if word(bytes, at)? == 0 {
        at = at.checked_sub(4)?;
    }
    let mut above = word(bytes, at)?;
    let mut count = 1;
    while above != 0 {
        *steps = steps.checked_sub(1)?;
        at = at.checked_sub(4)?;
        let below = word(bytes, at)?;
        if !BLOCK_BYTES.contains(&above.checked_sub(below)?) {
            return None;
        }
        above = below;
        count = u32::checked_add(count, 1)?;
    }
    (count > 1).then_some((at, count))
}

/// Where `names` begins, and how many there are: `num_syms` lies before it, and the last block ends
/// where `markers` begins.
fn names<M: Physical>(
    image: &Image<'_, M>,
    markers: u64,
    blocks: u32,
    exact: Option<u32>,
) -> Option<(u64, u32)> {
    let before_last = blocks.checked_sub(1)?.checked_mul(BLOCK)?;
    let last_marker = u64::from(blocks).checked_sub(1)?.checked_mul(4)?;
    let last_marker = image.u32(markers.checked_add(last_marker)?)?;
    let highest = markers.checked_sub(u64::from(last_marker))? & !7;
    let lowest = highest.checked_sub(MOST_BLOCK)?;
    let head = image.bytes(lowest, MOST_BLOCK)?;
    let places = (8..=head.len()).rev().step_by(8);
    for place in places {
        let count = word(&head, place.checked_sub(8)?)?;
        let in_last = count.checked_sub(before_last);
        let fits = in_last.is_some_and(|in_last| (1..=BLOCK).contains(&in_last))
            && word(&head, place.checked_sub(4)?)? == 0
            && exact.is_none_or(|exact| exact.abs_diff(count) <= 2);
        if !fits {
            continue;
        }
        let names = lowest.checked_add(place as u64)?;
        let block = names.checked_add(u64::from(last_marker))?;
        let bytes = image.bytes(block, markers.checked_sub(block)?.min(MOST_BLOCK))?;
        let mut walk = Names { rest: &bytes };
        let whole = walk.by_ref().take(in_last? as usize).count() == in_last? as usize;
        if whole && walk.rest.len() < 8 {
            return Some((names, count));
        }
    }
    None
}
