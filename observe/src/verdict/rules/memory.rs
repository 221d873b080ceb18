//! Memory of the host and of the VMM's cgroup.

use super::{Look, percent};
use crate::verdict::{Code, Subject, Verdict};

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

/// At the limit, and pushed against it.
fn oom_risk(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let earlier = look.earlier.and_then(|earlier| earlier.cgroup);
    let (Some(earlier), Some(now)) = (earlier, look.now.cgroup) else {
        return;
    };
    let Some(max) = now.max_bytes.filter(|max| *max > 0) else {
        return;
    };
    let share = now.current_bytes as f64 / max as f64;
    let met = now.max_events.saturating_sub(earlier.max_events);
    // A cgroup full of page cache is at its limit too, and healthy: it must push.
    if share < look.limits.oom_share || met == 0 {
        return;
    }
    let summary = format!(
        "the VMM's cgroup uses {} of its {} MiB and met the limit {met} times since the last look",
        percent(share),
        max >> 20
    );
    let vmm = Subject::whole("vmm");
    verdicts.push(
        Verdict::new(Code::VmmOomRisk, vmm, earlier.at_ns, summary)
            .number("current_bytes", now.current_bytes)
            .number("max_bytes", max)
            .number("limit_met", met),
    );
}
