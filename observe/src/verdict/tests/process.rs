//! The VMM: threads, how it ended, and what is no fault.

use super::*;
use crate::verdict::observation::CgroupSeen;

#[test]
fn a_killed_vmm_is_told_and_so_is_what_killed_it() {
    let world = World::new();
    world.sampled(S);
    let dead = |world: &World| {
        let mut snapshot = world.snapshot(2 * S);
        snapshot.writer_alive = Some(false);
        diagnose(None, &Observation::of(&snapshot), &Thresholds::default())
    };
    assert_eq!(codes(&dead(&world)), ["vmm-died"]);
    world.cgroup.memory_limited.set(1);
    world.cgroup.memory_max.set(1 << 30);
    world.cgroup.memory_current.set(1 << 30);
    let max = crate::host::MEMORY_EVENTS
        .iter()
        .position(|name| *name == "max");
    world.cgroup.memory_events[max.unwrap()].add(3);
    let verdicts = dead(&world);
    assert_eq!(codes(&verdicts), ["vmm-oom-killed", "vmm-died"]);
    let cause = (Code::VmmOomKilled, Subject::whole("vmm"));
    assert_eq!(verdicts[1].consequence_of, Some(cause));
    assert_eq!(health(&verdicts), 50);
}

/// What is said of a VMM that is gone, whose cgroup needed so many MiB at its last samples, one a
/// second, and had a limit of 1000 MiB.
fn dead_of(needed_mib: &[u64], change: impl Fn(&mut Observation)) -> Vec<&'static str> {
    let world = World::new();
    world.sampled(S);
    let mut seen = world.seen(2 * S);
    seen.writer_alive = Some(false);
    let last = *needed_mib.last().unwrap();
    seen.cgroup = Some(CgroupSeen {
        current_bytes: last << 20,
        max_bytes: Some(1000 << 20),
        ..seen.cgroup.unwrap()
    });
    let samples = (0..).map(|at| at * S).zip(needed_mib);
    seen.memory.needed = samples.map(|(at, mib)| (at, mib << 20)).collect();
    seen.memory.untouched_bytes = Some(2000 << 20);
    change(&mut seen);
    codes(&diagnose(None, &seen, &Thresholds::default()))
}

const KILLED: [&str; 2] = ["vmm-oom-killed", "vmm-died"];

#[test]
fn a_vmm_that_died_just_before_its_limit_while_it_grew_was_killed_for_it() {
    assert_eq!(dead_of(&[800, 850, 900, 950], |_| ()), KILLED);
    // In bursts; fast; slowly, near the limit.
    assert_eq!(dead_of(&[700, 850, 900, 900], |_| ()), KILLED);
    assert_eq!(dead_of(&[300, 500, 800], |_| ()), KILLED);
    assert_eq!(dead_of(&[962, 964, 966, 968], |_| ()), KILLED);
    // At the limit it has grown no more, and has met it.
    let met = |seen: &mut Observation| {
        let cgroup = seen.cgroup.as_mut().unwrap();
        cgroup.oom_events = 1;
    };
    assert_eq!(dead_of(&[990, 990, 990], met), KILLED);
}

#[test]
fn a_vmm_that_was_ended_by_somebody_was_not_killed_for_want_of_memory() {
    let died = ["vmm-died"];
    // Half full: level, growing, growing fast.
    assert_eq!(dead_of(&[500; 5], |_| ()), died);
    assert_eq!(dead_of(&[400, 420, 440, 460, 480, 500], |_| ()), died);
    assert_eq!(dead_of(&[0, 200, 400, 600], |_| ()), died);
    // Nearly full: level, shrinking, growing slowly; grown long ago.
    assert_eq!(dead_of(&[950; 5], |_| ()), died);
    assert_eq!(dead_of(&[960, 950, 940], |_| ()), died);
    assert_eq!(dead_of(&[930, 935, 940], |_| ()), died);
    assert_eq!(dead_of(&[500, 900, 900, 900, 900], |_| ()), died);
    // Full, and nobody met the limit; a limit that was met long ago, when it was fuller.
    assert_eq!(dead_of(&[990; 5], |_| ()), died);
    let met = |seen: &mut Observation| {
        let cgroup = seen.cgroup.as_mut().unwrap();
        (cgroup.max_events, cgroup.oom_events, cgroup.oom_kills) = (9, 1, 1);
    };
    assert_eq!(dead_of(&[500; 5], met), died);
    // There was swap left; the guest had all its memory; there is no limit, or no sample.
    let grows = [800, 850, 900, 950];
    assert_eq!(
        dead_of(&grows, |seen| seen.memory.swap_left_bytes = 1 << 30),
        died
    );
    assert_eq!(
        dead_of(&[990; 5], |seen| {
            met(seen);
            seen.memory.swap_left_bytes = 1 << 30;
        }),
        died
    );
    assert_eq!(
        dead_of(&grows, |seen| seen.memory.untouched_bytes = Some(4 << 20)),
        died
    );
    assert_eq!(
        dead_of(&grows, |seen| seen.cgroup.as_mut().unwrap().max_bytes =
            None),
        died
    );
    assert_eq!(dead_of(&grows, |seen| seen.memory.needed.clear()), died);
}

#[test]
fn a_guest_that_kvm_gave_up_is_told_with_kvms_words() {
    let world = World::new();
    world.vcpu.exits[3].inc();
    let verdicts = diagnose(None, &world.seen(S), &Thresholds::default());
    assert_eq!(codes(&verdicts), ["kvm-error"]);
}

#[test]
fn a_vm_that_failed_is_told_with_its_words() {
    let world = World::new();
    let failure = "the thread io-disk panicked";
    world
        .black_box
        .finish(crate::blackbox::End::Failed, failure);
    let verdicts = diagnose(None, &world.seen(S), &Thresholds::default());
    assert_eq!(codes(&verdicts), ["vm-failed"]);
    assert_eq!(
        *fact(&verdicts[0], "failure"),
        Fact::Text(failure.to_owned())
    );
    // KVM's reason is the cause.
    world.vcpu.exits[3].inc();
    let verdicts = diagnose(None, &world.seen(S), &Thresholds::default());
    assert_eq!(codes(&verdicts), ["kvm-error", "vm-failed"]);
    assert_eq!(verdicts[1].consequence_of, Some(verdicts[0].key()));
    assert_eq!(health(&verdicts), 50);
}

#[test]
fn a_vmm_without_a_pulse_is_stopped() {
    let judged = |silent: u64, alive| {
        let mut seen = World::new().seen(20 * S);
        seen.pulse_ns = Some(seen.at_ns - silent);
        seen.writer_alive = alive;
        diagnose(None, &seen, &Thresholds::default())
    };
    assert_eq!(judged(4 * S, Some(true)), []);
    let verdicts = judged(7 * S, Some(true));
    assert_eq!(codes(&verdicts), ["vmm-thread-stuck"]);
    assert_eq!(verdicts[0].subject.as_str(), "thread/vm");
    assert_eq!(*fact(&verdicts[0], "silent_ns"), Fact::Number(7 * S));
    let pid = Fact::Number(std::process::id().into());
    assert_eq!(*fact(&verdicts[0], "pid"), pid);
    // One that is still being built.
    assert_eq!(judged(20 * S, Some(true)), []);
    assert_eq!(codes(&judged(19 * S, Some(true))), ["vmm-thread-stuck"]);
    // Of one of which nothing tells whether it lives, the last sign of life is no news.
    assert_eq!(judged(7 * S, None), []);
}

#[test]
fn what_a_pause_explains_is_no_fault() {
    let verdict = |code| Verdict::new(code, Subject::whole("vm"), 0, String::new());
    let paused = verdict(Code::Paused);
    let unread = |cause: &Verdict| Verdict {
        consequence_of: Some(cause.key()),
        ..verdict(Code::QueueGuestNotReaping)
    };
    assert_eq!(worst(&[paused.clone(), unread(&paused)]), None);
    let storm = verdict(Code::VcpuStarved);
    assert_eq!(
        worst(&[storm.clone(), unread(&storm)]),
        Some(Severity::Warning)
    );
    let lost = verdict(Code::QueueLostKick);
    assert_eq!(worst(&[paused.clone(), lost]), Some(Severity::Error));
    // Two that name each other end, too.
    let mut one = verdict(Code::VcpuSpin);
    let mut other = verdict(Code::VcpuStarved);
    (one.consequence_of, other.consequence_of) = (Some(other.key()), Some(one.key()));
    assert_eq!(worst(&[one, other]), Some(Severity::Warning));
}

#[test]
fn what_was_on_its_way_in_a_stopped_vmm_is_no_fault_of_the_disk() {
    let judged = |asked: u64| {
        let world = World::new();
        world.queue.in_flight.set(1);
        world.queue.oldest_since.set(world.ticks(asked));
        let mut seen = world.seen(30 * S);
        seen.pulse_ns = Some(seen.created_ns + 20 * S);
        diagnose(None, &seen, &Thresholds::default())
    };
    let stopped = judged(20 * S + S / 2);
    assert_eq!(codes(&stopped), ["vmm-thread-stuck", "queue-backend-stall"]);
    assert_eq!(stopped[1].consequence_of, Some(stopped[0].key()));
    // A disk that did not answer before that is a fault of its own.
    let before = judged(10 * S);
    assert_eq!(codes(&before), ["queue-backend-stall", "vmm-thread-stuck"]);
    assert!(
        before
            .iter()
            .all(|verdict| verdict.consequence_of.is_none())
    );
}

#[test]
fn a_triple_fault_is_an_error_and_less_where_the_vm_ended_as_if_it_had_rebooted() {
    let world = World::new();
    world.vcpu.exits[2].inc();
    let judged = || diagnose(None, &world.seen(S), &Thresholds::default());
    let running = judged();
    assert_eq!(codes(&running), ["guest-panic"]);
    assert_eq!(running[0].severity, Severity::Error);
    world
        .black_box
        .finish(crate::blackbox::End::Clean, "the guest rebooted");
    let ended = judged();
    assert_eq!(codes(&ended), ["guest-panic"]);
    assert_eq!(ended[0].severity, Severity::Warning);
}
