//! What a guest asks of a disk (virtio 1.2, section 5.2.6): pure, so that it can be fuzzed.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use virtio_bindings::virtio_blk as blk;

/// Bytes of a request's header.
pub const HEADER_BYTES: usize = 16;
/// Bytes of a sector, the unit of all addresses.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of the answer to a get-id request.
pub const ID_BYTES: usize = blk::VIRTIO_BLK_ID_BYTES as usize;

/// Kinds of operation, as the black box tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// From the disk to the guest.
    Read = 0,
    /// From the guest to the disk.
    Write = 1,
    /// To stable storage.
    Flush = 2,
    /// The disk's serial.
    GetId = 3,
    /// Anything else.
    Unsupported = 4,
    /// The guest no longer needs what is there.
    Discard = 5,
    /// Zeros, without data that says so.
    WriteZeroes = 6,
}

/// The names of [`Operation`], by number.
pub const OPERATIONS: &[&str] = &[
    "read",
    "write",
    "flush",
    "get_id",
    "unsupported",
    "discard",
    "write_zeroes",
];

/// Bytes of a range of a discard or write-zeroes request.
pub const RANGE_BYTES: usize = 16;
/// Ranges of such a request at most.
pub const MAX_RANGES: usize = 16;
/// Sectors of a range to discard at most: 1 GiB, so that no request keeps the thread for long.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Sectors of a range to fill with zeros at most: 16 MiB, for some hosts have to write them.
pub const MAX_ZEROES_SECTORS: u32 = 1 << 15;

/// What the device knows when it judges a request.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Its size.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether flushes are carried out.
    pub flush: bool,
    /// Whether discards are.
    pub discard: bool,
}

/// Why a request is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such request, or it was not offered.
    #[error("not supported")]
    Unsupported,
    /// It reaches beyond the end.
    #[error("beyond the end of the disk")]
    OutOfRange,
    /// Its data is not whole sectors, or there is none.
    #[error("data is not a whole number of sectors")]
    Length,
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The host failed.
    #[error("the host failed")]
    Host,
}

impl Refusal {
    /// The status byte that fits.
    pub fn status(self) -> u8 {
        match self {
            Refusal::Unsupported => blk::VIRTIO_BLK_S_UNSUPP as u8,
            Refusal::OutOfRange | Refusal::Length | Refusal::ReadOnly | Refusal::Host => {
                blk::VIRTIO_BLK_S_IOERR as u8
            }
        }
    }
}

/// A part of the disk that a discard or write-zeroes request names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// Whether its space may be given back to the host.
    pub unmap: bool,
}

/// A request: its kind, and for reads and writes the byte offset, if it can be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The kind, known for refused requests too.
    pub operation: Operation,
    /// Where on the disk, or why not.
    pub offset: Result<u64, Refusal>,
}

/// Judges a request: its header, and the bytes of data from the guest and for the guest.
pub fn parse(header: [u8; HEADER_BYTES], from_guest: u64, to_guest: u64, disk: Disk) -> Request {
    let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([k0, k1, k2, k3]);
    let sector = u64::from_le_bytes(sector);
    let (operation, offset) = match kind {
        blk::VIRTIO_BLK_T_IN => (Operation::Read, place(sector, to_guest, disk)),
        blk::VIRTIO_BLK_T_OUT if disk.read_only => (Operation::Write, Err(Refusal::ReadOnly)),
        blk::VIRTIO_BLK_T_OUT => (Operation::Write, place(sector, from_guest, disk)),
        blk::VIRTIO_BLK_T_FLUSH if disk.flush => (Operation::Flush, Ok(0)),
        blk::VIRTIO_BLK_T_FLUSH => (Operation::Flush, Err(Refusal::Unsupported)),
        blk::VIRTIO_BLK_T_DISCARD => {
            let offered = !disk.read_only && disk.discard;
            (Operation::Discard, ranges(from_guest, disk, offered))
        }
        blk::VIRTIO_BLK_T_WRITE_ZEROES => {
            let offered = !disk.read_only;
            (Operation::WriteZeroes, ranges(from_guest, disk, offered))
        }
        blk::VIRTIO_BLK_T_GET_ID if to_guest == 0 => (Operation::GetId, Err(Refusal::Length)),
        blk::VIRTIO_BLK_T_GET_ID => (Operation::GetId, Ok(0)),
        _ => (Operation::Unsupported, Err(Refusal::Unsupported)),
    };
    Request { operation, offset }
}

/// Judges a request that names ranges by its length; it has no offset of its own.
fn ranges(from_guest: u64, disk: Disk, offered: bool) -> Result<u64, Refusal> {
    let bytes = RANGE_BYTES as u64;
    let most = bytes.saturating_mul(MAX_RANGES as u64);
    match offered {
        false if disk.read_only => Err(Refusal::ReadOnly),
        false => Err(Refusal::Unsupported),
        true if from_guest == 0 || from_guest > most => Err(Refusal::Length),
        true if !from_guest.is_multiple_of(bytes) => Err(Refusal::Length),
        true => Ok(0),
    }
}

/// Judges one range of such a request (virtio 1.2, 5.2.6.2: unknown flags, and unmapping of what is
/// discarded anyway, are not supported).
///
/// # Errors
/// Why the request is not carried out.
pub fn range(operation: Operation, bytes: [u8; RANGE_BYTES], disk: Disk) -> Result<Range, Refusal> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, rest @ ..] = bytes;
    let [n0, n1, n2, n3, flags @ ..] = rest;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(flags);
    let (most, known) = match operation {
        Operation::Discard => (MAX_DISCARD_SECTORS, 0),
        Operation::WriteZeroes => (MAX_ZEROES_SECTORS, blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP),
        _ => return Err(Refusal::Unsupported),
    };
    if flags & !known != 0 {
        return Err(Refusal::Unsupported);
    }
    if count == 0 || count > most {
        return Err(Refusal::Length);
    }
    let bytes = u64::from(count).saturating_mul(SECTOR_BYTES);
    Ok(Range {
        offset: place(sector, bytes, disk)?,
        bytes,
        unmap: flags != 0,
    })
}

fn place(sector: u64, bytes: u64, disk: Disk) -> Result<u64, Refusal> {
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Refusal::Length);
    }
    let count = bytes.checked_div(SECTOR_BYTES).unwrap_or(0);
    let end = sector.checked_add(count).ok_or(Refusal::OutOfRange)?;
    if end > disk.sectors {
        return Err(Refusal::OutOfRange);
    }
    sector.checked_mul(SECTOR_BYTES).ok_or(Refusal::OutOfRange)
}

/// The answer to a get-id request: the drive's id, cut or padded with zeros.
pub fn serial(id: &str) -> [u8; ID_BYTES] {
    let mut serial = [0; ID_BYTES];
    for (to, from) in serial.iter_mut().zip(id.bytes()) {
        *to = from;
    }
    serial
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: Disk = Disk {
        sectors: 8,
        read_only: false,
        flush: true,
        discard: true,
    };

    fn header(kind: u32, sector: u64) -> [u8; 16] {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    }

    #[test]
    fn requests_are_judged_as_the_specification_says() {
        let read_only = Disk {
            read_only: true,
            flush: false,
            ..DISK
        };
        let whole = Disk {
            discard: false,
            ..DISK
        };
        use Operation::{Discard, Flush, GetId, Read, Unsupported, Write, WriteZeroes};
        for (kind, sector, from, to, disk, operation, offset) in [
            (0, 7, 0, 512, DISK, Read, Ok(7 * 512)),
            (0, 7, 0, 1024, DISK, Read, Err(Refusal::OutOfRange)),
            (0, u64::MAX, 0, 512, DISK, Read, Err(Refusal::OutOfRange)),
            (0, 0, 0, 511, DISK, Read, Err(Refusal::Length)),
            (0, 0, 512, 0, DISK, Read, Err(Refusal::Length)),
            (1, 0, 4096, 0, DISK, Write, Ok(0)),
            (1, 1, 4096, 0, DISK, Write, Err(Refusal::OutOfRange)),
            (1, 0, 512, 0, read_only, Write, Err(Refusal::ReadOnly)),
            (4, 0, 0, 0, DISK, Flush, Ok(0)),
            (4, 0, 0, 0, read_only, Flush, Err(Refusal::Unsupported)),
            (8, 0, 0, 20, DISK, GetId, Ok(0)),
            (11, 0, 16, 0, DISK, Discard, Ok(0)),
            (11, 0, 256, 0, DISK, Discard, Ok(0)),
            (11, 0, 272, 0, DISK, Discard, Err(Refusal::Length)),
            (11, 0, 0, 0, DISK, Discard, Err(Refusal::Length)),
            (11, 0, 16, 0, whole, Discard, Err(Refusal::Unsupported)),
            (11, 0, 16, 0, read_only, Discard, Err(Refusal::ReadOnly)),
            (13, 0, 16, 0, whole, WriteZeroes, Ok(0)),
            (13, 0, 24, 0, DISK, WriteZeroes, Err(Refusal::Length)),
            (13, 0, 16, 0, read_only, WriteZeroes, Err(Refusal::ReadOnly)),
            (14, 0, 16, 0, DISK, Unsupported, Err(Refusal::Unsupported)),
            (
                u32::MAX,
                0,
                0,
                0,
                DISK,
                Unsupported,
                Err(Refusal::Unsupported),
            ),
        ] {
            let request = parse(header(kind, sector), from, to, disk);
            assert_eq!(request, Request { operation, offset }, "{kind} at {sector}");
        }
    }

    fn named(sector: u64, count: u32, flags: u32) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&count.to_le_bytes());
        bytes[12..].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    #[test]
    fn ranges_are_judged_as_the_specification_says() {
        use Operation::{Discard, Read, WriteZeroes};
        let of = |offset, bytes, unmap| {
            Ok(Range {
                offset,
                bytes,
                unmap,
            })
        };
        let large = Disk {
            sectors: u64::MAX / 512,
            ..DISK
        };
        for (operation, bytes, disk, expected) in [
            (Discard, named(1, 7, 0), DISK, of(512, 7 * 512, false)),
            (Discard, named(1, 8, 0), DISK, Err(Refusal::OutOfRange)),
            (
                Discard,
                named(u64::MAX, 1, 0),
                DISK,
                Err(Refusal::OutOfRange),
            ),
            (Discard, named(0, 0, 0), DISK, Err(Refusal::Length)),
            (Discard, named(0, 1, 1), DISK, Err(Refusal::Unsupported)),
            (
                Discard,
                named(0, MAX_DISCARD_SECTORS, 0),
                large,
                of(0, 1 << 30, false),
            ),
            (
                Discard,
                named(0, MAX_DISCARD_SECTORS + 1, 0),
                large,
                Err(Refusal::Length),
            ),
            (WriteZeroes, named(0, 8, 1), DISK, of(0, 4096, true)),
            (WriteZeroes, named(0, 8, 2), DISK, Err(Refusal::Unsupported)),
            (
                WriteZeroes,
                named(0, MAX_ZEROES_SECTORS + 1, 0),
                large,
                Err(Refusal::Length),
            ),
            (Read, named(0, 1, 0), DISK, Err(Refusal::Unsupported)),
        ] {
            assert_eq!(
                range(operation, bytes, disk),
                expected,
                "{operation:?} {bytes:?}"
            );
        }
    }

    #[test]
    fn a_serial_is_cut_and_padded() {
        assert_eq!(&serial("rootfs")[..7], b"rootfs\0");
        assert_eq!(&serial(&"x".repeat(30)), &[b'x'; 20]);
    }

    proptest! {
        #[test]
        fn what_is_accepted_lies_on_the_disk(
            header: [u8; 16], from: u64, to: u64, sectors: u64, read_only: bool, flush: bool,
            discard: bool, named: [u8; 16],
        ) {
            let disk = Disk { sectors, read_only, flush, discard };
            for operation in [Operation::Discard, Operation::WriteZeroes] {
                if let Ok(range) = range(operation, named, disk) {
                    prop_assert!(range.bytes > 0 && range.bytes <= 1 << 30);
                    prop_assert!(u128::from(range.offset) + u128::from(range.bytes) <= u128::from(sectors) * 512);
                }
            }
            let request = parse(header, from, to, disk);
            if let (Operation::Read | Operation::Write, Ok(offset)) = (request.operation, request.offset) {
                let bytes = if request.operation == Operation::Read { to } else { from };
                prop_assert!(u128::from(offset) + u128::from(bytes) <= u128::from(sectors) * 512);
            }
        }
    }
}
