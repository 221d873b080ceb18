//! Where RAM and devices lie in the guest's physical address space.
//!
//! RAM runs from 0 to at most [`MMIO_GAP_START`] and goes on at [`FOUR_GIB`]; the gap between
//! holds the memory-mapped devices and the interrupt controllers, as on every PC.

use vm_memory::GuestAddress;

/// First address of the hole for devices: 3 GiB.
pub const MMIO_GAP_START: u64 = 0xC000_0000;
/// First address of the virtio-mmio windows, inside the hole.
pub const MMIO_DEVICES_START: u64 = 0xD000_0000;
/// Bytes of each virtio-mmio window.
pub const MMIO_DEVICE_BYTES: u64 = 0x1000;
/// PCI's configuration space (ECAM), inside the hole.
pub const PCI_ECAM_START: u64 = 0xE000_0000;
/// First address of the window for PCI BARs, inside the hole.
pub const PCI_WINDOW_START: u64 = 0xE800_0000;
/// Bytes of that window.
pub const PCI_WINDOW_BYTES: u64 = 0x0800_0000;
/// IO-APIC, fixed by the architecture.
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// Local APIC, fixed by the architecture.
pub const LAPIC_BASE: u64 = 0xFEE0_0000;
/// KVM's three pages for VMX real mode emulation (`KVM_SET_TSS_ADDR`), in the hole.
pub const KVM_TSS_BASE: u64 = 0xFFFB_D000;
/// Where RAM goes on above the hole.
pub const FOUR_GIB: u64 = 1 << 32;
/// MiB in bytes.
pub const MIB: u64 = 1 << 20;

/// The RAM ranges of a guest with `bytes` of memory: one, or two around the hole.
pub fn ram_ranges(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(MMIO_GAP_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(FOUR_GIB), bytes - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_range() {
        assert_eq!(ram_ranges(128 * MIB), [(GuestAddress(0), 128 * MIB)]);
        assert_eq!(
            ram_ranges(MMIO_GAP_START),
            [(GuestAddress(0), MMIO_GAP_START)]
        );
    }

    #[test]
    fn large_memory_goes_on_above_the_hole_and_nothing_is_lost() {
        let ranges = ram_ranges(5 << 30);
        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges[1].0, GuestAddress(FOUR_GIB));
        assert_eq!(ranges.iter().map(|r| r.1).sum::<u64>(), 5 << 30);
    }
}
