//! Giving guest memory back to the host: the guest reads zeros there, or anything that it writes.
//!
//! What backs a region decides how: anonymous memory is dropped page by page, a file (memfd) gets a
//! hole. Pages of a pool go back only whole.

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::mmap::GuestRegionMmap;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::GuestRam;
use crate::backing::Backing;

/// Bytes of a small page.
const PAGE_BYTES: u64 = 4096;

/// Why memory was not given back.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// Not all of the range is RAM.
    #[error("guest memory at {start:#x} has no {bytes} bytes to give back")]
    OutsideRam {
        /// Where it begins.
        start: u64,
        /// How long it is.
        bytes: u64,
    },
    /// The host's kernel refused.
    #[error("the host refused to take guest memory back: {0}")]
    Host(#[from] io::Error),
}

/// Gives memory of one guest back.
#[derive(Clone, Debug)]
pub struct Discarder {
    ram: GuestRam,
    unit: u64,
}

impl Discarder {
    /// For `ram`, which `backing` backs.
    pub fn new(ram: &GuestRam, backing: Backing) -> Self {
        let unit = match backing {
            Backing::Anonymous | Backing::Transparent => PAGE_BYTES,
            Backing::HugeTlb2M => 2 << 20,
        };
        Discarder {
            ram: ram.clone(),
            unit,
        }
    }

    /// The ranges of RAM: first byte and bytes.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let regions = self.ram.iter();
        regions
            .map(|region| (region.start_addr().raw_value(), region.len()))
            .collect()
    }

    /// Gives `bytes` from `start` on back, as far as they are whole pages of the backing: the bytes
    /// that went back.
    ///
    /// # Errors
    /// [`DiscardError`]; regions before the one that failed have been given back.
    pub fn discard(&self, start: u64, bytes: u64) -> Result<u64, DiscardError> {
        let outside = || DiscardError::OutsideRam { start, bytes };
        let end = start.checked_add(bytes).ok_or_else(outside)?;
        let (mut at, mut done) = (start, 0u64);
        while at < end {
            let region = self.ram.find_region(GuestAddress(at)).ok_or_else(outside)?;
            let first = region.start_addr().raw_value();
            let past = first.saturating_add(region.len()).min(end);
            let from = at.checked_next_multiple_of(self.unit).ok_or_else(outside)?;
            let whole = past.saturating_sub(from) / self.unit * self.unit;
            if whole > 0 {
                give_back(region, from.saturating_sub(first), whole)?;
                done = done.saturating_add(whole);
            }
            at = past;
        }
        Ok(done)
    }
}

/// `offset` and `bytes` lie inside the region.
#[allow(unsafe_code)]
fn give_back(region: &GuestRegionMmap, offset: u64, bytes: u64) -> io::Result<()> {
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let result = if let Some(file) = region.file_offset() {
        let at = file.start().saturating_add(offset);
        let at = libc::off_t::try_from(at).map_err(out_of_range)?;
        let length = libc::off_t::try_from(bytes).map_err(out_of_range)?;
        let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a system call on a file that the region keeps open; it touches no memory of Rust.
        unsafe { libc::fallocate(file.file().as_raw_fd(), how, at, length) }
    } else {
        let place = usize::try_from(offset).map_err(out_of_range)?;
        let length = usize::try_from(bytes).map_err(out_of_range)?;
        let start = region.as_ptr().wrapping_add(place);
        // SAFETY: the range lies inside the region's own mapping, which `region` keeps; it is guest
        // memory, to which no Rust reference is made, and reads as zeros from then on.
        unsafe { libc::madvise(start.cast(), length, libc::MADV_DONTNEED) }
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::MetadataExt;

    use vm_memory::{Bytes, FileOffset};

    use super::*;

    const BYTES: u64 = 64 * PAGE_BYTES;

    fn filled(ram: &GuestRam) {
        let ones = vec![1u8; BYTES as usize];
        ram.write_slice(&ones, GuestAddress(0)).unwrap();
    }

    fn sum(ram: &GuestRam, page: u64) -> u64 {
        let mut bytes = vec![0u8; PAGE_BYTES as usize];
        ram.read_slice(&mut bytes, GuestAddress(page * PAGE_BYTES))
            .unwrap();
        bytes.iter().map(|byte| u64::from(*byte)).sum()
    }

    #[test]
    fn what_is_given_back_reads_as_zeros_and_the_rest_stays() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), BYTES as usize)]).unwrap();
        filled(&ram);
        let discarder = Discarder::new(&ram, Backing::Anonymous);
        assert_eq!(discarder.ranges(), [(0, BYTES)]);
        let gone = discarder.discard(PAGE_BYTES, 2 * PAGE_BYTES).unwrap();
        assert_eq!(gone, 2 * PAGE_BYTES);
        let pages = [0, 1, 2, 3].map(|page| sum(&ram, page));
        assert_eq!(pages, [PAGE_BYTES, 0, 0, PAGE_BYTES]);
        // Parts of pages stay.
        let gone = discarder.discard(PAGE_BYTES / 2, 10 * PAGE_BYTES);
        assert_eq!(gone.unwrap(), 9 * PAGE_BYTES);
        assert_eq!(sum(&ram, 0), PAGE_BYTES);
        assert_eq!(sum(&ram, 10), PAGE_BYTES);
    }

    #[test]
    fn pages_of_a_pool_go_back_whole_or_not_at_all() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        filled(&ram);
        let discarder = Discarder::new(&ram, Backing::HugeTlb2M);
        assert_eq!(discarder.discard(0, PAGE_BYTES).unwrap(), 0);
        assert_eq!(sum(&ram, 0), PAGE_BYTES);
        let whole = discarder.discard(0, (2 << 20) + PAGE_BYTES).unwrap();
        assert_eq!(whole, 2 << 20);
        assert_eq!(sum(&ram, 0), 0);
    }

    #[test]
    fn what_is_not_ram_is_refused() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), BYTES as usize)]).unwrap();
        let discarder = Discarder::new(&ram, Backing::Anonymous);
        for (start, bytes) in [(BYTES, 4096), (BYTES - 4096, 8192), (u64::MAX - 1, 4096)] {
            let error = discarder.discard(start, bytes).unwrap_err();
            assert!(matches!(error, DiscardError::OutsideRam { .. }), "{error}");
        }
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_file_gets_a_hole() {
        // SAFETY: a new descriptor, owned by the file alone.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"ram".as_ptr(), 0)) };
        file.set_len(BYTES).unwrap();
        let seen = file.try_clone().unwrap();
        let place = Some(FileOffset::new(file, 0));
        let range = (GuestAddress(0), BYTES as usize, place);
        let ram = GuestRam::from_ranges_with_files([range]).unwrap();
        filled(&ram);
        let before = seen.metadata().unwrap().blocks();
        let discarder = Discarder::new(&ram, Backing::Anonymous);
        discarder.discard(0, BYTES / 2).unwrap();
        assert_eq!(seen.metadata().unwrap().blocks() * 2, before);
        assert_eq!(sum(&ram, 0), 0);
        assert_eq!(sum(&ram, BYTES / PAGE_BYTES - 1), PAGE_BYTES);
    }
}
