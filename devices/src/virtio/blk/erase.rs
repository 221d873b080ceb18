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

use super::request::{self, Disk, MAX_RANGES, Operation, RANGE_BYTES, Range, Refusal};
use super::work::Failure;
use crate::virtio::host_file::{Erase, erase, is_unsupported};
use crate::virtio::job::{Op, ZEROS};
use crate::virtio::vectors::GuestVectors;

/// Whether the file's space can be given back. Asks behind its end, where nothing is lost.
pub(super) fn can_discard(file: &File, bytes: u64) -> bool {
    match erase(file, Erase::Punch, bytes, request::SECTOR_BYTES) {
        Ok(()) => true,
        // A block device has nothing behind its end.
        Err(error) => !is_unsupported(&error),
    }
}

/// How a range is erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The host does it.
    Host(Erase),
    /// Zeros are written.
    Write,
}

/// A discard or write-zeroes request at work: its ranges one after another, each by the first way
/// that the host knows.
#[derive(Debug)]
pub(super) struct Erasing {
    operation: Operation,
    ranges: [Range; MAX_RANGES],
    count: usize,
    /// The range that is worked on, how, and how many bytes of it are written with zeros.
    at: usize,
    way: Way,
    written: u64,
}

impl Erasing {
    /// Reads the ranges of a request that was judged by its length: all of them can be carried out.
    ///
    /// # Errors
    /// Why nothing of it is.
    pub fn of(operation: Operation, data: &GuestVectors, disk: Disk) -> Result<Self, Refusal> {
        let mut ranges = [Range::default(); MAX_RANGES];
        let mut count = 0usize;
        for (at, place) in (0..data.bytes()).step_by(RANGE_BYTES).zip(&mut ranges) {
            let mut bytes = [0; RANGE_BYTES];
            // Once only: the guest may change them meanwhile.
            data.copy_to(at, &mut bytes);
            *place = request::range(operation, bytes, disk)?;
            count = count.saturating_add(1);
        }
        let mut erasing = Erasing {
            operation,
            ranges,
            count,
            at: 0,
            way: Way::Write,
            written: 0,
        };
        erasing.begin(0);
        Ok(erasing)
    }

    fn range(&self) -> Range {
        self.ranges.get(self.at).copied().unwrap_or_default()
    }

    /// Turns to the range `at`. Its space is given back if that may be.
    fn begin(&mut self, at: usize) {
        (self.at, self.written) = (at, 0);
        let punch = self.operation == Operation::Discard || self.range().unmap;
        self.way = Way::Host(if punch { Erase::Punch } else { Erase::Zero });
    }

    /// What is to be done next.
    pub fn op(&self) -> Op {
        let range = self.range();
        match self.way {
            Way::Host(how) => Op::Erase(how, range.offset, range.bytes),
            Way::Write => {
                let left = range.bytes.saturating_sub(self.written);
                let part = usize::try_from(left).unwrap_or(usize::MAX);
                let at = range.offset.saturating_add(self.written);
                Op::Zeros(at, part.min(ZEROS.len()))
            }
        }
    }

    /// What came of it. `None` when there is more to do, else the bytes of all ranges.
    pub fn came(&mut self, result: io::Result<usize>) -> Option<Result<u64, Failure>> {
        match (result, self.way) {
            (Err(error), way) if is_unsupported(&error) => match (self.operation, way) {
                // It is advice: where the host cannot take it, nothing happens.
                (Operation::Discard, _) => self.next(),
                (_, Way::Host(Erase::Punch)) => {
                    self.way = Way::Host(Erase::Zero);
                    None
                }
                (_, Way::Host(Erase::Zero)) => {
                    self.way = Way::Write;
                    None
                }
                (_, Way::Write) => Some(Err(self.failure(error))),
            },
            (Err(error), _) => Some(Err(self.failure(error))),
            (Ok(_), Way::Host(_)) => self.next(),
            (Ok(0), Way::Write) => Some(Err(self.failure(io::ErrorKind::WriteZero.into()))),
            (Ok(bytes), Way::Write) => {
                self.written = self.written.saturating_add(bytes as u64);
                match self.written < self.range().bytes {
                    true => None,
                    false => self.next(),
                }
            }
        }
    }

    fn failure(&self, error: io::Error) -> Failure {
        Failure::at(error, self.range().offset)
    }

    fn next(&mut self) -> Option<Result<u64, Failure>> {
        self.begin(self.at.saturating_add(1));
        if self.at < self.count {
            return None;
        }
        let ranges = self.ranges.iter().take(self.count);
        Some(Ok(
            ranges.fold(0, |all, range| all.saturating_add(range.bytes))
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

    use super::*;

    const UNSUPPORTED: i32 = libc::EOPNOTSUPP;

    fn erasing(operation: Operation, unmap: bool, bytes: u64) -> Erasing {
        let mut ranges = [Range::default(); MAX_RANGES];
        for (place, offset) in [4096, 1 << 20].into_iter().enumerate() {
            ranges[place] = Range {
                offset,
                bytes,
                unmap,
            };
        }
        let mut erasing = Erasing {
            operation,
            ranges,
            count: 2,
            at: 0,
            way: Way::Write,
            written: 0,
        };
        erasing.begin(0);
        erasing
    }

    fn error(errno: i32) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn each_range_is_erased_by_the_first_way_that_the_host_knows() {
        let mut all = erasing(Operation::WriteZeroes, true, 100_000);
        for from in [4096, 1 << 20] {
            assert_eq!(all.op(), Op::Erase(Erase::Punch, from, 100_000));
            assert!(all.came(error(UNSUPPORTED)).is_none());
            assert_eq!(all.op(), Op::Erase(Erase::Zero, from, 100_000));
            assert!(all.came(error(UNSUPPORTED)).is_none());
            // As much as is taken, until all is written.
            assert_eq!(all.op(), Op::Zeros(from, 1 << 16));
            assert!(all.came(Ok(60_000)).is_none());
            assert_eq!(all.op(), Op::Zeros(from + 60_000, 40_000));
            if from == 4096 {
                assert!(all.came(Ok(40_000)).is_none());
            }
        }
        assert!(matches!(all.came(Ok(40_000)), Some(Ok(200_000))));

        let mut kept = erasing(Operation::WriteZeroes, false, 512);
        assert_eq!(kept.op(), Op::Erase(Erase::Zero, 4096, 512));
        assert!(kept.came(Ok(0)).is_none());
        assert!(matches!(kept.came(Ok(0)), Some(Ok(1024))));
    }

    #[test]
    fn a_discard_that_the_host_cannot_take_is_no_error_and_a_failure_is() {
        let mut advice = erasing(Operation::Discard, false, 512);
        assert!(advice.came(error(UNSUPPORTED)).is_none());
        assert!(matches!(advice.came(error(UNSUPPORTED)), Some(Ok(1024))));

        let mut fails = erasing(Operation::Discard, false, 512);
        assert!(fails.came(Ok(0)).is_none());
        let Some(Err(Failure::Host(error, sector))) = fails.came(error(libc::ENOSPC)) else {
            panic!("no failure");
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(sector, Some(2048));
    }
}
