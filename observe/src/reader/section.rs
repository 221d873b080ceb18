//! Sections: a copy of their bytes, and access by field and row.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::directory::{Entry, FieldView, Kind};
use super::source::{Source, read, word};
use super::value::{FlightView, HeartbeatView, HistogramView, SeriesView, TextView, Value};
use super::{MAX_ROWS, MAX_SECTION_BYTES, MAX_WORDS_BYTES};
use crate::place::PlaceWord;
use crate::schema::FieldKind;
use crate::words::CHECK_BYTES;

/// What may still be read, of all sections together.
pub(super) struct Budget {
    bytes: usize,
    rows: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget {
            bytes: MAX_SECTION_BYTES,
            rows: MAX_ROWS,
        }
    }
}

/// One section of the black box.
#[derive(Debug)]
pub struct SectionView {
    /// Its name: `queue/rootfs/0`.
    pub name: String,
    /// What tells it from others of its kind: `[("device", "rootfs"), ("queue", "0")]`.
    pub instance: Vec<(String, String)>,
    /// The file ends before it does.
    pub truncated: bool,
    kind: Arc<Kind>,
    labels: Arc<Vec<(String, Vec<String>)>>,
    /// Names of rows that the section holds itself.
    own: Vec<(String, Vec<String>)>,
    bytes: Vec<u8>,
    /// For the ring at an offset, its count before and after `bytes` were read.
    rings: BTreeMap<usize, (u64, u64)>,
    heartbeats: BTreeMap<usize, HeartbeatView>,
}

impl SectionView {
    /// Its kind, the first part of its name: `queue`.
    pub fn kind(&self) -> &str {
        &self.kind.name
    }

    /// All fields of its kind, in the writer's order.
    pub fn fields(&self) -> &[FieldView] {
        &self.kind.fields
    }

    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&FieldView> {
        self.kind.fields.iter().find(|field| field.name == name)
    }

    /// Everything that it holds: field, row name (empty for a lone field) and value. Rows without
    /// a name, columns of names and what was cut off are left out.
    pub fn values(&self) -> impl Iterator<Item = (&FieldView, &str, Value)> {
        let fields = self.kind.fields.iter();
        let fields = fields.filter(|field| !field.names_rows());
        fields.flat_map(move |field| {
            self.rows(field).filter_map(move |(row, name)| {
                let offset = element(field, row)?;
                Some((field, name, self.value_at(field, offset)?))
            })
        })
    }

    /// A lone field's value.
    pub fn value(&self, field: &str) -> Option<Value> {
        let field = self.field(field)?;
        if !field.label.is_empty() {
            return None;
        }
        self.value_at(field, field.offset)
    }

    /// A lone counter's count.
    pub fn counter(&self, field: &str) -> Option<u64> {
        match self.value(field)? {
            Value::Counter(count) => Some(count),
            _ => None,
        }
    }

    /// A lone gauge's value.
    pub fn gauge(&self, field: &str) -> Option<u64> {
        match self.value(field)? {
            Value::Gauge(value) => Some(value),
            _ => None,
        }
    }

    /// A lone histogram.
    pub fn histogram(&self, field: &str) -> Option<HistogramView> {
        match self.value(field)? {
            Value::Histogram(histogram) => Some(*histogram),
            _ => None,
        }
    }

    /// A heartbeat.
    pub fn heartbeat(&self, field: &str) -> Option<HeartbeatView> {
        match self.value(field)? {
            Value::Heartbeat(heartbeat) => Some(heartbeat),
            _ => None,
        }
    }

    /// A flight ring.
    pub fn flight(&self, field: &str) -> Option<FlightView> {
        match self.value(field)? {
            Value::Flight(flight) => Some(flight),
            _ => None,
        }
    }

    /// A series.
    pub fn series(&self, field: &str) -> Option<SeriesView> {
        match self.value(field)? {
            Value::Series(series) => Some(series),
            _ => None,
        }
    }

    /// A text ring.
    pub fn text(&self, field: &str) -> Option<TextView> {
        match self.value(field)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A text; `None` too while it is being written.
    pub fn words(&self, field: &str) -> Option<String> {
        match self.value(field)? {
            Value::Words(text) => Some(text),
            _ => None,
        }
    }

    /// The value in the row of that name of a table's column: `table("exits", "io")`.
    pub fn table(&self, field: &str, row: &str) -> Option<Value> {
        let field = self.field(field)?;
        let (row, _) = self.rows(field).find(|(_, name)| *name == row)?;
        self.value_at(field, element(field, row)?)
    }

    /// The names of the rows that a column's table has, in row order; hidden ones left out.
    pub fn row_names(&self, field: &str) -> impl Iterator<Item = &str> {
        let field = self.field(field).filter(|field| !field.label.is_empty());
        field
            .into_iter()
            .flat_map(|field| self.rows(field).map(|(_, name)| name))
    }

    /// The name of row `number` of the tables with that label, such as the exit that a heartbeat's
    /// `reason` stands for; `None` if it has none.
    pub fn row_name(&self, label: &str, number: usize) -> Option<&str> {
        let name = self.names(label)?.get(number).map(String::as_str);
        name.filter(|name| !name.is_empty())
    }

    /// Gives their names to the rows that carry them: tables of which a gauge column is called as
    /// their label is. The names take of the budget what they would take in the directory.
    fn name_rows(&mut self) {
        let reasons = self.names("reason").unwrap_or_default();
        let mut own = Vec::new();
        for field in self.kind.fields.iter().filter(|field| field.names_rows()) {
            let name = |row| {
                let word = word(&self.bytes, element(field, row)?)?;
                PlaceWord(word).name(reasons)
            };
            let names = (0..field.count).map(|row| name(row).unwrap_or_default());
            let names: Vec<String> = names.collect();
            own.push((field.label.clone(), names));
        }
        self.own = own;
    }

    /// The names of the rows of the tables with that label.
    fn names(&self, label: &str) -> Option<&[String]> {
        let known = self.own.iter().chain(self.labels.iter());
        let mut known = known.filter(|(known, _)| known == label);
        known.next().map(|(_, names)| names.as_slice())
    }

    /// Row numbers and names: the one nameless row of a lone field, the named ones of a column.
    fn rows(&self, field: &FieldView) -> impl Iterator<Item = (usize, &str)> {
        let lone = field.label.is_empty();
        let names = self.names(&field.label).filter(|_| !lone).into_iter();
        let named = names
            .flat_map(|names| names.iter().map(String::as_str).enumerate())
            .take(field.count)
            .filter(|(_, name)| !name.is_empty());
        lone.then_some((0, "")).into_iter().chain(named)
    }

    fn value_at(&self, field: &FieldView, offset: usize) -> Option<Value> {
        Some(match field.kind {
            FieldKind::Counter => Value::Counter(word(&self.bytes, offset)?),
            FieldKind::Gauge => Value::Gauge(word(&self.bytes, offset)?),
            FieldKind::Histogram => Value::Histogram(Box::new(HistogramView::parse(
                &self.bytes,
                offset,
                field.unit,
            )?)),
            FieldKind::Heartbeat => Value::Heartbeat(*self.heartbeats.get(&offset)?),
            FieldKind::FlightRing => Value::Flight(FlightView::parse(
                &self.bytes,
                offset,
                *self.rings.get(&offset)?,
            )),
            FieldKind::Words => Value::Words(self.words_at(field, offset)?),
            FieldKind::Series => Value::Series(SeriesView::parse(
                &self.bytes,
                field,
                *self.rings.get(&offset)?,
            )?),
            FieldKind::TextRing => Value::Text(TextView::parse(
                &self.bytes,
                offset,
                field.stride,
                *self.rings.get(&offset)?,
            )?),
        })
    }

    fn words_at(&self, field: &FieldView, offset: usize) -> Option<String> {
        let bytes = field.stride.min(MAX_WORDS_BYTES).checked_add(CHECK_BYTES)?;
        let end = offset.checked_add(bytes)?;
        crate::words::parse(self.bytes.get(offset..end)?)
    }

    /// Offsets of all rows of all fields of a kind of value.
    fn offsets(&self, kind: FieldKind) -> Vec<usize> {
        let fields = self.kind.fields.iter().filter(|field| field.kind == kind);
        fields
            .flat_map(|field| self.rows(field).filter_map(|(row, _)| element(field, row)))
            .collect()
    }

    fn rows_weighed(&self) -> usize {
        self.kind.fields.iter().fold(0usize, |sum, field| {
            let weight = match field.kind {
                FieldKind::Counter | FieldKind::Gauge => 1,
                FieldKind::Histogram | FieldKind::Heartbeat | FieldKind::Words => 16,
                FieldKind::FlightRing => 64,
                FieldKind::Series => field.count.max(1),
                FieldKind::TextRing => 1024,
            };
            let rows = match self.kind.names_rows_of(&field.label) {
                true => field.count,
                false => self.rows(field).count(),
            };
            sum.saturating_add(rows.saturating_mul(weight))
        })
    }
}

fn element(field: &FieldView, row: usize) -> Option<usize> {
    field.offset.checked_add(row.checked_mul(field.stride)?)
}

/// Reads a section; `None` if it does not fit what may still be read.
pub(super) fn load<S: Source>(
    source: &S,
    entry: &Entry,
    budget: &mut Budget,
) -> std::io::Result<Option<SectionView>> {
    let mut section = SectionView {
        instance: instance(entry),
        name: entry.name.clone(),
        truncated: false,
        kind: Arc::clone(&entry.kind),
        labels: Arc::clone(&entry.labels),
        own: Vec::new(),
        bytes: Vec::new(),
        rings: BTreeMap::new(),
        heartbeats: BTreeMap::new(),
    };
    let rows = section.rows_weighed();
    let (Some(bytes), Some(rows)) = (
        budget.bytes.checked_sub(entry.bytes),
        budget.rows.checked_sub(rows),
    ) else {
        return Ok(None);
    };
    *budget = Budget { bytes, rows };
    // Offsets are checked to lie in the section by reading from its copy; what is read apart from
    // it is bounded here.
    let inside = |offset: usize, bytes: usize| {
        let end = offset.checked_add(bytes)?;
        let at = entry.offset.checked_add(offset as u64)?;
        (end <= entry.bytes).then_some(at)
    };
    let mut before = Vec::new();
    let mut rings = section.offsets(FieldKind::FlightRing);
    rings.extend(section.offsets(FieldKind::Series));
    rings.extend(section.offsets(FieldKind::TextRing));
    for offset in rings {
        if let Some(at) = inside(offset, 8) {
            before.push((offset, at, word(&read(source, at, 8)?, 0)));
        }
    }
    section.bytes = read(source, entry.offset, entry.bytes)?;
    section.truncated = section.bytes.len() < entry.bytes;
    section.name_rows();
    for (offset, at, before) in before {
        let after = word(&read(source, at, 8)?, 0);
        if let (Some(before), Some(after)) = (before, after) {
            section.rings.insert(offset, (before, after));
        }
    }
    for offset in section.offsets(FieldKind::Heartbeat) {
        if let Some(at) = inside(offset, 32)
            && let Some(heartbeat) = HeartbeatView::read(source, at)?
        {
            section.heartbeats.insert(offset, heartbeat);
        }
    }
    Ok(Some(section))
}

/// The parts of a section's name after its kind, under the labels that its kind gives them; what
/// is too much belongs to the last one.
fn instance(entry: &Entry) -> Vec<(String, String)> {
    let labels = &entry.kind.instance;
    let parts = entry.name.split_once('/').map_or("", |(_, parts)| parts);
    let parts = parts.splitn(labels.len().max(1), '/');
    let parts = parts.chain(std::iter::repeat(""));
    let pairs = labels.iter().zip(parts);
    pairs
        .map(|(label, part)| (label.clone(), part.to_owned()))
        .collect()
}
