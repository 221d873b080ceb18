//! vCPUs that do not go on, and those that only look so.

use super::*;
use crate::sight::{Suspicion, mp_state};
use crate::verdict::observation::MessageSeen;

/// What is cut away of a finding, in words, and how.
type Cut<T> = (&'static str, fn(&T));
type ChangeOf = fn(&mut Observation);

/// What the watcher found of a vCPU that has been halted with interrupts off since 8 s.
pub(super) fn dead(world: &World) {
    world.kvm.level[0].set(1);
    world.sight.suspicion.set(Suspicion::Halted as u64);
    world.sight.suspected_since.set(world.ticks(8 * S));
    world.sight.sampled_at.set(world.ticks(10 * S));
    world.sight.mp_state.set(mp_state::HALTED);
    world.sight.alike.set(2);
    world.sight.rip.set(0x1234);
}

/// And of one that has been in a loop of a few bytes with interrupts off since 4 s.
fn deaf(world: &World) {
    world.sight.suspicion.set(Suspicion::Deaf as u64);
    world.sight.suspected_since.set(world.ticks(3 * S));
    world.sight.sampled_at.set(world.ticks(10 * S));
    world.sight.alike.set(6);
    world.sight.alike_since.set(world.ticks(4 * S));
    world.sight.rip.set(0x1010);
    world.sight.rip_low.set(0x1000);
    world.sight.rip_high.set(0x1010);
    world.sight.place.set("spins+0x4/0x20");
    world
        .sight
        .stack
        .set("calls+0x1/0x2\n? worker_thread+0x3/0x4");
}

/// With interrupts on.
fn busy(world: &World) {
    deaf(world);
    world.sight.suspicion.set(Suspicion::Busy as u64);
    world.sight.interrupts_on.set(1);
}

fn both(one: fn(&World), other: impl Fn(&World)) -> Vec<Verdict> {
    World::new().said(|world| {
        one(world);
        other(world);
    })
}

#[test]
fn a_halt_that_nothing_can_end_is_an_error() {
    let verdicts = both(dead, |world| world.sight.place.set("native_halt+0xa/0x10"));
    assert_eq!(codes(&verdicts), ["vcpu-dead-halt"]);
    assert_eq!(verdicts[0].severity, Severity::Error);
    assert_eq!(verdicts[0].subject.as_str(), "vcpu/0");
    assert_eq!(*fact(&verdicts[0], "rip"), Fact::Number(0x1234));
    assert_eq!(*fact(&verdicts[0], "interrupts_on"), Fact::Number(0));
    assert!(matches!(fact(&verdicts[0], "halted_ns"), Fact::Number(ns) if ns.abs_diff(3 * S) < S));
}

#[test]
fn a_halt_that_something_can_end_or_of_which_too_little_is_known_is_none() {
    let cuts: [Cut<World>; 9] = [
        ("interrupts on", |w| w.sight.interrupts_on.set(1)),
        ("an NMI on its way", |w| w.sight.pending_nmi.set(1)),
        ("not halted", |w| w.sight.mp_state.set(mp_state::RUNNABLE)),
        ("not blocking", |w| w.kvm.level[0].set(0)),
        ("no statistics of KVM", |w| w.kvm.sampled_at.set(0)),
        ("not suspected", |w| w.sight.suspicion.set(0)),
        ("never looked into", |w| w.sight.sampled_at.set(0)),
        ("not for long", |w| {
            w.sight.suspected_since.set(w.ticks(19 * S / 2));
        }),
        ("switched off by Linux", |w| {
            w.sight.stack.set("native_play_dead+0x1/0x2");
        }),
    ];
    for (name, cut) in cuts {
        let mut verdicts = both(dead, cut);
        // It is halted, and that is all.
        verdicts.retain(|verdict| verdict.code != Code::GuestIdle);
        assert_eq!(verdicts, [], "{name}");
    }
    assert_eq!(
        codes(&both(dead, |world| world.sight.interrupts_on.set(1))),
        ["guest-idle"]
    );
}

#[test]
fn one_dead_halt_of_several_is_sure_only_with_a_name() {
    let world = World::new();
    dead(&world);
    world.sampled(11 * S);
    let mut now = world.seen(11 * S);
    let mut other = now.vcpus[0].clone();
    (other.index, other.sight) = (1, None);
    now.vcpus.push(other);
    let judge = |now: &Observation| diagnose(None, now, &Thresholds::default());
    assert_eq!(judge(&now), []);
    now.vcpus[0].sight.as_mut().unwrap().alike.looks = 3;
    assert_eq!(judge(&now)[0].severity, Severity::Warning);
    now.vcpus[0].sight.as_mut().unwrap().place = "panics+0x1/0x2".to_owned();
    assert_eq!(judge(&now)[0].severity, Severity::Error);
}

#[test]
fn a_loop_with_interrupts_off_is_an_error_with_its_function() {
    let verdicts = both(deaf, |world| world.sight.pending_vector.set(0xEC));
    assert_eq!(codes(&verdicts), ["vcpu-spin-irqs-off"]);
    assert_eq!(verdicts[0].severity, Severity::Error);
    let function = Fact::Text("spins+0x4/0x20".to_owned());
    assert_eq!(*fact(&verdicts[0], "function"), function);
    let stack = Fact::Text("calls+0x1/0x2, ? worker_thread+0x3/0x4".to_owned());
    assert_eq!(*fact(&verdicts[0], "stack"), stack);
    assert_eq!(*fact(&verdicts[0], "pending_vector"), Fact::Number(0xEC));
    assert!(verdicts[0].summary.contains("in spins+0x4/0x20"));
    // Without names it is told by address.
    let nameless = both(deaf, |world| world.sight.place.set(""));
    assert!(nameless[0].summary.contains("at 0x1010"), "{nameless:?}");
}

/// A loop that calls something far away, while an interrupt waits.
fn held(world: &World) {
    deaf(world);
    world.sight.alike.set(1);
    world.sight.alike_since.set(world.ticks(10 * S));
    world.sight.changed_registers.set(9);
    world.sight.pending_looks.set(6);
    world.sight.pending_since.set(world.ticks(4 * S));
}

#[test]
fn an_interrupt_that_waits_all_the_time_tells_of_a_loop_through_many_functions() {
    assert_eq!(codes(&both(held, |_| ())), ["vcpu-spin-irqs-off"]);
    assert_eq!(both(held, |world| world.sight.pending_looks.set(4)), []);
}

#[test]
fn a_loop_with_interrupts_off_that_works_or_was_not_seen_to_last_is_none() {
    let cuts: [Cut<World>; 9] = [
        ("user space", |w| w.sight.ring.set(3)),
        ("halted", |w| w.sight.mp_state.set(mp_state::HALTED)),
        ("two looks", |w| w.sight.alike.set(2)),
        ("a large window", |w| w.sight.rip_high.set(0x1400)),
        ("registers that move", |w| w.sight.changed_registers.set(2)),
        ("interrupts taken", |w| {
            w.sight.suspicion.set(Suspicion::Busy as u64);
        }),
        ("not suspected", |w| w.sight.suspicion.set(0)),
        ("seen before it was suspected", |w| {
            w.sight.suspected_since.set(w.ticks(21 * S / 2));
        }),
        ("not for long", |w| {
            w.sight.alike_since.set(w.ticks(8 * S));
        }),
    ];
    for (name, cut) in cuts {
        assert_eq!(both(deaf, cut), [], "{name}");
    }
    // One that moves a pointer and yet lets an interrupt wait for so long does not go on.
    let waits = both(deaf, |world| {
        world.sight.changed_registers.set(2);
        world.sight.pending_looks.set(3);
    });
    assert_eq!(codes(&waits), ["vcpu-spin-irqs-off"]);
}

#[test]
fn a_loop_in_the_kernel_that_takes_interrupts_is_a_warning() {
    let verdicts = both(busy, |_| ());
    assert_eq!(codes(&verdicts), ["vcpu-spin"]);
    assert_eq!(verdicts[0].severity, Severity::Warning);
    assert_eq!(*fact(&verdicts[0], "looks_alike"), Fact::Number(6));
}

#[test]
fn work_in_the_kernel_and_in_user_space_is_no_loop() {
    let cuts: [Cut<World>; 8] = [
        ("a program that computes", |w| w.sight.ring.set(3)),
        ("four looks", |w| w.sight.alike.set(4)),
        ("memory is zeroed", |w| w.sight.changed_registers.set(2)),
        ("several functions", |w| w.sight.rip_high.set(0x1800)),
        ("not for long", |w| {
            w.sight.alike_since.set(w.ticks(8 * S));
        }),
        ("idle=poll", |w| {
            w.sight
                .stack
                .set("do_idle+0x1/0x2\ncpu_startup_entry+0x3/0x4");
        }),
        ("not suspected", |w| w.sight.suspicion.set(0)),
        ("looked into long ago", |w| {
            w.sight.sampled_at.set(0);
        }),
    ];
    for (name, cut) in cuts {
        assert_eq!(both(busy, cut), [], "{name}");
    }
    // What interrupted the idle loop and does not end is one.
    let in_interrupt = both(busy, |world| {
        let stack = "asm_common_interrupt+0x1/0x2\ndo_idle+0x1/0x2";
        world.sight.stack.set(stack);
    });
    assert_eq!(codes(&in_interrupt), ["vcpu-spin"]);
}

/// A guest of four vCPUs that has run for long, of which some were `started`.
fn of_four(started: usize, change: impl Fn(&mut Observation)) -> Vec<Verdict> {
    let world = World::new();
    world.kvm.total[0].add(1000);
    world.sampled(60 * S);
    let mut now = world.seen(60 * S);
    world.sight.suspicion.set(Suspicion::NotStarted as u64);
    world.sight.suspected_since.set(world.ticks(S));
    world.sight.sampled_at.set(world.ticks(55 * S));
    world.sight.mp_state.set(mp_state::UNINITIALIZED);
    let waiting = world.seen(60 * S).vcpus[0].clone();
    for index in 1..4 {
        let mut vcpu = if index < started {
            now.vcpus[0].clone()
        } else {
            let mut vcpu = waiting.clone();
            vcpu.kvm.as_mut().unwrap().value.exits = 0;
            vcpu
        };
        vcpu.index = index;
        now.vcpus.push(vcpu);
    }
    change(&mut now);
    diagnose(None, &now, &Thresholds::default())
}

#[test]
fn vcpus_that_are_not_started_are_one_verdict_and_a_choice_is_no_warning() {
    let none = of_four(1, |_| ());
    assert_eq!(codes(&none), ["vcpu-not-started"]);
    assert_eq!(none[0].subject.as_str(), "vcpu/1");
    assert_eq!(none[0].severity, Severity::Warning);
    assert_eq!(*fact(&none[0], "not_started"), Fact::Number(3));
    let some = of_four(2, |_| ());
    assert_eq!(
        (some[0].severity, some[0].subject.as_str()),
        (Severity::Info, "vcpu/2")
    );
    let told = of_four(1, |now| now.vcpus_allowed = Some(1));
    assert_eq!(told[0].severity, Severity::Info);
    // It was to start two.
    let not_all = of_four(1, |now| now.vcpus_allowed = Some(2));
    assert_eq!(not_all[0].severity, Severity::Warning);
}

#[test]
fn a_vcpu_that_runs_or_may_yet_be_started_is_no_verdict() {
    assert_eq!(of_four(4, |_| ()), []);
    let cuts: [(&str, ChangeOf); 6] = [
        ("no look", |now| {
            for vcpu in &mut now.vcpus {
                vcpu.sight = None;
            }
        }),
        ("no statistics", |now| {
            for vcpu in &mut now.vcpus {
                vcpu.kvm = None;
            }
        }),
        ("soon after the start", |now| {
            now.vcpus[0].paused_ns = Some(55 * S);
        }),
        ("it is not known for how long it ran", |now| {
            now.vcpus[0].paused_ns = None;
        }),
        ("paused", |now| {
            now.vcpus[0].doing.activity = Some(Activity::Paused);
        }),
        ("the first one does not run either", |now| {
            now.vcpus[0].kvm.as_mut().unwrap().value.exits = 0;
        }),
    ];
    for (name, cut) in cuts {
        let verdicts = of_four(1, cut);
        let told = verdicts.iter().any(|v| v.code == Code::VcpuNotStarted);
        assert!(!told, "{name}");
    }
}

/// A second until `until` in which the vCPU was halted for so many percent.
fn a_second_halted(world: &World, until: u64, percent: u64) {
    let halted = S / 100 * percent;
    world.vcpu.run.add(S);
    world.task.rows[0].cpu_ns.add(S - halted);
    world.task.rows[0].guest_ns.add(S - halted);
    world.kvm.total[3].add(halted);
    world.enter(Activity::InGuest, until);
    world.sampled(until);
}

fn after_seconds(percent: u64, seconds: u64) -> Vec<Verdict> {
    let world = World::new();
    let mut engine = Engine::default();
    for second in 1..=seconds {
        a_second_halted(&world, second * S, percent);
        engine.step(world.seen(second * S), &Thresholds::default());
    }
    engine.standing()
}

#[test]
fn a_guest_that_is_idle_for_long_is_said_to_be_and_is_healthy() {
    let idle = after_seconds(99, 20);
    assert_eq!(codes(&idle), ["guest-idle"]);
    assert_eq!(idle[0].severity, Severity::Info);
    assert_eq!(health(&idle), 100);
    assert_eq!(after_seconds(99, 8), []);
    assert_eq!(after_seconds(90, 20), []);
}

#[test]
fn a_guest_that_is_dead_is_not_idle() {
    let world = World::new();
    a_second_halted(&world, 10 * S, 99);
    let earlier = world.seen(10 * S);
    a_second_halted(&world, 11 * S, 99);
    let idle = diagnose(Some(&earlier), &world.seen(11 * S), &Thresholds::default());
    assert_eq!(codes(&idle), ["guest-idle"]);
    dead(&world);
    let dead = diagnose(Some(&earlier), &world.seen(11 * S), &Thresholds::default());
    assert_eq!(codes(&dead), ["vcpu-dead-halt"]);
}

#[test]
fn who_waits_for_a_stuck_vcpu_is_its_consequence() {
    let world = World::new();
    deaf(&world);
    world.sampled(11 * S);
    let mut now = world.seen(11 * S);
    let mut other = now.vcpus[0].clone();
    other.index = 1;
    let sight = other.sight.as_mut().unwrap();
    (sight.interrupts_on, sight.suspicion) = (true, Suspicion::Busy);
    now.vcpus.push(other);
    let verdicts = diagnose(None, &now, &Thresholds::default());
    assert_eq!(codes(&verdicts), ["vcpu-spin-irqs-off", "vcpu-spin"]);
    let cause = (Code::VcpuSpinIrqsOff, Subject::vcpu(0));
    assert_eq!(verdicts[1].consequence_of, Some(cause));
    assert_eq!(health(&verdicts), 50);
}

#[test]
fn what_the_guests_kernel_says_of_a_stuck_vcpu_is_its_consequence() {
    let world = World::new();
    deaf(&world);
    world.sampled(11 * S);
    let mut now = world.seen(11 * S);
    now.messages.push(MessageSeen {
        kind: "rcu_stall".to_owned(),
        count: 1,
        last_ns: now.at_ns,
        line: "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:".to_owned(),
        next: "rcu: \t0-...0: (1 GPs behind)".to_owned(),
    });
    let verdicts = diagnose(None, &now, &Thresholds::default());
    assert_eq!(codes(&verdicts), ["vcpu-spin-irqs-off", "vcpu-spin"]);
    assert_eq!(verdicts[1].subject, Subject::vcpu(0));
    assert_eq!(verdicts[1].consequence_of, Some(verdicts[0].key()));
    assert_eq!(health(&verdicts), 50);
}

#[test]
fn a_hard_lockup_is_further_evidence_of_a_loop_that_was_seen() {
    let world = World::new();
    deaf(&world);
    world.sampled(11 * S);
    let mut now = world.seen(11 * S);
    let line = "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0";
    now.messages.push(MessageSeen {
        kind: "hard_lockup".to_owned(),
        count: 2,
        last_ns: now.at_ns,
        line: line.to_owned(),
        next: String::new(),
    });
    let verdicts = diagnose(None, &now, &Thresholds::default());
    assert_eq!(codes(&verdicts), ["vcpu-spin-irqs-off"]);
    assert_eq!(verdicts[0].severity, Severity::Error);
    assert_eq!(*fact(&verdicts[0], "hard_lockups"), Fact::Number(2));
    let line = Fact::Text(line.to_owned());
    assert_eq!(*fact(&verdicts[0], "line"), line);
    assert!(verdicts[0].summary.contains("in spins+0x4/0x20"));
}
