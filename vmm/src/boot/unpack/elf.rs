//! The ELF image inside a bzImage: its segments, moved to where they belong.

use super::UnpackError;

/// Where the text segment lies in the file: the linker aligns it to its own 2 MiB.
pub const TEXT_OFFSET: u64 = 0x20_0000;

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const MOST_SEGMENTS: usize = 16;
const PT_LOAD: u32 = 1;
const MACHINE_X86_64: u16 = 62;

/// What is known of the kernel after its segments are in place.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its entry as it was linked, physical.
    pub entry: u64,
    /// Bytes of the image that are the kernel; relocations follow.
    pub file_bytes: usize,
}

struct Segment {
    offset: usize,
    physical: u64,
    bytes: usize,
}

/// Moves each segment of the ELF file that `image` holds to its place, counted from
/// [`TEXT_OFFSET`], where what is linked for physical address `base` belongs.
///
/// # Errors
/// [`UnpackError::Image`] when it is not a kernel that can be moved so.
pub fn settle(image: &mut [u8], base: u64) -> Result<Kernel, UnpackError> {
    let segments = segments(image)?;
    let entry = u64_at(image, 24)?;
    let mut end = 0;
    for segment in &segments {
        let place = segment
            .physical
            .checked_sub(base)
            .and_then(|above| usize::try_from(above + TEXT_OFFSET).ok())
            .ok_or(UnpackError::Image("a segment below its base"))?;
        // In file order, each downwards or not at all: none overwrites one that is yet to move.
        if place > segment.offset || place < end {
            return Err(UnpackError::Image("segments out of order"));
        }
        let from = segment.offset..segment.offset + segment.bytes;
        if from.end > image.len() {
            return Err(UnpackError::Image("a segment beyond its end"));
        }
        if place != segment.offset {
            image.copy_within(from, place);
        }
        end = place + segment.bytes;
    }
    let last = segments
        .iter()
        .map(|segment| segment.offset + segment.bytes)
        .max();
    let file_bytes = last.ok_or(UnpackError::Image("no segments"))?;
    let text_end = base + end as u64 - TEXT_OFFSET;
    if !(base..text_end).contains(&entry) {
        return Err(UnpackError::Image("an entry outside"));
    }
    Ok(Kernel { entry, file_bytes })
}

fn segments(image: &[u8]) -> Result<Vec<Segment>, UnpackError> {
    let ours = image.len() >= HEADER_BYTES
        && image.starts_with(b"\x7FELF\x02\x01")
        && u16_at(image, 18)? == MACHINE_X86_64
        && usize::from(u16_at(image, 54)?) == PROGRAM_HEADER_BYTES;
    if !ours {
        return Err(UnpackError::Image("not an x86-64 ELF file"));
    }
    let table = usize::try_from(u64_at(image, 32)?).map_err(|_| UnpackError::Header)?;
    let count = usize::from(u16_at(image, 56)?);
    if count > MOST_SEGMENTS {
        return Err(UnpackError::Image("too many segments"));
    }
    let mut segments = Vec::new();
    for index in 0..count {
        let at = table.saturating_add(index * PROGRAM_HEADER_BYTES);
        if u32_at(image, at)? != PT_LOAD {
            continue;
        }
        let size = |at| usize::try_from(u64_at(image, at)?).map_err(|_| UnpackError::Header);
        let (offset, bytes) = (size(at.saturating_add(8))?, size(at.saturating_add(32))?);
        let physical = u64_at(image, at.saturating_add(24))?;
        if bytes > image.len() || offset > image.len() || physical > 1 << 40 {
            return Err(UnpackError::Image("a segment that cannot be"));
        }
        segments.push(Segment {
            offset,
            physical,
            bytes,
        });
    }
    Ok(segments)
}

fn bytes_at<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N], UnpackError> {
    image
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .ok_or(UnpackError::Header)
}

fn u16_at(image: &[u8], at: usize) -> Result<u16, UnpackError> {
    bytes_at(image, at).map(u16::from_le_bytes)
}

fn u32_at(image: &[u8], at: usize) -> Result<u32, UnpackError> {
    bytes_at(image, at).map(u32::from_le_bytes)
}

fn u64_at(image: &[u8], at: usize) -> Result<u64, UnpackError> {
    bytes_at(image, at).map(u64::from_le_bytes)
}
