//! What backs guest memory on the host.

use std::fs;

use vm_memory::GuestRegionCollectionError;
use vm_memory::mmap::{GuestRegionMmap, MmapRegion};

use crate::GuestRam;
use crate::layout::{MIB, ram_ranges};

/// How the host backs guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous memory; huge pages as the host's default has it.
    #[default]
    Anonymous,
    /// Anonymous memory with `madvise(MADV_HUGEPAGE)`.
    Transparent,
    /// 2 MiB pages from the host's hugetlb pool, reserved when the VM is built.
    HugeTlb2M,
}

/// A guest's memory, validated by [`MemorySpec::validate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySpec {
    /// Size in MiB, at least 1.
    pub size_mib: u64,
    /// What backs it.
    pub backing: Backing,
}

impl Default for MemorySpec {
    fn default() -> Self {
        MemorySpec {
            size_mib: 128,
            backing: Backing::Anonymous,
        }
    }
}

/// Why guest memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No memory at all.
    #[error("mem_size_mib is 0: a guest needs memory; give at least 1 MiB (stock Linux needs 64)")]
    Zero,
    /// More than the host has.
    #[error(
        "mem_size_mib {asked} is more than this host's {total} MiB of memory; give at most {total}"
    )]
    BeyondHost {
        /// MiB asked.
        asked: u64,
        /// MiB of the host's memory.
        total: u64,
    },
    /// The size is not a multiple of the page size.
    #[error(
        "mem_size_mib {asked} is not a multiple of the {page} MiB huge page; \
         the nearest that a guest can have: {nearest}"
    )]
    Indivisible {
        /// MiB asked.
        asked: u64,
        /// MiB of a page.
        page: u64,
        /// The next smaller and larger multiples that this host can give, in words.
        nearest: String,
    },
    /// The hugetlb pool cannot serve the request.
    #[error(
        "the pool of 2 MiB huge pages cannot serve {asked} pages: {free} of {total} are free; \
         raise /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages or use huge_pages None"
    )]
    PoolTooSmall {
        /// Pages asked.
        asked: u64,
        /// Pages free and not reserved.
        free: u64,
        /// Pages in the pool.
        total: u64,
    },
    /// The kernel refused the mapping.
    #[error("the host refused to map {bytes} bytes of guest memory: {source}")]
    Map {
        /// Bytes asked.
        bytes: u64,
        /// Why.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The region does not fit into the address space.
    #[error("guest memory does not fit at its guest address")]
    Overflow,
    /// The regions cannot be put together.
    #[error("guest memory regions do not fit together: {0}")]
    Regions(#[from] GuestRegionCollectionError),
}

impl MemorySpec {
    /// Bytes of guest memory.
    pub fn bytes(&self) -> u64 {
        self.size_mib.saturating_mul(MIB)
    }

    /// Judges the spec against this host.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn validate(&self) -> Result<(), MemoryError> {
        if self.size_mib == 0 {
            return Err(MemoryError::Zero);
        }
        if let Some(total) = host_total_mib().filter(|total| self.size_mib > *total) {
            return Err(MemoryError::BeyondHost {
                asked: self.size_mib,
                total,
            });
        }
        if self.backing == Backing::HugeTlb2M {
            self.validate_pool()?;
        }
        Ok(())
    }

    fn validate_pool(&self) -> Result<(), MemoryError> {
        if !self.size_mib.is_multiple_of(2) {
            return Err(MemoryError::Indivisible {
                asked: self.size_mib,
                page: 2,
                nearest: neighbours(self.size_mib, host_total_mib()),
            });
        }
        let asked = self.size_mib / 2;
        let (free, total) = pool_2m();
        if free < asked {
            return Err(MemoryError::PoolTooSmall { asked, free, total });
        }
        Ok(())
    }
}

/// The even sizes beside `odd` that are neither nothing nor more than the host has.
fn neighbours(odd: u64, total: Option<u64>) -> String {
    let (below, above) = (odd.saturating_sub(1), odd.saturating_add(1));
    match (below > 0, total.is_none_or(|total| above <= total)) {
        (true, true) => format!("{below} and {above}"),
        (true, false) => below.to_string(),
        (false, _) => above.to_string(),
    }
}

/// Free (and not reserved) and all pages of the host's 2 MiB pool; zeros where there is none.
pub fn pool_2m() -> (u64, u64) {
    let read = |name: &str| {
        fs::read_to_string(format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}"))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    (
        read("free_hugepages").saturating_sub(read("resv_hugepages")),
        read("nr_hugepages"),
    )
}

/// The host's memory in MiB (`MemTotal` of /proc/meminfo), where it can be read.
pub fn host_total_mib() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024)
}

/// Maps guest memory as `spec` says. Nothing is touched: pages come as the guest uses them.
///
/// # Errors
/// [`MemoryError`]; nothing stays mapped.
pub fn build(spec: &MemorySpec) -> Result<GuestRam, MemoryError> {
    spec.validate()?;
    let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    match spec.backing {
        Backing::HugeTlb2M => flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
        // Overcommit is the operator's to judge; a reservation would refuse large idle guests.
        Backing::Anonymous | Backing::Transparent => flags |= libc::MAP_NORESERVE,
    }
    let mut regions = Vec::new();
    for (start, bytes) in ram_ranges(spec.bytes()) {
        let size = usize::try_from(bytes).map_err(|_| MemoryError::Overflow)?;
        let mapping = MmapRegion::build(None, size, libc::PROT_READ | libc::PROT_WRITE, flags)
            .map_err(|source| MemoryError::Map { bytes, source })?;
        advise(&mapping, spec.backing);
        regions.push(GuestRegionMmap::new(mapping, start).ok_or(MemoryError::Overflow)?);
    }
    Ok(GuestRam::from_regions(regions)?)
}

#[allow(unsafe_code)]
fn advise(mapping: &MmapRegion, backing: Backing) {
    let (start, size) = (mapping.as_ptr().cast::<libc::c_void>(), mapping.size());
    // SAFETY: the range is exactly the mapping made above; the advice does not change contents.
    // Guest memory stays out of core dumps: it is the guest's, and it is large. A kernel without
    // transparent huge pages refuses the second advice, which is no loss of function.
    unsafe {
        libc::madvise(start, size, libc::MADV_DONTDUMP);
        if backing == Backing::Transparent {
            libc::madvise(start, size, libc::MADV_HUGEPAGE);
        }
    }
}

/// The host address range of each region, for `KVM_SET_USER_MEMORY_REGION`: guest address, bytes,
/// host address.
pub fn host_ranges(ram: &GuestRam) -> Vec<(u64, u64, u64)> {
    use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
    ram.iter()
        .map(|region| {
            let host = region.as_ptr() as u64;
            (region.start_addr().raw_value(), region.len(), host)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn memory_is_there_on_both_sides_of_the_hole() {
        let spec = MemorySpec {
            size_mib: 3 * 1024 + 64,
            ..MemorySpec::default()
        };
        let ram = build(&spec).unwrap();
        for address in [0, 0xBFFF_FFF8, 1 << 32, (1 << 32) + 64 * MIB - 8] {
            ram.write_obj(address, GuestAddress(address)).unwrap();
            assert_eq!(ram.read_obj::<u64>(GuestAddress(address)).unwrap(), address);
        }
        assert!(ram.read_obj::<u64>(GuestAddress(0xC000_0000)).is_err());
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_with_the_remedy() {
        let refuse = |size_mib, backing| {
            MemorySpec { size_mib, backing }
                .validate()
                .unwrap_err()
                .to_string()
        };
        assert!(refuse(0, Backing::Anonymous).contains("at least 1 MiB"));
        let total = host_total_mib().unwrap();
        assert!(refuse(total + 1, Backing::Anonymous).contains(&format!("at most {total}")));
        assert!(refuse(129, Backing::HugeTlb2M).contains("128 and 130"));
        assert!(refuse(1, Backing::HugeTlb2M).ends_with("can have: 2"));
    }

    #[test]
    fn only_sizes_that_can_be_had_are_recommended() {
        assert_eq!(neighbours(1, None), "2");
        assert_eq!(neighbours(1, Some(1)), "2");
        assert_eq!(neighbours(129, Some(130)), "128 and 130");
        assert_eq!(neighbours(129, Some(129)), "128");
    }

    #[test]
    fn a_pool_that_is_too_small_is_named() {
        let (free, _) = pool_2m();
        let size_mib = (free + 1) * 2;
        let error = MemorySpec {
            size_mib,
            backing: Backing::HugeTlb2M,
        }
        .validate()
        .unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("cannot serve {} pages", free + 1))
        );
    }
}
