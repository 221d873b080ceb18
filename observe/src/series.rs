//! The series: the last samples of a few numbers, overwritten in a circle.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::cell::Gauge;
use crate::schema::{FieldKind, Unit};

/// What one number of a [`Series`]'s rows is.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Lower-case with underscores, without unit suffix; unique in its series.
    pub name: &'static str,
    /// [`FieldKind::Counter`] if it only goes up, so that readers make rates of it;
    /// [`FieldKind::Gauge`] if it is a level.
    pub kind: FieldKind,
    /// What it measures. A level in ticks is a moment.
    pub unit: Unit,
    /// One sentence for people.
    pub help: &'static str,
}

impl Column {
    /// A number that only goes up.
    pub const fn counter(name: &'static str, unit: Unit, help: &'static str) -> Self {
        Column {
            name,
            kind: FieldKind::Counter,
            unit,
            help,
        }
    }

    /// A level.
    pub const fn level(name: &'static str, unit: Unit, help: &'static str) -> Self {
        Column {
            name,
            kind: FieldKind::Gauge,
            unit,
            help,
        }
    }
}

/// A ring of rows written by one thread. `written` counts all rows ever, so a reader knows the
/// newest one (`written - 1` modulo `ROWS`) and what was overwritten while it read: as in a
/// [`crate::FlightRing`], rows that were copied between two readings `w1` and `w2` of it are those
/// of `w2 + 1 - ROWS` to `w1 - 1` whole.
#[derive(Debug)]
#[repr(C)]
pub struct Series<const COLUMNS: usize, const ROWS: usize> {
    written: AtomicU64,
    rows: [[Gauge; COLUMNS]; ROWS],
}

/// Where the rows begin, in bytes from the start of a series.
pub(crate) const ROWS_OFFSET: usize = std::mem::offset_of!(Series<1, 1>, rows);

impl<const COLUMNS: usize, const ROWS: usize> Series<COLUMNS, ROWS> {
    /// Appends a row: a store for each number, and one more.
    pub fn push(&self, row: [u64; COLUMNS]) {
        let written = self.written.load(Ordering::Relaxed);
        // Whoever sees one of our stores to the row sees the `written` of the push before.
        fence(Ordering::Release);
        let slot = (written as usize).checked_rem(ROWS);
        if let Some(cells) = slot.and_then(|slot| self.rows.get(slot)) {
            for (cell, value) in cells.iter().zip(row) {
                cell.set(value);
            }
        }
        self.written
            .store(written.wrapping_add(1), Ordering::Release);
    }

    /// Rows written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
