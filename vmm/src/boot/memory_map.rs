//! The memory map that the guest is told (E820 types, ACPI 15.1).

use devices::pci::ECAM_BYTES;
use memory::layout::{MMIO_GAP_START, PCI_ECAM_START, ram_ranges};
use memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRam};

use super::address;

/// E820 type of usable RAM.
pub const E820_RAM: u32 = 1;
/// E820 type of what the guest must leave alone.
pub const E820_RESERVED: u32 = 2;

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// E820 type.
    pub kind: u32,
}

/// Bytes of RAM from address 0 to the hole.
pub fn low_ram_bytes(ram: &GuestRam) -> u64 {
    ram.iter()
        .find(|r| r.start_addr().raw_value() == 0)
        .map_or(0, GuestMemoryRegion::len)
}

/// The map of a guest with `bytes` of RAM: RAM, the BIOS area with the ACPI tables, RAM, PCI's
/// configuration space if there is a bus, and RAM above 4 GiB.
pub fn map(bytes: u64, pci: bool) -> Vec<MapEntry> {
    let entry = |start, end: u64, kind| MapEntry {
        start,
        bytes: end - start,
        kind,
    };
    let mut entries = vec![
        entry(0, address::LOW_RAM_END, E820_RAM),
        entry(address::LOW_RAM_END, address::HIGH_RAM_START, E820_RESERVED),
    ];
    let ecam = entry(PCI_ECAM_START, PCI_ECAM_START + ECAM_BYTES, E820_RESERVED);
    for (start, bytes) in ram_ranges(bytes) {
        if start.0 > PCI_ECAM_START && pci {
            entries.push(ecam);
        }
        let start = start.0.max(address::HIGH_RAM_START);
        let end = if start < MMIO_GAP_START {
            bytes
        } else {
            start + bytes
        };
        if end > start {
            entries.push(entry(start, end, E820_RAM));
        }
    }
    if pci && !entries.contains(&ecam) {
        entries.push(ecam);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_never_offers_the_bios_area_or_the_hole() {
        let sizes = [2u64, 128, 3072, 5120];
        let all = sizes.map(|mib| [(mib, false), (mib, true)]);
        for (mib, pci) in all.into_iter().flatten() {
            let map = map(mib << 20, pci);
            let usable: u64 = map
                .iter()
                .filter(|e| e.kind == E820_RAM)
                .map(|e| e.bytes)
                .sum();
            let bios = address::HIGH_RAM_START - address::LOW_RAM_END;
            assert_eq!(usable, (mib << 20) - bios);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].bytes <= pair[1].start);
            }
            let hole = |e: &&MapEntry| e.start < 1 << 32 && e.start + e.bytes > MMIO_GAP_START;
            let there: Vec<_> = map.iter().filter(hole).collect();
            assert_eq!(there.len(), usize::from(pci));
            let ecam = there
                .first()
                .map(|entry| (entry.start, entry.bytes, entry.kind));
            let expected = (PCI_ECAM_START, 1 << 20, E820_RESERVED);
            assert_eq!(ecam, pci.then_some(expected));
        }
    }
}
