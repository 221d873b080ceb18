//! The VMM: threads, how it ended, and what is no fault.

use super::*;

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
