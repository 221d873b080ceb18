//! What the guest's balloon tells: its size, and how the guest's own memory fares.

use super::Sampled;
use crate::reader::Snapshot;

/// Statistics that are kept: a minute of them, where one comes each second.
const KEPT: usize = 60;
/// The guest is asked once a second at most: moments closer together are of the same statistics.
const SAME_NS: u64 = 100_000_000;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
const DEFLATE_ON_OOM: u64 = 1 << 2;

/// The balloon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct BalloonSeen {
    /// How large it is to be.
    pub target_bytes: u64,
    /// How large it is.
    pub actual_bytes: u64,
    /// Since when neither has changed.
    pub still_since_ns: u64,
    /// Whether the guest has a driver for it.
    pub has_driver: bool,
    /// Whether the guest takes memory out of it before it kills a process.
    pub deflates_on_oom: bool,
    /// How often the guest is asked for statistics; 0 if never.
    pub interval_ns: u64,
    /// The last statistics, oldest first: those that the black box keeps, and of one that keeps none
    /// what the [`Engine`](crate::verdict::Engine) remembers.
    pub history: Vec<Sampled<GuestMemory>>,
}

/// The guest's memory, by its own word. What it does not tell is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct GuestMemory {
    /// All of it.
    pub total_bytes: u64,
    /// What new programs could have without swapping.
    pub available_bytes: u64,
    /// How large the balloon was.
    pub balloon_bytes: u64,
    /// Swapped in or out.
    pub swapped_bytes: u64,
    /// Page faults that took a read from disk.
    pub major_faults: u64,
    /// Times that a program waited to get memory.
    pub stalls: u64,
    /// Memory that programs looked through to get some.
    pub direct_scan_bytes: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
}

impl BalloonSeen {
    pub(super) fn of(snapshot: &Snapshot) -> Option<Self> {
        let section = snapshot.section("balloon")?;
        let of = |field| section.gauge(field).unwrap_or(0);
        let moment = |field| match of(field) {
            0 => 0,
            ticks => snapshot.header.clock.monotonic_of(ticks),
        };
        let present = of("statistics_present");
        let is_told = |tag: u32| present >> tag & 1 == 1;
        let now = GuestMemory {
            total_bytes: of("total_memory"),
            available_bytes: of("available_memory"),
            balloon_bytes: of("actual"),
            swapped_bytes: of("swap_in").saturating_add(of("swap_out")),
            major_faults: of("major_faults"),
            stalls: of("alloc_stall"),
            direct_scan_bytes: of("direct_scan"),
            oom_kills: of("oom_kill"),
        };
        let at_ns = moment("statistics_at");
        // Without these two nothing follows from the rest.
        let is_known = at_ns > 0 && is_told(5) && is_told(6);
        let mut history = kept(snapshot).unwrap_or_default();
        if is_known {
            history.retain(|sample| sample.at_ns.saturating_add(SAME_NS) < at_ns);
            history.push(Sampled { at_ns, value: now });
        }
        history.drain(..history.len().saturating_sub(KEPT));
        Some(BalloonSeen {
            target_bytes: of("target"),
            actual_bytes: of("actual"),
            still_since_ns: moment("target_set_at").max(moment("actual_changed_at")),
            has_driver: of("features") != 0,
            deflates_on_oom: of("features") & DEFLATE_ON_OOM != 0,
            interval_ns: of("interval"),
            history,
        })
    }

    /// Puts what was seen before in front of what is seen now.
    pub(in crate::verdict) fn goes_on(&mut self, before: Option<&BalloonSeen>) {
        let Some(oldest) = self.history.first().map(|sample| sample.at_ns) else {
            return;
        };
        let before = before.map_or(&[][..], |before| &before.history);
        let older = before.iter().filter(|sample| sample.at_ns < oldest);
        let mut history: Vec<_> = older.copied().collect();
        history.append(&mut self.history);
        let beyond = history.len().saturating_sub(KEPT);
        history.drain(..beyond);
        self.history = history;
    }
}

/// The statistics of the last minute that the black box keeps, oldest first. A row is written each
/// second, also when no statistics came since the row before.
fn kept(snapshot: &Snapshot) -> Option<Vec<Sampled<GuestMemory>>> {
    let samples = snapshot.section("balloon_samples")?.series("samples")?;
    let place = |name| samples.place(name);
    let (at, age) = (place("at")?, place("statistics_age")?);
    let (total, available) = (place("total_memory")?, place("available_memory")?);
    let (actual, oom_kill) = (place("actual")?, place("oom_kill")?);
    let (swap_in, swap_out) = (place("swap_in")?, place("swap_out")?);
    let (major_faults, stalls) = (place("major_faults")?, place("alloc_stall")?);
    let direct_scan = place("direct_scan")?;
    let mut history: Vec<Sampled<GuestMemory>> = Vec::new();
    for row in &samples.rows {
        let of = |place: usize| row.get(place).copied().unwrap_or(0);
        // Without the two amounts nothing follows from the rest.
        if of(age) == 0 || of(total) == 0 || of(available) == 0 {
            continue;
        }
        let now_ns = snapshot.header.clock.monotonic_of(of(at));
        let at_ns = now_ns.saturating_sub(of(age));
        let is_new = |last: &Sampled<GuestMemory>| at_ns > last.at_ns.saturating_add(SAME_NS);
        if !history.last().is_none_or(is_new) {
            continue;
        }
        let value = GuestMemory {
            total_bytes: of(total),
            available_bytes: of(available),
            balloon_bytes: of(actual),
            swapped_bytes: of(swap_in).saturating_add(of(swap_out)),
            major_faults: of(major_faults),
            stalls: of(stalls),
            direct_scan_bytes: of(direct_scan),
            oom_kills: of(oom_kill),
        };
        history.push(Sampled { at_ns, value });
    }
    Some(history)
}
