//! The VMM itself: threads that do not move, and how it ended, if it says so.

use super::{Look, is_stopped, seconds};
use crate::heartbeat::Activity;
use crate::verdict::link::SILENCE;
use crate::verdict::observation::{Doing, Sampled, ThreadSeen};
use crate::verdict::{Code, Severity, Subject, Verdict};

pub(super) fn judge(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    kvm_error(look, verdicts);
    triple_fault(look, verdicts);
    failed(look, verdicts);
    clock_jump(look, verdicts);
    if look.now.writer_alive == Some(false) {
        super::death::judge(look, verdicts);
    } else if look.is_running() {
        stuck(look, verdicts);
        silent(look, verdicts);
    }
}

/// Ended, and not as somebody asked.
fn failed(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let Some(words) = &look.now.failure else {
        return;
    };
    let lived = look.now.at_ns.saturating_sub(look.now.created_ns);
    let summary = format!("the VM failed after {}: {words}", seconds(lived));
    let whole = Subject::whole("vm");
    verdicts.push(
        Verdict::new(Code::VmFailed, whole, look.now.at_ns, summary)
            .text("failure", words.as_str())
            .number("lived_ns", lived),
    );
}

/// A beat so soon after the file was made is the one that was made with it.
const FIRST_BEAT_NS: u64 = 500_000_000;

/// The thread `vm` beats every second. A process whose threads are all stopped gives no other sign.
fn silent(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let Some(pulse) = look.now.pulse_ns else {
        return;
    };
    // The first beat is made with the file. The next one comes when the machine is built, which may
    // take long, where a kernel is loaded from a slow disk.
    if pulse.saturating_sub(look.now.created_ns) < FIRST_BEAT_NS {
        return;
    }
    let age = look.age(pulse);
    let subject = Subject::thread("vm");
    // What it is stuck in says more.
    let is_told = verdicts.iter().any(|verdict| verdict.subject == subject);
    if look.now.writer_alive != Some(true) || age < look.limits.thread_ns || is_told {
        return;
    }
    let summary = format!(
        "the VMM has given no beat for {} and one is due every second: its process is stopped, or \
         its thread vm is stuck",
        seconds(age)
    );
    verdicts.push(
        Verdict::new(Code::VmmThreadStuck, subject, pulse, summary)
            .number(SILENCE, age)
            .number("pid", look.now.pid),
    );
}

fn exits(look: &Look<'_>, reasons: &[&str]) -> Vec<(usize, String, u64)> {
    let vcpus = look.now.vcpus.iter();
    let all = vcpus.flat_map(|vcpu| {
        let exits = vcpu.exits.iter();
        exits.map(|(reason, count)| (vcpu.index, reason.clone(), *count))
    });
    let meant = all.filter(|(_, reason, count)| *count > 0 && reasons.contains(&reason.as_str()));
    meant.collect()
}

/// KVM gave a guest up.
fn kvm_error(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    for (vcpu, reason, count) in exits(look, &["fail_entry", "internal_error", "memory_fault"]) {
        let words = look.now.failure.clone();
        let summary = words
            .clone()
            .unwrap_or_else(|| format!("KVM cannot go on with vCPU {vcpu}: {reason}"));
        let subject = Subject::vcpu(vcpu);
        let verdict = Verdict::new(Code::KvmError, subject, look.now.at_ns, summary);
        let verdict = verdict.number("exits", count).text("reason", reason);
        verdicts.push(match words {
            Some(words) => verdict.text("failure", words),
            None => verdict,
        });
    }
}

/// The date moved against the monotonic clock: somebody set it.
fn clock_jump(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let earlier = look.earlier.and_then(|earlier| earlier.date_offset_ns);
    let (Some(earlier), Some(now)) = (earlier, look.now.date_offset_ns) else {
        return;
    };
    let jump_ns = now.value.abs_diff(earlier.value);
    if jump_ns < look.limits.clock_jump_ns {
        return;
    }
    let direction = match now.value > earlier.value {
        true => "forward",
        false => "back",
    };
    let summary = format!(
        "the host's clock was set {direction} by {}",
        seconds(jump_ns)
    );
    let host = Subject::whole("host");
    verdicts.push(
        Verdict::new(Code::ClockJump, host, earlier.at_ns, summary)
            .number("jump_ns", jump_ns)
            .text("direction", direction),
    );
}

/// A guest whose exception handlers fail has lost its kernel. Some kernels reboot that way.
fn triple_fault(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    for (vcpu, _, count) in exits(look, &["shutdown"]) {
        let summary = format!(
            "vCPU {vcpu} had a triple fault: the guest's kernel died, or rebooted that way"
        );
        let whole = Subject::whole("vm");
        let verdict = Verdict::new(Code::GuestPanic, whole, look.now.at_ns, summary);
        // One that ended as if it had rebooted may have done so.
        let is_clean = look.now.has_ended && look.now.failure.is_none();
        let severity = match is_clean {
            true => Severity::Warning,
            false => Severity::Error,
        };
        verdicts.push(verdict.at(severity).number("triple_faults", count));
    }
}

/// Whether a thread that waits for work looks around once a second all the same: then it is stuck
/// when it does not. Others may wait for ever.
fn looks_around(thread: &str) -> bool {
    thread == "watcher" || thread.starts_with("io-")
}

/// A thread that the kernel has stopped, that works on one thing for long, or that has stopped
/// looking around.
fn stuck(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    for thread in &look.now.threads {
        let mut earlier = look.earlier.iter().flat_map(|earlier| &earlier.threads);
        let earlier = earlier.find(|there| there.name == thread.name);
        if let Some(stopped) = earlier.and_then(|earlier| stopped(earlier.state, thread.state)) {
            verdicts.push(halted(look, &thread.name, &thread.doing, stopped));
        } else if let Some(verdict) = motionless(look, earlier, thread) {
            verdicts.push(verdict);
        }
    }
    for vcpu in &look.now.vcpus {
        let mut earlier = look.earlier.iter().flat_map(|earlier| &earlier.vcpus);
        let earlier = earlier.find(|there| there.index == vcpu.index);
        if let Some(stopped) = earlier.and_then(|earlier| stopped(earlier.state, vcpu.state)) {
            let name = format!("vcpu-{}", vcpu.index);
            verdicts.push(halted(look, &name, &vcpu.doing, stopped));
        }
    }
}

/// Since when, at the latest, a thread that was stopped at two looks has been; and its letter.
fn stopped(then: Option<Sampled<char>>, now: Option<Sampled<char>>) -> Option<Sampled<char>> {
    let state = now?.value;
    let both = is_stopped(then) && is_stopped(now);
    both.then_some(Sampled {
        at_ns: then?.at_ns,
        value: state,
    })
}

fn halted(look: &Look<'_>, name: &str, doing: &Doing, stopped: Sampled<char>) -> Verdict {
    let who = match stopped.value {
        't' => "a tracer",
        _ => "a signal",
    };
    let age = look.age(stopped.at_ns);
    let summary = format!(
        "the thread {name} was stopped by {who} at least {} ago",
        seconds(age)
    );
    let subject = Subject::thread(name);
    Verdict::new(Code::VmmThreadStuck, subject, stopped.at_ns, summary)
        .number("stuck_ns", age)
        .number("tid", doing.tid)
        .text("state", stopped.value.to_string())
}

/// It works on one thing for long, or has not looked around for as long. When nobody looked for that
/// time, all of us slept.
fn motionless(
    look: &Look<'_>,
    earlier: Option<&ThreadSeen>,
    thread: &ThreadSeen,
) -> Option<Verdict> {
    let doing = &thread.doing;
    let age = look.age(doing.since_ns);
    let looked_ns = look.earlier.map_or(0, |earlier| look.age(earlier.at_ns));
    let is_late = match doing.activity {
        Some(Activity::InDevice | Activity::Blocked) => true,
        Some(Activity::Idle) => {
            let has_rounds = looks_around(&thread.name);
            let is_same = earlier.is_some_and(|earlier| earlier.loops == thread.loops);
            has_rounds && is_same && looked_ns < look.limits.thread_ns
        }
        _ => false,
    };
    if !is_late || age < look.limits.thread_ns {
        return None;
    }
    let what = match doing.activity {
        Some(Activity::Idle) => "has not looked around".to_owned(),
        _ => format!("has been at {} {}", doing.reason, doing.device),
    };
    let summary = format!("the thread {} {what} for {}", thread.name, seconds(age));
    let subject = Subject::thread(&thread.name);
    let verdict = Verdict::new(Code::VmmThreadStuck, subject, doing.since_ns, summary)
        .number("stuck_ns", age)
        .number("tid", doing.tid)
        .number("loops", thread.loops);
    Some(match thread.state {
        Some(state) => verdict.text("state", state.value.to_string()),
        None => verdict,
    })
}
