//! Queues: requests that wait for the host, for the device's thread, or for the guest.

use super::{Look, is_stopped, percent, seconds};
use crate::heartbeat::Activity;
use crate::verdict::observation::{HostErrors, QueueSeen, ThreadSeen};
use crate::verdict::{Code, Severity, Subject, Verdict};

/// How often a device's thread looks how far the guest has read.
const LOOK_ROUND_NS: u64 = 1_000_000_000;

pub(super) fn judge(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    for queue in look.now.queues.iter().filter(|queue| queue.size > 0) {
        stalled(look, queue, verdicts);
        not_taken(look, queue, verdicts);
        not_reaping(look, queue, verdicts);
        rx_starved(look, queue, verdicts);
        rate_limited(look, queue, verdicts);
    }
    for queue in &look.now.queues {
        lost_kicks(look, queue, verdicts);
        broken(look, queue, verdicts);
    }
    for errors in &look.now.host_errors {
        host_errors(look, errors, verdicts);
    }
}

/// What people call the queue.
fn called(queue: &QueueSeen) -> String {
    let name = queue.name.as_ref();
    let name = name.map_or_else(String::new, |name| format!(" ({name})"));
    format!("{} queue {}{name}", queue.device, queue.queue)
}

fn verdict(code: Code, queue: &QueueSeen, since_ns: u64, summary: String) -> Verdict {
    let subject = Subject::queue(&queue.device, &queue.queue);
    Verdict::new(code, subject, since_ns, summary)
}

/// The thread that serves the queue.
fn server<'a>(look: &Look<'a>, queue: &QueueSeen) -> Option<&'a ThreadSeen> {
    let name = format!("io-{}", queue.device);
    look.now.threads.iter().find(|thread| thread.name == name)
}

fn before<'a>(look: &Look<'a>, queue: &QueueSeen) -> Option<&'a QueueSeen> {
    let mut queues = look.earlier?.queues.iter();
    queues.find(|there| there.device == queue.device && there.queue == queue.queue)
}

/// The oldest request is in flight for long. A receive queue's buffers wait for packets: that is
/// no stall.
fn stalled(look: &Look<'_>, queue: &QueueSeen, verdicts: &mut Vec<Verdict>) {
    let Some(since_ns) = queue.oldest_since_ns.filter(|_| queue.in_flight > 0) else {
        return;
    };
    let age = look.age(since_ns);
    // A thread that is stopped asks nothing of the host.
    let is_stopped = server(look, queue).is_some_and(|thread| is_stopped(thread.state));
    if age < look.limits.backend_stall_ns || is_stopped {
        return;
    }
    let summary = format!(
        "a request of {} has waited for the host for {}",
        called(queue),
        seconds(age)
    );
    let mut stall = verdict(Code::QueueBackendStall, queue, since_ns, summary)
        .number("oldest_ns", age)
        .number("in_flight", queue.in_flight);
    if let Some(thread) = server(look, queue) {
        let doing = thread.doing.activity.map_or("unknown", activity);
        stall = stall
            .text("thread_does", doing)
            .number("thread_so_for_ns", look.age(thread.doing.since_ns))
            .number("tid", thread.doing.tid);
    }
    verdicts.push(stall);
}

/// The guest has kicked, and from one look to the next the device's thread has taken no kick. One
/// that is at work for the device is late because of the host; one that is stopped is not at work.
fn not_taken(look: &Look<'_>, queue: &QueueSeen, verdicts: &mut Vec<Verdict>) {
    let Some(earlier) = before(look, queue) else {
        return;
    };
    let (Some(then), Some(now)) = (earlier.kick_pending, queue.kick_pending) else {
        return;
    };
    let age = look.age(then.at_ns);
    let has_moved = earlier.kicks != queue.kicks || earlier.requests != queue.requests;
    if !then.value || !now.value || has_moved || age < look.limits.device_stall_ns {
        return;
    }
    let Some(thread) = server(look, queue) else {
        return;
    };
    let is_at_work = thread.doing.activity == Some(Activity::InDevice);
    if is_at_work && !is_stopped(thread.state) {
        return;
    }
    let summary = format!(
        "the guest has kicked {}, and the thread {} has taken nothing for at least {}",
        called(queue),
        thread.name,
        seconds(age)
    );
    let stall = verdict(Code::QueueDeviceStall, queue, then.at_ns, summary)
        .number("not_taken_ns", age)
        .number("kicks", queue.kicks)
        .text(
            "thread_does",
            thread.doing.activity.map_or("unknown", activity),
        )
        .number("thread_so_for_ns", look.age(thread.doing.since_ns))
        .number("tid", thread.doing.tid);
    verdicts.push(match thread.state {
        Some(state) => stall.text("thread_state", state.value.to_string()),
        None => stall,
    });
}

fn activity(activity: Activity) -> &'static str {
    let mut all = Activity::ALL.iter();
    let found = all.find(|(there, _)| *there == activity);
    found.map_or("unknown", |(_, name)| *name)
}

fn not_reaping(look: &Look<'_>, queue: &QueueSeen, verdicts: &mut Vec<Verdict>) {
    let Some(since_ns) = queue.last_interrupt_ns.filter(|_| queue.unread > 0) else {
        return;
    };
    let age = look.age(since_ns);
    // The number is from the look-around of the device's thread, once a second: it must have come
    // since. A thread that the host holds up does not look.
    let looked_ns = server(look, queue).map_or(0, |thread| thread.doing.since_ns);
    let has_looked = looked_ns.saturating_sub(since_ns) >= LOOK_ROUND_NS;
    if age < look.limits.not_reaping_ns || !has_looked {
        return;
    }
    let summary = format!(
        "the guest has not read {} answers of {} since it was interrupted {} ago",
        queue.unread,
        called(queue),
        seconds(age)
    );
    verdicts.push(
        verdict(Code::QueueGuestNotReaping, queue, since_ns, summary)
            .number("unread", queue.unread)
            .number("since_interrupt_ns", age),
    );
}

fn rx_starved(look: &Look<'_>, queue: &QueueSeen, verdicts: &mut Vec<Verdict>) {
    let Some(since_ns) = queue.starved_since_ns else {
        return;
    };
    let age = look.age(since_ns);
    if age < look.limits.rx_starved_ns {
        return;
    }
    let summary = format!(
        "data for {} has waited for buffers of the guest for {}",
        called(queue),
        seconds(age)
    );
    verdicts
        .push(verdict(Code::QueueRxStarved, queue, since_ns, summary).number("starved_ns", age));
}

/// From one look to the next, requests waited for a good part of the time by the operator's limit.
fn rate_limited(look: &Look<'_>, queue: &QueueSeen, verdicts: &mut Vec<Verdict>) {
    let Some((earlier, then)) = look.earlier.zip(before(look, queue)) else {
        return;
    };
    let waited_at = |queue: &QueueSeen, at_ns: u64| {
        let open = queue
            .limited_since_ns
            .map_or(0, |since| at_ns.saturating_sub(since));
        queue.limited_wait_ns.saturating_add(open)
    };
    let passed = look.now.at_ns.saturating_sub(earlier.at_ns);
    let waited = waited_at(queue, look.now.at_ns).saturating_sub(waited_at(then, earlier.at_ns));
    let share = waited as f64 / passed.max(1) as f64;
    if share < look.limits.limited_share {
        return;
    }
    let summary = format!(
        "requests of {} waited for {} of the time, because their rate is limited",
        called(queue),
        percent(share.min(1.0))
    );
    let since_ns = queue
        .limited_since_ns
        .unwrap_or(earlier.at_ns)
        .min(earlier.at_ns);
    verdicts.push(
        verdict(Code::QueueRateLimited, queue, since_ns, summary)
            .number("waited_ns", waited)
            .number("looked_ns", passed)
            .real("limited_percent", 100.0 * share.min(1.0)),
    );
}

/// Found and mended between the two looks.
fn lost_kicks(look: &Look<'_>, queue: &QueueSeen, verdicts: &mut Vec<Verdict>) {
    let Some(earlier) = before(look, queue) else {
        return;
    };
    let lost = queue.lost_kicks.saturating_sub(earlier.lost_kicks);
    if lost == 0 {
        return;
    }
    let summary = format!(
        "{lost} times the guest gave requests to {} without the kick that was asked for; \
         they were served after all",
        called(queue)
    );
    let since_ns = look.earlier.map_or(look.now.at_ns, |earlier| earlier.at_ns);
    verdicts.push(
        verdict(Code::QueueLostKick, queue, since_ns, summary)
            .number("lost_kicks", lost)
            .number("lost_kicks_ever", queue.lost_kicks)
            .text("state", "mended"),
    );
}

/// From the fault until the driver resets the device.
fn broken(look: &Look<'_>, queue: &QueueSeen, verdicts: &mut Vec<Verdict>) {
    let (count, reason) = &queue.broken;
    let Some(since_ns) = queue.broken_since_ns else {
        return;
    };
    let summary = format!("the guest broke the ring of {}: {reason}", called(queue));
    verdicts.push(
        verdict(Code::QueueBroken, queue, since_ns, summary)
            .number("broken", *count)
            .number("broken_ns", look.age(since_ns))
            .text("reason", reason.as_str()),
    );
}

fn host_errors(look: &Look<'_>, errors: &HostErrors, verdicts: &mut Vec<Verdict>) {
    let earlier = look.earlier.and_then(|earlier| {
        let mut devices = earlier.host_errors.iter();
        devices.find(|there| there.device == errors.device)
    });
    let Some(earlier) = earlier else {
        return;
    };
    let new = errors.count.saturating_sub(earlier.count);
    if new == 0 {
        return;
    }
    let errno = i32::try_from(errors.last_errno).unwrap_or(0);
    let said = std::io::Error::from_raw_os_error(errno).to_string();
    let place = errors
        .last_sector
        .map(|sector| format!(" at sector {sector}"));
    let place = place.unwrap_or_default();
    let asked = errors.last_operation.as_ref();
    let asked = asked.map_or_else(String::new, |asked| {
        format!(", the last for a {asked}{place}")
    });
    let summary = format!(
        "the host gave {} {new} errors{asked}: {said}",
        errors.device
    );
    let since_ns = errors.last_ns.unwrap_or(look.now.at_ns);
    let subject = Subject::device(&errors.device);
    let mut verdict = Verdict::new(Code::DriveError, subject, since_ns, summary)
        .at(Severity::Error)
        .number("errors", new)
        .number("errno", errors.last_errno)
        .text("said", said);
    if let Some(operation) = &errors.last_operation {
        verdict = verdict.text("operation", operation.as_str());
    }
    if let Some(sector) = errors.last_sector {
        verdict = verdict.number("sector", sector);
    }
    verdicts.push(verdict);
}
