//! What a VM leaves behind: what `vitrine report` says of it, and whether its black box is plausible.

use std::process::Output;

use vmm::observe::reader::{Ended, SectionView, Snapshot, Value};

/// The pulse comes every second; beyond that a thread may have lived for so long.
pub const BEAT_NS: u64 = 1_500_000_000;
/// What two clocks may differ by that were compared at the VM's start.
pub const DRIFT_NS: u64 = 20_000_000;

/// A number by chance: splitmix64.
pub fn chance(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add((number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The standard output, its runs of spaces as one, of a run that ended so.
#[track_caller]
pub fn said(output: &Output, status: i32) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}{errors}");
    let lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

#[track_caller]
pub fn has(text: &str, all: &[&str]) {
    for words in all {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
}

/// That the black box is all there, and its VM dead.
#[track_caller]
pub fn are_whole(seen: &Snapshot, id: &str, process: u32) {
    assert!(!seen.truncated);
    assert!(seen.sections.iter().all(|section| !section.truncated));
    assert_eq!(seen.writer_alive, Some(false));
    assert_eq!(seen.header.end, Ended::Running);
    assert_eq!(seen.header.vm_id, id);
    assert_eq!(seen.header.pid, u64::from(process));
}

/// That the page says what became of the VM.
#[track_caller]
pub fn are_told_as_dead(text: &str, id: &str) {
    let begin = format!("VM {id}: dead\nIt died without a clean end: ");
    assert!(text.starts_with(&begin), "{text}");
    assert!(!text.contains("cut short or damaged"), "{text}");
}

/// All rows of a table together.
pub fn sum(section: &SectionView, field: &str) -> u64 {
    let rows = section.row_names(field);
    let number = |row| match section.table(field, row) {
        Some(Value::Histogram(histogram)) => histogram.count(),
        other => other.unwrap().as_u64().unwrap(),
    };
    rows.map(number).sum()
}

/// That `number` is `other`, or what it was one event before or after.
#[track_caller]
pub fn within_one(number: u64, other: u64) {
    assert!(number.abs_diff(other) <= 1, "{number} and {other}");
}

/// The flight rings: in order, and no event after the end or long after the last beat.
pub fn rings_are_plausible(seen: &Snapshot, killed_ns: u64) {
    let clock = &seen.header.clock;
    let pulse_ns = seen.header.pulse_monotonic_ns.unwrap_or(u64::MAX);
    assert!(seen.now_monotonic_ns <= killed_ns + DRIFT_NS);
    for section in &seen.sections {
        let Some(flight) = section.flight("flight") else {
            continue;
        };
        assert_eq!(flight.events.len() as u64, flight.written.min(511));
        assert!(flight.events.is_sorted_by_key(|event| event.at));
        for event in &flight.events {
            let at_ns = clock.monotonic_of(event.at);
            assert!(at_ns >= seen.header.created_monotonic_ns - DRIFT_NS);
            assert!(at_ns <= killed_ns + DRIFT_NS, "{}", section.name);
            assert!(
                at_ns <= pulse_ns.saturating_add(BEAT_NS),
                "{}",
                section.name
            );
        }
        let heartbeat = section.heartbeat("heartbeat").unwrap();
        if let Some(last) = flight.events.last().filter(|_| section.kind() == "vcpu") {
            assert!(heartbeat.since_ticks >= last.at);
            assert_ne!(heartbeat.tid, 0);
        }
    }
}

/// The counters of one vCPU: each exit is in all of them, but for one that was being served.
pub fn exits_are_plausible(vcpu: &SectionView) {
    let exits = sum(vcpu, "exits");
    let written = vcpu.flight("flight").unwrap().written;
    assert!(
        (written..=written + 1).contains(&exits),
        "{exits} {written}"
    );
    within_one(vcpu.histogram("stay").unwrap().count(), exits);
    within_one(sum(vcpu, "exit_handler"), exits);
    within_one(sum(vcpu, "place_exits"), exits);
    let row = |name| vcpu.table("exits", name).unwrap().as_u64().unwrap();
    let accesses: u64 = ["io_in", "io_out", "mmio_read", "mmio_write"]
        .map(row)
        .iter()
        .sum();
    within_one(
        sum(vcpu, "device_reads") + sum(vcpu, "device_writes"),
        accesses,
    );
}

/// The counters of a drive's queue agree with each other, but for one request that was being
/// taken or given back.
pub fn requests_are_plausible(seen: &Snapshot, drive: &str) {
    let queue = seen.section(&format!("queue/{drive}/0")).unwrap();
    let device = seen.section(&format!("device/{drive}")).unwrap();
    let of = |field| queue.value(field).unwrap().as_u64().unwrap();
    let (requests, completions) = (of("requests"), of("completions"));
    assert!(requests >= completions, "{requests} {completions}");
    within_one(of("in_flight"), requests - completions);
    within_one(queue.histogram("service").unwrap().count(), completions);
    within_one(sum(device, "operations"), completions);
    assert_eq!(sum(device, "operation_errors"), 0);
    assert_eq!(of("broken"), 0);
}
