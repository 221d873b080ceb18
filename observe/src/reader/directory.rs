//! The directory: text lines that say what lies where.

use std::collections::HashMap;
use std::str::Split;
use std::sync::Arc;

use super::MAX_SECTIONS;
use crate::schema::{FieldKind, Unit};

/// Kinds of sections, fields of a kind, rows of a field, row names in all: what is beyond is left
/// out and makes the snapshot truncated.
const MAX_KINDS: usize = 256;
const MAX_FIELDS: usize = 256;
const MAX_FIELD_ROWS: usize = 4096;
const MAX_NAMES: usize = 256 << 10;
/// Columns of one series, and of all together.
const MAX_COLUMNS: usize = 64;
const MAX_ALL_COLUMNS: usize = 4096;
/// Bytes of a name and of a help text; longer ones are cut.
const MAX_NAME_BYTES: usize = 128;
const MAX_HELP_BYTES: usize = 512;

/// One field of a section kind, as the black box describes it.
#[derive(Clone, Debug)]
pub struct FieldView {
    /// Its name, unique in the kind.
    pub name: String,
    /// How it is read.
    pub kind: FieldKind,
    /// What it measures; [`Unit::None`] for one that this version does not know.
    pub unit: Unit,
    /// One sentence for people.
    pub help: String,
    /// For a column of a table, what tells its rows apart; empty for a lone field.
    pub label: String,
    /// Of a series, what the numbers of a row are.
    pub columns: Arc<Vec<ColumnView>>,
    pub(super) offset: usize,
    pub(super) count: usize,
    pub(super) stride: usize,
}

impl FieldView {
    /// Whether it is no value but the names of its table's rows.
    pub fn names_rows(&self) -> bool {
        self.kind == FieldKind::Gauge && !self.label.is_empty() && self.name == self.label
    }
}

/// One column of a series, as the black box describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnView {
    /// Its name, unique in the series.
    pub name: String,
    /// It only goes up; otherwise it is a level.
    pub is_counter: bool,
    /// What it measures; [`Unit::None`] for one that this version does not know.
    pub unit: Unit,
    /// One sentence for people.
    pub help: String,
}

/// A kind of section.
#[derive(Clone, Debug, Default)]
pub(super) struct Kind {
    pub name: String,
    pub instance: Vec<String>,
    pub fields: Vec<FieldView>,
}

impl Kind {
    /// Whether the rows of the tables with that label carry their own names.
    pub fn names_rows_of(&self, label: &str) -> bool {
        let mut fields = self.fields.iter();
        fields.any(|field| field.names_rows() && field.label == label)
    }
}

/// Where one section lies.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub kind: Arc<Kind>,
    pub offset: u64,
    pub bytes: usize,
    /// For each table label the names of the rows.
    pub labels: Arc<Vec<(String, Vec<String>)>>,
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    pub sections: Vec<Entry>,
    pub truncated: bool,
}

/// A section line, before its kind is known whole.
struct Place {
    name: String,
    kind: String,
    offset: u64,
    bytes: usize,
    labels: Vec<(String, Vec<String>)>,
}

#[derive(Default)]
struct Parser {
    kinds: HashMap<String, Kind>,
    places: Vec<Place>,
    newest: HashMap<String, usize>,
    names: usize,
    columns: usize,
    truncated: bool,
}

/// Reads whole lines; a last one without its end was cut and is passed over.
pub(super) fn parse(text: &[u8]) -> Directory {
    let mut parser = Parser::default();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let Some(line) = line.strip_suffix(b"\n") else {
            parser.truncated = true;
            break;
        };
        let line = String::from_utf8_lossy(line);
        let mut columns = line.split('\t');
        // A line of a kind that we do not know, or that lacks a column, is passed over.
        let _ = match columns.next() {
            Some("kind") => parser.kind(columns),
            Some("field") => parser.field(columns),
            Some("column") => parser.column(columns),
            Some("section") => parser.section(columns),
            Some("labels") => parser.labels(columns),
            _ => None,
        };
    }
    parser.finish()
}

impl Parser {
    fn kind_named(&mut self, name: &str) -> Option<&mut Kind> {
        let name = cut(name, MAX_NAME_BYTES);
        if self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(&name) {
            self.truncated = true;
            return None;
        }
        Some(self.kinds.entry(name.clone()).or_insert_with(|| Kind {
            name,
            ..Kind::default()
        }))
    }

    fn kind(&mut self, mut columns: Split<'_, char>) -> Option<()> {
        let kind = self.kind_named(columns.next()?)?;
        if kind.instance.is_empty() {
            kind.instance = columns
                .next()?
                .split(',')
                .filter(|label| !label.is_empty())
                .take(8)
                .map(|label| cut(label, MAX_NAME_BYTES))
                .collect();
        }
        Some(())
    }

    fn field(&mut self, mut columns: Split<'_, char>) -> Option<()> {
        let kind = columns.next()?;
        let name = cut(columns.next()?, MAX_NAME_BYTES);
        let how = field_kind(columns.next()?)?;
        let unit = unit(columns.next()?);
        let offset: usize = columns.next()?.parse().ok()?;
        let count: usize = columns.next()?.parse().ok()?;
        let stride: usize = columns.next()?.parse().ok()?;
        let label = cut(columns.next()?, MAX_NAME_BYTES);
        let help = cut(columns.next().unwrap_or_default(), MAX_HELP_BYTES);
        let is_series = how == FieldKind::Series;
        if count > 1 && stride < 8 || is_series && !label.is_empty() {
            return None;
        }
        let kind = self.kind_named(kind)?;
        if kind.fields.iter().any(|field| field.name == name) {
            return None;
        }
        let too_much = kind.fields.len() >= MAX_FIELDS || count > MAX_FIELD_ROWS;
        if kind.fields.len() < MAX_FIELDS {
            kind.fields.push(FieldView {
                name,
                kind: how,
                unit,
                help,
                label,
                columns: Arc::default(),
                offset,
                count: count.min(MAX_FIELD_ROWS),
                stride,
            });
        }
        self.truncated |= too_much;
        Some(())
    }

    fn column(&mut self, mut columns: Split<'_, char>) -> Option<()> {
        let kind = self.kinds.get_mut(columns.next()?)?;
        let series = columns.next()?;
        let mut fields = kind.fields.iter_mut();
        let series = fields
            .find(|field| field.name == series)
            .filter(|field| field.kind == FieldKind::Series)?;
        let name = cut(columns.next()?, MAX_NAME_BYTES);
        let how = columns.next()?;
        let unit = unit(columns.next()?);
        let help = cut(columns.next().unwrap_or_default(), MAX_HELP_BYTES);
        if series.columns.len() >= MAX_COLUMNS || self.columns >= MAX_ALL_COLUMNS {
            self.truncated = true;
            return None;
        }
        self.columns = self.columns.saturating_add(1);
        // A kind of number that is not known is shown as it is.
        let is_counter = field_kind(how) == Some(FieldKind::Counter);
        Arc::make_mut(&mut series.columns).push(ColumnView {
            name,
            is_counter,
            unit,
            help,
        });
        Some(())
    }

    fn section(&mut self, mut columns: Split<'_, char>) -> Option<()> {
        let name = cut(columns.next()?, MAX_NAME_BYTES);
        let kind = cut(columns.next()?, MAX_NAME_BYTES);
        let offset = columns.next()?.parse().ok()?;
        let bytes = columns.next()?.parse().ok()?;
        if self.places.len() >= MAX_SECTIONS {
            self.truncated = true;
            return None;
        }
        self.newest.insert(name.clone(), self.places.len());
        self.places.push(Place {
            name,
            kind,
            offset,
            bytes,
            labels: Vec::new(),
        });
        Some(())
    }

    fn labels(&mut self, mut columns: Split<'_, char>) -> Option<()> {
        let section = cut(columns.next()?, MAX_NAME_BYTES);
        let label = cut(columns.next()?, MAX_NAME_BYTES);
        let values = columns.next()?;
        let place = self.places.get_mut(*self.newest.get(&section)?)?;
        let room = MAX_NAMES.saturating_sub(self.names).min(MAX_FIELD_ROWS);
        let values: Vec<String> = values
            .split(',')
            .take(room)
            .map(|value| cut(value, MAX_NAME_BYTES))
            .collect();
        self.truncated |= values.len() == room;
        // The line itself counts too: a million lines of one label are as heavy as one of many.
        self.names = self.names.saturating_add(values.len()).saturating_add(1);
        if self.names < MAX_NAMES && place.labels.len() < MAX_FIELDS {
            place.labels.push((label, values));
        }
        Some(())
    }

    fn finish(self) -> Directory {
        let kinds: HashMap<String, Arc<Kind>> = self
            .kinds
            .into_iter()
            .map(|(name, kind)| (name, Arc::new(kind)))
            .collect();
        let sections = self.places.into_iter().filter_map(|place| {
            Some(Entry {
                kind: Arc::clone(kinds.get(&place.kind)?),
                name: place.name,
                offset: place.offset,
                bytes: place.bytes,
                labels: Arc::new(place.labels),
            })
        });
        Directory {
            sections: sections.collect(),
            truncated: self.truncated,
        }
    }
}

fn field_kind(text: &str) -> Option<FieldKind> {
    let number: u8 = text.parse().ok()?;
    FieldKind::ALL
        .into_iter()
        .find(|kind| *kind as u8 == number)
}

fn unit(text: &str) -> Unit {
    let number = text.parse().unwrap_or(Unit::None as u8);
    let known = Unit::ALL.into_iter().find(|unit| *unit as u8 == number);
    known.unwrap_or(Unit::None)
}

/// At most `bytes` bytes of `text`, cut between characters.
fn cut(text: &str, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default().to_owned()
}
