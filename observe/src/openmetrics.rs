//! Renders what a reader sees as OpenMetrics 1.0 text.
//!
//! A field becomes the family `vitrine_KIND_FIELD`, with its unit as a suffix (times in seconds)
//! and, for counters, `_total`. Labels are `vm`, those of the section's instance and, for a column
//! of a table, the table's. An absent row means 0: rows of a table whose counter or histogram was
//! never touched are left out, as are rows without a name. A moment that never was is 0. Flight rings
//! and text rings show only how much was written.
//!
//! Histogram bounds are powers of four. Times have `le` at bucket boundaries, so a value that is a
//! bound to the nanosecond counts in the next bucket; for the other units `le` is the largest
//! integer below the boundary (255, 1023, ...), which is exact.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod family;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write;

use crate::reader::{
    Ended, FieldView, FlightView, HistogramView, SectionView, Snapshot, TextView, Value,
};
use crate::schema::{FieldKind, Section, Unit};
pub use family::{Family, MetricType, families};
use family::{metric_name, of_field};

/// The content type of the text, for HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A number of the process that no black box holds, for [`render_with`].
#[derive(Clone, Debug)]
pub struct Extra<'a> {
    /// Without `vitrine_` and suffixes: `api_requests`.
    pub name: &'a str,
    /// [`FieldKind::Counter`]; anything else is shown as a gauge.
    pub kind: FieldKind,
    /// What it measures.
    pub unit: Unit,
    /// One sentence.
    pub help: &'a str,
    /// Besides `vm`.
    pub labels: &'a [(&'a str, &'a str)],
    /// The number, in `unit` (nanoseconds become seconds).
    pub value: u64,
}

/// Appends `snapshot` to `out`, with `vitrine_build_info` and `vitrine_up`, and the closing `# EOF`.
pub fn render(snapshot: &Snapshot, out: &mut String) {
    render_with(snapshot, &[], out);
}

/// As [`render`], with numbers of the process among the families.
pub fn render_with(snapshot: &Snapshot, extras: &[Extra<'_>], out: &mut String) {
    let mut page = Page {
        families: BTreeMap::new(),
        snapshot,
    };
    page.process();
    for extra in extras {
        page.extra(extra);
    }
    // The newest of two sections of one name is in use, and the first to come wins.
    for section in snapshot.sections.iter().rev() {
        page.section(section);
    }
    page.write(out);
}

/// The metric names that sections of type `T` give, for the documentation.
pub fn families_of<T: Section>() -> Vec<Family> {
    let fields = T::FIELDS.iter();
    fields
        .flat_map(|field| families(T::KIND, T::INSTANCE, field))
        .collect()
}

struct Samples {
    family: Family,
    /// By labels: the lines of one metric stay together.
    metrics: BTreeMap<String, String>,
}

struct Page<'a> {
    families: BTreeMap<String, Samples>,
    snapshot: &'a Snapshot,
}

impl Page<'_> {
    /// Adds one metric, unless its family has another meaning already or its labels are taken.
    fn add(&mut self, family: Family, labels: String, lines: impl FnOnce(&str, &str) -> String) {
        let name = family.name.clone();
        let samples = match self.families.entry(name.clone()) {
            Entry::Vacant(free) => free.insert(Samples {
                family,
                metrics: BTreeMap::new(),
            }),
            Entry::Occupied(taken) => {
                let known = &taken.get().family;
                if known.metric_type != family.metric_type || known.unit != family.unit {
                    return;
                }
                taken.into_mut()
            }
        };
        if let Entry::Vacant(free) = samples.metrics.entry(labels) {
            let text = lines(&name, free.key());
            free.insert(text);
        }
    }

    fn process(&mut self) {
        let snapshot = self.snapshot;
        let build = Family::plain("vitrine_build", MetricType::Info, "The VMM's version.");
        let version = ("version", snapshot.header.version.as_str());
        let labels = self.labels([version].into_iter());
        self.add(build, labels, |name, labels| {
            format!("{name}_info{{{labels}}} 1\n")
        });
        let up = Family::plain(
            "vitrine_up",
            MetricType::Gauge,
            "1 while the VMM lives, as far as its black box tells.",
        );
        let lives = snapshot
            .writer_alive
            .unwrap_or(snapshot.header.end == Ended::Running);
        let labels = self.labels(std::iter::empty());
        self.add(up, labels, |name, labels| {
            format!("{name}{{{labels}}} {}\n", u8::from(lives))
        });
    }

    fn extra(&mut self, extra: &Extra<'_>) {
        let kind = match extra.kind {
            FieldKind::Counter => FieldKind::Counter,
            _ => FieldKind::Gauge,
        };
        let Some(family) = of_field("", extra.name, kind, extra.unit, extra.help).pop() else {
            return;
        };
        let labels = self.labels(extra.labels.iter().copied());
        let number = self.number(extra.value, extra.unit, kind);
        let total = total(kind);
        self.add(family, labels, |name, labels| {
            format!("{name}{total}{{{labels}}} {number}\n")
        });
    }

    fn section(&mut self, section: &SectionView) {
        for (field, row, value) in section.values() {
            let untouched = match &value {
                Value::Counter(count) => *count == 0,
                Value::Histogram(histogram) => histogram.count() == 0,
                _ => false,
            };
            if row.is_empty() || !untouched {
                self.field(section, field, row, &value);
            }
        }
    }

    fn field(&mut self, section: &SectionView, field: &FieldView, row: &str, value: &Value) {
        let instance = section.instance.iter();
        let instance = instance.map(|(label, value)| (label.as_str(), value.as_str()));
        let row = (!row.is_empty()).then_some((field.label.as_str(), row));
        let labels = self.labels(instance.chain(row));
        let mut families = of_field(
            section.kind(),
            &field.name,
            field.kind,
            field.unit,
            &field.help,
        )
        .into_iter();
        let Some(family) = families.next() else {
            return;
        };
        match value {
            Value::Counter(n) | Value::Gauge(n) => {
                let number = self.number(*n, field.unit, field.kind);
                let total = total(field.kind);
                self.add(family, labels, |name, labels| {
                    format!("{name}{total}{{{labels}}} {number}\n")
                });
            }
            Value::Histogram(histogram) => {
                let lines = self.histogram(histogram, &family.name, &labels);
                self.add(family, labels, |_, _| lines);
            }
            Value::Heartbeat(heartbeat) => {
                let state = heartbeat.activity_name();
                let since = self
                    .snapshot
                    .header
                    .clock
                    .realtime_of(heartbeat.since_ticks);
                let since = seconds(since);
                let both = labels.clone();
                self.add(family, labels, |name, labels| {
                    format!("{name}{{{labels},state=\"{state}\"}} 1\n")
                });
                if let Some(family) = families.next().filter(|_| heartbeat.since_ticks != 0) {
                    self.add(family, both, |name, labels| {
                        format!("{name}{{{labels}}} {since}\n")
                    });
                }
            }
            Value::Series(_) | Value::Words(_) => {}
            Value::Flight(FlightView { written, .. }) | Value::Text(TextView { written, .. }) => {
                self.add(family, labels, |name, labels| {
                    format!("{name}_total{{{labels}}} {written}\n")
                });
            }
        }
    }

    /// `vm` and `others` as they stand between braces; a label name that is taken gets a `_`.
    fn labels<'a>(&self, others: impl Iterator<Item = (&'a str, &'a str)>) -> String {
        let mut text = String::from("vm=\"");
        escape(&self.snapshot.header.vm_id, &mut text);
        text.push('"');
        let mut taken = vec![
            String::from("vm"),
            String::from("le"),
            String::from("state"),
        ];
        for (name, value) in others {
            let mut name = metric_name(name);
            while taken.contains(&name) {
                name.push('_');
            }
            let _ = write!(text, ",{name}=\"");
            escape(value, &mut text);
            text.push('"');
            taken.push(name);
        }
        text
    }

    fn number(&self, value: u64, unit: Unit, kind: FieldKind) -> String {
        let clock = &self.snapshot.header.clock;
        match (unit, kind) {
            (Unit::Nanoseconds, _) => seconds(value),
            // A moment that never was; its ticks would say when the host was started.
            (Unit::Ticks, FieldKind::Gauge) if value == 0 => "0".to_owned(),
            // A gauge of ticks is a moment; all else is a span.
            (Unit::Ticks, FieldKind::Gauge) => seconds(clock.realtime_of(value)),
            (Unit::Ticks, _) => seconds(clock.ns_of(value)),
            (Unit::None | Unit::Bytes | Unit::Pages, _) => value.to_string(),
        }
    }

    fn histogram(&self, histogram: &HistogramView, name: &str, labels: &str) -> String {
        let mut text = String::new();
        let powers = match histogram.unit {
            Unit::Nanoseconds | Unit::Ticks => 4..=18,
            Unit::Bytes => 4..=16,
            Unit::None | Unit::Pages => 0..=12,
        };
        let mut last = String::new();
        for power in powers {
            let bound = 1u64 << (2 * power);
            let le = match histogram.unit {
                Unit::Nanoseconds => float(seconds(bound)),
                Unit::Ticks => float(seconds(self.snapshot.header.clock.ns_of(bound))),
                Unit::None | Unit::Bytes | Unit::Pages => float((bound - 1).to_string()),
            };
            // Ticks of a nonsensical length.
            if le == last {
                continue;
            }
            let count = histogram.count_below(bound);
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{le}\"}} {count}");
            last = le;
        }
        let count = histogram.count();
        let sum = self.number(histogram.sum, histogram.unit, FieldKind::Histogram);
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_count{{{labels}}} {count}");
        let _ = writeln!(text, "{name}_sum{{{labels}}} {sum}");
        text
    }

    fn write(&self, out: &mut String) {
        for (name, Samples { family, metrics }) in &self.families {
            let _ = writeln!(out, "# TYPE {name} {}", family.metric_type.word());
            if !family.unit.is_empty() {
                let _ = writeln!(out, "# UNIT {name} {}", family.unit);
            }
            let _ = write!(out, "# HELP {name} ");
            escape(&family.help, out);
            out.push('\n');
            for lines in metrics.values() {
                out.push_str(lines);
            }
        }
        out.push_str("# EOF\n");
    }
}

fn total(kind: FieldKind) -> &'static str {
    match kind {
        FieldKind::Counter => "_total",
        _ => "",
    }
}

/// Nanoseconds as seconds, exact: `1.5`, `0.000000256`, `3`.
fn seconds(ns: u64) -> String {
    let (whole, part) = (ns / 1_000_000_000, ns % 1_000_000_000);
    if part == 0 {
        return whole.to_string();
    }
    let text = format!("{whole}.{part:09}");
    text.trim_end_matches('0').to_owned()
}

/// A bound as the format wants it in a label: with a decimal point.
fn float(mut number: String) -> String {
    if !number.contains('.') {
        number.push_str(".0");
    }
    number
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push('_'),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests;
