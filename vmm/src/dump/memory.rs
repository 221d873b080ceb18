//! Guest memory into a core: only pages that hold something.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use memory::{Bytes, GuestAddress, GuestRam};

use super::elf::Piece;
use super::target::Target;
use super::{DumpError, Progress};

const PAGE: usize = 4096;
/// Bytes that are looked at together.
const STEP: usize = 1 << 20;
/// Bytes from one report of progress to the next.
const REPORT: u64 = 64 << 20;

/// Copies all pieces.
///
/// # Errors
/// [`DumpError`]: the disk, or the deadline.
pub fn copy(
    ram: &GuestRam,
    pieces: &[Piece],
    target: &Target,
    end: Instant,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DumpError> {
    let pages = Pages::open();
    let total = pieces.iter().map(|piece| piece.bytes).sum();
    let hosts = memory::backing::host_ranges(ram);
    let mut buffer = vec![0; STEP];
    let (mut done, mut reported) = (0u64, 0);
    for piece in pieces {
        let host = hosts.iter().find(|(guest, ..)| *guest == piece.guest);
        let host = host.map(|(_, _, host)| *host);
        for at in (0..piece.bytes).step_by(STEP) {
            if Instant::now() > end {
                return Err(DumpError::Late { done, total });
            }
            let bytes = (piece.bytes - at).min(STEP as u64);
            let buffer = buffer.get_mut(..bytes as usize).unwrap_or_default();
            if host.is_none_or(|host| pages.hold_something(host + at, bytes)) {
                ram.read_slice(buffer, GuestAddress(piece.guest + at))
                    .map_err(|error| DumpError::Memory(error.to_string()))?;
                write_full_pages(target, buffer, piece.offset + at)?;
            }
            done += bytes;
            if done - reported >= REPORT {
                reported = done;
                progress(Progress { done, total });
            }
        }
    }
    Ok(())
}

/// Writes those pages of `bytes` that are not all zero, neighbours together.
fn write_full_pages(target: &Target, bytes: &[u8], offset: u64) -> Result<(), DumpError> {
    let pages: Vec<&[u8]> = bytes.chunks(PAGE).collect();
    let mut at = 0;
    for run in pages.chunk_by(|first, second| is_zero(first) == is_zero(second)) {
        let length: usize = run.iter().map(|page| page.len()).sum();
        if run.first().is_some_and(|page| !is_zero(page)) {
            let full = bytes.get(at..at + length).unwrap_or_default();
            target.write_at(full, offset + at as u64)?;
        }
        at += length;
    }
    Ok(())
}

fn is_zero(page: &[u8]) -> bool {
    let words = page.chunks_exact(8);
    words.remainder().iter().all(|byte| *byte == 0)
        && page.chunks_exact(8).all(|word| word == [0; 8])
}

/// Which pages of this process hold something (Documentation/admin-guide/mm/pagemap.rst). Reading
/// one that does not would make the host fill it.
struct Pages(Option<File>);

impl Pages {
    fn open() -> Self {
        Pages(File::open("/proc/self/pagemap").ok())
    }

    /// Whether a page of these is in memory or in swap; true where nothing tells.
    fn hold_something(&self, host: u64, bytes: u64) -> bool {
        const PRESENT_OR_SWAPPED: u64 = 3 << 62;
        let Some(file) = &self.0 else {
            return true;
        };
        let count = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(PAGE);
        let mut words = vec![0; count.min(STEP / PAGE) * 8];
        let offset = host / PAGE as u64 * 8;
        if file.read_exact_at(&mut words, offset).is_err() {
            return true;
        }
        words.chunks_exact(8).any(|word| {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            word & PRESENT_OR_SWAPPED != 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_zero_only_if_each_of_its_bytes_is() {
        for length in [1, 7, 8, 100, PAGE] {
            let mut page = vec![0; length];
            assert!(is_zero(&page));
            for at in [0, length / 2, length - 1] {
                page[at] = 1;
                assert!(!is_zero(&page), "{at} of {length}");
                page[at] = 0;
            }
        }
    }

    #[test]
    fn only_touched_pages_are_read() {
        let spec = memory::MemorySpec {
            size_mib: 8,
            ..memory::MemorySpec::default()
        };
        let ram = memory::build(&spec).unwrap();
        ram.write_slice(b"touched", GuestAddress(5 << 20)).unwrap();
        let pages = Pages::open();
        assert!(pages.0.is_some(), "no pagemap");
        let (_, _, host) = memory::backing::host_ranges(&ram)[0];
        let held = |mib: u64| pages.hold_something(host + (mib << 20), 1 << 20);
        assert!(held(5));
        assert_eq!((held(0), held(7)), (false, false));
    }
}
