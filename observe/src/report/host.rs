//! What the host did to the VM: pressure, limits, memory.

use super::format::{bytes, percent, span, times};
use super::page::{Page, Table};
use super::scene::Scene;
use super::vcpus::number;
use crate::reader::SectionView;

pub(super) fn show(scene: &Scene<'_>, page: &mut Page) {
    let sections = ["psi", "cgroup", "host", "memory"];
    if sections.iter().all(|name| scene.section(name).is_none()) {
        return;
    }
    page.heading("Host");
    if let Some(psi) = scene.section("psi") {
        page.table(pressure(psi));
    }
    if let Some(cgroup) = scene.section("cgroup") {
        for line in limits(cgroup) {
            page.line(&line);
        }
    }
    if let Some(host) = scene.section("host") {
        for line in machine(host) {
            page.line(&line);
        }
    }
    if let Some(memory) = scene.section("memory") {
        guest_memory(scene, memory, page);
    }
}

/// Guest memory on the host: when it was looked at, in ticks, and how much is there.
pub(super) fn resident(scene: &Scene<'_>) -> Option<(u64, u64)> {
    let memory = scene.section("memory")?;
    let at = memory.gauge("sampled_at").filter(|at| *at > 0)?;
    // Huge pages of the host's pools are part of it: the sampler has added them.
    let rows = memory.row_names("resident");
    let rows = rows.map(|row| number(memory, "resident", row));
    Some((at, rows.fold(0, u64::saturating_add)))
}

/// Hundredths of a percent.
pub(super) fn hundredths(value: u64) -> String {
    format!("{:.2} %", value as f64 / 100.0)
}

fn pressure(psi: &SectionView) -> Table {
    let head = [
        "pressure",
        "some waited",
        "all waited",
        "some, last 10 s",
        "all, last 10 s",
    ];
    let mut table = Table::new(&head);
    for row in psi.row_names("some") {
        let of = |field| number(psi, field, row);
        if of("missing") > 0 {
            let unknown = "not told by the host's kernel".to_owned();
            table.row([row.to_owned(), unknown]);
            continue;
        }
        table.row([
            row.to_owned(),
            span(of("some")),
            span(of("full")),
            hundredths(of("some_avg10")),
            hundredths(of("full_avg10")),
        ]);
    }
    table
}

fn limits(cgroup: &SectionView) -> Vec<String> {
    let of = |field| {
        let value = cgroup.value(field);
        value.and_then(|value| value.as_u64()).unwrap_or(0)
    };
    let mut lines = Vec::new();
    if of("memory_version") > 0 {
        let limit = match of("memory_limited") {
            0 => "no limit".to_owned(),
            _ => format!("limit {}", bytes(of("memory_max"))),
        };
        let high = match of("memory_high_limited") {
            0 => String::new(),
            _ => format!(", slowed down above {}", bytes(of("memory_high"))),
        };
        let events = cgroup.row_names("memory_events");
        let events = events.map(|event| (event, number(cgroup, "memory_events", event)));
        let events: Vec<String> = events
            .filter(|(_, count)| *count > 0)
            .map(|(event, count)| format!("{event} {count}"))
            .collect();
        let events = match events.is_empty() {
            true => "none".to_owned(),
            false => events.join(", "),
        };
        lines.push(format!(
            "Cgroup memory: {} used, {} of it page cache, {} in swap, {limit}{high}; events: {events}.",
            bytes(of("memory_current")),
            bytes(of("memory_reclaimable")),
            bytes(of("memory_swap"))
        ));
    }
    if of("cpu_version") > 0 {
        let limit = match of("cpu_limited") {
            0 => "no limit".to_owned(),
            _ => format!(
                "limit {} in {}",
                span(of("cpu_quota")),
                span(of("cpu_period"))
            ),
        };
        lines.push(format!(
            "Cgroup CPU: {} used, {limit}; throttled {} in {} of {} periods.",
            span(of("cpu_usage")),
            span(of("cpu_throttled")),
            of("cpu_throttled_periods"),
            of("cpu_periods")
        ));
    }
    if of("moves") > 0 {
        lines.push(format!(
            "The VMM was moved to another cgroup {}.",
            times(of("moves"))
        ));
    }
    lines
}

fn machine(host: &SectionView) -> Vec<String> {
    let of = |field| {
        let value = host.value(field);
        value.and_then(|value| value.as_u64()).unwrap_or(0)
    };
    let available = percent(of("memory_available"), of("memory"));
    let mut lines = vec![
        format!(
            "Host memory: {} available of {} ({available}), swap {} free of {}.",
            bytes(of("memory_available")),
            bytes(of("memory")),
            bytes(of("swap_free")),
            bytes(of("swap"))
        ),
        format!(
            "Since the start the host had {} major faults, swapped {} in and {} out, \
             and its OOM killer ended {} processes.",
            of("major_faults"),
            bytes(of("swap_in").saturating_mul(4096)),
            bytes(of("swap_out").saturating_mul(4096)),
            of("oom_kills")
        ),
    ];
    if of("virtual") > 0 || of("steal") > 0 {
        lines.push(format!(
            "The host is a virtual machine itself; {} were taken from its CPUs.",
            span(of("steal"))
        ));
    }
    for size in host.row_names("hugepages") {
        let of = |field| number(host, field, size);
        if of("hugepages") > 0 {
            lines.push(format!(
                "Huge pages of {size}: {} free of {}, {} promised.",
                of("hugepages_free"),
                of("hugepages"),
                of("hugepages_reserved")
            ));
        }
    }
    lines
}

fn guest_memory(scene: &Scene<'_>, memory: &SectionView, page: &mut Page) {
    let at = memory.gauge("sampled_at").unwrap_or(0);
    if memory.gauge("missing").unwrap_or(0) > 0 || at == 0 {
        page.line("Guest memory could not be looked at, or was not yet.");
        return;
    }
    let head = [
        "guest memory from",
        "resident",
        "swapped",
        "transparent huge",
        "shared huge",
        "huge pages",
        "locked",
    ];
    let mut table = Table::new(&head);
    for row in memory.row_names("resident") {
        let of = |field| bytes(number(memory, field, row));
        let name = match number(memory, "estimated", row) {
            0 => row.to_owned(),
            _ => format!("{row} (estimated)"),
        };
        table.row([
            name,
            of("resident"),
            of("swapped"),
            of("anonymous_huge"),
            of("shared_huge"),
            of("hugetlb"),
            of("locked"),
        ]);
    }
    page.table(table);
    page.line(&format!("Guest memory as of {}.", scene.moment(at)));
}
