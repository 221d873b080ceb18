//! What the guest tells of its own memory.

use super::*;
use crate::clock::Clock;
use crate::series::{Column, Series};
use crate::verdict::observation::{BalloonSeen, GuestMemory, Sampled};

const MIB: u64 = 1 << 20;

/// A balloon that is as large as it is to be, of a guest of 512 MiB; a sample a second, the last at
/// 100 s.
fn balloon(samples: impl Fn(u64) -> GuestMemory) -> BalloonSeen {
    let history = (60..=100).map(|second| Sampled {
        at_ns: second * S,
        value: samples(second - 60),
    });
    BalloonSeen {
        has_driver: true,
        interval_ns: S,
        history: history.collect(),
        ..BalloonSeen::default()
    }
}

fn memory(available_mib: u64) -> GuestMemory {
    GuestMemory {
        total_bytes: 512 * MIB,
        available_bytes: available_mib * MIB,
        ..GuestMemory::default()
    }
}

fn said_at(balloon: BalloonSeen, at_ns: u64) -> Vec<Verdict> {
    let now = Observation {
        at_ns,
        writer_alive: Some(true),
        pulse_ns: Some(at_ns),
        guest_memory_bytes: Some(512 * MIB),
        balloon: Some(balloon),
        ..Observation::default()
    };
    diagnose(None, &now, &Thresholds::default())
}

fn said(balloon: BalloonSeen) -> Vec<Verdict> {
    said_at(balloon, 100 * S)
}

#[test]
fn a_balloon_that_does_not_reach_its_target_is_stuck_and_one_that_moves_is_not() {
    let at = |still_since_ns, has_driver| BalloonSeen {
        target_bytes: 200 * MIB,
        actual_bytes: 150 * MIB,
        still_since_ns,
        has_driver,
        ..balloon(|_| memory(300))
    };
    let told = said(at(90 * S, true));
    assert_eq!(codes(&told), ["balloon-stuck"]);
    assert_eq!(told[0].subject.as_str(), "device/balloon");
    assert!(
        told[0].summary.contains("150 of 200 MiB"),
        "{}",
        told[0].summary
    );
    assert_eq!(said(at(91 * S, true)), []);
    // A guest that boots has no driver for a while.
    assert_eq!(said(at(50 * S, false)), []);
    let told = said(at(40 * S, false));
    assert!(told[0].summary.contains("no driver"), "{}", told[0].summary);
    let reached = BalloonSeen {
        actual_bytes: 200 * MIB,
        ..at(0, true)
    };
    assert_eq!(said(reached), []);
}

#[test]
fn little_memory_is_pressure_when_programs_wait_for_it_and_only_then() {
    let last = |of: fn(&mut GuestMemory)| {
        balloon(move |second| {
            let mut now = memory(40);
            if second == 40 {
                of(&mut now);
            }
            now
        })
    };
    assert_eq!(said(last(|_| {})), []);
    for of in [
        (|now| now.stalls = 1) as fn(&mut GuestMemory),
        |now| now.direct_scan_bytes = 4096,
        |now| now.swapped_bytes = 4096,
        |now| now.major_faults = 50,
    ] {
        assert_eq!(codes(&said(last(of))), ["guest-memory-pressure"]);
    }
    assert_eq!(said(last(|now| now.major_faults = 49)), []);
    // With enough memory the same is nothing.
    let enough = balloon(|second| GuestMemory {
        stalls: second,
        ..memory(52)
    });
    assert_eq!(said(enough), []);
    // What was said long ago is not said of now.
    assert_eq!(said_at(last(|now| now.stalls = 1), 106 * S), []);
}

#[test]
fn a_steady_leak_is_told_before_the_guests_memory_ends() {
    let leak = |per_second: u64| balloon(move |second| memory(220 - per_second * second));
    let told = said(leak(4));
    assert_eq!(codes(&told), ["guest-oom-soon"]);
    let left = told[0].evidence.first();
    assert_eq!(left, Some(&("seconds_left", Fact::Real(15.0))));
    // Far away; none at all; and one that has hardly begun.
    assert_eq!(said(leak(1)), []);
    assert_eq!(said(leak(0)), []);
    assert_eq!(said(balloon(|second| memory(500 - 4 * second))), []);
}

#[test]
fn what_goes_into_the_balloon_is_no_leak_and_what_can_come_out_of_it_is_not_gone() {
    let filling = balloon(|second| GuestMemory {
        balloon_bytes: 4 * second * MIB,
        ..memory(220 - 4 * second)
    });
    assert_eq!(said(filling), []);
    let leak = |deflates_on_oom| BalloonSeen {
        deflates_on_oom,
        ..balloon(|second| GuestMemory {
            balloon_bytes: 200 * MIB,
            ..memory(120 - 2 * second)
        })
    };
    let left = |told: &[Verdict]| told[0].evidence.first().map(|(_, fact)| fact.clone());
    let told = said(leak(false));
    assert_eq!(codes(&told), ["guest-oom-soon"]);
    assert_eq!(left(&told), Some(Fact::Real(20.0)));
    // 240 MiB at 2 MiB a second.
    assert_eq!(left(&said(leak(true))), Some(Fact::Real(120.0)));
}

#[test]
fn a_kill_that_only_the_statistics_tell_is_told() {
    let killed = balloon(|second| GuestMemory {
        oom_kills: 3 + second / 30,
        ..memory(300)
    });
    let told = said(killed);
    assert_eq!(codes(&told), ["guest-oom"]);
    assert_eq!(told[0].evidence, [("oom_kills", Fact::Number(1))]);
    assert_eq!(told[0].since_ns, 89 * S);
}

#[test]
fn the_engine_keeps_the_last_minute_and_no_sample_twice() {
    let at = |second: u64| BalloonSeen {
        history: vec![Sampled {
            at_ns: second * S,
            value: memory(second),
        }],
        ..BalloonSeen::default()
    };
    let mut before = at(1);
    for second in [2, 2, 3, 4] {
        let mut now = at(second);
        now.goes_on(Some(&before));
        before = now;
    }
    let seconds = before.history.iter().map(|sample| sample.at_ns / S);
    assert_eq!(seconds.collect::<Vec<_>>(), [1, 2, 3, 4]);
    for second in 5..200 {
        let mut now = at(second);
        now.goes_on(Some(&before));
        before = now;
    }
    assert_eq!(before.history.len(), 60);
}

#[repr(C)]
struct Balloon {
    statistics_at: Gauge,
    statistics_present: Gauge,
    total_memory: Gauge,
    available_memory: Gauge,
}

// SAFETY: repr(C), gauges only.
#[allow(unsafe_code)]
unsafe impl Section for Balloon {
    const KIND: &'static str = "balloon";
    const INSTANCE: &'static [&'static str] = &[];
    const FIELDS: &'static [Field] = &[
        Field::gauge(
            "statistics_at",
            Unit::Ticks,
            offset_of!(Balloon, statistics_at),
            ".",
        ),
        Field::gauge(
            "statistics_present",
            Unit::None,
            offset_of!(Balloon, statistics_present),
            ".",
        ),
        Field::gauge(
            "total_memory",
            Unit::Bytes,
            offset_of!(Balloon, total_memory),
            ".",
        ),
        Field::gauge(
            "available_memory",
            Unit::Bytes,
            offset_of!(Balloon, available_memory),
            ".",
        ),
    ];
}

#[repr(C)]
struct Kept {
    samples: Series<11, 300>,
}

const fn number(name: &'static str) -> Column {
    Column::level(name, Unit::None, ".")
}

// SAFETY: repr(C), a series only.
#[allow(unsafe_code)]
unsafe impl Section for Kept {
    const KIND: &'static str = "balloon_samples";
    const INSTANCE: &'static [&'static str] = &[];
    const FIELDS: &'static [Field] = &[Field::series::<11, 300>(
        "samples",
        offset_of!(Kept, samples),
        &[
            Column::level("at", Unit::Ticks, "."),
            Column::level("statistics_age", Unit::Nanoseconds, "."),
            number("actual"),
            number("total_memory"),
            number("available_memory"),
            number("swap_in"),
            number("swap_out"),
            number("major_faults"),
            number("alloc_stall"),
            number("direct_scan"),
            number("oom_kill"),
        ],
        ".",
    )];
}

/// Statistics every other second, a row each second, and the newest ones in the balloon's section.
#[test]
fn a_black_box_alone_has_the_statistics_of_the_last_minute() {
    let meta = Meta {
        vm_id: "t".to_owned(),
        version: String::new(),
    };
    let mut black_box = BlackBox::anonymous(1 << 20, &meta).unwrap();
    let block: Block<Balloon> = black_box.section("balloon", &[]).unwrap();
    let kept: Block<Kept> = black_box.section("balloon_samples", &[]).unwrap();
    let clock = Clock::process();
    let second = (u128::from(S) << 32) / u128::from(clock.anchor().0);
    let now = clock.ticks();
    let at = |ago: u64| now - ago * second as u64;
    // None yet; then from 41 s ago to 1 s ago; the row of now has those of a second ago.
    for ago in (0..50u64).rev() {
        let age = if ago > 41 { 0 } else { (ago + 1) % 2 * S + 1 };
        let told = 300 * MIB - (50 - ago) / 2 * MIB;
        let row = [at(ago), age, 7, 512 * MIB, told, 3, 4, 5, 6, 8, 9];
        kept.samples.push(row);
    }
    let seen = || Observation::of(&snapshot(&black_box)).balloon.unwrap();
    let history = seen().history;
    assert_eq!(history.len(), 21, "{history:?}");
    let last = history.last().unwrap().value;
    assert_eq!((last.total_bytes, last.balloon_bytes), (512 * MIB, 7));
    assert_eq!((last.swapped_bytes, last.major_faults), (7, 5));
    assert_eq!((last.stalls, last.direct_scan_bytes), (6, 8));
    assert_eq!(last.oom_kills, 9);
    let gaps = history.windows(2).map(|two| two[1].at_ns - two[0].at_ns);
    assert!(
        gaps.clone().all(|gap| gap.abs_diff(2 * S) < S / 100),
        "{:?}",
        gaps.collect::<Vec<_>>()
    );
    // Newer ones that no row has yet come after them, the same ones come once.
    block.statistics_present.set(1 << 5 | 1 << 6);
    block.total_memory.set(512 * MIB);
    block.available_memory.set(100 * MIB);
    block.statistics_at.set(at(1));
    assert_eq!(seen().history.len(), 21);
    block.statistics_at.set(now);
    let history = seen().history;
    assert_eq!(history.len(), 22);
    assert_eq!(history[21].value.available_bytes, 100 * MIB);
}
