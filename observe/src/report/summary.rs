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
    let vcpus = scene.of_kind("vcpu").count();
    let memory = host::resident(scene).map(|(at, bytes)| {
        // A large guest's memory is looked at seldom: much may have come since.
        let moment = match scene.age_ns(at) {
            0..=FRESH_NS => String::new(),
            _ => format!(" as of {}", scene.moment(at)),
        };
        format!(
            ", {} of guest memory in the host's memory{moment}",
            format::bytes(bytes)
        )
    });
    page.line(&format!(
        "{vcpus} {}{}.",
        if vcpus == 1 { "vCPU" } else { "vCPUs" },
        memory.unwrap_or_default()
    ));
    if scene.snapshot.truncated {
        page.line(
            "The file is cut short or damaged, or holds more than is read: \
             what is missing here may have been in it.",
        );
    }
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
