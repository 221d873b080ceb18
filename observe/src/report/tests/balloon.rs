//! The balloon in a report.

use super::*;
use crate::blackbox::{BlackBox, Meta};
use crate::cell::{Counter, Gauge};
use crate::schema::{Field, Section, Unit};

#[repr(C)]
struct Balloon {
    target: Gauge,
    actual: Gauge,
    features: Gauge,
    interval: Gauge,
    statistics_at: Gauge,
    statistics_present: Gauge,
    free_memory: Gauge,
    oom_kill: Gauge,
    inflated: Counter,
    refused_outside: Counter,
    statistics: Counter,
}

const fn gauge(name: &'static str, unit: Unit, offset: usize) -> Field {
    Field::gauge(name, unit, offset, ".")
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Balloon {
    const KIND: &'static str = "balloon";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        gauge("target", Unit::Bytes, offset_of!(Balloon, target)),
        gauge("actual", Unit::Bytes, offset_of!(Balloon, actual)),
        gauge("features", Unit::None, offset_of!(Balloon, features)),
        gauge("interval", Unit::Nanoseconds, offset_of!(Balloon, interval)),
        gauge("statistics_at", Unit::Ticks, offset_of!(Balloon, statistics_at)),
        gauge("statistics_present", Unit::None, offset_of!(Balloon, statistics_present)),
        gauge("free_memory", Unit::Bytes, offset_of!(Balloon, free_memory)),
        gauge("oom_kill", Unit::None, offset_of!(Balloon, oom_kill)),
        Field::counter("inflated", Unit::Bytes, offset_of!(Balloon, inflated), "."),
        Field::counter("refused_outside", Unit::None, offset_of!(Balloon, refused_outside), "."),
        Field::counter("statistics", Unit::None, offset_of!(Balloon, statistics), "."),
    ];
}

#[test]
fn a_balloon_is_told_with_what_the_guest_tells_by_it() {
    let meta = Meta {
        vm_id: "vm".into(),
        version: "1".into(),
    };
    let mut black_box = BlackBox::anonymous(256 << 10, &meta).unwrap();
    let balloon: Block<Balloon> = black_box.section("balloon", &[]).unwrap();
    let told = || squeezed(&render(&snapshot(&black_box), Options::default()));
    balloon.target.set(200 << 20);
    let text = told();
    for words in [
        "The balloon\n",
        "It is to have 200.0 MiB, since never; the guest has no driver for it.",
        "The guest is not asked for statistics.",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    assert!(!text.contains("Refused"), "{text}");
    balloon.features.set(1 << 2 | 1 << 32);
    balloon.actual.set(150 << 20);
    balloon.inflated.add(150 << 20);
    balloon.refused_outside.add(3);
    balloon.interval.set(2_000_000_000);
    assert!(told().contains("was asked for statistics and has sent none."));
    balloon.statistics_at.set(Clock::process().ticks());
    balloon.statistics_present.set(1 << 4);
    balloon.free_memory.set(77 << 20);
    balloon.oom_kill.set(9);
    balloon.statistics.add(5);
    let text = told();
    for words in [
        "it has 150.0 MiB, it never changed; the guest takes memory out of it before it kills",
        "In all: 150.0 MiB put into it, 0 B taken out;",
        "Refused of what the guest named: 3 pages that are not its memory, 0 named twice, 0 beyond",
        "every 2.000 s, and sent them 5 times; last ",
        "free memory 77.0 MiB",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    // What it did not send is not shown, and nothing of it is told twice.
    assert!(
        !text.contains("oom kill") && !text.contains("balloon oom_kill"),
        "{text}"
    );
}
