//! What the other parts of the report do not show: sections and fields of newer writers, and what
//! tells little.

use super::BALLOON_STATISTICS;
use super::format::{amount, span};
use super::page::{Page, Table};
use super::scene::{Scene, doing};
use crate::reader::{FieldView, SectionView, Value};
use crate::schema::{FieldKind, Unit};

/// By kind of section, which may come twice, the fields that have a place in the report; all others
/// are shown by name in a table at its end. For the test that they are those that are written.
pub const SHOWN: [(&str, &[&str]); 20] = [
    (
        "vcpu",
        &[
            "heartbeat",
            "run",
            "stay",
            "pauses",
            "paused",
            "exits",
            "exit_handler",
            "device_reads",
            "device_writes",
            "device_misuse",
            "device_handler",
            "flight",
        ],
    ),
    (
        "queue",
        &[
            "kicks",
            "spurious_kicks",
            "lost_kicks",
            "requests",
            "completions",
            "interrupts",
            "interrupts_suppressed",
            "read",
            "written",
            "broken",
            "yields",
            "starved",
            "in_flight",
            "in_flight_since",
            "starved_since",
            "size",
            "broken_reason",
            "service",
        ],
    ),
    (
        "device",
        &[
            "activations",
            "resets",
            "needs_reset",
            "host_errors",
            "last_errno",
            "last_error_at",
            "operations",
            "operation_errors",
            "operation",
            "operation_service",
            "drops",
        ],
    ),
    (
        "transport",
        &[
            "status",
            "driver_features",
            "refused",
            "resets_missed",
            "trapped_kicks",
            "kind",
        ],
    ),
    ("thread", &["heartbeat", "flight"]),
    (
        "console",
        &[
            "heartbeat",
            "output",
            "input",
            "writes",
            "write_errors",
            "stalls",
            "discarded",
            "input_dropped",
            "overrun",
        ],
    ),
    (
        "console_watch",
        &["messages", "last_at", "untold", "output", "excerpts"],
    ),
    (
        "task",
        &[
            "sampled_at",
            "missing",
            "cpu",
            "run_delay",
            "major_faults",
            "minor_faults",
            "voluntary_switches",
            "involuntary_switches",
            "tid",
            "threads",
        ],
    ),
    (
        "psi",
        &[
            "sampled_at",
            "some",
            "full",
            "some_avg10",
            "full_avg10",
            "missing",
        ],
    ),
    (
        "cgroup",
        &[
            "sampled_at",
            "memory_version",
            "cpu_version",
            "memory_current",
            "memory_swap",
            "memory_swap_max",
            "memory_swap_limited",
            "memory_reclaimable",
            "memory_max",
            "memory_limited",
            "memory_high",
            "memory_high_limited",
            "memory_events",
            "cpu_usage",
            "cpu_periods",
            "cpu_throttled_periods",
            "cpu_throttled",
            "cpu_quota",
            "cpu_period",
            "cpu_limited",
            "moves",
        ],
    ),
    (
        "host",
        &[
            "sampled_at",
            "memory",
            "memory_available",
            "swap",
            "swap_free",
            "major_faults",
            "swap_in",
            "swap_out",
            "oom_kills",
            "steal",
            "virtual",
            "hugepages",
            "hugepages_free",
            "hugepages_reserved",
            "hugepages_missing",
        ],
    ),
    (
        "memory",
        &[
            "sampled_at",
            "missing",
            "resident",
            "swapped",
            "anonymous_huge",
            "shared_huge",
            "hugetlb",
            "locked",
            "estimated",
        ],
    ),
    ("kvm_vm", &["sampled_at", "total", "level"]),
    (
        "machine",
        &["memory", "vcpus", "drives", "networks", "started_at"],
    ),
    ("samples", &["samples"]),
    ("vcpu_samples", &["samples"]),
    ("queue_samples", &["samples"]),
    ("balloon_samples", &["samples"]),
    (
        "balloon",
        &[
            "target",
            "target_set_at",
            "interval",
            "actual",
            "actual_changed_at",
            "features",
            "inflated",
            "deflated",
            "reported",
            "hinted",
            "discarded",
            "kept",
            "refused_outside",
            "refused_repeated",
            "refused_excess",
            "statistics",
            "statistics_unknown",
            "statistics_at",
            "statistics_present",
            "hinting_runs",
        ],
    ),
    ("balloon", &BALLOON_STATISTICS),
];

pub(super) fn show(scene: &Scene<'_>, all: bool, page: &mut Page) {
    let mut table = Table::new(&["section", "what", "value"]);
    for section in &scene.sections {
        for (field, row, value) in section.values() {
            // KVM's histograms are many numbers that tell little each.
            let is_bucket = section.kind().starts_with("kvm_") && field.name == "bucket";
            if is_shown(section.kind(), &field.name) || (is_bucket && !all) {
                continue;
            }
            if all || !is_zero(&value) {
                let name = match row {
                    "" => field.name.clone(),
                    row => format!("{} {}={row}", field.name, field.label),
                };
                let value = words(scene, section, field, &value);
                table.row([section.name.clone(), name, value]);
            }
        }
    }
    if !table.is_empty() {
        page.heading("Other numbers");
    }
    page.table(table);
}

pub(super) fn is_shown(kind: &str, field: &str) -> bool {
    let kind = match kind {
        "kvm_vcpu" => "kvm_vm",
        kind => kind,
    };
    let mut shown = SHOWN.iter().filter(|(known, _)| *known == kind);
    shown.any(|(_, fields)| fields.contains(&field))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Counter(n) | Value::Gauge(n) => *n == 0,
        Value::Histogram(histogram) => histogram.count() == 0,
        Value::Heartbeat(beat) => beat.since_ticks == 0,
        Value::Flight(flight) => flight.written == 0,
        Value::Series(series) => series.written == 0,
        Value::Text(text) => text.written == 0,
        Value::Words(text) => text.is_empty(),
    }
}

fn words(scene: &Scene<'_>, section: &SectionView, field: &FieldView, value: &Value) -> String {
    let ns_of = |ticks| scene.snapshot.header.clock.ns_of(ticks);
    let amount = |number| match field.unit {
        Unit::Ticks => span(ns_of(number)),
        unit => amount(number, unit),
    };
    match value {
        Value::Gauge(at) if field.unit == Unit::Ticks && field.kind == FieldKind::Gauge => {
            scene.moment(*at)
        }
        Value::Counter(number) | Value::Gauge(number) => amount(*number),
        Value::Histogram(histogram) => format!(
            "{} values, together {}, p50 {}, p99 {}, largest {}",
            histogram.count(),
            amount(histogram.sum),
            amount(histogram.quantile(0.5)),
            amount(histogram.quantile(0.99)),
            amount(histogram.max)
        ),
        Value::Heartbeat(beat) => {
            format!("{}, for {}", doing(section, beat), scene.lasting(beat))
        }
        Value::Flight(flight) => format!("{} events, the last ones below", flight.written),
        Value::Series(series) => format!(
            "{} samples of {} numbers",
            series.written,
            series.columns.len()
        ),
        Value::Text(text) => format!("{} bytes of text", text.written),
        Value::Words(text) => text.replace('\n', ", "),
    }
}
