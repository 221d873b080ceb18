//! The guest's own memory, which it tells of through its balloon.

use super::{Look, percent, seconds};
use crate::verdict::forecast::exhaustion;
use crate::verdict::observation::{BalloonSeen, GuestMemory, Sampled};
use crate::verdict::{Code, Subject, Verdict};

/// The balloon's name as a device.
const DEVICE: &str = "balloon";
/// A guest that boots has no driver yet: it has so much longer.
const BOOT: u64 = 6;
/// Page faults a second that take a read from disk, from which on a guest with little memory
/// reads its programs again and again.
const THRASHING: f64 = 50.0;
/// Below this share of its memory available, a guest may end.
const HALF: f64 = 0.5;

pub(super) fn judge(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let Some(balloon) = &look.now.balloon else {
        return;
    };
    stuck(look, balloon, verdicts);
    let Some(now) = balloon
        .history
        .last()
        .filter(|now| is_fresh(look, balloon, now))
    else {
        return;
    };
    killed(balloon, now, verdicts);
    pressure(look, balloon, now, verdicts);
    soon(look, balloon, now, verdicts);
}

/// Statistics that did not come in time say nothing of now.
fn is_fresh(look: &Look<'_>, balloon: &BalloonSeen, now: &Sampled<GuestMemory>) -> bool {
    const GRACE_NS: u64 = 3_000_000_000;
    let longest = balloon.interval_ns.saturating_mul(2);
    look.age(now.at_ns) <= longest.saturating_add(GRACE_NS)
}

/// The balloon is not as large as it is to be, and does not move.
fn stuck(look: &Look<'_>, balloon: &BalloonSeen, verdicts: &mut Vec<Verdict>) {
    let limit = match balloon.has_driver {
        true => look.limits.balloon_ns,
        false => look.limits.balloon_ns.saturating_mul(BOOT),
    };
    let still = look.age(balloon.still_since_ns);
    if balloon.target_bytes == balloon.actual_bytes || still < limit {
        return;
    }
    let why = match balloon.has_driver {
        true if balloon.actual_bytes < balloon.target_bytes => "the guest gives no more",
        true => "the guest takes nothing back",
        false => "the guest has no driver for it",
    };
    let summary = format!(
        "the balloon has {} of {} MiB and has not moved for {}: {why}",
        balloon.actual_bytes >> 20,
        balloon.target_bytes >> 20,
        seconds(still)
    );
    let subject = Subject::device(DEVICE);
    let since_ns = balloon.still_since_ns;
    verdicts.push(
        Verdict::new(Code::BalloonStuck, subject, since_ns, summary)
            .number("actual_bytes", balloon.actual_bytes)
            .number("target_bytes", balloon.target_bytes)
            .number("still_ns", still)
            .number("has_driver", u64::from(balloon.has_driver)),
    );
}

/// The guest killed a process since the oldest statistics that are kept.
fn killed(balloon: &BalloonSeen, now: &Sampled<GuestMemory>, verdicts: &mut Vec<Verdict>) {
    let before = |sample: &&Sampled<GuestMemory>| sample.value.oom_kills < now.value.oom_kills;
    let Some(last) = balloon.history.iter().rev().find(before) else {
        return;
    };
    let first = balloon.history.first().unwrap_or(last);
    let kills = now.value.oom_kills.saturating_sub(first.value.oom_kills);
    let summary = format!("the guest's kernel has killed {kills} processes for want of memory");
    let vm = Subject::whole("vm");
    verdicts.push(Verdict::new(Code::GuestOom, vm, last.at_ns, summary).number("oom_kills", kills));
}

/// Little is left, and programs of the guest wait for it.
fn pressure(
    look: &Look<'_>,
    balloon: &BalloonSeen,
    now: &Sampled<GuestMemory>,
    verdicts: &mut Vec<Verdict>,
) {
    let Some([.., before, _]) = balloon.history.get(..) else {
        return;
    };
    let share = available_share(&now.value);
    if share >= look.limits.guest_available_share {
        return;
    }
    let rise = |of: fn(&GuestMemory) -> u64| of(&now.value).saturating_sub(of(&before.value));
    let (stalls, swapped) = (rise(|m| m.stalls), rise(|m| m.swapped_bytes));
    let scanned = rise(|m| m.direct_scan_bytes);
    let span = now.at_ns.saturating_sub(before.at_ns).max(1) as f64 / 1e9;
    let faults = rise(|m| m.major_faults) as f64 / span;
    if stalls == 0 && swapped == 0 && scanned == 0 && faults < THRASHING {
        return;
    }
    let summary = format!(
        "the guest has {} of its memory available, {} MiB, and its programs wait for memory",
        percent(share),
        now.value.available_bytes >> 20
    );
    let vm = Subject::whole("vm");
    verdicts.push(
        Verdict::new(Code::GuestMemoryPressure, vm, before.at_ns, summary)
            .number("available_bytes", now.value.available_bytes)
            .number("total_bytes", now.value.total_bytes)
            .number("stalls", stalls)
            .number("direct_scan_bytes", scanned)
            .number("swapped_bytes", swapped)
            .real("major_faults_per_second", faults),
    );
}

fn available_share(memory: &GuestMemory) -> f64 {
    memory.available_bytes as f64 / memory.total_bytes.max(1) as f64
}

/// The last minute's trend. What goes into the balloon is no leak, and what the guest can take out
/// of it by itself is not gone.
fn soon(
    look: &Look<'_>,
    balloon: &BalloonSeen,
    now: &Sampled<GuestMemory>,
    verdicts: &mut Vec<Verdict>,
) {
    let Some(whole) = look.now.guest_memory_bytes else {
        return;
    };
    if available_share(&now.value) >= HALF {
        return;
    }
    let used = |memory: &GuestMemory| {
        let held = memory.available_bytes.saturating_add(memory.balloon_bytes);
        whole.saturating_sub(held)
    };
    let samples = balloon.history.iter();
    let samples: Vec<(u64, u64)> = samples
        .map(|sample| (sample.at_ns, used(&sample.value)))
        .collect();
    let limit = match balloon.deflates_on_oom {
        true => whole,
        false => whole.saturating_sub(now.value.balloon_bytes),
    };
    let Some(forecast) = exhaustion(&samples, limit) else {
        return;
    };
    if forecast.seconds * 1e9 > look.limits.oom_soon_ns as f64 {
        return;
    }
    let summary = format!(
        "the guest needs {:.1} MiB more each second: at this trend its {} MiB end in {:.0} s \
         ({:.0} to {:.0} s), and its kernel kills",
        forecast.per_second / f64::from(1 << 20),
        now.value.total_bytes >> 20,
        forecast.seconds,
        forecast.soonest,
        forecast.latest
    );
    let vm = Subject::whole("vm");
    verdicts.push(
        Verdict::new(Code::GuestOomSoon, vm, now.at_ns, summary)
            .real("seconds_left", forecast.seconds)
            .real("seconds_left_soonest", forecast.soonest)
            .real("seconds_left_latest", forecast.latest)
            .real("bytes_per_second", forecast.per_second)
            .number("available_bytes", now.value.available_bytes)
            .number("balloon_bytes", now.value.balloon_bytes)
            .number("samples", forecast.samples as u64),
    );
}
