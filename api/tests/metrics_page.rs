//! docs/metrics.md has every family of GET /metrics, and is made from them.

use std::fmt::Write;
use std::path::Path;

use api::machine::Runs;
use api::metrics::{RequestCounts, render};
use vmm::observe::openmetrics::{Family, MetricType, families};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
const REMEDY: &str = "VITRINE_BLESS=1 cargo test -p api --test metrics_page";

const HEAD: &str = "\
# Every metric

All families of `GET /metrics`, made from the program's own tables: a test fails when this page is stale, and
`VITRINE_BLESS=1 cargo test -p api --test metrics_page` writes it anew. What they mean for an operator is in
[observe.md](observe.md). Every sample has the label `vm` besides those named here. A histogram's samples end in
`_bucket`, `_count` and `_sum`.
";

struct Row {
    sample: String,
    kind: &'static str,
    unit: String,
    labels: Vec<String>,
    help: String,
}

fn row(family: Family) -> Row {
    let suffix = match family.metric_type {
        MetricType::Counter => "_total",
        MetricType::Info => "_info",
        MetricType::Gauge | MetricType::Histogram => "",
    };
    Row {
        sample: format!("{}{suffix}", family.name),
        kind: family.metric_type.word(),
        unit: family.unit.to_owned(),
        labels: family.labels,
        help: family.help,
    }
}

fn table(page: &mut String, title: &str, rows: &[Row]) {
    let _ = write!(
        page,
        "\n## {title}\n\n| name | type | unit | labels | what it tells |\n"
    );
    page.push_str("|---|---|---|---|---|\n");
    for row in rows {
        let labels: Vec<_> = row
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let (labels, help) = (labels.join(", "), row.help.replace('|', "\\|"));
        let (sample, kind, unit) = (&row.sample, row.kind, &row.unit);
        let _ = writeln!(page, "| `{sample}` | {kind} | {unit} | {labels} | {help} |");
    }
}

/// The families of the process, from what it answers before a VM is started.
fn process() -> Vec<Row> {
    let text = render("x", &RequestCounts::default(), 0, Runs::default(), None);
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let (kind, suffix) = match kind {
                "counter" => ("counter", "_total"),
                "info" => ("info", "_info"),
                _ => ("gauge", ""),
            };
            let units = ["seconds", "bytes"].into_iter();
            let unit = units.filter(|unit| name.ends_with(unit)).collect();
            rows.push(Row {
                sample: format!("{name}{suffix}"),
                kind,
                unit,
                labels: Vec::new(),
                help: String::new(),
            });
        } else if let Some(row) = rows.last_mut() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                rest.split_once(' ').unwrap().1.clone_into(&mut row.help);
            } else if let Some((_, labels)) = line.split_once('{') {
                let labels = labels.split_once('}').unwrap().0.split(',').skip(1);
                row.labels = labels
                    .map(|label| label.split('=').next().unwrap().to_owned())
                    .collect();
            }
        }
    }
    rows
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    table(&mut page, "The process", &process());
    for section in vmm::SECTIONS {
        let fields = section.fields.iter();
        let families = fields.flat_map(|field| families(section.kind, section.instance, field));
        let rows: Vec<Row> = families.map(row).collect();
        // A series is no metric.
        if !rows.is_empty() {
            table(&mut page, &format!("`{}`", section.kind), &rows);
        }
    }
    page
}

#[test]
fn the_page_of_all_metrics_is_fresh() {
    let fresh = page();
    let path = Path::new(PAGE);
    if std::env::var_os("VITRINE_BLESS").is_some() {
        std::fs::write(path, &fresh).unwrap();
    }
    let there = std::fs::read_to_string(path).unwrap_or_default();
    assert!(there == fresh, "docs/metrics.md is stale: run {REMEDY}");
}

#[test]
fn every_metric_has_a_help_and_a_name_of_its_own() {
    let mut names = std::collections::BTreeSet::new();
    let sections = vmm::SECTIONS.iter().flat_map(|section| {
        let fields = section.fields.iter();
        fields.flat_map(|field| families(section.kind, section.instance, field))
    });
    for row in sections.map(row).chain(process()) {
        assert!(row.help.ends_with('.'), "{}: {:?}", row.sample, row.help);
        assert!(
            names.insert(row.sample.clone()),
            "{} is there twice",
            row.sample
        );
    }
}
