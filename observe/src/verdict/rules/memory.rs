//! Memory of the host and of the VMM's cgroup.

use super::{Look, percent};
use crate::verdict::forecast::exhaustion;
use crate::verdict::observation::CgroupSeen;
use crate::verdict::{Code, Severity, Subject, Verdict};

pub(super) fn judge(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    pressure(look, verdicts);
    swapping(look, verdicts);
    oom_risk(look, verdicts);
}

/// All tasks of the host that had something to do waited for memory.
fn pressure(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let earlier = look.earlier.and_then(|earlier| earlier.memory_pressure);
    let (Some(earlier), Some(now)) = (earlier, look.now.memory_pressure) else {
        return;
    };
    let span = now.at_ns.saturating_sub(earlier.at_ns);
    if span == 0 {
        return;
    }
    let waited = now.value.saturating_sub(earlier.value);
    let share = waited as f64 / span as f64;
    if share < look.limits.memory_pressure_share {
        return;
    }
    let summary = format!(
        "all tasks of the host that had something to do waited for memory for {} of the time",
        percent(share)
    );
    let host = Subject::whole("host");
    verdicts.push(
        Verdict::new(Code::HostMemoryPressure, host, earlier.at_ns, summary)
            .real("full_percent", share * 100.0)
            .number("waited_ns", waited),
    );
}

fn swapping(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let Some(swapped) = look.now.swapped_bytes else {
        return;
    };
    if swapped.value < look.limits.swapped_bytes {
        return;
    }
    let summary = format!(
        "{} MiB of guest memory are in the host's swap",
        swapped.value >> 20
    );
    let memory = Subject::whole("memory");
    verdicts.push(
        Verdict::new(Code::HostSwappingGuest, memory, swapped.at_ns, summary)
            .number("swapped_bytes", swapped.value),
    );
}

/// At the limit with what cannot be taken back, and pushed against it; or on the way there.
fn oom_risk(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let earlier = look.earlier.and_then(|earlier| earlier.cgroup);
    let (Some(earlier), Some(now)) = (earlier, look.now.cgroup) else {
        return;
    };
    let Some(max) = now.max_bytes.filter(|max| *max > 0) else {
        return;
    };
    let found = at_the_limit(look, &earlier, &now, max).or_else(|| on_the_way(look, &now, max));
    verdicts.extend(found.map(|verdict| {
        verdict
            .number("current_bytes", now.current_bytes)
            .number("max_bytes", max)
            .number("page_cache_bytes", now.reclaimable_bytes)
            .number("swap_left_bytes", look.now.memory.swap_left_bytes)
    }));
}

/// A cgroup full of page cache is at its limit too, and healthy, and so is one that can swap.
fn at_the_limit(
    look: &Look<'_>,
    earlier: &CgroupSeen,
    now: &CgroupSeen,
    max: u64,
) -> Option<Verdict> {
    let met = now.max_events.saturating_sub(earlier.max_events);
    let without = now.oom_events.saturating_sub(earlier.oom_events);
    let room = look.now.memory.swap_left_bytes.saturating_add(max);
    let needed = now.current_bytes.saturating_sub(now.reclaimable_bytes);
    let share = needed as f64 / room as f64;
    if without == 0 && (share < look.limits.oom_share || met == 0) {
        return None;
    }
    let summary = format!(
        "the VMM's cgroup needs {} of its {} MiB and met the limit {met} times since the last look",
        percent(share),
        max >> 20
    );
    let vmm = Subject::whole("vmm");
    let verdict = Verdict::new(Code::VmmOomRisk, vmm, earlier.at_ns, summary);
    Some(
        verdict
            .number("limit_met", met)
            .number("oom_events", without),
    )
}

/// The last minutes' trend, if it ends at the limit and the guest can take that much.
fn on_the_way(look: &Look<'_>, now: &CgroupSeen, max: u64) -> Option<Verdict> {
    let memory = &look.now.memory;
    let (_, needed) = memory.needed.last()?;
    let room = max.saturating_add(memory.swap_left_bytes);
    // A guest that fills its own memory for the first time stops there.
    let at_most = needed.saturating_add(memory.untouched_bytes?);
    if at_most < room {
        return None;
    }
    let forecast = exhaustion(&memory.needed, room)?;
    if forecast.seconds * 1e9 > look.limits.oom_soon_ns as f64 {
        return None;
    }
    let summary = format!(
        "the VMM's cgroup needs {:.1} MiB more each second: at this trend its {} MiB end in {:.0} s \
         ({:.0} to {:.0} s), and the host kills",
        forecast.per_second / f64::from(1 << 20),
        max >> 20,
        forecast.seconds,
        forecast.soonest,
        forecast.latest
    );
    let vmm = Subject::whole("vmm");
    Some(
        Verdict::new(Code::VmmOomRisk, vmm, now.at_ns, summary)
            .at(Severity::Warning)
            .real("seconds_left", forecast.seconds)
            .real("seconds_left_soonest", forecast.soonest)
            .real("seconds_left_latest", forecast.latest)
            .real("bytes_per_second", forecast.per_second)
            .number("samples", forecast.samples as u64),
    )
}
