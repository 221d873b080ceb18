//! The header: whose black box, which clock, what end.

use std::mem::offset_of;

use super::MAX_DIRECTORY_BYTES;
use super::source::word;
use crate::blackbox::{HEADER_BYTES, Header, PULSE_CHECK};
use crate::clock::Ticks;

/// The shortest span over which the pulse gives a better tick rate than the writer's calibration.
const RATE_SPAN_NS: u64 = 1_000_000_000;

/// Whose black box it is.
#[derive(Clone, Debug)]
pub struct HeaderView {
    /// The VM's id.
    pub vm_id: String,
    /// The version of Vitrine that wrote it.
    pub version: String,
    /// The format's minor version.
    pub minor: u32,
    /// The writer's process id, in its own pid namespace.
    pub pid: u64,
    /// The boot of the host in which it was written: `CLOCK_MONOTONIC` times compare only within.
    pub boot_id: String,
    /// When the black box was made, in nanoseconds since 1970.
    pub created_realtime_ns: u64,
    /// When the black box was made, by `CLOCK_MONOTONIC`.
    pub created_monotonic_ns: u64,
    /// How long the file should be.
    pub file_bytes: u64,
    /// How the VM ended, if it did and said so.
    pub end: Ended,
    /// The last beat of the writer's [`crate::Pulse`], by `CLOCK_MONOTONIC`; `None` if it was torn.
    pub pulse_monotonic_ns: Option<u64>,
    /// What the writer's ticks mean.
    pub clock: ClockView,
    /// When it ended by `CLOCK_MONOTONIC`, 0 if it did not.
    ended_monotonic_ns: u64,
    /// The writer holds a lock on the file while it lives.
    pub(super) locked: bool,
}

/// How the VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// No end was recorded: it runs, or was killed (see [`super::Snapshot::writer_alive`]).
    Running,
    /// It ended as somebody asked.
    Clean {
        /// In nanoseconds since 1970.
        at_realtime_ns: u64,
        /// A sentence.
        detail: String,
    },
    /// It failed.
    Failed {
        /// In nanoseconds since 1970.
        at_realtime_ns: u64,
        /// A sentence.
        detail: String,
    },
}

/// How the writer's ticks become times.
#[derive(Clone, Copy, Debug)]
pub struct ClockView {
    /// Nanoseconds a tick, as a 32.32 fixed-point number.
    ns_per_tick: u64,
    anchor_ticks: Ticks,
    anchor_monotonic_ns: u64,
    created_monotonic_ns: u64,
    created_realtime_ns: u64,
}

impl ClockView {
    /// A difference of ticks in nanoseconds.
    pub fn ns_of(&self, ticks: Ticks) -> u64 {
        let ns = u128::from(ticks).saturating_mul(u128::from(self.ns_per_tick)) >> 32;
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    /// The `CLOCK_MONOTONIC` time of a reading, in nanoseconds; 0 if it was before the host booted.
    pub fn monotonic_of(&self, ticks: Ticks) -> u64 {
        if ticks >= self.anchor_ticks {
            self.anchor_monotonic_ns
                .saturating_add(self.ns_of(ticks.saturating_sub(self.anchor_ticks)))
        } else {
            self.anchor_monotonic_ns
                .saturating_sub(self.ns_of(self.anchor_ticks.saturating_sub(ticks)))
        }
    }

    /// The time of a reading in nanoseconds since 1970, by the system clock as it stood when the
    /// black box was made.
    pub fn realtime_of(&self, ticks: Ticks) -> u64 {
        self.realtime_of_monotonic(self.monotonic_of(ticks))
    }

    /// A `CLOCK_MONOTONIC` time in nanoseconds since 1970, likewise.
    pub fn realtime_of_monotonic(&self, monotonic_ns: u64) -> u64 {
        self.created_realtime_ns
            .saturating_add(monotonic_ns)
            .saturating_sub(self.created_monotonic_ns)
    }
}

impl HeaderView {
    /// Reads as many fields as there are bytes; the others are zero or empty.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let at = |offset| word(bytes, offset).unwrap_or(0);
        let created_realtime_ns = at(offset_of!(Header, created_realtime_ns));
        let created_monotonic_ns = at(offset_of!(Header, created_monotonic_ns));
        let base_ticks = at(offset_of!(Header, base_ticks));
        let mut clock = ClockView {
            ns_per_tick: at(offset_of!(Header, ns_per_tick)),
            anchor_ticks: base_ticks,
            anchor_monotonic_ns: at(offset_of!(Header, base_monotonic_ns)),
            created_monotonic_ns,
            created_realtime_ns,
        };
        let pulse = pulse(bytes);
        if let Some((ticks, ns)) = pulse {
            refine(&mut clock, ticks, ns);
        }
        HeaderView {
            vm_id: text(bytes, offset_of!(Header, vm_id), 64),
            version: text(bytes, offset_of!(Header, version), 64),
            minor: u32::try_from(at(offset_of!(Header, major)) >> 32).unwrap_or(0),
            pid: at(offset_of!(Header, pid)),
            boot_id: text(bytes, offset_of!(Header, boot_id), 64),
            created_realtime_ns,
            created_monotonic_ns,
            file_bytes: at(offset_of!(Header, file_bytes)),
            end: end(bytes),
            pulse_monotonic_ns: pulse.map(|(_, ns)| ns),
            clock,
            ended_monotonic_ns: at(offset_of!(Header, ended_monotonic_ns)),
            locked: at(offset_of!(Header, locked)) == 1,
        }
    }

    /// The last moment that the black box itself knows of, by `CLOCK_MONOTONIC`.
    pub(super) fn last_known_ns(&self) -> u64 {
        if self.end != Ended::Running && self.ended_monotonic_ns != 0 {
            return self.ended_monotonic_ns;
        }
        self.pulse_monotonic_ns.unwrap_or(self.created_monotonic_ns)
    }
}

/// The format's major version, if there are bytes enough to tell.
pub(super) fn major(bytes: &[u8]) -> Option<u32> {
    let both = word(bytes, offset_of!(Header, major))?;
    u32::try_from(both & 0xffff_ffff).ok()
}

/// The directory's offset, its length as far as it is read, and whether that is all of it.
pub(super) fn directory(bytes: &[u8]) -> (u64, usize, bool) {
    let at = |offset| word(bytes, offset).unwrap_or(0);
    let used = at(offset_of!(Header, directory_used));
    let capacity = at(offset_of!(Header, directory_capacity));
    let read = used.min(capacity).min(MAX_DIRECTORY_BYTES as u64);
    let offset = at(offset_of!(Header, directory_offset));
    (offset, usize::try_from(read).unwrap_or(0), read == used)
}

fn pulse(bytes: &[u8]) -> Option<(Ticks, u64)> {
    let ticks = word(bytes, offset_of!(Header, pulse_ticks))?;
    let ns = word(bytes, offset_of!(Header, pulse_monotonic_ns))?;
    let check = word(bytes, offset_of!(Header, pulse_check))?;
    (check == ticks ^ ns ^ PULSE_CHECK).then_some((ticks, ns))
}

/// Takes the pulse as the anchor, and the rate since the first anchor if it lies within 2 % of
/// the calibrated one (it does not when the host slept, in which `CLOCK_MONOTONIC` stands still).
fn refine(clock: &mut ClockView, ticks: Ticks, ns: u64) {
    let span_ns = ns.saturating_sub(clock.anchor_monotonic_ns);
    let span_ticks = ticks.saturating_sub(clock.anchor_ticks);
    if span_ns >= RATE_SPAN_NS {
        let rate = (u128::from(span_ns) << 32)
            .checked_div(u128::from(span_ticks))
            .and_then(|rate| u64::try_from(rate).ok());
        if let Some(rate) = rate
            && rate.abs_diff(clock.ns_per_tick) <= clock.ns_per_tick / 50
        {
            clock.ns_per_tick = rate;
        }
    }
    clock.anchor_ticks = ticks;
    clock.anchor_monotonic_ns = ns;
}

fn end(bytes: &[u8]) -> Ended {
    let at_realtime_ns = word(bytes, offset_of!(Header, ended_realtime_ns)).unwrap_or(0);
    let detail = text(bytes, offset_of!(Header, end_detail), 512);
    match word(bytes, offset_of!(Header, end_state)) {
        None | Some(0) => Ended::Running,
        Some(1) => Ended::Clean {
            at_realtime_ns,
            detail,
        },
        Some(_) => Ended::Failed {
            at_realtime_ns,
            detail,
        },
    }
}

/// The NUL-padded text at `offset`, without control characters.
fn text(bytes: &[u8], offset: usize, length: usize) -> String {
    let field = bytes.get(offset..).unwrap_or_default();
    let field = field.iter().take(length).take_while(|byte| **byte != 0);
    let field: Vec<u8> = field.copied().collect();
    String::from_utf8_lossy(&field)
        .chars()
        .map(|c| if c.is_control() { '_' } else { c })
        .collect()
}

const _: () = assert!(HEADER_BYTES == 4096);
