//! What the guest reads of a disk beside its features.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use super::request::{self, Disk, SECTOR_BYTES};
use crate::virtio::device::ConfigSpace;

/// Data segments of a request: the queue without header and status.
const SEG_MAX: u32 = 254;
/// Bytes of a segment at most.
const SIZE_MAX: u32 = 4 << 20;
/// What the guest is told that the disk writes at once, as a power of two of sectors: 4 KiB, the block of the
/// host's file systems.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// `struct virtio_blk_config` (virtio 1.2, 5.2.4) as far as the features offered reach.
pub(super) fn config(disk: &Disk, queues: usize) -> ConfigSpace {
    let config = ConfigSpace::new(&[0; 60]);
    config.write(0, &disk.sectors.to_le_bytes());
    let block = 1u16 << PHYSICAL_BLOCK_EXPONENT;
    config.write(24, &[PHYSICAL_BLOCK_EXPONENT]);
    config.write(26, &block.to_le_bytes());
    config.write(34, &(queues as u16).to_le_bytes());
    let ranges = request::MAX_RANGES as u32;
    let discard = u32::from(disk.discard);
    let zeroes = u32::from(!disk.read_only);
    for (offset, value) in [
        (8, SIZE_MAX),
        (12, SEG_MAX),
        (20, SECTOR_BYTES as u32),
        (36, discard.saturating_mul(request::MAX_DISCARD_SECTORS)),
        (40, discard.saturating_mul(ranges)),
        (44, discard.saturating_mul(u32::from(block))),
        (48, zeroes.saturating_mul(request::MAX_ZEROES_SECTORS)),
        (52, zeroes.saturating_mul(ranges)),
    ] {
        config.write(offset, &value.to_le_bytes());
    }
    // write_zeroes_may_unmap.
    config.write(56, &[u8::from(!disk.read_only)]);
    config
}
