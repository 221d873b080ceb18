//! How a section of the black box describes itself to readers of another version.

use crate::cell::Histogram;
use crate::series::{Column, ROWS_OFFSET};
use crate::words::CHECK_BYTES;

/// What a number measures. Stored as one byte in the black box: add at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Unit {
    /// A pure number of things.
    None = 0,
    /// Nanoseconds.
    Nanoseconds = 1,
    /// Bytes.
    Bytes = 2,
    /// 4 KiB pages.
    Pages = 3,
    /// Readings of the writer's [`crate::Clock`].
    Ticks = 4,
}

impl Unit {
    /// All units.
    pub const ALL: [Unit; 5] = [
        Unit::None,
        Unit::Nanoseconds,
        Unit::Bytes,
        Unit::Pages,
        Unit::Ticks,
    ];
}

/// How a field's bytes are to be read. Stored as one byte in the black box: add at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FieldKind {
    /// A [`crate::Counter`]: 8 bytes.
    Counter = 1,
    /// A [`crate::Gauge`]: 8 bytes.
    Gauge = 2,
    /// A [`crate::Histogram`].
    Histogram = 3,
    /// A [`crate::Heartbeat`]: state, address, since, tid.
    Heartbeat = 4,
    /// A [`crate::FlightRing`].
    FlightRing = 5,
    /// A [`crate::Series`].
    Series = 6,
    /// A [`crate::TextRing`]: `written`, then bytes up to the stride.
    TextRing = 7,
    /// A [`crate::Words`].
    Words = 8,
}

impl FieldKind {
    /// All kinds.
    pub const ALL: [FieldKind; 8] = [
        FieldKind::Counter,
        FieldKind::Gauge,
        FieldKind::Histogram,
        FieldKind::Heartbeat,
        FieldKind::FlightRing,
        FieldKind::Series,
        FieldKind::TextRing,
        FieldKind::Words,
    ];
}

/// One field of a section, or one column of a table in it.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Lower-case with underscores, without unit suffix; unique in its section kind.
    pub name: &'static str,
    /// How to read it.
    pub kind: FieldKind,
    /// What it measures.
    pub unit: Unit,
    /// One sentence for people.
    pub help: &'static str,
    /// Bytes from the start of the section.
    pub offset: usize,
    /// Elements: 1, or the rows of the table that this is a column of; of a series, its rows.
    pub count: usize,
    /// Bytes from one element to the next, 0 when `count` is 1; of a series, those of a row; of a text
    /// ring, its size; of words, their most.
    pub stride: usize,
    /// For tables: the label that tells rows apart (`reason`, `device`), whose values the section
    /// was given when it was made. Empty otherwise. Rows without a value are not shown.
    pub label: &'static str,
    /// Of a series, what the numbers of a row are, in order. Empty otherwise.
    pub columns: &'static [Column],
}

impl Field {
    /// A lone counter.
    pub const fn counter(
        name: &'static str,
        unit: Unit,
        offset: usize,
        help: &'static str,
    ) -> Self {
        Field::lone(name, FieldKind::Counter, unit, offset, help)
    }

    /// A lone gauge.
    pub const fn gauge(name: &'static str, unit: Unit, offset: usize, help: &'static str) -> Self {
        Field::lone(name, FieldKind::Gauge, unit, offset, help)
    }

    /// A lone histogram.
    pub const fn histogram(
        name: &'static str,
        unit: Unit,
        offset: usize,
        help: &'static str,
    ) -> Self {
        Field::lone(name, FieldKind::Histogram, unit, offset, help)
    }

    /// A lone [`crate::TextRing`] of `N` bytes.
    pub const fn text<const N: usize>(
        name: &'static str,
        offset: usize,
        help: &'static str,
    ) -> Self {
        Field {
            stride: size_of::<crate::TextRing<N>>(),
            ..Field::lone(name, FieldKind::TextRing, Unit::Bytes, offset, help)
        }
    }

    /// Any lone field.
    pub const fn lone(
        name: &'static str,
        kind: FieldKind,
        unit: Unit,
        offset: usize,
        help: &'static str,
    ) -> Self {
        Field {
            name,
            kind,
            unit,
            help,
            offset,
            count: 1,
            stride: 0,
            label: "",
            columns: &[],
        }
    }

    /// A [`crate::Series`] of `ROWS` rows.
    pub const fn series<const COLUMNS: usize, const ROWS: usize>(
        name: &'static str,
        offset: usize,
        columns: &'static [Column; COLUMNS],
        help: &'static str,
    ) -> Self {
        Field {
            count: ROWS,
            stride: COLUMNS * 8,
            columns,
            ..Field::lone(name, FieldKind::Series, Unit::None, offset, help)
        }
    }

    /// A [`crate::Words`] of `WORDS` words.
    pub const fn words<const WORDS: usize>(
        name: &'static str,
        offset: usize,
        help: &'static str,
    ) -> Self {
        Field {
            stride: WORDS * 8,
            ..Field::lone(name, FieldKind::Words, Unit::None, offset, help)
        }
    }

    /// The same field as a column of a table of `count` rows, `stride` bytes apart.
    pub const fn column(self, count: usize, stride: usize, label: &'static str) -> Self {
        Field {
            count,
            stride,
            label,
            ..self
        }
    }

    /// Whether it is no value but the names of its table's rows: [`crate::PlaceWord`]s.
    pub fn names_rows(&self) -> bool {
        self.kind == FieldKind::Gauge && !self.label.is_empty() && self.name == self.label
    }

    /// Bytes of one element; of a series, of all that it is.
    pub const fn element_bytes(&self) -> usize {
        match self.kind {
            FieldKind::Series => ROWS_OFFSET + self.count * self.stride,
            FieldKind::Words => CHECK_BYTES + self.stride,
            FieldKind::Counter | FieldKind::Gauge => 8,
            FieldKind::Histogram => size_of::<Histogram>(),
            FieldKind::Heartbeat => size_of::<crate::Heartbeat>(),
            FieldKind::FlightRing => size_of::<crate::FlightRing>(),
            FieldKind::TextRing => self.stride,
        }
    }
}

/// A kind of section, for documentation and for whoever wants to know all that there is.
#[derive(Clone, Copy, Debug)]
pub struct SectionKind {
    /// [`Section::KIND`].
    pub kind: &'static str,
    /// [`Section::INSTANCE`].
    pub instance: &'static [&'static str],
    /// [`Section::FIELDS`].
    pub fields: &'static [Field],
}

impl SectionKind {
    /// The kind of `T`.
    pub const fn of<T: Section>() -> Self {
        SectionKind {
            kind: T::KIND,
            instance: T::INSTANCE,
            fields: T::FIELDS,
        }
    }
}

/// A struct that can live in the black box.
///
/// # Safety
/// The type must be `#[repr(C)]`, contain only the cells of this crate (or arrays and `repr(C)`
/// structs of them, and explicit padding), so that all-zero bytes are a valid value and shared
/// references to it may be written through by its owner.
#[allow(unsafe_code)]
pub unsafe trait Section: Sync + Sized + 'static {
    /// The kind, the first part of a section's name: `vcpu` in `vcpu/0`.
    const KIND: &'static str;
    /// Labels of an instance, one for each further part of the name: `["vcpu"]`, or
    /// `["device", "queue"]` for `queue/rootfs/0`.
    const INSTANCE: &'static [&'static str];
    /// All fields.
    const FIELDS: &'static [Field];
}
