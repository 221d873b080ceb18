//! vCPUs that wait for a lock, halted: another one wakes them.

use super::stuck::dead;
use super::*;
use crate::sight::{Suspicion, mp_state};

/// What `kvm_wait` and its callers look like.
fn lock_wait(sight: &mut SightSeen) {
    sight.place = "kvm_wait+0x3c/0x50".to_owned();
    sight.stack = "__pv_queued_spin_lock_slowpath+0x2a/0x2e0, _raw_spin_lock+0x25/0x30".to_owned();
}

/// Two vCPUs, of which the first has waited for a lock since 8 s, at `at`; `change` is for the other.
fn waiting_at(at: u64, change: impl Fn(&mut VcpuSeen)) -> Vec<Verdict> {
    let world = World::new();
    dead(&world);
    world.sampled(at);
    world.sight.sampled_at.set(world.ticks(at));
    let mut now = world.seen(at);
    lock_wait(now.vcpus[0].sight.as_mut().unwrap());
    let mut other = now.vcpus[0].clone();
    other.index = 1;
    change(&mut other);
    now.vcpus.push(other);
    diagnose(None, &now, &Thresholds::default())
}

fn runs(other: &mut VcpuSeen) {
    other.kvm.as_mut().unwrap().value.is_blocking = false;
    other.sight.as_mut().unwrap().suspicion = Suspicion::None;
}

#[test]
fn a_wait_for_a_lock_that_another_vcpu_may_hold_is_a_warning_after_a_while() {
    assert_eq!(waiting_at(14 * S, runs), []);
    let verdicts = waiting_at(16 * S, runs);
    assert_eq!(codes(&verdicts), ["vcpu-dead-halt"]);
    assert_eq!(verdicts[0].severity, Severity::Warning);
    assert!(
        verdicts[0]
            .summary
            .ends_with("a lock which another vCPU holds"),
        "{}",
        verdicts[0].summary
    );
    // Nothing tells whether the other one runs: then it may.
    let unknown: [fn(&mut VcpuSeen); 3] = [
        |other| other.kvm = None,
        |other| other.sight = None,
        |other| other.kvm.as_mut().unwrap().value.is_blocking = false,
    ];
    for change in unknown {
        let verdicts = waiting_at(16 * S, change);
        assert_eq!(verdicts[0].severity, Severity::Warning, "{verdicts:?}");
        assert_eq!(verdicts.len(), 1);
    }
}

#[test]
fn a_wait_for_a_lock_is_an_error_where_no_vcpu_runs() {
    let both_wait = waiting_at(11 * S, |_| ());
    assert_eq!(codes(&both_wait), ["vcpu-dead-halt", "vcpu-dead-halt"]);
    let others: [fn(&mut VcpuSeen); 2] = [
        |idle| idle.sight.as_mut().unwrap().interrupts_on = true,
        |unborn| unborn.sight.as_mut().unwrap().suspicion = Suspicion::NotStarted,
    ];
    for change in others {
        let verdicts = waiting_at(11 * S, change);
        let dead: Vec<_> = (verdicts.iter())
            .filter(|verdict| verdict.code == Code::VcpuDeadHalt)
            .collect();
        assert_eq!(dead.len(), 1);
        assert_eq!(dead[0].severity, Severity::Error);
        assert!(dead[0].summary.contains("no vCPU runs"), "{verdicts:?}");
    }
}

#[test]
fn who_waits_for_a_lock_of_a_vcpu_that_loops_is_its_consequence() {
    let loops = |interrupts_on: bool| {
        waiting_at(16 * S, move |other| {
            runs(other);
            let sight = other.sight.as_mut().unwrap();
            sight.suspicion = Suspicion::Deaf;
            sight.mp_state = mp_state::RUNNABLE;
            sight.place = "spins+0x4/0x20".to_owned();
            sight.stack = String::new();
            sight.interrupts_on = interrupts_on;
            sight.alike.looks = 6;
            sight.alike.since_ns = sight.suspected_since_ns;
        })
    };
    for (interrupts_on, code) in [(false, "vcpu-spin-irqs-off"), (true, "vcpu-spin")] {
        let verdicts = loops(interrupts_on);
        assert_eq!(codes(&verdicts), [code, "vcpu-dead-halt"]);
        assert_eq!(verdicts[0].consequence_of, None);
        assert_eq!(verdicts[1].consequence_of, Some(verdicts[0].key()));
    }
}
