//! A VMM that is gone without a word, and whether want of memory killed it.

use super::{Look, seconds};
use crate::verdict::observation::CgroupSeen;
use crate::verdict::{Code, Subject, Verdict};

/// Memory fills faster than one sample a second: what is reached so soon at the last growth was
/// reached.
const SOON_S: f64 = 2.0;
/// Steps from sample to sample of which the largest is the last growth: a guest that fills memory
/// does so in bursts.
const STEPS: usize = 3;
/// A step that is shorter tells of no growth.
const LEAST_STEP_S: f64 = 0.2;
/// A growth below that, in bytes a second, is none.
const LEAST_GROWTH: f64 = 1048576.0;
/// Of a cgroup that is emptier nothing is foretold: many a program grows fast and stops.
const NEAR_SHARE: f64 = 0.75;
/// What a VMM may take beside the guest's memory.
const OWN_BYTES: u64 = 16 << 20;

pub(super) fn judge(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    if look.now.has_ended {
        return;
    }
    let at = look.now.at_ns;
    let lived = at.saturating_sub(look.now.created_ns);
    let summary = format!(
        "the VMM died without an orderly end, after {}",
        seconds(lived)
    );
    verdicts.extend(killed(look));
    verdicts.push(
        Verdict::new(Code::VmmDied, Subject::whole("vmm"), at, summary)
            .number("lived_ns", lived)
            .number("pid", look.now.pid),
    );
}

/// At its last sample it had met its limit and used all that it may, or was about to.
fn killed(look: &Look<'_>) -> Option<Verdict> {
    let cgroup = look.now.cgroup?;
    let max = cgroup.max_bytes.filter(|max| *max > 0)?;
    let swap_left = look.now.memory.swap_left_bytes;
    let needed = cgroup
        .current_bytes
        .saturating_sub(cgroup.reclaimable_bytes);
    let room = max.saturating_add(swap_left);
    let share = needed as f64 / room as f64;
    let growth = growth(&look.now.memory.needed);
    let is_full = share >= look.limits.oom_share;
    let has_met = is_full && (cgroup.max_events > 0 || cgroup.oom_events > 0);
    let was_near = share >= NEAR_SHARE && is_soon(look, needed, room, growth);
    if !has_met && !was_near {
        return None;
    }
    let limit = max >> 20;
    let summary = if is_full {
        format!("when the VMM died its cgroup was at its memory limit of {limit} MiB")
    } else {
        format!(
            "a moment before the VMM died its cgroup had {} MiB left of its limit of {limit} MiB and \
             needed {:.1} MiB more each second",
            room.saturating_sub(needed) >> 20,
            growth / f64::from(1 << 20)
        )
    };
    let vmm = Subject::whole("vmm");
    let verdict = Verdict::new(Code::VmmOomKilled, vmm, look.now.at_ns, summary);
    Some(with_cgroup(verdict, &cgroup, max, swap_left).real("bytes_per_second", growth))
}

fn with_cgroup(verdict: Verdict, cgroup: &CgroupSeen, max: u64, swap_left: u64) -> Verdict {
    verdict
        .number("current_bytes", cgroup.current_bytes)
        .number("max_bytes", max)
        .number("page_cache_bytes", cgroup.reclaimable_bytes)
        .number("swap_left_bytes", swap_left)
        .number("limit_met", cgroup.max_events)
        .number("oom_kills", cgroup.oom_kills)
}

/// Whether the growth reaches the limit at once, and the guest can take so much.
fn is_soon(look: &Look<'_>, needed: u64, room: u64, growth: f64) -> bool {
    let left = room.saturating_sub(needed);
    let untouched = look.now.memory.untouched_bytes;
    let can_take = untouched.is_none_or(|bytes| bytes.saturating_add(OWN_BYTES) >= left);
    let full = room as f64 * look.limits.oom_share;
    can_take && growth >= LEAST_GROWTH && full - needed as f64 <= growth * SOON_S
}

/// What the cgroup needed more in a second, of the last steps the largest; 0 where it did not grow.
fn growth(samples: &[(u64, u64)]) -> f64 {
    let steps = samples.windows(2).rev().take(STEPS);
    let growths = steps.filter_map(|pair| match pair {
        [(at, used), (then, more)] => {
            let seconds = then.checked_sub(*at)? as f64 / 1e9;
            (seconds > LEAST_STEP_S).then(|| more.saturating_sub(*used) as f64 / seconds)
        }
        _ => None,
    });
    growths.fold(0.0, f64::max)
}
