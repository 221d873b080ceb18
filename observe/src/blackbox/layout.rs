//! Where the header's words lie: the one description that writer and reader share.

use std::sync::atomic::AtomicU64;

/// First bytes of every black box.
pub const MAGIC: [u8; 8] = *b"VITRBBOX";
/// Readers refuse another major version.
pub const MAJOR: u32 = 1;
/// Readers accept any minor version.
pub const MINOR: u32 = 2;
/// Bytes before the directory.
pub const HEADER_BYTES: usize = 4096;
/// Sections begin at multiples of this, so that two owners never share a cache line (nor the pair
/// of lines that the adjacent-line prefetcher fetches together).
pub(crate) const SECTION_ALIGN: usize = 128;
/// A section may ask for more, up to a page, which is what the mapping itself begins at.
pub(crate) const MOST_ALIGN: usize = 4096;
/// `pulse_check` is this, XOR `pulse_ticks`, XOR `pulse_monotonic_ns`: a pair that was read while
/// it was written does not pass for one.
pub(crate) const PULSE_CHECK: u64 = u64::from_le_bytes(*b"VITPULSE");

/// The header, at offset 0. Texts are padded with NUL; one that fills its field has none.
#[repr(C)]
pub(crate) struct Header {
    pub magic: [u8; 8],
    pub major: u32,
    pub minor: u32,
    pub header_bytes: u64,
    pub file_bytes: u64,
    pub directory_offset: u64,
    pub directory_capacity: u64,
    pub directory_used: AtomicU64,
    pub pid: u64,
    pub created_realtime_ns: u64,
    pub created_monotonic_ns: u64,
    /// 32.32 fixed point.
    pub ns_per_tick: u64,
    pub base_ticks: u64,
    pub base_monotonic_ns: u64,
    /// 0 running (or killed), 1 clean end, 2 failed.
    pub end_state: AtomicU64,
    pub ended_realtime_ns: AtomicU64,
    pub vm_id: [u8; 64],
    pub version: [u8; 64],
    pub boot_id: [u8; 64],
    pub end_detail: [AtomicU64; 64],
    pub ended_monotonic_ns: AtomicU64,
    pub pulse_ticks: AtomicU64,
    pub pulse_monotonic_ns: AtomicU64,
    pub pulse_check: AtomicU64,
    /// 1 if the writer holds an open-file-description lock on the file while it lives.
    pub locked: u64,
}

const _: () = assert!(size_of::<Header>() <= HEADER_BYTES);
