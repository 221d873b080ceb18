//! What a guest puts into the balloon's queues (virtio 1.2, section 5.5.6): pure, so that it can be
//! fuzzed. Page numbers are the guest's claims, and are judged here.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

/// Bytes of a page of the balloon, whatever the guest's own pages are.
pub const PAGE_BYTES: u64 = 4096;
/// Page numbers that are taken from one request. Linux sends 256, other drivers up to 1024.
pub const MAX_PFNS: usize = 4096;
/// Statistics that the specification knows.
pub const STATISTICS: usize = 16;
/// Bytes of one statistic: a tag of 2 and a value of 8.
pub const STATISTIC_BYTES: usize = 10;
/// Bytes of statistics that are read: more than any driver sends.
pub const MAX_STATISTICS_BYTES: usize = 64 * STATISTIC_BYTES;

/// Guest memory: first byte and bytes. Never empty, never past the end of the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The guest's address.
    pub start: u64,
    /// How much.
    pub bytes: u64,
}

impl Run {
    fn end(self) -> u64 {
        self.start.saturating_add(self.bytes)
    }
}

/// What became of a list of page numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// The pages in RAM, each once, in order, as few runs as they make.
    pub runs: Vec<Run>,
    /// How many pages those are.
    pub accepted: u64,
    /// Numbers of pages that are not RAM.
    pub outside: u64,
    /// Numbers that came before in the same list.
    pub repeated: u64,
}

/// Judges a list of page numbers, 4 bytes each, against `ram`: first byte and bytes of each range.
/// A part of a number at the end is nothing.
pub fn pages(list: &[u8], ram: &[(u64, u64)]) -> Pages {
    let (numbers, _) = list.as_chunks::<4>();
    let mut judged = Pages::default();
    let mut runs = Vec::with_capacity(numbers.len());
    for number in numbers {
        let start = u64::from(u32::from_le_bytes(*number)).saturating_mul(PAGE_BYTES);
        let run = Run {
            start,
            bytes: PAGE_BYTES,
        };
        let inside = |(first, bytes): &(u64, u64)| {
            start >= *first && run.end() <= first.saturating_add(*bytes)
        };
        if ram.iter().any(inside) {
            runs.push(run);
        } else {
            judged.outside = judged.outside.saturating_add(1);
        }
    }
    let claimed = runs.len() as u64;
    judged.runs = merged(runs);
    let bytes = judged.runs.iter().map(|run| run.bytes);
    judged.accepted = bytes.fold(0, u64::saturating_add) / PAGE_BYTES;
    judged.repeated = claimed.saturating_sub(judged.accepted);
    judged
}

/// The same memory in order, each byte once, in as few runs as it makes.
pub fn merged(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut merged: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match merged.last_mut().filter(|last| last.end() >= run.start) {
            Some(last) => {
                let end = last.end().max(run.end());
                last.bytes = end.saturating_sub(last.start);
            }
            None => merged.push(run),
        }
    }
    merged
}

/// The guest's statistics, by tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The last value of each tag that came.
    pub values: [Option<u64>; STATISTICS],
    /// Tags that the specification does not know.
    pub unknown: u64,
}

/// Reads the statistics of one buffer. A part of one at the end is nothing.
pub fn statistics(list: &[u8]) -> Statistics {
    let mut read = Statistics::default();
    let (entries, _) = list.as_chunks::<STATISTIC_BYTES>();
    for [low, high, value @ ..] in entries {
        let tag = usize::from(u16::from_le_bytes([*low, *high]));
        match read.values.get_mut(tag) {
            Some(place) => *place = Some(u64::from_le_bytes(*value)),
            None => read.unknown = read.unknown.saturating_add(1),
        }
    }
    read
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RAM: [(u64, u64); 2] = [(0, 16 * PAGE_BYTES), (1 << 32, 16 * PAGE_BYTES)];

    fn list(numbers: &[u32]) -> Vec<u8> {
        numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect()
    }

    #[test]
    fn neighbours_become_one_run_in_whatever_order_they_come() {
        let judged = pages(&list(&[3, 1, 2, 7]), &RAM);
        let run = |start, count| Run {
            start: start * PAGE_BYTES,
            bytes: count * PAGE_BYTES,
        };
        assert_eq!(judged.runs, [run(1, 3), run(7, 1)]);
        assert_eq!(
            (judged.accepted, judged.outside, judged.repeated),
            (4, 0, 0)
        );
    }

    #[test]
    fn what_is_not_ram_or_comes_twice_is_told_apart() {
        let judged = pages(
            &list(&[15, 15, 16, u32::MAX, 1 << 20, (1 << 20) + 16]),
            &RAM,
        );
        assert_eq!(
            (judged.accepted, judged.outside, judged.repeated),
            (2, 3, 1)
        );
        // Half a number is none.
        assert_eq!(pages(&[1, 0, 0], &RAM), Pages::default());
    }

    #[test]
    fn statistics_are_read_by_tag_and_the_last_one_counts() {
        let mut bytes = Vec::new();
        for (tag, value) in [(4u16, 7u64), (15, u64::MAX), (16, 1), (u16::MAX, 1), (4, 8)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend([5, 0, 1]);
        let read = statistics(&bytes);
        assert_eq!(read.values.get(4), Some(&Some(8)));
        assert_eq!(read.values.get(15), Some(&Some(u64::MAX)));
        assert_eq!(read.values.iter().flatten().count(), 2);
        assert_eq!(read.unknown, 2);
    }

    proptest! {
        #[test]
        fn every_number_is_accepted_refused_or_repeated(list in prop::collection::vec(any::<u8>(), 0..512), small in any::<bool>()) {
            let list: Vec<u8> = match small {
                true => list.iter().flat_map(|byte| u32::from(*byte % 24).to_le_bytes()).collect(),
                false => list,
            };
            let judged = pages(&list, &RAM);
            prop_assert_eq!(judged.accepted + judged.outside + judged.repeated, list.len() as u64 / 4);
            for pair in judged.runs.windows(2) {
                prop_assert!(pair.first().unwrap().end() < pair.last().unwrap().start);
            }
            for run in &judged.runs {
                prop_assert!(RAM.iter().any(|(first, bytes)| run.start >= *first && run.end() <= first + bytes));
            }
        }

        #[test]
        fn merging_keeps_every_byte(runs in prop::collection::vec((0u64..200, 1u64..20), 0..40)) {
            let covered = |runs: &[Run]| {
                let bytes = runs.iter().flat_map(|run| run.start..run.end());
                bytes.collect::<std::collections::BTreeSet<u64>>()
            };
            let runs: Vec<Run> = runs.into_iter().map(|(start, bytes)| Run { start, bytes }).collect();
            let together = merged(runs.clone());
            prop_assert_eq!(covered(&runs), covered(&together));
            let sum: u64 = together.iter().map(|run| run.bytes).sum();
            prop_assert_eq!(sum, covered(&runs).len() as u64);
        }

        #[test]
        fn any_statistics_are_taken(list in prop::collection::vec(any::<u8>(), 0..700)) {
            let read = statistics(&list);
            let known = read.values.iter().flatten().count() as u64;
            prop_assert!(known + read.unknown <= list.len() as u64 / 10);
        }
    }
}
