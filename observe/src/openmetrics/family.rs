//! Families: what a field is called in OpenMetrics, for the renderer and for the documentation.

use crate::schema::{Field, FieldKind, Unit};

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricType {
    /// Only goes up; its sample ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// `_bucket`, `_count` and `_sum`.
    Histogram,
    /// Facts in labels; its sample ends in `_info`.
    Info,
}

impl MetricType {
    /// The word for it in a `# TYPE` line.
    pub fn word(self) -> &'static str {
        match self {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
            MetricType::Info => "info",
        }
    }
}

/// A metric family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name, with unit and without `_total`.
    pub name: String,
    /// Its type.
    pub metric_type: MetricType,
    /// `seconds`, `bytes`, `pages` or nothing.
    pub unit: &'static str,
    /// One sentence.
    pub help: String,
    /// Label names besides `vm`; empty for one that [`of_field`] made.
    pub labels: Vec<String>,
}

impl Family {
    pub(super) fn plain(name: &str, metric_type: MetricType, help: &str) -> Self {
        Family {
            name: name.to_owned(),
            metric_type,
            unit: "",
            help: help.to_owned(),
            labels: Vec::new(),
        }
    }
}

/// The families that `field` of sections of `kind` gives, with their labels besides `vm`.
pub fn families(kind: &str, instance: &[&str], field: &Field) -> Vec<Family> {
    if field.names_rows() {
        return Vec::new();
    }
    let mut families = of_field(kind, field.name, field.kind, field.unit, field.help);
    for (i, family) in families.iter_mut().enumerate() {
        let labels = instance.iter().chain([&field.label]);
        let labels = labels.filter(|label| !label.is_empty());
        family.labels = labels.map(|label| (*label).to_owned()).collect();
        if field.kind == FieldKind::Heartbeat && i == 0 {
            family.labels.push("state".to_owned());
        }
    }
    families
}

/// As [`families`], from a black box's own description; without labels.
pub(super) fn of_field(
    kind: &str,
    name: &str,
    how: FieldKind,
    unit: Unit,
    help: &str,
) -> Vec<Family> {
    let (unit, suffix) = match unit {
        Unit::None => ("", ""),
        Unit::Nanoseconds | Unit::Ticks => ("seconds", "_seconds"),
        Unit::Bytes => ("bytes", "_bytes"),
        Unit::Pages => ("pages", "_pages"),
    };
    let stem = match kind {
        "" => format!("vitrine_{}", metric_name(name)),
        kind => format!("vitrine_{}_{}", metric_name(kind), metric_name(name)),
    };
    let family = |name: String, metric_type, unit, help: &str| Family {
        name,
        metric_type,
        unit,
        help: help.to_owned(),
        labels: Vec::new(),
    };
    let number = |metric_type| vec![family(format!("{stem}{suffix}"), metric_type, unit, help)];
    match how {
        FieldKind::Counter => number(MetricType::Counter),
        FieldKind::Gauge => number(MetricType::Gauge),
        FieldKind::Histogram => number(MetricType::Histogram),
        FieldKind::Heartbeat => vec![
            family(format!("{stem}_state"), MetricType::Gauge, "", help),
            family(
                format!("{stem}_state_since_seconds"),
                MetricType::Gauge,
                "seconds",
                "When that state was entered, in seconds since 1970.",
            ),
        ],
        // A reader that asks again and again makes its own; and a text is no number.
        FieldKind::Series | FieldKind::Words => Vec::new(),
        FieldKind::TextRing => vec![family(
            format!("{stem}_written{suffix}"),
            MetricType::Counter,
            unit,
            help,
        )],
        FieldKind::FlightRing => {
            vec![family(
                format!("{stem}_written"),
                MetricType::Counter,
                "",
                help,
            )]
        }
    }
}

/// `name` with `_` for whatever a metric or label name may not hold.
pub(super) fn metric_name(name: &str) -> String {
    let digit_first = name.starts_with(|c: char| c.is_ascii_digit());
    let mut clean = String::from(if digit_first || name.is_empty() {
        "_"
    } else {
        ""
    });
    clean.extend(name.chars().map(|c| {
        if c.is_ascii_alphanumeric() || c == '_' {
            c
        } else {
            '_'
        }
    }));
    clean
}
