//! Parses the records that the kernel writes into the ring of a perf event, perf_event_open(2).
//!
//! The kernel is believed, yet nothing breaks when it should not be: sizes are checked, and what
//! cannot be a record ends the reading.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

/// What a sample holds: `PERF_SAMPLE_TID | TIME | CPU | RAW`. [`super::perf`] asks for these.
pub const SAMPLE_TYPE: u64 = 1 << 1 | 1 << 2 | 1 << 7 | 1 << 10;

const LOST: u32 = 2;
const THROTTLE: u32 = 5;
const SAMPLE: u32 = 9;
const LOST_SAMPLES: u32 = 13;
const HEADER_BYTES: usize = 8;

/// A tracepoint was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    /// The thread.
    pub tid: u32,
    /// When, by the clock that was asked for.
    pub time_ns: u64,
    /// On which CPU.
    pub cpu: u32,
    /// The tracepoint's record, laid out as its format file says.
    pub raw: &'a [u8],
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A tracepoint was hit.
    Sample(Sample<'a>),
    /// The ring was full: so many records were not written.
    Lost(u64),
    /// The kernel holds an event back, for it comes too often.
    Throttled,
    /// A record of another kind.
    Other(u32),
}

/// The records in a copy of a part of the ring.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    broken: bool,
}

impl<'a> Records<'a> {
    /// Whole records, one after the other.
    pub fn new(bytes: &'a [u8]) -> Self {
        Records {
            bytes,
            broken: false,
        }
    }

    /// Whether the reading ended at something that is no record.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    fn take(&mut self) -> Option<Record<'a>> {
        let kind = u32_at(self.bytes, 0)?;
        let size = usize::from(u16::from_le_bytes(
            self.bytes.get(6..HEADER_BYTES)?.try_into().ok()?,
        ));
        if size < HEADER_BYTES {
            return None;
        }
        let body = self.bytes.get(HEADER_BYTES..size)?;
        self.bytes = self.bytes.get(size..)?;
        match kind {
            SAMPLE => sample(body).map(Record::Sample),
            LOST => u64_at(body, 8).map(Record::Lost),
            LOST_SAMPLES => u64_at(body, 0).map(Record::Lost),
            THROTTLE => Some(Record::Throttled),
            other => Some(Record::Other(other)),
        }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        if self.bytes.is_empty() {
            return None;
        }
        let record = self.take();
        if record.is_none() {
            self.broken = true;
            self.bytes = &[];
        }
        record
    }
}

fn sample(body: &[u8]) -> Option<Sample<'_>> {
    let raw_bytes = usize::try_from(u32_at(body, 24)?).ok()?;
    Some(Sample {
        tid: u32_at(body, 4)?,
        time_ns: u64_at(body, 8)?,
        cpu: u32_at(body, 16)?,
        raw: body.get(28..)?.get(..raw_bytes)?,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    Some(u32::from_le_bytes(bytes.get(at..end)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let end = at.checked_add(8)?;
    Some(u64::from_le_bytes(bytes.get(at..end)?.try_into().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u32, body: &[u8]) -> Vec<u8> {
        let size = u16::try_from(body.len() + HEADER_BYTES).unwrap();
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    fn body(tid: u32, time_ns: u64, cpu: u32, raw: &[u8]) -> Vec<u8> {
        let mut bytes = 1u32.to_le_bytes().to_vec();
        bytes.extend_from_slice(&tid.to_le_bytes());
        bytes.extend_from_slice(&time_ns.to_le_bytes());
        bytes.extend_from_slice(&cpu.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(raw.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(raw);
        bytes
    }

    #[test]
    fn records_are_read_in_order() {
        let lost: Vec<u8> = [4u64, 77, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
        let bytes = [
            record(SAMPLE, &body(12, 1_000, 3, b"abcd")),
            record(LOST, &lost),
            record(THROTTLE, &[0; 24]),
            record(14, &[]),
            record(SAMPLE, &body(12, 2_000, 1, b"")),
        ]
        .concat();
        let mut records = Records::new(&bytes);
        let read: Vec<_> = records.by_ref().collect();
        let sample = |time_ns, cpu, raw| {
            Record::Sample(Sample {
                tid: 12,
                time_ns,
                cpu,
                raw,
            })
        };
        let expected = [
            sample(1_000, 3, &b"abcd"[..]),
            Record::Lost(77),
            Record::Throttled,
            Record::Other(14),
            sample(2_000, 1, b""),
        ];
        assert_eq!(read, expected);
        assert!(!records.is_broken());
    }

    #[test]
    fn what_is_no_record_ends_the_reading() {
        let good = record(SAMPLE, &body(12, 1_000, 3, b"abcd"));
        let mut raw_too_long = body(1, 2, 3, b"abcd");
        raw_too_long.truncate(30);
        let mut size_too_small = good.clone();
        size_too_small.splice(6..8, [7, 0]);
        let cut = good.split_last().unwrap().1.to_vec();
        for bad in [
            record(SAMPLE, &raw_too_long),
            size_too_small,
            cut,
            vec![9; 3],
        ] {
            let bytes = [&good[..], &bad].concat();
            let mut records = Records::new(&bytes);
            assert_eq!(records.by_ref().count(), 1);
            assert!(records.is_broken(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            super::super::fuzz_records(&bytes);
        }

        #[test]
        fn any_bodies_are_taken(
            records in prop::collection::vec((0u32..16, prop::collection::vec(any::<u8>(), 0..60)), 0..30),
        ) {
            let bytes: Vec<u8> = records.iter().flat_map(|(kind, body)| record(*kind, body)).collect();
            super::super::fuzz_records(&bytes);
        }
    }
}
