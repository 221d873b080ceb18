//! A snapshot as a report looks at it: its sections that are in use, its end, and what the numbers
//! of its heartbeats and events are called.

use std::collections::HashSet;

use super::format;
use crate::clock::Ticks;
use crate::heartbeat::Activity;
use crate::reader::{Ended, HeartbeatView, SectionView, Snapshot};

/// Sections of a kind that are shown.
pub(super) const MAX_SHOWN: usize = 256;
/// How much later than the last pulse a thread may have been alive: it comes about once a second.
const AFTER_PULSE_NS: u64 = 10_000_000_000;

pub(super) struct Scene<'a> {
    pub snapshot: &'a Snapshot,
    /// Of two sections with one name, the later one; in the order of the file.
    pub sections: Vec<&'a SectionView>,
    /// The moment up to which this is known, by `CLOCK_MONOTONIC`: now, the end, or the last sign
    /// of life of any thread.
    pub end_ns: u64,
}

impl<'a> Scene<'a> {
    pub fn new(snapshot: &'a Snapshot) -> Self {
        let mut names = HashSet::new();
        let newest = snapshot.sections.iter().rev();
        let mut sections: Vec<&SectionView> = newest
            .filter(|section| names.insert(section.name.as_str()))
            .collect();
        sections.reverse();
        let mut scene = Scene {
            snapshot,
            sections,
            end_ns: snapshot.now_monotonic_ns,
        };
        if snapshot.header.end == Ended::Running && snapshot.writer_alive != Some(true) {
            scene.end_ns = scene.last_sign_of_life();
        }
        scene
    }

    /// The newest of the pulse, the heartbeats and the flight events; what lies far beyond the
    /// pulse is damage.
    fn last_sign_of_life(&self) -> u64 {
        let pulse = self.snapshot.now_monotonic_ns;
        let latest = pulse.saturating_add(AFTER_PULSE_NS);
        let sections = self.sections.iter().take(MAX_SHOWN.saturating_mul(4));
        let moments = sections.flat_map(|section| {
            let beat = section.heartbeat("heartbeat");
            let beat = beat.filter(|beat| beat.settled).map(|b| b.since_ticks);
            let flight = section.flight("flight").unwrap_or_default();
            beat.into_iter()
                .chain(flight.events.last().map(|event| event.at))
                .collect::<Vec<_>>()
        });
        let moments = moments.map(|ticks| self.monotonic(ticks));
        moments.filter(|at| *at <= latest).fold(pulse, u64::max)
    }

    pub fn of_kind<'s>(&'s self, kind: &'s str) -> impl Iterator<Item = &'a SectionView> + 's {
        let sections = self.sections.iter().copied();
        sections.filter(move |section| section.kind() == kind)
    }

    pub fn section(&self, name: &str) -> Option<&'a SectionView> {
        self.snapshot.section(name)
    }

    pub fn monotonic(&self, ticks: Ticks) -> u64 {
        self.snapshot.header.clock.monotonic_of(ticks)
    }

    /// How long before the end `ticks` was.
    pub fn age_ns(&self, ticks: Ticks) -> u64 {
        self.end_ns.saturating_sub(self.monotonic(ticks))
    }

    /// A moment: its date and its distance from the end; `never` for one that never was.
    pub fn moment(&self, ticks: Ticks) -> String {
        if ticks == 0 {
            return "never".to_owned();
        }
        let date = format::date(self.snapshot.header.clock.realtime_of(ticks));
        let relative = format::relative(self.monotonic(ticks), self.end_ns);
        format!("{date} ({relative})")
    }

    /// For how long a heartbeat has said the same; nothing for one that never beat.
    pub fn lasting(&self, beat: &HeartbeatView) -> String {
        match beat.since_ticks {
            0 => String::new(),
            since => format::span(self.age_ns(since)),
        }
    }
}

/// The value after the kind in a section's name: the vCPU's number, the thread's name.
pub(super) fn instance(section: &SectionView) -> String {
    let parts = section.instance.iter().map(|(_, value)| value.as_str());
    parts.collect::<Vec<_>>().join("/")
}

/// As [`instance`] of a queue, with what it is called, where it has a name: `eth0/2 (rx1)`.
pub(super) fn queue_called(section: &SectionView) -> String {
    let name = section.row_name("name", 0);
    let name = name.map_or_else(String::new, |name| format!(" ({name})"));
    format!("{}{name}", instance(section))
}

/// The name that the section gives to a number, else the number itself.
pub(super) fn named(section: &SectionView, label: &str, number: u64) -> String {
    let index = usize::try_from(number).ok();
    let name = index.and_then(|index| section.row_name(label, index));
    name.map_or_else(|| number.to_string(), ToOwned::to_owned)
}

/// What a heartbeat says, in words: `in handler, io_out at serial 0x3f8`.
pub(super) fn doing(section: &SectionView, beat: &HeartbeatView) -> String {
    let mut text = beat.activity_name().to_owned();
    let reason = named(section, "reason", beat.reason.into());
    let device = named(section, "device", beat.device.into());
    match beat.activity {
        Some(Activity::InHandler) => {
            let has_place = beat.address != 0 || is_access(&reason);
            text = match has_place {
                true => format!("{text}, {reason} at {device} {:#x}", beat.address),
                false => format!("{text}, {reason}"),
            };
        }
        Some(Activity::InDevice) if beat.device != 0 => text = format!("{text} {device}"),
        Some(Activity::Blocked) => text = format!("{text} in {reason}"),
        None => text = format!("{text}, reason {reason}, device {device}"),
        _ => {}
    }
    if !beat.settled {
        text.push_str(" (caught between two states)");
    }
    text
}

/// Whether a row of the exits names an access, which has a device and an address.
pub(super) fn is_access(reason: &str) -> bool {
    reason.starts_with("io_") || reason.starts_with("mmio_")
}
