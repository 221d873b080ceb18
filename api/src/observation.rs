//! GET /observe: all that the black box holds, as one JSON object.
//!
//! The mapping is generic, so that a section that is new appears by itself: the sections of a kind
//! are a list under the kind's plural ([`LISTS`], else the kind's own name), each an object with
//! its labels as texts and then its fields.
//!
//! * a counter or gauge is a number; its unit ends its key: `run_ns`, `output_bytes`;
//! * a moment is `..._ns_ago`, counted back from `now_ms`, or null when it never was;
//! * a histogram is `{count, sum, max, p50, p90, p99}` under a key with its unit;
//! * a column of a table is an object by row: `"exits": {"io_in": 5}`; a row that is absent is 0;
//! * a heartbeat says what the thread does, where, and since when;
//! * a flight ring is `{written}`, with its `events`, oldest first, when they are asked for;
//! * a text ring is `{written}`, with its `text` when events are asked for;
//! * a series is `{written}`, with its `columns` and `rows`, oldest first, when they are asked for.

use serde_json::{Map, Value as Json, json};
use vmm::observe::reader::{
    ColumnView, Ended, FieldView, FlightView, HeartbeatView, HistogramView, SectionView,
    SeriesView, Snapshot, Value,
};
use vmm::observe::{Activity, FieldKind, Unit};

/// Lists that are always there, with the kinds of section that they hold.
pub const LISTS: [(&str, &str); 6] = [
    ("vcpu", "vcpus"),
    ("queue", "queues"),
    ("device", "devices"),
    ("transport", "transports"),
    ("thread", "threads"),
    ("console", "consoles"),
];

/// What is known of a VM beside its black box.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its state, as GET / tells it.
    pub state: &'static str,
    /// Where its black box lies.
    pub black_box: Option<&'a str>,
}

/// What is left out unless it is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Details {
    /// The events of flight rings.
    pub events: bool,
    /// The rows of series.
    pub samples: bool,
}

/// The observation; without a snapshot, that of a VM that was not started.
pub fn render(subject: Subject<'_>, snapshot: Option<&Snapshot>, details: Details) -> Json {
    let mut all = Map::new();
    all.insert("id".to_owned(), json!(subject.id));
    all.insert("state".to_owned(), json!(subject.state));
    all.insert("black_box".to_owned(), json!(subject.black_box));
    let header = snapshot.map(|snapshot| &snapshot.header);
    let created = header.map(|header| header.created_realtime_ns / 1_000_000);
    all.insert("created_ms".to_owned(), json!(created));
    let now = snapshot.map(|snapshot| {
        let clock = &snapshot.header.clock;
        clock.realtime_of_monotonic(snapshot.now_monotonic_ns) / 1_000_000
    });
    all.insert("now_ms".to_owned(), json!(now));
    all.insert("version".to_owned(), json!(header.map(|h| &h.version)));
    let alive = snapshot.and_then(|snapshot| snapshot.writer_alive);
    all.insert("alive".to_owned(), json!(alive));
    let ended = header.map_or(Json::Null, |header| ended(&header.end));
    all.insert("ended".to_owned(), ended);
    let truncated = snapshot.is_some_and(|snapshot| snapshot.truncated);
    all.insert("truncated".to_owned(), json!(truncated));
    for (_, list) in LISTS {
        all.insert(list.to_owned(), Json::Array(Vec::new()));
    }
    let Some(snapshot) = snapshot else {
        return Json::Object(all);
    };
    for section in in_use(snapshot) {
        let page = Page {
            snapshot,
            section,
            details,
        };
        let list = all.entry(list_of(section.kind()));
        let list = list.or_insert_with(|| Json::Array(Vec::new()));
        // A kind that is named as one of the facts above has no place.
        if let Json::Array(list) = list {
            list.push(Json::Object(page.object()));
        }
    }
    Json::Object(all)
}

/// Of two sections with one name, the later one.
fn in_use(snapshot: &Snapshot) -> impl Iterator<Item = &SectionView> {
    let sections = snapshot.sections.iter().enumerate();
    sections
        .filter(|(index, section)| {
            let mut later = snapshot.sections.iter().skip(index + 1);
            !later.any(|other| other.name == section.name)
        })
        .map(|(_, section)| section)
}

fn list_of(kind: &str) -> &str {
    let known = LISTS.iter().find(|(known, _)| *known == kind);
    known.map_or(kind, |(_, list)| list)
}

/// How it ended, as the document has it: null, or whether it failed, when, and its words.
pub fn ended(end: &Ended) -> Json {
    let object = |failed: bool, at_ns: u64, detail: &str| json!({"failed": failed, "at_ms": at_ns / 1_000_000, "detail": detail});
    match end {
        Ended::Running => Json::Null,
        Ended::Clean {
            at_realtime_ns,
            detail,
        } => object(false, *at_realtime_ns, detail),
        Ended::Failed {
            at_realtime_ns,
            detail,
        } => object(true, *at_realtime_ns, detail),
    }
}

/// One section.
struct Page<'a> {
    snapshot: &'a Snapshot,
    section: &'a SectionView,
    details: Details,
}

impl Page<'_> {
    fn object(&self) -> Map<String, Json> {
        let mut object = Map::new();
        for (label, value) in &self.section.instance {
            object.insert(label.clone(), json!(value));
        }
        // Tables without a row yet are there too.
        for field in self.section.fields() {
            if !field.label.is_empty() && !field.names_rows() {
                object.insert(key(field), json!({}));
            }
        }
        for (field, row, value) in self.section.values() {
            let untouched = match &value {
                Value::Counter(count) => *count == 0,
                Value::Histogram(histogram) => histogram.count() == 0,
                _ => false,
            };
            if row.is_empty() {
                object.insert(key(field), self.value(field, &value));
            } else if !untouched && let Some(Json::Object(rows)) = object.get_mut(&key(field)) {
                rows.insert(row.to_owned(), self.value(field, &value));
            }
        }
        object
    }

    fn value(&self, field: &FieldView, value: &Value) -> Json {
        match value {
            Value::Gauge(0) if field.unit == Unit::Ticks => Json::Null,
            Value::Gauge(at) if field.unit == Unit::Ticks => json!(self.snapshot.age_ns(*at)),
            Value::Counter(count) | Value::Gauge(count) => json!(self.number(*count, field.unit)),
            Value::Histogram(histogram) => self.histogram(histogram),
            Value::Heartbeat(heartbeat) => self.heartbeat(heartbeat),
            Value::Flight(flight) => self.flight(flight),
            Value::Series(series) => self.series(series),
            Value::Text(text) if self.details.events => json!({
                "written": text.written,
                "text": String::from_utf8_lossy(&text.bytes),
            }),
            Value::Text(text) => json!({"written": text.written}),
            Value::Words(text) => json!(text),
        }
    }

    /// Ticks as nanoseconds, all else as it is.
    fn number(&self, value: u64, unit: Unit) -> u64 {
        match unit {
            Unit::Ticks => self.snapshot.header.clock.ns_of(value),
            _ => value,
        }
    }

    fn histogram(&self, histogram: &HistogramView) -> Json {
        let number = |value| self.number(value, histogram.unit);
        json!({
            "count": histogram.count(),
            "sum": number(histogram.sum),
            "max": number(histogram.max),
            "p50": number(histogram.quantile(0.5)),
            "p90": number(histogram.quantile(0.9)),
            "p99": number(histogram.quantile(0.99)),
        })
    }

    fn heartbeat(&self, heartbeat: &HeartbeatView) -> Json {
        let works = matches!(
            heartbeat.activity,
            Some(Activity::InHandler | Activity::InDevice | Activity::Blocked) | None
        );
        let never = heartbeat.since_ticks == 0;
        json!({
            "activity": heartbeat.activity_name(),
            "reason": works.then(|| self.row("reason", usize::from(heartbeat.reason))),
            "device": works.then(|| self.row("device", usize::from(heartbeat.device))),
            "address": works.then(|| format!("{:#x}", heartbeat.address)),
            "since_ns_ago": (!never).then(|| self.snapshot.age_ns(heartbeat.since_ticks)),
            "tid": heartbeat.tid,
            "settled": heartbeat.settled,
        })
    }

    /// The name that the section's tables have for a number, else the number.
    fn row(&self, label: &str, number: usize) -> Json {
        match self.section.row_name(label, number) {
            Some(name) => json!(name),
            None => json!(number),
        }
    }

    fn flight(&self, flight: &FlightView) -> Json {
        if !self.details.events {
            return json!({"written": flight.written});
        }
        let events = flight.events.iter().map(|event| {
            json!({
                "ns_ago": self.snapshot.age_ns(event.at),
                "kind": event.what & 0xff,
                "detail": event.what >> 8 & 0xff,
                "device": event.what >> 16 & 0xffff,
                "length": event.what >> 32,
                "address": format!("{:#x}", event.address),
                "value": event.value,
            })
        });
        json!({"written": flight.written, "events": events.collect::<Vec<_>>()})
    }
}

impl Page<'_> {
    fn series(&self, series: &SeriesView) -> Json {
        if !self.details.samples {
            return json!({"written": series.written});
        }
        let columns = series.columns.iter().map(|column| {
            json!({
                "name": keyed(&column.name, column.unit, !column.is_counter),
                "counter": column.is_counter,
            })
        });
        let rows = series.rows.iter().map(|row| {
            let numbers = row.iter().zip(series.columns.iter());
            let numbers = numbers.map(|(number, column)| self.sampled(*number, column));
            Json::Array(numbers.collect())
        });
        json!({
            "written": series.written,
            "columns": columns.collect::<Vec<_>>(),
            "rows": rows.collect::<Vec<_>>(),
        })
    }

    fn sampled(&self, number: u64, column: &ColumnView) -> Json {
        match (column.is_counter, column.unit) {
            (false, Unit::Ticks) if number == 0 => Json::Null,
            (false, Unit::Ticks) => json!(self.snapshot.age_ns(number)),
            (_, unit) => json!(self.number(number, unit)),
        }
    }
}

/// A field's key: its name and its unit.
fn key(field: &FieldView) -> String {
    let is_number = !matches!(
        field.kind,
        FieldKind::Heartbeat | FieldKind::FlightRing | FieldKind::TextRing
    );
    let unit = if is_number { field.unit } else { Unit::None };
    keyed(&field.name, unit, field.kind == FieldKind::Gauge)
}

fn keyed(name: &str, unit: Unit, is_level: bool) -> String {
    let suffix = match unit {
        Unit::None => "",
        Unit::Ticks if is_level => "_ns_ago",
        Unit::Nanoseconds | Unit::Ticks => "_ns",
        Unit::Bytes => "_bytes",
        Unit::Pages => "_pages",
    };
    format!("{name}{suffix}")
}

#[cfg(test)]
mod tests;
