//! Reading what others write, in the process that writes: how one thread samples the sections of
//! all others without their help, and without reading the file.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::mapping::Mapping;
use super::{BlackBox, Section};
use crate::schema::{Field, FieldKind};

/// A section that was placed.
pub(super) struct Placed {
    name: String,
    kind: &'static str,
    offset: usize,
    fields: &'static [Field],
}

impl Placed {
    pub(super) fn of<T: Section>(name: &str, offset: usize) -> Self {
        Placed {
            name: name.to_owned(),
            kind: T::KIND,
            offset,
            fields: T::FIELDS,
        }
    }
}

/// The words of one field in the black box, for reading: a counter's or a gauge's, a histogram's
/// sum, or all those of a column, by row. Any thread may read; each word is one relaxed load.
pub struct Probe {
    first: NonNull<AtomicU64>,
    rows: usize,
    /// In words.
    stride: usize,
    _map: Arc<Mapping>,
}

// SAFETY: it only loads atomics, in a mapping that the Arc keeps.
#[allow(unsafe_code)]
unsafe impl Send for Probe {}

impl Probe {
    /// The word of row `row`, 0 for a lone field; 0 if there is no such row.
    #[allow(unsafe_code)]
    pub fn row(&self, row: usize) -> u64 {
        if row >= self.rows {
            return 0;
        }
        // SAFETY: `BlackBox::probe` took field and section from what `section` placed: all its
        // rows lie inside the section and the section inside the mapping, words of theirs are
        // atomics (a Section), aligned to 8 bytes, and the Arc keeps the mapping.
        let word = unsafe { self.first.add(row * self.stride).as_ref() };
        word.load(Ordering::Relaxed)
    }

    /// A lone field's word.
    pub fn value(&self) -> u64 {
        self.row(0)
    }

    /// The sum of all rows; wraps at 2^64.
    pub fn sum(&self) -> u64 {
        (0..self.rows).fold(0, |sum, row| sum.wrapping_add(self.row(row)))
    }
}

impl BlackBox {
    /// The words of `field` in the section called `section`, the last one placed of that name;
    /// `None` if there is no such section, or no such field of words.
    #[allow(unsafe_code)]
    pub fn probe(&self, section: &str, field: &str) -> Option<Probe> {
        let mut placed = self.placed.iter().rev();
        let placed = placed.find(|placed| placed.name == section)?;
        let field = placed.fields.iter().find(|known| known.name == field)?;
        match field.kind {
            FieldKind::Counter | FieldKind::Gauge | FieldKind::Histogram => {}
            FieldKind::Heartbeat
            | FieldKind::FlightRing
            | FieldKind::Series
            | FieldKind::TextRing
            | FieldKind::Words => return None,
        }
        // A histogram begins with its sum.
        const { assert!(crate::Histogram::SUM_OFFSET == 0) };
        // SAFETY: the section lies inside the mapping (`section`), the field inside the section
        // (`describe::check`), both at multiples of 8 bytes.
        let first = unsafe { self.map.start().add(placed.offset + field.offset) };
        Some(Probe {
            first: first.cast(),
            rows: field.count,
            stride: field.stride / 8,
            _map: Arc::clone(&self.map),
        })
    }

    /// The names of all sections of a kind, in the order in which they were placed.
    pub fn names_of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        let of_kind = self.placed.iter().filter(move |placed| placed.kind == kind);
        of_kind.map(|placed| placed.name.as_str())
    }
}
