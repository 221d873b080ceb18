//! How the memory that the VM may use was used in the last minutes.

use super::observation::CgroupSeen;
use crate::reader::Snapshot;

/// What of a snapshot says when memory ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct MemorySeen {
    /// What the VMM's cgroup needs, by moment: its memory and swap, without page cache. From the last
    /// samples, where the snapshot has them; the [`Engine`](super::Engine) remembers them itself.
    pub needed: Vec<(u64, u64)>,
    /// Guest memory that is not in the host's memory or swap yet, at most: so much more the guest
    /// alone can make the host give.
    pub untouched_bytes: Option<u64>,
    /// Swap that the cgroup can still get.
    pub swap_left_bytes: u64,
}

impl MemorySeen {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        MemorySeen {
            needed: needed(snapshot).unwrap_or_default(),
            untouched_bytes: untouched(snapshot),
            swap_left_bytes: swap_left(snapshot).unwrap_or(0),
        }
    }

    /// Goes on where the look before ended, for a snapshot without samples.
    pub(super) fn goes_on(&mut self, before: Option<&MemorySeen>, cgroup: Option<&CgroupSeen>) {
        let Some(cgroup) = cgroup.filter(|_| self.needed.is_empty()) else {
            return;
        };
        let before = before.map_or(&[][..], |before| &before.needed);
        let kept = before.len().saturating_sub(SAMPLES.saturating_sub(1));
        self.needed
            .extend_from_slice(before.get(kept..).unwrap_or_default());
        let kept = cgroup
            .current_bytes
            .saturating_sub(cgroup.reclaimable_bytes);
        let needed = kept.saturating_add(cgroup.swap_bytes);
        self.needed.push((cgroup.at_ns, needed));
    }
}

/// Samples that a trend is looked for in: a minute of them.
const SAMPLES: usize = 60;

/// `None` from a black box that does not know what of it is page cache.
fn needed(snapshot: &Snapshot) -> Option<Vec<(u64, u64)>> {
    let samples = snapshot.section("samples")?.series("samples")?;
    let place = |name| samples.place(name);
    let at = place("at")?;
    let used = place("cgroup_memory")?;
    let files = place("cgroup_reclaimable")?;
    let swap = place("cgroup_swap")?;
    let recent = samples.rows.len().saturating_sub(SAMPLES);
    let rows = samples.rows.get(recent..)?.iter().filter_map(|row| {
        let moment = snapshot.header.clock.monotonic_of(*row.get(at)?);
        let kept = row.get(used)?.saturating_sub(*row.get(files)?);
        Some((moment, kept.saturating_add(*row.get(swap)?)))
    });
    Some(rows.collect())
}

fn untouched(snapshot: &Snapshot) -> Option<u64> {
    let configured = snapshot.section("machine")?.gauge("memory")?;
    let memory = snapshot.section("memory")?;
    let sum = |field: &'static str| {
        let rows = memory.row_names(field);
        let bytes = rows.filter_map(|row| memory.table(field, row)?.as_u64());
        bytes.fold(0u64, u64::saturating_add)
    };
    // The look at guest memory may be a minute old; what the process has is a second old.
    let of_all = snapshot
        .section("task")
        .and_then(|task| task.gauge("resident"));
    let at_least = of_all.unwrap_or(0).saturating_sub(OWN_BYTES);
    let there = sum("resident").max(at_least).saturating_add(sum("swapped"));
    Some(configured.saturating_sub(there))
}

/// What a VMM needs beside the guest's memory, at most.
const OWN_BYTES: u64 = 16 << 20;

fn swap_left(snapshot: &Snapshot) -> Option<u64> {
    let free = snapshot.section("host")?.gauge("swap_free")?;
    let cgroup = snapshot.section("cgroup")?;
    let allowed = match cgroup.gauge("memory_swap_limited") {
        Some(1) => {
            let max = cgroup.gauge("memory_swap_max")?;
            max.saturating_sub(cgroup.gauge("memory_swap")?)
        }
        _ => free,
    };
    Some(free.min(allowed))
}
