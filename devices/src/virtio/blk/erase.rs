//! Discards and zeros: requests that name parts of the disk and bring no data.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Failure;
use super::request::{self, Disk, MAX_RANGES, Operation, RANGE_BYTES, Range};
use crate::virtio::host_file::{Erase, erase, is_unsupported};
use crate::virtio::vectors::GuestVectors;

/// Zeros that are written at once where the host has no other way.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Whether the file's space can be given back. Asks behind its end, where nothing is lost.
pub(super) fn can_discard(file: &File, bytes: u64) -> bool {
    match erase(file, Erase::Punch, bytes, request::SECTOR_BYTES) {
        Ok(()) => true,
        // A block device has nothing behind its end.
        Err(error) => !is_unsupported(&error),
    }
}

/// The ranges of a request that was judged by its length: all of them can be carried out.
pub(super) fn ranges(
    operation: Operation,
    data: &GuestVectors,
    disk: Disk,
) -> Result<(usize, [Range; MAX_RANGES]), Failure> {
    let mut ranges = [Range::default(); MAX_RANGES];
    let mut count = 0usize;
    for (at, place) in (0..data.bytes()).step_by(RANGE_BYTES).zip(&mut ranges) {
        let mut bytes = [0; RANGE_BYTES];
        // Once only: the guest may change them meanwhile.
        data.copy_to(at, &mut bytes);
        *place = request::range(operation, bytes, disk).map_err(Failure::Refused)?;
        count = count.saturating_add(1);
    }
    Ok((count, ranges))
}

/// Carries all of them out; gives the bytes.
pub(super) fn carry_out(
    file: &File,
    operation: Operation,
    ranges: &[Range],
) -> Result<u64, Failure> {
    let mut bytes = 0u64;
    for range in ranges {
        let done = match operation {
            Operation::Discard => discard(file, range),
            _ => zero(file, range),
        };
        done.map_err(|error| Failure::at(error, range.offset))?;
        bytes = bytes.saturating_add(range.bytes);
    }
    Ok(bytes)
}

/// A discard is advice: where the host cannot take it, nothing happens.
fn discard(file: &File, range: &Range) -> io::Result<()> {
    match erase(file, Erase::Punch, range.offset, range.bytes) {
        Err(error) if is_unsupported(&error) => Ok(()),
        done => done,
    }
}

/// Gives the space back if that may be, else keeps it; writes zeros where the host can do neither.
fn zero(file: &File, range: &Range) -> io::Result<()> {
    let ways = [Erase::Punch, Erase::Zero];
    for how in ways.into_iter().skip(usize::from(!range.unmap)) {
        match erase(file, how, range.offset, range.bytes) {
            Err(error) if is_unsupported(&error) => {}
            done => return done,
        }
    }
    write_zeros(file, range)
}

pub(super) fn write_zeros(file: &File, range: &Range) -> io::Result<()> {
    let end = range.offset.saturating_add(range.bytes);
    let mut at = range.offset;
    while at < end {
        let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
        let part = ZEROS.get(..left.min(ZEROS.len())).unwrap_or(&ZEROS);
        file.write_all_at(part, at)?;
        at = at.saturating_add(part.len() as u64);
    }
    Ok(())
}
