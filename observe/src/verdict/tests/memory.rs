//! The VMM's cgroup.

use super::*;
use crate::verdict::memory_seen::MemorySeen;

#[test]
fn a_cgroup_that_is_pushed_against_its_limit_is_at_risk_and_a_full_one_is_not() {
    let full = |met: u64| {
        move |world: &World| {
            world.cgroup.memory_limited.set(1);
            world.cgroup.memory_max.set(1 << 30);
            world.cgroup.memory_current.set((1 << 30) - 4096);
            let max = crate::host::MEMORY_EVENTS
                .iter()
                .position(|name| *name == "max");
            world.cgroup.memory_events[max.unwrap()].add(met);
        }
    };
    assert_eq!(World::new().said(full(0)), []);
    assert_eq!(codes(&World::new().said(full(9))), ["vmm-oom-risk"]);
    // A guest that reads much through the host's page cache meets the limit all the time.
    let cached = World::new().said(|world| {
        full(9)(world);
        world.cgroup.memory_reclaimable.set(100 << 20);
    });
    assert_eq!(cached, []);
}

#[test]
fn a_cgroup_that_fills_steadily_is_told_before_it_is_full() {
    let needed = |per_second: u64| {
        (0..40)
            .map(move |at| (at * S, (600 + at * per_second) << 20))
            .collect()
    };
    let now = |per_second, untouched, max_mib: u64| {
        let world = World::new();
        world.cgroup.memory_limited.set(1);
        world.cgroup.memory_max.set(max_mib << 20);
        world.cgroup.memory_current.set(700 << 20);
        world.sampled(10 * S);
        let earlier = world.seen(10 * S);
        let memory = MemorySeen {
            needed: needed(per_second),
            untouched_bytes: untouched,
            swap_left_bytes: 0,
        };
        let now = Observation {
            memory,
            ..world.seen(10 * S)
        };
        diagnose(Some(&earlier), &now, &Thresholds::default())
    };
    let told = now(4, Some(1 << 30), 956);
    assert_eq!(codes(&told), ["vmm-oom-risk"]);
    assert_eq!(told[0].severity, Severity::Warning);
    let left = told[0]
        .evidence
        .iter()
        .find(|(name, _)| *name == "seconds_left");
    assert_eq!(left, Some(&("seconds_left", Fact::Real(50.0))));
    // Too far away; the guest cannot take that much; nobody knows how much it can; no trend.
    assert_eq!(now(4, Some(1 << 30), 2000), []);
    assert_eq!(now(4, Some(100 << 20), 956), []);
    assert_eq!(now(4, None, 956), []);
    assert_eq!(now(0, Some(1 << 30), 956), []);
}

#[test]
fn the_engine_remembers_what_was_needed_when_the_samples_are_not_read() {
    let world = World::new();
    world.cgroup.memory_limited.set(1);
    world.cgroup.memory_max.set(950 << 20);
    let mut engine = Engine::default();
    let mut told = Vec::new();
    for second in 0..70 {
        world.cgroup.memory_current.set((600 + 4 * second) << 20);
        world.sampled((10 + second) * S);
        let mut now = world.seen((10 + second) * S);
        now.memory.untouched_bytes = Some(1 << 30);
        now.memory.swap_left_bytes = 0;
        told.extend(engine.step(now, &Thresholds::default()));
    }
    let Some(Change::Raised(first)) = told.first() else {
        panic!("{told:?}");
    };
    assert_eq!(first.code, Code::VmmOomRisk);
    let samples = first.evidence.iter().find(|(name, _)| *name == "samples");
    // One more than the fewest steps that a trend has, and a second until it is raised.
    assert_eq!(samples, Some(&("samples", Fact::Number(14))));
}
