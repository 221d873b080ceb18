//! Every thread: what it does, and what the host gave it. The console's numbers.

use super::format::{bytes, span};
use super::page::{Page, Table};
use super::scene::{MAX_SHOWN, Scene, doing, instance};
use super::vcpus::number;
use crate::reader::SectionView;

/// Bytes of a thread's name that the kernel keeps.
const COMM_BYTES: usize = 15;

/// What a section says of its own thread.
pub(super) struct Thread<'a> {
    pub name: String,
    pub section: &'a SectionView,
}

/// The threads that have a heartbeat, vCPUs first.
pub(super) fn threads<'a>(scene: &Scene<'a>) -> Vec<Thread<'a>> {
    let vcpus = scene.of_kind("vcpu").map(|section| Thread {
        name: format!("vcpu-{}", instance(section)),
        section,
    });
    let others = scene.of_kind("thread").map(|section| Thread {
        name: instance(section),
        section,
    });
    let consoles = scene.of_kind("console").map(|section| Thread {
        name: "console".to_owned(),
        section,
    });
    let all = vcpus.chain(others).chain(consoles);
    all.take(MAX_SHOWN).collect()
}

/// Whether a row of the scheduler's table is this thread's.
pub(super) fn is_row(row: &str, thread: &str) -> bool {
    row == thread || (row.len() == COMM_BYTES && thread.starts_with(row))
}

pub(super) fn show(scene: &Scene<'_>, page: &mut Page) {
    let head = [
        "thread",
        "does",
        "for",
        "CPU",
        "run delay",
        "major faults",
        "minor faults",
        "waits",
        "preempted",
        "id",
    ];
    let mut table = Table::new(&head);
    let task = scene.section("task");
    let rows: Vec<&str> = task.map_or_else(Vec::new, |task| task.row_names("cpu").collect());
    let threads = threads(scene);
    for thread in &threads {
        let beat = thread.section.heartbeat("heartbeat");
        let state = beat.map(|beat| doing(thread.section, &beat));
        let lasting = beat.map(|beat| scene.lasting(&beat));
        let row = rows.iter().find(|row| is_row(row, &thread.name)).copied();
        let tid = beat.map_or(0, |beat| beat.tid);
        table.row(cells(
            &thread.name,
            [state, lasting].map(Option::unwrap_or_default),
            task.zip(row),
            tid,
        ));
    }
    for row in &rows {
        let is_shown = threads.iter().any(|thread| is_row(row, &thread.name));
        let of = |field| task.map_or(0, |task| number(task, field, row));
        if !is_shown && (of("cpu") > 0 || of("threads") > 0) {
            let row = task.map(|task| (task, *row));
            let tid = of("tid");
            table.row(cells(
                row.map_or("", |(_, name)| name),
                Default::default(),
                row,
                tid,
            ));
        }
    }
    if !table.is_empty() {
        page.heading("Threads");
    }
    page.table(table);
    if let Some(task) = task {
        let sampled = task.gauge("sampled_at").unwrap_or(0);
        page.line(&format!(
            "The host's numbers are as of {}.",
            scene.moment(sampled)
        ));
        if task.gauge("missing").unwrap_or(0) > 0 {
            page.line("Of some threads the host's numbers could not be read.");
        }
    }
    for console in scene.of_kind("console").take(MAX_SHOWN) {
        console_line(console, page);
    }
}

fn cells(
    name: &str,
    [state, lasting]: [String; 2],
    row: Option<(&SectionView, &str)>,
    tid: u64,
) -> Vec<String> {
    let mut cells = vec![name.to_owned(), state, lasting];
    let of = |field| row.map(|(task, row)| number(task, field, row));
    let time = |field| of(field).map(span).unwrap_or_default();
    let count = |field| of(field).map(|n| n.to_string()).unwrap_or_default();
    cells.extend([
        time("cpu"),
        time("run_delay"),
        count("major_faults"),
        count("minor_faults"),
        count("voluntary_switches"),
        count("involuntary_switches"),
        tid.to_string(),
    ]);
    cells
}

fn console_line(section: &SectionView, page: &mut Page) {
    let of = |field| section.counter(field).unwrap_or(0);
    let mut parts = vec![
        format!("output {}", bytes(of("output"))),
        format!("input {}", bytes(of("input"))),
        format!("{} writes", of("writes")),
    ];
    let rare = [
        (of("write_errors") > 0).then(|| format!("{} writes failed", of("write_errors"))),
        (of("stalls") > 0).then(|| format!("{} waits for a slow reader", of("stalls"))),
        (of("discarded") > 0).then(|| format!("{} discarded", bytes(of("discarded")))),
        (of("input_dropped") > 0)
            .then(|| format!("{} of input not taken", bytes(of("input_dropped")))),
        (of("overrun") > 0).then(|| format!("{} overrun by the guest", bytes(of("overrun")))),
    ];
    parts.extend(rare.into_iter().flatten());
    page.line(&format!(
        "Console {}: {}.",
        instance(section),
        parts.join(", ")
    ));
}
