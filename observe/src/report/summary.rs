//! What the VM is, and how it ended or that it lives.

use super::format;
use super::page::Page;
use super::scene::Scene;
use super::{State, host};
use crate::reader::Ended;

/// A pulse that has not beaten for so long is late.
const LATE_NS: u64 = 5_000_000_000;

/// What was looked at so long before the end is told without its moment.
const FRESH_NS: u64 = 2_000_000_000;

/// Of a snapshot that is not the whole file.
pub(super) const TRUNCATED: &str = "The file is cut short or damaged, or holds more than is read: \
                                    what is missing here may have been in it.";

pub(super) fn show(scene: &Scene<'_>, page: &mut Page) {
    let header = &scene.snapshot.header;
    page.title(&format!(
        "VM {}: {}",
        format::clean(&header.vm_id),
        State::of(scene.snapshot).word()
    ));
    page.line(&ending(scene));
    let made = format::date(header.created_realtime_ns);
    let age = scene.end_ns.saturating_sub(header.created_monotonic_ns);
    page.line(&format!(
        "Made on {made} UTC by Vitrine {}, process {}; what is known spans {}.",
        format::clean(&header.version),
        header.pid,
        format::span(age)
    ));
    page.line(&machine(scene));
    if scene.snapshot.truncated {
        page.line(TRUNCATED);
    }
}

/// What the VM has, and when it began to run.
fn machine(scene: &Scene<'_>) -> String {
    let counted = |count: u64, one: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    };
    let mut parts = vec![counted(super::vcpus(scene.snapshot), "vCPU")];
    let resident = host::resident(scene).map(|(at, bytes)| {
        // A large guest's memory is looked at seldom: much may have come since.
        let moment = match scene.age_ns(at) {
            0..=FRESH_NS => String::new(),
            _ => format!(" as of {}", scene.moment(at)),
        };
        (format::bytes(bytes), moment)
    });
    let memory = super::memory_bytes(scene.snapshot).map(format::bytes);
    parts.extend(match (memory, resident) {
        (Some(memory), Some((resident, moment))) => Some(format!(
            "{memory} of guest memory, {resident} of it in the host's memory{moment}"
        )),
        (Some(memory), None) => Some(format!("{memory} of guest memory")),
        (None, Some((resident, moment))) => Some(format!(
            "{resident} of guest memory in the host's memory{moment}"
        )),
        (None, None) => None,
    });
    let Some(machine) = scene.section("machine") else {
        return format!("{}.", parts.join(", "));
    };
    let of = |field| machine.gauge(field).unwrap_or(0);
    parts.push(counted(of("drives"), "drive"));
    parts.push(counted(of("networks"), "network interface"));
    let started = match of("started_at") {
        0 => "it has not run yet".to_owned(),
        at => format!("started {}", scene.moment(at)),
    };
    format!("{}; {started}.", parts.join(", "))
}

/// How it ended, when, and what it said.
pub(super) fn ending(scene: &Scene<'_>) -> String {
    let header = &scene.snapshot.header;
    let last = format::date(header.clock.realtime_of_monotonic(scene.end_ns));
    match (&header.end, State::of(scene.snapshot)) {
        (
            Ended::Clean {
                at_realtime_ns,
                detail,
            },
            _,
        ) => format!(
            "It ended cleanly on {} UTC: {}.",
            format::date(*at_realtime_ns),
            said(detail)
        ),
        (
            Ended::Failed {
                at_realtime_ns,
                detail,
            },
            _,
        ) => format!(
            "It failed on {} UTC: {}.",
            format::date(*at_realtime_ns),
            said(detail)
        ),
        (Ended::Running, State::Dead) => format!(
            "It died without a clean end: its process was killed or crashed. \
             The last sign of life was on {last} UTC."
        ),
        (Ended::Running, State::Running) => {
            let silent = header
                .pulse_monotonic_ns
                .map(|at| scene.end_ns.saturating_sub(at));
            let silent = silent.map_or_else(
                || "its last beat is torn".to_owned(),
                |ns| match ns {
                    0..LATE_NS => format!("its last beat was {} ago", format::span(ns)),
                    _ => format!(
                        "its last beat was {} ago and one is due every second: \
                         it is stopped, or its thread vm is stuck",
                        format::span(ns)
                    ),
                },
            );
            format!("Its process lives as of {last} UTC; {silent}.")
        }
        (Ended::Running, _) => format!(
            "No end is recorded, and nothing tells whether its process lives. \
             The last sign of life was on {last} UTC."
        ),
    }
}

fn said(detail: &str) -> String {
    let detail = format::clean(detail.trim().trim_end_matches('.'));
    match detail.as_str() {
        "" => "it did not say why".to_owned(),
        _ => detail,
    }
}
