//! Where the guest goes: its exits by reason and address.
//!
//! A table of fixed size that fills as addresses are seen and forgets none. A guest that touches
//! more than fit has the rest counted together, so it can neither grow the table nor push out what
//! was there.

use observe::{Counter, Gauge, PlaceWord};

use super::counters::ExitKind;

/// Rows, the last of which is for the addresses that found no place.
pub const PLACES: usize = SLOTS + 1;
/// Rows for one address each; a power of two.
const SLOTS: usize = 128;
/// Rows that an address may be in: the one that it hashes to and those behind it.
const PROBES: usize = 4;
/// One reason and address. 32 bytes: two share a cache line.
#[derive(Debug, Default)]
#[repr(C)]
pub struct PlaceRow {
    /// A [`PlaceWord`]; 0 while unused.
    pub place: Gauge,
    /// Exits.
    pub exits: Counter,
    /// Time in the VMM.
    pub handler_ns: Counter,
    _pad: u64,
}

/// The table of one vCPU, written by its thread alone.
#[derive(Debug)]
#[repr(C)]
pub struct Places {
    pub(super) rows: [PlaceRow; PLACES],
}

impl Places {
    /// The row of an exit, taken if the address is new.
    #[inline]
    pub fn row(&self, kind: ExitKind, address: u64) -> &PlaceRow {
        let PlaceWord(word) = match kind.is_access() {
            true => PlaceWord::at(kind as u8, address),
            false => PlaceWord::nowhere(kind as u8),
        };
        let row = &self.rows[slot(word)];
        if row.place.value() == word {
            return row;
        }
        self.further(word)
    }

    /// As [`row`](Places::row), for an address that is new or not at its first place.
    #[inline(never)]
    fn further(&self, word: u64) -> &PlaceRow {
        let first = slot(word);
        for probe in 0..PROBES {
            let row = &self.rows[(first + probe) % SLOTS];
            match row.place.value() {
                0 => row.place.set(word),
                there if there == word => {}
                _ => continue,
            }
            return row;
        }
        let rest = &self.rows[SLOTS];
        rest.place.set(PlaceWord::ELSEWHERE.0);
        rest
    }
}

/// Where a word's row is looked for first: Fibonacci hashing.
#[inline]
fn slot(word: u64) -> usize {
    (word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SLOTS.trailing_zeros())) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Places {
        Places {
            rows: std::array::from_fn(|_| PlaceRow::default()),
        }
    }

    #[test]
    fn an_address_has_one_row_for_each_direction() {
        let places = empty();
        for _ in 0..3 {
            places.row(ExitKind::IoOut, 0x80).exits.inc();
        }
        places.row(ExitKind::IoIn, 0x80).exits.inc();
        places.row(ExitKind::IoOut, 0).exits.inc();
        assert_eq!(places.row(ExitKind::IoOut, 0x80).exits.value(), 3);
        assert_eq!(places.row(ExitKind::IoIn, 0x80).exits.value(), 1);
        assert_eq!(places.row(ExitKind::IoOut, 0).exits.value(), 1);
        let used = places.rows.iter().filter(|row| row.place.value() != 0);
        assert_eq!(used.count(), 3);
    }

    #[test]
    fn a_guest_that_touches_everything_is_counted_whole_and_displaces_nobody() {
        let places = empty();
        places.row(ExitKind::MmioRead, 0xD000_0050).exits.inc();
        for port in 0..0x1_0000 {
            places.row(ExitKind::IoOut, port).exits.inc();
        }
        places.row(ExitKind::MmioRead, 0xD000_0050).exits.inc();
        assert_eq!(places.row(ExitKind::MmioRead, 0xD000_0050).exits.value(), 2);
        let all: u64 = places.rows.iter().map(|row| row.exits.value()).sum();
        assert_eq!(all, 0x1_0000 + 2);
        assert!(places.rows[SLOTS].exits.value() > 0x1_0000 - SLOTS as u64);
    }
}
