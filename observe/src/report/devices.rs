//! Virtqueues, virtio devices and their register windows.

use super::format::{bytes, errno, span, times};
use super::page::{Page, Table};
use super::scene::{MAX_SHOWN, Scene, instance, named, queue_called};
use super::vcpus::{number, quantiles};
use crate::reader::SectionView;

/// The status register's bits, as virtio calls them.
const STATUS: [(u64, &str); 6] = [
    (1, "acknowledge"),
    (2, "driver"),
    (8, "features ok"),
    (4, "driver ok"),
    (64, "needs reset"),
    (128, "failed"),
];

pub(super) fn show(scene: &Scene<'_>, page: &mut Page) {
    queues(scene, page);
    devices(scene, page);
    windows(scene, page);
}

fn lone(section: &SectionView, field: &str) -> u64 {
    let value = section.value(field);
    value.and_then(|value| value.as_u64()).unwrap_or(0)
}

fn queues(scene: &Scene<'_>, page: &mut Page) {
    let head = [
        "queue",
        "size",
        "in flight",
        "for",
        "kicks",
        "requests",
        "completions",
        "interrupts",
        "p50",
        "p99",
        "longest",
        "read",
        "written",
    ];
    let mut table = Table::new(&head);
    let mut lines = Vec::new();
    for section in scene.of_kind("queue").take(MAX_SHOWN) {
        let of = |field| lone(section, field);
        let since = of("in_flight_since");
        let lasting = match since {
            0 => String::new(),
            since => span(scene.age_ns(since)),
        };
        let service = section.histogram("service");
        let (p50, p99, max) = service.as_ref().map(quantiles).unwrap_or_default();
        let size = match of("size") {
            0 => "not set up".to_owned(),
            size => size.to_string(),
        };
        table.row([
            queue_called(section),
            size,
            of("in_flight").to_string(),
            lasting,
            of("kicks").to_string(),
            of("requests").to_string(),
            of("completions").to_string(),
            of("interrupts").to_string(),
            p50,
            p99,
            max,
            bytes(of("read")),
            bytes(of("written")),
        ]);
        lines.extend(queue_lines(scene, section));
    }
    if !table.is_empty() {
        page.heading("Queues");
    }
    page.table(table);
    for line in lines {
        page.line(&line);
    }
}

/// What does not happen to a healthy queue.
fn queue_lines(scene: &Scene<'_>, section: &SectionView) -> Vec<String> {
    let name = queue_called(section);
    let of = |field| lone(section, field);
    let mut lines = Vec::new();
    if of("broken") > 0 || of("broken_reason") > 0 {
        lines.push(format!(
            "{name}: broken by the guest {}, the last time because {}",
            times(of("broken")),
            named(section, "broken", of("broken_reason"))
        ));
    }
    if of("starved_since") > 0 {
        let lasting = span(scene.age_ns(of("starved_since")));
        lines.push(format!(
            "{name}: has waited {lasting} for buffers of the guest"
        ));
    }
    let rare = [
        ("spurious_kicks", "kicks that found nothing"),
        ("lost_kicks", "buffers that no kick announced"),
        (
            "interrupts_suppressed",
            "interrupts that the driver did not want",
        ),
        ("yields", "turns given up to other queues"),
        ("starved", "times without a buffer of the guest"),
    ];
    let rare = rare.iter().filter(|(field, _)| of(field) > 0);
    let rare: Vec<String> = rare
        .map(|(field, words)| format!("{} {words}", of(field)))
        .collect();
    if !rare.is_empty() {
        lines.push(format!("{name}: {}", rare.join(", ")));
    }
    lines
}

fn devices(scene: &Scene<'_>, page: &mut Page) {
    let head = ["device", "operation", "done", "failed", "payload", "time"];
    let mut table = Table::new(&head);
    let mut lines = Vec::new();
    for section in scene.of_kind("device").take(MAX_SHOWN) {
        let name = instance(section);
        for row in section.row_names("operations") {
            let of = |field| number(section, field, row);
            if of("operations") == 0 && of("operation_errors") == 0 {
                continue;
            }
            table.row([
                name.clone(),
                row.to_owned(),
                of("operations").to_string(),
                of("operation_errors").to_string(),
                bytes(of("operation")),
                span(of("operation_service")),
            ]);
        }
        lines.extend(device_lines(scene, section, &name));
    }
    if !lines.is_empty() {
        page.heading("Devices");
    }
    page.table(table);
    for line in lines {
        page.line(&line);
    }
}

fn device_lines(scene: &Scene<'_>, section: &SectionView, name: &str) -> Vec<String> {
    let of = |field| lone(section, field);
    let mut lines = vec![format!(
        "{name}: taken by a driver {}, reset by it {}, asked for a reset {}",
        times(of("activations")),
        times(of("resets")),
        times(of("needs_reset"))
    )];
    if of("host_errors") > 0 {
        lines.push(format!(
            "{name}: {} errors of the host, the last: {}, {}",
            of("host_errors"),
            errno(of("last_errno")),
            scene.moment(of("last_error_at"))
        ));
    }
    for cause in section.row_names("drops") {
        let drops = number(section, "drops", cause);
        if drops > 0 {
            lines.push(format!("{name}: {drops} lost, cause {cause}"));
        }
    }
    lines
}

fn windows(scene: &Scene<'_>, page: &mut Page) {
    let head = [
        "registers",
        "transport",
        "status",
        "driver features",
        "refused",
        "missed resets",
        "trapped kicks",
    ];
    let mut table = Table::new(&head);
    for section in scene.of_kind("transport").take(MAX_SHOWN) {
        let of = |field| lone(section, field);
        table.row([
            instance(section),
            named(section, "kind", of("kind")),
            status(of("status")),
            format!("{:#x}", of("driver_features")),
            of("refused").to_string(),
            of("resets_missed").to_string(),
            of("trapped_kicks").to_string(),
        ]);
    }
    page.table(table);
}

fn status(bits: u64) -> String {
    if bits == 0 {
        return "no driver".to_owned();
    }
    let known = STATUS.iter().filter(|(bit, _)| bits & bit != 0);
    let known: Vec<&str> = known.map(|(_, word)| *word).collect();
    match known.as_slice() {
        [] => format!("{bits:#x}"),
        ["acknowledge", "driver", "features ok", "driver ok"] => "at work".to_owned(),
        words => words.join(", "),
    }
}
